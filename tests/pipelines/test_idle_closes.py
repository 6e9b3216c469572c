"""`idle_closes=True`: a stream of which all partitions are silent closes its windows, also behind a restart."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import sabot
from sabot import App, Stream, col, hopping, session, tumbling
from sabot.testing import ManualClock, MemoryBroker
from tools.agent_tools import records, started, until

SCHEMA = {"n": "int64", "k": "string", "ts": "int64"}
ROWS = [{"n": n, "k": "abc"[n % 3], "ts": 100 * n + random.Random(n).randrange(500)} for n in range(200)]


def publish(url: str) -> None:
    broker = MemoryBroker.get(url)
    broker.create_topic("in", partitions=2)
    for part in (0, 1):
        broker.publish("in", ROWS[part::2], partition=part)


def made(url: str, clock: ManualClock, steps: Any, *, parallelism: int = 1, directory: Path | None = None) -> App:
    app = App("silent", url, clock=clock, parallelism=parallelism, checkpoint_dir=directory)
    stream = app.stream("in", schema=SCHEMA, time="ts", lateness="1s", idle="2s", idle_closes=True)
    steps(stream).to("out")
    return app


async def results(app: App, clock: ManualClock, rows: int, read: int = len(ROWS)) -> list[dict[str, Any]]:
    """The clock stands still until all rows are read, so that no partition is silent that is only not read yet."""

    def there() -> bool:
        clock.advance(0.1)
        return len(records(app, "out")) >= rows

    async with started(app):
        await until(lambda: sum(_rows_in(app)) == read, "the rows")
        await until(there, "the windows")
    return [record.value for record in records(app, "out")]


def counted(window: Any) -> Any:
    return lambda stream: stream.key_by("k").window(window).aggregate(n=sabot.count())


WINDOWS = {
    "tumbling": (tumbling("7s"), "select k, ts // 7000 * 7000 s from sent_rows"),
    "hopping": (hopping("6s", "2s"), "select k, (ts // 2000 - h) * 2000 s from sent_rows, range(3) as hops(h)"),
    "session": (session("1m"), "select k, min(ts) over (partition by k) s from sent_rows"),
}


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("kind", WINDOWS)
async def test_all_windows_of_a_topic_that_has_ended_in_fact_are_closed(
    memory_url: str, kind: str, parallelism: int
) -> None:
    window, windows = WINDOWS[kind]
    publish(memory_url)
    sent_rows = pa.Table.from_pylist(ROWS)  # noqa: F841  read by DuckDB
    expected = duckdb.sql(f"select k, s, count(*) from ({windows}) group by k, s").fetchall()
    clock = ManualClock()
    found = await results(made(memory_url, clock, counted(window), parallelism=parallelism), clock, len(expected))
    assert Counter((row["k"], row["window_start"], row["n"]) for row in found) == Counter(expected)


async def test_windows_behind_windows_are_closed_too(memory_url: str) -> None:
    """The last seconds are in one minute, and in a window of two minutes behind that."""

    def steps(stream: Stream) -> Stream:
        seconds = stream.window(tumbling("1s")).aggregate(n=sabot.count())
        return seconds.filter(col("n") > 0).select("n").window(tumbling("2m")).aggregate(total=sabot.sum("n"))

    publish(memory_url)
    clock = ManualClock()
    (found,) = await results(made(memory_url, clock, steps), clock, 1)
    assert found == {"window_start": 0, "window_end": 120_000, "total": len(ROWS)}


async def test_silence_behind_a_restart_closes_windows_without_a_new_row(memory_url: str, tmp_path: Path) -> None:
    """All rows were read before it; none comes after."""
    publish(memory_url)
    clock, steps = ManualClock(), counted(tumbling("1h"))
    first = made(memory_url, clock, steps, directory=tmp_path)
    async with started(first):
        await until(lambda: sum(_rows_in(first)) == len(ROWS), "the rows")
    assert not records(first, "out")
    second = made(memory_url, clock, steps, directory=tmp_path)
    found = await results(second, clock, 3, read=0)
    assert sum(_rows_in(second)) == 0
    assert sorted((row["k"], row["n"]) for row in found) == [("a", 67), ("b", 67), ("c", 66)]


def priced(sales: Stream, prices: Stream) -> Stream:
    return sales.join_asof(prices.upsert("k"), on="k").select("n", price=col("n_right"))


def together(sales: Stream, prices: Stream) -> Stream:
    return sales.union(prices).window(tumbling("5s")).aggregate(n=sabot.sum("n")).select("n")


@pytest.mark.parametrize(
    ("steps", "before", "after"),
    [(priced, [(1, 10)], [(0, None), (2, 10)]), (together, [(1 + 10,)], [(2,)])],
)
async def test_a_stream_that_is_silent_behind_a_restart_holds_back_only_what_it_held_back_before(
    memory_url: str, tmp_path: Path, steps: Any, before: list[Any], after: list[Any]
) -> None:
    """Its readers told no watermark before it grew, so that what was complete waited for a row of it, or its idleness."""
    clock, broker = ManualClock(), MemoryBroker.get(memory_url)
    for topic in ("sales", "prices"):
        broker.create_topic(topic, partitions=1)

    async def live(rows: int, expected: list[Any]) -> None:
        app = App("silent", memory_url, clock=clock, checkpoint_dir=tmp_path)
        sales, prices = (app.stream(topic, schema=SCHEMA, time="ts", idle="1h") for topic in ("sales", "prices"))
        steps(sales, prices).to("out")
        async with started(app):
            await until(lambda: sum(_rows_in(app)) == rows and len(records(app, "out")) >= len(expected), "the results")
        assert [tuple(record.value.values()) for record in records(app, "out")] == expected

    broker.publish("prices", [{"n": 10, "k": "a", "ts": 0}, {"n": 0, "k": "a", "ts": 12_000}])
    broker.publish("sales", [{"n": 1, "k": "a", "ts": 4_000}, {"n": 0, "k": "b", "ts": 5_000}])
    await live(4, before)
    broker.publish("sales", [{"n": 2, "k": "a", "ts": 7_000}, {"n": 0, "k": "b", "ts": 11_000}])
    await live(2, [*before, *after])


def _rows_in(app: App) -> list[int]:
    return [
        task["input"]["rows_in"] for task in app.statistics()["streams"].values() if "rows_in" in task.get("input", {})
    ]
