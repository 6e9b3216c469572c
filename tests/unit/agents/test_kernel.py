"""RuntimeKernel: jobs without an app, their handles, and what they do after a crash."""

import asyncio
import gc
import sqlite3
import threading
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from decimal import Decimal
from functools import partial
from itertools import takewhile

import pytest

from sabot.agents import (
    ActionStatus,
    Budget,
    BudgetSpec,
    DurableContext,
    ExecutionRequest,
    IdempotencyConflict,
    InMemoryEventBus,
    InMemoryLedgerWriter,
    JobStatus,
    Ledger,
    LetterRefused,
    PolicyEngine,
    RuntimeKernel,
    SqliteLedgerWriter,
    ToolPolicy,
)
from sabot.clock import ManualClock
from sabot.engine.calls.errors import BudgetExceeded, RequestRefused
from sabot.errors import AppLocked, EffectError, JobCancelled, JournalFailed, NonDeterminism, NotSent, UserError
from sabot.journal.entries import End
from sabot.journal.memory import MemoryJournal, MemoryReader, MemoryStorage
from sabot.journal.opening import open_journal
from sabot.journal.writing import GroupWriter
from sabot.llm import ChatMessage, Completion, Price, PriceTable, ToolCall, TurnLimitExceeded, Usage, assistant, tool
from sabot.llm.agent import Agent
from sabot.llm.engine import ExecutionEngine
from sabot.llm.providers.scripted import ScriptedProvider
from tools.agent_tools import PATIENCE, until

FREE = PriceTable({"scripted-1": Price(0, 0)}, version="1")  # answers say by themselves what they cost


def model(answers, prices=None, **options):
    provider = ScriptedProvider(answers)
    engine = ExecutionEngine(provider, retries=0, patience=0, prices=prices)
    return engine, Agent(engine, **options), provider


def ask(prompt, **fields):
    return ExecutionRequest(prompt=prompt, **fields)


def calls(*names):
    return assistant("", *(ToolCall(f"c{number}", name, "{}") for number, name in enumerate(names)))


async def run(kernel, prompt=None, **fields):
    return await (await kernel.execute(ask(prompt, **fields))).result()


# -- a job and its handle -------------------------------------------------------------------------------------------------


async def test_the_handle_of_a_job_has_its_result():
    @tool(effect="read")
    async def look() -> str:
        return "gold"

    said = Completion(message=assistant("It is gold."), usage=Usage(10, 4), cost=Decimal("0.25"))
    engine, agent, provider = model([calls("look"), said], tools=[look])
    async with RuntimeKernel.create(engine=engine, agent=agent) as kernel:
        handle = await kernel.execute(ask("What is it?", scope_id="tenant-123", principal_id="user-456"))
        result = await handle.result()
        assert (result.content, result.turns, result.tool_calls) == ("It is gold.", 2, 1)
        assert result.usage.output_tokens > 4
        assert (handle.done, (await kernel.handle(handle.job_id)).done) == (True, True)
    assert [each.role for each in provider.requests[0].messages] == ["user"]


async def test_the_output_of_a_handle_has_the_type_that_the_agent_is_asked_for():
    engine, agent, _ = model(['{"city": "Paris"}'], output={"city": "string"})
    async with RuntimeKernel.create(engine=engine, agent=agent) as kernel:
        handle = await kernel.execute(ask([ChatMessage("user", "Where?")]))
        assert (await handle.result()).output == {"city": "Paris"}
        assert (await (await kernel.handle(handle.job_id)).result()).output == {"city": "Paris"}


async def test_a_function_is_an_agent_too_and_calls_others_as_children():
    async def double(ctx):
        return ctx.message * 2

    async def both(ctx):
        first = await ctx.child(double, ctx.message)
        return first + await ctx.child("double", first)

    async with RuntimeKernel.create(agent=[both, double], max_jobs=1) as kernel:
        assert (await run(kernel, 5)).output == 30
        assert (await run(kernel, 5, agent="double")).content == "10"
        with pytest.raises(UserError, match="no agent 'other'"):
            await run(kernel, 5, agent="other")


@pytest.mark.parametrize(
    ("options", "error", "attempts"),
    [
        ({}, ConnectionRefusedError("the hotel"), 1),
        ({}, ExceptionGroup("of a TaskGroup", [ConnectionRefusedError("the hotel")]), 1),
        ({"reconcile": lambda effect: None}, ConnectionRefusedError("the hotel"), 1),
        ({}, NotSent("no line"), 3),
        ({"retries": 1}, ConnectionRefusedError("the hotel"), 2),
        ({"effect": "idempotent"}, ConnectionRefusedError("the hotel"), 3),
    ],
)
async def test_the_retries_of_an_agent_repeat_no_unsafe_call_of_which_a_request_may_have_been_sent(
    options, error, attempts
):
    """A tool that booked a flight, and whose hotel refused the connection, booked four flights."""
    flights = []

    @tool(backoff=0, **options)
    async def book_trip() -> str:
        flights.append(1)
        raise error

    engine, agent, provider = model([calls("book_trip"), "sorry"], tools=[book_trip], max_tool_retries=2)
    async with RuntimeKernel.create(engine=engine, agent=agent) as kernel:
        assert (await run(kernel, "go")).content == "sorry"
    assert len(flights) == attempts
    assert provider.requests[-1].messages[-1].is_error


async def test_several_wait_on_one_handle_and_one_that_gives_up_disturbs_nobody():
    engine, agent, provider = model(["done"])
    provider.hold()
    async with RuntimeKernel.create(engine=engine, agent=agent) as kernel:
        handle = await kernel.execute(ask("go"))
        waiting = [asyncio.create_task(handle.result()) for _ in range(3)]
        await provider.arrived(1)
        waiting[0].cancel()
        provider.release()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert [each.content for each in results[1:]] == ["done", "done"]


async def test_the_events_of_a_handle_are_those_of_its_job_with_pieces_of_answers():
    engine, agent, _ = model(("Once ", "upon ", "a time"))
    async with RuntimeKernel.create(engine=engine, agent=agent) as kernel:
        other = await kernel.execute(ask("other"))
        handle = await kernel.execute(ask("a tale"))
        events = [event async for event in handle.events()]
        assert [str(event.type) for event in events] == [
            "job.started",
            *["model.token"] * 3,
            "model.done",
            "job.completed",
            "final.result",
        ]
        assert "".join(event.data.get("text", "") for event in events) == "Once upon a time"
        assert {event.job_id for event in events} == {handle.job_id}
        again = [event async for event in handle.events()]
        assert [each.event_id for each in again] == [each.event_id for each in events if "token" not in each.type]
        await other.result()


async def test_events_end_with_the_error_of_a_job_that_does_not_come_to_its_end():
    async def waits(ctx):
        await ctx.wait("never")

    kernel = RuntimeKernel.create(agent=waits)
    handle = await kernel.execute(ask(1))
    seen = []

    async def read():
        async for event in handle.events():
            seen.append(str(event.type))

    reader = asyncio.create_task(read())
    await until(lambda: seen)
    await kernel.close()
    with pytest.raises(UserError, match="was closed"):
        await reader
    with pytest.raises(UserError, match="was closed"):
        await handle.result()
    with pytest.raises(UserError, match="is closed"):
        await kernel.execute(ask(2))
    assert seen == ["job.started"]


async def test_a_reader_that_is_slow_misses_nothing_that_is_in_the_journal():
    async def many(ctx):
        for number in range(40):
            await ctx.step(_same, number, effect="read")

    async with RuntimeKernel.create(agent=many) as kernel:
        listen = kernel.event_bus.listen
        kernel.event_bus.listen = lambda *args, **options: listen(*args, **{**options, "capacity": 3})
        handle = await kernel.execute(ask(1))
        seen = []
        async for event in handle.events():
            seen.append(event.event_id)
            await handle.result()
        assert len(seen) == len(set(seen)) == 1 + 40 * 2 + 2


async def _same(value):
    return value


# -- how a job fails ------------------------------------------------------------------------------------------------------


async def test_a_failed_job_raises_what_has_ended_it():
    async def fails(ctx):
        raise ValueError("no such thing")

    engine, agent, _ = model([RequestRefused("not this")])
    async with RuntimeKernel.create(engine=engine, agent=[agent, fails]) as kernel:
        with pytest.raises(RequestRefused, match="not this"):
            await run(kernel, "go")
        handle = await kernel.execute(ask(1, agent="fails"))
        with pytest.raises(EffectError, match="no such thing") as raised:
            await handle.result()
        assert raised.value.type == "ValueError"
        with pytest.raises(EffectError, match="no such thing"):
            await (await kernel.handle(handle.job_id)).result()
        [job] = [job for job in await kernel.jobs.find() if job.job_id == handle.job_id]
        assert (job.status, job.error, job.scope_id) == (JobStatus.FAILED, "ValueError: no such thing", "default")


@pytest.mark.parametrize("step", ["call", "model", "approval", "ask", "sleep", "child", "wait"])
async def test_a_job_is_cancelled_at_each_step(step):
    """That is what it waits for when the cancel comes."""
    left, at = [], asyncio.Event()

    @tool(effect="read")
    async def hangs():
        at.set()
        await asyncio.Event().wait()

    async def answer(spec):
        await hangs()

    engine, _, provider = model(answer)

    async def below(ctx):
        await ctx.wait("never")

    async def f(ctx):
        waits = {
            "call": lambda: ctx.call(hangs),
            "model": lambda: ctx.llm(engine).complete("hello"),
            "approval": lambda: ctx.call(look),
            "ask": lambda: ctx.ask("confirm", {}),
            "sleep": lambda: ctx.sleep("1h"),
            "child": lambda: ctx.child(below, 1),
            "wait": lambda: ctx.wait("never"),
        }
        try:
            await waits[step]()
        finally:
            left.append(ctx.job_id)

    ledger, policy = Ledger(InMemoryLedgerWriter()), PolicyEngine([ToolPolicy(["look"], require_approval=True)])
    how = {"policy": policy, "budgets": ledger, "stop_grace": 0}
    async with RuntimeKernel.create(agent=[f, below], **how) as kernel:
        handle = await kernel.execute(ask(1))
        if step in ("call", "model"):
            await at.wait()
        else:
            await until(lambda: kernel.statistics()["parked"] == (2 if step == "child" else 1))
        await handle.cancel("not wanted")
        with pytest.raises(JobCancelled):
            await handle.result()
        with pytest.raises(LetterRefused):
            await handle.cancel()
        assert [event.data["reason"] async for event in handle.events() if event.type == "job.cancelled"] == [
            "not wanted"
        ]
        assert await handle.get_pending_actions() == []
        await until(lambda: kernel.statistics()["ended"] == (2 if step == "child" else 1))
        assert {job.status for job in await kernel.jobs.find()} == {JobStatus.CANCELLED}, "no child is left behind"
        await ledger.flush()
        assert [row.type for row in ledger.writer.events if row.type != "tool"] == ["doubt"] * len(provider.requests)
    assert len(provider.requests) == int(step == "model")
    assert set(left) == {handle.job_id}


async def test_a_job_whose_code_has_changed_is_blocked_and_its_handle_says_so(tmp_path):
    async def first(ctx):
        await ctx.ask("confirm", {})

    async def second(ctx):
        await ctx.wait("something else")

    first.__name__ = second.__name__ = "f"
    async with RuntimeKernel.create(agent=first, journal=tmp_path) as kernel:
        await kernel.execute(ask(1))
        await until(lambda: kernel.statistics()["parked"])
    async with RuntimeKernel.create(agent=second, journal=tmp_path) as kernel:
        [handle] = await kernel.resume()
        with pytest.raises(NonDeterminism):
            await handle.result()


async def test_a_blocked_job_is_found_by_its_id_and_by_its_key_and_says_why_it_is_blocked(tmp_path):
    async def first(ctx):
        await ctx.ask("confirm", {})

    async def second(ctx):
        await ctx.wait("something else")

    first.__name__ = second.__name__ = "f"
    async with RuntimeKernel.create(agent=first, journal=tmp_path) as kernel:
        await kernel.execute(ask(1, idempotency_key="k"))
        await until(lambda: kernel.statistics()["parked"])
    async with RuntimeKernel.create(agent=second, journal=tmp_path) as kernel:
        [handle] = await kernel.resume()
        await until(lambda: handle.done)
        for found in (await kernel.handle(handle.job_id), await kernel.execute(ask(1, idempotency_key="k"))):
            with pytest.raises(NonDeterminism):
                await found.result()
        with pytest.raises(IdempotencyConflict):
            await kernel.execute(ask(2, idempotency_key="k"))


# -- limits of one job ----------------------------------------------------------------------------------------------------


def spends(tokens, cost="0.1"):
    def answer(spec):
        said = calls("look") if spec.tools else assistant("done")
        return Completion(message=said, usage=Usage(tokens, 0), cost=Decimal(cost))

    return answer


@tool(effect="read")
async def look() -> str:
    """Looks."""
    return "gold"


@pytest.mark.parametrize(
    ("limits", "error", "asked"),
    [
        ({"max_tokens": 1500}, BudgetExceeded, 3),  # a request that has a tool may read more than 1,100, and uses 100
        ({"max_cost": 0.35}, BudgetExceeded, 4),
        ({"max_turns": 2}, TurnLimitExceeded, 2),
    ],
)
async def test_a_job_ends_at_the_limits_of_its_budget(limits, error, asked):
    engine, agent, provider = model(spends(100), FREE, tools=[look])
    async with RuntimeKernel.create(engine=engine, agent=agent) as kernel:
        with pytest.raises(error):
            await run(kernel, "go", budgets=BudgetSpec(**limits))
    assert len(provider.requests) == asked


async def test_a_request_may_write_no_more_than_is_left_of_the_budget():
    engine, agent, provider = model("done")
    async with RuntimeKernel.create(engine=engine, agent=agent) as kernel:
        await run(kernel, "one two three", budgets=BudgetSpec(max_tokens=1000))
        await run(kernel, "one two three")
    first, second = (each.max_tokens for each in provider.requests)
    assert (0 < first < 1000, second) == (True, 4096)


async def test_a_model_is_told_how_much_is_reserved_for_its_answer_where_a_job_may_cost_so_much():
    engine, _, provider = model(lambda spec: "done", FREE)

    async def f(ctx):
        return (await ctx.llm(engine).complete("go")).content

    async with RuntimeKernel.create(agent=f) as kernel:
        for limits in ({"max_cost": 1}, {"max_turns": 1}):
            await run(kernel, "go", budgets=BudgetSpec(**limits))
    assert [each.max_tokens for each in provider.requests] == [4096, None]


async def test_the_model_is_told_that_no_more_tools_are_called():
    engine, agent, provider = model([calls("look", "look", "look"), "done"], tools=[look])
    async with RuntimeKernel.create(engine=engine, agent=agent) as kernel:
        result = await run(kernel, "go", budgets=BudgetSpec(max_tool_calls=2))
    told = [each.content for each in provider.requests[1].messages if each.role == "tool"]
    assert (result.content, told[:2]) == ("done", ["gold", "gold"])
    assert "may call tools 2 times" in told[2]


async def test_a_job_that_runs_too_long_is_ended():
    @tool(effect="read")
    async def hangs() -> str:
        """Hangs."""
        await asyncio.Event().wait()
        return ""

    engine, agent, _ = model([calls("hangs")], tools=[hangs])
    async with RuntimeKernel.create(engine=engine, agent=agent) as kernel:
        with pytest.raises(TimeoutError, match="ran longer"):
            await run(kernel, "go", budgets=BudgetSpec(max_runtime_seconds=0.01))


async def test_a_job_without_time_calls_nothing():
    """The timer of the limit came behind calls that had ended by then: each of them was made."""
    made = list[int]()

    @tool
    async def pay(amount: int) -> None:
        """Pays."""
        made.append(amount)

    async def child(ctx: DurableContext) -> None:
        await ctx.call(pay, 3)

    async def work(ctx: DurableContext) -> list[str]:
        ways = ctx.call(pay, 1), ctx.step(pay, 2), ctx.child(child, "go")
        return [str(each) for each in await asyncio.gather(*ways, return_exceptions=True)]

    async with RuntimeKernel.create(agent=[work, child]) as kernel:
        request = ExecutionRequest(prompt="go", agent="work", budgets=BudgetSpec(max_runtime_seconds=0))
        handle = await kernel.execute(request)
        said = (await handle.result()).output
        assert all("ran longer than max_runtime_seconds=0" in each for each in said), said
    assert (len(said), made) == (3, [])


@pytest.mark.parametrize("restart", [False, True])
async def test_a_job_that_sleeps_longer_than_it_may_run_is_ended(restart):
    clock = ManualClock()
    home, limits = MemoryStorage(clock), BudgetSpec(max_runtime_seconds=5)

    async def f(ctx):
        if ctx.message == "short":
            await asyncio.sleep(2)
            return "slept"
        async with asyncio.timeout(3_600):
            await asyncio.sleep(1_800)

    async def parked(kernel, number):
        await until(lambda: kernel.statistics()["parked"] == number)

    @asynccontextmanager
    async def kernel():
        with closing(MemoryJournal(home)) as journal:
            async with RuntimeKernel.create(agent=f, journal=journal) as started:
                yield started

    async with kernel() as first:
        short, long = [await first.execute(ask(each, budgets=limits)) for each in ("short", "long")]
        await parked(first, 2)
        clock.advance(3)
        assert (await short.result()).output == "slept"
        await parked(first, 1)
        if not restart:
            clock.advance(2.1)
            with pytest.raises(TimeoutError, match="ran longer than max_runtime_seconds=5"):
                await long.result()
            return
    async with kernel() as second:
        [long] = await second.resume()
        await parked(second, 1)
        clock.advance(0.5)
        assert not long.done
        clock.advance(1.6)
        with pytest.raises(TimeoutError, match="ran longer"):
            await long.result()


async def test_the_time_of_a_job_counts_from_its_beginning_over_a_restart_and_not_while_it_waits_for_a_person():
    clock, guard = ManualClock(), asyncio.Event()
    home, limits = MemoryStorage(clock), BudgetSpec(max_runtime_seconds=60)
    calls: list[str] = []

    @tool(effect="read")
    async def waits() -> str:
        """Waits."""
        calls.append("begun")  # a call that is in flight need not have come here
        await guard.wait()
        return "there"

    async def f(ctx):
        if ctx.message == "asks":
            await ctx.ask("confirm", {})
        try:
            return await ctx.call(waits)
        except asyncio.CancelledError:
            await ctx.sleep("2s")  # what it does when its time is over is not cut short
            raise

    @asynccontextmanager
    async def kernel():
        with closing(MemoryJournal(home)) as journal:
            async with RuntimeKernel.create(agent=f, journal=journal, stop_grace=0) as started:
                yield started

    async with kernel() as first:
        await first.execute(ask("runs", budgets=limits))
        await first.execute(ask("asks", budgets=limits))
        await until(lambda: first.statistics()["parked"] == 1 and len(calls) == 1)
        clock.advance(50)
    clock.advance(5)
    async with kernel() as second:
        runs, asks = await second.resume()
        await until(lambda: second.statistics()["parked"] == 1 and len(calls) == 2)
        clock.advance(4)
        guard.set()
        guard.clear()
        assert (await runs.result()).output == "there"
        clock.advance(3_600)
        [question] = await asks.get_pending_actions()
        await asks.resolve_action(question.resume_token, {"approved": True})
        await until(lambda: len(calls) == 3)
        clock.advance(59)
    async with kernel() as third:
        [late] = await third.resume()
        await until(lambda: third.statistics()["in_flight"] == 1)
        clock.advance(1.1)
        await until(lambda: third.statistics()["parked"] == 1)
        clock.advance(2)
        with pytest.raises(TimeoutError, match="ran longer"):
            await late.result()


async def test_a_policy_decides_what_jobs_of_a_scope_may_do():
    policy = PolicyEngine([ToolPolicy(tool_patterns=["look"], allowed_scopes=["internal"])])
    engine, agent, _ = model(
        lambda spec: spec.messages[-1].text if len(spec.messages) > 1 else calls("look"), tools=[look]
    )
    async with RuntimeKernel.create(engine=engine, agent=agent, policy=policy) as kernel:
        assert (await run(kernel, "go", scope_id="internal")).content == "gold"
        assert "PolicyDenied" in (await run(kernel, "go", scope_id="tenant-123")).content


async def test_what_a_scope_uses_is_recorded_and_its_budget_ends_further_jobs(tmp_path):
    budgets = [Budget("tenant-123", max_cost_daily=Decimal("0.25"))]
    for open_again in (False, True):
        engine, agent, _ = model(spends(100, "0.2"), FREE)
        async with RuntimeKernel.create(engine=engine, agent=agent, budgets=budgets, journal=tmp_path) as kernel:
            if not open_again:
                assert (await run(kernel, "go", scope_id="tenant-123")).cost == Decimal("0.2")
                assert (await run(kernel, "go", scope_id="tenant-123")).cost == Decimal("0.2")
            with pytest.raises(BudgetExceeded):
                await run(kernel, "go", scope_id="tenant-123")
            assert (await run(kernel, "go", scope_id="another")).content == "done"
            await kernel.ledger.flush()
            [used] = [each for each in await kernel.ledger.writer.sums(["scope"], 0) if each.group == ("tenant-123",)]
            assert used.cost == Decimal("0.4")


@pytest.mark.parametrize("said", [-1_000_000, 2**62])
async def test_tokens_that_cannot_be_count_with_what_was_reserved(said):
    """A server that says it has read -1,000,000 tokens gave them back to the budgets of the job and of its scope."""

    def answer(spec):
        return Completion(message=assistant("done"), usage=Usage(said, 1), cost=Decimal(-9))

    engine = ExecutionEngine(ScriptedProvider(answer, model="m\0x"))
    budgets = [Budget("default", max_tokens_daily=10_000)]

    async def three(ctx):
        return [(await ctx.llm(engine).complete("go")).content for _ in range(3)]

    async with RuntimeKernel.create(agent=three, budgets=budgets) as kernel:
        with pytest.raises(BudgetExceeded, match="the job may use 8,000 tokens"):
            await run(kernel, "go", budgets=BudgetSpec(max_tokens=8_000))
        await kernel.ledger.flush()
        [row] = await kernel.ledger.writer.sums(["model"], 0)
        assert row.group == ("m\N{REPLACEMENT CHARACTER}x",)
        assert 4_096 < row.input_tokens <= 8_000
        assert row.cost == 0
        assert (await kernel.ledger.used("default"))["daily"].tokens == row.input_tokens + row.output_tokens


async def test_two_who_ask_for_the_accounts_at_once_get_one_ledger(tmp_path):
    _, agent, _ = model("done")
    kernel = RuntimeKernel.create(agent=agent, journal=tmp_path, budgets=[])
    first, second = await asyncio.gather(kernel.accounts(), kernel.accounts())
    assert first is second is kernel.ledger
    await first.close()


async def test_a_ledger_of_ones_own_stays_open():
    ledger = Ledger(InMemoryLedgerWriter())
    engine, agent, _ = model(spends(100))
    for _ in range(2):
        async with RuntimeKernel.create(engine=engine, agent=agent, budgets=ledger) as kernel:
            await run(kernel, "go")
    [used] = await ledger.writer.sums(["scope"], 0)
    assert used.input_tokens == 200


# -- idempotency ----------------------------------------------------------------------------------------------------------


async def test_the_same_key_of_a_scope_is_the_same_job():
    engine, agent, provider = model("done")
    async with RuntimeKernel.create(engine=engine, agent=agent) as kernel:
        key = {"idempotency_key": "k", "scope_id": "a"}
        provider.hold()
        both = await asyncio.gather(*(kernel.execute(ask("go", **key)) for _ in range(5)))
        assert len({id(handle) for handle in both}) == 1
        provider.release()
        assert [(await handle.result()).content for handle in both] == ["done"] * 5
        later = await kernel.execute(ask("go", **key))
        assert (later.job_id, (await later.result()).content) == (both[0].job_id, "done")
        with pytest.raises(IdempotencyConflict):
            await kernel.execute(ask("go on", **key))
        other = await kernel.execute(ask("go", idempotency_key="k", scope_id="b"))
        assert other.job_id != later.job_id
        await other.result()
    assert len(provider.requests) == 2


@pytest.mark.parametrize("outcome", ["returns", "fails", "cancelled"])
async def test_a_caller_hears_of_the_end_of_a_job_when_its_end_is_durable(tmp_path, monkeypatch, outcome):
    """On a full disk a result was returned whose END entry was lost, so the job ran again at the next start."""
    paid = []

    async def pay():
        paid.append(1)

    async def f(ctx):
        await ctx.step(pay)
        if outcome == "fails":
            raise ValueError("no")
        if outcome == "cancelled":
            await ctx.wait("never")
        return "done"

    def writer(where, partition, first, commit, *given):
        def full(group):
            before = [*takewhile(lambda each: not isinstance(each.entry, End), group)]
            if before:
                commit(before)
            if before != group:
                raise sqlite3.OperationalError("database or disk is full")

        return GroupWriter(where, partition, first, full, *given)

    with monkeypatch.context() as patch:
        patch.setattr("sabot.journal.sqlite.GroupWriter", writer)
        kernel = RuntimeKernel.create(agent=f, journal=f"{tmp_path}/jobs")
        handle = await kernel.execute(ask("go"))
        if outcome == "cancelled":
            await until(lambda: kernel.statistics()["parked"] == 1)
            await handle.cancel()
        with pytest.raises(JournalFailed, match="disk is full"):
            await handle.result()
        with pytest.raises(JournalFailed, match="disk is full"):
            await kernel.close()
    async with RuntimeKernel.create(agent=f, journal=f"{tmp_path}/jobs") as kernel:
        (handle,) = await kernel.resume()
        if outcome == "returns":
            assert (await handle.result()).output == "done"
        else:
            with pytest.raises(EffectError if outcome == "fails" else JobCancelled):
                await handle.result()
    assert paid == [1]


async def test_the_results_of_jobs_that_end_while_their_kernel_is_closed_are_told():
    ended, goes_on = [], asyncio.Event()

    async def f(ctx):
        await ctx.step(goes_on.wait, effect="read")
        return ctx.message

    kernel = RuntimeKernel.create(agent=f)
    handles = [await kernel.execute(ask(number)) for number in range(20)]

    async def told(handle):
        ended.append((await handle.result()).output)

    tasks = [asyncio.create_task(told(handle)) for handle in handles]
    goes_on.set()
    await kernel.close()
    await asyncio.gather(*tasks)
    assert sorted(ended) == [*range(20)]


async def test_a_key_whose_first_caller_gave_up_before_the_job_had_begun_begins_it_with_the_next():
    held = asyncio.Event()

    async def f(ctx):
        await ctx.step(held.wait, effect="read")
        return ctx.message

    async with RuntimeKernel.create(agent=f, max_jobs=1) as kernel:
        await kernel.execute(ask(1))
        first = asyncio.create_task(kernel.execute(ask(2, idempotency_key="k")))
        await asyncio.sleep(0)
        second = asyncio.create_task(kernel.execute(ask(2, idempotency_key="k")))
        await until(lambda: kernel.statistics()["waiting"] == 1)
        first.cancel()
        held.set()
        assert (await (await second).result()).output == 2
        assert first.cancelled()


async def test_a_key_that_several_ask_for_begins_nothing_when_the_kernel_is_closed_before_there_is_a_place():
    async def f(ctx):
        await ctx.step(asyncio.Event().wait, effect="read")

    kernel = RuntimeKernel.create(agent=f, max_jobs=1, stop_grace=0)
    await kernel.execute(ask(1))
    callers = [asyncio.create_task(kernel.execute(ask(2, idempotency_key="k"))) for _ in range(3)]
    await until(lambda: kernel.statistics()["waiting"] == 1)
    await kernel.close()
    async with asyncio.timeout(60):
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(each) for each in outcomes] == [UserError] * 3


@pytest.mark.parametrize("known", [False, True])
async def test_a_kernel_that_is_closed_while_it_looks_for_a_key_refuses_the_request(known):
    looks = threading.Event()
    goes_on = threading.Event()
    goes_on.set()

    class Slow(MemoryJournal):
        def job(self, job_id):
            found = super().job(job_id)
            looks.set()
            assert goes_on.wait(60)
            return found

    async def f(ctx):
        return ctx.message

    journal = Slow()
    if known:
        async with RuntimeKernel.create(agent=f, journal=journal) as kernel:
            await run(kernel, 1, idempotency_key="k")
    kernel = RuntimeKernel.create(agent=f, journal=journal, max_jobs=1, stop_grace=0)
    await kernel.start()
    looks.clear()
    goes_on.clear()
    caller = asyncio.create_task(kernel.execute(ask(1, idempotency_key="k")))
    await until(looks.is_set)
    await kernel.close()
    goes_on.set()
    with pytest.raises(UserError, match="was closed before the job had begun"):
        async with asyncio.timeout(60):
            await caller


async def test_a_key_is_asked_for_again_before_the_end_of_its_job_is_durable():
    """The second caller waited for ever: the mark of the job says that it runs until its END is on the disk."""

    class LateMarks(MemoryJournal):
        durable_before = 0

        async def flush(self):
            self.durable_before = self.storage.next
            return await super().flush()

        def job(self, job_id):
            mark = super().job(job_id)
            ended = [at.offset for at, entry in self.read(job_id) if isinstance(entry, End)]
            if mark is not None and ended and ended[-1] >= self.durable_before:
                return replace(mark, outcome="", ended_ms=0)
            return mark

    async def f(ctx):
        return ctx.message

    async with RuntimeKernel.create(agent=f, journal=LateMarks()) as kernel:
        first = await run(kernel, 1, idempotency_key="k")
        async with asyncio.timeout(60):
            again = await kernel.execute(ask(1, idempotency_key="k"))
            assert await again.result() == first


# -- places ---------------------------------------------------------------------------------------------------------------


async def test_no_more_jobs_run_at_once_than_may_and_execute_waits():
    running = most = 0

    @tool(effect="read")
    async def work():
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async def f(ctx):
        await ctx.call(work)
        await ctx.sleep(0.001)
        await ctx.call(work)

    async with RuntimeKernel.create(agent=f, max_jobs=3) as kernel:
        handles = await asyncio.gather(*(kernel.execute(ask(number)) for number in range(30)))
        await asyncio.gather(*(handle.result() for handle in handles))
        assert most <= 3
        assert kernel.statistics()["waiting"] == 0


async def test_jobs_that_are_parked_hold_no_place():
    async def f(ctx):
        return (await ctx.ask("confirm", {"n": ctx.message})).approved

    async with RuntimeKernel.create(agent=f, max_jobs=2) as kernel:
        handles = [await kernel.execute(ask(number)) for number in range(10)]
        await until(lambda: kernel.statistics()["parked"] == 10)
        for handle in handles:
            [action] = await handle.get_pending_actions()
            await handle.resolve_action(action.resume_token, {"approved": True})
        assert [(await handle.result()).output for handle in handles] == [True] * 10


async def test_jobs_that_have_ended_leave_the_kernel_and_after_a_while_its_journal():
    home = MemoryStorage()

    async def f(ctx):
        return ctx.message

    async with RuntimeKernel.create(agent=f, journal=MemoryJournal(home), keep_jobs=20, dedupe="1ms") as kernel:
        first = await kernel.execute(ask(0))
        await first.result()
        for number in range(1, 100):
            await run(kernel, number)
        await until(lambda: len(home.marks) <= 25)
        assert len(home.entries) <= 2 * 25
        assert kernel._host.handles == {}
        assert (await first.result()).output == 0
        with pytest.raises(UserError, match="none of this name"):
            await kernel.handle(first.job_id)
        with pytest.raises(UserError, match="forgotten"):
            [event async for event in first.events()]


# -- crashes --------------------------------------------------------------------------------------------------------------


def cut(home, count):
    """A journal with the first entries of another one, as a crash leaves it."""
    copy = MemoryStorage(home.clock)
    copy.identity, copy.key = home.identity, home.key
    whole = MemoryJournal(copy)
    for _, entry in list(MemoryReader(home).read())[:count]:
        whole.append(entry)
    whole.close()
    return copy


class Shop:
    """An agent that looks, pays and answers, and how often it has done so."""

    def __init__(self):
        self.paid = 0

        @tool(in_doubt="assume_done")
        async def pay() -> str:
            """Pays."""
            self.paid += 1
            return "paid"

        said = [calls("look"), calls("pay"), "all done"]
        self.engine, self.agent, self.provider = model(
            lambda spec: said[sum(each.role == "tool" for each in spec.messages)], tools=[look, pay], name="shop"
        )

    def kernel(self, journal):
        return RuntimeKernel.create(engine=self.engine, agent=self.agent, journal=journal, stop_grace=0)


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("count", range(1, 12))
async def test_after_a_crash_at_each_entry_nothing_unsafe_is_done_twice_and_no_answer_is_paid_twice(count):
    home, shop = MemoryStorage(), Shop()
    async with shop.kernel(MemoryJournal(home)) as kernel:
        whole = await run(kernel, "buy it", idempotency_key="k")
    recorded = [type(entry).__name__ for _, entry in MemoryReader(home).read()]
    assert recorded == ["Begin", *["Intent", "EffectResult"] * 5, "End"]
    after, journal = Shop(), MemoryJournal(cut(home, count))
    answered = sum(1 for at in (3, 7, 11) if count >= at)  # models' answers that the journal has
    async with after.kernel(journal) as kernel:
        [handle] = await kernel.resume()
        result = await handle.result()
        assert (result.content, result.turns, result.usage) == (whole.content, 3, whole.usage)
        assert len(after.provider.requests) == 3 - answered
        assert after.paid == (1 if count < 8 else 0)
        assert await kernel.resume() == []
        assert (await kernel.execute(ask("buy it", idempotency_key="k"))).job_id == handle.job_id
    journal.close()


async def test_the_events_of_jobs_that_had_ended_last_are_told_again_after_a_crash(tmp_path):
    async def f(ctx):
        return await ctx.step(_same, ctx.message, effect="read")

    bus, told = InMemoryEventBus(), []
    bus.on(told.append)
    async with RuntimeKernel.create(agent=f, journal=tmp_path, event_bus=bus) as kernel:
        await run(kernel, 1)
    await bus.flush()
    again, told_again = InMemoryEventBus(), []
    again.on(told_again.append)
    async with RuntimeKernel.create(agent=f, journal=tmp_path, event_bus=again) as kernel:
        assert await kernel.resume() == []
        assert await kernel.resume() == []
    await again.flush()
    assert len(told) == 5
    assert [event.event_id for event in told_again] == [event.event_id for event in told]


async def test_an_abandoned_kernel_leaves_its_jobs_to_the_next_one(tmp_path):
    """The first is never closed, as after a crash; only its claim is gone."""
    place = tmp_path / "jobs"
    shop = Shop()
    shop.provider.hold()
    kernel = shop.kernel(place)
    handle = await kernel.execute(ask("buy it"))
    await shop.provider.arrived(1)
    hosting = kernel._host._host
    hosting.stopping = True
    hosting.journal.close()
    after = Shop()
    async with after.kernel(place) as second:
        [found] = await second.resume()
        assert found.job_id == handle.job_id
        assert (await found.result()).content == "all done"
    assert after.paid == 1
    with suppress(UserError):  # of the journal, which is closed
        await kernel.close()


async def test_the_collector_of_garbage_runs_seldom_while_a_kernel_is_open():
    """It took a quarter of the processor's time, though jobs leave no cycles."""
    before = gc.get_threshold()
    _, agent, _ = model("yes")
    async with RuntimeKernel.create(agent=agent), RuntimeKernel.create(agent=agent) as kernel:
        assert gc.get_threshold()[0] >= 50_000
        await kernel.close()
        await kernel.close()
        assert gc.get_threshold()[0] >= 50_000
    assert gc.get_threshold() == before


async def test_a_job_that_is_open_and_not_resumed_stays_so_until_it_is(tmp_path):
    async def f(ctx):
        return (await ctx.ask("confirm", {})).approved

    async with RuntimeKernel.create(agent=f, journal=tmp_path) as kernel:
        first = await kernel.execute(ask(1, idempotency_key="a"))
        second = await kernel.execute(ask(2))
        await until(lambda: kernel.statistics()["parked"] == 2)
    async with RuntimeKernel.create(agent=f, journal=tmp_path) as kernel:
        with pytest.raises(UserError, match="not resumed"):
            await kernel.handle(first.job_id)
        found = await kernel.execute(ask(1, idempotency_key="a"))
        assert found.job_id == first.job_id
        with pytest.raises(UserError, match="none of this name"):
            await kernel.handle("kernel.f/other")
        [resumed] = await kernel.resume()
        assert resumed.job_id == second.job_id
        for action in await kernel.actions.find(statuses=[ActionStatus.PENDING]):
            await kernel.actions.resolve(action.resume_token, {"approved": True})
        assert [(await each.result()).output for each in (found, resumed)] == [True, True]


async def test_a_job_that_goes_on_because_its_key_comes_again_takes_its_children_with_it(tmp_path):
    async def child(ctx):
        return (await ctx.ask("confirm", {})).approved

    async def middle(ctx):
        return await ctx.child(child, ctx.message)

    async def parent(ctx):
        return await ctx.child(middle, ctx.message)

    agents = [parent, middle, child]
    async with RuntimeKernel.create(agent=agents, journal=tmp_path) as kernel:
        await kernel.execute(ask(1, idempotency_key="a"))
        other = await kernel.execute(ask(2))
        await until(lambda: kernel.statistics()["parked"] == 6)
    async with RuntimeKernel.create(agent=agents, journal=tmp_path) as kernel:
        handle = await kernel.execute(ask(1, idempotency_key="a"))
        await until(lambda: kernel.statistics()["parked"] == 3)
        for action in await kernel.actions.find(statuses=[ActionStatus.PENDING]):
            await kernel.actions.resolve(action.resume_token, {"approved": True})
        async with asyncio.timeout(60):
            assert (await handle.result()).output is True
        assert [each.job_id for each in await kernel.resume()] == [other.job_id + end for end in ("", "~1", "~1~1")]


async def test_a_child_that_had_ended_before_its_parent_was_told_is_not_done_again():
    home, made = MemoryStorage(), []

    async def pays():
        made.append(1)
        return "paid"

    async def child(ctx):
        return await ctx.step(pays, effect="idempotent")

    async def parent(ctx):
        return await ctx.child(child, 1)

    async with RuntimeKernel.create(agent=[parent, child], journal=MemoryJournal(home)) as kernel:
        await run(kernel, 1)
    words = [type(entry).__name__ for _, entry in MemoryReader(home).read()]
    assert words == ["Begin", "Intent", "Begin", "Intent", "EffectResult", "End", "EffectResult", "End"]
    for count in range(1, len(words)):
        made.clear()
        async with RuntimeKernel.create(agent=[parent, child], journal=MemoryJournal(cut(home, count))) as kernel:
            handles = await kernel.resume()
            assert (await handles[0].result()).output == "paid"
        assert len(made) == (1 if count < 5 else 0), count


# -- other kernels --------------------------------------------------------------------------------------------------------


async def test_a_question_is_answered_by_a_kernel_that_has_not_the_journal(tmp_path):
    async def f(ctx):
        return (await ctx.ask("confirm", {"amount": 5}, timeout="1h")).by

    async with RuntimeKernel.create(agent=f, journal=tmp_path / "jobs") as kernel:
        handle = await kernel.execute(ask(1))
        other = RuntimeKernel.create(agent=f, journal=tmp_path / "jobs")
        async with asyncio.timeout(PATIENCE):  # the job is parked a moment before its question is on disk
            while not (found := await other.actions.find(job_id=handle.job_id)):  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        [action] = found
        assert (action.status, action.payload) == (ActionStatus.PENDING, {"amount": 5})
        await other.actions.resolve(action.resume_token, {"approved": True}, by="ann")
        with pytest.raises(LetterRefused):
            await other.actions.resolve(action.resume_token, {"approved": False})
        assert (await handle.result()).output == "ann"
        with pytest.raises(AppLocked, match="jobs belongs to process"):
            await other.execute(ask(2))
    async with other:
        assert (await (await other.handle(handle.job_id)).result()).output == "ann"


async def test_open_jobs_of_an_agent_that_is_gone_refuse_the_start(tmp_path):
    async def f(ctx):
        await ctx.wait("never")

    async def g(ctx):
        return None

    async with RuntimeKernel.create(agent=f, journal=tmp_path) as kernel:
        await kernel.execute(ask(1))
    with pytest.raises(UserError, match=r"kernel\.f"):
        await RuntimeKernel.create(agent=g, journal=tmp_path).start()
    async with RuntimeKernel.create(agent=[g, f], journal=tmp_path) as kernel:
        assert len(await kernel.resume()) == 1


async def test_two_kernels_of_a_process_have_neither_one_journal_nor_one_uncounted_ledger(tmp_path):
    """Each made the calls of all jobs of the journal, and each let a tenant use the whole budget."""

    async def work(ctx):
        return "done"

    with closing(open_journal(tmp_path / "jobs", app="shop")) as journal:
        first, second = (RuntimeKernel.create(agent=work, name="shop", journal=journal) for _ in range(2))
        await run(first)
        with pytest.raises(AppLocked, match=r"belongs to kernel shop of this process(.|\n)*close that one first"):
            await second.start()
        await first.close()
        assert (await run(second)).output == "done"
        await second.close()
    budgets = [Budget("*", max_calls_daily=1)]
    for writers in ([SqliteLedgerWriter(tmp_path / "ledger.db") for _ in range(2)], [InMemoryLedgerWriter()] * 2):
        first, second = (RuntimeKernel.create(agent=work, budgets=budgets, ledger_writer=each) for each in writers)
        async with first:
            with pytest.raises(AppLocked, match="counts budgets over these rows by itself"):
                await second.start()
        again = RuntimeKernel.create(agent=work, budgets=budgets, ledger_writer=writers[1])
        assert (await run(again)).output == "done"
        await again.close()


async def test_a_start_that_is_given_up_leaves_the_journal_to_the_next_one(tmp_path, monkeypatch):
    opening, goes_on = threading.Event(), threading.Event()

    def slow(*given, **options):
        opening.set()
        assert goes_on.wait(60)
        return open_journal(*given, **options)

    async def f(ctx):
        return ctx.message

    monkeypatch.setattr("sabot.agents.kernel.kernel.open_journal", slow)
    first = asyncio.create_task(RuntimeKernel.create(agent=f, journal=tmp_path).start())
    await until(opening.is_set)
    first.cancel()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    async with RuntimeKernel.create(agent=f, journal=tmp_path) as kernel:
        assert (await run(kernel, 1)).output == 1


async def test_a_close_that_is_cancelled_closes_the_journal_all_the_same(tmp_path):
    ended = asyncio.Event()

    async def ends():
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def f(ctx):
        if ctx.message == 1:
            await ctx.step(ends, effect="read")

    kernel = RuntimeKernel.create(agent=f, journal=tmp_path, stop_grace="100ms")
    await kernel.execute(ask(1))
    await until(lambda: kernel.statistics()["in_flight"] == 1)
    closing = asyncio.create_task(kernel.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert ended.is_set()
    async with RuntimeKernel.create(agent=f, journal=tmp_path) as kernel:
        assert (await run(kernel, 2)).output is None


async def test_a_journal_that_fails_ends_the_kernel_and_all_who_wait_are_told():
    class Breaks(MemoryJournal):
        broken = False

        def append(self, entry):
            if self.broken:
                raise JournalFailed("the disk is gone")
            return super().append(entry)

    async def f(ctx):
        await ctx.ask("confirm", {})

    journal = Breaks()
    kernel = RuntimeKernel.create(agent=f, journal=journal, max_jobs=1)
    handle = await kernel.execute(ask(1))
    await until(lambda: kernel.statistics()["parked"])
    waiting = asyncio.create_task(handle.result())
    await asyncio.sleep(0)
    journal.broken = True
    with pytest.raises(JournalFailed):
        await kernel.execute(ask(2))
    with pytest.raises(JournalFailed):
        await waiting
    with pytest.raises(JournalFailed):
        await kernel.execute(ask(3))
    with pytest.raises(JournalFailed):
        await kernel.close()


# -- what a program forgets -----------------------------------------------------------------------------------------------


async def waits_for_go(ctx):
    return await ctx.wait("go")


async def says(ctx):
    return ctx.message


async def left_open(place, count=2):
    """The ids of jobs that a kernel before has left open."""
    async with RuntimeKernel.create(agent=waits_for_go, journal=place) as kernel:
        handles = [await kernel.execute(ask(each)) for each in range(count)]
        await until(lambda: kernel.statistics()["parked"] == count)
    return [each.job_id for each in handles]


def warnings_of(caplog):
    return [each.getMessage() for each in caplog.records if each.name == "sabot.agents.kernel.hosting"]


async def test_a_kernel_that_takes_an_answer_for_a_job_that_it_has_not_resumed_says_so_once(tmp_path, caplog):
    caplog.set_level("INFO")
    first, second = await left_open(tmp_path)
    async with RuntimeKernel.create(agent=waits_for_go, journal=tmp_path) as kernel:
        await kernel.start()
        (said,) = warnings_of(caplog)
        assert "2 open jobs: await kernel.resume() goes on with what is open" in said
        await kernel.jobs.signal(first, "go", 1)
        await until(lambda: len(warnings_of(caplog)) == 2)
        assert f"job {first} has got a signal, and nothing follows: " in warnings_of(caplog)[1]
        assert "has 2 open jobs from before the start of the kernel" in warnings_of(caplog)[1]
        assert "`await kernel.resume()`" in warnings_of(caplog)[1]
        await kernel.jobs.signal(second, "go", 2)
        found = await kernel.resume()
        assert [(await each.result()).output for each in found] == [1, 2]
    assert len(warnings_of(caplog)) == 2


async def test_one_open_job_is_told_in_the_singular(tmp_path, caplog):
    caplog.set_level("INFO")
    kernel = RuntimeKernel.create(agent=waits_for_go, journal=tmp_path)
    await kernel.execute(ask(1))
    await until(lambda: kernel.statistics()["parked"] == 1)
    await kernel.close()
    async with RuntimeKernel.create(agent=waits_for_go, journal=tmp_path) as kernel:
        await kernel.execute(ask(2))
    assert "has 1 open job: await" in caplog.text
    assert "has 1 open job from before the start" in caplog.text


async def test_a_handle_has_the_questions_of_its_children_too():
    async def top(ctx):
        return await asyncio.gather(ctx.child("middle", 1), ctx.ask("confirm", {"of": "top"}))

    async def middle(ctx):
        return await ctx.child("below", 1)

    async def below(ctx):
        return (await ctx.ask("confirm", {"of": "below"})).resolution["approved"]

    async with RuntimeKernel.create(agent=[top, middle, below]) as kernel:
        first, second = [await kernel.execute(ask(each)) for each in (1, 2)]
        await until(lambda: kernel.statistics()["parked"] == 6)
        for handle in (first, second):
            found = {each.payload["of"]: each for each in await handle.get_pending_actions()}
            assert {name: each.job_id for name, each in found.items()} == {
                "top": handle.job_id,
                "below": f"{handle.job_id}~1~1",
            }
            for each in found.values():
                await handle.resolve_action(each.resume_token, {"approved": True})
            assert (await handle.result()).output[0] is True
            assert await handle.get_pending_actions() == []


async def test_a_kernel_that_begins_jobs_beside_old_ones_that_it_has_not_resumed_says_so_once(tmp_path, caplog):
    await left_open(tmp_path)
    async with RuntimeKernel.create(agent=[says, waits_for_go], journal=tmp_path) as kernel:
        assert [(await run(kernel, each)).output for each in range(2)] == [0, 1]
    (said,) = warnings_of(caplog)
    assert "has 2 open jobs from before the start of the kernel" in said


async def test_a_kernel_that_resumes_its_jobs_warns_of_nothing(tmp_path, caplog):
    (job_id,) = await left_open(tmp_path, 1)
    async with RuntimeKernel.create(agent=[waits_for_go, says], journal=tmp_path) as kernel:
        [handle] = await kernel.resume()
        await kernel.jobs.signal(job_id, "go", 1)
        await handle.result()
        await run(kernel, 1, agent="says")
    assert warnings_of(caplog) == []


def test_a_second_event_loop_is_told_that_the_kernel_belongs_to_another_one(tmp_path):
    kernel = RuntimeKernel.create(agent=says, journal=tmp_path)
    assert asyncio.run(run(kernel, 1)).output == 1
    for use in (run(kernel, 2), kernel.resume(), kernel.start(), kernel.handle("job")):
        with pytest.raises(UserError, match="kernel kernel was started on another event loop, that has ended") as error:
            asyncio.run(use)
        assert "use it within one asyncio.run(main())" in str(error.value)
    asyncio.run(kernel.close())  # lets go of the journal
    assert asyncio.run(run(RuntimeKernel.create(agent=says, journal=tmp_path), 3)).output == 3


async def test_a_kernel_is_not_closed_by_another_loop_while_its_own_runs():
    async with RuntimeKernel.create(agent=says) as kernel:
        with pytest.raises(UserError, match="on another event loop, that runs elsewhere"):
            await asyncio.to_thread(lambda: asyncio.run(kernel.close()))
        assert (await run(kernel, 1)).output == 1


async def test_a_wait_that_is_over_says_for_what_it_waited():
    async def waits(ctx):
        await ctx.wait("paid", timeout="20ms")

    async with RuntimeKernel.create(agent=waits) as kernel:
        with pytest.raises(TimeoutError, match=r"job kernel\.waits/.*: no signal 'paid' came within 20ms"):
            await run(kernel, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"agent": 5}, "agent=5.*an Agent, `async def f"),
        ({"agent": "agent"}, "agent='agent'"),
        ({"agent": partial(_same)}, "has no name"),
        ({"agent": tool(name="_same")(lambda value: value)}, r"tool _same is no agent.*ctx\.call\(_same"),
        ({"agent": _same, "engine": 5}, "engine=5"),
        ({"agent": _same, "policy": 3}, "policy=3.*a PolicyEngine"),
        ({"agent": _same, "policy": [ToolPolicy(["look"], denied=True)]}, "policy=.*a PolicyEngine"),
        ({"agent": _same, "event_bus": 3}, "event_bus=3.*an InMemoryEventBus"),
        ({"agent": _same, "journal": 3}, "journal=3.*a folder"),
        ({"agent": _same, "journal": ""}, "journal=''"),
        ({"agent": _same, "budgets": Budget("a", max_calls_daily=1)}, "budgets=Budget"),
        ({"agent": _same, "budgets": [3]}, "3 is no Budget"),
        ({"agent": _same, "ledger_writer": 3}, "3 is no LedgerWriter: it has no write"),
        ({"agent": _same, "budgets": [], "ledger_writer": Ledger(InMemoryLedgerWriter())}, "it has no write"),
        ({"agent": []}, "its agents are none"),
        ({"agent": [_same, _same]}, "its agents are _same, _same"),
        ({"agent": _same, "max_jobs": 0}, "max_jobs"),
        ({"agent": _same, "dedupe": "soon"}, "dedupe"),
    ],
)
def test_a_wrong_kernel_is_refused_with_what_is_wrong(options, said):
    with pytest.raises(UserError, match=said):
        RuntimeKernel.create(**options)


def test_a_request_without_a_scope_has_the_default_one_and_a_wrong_one_is_refused():
    context = ask("go", principal_id="me").context("job-1")
    assert (context.scope_id, context.principal_id, context.job_id) == ("default", "me", "job-1")
    with pytest.raises(UserError, match="scope_id"):
        ask("go", scope_id="")
    for wrong, said in (
        ({"max_turns": -4}, "max_turns=-4"),
        ({"max_turn": 0}, "there is no limit max_turn"),  # it was taken, and limited nothing
        (3, "budgets=3"),
    ):
        with pytest.raises(UserError, match=said):
            ask("go", budgets=wrong)
    with pytest.raises(UserError, match="metadata=3"):
        ask("go", metadata=3)
    for name in ("idempotency_key", "key", "session_id"):
        with pytest.raises(UserError, match=f"{name}='': it is empty"):
            ask("go", **{name: ""})
    assert ask("go", budgets=None).budgets == BudgetSpec()
    assert ask("go", budgets={"max_turns": 4}).budgets == BudgetSpec(max_turns=4)


async def test_a_handle_answers_no_question_of_a_job_that_is_not_below_its_own():
    """A server that passes tokens on to the handle of its customer's job approved the payment of another customer."""
    paid = []

    @tool
    async def pay(to: str) -> None:
        paid.append(to)

    async def desk(ctx):
        await ctx.call(pay, ctx.message)

    async def office(ctx):
        await ctx.child(desk, "child")

    policy = PolicyEngine([ToolPolicy(["pay"], require_approval=True)])
    async with RuntimeKernel.create(agent=[desk, office], policy=policy) as kernel:
        ours = await kernel.execute(ask("ours", agent="desk", scope_id="A"))
        other = await kernel.execute(ask("other", agent="desk", scope_id="B"))
        parent = await kernel.execute(ask("-", agent="office", scope_id="A"))

        async def token_of(handle):
            for _ in range(6000):
                if found := await handle.get_pending_actions():
                    return found[0].resume_token
                await asyncio.sleep(0.01)
            raise AssertionError("nobody was asked")

        token, childs = await token_of(other), await token_of(parent)
        for wrong in (token, childs, "no token"):
            with pytest.raises(LetterRefused, match=f"no question of job {ours.job_id} or of its children") as refused:
                await ours.resolve_action(wrong, {"approved": True})
            assert refused.value.reason == "unknown"
        await parent.resolve_action(childs, {"approved": True})
        await parent.result()
        assert paid == ["child"]
        with pytest.raises(LetterRefused) as refused:
            await parent.resolve_action(childs, {"approved": True})
        assert refused.value.reason == "second"
        await kernel.actions.resolve(token, {"approved": True})
        await other.result()
        await ours.cancel()
    assert paid == ["child", "other"]
