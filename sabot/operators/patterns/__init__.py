"""Sequences of rows of a key."""
