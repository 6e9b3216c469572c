"""The names of the tools and models that exist in this process. A policy rule that names a tool or model which is not
among them is reported as misspelt.
"""

from typing import Any, Final
from weakref import WeakSet, ref

TOOLS: Final[set[str]] = set()
"""The names of tools. Each `Tool` adds its own. Tools of MCP servers are added when the server has been asked for
them.
"""

_MADE: Final[dict[str, dict[int, "ref[Any]"]]] = {}


def note_tool(tool: Any) -> None:
    """Remembers a tool, so that `tools_named` finds it as long as it exists."""
    made, key = _MADE.setdefault(tool.name, {}), id(tool)
    made[key] = ref(tool, lambda _: made.pop(key, None))


def tools_named(name: str) -> list[Any]:
    """Returns the tools of this name that the program has made and still has."""
    made = _MADE.get(name, {}).copy()  # a collection of garbage in the loop may remove some
    return [tool for each in made.values() if (tool := each()) is not None]


MODELS: Final[set[str]] = set()
"""The names of models: those of the engines' providers, and those that agents name."""

SERVERS: Final["WeakSet[object]"] = WeakSet()
"""The open pools of MCP servers. A server that has not been asked for its tools yet may have tools of any name."""
