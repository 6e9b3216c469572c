"""The refunds demo's agent.

tickets.ndjson --> refunds (durable) --> answers.ndjson
                     asks a person: the journal's inbox
                     calls the bank, which makes payments and answers enquiries: the witness at URL
"""

import json
from pathlib import Path
from typing import Any

from sabot.app import App
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.files import NdjsonSink, NdjsonSource
from sabot.demos.tickets import OpenTickets
from sabot.engine.calls.effects import Reconciled
from sabot.llm import Effect, tool
from sabot.testing import WitnessClient

_ENQUIRY_SECONDS = 5.0  # from an enquiry at the bank to its answer


def write_tickets(folder: Path, tickets: int) -> None:
    """Writes the input: each ticket asks for the refund of an order."""
    rows = (
        {"order": f"o-{number}", "customer": f"c-{number % 9}", "amount": 5 + number % 90} for number in range(tickets)
    )
    (folder / "tickets.ndjson").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def answers(folder: Path) -> list[dict[str, Any]]:
    """Returns the answers that the agent has written so far."""
    path = folder / "answers.ndjson"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def build(folder: Path, bank_url: str, *, ends: bool = True) -> App:
    """Returns the app. Its state, journal, input and output are in the folder. `ends`: False to wait for tickets behind the last one."""
    app = App("refunds-demo", state=str(folder / "state"), checkpoint_interval="200ms")
    bank = WitnessClient(bank_url)
    enquired: dict[str, float] = {}

    async def look_up(effect: Effect, order: str, amount: int) -> Any:
        """Makes an enquiry about a payment, to which the bank has the answer some seconds later."""
        now = SYSTEM_CLOCK.monotonic()
        if now - enquired.setdefault(effect.key, now) < _ENQUIRY_SECONDS:
            return Reconciled.UNKNOWN
        found = await bank.find_async(effect.key)
        return Reconciled.NOT_DONE if found is None else (Reconciled.DONE, int(found["number"]))

    @tool(reconcile=look_up)  # the bank ignores the key of a call, and knows it in an enquiry
    async def refund(order: str, amount: int, effect: Effect) -> int:
        done = await bank.do_async("refund", {"order": order, "amount": amount}, key=effect.key, timeout=None)
        return int(done["number"])

    async def amount_of(ticket: dict[str, Any]) -> int:
        return int(ticket["amount"])

    tickets = (NdjsonSource if ends else OpenTickets)(folder / "tickets.ndjson")

    @app.agent(tickets, sink=NdjsonSink(folder / "answers.ndjson"), durable=True, concurrency=4)
    async def refunds(ctx: Any) -> dict[str, Any]:
        order = ctx.message["order"]
        amount = await ctx.step(amount_of, ctx.message, effect="read")
        answer = await ctx.ask("confirm", {"message": f"Refund {amount} for {order}?"})
        number = await ctx.call(refund, order=order, amount=amount) if answer.approved else None
        return {"order": order, "refund": number}

    return app
