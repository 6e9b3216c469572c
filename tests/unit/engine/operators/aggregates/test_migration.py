"""State of other aggregates taken over by an operator: groups that have left memory, and the rules by which aggregates are found again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sabot.api.windows import TumblingWindow
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.aggregates.migration import ROWS_OF_A_KEY, aggregate_verdicts
from sabot.engine.operators.base import END_OF_TIME, TIME_COLUMN, Operator, OperatorContext
from sabot.engine.operators.keyed.running import RunningAggregate
from sabot.engine.operators.windows.fixed import WindowAggregate
from tools.operator_run import OperatorRun

SCHEMA = pa.schema([("user", pa.int64()), ("x", pa.float64()), (TIME_COLUMN, pa.int64())])
BEFORE = [AggregateColumn("n", "count"), AggregateColumn("low", "min", "x"), AggregateColumn("s", "sum", "x")]
AFTER = [AggregateColumn("high", "max", "x"), AggregateColumn("total", "sum", "x"), AggregateColumn("rows", "count")]


def rows(seed: int, users: int = 30_000) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, users, 20_000), rng.integers(-50, 50, 20_000).astype(float), np.full(20_000, 1000)]
    return pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=SCHEMA)


def running(aggregates: Sequence[AggregateColumn]) -> Operator:
    return RunningAggregate(["user"], aggregates)


def window(aggregates: Sequence[AggregateColumn]) -> Operator:
    return WindowAggregate(TumblingWindow(3_600_000), ["user"], aggregates)


@pytest.mark.slow  # a second of a core, or more
@pytest.mark.parametrize("subtasks", [1, 2])
@pytest.mark.parametrize("make", [running, window])
def test_groups_that_have_left_memory_are_taken_over_too(
    tmp_path: Path, make: Callable[[Any], Operator], subtasks: int
) -> None:
    small = OperatorRun(lambda: make(BEFORE), SCHEMA, ["user"], tmp_path / "small", memory_budget=1_000_000)
    whole = OperatorRun(lambda: make(AFTER), SCHEMA, ["user"], tmp_path / "whole")
    rest = OperatorRun(lambda: make(AFTER), SCHEMA, ["user"], tmp_path / "rest")
    for seed in range(4):
        for run in (small, whole):
            run.feed(rows(seed), 4_000)
    assert small.statistic("evicted_total") > 0
    for run in (small, whole):
        run.batches.clear()
    small._make = lambda: make(AFTER)
    small.restart(subtasks)
    for seed in range(4, 6):
        for run in (small, whole, rest):
            run.feed(rows(seed), 4_000)
    for run in (small, whole, rest):
        run.advance(END_OF_TIME)
    now, all_rows, later = (sorted(map(tuple_of, run.results), key=repr) for run in (small, whole, rest))
    assert [row[:3] for row in now] == [row[:3] for row in all_rows]
    began = {row[3:] for row in now}
    assert {row[3:] for row in later} <= began
    assert all(high is None for _, high in began - {row[3:] for row in later})
    for run in (small, whole, rest):
        for part in run.parts:
            part.close()


def tuple_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["user"], row["total"], row["rows"], row["user"], row["high"]


def of(
    before: Sequence[Sequence[str]], now: Sequence[Sequence[str]], *drop: str, keeps: Any = None, hidden: Any = ()
) -> dict[str, Any]:
    found = aggregate_verdicts(before, now, frozenset(drop), keeps=keeps, hidden=hidden)
    return {each.name: (each.outcome, each.source) for each in found}


def test_an_aggregate_is_found_by_what_it_computes_and_first_by_its_own_name() -> None:
    before = [("a", "sum(x)", "int64"), ("b", "sum(x)", "int64"), ("c", "count()", "int64")]
    assert of(before, [("b", "sum(x)", "int64"), ("rows", "count()", "int64")]) == {
        "b": ("keep", 1),
        "rows": ("keep", 2),
        "a": ("drop", None),
    }


def test_a_name_that_goes_over_to_another_aggregate_is_no_loss_where_the_first_one_goes_on() -> None:
    before = [("total", "sum(x)", "int64")]
    assert of(before, [("total", "sum(y)", "int64"), ("old", "sum(x)", "int64")]) == {
        "total": ("add", None),
        "old": ("keep", 0),
    }
    assert of(before, [("total", "sum(y)", "int64")]) == {"total": ("refuse", None)}
    assert of(before, [("total", "sum(y)", "int64")], "total") == {"total": ("add", None)}
    assert of(before, [("total", "sum(x)", "double")]) == {"total": ("refuse", None)}


def test_what_is_given_up_goes_over_under_no_other_name() -> None:
    before = [("total", "sum(x)", "int64")]
    assert of(before, [("sums", "sum(x)", "int64")], "total") == {"sums": ("add", None), "total": ("drop", None)}


def test_aggregates_that_keep_the_same_go_on_as_each_other_unless_they_are_over_changes() -> None:
    before = [("v", "variance(x)", "double"), ("f", "first(x)", "int64")]
    now = [("sd", "stddev(x)", "double"), ("sd0", "stddev(x, ddof=0)", "double"), ("any", "any(x)", "int64")]
    assert of(before, now) == {"sd": ("keep", 0), "sd0": ("add", None), "any": ("keep", 1)}
    assert {outcome for outcome, _ in of(before, now, keeps=str).values()} == {"add", "drop"}


def test_the_count_that_groups_have_anyway_is_not_told_as_gone() -> None:
    assert of([("s", "sum(x)", "int64")], [("n", "count()", "int64")], hidden=[ROWS_OF_A_KEY]) == {
        "n": ("keep", 1),
        "s": ("drop", None),
    }


def test_what_keeps_the_same_as_another_one_is_not_dropped_alone() -> None:
    before = [("v", "variance(x)", "double"), ("sd", "stddev(x)", "double")]
    assert of(before, before, "sd") == {"v": ("keep", 0), "sd": ("keep", None)}
    assert of(before, before, "sd", "v") == {"v": ("add", None), "sd": ("add", None)}


def test_a_checkpoint_of_before_in_which_variances_shared_with_others_is_taken_over(tmp_path: Path) -> None:
    calls = [AggregateColumn("avg", "mean", "x"), AggregateColumn("sd", "stddev", "x", ddof=0)]
    old = OperatorRun(lambda: running([replace(each, shares=True) for each in calls]), SCHEMA, ["user"], tmp_path / "a")
    new = OperatorRun(lambda: running(calls), SCHEMA, ["user"], tmp_path / "b")
    for run in (old, new):
        run.feed(rows(1, 50))
    (saved,) = old.checkpoint()
    del saved.facts["reader"]["shares"]  # nothing was said of it
    other = running(calls)
    other.open(OperatorContext(SCHEMA))
    other.restore([saved])
    (then,), (now,) = ([each.to_pylist() for each in part.contents()] for part in (new.parts[0], other))
    assert sorted(now, key=repr) == sorted(then, key=repr)
