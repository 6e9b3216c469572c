"""The supervisor of the tests, which must have nothing left when a test is over."""

import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from unit.process.children import children_of

from sabot.process import Supervisor

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    """No test leaves a process, and none a zombie."""
    running = await Supervisor.running()
    yield running
    running = await Supervisor.running()  # another one, if the test has killed it
    left = running.children
    for child in left:
        child.kill()
    assert left == []
    assert children_of(running.pid) == []


@pytest.fixture(scope="package", autouse=True)
def _no_supervisor_afterwards() -> Iterator[None]:
    yield
    if Supervisor._current is not None:
        Supervisor._current.close()
