"""`sabot jobs record`, `replay`, `diff`."""

import itertools
import json
from pathlib import Path

import pytest

from sabot.cli import load_app
from sabot.testing import MemoryBroker
from tools.agent_tools import started, until
from tools.command_line import sabot_says

PROGRAM = """
from sabot import App
from sabot.llm import tool

app = App("shop", {broker!r}, state="state", checkpoint_interval=3600)
calls = []

@tool(effect="unsafe")
async def refund(order):
    calls.append(order)
    return f"refunded {{order}}"

@app.agent("tickets", sink="answers", durable=True)
async def handle(ctx):
    return {{"said": await ctx.call(refund, ctx.message["order"])}}
"""
_numbers = itertools.count()


def program(folder: Path, text: str) -> str:
    name = f"replayed_{next(_numbers)}"
    (folder / f"{name}.py").write_text(text.format(broker=f"memory://{folder.name}"))
    return f"{name}:app"


@pytest.fixture
async def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program, whose journal has two jobs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    app = load_app(program(tmp_path, PROGRAM))
    async with started(app):
        broker = MemoryBroker.get(f"memory://{tmp_path.name}")
        broker.publish("tickets", [{"order": 1}, {"order": 2}])
        await until(lambda: len(broker.records("answers")) == 2)
    return tmp_path


def jobs() -> list[str]:
    listed = sabot_says("jobs", "list", "--journal", "state", "--json")
    return [json.loads(line)["job_id"] for line in listed.stdout.splitlines()]


async def test_the_code_of_today_runs_over_a_job_and_calls_nothing(folder: Path) -> None:
    one, _ = jobs()
    same = program(folder, PROGRAM)
    said = sabot_says("jobs", "replay", one, "-A", same, "--journal", "state")
    assert said.exit_code == 0, said.stderr
    assert "1 steps, as they are recorded; nothing was called" in said.stderr
    assert "call refund" in said.stdout
    assert "refunded 1" in said.stdout
    assert sabot_says("jobs", "record", one, "one.json", "--journal", "state").exit_code == 0
    other = program(folder, PROGRAM.replace('ctx.message["order"]', 'ctx.message["order"] + 1'))
    said = sabot_says("jobs", "replay", "one.json", "-A", other, "--json")
    assert said.exit_code == 1
    assert json.loads(said.stdout)["difference"] == "at step 1, it asks for call refund with other arguments"
    renamed = program(folder, PROGRAM.replace("def handle", "def serve"))
    said = sabot_says("jobs", "replay", "one.json", "-A", renamed)
    assert "has no durable agent shop.handle" in said.stderr
    assert "it has shop.serve" in said.stderr


async def test_two_jobs_are_compared_step_by_step(folder: Path) -> None:
    one, two = jobs()
    same = sabot_says("jobs", "diff", one, one, "--journal", "state")
    assert same.exit_code == 0
    said = sabot_says("jobs", "diff", one, two, "--journal", "state", "--json")
    assert said.exit_code == 1
    assert "1 of 1 steps differ" in said.stderr
    step = json.loads(said.stdout.splitlines()[0])
    assert (step["differs"], step["one"]["value"], step["other"]["value"]) == ("asked", "refunded 1", "refunded 2")
    missing = sabot_says("jobs", "diff", one, "two.json")
    assert "is no file of a recording" in missing.stderr
