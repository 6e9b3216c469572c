"""Groups by key: hashes and key groups, accumulators, multisets from which values can be removed again, sketches."""
