"""Sinks of changes: whatever comes, cut and repeated as it may be, the receiver ends with the table that the changes make."""

import contextlib
import itertools
import json
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sabot import steps
from sabot._cython.arrow.batch import Batch
from sabot.connectors.base import Sink, TakesChanges, Track, expect_changes
from sabot.connectors.files import NdjsonSink, ParquetSink
from sabot.connectors.memory import CountSink, MemoryBroker, MemorySink, TableSink
from sabot.connectors.sql import SqlSink
from sabot.engine.delivery.parts import PartWriter, read_part
from sabot.engine.operators.base import (
    DELETE,
    INSERT,
    OP_COLUMN,
    TIME_COLUMN,
    UPDATE_AFTER,
    UPDATE_BEFORE,
    OperatorContext,
    with_marks,
)
from sabot.engine.operators.sink import SinkWriter
from sabot.errors import UserError
from sabot.testing import ListSink
from tools.postgres import server_or_skip

TRACK = Track("app", "sink.1", "first")
SCHEMA = pa.schema([("region", pa.string()), ("n", pa.int64()), ("day", pa.int32()), ("x", pa.float64())])
KEYS = ("day", "region")

Change = tuple[int, str, int, int, float | None]  # op, region, n, day, x
Rows = set[tuple[Any, ...]]


def batch(changes: Sequence[Change]) -> pa.RecordBatch:
    columns = [pa.array([each[place] for each in changes], SCHEMA.field(place - 1).type) for place in range(1, 5)]
    ops = pa.array([each[0] for each in changes], pa.int8())
    return pa.RecordBatch.from_arrays([*columns, ops], schema=with_marks(SCHEMA, op=True, timed=False))


def table_of(changes: Sequence[Change]) -> Rows:
    """By plain Python."""
    rows: dict[Any, tuple[Any, ...]] = {}
    for op, *row in changes:
        key = row[2], row[0]
        if op in (INSERT, UPDATE_AFTER):
            rows[key] = tuple(row)
        elif op == DELETE:
            rows.pop(key, None)
    return set(rows.values())


class Place:
    """An empty receiver: `sink` makes a new sink for it, `rows` says what is there, read by other means than ours."""

    sink: Callable[[], Sink]
    rows: Callable[[], Rows]


class Topic(Place):
    def __init__(self) -> None:
        self.url = f"memory://{uuid.uuid4().hex}"
        MemoryBroker.get(self.url).create_topic("t", 3)

    def sink(self) -> Sink:
        return MemorySink("t", self.url)

    def rows(self) -> Rows:
        found: dict[bytes | None, Any] = {}
        homes: dict[bytes | None, int] = {}
        for record in MemoryBroker.get(self.url).records("t"):
            assert homes.setdefault(record.key, record.partition) == record.partition
            found[record.key] = record.payload
        rows = {key: json.loads(payload) for key, payload in found.items() if payload is not None}
        for key, row in rows.items():
            assert json.loads(key or b"") == {name: row[name] for name in KEYS}
        return {tuple(row[name] for name in SCHEMA.names) for row in rows.values()}


class Sqlite(Place):
    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{uuid.uuid4().hex}.db"

    def sink(self) -> Sink:
        return SqlSink(f"sqlite://{self.path}", "results")

    def rows(self) -> Rows:
        return set(query(self.path, "SELECT region, n, day, x FROM results"))


class Duck(Sqlite):
    def sink(self) -> Sink:
        return SqlSink(f"duckdb://{self.path}", "results")

    def rows(self) -> Rows:
        with duckdb.connect(self.path) as connection:
            return set(connection.execute("SELECT region, n, day, x FROM results").fetchall())


class Postgres(Place):
    def __init__(self, url: str) -> None:
        self.url, self.table = url, f"t{uuid.uuid4().hex}"

    def sink(self) -> Sink:
        return SqlSink(self.url, self.table)

    def rows(self) -> Rows:
        with psycopg.connect(self.url) as connection:
            return set(connection.execute(f"SELECT region, n, day, x FROM {self.table}").fetchall())  # type: ignore[arg-type]


class InMemory(Place):
    def __init__(self) -> None:
        self.list = ListSink()

    def sink(self) -> Sink:
        return self.list

    def rows(self) -> Rows:
        return {tuple(row.values()) for row in self.list.current}


def query(path: Path, statement: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        found = connection.execute(statement).fetchall()
        connection.commit()
        return found


@pytest.fixture(params=["topic", "sqlite", "duckdb", "postgres", "list"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Place]]:
    """Makes empty receivers."""
    if request.param == "postgres":
        with server_or_skip().database() as url:
            yield lambda: Postgres(url)
    else:
        yield {"topic": Topic, "sqlite": lambda: Sqlite(tmp_path), "duckdb": lambda: Duck(tmp_path), "list": InMemory}[
            request.param
        ]


# A twentieth of a second of a core for each time that DuckDB opens its file.
mostly_without_duckdb = pytest.mark.parametrize(
    "make", ["topic", "sqlite", pytest.param("duckdb", marks=pytest.mark.slow), "postgres", "list"], indirect=True
)


def written(sink: Sink, *batches: pa.RecordBatch) -> None:
    """At least once, as a task does it."""
    sink.expect_changes(SCHEMA, KEYS)
    sink.open()
    for data in batches:
        sink.write(Batch(data))
    sink.flush()
    sink.close()


def staged(sink: Sink, path: Path, *batches: pa.RecordBatch) -> list[pa.RecordBatch]:
    """What the sink is given of a part that went through a file."""
    part = PartWriter(path)
    for data in batches:
        part.write(sink.fitting(data))
    part.close()
    return list(read_part(path))


CHANGES = st.lists(
    st.tuples(
        st.sampled_from([INSERT, UPDATE_AFTER, DELETE]),
        st.sampled_from(["north", "it's", ""]),
        st.integers(-5, 5),
        st.integers(1, 2),
        st.none() | st.sampled_from([0.5, -1.0]),
    ),
    min_size=1,
    max_size=14,
)
CUTS = st.lists(st.integers(0, 14), max_size=3)


def pieces(changes: list[Change], cuts: list[int]) -> list[pa.RecordBatch]:
    bounds = [0, *sorted(min(cut, len(changes)) for cut in cuts), len(changes)]
    whole = batch(changes)
    return [whole.slice(start, end - start) for start, end in itertools.pairwise(bounds)]


FEW = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.mark.one_in(4, "a second of a core each")
@mostly_without_duckdb
@FEW
@given(changes=CHANGES, cuts=CUTS, again=st.integers(0, 3))
def test_changes_cut_anywhere_and_repeated_from_anywhere_make_their_table(
    make: Callable[[], Place], changes: list[Change], cuts: list[int], again: int
) -> None:
    place, batches = make(), pieces(changes, cuts)
    written(place.sink(), *batches)
    assert place.rows() == table_of(changes)
    written(place.sink(), *batches[again:])  # a crash, and the last checkpoint was before these
    assert place.rows() == table_of(changes)


@pytest.mark.one_in(3, "a quarter of a second of a core each")
@mostly_without_duckdb
@FEW
@given(changes=CHANGES, cuts=CUTS)
def test_parts_make_the_table_once_however_often_they_are_given(
    make: Callable[[], Place], tmp_path: Path, changes: list[Change], cuts: list[int]
) -> None:
    place, batches = make(), pieces(changes, cuts)
    track = Track(f"app-{uuid.uuid4().hex}", "sink.1", "first")  # one database has them all
    sink = place.sink()
    sink.expect_changes(SCHEMA, KEYS)
    sink.claim(track)
    parts = {
        7: staged(sink, tmp_path / "7.arrow", *batches[:2]),
        9: staged(sink, tmp_path / "9.arrow", *batches[2:]),
    }
    with contextlib.closing(sink):
        sink.deliver(7, parts[7])
        sink.deliver(9, parts[9])
        assert place.rows() == table_of(changes)
    last = place.sink()  # of the next process, which does not know whether the last part got through
    last.expect_changes(SCHEMA, KEYS)
    last.claim(track)
    last.deliver(9, parts[9])
    assert place.rows() == table_of(changes)
    last.close()


@pytest.mark.one_in(3, "hundredths of a second of a core each")
def test_a_key_that_ends_and_comes_back_within_a_part_stays(make: Callable[[], Place]) -> None:
    place = make()
    sink = place.sink()
    sink.expect_changes(SCHEMA, KEYS)
    sink.claim(TRACK)
    story: list[Change] = [
        (INSERT, "a", 1, 1, None),
        (DELETE, "a", 1, 1, None),
        (INSERT, "a", 2, 1, None),
        (DELETE, "b", 0, 1, None),
        (INSERT, "b", 3, 1, None),
    ]
    sink.deliver(1, [sink.fitting(batch([each])) for each in story])
    sink.close()
    assert place.rows() == {("a", 2, 1, None), ("b", 3, 1, None)}


class Crash(BaseException):
    """The process is gone."""


class CrashAt:
    """Crashes at the step of this number: before it, or when it is done. `count`: of the steps so far."""

    def __init__(self, number: int, after: bool) -> None:
        self.number, self.late, self.count = number, after, 0

    def before(self, name: str, what: str) -> None:
        self.count += 1
        if self.count == self.number and not self.late:
            raise Crash(name)

    def after(self, name: str, what: str) -> None:
        if self.count == self.number and self.late:
            raise Crash(name)

    def torn(self, name: str, what: str, size: int) -> int:
        return size


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize(
    "make", ["topic", "sqlite", pytest.param("duckdb", marks=pytest.mark.slow), "postgres"], indirect=True
)
def test_a_crash_at_any_step_of_a_part_leaves_the_table_of_before_or_of_after(make: Callable[[], Place]) -> None:
    first: list[Change] = [(INSERT, "a", 1, 1, None), (INSERT, "b", 1, 1, None)]
    second: list[Change] = [(DELETE, "a", 1, 1, None), (UPDATE_AFTER, "b", 2, 1, None), (INSERT, "c", 3, 1, 0.5)]

    def deliver(place: Place, seq: int, changes: list[Change], track: Track) -> None:
        with contextlib.closing(place.sink()) as sink:
            sink.expect_changes(SCHEMA, KEYS)
            sink.claim(track)
            sink.deliver(seq, [sink.fitting(batch(changes))])

    for number, after in itertools.product(range(1, 100), [False, True]):
        place, track = make(), Track(f"app-{uuid.uuid4().hex}", "sink.1", "first")
        deliver(place, 1, first, track)
        crash = CrashAt(number, after)
        steps.watch(crash)
        try:
            deliver(place, 2, second, track)
        except Crash:
            steps.watch(None)
            assert place.rows() in (table_of(first), table_of(first + second))
            deliver(place, 2, second, track)
            assert place.rows() == table_of(first + second)
        finally:
            steps.watch(None)
        if crash.count < number:
            assert number > 2
            return
    raise AssertionError("it never came to an end")


def test_a_sink_of_changes_says_so_and_others_name_the_way(tmp_path: Path) -> None:
    assert issubclass(MemorySink, TakesChanges)
    assert issubclass(SqlSink, TakesChanges)
    assert issubclass(ListSink, TakesChanges)
    others = [TableSink(), CountSink("c"), NdjsonSink(tmp_path / "a.ndjson"), ParquetSink(tmp_path / "a.parquet")]
    for sink in others:
        assert not isinstance(sink, TakesChanges)
        with pytest.raises(UserError, match="not changes") as refused:
            expect_changes(sink, SCHEMA, KEYS)
        assert ".materialize()" in str(refused.value.hint)


# -- SinkWriter ---------------------------------------------------------------------------------------------------------------


def writer(
    sink: Sink, changes: tuple[str, ...] | None = KEYS, key: str | None = None, expected: Any = None
) -> SinkWriter:
    return SinkWriter(sink, key, expected, lambda: 5, changes)


def test_the_writer_leaves_out_what_was_before_and_event_time() -> None:
    sink = ListSink()
    context = OperatorContext(with_marks(SCHEMA, op=True, timed=True))
    operator = writer(sink)
    operator.open(context)
    changes: list[Change] = [
        (INSERT, "north", 1, 1, None),
        (UPDATE_BEFORE, "north", 1, 1, None),
        (UPDATE_AFTER, "north", 2, 1, 0.5),
        (DELETE, "north", 2, 1, 0.5),
    ]
    timed = batch(changes).append_column(TIME_COLUMN, pa.array([1, 2, 3, 4]))
    operator.process(Batch(timed.slice(0, 1)))
    operator.process(Batch(timed).with_selection(pa.array([1, 2], pa.int32())))
    operator.flush()
    assert [row[OP_COLUMN] for row in sink.rows] == [INSERT, UPDATE_AFTER]
    assert sink.rows[1] == {"region": "north", "n": 2, "day": 1, "x": 0.5, OP_COLUMN: UPDATE_AFTER}
    assert sink.current == [{"region": "north", "n": 2, "day": 1, "x": 0.5}]
    assert operator.statistics() == {"sink": "list", "rows_out": 2}
    operator.process(Batch(timed.slice(3)))
    operator.finish()
    assert sink.current == []
    assert sink.table().schema == with_marks(SCHEMA, op=True, timed=False)


def test_a_row_that_a_filter_lets_go_ends_though_its_update_is_not_there() -> None:
    """The story: of an update, upsert(…).filter(…) lets only the row of before through, and the sink kept it for ever."""
    sink = ListSink()
    operator = writer(sink)
    operator.open(OperatorContext(with_marks(SCHEMA, op=True, timed=False)))
    pairs: list[Change] = [
        (INSERT, "a", 1, 1, None),
        (INSERT, "b", 1, 1, None),
        (UPDATE_BEFORE, "a", 1, 1, None),
        (UPDATE_AFTER, "a", 9, 1, None),  # is filtered
        (UPDATE_BEFORE, "b", 1, 1, None),  # so is this
        (UPDATE_AFTER, "b", 2, 1, None),
        (UPDATE_BEFORE, "b", 2, 1, None),
    ]
    operator.process(Batch(batch(pairs)).with_selection(pa.array([0, 1, 2, 5], pa.int32())))
    operator.flush()
    assert [(row["region"], row[OP_COLUMN]) for row in sink.rows] == [("a", 0), ("b", 0), ("a", 3), ("b", 2)]
    operator.process(Batch(batch(pairs[-1:])))
    operator.flush()
    assert sink.current == []


@pytest.mark.parametrize("expected", [None, SCHEMA, with_marks(SCHEMA, op=True, timed=False)])
def test_the_writer_tells_the_sink_the_columns_that_users_see(expected: pa.Schema | None, tmp_path: Path) -> None:
    operator = writer(SqlSink(f"sqlite://{tmp_path}/t.db", "t"), expected=expected)
    operator.open(OperatorContext(with_marks(SCHEMA, op=True, timed=True)))
    operator.flush()
    operator.close()
    assert [(name, place) for _, name, *_, place in query(tmp_path / "t.db", "PRAGMA table_info(t)")] == [
        ("region", 2),
        ("n", 0),
        ("day", 1),
        ("x", 0),
    ]


def test_the_writer_refuses_keys_that_do_not_tell_rows_apart() -> None:
    context = OperatorContext(with_marks(SCHEMA, op=True, timed=False))
    with pytest.raises(UserError, match="day, region, not 'region'") as refused:
        writer(ListSink(), key="region").open(context)
    assert "upsert('region')" in str(refused.value.hint)
    with pytest.raises(UserError, match="'regin'") as refused:
        writer(ListSink(), ("regin",)).open(context)
    assert "region, n, day, x" in str(refused.value.hint)
    with pytest.raises(UserError, match="not changes"):
        writer(TableSink()).open(context)
    writer(ListSink(), ("region",), key="region").open(context)  # said twice


def test_rows_without_their_key_are_refused_before_they_are_in_a_checkpoint(tmp_path: Path, memory_url: str) -> None:
    bad = batch([(INSERT, "north", 1, 1, None)]).set_column(0, SCHEMA.field(0), pa.array([None], pa.string()))
    for sink in (SqlSink(f"sqlite://{tmp_path}/t.db", "t"), MemorySink("t", memory_url)):
        operator = writer(sink)
        operator.open(OperatorContext(bad.schema))
        with pytest.raises(UserError, match="the key 'region' of a row is null") as refused:
            operator.process(Batch(bad))
        assert sink.name in str(refused.value)
        operator.close()
        sink.claim(TRACK)
        with pytest.raises(UserError, match="the key 'region' of a row is null"):
            sink.fitting(bad)
        sink.close()


def test_nan_is_no_key_and_is_said_to_be_nan(tmp_path: Path, memory_url: str) -> None:
    nan = pa.array([float("nan")])
    bad = batch([(INSERT, "north", 1, 1, None)]).set_column(0, SCHEMA.field(0).with_type(nan.type), nan)
    for sink in (SqlSink(f"sqlite://{tmp_path}/t.db", "t"), MemorySink("t", memory_url)):
        operator = writer(sink)
        operator.open(OperatorContext(bad.schema))
        with pytest.raises(UserError, match=r"the key 'region' of a row is NaN.*col\('region'\)\.is_not_nan\(\)"):
            operator.process(Batch(bad))
        operator.close()


# -- topics -----------------------------------------------------------------------------------------------------------------


def test_a_change_is_a_record_with_the_key_and_a_deletion_a_tombstone(memory_url: str) -> None:
    sink = MemorySink("t", memory_url)
    sink.expect_changes(SCHEMA, ["region"])
    sink.open()
    sink.write(
        Batch(batch([(INSERT, "it's", 1, 1, None), (UPDATE_AFTER, "it's", 2, 1, 0.5), (DELETE, "it's", 2, 1, 0.5)]))
    )
    sink.close()
    assert [(record.key, record.payload) for record in MemoryBroker.get(memory_url).records("t")] == [
        (b"it's", b'{"region":"it\'s","n":1,"day":1,"x":null}'),
        (b"it's", b'{"region":"it\'s","n":2,"day":1,"x":0.5}'),
        (b"it's", None),
    ]


def test_the_row_of_a_result_without_a_key_has_an_empty_key(memory_url: str) -> None:
    sink = MemorySink("t", memory_url)
    sink.expect_changes(SCHEMA, [])
    sink.open()
    sink.write(Batch(batch([(INSERT, "a", 1, 1, None), (DELETE, "a", 2, 1, 0.5)])))
    sink.close()
    records = MemoryBroker.get(memory_url).records("t")
    assert [(record.key, record.payload is None) for record in records] == [(b"{}", False), (b"{}", True)]


# -- tables -----------------------------------------------------------------------------------------------------------------


def test_a_table_of_a_database_needs_the_key_of_the_changes(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/t.db"
    with pytest.raises(UserError, match="the unique key of the rows is day, region") as refused:
        SqlSink(url, "t", keys=["region"]).expect_changes(SCHEMA, KEYS)
    assert "upsert('region')" in str(refused.value.hint)
    with pytest.raises(UserError, match="without a key"):
        SqlSink(url, "t").expect_changes(SCHEMA, ())
    query(tmp_path / "t.db", "CREATE TABLE t (region TEXT, n INTEGER, day INTEGER, x REAL)")
    sink = SqlSink(url, "t")
    sink.expect_changes(SCHEMA, KEYS)
    with pytest.raises(UserError, match="no unique index on day, region"):
        sink.open()
    query(tmp_path / "t.db", "CREATE UNIQUE INDEX i ON t (region, day)")
    written(SqlSink(url, "t", keys=["region", "day"]), batch([(INSERT, "a", 1, 1, None)]))
    assert query(tmp_path / "t.db", "SELECT * FROM t") == [("a", 1, 1, None)]


def test_what_stands_beside_the_changes_in_the_table_stays(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    query(path, "CREATE TABLE t (region TEXT, day INTEGER, n INTEGER, x REAL, note TEXT, PRIMARY KEY (region, day))")
    query(path, "INSERT INTO t VALUES ('a', 1, 1, 1.0, 'mine'), ('b', 1, 1, 1.0, 'mine')")
    sink = SqlSink(f"sqlite://{path}", "t")
    written(sink, batch([(UPDATE_AFTER, "a", 2, 1, None), (DELETE, "a", 0, 2, None), (INSERT, "c", 3, 1, None)]))
    assert query(path, "SELECT region, n, note FROM t ORDER BY region") == [
        ("a", 2, "mine"),
        ("b", 1, "mine"),
        ("c", 3, None),
    ]


@pytest.mark.parametrize("make", ["sqlite", "postgres"], indirect=True)
def test_a_value_that_must_be_unique_moves_from_the_row_that_goes_to_the_one_that_comes(
    make: Callable[[], Place],
) -> None:
    place = make()
    assert isinstance(place, Sqlite | Postgres)
    sink = place.sink()
    written(sink, batch([(INSERT, "a", 5, 1, None)]))
    if isinstance(place, Sqlite):
        query(place.path, "CREATE UNIQUE INDEX u ON results (n)")
    else:
        with psycopg.connect(place.url) as connection:
            connection.execute(f"CREATE UNIQUE INDEX ON {place.table} (n)")  # type: ignore[arg-type]
    written(sink, batch([(DELETE, "a", 5, 1, None), (INSERT, "b", 5, 1, None)]))
    assert place.rows() == {("b", 5, 1, None)}


def test_a_part_of_changes_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    place = Sqlite(tmp_path)
    sink = place.sink()
    wide = SCHEMA.set(1, pa.field("n", pa.uint64()))
    sink.expect_changes(wide, KEYS)
    sink.claim(TRACK)
    marked = with_marks(wide, op=True, timed=False)
    sink.deliver(1, [batch([(INSERT, "a", 1, 1, None), (INSERT, "b", 1, 1, None)]).cast(marked)])
    rows = batch([(DELETE, "a", 1, 1, None), (UPDATE_AFTER, "b", 2, 1, None)]).cast(marked)
    huge = (
        batch([(INSERT, "c", 0, 1, None)]).cast(marked).set_column(1, wide.field(1), pa.array([2**64 - 1], pa.uint64()))
    )
    with pytest.raises(UserError, match="above"):
        sink.deliver(2, [rows, huge])
    assert place.rows() == {("a", 1, 1, None), ("b", 1, 1, None)}
    sink.claim(TRACK)
    sink.deliver(3, [rows])
    assert place.rows() == {("b", 2, 1, None)}
    sink.close()


def test_parts_from_before_the_program_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    changes = SqlSink(f"sqlite://{path}", "t")
    changes.expect_changes(SCHEMA, KEYS)
    changes.claim(TRACK)
    changes.deliver(1, [batch([(INSERT, "a", 1, 1, None)]).select(SCHEMA.names)])  # it wrote rows that were final
    assert query(path, "SELECT region FROM t") == [("a",)]
    changes.close()
    final = SqlSink(f"sqlite://{path}", "t", keys=KEYS)
    final.expect(SCHEMA)
    final.claim(TRACK)
    with pytest.raises(UserError, match="the checkpoint has changes, but the rows of this program are final"):
        final.deliver(2, [batch([(DELETE, "a", 1, 1, None)])])


def test_a_table_of_nothing_but_its_key(tmp_path: Path) -> None:
    sink = SqlSink(f"sqlite://{tmp_path}/t.db", "t")
    sink.expect_changes(pa.schema([SCHEMA.field("region")]), ["region"])
    sink.open()
    rows = pa.record_batch(
        [pa.array(["a", "b", "a", "b"]), pa.array([INSERT, INSERT, UPDATE_AFTER, DELETE], pa.int8())],
        names=["region", OP_COLUMN],
    )
    sink.write(Batch(rows))
    sink.write(Batch(rows))
    sink.close()
    assert query(tmp_path / "t.db", "SELECT * FROM t") == [("a",)]


def test_a_list_of_final_rows_has_no_current_ones() -> None:
    sink = ListSink()
    with pytest.raises(UserError, match="its input has no changes"):
        _ = sink.current


TIMES = pa.timestamp("ns")
FOLDED = [  # database, type of the key, values of keys: those in one list are equal in the database
    ("postgres", "char(3)", pa.string(), [["a", "a "], ["b"]]),
    ("postgres", "text COLLATE folded", pa.string(), [["a", "A"], ["b"]]),
    ("postgres", "uuid", pa.string(), [["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc999c0b4ef8bb6d6bb9bd380a11"]]),
    ("postgres", "numeric(5,1)", pa.decimal128(5, 2), [[Decimal("1.24"), Decimal("1.20")], [Decimal("1.30")]]),
    ("postgres", "timestamp", TIMES, [[1, 2], [2000]]),
    ("postgres", "real", pa.float64(), [[2.0**24, 2.0**24 + 1], [1.0]]),
    ("sqlite", "TEXT COLLATE NOCASE", pa.string(), [["a", "A"], ["b"]]),
    ("sqlite", "VARCHAR COLLATE RTRIM", pa.string(), [["a", "a "], ["b"]]),
    ("sqlite", "NUMERIC", pa.string(), [["1", "01"], ["2"]]),
    ("sqlite", "REAL", pa.string(), [["1", "1.0"], ["2"]]),
    ("duckdb", "UUID", pa.string(), [["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc999c0b4ef8bb6d6bb9bd380a11"]]),
    ("duckdb", "DOUBLE", pa.float64(), [[0.0, -0.0], [1.0]]),
]


@pytest.mark.one_in(12, "some hundredths of a second of a core each")
@pytest.mark.parametrize(("database", "declared", "kind", "keys"), FOLDED, ids=[f"{a} {b}" for a, b, _, _ in FOLDED])
def test_keys_that_are_equal_only_in_the_database_are_one_key_however_batches_are_cut(
    tmp_path: Path, database: str, declared: str, kind: pa.DataType, keys: list[list[Any]]
) -> None:
    """An insertion behind which the other key was deleted stayed if both were in one batch, and was deleted else."""
    names = [(key, number) for number, equal in enumerate(keys) for key in equal]
    schema = pa.schema([("k", kind), ("n", pa.int64())])
    random = Random(7)
    with contextlib.ExitStack() as stack:
        url = f"{database}://{tmp_path}/t.db"
        if database == "postgres":
            url = stack.enter_context(server_or_skip().database())

        def run(statement: str) -> list[Any]:
            if database == "sqlite":
                return query(tmp_path / "t.db", statement)
            if database == "duckdb":
                with duckdb.connect(tmp_path / "t.db") as opened:
                    return opened.execute(statement).fetchall()
            with psycopg.connect(url, autocommit=True) as connection:
                cursor = connection.execute(statement)  # type: ignore[arg-type]
                return cursor.fetchall() if cursor.description else []

        if database == "postgres":
            run("CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
        run(f"CREATE TABLE t (k {declared} PRIMARY KEY, n bigint)")
        for _ in range(12):
            changes = [(random.choice([INSERT, DELETE]), *random.choice(names), n) for n in range(8)]
            expected: dict[int, int] = {}
            for op, _, number, n in changes:
                expected.pop(number, None)
                if op == INSERT:
                    expected[number] = n
            ops, given, _, numbers = zip(*changes, strict=True)
            columns = [pa.array(given, pa.int64()).view(kind) if kind == TIMES else pa.array(given, kind), numbers, ops]
            whole = pa.record_batch(columns, schema=with_marks(schema, op=True, timed=False))
            cut = random.choice([0, 0, random.randrange(8)])
            sink = SqlSink(url, "t")
            sink.expect_changes(schema, ["k"])
            sink.open()
            for data in (whole.slice(0, cut), whole.slice(cut)):
                sink.write(Batch(data))
            sink.close()
            assert {n for (n,) in run("SELECT n FROM t")} == set(expected.values()), changes
            run("DELETE FROM t")
