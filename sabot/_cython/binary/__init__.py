"""Converts binary payloads with a known schema to columns, and back."""
