"""Orders counted by customer, for any MCP client to read. Run it, then serve what it keeps, beside it or after it:

sabot run examples.mcp_server:app
sabot mcp serve examples.mcp_server:app --memory memories
"""

from sabot import App
from sabot.testing import MemoryBroker

app = App("orders", state="state", checkpoint_interval="1s")


@app.agent("orders", key="customer", name="customers")
async def count(ctx):
    kept = await ctx.state("orders").get("all") or {"count": 0, "last": None}
    await ctx.state("orders").put("all", {"count": kept["count"] + 1, "last": ctx.message["item"]})
    print(ctx.message["customer"], kept["count"] + 1, flush=True)


orders = [("ada", "tea"), ("grace", "ink"), ("ada", "pens")]
MemoryBroker.get().publish("orders", [{"customer": customer, "item": item} for customer, item in orders])
