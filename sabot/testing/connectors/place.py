"""`ConnectorPlace`: what a suite asks of a log or a receiver, beside the connector that it tests."""

import json
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.base import Sink, Source
from sabot.errors import UserError

GUARD_SECONDS = 300.0  # only a test that fails waits so long: a server of a busy machine may stand still for a minute
_TIMES = 5
NewPlace = Callable[[], "ConnectorPlace"]
Row = tuple[int, str | None]


class ConnectorPlace:
    """A log that a source reads, or a receiver that a sink writes, for the suites. A subclass has the members for what it is, written with
    other code than that of the connector: the client of the server, or `open` for a file.

    A source is read in numbers: `put`, `source`, and `numbers` if its rows are neither JSON nor columns. One of changes has `change` and
    `remove` too. A sink takes rows of the columns `n` (int64) and `text` (string): `sink`, `rows` and `fences`.

    Three members are for faults: a place that has `drop` tests that no error is swallowed, one that has `refuse` what becomes of rows that
    the receiver refuses, and a source of rows whose place has `remove` is tested behind rows that its log no longer has. `values` is for
    `TypesSuite` alone.
    """

    fences: bool = True
    """False if the receiver cannot keep out a sink that has lost its track to a successor."""

    def put(self, numbers: Sequence[int]) -> None:
        """Adds a row with each number, in order. A record is {"n": number}; a row of columns has the number in `n`. A log that keeps no
        rows (the guarantee "at most once") sends them to the source that is open, as soon as it is connected.
        """
        raise self._lacks("put")

    def change(self, numbers: Sequence[int]) -> None:
        """Changes the rows with these numbers, which stay the same numbers, one by one."""
        raise self._lacks("change")

    def remove(self, numbers: Sequence[int]) -> None:
        """Removes the rows with these numbers, one by one: by a change of the table, or, for a source of rows, as retention does."""
        raise self._lacks("remove")

    def source(self) -> Source:
        """Returns a new source of the log, as another process would make it, not open."""
        raise self._lacks("source")

    def numbers(self, rows: pa.RecordBatch) -> Sequence[int]:
        """Returns the numbers of rows that the source has given."""
        if "payload" in rows.schema.names:
            return [json.loads(payload)["n"] for payload in rows.column("payload").to_pylist()]
        return list(rows.column("n").to_pylist())

    def sink(self) -> Sink:
        """Returns a new sink for the receiver, as another process would make it, not open."""
        raise self._lacks("sink")

    def rows(self) -> Sequence[Any]:
        """Returns the rows (n, text) that the receiver has, in order; [] if it is not there yet."""
        raise self._lacks("rows")

    def values(self) -> Sequence[Any]:
        """Returns the values of column `v` of the rows that the receiver has, in the order of their column `n`."""
        raise self._lacks("values")

    def refuse(self, numbers: Sequence[int]) -> None:
        """Makes the receiver refuse rows with these numbers from now on, as a constraint of a table does. It is not there yet."""
        raise self._lacks("refuse")

    def drop(self) -> None:
        """Removes the log or the receiver for good, so that it can be neither read nor written, as DROP TABLE does."""
        raise self._lacks("drop")

    def has(self, member: str) -> bool:
        """Returns True if the place has this member, which only some have."""
        return getattr(type(self), member) is not getattr(ConnectorPlace, member)

    def _lacks(self, member: str) -> UserError:
        return UserError(
            f"{type(self).__name__} has no {member}()",
            hint="the suite needs it: see sabot.testing.connectors.ConnectorPlace",
        )


def raises(
    kind: type[BaseException] | tuple[type[BaseException], ...], call: Callable[[], object], what: str
) -> BaseException:
    """Returns the error of a call. Raises AssertionError if there is none, or another one."""
    expected = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
    try:
        call()
    except kind as error:
        return error
    except Exception as error:
        raise AssertionError(f"{what}: {expected} is expected, and {error!r} came") from error
    raise AssertionError(f"{what}: {expected} is expected, and nothing was raised")


def in_time(work: Callable[[], None], what: str) -> None:
    """Does the work in a thread, and raises its error. Raises AssertionError if it does not come to an end."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # also a failed assertion, for the thread of the test
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(GUARD_SECONDS)
    assert not thread.is_alive(), f"{what} has not come back after {GUARD_SECONDS:g} s"
    if failed:
        raise failed[0]


def check_close(use: Callable[[], object]) -> None:
    """Raises AssertionError if connectors that `use` opens, closes and returns keep threads or files. They are not collected meanwhile, so
    only `close` can have released what they had.
    """
    closed = [use()]  # which makes what is made once in a process
    before = _held()
    closed += [use() for _ in range(_TIMES)]
    until = SYSTEM_CLOCK.monotonic() + GUARD_SECONDS
    while True:
        threads, files = (now - then for now, then in zip(_held(), before, strict=True))
        if max(threads, files) < _TIMES:
            return
        assert SYSTEM_CLOCK.monotonic() < until, (
            f"close keeps something: open and close, {_TIMES} times, left {threads} threads and {files} open files"
        )
        threading.Event().wait(0.05)  # a thread may end a little later


def _held() -> tuple[int, int]:
    """Returns the numbers of threads and of open files of this process."""
    return threading.active_count(), len(os.listdir("/dev/fd"))
