"""Texts: what Python's own readers say of the same bytes."""

import csv
import gzip
import io
import math
import random
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from sabot.base import config
from sabot.codecs.json import JsonCodec
from sabot.codecs.records import build_records
from sabot.connectors.files import CsvSource, NdjsonSource, files
from sabot.errors import SabotError
from targets.base import Target, found_in, refused, use
from twins.json_rows import REFUSED, by_json, row_of

__all__ = ["Compressed", "Csv", "Json", "Ndjson", "Words"]

SCHEMA = pa.schema(
    [
        pa.field("a", pa.int64()),
        pa.field("b", pa.string()),
        pa.field("c", pa.float64()),
        pa.field("d", pa.bool_()),
        pa.field("e", pa.list_(pa.int32())),
        pa.field("f", pa.struct([pa.field("g", pa.string()), pa.field("h", pa.float32())])),
        pa.field("i", pa.binary()),
    ]
)
OBJECTS = [
    b'{"a": 1, "b": "x", "c": 0.5, "d": true, "e": [1, 2], "f": {"g": "y", "h": 1.5}, "i": "raw"}',
    b'{"b": "\\u00e9\\ud83d\\ude00\\n\\"\\\\", "a": -9223372036854775808, "c": 1e-300, "f": null, "unknown": [{"a": [1]}]}',
    b' {"a" :12 , "a": 13,"e":[],"d":false,"c":-0.0,"f":{}}\t',
    b'{"c": 123456789012345678901234567890, "b": "", "e": [null, -1], "f": {"h": 3.4e38, "g": null}}',
    '{"b": "日本語", "i": "é", "c": 4.9E-324}'.encode(),
    b"{}",
]
TOKENS = [
    *(
        b'"',
        b"\\",
        b"\\u",
        b"\\ud800",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"null",
        b"true",
        b"NaN",
        b"Infinity",
        b"-",
        b"1e400",
        b"0",
        b".",
    ),
    *(
        b"\xff",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xef\xbb\xbf",
        b"\x00",
        b"\n",
        b"\r\n",
        b"\r",
        b" ",
        b"[" * 200,
        b'{"a":' * 100,
    ),
    *(
        b"9223372036854775808",
        b"-9223372036854775809",
        b"2147483648",
        b"1.0",
        b"1E5",
        b'"a":1,',
        b'"b":"z"',
        b"\x1f",
        b"\x7f",
    ),
]


def same(found: Any, wanted: Any) -> bool:
    """Equal, and NaN to NaN. 0.0 is -0.0: for Python the JSON number -0 is the integer 0, for us a float column has the sign."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[name], wanted[name]) for name in found)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(found, float) and isinstance(wanted, float):
        return (math.isnan(found) and math.isnan(wanted)) or found == wanted
    return type(found) is type(wanted) and found == wanted


def by_python(payload: bytes) -> dict[str, Any] | None:
    """The row; None: it is bad."""
    try:
        row = row_of(SCHEMA, by_json(payload))
        row["b"] if row["b"] is None else row["b"].encode()
        return row
    except (*REFUSED, RecursionError):
        return None


def agree(payloads: list[bytes], rows: list[dict[str, Any]], bad: list[int]) -> None:
    """The rows are those of Python, and the bad ones too."""
    wanted = [by_python(payload) for payload in payloads]
    assert bad == [number for number, row in enumerate(wanted) if row is None], (
        f"bad are {bad} of {payloads}, by Python {[number for number, row in enumerate(wanted) if row is None]}"
    )
    for row, want in zip(rows, [row for row in wanted if row is not None], strict=True):
        assert same(row, want), f"{row} is {want} by Python"


class Json(Target):
    """Payloads -> columns, and inference; with values as `json.loads` reads them."""

    name = "json"
    tokens = TOKENS
    seeds = OBJECTS

    def make(self, rng: random.Random) -> bytes:
        payloads = [super(Json, self).make(rng).replace(b"\x1e", b"") for _ in range(rng.randrange(1, 8))]
        return b"\x1e".join(payloads)

    def check(self, data: bytes) -> bool:
        payloads = data.split(b"\x1e")
        records = build_records(payloads, None, [0] * len(payloads), 0, list(range(len(payloads))))
        rows, bad = JsonCodec(SCHEMA).decode(records)
        use(rows)
        agree(payloads, rows.to_pylist(), [row.row for row in bad])
        try:
            inferred, _ = JsonCodec().decode(records)
        except SabotError as error:
            return refused(error)
        use(inferred)
        return rows.num_rows > 0


class Ndjson(Target):
    """Lines of a file, in blocks of any size, as columns; as `json.loads` reads them line by line."""

    name = "ndjson"
    tokens = TOKENS
    seeds = (b"\n".join(OBJECTS) + b"\n", b"\r\n".join(OBJECTS), b"\n\n" + OBJECTS[2] + b"\n \n" + OBJECTS[1])

    def check(self, data: bytes) -> bool:
        path = self.directory / "fuzzed.ndjson"
        path.write_bytes(data)
        size = 1 + len(data) % 97
        lines = [line for line in data.split(b"\n") if line.strip(b" \t\r")]
        rows: list[dict[str, Any]] = []
        bad: list[bytes] = []
        for batch in found_in(NdjsonSource(path, block_bytes=size), 1 + len(data) % 5, SCHEMA):
            use(batch.data)
            rows += batch.data.to_pylist()
            bad += [] if batch.bad is None else batch.bad.column("payload").to_pylist()
        wanted = [(line, by_python(line)) for line in lines]
        assert [line.rstrip(b"\r") for line in bad] == [line.rstrip(b"\r") for line, row in wanted if row is None]
        for row, want in zip(rows, [row for _, row in wanted if row is not None], strict=True):
            assert same(row, want), f"{row} is {want} by Python"
        try:
            for batch in found_in(NdjsonSource(path, block_bytes=size), 3):
                use(batch.data)
        except SabotError as error:
            return refused(error, path.name)
        return bool(rows)


CSV_NAMES = ["a", "b", "c"]
CSV = pa.schema([(name, pa.string()) for name in CSV_NAMES])
CSV_TYPED = pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", pa.float64())])


class Csv(Target):
    """Records of a file, in blocks of any size; as Python's `csv` reads them, where the two have one mind (see `_plain`)."""

    name = "csv"
    tokens = (
        *(
            b'" "" , \n \r\n \r ", ," "\n 1 -1.5e3 \t \x00 \xff \xc3\xa9 \xed\xa0\x80 nan inf 0x10 1e400 true NULL'.split(
                b" "
            )
        ),
        *(b" ", b"9223372036854775808", b"x" * 100, b"\xef\xbb\xbf"),
    )
    seeds = (
        b'a,b,c\n1,x,0.5\n2,y,\n,"",1e3\n4,"a,b",-0\n',
        b'a,b,c\r\n1,"line\r\nbreak",2\r\n3,"say ""hi""",4\r\n',
        b'a,b,c\n\n 1 ,two words, 3.0\n"4","5","6"\n7,"",\n8,9,10',
        "c,b,a\n1,é,2\n1.5,日本,3\n".encode(),
    )

    def check(self, data: bytes) -> bool:
        path = self.directory / "fuzzed.csv"
        path.write_bytes(data)
        count = 0
        for schema in (CSV, CSV_TYPED, None):
            size = 1 + len(data) % 61 if schema is not None else 1 << 16
            rows: list[list[str | None]] = []
            bad: list[bytes] = []
            try:
                for batch in found_in(CsvSource(path, columns=CSV_NAMES, block_bytes=size), 1 + len(data) % 5, schema):
                    use(batch.data)
                    count += batch.num_rows
                    rows += [[*row.values()] for row in batch.data.to_pylist()]
                    bad += [] if batch.bad is None else batch.bad.column("payload").to_pylist()
                for batch in found_in(CsvSource(path, block_bytes=size), 3):
                    use(batch.data)
            except SabotError as error:
                refused(error, path.name)
                continue
            if schema is CSV and _plain(data):
                self._compare(data, rows, len(bad))
        return count > 0

    def _compare(self, data: bytes, rows: list[list[str | None]], bad: int) -> None:
        records = [record for record in csv.reader(io.StringIO(data.decode(), newline=""), strict=True) if record]
        wanted = [[field or None for field in record] for record in records if len(record) == len(CSV_NAMES)]
        found = [[field or None for field in row] for row in rows]
        assert found == wanted, f"{found} are {wanted} by Python"
        assert bad == len(records) - len(wanted), f"{bad} bad records, not {len(records) - len(wanted)}"


def _plain(data: bytes) -> bool:
    """Whether the text is CSV as RFC 4180 has it, in UTF-8: quotes around whole fields, doubled inside."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    field = rb'(?:"(?:[^"]|"")*"|[^",\r\n]*)'
    lines = rb"(?:" + field + rb"(?:," + field + rb")*(?:\r\n|\n|$))*"
    return re.fullmatch(lines, data) is not None and b"\x00" not in data and not data.startswith(b"\xef\xbb\xbf")


class Compressed(Target):
    """NDJSON and CSV in gzip and zstd: the rows before the damage and an error, or an error."""

    name = "compressed"
    tokens = (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x00\x00\xff\xff")

    def __init__(self) -> None:
        super().__init__()
        texts = [*Ndjson.seeds, b'{"a": 1}\n' * 200, b'{"b": "' + b"x" * 3000 + b'"}\n']
        self.seeds = [b"0" + gzip.compress(text, mtime=0) for text in texts]
        self.seeds += [
            b"0" + gzip.compress(text[:50], mtime=0) + gzip.compress(text[50:], mtime=0) for text in texts[:2]
        ]
        self.seeds += [b"1" + bytes(pa.compress(text, "zstd", asbytes=True)) for text in texts]
        self.seeds += [b"2" + gzip.compress(text, mtime=0) for text in Csv.seeds]

    def check(self, data: bytes) -> bool:
        ending = {b"1": "ndjson.zst", b"2": "csv.gz"}.get(data[:1], "ndjson.gz")
        path = self.directory / f"fuzzed.{ending}"
        path.write_bytes(data[1:])
        schema = CSV if data[:1] == b"2" else SCHEMA
        count = 0
        for wanted in (schema, None):
            try:
                for batch in found_in(files(path), 1 + len(data) % 50, wanted):
                    use(batch.data)
                    count += batch.num_rows
            except SabotError as error:
                refused(error, path.name)
        return count > 0


class Words(Target):
    """What users write in settings: a value, or an error that says what to write."""

    name = "words"
    seeds = tuple(
        word.encode()
        for word in (
            *(
                "5s",
                "100ms",
                "1.5 h",
                "7d",
                "256MB",
                "64KiB",
                "1.5gb",
                "fixed(3, 1s)",
                "none",
                "kafka://a:9092,b:9092",
                "memory://x",
            ),
            *(
                "*.ndjson",
                "data/**/*.csv",
                "[a-z].json",
                "a{b}",
                '{"a": "int64"}',
                "timestamp[ms, UTC]",
                "decimal(9, 2)",
                "/tmp/x\0y",
            ),
        )
    )
    tokens = (
        b"9" * 400,
        b"e",
        b"1e999",
        b"\xd9\xa3",
        b"(",
        b")",
        b",",
        b"/",
        b"**",
        b"[",
        b"]",
        b"!",
        b"\x00",
        b"\xff",
        b"s",
        b"KiB",
        b"://",
    )

    def check(self, data: bytes) -> bool:
        word = data.decode("utf-8", "surrogateescape")
        below = word.replace("..", "").lstrip("/")  # a glob must not walk through the whole disk
        readers: list[Callable[[Any], Any]] = [
            *(config.parse_seconds, config.parse_bytes, config.parse_restart, config.parse_broker, config.legal_topic),
            lambda _: files(self.directory / below),
            lambda _: files(str(self.directory / "*" / below), "ndjson"),
        ]
        good = 0
        for read in readers:
            try:
                read(word)
                good += 1
            except SabotError as error:
                refused(error)
        return good > 1
