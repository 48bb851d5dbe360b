"""Arthur's wire: models, inferences, ground truth, enrichments, queries."""
