"""Steps that keep whole rows go on without a column that the program has no more, as if it had never been there."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sabot.api.windows import tumbling
from sabot.engine.operators.base import DELETE, INSERT, OP_COLUMN, TIME_COLUMN, UPDATE_BEFORE, Operator
from sabot.engine.operators.changes.steps import Upsert
from sabot.engine.operators.joins.asof import AsofJoin
from sabot.engine.operators.joins.interval import IntervalJoin
from sabot.engine.operators.joins.join import Join, TableLookup
from sabot.engine.operators.joins.sides import Sides
from sabot.engine.operators.joins.window import WindowJoin
from sabot.engine.operators.keyed.top import TopN
from sabot.engine.operators.windows.top import WindowTopN
from sabot.errors import CorruptCheckpoint
from tools.operator_run import OperatorRun

# x stands before the columns that stay, so that these get other places
WIDE = pa.schema(
    [("x", pa.string()), ("k", pa.int64()), ("v", pa.int64()), ("s", pa.string()), (TIME_COLUMN, pa.int64())]
)
NARROW = WIDE.remove(0)
RIGHT = pa.schema([("y", pa.string()), ("k", pa.int64()), ("b", pa.int64()), (TIME_COLUMN, pa.int64())])
NARROW_RIGHT = RIGHT.remove(0)
OP = pa.field(OP_COLUMN, pa.int8())
# subtasks before and after the restart; the memory budget with a directory, or None for memory alone
PLACES = [((1, 1), None), ((1, 1), 60_000), ((3, 2), 60_000)]


def rows_of(seed: str, count: int, keys: int, begin: int, schema: pa.Schema = WIDE) -> pa.RecordBatch:
    """Rows of which many differ in their first column alone; their times go up by 1."""
    rng = random.Random(seed)
    drawn = {
        pa.string(): lambda: rng.choice("abc"),
        pa.int64(): lambda: rng.randrange(4),
        pa.int8(): lambda: INSERT,
    }
    columns = {field.name: [drawn[field.type]() for _ in range(count)] for field in schema}
    columns |= {"k": [rng.randrange(keys) for _ in range(count)], TIME_COLUMN: list(range(begin, begin + count))}
    return pa.RecordBatch.from_pydict(columns, schema=schema)


def without_x(rows: pa.RecordBatch) -> pa.RecordBatch:
    return rows.select(rows.schema.names[1:])


def results(run: OperatorRun, *, times: bool = True) -> list[dict[str, Any]]:
    """What came out, key by key: which keys are in memory decides in what order they come."""
    rows = [{name: row[name] for name in row if times or name != TIME_COLUMN} for row in run.results]
    return sorted(rows, key=lambda row: row["k"])


def best(ties: str, rank: str | None, changes: bool) -> Operator:
    return TopN(["k"], 3, [("v", True)], ties=ties, rank=rank, changes=changes)


BEST = [
    pytest.param(partial(best, ties, rank, changes), id=f"{ties}-{rank}-{'changes' if changes else 'rows'}")
    for ties, rank in (("row_number", "place"), ("rank", None), ("dense_rank", "place"))
    for changes in (False, True)
]


@pytest.mark.one_in(30, "rows, changes and ties differ in the kernel alone")
@pytest.mark.parametrize("make", BEST)
@pytest.mark.parametrize(("threads", "budget"), PLACES)
def test_the_first_rows_lose_a_column(
    make: Callable[[], Any], threads: Any, budget: int | None, tmp_path: Path
) -> None:
    """Rows that become equal by that are still as many: each of them is taken away by a change of its own."""
    changes = make()._changes
    wide, narrow = (schema.insert(len(schema) - 1, OP) if changes else schema for schema in (WIDE, NARROW))
    first, second = rows_of("before", 1200, 300, 0, wide), rows_of("after", 600, 300, 1200, wide)
    run = OperatorRun(make, wide, ["k"], tmp_path / "run", threads[0], budget)
    never = OperatorRun(make, narrow, ["k"], tmp_path / "never", threads[0], budget)
    run.feed(first, 100)
    never.feed(without_x(first), 100)
    assert budget is None or run.statistic("evicted_total") > 0
    run.change(make, narrow)
    for each in (run, never):
        each.restart(threads[1])
        each.batches.clear()
        if changes:
            gone = without_x(first).slice(300, 600)
            place = gone.schema.get_field_index(OP_COLUMN)
            each.feed(gone.set_column(place, OP, pa.array([DELETE] * gone.num_rows, pa.int8())), 100)
        each.feed(without_x(second), 100)
        each.restart(threads[1])
    assert len(run.results) > 100
    assert results(run) == results(never)
    assert contents(run) == contents(never)


def contents(run: OperatorRun) -> list[Any]:
    return [sorted(map(str, (row for rows in part.contents() for row in rows.to_pylist()))) for part in run.parts]


@pytest.mark.one_in(3, "the rows are kept alike")
@pytest.mark.parametrize("deletes", [False, True])
@pytest.mark.parametrize(("threads", "budget"), PLACES)
def test_the_last_rows_lose_a_column(deletes: bool, threads: Any, budget: int | None, tmp_path: Path) -> None:
    """A row that is equal to the last one without the column is no change. Its time may be later than without the column ever."""

    def make() -> Operator:
        return Upsert(["k"], changes=deletes, deletes=deletes)

    wide, narrow = (schema.insert(len(schema) - 1, OP) if deletes else schema for schema in (WIDE, NARROW))
    first, second = rows_of("before", 1200, 300, 0, wide), rows_of("after", 600, 300, 1200, wide)
    run = OperatorRun(make, wide, ["k"], tmp_path / "run", threads[0], budget)
    never = OperatorRun(make, narrow, ["k"], tmp_path / "never", threads[0], budget)
    run.feed(first, 100)
    never.feed(without_x(first), 100)
    run.change(make, narrow)
    for each in (run, never):
        each.restart(threads[1])
        each.batches.clear()
        each.feed(without_x(second), 100)
        each.restart(threads[1])
    assert len(run.results) > 100
    assert results(run, times=False) == results(never, times=False)
    assert contents(run) == contents(never)


def paired(*names: str) -> Sides:
    return Sides(("k",), ("k",), tuple((name, name) for name in names))


def joined(make: Callable[[Sides, str], Operator], how: str) -> tuple[Callable[[], Operator], Callable[[], Operator]]:
    """The join with the column y of the right, and without it."""
    both = [paired()] * 2 if how in ("semi", "anti") else [paired("y", "b"), paired("b")]
    return partial(make, both[0], how), partial(make, both[1], how)


SECOND = tumbling("1s")
JOINS = [
    *(joined(lambda sides, how: IntervalJoin(sides, how, -300, 200), how) for how in ("inner", "full", "semi", "anti")),
    *(joined(lambda sides, how: WindowJoin(sides, how, SECOND), how) for how in ("full", "anti")),
    joined(lambda sides, how: AsofJoin(sides, how, tolerance_ms=500), "left"),
    joined(lambda sides, how: Join(sides, how), "inner"),
    joined(lambda sides, how: TableLookup(sides, how), "left"),
]


@pytest.mark.one_in(4, "all joins keep their sides alike")
@pytest.mark.parametrize("makes", JOINS)
@pytest.mark.parametrize(("threads", "budget"), PLACES)
def test_the_sides_of_joins_lose_columns(makes: Any, threads: Any, budget: int | None, tmp_path: Path) -> None:
    run = OperatorRun(makes[0], WIDE, ["k"], tmp_path / "run", threads[0], budget, right=RIGHT)
    never = OperatorRun(makes[1], NARROW, ["k"], tmp_path / "never", threads[0], budget, right=NARROW_RIGHT)
    rows = [(rows_of(f"{at}", 300, 40, at), rows_of(f"r{at}", 300, 20, at, RIGHT)) for at in (0, 300)]
    run.feed(rows[0][0], 50)
    run.feed_right(rows[0][1], 50)
    never.feed(without_x(rows[0][0]), 50)
    never.feed_right(without_x(rows[0][1]), 50)
    run.change(makes[1], NARROW, NARROW_RIGHT)
    for each in (run, never):
        each.advance(150)
        each.restart(threads[1])
        each.batches.clear()
        each.advance(200)
        each.feed(without_x(rows[1][0]), 50)
        each.feed_right(without_x(rows[1][1]), 50)
        each.end()
    assert len(run.results) > 100
    assert results(run) == results(never)


def with_op(schema: pa.Schema) -> pa.Schema:
    return schema.insert(len(schema) - 1, OP)


def taken_away(rows: pa.RecordBatch) -> pa.RecordBatch:
    place = rows.schema.get_field_index(OP_COLUMN)
    return rows.set_column(place, OP, pa.array([DELETE] * rows.num_rows, pa.int8()))


@pytest.mark.one_in(4, "both sides of all joins keep their rows alike")
@pytest.mark.parametrize("how", ["inner", "left", "full", "semi", "anti"])
@pytest.mark.parametrize(("threads", "budget"), PLACES)
def test_sides_of_changes_lose_columns(how: str, threads: Any, budget: int | None, tmp_path: Path) -> None:
    """A row that is taken away is found by a hash of the columns that are left, as are those that came with more of them."""
    makes = joined(lambda sides, how: Join(sides, how, left_changes=True, right_changes=True), how)
    schemas = [with_op(each) for each in (WIDE, RIGHT, NARROW, NARROW_RIGHT)]
    run = OperatorRun(makes[0], schemas[0], ["k"], tmp_path / "run", threads[0], budget, right=schemas[1])
    never = OperatorRun(makes[1], schemas[2], ["k"], tmp_path / "never", threads[0], budget, right=schemas[3])
    left, right = rows_of("left", 300, 40, 0, schemas[0]), rows_of("right", 300, 50, 0, schemas[1])
    run.feed(left, 50)
    run.feed_right(right, 50)
    never.feed(without_x(left), 50)
    never.feed_right(without_x(right), 50)
    run.change(makes[1], schemas[2], schemas[3])
    for each in (run, never):
        each.restart(threads[1])
        each.batches.clear()
        each.feed(taken_away(without_x(left).slice(100, 150)), 50)
        each.feed_right(taken_away(without_x(right).slice(50, 200)), 50)
        each.feed(without_x(left).slice(150, 50), 50)
        each.end()
        assert all(part.statistics()["unknown_takes"] == 0 for part in each.parts)
    assert len(run.results) > 20
    assert net_of(run) == net_of(never)


def net_of(run: OperatorRun) -> dict[tuple[Any, ...], int]:
    """How often each row is there more than before: in which order changes of a batch come, the kept rows' ids decide."""
    found: dict[tuple[Any, ...], int] = {}
    for row in run.results:
        sign = -1 if row[OP_COLUMN] in (DELETE, UPDATE_BEFORE) else 1
        key = tuple((name, value) for name, value in row.items() if name not in (OP_COLUMN, TIME_COLUMN))
        found[key] = found.get(key, 0) + sign
    return {key: count for key, count in found.items() if count}


@pytest.mark.one_in(4, "the case of several subtasks, or one of the others")
@pytest.mark.parametrize(("threads", "budget"), PLACES)
def test_the_first_rows_of_windows_lose_a_column(threads: Any, budget: int | None, tmp_path: Path) -> None:
    def make() -> Operator:
        return WindowTopN(SECOND, ["k"], 3, [("v", True)], rank="place")

    first, second = rows_of("before", 2500, 300, 0), rows_of("after", 1000, 300, 2500)
    run = OperatorRun(make, WIDE, ["k"], tmp_path / "run", threads[0], budget)
    never = OperatorRun(make, NARROW, ["k"], tmp_path / "never", threads[0], budget)
    run.feed(first, 100)
    never.feed(without_x(first), 100)
    assert budget is None or run.statistic("evicted_total") > 0
    run.change(make, NARROW)
    for each in (run, never):
        each.advance(1500)
        each.restart(threads[1])
        each.batches.clear()
        each.feed(without_x(second), 100)
        each.end()
    assert len(run.results) > 1000
    assert results(run) == results(never)


def test_a_column_that_comes_or_gets_another_type_is_refused(tmp_path: Path) -> None:
    first = rows_of("before", 100, 10, 0)
    make = partial(best, "row_number", None, False)
    kept = {"x": "string", "k": "int64", "v": "int64"}
    for fact, of in ((make(), "columns"), (Upsert(["k"], changes=False), "columns")):
        assert fact.taken_over(of, list(kept.items()), [["k", "int64"]], 9) == "the kept rows go on without x, v"
        assert fact.taken_over(of, [["k", "int64"]], list(kept.items()), 9) is None
        assert fact.taken_over(of, list(kept.items()), [["x", "int64"]], 9) is None
        assert fact.taken_over("n", 3, 5, 9) is None
    assert Upsert(["k"], changes=True).taken_over("columns", list(kept.items()), [["k", "int64"]], 9) is None
    run = OperatorRun(make, NARROW, ["k"], tmp_path)
    run.feed(without_x(first))
    run.change(make, WIDE)
    with pytest.raises(CorruptCheckpoint, match="the rows have other columns"):
        run.restart(1)


def test_a_side_that_gets_a_column_is_refused(tmp_path: Path) -> None:
    join = Join(paired("y", "b"), "inner", right_changes=True)
    OperatorRun(lambda: join, WIDE, ["k"], tmp_path, right=with_op(RIGHT))
    wide = [["x", "string"], ["k", "int64"]]
    assert join.taken_over("left", wide, wide[1:], 9) == "the kept rows of the left go on without x"
    assert join.taken_over("right", wide, wide[1:], 9) == "the kept rows of the right go on without x"
    assert join.taken_over("right", wide[1:], wide, 9) is None
    assert (
        join.taken_over("left", [*reversed(wide)], wide, 9)
        == "columns of the kept rows of the left are in another order"
    )
