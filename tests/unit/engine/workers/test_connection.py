"""Messages between the processes of an app: what goes in comes out, errors keep what matters of them, garbage is refused."""

import asyncio
import socket
import struct

import pytest

from sabot.base.metrics import Sample
from sabot.base.process_exit import find_exit, wrap_exit
from sabot.engine.workers import connection as module
from sabot.engine.workers.connection import ControlConnection
from sabot.engine.workers.messages import Beat, Hello, TaskCut, TaskEnded, TasksOver, Trigger, error_of, failed
from sabot.errors import DataError, InternalError, SabotError, TransientError, UserError


async def over(end):
    return ControlConnection(*await asyncio.open_connection(sock=end))


async def connected():
    one, other = socket.socketpair()
    return await over(one), await over(other)


async def all_of(connection):
    return [message async for message in connection.received()]


async def test_messages_come_out_as_they_went_in_and_in_order():
    ours, theirs = await connected()
    facts = {
        "ended": False,
        "input": {"positions": [["t", 0, 2**53 + 1]], "watermark_ms": -(2**63)},
        "texts": {"é": None},
    }
    sent = [
        Hello("127.0.0.1:1"),
        TaskCut(7, "read-1/0", facts, {"table": "/folder/1"}, {"streams.out": 3}),
        TaskEnded("read-1/0", facts, {}, {}),
        Trigger(8),
        TasksOver(),
    ]
    for message in sent:
        ours.send(message)
    await ours.close()
    assert await all_of(theirs) == sent
    await theirs.close()


async def test_the_end_of_a_peer_in_the_middle_of_a_message_is_its_end():
    one, other = socket.socketpair()
    theirs = await over(other)
    one.sendall(struct.pack("!I", 100) + b"only this")
    one.close()
    assert await all_of(theirs) == []
    theirs.send(TasksOver())  # nobody hears it, and that is no error
    await theirs.close()


@pytest.mark.parametrize("frame", [b"\xc1", b"", b"\x81\xa4type\xa7Nothing", b"\x93\x01\x02\x03"])
async def test_what_is_no_message_is_refused(frame):
    one, other = socket.socketpair()
    theirs = await over(other)
    one.sendall(struct.pack("!I", len(frame)) + frame)
    with pytest.raises(InternalError, match="cannot be read"):
        await all_of(theirs)
    one.close()
    await theirs.close()


async def test_messages_are_bounded_at_both_ends(monkeypatch):
    monkeypatch.setattr(module, "MESSAGE_BYTES", 1000)
    ours, theirs = await connected()
    with pytest.raises(InternalError, match="more than 1000"):
        ours.send(Hello("a" * 1000))
    ours.send(TasksOver())
    monkeypatch.setattr(module, "MESSAGE_BYTES", 1)
    with pytest.raises(InternalError, match="was announced"):
        await all_of(theirs)
    await ours.close()
    await theirs.close()


async def test_figures_are_left_out_while_the_peer_takes_nothing():
    ours, theirs = await connected()
    assert not ours.congested
    while not ours.congested:
        ours.send(Hello("a" * 100_000))
        await asyncio.sleep(0)
    reading = asyncio.create_task(all_of(theirs))
    await ours.close()
    assert all(isinstance(each, Hello) for each in await reading)
    await theirs.close()


def test_samples_survive():
    samples = [("sabot_records_in_total", 3.0, "read/0", "t", ""), ("sabot_seconds", [1.0, 2.0], "", "", "p")]
    assert Beat(samples=samples, memory_bytes=7, cpu_seconds=0.5).read("2") == [
        Sample("sabot_records_in_total", 3.0, "read/0", "t", "", "2"),
        Sample("sabot_seconds", (1.0, 2.0), "", "", "p", "2"),
        Sample("sabot_worker_memory_bytes", 7, worker="2"),
        Sample("sabot_worker_cpu_seconds_total", 0.5, worker="2"),
    ]


class Missing(UserError):
    """A kind that the other process may not know."""


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Missing("no such column", hint="give another"), UserError),
        (DataError("a bad row"), DataError),
        (TransientError("away"), TransientError),
        (SabotError("something"), SabotError),
        (ZeroDivisionError("1/0"), InternalError),
    ],
)
def test_an_error_keeps_its_kind_and_gets_the_name_of_its_worker(error, kind):
    found = error_of(failed(error), "worker 2 (pid 7)")
    assert type(found) is kind
    assert found.message.startswith("worker 2 (pid 7): ")
    assert found.hint == getattr(error, "hint", "")
    assert found.__cause__ is None


def test_an_error_that_may_pass_by_itself_still_may():
    found = error_of(failed(caused(UserError("the function failed"), OSError("no route"))), "worker 1")
    assert isinstance(found.__cause__, TransientError)


@pytest.mark.parametrize("asked", [SystemExit(3), SystemExit("told"), SystemExit(), KeyboardInterrupt()])
def test_an_exit_of_the_program_is_still_one(asked):
    found = find_exit(error_of(failed(wrap_exit(asked, "task read/0")), "worker 1"))
    assert type(found) is type(asked)
    assert found.args == asked.args or (found.args, asked.args) == ((None,), ())
