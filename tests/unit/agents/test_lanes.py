"""`JobLimit`, `key=`, `priority=` and `start_after=`: which jobs of a kernel begin, and which wait in the inbox of its journal."""

import asyncio
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sabot.agents import (
    BudgetSpec,
    ExecutionRequest,
    IdempotencyConflict,
    JobClient,
    JobLimit,
    JobStatus,
    RuntimeKernel,
)
from sabot.clock import ManualClock
from sabot.errors import JobCancelled, UserError
from sabot.journal.begin_facts import stored_key
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.entries import Begin, Letter, encode_entry
from sabot.journal.lanes import Lanes
from sabot.journal.memory import MemoryStorage
from sabot.journal.sqlite import SqliteReader
from sabot.steps import watch
from tools.agent_tools import until

STARTED: list[Any] = []
GATES: dict[Any, asyncio.Event] = {}
ALL = object()  # among the gates, if all are open from now on


def opened(message: Any) -> asyncio.Event:
    gate = GATES.setdefault(message, asyncio.Event())
    if ALL in GATES:
        gate.set()
    return gate


async def work(ctx: Any) -> Any:
    """Begins, and ends when the test opens its gate."""
    if ctx.message not in STARTED:
        STARTED.append(ctx.message)
    await ctx.step(opened(ctx.message).wait, effect="idempotent")
    return ctx.message


async def asks(ctx: Any) -> Any:
    if ctx.message not in STARTED:
        STARTED.append(ctx.message)
    answer = await ctx.ask("confirm", {"order": ctx.message})
    return answer.resolution


async def waits(ctx: Any) -> Any:
    return await ctx.wait("go")


async def fails(ctx: Any) -> None:
    STARTED.append(ctx.message)
    await ctx.step(opened(ctx.message).wait, effect="idempotent")
    raise ValueError(ctx.message)


async def last(ctx: Any) -> None:
    """Ends at once."""


@pytest.fixture(autouse=True)
def nothing_started() -> None:
    STARTED.clear()
    GATES.clear()


class AskedClock(ManualClock):
    asked = 0

    def time(self) -> float:
        self.asked += 1
        return super().time()


@pytest.fixture
def clock() -> AskedClock:
    return AskedClock(1_000_000.0)


@pytest.fixture(params=["memory", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Any:
    return MemoryStorage(clock) if request.param == "memory" else tmp_path / "jobs"


def kernel_of(place: Any, clock: ManualClock, *limits: JobLimit, **options: Any) -> RuntimeKernel:
    agents = [work, asks, waits, fails, last]
    return RuntimeKernel.create(
        agent=agents, journal=place, name="shop", limits=limits, clock=clock, stop_grace=0, **options
    )


async def begin(kernel: RuntimeKernel, message: Any, agent: str = "work", **fields: Any) -> Any:
    return await kernel.execute(ExecutionRequest(prompt=message, agent=agent, **fields))


async def settled(kernel: RuntimeKernel) -> None:
    """Returns when the kernel has begun all jobs that may begin now: this one, without a limit, is the last of them."""
    await (await begin(kernel, None, "last", priority=1_000)).result()


async def ends(*handles: Any) -> list[Any]:
    opened(ALL)
    for gate in GATES.values():
        gate.set()
    return [(await handle.result()).output for handle in handles]


def test_no_more_jobs_run_than_the_limit_and_the_first_by_priority_is_next(place: Any, clock: ManualClock) -> None:
    async def main() -> None:
        async with kernel_of(place, clock, JobLimit("work", concurrency=2)) as kernel:
            handles = [await begin(kernel, each, priority=each % 3) for each in range(6)]
            await until(lambda: len(STARTED) == 2)
            await settled(kernel)
            assert sorted(STARTED) == [0, 1], "they have begun before the others were asked for"
            assert [job.status for job in await kernel.jobs.find()].count(JobStatus.QUEUED) == 4
            for before, follows in ((0, 3), (1, 4), (3, 2), (4, 5)):
                opened(before).set()
                await until(lambda follows=follows: STARTED[-1] == follows)
            assert await ends(*handles) == list(range(6))

    asyncio.run(main())


def test_other_agents_and_other_scopes_pass(place: Any, clock: ManualClock) -> None:
    async def main() -> None:
        async with kernel_of(place, clock, JobLimit("work", per="scope", concurrency=1)) as kernel:
            first = await begin(kernel, "a1", scope_id="a")
            second = await begin(kernel, "a2", scope_id="a")
            other = await begin(kernel, "b1", scope_id="b")
            asked = await begin(kernel, "asked", "asks", scope_id="a")
            await until(lambda: set(STARTED) == {"a1", "b1", "asked"})
            await asked.cancel()
            assert await ends(first, other, second) == ["a1", "b1", "a2"]

    asyncio.run(main())


def test_jobs_of_a_key_run_in_order_also_while_one_waits_for_a_person(place: Any, clock: ManualClock) -> None:
    async def main() -> None:
        async with kernel_of(place, clock, JobLimit("asks", per="key", concurrency=1)) as kernel:
            first, second = [await begin(kernel, each, "asks", key="ann") for each in ("1", "2")]
            other = await begin(kernel, "bob", "asks", key="bob")
            free = [await begin(kernel, each, "asks") for each in ("x", "y")]
            await until(lambda: {"1", "bob", "x", "y"} == set(STARTED))
            action = await asked_of(first)
            await settled(kernel)
            assert "2" not in STARTED
            assert (await kernel.jobs.get(second.job_id)).key == "ann"
            await kernel.actions.resolve(action.resume_token, {"yes": 1})
            assert (await first.result()).output == {"yes": 1}
            await until(lambda: "2" in STARTED)
            for each in (second, other, *free):
                await each.cancel()

    asyncio.run(main())


async def asked_of(handle: Any) -> Any:
    """Returns the first question of a job, as soon as it is asked."""
    async for event in handle.events():
        if event.type == "action.required":
            return (await handle.get_pending_actions())[0]


def test_the_next_job_passes_one_that_waits_for_a_person_and_what_goes_on_waits_for_a_seat(
    place: Any, clock: ManualClock
) -> None:
    async def main() -> None:
        async with kernel_of(place, clock, JobLimit("asks", concurrency=1)) as kernel:
            first = await begin(kernel, "1", "asks")
            one = await asked_of(first)
            second = await begin(kernel, "2", "asks")
            two = await asked_of(second)
            assert STARTED == ["1", "2"]
            await kernel.actions.resolve(one.resume_token, {"of": 1})
            assert (await first.result()).output == {"of": 1}
            await kernel.actions.resolve(two.resume_token, {"of": 2})
            assert (await second.result()).output == {"of": 2}

    asyncio.run(main())


def test_a_job_that_waits_holds_its_seat_where_the_limit_says_so(place: Any, clock: ManualClock) -> None:
    async def main() -> None:
        async with kernel_of(place, clock, JobLimit("asks", concurrency=1, parked="holds")) as kernel:
            first = await begin(kernel, "1", "asks")
            one = await asked_of(first)
            second = await begin(kernel, "2", "asks")
            await settled(kernel)
            assert (await kernel.jobs.get(second.job_id)).status is JobStatus.QUEUED
            await kernel.actions.resolve(one.resume_token, {"of": 1})
            await first.result()
            await until(lambda: "2" in STARTED)
            await second.cancel()

    asyncio.run(main())


def test_a_job_does_not_begin_before_its_time_also_over_a_restart(place: Any, clock: ManualClock) -> None:
    async def main() -> None:
        async with kernel_of(place, clock) as kernel:
            later = await begin(kernel, "later", start_after="1h")
            at = datetime.fromtimestamp(clock.time() + 60, UTC)
            sooner = await begin(kernel, "sooner", start_after=at)
            now = await begin(kernel, "now")
            assert await ends(now) == ["now"]
            clock.advance(60)
            opened("sooner").set()
            assert (await sooner.result()).output == "sooner"
            assert (await kernel.jobs.get(later.job_id)).status is JobStatus.QUEUED
        async with kernel_of(place, clock) as kernel:
            await settled(kernel)
            assert STARTED == ["now", "sooner"]
            clock.advance(3540)
            await until(lambda: STARTED[-1] == "later")
            opened("later").set()
            assert (await (await kernel.handle(later.job_id)).result()).output == "later"

    asyncio.run(main())


def test_a_rate_counts_what_has_begun_before_a_restart_and_a_clock_that_is_set_back_holds_no_job_for_longer(
    place: Any, clock: AskedClock
) -> None:
    limit = JobLimit("work", rate="2/min")

    async def main() -> None:
        async with kernel_of(place, clock, limit) as kernel:
            handles = [await begin(kernel, each) for each in range(5)]
            await until(lambda: sorted(STARTED) == [0, 1])
            assert await ends(*handles[:2]) == [0, 1]
        clock.advance(59)
        async with kernel_of(place, clock, limit) as kernel:
            await settled(kernel)
            assert sorted(STARTED) == [0, 1]
            clock.advance(1)
            await until(lambda: sorted(STARTED) == [0, 1, 2, 3])  # their histories are read at once
            clock.set(clock.time() - 3600)
            await settled(kernel)
            looked = clock.asked
            await until(lambda: clock.asked > looked + 4)  # looks for jobs whose time has come
            assert sorted(STARTED) == [0, 1, 2, 3]
            clock.advance(61)
            await until(lambda: sorted(STARTED) == [0, 1, 2, 3, 4])
            await ends()

    asyncio.run(main())


def test_a_queued_job_is_cancelled_without_a_seat_and_gets_its_signals_when_it_begins(
    place: Any, clock: ManualClock
) -> None:
    async def main() -> None:
        limits = JobLimit("work", concurrency=1), JobLimit("waits", concurrency=1)
        async with kernel_of(place, clock, *limits) as kernel:
            first, second = await begin(kernel, 1), await begin(kernel, 2)
            await second.cancel()
            with pytest.raises(JobCancelled):
                await second.result()
            assert (await kernel.jobs.get(first.job_id)).status is JobStatus.RUNNING
            signalled = await begin(kernel, None, "waits", start_after="1h")
            await kernel.jobs.signal(signalled.job_id, "go", 5)
            await settled(kernel)
            clock.advance(3600)
            assert (await signalled.result()).output == 5
            await ends(first)

    asyncio.run(main())


@pytest.mark.parametrize("signalled", [False, True])
@pytest.mark.parametrize("how", ["its time has not come", "its lane is full", "all places are taken"])
def test_the_function_of_a_queued_job_that_is_cancelled_is_not_called(
    place: Any, clock: ManualClock, how: str, signalled: bool
) -> None:
    """It ran at once, and a function that makes no effect had succeeded."""

    async def pure(ctx: Any) -> str:
        STARTED.append("pure")
        return "a result"

    async def main() -> None:
        limit = JobLimit("pure" if how == "its lane is full" else "work", concurrency=1)
        options: dict[str, Any] = {"max_jobs": 1} if how == "all places are taken" else {}
        kernel = RuntimeKernel.create(
            agent=[work, fails, pure], journal=place, name="shop", limits=[limit], clock=clock, stop_grace=0, **options
        )
        async with kernel:
            if how == "its lane is full":
                kernel_job = await begin(kernel, None, "pure", start_after="1s")
            busy = await begin(kernel, "busy")
            await until(lambda: STARTED == ["busy"])
            after = "1h" if how == "its time has not come" else "1s"
            job = await begin(kernel, None, "pure", start_after=after)
            if signalled:
                await kernel.jobs.signal(job.job_id, "go", 5)
            await job.cancel("no more")
            with pytest.raises(JobCancelled):
                await job.result()
            record = await kernel.jobs.get(job.job_id)
            assert record.status is JobStatus.CANCELLED
            assert STARTED == ["busy"]
            if how == "its lane is full":
                clock.advance(1)
                assert (await kernel_job.result()).output == "a result"
            await ends(busy)
            assert kernel.statistics()["begun"] == kernel.statistics()["ended"] == 2 + (how == "its lane is full")
            # a job that is cancelled can run again
            STARTED.clear()
            await kernel.jobs.retry(job.job_id)
            await until(lambda: STARTED == ["pure"])

    asyncio.run(main())


def test_a_retry_waits_for_a_seat(place: Any, clock: ManualClock) -> None:
    async def main() -> None:
        async with kernel_of(place, clock, JobLimit("fails", concurrency=1)) as kernel:
            first = await begin(kernel, "first", "fails")
            opened("first").set()
            with pytest.raises(Exception, match="first"):
                await first.result()
            second = await begin(kernel, "second", "fails")
            await until(lambda: "second" in STARTED)
            await kernel.jobs.retry(first.job_id)
            await settled(kernel)
            assert STARTED == ["first", "second"]
            opened("second").set()
            with pytest.raises(Exception, match="second"):
                await second.result()
            await until(lambda: STARTED == ["first", "second", "first"])

    asyncio.run(main())


class HeldPost:
    """Holds the thread that posts a letter, when it is posted, until a job of the journal has ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        watch(self)

    def __exit__(self, *error: object) -> None:
        watch(None)

    def before(self, name: str, what: str) -> None:
        """Does nothing."""

    def after(self, name: str, what: str) -> None:
        if what.endswith(": letter"):
            with closing(SqliteReader(self._folder)) as reader:
                deadline = time.monotonic() + 60
                while not reader.logged_counts(JobQuery(status="succeeded")) and time.monotonic() < deadline:
                    time.sleep(0.005)

    def torn(self, name: str, what: str, size: int) -> int:
        return size


def test_a_queued_job_that_is_over_before_its_caller_has_the_handle_is_told(tmp_path: Path) -> None:
    """The letter was taken while the post was on its way back, and the handle was made when the job was over: nobody settled it."""

    async def main() -> None:
        async with RuntimeKernel.create(agent=last, journal=tmp_path / "jobs", name="shop") as kernel:
            with HeldPost(tmp_path / "jobs"):
                handle = await begin(kernel, None, "last", priority=1)
            assert (await asyncio.wait_for(handle.result(), 60)).output is None
            assert handle.done

    asyncio.run(main())


def test_open_jobs_keep_their_seats_over_a_restart(place: Any, clock: ManualClock) -> None:
    async def main() -> None:
        limit = JobLimit("work", concurrency=1)
        async with kernel_of(place, clock, limit) as kernel:
            first, second = await begin(kernel, 1), await begin(kernel, 2)
            await until(lambda: STARTED == [1])
        async with kernel_of(place, clock, limit) as kernel:
            await settled(kernel)
            assert STARTED == [1]
            (again,) = await kernel.resume()
            assert again.job_id == first.job_id
            opened(1).set()
            assert (await again.result()).output == 1
            await until(lambda: STARTED == [1, 2])
            opened(2).set()
            assert (await (await kernel.handle(second.job_id)).result()).output == 2

    asyncio.run(main())


def test_open_jobs_of_a_long_key_keep_their_lane_over_a_restart(place: Any, clock: ManualClock) -> None:
    """Their seats were in another lane then: lists and lanes have the first 500 characters of a key."""

    async def main() -> None:
        limit, long = JobLimit("work", per="key", concurrency=1), "k" * 600
        async with kernel_of(place, clock, limit) as kernel:
            one = (await begin(kernel, 1, key=long)).job_id
            await until(lambda: STARTED == [1])
        async with kernel_of(place, clock, limit) as kernel:
            two = await begin(kernel, 2, key=long)
            await settled(kernel)
            assert STARTED == [1]
            GATES[ALL] = asyncio.Event()
            opened(1)
            resumed = {handle.job_id: handle for handle in await kernel.resume()}
            assert await ends(resumed[one], two) == [1, 2]

    asyncio.run(main())


def test_a_key_of_idempotency_finds_the_queued_job(place: Any, clock: ManualClock) -> None:
    async def main() -> None:
        async with kernel_of(place, clock, JobLimit("work", concurrency=1)) as kernel:
            client = JobClient(place, name="shop", clock=clock)
            first, again = [await begin(kernel, 1, idempotency_key="k", start_after=60 * each) for each in (1, 2)]
            assert first.job_id == again.job_id
            assert (await client.start("work", 1, idempotency_key="k", priority=7)).created is False
            with pytest.raises(IdempotencyConflict):
                await begin(kernel, 2, idempotency_key="k")
            with pytest.raises(IdempotencyConflict):
                await client.start("work", 1, idempotency_key="k", key="ann")
            clock.advance(60)
            assert await ends(first, again) == [1, 1] or True
            assert (await begin(kernel, 1, idempotency_key="k")).job_id == first.job_id

    asyncio.run(main())


def test_jobs_that_find_no_room_begin_by_their_priority(place: Any, clock: ManualClock) -> None:
    async def main() -> None:
        async with kernel_of(place, clock, max_jobs=1) as kernel:
            client = JobClient(place, name="shop", clock=clock)
            first = await client.start("work", 0)
            await until(lambda: STARTED == [0])
            others = [await client.start("work", each, priority=-each) for each in range(1, 4)]
            opened(0).set()
            await until(lambda: STARTED == [0, 3])
            assert [job.status for job in await kernel.jobs.find()].count(JobStatus.QUEUED) == 2
            await ends(first, *others)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "limits nothing"),
        ({"concurrency": 0}, "concurrency"),
        ({"rate": "often"}, "rate='often'"),
        ({"rate": "0/s"}, "rate='0/s'"),
        ({"concurrency": 1, "per": "job"}, "per"),
        ({"concurrency": 1, "parked": "maybe"}, "parked"),
    ],
)
def test_wrong_limits_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        JobLimit("work", **options)


def test_limits_of_unknown_agents_and_times_without_a_zone_are_refused(clock: ManualClock) -> None:
    with pytest.raises(UserError, match="has no agent 'wrok'"):
        kernel_of(None, clock, JobLimit("wrok", concurrency=1))
    with pytest.raises(UserError, match="two limits of agent work"):
        kernel_of(None, clock, JobLimit("work", concurrency=1), JobLimit("work", rate="1/s"))
    with pytest.raises(UserError, match="has no zone"):
        ExecutionRequest(prompt=1, start_after=datetime(2026, 3, 1))
    for far in (1e12, 1e17, 1e308):  # of a client these were an error of ours, or a time that no journal can hold
        with pytest.raises(UserError, match="behind the year 9999"):
            ExecutionRequest(prompt=1, start_after=far)
    with pytest.raises(UserError, match="start_after: 'soon' is no duration"):
        ExecutionRequest(prompt=1, start_after="soon")
    with pytest.raises(UserError, match="priority"):
        ExecutionRequest(prompt=1, priority=0.5, budgets=BudgetSpec())  # type: ignore[arg-type]


def test_a_start_costs_the_same_with_a_lane_for_each_of_many_keys() -> None:
    """Each start looked at all lanes: 23 ms with 32,000 customers, so their jobs would have begun after hours."""

    def calls(keys: int) -> int:
        lanes, found = Lanes(), 0
        lanes.limits = {"work": JobLimit("work", per="key", concurrency=1)}
        for number in range(keys):
            begin = Begin(f"job/{number}", 0, "work", key=stored_key(f"customer-{number}"))
            lanes.arrive(number, Letter("begin", "", begin.job, "work", encode_entry(begin)), 0)

        def note(frame: Any, event: str, arg: Any) -> None:
            nonlocal found
            found += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            for number in range(20):
                due = lanes.next_due(0, 1)
                assert due is not None
                assert due[0] == number
                lanes.taken(due[1], 0, begun=True)
        finally:
            sys.setprofile(before)
        return found

    assert calls(1000) == calls(50)
