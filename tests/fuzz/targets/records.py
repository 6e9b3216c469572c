"""What stands in records of topics, and bytes that state is kept as."""

import json
import math
import random
from types import SimpleNamespace
from typing import Any

import msgspec
import pyarrow as pa
from mutations import damaged_value, json_bytes, mutated, pack, unpack

from sabot._cython.groups.partition import hash_columns
from sabot._cython.groups.tables import places
from sabot._cython.rows.row_bytes import RowCodec
from sabot._cython.text.records import decode_values, encode_values
from sabot.cli.printing import moment
from sabot.codecs.engine_columns import OP_COLUMN
from sabot.codecs.records import build_records, decode_json
from sabot.codecs.table import TableCodec
from sabot.engine.letters.files import FileHome
from sabot.engine.letters.form import as_columns
from sabot.engine.letters.places import Letters
from sabot.engine.letters.topics import DeadLetters, _letter
from sabot.engine.state.tables.cold import _Codec
from sabot.errors import SabotError
from targets.base import Target, refused, use
from targets.text import OBJECTS, TOKENS, same

__all__ = ["DeadLetterRows", "Packed", "Payloads", "Tables", "Values"]

SCHEMA = pa.schema(
    [
        *(pa.field("id", pa.int64()), pa.field("name", pa.string()), pa.field("price", pa.decimal128(9, 2))),
        *(pa.field("day", pa.date32()), pa.field("at", pa.timestamp("ms", "UTC")), pa.field("time", pa.time32("ms"))),
        pa.field("x", pa.float64()),
    ]
)
_ROW = {"id": 7, "name": "Ada", "price": "12.50", "day": 19000, "at": "2024-02-29T12:00:00Z", "time": 1000, "x": 0.5}


class Tables(Target):
    """Records of tables: Debezium's envelopes, rows with tombstones, keys in all their forms. Each is a row, or a bad row with a reason."""

    name = "tables"

    def __init__(self) -> None:
        super().__init__()
        envelopes: list[Any] = [
            {"before": None, "after": _ROW, "op": "c", "source": {"db": "x"}, "ts_ms": 1},
            {"before": _ROW, "after": {**_ROW, "name": None}, "op": "u"},
            {"before": {"id": 7}, "after": None, "op": "d"},
            {"before": None, "after": None, "op": "d"},
            {"op": "t"},
            _ROW,
        ]
        self._values = [*envelopes, *({"schema": {"type": "struct"}, "payload": each} for each in envelopes[:4])]
        self._keys: list[Any] = [
            {"id": 7},
            7,
            "7",
            None,
            {"schema": {}, "payload": {"id": 7}},
            {"id": 7, "name": "Ada"},
        ]
        self.seeds = [self._packed(self._values, self._keys)]

    def _packed(self, values: list[Any], keys: list[Any]) -> bytes:
        rows = [[None if value is None else json_bytes(value), None if key is None else json_bytes(key)]
                for value, key in zip(values, keys, strict=False)]  # fmt: skip
        return msgspec.msgpack.encode(rows)

    def make(self, rng: random.Random) -> bytes:
        rows: list[list[bytes | None]] = []
        for _ in range(rng.randrange(1, 6)):
            made: list[bytes | None] = []
            for seeds in (self._values, self._keys):
                value = rng.choice(seeds)
                if rng.random() < 0.6:
                    value = damaged_value(rng, value)
                text = None if rng.random() < 0.1 else json_bytes(value)
                made.append(mutated(rng, [text], TOKENS) if text is not None and rng.random() < 0.3 else text)
            rows.append(made)
        return msgspec.msgpack.encode(rows)

    def check(self, data: bytes) -> bool:
        rows = msgspec.msgpack.decode(data, type=list[tuple[bytes | None, bytes | None]])
        payloads, keys = [row[0] for row in rows], [row[1] for row in rows]
        records = build_records(payloads, keys, [1_700_000_000_000] * len(rows), 0, list(range(len(rows))))
        taken = 0
        for names, format, time in (
            (["id"], "debezium", "at"),
            (["id"], "json", None),
            (["name"], "json", "at"),
            (["id", "name"], "debezium", None),
            (["at"], "json", None),
        ):
            schema = (
                SCHEMA
                if format == "debezium"
                else pa.schema([field for field in SCHEMA if field.name not in ("price", "time")])
            )
            data_of, bad = TableCodec(schema, names, format, time).decode(records)
            use(data_of)
            taken += data_of.num_rows
            numbers = [each.row for each in bad]
            if data_of.num_rows + len(bad) != len(rows) or numbers != sorted(set(numbers)):
                raise AssertionError(f"{data_of.num_rows} rows and {numbers} bad ones of {len(rows)}")
            if any(data_of.column(name).null_count for name in names) or data_of.column(OP_COLUMN).null_count:
                raise AssertionError(f"a row without its key: {data_of.to_pylist()}")
            if not all(each.reason for each in bad):
                raise AssertionError("a bad row without a reason")
        return taken > 0


class Payloads(Target):
    """What a record agent gets: `json.loads`, or a DataError with the place."""

    name = "payloads"
    tokens = TOKENS
    seeds = OBJECTS

    def check(self, data: bytes) -> bool:
        try:
            found = decode_json(data, where="t[0]@7")
        except SabotError as error:
            refused(error, "t[0]@7")
            try:
                json.loads(data)
            except (ValueError, RecursionError):
                return False
            if "nested deeper" not in str(error):
                raise
            return False
        wanted = json.loads(data)
        if not same(found, wanted):
            raise AssertionError(f"{found!r} is {wanted!r} by Python")
        return True


class DeadLetterRows(Target):
    """Dead letters, in headers and in lines of files, and notes on what was redriven: anybody can write into these topics."""

    name = "letters"

    def __init__(self) -> None:
        super().__init__()
        facts = {"topic": "t", "partition": "3", "offset": "17", "error": "ValueError", "message": "é", "attempts": "1"}
        self._headers = [["mine", "raw"], *([f"sabot.{name}", value] for name, value in facts.items())]
        self._note = {"topic_id": "x", "partition": 0, "ranges": [[1, 5], [9, 9]], "letters": 6, "to": ""}
        headers = tuple((name, value.encode()) for name, value in self._headers)
        record = build_records([b'{"n": 1}'], [b"\xff"], [7], 3, [17], [headers])
        self._row = as_columns(record).to_pylist()[0]
        self.seeds = [
            pack({"headers": json_bytes(self._headers), "note": json_bytes(self._note), "lines": json_bytes(self._row)})
        ]

    def make(self, rng: random.Random) -> bytes:
        note = json_bytes(damaged_value(rng, self._note))
        line = json_bytes(damaged_value(rng, self._row))
        return pack(
            {
                "headers": json_bytes(damaged_value(rng, self._headers)),
                "note": mutated(rng, [note]) if rng.random() < 0.3 else note,
                "lines": mutated(rng, [line + b"\n"] * 2) if rng.random() < 0.3 else line + b"\n",
            }
        )

    def check(self, data: bytes) -> bool:
        files = unpack(data)
        rows = json.loads(files["headers"])
        headers = [
            (row[0], None if row[1] is None else str(row[1]).encode(errors="surrogatepass"))
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)
        ]
        message = SimpleNamespace(
            headers=lambda: headers, partition=lambda: 0, offset=lambda: 7, timestamp=lambda: (1, 2), key=lambda: None
        )
        message.value = lambda: files["note"]
        path = self.directory / "fuzzed.ndjson"
        path.write_bytes(files["lines"])
        for letter in (_letter(message), *Letters(FileHome(path)).letters()):
            for name in ("partition", "offset", "timestamp", "attempts"):
                letter.number(name)
            letter.says("x")
            moment(letter.timestamp)
            assert letter.payload is None or isinstance(letter.payload, bytes)
        try:
            DeadLetters._note(SimpleNamespace(notes_topic="t.redriven"), message)  # type: ignore[arg-type]
        except SabotError as error:
            return refused(error, "t.redriven[0]@7")
        return True


def _array(values: list[Any]) -> Any:
    return pa.array(values, pa.uint64() if 2**64 - 1 in values else None)


class Values(Target):
    """msgpack values of state, many in one call: as msgspec reads them one by one."""

    name = "values"

    def __init__(self) -> None:
        super().__init__()
        columns: list[Any] = [
            [1, -1, 2**40],
            [1.5, math.pi],
            ["a", "é" * 40, ""],
            [b"\0\xff"],
            [True, False],
            [2**64 - 1, 5],
        ]
        self._columns = [[value for value in encode_values(_array(column)) if value is not None] for column in columns]
        self._columns.append([msgspec.msgpack.encode(value) for value in ([1, 2], {"a": [1]}, None)])
        self.seeds = [msgspec.msgpack.encode(column) for column in self._columns]

    def make(self, rng: random.Random) -> bytes:
        values = list(rng.choice(self._columns)) * rng.randrange(1, 4)
        for _ in range(rng.randrange(3)):
            values[rng.randrange(len(values))] = mutated(rng, rng.choice(self._columns))
        return msgspec.msgpack.encode(values)

    def check(self, data: bytes) -> bool:
        values = msgspec.msgpack.decode(data, type=list[bytes])
        wanted: list[Any] | None
        try:
            wanted = [msgspec.msgpack.decode(value) for value in values]
        except (msgspec.MsgspecError, UnicodeDecodeError):
            wanted = None
        try:
            found = decode_values(values)
        except (ValueError, TypeError, OverflowError, msgspec.MsgspecError, pa.ArrowException):  # rows.pyi
            return False
        found.validate(full=True)
        if wanted is None:
            raise AssertionError(f"{values} were read as {found}")
        kinds = {type(value) for value in wanted if value is not None}
        if len(kinds) == 1 and kinds <= {int, str, bytes, bool, float} and not same(found.to_pylist(), wanted):
            raise AssertionError(f"{found.to_pylist()} are {wanted} by msgspec")
        return True


class Packed(Target):
    """Groups as bytes, as they stand in a database: a batch of them, or CorruptCheckpoint."""

    name = "packed"
    schema = pa.schema(
        [
            *(pa.field("user", pa.string()), pa.field("day", pa.date32()), pa.field("0.count", pa.int64())),
            *(pa.field("1.last", pa.string()), pa.field("1.order", pa.int64()), pa.field("2.flag", pa.bool_())),
            *(pa.field("3.raw", pa.binary()), pa.field("4.x", pa.float32()), pa.field("5.small", pa.int8())),
        ]
    )
    rows = (
        ("a", 1, 1, "x", 5, True, b"", 0.5, 1),
        ("é" * 9, None, -(2**63), None, None, None, b"\xff" * 30, None, 2),
        (None, 3, 0, "x" * 20, 0, False, None, float("nan"), None),
    )

    def __init__(self) -> None:
        super().__init__()
        names = self.schema.names
        data = pa.RecordBatch.from_pylist([dict(zip(names, row, strict=True)) for row in self.rows], schema=self.schema)
        keys = RowCodec(self.schema.types[:2], as_keys=True)
        heads = places(hash_columns(data.columns[:2]))
        packed = RowCodec(self.schema.types[2:]).pack(data.columns[2:])
        self._pairs = list(zip(keys.pack(data.columns[:2], pane=0, heads=heads), packed, strict=True))
        self.seeds = [msgspec.msgpack.encode(self._pairs)]

    def make(self, rng: random.Random) -> bytes:
        pairs = [list(pair) for pair in self._pairs] * rng.randrange(1, 3)
        for _ in range(rng.randrange(1, 3)):
            part = rng.randrange(2)
            rng.choice(pairs)[part] = mutated(rng, [pair[part] for pair in self._pairs])
        return msgspec.msgpack.encode(pairs)

    def check(self, data: bytes) -> bool:
        pairs = msgspec.msgpack.decode(data, type=list[tuple[bytes, bytes]])
        try:
            found = _Codec(self.schema, 2).unpack(pairs)
        except SabotError as error:
            return refused(error)
        if found.num_rows != len(pairs):
            raise AssertionError(f"{found.num_rows} rows of {len(pairs)}")
        use(found)
        return True
