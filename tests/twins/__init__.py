"""Naive twins of kernels: slow, simple to read, and compared with the kernel on the same input."""
