"""The record agent in Sabot. Started by record_agent_peers.py; ends by SIGINT."""

import sys
import time

from sabot import App

broker, in_topic, out_topic, place, concurrency = sys.argv[1:]
app = App("peers", f"kafka://{broker}", state=place, checkpoint_interval="1s")
first = True


@app.agent(in_topic, key="account", sink=out_topic, concurrency=int(concurrency))
async def count(ctx):  # type: ignore[no-untyped-def]
    global first
    if first:
        first = False
        print(f"first {time.time()}", flush=True)
    state = ctx.state()
    seen = (await state.get("seen") or 0) + 1
    await state.put("seen", seen)
    return {"account": ctx.message["account"], "seen": seen}


app.main()
