"""kill -9 half way through a file, and start again: the counts in the state are exact, whatever the backend.

The counts come out through the sink, which delivers at least once: a result may be there twice, but a state that lost a
line would never come to the full count, and one that counted a line twice would go beyond it.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from sabot import App, AppLocked
from sabot.connectors.files import NdjsonSource
from tools.agent_tools import bounded, environment, manifests, read_lines, until, write_lines

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("warm_starts")]

PROGRAM = Path(__file__).with_name("counting_app.py")
ROWS, KEYS = 6000, 7


@contextlib.asynccontextmanager
async def worker(directory, kind, *more):
    """The program as a process of its own; killed at the end of the block at the latest."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROGRAM),
        str(directory),
        kind,
        *more,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def traced(directory):
    """The numbers of the lines in the order in which their calls began; the last one may be half written."""
    path = directory / "trace.ndjson"
    return [int(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


async def progress(process, directory, count):
    """Until `count` more calls have begun, and a checkpoint was begun and completed after that."""
    before = len(traced(directory))
    await until(lambda: process.returncode is not None or len(traced(directory)) >= before + count, "calls")
    known = manifests(directory / "checkpoints")  # the next may have begun already, the one after it has not
    new: set[str] = set()

    def two_more():
        new.update(manifests(directory / "checkpoints") - known)
        return process.returncode is not None or len(new) >= 2

    await until(two_more, "two more checkpoints")
    if process.returncode is not None:
        pytest.fail((await process.stdout.read()).decode() or "the program ended before it was killed")


async def finished(process):
    output, _ = await bounded(process.communicate())
    assert process.returncode == 0, output.decode()


# One of them is not slow: what a checkpoint of the others holds is shown by crashes within a process, test_random_crashes.py.
@pytest.mark.parametrize(
    ("kind", "keyed"),
    [
        pytest.param("memory", False, id="memory-one_state", marks=pytest.mark.slow),
        pytest.param("memory", True, id="memory-keyed", marks=pytest.mark.slow),
        pytest.param("rocksdb", False, id="rocksdb-one_state", marks=pytest.mark.slow),
        pytest.param("rocksdb", True, id="rocksdb-keyed"),
    ],
)
async def test_counts_are_exact_after_two_kills(kind, keyed, tmp_path):
    rows = [{"k": f"key-{n % KEYS}", "n": n} for n in range(ROWS)]
    write_lines(tmp_path / "in.ndjson", rows)
    more = ["k"] if keyed else []
    (tmp_path / "slow").touch()
    begun = []
    for _ in range(2):
        async with worker(tmp_path, kind, *more) as process:
            await progress(process, tmp_path, 300)
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
        begun.append(len(traced(tmp_path)))
    (tmp_path / "slow").unlink()
    async with worker(tmp_path, kind, *more) as process:
        await finished(process)

    calls = traced(tmp_path)
    assert set(calls) == set(range(ROWS))
    for start in begun:  # each new process went on behind the start, and not behind where the killed one was
        assert 0 < min(calls[start : start + 50]) <= max(calls[:start]) + 1
    counts = {}
    for line in read_lines(tmp_path / "out.ndjson"):
        counts.setdefault(line["k"], set()).add(line["count"])
    expected = Counter(row["k"] for row in rows)
    assert {key: max(seen) for key, seen in counts.items()} == expected
    assert all(seen == set(range(1, expected[key] + 1)) for key, seen in counts.items())


@pytest.mark.slow  # three processes; the lock itself: test_checkpoint_storage
async def test_a_second_worker_is_refused_while_the_first_lives_and_let_in_after_its_kill(tmp_path):
    write_lines(tmp_path / "in.ndjson", [{"k": f"key-{n % KEYS}", "n": n} for n in range(ROWS)])
    (tmp_path / "slow").touch()
    async with worker(tmp_path, "rocksdb") as process:
        await progress(process, tmp_path, 10)

        second = App("counting", state=f"rocksdb://{tmp_path / 'state'}", checkpoint_dir=tmp_path / "checkpoints")

        @second.agent(NdjsonSource(tmp_path / "in.ndjson"))
        async def count(ctx):
            raise AssertionError("two workers on one app")

        with pytest.raises(AppLocked) as raised:
            await bounded(second.run())
        assert str(tmp_path) in str(raised.value)
        assert str(process.pid) in str(raised.value)

        async with worker(tmp_path, "rocksdb") as third:
            output, _ = await bounded(third.communicate())
            assert third.returncode != 0
            assert str(tmp_path) in output.decode()

        await progress(process, tmp_path, 10)
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    (tmp_path / "slow").unlink()
    async with worker(tmp_path, "rocksdb") as process:
        await finished(process)
    assert set(traced(tmp_path)) == set(range(ROWS))


@pytest.mark.slow  # a second of a core, or more
async def test_a_kill_before_the_first_checkpoint_begins_again_at_the_first_line(tmp_path):
    write_lines(tmp_path / "in.ndjson", [{"k": "key", "n": n} for n in range(200)])
    (tmp_path / "slow").touch()
    async with worker(tmp_path, "rocksdb") as process:
        await until(lambda: process.returncode is not None or traced(tmp_path), "the first call")
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    had_checkpoint = bool(manifests(tmp_path / "checkpoints"))
    (tmp_path / "slow").unlink()
    async with worker(tmp_path, "rocksdb") as process:
        await finished(process)
    counts = [line["count"] for line in read_lines(tmp_path / "out.ndjson")]
    assert max(counts) == 200
    assert set(counts) == set(range(1, 201))
    assert had_checkpoint or traced(tmp_path).count(0) == 2
