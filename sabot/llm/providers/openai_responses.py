"""The requests and answers of OpenAI's responses, as JSON.

An answer is a list of items. If there are others than texts and tool calls (reasoning), or if an item has more fields
than those of a text or a call (citations), the message keeps all items in `vendor`, and later requests send them back
unchanged. A reasoning item contains only an id, and OpenAI reads the
reasoning again. The number of its tokens is kept too, so that budgets count them.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from sabot.engine.calls.messages import ChatMessage, Part, Text, ToolCall
from sabot.engine.calls.model_requests import RequestSpec, ToolSchema
from sabot.errors import UserError
from sabot.llm.providers.openai_chat import image_url, json_text, usage_in
from sabot.llm.providers.sdk import (
    AnswerDecoder,
    SdkCalls,
    arguments_of,
    called_name,
    distinct_ids,
    has_only,
    is_strict,
    merged,
)
from sabot.llm.results import Completion, Piece

_VENDOR = "openai.responses"
_REASONING = "openai.responses.reasoning_tokens"
_TEXT = ("type", "text", "refusal", "logprobs")
_PLAIN = {  # the fields of plain items and their parts, by type
    "message": ("type", "id", "status", "role", "content"),
    "function_call": ("type", "id", "status", "call_id", "name", "arguments"),
    "output_text": _TEXT,
    "refusal": _TEXT,
}
RESPONSES_LACK = frozenset({"seed", "stop"})
_ENDS = {"response.completed", "response.incomplete", "response.failed", "response.cancelled"}


def responses_request(spec: RequestSpec, model: str, *, stream: bool) -> dict[str, Any]:
    """Returns the body of a request. Raises UserError for fields that this API has no parameter for."""
    for name in RESPONSES_LACK:
        if getattr(spec, name) not in (None, ()):
            raise UserError(
                f"openai: the responses API has no {name}=", hint='leave it out, or use OpenAIProvider(api="chat")'
            )
    body: dict[str, Any] = {
        "model": spec.model or model,
        "input": [item for message in spec.messages for item in _items(message, spec)],
        "tools": [_tool(each) for each in spec.tools] or None,
        "tool_choice": spec.tool_choice if spec.tools and spec.tool_choice != "auto" else None,
        "temperature": spec.temperature,
        "top_p": spec.top_p,
        "max_output_tokens": spec.max_tokens,
    }
    if spec.output is not None:
        shape = {"name": spec.output_name, "schema": spec.output, "strict": is_strict(spec.output)}
        body["text"] = {"format": {"type": "json_schema", **shape}}
    if stream:
        body["stream"] = True
    return merged(body, spec.options)


def _items(message: ChatMessage, spec: RequestSpec) -> Iterator[dict[str, Any]]:
    kept = (message.vendor or {}).get(_VENDOR)
    if kept is not None:
        for item in kept:
            if item.get("type") != "function_call":
                yield item
                continue
            arguments = arguments_of(json_text(item.get("arguments") or ""))
            yield item | {"name": called_name(str(item.get("name") or ""), spec), "arguments": arguments}
    elif message.role == "tool":
        yield {"type": "function_call_output", "call_id": message.tool_call_id, "output": _content(message)}
    else:
        if message.content or not message.tool_calls:
            content = message.text if message.role == "assistant" else _content(message)
            yield {"role": message.role, "content": content}
        for call in message.tool_calls:
            yield {
                "type": "function_call",
                "call_id": call.id,
                "name": called_name(call.name, spec),
                "arguments": arguments_of(call.arguments),
            }


def _content(message: ChatMessage) -> Any:
    return message.content if isinstance(message.content, str) else [_part(part) for part in message.content]


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "input_text", "text": part.text}
    return {"type": "input_image", "image_url": image_url(part)}


def _tool(tool: ToolSchema) -> dict[str, Any]:
    strict = is_strict(tool.parameters)  # always sent, because OpenAI's default is true
    names = {"name": tool.name, "description": tool.description}
    return {"type": "function", **names, "parameters": tool.parameters, "strict": strict}


class _Response(msgspec.Struct):
    output: list[dict[str, Any]] | None
    status: str | None = "completed"
    incomplete_details: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    usage: Any = None
    id: str | None = None
    model: str | None = None


class _ResponseEvent(msgspec.Struct):
    type: str | None = None  # none in the pings of some proxies
    delta: Any = None
    item: dict[str, Any] | None = None
    response: msgspec.Raw = msgspec.Raw(b"")


class ResponsesDecoder(AnswerDecoder):
    """A decoder of answers of OpenAI's API "responses". `take` decodes a whole answer; `feed` decodes the events of a
    stream. `asked`: the messages of the request, whose tool calls have other ids than those of the answer.
    """

    def __init__(self, calls: SdkCalls, provider: str, model: str, asked: Sequence[ChatMessage] = ()) -> None:
        self.is_over = False
        self._calls = calls
        self._provider = provider
        self._model = model
        self._asked = asked
        self._items: list[dict[str, Any]] = []  # those that a stream has brought so far
        self._texts: list[str] = []  # its pieces of text
        self._completion: Completion | None = None

    def feed(self, data: bytes, request_id: str) -> Iterable[Piece]:
        event = self._calls.decoded(data, _ResponseEvent, self._model, request_id)
        kind, delta = event.type, event.delta if isinstance(event.delta, str) else ""
        if kind in _ENDS:
            self.take(bytes(event.response), request_id)
        elif kind in ("error", "response.error", None) and (
            error := self._calls.error_in(data, self._model, request_id)
        ):
            raise error
        elif kind in ("response.output_text.delta", "response.refusal.delta") and delta:
            self._texts.append(delta)
            return (Piece(delta),)
        elif kind in ("response.reasoning_summary_text.delta", "response.reasoning_text.delta") and delta:
            return (Piece(reasoning=delta),)
        elif kind == "response.output_item.done" and event.item:
            self._items.append(event.item)
        return ()

    def take(self, data: bytes, request_id: str) -> None:
        """Decodes a whole answer; `end` then returns it as a Completion. Raises ModelError if it is an error or cannot
        be decoded.
        """
        response = self._calls.decoded(data, _Response, self._model, request_id)
        if response.error or response.status not in ("completed", "incomplete", None):
            told = response.error or {"message": f"the response is {response.status}"}
            raise self._calls.error_of(told, self._model, request_id)
        self.is_over = True
        output = response.output or self._items  # some proxies leave the items out of the end of a stream
        if not output and self._texts:  # or have sent nothing but pieces of text
            output = [{"type": "message", "content": "".join(self._texts)}]
        called = [item for item in output if item.get("type") == "function_call"]
        ids = distinct_ids([str(item.get("call_id") or "") for item in called], self._asked)
        calls = tuple(_call_of(call_id, item) for call_id, item in zip(ids, called, strict=True))
        for call, item in zip(calls, called, strict=True):
            item["call_id"] = call.id
        parts = [part for item in output if item.get("type") == "message" for part in _parts_of(item)]
        text = "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)
        is_plain = all(has_only(each, _PLAIN.get(str(each.get("type")))) for each in (*output, *parts))
        reason, why = "tool_calls" if calls else "stop", (response.incomplete_details or {}).get("reason")
        if response.status == "incomplete" or why:  # some proxies say that each response is completed
            reason = self._calls.reason(str(why or response.status), self._model, request_id)
        elif any(item.get("status") == "incomplete" for item in output if str(item.get("type")) in _PLAIN):
            reason = "length"
        elif any(part.get("refusal") or part.get("type") == "refusal" for part in parts):
            reason = "content_filter"
        usage = usage_in(response.usage, "input", "output")
        vendor: dict[str, Any] = {} if is_plain else {_VENDOR: output}
        if vendor and usage is not None and usage.reasoning_tokens:
            vendor[_REASONING] = usage.reasoning_tokens
        self._completion = Completion(
            message=ChatMessage("assistant", text, calls, vendor=vendor or None),
            finish_reason=reason,
            usage=usage,
            provider=self._provider,
            model=response.model or self._model,
            request_id=request_id or response.id or "",
        )

    def whole(self, data: bytes, request_id: str) -> Completion:
        self.take(data, request_id)
        assert self._completion is not None
        return self._completion

    def end(self, request_id: str) -> Completion | None:
        return self._completion


def _parts_of(item: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the parts of a message, also if its content is a text as in chat completions."""
    content = item.get("content")
    if isinstance(content, str):
        return [{"type": "output_text", "text": content}]
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _call_of(call_id: str, item: dict[str, Any]) -> ToolCall:
    return ToolCall(call_id, str(item.get("name") or ""), json_text(item.get("arguments") or ""))
