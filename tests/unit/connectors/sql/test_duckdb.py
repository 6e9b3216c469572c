"""SqlSink on DuckDB: what tables it makes and takes, what becomes of values, and what two processes see of one file."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import sabot.connectors.sql.duckdb as room
from sabot import App
from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import build_records
from sabot.connectors.base import Track
from sabot.connectors.sql import SqlSink
from sabot.errors import InternalError, MissingExtra, RowErrors, TransientError, UserError
from sabot.testing import ScriptedSource
from sabot.testing.script import END

TRACK = Track("app", "sink.1", "first")
FAR = 2**63 - 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "results.duckdb"


def query(path: Path, *statements: str) -> list[Any]:
    path.parent.mkdir(exist_ok=True)
    found: list[Any] = []
    with duckdb.connect(path) as connection:
        for statement in statements:
            found = connection.execute(statement).fetchall()
    return found


def sink_of(path: Path, **options: Any) -> SqlSink:
    return SqlSink(f"duckdb://{path}", options.pop("table", "results"), **options)


def written(sink: SqlSink, *batches: pa.RecordBatch) -> None:
    """At least once, as a task does it."""
    sink.open()
    for data in batches:
        sink.write(Batch(data))
    sink.flush()
    sink.close()


def results(*values: Any) -> pa.RecordBatch:
    return build_records(
        [json.dumps(value).encode() for value in values], None, [0] * len(values), 0, range(len(values))
    )


def at(kind: pa.DataType, *values: int | None) -> Any:
    return pa.array(values, pa.int64()).view(kind)


EDGES: dict[str, tuple[Any, str, list[Any]]] = {  # a column, its type in DuckDB, and what its own client reads
    "truth": (pa.array([True, None]), "BOOLEAN", [True, None]),
    "i8": (pa.array([-128, 127], pa.int8()), "TINYINT", [-128, 127]),
    "i16": (pa.array([-(2**15), 2**15 - 1], pa.int16()), "SMALLINT", [-(2**15), 2**15 - 1]),
    "i32": (pa.array([-(2**31), 2**31 - 1], pa.int32()), "INTEGER", [-(2**31), 2**31 - 1]),
    "i64": (pa.array([-(2**63), FAR]), "BIGINT", [-(2**63), FAR]),
    "u8": (pa.array([0, 255], pa.uint8()), "UTINYINT", [0, 255]),
    "u16": (pa.array([0, 2**16 - 1], pa.uint16()), "USMALLINT", [0, 2**16 - 1]),
    "u32": (pa.array([0, 2**32 - 1], pa.uint32()), "UINTEGER", [0, 2**32 - 1]),
    "u64": (pa.array([0, 2**64 - 1], pa.uint64()), "UBIGINT", [0, 2**64 - 1]),
    "half": (pa.array([1.5, None], pa.float32()).cast(pa.float16()), "FLOAT", [1.5, None]),
    "single": (pa.array([0.5, -math.inf], pa.float32()), "FLOAT", [0.5, -math.inf]),
    "double": (pa.array([5e-324, math.inf]), "DOUBLE", [5e-324, math.inf]),
    "text": (pa.array(["it's ü\0", ""]), "VARCHAR", ["it's ü\0", ""]),
    "view": (pa.array(["v", None], pa.string_view()), "VARCHAR", ["v", None]),
    "word": (pa.array(["w", None]).dictionary_encode(), "VARCHAR", ["w", None]),
    "bytes": (pa.array([b"\xff\0", b""]), "BLOB", [b"\xff\0", b""]),
    "fixed": (pa.array([b"ab", None], pa.binary(2)), "BLOB", [b"ab", None]),
    "price": (
        pa.array([Decimal("9" * 36 + ".99"), None], pa.decimal128(38, 2)),
        "DECIMAL(38,2)",
        [Decimal("9" * 36 + ".99"), None],
    ),
    "wide": (pa.array([Decimal("1.5"), None], pa.decimal256(38, 1)), "DECIMAL(38,1)", [Decimal("1.5"), None]),
    "hundreds": (pa.array([Decimal("1E2"), None], pa.decimal128(3, -2)), "DECIMAL(5,0)", [Decimal(100), None]),
    "day": (pa.array([date(1, 1, 1), date(9999, 12, 31)]), "DATE", [date(1, 1, 1), date(9999, 12, 31)]),
    "day64": (pa.array([date(2026, 1, 31), None], pa.date64()), "DATE", [date(2026, 1, 31), None]),
    "clock": (at(pa.time64("us"), 0, 86_399_999_999), "TIME", [time(0), time(23, 59, 59, 999_999)]),
    "second": (pa.array([time(1), None], pa.time32("s")), "TIME", [time(1), None]),
    "naive": (at(pa.timestamp("s"), 1, -1), "TIMESTAMP", [datetime(1970, 1, 1, 0, 0, 1), datetime(1969, 12, 31, 23, 59, 59)]),
    "finest": (at(pa.timestamp("ns"), 1_000, None), "TIMESTAMP_NS", [datetime(1970, 1, 1, 0, 0, 0, 1), None]),
    "lasts": (pa.array([90, None], pa.duration("s")), "BIGINT", [90, None]),
    "list": (pa.array([[1, None], []], pa.list_(pa.int8())), "TINYINT[]", [[1, None], []]),
    "vector": (pa.array([[1.0, math.inf], None], pa.list_(pa.float32(), 2)), "FLOAT[2]", [(1.0, math.inf), None]),
    "struct": (
        pa.array([{"x": 1, "Y z": ["a"]}, None]),
        'STRUCT(x BIGINT, "Y z" VARCHAR[])',
        [{"x": 1, "Y z": ["a"]}, None],
    ),
    "map": (pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())), "MAP(VARCHAR, BIGINT)", [{"a": 1}, None]),
    "nothing": (pa.nulls(2), "VARCHAR", [None, None]),
}  # fmt: skip


@pytest.mark.slow  # a second of a core
def test_every_type_is_stored_as_the_page_says(path: Path) -> None:
    sink = sink_of(path)
    sink.claim(TRACK)
    data = pa.record_batch({name: column for name, (column, _, _) in EDGES.items()})
    sink.check_types(data.schema)
    for seq in (1, 2):  # into the table that is made, and into the one that is there
        sink.deliver(seq, [sink.fitting(data)])
    sink.close()
    kinds = query(path, "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = 'results'")
    assert dict(kinds) == {name: kind for name, (_, kind, _) in EDGES.items()}
    for name, (_, _, values) in EDGES.items():
        assert [value for (value,) in query(path, f'SELECT "{name}" FROM results')] == values * 2, name


def test_moments_of_all_zones_are_kept_and_nan_is_nan(path: Path) -> None:
    zoned = at(pa.timestamp("s", "Europe/Berlin"), 1_769_860_800)
    written(sink_of(path), pa.record_batch({"zoned": zoned, "x": [math.nan], "l": [[math.nan]]}))
    [(kind, moment, x, inside)] = query(path, "SELECT typeof(zoned), epoch_us(zoned), x, l[1] FROM results")
    assert (kind, moment) == ("TIMESTAMP WITH TIME ZONE", 1_769_860_800_000_000)
    assert math.isnan(x)
    assert math.isnan(inside)
    assert sink_of(path).floats_lost(pa.list_(pa.float64())) is None


@pytest.mark.parametrize(
    "kind",
    [
        pa.month_day_nano_interval(),
        pa.decimal256(39, 2),
        pa.decimal128(38, -1),
        pa.list_(pa.month_day_nano_interval()),
        pa.list_(pa.int8(), 0),
        pa.struct([]),
        pa.struct([("a", pa.int8()), ("A", pa.int8())]),
    ],
    ids=str,
)
def test_a_type_that_it_lacks_is_refused_at_the_start(path: Path, kind: pa.DataType) -> None:
    with pytest.raises(UserError, match=r"table results: column 'v' of type .* cannot be written as SQL"):
        sink_of(path).check_types(pa.schema([("v", kind)]))


REFUSED = [  # a column that is there, or "", and values: the first fits, and the second does not
    ("", at(pa.timestamp("us"), FAR - 1, FAR)),
    ("", at(pa.timestamp("us", "UTC"), -9_223_372_022_400_000_000, -FAR)),
    ("", at(pa.timestamp("s"), 0, 10**13)),
    ("", at(pa.timestamp("ns", "UTC"), 1_000, 1_500)),
    ("", at(pa.timestamp("ns"), -FAR + 1, -FAR)),
    ("", at(pa.time64("us"), 0, 90_000_000_000)),
    ("", at(pa.time64("us"), 0, -1)),
    ("", at(pa.time64("ns"), 1_000, 1_500)),
    ("", pa.array([2**31 - 2, 2**31 - 1], pa.int32()).view(pa.date32())),
    ("INTEGER", pa.array([2**31 - 1, 2**31])),
    ("BIGINT", pa.array([FAR, FAR + 1], pa.uint64())),
    ("DECIMAL(3, 1)", pa.array([99, 100])),
    ("DECIMAL(3, 1)", pa.array([Decimal("9.9"), Decimal("100")], pa.decimal128(4, 1))),
    ("DOUBLE", pa.array([2**53, 2**53 + 1])),
    ("TIMESTAMP_S", at(pa.timestamp("ms"), 1_000, 1_500)),
    ("TIMESTAMP_NS", at(pa.timestamp("s"), 1, 10**11)),
    ("INTEGER[]", pa.array([[1], [2**31]])),
]


@pytest.mark.one_in(9, "a tenth of a second of a core each")
@pytest.mark.parametrize(("declared", "column"), REFUSED, ids=[f"{a} {b.type}" for a, b in REFUSED])
def test_a_value_that_would_be_cut_is_refused_by_its_row(path: Path, declared: str, column: Any) -> None:
    if declared:
        query(path, f"CREATE TABLE results (v {declared})")
    sink = sink_of(path, schema=pa.schema([("v", column.type)]))
    sink.claim(TRACK)
    with pytest.raises(RowErrors) as raised:
        sink.fitting(pa.record_batch({"v": pa.concat_arrays([column, column])}))
    assert raised.value.rows.keys() == {1, 3}
    assert "does not fit into" in raised.value.rows[1]
    good = pa.record_batch({"v": column.take(pa.array([0]))})
    sink.deliver(1, [sink.fitting(good)])
    sink.close()
    assert query(path, "SELECT count(v) FROM results") == [(1,)]


@pytest.mark.one_in(9, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("declared", "kind"),
    [
        ("INTEGER", pa.float64()),
        ("INTEGER", pa.string()),
        ("FLOAT", pa.float64()),
        ("DECIMAL(5, 2)", pa.decimal128(10, 3)),
        ("DECIMAL(5, 2)", pa.float64()),
        ("DOUBLE", pa.decimal128(5, 2)),
        ("TIMESTAMP", pa.timestamp("us", "UTC")),
        ("TIMESTAMPTZ", pa.timestamp("us")),
        ("DATE", pa.timestamp("s")),
        ("VARCHAR", pa.binary()),
        ("VARCHAR", pa.int64()),
        ("BOOLEAN", pa.int64()),
        ("INTERVAL", pa.duration("s")),
        ("JSON", pa.list_(pa.int64())),
        ("INTEGER[]", pa.list_(pa.float64())),
        ("FLOAT[3]", pa.list_(pa.float32())),
        ("STRUCT(b INTEGER, a INTEGER)", pa.struct([("a", pa.int32()), ("b", pa.int32())])),
    ],
)
def test_a_column_that_would_cut_its_values_ends_the_start(path: Path, declared: str, kind: pa.DataType) -> None:
    query(path, f"CREATE TABLE results (V {declared})")
    sink = sink_of(path)
    sink.expect(pa.schema([("v", kind)]))
    with pytest.raises(UserError, match=r"results of .*: its column v is .*comes"):
        sink.open()


@pytest.mark.one_in(4, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("declared", "value", "kept"),
    [
        ("UUID", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("ENUM('new', 'paid')", "paid", "paid"),
        ("JSON", '{"a":[1]}', '{"a":[1]}'),
        ("HUGEINT", 2**63, str(2**63)),
        ("STRUCT(a INTEGER)[]", [{"a": 1}], "[{'a': 1}]"),
    ],
)
def test_columns_of_other_types_take_what_fits(path: Path, declared: str, value: Any, kept: str) -> None:
    query(path, f"CREATE TABLE results (v {declared}, double_v DOUBLE GENERATED ALWAYS AS (1.5))")
    kind = pa.uint64() if isinstance(value, int) else None
    data = pa.record_batch({"v": pa.array([value], kind)})
    sink = sink_of(path, schema=data.schema)
    assert sink.misfit(data.schema) == ""
    written(sink, data)
    assert query(path, "SELECT v::VARCHAR FROM results") == [(kept,)]


def test_results_are_read_as_the_table_says(path: Path) -> None:
    query(
        path,
        "CREATE TABLE results (id INTEGER, price DECIMAL(30, 2), tags VARCHAR[], moment TIMESTAMPTZ, place STRUCT(x DOUBLE), "
        "raw JSON, clock TIME, note VARCHAR DEFAULT 'none')",
    )
    row = {
        "id": 1,
        "price": 1234567890123456789.1,
        "tags": ["a"],
        "moment": 1000,
        "place": {"x": 1},
        "raw": [1],
        "clock": "09:30",
    }
    text = json.dumps(row).replace("1.2345678901234568e+18", "1234567890123456789.10").encode()
    written(sink_of(path), build_records([text], None, [0], 0, [0]))
    [(id, price, tags, place, raw, clock, note)] = query(
        path, "SELECT id, price, tags, place, raw::VARCHAR, clock, note FROM results"
    )
    assert (id, price, tags, place) == (1, Decimal("1234567890123456789.10"), ["a"], {"x": 1.0})
    assert (raw, clock, note) == ("[1]", time(9, 30), "none")
    assert query(path, "SELECT epoch_ms(moment) FROM results") == [(1000,)]


def test_results_make_a_table_of_the_types_that_they_have(path: Path) -> None:
    written(sink_of(path), results({"id": "a", "tags": [1, 2], "place": {"x": 0.5}}))
    assert query(path, "SELECT id, tags, place FROM results") == [("a", [1, 2], {"x": 0.5})]


def test_a_table_of_a_schema_gets_its_tokens_there_and_new_columns(path: Path) -> None:
    query(
        path,
        "CREATE SCHEMA sales",
        "CREATE TABLE sales.Alerts (id BIGINT PRIMARY KEY)",
        "INSERT INTO sales.alerts VALUES (1)",
    )
    sink = sink_of(path, table="sales.alerts", keys=["id"], evolve=True)
    sink.claim(TRACK)
    sink.deliver(1, [pa.record_batch({"id": [1, 2], "note": ["a", "b"]})])
    sink.close()
    assert query(path, "SELECT * FROM sales.alerts ORDER BY id") == [(1, "a"), (2, "b")]
    assert query(path, "SELECT lane, seq, incarnation FROM sales.sabot_tokens") == [("sabot.app.sink.1", 1, "first")]


@pytest.mark.slow  # half a second of a core
def test_a_key_needs_an_index_without_a_collation(path: Path) -> None:
    query(path, 'CREATE TABLE results (k VARCHAR, "K 2" BIGINT, n BIGINT)', "CREATE UNIQUE INDEX u ON results (k, n)")
    data = pa.record_batch({"k": ["a"], "K 2": [1], "n": [1]})
    with pytest.raises(UserError, match=r"results of .* has no unique index on k, K 2"):
        written(sink_of(path, keys=["k", "K 2"]), data)
    query(path, 'CREATE UNIQUE INDEX w ON results ("K 2", k)')
    for _ in range(2):
        written(sink_of(path, keys=["k", "K 2"]), data)
    assert query(path, "SELECT * FROM results") == [("a", 1, 1)]
    query(path, "CREATE TABLE folded (k VARCHAR COLLATE NOCASE PRIMARY KEY)")
    with pytest.raises(UserError, match="its key k has a collation"):
        written(sink_of(path, table="folded", keys=["k"]), pa.record_batch({"k": ["a"]}))


@pytest.mark.slow  # half a second of a core
def test_rows_that_the_table_refuses_are_found_and_the_others_stay(path: Path) -> None:
    query(
        path,
        "CREATE TABLE results (id BIGINT PRIMARY KEY, n BIGINT NOT NULL CHECK (n < 100))",
        "INSERT INTO results VALUES (7, 7)",
    )
    sink = sink_of(path)
    sink.claim(TRACK)
    part = [
        pa.record_batch({"id": [1, 2, 2, 7], "n": [1, 2, 3, 4]}),
        pa.record_batch({"id": [4, 5, 6, 1], "n": [100, None, 6, 8]}),
    ]
    with pytest.raises(UserError, match="Constraint Error"):
        sink.deliver(1, part)
    sink.claim(TRACK)
    refused = sink.refused_rows(part)
    assert refused.keys() == {2, 3, 4, 5, 7}
    assert "CHECK" in refused[4]
    assert "NOT NULL" in refused[5]
    assert query(path, "SELECT * FROM results") == [(7, 7)]
    sink.claim(TRACK)
    sink.deliver(1, [pa.record_batch({"id": [1, 2, 6], "n": [1, 2, 6]})])
    sink.close()
    assert query(path, "SELECT id FROM results ORDER BY id") == [(1,), (2,), (6,), (7,)]


def test_rows_that_repeat_unique_values_are_found_without_an_attempt_for_each(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bisection took 1,048 failed inserts for 200 such rows, each of which wrote all earlier rows again."""
    query(
        path,
        "CREATE TABLE results (id BIGINT PRIMARY KEY, n INTEGER)",
        "INSERT INTO results SELECT range * 10, 0 FROM range(100)",
    )
    sink = sink_of(path)
    sink.claim(TRACK)
    tried: list[int] = []
    inserted = room.DuckDatabase.insert
    monkeypatch.setattr(
        room.DuckDatabase, "insert", lambda self, data: (tried.append(data.num_rows), inserted(self, data))
    )
    ids = [*range(1000), *range(1, 1000, 10)]
    refused = sink.refused_rows([pa.record_batch({"id": ids[:700]}), pa.record_batch({"id": ids[700:]})])
    assert refused.keys() == {*range(0, 1000, 10), *range(1000, 1100)}
    assert set(refused.values()) == {f"table results of {path}: another row has the same id, which is unique"}
    assert tried == [0, 630, 0, 270]
    sink.close()


@pytest.mark.slow  # half a second of a core
def test_a_row_that_repeats_only_what_is_refused_itself_is_written(path: Path) -> None:
    query(
        path,
        "CREATE TABLE results (id BIGINT PRIMARY KEY, n INTEGER NOT NULL, m INTEGER UNIQUE, k INTEGER)",
        "CREATE UNIQUE INDEX by_both ON results (n, k)",
        "CREATE UNIQUE INDEX by_sum ON results ((id + n))",
    )
    rows: list[tuple[int, int | None, int | None, int | None]] = [
        (1, None, 5, 1),  # refused: n
        (1, 1, 5, 1),  # repeats row 0 only
        (1, 2, 6, 1),  # refused: it repeats the id of row 1
        (2, 3, 6, 1),  # repeats m of row 2 only
        (3, 3, None, 1),  # refused: n and k are those of row 3
        (4, 3, None, None),  # a null equals no other one
        (5, 3, None, None),
        (3, 2, 8, 9),  # id + n is that of row 3, and id that of row 4, which is refused
        (9, 9, 5, 9),  # refused: m of row 1
    ]
    data = pa.record_batch([pa.array(column, pa.int64()) for column in zip(*rows, strict=True)], ["id", "n", "m", "k"])
    sink = sink_of(path)
    sink.claim(TRACK)
    refused = sink.refused_rows([data])
    assert refused.keys() == {0, 2, 4, 7, 8}
    left = data.filter(pa.array([row not in refused for row in range(data.num_rows)]))
    sink.claim(TRACK)
    sink.deliver(1, [left])
    sink.close()
    assert query(path, "SELECT id FROM results ORDER BY id") == [(1,), (2,), (4,), (5,)]


# --- the file, and others who use it


@pytest.mark.parametrize(
    "url", ["duckdb:", "duckdb:///", "duckdb::memory:", "duckdb:md:lake", "duckdb://host/x.duckdb", "duck:x.duckdb"]
)
def test_an_address_that_is_no_file_is_refused(url: str) -> None:
    with pytest.raises(UserError):
        SqlSink(url, "results")


def test_a_path_may_be_relative(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(SqlSink("duckdb:out/results.duckdb", "results"), pa.record_batch({"n": [1]}))
    assert query(path, "SELECT * FROM results") == [(1,)]
    assert os.listdir(path.parent) == [path.name]


def test_a_file_that_is_no_database_and_one_that_cannot_be_made_are_named(tmp_path: Path) -> None:
    # The name has "lock" in it: it was taken for a file that another process holds, and was waited for.
    (tmp_path / "blocks").write_text("no database, but long enough to be taken for the header of one: " * 200)
    with pytest.raises(UserError, match=r"blocks.* not a valid DuckDB database.*give the path of a database"):
        sink_of(tmp_path / "blocks").open()
    with pytest.raises(UserError, match="cannot be made"):
        sink_of(tmp_path / "blocks" / "inside" / "x.duckdb").open()


def test_a_damaged_file_is_named_with_what_to_do(path: Path) -> None:
    query(path, "CREATE TABLE results (n INTEGER)")
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xee" * 8192 + whole[12288:])
    with pytest.raises(UserError, match=r"results\.duckdb: Corrupt database file.*go back to a copy"):
        sink_of(path).open()


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        (
            'Failed to download extension "sqlite_scanner" at URL',
            "its address begins with sqlite:",
        ),  # for a file of SQLite
        ("file was written with a storage version greater than … a newer version of DuckDB.", "pip install -U duckdb"),
        ('Cannot open encrypted database "x" without a key', "the sink has no key"),
    ],
)
def test_a_file_of_another_program_or_version_is_an_error_that_says_what_to_do(
    said: str, hint: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query(path, "CREATE TABLE results (n INTEGER)")

    def refused(path: str) -> Any:
        raise duckdb.IOException(f"IO Error: {said}")

    monkeypatch.setattr(duckdb, "connect", refused)
    with pytest.raises(UserError, match=re.escape(said)) as failed:
        sink_of(path).open()
    assert hint in str(failed.value.hint)


@pytest.mark.parametrize("name", ["out.csv", "out.ndjson", "out.parquet"])
def test_a_file_of_data_is_no_database(name: str, tmp_path: Path) -> None:
    """DuckDB opens it as a database in memory, with a view of the file: what was written was lost at the next flush, without an error."""
    place = tmp_path / name
    if name.endswith("parquet"):
        duckdb.sql("SELECT 1 AS n").write_parquet(str(place))
    else:
        place.write_text('{"n": 1}\n')
    before = place.read_bytes()
    with pytest.raises(UserError, match="is no database of DuckDB") as failed:
        written(sink_of(place), pa.record_batch({"n": [1]}))
    assert "give the path of a database" in str(failed.value)
    assert place.read_bytes() == before


HOLDER = """
import sys, duckdb
with duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "read") as connection:
    print("open", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path: Path, how: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that has the file open until the end of the block, or until it is killed."""
    words = [sys.executable, "-c", HOLDER, str(path), how]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "open\n"
            yield other
        finally:
            other.kill()


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("how", ["read", "write"])
def test_a_file_that_another_process_has_open_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    sink = sink_of(path)
    sink.claim(TRACK)
    sink.deliver(1, [pa.record_batch({"n": [1]})])
    with held(path, how) as other:  # which it may, between two deliveries
        monkeypatch.setattr(room, "_WAIT_SECONDS", 0.0)
        for attempt in (lambda: sink.deliver(2, [pa.record_batch({"n": [2]})]), lambda: sink.claim(TRACK)):
            with pytest.raises(
                TransientError, match=r"another program has had it open .* one process at a time"
            ) as raised:
                attempt()
            assert f"PID {other.pid}" in raised.value.message
            assert "in between" in raised.value.hint
        monkeypatch.setattr(room, "_WAIT_SECONDS", 60.0)
        monkeypatch.setattr(room.time, "sleep", lambda seconds: other.kill() or other.wait())
        sink.claim(TRACK)
    sink.deliver(2, [pa.record_batch({"n": [2]})])
    sink.close()
    assert query(path, "SELECT * FROM results") == [(1,), (2,)]


def test_a_program_that_has_the_file_open_itself_shares_it(path: Path) -> None:
    query(path, "CREATE TABLE results (n BIGINT)")
    with duckdb.connect(path) as own:
        written(sink_of(path), pa.record_batch({"n": [1]}))
        assert own.execute("SELECT * FROM results").fetchall() == [(1,)]


@pytest.mark.slow  # half a second of a core
def test_at_least_once_it_is_open_until_the_flush(path: Path) -> None:
    sink = sink_of(path)
    sink.open()
    sink.write(Batch(pa.record_batch({"n": [1]})))
    reader = [
        sys.executable,
        "-c",
        "import sys, duckdb; print(duckdb.connect(sys.argv[1]).execute('FROM results').fetchall())",
    ]
    told = subprocess.run([*reader, str(path)], capture_output=True, text=True, check=False)
    assert "lock" in told.stderr
    sink.flush()
    assert subprocess.run([*reader, str(path)], capture_output=True, text=True, check=True).stdout == "[(1,)]\n"
    sink.close()


CHILD = """
import os, signal, sys
import pyarrow as pa
from sabot import SqlSink, steps
from sabot.connectors.base import Track

class Kill:
    moments = 0
    def moment(self, name, what):
        self.moments += 1
        if self.moments > int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
    before = after = moment
    def torn(self, name, what, size):
        return size

steps.watch(Kill())
sink = SqlSink("duckdb:" + sys.argv[1], "results", keys=["n"])
token = sink.claim(Track("app", "sink.1", "first"))
for seq in range(1 if token is None else token.seq + 1, 4):
    sink.deliver(seq, [pa.record_batch({"n": range(seq * 100, seq * 100 + 100), "part": [seq] * 100})])
sink.close()
"""


@pytest.mark.slow  # a process for each step
def test_a_process_that_is_killed_at_any_step_leaves_whole_parts_and_its_successor_goes_on(path: Path) -> None:
    path.parent.mkdir()
    moment, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        code = subprocess.run([sys.executable, "-c", CHILD, str(path), str(moment)], check=False).returncode
        if path.exists() and ("results",) in query(path, "SELECT table_name FROM duckdb_tables()"):
            parts = query(path, "SELECT part, count(*) FROM results GROUP BY part ORDER BY part")
            assert parts == [(part, 100) for part in range(1, len(parts) + 1)], moment
            (tokens,) = query(path, "SELECT coalesce(max(seq), 0) FROM sabot_tokens")
            assert tokens == (len(parts),), moment
        moment += 1
    assert code == 0
    assert moment > 10
    assert query(path, "SELECT count(*), count(DISTINCT n), min(n), max(n) FROM results") == [(300, 300, 100, 399)]
    assert not [name for name in os.listdir(path.parent) if name.startswith(".")]


def test_an_error_of_duckdb_itself_refuses_no_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = sink_of(path)
    sink.claim(TRACK)

    def broken(*given: Any) -> None:
        raise duckdb.FatalException("FATAL Error: database has been invalidated\n\nStack Trace: …")

    monkeypatch.setattr(sink._database, "insert", broken)
    with pytest.raises(
        InternalError, match=r"results of .*: FATAL Error: database has been invalidated \(a fault of DuckDB"
    ):
        sink.deliver(1, [pa.record_batch({"n": [1]})])


def test_without_duckdb_the_extra_is_named_and_an_old_one_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duckdb, "__version__", "1.4.4")
    with pytest.raises(UserError, match=r"DuckDB 1\.4\.4 is installed, and a sink into DuckDB needs 2\.0"):
        sink_of(path)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(MissingExtra) as raised:
        sink_of(path)
    assert raised.value.hint == "pip install 'sabot[duckdb]'"


@pytest.mark.slow  # half a second of a core
async def test_sql_writes_a_table_that_is_updated(path: Path) -> None:
    app = App("shop", state=str(path.parent / "state"))
    rows = pa.record_batch({"shop": ["a", "b", "a"], "amount": [1, 2, 3]})
    app.sql(
        f"CREATE TABLE totals (shop STRING, total BIGINT, PRIMARY KEY (shop) NOT ENFORCED) "
        f"WITH ('connector' = 'duckdb', 'url' = 'jdbc:duckdb://{path}', 'table-name' = 'totals'); "
        "INSERT INTO totals SELECT shop, SUM(amount) FROM paid GROUP BY shop",
        paid=app.stream(ScriptedSource([rows, END], schema=rows.schema)),
    )
    await app.run()
    assert query(path, "SELECT * FROM totals ORDER BY shop") == [("a", 4), ("b", 2)]


@pytest.mark.one_in(3, "half a second of a core: each part opens the file")
def test_two_tables_of_one_file_are_written_in_two_threads(path: Path) -> None:
    """DuckDB gives a second connection the database of the first one before that can read Arrow: each part opens the file anew."""
    parts = 8
    together = threading.Barrier(2)
    sinks = [sink_of(path, table=table) for table in ("one", "two")]
    for number, sink in enumerate(sinks):
        sink.claim(Track("app", f"sink.{number}", "first"))
        sink.deliver(1, [pa.record_batch({"n": [1]})])

    def deliver(sink: SqlSink) -> None:
        try:
            for seq in range(2, parts + 1):
                together.wait(60)
                sink.deliver(seq, [pa.record_batch({"n": [seq]})])
        except BaseException:
            together.abort()
            raise

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(deliver, sinks))
    for sink in sinks:
        sink.close()
    assert query(path, "SELECT count(*) FROM one UNION ALL SELECT count(*) FROM two") == [(parts,), (parts,)]
