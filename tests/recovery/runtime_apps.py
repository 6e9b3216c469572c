"""An app and a kernel with policy, budget, child jobs, a person and a listener, that are crashed at every step. They ask a model over HTTP.

Each start after a crash has other rules than the first one: what was decided holds, what is asked from then on is judged by the new ones.
"""

import os
from pathlib import Path
from typing import Any

from sabot import App, NdjsonSink
from sabot.agents import (
    Budget,
    ExecutionRequest,
    InMemoryEventBus,
    LetterRefused,
    ModelPolicy,
    PolicyDenied,
    PolicyEngine,
    RuntimeEvent,
    RuntimeEventType,
    RuntimeKernel,
    ToolPolicy,
)
from sabot.engine.calls.effects import Reconciled
from sabot.llm import BudgetExceeded, ExecutionEngine, OpenAIProvider, Price, PriceTable, tool
from sabot.steps import step
from sabot.testing import END, ScriptedSource

JOBS = 2
SCOPE = "acme"
MODEL = "model.txt"  # the address of the model
LIVES = "lives.txt"
CALLS = "calls.txt"
EVENTS = "events.txt"
WANTED = 50  # tokens that an answer may have
LIMIT = 2 * JOBS * (WANTED + 40)


def lines(directory: Path, name: str) -> list[str]:
    """Of a file of the run."""
    path = directory / name
    return path.read_text().splitlines() if path.exists() else []


def note(directory: Path, name: str, line: str) -> None:
    """A line more, in one write."""
    file = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def policy_of(lives: int) -> PolicyEngine:
    """The first life pays when a person says so, and wipes nothing; later ones pay nothing, and wipe."""
    first = lives == 1
    return PolicyEngine(
        [
            ToolPolicy(["pay"], require_approval=first, denied=not first),
            ToolPolicy(["wipe"], denied=first),
            ModelPolicy(["large"], degrade_to="small"),
        ]
    )


class Desk:
    """What an app and a kernel have in common."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        note(directory, LIVES, "a life")
        self.policy = policy_of(len(lines(directory, LIVES)))
        self.budgets = [Budget(SCOPE, max_tokens_monthly=LIMIT)]
        self.bus = InMemoryEventBus()
        self.bus.on(self.heard)
        provider = OpenAIProvider("small", base_url=(directory / MODEL).read_text(), api_key="any")
        prices = PriceTable({"small": Price("1", "1")}, version="1")
        self.engine = ExecutionEngine(provider, retries=0, patience=0, prices=prices)
        self.actions: Any = None

        def look(effect: Any, line: str) -> Any:
            return Reconciled.DONE if line in lines(directory, CALLS) else Reconciled.NOT_DONE

        def make(line: str) -> None:
            with step("call", line):
                note(directory, CALLS, line)

        @tool(reconcile=look)
        def pay(line: str) -> None:
            make(line)

        @tool(reconcile=look)
        def wipe(line: str) -> None:
            make(line)

        self.tools = [pay, wipe]

    async def heard(self, event: RuntimeEvent) -> None:
        """Notes the event; and is the person who allows all that is asked."""
        note(self.directory, EVENTS, f"{event.event_id} {event.type}")
        if event.type == RuntimeEventType.ACTION_REQUIRED:
            try:
                await self.actions.resolve(event.data["resume_token"], {"approved": True}, by="ada")
            except LetterRefused:  # the event was told again, and the answer had come before the crash
                note(self.directory, EVENTS, "a second answer was refused")

    async def ask(self, ctx: Any, what: str) -> str:
        """What a model says; or that the budget has no room for it."""
        text = f"{self.directory.name} {ctx.message['id']} {what}"
        try:
            return str((await ctx.llm(self.engine).complete(text, model="large", max_tokens=WANTED)).content)
        except BudgetExceeded:
            return "BudgetExceeded"

    async def parent(self, ctx: Any) -> Any:
        """A job: it asks, makes a call of each tool, and has a child ask."""
        said = [await self.ask(ctx, "parent")]
        for each in self.tools:
            try:
                await ctx.call(each, f"{ctx.message['id']} {each.name}")
                said.append("done")
            except PolicyDenied:
                said.append("PolicyDenied")
        said.append(await ctx.child("child", ctx.message))
        return {**ctx.message, "said": said}

    async def child(self, ctx: Any) -> Any:
        """The job of another agent, on behalf of the same scope."""
        return await self.ask(ctx, "child")


def app(directory: Path) -> App:
    """One job for each row of a script."""
    desk = Desk(directory)
    app = App(
        "desk",
        state=str(directory / "state"),
        checkpoint_interval=3600,
        policy=desk.policy,
        budgets=desk.budgets,
        events=desk.bus,
    )
    desk.actions = app.actions

    @app.agent(ScriptedSource([END]), durable=True, scope="tenant")
    async def child(ctx: Any) -> Any:
        return await desk.child(ctx)

    rows = [{"id": number, "tenant": SCOPE} for number in range(JOBS)]
    out = NdjsonSink(str(directory / "out.ndjson"))

    @app.agent(ScriptedSource([rows, END]), sink=out, durable=True, concurrency=2, job_id="id", scope="tenant")
    async def parent(ctx: Any) -> Any:
        return await desk.parent(ctx)

    return app


class Kernel:
    """The same jobs in a RuntimeKernel; each start asks for all of them again, by their keys."""

    def __init__(self, directory: Path) -> None:
        self.desk = Desk(directory)

    async def run(self) -> None:
        """One life."""
        desk = self.desk

        async def parent(ctx: Any) -> Any:
            return await desk.parent(ctx)

        async def child(ctx: Any) -> Any:
            return await desk.child(ctx)

        how = {"policy": desk.policy, "budgets": desk.budgets, "event_bus": desk.bus}
        async with RuntimeKernel.create(agent=[parent, child], journal=desk.directory / "state", **how) as kernel:
            desk.actions = kernel.actions
            await kernel.resume()
            for number in range(JOBS):
                request = ExecutionRequest(prompt={"id": number}, idempotency_key=str(number), scope_id=SCOPE)
                handle = await kernel.execute(request)
                note(desk.directory, "out.ndjson", str((await handle.result()).output["id"]))


def kernel(directory: Path) -> Kernel:
    """As `app`."""
    return Kernel(directory)
