"""A hundred tenants at a time, who come and go, and whose servers die: none ever sees what another has kept in its session."""

import asyncio
import itertools
import json
import random
import sys

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sabot.mcp import McpBusy, McpConfig, McpConnectionLost, McpServerPool, McpUnavailable, ToolCall
from sabot.process import Supervisor
from tools.mcp_servers import over_http, peer, text, told

TOOLS = [told("keep"), told("recall"), told("die")]
# Names that are one another's where they are put together carelessly.
ALIKE = [
    ("", ""),
    ("a", "b/c"),
    ("a/b", "c"),
    ("a", ""),
    ("", "a"),
    ("A", "b"),
    ("a ", "b"),
    ("None", ""),
    ("ab", "c"),
    ("a", "bc"),
]
TENANTS = [*ALIKE, *((f"tenant{number // 2}", f"user{number % 2}") for number in range(90))]


class Kept:
    """What is kept in the sessions with a server, and how many there were."""

    def __init__(self):
        self.sessions = 0

    def words_of(self, there):
        """What is kept in this session: it ends with it."""
        if not hasattr(there, "words"):
            there.words = []
            self.sessions += 1
        return there.words

    async def answer(self, there, request):
        await there.answer(request, text(self.said(there, request["params"], [there.key.scope, there.key.principal])))

    def said(self, there, params, whose):
        words = self.words_of(there)
        if params["name"] == "keep":
            words.append(params["arguments"]["words"])
        return json.dumps({"whose": whose, "words": words})


async def rounds(pool, tenants, count, *, at_once, seed=0, dies=0.15):
    """Each tenant keeps words and looks at what is kept, so often, in any order. -> how many calls were made, how many had no answer."""
    slots, calls, lost = asyncio.Semaphore(at_once), 0, 0

    async def one(scope, principal):
        nonlocal calls, lost
        chance = random.Random(f"{seed} {scope} {principal}")
        for number in range(count):
            name = "die" if chance.random() < dies else chance.choice(["keep", "recall"])
            async with slots:
                try:
                    session = await pool.session("notes", scope=scope, principal=principal)
                    answer = await session.call(name, {"words": [scope, principal, number]})
                except (McpBusy, McpUnavailable, McpConnectionLost):
                    lost += 1
                    continue
            calls += 1
            if name != "die":
                said = json.loads(answer.text)
                assert said["whose"] == [scope, principal]
                assert [each for each in said["words"] if each[:2] != [scope, principal]] == []

    async with asyncio.TaskGroup() as group:
        for scope, principal in tenants:
            group.create_task(one(scope, principal))
    return calls, lost


@pytest.mark.slow  # a second of a core, or more
@pytest.mark.parametrize(
    ("count", "most"), [(2, 20), pytest.param(15, 7, marks=pytest.mark.slow(reason="1,500 calls"))]
)
async def test_a_hundred_tenants_of_servers_in_this_process(count, most):
    kept = Kept()
    async with McpServerPool(McpConfig(max_servers=most)) as pool:
        pool.add("notes", connect=peer(kept.answer, tools=TOOLS))
        calls, lost = await rounds(pool, TENANTS, count, at_once=min(most, 16))
    assert calls > 60 * count, f"{lost} had no answer"
    assert kept.sessions >= len(TENANTS), "sessions that were closed to make room are opened again"


class Site:
    """A server by HTTP whose sessions belong to who has opened them. wrong: requests in the session of somebody else."""

    def __init__(self):
        self.kept, self.wrong, self.sessions, self.numbers = Kept(), [], {}, itertools.count()
        self.app = Starlette(routes=[Route("/mcp", self.answer, methods=["POST", "GET", "DELETE"])])

    async def answer(self, request):
        whose, name = request.headers.get("x-whose"), request.headers.get("mcp-session-id")
        if name is not None and name not in self.sessions:
            return PlainTextResponse("gone", status_code=404)
        if name is not None and self.sessions[name][0] != whose:
            self.wrong.append((name, whose))
        if request.method != "POST":
            return Response(status_code=405)
        said = json.loads(await request.body())
        method, headers = said.get("method"), {}
        match method:
            case "initialize":
                session = f"s{next(self.numbers)}"
                self.sessions[session] = (whose, Kept())
                headers = {"mcp-session-id": session}
                info = {"serverInfo": {"name": "site", "version": "1"}, "capabilities": {"tools": {}}}
                result = {"protocolVersion": said["params"]["protocolVersion"], **info}
            case "tools/list":
                result = {"tools": TOOLS}
            case "tools/call":
                if said["params"]["name"] == "die":
                    del self.sessions[name]
                    return PlainTextResponse("gone", status_code=404)
                result = text(self.kept.said(self.sessions[name][1], said["params"], json.loads(whose)))
            case _ if "id" not in said:
                return Response(status_code=202)
            case _:
                error = {"code": -32601, "message": f"no {method}"}
                return JSONResponse({"jsonrpc": "2.0", "id": said["id"], "error": error})
        return JSONResponse({"jsonrpc": "2.0", "id": said["id"], "result": result}, headers=headers)


@pytest.mark.parametrize(
    ("tenants", "count", "most"),
    [(12, 2, 4), pytest.param(100, 3, 12, marks=pytest.mark.slow(reason="hundreds of sessions by HTTP"))],
)
async def test_tenants_by_http(tenants, count, most):
    site = Site()
    with over_http(site.app) as url:
        async with McpServerPool(McpConfig(max_servers=most)) as pool:
            whose = {"headers": lambda scope, principal: {"x-whose": json.dumps([scope, principal])}}
            pool.add("notes", url=f"{url}/mcp", **whose)
            calls, lost = await rounds(pool, TENANTS[:tenants], count, at_once=4)
    assert site.wrong == []
    assert calls > tenants * count // 2, f"{lost} had no answer"


# A server whose session ends with it. It says whose it is by its environment.
CHILD = r"""
import json, os, sys
words, whose = [], json.loads(os.environ["WHOSE"])
tools = [{"name": name, "inputSchema": {"type": "object"}} for name in ("keep", "recall", "die")]
info = {"serverInfo": {"name": "child", "version": "1"}, "capabilities": {"tools": {}}}
for line in sys.stdin:
    said = json.loads(line)
    if "id" not in said:
        continue
    method, result = said["method"], None
    if method == "initialize":
        result = {"protocolVersion": "2024-11-05", **info}
    elif method == "tools/list":
        result = {"tools": tools}
    elif method == "tools/call":
        name = said["params"]["name"]
        if name == "die":
            os._exit(1)
        if name == "keep":
            words.append(said["params"]["arguments"]["words"])
        result = {"content": [{"type": "text", "text": json.dumps({"whose": whose, "words": words})}]}
    error = {"error": {"code": -32601, "message": "no"}}
    print(json.dumps({"jsonrpc": "2.0", "id": said["id"], **({"result": result} if result else error)}), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="children are owned on Linux only")
@pytest.mark.parametrize(
    ("tenants", "count", "most"),
    [(12, 2, 4), pytest.param(100, 3, 8, marks=pytest.mark.slow(reason="hundreds of programs"))],
)
async def test_tenants_of_programs(tenants, count, most):
    async with McpServerPool(McpConfig(max_servers=most)) as pool:
        whose = {"environment": lambda scope, principal: {"WHOSE": json.dumps([scope, principal])}}
        pool.add("notes", command=[sys.executable, "-I", "-S", "-c", CHILD], **whose)
        calls, lost = await rounds(pool, TENANTS[:tenants], count, at_once=4)
        assert len((await Supervisor.running()).children) <= most
    assert (await Supervisor.running()).children == []
    assert calls > tenants * count // 2, f"{lost} had no answer"


@pytest.mark.slow  # a second of a core, or more
async def test_a_hundred_agents_of_a_runtime_have_sessions_of_their_own():
    """What `ProcessRuntime` asks of its servers: by the id of an agent."""
    kept = Kept()
    async with McpServerPool(McpConfig(max_servers=10)) as pool:
        pool.add("agent", connect=peer(kept.answer, tools=TOOLS))
        slots = asyncio.Semaphore(8)

        async def work(agent):
            for number in range(2):
                async with slots:
                    said = json.loads((await pool.call_tool(agent, ToolCall("keep", {"words": [agent, number]}))).text)
                assert said["whose"] == ["", agent]
                assert {each[0] for each in said["words"]} == {agent}

        async with asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(work(f"agent {number}"))
    assert kept.sessions >= 100
