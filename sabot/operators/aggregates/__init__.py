"""Aggregates: what they keep of rows, and their results."""
