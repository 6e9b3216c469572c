"""Sessions with MCP servers: what is called, read and listed, in each version of the protocol, and who has which session."""

import asyncio
import contextlib
import shutil
import subprocess
import sys
import threading

import mcp.types as types
import pytest

from sabot import llm
from sabot.errors import UserError
from sabot.llm import assistant
from sabot.mcp import (
    McpBusy,
    McpConfig,
    McpConnectionLost,
    McpInvalidArguments,
    McpRefused,
    McpResultTooLarge,
    McpServerPool,
    McpToolChanged,
    McpUnavailable,
    ToolCall,
)
from sabot.mcp.offers import offers_of
from sabot.mcp.wire import all_pages
from tools.agent_tools import until
from tools.mcp_servers import NUMBERS, Desk, in_memory, over_sockets, peer, text, told


@pytest.fixture
async def pool():
    async with McpServerPool(McpConfig(request_timeout="20s")) as made:
        yield made


@pytest.fixture
def desk():
    return Desk()


async def echo(there, request):
    await there.answer(request, text(request["params"]["name"]))


async def test_a_tool_is_called_and_answers(pool, desk):
    pool.add("desk", connect=in_memory(lambda key: desk.server()))
    session = await pool.session("desk")
    result = await session.call("add", {"a": 1, "b": 2})
    assert (result.text, result.structured, result.is_error) == ("3", {"sum": 3}, False)
    assert await session.version() == "2026-07-28"


async def test_what_a_tool_says_of_itself_that_it_failed_is_a_result(pool, desk):
    pool.add("desk", connect=in_memory(lambda key: desk.server()))
    result = await (await pool.session("desk")).call("fail")
    assert (result.text, result.is_error) == ("no such order", True)


async def test_arguments_that_the_schema_does_not_take_are_not_sent(pool, desk):
    pool.add("desk", connect=in_memory(lambda key: desk.server()))
    session = await pool.session("desk")
    with pytest.raises(McpInvalidArguments, match=r"expected integer, got string - at \$\.b"):
        await session.call("add", {"a": 1, "b": "2"})
    with pytest.raises(McpToolChanged, match="it offers no tool 'subtract'"):
        await session.call("subtract", {"a": 1})
    assert desk.calls == []


@pytest.mark.parametrize(
    ("words", "ask"),
    [
        ("half", lambda session: session.call("go", {"a": "x\ud800"})),
        ("half a name", lambda session: session.call("go", {"a\ud800": 1})),
        ("no JSON", lambda session: session.call("go", {"a": object()})),
        ("half an address", lambda session: session.read_resource("file:///\ud800")),
        ("half a prompt", lambda session: session.prompt("review\ud800")),
        ("half of one", lambda session: session.prompt("review", {"code": "\udfff"})),
    ],
)
async def test_what_cannot_be_sent_is_refused_by_name_and_the_session_goes_on(pool, words, ask):
    """It had ended the task that writes: this call was out of time, and the next one found the session gone."""
    pool.add("peer", connect=peer(echo))
    session = await pool.session("peer")
    with pytest.raises(McpInvalidArguments, match=r"MCP server peer: (go|read_resource|get_prompt) cannot be sent: "):
        await ask(session)
    assert (await session.call("go")).text == "go"


async def test_resources_and_prompts_are_read(pool, desk):
    pool.add("desk", connect=in_memory(lambda key: desk.server()))
    session = await pool.session("desk")
    assert [each.uri for each in await session.resources()] == ["file:///a"]
    assert await session.read_resource("file:///a") == [{"uri": "file:///a", "text": "words"}]
    (prompt,) = await session.prompts()
    assert (prompt.name, prompt.arguments) == ("review", {"code": True})
    (message,) = await session.prompt("review", {"code": "x = 1"})
    assert (message.role, message.text) == ("user", "Review x = 1")


async def test_progress_is_told(pool, desk):
    pool.add("desk", connect=in_memory(lambda key: desk.server()))
    heard = []
    session = await pool.session("desk")
    await session.call("count", progress=lambda *said: heard.append(said))
    await until(lambda: heard == [(1.0, 2.0, "half")])

    async def slowly(*said):
        await asyncio.sleep(0)
        heard.append(said)

    heard.clear()
    await session.call("count", progress=slowly)
    await until(lambda: heard == [(1.0, 2.0, "half")])


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_a_server_of_each_legacy_protocol_is_spoken_with(pool, version):
    pool.add("old", connect=peer(echo, version=version))
    session = await pool.session("old")
    assert (await session.version(), (await session.call("go")).text) == (version, "go")


async def test_a_server_that_is_older_than_the_program_wants_is_refused():
    async with McpServerPool(McpConfig(protocol_version="2025-06-18")) as pool:
        pool.add("old", connect=peer(echo, version="2025-03-26"))
        with pytest.raises(McpUnavailable, match="it speaks version 2025-03-26 of the protocol"):
            await pool.session("old")


async def test_a_server_of_an_unknown_version_is_refused(pool):
    pool.add("odd", connect=peer(echo, version="1999-01-01"))
    with pytest.raises(McpUnavailable, match="1999-01-01"):
        await pool.session("odd")


async def test_a_server_without_tools_has_none(pool):
    async def serve(there):
        while True:
            said = await there.read()
            if said.get("method") == "initialize":
                info = {"serverInfo": {"name": "peer", "version": "1"}, "capabilities": {}}
                await there.answer(said, {"protocolVersion": "2025-06-18", **info})
            elif "id" in said:
                await there.refuse(said, -32601, "no")

    assert await pool.tools("bare", connect=over_sockets(serve)) == []
    session = await pool.session("bare")
    assert (await session.resources(), await session.prompts()) == ([], [])


async def test_the_error_of_a_server_has_its_code(pool):
    async def refuse(there, request):
        await there.refuse(request, -32602, "not today")

    pool.add("rude", connect=peer(refuse))
    with pytest.raises(McpRefused, match="MCP server rude: go: not today") as caught:
        await (await pool.session("rude")).call("go")
    assert caught.value.number == -32602


async def test_a_list_of_pages_without_end_is_refused_at_its_bound():
    pages = []

    async def serve(there):
        while True:
            said = await there.read()
            match said.get("method"):
                case "initialize":
                    info = {"serverInfo": {"name": "peer", "version": "1"}, "capabilities": {"tools": {}}}
                    await there.answer(said, {"protocolVersion": "2025-06-18", **info})
                case "tools/list":
                    pages.append(said)
                    await there.answer(said, {"tools": [told(f"t{len(pages)}")], "nextCursor": "more"})
                case _ if "id" in said:
                    await there.refuse(said, -32601, "no")

    async with McpServerPool(McpConfig(max_listed=7)) as bounded:
        with pytest.raises(McpUnavailable, match="MCP server many: list_tools: there are more than 7 tools") as caught:
            await bounded.tools("many", connect=over_sockets(serve))
    assert caught.value.hint == "McpConfig(max_listed=…)"
    assert len(pages) == 8


async def test_empty_pages_without_end_are_refused_too():
    asked = []

    async def fetch(cursor):
        asked.append(cursor)
        return types.ListToolsResult(tools=[], next_cursor="more")

    with pytest.raises(McpResultTooLarge, match="MCP server desk: list_tools: there are more than 100 pages"):
        await all_pages("desk", "list_tools", fetch, McpConfig())
    assert len(asked) == 100


def lister(limits, **lists):
    """A `connect` to a server that lists these, each on one page."""
    names = {"resources/templates/list": "resourceTemplates"}

    async def serve(there):
        while True:
            said = await there.read()
            method = said.get("method", "")
            if method == "initialize":
                info = {"serverInfo": {"name": "lister", "version": "1"}, "capabilities": {key: {} for key in lists}}
                await there.answer(said, {"protocolVersion": "2025-06-18", **info})
            elif method.endswith("/list"):
                name = names.get(method, method.split("/")[0])
                await there.answer(said, {name: lists.get(name, [])})
            elif "id" in said:
                await there.refuse(said, -32601, "no")

    return over_sockets(serve, **limits)


MANY = {
    "tools": [told(f"t{number}") for number in range(11)],
    "resources": [{"uri": f"file:///{number}", "name": "a"} for number in range(11)],
    "prompts": [{"name": f"p{number}"} for number in range(11)],
}


@pytest.mark.parametrize("what", ["tools", "resources", "prompts"])
@pytest.mark.parametrize("bound", ["number", "bytes", "bytes of a page"])
async def test_a_list_is_bounded_in_number_and_bytes_and_the_error_names_the_bound(what, bound):
    if bound == "number":
        config, words, hint = McpConfig(max_listed=10), f"list_{what}: there are more than 10 {what}", "max_listed"
    else:
        config, words, hint = (
            McpConfig(max_list_bytes=100),
            f"list_{what}: there are more than 100 bytes",
            "max_list_bytes",
        )
    limits = {}
    if bound == "bytes of a page":  # which is not looked into
        words = rf"list_{what}: its answer is longer than 100 bytes, and was not kept: a message of \d+ bytes, and 100 are the most"
        limits = {"most_list_bytes": 100}
    async with McpServerPool(config) as pool:
        pool.add("lister", connect=lister(limits, **{what: MANY[what]}))

        async def list_them():
            session = await pool.session("lister")
            await getattr(session, what)()

        with pytest.raises((McpUnavailable, McpResultTooLarge), match=f"MCP server lister: {words}") as caught:
            await list_them()
    assert caught.value.hint == f"McpConfig({hint}=…)"
    assert isinstance(caught.value, McpUnavailable) == (
        what == "tools"
    )  # a session that could not be opened was sent nothing
    assert caught.value.message.count("MCP server") == 1


async def test_who_waits_beside_a_long_list_goes_on_meanwhile():
    """What is done with each tool takes a while: turns of the loop are counted, not seconds."""
    listed, turns = [told(f"t{number}", NUMBERS) for number in range(1000)], 0

    async def turn():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def fetch(cursor):
        return types.ListToolsResult.model_validate({"tools": listed})

    beside = asyncio.create_task(turn())
    found = await all_pages("desk", "list_tools", fetch, McpConfig())
    assert turns >= 19
    turns = 0
    offers, left_out = await offers_of(found, 100)
    beside.cancel()
    assert turns >= 19
    assert (len(offers), left_out) == (1000, {})


@pytest.mark.slow  # half a second of a core
async def test_of_a_server_with_very_many_tools_an_agent_is_given_those_that_it_names():
    """A server with 501 tools could not be used at all: its session was not opened, whatever `only=` said."""
    many = [told(f"t{number}", NUMBERS, description="Does something. " * 20) for number in range(1500)]
    async with McpServerPool() as pool:
        pool.add("many", connect=lister({"most_list_bytes": 4_000_000}, tools=many))
        with pytest.raises(
            UserError, match="MCP server many: 1,500 tools, and an agent is given 500 at most"
        ) as caught:
            await pool.tools("many")
        assert "only=[…]" in caught.value.hint
        assert [tool.name for tool in await pool.tools("many", only=["t7", "t1499"])] == ["t1499", "t7"]


async def test_a_changed_list_that_cannot_be_read_keeps_calls_from_being_sent(pool):
    """The tools of before may be others now: the next call looks again, and does not go by them."""
    tools = [told("go")]

    async def grow(there, request):
        tools.extend(told(f"t{number}") for number in range(3))
        await there.write({"method": "notifications/tools/list_changed"})
        await there.answer(request, text("done"))

    async with McpServerPool(McpConfig(max_listed=2)) as bounded:
        bounded.add("growing", connect=peer(grow, tools=tools))
        session = await bounded.session("growing")
        assert (await session.call("go")).text == "done"
        for _ in range(2):
            with pytest.raises(McpUnavailable, match="there are more than 2 tools"):
                await session.call("go")
        del tools[1:]
        assert (await session.call("go")).text == "done"


# -- whose sessions ---------------------------------------------------------------------------------------------------


async def test_tenants_never_share_a_session(pool):
    made = []

    async def serve(there, request):
        await there.answer(request, text(f"{there.key.scope}/{there.key.principal} {made.index(id(there))}"))

    def connect(key, ended):
        return inner(key, ended)

    async def first(there, request):
        if id(there) not in made:
            made.append(id(there))
        await serve(there, request)

    inner = peer(first)
    pool.add("notes", connect=connect)

    async def ask(number):
        session = await pool.session("notes", scope=f"tenant{number % 50}", principal=f"user{number % 2}")
        return (await session.call("go")).text

    answers = await asyncio.gather(*(ask(number) for number in range(60)))
    assert answers[:10] == answers[50:], "a tenant comes back to its own"
    whose = {each.split()[0] for each in answers}
    assert len(whose) == len({each.split()[1] for each in answers}) == 50
    assert len(pool.open_sessions()) == 50


async def test_who_asks_while_a_session_opens_gets_the_same(pool):
    opened = []

    def connect(key, ended):
        opened.append(key)
        return inner(key, ended)

    inner = peer(echo)
    pool.add("one", connect=connect)
    await asyncio.gather(*(pool.session("one") for _ in range(10)))
    assert len(opened) == 1


async def test_a_session_that_is_not_used_is_closed_and_opened_again():
    async with McpServerPool(McpConfig(idle_timeout="50ms")) as pool:
        pool.add("one", connect=peer(echo))
        session = await pool.session("one")
        await until(lambda: pool.open_sessions() == [])
        assert (await session.call("go")).text == "go"


async def test_the_session_that_was_not_used_for_longest_makes_room():
    async with McpServerPool(McpConfig(max_servers=2)) as pool:
        pool.add("one", connect=peer(echo))
        for scope in ("a", "b", "a", "c"):
            await (await pool.session("one", scope=scope)).call("go")
        assert {key.scope for key in pool.open_sessions()} == {"a", "c"}


async def test_a_pool_whose_sessions_are_all_in_use_refuses_another():
    started = asyncio.Event()
    here = asyncio.get_running_loop()

    async def hang(there, request):
        here.call_soon_threadsafe(started.set)

    async with McpServerPool(McpConfig(max_servers=1)) as pool:
        pool.add("one", connect=peer(hang))
        session = await pool.session("one", scope="a")
        call = asyncio.create_task(session.call("go"))
        await started.wait()
        with pytest.raises(McpBusy, match="1 sessions are in use, and there may be 1"):
            await pool.session("one", scope="b")
        call.cancel()
        await asyncio.wait([call])


async def test_a_burst_of_tenants_waits_for_room():
    async def hear(there, request):
        await there.answer(request, text(request["params"]["name"]))

    async with McpServerPool(McpConfig(max_servers=4)) as pool:
        pool.add("one", connect=peer(hear))
        for scope in ("a", "b"):
            await pool.session("one", scope=scope)
        burst = [pool.session("one", scope=f"tenant{number}") for number in range(9)]
        sessions = await asyncio.gather(*burst)
        assert len(pool.open_sessions()) <= 4
        assert [(await each.call("go")).text for each in sessions] == ["go"] * 9


async def test_an_agent_has_a_session_of_the_pools_own_server(desk):
    async with McpServerPool() as pool:
        pool.add("agent", connect=in_memory(lambda key: desk.server()))
        session = await pool.get_or_create("reviewer")
        assert session.key.principal == "reviewer"
        result = await pool.call_tool("reviewer", ToolCall("add", {"a": 2, "b": 3}))
        assert result.content == [{"type": "text", "text": "5"}]


async def test_a_call_that_a_model_asks_for_goes_to_a_server_as_it_is(desk):
    async with McpServerPool() as pool:
        pool.add("agent", connect=in_memory(lambda key: desk.server()))
        asked = assistant("", llm.ToolCall("call_1", "add", '{"a": 2, "b": 3}')).tool_calls[0]
        assert (await pool.call_tool("reviewer", asked)).text == "5"
        for written in ('{"a": 2, "b', "[2, 3]"):
            with pytest.raises(
                McpInvalidArguments, match="MCP server agent: tool add: the arguments are no JSON object"
            ):
                await pool.call_tool("reviewer", llm.ToolCall("call_1", "add", written))
        for wrong in ("add", llm.tool(len), ToolCall("add", 5)):
            with pytest.raises(UserError, match="call_tool: call="):
                await pool.call_tool("reviewer", wrong)


async def test_a_server_that_is_not_named_or_named_twice_is_told(pool, desk, monkeypatch):
    with pytest.raises(UserError, match="MCP server 'git' is not known"):
        await pool.session("git")
    pool.add("git", url="http://127.0.0.1:1/mcp")
    with pytest.raises(UserError, match="reached otherwise already"):
        pool.add("git", url="http://127.0.0.1:2/mcp")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="no program cortex on PATH"):
        await pool.get_or_create("reviewer")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"command": "mcp-server-git"}, "a list"),
        ({}, "by a command, by a url"),
        ({"command": ["a"], "url": "http://b"}, "by a command, by a url"),
        ({"url": "ftp://b"}, "url='ftp://b'"),
        ({"url": "http://b", "environment": {"A": "b"}}, "of a command"),
        ({"command": ["a"], "headers": {"A": "b"}}, "headers are of a URL"),
    ],
)
def test_a_server_that_cannot_be_reached_so_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        McpServerPool().add("one", **options)


def test_the_defaults_are_those_of_the_document():
    config = McpConfig()
    assert (config.protocol_version, config.request_timeout) == ("2024-11-05", 30.0)
    assert (config.max_retries, config.stdio_buffer, config.cortex_binary_path) == (3, 8192, None)
    assert McpConfig(cortex_binary_path="sh").default_command() == (shutil.which("sh"), "mcp", "stdio")
    with pytest.raises(UserError, match=r"protocol_version='1\.0'"):
        McpConfig(protocol_version="1.0")


async def test_a_pool_that_is_closed_says_so(desk):
    pool = McpServerPool()
    pool.add("desk", connect=in_memory(lambda key: desk.server()))
    session = await pool.session("desk")
    await pool.close()
    await pool.close()
    with pytest.raises(UserError, match="the McpServerPool is closed"):
        await session.call("add", {"a": 1, "b": 2})


async def test_a_pool_that_is_closed_ends_its_calls():
    started = asyncio.Event()
    here = asyncio.get_running_loop()

    async def hang(there, request):
        here.call_soon_threadsafe(started.set)

    pool = McpServerPool()
    pool.add("one", connect=peer(hang))
    session = await pool.session("one")
    calls = [asyncio.create_task(session.call("go")) for _ in range(20)]
    await started.wait()
    await pool.close()
    async with asyncio.timeout(60):
        ended = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(each) for each in ended} <= {McpConnectionLost, McpUnavailable, UserError}


async def test_a_pool_is_used_from_several_event_loops(desk):
    pool = McpServerPool()
    pool.add("desk", connect=in_memory(lambda key: desk.server()))
    tools = await asyncio.to_thread(asyncio.run, pool.tools("desk", only=["add"]))
    assert (await tools[0](a=1, b=1)).text == "2"
    await pool.close()


@pytest.mark.slow  # half a second of a core
def test_a_pool_without_the_sdk_says_what_to_install():
    program = "import sys; sys.modules['mcp'] = None; from sabot.mcp import McpServerPool; McpServerPool()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "MissingExtra: McpServerPool needs an optional package (pip install 'sabot[mcp]')" in done.stderr


async def test_a_close_that_is_cancelled_goes_on_and_the_next_one_waits_for_its_end(desk):
    """Its sessions, their servers and the thread stayed, and another close() did nothing."""
    leaving, gate, ended = threading.Event(), threading.Event(), threading.Event()
    connect = in_memory(lambda key: desk.server())

    @contextlib.asynccontextmanager
    async def slow(key, over):
        async with connect(key, over) as streams:
            try:
                yield streams
            finally:
                leaving.set()
                await asyncio.to_thread(gate.wait)
        ended.set()

    threads = set(threading.enumerate())
    pool = McpServerPool()
    pool.add("desk", connect=slow)
    await pool.session("desk")
    (thread,) = [each for each in set(threading.enumerate()) - threads if each.name == "sabot-mcp"]
    first = asyncio.create_task(pool.close())
    await asyncio.to_thread(leaving.wait)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    second = asyncio.create_task(pool.close())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not second.done()
    gate.set()
    await second
    assert ended.is_set()
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()
