"""The screens of jobs over HTTP: the list, one job, and the actions."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path
from typing import Any

from unit.web.test_console import MARKUP, Browser

from sabot import App
from sabot.agents import DurableContext, JobStatus
from sabot.journal.entries import Cancel, Signal
from sabot.web.console import Console
from tools.agent_tools import publish, started, until


async def ticket(ctx: DurableContext) -> Any:
    """Asks, and waits for the payment."""
    await ctx.ask(f"confirm{MARKUP}", {"message": "SECRET?"})
    return await ctx.wait("paid")


@asynccontextmanager
async def running(url: str, folder: Path, customers: list[str]) -> AsyncIterator[tuple[App, Console]]:
    app = App("shop", url, state=str(folder), checkpoint_interval=3600)
    app.agent("tickets", name="handle", key="customer", sink="answers", durable=True)(ticket)
    async with started(app):
        publish(app, "tickets", [{"customer": each} for each in customers])
        await until(lambda: app.statistics()["jobs"]["parked"] == len(customers))
        await app.agent_runtime.trigger_checkpoint()  # what is read is what is durable
        console = Console(app, port=0)
        try:
            yield app, console
        finally:
            console.close()


async def ask(browser: Browser, path: str, form: dict[str, str] | None = None) -> tuple[int, str]:
    return await asyncio.to_thread(browser.ask, path, form=form)


async def enter(console: Console, role: Any) -> Browser:
    return await asyncio.to_thread(Browser(console).enter, console.access.token(role))


async def test_jobs_are_listed_and_one_is_shown_signalled_and_cancelled(memory_url: str, tmp_path: Path) -> None:
    async with running(memory_url, tmp_path, ["ann"]) as (app, console):
        browser = await enter(console, "act")
        status, page = await ask(browser, "/jobs?agent=handle")
        assert status == 200
        assert "shop.handle" in page
        assert MARKUP not in page
        found = re.search(r'href="(/job\?id=[^"]+)"', page)
        assert found is not None
        status, page = await ask(browser, unescape(found[1]))
        assert status == 200
        assert "confirm&lt;script&gt;" in page
        assert "SECRET" not in page
        (job,) = await app.jobs.find()
        (row,) = json.loads((await ask(browser, "/jobs.json"))[1])
        assert (row["job_id"], row["open"]) == (job.job_id, f"question confirm{MARKUP}")
        (effect,) = json.loads((await ask(browser, unescape(found[1]).replace("/job?", "/job.json?")))[1])
        assert (effect["kind"], effect["state"]) == ("ask", "open")
        assert (await ask(browser, "/act/signal-job", {"job": job.job_id, "name": "paid"}))[0] == 200
        assert (await ask(browser, "/act/cancel-job", {"job": job.job_id, "reason": MARKUP, "by": "admin"}))[0] == 200
        await until(lambda: app.statistics()["jobs"]["ended"] == 1)
        await app.agent_runtime.trigger_checkpoint()
        with app.jobs.store.reader() as reader:
            told = [entry.by for _, entry in reader.read(job.job_id) if isinstance(entry, Cancel | Signal)]
        assert len(told) == 2
        assert all(re.fullmatch("console:[0-9a-f]{12}", each) for each in told), "the browser does not choose its name"
        status, page = await ask(browser, unescape(found[1]))
        assert "cancelled" in page
        assert "/act/" not in page
        assert MARKUP not in page
        assert (await ask(browser, "/act/cancel-job", {"job": "nobody"}))[0] == 409


async def test_the_jobs_of_a_list_are_cancelled_if_they_are_those_that_were_shown(
    memory_url: str, tmp_path: Path
) -> None:
    async with running(memory_url, tmp_path, ["ann", "bob", "cid"]) as (app, console):
        browser = await enter(console, "act")
        assert "Cancel the 3 open jobs" in (await ask(browser, "/jobs"))[1]
        status, page = await ask(browser, "/act/cancel-jobs", {"count": "2"})
        assert (status, "3 jobs are open now" in page) == (409, True)
        assert all(job.status is JobStatus.WAITING_ACTION for job in await app.jobs.find())
        assert (await ask(browser, "/act/cancel-jobs", {"count": "3"}))[0] == 200
        await until(lambda: app.statistics()["jobs"]["ended"] == 3)


async def test_unknown_jobs_and_cursors_are_named(memory_url: str, tmp_path: Path) -> None:
    async with running(memory_url, tmp_path, ["ann"]) as (_, console):
        browser = await enter(console, "act")
        for path in ("/job", "/job?id=%3Cscript%3E", "/jobs?after=x"):
            status, page = await ask(browser, path)
            assert status == 404
            assert "<script>" not in page
        assert (await ask(browser, "/job.json?id=nobody"))[0] == 404
        assert (await ask(browser, "/jobs.csv?status=nothing"))[0] == 200


async def test_a_session_that_may_read_has_no_jobs(memory_url: str, tmp_path: Path) -> None:
    async with running(memory_url, tmp_path, ["ann"]) as (_, console):
        reader = await enter(console, "read")
        assert "/jobs" not in (await ask(reader, "/"))[1]
        for path in ("/jobs", "/jobs.json", "/job?id=x", "/job.csv?id=x", "/events/jobs"):
            assert (await ask(reader, path))[0] == 403
        for action in ("cancel-job", "cancel-jobs", "signal-job"):
            assert (await ask(reader, f"/act/{action}", {"job": "x"}))[0] == 403


async def test_an_app_without_durable_agents_has_no_jobs(memory_url: str, tmp_path: Path) -> None:
    console = Console(App("plain", memory_url, state=str(tmp_path)), port=0)
    try:
        browser = await enter(console, "act")
        assert (await ask(browser, "/jobs"))[0] == 404
    finally:
        console.close()
