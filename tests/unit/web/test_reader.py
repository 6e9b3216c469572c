"""The reader processes of the console: results, errors, bounds of memory and time, and reads that nobody wants any more."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest

from sabot.base import redaction
from sabot.base.redaction import keep_secret, scrubbed
from sabot.errors import BrokerUnavailable, InternalError, TransientError, UserError
from sabot.web.reader import ConsoleReader
from tools.agent_tools import until
from tools.leftovers import started

pytestmark = pytest.mark.usefixtures("warm_starts")

AT_IMPORT = os.getpriority(os.PRIO_PROCESS, 0)


@dataclass(frozen=True)
class Found:
    """A record that a read returns."""

    name: str
    process: int
    size: int | None = None


def found(name: str) -> Found:
    print("this does not get into the answer")
    return Found(name, os.getpid())


def numbers(most: int, taken: str) -> Iterator[list[int]]:
    for number in range(most):
        Path(f"{taken}.new").write_text(str(number))
        os.replace(f"{taken}.new", taken)  # the process may be killed at any line
        yield [number] * 10_000


def renamed(each: Found, names: list[str]) -> list[Found]:
    return [replace(each, name=name) for name in names]


def priorities() -> list[int]:
    return [AT_IMPORT, os.getpriority(os.PRIO_PROCESS, 0)]


def away() -> int:
    raise BrokerUnavailable("PostgreSQL at h:1/x: connection refused", hint="start it")


def refused() -> int:
    raise UserError("there is no such key", hint="name another")


def failing() -> int:
    return int("not a number")


def hungry(nbytes: int) -> int:
    return len(bytearray(nbytes))


def killed() -> int:
    os.abort()


def endless(mark: str) -> int:
    Path(mark).write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)


@pytest.fixture
async def reader() -> AsyncIterator[ConsoleReader]:
    made = ConsoleReader(memory_bytes=400_000_000)
    yield made
    made.close()


async def ended(process: int) -> None:
    await until(lambda: not started(process))


async def begun(mark: Path) -> int:
    await until(lambda: mark.exists() and mark.read_text() != "")
    return int(mark.read_text())


@pytest.mark.slow  # half a second of a core
@pytest.mark.usefixtures("cold_start")
async def test_a_process_starts_at_the_priority_of_the_console_and_reads_at_a_lower_one(reader: ConsoleReader) -> None:
    # A start at a low priority took longer than a minute on a machine whose processors were used.
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert await reader.read(priorities) == [own, max(own, 10)]


@pytest.mark.slow  # half a second of a core
async def test_a_record_comes_from_another_process_which_is_used_again(reader: ConsoleReader) -> None:
    first, second = await reader.read(found, "a"), await reader.read(found, name="b")
    assert (first.name, second.name) == ("a", "b")
    assert first.process == second.process != os.getpid()


@pytest.mark.slow  # half a second of a core
async def test_records_are_arguments_too(reader: ConsoleReader) -> None:
    assert await reader.read(renamed, Found("a", 1), ["b", "c"]) == [Found("b", 1), Found("c", 1)]


@pytest.mark.slow  # half a second of a core
async def test_two_calls_run_at_a_time(reader: ConsoleReader) -> None:
    first, second, third = await asyncio.gather(*(reader.read(found, name) for name in "abc"))
    assert first.process != second.process
    assert third.process in (first.process, second.process)


@pytest.mark.slow  # half a second of a core
async def test_pages_are_made_as_they_are_taken(reader: ConsoleReader, tmp_path: Path) -> None:
    async with aclosing(reader.pages(numbers, 1000, str(tmp_path / "taken"))) as pages:
        assert [(await anext(pages))[0] for _ in range(3)] == [0, 1, 2]
    assert int((tmp_path / "taken").read_text()) < 100, "a pipe and a buffer hold a few pages"
    assert [page[0] async for page in reader.pages(numbers, 3, str(tmp_path / "taken"))] == [0, 1, 2]


async def test_errors_of_the_user_keep_the_process(reader: ConsoleReader) -> None:
    before = await reader.read(found, "a")
    with pytest.raises(UserError, match=r"there is no such key \(name another\)"):
        await reader.read(refused)
    with pytest.raises(TransientError, match="h:1/x: connection refused"):  # its page is tried again
        await reader.read(away)
    assert (await reader.read(found, "a")).process == before.process


@pytest.mark.slow  # half a second of a core
async def test_other_errors_have_their_traceback(reader: ConsoleReader) -> None:
    with pytest.raises(InternalError, match=r"(?s)in failing.*not a number"):
        await reader.read(failing)


@pytest.mark.slow  # half a second of a core
async def test_memory_is_bounded(reader: ConsoleReader) -> None:
    assert await reader.read(hungry, 10 << 20) == 10 << 20
    with pytest.raises(UserError, match=r"more than 400\.0 MB of memory"):
        await reader.read(hungry, 500 << 20)
    assert (await reader.read(found, "a")).name == "a"


@pytest.mark.slow  # half a second of a core
async def test_a_process_that_has_ended_meanwhile_is_replaced(reader: ConsoleReader) -> None:
    before = await reader.read(found, "a")
    (idle,) = reader._idle
    os.kill(before.process, signal.SIGKILL)
    await until(idle.has_ended)
    assert (await reader.read(found, "a")).process != before.process


@pytest.mark.slow  # half a second of a core
async def test_the_end_of_a_process_is_said(reader: ConsoleReader) -> None:
    with pytest.raises(UserError, match=r"the process that reads has ended \(SIGABRT\)"):
        await reader.read(killed)


@pytest.mark.slow  # half a second of a core
async def test_a_read_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    reader = ConsoleReader(seconds=2)
    reading = asyncio.create_task(reader.read(endless, str(tmp_path / "mark")))
    await asyncio.sleep(0)
    (child,) = reader._busy  # on a busy machine its time is over before it has made its mark
    with pytest.raises(UserError, match="takes longer than 2 s"):
        await reading
    assert await asyncio.to_thread(child._process.wait) == -signal.SIGKILL
    reader.close()


@pytest.mark.slow  # half a second of a core
async def test_a_read_that_is_cancelled_is_ended(reader: ConsoleReader, tmp_path: Path) -> None:
    reading = asyncio.create_task(reader.read(endless, str(tmp_path / "mark")))
    process = await begun(tmp_path / "mark")
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await ended(process)


@pytest.mark.slow  # half a second of a core
async def test_a_process_ends_with_its_console(reader: ConsoleReader, tmp_path: Path) -> None:
    reading = asyncio.create_task(reader.read(endless, str(tmp_path / "mark")))
    process = await begun(tmp_path / "mark")
    (child,) = reader._busy
    child._socket.shutdown(socket.SHUT_WR)  # as the end of the console's process does
    await ended(process)
    with pytest.raises(UserError, match=r"has ended \(code 0\)"):
        await reading


def hidden(text: str) -> str:
    return scrubbed(text)


def modules() -> list[str]:
    pa.array([1])
    return [*sys.modules]


def scrubbed_there(hexed: str) -> str:
    return scrubbed(f"the key is {os.fsdecode(bytes.fromhex(hexed))}")


def ready() -> bool:
    return True


@pytest.mark.slow  # half a second of a core
async def test_a_process_hides_the_secrets_of_the_console_also_those_of_later(reader: ConsoleReader) -> None:
    assert await reader.read(hidden, "hunter-two-word") == "hunter-two-word"
    keep_secret("hunter-two-word", owner=reader)
    assert await reader.read(hidden, "by hunter-two-word") == "by ***"
    assert await reader.read(hidden, "by hunter-two-word") == "by ***"


@pytest.mark.slow  # half a second of a core
@pytest.mark.usefixtures("cold_start")
async def test_a_process_does_not_load_pandas(reader: ConsoleReader) -> None:
    assert "pandas" not in await reader.read(modules)


@pytest.mark.slow  # half a second of a core
async def test_a_secret_that_is_not_utf_8_ends_no_read(reader: ConsoleReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of the environment may have any bytes: with such a password each page of state and jobs was status 500."""
    secret = os.fsdecode(b"pass\xd0\xcfword")
    monkeypatch.setattr(redaction, "_known", type(redaction._known)())
    keep_secret(secret)
    assert await reader.read(scrubbed_there, secret.encode(errors="surrogateescape").hex()) == "the key is ***"


@pytest.mark.slow  # half a second of a core
async def test_a_process_is_started_once_before_the_first_read(reader: ConsoleReader) -> None:
    assert not reader.started
    reader.start(ready)
    reader.start(ready)
    await until(lambda: reader.started)
    assert len(reader._idle) == 1
