"""Coroutine functions of the user's over rows, and what waits for them at a barrier."""
