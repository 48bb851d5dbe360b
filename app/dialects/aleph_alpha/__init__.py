"""The wire of Aleph Alpha's API, as its Python client speaks it."""
