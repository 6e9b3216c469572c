"""Whole rows by key: a table of rows, the encoding of a row, the first n rows, changes, partial matches of a pattern."""
