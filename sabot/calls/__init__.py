"""Calls of the user's coroutine functions: how they are made, how many at once, and what happens when one fails.

options   what the user may say of them: checked once, frozen
"""

from sabot.calls.options import CallOptions, Retry

__all__ = ["CallOptions", "Retry"]
