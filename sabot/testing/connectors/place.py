"""`ConnectorPlace`: what a suite asks of a log or a receiver, beside the connector that it tests."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from sabot.connectors.base import Sink, Source
from sabot.errors import UserError

NewPlace = Callable[[], "ConnectorPlace"]
Row = tuple[int, str | None]


class ConnectorPlace:
    """A log that a source reads, or a receiver that a sink writes, for the suites. A subclass has the members for what it is, written with
    other code than that of the connector: the client of the server, or `open` for a file.

    A source is read in numbers: `put`, `source`, and `numbers` if its rows are neither JSON nor columns. One of changes has `change` and
    `remove` too. A sink takes rows of the columns `n` (int64) and `text` (string): `sink`, `rows` and `fences`.
    """

    fences: bool = True
    """False if the receiver cannot keep out a sink that has lost its track to a successor."""

    def put(self, numbers: Sequence[int]) -> None:
        """Adds a row with each number, in order. A record is {"n": number}; a row of columns has the number in `n`."""
        raise self._lacks("put")

    def change(self, numbers: Sequence[int]) -> None:
        """Changes the rows with these numbers, which stay the same numbers, one by one."""
        raise self._lacks("change")

    def remove(self, numbers: Sequence[int]) -> None:
        """Removes the rows with these numbers, one by one."""
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

    def _lacks(self, member: str) -> UserError:
        return UserError(
            f"{type(self).__name__} has no {member}()",
            hint="the suite needs it: see sabot.testing.connectors.ConnectorPlace",
        )


def raises(kind: type[BaseException], call: Callable[[], object], what: str) -> BaseException:
    """Returns the error of a call. Raises AssertionError if there is none, or another one."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{what}: {kind.__name__} is expected")
