"""Jobs over a journal: effects once, replay, parking, doubt, order. Without an app: `hosting` is their agent."""

import asyncio
import contextlib
import gc
import random
import uuid
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from unit.jobs.hosting import AGENT, Agent, entries, hosting, prefix

from sabot.agents.durable.context import DurableContext
from sabot.agents.policy.auditing import audit_job
from sabot.clock import ManualClock
from sabot.engine.calls.effects import Reconciled
from sabot.engine.calls.tool_context import Effect
from sabot.engine.calls.tools import tool
from sabot.errors import EffectError, NotSent, TransientError, UserError
from sabot.jobs.core import SEQUENCES_APART, job_seed
from sabot.jobs.history import NOT_MADE, History
from sabot.jobs.run import JobRun
from sabot.jobs.values import pack, unpack
from sabot.journal import Letter, Position
from sabot.journal.entries import UNSENT, Attempt, Begin, Cancel, EffectResult, End, Intent, encode_entry
from sabot.journal.memory import MemoryJournal, MemoryReader, MemoryStorage


class World:
    """What really happened, by name."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()

    def tool(self, name: str, **options: Any) -> Any:
        @tool(name=name, **options)
        async def make(value: Any = None) -> Any:
            self.made[f"{name} {value}"] += 1
            await asyncio.sleep(0)
            return {"made": value}

        return make


async def test_an_effect_is_in_the_journal_before_and_after() -> None:
    world, home = World(), MemoryStorage()
    pay = world.tool("pay")

    async def f(ctx: DurableContext) -> Any:
        return [await ctx.call(pay, ctx.message), ctx.job_id]

    async with hosting(home, Agent(f)) as jobs:
        jobs.begin("j1", 7)
        await jobs.over("j1")
        assert jobs.agent.done == {"j1": [{"made": 7}, "j1"]}
    kinds = [type(entry).__name__ for entry in entries(home)]
    assert kinds == ["Begin", "Intent", "EffectResult", "End"]


STEPS = 4


def agent_of(world: World) -> Agent:
    """Every kind of effect, in turn and at once."""
    read, pay, put = world.tool("read", effect="read"), world.tool("pay"), world.tool("put", effect="idempotent")

    async def f(ctx: DurableContext) -> Any:
        seen = [await ctx.call(read, 1)]
        seen += await asyncio.gather(ctx.call(pay, 1), ctx.call(put, 1), ctx.call(read, 2))
        number, name = ctx.random().random(), str(ctx.uuid())
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ctx.call(pay, value)) for value in (2, 3)]
        await ctx.sleep(0.001)
        seen += [task.result() for task in tasks]
        return [seen, number, name]

    return Agent(f)


async def test_killed_after_each_entry_the_same_answer_comes_and_nothing_unsafe_is_done_twice() -> None:
    whole, home = World(), MemoryStorage()
    async with hosting(home, agent_of(whole)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        answer = jobs.agent.done["j"]
    assert set(whole.made.values()) == {1}
    written = entries(home)
    for count in range(1, len(written) + 1):
        world = World()
        before = {
            (entry.name, entry.ordinal)
            for entry in written[:count]
            if isinstance(entry, Intent) and entry.kind == "call"
        }
        known = {entry.ordinal for entry in written[:count] if isinstance(entry, EffectResult)}
        async with hosting(prefix(home, count), agent_of(world)) as jobs:
            doubtful = {ordinal for name, ordinal in before if name == "pay" and ordinal not in known}
            for _ in doubtful:  # a person says that these were done
                await jobs.until(lambda: open_questions(jobs))
                token = open_questions(jobs)[0]
                jobs.journal.post(
                    Letter("answer", token, body=b'{"outcome": "done", "result": {"made": %d}}' % amount(jobs, token))
                )
                await jobs.until(lambda token=token: token not in open_questions(jobs))
            await jobs.over("j")
            assert jobs.agent.done["j"] == answer, count
        for name, ordinal in before:
            if ordinal in known or name == "pay":
                asked = next(e for e in written if isinstance(e, Intent) and e.ordinal == ordinal)
                assert world.made[f"{name} {value_of(asked)}"] == 0, (count, name)


def value_of(intent: Intent) -> Any:
    return unpack(intent.body)[0][0]  # type: ignore[arg-type]


def open_questions(jobs: Any) -> list[str]:
    home = jobs.journal.storage
    return [token for token, question in home.questions.items() if not question.closed]


def amount(jobs: Any, token: str) -> int:
    ordinal = jobs.journal.storage.questions[token].ordinal
    return int(
        next(
            value_of(e)
            for e in entries(jobs.journal.storage)
            if isinstance(e, Intent) and e.ordinal == ordinal and e.kind == "call"
        )
    )


async def test_a_tool_gets_what_its_intent_says_whoever_changes_the_arguments() -> None:
    home, got = MemoryStorage(), []

    @dataclass
    class Place:
        name: str

    @tool(effect="read", retries=1, backoff=0)
    async def send(items: list[int], where: Place, options: dict[str, Any]) -> None:
        got.append((list(items), where.name, options["to"][0]))
        items.append(9)
        where.name = options["to"][0] = "elsewhere"
        if len(got) == 1:
            raise ConnectionResetError

    async def function(ctx: Any) -> Any:
        items, where, options = [1], Place("here"), {"to": ["ann"]}
        call = asyncio.ensure_future(ctx.call(send, items, where, options=options))
        await asyncio.sleep(0)  # it is asked for
        items.append(2)
        where.name = options["to"][0] = "nowhere"
        await call
        return [items, where.name, options]

    agent = Agent(function)
    async with hosting(home, agent) as jobs:
        jobs.begin("a")
        await jobs.over("a")
    assert agent.done["a"] == [[1, 2], "nowhere", {"to": ["nowhere"]}]
    assert got == [([1], "here", "ann")] * 2


async def test_a_question_parks_its_job_and_an_answer_wakes_it() -> None:
    home = MemoryStorage()

    async def f(ctx: DurableContext) -> Any:
        answer = await ctx.ask("confirm", {"message": "Refund?"}, timeout="2d")
        return [answer.approved, dict(answer.resolution), answer.by]

    async with hosting(home, Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        assert jobs.host.statistics()["parked"] == 1
        (token,) = open_questions(jobs)
    async with hosting(home, Agent(f)) as jobs:  # after a restart too
        await jobs.parks("j")
        jobs.journal.post(Letter("answer", token, body=b'{"approved": true}', by="ann"))
        await jobs.over("j")
        assert jobs.agent.done["j"] == [True, {"approved": True}, "ann"]


async def test_a_question_with_a_set_is_the_same_question_after_a_restart() -> None:
    """Another process has the set in another order: the job was blocked, although its code was the same."""
    home, ids = MemoryStorage(), {0, 8}

    async def f(ctx: DurableContext) -> Any:
        return (await ctx.ask("confirm", {"ids": ids})).approved

    async with hosting(home, Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        (token,) = open_questions(jobs)
    ids = {8, 0}
    async with hosting(home, Agent(f)) as jobs:
        await jobs.parks("j")
        jobs.journal.post(Letter("answer", token, body=b'{"approved": true}'))
        await jobs.over("j")
        assert jobs.agent.done == {"j": True}


async def test_a_job_that_parks_or_ends_leaves_nothing_to_the_garbage_collector() -> None:
    """With 100,000 parked jobs each collection stopped all others for a third of a second."""
    home, runs = MemoryStorage(), []
    look = World().tool("look", effect="read")

    async def f(ctx: DurableContext) -> Any:
        runs.append(weakref.ref(ctx._job))
        runs.append(weakref.ref(ctx._job.loop))
        runs.append(weakref.ref(asyncio.current_task()))
        async with asyncio.timeout(3600):
            await ctx.call(look)
            return (await ctx.ask("confirm", {})).approved

    def left() -> list[Any]:
        return [each for each in runs if each() is not None]

    gc.collect()
    gc.disable()
    try:
        async with hosting(home, Agent(f)) as jobs:
            jobs.begin("j")
            await jobs.parks("j")
            await jobs.until(lambda: not left())
            (token,) = home.questions
            jobs.journal.post(Letter("answer", token, body=b'{"approved": true}'))
            await jobs.over("j")
            assert jobs.agent.done == {"j": True}
            assert len(runs) == 6
            await jobs.until(lambda: not left())
    finally:
        gc.enable()


class Notes(dict[str, bytes]):
    """Of parked jobs, in memory."""

    put = dict.__setitem__

    def remove(self, job_id: str) -> None:
        self.pop(job_id, None)


async def sleeps_and_asks(ctx: DurableContext) -> Any:
    first = await ctx.wait("go")
    await ctx.sleep(60)
    answer = await ctx.ask("confirm", {}, timeout=3600)
    return [first, answer.outcome]


async def test_a_job_that_is_parked_as_in_the_checkpoint_is_run_when_it_wakes_and_not_before() -> None:
    """Each of these lives ends where the job is parked, and the next one wakes it by something else: a signal, a timer, a deadline."""
    home, clock, runs = MemoryStorage(ManualClock()), ManualClock(), []
    home.clock = clock
    notes: Notes = Notes()

    async def f(ctx: DurableContext) -> Any:
        runs.append(ctx.job_id)
        return await sleeps_and_asks(ctx)

    agent = Agent(f, clock=clock)
    async with hosting(home, agent, notes=notes) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
    wakes: list[Any] = [
        lambda jobs: jobs.journal.post(Letter("signal", "1", job="j", name="go", body=b"1")),
        lambda jobs: clock.advance(61),
        lambda jobs: clock.advance(3601),
    ]
    for number, wake in enumerate(wakes):
        agent = Agent(f, clock=clock)
        async with hosting(home, agent, notes=notes) as jobs:
            assert jobs.rested == ["j"]
            assert jobs.host.statistics()["parked"] == 1
            assert len(runs) == number + 1
            jobs.journal.post(Letter("signal", f"other {number}", job="j", name="another"))
            wake(jobs)
            if number < 2:
                await jobs.parks("j", wakes=1)
            else:
                await jobs.over("j")
    assert agent.done == {"j": [1, "expired"]}
    assert len(runs) == 4
    assert not notes


async def test_a_job_to_which_something_has_come_since_the_checkpoint_is_run_over_it() -> None:
    home = MemoryStorage()
    notes: Notes = Notes()
    async with hosting(home, Agent(sleeps_and_asks), notes=notes) as jobs:
        for job in ("still", "signalled", "gone on", "without a note"):
            jobs.begin(job)
            await jobs.parks(job)
        cut = Notes(notes)
        del cut["without a note"]
        jobs.journal.post(Letter("signal", "1", job="signalled", name="another"))
        jobs.journal.post(Letter("signal", "2", job="gone on", name="go"))
        await jobs.parks("gone on", wakes=1)
    assert notes.keys() == {"still", "signalled", "gone on", "without a note"}
    cut["never begun"] = cut["still"]
    agent = Agent(sleeps_and_asks)
    async with hosting(home, agent, notes=cut) as jobs:
        assert jobs.rested == ["still"]
        await jobs.until(lambda: agent.sleeping == {"still", "signalled", "gone on", "without a note"})
    assert cut.keys() == {"still", "signalled", "gone on", "without a note"}


async def test_new_code_runs_over_the_history_of_a_parked_job_at_the_start() -> None:
    home, notes = MemoryStorage(), Notes()
    async with hosting(home, Agent(sleeps_and_asks), notes=notes) as jobs:
        jobs.begin("j")
        await jobs.parks("j")

    async def other(ctx: DurableContext) -> Any:
        return await ctx.wait("another")

    agent = Agent(other, code="2")
    async with hosting(home, agent, notes=notes) as jobs:
        await jobs.over("j")
    assert agent.blocks.keys() == {"j"}
    assert not notes


@pytest.mark.parametrize("waits", ["child", "doubt", "letter"])
async def test_a_job_whose_wait_needs_more_than_a_wake_up_is_not_noted(waits: str) -> None:
    """A child may have to be begun again, an effect in doubt has more than a question, and a letter may not have arrived."""
    home, notes = MemoryStorage(), Notes()
    held = asyncio.Event()

    @tool(effect="unsafe")
    async def pay() -> None:
        raise TimeoutError

    async def f(ctx: DurableContext) -> Any:
        if waits == "child" and ctx.message == "parent":
            await ctx.child("agent", "child")
        elif waits == "doubt":
            await ctx.call(pay)
        elif waits == "letter":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await ctx.ask("confirm", {})
        await ctx.wait("go")

    async with hosting(home, Agent(f), notes=notes) as jobs:
        if waits == "letter":  # the withdrawal is not posted before it may
            post = jobs.journal.flush

            async def flush() -> Any:
                if jobs.host._letters.under_way("j"):
                    await held.wait()
                return await post()

            jobs.journal.flush = flush
        jobs.begin("j", "parent")
        await jobs.parks("j")
        assert "j" not in notes
        held.set()
        if waits == "letter":  # it is noted when nothing is under way
            await jobs.until(lambda: "j" in notes)


async def test_a_question_that_nobody_answers_expires_by_the_clock() -> None:
    clock = ManualClock()
    home = MemoryStorage(clock)

    async def f(ctx: DurableContext) -> Any:
        answer = await ctx.ask("confirm", {}, timeout="1h")
        return [answer.approved, answer.expired, ctx.now()]

    async with hosting(home, Agent(f, clock)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        clock.advance(3601)
        await jobs.over("j")
        assert jobs.agent.done["j"] == [False, True, round(clock.time() * 1000)]


async def test_a_job_sleeps_parked_and_a_timeout_ends_a_wait() -> None:
    clock = ManualClock()

    async def f(ctx: DurableContext) -> Any:
        began = ctx.now()
        await ctx.sleep("1h")
        slept = ctx.now() - began
        try:
            await ctx.wait("go", timeout="1m")
        except TimeoutError:
            return [slept, "late"]

    async with hosting(MemoryStorage(clock), Agent(f, clock)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        clock.advance(3600)
        await jobs.parks("j", wakes=1)
        clock.advance(60)
        await jobs.over("j")
        assert jobs.agent.done["j"] == [3_600_000, "late"]


async def test_signals_come_in_order_also_before_they_are_waited_for() -> None:
    async def f(ctx: DurableContext) -> Any:
        await ctx.wait("start")
        return [await ctx.wait("item"), await ctx.wait("item")]

    async with hosting(MemoryStorage(), Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        for number, (name, body) in enumerate([("item", b"1"), ("item", b"2"), ("start", b"")]):
            jobs.journal.post(Letter("signal", str(number), "j", name, body))
        await jobs.over("j")
        assert jobs.agent.done["j"] == [1, 2]


async def test_a_cancel_is_raised_once_where_the_job_waits_and_it_may_clean_up() -> None:
    world = World()
    undo = world.tool("undo")

    async def f(ctx: DurableContext) -> Any:
        try:
            await ctx.sleep("1h")
        except asyncio.CancelledError:
            await ctx.call(undo, 1)
            raise

    async with hosting(MemoryStorage(), Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        jobs.journal.post(Letter("cancel", job="j", name="enough"))
        await jobs.over("j")
        assert (jobs.agent.outcomes["j"], world.made) == ("cancelled", {"undo 1": 1})


async def cancelled_in_a_call(pay: Any, agent: Agent, made: list[str]) -> MemoryStorage:
    """The journal of a job that was cancelled while it called `pay`, killed before the call has returned."""
    home = MemoryStorage()
    async with hosting(home, agent) as jobs:
        jobs.begin("j")
        await jobs.until(lambda: made)
        jobs.journal.post(Letter("cancel", job="j", name="enough"))
        await jobs.until(lambda: any(isinstance(entry, Cancel) for entry in entries(home)))
        home = prefix(home, 3)
    made.clear()
    return home


@pytest.mark.parametrize("effect", ["unsafe", "reconcilable", "idempotent"])
async def test_a_call_that_a_cancelled_job_awaits_no_longer_is_made_again_only_if_that_is_harmless(effect: str) -> None:
    """A job was cancelled while it called a payment, and killed. At the next start a person said that the payment was
    not done, and it was made, though its job was cancelled and no function waited for it.
    """
    made: list[str] = []

    async def look(effect: Any) -> Reconciled:
        return Reconciled.NOT_DONE

    options: dict[str, Any] = {"reconcile": look} if effect == "reconcilable" else {"effect": effect}

    keys: set[str] = set()

    @tool(**options)
    async def pay(effect: Effect) -> str:
        made.append("pay")
        keys.add(effect.key)
        if len(made) == 1 and not again:
            await asyncio.Event().wait()
        return "paid"

    async def f(ctx: DurableContext) -> Any:
        return await ctx.call(pay)

    again = False
    home = await cancelled_in_a_call(pay, Agent(f), made)
    again = True
    async with hosting(home, Agent(f)) as jobs:
        if effect == "unsafe":
            await jobs.parks("j")
            (token,) = open_questions(jobs)
            jobs.journal.post(Letter("answer", token, body=b'{"outcome": "not_done"}'))
        await jobs.over("j")
        assert jobs.agent.outcomes["j"] == "cancelled"
    assert made == (["pay"] if effect == "idempotent" else [])
    made.clear()
    async with hosting(home, Agent(f)) as jobs:  # the job is sent back: what was not made is made now
        await jobs.until(lambda: jobs.agent.before)
        jobs.host.begin(AGENT, "j", record=pack(None, "input"), key=b"", digest=b"", run=2)
        await jobs.over("j")
        assert jobs.agent.done["j"] == "paid"
    assert made == ([] if effect == "idempotent" else ["pay"])
    assert len(keys) == 1  # a service that honours the key would refuse what an earlier attempt of the job has done


async def test_a_call_that_was_not_sent_is_not_sent_again_when_its_job_awaits_it_no_longer() -> None:
    made: list[str] = []
    refuse = asyncio.Event()

    @tool(retries=3, backoff="1ms")
    async def pay() -> None:
        made.append("pay")
        await refuse.wait()
        raise NotSent("the line is busy")

    async def f(ctx: DurableContext) -> Any:
        await ctx.call(pay)

    home = MemoryStorage()
    async with hosting(home, Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.until(lambda: made)
        jobs.journal.post(Letter("cancel", job="j", name="enough"))
        await jobs.until(lambda: any(isinstance(entry, Cancel) for entry in entries(home)))
        refuse.set()
        await jobs.over("j")
    assert (jobs.agent.outcomes["j"], made) == ("cancelled", ["pay"])
    assert [entry.outcome for entry in entries(home) if isinstance(entry, EffectResult)] == ["NotSent"]


class BusyLine:
    """A payment that is not sent at first, and then waits for its next attempt."""

    def __init__(self, effect: str = "unsafe", *, calls: int = 2) -> None:
        """`calls`: the number of the call that is sent."""
        self.made = self.looked = 0
        self.noted = effect != "idempotent"  # True if the journal says which attempts were not sent

        async def look(_: Effect) -> bool:
            self.looked += 1
            return False

        @tool(effect=effect, retries=3, backoff="1h", reconcile=look if effect == "reconcilable" else None)
        async def pay() -> str:
            self.made += 1
            if self.made < calls:
                raise NotSent("the line is busy")
            return "paid"

        self.pay = pay

    async def agent(self, ctx: DurableContext) -> Any:
        return await ctx.call(self.pay)

    async def killed_in_the_back_off(self, jobs: Any, home: MemoryStorage) -> MemoryStorage:
        def is_known() -> bool:
            unsent = [entry.attempt for entry in entries(home) if isinstance(entry, Attempt) and entry.note == UNSENT]
            return not self.noted or self.made in unsent

        await jobs.until(lambda: self.made and not jobs.host.statistics()["in_flight"] and is_known())
        return prefix(home, len(entries(home)))


def questions_in(home: MemoryStorage) -> list[str]:
    return [entry.name for entry in entries(home) if isinstance(entry, Intent) and entry.kind == "ask"]


@pytest.mark.parametrize("effect", ["unsafe", "reconcilable", "idempotent"])
async def test_a_kill_between_two_attempts_of_a_call_that_was_not_sent_leaves_it_in_no_doubt(effect: str) -> None:
    """A person was asked whether a payment was made that everybody knew was not."""
    line, home = BusyLine(effect, calls=3), MemoryStorage()
    for life in (1, 2, 3):
        async with hosting(home, Agent(line.agent)) as jobs:
            if life == 1:
                jobs.begin("j")
            if life == 3:
                await jobs.over("j")
                assert jobs.agent.done == {"j": "paid"}
            else:
                await jobs.until(lambda life=life: line.made == life)
                home = await line.killed_in_the_back_off(jobs, home)
    assert (line.made, line.looked, questions_in(home)) == (3, 0, [])
    assert [(each.name, each.outcome) for each in audit_job(MemoryReader(home), "j")] == [("pay", "ok")]
    said = [(entry.attempt, entry.note == UNSENT) for entry in entries(home) if isinstance(entry, Attempt)]
    assert said == (
        [(2, False), (3, False)] if effect == "idempotent" else [(1, True), (2, False), (2, True), (3, False)]
    )
    assert [entry.attempt for entry in entries(home) if isinstance(entry, EffectResult)] == [3]


@pytest.mark.parametrize("effect", ["unsafe", "reconcilable"])
async def test_a_cancel_between_two_attempts_of_a_call_that_was_not_sent_ends_the_job_at_once(effect: str) -> None:
    """It was open until the next attempt was due, an hour later."""
    line, home = BusyLine(effect), MemoryStorage()
    async with hosting(home, Agent(line.agent)) as jobs:
        jobs.begin("j")
        await line.killed_in_the_back_off(jobs, home)
        jobs.journal.post(Letter("cancel", job="j", name="enough"))
        await jobs.over("j")
    assert (jobs.agent.outcomes["j"], line.made, line.looked) == ("cancelled", 1, 0)
    (result,) = [entry for entry in entries(home) if isinstance(entry, EffectResult)]
    assert (result.outcome, result.attempt) == (NOT_MADE, 1)


async def test_a_kill_after_the_next_attempt_has_begun_leaves_it_in_doubt_as_ever() -> None:
    line, home = BusyLine(calls=2), MemoryStorage()
    async with hosting(home, Agent(line.agent)) as jobs:
        jobs.begin("j")
        home = await line.killed_in_the_back_off(jobs, home)
    async with hosting(home, Agent(line.agent)) as jobs:
        await jobs.over("j")
    (number,) = [at for at, entry in enumerate(entries(home)) if isinstance(entry, Attempt) and not entry.note]
    home = prefix(home, number + 1)
    async with hosting(home, Agent(line.agent)) as jobs:
        await jobs.parks("j")
    assert (line.made, questions_in(home)) == (2, ["in_doubt"])


async def test_a_call_that_was_not_sent_before_a_kill_is_not_made_if_its_job_was_cancelled() -> None:
    line, home = BusyLine(), MemoryStorage()
    async with hosting(home, Agent(line.agent)) as jobs:
        jobs.begin("j")
        await line.killed_in_the_back_off(jobs, home)
        jobs.journal.post(Letter("cancel", job="j", name="enough"))
        await jobs.over("j")
    home = prefix(home, next(at for at, entry in enumerate(entries(home), 1) if isinstance(entry, Cancel)))
    async with hosting(home, Agent(line.agent)) as jobs:
        await jobs.over("j")
    assert (jobs.agent.outcomes["j"], line.made, questions_in(home)) == ("cancelled", 1, [])
    assert [entry.outcome for entry in entries(home) if isinstance(entry, EffectResult)] == ["cancelled"]


async def test_an_error_of_a_tool_is_its_result_and_the_function_may_handle_it() -> None:
    calls: list[int] = []

    @tool
    async def fails() -> None:
        calls.append(1)
        raise ValueError("no such order")

    async def f(ctx: DurableContext) -> Any:
        try:
            await ctx.call(fails)
        except EffectError as error:
            return [error.type, error.message]

    home = MemoryStorage()
    async with hosting(home, Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.done["j"] == ["ValueError", "no such order"]
    agent = Agent(f)
    async with hosting(prefix(home, 3), agent) as jobs:
        await jobs.over("j")
    assert calls == [1]


@pytest.mark.parametrize("found", [Reconciled.DONE, Reconciled.NOT_DONE, Reconciled.UNKNOWN])
async def test_a_reconcilable_effect_in_doubt_is_looked_up(found: Reconciled) -> None:
    made: list[str] = []

    async def look(effect: Any, value: int) -> Any:
        return (found, {"id": effect.key}) if found is Reconciled.DONE else found

    @tool(effect="reconcilable", reconcile=look)
    async def pay(value: int) -> Any:
        made.append("pay")
        return {"id": "new"}

    async def f(ctx: DurableContext) -> Any:
        return await ctx.call(pay, 5)

    home = MemoryStorage()
    async with hosting(home, Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    made.clear()
    async with hosting(prefix(home, 2), Agent(f)) as jobs:  # killed during the call
        if found is Reconciled.UNKNOWN:
            await jobs.parks("j")
            (token,) = open_questions(jobs)
            jobs.journal.post(Letter("answer", token, body=b'{"outcome": "abandon"}'))
            await jobs.over("j")
            assert (jobs.agent.outcomes["j"], made) == ("failed", [])
        else:
            await jobs.over("j")
            assert made == ([] if found is Reconciled.DONE else ["pay"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what an object raises in __del__
@pytest.mark.parametrize("behind", ["finally", "a task", "a generator", "an object"])
async def test_what_runs_while_a_function_is_dropped_calls_no_tool(behind: str) -> None:
    """Each time the job was parked its `finally` paid: no rule was asked, and no journal has it."""
    made: list[str] = []

    @tool
    def pay(whom: str) -> None:
        made.append(whom)

    class Left:
        def __del__(self) -> None:
            pay("by an object")

    async def waits() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            pay("by a task")

    async def rows() -> Any:
        try:
            yield 1
        finally:
            pay("by a generator")

    async def f(ctx: DurableContext) -> Any:
        if behind == "a task":
            kept: Any = asyncio.create_task(waits())
        elif behind == "a generator":
            kept = rows()
            await anext(kept)
        elif behind == "an object":
            kept = Left()
        try:
            return await ctx.ask("confirm", {"really": True})
        finally:
            if behind == "finally":
                pay("by the function")

    async with hosting(MemoryStorage(), Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        assert made == []
    assert made == []


@pytest.mark.parametrize("retries", [0, 2])
async def test_a_call_that_is_never_found_is_made_as_often_as_its_tool_says_and_then_in_doubt(retries: int) -> None:
    """A look-up that lags behind its service said "not done" of each payment: 3,570 were made in two seconds."""
    made: list[int] = []

    @tool(reconcile=lambda effect: Reconciled.NOT_DONE, retries=retries, backoff="1ms")
    async def pay() -> str:
        made.append(1)
        raise ConnectionResetError("behind the request")

    home = MemoryStorage()
    async with hosting(home, Agent(lambda ctx: ctx.call(pay))) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        assert (len(made), questions_in(home)) == (retries + 2, ["in_doubt"])
        (token,) = open_questions(jobs)
        jobs.journal.post(Letter("answer", token, body=b'{"outcome": "not_done"}'))
        await jobs.until(lambda: open_questions(jobs) not in ([], [token]))
        assert len(made) == 2 * (retries + 2)  # as often again for her word
    async with hosting(prefix(home, len(entries(home))), Agent(lambda ctx: ctx.call(pay))) as jobs:
        await jobs.parks("j")  # for the same person
    assert len(made) == 2 * (retries + 2)


@pytest.mark.parametrize("killed", [False, True])
async def test_a_person_may_have_an_effect_in_doubt_looked_up_again(killed: bool) -> None:
    """The payment service was down at the restart, so a person was asked: she could only guess, though the tool knows how to look it up."""
    made: list[str] = []
    looked: list[Any] = []

    async def look(effect: Any) -> Any:
        looked.append(effect.key)
        return (Reconciled.DONE, "paid before") if len(looked) == 4 else Reconciled.UNKNOWN

    @tool(reconcile=look)
    async def pay() -> str:
        made.append("pay")
        return "paid"

    async def f(ctx: DurableContext) -> Any:
        return await ctx.call(pay)

    home = MemoryStorage()
    async with hosting(home, Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    home, tokens = prefix(home, 2), list[str]()  # killed during the call
    made.clear()

    async def asked(jobs: Any) -> str:
        await jobs.parks("j")
        (token,) = [each for each in open_questions(jobs) if each not in tokens]
        tokens.append(token)
        return token

    async with hosting(home, Agent(f)) as jobs:
        for _ in range(2):
            jobs.journal.post(Letter("answer", await asked(jobs), body=b'{"outcome": "look_up"}'))
            await jobs.until(lambda: len(looked) == len(tokens) + 1)
        await asked(jobs)
        if not killed:
            jobs.journal.post(Letter("answer", tokens[-1], body=b'{"outcome": "look_up"}'))
            await jobs.over("j")
            assert jobs.agent.done["j"] == "paid before"
    if killed:
        async with hosting(home, Agent(f)) as jobs:
            jobs.journal.post(Letter("answer", tokens[-1], body=b'{"outcome": "look_up"}'))
            await jobs.over("j")
            assert jobs.agent.done["j"] == "paid before"
    assert (made, len(looked), len(set(looked)), len(tokens)) == ([], 4, 1, 3)


async def test_an_answer_about_one_attempt_says_nothing_about_the_next_one() -> None:
    """A refund was in doubt, a person said "not done", it was made again, and the process was killed in that call. The next start took the
    old answer for the new attempt and made the refund a third time: seen by a witness under kills.
    """
    world, home = World(), MemoryStorage()
    refund = world.tool("refund")

    async def f(ctx: DurableContext) -> Any:
        try:
            return await ctx.call(refund, 1)
        except EffectError as error:
            return [error.type, error.message]

    async with hosting(home, Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    home = prefix(home, 2)  # killed during the first call
    async with hosting(home, Agent(f)) as jobs:
        await jobs.parks("j")
        (first,) = open_questions(jobs)
        jobs.journal.post(Letter("answer", first, body=b'{"outcome": "not_done"}'))
        await jobs.over("j")
    assert world.made == {"refund 1": 2}
    upto = next(at for at, entry in enumerate(entries(home), 1) if isinstance(entry, Attempt))
    async with hosting(prefix(home, upto), Agent(f)) as jobs:  # killed during the second call
        await jobs.parks("j")
        (second,) = open_questions(jobs)
        assert second != first
        jobs.journal.post(Letter("answer", second, body=b'{"outcome": "abandon"}', by="ada"))
        await jobs.over("j")
        assert jobs.agent.done["j"] == ["Abandoned", "refund was abandoned by ada"]
    assert world.made == {"refund 1": 2}


@pytest.mark.parametrize("verdict", ["succeeded", "failed"])
async def test_a_cut_before_an_ended_job_was_run_over_its_history_does_not_cover_it(verdict: str) -> None:
    """A job had ended behind the restored checkpoint, so it was to be run over its history; a barrier came first, and the process was
    killed again. The new checkpoint had the journal's end for its place, and by that the job was over: its state and its output were
    lost, and its row, which waited in the checkpoint still, began it anew: a witness saw 20 of 180 effects twice.
    """

    async def f(ctx: DurableContext) -> Any:
        if verdict == "failed":
            raise ValueError("no")
        return 1

    home = MemoryStorage()
    async with hosting(home, Agent(f)) as jobs:
        jobs.begin("before")
        await jobs.over("before")
        facts = jobs.host.log.facts()
        covered = dict(facts["positions"])
        assert facts["unapplied"] == []
        jobs.begin("behind")
        await jobs.over("behind")
    async with hosting(home, Agent(f), resume=False, restored=(covered, {})) as jobs:
        assert [job.job_id for job in jobs.open] == ["behind"]
        cut = jobs.host.log.facts()
        assert [job_id for job_id, *_ in cut["unapplied"]] == ["behind"]
        jobs.host.resume(jobs.open[0])
        await jobs.until(lambda: jobs.agent.outcomes or jobs.agent.before)
        later = jobs.host.log.facts()
        assert later["unapplied"] == []
    unapplied = {job_id: Position(*place) for job_id, *place in cut["unapplied"]}
    async with hosting(home, Agent(f), resume=False, restored=(dict(cut["positions"]), unapplied)) as jobs:
        assert [job.job_id for job in jobs.open] == ["behind"]
    async with hosting(home, Agent(f), resume=False, restored=(dict(later["positions"]), {})) as jobs:
        assert jobs.open == []


async def test_other_code_blocks_the_job_and_says_where() -> None:
    world, home = World(), MemoryStorage()
    pay, mail = world.tool("pay"), world.tool("mail")

    async def old(ctx: DurableContext) -> Any:
        await ctx.call(pay, 1)
        await ctx.sleep("1h")

    async def new(ctx: DurableContext) -> Any:
        await ctx.call(mail, 1)
        await ctx.call(pay, 1)

    async with hosting(home, Agent(old)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
    world.made.clear()
    async with hosting(home, Agent(new, code="2")) as jobs:
        await jobs.over("j")
        told = str(jobs.agent.blocks["j"])
        assert all(words in told for words in ("step 1, call pay", "call mail", "'1'", "'2'"))
    assert not world.made


@pytest.mark.parametrize("names", [("", ""), ("order", "dice")])
async def test_new_code_that_draws_one_number_more_gives_an_open_job_the_same_ids(names: tuple[str, str]) -> None:
    """Ids and numbers came from one generator, so the changed id blocked the job."""
    world, home = World(), MemoryStorage()
    pay = world.tool("pay")
    of_ids, of_numbers = names

    async def old(ctx: DurableContext) -> Any:
        drawn = [ctx.random(of_numbers).random()]
        await ctx.call(pay, str(ctx.uuid(of_ids)))
        await ctx.wait("go")
        return [*drawn, str(ctx.uuid(of_ids))]

    async def new(ctx: DurableContext) -> Any:
        drawn = [ctx.random(of_numbers).random()]
        ctx.random(of_numbers).random()
        ctx.random("of new code").random()
        ctx.uuid("of new code")
        await ctx.call(pay, str(ctx.uuid(of_ids)))
        await ctx.wait("go")
        return [*drawn, str(ctx.uuid(of_ids))]

    said = []
    for code in (old, new):
        async with hosting(home, Agent(code)) as jobs:
            for job in ("one", "two"):
                if code is old:
                    jobs.begin(job)
                await jobs.parks(job)
            if code is new:
                jobs.journal.post(Letter("signal", "1", job="one", name="go"))
                await jobs.over("one")
                said.append(jobs.agent.done["one"])
    async with hosting(home, Agent(old)) as jobs:
        jobs.journal.post(Letter("signal", "2", job="two", name="go"))
        await jobs.over("two")
        said.append(jobs.agent.done["two"])
    assert sum(world.made.values()) == 2
    assert len({each for drawn in said for each in drawn}) == 4, "nothing is drawn twice"


async def test_streams_of_random_numbers_are_told_apart_by_name_and_kind_and_go_on_after_continue_as() -> None:
    async def f(ctx: DurableContext) -> Any:
        seen = [*(ctx.message or ()), *(ctx.random(name).random() for name in ("", "a", "b", "uuid"))]
        seen += [str(ctx.uuid(name)) for name in ("", "a", "b", "random")]
        if ctx.random("a") is not ctx.random("a") or len(seen) < 16:
            ctx.continue_as(seen)
        return seen

    async with hosting(MemoryStorage(), Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert len(set(jobs.agent.done["j"])) == 16


async def test_a_job_that_began_with_one_stream_goes_on_with_it() -> None:
    """Its BEGIN has no seed, as those of earlier versions."""
    key = MemoryStorage().key
    shared = random.Random(job_seed(b"", "j", 1, key))
    drawn = [shared.random(), uuid.UUID(int=shared.getrandbits(128), version=4), shared.random()]
    for seed in (b"", SEQUENCES_APART):
        run = JobRun("j", History(Begin("j", 0, AGENT, seed=seed)), key=key)
        assert ([run.random().random(), run.uuid(), run.random().random()] == drawn) == (seed == b"")
        assert run.random("a") is not run.random()


async def test_a_wait_with_a_time_out_is_no_sleep_in_the_error_of_a_blocked_job() -> None:
    """The user had written `ctx.wait("paid", timeout="1d")`, and looked for a sleep in his code: step 1 was a "sleep timeout"."""
    home = MemoryStorage()

    async def old(ctx: DurableContext) -> Any:
        await ctx.wait("paid", timeout="1d")

    async def new(ctx: DurableContext) -> Any:
        await ctx.wait("paid")

    async with hosting(home, Agent(old)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
    async with hosting(home, Agent(new)) as jobs:
        await jobs.over("j")
        told = str(jobs.agent.blocks["j"])
    assert "at step 1, time-out, the function asks for wait paid" in told
    assert "sleep" not in told


async def test_an_effect_in_doubt_that_fails_is_an_error_that_code_can_tell_from_others() -> None:
    """Its type was UserError, as that of a tool's own mistake in its arguments."""
    world, home = World(), MemoryStorage()
    refund = world.tool("refund", in_doubt="fail")

    async def f(ctx: DurableContext) -> Any:
        try:
            return await ctx.call(refund, 1)
        except EffectError as error:
            return [error.type, error.message]

    async with hosting(home, Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    async with hosting(prefix(home, 2), Agent(f)) as jobs:  # killed during the call
        await jobs.over("j")
        assert jobs.agent.done["j"] == [
            "InDoubt",
            "nobody knows whether refund was done (in_doubt='ask' asks a person)",
        ]
    assert world.made == {"refund 1": 1}


@pytest.mark.parametrize("wraps", [False, True])
async def test_an_unsafe_call_whose_client_tells_a_failed_service_is_in_doubt(wraps: bool) -> None:
    """The 502 of a client of stripe was a plain error: the model read it, and paid once more."""

    class ApiError(Exception):
        http_status = 502

    class RefundFailed(Exception):
        pass

    @tool(effect="unsafe", in_doubt="fail")
    async def refund(cents: int) -> str:
        try:
            raise ApiError("bad gateway")
        except ApiError as error:
            if wraps:
                raise RefundFailed("the refund failed") from error
            raise

    async def f(ctx: DurableContext) -> Any:
        try:
            return await ctx.call(refund, 7)
        except EffectError as error:
            return error.type

    async with hosting(MemoryStorage(), Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.done["j"] == "InDoubt"


@pytest.mark.parametrize("kind", ["confrim", "Confirm", "aproval", "in-doubt", "uplaod"])
async def test_a_question_whose_type_is_misspelt_is_refused_with_the_one_that_was_meant(kind: str) -> None:
    """The person who answers what is to be confirmed never saw the question, and its job waited for ever."""

    async def f(ctx: DurableContext) -> Any:
        await ctx.ask(kind, {"message": "Refund?"})

    async with hosting(MemoryStorage(), Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    assert "did you mean" in str(jobs.agent.errors["j"])


async def test_a_message_is_no_type_of_a_question_and_a_word_of_the_users_is_one() -> None:
    async def f(ctx: DurableContext) -> Any:
        for kind in ("Refund 12.50?", ""):
            with pytest.raises(UserError, match="one word") as caught:
                await ctx.ask(kind, {})
            assert "ctx.ask('confirm', {'message': '…'})" in caught.value.hint
        await ctx.ask("customer", {})

    async with hosting(MemoryStorage(), Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        assert [each.name for each in entries(jobs.journal.storage) if isinstance(each, Intent)] == ["customer"]


async def test_a_job_that_another_python_runs_otherwise_is_blocked_and_told_so() -> None:
    """As `asyncio.wait_for`, which made a task of its own up to 3.11; the same code under the same version was named, and nothing else."""
    world, home = World(), MemoryStorage()
    pay, mail = world.tool("pay"), world.tool("mail")

    async def f(ctx: DurableContext, first: Any, second: Any) -> None:
        await asyncio.gather(ctx.call(first, 1), ctx.call(second, 1))
        await ctx.ask("confirm", {})

    async with hosting(home, Agent(lambda ctx: f(ctx, pay, mail), code="v1 on Python 3.11")) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
    async with hosting(home, Agent(lambda ctx: f(ctx, mail, pay), code="v1 on Python 3.12")) as jobs:
        await jobs.over("j")
        told = str(jobs.agent.blocks["j"])
    assert all(
        words in told for words in ("'v1 on Python 3.11'", "'v1 on Python 3.12'", "let open jobs end under the old")
    )
    assert world.made == {"pay 1": 1, "mail 1": 1}


@pytest.mark.parametrize("ends", [True, False])
async def test_a_job_that_had_ended_asks_nothing_more(ends: bool) -> None:
    """Its end stood behind the checkpoint, so it is run again for its state and output; a call that new code has behind the old end was
    made then, for a job that was over.
    """
    world, home = World(), MemoryStorage()
    pay, mail = world.tool("pay"), world.tool("mail")

    async def old(ctx: DurableContext) -> Any:
        return await ctx.call(pay, 1)

    async def new(ctx: DurableContext) -> Any:
        said = await ctx.call(pay, 1)
        if ctx.patched("mail"):
            await ctx.call(mail, 1)
        if not ends:
            beside = asyncio.ensure_future(ctx.call(mail, 2))
            await asyncio.sleep(0)
            assert not beside.done()
        return said

    async with hosting(home, Agent(old)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    agent = Agent(new, code="2")
    async with hosting(home, agent) as jobs:
        await jobs.over("j")
    assert world.made == {"pay 1": 1}
    assert ("at its end, the function goes on" in str(agent.blocks.get("j"))) is not ends


async def test_another_attempt_is_patched_as_the_one_before_was() -> None:
    """The time-out has an ordinal of its own in each attempt, so the second attempt did not find the patch, and ran the old code."""
    world, home = World(), MemoryStorage()
    pay, mail = world.tool("pay"), world.tool("mail")

    async def f(ctx: DurableContext) -> bool:
        async with asyncio.timeout(60):
            await ctx.call(pay, 1)
        patched = ctx.patched("mail")
        if patched:
            await ctx.call(mail, 1)
        if ctx.attempt == 1:
            raise ValueError("not yet")
        return patched

    async with hosting(home, Agent(f, verdict="again")) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.done["j"] is True
    agent = Agent(f)
    async with hosting(home, agent) as jobs:  # its end stood behind the checkpoint: it runs over its history
        await jobs.over("j")
        assert (agent.done["j"], agent.blocks) == (True, {})
    assert world.made == {"pay 1": 1, "mail 1": 1}


async def test_a_patched_function_serves_old_and_new_jobs() -> None:
    world, home = World(), MemoryStorage()
    pay, check = world.tool("pay"), world.tool("check", effect="read")

    async def old(ctx: DurableContext) -> Any:
        await ctx.sleep("1h")
        return await ctx.call(pay, ctx.message)

    async def new(ctx: DurableContext) -> Any:
        if ctx.patched("check"):
            await ctx.call(check, ctx.message)
        await ctx.sleep("1h")
        return await ctx.call(pay, ctx.message)

    clock = ManualClock()
    home = MemoryStorage(clock)
    async with hosting(home, Agent(old, clock)) as jobs:
        jobs.begin("old", 1)
        await jobs.parks("old")
    agent = Agent(new, clock)
    async with hosting(home, agent) as jobs:
        jobs.begin("new", 2)
        await jobs.parks("new")
        await jobs.parks("old")
    async with hosting(home, agent) as jobs:
        clock.advance(3601)
        await jobs.over("old", "new")
        assert not agent.blocks
    assert world.made == {"check 2": 1, "pay 1": 1, "pay 2": 1}


async def test_a_job_that_is_tried_again_keeps_results_and_asks_errors_anew() -> None:
    world, home = World(), MemoryStorage()
    pay = world.tool("pay")
    fails = [ValueError("busy")]

    @tool(effect="read")
    async def look() -> str:
        if fails:
            raise fails.pop()
        return "there"

    async def f(ctx: DurableContext) -> Any:
        await ctx.call(pay, 1)
        return [await ctx.call(look), ctx.attempt]

    async with hosting(home, Agent(f, verdict="again")) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.done["j"] == ["there", 2]
    assert world.made == {"pay 1": 1}
    assert [e.attempt for e in entries(home) if isinstance(e, Attempt) and e.ordinal == 0] == [2]
    for count in range(1, len(entries(home))):
        async with hosting(prefix(home, count), Agent(f, verdict="again")) as jobs:
            if open_questions(jobs) or count == 2:
                continue  # the payment is in doubt
            await jobs.over("j")
            assert jobs.agent.done["j"][0] == "there", count


async def test_a_job_goes_on_as_a_new_history() -> None:
    world, home = World(), MemoryStorage()
    pay = world.tool("pay")

    async def f(ctx: DurableContext) -> Any:
        await ctx.call(pay, ctx.message)
        if ctx.message < 3:
            ctx.continue_as(ctx.message + 1)
        return ctx.message

    async with hosting(home, Agent(f)) as jobs:
        jobs.begin("j", 1)
        await jobs.over("j")
        assert jobs.agent.done["j"] == 3
    assert world.made == {"pay 1": 1, "pay 2": 1, "pay 3": 1}
    ordinals = [e.ordinal for e in entries(home) if isinstance(e, Intent)]
    assert ordinals == [1, 2, 3]


async def test_what_waits_for_nothing_fails_with_the_fix() -> None:
    async def f(ctx: DurableContext) -> Any:
        await asyncio.Event().wait()

    async with hosting(MemoryStorage(), Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert "nobody will give it" in str(jobs.agent.errors["j"])


async def test_a_parked_job_makes_no_effect_in_its_finally() -> None:
    world = World()
    pay = world.tool("pay")
    ran: list[str] = []

    async def f(ctx: DurableContext) -> Any:
        try:
            await ctx.sleep("1h")
        finally:
            ran.append("finally")
            await ctx.call(pay, 1)

    async with hosting(MemoryStorage(), Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        assert (ran, jobs.broken) == (["finally"], [])
    assert not world.made


async def test_an_end_behind_the_checkpoint_is_told_again_and_its_job_not_run() -> None:
    home, calls = MemoryStorage(), []

    async def f(ctx: DurableContext) -> Any:
        calls.append(1)
        raise ValueError("bad order")

    async with hosting(home, Agent(f)) as jobs:
        jobs.begin("j", {"order": 1})
        await jobs.over("j")
    agent = Agent(f)
    async with hosting(home, agent) as jobs:
        await jobs.until(lambda: agent.before)
        (before,) = agent.before
        assert (before.job_id, before.ended.outcome, len(calls)) == ("j", "failed", 1)
    assert isinstance(entries(home)[-1], End)


async def test_a_child_is_a_job_of_its_own_and_its_parent_parks() -> None:
    world, home = World(), MemoryStorage()
    pay = world.tool("pay")

    async def f(ctx: DurableContext) -> Any:
        if ctx.message == "parent":
            results = await asyncio.gather(ctx.child("agent", 1), ctx.child("agent", 2), return_exceptions=True)
            return [result if isinstance(result, int) else type(result).__name__ for result in results]
        await ctx.call(pay, ctx.message)
        if ctx.message == 2:
            raise ValueError("no")
        return ctx.message

    async with hosting(home, Agent(f)) as jobs:
        jobs.begin("j", "parent")
        await jobs.over("j")
        assert jobs.agent.done["j"] == [1, "EffectError"]
        assert jobs.agent.outcomes == {"j": "succeeded", "j~1": "succeeded", "j~2": "failed"}
    written = entries(home)
    for count in range(1, len(written)):
        undone = [e for e in written[:count] if isinstance(e, Intent) and e.kind == "call"]
        done = {(e.job, e.ordinal) for e in written[:count] if isinstance(e, EffectResult)}
        if any((e.job, e.ordinal) not in done for e in undone):
            continue  # a payment is in doubt
        world.made.clear()
        async with hosting(prefix(home, count), Agent(f)) as jobs:
            await jobs.over("j")
            assert jobs.agent.outcomes["j"] == "succeeded", count
        assert sum(world.made.values()) == 2 - len(undone)


class LeasedJournal(MemoryJournal):
    """Its server is away until `back`: entries wait, and the claim is over for now."""

    def __init__(self) -> None:
        super().__init__()
        self.back = asyncio.Event()

    def claim_left(self) -> float:
        return 1.0 if self.back.is_set() else 0.0

    async def durable(self, position: Position) -> None:
        await self.back.wait()


async def test_an_effect_of_any_class_waits_while_the_claim_is_over_for_now() -> None:
    world, journal = World(), LeasedJournal()
    read = world.tool("read", effect="read")

    async def f(ctx: DurableContext) -> Any:
        return await ctx.call(read, 1)

    async with hosting(journal, Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.until(lambda: jobs.host.statistics()["in_flight"])
        assert (world.made, jobs.broken) == ({}, [])
        journal.back.set()
        await jobs.over("j")
        assert jobs.agent.done["j"] == {"made": 1}


async def test_a_failure_is_told_when_the_journal_is_durable() -> None:
    journal = LeasedJournal()

    async def f(ctx: DurableContext) -> Any:
        raise ValueError("no such order")

    async with hosting(journal, Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.until(lambda: jobs.host.statistics()["running"] and entries(journal.storage))
        await asyncio.sleep(0)
        assert not jobs.agent.errors
        journal.back.set()
        await jobs.over("j")
        assert jobs.agent.outcomes == {"j": "failed"}


async def test_another_attempt_has_the_time_of_its_time_outs_anew_and_sleeps_no_sleep_again() -> None:
    clock, home = ManualClock(), MemoryStorage()

    async def f(ctx: DurableContext) -> Any:
        await ctx.sleep("1h")
        async with asyncio.timeout(60):
            answer = await ctx.ask("confirm", {"attempt": ctx.attempt})
        await ctx.sleep("2h")
        return [ctx.attempt, answer.approved]

    agent = Agent(f, clock, verdict="again")
    async with hosting(MemoryStorage(clock), agent) as jobs:
        home = jobs.journal.storage
        jobs.begin("j")
        await jobs.parks("j")
        clock.advance(3600)
        await jobs.parks("j", wakes=1)
        clock.advance(60)  # the first attempt fails by its time-out
        await jobs.until(lambda: any(isinstance(e, Attempt) for e in entries(home)))
        await jobs.until(lambda: open_questions(jobs) and "j" in agent.sleeping)
        clock.advance(59)
        jobs.journal.post(Letter("answer", open_questions(jobs)[0], body=b'{"approved": true}'))
        await jobs.until(lambda: sum(e.kind == "sleep" for e in entries(home) if isinstance(e, Intent)) == 4)
        await jobs.until(lambda: "j" in agent.sleeping)
        clock.advance(7200)
        await jobs.over("j")
        assert agent.done["j"] == [2, True]


async def test_the_last_barrier_waits_no_longer_for_a_journal_in_which_nothing_becomes_durable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its server was away when the app was stopped: the last checkpoint took all of its time-out."""
    monkeypatch.setattr("sabot.jobs.log._SILENT_SECONDS", 0.01)

    async def f(ctx: DurableContext) -> None:
        """Nothing."""

    async with hosting(MemoryStorage(), Agent(f)) as jobs:
        monkeypatch.setattr(jobs.journal, "flush", asyncio.Event().wait)
        running = jobs.host.log.barrier(1)
        await jobs.host.quiesce()
        with pytest.raises(TransientError, match="has not answered for"):
            await running
        assert not jobs.host.log.flushing


async def test_a_job_that_a_client_begins_in_the_journal_of_an_app_stays_queued_and_the_log_says_how_its_jobs_begin(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def f(ctx: Any) -> None: ...

    async with hosting(MemoryStorage(), Agent(f)) as jobs:
        begin = Begin("desk.handle/1", 1, "desk.handle")
        jobs.journal.post(Letter("begin", job=begin.job, name=begin.agent, body=encode_entry(begin)))
        await jobs.until(lambda: "it stays queued" in caplog.text)
        assert "jobs of an App begin with the records of its agents: write one" in caplog.text
        assert not jobs.agent.outcomes
