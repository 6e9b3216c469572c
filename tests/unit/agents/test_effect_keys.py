"""The idempotency keys of effects: unique to the journal, and the same in each run of a job, also of an earlier version."""

import asyncio
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from sabot.agents import ActionStatus, ExecutionRequest, RuntimeKernel
from sabot.agents.questions import InboxQuestion
from sabot.engine.calls.effects import EffectId, SaltedEffectId
from sabot.engine.calls.tool_context import Effect
from sabot.errors import EffectError
from sabot.jobs.history import IN_DOUBT
from sabot.journal.entries import Begin, Intent
from sabot.journal.memory import MemoryStorage
from sabot.journal.opening import open_journal, open_reader
from sabot.llm import tool
from tools.agent_tools import until


class Shop:
    def __init__(self, fails: int = 0) -> None:
        self.keys: list[str] = []
        self.fails = fails

        @tool(effect="idempotent")
        async def pay(order: str, effect: Effect) -> str:
            self.keys.append(effect.key)
            if len(self.keys) <= self.fails:
                raise ValueError("no such order")
            return "paid"

        async def work(ctx):
            return await ctx.call(pay, "o-1")

        self.work = work

    def kernel(self, journal) -> RuntimeKernel:
        return RuntimeKernel.create(agent=self.work, name="shop", journal=journal)

    async def pays(self, journal) -> str:
        async with self.kernel(journal) as kernel:
            return await self.begun(kernel)

    async def begun(self, kernel: RuntimeKernel) -> str:
        handle = await kernel.execute(ExecutionRequest(prompt="o-1", idempotency_key="o-1"))
        await asyncio.wait([asyncio.ensure_future(handle.result())])
        return handle.job_id


async def test_the_same_job_of_two_journals_gives_its_payments_two_keys(tmp_path: Path) -> None:
    """The service took the payment of one journal for that of the other, and dropped it."""
    shop = Shop()
    first, second = [await shop.pays(tmp_path / name) for name in "ab"]
    assert first == second, "they have the same id"
    assert len({*shop.keys}) == 2
    with closing(open_reader(tmp_path / "a")) as reader:
        begins = [entry for _, entry in reader.read() if isinstance(entry, Begin)]
        assert shop.keys[0] == SaltedEffectId.of(first, 1, 1, begins[0].salt).key
        assert len(begins[0].salt) == 8, "it is kept with the job, wherever its entries go"


async def test_in_memory_a_job_that_comes_again_has_the_key_that_it_had() -> None:
    """A source gives a record again whose process has ended: the service must know its payment again."""
    shop = Shop()
    job, _ = [await shop.pays(MemoryStorage()) for _ in range(2)]
    assert shop.keys == [EffectId(job, 1).key] * 2


async def test_a_job_of_an_earlier_version_keeps_its_keys_also_when_it_is_retried(tmp_path: Path) -> None:
    job = await Shop().pays(tmp_path / "new")
    with closing(open_reader(tmp_path / "new")) as reader:
        old = next(replace(entry, salt=b"") for _, entry in reader.read() if isinstance(entry, Begin))
    with closing(open_journal(tmp_path / "old", app="shop")) as journal:
        journal.append(old)
        await journal.flush()
    shop = Shop(fails=1)
    async with shop.kernel(tmp_path / "old") as kernel:
        await kernel.resume()
        handle = await kernel.handle(job)
        with pytest.raises(EffectError, match="no such order"):
            await handle.result()
        handle = await kernel.jobs.retry(job)
        await until(lambda: len(shop.keys) == 2)
    assert shop.keys == [EffectId(job, 1).key] * 2
    with closing(open_reader(tmp_path / "old")) as reader:
        assert len([entry for _, entry in reader.read() if isinstance(entry, Begin)]) == 2


async def test_the_key_of_a_question_in_doubt_is_the_one_that_the_service_has_got(tmp_path: Path) -> None:
    given: list[str] = []

    @tool(effect="unsafe")
    async def pay(order: str, effect: Effect) -> str:
        given.append(effect.key)
        raise ConnectionResetError("the bank")

    async def work(ctx):
        return await ctx.call(pay, "o-1")

    async with RuntimeKernel.create(agent=work, name="shop", journal=tmp_path) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="o-1"))
        with closing(open_reader(tmp_path)) as reader:
            await until(lambda: any(isinstance(each, Intent) and each.name == IN_DOUBT for _, each in reader.read()))
            begin = next(entry for _, entry in reader.read() if isinstance(entry, Begin))
        asked = await kernel.actions.find(statuses=[ActionStatus.PENDING])
        key = SaltedEffectId.of(handle.job_id, 1, 1, begin.salt).key
        assert [InboxQuestion(each).key for each in asked] == given == [key]
