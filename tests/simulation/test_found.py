"""What random programs have found, each as small as it became, and without the simulation."""

import pytest

import sabot
from sabot import App
from sabot.testing import END, ScriptedSource


@pytest.mark.parametrize("parallelism", [1, 3])
def test_a_table_of_groups_behind_a_join_by_another_key_is_dealt_out_by_its_own(parallelism: int) -> None:
    """In one subtask the step behind the groups still went by the key of the join, which was not among its columns (seed 183)."""
    app = App("found", "memory://", parallelism=parallelism)
    rows = [{"k": "a", "i": 1}, {"k": "b", "i": 1}, {"k": "b", "i": 2}]
    stream = app.stream(ScriptedSource([rows, END]))
    per_key = stream.group_by("k").aggregate(rows=sabot.count())
    groups = per_key.join(stream, on="k", how="right").group_by("i").aggregate(total=sabot.sum("rows"))
    assert sorted(groups.materialize().collect().to_pylist(), key=str) == [{"i": 1, "total": 3}, {"i": 2, "total": 2}]


class Told(sabot.Process):
    def process(self, row, ctx):
        return {"k": ctx.key, "rows": row["rows"]}


@pytest.mark.parametrize("parallelism", [1, 3])
def test_a_process_function_behind_a_lookup_does_not_take_the_table_for_its_own_input(parallelism: int) -> None:
    """In one chain with the lookup it was refused: the table's rows are changes (seed 20146)."""
    app = App("found", "memory://", parallelism=parallelism)
    stream = app.stream(ScriptedSource([[{"k": "a", "ts": 1}, {"k": "b", "ts": 2}], END]), time="ts")
    table = app.stream(ScriptedSource([[{"k": "a"}, {"k": "a"}], END], name="table"))
    looked_up = stream.lookup(table.group_by("k").aggregate(rows=sabot.count()), on="k")
    told = looked_up.key_by("k").process(Told(), schema={"k": "string", "rows": "int64"})
    rows = sorted(told.collect().to_pylist(), key=str)
    assert rows == [{"k": "a", "rows": 2}, {"k": "b", "rows": None}]
