"""SqlSink on SQLite: what tables it makes and takes, what becomes of values, what it says when something does not fit."""

import contextlib
import itertools
import json
import logging
import sqlite3
import threading
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sabot import App
from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import build_records
from sabot.connectors.base import Token, Track
from sabot.connectors.files import NdjsonSource
from sabot.connectors.sql import SqlSink, sqlite
from sabot.connectors.sql.rows import hex_text, json_text, last_of_each_key
from sabot.errors import AppLocked, TransientError, UserError

TRACK = Track("app", "sink.1", "first")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "results.db"


def query(path: Path, statement: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        found = connection.execute(statement).fetchall()
        connection.commit()
        return found


def written(sink: SqlSink, *batches: Any) -> None:
    """At least once, as a task does it."""
    sink.open()
    for data in batches:
        sink.write(Batch(data))
    sink.flush()
    sink.close()


def results(*values: Any) -> pa.RecordBatch:
    payloads = [value if isinstance(value, bytes | None) else json.dumps(value).encode() for value in values]
    return build_records(payloads, None, [0] * len(payloads), 0, range(len(payloads)))


def test_every_type_is_stored_as_the_page_says(path: Path) -> None:
    second = 1_769_860_800  # 2026-01-31 12:00
    data = pa.record_batch(
        {
            "truth": pa.array([True, None]),
            "small": pa.array([-5, None], pa.int8()),
            "unsigned": pa.array([2**63 - 1, None], pa.uint64()),
            "half": pa.array([1.5, None], pa.float32()).cast(pa.float16()),
            "float": pa.array([0.1, float("nan")]),
            "text": pa.array(["it's ü", ""]),
            "view": pa.array(["v", None], pa.string_view()),
            "word": pa.array(["w", None]).dictionary_encode(),
            "bytes": pa.array([b"\xff\x00", b""]),
            "fixed": pa.array([b"ab", None], pa.binary(2)),
            "price": pa.array([Decimal("1234567890123456789.10"), None], pa.decimal128(30, 2)),
            "naive": pa.array([second * 1000 + 7, None], pa.timestamp("ms")),
            "zoned": pa.array([second, None], pa.timestamp("s", "Europe/Berlin")),
            "day": pa.array([20484, None], pa.date32()),
            "clock": pa.array([3_600_000_001, None], pa.time64("us")),
            "lasts": pa.array([90, None], pa.duration("s")),
            "list": pa.array([["a", None], None]),
            "struct": pa.array([{"x": 1, "y": [0.5]}, None]),
            "nothing": pa.nulls(2),
        }
    )
    written(SqlSink(f"sqlite://{path}", "results"), data)
    first, second_row = query(path, "SELECT * FROM results")
    assert first == (
        *(1, -5, 2**63 - 1, 1.5, 0.1, "it's ü", "v", "w", b"\xff\x00", b"ab", "1234567890123456789.10"),
        *("2026-01-31 12:00:00.007", "2026-01-31 12:00:00Z", "2026-01-31", "01:00:00.000001", 90),
        *('["a",null]', '{"x":1,"y":[0.5]}', None),
    )
    assert second_row == (*[None] * 5, "", None, None, b"", *[None] * 10)
    declared = {name: kind for _, name, kind, *_ in query(path, "PRAGMA table_info(results)")}
    assert set(declared.values()) == {"BOOLEAN", "INTEGER", "REAL", "TEXT", "BLOB"}


@pytest.mark.slow
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    rows=st.lists(
        st.tuples(
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.none() | st.text(st.characters(codec="utf-8"), max_size=9),
            st.none() | st.binary(max_size=9),
            st.none() | st.floats(allow_nan=False),
        ),
        max_size=12,
    ),
    cuts=st.lists(st.integers(0, 12), max_size=3),
)
def test_any_rows_cut_anywhere_read_back_as_they_were(tmp_path: Path, rows: list[Any], cuts: list[int]) -> None:
    path = tmp_path / "any.db"
    path.unlink(missing_ok=True)
    kinds = [pa.int64(), pa.string(), pa.binary(), pa.float64()]
    arrays = [pa.array([row[place] for row in rows], kind) for place, kind in enumerate(kinds)]
    data = pa.record_batch(arrays, names=["n", "text", "bytes", "x"])
    bounds = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    sink = SqlSink(f"sqlite://{path}", "results")
    sink.expect(data.schema)
    sink.claim(TRACK)
    sink.deliver(1, [data.slice(start, end - start) for start, end in itertools.pairwise(bounds)])
    sink.close()
    assert query(path, "SELECT * FROM results ORDER BY rowid") == rows


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.none() | st.binary(max_size=5), max_size=12), start=st.integers(0, 12), count=st.integers(0, 12)
)
def test_hex_is_as_python_writes_it(values: list[bytes | None], start: int, count: int) -> None:
    array = pa.array(values, pa.binary())
    expected = [None if value is None else "\\x" + value.hex() for value in values]
    assert hex_text(array.slice(start, count)).to_pylist() == expected[start : start + count]


def test_json_of_a_slice_is_that_of_its_values() -> None:
    values = [[1], None, [], [None, 2]]
    texts = json_text(pa.array(values, pa.list_(pa.int64())).slice(1, 3), "list").to_pylist()
    assert texts == [None, "[]", "[null,2]"]
    with pytest.raises(UserError, match=r"column 'spans' of type .*duration"):
        json_text(pa.array([[timedelta(hours=9)]]), "spans")


def test_of_one_key_the_last_row_stays() -> None:
    data = pa.record_batch({"k": [1, 2, 1, 3, 2], "j": ["a", "a", "a", "a", "b"], "v": range(5)})
    assert last_of_each_key(data, ["k"]).column("v").to_pylist() == [2, 3, 4]
    assert last_of_each_key(data, ["k", "j"]).column("v").to_pylist() == [1, 2, 3, 4]
    assert last_of_each_key(data.slice(3), ["k"]).column("v").to_pylist() == [3, 4]


# --- tables that are there


def test_a_table_that_is_there_keeps_what_it_has_and_its_defaults(path: Path) -> None:
    path.parent.mkdir()
    query(path, "CREATE TABLE results (id INTEGER PRIMARY KEY, N INTEGER, source TEXT DEFAULT 'stream')")
    query(path, "INSERT INTO results (n, source) VALUES (0, 'hand')")
    written(SqlSink(f"sqlite://{path}", "results"), pa.record_batch({"n": [1, 2]}))
    assert query(path, "SELECT * FROM results") == [(1, 0, "hand"), (2, 1, "stream"), (3, 2, "stream")]


def test_missing_columns_are_named_before_there_are_rows(path: Path) -> None:
    path.parent.mkdir()
    query(path, "CREATE TABLE results (n INTEGER)")
    sink = SqlSink(f"sqlite://{path}", "results")
    sink.expect(pa.schema([("n", pa.int64()), ("who", pa.string()), ("at", pa.timestamp("ms"))]))
    with pytest.raises(
        UserError, match=r"results of .*results.db has no column who \(string\), at \(timestamp\[ms\]\)"
    ):
        sink.claim(TRACK)
    with pytest.raises(UserError, match="has no column"):
        sink.open()
    sink.close()
    assert query(path, "SELECT name FROM sqlite_master WHERE type = 'table'") == [("results",)]  # no track was claimed


def test_names_are_only_names(path: Path) -> None:
    table, column = 'a "b"; DROP TABLE x; --', "select 'ü'.%s ?"
    for _ in range(2):
        written(SqlSink(f"sqlite://{path}", table), pa.record_batch({column: ["'); DROP TABLE y; --"], "order": [1]}))
    quoted = table.replace('"', '""')
    assert query(path, f'SELECT * FROM "{quoted}"') == [("'); DROP TABLE y; --", 1)] * 2
    with pytest.raises(UserError, match="cannot be the name"):
        SqlSink(f"sqlite://{path}", "")
    with pytest.raises(UserError, match="two columns of one name"):
        written(SqlSink(f"sqlite://{path}", "twice"), pa.record_batch({"n": [1], "N": [2]}))


def test_a_part_whose_columns_do_not_fit_leaves_nothing(path: Path) -> None:
    sink = SqlSink(f"sqlite://{path}", "results")
    sink.claim(TRACK)
    sink.deliver(1, [pa.record_batch({"n": [1]})])
    with pytest.raises(UserError, match="no column other"):
        sink.deliver(2, [pa.record_batch({"n": [2]}), pa.record_batch({"n": [3], "other": [4]})])
    assert sink.claim(TRACK) == Token(1, "first")
    sink.deliver(3, [pa.record_batch({"n": [5]})])
    with pytest.raises(UserError, match=r"above 2\^63"):
        sink.deliver(4, [pa.record_batch({"n": pa.array([1, 2**63], pa.uint64())})])
    sink.close()
    assert query(path, "SELECT n FROM results") == [(1,), (5,)]


# --- agents' results


def test_results_make_a_table_of_the_types_that_they_have(path: Path) -> None:
    sink = SqlSink(f"sqlite://{path}", "results")
    written(
        sink,
        results({"id": "a", "n": 1, "x": 0.5, "ok": True, "tags": ["t"]}, {"id": None, "x": 2}),
        results({"id": "b", "n": 2, "tags": [], "ok": None}, {"tags": None, "id": "3"}),
    )
    assert query(path, "SELECT id, n, x, ok, tags FROM results") == [
        ("a", 1, 0.5, 1, '["t"]'),
        (None, None, 2.0, None, None),
        ("b", 2, None, None, "[]"),
        ("3", None, None, None, None),
    ]


def test_results_are_read_as_the_table_says(path: Path) -> None:
    path.parent.mkdir()
    query(path, "CREATE TABLE results (id INTEGER PRIMARY KEY, text VARCHAR(9), x DOUBLE, b BLOB, d DECIMAL, anything)")
    sink = SqlSink(f"sqlite://{path}", "results")
    written(
        sink,
        results({"text": 'a"\u00fc', "x": 1, "b": "b", "d": 12.50, "anything": 5}, {"text": [1], "anything": 6}),
        results({"text": 7, "d": "8", "anything": "word"}),
        results({"anything": 1}, {"anything": "one"}),
    )
    assert query(path, "SELECT text, x, b, d, anything FROM results") == [
        ('a"ü', 1.0, b"b", 12.5, 5),
        ("[1]", None, None, None, 6),
        ("7", None, None, 8, "word"),
        (None, None, None, None, "1"),
        (None, None, None, None, "one"),
    ]


def test_a_field_without_a_column_is_left_out_and_told_of_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = SqlSink(f"sqlite://{path}", "results", schema=pa.schema([("n", pa.int64())]))
    with caplog.at_level(logging.WARNING):
        written(sink, results({"n": 1, "why": "w"}), results({"n": 2, "why": "w", "x": 1}))
    assert [record.getMessage() for record in caplog.records] == [
        "table results has no column for why of the results: left out"
    ]
    assert query(path, "SELECT * FROM results") == [(1,), (2,)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"n": "two"}, r"row 1 of 3 does not fit: .*n.*; it is b'\{\"n\": \"two\"\}'"),
        ([1], r"row 1 of 3 does not fit: .*object.*; it is b'\[1\]'"),
        (b"{", "row 1 of 3 does not fit"),
        (None, "row 1 of 3 does not fit: .*it is nothing"),
    ],
)
def test_a_result_that_does_not_fit_is_named(path: Path, bad: Any, message: str) -> None:
    sink = SqlSink(f"sqlite://{path}", "results", schema=pa.schema([("n", pa.int64())]))
    sink.claim(TRACK)
    sink.settle(0)
    with pytest.raises(UserError, match=message):
        sink.deliver(1, [results({"n": 1}, bad, {"n": 3})])
    assert query(path, "SELECT * FROM results") == []
    assert sink.claim(TRACK) == Token(0, TRACK.incarnation)
    sink.close()


def test_results_without_a_column_of_the_table_are_an_error(path: Path) -> None:
    sink = SqlSink(f"sqlite://{path}", "results", schema=pa.schema([("n", pa.int64())]))
    with pytest.raises(UserError, match=r"no result has one of its columns \(n\)"):
        written(sink, results({"m": 1}))
    with pytest.raises(UserError, match="rows without a column"):
        written(SqlSink(f"sqlite://{path}", "empty"), results({}, {}))


# --- keys


def test_with_keys_a_row_replaces_the_one_before(path: Path) -> None:
    sink = SqlSink(f"sqlite://{path}", "latest", keys=["account"])
    sink.claim(TRACK)
    sink.deliver(1, [pa.record_batch({"account": ["a", "b", "a"], "n": [1, 2, 3]})])
    sink.deliver(2, [results({"account": "b", "n": 4}), results({"account": "c"})])
    sink.close()
    assert query(path, "SELECT * FROM latest ORDER BY account") == [("a", 3), ("b", 4), ("c", None)]
    only_keys = SqlSink(f"sqlite://{path}", "seen", keys=["account"])
    written(only_keys, pa.record_batch({"account": ["a", "a"]}), pa.record_batch({"account": ["a"]}))
    assert query(path, "SELECT * FROM seen") == [("a",)]


def test_keys_that_cannot_be_are_named(path: Path) -> None:
    path.parent.mkdir()
    data = pa.record_batch({"k": ["a", None], "n": [1, 2]})
    query(path, "CREATE TABLE loose (k TEXT, n INTEGER)")
    query(path, "CREATE UNIQUE INDEX partial ON loose (k) WHERE n > 0")
    with pytest.raises(UserError, match=r"loose of .* has no unique index on k"):
        written(SqlSink(f"sqlite://{path}", "loose", keys=["k"]), data)
    query(path, "CREATE UNIQUE INDEX whole ON loose (K)")
    with pytest.raises(UserError, match="the key 'k' of a row is null"):
        written(SqlSink(f"sqlite://{path}", "loose", keys=["k"]), data)
    with pytest.raises(UserError, match="there is no column z"):
        written(SqlSink(f"sqlite://{path}", "other", keys=["z"]), data)
    with pytest.raises(UserError, match=r"keys=\['k'\]"):
        SqlSink(f"sqlite://{path}", "loose", keys="k")


# --- the file, and others who use it


@pytest.mark.parametrize(
    "url", ["mysql://host/db", "results.db", "sqlite:", "sqlite:///", "sqlite::memory:", "sqlite://host/x.db"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UserError):
        SqlSink(url, "results")


def test_a_path_may_be_relative(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(SqlSink("sqlite:out/results.db", "results"), pa.record_batch({"n": [1]}))
    assert query(path, "SELECT * FROM results") == [(1,)]


def test_a_file_that_is_no_database_and_one_that_cannot_be_made_are_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be taken for the header of one: " * 20)
    with pytest.raises(UserError, match=r"text: .*not a database.*give the path of a database"):
        SqlSink(f"sqlite://{tmp_path}/text", "results").open()
    with pytest.raises(UserError, match="cannot be made"):
        SqlSink(f"sqlite://{tmp_path}/text/inside/x.db", "results").open()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"overwrite": "no"}, r"SqlSink: overwrite='no' \(True or False"),
        ({"evolve": "no"}, "SqlSink: evolve='no'"),
        ({"keys": [1]}, r"SqlSink: keys=\[1\]"),
        ({"schema": {"n": "int64"}}, r"SqlSink: schema=.*pa\.schema\("),
        ({"table": 5}, "SqlSink: table=5"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(path: Path, wrong: dict[str, Any], message: str) -> None:
    """overwrite="no" deleted all rows, as every text but the empty one is true."""
    with pytest.raises(UserError, match=message):
        SqlSink(f"sqlite://{path}", **{"table": "t", **wrong})


def test_a_database_that_another_writes_may_be_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_WAIT_SECONDS", 0.01)
    sink = SqlSink(f"sqlite://{path}", "results")
    sink.claim(TRACK)
    sink.deliver(1, [pa.record_batch({"n": [1]})])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for attempt in (lambda: sink.deliver(2, [pa.record_batch({"n": [2]})]), lambda: sink.claim(TRACK)):
            with pytest.raises(TransientError, match="another process has held it"):
                attempt()
    assert sink.claim(TRACK) == Token(1, "first")
    sink.deliver(2, [pa.record_batch({"n": [2]})])
    sink.close()
    assert query(path, "SELECT * FROM results") == [(1,), (2,)]


def test_a_token_that_somebody_deleted_stops_the_app(path: Path) -> None:
    sink = SqlSink(f"sqlite://{path}", "results")
    sink.claim(TRACK)
    sink.deliver(1, [pa.record_batch({"n": [1]})])
    query(path, "DELETE FROM sabot_tokens")
    for attempt in (lambda: sink.deliver(2, [pa.record_batch({"n": [2]})]), lambda: sink.claim(TRACK)):
        with pytest.raises(UserError, match=r"'sabot.app.sink.1' is gone from sabot_tokens") as caught:
            attempt()
        assert not isinstance(caught.value, AppLocked)
    sink.close()
    assert query(path, "SELECT * FROM results") == [(1,)]


def test_threads_that_claim_one_track_leave_one_owner(path: Path) -> None:
    sinks = [SqlSink(f"sqlite://{path}", "results") for _ in range(4)]
    barrier = threading.Barrier(len(sinks))
    delivered: list[int] = []

    def work(number: int) -> None:
        barrier.wait()
        sinks[number].claim(TRACK)
        barrier.wait()
        with contextlib.suppress(AppLocked):
            sinks[number].deliver(1 + number, [pa.record_batch({"n": [number]})])
            delivered.append(number)
        sinks[number].close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(sinks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert query(path, "SELECT n FROM results") == [(number,) for number in delivered]
    assert len(delivered) == 1


def test_what_was_written_at_least_once_is_there_at_once(path: Path) -> None:
    sink = SqlSink(f"sqlite://{path}", "results")
    sink.open()
    sink.write(Batch(pa.record_batch({"n": [1, 2, 3]})).with_selection(pa.array([0, 2], pa.int32())))
    assert query(path, "SELECT * FROM results") == [(1,), (3,)]
    sink.close()
    with pytest.raises(UserError, match="not open"):
        sink.write(Batch(pa.record_batch({"n": [4]})))


async def test_an_agent_and_a_stream_write_into_tables(path: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"account": f"a{n % 2}", "amount": n}) for n in range(10)]
    (tmp_path / "in.ndjson").write_text("\n".join(lines))
    app = App("tables", checkpoint_dir=tmp_path / "checkpoints")

    @app.agent(NdjsonSource(tmp_path / "in.ndjson"), sink=SqlSink(f"sqlite://{path}", "large"))
    async def large(ctx: Any) -> Any:
        return ctx.message if ctx.message["amount"] > 7 else None

    app.stream(NdjsonSource(tmp_path / "in.ndjson")).select("amount").to(SqlSink(f"sqlite://{path}", "amounts"))
    await app.run()
    assert query(path, "SELECT account, amount FROM large") == [("a0", 8), ("a1", 9)]
    assert query(path, "SELECT amount FROM amounts") == [(n,) for n in range(10)]
