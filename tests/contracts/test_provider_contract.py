"""What a provider promises: the one without a network, and those of the vendors against a server that speaks their APIs."""

import asyncio
import json
import logging
import threading
import traceback
from contextlib import aclosing
from typing import Any

import msgspec
import numpy as np
import pytest

from sabot.errors import TransientError, UserError
from sabot.llm import (
    AnswerTooLarge,
    AnthropicProvider,
    AuthenticationFailed,
    ChatMessage,
    Completion,
    ContentFiltered,
    ContextLengthExceeded,
    ExecutionEngine,
    Image,
    MalformedAnswer,
    ModelError,
    ModelTimeout,
    ModelUnavailable,
    ModelUnreachable,
    OpenAIProvider,
    Piece,
    Provider,
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
from sabot.llm.conversation import Conversation
from sabot.llm.token_counts import most_input_tokens
from sabot.testing import FakeModelServer

KEY = "sk-proj-Zq81MvtT0p5ecret"
OVER_HTTP = ["chat", "responses", "messages"]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
LOOK = ToolSchema("look", "Looks a thing up.", SCHEMA)
CALL = ToolCall("call_1", "look", '{"city":"Rome"}')


class ScriptedCase:
    """The provider without a network."""

    vendor = "scripted"

    def __init__(self, answers, **options):
        self.provider = ScriptedProvider(answers, model="model-1")
        self.hold, self.release = self.provider.hold, self.provider.release

    @property
    def asked(self):
        return self.provider.requests[-1]

    async def until_in_flight(self, count):
        await self.provider.arrived(count)

    async def until_given_up(self):
        assert (self.provider.in_flight, self.provider.cancelled) == (0, 1)


class HttpCase:
    """A vendor's provider, and the server in the place of the vendor."""

    def __init__(self, kind, answers, **options):
        self.server = FakeModelServer(answers, keys=(KEY,), **options)
        self.hold, self.release = self.server.hold, self.server.release
        self.vendor = "anthropic" if kind == "messages" else "openai"
        # Imported here: 3,500 modules, which every process that collects the tests would load. To read the certificates of the machine,
        # which are not needed here, takes as long as a test.
        if kind == "messages":
            import anthropic

            self.http = anthropic.DefaultAsyncHttpxClient(verify=False)
            url = self.server.anthropic_url
            client = anthropic.AsyncAnthropic(api_key=KEY, base_url=url, http_client=self.http)
            self.provider = AnthropicProvider("model-1", client=client)
        else:
            import openai

            self.http = openai.DefaultAsyncHttpxClient(verify=False)
            client = openai.AsyncOpenAI(api_key=KEY, base_url=self.server.openai_url, http_client=self.http)
            self.provider = OpenAIProvider("model-1", client=client, api=kind)

    @property
    def asked(self):
        return self.server.requests[-1].spec

    async def until_in_flight(self, count):
        await asyncio.to_thread(self.server.wait, lambda: self.server.in_flight == count)

    async def until_given_up(self):
        await asyncio.to_thread(self.server.wait, lambda: self.server.abandoned == 1 and not self.server.in_flight)


def own_client(kind, case, key):
    """A provider that makes its client by itself."""
    if kind == "messages":
        return AnthropicProvider("model-1", base_url=case.server.anthropic_url, api_key=key)
    return OpenAIProvider("model-1", base_url=case.server.openai_url, api_key=key, api=kind)


@pytest.fixture
async def cases():
    made = []

    def make(kind, answers, **options):
        case = ScriptedCase(answers) if kind == "scripted" else HttpCase(kind, answers, **options)
        made.append(case)
        return case

    yield make
    for case in made:
        await case.provider.close()
        if isinstance(case, HttpCase):
            await case.http.aclose()
            case.server.stop()


every = pytest.mark.parametrize("kind", ["scripted", *OVER_HTTP])
over_http = pytest.mark.parametrize("kind", OVER_HTTP)
each_way = pytest.mark.parametrize("way", ["whole", "stream"])


def spec(text="hello", **fields):
    return RequestSpec(messages=(user(text),), **fields)


async def ask(provider, asked, way, **options):
    """The completion, by the one way or the other."""
    if way == "whole":
        return await provider.complete(asked, **options)
    pieces = await streamed(provider, asked, **options)
    assert all(piece.completion is None for piece in pieces[:-1])
    return pieces[-1].completion


async def streamed(provider, asked, **options):
    async with aclosing(provider.stream(asked, **options)) as stream:
        return [piece async for piece in stream]


# -- answers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # half a second of a core
@every
@each_way
async def test_an_answer_says_who_gave_it_and_what_it_used(cases, kind, way):
    case = cases(kind, "It is Rome.")
    answer = await ask(case.provider, spec("12345678"), way)
    assert (answer.content, answer.finish_reason, answer.tool_calls) == ("It is Rome.", "stop", ())
    assert (answer.provider, answer.model, answer.usage) == (case.vendor, "model-1", Usage(2, 3))
    assert answer.request_id
    assert answer.message == assistant("It is Rome.")
    assert isinstance(case.provider, Provider)
    assert (case.provider.name, case.provider.model) == (case.vendor, "model-1")


@pytest.mark.one_in(6, "a fifth of a second of a core each")
@every
@each_way
async def test_calls_of_tools_come_with_their_arguments(cases, kind, way):
    calls = (CALL, ToolCall("call_2", "look", '{"city":"Zürich \\"old\\""}'), ToolCall("call_3", "now", "{}"))
    case = cases(kind, assistant("I look.", *calls))
    answer = await ask(case.provider, spec(tools=(LOOK,)), way)
    assert (answer.content, answer.finish_reason) == ("I look.", "tool_calls")
    assert [(each.id, each.name, json.loads(each.arguments)) for each in answer.tool_calls] == [
        (each.id, each.name, json.loads(each.arguments)) for each in calls
    ]


@pytest.mark.one_in(4, "a second of a core for some")
@every
@each_way
async def test_arguments_that_are_no_json_are_given_as_they_are(cases, kind, way):
    case = cases(kind, assistant("", ToolCall("call_1", "look", '{"city": "Ro')))
    answer = await ask(case.provider, spec(tools=(LOOK,)), way)
    assert answer.tool_calls == (ToolCall("call_1", "look", '{"city": "Ro'),)
    await case.provider.complete(RequestSpec(messages=(user("go on"), answer.message, tool_result("call_1", "what?"))))


@every
async def test_a_stream_gives_the_words_then_the_calls_then_the_whole(cases, kind):
    case = cases(kind, assistant("One two.", CALL))
    *pieces, last = await streamed(case.provider, spec(tools=(LOOK,)))
    assert "".join(piece.text for piece in pieces) == "One two."
    assert [piece.tool_call.id for piece in pieces if piece.tool_call] == ["call_1"]
    assert last == Piece(completion=last.completion)
    whole = await case.provider.complete(spec(tools=(LOOK,)))
    assert [call.id for call in last.completion.tool_calls] == [call.id for call in whole.tool_calls]
    assert (last.completion.content, last.completion.usage) == (whole.content, whole.usage)


@every
async def test_the_pieces_of_a_stream_are_those_in_which_it_comes(cases, kind):
    case = cases(kind, ("a b", " ", "c"))
    assert [piece.text for piece in (await streamed(case.provider, spec()))[:-1]] == ["a b", " ", "c"]


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@every
@each_way
@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
async def test_the_reason_why_an_answer_ended_is_told(cases, kind, way, reason):
    case = cases(kind, Completion(message=assistant("So"), finish_reason=reason))
    answer = await ask(case.provider, spec(), way)
    assert (answer.finish_reason, answer.content) == (reason, "So")


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@every
@each_way
@pytest.mark.parametrize("said", [Usage(100, 50, cached_tokens=80, reasoning_tokens=30), None])
async def test_tokens_are_those_that_the_vendor_counts(cases, kind, way, said):
    case = cases(kind, Completion(message=assistant("So"), usage=said))
    assert (await ask(case.provider, spec(), way)).usage == said


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@over_http
@each_way
@pytest.mark.parametrize("said", [Usage(-5, 3), Usage(5, -3), Usage(5, 10**30)])
async def test_tokens_that_cannot_be_are_not_believed(cases, kind, way, said):
    case = cases(kind, Completion(message=assistant("So"), usage=said))
    assert (await ask(case.provider, spec(), way)).usage is None


@over_http
@each_way
async def test_what_a_vendor_wants_back_of_its_reasoning_is_sent_back_as_it_came(cases, kind, way):
    vendor = {
        "chat": {"openai.chat": {"reasoning_content": "Hm, Rome."}},
        "responses": {
            "openai.responses": [
                {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm, Rome."}]},
                {
                    "type": "message",
                    "id": "msg_1",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "I look."}],
                },
                {
                    "type": "function_call",
                    "id": "fc_1",
                    "call_id": "call_1",
                    "name": "look",
                    "arguments": CALL.arguments,
                },
            ]
        },
        "messages": {
            "anthropic": [
                {"type": "thinking", "thinking": "Hm, Rome.", "signature": "c2lnbmVk"},
                {"type": "redacted_thinking", "data": "b3BhcXVl"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "call_1", "name": "look", "input": {"city": "Rome"}},
            ]
        },
    }[kind]
    case = cases(kind, ChatMessage("assistant", "I look.", (CALL,), vendor=vendor))
    first = await ask(case.provider, spec(tools=(LOOK,)), way)
    assert (first.content, first.message.vendor) == ("I look.", vendor)
    assert [(call.id, json.loads(call.arguments)) for call in first.tool_calls] == [("call_1", {"city": "Rome"})]
    conversation = (user("hello"), first.message, tool_result("call_1", "found"))
    await case.provider.complete(RequestSpec(messages=conversation, tools=(LOOK,)))
    assert case.asked.messages[1].vendor == vendor
    pieces = await streamed(case.provider, spec(tools=(LOOK,)))
    assert "".join(piece.reasoning for piece in pieces) == "Hm, Rome."


GOOGLE = {"google": {"thought_signature": "c2lnbmVk"}}


@over_http
@each_way
async def test_what_a_vendor_adds_to_a_message_or_to_one_of_its_calls_is_sent_back_with_it(cases, kind, way):
    """A server of Google refuses the second request of a run without the signature of the call."""
    more: dict[str, Any] = {"extra_content": GOOGLE, "function": {"provider_specific_fields": {"seen": [1]}}}
    calls = (CALL, ToolCall("call_2", "look", "{}", vendor={"openai.chat": more} if kind == "chat" else None))
    text: dict[str, Any] = {"type": "text", "text": "I look.", "citations": [{"type": "page", "page": 7}]}
    asks = [{"type": "tool_use", "id": each.id, "name": "look", "input": json.loads(each.arguments)} for each in calls]
    called = [
        {
            "type": "function_call",
            "id": f"fc_{each.id}",
            "call_id": each.id,
            "name": "look",
            "arguments": each.arguments,
        }
        for each in calls
    ]
    said = {"type": "output_text", "text": "I look."}
    vendor = {
        "chat": {"openai.chat": {"extra_content": GOOGLE, "parts": ["a"]}},
        "responses": {
            "openai.responses": [
                {"type": "message", "id": "msg_1", "role": "assistant", "content": [said], "phase": "commentary"},
                *called[:1],
                called[1] | {"namespace": "maps"},
            ]
        },
        "messages": {"anthropic": [text, asks[0], asks[1] | {"caller": {"type": "direct"}}]},
    }[kind]
    case = cases(kind, ChatMessage("assistant", "I look.", calls, vendor=vendor))
    first = await ask(case.provider, spec(tools=(LOOK,)), way)
    kept = Conversation.from_bytes(Conversation([first.message]).to_bytes()).messages[0]
    assert kept == first.message
    results = (tool_result("call_1", "found"), tool_result("call_2", "found"))
    after = RequestSpec(messages=(user("hello"), kept, *results), tools=(LOOK,))
    await ask(case.provider, after, way)
    body = case.server.requests[-1].body
    if kind == "chat":
        sent = body["messages"][1]
        assert sent == {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": sent["tool_calls"],
            **vendor["openai.chat"],
        }
        assert "extra_content" not in sent["tool_calls"][0]
        assert sent["tool_calls"][1]["extra_content"] == GOOGLE
        assert sent["tool_calls"][1]["function"]["provider_specific_fields"] == {"seen": [1]}
    elif kind == "responses":
        assert body["input"][1:4] == vendor["openai.responses"]
    else:
        assert body["messages"][1] == {"role": "assistant", "content": vendor["anthropic"]}
    plain = msgspec.structs.replace(kept, vendor=None, tool_calls=(CALL, ToolCall("call_2", "look", "{}")))
    assert most_input_tokens(after) > most_input_tokens(RequestSpec(messages=(user("hello"), plain, *results)))


@each_way
async def test_reasoning_that_comes_by_its_id_is_kept_with_its_tokens_so_that_budgets_count_it(cases, way):
    called = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look", "arguments": CALL.arguments}
    items = [{"type": "reasoning", "id": "rs_1", "summary": []}, called]
    thought = ChatMessage("assistant", "", (CALL,), vendor={"openai.responses": items})
    case = cases("responses", Completion(message=thought, usage=Usage(10, 3_900, reasoning_tokens=3_800)))
    first = await ask(case.provider, spec(), way)
    after = RequestSpec(messages=(user("hello"), first.message, tool_result("call_1", "found")))
    assert most_input_tokens(after) > 3_800
    await ask(case.provider, after, way)
    assert case.asked.messages[1].vendor == {"openai.responses": items}  # what is sent is not changed


# -- requests ---------------------------------------------------------------------------------------------------------------


@every
@each_way
async def test_a_conversation_arrives_as_it_is(cases, kind, way):
    case = cases(kind, "yes")
    picture = Image(data=b"\x89PNG", media_type="image/png")
    messages = (
        system("Be short."),
        user("What is this?", picture, Image(url="https://pictures.example/1.png")),
        assistant("I look.", CALL),
        tool_result("call_1", "found"),
        assistant("It is Rome."),
        user("Sure?"),
    )
    asked = RequestSpec(
        messages=messages,
        model="model-2",
        tools=(LOOK,),
        tool_choice="required",
        output=SCHEMA,
        temperature=0.5,
        top_p=0.9,
        max_tokens=7,
        options={"metadata": {"user_id": "u-1"}},
    )
    answer = await ask(case.provider, asked, way)
    seen = case.asked
    assert [(each.role, each.content, each.tool_call_id) for each in seen.messages] == [
        (each.role, each.content, each.tool_call_id) for each in messages
    ]
    assert [json.loads(call.arguments) for call in seen.messages[2].tool_calls] == [{"city": "Rome"}]
    assert (seen.model, seen.tools, seen.tool_choice, seen.output) == ("model-2", (LOOK,), "required", SCHEMA)
    assert (seen.temperature, seen.top_p, seen.max_tokens) == (0.5, 0.9, 7)
    assert seen.options["metadata"] == {"user_id": "u-1"}
    assert answer.model == "model-2"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("chat", {"stop": ("END",), "seed": 7}),
        ("messages", {"stop": ("END",)}),
        ("scripted", {"stop": ("END",), "seed": 7}),
    ],
)
async def test_stop_and_seed_arrive_where_the_vendor_has_them(cases, kind, fields):
    case = cases(kind, "yes")
    await case.provider.complete(spec(**fields))
    assert (case.asked.stop, case.asked.seed) == (("END",), fields.get("seed"))


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize(
    ("kind", "fields"), [("responses", {"stop": ("END",)}), ("responses", {"seed": 7}), ("messages", {"seed": 7})]
)
async def test_what_the_vendor_has_no_parameter_for_is_refused_and_not_sent(cases, kind, fields):
    case = cases(kind, "yes")
    assert case.provider.lacks >= fields.keys()
    with pytest.raises(UserError, match=f"no {next(iter(fields))}="):
        await case.provider.complete(spec(**fields))
    assert case.server.requests == []
    second = ExecutionEngine(ScriptedProvider([ModelUnavailable("down")]), fallback=[case.provider], retries=0)
    assert (await second.complete("hello", **fields)).content == "yes"


@over_http
async def test_options_win_and_none_takes_a_field_out(cases, kind):
    case = cases(kind, "yes")
    await case.provider.complete(
        spec(temperature=0.5, top_p=0.9, options={"temperature": 1.0, "top_p": None, "extra": {"a": 1}})
    )
    assert (case.asked.temperature, case.asked.top_p, case.asked.options["extra"]) == (1.0, None, {"a": 1})


@over_http
async def test_an_idempotency_key_is_a_header(cases, kind):
    case = cases(kind, "yes")
    await case.provider.complete(spec(), idempotency_key="order 1/é")
    await case.provider.complete(spec())
    keys = [request.headers.get("idempotency-key") for request in case.server.requests]
    assert keys == ["order 1/%C3%A9", None]


# -- what goes wrong --------------------------------------------------------------------------------------------------------


@pytest.mark.one_in(9, "a hundredth of a second of a core each")
@every
@each_way
@pytest.mark.parametrize(
    "error",
    [
        AuthenticationFailed("no such key"),
        RateLimited("slow down", retry_after_s=2.5),
        RateLimited("slow down"),
        ContextLengthExceeded("9000 tokens are more than 8192"),
        ContentFiltered("not this"),
        RequestRefused("no such parameter"),
        ModelUnavailable("we are down"),
        ModelUnavailable("we are down", status=503, retry_after_s=4.0),
        ModelUnavailable("overloaded", status=529),
    ],
    ids=lambda error: f"{type(error).__name__} {error.status}",
)
async def test_an_error_is_told_by_its_class(cases, kind, way, error):
    case = cases(kind, [error, "yes"])
    with pytest.raises(ModelError) as caught:
        await ask(case.provider, spec(), way)
    assert type(caught.value) is type(error)
    assert (caught.value.provider, caught.value.model) == (case.vendor, "model-1")
    assert getattr(caught.value, "retry_after_s", 0.0) == getattr(error, "retry_after_s", 0.0)
    if kind != "scripted":
        assert caught.value.request_id == "req-1"
        assert caught.value.status == error.status or caught.value.status >= 400
        assert caught.value.sent is isinstance(error, ModelUnavailable)
        assert caught.value.__cause__ is caught.value.__context__ is None, "the library's errors hold the key"
    assert (await case.provider.complete(spec())).content == "yes", "one attempt for each call"


@every
async def test_a_stream_that_breaks_off_is_no_answer(cases, kind):
    case = cases(kind, [("One ", "two ", ModelUnavailable("gone")), "yes"])
    stream = case.provider.stream(spec())
    assert [(await anext(stream)).text, (await anext(stream)).text] == ["One ", "two "]
    with pytest.raises(ModelUnavailable) as caught:
        await anext(stream)
    assert caught.value.provider == case.vendor
    assert (await case.provider.complete(spec())).content == "yes"


@every
@pytest.mark.parametrize(
    "error", [RateLimited("slow down"), ContentFiltered("not this")], ids=lambda each: type(each).__name__
)
async def test_an_error_in_a_stream_is_told_by_its_class(cases, kind, error):
    case = cases(kind, ("One ", error))
    stream = case.provider.stream(spec())
    assert (await anext(stream)).text == "One "
    with pytest.raises(type(error)):
        await anext(stream)


@every
@each_way
async def test_an_answer_that_does_not_come_in_time_is_a_timeout(cases, kind, way):
    case = cases(kind, "late")
    case.hold()
    with pytest.raises(ModelTimeout, match=r"no answer in 0\.01 s") as caught:
        await ask(case.provider, spec(), way, timeout_s=0.01)
    assert isinstance(caught.value, TransientError)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.provider == case.vendor


@every
@each_way
async def test_a_call_that_is_cancelled_has_ended_its_request(cases, kind, way):
    case = cases(kind, "late")
    case.hold()
    call = asyncio.create_task(ask(case.provider, spec(), way))
    await case.until_in_flight(1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await case.until_given_up()


@every
async def test_a_stream_that_is_closed_early_has_ended_its_request(cases, kind):
    case = cases(kind, ("One ", "two", ModelTimeout("")))
    async with aclosing(case.provider.stream(spec())) as stream:
        assert (await anext(stream)).text == "One "
    await case.until_given_up()


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@every
async def test_many_calls_at_once_take_no_thread_each(cases, kind):
    case = cases(kind, "yes")
    await case.provider.complete(spec())  # a library may start one for itself
    threads = threading.active_count()
    case.hold()
    calls = [asyncio.create_task(case.provider.complete(spec())) for _ in range(20)]
    await case.until_in_flight(20 if kind != "scripted" else 21)
    assert threading.active_count() <= threads + 1, "that one waits for the server"
    case.release()
    assert {answer.content for answer in await asyncio.gather(*calls)} == {"yes"}


@every
async def test_after_close_no_call_is_made(cases, kind):
    case = cases(kind, "yes")
    await case.provider.close()
    await case.provider.close()
    with pytest.raises(UserError, match="closed"):
        await case.provider.complete(spec())
    with pytest.raises(UserError, match="closed"):
        await streamed(case.provider, spec())


# -- over a network ---------------------------------------------------------------------------------------------------------


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@over_http
@each_way
@pytest.mark.parametrize("fault", ["drop_before", "drop_after", "truncate"])
async def test_a_connection_that_breaks_leaves_it_open_whether_it_costs(cases, kind, way, fault):
    case = cases(kind, "One two three four")
    case.server.plan(fault)
    with pytest.raises(ModelUnavailable) as caught:
        await ask(case.provider, spec(), way)
    assert caught.value.sent
    assert bool(case.server.tokens.output_tokens) == (fault != "drop_before")
    assert (await ask(case.provider, spec(), way)).content == "One two three four"


@over_http
async def test_a_server_that_is_not_there_was_sent_nothing(cases, kind):
    case = cases(kind, "yes")
    case.server.stop()
    with pytest.raises(ModelUnreachable, match=case.server.url) as caught:
        await case.provider.complete(spec())
    assert not caught.value.sent
    case.server.start()
    assert (await case.provider.complete(spec())).content == "yes"


@over_http
@each_way
async def test_an_answer_that_is_no_json_says_what_came(cases, kind, way):
    case = cases(kind, MalformedAnswer("", text="<html>Bad gateway</html>"))
    with pytest.raises(MalformedAnswer) as caught:
        await ask(case.provider, spec(), way)
    assert "<html>Bad gateway</html>" in caught.value.text
    assert caught.value.request_id == "req-1"


async def test_an_answer_of_ten_megabytes_is_an_answer(cases):
    case = cases("messages", ("x" * 5_000_000, "y" * 5_000_000))
    assert len((await ask(case.provider, spec(), "stream")).content) == 10_000_000


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@every
@each_way
async def test_an_answer_that_is_too_large_is_refused_and_the_next_one_comes(cases, kind, way):
    case = cases(kind, [("x" * 60_000, "y" * 60_000), "yes"])
    with pytest.raises(AnswerTooLarge, match="more than 100,000 bytes") as caught:
        await ask(case.provider, spec(), way, max_answer_bytes=100_000)
    error = caught.value
    assert (error.provider, error.model, error.sent) == (case.vendor, "model-1", True)
    assert error.request_id in ("req-1", "scripted-1")
    assert not isinstance(error, TransientError), "another attempt costs as much and is as large"
    assert (await ask(case.provider, spec(), way, max_answer_bytes=100_000)).content == "yes"


@over_http
async def test_a_connection_is_used_again(cases, kind):
    case = cases(kind, "yes", seconds=0.0)
    for way in ("whole", "stream", "whole", "stream"):
        case.server.plan("slow")
        await ask(case.provider, spec(), way)
    assert case.server.connections == 1


@pytest.mark.one_in(6, "a tenth of a second of a core each")
@over_http
@each_way
async def test_a_key_is_in_no_error_no_log_and_no_repr(cases, kind, way, caplog):
    case = cases(
        kind, ["yes", *(kind(f"what is {KEY}?") for kind in (RequestRefused, ModelUnavailable, MalformedAnswer))]
    )
    caplog.set_level(logging.DEBUG)
    right, wrong = own_client(kind, case, KEY), own_client(kind, case, "sk-wr0ng-" + KEY[8:])
    texts = [repr(right), str(await ask(right, spec(), way))]
    for provider in (right, right, right, wrong):
        with pytest.raises(ModelError) as caught:
            await ask(provider, spec(), way)
        texts += [repr(caught.value), *traceback.format_exception(caught.value), str(vars(caught.value))]
    assert type(caught.value) is AuthenticationFailed
    for provider in (right, wrong):
        await provider.close()
        with pytest.raises(UserError, match="closed"):
            await provider.complete(spec())
    texts += [record.getMessage() for record in caplog.records]
    assert len(texts) > 10
    assert [text for text in texts if KEY[8:] in text] == []


# -- vectors ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scripted", "chat"])
async def test_each_text_has_its_vector(cases, kind):
    case = cases(kind, "")
    found = await case.provider.embed(["aaaa", "bbbb", "aaaa"], model="vectors-1")
    assert (found.vectors.shape, found.vectors.dtype) == ((3, 8), np.float32)
    assert np.array_equal(found.vectors[0], found.vectors[2])
    assert not np.array_equal(found.vectors[0], found.vectors[1])
    assert (found.provider, found.model, found.usage) == (case.vendor, "vectors-1", Usage(3))
    assert found.request_id
    assert len((await case.provider.embed([])).vectors) == 0


@pytest.mark.slow  # half a second of a core
async def test_a_vendor_without_vectors_says_so(cases):
    with pytest.raises(UserError, match="has no embeddings"):
        await cases("messages", "").provider.embed(["a"])
