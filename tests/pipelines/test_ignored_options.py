"""No option of a stream, a table or a sink is ignored in silence: with each kind of source and sink it changes the
result, or is refused.
"""

import inspect
import json
import os
import uuid

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

import sabot
from sabot import (
    App,
    ArrowSink,
    Batch,
    CsvSink,
    DeltaSink,
    NdjsonSink,
    ParquetSink,
    SabotError,
    Source,
    SqlSink,
    Stream,
    UserError,
    col,
    console,
    files,
    tumbling,
)
from sabot.connectors import Bounded
from sabot.connectors.files import ObjectSink
from sabot.kafka import KafkaSink
from sabot.testing import ListSink, MemoryBroker

ROWS = [
    {"id": 1, "ts": 1_000, "text": "1", "price": 1},
    {"id": 2, "ts": 9_000, "text": "2", "price": 2},
    {"id": 3, "ts": 4_500, "text": "not a number", "price": 2.5},
    {"id": 2, "ts": 12_000, "text": "4", "price": 4},
]
COLUMNS = {"id": "int64", "ts": "int64", "text": "string", "price": "float64"}
SCHEMA = pa.schema([("id", pa.int64()), ("ts", pa.int64()), ("text", pa.string()), ("price", pa.float64())])


class Own(Source, Bounded):
    """Gives the rows, as a class of the user's."""

    name = "own"
    schema = SCHEMA

    def open(self, positions, start="earliest"):
        self.next = (positions or {}).get((self.name, 0), 0)

    def read_batch(self, max_rows, timeout):
        rows, self.next = ROWS[self.next :], len(ROWS)
        return Batch(pa.RecordBatch.from_pylist(rows, SCHEMA), self.positions(), self.name) if rows else None

    @property
    def exhausted(self):
        return self.next == len(ROWS)

    def positions(self):
        return {(self.name, 0): self.next}

    def close(self): ...


def generated(app):
    @app.source(schema=COLUMNS, bounded=True)
    def generated(position):
        yield from ROWS[position:]

    return generated


def topic(app):
    for row in ROWS:
        MemoryBroker.get(app.broker).publish("in", [json.dumps(row).encode()], timestamp=row["ts"] + 20_000)
    return "in"


def file_of(name, write):
    def source(app):
        write(name)
        return files(name)

    return source


def write_ndjson(name):
    with open(name, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)


def sorted_files(app):
    write_ndjson("ordered.ndjson")
    return files("ordered.ndjson", sort="ts")


SOURCES = {
    "topic": topic,
    "ndjson": file_of("in.ndjson", write_ndjson),
    "csv": file_of("in.csv", lambda name: csv.write_csv(pa.Table.from_pylist(ROWS), name)),
    "parquet": file_of("in.parquet", lambda name: pq.write_table(pa.Table.from_pylist(ROWS), name)),
    "sorted files": sorted_files,
    "list": lambda app: ROWS,
    "Arrow table": lambda app: pa.Table.from_pylist(ROWS),
    "generator": generated,
    "own class": lambda app: Own(),
}

OPTIONS = {
    "schema": {**COLUMNS, "id": "float64"},
    "format": "csv",
    "time": "ts",
    "time_unit": "s",
    "time_format": "%Y",
    "time_zone": "Europe/Berlin",
    "lateness": "8s",
    "idle": "1s",
    "idle_closes": True,
    "dead_letter": "letters",
    "on_error": "null",
    "fields": ["offset"],
    "max_drift": "1s",
    "start": {0: 2},
    "until": {0: 2},
    "schema_overrides": {"id": "float64"},
    "infer": 1,
    "first": True,
    "key_format": "csv",
}
UNSEEN = {
    "lateness": "rows of several batches: test_late_rows.py",
    "idle": "a topic that is silent: test_watermarks.py",
    "idle_closes": "a topic that is silent: test_idle_closes.py",
    "max_drift": "two partitions: test_alignment.py",
    "key_format": "keys of records, and their tombstones: test_table_sources.py",
    "first": "two inputs: test_tables_first.py",
}
"""Options that act on event time or on waits of which this program has none, and the tests in which they do."""


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


async def outcome(source, method, base, given):
    """What a program writes: rows, and what is in the topics of its broker."""
    app = App("options", broker=f"memory://{uuid.uuid4().hex}")
    place = source(app)
    options = {**({"until": "now"} if isinstance(place, str) else {}), **base, **given}
    if isinstance(place, str) and "infer" not in options and "schema_overrides" not in options:
        options.setdefault("schema", COLUMNS)
    rows = getattr(app, method)(place, **options)
    if method == "table":
        rows = rows.changelog()
    rows = rows.with_columns(number=col("text").cast("int64"))
    found = []
    rows.to(found)
    if "time" in options or isinstance(place, str):
        timed = rows if method == "stream" else rows.drop("op")
        timed.window(tumbling("5s"), late="late").aggregate(n=sabot.count(), sum=sabot.sum("number")).to(found)
    await app.run()
    broker = MemoryBroker.get(app.broker)
    topics = {name: [record.payload for record in broker.records(name)] for name in broker.topics() if name != "in"}
    return sorted(found, key=str), topics


@pytest.mark.one_in(24, "a fifth of a second of a core each")
@pytest.mark.parametrize("timed", [False, True], ids=["without time=", "with time="])
@pytest.mark.parametrize("method", ["stream", "table"])
@pytest.mark.parametrize("kind", SOURCES)
async def test_an_option_acts_or_is_refused(kind, method, timed):
    names = set(inspect.signature(getattr(App, method)).parameters) - {"self", "source", "key"}
    assert names <= OPTIONS.keys(), "a new option needs a value here"
    base = ({"time": "ts"} if timed else {}) | ({"key": "id"} if method == "table" else {})
    plain = await outcome(SOURCES[kind], method, base, {})
    ignored = []
    for name in names - base.keys():
        try:
            seen = await outcome(SOURCES[kind], method, base, {name: OPTIONS[name]})
        except UserError:
            continue
        if seen == plain:
            ignored.append(name)
    has_time = timed or kind == "topic"
    unseen = set(UNSEEN) if has_time else {"first"}
    if kind == "csv":
        unseen.add("infer")  # more than the first MiB, which is read in any case: test_files_sources.py
    assert set(ignored) <= unseen


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("start", ["latest", 9_000, "committed"])
@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind != "topic"])
async def test_start_of_an_app_is_for_its_topics(kind, start):
    app = App("options", broker=f"memory://{uuid.uuid4().hex}", start=start)
    assert app.stream(SOURCES[kind](app)).collect().num_rows == len(ROWS)


SINKS = {
    "topic": lambda app: "out",
    "KafkaSink": lambda app: KafkaSink("out", app.broker),
    "own class": lambda app: ListSink(),
    "NDJSON": lambda app: NdjsonSink("out.ndjson"),
    "CSV": lambda app: CsvSink("out.csv"),
    "Parquet": lambda app: ParquetSink("out.parquet"),
    "Arrow": lambda app: ArrowSink("out.arrow"),
    "objects": lambda app: ObjectSink(f"file://{os.getcwd()}/objects/", "parquet"),
    "Delta": lambda app: DeltaSink("out"),
    "SQL": lambda app: SqlSink("sqlite:///out.db", "out"),
    "console": lambda app: console(),
    "list": lambda app: [],
}
KEYED = {"topic", "KafkaSink", "own class"}


def test_each_option_of_to_is_tried_below():
    assert set(inspect.signature(Stream.to).parameters) - {"self", "sink"} == {"key", "format", "delivery", "nan"}


@pytest.mark.parametrize("kind", SINKS)
def test_a_key_is_refused_by_a_sink_that_stores_columns(kind, memory_url):
    app = App("options", broker=memory_url)
    sink = SINKS[kind](app)
    if kind in KEYED:
        app.stream(ROWS).to(sink, key="id")
        return
    with pytest.raises(UserError, match="key= is for records, and this sink stores columns") as refused:
        app.stream(ROWS).to(sink, key="id")
    assert 'upsert("id")' in refused.value.hint


@pytest.mark.parametrize("kind", [kind for kind in SINKS if kind != "topic"])
def test_a_format_is_refused_by_a_sink_that_has_its_own(kind, memory_url):
    app = App("options", broker=memory_url)
    with pytest.raises(UserError, match="format= is for topics, and this sink has its own"):
        app.stream(ROWS).to(SINKS[kind](app), format="csv")


@pytest.mark.parametrize("kind", ["console", "list"])
async def test_exactly_once_is_refused_by_a_sink_that_cannot(kind, memory_url):
    app = App("options", broker=memory_url)
    app.stream(ROWS).to(SINKS[kind](app), delivery="exactly_once")
    with pytest.raises(UserError, match="cannot deliver exactly once"):
        await app.run()


@pytest.mark.parametrize("kind", ["topic", "KafkaSink", "NDJSON", "console", "SQL", "Parquet", "list"])
async def test_nan_acts_on_formats_that_lack_it(kind, memory_url):
    app = App("options", broker=memory_url)
    app.stream([{"x": float("nan")}]).to(SINKS[kind](app), nan="fail", delivery="at_least_once")
    if kind in ("Parquet", "list"):  # they hold NaN, so there is nothing to decide
        await app.run()
        return
    with pytest.raises(SabotError, match="column 'x' is nan"):
        await app.run()


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind not in ("topic", "list", "Arrow table")])
async def test_the_start_of_an_agent_is_for_its_topics(kind):
    app = App("options", broker=f"memory://{uuid.uuid4().hex}", start="latest")
    source, seen = SOURCES[kind](app), []
    with pytest.raises(UserError, match="start= needs a topic"):
        app.agent(source, name="late", start="latest")(lambda ctx: None)

    @app.agent(source)
    async def take(ctx):
        seen.append(ctx.message["id"])

    await app.run()
    assert sorted(seen) == [1, 2, 2, 3]
