"""Arrow data: batches, the check of data from outside, the view that kernels have of a column, selections, comparisons."""
