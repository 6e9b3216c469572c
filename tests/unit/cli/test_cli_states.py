"""`sabot jobs checkpoint`, `checkpoints`, `restore`."""

import asyncio
import itertools
import json
from pathlib import Path

import pytest

from sabot.agents import ExecutionRequest
from sabot.cli.loading import load_program
from tools.agent_tools import until
from tools.command_line import sabot_says

PROGRAM = """
from sabot.agents import RuntimeKernel
from sabot.llm import tool

@tool(effect="read")
async def look():
    return "gold"

@tool(effect="unsafe")
async def pay(what):
    return f"paid for {what}"

async def shop(ctx):
    seen = await ctx.call(look)
    await ctx.wait("go")
    return await ctx.call(pay, seen)

kernel = RuntimeKernel.create(agent=shop, journal="jobs")
"""
_numbers = itertools.count()


def program(folder: Path, text: str = PROGRAM) -> str:
    name = f"restored_{next(_numbers)}"
    (folder / f"{name}.py").write_text(text)
    return f"{name}:kernel"


async def test_a_job_gets_a_checkpoint_and_goes_on_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    async with load_program(program(tmp_path)) as kernel:
        job = (await kernel.execute(ExecutionRequest(prompt="go"))).job_id
        await until(lambda: kernel.statistics()["parked"] == 1)
    assert sabot_says("jobs", "checkpoint", job, "seen", "--journal", "jobs", "--by", "ada").exit_code == 0
    twice = sabot_says("jobs", "checkpoint", job, "seen", "--journal", "jobs")
    assert (twice.exit_code, "has a checkpoint seen" in twice.stderr) == (1, True)
    nameless = sabot_says("jobs", "checkpoint", job, "", "--journal", "jobs")
    assert (nameless.exit_code, "NAME is empty" in nameless.stderr) == (1, True)
    large = sabot_says("jobs", "checkpoint", job, "--journal", "jobs", "--max-size", "10")
    assert "bytes, and 10 are allowed" in large.stderr
    listed = json.loads(sabot_says("jobs", "checkpoints", job, "--journal", "jobs", "--json").stdout)
    assert (listed["name"], listed["by"], listed["effects"]) == ("seen", "ada", 2)
    assert "manual" in sabot_says("jobs", "checkpoints", job, "--journal", "jobs").stdout
    assert sabot_says("jobs", "signal", job, "go", "--journal", "jobs").exit_code == 0
    async with load_program(program(tmp_path)) as kernel:
        [handle] = await kernel.resume()
        assert (await handle.result()).content == "paid for gold"
    late = sabot_says("jobs", "checkpoint", job, "--journal", "jobs")
    assert "has ended: succeeded" in late.stderr

    def restored(*words: str) -> tuple[int, str, str]:
        said = sabot_says("jobs", "restore", job, *words)
        return said.exit_code, said.stdout, said.stderr

    code, _, errors = await asyncio.to_thread(restored, "-A", program(tmp_path))
    assert (code, "has asked for pay (step 3)" in errors) == (1, True)
    today = program(tmp_path, PROGRAM.replace('await ctx.wait("go")', 'await ctx.wait("go") if False else None'))
    code, _, errors = await asyncio.to_thread(restored, "-A", today, "--again", "pay")
    assert (code, "the code of today does not do what" in errors) == (1, True)
    again = asyncio.create_task(asyncio.to_thread(restored, "-A", program(tmp_path), "--again", "pay", "--json"))
    outside = load_program(program(tmp_path)).jobs
    while not (found := [each for each in await outside.find() if each.open]):
        assert not again.done(), again.result()
        await asyncio.sleep(0.005)
    await outside.signal(found[0].job_id, "go")
    code, said, errors = await again
    assert (code, json.loads(said)["output"]) == (0, "paid for gold"), errors
    assert f"job {found[0].job_id} continues from the checkpoint" in errors
