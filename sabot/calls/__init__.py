"""Calls of the user's coroutine functions: how they are made, how many at once, and what happens when one fails.

options    what the user may say of them: checked once, frozen
crew       who makes them on the event loop: so many at once, in order by queue, with time-outs and retries
limits     when another call may begin: a rate, and what a service takes that says it is overloaded
functions  what is behind the user's functions, and those that give their results in pieces
cache      equal questions asked once, answers kept
handover   calls of an operator that has a thread of its own
pool       threads for calls of sync functions
steps      who holds the event loop up
"""

from sabot.calls.crew import Calls, Crew, Worker
from sabot.calls.options import CallOptions, Retry

__all__ = ["CallOptions", "Calls", "Crew", "Retry", "Worker"]
