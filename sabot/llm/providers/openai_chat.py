"""The requests and answers of OpenAI's chat completions, which many servers have, as JSON.

A whole answer is read as a stream of one event. What vendors add to a message or a call, such as the signature of a
thought, is kept in its `vendor`, and is sent back to the same server. Other servers may refuse fields that they do not
know.
"""

import base64
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from sabot.engine.calls.messages import ChatMessage, Image, Part, Text, ToolCall
from sabot.engine.calls.model_requests import RequestSpec, ToolSchema
from sabot.engine.calls.usage import Usage
from sabot.errors import UNREADABLE, UserError
from sabot.llm.providers.sdk import (
    AnswerDecoder,
    SdkCalls,
    arguments_of,
    called_name,
    distinct_ids,
    greatest,
    is_strict,
    merged,
    most_used,
    usage_of,
)
from sabot.llm.results import Completion, Piece

_VENDOR = "openai.chat"


def chat_request(spec: RequestSpec, model: str, *, is_openai: bool, stream: bool, host: str = "") -> dict[str, Any]:
    """Returns the body of a request. `is_openai`: True if the request is for a server of OpenAI or for OpenAI's models
    on Azure, which have another name for `max_tokens` than all other servers. `host`: the host of the server, which gets
    back what it has added to messages and calls. Raises UserError for an image in a message that is not the user's.
    """
    body: dict[str, Any] = {
        "model": spec.model or model,
        "messages": [_message(each, spec, host) for each in spec.messages],
        "tools": [_tool(each) for each in spec.tools] or None,
        "tool_choice": spec.tool_choice if spec.tools and spec.tool_choice != "auto" else None,
        "temperature": spec.temperature,
        "top_p": spec.top_p,
        "max_completion_tokens" if is_openai else "max_tokens": spec.max_tokens,
        "stop": list(spec.stop) or None,
        "seed": spec.seed,
    }
    if spec.output is not None:
        shape = {"name": spec.output_name, "schema": spec.output, "strict": is_strict(spec.output)}
        body["response_format"] = {"type": "json_schema", "json_schema": shape}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return merged(body, spec.options)


def _message(message: ChatMessage, spec: RequestSpec, host: str) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": _content(message)}
    if message.role == "tool":
        said["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        said["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": called_name(call.name, spec), "arguments": arguments_of(call.arguments)},
            }
            for call in message.tool_calls
        ]
        said["content"] = said["content"] or None
    said |= (message.vendor or {}).get(_VENDOR, {})
    if message.vendor or any(call.vendor for call in message.tool_calls):
        server = f"{_VENDOR} {host}"
        said = grown(said, (message.vendor or {}).get(server, {}))
        for place, call in enumerate(message.tool_calls):
            said["tool_calls"][place] = grown(said["tool_calls"][place], (call.vendor or {}).get(server, {}))
    return said


def _content(message: ChatMessage) -> Any:
    if isinstance(message.content, str):
        return message.content
    if message.role != "user" and any(isinstance(part, Image) for part in message.content):
        raise UserError(f"openai: a {message.role} message takes no image", hint="send it in a message of the user")
    return [_part(part) for part in message.content]


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": image_url(part)}}


def _tool(tool: ToolSchema) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function | ({"strict": True} if is_strict(tool.parameters) else {})}


def image_url(image: Image) -> str:
    """Returns the address of an image, or a data URL if the image is given as bytes."""
    return image.url or f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"


def json_text(value: Any) -> str:
    """Returns the arguments of a tool call as JSON text. Most servers send them as text, which is returned unchanged;
    some send a JSON object, which is encoded.
    """
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _CallPart(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    more: dict[str, Any] = {}  # the fields that OpenAI's calls do not have; set when the part was decoded


def _text_of(part: _CallPart) -> str:
    """Returns the arguments in a part of a call, or "" if it has none."""
    function = part.function
    return "" if function is None or function.arguments is None else json_text(function.arguments)


class _ChatMessage(msgspec.Struct):
    """The message in an answer. In a stream, the next part of the message."""

    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    tool_calls: list[_CallPart] | None = None
    function_call: _Function | None = None  # before there were tool calls: one call without an id
    reasoning_content: str | None = None  # DeepSeek, vLLM; sent back if the message has tool calls
    reasoning: str | None = None  # OpenRouter, Ollama
    reasoning_details: list[Any] | None = None  # OpenRouter: signed, sent back

    @property
    def text(self) -> str:
        """The text of the message. If the server has sent it as a list of parts, their texts are joined."""
        if isinstance(self.content, list):
            return "".join(str(part.get("text") or "") for part in self.content)
        return self.content or ""


def _thought_in(part: dict[str, Any]) -> str:
    """Returns the text of a part of the content that is a thought, or "" if it is none."""
    told = part.get("thinking")
    if isinstance(told, list):
        return "".join(str(each.get("text") or "") for each in told if isinstance(each, dict))
    return told if isinstance(told, str) else ""


_OF_MESSAGE = frozenset(_ChatMessage.__struct_fields__) | {"role", "annotations", "audio"}
_OF_CALL = frozenset({"index", "id", "type"})
_OF_FUNCTION = frozenset({"name", "arguments"})


def _more_in(told: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """Returns the fields that are not known and have a value."""
    return {name: value for name, value in told.items() if name not in known and value not in (None, "", [], {})}


def grown(before: Any, more: Any) -> Any:
    """Returns a value to which another part was added, in the way of the parts of a stream: texts are joined unless they
    are equal, lists are joined, and dicts get the fields of both. Anything else is replaced.
    """
    match before, more:
        case dict(), dict():
            return {**before, **{name: grown(before.get(name), value) for name, value in more.items()}}
        case list(), list():
            return [*before, *more]
        case str(), str():
            return before if before == more else before + more
    return more


class _Choice(msgspec.Struct):
    message: dict[str, Any] | None = None
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None
    error: Any = None  # OpenRouter
    usage: Any = None  # Moonshot


class _Answer(msgspec.Struct):
    choices: list[_Choice] | None = None
    model: str | None = None
    id: str | None = None
    usage: Any = None
    error: Any = None
    object: Any = None  # "error" of older vLLM
    x_groq: Any = None  # the usage and the errors of Groq's streams


@dataclass(slots=True, eq=False)
class _ChatCall:
    """A tool call whose parts are arriving. `index`: that of its newest part, or None."""

    index: int | None
    id: str
    name: str
    texts: list[str]
    more: dict[str, Any]

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def is_whole(self) -> bool:
        """True if the arguments are a whole JSON object, behind which nothing can follow."""
        last = next((each for each in reversed(self.texts) if each), "")
        if last.rstrip().endswith("}"):
            with suppress(*UNREADABLE):
                return isinstance(msgspec.json.decode(self.text), dict)
        return False


class ChatDecoder(AnswerDecoder):
    """A decoder of chat completions. `whole` decodes a whole answer; `feed` decodes the events of a stream.

    `asked`: the messages of the request, whose tool calls have other ids than those of the answer.
    """

    def __init__(self, calls: SdkCalls, provider: str, model: str, asked: Sequence[ChatMessage] = ()) -> None:
        self.is_over = False
        self._calls = calls
        self._provider = provider
        self._model = self._answered = model
        self._id = ""
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._details: list[Any] = []
        self._thought: list[str] = []  # the reasoning of servers that have another name for it
        self._server = f"{_VENDOR} {calls.host}"
        self._more: dict[str, Any] = {}  # what the message has beside OpenAI's fields
        self._others: list[dict[str, Any]] = []  # the parts of its content that are no texts: thoughts of Mistral
        self._asked = asked
        self._parts: list[_ChatCall] = []
        self._is_refused = False
        self._reason: str | None = None
        self._usage: Usage | None = None

    def feed(self, data: bytes, request_id: str) -> Iterable[Piece]:
        if data == b"[DONE]":
            self.is_over = True
            return ()
        answer = self._calls.decoded(data, _Answer, self._model, request_id)
        self._calls.check_error(answer.error, self._model, request_id)
        if answer.object == "error":
            raise self._calls.no_answer(data, self._model, request_id)
        self._answered = answer.model or self._answered
        self._id = answer.id or self._id
        self._count(answer.usage)
        if isinstance(answer.x_groq, dict):
            self._calls.check_error(answer.x_groq.get("error"), self._model, request_id)
            self._count(answer.x_groq.get("usage"))
        if not answer.choices:  # a ping, the usage, or what a filter has found in the prompt
            return ()
        choice = answer.choices[0]
        delta = choice.delta or {}
        text = delta.get("content")
        if type(text) is str and len(delta) == 1 and not (choice.message or choice.finish_reason or choice.error):
            self._texts.append(text)  # the short way, for most events of a stream
            return (Piece(text),) if text else ()
        return list(self._pieces(choice, data, request_id))

    def _count(self, told: Any) -> None:
        if told:
            self._usage = most_used(self._usage, usage_in(told, "prompt", "completion"))

    def _said(self, told: dict[str, Any], data: bytes, request_id: str) -> _ChatMessage:
        """Returns the message in an event, or the next part of it. Keeps what it has beside OpenAI's fields."""
        try:
            said = msgspec.convert(told, _ChatMessage)
        except msgspec.ValidationError as error:
            raise self._calls.no_answer(data, self._model, request_id, str(error)) from None
        self._more = grown(self._more, _more_in(told, _OF_MESSAGE))
        if isinstance(told.get("audio"), dict) and "id" in told["audio"]:
            self._more["audio"] = {"id": told["audio"]["id"]}  # OpenAI has stored the sound itself
        for part, call in zip(said.tool_calls or (), told.get("tool_calls") or (), strict=True):
            part.more = _more_in(call, _OF_CALL)
            function = part.more.pop("function", None) or {}
            if of_function := _more_in(function, _OF_FUNCTION):
                part.more["function"] = of_function
        return said

    def _pieces(self, choice: _Choice, data: bytes, request_id: str) -> Iterator[Piece]:
        self._calls.check_error(choice.error, self._model, request_id)
        self._count(choice.usage)
        said = self._said(choice.message or choice.delta or {}, data, request_id)
        if reasoning := said.reasoning_content or said.reasoning:
            self._reasoning.append(said.reasoning_content or "")
            self._thought.append("" if said.reasoning_content else reasoning)
            yield Piece(reasoning=reasoning)
        if isinstance(said.content, list):
            others = [part for part in said.content if not isinstance(part.get("text"), str)]
            self._others += others
            if thought := "".join(map(_thought_in, others)):
                yield Piece(reasoning=thought)
        self._details += said.reasoning_details or ()
        self._is_refused |= bool(said.refusal)
        if text := said.text + (said.refusal or ""):
            self._texts.append(text)
            yield Piece(text)
        before = len(self._parts)  # the calls from here on have begun in this event
        calls = said.tool_calls or ()
        if said.function_call is not None and not calls:  # some servers send the call in both forms
            calls = [_CallPart(function=said.function_call)]
        for part in calls:
            self._add(part, None if choice.message is not None else self._continued(part, before))
        if choice.finish_reason:
            self._reason = self._calls.reason(choice.finish_reason, self._model, request_id, self._reason)

    def _continued(self, part: _CallPart, before: int) -> _ChatCall | None:
        """Returns the call that a part of a stream continues, or None if it begins another one. Some servers send no
        index or the same one for all calls, no ids, the id again with each part, or the name after the id.

        `before`: the number of calls that had begun before the event of this part.
        """
        name, calls = (part.function or _Function()).name, self._parts
        at = next((each for each in reversed(calls) if part.index in (None, each.index)), None)
        found = at
        if part.id:
            found = next((each for each in reversed(calls) if each.id == part.id), None)
            if found is None and at is not None and not at.id and (part.index is not None or not name):
                found = at  # the id comes after the index or the name
        if found is None or not name:
            return found
        if found.name not in ("", name):
            return None
        begun_here = any(each is found for each in calls[before:])
        text = _text_of(part).lstrip()
        if not found.name or not (text.startswith("{") and found.is_whole):
            return None if begun_here and not part.id else found
        same = part.id and part.index == found.index and text == found.text  # sent once more, as a whole
        return found if same else None

    def _add(self, part: _CallPart, call: _ChatCall | None) -> None:
        name, text = (part.function or _Function()).name, _text_of(part)
        if call is None:
            self._parts.append(_ChatCall(part.index, part.id or "", name or "", [text], part.more))
            return
        call.id, call.name = call.id or part.id or "", call.name or name or ""
        call.more = grown(call.more, part.more)
        # nothing can follow: the arguments come again, or "{}" stood for them
        if text.lstrip().startswith("{") and call.is_whole:
            if call.text == "{}":
                call.texts = [text]
            elif call.text != text:
                call.texts.append(text)
            return
        call.texts.append(text)

    def _tool_calls(self) -> tuple[ToolCall, ...]:
        ids = distinct_ids([each.id for each in self._parts], self._asked)
        return tuple(
            ToolCall(call_id, each.name, each.text, {self._server: each.more} if each.more else None)
            for call_id, each in zip(ids, self._parts, strict=True)
        )

    def whole(self, data: bytes, request_id: str) -> Completion:
        self.feed(data, request_id)
        if self._reason is None and (self._parts or self._texts):  # it is whole, for its JSON is
            self._reason = "none"
        completion = self.end(request_id)
        if completion is None:
            raise self._calls.no_answer(data, self._model, request_id)
        return completion

    def end(self, request_id: str) -> Completion | None:
        if self._reason is None:
            return None
        calls, reason = self._tool_calls(), self._reason
        if self._is_refused:
            reason = "content_filter"
        elif calls and reason == "stop":
            reason = "tool_calls"
        vendor: dict[str, Any] = {}
        if self._details:
            vendor["reasoning_details"] = self._details
        if calls and (reasoning := "".join(self._reasoning)):
            vendor["reasoning_content"] = reasoning
        more = self._more
        if calls and not self._details and (thought := "".join(self._thought)):
            more = {**more, "reasoning": thought}
        if self._others:
            texts = [{"type": "text", "text": text}] if (text := "".join(self._texts)) else []
            more = {**more, "content": [*self._others, *texts]}
        kept = {name: value for name, value in ((_VENDOR, vendor), (self._server, more)) if value}
        return Completion(
            message=ChatMessage("assistant", "".join(self._texts), calls, vendor=kept or None),
            finish_reason=reason,
            usage=self._usage,
            provider=self._provider,
            model=self._answered,
            request_id=request_id or self._id,
        )


def usage_in(told: Any, read: str, written: str) -> Usage | None:
    """Converts the usage `told` that the server has reported, by the rules of `usage_of`. Returns None if the usage is
    incomplete or impossible. `read` and `written`: the API's words for input and output, such as "prompt" and
    "completion" for the fields `prompt_tokens` and `completion_tokens`. Some servers have the parts in details of input
    and output, others beside them, and others by Anthropic's names.
    """
    if not isinstance(told, dict):
        return None
    details, made = told.get(f"{read}_tokens_details"), told.get(f"{written}_tokens_details")
    details, made = (each if isinstance(each, dict) else {} for each in (details, made))
    find = told.get
    return usage_of(
        find(f"{read}_tokens"),
        find(f"{written}_tokens"),
        total=find("total_tokens"),
        cached=greatest(
            details.get("cached_tokens"),
            find("cached_tokens"),
            find("prompt_cache_hit_tokens"),
            find("cache_read_input_tokens"),
        ),
        cache_write=greatest(details.get("cache_write_tokens"), find("cache_creation_input_tokens")),
        reasoning=greatest(made.get("reasoning_tokens"), find("reasoning_tokens")),
    )
