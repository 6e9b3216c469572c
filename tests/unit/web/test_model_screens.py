"""The screen of models, tools, programs and MCP servers over HTTP."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from unit.web.test_console import MARKUP
from unit.web.test_job_screens import ask, enter

from sabot import App
from sabot.agents import tool
from sabot.llm import Completion, ExecutionEngine, Price, PriceTable, RequestSpec, ScriptedProvider, Usage, assistant
from sabot.mcp import McpServerPool
from sabot.web.console import Console
from tools.agent_tools import publish, started, until, values
from tools.mcp_servers import Desk, in_memory

ANSWER = Completion(message=assistant("yes"), usage=Usage(100, 50), model="m", provider="scripted")


@asynccontextmanager
async def shop(url: str, folder: Path) -> AsyncIterator[tuple[App, Console, asyncio.Event]]:
    """An app of which three jobs are over, and a fourth waits for its tool until the event is set."""
    go = asyncio.Event()

    def answered(spec: RequestSpec) -> Completion:
        return ANSWER

    engine = ExecutionEngine(
        ScriptedProvider(answered, model=f"m{MARKUP}"),
        prices=PriceTable({f"m{MARKUP}": Price("1", "10"), "m": Price("1", "10")}, version="1"),
    )
    app = App("shop", url, state=str(folder), checkpoint_interval=3600)

    @tool(effect="read")
    async def look_up(order: int) -> str:
        if order == 1:
            raise ValueError("no such order")
        if order == 3:
            await go.wait()
        return "found"

    @app.agent("questions", durable=True, sink="answers", concurrency=10)
    async def handle(ctx: Any) -> Any:
        await ctx.llm(engine).complete("hi", max_tokens=100)
        try:
            return await ctx.call(look_up, ctx.message["order"])
        except Exception:
            return "failed"

    async with started(app):
        publish(app, "questions", [{"order": n} for n in range(4)])
        await until(lambda: len(values(app, "answers")) == 3)
        console = Console(app, port=0)
        try:
            yield app, console, go
        finally:
            go.set()
            console.close()


async def test_calls_of_models_and_tools_are_counted(memory_url: str, tmp_path: Path) -> None:
    async with shop(memory_url, tmp_path) as (_, console, go):
        browser = await enter(console, "act")
        found: dict[str, Any] = {}
        while found.get("tool", {}).get("calls") != 4 or found["tool"]["in_flight"] > 1:  # figures of the last second
            rows = json.loads((await ask(browser, "/models.json"))[1])
            found = {each["kind"]: each for each in rows}
            await asyncio.sleep(0.02)
        assert len(rows) == 2, "the call of a model is no call of a tool"
        model, called = found["model"], found["tool"]
        assert (model["name"], model["calls"], model["tokens"]) == (f"scripted m{MARKUP}", 4, 600)
        assert model["dollars"] > 0
        figures = {name: called[name] for name in ("name", "calls", "in_flight", "failed", "unknown")}
        assert figures == {"name": "look_up", "calls": 4, "in_flight": 1, "failed": 1, "unknown": 0}
        assert 0 <= called["p50"] <= called["p95"] <= called["p99"]
        assert all(model[each] is not None for each in ("seconds", "p50", "p95", "p99"))
        status, page = await ask(browser, "/models")
        assert (status, MARKUP in page, "look_up" in page) == (200, False, True)
        go.set()
        while called["in_flight"]:
            called = {each["kind"]: each for each in json.loads((await ask(browser, "/models.json"))[1])}["tool"]
            await asyncio.sleep(0.02)
        assert "No model was called, or none is like this." in (await ask(browser, "/models?q=nothing"))[1]


async def test_child_processes_are_listed_without_their_arguments(memory_url: str, tmp_path: Path) -> None:
    async with shop(memory_url, tmp_path) as (_, console, _go):
        browser = await enter(console, "read")
        words = ["-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", "SECRET"]
        child = await asyncio.create_subprocess_exec(sys.executable, *words, stderr=asyncio.subprocess.DEVNULL)
        try:
            found: dict[str, Any] = {}
            while not found or found["cpu"] is None:
                rows = json.loads((await ask(browser, "/models.json?of=processes"))[1])
                found = next((each for each in rows if each["pid"] == child.pid and "-m" in each["program"]), {})
                await asyncio.sleep(0.02)
            assert re.fullmatch(r"python[\d.]* -m http.server", found["program"])
            assert found["depth"] == 1
            assert found["memory_bytes"] > 1_000_000
            assert "SECRET" not in (await ask(browser, "/models"))[1]
        finally:
            child.kill()
            await child.wait()


async def test_a_tool_of_a_server_that_has_changed_is_named(memory_url: str, tmp_path: Path) -> None:
    desk = Desk()
    async with shop(memory_url, tmp_path) as (_, console, _go), McpServerPool() as pool:
        pool.add("desk", connect=in_memory(lambda key: desk.server()))
        tools = {each.name: each for each in await pool.tools("desk")}
        browser = await enter(console, "read")
        page = (await ask(browser, "/models"))[1]
        assert "add, book, count" in page
        assert '<td class="problem"></td>' in page
        await tools["turn"].func()
        await tools["send"].func()  # the next call looks the tools up again
        while '<td class="problem">add</td>' not in page:
            page = (await ask(browser, "/models"))[1]
            await asyncio.sleep(0.02)
