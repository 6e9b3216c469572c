"""The agents demo's agent.

tickets.ndjson ──▶ support (durable, a conversation per customer) ──▶ answers.ndjson
                     the model: HTTP
                     look_up: reads orders.json           refund: calls the bank, which is a witness
                     policy: a refund above LIMIT waits for a person, who answers through the journal's inbox
"""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from sabot.agents import Budget, ConstraintPolicy, PolicyEngine
from sabot.app import App
from sabot.connectors.files import NdjsonSink, NdjsonSource
from sabot.demos.tickets import OpenTickets
from sabot.llm import AgentResult, Effect, ExecutionEngine, OpenAIProvider, Price, PriceTable, tool
from sabot.testing import WitnessClient

LIMIT = 50  # dollars that the agent may refund without approval
MODEL = "demo-1"
_DOLLARS_A_DAY = Decimal("1")
PRICES = PriceTable({MODEL: Price("0.15", "0.60")}, version="demo")

_INSTRUCTIONS = (
    "You answer customers of a shop. Look an order up before you say anything of it. Give money back only for orders that came broken. "
    "Never say that money was given back unless the tool has said so."
)


def answers(folder: Path) -> list[dict[str, Any]]:
    """Returns the answers that the agent has written so far."""
    path = folder / "answers.ndjson"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _reply(ticket: dict[str, Any], result: AgentResult) -> dict[str, Any]:
    said = {"ticket": ticket["ticket"], "answer": result.content}
    return {**said, "tokens": result.usage.total_tokens, "model_calls": result.turns}


def build(folder: Path, bank_url: str, model_url: str, *, ends: bool = True) -> App:
    """Returns the app. Its state, journal, input and output are in the folder. `ends`: False to wait for tickets behind the last one."""
    policy = PolicyEngine([ConstraintPolicy(["refund"], field="amount", max=LIMIT, otherwise="ask")])
    budgets = [Budget("agents-demo", max_cost_daily=_DOLLARS_A_DAY)]
    app = App("agents-demo", state=str(folder / "state"), checkpoint_interval="200ms", policy=policy, budgets=budgets)
    bank = WitnessClient(bank_url)
    orders = json.loads((folder / "orders.json").read_text())

    @tool(effect="read")
    async def look_up(order: str) -> dict[str, Any]:
        """Returns an order: its number, its price, and its state."""
        found: dict[str, Any] = orders.get(order, {"order": order, "state": "unknown"})
        return found

    @tool(effect="unsafe")  # the bank ignores the key, by which a person can look the payment up
    async def refund(order: str, amount: int, effect: Effect) -> str:
        """Refunds an order."""
        done = await bank.do_async("refund", {"order": order, "amount": amount}, key=effect.key, timeout=None)
        return f"payment {done['number']}"

    engine = ExecutionEngine(OpenAIProvider(MODEL, base_url=model_url, api_key="none"), prices=PRICES)
    app.llm_agent(
        (NdjsonSource if ends else OpenTickets)(folder / "tickets.ndjson"),
        engine,
        name="support",
        key="customer",
        concurrency=8,
        tools=[look_up, refund],
        instructions=_INSTRUCTIONS,
        temperature=0,
        max_tokens=200,
        reply=_reply,
        sink=NdjsonSink(folder / "answers.ndjson"),
    )
    return app
