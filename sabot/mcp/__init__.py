"""The Model Context Protocol, from both sides.

`pool` has the sessions with servers, `connection` one of them, `transport` how messages travel; `tools` makes tools of
what servers offer, and `errors` is the tree of what goes wrong. Servers that keep sessions and documents are asked by
typed calls (`bridges`, `sessions`, `documents`). What agents remember (`memory`) and the engine's state (`states`) are
offered to other programs by `server`.

Only this room imports the official SDK, and only the modules that need it: `pip install 'sabot[mcp]'`.
"""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
