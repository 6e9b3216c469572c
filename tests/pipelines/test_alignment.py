"""Sources of a join by event time, and partitions of one source, that are read at about the same event time."""

import shutil
import threading
from collections.abc import Callable, Sequence, Set
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import until

from sabot import App, Batch, Source, Stream, UserError, count, files, tumbling
from sabot.codecs.records import build_records
from sabot.connectors.base import Positions
from sabot.connectors.memory.source import MemorySource
from sabot.engine.runtime.tasks.reading import Reader
from sabot.kafka import KafkaSource
from sabot.testing import ListSink, MemoryBroker

SCHEMA = {"k": "int64", "n": "int64", "ts": "int64"}
SECOND, HOUR = 1000, 3_600_000
BATCH = 8192  # the rows that the embedded broker gives at once, at most
JOINS: dict[str, Callable[[Stream, Stream, Any], Stream]] = {
    "between": lambda a, b, drift: a.join(b, on="k", how="full", between=("-1s", "1s"), max_drift=drift),
    "window": lambda a, b, drift: a.join(b, on="k", window=tumbling("10s"), max_drift=drift),
    "asof": lambda a, b, drift: a.join_asof(b, on="k", tolerance="1s", max_drift=drift),
}


class Away(KafkaSource):
    """A topic whose broker gives nothing until it is back."""

    def __init__(self, topic: str, url: str) -> None:
        super().__init__(topic, url)
        self.back = threading.Event()

    def readers(self, count: int) -> Sequence[Source]:
        return [self]

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        return super().read_batch(max_rows, 0) if self.back.wait(timeout) else None


class Uneven(Source):
    """Two partitions: of the first a row comes with each poll, an hour later than the one before. The second has some, and gives none."""

    name = "uneven"

    def __init__(self) -> None:
        self.at, self.held = 0, frozenset[tuple[str, int]]()

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        """Nothing to open."""

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if (self.name, 0) in self.held:
            return None
        text = f'{{"k": 1, "n": {self.at}, "ts": {self.at * HOUR}}}'.encode()
        data = build_records([text], None, np.zeros(1), 0, np.array([self.at]))
        self.at += 1
        return Batch(data, {(self.name, 0): self.at}, self.name)

    def positions(self) -> Positions:
        return {(self.name, 0): self.at, (self.name, 1): 0}

    def lag(self) -> dict[tuple[str, int], int]:
        return {(self.name, 0): 1, (self.name, 1): 1}

    def hold(self, partitions: Set[tuple[str, int]]) -> None:
        self.held = frozenset(partitions)

    def close(self) -> None:
        """Nothing is open."""


def publish(url: str, topic: str, total: int, step_ms: int, *, since_ms: int = 0, parts: int = 1) -> None:
    """So many rows, each `step_ms` after the one before. They go to the partitions in turns."""
    broker = MemoryBroker.get(url)
    broker.create_topic(topic, parts)
    for part in range(parts):
        rows = [b'{"k":%d,"n":%d,"ts":%d}' % (n % 7, n, since_ms + n * step_ms) for n in range(part, total, parts)]
        broker.publish(topic, rows, partition=part)


@asynccontextmanager
async def running(app: App) -> Any:
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


def input_of(app: App, topic: str) -> dict[str, Any]:
    """The figures of the one reader of a topic."""
    tasks = app.statistics()["streams"].values()
    return next(task["input"] for task in tasks if task["input"].get("source") == topic)


def two(app: App, one: str | Source = "a", other: str | Source = "b", **options: Any) -> tuple[Stream, Stream]:
    a, b = (app.stream(source, schema=SCHEMA, time="ts", **options) for source in (one, other))
    return a, b.rename({"n": "m", "ts": "at"})


async def test_a_backlog_of_one_side_waits_at_its_source(memory_url: str, tmp_path: Path) -> None:
    """Barriers pass meanwhile. Behind a crash it goes on right: no pair is lost, none comes twice."""
    rows = 3 * BATCH
    publish(memory_url, "a", 100, rows * SECOND // 100)
    publish(memory_url, "b", rows, SECOND)
    out, starts = ListSink(), [n * (rows * SECOND // 100) for n in range(100)]
    near = [(n, m) for n, at in enumerate(starts) for m in range(at // SECOND, at // SECOND + 8) if m < rows]
    expected = [(n, m) for n, m in near if m % 7 == n % 7 and 0 <= m * SECOND - starts[n] <= 6 * SECOND]

    def app_of(folder: str) -> tuple[App, Away]:
        app = App("waits", memory_url, checkpoint_dir=tmp_path / folder, checkpoint_interval="1h")
        away = Away("a", memory_url)
        a, b = two(app, away)
        a.join(b, on="k", between=("0s", "6s")).to(out)
        return app, away

    app, _ = app_of("first")
    async with running(app):
        await until(lambda: bool(input_of(app, "b")["ahead"]), "the backlog to wait")
        assert await app.agent_runtime.trigger_checkpoint() > 0
        assert await app.agent_runtime.trigger_checkpoint() > 0
        figures = input_of(app, "b")
        assert (figures["ahead"], 0 < figures["rows_in"] <= BATCH) == (["b[0]"], True)
        shutil.copytree(tmp_path / "first", tmp_path / "copied")
    app, away = app_of("copied")
    async with running(app):
        assert app.agent_runtime.runner.restored_from is not None
        away.back.set()
        await until(lambda: input_of(app, "b")["rows_in"] + figures["rows_in"] == rows, "the backlog to be read")
        assert await app.agent_runtime.trigger_checkpoint() > 0
        await until(lambda: len(out.rows) >= len(expected), "the pairs")
    assert sorted((row["n"], row["m"]) for row in out.rows) == expected


async def test_without_alignment_it_is_read_as_it_comes(memory_url: str) -> None:
    publish(memory_url, "a", 100, SECOND)
    publish(memory_url, "b", 3 * BATCH, SECOND)
    app = App("free", memory_url)
    a, b = two(app, Away("a", memory_url))
    a.join(b, on="k", between=("0s", "6s"), max_drift=None).to(ListSink())
    async with running(app):
        await until(lambda: input_of(app, "b")["rows_in"] == 3 * BATCH, "all rows")
        assert input_of(app, "b")["ahead"] == []


@pytest.mark.parametrize("rows", [40_000, 1_000], ids=["backlog", "live"])
async def test_a_side_that_falls_silent_does_not_stop_the_other(memory_url: str, rows: int) -> None:
    """A backlog waits until the side is idle; rows that come as they happen wait for nobody."""
    publish(memory_url, "a", 1, SECOND)
    publish(memory_url, "b", rows, SECOND)
    app = App("silent", memory_url)
    a, b = two(app, idle="50ms" if rows > 32_768 else "1h")
    a.join(b, on="k", between=("0s", "1s")).to(ListSink())
    async with running(app):
        await until(lambda: input_of(app, "b")["rows_in"] == rows, "all rows")


async def test_a_partition_that_is_ahead_waits_for_another_one_of_its_source(memory_url: str) -> None:
    publish(memory_url, "b", 1, SECOND)
    app, uneven = App("uneven", memory_url), Uneven()
    a, b = two(app, uneven)
    a.join(b, on="k", between=("0s", "1s"), max_drift="3h").to(ListSink())
    async with running(app):
        await until(lambda: uneven.held == {("uneven", 0)}, "the partition to be held")
        assert uneven.at == 1  # nothing is known of the other partition, but that it has rows


@pytest.mark.one_in(6, "a fifth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("kind", JOINS)
async def test_the_result_is_that_of_sources_that_are_read_as_they_come(
    kind: str, parallelism: int, memory_url: str
) -> None:
    publish(memory_url, "a", 900, 700, parts=3)
    publish(memory_url, "b", 600, 1100, parts=2)
    results = []
    for drift in ("1s", "5m", None):
        app = App(f"{kind}{drift}", memory_url, parallelism=parallelism, checkpoint_interval="10ms")
        out = ListSink()
        a, b = two(app, lateness="1h", idle="100ms")
        JOINS[kind](a, b, drift).to(out)
        await app.start()
        readers = [each["input"] for each in app.statistics()["streams"].values()]
        await until(lambda app=app: rows_in(app) == 1500, "all rows")  # type: ignore[misc]
        await app.stop(drain=True)
        assert len(readers) > 2
        results.append(sorted(map(repr, out.rows)))
    assert len(results[0]) > 100
    assert results[0] == results[1] == results[2]


def rows_in(app: App) -> int:
    return sum(task["input"].get("rows_in", 0) for name, task in app.statistics()["streams"].items() if "read" in name)


async def test_joins_of_joins_come_to_their_end(memory_url: str) -> None:
    """Three sources, of which each pair is aligned, one far behind the others; checkpoints all the while."""
    for topic, rows, step_ms in (("a", 20_000, 1000), ("b", 4_000, 5000), ("c", 200, 100_000)):
        publish(memory_url, topic, rows, step_ms, parts=2)
    app = App("three", memory_url, parallelism=2, checkpoint_interval="5ms")
    a, b = two(app)
    c = app.stream("c", schema=SCHEMA, time="ts").rename({"n": "o", "ts": "then"})
    joined = a.join(b, on="k", between=("-4s", "4s"), max_drift="10s")
    joined.join_asof(c, on="k", max_drift="10s").to(ListSink())
    async with running(app):
        await until(lambda: rows_in(app) == 24_200, "all rows")


async def test_a_table_that_is_first_is_read_however_far_it_goes(memory_url: str) -> None:
    publish(memory_url, "a", 50, SECOND)
    publish(memory_url, "b", 3 * BATCH, SECOND)
    app = App("table", memory_url)
    a = app.stream("a", schema=SCHEMA, time="ts")
    table = app.table("b", key="k", schema=SCHEMA, time="ts").rename({"n": "m", "ts": "at"})
    a.join_asof(table, on="k").to(ListSink())
    async with running(app):
        await until(lambda: rows_in(app) == 3 * BATCH + 50, "all rows")


def test_max_drift_is_of_joins_by_event_time() -> None:
    a, b = two(App("refused"))
    with pytest.raises(UserError, match="max_drift= is for joins by event time"):
        a.join(b, on="k", max_drift="1m")
    with pytest.raises(UserError, match="max_drift"):
        a.join(b, on="k", window=tumbling("1m"), max_drift="soon")
    with pytest.raises(UserError, match="max_drift"):
        a.join_asof(b, on="k", max_drift="-1s")


# -- partitions of one source -----------------------------------------------------------------------------------------


def skewed(url: str, step_ms: tuple[int, ...] = (10 * SECOND, SECOND), rows: int = 1000) -> None:
    """A topic of which each partition has so many rows, of different density in event time."""
    broker = MemoryBroker.get(url)
    broker.create_topic("in", len(step_ms))
    for part, step in enumerate(step_ms):
        broker.publish("in", [b'{"k":%d,"n":%d,"ts":%d}' % (n % 7, n, n * step) for n in range(rows)], partition=part)


def minutes(app: App, **options: Any) -> Stream:
    rows = app.stream("in", schema=SCHEMA, time="ts", **options)
    return rows.key_by("k").window(tumbling("1m")).aggregate(n=count())


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
async def test_partitions_of_a_source_wait_for_the_one_that_is_furthest_behind(
    parallelism: int, memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The windows are those of partitions that are read as they come."""
    skewed(memory_url)
    monkeypatch.setattr(Reader.__init__, "__kwdefaults__", {"max_rows": 20})  # rows of a batch
    read_batch, lock = MemorySource.read_batch, threading.Lock()
    results, apart = [], {}
    for drift in ("5m", None):
        read, furthest = {0: 0, 1: 0}, [0]

        def noted(self: MemorySource, max_rows: int, timeout: float, read: Any = read, furthest: Any = furthest) -> Any:
            batch = read_batch(self, max_rows, timeout)
            with lock:
                for (_, part), offset in ({} if batch is None else batch.offsets).items():
                    read[part] = offset * (10 * SECOND, SECOND)[part]
                if read[1] < 1000 * SECOND:  # else it has no more rows
                    furthest.append(read[0] - read[1])
            return batch

        monkeypatch.setattr(MemorySource, "read_batch", noted)
        app = App(f"apart{drift}", memory_url, parallelism=parallelism, checkpoint_interval="10ms")
        out = ListSink()
        minutes(app, idle="1h", max_drift=drift).to(out)
        await app.start()
        await until(lambda app=app: rows_in(app) == 2000, "all rows")  # type: ignore[misc]
        await app.stop(drain=True)
        results.append(sorted(map(repr, out.rows)))
        apart[drift] = max(furthest)
    assert results[0] == results[1] != []
    assert apart["5m"] <= 300 * SECOND + 20 * 10 * SECOND, "the drift, and a batch"
    assert parallelism > 1 or apart[None] > 2000 * SECOND


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
async def test_a_partition_without_rows_holds_the_others_until_it_is_idle_and_goes_on_first(
    parallelism: int, memory_url: str
) -> None:
    """What comes into it while the others wait for it is read at once, though nobody has become idle."""
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("quiet", 2)
    broker.publish("quiet", [b'{"k":1,"n":%d,"ts":%d}' % (n, n * SECOND) for n in range(50_000)], partition=0)
    broker.publish("quiet", [b'{"k":1,"n":0,"ts":0}'], partition=1)
    app = App("quiet", memory_url, parallelism=parallelism)
    rows = app.stream("quiet", schema=SCHEMA, time="ts", idle="1h", max_drift="5m")
    rows.key_by("k").window(tumbling("1m")).aggregate(n=count()).to(ListSink())

    def ahead() -> list[str]:
        return [place for task in app.statistics()["streams"].values() for place in task["input"].get("ahead", [])]

    async with running(app):
        await until(lambda: ahead() == ["quiet[0]"] and rows_in(app) > 1, "the backlog to wait")
        was = rows_in(app)
        broker.publish("quiet", [b'{"k":1,"n":1,"ts":%d}' % (100_000 * SECOND)], partition=1)
        await until(lambda: rows_in(app) > was + BATCH, "the backlog to go on")


async def test_an_idle_partition_holds_none(memory_url: str) -> None:
    MemoryBroker.get(memory_url).create_topic("in", 3)  # one of which has no rows at all
    rows = [b'{"k":1,"n":%d,"ts":%d}' % (n, n * SECOND) for n in range(40_000)]
    MemoryBroker.get(memory_url).publish("in", rows, partition=0)
    MemoryBroker.get(memory_url).publish("in", rows[:10], partition=1)
    app = App("idle", memory_url)
    minutes(app, idle="50ms", max_drift="1m").to(ListSink())
    async with running(app):
        await until(lambda: rows_in(app) == 40_010, "all rows")


def test_a_source_whose_partitions_cannot_wait_is_refused(tmp_path: Path) -> None:
    app = App("refused")
    (tmp_path / "a.csv").write_text("n\n1\n")

    @app.agent("in", schema={"n": "int64"})
    async def numbers(value: Any) -> Any:
        return value

    for source, said in (
        (files(tmp_path / "*.csv"), "is for partitions that can wait for each other, but .* has none"),
        (numbers, "is for partitions, and an agent has none"),
    ):
        with pytest.raises(UserError, match=said):
            app.stream(source, schema={"n": "int64"}, time="n", max_drift="5m")
    with pytest.raises(UserError, match="stream: max_drift"):
        app.stream("in", max_drift="soon")
