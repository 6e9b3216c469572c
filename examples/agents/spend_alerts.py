"""What tenants spend in an hour, and an alert where that is too much. Run it: python examples/agents/spend_alerts.py"""

import asyncio

from models import model

import sabot
from sabot import App, col, tumbling
from sabot.kafka import KafkaSource
from sabot.llm import ExecutionEngine, Price, PriceTable
from sabot.testing import ManualClock

LIMIT = 0.001  # dollars an hour
PRICE = Price("5", "25")  # dollars per million tokens, read and written
NOON = 1_795_262_400.0


async def main():
    clock = ManualClock(NOON)  # so that an hour passes at once
    with model("A tide is the moon's pull on the sea, felt twice a day on most coasts.") as provider:
        engine = ExecutionEngine(provider, prices=PriceTable({provider.model: PRICE}, version="2026-11"))
        app = App("desk", journal="memory", budgets=[], clock=clock)  # budgets=[] only records

        @app.agent("questions", durable=True, sink="answers", scope="tenant")
        async def answer(ctx):
            return (await ctx.llm(engine).complete(ctx.message["text"], max_tokens=200)).content

        hourly = app.ledger().key_by("scope").window(tumbling("1h"))
        hourly = hourly.aggregate(cost=sabot.sum("cost"), calls=sabot.sum("calls"))
        hourly.filter(col("cost") > LIMIT).to("alerts")

        await app.start()
        answers, alerts = KafkaSource("answers", "memory://"), KafkaSource("alerts", "memory://")
        await answers.start()
        await alerts.start()
        for tenant in ("ann", "ann", "bob", "ann"):
            await app.send("questions", {"text": "What is a tide?", "tenant": tenant})
            await answers.get_next()
        clock.advance(3600)
        await app.send("questions", {"text": "What is a tide?", "tenant": "bob"})  # what comes later ends the hour
        alert = await alerts.get_next()
        print(f"{alert['scope']} has spent {alert['cost']:.4f} dollars with {alert['calls']} calls")
        await app.stop()
        await engine.close()


if __name__ == "__main__":
    asyncio.run(main())
