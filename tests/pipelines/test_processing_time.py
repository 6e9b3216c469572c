"""Windows of processing time: rows are in the window of the time at which they come, and the clock closes windows."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import sabot
from sabot import App, Stream, UserError, col, count_window, cumulative, hopping, session, tumbling
from sabot._cython.arrow.batch import Batch
from sabot.engine.operators.base import TIME_COLUMN, OperatorContext, Saved
from sabot.engine.operators.rows.timed import ArrivalTime
from sabot.testing import BARRIER, CRASH, END, ListSink, ManualClock, MemoryBroker, ScriptedSource, run
from tools.agent_tools import records, started, until

SCHEMA = {"n": "int64", "k": "string", "ts": "int64"}


class Ticking(ScriptedSource):
    """Each batch comes so many ms after the one before; `came` says when a row came at last, `first` when it did first."""

    def __init__(self, script: list[Any], clock: ManualClock, step_ms: int) -> None:
        super().__init__(script, name="in")
        self.clock, self.step_ms = clock, step_ms
        self.came: dict[int, int] = {}
        self.first: dict[int, int] = {}
        self.now_ms = int(clock.time() * 1000)

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        found = super().read_batch(max_rows, timeout)
        if found is not None and found.num_rows:
            self.now_ms += self.step_ms
            self.clock.advance(self.now_ms / 1000 - self.clock.time())
            for payload in found.data.column("payload").to_pylist():
                number, now_ms = json.loads(payload)["n"], int(self.clock.time() * 1000)
                self.came[number] = now_ms
                self.first.setdefault(number, now_ms)
        return found


def batches(count: int, seed: int = 3) -> list[list[dict[str, Any]]]:
    """Their event times say nothing: they would put all rows into one window, or make most of them late."""
    rng = random.Random(seed)
    return [
        [{"n": 10 * at + i, "k": rng.choice("abc"), "ts": rng.randrange(100)} for i in range(10)] for at in range(count)
    ]


def results(script: list[Any], window: Any, step_ms: int = 700, **options: Any) -> tuple[list[dict[str, Any]], Ticking]:
    found, clock = ListSink("results"), ManualClock(start=1_700_000_000.0)
    source = Ticking(script, clock, step_ms)

    def build(directory: Path) -> App:
        app = App("windows", checkpoint_dir=directory, restart="fixed(1, 1ms)", clock=clock)
        stream = app.stream(source, schema=SCHEMA, **options).key_by("k").window(window)
        stream.aggregate(ids=sabot.collect_list("n")).to(found)
        return app

    run(build)
    return found.rows, source


def of_duckdb(sent: list[Any], came: dict[int, int], windows: str) -> Counter[str]:
    sent_rows = pa.Table.from_pylist([{**row, "c": came[row["n"]]} for part in sent for row in part])  # noqa: F841  read by DuckDB
    asked = f"select k, s, e, list_sort(list(n)) from ({windows}) group by k, s, e"
    return Counter(repr((k, s, e, ids)) for k, s, e, ids in duckdb.sql(asked).fetchall())


def ours(rows: list[dict[str, Any]]) -> Counter[str]:
    def ms(at: Any) -> int:
        return round(at.timestamp() * 1000)

    return Counter(repr((r["k"], ms(r["window_start"]), ms(r["window_end"]), sorted(r["ids"]))) for r in rows)


PANES = {
    "tumbling": (tumbling("2s", time="processing"), "select *, c // 2000 * 2000 s, s + 2000 e from sent_rows"),
    "hopping": (
        hopping("3s", "1s", time="processing"),
        "select *, (c // 1000 - h) * 1000 s, s + 3000 e from sent_rows, range(3) as hops(h)",
    ),
    "cumulative": (
        cumulative("4s", "2s", time="processing"),
        "select *, c // 4000 * 4000 s, e from sent_rows, (values (2000), (4000)) as ends(d), "
        "lateral (select sent_rows.c // 4000 * 4000 + d as e) where c < e",
    ),
    "session": (
        session("1500ms", time="processing"),
        "select k, n, min(c) over (partition by k, g) s, max(c) over (partition by k, g) + 1500 e from "
        "(select *, sum(b) over (partition by k order by c range unbounded preceding) g from "
        "(select *, coalesce(c - lag(c) over (partition by k order by c, n) >= 1500, true)::int b from sent_rows))",
    ),
}


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("time", [None, "ts"], ids=["untimed", "with an event time of its own"])
@pytest.mark.parametrize("kind", PANES)
def test_windows_are_those_of_duckdb_over_the_times_at_which_rows_came(kind: str, time: str | None) -> None:
    window, windows = PANES[kind]
    sent = batches(12)
    found, source = results([*sent, END], window, time=time)
    assert ours(found) == of_duckdb(sent, source.came, windows)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("kind", PANES)
def test_a_restart_keeps_rows_in_their_windows_and_those_that_come_again_are_in_later_ones(kind: str) -> None:
    """The rows behind the checkpoint come again, and are where they came at last: each row in its windows once, as DuckDB has it. What else
    was given, the windows that ended before the crash, are those of the rows at the times at which they came first.
    """
    window, windows = PANES[kind]
    sent = batches(12)
    found, source = results([*sent[:5], BARRIER, *sent[5:7], CRASH, *sent[7:], END], window)
    expected = of_duckdb(sent, source.came, windows)
    given = ours(found)
    assert not expected - given
    assert not (given - expected) - of_duckdb(sent[:7], source.first, windows)
    assert min(source.came[row["n"]] for row in sent[5]) > max(source.came[row["n"]] for row in sent[4])


def windows_of(stream: Stream) -> Stream:
    return stream.key_by("k").window(tumbling("10s", time="processing")).aggregate(n=sabot.count())


def groups(app: App) -> int:
    """How many groups the windows have."""
    operators = [each for task in app.statistics()["streams"].values() for each in task.get("operators", {}).values()]
    return sum(each.get("groups", 0) for each in operators)


@pytest.mark.parametrize("parallelism", [1, 2])
async def test_the_clock_closes_windows_without_another_row(memory_url: str, tmp_path: Path, parallelism: int) -> None:
    clock = ManualClock(start=1_700_000_000.0)
    app = App("windows", memory_url, clock=clock, parallelism=parallelism, checkpoint_dir=tmp_path)
    MemoryBroker.get(memory_url).publish("in", [{"n": n, "k": "ab"[n % 2], "ts": n} for n in range(6)])
    stream = windows_of(app.stream("in", schema=SCHEMA))
    stream.to("out")

    async with started(app):
        await until(lambda: groups(app) == 2, "the rows in their windows")
        assert not records(app, "out")
        clock.advance(10)
        await until(lambda: len(records(app, "out")) == 2, "the windows")
    assert sorted((row.value["k"], row.value["window_start"], row.value["n"]) for row in records(app, "out")) == [
        ("a", 1_700_000_000_000, 3),
        ("b", 1_700_000_000_000, 3),
    ]


async def test_a_window_that_ended_while_the_app_stood_still_comes_at_its_next_start(
    memory_url: str, tmp_path: Path
) -> None:
    clock = ManualClock(start=1_700_000_000.0)

    def made() -> App:
        app = App("windows", memory_url, clock=clock, checkpoint_dir=tmp_path)
        windows_of(app.stream("in", schema=SCHEMA)).to("out")
        return app

    MemoryBroker.get(memory_url).publish("in", [{"n": n, "k": "a", "ts": n} for n in range(3)])
    first = made()
    async with started(first):
        await until(lambda: groups(first) == 1, "the rows in their window")
    clock.advance(3600)
    second = made()
    async with started(second):
        await until(lambda: len(records(second, "out")) == 1, "the window")
    assert records(second, "out")[0].value == {
        "k": "a",
        "window_start": 1_700_000_000_000,
        "window_end": 1_700_000_010_000,
        "n": 3,
    }


def test_a_clock_that_went_back_makes_no_row_late() -> None:
    clock, rows = ManualClock(start=1000.0), pa.record_batch({"n": [1, 2]})
    step = ArrivalTime()
    step.open(OperatorContext(rows.schema, clock=clock))
    step.restore([Saved(Path("nothing"), {"now": 1_500_000})])
    came: list[int] = []
    told: list[int] = []
    step.emit = lambda batch: came.extend(batch.data.column(TIME_COLUMN).to_pylist())
    step.on_mark = lambda mark: told.append(mark.timestamp_ms)
    step.poll(1_000_000)
    step.process(Batch(rows))
    clock.advance(600)
    step.process(Batch(rows))
    step.poll(1_600_000)
    assert came == [1_500_000] * 2 + [1_600_000] * 2
    assert told == [1_500_000, 1_600_000]


def test_the_first_of_each_window_of_processing_time() -> None:
    found, clock = ListSink("results"), ManualClock(start=1_700_000_000.0)
    sent = batches(4)

    def build(directory: Path) -> App:
        app = App("windows", checkpoint_dir=directory, clock=clock)
        stream = app.stream(Ticking([*sent, END], clock, 600), schema=SCHEMA)
        stream.key_by("k").window(tumbling("1s", time="processing")).top_n(1, by="n").to(found)
        return app

    run(build)
    groups = {(row["k"], row["window_start"]) for row in found.rows}
    assert len(groups) == len(found.rows) > 3
    assert {
        max(row["n"] for row in part if row["k"] == k) for part in sent[-1:] for k in {row["k"] for row in part}
    } <= {row["n"] for row in found.rows}


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    stream = App("windows").stream("in", schema=SCHEMA)
    with pytest.raises(UserError, match="time='wall'"):
        tumbling("1s", time="wall")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no row is late"):
        stream.window(tumbling("1s", time="processing"), allowed_lateness="1s")
    with pytest.raises(UserError, match="no row is late"):
        stream.window(session("1s", time="processing"), late="late")
    for given in ({"late": "late"}, {"allowed_lateness": "1s"}):
        with pytest.raises(UserError, match="window: no row is late for a window by count"):
            stream.key_by("k").window(count_window(3), **given)
    with pytest.raises(UserError, match="windows of event time only"):
        stream.join(stream.filter(col("n") > 1), on="k", window=tumbling("1s", time="processing"))
    plan = stream.window(tumbling("10s", time="processing")).aggregate(n=sabot.count()).explain()
    assert "tumbling window (10 s) of processing time: n = count()" in plan
