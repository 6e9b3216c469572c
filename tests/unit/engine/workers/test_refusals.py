"""What an app has in one process only, and is refused where several run it."""

from pathlib import Path
from typing import Any

import pytest

from sabot import App, NdjsonSink
from sabot.agents import Budget, Ledger, SqliteLedgerWriter
from sabot.engine.workers.refusals import refuse
from sabot.errors import UserError
from sabot.llm import ExecutionEngine, ScriptedProvider

BUDGETS = [Budget("*", max_calls_daily=3)]


async def asks(row: dict[str, Any]) -> dict[str, Any]:
    return row


def app_of(how: str, budgets: Any) -> App:
    """An app that asks models in a step, in a prompt, in an agent, or in none."""
    app = App("shop", "kafka://far", budgets=budgets)
    orders = app.stream("orders", schema={"n": "int64"})
    if how == "map_async":
        orders = orders.map_async(asks, schema={"n": "int64"})
    if how == "map_llm":
        orders = orders.map_llm("{n}?", engine=ExecutionEngine(ScriptedProvider("yes", model="m")))
    if how == "map_batches":  # no code of one thread can wait for a model
        orders = orders.map_batches(lambda batch: batch)
    orders.to(NdjsonSink("out.ndjson"))
    if how in ("agent", "own processes"):
        app.agent("tickets", process=2 if how == "own processes" else False)(asks)
    return app


def refused(app: App, workers: int) -> str:
    try:
        refuse(app.spec, app.spec.ends, app.spec.agent_specs, workers)
    except UserError as error:
        return f"{error.message} {error.hint}"
    return ""


@pytest.mark.parametrize(
    ("how", "workers", "named"),
    [
        ("map_async", 2, "step map_async asks"),
        ("map_llm", 2, "step map_llm"),
        ("own processes", 1, "agent shop.asks with process="),
        ("map_async", 1, ""),
        ("map_batches", 2, ""),
        ("agent", 4, ""),  # all agents are in the last worker
    ],
)
def test_budgets_that_each_of_several_processes_could_use_are_refused(
    how: str, workers: int, named: str, tmp_path: Path
) -> None:
    """Four workers asked models for four times the limit."""
    said = refused(app_of(how, BUDGETS), workers)
    assert (named in said, bool(named)) == (True, bool(said))
    if named:
        assert "has budgets= that count in one process" in said
        assert "shared=True" in said
    shared = Ledger(SqliteLedgerWriter(tmp_path / "ledger.db", shared=True), budgets=BUDGETS)
    others: list[Any] = [None, [], shared]
    for allowed in others:  # no budgets, use that is only recorded, budgets that processes share
        assert refused(app_of(how, allowed), workers) == ""
