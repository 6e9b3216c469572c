"""The Model Context Protocol, as a client and as a server.

As a client: `pool` has the sessions with servers, `connection` is one session, `calls` are its calls that are under way,
and `transport` carries the messages of a session. `tools` turns the tools of servers into tools of agents, and `errors`
draws the tree of errors. `sessions` and `documents` are typed clients for servers that keep sessions of agents or
documents; `bridges` is their common base.

As a server: `server` offers tools to other programs. `memory` and `saved_state` have such tools: for the memory of
agents, and for the saved state of an app.

Only this package imports the official SDK, and only in modules that need it: `pip install 'sabot[mcp]'`.
"""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
