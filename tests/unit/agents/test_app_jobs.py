"""`app.jobs` and `app.actions`: the jobs of an app that runs here, that runs elsewhere, and that does not run."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sabot import App
from sabot.agents import (
    Budget,
    BudgetSpec,
    DurableContext,
    IllegalTransition,
    JobRecord,
    JobSpec,
    JobStatus,
    LetterRefused,
    Reply,
    ToolPolicy,
)
from sabot.agents.job_reads import find_jobs, jobs_page
from sabot.errors import UserError
from sabot.jobs.values import pack
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.entries import REQUEST, Begin, End, Intent, Letter, encode_entry
from sabot.journal.sqlite import SqliteJournal
from sabot.llm import CallBudget, tool
from sabot.testing import ManualClock
from tools.agent_tools import publish, started, until, values

PLACES = ["state", "memory"]


async def ticket(ctx: DurableContext) -> Any:
    """Asks, waits for the payment, and says what it was told."""
    reply: Reply = await ctx.ask("confirm", {"message": "Go?"}, timeout="1h")
    paid = await ctx.wait("paid")
    return {"approved": reply.approved, "by": reply.by, "paid": paid}


def an_app(url: str, folder: Path, place: str = "state", function: Any = ticket, clock: Any = None) -> App:
    journal = "memory" if place == "memory" else None
    app = App("shop", url, state=str(folder), journal=journal, checkpoint_interval=3600, clock=clock or ManualClock())
    app.agent("tickets", name="handle", key="customer", sink="answers", durable=True)(function)
    return app


async def only(app: App) -> JobRecord:
    (job,) = await app.jobs.find()
    return job


@asynccontextmanager
async def waiting(app: App) -> AsyncIterator[JobRecord]:
    """The app runs, and its job waits for an answer."""
    async with started(app):
        publish(app, "tickets", [{"customer": "ann"}])
        await until(lambda: app.statistics()["jobs"]["parked"] == 1)
        await app.agent_runtime.trigger_checkpoint()  # what is read is what is durable
        yield await only(app)


@pytest.mark.parametrize("place", PLACES)
async def test_a_job_is_shown_answered_and_told_while_the_app_runs(memory_url: str, tmp_path: Path, place: str) -> None:
    app = an_app(memory_url, tmp_path, place)
    async with waiting(app) as job:
        assert (job.agent, job.status, job.attempt, job.effects) == ("shop.handle", JobStatus.WAITING_ACTION, 1, 1)
        (effect,) = job.open
        assert (effect.kind, effect.name, effect.due_at) == ("ask", "confirm", effect.asked_at + 3600)
        assert await app.jobs.get(job.job_id) == job
        (action,) = await app.actions.find(statuses=["pending"])  # type: ignore[list-item]
        assert dict(action.payload) == {"message": "Go?"}
        told = await app.actions.resolve(action.resume_token, {"approved": True}, by="bob")
        assert (told.status, told.by) == ("resolved", "bob")
        with pytest.raises(LetterRefused, match=r"already answered|closed"):
            await app.actions.resolve(action.resume_token, {"approved": False})
        await app.jobs.signal(job.job_id, "paid", {"amount": 12.5}, token="bank-7", by="bank")
        with pytest.raises(LetterRefused, match=r"already sent|has ended"):
            await app.jobs.signal(job.job_id, "paid", {"amount": 12.5}, token="bank-7")
        await until(lambda: values(app, "answers"))
        assert (await app.actions.wait_for_resolution(action.action_id, "10s")).resolution == {"approved": True}
        await until(lambda: app.statistics()["jobs"]["ended"] == 1)
        await app.agent_runtime.trigger_checkpoint()
        assert (await app.jobs.get(job.job_id)).status is JobStatus.SUCCEEDED
    assert values(app, "answers") == [{"approved": True, "by": "bob", "paid": {"amount": 12.5}}]


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("place", PLACES)
async def test_what_is_told_while_the_app_is_down_is_seen_at_once_and_taken_at_the_next_start(
    memory_url: str, tmp_path: Path, place: str
) -> None:
    app = an_app(memory_url, tmp_path, place)
    async with waiting(app) as job:
        pass
    (action,) = await app.actions.find(job_id=job.job_id)
    assert action.status == "pending"
    told = await app.actions.resolve(action.resume_token, {"approved": True}, by="bob")
    assert (told.status, told.by) == ("resolved", "bob")
    assert (await app.jobs.get(job.job_id)).status is JobStatus.RUNNING
    await app.jobs.signal(job.job_id, "paid", 7)
    async with started(app):
        await until(lambda: values(app, "answers"))
    assert values(app, "answers") == [{"approved": True, "by": "bob", "paid": 7}]


async def test_a_job_is_cancelled_and_cannot_be_anything_else_from_outside(memory_url: str, tmp_path: Path) -> None:
    app = an_app(memory_url, tmp_path)
    async with waiting(app) as job:
        with pytest.raises(IllegalTransition, match=r"run of agent shop\.handle"):
            await app.jobs.fail(job.job_id)
        with pytest.raises(UserError, match="begin with the records"):
            await app.jobs.create(JobSpec(scope_id="shop"))
        await app.jobs.cancel(job.job_id, "too late")
        await until(lambda: app.statistics()["jobs"]["ended"] == 1)
        await app.agent_runtime.trigger_checkpoint()
        ended = await app.jobs.get(job.job_id)
        assert (ended.status, ended.error, ended.open) == (JobStatus.CANCELLED, "too late", ())
        with pytest.raises(IllegalTransition):
            await app.jobs.cancel(job.job_id)
        with pytest.raises(LetterRefused, match="has ended"):
            await app.jobs.signal(job.job_id, "paid")
    with pytest.raises(UserError, match="none of this name"):
        await app.jobs.get("nobody")


async def test_a_question_that_nobody_answered_in_time_is_expired_also_before_its_owner_says_so(
    memory_url: str, tmp_path: Path
) -> None:
    clock = ManualClock(1_000_000.0)
    app = an_app(memory_url, tmp_path, clock=clock)
    async with waiting(app) as job:
        pass
    clock.advance(3601)
    (action,) = await app.actions.find()
    assert action.status == "expired"
    assert await app.actions.find(job_id=job.job_id, statuses=["pending"]) == []  # type: ignore[list-item]
    with pytest.raises(LetterRefused, match="expired"):
        await app.actions.resolve(action.resume_token, {"approved": True})


async def test_a_question_is_withdrawn_from_outside(memory_url: str, tmp_path: Path) -> None:
    app = an_app(memory_url, tmp_path)
    async with waiting(app) as job:
        (action,) = await app.actions.find()
        assert (await app.actions.cancel(action.action_id)).status == "cancelled"
        await app.jobs.signal(job.job_id, "paid")
        await until(lambda: values(app, "answers"))
    assert values(app, "answers") == [{"approved": False, "by": "", "paid": None}]


@contextmanager
def in_doubt(folder: Path, job_id: str) -> Iterator[str]:
    """The journal of an app that was killed in the middle of a call, about which a person is asked; gives the token."""
    journal = SqliteJournal(folder / "journal")
    body = b'{"effect":"refund","ordinal":1,"attempt":1,"answers":["done","not_done","abandon"]}'
    for entry in (
        Begin(job_id, 1000, "shop.handle"),
        Intent(job_id, 1001, 1, "call", "refund", b"d", "unsafe"),
        Intent(job_id, 1002, 1, "ask", "in_doubt", b"e", body=body, token="doubt"),
    ):
        last = journal.append(entry)
    assert journal.wait_durable(last, 60)
    journal.close()
    yield "doubt"


async def test_an_effect_in_doubt_is_not_approved(memory_url: str, tmp_path: Path) -> None:
    app = an_app(memory_url, tmp_path)
    with in_doubt(tmp_path, "shop.handle/x") as token:
        (job,) = await app.jobs.find()
        assert job.open[0].in_doubt
        with pytest.raises(UserError, match="asks whether refund was done"):
            await app.actions.resolve(token, {"approved": True})
        action = await app.actions.resolve(token, {"outcome": "done", "result": 7})
    assert action.resolution == {"outcome": "done", "result": 7}


async def test_an_app_without_a_journal_says_what_is_missing(memory_url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no place for their journal"):
        await App("shop", memory_url).jobs.find()
    with pytest.raises(UserError, match="has no journal"):
        await an_app(memory_url, tmp_path / "new").jobs.find()
    with pytest.raises(UserError, match="has not run"):
        await an_app(memory_url, tmp_path, "memory").actions.find()


async def test_a_failed_job_says_why(memory_url: str, tmp_path: Path) -> None:
    @tool(effect="read")
    async def look() -> None:
        raise KeyError("order 7")

    async def fails(ctx: DurableContext) -> None:
        await ctx.call(look)

    app = an_app(memory_url, tmp_path, function=fails)
    app.agent_runtime.agents.clear()
    app.agent("tickets", name="handle", key="customer", durable=True, on_error="skip")(fails)
    async with started(app):
        publish(app, "tickets", [{"customer": "ann"}])
        await until(lambda: app.statistics()["jobs"]["ended"] == 1)
        await app.agent_runtime.trigger_checkpoint()
        job = await only(app)
    assert (job.status, job.error) == (JobStatus.FAILED, "KeyError: 'order 7'")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"policy": 3}, "policy=3.*a PolicyEngine"),
        ({"policy": ToolPolicy(["look"], denied=True)}, "policy=.*a PolicyEngine"),
        ({"events": 3}, "events=3.*an EventBus"),
        ({"budgets": 3}, "budgets=3"),
        ({"budgets": [3]}, "3 is no Budget"),
        ({"budgets": [CallBudget(max_tokens=3)]}, r"CallBudget\(.* is no Budget of sabot.agents.*an engine's"),
        ({"budgets": CallBudget(max_tokens=3)}, "budgets=CallBudget.*a CallBudget of sabot.llm is an engine's"),
        ({"budgets": BudgetSpec(max_turns=3)}, r"budgets=BudgetSpec.*is one job's of a kernel: ExecutionRequest\("),
        ({"budgets": [BudgetSpec(max_turns=3)]}, r"is no Budget.*is one job's of a kernel: ExecutionRequest\("),
        ({"budgets": Budget("a", max_calls_daily=1)}, "budgets=Budget"),
        ({"budgets": [Budget("a", max_calls_daily=1), Budget("a", max_calls_daily=1, warn_at=1)]}, "two budgets of a"),
    ],
)
def test_what_surrounds_the_jobs_of_an_app_is_refused_where_it_is_none(options: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        App("a", "memory://surroundings", **options)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("queued", [3, 300])
def test_a_page_asks_the_journal_as_often_however_many_jobs_are_queued(
    tmp_path: Path, queued: int, again: bool
) -> None:
    """One query for each of them took seconds over a server, for each page."""
    journal = SqliteJournal(tmp_path / "journal")
    request = pack({"prompt": "go on"}, "a request")
    begins = [
        Begin(f"shop.clerk/{number}", number, "shop.clerk", request, scope="shop", form=REQUEST)
        for number in range(queued)
    ]
    if again:
        places = [journal.append(each) for each in begins]
        journal.wait_durable([journal.append(End(each.job, 0, "failed")) for each in begins][-1])
        for each, (_, offset) in zip(begins, places, strict=True):
            body = encode_entry(msgspec.structs.replace(each, run=2))
            journal.post(Letter("retry", job=each.job, name=str(offset), body=body))
    else:
        letters = [Letter("begin", job=each.job, name=each.agent, body=encode_entry(each)) for each in begins]
        assert all(journal.begin(letters))
    asked, select = list[str](), journal.select

    def counted(statement: str, values: Any = ()) -> Any:
        asked.append(statement)
        return select(statement, values)

    journal.select = counted  # type: ignore[method-assign]
    page = jobs_page(journal, JobQuery(), 2)
    assert (page.counts, [job.job_id for job in page.jobs]) == (
        {"queued": queued},
        [begins[-1].job, begins[-2].job],
    )
    assert len(asked) < 20
    asked.clear()
    found, _ = find_jobs(journal, statuses=["queued"])
    assert {job.job_id for job in found} == {each.job for each in begins}
    assert len(asked) < 20, asked[-3:]
    journal.close()
