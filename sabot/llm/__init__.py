"""Calls of models, and agents: a model with tools. `engine_core` makes the calls, `engine` is
what streams and agents use of it, `agent` runs the loop of a model with its tools.

`messages` and `spec` contain the parts of a request, `results` the answers, `tools` the functions that a model may
call, `arguments` what these functions will get. `provider` is the contract of a vendor's API, `providers` has the
vendors, and `errors` draws the tree of errors.
"""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
