"""Expressions over columns, compiled to functions over batches."""
