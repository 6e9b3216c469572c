"""`kernel.jobs.retry`: a failed job of a kernel runs again from where it stopped, with other limits."""

import asyncio
from contextlib import closing
from dataclasses import replace
from decimal import Decimal

import pytest

from sabot.agents import (
    ActionManager,
    ActionSpec,
    BudgetSpec,
    ExecutionRequest,
    InMemoryActionStore,
    JobStatus,
    LetterRefused,
    PolicyEngine,
    RuntimeKernel,
    ToolPolicy,
)
from sabot.agents.app_jobs import retry_letter
from sabot.agents.events.bus import RuntimeEventType
from sabot.clock import ManualClock
from sabot.engine.calls.errors import BudgetExceeded
from sabot.errors import EffectError, JobCancelled, UserError
from sabot.journal.entries import Begin, EffectResult, End, Letter, encode_entry
from sabot.journal.memory import MemoryJournal, MemoryReader, MemoryStorage
from sabot.llm import Completion, Effect, ToolCall, TurnLimitExceeded, Usage, assistant, tool
from sabot.llm.agent import Agent
from sabot.llm.engine import ExecutionEngine
from sabot.llm.providers.scripted import ScriptedProvider
from tools.agent_tools import until

USED = []


@tool(effect="unsafe")
async def refund(order: int) -> str:
    USED.append(order)
    return f"order {order} is refunded"


@pytest.fixture(autouse=True)
def nothing_refunded():
    USED.clear()


def model(answers, **options):
    provider = ScriptedProvider(answers)
    engine = ExecutionEngine(provider, retries=0, patience=0)
    return engine, Agent(engine, name="support", tools=[refund], **options), provider


def calls(order):
    return assistant("", ToolCall(f"c{order}", "refund", f'{{"order": {order}}}'))


def priced(message, cost="0.1", tokens=100):
    return Completion(message=message, usage=Usage(tokens, 0), cost=Decimal(cost))


async def fails(kernel, error, **fields):
    handle = await kernel.execute(ExecutionRequest(prompt="refund them", **fields))
    with pytest.raises(error):
        await handle.result()
    return handle


async def retried(kernel, job_id, **limits):
    await kernel.jobs.retry(job_id, **limits)
    return await kernel.handle(job_id)


async def test_a_job_at_the_turns_of_its_agent_goes_on_with_more_and_repeats_nothing(tmp_path):
    engine, agent, provider = model([calls(1), calls(2), "Both are refunded."], max_turns=2)
    async with RuntimeKernel.create(engine=engine, agent=agent, journal=tmp_path / "jobs") as kernel:
        failed = await fails(kernel, TurnLimitExceeded)
        again = await retried(kernel, failed.job_id, max_turns=3)
        result = await again.result()
        assert (result.content, result.turns, USED, len(provider.requests)) == ("Both are refunded.", 3, [1, 2], 3)
        job = await kernel.jobs.get(failed.job_id)
        assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2)
        with pytest.raises(LetterRefused, match="has ended: succeeded") as refused:
            await kernel.jobs.retry(failed.job_id)
        assert refused.value.reason == "closed"
    assert failed.job_id == again.job_id


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize(
    ("before", "more", "error"),
    [
        (BudgetSpec(max_turns=1), {"max_turns": 2}, TurnLimitExceeded),
        (BudgetSpec(max_tool_calls=0, max_turns=9), {"max_tool_calls": 1}, BudgetExceeded),
        (BudgetSpec(max_turns=1), BudgetSpec(), TurnLimitExceeded),
    ],
)
async def test_a_job_at_its_budget_goes_on_with_more(before, more, error, restarts):
    home = MemoryStorage(ManualClock(1_000.0))

    async def steps(ctx):
        first = await ctx.llm(engine).complete(agent.request)
        await ctx.call(refund, order=1)
        return [first.content, (await ctx.llm(engine).complete(agent.request)).content if before.max_turns == 1 else ""]

    engine, agent, provider = model(["one", "two"])
    async with RuntimeKernel.create(agent=steps, journal=home) as kernel:
        failed = await fails(kernel, error, budgets=before)
        asked = len(provider.requests)
        if not restarts:
            result = await (await retried(kernel, failed.job_id, budgets=more)).result()
    if restarts:
        other = RuntimeKernel.create(agent=steps, journal=home)
        await other.jobs.retry(failed.job_id, budgets=more)  # into the inbox, while nobody owns the journal
        async with other:
            result = await (await other.handle(failed.job_id)).result()
    assert (asked, result.output[0], USED) == (1, "one", [1])


async def test_what_was_used_before_counts_in_the_new_budget_live_and_after_a_restart(tmp_path):
    answers = [priced(calls(1)), priced(calls(2)), priced(calls(3)), priced(assistant("done"))]
    engine, agent, provider = model(answers)
    place = tmp_path / "jobs"
    async with RuntimeKernel.create(engine=engine, agent=agent, journal=place) as kernel:
        failed = await fails(kernel, TurnLimitExceeded, budgets={"max_turns": 1})
        again = await retried(kernel, failed.job_id, budgets={"max_turns": 2})
        with pytest.raises(TurnLimitExceeded, match="the job may ask models 2 times"):
            await again.result()
        assert len(provider.requests) == 2
        await kernel.jobs.retry(failed.job_id, budgets={"max_turns": 3})
        third = await kernel.handle(failed.job_id)
        with pytest.raises(TurnLimitExceeded):
            await third.result()
    async with RuntimeKernel.create(engine=engine, agent=agent, journal=place) as kernel:
        last = await retried(kernel, failed.job_id, budgets={"max_turns": 4})
        assert ((await last.result()).content, USED) == ("done", [1, 2, 3])
    assert len(provider.requests) == 4


async def test_the_account_of_a_retried_job_that_is_open_is_made_again_at_a_start(tmp_path):
    """It was forgotten where the first run has ended, so a start gave the job its whole new budget."""
    home = MemoryStorage(ManualClock(1_000.0))
    engine, agent, provider = model(["one", "two", "three"])

    async def steps(ctx):
        said = [(await ctx.llm(engine).complete(agent.request)).content]
        await ctx.call(refund, order=1)
        said.append((await ctx.llm(engine).complete(agent.request)).content)
        await ctx.wait("go on")
        said.append((await ctx.llm(engine).complete(agent.request)).content)
        return said

    async with RuntimeKernel.create(agent=steps, journal=home) as kernel:
        failed = await fails(kernel, TurnLimitExceeded, budgets={"max_turns": 1})
        await retried(kernel, failed.job_id, budgets={"max_turns": 2})
        await until(lambda: kernel.statistics()["parked"] == 1)
    async with RuntimeKernel.create(agent=steps, journal=home) as kernel:
        [handle] = await kernel.resume()
        await kernel.jobs.signal(handle.job_id, "go on")
        with pytest.raises(TurnLimitExceeded, match="2 times"):
            await handle.result()
    assert len(provider.requests) == 2


async def test_a_failed_call_is_made_again_and_the_events_show_both_runs(tmp_path):
    outcomes = [EffectError("down", "the server is away"), "found"]

    @tool(effect="read")
    async def look() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def searches(ctx):
        await ctx.call(refund, order=7)
        return await ctx.call(look)

    place = tmp_path / "jobs"
    async with RuntimeKernel.create(agent=searches, journal=place) as kernel:
        seen = []
        await kernel.event_bus.subscribe(lambda event: seen.append(event.event_id))
        failed = await fails(kernel, EffectError)
        first = [event.event_id async for event in failed.events()]
        again = await retried(kernel, failed.job_id)
        told = [event async for event in again.events()]
        assert ((await again.result()).output, USED) == ("found", [7])
        public = [event.type async for event in again.public_events()]
    types = [event.type for event in told]
    assert types.count(RuntimeEventType.JOB_STARTED) == 2
    assert (types[-1], types.count(RuntimeEventType.FINAL_ERROR)) == (RuntimeEventType.FINAL_RESULT, 1)
    ids = [event.event_id for event in told]
    assert (ids[: len(first)], len(set(ids))) == (first, len(ids))
    assert (types.count(RuntimeEventType.TOOL_ERROR), types.count(RuntimeEventType.TOOL_END)) == (1, 2)
    assert set(ids) == set(seen)
    assert (public[-1], public.count(RuntimeEventType.TOOL_END)) == (RuntimeEventType.FINAL_RESULT, 2)


async def test_a_cancelled_job_runs_again_and_may_be_cancelled_again():
    async def waits(ctx):
        await ctx.call(refund, order=1)
        return await ctx.wait("go on")

    async with RuntimeKernel.create(agent=waits) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=None))
        for _ in range(2):
            await handle.cancel("not now")
            with pytest.raises(JobCancelled):
                await handle.result()
            handle = await retried(kernel, handle.job_id)
        await kernel.jobs.signal(handle.job_id, "go on", "fine")
        assert ((await handle.result()).output, USED) == ("fine", [1])


async def test_a_job_that_has_gone_on_with_other_input_keeps_it_and_gets_the_new_limits():
    engine, agent, _ = model(["one", "two"])

    async def walks(ctx):
        if ctx.message == 0:
            await ctx.call(refund, order=1)
            ctx.continue_as(1)
        return [(await ctx.llm(engine).complete(agent.request)).content for _ in range(2)]

    async with RuntimeKernel.create(agent=walks) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=0, budgets=BudgetSpec(max_turns=1)))
        with pytest.raises(TurnLimitExceeded):
            await handle.result()
        again = await retried(kernel, handle.job_id, budgets={"max_turns": 2})
        assert ((await again.result()).output, USED) == (["one", "two"], [1])


async def test_children_run_again_with_their_parent_and_are_not_retried_by_themselves():
    broken = [True]

    async def below(ctx):
        await ctx.call(refund, order=ctx.message)
        if broken:
            raise RuntimeError("out of order")
        return ctx.message

    async def above(ctx):
        return await ctx.child(below, 5)

    async with RuntimeKernel.create(agent=[above, below]) as kernel:
        failed = await fails(kernel, EffectError)
        with pytest.raises(UserError, match="is a child") as refused:
            await kernel.jobs.retry(f"{failed.job_id}~1")
        assert failed.job_id in refused.value.hint
        broken.clear()
        assert ((await (await retried(kernel, failed.job_id)).result()).output, USED) == (5, [5])


async def test_a_retry_is_refused_if_the_job_is_unknown_open_or_retried_already():
    async def waits(ctx):
        if ctx.message == "fails":
            raise RuntimeError("no")
        return await ctx.wait("go on")

    async with RuntimeKernel.create(agent=waits) as kernel:
        with pytest.raises(UserError):
            await kernel.jobs.retry("nobody")
        handle = await kernel.execute(ExecutionRequest(prompt=1))
        with pytest.raises(LetterRefused, match="has not ended") as refused:
            await kernel.jobs.retry(handle.job_id)
        assert refused.value.reason == "second"
        handle = await kernel.execute(ExecutionRequest(prompt="fails"))
        with pytest.raises(EffectError):
            await handle.result()
        for wrong in ({"budgets": {"max_turn": 2}}, {"budgets": 3}, {"max_turns": 0}):
            with pytest.raises(UserError):
                await kernel.jobs.retry(handle.job_id, **wrong)


async def test_a_key_names_the_retried_job_and_its_next_outcome():
    broken = [True]

    async def works(ctx):
        if broken:
            raise RuntimeError("no")
        return "done"

    request = ExecutionRequest(prompt=1, idempotency_key="k")
    async with RuntimeKernel.create(agent=works) as kernel:
        with pytest.raises(EffectError):
            await (await kernel.execute(request)).result()
        broken.clear()
        await kernel.jobs.retry((await kernel.execute(request)).job_id)
        handle = await kernel.handle((await kernel.execute(request)).job_id)
        assert (await handle.result()).output == "done"
        assert (await (await kernel.execute(request)).result()).output == "done"


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("count", range(1, 9))
async def test_a_crash_at_each_entry_of_a_retry_repeats_nothing(count):
    engine, agent, provider = model([calls(1), calls(2), "done"] * 2, max_turns=1)
    home = MemoryStorage(ManualClock(1_000.0))
    async with RuntimeKernel.create(engine=engine, agent=agent, journal=home) as kernel:
        failed = await fails(kernel, TurnLimitExceeded)
        await (await retried(kernel, failed.job_id, max_turns=3)).result()
    whole = list(MemoryReader(home).read())
    [again] = [at for at, (_, entry) in enumerate(whole) if isinstance(entry, Begin) and entry.run == 2]
    USED.clear()
    cut = MemoryStorage(ManualClock(2_000.0))
    cut.key = home.key
    journal = MemoryJournal(cut)
    for _, entry in whole[: again + count]:
        journal.append(entry)
    journal.close()
    ended = isinstance(whole[again + count - 1][1], End)
    had = sum(isinstance(entry, EffectResult) for _, entry in whole[: again + count])
    provider = ScriptedProvider([calls(1), calls(2), "done"][(had + 1) // 2 :])
    engine = ExecutionEngine(provider, retries=0, patience=0)
    agent = Agent(engine, name="support", tools=[refund], max_turns=1)
    async with RuntimeKernel.create(engine=engine, agent=agent, journal=cut) as kernel:
        handles = await kernel.resume()
        assert len(handles) == (not ended)
        for handle in handles:  # a person is asked whether the call was made before the crash, or the job ends
            while not handle.done and not await handle.get_pending_actions():  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert not handle.done or (await handle.result()).content == "done"
    assert len(USED) == len(set(USED))


async def test_a_job_whose_earlier_entries_are_gone_when_it_is_to_run_again_makes_nothing():
    """`trim` may remove them between the request and its entry; without them each effect would be made again."""

    async def pays(ctx):
        return await ctx.call(refund, order=1)

    home = MemoryStorage(ManualClock(1_000.0))
    journal = MemoryJournal(home)
    journal.append(Begin("kernel.pays/1", 1, "kernel.pays", b"\x81\xa6prompt\xc0", scope="shop", run=2, form="request"))
    journal.close()
    async with RuntimeKernel.create(agent=pays, journal=home) as kernel:
        [handle] = await kernel.resume()
        with pytest.raises(JobCancelled):
            await handle.result()
        assert "were removed" in (await kernel.jobs.get("kernel.pays/1")).error
    assert USED == []


async def test_a_retry_of_an_agent_that_this_program_lacks_is_logged_and_disturbs_nobody(caplog):
    async def works(ctx):
        return "done"

    home = MemoryStorage(ManualClock(1_000.0))
    journal = MemoryJournal(home)
    journal.append(Begin("kernel.gone/1", 1, "kernel.gone", b"\x81\xa6prompt\xc0", form="request"))
    journal.append(End("kernel.gone/1", 2, "failed", "ValueError"))
    again = Begin("kernel.gone/1", 3, "kernel.gone", b"\x81\xa6prompt\xc0", run=2, form="request")
    journal.post(Letter("retry", job="kernel.gone/1", name="0", body=encode_entry(again)))
    journal.close()
    async with RuntimeKernel.create(agent=works, journal=home) as kernel:
        await until(lambda: isinstance([*MemoryReader(home).read("kernel.gone/1")][-1][1], Begin))
        assert (await (await kernel.execute(ExecutionRequest(prompt=1))).result()).output == "done"
    assert "this program has no agent kernel.gone" in caplog.text


def test_a_job_of_an_app_is_named_its_dead_letter():
    home = MemoryStorage()
    journal = MemoryJournal(home)
    journal.append(Begin("app.f/1", 1, "app.f", b"x"))
    journal.append(End("app.f/1", 2, "failed", "ValueError"))
    with closing(journal) as reader, pytest.raises(UserError, match="none of a kernel") as refused:
        retry_letter(reader, "app.f/1", None, None)
    assert "dead letter" in refused.value.hint


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("ended", ["cancelled", "failed"])
@pytest.mark.parametrize("asks", ["rule", "function", "tool"])
async def test_a_question_that_the_end_of_the_job_has_closed_is_asked_anew(asks, ended, restarts, tmp_path):
    """The next run waited for an answer to the closed one, which nobody could give."""
    lost = [ended == "failed"]

    def kernel():
        manager = ActionManager(InMemoryActionStore(), poll="1ms")

        @tool(effect="read", retries=0)
        async def look_up():
            if lost and lost.pop():
                raise ValueError("not there")

        @tool
        async def asked(order, effect: Effect):
            action = await manager.require_action(ActionSpec(job_id=effect.id.job, type="confirm", payload={}))
            await manager.wait_for_resolution(action.action_id)
            return await refund.func(order) if action.resolution.get("approved") else str(action.status)

        async def f(ctx):
            if asks == "rule":
                told = ctx.call(refund, order=1)
            else:
                told = ctx.call(asked, order=1) if asks == "tool" else ctx.ask("confirm", {"refund": 1})
            async with asyncio.TaskGroup() as group:
                answer = group.create_task(told)
                group.create_task(look_up_later(ctx))
            return answer.result() if asks != "function" else await ctx.call(refund, order=1)

        async def look_up_later(ctx):
            await ctx.wait("look")
            await ctx.call(look_up)

        policy = PolicyEngine([ToolPolicy(["refund"], require_approval=True)] if asks == "rule" else [])
        return RuntimeKernel.create(agent=f, policy=policy, journal=tmp_path, action_store=manager.store)

    async with kernel() as first:
        handle = await first.execute(ExecutionRequest(prompt=None, budgets=BudgetSpec(max_tool_calls=3)))
        (old,) = await open_questions(handle)
        if ended == "failed":
            await first.jobs.signal(handle.job_id, "look")
        else:
            await handle.cancel("not now")
        with pytest.raises((JobCancelled, EffectError)):
            await handle.result()
        if not restarts:
            await answers_anew(first, handle.job_id, old, ended)
    if restarts:
        async with kernel() as second:
            await answers_anew(second, handle.job_id, old, ended)
    assert USED == [1]


async def open_questions(handle):
    async with asyncio.timeout(60):
        while not (found := await handle.get_pending_actions()):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    return found


async def answers_anew(kernel, job_id, old, ended):
    handle = await retried(kernel, job_id)
    (new,) = await open_questions(handle)
    assert new.resume_token != old.resume_token
    with pytest.raises(UserError):
        await handle.resolve_action(old.resume_token, {"approved": True})
    await handle.resolve_action(new.resume_token, {"approved": True})
    if ended == "cancelled":
        await kernel.jobs.signal(job_id, "look")
    assert (await handle.result()).output == "order 1 is refunded"


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("asks", [True, False])
async def test_a_retry_makes_no_call_again_that_a_cancelled_child_has_made(tmp_path, asks, depth):
    """The retry of a cancelled parent began another child, which paid the same order a second time."""
    sent, answered = asyncio.Event(), asyncio.Event()

    @tool(effect="unsafe")
    async def pay(order: int) -> str:
        USED.append(order)
        sent.set()
        await answered.wait()
        return "paid"

    async def pays(ctx):
        return await ctx.call(pay, 1)

    async def between(ctx):
        return await ctx.child(pays, 1)

    async def payroll(ctx):
        return await ctx.child(pays if depth == 1 else between, 1)

    policy = PolicyEngine([ToolPolicy(["pay"], require_approval=asks)])
    kernel = RuntimeKernel.create(agent=[payroll, between, pays], journal=tmp_path / "jobs", policy=policy)
    async with kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=1, agent="payroll"))
        if asks:
            await until(lambda: kernel.statistics()["parked"] == depth + 1)
            (question,) = await handle.get_pending_actions()
            await handle.resolve_action(question.resume_token, {"approved": True})
        await sent.wait()
        await handle.cancel("too early")
        with pytest.raises(JobCancelled):
            await handle.result()
        await kernel.jobs.retry(handle.job_id)  # while the call is under way
        again = await kernel.handle(handle.job_id)
        answered.set()
        try:
            result = await again.result()
        except EffectError:  # the child had not ended, and was cancelled
            await kernel.jobs.retry(handle.job_id)
            result = await (await kernel.handle(handle.job_id)).result()
        assert result.output == "paid"
        assert [job.job_id for job in await kernel.jobs.find() if "~" not in job.job_id] == [handle.job_id]
    assert USED == [1]


async def test_a_retry_begins_no_child_beside_the_one_that_another_worker_still_has(monkeypatch):
    sent, answered, elsewhere, mark_of = asyncio.Event(), asyncio.Event(), False, MemoryReader.job

    @tool(effect="unsafe")
    async def pay(order: int) -> str:
        USED.append(order)
        sent.set()
        await answered.wait()
        return "paid"

    async def pays(ctx):
        return await ctx.call(pay, 1)

    async def payroll(ctx):
        return await ctx.child(pays, 1)

    def looked_at(journal, job_id):
        mark = mark_of(journal, job_id)
        return replace(mark, outcome="") if elsewhere and job_id.endswith("~1") else mark

    monkeypatch.setattr(MemoryReader, "job", looked_at)
    async with RuntimeKernel.create(agent=[payroll, pays], journal=MemoryStorage()) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=1, agent="payroll"))
        await sent.wait()
        await handle.cancel("too early")
        with pytest.raises(JobCancelled):
            await handle.result()
        answered.set()
        await until(lambda: kernel.statistics()["ended"] == 2)
        elsewhere = True
        with pytest.raises(EffectError, match="was cancelled, and a call of it is still under way"):
            await (await retried(kernel, handle.job_id)).result()
        elsewhere = False
        assert (await (await retried(kernel, handle.job_id)).result()).output == "paid"
    assert USED == [1]


async def test_a_retry_reads_the_clock_of_the_first_run_and_makes_no_call_again():
    """Before its first delivery the function read the time of the retry: the call had other arguments, and was made again."""
    clock = ManualClock(1_000.0)

    @tool(effect="read", retries=0)
    async def look_up():
        if clock.time() < 2_000:
            raise ValueError("not there")

    async def f(ctx):
        told = await ctx.call(refund, order=ctx.now())
        await ctx.call(look_up)
        return told

    async with RuntimeKernel.create(agent=f, journal=MemoryStorage(clock), clock=clock) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=None))
        with pytest.raises(EffectError):
            await handle.result()
        clock.advance(5_000)
        await (await retried(kernel, handle.job_id)).result()
    assert len(USED) == 1
