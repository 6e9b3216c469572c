"""What comes back from a model: completions, the pieces in which they come, embeddings, and what they used."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from sabot.checks import is_whole
from sabot.llm.messages import ChatMessage, ToolCall

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "other"]


_MOST_TOKENS = 10**12  # of an answer; the sum of nine million of them is a number that databases have


def is_cost(value: object) -> bool:
    """Whether something can cost that many dollars: a number that is not negative, and not without end."""
    return (isinstance(value, Decimal) and value.is_finite() and 0 <= value <= _MOST_TOKENS) or is_whole(
        value, 0, _MOST_TOKENS
    )


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens, as the provider counts them.

    input_tokens: all that was read, cached_tokens and cache_write_tokens among them. output_tokens: all that was written, reasoning_tokens
    among them.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def is_possible(self) -> bool:
        """Whether a request can have used that: no count is negative, or more than any model has, and no part more than its whole."""
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


class Completion(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The whole answer of a model to one request.

    message: what the conversation goes on with. usage: None: the provider did not say. cost: in US dollars, by the prices of
    `prices_version`; None: the price is not known. provider, model, request_id: who answered. finish_reason: why it
    ended. output: the answer as the type that was asked for; not part of what is kept. cached: no request was made for it.
    """

    message: ChatMessage
    finish_reason: FinishReason = "stop"
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
        """The tools that the model asks for."""
        return self.message.tool_calls


class Piece(msgspec.Struct, frozen=True, omit_defaults=True):
    """A part of an answer, as it comes. text: more of the answer. reasoning: more of what the vendor shows of the reasoning. tool_call: a
    call whose arguments are complete. completion: of the last piece only: all of it.
    """

    text: str = ""
    reasoning: str = ""
    tool_call: ToolCall | None = None
    completion: Completion | None = None


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Embeddings:
    """Vectors of texts. vectors: one row for each text, in their order. cost: as that of a Completion."""

    vectors: npt.NDArray[np.float32]
    usage: Usage | None = None
    cost: Decimal | None = None
    prices_version: str = ""
    provider: str = ""
    model: str = ""
    request_id: str = ""


def joined(parts: Sequence[Embeddings]) -> Embeddings:
    """The vectors of several requests, in their order, with what all of them have used."""
    usages = [each.usage for each in parts]
    costs = [each.cost for each in parts]
    return replace(
        parts[0],
        vectors=np.concatenate([each.vectors for each in parts]),
        usage=None if None in usages else sum((each for each in usages if each), Usage()),
        cost=None if None in costs else sum((each for each in costs if each), Decimal(0)),
    )
