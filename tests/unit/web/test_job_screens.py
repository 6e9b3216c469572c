"""The screens of jobs over HTTP: the list, one job, and the actions."""

import asyncio
import json
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from decimal import Decimal
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import pytest
from unit.web.test_console import MARKUP, Browser

from sabot import App
from sabot._cython.text.records import state_key
from sabot.agents import DurableContext, JobStatus, tool
from sabot.agents.accounts.contract import LedgerEvent
from sabot.agents.app_jobs import JournalAddress
from sabot.journal.base import JournalReader
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.entries import Begin, Cancel, EffectResult, Entry, Intent, Signal
from sabot.journal.memory import MemoryJournal
from sabot.web.console import Console
from sabot.web.job_reading import jobs_table, read_job, read_jobs
from sabot.web.payloads import Payloads
from tools.agent_tools import publish, started, until

pytestmark = pytest.mark.usefixtures("warm_starts")


async def ticket(ctx: DurableContext) -> Any:
    """Asks, and waits for the payment."""
    await ctx.ask(f"confirm{MARKUP}", {"message": "SECRET?"})
    return await ctx.wait("paid")


@asynccontextmanager
async def running(
    url: str, folder: Path, customers: list[str], function: Any = ticket, **how: Any
) -> AsyncIterator[tuple[App, Console]]:
    app = App("shop", url, state=str(folder), checkpoint_interval=3600)
    app.agent("tickets", name="handle", key="customer", sink="answers", durable=True, on_error="skip")(function)
    async with started(app):
        publish(app, "tickets", [{"customer": each} for each in customers])
        await until(lambda: sum(map(app.statistics()["jobs"].get, ("parked", "ended"))) == len(customers))
        await app.agent_runtime.trigger_checkpoint()  # what is read is what is durable
        console = Console(app, port=0, **how)
        try:
            yield app, console
        finally:
            console.close()


async def ask(browser: Browser, path: str, form: dict[str, str] | None = None) -> tuple[int, str]:
    return await asyncio.to_thread(browser.ask, path, form=form)


async def enter(console: Console, role: Any) -> Browser:
    return await asyncio.to_thread(Browser(console).enter, console.access.token(role))


async def test_a_job_with_a_long_id_is_shown(memory_url: str, tmp_path: Path) -> None:
    """Its id in the address was cut to 200 characters."""
    app = App("shop", memory_url, state=str(tmp_path), checkpoint_interval=3600)
    app.agent("tickets", name="handle", job_id="id", durable=True, on_error="skip")(ticket)
    async with started(app):
        publish(app, "tickets", [{"id": "https://example.org/" + "x" * 200}])
        await until(lambda: app.statistics()["jobs"]["parked"] == 1)
        await app.agent_runtime.trigger_checkpoint()
        console = Console(app, port=0)
        try:
            browser = await enter(console, "act")
            found = re.search(r'href="(/job\?id=[^"]+)"', (await ask(browser, "/jobs"))[1])
            assert found is not None
            assert (await ask(browser, unescape(found[1])))[0] == 200
            far = "9" * 30  # was an error of msgpack, or of SQLite
            assert (await ask(browser, f"{unescape(found[1])}&from={far}"))[0] == 200
            assert (await ask(browser, f"/jobs?after={far}:x"))[0] == 404
        finally:
            console.close()


@pytest.mark.slow  # two seconds of a core
async def test_jobs_are_listed_and_one_is_shown_signalled_and_cancelled(memory_url: str, tmp_path: Path) -> None:
    async with running(memory_url, tmp_path, ["ann"]) as (app, console):
        browser = await enter(console, "act")
        of_session = "/jobs?session=shop.handle%2Fann"
        assert "No job is like this" in (await ask(browser, f"{of_session}x"))[1]
        status, page = await ask(browser, of_session)
        assert (status, "1 job as of" in page) == (200, True)
        status, page = await ask(browser, "/jobs?agent=handle")
        assert (status, ">waits for, or its error<" in page) == (200, True)
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
        assert (row["job_id"], row["waits_for"]) == (job.job_id, f"question confirm{MARKUP}")
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


@pytest.mark.slow  # a second of a core
async def test_a_blocked_job_is_shown_with_the_reason(memory_url: str, tmp_path: Path) -> None:
    async with running(memory_url, tmp_path, ["ann", "bob"]) as (app, console):
        browser = await enter(console, "act")
        job, _ = await app.jobs.find()
        journal = app.jobs.store.running
        assert journal is not None
        await asyncio.to_thread(journal.note_blocked, {job.job_id: f"step 1 asks otherwise {MARKUP}"})
        for path in ("/jobs", "/jobs?status=blocked", f"/job?{urlencode({'id': job.job_id})}"):
            status, page = await ask(browser, path)
            assert (status, "step 1 asks otherwise" in page, MARKUP in page) == (200, True, False)
        (row,) = json.loads((await ask(browser, "/jobs.json?status=blocked"))[1])
        assert (row["job_id"], row["status"]) == (job.job_id, "blocked")
        assert job.job_id not in (await ask(browser, "/jobs.csv?status=waiting_action"))[1]
        assert "Cancel the 2 open jobs" in (await ask(browser, "/jobs"))[1]


@pytest.mark.slow  # half a second of a core
async def test_the_jobs_of_a_list_are_cancelled_if_they_are_those_that_were_shown(
    memory_url: str, tmp_path: Path
) -> None:
    async with running(memory_url, tmp_path, ["ann", "bob", "cid"]) as (app, console):
        browser = await enter(console, "act")
        assert "Cancel the 3 open jobs" in (await ask(browser, "/jobs"))[1]
        status, page = await ask(browser, "/act/cancel-jobs", {"count": "2"})
        assert (status, "3 such jobs are there now" in page) == (409, True)
        assert all(job.status is JobStatus.WAITING_ACTION for job in await app.jobs.find())
        assert (await ask(browser, "/act/cancel-jobs", {"count": "3"}))[0] == 200
        await until(lambda: app.statistics()["jobs"]["ended"] == 3)


@pytest.mark.slow  # half a second of a core
async def test_unknown_jobs_and_cursors_are_named(memory_url: str, tmp_path: Path) -> None:
    async with running(memory_url, tmp_path, ["ann"]) as (_, console):
        browser = await enter(console, "act")
        for path in ("/job", "/job?id=%3Cscript%3E", "/jobs?after=x"):
            status, page = await ask(browser, path)
            assert status == 404
            assert "<script>" not in page
        assert (await ask(browser, "/job.json?id=nobody"))[0] == 404
        assert (await ask(browser, "/jobs.csv?status=nothing"))[0] == 200


async def test_a_damaged_journal_is_no_missing_page(memory_url: str, tmp_path: Path) -> None:
    """Its pages and tables had the status 404, as if there were no such job."""
    async with running(memory_url, tmp_path, ["ann"]) as (app, console):
        (job,) = [each.job_id for each in await app.jobs.find()]
        browser = await enter(console, "act")
        assert (await ask(browser, f"/job?id={quote(job)}"))[0] == 200
        (file,) = tmp_path.rglob("journal.db")
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("UPDATE entries SET entry = x'00'")
        for path in (f"/job?id={quote(job)}", f"/job.json?id={quote(job)}", f"/job.csv?id={quote(job)}"):
            status, said = await ask(browser, path)
            assert (status, "is damaged" in said) == (500, True), said


async def test_a_session_that_may_read_has_no_jobs(memory_url: str, tmp_path: Path) -> None:
    async with running(memory_url, tmp_path, ["ann"]) as (_, console):
        reader = await enter(console, "read")
        assert "/jobs" not in (await ask(reader, "/"))[1]
        for path in ("/jobs", "/jobs.json", "/job?id=x", "/job.csv?id=x", "/events/jobs"):
            assert (await ask(reader, path))[0] == 403
        for action in ("cancel-job", "cancel-jobs", "signal-job"):
            assert (await ask(reader, f"/act/{action}", {"job": "x"}))[0] == 403


@pytest.mark.slow  # half a second of a core
async def test_the_steps_of_agents_have_the_time_of_their_task(memory_url: str, tmp_path: Path) -> None:
    async with running(memory_url, tmp_path, ["ann"], handle) as (app, console):
        app.agent_runtime.runner.watch.recorder.figures.take()
        (agent,) = json.loads((await ask(await enter(console, "act"), "/steps.json"))[1])
        shares = [value for name, value in agent.items() if name.startswith("share_")]
        assert (agent["step"], agent["kind"]) == ("shop.handle", "agent")
        assert sum(filter(None, shares)) == pytest.approx(1)


async def test_an_app_without_durable_agents_has_no_jobs(memory_url: str, tmp_path: Path) -> None:
    console = Console(App("plain", memory_url, state=str(tmp_path)), port=0)
    try:
        browser = await enter(console, "act")
        assert (await ask(browser, "/jobs"))[0] == 404
    finally:
        console.close()


# -- history, values, code ------------------------------------------------------------------------------------------------

PROGRAM = """
from sabot import App
from sabot.agents import tool

app = App("shop")

@tool(effect="read")
async def look(customer):
    return {"card": "card-4111"}

@app.agent("tickets", name="handle", key="customer", sink="answers", durable=True)
async def handle(ctx):
    if DO:
        found = await ctx.call(look, ctx.message["customer"])
        return {"customer": ctx.message["customer"], "found": found["card"]}
"""


@tool(effect="read")
async def look(customer: str) -> dict[str, str]:
    return {"card": "card-4111"}


async def handle(ctx: DurableContext) -> Any:
    """Looks something up."""
    if ctx.message["customer"] == "bad":
        raise ValueError(f"broken{MARKUP}")
    found = await ctx.call(look, ctx.message["customer"])
    return {"customer": ctx.message["customer"], "found": found["card"]}


async def into_history(app: App) -> None:
    """Returns when the journal has no entries of jobs that have succeeded."""
    for _ in range(5):
        await app.agent_runtime.trigger_checkpoint()
    await until(lambda: not any(isinstance(each, EffectResult) for _, each in app.agent_runtime.runner.journal.read()))  # type: ignore[union-attr]


def job_of(page: str) -> str:
    found = re.search(r'href="(/job\?id=[^"]+)"', page)
    assert found is not None
    return unescape(found[1])


@pytest.mark.slow  # half a second of a core
async def test_a_job_of_the_history_is_found_by_its_key_and_shown(memory_url: str, tmp_path: Path) -> None:
    async with running(memory_url, tmp_path, ["ann", "bob"], handle) as (app, console):
        await into_history(app)
        browser = await enter(console, "act")
        page = (await ask(browser, "/jobs?key=ann"))[1]
        assert "1 job as of" in page
        assert "1 succeeded" in page
        page = (await ask(browser, job_of(page)))[1]
        assert "look" in page
        assert "tickets[0]@" in page
        assert re.search(r"<dt>session</dt><dd><a [^>]*>shop\.handle/ann</a></dd>", page)
        assert "card-4111" not in page
        (row,) = json.loads((await ask(browser, "/jobs.json?q=BOB"))[1])
        assert (row["key"], row["status"], row["effects"], row["tokens"]) == ("bob", "succeeded", 1, 0)


@pytest.mark.slow  # half a second of a core
async def test_records_that_wait_for_a_job_of_their_key_are_counted(memory_url: str, tmp_path: Path) -> None:
    async with running(memory_url, tmp_path, ["ann"]) as (app, console):
        browser = await enter(console, "act")
        assert "without a job yet" not in (await ask(browser, "/jobs"))[1]
        publish(app, "tickets", [{"customer": "ann"}])
        await until(lambda: app.statistics()["jobs"]["waiting"] == 1)
        figures = app.agent_runtime.runner.watch.recorder.figures
        await until(lambda: figures.last.figures.jobs.waiting == 1)
        assert "1 record without a job yet" in (await ask(browser, "/jobs"))[1]
        assert "without a job yet" not in (await ask(browser, "/jobs?key=ann"))[1]


@pytest.mark.one_in(5, "a second of a core each")
@pytest.mark.parametrize(
    ("payloads", "found"),
    [
        (Payloads(), 0),
        (Payloads("none", frozenset({"topic"})), 0),
        (Payloads(names=frozenset({"customer"})), 0),
        (Payloads(names=frozenset({"topic"})), 2),
        (Payloads("all"), 2),
    ],
)
async def test_jobs_are_found_by_the_fields_of_their_records_that_may_be_shown(
    memory_url: str, tmp_path: Path, payloads: Payloads, found: int
) -> None:
    app = App("shop", memory_url, state=str(tmp_path), checkpoint_interval=3600)
    app.agent("tickets", name="handle", key="customer", sink="answers", durable=True)(handle)
    async with started(app):
        topics = ["Late parcel", "late PARCEL", "refund"]
        publish(app, "tickets", [{"customer": f"c-{at}", "topic": each} for at, each in enumerate(topics)])
        await until(lambda: app.statistics()["jobs"]["ended"] == 3)
        await into_history(app)
        publish(app, "tickets", [{"customer": "c-3", "topic": "a question"}])
        await until(lambda: app.statistics()["jobs"]["ended"] == 4)
        await app.agent_runtime.trigger_checkpoint()
        console = Console(app, port=0, payloads=payloads)
        try:
            browser = await enter(console, "act")
            rows = json.loads((await ask(browser, "/jobs.json?q=Parcel"))[1])
            assert [each["key"] for each in rows] == ["c-1", "c-0"][:found]
            rows = json.loads((await ask(browser, "/jobs.json?q=topic%3Dlate"))[1])
            assert len(rows) == found, "of the field of that name"
            assert json.loads((await ask(browser, "/jobs.json?q=customer%3Dlate"))[1]) == []
            page = (await ask(browser, "/jobs?q=parcel"))[1]
            assert f"{found} job{'s' * (found != 1)} as of" in page
            assert ("of the records of the newest 5,000 jobs" in page) == payloads.shows_any
            rows = json.loads((await ask(browser, "/jobs.json?q=question"))[1])
            assert len(rows) == bool(found), "of a job of the log"
            assert len(json.loads((await ask(browser, "/jobs.json?q=c-2"))[1])) == 1
        finally:
            console.close()


@pytest.mark.one_in(5, "a second of a core each")
@pytest.mark.parametrize(
    ("payloads", "shown"),
    [
        (Payloads(), set()),
        (Payloads("none", frozenset({"look"})), set()),
        (Payloads("scrubbed", frozenset({"look"})), {"arguments", "answer"}),
        (Payloads("scrubbed", frozenset({"card"})), {"answer"}),
        (Payloads("all"), {"arguments", "answer", "output"}),
    ],
)
async def test_arguments_and_answers_are_shown_as_the_options_say(
    memory_url: str, tmp_path: Path, payloads: Payloads, shown: set[str]
) -> None:
    async with running(memory_url, tmp_path, ["<b>ann"], handle, payloads=payloads) as (_, console):
        browser = await enter(console, "act")
        page = (await ask(browser, job_of((await ask(browser, "/jobs"))[1])))[1]
        effects = page[page.index("<h2>Effects</h2>") : page.index("<h2>Actions</h2>")]
        rows = page[page.index("<h2>Rows</h2>") : page.index("<h2>Effects</h2>")]
        assert ("&lt;b&gt;ann" in effects) == ("arguments" in shown)
        assert ("card-4111" in effects) == ("answer" in shown)
        assert ("card-4111" in rows) == ("output" in shown)
        assert "<b>ann" not in page


class Given(JournalAddress):
    """A journal whose entries a test gives."""

    def __init__(self, *entries: Entry) -> None:
        self._journal = MemoryJournal()
        for each in entries:
            self._journal.append(each)

    @contextmanager
    def opened(self) -> Iterator[JournalReader]:
        yield self._journal


def text_of(html: str) -> str:
    return " ".join(re.sub("<[^>]+>", " ", html).split())


def test_pages_mark_what_a_job_may_have_used_in_calls_in_doubt() -> None:
    known = LedgerEvent(event_id="1", type="model", scope_id="s", input_tokens=200, output_tokens=35, cost=Decimal("1"))
    doubt = LedgerEvent(event_id="2", type="doubt", scope_id="s", reserved_tokens=1840, cost=Decimal("2"))
    used = [msgspec.msgpack.encode([each]) for each in (known, doubt)]
    begun: list[Entry] = [Begin("j", 1, "shop.handle")]
    for at, each in enumerate(used, 1):
        begun += [Intent("j", at, at, "call", "llm"), EffectResult("j", at, at, usage=each)]
    journal, payloads = Given(*begun, Begin("k", 1, "shop.handle")), Payloads()
    page = text_of(read_jobs(journal, JobQuery(), payloads, "")[0])
    assert "at most 2,075 at most $3.00" in page
    assert page.count("at most") == 2, "not of the other job"
    _, part = read_job(journal, "j", 0, payloads, "", 3.0)
    assert "235 $1.00" in text_of(part)
    assert "at most 1,840 at most $2.00" in text_of(part)
    (_, row) = json.loads(jobs_table(journal, JobQuery(), payloads, "json"))
    assert [row[name] for name in ("tokens", "doubt_tokens", "dollars", "doubt_dollars")] == [2075, 1840, "3", "2"]


def test_a_table_leaves_out_columns_without_a_value() -> None:
    journal = Given(Begin("j", 1, "shop.handle", scope="north"), Begin("k", 1, "shop.handle", scope="south"))
    head = text_of(read_jobs(journal, JobQuery(), Payloads(), "")[0].partition("</thead>")[0])
    assert head == "job agent scope status effects created last entry"


@pytest.mark.parametrize(("session", "is_shown"), [("c-1", True), ("shop.handle/ann", False)])
def test_a_session_is_shown_in_the_list_unless_it_is_that_of_the_key(session: str, is_shown: bool) -> None:
    journal = Given(Begin("j", 1, "shop.handle", key=state_key("ann"), session=session))
    head, _, rows = read_jobs(journal, JobQuery(), Payloads(), "")[0].partition("</thead>")
    assert (">session<" in head, f">{session}<" in rows) == (is_shown, is_shown)
    (row,) = json.loads(jobs_table(journal, JobQuery(), Payloads(), "json"))
    assert (row["key"], row["session_id"]) == ("ann", session)


@pytest.mark.slow  # half a second of a core
async def test_a_job_without_children_has_one_sum_of_tokens(memory_url: str, tmp_path: Path) -> None:
    async with running(memory_url, tmp_path, ["ann"], handle) as (_, console):
        browser = await enter(console, "act")
        page = text_of((await ask(browser, job_of((await ask(browser, "/jobs"))[1])))[1])
        assert "tokens 0 dollars $0.00 Rows" in page

    async def parent(ctx: DurableContext) -> Any:
        return await ctx.child("child", ctx.message)

    app = App("tree", memory_url, state=str(tmp_path / "tree"), checkpoint_interval=3600)
    app.agent("wide", name="parent", sink="wide-answers", durable=True)(parent)
    app.agent("deep", name="child", sink="deep-answers", durable=True)(handle)
    async with started(app):
        publish(app, "wide", [{"customer": "ann"}])
        await until(lambda: app.statistics()["jobs"]["ended"] == 2)
        await app.agent_runtime.trigger_checkpoint()
        console = Console(app, port=0)
        try:
            browser = await enter(console, "act")
            page = text_of((await ask(browser, job_of((await ask(browser, "/jobs?agent=parent"))[1])))[1])
            assert "tokens of its own calls 0" in page
            assert "tokens with all jobs below it 0" in page
        finally:
            console.close()


@pytest.mark.slow  # half a second of a core
async def test_a_failed_job_is_retried_from_its_dead_letter_also_all_of_a_list(memory_url: str, tmp_path: Path) -> None:
    async with running(memory_url, tmp_path, ["bad", "ann"], handle) as (app, console):
        browser = await enter(console, "act")
        page = (await ask(browser, "/jobs"))[1]
        assert "Retry the 1 failed job of" in page
        (failed,) = await app.jobs.find(statuses=[JobStatus.FAILED])
        assert (await ask(browser, "/act/retry-jobs", {"count": "2"}))[0] == 409
        status, page = await ask(browser, "/act/retry-jobs", {"count": "1"})
        assert (status, "1 dead letters are sent back" in page) == (200, True)
        await until(lambda: app.statistics()["jobs"]["ended"] == 3)
        await app.agent_runtime.trigger_checkpoint()
        assert (await app.jobs.get(failed.job_id)).attempt == 2
        assert (await ask(browser, "/act/retry-job", {"job": failed.job_id}))[0] == 200
        assert (await ask(browser, "/act/retry-job", {"job": "nobody"}))[0] == 409


async def test_the_open_jobs_of_a_list_get_a_signal(memory_url: str, tmp_path: Path) -> None:
    async with running(memory_url, tmp_path, ["ann", "bob"]) as (app, console):
        browser = await enter(console, "act")
        assert (await ask(browser, "/act/signal-jobs", {"count": "1", "name": "paid"}))[0] == 409
        status, page = await ask(browser, "/act/signal-jobs", {"count": "2", "name": "paid"})
        assert (status, "2 jobs have signal paid" in page) == (200, True)
        jobs = [job.job_id for job in await app.jobs.find()]
        assert len(jobs) == 2
        with app.jobs.store.reader() as reader:

            def signals(job: str) -> list[str]:
                return [entry.name for _, entry in reader.read(job) if isinstance(entry, Signal)]

            await until(lambda: all(signals(job) == ["paid"] for job in jobs))


@pytest.mark.slow
async def test_todays_code_is_run_over_a_job_and_a_copy_goes_on_behind_a_step(
    memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "shop_of_today.py"
    program.write_text(PROGRAM.replace("DO", "True"))
    async with running(memory_url, tmp_path / "state", ["ann"], handle, program=["shop_of_today:app"]) as (
        app,
        console,
    ):
        await into_history(app)
        browser = await enter(console, "act")
        (job,) = await app.jobs.find()
        status, page = await ask(browser, "/act/dry-run", {"job": job.job_id})
        assert (status, "all 1 steps as recorded" in page) == (200, True), page
        status, page = await ask(browser, "/act/fork", {"job": job.job_id, "step": "0"})
        assert (status, "The fork succeeded, as the job did." in page) == (200, True), page
        assert "card-4111" not in page
        for step in (MARKUP, "9" * 5_000, "-1", "²"):
            assert (await ask(browser, "/act/fork", {"job": job.job_id, "step": step}))[0] == 409
        program.write_text(PROGRAM.replace("DO", "False"))
        status, page = await ask(browser, "/act/dry-run", {"job": job.job_id})
        assert (status, "does something else" in page) == (409, True), page
        program.write_text(PROGRAM.replace("DO", "True").replace('found["card"]', '"card-4112"'))
        status, page = await ask(browser, "/act/dry-run", {"job": job.job_id})
        assert (status, "its result is another one now" in page, "card-4112" in page) == (409, True, False), page
        program.write_text(f"raise ValueError({MARKUP!r})")
        status, page = await ask(browser, "/act/dry-run", {"job": job.job_id})
        assert (status, "could not be run" in page, MARKUP in page) == (409, True, False)


@pytest.mark.slow  # half a second of a core
async def test_without_its_program_a_page_says_why_there_is_no_dry_run(memory_url: str, tmp_path: Path) -> None:
    async with running(memory_url, tmp_path, ["ann"], handle) as (app, console):
        browser = await enter(console, "act")
        page = (await ask(browser, job_of((await ask(browser, "/jobs"))[1])))[1]
        assert "Dry run and fork: The console does not know the program" in page
        (job,) = await app.jobs.find()
        assert (await ask(browser, "/act/dry-run", {"job": job.job_id}))[0] == 404


async def test_jobs_of_a_journal_in_memory_are_shown_too(memory_url: str, tmp_path: Path) -> None:
    app = App("shop", memory_url, journal="memory")
    app.agent("tickets", name="handle", key="customer", sink="answers", durable=True)(handle)
    async with started(app):
        publish(app, "tickets", [{"customer": "ann"}])
        await until(lambda: app.statistics()["jobs"]["ended"] == 1)
        console = Console(app, port=0)
        try:
            browser = await enter(console, "act")
            assert "look" in (await ask(browser, job_of((await ask(browser, "/jobs"))[1])))[1]
        finally:
            console.close()
