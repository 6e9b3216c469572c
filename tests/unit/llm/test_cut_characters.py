"""An emoji that a proxy has cut into two escapes: the answer that was paid for is read, and the emoji is whole again."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import httpx2
import pytest

from sabot.llm import AnthropicProvider, Completion, ExecutionEngine, OpenAIProvider, Piece, Provider, RequestSpec, user

HIGH, LOW, LONE = r"\ud83d", r"\ude00", "\ufffd"


def chat(delta: str, **more: Any) -> str:
    """`delta` is JSON with escapes as they stand in it."""
    finish = json.dumps(more.get("finish"))
    return f'data: {{"id":"1","model":"m","choices":[{{"index":0,"delta":{delta},"finish_reason":{finish}}}]}}\n\n'


def chat_stream(texts: list[str]) -> list[str]:
    return [*(chat(f'{{"content":"{each}"}}') for each in texts), chat("{}", finish="stop"), "data: [DONE]\n\n"]


def messages(*events: str) -> list[str]:
    begin = '{"type":"message_start","message":{"id":"1","model":"m","usage":{"input_tokens":1,"output_tokens":1}}}'
    stop = '{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}'
    return [f"data: {each}\n\n" for each in (begin, *events, stop, '{"type":"message_stop"}')]


def messages_stream(texts: list[str], kind: str = "text") -> list[str]:
    delta = {"text": "text_delta", "thinking": "thinking_delta"}[kind]
    pieces = [
        f'{{"type":"content_block_delta","index":0,"delta":{{"type":"{delta}","{kind}":"{each}"}}}}' for each in texts
    ]
    start = f'{{"type":"content_block_start","index":0,"content_block":{{"type":"{kind}","{kind}":""}}}}'
    return messages(start, *pieces, '{"type":"content_block_stop","index":0}')


def responses_stream(texts: list[str]) -> list[str]:
    kind = "response.output_text.delta"
    pieces = [
        f'{{"type":"{kind}","item_id":"i","output_index":0,"content_index":0,"delta":"{each}"}}' for each in texts
    ]
    output = f'[{{"type":"message","content":[{{"type":"output_text","text":"{"".join(texts)}"}}]}}]'
    end = f'{{"type":"response.completed","response":{{"id":"1","model":"m","status":"completed","output":{output}}}}}'
    return [f"data: {each}\n\n" for each in (*pieces, end)]


STREAMS: dict[str, Callable[[list[str]], list[str]]] = {
    "chat": chat_stream,
    "responses": responses_stream,
    "messages": messages_stream,
}


class Wire(httpx2.AsyncBaseTransport):  # type: ignore[misc]
    """A vendor that answers these bytes, each part as a chunk of its own."""

    def __init__(self, parts: list[bytes], kind: str) -> None:
        self.parts, self.kind = parts, kind

    async def handle_async_request(self, request: Any) -> Any:
        parts = self.parts

        class Body(httpx2.AsyncByteStream):  # type: ignore[misc]
            async def __aiter__(self) -> AsyncIterator[bytes]:
                for part in parts:
                    yield part

        return httpx2.Response(200, headers={"content-type": self.kind}, stream=Body(), request=request)


def provider_of(api: str, parts: list[str] | list[bytes], kind: str = "text/event-stream") -> Provider:
    wire = Wire([each if isinstance(each, bytes) else each.encode() for each in parts], kind)
    if api == "messages":
        import anthropic

        client = anthropic.AsyncAnthropic(api_key="k", http_client=_client(anthropic, wire))
        return AnthropicProvider("m", client=client)
    import openai

    client = openai.AsyncOpenAI(api_key="k", http_client=_client(openai, wire))
    return OpenAIProvider("m", client=client, api=api)  # type: ignore[arg-type]


def _client(sdk: Any, wire: Wire) -> Any:
    return sdk.DefaultAsyncHttpxClient(transport=wire)


SPEC = RequestSpec(messages=(user("hi"),))


async def told(provider: Provider) -> tuple[list[Piece], Completion]:
    async with aclosing(provider.stream(SPEC)) as stream:
        pieces = [piece async for piece in stream]
    assert pieces[-1].completion is not None
    return pieces[:-1], pieces[-1].completion


@pytest.mark.one_in(12, "a tenth of a second of a core each")
@pytest.mark.parametrize("api", STREAMS)
@pytest.mark.parametrize(
    ("texts", "pieces"),
    [
        ([f"a{HIGH}", f"{LOW}b"], ["a", "\U0001f600b"]),
        ([f"a{HIGH}", "", f"{LOW}{HIGH}", LOW], ["a", "\U0001f600", "\U0001f600"]),
        ([f"a{HIGH}{LOW}", "b"], ["a\U0001f600", "b"]),
        ([f"a{HIGH}", "b"], ["a", f"{LONE}b"]),
        ([f"a{LOW}", f"{HIGH}b"], [f"a{LONE}", f"{LONE}b"]),
        (["a", HIGH], ["a", LONE]),
        ([f"a{HIGH.upper().replace('U', 'u')}", f"{LOW} ü \U0001f600"], ["a", "\U0001f600 ü \U0001f600"]),
        ([r"\\ud83d", "x"], [r"\ud83d", "x"]),
    ],
)
async def test_the_halves_of_a_character_are_joined_across_the_pieces_of_an_answer(
    api: str, texts: list[str], pieces: list[str]
) -> None:
    got, whole = await told(provider_of(api, STREAMS[api](texts)))
    assert [piece.text for piece in got] == pieces
    assert whole.content == "".join(pieces)


@pytest.mark.one_in(3, "half a second of a core each")
@pytest.mark.parametrize("api", STREAMS)
async def test_bytes_that_are_cut_within_a_character_are_joined(api: str) -> None:
    data = "".join(STREAMS[api](["a\U0001f600", "ü"])).encode()
    for size in (1, 7):
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        got, whole = await told(provider_of(api, parts))
        assert [piece.text for piece in got] == ["a\U0001f600", "ü"]
        assert whole.content == "a\U0001f600ü"


@pytest.mark.parametrize("api", STREAMS)
async def test_halves_in_utf_8_and_bytes_that_are_none_end_no_stream(api: str) -> None:
    data = "".join(STREAMS[api](["aHIGH", "LOWb", "BAD"])).encode()
    data = data.replace(b"HIGH", b"\xed\xa0\xbd").replace(b"LOW", b"\xed\xb8\x80").replace(b"BAD", b"c\xff")
    _, whole = await told(provider_of(api, [data]))
    # the whole text of a response comes in one event, whose bytes are no UTF-8 at all
    assert whole.content.replace(LONE, "") in ("a\U0001f600bc", "abc")


async def test_the_halves_in_the_arguments_of_two_calls_are_joined_to_their_own() -> None:
    def part(index: int, text: str, start: str = "") -> str:
        return chat(f'{{"tool_calls":[{{"index":{index},{start}"function":{{"arguments":"{text}"}}}}]}}')

    begin = ['"id":"c0",', '"id":"c1",']
    events = [part(0, r"{\"a\":\"" + HIGH, begin[0]), part(1, r"{\"b\":\"x" + HIGH, begin[1])]
    events += [part(0, LOW + r"\"}"), part(1, LOW + r"y\"}"), chat("{}", finish="tool_calls"), "data: [DONE]\n\n"]
    _, whole = await told(provider_of("chat", events))
    assert [json.loads(call.arguments) for call in whole.tool_calls] == [{"a": "\U0001f600"}, {"b": "x\U0001f600y"}]


async def test_the_halves_in_the_arguments_of_a_call_of_anthropic_are_joined() -> None:
    start = (
        '{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"c","name":"t","input":{}}}'
    )
    parts = [r"{\"a\":\"" + HIGH, LOW + r"\"}"]
    deltas = [
        f'{{"type":"content_block_delta","index":1,"delta":{{"type":"input_json_delta","partial_json":"{each}"}}}}'
        for each in parts
    ]
    events = messages(start, *deltas, '{"type":"content_block_stop","index":1}')
    got, whole = await told(provider_of("messages", events))
    assert json.loads(whole.tool_calls[0].arguments) == {"a": "\U0001f600"}
    assert [piece.tool_call for piece in got] == list(whole.tool_calls)


async def test_the_halves_in_reasoning_are_joined_apart_from_those_of_the_answer() -> None:
    events = [
        chat(f'{{"reasoning_content":"r{HIGH}"}}'),
        chat(f'{{"content":"a{HIGH}"}}'),
        chat(f'{{"reasoning_content":"{LOW}r"}}'),
        chat(f'{{"content":"{LOW}b"}}'),
        chat("{}", finish="stop"),
        "data: [DONE]\n\n",
    ]
    got, whole = await told(provider_of("chat", events))
    assert "".join(piece.reasoning for piece in got) == "r\U0001f600r"
    assert whole.content == "a\U0001f600b"
    got, whole = await told(provider_of("messages", messages_stream([f"t{HIGH}", f"{LOW}t"], "thinking")))
    assert "".join(piece.reasoning for piece in got) == "t\U0001f600t"
    assert whole.message.vendor == {"anthropic": [{"type": "thinking", "thinking": "t\U0001f600t"}]}


WHOLE = {
    "chat": '{"choices":[{"message":{"content":"TEXT"},"finish_reason":"stop"}]}',
    "responses": '{"output":[{"type":"message","content":[{"type":"output_text","text":"TEXT"}]}]}',
    "messages": '{"content":[{"type":"text","text":"TEXT"}],"stop_reason":"end_turn"}',
}


@pytest.mark.parametrize("api", WHOLE)
async def test_a_lone_half_in_a_whole_answer_is_a_replacement_character(api: str) -> None:
    for text, content in ((f"a{HIGH} b{LOW}", f"a{LONE} b{LONE}"), (f"a{HIGH}{LOW}", "a\U0001f600")):
        provider = provider_of(api, [WHOLE[api].replace("TEXT", text)], "application/json")
        assert (await provider.complete(SPEC)).content == content
        assert (await ExecutionEngine(provider).complete("hi")).content == content
