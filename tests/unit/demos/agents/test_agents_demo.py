"""`sabot demo agents`, as a user starts it: two kills, each refund made once, each answer of the model used once; and what it does when
something came out wrong.
"""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sabot.cli import commands
from sabot.demos.agents import demo


def started(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(commands.cli, ["demo", "agents", "--tickets", "10", *words])
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.integration
@pytest.mark.slow  # three processes one after the other
def test_tickets_are_answered_and_refunds_made_once_though_the_app_is_killed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said, errors = started("--json")
    assert code == 0, errors
    figures = json.loads(said)
    known = {"tickets": 10, "approvals": 2, "refunds": 3, "twice": 0, "lost": 0, "kills": 2}
    assert {name: figures[name] for name in known} == known
    assert figures["asked"] >= figures["model_calls"] + figures["paid_twice"]
    assert figures["in_doubt"] >= 1
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_came_out_wrong_ends_with_exit_code_1_and_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing was done at all."""
    nothing = {"model_calls": 0, "asked": 0, "paid_twice": 0, "tokens": 0, "twice": 0, "lost": 3, "in_doubt": 0}
    monkeypatch.setattr(demo._SupportDemo, "outcome", lambda _: nothing | {"kills": 0})
    code, said, errors = started()
    assert code == 1
    assert "not true: no refund is lost" in errors
    assert "no refund is made twice" not in errors
    assert "Tickets answered" not in said
