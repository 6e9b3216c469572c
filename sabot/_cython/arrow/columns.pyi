"""Functions that read and make columns, for other kernels only (columns.pxd). Python code uses nothing in this
module.
"""
