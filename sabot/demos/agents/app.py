"""The agents demo's agent, and the process in which it runs: `python -m sabot.demos.agents.app FOLDER BANK_URL MODEL_URL`.

tickets.ndjson ──▶ support (durable, a conversation per customer) ──▶ answers.ndjson
                     the model: HTTP, at MODEL_URL
                     look_up: reads orders.json           refund: calls the bank, the witness at BANK_URL
                     more than LIMIT: asks a person, through the journal's inbox
"""

import json
import sys
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from sabot.app import App
from sabot.connectors.files import NdjsonSink, NdjsonSource
from sabot.llm import (
    Agent,
    Completion,
    Conversation,
    Effect,
    ExecutionEngine,
    OpenAIProvider,
    Piece,
    Price,
    PriceTable,
    RequestSpec,
    Tool,
    tool,
)
from sabot.testing import WitnessClient

__all__ = ["LIMIT", "MODEL", "PRICES", "answers", "build"]

LIMIT = 50  # dollars that the agent may give back without asking
MODEL = "demo-1"
PRICES = PriceTable({MODEL: Price("0.15", "0.60")}, version="demo")

_INSTRUCTIONS = (
    "You answer customers of a shop. Look an order up before you say anything of it. Give money back only for orders that came broken. "
    "Never say that money was given back unless the tool has said so."
)


def answers(folder: Path) -> list[dict[str, Any]]:
    """What the agent has answered so far."""
    path = folder / "answers.ndjson"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class _Asking:
    """How the agent of a job reaches the world: as the job does, and a person is asked before a large refund is made."""

    def __init__(self, ctx: Any, engine: ExecutionEngine) -> None:
        self._ctx = ctx
        self._job = ctx.llm(engine)

    def of(self, engine: ExecutionEngine) -> "_Asking":
        return _Asking(self._ctx, engine)

    async def complete(self, spec: RequestSpec) -> Completion:
        answer: Completion = await self._job.complete(spec)
        return answer

    def stream(self, spec: RequestSpec) -> AsyncGenerator[Piece, None]:
        pieces: AsyncGenerator[Piece, None] = self._job.stream(spec)
        return pieces

    async def call(self, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        if tool.name == "refund" and arguments["amount"] > LIMIT:
            reply = await self._ctx.ask("approval", dict(arguments))
            if not reply.approved:
                return "refused by a colleague: no money was given back"
        return await self._job.call(tool, arguments)


def build(folder: Path, bank_url: str, model_url: str) -> App:
    """The app. state, journal, input and output are in the folder."""
    app = App("agents-demo", state=str(folder / "state"), checkpoint_interval="200ms")
    bank = WitnessClient(bank_url)
    orders = json.loads((folder / "orders.json").read_text())

    @tool(effect="read")
    async def look_up(order: str) -> dict[str, Any]:
        """What was ordered, what it cost, and what became of it."""
        found: dict[str, Any] = orders.get(order, {"order": order, "state": "unknown"})
        return found

    @tool(effect="unsafe")  # this bank does not honour keys; the key is for whoever looks the payment up
    async def refund(order: str, amount: int, effect: Effect) -> str:
        """Gives the money for an order back."""
        done = await bank.do_async("refund", {"order": order, "amount": amount}, key=effect.key, timeout=None)
        return f"payment {done['number']}"

    engine = ExecutionEngine(OpenAIProvider(MODEL, base_url=model_url, api_key="none"), prices=PRICES)
    agent = Agent(engine, name="support", tools=[look_up, refund], instructions=_INSTRUCTIONS, temperature=0)

    @app.agent(
        NdjsonSource(folder / "tickets.ndjson"),
        sink=NdjsonSink(folder / "answers.ndjson"),
        key="customer",
        durable=True,
        concurrency=8,
    )
    async def support(ctx: Any) -> dict[str, Any]:
        kept = await ctx.state().get("conversation")
        conversation = Conversation() if kept is None else Conversation.from_bytes(kept)
        result = await agent.run(ctx.message["text"], conversation=conversation, doing=_Asking(ctx, engine))
        await ctx.state().put("conversation", conversation.to_bytes())
        return {
            "ticket": ctx.message["ticket"],
            "answer": result.content,
            "tokens": result.usage.total_tokens,
            "model_calls": result.turns,
        }

    return app


if __name__ == "__main__":
    build(Path(sys.argv[1]), sys.argv[2], sys.argv[3]).main()
