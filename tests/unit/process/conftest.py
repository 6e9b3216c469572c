"""The supervisor of the tests, which must have nothing left when a test is over."""

import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from unit.process.children import children_of

from sabot.process import Supervisor
from sabot.process.sandbox.levels import available
from tools.agent_tools import until
from tools.leftovers import end_supervisor

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
    await until(lambda: children_of(running.pid) == [])  # one that has just begun starts its watcher by a child


@pytest.fixture(scope="package", autouse=True)
def _no_supervisor_afterwards() -> Iterator[None]:
    yield
    end_supervisor()


@pytest.fixture
def some_means() -> None:
    """Those of the kernel that are there for long, for a worker that is root or may make user namespaces."""
    if not {"user", "filter", "mounts"} <= available().there:
        pytest.skip("this system does not have the means")


@pytest.fixture
def all_means(some_means: None) -> None:
    if not {"reads", "neighbours", "ports", "network"} <= available().there:
        pytest.skip("this system does not have the means")


@pytest.fixture
def area() -> Iterator[Path]:
    """A folder that everybody reaches, and that is not below the /tmp that a sandbox hides."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    for name, mode in ("", 0o755), ("mine", 0o755), ("outside", 0o777), ("state", 0o755):
        (folder / name).mkdir(exist_ok=True)
        (folder / name).chmod(mode)
    for name, mode in ("outside/file", 0o666), ("outside/spare", 0o666), ("state/data", 0o644):
        (folder / name).write_text("theirs")
        (folder / name).chmod(mode)
    yield folder
    shutil.rmtree(folder)
