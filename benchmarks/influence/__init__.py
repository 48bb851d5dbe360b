"""Training-data influence on a test bed small enough to retrain: who said it, and what would be gone with them."""
