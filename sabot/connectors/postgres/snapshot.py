"""The rows that a table has at the start, in the order of its key, also if they are read in several passes.

A pass reads under one snapshot, which has all that was committed before a place of the WAL. If a pass ends early, the next one begins
behind the last key that was read, under a newer snapshot:

    pass 1   keys up to "k"    snapshot of LSN 100
    pass 2   the other keys    snapshot of LSN 250

The changes are then read from LSN 100. Those of keys behind "k" that were committed before LSN 250 are left out: pass 2 has them.
"""

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.dataclass import dataclass
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.postgres.catalog import CatalogTable
from sabot.connectors.postgres.link import PostgresLink, literal
from sabot.connectors.sql.database import quoted

CHUNK_ROWS = 100_000  # of one statement
BATCH_BYTES = 16 << 20
_HEADER = 19  # bytes before the first row of a COPY: signature, flags, and the length of an extension
_TRAILER = b"\xff\xff"
_SIZE = struct.Struct(">i")


@dataclass(frozen=True)
class Pass:
    """Rows that were read under one snapshot. `lsn`: the snapshot has what was committed before it. `last`: the last key that was
    read, each value in the binary form of the server; [] before the first row.
    """

    lsn: int
    last: Sequence[bytes]


class TableScan:
    """One pass over a table. `link`: its connection, in a transaction that has the snapshot. `names`: the columns, in their order. `after`:
    the key behind which it begins, as a Pass has it.
    """

    def __init__(self, link: PostgresLink, table: CatalogTable, names: Sequence[str], after: Sequence[bytes]) -> None:
        self._link, self._table, self._names = link, table, names
        self._places = [names.index(name) for name in table.keys]
        self.last = after
        self.rows = 0
        self.began = SYSTEM_CLOCK.monotonic()
        self._in_chunk = -1  # rows that the statement has given; -1 if none is under way
        self._first = True  # the next message has the header
        self._over = self._chunk_over = False

    def read(self, max_rows: int, seconds: float) -> list[bytes] | None:
        """Returns messages with the next rows, at most `max_rows`; [] behind the last one, and None if none come in time. `last` is then
        the key of the last one. Raises the errors of PostgresLink.
        """
        link = self._link
        until = SYSTEM_CLOCK.monotonic() + seconds
        while not self._over:
            if self._in_chunk < 0:
                link.begin_copy(self._statement())
                self._in_chunk, self._first, self._chunk_over = 0, True, False
            messages: list[bytes] = []
            if not self._chunk_over:
                _, self._chunk_over = link.take(messages, BATCH_BYTES, max_rows)
                if not messages and not self._chunk_over:
                    if (left := until - SYSTEM_CLOCK.monotonic()) <= 0:
                        return None
                    link.wait(left)
                    continue
            if messages and self._first:  # which has the header too
                messages[0], self._first = messages[0][_HEADER:], False
            if rows := [message for message in messages if message != _TRAILER]:
                self._in_chunk += len(rows)
                self.rows += len(rows)
                self.last = self._key_of(rows[-1])
                return rows
            if self._chunk_over:
                link.end_copy()
                self._over = self._in_chunk < CHUNK_ROWS
                self._in_chunk = -1
        return []

    def close(self) -> None:
        self._link.close()

    def _statement(self) -> str:
        table = self._table
        keys = ", ".join(map(quoted, table.keys))
        behind = f" WHERE ({keys}) > ({constants(self._link, table, self.last)})" if self.last else ""
        columns = ", ".join(map(quoted, self._names))
        rows = f"SELECT {columns} FROM {table.rows_sql}{behind} ORDER BY {keys} LIMIT {CHUNK_ROWS}"
        return f"COPY ({rows}) TO STDOUT (FORMAT binary)"

    def _key_of(self, row: bytes) -> list[bytes]:
        """Returns the values of the key in a row of COPY (FORMAT binary)."""
        fields: list[bytes] = []
        at = 2
        for _ in range(1 + max(self._places)):
            (size,) = _SIZE.unpack_from(row, at)
            fields.append(row[at + 4 : at + 4 + max(0, size)])
            at += 4 + max(0, size)
        return [fields[place] for place in self._places]


def constants(link: PostgresLink, table: CatalogTable, key: Sequence[bytes]) -> str:
    """Returns a key as constants of SQL."""
    columns = [table.columns[name] for name in table.keys]
    texts = link.texts_of(key, [column.type for column in columns])
    return ", ".join(f"{literal(text)}::{column.declared}" for text, column in zip(texts, columns, strict=True))


def in_snapshots(
    link: PostgresLink, table: CatalogTable, passes: Sequence[Pass], keys: pa.RecordBatch, lsns: "np.ndarray[Any, Any]"
) -> "np.ndarray[Any, Any]":
    """Returns for each change True if the pass that has read its key has the change too. `keys`: the key of each change. `lsns`: the place
    of the commit of each. Keys are compared by the server, which knows their order.
    """
    bounds = [constants(link, table, each.last) for each in passes[:-1]]
    columns = [table.columns[name] for name in table.keys]
    arrays = ", ".join(f"ARRAY[{', '.join(map(literal, key_texts(column)))}]::text[]" for column in keys.columns)
    names = [f"k{number}" for number in range(len(columns))]
    key = ", ".join(f"{name}::{column.declared}" for name, column in zip(names, columns, strict=True))
    behind = " + ".join(f"(({key}) > ({bound}))::int" for bound in bounds) or "0"
    rows = link.query(f"SELECT {behind} FROM unnest({arrays}) WITH ORDINALITY AS k({', '.join(names)}, n) ORDER BY n")
    numbers = np.array([int(number) for (number,) in rows], np.int64)
    return np.asarray(lsns < np.array([each.lsn for each in passes], np.int64)[numbers])


def key_texts(column: Any) -> list[str]:
    """Returns the values of a column of a key as PostgreSQL reads them."""
    kind = column.type
    if pa.types.is_binary(kind):
        return [f"\\x{value.hex()}" for value in column.to_pylist()]
    if pa.types.is_floating(kind):
        return [repr(value) for value in column.cast(pa.float64()).to_pylist()]
    if pa.types.is_boolean(kind) or pa.types.is_nested(kind):
        return [json.dumps(value) for value in column.to_pylist()]
    return [str(value) for value in pc.cast(column, pa.string()).to_pylist()]


class WholeTable:
    """The rows of a table as a log of one record: it is read or not."""

    def __init__(self, name: str) -> None:
        self.name = name

    def span(self, partition: int) -> tuple[int, int]:
        return 0, 1

    def committed(self, partitions: object) -> dict[int, int]:
        return {}

    def at(self, partitions: object, ms: int) -> dict[int, int]:
        return {}
