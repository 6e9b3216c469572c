"""Bytes of payloads, keys and state to columns, and back."""
