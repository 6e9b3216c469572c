"""Arrow data: batches, the check of data from outside, the view through which kernels read a column, selections,
comparisons.
"""
