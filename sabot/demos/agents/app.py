"""The agents demo's agent, and the process in which it runs: `python -m sabot.demos.agents.app FOLDER BANK_URL
MODEL_URL`.

tickets.ndjson ──▶ support (durable, a conversation per customer) ──▶ answers.ndjson
                     the model: HTTP, at MODEL_URL
                     look_up: reads orders.json           refund: calls the bank, the witness at BANK_URL
                     policy: a refund above LIMIT waits for a person, who answers through the journal's inbox
"""

import json
import sys
from pathlib import Path
from typing import Any

from sabot.agents import ConstraintPolicy, PolicyEngine
from sabot.app import App
from sabot.connectors.files import NdjsonSink, NdjsonSource
from sabot.llm import AgentResult, Effect, ExecutionEngine, OpenAIProvider, Price, PriceTable, tool
from sabot.testing import WitnessClient

LIMIT = 50  # dollars that the agent may refund without approval
MODEL = "demo-1"
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


def build(folder: Path, bank_url: str, model_url: str) -> App:
    """Returns the app. Its state, journal, input and output are in the folder."""
    policy = PolicyEngine([ConstraintPolicy(["refund"], field="amount", max=LIMIT, otherwise="ask")])
    app = App("agents-demo", state=str(folder / "state"), checkpoint_interval="200ms", policy=policy)
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
        NdjsonSource(folder / "tickets.ndjson"),
        engine,
        name="support",
        key="customer",
        concurrency=8,
        tools=[look_up, refund],
        instructions=_INSTRUCTIONS,
        temperature=0,
        reply=_reply,
        sink=NdjsonSink(folder / "answers.ndjson"),
    )
    return app


if __name__ == "__main__":
    build(Path(sys.argv[1]), sys.argv[2], sys.argv[3]).main()
