"""What jobs use as a stream: windows over it, and each row once, whatever crashes."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import sabot
from sabot import App, col, tumbling
from sabot.clock import ManualClock
from sabot.connectors.memory import MemoryBroker
from sabot.errors import CheckpointFailed, UserError
from sabot.llm import Completion, ExecutionEngine, Price, PriceTable, RequestSpec, ScriptedProvider, Usage, assistant
from tools.agent_tools import checkpoint, started, until

PRICES = PriceTable({"m": Price("1", "10")}, version="1")
START = 1_700_000_000 - 1_700_000_000 % 3600


def answer(spec: RequestSpec) -> Completion:
    return Completion(
        message=assistant(f"for {spec.messages[-1].content}"), usage=Usage(100, 50), model="m", provider="scripted"
    )


class Shop:
    """Each record asks a model, which reads 100 tokens and writes 50: 0.0006 dollars."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url, self.directory = url, directory
        self.clock = ManualClock(START + 60.0)
        self.engine = ExecutionEngine(ScriptedProvider(answer, model="m"), prices=PRICES)
        self.broker = MemoryBroker.get(url)

    def app(self) -> App:
        app = App("shop", self.url, state=str(self.directory), checkpoint_interval=3600, budgets=[], clock=self.clock)

        @app.agent("questions", durable=True, sink="answers", scope="tenant")
        async def handle(ctx: Any) -> Any:
            return (await ctx.llm(self.engine).complete(ctx.message["text"], max_tokens=100)).content

        return app

    def ask(self, *tenants: str) -> None:
        self.broker.publish("questions", [{"text": tenant, "tenant": tenant} for tenant in tenants])

    def rows(self, topic: str) -> list[Any]:
        return [record.value for record in self.broker.records(topic)]


@pytest.fixture
def shop(memory_url: str, tmp_path: Path) -> Shop:
    return Shop(memory_url, tmp_path / "state")


async def test_what_a_scope_spends_in_an_hour_is_a_window(shop: Shop) -> None:
    app = shop.app()
    spent = app.ledger().key_by("scope").window(tumbling("1h"))
    spent = spent.aggregate(cost=sabot.sum("cost"), calls=sabot.sum("calls"), tokens=sabot.sum("tokens"))
    spent.filter(col("cost") > 0.001).to("alerts")
    async with started(app):
        shop.ask("ann", "bob", "ann")
        await until(lambda: len(shop.rows("answers")) == 3)
        shop.clock.advance(3600)
        shop.ask("bob")  # an hour is over when something comes later
        await until(lambda: shop.rows("alerts"))
    (alert,) = shop.rows("alerts")
    assert (alert["scope"], alert["calls"], alert["tokens"]) == ("ann", 2, 300)
    assert alert["cost"] == pytest.approx(0.0012)


@pytest.mark.slow  # half a second of a core
async def test_each_row_comes_once_over_crashes_and_none_is_trimmed_before_it_was_read(shop: Shop) -> None:
    def app() -> App:
        made = shop.app()
        made.ledger().select("id", "scope", "model", "tokens", "job", "agent").to("used", delivery="exactly_once")
        return made

    running = app()
    await running.start()
    shop.ask("ann", "bob")
    await until(lambda: len(shop.rows("answers")) == 2)
    await checkpoint(running)
    shop.ask("ann")
    await until(lambda: len(shop.rows("answers")) == 3)
    running.agent_runtime.checkpoint_coordinator.refuse("the process died")
    with pytest.raises(CheckpointFailed):
        await running.stop()
    running = app()
    async with started(running):
        shop.ask("cid")
        await until(lambda: "for cid" in shop.rows("answers"))  # the last one of before may come again
        for _ in range(4):  # older checkpoints go, and with them what the journal keeps for them
            await checkpoint(running)
        await until(lambda: len(shop.rows("used")) == 4)
    used = shop.rows("used")
    assert Counter(row["scope"] for row in used) == {"ann": 2, "bob": 1, "cid": 1}
    assert len({row["id"] for row in used}) == 4
    assert {(row["model"], row["tokens"], row["agent"]) for row in used} == {("m", 150, "shop.handle")}


async def test_an_app_that_records_nothing_has_no_ledger(memory_url: str) -> None:
    with pytest.raises(UserError, match="records nothing that is used"):
        App("plain", memory_url).ledger()
