"""Calls of the user's functions, of tools and of models: their concurrency, order, retries and failures, and what a
caller has to know of them.

options    the user's options for calls: checked once, frozen
crew       makes the calls on the event loop: so many at once, in the order of a queue, with time-outs and retries
limits     decides when another call may begin: a rate, and the concurrency that an overloaded service accepts
functions  unwraps the user's functions, and runs those that yield their results in pieces
cache      keeps answers, and makes one call for equal questions that come at the same time
handover   makes calls for an operator that has a thread of its own
pool       threads for calls of sync functions
steps      logs which call blocks the event loop
judging    the judge of model calls in this context
certainty  was a call made, by its error
model_figures  the figures of the engines of models in this event loop

effects    the classes of effects, which say how a call may be repeated; their ids
tools      the functions that agents call as tools
tool_results  what tools return, as JSON and in a journal
arguments  the arguments that a tool will get, by the names of its parameters; `edits` changes them
fields     the fields of Python values at a path, `batches` of rows; `schema_paths`: what a JSON schema says of such values
schema     JSON schemas of Python types, and values that are read by them; `json_schema`, `pydantic_types`
names      the tools and models that exist in this process
messages   what a model is told and answers; `model_requests`: a request as a value; `usage`: its tokens
errors     the tree of the errors of models, tools and agents
"""

from sabot.engine.calls.crew import Calls, Crew, Worker
from sabot.engine.calls.options import CallOptions, Retry

__all__ = ["CallOptions", "Calls", "Crew", "Retry", "Worker"]
