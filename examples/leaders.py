"""Results that change: totals by player, the first two of them, a topic that keeps both places. Run it: sabot run examples.leaders:app"""

import sabot
from sabot import App
from sabot.testing import MemoryBroker

app = App("leaders", checkpoint_interval="100ms")
points = app.stream("points", schema={"game": "string", "player": "string", "points": "int64"})
totals = points.group_by("game", "player").aggregate(total=sabot.sum("points"))
places = totals.key_by("game").top_n(2, by="total", rank="place")
places.upsert("game", "place").to("places")  # the records' keys: a place; a row replaces the one before it


@app.agent("places")
async def show(ctx):
    print(ctx.message["place"], ctx.message["player"], ctx.message["total"], flush=True)


scored = [("Ada", 5), ("Bo", 7), ("Cy", 1), ("Ada", 3)]
MemoryBroker.get().publish("points", [{"game": "go", "player": player, "points": n} for player, n in scored])
