"""Groups whose rows come to the subtasks by some of their keys: behind a join by these, rows are not dealt out again."""

import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sabot.api.windows import TumblingWindow
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.base import DELETE, INSERT, OP_COLUMN, TIME_COLUMN, UPDATE_BEFORE
from sabot.engine.operators.changes.materialize import Materialize
from sabot.engine.operators.changes.steps import GroupAggregate
from sabot.engine.operators.keyed.top import TopN
from sabot.engine.operators.windows.fixed import WindowAggregate
from sabot.engine.operators.windows.top import WindowTopN
from tools.operator_run import OperatorRun

KEYS = ["k", "shop"]
SCHEMA = pa.schema(
    [("k", pa.int64()), ("v", pa.int64()), ("shop", pa.string()), ("s", pa.string()), (TIME_COLUMN, pa.int64())]
)
CHANGES = SCHEMA.insert(len(SCHEMA) - 1, pa.field(OP_COLUMN, pa.int8()))
NUMBERS = [AggregateColumn("n", "count"), AggregateColumn("total", "sum", "v")]
BESIDE = [*NUMBERS, AggregateColumn("most", "max", "s"), AggregateColumn("many", "count_distinct", "s")]


def rows_of(seed: str, count: int, begin: int, schema: pa.Schema) -> pa.RecordBatch:
    rng = random.Random(seed)
    columns = {
        "k": [rng.randrange(150) for _ in range(count)],
        "v": [rng.randrange(100) for _ in range(count)],
        "shop": [rng.choice("abc") for _ in range(count)],
        "s": [str(rng.randrange(9)) for _ in range(count)],
        OP_COLUMN: [INSERT] * count,
        TIME_COLUMN: list(range(begin, begin + count)),
    }
    return pa.RecordBatch.from_pydict({name: columns[name] for name in schema.names}, schema=schema)


def gone(rows: pa.RecordBatch) -> pa.RecordBatch:
    place = rows.schema.get_field_index(OP_COLUMN)
    return rows.set_column(place, rows.schema.field(place), pa.array([DELETE] * rows.num_rows, pa.int8()))


def table(run: OperatorRun) -> dict[Any, Any]:
    """What the changes make: by key the row that is there."""
    found: dict[Any, Any] = {}
    for row in run.results:
        key = tuple(row[name] for name in KEYS)
        if row[OP_COLUMN] in (DELETE, UPDATE_BEFORE):
            assert found.pop(key) == {name: row[name] for name in row if name not in (OP_COLUMN, TIME_COLUMN)}
        else:
            found[key] = {name: row[name] for name in row if name not in (OP_COLUMN, TIME_COLUMN)}
    return found


@pytest.mark.slow  # half a second of a core
@pytest.mark.parametrize("aggregates", [NUMBERS, BESIDE], ids=["numbers", "beside"])
@pytest.mark.parametrize("changes", [False, True], ids=["rows", "changes"])
@pytest.mark.parametrize(("threads", "budget"), [((2, 2, 3), None), ((2, 2, 3), 60_000), ((3, 2, 1), 60_000)])
def test_groups_go_on_wherever_their_rows_come_to(
    aggregates: list[AggregateColumn], changes: bool, threads: Any, budget: int | None, tmp_path: Path
) -> None:
    """At first all keys say where; then, in as many subtasks or fewer, one of them alone; then, in others, the same one."""
    schema = CHANGES if changes else SCHEMA
    by_all = partial(GroupAggregate, KEYS, aggregates, changes=changes)
    by_some = partial(by_all, parted_by=("k",))
    run = OperatorRun(by_all, schema, KEYS, tmp_path / "run", threads[0], budget)
    never = OperatorRun(by_all, schema, KEYS, tmp_path / "never", 1, budget)
    pieces = [rows_of(f"{at}", 800, at, schema) for at in (0, 800, 1600)]
    for number, rows in enumerate(pieces):
        if number == 1:
            run.change(by_some, schema, keys=["k"])
        if number:
            run.restart(threads[number])
        for each in (run, never):
            each.feed(rows, 100)
            if changes:
                each.feed(gone(rows.slice(200, 400)), 100)
            each.restart(len(each.parts))
    assert len(table(run)) > 300
    assert table(run) == table(never)
    owned = [{row["k"] for rows in part.contents() for row in rows.to_pylist()} for part in run.parts]
    assert len(set().union(*owned)) == sum(map(len, owned)) > 100


@pytest.mark.one_in(6, "a third of a second of a core each")
@pytest.mark.parametrize("changes", [False, True], ids=["rows", "changes"])
@pytest.mark.parametrize(("threads", "budget"), [((2, 2, 3), None), ((2, 2, 3), 60_000), ((3, 2, 1), 60_000)])
def test_rankings_go_on_wherever_their_rows_come_to(
    changes: bool, threads: Any, budget: int | None, tmp_path: Path
) -> None:
    schema = CHANGES if changes else SCHEMA
    by_all = partial(TopN, KEYS, 2, [("v", True), ("s", False)], changes=changes)
    run = OperatorRun(by_all, schema, KEYS, tmp_path / "run", threads[0], budget)
    never = OperatorRun(by_all, schema, KEYS, tmp_path / "never", 1, budget)
    for number in range(3):
        if number == 1:
            run.change(partial(by_all, parted_by=("k",)), schema, keys=["k"])
        if number:
            run.restart(threads[number])
        rows = rows_of(f"{number}", 800, 800 * number, schema)
        for each in (run, never):
            each.feed(rows, 100)
            if changes:
                each.feed(gone(rows.slice(200, 400)), 100)
            each.restart(len(each.parts))
    assert sum(ranking(run).values()) > 300
    assert ranking(run) == ranking(never)
    owned = [{row["k"] for rows in part.contents() for row in rows.to_pylist()} for part in run.parts]
    assert len(set().union(*owned)) == sum(map(len, owned)) > 100


def ranking(run: OperatorRun) -> Counter[str]:
    """The rows that are there after the changes."""
    found: Counter[str] = Counter()
    for row in run.results:
        found[values(row)] += -1 if row[OP_COLUMN] in (DELETE, UPDATE_BEFORE) else 1
        assert found[values(row)] >= 0
    return +found


def windows(aggregates: list[AggregateColumn]) -> Any:
    return partial(WindowAggregate, TumblingWindow(500), KEYS, aggregates, allowed_lateness_ms=300)


WINDOWS = {
    "numbers": windows(NUMBERS),
    "beside": windows(BESIDE),
    "first": partial(WindowTopN, TumblingWindow(500), KEYS, 2, [("v", True)], allowed_lateness_ms=300),
}


@pytest.mark.one_in(9, "half a second of a core each")
@pytest.mark.parametrize("by_all", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize(("threads", "budget"), [((2, 2, 3), None), ((2, 2, 3), 60_000), ((3, 2, 1), 60_000)])
def test_windows_go_on_wherever_their_rows_come_to(
    by_all: Any, threads: Any, budget: int | None, tmp_path: Path
) -> None:
    """Rows of the last 500 ms are in open windows when the subtasks become others, and some windows are emitted again."""
    run = OperatorRun(by_all, SCHEMA, KEYS, tmp_path / "run", threads[0], budget)
    never = OperatorRun(by_all, SCHEMA, KEYS, tmp_path / "never", 1, budget)
    for number in range(3):
        if number == 1:
            run.change(partial(by_all, parted_by=("k",)), SCHEMA, keys=["k"])
        if number:
            run.restart(threads[number])
        for each in (run, never):
            each.feed(rows_of(f"{number}", 800, 800 * number, SCHEMA), 100)
            each.advance(800 * number + 500)
            each.feed(rows_of(f"late {number}", 50, 800 * number + 450, SCHEMA))
            each.restart(len(each.parts))
    for each in (run, never):
        each.advance(5_000)
    assert len(run.results) > 1_000
    assert Counter(map(repr, run.results)) == Counter(map(repr, never.results))


def test_a_checkpoint_says_by_which_of_the_keys(tmp_path: Path) -> None:
    run = OperatorRun(partial(GroupAggregate, KEYS, NUMBERS, changes=False, parted_by=("k",)), SCHEMA, ["k"], tmp_path)
    run.feed(rows_of("one", 10, 0, SCHEMA))
    assert run.checkpoint()[0].facts["parted_by"] == ["k"]


@pytest.mark.parametrize("threads", [(2, 2, 1), (1, 3, 2)])
def test_a_kept_table_goes_on_when_others_of_its_keys_say_where_its_rows_are(threads: Any, tmp_path: Path) -> None:
    """Which keys these are is for the steps before to say, and for the number of threads."""
    run = OperatorRun(partial(Materialize, KEYS), CHANGES, KEYS, tmp_path, threads[0])
    rows = [rows_of(f"{at}", 300, at, CHANGES) for at in (0, 300, 600)]
    for number, keys in enumerate((KEYS, ["k"], KEYS)):
        if number:
            before = run.parts[0].state_schema()["keys"]
            run.change(partial(Materialize, keys), CHANGES, keys=keys)
            run.restart(threads[number])
            now = run.parts[0].state_schema()["keys"]
            assert (
                run.parts[0].taken_over("keys", before, now, 1)
                == f"its rows are divided anew among the subtasks, by {', '.join(keys)}"
            )
            assert run.parts[0].taken_over("columns", [], [], 1) is None
        run.feed(rows[number], 100)
        run.feed(gone(rows[number].slice(100, 50)), 100)
    kept = [row for part in run.parts for batch in part.contents() for row in batch.to_pylist()]
    added = [row for each in rows for row in [*each.slice(0, 100).to_pylist(), *each.slice(150).to_pylist()]]
    assert sorted(map(values, kept)) == sorted(map(values, added))


def values(row: dict[str, Any]) -> str:
    return repr([row[name] for name in ("k", "v", "shop", "s")])
