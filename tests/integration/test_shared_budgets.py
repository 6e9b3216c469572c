"""Budgets that several processes share: none is exceeded, though processes are killed and the server is restarted."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from integration import budget_child
from integration.budget_child import LIMIT, shared_ledger, spend

from sabot.agents import (
    Budget,
    BudgetDecision,
    ExecutionContext,
    ExecutionRequest,
    Ledger,
    PostgresLedgerWriter,
    RuntimeKernel,
)
from sabot.agents.accounts.owners import BatchResult, BudgetBatch
from sabot.base.accounts import Amounts
from sabot.base.threads import run_in_thread
from sabot.errors import JournalFailed, TransientError
from sabot.journal import Position
from sabot.journal.entries import Entry
from sabot.journal.postgres_workers import PostgresWorker
from sabot.llm import (
    Agent,
    BudgetExceeded,
    BudgetUnavailable,
    Completion,
    ExecutionEngine,
    RequestSpec,
    ScriptedProvider,
    Usage,
    assistant,
)
from tools.agent_tools import until
from tools.command_line import lines
from tools.postgres import Postgres, server_or_skip

OF = ExecutionContext(scope_id="tenant")


@contextlib.contextmanager
def child(place: str, name: str, calls: int, what: str) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-P", budget_child.__file__, place, name, str(calls), what]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def said(process: "subprocess.Popen[str]") -> int:
    """The number behind the word that it prints."""
    assert process.stdout is not None
    return int(process.stdout.readline().split()[1])


async def until_used(ledger: Ledger, tokens: int) -> Amounts:
    """What the month has used, when that is so much."""
    async with asyncio.timeout(60):
        while True:
            used = (await ledger.used("tenant"))["monthly"]
            if used.tokens >= tokens:
                return used
            await asyncio.sleep(0.01)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with contextlib.ExitStack() as open_now:
        if request.param == "postgres":
            yield open_now.enter_context(server_or_skip().database())
        else:
            yield str(tmp_path / "ledger.db")


@pytest.mark.one_in(3, "three interpreters are started for each owner")
async def test_a_budget_is_not_exceeded_though_a_process_is_killed_with_calls_in_flight(place: str) -> None:
    with child(place, "dead", 40, "hold") as dead:
        assert said(dead) == 40
        dead.kill()
    with child(place, "one", 200, "spend") as one, child(place, "two", 200, "spend") as two:
        spent = sum(await asyncio.gather(run_in_thread(said, one), run_in_thread(said, two)))
    ledger = shared_ledger(place)
    try:
        used = await until_used(ledger, 200 * spent + 300 * 40)  # the lease of the dead one ends
        assert used == Amounts(200 * spent + 300 * 40, Decimal(0), spent + 40)
        assert used.tokens <= LIMIT
        assert spent >= 60, "18,000 were left for calls that may use 300 each"
        assert await ledger.check_budget(OF, LIMIT - used.tokens + 1) is BudgetDecision.DENY
        assert await ledger.check_budget(OF, LIMIT - used.tokens) is BudgetDecision.ALLOW
    finally:
        await ledger.close()
    shown = await run_in_thread(lines, "ledger", place, "--by", "type,job", "--json")
    doubts = [each for each in shown if each["type"] == "doubt"]
    assert {each["job"]: each["in_doubt"] for each in doubts} == {f"dead/{number}": 300 for number in range(40)}


class Own:
    """A server that may be stopped, and a database of the test."""

    def __init__(self, server: Postgres, url: str) -> None:
        self.server, self.url = server, url

    async def stop(self) -> None:
        await run_in_thread(self.server.stop, kill=True)

    async def start(self) -> None:
        await run_in_thread(self.server.start)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    server_or_skip()
    server = Postgres("fsync=on")
    yield server
    server.remove()


@pytest.fixture
def own(server: Postgres) -> Iterator[Own]:
    with server.database() as url:
        yield Own(server, url)


@pytest.mark.slow  # a second of a core, or more
async def test_calls_wait_for_a_server_that_is_restarted_and_none_is_made_twice_or_too_much(own: Own) -> None:
    ledgers = [shared_ledger(own.url, patience="60s") for _ in range(3)]
    spending = [asyncio.create_task(spend(each, f"ledger {at}", 200)) for at, each in enumerate(ledgers)]
    await until_used(ledgers[0], 200)
    await own.stop()
    await own.start()
    spent = sum(await asyncio.gather(*spending))
    used = (await ledgers[0].used("tenant"))["monthly"]
    assert used == Amounts(200 * spent, Decimal(0), spent)
    assert 100 <= spent <= LIMIT // 200
    with psycopg.connect(own.url) as connection:
        assert connection.execute("SELECT count(*), sum(total_tokens) FROM runtime_ledger").fetchall() == [
            (spent, 200 * spent)
        ]
        assert connection.execute("SELECT count(*) FROM runtime_reservations").fetchall() == [(0,)]
    for each in ledgers:
        await each.close()


@pytest.mark.slow  # a second of a core
async def test_while_the_server_is_away_no_call_is_made_and_the_error_names_the_server_only(own: Own) -> None:
    ledger = shared_ledger(own.url.replace("sabot@", "sabot:swordfish@"))
    assert await ledger.check_budget(OF, 1000) is BudgetDecision.ALLOW
    await own.stop()
    patience, ledger._accounts.patience_s = ledger._accounts.patience_s, 0.2
    with pytest.raises(
        BudgetUnavailable, match=f"what the budget of tenant has left is not known: .*127.0.0.1:{own.server.port}"
    ) as told:
        await ledger.check_budget(OF, 1000)
    assert "swordfish" not in str(told.value)
    await own.start()
    ledger._accounts.patience_s = patience
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(BudgetUnavailable):
                if await ledger.check_budget(OF, LIMIT - 1000) is BudgetDecision.ALLOW:
                    break
            await asyncio.sleep(0.01)
    await ledger.close()


# -- kernels ---------------------------------------------------------------------------------------------------------------


def answer(spec: RequestSpec) -> Completion:
    return Completion(message=assistant("yes"), usage=Usage(10, 5), model="m", provider="scripted")


@contextlib.asynccontextmanager
async def kernels(
    url: str, count: int, **options: Any
) -> "AsyncIterator[tuple[ScriptedProvider, list[RuntimeKernel]]]":
    provider = ScriptedProvider(answer, model="m")
    engine = ExecutionEngine(provider, retries=0)
    async with contextlib.AsyncExitStack() as open_now:
        made = []
        for number in range(count):
            ledger = Ledger(
                PostgresLedgerWriter(url, shared=True),
                budgets=[Budget("acme", max_calls_monthly=2, warn_at=1)],
                **options,
            )
            open_now.push_async_callback(ledger.close)
            kernel = RuntimeKernel.create(agent=Agent(engine, name="clerk"), name=f"kernel{number}", budgets=ledger)
            made.append(await open_now.enter_async_context(kernel))
        yield provider, made


async def test_workers_of_one_journal_spend_from_one_budget(tmp_path: Path) -> None:
    """One has lost its lease during a call, which may be paid: so it counts. The job goes on with what is left, in another."""
    held, calls = asyncio.Event(), list[int]()

    async def answers(spec: RequestSpec) -> Completion:
        calls.append(len(calls))
        if len(calls) == 1:
            await held.wait()
        return answer(spec)

    async def ask(kernel: RuntimeKernel, key: str) -> str:
        handle = await kernel.execute(ExecutionRequest(prompt="hello", scope_id="acme", idempotency_key=key))
        try:
            return str((await handle.result()).content)
        except BudgetExceeded as error:
            return error.message

    with server_or_skip().database() as url, contextlib.ExitStack() as never:
        never.callback(held.set)
        async with contextlib.AsyncExitStack() as open_now:
            made = []
            for _ in range(3):
                budgets = [Budget("acme", max_calls_monthly=5, warn_at=1)]
                ledger = Ledger(PostgresLedgerWriter(url, shared=True), budgets=budgets)
                open_now.push_async_callback(ledger.close)
                agent = Agent(ExecutionEngine(ScriptedProvider(answers, model="m"), retries=0), name="clerk")
                kernel = RuntimeKernel.create(agent=agent, journal=url, name="desk", shared=True, budgets=ledger)
                made.append(await open_now.enter_async_context(kernel))
                await kernel.resume()
            first = asyncio.create_task(ask(made[0], "first"))
            await until(lambda: len(calls) == 1)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(
                    "UPDATE sabot_desk.workers SET gone = true WHERE number IN (SELECT worker FROM sabot_desk.jobs)"
                )
            with contextlib.suppress(JournalFailed):
                assert await first == "yes"
            assert await ask(made[1], "first") == "yes", "one job of this key, wherever it went on"
            assert len(calls) == 2
            said = await asyncio.gather(*(ask(made[n % 3], f"more-{n}") for n in range(9)))
            assert said.count("yes") == 3
            assert sum("the monthly budget of acme has 5 calls" in each for each in said) == 6
            assert len(calls) == 5


PROGRAM = """
from sabot.agents import Budget, Ledger, PostgresLedgerWriter, RuntimeKernel

async def agent(ctx):
    return 1

writer = PostgresLedgerWriter({url!r}, shared=True)
kernel = RuntimeKernel.create(agent=agent, budgets=Ledger(writer, budgets=[Budget("acme", max_calls_monthly=2)]))
"""


async def test_kernels_that_share_a_budget_make_no_more_calls_than_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(kernel: RuntimeKernel) -> str:
        handle = await kernel.execute(ExecutionRequest(prompt="hello", scope_id="acme"))
        try:
            return str((await handle.result()).content)
        except BudgetExceeded as error:
            return error.message

    with server_or_skip().database() as url:
        async with kernels(url, 3) as (provider, made):
            answers = await asyncio.gather(*(ask(kernel) for kernel in made for _ in range(3)))
            assert len(provider.requests) == 2
            assert sorted(answers).count("yes") == 2
            assert sum("the monthly budget of acme has 2 calls" in each for each in answers) == 7
            ledgers = [kernel.ledger for kernel in made if kernel.ledger is not None]
            assert len(ledgers) == 3
            for ledger in ledgers:
                await ledger.flush()  # what was used is written behind the answer; each knows of its own alone
            for ledger in ledgers:
                assert (await ledger.used("acme"))["monthly"] == Amounts(30, Decimal(0), 2)
            (tmp_path / "sharing.py").write_text(PROGRAM.format(url=url))
            monkeypatch.syspath_prepend(tmp_path)
            (shown,) = await run_in_thread(lines, "budgets", "sharing:kernel", "--json")
            assert (shown["scope"], shown["used"], shown["of"]) == ("acme", "2", "2"), "another process sees them"


@pytest.mark.slow  # half a second of a core
async def test_a_job_hears_that_its_budget_is_not_known_and_its_model_is_not_asked(own: Own) -> None:
    async with kernels(own.url, 1) as (provider, [kernel]):
        assert kernel.ledger is not None
        assert not (await kernel.ledger.used("acme"))["monthly"].calls
        await own.stop()
        kernel.ledger._accounts.patience_s = 0.2  # not before: the server has its time to answer
        handle = await kernel.execute(ExecutionRequest(prompt="hello", scope_id="acme"))
        with pytest.raises(BudgetUnavailable, match=f"127.0.0.1:{own.server.port}"):
            await handle.result()
        assert provider.requests == []
        await own.start()


@pytest.mark.slow  # half a second of a core
async def test_a_kernel_that_starts_while_the_server_restarts_waits_for_it(own: Own) -> None:
    await own.stop()
    begun = kernels(own.url, 1, patience="60s")
    starting = asyncio.ensure_future(begun.__aenter__())
    try:
        await own.start()
        provider, [kernel] = await starting
        handle = await kernel.execute(ExecutionRequest(prompt="hello", scope_id="acme"))
        assert (await handle.result()).content == "yes"
        assert len(provider.requests) == 1
    finally:
        await begun.__aexit__(None, None, None)


async def test_a_worker_that_starts_reads_the_rows_that_workers_before_it_have_not_written() -> None:
    """And none of those before the marks."""
    firsts: list[int] = []

    class Away(PostgresLedgerWriter):
        away = False

        async def work(self, batch: BudgetBatch) -> BatchResult:
            if self.away and batch.rows:
                raise TransientError("the server of the ledger does not answer")
            return await super().work(batch)

    class Worker(PostgresWorker):
        def read_run(self, run: int, first: int) -> Iterator[tuple[Position, Entry]]:
            firsts.append(first)
            return super().read_run(run, first)

    with server_or_skip().database() as url:

        @contextlib.asynccontextmanager
        async def worker() -> AsyncIterator[tuple[RuntimeKernel, Ledger]]:
            budgets = [Budget("acme", max_calls_monthly=100, warn_at=1)]
            ledger, journal = Ledger(Away(url, shared=True), budgets=budgets, patience="200ms"), Worker(url, "desk")
            agent = Agent(ExecutionEngine(ScriptedProvider(answer, model="m"), retries=0), name="clerk")
            kernel = RuntimeKernel.create(agent=agent, journal=journal, name="desk", shared=True, budgets=ledger)
            async with contextlib.AsyncExitStack() as closes:
                closes.push_async_callback(run_in_thread, journal.close)
                closes.push_async_callback(ledger.close)
                yield await closes.enter_async_context(kernel), ledger

        async def ask(kernel: RuntimeKernel, times: int) -> None:
            for _ in range(times):
                await (await kernel.execute(ExecutionRequest(prompt="hello", scope_id="acme"))).result()

        with contextlib.suppress(TransientError):
            async with worker() as (one, ledger):
                await ask(one, 2)
                async with worker() as (two, _):
                    await ask(two, 1)
                await ledger.flush()
                assert isinstance(ledger.writer, Away)
                ledger.writer.away = True
                await ask(one, 1)
        assert len(firsts) == 1, "the second worker has read the entries of the first one"
        begun = firsts[0]
        async with worker() as (_, ledger):
            assert len(firsts) == 2
            assert firsts[1] > begun
            assert (await ledger.used("acme"))["monthly"].calls == 4
            assert (await ledger.standing("acme")).reserved.calls in (0, 1), "as long as the lease of the first one"
        async with worker() as (_, ledger):
            assert len(firsts) == 2
            assert (await ledger.used("acme"))["monthly"].calls == 4
