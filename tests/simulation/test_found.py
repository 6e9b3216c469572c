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
