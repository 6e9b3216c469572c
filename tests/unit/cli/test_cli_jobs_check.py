"""`sabot jobs check`: would a start with this program go on with the open jobs? Nothing is called, and nothing written."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sabot import App
from sabot.agents import ExecutionRequest, RuntimeKernel
from sabot.cli import load_app
from sabot.cli.loading import load_program
from sabot.errors import CheckpointFailed
from sabot.testing import MemoryBroker
from tools.agent_tools import checkpoint, started, until
from tools.command_line import sabot_says

HEAD = """
import asyncio

from sabot import App
from sabot.llm import tool

app = App("shop", {broker!r}, state="state", checkpoint_interval=3600)
calls = []

@tool(effect="unsafe")
async def refund(order, count):
    calls.append(order)
    return f"refunded {{order}}"

@tool(effect="read")
async def rate(order):
    calls.append("rate")
    return 1
"""
AGENT = """
@app.agent("tickets", key="customer", sink="answers", durable=True, on_error="skip")
async def handle(ctx):
    count = (await ctx.state().get("count") or 0) + 1
    await ctx.state().put("count", count)
    said = await ctx.call(refund, ctx.message["order"], count)
    if ctx.message.get("waits"):
        await ctx.wait("paid")
    return {"said": said}
"""
ASKS_FIRST = AGENT.replace("    said =", "    await ctx.call(rate, ctx.message['order'])\n    said =")
PATCHED = AGENT.replace("    said =", "    if ctx.patched('rate'):\n        await ctx.call(rate, 1)\n    said =")
RENAMED = AGENT.replace("def handle", "def serve")
RAISES = AGENT.replace(
    '        await ctx.wait("paid")',
    "        waiting = asyncio.create_task(ctx.wait('paid'))\n        await asyncio.sleep(0)\n        raise KeyError('nobody')",
)
OTHER_OUTPUT = AGENT.replace('{"said": said}', '{"says": said}')
ASKS_LAST = AGENT.replace("    return", "    await ctx.call(rate, 1)\n    return")
OTHER_ARGUMENTS = AGENT.replace("count)\n    if", "str(count))\n    if")
WAITS_ELSE = AGENT.replace('"paid"', '"money"')
BATCHES = """
@app.agent("tickets", sink="answers", durable=True, batch=True, schema={"order": "int64", "waits": "bool"})
async def handle(batch, ctx):
    said = await ctx.call(refund, batch, batch.num_rows)
    if batch.column("waits")[0].as_py():
        await ctx.wait("paid")
    return batch
"""
_numbers = itertools.count()


def program(folder: Path, agent: str) -> str:
    """The agent in a module that was never imported before -> module:app."""
    name = f"cli_check_{next(_numbers)}"
    (folder / f"{name}.py").write_text(HEAD.format(broker=f"memory://{folder.name}") + agent)
    return f"{name}:app"


def calls_of(target: str) -> list[Any]:
    module = __import__(target.partition(":")[0])
    found: list[Any] = module.calls
    return found


async def crash(app: App) -> None:
    app.agent_runtime.checkpoint_coordinator.refuse("the process died")
    with pytest.raises(CheckpointFailed):
        await app.stop()


def ticket(app: App, order: int, **more: Any) -> None:
    MemoryBroker.get(app.broker).publish("tickets", [{"customer": "ann", "order": order, **more}])


async def served(app: App, ended: int, parked: int = 0) -> None:
    def figures() -> tuple[int, int]:
        jobs = app.statistics()["jobs"]
        return jobs["ended"], jobs["parked"]

    await until(lambda: figures() == (ended, parked))


@pytest.fixture
async def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, where the shop was killed: order 1 is in the checkpoint, order 2 has ended behind it, order 3 waits."""
    monkeypatch.chdir(tmp_path)
    app = load_app(program(tmp_path, AGENT))
    await app.start()
    ticket(app, 1)
    await served(app, 1)
    await checkpoint(app)
    ticket(app, 2)
    await served(app, 2)
    ticket(app, 3, waits=True)
    await served(app, 2, parked=1)
    await crash(app)
    return tmp_path


def checked(target: str, *words: str, code: int = 0) -> list[dict[str, Any]]:
    """What the command says of each job, in the order in which they began."""
    done = sabot_says("jobs", "check", target, "--json", *words)
    assert done.exit_code == code, done.output + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def verdicts(target: str, *words: str, code: int = 0) -> list[str]:
    return [job["verdict"] for job in checked(target, *words, code=code)]


async def test_the_same_program_goes_on_with_the_state_that_each_job_had(shop: Path) -> None:
    """The refund of order 3 was asked with count=3: 1 is in the checkpoint's state, 2 was written by a job behind it."""
    target = program(shop, AGENT)
    first, second = checked(target)
    assert (first["verdict"], first["then"]) == ("ok", "had ended, and gives the same output")
    assert (second["verdict"], second["then"], second["effects"]) == ("ok", "waits for wait paid", 2)
    assert first["agent"] == "shop.handle"
    assert calls_of(target) == []


@pytest.mark.one_in(6, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("agent", "found", "why"),
    [
        (ASKS_FIRST, ["blocked", "held"], "the function asks for call rate"),
        (OTHER_ARGUMENTS, ["blocked", "held"], "with other arguments"),
        (OTHER_OUTPUT, ["blocked", "held"], "gives other output now"),
        (ASKS_LAST, ["blocked", "held"], "at its end, the function goes on"),
        (WAITS_ELSE, ["ok", "blocked"], "at step 2, wait paid"),
        (RENAMED, ["gone", "gone"], "no durable agent of this name"),
    ],
)
async def test_a_program_that_would_not_go_on_is_refused(shop: Path, agent: str, found: list[str], why: str) -> None:
    target = program(shop, agent)
    jobs = checked(target, code=1)
    assert [job["verdict"] for job in jobs] == found
    assert why in "".join(job["then"] for job in jobs)
    done = sabot_says("jobs", "check", target)
    assert done.exit_code == 1
    assert "would not continue all open jobs" in done.stderr
    assert why in done.stdout
    assert calls_of(target) == []


async def test_a_change_behind_patched_is_none_for_open_jobs(shop: Path) -> None:
    assert verdicts(program(shop, PATCHED)) == ["ok", "ok"]


async def test_what_raises_behind_all_that_is_recorded_is_told_and_stops_nobody(shop: Path) -> None:
    first, second = checked(program(shop, RAISES))
    assert (first["verdict"], second["verdict"], second["then"]) == ("ok", "fails", "KeyError: 'nobody'")


async def test_what_is_looked_at_stays_as_it_is_and_a_copy_will_do(shop: Path) -> None:
    def seen() -> dict[str, bytes]:
        files = [path for path in (shop / "state").rglob("*") if path.is_file() and path.suffix != ".db-shm"]
        return {str(path): path.read_bytes() for path in files}

    before, target = seen(), program(shop, AGENT)
    assert verdicts(target) == ["ok", "ok"]
    assert {name: data for name, data in seen().items() if data or name in before} == before
    shutil.copytree(shop / "state", shop / "copy")
    shutil.rmtree(shop / "state")
    assert verdicts(target, "--against", "copy") == ["ok", "ok"]
    assert verdicts(target, "--against", "copy", "--journal", "copy/journal") == ["ok", "ok"]
    assert verdicts(program(shop, ASKS_FIRST), "--against", "copy", code=1) == ["blocked", "held"]


async def test_a_running_app_is_not_disturbed(shop: Path) -> None:
    app = load_app(program(shop, AGENT))
    async with started(app):
        await served(app, 1, parked=1)
        assert "ok" in verdicts(program(shop, AGENT))
        assert verdicts(program(shop, RENAMED), code=1)[-1] == "gone"
        (job,) = [job for job in await app.jobs.find() if not job.ended]
        await app.jobs.signal(job.job_id, "paid")
        await served(app, 2)


async def test_a_journal_of_another_checkpoint_is_refused(shop: Path) -> None:
    shutil.copytree(shop / "state", shop / "copy")
    shutil.rmtree(shop / "copy" / "journal")
    target = program(shop, AGENT)
    app = load_app(program(shop, AGENT.replace("tickets", "others")))
    app.configure(state="other")
    async with started(app):
        pass
    done = sabot_says("jobs", "check", target, "--journal", "other")
    assert (done.exit_code, "the checkpoint was made with" in done.stderr) == (1, True)


async def test_without_open_jobs_there_is_nothing_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = load_app(program(tmp_path, AGENT))
    async with started(app):
        pass
    done = sabot_says("jobs", "check", program(tmp_path, RENAMED))
    assert done.exit_code == 0, done.stderr
    assert "0 open jobs after checkpoint" in done.stderr


async def test_batches_are_checked_and_shown_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = load_app(program(tmp_path, BATCHES))
    await app.start()
    ticket(app, 1)
    await served(app, 1)
    await checkpoint(app)
    ticket(app, 2)
    await served(app, 2)
    ticket(app, 3, waits=True)
    await served(app, 2, parked=1)
    await crash(app)
    same = program(tmp_path, BATCHES)
    jobs = checked(same)
    assert [(job["verdict"], job["then"]) for job in jobs] == [
        ("ok", "had ended, and gives the same output"),
        ("ok", "waits for wait paid"),
    ]
    assert calls_of(same) == []
    other_output = program(tmp_path, BATCHES.replace("return batch", "return batch.slice(1)"))
    assert verdicts(other_output, code=1) == ["blocked", "ok"]
    other_rows = program(tmp_path, BATCHES.replace("refund, batch,", "refund, batch.slice(1),"))
    assert verdicts(other_rows, code=1) == ["blocked", "blocked"]
    shown = sabot_says("jobs", "show", jobs[1]["job_id"], "--journal", "state", "--json")
    assert json.loads(shown.stdout)["input"] == {"records": "tickets[0]@2 (1 rows)"}
    steps = sabot_says("journal", "show", jobs[1]["job_id"], "--journal", "state")
    assert "call refund(pyarrow.RecordBatch" in steps.output


# -- kernels ------------------------------------------------------------------------------------------------------------

KERNEL = """
from sabot.agents import RuntimeKernel
from sabot.llm import tool

calls = []

@tool(effect="unsafe")
async def refund(order):
    calls.append(order)
    return f"refunded {order}"

@tool(effect="read")
async def rate(order):
    calls.append("rate")
    return 1

async def handle(ctx):
    said = await ctx.call(refund, ctx.message)
    await ctx.wait("paid")
    return said

async def child(ctx):
    await ctx.ask("confirm", {"order": ctx.message})

app = RuntimeKernel.create(agent=[handle, child], journal="jobs", name="desk")
"""
KERNEL_ASKS_FIRST = KERNEL.replace("    said =", "    await ctx.call(rate, 1)\n    said =")
KERNEL_RENAMED = KERNEL.replace("def child", "def other").replace("[handle, child]", "[handle, other]")


def kernel_program(folder: Path, text: str) -> str:
    name = f"cli_check_{next(_numbers)}"
    (folder / f"{name}.py").write_text(text)
    return f"{name}:app"


async def test_the_open_jobs_of_a_kernel_are_checked_while_it_runs_and_when_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command took apps only."""
    monkeypatch.chdir(tmp_path)
    kernel = load_program(kernel_program(tmp_path, KERNEL))
    assert isinstance(kernel, RuntimeKernel)
    async with kernel:
        waits = await kernel.execute(ExecutionRequest(prompt="17", agent="handle"))
        await kernel.execute(ExecutionRequest(prompt="18", agent="child"))
        ended = await kernel.execute(ExecutionRequest(prompt="19", agent="handle"))
        await kernel.jobs.signal(ended.job_id, "paid")
        assert (await ended.result()).content == "refunded 19"
        await until(lambda: kernel.statistics()["parked"] == 2)
        target = kernel_program(tmp_path, KERNEL)
        await until(lambda: len(checked(target)) == 2)  # the kernel has a result before its end is durable
        first, second = checked(target)
        assert (first["job_id"], first["agent"], first["effects"]) == (waits.job_id, "desk.handle", 2)
        assert [(job["verdict"], job["then"]) for job in (first, second)] == [
            ("ok", "waits for wait paid"),
            ("ok", "waits for ask confirm"),
        ]
        assert calls_of(target) == []
    assert verdicts(target) == ["ok", "ok"]
    assert verdicts(kernel_program(tmp_path, KERNEL_RENAMED), code=1) == ["ok", "gone"]
    blocked = kernel_program(tmp_path, KERNEL_ASKS_FIRST)
    assert "the function asks for call rate" in checked(blocked, code=1)[0]["then"]
    done = sabot_says("jobs", "check", blocked)
    assert "2 open jobs of kernel desk; 1 would not continue" in done.stderr
    assert verdicts(target, "--journal", "jobs") == ["ok", "ok"]
    done = sabot_says("jobs", "check", target, "--against", "state")
    assert (done.exit_code, "a kernel has none" in done.stderr) == (2, True)
