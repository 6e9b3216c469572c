"""`sabot jobs record`, `replay`, `fork`, `diff`."""

import asyncio
import itertools
import json
import re
from pathlib import Path

import pytest

from sabot.agents import ExecutionRequest
from sabot.cli import load_app
from sabot.cli.loading import WrongUse, load_program
from sabot.llm import BudgetExceeded
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
    assert "1 steps, all as recorded; no effect was made" in said.stderr
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
    assert "its agents: shop.serve" in said.stderr


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
    assert "there is no file" in missing.stderr


async def test_a_comparison_is_as_wide_as_the_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = jobs()
    long = ["look" * 30, "seen" * 30]
    step = {"ordinal": 1, "kind": "call", "name": "llm", "asked": long[0], "outcome": "ok", "value": long[1]}
    monkeypatch.setattr("sabot.cli.replaying.steps_of", lambda recording: [step])
    for columns in (80, 120, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = sabot_says("jobs", "diff", one, two, "--journal", "state").stdout.splitlines()
        assert all(len(line) <= columns for line in lines), lines
        assert re.search(r"call llm .?look.*… -> ok .?seen.*…  call llm .?look.*… -> ok .?seen.*…", lines[1])
    monkeypatch.delenv("COLUMNS")
    assert max(map(len, sabot_says("jobs", "diff", one, two, "--journal", "state").stdout.splitlines())) > 200


KERNEL = """
from sabot.agents import RuntimeKernel
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider, ToolCall, assistant, tool

@tool(effect="read")
async def look() -> str:
    \"\"\"Looks.\"\"\"
    return "gold"

def said(spec):
    words = " ".join(each.text for each in spec.messages if each.role == "system")
    return assistant("", ToolCall("c", "look", "{{}}")) if spec.messages[-1].role == "user" else f"it is gold {{words}} {{spec.model}}"

agent = Agent(ExecutionEngine(ScriptedProvider(said)), tools=[look], name="shop")
kernel = RuntimeKernel.create(agent=agent, journal="jobs")
"""


async def forked(*words: object) -> tuple[int, str, str]:
    said = await asyncio.to_thread(sabot_says, "jobs", "fork", *words)
    return said.exit_code, said.stdout, said.stderr


async def test_a_job_of_an_app_goes_on_from_a_step_with_an_answer_in_place_of_a_tool(folder: Path) -> None:
    one, _ = jobs()
    same = program(folder, PROGRAM)
    code, out, errors = await forked(one, "-A", same, "--journal", "state", "--from", 0)
    assert (code, "refund was not done" in errors, "PolicyDenied" in out) == (1, True, True)
    code, out, errors = await forked(one, "-A", same, "--journal", "state", "--from", 0, "--answer", 'refund="nothing"')
    assert (code, "succeeded, different from step 1 on" in errors, "nothing" in out) == (0, True, True)
    assert "names nothing" not in errors
    misspelt = ("--allow", "refnud", "--allow", "unsafe", "--answer", "refnd=1")
    code, _, errors = await forked(one, "-A", same, "--journal", "state", "--from", 0, *misspelt)
    assert [line.split(",")[0] for line in errors.splitlines() if "names nothing" in line] == [
        "refnud",
        "refnd",
    ]
    code, out, _ = await forked(
        *(one, "-A", same, "--journal", "state", "--from", 0, "--allow", "refund"), "--json", "--record", "fork.json"
    )
    assert (code, json.loads(out)["result"], json.loads(out)["first_difference"]) == (0, {"said": "refunded 1"}, None)
    assert sabot_says("jobs", "replay", "fork.json", "-A", same).exit_code == 0
    for words, told in {
        ("--from", "9"): "has no result of step 9",
        ("--from", "later"): "has no checkpoint later",
        ("--from", "0", "--answer", "refund"): "write NAME=JSON",
    }.items():
        code, _, errors = await forked(one, "-A", same, "--journal", "state", *words)
        assert (code > 0, told in errors) == (True, True), errors
    code, _, errors = await forked("fork.json", "-A", same, "--from", "later")
    assert (code, "a file has no checkpoints" in errors) == (2, True)


async def test_a_job_of_a_kernel_goes_on_with_another_model_and_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    first, target = (program(tmp_path, KERNEL).replace(":app", ":kernel") for _ in range(2))
    async with load_program(first) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="What is it?"))
        await handle.result()
    words = (handle.job_id, "-A", target, "--journal", "jobs", "--json", "--from")
    code, out, errors = await forked(*words, 2, "--model", "small", "--prompt", "Be brief.")
    assert code == 0, errors
    assert (json.loads(out)["result"]["content"], json.loads(out)["first_difference"]) == (
        "it is gold Be brief. small",
        3,
    )
    code, out, _ = await forked(*words, 2, "--answer", 'llm="it is brass"')
    assert json.loads(out)["result"]["content"] == "it is brass"
    assert sabot_says("jobs", "replay", handle.job_id, "-A", target, "--journal", "jobs").exit_code == 0


async def test_a_fork_on_the_command_line_asks_the_policy_of_the_program(folder: Path) -> None:
    """It went past it: an unsafe tool that --allow named was called, and a model that the policy denies asked."""
    lines = "from sabot.agents import PolicyEngine, ToolPolicy\n\npolicy = PolicyEngine([ToolPolicy(['refund'], require_approval=True)])"
    judged = PROGRAM.replace("checkpoint_interval=3600)", "checkpoint_interval=3600, policy=policy)")
    target = program(folder, judged.replace("\napp = App", f"\n{lines}\napp = App"))
    words = (jobs()[0], "-A", target, "--journal", "state", "--from", 0, "--allow", "refund")
    code, _, errors = await forked(*words)
    assert "a person who says whether call refund (step 1) may be made" in errors
    code, out, errors = await forked(*words, "--answer", 'confirm={"approved": true}', "--json")
    assert (code, json.loads(out)["outcome"]) == (0, "succeeded"), errors
    assert "refunded" in json.loads(out)["result"]["said"]
    # what says neither yes nor no was taken for a no, and so was a plain true
    for said, made in {"true": True, "false": False}.items():
        code, out, errors = await forked(*words, "--answer", f"confirm={said}")
        assert (code == 0, "refunded 1" in out, "was rejected" in errors) == (made, made, not made), errors
    for said in ('["yes"]', '{"approved": "yes"}', "{}", '"yes"'):
        code, out, errors = await forked(*words, "--answer", f"confirm={said}")
        assert (code, "says neither yes nor no" in errors, "--answer confirm=true" in errors) == (1, True, True), errors


ASKING = """
from sabot.agents import RuntimeKernel
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider

kernel = RuntimeKernel.create(agent=Agent(ExecutionEngine(ScriptedProvider(["yes"] * 9)), name="asker"), journal="asked")
"""


def test_a_kernel_that_is_not_there_is_told_by_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = program(tmp_path, ASKING).partition(":")[0]
    (tmp_path / "holds_nothing.py").write_text("x = 1")
    for target, said in {
        f"{module}:nope": f"{module} has no 'nope' (its Apps and kernels: {module}:kernel)",
        f"{module}:RuntimeKernel": f"{module}:RuntimeKernel is of type type and not an App or RuntimeKernel (its Apps and kernels: ",
        "holds_nothing:x": "holds_nothing:x is of type int and not an App or RuntimeKernel (there is no App and no RuntimeKernel in holds",
    }.items():
        with pytest.raises(WrongUse, match="^" + re.escape(said)):
            load_program(target)


def test_digests_are_short_hexadecimal_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # a terminal that is narrow would cut them
    target = program(tmp_path, ASKING).replace(":app", ":kernel")

    async def work() -> list[str]:
        async with load_program(target) as kernel:
            handles = [await kernel.execute(ExecutionRequest(prompt=word)) for word in ("one", "two")]
            return [(await handle.result(), handle.job_id)[1] for handle in handles]

    one, two = asyncio.run(work())
    said = [
        sabot_says("jobs", "replay", one, "-A", target, "--journal", "asked"),
        sabot_says("jobs", "diff", one, two, "--journal", "asked"),
        sabot_says("jobs", "diff", one, two, "--journal", "asked", "--json"),
        sabot_says("jobs", "fork", one, "--from", "0", "-A", target, "--journal", "asked"),
        sabot_says("journal", "show", one, "--journal", "asked"),
    ]
    for each in said:
        assert re.search(r"\[.?[0-9a-f]{12}…", each.stdout), each.stdout
        assert not re.search(r"\\+x[0-9a-f]|\\+u00", each.stdout), each.stdout


WAITING = """
from sabot.agents import RuntimeKernel

async def careful(ctx):
    return (await ctx.ask("confirm", {{}}, timeout="1h")).approved

kernel = RuntimeKernel.create(agent=careful, journal="waiting")
"""


def test_a_fork_on_the_command_line_says_what_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    target = program(tmp_path, WAITING).replace(":app", ":kernel")

    async def work() -> str:
        async with load_program(target) as kernel:
            handle = await kernel.execute(ExecutionRequest(prompt="go"))
            await until(lambda: kernel.statistics()["parked"] == 1)
            return str(handle.job_id)

    words = ["jobs", "fork", asyncio.run(work()), "--from", "0", "-A", target, "--journal", "waiting"]
    said = sabot_says(*words, "--no-wait")
    assert (said.exit_code, "waits" in said.stderr) == (0, True), said.stderr
    assert "the fork waits for ask confirm (step 1), for " in said.stderr
    assert "--answer confirm=JSON" in said.stderr
    said = sabot_says(*words, "--no-wait", "--answer", 'confirm={"approved": true}', "--json")
    assert (json.loads(said.stdout)["result"], json.loads(said.stdout)["waits_for"]) == (True, [])


SPENDING = """
from sabot.agents import Budget, RuntimeKernel
from sabot.llm import Completion, ExecutionEngine, ScriptedProvider, Usage, assistant

def said(spec):
    return Completion(message=assistant("yes"), usage=Usage(5, 5))

engine = ExecutionEngine(ScriptedProvider(said))

async def ask(ctx):
    return (await ctx.llm(engine).complete("q", model="m", max_tokens=9)).content

kernel = RuntimeKernel.create(agent=ask, engine=engine, budgets=[Budget("s", max_calls_daily=2)], journal="spent")
"""


def test_what_a_fork_asks_is_judged_by_the_budgets_and_booked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was paid by nobody: a budget that was used up let any number of forks ask, and the ledger had no row of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def target() -> str:
        return program(tmp_path, SPENDING).replace(":app", ":kernel")

    async def work() -> str:
        async with load_program(target()) as kernel:
            handle = await kernel.execute(ExecutionRequest(prompt="go", scope_id="s"))
            await handle.result()
            return str(handle.job_id)

    def booked() -> dict[str, int]:
        lines = sabot_says("ledger", "spent", "--by", "job,model", "--json").stdout.splitlines()
        return {each["job"]: each["calls"] for each in map(json.loads, lines)}

    job = asyncio.run(work())
    words = ("jobs", "fork", job, "--journal", "spent", "--from", "0", "-A")
    answered = sabot_says(*words, target(), "--answer", 'llm="no"')
    assert answered.exit_code == 0, answered.stderr
    assert booked() == {job: 1}, "a stand-in uses nothing"
    first = sabot_says(*words, target(), "--json")
    assert first.exit_code == 0, first.stderr
    own = json.loads(first.stdout)["booked_as"]
    assert own.startswith(f"{job}/fork-")
    assert f"is booked as job {own}" in first.stderr
    assert booked() == {job: 1, own: 1}
    second = sabot_says(*words, target())
    assert second.exit_code == 1
    assert "the daily budget of s has 2 calls: 2 used" in second.stderr
    assert booked() == {job: 1, own: 1}
    assert sabot_says("jobs", "replay", job, "-A", target(), "--journal", "spent").exit_code == 0
    # a program that starts behind it counts with the rows of the fork, and leaves them
    with pytest.raises(BudgetExceeded, match="2 used"):
        asyncio.run(work())
    assert booked() == {job: 1, own: 1}
