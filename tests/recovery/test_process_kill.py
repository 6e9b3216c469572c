"""kill -9 of a worker, of its supervisor, or of both: nothing of their children is left. Counted by this process, from /proc: by their
working directory, which no child leaves, whatever else it leaves.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from unit.process.children import sh

from sabot.process import Command, CommunicationError, Supervisor
from sabot.process.lease import folder_of_leases
from tools.agent_tools import environment
from tools.leftovers import end_supervisor

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="children are owned on Linux only"),
]

PROGRAM = Path(__file__).with_name("process_worker.py")
PATIENCE_SECONDS = 180


@pytest.fixture(autouse=True)
def _no_supervisor_before_and_after(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Leases lie in a folder of this test's, where no other test's are."""
    end_supervisor()
    runtime = tmp_path_factory.mktemp("runtime")
    runtime.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    yield
    end_supervisor()


def began(pid: int) -> str:
    """With the pid it names a process. "" for none; a zombie is one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def living_in(folder: Path) -> dict[int, str]:
    """The processes whose working directory this is, and when they began."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink() == folder:
                found[int(entry.name)] = began(int(entry.name))
    return found


def left_of(seen: dict[int, str], folder: Path) -> dict[int, str]:
    """Those of `seen` that are still there, also as zombies; and others that came meanwhile."""
    return {pid: at for pid, at in seen.items() if began(pid) == at} | living_in(folder)


async def gone(left: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while found := left():
        assert time.monotonic() < give_up, f"left: {found}"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def worker(count: int, folder: Path) -> AsyncIterator[tuple[int, int]]:
    """-> (its pid, that of its supervisor), when all its children run."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), str(count), str(folder), env=environment(), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process.pid, int(await process.stdout.readline())
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize(
    ("kills", "count"), [(2, 4), pytest.param(50, 20, marks=pytest.mark.slow(reason="a thousand children"))]
)
async def test_a_killed_worker_leaves_neither_orphans_nor_zombies(kills: int, count: int, tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    for _ in range(kills):
        async with worker(count, folder) as (pid, supervisor):
            seen = living_in(folder)
            assert len(seen) >= count * 3 // 2, "with those that left their sessions"
            seen[supervisor] = began(supervisor)
            os.kill(pid, signal.SIGKILL)
            await gone(lambda seen=seen: left_of(seen, folder))  # type: ignore[misc]
    assert list(folder_of_leases().glob("*.lease")) == []


@pytest.mark.slow  # half a second of a core
async def test_what_a_killed_supervisor_leaves_ends_before_its_worker_goes_on(tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    supervisor = await Supervisor.running()
    child = await supervisor.spawn(sh("setsid sh -c 'echo up; exec sleep 1000' & exec sleep 1000", working_dir=folder))
    assert child.stdout is not None
    assert await child.stdout.read(3) == b"up\n"
    seen = living_in(folder)
    assert len(seen) == 2
    os.kill(supervisor.pid, signal.SIGKILL)
    with pytest.raises(CommunicationError):
        await child.wait()
    await gone(lambda: left_of(seen, folder))


def watchers() -> list[int]:
    """The processes that have a lease open and do not hold it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if entry.readlink().match(f"{folder_of_leases()}/*.lease"):
                info = (entry.parents[1] / "fdinfo" / entry.name).read_text()
                found += [] if "lock:" in info else [int(entry.parts[2])]
    return found


async def kill_both(pid: int, supervisor: int) -> None:
    os.kill(pid, signal.SIGSTOP)  # it does not see its supervisor die
    os.kill(supervisor, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    await gone(lambda: began(supervisor))


@pytest.mark.slow  # half a second of a core
@pytest.mark.parametrize(
    ("kills", "count"), [(2, 4), pytest.param(20, 40, marks=pytest.mark.slow(reason="800 children"))]
)
async def test_worker_and_supervisor_killed_at_once_leave_nothing_either(
    kills: int, count: int, tmp_path: Path
) -> None:
    """Their children have what they have started: grandchildren, also in sessions of their own."""
    folder = tmp_path.resolve()
    for _ in range(kills):
        async with worker(count, folder) as (pid, supervisor):
            seen = living_in(folder)
            assert len(seen) >= count * 3 // 2
            await kill_both(pid, supervisor)
            await gone(lambda seen=seen: left_of(seen, folder))  # type: ignore[misc]
            await gone(watchers)
    assert list(folder_of_leases().glob("*.lease")) == []


@pytest.mark.slow  # half a second of a core
async def test_what_is_left_when_the_watcher_is_killed_too_is_ended_by_the_next_supervisor(tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    async with worker(4, folder) as (pid, supervisor):
        seen = living_in(folder)
        (watcher,) = watchers()
        os.kill(watcher, signal.SIGKILL)
        await kill_both(pid, supervisor)
        assert living_in(folder), "nobody has ended those yet whose parent the supervisor was not"
        following = await Supervisor.running()
        await (await following.spawn(Command(argv=["true"]))).wait()
        await gone(lambda: left_of(seen, folder))
    assert len(list(folder_of_leases().glob("*.lease"))) == 1, "its own"


@pytest.mark.slow  # half a second of a core
async def test_a_watcher_ends_with_its_supervisor_and_holds_nothing_of_it_open() -> None:
    supervisor = await Supervisor.running()
    await (await supervisor.spawn(Command(argv=["true"]))).wait()
    (watcher,) = watchers()
    opened = {str(each.readlink()) for each in Path(f"/proc/{watcher}/fd").iterdir()}
    assert sorted(os.path.splitext(each)[1] or each for each in opened) == [".lease", "/dev/null"]
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        os.kill(watcher, number)
    assert watchers() == [watcher]
    supervisor.close()
    await gone(watchers)


@pytest.mark.slow  # half a second of a core
@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.slow(reason="500 processes"))])
async def test_spawns_leave_files_and_memory_level(count: int) -> None:
    supervisor = await Supervisor.running()

    async def some(number: int) -> None:
        for _ in range(number):
            child = await supervisor.spawn(sh("echo out; echo err >&2"))
            await child.wait()
            assert child.stdout is not None
            assert child.stderr is not None
            assert (await child.stdout.read(), await child.stderr.read()) == (b"out\n", b"err\n")
            assert (await child.stdout.read(), await child.stderr.read()) == (b"", b"")

    def figures() -> tuple[list[int], int]:
        pids = (os.getpid(), supervisor.pid)
        pages = int(Path(f"/proc/{supervisor.pid}/statm").read_text().split()[1])
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids], pages

    await some(20)
    files, pages = figures()
    grown = []
    # What leaks does so each time; an allocator grows now and then.
    while len(grown) < 5 and min(grown, default=100) >= 100:
        await some(count)
        after, more = figures()
        assert after == files
        grown.append(more - pages)
        pages = more
    assert min(grown) < 100, f"pages of memory that the supervisor has more: {grown}"
    zombies = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text()
    assert zombies == ""
