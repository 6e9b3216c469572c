"""Expressions over columns, compiled."""
