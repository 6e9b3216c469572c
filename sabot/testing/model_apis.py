"""The vendors' APIs from the side of a server, which decodes requests, and encodes answers as a whole or as events.

`vendor` of a message in an answer contains the vendor's own parts of it, in the form in which the providers store
them.
"""

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import msgspec

from sabot.engine.calls.errors import (
    AuthenticationFailed,
    ContentFiltered,
    ContextLengthExceeded,
    ModelError,
    RateLimited,
    RequestRefused,
)
from sabot.engine.calls.messages import ChatMessage, Image, Part, Text, ToolCall
from sabot.engine.calls.model_requests import RequestSpec, ToolSchema
from sabot.llm.results import Completion


def status_of(error: ModelError) -> int:
    """Returns the HTTP status of an error: its own, or that of its class."""
    kinds = {AuthenticationFailed: 401, RateLimited: 429, ContentFiltered: 400, RequestRefused: 400}
    return error.status or next((status for kind, status in kinds.items() if isinstance(error, kind)), 500)


def _event(data: object, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


def _halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


def _image(url: str) -> Image:
    if not url.startswith("data:"):
        return Image(url=url)
    media_type, _, data = url.removeprefix("data:").partition(";base64,")
    return Image(data=base64.b64decode(data), media_type=media_type)


def _content(parts: Any) -> str | tuple[Part, ...]:
    """Returns the content of a message: a text, or parts in the form of any of the APIs. Raises RequestRefused for
    unknown parts.
    """
    if isinstance(parts, str) or parts is None:
        return parts or ""
    found: list[Part] = []
    for part in parts:
        match part:
            case {"text": str(text)}:
                found.append(Text(text))
            case (
                {"image_url": {"url": str(url)}}
                | {"image_url": str(url)}
                | {"source": {"type": "url", "url": str(url)}}
            ):
                found.append(_image(url))
            case {"source": {"media_type": str(kind), "data": str(data)}}:
                found.append(Image(data=base64.b64decode(data), media_type=kind))
            case {"type": "thinking"}:
                pass  # a thought of an earlier answer
            case _:
                raise RequestRefused(f"a part of a message is of no kind that is known here: {part}")
    return tuple(found)


def _request_of(fields: dict[str, Any], body: dict[str, Any], *known: str) -> RequestSpec:
    """Returns the request with these fields; those that are None are left out. `known`: the names in `body` from
    which the fields were made. All other names become options.
    """
    rest = {name: value for name, value in body.items() if name not in (*known, "stream", "stream_options")}
    return RequestSpec(options=rest, **{name: value for name, value in fields.items() if value is not None})


def _openai_error(error: ModelError) -> dict[str, Any]:
    kind, code = "server_error", None
    match error:
        case AuthenticationFailed():
            kind, code = "invalid_request_error", "invalid_api_key"
        case RateLimited():
            kind, code = "requests", "rate_limit_exceeded"
        case ContextLengthExceeded():
            kind, code = "invalid_request_error", "context_length_exceeded"
        case ContentFiltered():
            kind, code = "invalid_request_error", "content_filter"
        case RequestRefused():
            kind = "invalid_request_error"
    return {"error": {"message": error.message, "type": kind, "param": None, "code": code}}


class ChatApi:
    """The API of OpenAI's chat completions."""

    def spec(self, body: dict[str, Any]) -> RequestSpec:
        """Returns the request in a body. Parameters without a field in RequestSpec go into its `options`."""
        schema = (body.get("response_format") or {}).get("json_schema")
        fields = {
            "messages": tuple(self._message(each) for each in body["messages"]),
            "model": body["model"],
            "tools": tuple(
                ToolSchema(
                    each["function"]["name"], each["function"].get("description", ""), each["function"]["parameters"]
                )
                for each in body.get("tools", ())
            ),
            "tool_choice": body.get("tool_choice"),
            "output": schema and schema["schema"],
            "output_name": schema and schema["name"],
            "temperature": body.get("temperature"),
            "top_p": body.get("top_p"),
            "max_tokens": body.get("max_completion_tokens", body.get("max_tokens")),
            "stop": tuple(body.get("stop", ())),
            "seed": body.get("seed"),
        }
        return _request_of(fields, body, *fields, "response_format", "max_completion_tokens")

    def _message(self, said: dict[str, Any]) -> ChatMessage:
        known = {"role", "content", "tool_calls", "tool_call_id"}
        vendor = {name: value for name, value in said.items() if name not in known}
        return ChatMessage(
            "system" if said["role"] == "developer" else said["role"],
            _content(said.get("content")),
            tuple(map(self._asked_call, said.get("tool_calls", ()))),
            said.get("tool_call_id", ""),
            vendor={"openai.chat": vendor} if vendor else None,
        )

    def _asked_call(self, call: dict[str, Any]) -> ToolCall:
        more = {name: value for name, value in call.items() if name not in ("id", "type", "function")}
        function = {name: value for name, value in call["function"].items() if name not in ("name", "arguments")}
        more |= {"function": function} if function else {}
        said = call["function"]
        return ToolCall(call["id"], said["name"], said["arguments"], {"openai.chat": more} if more else None)

    def whole(self, answer: Completion) -> dict[str, Any]:
        """Returns the body of an answer that is not streamed."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.content or None, "refusal": None}
        if answer.tool_calls:
            message["tool_calls"] = [self._call(call) for call in answer.tool_calls]
        message |= (answer.message.vendor or {}).get("openai.chat", {})
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        return self._body("chat.completion", answer, [choice]) | {"usage": self._usage(answer)}

    def events(self, answer: Completion, texts: Sequence[str]) -> Iterator[bytes]:
        """Yields the events of an answer whose text is streamed in these pieces."""
        """Yields chunks: the vendor's fields, the text, each tool call in two halves, the finish reason, and the
        usage.
        """
        yield self._chunk(answer, {"role": "assistant", "content": ""})
        for name, value in (answer.message.vendor or {}).get("openai.chat", {}).items():
            yield self._chunk(answer, {name: value})
        for text in texts:
            yield self._chunk(answer, {"content": text})
        for index, call in enumerate(answer.tool_calls):
            first, second = _halves(call.arguments)
            start = self._call(msgspec.structs.replace(call, arguments=first)) | {"index": index}
            yield self._chunk(answer, {"tool_calls": [start]})
            yield self._chunk(answer, {"tool_calls": [{"index": index, "function": {"arguments": second}}]})
        yield self._chunk(answer, {}, answer.finish_reason)
        yield _event(self._body("chat.completion.chunk", answer, []) | {"usage": self._usage(answer)})
        yield b"data: [DONE]\n\n"

    def error(self, error: ModelError) -> dict[str, Any]:
        """Returns the body of an error."""
        return _openai_error(error)

    def _chunk(self, answer: Completion, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event(self._body("chat.completion.chunk", answer, [choice]) | {"usage": None})

    def _body(self, kind: str, answer: Completion, choices: list[Any]) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{answer.request_id}",
            "object": kind,
            "created": 1_700_000_000,
            "model": answer.model,
        } | {"choices": choices}

    def _call(self, call: ToolCall) -> dict[str, Any]:
        more = (call.vendor or {}).get("openai.chat", {})
        function = {"name": call.name, "arguments": call.arguments, **more.get("function", {})}
        return {**more, "id": call.id, "type": "function", "function": function}

    def _usage(self, answer: Completion) -> dict[str, Any] | None:
        usage = answer.usage
        return (
            None
            if usage is None
            else {
                "prompt_tokens": usage.input_tokens,
                "completion_tokens": usage.output_tokens,
                "total_tokens": usage.total_tokens,
                "prompt_tokens_details": {
                    "cached_tokens": usage.cached_tokens,
                    "cache_write_tokens": usage.cache_write_tokens,
                },
                "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            }
        )


class ResponsesApi:
    """The API of OpenAI's responses."""

    def spec(self, body: dict[str, Any]) -> RequestSpec:
        shape = (body.get("text") or {}).get("format") or {}
        fields = {
            "messages": tuple(self._messages(body["input"])),
            "model": body["model"],
            "tools": tuple(
                ToolSchema(each["name"], each.get("description", ""), each["parameters"])
                for each in body.get("tools", ())
            ),
            "tool_choice": body.get("tool_choice"),
            "output": shape.get("schema"),
            "output_name": shape.get("name"),
            "temperature": body.get("temperature"),
            "top_p": body.get("top_p"),
            "max_tokens": body.get("max_output_tokens"),
        }
        return _request_of(fields, body, *fields, "input", "max_output_tokens", "text")

    def _messages(self, items: Any) -> Iterator[ChatMessage]:
        """Yields the messages of a request. Consecutive items of one answer become one message."""
        if isinstance(items, str):
            yield ChatMessage("user", items)
            return
        answer: list[dict[str, Any]] = []
        for item in items:
            kind = item.get("type", "message")
            if kind in ("reasoning", "function_call") or item.get("role") == "assistant":
                answer.append(item)
                continue
            if answer:
                yield self._answer(answer)
                answer = []
            if kind == "function_call_output":
                yield ChatMessage("tool", _content(item["output"]), tool_call_id=item["call_id"])
            else:
                yield ChatMessage(item["role"], _content(item["content"]))
        if answer:
            yield self._answer(answer)

    def _answer(self, items: list[dict[str, Any]]) -> ChatMessage:
        texts = [_content(each["content"]) for each in items if each.get("role") == "assistant"]
        calls = [each for each in items if each.get("type") == "function_call"]
        return ChatMessage(
            "assistant",
            "".join(each if isinstance(each, str) else ChatMessage("assistant", each).text for each in texts),
            tuple(ToolCall(each["call_id"], each["name"], each["arguments"]) for each in calls),
            vendor={"openai.responses": items} if any(each.get("type") == "reasoning" for each in items) else None,
        )

    def whole(self, answer: Completion) -> dict[str, Any]:
        words = {"length": "max_output_tokens", "stop": None, "tool_calls": None}
        cut = words.get(answer.finish_reason, answer.finish_reason)
        return self._body(answer) | {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": cut and {"reason": cut},
            "output": self._items(answer),
            "usage": self._usage(answer),
        }

    def events(self, answer: Completion, texts: Sequence[str]) -> Iterator[bytes]:
        """Yields the events of the response's items, with deltas of texts, reasoning and arguments."""
        numbers = iter(range(1 << 30))

        def event(kind: str, **fields: Any) -> bytes:
            return _event({"type": kind, "sequence_number": next(numbers), **fields}, kind)

        yield event("response.created", response=self._body(answer) | {"status": "in_progress", "output": []})
        for index, item in enumerate(self._items(answer)):
            place = {"item_id": item["id"], "output_index": index}
            yield event("response.output_item.added", output_index=index, item=item | {"status": "in_progress"})
            if item["type"] == "message":
                for text in texts:
                    yield event("response.output_text.delta", content_index=0, delta=text, **place)
            elif item["type"] == "reasoning":
                for number, part in enumerate(item.get("summary", ())):
                    yield event(
                        "response.reasoning_summary_text.delta", summary_index=number, delta=part["text"], **place
                    )
            else:
                for half in _halves(item["arguments"]):
                    yield event("response.function_call_arguments.delta", delta=half, **place)
            yield event("response.output_item.done", output_index=index, item=item)
        whole = self.whole(answer)
        yield event(f"response.{whole['status']}", response=whole)

    def error(self, error: ModelError) -> dict[str, Any]:
        return _openai_error(error)

    def _body(self, answer: Completion) -> dict[str, Any]:
        return {"id": f"resp_{answer.request_id}", "object": "response", "model": answer.model, "error": None}

    def _items(self, answer: Completion) -> list[dict[str, Any]]:
        given = (answer.message.vendor or {}).get("openai.responses")
        if given is not None:
            return list(given)
        items: list[dict[str, Any]] = []
        if answer.content or not answer.tool_calls:
            part = {"type": "output_text", "text": answer.content, "annotations": []}
            items.append({"type": "message", "id": f"msg_{answer.request_id}", "role": "assistant", "content": [part]})
        for call in answer.tool_calls:
            names = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
            items.append({"type": "function_call", "id": f"fc_{call.id}", **names})
        return [{**item, "status": "completed"} for item in items]

    def _usage(self, answer: Completion) -> dict[str, Any] | None:
        usage = answer.usage
        return (
            None
            if usage is None
            else {
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "total_tokens": usage.total_tokens,
                "input_tokens_details": {
                    "cached_tokens": usage.cached_tokens,
                    "cache_write_tokens": usage.cache_write_tokens,
                },
                "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            }
        )


class MessagesApi:
    """The API of Anthropic's messages."""

    def spec(self, body: dict[str, Any]) -> RequestSpec:
        choice = {"any": "required"}
        kind = (body.get("tool_choice") or {}).get("type")
        config = dict(body.get("output_config") or {})
        shape = config.pop("format", None) or {}
        messages = [each for said in body["messages"] for each in self._messages(said)]
        if system := body.get("system"):
            messages.insert(0, ChatMessage("system", ChatMessage("system", _content(system)).text))
        fields = {
            "messages": tuple(messages),
            "model": body["model"],
            "tools": tuple(
                ToolSchema(each["name"], each.get("description", ""), each["input_schema"])
                for each in body.get("tools", ())
            ),
            "tool_choice": kind and choice.get(kind, kind),
            "output": shape.get("schema"),
            "temperature": body.get("temperature"),
            "top_p": body.get("top_p"),
            "max_tokens": body["max_tokens"],
            "stop": tuple(body.get("stop_sequences", ())),
        }
        rest = body | {"output_config": config} if config else body
        return _request_of(fields, rest, *fields, "system", "stop_sequences", *([] if config else ["output_config"]))

    def _messages(self, said: dict[str, Any]) -> Iterator[ChatMessage]:
        """Yields the messages in one message of Anthropic. That of a user may begin with tool results, which become
        messages of their own.
        """
        blocks = said["content"]
        if isinstance(blocks, str):
            yield ChatMessage(said["role"], blocks)
            return
        if said["role"] == "assistant":
            yield self._answer(blocks)
            return
        for block in blocks:
            if block["type"] == "tool_result":
                content = _content(block.get("content"))
                yield ChatMessage("tool", content, (), block["tool_use_id"], bool(block.get("is_error")))
        if rest := [block for block in blocks if block["type"] != "tool_result"]:
            content = _content(rest)
            plain = len(content) == 1 and isinstance(content[0], Text)
            yield ChatMessage("user", ChatMessage("user", content).text if plain else content)

    def _answer(self, blocks: list[dict[str, Any]]) -> ChatMessage:
        calls = [each for each in blocks if each["type"] == "tool_use"]
        own = any(each["type"] not in ("text", "tool_use") for each in blocks)
        return ChatMessage(
            "assistant",
            "".join(each["text"] for each in blocks if each["type"] == "text"),
            tuple(ToolCall(each["id"], each["name"], json.dumps(each["input"])) for each in calls),
            vendor={"anthropic": blocks} if own else None,
        )

    def whole(self, answer: Completion) -> dict[str, Any]:
        return self._body(answer) | {"content": self._blocks(answer), **self._end(answer), "usage": self._usage(answer)}

    def events(self, answer: Completion, texts: Sequence[str]) -> Iterator[bytes]:
        """Yields the events of the message's blocks, with deltas of texts, thinking and arguments."""
        usage = self._usage(answer)
        start = self._body(answer) | {"content": [], "stop_reason": None, "stop_sequence": None}
        start["usage"] = usage and usage | {"output_tokens": 1}
        yield _event({"type": "message_start", "message": start}, "message_start")
        yield _event({"type": "ping"}, "ping")
        for index, block in enumerate(self._blocks(answer)):
            empty, deltas = self._deltas(block, texts)
            begin = {"type": "content_block_start", "index": index, "content_block": empty}
            yield _event(begin, "content_block_start")
            for delta in deltas:
                yield _event({"type": "content_block_delta", "index": index, "delta": delta}, "content_block_delta")
            yield _event({"type": "content_block_stop", "index": index}, "content_block_stop")
        last = {"type": "message_delta", "delta": self._end(answer)}
        yield _event(
            last | {"usage": usage and {each: usage[each] for each in usage if each.startswith("output")}},
            "message_delta",
        )
        yield _event({"type": "message_stop"}, "message_stop")

    def error(self, error: ModelError) -> dict[str, Any]:
        kind, message = "api_error", error.message
        match error:
            case AuthenticationFailed():
                kind = "authentication_error"
            case RateLimited():
                kind = "rate_limit_error"
            case ContextLengthExceeded():
                kind, message = "invalid_request_error", f"prompt is too long: {message}"
            case ContentFiltered():
                kind, message = "invalid_request_error", f"Output blocked by content filtering policy: {message}"
            case RequestRefused():
                kind = "invalid_request_error"
        if error.status == 529:
            kind = "overloaded_error"
        return {"type": "error", "error": {"type": kind, "message": message}}

    def _body(self, answer: Completion) -> dict[str, Any]:
        return {"id": f"msg_{answer.request_id}", "type": "message", "role": "assistant", "model": answer.model}

    def _end(self, answer: Completion) -> dict[str, Any]:
        reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
        return {"stop_reason": reasons.get(answer.finish_reason, answer.finish_reason), "stop_sequence": None}

    def _blocks(self, answer: Completion) -> list[dict[str, Any]]:
        given = (answer.message.vendor or {}).get("anthropic")
        if given is not None:
            return list(given)
        blocks: list[dict[str, Any]] = [{"type": "text", "text": answer.content}] if answer.content else []
        for call in answer.tool_calls:
            blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)})
        return blocks

    def _deltas(self, block: dict[str, Any], texts: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Returns the block as it begins, and the deltas that complete it."""
        match block:
            case {"type": "text"}:
                return block | {"text": ""}, [{"type": "text_delta", "text": text} for text in texts]
            case {"type": "thinking", "thinking": thought, "signature": signature}:
                thinking = [{"type": "thinking_delta", "thinking": half} for half in _halves(thought)]
                signed = {"type": "signature_delta", "signature": signature}
                return block | {"thinking": "", "signature": ""}, [*thinking, signed]
            case {"type": "tool_use", "input": given}:
                text = given if isinstance(given, str) else json.dumps(given)
                parts = [{"type": "input_json_delta", "partial_json": half} for half in _halves(text)]
                return block | {"input": {}}, parts
        return block, []

    def _usage(self, answer: Completion) -> dict[str, Any] | None:
        usage = answer.usage
        return (
            None
            if usage is None
            else {
                "input_tokens": usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens,
                "cache_read_input_tokens": usage.cached_tokens,
                "cache_creation_input_tokens": usage.cache_write_tokens,
                "output_tokens": usage.output_tokens,
                "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
            }
        )


def _input(arguments: str) -> Any:
    """Decodes the arguments of a call. Arguments that are not JSON stay text, because the vendor streams all that the
    model writes.
    """
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


ModelApi: TypeAlias = ChatApi | ResponsesApi | MessagesApi
"""An API of a vendor. The answers that it encodes must have usage, model and request id."""
