"""The smallest app: one agent that greets. Run it with `sabot run examples.app:app`, stop it with Ctrl-C."""

from sabot import App
from sabot.testing import MemoryBroker

app = App("hello")


@app.agent("names")
async def greet(ctx):
    print(f"hello {ctx.message['name']}", flush=True)


# memory:// lives in this process, so what the agent reads must come from here; another broker does not see it
MemoryBroker.get().publish("names", [{"name": "Ada"}, {"name": "Grace"}])
