"""A plugin of pytest that refuses the rooms of the agents, for a run of the engine's tests:

PYTHONPATH=tests pytest -p tools.without_agents tests/unit/engine/runtime …
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

ROOMS = ("sabot.agents", "sabot.jobs", "sabot.journal", "sabot.llm", "sabot.mcp")
REFUSED = "which is a room of the agents"


class Refuses(MetaPathFinder):
    """Finds no module, and refuses those of the rooms."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if ".".join(name.split(".")[:2]) in ROOMS:
            raise ModuleNotFoundError(f"the engine has imported {name}, {REFUSED}", name=name)


def pytest_configure() -> None:
    """Refuses the rooms from now on. Called by pytest before it collects tests."""
    sys.meta_path.insert(0, Refuses())
