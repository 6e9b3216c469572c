"""Groups by key: hashes and key groups, accumulators, values that can be taken away again, sketches."""
