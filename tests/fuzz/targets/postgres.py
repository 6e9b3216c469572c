"""What PostgreSQL sends of a table: messages of pgoutput, and rows of COPY in the binary format."""

import struct
from collections.abc import Iterator
from datetime import date, datetime, time

import pyarrow as pa

from sabot._cython.binary.pgoutput import ChangeDecoder, SentRelation
from targets.base import Target, use
from twins.pgoutput import COPY_BEGINS, COPY_ENDS, UNCHANGED, Wal, row

__all__ = ["PostgresChanges"]

_COLUMNS = {
    "id": ("int8", pa.int64(), 7),
    "flag": ("bool", pa.bool_(), True),
    "price": ("decimal", pa.decimal128(12, 3), "-12345.678"),
    "large": ("decimal", pa.decimal256(76, 20), "9" * 50),
    "number": ("numeric", pa.string(), "0.000120"),
    "word": ("text", pa.string(), "wörd"),
    "json": ("jsonb", pa.string(), '{"a": 1}'),
    "raw": ("bytea", pa.binary(), b"\0\xff"),
    "uuid": ("uuid", pa.string(), "00000000-0000-0000-0000-0000000000ff"),
    "day": ("date", pa.date32(), date(2024, 2, 29)),
    "clock": ("time", pa.time64("us"), time(23, 59)),
    "zoned": ("timetz", pa.string(), struct.pack(">qi", 5, -3600)),
    "at": ("timestamptz", pa.timestamp("us", "UTC"), datetime(2024, 2, 29)),
    "length": ("interval", pa.string(), struct.pack(">qii", -1, 2, 14)),
    "address": ("inet", pa.string(), bytes([3, 64, 0, 16, *range(16)])),
    "mac": ("macaddr", pa.string(), bytes(6)),
    "bits": ("bits", pa.string(), struct.pack(">iB", 3, 0xA0)),
    "range": ("range timestamptz", pa.string(), (datetime(2024, 1, 1), None)),
    "ranges": ("multirange int4", pa.string(), struct.pack(">iiB", 1, 1, 1)),
    "texts": ("list text", pa.list_(pa.string()), ["a", None]),
    "prices": ("list decimal", pa.list_(pa.decimal128(5, 1)), ["1.5"]),
    "spans": ("list range int4", pa.list_(pa.string()), []),
    "vector": ("vector", pa.list_(pa.float32()), [1.5, 2.0]),
}
_KINDS = [kind for kind, _, _ in _COLUMNS.values()]
_VALUES = [value for _, _, value in _COLUMNS.values()]
_HEADER = b"w" + bytes(24)


class PostgresChanges(Target):
    """Messages, each behind its length in two bytes and without the header of XLogData."""

    name = "postgres"

    def __init__(self) -> None:
        super().__init__()
        log = Wal(_KINDS, list(_COLUMNS), ["id"])
        log.describe()
        log.begin()
        log.insert(*_VALUES)
        log.update(8, *[UNCHANGED] * (len(_VALUES) - 1), old=_VALUES, mark=b"O")
        log.delete(8, *[None] * (len(_VALUES) - 1))
        log.truncate(log.relation)
        log.commit()
        bodies = [message[len(_HEADER) :] for message in log.sent]
        rows = [COPY_BEGINS + row(_KINDS, _VALUES), row(_KINDS, [1, *[None] * (len(_VALUES) - 1)]), COPY_ENDS]
        self.seeds = [_framed(bodies), _framed(bodies[:3]), _framed(rows)]
        self.tokens = (
            b"\xff\xff\xff\xff",
            b"\x7f\xff\xff\xff",
            b"\0\0\0\0",
            b"\xc0\0",
            b"\xd0\0",
            b"u",
            b"n",
            b"t",
            b"O",
        )

    def check(self, data: bytes) -> bool:
        messages = list(_frames(data))
        columns = pa.schema([pa.field(name, kind) for name, (_, kind, _) in _COLUMNS.items()])
        read = 0
        decoder = ChangeDecoder(columns, _KINDS, ["id"])
        try:
            run = decoder.copy(messages)
            use(run.rows)
            read += run.rows.num_rows
        except ValueError as error:
            _check_told(error, "of COPY, byte ")
        sent, at = [_HEADER + message for message in messages], 0
        try:
            while at < len(sent):
                run = decoder.decode(sent, at, 2)
                at = run.next
                use(run.rows)
                read += run.rows.num_rows
                if isinstance(run.stop, SentRelation):
                    width = max(len(run.stop.columns), len(columns))
                    decoder.use(run.stop.oid, [place if place < len(columns) else -1 for place in range(width)])
        except ValueError as error:
            _check_told(error, ", byte ")
        return read > 0


def _check_told(error: ValueError, words: str) -> None:
    assert words in str(error), error


def _framed(messages: list[bytes]) -> bytes:
    return b"".join(struct.pack(">H", len(message)) + message for message in messages)


def _frames(data: bytes) -> Iterator[bytes]:
    while len(data) >= 2:
        (size,) = struct.unpack_from(">H", data)
        yield data[2 : 2 + size]
        data = data[2 + size :]
