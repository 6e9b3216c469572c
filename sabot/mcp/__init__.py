"""The Model Context Protocol, as a client and as a server.

`pool` has the sessions with servers, `connection` is one session, and `transport` carries the messages of a session.
`tools` turns the tools of servers into tools of agents, and `errors` draws the tree of errors. `bridges`, `sessions` and
`documents` make typed calls to servers that keep sessions and documents. `server` offers tools to other programs, such as
those of the memory of agents (`memory`) and of the saved state of an app (`saved_state`).

Only this package imports the official SDK, and only in modules that need it: `pip install 'sabot[mcp]'`.
"""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
