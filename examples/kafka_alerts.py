"""On a real broker: `make kafka`, then python examples/kafka_alerts.py. Kill it, start it again: the counts go on."""

import asyncio
import os

from sabot import App

BROKER = os.environ.get("SABOT_BROKER", "kafka://localhost:19092")
app = App("kafka_alerts", BROKER, state="kafka_alerts.state", checkpoint_interval="1s")


@app.agent("payments", key="account", sink="alerts")
async def check(ctx):
    seen = (await ctx.state().get("seen") or 0) + 1
    await ctx.state().put("seen", seen)
    if ctx.message["amount"] > 1000:
        return {"account": ctx.message["account"], "payment": seen}


@app.agent("alerts")
async def show(ctx):
    print(ctx.message, flush=True)


if __name__ == "__main__":
    asyncio.run(app.send("payments", {"account": "a1", "amount": 2500}, key="a1"))  # makes the topic, too
    app.main()
