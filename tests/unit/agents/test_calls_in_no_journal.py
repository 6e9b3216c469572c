"""What a budget knows of calls that no journal has, such as those of streams, when the process is killed in the middle of them."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from unit.agents.test_accounting import PRICES, answer

from sabot.agents import Budget, InMemoryLedgerWriter, Ledger, LedgerEvent, SqliteLedgerWriter
from sabot.agents.accounts.guard import LedgerGuard
from sabot.clock import ManualClock
from sabot.engine.calls.errors import BudgetUnavailable
from sabot.errors import TransientError
from sabot.jobs.judges import judge_of
from sabot.llm import (
    Completion,
    ExecutionEngine,
    ModelUnavailable,
    Price,
    PriceTable,
    RateLimited,
    RequestSpec,
    ScriptedProvider,
    user,
)
from sabot.llm.judges import JUDGE
from tools.agent_tools import until


class Stream:
    """Calls of a stream, with a ledger in a file, and copies of the file as it was while each request was answered."""

    def __init__(self, folder: Path, answers: Any = answer, **options: Any) -> None:
        self.folder, self.answers = folder, answers
        self.killed: list[Path] = []
        self.provider = ScriptedProvider(self._answer, model="m")
        self.engine = ExecutionEngine(self.provider, **{"retries": 0, "patience": 0, "prices": PRICES, **options})
        self.ledger = self.ledger_of(folder / "ledger.db")

    def ledger_of(self, file: Path) -> Ledger:
        budget = Budget("app", max_calls_daily=2, max_tokens_daily=1000, warn_at=1)
        return Ledger(SqliteLedgerWriter(file), budgets=[budget], clock=ManualClock(1_000_000.0))

    async def _answer(self, spec: RequestSpec) -> Completion:
        copy = self.folder / f"killed-{len(self.killed)}.db"
        with closing(sqlite3.connect(self.folder / "ledger.db")) as one, closing(sqlite3.connect(copy)) as other:
            one.backup(other)
        self.killed.append(copy)
        found = self.answers(spec) if callable(self.answers) else self.answers[len(self.killed) - 1]
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[no-any-return]

    async def ask(self, text: str = "one", ledger: Ledger | None = None) -> Any:
        async def asked() -> Any:
            guard = LedgerGuard(ledger or self.ledger, closes=False)
            JUDGE.set(judge_of("app", [guard], ManualClock(1_000_000.0)))
            return (await self.engine.complete(text, max_tokens=100)).content

        said: list[Any] = await asyncio.gather(asyncio.create_task(asked()), return_exceptions=True)
        await (ledger or self.ledger).flush()
        return said[0]

    async def kinds(self) -> list[str]:
        return [each.group[0] for each in await self.ledger.writer.sums(["type"], 0)]


async def test_a_call_during_which_the_process_is_killed_counts_in_the_budget(tmp_path: Path) -> None:
    stream = Stream(tmp_path)
    assert await stream.ask("one") == "yes"
    assert (await stream.ledger.used("app"))["daily"].calls == 1
    assert await stream.kinds() == ["model"], "the row of the result has taken the place of the doubt"
    await stream.ledger.close()
    begun = len(stream.provider.requests)
    for killed in range(
        2
    ):  # as after a kill -9 in the middle of a call, and in the middle of the one after the restart
        after = stream.ledger_of(stream.killed[killed])
        assert (await after.used("app"))["daily"].calls == 1 + killed
        await after.close()
        (tmp_path / "ledger.db").write_bytes(stream.killed[killed].read_bytes())
        stream.ledger = stream.ledger_of(tmp_path / "ledger.db")
        await stream.ask("two")
        await stream.ledger.close()
    assert len(stream.provider.requests) == begun + 1, "the second kill has used up the budget of two calls"


async def test_each_attempt_is_written_down_before_it_is_made(tmp_path: Path) -> None:
    given = [ModelUnavailable("it broke off"), answer(RequestSpec(messages=(user("one"),)))]
    stream = Stream(tmp_path, given, retries=1)
    assert await stream.ask() == "yes"
    found = []
    for killed in stream.killed:
        after = stream.ledger_of(killed)
        found.append((await after.used("app"))["daily"].calls)
        await after.close()
    assert found == [1, 2]
    await stream.ledger.close()


async def test_a_dearer_model_that_stands_in_is_written_down_before_it_is_asked(tmp_path: Path) -> None:
    prices = PriceTable({"m": Price("1", "10"), "dear": Price("100", "1000")}, version="1")
    stream = Stream(tmp_path, prices=prices)
    first = ScriptedProvider(RateLimited("slow down"), model="m")
    stream.provider.model = "dear"
    stream.engine = ExecutionEngine(first, fallback=[stream.provider], retries=0, patience=0, prices=prices)
    budgets = [Budget("app", max_cost_daily=Decimal(1), warn_at=1)]
    stream.ledger = Ledger(
        SqliteLedgerWriter(tmp_path / "ledger.db"),
        budgets=budgets,
        clock=ManualClock(1_000_000.0),
    )
    assert await stream.ask() == "yes"
    after = Ledger(SqliteLedgerWriter(stream.killed[0]), budgets=budgets, clock=ManualClock(1_000_000.0))
    assert (await after.used("app"))["daily"].cost > Decimal("0.1"), "100 tokens of the dear one"
    await after.close()
    await stream.ledger.close()


class Full(InMemoryLedgerWriter):
    """A writer whose disk is full."""

    async def correct(self, events: Sequence[LedgerEvent]) -> int:
        raise TransientError("no space left on device")


async def test_a_call_that_cannot_be_written_down_is_not_made(tmp_path: Path) -> None:
    stream = Stream(tmp_path)
    full = Ledger(Full(), budgets=stream.ledger.budgets, clock=ManualClock(1_000_000.0))
    said = await stream.ask(ledger=full)
    assert isinstance(said, BudgetUnavailable)
    assert "m was not asked: the budget of app does not know of the call: no space left on device" in said.message
    assert stream.provider.requests == []
    standing = await full.standing("app")
    assert (standing.used["daily"].tokens, standing.reserved.tokens) == (0, 0)
    await stream.ledger.close()


class Slow(InMemoryLedgerWriter):
    """A writer whose first batch takes until `go`, and may fail then. `batches`: how many rows each had."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.go, self.fails = asyncio.Event(), fails
        self.batches: list[int] = []

    async def correct(self, events: Sequence[LedgerEvent]) -> int:
        self.batches.append(len(events))
        if len(self.batches) == 1:
            await self.go.wait()
            if self.fails:
                raise TransientError("no space left on device")
        return await super().correct(events)


@pytest.mark.parametrize("fails", [False, True])
async def test_calls_that_begin_while_a_batch_is_stored_are_stored_together(fails: bool) -> None:
    writer = Slow(fails)
    ledger = Ledger(writer, budgets=[Budget("app", max_calls_daily=20)], clock=ManualClock(1_000_000.0))
    guard, provider = LedgerGuard(ledger, closes=False), ScriptedProvider(answer, model="m")
    engine = ExecutionEngine(provider, retries=0, patience=0, prices=PRICES)

    async def asked(number: int) -> str:
        JUDGE.set(judge_of("app", [guard], ManualClock(1_000_000.0)))
        return (await engine.complete(str(number), max_tokens=100)).content

    first = asyncio.create_task(asked(0))
    await until(lambda: writer.batches == [1], "the first batch")
    others = [asyncio.create_task(asked(number)) for number in range(1, 10)]
    for _ in range(50):  # turns of the loop, in which all have reserved
        await asyncio.sleep(0)
    assert provider.requests == [], "none is sent before its row is stored"
    writer.go.set()
    said = await asyncio.gather(first, *others, return_exceptions=True)
    assert isinstance(said[0], BudgetUnavailable) is fails, "and those of the next batch do not fail with it"
    assert said[1:] == ["yes"] * 9
    assert sum(writer.batches) == 10
    assert len(writer.batches) < 5
    await ledger.close()
