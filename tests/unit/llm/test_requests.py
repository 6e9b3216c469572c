"""Requests as the vendors' documents write them, and what servers that only resemble a vendor's answer."""

import asyncio
import json
import math
import sys
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from sabot.base.redaction import scrubbed
from sabot.errors import UserError
from sabot.llm import (
    Agent,
    AnthropicProvider,
    ChatMessage,
    ExecutionEngine,
    Image,
    MalformedAnswer,
    ModelTimeout,
    ModelUnavailable,
    OpenAIProvider,
    RateLimited,
    RequestRefused,
    RequestSpec,
    ScriptedProvider,
    ToolCall,
    ToolSchema,
    Usage,
    assistant,
    system,
    tool_result,
    user,
)
from sabot.llm.providers.anthropic import _MessagesDecoder
from sabot.llm.providers.openai_chat import ChatDecoder, chat_request, usage_in
from sabot.llm.providers.openai_responses import responses_request
from sabot.llm.providers.sdk import SdkCalls, is_strict
from sabot.testing import FakeModelServer

STRICT = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
LOOSE = {"type": "object", "properties": {"city": {"type": "string"}}}
PICTURE = Image(data=b"abc", media_type="image/png")
CONVERSATION = (
    system("Be short."),
    user("What is this?", PICTURE),
    assistant("", ToolCall("call_1", "look", '{"city": "Rome"}')),
    tool_result("call_1", "no such city", is_error=True),
    user("Go on."),
)
SPEC = RequestSpec(
    messages=CONVERSATION,
    tools=(ToolSchema("look", "Looks.", STRICT), ToolSchema("find", "Finds.", LOOSE)),
    tool_choice="required",
    output=STRICT,
    output_name="place",
    temperature=0.0,
    max_tokens=9,
    stop=("END",),
)
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"city": "Rome"}'}}


class Client:
    """What `SdkCalls` wants of a client, for answers that are not fetched."""

    api_key = None
    base_url = SimpleNamespace(host="nowhere")

    def with_options(self, max_retries):
        assert max_retries == 0
        return self


@pytest.fixture
def calls():
    import openai  # not by each process that collects the tests

    return SdkCalls("openai", openai, "OpenAI", lambda client: {}, client=Client(), api_key=None, base_url=None)


def test_chat_completions():
    body = chat_request(SPEC, "gpt", is_openai=True, stream=True)
    assert body == {
        "model": "gpt",
        "messages": [
            {"role": "system", "content": "Be short."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,YWJj"}},
                ],
            },
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "no such city", "tool_call_id": "call_1"},
            {"role": "user", "content": "Go on."},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "look", "description": "Looks.", "parameters": STRICT, "strict": True},
            },
            {"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": LOOSE}},
        ],
        "tool_choice": "required",
        "temperature": 0.0,
        "max_completion_tokens": 9,
        "stop": ["END"],
        "response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": STRICT, "strict": True}},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert chat_request(SPEC, "llama", is_openai=False, stream=False)["max_tokens"] == 9


def test_responses():
    spec = RequestSpec(messages=CONVERSATION, tools=SPEC.tools, output=LOOSE, max_tokens=9, model="gpt-5")
    assert responses_request(spec, "gpt", stream=False) == {
        "model": "gpt-5",
        "input": [
            {"role": "system", "content": "Be short."},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is this?"},
                    {"type": "input_image", "image_url": "data:image/png;base64,YWJj"},
                ],
            },
            {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": '{"city": "Rome"}'},
            {"type": "function_call_output", "call_id": "call_1", "output": "no such city"},
            {"role": "user", "content": "Go on."},
        ],
        "tools": [
            {"type": "function", "name": "look", "description": "Looks.", "parameters": STRICT, "strict": True},
            {"type": "function", "name": "find", "description": "Finds.", "parameters": LOOSE, "strict": False},
        ],
        "max_output_tokens": 9,
        "text": {"format": {"type": "json_schema", "name": "answer", "schema": LOOSE, "strict": False}},
    }


@pytest.mark.slow  # a second of a core
async def test_messages():
    with FakeModelServer("yes") as server:
        provider = AnthropicProvider("claude", base_url=server.anthropic_url, api_key="any", max_tokens=100)
        await provider.complete(SPEC)
        await provider.complete(RequestSpec(messages=(user("hi"), assistant("yes"), assistant(""), user("", PICTURE))))
        await provider.close()
    first, second = (request.body for request in server.requests)
    assert first == {
        "model": "claude",
        "max_tokens": 9,
        "system": "Be short.",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": "YWJj"},
                    },
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "call_1", "name": "look", "input": {"city": "Rome"}}],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "call_1",
                        "content": "no such city",
                        "is_error": True,
                    },
                    {"type": "text", "text": "Go on."},
                ],
            },
        ],
        "tools": [
            {"name": "look", "description": "Looks.", "input_schema": STRICT},
            {"name": "find", "description": "Finds.", "input_schema": LOOSE},
        ],
        "tool_choice": {"type": "any"},
        "temperature": 0.0,
        "stop_sequences": ["END"],
        "output_config": {"format": {"type": "json_schema", "schema": STRICT}},
    }
    assert (second["max_tokens"], [each["role"] for each in second["messages"]]) == (100, ["user", "assistant", "user"])
    assert [[block["type"] for block in each["content"]] for each in second["messages"]] == [
        ["text"],
        ["text"],
        ["image"],
    ]


def test_options_are_merged_into_objects_of_ours():
    spec = RequestSpec(messages=(user("hi"),), output=STRICT, options={"text": {"verbosity": "low"}, "store": False})
    body = responses_request(spec, "gpt", stream=False)
    assert (body["store"], sorted(body["text"])) == (False, ["format", "verbosity"])


def test_only_a_users_message_has_images_in_chat_completions():
    spec = RequestSpec(messages=(user("hi"), assistant("x"), ChatMessage("tool", (PICTURE,))))
    with pytest.raises(UserError, match="takes no image"):
        chat_request(spec, "gpt", is_openai=True, stream=False)


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (STRICT, True),
        (LOOSE, False),
        ({"type": "object", "properties": {}, "additionalProperties": False}, True),
        ({**STRICT, "properties": {"city": LOOSE}}, False),
        ({**STRICT, "properties": {"city": {"type": "array", "items": LOOSE}}}, False),
        ({**STRICT, "properties": {"city": {"anyOf": [{"type": "null"}, STRICT]}}}, True),
        ({**STRICT, "properties": {"city": {"$ref": "#/$defs/City"}}, "$defs": {"City": LOOSE}}, False),
        ({**STRICT, "properties": {"properties": {"type": "string"}}, "required": ["properties"]}, True),
        ({"type": "string", "format": "date-time"}, True),
        ({"type": "array", "items": {"type": "string", "format": "uri"}}, False),  # OpenAI answers with 400
        (
            {
                "type": "object",
                "properties": {"format": {"type": "string"}},
                "required": ["format"],
                "additionalProperties": False,
            },
            True,
        ),
    ],
)
def test_a_schema_is_strict_when_all_of_its_objects_are(schema, strict):
    assert is_strict(schema) is strict


def test_equal_requests_have_equal_digests():
    made = RequestSpec(
        messages=(user("hi"),), output_name="".join(["ans", "wer"]), temperature=1, options={"b": 1, "a": 2}
    )
    same = RequestSpec(
        messages=(user("hi"),), tool_choice="".join(["au", "to"]), temperature=1.0, options={"a": 2, "b": 1}
    )
    assert made == same
    assert made.digest() == same.digest() == msgspec.json.decode(msgspec.json.encode(made), type=RequestSpec).digest()
    assert made.digest() != RequestSpec(messages=(user("hi"),), temperature=0.9, options={"a": 2, "b": 1}).digest()


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("max_tokens", -1_000_000),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", math.nan),
        ("temperature", math.nan),
        ("temperature", -0.1),
        ("temperature", "warm"),
        ("top_p", math.inf),
        ("seed", 0.5),
        ("seed", 2**63),
        ("model", 3),
    ],
)
async def test_numbers_of_a_request_that_are_none_are_refused_before_it_is_judged(field, wrong):
    """max_tokens=-1_000_000 was a reservation below nothing: budgets let pass what they had no room for."""
    provider = ScriptedProvider("yes")
    engine = ExecutionEngine(provider)
    with pytest.raises(UserError, match=f"{field}="):
        await engine.complete("hi", **{field: wrong})
    with pytest.raises(UserError, match=f"{field}="):
        await engine.complete(RequestSpec(messages=(user("hi"),), **{field: wrong}))
    if field not in ("top_p", "seed"):
        with pytest.raises(UserError, match=f"{field}="):
            Agent(engine, **{field: wrong})
    assert provider.requests == []


# -- servers that resemble OpenAI's -----------------------------------------------------------------------------------------


def gathered(calls, *events):
    """(text pieces, reasoning pieces, completion)."""
    gathering = ChatDecoder(calls, "openai", "m")
    pieces = [
        piece
        for event in events
        for piece in gathering.feed(event if isinstance(event, bytes) else json.dumps(event).encode(), "")
    ]
    return (
        [piece.text for piece in pieces if piece.text],
        [p.reasoning for p in pieces if p.reasoning],
        gathering.end("r"),
    )


def chunk(reason=None, **delta):
    return {"choices": [{"delta": delta, "finish_reason": reason}]}


@pytest.mark.slow  # half a second of a core
def test_calls_without_ids_or_numbers_are_told_apart(calls):
    first = {"id": "a", "function": {"name": "f", "arguments": '{"x"'}}
    more, second = {"function": {"arguments": ": 1}"}}, {"id": "b", "function": {"name": "g", "arguments": {"y": 2}}}
    _, _, answer = gathered(
        calls, chunk(tool_calls=[first]), chunk(tool_calls=[more]), chunk("stop", tool_calls=[second])
    )
    assert answer.tool_calls == (ToolCall("a", "f", '{"x": 1}'), ToolCall("b", "g", '{"y":2}'))
    assert answer.finish_reason == "tool_calls"
    whole = {"choices": [{"message": {"tool_calls": [{"function": {"name": "f"}}]}, "finish_reason": "tool_calls"}]}
    assert gathered(calls, whole)[2].tool_calls == (ToolCall("call_0", "f", ""),)


def test_reasoning_is_shown_and_is_no_part_of_the_answer(calls):
    texts, reasoning, answer = gathered(
        calls, chunk(reasoning_content="Hm"), chunk(reasoning=", so"), chunk("stop", content="Rome")
    )
    assert (texts, reasoning, answer.content, answer.message.vendor) == (["Rome"], ["Hm", ", so"], "Rome", None)


def test_a_refusal_is_an_answer_that_was_held_back(calls):
    _, _, answer = gathered(calls, chunk("stop", refusal="I cannot."))
    assert (answer.content, answer.finish_reason) == ("I cannot.", "content_filter")


def test_parts_unknown_reasons_and_odd_usage_are_no_errors(calls):
    event = chunk("weary", content=[{"type": "text", "text": "Ro"}, {"type": "text", "text": "me"}])
    _, _, answer = gathered(calls, event | {"usage": {"prompt_tokens": "7", "completion_tokens": None}})
    assert (answer.content, answer.finish_reason, answer.usage) == ("Rome", "weary", None)
    event = chunk("stop", content="x") | {
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": None}
    }
    assert gathered(calls, event)[2].usage == Usage(7, 2)


_COUNTED = {  # what a server tells, and what counts
    "reasoning beside the answer": (
        {"P": 32, "C": 9, "total_tokens": 135, "D": {"reasoning_tokens": 94}},
        Usage(32, 103, reasoning_tokens=94),
    ),
    "the same, by a total of input and answer": (
        {"P": 32, "C": 9, "total_tokens": 41, "reasoning_tokens": 94},
        Usage(32, 103, reasoning_tokens=94),
    ),
    "reasoning in the total only": ({"P": 20, "C": 151, "total_tokens": 553}, Usage(20, 533)),
    "a total that is less": ({"P": 20, "C": 151, "total_tokens": 3}, Usage(20, 151)),
    "a total that is none": ({"P": 20, "C": 151, "total_tokens": "many"}, Usage(20, 151)),
    "a cache beside the input": (
        {"P": 10, "C": 5, "total_tokens": 105, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 30},
        Usage(100, 5, 60, 30),
    ),
    "a cache within the input": ({"P": 100, "C": 5, "cached_tokens": 60}, Usage(100, 5, 60)),
    "a total alone": ({"total_tokens": 41}, Usage(0, 41)),
    "a total and the input": ({"P": 32, "total_tokens": 41}, Usage(32, 9)),
    "a total and the output": ({"C": 9, "total_tokens": 41}, Usage(32, 9)),
    "no input": ({"C": 9}, None),
    "no output": ({"P": 9, "C": None}, None),
    "texts": ({"P": "9", "C": "9"}, None),
    "a part that is none": ({"P": 9, "C": 5, "reasoning_tokens": -94, "D": "few"}, Usage(9, 5)),
}


@pytest.mark.parametrize(("told", "counted"), _COUNTED.values(), ids=list(_COUNTED))
@pytest.mark.parametrize(("read", "written"), [("prompt", "completion"), ("input", "output")])
def test_what_the_parts_or_the_total_say_beyond_input_and_output_counts(told, counted, read, written):
    names = {"P": f"{read}_tokens", "C": f"{written}_tokens", "D": f"{written}_tokens_details"}
    assert usage_in({names.get(name, name): value for name, value in told.items()}, read, written) == counted


def test_a_usage_that_is_told_several_times_is_never_less_than_once(calls):
    used = [
        {"prompt_tokens": read, "completion_tokens": written} for read, written in ((20, 0), (20, 7), (0, 9), (0, 0))
    ]
    events = [chunk(content="x") | {"usage": each} for each in used]
    assert gathered(calls, *events, chunk("stop"))[2].usage == Usage(20, 9)


@pytest.mark.parametrize("way", ["whole", "stream"])
def test_anthropics_counts_of_several_events_and_passes_are_never_less_than_once(calls, way):
    first = {"input_tokens": 20, "cache_read_input_tokens": 5, "output_tokens": 1}
    last = {"input_tokens": 0, "output_tokens": 7}
    passes = [
        {"type": "compaction", "input_tokens": 900, "output_tokens": 30},
        {"input_tokens": 20, "output_tokens": 7},
    ]
    decoder = _MessagesDecoder(calls, "anthropic", "m")
    if way == "whole":
        told = first | {"output_tokens": 7, "iterations": passes}
        answer = decoder.whole(json.dumps({"content": [], "stop_reason": "end_turn", "usage": told}).encode(), "")
    else:
        for event in (
            {"type": "message_start", "message": {"usage": first}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": last | {"iterations": passes}},
        ):
            decoder.feed(json.dumps(event).encode(), "")
        answer = decoder.end("")
    assert answer.usage == Usage(925, 37, 5)


def test_additions_that_come_in_parts_are_joined_and_go_back_to_their_own_server_only(calls):
    call = {
        "index": 0,
        "id": "a",
        "function": {"name": "f", "arguments": "{}"},
        "extra_content": {"google": {"s": "sig"}},
    }
    events = [
        chunk(role="assistant", content="", annotations=[], audio=None, refusal=None),
        chunk(content="Ro", notes={"of": "draft", "seen": [1]}),
        chunk(content="me", notes={"of": "draft", "seen": [2], "n": 3}),
        chunk(tool_calls=[call]),
        chunk(tool_calls=[{"index": 0, "type": "function", "extra_content": {"google": {"s": "ned", "more": None}}}]),
        chunk("tool_calls", reasoning="Hm, Rome."),
    ]
    texts, _, answer = gathered(calls, *events)
    assert texts == ["Ro", "me"]
    spec = RequestSpec(messages=(user("hello"), answer.message, tool_result("a", "done")))
    own, other = (
        chat_request(spec, "m", is_openai=False, stream=False, host=host)["messages"][1]
        for host in (calls.host, "other")
    )
    function = {"name": "f", "arguments": "{}"}
    plain = {
        "role": "assistant",
        "content": "Rome",
        "tool_calls": [{"id": "a", "type": "function", "function": function}],
    }
    assert other == plain
    more = {"extra_content": {"google": {"s": "signed", "more": None}}}
    assert own["tool_calls"] == [plain["tool_calls"][0] | more]
    added = {"notes": {"of": "draft", "seen": [1, 2], "n": 3}, "reasoning": "Hm, Rome."}
    assert {name: value for name, value in own.items() if name not in plain} == added


def test_what_is_kept_of_an_answer_goes_back_without_empty_texts_and_names_that_no_tool_can_have():
    """A vendor refuses the conversation for them. The messages without additions were sent so before."""
    items = [
        {"type": "reasoning", "id": "rs"},
        {"type": "function_call", "call_id": "a", "name": "look up", "arguments": "{"},
    ]
    thought = {"type": "thinking", "thinking": "Hm", "signature": "c2ln"}
    blocks = [thought, {"type": "text", "text": ""}, {"type": "tool_use", "id": "a", "name": "", "input": {}}]
    asked = assistant("", ToolCall("a", "look up", "{"))
    said = msgspec.structs.replace(asked, vendor={"openai.responses": items, "anthropic": blocks})
    spec = RequestSpec(messages=(user("hello"), said, tool_result("a", "no such tool", is_error=True)))
    sent = responses_request(spec, "m", stream=False)["input"][1:3]
    assert sent == [items[0], items[1] | {"name": "look_up", "arguments": '{"unreadable":"{"}'}]
    turn = AnthropicProvider("m", base_url="http://localhost:1", api_key="k")._request(spec)["messages"][1]
    assert turn == {"role": "assistant", "content": [thought, blocks[2] | {"name": "unnamed"}]}


def test_a_sound_that_openai_has_stored_goes_back_by_its_id(calls):
    sound = {"id": "audio_1", "data": "QUJD", "transcript": "Rome", "expires_at": 1}
    answer = gathered(calls, chunk("stop", audio=sound))[2]
    body = chat_request(RequestSpec(messages=(answer.message,)), "m", is_openai=True, stream=False, host=calls.host)
    assert body["messages"][0]["audio"] == {"id": "audio_1"}


@pytest.mark.parametrize(
    "wrong", [{"content": 7}, {"tool_calls": "none", "content": "x"}, {"role": 1, "tool_calls": [7]}]
)
def test_a_message_of_other_types_is_malformed(calls, wrong):
    with pytest.raises(MalformedAnswer, match="cannot be read: Expected"):
        gathered(calls, chunk(**wrong))


def test_the_end_of_a_stream_without_a_reason_is_no_end(calls):
    assert gathered(calls, chunk(content="Ro"), b"[DONE]")[2] is None


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, RateLimited),
        ({"error": {"message": "no", "type": "invalid_request_error"}}, RequestRefused),
        ({"error": "the model is loading"}, ModelUnavailable),
        ({"choices": "none"}, MalformedAnswer),
        ({"choices": None, "error": "the model is loading"}, ModelUnavailable),
        ([], MalformedAnswer),
    ],
)
def test_what_is_told_in_place_of_an_answer_is_an_error(calls, told, kind):
    with pytest.raises(kind) as caught:
        gathered(calls, told)
    assert (caught.value.provider, caught.value.model) == ("openai", "m")


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (429, {"error": {"code": "insufficient_quota", "message": "pay"}}, RequestRefused, "no credit"),
        (404, {"error": {"message": "no model m"}}, RequestRefused, "model's name"),
        (403, {"error": {"message": "sk-1234 may not"}}, None, "not accepted"),
        (408, {}, ModelTimeout, "408"),
        (409, {}, ModelUnavailable, "409"),
        (504, "<html>gateway</html>", ModelTimeout, "gateway"),
    ],
)
def test_a_status_is_an_error_of_ours(calls, status, body, kind, words):
    error = calls.error_of(body, "m", "r-1", status)
    assert kind is None or type(error) is kind
    assert words in str(error)
    assert "sk-1234" not in str(error)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, 0.0),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "7", "retry-after-ms": "soon"}, 7.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 86400.0),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, 0.0),
        ({"retry-after": "1e300"}, 86400.0),
    ],
)
def test_the_wait_that_a_server_asks_for(calls, headers, wait):
    assert calls.error_of({}, "m", "", 429, headers).retry_after_s == wait


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize(
    "data",
    [
        [],
        [{"embedding": [1.0]}],
        [{"embedding": [1.0]}, {"embedding": [1.0, 2.0]}],
        [{"embedding": "?"}, {"embedding": "?"}],
        [{"embedding": "AAAA"}, {"embedding": "AAAA"}],
        [{"embedding": []}, {"embedding": ""}],
    ],
)
async def test_vectors_that_are_none_are_a_malformed_answer(monkeypatch, data):
    provider = OpenAIProvider("m", base_url="http://127.0.0.1:1/v1", api_key="any")

    async def answered(*_, **__):
        return json.dumps({"data": data}).encode(), "r-1"

    monkeypatch.setattr(SdkCalls, "whole", answered)
    with pytest.raises(MalformedAnswer, match="cannot be read"):
        await provider.embed(["a", "b"])
    monkeypatch.undo()
    await provider.close()


VECTORS = [[2.0, 0.5], [1.0, 0.0]]


@pytest.mark.parametrize("places", [(1, 0), (None, None), (0, 0)])
async def test_vectors_may_come_as_numbers_and_in_any_order(monkeypatch, places):
    provider = OpenAIProvider("m", base_url="http://127.0.0.1:1/v1", api_key="any")

    async def answered(*_, **__):
        rows = [{"embedding": each, "index": place} for each, place in zip(VECTORS, places, strict=True)]
        return json.dumps({"data": rows, "model": None}).encode(), "r-1"

    monkeypatch.setattr(SdkCalls, "whole", answered)
    found = await provider.embed(["a", "b"])
    wanted = VECTORS if places[0] != 1 else VECTORS[::-1]
    assert np.array_equal(found.vectors, np.array(wanted, np.float32))
    assert found.model == "m"
    monkeypatch.undo()
    await provider.close()


# -- keys and clients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "variable"), [(OpenAIProvider, "OPENAI_API_KEY"), (AnthropicProvider, "ANTHROPIC_API_KEY")]
)
def test_without_a_key_the_vendor_is_not_asked(monkeypatch, kind, variable):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=f"set {variable}"):
        kind("m")


async def test_the_environment_has_the_key_and_the_address(monkeypatch):
    with FakeModelServer("yes", keys=("key-for-tests-1",)) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "key-for-tests-1")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "key-for-tests-1")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.anthropic_url)
        for provider in (OpenAIProvider(model="gpt-4"), AnthropicProvider(model="claude")):
            assert (await provider.complete(RequestSpec(messages=(user("hi"),)))).content == "yes"
            await provider.close()
    assert [request.spec.model for request in server.requests] == ["gpt-4", "claude"]


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_provider_serves_one_loop_after_the_other(kind):
    with FakeModelServer("yes") as server:
        if kind == "openai":
            provider = OpenAIProvider("m", base_url=server.openai_url, api_key="any")
        else:
            provider = AnthropicProvider("m", base_url=server.anthropic_url, api_key="any")

        async def ask(*, last=False):
            spec = RequestSpec(messages=(user("hi"),))
            answers = [await provider.complete(spec), await provider.complete(spec)]
            if last:
                await provider.close()
            return [answer.content for answer in answers]

        assert [asyncio.run(ask()), asyncio.run(ask(last=True))] == [["yes", "yes"]] * 2
        assert server.connections == 2
        with pytest.raises(UserError, match="closed"):
            asyncio.run(ask())


def test_a_client_has_its_own_key_and_an_api_a_name():
    with pytest.raises(UserError, match="client= alone"):
        OpenAIProvider("m", client=object(), api_key="k")
    with pytest.raises(UserError, match='"chat" or "responses"'):
        OpenAIProvider("m", api_key="k", api="chats")


def test_the_library_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'sabot\[llm\]'"):
        OpenAIProvider("m", api_key="k")


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("make", [OpenAIProvider, AnthropicProvider])
@pytest.mark.parametrize("url", ["localhost:11434/v1", "ftp://localhost", "http://"])
def test_an_address_that_is_none_is_refused_when_the_provider_is_made(make, url):
    with pytest.raises(UserError, match="is not the address of a server") as caught:
        make("m", base_url=url, api_key="any")
    assert "http://localhost:11434/v1" in caught.value.hint


@pytest.mark.parametrize("make", [OpenAIProvider, AnthropicProvider])
def test_what_a_library_would_write_into_logs_is_refused_when_the_provider_is_made(make):
    for key in ("sk-1234567890\n", "sk-12345 67890", "sk-123456789\u00e9"):
        with pytest.raises(UserError, match="the key has a space, a line break") as caught:
            make("m", api_key=key)
        assert "sk-12345" not in str(caught.value)
    with pytest.raises(UserError, match="has a user or password") as caught:
        make("m", base_url="http://me:sk-1234567890@localhost:11434/v1", api_key="any")
    assert "sk-12345" not in str(caught.value)


@pytest.mark.parametrize("make", [OpenAIProvider, AnthropicProvider])
@pytest.mark.parametrize("model", ["", 3])
def test_a_model_has_a_name(make, model):
    with pytest.raises(UserError, match="model"):
        make(model, api_key="any")


async def test_an_address_that_has_no_such_path_is_told_beside_the_model_s_name():
    with FakeModelServer("yes") as server:
        provider = OpenAIProvider("m", base_url=server.url, api_key="any")  # without /v1
        with pytest.raises(RequestRefused) as caught:
            await provider.complete(RequestSpec(messages=(user("hello"),)))
        await provider.close()
    assert f"are the model's name and the address {server.url}" in caught.value.hint


@pytest.mark.parametrize(("make", "name"), [(OpenAIProvider, "OPENAI"), (AnthropicProvider, "ANTHROPIC")])
def test_a_server_of_one_s_own_needs_no_key_also_where_the_environment_names_it(make, name, monkeypatch):
    for variable in (f"{name}_API_KEY", f"{name}_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match="there is no key"):
        make("m")
    assert "localhost" in repr(make("m", base_url="http://localhost:11434/v1"))
    monkeypatch.setenv(f"{name}_BASE_URL", "http://localhost:11434/v1")
    assert "localhost" in repr(make("m"))


def test_a_parameter_that_a_model_does_not_take_can_be_left_out(calls):
    said = {"error": {"code": "unsupported_value", "message": "'temperature' does not support 0.7 with this model."}}
    assert "give temperature=None" in str(calls.error_of(said, "o9", "r-1", 400))


def test_what_is_said_of_a_wrong_key_is_whole_also_where_secrets_are_hidden(calls):
    said = str(calls.error_of({"error": {"code": "invalid_api_key"}}, "m", "r-1", 401))
    assert "api_key" in said
    assert scrubbed(said) == said
