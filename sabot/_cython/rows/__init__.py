"""Whole rows by key: one table of them, one encoding; the first n, changes, partial matches of a pattern."""
