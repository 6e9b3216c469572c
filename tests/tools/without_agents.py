"""The engine's tests pass where the agents' rooms cannot be imported, and none of them is skipped for it.

Each worker of `make test` begins without these rooms: it runs files of the engine's rooms (`of_the_engine`), and may import the others with
the first file that is none of them. For one run by hand, as a plugin of pytest:

PYTHONPATH=tests pytest -p tools.without_agents tests/unit/engine/runtime …
"""

import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

ROOMS = ("sabot.agents", "sabot.jobs", "sabot.journal", "sabot.llm", "sabot.mcp")
REFUSED = "which is a room of the agents"
_OF_THE_ENGINE = re.compile(
    r"\btests/unit/(?:_cython|api|codecs|connectors|kafka|sql"
    r"|engine/(?:calls|checkpoint|delivery|exchange|operators|plan|runtime|state))/"
)


class Refuses(MetaPathFinder):
    """Finds no module, and refuses those of the rooms."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if ".".join(name.split(".")[:2]) in ROOMS:
            raise ModuleNotFoundError(f"the engine has imported {name}, {REFUSED}", name=name)


def not_skipped(report: Any) -> Any:
    """Makes a failure of what was skipped because a room was refused. -> the report"""
    if report.skipped and REFUSED in str(report.longrepr):
        report.outcome = "failed"
    return report


def of_the_engine(file: str) -> bool:
    """Whether a file of tests is one of the engine's rooms."""
    return _OF_THE_ENGINE.search(file) is not None


def pytest_configure() -> None:
    """Refuses the rooms from now on. Called by pytest before it collects tests."""
    loaded = [name for name in sys.modules if ".".join(name.split(".")[:2]) in ROOMS]
    assert not loaded, f"{loaded} are imported before the tests"
    sys.meta_path.insert(0, Refuses())


def allow() -> None:
    """Refuses nothing any more."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Refuses)]
