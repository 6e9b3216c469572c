"""A join: what each sale is worth at the price of its moment. Run it: sabot run examples.prices:app"""

from sabot import App, col
from sabot.testing import MemoryBroker

app = App("prices")
prices = app.stream("prices", schema={"item": "string", "price": "float64", "ts": "int64"}, time="ts")
sales = app.stream("sales", schema={"item": "string", "pieces": "int64", "ts": "int64"}, time="ts")

sales.join_asof(prices, on="item").with_columns(worth=col("pieces") * col("price")).to("worth")


@app.agent("worth")
async def show(ctx):
    print(ctx.message["item"], ctx.message["pieces"], ctx.message["worth"], flush=True)


listed = [("pen", 2.0, 0), ("ink", 9.0, 0), ("pen", 2.5, 60_000), ("ink", 9.5, 90_000)]
sold = [("pen", 10, 59_000), ("ink", 1, 50_000), ("pen", 4, 60_000), ("pen", 1, 90_000)]  # the last one waits
broker = MemoryBroker.get()
broker.publish("prices", [{"item": item, "price": price, "ts": ts} for item, price, ts in listed])
broker.publish("sales", [{"item": item, "pieces": pieces, "ts": ts} for item, pieces, ts in sold])
