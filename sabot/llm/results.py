"""Answers of models: completions, pieces of a stream, embeddings, and their usage."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from sabot.base.checks import is_whole
from sabot.llm.messages import ChatMessage, ToolCall

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "pause_turn"]
FINISH_REASONS: frozenset[str] = frozenset(get_args(FinishReason))
_CALLING = ("tool_calls", "stop", "pause_turn")


_MOST_TOKENS = 10**12  # of an answer; the sum of nine million of them still fits into 64 bits


def is_cost(value: object) -> bool:
    """Returns True if the value can be a cost in dollars: a finite Decimal or a whole number, and not negative."""
    return (isinstance(value, Decimal) and value.is_finite() and 0 <= value <= _MOST_TOKENS) or is_whole(
        value, 0, _MOST_TOKENS
    )


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """The numbers of tokens of a request, as the provider counts them.

    `input_tokens`: all tokens read, including `cached_tokens` (read from the vendor's cache) and `cache_write_tokens`
    (written to it). `output_tokens`: all tokens written, including `reasoning_tokens`.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """The sum of input and output tokens."""
        return self.input_tokens + self.output_tokens

    @property
    def is_possible(self) -> bool:
        """True if a request can have these numbers of tokens: none is negative or above 10¹²; the tokens that were read
        from the cache or written to it are not more than all input tokens; and reasoning tokens are not more than all
        output tokens.
        """
        counts = msgspec.structs.astuple(self)
        if not all(is_whole(each, 0, _MOST_TOKENS) for each in counts):
            return False
        return (
            self.cached_tokens + self.cache_write_tokens <= self.input_tokens
            and self.reasoning_tokens <= self.output_tokens
        )

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            *(a + b for a, b in zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True))
        )


def counted_usage(usage: Usage) -> Usage | None:
    """Returns the usage as budgets count it, which is never less than it says:

    - A part that is more than its whole was counted beside it: `cached_tokens` and `cache_write_tokens` are then added
      to the input, and `reasoning_tokens` to the output.
    - A part that no request can have (negative, or above 10¹²) counts as 0.

    Returns None if the input or the output is such a number.
    """
    if usage.is_possible:
        return usage
    if not (is_whole(usage.input_tokens, 0, _MOST_TOKENS) and is_whole(usage.output_tokens, 0, _MOST_TOKENS)):
        return None
    read, written, cached, kept, thought = (
        each if is_whole(each, 0, _MOST_TOKENS) else 0 for each in msgspec.structs.astuple(usage)
    )
    read += cached + kept if cached + kept > read else 0
    written += thought if thought > written else 0
    return Usage(min(read, _MOST_TOKENS), min(written, _MOST_TOKENS), cached, kept, thought)


class Completion(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The whole answer of a model to one request.

    - `message`: the answer as a message of the conversation.
    - `finish_reason`: the reason why the answer ended: "stop"; "length" if it was cut off at `max_tokens`;
      "tool_calls"; "content_filter" if a filter held it back or the model refused to answer; "pause_turn" if the vendor
      goes on as soon as the message is sent back. Any other reason is the vendor's own word.
    - `usage`: the numbers of tokens, or None if the provider does not report them.
    - `cost`: US dollars, or None if the price is unknown. `prices_version`: the version of the prices that were used.
    - `provider`: the vendor's name. `model`: the model that answered. `request_id`: the vendor's id of the request.
    - `cached`: True if the answer came from a cache, or from the request of another call with the same key or prompt.
      Then the tokens and the cost are 0.
    - `output`: the answer decoded as the type that the caller has passed as `output=`. Caches and journals do not store
      it.
    """

    message: ChatMessage
    finish_reason: str = "stop"
    usage: Usage | None = None
    cost: Decimal | None = None
    prices_version: str = ""
    provider: str = ""
    model: str = ""
    request_id: str = ""
    cached: bool = False
    output: Any = None

    @property
    def content(self) -> str:
        """The text of the answer."""
        return self.message.text

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls that the model asks for."""
        return self.message.tool_calls

    @property
    def whole_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of an answer that has ended as answers with tool calls do. It is empty for an answer that was
        cut off or filtered, or that has ended for an unknown reason: its last call may not be what the model meant.
        """
        return self.message.tool_calls if self.finish_reason in _CALLING else ()


class Piece(msgspec.Struct, frozen=True, omit_defaults=True):
    """One piece of an answer that is streamed. Each piece has one of these:

    - `text`: the next part of the answer's text.
    - `reasoning`: the next part of the model's reasoning, if the vendor sends it.
    - `tool_call`: a tool call with all its arguments. They come when the answer has ended, and not if it was cut off.
    - `completion`: the whole answer; only the last piece has it.
    """

    text: str = ""
    reasoning: str = ""
    tool_call: ToolCall | None = None
    completion: Completion | None = None


async def in_pieces(completion: Completion) -> AsyncGenerator[Piece, None]:
    """Yields an answer that was not streamed in the form of a stream: its text, its tool calls, and finally the
    Completion.
    """
    if completion.content:
        yield Piece(completion.content)
    for call in completion.whole_calls:
        yield Piece(tool_call=call)
    yield Piece(completion=completion)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Embeddings:
    """The vectors of texts. `vectors`: a float32 array with one row for each text, in the order of the texts. The other
    fields are described at `Completion`.
    """

    vectors: npt.NDArray[np.float32]
    usage: Usage | None = None
    cost: Decimal | None = None
    prices_version: str = ""
    provider: str = ""
    model: str = ""
    request_id: str = ""


def joined(parts: Sequence[Embeddings]) -> Embeddings:
    """Joins the vectors of several requests into one Embeddings, in order, with the sums of their tokens and costs. If
    the usage or the cost of one of them is None, the sum is None too.
    """
    usages = [each.usage for each in parts]
    costs = [each.cost for each in parts]
    return replace(
        parts[0],
        vectors=np.concatenate([each.vectors for each in parts]),
        usage=None if None in usages else sum((each for each in usages if each), Usage()),
        cost=None if None in costs else sum((each for each in costs if each), Decimal(0)),
    )
