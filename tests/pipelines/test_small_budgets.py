"""Programs whose state is larger than their memory budget, killed and restored with another parallelism: nothing of it is to be seen."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from harness import figures

import sabot
from sabot import App, Stream, col, count_window, hopping, pattern, session, step, tumbling
from sabot.testing import BARRIER, CRASH, END, ListSink, ScriptedSource
from sabot.testing import run as run_lives

SCHEMA = pa.schema([("key", pa.string()), ("n", pa.int64()), ("note", pa.string()), ("ts", pa.int64())])
AGGREGATES: dict[str, Any] = {
    "count": sabot.count(),
    "total": sabot.sum("n"),
    "most": sabot.max("note"),
    "all": sabot.collect_list("n"),
}
RISES = pattern("low", col("n") % 3 == 0).then("high", col("n") > step("low").last("n") + 5, times=2).within("90ms")
RANG = {"key": "string", "at": "int64", "name": "string"}


def arm(row: dict[str, Any], ctx: Any) -> None:
    ctx.timers.event(ctx.timestamp + row["n"] % 97, str(row["n"]))


def rang(timer: Any, ctx: Any) -> dict[str, Any]:
    return {"key": ctx.key, "at": timer.at, "name": timer.name}


PROGRAMS: dict[str, Callable[[Stream], Any]] = {
    "sessions": lambda rows: rows.key_by("key").window(session("40ms")).aggregate(**AGGREGATES),
    "texts in windows": lambda rows: rows.key_by("key").window(tumbling("400ms")).aggregate(**AGGREGATES),
    "top_n of windows": lambda rows: (
        rows.key_by("key").window(tumbling("400ms")).top_n(2, by="note", ties="dense_rank")
    ),
    "top_n of hopping windows": lambda rows: rows.key_by("key").window(hopping("800ms", "400ms")).top_n(3, by="n"),
    "texts of groups": lambda rows: rows.group_by("key").aggregate(**AGGREGATES).materialize(),
    "values over changes": lambda rows: (
        rows.group_by("key", "note")
        .aggregate(count=sabot.count(), n=sabot.max("n"))
        .group_by("key")
        .aggregate(least=sabot.min("note"), all=sabot.count_distinct("count"), total=sabot.sum("n"))
        .materialize()
    ),
    "count windows": lambda rows: rows.key_by("key").window(count_window(3)).aggregate(**AGGREGATES),
    "ttl": lambda rows: rows.key_by("key").aggregate(count=sabot.count(), total=sabot.sum("n"), ttl="60ms"),
    "groups with ttl": lambda rows: (
        rows.group_by("key").aggregate(**AGGREGATES, least=sabot.min("n"), ttl="60ms").materialize()
    ),
    "deduplicate within": lambda rows: rows.deduplicate("key", within="50ms"),
    "patterns": lambda rows: rows.key_by("key").pattern(
        RISES, first=step("low").first("n"), notes=step("high").list("note")
    ),
    "timers": lambda rows: rows.key_by("key").process(arm, schema=RANG, on_timer=rang),
    "over": lambda rows: rows.key_by("key").over(
        preceding="70ms", total=sabot.sum("n"), nth=sabot.row_number(), last=sabot.lag("note", 2), next=sabot.lead("n")
    ),
}


def script() -> list[Any]:
    rng = random.Random(11)
    given: list[Any] = []
    n = 0
    for number in range(40):
        rows = []
        for _ in range(40):
            key = n // 20 % 150 if rng.random() < 0.5 else rng.randrange(150)
            rows.append({"key": f"key {key}", "n": n, "note": f"note {n * 7 % 13}", "ts": 1_700_000_000_000 + n // 4})
            n += 1
        given.append(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
        if number % 6 == 4:
            given.append(BARRIER)
        if number in (9, 21, 30):
            given.append(CRASH)
    return [*given, END]


def results(
    program: Callable[[Stream], Any], folder: Path, given: list[Any], parallelism: list[int], **settings: Any
) -> set[str]:
    """What came out, once each; the lives of the app have these parallelisms, in turn."""
    sink = ListSink()
    lives: list[App] = []

    def build(place: Path) -> App:
        subtasks = parallelism[len(lives) % len(parallelism)]
        state = str(place / "state") if settings else None
        app = App("small", parallelism=subtasks, checkpoint_dir=place / "checkpoints", state=state, **settings)
        app.configure(checkpoint_interval=None)
        lives.append(app)
        program(app.stream(ScriptedSource(given, name="rows", schema=SCHEMA), time="ts")).to(sink)
        return app

    run_lives(build, folder)
    assert len(lives) == 1 + given.count(CRASH)
    found = [repr(row) for row in sink.rows]
    assert len(set(found)) == len(found)
    if settings:
        assert sum(figures(lives[-1].statistics(), "evicted_total")) > 50
        assert sum(figures(lives[-1].statistics(), "faults_total")) > 10
    return set(found)


@pytest.mark.one_in(44, "each operator has a tiny budget in test_spilled too; a second or two of a core each")
@pytest.mark.parametrize("parallelism", [[1], [2], [1, 2]], ids=["one subtask", "two subtasks", "one and two"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_is_killed_has_the_results_of_memory(name: str, parallelism: list[int], tmp_path: Path) -> None:
    given = script()
    wanted = results(PROGRAMS[name], tmp_path / "memory", [each for each in given if each is not CRASH], [1])
    found = results(PROGRAMS[name], tmp_path / "disk", given, parallelism, memory_budget="20KB")
    assert len(wanted) > 140
    assert found == wanted
