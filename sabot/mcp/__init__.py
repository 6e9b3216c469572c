"""The Model Context Protocol: what agents remember and the engine's state, offered to other programs (`server`), and the memory (`memory`).

Only this room imports the official SDK, and only the modules that need it: `pip install 'sabot[mcp]'`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sabot.mcp.memory import FoundMemory, Memory, MemoryFile, MemoryKeeping, Remembered, StateMemories

__all__ = ["FoundMemory", "Memory", "MemoryFile", "MemoryKeeping", "Remembered", "StateMemories"]

_HOMES = {
    "sabot.mcp.memory": ("FoundMemory", "Memory", "MemoryFile", "MemoryKeeping", "Remembered", "StateMemories"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
