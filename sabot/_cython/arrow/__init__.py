"""Columns: the border of Arrow data, the view of a column, selections, comparisons."""
