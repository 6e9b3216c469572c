"""The Model Context Protocol, as a client and as a server.

As a client: `pool` has the sessions with servers, `connection` is one session, `calls` are its calls that are under way,
and `transport` carries the messages of a session. `tools` turns the tools of servers into tools of agents, and `errors`
draws the tree of errors.

As a server: `server` offers tools to other programs. `saved_state` has such tools, for the saved state of an app.
`specified/mcp` has what documents name beside these: servers for the memory of agents, clients of servers that keep
sessions and documents.

Only this package imports the official SDK, and only in modules that need it: `pip install 'sabot[mcp]'`.
"""

from sabot.base.lazy_imports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__)
