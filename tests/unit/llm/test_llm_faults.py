"""Models and providers that are hostile or broken, one after the other of what may come: what an agent does, and what an engine does."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import msgspec
import pytest

from sabot.clock import ManualClock
from sabot.engine.calls.tools import as_tool
from sabot.errors import IdempotencyConflict, TransientError
from sabot.llm import (
    AnswerTooLarge,
    AnthropicProvider,
    BudgetExceeded,
    CallBudget,
    Completion,
    Effect,
    ExecutionEngine,
    IdempotencyTracker,
    Limits,
    MalformedAnswer,
    MemoryCache,
    ModelTimeout,
    ModelUnavailable,
    OpenAIProvider,
    RequestContext,
    RequestRefused,
    ScriptedProvider,
    SqliteCache,
    ToolCall,
    Usage,
    assistant,
    tool,
)
from sabot.llm.agent import Agent
from sabot.llm.direct import DirectEffects
from sabot.testing import FakeModelServer
from sabot.testing.http_server import HttpExchange, HttpServer

# -- calls of tools -----------------------------------------------------------------------------------------------------------


class Line(msgspec.Struct, forbid_unknown_fields=True):
    sku: str
    count: int


class Shop:
    """A tool that takes all kinds of arguments, and an agent whose model calls it once with these."""

    def __init__(self) -> None:
        self.orders: list[dict[str, Any]] = []

        @tool(effect="read")
        async def order(
            effect: Effect,
            text: str = "",
            count: int = 0,
            price: float = 0.0,
            lines: list[Line] | None = None,
            extra: dict[str, Any] | None = None,
        ) -> str:
            assert isinstance(effect, Effect)
            self.orders.append({"text": text, "count": count, "price": price, "lines": lines, "extra": extra})
            return "ordered"

        self.tool = order

    async def told(self, arguments: str, name: str = "order") -> tuple[bool, str]:
        """Whether the model is told of an error, and in what words."""
        provider = ScriptedProvider([assistant("", ToolCall("c0", name, arguments)), "done"])
        result = await Agent(ExecutionEngine(provider, retries=0), tools=[self.tool]).run("go")
        assert (result.content, result.turns) == ("done", 2)
        asked, answer = provider.requests[-1].messages[-2:]
        assert asked.tool_calls[0].id == answer.tool_call_id == "c0", "no call stands there without its result"
        assert len(asked.tool_calls[0].arguments) <= 100_000
        return answer.is_error, answer.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ('{"extra": {"a": ' + "[" * 40_000 + "]" * 40_000 + "}}", "recursion"),
        ('{"extra": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}", "600,017 characters"),
        ('{"text": "' + "x" * 1_000_000 + '"}', "1,000,017 characters, and may have 100,000: it was not called"),
        ('{"' + "x" * 1_000_000 + '": 1}', "1,000,012 characters"),
        ('{"count": "7"}', "Expected `int`, got `str` - at `$.count`"),
        ('{"count": true}', "got `bool`"),
        ('{"count": 1.5}', "got `float`"),
        ('{"count": ' + "9" * 5000 + "}", "out of range"),
        ('{"price": NaN}', "no JSON"),
        ('{"price": 1e999}', "out of range"),
        ('{"price": "NaN"}', "Expected `float`"),
        ('{"text": "\\ud800"}', "no JSON"),
        ('{"text": "a", "nope": 1}', "nope"),
        ('{"__class__": {"x": 1}}', "__class__"),
        ('{"lines": [{"sku": "a", "count": 1, "__class__": "os.system"}]}', "__class__"),
        ('{"lines": [{"sku": "a"}]}', "`count` - at `$.lines[0]`"),
        ('{"effect": {"key": "mine"}}', "effect"),
        ('{"text": "a"} {"text": "b"}', "no JSON"),
        ("[1]", "got `array`"),
    ],
    ids=lambda each: each[:24],
)
async def test_hostile_arguments_are_refused_in_words_that_the_model_gets(arguments: str, words: str) -> None:
    shop = Shop()
    is_error, said = await shop.told(arguments)
    assert (is_error, shop.orders) == (True, [])
    assert words in said
    assert len(said) < 300


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        ('{"text": "' + "x" * 90_000 + '"}', "text", "x" * 90_000),
        ('{"text": "a\\u0000\\u202eb"}', "text", "a\0\u202eb"),
        ('{"extra": {"__class__": "os.system", "__init__": {}}}', "extra", {"__class__": "os.system", "__init__": {}}),
        ('{"count": 99999999999999999999}', "count", 99999999999999999999),
        ("", "text", ""),
        (" ", "text", ""),
        ("null", "text", ""),
    ],
    ids=["long", "controls", "names of Python", "above 64 bits", "nothing", "a space", "null"],
)
async def test_odd_arguments_of_the_right_types_are_values_and_nothing_more(
    arguments: str, field: str, value: Any
) -> None:
    shop = Shop()
    assert await shop.told(arguments) == (False, "ordered")
    assert [order[field] for order in shop.orders] == [value]


async def test_too_long_arguments_are_left_out_and_what_the_vendor_wants_back_with_the_call_is_not() -> None:
    """Without its reasoning, a vendor refused the next request."""
    long = msgspec.json.encode({"text": "x" * 200_000}).decode()
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "c2lnbmVk"}
    vendor: dict[str, Any] = {
        "anthropic": [thought, {"type": "tool_use", "id": "c0", "name": "order", "input": msgspec.json.decode(long)}],
        "openai.responses": [
            {"type": "reasoning", "id": "rs"},
            {"type": "function_call", "call_id": "c0", "name": "order", "arguments": long},
        ],
        "openai.chat": {"reasoning_content": "Hm."},
    }
    call = ToolCall("c0", "order", long, vendor={"openai.chat h": {"extra_content": 1}})
    provider = ScriptedProvider([msgspec.structs.replace(assistant("", call), vendor=vendor), "done"])
    await Agent(ExecutionEngine(provider, retries=0), tools=[Shop().tool]).run("go")
    kept = provider.requests[-1].messages[1]
    assert kept.tool_calls == (ToolCall("c0", "order", "{}", vendor=call.vendor),)
    assert kept.vendor == {
        "anthropic": [thought, {"type": "tool_use", "id": "c0", "name": "order", "input": {}}],
        "openai.responses": [
            {"type": "reasoning", "id": "rs"},
            {"type": "function_call", "call_id": "c0", "name": "order", "arguments": "{}"},
        ],
        "openai.chat": {"reasoning_content": "Hm."},
    }


async def test_a_tool_whose_name_is_endless_is_not_there() -> None:
    shop = Shop()
    assert await shop.told("{}", "n" * 90_000) == (True, await _no_such_tool("n" * 90_000))
    is_error, said = await shop.told("{}", "n" * 1_000_000)
    assert is_error
    assert "1,000,002 characters" in said


async def _no_such_tool(name: str) -> str:
    return f"ToolError: there is no tool '{name[:198]}…; tools are: order"


@pytest.fixture
async def provider_of() -> AsyncIterator[Callable[[str, str], Any]]:
    """Makes providers that do not read the certificates of the machine, which takes as long as a test."""
    import anthropic  # not by each process that collects the tests: the two take a second
    import openai

    clients: list[Any] = []

    def make(kind: str, url: str) -> Any:
        sdk: Any = anthropic if kind == "messages" else openai
        clients.append(sdk.DefaultAsyncHttpxClient(verify=False))
        if kind == "messages":
            client = anthropic.AsyncAnthropic(api_key="any", base_url=url, http_client=clients[-1])
            return AnthropicProvider("model-1", client=client)
        api: Any = kind
        chat = openai.AsyncOpenAI(api_key="any", base_url=f"{url}/v1", http_client=clients[-1])
        return OpenAIProvider("model-1", client=chat, api=api)

    yield make
    for each in clients:
        await each.aclose()


# -- answers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # 10 MB; the bound itself is tested above
@pytest.mark.parametrize(("kind", "way"), [("chat", "whole"), ("responses", "stream")])
async def test_an_answer_of_ten_megabytes_is_an_answer_to_an_agent_too(kind: str, way: str, provider_of: Any) -> None:
    text = "x" * 10_000_000
    with FakeModelServer((text[:5_000_000], text[5_000_000:])) as server:
        async with ExecutionEngine(provider_of(kind, server.url)) as engine:
            agent = Agent(engine)
            if way == "whole":
                result = await agent.run("go")
            else:
                async with aclosing(agent.stream("go")) as events:
                    result = [event async for event in events][-1]
            assert result.content == text
        assert len(server.requests) == 1


class Endless:
    """A server whose answers do not end. sent: bytes that it could write before the caller went."""

    def __init__(self, begin: bytes, again: bytes) -> None:
        self.sent = 0
        self.gone = asyncio.Event()
        self._begin = begin
        self._again = again

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request."""
        await reader.readuntil(b"\r\n\r\n")
        try:
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nx-request-id: req-1\r\n")
            writer.write(b"Content-Type: application/json\r\n\r\n" + self._begin)
            while True:
                writer.write(self._again)
                await writer.drain()
                self.sent += len(self._again)
        except OSError:
            self.gone.set()
        finally:
            writer.close()


async def read(engine: ExecutionEngine, way: str) -> int:
    """Asks, and returns the number of characters that came."""
    if way == "whole":
        return len((await engine.complete("go")).content)
    async with aclosing(engine.stream("go")) as pieces:
        return sum([len(piece.text) async for piece in pieces])


@asynccontextmanager
async def endless(begin: bytes, again: bytes) -> AsyncIterator[tuple[Endless, str]]:
    server = Endless(begin, again)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listening:
        yield server, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


_DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"word " * 20)


@pytest.mark.slow  # two seconds of a core
@pytest.mark.parametrize(
    ("kind", "way", "begin", "again"),
    [
        ("chat", "whole", b'{"choices": [{"message": {"content": "', b"x" * 65536),
        ("messages", "whole", b'{"content": [{"type": "text", "text": "', b"x" * 65536),
        ("responses", "stream", b'data: {"type": "response.output_text.delta", "delta": "', b"x" * 65536),
        ("chat", "stream", b"", _DELTA * 500),
        ("messages", "stream", b"", b": nothing\n\n" * 5000),
    ],
    ids=["whole", "whole message", "one event", "events", "comments"],
)
async def test_an_answer_that_does_not_end_is_refused_and_not_read_on(
    kind: str, way: str, begin: bytes, again: bytes, provider_of: Any
) -> None:
    async with (
        endless(begin, again) as (server, url),
        ExecutionEngine(provider_of(kind, url), max_answer_bytes=1_000_000) as engine,
    ):
        with pytest.raises(AnswerTooLarge, match="request req-1: the answer has more than 1,000,000 bytes") as caught:
            await read(engine, way)
        await server.gone.wait()  # the connection was closed
        figures = engine.statistics()
    error = caught.value
    assert (error.provider, error.model, error.request_id) == (engine.provider.name, "model-1", "req-1")
    assert "max_answer_bytes" in error.hint
    assert server.sent < 30_000_000, "what is beyond the limit waits in the sockets at most"
    assert (figures["attempts"], figures["failed"], figures["retries"]) == (1, 1, 0), "it is not asked for again"


# -- servers that know no streams ---------------------------------------------------------------------------------------------

_CALL = {"name": "look", "arguments": "{}"}
_WHOLE = {
    "chat": {
        "choices": [
            {"finish_reason": "stop", "message": {"content": "hi", "tool_calls": [{"id": "c", "function": _CALL}]}}
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    },
    "responses": {
        "output": [
            {"type": "message", "content": [{"type": "output_text", "text": "hi"}]},
            {"type": "function_call", "call_id": "c", **_CALL},
        ],
        "usage": {"input_tokens": 3, "output_tokens": 2},
    },
    "messages": {
        "content": [{"type": "text", "text": "hi"}, {"type": "tool_use", "id": "c", "name": "look", "input": {}}],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 3, "output_tokens": 2},
    },
}


@asynccontextmanager
async def saying(*parts: bytes) -> AsyncIterator[tuple[list[int], str]]:
    """A server that answers each request so, whatever is asked, and counts them."""
    asked: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.append(1)
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % sum(map(len, parts)))
        for part in parts:
            writer.write(part)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield asked, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("kind", list(_WHOLE))
async def test_a_whole_answer_to_a_request_for_a_stream_is_read_and_not_paid_again(
    kind: str, provider_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    body = msgspec.json.format(msgspec.json.encode(_WHOLE[kind]))  # of several lines
    async with saying(body[:1], body[1:]) as (asked, url), ExecutionEngine(provider_of(kind, url)) as engine:
        for _ in range(2):
            async with aclosing(engine.stream("go")) as stream:
                pieces = [piece async for piece in stream]
            assert [each.text for each in pieces] == ["hi", "", ""]
            assert pieces[1].tool_call == ToolCall("c", "look", "{}")
            answer = pieces[2].completion
            assert answer is not None
            assert (answer.content, answer.tool_calls, answer.usage) == ("hi", (pieces[1].tool_call,), Usage(3, 2))
        figures = engine.statistics()
    assert (len(asked), figures["attempts"], figures["output_tokens"]) == (2, 2, 4)
    said = [each.getMessage() for each in caplog.records if each.name == "sabot.llm"]
    assert said == [f"{engine.provider.name} at {said[0].split()[2]} does not stream: each answer comes as a whole"]


@pytest.mark.parametrize("kind", list(_WHOLE))
@pytest.mark.parametrize("body", [b"<html>busy</html>", b'["hi"]', b'{"choices"', b"hello"])
async def test_what_is_neither_a_stream_nor_an_answer_is_not_asked_for_again(
    body: bytes, kind: str, provider_of: Any
) -> None:
    async with saying(body) as (asked, url), ExecutionEngine(provider_of(kind, url)) as engine:
        with pytest.raises(MalformedAnswer) as caught:
            await read(engine, "stream")
        assert caught.value.text == body.decode()
        assert len(asked) == 1


@pytest.mark.parametrize("body", [b"", b"\n\n", b": busy\n\n", b"event: message_start\n", b"da"])
async def test_a_stream_that_ends_before_its_first_event_has_broken_off(body: bytes, provider_of: Any) -> None:
    async with saying(body) as (_, url), ExecutionEngine(provider_of("chat", url), retries=0) as engine:
        with pytest.raises(ModelUnavailable, match="broke off"):
            await read(engine, "stream")


# -- answers with more around them than the vendors' documents say ------------------------------------------------------------

_MARK = b"\xef\xbb\xbf"
_EVENTS: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {"choices": [{"delta": {"content": "Ro"}}]},
        {"choices": [{"delta": {"content": "me"}, "finish_reason": "stop"}]},
    ],
    "responses": [
        {"type": "response.output_text.delta", "delta": "Ro"},
        {"type": "response.output_text.delta", "delta": "me"},
        {
            "type": "response.completed",
            "response": {
                "id": None,
                "output": [{"type": "message", "content": [{"type": "output_text", "text": "Rome"}]}],
            },
        },
    ],
    "messages": [
        {"type": "message_start", "message": {"id": None, "usage": None}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Ro"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "me"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
    ],
}
_PINGS: list[Any] = [
    {},
    {"type": None},
    {"choices": None},
    {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]},
    {"id": "1", "object": "chat.completion.chunk"},
]


def events_of(kind: str, *, ping: Any = None, end: bytes = b"\n\n") -> bytes:
    """The stream of an answer, with `ping` before each event and after the last, and with `end` at its end."""
    asked = [each for event in _EVENTS[kind] for each in ((event,) if ping is None else (ping, event))]
    asked += [] if ping is None else [ping]
    return (
        b"\n\n".join(b"data: " + (each if isinstance(each, bytes) else msgspec.json.encode(each)) for each in asked)
        + end
    )


_ROUND: dict[str, Callable[[str], list[bytes]]] = {
    "a byte order mark": lambda kind: [_MARK + events_of(kind)],
    "a mark that is cut": lambda kind: [_MARK[:1], _MARK[1:] + events_of(kind)],
    "a mark before each event": lambda kind: [events_of(kind).replace(b"data:", _MARK + b"data:")],
    "no line after the last event": lambda kind: [events_of(kind, end=b"")],
    "an event without data": lambda kind: [events_of(kind, ping=b"")],
    **{f"pings {ping}": lambda kind, ping=ping: [events_of(kind, ping=ping)] for ping in _PINGS},  # type: ignore[misc]
    "a mark and the whole answer": lambda kind: [_MARK + msgspec.json.encode(_WHOLE[kind])],
}


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("around", list(_ROUND))
@pytest.mark.parametrize("kind", list(_WHOLE))
async def test_what_stands_around_the_events_of_a_stream_is_no_part_of_the_answer(
    kind: str, around: str, provider_of: Any
) -> None:
    async with (
        saying(*_ROUND[around](kind)) as (asked, url),
        ExecutionEngine(provider_of(kind, url)) as engine,
        aclosing(engine.stream("go")) as stream,
    ):
        pieces = [piece async for piece in stream]
    answer = pieces[-1].completion
    assert answer is not None
    assert answer.content == "".join(each.text for each in pieces) == ("hi" if "whole" in around else "Rome")
    assert len(asked) == 1


@pytest.mark.parametrize("kind", list(_WHOLE))
async def test_a_byte_order_mark_before_a_whole_answer_or_an_error_is_no_part_of_it(
    kind: str, provider_of: Any
) -> None:
    for body in (_WHOLE[kind], {"error": {"message": "busy", "type": "overloaded_error"}}):
        async with (
            saying(_MARK + msgspec.json.encode(body)) as (_, url),
            ExecutionEngine(provider_of(kind, url), retries=0) as engine,
        ):
            if "error" in body:
                with pytest.raises(ModelUnavailable, match="busy"):
                    await engine.complete("go")
            else:
                assert (await engine.complete("go")).content == "hi"


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("kind", list(_WHOLE))
@pytest.mark.parametrize("ping", [{"error": {"message": "busy"}}, {"error": "busy", "choices": None}], ids=str)
async def test_an_error_among_the_pings_of_a_stream_is_an_error(kind: str, ping: Any, provider_of: Any) -> None:
    async with saying(events_of(kind, ping=ping)) as (_, url), ExecutionEngine(provider_of(kind, url)) as engine:
        with pytest.raises(ModelUnavailable, match="busy"):
            await read(engine, "stream")


@pytest.mark.parametrize("kind", list(_WHOLE))
async def test_an_event_that_is_cut_off_at_the_end_has_broken_off(kind: str, provider_of: Any) -> None:
    cut = events_of(kind, end=b"")[:-2]
    async with saying(cut) as (_, url), ExecutionEngine(provider_of(kind, url), retries=0) as engine:
        with pytest.raises(ModelUnavailable, match="broke off"):
            await read(engine, "stream")


# -- what a server says with its refusal --------------------------------------------------------------------------------------


@contextmanager
def refusing(status: int, headers: dict[str, str], error: Any, times: int = 100) -> Iterator[tuple[list[Any], str]]:
    """A server that refuses so many requests, and then answers "hi". It keeps the bodies of the requests."""
    asked: list[Any] = []

    async def serve(exchange: HttpExchange) -> None:
        asked.append(msgspec.json.decode(exchange.request.body))
        kind = {"completions": "chat"}.get(exchange.request.path.rpartition("/")[2], exchange.request.path[4:])
        if len(asked) <= times:
            exchange.answer(status, error, headers)
        else:
            exchange.answer(200, _WHOLE[kind], {})

    server = HttpServer(serve)
    server.start()
    try:
        yield asked, f"http://127.0.0.1:{server.port}"
    finally:
        server.stop()


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("way", ["whole", "stream"])
@pytest.mark.parametrize("kind", list(_WHOLE))
@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
async def test_a_server_that_says_that_a_repetition_fails_is_not_asked_again_and_the_fallback_is(
    kind: str, status: int, way: str, provider_of: Any, time: Any
) -> None:
    told = {"error": {"message": "not again"}}
    with refusing(status, {"x-should-retry": "false", "Retry-After": "5"}, told) as (asked, url):
        async with ExecutionEngine(provider_of(kind, url), **time.options()) as engine:
            with pytest.raises(TransientError, match="not again") as caught:
                await read(engine, way)
            assert not caught.value.may_repeat  # type: ignore[attr-defined]
        other = ScriptedProvider("from the other")
        async with ExecutionEngine(provider_of(kind, url), fallback=[other], **time.options()) as engine:
            assert await read(engine, way) == len("from the other")
        assert (len(asked), time.slept) == (2, [])


@pytest.mark.parametrize("kind", list(_WHOLE))
async def test_a_refusal_that_asks_for_a_repetition_is_repeated(kind: str, provider_of: Any, time: Any) -> None:
    with refusing(400, {"x-should-retry": "true"}, {"error": {"message": "busy"}}, times=2) as (asked, url):
        async with ExecutionEngine(provider_of(kind, url), **time.options()) as engine:
            assert await read(engine, "whole") == 2
        assert (len(asked), len(time.slept)) == (3, 2)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (400, {"error": {"message": "Unrecognized request argument supplied: stream_options"}}),
        (422, {"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted", "input": {}}]}),
        (400, {"object": "error", "message": "stream_options is not supported", "code": 400}),
    ],
)
async def test_a_server_that_refuses_stream_options_is_asked_again_without_them(
    status: int, told: Any, provider_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The usage is not told then, so the reservation counts."""
    with refusing(status, {}, told, times=1) as (asked, url):
        async with ExecutionEngine(provider_of("chat", url), retries=0, budget=CallBudget(max_tokens=1000)) as engine:
            for _ in range(2):
                assert await read(engine, "stream") == 2
        assert ["stream_options" in each for each in asked] == [True, False, False]
    said = [each.getMessage() for each in caplog.records if "stream_options" in each.getMessage()]
    assert len(said) == 1


async def test_a_server_that_refuses_another_field_is_not_asked_again(provider_of: Any) -> None:
    told = {"detail": [{"loc": ["body", "tools"], "msg": "Extra inputs are not permitted"}]}
    with refusing(422, {}, told) as (asked, url):
        async with ExecutionEngine(provider_of("chat", url)) as engine:
            with pytest.raises(RequestRefused, match=r"422: body\.tools: Extra inputs are not permitted"):
                await read(engine, "stream")
        assert len(asked) == 1


# -- what is used -------------------------------------------------------------------------------------------------------------


def used(usage: Usage | None) -> Completion:
    return Completion(message=assistant("four words of answer"), usage=usage)


async def test_a_budget_holds_where_the_provider_does_not_say_what_was_used() -> None:
    engine = ExecutionEngine(ScriptedProvider(used(None)), budget=CallBudget(max_tokens=20))
    for _ in range(2):  # what was reserved: 2 to be read, 5 to be written
        assert (await engine.complete("12345678", max_tokens=5)).usage is None
    with pytest.raises(BudgetExceeded, match="14 used"):
        await engine.complete("12345678", max_tokens=5)


@pytest.mark.parametrize("kind", list(_WHOLE))
async def test_a_budget_of_20_000_tokens_lets_one_answer_of_50_041_pass_and_not_ten(
    kind: str, provider_of: Any
) -> None:
    """The reasoning was told beside the output; the usage counted as unknown, so each call as what was reserved."""
    with FakeModelServer(used(Usage(20, 21, reasoning_tokens=50_000))) as server:
        async with ExecutionEngine(provider_of(kind, server.url), budget=CallBudget(max_tokens=20_000)) as engine:
            answer = await engine.complete("12345678", max_tokens=100)
            assert answer.usage == Usage(20, 50_021, reasoning_tokens=50_000)
            with pytest.raises(BudgetExceeded, match="50041 used"):
                await engine.complete("12345678", max_tokens=100)
        assert len(server.requests) == 1


@pytest.mark.parametrize("lie", [-5, 10**30, 10**400])
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_usage_that_is_a_lie_is_not_counted_and_not_kept(
    lie: int, kind: str, tmp_path: Any, provider_of: Any
) -> None:
    cache = MemoryCache() if kind == "memory" else SqliteCache(tmp_path / "cache")
    with FakeModelServer(used(Usage(7, lie))) as server:
        async with ExecutionEngine(
            provider_of("chat", server.url), cache=cache, budget=CallBudget(max_tokens=100)
        ) as engine:
            for cached in (False, True):
                answer = await engine.complete("12345678")
                assert (answer.content, answer.usage, answer.cached) == ("four words of answer", None, cached)
            figures = engine.statistics()
    assert (figures["input_tokens"], figures["output_tokens"]) == (0, 0)


# -- providers ----------------------------------------------------------------------------------------------------------------


async def test_an_agent_waits_until_a_provider_is_back_after_a_minute(time: Any) -> None:
    def answer(spec: Any) -> Any:
        if time.clock.monotonic() < began + 60:
            return ModelUnavailable("down")
        return "back"

    began = time.clock.monotonic()
    provider = ScriptedProvider(answer)
    engine = ExecutionEngine(provider, retries=10, **time.options())
    assert (await Agent(engine).run("go")).content == "back"
    assert sum(time.slept) >= 60
    assert len(provider.requests) <= 11


async def test_a_slow_provider_is_a_timeout_of_each_attempt_and_then_of_the_call(time: Any, provider_of: Any) -> None:
    with FakeModelServer(("a", "b", "c")) as server:
        engine = ExecutionEngine(provider_of("chat", server.url), timeout=0.05, retries=1, **time.options())
        async with engine:
            server.hold()  # whether a request comes there within its time, on a busy machine too, or not
            with pytest.raises(ModelTimeout, match=r"no answer in 0\.05 s"):
                await engine.complete("go")
            assert len(time.slept) == 1, "there were two attempts"
            server.release()
            assert (await engine.complete("go", timeout="60s")).content == "abc"


async def gather(agent: Agent, texts: list[str]) -> None:
    """Reads the texts of a run as they come."""
    async with aclosing(agent.stream("go")) as events:
        async for event in events:
            texts.append(event.text)


@pytest.mark.parametrize("kind", ["chat", "responses", "messages"])
async def test_half_of_a_stream_is_told_and_no_agent_takes_it_for_an_answer(kind: str, provider_of: Any) -> None:
    with FakeModelServer(("One ", "two ", "three ", "four")) as server:
        async with ExecutionEngine(provider_of(kind, server.url), retries=3, backoff=0) as engine:
            server.plan("truncate")
            texts: list[str] = []
            with pytest.raises(ModelUnavailable):
                await gather(Agent(engine), texts)
            assert "".join(texts) == "One two "
            assert len(server.requests) == 1, "what was read cannot be taken back"


async def test_two_calls_with_one_key_and_different_content_are_one_call_and_a_conflict_in_flight_too(
    provider_of: Any,
) -> None:
    with FakeModelServer("yes") as server:
        async with ExecutionEngine(provider_of("chat", server.url), idempotency_tracker=IdempotencyTracker()) as engine:
            server.hold()
            first = asyncio.create_task(engine.complete("one", idempotency_key="k"))
            await asyncio.to_thread(server.wait, lambda: server.in_flight == 1)
            with pytest.raises(IdempotencyConflict):
                await engine.complete("two", idempotency_key="k")
            with pytest.raises(IdempotencyConflict):
                await engine.complete("one", idempotency_key="k", temperature=0)
            server.release()
            assert (await first).content == "yes"
            with pytest.raises(IdempotencyConflict):
                async with aclosing(engine.stream("two", idempotency_key="k")) as pieces:
                    await anext(pieces)
        assert len(server.requests) == 1


# -- tools that do not return ---------------------------------------------------------------------------------------------


async def test_a_sync_tool_that_blocks_holds_up_its_own_run_alone() -> None:
    free, began = threading.Event(), threading.Event()

    @tool(effect="read")
    def blocks() -> str:
        began.set()
        assert free.wait(60)
        return "at last"

    def answer(spec: Any) -> Any:
        if spec.messages[0].text == "block" and spec.messages[-1].role == "user":
            return assistant("", ToolCall("c0", "blocks", "{}"))
        return "done"

    agent = Agent(ExecutionEngine(ScriptedProvider(answer), limits=Limits(concurrency=4)), tools=[blocks])
    blocked = asyncio.create_task(agent.run("block"))
    await asyncio.to_thread(began.wait)
    for _ in range(3):
        assert (await agent.run("go")).content == "done"
    assert not blocked.done()
    free.set()
    assert (await blocked).content == "done"


async def test_sync_tools_that_never_return_are_told_and_hold_up_nobody_else() -> None:
    free = threading.Event()

    @tool(effect="read", timeout="10ms", retries=0)
    def hangs() -> None:
        free.wait(60)

    @tool(effect="read")
    def quick() -> str:
        return "here"

    asked = [ToolCall(f"c{number}", "hangs", "{}") for number in range(40)]
    provider = ScriptedProvider([assistant("", *asked), assistant("", ToolCall("c0", "quick", "{}")), "done"])
    agent = Agent(ExecutionEngine(provider), tools=[hangs, quick], max_concurrent_tools=40)
    try:
        result = await agent.run("go")
        assert await asyncio.to_thread(str, 7) == "7", "the threads that look addresses up are others"
    finally:
        free.set()
    told = [message.text for message in result.messages if message.role == "tool"]
    assert told == ["ToolTimeout: hangs did not return within 0.01 s"] * 40 + ["here"]


async def test_an_async_tool_that_blocks_the_loop_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()

    @tool(effect="read")
    async def polite() -> str:
        for _ in range(5):
            clock.advance(0.9)
            await asyncio.sleep(0)
        return "fine"

    @tool(effect="read", retries=0)
    async def blocks() -> None:
        await asyncio.sleep(0)
        clock.advance(3.0)
        raise OSError("gone")

    alone = DirectEffects(ExecutionEngine(ScriptedProvider("yes")), RequestContext(), clock)
    assert await alone.call(as_tool(polite, timeout="30s"), {}) == "fine"
    assert caplog.records == []
    with pytest.raises(OSError, match="gone"):
        await alone.call(as_tool(blocks, timeout="30s"), {})
    (record,) = caplog.records
    assert "tool blocks blocked the event loop for 3.0 s" in record.getMessage()
