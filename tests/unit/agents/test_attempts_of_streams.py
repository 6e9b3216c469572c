"""Another attempt of a durable agent of a stream (`on_error="retry"`, a dead letter that is sent back) goes on with the children of
those before it, over what they have made.
"""

import asyncio
from typing import Any

import pytest

from sabot import App
from sabot.agents import tool
from sabot.clock import ManualClock
from sabot.connectors.memory import MemoryBroker
from sabot.engine.letters.opening import LetterPlace, opened_letters, redrive
from sabot.engine.letters.redrive import Selection
from tools.agent_tools import started, until


class Payments:
    """Agents that pay orders within ten seconds, through others and by a tool that answers when it is told to."""

    def __init__(self, url: str, folder: Any, how: str, **options: Any) -> None:
        self.made: list[Any] = []
        self.attempts: list[int] = []
        self.late = 0
        self.answered = asyncio.Event()
        self.clock = ManualClock(1_000.0)
        self.options = options or {"on_error": "retry", "retries": 3, "backoff": 0}
        self.url, self.folder, self.how = url, folder, how

    def app(self) -> App:
        app = App("shop", self.url, state=str(self.folder), clock=self.clock, checkpoint_interval=3600)

        @tool(effect="unsafe")
        async def pay(order: int) -> str:
            self.made.append(order)
            await self.answered.wait()
            return f"paid {order}"

        async def pays(ctx: Any) -> Any:
            return await ctx.call(pay, ctx.message)

        async def between(ctx: Any) -> Any:
            return await ctx.child(pays, ctx.message)

        async def payroll(ctx: Any) -> Any:
            self.attempts.append(ctx.attempt)
            order = ctx.message["order"]
            if self.how == "left":  # its end cancels the child
                child = asyncio.ensure_future(ctx.child(pays, order))
                await ctx.sleep("10s")
                self.late += 1
                if self.late == 1:
                    raise ValueError("not today")
                return await child
            try:
                async with asyncio.timeout(10):
                    match self.how:
                        case "child":
                            return await ctx.child(pays, order)
                        case "deep":
                            return await ctx.child(between, order)
                        case "beside" | "narrow":
                            return await asyncio.gather(ctx.child(pays, order), ctx.child(pays, order + 1))
                        case "call":
                            return await ctx.call(pay, order)
                        case "step":
                            return await ctx.step(pay.func, order, effect="unsafe")
            except TimeoutError:
                self.late += 1
                raise

        app.agent("orders", name="payroll", sink="paid", durable=True, **self.options)(payroll)
        for each in (between, pays):
            beside = 1 if self.how == "narrow" else 4
            app.agent(each.__name__, name=each.__name__, durable=True, on_error="skip", concurrency=beside)(each)
        return app

    @property
    def runs(self) -> list[int]:
        return sorted(set(self.attempts))

    @property
    def paid(self) -> list[Any]:
        return [record.value for record in MemoryBroker.get(self.url).records("paid")]


WAYS = {"child": 1, "deep": 1, "beside": 2, "narrow": 2, "call": 1, "step": 1}


@pytest.mark.parametrize("how", WAYS)
async def test_an_attempt_behind_a_timeout_pays_no_order_again(memory_url: str, tmp_path: Any, how: str) -> None:
    """The next attempt began another child, which paid the same order beside the first one."""
    work = Payments(memory_url, tmp_path, how)
    MemoryBroker.get(memory_url).publish("orders", [{"order": 1}])
    async with started(work.app()):
        await until(lambda: len(work.made) == (1 if how == "narrow" else WAYS[how]))
        work.clock.advance(10)
        await until(lambda: work.late)
        if how not in ("call", "step"):  # these end before the next attempt
            await until(lambda: work.attempts[-1] == 2)
        work.answered.set()
        await until(lambda: work.paid)
    assert work.attempts[-1] == 2
    assert work.paid == [["paid 1", "paid 2"] if WAYS[how] == 2 else "paid 1"]
    assert sorted(work.made) == list(range(1, WAYS[how] + 1))


@pytest.mark.parametrize("when", ["while it pays", "when it has paid"])
@pytest.mark.parametrize("how", ["child", "deep", "left"])
async def test_a_dead_letter_that_is_sent_back_pays_no_order_again(
    memory_url: str, tmp_path: Any, how: str, when: str
) -> None:
    """The job began another child, or began the one that its end had cancelled anew, without what it had made."""
    work = Payments(memory_url, tmp_path, how, on_error="skip")
    broker, app = MemoryBroker.get(memory_url), work.app()
    broker.publish("orders", [{"order": 1}])
    async with started(app):
        await until(lambda: work.made)
        work.clock.advance(10)
        await until(lambda: broker.records("orders.dlq"))
        if when == "when it has paid":
            work.answered.set()
            await until(lambda: app.statistics()["jobs"]["ended"] == (3 if how == "deep" else 2))
        await asyncio.to_thread(sent_back, memory_url)
        await until(lambda: len(work.runs) == 2)
        work.clock.advance(10 if how == "left" else 0)
        work.answered.set()
        await until(lambda: work.paid)
    assert (work.made, work.paid) == ([1], ["paid 1"])


def sent_back(url: str) -> None:
    with opened_letters(LetterPlace("orders.dlq"), url, {}, sends=True) as dead:
        redrive(dead, Selection())
