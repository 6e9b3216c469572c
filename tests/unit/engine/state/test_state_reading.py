"""State read from a checkpoint, without the program: what each operator and agent keeps, beside what plain Python says of its rows."""

import datetime
import json
import re
import struct
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc

from sabot._cython.arrow.batch import Batch
from sabot._cython.text.records import state_key
from sabot.api.expr import col
from sabot.api.functions import process_spec
from sabot.api.patterns import pattern, step
from sabot.api.windows import CumulativeWindow, HoppingWindow, TumblingWindow
from sabot.clock import ManualClock
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.base import OP_COLUMN, TIME_COLUMN, OperatorContext, Saved
from sabot.engine.operators.calls.lookups import LookupAsync
from sabot.engine.operators.calls.map_async import MapAsync
from sabot.engine.operators.changes.groups import GroupAggregate
from sabot.engine.operators.changes.materialize import Materialize
from sabot.engine.operators.changes.steps import Changelog, Upsert
from sabot.engine.operators.functions.process import process_operator
from sabot.engine.operators.joins.asof import AsofJoin
from sabot.engine.operators.joins.interval import IntervalJoin
from sabot.engine.operators.joins.join import Join, TableLookup
from sabot.engine.operators.joins.sides import Sides
from sabot.engine.operators.joins.window import WindowJoin
from sabot.engine.operators.keyed.ordered import EventOrder
from sabot.engine.operators.keyed.over import Over
from sabot.engine.operators.keyed.over_state import OverColumn
from sabot.engine.operators.keyed.running import CountAggregate, Deduplicate, Reduce, RunningAggregate
from sabot.engine.operators.keyed.top import TopN
from sabot.engine.operators.patterns.match import Pattern
from sabot.engine.operators.reading import OperatorInfo, operators_of, state_of
from sabot.engine.operators.rows.subset import Sample
from sabot.engine.operators.windows.fixed import WindowAggregate
from sabot.engine.operators.windows.sessions import SessionAggregate
from sabot.engine.operators.windows.top import WindowTopN
from sabot.engine.state import BackendConfig, ListState, MapState, MemoryBackend, RocksDBBackend, ValueState
from sabot.errors import CorruptCheckpoint, UserError
from tools.operator_run import OperatorRun

SCHEMA = pa.schema(
    [("user", pa.string()), ("shop", pa.int32()), ("x", pa.float64()), ("note", pa.string()), (TIME_COLUMN, pa.int64())]
)
ROWS = [
    {
        "user": [f"u{number % 7}", None][number % 11 == 0],
        "shop": number % 3,
        "x": number / 4,
        "note": f"n{number % 5}",
        TIME_COLUMN: number * 10 + number * 7 % 30,
    }
    for number in range(200)
]
CALLS = [
    AggregateColumn("n", "count"),
    AggregateColumn("total", "sum", "x", text="sum(x)"),
    AggregateColumn("spread", "stddev", "x", ddof=0),
]
GATHERED = [
    AggregateColumn("notes", "count_distinct", "note"),
    AggregateColumn("all", "collect_list", "x"),
    AggregateColumn("longest", "max", "note"),
]


@dataclass
class Task:
    meta: dict[str, Any]
    states: dict[str, str] = field(default_factory=dict)


@dataclass
class Checkpoint:
    """A checkpoint, as reading sees it."""

    tasks: dict[str, Task]
    directories: dict[tuple[str, str], Path] = field(default_factory=dict)
    checkpoint_id: int = 7
    created_ms: int = 1_000_000

    def state_directory(self, task: str, name: str) -> Path:
        return self.directories[task, name]


def checkpoint_of(saved: list[Saved], operator: str = "op-1") -> Checkpoint:
    tasks, directories = {}, {}
    for number, part in enumerate(saved):
        name = f"window-1/{number}"
        some = any(part.directory.iterdir())
        meta = {"operators": {operator: part.facts, "filter-1": {}}, "texts": {operator: "what it does"}}
        tasks[name] = Task(meta, {operator: "states/0"} if some else {})
        directories[name, operator] = part.directory
    return Checkpoint(tasks, directories)


def run_of(make: Any, tmp_path: Path, *, keys: list[str] | None = None, **options: Any) -> OperatorRun:
    """The operator with ROWS in it."""
    run = OperatorRun(make, SCHEMA, ["user"] if keys is None else keys, tmp_path, **options)
    run.feed(pa.RecordBatch.from_pylist(ROWS, schema=SCHEMA), 37)
    return run


def by_key(rows: list[dict[str, Any]], *names: str) -> dict[Any, list[dict[str, Any]]]:
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return groups


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=repr)


def at(ms: int) -> datetime.datetime:
    return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=ms)


# Streams


@pytest.mark.parametrize("options", [{}, {"parallelism": 3}, {"parallelism": 2, "memory_budget": 1_000_000}])
def test_running_aggregates_are_read_as_they_stand(tmp_path: Path, options: Any) -> None:
    calls = CALLS[:2]
    run = run_of(lambda: RunningAggregate(["user", "shop"], calls), tmp_path, **options)
    table = state_of(checkpoint_of(run.checkpoint()), "op-1")
    want = [
        {"user": user, "shop": shop, "n": len(rows), "total": sum(row["x"] for row in rows)}
        for (user, shop), rows in by_key(ROWS, "user", "shop").items()
    ]
    assert table.schema.names == ["user", "shop", "n", "total"]
    assert table.schema.types == [pa.string(), pa.int32(), pa.int64(), pa.float64()]
    assert in_order(table.to_pylist()) == in_order(want)


def test_groups_that_are_not_in_memory_are_read_too(tmp_path: Path) -> None:
    users = [{**ROWS[number % 200], "user": f"user {number}"} for number in range(30_000)]
    run = OperatorRun(
        lambda: RunningAggregate(["user"], CALLS[:2]), SCHEMA, ["user"], tmp_path, memory_budget=3_000_000
    )
    run.feed(pa.RecordBatch.from_pylist(users, schema=SCHEMA), 5000)
    assert run.statistic("evicted_total") > 0
    run.feed(pa.RecordBatch.from_pylist(users[:100], schema=SCHEMA))
    checkpoint = checkpoint_of(run.checkpoint())
    table = state_of(checkpoint, "op-1")
    assert table.num_rows == 30_000
    assert sum(table["n"].to_pylist()) == 30_100
    assert state_of(checkpoint, "op-1", "user 7").to_pylist() == [{"user": "user 7", "n": 2, "total": 2 * ROWS[7]["x"]}]
    assert state_of(checkpoint, "op-1", "user 777").num_rows == 1


@pytest.mark.one_in(6, "a quarter of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("window", [TumblingWindow(500), HoppingWindow(600, 200, 50), CumulativeWindow(900, 300)])
def test_open_windows_are_read_with_their_bounds(tmp_path: Path, window: Any, parallelism: int) -> None:
    watermark = 1000
    calls = [*CALLS, *GATHERED]
    run = run_of(lambda: WindowAggregate(window, ["user"], calls), tmp_path, parallelism=parallelism)
    run.advance(watermark)
    table = state_of(checkpoint_of(run.checkpoint()), "op-1")
    before = len(run.batches)
    run.end()  # the windows that were open come out, and nothing else has come meanwhile
    rest = [row for batch in run.batches[before:] for row in batch.taken().to_pylist()]
    for row in rest:
        assert row["window_end"] > at(watermark)
        del row[TIME_COLUMN]
    assert in_order(table.to_pylist()) == in_order(rest)
    assert table.schema.names[:3] == ["user", "window_start", "window_end"]


def test_windows_within_their_lateness_are_read_too(tmp_path: Path) -> None:
    window = TumblingWindow(500)
    run = run_of(lambda: WindowAggregate(window, ["user"], CALLS, allowed_lateness_ms=400), tmp_path)
    run.advance(1000)
    found = state_of(checkpoint_of(run.checkpoint()), "op-1", "u3").to_pylist()
    want = by_key([row for row in ROWS if row["user"] == "u3"], "user")["u3",]
    starts = sorted({row[TIME_COLUMN] // 500 * 500 for row in want if row[TIME_COLUMN] >= 500})
    assert sorted(row["window_start"] for row in found) == [at(start) for start in starts]


def test_without_keys_there_is_one_row_a_window(tmp_path: Path) -> None:
    run = run_of(lambda: WindowAggregate(TumblingWindow(10_000), [], CALLS[:1]), tmp_path, keys=[])
    checkpoint = checkpoint_of(run.checkpoint())
    assert state_of(checkpoint, "op-1").to_pylist() == [{"window_start": at(0), "window_end": at(10_000), "n": 200}]
    with pytest.raises(UserError, match="op-1 has no keys"):
        state_of(checkpoint, "op-1", "u1")


def test_sessions_are_read_with_their_bounds(tmp_path: Path) -> None:
    run = run_of(lambda: SessionAggregate(25, ["user"], [*CALLS, *GATHERED]), tmp_path, parallelism=2)
    run.advance(900)
    table = state_of(checkpoint_of(run.checkpoint()), "op-1")
    before = len(run.batches)
    run.end()
    rest = [row for batch in run.batches[before:] for row in batch.taken().to_pylist()]
    assert rest
    assert in_order(table.to_pylist()) == in_order([{k: v for k, v in row.items() if k != TIME_COLUMN} for row in rest])


def test_windows_by_count_are_read(tmp_path: Path) -> None:
    run = run_of(lambda: CountAggregate(9, ["user"], CALLS[:2]), tmp_path)
    found = state_of(checkpoint_of(run.checkpoint()), "op-1").to_pylist()
    want = []
    for (user,), rows in by_key(ROWS, "user").items():
        if open_rows := rows[len(rows) // 9 * 9 :]:
            times = [row[TIME_COLUMN] for row in open_rows]
            bounds = {"window_start": at(min(times)), "window_end": at(max(times) + 1)}
            want.append({"user": user, **bounds, "n": len(open_rows), "total": sum(row["x"] for row in open_rows)})
    assert in_order(found) == in_order(want)


def test_running_aggregates_with_a_ttl_are_read_after_what_is_over(tmp_path: Path) -> None:
    run = run_of(lambda: RunningAggregate(["user"], CALLS[:1], ttl_ms=1000), tmp_path)
    run.advance(ROWS[-1][TIME_COLUMN] + 950)
    found = {row["user"]: row["n"] for row in state_of(checkpoint_of(run.checkpoint()), "op-1").to_pylist()}
    last = {user: max(row[TIME_COLUMN] for row in rows) for (user,), rows in by_key(ROWS, "user").items()}
    alive = {user for user, time in last.items() if time + 1000 > ROWS[-1][TIME_COLUMN] + 950}
    assert found == {user: len(rows) for (user,), rows in by_key(ROWS, "user").items() if user in alive}
    assert 0 < len(found) < len(last)


def test_deduplicate_gives_the_keys_it_has_seen(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(run_of(lambda: Deduplicate(["note"]), tmp_path / "ever", keys=["note"]).checkpoint())
    assert sorted(state_of(checkpoint, "op-1")["note"].to_pylist()) == ["n0", "n1", "n2", "n3", "n4"]
    within = run_of(lambda: Deduplicate(["note"], 100_000), tmp_path / "within", keys=["note"], parallelism=2)
    table = state_of(checkpoint_of(within.checkpoint()), "op-1", "n3")
    assert table.to_pylist() == [{"note": "n3", "passed_at": at(ROWS[3][TIME_COLUMN])}]


def test_reduce_gives_its_rows_without_its_function(tmp_path: Path) -> None:
    def longest(so_far: Any, row: Any) -> Any:
        return {**row, "x": so_far["x"] + row["x"]}

    run = run_of(lambda: Reduce(["user"], longest), tmp_path, parallelism=2)
    table = state_of(checkpoint_of(run.checkpoint()), "op-1", "u4")
    mine = by_key(ROWS, "user")["u4",]
    want = {**mine[-1], "x": sum(row["x"] for row in mine)}
    del want[TIME_COLUMN]
    assert table.to_pylist() == [want]


def test_rows_that_wait_for_their_turn_are_read(tmp_path: Path) -> None:
    run = run_of(lambda: EventOrder(("user",)), tmp_path, parallelism=2)
    run.advance(1500)
    table = state_of(checkpoint_of(run.checkpoint()), "op-1")
    assert sorted(table["x"].to_pylist()) == sorted(row["x"] for row in ROWS if row[TIME_COLUMN] >= 1500)
    assert TIME_COLUMN not in table.schema.names


class Together:
    """A function of the user's; the one that reads does not have it."""

    type = pa.int64()
    name = "Together"

    def init(self) -> Any:
        return {"sum": 0.0, "seen": []}

    def accumulate(self, state: Any, values: Any) -> Any:
        return {"sum": state["sum"] + sum(values.to_pylist()), "seen": [*state["seen"], len(values)][-1:]}

    def merge(self, state: Any, other: Any) -> Any:
        return {"sum": state["sum"] + other["sum"], "seen": other["seen"]}

    def finish(self, state: Any) -> Any:
        return int(state["sum"])


def test_of_a_users_function_the_state_is_given_as_json(tmp_path: Path) -> None:
    calls = [AggregateColumn("mine", "user", "x", function=Together()), AggregateColumn("n", "count")]
    run = run_of(lambda: WindowAggregate(TumblingWindow(10_000), ["user"], calls), tmp_path)
    (row,) = state_of(checkpoint_of(run.checkpoint()), "op-1", "u2").to_pylist()
    mine = by_key(ROWS, "user")["u2",]
    assert json.loads(row["mine"])["sum"] == sum(each["x"] for each in mine)
    assert row["n"] == len(mine)


@pytest.mark.parametrize("window", [HoppingWindow(600, 200), CumulativeWindow(600, 200)])
def test_of_windows_that_share_rows_the_states_of_their_slices_are_given(tmp_path: Path, window: Any) -> None:
    """Only the user's function could merge them. All of the operator's state could not be read: "state that is read takes no rows"."""
    calls = [
        AggregateColumn("mine", "user", "x", function=Together()),
        AggregateColumn("n", "count"),
        AggregateColumn("total", "sum", "x"),
    ]
    run = run_of(lambda: WindowAggregate(window, ["user"], calls), tmp_path, parallelism=2)
    run.advance(900)
    found = state_of(checkpoint_of(run.checkpoint()), "op-1").to_pylist()
    several = 0
    for row in found:
        mine = json.loads(row["mine"])
        slices = mine if isinstance(mine, list) else [mine]
        several += len(slices) > 1
        assert sum(each["sum"] for each in slices) == row["total"]
    assert several


def test_a_key_is_given_as_a_value_or_as_text(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(
        run_of(lambda: RunningAggregate(["user", "shop"], CALLS[:1]), tmp_path, parallelism=2).checkpoint()
    )
    want = [{"user": "u4", "shop": 1, "n": len(by_key(ROWS, "user", "shop")["u4", 1])}]
    for key in (["u4", 1], ("u4", "1"), '["u4", 1]', '["u4", "1"]'):
        assert state_of(checkpoint, "op-1", key).to_pylist() == want
    nobody = state_of(checkpoint, "op-1", [None, 1])
    assert nobody["n"].to_pylist() == [len(by_key(ROWS, "user", "shop")[None, 1])]
    assert state_of(checkpoint, "op-1", ["nobody", 1]).num_rows == 0
    assert state_of(checkpoint, "op-1", ["nobody", 1]).schema.names == ["user", "shop", "n"]
    with pytest.raises(UserError, match="a key of op-1 is 2 values: user, shop"):
        state_of(checkpoint, "op-1", "u4")
    with pytest.raises(UserError, match="shop, a key of op-1, is int32, and cannot be 'one'"):
        state_of(checkpoint, "op-1", ["u4", "one"])


def test_operators_are_listed_with_about_how_much_they_keep(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(
        run_of(lambda: RunningAggregate(["user"], CALLS[:1]), tmp_path, parallelism=2).checkpoint()
    )
    assert operators_of(checkpoint) == [
        OperatorInfo("op-1", "what it does", "running aggregate", len(by_key(ROWS, "user")))
    ]


def test_who_is_not_there_or_keeps_nothing_is_a_users_mistake(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(run_of(lambda: RunningAggregate(["user"], CALLS[:1]), tmp_path).checkpoint())
    with pytest.raises(UserError, match=r"checkpoint 7 has no operator or agent 'totals' \(there are op-1\)"):
        state_of(checkpoint, "totals")
    with pytest.raises(UserError, match=r"filter-1 keeps no state \(state is kept by op-1\)"):
        state_of(checkpoint, "filter-1")
    checkpoint.tasks["window-1/0"].meta["operators"]["op-1"]["reader"] = {}
    with pytest.raises(UserError, match="the state of op-1 cannot be read from outside"):
        state_of(checkpoint, "op-1")


def test_an_operator_without_rows_gives_no_rows_with_its_columns(tmp_path: Path) -> None:
    run = OperatorRun(lambda: WindowAggregate(TumblingWindow(500), ["user"], CALLS), SCHEMA, ["user"], tmp_path)
    table = state_of(checkpoint_of(run.checkpoint()), "op-1")
    assert table.num_rows == 0
    assert table.schema.names == ["user", "window_start", "window_end", "n", "total", "spread"]


# Streams of two inputs

SHOPS = pa.schema([("number", pa.int32()), ("city", pa.string()), (TIME_COLUMN, pa.int64())])
SIDES = Sides(("shop",), ("number",), (("city", "city"),))
CITIES = [{"number": number, "city": f"c{number}", TIME_COLUMN: 900 + number} for number in range(4)]


def joined(make: Any, tmp_path: Path, parallelism: int = 1, watermark: int = 0, sides: Any = None) -> OperatorRun:
    """A join of ROWS, without the fourth shop's, and CITIES."""
    run = OperatorRun(make, SCHEMA, ["shop"], tmp_path, parallelism, right=SHOPS, right_keys=["number"])
    run.feed(pa.RecordBatch.from_pylist(ROWS, schema=SCHEMA), 37)
    run.feed_right(pa.RecordBatch.from_pylist(CITIES, schema=SHOPS), 3)
    run.advance(watermark)
    return run


def users(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in (TIME_COLUMN, OP_COLUMN)} for row in rows]


def sides_of(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    rows = by_key(table.to_pylist(), "side")
    return {
        side: [{name: row[name] for name in row if name != "side"} for row in found] for (side,), found in rows.items()
    }


@pytest.mark.parametrize("parallelism", [1, 3])
def test_a_join_gives_the_rows_of_both_sides(tmp_path: Path, parallelism: int) -> None:
    checkpoint = checkpoint_of(joined(lambda: Join(SIDES, "full"), tmp_path, parallelism).checkpoint())
    table = state_of(checkpoint, "op-1")
    assert table.schema.names == ["side", "user", "shop", "x", "note", "city"]
    found = sides_of(table)
    assert in_order(found["left"]) == in_order([{**row, "city": None} for row in users(ROWS)])
    nothing = {"user": None, "x": None, "note": None}
    assert in_order(found["right"]) == in_order(
        [{**nothing, "shop": row["number"], "city": row["city"]} for row in CITIES]
    )
    one = sides_of(state_of(checkpoint, "op-1", "2"))
    assert in_order(one["left"]) == in_order([{**row, "city": None} for row in users(ROWS) if row["shop"] == 2])
    assert [row["city"] for row in one["right"]] == ["c2"]
    assert [(each.kind, each.rows) for each in operators_of(checkpoint)] == [("join", len(ROWS) + len(CITIES))]


@pytest.mark.parametrize(
    ("make", "kind", "left", "right"),
    [
        # a city's partners are within 200 ms before it, so rows wait for 200 ms
        (lambda: IntervalJoin(SIDES, "inner", 0, 200), "interval join", 1000, 1200),
        (lambda: WindowJoin(SIDES, "inner", TumblingWindow(600)), "window join", 1200, 1200),
        (lambda: AsofJoin(SIDES, "left"), "as-of join", 1200, -1),
    ],
)
def test_joins_by_time_give_what_can_still_meet(tmp_path: Path, make: Any, kind: str, left: int, right: int) -> None:
    checkpoint = checkpoint_of(joined(make, tmp_path, 2, watermark=1200).checkpoint())
    found = sides_of(state_of(checkpoint, "op-1"))
    kept = [{**row, "city": None} for row, whole in zip(users(ROWS), ROWS, strict=True) if whole[TIME_COLUMN] >= left]
    assert in_order([{name: row[name] for name in kept[0]} for row in found["left"]]) == in_order(kept)
    assert sorted(row["city"] for row in found.get("right", [])) == [
        row["city"] for row in CITIES if row[TIME_COLUMN] >= right
    ]
    assert [each.kind for each in operators_of(checkpoint)] == [kind]


def test_a_lookup_gives_its_table(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(joined(lambda: TableLookup(SIDES, "left"), tmp_path, 2).checkpoint())
    assert sorted(state_of(checkpoint, "op-1").select(["side", "shop", "city"]).to_pylist(), key=repr) == [
        {"side": "right", "shop": row["number"], "city": row["city"]} for row in CITIES
    ]


# Changes

CHANGES = SCHEMA.insert(len(SCHEMA) - 1, pa.field(OP_COLUMN, pa.int8()))
GONE = [row for number, row in enumerate(ROWS) if number % 3 == 0]
LEFT = [row for number, row in enumerate(ROWS) if number % 3]


def changed(make: Any, tmp_path: Path, keys: list[str], **options: Any) -> OperatorRun:
    """The operator with ROWS in it, of which GONE were taken away again."""
    run = OperatorRun(make, CHANGES, keys, tmp_path, **options)
    for op, rows in ((0, ROWS), (3, GONE)):
        run.feed(pa.RecordBatch.from_pylist([{**row, OP_COLUMN: op} for row in rows], schema=CHANGES), 37)
    return run


@pytest.mark.parametrize("changes", [False, True])
def test_groups_are_read_as_they_stand(tmp_path: Path, changes: bool) -> None:
    calls = [*CALLS[:2], AggregateColumn("most", "max", "x"), AggregateColumn("notes", "count_distinct", "note")]
    fill, rows = (changed, LEFT) if changes else (run_of, ROWS)
    checkpoint = checkpoint_of(
        fill(
            lambda: GroupAggregate(["user"], calls, changes=changes), tmp_path, keys=["user"], parallelism=2
        ).checkpoint()
    )
    want = [
        {
            "user": user,
            "n": len(mine),
            "total": sum(row["x"] for row in mine),
            "most": max(row["x"] for row in mine),
            "notes": len({row["note"] for row in mine}),
        }
        for (user,), mine in by_key(rows, "user").items()
    ]
    assert in_order(state_of(checkpoint, "op-1").to_pylist()) == in_order(want)
    assert state_of(checkpoint, "op-1", "u3").to_pylist() == [row for row in want if row["user"] == "u3"]
    assert [(each.kind, each.rows) for each in operators_of(checkpoint)] == [("groups", len(want))]


def test_of_a_users_function_over_changes_the_rows_are_given(tmp_path: Path) -> None:
    calls = [AggregateColumn("mine", "user", "x", function=Together())]
    checkpoint = checkpoint_of(
        changed(lambda: GroupAggregate(["user"], calls, changes=True), tmp_path, ["user"]).checkpoint()
    )
    (row,) = state_of(checkpoint, "op-1", "u2").to_pylist()
    assert sorted(json.loads(row["mine"])) == [each["x"] for each in LEFT if each["user"] == "u2"]


@pytest.mark.parametrize("changes", [False, True])
def test_an_upsert_gives_the_row_of_each_key(tmp_path: Path, changes: bool) -> None:
    fill, rows = (changed, LEFT) if changes else (run_of, ROWS)
    checkpoint = checkpoint_of(
        fill(lambda: Upsert(["user"], changes=changes), tmp_path, keys=["user"], parallelism=2).checkpoint()
    )
    last = {row["user"]: row for row in rows}
    assert in_order(state_of(checkpoint, "op-1").to_pylist()) == in_order(users(list(last.values())))
    assert state_of(checkpoint, "op-1", "u5").to_pylist() == users([last["u5"]])


def test_materialized_rows_are_read_before_they_come_out(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(changed(lambda: Materialize(["user"]), tmp_path, ["user"], parallelism=2).checkpoint())
    assert in_order(state_of(checkpoint, "op-1").to_pylist()) == in_order(users(LEFT))
    whole = checkpoint_of(changed(Materialize, tmp_path / "whole", []).checkpoint())
    assert in_order(state_of(whole, "op-1").to_pylist()) == in_order(users(LEFT))
    with pytest.raises(UserError, match="op-1 has no keys"):
        state_of(whole, "op-1", "u1")


# Ranks, rows around rows, patterns, functions


def test_a_top_n_gives_the_rows_that_it_keeps(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(
        run_of(lambda: TopN(["user"], 2, [("x", True)], rank="place"), tmp_path, parallelism=2).checkpoint()
    )
    best = {user: sorted(rows, key=lambda row: -row["x"])[:2] for (user,), rows in by_key(ROWS, "user").items()}
    assert in_order(state_of(checkpoint, "op-1").to_pylist()) == in_order(
        users([row for rows in best.values() for row in rows])
    )
    assert state_of(checkpoint, "op-1", "u6").to_pylist() == users(best["u6"])
    all_of_them = changed(lambda: TopN(["user"], 2, [("x", True)], changes=True), tmp_path / "all", ["user"])
    assert in_order(state_of(checkpoint_of(all_of_them.checkpoint()), "op-1").to_pylist()) == in_order(users(LEFT))


def test_a_top_n_of_windows_gives_those_that_are_open(tmp_path: Path) -> None:
    run = run_of(lambda: WindowTopN(HoppingWindow(600, 200), ["user"], 2, [("x", True)], rank="place"), tmp_path)
    run.advance(1000)
    table = state_of(checkpoint_of(run.checkpoint()), "op-1")
    before = len(run.batches)
    run.end()
    rest = [row for batch in run.batches[before:] for row in batch.taken().to_pylist()]
    assert rest
    assert in_order(table.to_pylist()) == in_order(users(rest))


@pytest.mark.parametrize("frame", [{}, {"preceding_rows": 3}, {"preceding_ms": 500}])
def test_over_gives_the_aggregates_after_the_newest_row(tmp_path: Path, frame: Any) -> None:
    columns = [OverColumn("n", "count"), OverColumn("total", "sum", "x"), OverColumn("before", "lag", "x")]
    run = OperatorRun(lambda: Over(["user"], columns, **frame), SCHEMA, ["user"], tmp_path, 2)
    rows = sorted(ROWS, key=lambda row: row[TIME_COLUMN])
    run.feed(pa.RecordBatch.from_pylist(rows, schema=SCHEMA), 37)
    checkpoint = checkpoint_of(run.checkpoint())
    newest = {}
    for row in run.results:
        newest[row["user"]] = {name: row[name] for name in ("user", "n", "total")}
    held = [] if "preceding_ms" not in frame else [rows[-1]["user"]]  # the newest row waits for others of its time
    found = {row["user"]: row for row in state_of(checkpoint, "op-1").to_pylist()}
    assert {user: found[user] for user in newest if user not in held} == {u: newest[u] for u in newest if u not in held}
    assert found.keys() == newest.keys()
    assert state_of(checkpoint, "op-1", "u4").to_pylist() == [found["u4"]]


def test_over_without_aggregates_gives_how_many_rows_there_were(tmp_path: Path) -> None:
    run = OperatorRun(lambda: Over(["user"], [OverColumn("place", "row_number")]), SCHEMA, ["user"], tmp_path)
    run.feed(pa.RecordBatch.from_pylist(sorted(ROWS, key=lambda row: row[TIME_COLUMN]), schema=SCHEMA))
    found = {row["user"]: row["rows"] for row in state_of(checkpoint_of(run.checkpoint()), "op-1").to_pylist()}
    assert found == {user: len(rows) for (user,), rows in by_key(ROWS, "user").items()}


def test_a_pattern_gives_its_partial_matches(tmp_path: Path) -> None:
    rises = pattern("low", col("x") < 1).then("high", col("x") >= 40, times=20).within("1h")
    run = OperatorRun(
        lambda: Pattern(["user"], rises, "past_last", [("n", step("high").count())]), SCHEMA, ["user"], tmp_path, 2
    )
    rows = sorted(ROWS, key=lambda row: row[TIME_COLUMN])
    run.feed(pa.RecordBatch.from_pylist(rows, schema=SCHEMA), 37)
    checkpoint = checkpoint_of(run.checkpoint())
    found = state_of(checkpoint, "op-1", "u3").to_pylist()
    low = next(row for row in rows if row["user"] == "u3" and row["x"] < 1)
    high = sum(row["user"] == "u3" and row["x"] >= 40 for row in rows)
    assert {"user": "u3", "match_start": at(low[TIME_COLUMN]), "step": "high", "rows": 1 + high} in found
    assert sum(each.rows or 0 for each in operators_of(checkpoint)) == state_of(checkpoint, "op-1").num_rows


def test_a_process_step_gives_what_its_function_keeps(tmp_path: Path) -> None:
    def seen(row: Any, ctx: Any) -> None:
        ctx.state("last").put(row["x"])
        ctx.list("notes").add(row["note"])
        ctx.map("shops").put(row["shop"], (ctx.map("shops").get(row["shop"]) or 0) + 1)
        ctx.timers.event(ctx.timestamp + 1_000_000)

    spec = process_spec(seen, schema={"n": "int64"}, on_timer=lambda timer, ctx: None)
    checkpoint = checkpoint_of(run_of(lambda: process_operator(["user"], spec), tmp_path, parallelism=2).checkpoint())
    mine = by_key(ROWS, "user")["u1",]
    found = {row["name"]: json.loads(row["value"]) for row in state_of(checkpoint, "op-1", "u1").to_pylist()}
    shops = {shop: len(rows) for (shop,), rows in by_key(mine, "shop").items()}
    assert found == {
        "last": mine[-1]["x"],
        "notes": [row["note"] for row in mine],
        "shops": [[k, v] for k, v in shops.items()],
    }
    assert state_of(checkpoint, "op-1").num_rows == 3 * len(by_key(ROWS, "user"))


async def _never(argument: Any) -> Any:
    raise AssertionError("nothing is called")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: MapAsync(_never, pa.schema([("n", pa.int64())])), "calls"),
        (lambda: LookupAsync(_never, ["user"], pa.schema([("n", pa.int64())])), "lookup"),
    ],
)
def test_of_async_calls_the_rows_in_flight_are_given(tmp_path: Path, make: Any, kind: str) -> None:
    held = make()
    held.open(OperatorContext(SCHEMA))
    held._hand_over = lambda: None  # no call begins
    held.process(Batch(pa.RecordBatch.from_pylist(ROWS[1:9], schema=SCHEMA)))
    facts, state = held.snapshot()
    state.save(tmp_path)
    checkpoint = checkpoint_of([Saved(tmp_path, json.loads(json.dumps(facts)))])
    assert state_of(checkpoint, "op-1").to_pylist() == users(ROWS[1:9])
    assert operators_of(checkpoint) == [OperatorInfo("op-1", "what it does", kind, 8)]
    with pytest.raises(UserError, match="op-1 has no keys"):
        state_of(checkpoint, "op-1", "u1")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (Changelog, "the event time that its rows have reached"),
        (lambda: Sample(0.5, 1), "where its random numbers stand"),
    ],
)
def test_what_keeps_no_rows_says_so(tmp_path: Path, make: Any, what: str) -> None:
    checkpoint = checkpoint_of(OperatorRun(make, CHANGES, [], tmp_path).checkpoint())
    with pytest.raises(UserError, match=f"op-1 keeps no rows, only {what}"):
        state_of(checkpoint, "op-1")


# Agents


async def fill(backend: Any) -> None:
    """As an agent "bank" with key="account" and two without would."""
    own = state_key("acc1")
    await ValueState(backend, "bank/default", scope=own).put("seen", 3)
    await ValueState(backend, "bank/default", scope=state_key("acc2")).put("seen", 5)
    for amount in (10, 30, 20):
        await ListState(backend, "bank/amounts", scope=own).add("jan", amount)
    await ValueState(backend, "pages").put("/", 1)
    await ValueState(backend, "pages").put("/docs", 2.5)
    await ValueState(backend, "pages").put(("a", 1), {"n": [1]})
    shops = MapState(backend, "shops")
    for number, shop in enumerate(["north", "south", "west"]):
        await shops.put("c", shop, number)
    await shops.delete("c", "north")
    await shops.put(9, 3, "three")


def backend_of(kind: str, tmp_path: Path, clock: ManualClock, **config: Any) -> Any:
    if kind == "memory":
        return MemoryBackend(BackendConfig("memory", **config), clock=clock)
    return RocksDBBackend(BackendConfig("rocksdb", tmp_path / "db", **config), clock=clock)


async def checkpoint_of_agents(backend: Any, directory: Path) -> Checkpoint:
    snapshot = await backend.snapshot()
    await snapshot.save(directory)
    await backend.close()
    meta = {"agents": {"bank": {}, "shop.clicks": {}}, "sources": {}, "ended": False}
    return Checkpoint({"agents": Task(meta, {"state": "states/0"})}, {("agents", "state"): directory})


@pytest.mark.parametrize("kind", ["memory", "rocksdb"])
async def test_agents_state_is_read_decoded(tmp_path: Path, kind: str) -> None:
    backend = backend_of(kind, tmp_path, ManualClock())
    await fill(backend)
    checkpoint = await checkpoint_of_agents(backend, tmp_path / "saved")
    assert [(each.id, each.kind, each.rows) for each in operators_of(checkpoint)] == [
        ("bank", "agent", None),
        ("shop.clicks", "agent", None),
    ]
    bank = state_of(checkpoint, "bank")
    assert bank.schema.names == ["namespace", "record_key", "key", "value"]
    assert in_order(bank.to_pylist()) == in_order(
        [
            {"namespace": "bank/amounts", "record_key": "acc1", "key": "jan", "value": "[10,30,20]"},
            {"namespace": "bank/default", "record_key": "acc1", "key": "seen", "value": "3"},
            {"namespace": "bank/default", "record_key": "acc2", "key": "seen", "value": "5"},
        ]
    )
    seen = state_of(checkpoint, "bank/default", "acc2")
    assert seen.to_pylist() == [{"namespace": "bank/default", "record_key": "acc2", "key": "seen", "value": 5}]
    assert seen.schema.field("value").type == pa.int64()
    shared = {
        (row["namespace"], row["key"]): json.loads(row["value"]) for row in state_of(checkpoint, "clicks").to_pylist()
    }
    assert shared == {
        ("pages", '"/"'): 1,
        ("pages", '"/docs"'): 2.5,
        ("pages", '["a",1]'): {"n": [1]},
        ("shops", '"c"'): {"south": 1, "west": 2},
        ("shops", "9"): [[3, "three"]],
    }
    assert state_of(checkpoint, "shops", "9")["value"].to_pylist() == ['[[3,"three"]]']
    assert state_of(checkpoint, "pages", '["a", 1]').num_rows == 1
    assert state_of(checkpoint, "pages", ("a", 1)).num_rows == 1
    assert state_of(checkpoint, "pages", "nobody").num_rows == 0
    with pytest.raises(UserError, match=r"no operator or agent 'page'.*bank, shop\.clicks.*pages"):
        state_of(checkpoint, "page")


@pytest.mark.parametrize("kind", ["memory", "rocksdb"])
async def test_what_had_expired_at_the_checkpoint_is_not_there(tmp_path: Path, kind: str) -> None:
    clock = ManualClock()
    backend = backend_of(kind, tmp_path, clock, ttl="10s")
    await ValueState(backend, "pages").put("old", 1)
    clock.advance(6)
    await ValueState(backend, "pages").put("young", 2)
    clock.advance(2)
    checkpoint = await checkpoint_of_agents(backend, tmp_path / "saved")
    checkpoint.created_ms = round(clock.time() * 1000) + 3000
    assert state_of(checkpoint, "clicks").to_pylist() == [{"namespace": "pages", "key": "young", "value": 2}]


def test_a_backend_of_the_users_own_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "mine.bin").write_bytes(b"?")
    checkpoint = Checkpoint({"agents": Task({"agents": {"bank": {}}}, {"state": "s"})}, {("agents", "state"): tmp_path})
    with pytest.raises(
        UserError, match="the state of bank cannot be read from outside: its backend is the program's own"
    ):
        state_of(checkpoint, "bank")
    (tmp_path / "state.arrow").write_bytes(b"broken")
    with pytest.raises(CorruptCheckpoint, match=r"state\.arrow"):
        state_of(checkpoint, "bank")


def test_agents_without_a_backend_keep_no_state() -> None:
    checkpoint = Checkpoint({"agents": Task({"agents": {"bank": {}}})})
    with pytest.raises(UserError, match="agent bank keeps no state"):
        state_of(checkpoint, "bank")


async def test_nothing_is_written_by_reading(tmp_path: Path) -> None:
    backend = backend_of("rocksdb", tmp_path, ManualClock())
    await fill(backend)
    checkpoint = await checkpoint_of_agents(backend, tmp_path / "saved")
    before = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "saved").rglob("*"))}
    state_of(checkpoint, "bank")
    assert {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "saved").rglob("*"))} == before


# State that somebody else has written: its hashes fit


@pytest.mark.parametrize(
    "facts",
    [
        {"panes": 7},
        {"groups": {}},
        {"schema": 1},
        {"reader": {"input": "zz"}},
        {"schema": {"kind": "é"}},
        {"deltas": "x"},
    ],
)
def test_figures_of_another_kind_are_a_corrupt_checkpoint(tmp_path: Path, facts: Any) -> None:
    checkpoint = checkpoint_of(run_of(lambda: RunningAggregate(["user"], CALLS[:2]), tmp_path).checkpoint())
    kept = checkpoint.tasks["window-1/0"].meta["operators"]["op-1"]
    for name, value in facts.items():
        kept[name] = {**kept[name], **value} if isinstance(value, dict) and value else value
    with pytest.raises(UserError, match=r"checkpoint 7: \w+|cannot be read from outside|files of changes"):
        (*operators_of(checkpoint), state_of(checkpoint, "op-1"))


@pytest.mark.parametrize(
    ("make", "file"),
    [
        (lambda: RunningAggregate(["note"], CALLS[:2]), "000000000001.arrow"),
        (lambda: SessionAggregate(25, ["note"], CALLS), "runs.arrow"),
        (lambda: TopN(["note"], 2, [("x", True)]), "rows.arrow"),
        (lambda: Upsert(["note"], changes=True), "kept.arrow"),
    ],
)
def test_offsets_that_lead_out_of_a_file_of_state_are_a_corrupt_checkpoint(
    tmp_path: Path, make: Any, file: str
) -> None:
    """They were followed: a segmentation fault, or memory of the process as keys."""
    fill = changed if file == "kept.arrow" else run_of
    saved = fill(make, tmp_path / "run", keys=["note"]).checkpoint()
    path = saved[0].directory / file
    data = path.read_bytes()
    names = ipc.open_file(data) if data.startswith(b"ARROW1") else ipc.open_stream(data)
    batch = names.get_batch(0) if data.startswith(b"ARROW1") else names.read_next_batch()
    column = next(column for column in batch.columns if column.type in (pa.string(), pa.binary()) and column.nbytes > 8)
    offsets = column.buffers()[1].to_pybytes()[:8]  # of the first two values
    places = [at for at in range(0, len(data), 8) if data[at : at + 8] == offsets]
    for at in places:
        path.write_bytes(data[:at] + struct.pack("<ii", 0, 1 << 30) + data[at + 8 :])
        with pytest.raises(CorruptCheckpoint, match=re.escape(str(path))):
            state_of(checkpoint_of(saved), "op-1")
    assert places
