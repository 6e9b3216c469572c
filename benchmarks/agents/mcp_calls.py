"""Calls of an MCP tool: what a pool's session costs above the SDK's own client, with the same server, in one run on one machine.

    python benchmarks/agents/mcp_calls.py --rows 500 --rounds 7

The server is one of the SDK, over stdin and stdout. In each round the SDK's client and the pool make --rows calls, one after another, each
with a server of its own that was started before; who begins changes from round to round.

    sdk_p50_ms, sdk_p99_ms      of a call by `mcp.Client` and its `stdio_client`
    pool_p50_ms, pool_p99_ms    of a call by `McpSession.call`
    tool_p50_ms, tool_p99_ms    of a call by the tool of `pool.tools(…)`, as an agent alone makes it
    above_p50_ms, above_p10_ms  the median, over the rounds, of what the pool's figure is above the SDK's
    sdk_p10_ms, pool_p10_ms …   the tenth part of the calls that took least: on a busy machine they say more than the medians
    sdk_cpu_ms, pool_cpu_ms …   processor time of this process for a call, the server's left out
    open_ms                     from nothing to a list of tools, the server's start among it; median

Checked: what each call returned. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median, quantiles
from typing import Any

SERVE = [__file__, "--serve"]
PATIENT = "10min"  # CI runs this with what the tests leave of two cores: how long a start takes is a figure here, and no fault


async def serve() -> None:
    """A server of the SDK with one tool."""
    from mcp.server.lowlevel import Server
    from mcp.server.stdio import stdio_server
    from mcp.types import CallToolResult, ListToolsResult

    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}

    async def tools(ctx: Any, params: Any) -> ListToolsResult:
        return ListToolsResult.model_validate({"tools": [{"name": "add", "inputSchema": schema}]})

    async def call(ctx: Any, params: Any) -> CallToolResult:
        total = str(params.arguments["a"] + params.arguments["b"])
        return CallToolResult.model_validate({"content": [{"type": "text", "text": total}]})

    server = Server("adds", on_list_tools=tools, on_call_tool=call)
    async with stdio_server() as (heard, said):
        await server.run(heard, said, server.create_initialization_options())


async def timed(call: Callable[[int], Awaitable[str]], calls: int) -> list[float]:
    """Milliseconds of each call."""
    took = []
    for number in range(calls):
        began = time.perf_counter()
        said = await call(number)
        took.append((time.perf_counter() - began) * 1000)
        if said != str(number + 1):
            raise AssertionError(f"{number} + 1 gave {said}")
    return took


def percentile(values: list[float], part: int) -> float:
    """So many of a hundred are less."""
    return quantiles(values, n=100)[part - 1]


async def run(calls: int, rounds: int) -> dict[str, Any]:
    """All rounds."""
    from mcp import Client, StdioServerParameters

    from sabot.engine.calls.model_requests import RequestContext
    from sabot.llm.direct import DirectTools
    from sabot.mcp import McpConfig, McpServerPool

    found: dict[str, list[list[float]]] = {"sdk": [], "pool": [], "tool": []}
    used = dict.fromkeys(found, 0.0)
    opened = []
    async with McpServerPool(McpConfig(connect_timeout=PATIENT)) as pool:
        for each in range(3):
            began = time.perf_counter()
            await pool.tools(f"start {each}", command=[sys.executable, *SERVE])
            opened.append((time.perf_counter() - began) * 1000)
    async with (
        Client(StdioServerParameters(command=sys.executable, args=SERVE)) as client,
        McpServerPool(McpConfig(connect_timeout=PATIENT)) as pool,
    ):
        (tool,) = await pool.tools("adds", command=[sys.executable, *SERVE])
        session, alone = await pool.session("adds"), DirectTools(RequestContext())

        async def by_sdk(number: int) -> str:
            return (await client.call_tool("add", {"a": number, "b": 1})).content[0].text  # type: ignore[union-attr]

        async def by_pool(number: int) -> str:
            return (await session.call("add", {"a": number, "b": 1})).text

        async def by_tool(number: int) -> str:
            return (await alone.call(tool, {"a": number, "b": 1})).text  # type: ignore[no-any-return]

        ways = [("sdk", by_sdk), ("pool", by_pool), ("tool", by_tool)]
        for _, way in ways:
            await timed(way, 50)
        for number in range(rounds):
            for name, way in [*ways[number % 3 :], *ways[: number % 3]]:
                began = time.process_time()
                found[name].append(await timed(way, calls))
                used[name] += (time.process_time() - began) * 1000
    figures: dict[str, Any] = {"calls": calls, "rounds": rounds}
    for name, series in found.items():
        every = [each for one in series for each in one]
        for part in (10, 50, 99):
            figures[f"{name}_p{part}_ms"] = round(percentile(every, part), 3)
        figures[f"{name}_cpu_ms"] = round(used[name] / calls / rounds, 3)
    for part in (10, 50):
        pairs = zip(found["pool"], found["sdk"], strict=True)
        figures[f"above_p{part}_ms"] = round(median(percentile(a, part) - percentile(b, part) for a, b in pairs), 3)
    figures["open_ms"] = round(median(opened), 1)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500, help="calls in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", action="store_true", help="be the server")
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    print(json.dumps(asyncio.run(run(min(options.rows, 2000), options.rounds))))


if __name__ == "__main__":
    main()
