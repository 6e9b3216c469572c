"""Trees of jobs: how deep and how wide `ctx.child` makes them, and a cancel of one that grows."""

import asyncio
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from unit.jobs.hosting import AGENT, Agent, entries, hosting, prefix

from sabot.agents import ChildLimits, ExecutionRequest, RuntimeKernel
from sabot.agents.durable.context import DurableContext
from sabot.api.agent import AgentSpec
from sabot.clock import ManualClock
from sabot.engine.calls.tools import tool
from sabot.errors import EffectError, UserError
from sabot.jobs.guard import Behalf
from sabot.jobs.tree import JobTree, child_id, parent_of
from sabot.journal import Letter
from sabot.journal.entries import Begin, Cancel, End
from sabot.journal.memory import MemoryReader, MemoryStorage

DEEP = ChildLimits(max_depth=1_000_000)


def home() -> MemoryStorage:
    return MemoryStorage(ManualClock(1_000.0))


@dataclass
class Slow(Agent):
    """Children begin only when they are let, as where others wait before them."""

    waiting: deque[Callable[[], None]] = field(default_factory=deque)

    def begin_child(self, job_id: str, message: Any, *, failed: bool, behalf: Behalf) -> None:
        begin = super().begin_child
        self.waiting.append(lambda: begin(job_id, message, failed=failed, behalf=behalf))

    def let(self) -> None:
        while self.waiting:
            self.waiting.popleft()()


async def again(ctx: DurableContext) -> Any:
    return await ctx.child(ctx.agent_id.rpartition(".")[2], ctx.message + 1)


async def test_a_job_that_begins_itself_ends_at_the_depth_that_there_may_be() -> None:
    agent, place = Agent(again), home()
    async with hosting(place, agent) as running:
        running.begin("job", 0)
        await running.over("job")
    begun = [each.job for each in entries(place) if isinstance(each, Begin)]
    assert begun == ["job", "job~1", "job~1~1", "job~1~1~1", "job~1~1~1~1", "job~1~1~1~1~1"]
    deepest = agent.errors[begun[-1]]
    assert isinstance(deepest, EffectError)
    assert (deepest.type, deepest.message) == (
        "DepthExceeded",
        " > ".join([AGENT] * 7)
        + f" is not begun: jobs of {AGENT} may be 5 levels of children deep (ChildLimits(max_depth=…))",
    )
    assert set(agent.outcomes.values()) == {"failed"}


class Open:
    """Counts the jobs that are open at once, and the most of them."""

    def __init__(self) -> None:
        self.now: set[str] = set()
        self.most = 0

    async def child(self, ctx: DurableContext) -> Any:
        self.now.add(ctx.job_id)
        self.most = max(self.most, len(self.now))
        await ctx.step(asyncio.sleep, 0.001 * (ctx.message % 3), effect="read")
        self.now.discard(ctx.job_id)
        return ctx.message


@pytest.mark.parametrize(("count", "most"), [(120, 100), (7, 2), (5, 1)])
async def test_more_children_than_a_job_may_have_wait_for_places(count: int, most: int) -> None:
    seen = Open()

    async def job(ctx: DurableContext) -> Any:
        if ctx.message != "many":
            return await seen.child(ctx)
        return await asyncio.gather(*(ctx.child("agent", each) for each in range(count)))

    agent, place = Agent(job), home()
    async with hosting(place, agent, children=ChildLimits(max_child_jobs=most)) as running:
        running.begin("job", "many")
        await running.over("job")
    assert agent.done["job"] == list(range(count))
    assert seen.most == most
    begun = [each.job for each in entries(place) if isinstance(each, Begin)]
    assert begun == ["job", *(f"job~{number}" for number in range(1, count + 1))]


@pytest.mark.slow  # half a second of a core
async def test_waiting_children_begin_after_a_crash_at_any_entry() -> None:
    async def job(ctx: DurableContext) -> Any:
        if ctx.message != "many":
            return await ctx.step(lambda: ctx.message, effect="read")
        return await asyncio.gather(*(ctx.child("agent", each) for each in range(5)))

    place, agent = home(), Agent(job)
    async with hosting(place, agent, children=ChildLimits(max_child_jobs=2)) as running:
        running.begin("job", "many")
        await running.over("job")
    for count in range(1, len(entries(place))):
        cut, again = prefix(place, count), Agent(job)
        async with hosting(cut, again, children=ChildLimits(max_child_jobs=2)) as running:
            await running.over("job")
        ends = {each.job: each.outcome for each in entries(cut) if isinstance(each, End)}
        assert ends == dict.fromkeys(("job", *(f"job~{number}" for number in range(1, 6))), "succeeded"), count


async def test_a_child_that_waits_and_is_not_awaited_any_more_never_begins_and_gives_its_place_to_the_next() -> None:
    async def job(ctx: DurableContext) -> Any:
        if isinstance(ctx.message, int):
            return await ctx.wait("go") if ctx.message == 0 else ctx.message
        tasks = [asyncio.create_task(ctx.child("agent", each)) for each in range(4)]
        await ctx.wait("on")
        tasks[1].cancel()
        tasks[0].cancel()
        return [await tasks[2], await tasks[3]]

    agent, place = Agent(job), home()
    async with hosting(place, agent, children=ChildLimits(max_child_jobs=1)) as running:
        running.begin("job", "many")
        await running.parks("job~2")
        running.journal.post(Letter("signal", job="job", name="on", token="t"))
        await running.over("job")
    assert agent.done["job"] == [2, 3]
    begun = [each.job for each in entries(place) if isinstance(each, Begin)]
    assert begun == ["job", "job~2", "job~4", "job~5"]


@pytest.mark.parametrize("outlive", [True, False])
async def test_children_that_wait_at_the_end_of_their_parent_begin_if_they_may_outlive_it(outlive: bool) -> None:
    async def job(ctx: DurableContext) -> Any:
        if isinstance(ctx.message, int):
            return ctx.message
        for each in range(3):
            asyncio.create_task(ctx.child("agent", each))  # noqa: RUF006
        await asyncio.sleep(0)
        await ctx.step(lambda: 1, effect="read")
        return "over"

    agent, place = Slow(job), home()
    async with hosting(place, agent, children=ChildLimits(max_child_jobs=1, outlive=outlive)) as running:
        running.begin("job", "many")
        await running.over("job")
        agent.let()
        await running.over(*(("job~1", "job~2", "job~3") if outlive else ()))
    assert agent.done.pop("job") == "over"
    assert agent.done == ({"job~1": 0, "job~2": 1, "job~3": 2} if outlive else {})


async def test_a_job_that_may_have_no_children_is_told_so() -> None:
    async def job(ctx: DurableContext) -> Any:
        return await ctx.child("agent", 1)

    agent = Agent(job)
    async with hosting(home(), agent, children=ChildLimits(max_child_jobs=0)) as running:
        running.begin("job", 1)
        await running.over("job")
    assert "a job of app.agent may have no children (ChildLimits(max_child_jobs=…))" in str(agent.errors["job"])


async def test_a_cancel_is_told_to_the_whole_tree_before_it_grows_on() -> None:
    agent, place = Agent(again), home()
    async with hosting(place, agent) as running:
        running.host.register(AGENT, agent, DEEP)
        running.begin("job", 0)
        await running.until(lambda: running.host.jobs.agent_of("job" + "~1" * 30))
        running.journal.post(Letter("cancel", job="job", name="stop"))
        await running.until(lambda: not running.host.statistics()["running"] + running.host.statistics()["parked"])
        told = entries(place)
        begun = [each.job for each in told if isinstance(each, Begin)]
        await running.over(*begun)
    assert [each.outcome for each in told if isinstance(each, End)] == ["cancelled"] * len(begun)
    first = next(at for at, each in enumerate(told) if isinstance(each, Cancel))
    assert (told[first].job, told[first].reason) == ("job", "stop")
    above = [each.job for each in told[:first] if isinstance(each, Begin)]
    cancelled = [each.job for each in told[first:] if isinstance(each, Cancel)]
    assert cancelled[: len(above)] == above, "in one step, from the first job down"
    assert sorted(cancelled) == sorted(begun), "each once"
    late = [at for at, each in enumerate(told) if isinstance(each, Begin) and at > first]
    assert len(late) <= 1, "what was asked for before the cancel"
    assert all(isinstance(told[at + 1], Cancel) and told[at + 1].job == told[at].job for at in late)


async def test_after_a_crash_in_the_middle_of_a_cancel_the_whole_tree_ends() -> None:
    async def job(ctx: DurableContext) -> Any:
        return await (ctx.child("agent", ctx.message - 1) if ctx.message else ctx.wait("never"))

    place = home()
    async with hosting(place, Agent(job)) as running:
        running.begin("job", 3)
        await running.parks("job~1~1~1")
        running.journal.post(Letter("cancel", job="job"))
        await running.over("job", "job~1", "job~1~1", "job~1~1~1")
    whole = entries(place)
    first = next(at for at, each in enumerate(whole) if isinstance(each, Cancel))
    for count in range(first + 1, len(whole)):
        cut, agent = prefix(place, count), Agent(job)
        async with hosting(cut, agent) as running:
            await running.over(*(each.job_id for each in running.open if each.ended is None))
        ends = {each.job: each.outcome for each in entries(cut) if isinstance(each, End)}
        assert ends == dict.fromkeys(("job", "job~1", "job~1~1", "job~1~1~1"), "cancelled"), count


@pytest.mark.parametrize("way", ["cancel", "time-out"])
async def test_a_child_that_nobody_waits_for_when_its_turn_comes_does_not_begin(way: str) -> None:
    made: list[str] = []

    @tool(effect="unsafe")
    async def pay(who: str) -> None:
        made.append(who)

    async def job(ctx: DurableContext) -> Any:
        if ctx.message == "child":
            await ctx.call(pay, "bob")
        async with asyncio.timeout(60 if way == "time-out" else None):
            await ctx.child("agent", "child")

    clock = ManualClock(1_000.0)
    agent, place, child = Slow(job, clock), MemoryStorage(clock), "job~1" if way == "cancel" else "job~2"
    async with hosting(place, agent) as running:
        running.begin("job", "parent")
        await running.parks("job")
        if way == "cancel":
            running.journal.post(Letter("cancel", job="job"))
        else:
            clock.advance(60)
        await running.over("job")
        agent.let()
        await running.over(child)
    assert agent.outcomes == {"job": "cancelled" if way == "cancel" else "failed", child: "cancelled"}
    assert made == []
    assert [each for each in entries(place) if each.job == child] == []


async def test_a_cancelled_job_begins_no_child_while_it_cleans_up() -> None:
    seen: list[Any] = []

    async def job(ctx: DurableContext) -> Any:
        try:
            await ctx.wait("never")
        finally:
            seen.append((await asyncio.gather(ctx.child("agent", "undo"), return_exceptions=True))[0])

    agent, place = Agent(job), home()
    async with hosting(place, agent) as running:
        running.begin("job")
        await running.parks("job")
        running.journal.post(Letter("cancel", job="job"))
        await running.over("job")
    assert [(each.type, each.message) for each in seen] == [
        ("JobCancelled", f"job job was cancelled, and begins no child {AGENT}")
    ] * len(seen)
    assert [each.job for each in entries(place) if isinstance(each, Begin)] == ["job"]


async def test_a_call_that_is_given_up_in_the_turn_in_which_it_is_asked_is_not_made() -> None:
    made: list[str] = []

    @tool(effect="unsafe")
    async def pay(who: str) -> None:
        made.append(who)

    async def job(ctx: DurableContext) -> Any:
        asked = asyncio.ensure_future(ctx.call(pay, "bob"))
        await asyncio.sleep(0)
        asked.cancel()
        await ctx.call(pay, "eve")

    place = home()
    for _ in range(2):  # and when it runs over its history
        async with hosting(place, Agent(job)) as running:
            if not entries(place):
                running.begin("job")
            await running.over(*(["job"] if not running.open else []))
    assert made == ["eve"]


def test_what_an_ended_job_has_begun_stands_below_the_job_above_it() -> None:
    jobs = JobTree()
    for name in ("a", "a~1", "a~1~2", "a~10", "b"):
        jobs.add(name, "app.x", begun=True)
    assert jobs.chain("a~1~2") == ["app.x"] * 3
    jobs.end("a~1")
    assert jobs.chain("a~1~2") == ["app.x", "…", "app.x"]
    cancel = Cancel("a", 1, "enough", "eve")
    why = "job a was cancelled: enough"
    assert jobs.cancel(cancel, 2) == [Cancel("a~10", 2, why, "eve"), Cancel("a~1~2", 2, why, "eve")]
    assert jobs.cancel(cancel, 3) == []
    assert "b" not in jobs.cancelled
    for name in ("a~1~2", "a", "a~10", "b"):
        jobs.end(name)
    assert not any(vars(jobs).values())


def test_of_a_child_that_nobody_waits_for_nothing_is_kept_when_it_has_ended_or_does_not_begin() -> None:
    jobs = JobTree()
    jobs.add("a", "app.x", begun=True)
    for name in ("a~1", "a~2", "a~3"):
        jobs.ask(name)
    jobs.add("a~1", "app.x", begun=True)
    jobs.end("a~1")  # before its job was told that it is cancelled
    assert jobs.drop("a", [1, 2, 3], "late", 1) == []
    jobs.end("a")
    jobs.add("a~2", "app.x", begun=False)
    assert not jobs.begins("a~2")
    jobs.end("a~2")
    jobs.not_begun("a~3")
    assert not any(vars(jobs).values())


def test_ids_say_what_has_begun_a_job() -> None:
    assert parent_of(child_id("a~1", 12)) == ("a~1", 12)
    for name in ("a", "a~", "a~x", "a~01", "a~0", "~1~"):
        assert parent_of(name) == ("", 0), name


@pytest.mark.parametrize(
    "wrong", [{"max_depth": -1}, {"max_depth": "5"}, {"max_child_jobs": 1.5}, {"outlive": "yes"}, {"outlive": None}]
)
def test_limits_that_are_none_are_refused(wrong: Any) -> None:
    with pytest.raises(UserError, match=f"ChildLimits: {next(iter(wrong))}"):
        ChildLimits(**wrong)
    with pytest.raises(UserError, match=re.escape("children={")):
        RuntimeKernel.create(agent=again, children=wrong)
    with pytest.raises(UserError, match=re.escape("agent app.agent: children={")):
        AgentSpec.of("app.agent", again, durable=True, children=wrong)
    with pytest.raises(UserError, match="children"):
        AgentSpec.of("app.agent", again, children=ChildLimits())


async def test_a_kernel_and_an_agent_say_what_their_jobs_may_begin() -> None:
    async with RuntimeKernel.create(agent=again, children=ChildLimits(max_depth=1)) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=0))
        with pytest.raises(EffectError, match=r"kernel\.again > kernel\.again > kernel\.again"):
            await handle.result()
        assert len(await kernel.jobs.find()) == 2
    assert AgentSpec.of("app.agent", again, durable=True, children=ChildLimits(max_depth=9)).children.max_depth == 9


def leaving(way: str, seen: list[str]) -> Callable[[DurableContext], Any]:
    """A job that ends, or begins anew, while its child and that child's child wait for ever."""

    async def job(ctx: DurableContext) -> Any:
        if ctx.message == "below":
            return await ctx.wait("never")
        if ctx.message == "child":
            asked = asyncio.ensure_future(ctx.child("agent", "below"))
            try:
                return await asked
            except asyncio.CancelledError as error:
                seen.append(str(error))
                raise
        if ctx.message == "anew":
            return "anew"
        left = asyncio.ensure_future(ctx.child("agent", "child"))
        await ctx.wait("go")
        if way == "fails":
            raise ValueError("no more")
        if way == "anew":
            ctx.continue_as("anew")
        return left.done()

    return job


WAYS = {"returns": "succeeded", "fails": "failed", "anew": "succeeded"}


@pytest.mark.parametrize("way", WAYS)
async def test_a_job_that_ends_leaves_no_child_behind(way: str) -> None:
    """A child that nobody waits for went on after its parent, with its calls and its costs."""
    seen: list[str] = []
    agent, place = Agent(leaving(way, seen)), home()
    async with hosting(place, agent) as running:
        running.begin("job", "parent")
        await running.parks("job~2~1")
        running.journal.post(Letter("signal", "s", "job", "go"))
        await running.over("job", "job~2", "job~2~1")
    assert agent.outcomes == {"job": WAYS[way], "job~2": "cancelled", "job~2~1": "cancelled"}
    why = "job job has ended, and did not wait for it"
    assert set(seen) == {why}
    told = {each.job: each.reason for each in entries(place) if isinstance(each, Cancel)}
    assert told == {"job~2": why, "job~2~1": f"job job~2 was cancelled: {why}"}
    running.host.jobs.limits.clear()
    assert not any(vars(running.host.jobs).values())


@pytest.mark.parametrize("way", WAYS)
async def test_after_a_crash_at_the_end_of_a_job_its_children_end_too_and_once(way: str) -> None:
    place = home()
    async with hosting(place, Agent(leaving(way, []))) as running:
        running.begin("job", "parent")
        await running.parks("job~2~1")
        running.journal.post(Letter("signal", "s", "job", "go"))
        await running.over("job", "job~2", "job~2~1")
    whole = entries(place)
    first = next(at for at, each in enumerate(whole) if isinstance(each, Cancel))
    assert next(each.job for each in whole if isinstance(each, End)) == "job" or way == "anew"
    for count in range(first, len(whole)):
        cut, agent = prefix(place, count), Agent(leaving(way, []))
        async with hosting(cut, agent) as running:
            await running.over(*(each.job_id for each in running.open if each.ended is None))
        found = entries(cut)
        ends = {each.job: each.outcome for each in found if isinstance(each, End)}
        assert ends == {"job": WAYS[way], "job~2": "cancelled", "job~2~1": "cancelled"}, count
        assert len([each for each in found if isinstance(each, Cancel)]) == 2, count


async def test_a_child_that_begins_after_the_end_of_its_job_is_cancelled_then() -> None:
    async def job(ctx: DurableContext) -> Any:
        if ctx.message == "parent":
            asyncio.ensure_future(ctx.child("agent", "child"))  # noqa: RUF006
            return await ctx.wait("go")
        return await ctx.wait("never")

    agent, place = Slow(job), home()
    async with hosting(place, agent) as running:
        running.begin("job", "parent")
        await running.parks("job")
        running.journal.post(Letter("signal", "s", "job", "go"))
        await running.over("job")
        agent.let()
        await running.over("job~2")
    assert agent.outcomes == {"job": "succeeded", "job~2": "cancelled"}


async def test_a_cancel_reaches_below_a_job_that_had_ended_before_the_start() -> None:
    async def job(ctx: DurableContext) -> Any:
        if ctx.message == "below":
            return await ctx.wait("never")
        if ctx.message == "child":
            asyncio.ensure_future(ctx.child("agent", "below"))  # noqa: RUF006
            return await asyncio.sleep(0)
        await ctx.child("agent", "child")
        return await ctx.wait("never")

    place = home()
    for restarted in (False, True):
        agent = Agent(job)
        restored = (MemoryReader(place).positions(), None) if restarted else (None, None)
        async with hosting(place, agent, restored=restored) as running:
            running.host.register(AGENT, agent, ChildLimits(outlive=True))
            if not restarted:
                running.begin("job", "parent")
            await running.parks("job")
            await running.parks("job~1~1")
            if restarted:
                assert [each.job_id for each in running.open] == ["job", "job~1~1"]
                running.journal.post(Letter("cancel", job="job"))
                await running.over("job", "job~1~1")
    assert agent.outcomes == {"job": "cancelled", "job~1~1": "cancelled"}


async def test_children_outlive_their_job_where_its_agent_says_so() -> None:
    agent, place = Agent(leaving("returns", [])), home()
    async with hosting(place, agent, children=ChildLimits(outlive=True)) as running:
        running.begin("job", "parent")
        await running.parks("job~2~1")
        running.journal.post(Letter("signal", "s", "job", "go"))
        await running.over("job")
        running.journal.post(Letter("signal", "t", "job~2~1", "never", b"7"))
        await running.over("job~2")
    assert agent.outcomes == {"job": "succeeded", "job~2": "succeeded", "job~2~1": "succeeded"}
