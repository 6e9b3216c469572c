"""Checkpoints of single jobs: made, listed, gone back to; and what they do where that cannot be."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from sabot import App
from sabot.agents import (
    BudgetSpec,
    Decision,
    ExecutionHandle,
    ExecutionRequest,
    HotState,
    InMemoryLedgerWriter,
    JobCheckpointDamaged,
    JobCheckpointFailed,
    JobCheckpointTooLarge,
    PolicyEngine,
    Recording,
    RestoreFailed,
    RuntimeKernel,
    StateManager,
)
from sabot.agents.replay.verification import verified
from sabot.clock import ManualClock
from sabot.engine.calls.errors import BudgetExceeded
from sabot.errors import EffectError, TransientError, UserError
from sabot.journal import Letter
from sabot.journal.entries import Begin, EffectResult, End, Signal
from sabot.journal.memory import MemoryInbox, MemoryJournal, MemoryReader, MemoryStorage
from sabot.llm import tool
from tools.agent_tools import until


class Shop:
    """A job that looks, asks a person, pays and says what it knows; and how often it has done that."""

    def __init__(self, effect: str = "unsafe") -> None:
        self.looked, self.paid = [0], [0]
        looked, paid = self.looked, self.paid

        @tool(effect="read")
        async def look() -> int:
            """Looks."""
            looked[0] += 1
            return looked[0]

        @tool(effect=effect)
        async def pay() -> str:
            """Pays."""
            paid[0] += 1
            return "paid"

        self.look, self.pay = look, pay

    async def shop(self, ctx: Any) -> Any:
        seen, lot, began = await ctx.call(self.look), ctx.random().random(), ctx.now()
        reply = await ctx.ask("confirm", {"seen": seen}, timeout="1h")
        done = await ctx.call(self.pay) if reply.approved else reply.outcome
        return {"seen": seen, "lot": lot, "began": began, "done": done, "lots": ctx.random().random()}

    @asynccontextmanager
    async def kernel(self, home: MemoryStorage, **options: Any) -> AsyncIterator[RuntimeKernel]:
        """Over this journal; what is open there goes on."""
        with closing(MemoryJournal(home)) as journal:
            async with RuntimeKernel.create(agent=self.shop, journal=journal, stop_grace=0, **options) as kernel:
                await kernel.resume()
                yield kernel


async def asked(kernel: RuntimeKernel) -> ExecutionHandle:
    """A job that waits for its answer."""
    handle = await kernel.execute(ExecutionRequest(prompt="go"))
    await parks(kernel, 1)
    return handle


async def parks(kernel: RuntimeKernel, count: int) -> None:
    await until(lambda: kernel.statistics()["parked"] == count and not kernel.statistics()["running"])


async def answer(handle: ExecutionHandle, approved: bool = True) -> Any:
    [action] = await handle.get_pending_actions()
    await handle.resolve_action(action.resume_token, {"approved": approved})
    return (await handle.result()).output


# -- made, and gone back to -----------------------------------------------------------------------------------------------


async def test_a_job_goes_on_from_a_checkpoint_as_another_job_and_does_nothing_twice_that_it_had_done() -> None:
    shop, home = Shop(), MemoryStorage()
    async with shop.kernel(home) as kernel:
        states, first = StateManager(kernel), await asked(kernel)
        made = await states.create(first.job_id, "asked", by="ada")
        assert (made.name, made.type, made.by, made.effects, made.entries) == ("asked", "manual", "ada", 2, 4)
        assert await states.checkpoints(first.job_id) == [made]
        said = await answer(first, approved=False)
        second = await states.restore(first.job_id, "asked")
        assert second.job_id.startswith(f"{first.job_id}@asked.")
        again = await answer(second)
        assert (again["done"], shop.looked, shop.paid) == ("paid", [1], [1])
        assert [again[each] for each in ("seen", "lot", "began", "lots")] == [
            said[each] for each in ("seen", "lot", "began", "lots")
        ]
        assert (await first.result()).output["done"] == "resolved"
        job = await kernel.jobs.get(second.job_id)
        assert job is not None
        assert job.metadata == {"restored": {"job": first.job_id, "checkpoint": "asked"}}
        assert await states.checkpoints(second.job_id) == []
        events = [(str(event.type), event.data.get("restored")) async for event in second.events()]
        assert events[0] == ("job.started", {"job": first.job_id, "checkpoint": "asked"})
        assert [kind for kind, _ in events].count("tool.start") == 1


async def test_a_restored_job_is_a_job_like_others_after_a_crash_and_can_be_gone_back_to() -> None:
    shop, home = Shop(), MemoryStorage()
    async with shop.kernel(home) as kernel:
        states, first = StateManager(kernel), await asked(kernel)
        await states.create(first.job_id)
        said = await answer(first, approved=False)
        second = await states.restore(first.job_id)
        await parks(kernel, 1)
        await states.create(second.job_id, "second")
    async with shop.kernel(home) as kernel:
        states, second = StateManager(kernel), await kernel.handle(second.job_id)
        assert (await answer(second))["lot"] == said["lot"]
        with pytest.raises(RestoreFailed, match=r"pay \(step 3\)"):
            await states.restore(second.job_id)
        third = await states.restore(second.job_id, again=["pay"])
        again = await answer(third)
        assert [again[each] for each in ("lot", "lots", "began")] == [said[each] for each in ("lot", "lots", "began")]
        assert (shop.looked, shop.paid) == ([1], [2])
        recording = await kernel.record(third.job_id)
        assert verified(recording, kernel.code()).same
    assert [type(entry) for _, entry in MemoryReader(home).read(third.job_id)].count(Begin) == 1


async def test_what_was_done_behind_the_checkpoint_is_not_done_again_without_being_told() -> None:
    shop, home = Shop("idempotent"), MemoryStorage()
    async with shop.kernel(home) as kernel:
        states, first = StateManager(kernel), await asked(kernel)
        await states.create(first.job_id)
        await answer(first)
        with pytest.raises(RestoreFailed, match=r"pay .step 3.: the restored one may do it again") as told:
            await states.restore(first.job_id)
        assert (told.value.code, "again=['pay']" in told.value.hint) == ("E2032", True)
        with pytest.raises(UserError, match="names are wanted"):  # "pay" is in this text
            await states.restore(first.job_id, again="nothing but repay")
        assert len(await kernel.jobs.find()) == 1
        await answer(await states.restore(first.job_id, again=["pay"]))
        assert shop.paid == [2]


async def test_what_was_denied_behind_the_checkpoint_was_not_done() -> None:
    shop, home = Shop(), MemoryStorage()
    policy = PolicyEngine([lambda call: Decision.DENY if call.name == "pay" else None])
    async with shop.kernel(home, policy=policy) as kernel:
        states, first = StateManager(kernel), await asked(kernel)
        await states.create(first.job_id)
        with pytest.raises(EffectError, match="PolicyDenied"):
            await answer(first)
        second = await states.restore(first.job_id)
        with pytest.raises(EffectError, match="PolicyDenied"):
            await answer(second)
    assert shop.paid == [0]


async def test_a_question_and_the_time_of_the_job_have_what_was_left_of_them_at_the_checkpoint() -> None:
    clock = ManualClock()
    shop, home = Shop(), MemoryStorage(clock)
    async with shop.kernel(home) as kernel:
        states = StateManager(kernel)
        limits = BudgetSpec(max_runtime_seconds=30)
        first = await kernel.execute(ExecutionRequest(prompt="go", budgets=limits))
        await parks(kernel, 1)
        clock.advance(600)
        await states.create(first.job_id)
        clock.advance(3_000)
        assert (await first.result()).output["done"] == "expired"
        clock.advance(5 * 86_400)
        second = await states.restore(first.job_id)
        await parks(kernel, 1)
        [action] = await second.get_pending_actions()
        assert action.expires_at == clock.time() + 3_000
        clock.advance(2_999)
        assert (await answer(second))["done"] == "paid"
        third = await states.restore(first.job_id)
        await parks(kernel, 1)
        clock.advance(3_001)
        assert (await third.result()).output["done"] == "expired"


async def test_a_call_in_flight_at_the_checkpoint_is_made_anew_and_counts_as_done_behind_it() -> None:
    gate, calls = asyncio.Event(), list[str]()

    @tool(effect="read")
    async def looks() -> str:
        calls.append("looks")
        await gate.wait()
        return "there"

    @tool(effect="unsafe")
    async def mails() -> str:
        calls.append("mails")
        await gate.wait()
        return "sent"

    async def f(ctx: Any) -> Any:
        return await ctx.call(mails if ctx.message == "mail" else looks)

    async with RuntimeKernel.create(agent=f) as kernel:
        states, handles = StateManager(kernel), {}
        for what in ("look", "mail"):
            handles[what] = await kernel.execute(ExecutionRequest(prompt=what))
            await until(lambda: kernel.statistics()["in_flight"] == len(handles))
            await states.create(handles[what].job_id)
        gate.set()
        assert [(await each.result()).output for each in handles.values()] == ["there", "sent"]
        assert (await (await states.restore(handles["look"].job_id)).result()).output == "there"
        with pytest.raises(RestoreFailed, match="mails"):
            await states.restore(handles["mail"].job_id)
        assert calls == ["looks", "mails", "looks"]


async def test_the_history_behind_continue_as_is_taken_over_too() -> None:
    shop = Shop()

    async def counts(ctx: Any) -> Any:
        seen = [*ctx.message, await ctx.call(shop.look), ctx.random().random()]
        if len(seen) < 4:
            ctx.continue_as(seen)
        await ctx.ask("confirm", {})
        return [*seen, ctx.uuid().hex]

    async with RuntimeKernel.create(agent=counts) as kernel:
        states = StateManager(kernel)
        first = await kernel.execute(ExecutionRequest(prompt=[]))
        await parks(kernel, 1)
        await states.create(first.job_id)
        said = await answer(first)
        assert await answer(await states.restore(first.job_id)) == said
        assert shop.looked == [2]


async def test_what_the_job_had_used_counts_once() -> None:
    shop, home, writer = Shop(), MemoryStorage(), InMemoryLedgerWriter()
    for restores in (True, False):
        async with shop.kernel(home, budgets=[], ledger_writer=writer) as kernel:
            if restores:
                states, first = StateManager(kernel), await asked(kernel)
                await states.create(first.job_id)
                await answer(first, approved=False)
                await answer(await states.restore(first.job_id))
            assert kernel.ledger is not None
            await kernel.ledger.flush()
            rows = writer.events
            assert sorted(row.name for row in rows) == ["look", "pay"]


@pytest.mark.parametrize("restarts", [False, True])
async def test_the_budget_of_the_job_counts_what_was_used_before_the_checkpoint(restarts: bool) -> None:
    shop, home, once = Shop(), MemoryStorage(), BudgetSpec(max_tool_calls=1)
    async with shop.kernel(home) as kernel:
        states = StateManager(kernel)
        first = await kernel.execute(ExecutionRequest(prompt="go", budgets=once))
        await parks(kernel, 1)
        await states.create(first.job_id)
        await answer(first, approved=False)
        second = await states.restore(first.job_id)
        await parks(kernel, 1)
        if not restarts:
            with pytest.raises(BudgetExceeded, match="may call tools 1 times"):
                await answer(second)
    if restarts:
        async with shop.kernel(home) as kernel:
            with pytest.raises(BudgetExceeded, match="may call tools 1 times"):
                await answer(await kernel.handle(second.job_id))
    assert (shop.looked, shop.paid) == ([1], [0])


# -- a kill in the middle -------------------------------------------------------------------------------------------------


def cut(home: MemoryStorage, count: int) -> MemoryStorage:
    """A journal with the first entries of another one, as a crash leaves it."""
    copy = MemoryStorage(home.clock)
    copy.identity, copy.key = home.identity, home.key
    with closing(MemoryJournal(copy)) as whole:
        for _, entry in list(MemoryReader(home).read())[:count]:
            whole.append(entry)
    return copy


async def test_a_restore_that_a_crash_has_cut_short_is_over_and_nothing_of_it_is_done() -> None:
    shop, home = Shop(), MemoryStorage()
    async with shop.kernel(home) as kernel:
        states, first = StateManager(kernel), await asked(kernel)
        await states.create(first.job_id)
        await answer(first)
        second = await states.restore(first.job_id, again=["pay"])
        await parks(kernel, 1)
    entries = [entry for _, entry in MemoryReader(home).read()]
    begun = next(at for at, entry in enumerate(entries) if entry.job == second.job_id)
    assert len(entries) - begun == 4  # BEGIN, INTENT, RESULT, and the question
    for count in range(begun + 1, len(entries) + 1):
        after, left = Shop(), cut(home, count)
        async with after.kernel(left) as kernel:
            if count == len(entries):
                assert (await answer(await kernel.handle(second.job_id)))["seen"] == 1
                assert (after.looked, after.paid) == ([0], [1])
            else:
                await until(lambda home=left: isinstance([each for _, each in MemoryReader(home).read()][-1], End))
                job = await kernel.jobs.get(second.job_id)
                assert job is not None
                assert (job.status, "cut short" in job.error) == ("cancelled", True)
                assert (after.looked, after.paid) == ([0], [0])
                third = await StateManager(kernel).restore(first.job_id, again=["pay"])
                assert (await answer(third))["done"] == "paid"


# -- what cannot be -------------------------------------------------------------------------------------------------------


async def test_a_checkpoint_that_cannot_be_made_is_refused() -> None:
    shop = Shop()
    async with shop.kernel(MemoryStorage()) as kernel:
        states, first = StateManager(kernel), await asked(kernel)
        await states.create(first.job_id, "one")
        with pytest.raises(JobCheckpointFailed, match="has a checkpoint one") as told:
            await states.create(first.job_id, "one")
        assert told.value.code == "E2030"
        with pytest.raises(JobCheckpointFailed, match="has no job nobody"):
            await states.create("nobody")
        with pytest.raises(JobCheckpointFailed, match="type='weekly'"):
            await states.create(first.job_id, type="weekly")  # type: ignore[arg-type]
        with pytest.raises(UserError, match="checkpoint"):
            await states.create(first.job_id, "a\nb")
        await answer(first)
        with pytest.raises(JobCheckpointFailed, match="has ended: succeeded"):
            await states.create(first.job_id, "late")
        assert [each.name for each in await states.checkpoints(first.job_id)] == ["one"]


async def test_a_history_that_is_too_long_is_refused_when_it_is_made_and_when_it_is_gone_back_to() -> None:
    shop = Shop()
    async with shop.kernel(MemoryStorage()) as kernel:
        first = await asked(kernel)
        with pytest.raises(JobCheckpointTooLarge, match="bytes, and 100 are allowed") as told:
            await StateManager(kernel, max_size=100).create(first.job_id)
        assert told.value.code == "E2031"
        made = await StateManager(kernel).create(first.job_id)
        await answer(first, approved=False)
        with pytest.raises(JobCheckpointTooLarge):
            await StateManager(kernel, max_size=made.size_bytes - 1).restore(first.job_id)
        await StateManager(kernel, max_size=made.size_bytes).restore(first.job_id)


async def test_a_checkpoint_that_is_not_there_or_too_old_is_not_gone_back_to() -> None:
    clock = ManualClock()
    shop = Shop()
    async with shop.kernel(MemoryStorage(clock)) as kernel:
        states, first = StateManager(kernel), await asked(kernel)
        with pytest.raises(RestoreFailed, match="has no checkpoint") as told:
            await states.restore(first.job_id)
        assert told.value.code == "E2032"
        await states.create(first.job_id, "one")
        with pytest.raises(RestoreFailed, match="has no checkpoint two") as told:
            await states.restore(first.job_id, "two")
        assert "it has one" in told.value.hint
        clock.advance(31 * 86_400)
        await first.result()
        assert await states.checkpoints(first.job_id) == []
        with pytest.raises(RestoreFailed, match="no checkpoint one: it is too old"):
            await states.restore(first.job_id, "one")
        await StateManager(kernel, retention="40d").restore(first.job_id)


async def test_a_job_that_has_not_ended_is_gone_back_to_only_beside_it() -> None:
    shop = Shop()
    async with shop.kernel(MemoryStorage()) as kernel:
        states, first = StateManager(kernel), await asked(kernel)
        await states.create(first.job_id)
        with pytest.raises(RestoreFailed, match="has not ended"):
            await states.restore(first.job_id)
        second = await states.restore(first.job_id, beside=True)
        await parks(kernel, 2)
        assert (await answer(first))["done"] == (await answer(second))["done"] == "paid"


async def test_a_history_that_was_changed_is_not_gone_back_to() -> None:
    shop, home = Shop(), MemoryStorage()
    async with shop.kernel(home) as kernel:
        first = await asked(kernel)
        await StateManager(kernel).create(first.job_id, "one")
        await answer(first, approved=False)
    other = MemoryStorage()
    other.identity, other.key = home.identity, home.key
    with closing(MemoryJournal(other)) as journal:
        for _, entry in MemoryReader(home).read():
            is_look = isinstance(entry, EffectResult) and entry.ordinal == 1
            journal.append(EffectResult(entry.job, entry.at_ms, 1, 1, "ok", b"\x07") if is_look else entry)
    async with shop.kernel(other) as kernel:
        with pytest.raises(JobCheckpointDamaged, match="is not what checkpoint one was made of") as told:
            await StateManager(kernel).restore(first.job_id)
        assert told.value.code == "E2033"
        assert len(await kernel.jobs.find()) == 1


async def test_a_signal_that_says_nothing_of_a_checkpoint_is_in_nobodys_way() -> None:
    shop, home = Shop(), MemoryStorage()
    async with shop.kernel(home) as kernel:
        states, first = StateManager(kernel), await asked(kernel)
        token = f"checkpoint bad of {first.job_id}"
        MemoryInbox(home).post(Letter("signal", token, first.job_id, "sabot.checkpoint", b"no json"))
        await until(lambda: any(isinstance(each, Signal) for _, each in MemoryReader(home).read()))
        await states.create(first.job_id, "good")
        assert [each.name for each in await states.checkpoints(first.job_id)] == ["good"]
        await answer(first, approved=False)
        with pytest.raises(JobCheckpointDamaged, match="checkpoint bad of job"):
            await states.restore(first.job_id, "bad")
        await states.restore(first.job_id)


async def test_code_that_does_something_else_by_then_goes_on_from_nothing() -> None:
    shop, home = Shop(), MemoryStorage()
    async with shop.kernel(home) as kernel:
        states, first = StateManager(kernel), await asked(kernel)
        await states.create(first.job_id)
        await answer(first)

    async def shop_of_today(ctx: Any) -> Any:
        return await ctx.call(shop.pay)

    shop_of_today.__name__ = "shop"
    with closing(MemoryJournal(home)) as journal:
        async with RuntimeKernel.create(agent=shop_of_today, journal=journal) as kernel:
            with pytest.raises(
                RestoreFailed, match=r"the code of today does not do what job .* did: .*asks for call pay"
            ):
                await StateManager(kernel).restore(first.job_id, again=["pay"])
            assert len(await kernel.jobs.find()) == 1
        async with RuntimeKernel.create(agent=asyncio.sleep, journal=journal) as kernel:
            with pytest.raises(RestoreFailed, match="has no agent"):
                await StateManager(kernel).restore(first.job_id, again=["pay"])
    assert shop.paid == [1]


async def test_a_job_of_an_app_has_checkpoints_and_is_not_restored_beside_its_stream() -> None:
    app = App("states", broker="memory://states", journal="memory", state="memory")

    @app.agent("orders", durable=True)
    async def handle(ctx: Any) -> Any:
        return (await ctx.ask("confirm", {})).approved

    await app.send("orders", {"id": 7})
    await app.start()
    try:
        await until(lambda: app.statistics()["jobs"]["parked"] == 1)
        [job] = await app.jobs.find()
        states = StateManager(app)
        assert [each.type for each in await states.create_all("pre_suspend")] == ["pre_suspend"]
        with pytest.raises(RestoreFailed, match="of an app"):
            await states.restore(job.job_id)
    finally:
        await app.stop()


# -- by themselves, and as files ------------------------------------------------------------------------------------------


async def test_checkpoints_are_made_by_themselves_where_something_has_come_since() -> None:
    shop, waits = Shop(), asyncio.Queue[float]()

    async def sleep(seconds: float) -> None:
        await waits.put(seconds)
        await waits.join()

    async def turn() -> None:
        assert await waits.get() == 60.0
        waits.task_done()

    async with shop.kernel(MemoryStorage()) as kernel, StateManager(kernel, sleep=sleep) as states:
        first = await asked(kernel)
        for _ in range(3):
            await turn()
        await until(lambda: waits.qsize() == 1)
        assert [(each.name, each.type) for each in await states.checkpoints(first.job_id)] == [("auto-4", "auto")]
        assert await states.create_all("pre_drain") == []
        second = await asked_too(kernel)
        assert [each.job_id for each in await states.create_all("pre_drain")] == [second.job_id]
        await answer(first)
        await turn()
        await until(lambda: waits.qsize() == 1)
        assert len(await states.checkpoints(first.job_id)) == 1


async def test_auto_checkpoints_go_on_behind_a_time_in_which_the_server_of_the_journal_was_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    turns, waits = asyncio.Semaphore(0), list[float]()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await turns.acquire()

    async def away(**given: Any) -> Any:
        raise TransientError("the server is away")

    async with Shop().kernel(MemoryStorage()) as kernel, StateManager(kernel, sleep=sleep) as states:
        first = await asked(kernel)
        with monkeypatch.context() as patch:
            patch.setattr(kernel.jobs.store, "find", away)
            turns.release()
            await until(lambda: len(waits) == 2)
        assert "the server is away" in caplog.text
        turns.release()
        await until(lambda: len(waits) == 3)
        assert [each.type for each in await states.checkpoints(first.job_id)] == ["auto"]


async def test_without_auto_checkpoints_are_made_when_they_are_asked_for() -> None:
    async def sleep(seconds: float) -> None:
        raise AssertionError("nothing waits")

    async with Shop().kernel(MemoryStorage()) as kernel, StateManager(kernel, auto=None, sleep=sleep) as states:
        first = await asked(kernel)
        assert await states.checkpoints(first.job_id) == []


async def test_hot_state_is_there_for_its_time_and_the_last_one_counts() -> None:
    clock = ManualClock()
    async with Shop().kernel(MemoryStorage()) as kernel:
        hot = StateManager(kernel, hot=HotState(ttl="10s", clock=clock)).hot
        assert await hot.load("agent-7") is None
        await hot.save("agent-7", {"phase": "reading"})
        await hot.save("agent-7", {"phase": "writing", "page": 3})
        clock.advance(9.9)
        assert await hot.load("agent-7") == {"phase": "writing", "page": 3}
        clock.advance(0.1)
        assert await hot.load("agent-7") is None
        await hot.save("agent-7", "back")
        await hot.remove("agent-7")
        assert await hot.load("agent-7") is None
        with pytest.raises(UserError, match="hot state agent-7 cannot be written as JSON"):
            await hot.save("agent-7", object())
        with pytest.raises(UserError, match="hot state agent-7 has 102 bytes, and 100 are allowed"):
            await HotState(max_size=100).save("agent-7", "x" * 100)
        assert await StateManager(kernel).hot.load("agent-7") is None, "of its own"


async def asked_too(kernel: RuntimeKernel) -> ExecutionHandle:
    handle = await kernel.execute(ExecutionRequest(prompt="go"))
    await parks(kernel, 2)
    return handle


async def test_a_checkpoint_is_exported_into_a_compressed_file(tmp_path: Path) -> None:
    shop = Shop()
    async with shop.kernel(MemoryStorage()) as kernel:
        states, first = StateManager(kernel), await asked(kernel)
        made = await states.create(first.job_id, "one")
        await answer(first)
        exported = await states.export(first.job_id, "one", tmp_path / "one.replay.json.gz")
        assert len(exported.entries) == made.entries
        loaded = Recording.load(tmp_path / "one.replay.json.gz")
        assert loaded == exported
        assert verified(loaded, kernel.code()).same
        with pytest.raises(RestoreFailed):
            await states.export(first.job_id, "two", tmp_path / "two")
    data = (tmp_path / "one.replay.json.gz").read_bytes()
    assert gzip.decompress(data).startswith(b'{"sabot_recording"')
    (tmp_path / "cut.gz").write_bytes(data[:-20])
    with pytest.raises(UserError, match="cut short"):
        Recording.load(tmp_path / "cut.gz")


async def test_a_kernel_that_is_not_started_makes_checkpoints_in_the_journal_of_another_one(tmp_path: Path) -> None:
    shop = Shop()
    outside = StateManager(RuntimeKernel.create(agent=shop.shop, journal=tmp_path))
    async with RuntimeKernel.create(agent=shop.shop, journal=tmp_path) as kernel:
        first = await asked(kernel)
        await kernel.record(first.job_id)  # what is durable is seen from outside
        made = await outside.create(first.job_id, "one")
        assert await StateManager(kernel).checkpoints(first.job_id) == [made]
    async with RuntimeKernel.create(agent=shop.shop, journal=tmp_path) as kernel:
        [first] = await kernel.resume()
        await answer(first)
        assert (await answer(await StateManager(kernel).restore(first.job_id, again=["pay"])))["seen"] == 1
    assert (shop.looked, shop.paid) == ([1], [2])
