"""The names of tools and models that this process has made so far, by which a rule that names none of them is known as misspelt."""

from typing import Final

TOOLS: Final[set[str]] = set()
"""The names of tools: `Tool` adds each, those of MCP servers as soon as the server was asked for them."""

MODELS: Final[set[str]] = set()
"""The models of the providers of engines, and those that agents ask for."""
