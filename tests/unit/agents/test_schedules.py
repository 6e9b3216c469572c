"""`Schedule`: times of a calendar, over changes of the clock, and the jobs that begin at them."""

import asyncio
import random
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest

from sabot.agents import JobClient, JobStatus, RuntimeKernel, Schedule
from sabot.agents.kernel.jobs import ExecutionRequest
from sabot.agents.kernel.schedules import CronTimes, ScheduleClock, Schedules
from sabot.clock import ManualClock
from sabot.errors import JobCancelled, TransientError, UserError
from sabot.journal.memory import MemoryInbox, MemoryReader, MemoryStorage
from tools.agent_tools import until

ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/St_Johns",
    "Asia/Kolkata",
    "Africa/Casablanca",
]
FIXED = {"30 2 * * *": (30, 2), "15 1 * * *": (15, 1), "0 3 * * *": (0, 3), "45 2 * * *": (45, 2), "0 0 * * *": (0, 0)}

EACH_HOUR = [
    ("*/20 * * * *", {0, 20, 40}, set(range(24))),
    ("10 */2 * * *", {10}, set(range(0, 24, 2))),
    ("*/15 1-3 * * *", {0, 15, 30, 45}, {1, 2, 3}),
]


def seconds(*when: int) -> float:
    return datetime(*when, tzinfo=UTC).timestamp()  # type: ignore[misc, arg-type]


def changes(zone: str, year: int) -> list[datetime]:
    """The hours of a year before which the offset of a zone was another one."""
    hours = [datetime(year, 1, 1, tzinfo=UTC) + timedelta(hours=at) for at in range(366 * 24)]
    offsets = [each.astimezone(ZoneInfo(zone)).utcoffset() for each in hours]
    return [hour for hour, before, after in zip(hours[1:], offsets, offsets[1:], strict=False) if before != after]


def changes_of(zones: list[str], first: datetime, days: int) -> list[tuple[str, datetime]]:
    """The changes of the clock of zones, each with one of the zones that have it at that minute and between these offsets."""
    found = dict[tuple[datetime, timedelta | None, timedelta | None], str]()
    moments = [first + timedelta(at) for at in range(days)]
    for zone in zones:
        known = ZoneInfo(zone)
        offsets = [each.astimezone(known).utcoffset() for each in moments]
        for day, before, after in zip(moments, offsets, offsets[1:], strict=False):
            if before != after:
                low, high = 0, 24 * 60
                while high - low > 1:
                    middle = (low + high) // 2
                    same = (day + timedelta(minutes=middle)).astimezone(known).utcoffset() == before
                    low, high = (middle, high) if same else (low, middle)
                found.setdefault((day + timedelta(minutes=high), before, after), zone)
    return sorted((zone, change) for (change, _, _), zone in found.items())


@pytest.mark.parametrize("zone", ZONES)
def test_times_around_each_change_of_the_clock_are_those_of_a_walk_minute_by_minute(zone: str) -> None:
    for change in changes(zone, 2026) or [datetime(2026, 3, 29, tzinfo=UTC)]:
        compare_with_a_walk(zone, change)


@pytest.mark.parametrize("most", [10, pytest.param(10_000, marks=pytest.mark.slow)])
def test_times_around_the_changes_of_all_zones_in_ten_years_are_those_of_a_walk(most: int) -> None:
    """In these years zones have changed for good, by half an hour, at midnight, and twice a year around a month."""
    zones = sorted(available_timezones())
    zones = random.Random(52).sample(zones, min(most, len(zones)))
    found = changes_of(zones, datetime(2016, 1, 1, tzinfo=UTC), 3_653)
    assert len(found) > min(most, 200)
    for zone, change in found:
        compare_with_a_walk(zone, change)


def compare_with_a_walk(zone: str, change: datetime) -> None:
    """A fixed time runs at the first minute at which the clock shows it or has passed it, and once; others at each minute that fits."""
    known = ZoneInfo(zone)
    first = (change - timedelta(days=1, hours=1)).replace(minute=0)
    moments = [first + timedelta(minutes=at) for at in range(50 * 60)]
    clocks = [each.astimezone(known).replace(tzinfo=None) for each in moments]
    for cron, (minute, hour) in FIXED.items():
        walked, shown = list[datetime](), set[datetime]()
        for at, (moment, clock) in enumerate(zip(moments, clocks, strict=True)):
            before = clocks[at - 1] if at else clock - timedelta(minutes=1)
            passed = [
                before + timedelta(minutes=more) for more in range(1, 1 + int((clock - before).total_seconds() / 60))
            ]
            fits = [each for each in passed if (each.minute, each.hour) == (minute, hour) and each not in shown]
            shown.update(fits)
            walked += [moment] if fits else []
        assert times(cron, zone, first, moments[-1]) == walked, (cron, zone, change)
    for cron, minutes, hours in EACH_HOUR:
        every = [
            each for each, clock in zip(moments, clocks, strict=True) if clock.minute in minutes and clock.hour in hours
        ]
        assert times(cron, zone, first, moments[-1]) == every, (cron, zone, change)


def times(cron: str, zone: str, first: datetime, last: datetime) -> list[datetime]:
    found = list[datetime]()
    for at in CronTimes(cron, zone).after(first.timestamp() - 1):
        moment = datetime.fromtimestamp(at, UTC)
        if moment > last:
            return found
        found.append(moment)
    return found


@pytest.mark.parametrize(
    ("cron", "then"),
    [
        ("0 9 * * mon-fri", (2026, 11, 30, 9, 0)),
        ("*/15 8-10 * * *", (2026, 11, 29, 8, 0)),
        ("5,10 0 1 jan *", (2027, 1, 1, 0, 5)),
        ("0 0 29 2 *", (2028, 2, 29, 0, 0)),
        ("0 0 13 * fri", (2026, 12, 4, 0, 0)),
        ("0 12 * * 7", (2026, 11, 29, 12, 0)),
        ("0 20/2 * * *", (2026, 11, 28, 22, 0)),
    ],
)
def test_a_cron_gives_the_next_time(cron: str, then: tuple[int, ...]) -> None:
    assert next(CronTimes(cron, "UTC").after(seconds(2026, 11, 28, 21, 0))) == seconds(*then)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Sao_Paulo"])
@pytest.mark.parametrize("cron", ["*/7 * * * *", "30 0 * * *", "0 12 1 * *"])
def test_the_last_times_before_a_moment_are_those_of_a_walk_from_the_start(cron: str, zone: str) -> None:
    """Sao Paulo has set its clocks at midnight."""
    times = CronTimes(cron, zone)
    for first, last in (
        ((2018, 2, 17), (2018, 2, 19)),
        ((2018, 11, 3), (2018, 11, 5)),
        ((2018, 10, 27), (2018, 10, 29)),
    ):
        after, until = seconds(*first, 3, 10), seconds(*last, 1, 50)
        walked = list(takewhile(lambda at, until=until: at <= until, times.after(after)))
        assert times.last(after, until, 1_000) == walked
        assert times.last(after, until, 5) == walked[-5:]
        assert times.last(until, after, 5) == []


def test_the_times_of_a_year_without_a_kernel_are_not_all_looked_at() -> None:
    times = CronTimes("* * * * *", "Europe/Berlin")

    def calls(days: int) -> int:
        until, found = seconds(2026, 11, 28, 12, 0), 0

        def note(frame: Any, event: str, arg: Any) -> None:
            nonlocal found
            found += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            assert len(times.last(until - 86_400 * days, until, 1_000)) == 1_000
        finally:
            sys.setprofile(before)
        return found

    assert calls(365) == calls(5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cron": "0 9 * *"},
        {"cron": "60 9 * * *"},
        {"cron": "0 9 * * funday"},
        {"cron": "0 0 30 feb *"},
        {"cron": "*/0 * * * *"},
        {"cron": "5-1 * * * *"},
        {"zone": "Mars/Phobos"},
        {"missed": "some"},
        {"overlap": "maybe"},
        {"name": ""},
    ],
)
def test_wrong_schedules_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Schedule(**{"name": "s", "agent": "work", "cron": "0 9 * * *", **wrong})


def test_a_step_that_is_longer_than_its_field_is_refused() -> None:
    """`*/61` of minutes was each full hour."""
    for cron in ("*/61 * * * *", "0 1/25 * * *", "0 0 */32 * *", "0 0 1 1-6/13 *", "0 0 * * 1,*/8", "0,1/99 * * * *"):
        with pytest.raises(UserError, match=r"schedule s: the step \d+ of \w+ .* in its cron is longer than the field"):
            RuntimeKernel.create(agent=work, schedules=[Schedule("s", "work", cron)])
    RuntimeKernel.create(agent=work, schedules=[Schedule("s", "work", "*/60 */24 */31 */12 */7")])


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(seconds(2026, 11, 28, 8, 30))


@pytest.fixture(params=["memory", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Any:
    return MemoryStorage(clock) if request.param == "memory" else tmp_path / "jobs"


RAN: list[str] = []


async def work(ctx: Any) -> Any:
    RAN.append(ctx.message)


async def asks(ctx: Any) -> Any:
    if ctx.job_id not in RAN:
        RAN.append(ctx.job_id)
    await ctx.ask("confirm", {})


def kernel_of(place: Any, clock: ManualClock, **options: Any) -> RuntimeKernel:
    options = {"message": "report", **options}
    schedule = Schedule("hourly", options.pop("agent", "work"), "0 * * * *", **options)
    return RuntimeKernel.create(agent=[work, asks], journal=place, name="shop", clock=clock, schedules=[schedule])


@pytest.mark.parametrize(("missed", "more"), [("last", 1), ("all", 4), ("none", 0)])
def test_a_job_begins_at_each_time_once_and_missed_ones_by_choice(
    place: Any, clock: ManualClock, missed: str, more: int
) -> None:
    RAN.clear()

    async def main() -> None:
        async with kernel_of(place, clock, missed=missed, overlap="allow"):
            clock.set(seconds(2026, 11, 28, 9, 0))
            await until(lambda: RAN == ["report"])
        clock.set(seconds(2026, 11, 28, 13, 30))
        async with kernel_of(place, clock, missed=missed, overlap="allow") as kernel:
            await until(lambda: len(RAN) == 1 + more)
            clock.set(seconds(2026, 11, 28, 9, 0))  # nothing runs twice after a clock is set back
            clock.set(seconds(2026, 11, 28, 14, 0))
            await until(lambda: len(RAN) == 2 + more)
            jobs = await kernel.jobs.find()
            assert [job.key for job in jobs] == ["hourly"] * (2 + more)

    asyncio.run(main())


def test_a_schedule_is_paused_for_all_kernels_and_triggered_by_a_client(place: Any, clock: ManualClock) -> None:
    RAN.clear()
    client = JobClient(place, name="shop", clock=clock)

    async def main() -> None:
        async with kernel_of(place, clock, missed="all"):
            await until_noted(client, lambda notes: notes)
            await client.schedules.pause("hourly")
            clock.set(seconds(2026, 11, 28, 9, 0))
            triggered = await client.schedules.trigger("hourly")
            assert (await triggered.result()).job_id == triggered.job_id
            assert RAN == ["report"]
        (shown,) = await client.schedules.find()
        assert (shown.paused, shown.next_at, shown.schedule.message) == (True, None, "report")
        clock.set(seconds(2026, 11, 28, 12, 30))
        async with kernel_of(place, clock, missed="all") as kernel:
            await kernel.schedules.go_on("hourly")
            (shown,) = await client.schedules.find()
            assert (shown.paused, shown.next_at) == (False, seconds(2026, 11, 28, 13, 0))
            clock.set(seconds(2026, 11, 28, 13, 0))
            await until(lambda: len(RAN) == 2)
            assert [job.key for job in await kernel.jobs.find()] == ["hourly", "hourly"]
        await client.schedules.remove("hourly")
        assert await client.schedules.find() == []
        with pytest.raises(UserError, match="has no schedule 'hourly'"):
            await client.schedules.pause("hourly")

    asyncio.run(main())


async def cancelled(kernel: RuntimeKernel, client: JobClient, job: str) -> None:
    """Returns when the journal has the end of the job, which is told a bit earlier: until then a schedule takes it for open."""
    await kernel.jobs.cancel(job)
    with pytest.raises(JobCancelled):
        await (await kernel.handle(job)).result()
    status = JobStatus.RUNNING
    while status != JobStatus.CANCELLED:
        status = (await client.jobs.get(job)).status


async def until_noted(client: JobClient, condition: Callable[[dict[str, str]], Any]) -> None:
    """Returns when the notes of schedules fulfil a condition."""
    noted: list[dict[str, str]] = []

    async def read() -> None:
        while not noted or not condition(noted[-1]):
            noted.append(await client.schedules.notes())

    await asyncio.wait_for(read(), 60)


def test_a_time_that_was_skipped_is_not_missed_by_the_next_kernel(place: Any, clock: ManualClock) -> None:
    """The job of 9 o'clock is open at 10, and not any more when the next kernel starts: it began one for 10 o'clock then."""
    RAN.clear()

    async def main() -> None:
        async with kernel_of(place, clock, agent="asks") as kernel:
            clock.set(seconds(2026, 11, 28, 9, 0))
            await until(lambda: len(RAN) == 1)
            clock.set(seconds(2026, 11, 28, 10, 0))
            client = JobClient(place, name="shop", clock=clock)
            await until_noted(client, lambda notes: float(notes.get("schedule-last:shop.hourly", 0)) == clock.time())
            await cancelled(kernel, client, RAN[0])
        clock.set(seconds(2026, 11, 28, 10, 30))
        async with kernel_of(place, clock, agent="asks") as kernel:
            clock.set(seconds(2026, 11, 28, 11, 0))
            await until(lambda: len(RAN) == 2)
            keys = [job.idempotency_key for job in await kernel.jobs.find()]
            assert keys == ["hourly@2026-11-28T09:00Z", "hourly@2026-11-28T11:00Z"]

    asyncio.run(main())


@pytest.mark.parametrize(("missed", "begun"), [("all", (9, 10, 11, 12, 13)), ("last", (9, 12, 13))])
def test_missed_times_begin_one_after_the_other_behind_an_open_job(
    place: Any, clock: ManualClock, missed: str, begun: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """All were skipped, as the job of 9 o'clock or the first of them was open; the log had said that they begin."""
    RAN.clear()
    client = JobClient(place, name="shop", clock=clock)

    async def main() -> None:
        async with kernel_of(place, clock, agent="asks", missed=missed):
            clock.set(seconds(2026, 11, 28, 9, 0))
            await until(lambda: len(RAN) == 1)
        clock.set(seconds(2026, 11, 28, 12, 30))
        async with kernel_of(place, clock, agent="asks", missed=missed) as kernel:
            await kernel.resume()
            for number in range(1, len(begun)):
                await until(lambda: any("begins when" in each.message for each in caplog.records))
                if number == len(begun) - 1:  # the last one comes in time, and others wait then
                    clock.set(seconds(2026, 11, 28, 13, 0))
                await cancelled(kernel, client, RAN[-1])
                await until(lambda number=number: len(RAN) == number + 1)
            keys = {job.job_id: job.idempotency_key for job in await kernel.jobs.find()}
            assert [keys[job] for job in RAN] == [f"hourly@2026-11-28T{hour:02}:00Z" for hour in begun]

    with caplog.at_level("INFO", "sabot.agents.kernel.schedules"):
        asyncio.run(main())
    told = [each.message for each in caplog.records if "no kernel ran" in each.message]
    assert told == [f"schedule hourly: no kernel ran at 3 of its times; jobs begin for {len(begun) - 2} of these"]


@pytest.mark.parametrize("key", ["hourly@9999-01-01T00:00Z", "hourly@soon", "hourly@", ""])
def test_jobs_of_clients_by_the_name_of_a_schedule_are_none_of_its_own(
    place: Any, clock: ManualClock, key: str
) -> None:
    """One of any tenant ended the schedule for good, or with a key that has no time stopped the kernel at each start."""
    RAN.clear()

    async def main() -> None:
        async with kernel_of(place, clock, missed="all", overlap="allow"):
            clock.set(seconds(2026, 11, 28, 9, 0))
            await until(lambda: RAN == ["report"])
        client = JobClient(place, name="shop", clock=clock)
        for tenant, actor in (("other", ""), ("default", "eve")):
            for number in range(1 if key else 12):
                await client.start(
                    "work", tenant, scope=tenant, principal=actor, key="hourly", idempotency_key=key or None
                )
                clock.set(clock.time() + number)
        clock.set(seconds(2026, 11, 28, 13, 30))
        async with kernel_of(place, clock, missed="all", overlap="allow"):
            await until(lambda: RAN.count("report") == 5)
            clock.set(seconds(2026, 11, 28, 14, 0))
            await until(lambda: RAN.count("report") == 6)

    asyncio.run(main())


@pytest.mark.parametrize("then", [{"agent": "asks"}, {"agent": "work"}, {"agent": "asks", "scope": "other"}])
def test_the_job_before_is_found_behind_newer_ones_and_by_a_changed_schedule(
    place: Any, clock: ManualClock, caplog: pytest.LogCaptureFixture, then: dict[str, str]
) -> None:
    """Ten jobs that were triggered since hid it from the next kernel, and so did another agent or scope."""
    RAN.clear()
    client = JobClient(place, name="shop", clock=clock)

    async def main() -> None:
        async with kernel_of(place, clock, agent="asks"):
            clock.set(seconds(2026, 11, 28, 9, 0))
            await until_noted(client, lambda notes: "schedule-job:shop.hourly" in notes)
            for _ in range(12):
                clock.advance(1)
                await client.schedules.trigger("hourly")
            await until(lambda: len(RAN) == 13)
        async with kernel_of(place, clock, **then) as kernel:
            clock.set(seconds(2026, 11, 28, 10, 0))
            await until(lambda: "is still open, and none begins now" in caplog.text)
            keys = [job.idempotency_key for job in await kernel.jobs.find()]
            assert [key for key in keys if "@" in key] == ["hourly@2026-11-28T09:00Z"]

    asyncio.run(main())


def test_the_newest_job_of_a_schedule_is_found_without_a_note_of_it(place: Any, clock: ManualClock) -> None:
    """Jobs of an earlier version, and of a kernel that ended between the job and its note."""
    RAN.clear()
    client = JobClient(place, name="shop", clock=clock)
    schedule = Schedule("hourly", "asks", "0 * * * *", message="report")

    async def main() -> None:
        async with RuntimeKernel.create(agent=[work, asks], journal=place, name="shop", clock=clock):
            (begun,) = await client.start_all([schedule.request(round(seconds(2026, 11, 28, 8, 0)))])
            for _ in range(12):
                clock.advance(1)
                await client.start("asks", "beside", key="hourly")
            await until(lambda: len(RAN) == 13)
        async with kernel_of(place, clock, agent="asks", missed="none") as kernel:
            clock.set(seconds(2026, 11, 28, 9, 0))
            await until_noted(client, lambda notes: float(notes.get("schedule-last:shop.hourly", 0)) == clock.time())
            assert [job.job_id for job in await kernel.jobs.find() if "@" in job.idempotency_key] == [begun.job_id]

    asyncio.run(main())


def test_a_pause_that_a_client_with_a_clock_ahead_has_ended_takes_no_later_times(
    place: Any, clock: ManualClock
) -> None:
    RAN.clear()
    client = JobClient(place, name="shop", clock=ManualClock(seconds(2026, 11, 28, 10, 5)))

    async def main() -> None:
        async with kernel_of(place, clock, overlap="allow"):
            await until_noted(client, lambda notes: notes)
            await client.schedules.pause("hourly")
            await client.schedules.go_on("hourly")
            for hour in (9, 10, 11):
                clock.set(seconds(2026, 11, 28, hour, 0))
                await until(lambda hour=hour: len(RAN) == hour - 8)

    asyncio.run(main())


def test_no_job_begins_while_the_one_before_is_open(
    place: Any, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    RAN.clear()

    async def main() -> None:
        async with kernel_of(place, clock, agent="asks") as kernel:
            clock.set(seconds(2026, 11, 28, 9, 0))
            await until(lambda: len(RAN) == 1)
            clock.set(seconds(2026, 11, 28, 10, 0))
            await until(lambda: f"its job {RAN[0]} is still open" in caplog.text)
            (job,) = await kernel.jobs.find()
            assert job.status in (JobStatus.RUNNING, JobStatus.WAITING_ACTION)
            await cancelled(kernel, JobClient(place, name="shop", clock=clock), job.job_id)
            clock.set(seconds(2026, 11, 28, 11, 0))
            await until(lambda: len(RAN) == 2)

    asyncio.run(main())


@pytest.mark.parametrize("then", [{"agent": "asks"}, {"scope": "other"}])
def test_a_time_whose_job_has_begun_begins_no_other_one_by_a_changed_schedule(
    place: Any, clock: ManualClock, then: dict[str, str]
) -> None:
    """The kernel of 9 o'clock was killed behind its letter, and the next one has another agent or scope: it paid again."""
    RAN.clear()

    async def main() -> None:
        async with kernel_of(place, clock) as kernel:
            clock.set(seconds(2026, 11, 28, 9, 0))
            await until(lambda: RAN == ["report"])
            await kernel.schedules.passed("hourly", seconds(2026, 11, 28, 8, 30))  # it did not come to note more
        client = JobClient(place, name="shop", clock=clock)
        async with kernel_of(place, clock, overlap="allow", **then) as kernel:
            nine = seconds(2026, 11, 28, 9, 0)
            await until_noted(client, lambda notes: float(notes.get("schedule-last:shop.hourly", 0)) == nine)
            assert [job.idempotency_key for job in await kernel.jobs.find()] == ["hourly@2026-11-28T09:00Z"]
            clock.set(seconds(2026, 11, 28, 10, 0))
            await until_noted(client, lambda notes: float(notes.get("schedule-last:shop.hourly", 0)) == clock.time())
            ten = [job for job in await kernel.jobs.find() if job.idempotency_key == "hourly@2026-11-28T10:00Z"]
            assert [(job.agent, job.scope_id) for job in ten] == [
                (f"shop.{then.get('agent', 'work')}", then.get("scope", "default"))
            ]

    asyncio.run(main())


def test_the_job_of_a_claim_whose_kernel_was_killed_begins_by_its_definition(place: Any, clock: ManualClock) -> None:
    RAN.clear()
    client, earlier = JobClient(place, name="shop", clock=clock), Schedule("hourly", "asks", "0 * * * *", message="old")

    async def main() -> None:
        async with kernel_of(place, clock, missed="all", overlap="allow") as kernel:
            nine, claims = round(seconds(2026, 11, 28, 9, 0)), kernel.schedules
            await until_noted(client, lambda notes: notes)
            assert await claims.claim(earlier, nine) == earlier
            clock.set(nine)
            await until_noted(client, lambda notes: float(notes.get("schedule-last:shop.hourly", 0)) == nine)
            (job,) = await kernel.jobs.find()
            assert (job.agent, job.job_id) == ("shop.asks", claims.job_of(earlier, nine))
            mine = Schedule("hourly", "work", "0 * * * *", message="report")
            assert await claims.claim(mine, nine + 3600) == mine
            assert await claims.claim(earlier, nine + 3600) == mine
            assert await claims.claim(earlier, nine) is None

    asyncio.run(main())


def test_no_job_begins_while_a_triggered_one_is_open(
    place: Any, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The payroll that somebody had triggered waited for its approval, and the next time began a second one beside it."""
    RAN.clear()
    client = JobClient(place, name="shop", clock=clock)

    async def main() -> None:
        async with kernel_of(place, clock, agent="asks") as kernel:
            await until_noted(client, lambda notes: notes)
            triggered = await client.schedules.trigger("hourly")
            await client.start("asks", "beside", key="hourly", idempotency_key="hourly")  # of a client, by its name
            clock.set(seconds(2026, 11, 28, 9, 0))
            await until(lambda: f"its job {triggered.job_id} is still open" in caplog.text)
            await cancelled(kernel, client, triggered.job_id)  # that may be before it has run
            clock.set(seconds(2026, 11, 28, 10, 0))
            ten = kernel.schedules.job_of((await client.schedules.get("hourly")).schedule, round(clock.time()))
            await until(lambda: ten in RAN)
            await cancelled(kernel, client, ten)
        last = await client.schedules.trigger("hourly")  # while no kernel runs
        async with kernel_of(place, clock, agent="asks"):
            clock.set(seconds(2026, 11, 28, 11, 0))
            await until(lambda: f"its job {last.job_id} is still open" in caplog.text)

    asyncio.run(main())


@pytest.mark.parametrize("ends", ["before the start", "behind the start"])
def test_a_pause_while_no_kernel_runs_takes_none_of_the_times_around_it(
    place: Any, clock: ManualClock, ends: str
) -> None:
    """10, 12 and 14 o'clock were lost, at which no kernel ran, since others were in pauses."""
    RAN.clear()
    client = JobClient(place, name="shop", clock=clock)

    async def main() -> None:
        async with kernel_of(place, clock, missed="all", overlap="allow"):
            clock.set(seconds(2026, 11, 28, 9, 0))
            await until(lambda: len(RAN) == 1)
        for hour in (11, 13):
            clock.set(seconds(2026, 11, 28, hour - 1, 30))
            await client.schedules.pause("hourly")
            clock.set(seconds(2026, 11, 28, hour, 30))
            if hour == 11 or ends == "before the start":
                await client.schedules.go_on("hourly")
        if ends == "before the start":
            clock.set(seconds(2026, 11, 28, 14, 30))
        async with kernel_of(place, clock, missed="all", overlap="allow") as kernel:
            if ends == "behind the start":
                await client.schedules.go_on("hourly")
            clock.set(seconds(2026, 11, 28, 14, 30))
            await until(lambda: len(RAN) == 4)
            hours = sorted(job.idempotency_key[-6:-4] for job in await kernel.jobs.find())
            assert hours == ["09", "10", "12", "14"]

    asyncio.run(main())


def test_the_first_time_is_missed_by_a_kernel_that_was_killed_before_it(place: Any, clock: ManualClock) -> None:
    RAN.clear()
    client = JobClient(place, name="shop", clock=clock)

    async def main() -> None:
        async with kernel_of(place, clock):
            await until_noted(client, lambda notes: "schedule-last:shop.hourly" in notes)
        clock.set(seconds(2026, 11, 28, 9, 30))
        async with kernel_of(place, clock) as kernel:
            await until(lambda: RAN == ["report"])
            assert [job.idempotency_key for job in await kernel.jobs.find()] == ["hourly@2026-11-28T09:00Z"]

    asyncio.run(main())


class Looks:
    """The clock of one schedule over a journal without a kernel, and what it has asked of it."""

    def __init__(self, place: MemoryStorage, clock: ManualClock, schedule: Schedule, kernel: str = "shop") -> None:
        self.begun: list[ExecutionRequest] = []
        self.notes: Schedules = JobClient(place, name=kernel, clock=clock).schedules

        async def look(find: Any) -> Any:
            return find(MemoryReader(place))

        async def begin(request: ExecutionRequest) -> None:
            self.begun.append(request)

        self.times = ScheduleClock(schedule, f"{kernel}.{schedule.agent}", clock, look, begin, self.notes)

    @property
    def keys(self) -> list[str]:
        return [request.idempotency_key for request in self.begun]


@pytest.mark.one_in(3, "a second of a core for some")
@pytest.mark.parametrize(("missed", "begun"), [("last", 1), ("all", 1_000), ("none", 0)])
@pytest.mark.parametrize("overlap", ["skip", "allow"])
def test_one_look_makes_up_for_half_a_century_in_two_versions_and_ends(
    clock: ManualClock, missed: Any, begun: int, overlap: Any
) -> None:
    place = MemoryStorage(clock)

    async def main() -> None:
        versions = [Schedule("s", agent, "0 * * * *", missed=missed, overlap=overlap) for agent in ("work", "asks")]
        looks = [Looks(place, clock, each) for each in versions]
        await looks[0].notes.passed("s", 1.0)  # in 1970
        assert await asyncio.gather(*(each.times.begin_due() for each in looks)) == [1_800.0] * 2
        keys = [(each.agent, each.idempotency_key) for of in looks for each in of.begun]
        # which of the two has noted a time decides with which agent it begins
        assert len({key for _, key in keys}) == len(set(keys)) == begun
        assert [await each.times.begin_due() for each in looks] == [1_800.0] * 2
        assert len([key for of in looks for key in of.begun]) == len(keys)

    asyncio.run(main())


def test_a_time_in_a_pause_that_has_ended_is_looked_at_once(clock: ManualClock) -> None:
    """The next time stayed that of the pause: the clock was looked at without a break until the time behind it."""
    place = MemoryStorage(clock)

    async def main() -> None:
        looks = Looks(place, clock, Schedule("s", "work", "0 * * * *", missed="all"))
        assert await looks.times.begin_due() == 1_800.0
        await looks.notes.pause("s")
        clock.set(seconds(2026, 11, 28, 12, 15))
        await looks.notes.go_on("s")  # the kernel has not looked meanwhile
        assert await looks.times.begin_due() == 2_700.0
        clock.set(seconds(2026, 11, 28, 13, 0))
        assert await looks.times.begin_due() == 3_600.0
        assert looks.keys == ["s@2026-11-28T13:00Z"]
        # a kernel that starts later goes on behind them too
        later = Looks(place, clock, Schedule("s", "work", "0 * * * *", missed="all"))
        assert await later.times.begin_due() == 3_600.0
        assert later.keys == []

    asyncio.run(main())


def test_of_many_times_around_many_pauses_the_last_thousand_begin(clock: ManualClock) -> None:
    place = MemoryStorage(clock)

    async def main() -> None:
        schedule, first = Schedule("s", "work", "* * * * *", missed="all"), round(clock.time())
        looks = Looks(place, clock, schedule)
        await looks.times.begin_due()
        for _ in range(90):
            clock.advance(3_600)
            await looks.notes.pause("s")
            clock.advance(3_600)
            await looks.notes.go_on("s")
        clock.advance(3_600)
        await looks.times.begin_due()
        # each other hour was in a pause; two times are not missed, but now
        due = [first + at for at in range(60, 181 * 3_600 + 1, 60) if (at - 1) // 3_600 % 2 == 0]
        assert looks.keys == [schedule.request(at).idempotency_key for at in due[-1_001:]]

    asyncio.run(main())


def test_a_claim_that_others_win_again_and_again_ends(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    place = MemoryStorage(clock)
    mine = Schedule("s", "work", "* * * * *")
    nine = round(seconds(2026, 11, 28, 9, 0))

    async def main() -> None:
        looks, asked = Looks(place, clock, mine), 0
        write = MemoryInbox.note

        def slow(inbox: MemoryInbox, name: str, value: str, before: str | None = None) -> bool:
            nonlocal asked
            asked += 1
            noted = value.replace(str(nine), str(nine - 3_600 + 60 * asked))
            assert write(inbox, name, noted, before)  # another kernel is a bit faster, with an earlier time
            return write(inbox, name, value, before)

        monkeypatch.setattr(MemoryInbox, "note", slow)
        with pytest.raises(TransientError, match="other kernels claim times before 2026-11-28T09:00Z all the while"):
            await looks.notes.claim(mine, nine)
        assert asked == 10
        monkeypatch.undo()
        assert await looks.notes.claim(mine, nine) == mine

    asyncio.run(main())


def test_a_claim_of_another_kernel_with_the_same_note_is_none(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Kernel "a" may have a schedule "b.c", and kernel "a.b" a schedule "c"."""
    place, nine = MemoryStorage(clock), round(seconds(2026, 11, 28, 9, 0))
    one, two = Schedule("b.c", "work", "0 * * * *"), Schedule("c", "asks", "0 * * * *")

    async def main() -> None:
        assert await Looks(place, clock, one, "a").notes.claim(one, nine) == one
        of_two = Looks(place, clock, two, "a.b").notes
        assert await of_two.claim(two, nine) == two
        assert (await of_two.stands("c")).job == of_two.job_of(two, nine)
        assert caplog.text == ""
        assert await of_two.claim(two, nine + 7_200) == two
        assert await of_two.claim(two, nine + 3_600) is None
        assert "begins no job for 2026-11-28T10:00Z, as a kernel whose clock is ahead has claimed" in caplog.text

    asyncio.run(main())
