"""The names of tools and models that this process has made so far, by which a rule that names none of them is known as misspelt."""

from typing import Final
from weakref import WeakSet

TOOLS: Final[set[str]] = set()
"""The names of tools: `Tool` adds each, those of MCP servers as soon as the server was asked for them."""

MODELS: Final[set[str]] = set()
"""The models of the providers of engines, and those that agents ask for."""

SERVERS: Final["WeakSet[object]"] = WeakSet()
"""The open pools of MCP servers: a server that was not asked yet may have a tool of any name."""
