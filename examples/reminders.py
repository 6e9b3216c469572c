"""A process function: an order that is not paid within a minute, by state and a timer. Run it: sabot run examples.reminders:app"""

from sabot import App
from sabot.testing import MemoryBroker

app = App("reminders")
orders = app.stream("orders", schema={"order": "int64", "what": "string", "ts": "int64"}, time="ts")


def note(row, ctx):
    ctx.state(row["what"]).put(ctx.timestamp)
    if row["what"] == "placed":
        ctx.timers.event(ctx.timestamp + 60_000)


def remind(timer, ctx):
    return {"order": ctx.key} if (ctx.state("paid").get() or timer.at) >= timer.at else None


orders.key_by("order").process(note, on_timer=remind, schema={"order": "int64"}, ttl="1d").to("unpaid")


@app.agent("unpaid")
async def show(ctx):
    print("not paid:", ctx.message["order"], flush=True)


events = [(1, "placed", 0), (2, "placed", 9_000), (1, "paid", 59_000), (3, "placed", 70_000), (2, "paid", 71_000)]
MemoryBroker.get().publish("orders", [{"order": id, "what": what, "ts": ts} for id, what, ts in events])
