"""The guarantee of each source and sink across a crash: what a start does is what the plan, the log and the console say."""

import json
import logging
from pathlib import Path

import pytest

from sabot import App, NdjsonSink, NdjsonSource, ParquetSink
from sabot.connectors.base import Delivery, Guarantee, Sink, Source
from sabot.connectors.console import ConsoleSink
from sabot.connectors.delta import DeltaSink, DeltaSource
from sabot.connectors.files import ObjectSink
from sabot.connectors.http import HttpSink, PollSource, SseSource, WebhookSource, WebsocketSource
from sabot.connectors.iceberg import IcebergSink, IcebergSource
from sabot.connectors.memory import MemorySink, MemorySource
from sabot.connectors.postgres import PostgresChanges
from sabot.connectors.redis import RedisStreamSink, RedisStreamSource
from sabot.connectors.rows import RowsSource
from sabot.connectors.sql import SqlSink
from sabot.engine.delivery.guarantees import NO_CHECKPOINTS, sink_guarantee, source_guarantee, why_repeated
from sabot.engine.delivery.staged import track_of
from sabot.engine.runtime.watch.guarantees import guarantees_of
from sabot.engine.runtime.watch.run_record import read_record
from sabot.errors import UserError
from sabot.kafka import KafkaSink, KafkaSource

TOKEN = "exactly once: it stores the number of the last part in one step with the rows"
NUMBER = "exactly once: it knows a part that comes again by its number"
CHOSEN = 'at least once: delivery="at_least_once" asks for it'
UNABLE = "at least once: it cannot tell which rows have arrived, so a crash repeats those since the last checkpoint"
PASSING = "at least once: its rows end with the process"
PREFIX = "exactly once: it stores how far a part is there in one step with each chunk of its rows"
PLACE = "exactly once: a start goes on at the position in the checkpoint"
REPEATS = "at least once: rows that no complete checkpoint covers may come again"
GONE = "at most once: its log keeps no rows for an app that is down"
KAFKA = "kafka://127.0.0.1:1"
LAKE = {"type": "sql", "uri": "sqlite:///lake.db", "warehouse": "lake"}
WEB = "http://127.0.0.1/rows"


def sinks(folder: Path) -> dict[str, Sink]:
    return {
        "kafka": KafkaSink("t", KAFKA),
        "files": ParquetSink(folder / "out"),
        "objects": ObjectSink("s3://bucket/out?region=eu-west-1", "parquet"),
        "sqlite": SqlSink("sqlite:o.db", table="t"),
        "duckdb": SqlSink("duckdb:o.duckdb", table="t"),
        "postgres": SqlSink("postgresql://u@127.0.0.1/d", table="t"),
        "delta": DeltaSink(folder / "delta"),
        "iceberg": IcebergSink(LAKE, "lake.out"),
        "redis": RedisStreamSink("redis://127.0.0.1", "out"),
        "http with keys": HttpSink(WEB, idempotent=True),
        "memory": MemorySink("t", "memory://guarantees"),
        "console": ConsoleSink(),
    }


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("kafka", TOKEN),
        ("files", TOKEN),
        ("objects", NUMBER),
        ("sqlite", TOKEN),
        ("duckdb", TOKEN),
        ("postgres", TOKEN),
        ("delta", TOKEN),
        ("iceberg", f"{TOKEN}, at most once in 60 s"),
        ("redis", PREFIX),
        ("http with keys", NUMBER),
        ("memory", PASSING),
        ("console", UNABLE),
    ],
)
def test_the_guarantee_of_a_sink_is_what_a_start_does(tmp_path: Path, kind: str, said: str) -> None:
    sink = sinks(tmp_path)[kind]
    assert sink_guarantee(sink, None, kept=True) == said
    wanted: tuple[Delivery, ...] = (
        (None, "at_least_once", "exactly_once") if kind != "console" else (None, "at_least_once")
    )
    for each in wanted:
        staged = track_of("streams", sink, each) is not None
        assert staged == sink_guarantee(sink, each, kept=True).startswith("exactly once: ")
    assert sink_guarantee(sink, "at_least_once", kept=True) == CHOSEN
    assert sink_guarantee(sink, None, kept=False) == NO_CHECKPOINTS
    assert track_of("streams", sink, None, kept=False) is None


def test_a_sink_that_cannot_deliver_as_wanted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot deliver exactly once"):
        why_repeated(ConsoleSink(), "exactly_once")
    with pytest.raises(UserError, match="exactly once needs checkpoints on a disk"):
        why_repeated(NdjsonSink(tmp_path / "o.ndjson"), "exactly_once", kept=False)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (KafkaSource("t", KAFKA), PLACE),
        (NdjsonSource("rows.ndjson"), PLACE),
        (DeltaSource("lake", follow="10s"), PLACE),
        (IcebergSource(LAKE, "lake.in", follow="10s"), PLACE),
        (PostgresChanges("postgresql://u@127.0.0.1/d", "t"), PLACE),
        (RedisStreamSource("redis://127.0.0.1", "in"), PLACE),
        (PollSource(WEB), PLACE),
        (SseSource(WEB), PLACE),
        (SseSource(WEB, ids="none"), GONE),
        (WebsocketSource("ws://127.0.0.1"), GONE),
        (WebhookSource("hooks.db", port=0, key="Webhook-Id"), PLACE),
        (WebhookSource("hooks.db", port=0), REPEATS),
        (MemorySource("t"), "exactly once while the process lives: its rows are in memory"),
        (RowsSource([{"n": 1}], "rows"), "exactly once while the process lives: its rows are in memory"),
    ],
)
def test_the_guarantee_of_a_source(source: Source, said: str) -> None:
    assert source_guarantee(source, kept=True) == said
    assert source_guarantee(source, kept=False) == NO_CHECKPOINTS


@pytest.mark.parametrize(
    ("guarantee", "said"),
    [
        ("at least once", REPEATS),
        ("at most once", GONE),
    ],
)
def test_a_source_says_what_it_does_not_keep(guarantee: Guarantee, said: str) -> None:
    source = NdjsonSource("rows.ndjson")
    source.guarantee = guarantee
    assert source_guarantee(source, kept=True) == said
    assert source_guarantee(source, kept=False) == NO_CHECKPOINTS


async def test_a_start_logs_the_guarantees_and_leaves_them_in_its_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = tmp_path / "rows.ndjson"
    rows.write_text(json.dumps({"n": 1}) + "\n")
    app = App("edges", "memory://edges", state=tmp_path / "state")
    stream = app.stream(NdjsonSource(rows), schema={"n": "int64"}, dead_letter=NdjsonSink(tmp_path / "bad.ndjson"))
    stream.to(NdjsonSink(tmp_path / "a.ndjson"))
    stream.to(NdjsonSink(tmp_path / "b.ndjson"), delivery="at_least_once")

    @app.agent(NdjsonSource(rows), sink="seen", dead_letter=NdjsonSink(tmp_path / "worse.ndjson"))
    async def seen(ctx: object) -> None:
        """Drops its records."""

    with caplog.at_level(logging.INFO, "sabot"):
        await app.run()
    said = [each.getMessage() for each in caplog.records if each.name == "sabot.engine.runtime.watch.app_watch"]
    assert f"out NdjsonSink {tmp_path}/b.ndjson: {CHOSEN}" in said
    assert f"out topic seen: {PASSING}" in said
    names = ", ".join(f"out NdjsonSink {tmp_path}/{each}.ndjson" for each in ("bad", "a", "worse"))
    assert f"{names}: {TOKEN}" in said
    record = read_record(tmp_path / "state")
    assert record is not None
    edges = guarantees_of(app.plan(), app.spec.ends, app.settings)
    assert list(record.guarantees) == edges
    assert [each.way for each in edges] == ["in", *["out"] * 5]


def test_two_writers_of_one_sink_have_one_guarantee(tmp_path: Path) -> None:
    """A Sink that a stream and an agent write has the delivery on which both agree, as at the start."""
    app = App("agreed", "memory://agreed", state=tmp_path / "state")
    both = NdjsonSink(tmp_path / "both.ndjson")
    app.stream("rows", schema={"n": "int64"}).to(both)

    @app.agent("rows", sink=both, delivery="at_least_once")
    async def seen(ctx: object) -> None:
        """Drops its records."""

    edges = guarantees_of(app.plan(), app.spec.ends, app.settings)
    assert [each.guarantee for each in edges if each.name.startswith("NdjsonSink")] == [CHOSEN]
