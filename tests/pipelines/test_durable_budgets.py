"""Budgets and the ledger of an app: over crashes, beside a policy, from the command line."""

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sabot import App
from sabot.agents import Budget, ExecutionRequest, PolicyEngine, RuntimeKernel, ToolPolicy
from sabot.connectors.memory import MemoryBroker
from sabot.errors import CheckpointFailed
from sabot.llm import (
    Agent,
    BudgetExceeded,
    Completion,
    ExecutionEngine,
    Price,
    PriceTable,
    ScriptedProvider,
    Usage,
    assistant,
)
from sabot.llm import tool as made_tool
from tools.agent_tools import checkpoint, started, until
from tools.command_line import sabot_says

PRICES = PriceTable({"m": Price("1", "10")}, version="1")
ANSWER = Completion(message=assistant("yes"), usage=Usage(100, 50), model="m", provider="scripted")


class Shop:
    def __init__(self, url: str, directory: Path) -> None:
        self.url, self.directory = url, directory
        self.provider = ScriptedProvider(lambda spec: ANSWER, model="m")
        self.engine = ExecutionEngine(self.provider, prices=PRICES)

    def app(self, **options: Any) -> App:
        app = App("shop", self.url, state=str(self.directory), checkpoint_interval=3600, **options)

        @made_tool(effect="read")
        async def look(name: str) -> str:
            return name

        @app.agent("questions", durable=True, sink="answers", scope="tenant", on_error="skip")
        async def handle(ctx: Any) -> Any:
            try:
                said = await ctx.llm(self.engine).complete(ctx.message["text"], max_tokens=100)
            except BudgetExceeded as error:
                return {"refused": error.message}
            await ctx.call(look, name="x")
            if ctx.message.get("waits"):
                await ctx.wait("go")
            return {"said": said.content}

        return app

    def ask(self, *tenants: str, **fields: Any) -> None:
        broker = MemoryBroker.get(self.url)
        broker.publish("questions", [{"text": "hi", "tenant": tenant, **fields} for tenant in tenants])

    def answers(self) -> list[Any]:
        return [record.value for record in MemoryBroker.get(self.url).records("answers")]


@pytest.fixture
def shop(memory_url: str, tmp_path: Path) -> Shop:
    return Shop(memory_url, tmp_path / "state")


async def test_a_tenant_uses_what_it_may_and_another_one_is_not_in_its_way(shop: Shop) -> None:
    budgets = [Budget("ann", max_tokens_daily=300, warn_at=1)]
    app = shop.app(budgets=budgets)
    async with started(app):
        shop.ask("ann", "bob")
        await until(lambda: len(shop.answers()) == 2)
        shop.ask("ann", "ann", "bob")
        await until(lambda: len(shop.answers()) == 5)
        used = await app.accounts.used("ann")
    refused = [answer for answer in shop.answers() if "refused" in answer]
    assert len(refused) == 1
    assert "the daily budget of ann has 300 tokens" in refused[0]["refused"]
    assert used["daily"].tokens == 300
    assert used["daily"].cost == Decimal("0.0012")
    assert len(shop.provider.requests) == 4


@pytest.mark.slow  # half a second of a core
async def test_what_was_used_is_known_after_a_crash_and_after_a_restart(shop: Shop) -> None:
    budgets = [Budget("ann", max_tokens_daily=300, warn_at=1)]
    app = shop.app(budgets=budgets)
    await app.start()
    shop.ask("ann", waits=True)
    await until(lambda: app.statistics()["jobs"]["parked"] == 1)
    await app.accounts.flush()
    await app.accounts.writer.close()
    for left in shop.directory.glob("ledger.db*"):  # as if the rows had not been written when it died
        left.unlink()
    app.agent_runtime.checkpoint_coordinator.refuse("the process died")
    with pytest.raises(CheckpointFailed):
        await app.stop()
    for left in shop.directory.glob("ledger.db*"):
        left.unlink()
    app = shop.app(budgets=budgets)
    async with started(app):
        assert (await app.accounts.used("ann"))["daily"].tokens == 150
        shop.ask("ann", "ann")
        await until(lambda: len(shop.answers()) == 2)
        await checkpoint(app)
    assert [list(answer) for answer in shop.answers()] == [["said"], ["refused"]]
    app = shop.app(budgets=budgets)
    async with started(app):
        assert (await app.accounts.used("ann"))["daily"].tokens == 300


async def test_what_the_policy_denies_is_not_used(shop: Shop) -> None:
    policy = PolicyEngine()
    policy.add_rule(ToolPolicy(tool_patterns=["look"], allowed_scopes=["bob"]))
    app = shop.app(budgets=[], policy=policy)
    async with started(app):
        shop.ask("ann", "bob")
        await until(lambda: len(shop.answers()) == 1)
        await until(lambda: len(MemoryBroker.get(shop.url).records("questions.dlq")) == 1)
        await app.accounts.flush()
        found = {each.group: each.calls for each in await app.accounts.writer.sums(["scope", "type"], 0)}
    assert found == {("ann", "model"): 1, ("bob", "model"): 1, ("bob", "tool"): 1}


async def test_the_command_line_says_what_was_used_and_what_may_be(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(shop.app(budgets=[])):
        shop.ask("ann", "bob")
        await until(lambda: len(shop.answers()) == 2)
    said = await asyncio.to_thread(
        sabot_says, "ledger", str(shop.directory), "--by", "scope,type", "--since", "1d", "--json"
    )
    assert said.exit_code == 0, said.stderr
    rows = [json.loads(line) for line in said.stdout.splitlines()]
    assert rows[0] == {
        "scope": "ann",
        "type": "model",
        "calls": 1,
        "read": 100,
        "written": 50,
        "in_doubt": 0,
        "cost": "0.000600",
        "cost_in_doubt": "0",
        "unpriced": 0,
    }
    assert [row["calls"] for row in rows] == [1] * 4
    assert "has no ledger" in (await asyncio.to_thread(sabot_says, "ledger", str(tmp_path))).stderr
    said = await asyncio.to_thread(sabot_says, "ledger", str(shop.directory), "--by", "colour")
    assert "a ledger has no 'colour'" in said.stderr
    (tmp_path / "budgeted.py").write_text(
        "from sabot import App\nfrom sabot.agents import Budget\n"
        f"app = App('shop', {shop.url!r}, state={str(shop.directory)!r}, budgets=[Budget('ann', max_tokens_daily=300)])\n"
        "plain = App('plain', 'memory://plain')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    listed = await asyncio.to_thread(sabot_says, "budgets", "budgeted:app", "--json")
    assert json.loads(listed.stdout) == {
        "scope": "ann",
        "window": "daily",
        "limit": "tokens",
        "used": "150",
        "in_doubt": "0",
        "reserved": "0",
        "of": "300",
        "part": "50%",
    }
    (tmp_path / "patterned.py").write_text(
        "from sabot import App\nfrom sabot.agents import Budget\n"
        f"app = App('shop', {shop.url!r}, state={str(shop.directory)!r}, budgets=[Budget('b*', max_tokens_daily=300), "
        "Budget('new-*', max_cost_daily='0.0000001')])\n"
    )
    listed = await asyncio.to_thread(sabot_says, "budgets", "patterned:app", "--json")
    shown = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [(each["scope"], each["used"], each["of"]) for each in shown] == [
        ("bob", "150", "300"),
        ("new-*", "0", "0.0000001"),
    ]
    said = await asyncio.to_thread(sabot_says, "budgets", "budgeted:plain")
    assert "app plain has no budgets" in said.stderr


async def test_the_use_of_an_app_without_budgets_is_shown_by_the_command_line_too(shop: Shop) -> None:
    app = shop.app()
    async with started(app):
        shop.ask("ann")
        await until(lambda: len(shop.answers()) == 1)
        (job,) = await app.jobs.find()
    said = await asyncio.to_thread(sabot_says, "ledger", str(shop.directory), "--json")
    row = json.loads(said.stdout.splitlines()[0])
    assert (row["scope"], row["read"], row["written"], row["cost"]) == ("ann", 100, 50, "0.000600")
    said = await asyncio.to_thread(sabot_says, "jobs", "show", job.job_id, "--journal", str(shop.directory), "--json")
    facts = json.loads(said.stdout)
    assert (facts["tokens"], Decimal(facts["dollars"])) == (150, Decimal("0.0006"))


async def test_the_use_of_a_kernel_without_budgets_is_shown_by_the_command_line_too(tmp_path: Path) -> None:
    engine = ExecutionEngine(ScriptedProvider([ANSWER], model="m"), prices=PRICES)
    async with RuntimeKernel.create(agent=Agent(engine, name="desk"), journal=str(tmp_path / "jobs")) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="hi", scope_id="ann"))
        await handle.result()
    said = await asyncio.to_thread(sabot_says, "ledger", str(tmp_path / "jobs"), "--json")
    row = json.loads(said.stdout.splitlines()[0])
    assert (row["scope"], row["read"], row["written"], row["cost"]) == ("ann", 100, 50, "0.000600")
