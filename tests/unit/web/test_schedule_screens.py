"""The screen of the schedules of a kernel over HTTP, and its actions."""

import asyncio
import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from unit.web.test_console import MARKUP, Browser
from unit.web.test_job_screens import running

from sabot.agents import JobClient, RuntimeKernel, Schedule
from sabot.cli.web import _add, _places_of
from sabot.clock import ManualClock
from sabot.web.access import Access
from sabot.web.console import KeptConsole
from tools.agent_tools import until

RAN: list[Any] = []
NAME = f"daily{MARKUP}"


async def work(ctx: Any) -> None:
    RAN.append(ctx.message)


def kernel_of(folder: Path, clock: ManualClock, name: str = "shop") -> RuntimeKernel:
    schedules = [
        Schedule("hourly", "work", "0 * * * *", message="SECRET", zone="Asia/Tokyo", scope=f"acme{MARKUP}"),
        Schedule(NAME, "work", "0 9 1 7 *"),
    ]
    return RuntimeKernel.create(agent=work, journal=folder, name=name, clock=clock, schedules=schedules)


@contextmanager
def console_of(place: Path) -> Iterator[KeptConsole]:
    found: Any = []
    _add(found, _places_of(str(place)))
    made = KeptConsole(found, Access(None), port=0)
    try:
        yield made
    finally:
        made.close()


async def enter(console: KeptConsole, role: Any) -> Browser:
    return await asyncio.to_thread(Browser(console).enter, console.access.token(role))


async def ask(browser: Browser, path: str, form: dict[str, str] | None = None) -> tuple[int, str]:
    return await asyncio.to_thread(browser.ask, f"/apps/jobs{path}", form=form)


async def noted(client: JobClient, count: int) -> None:
    """Returns when the kernel has noted its schedules."""
    found: list[Any] = []
    while len(found) < count:
        found = await client.schedules.find()


def at(hour: int) -> float:
    return datetime(2030, 1, 1, hour, tzinfo=UTC).timestamp()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    RAN.clear()
    return tmp_path / "jobs"


async def test_a_schedule_is_paused_goes_on_and_is_triggered(place: Path) -> None:
    clock, client = ManualClock(at(8)), JobClient(place, name="shop")
    hourly = {"kernel": "shop", "schedule": "hourly"}
    async with kernel_of(place, clock):
        await noted(client, 2)
        with console_of(place) as console:
            browser = await enter(console, "act")
            assert '<a href="/apps/jobs/schedules">' in (await ask(browser, "/jobs"))[1]
            status, page = await ask(browser, "/schedules")
            assert (status, "Asia/Tokyo" in page, "paused since" in page) == (200, True, False)
            assert "SECRET" not in page
            assert MARKUP not in page
            assert f'value="{NAME}"' in unescape(page)
            assert "No schedule is like this" in (await ask(browser, "/schedules?q=monthly"))[1]

            status, said = await ask(browser, "/act/pause-schedule", hourly)
            assert (status, "Schedule hourly is paused" in said) == (200, True)
            status, said = await ask(browser, "/act/pause-schedule", hourly)
            assert (status, "is paused already, by console" in said) == (409, True)
            page = (await ask(browser, "/schedules?q=hourly"))[1]
            assert ("paused since" in page, "Go on" in page, ">Pause<" in page) == (True, True, False)
            clock.set(at(9))
            status, said = await ask(browser, "/act/trigger-schedule", hourly)
            assert (status, "has begun job" in said) == (200, True)
            await until(lambda: RAN == ["SECRET"])
            (job,) = await client.jobs.find()
            await (await client.handle(job.job_id)).result()  # while it is open, no time begins another one
            assert (job.key, job.scope_id, job.job_id in said) == ("hourly", f"acme{MARKUP}", True)
            assert job.metadata["triggered_by"].startswith("console")

            (row,) = json.loads((await ask(browser, "/schedules.json?q=hourly"))[1])
            assert (row["paused"], row["next_at"], row["paused_by"]) == (True, None, job.metadata["triggered_by"])
            rows = list(csv.DictReader((await ask(browser, "/schedules.csv"))[1].splitlines()))
            assert {each["schedule"] for each in rows} == {"hourly", NAME}

            status, said = await ask(browser, "/act/resume-schedule", hourly)
            assert (status, "goes on with its next time" in said) == (200, True)
            status, said = await ask(browser, "/act/resume-schedule", hourly)
            assert (status, "is not paused" in said) == (409, True)
            clock.set(at(10))
            await until(lambda: len(RAN) == 2)


async def test_a_schedule_that_is_none_is_refused_and_those_of_each_kernel_are_its_own(place: Path) -> None:
    """The name of a kernel may be the beginning of that of another one."""
    clock = ManualClock(at(8))
    for name in ("a", "a.hourly", "b"):
        async with kernel_of(place, clock, name):
            await noted(JobClient(place, name=name), 2)
    with console_of(place) as console:
        browser = await enter(console, "act")
        rows = json.loads((await ask(browser, "/schedules.json"))[1])
        assert sorted((each["kernel"], each["schedule"]) for each in rows) == sorted(
            (kernel, name) for kernel in ("a", "a.hourly", "b") for name in ("hourly", NAME)
        )
        for wrong in ({"kernel": "a", "schedule": f"hourly.{NAME}"}, {"kernel": "c", "schedule": "hourly"}, {}):
            for action in ("pause", "resume", "trigger"):
                status, said = await ask(browser, f"/act/{action}-schedule", wrong)
                assert (status, "has no schedule" in said) == (409, True), (wrong, action)
        await ask(browser, "/act/pause-schedule", {"kernel": "a.hourly", "schedule": "hourly"})
        paused = {name: (await JobClient(place, name=name).schedules.get("hourly")).paused for name in ("a", "b")}
        assert paused == {"a": False, "b": False}
        assert (await JobClient(place, name="a.hourly").schedules.get("hourly")).paused
    assert RAN == []


async def test_a_session_that_may_read_has_no_schedules(place: Path) -> None:
    async with kernel_of(place, ManualClock(at(8))):
        await noted(JobClient(place, name="shop"), 2)
    with console_of(place) as console:
        reader = await enter(console, "read")
        assert "schedules" not in (await ask(reader, "/"))[1]
        for path in ("/schedules", "/schedules.json", "/schedules.csv", "/events/schedules"):
            status, said = await ask(reader, path)
            assert (status, "hourly" in said) == (403, False), path
        for action in ("pause", "resume", "trigger"):
            form = {"kernel": "shop", "schedule": "hourly"}
            assert (await ask(reader, f"/act/{action}-schedule", form))[0] == 403
    client = JobClient(place, name="shop")
    assert (await client.jobs.find(), [each.paused for each in await client.schedules.find()]) == ([], [False] * 2)


async def test_an_app_has_no_screen_of_schedules(memory_url: str, tmp_path: Path) -> None:
    async with running(memory_url, tmp_path, ["ann"]) as (_, console):
        browser = await asyncio.to_thread(Browser(console).enter, console.access.token("act"))
        assert "schedules" not in (await asyncio.to_thread(browser.ask, "/jobs"))[1]
        assert (await asyncio.to_thread(browser.ask, "/schedules"))[0] == 404
