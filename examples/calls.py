"""Calls while a stream runs: fifty at a time, results in order. Run it: sabot run examples.calls:app"""

import asyncio

from sabot import App
from sabot.testing import MemoryBroker

app = App("calls")


async def score(row):
    await asyncio.sleep(0.01 * (4 - row["id"]))  # a model behind HTTP: the first ones take longest
    return {"id": row["id"], "score": len(row["text"]) / 10}


texts = app.stream("texts", schema={"id": "int64", "text": "string"})
texts.map_async(score, schema={"id": "int64", "score": "float64"}, concurrency=50, retries=2).to("scores")


@app.agent("scores")
async def show(ctx):
    print(ctx.message["id"], ctx.message["score"], flush=True)


MemoryBroker.get().publish("texts", [{"id": id, "text": "row " * id} for id in range(1, 4)])
