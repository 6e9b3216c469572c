"""How kernels read columns and make them: for other kernels only (columns.pxd); nothing in here is for Python."""
