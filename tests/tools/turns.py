"""Files of tests that a worker imports when their turn comes: of thousands of tests each worker collects those that it runs, and not all.

The tests that are dealt to the workers are then the files. What runs in the turn of a file are its tests, with all hooks, and their
reports go where those of any tests go.
"""

import gc
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sabot.base import redaction
from tools.without_agents import allow, of_the_engine

__all__ = ["ONLY_SLOW", "File", "Turn", "check_words", "may_be_slow"]

# What `make slow` asks for. Of a file that has no word of it no test is drawn, so it need not be imported: that is a third of the files.
ONLY_SLOW = "slow or hypothesis"
_WORDS = re.compile("slow|hypothesis|one_in|Suite")  # suites have tests that are marked

_FRAMES = sys.getrecursionlimit()


def may_be_slow(file: Path) -> bool:
    """Whether a file of tests says a word by which one of them is slow, or a property."""
    return _WORDS.search(file.read_text()) is not None


def check_words(items: Iterable[pytest.Item]) -> None:
    """Raises UsageError for a file that `make slow` would leave out though it has a test for it: each run of it would miss that test."""
    found = {
        item.path
        for item in items
        if item.get_closest_marker("slow") or getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
    }
    if missed := sorted(file.name for file in found if not may_be_slow(file)):
        raise pytest.UsageError(
            f"tests of {', '.join(missed)} are slow, or properties, by what another file says: write there a comment with "
            '"slow" or "hypothesis", by which `make slow` finds the file'
        )


class File(pytest.File):
    """A file of tests that is not imported yet."""

    def collect(self) -> Iterator["Turn"]:
        if self.config.option.markexpr != ONLY_SLOW or may_be_slow(self.path):
            yield Turn.from_parent(self, name="turn")


class Turn(pytest.Item):
    """A turn of a file."""

    running: pytest.Item | None = None

    @property
    def nodeid(self) -> str:
        """While a test runs its id: xdist takes reports of what it deals only."""
        return super().nodeid if self.running is None else self.running.nodeid

    def listchain(self) -> list[Any]:
        """What stays for the next turn: what the session shares, and no folder, as a file in another one may have no test to run."""
        return [self.session, self]

    def run(self, following: pytest.Item | None) -> None:
        """Collects the tests, and runs them. What the session shares stays if another turn is `following`."""
        redaction._known = (
            redaction._Known()
        )  # a word that is a secret in one file would be hidden in messages of another
        sys.setrecursionlimit(_FRAMES)  # IPython's completion raises it for good
        if not of_the_engine(self.path.as_posix()):
            allow()
        tests = self._tests()
        for test, after in zip(tests, [*tests[1:], following], strict=False):
            if self.session.shouldfail or self.session.shouldstop:
                break
            self.running = test
            self.config.hook.pytest_runtest_protocol(item=test, nextitem=after)
        self.running = None

    def runtest(self) -> None:
        """Never called: what runs are the tests of the file."""

    def _tests(self) -> list[pytest.Item]:
        assert self.parent is not None
        gc.disable()  # what is collected stays, so there is no garbage to look for
        try:
            module: Any = pytest.Module.from_parent(self.parent.parent, path=self.path)
            tests = list(self.session.genitems(module))
            self.config.hook.pytest_collection_modifyitems(session=self.session, config=self.config, items=tests)
        finally:
            gc.enable()
        gc.freeze()
        return tests
