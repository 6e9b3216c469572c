"""The program that is killed by kill_dance.py and soak.py, as `sabot run dance_app:app`. One input topic, two ways to one output topic:

    rows --keyed windows--> {"account", "window_start", "window_end", "rows", "sum"}          when event time has passed the window
    rows --record agent---> {"n", "account", "count", "total", "p", "o"}                      one for each row, running figures

`count` and `total` of an account lie in its state under two names, and the agent awaits between the two writes; one call in
SLOW_EACH takes a while, so that barriers find calls that have not ended. An account's rows are in one partition: its running figures do
not depend on how partitions mix. (p, o) names the input row.

The environment: DANCE_ID, DANCE_IN, DANCE_OUT; DANCE_DELIVERY, by default that of the engine; DANCE_SHARED, a folder for the checkpoints
that is used like one of another host: as a file system of pyarrow, without locks. The rest comes by the command line.
"""

import asyncio
import os
from pathlib import Path

from pyarrow import fs

import sabot
from sabot import App, tumbling

SLOW_EACH = 997
SLOW_SECONDS = 0.05

source, out = os.environ["DANCE_IN"], os.environ["DANCE_OUT"]
delivery = {"delivery": os.environ["DANCE_DELIVERY"]} if "DANCE_DELIVERY" in os.environ else {}

shared = Path(os.environ["DANCE_SHARED"]) if "DANCE_SHARED" in os.environ else None
checkpoints = None if shared is None else (fs.SubTreeFileSystem(str(shared.parent), fs.LocalFileSystem()), shared.name)

app = App(os.environ["DANCE_ID"], checkpoint_dir=checkpoints)

# idle: a broker that is away must not make a partition look idle, or its rows would come late
(
    app.stream(source, schema={"account": "string", "amount": "int64", "ts": "int64"}, time="ts", idle="1h")
    .key_by("account")
    .window(tumbling("10s"))
    .aggregate(rows=sabot.count(), sum=sabot.sum("amount"))
    .to(out, key="account", **delivery)
)


@app.agent(source, key="account", sink=out, concurrency=16, **delivery)
async def running(ctx):
    state, row = ctx.state(), ctx.message
    count = (await state.get("count") or 0) + 1
    await state.put("count", count)
    await asyncio.sleep(SLOW_SECONDS if row["n"] % SLOW_EACH == 0 else 0)
    total = (await state.get("total") or 0) + row["amount"]
    await state.put("total", total)
    figures = {"n": row["n"], "account": row["account"], "count": count, "total": total}
    return {**figures, "p": ctx.partition, "o": ctx.offset}
