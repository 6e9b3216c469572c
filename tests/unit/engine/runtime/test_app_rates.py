"""The rates between two readings of an app's figures."""

from typing import Any

from sabot.base.figures import AppFigures
from sabot.engine.plan.drawing import BoxFigures, LinkFigures, LinkKey
from sabot.engine.runtime.watch.app_rates import AppReading, rates_between


def reading(seconds: float, streams: dict[str, Any] | None = None, **parts: Any) -> AppReading:
    figures = AppFigures.of({"streams": streams or {}, **parts})
    return AppReading("shop", seconds, 1_000_000.0 + seconds * 1000, 0, figures)


def task(rows: int = 0, time: dict[str, float] | None = None, **more: Any) -> dict[str, Any]:
    given = {"watermark_ms": None, "operators": {}, "edges": [], "input": {}}
    return given | {"rows": rows, "time": {"idle": 0.0} | (time or {})} | more


def edge(origin: str, target: str, rows: int, fill: float | None = None, branch: str = "") -> dict[str, Any]:
    whole = {"from": origin, "to": target, "branch": branch, "rows": rows}
    return whole if fill is None else whole | {"fill": fill}


def test_the_subtasks_of_a_task_are_one_row() -> None:
    step = {"rows_in": 100, "rows_out": 50, "seconds": 1.0, "late_rows": 3}
    before = reading(10, {"window-1/0": task(100), "window-1/1": task(200)})
    after = reading(
        12,
        {
            "window-1/0": task(300, {"busy": 2.0}, watermark_ms=1_002_000, operators={"w": step}, input={"fill": 0.1}),
            "window-1/1": task(500, {"idle": 2.0}, watermark_ms=1_011_000, operators={"w": step}, input={"fill": 0.7}),
        },
    )
    (row,) = rates_between(before, after).tasks
    assert (row.id, row.subtasks, row.rows_in) == ("window-1", 2, 250.0)
    assert (row.shares["busy"], row.shares["idle"]) == (0.5, 0.5)
    assert row.fill == 0.7
    assert row.behind_s == 10.0  # of the slower one
    assert row.counts["late"] == 6
    assert (row.steps["w"].rows_in, row.steps["w"].share) == (100.0, 0.5)


def test_a_source_has_its_lag_and_a_sink_its_name() -> None:
    streams = {
        "read-1/0": task(0, input={"source": "orders", "lag": {"orders[0]": 5, "orders[1]": 6}, "dead_letters": 2}),
        "write-1/0": task(0, operators={"write-1": {"rows_in": 4, "rows_out": 4, "sink": "minutes"}}),
    }
    rates = rates_between(reading(0), reading(2, streams))
    source, sink = rates.tasks
    assert (source.kind, source.name, source.lag, source.counts["dead"]) == ("source", "orders", 11, 2)
    assert (sink.kind, sink.name, sink.steps["write-1"].rows_out) == ("sink", "minutes", 2.0)
    assert rates.dead == 2


def test_links_have_the_sum_of_the_rates_and_the_fullest_channel() -> None:
    def at(rows: int, fill: float) -> dict[str, Any]:
        edges = [
            edge("read-1", "filter-1", rows),
            edge("filter-1", "window-1", rows, fill),
            edge("filter-1", "late", 2, 0.0, "late"),
        ]
        return task(rows, edges=edges)

    before = reading(0, {"read-1/0": at(0, 0.9), "read-1/1": at(0, 0.9)})
    rates = rates_between(before, reading(1, {"read-1/0": at(10, 0.2), "read-1/1": at(30, 0.5)}))
    assert rates.links == {
        LinkKey("read-1", "filter-1"): LinkFigures(40.0, None),
        LinkKey("filter-1", "window-1"): LinkFigures(40.0, 0.5),
        LinkKey("filter-1", "late", "late"): LinkFigures(0.0, 0.0),
    }
    assert rates.tasks[0].rows_out == 40.0  # without the branch of late rows
    assert rates.drawn().tasks["read-1"] == BoxFigures({}, subtasks=2)
    assert rates.drawn().links == rates.links


def test_counters_that_begin_anew_give_no_negative_rates() -> None:
    before = reading(10, {"read-1/0": task(1000, {"busy": 5.0}, operators={"f": {"rows_in": 1000}})})
    after = reading(11, {"read-1/0": task(10, {"busy": 0.1, "idle": 0.9}, operators={"f": {"rows_in": 10}})})
    (row,) = rates_between(before, after).tasks
    assert row.rows_in == 0.0
    assert row.steps["f"].rows_in == 0.0
    assert sum(row.shares.values()) == 1.0


def test_agents_their_sources_and_sinks_have_rows_of_their_own() -> None:
    def at(rows: int) -> dict[str, Any]:
        channel = {"rows": 30, "capacity_rows": 100, "bytes": 0, "capacity_bytes": 100}
        return {
            "agents": {"shop.a": {"messages_processed": rows, "dead_letters": 1}},
            "operators": {"shop.a": {"rows_out": 2 * rows}},
            "sources": {"shop.a/in": {"rows_in": rows, "lag": {"in[0]": 7}, "channel": channel}},
            "sinks": {"out": {"rows_out": 2 * rows, "channel": {**channel, "bytes": 60}}},
            "agent_tasks": {"agents": {"time": {"waiting": rows / 10, "idle": 0.0}}},
        }

    rates = rates_between(reading(0, **at(0)), reading(1, **at(10)))
    source, agents, sink = rates.tasks
    assert (source.id, source.rows_in, source.lag) == ("shop.a/in", 10.0, 7)
    assert (agents.rows_in, agents.rows_out, agents.fill, agents.counts["dead"]) == (10.0, 20.0, 0.3, 1)
    assert agents.shares["waiting"] == 1.0
    assert agents.steps["shop.a"].rows_in == 10.0
    assert (sink.id, sink.rows_out, sink.fill) == ("out", 20.0, 0.6)
    drawn = rates.drawn()
    assert set(drawn.tasks) == {"shop.a/in", "shop.a", "sinks/out"}
    assert drawn.tasks["shop.a"].dead_letters == 1
    assert drawn.links == {LinkKey("shop.a/in", "shop.a"): LinkFigures(10.0, 0.3)}
