"""Where `sabot ledger` and `sabot budgets` read: tables and journals, in PostgreSQL and in a topic."""

import asyncio
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sabot.agents import ExecutionRequest, LedgerEvent, PostgresLedgerWriter
from sabot.cli.loading import load_program
from sabot.journal.entries import Begin, EffectResult, End
from sabot.journal.opening import open_journal
from tools.command_line import lines, sabot_says
from tools.postgres import server_or_skip


@pytest.fixture
def database() -> Iterator[str]:
    with server_or_skip().database() as url:
        yield url


def row(event_id: str, **fields: Any) -> LedgerEvent:
    return LedgerEvent(
        event_id=event_id, **{"type": "model", "scope_id": "ann", "name": "m", "at_ms": 1_774_958_400_123, **fields}
    )


ROWS = [
    row("a/1/1", input_tokens=7, output_tokens=2, cost=Decimal("0.10")),
    row("b/1/1", type="doubt", reserved_tokens=50),
]
SAID = {"scope": "ann", "model": "m", "calls": 2, "read": 7, "written": 2, "in_doubt": 50}
SAID |= {"cost": "0.10", "cost_in_doubt": "0", "unpriced": 0}


def fill(address: str) -> None:
    """A job that was answered, and one that has ended while it asked."""
    journal = open_journal(address, app="shop")
    journal.append(Begin("a", 1, "shop.f"))
    journal.append(EffectResult("a", 2, 1, usage=msgspec.msgpack.encode(ROWS[:1])))
    journal.append(Begin("b", 3, "shop.f"))
    journal.append(End("b", 4, "cancelled", usage=msgspec.msgpack.encode(ROWS[1:])))
    asyncio.run(journal.flush())
    journal.close()


def test_the_ledger_of_a_table_in_postgres_is_shown_and_none_is_made(database: str) -> None:
    said = sabot_says("ledger", database)
    assert (said.exit_code, "runtime_ledger" in said.stderr) == (1, True), said.stderr
    writer = PostgresLedgerWriter(database)

    async def write() -> None:
        await writer.write(ROWS)
        await writer.close()

    asyncio.run(write())
    assert lines("ledger", database, "--json") == [SAID]


def test_the_ledger_of_a_journal_in_postgres_is_made_of_its_entries(database: str) -> None:
    address = f"{database}{'&' if '?' in database else '?'}app=shop"
    fill(address)
    assert lines("ledger", address, "--json") == [SAID]


@pytest.mark.kafka
def test_the_ledger_of_a_journal_in_a_topic_is_made_of_its_entries(kafka_url: str) -> None:
    address = f"{kafka_url}/ledger-{uuid.uuid4().hex[:12]}"
    fill(address)
    assert lines("ledger", address, "--json") == [SAID]


def test_budgets_of_an_app_whose_rows_are_in_its_journal_only_are_known(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(f"{database}{'&' if '?' in database else '?'}app=shop")
    (tmp_path / "far.py").write_text(
        "from sabot import App\nfrom sabot.agents import Budget\nfrom sabot.clock import ManualClock\n"
        f"app = App('shop', 'memory://far', journal={database!r}, budgets=[Budget('ann', max_tokens_daily=118)],\n"
        "    clock=ManualClock(1_774_958_400.0))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (said,) = lines("budgets", "far:app", "--json")
    assert (said["used"], said["of"], said["part"]) == ("59", "118", "50%")


def test_budgets_of_a_kernel_are_told_as_those_of_an_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near.py").write_text(
        "from sabot.agents import Budget, RuntimeKernel\nfrom sabot.llm import Agent, ExecutionEngine, ScriptedProvider\n"
        "agent = Agent(ExecutionEngine(ScriptedProvider(['yes'])))\n"
        "kernel = RuntimeKernel.create(agent=agent, journal='jobs', budgets=[Budget('ann', max_calls_daily=4)])\n"
        "bare = RuntimeKernel.create(agent=agent)\n"
    )
    kernel = load_program("near:kernel")

    async def one_call() -> None:
        async with kernel:
            handle = await kernel.execute(ExecutionRequest(prompt="go", scope_id="ann"))
            await handle.result()
            (while_it_runs,) = await asyncio.to_thread(lines, "budgets", "near_too:kernel", "--json")
            assert (while_it_runs["scope"], while_it_runs["of"]) == ("ann", "4")

    (tmp_path / "near_too.py").write_text((tmp_path / "near.py").read_text())
    asyncio.run(one_call())
    (said,) = lines("budgets", "near_too:kernel", "--json")
    assert (said["scope"], said["limit"], said["used"], said["part"]) == ("ann", "calls", "1", "25%")
    none = sabot_says("budgets", "near_too:bare")
    assert (none.exit_code, "kernel kernel has no budgets" in none.stderr) == (1, True)
