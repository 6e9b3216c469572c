"""Calls of the user's coroutine functions: their concurrency, order, retries and failures.

options    the user's options for calls: checked once, frozen
crew       makes the calls on the event loop: so many at once, in the order of a queue, with time-outs and retries
limits     decides when another call may begin: a rate, and the concurrency that an overloaded service accepts
functions  unwraps the user's functions, and runs those that yield their results in pieces
cache      keeps answers, and makes one call for equal questions that come at the same time
handover   makes calls for an operator that has a thread of its own
pool       threads for calls of sync functions
steps      logs which call blocks the event loop
judging    the judge of model calls in this context
model_figures  the figures of the engines of models in this event loop
"""

from sabot.calls.crew import Calls, Crew, Worker
from sabot.calls.options import CallOptions, Retry

__all__ = ["CallOptions", "Calls", "Crew", "Retry", "Worker"]
