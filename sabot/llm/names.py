"""The names of the tools and models that exist in this process. A policy rule that names a tool or model which is not
among them is reported as misspelt.
"""

from typing import Final
from weakref import WeakSet

TOOLS: Final[set[str]] = set()
"""The names of tools. Each `Tool` adds its own. Tools of MCP servers are added when the server has been asked for
them.
"""

MODELS: Final[set[str]] = set()
"""The names of models: those of the engines' providers, and those that agents name."""

SERVERS: Final["WeakSet[object]"] = WeakSet()
"""The open pools of MCP servers. A server that has not been asked for its tools yet may have tools of any name."""
