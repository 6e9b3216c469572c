"""Anthropic's messages API. Only this module imports anthropic.

An answer is a list of blocks. If there are others than texts and tool calls (signed thinking), or if a block has more
fields than those of a text or a call (citations), the message keeps all blocks in `vendor`, and later requests send
them back unchanged.
"""

import base64
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any

import msgspec

from sabot.base.options import answers_wrong_options
from sabot.engine.calls.messages import ChatMessage, Part, Text, ToolCall
from sabot.engine.calls.model_requests import RequestSpec
from sabot.engine.calls.usage import Usage
from sabot.errors import MissingExtra, UserError
from sabot.llm.providers.sdk import (
    AnswerDecoder,
    SdkCalls,
    arguments_of,
    called_name,
    checked_model,
    distinct_ids,
    greatest,
    has_only,
    merged,
    usage_of,
)
from sabot.llm.results import Completion, Embeddings, Piece

_VENDOR = "anthropic"
_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_PLAIN = {"text": ("type", "text"), "tool_use": ("type", "id", "name", "input")}  # the fields of plain blocks, by type
_DELTAS = frozenset({"text_delta", "thinking_delta", "signature_delta", "input_json_delta", "citations_delta"})
_CHOICES = {"auto": "auto", "none": "none", "required": "any"}


@answers_wrong_options
class AnthropicProvider:
    """A provider of Anthropic's models, for example `AnthropicProvider("claude-sonnet-5")`.

    - `model`: the model for requests without a model of their own.
    - `base_url`: the address of the server; by default the environment variable ANTHROPIC_BASE_URL, or Anthropic's
      server.
    - `api_key`: the key; by default the environment variable ANTHROPIC_API_KEY.
    - `max_tokens`: the most tokens of an answer, for requests without `max_tokens`. Anthropic's API requires such a
      limit.
    - `name`: the name of the vendor in errors and in lists of prices.
    - `client`: your own `anthropic.AsyncAnthropic` object, for example for Bedrock, Vertex or a proxy. `close` does not
      close it.

    Raises MissingExtra if the package `anthropic` is not installed, and UserError if there is no key.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        max_tokens: int = 4096,
        name: str = "anthropic",
        client: Any = None,
    ) -> None:
        try:
            import anthropic
        except ImportError as error:
            raise MissingExtra("AnthropicProvider", "llm") from error
        self.name = name
        self.model = checked_model(model, "AnthropicProvider")
        self.lacks = frozenset({"seed"})
        how: dict[str, Any] = {"client": client, "api_key": api_key, "base_url": base_url}
        self._calls = SdkCalls(name, anthropic, "Anthropic", _methods, **how)
        self._max_tokens = max_tokens

    def __repr__(self) -> str:
        return f"AnthropicProvider({self.model!r}, base_url={self._calls.base_url!r})"

    async def complete(
        self,
        spec: RequestSpec,
        *,
        timeout_s: float | None = None,
        idempotency_key: str = "",
        max_answer_bytes: int | None = None,
    ) -> Completion:
        body = self._request(spec)
        needed = {"messages": [], "max_tokens": body["max_tokens"]}
        data, request_id = await self._calls.whole(
            "answer", body, timeout_s, idempotency_key, max_answer_bytes, **needed
        )
        decoder = _MessagesDecoder(self._calls, self.name, body["model"], spec.messages)
        return decoder.whole(data, request_id)

    def stream(
        self,
        spec: RequestSpec,
        *,
        timeout_s: float | None = None,
        idempotency_key: str = "",
        max_answer_bytes: int | None = None,
    ) -> AsyncGenerator[Piece, None]:
        body = self._request(spec) | {"stream": True}
        needed = {"messages": [], "max_tokens": body["max_tokens"]}
        decoder = _MessagesDecoder(self._calls, self.name, body["model"], spec.messages)
        return self._calls.stream("answer", body, decoder, timeout_s, idempotency_key, max_answer_bytes, **needed)

    async def embed(self, texts: Sequence[str], *, model: str = "", timeout_s: float | None = None) -> Embeddings:
        """Raises UserError, because Anthropic has no embeddings."""
        raise UserError(f"{self.name} has no embeddings", hint="use those of another provider")

    async def close(self) -> None:
        await self._calls.close()

    def _request(self, spec: RequestSpec) -> dict[str, Any]:
        if spec.seed is not None:
            raise UserError(f"{self.name}: its models have no seed=", hint="leave it out")
        system = [message.text for message in spec.messages if message.role == "system"]
        body: dict[str, Any] = {
            "model": spec.model or self.model,
            "max_tokens": self._max_tokens if spec.max_tokens is None else spec.max_tokens,
            "system": "\n\n".join(system) or None,
            "messages": _messages(spec),
            "tools": [
                {"name": each.name, "description": each.description, "input_schema": each.parameters}
                for each in spec.tools
            ]
            or None,
            "tool_choice": {"type": _CHOICES[spec.tool_choice]} if spec.tools and spec.tool_choice != "auto" else None,
            "temperature": spec.temperature,
            "top_p": spec.top_p,
            "stop_sequences": list(spec.stop) or None,
        }
        if spec.output is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": spec.output}}
        return merged(body, spec.options)


def _methods(client: Any) -> dict[str, Callable[..., Any]]:
    return {"answer": client.messages.with_streaming_response.create}


def _messages(spec: RequestSpec) -> list[dict[str, Any]]:
    """Converts the messages of a request into the form of Anthropic's API. Consecutive messages of the same role become one message;
    results of tools have the role "user" there. Messages without content are left out, because Anthropic refuses them.
    System messages are left out too; they are sent in another field.
    """
    turns: list[dict[str, Any]] = []
    for message in spec.messages:
        if message.role == "system":
            continue
        role, blocks = "assistant" if message.role == "assistant" else "user", _blocks(message, spec)
        if not blocks:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    return turns


def _blocks(message: ChatMessage, spec: RequestSpec) -> list[dict[str, Any]]:
    if message.role == "tool":
        content = message.content if isinstance(message.content, str) else _parts(message)
        result = {"type": "tool_result", "tool_use_id": message.tool_call_id, "content": content}
        return [result | ({"is_error": True} if message.is_error else {})]
    kept = (message.vendor or {}).get(_VENDOR)
    if kept is not None:
        return [_kept_block(each, spec) for each in kept if each.get("type") != "text" or each.get("text")]
    calls = [
        {"type": "tool_use", "id": call.id, "name": called_name(call.name, spec), "input": _input(call.arguments)}
        for call in message.tool_calls
    ]
    return [*_parts(message), *calls]


def _kept_block(block: dict[str, Any], spec: RequestSpec) -> dict[str, Any]:
    """Returns a block of an earlier answer as it goes back: as it came, but for a name that no tool can have."""
    return (
        block | {"name": called_name(str(block.get("name") or ""), spec)} if block.get("type") == "tool_use" else block
    )


def _parts(message: ChatMessage) -> list[dict[str, Any]]:
    """Returns the parts of the content without empty texts, which Anthropic refuses."""
    content = (Text(message.content),) if isinstance(message.content, str) else message.content
    return [_part(part) for part in content if not isinstance(part, Text) or part.text]


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if part.url:
        return {"type": "image", "source": {"type": "url", "url": part.url}}
    data = base64.b64encode(part.data).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": part.media_type, "data": data}}


def _input(arguments: str) -> dict[str, Any]:
    """Returns the arguments of a tool call as a dict, because Anthropic accepts only JSON objects (`arguments_of`)."""
    found: dict[str, Any] = msgspec.json.decode(arguments_of(arguments))
    return found


class _Message(msgspec.Struct):
    content: list[dict[str, Any]] | str | None = None
    stop_reason: str | None = None
    usage: Any = None
    id: str | None = None
    model: str | None = None
    error: Any = None


class _MessageEvent(msgspec.Struct):
    type: str | None = None  # none in the pings of some proxies
    index: int = 0
    error: Any = None
    message: dict[str, Any] | None = None
    content_block: dict[str, Any] | None = None
    delta: dict[str, Any] | None = None
    usage: Any = None


class _MessagesDecoder(AnswerDecoder):
    """A decoder of Anthropic's answers. `whole` decodes a whole answer; `feed` decodes the events of a stream. `asked`:
    the messages of the request, whose tool calls have other ids than those of the answer.
    """

    def __init__(self, calls: SdkCalls, provider: str, model: str, asked: Sequence[ChatMessage] = ()) -> None:
        self.is_over = False
        self._calls = calls
        self._provider = provider
        self._model = self._answered = model
        self._id = ""
        self._asked = asked
        self._blocks: dict[int, dict[str, Any]] = {}  # by number, in the order in which they began
        self._at: dict[int, int] = {}  # the number of the newest block with this index: some proxies count none
        self._texts: dict[tuple[int, str], list[str]] = {}  # the parts of long fields, by block and field
        self._reason: str | None = None
        self._usage: dict[str, Any] = {}

    def whole(self, data: bytes, request_id: str) -> Completion:
        message = self._calls.decoded(data, _Message, self._model, request_id)
        self._calls.check_error(message.error, self._model, request_id)
        if message.content is None and not message.stop_reason:
            raise self._calls.no_answer(data, self._model, request_id)
        content = message.content or ()
        self._blocks = dict(enumerate([{"type": "text", "text": content}] if isinstance(content, str) else content))
        self._reason = message.stop_reason or "none"
        self._count(message.usage)
        self._answered, self._id = message.model or self._model, message.id or ""
        return self._completion(request_id)

    def feed(self, data: bytes, request_id: str) -> Iterable[Piece]:
        event = self._calls.decoded(data, _MessageEvent, self._model, request_id)
        self._calls.check_error(event.error, self._model, request_id)
        match event.type:
            case "message_start":
                message = event.message or {}
                self._answered = _text_in(message, "model") or self._model
                self._id = _text_in(message, "id")
                self._count(message.get("usage"))
            case "content_block_start":
                self._begin(event.index, event.content_block or {})
            case "content_block_delta":
                if event.index not in self._at:
                    self._begin(event.index, {"type": "text", "text": ""})
                return self._delta(self._at[event.index], event.delta or {})
            case "message_delta":
                if told := _text_in(event.delta or {}, "stop_reason"):
                    self._reason = self._calls.reason(told, self._model, request_id, self._reason)
                self._count(event.usage)
            case "message_stop":
                self.is_over = True
            case "error" | None if error := self._calls.error_in(data, self._model, request_id):
                raise error
        return ()

    def _begin(self, index: int, block: dict[str, Any]) -> None:
        before = self._blocks.get(self._at.get(index, -1), {})
        if not block.get("id") or block["id"] != before.get("id"):  # a block that begins again goes on
            self._at[index] = len(self._blocks)
            self._blocks[len(self._blocks)] = block

    def _delta(self, index: int, delta: dict[str, Any]) -> Iterable[Piece]:
        block = self._blocks[index]
        match delta:
            case {"type": "text_delta", "text": str(text)} if text:
                self._add(index, "text", text)
                return (Piece(text),)
            case {"type": "thinking_delta", "thinking": str(text)} if text:
                self._add(index, "thinking", text)
                return (Piece(reasoning=text),)
            case {"type": "signature_delta", "signature": str(text)}:
                self._add(index, "signature", text)
            case {"type": "input_json_delta", "partial_json": str(text)}:
                self._add(index, "input", text)
            case {"type": "citations_delta", "citation": citation}:
                block["citations"] = [*(block.get("citations") or ()), citation]
            case {"type": str(kind)} if kind not in _DELTAS:  # the block goes back with all that came
                for name, value in delta.items():
                    before: Any = block.get(name)
                    if name != "type" and value is not None:
                        block[name] = before + value if type(before) is type(value) in (str, list) else value
        return ()

    def _add(self, index: int, field: str, text: str) -> None:
        self._texts.setdefault((index, field), []).append(text)

    def _count(self, usage: Any) -> None:
        """Takes the counts of tokens of a later event. They are not added, because each event reports the sums since the
        beginning of the answer. Some proxies report 0 input tokens at the end, so the greater count stays.
        """
        for name, value in (usage if isinstance(usage, dict) else {}).items():
            before = self._usage.get(name)
            if value is not None and not (type(before) is type(value) is int and before > value >= 0):
                self._usage[name] = value

    def _call(self, index: int) -> ToolCall | None:
        """Returns the tool call in the content block number `index` of the answer, or None if the block is not a tool
        call.
        """
        block = self._blocks[index]
        if block.get("type") != "tool_use":
            return None
        given, text = block.get("input"), "".join(self._texts.get((index, "input"), ()))
        if not text:
            text = given if isinstance(given, str) else msgspec.json.encode(given or {}).decode()
        return ToolCall(str(block.get("id") or ""), str(block.get("name") or ""), text)

    def end(self, request_id: str) -> Completion | None:
        return self._completion(request_id) if self._reason else None

    def _completion(self, request_id: str) -> Completion:
        found = {index: call for index in self._blocks if (call := self._call(index))}
        ids = distinct_ids([call.id for call in found.values()], self._asked)
        calls = [ToolCall(one, call.name, call.arguments) for one, call in zip(ids, found.values(), strict=True)]
        blocks = list(self._blocks.values())
        for (index, field), texts in self._texts.items():
            if field != "input":
                blocks[index][field] = str(blocks[index].get(field) or "") + "".join(texts)
            elif index not in found:  # of a tool that the vendor calls itself, such as its search
                blocks[index][field] = _input("".join(texts))
        for index, call in zip(found, calls, strict=True):
            blocks[index] |= {"id": call.id, "input": _input(call.arguments)}
        is_plain = all(has_only(block, _PLAIN.get(str(block.get("type")))) for block in blocks)
        text = "".join(str(block.get("text") or "") for block in blocks if block.get("type") == "text")
        return Completion(
            message=ChatMessage("assistant", text, tuple(calls), vendor=None if is_plain else {_VENDOR: blocks}),
            finish_reason=self._calls.reason(self._reason or "", self._model, request_id),
            usage=_usage(self._usage),
            provider=self._provider,
            model=self._answered,
            request_id=request_id or self._id,
        )


def _text_in(told: dict[str, Any], name: str) -> str:
    return value if isinstance(value := told.get(name), str) else ""


def _usage(told: dict[str, Any]) -> Usage | None:
    """Converts the usage `told` that Anthropic has reported. Returns None if it is incomplete. Anthropic's
    `input_tokens` do not include the tokens that were read from its cache or written to it. Those tokens are added,
    because `Usage.input_tokens` includes them. If an answer was made in several passes (`iterations`, as for a
    compaction), Anthropic's own counts are those of the last pass, and the sums of all passes count.
    """
    match told:
        case {"input_tokens": int(read), "output_tokens": int(written)} if read >= 0:
            cached, kept = (
                greatest(told.get("cache_read_input_tokens")),
                greatest(told.get("cache_creation_input_tokens")),
            )
            if isinstance(passes := told.get("iterations"), list):
                sums = [sum(greatest(each.get(name)) for each in passes if isinstance(each, dict)) for name in _COUNTS]
                read, written, cached, kept = map(max, (read, written, cached, kept), sums)
            details = told.get("output_tokens_details")
            reasoning = details.get("thinking_tokens") if isinstance(details, dict) else 0
            return usage_of(read + cached + kept, written, cached=cached, cache_write=kept, reasoning=reasoning)
    return None
