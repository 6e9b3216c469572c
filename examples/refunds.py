"""Refunds that are made once, whatever kills the app. Run it: sabot run examples.refunds:app
Large ones wait for a person: sabot actions list --journal state; sabot actions resolve TOKEN --approve --journal state"""

from pathlib import Path

from sabot import App
from sabot.connectors.files import NdjsonSink, NdjsonSource
from sabot.llm import Effect, tool

app = App("refunds", state="state")
tickets = Path("tickets.ndjson")
tickets.write_text('{"order": "o-1", "amount": 12}\n{"order": "o-2", "amount": 80}\n')


@tool(effect="unsafe", timeout="10s")
async def refund(order: str, amount: int, effect: Effect) -> str:
    print("refund", order, amount, flush=True)  # a payment service goes here, with effect.key as the idempotency key
    return "refunded"


@app.agent(NdjsonSource(tickets), sink=NdjsonSink("answers.ndjson"), key="order", durable=True)
async def handle(ctx):
    order, amount = ctx.message["order"], ctx.message["amount"]
    if amount > 50:
        answer = await ctx.ask("confirm", {"message": f"Refund {amount} for {order}?"}, timeout="2d")
        if not answer.approved:
            return {"order": order, "answer": "refused"}
    return {"order": order, "answer": await ctx.call(refund, order, amount)}
