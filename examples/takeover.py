"""A pattern: three failed logins, one that succeeds, a large payment. Run it: sabot run examples.takeover:app"""

from sabot import App, col, pattern, step
from sabot.testing import MemoryBroker

app = App("takeover")
events = app.stream("events", schema={"user": "string", "kind": "string", "amount": "int64", "ts": "int64"}, time="ts")
takeover = (
    pattern("fails", col("kind") == "fail", times=(3, None))
    .then("login", col("kind") == "login")
    .then("pay", col("amount") > 100)
    .within("5m")
)
events.key_by("user").pattern(takeover, fails=step("fails").count(), amount=step("pay").last("amount")).to("alerts")


@app.agent("alerts")
async def show(ctx):
    print(ctx.message["user"], ctx.message["fails"], ctx.message["amount"], flush=True)


kinds = ["fail", "fail", "fail", "fail", "login", "pay", "logout"]
rows = [{"user": "ada", "kind": kind, "amount": 900 * (kind == "pay"), "ts": 1000 * n} for n, kind in enumerate(kinds)]
MemoryBroker.get().publish("events", [*rows, {"user": "bo", "kind": "pay", "amount": 900, "ts": 9000}])
