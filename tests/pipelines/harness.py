"""What the differential tests of streams are made of: data, a source that splits it as it is told, a sink that forgets
what was not flushed, the answers by plain Python, and the circumstances under which a program runs.
"""

import asyncio
import datetime
import json
import math
import random
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from sabot import App, Batch, Sink, Source, Stream, UserError, files
from sabot.connectors.base import Bounded, Positions, Scans
from sabot.testing import BARRIER, CRASH, END, ListSink, MemoryBroker, ScriptedSource
from sabot.testing import run as run_lives

LATENESS_MS = 5_000
PATIENCE_S = 180.0
INT64_MAX, INT64_MIN = 2**63 - 1, -(2**63)

SCHEMA = pa.schema(
    [
        ("n", pa.int64()),  # the number of the row
        ("ts", pa.int64()),  # event time, ms; no two rows have the same
        ("at", pa.timestamp("ms", "UTC")),  # the same time
        ("k", pa.string()),  # a key of few values, one of them hot
        ("i", pa.int64()),  # a key and a value: small, the extremes, null
        ("f", pa.float64()),  # NaN, infinities, both zeros, null
        ("g", pa.float64()),  # the largest, the smallest: not for sums
        ("amount", pa.float64()),  # multiples of 1/64
        ("r", pa.int64()),  # a permutation, with nulls
        ("b", pa.bool_()),
        ("s", pa.string()),
    ]
)

EVENTS = pa.schema(
    [
        ("n", pa.int64()),  # the number of the row
        ("ts", pa.int64()),  # event time, ms; many rows have the same
        ("k", pa.string()),  # a key of some ten values, one of them hot, null too
        ("j", pa.int64()),  # a key of few values, null too
        ("x", pa.int64()),  # small, null too
        ("v", pa.float64()),  # multiples of 1/64, null too
        ("f", pa.float64()),  # NaN, infinities, both zeros
        ("s", pa.string()),
    ]
)

Row = dict[str, Any]


# -- data -----------------------------------------------------------------------------------------------------------------


def make_table(kind: str, seed: int = 0) -> pa.Table:
    """Generated rows in the order in which they arrive; event time is out of order by less than LATENESS_MS.

    kind: plain, empty, one, old (before 1970 and across it), large, hot (nearly all rows of one key), huge (long strings), sparse
    (gaps in which many windows are empty).
    """
    rng = random.Random(f"{kind} {seed}")
    rows = {"plain": 240, "empty": 0, "one": 1, "old": 160, "large": 700, "hot": 250, "huge": 30, "sparse": 80}[kind]
    start = -200_000 if kind == "old" else 1_700_000_000_000
    step = {"sparse": 40_000, "large": 150}.get(kind, 1000)
    moments = rng.sample(range(rows * step + 1), rows)  # all different
    moments.sort()
    # each row arrives up to LATENESS_MS after its time, in the order of arrival: never later than the lateness
    arrivals = sorted((moment + rng.randrange(LATENESS_MS), moment) for moment in moments)
    times = [start + moment for _, moment in arrivals]
    keys = ["a", "b", "c", "Ω", "", None, "d e", "🙂" * 3]
    weights = [200 if kind == "hot" else 20, 3, 3, 2, 1, 2, 1, 1]
    strings = [
        "",
        "x",
        "Straße",
        "a,b,c",
        'say "hi"',
        "line\nbreak",
        "日本語",
        "e\u0301",
        "🙂🙃",
        " padded ",
        "\\n",
        None,
    ]
    extremes = [INT64_MAX, INT64_MIN, 0, -1, None, INT64_MAX - 1, 2**53 + 1]
    floats = [math.nan, math.inf, -math.inf, 0.0, -0.0, None]
    edges = [*floats, 1.7976931348623157e308, -1e308, 5e-324, -5e-324, 0.1]
    order: list[int | None] = list(range(rows))
    rng.shuffle(order)
    columns: dict[str, list[Any]] = {
        "n": list(range(rows)),
        "ts": times,
        "at": times,
        "k": rng.choices(keys, weights, k=rows),
        "i": [rng.choice(extremes) if rng.random() < 0.2 else rng.randrange(-4, 5) for _ in range(rows)],
        "f": [rng.choice(floats) if rng.random() < 0.3 else rng.randrange(-200, 200) / 8 for _ in range(rows)],
        "g": rng.choices(edges, k=rows),
        "amount": [None if rng.random() < 0.1 else rng.randrange(-64_000, 640_000) / 64 for _ in range(rows)],
        "r": [None if rng.random() < 0.1 else each for each in order],
        "b": rng.choices([True, False, None], k=rows),
        "s": rng.choices(strings, k=rows),
    }
    if kind == "huge":
        columns["s"] = [
            rng.choice("äz🙂") * 33_000 + str(i % 3) if i % 7 == 3 else each for i, each in enumerate(columns["s"])
        ]
    return pa.table([pa.array(columns[f.name], f.type) for f in SCHEMA], schema=SCHEMA)


def make_events(kind: str, seed: int = 0) -> pa.Table:
    """Rows for programs over several streams, in the order of arrival, out of order by less than LATENESS_MS; times are often equal.

    kind: plain, empty, one, old (across 1970), hot (nearly all rows of one key), sparse (much time between rows), apart (no row of
    the first stream has the time of one of the second, nor lies halfway between two), distinct (no two rows have the same time).
    """
    rng = random.Random(f"events {kind} {seed}")
    rows = {"plain": 240, "empty": 0, "one": 1, "old": 200, "hot": 120, "sparse": 100, "apart": 200, "distinct": 240}[
        kind
    ]
    start = -60_000 if kind == "old" else 1_700_000_000_000
    step = {"sparse": 20_000}.get(kind, 500)
    moments = [rng.randrange(rows or 1) * step for _ in range(rows)]
    if kind == "distinct":
        moments = rng.sample(range(rows * step), rows)
    arrivals = sorted((moment + rng.randrange(LATENESS_MS - 200), moment) for moment in moments)
    keys = [*"abcdefgh", "Ω", "", None]
    weights = [120 if kind == "hot" else 12, *[3] * 9, 2]
    floats = [math.nan, math.inf, -math.inf, 0.0, -0.0]
    columns: dict[str, list[Any]] = {
        "n": list(range(rows)),
        "ts": [
            start + moment + (100 if kind == "apart" and i % 2 == 0 else 0) for i, (_, moment) in enumerate(arrivals)
        ],
        "k": rng.choices(keys, weights, k=rows),
        "j": [rng.choice([None, 0, 1, 1, 2, 3, -7]) for _ in range(rows)],
        "x": [rng.choice([None, *range(-3, 6)]) for _ in range(rows)],
        "v": [None if rng.random() < 0.1 else rng.randrange(-640, 6400) / 64 for _ in range(rows)],
        "f": [rng.choice(floats) if rng.random() < 0.2 else rng.randrange(-20, 20) / 8 for _ in range(rows)],
        "s": rng.choices(["", "x", "Straße", "日本語", None, "y" * 40], k=rows),
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in EVENTS], schema=EVENTS)


def as_text_allows(table: pa.Table, kind: str) -> pa.Table:
    """The rows that NDJSON (and CSV) can say: no NaN, no infinities; in CSV no empty strings and no line breaks either."""
    rows = table.drop(["at"]).to_pylist()
    for row in rows:
        for name in ("f", "g"):
            if row[name] is not None and not math.isfinite(row[name]):
                row[name] = None
        for name in ("k", "s"):
            if kind == "csv" and row[name] is not None:
                row[name] = row[name].replace("\n", "|") or "-"
    return pa.Table.from_pylist(rows, schema=pa.schema([f for f in SCHEMA if f.name != "at"]))


def every(table: pa.Table, first: int, step: int) -> pa.Table:
    """Each `step`th row from the first on."""
    return table.take(pa.array(range(first, table.num_rows, step), pa.int64()))


def rows_of(table: pa.Table) -> list[Row]:
    """Rows as dicts; timestamps as ms."""
    for place, each in enumerate(table.schema):
        if pa.types.is_timestamp(each.type):
            table = table.set_column(
                place, each.name, table.column(place).cast(pa.timestamp("ms", "UTC")).cast(pa.int64())
            )
    return table.to_pylist()


# -- the source and the sink ----------------------------------------------------------------------------------------------


class Gate:
    """Lets each partition of a source go on to some share of its rows, and knows when all of them stand there."""

    def __init__(self, share: float = 1.0) -> None:
        self.share = share
        self.changed = threading.Condition()
        self.places: dict[tuple[str, int], tuple[int, int]] = {}  # where each partition is, and how many rows it has

    def limit(self, rows: int) -> int:
        return rows if self.share >= 1 else int(rows * self.share)

    def open_to(self, share: float) -> None:
        with self.changed:
            self.share = share
            self.changed.notify_all()

    def reached(self, partitions: int) -> bool:
        places = list(self.places.values())
        return len(places) == partitions and all(at >= self.limit(rows) for at, rows in places)


class Rows(Source, Bounded, Scans):
    """A table as a bounded source of decoded batches: partitions, and splits from a seed."""

    def __init__(
        self,
        table: pa.Table,
        *,
        partitions: int = 1,
        split: str = "all",
        seed: int = 0,
        gate: Gate | None = None,
        name: str = "rows",
    ) -> None:
        self.name = name
        self.split = split
        self.seed = seed
        self.gate = gate
        self.parts = {p: every(table, p, partitions).combine_chunks() for p in range(partitions)}
        self.names: list[str] = table.column_names
        self.rows_read = 0
        self.opened = False

    def readers(self, count: int) -> "Sequence[Source]":
        shares = [dict(list(self.parts.items())[i::count]) for i in range(count)]
        readers = []
        for number, share in enumerate(each for each in shares if each):
            reader = Rows.__new__(Rows)
            reader.__dict__.update(self.__dict__)
            reader.parts = share
            reader.seed = self.seed * 31 + number
            readers.append(reader)
        return readers

    def scan(self, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
        wanted = list(schema.names if schema is not None else self.names) if columns is None else list(columns)
        if unknown := [name for name in wanted if name not in self.names]:
            raise UserError(f"{self.name} has no column {unknown}")
        self.parts = {p: part.select(wanted) for p, part in self.parts.items()}
        return True

    def infer_schema(self) -> pa.Schema:
        return self._any_part().schema

    @property
    def schema(self) -> pa.Schema:
        return self._any_part().schema

    def _any_part(self) -> pa.Table:
        return next(iter(self.parts.values()))

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        assert not self.opened, "a source is opened once"
        self.opened = True
        self.random = random.Random(self.seed)
        self.next = {p: (positions or {}).get((self.name, p), 0) for p in self.parts}
        for p, at in self.next.items():
            assert 0 <= at <= self.parts[p].num_rows
            self._note(p)

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        ready = self._ready()
        if not ready and self.gate is not None and not self.exhausted:
            with self.gate.changed:
                if not (ready := self._ready()):
                    self.gate.changed.wait(timeout)
                    ready = self._ready()
        if not ready:
            return None
        p = self.random.choice(ready)
        at, limit = self.next[p], self._limit(p)
        rows = min(self._size(), max_rows, limit - at)
        self.next[p] += rows
        self._note(p)
        self.rows_read += rows
        data = self.parts[p].slice(at, rows)
        if self.random.random() < 0.3:
            data = pa.Table.from_batches(
                [pa.RecordBatch.from_pylist(data.to_pylist(), schema=data.schema)]
            )  # offsets begin at 0
        chunks = data.combine_chunks().to_batches()
        batch = chunks[0] if chunks else pa.RecordBatch.from_pylist([], schema=data.schema)
        return Batch(batch, {(self.name, p): at + rows}, self.name)

    def _ready(self) -> list[int]:
        return [p for p in self.parts if self.next[p] < self._limit(p)]

    def _note(self, p: int) -> None:
        if self.gate is not None:
            self.gate.places[self.name, p] = (self.next[p], self.parts[p].num_rows)

    def _limit(self, p: int) -> int:
        rows = self.parts[p].num_rows
        return rows if self.gate is None else self.gate.limit(rows)

    def _size(self) -> int:
        if self.split == "mixed":
            return self.random.choice([0, 1, 2, 7, 30, 300])
        return {"one": 1, "seven": 7, "thousand": 1000, "all": 10**9}[self.split]

    @property
    def exhausted(self) -> bool:
        return self.opened and all(self.next[p] >= part.num_rows for p, part in self.parts.items())

    def positions(self) -> Positions:
        return {(self.name, p): at for p, at in self.next.items()}

    def close(self) -> None:
        """Nothing to let go of."""


class Kept(Sink):
    """Keeps what was flushed, in the order in which it came; what was not is lost by `crash`, as in a process that dies."""

    def __init__(self, name: str = "kept", landed: list[pa.RecordBatch] | None = None) -> None:
        self.name = name
        self.landed: list[pa.RecordBatch] = [] if landed is None else landed
        self.schema: pa.Schema | None = None
        self.lock = threading.Lock()
        self.waiting: list[pa.RecordBatch] = []
        self.dead = False

    def expect(self, schema: pa.Schema) -> None:
        self.schema = schema

    def open(self) -> None:
        self.waiting = []

    def write(self, batch: Batch) -> None:
        with self.lock:
            self.waiting.append(batch.taken())

    def flush(self) -> None:
        with self.lock:
            if not self.dead:
                self.landed += self.waiting
            self.waiting = []

    def close(self) -> None:
        """What is flushed stays."""

    def crash(self) -> None:
        """From here on nothing lands."""
        with self.lock:
            self.dead = True
            self.waiting = []

    def again(self) -> "Kept":
        """The sink of the next process: what landed is there."""
        return Kept(self.name, self.landed)

    def table(self) -> pa.Table:
        if self.schema is None and not self.landed:
            return pa.table({})
        return pa.Table.from_batches(self.landed, schema=self.schema or self.landed[0].schema)


async def until(ready: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Waits for a condition; an error names it after PATIENCE_S."""
    deadline = time.monotonic() + patience_s
    while not ready():
        assert time.monotonic() < deadline, f"waited {patience_s} s for {what}"
        await asyncio.sleep(0.001)


# -- the answers ----------------------------------------------------------------------------------------------------------


@cache
def database() -> duckdb.DuckDBPyConnection:
    """Whose cursors answer all programs: to open one takes ten times as long as most answers."""
    return duckdb.connect(config={"threads": 1})


@dataclass(frozen=True)
class Program:
    """What a user writes, and its answer over all rows at once.

    build: streams -> Stream. oracle: SQL over the table `t`, or a function of the rows. arrival: the answer depends on the order in
    which rows come, so there is one partition. sources: how many streams the rows are dealt to. near: columns of floats that
    need not be exact. columns: that it reads and a text file has not.
    """

    name: str
    build: Callable[..., Stream]
    oracle: str | Callable[[list[Row]], list[Row]]
    arrival: bool = False
    sources: int = 1
    near: tuple[str, ...] = ()
    binary: bool = False
    time: str = "ts"

    def answer(self, table: pa.Table) -> list[Row]:
        if isinstance(self.oracle, str):
            with database().cursor() as connection:
                connection.register("t", table)
                return rows_of(connection.sql(self.oracle).to_arrow_table())
        return self.oracle(rows_of(table))


@dataclass(frozen=True)
class Joined(Program):
    """A program over several streams (or one) of `make_events`.

    oracle: SQL over the tables `a`, `b`, …, one for each stream, or a function of as many lists of rows. changes: the result is
    changes. key: of its columns, unique. data: the kinds of tables it is asked of.
    """

    sources: int = 2
    changes: bool = False
    key: tuple[str, ...] = ()
    data: tuple[str, ...] = ("plain", "old", "hot", "sparse", "one", "empty")

    def answer(self, table: pa.Table) -> list[Row]:
        parts = deal(self, table)
        if not isinstance(self.oracle, str):
            return self.oracle(*map(rows_of, parts))  # type: ignore[call-arg]
        with database().cursor() as connection:
            for name, part in zip("abcd", parts, strict=False):
                connection.register(name, part)
            return rows_of(connection.sql(self.oracle).to_arrow_table())

    def logged(self) -> "Joined":
        """The same, as the log of its changes."""
        return replace(self, build=lambda *given: self.build(*given).changelog()) if self.changes else self

    def materialized(self) -> "Joined":
        """The same, its rows at the end."""
        return replace(self, build=lambda *given: self.build(*given).materialize())


Span = tuple[int, int]


def tumbles(size: int, offset: int = 0) -> Callable[[int], list[Span]]:
    return hops(size, size, offset)


def hops(size: int, slide: int, offset: int = 0) -> Callable[[int], list[Span]]:
    def spans(ts: int) -> list[Span]:
        last = (ts - offset) // slide * slide + offset
        return [(start, start + size) for start in range(last, ts - size, -slide)]

    return spans


def accumulates(size: int, step: int, offset: int = 0) -> Callable[[int], list[Span]]:
    def spans(ts: int) -> list[Span]:
        start = (ts - offset) // size * size + offset
        return [(start, end) for end in range(start + step, start + size + 1, step) if ts < end]

    return spans


def by_key(rows: Iterable[Row], keys: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(plain(row[key], zeros_equal=True) for key in keys), []).append(row)
    return groups


def windowed(
    keys: Sequence[str], spans: Callable[[int], list[Span]], time: str = "ts", **aggregates: Callable[[list[Row]], Any]
) -> Callable[[list[Row]], list[Row]]:
    """The naive window: each row into each of its windows, each aggregate over the list of them."""

    def answer(rows: list[Row]) -> list[Row]:
        out = []
        for group in by_key(rows, keys).values():
            windows: dict[Span, list[Row]] = {}
            for row in group:
                for span in spans(row[time]):
                    windows.setdefault(span, []).append(row)
            out += [_result(keys, span, members, aggregates, time) for span, members in windows.items()]
        return out

    return answer


def sessions(
    keys: Sequence[str], gap: int, **aggregates: Callable[[list[Row]], Any]
) -> Callable[[list[Row]], list[Row]]:
    def answer(rows: list[Row]) -> list[Row]:
        out = []
        for group in by_key(rows, keys).values():
            group = sorted(group, key=lambda row: row["ts"])
            members: list[Row] = []
            for row, following in zip(group, [*group[1:], None], strict=True):
                members.append(row)
                if following is None or following["ts"] - row["ts"] >= gap:
                    out.append(_result(keys, (members[0]["ts"], row["ts"] + gap), members, aggregates, "ts"))
                    members = []
        return out

    return answer


def counted(
    keys: Sequence[str], size: int, **aggregates: Callable[[list[Row]], Any]
) -> Callable[[list[Row]], list[Row]]:
    def answer(rows: list[Row]) -> list[Row]:
        out = []
        for group in by_key(rows, keys).values():
            for begin in range(0, len(group), size):
                members = group[begin : begin + size]
                times = [row["ts"] for row in members]
                out.append(_result(keys, (min(times), max(times) + 1), members, aggregates, "ts"))
        return out

    return answer


def running(keys: Sequence[str], **aggregates: Callable[[list[Row]], Any]) -> Callable[[list[Row]], list[Row]]:
    def answer(rows: list[Row]) -> list[Row]:
        out = []
        for group in by_key(rows, keys).values():
            for end in range(1, len(group) + 1):
                so_far = sorted(group[:end], key=lambda row: row["ts"])
                out.append(
                    {**{key: group[0][key] for key in keys}, **{name: of(so_far) for name, of in aggregates.items()}}
                )
        return out

    return answer


def _result(
    keys: Sequence[str], span: Span, members: list[Row], aggregates: dict[str, Callable[[list[Row]], Any]], time: str
) -> Row:
    ordered = sorted(members, key=lambda row: row[time])
    values = {name: of(ordered) for name, of in aggregates.items()}
    return {**{key: members[0][key] for key in keys}, "window_start": span[0], "window_end": span[1], **values}


def of(
    kind: str, x: str | None = None, by: str | None = None, where: Callable[[Row], Any] | None = None, ddof: int = 1
) -> Any:
    """The naive aggregate: rows in the order of event time -> the value."""

    def value(rows: list[Row]) -> Any:
        if where is not None:
            rows = [row for row in rows if where(row) is True]
        every = [1 if x is None else row[x] for row in rows]
        some = [each for each in every if each is not None]
        if kind == "count":
            return len(some)
        if kind == "collect_list":
            return every
        if kind == "count_distinct":
            return len({plain(each, zeros_equal=True) for each in some})
        if kind == "collect_set":
            return sorted(set(some))
        if kind in ("arg_min", "arg_max"):
            assert by is not None
            ranked = [row for row in rows if row[by] is not None]
            return (min if kind == "arg_min" else max)(ranked, key=lambda row: row[by])[x] if ranked else None
        if kind in ("first", "last"):
            return (every[0] if kind == "first" else every[-1]) if every else None
        if not some:
            return None
        return _numbers(kind, some, ddof)

    return value


def _numbers(kind: str, some: list[Any], ddof: int) -> Any:
    if kind in ("min", "max"):
        real = [each for each in some if each == each] or some
        return (min if kind == "min" else max)(real)
    if kind == "any":
        assert len(set(some)) == 1, "the oracle of any wants one value"
        return some[0]
    if kind == "sum":
        return sum(some)
    if kind == "mean":
        return float(sum(some)) / len(some)
    if len(some) <= ddof:
        return None
    mean = sum(some) / len(some)
    variance = sum((each - mean) ** 2 for each in some) / (len(some) - ddof)
    return variance if kind == "variance" else math.sqrt(variance)


# -- comparing ------------------------------------------------------------------------------------------------------------


def plain(value: Any, zeros_equal: bool = False) -> Any:
    """A value that hashes, and equals what is the same: NaN is NaN; -0.0 is another value than 0.0, unless `zeros_equal`."""
    if type(value) in (str, int, bool, NoneType):  # most are
        return value
    if isinstance(value, float):
        if value != value:
            return "NaN"
        return value if zeros_equal or value != 0.0 else ("zero", math.copysign(1.0, value))
    if isinstance(value, datetime.datetime):
        return round(value.timestamp() * 1000)
    if isinstance(value, list | tuple):
        return tuple(plain(each, zeros_equal) for each in value)
    if isinstance(value, dict):
        return tuple((name, plain(each, zeros_equal)) for name, each in value.items())
    return value


def differences(
    got: pa.Table, want: list[Row], *, near: Sequence[str] = (), repeated: bool = False, zeros_equal: bool = True
) -> str:
    """ "" where the rows are the same, else what is missing and what is too much. `repeated`: a row may come several times."""
    if want and list(want[0]) != got.column_names:
        return f"columns {got.column_names}, expected {list(want[0])}"

    def exact(row: Row) -> Any:
        return tuple(plain(value, zeros_equal) for name, value in row.items() if name not in near)

    got_rows = rows_of(got)
    have, need = Counter(map(exact, got_rows)), Counter(map(exact, want))
    if repeated:
        have = Counter(dict.fromkeys(have, 1)) | (have & need)
    if have != need:
        lacking, extra = list((need - have).elements()), list((have - need).elements())
        return f"{len(lacking)} rows lack, {len(extra)} too many\n lacking {_short(lacking)}\n too many {_short(extra)}"
    if not near:
        return ""
    wanted = {exact(row): row for row in want}
    assert len(wanted) == len(want), "rows that differ in nothing but what need not be exact"
    for row in got_rows:
        other = wanted[exact(row)]
        for name in near:
            if not _close(row[name], other[name]):
                return f"{name} is {row[name]!r}, expected {other[name]!r} in {row}"
    return ""


def table_after(log: pa.Table, key: Sequence[str] = ()) -> pa.Table:
    """The rows that are there after a log of changes (`changelog()`), applied to an empty table.

    Raises AssertionError where a change takes what is not there, a pair is torn, or two rows have one key.
    """
    assert log.column_names[0] == "op", f"a changelog begins with its op, not {log.column_names}"
    rows = rows_of(log)
    there: dict[Any, list[int]] = {}
    keyed: Counter[Any] = Counter()
    for at, row in enumerate(rows):
        op = row.pop("op")
        assert op in ("insert", "update_before", "update_after", "delete"), f"row {at} has the op {op!r}"
        before = log["op"][at - 1].as_py() if at else None
        assert (op == "update_after") == (before == "update_before"), f"change {at}: {op} behind {before}: {row}"
        value = tuple(plain(each, zeros_equal=True) for each in row.values())
        unique = tuple(plain(row[name], zeros_equal=True) for name in key)
        if op in ("insert", "update_after"):
            there.setdefault(value, []).append(at)
            keyed[unique] += 1
            assert not key or keyed[unique] == 1, f"change {at}: {op} makes a second row of the key {unique}: {row}"
            if op == "update_after" and key:
                assert unique == tuple(plain(rows[at - 1][name], zeros_equal=True) for name in key), f"pair at {at}"
        else:
            assert there.get(value), f"change {at}: {op} of what is not there: {row}"
            there[value].pop()
            keyed[unique] -= 1
    assert not rows or log["op"][-1].as_py() != "update_before", "the last pair is torn"
    left = sorted(at for places in there.values() for at in places)
    return log.drop(["op"]).take(pa.array(left, pa.int64()))


def _close(a: float | None, b: float | None) -> bool:
    if a is None or b is None or a != a or b != b:
        return plain(a) == plain(b)
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-6)


def _short(rows: list[Any]) -> str:
    return "; ".join(repr(row)[:300] for row in rows[:4])


# -- circumstances --------------------------------------------------------------------------------------------------------


@dataclass
class Circumstance:
    """How a program is run. Everything follows from the seed and its other fields; `str` says it in an assertion."""

    seed: int
    data: str = "plain"
    partitions: int = 1
    split: str = "all"
    parallelism: int = 1
    state: str | None = None
    shares: tuple[float, ...] = ()
    other: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def drawn(cls, seed: str, program: Program, data: Sequence[str]) -> "Circumstance":
        rng = random.Random(seed)
        return cls(
            seed=rng.randrange(10**6),
            data=rng.choice(list(data)),
            partitions=1 if program.arrival else rng.randint(1, 4),
            split=rng.choice(["one", "seven", "thousand", "all", "mixed", "mixed"][1 if data == ["large"] else 0 :]),
            parallelism=rng.randint(1, 4),
            state=rng.choice([None, "memory", "rocksdb"]),
            shares=tuple(sorted(rng.uniform(0, 1) for _ in range(3))),
        )


def deal(program: Program, table: pa.Table) -> list[pa.Table]:
    """The rows of each of the program's streams."""
    return [every(table, i, program.sources) for i in range(program.sources)]


def sources_of(program: Program, table: pa.Table, how: Circumstance, gate: Gate | None = None) -> list[Source]:
    return [
        Rows(part, partitions=how.partitions, split=how.split, seed=how.seed + i, gate=gate, name=f"rows{i}")
        for i, part in enumerate(deal(program, table))
    ]


def read(app: App, program: Program, given: Sequence[str | Source], **options: Any) -> Stream:
    return program.build(
        *(app.stream(each, time=program.time, lateness=f"{LATENESS_MS}ms", **options) for each in given)
    )


def run_split(program: Program, table: pa.Table, how: Circumstance) -> pa.Table:
    """collect() over any split, any number of partitions, any parallelism."""
    app = App("split", parallelism=how.parallelism)
    return read(app, program, sources_of(program, table, how)).collect()


def run_file(program: Program, table: pa.Table, how: Circumstance, kind: str, folder: Path) -> pa.Table:
    """collect() over files."""
    app = App("files", parallelism=1 if program.arrival else how.parallelism)
    given: list[Source] = []
    for i, part in enumerate(deal(program, table)):
        path = folder / f"{uuid.uuid4().hex}-{i}.{kind}"
        if kind == "ndjson":
            path.write_bytes(b"".join(to_json(row, i) + b"\n" for i, row in enumerate(part.to_pylist())))
        elif kind == "csv":
            pyarrow.csv.write_csv(part, path)
        elif kind == "parquet":
            pyarrow.parquet.write_table(part, path, row_group_size=how.other.get("group", 100))
        else:
            with pa.ipc.new_file(path, part.schema) as writer:
                writer.write_table(part, max_chunksize=50)
        given.append(files(str(path)))
    return read(app, program, given, schema=table.schema).collect()


def to_json(row: Row, number: int) -> bytes:
    """A row as JSON, in one of the ways in which it can be written."""
    items = list(row.items())
    if number % 3 == 1:
        items = [
            (name, value) for name, value in reversed(items) if value is not None
        ]  # a field that is missing is null
    return json.dumps(dict(items), ensure_ascii=number % 2 == 0, allow_nan=False).encode()


async def run_topic(program: Program, table: pa.Table, how: Circumstance, url: str) -> pa.Table:
    """Unbounded: topics of the embedded broker, published before and after the start; then a drain."""
    broker = MemoryBroker.get(url)
    parts = deal(program, table)
    rng = random.Random(how.seed)
    app = App("topics", broker=url, parallelism=how.parallelism)
    streams = [
        app.stream(f"in{i}", schema=table.schema, time=program.time, lateness=f"{LATENESS_MS}ms")
        for i in range(len(parts))
    ]
    seen, kept = Kept("seen"), Kept()
    for stream in streams:
        stream.select("n").to(seen)
    program.build(*streams).to(kept)
    pending: list[tuple[str, int, list[Any]]] = []
    for i, part in enumerate(parts):
        broker.create_topic(f"in{i}", partitions=how.partitions)
        for p in range(how.partitions):
            rows = every(part, p, how.partitions).to_pylist()
            while rows:
                size = rng.choice([1, 5, 40, 400])
                pending.append((f"in{i}", p, [to_json(row, len(rows) + p) for p, row in enumerate(rows[:size])]))
                rows = rows[size:]
    half = rng.randrange(len(pending) + 1)
    for topic, p, values in pending[:half]:
        broker.publish(topic, values, partition=p)
    await app.start()
    try:
        for topic, p, values in pending[half:]:
            broker.publish(topic, values, partition=p)
        await until(
            lambda: sum(each.num_rows for each in [*seen.landed, *seen.waiting]) >= table.num_rows,
            "all rows to be read",
        )
    finally:
        await app.stop(drain=True)
    return kept.table()


def app_of(how: Circumstance, folder: Path, checkpoints: Path, interval: float | None = None) -> App:
    state = (
        str(folder / "state") if how.state == "rocksdb" else how.state
    )  # after a crash: with all that was left behind
    app = App("app", parallelism=how.parallelism, state=state, checkpoint_dir=checkpoints)
    app.configure(checkpoint_interval=interval)
    return app


async def run_barriers(program: Program, table: pa.Table, how: Circumstance, folder: Path) -> pa.Table:
    """Checkpoints after chosen rows of each partition, and others whenever they fall."""
    gate, kept = Gate(how.shares[0]), Kept()
    app = app_of(how, folder, folder / "checkpoints", interval=0.005 if how.seed % 2 else None)
    read(app, program, sources_of(program, table, how, gate)).to(kept)
    partitions = how.partitions * program.sources
    running_app = asyncio.ensure_future(app.run())
    try:
        for share in [*how.shares[1:], 1.0]:
            await _stands(gate, partitions, running_app)
            assert await app.agent_runtime.trigger_checkpoint() > 0
            gate.open_to(share)
        await asyncio.wait_for(running_app, PATIENCE_S)
    finally:
        await _ended(running_app)
    return kept.table()


async def run_restored(
    program: Program, table: pa.Table, how: Circumstance, folder: Path, *, crash: bool, later: int | None = None
) -> pa.Table:
    """Runs to a first gate and takes a checkpoint, goes on to a second gate, dies (or stops), and starts again from the checkpoint.

    later: the parallelism after the restart.
    """
    gate, kept = Gate(how.shares[0]), Kept()
    checkpoints, copied = folder / "checkpoints", folder / "copied"
    partitions = how.partitions * program.sources
    app = app_of(how, folder, checkpoints)
    read(app, program, sources_of(program, table, how, gate)).to(kept)
    await app.start()
    try:
        await until(lambda: gate.reached(partitions), "the source to stand at the gate")
        await app.agent_runtime.trigger_checkpoint()
        shutil.copytree(checkpoints, copied)
        gate.open_to(how.shares[1])
        await until(lambda: gate.reached(partitions), "the source to stand at the gate")
        if how.seed % 3 == 0:
            await app.agent_runtime.trigger_checkpoint()  # its output lands; the restart does not know of it
        if crash:
            kept.crash()
    finally:
        await app.stop()
    how = replace(how, seed=how.seed + 1, split="mixed", parallelism=later or how.parallelism)
    again, last = kept.again(), Gate(how.shares[2])
    app = app_of(how, folder, copied if crash else checkpoints)
    read(app, program, sources_of(program, table, how, last)).to(again)
    await app.start()
    try:
        assert app.agent_runtime.runner.restored_from is not None
        await until(lambda: last.reached(partitions), "the source to stand at the last gate")
        await app.agent_runtime.trigger_checkpoint()
    finally:
        await app.stop()  # and a third time, in good order
    third, open_gate = again.again(), Gate(1.0)
    app = app_of(how, folder, copied if crash else checkpoints)
    read(app, program, sources_of(program, table, replace(how, seed=how.seed + 1), open_gate)).to(third)
    await asyncio.wait_for(app.run(), PATIENCE_S)
    return third.table()


async def _stands(gate: Gate, partitions: int, running_app: "asyncio.Future[None]") -> None:
    await until(lambda: gate.reached(partitions) or running_app.done(), "the source to stand at the gate")
    if running_app.done():
        running_app.result()
        raise AssertionError(f"the app ended while its source stood at {gate.places}, {gate.share}")


async def _ended(running_app: "asyncio.Future[None]") -> None:
    if not running_app.done():
        running_app.cancel()
        await asyncio.wait([running_app], timeout=PATIENCE_S)


# -- several streams, changes, and what crashes exactly once --------------------------------------------------------------


async def run_in_turns(
    program: Program, table: pa.Table, how: Circumstance, folder: Path, order: Sequence[int] | None = None
) -> pa.Table:
    """The streams go on one after another, each a part of its rows at a time: what was read has passed all steps when the next goes on.

    order: whose turn it is, each time for all of its rows. Without it the seed decides.
    """
    rng = random.Random(how.seed)
    turns = [(1.0, i) for i in order or ()]
    if order is None:
        turns = sorted((rng.random(), i) for i in range(program.sources) for _ in range(2))
        turns += [(1.0, i) for i in rng.sample(range(program.sources), program.sources)]
    gates, kept = [Gate(0.0) for _ in range(program.sources)], Kept()
    app = app_of(how, folder, folder / "checkpoints")
    given = [
        Rows(part, partitions=how.partitions, split=how.split, seed=how.seed + i, gate=gates[i], name=f"rows{i}")
        for i, part in enumerate(deal(program, table))
    ]
    read(app, program, given).to(kept)
    running_app = asyncio.ensure_future(app.run())
    try:
        for at, (share, i) in enumerate(turns):
            gates[i].open_to(share)
            await until(lambda i=i: gates[i].reached(how.partitions) or running_app.done(), "the source to go on")  # type: ignore[misc]
            if at < len(turns) - 1 and not running_app.done():
                assert await app.agent_runtime.trigger_checkpoint() > 0
        await asyncio.wait_for(running_app, PATIENCE_S)
    finally:
        await _ended(running_app)
    return kept.table()


def script_of(table: pa.Table, how: Circumstance, number: int, *, crashes: int = 2) -> list[Any]:
    """The rows of a stream as a script: cut anywhere, with barriers and crashes between."""
    rng = random.Random(how.seed * 7 + number)
    script: list[Any] = []
    at = 0
    while at < table.num_rows:
        size = {"one": 3, "seven": 7, "mixed": rng.choice([1, 2, 9, 50])}.get(how.split, 40)
        script.append(table.slice(at, size))
        at += size
    for mark in [BARRIER] * 2 + [CRASH] * crashes:
        script.insert(rng.randrange(len(script) + 1), mark)
    return [*script, END]


def run_crashes(program: Program, table: pa.Table, how: Circumstance, folder: Path, sink: ListSink) -> int:
    """Exactly once into `sink`, over crashes at any place of its streams; -> in how many lives."""

    apps: list[App] = []
    stuck: list[Any] = []

    def give_up() -> None:
        stuck.append(apps[-1].statistics()["streams"])
        apps[-1].request_stop()

    def build(directory: Path) -> App:
        app = App("app", parallelism=how.parallelism, state=str(directory), checkpoint_dir=directory / "checkpoints")
        apps.append(app)
        app.configure(checkpoint_interval=0.01 if how.seed % 2 else None)
        scripts = [
            ScriptedSource(script_of(part, how, i), name=f"script{i}", schema=part.schema)
            for i, part in enumerate(deal(program, table))
        ]
        read(app, program, scripts).to(sink)
        return app

    patience = threading.Timer(2 * PATIENCE_S, give_up)
    patience.start()
    try:
        lives = run_lives(build, folder)
    finally:
        patience.cancel()
        assert not stuck, f"after {2 * PATIENCE_S} s, in life {len(apps)}, it does not come to its end: {stuck}"
    return lives


def figures(statistics: Any, name: str) -> list[Any]:
    """What all operators say under this name."""
    if not isinstance(statistics, dict):
        return []
    found = [statistics[name]] if name in statistics else []
    return found + [each for value in statistics.values() for each in figures(value, name)]


def rows_read(statistics: Any) -> int:
    """The number of rows that the readers of streams have read in this run."""
    return sum(task["input"].get("rows_in", 0) for task in statistics["streams"].values())


WAYS = ("split", "logged", "turns", "barriers", "stopped", "crashed", "dying", "rescaled")

_events: dict[tuple[str, int], pa.Table] = {}


def events(kind: str, seed: int = 0) -> pa.Table:
    """`make_events`, made once."""
    if (kind, seed) not in _events:
        _events[kind, seed] = make_events(kind, seed)
    return _events[kind, seed]


def draw(program: Joined, way: str, seed: int) -> Circumstance:
    """A circumstance that follows from the names and the seed."""
    small = (
        ("one", "empty") if way in ("turns", "barriers", "stopped", "crashed", "rescaled") else ()
    )  # no gate holds them
    data = [each for each in program.data if each not in small]
    return Circumstance.drawn(f"{program.name} {way} {seed}", program, data or ["sparse"])


def another_way(program: Program, seed: int) -> str:
    """How a program is run for this seed beside "split": all ways in seven seeds."""
    others = random.Random(program.name).sample(WAYS[1:], len(WAYS) - 1)
    return others[seed % len(others)]


async def run_way(program: Joined, table: pa.Table, how: Circumstance, way: str, folder: Path) -> tuple[pa.Table, bool]:
    """-> (the rows, or of changes their log; whether a row may have come several times)."""
    folder.mkdir(parents=True, exist_ok=True)
    match way:
        case "split":
            return run_split(program, table, how), False
        case "logged":
            return run_split(program.logged(), table, how), False
        case "turns":
            return await run_in_turns(program.logged(), table, how, folder), False
        case "barriers":
            return await run_barriers(program.logged(), table, how, folder), False
        case "stopped":
            return await run_restored(program.logged(), table, how, folder, crash=False), False
        case "crashed":  # what is materialized comes at the end, once
            got = await run_restored(program.materialized(), table, how, folder, crash=True)
            return got, not program.changes
        case "rescaled":
            later = 1 + (how.parallelism + how.seed) % 4
            return await run_restored(program.logged(), table, how, folder, crash=False, later=later), False
    sink = ListSink()
    await asyncio.to_thread(run_crashes, program.logged(), table, how, folder, sink)
    return sink.table(), False


async def answers_are_the_same(program: Joined, way: str, seed: int, folder: Path) -> None:
    """Runs it one way and compares: of changes the log too, and that each prefix of it is valid."""
    how = draw(program, way, seed)
    table = events(how.data, seed)
    where = f"{program.name!r} {way} {how}"
    got, repeated = await run_way(program, table, how, way, folder / f"{way}{seed}")
    if program.changes and way not in ("split", "crashed"):
        try:
            got = table_after(got, program.key)
        except AssertionError as wrong:
            raise AssertionError(f"{where}\n{wrong}") from None
    wrong = differences(got, program.answer(table), near=program.near, repeated=repeated)
    assert not wrong, f"{where}\n{wrong}"


WEEK_HOURS = 7 * 24


def a_week(rows: int = 3000, keys: int = 20) -> pa.Table:
    """Rows of a week, evenly, in order; two streams get them by turns."""
    return pa.table(
        {
            "n": pa.array(range(rows), pa.int64()),
            "ts": pa.array([i * WEEK_HOURS * 3_600_000 // rows for i in range(rows)], pa.int64()),
            "k": pa.array([f"key {i // 2 % keys}" for i in range(rows)]),
            "x": pa.array([i // 2 // keys % 7 for i in range(rows)], pa.int64()),
        }
    )


async def figures_at(
    program: Program, table: pa.Table, share: float, folder: Path, *names: str
) -> dict[str, list[Any]]:
    """What the operators say under these names when so much of the rows has been processed."""
    gate = Gate(share)
    app = App("size", parallelism=2, checkpoint_dir=folder / f"{share}")
    given = [Rows(part, split="seven", gate=gate, name=f"rows{i}") for i, part in enumerate(deal(program, table))]
    program.build(*(app.stream(each, time="ts") for each in given)).to(Kept())
    await app.start()
    try:
        await until(lambda: gate.reached(program.sources), "the rows to be read")
        assert await app.agent_runtime.trigger_checkpoint() > 0  # its barrier stands behind them
        return {name: figures(app.statistics(), name) for name in names}
    finally:
        await app.stop()
