"""Converts the bytes of payloads, keys and state to columns, and back."""
