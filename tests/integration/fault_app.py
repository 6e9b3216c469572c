"""The app of the fault tests, run by `sabot run fault_app:app` in a process of its own.

Counts the records of a Kafka topic per key in keyed state; each result names the record that it is of. The environment:
FAULT_ID, FAULT_TOPIC (its results go to <topic>-out); FAULT_HELD makes calls take a moment, and that of the record with this
number never ends, so later records are done before it; FAULT_BAD raises at the record with this number.
Broker, state and checkpoints come by the command line.
"""

import asyncio
import os

from sabot import App

topic = os.environ["FAULT_TOPIC"]
held = int(os.environ.get("FAULT_HELD", "-1"))
bad = int(os.environ.get("FAULT_BAD", "-1"))

app = App(os.environ["FAULT_ID"])


@app.agent(topic, key="k", sink=f"{topic}-out", concurrency=4)
async def count(ctx):
    n = ctx.message["n"]
    if n == bad:
        raise ValueError(f"record {n} is no good")
    if held >= 0:
        await (asyncio.Event().wait() if n == held else asyncio.sleep(0.005))
    total = (await ctx.state().get("total") or 0) + 1
    await ctx.state().put("total", total)
    return {"n": n, "k": ctx.message["k"], "partition": ctx.partition, "offset": ctx.offset, "total": total}
