"""The Model Context Protocol: what agents remember and the engine's state, offered to other programs (`server`), and the memory (`memory`).

Only this room imports the official SDK, and only the modules that need it: `pip install 'sabot[mcp]'`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sabot.mcp.memory import FoundMemory, Memory, MemoryFile, MemoryKeeping, Remembered, StateMemories
    from sabot.mcp.server import ToolServer
    from sabot.mcp.states import SavedState, StateInfo, StateRows, StateSource, state_tools

__all__ = [
    "FoundMemory",
    "Memory",
    "MemoryFile",
    "MemoryKeeping",
    "Remembered",
    "SavedState",
    "StateInfo",
    "StateMemories",
    "StateRows",
    "StateSource",
    "ToolServer",
    "state_tools",
]

_HOMES = {
    "sabot.mcp.memory": ("FoundMemory", "Memory", "MemoryFile", "MemoryKeeping", "Remembered", "StateMemories"),
    "sabot.mcp.server": ("ToolServer",),
    "sabot.mcp.states": ("StateInfo", "SavedState", "StateRows", "StateSource", "state_tools"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
