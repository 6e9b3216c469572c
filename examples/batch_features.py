"""A batch agent: Arrow in, Arrow out, state read and written by column. Run it: sabot run examples.batch_features:app"""

import pyarrow as pa
import pyarrow.compute as pc

from sabot import App
from sabot.testing import MemoryBroker

app = App("features", state="memory")


@app.agent("payments", sink="totals", batch=True, schema={"account": "string", "amount": "float64"})
def total(batch, ctx):
    sums = pa.table(batch).group_by("account").aggregate([("amount", "sum")]).combine_chunks().to_batches()[0]
    before = ctx.state().get_many(sums["account"]).cast("float64").fill_null(0)
    totals = pc.add(before, sums["amount_sum"])
    ctx.state().put_many(sums["account"], totals)
    return pa.record_batch({"account": sums["account"], "total": totals})


@app.agent("totals")
async def show(ctx):
    print(ctx.message["account"], ctx.message["total"], flush=True)


payments = [{"account": "a", "amount": 10.0}, {"account": "b", "amount": 5.0}, {"account": "a", "amount": 2.5}]
MemoryBroker.get().publish("payments", payments)
