"""The agents that the kill tests of workers run, as `sabot run agents_app:app`: three over one topic of payments, exactly once.

The environment: AGENTS_ID; AGENTS_IN, a topic; AGENTS_OUT, which the names of the output topics begin with; AGENTS_OWN: some have processes
of their own. Broker, state, checkpoints and workers come by the command line.
"""

import os

import pyarrow.compute as pc

from sabot import App, col

topic, out = os.environ["AGENTS_IN"], os.environ["AGENTS_OUT"]
own = "AGENTS_OWN" in os.environ
COLUMNS = {"account": "string", "amount": "float64", "id": "int64"}

app = App(os.environ["AGENTS_ID"])


@app.agent(
    topic,
    key="account",
    concurrency=4,
    sink=f"{out}.count",
    delivery="exactly_once",
    **({"process": True} if own else {}),
)
async def count(ctx):
    """The how manieth payment of its account this is."""
    n = (await ctx.state().get("n") or 0) + 1
    await ctx.state().put("n", n)
    return {"account": ctx.message["account"], "id": ctx.message["id"], "n": n}


@app.agent(
    topic, batch=True, schema=COLUMNS, sink=f"{out}.double", delivery="exactly_once", **({"process": 2} if own else {})
)
async def double(batch, ctx):
    """Each payment, doubled."""
    return batch.set_column(1, "amount", pc.multiply(batch["amount"], 2)).select(["id", "amount"])


@app.agent(sink=f"{out}.refund", delivery="exactly_once")
async def refund(ctx):
    """Those that a stream gives it."""
    return {"id": ctx.message["id"]}


app.stream(topic, schema=COLUMNS).filter(col("amount") <= 0).to(refund)
