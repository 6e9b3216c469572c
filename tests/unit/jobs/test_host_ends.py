"""What the end of a run leaves of the effects that were under way: their intents, and nothing that was not their own."""

import asyncio
import threading
from collections import Counter
from typing import Any

import pytest
from unit.jobs.hosting import Agent, entries, hosting

from sabot.agents.durable.context import DurableContext
from sabot.base.process_exit import find_exit
from sabot.clock import ManualClock
from sabot.engine.calls.effects import Reconciled
from sabot.engine.calls.tools import tool
from sabot.errors import BrokerUnavailable, JournalFailed
from sabot.jobs.owner import AfterFailure
from sabot.jobs.run import JobRun
from sabot.jobs.values import unpack
from sabot.journal import Letter
from sabot.journal.entries import EffectResult, Intent
from sabot.journal.memory import MemoryJournal, MemoryStorage
from tools.agent_tools import until

SYNC_THREADS = 16  # that calls of sync tools may have


class Slow:
    """A tool whose first call is under way when the worker stops; later ones answer."""

    def __init__(self, effect: str) -> None:
        self.calls = 0
        self.begun = asyncio.Event()
        self.tool = tool(effect=effect, name="slow")(self._call)

    async def _call(self) -> str:
        self.calls += 1
        if self.calls == 1:
            self.begun.set()
            await asyncio.Event().wait()
        return f"call {self.calls}"


def agent_of(made: Any) -> Agent:
    async def f(ctx: DurableContext) -> Any:
        return await ctx.call(made)

    return Agent(f)


def recorded(home: MemoryStorage) -> list[str]:
    return [type(entry).__name__ for entry in entries(home)]


@pytest.mark.parametrize("effect", ["read", "metered", "idempotent"])
async def test_a_call_that_a_stop_has_cut_has_no_result_and_is_made_again_at_the_next_start(effect: str) -> None:
    home, slow = MemoryStorage(), Slow(effect)
    async with hosting(home, agent_of(slow.tool)) as jobs:
        jobs.begin("j1")
        await slow.begun.wait()
    assert recorded(home) == ["Begin", "Intent"]
    async with hosting(home, agent_of(slow.tool)) as jobs:
        await jobs.over("j1")
        assert jobs.agent.done == {"j1": "call 2"}


async def test_an_unsafe_call_that_a_stop_has_cut_is_asked_about_and_not_made_again() -> None:
    home, slow = MemoryStorage(), Slow("unsafe")
    async with hosting(home, agent_of(slow.tool)) as jobs:
        jobs.begin("j1")
        await slow.begun.wait()
    assert recorded(home) == ["Begin", "Intent"]
    async with hosting(home, agent_of(slow.tool)) as jobs:
        await jobs.parks("j1")
    questions = [entry for entry in entries(home) if isinstance(entry, Intent) and entry.kind == "ask"]
    assert ([each.name for each in questions], slow.calls) == (["in_doubt"], 1)


async def test_a_call_that_a_stop_has_cut_before_it_was_sent_is_made_at_the_next_start() -> None:
    """It waited for a thread. A person was asked whether it was done, for each such call."""
    home, held, paid = MemoryStorage(), threading.Event(), []

    @tool
    def pay(number: int) -> str:
        paid.append(number)
        held.wait(60)
        return "paid"

    async def f(ctx: DurableContext) -> Any:
        return await ctx.call(pay, ctx.message)

    names = [f"j{number}" for number in range(SYNC_THREADS + 2)]
    async with hosting(home, Agent(f)) as jobs:
        for number, name in enumerate(names):
            jobs.begin(name, number)
        await jobs.until(lambda: len(paid) == SYNC_THREADS and recorded(home).count("Intent") == len(names))
    held.set()
    sent = {f"j{number}" for number in paid}
    async with hosting(home, Agent(f)) as jobs:
        await jobs.over(*(unsent := [name for name in names if name not in sent]))
        for name in sent:
            await jobs.parks(name)
    asked = {entry.job for entry in entries(home) if isinstance(entry, Intent) and entry.kind == "ask"}
    assert (asked, len(unsent), sorted(paid)) == (sent, 2, list(range(len(names))))


async def test_a_call_that_ends_in_the_grace_of_a_stop_is_recorded() -> None:
    home, begun = MemoryStorage(), asyncio.Event()

    @tool
    async def pay() -> str:
        begun.set()
        await asyncio.sleep(0.01)
        return "paid"

    async with hosting(home, agent_of(pay), grace_s=30.0) as jobs:
        jobs.begin("j1")
        await begun.wait()
    assert "EffectResult" in recorded(home)


class LeasedJournal(MemoryJournal):
    """Its claim holds for `left_s`. taken: another worker has it."""

    left_s = 1.0
    taken = False

    def claim_left(self) -> float:
        return self.left_s

    async def room(self) -> None:
        if self.taken:
            raise JournalFailed("another owner has taken the journal over")


async def test_a_call_of_a_job_that_ends_the_run_is_recorded_in_the_grace_of_the_stop() -> None:
    """Nobody was told of it any more, so a person was asked whether it was done, though the tool had said so."""
    home, begun, goes_on = MemoryStorage(), asyncio.Event(), asyncio.Event()

    @tool
    async def pay() -> str:
        begun.set()
        await goes_on.wait()
        return "paid"

    async def f(ctx: DurableContext) -> None:
        paying = asyncio.ensure_future(ctx.call(pay))
        await ctx.step(begun.wait, effect="read")
        raise SystemExit(f"with {paying}")

    async with hosting(home, Agent(f, verdict="stop"), grace_s=30.0) as jobs:
        jobs.begin("j1")
        await jobs.until(lambda: jobs.agent.errors)
        goes_on.set()
    results = [entry for entry in entries(home) if isinstance(entry, EffectResult)]
    assert [(entry.ordinal, unpack(entry.body)) for entry in results] == [(1, True), (2, "paid")]


async def test_a_worker_whose_claim_another_one_has_taken_sends_nothing_and_its_run_ends() -> None:
    journal, sent = LeasedJournal(), []
    async with hosting(journal, agent_of(tool(lambda: sent.append(1)))) as jobs:
        journal.left_s = 0.0
        jobs.begin("j1")
        await jobs.until(lambda: jobs.host.statistics()["in_flight"])
        journal.taken = True
        with pytest.raises(JournalFailed, match="taken the journal over"):
            await jobs.over("j1")
    assert sent == []
    assert not any(isinstance(entry, EffectResult) for entry in entries(journal.storage))


async def test_a_journal_that_fails_while_all_jobs_are_parked_ends_the_run() -> None:
    """A question that never became durable was seen by nobody, and the run stood for ever: each checkpoint was declined."""
    journal = LeasedJournal()

    async def f(ctx: DurableContext) -> Any:
        return (await ctx.ask("confirm", {})).approved

    async with hosting(journal, Agent(f)) as jobs:
        jobs.begin("j1")
        await jobs.parks("j1")
        journal.taken = True
        with pytest.raises(JournalFailed):
            await jobs.until(lambda: False)


async def test_a_call_that_has_waited_for_a_thread_waits_for_its_claim_too() -> None:
    """Where the claim was over for a moment, as the server of the journal was away, when the call got its thread, the run ended."""
    journal, free, calls = LeasedJournal(), threading.Event(), list[int]()

    @tool(effect="read")
    def look(number: int) -> int:
        calls.append(number)
        free.wait()
        return number

    async def f(ctx: DurableContext) -> Any:
        return sum(await asyncio.gather(*(ctx.call(look, number) for number in range(SYNC_THREADS + 1))))

    async with hosting(journal, Agent(f)) as jobs:
        jobs.begin("j1")
        await jobs.until(lambda: len(calls) == SYNC_THREADS)
        journal.left_s = 0.0
        free.set()
        await jobs.until(lambda: recorded(journal.storage).count("EffectResult") == SYNC_THREADS)
        assert (len(calls), jobs.broken) == (SYNC_THREADS, [])
        journal.left_s = 1.0
        await jobs.over("j1")
        assert jobs.agent.done["j1"] == sum(range(SYNC_THREADS + 1))


@pytest.mark.parametrize("left_s", [0.1, -0.1], ids=["its lease goes on", "its lease is over"])
async def test_what_a_paused_worker_may_still_be_doing_is_judged_when_its_last_call_has_timed_out(
    left_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the lease was over at the takeover, the effect was judged at once, though the other worker's call could be under way."""
    home, loop, at = MemoryStorage(), asyncio.get_running_loop(), dict[str, float]()
    timeout_s, under_way = 0.4, asyncio.Event()

    async def look(effect: Any) -> Reconciled:
        at.setdefault("looked up", loop.time())
        return Reconciled.NOT_DONE

    @tool(reconcile=look, timeout=timeout_s)
    async def pay() -> None:
        if not under_way.is_set():
            under_way.set()
            await asyncio.Event().wait()
        at["paid"] = loop.time()

    async with hosting(home, agent_of(pay)) as jobs:
        jobs.begin("j1")
        await under_way.wait()
    over = loop.time() + left_s
    monkeypatch.setattr(MemoryJournal, "predecessor_left", lambda self, job: over - loop.time())
    async with hosting(home, agent_of(pay)) as jobs:
        await jobs.over("j1")
    assert over + timeout_s <= at["looked up"] < at["paid"]


async def test_what_may_be_repeated_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    home, slow = MemoryStorage(), Slow("idempotent")
    async with hosting(home, agent_of(slow.tool)) as jobs:
        jobs.begin("j1")
        await slow.begun.wait()
    monkeypatch.setattr(MemoryJournal, "predecessor_left", lambda self, job: 3600.0)
    async with hosting(home, agent_of(slow.tool)) as jobs:
        await jobs.over("j1")
        assert jobs.agent.done == {"j1": "call 2"}


async def test_a_job_has_so_many_effects_and_goes_on_as_a_new_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sabot.jobs.run.MOST_EFFECTS", 5)
    looked: list[int] = []
    look = tool(looked.append, name="look", effect="read")

    async def f(ctx: DurableContext) -> Any:
        left = ctx.message
        for number in range(min(left, 5) if left else 6):
            await ctx.call(look, number)
        if left > 5:
            ctx.continue_as(left - 5)
        return "over"

    async with hosting(MemoryStorage(), Agent(f)) as jobs:
        jobs.begin("too many", 0)
        jobs.begin("in turn", 12)
        await jobs.over("too many", "in turn")
        assert "has asked for 5 effects" in str(jobs.agent.errors["too many"])
        assert jobs.agent.done == {"in turn": "over"}
    assert len(looked) == 5 + 12


class AwayJournal(MemoryJournal):
    """Of each thing that it is asked, it does not answer the first few times."""

    def __init__(self, home: MemoryStorage) -> None:
        super().__init__(home)
        self.unanswered: Counter[str] = Counter()

    def _answers(self, what: str) -> None:
        self.unanswered[what] += 1
        if self.unanswered[what] <= 2:
            raise BrokerUnavailable("the server of the journal is away")

    async def look(self) -> bool:
        self._answers("look")
        return await super().look()

    def read(self, job: str | None = None, start: Any = None) -> Any:
        if job is not None:
            self._answers("read")
        return super().read(job, start)

    def post(self, letter: Letter) -> None:
        if letter.kind == "withdraw":
            self._answers("post")
        super().post(letter)

    def trim(self, before: Any, forget_before_ms: int = 0, *, sessions: bool = False) -> int:
        self._answers("trim")
        return super().trim(before, forget_before_ms, sessions=sessions)


async def test_a_journal_that_does_not_answer_for_a_while_is_asked_again_and_no_run_ends() -> None:
    """A PostgreSQL server that was restarted ended the run of each app at its next look into the inbox."""
    clock = ManualClock()
    journal = AwayJournal(MemoryStorage(clock))

    async def f(ctx: DurableContext) -> Any:
        reply = await ctx.ask("confirm", {}, timeout="1h")
        return [reply.outcome, await ctx.wait("paid")]

    async with hosting(journal, Agent(f, clock)) as jobs:
        jobs.begin("j1")
        await jobs.parks("j1")
        clock.advance(3601)
        await jobs.parks("j1", wakes=1)
        journal.post(Letter("signal", "t", "j1", "paid", body=b"7"))
        await jobs.over("j1")
        for _ in range(3):
            jobs.host.log.trim(lambda: {0: 1}, 0)
        await jobs.until(lambda: journal.unanswered["trim"] == 3)
        assert (jobs.agent.done["j1"], jobs.broken) == (["expired", 7], [])
    assert {what: count > 2 for what, count in journal.unanswered.items()} == dict.fromkeys(
        ("look", "read", "post", "trim"), True
    )


async def test_a_tool_that_asks_for_the_end_of_the_process_ends_the_run_and_is_no_result() -> None:
    home = MemoryStorage()

    @tool(effect="read")
    async def leave() -> None:
        raise SystemExit(3)

    async with hosting(home, agent_of(leave)) as jobs:
        jobs.begin("j1")
        await until(lambda: jobs.broken)
        assert isinstance(find_exit(jobs.broken[0][1]), SystemExit)
    assert recorded(home) == ["Begin", "Intent"]


class Retried(Agent):
    """Fails each attempt once, and lets the next one begin a while later. failures: the attempts of which it was told."""

    failures: list[int]
    on_failure: Any

    def failed(self, job: JobRun, error: BaseException) -> AfterFailure:
        self.failures.append(job.history.attempt)
        self.on_failure()
        return "again"

    def backoff_s(self, attempt: int) -> float:
        return 0.05


async def test_the_end_of_a_call_before_the_next_attempt_is_no_second_failure_of_the_job() -> None:
    home, answers, made = MemoryStorage(), asyncio.Event(), []

    @tool(effect="read")
    async def slow() -> str:
        await answers.wait()
        made.append("slow")
        return "an answer"

    @tool(effect="read")
    async def broken() -> str:
        if not made:
            raise ValueError("no")
        return "well"

    async def f(ctx: DurableContext) -> Any:
        return await asyncio.gather(ctx.call(slow), ctx.call(broken))

    agent = Retried(f)
    agent.failures, agent.on_failure = [], answers.set
    async with hosting(home, agent) as jobs:
        jobs.begin("j1")
        await jobs.over("j1")
    assert (agent.done, agent.failures) == ({"j1": ["an answer", "well"]}, [1])
