"""Arrays without nulls, as kernels take and give them: for other kernels (columns.pxd), nothing for Python."""
