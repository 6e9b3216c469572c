"""Reading and making of columns, for other kernels only (columns.pxd). Python code uses nothing in here."""
