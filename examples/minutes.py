"""A stream: payments by account and minute, compiled, and an agent on what comes out. Run it: sabot run examples.minutes:app"""

import sabot
from sabot import App, col, tumbling
from sabot.testing import MemoryBroker

app = App("minutes")

(
    app.stream("payments", schema={"account": "string", "amount": "float64", "ts": "int64"}, time="ts", lateness="5s")
    .filter(col("amount") > 1)
    .key_by("account")
    .window(tumbling("1m"))
    .aggregate(n=sabot.count(), total=sabot.sum("amount"))
    .to("minutes")
)


@app.agent("minutes")
async def show(ctx):
    print(ctx.message["account"], ctx.message["n"], ctx.message["total"], flush=True)


payments = [("a", 10.0, 1_000), ("a", 0.5, 30_000), ("b", 7.5, 20_000), ("a", 2.5, 59_000), ("b", 9.0, 70_000)]
MemoryBroker.get().publish("payments", [{"account": who, "amount": n, "ts": ts} for who, n, ts in payments])
