"""Counts words: one agent splits lines, the next keeps a count of each word. Run it: sabot run examples.word_count:app"""

from sabot import App
from sabot.testing import MemoryBroker

app = App("word_count", state="memory")


@app.agent(key="word", sink="counts")  # no topic of its own: `split` writes into it. Its state is that of one word
async def count(ctx):
    n = (await ctx.state().get("n") or 0) + 1
    await ctx.state().put("n", n)
    return {"word": ctx.message["word"], "n": n}


@app.agent("lines", sink=count)
async def split(ctx):
    for word in ctx.message.split():
        yield {"word": word}


@app.agent("counts")
async def show(ctx):
    print(ctx.message["word"], ctx.message["n"], flush=True)


MemoryBroker.get().publish("lines", ["row row row", "row your boat"])
