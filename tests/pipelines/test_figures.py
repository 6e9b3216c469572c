"""What `app.statistics()` says of a running app: where its time goes, and which rows came along which edge."""

import asyncio
import logging
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families

import sabot
from sabot import App, CheckpointFailed, col, tumbling
from sabot.engine.checkpoint import Coordinator, TaskSnapshot
from sabot.engine.letters.log import LetterLog, ReasonCounts
from sabot.testing import END, ManualClock, MemoryBroker, ScriptedSource
from tools.agent_tools import bounded, publish, until


def labelled(app: App, name: str) -> list[tuple[dict[str, str], float]]:
    """The labels and values of a metric."""
    families = text_string_to_metric_families(app.agent_runtime.runner.watch.metrics.text())
    return [(each.labels, each.value) for family in families for each in family.samples if each.name == name]


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


def state_in(app: App) -> dict[str, tuple[int, int]]:
    """The keys and bytes of the state by operator, of all subtasks together."""
    found: dict[str, tuple[int, int]] = {}
    for figures in app.statistics()["streams"].values():
        for id, operator in figures["operators"].items():
            if "state_keys" in operator:
                keys, size = found.get(id, (0, 0))
                found[id] = keys + operator["state_keys"], size + operator["state_bytes"]
    return found


@pytest.mark.parametrize("state", ["memory", "rocksdb"])
async def test_the_state_of_streams_is_counted_by_step(memory_url: str, tmp_path: Path, state: str) -> None:
    place = "memory" if state == "memory" else f"rocksdb://{tmp_path}"
    app = App("shop", broker=memory_url, parallelism=2, state=place)
    schema = {"n": "int64", "k": "int64"}
    stream = app.stream("rows", schema=schema, time="n")
    keyed = stream.key_by("n")
    keyed.window(tumbling("1h")).aggregate(rows=sabot.count()).named("count").to("counts")
    keyed.deduplicate().named("once").to("firsts")
    stream.join(stream, on="n", between=("-1s", "1s")).named("pairs").to("joined")
    await app.start()
    try:
        publish(app, "rows", [{"n": n, "k": n % 3} for n in range(300)])
        await until(lambda: state_in(app).get("count", (0, 0))[0] == 300)
        await until(lambda: state_in(app)["once"][0] == 300 and state_in(app)["pairs"][0] >= 300)
        assert all(size > 300 for _, size in state_in(app).values() if _ >= 300)
        keys = [value for labels, value in labelled(app, "sabot_state_keys") if labels["operator"].endswith(" count")]
        assert (len(keys), sum(keys)) == (2, 300)
    finally:
        await bounded(app.stop())


async def test_keys_that_have_left_memory_are_counted_too(tmp_path: Path) -> None:
    app = App("shop", state=str(tmp_path), memory_budget=200_000)
    app.stream([{"n": n} for n in range(6_000)]).key_by("n").deduplicate().named("once").to([])
    await app.run()
    (found,) = [
        task["operators"]["once"] for task in app.statistics()["streams"].values() if "once" in task["operators"]
    ]
    assert found["cold"] > 1_000
    assert found["state_keys"] == 6_000


async def test_late_rows_say_how_late_they_were(memory_url: str) -> None:
    app = App("shop", broker=memory_url)
    rows = app.stream("rows", schema={"n": "int64", "k": "int64"}, time="n", idle="1h")
    rows.key_by("k").window(tumbling("1s")).aggregate(n=sabot.count()).named("count").to("counts")

    def late() -> dict[str, Any]:
        tasks = app.statistics()["streams"].values()
        return next((task["operators"]["count"] for task in tasks if "count" in task["operators"]), {})

    await app.start()
    try:
        publish(app, "rows", [{"n": 1_000_000, "k": 0}])
        await until(lambda: late().get("watermark_ms", 0) is not None and late().get("watermark_ms", 0) >= 999_000)
        assert "late_most_ms" not in late()
        publish(app, "rows", [{"n": 1_000_000 - 5_000, "k": 0}] * 98 + [{"n": 1_000_000 - 600_000, "k": 0}] * 2)
        await until(lambda: late()["late_rows"] == 100)
        assert abs(late()["late_most_ms"] - 600_000) <= 1_000
        assert 5_000 * 0.8 <= late()["late_p50_ms"] <= 5_000 * 1.2
        assert late()["late_p99_ms"] >= 500_000
        lateness = {labels["quantile"]: value for labels, value in labelled(app, "sabot_late_seconds")}
        assert lateness["1"] == late()["late_most_ms"] / 1000
    finally:
        await bounded(app.stop())


LATE_STEPS = {
    "window": lambda rows: rows.key_by("k").window(tumbling("1s")).aggregate(n=sabot.count()),
    "session": lambda rows: rows.key_by("k").window(sabot.session("1s")).aggregate(n=sabot.count()),
    "join": lambda rows: rows.join(rows.select("k", "n"), on="k", between=("-1s", "1s")),
    "sorted": lambda rows: rows.sorted(within="1s"),
}


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("kind", LATE_STEPS)
async def test_after_a_restart_late_rows_and_how_late_they_were_go_on_together(
    kind: str, memory_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def built() -> App:
        app = App("shop", broker=memory_url, state=tmp_path, parallelism=1)
        rows = app.stream("rows", schema={"n": "int64", "k": "int64"}, time="n", idle="1h")
        LATE_STEPS[kind](rows).named("step").to("out")
        return app

    def figures(app: App) -> dict[str, Any]:
        tasks = app.statistics()["streams"].values()
        found = next((task["operators"]["step"] for task in tasks if "step" in task["operators"]), {})
        return {name: found.get(name) for name in ("late_rows", "late_p50_ms", "late_p99_ms", "late_most_ms")}

    app = built()
    await app.start()
    publish(app, "rows", [{"n": 1_000_000, "k": 0}])
    await until(lambda: any(task["watermark_ms"] == 1_000_000 for task in app.statistics()["streams"].values()))
    publish(app, "rows", [{"n": 1_000_000 - 5_000, "k": 0}] * 98 + [{"n": 1_000_000 - 600_000, "k": 0}] * 2)
    await until(lambda: figures(app)["late_rows"] == (200 if kind == "join" else 100))  # of each side of a join
    before = figures(app)
    await bounded(app.stop())
    again = built()
    caplog.clear()
    await again.start()
    try:
        assert figures(again) == before
        publish(again, "rows", [{"n": 1_000_000 - 20_000, "k": 0}])
        await until(lambda: figures(again)["late_rows"] > before["late_rows"])
        now = figures(again)
        assert (now["late_p50_ms"], now["late_most_ms"]) == (before["late_p50_ms"], before["late_most_ms"])
        await until(lambda: any("too late" in each.message for each in caplog.records))
        line = next(each.message for each in caplog.records if "too late" in each.message)
        assert line.startswith("101 rows came too late")
        assert re.search(
            r"since the last message by up to (19|20)(\.\d)? s \(half of them by up to [45]\S* s, 99 % by up to \S+ min",
            line,
        )
    finally:
        await bounded(again.stop())


async def test_dead_letters_are_counted_by_step_and_reason(memory_url: str) -> None:
    app = App("shop", broker=memory_url)

    def check(row: dict[str, Any]) -> Any:
        if row["n"] == 3:
            raise KeyError(f"no customer {row['k']}")
        yield row

    schema = {"n": "int64", "k": "int64"}
    app.stream("rows", schema=schema).flat_map(check, schema=schema, on_error="dead_letter").to("checked")
    await app.start()
    try:
        broker = MemoryBroker.get(memory_url)
        broker.publish("rows", [b"{", b'{"n": "x"}', b'{"n": "y"}', *({"n": n, "k": n} for n in range(5))])
        await until(
            lambda: any(each["input"].get("dead_letters") == 3 for each in app.statistics()["streams"].values())
        )
        await until(lambda: sum(value for _, value in labelled(app, "sabot_dead_letter_reasons_total")) == 4)
        reasons = {
            (labels["operator"], labels["reason"]): value
            for labels, value in labelled(app, "sabot_dead_letter_reasons_total")
        }
        assert reasons["read-1/0 flat_map-1", "KeyError"] == 1
        assert sorted(value for (operator, _), value in reasons.items() if operator == "read-1/0") == [1, 2]
    finally:
        await bounded(app.stop())


async def test_the_first_dead_letter_is_logged_with_its_reason_and_topic_and_the_others_by_reason_at_the_stop(
    memory_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = App("shop", broker=memory_url)
    app.stream("rows", schema={"n": "int64"}, until="now").to("checked")
    MemoryBroker.get(memory_url).publish("rows", [b"{", b'{"n": "x"}', b'{"n": "y"}', {"n": 1}])
    with caplog.at_level(logging.WARNING, logger="sabot"):
        await bounded(app.run())
    first, rest = [line for line in caplog.messages if "dead letters" in line]
    assert first.startswith("rows: the first row went to the dead letters (topic rows.dlq): ")
    assert re.match(r"rows: 2 more dead letters in \d+ s: 2 × ", rest)


async def test_rows_that_an_expression_refuses_are_logged_by_step_at_the_stop(
    memory_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = App("shop", broker=memory_url)
    rows = app.stream("rows", schema={"n": "string"}, until="now", on_error="dead_letter")
    rows.select(n=col("n").cast("int64")).to("checked")
    MemoryBroker.get(memory_url).publish("rows", [{"n": text} for text in ("1", "x", "y")])
    with caplog.at_level(logging.WARNING, logger="sabot"):
        await bounded(app.run())
    first, rest = caplog.messages
    assert ", the first one: " in first
    assert re.search(r": 1 more dead letter in \d+ s: 1 × ", rest)


@pytest.mark.parametrize(("policy", "rows"), [("dead_letter", "dead letters"), ("null", "null rows")])
async def test_rows_for_which_a_step_fails_are_logged_at_the_first_and_by_class_of_error_at_the_stop(
    policy: str, rows: str, memory_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = App("shop", broker=memory_url)

    def check(row: dict[str, Any]) -> Any:
        if row["n"] < 3:
            raise KeyError(row["n"])
        yield row

    schema = {"n": "int64"}
    app.stream("rows", schema=schema, until="now").flat_map(check, schema=schema, on_error=policy).to("checked")
    MemoryBroker.get(memory_url).publish("rows", [{"n": n} for n in range(5)])
    with caplog.at_level(logging.WARNING, logger="sabot"):
        await bounded(app.run())
    first, rest = caplog.messages
    assert ", the first one: " in first
    assert re.search(rf": 2 more {rows} in \d+ s: 2 × KeyError", rest)


def test_dead_letters_are_logged_at_once_then_once_a_minute_by_reason(caplog: pytest.LogCaptureFixture) -> None:
    clock, reasons = ManualClock(), ReasonCounts()
    log = LetterLog(reasons, clock)
    with caplog.at_level(logging.WARNING, logger="sabot"):
        reasons.add("row 1 is no JSON", 3)
        log.begin("row 1 is no JSON", "%s: the first row", "rows")
        assert log.begun
        clock.advance(59)
        reasons.add("row 7 has no time")
        log.note("rows")
        assert caplog.messages == ["rows: the first row"]
        clock.advance(1)
        log.note("rows")
        assert caplog.messages[1:] == ["rows: 3 more dead letters in 60 s: 2 × row … is no JSON; 1 × row … has no time"]
        log.flush("rows")
        assert len(caplog.messages) == 2


async def test_a_checkpoint_says_when_it_was_complete_and_why_it_failed(memory_url: str) -> None:
    clock = ManualClock(1_800_000_000.0)
    coordinator = Coordinator(clock=clock)
    assert coordinator.statistics()["last_at"] is None
    coordinator.attach("a", lambda id: coordinator.acknowledge(id, "a", TaskSnapshot()), lambda id: None)
    await coordinator.wait(coordinator.trigger())
    assert coordinator.statistics()["last_at"] == clock.time()
    clock.advance(60)
    coordinator.attach("b", lambda id: coordinator.decline(id, "b", "its disk is full"), lambda id: None)
    with pytest.raises(CheckpointFailed):
        await coordinator.wait(coordinator.trigger())
    figures = coordinator.statistics()
    assert (figures["last_at"], figures["failed_at"]) == (clock.time() - 60, clock.time())
    assert "its disk is full" in figures["last_error"]
