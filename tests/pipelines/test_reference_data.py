"""Streams that are joined with data that ends and has no time of its own, and what a step of two inputs needs of its sources."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness import until

import sabot
from sabot import App, Stream, UserError, col, files, tumbling
from sabot.testing import MemoryBroker

PLACES = {"k": [f"k{i}" for i in range(10)], "name": [f"n{i}" for i in range(10)]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = {"k": [f"k{i % 10}" for i in range(1000)], "ts": [i * 100 for i in range(1000)]}
    pq.write_table(pa.table(rows), tmp_path / "events.parquet", row_group_size=50)
    pq.write_table(pa.table(PLACES), tmp_path / "places.parquet")
    return tmp_path


def minutes(stream: Stream) -> int:
    """How many rows are in windows, in all."""
    counted = stream.key_by("name").window(tumbling("10s")).aggregate(n=sabot.count()).collect()
    return sum(counted.column("n").to_pylist())


@pytest.mark.one_in(9, "some hundredths of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("way", ["lookup", "broadcast lookup", "upserted", "join", "broadcast"])
def test_no_row_is_late_behind_reference_data_without_event_time(folder: Path, way: str, parallelism: int) -> None:
    app = App("reference", parallelism=parallelism)
    events = app.stream(files(str(folder / "events.parquet")), time="ts")
    places = app.stream(files(str(folder / "places.parquet")))
    joined = {
        "lookup": lambda: events.lookup(places, on="k", how="inner"),
        "upserted": lambda: events.lookup(places.upsert("k"), on="k", how="inner"),
        "join": lambda: events.join(places, on="k"),
        "broadcast": lambda: events.join(places.broadcast(), on="k"),
        "broadcast lookup": lambda: events.lookup(places.broadcast(), on="k"),
    }[way]()
    assert minutes(joined) == 1000


def test_rules_without_event_time_do_not_hold_it_back(folder: Path) -> None:
    app = App("rules", parallelism=2)
    events = app.stream(files(str(folder / "events.parquet")), time="ts").key_by("k")
    rules = app.stream(files(str(folder / "places.parquet"))).broadcast()

    def named(row: dict[str, Any], ctx: Any) -> dict[str, Any]:
        return {"name": ctx.broadcast("names").get(row["k"])}

    def rule(row: dict[str, Any], ctx: Any) -> None:
        ctx.broadcast("names").put(row["k"], row["name"])

    processed = events.connect(rules).process(named, right=rule, schema={"name": "string"})
    assert minutes(processed.filter(col("name").is_not_null())) == 1000


def test_two_streams_that_look_each_other_up_do_not_wait_for_ever(folder: Path) -> None:
    app = App("mutual")
    events = app.stream(files(str(folder / "events.parquet")))
    places = app.stream(files(str(folder / "places.parquet")))
    one, other = events.lookup(places, on="k").select("k"), places.lookup(events, on="k").select("k")
    assert one.union(other).collect().num_rows == 1010


def test_keep_asks_only_the_side_that_it_is_of_for_event_time(folder: Path) -> None:
    app = App("keep")
    events = app.stream(files(str(folder / "events.parquet")), time="ts")
    places = app.stream(files(str(folder / "places.parquet")))
    assert minutes(events.join(places.broadcast(), on="k", keep=("1h", None))) == 1000
    with pytest.raises(UserError, match="all rows are kept"):
        events.join(places.broadcast(), on="k", keep=(None, "1h"))
    with pytest.raises(UserError, match="keep= of the other stream, whose rows are changes"):
        events.join(places.upsert("k"), on="k", keep="1h")


def test_versions_that_others_of_their_batch_replace_are_seen_by_an_as_of_join(tmp_path: Path) -> None:
    versions = {"k": [1] * 10, "ts": list(range(10)), "x": list(range(10))}
    pq.write_table(pa.table(versions), tmp_path / "versions.parquet")
    pq.write_table(pa.table({"k": [1] * 5, "ts": [0, 2, 4, 6, 8]}), tmp_path / "rows.parquet")
    app = App("versions", parallelism=2)
    rows = app.stream(files(str(tmp_path / "rows.parquet")), time="ts")
    table = app.table(files(str(tmp_path / "versions.parquet")), key="k", time="ts")
    assert rows.join_asof(table, on="k").collect().column("x").to_pylist() == [0, 2, 4, 6, 8]
    even = table.filter(col("x") % 4 != 2).rename({"x": "y"})  # a version that does not pass ends the one before
    assert rows.join_asof(even, on="k").collect().column("y").to_pylist() == [0, None, 4, None, 8]
    with pytest.raises(UserError, match="changes as rows come"):
        rows.join_asof(table.group_by("k").aggregate(n=sabot.count()), on="k")
    with pytest.raises(UserError, match="one row for each k, not for each x"):
        rows.with_columns(x=col("k")).join_asof(table, on="x")


def tasks_of(app: App) -> list[str]:
    return list(app.agent_runtime.runner.watch.report()["streams"])


def last_of(url: str, topic: str) -> str:
    records = MemoryBroker.get(url).records(topic)
    return str(records[-1].payload) if records else ""


async def test_a_broadcast_join_runs_in_as_many_tasks_after_a_restart(tmp_path: Path) -> None:
    url, seen = "memory://wide", []
    for _ in range(2):
        app = App("wide", broker=url, state=str(tmp_path / "state"), parallelism=4)
        left = app.stream("left", schema={"k": "string", "n": "int64"})
        right = app.stream("right", schema={"k": "string", "m": "int64"})
        MemoryBroker.get(url).publish("left", [{"k": "a", "n": len(seen)}])
        MemoryBroker.get(url).publish("right", [{"k": "a", "m": len(seen)}])
        left.join(right.broadcast(), on="k").group_by("k").aggregate(n=sabot.count()).upsert("k").to("out")
        await app.start()
        names = {name.split("/")[0] for name in app.agent_runtime.runner.watch.report()["streams"]}
        counts = {name: len([task for task in tasks_of(app) if task.startswith(f"{name}/")]) for name in names}
        seen.append(counts)
        await until(lambda: f'"n":{len(seen) ** 2}' in last_of(url, "out"), "the join's rows")
        await app.stop()
    assert seen[0] == seen[1]


def test_a_misspelt_column_of_a_file_is_told_where_it_is_written(folder: Path) -> None:
    events = App("typo").stream(files(str(folder / "events.parquet")), time="ts")
    with pytest.raises(UserError, match="key_by: there is no column 'kk'") as refused:
        events.key_by("kk")
    assert "did you mean 'k'? the columns are k, ts" in str(refused.value.hint)
    with pytest.raises(UserError, match="join: there is no column 'z'"):
        events.join(events, on="z")
