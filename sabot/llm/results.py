"""Answers of models: completions, pieces of a stream, embeddings, and their usage."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from sabot.engine.calls.messages import ChatMessage, ToolCall, assistant
from sabot.engine.calls.usage import Usage

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "pause_turn"]
FINISH_REASONS: frozenset[str] = frozenset(get_args(FinishReason))
_CALLING = ("tool_calls", "stop", "pause_turn")


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
    - `output`: the answer decoded as the type that the caller has passed as `output=`. Caches do not store it, and
      journals only if the type adds something to the text by itself, such as a new id.
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

    def without_vectors(self, model: str) -> Completion:
        """Returns the usage and the cost of these vectors as those of an answer without text, in which form budgets
        and ledgers count them. `model`: the model that was asked.
        """
        return Completion(message=assistant(""), usage=self.usage, cost=self.cost, model=model)


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
