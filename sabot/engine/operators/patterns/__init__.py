"""Patterns: sequences among the rows of a key."""
