"""Calls of models, and agents: a model with tools. `engine_core` makes the calls, `engine` is
what streams and agents use of it, `agent` runs the loop of a model with its tools.

`results` has the answers, `provider` is the contract of a vendor's API, and `providers` has the vendors. What jobs know
of models and tools too stands in `sabot.engine.calls`: requests, messages, tools and errors.
"""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
