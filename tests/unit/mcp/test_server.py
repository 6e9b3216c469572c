"""The MCP server, asked by the SDK's own client: inside the process, and over HTTP."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from sabot.base.redaction import HIDDEN, keep_secret
from sabot.errors import UserError
from sabot.llm import Effect, tool
from sabot.mcp import ToolServer

TOKEN = "a token of the tests"


@tool(effect="read")
async def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: The first.
    """
    return a + b


@tool
def send(to: str) -> dict[str, str]:
    return {"sent": to}


@dataclass
class Point:
    x: int
    y: int


def text_of(result: Any) -> str:
    (content,) = result.content
    return str(content.text)


@asynccontextmanager
async def client_of(*tools: Any, **options: Any) -> AsyncIterator[Client]:
    async with Client(ToolServer("test", tools, **options).server) as client:
        yield client


async def test_tools_are_offered_with_their_schema_and_what_their_class_says() -> None:
    async with client_of(add, send) as client:
        offered = {each.name: each for each in (await client.list_tools()).tools}
    assert offered["add"].description == "Add two numbers."
    assert offered["add"].input_schema["required"] == ["a"]
    hints = {name: each.annotations for name, each in offered.items()}
    assert (hints["add"].read_only_hint, hints["add"].idempotent_hint) == (True, True)
    assert (hints["send"].read_only_hint, hints["send"].idempotent_hint) == (False, False)


async def test_a_call_gives_text_and_the_same_as_data() -> None:
    async with client_of(add, send) as client:
        result = await client.call_tool("add", {"a": 2})
        assert (text_of(result), result.structured_content, result.is_error) == ("3", {"result": 3}, False)
        result = await client.call_tool("send", {"to": "ada"})
        assert (text_of(result), result.structured_content) == ('{"sent":"ada"}', {"sent": "ada"})


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("add", {"a": "x"}, "add does not take these arguments: Expected `int`, got `str`"),
        ("add", {"a": 1, "c": 1}, "add does not take these arguments"),
        ("add", {}, "add does not take these arguments"),
        ("refuse", {}, "no such order (look at the list)"),
        ("fail", {}, "fail failed: KeyError: 'x'"),
        ("hang", {}, "hang did not answer within 0.01 s"),
        ("odd", {}, "the result of odd cannot be written as JSON"),
        ("much", {}, "the result of much has 1,200 bytes of JSON, and 1,000 are the most (ask for less)"),
    ],
)
async def test_what_goes_wrong_in_a_call_is_a_result_that_a_model_can_read(
    name: str, arguments: dict[str, Any], said: str
) -> None:
    @tool
    def refuse() -> None:
        raise UserError("no such order", hint="look at the list")

    @tool
    async def fail() -> None:
        raise KeyError("x")

    @tool(timeout=0.01)
    async def hang() -> None:
        await asyncio.Event().wait()

    @tool
    def odd() -> object:
        return object()

    @tool
    def much() -> str:
        return "é" * 600  # of two bytes each

    async with client_of(add, refuse, fail, hang, odd, much, max_result_bytes=1000) as client:
        result = await client.call_tool(name, arguments)
    assert result.is_error
    assert text_of(result).startswith(said)


async def test_a_number_that_json_does_not_have_is_null() -> None:
    @tool
    def measure() -> list[float]:
        return [1.5, float("nan"), float("inf")]

    async with client_of(measure) as client:
        result = await client.call_tool("measure", {})
    assert (text_of(result), result.structured_content) == ("[1.5,null,null]", {"result": [1.5, None, None]})


async def test_a_tool_that_is_not_there_is_an_error_of_the_protocol() -> None:
    async with client_of(add) as client:
        with pytest.raises(MCPError, match="test has no tool 'remove': there are add"):
            await client.call_tool("remove", {})


async def test_secrets_of_this_process_are_hidden_in_results_and_errors() -> None:
    keep_secret("hunter2-of-the-server", "8127364554")

    @tool
    def tell() -> dict[str, Any]:
        return {"at": [Point(1, 8127364554), "so hunter2-of-the-server"]}

    @tool
    def fail() -> None:
        raise ValueError("bad hunter2-of-the-server")

    async with client_of(tell, fail) as client:
        result = await client.call_tool("tell", {})
        assert result.structured_content == {"at": [{"x": 1, "y": HIDDEN}, f"so {HIDDEN}"]}
        assert "hunter2" not in text_of(result)
        assert text_of(await client.call_tool("fail", {})) == f"fail failed: ValueError: bad {HIDDEN}"


async def test_so_many_calls_run_at_a_time_and_the_others_wait() -> None:
    running, most = 0, 0
    full, go_on = asyncio.Event(), asyncio.Event()

    @tool
    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 2:
            full.set()
        await go_on.wait()
        running -= 1

    async with client_of(work, concurrency=2) as client:
        calls = [asyncio.ensure_future(client.call_tool("work", {})) for _ in range(5)]
        await full.wait()
        go_on.set()
        await asyncio.gather(*calls)
    assert most == 2


def test_what_cannot_be_served_is_refused_at_the_start() -> None:
    @tool(effect="idempotent")
    def pay(effect: Effect) -> None: ...

    with pytest.raises(UserError, match="MCP server test: two tools are called add"):
        ToolServer("test", [add, add])
    with pytest.raises(UserError, match="tool pay takes an Effect, and a call from outside has none"):
        ToolServer("test", [pay])


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[str]:
    """The address of a server on HTTP, on a free port."""
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(
        ToolServer("test", [add]).serve_http(port=0, on_start=address.set_result, **options)
    )
    await asyncio.wait([serving, address], return_when=asyncio.FIRST_COMPLETED)
    try:
        yield await address if address.done() else await serving  # type: ignore[func-returns-value]
    finally:
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving


async def test_on_http_clients_call_with_the_token_and_not_without() -> None:
    async with served(token=TOKEN) as address, httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}) as http:
        async with Client(streamable_http_client(address, http_client=http)) as client:
            assert text_of(await client.call_tool("add", {"a": 2})) == "3"
        for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": ""}, {"Authorization": f"Basic {TOKEN}"}):
            answer = await http.post(address, json={}, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


async def test_on_this_machine_no_token_is_needed_and_no_page_in_a_browser_gets_in() -> None:
    ask = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    async with served() as address, httpx2.AsyncClient() as http:
        async with Client(streamable_http_client(address, http_client=http)) as client:
            assert text_of(await client.call_tool("add", {"a": 2})) == "3"
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            answer = await http.post(address, json=ask, headers=headers | {"Accept": "application/json"})
            assert answer.status_code in (403, 421)


async def test_an_address_that_others_reach_needs_a_token_and_a_good_one() -> None:
    server = ToolServer("test", [add])
    for host in ("0.0.0.0", "::", "example.com"):
        with pytest.raises(UserError, match=f"others can reach {host}, and there is no token"):
            await server.serve_http(host, 0)
    with pytest.raises(UserError, match="a token of 5 characters"):
        await server.serve_http("0.0.0.0", 0, token="short")


async def test_an_address_that_is_taken_is_named() -> None:
    async with served() as address:
        port = int(address.split(":")[2].removesuffix("/mcp"))
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            await ToolServer("test", [add]).serve_http(port=port)


async def test_a_failure_of_a_tool_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    @tool
    def fail() -> None:
        raise ZeroDivisionError

    async with client_of(fail) as client:
        with caplog.at_level(logging.ERROR, logger="sabot.mcp.server"):
            await client.call_tool("fail", {})
    (record,) = (each for each in caplog.records if each.name == "sabot.mcp.server")
    assert record.exc_info is not None


@pytest.mark.one_in(3, "a quarter of a second of a core each")
@pytest.mark.parametrize(
    "sent", [b"", b"POST /mcp HTTP/1.1\r\n", b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{"]
)
async def test_clients_are_answered_beside_hundreds_of_connections_that_send_no_request(sent: bytes) -> None:
    """64 of them took all places for as long as they liked: all other clients got the status 503."""
    async with served() as address, AsyncExitStack() as stack:
        host, port = address.removeprefix("http://").removesuffix("/mcp").split(":")
        before = len(os.listdir("/proc/self/fd"))
        idle = []
        for _ in range(300):
            _, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.close)
            writer.write(sent)
            idle.append(writer)
        async with httpx2.AsyncClient() as http, Client(streamable_http_client(address, http_client=http)) as client:
            assert text_of(await client.call_tool("add", {"a": 2})) == "3"
            slow = [client.call_tool("add", {"a": n}) for n in range(20)]
            assert [text_of(each) for each in await asyncio.gather(*slow)] == [str(n + 1) for n in range(20)]
        assert len(os.listdir("/proc/self/fd")) - before - len(idle) < 80
