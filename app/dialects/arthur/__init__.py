"""Arthur's wire: models, inferences, ground truth and reference sets."""
