"""How MCP servers are reached: by HTTP, which may fail in many ways, and as children, which end with their sessions."""

import asyncio
import contextlib
import json
import shutil
import sys
import tracemalloc
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from sabot.engine.calls.certainty import Certainty, certainty_of
from sabot.errors import UserError
from sabot.mcp import (
    McpConfig,
    McpConnectionLost,
    McpInvalidAnswer,
    McpRefused,
    McpResultTooLarge,
    McpServerPool,
    McpUnavailable,
)
from sabot.process import ResourceLimits, Sandbox, Supervisor
from tools.broker import free_ports
from tools.mcp_servers import Desk, over_http, text, told

PLAIN = McpConfig(max_result_bytes=100_000, max_retries=0)


def wire(request, result):
    return {"jsonrpc": "2.0", "id": request["id"], "result": result}


class Site:
    """An HTTP server of the time of sessions. calls: what it was asked; sessions: how many it has begun. say: the response to a call."""

    def __init__(self):
        self.begin(None)
        self.app = Starlette(routes=[Route("/mcp", self._answer, methods=["GET", "POST", "DELETE"])])

    def begin(self, say):
        """Forgets what was."""
        self.calls, self.headers, self.sessions, self._say = [], [], 0, say
        self.tools, self.events = [told("go")], False

    async def _answer(self, request):
        if request.method != "POST":
            return Response(status_code=405)
        said = await request.json()
        if "id" not in said:
            return Response(status_code=202)
        match said["method"]:
            case "initialize":
                self.sessions += 1
                info = {"serverInfo": {"name": "site", "version": "1"}, "capabilities": {"tools": {}}}
                body = wire(said, {"protocolVersion": "2025-06-18", **info})
                return JSONResponse(body, headers={"mcp-session-id": f"s{self.sessions}"})
            case "tools/list":
                found = wire(said, {"tools": self.tools})
                if self.events:
                    return Response(f"event: message\ndata: {json.dumps(found)}\n\n", media_type="text/event-stream")
                return JSONResponse(found)
            case "tools/call":
                self.calls.append(said)
                self.headers.append(dict(request.headers))
                if self._say is not None:
                    return await self._say(said, len(self.calls))
                return JSONResponse(wire(said, text("done")))
        return PlainTextResponse("what?", status_code=400)


@pytest.fixture(scope="module")
def address():
    """One server for all tests, which takes longer to start than a test to run."""
    site = Site()
    with over_http(site.app) as url:
        yield site, f"{url}/mcp"


@pytest.fixture
def site(address):
    site, site.url = address
    site.begin(None)
    return site


@contextlib.asynccontextmanager
async def at(site, say=None):
    site.begin(say)
    async with McpServerPool(PLAIN) as pool:
        pool.add("site", url=site.url)
        yield await pool.session("site")


# -- HTTP -------------------------------------------------------------------------------------------------------------


async def test_a_server_of_the_sdk_is_used_by_http():
    desk = Desk()
    with over_http(desk.server().streamable_http_app()) as url:
        async with McpServerPool() as pool:
            tools = await pool.tools("desk", url=f"{url}/mcp", only=["add"])
            assert (await tools[0](a=1, b=2)).structured == {"sum": 3}
            assert await (await pool.session("desk")).version() == "2026-07-28"


async def test_a_server_that_listens_a_moment_later_is_not_taken_for_an_older_one(monkeypatch):
    asked = httpx2.AsyncHTTPTransport.handle_async_request
    refused = []

    async def late(self, request):
        if not refused:
            refused.append(request.content)
            raise httpx2.ConnectError("connection refused")
        return await asked(self, request)

    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", late)
    with over_http(Desk().server().streamable_http_app()) as url:
        async with McpServerPool() as pool:
            pool.add("desk", url=f"{url}/mcp")
            assert await (await pool.session("desk")).version() == "2026-07-28"
    assert b"server/discover" in refused[0]


async def test_a_server_of_sessions_is_used_by_http_and_each_tenant_has_its_headers(site):
    def headers(scope, principal):
        return {"authorization": f"Bearer {scope}"}

    async with McpServerPool(PLAIN) as pool:
        pool.add("site", url=site.url, headers=headers)
        for scope in ("a", "b", "a"):
            assert (await (await pool.session("site", scope=scope)).call("go")).text == "done"
    seen = [(each["mcp-session-id"], each["authorization"]) for each in site.headers]
    assert seen == [("s1", "Bearer a"), ("s2", "Bearer b"), ("s1", "Bearer a")]


async def test_a_session_that_the_server_has_forgotten_is_opened_again_and_the_call_made_once(site):
    async def forget(said, number):
        return PlainTextResponse("gone", status_code=404) if number == 2 else JSONResponse(wire(said, text("done")))

    async with at(site, forget) as session:
        assert [(await session.call("go")).text for _ in range(2)] == ["done", "done"]
    assert (site.sessions, len(site.calls)) == (2, 3)


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("response", "kind", "words", "certainty"),
    [
        (lambda: PlainTextResponse("no", status_code=403), McpRefused, "HTTP 403", Certainty.DONE),
        (lambda: PlainTextResponse("oh", status_code=502), McpConnectionLost, "HTTP 502|broke", Certainty.UNKNOWN),
        (lambda: PlainTextResponse("hello"), McpConnectionLost, "HTTP 200 with text/plain", Certainty.UNKNOWN),
        (lambda: JSONResponse({"hello": 1}), McpConnectionLost, "Failed to parse", Certainty.UNKNOWN),
        (lambda: Response(media_type="application/json"), McpConnectionLost, "Failed to parse", Certainty.UNKNOWN),
        (
            lambda: Response("data: {\n\n", media_type="text/event-stream"),
            McpConnectionLost,
            "Failed to parse",
            Certainty.UNKNOWN,
        ),
        (lambda: Response(status_code=202), McpConnectionLost, "HTTP 202", Certainty.UNKNOWN),
        (
            lambda: Response(status_code=303, headers={"location": "/receipt"}),
            McpConnectionLost,
            "HTTP 303",
            Certainty.UNKNOWN,
        ),
        (
            lambda: Response(status_code=307, headers={"location": "http://127.0.0.1:1/"}),
            McpRefused,
            "not followed",
            None,
        ),
    ],
)
async def test_an_http_response_that_is_no_answer_says_what_is_known(site, response, kind, words, certainty):
    async def say(said, number):
        return response() if number == 1 else JSONResponse(wire(said, text("done")))

    async with at(site, say) as session:
        with pytest.raises(kind, match=words) as caught:
            await session.call("go")
        assert certainty is None or certainty_of(caught.value) is certainty
        assert (await session.call("go")).text == "done", "the session goes on"


@pytest.mark.slow  # half a second of a core
async def test_a_result_that_is_too_large_is_the_error_of_its_call_and_not_kept(site):
    def body(said, kind):
        async def parts():
            start = b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"' % said["id"]
            yield (b"event: message\ndata: " if kind == "text/event-stream" else b"") + start
            for _ in range(2000):
                yield b"x" * 65536
            yield b'"}]}}' + (b"\n\n" if kind == "text/event-stream" else b"")

        return StreamingResponse(parts(), media_type=kind)

    async def say(said, number):
        if number == 3:
            return JSONResponse(wire(said, text("done")))
        return body(said, "application/json" if number == 1 else "text/event-stream")

    async with at(site, say) as session:
        tracemalloc.start()
        try:
            for _ in range(2):
                with pytest.raises(McpResultTooLarge, match="longer than 100,000 bytes"):
                    await session.call("go")
            assert tracemalloc.get_traced_memory()[1] < 20_000_000, "of 130 MB each"
        finally:
            tracemalloc.stop()
        assert (await session.call("go")).text == "done"


@pytest.mark.parametrize("events", [False, True])
async def test_a_list_by_http_that_is_too_long_is_not_looked_into(site, events):
    site.tools, site.events = [told(f"t{number}", description="x" * 100) for number in range(100)], events
    async with McpServerPool(McpConfig(max_list_bytes=5000, max_retries=0)) as pool:
        with pytest.raises(McpUnavailable, match="list_tools: its answer is longer than 5,000 bytes") as caught:
            await pool.tools("site", url=site.url)
        assert caught.value.hint == "McpConfig(max_list_bytes=…)"
    async with McpServerPool(McpConfig(max_retries=0)) as pool:
        assert len(await pool.tools("site", url=site.url)) == 100


@pytest.mark.parametrize("events", [False, True])
async def test_half_of_a_pair_by_http_is_a_replacement_character(site, events):
    async def say(said, number):
        result = (
            rb'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"a\ud83d \ud83d\ude00"}]}}'
            % said["id"]
        )
        if not events:
            return Response(result, media_type="application/json")
        body = b"event: message\r\ndata: " + result + b"\r\n\r\n"

        async def parts():
            for at in range(0, len(body), 7):
                yield body[at : at + 7]

        return StreamingResponse(parts(), media_type="text/event-stream")

    async with at(site, say) as session:
        assert (await session.call("go")).text == "a\ufffd \U0001f600"


async def test_an_answer_that_breaks_off_is_in_doubt(site):
    async def say(said, number):
        async def parts():
            yield b'{"jsonrpc":"2.0",'
            raise RuntimeError("the server has a bug")

        return StreamingResponse(parts(), media_type="application/json" if number == 1 else "text/event-stream")

    async with at(site, say) as session:
        for _ in range(2):
            with pytest.raises(McpConnectionLost) as caught:
                await session.call("go")
            assert certainty_of(caught.value) is Certainty.UNKNOWN


async def test_an_answer_that_is_compressed_unasked_is_refused(site):
    async def say(said, number):
        return Response(b"\x1f\x8b", media_type="application/json", headers={"content-encoding": "gzip"})

    async with at(site, say) as session:
        with pytest.raises(McpConnectionLost, match="compressed"):
            await session.call("go")


async def test_a_server_that_is_not_there_is_told_and_tried_again():
    [port] = free_ports(1)
    async with McpServerPool(McpConfig(max_retries=1)) as pool:
        pool.add("site", url=f"http://127.0.0.1:{port}/mcp")
        with pytest.raises(McpUnavailable, match="it cannot be reached") as caught:
            await pool.session("site")
        assert certainty_of(caught.value) is Certainty.NOT_SENT


async def test_a_server_that_went_away_between_two_calls_was_sent_nothing():
    async with McpServerPool(PLAIN) as pool:
        with over_http(Site().app) as url:
            pool.add("site", url=f"{url}/mcp")
            session = await pool.session("site")
            await session.call("go")
        with pytest.raises(McpUnavailable):
            await session.call("go")


# -- children -----------------------------------------------------------------------------------------------------------

# A server of twenty lines, so that it starts at once.
CHILD = r"""
import json, os, resource, sys
tools = [{"name": name, "inputSchema": {"type": "object"}} for name in ("environment", "where", "files", "die")]
for line in sys.stdin:
    said = json.loads(line)
    method, result = said.get("method"), None
    if "id" not in said:
        continue
    if method == "initialize":
        info = {"serverInfo": {"name": "child", "version": "1"}, "capabilities": {"tools": {}}}
        result = {"protocolVersion": "2024-11-05", **info}
    elif method == "tools/list":
        result = {"tools": tools}
    elif method == "tools/call":
        name = said["params"]["name"]
        if name == "die":
            sys.stderr.write("z" * 100_000 + "my last words")
            sys.exit(3)
        words = {"where": os.getcwd(), "files": str(resource.getrlimit(resource.RLIMIT_NOFILE))}.get(name)
        words = words or json.dumps(dict(os.environ))
        result = {"content": [{"type": "text", "text": words}]}
    error = {"error": {"code": -32601, "message": "no"}}
    print(json.dumps({"jsonrpc": "2.0", "id": said["id"], **({"result": result} if result else error)}), flush=True)
"""
COMMAND = [sys.executable, "-S", "-c", CHILD]


@pytest.fixture
async def pool():
    async with McpServerPool() as made:
        yield made
    assert (await Supervisor.running()).children == []


async def test_a_child_has_a_clean_environment_and_the_tenant_s_own(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET", "of the worker")

    def environment(scope, principal):
        return {"TOKEN": f"{scope}'s"}

    pool.add("child", command=COMMAND, environment=environment, working_dir=tmp_path)
    acme, zeta = await asyncio.gather(*(pool.session("child", scope=scope) for scope in ("acme", "zeta")))
    found = [(await each.call("environment")).text for each in (acme, zeta)]
    assert '"TOKEN": "acme\'s"' in found[0]
    assert '"TOKEN": "zeta\'s"' in found[1]
    assert "AWS_SECRET" not in found[0]
    assert Path((await acme.call("where")).text) == tmp_path


async def test_a_child_has_limits(pool):
    pool.add("child", command=COMMAND, limits=ResourceLimits(max_open_files=77))
    assert (await (await pool.session("child")).call("files")).text == "(77, 77)"


async def test_a_child_in_a_sandbox(pool, tmp_path):
    command = [shutil.which("python3", path="/usr/bin:/bin") or sys.executable, *COMMAND[1:]]
    pool.add("child", command=command, trust=Sandbox(level="trusted", allow_degraded=True), working_dir=tmp_path)
    session = await pool.session("child")
    assert Path((await session.call("where")).text) == tmp_path
    (child,) = (await Supervisor.running()).children
    assert "NoNewPrivs:\t1" in Path(f"/proc/{child.pid}/status").read_text()
    with pytest.raises(UserError, match="limits and trust are of a command"):
        pool.add("site", url="http://localhost:1/mcp", trust="trusted")


async def test_a_child_that_dies_in_a_call_leaves_its_last_words_and_another_is_started(pool):
    pool.add("child", command=COMMAND)
    session = await pool.session("child")
    with pytest.raises(McpConnectionLost, match=r"it ended with 3; its last words: z+my last words") as caught:
        await session.call("die")
    assert len(str(caught.value)) < 2000
    assert (await session.call("where")).text


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["no-such-program"], "no-such-program: not found on PATH"),
        (["sh", "-c", "echo oops >&2; exit 7"], "it ended with 7; its last words: oops"),
        (["sh", "-c", "kill -9 $$"], "it was ended by signal 9"),
    ],
)
async def test_a_child_that_is_no_server_is_told(pool, command, words):
    pool.add("bad", command=command)
    with pytest.raises(McpUnavailable, match=words):
        await pool.session("bad")


@pytest.mark.parametrize("given", [dict, lambda values: lambda scope, principal: values], ids=["mapping", "function"])
async def test_secrets_of_a_childs_environment_are_in_no_error_and_no_log(pool, caplog, given):
    whose = "mapping" if given is dict else "function"
    key, password = f"sekret-of-{whose}-99xyz", f"hunter2-of-{whose}"
    says = "echo using $API_KEY; echo bad $API_KEY $DB_PASSWORD >&2; exit 3"
    pool.add("bad", command=["sh", "-c", says], environment=given({"API_KEY": key, "DB_PASSWORD": password}))
    with pytest.raises(McpUnavailable, match=r"its last words: bad \*\*\* \*\*\*") as caught:
        await pool.session("bad")
    assert "writes what is no message: 'using ***'" in caplog.text
    assert [each for each in (key, password) if each in f"{caught.value}{caplog.text}"] == []


@pytest.mark.parametrize("megabytes", [2, pytest.param(100, marks=pytest.mark.slow(reason="100 MB"))])
async def test_a_child_that_floods_stderr_and_will_not_end_answers_and_is_ended(pool, monkeypatch, megabytes):
    monkeypatch.setattr("sabot.mcp.transport._GRACE_SECONDS", 0.05)
    rude = CHILD.replace(
        "for line in sys.stdin:", "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nfor line in sys.stdin:"
    )
    flood = f'name = said["params"]["name"]; sys.stderr.write("z" * {megabytes << 20})'
    rude = rude.replace('name = said["params"]["name"]', flood) + "\nwhile True: signal.pause()"
    pool.add("rude", command=[*COMMAND[:-1], rude])
    session = await pool.session("rude", scope="one")
    assert (await session.call("where")).text
    (child,) = (await Supervisor.running()).children
    await pool.close()
    assert child.is_over


async def test_a_child_that_allocates_without_end_is_ended_and_says_for_which_limit(pool):
    greedy = CHILD.replace(
        'name = said["params"]["name"]', "name, kept = '', []\n        while True: kept.append('x' * 1_000_000)"
    )
    limits = ResourceLimits(max_memory_mb=64)
    pool.add("greedy", command=[*COMMAND[:-1], greedy], limits=limits)
    session = await pool.session("greedy")
    with pytest.raises(McpConnectionLost, match=r"more than its max_memory_bytes|MemoryError"):
        await session.call("where")


async def test_a_child_ends_with_its_session():
    async with McpServerPool() as pool:
        pool.add("child", command=["sh", "-c", 'sleep 1000 & exec "$@"', "sh", *COMMAND])
        await pool.session("child")
        supervisor = await Supervisor.running()
        (child,) = supervisor.children
    assert supervisor.children == []
    assert child.is_over


async def test_opening_that_is_given_up_leaves_no_child():
    async with McpServerPool(McpConfig(connect_timeout="50ms")) as pool:
        pool.add("deaf", command=["sleep", "1000"])
        with pytest.raises(McpUnavailable, match="did not agree"):
            await pool.session("deaf")
        async with asyncio.timeout(60):
            while (await Supervisor.running()).children:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)


async def test_an_http_answer_of_the_wrong_shape_is_its_call_s_error(site):
    async def say(said, number):
        return JSONResponse(wire(said, {"content": 5}))

    async with at(site, say) as session:
        with pytest.raises(McpInvalidAnswer):
            await session.call("go")
