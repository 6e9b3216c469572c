"""What servers send in place of the answers that their documents describe, one row for each shape, and what becomes of
it. `test_answer_shapes` sends each of them by each API to each surface.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sabot.llm import Completion, ToolCall, assistant

MOST_TOKENS = 77  # `max_tokens` of each agent and request of the table
ERASE = ToolCall("call_1", "erase", '{"folder": "/"}')
LOOK = ToolCall("call_2", "look", '{"city": "Rome"}')


@dataclass(frozen=True)
class City:
    city: str


@dataclass(frozen=True)
class Sent:
    """One answer in the forms in which servers send it: as a whole, and as the events of a stream."""

    whole: Any
    events: Any

    def form(self, *, stream: bool) -> Any:
        return self.events if stream else self.whole


@dataclass(frozen=True)
class Shape:
    """A shape of an answer, and what becomes of it.

    - `sent`: the first answer by API ("chat", "responses", "messages"), or one for all of them: a `Sent`, or what a
      `FakeModelServer` sends in both forms. APIs that are left out have no such shape.
    - `then`: the answers to the further requests; the last one to all that follow. Without any, each request gets the
      first answer: a kernel asks again after an error behind some text.
    - `gives`: the beginning of the answer, or a pattern of "ErrorClass: message", where the agent has tools.
    - `column`: the same for `map_llm`, whose requests have no tools; None for the same as `gives`, and "" if the shape
      is not sent there.
    - `made`: the tool calls that are made. `told`: what the model gets to read about the first answer, in the results
      of its calls. `asked`: the number of requests; 0 if it does not matter.
    - `streamed`: True if only streams have this shape.
    - `back`: what each further request has somewhere in its messages, because the vendor has added it; None for nothing.
    """

    sent: Mapping[str, Any] | Any
    gives: str = "done"
    column: str | None = None
    then: Sequence[Any] = ("done",)
    made: Sequence[tuple[str, Mapping[str, Any]]] = ()
    told: str = ""
    asked: int = 0
    output: Any = None
    streamed: bool = False
    back: Any = None

    def answer(self, api: str, number: int, *, stream: bool) -> Any:
        """The answer to the request of this number, beginning with 0."""
        if number and self.then:
            return self.then[min(number, len(self.then)) - 1]
        sent = self.sent[api] if isinstance(self.sent, dict) else self.sent
        return sent.form(stream=stream) if isinstance(sent, Sent) else sent

    def is_of(self, api: str, *, streams: bool) -> bool:
        return (streams or not self.streamed) and (not isinstance(self.sent, dict) or api in self.sent)


CALLS_A_TOOL = "MalformedAnswer: .*the answer calls the tool"
TWO_CALLS = [("erase", {"folder": "/a"}), ("look", {"city": "Rome"})]


def chat(message: Mapping[str, Any], reason: str | None = "stop", **more: Any) -> dict[str, Any]:
    """A whole answer of chat completions."""
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": reason}
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": "model-1", "choices": [choice], **more}


def chunk(reason: str | None = None, **delta: Any) -> dict[str, Any]:
    """An event of a stream of chat completions."""
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "model-1", "choices": [choice]}


def chat_calls(*calls: Mapping[str, Any]) -> dict[str, Any]:
    return chat({"tool_calls": list(calls)}, "tool_calls")


def chunks(*parts: Mapping[str, Any]) -> list[Any]:
    """The events of a stream with a part of a tool call in each."""
    return [*(chunk(tool_calls=[part]) for part in parts), chunk("tool_calls"), "[DONE]"]


def called(name: str, arguments: Any = None, **more: Any) -> dict[str, Any]:
    """A tool call of chat completions, or a part of one."""
    given = {"name": name, "arguments": arguments}
    return {**more, "type": "function", "function": {key: value for key, value in given.items() if value is not None}}


def response(*items: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A whole answer of OpenAI's responses."""
    return {
        "id": "resp_1",
        "object": "response",
        "model": "model-1",
        "status": "completed",
        "output": list(items),
        **more,
    }


def response_call(name: str, arguments: str, **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "id": f"fc_{name}", "name": name, "arguments": arguments, **more}


def response_events(*items: Mapping[str, Any], **more: Any) -> list[Any]:
    """The events of a stream of OpenAI's responses: its items, and the whole."""
    done = [
        {"type": "response.output_item.done", "output_index": number, "item": item} for number, item in enumerate(items)
    ]
    return [*done, {"type": "response.completed", "response": response(*items, **more)}]


def message(*blocks: Mapping[str, Any], reason: str | None = "end_turn", **more: Any) -> dict[str, Any]:
    """A whole answer of Anthropic's messages."""
    told = {"stop_reason": reason, "usage": {"input_tokens": 3, "output_tokens": 2}}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "model-1",
        "content": list(blocks),
        **told,
        **more,
    }


def message_events(*blocks: tuple[int, Mapping[str, Any], str], reason: str = "end_turn") -> list[Any]:
    """The events of a stream of Anthropic's messages: blocks with their index, their beginning, and the rest of their
    text or of their arguments.
    """
    events: list[Any] = [{"type": "message_start", "message": message(reason=None)}]
    for index, block, rest in blocks:
        kind = (
            {"type": "input_json_delta", "partial_json": rest}
            if "input" in block
            else {"type": "text_delta", "text": rest}
        )
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events.append({"type": "content_block_delta", "index": index, "delta": kind})
        events.append({"type": "content_block_stop", "index": index})
    end = {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 2}}
    return [*events, end, {"type": "message_stop"}]


def used(name: str, given: Any, **more: Any) -> dict[str, Any]:
    """A tool call of Anthropic's messages."""
    return {"type": "tool_use", "name": name, "input": given, **more}


def both_calls(**more: Any) -> Any:
    """Expects the two calls `TWO_CALLS`."""
    return {"column": CALLS_A_TOOL, "made": TWO_CALLS, "told": "erased /a\nRome is there", "asked": 2, **more}


PLAIN: dict[str, Shape] = {
    "a plain answer": Shape("It is Rome.", "It is Rome.", asked=1),
    "calls of tools": Shape(
        assistant("I look.", ERASE, LOOK),
        column=CALLS_A_TOOL,
        made=[("erase", {"folder": "/"}), ("look", {"city": "Rome"})],
        told="erased /",
        asked=2,
    ),
}

E_A, L_R = '{"folder": "/a"}', '{"city": "Rome"}'

CALLS: dict[str, Shape] = {
    "two calls with empty ids": Shape(
        {
            "chat": Sent(
                chat_calls(called("erase", E_A, id=""), called("look", L_R, id="")),
                chunks(called("erase", E_A, id="", index=0), called("look", L_R, id="", index=1)),
            ),
            "responses": Sent(
                response(response_call("erase", E_A, call_id=""), response_call("look", L_R, call_id="")),
                response_events(response_call("erase", E_A, call_id=""), response_call("look", L_R, call_id="")),
            ),
            "messages": Sent(
                message(used("erase", {"folder": "/a"}, id=""), used("look", {"city": "Rome"}, id="")),
                message_events((0, used("erase", {}, id=""), E_A), (1, used("look", {}, id=""), L_R)),
            ),
        },
        **both_calls(),
    ),
    "two calls without ids": Shape(
        {
            "chat": Sent(
                chat_calls(called("erase", E_A), called("look", L_R)),
                chunks(called("erase", E_A), called("look", L_R)),
            ),
            "responses": Sent(
                response(response_call("erase", E_A), response_call("look", L_R)),
                response_events(response_call("erase", E_A), response_call("look", L_R)),
            ),
            "messages": Sent(
                message(used("erase", {"folder": "/a"}), used("look", {"city": "Rome"})),
                message_events((0, used("erase", {}), E_A), (0, used("look", {}), L_R)),
            ),
        },
        **both_calls(),
    ),
    "two calls with one id": Shape(
        {
            "chat": Sent(
                chat_calls(called("erase", E_A, id="x"), called("look", L_R, id="x")),
                chunks(called("erase", E_A, id="x", index=0), called("look", L_R, id="x", index=1)),
            ),
            "responses": Sent(
                response(response_call("erase", E_A, call_id="x"), response_call("look", L_R, call_id="x")),
                response_events(response_call("erase", E_A, call_id="x"), response_call("look", L_R, call_id="x")),
            ),
            "messages": message(
                used("erase", {"folder": "/a"}, id="x"), used("look", {"city": "Rome"}, id="x"), reason="tool_use"
            ),
        },
        **both_calls(),
    ),
    "two calls of one tool without arguments and ids": Shape(
        {"chat": chat_calls(called("look"), called("look"))},
        column=CALLS_A_TOOL,
        made=[("look", {"city": ""}), ("look", {"city": ""})],
        asked=2,
    ),
    "index 0 for both, with different ids": Shape(
        {
            "chat": chunks(
                called("erase", '{"folder":', id="a", index=0),
                {"index": 0, "function": {"arguments": ' "/a"}'}},
                called("look", L_R, id="b", index=0),
            ),
            "messages": Sent(
                message(used("erase", {"folder": "/a"}, id="a"), used("look", {"city": "Rome"}, id="b")),
                message_events((0, used("erase", {}, id="a"), E_A), (0, used("look", {}, id="b"), L_R)),
            ),
        },
        **both_calls(),
        streamed=True,
    ),
    "index 0 for both, without ids": Shape(
        {"chat": chunks(called("erase", E_A, index=0), called("look", L_R, index=0))}, **both_calls(), streamed=True
    ),
    "no index, and the id in each part": Shape(
        {
            "chat": chunks(
                called("erase", '{"folder"', id="a"),
                called("erase", ': "/a', id="a"),
                {"id": "a", "function": {"arguments": '"}'}},
                called("look", '{"city":', id="b"),
                called("look", ' "Rome"}', id="b"),
            )
        },
        **both_calls(),
        streamed=True,
    ),
    "a name that comes later than the id": Shape(
        {
            "chat": chunks(
                {"index": 0, "id": "a", "function": {"arguments": ""}},
                {"index": 0, "function": {"name": "erase", "arguments": E_A}},
                {"id": "b", "index": 1},
                {"index": 1, "function": {"name": "look"}},
                {"index": 1, "function": {"arguments": L_R}},
            )
        },
        **both_calls(),
        streamed=True,
    ),
    "a call that is sent once more as a whole": Shape(
        {
            "chat": chunks(
                called("erase", '{"folder": ', id="a", index=0),
                {"index": 0, "function": {"arguments": '"/a"}'}},
                called("look", L_R, id="b", index=1),
                called("erase", E_A, id="a", index=0),
            )
        },
        **both_calls(),
        streamed=True,
    ),
    "parts of calls that come by turns": Shape(
        {
            "chat": chunks(
                called("erase", '{"folder": ', id="a", index=0),
                called("look", '{"city": ', id="b", index=1),
                {"index": 0, "function": {"arguments": '"/a"}'}},
                {"index": 1, "function": {"arguments": '"Rome"}'}},
            )
        },
        **both_calls(),
        streamed=True,
    ),
    "items that the end of a stream leaves out": Shape(
        {
            "responses": [
                {"type": "response.output_item.done", "item": response_call("erase", E_A, call_id="a")},
                {"type": "response.output_item.done", "item": response_call("look", L_R, call_id="b")},
                {"type": "response.completed", "response": response()},
            ]
        },
        **both_calls(),
        streamed=True,
    ),
    **{
        f"arguments {given!r}": Shape(
            assistant("", ToolCall("a", "look", given)), column=CALLS_A_TOOL, made=[("look", {"city": ""})], asked=2
        )
        for given in ("", "null", " ", "{}")
    },
    "names of tools that are none": Shape(
        assistant("", ToolCall("a", "files.erase it!", "{}"), ToolCall("b", "", "{}")),
        column=CALLS_A_TOOL,
        told="ToolError: there is no tool 'files.erase it!'",
        asked=2,
    ),
    **{
        f"broken arguments {given!r}": Shape(
            assistant("", ToolCall("a", "erase", given)),
            column=CALLS_A_TOOL,
            told="ToolError: erase does not take these arguments",
            asked=2,
        )
        for given in ('{"folder": "/', "[1]", '"/"', '{"folder": "/"} {"folder": "/b"}')
    },
}

OVERLOADED = {"message": "upstream overloaded", "code": 502}
FAILED_MESSAGE = {"type": "error", "error": {"type": "overloaded_error", "message": "upstream overloaded"}}
FAILED_RESPONSE = response(status="failed", error={"code": "server_error", "message": "upstream overloaded"})
DELTA = {"type": "response.output_text.delta", "delta": "It is"}

ERRORS: dict[str, Shape] = {
    "an error behind some text": Shape(
        {
            "chat": Sent(
                chat({"content": "It is"}, "error", error=OVERLOADED),
                [chunk(content="It is"), {**chunk("error", content=""), "error": OVERLOADED}],
            ),
            "responses": Sent(FAILED_RESPONSE, [DELTA, {"type": "response.failed", "response": FAILED_RESPONSE}]),
            "messages": Sent(
                message({"type": "text", "text": "It is"}, error=FAILED_MESSAGE["error"]),
                [*message_events((0, {"type": "text", "text": ""}, "It is"))[:-2], FAILED_MESSAGE],
            ),
        },
        "ModelUnavailable: .*upstream overloaded",
        then=(),
    ),
    "an error behind a call": Shape(
        {
            "chat": Sent(
                chat({"tool_calls": [called("erase", E_A, id="a")]}, "error", error={"message": "upstream overloaded"}),
                [
                    chunk(tool_calls=[called("erase", E_A, id="a", index=0)]),
                    chunk("tool_calls"),
                    {**chunk("error"), "error": "upstream overloaded"},
                ],
            ),
            "responses": Sent(
                FAILED_RESPONSE | {"output": [response_call("erase", E_A, call_id="a")]},
                [
                    {"type": "response.output_item.done", "item": response_call("erase", E_A, call_id="a")},
                    {"type": "response.error", "error": {"message": "upstream overloaded"}},
                ],
            ),
            "messages": Sent(
                FAILED_MESSAGE, [*message_events((0, used("erase", {}, id="a"), E_A))[:-2], FAILED_MESSAGE]
            ),
        },
        "ModelUnavailable: .*upstream overloaded",
        then=(),
    ),
    "an error of a choice": Shape(
        {
            "chat": {
                **chat({"content": "So"}),
                "choices": [{**chat({"content": "So"})["choices"][0], "error": OVERLOADED}],
            }
        },
        "ModelUnavailable: .*upstream overloaded",
        then=(),
    ),
    "an error as an object": Shape(
        {"chat": {"object": "error", "message": "upstream overloaded", "type": "BadGateway", "code": 502}},
        "ModelUnavailable: .*upstream overloaded",
        then=(),
    ),
    "a reason that is an error": Shape(
        {
            "chat": Sent(chat({"content": "So"}, "error"), [chunk(content="So"), chunk("error"), "[DONE]"]),
            "messages": Sent(
                message({"type": "text", "text": "So"}, reason="error"),
                message_events((0, {"type": "text", "text": ""}, "So"), reason="error"),
            ),
        },
        "ModelUnavailable: .*the server has ended the answer with 'error'",
        then=(),
    ),
    "an error that is none": Shape(
        {
            "chat": Sent(
                chat({"content": "It is Rome."}, error={"code": 0, "message": ""}),
                [{**chunk(content="It is Rome."), "error": None}, {**chunk("stop"), "error": {}}],
            ),
            "responses": response(
                {"type": "message", "content": [{"type": "output_text", "text": "It is Rome."}]}, error={}
            ),
        },
        "It is Rome.",
        asked=1,
    ),
    "an unknown reason": Shape(
        Completion(message=assistant("It is Rome."), finish_reason="weary"), "It is Rome.", asked=1
    ),
    "a known reason of another vendor": Shape(
        {
            "chat": chat({"content": "It is Rome."}, "STOP"),
            "messages": message({"type": "text", "text": "It is Rome."}, reason="stop"),
        },
        "It is Rome.",
        asked=1,
    ),
}

CUT = "MalformedAnswer: .*the answer was cut off at max_tokens"
REFUSED = {"role": "assistant", "type": "message", "content": [{"type": "refusal", "refusal": "I cannot say that."}]}


def ended(reason: str, text: str = "", *calls: ToolCall) -> Completion:
    return Completion(message=assistant(text, *calls), finish_reason=reason)


def refused(output: Any) -> Shape:
    return Shape(
        {
            "chat": Sent(chat({"refusal": "I cannot say that."}), [chunk(refusal="I cannot say that."), chunk("stop")]),
            "responses": Sent(response(REFUSED), response_events(REFUSED)),
            "messages": ended("content_filter", "I cannot say that."),
        },
        "ContentFiltered: .*I cannot say that.",
        column="ContentFiltered: ",
        output=output,
        asked=1,
    )


def searched(text: str) -> dict[str, Any]:
    search = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "Rome"}}
    return message({"type": "text", "text": text}, search, reason="pause_turn")


ENDS: dict[str, Shape] = {
    "a text that was cut off": Shape(ended("length", "It is Ro"), CUT, asked=1),
    "nothing but a cut": Shape(ended("length"), CUT, asked=1),
    "an output that was cut off, and another one": Shape(
        ended("length", '{"city": "Ro'), '{"city": "Rome"}', column=CUT, then=['{"city": "Rome"}'], output=City, asked=2
    ),
    "an output that was cut off and can be read": Shape(
        ended("length", '{"city": "Ro"}'), CUT, then=(), output=City, column=CUT, asked=2
    ),
    "a call that was cut off and can be read": Shape(
        ended("length", "", ERASE),
        column=CUT,
        told="ToolError: the answer was cut off at max_tokens=77, so erase was not called",
        asked=2,
    ),
    "a call that was cut off within its JSON": Shape(
        ended("length", "", LOOK, ToolCall("c", "erase", '{"folder": "/')),
        column=CUT,
        told="the answer was cut off at max_tokens=77, so look was not called",
        asked=2,
    ),
    "calls that are cut off again and again": Shape(
        ended("length", "", ToolCall("", "erase", '{"folder": "/')),
        CUT + "=77, twice in a row; a higher max_tokens= of the agent gives room",
        column=CUT,
        then=(),
        asked=2,
    ),
    "an item of a response that is not complete": Shape(
        {"responses": response(response_call("erase", '{"folder": "/"}', call_id="a", status="incomplete"))},
        column=CUT,
        told="the answer was cut off",
        asked=2,
    ),
    "a filtered answer": Shape(ended("content_filter", "So"), "ContentFiltered: ", asked=1),
    "a filtered answer without a text": Shape(ended("content_filter"), "ContentFiltered: ", asked=1),
    "a call of a filtered answer": Shape(ended("content_filter", "", ERASE), "ContentFiltered: ", asked=1),
    "a refusal": refused(None),
    "a refusal in place of an output": refused(City),
    "an empty answer": Shape("", "MalformedAnswer: .*the answer is empty", column=r"\Z", asked=1),
    "calls of an answer with an unknown reason": Shape(
        ended("weary", "", ERASE, LOOK),
        column="MalformedAnswer: ",
        made=[("look", {"city": "Rome"})],
        told="the answer has ended with 'weary', which is unknown, so erase was not called",
        asked=2,
    ),
    "calls with an unknown reason again and again": Shape(
        ended("weary", "", ToolCall("", "erase", "{}")),
        "MalformedAnswer: .*'weary', which is unknown, twice in a row",
        column="MalformedAnswer: ",
        then=(),
        asked=2,
    ),
    "a paused turn": Shape(
        {
            "messages": Sent(
                searched("I look."),
                [*message_events((0, {"type": "text", "text": ""}, "I look."), reason="pause_turn")],
            )
        },
        "It is Rome.",
        column="MalformedAnswer: .*the vendor has paused the answer",
        then=["It is Rome."],
        asked=2,
    ),
}

# -- what stands around an answer, and what is added to it ------------------------------------------------------------------

MARK = b"\xef\xbb\xbf"  # a byte order mark
ROME: dict[str, Any] = {"type": "text", "text": "It is Rome."}
ROME_WHOLE = {
    "chat": chat({"content": "It is Rome."}),
    "responses": response({"type": "message", "role": "assistant", "content": [{**ROME, "type": "output_text"}]}),
    "messages": message(ROME),
}
ROME_EVENTS: dict[str, list[Any]] = {
    "chat": [chunk(content="It is "), chunk("stop", content="Rome.")],
    "responses": [{"type": "response.completed", "response": ROME_WHOLE["responses"]}],
    "messages": message_events((0, {**ROME, "text": ""}, "It is Rome.")),
}


def json_of(value: Any) -> bytes:
    return json.dumps(value).encode()


def around(ping: Any) -> dict[str, Sent]:
    """The answer, in a stream with `ping` before each event and after the last."""
    return {
        api: Sent(ROME_WHOLE[api], [*(part for event in events for part in (ping, event)), ping])
        for api, events in ROME_EVENTS.items()
    }


AROUND: dict[str, Shape] = {
    **{
        f"a stream with {name}": Shape(around(ping), "It is Rome.", streamed=True, asked=1)
        for name, ping in {
            "pings without fields": {},
            "pings without a type": {"type": None},
            "choices that are null": {"choices": None},
            "no choices": {"id": "1", "prompt_filter_results": [{"prompt_index": 0}]},
            "events without data": b"data:\n\n",
        }.items()
    },
    "a byte order mark": Shape(
        {api: Sent(MARK + json_of(whole), [MARK, *ROME_EVENTS[api]]) for api, whole in ROME_WHOLE.items()},
        "It is Rome.",
        asked=1,
    ),
    "no line break after the last event": Shape(
        {api: Sent("", [*events[:-1], b"data: " + json_of(events[-1])]) for api, events in ROME_EVENTS.items()},
        "It is Rome.",
        streamed=True,
        asked=1,
    ),
}

SIGNED = {"google": {"thought_signature": "c2lnbmVk"}}
ADDED: dict[str, Shape] = {
    "a call with additions": Shape(
        {
            "chat": Sent(
                chat_calls(called("look", L_R, id="call_1", extra_content=SIGNED)),
                chunks(called("look", L_R, id="call_1", index=0), called("", index=0, extra_content=SIGNED)),
            ),
            "responses": Sent(
                response(response_call("look", L_R, call_id="call_1", extra_content=SIGNED)),
                response_events(response_call("look", L_R, call_id="call_1", extra_content=SIGNED)),
            ),
            "messages": Sent(
                message(used("look", {"city": "Rome"}, id="call_1", extra_content=SIGNED), reason="tool_use"),
                message_events((0, used("look", {}, id="call_1", extra_content=SIGNED), L_R), reason="tool_use"),
            ),
        },
        column=CALLS_A_TOOL,
        made=[("look", {"city": "Rome"})],
        told="Rome is there",
        asked=2,
        back=SIGNED,
    ),
    "a message with additions": Shape(
        {
            "chat": Sent(
                chat(
                    {"content": "I look.", "tool_calls": [called("look", L_R, id="a")], "notes": [SIGNED]}, "tool_calls"
                ),
                [chunk(content="I look.", notes=[SIGNED]), *chunks(called("look", L_R, id="a", index=0))],
            ),
            "messages": Sent(
                message({**ROME, "citations": [SIGNED]}, used("look", {"city": "Rome"}, id="a"), reason="tool_use"),
                message_events(
                    (0, {**ROME, "text": "", "citations": [SIGNED]}, "It is Rome."),
                    (1, used("look", {}, id="a"), L_R),
                    reason="tool_use",
                ),
            ),
        },
        column=CALLS_A_TOOL,
        made=[("look", {"city": "Rome"})],
        told="Rome is there",
        asked=2,
        back=SIGNED,
    ),
}

LEGACY = {"function_call": {"name": "look", "arguments": L_R}}
SEARCH = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
LOOKED: Any = {"column": CALLS_A_TOOL, "made": [("look", {"city": "Rome"})], "told": "Rome is there", "asked": 2}
CUT_CALL: Any = {"column": CUT, "told": "the answer was cut off at max_tokens", "asked": 2}

OLDER: dict[str, Shape] = {
    "the one call of older servers": Shape(
        {
            "chat": Sent(
                chat(LEGACY, "function_call"),
                [
                    chunk(function_call={"name": "look", "arguments": ""}),
                    chunk(function_call={"arguments": '{"city":'}),
                    chunk(function_call={"arguments": ' "Rome"}'}),
                    chunk("function_call"),
                    "[DONE]",
                ],
            )
        },
        **LOOKED,
    ),
    "a call in the form of older servers too": Shape(
        {
            "chat": Sent(
                chat({**LEGACY, "tool_calls": [called("look", L_R, id="a")]}, "tool_calls"),
                [chunk(**LEGACY, tool_calls=[called("look", L_R, id="a", index=0)]), chunk("tool_calls"), "[DONE]"],
            )
        },
        **LOOKED,
    ),
    "no reason": Shape(
        {
            "chat": Sent(chat({"content": "It is Rome."}, None), ROME_EVENTS["chat"]),
            "responses": response(ROME_WHOLE["responses"]["output"][0], status=None),
            "messages": Sent(message(ROME, reason=None), ROME_EVENTS["messages"]),
        },
        "It is Rome.",
        asked=1,
    ),
    "a call without a reason": Shape(
        {
            "chat": chat({"tool_calls": [called("erase", E_A, id="a"), called("look", L_R, id="b")]}, None),
            "messages": message(
                used("erase", {"folder": "/a"}, id="a"), used("look", {"city": "Rome"}, id="b"), reason=None
            ),
        },
        column=CALLS_A_TOOL,
        made=[("look", {"city": "Rome"})],
        told="the answer has ended with 'none', which is unknown",
        asked=2,
    ),
    "a cut that the end does not say": Shape(
        {
            "chat": Sent(
                chat_calls(called("erase", E_A, id="a"))
                | {"choices": [chat({"tool_calls": [called("erase", E_A, id="a")]}, "length")["choices"][0]]},
                [chunk(tool_calls=[called("erase", E_A, id="a", index=0)]), chunk("length"), chunk("stop"), "[DONE]"],
            ),
            "responses": response(
                response_call("erase", E_A, call_id="a"), incomplete_details={"reason": "max_output_tokens"}
            ),
            "messages": Sent(
                message(used("erase", {"folder": "/a"}, id="a"), reason="max_tokens"),
                [
                    *message_events((0, used("erase", {}, id="a"), E_A), reason="max_tokens")[:-1],
                    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
                    {"type": "message_stop"},
                ],
            ),
        },
        **CUT_CALL,
    ),
    "a text of a response that is not complete": Shape(
        {"responses": response({**ROME_WHOLE["responses"]["output"][0], "status": "incomplete"})}, CUT, asked=1
    ),
    "a filter of another vendor": Shape(
        {
            "chat": chat({"content": "So"}, "PROHIBITED_CONTENT"),
            "messages": message(ROME, reason="guardrail_intervened"),
        },
        "ContentFiltered: ",
        asked=1,
    ),
    "pieces of a text without an item": Shape(
        {
            "responses": [
                {"type": "response.output_text.delta", "delta": "It is "},
                {"type": "response.output_text.delta", "delta": "Rome."},
                {"type": "response.completed", "response": response()},
            ]
        },
        "It is Rome.",
        streamed=True,
        asked=1,
    ),
    "a content that is a text": Shape(
        {
            "responses": response({"type": "message", "role": "assistant", "content": "It is Rome."}),
            "messages": {**message(), "content": "It is Rome."},
        },
        "It is Rome.",
        asked=1,
    ),
    "a refusal that is none": Shape(
        {
            "chat": chat({"content": "It is Rome.", "refusal": None}),
            "responses": response(
                {"type": "message", "content": [{"type": "output_text", "text": "It is Rome.", "refusal": None}]}
            ),
        },
        "It is Rome.",
        asked=1,
    ),
    "a usage and names of another type": Shape(
        {
            "chat": chat({"content": "It is Rome."}, usage=[]),
            "responses": response(ROME_WHOLE["responses"]["output"][0], usage="?"),
            "messages": Sent(
                message(ROME, usage=[1]),
                [
                    {"type": "message_start", "message": {**message(), "model": 1, "id": [], "usage": 2}},
                    *ROME_EVENTS["messages"][1:],
                ],
            ),
        },
        "It is Rome.",
        asked=1,
    ),
    "a thought in the content": Shape(
        {
            "chat": Sent(
                chat(
                    {"content": [THOUGHT, {"type": "text", "text": "So"}], "tool_calls": [called("look", L_R, id="a")]},
                    "tool_calls",
                ),
                [chunk(content=[THOUGHT]), chunk(content="So"), *chunks(called("look", L_R, id="a", index=0))],
            )
        },
        back=THOUGHT,
        **LOOKED,
    ),
    "a search of the vendor": Shape(
        {
            "messages": Sent(
                message({**SEARCH, "input": {"query": "Rome"}}, reason="pause_turn"),
                message_events((0, SEARCH, '{"query": "Rome"}'), reason="pause_turn"),
            )
        },
        "It is Rome.",
        column="MalformedAnswer: .*the vendor has paused the answer",
        then=["It is Rome."],
        asked=2,
        back={"query": "Rome"},
    ),
    "parts of a block that are not known": Shape(
        {
            "messages": [
                *message_events((0, {"type": "compaction", "content": ""}, ""), reason="pause_turn")[:2],
                {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "compaction_delta", "content": "It was "},
                },
                {"type": "content_block_delta", "index": 0, "delta": {"type": "compaction_delta", "content": "said."}},
                *message_events((0, {}, ""), reason="pause_turn")[-2:],
            ]
        },
        "It is Rome.",
        column="",
        then=["It is Rome."],
        asked=2,
        streamed=True,
        back="It was said.",
    ),
}

USED_TOKENS = 50_041  # of each answer of USED


def with_usage(api: str, told: Mapping[str, Any]) -> Sent:
    events = {
        "chat": [*ROME_EVENTS["chat"], {"choices": [], "usage": told}],
        "responses": [{"type": "response.completed", "response": {**ROME_WHOLE["responses"], "usage": told}}],
        "messages": [
            *(each for each in ROME_EVENTS["messages"] if each["type"] not in ("message_delta", "message_stop")),
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": told},
        ],
    }[api]
    return Sent({**ROME_WHOLE[api], "usage": told}, events)


def usages(chat: Mapping[str, Any], messages: Mapping[str, Any] | None = None) -> dict[str, Sent]:
    """The answers with this usage of chat completions, which the responses have by other names, and of messages."""
    names = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}
    names |= {f"{name}_details": f"{other}_details" for name, other in names.items()}
    told = {"chat": chat, "responses": {names.get(name, name): value for name, value in chat.items()}}
    told |= {} if messages is None else {"messages": messages}
    return {api: with_usage(api, each) for api, each in told.items()}


TOTAL = {"prompt_tokens": 20, "completion_tokens": 21, "total_tokens": USED_TOKENS}
USED: dict[str, Shape] = {
    "reasoning beside the output": Shape(
        usages(
            {"prompt_tokens": 20, "completion_tokens": 21, "completion_tokens_details": {"reasoning_tokens": 50_000}},
            {"input_tokens": 20, "output_tokens": 21, "output_tokens_details": {"thinking_tokens": 50_000}},
        ),
        "It is Rome.",
    ),
    "reasoning in the total only": Shape(
        usages({"prompt_tokens": 20, "completion_tokens": 21, "total_tokens": USED_TOKENS}), "It is Rome."
    ),
    "a cache beside the input": Shape(
        usages(
            {"prompt_tokens": 20, "completion_tokens": 21, "prompt_tokens_details": {"cached_tokens": 50_000}},
            {"input_tokens": 20, "output_tokens": 21, "cache_read_input_tokens": 50_000},
        ),
        "It is Rome.",
    ),
    "a usage in the choice": Shape(
        {
            "chat": Sent(
                with_usage("chat", TOTAL).whole,
                [
                    ROME_EVENTS["chat"][0],
                    {"choices": [{**chunk("stop", content="Rome.")["choices"][0], "usage": TOTAL}]},
                ],
            )
        },
        "It is Rome.",
    ),
    "a usage of Groq": Shape(
        {
            "chat": Sent(
                with_usage("chat", TOTAL).whole, [*ROME_EVENTS["chat"], {"x_groq": {"id": "1", "usage": TOTAL}}]
            )
        },
        "It is Rome.",
    ),
}
"""Rows of a table of their own: each answer has USED_TOKENS, however its usage is told."""

SHAPES: dict[str, Shape] = {**PLAIN, **CALLS, **ERRORS, **ENDS, **AROUND, **ADDED, **OLDER}
"""The rows of the table, by their names, which the model gets as the prompt."""
