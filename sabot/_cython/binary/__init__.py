"""Converts binary payloads, whose schema is known, to columns, and back."""
