"""Agent into agent: the batch is filtered as a whole, the rest looked at one by one. Run it: sabot run examples.chain:app"""

import pyarrow.compute as pc

from sabot import App
from sabot.testing import MemoryBroker

app = App("chain", state="memory")


@app.agent(key="sensor")  # no topic of its own: `hot` writes straight into it
async def alarm(ctx):
    times = (await ctx.state().get("times") or 0) + 1
    await ctx.state().put("times", times)
    print(ctx.message["sensor"], ctx.message["degrees"], f"alarm {times}", flush=True)


@app.agent("readings", sink=alarm, batch=True)
def hot(batch, ctx):
    return batch.filter(pc.greater(batch["degrees"], 90))


readings = [("s1", 20), ("s1", 95), ("s2", 30), ("s1", 99), ("s2", 91)]
MemoryBroker.get().publish("readings", [{"sensor": sensor, "degrees": degrees} for sensor, degrees in readings])
