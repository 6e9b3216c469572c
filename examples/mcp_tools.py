"""A durable agent that calls tools of an MCP server; the server here is a part of the program, elsewhere it is a command or an address."""

import asyncio

from sabot import App
from sabot.llm import tool
from sabot.mcp import McpServerPool, ToolServer
from sabot.testing import MemoryBroker


@tool(effect="read")
async def stock(item: str) -> int:
    """How many of an item are in stock."""
    return {"tea": 12, "ink": 3}[item]


pool = McpServerPool()
shop = ToolServer("shop", [stock])
(look,) = asyncio.run(pool.tools("shop", connect=shop.connect))  # or command=["mcp-server-git"]
app = App("orders", state="state")


@app.agent("orders", durable=True)
async def check(ctx):
    print(ctx.message["item"], (await ctx.call(look, item=ctx.message["item"])).text, flush=True)


MemoryBroker.get().publish("orders", [{"item": "tea"}, {"item": "ink"}])
