"""Changes of a table of PostgreSQL to columns on one core: messages of pgoutput, and rows of COPY in the binary format.

    python benchmarks/kernels/pgoutput_decode.py [--columns account,amount,ts] [--rows N] [--passes N]

Card transactions (make_txns.py), 7 columns, insertions in transactions of 1,000 rows, in runs of 10,000. Rates are rows per second of the
processor's time, the best of several passes, in which the ways take turns:

    changes                  the wanted columns of messages
    changes_all, copy        all 7 columns of messages, and of rows of COPY
    money                    of messages: a numeric(12,2) and a timestamptz beside the id
    struct                   the id and the account of messages with Python's struct, of the first 20,000 rows

Checked: every way gives the drawn rows.
"""

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.binary.pgoutput import ChangeDecoder

sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from avro_codec import COLUMNS, best, drawn, main

from twins.pgoutput import COPY_BEGINS, Wal, row

KINDS = ["int8", "text", "float8", "int8", "text", "text", "bool"]
TRANSACTION_ROWS, RUN_ROWS, STRUCT_ROWS = 1000, 10_000, 20_000
MONEY = ["int8", "decimal", "timestamptz"]


def logged(kinds: list[str], names: list[str], rows: list[tuple[Any, ...]]) -> list[bytes]:
    wal = Wal(kinds, names, names[:1])
    wal.describe()
    for start in range(0, len(rows), TRANSACTION_ROWS):
        wal.begin()
        for values in rows[start : start + TRANSACTION_ROWS]:
            wal.insert(*values)
        wal.commit()
    return wal.sent


def decoder_of(schema: pa.Schema, kinds: list[str], names: list[str]) -> tuple[ChangeDecoder, list[int]]:
    """A decoder of some columns, and the places of all columns in it."""
    kind_of = dict(zip(schema.names, kinds, strict=True))
    columns = pa.schema([schema.field(name).with_nullable(True) for name in names])
    places = [names.index(name) if name in names else -1 for name in schema.names]
    return ChangeDecoder(columns, [kind_of[name] for name in names], []), places


def decoded(decoder: ChangeDecoder, places: list[int], messages: list[bytes]) -> list[pa.RecordBatch]:
    decoder.begin()
    stop = decoder.decode(messages[:1]).stop
    decoder.use(stop.oid, places)  # type: ignore[union-attr]
    parts, at = [], 1
    while at < len(messages):
        run = decoder.decode(messages, at, RUN_ROWS)
        assert not run.bad, run.bad[0].reason
        parts.append(run.rows)
        at = run.next
    return parts


def by_struct(messages: list[bytes]) -> list[tuple[int, str]]:
    found = []
    for message in messages:
        if message[25:26] != b"I":
            continue
        (number,) = struct.unpack_from(">q", message, 38)
        (size,) = struct.unpack_from(">i", message, 47)
        found.append((number, message[51 : 51 + size].decode()))
    return found


def measure(rows: int, names: list[str], passes: int) -> dict[str, Any]:
    table = pa.Table.from_batches(drawn(rows))
    values = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    messages = logged(KINDS, COLUMNS.names, values)
    chunks = [COPY_BEGINS + row(KINDS, values[0]), *(row(KINDS, each) for each in values[1:])]
    money_columns = pa.schema([("id", pa.int64()), ("price", pa.decimal128(12, 2)), ("at", pa.timestamp("us", "UTC"))])
    moments = np.asarray(table["ts"]) * 1000
    money = pa.table([table["txn_id"], table["amount"].cast(pa.decimal128(12, 2)), moments], schema=money_columns)
    prices = money["price"].to_pylist()
    sent = [
        (n, price, int(at) - 946_684_800_000_000)
        for n, price, at in zip(table["txn_id"].to_pylist(), prices, moments, strict=True)
    ]
    money_messages = logged(MONEY, money_columns.names, sent)
    few = messages[:STRUCT_ROWS]

    some, all_columns = decoder_of(COLUMNS, KINDS, names), decoder_of(COLUMNS, KINDS, COLUMNS.names)
    of_money = decoder_of(money_columns, MONEY, money_columns.names)
    copied = decoder_of(COLUMNS, KINDS, COLUMNS.names)[0]
    for (decoder, places), given, wanted in (
        (some, messages, table.select(names)),
        (all_columns, messages, table),
        (of_money, money_messages, money),
    ):
        found = pa.Table.from_batches(decoded(decoder, places, given)).drop_columns("__op")
        assert found.cast(wanted.schema).equals(wanted), "the decoded rows are not the drawn ones"
    found = pa.Table.from_batches([copied.copy(chunks).rows]).drop_columns("__op")
    assert found.cast(table.schema).equals(table), "the copied rows are not the drawn ones"
    assert by_struct(few) == [each[:2] for each in values[: len(by_struct(few))]]

    parts = [chunks[start : start + RUN_ROWS] for start in range(0, rows, RUN_ROWS)]
    figures = best(
        {
            "changes": (rows, lambda: decoded(*some, messages)),
            "changes_all": (rows, lambda: decoded(*all_columns, messages)),
            "money": (rows, lambda: decoded(*of_money, money_messages)),
            "copy": (rows, lambda: [copied.copy(part).rows for part in parts]),
            "struct": (len(by_struct(few)), lambda: by_struct(few)),
        },
        passes,
    )
    return {
        "benchmark": "pgoutput_decode",
        "rows": rows,
        "columns": names,
        "bytes_per_row": round(sum(map(len, messages)) / rows, 1),
        **{f"{name}_rows_per_s": rate for name, rate in figures.items()},
        "checked_against": "the drawn rows",
    }


if __name__ == "__main__":
    main(__doc__, measure)
