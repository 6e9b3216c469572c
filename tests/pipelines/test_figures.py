"""What `app.statistics()` says of a running app: where its time goes, and which rows came along which edge."""

import asyncio
from typing import Any

import pyarrow as pa

import sabot
from sabot import App, col, tumbling
from sabot.testing import END, ScriptedSource
from tools.agent_tools import bounded, publish, until


def numbers(*batches: range) -> list[pa.RecordBatch]:
    return [pa.RecordBatch.from_pydict({"n": list(each), "k": [n % 2 for n in each]}) for each in batches]


async def test_an_agent_task_waits_for_calls_and_is_idle_without_them(memory_url: str) -> None:
    app, go_on = App("shop", broker=memory_url), asyncio.Event()

    @app.agent("orders", concurrency=2)
    async def ask(ctx: Any) -> None:
        await go_on.wait()

    def task() -> dict[str, Any]:
        return app.statistics()["agent_tasks"]["agents"]

    await app.start()
    try:
        await until(lambda: task()["state"] == "idle" and task()["time"]["idle"] > 0.05)
        assert task()["time"]["waiting"] == 0.0
        publish(app, "orders", [{"n": 1}, {"n": 2}, {"n": 3}])
        await until(lambda: task()["time"]["waiting"] > 0.05)
        figures = app.statistics()["operators"]["shop.ask"]
        assert (figures["in_flight"], figures["limit"], figures["attempts"]) == (2, 2, 0)
        assert figures["running_seconds"] > 0.05
        go_on.set()
        await until(lambda: task()["state"] == "idle")
        figures = app.statistics()["operators"]["shop.ask"]
        assert (figures["in_flight"], figures["attempts"]) == (0, 3)
        assert figures["attempt_seconds"] > 0.05
    finally:
        await bounded(app.stop())


async def test_the_edges_of_all_tasks_say_how_many_rows_went_where(memory_url: str) -> None:
    """Two subtasks: the figures of an edge are those of all tasks of its stage together."""
    app = App("shop", broker=memory_url, parallelism=2, restart="none")
    source = ScriptedSource([*numbers(range(60), range(60, 100)), END])
    kept = app.stream(source, time="n").filter(col("n") >= 10)
    kept.to("all")
    kept.key_by("k").window(tumbling("10ms")).aggregate(n=sabot.count()).to("counts")
    await bounded(app.run())
    rows: dict[tuple[str, str], int] = {}
    for figures in app.statistics()["streams"].values():
        for edge in figures["edges"]:
            way = edge["from"], edge["to"]
            rows[way] = rows.get(way, 0) + edge["rows"]
        assert figures["state"] == ""  # it has ended
    assert rows == {
        ("read-1", "filter-1"): 100,
        ("read-1", "write-1"): 0,  # dead letters
        ("write-1", "write-1"): 0,
        ("filter-1", "write-2"): 90,
        ("write-2", "write-2"): 90,
        ("filter-1", "window-1"): 90,
        ("window-1", "tumbling-1"): 90,
        ("tumbling-1", "write-3"): 18,  # nine windows of two keys
        ("write-3", "write-3"): 18,
    }
