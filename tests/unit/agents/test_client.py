"""`JobClient`: jobs of a kernel that other processes begin and await."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from sabot.agents import (
    BudgetSpec,
    ExecutionRequest,
    JobClient,
    JobStatus,
    LetterRefused,
    PolicyEngine,
    RuntimeKernel,
    Schedule,
    ToolPolicy,
)
from sabot.agents.job_effects import folded_job
from sabot.agents.job_reads import find_jobs, jobs_page, short_jobs_page
from sabot.agents.job_view import JobView
from sabot.cli.commands import cli
from sabot.clock import ManualClock
from sabot.engine.calls.errors import BudgetExceeded, TurnLimitExceeded
from sabot.errors import EffectError, IdempotencyConflict, JobCancelled, TransientError, UserError
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.memory import MemoryJournal, MemoryStorage
from sabot.journal.sqlite import SqliteInbox
from sabot.llm import ChatMessage, Completion, Image, ToolCall, Usage, assistant, tool, tool_result, user
from sabot.llm.agent import Agent
from sabot.llm.engine import ExecutionEngine
from sabot.llm.providers.scripted import ScriptedProvider
from tools.agent_tools import until

MADE: list[Any] = []


@tool(effect="unsafe")
async def refund(order: Any) -> str:
    MADE.append(order)
    return f"order {order} is refunded"


async def support(ctx: Any) -> Any:
    return await ctx.call(refund, ctx.message)


async def asks(ctx: Any) -> Any:
    answer = await ctx.ask("confirm", {"order": ctx.message})
    return await ctx.call(refund, answer.resolution["order"])


async def asked_of(handle: Any) -> Any:
    """Returns the first question of a job, as soon as it is asked."""
    async for _ in every_look():
        if found := await handle.get_pending_actions():
            return found[0]


async def every_look() -> AsyncIterator[None]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        yield
        await asyncio.sleep(0.01)
    raise AssertionError("waited a minute in vain")


@pytest.fixture(autouse=True)
def nothing_made() -> None:
    MADE.clear()


def kernel_of(place: Any, *agents: Any, **options: Any) -> RuntimeKernel:
    return RuntimeKernel.create(agent=list(agents) or [support, asks], journal=place, name="shop", **options)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


@pytest.fixture
async def client(place: Path) -> JobClient:
    """A client of a kernel that has run once, and does not run now."""
    async with kernel_of(place):
        pass
    return JobClient(place, name="shop")


async def test_a_job_that_was_begun_while_no_kernel_runs_is_queued_and_runs_at_its_next_start(
    client: JobClient, place: Path
) -> None:
    handle = await client.start("support", 7, scope="acme", principal="ann", session="s", metadata={"by": "web"})
    job = await client.jobs.get(handle.job_id)
    said = job.status, job.agent, job.scope_id, job.principal_id, job.session_id, job.metadata, job.started_at
    assert said == (JobStatus.QUEUED, "shop.support", "acme", "ann", "s", {"by": "web"}, None)
    assert [each.job_id for each in await client.jobs.find(statuses=[JobStatus.QUEUED])] == [handle.job_id]
    assert await client.jobs.find(scope_id="other") == []
    assert MADE == []
    async with kernel_of(place) as kernel:
        result = await handle.result()
        assert (result.content, result.output, MADE) == ("order 7 is refunded", "order 7 is refunded", [7])
        assert await (await kernel.handle(handle.job_id)).result() == result
        job = await client.jobs.get(handle.url_id)
        assert (job.status, job.scope_id, job.principal_id, job.metadata) == ("succeeded", "acme", "ann", {"by": "web"})
    assert await (await client.handle(handle.url_id)).result() == result


@pytest.mark.parametrize("way", ["get", "find"])
async def test_a_job_that_begins_while_it_is_looked_for_is_there(
    client: JobClient, place: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two reads of the journal its letter was taken, and a request by HTTP right behind POST /jobs got a 404."""
    handle = await client.start("support", 1)
    reads = JobView.of if way == "get" else JobView.of_jobs

    async def runs() -> None:
        async with kernel_of(place) as kernel:
            await (await kernel.handle(handle.job_id)).result()

    def read_and_run(*given: Any) -> JobView:
        view = reads(*given)
        monkeypatch.undo()
        asyncio.run(runs())
        return view

    monkeypatch.setattr(JobView, reads.__name__, read_and_run)
    found = [await client.jobs.get(handle.job_id)] if way == "get" else await client.jobs.find()
    assert [(each.job_id, each.status) for each in found] == [(handle.job_id, "queued")]
    assert MADE == [1]
    assert (await client.jobs.get(handle.job_id)).status == "succeeded"


async def test_lists_and_pages_have_jobs_whose_beginning_is_in_the_inbox(client: JobClient, place: Path) -> None:
    async with kernel_of(place) as kernel:
        done = [(await kernel.execute(ExecutionRequest(prompt=n, scope_id="acme"))) for n in range(3)]
        for each in done:
            await each.result()
    queued = [(await client.start("asks", n, scope="acme" if n % 2 else "other")).job_id for n in range(4)]
    with client.jobs.store.reader() as reader:
        page = jobs_page(reader, JobQuery(), 5)
        assert (page.found, page.counts) == (7, {"succeeded": 3, "queued": 4})
        rest = jobs_page(reader, JobQuery(after=page.following), 5)
        assert sorted(each.job_id for each in (*page.jobs, *rest.jobs)) == sorted([*queued, *(e.job_id for e in done)])
        assert (len(page.jobs), rest.following) == (5, "")
        both = (
            short_jobs_page(reader, JobQuery(scope="acme", status="queued"), 9, 9),
            jobs_page(reader, JobQuery(text="ASKS")),
        )
        assert [(each.found, {job.status for job in each.jobs}) for each in both if each] == [
            (2, {"queued"}),
            (4, {"queued"}),
        ]
        assert (jobs_page(reader, JobQuery(agent="nobody")).found, jobs_page(reader, JobQuery(until=1.0)).counts) == (
            0,
            {},
        )
        found, _ = find_jobs(reader, agent="asks", scope="other", statuses=["queued"])
        assert [each.job_id for each in found] == queued[::2]
        shown = folded_job(reader, queued[0])
        assert (shown.record.status, shown.values(reader)["input"]["prompt"]) == ("queued", 0)
    async with kernel_of(place):
        await (await client.handle(queued[0])).cancel()
        await until_ended(client, queued[0])
        counts: dict[str, int] = {}
        async for _ in every_look():
            counts = (await client.jobs.page()).counts
            if counts == {"succeeded": 3, "cancelled": 1, "waiting_action": 3}:
                break


async def test_the_jobs_of_one_session_are_listed_and_cancelled_whether_they_wait_run_or_have_ended(
    client: JobClient, place: Path
) -> None:
    async with kernel_of(place) as kernel:
        kept = await kernel.execute(ExecutionRequest(prompt=1, session_id="chat-1"))
        await kept.result()
        waits = await kernel.execute(ExecutionRequest(prompt=2, agent="asks", session_id="chat-1"))
        await kernel.execute(ExecutionRequest(prompt=3, agent="asks", session_id="chat-2"))
        await asked_of(waits)
    queued = await client.start("asks", 4, session="chat-1")
    page = await client.jobs.page({"session": "chat-1"})
    assert {job.job_id for job in page.jobs} == {kept.job_id, waits.job_id, queued.job_id}
    assert page.counts == {"succeeded": 1, "waiting_action": 1, "queued": 1}
    assert (await client.jobs.page({"session": "chat"})).found == 0
    listed = CliRunner().invoke(cli, ["jobs", "list", "--journal", str(place), "--session", "chat-1", "--json"])
    assert {json.loads(line)["job_id"] for line in listed.output.splitlines()} == {job.job_id for job in page.jobs}
    words = ["jobs", "cancel", "--journal", str(place), "--all", "--session", "chat-1"]
    done = await asyncio.to_thread(CliRunner().invoke, cli, words)
    assert "2 of 2 jobs will be cancelled" in done.output
    async with kernel_of(place) as kernel:
        await kernel.resume()
        for each in (waits, queued):
            await until_ended(client, each.job_id)
    assert (await client.jobs.page()).counts == {"succeeded": 1, "waiting_action": 1, "cancelled": 2}


async def test_all_jobs_of_a_query_are_cancelled_or_retried_and_those_below_go_with_them(
    client: JobClient, place: Path
) -> None:
    broken = True

    async def fails(ctx: Any) -> Any:
        await ctx.call(refund, ctx.message)
        if broken:
            raise ValueError("broken")
        return "whole"

    async def family(ctx: Any) -> Any:
        return await ctx.child("asks", ctx.message)

    async with kernel_of(place, fails, asks, family) as kernel:
        failed = [await client.start("fails", n, scope="acme" if n else "other") for n in range(3)]
        parents = [await client.start("family", n) for n in range(2)]
        for each in failed:
            with pytest.raises(EffectError):
                await each.result()
        await asked_of(parents[0])
        await asked_of(parents[1])
        ended = await client.jobs.cancel_all({"agent": "fails"})
        assert ended == (0, 0, [])
        cancelled = await client.jobs.cancel_all({}, reason="closing time", by="mo")
        assert cancelled == (2, 2, []), "the children go with their parents"
        for each in parents:
            with pytest.raises(JobCancelled):
                await each.result()
        broken = False
        assert await kernel.jobs.retry_all({"scope": "acme"}) == (2, 2, [])
        twice = await client.jobs.retry_all({"status": "failed", "scope": "acme"})
        assert twice.done == 0, twice
        assert [(await (await kernel.handle(each.job_id)).result()).output for each in failed[1:]] == ["whole"] * 2
        for each in failed[1:]:  # the kernel has the result before its end is durable
            await until_ended(client, each.job_id)
        assert (await client.jobs.page({"agent": "fails"})).counts == {"failed": 1, "succeeded": 2}
    assert sorted(MADE) == [0, 1, 2], "what was done is not done again"
    for query, words in [
        ({"scop": "acme"}, "did you mean scope"),
        ({"status": "done"}, "status='done'"),
        ({"since": "now"}, "since='now'"),
        ({"text": "a\0"}, "the character NUL"),
        ({"after": "x"}, "is no cursor"),
        ({5: "x"}, "query="),
        ("acme", "query='acme'"),
    ]:
        for ask in (client.jobs.page, client.jobs.cancel_all, client.jobs.retry_all):
            with pytest.raises(UserError) as wrong:
                await ask(query)  # type: ignore[arg-type]
            assert words in str(wrong.value), wrong.value
    for ask in (client.jobs.cancel_all, client.jobs.retry_all):
        with pytest.raises(UserError, match="query=None"):
            await ask(None)  # type: ignore[arg-type]


async def test_cancels_and_retries_of_a_query_are_posted_by_hundreds(
    client: JobClient, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kernel_of(place):
        pass
    await client.start_all([ExecutionRequest(prompt=number, agent="asks") for number in range(410)])
    sizes, post_some = list[int](), SqliteInbox.post_some

    def counted(inbox: SqliteInbox, letters: Any) -> Any:
        sizes.append(len(letters))
        return post_some(inbox, letters)

    monkeypatch.setattr(SqliteInbox, "post_some", counted)
    assert await client.jobs.cancel_all({"agent": "asks"}) == (410, 410, [])
    assert sizes == [400, 10]
    sizes.clear()
    async with kernel_of(place, asks):
        await asyncio.gather(*(until_ended(client, job.job_id) for job in await client.jobs.find()))
        assert (await client.jobs.retry_all({"status": "cancelled"})).done == 410
    assert [size for size in sizes if size > 1] == [400, 10], "the kernel withdraws single questions"


async def until_ended(client: JobClient, job_id: str) -> None:
    with suppress(JobCancelled):
        await (await client.handle(job_id)).result()


async def test_a_kernel_that_runs_takes_it_without_resume(client: JobClient, place: Path) -> None:
    async with kernel_of(place) as kernel:
        requests = [ExecutionRequest(prompt=n, agent="support") for n in range(20)]
        handles = await client.start_all(requests)
        found = [await each.result() for each in handles]
        assert [each.output for each in found] == [f"order {n} is refunded" for n in range(20)]
        assert sorted(MADE) == list(range(20))
        assert kernel.statistics()["begun"] == 20


async def test_one_key_is_one_job_also_within_one_list(client: JobClient, place: Path) -> None:
    def asked(prompt: int, key: str | None = None, agent: str = "support") -> ExecutionRequest:
        return ExecutionRequest(prompt=prompt, agent=agent, idempotency_key=key)

    first, second, other, third = await client.start_all([asked(1, "k"), asked(1, "k"), asked(2), asked(1, "k")])
    assert first.job_id == second.job_id == third.job_id != other.job_id
    assert [each.created for each in (first, second, other, third)] == [True, False, True, False]
    with pytest.raises(IdempotencyConflict, match="key 'l' of scope default"):
        await client.start_all([asked(3, "l"), asked(4, "l"), asked(5, "m")])
    with pytest.raises(UserError, match="start: agent"):  # before any has begun
        await client.start_all([asked(6), asked(7, agent="")])
    begun = await client.start_all([asked(3, "l"), asked(5, "m"), *(asked(n) for n in range(10, 420))])
    assert [each.created for each in begun] == [False, False] + [True] * 410
    async with kernel_of(place):
        for each in (first, other, *begun):
            await each.result()
    assert sorted(MADE) == [1, 2, 3, 5, *range(10, 420)]
    assert await client.start_all([]) == []


async def test_a_kernel_waits_in_handle_for_a_job_in_its_inbox(client: JobClient, place: Path) -> None:
    started = await client.start("support", 1)
    async with kernel_of(place) as kernel:
        handle = await kernel.handle(started.job_id)
        assert (await handle.result()).output == "order 1 is refunded"
        events = [event.type.value async for event in handle.events()]
        assert (events[0], events[-1]) == ("job.started", "final.result")


async def test_a_handle_is_of_the_run_whose_letter_has_just_left_the_inbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its letter was gone, and the kernel had not heard of it: `result is forgotten` was raised, or the run before had the handle."""
    storage, take, runs = MemoryStorage(), MemoryJournal.take, 0
    taken, looked = threading.Event(), threading.Event()

    def take_and_wait(journal: MemoryJournal) -> Any:
        if found := take(journal):
            taken.set()
            looked.wait(60)
        return found

    async def fails_first(ctx: Any) -> int:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise ValueError("too early")
        return runs

    async with kernel_of(storage, fails_first) as kernel:
        client, job_id = JobClient(storage, name="shop"), ""
        for run in (1, 2):
            monkeypatch.setattr(MemoryJournal, "take", take_and_wait)
            if run == 1:
                job_id = (await client.start("fails_first", None)).job_id
            else:
                asked = asyncio.ensure_future(kernel.jobs.retry(job_id))
            await asyncio.to_thread(taken.wait, 60)
            look = asyncio.ensure_future(kernel.handle(job_id))
            await asyncio.wait([look], timeout=0.2)  # it ends only if it does not wait for the letter
            monkeypatch.setattr(MemoryJournal, "take", take)
            looked.set()
            handle = await look
            if run == 1:
                with pytest.raises(EffectError, match="too early"):
                    await handle.result()
                taken.clear()
                looked.clear()
        assert (await handle.result()).output == 2
        await asked


async def test_one_key_is_one_job_whoever_begins_it(client: JobClient, place: Path) -> None:
    first = await client.start("support", 1, idempotency_key="k")
    assert (await client.start("support", 1, idempotency_key="k")).job_id == first.job_id
    with pytest.raises(IdempotencyConflict, match="key 'k' of scope default"):
        await client.start("support", 2, idempotency_key="k")
    other = await client.start("support", 1, idempotency_key="k", scope="acme")
    assert other.job_id != first.job_id
    async with kernel_of(place) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=1, idempotency_key="k"))  # of the first agent
        named = await kernel.execute(ExecutionRequest(prompt=1, agent="support", idempotency_key="k"))
        assert handle.job_id == named.job_id == first.job_id
        assert await handle.result() == await first.result()
        with pytest.raises(IdempotencyConflict):
            await kernel.execute(ExecutionRequest(prompt=3, idempotency_key="k"))
        await kernel.execute(ExecutionRequest(prompt=4, idempotency_key="own"))
        own = await client.start("support", 4, idempotency_key="own")
        assert (await own.result()).output == "order 4 is refunded"
        with pytest.raises(IdempotencyConflict):
            await client.start("support", 5, idempotency_key="own")
        await other.result()
    assert sorted(MADE) == [1, 1, 4]


async def test_a_kernel_that_begins_a_queued_job_itself_begins_it_once(client: JobClient, place: Path) -> None:
    """`execute` comes before the inbox is looked at, so both want to begin the job of this key."""
    for number in range(20):
        await client.start("support", number, idempotency_key=str(number))
    async with kernel_of(place) as kernel:
        asked = [ExecutionRequest(prompt=n, idempotency_key=str(n)) for n in range(20)]
        handles = await asyncio.gather(*map(kernel.execute, asked))
        assert [(await each.result()).output for each in handles] == [f"order {n} is refunded" for n in range(20)]
    async with kernel_of(place) as kernel:
        await kernel.resume()
        await until(lambda: not kernel.statistics()["running"])
        jobs = await kernel.jobs.find()
        assert (len(jobs), {each.attempt for each in jobs}) == (20, {1})
    assert sorted(MADE) == list(range(20))


async def test_a_job_that_is_cancelled_while_it_is_queued_makes_no_effect(client: JobClient, place: Path) -> None:
    handle = await client.start("support", 1)
    await handle.cancel("changed my mind")
    with pytest.raises(LetterRefused) as refused:
        await handle.cancel()
    assert refused.value.reason == "second"
    async with kernel_of(place):
        with pytest.raises(JobCancelled):
            await handle.result()
    assert MADE == []


async def test_a_client_waits_on_while_the_server_of_the_journal_is_away(
    client: JobClient, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be away when the wait begins, or go away during it."""
    store, away, looks = client.jobs.store, [True], 0
    handles = [await client.start("support", n) for n in range(3)]
    opened = store.reader

    @contextmanager
    def reader() -> Iterator[Any]:
        nonlocal looks
        looks += 1
        if away[0]:
            raise TransientError("it does not answer")
        with opened() as found:
            real = found.positions

            def positions() -> Any:
                if away[0]:
                    raise TransientError("the connection has ended")
                return real()

            monkeypatch.setattr(found, "positions", positions)
            yield found

    monkeypatch.setattr(store, "reader", reader)
    waits = [asyncio.create_task(each.result()) for each in handles]
    events = asyncio.create_task(anext(handles[0].events()))
    await until(lambda: looks >= 2)
    away[0] = False
    await until(lambda: looks >= 3)
    away[0] = True
    async with kernel_of(place) as kernel:
        await until(lambda: kernel.statistics()["ended"] == 3)
        assert not any(each.done() for each in waits)
        away[0] = False
        assert [(await each).output for each in waits] == [f"order {n} is refunded" for n in range(3)]
        assert (await events).type == "job.started"
    assert sorted(MADE) == [0, 1, 2]


async def test_a_question_of_the_job_is_answered_by_its_handle(client: JobClient, place: Path) -> None:
    handle = await client.start("asks", 3)
    other = await client.start("asks", 4)
    async with kernel_of(place):
        asked = await asked_of(handle)
        with pytest.raises(LetterRefused, match="no question of job"):
            await other.resolve_action(asked.resume_token, {"order": 5})
        await handle.resolve_action(asked.resume_token, {"order": 33}, by="ann")
        assert (await handle.result()).output == "order 33 is refunded"
        await other.cancel()
        with pytest.raises(JobCancelled):
            await other.result()


async def test_results_and_errors_are_those_of_the_kernel(client: JobClient, place: Path) -> None:
    async def breaks(ctx: Any) -> None:
        raise KeyError("no account")

    async def record(ctx: Any) -> Any:
        return {"content": "of its own", "n": ctx.message}

    answers = [Completion(message=assistant("It is done."), usage=Usage(10, 5))]
    again = [assistant("", ToolCall(f"c{n}", "refund", '{"order": 1}')) for n in range(2)]
    engine = ExecutionEngine(ScriptedProvider(answers), retries=0, patience=0)
    turns = ExecutionEngine(ScriptedProvider(again), retries=0, patience=0)
    agents = breaks, record, Agent(engine, name="model"), Agent(turns, name="turns", tools=[refund])
    async with kernel_of(place, *agents):
        with pytest.raises(EffectError, match="no account") as failed:
            await (await client.start("breaks", 0)).result()
        assert failed.value.type == "KeyError"
        found = await (await client.start("record", 2)).result()
        assert (found.output, found.turns) == ({"content": "of its own", "n": 2}, 0)
        said = await (await client.start("model", "Is it done?")).result()
        assert (said.content, said.output, said.usage.input_tokens, said.turns) == ("It is done.", None, 10, 1)
        with pytest.raises(TurnLimitExceeded):
            await (await client.start("turns", "Refund", max_turns=1)).result()


async def test_policies_and_limits_of_the_kernel_hold(client: JobClient, place: Path) -> None:
    async def twice(ctx: Any) -> Any:
        await ctx.call(refund, 1)
        return await ctx.call(refund, 2)

    policy = PolicyEngine([ToolPolicy(["refund"], denied_scopes=["guest"])])
    async with kernel_of(place, support, twice, policy=policy, max_jobs=1):
        with pytest.raises(EffectError, match="refund"):
            await (await client.start("support", 1, scope="guest")).result()
        assert MADE == []
        with pytest.raises(BudgetExceeded, match="may call tools 1 times"):
            await (await client.start("twice", 0, budgets=BudgetSpec(max_tool_calls=1))).result()
        assert MADE == [1]
        assert (await (await client.start("support", 9, scope="acme")).result()).output == "order 9 is refunded"


async def test_a_job_of_an_agent_that_the_kernel_does_not_have_stays_queued(
    client: JobClient, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handle = await client.start("refunds", 1)
    async with kernel_of(place):
        assert (await (await client.start("support", 2)).result()).output == "order 2 is refunded"
        assert (await client.jobs.get(handle.job_id)).status == JobStatus.QUEUED
    assert "of agent shop.refunds, and this program has shop.asks, shop.support" in caplog.text

    async def refunds(ctx: Any) -> Any:
        return ctx.message

    async with kernel_of(place, refunds, support, asks):
        assert (await handle.result()).output == 1


async def test_wrong_requests_begin_nothing(client: JobClient, place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="agent=''"):
        await client.start("", 1)
    with pytest.raises(UserError, match="there is no limit max_dollars"):
        await client.start("support", 1, budgets={"max_dollars": 1})
    with pytest.raises(UserError, match="scope_id=''"):
        await client.start("support", 1, scope="")
    for name in ("idempotency_key", "key", "session"):  # a form with an empty key was two jobs when it was sent twice
        with pytest.raises(UserError, match=f"{name}.*='': it is empty .leave it out"):
            await client.start("support", 1, **{name: ""})
        with pytest.raises(UserError, match="the character NUL"):
            await client.start("support", 1, **{name: "a\0"})
    with pytest.raises(UserError, match="did you mean principal"):
        await client.start("support", 1, principle="ann")
    with pytest.raises(UserError, match="the request"):
        await client.start("support", object())
    with pytest.raises(UserError, match="start_all: requests='support'"):
        await client.start_all(["support"])
    with pytest.raises(UserError, match="has no journal"):
        await JobClient(tmp_path / "none").start("support", 1)
    with pytest.raises(UserError, match="JobClient: journal=''"):
        JobClient("")
    for opens in (JobClient, lambda place: RuntimeKernel.create(agent=support, journal=place)):
        with pytest.raises(UserError, match="journal='memory' would be a folder") as told:  # of an App it is no folder
            opens("memory")
        assert 'journal="./memory" is the folder' in str(told.value.hint)
    with pytest.raises(UserError, match="none of this name"):
        await client.handle("shop.support/none")
    assert await client.jobs.find() == []


def test_a_key_that_is_empty_begins_nothing_from_the_command_line_either(place: Path) -> None:
    for option, name in (("--key", "idempotency_key"), ("--of", "key"), ("--session", "session_id")):
        asked = ["jobs", "start", "shop.support", "--journal", str(place), "--with", "1", option, ""]
        said = CliRunner().invoke(cli, asked)
        assert (said.exit_code, f"{name}='': it is empty" in said.output) == (1, True), said.output


NO_PROMPTS: list[tuple[Any, str]] = [
    ({"text": "hi"}, "{'text': 'hi'} is no prompt of an Agent"),
    (5, "5 is no prompt of an Agent"),
    (None, "None is no prompt of an Agent"),
    ([], "[] is no prompt of an Agent"),
    (["hi", 5], "message 2 of the prompt is 5"),
    (
        [{"role": "user", "text": "refund o-1"}],
        "message 1 of the prompt has a field 'text' (the fields are role, content,",
    ),
    ([{"role": "user", "content": "x"}, {"role": "user"}], "message 2 of the prompt has no content"),
    ([{"role": "assistant", "tool_calls": []}], "message 1 of the prompt has no content"),
    ([{"role": "user", "content": "x", "name": "ann"}], "has a field 'name'"),
    ([{"role": "boss", "content": "x"}], "message 1 of the prompt is no message: Invalid enum value 'boss'"),
    ([{"role": "user", "content": 5}], "message 1 of the prompt is no message"),
    (
        [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]}],
        "a part of its content has a field",
    ),
    (
        [{"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {}}]}],
        "message 1 of the prompt, a tool call has a field 'type' (the fields are id, name, arguments, vendor",
    ),
]


@pytest.mark.parametrize(("message", "said"), NO_PROMPTS)
async def test_what_is_no_prompt_of_an_agent_reaches_no_model(place: Path, message: Any, said: str) -> None:
    """The model got an empty text in place of a message without content, and the job had succeeded."""
    heard = list[Any]()
    desk = Agent(ExecutionEngine(ScriptedProvider(lambda spec: heard.append(spec) or "yes")), name="desk")
    async with kernel_of(place, desk, support) as kernel:
        with pytest.raises(UserError) as refused:
            await kernel.execute(ExecutionRequest(prompt=message))
        assert said in str(refused.value)
        handle = await JobClient(place, name="shop").start("desk", message)
        with pytest.raises(EffectError) as failed:
            await handle.result()
        assert (failed.value.type, said in failed.value.message) == ("UserError", True), failed.value
        await (await kernel.execute(ExecutionRequest(prompt=message, agent="support"))).result()
        assert [message] == MADE  # a function takes any value
    assert heard == []
    with pytest.raises(UserError, match=r"is (no prompt|'hi')"):
        kernel_of(place, desk, schedules=[Schedule("s", "desk", "0 9 * * *", message={"text": "hi"})])


async def test_messages_of_all_kinds_reach_the_model_as_they_are(place: Path) -> None:
    """A message that a program has made with an empty text has it in the journal too."""
    heard = list[Any]()
    desk = Agent(ExecutionEngine(ScriptedProvider(lambda spec: heard.append(spec.messages) or "yes")), name="desk")
    call = ToolCall("1", "refund", "{}")
    talk = [user("hi"), assistant("", call), tool_result("1", ""), user("", Image(url="https://x.example/a.png"))]
    plain = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [{"id": "1", "name": "refund", "arguments": "{}"}]},
        {"role": "tool", "tool_call_id": "1", "content": ""},
        {
            "role": "user",
            "content": [{"type": "text", "text": ""}, {"type": "image", "url": "https://x.example/a.png"}],
        },
    ]
    async with kernel_of(place, desk) as kernel:
        for prompt in (talk, plain):
            await (await kernel.execute(ExecutionRequest(prompt=prompt))).result()
            await (await JobClient(place, name="shop").start("desk", prompt)).result()
        await (await kernel.execute(ExecutionRequest(prompt=ChatMessage("user")))).result()
        for said in (["hi", "there"], ["hi", user("there")]):  # as `Agent.run` takes them
            await (await kernel.execute(ExecutionRequest(prompt=said))).result()
    assert heard == [tuple(talk)] * 4 + [(user(""),)] + [(user("hi"), user("there"))] * 2


async def test_a_job_that_an_earlier_version_has_begun_with_a_message_without_content_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model was asked already, and its answer was paid."""
    heard = list[Any]()
    answers = [assistant("", ToolCall("1", "refund", '{"order": 1}')), "It is done."]
    model = ScriptedProvider(lambda spec: heard.append(spec.messages) or answers[len(heard) - 1])
    desk = Agent(ExecutionEngine(model), name="desk", tools=[refund])
    policy = PolicyEngine([ToolPolicy(["refund"], require_approval=True)])
    with monkeypatch.context() as earlier:
        earlier.setattr("sabot.agents.kernel.jobs.decode_prompt", lambda said: msgspec.convert(said, list[ChatMessage]))
        async with kernel_of(place, desk, policy=policy) as kernel:
            begun = await kernel.execute(ExecutionRequest(prompt=[{"role": "user", "text": "refund 1"}]))
            question = await asked_of(begun)
    async with kernel_of(place, desk, policy=policy) as kernel:
        await kernel.resume()
        handle = await kernel.handle(begun.job_id)
        await handle.resolve_action(question.resume_token, {"approved": True})
        assert (await handle.result()).content == "It is done."
    assert (MADE, len(heard)) == ([1], 2)


async def test_a_result_that_nobody_can_give_any_more_is_told(client: JobClient, place: Path) -> None:
    async with kernel_of(place, keep_jobs=0) as kernel:
        first = await client.start("support", 0)
        await (await kernel.handle(first.job_id)).result()
        for number in range(1, 30):
            await (await kernel.execute(ExecutionRequest(prompt=number))).result()
    with pytest.raises(UserError, match="its result is forgotten"):
        await first.result()


async def test_a_wait_that_is_given_up_leaves_nothing_behind(client: JobClient, place: Path) -> None:
    handle = await client.start("asks", 1)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(handle.result(), 0.05)
        await until(lambda: all(each.get_name() != "the ends of jobs" for each in asyncio.all_tasks()))
    async with kernel_of(place):
        first, second = asyncio.ensure_future(handle.result()), asyncio.ensure_future(handle.result())
        asked = await asked_of(handle)
        first.cancel()
        await handle.resolve_action(asked.resume_token, {"order": 2})
        assert (await second).output == "order 2 is refunded"
        assert first.cancelled()


async def test_an_effect_that_may_be_repeated_begins_a_job_by_a_key_only(client: JobClient, place: Path) -> None:
    @tool(effect="idempotent", retries=0)
    async def hands_on(key: str) -> str:
        return (await client.start("support", 1, idempotency_key=key or None)).job_id

    async def hands(ctx: Any) -> Any:
        return await ctx.call(hands_on, ctx.message)

    async with kernel_of(place, support, hands):
        with pytest.raises(EffectError, match="may be repeated"):
            await (await client.start("hands", "")).result()
        job_id = (await (await client.start("hands", "k")).result()).output
        assert (await (await client.handle(job_id)).result()).output == "order 1 is refunded"
    assert MADE == [1]


async def test_another_key_at_each_attempt_of_an_effect_begins_no_second_job(client: JobClient, place: Path) -> None:
    begun: list[str] = []

    @tool(effect="idempotent", retries=2)
    async def hands_on(order: int) -> None:
        begun.append((await client.start("support", order, idempotency_key=f"k{len(begun)}")).job_id)
        raise ConnectionResetError("after the job")

    async def hands(ctx: Any) -> Any:
        return await ctx.call(hands_on, ctx.message)

    async with kernel_of(place, support, hands):
        with pytest.raises(EffectError, match="would begin another one"):
            await (await client.start("hands", 1)).result()
        assert len(begun) == 1
        assert (await (await client.handle(begun[0])).result()).output == "order 1 is refunded"
    assert MADE == [1]


async def test_a_client_reads_a_journal_in_memory_of_this_process() -> None:
    clock = ManualClock()
    storage = MemoryStorage(clock)
    client = JobClient(storage, name="shop", clock=clock)
    handle = await client.start("support", 1)
    async with kernel_of(storage) as kernel:
        assert (await handle.result()).output == "order 1 is refunded"
        assert (await kernel.jobs.get(handle.job_id)).status == "succeeded"
