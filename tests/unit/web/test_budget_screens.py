"""The screen of budgets over HTTP: limits with what is spent, in doubt and reserved, sums, and calls that were denied."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from unit.web.test_console import MARKUP
from unit.web.test_job_screens import ask, enter

from sabot import App
from sabot.agents import Budget, InMemoryLedgerWriter, Ledger
from sabot.agents.accounts.contract import LedgerEvent
from sabot.base.accounts import Amounts
from sabot.llm import BudgetExceeded, Completion, ExecutionEngine, Price, PriceTable, ScriptedProvider, Usage, assistant
from sabot.web.console import Console
from sabot.web.texts import money
from tools.agent_tools import publish, started, until, values

PRICES = PriceTable({"m": Price("1", "10")}, version="1")
SCOPE = f"ann {MARKUP}"


@asynccontextmanager
async def shop(url: str, folder: Path, budgets: Sequence[Budget] | Ledger | None) -> AsyncIterator[tuple[App, Console]]:
    """An app whose scope ann has used 150 tokens and perhaps five more, and was denied a second call."""
    answer = Completion(message=assistant("yes"), usage=Usage(100, 50), model="m", provider="scripted")
    engine = ExecutionEngine(ScriptedProvider(lambda spec: answer, model="m"), prices=PRICES)
    app = App("shop", url, state=str(folder), checkpoint_interval=3600, budgets=budgets)

    @app.agent("questions", durable=True, sink="answers", scope="tenant")
    async def handle(ctx: Any) -> Any:
        try:
            return (await ctx.llm(engine).complete("hi", max_tokens=100)).content
        except BudgetExceeded:
            return "refused"

    if app.accounts is not None:
        doubt = LedgerEvent(
            event_id="d", type="doubt", scope_id=SCOPE, reserved_tokens=5, at_ms=round(app.clock.time() * 1000)
        )
        await app.accounts.writer.write([doubt])
    async with started(app):
        for number in (1, 2):
            publish(app, "questions", [{"tenant": SCOPE}])
            await until(lambda number=number: len(values(app, "answers")) == number)
        console = Console(app, port=0)
        try:
            yield app, console
        finally:
            console.close()


LIMITED = [Budget(SCOPE, max_tokens_daily=170, max_cost_monthly=Decimal("1"), warn_at=1)]


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("home", ["file", "memory", "shared"])
async def test_limits_and_denied_calls_are_shown_in_every_home(memory_url: str, tmp_path: Path, home: str) -> None:
    writer = InMemoryLedgerWriter(shared=home == "shared")
    budgets = LIMITED if home == "file" else Ledger(writer, budgets=LIMITED)
    async with shop(memory_url, tmp_path, budgets) as (app, console):
        assert values(app, "answers") == ["yes", "refused"]
        assert app.accounts is not None
        await app.accounts.flush()
        browser = await enter(console, "act")
        status, page = await ask(browser, "/budgets")
        assert status == 200
        assert MARKUP not in page
        assert "has 170 tokens: 155 used" in page
        assert ">deny<" in page
        assert 'policy makes wait for a person are in the <a href="/inbox">inbox</a>' in page
        tokens, cost = json.loads((await ask(browser, "/budgets.json?of=limits"))[1])
        measured = [tokens[name] for name in ("measure", "limit", "spent", "in_doubt", "reserved")]
        assert measured == ["tokens", "170", "150", "5", "0"]
        assert (cost["measure"], Decimal(cost["spent"])) == ("cost", Decimal("0.0006"))
        row = json.loads((await ask(browser, "/budgets.json?by=scope,%20model"))[1])[-1]
        assert (row["model"], row["calls"], row["read"], row["written"]) == ("m", 1, 100, 50)


async def test_what_calls_in_flight_may_use_is_shown_as_reserved(memory_url: str, tmp_path: Path) -> None:
    async with shop(memory_url, tmp_path, LIMITED) as (app, console):
        ledger = app.accounts
        assert ledger is not None
        ledger.hold("call", SCOPE, Amounts(7))
        browser = await enter(console, "act")
        limits = json.loads((await ask(browser, "/budgets.json?of=limits"))[1])
        assert {each["measure"]: each["reserved"] for each in limits}["tokens"] == "7"


async def test_the_page_says_that_reservations_of_workers_are_not_in_it(
    memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shop(memory_url, tmp_path, LIMITED) as (app, console):
        browser = await enter(console, "act")
        assert "The app has workers" not in (await ask(browser, "/budgets"))[1]
        figures = app.agent_runtime.runner.watch.recorder.figures
        report = app.statistics() | {"workers": [{"worker": 1}]}
        monkeypatch.setattr(figures, "_statistics", lambda: report)
        figures.take()
        assert "reservations and decisions are those of the coordinator" in (await ask(browser, "/budgets"))[1]


async def test_a_blocked_event_loop_is_named(memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sabot.web.budget_screens._SECONDS", 0.2)
    async with shop(memory_url, tmp_path, LIMITED) as (_, console):
        browser = await enter(console, "act")
        status, page = browser.ask("/budgets")  # on the app's own loop, which it blocks
        assert status == 404
        assert "event loop has not answered for 0.2 s" in page
        await asyncio.sleep(0)


async def test_readers_and_apps_without_budgets_have_no_such_screen(memory_url: str, tmp_path: Path) -> None:
    async with shop(memory_url, tmp_path / "a", LIMITED) as (_, console):
        assert (await ask(await enter(console, "read"), "/budgets"))[0] == 403
        assert (await ask(await enter(console, "read"), "/budgets.json"))[0] == 403
    console = Console(App("plain", memory_url, state=str(tmp_path / "b")), port=0)
    try:
        assert (await ask(await enter(console, "act"), "/budgets"))[0] == 404
    finally:
        console.close()


@pytest.mark.parametrize(
    ("dollars", "text"),
    [
        (Decimal(0), "$0.00"),
        (Decimal("0.0006"), "$0.0006"),
        (0.126, "$0.13"),
        (1e-7, "$0.0000001"),
        (Decimal("1E-9"), "$0.000000001"),
        (1234.5, "$1,234.50"),
    ],
)
def test_small_amounts_of_money_keep_their_digits(dollars: Decimal | float, text: str) -> None:
    assert money(dollars) == text
