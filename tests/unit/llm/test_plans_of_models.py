"""Steps that ask models, in plans: the text, the id, the refusals, and whose state goes on."""

from pathlib import Path
from typing import Any

import pytest
from unit.engine.plan.test_plan_texts import Streams, refusal, said
from unit.engine.plan.test_state_matching import checkpoint, verdicts
from unit.engine.plan.test_state_matching import run as run

from sabot.llm import ExecutionEngine, ScriptedProvider

PLAN = """\
stage read-1
  read rows: k; ts is not null
  map_llm scripted-1, 'How is {k}?'
    dead:
      -> stage write-2
  select mood
  -> stage write-3
stage write-1
  write rows.dlq
stage write-2
  write dead
stage write-3
  write result
map_llm-1 b592238675e345ad
select-1 7bafb63809d64038"""

CHANGES = (
    "map_llm: the rows that come in are changes (updates and deletes of earlier ones), which it cannot take | "
    ".materialize() waits for the final rows, .changelog() gives each change as a row of its own"
)


def model() -> ExecutionEngine:
    return ExecutionEngine(ScriptedProvider("here"))


def test_a_plan_names_the_model_and_its_prompt() -> None:
    def program(s: Streams) -> Any:
        asked = s.rows.map_llm("How is {k}?", model(), output={"mood": "string"}, on_error="skip", dead_letter="dead")
        return asked.select("mood")

    assert said(program, 1) == PLAN
    assert said(program, 2).startswith(PLAN.replace("stage read-1", "stage read-1  x2", 1))
    assert "smap_llm_1 -. dead .-> swrite_2_in" in said(program, 2)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (lambda s: s.table.map_llm("How is {k}?", model()), CHANGES),
        (
            lambda s: s.rows.map_llm("How is {kk}?", model()),
            "map_llm: there is no column 'kk' | did you mean 'k'? the columns are id, k, x, n, ts",
        ),
        (
            lambda s: s.rows.map_llm("How is {k}?", model(), output={"x": "int64"}),
            "map_llm: the answer has a column 'x', which the rows have already | "
            'rename({"x": …}) before it, or another name in output=',
        ),
    ],
    ids=["changes", "a column that is not there", "a column that is there already"],
)
def test_a_step_that_cannot_be_is_refused_where_it_is_written(program: Any, message: str) -> None:
    assert refusal(program) == message


async def test_a_step_that_asks_a_model_goes_on_from_its_checkpoint(run: Any, tmp_path: Path) -> None:
    def program(stream: Any) -> None:
        stream.map_llm("Where is {k}?", model(), output="place").named("told").to("told")

    await run(program)
    assert [(each.id, each.outcome, each.why) for each in verdicts(program, checkpoint(tmp_path))] == [
        ("told", "keep", "")
    ]
