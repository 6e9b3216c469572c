"""Steps by key: running aggregates, windows over rows, the first n."""
