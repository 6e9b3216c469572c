"""Steps without state, a batch at a time."""
