"""Conversations: the messages that an agent keeps from one run to the next, and the part of them that fits into a
model's context window.

messages   system │ user │ assistant: calls a, b │ tool a │ tool b │ assistant │ user │ …
groups              ─┬──   ────────────┬─────────────────   ────┬────   ─┬──
                     └ a group is sent whole or not at all: no tool call without its result, no result without its call
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate

import msgspec

from sabot.engine.calls.messages import ChatMessage, Image, cut
from sabot.engine.calls.model_requests import ToolSchema
from sabot.errors import UNREADABLE, CorruptCheckpoint
from sabot.llm.results import Completion

_CHARACTERS_A_TOKEN = 3.5
_TOKENS_OF_A_MESSAGE = 4
_TOKENS_OF_AN_IMAGE = 1000
_CHARACTERS_OF_A_CUT = 60  # of the note that text was cut off

Group = tuple[ChatMessage, ...]


class Conversation:
    """The messages of earlier runs of an agent, without its instructions.

    At the end of a run, the agent adds messages:

    - If the run has succeeded, all its messages.
    - If it has failed or was cancelled, its prompt and its complete turns; nothing if it has no complete turn. A turn
      is complete if each of its tool calls has a result.

    Messages that did not fit into the context window are not kept. Those of the run are not added, and those of earlier
    runs are removed.
    """

    def __init__(self, messages: Iterable[ChatMessage] = ()) -> None:
        self.messages: list[ChatMessage] = list(messages)

    def __len__(self) -> int:
        return len(self.messages)

    def __bool__(self) -> bool:
        return True

    def to_bytes(self) -> bytes:
        """Returns the conversation as msgpack, for `from_bytes`."""
        return msgspec.msgpack.encode(self.messages)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Conversation":
        """Returns the conversation that `to_bytes` encoded. Raises CorruptCheckpoint if the data cannot be decoded."""
        try:
            return cls(_decoder.decode(data))
        except UNREADABLE as error:
            raise CorruptCheckpoint(f"a conversation cannot be read: {error}") from error


_decoder = msgspec.msgpack.Decoder(list[ChatMessage])


def groups_of(messages: Sequence[ChatMessage]) -> list[Group]:
    """Returns the messages in groups that are sent together: an assistant's message with tool calls and the results
    of all of them, or any other single message.

    Results without a call, and calls with missing results, are left out, because no provider accepts them.
    """
    groups: list[Group] = []
    at = 0
    while at < len(messages):
        first = messages[at]
        at += 1
        if first.role == "tool":
            continue
        if not first.tool_calls:
            groups.append((first,))
            continue
        end = at
        while end < len(messages) and messages[end].role == "tool":
            end += 1
        asked, answered = [call.id for call in first.tool_calls], [message.tool_call_id for message in messages[at:end]]
        if sorted(asked) == sorted(answered):
            groups.append((first, *messages[at:end]))
        at = end
    return groups


class TokenEstimator:
    """An estimator of the number of tokens of messages. It learns from the counts in the provider's answers."""

    def __init__(self) -> None:
        self._a_token = _CHARACTERS_A_TOKEN

    def tokens(self, messages: Iterable[ChatMessage], tools: Sequence[ToolSchema] = ()) -> int:
        """Returns the estimated number of tokens of the messages and of the schemas of the tools. The estimate is meant
        to be too high rather than too low.
        """
        characters, fixed = _size(messages)
        characters += sum(len(msgspec.json.encode(tool)) for tool in tools)
        return round(characters / self._a_token) + fixed

    def characters(self, tokens: int) -> int:
        """Returns how many characters fit into `tokens` tokens, by the present estimate of characters per token."""
        return max(int((tokens - 1) * self._a_token), 0)

    def learn(self, messages: Iterable[ChatMessage], tools: Sequence[ToolSchema], completion: Completion) -> None:
        """Corrects the estimate by the provider's count of input tokens. Ignores answers from a cache, answers
        without a count, and requests of at most 1,000 characters.
        """
        if completion.usage is None or completion.cached or not completion.usage.input_tokens:
            return
        characters, fixed = _size(messages)
        characters += sum(len(msgspec.json.encode(tool)) for tool in tools)
        counted = completion.usage.input_tokens - fixed
        if characters > 1000 and counted > 0:
            self._a_token = min(_CHARACTERS_A_TOKEN, max(1.0, characters / counted))


def _size(messages: Iterable[ChatMessage]) -> tuple[int, int]:
    """Returns the number of characters, and the number of tokens to add for message boundaries and images."""
    characters = fixed = 0
    for message in messages:
        fixed += _TOKENS_OF_A_MESSAGE
        characters += len(message.text) + sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
        if not isinstance(message.content, str):
            fixed += _TOKENS_OF_AN_IMAGE * sum(isinstance(part, Image) for part in message.content)
    return characters, fixed


def without_oldest(
    messages: Sequence[ChatMessage], fixed: int, room: int, estimator: TokenEstimator
) -> tuple[list[ChatMessage], list[ChatMessage]]:
    """Splits the messages into two lists: the older messages, which are to be left out, and the newest messages, which
    fit. The messages of one group (see `groups_of`) are in the same list.

    - `fixed`: the tokens of everything else in the request.
    - `room`: the most tokens of the whole request.
    """
    groups = groups_of(messages)
    sums = accumulate((estimator.tokens(group) for group in reversed(groups)), initial=fixed)
    first = len(groups) - sum(sum_ <= room for sum_ in sums) + 1
    first = min(max(first, 0), len(groups))
    return [each for group in groups[:first] for each in group], [each for group in groups[first:] for each in group]


def with_shorter_results(group: Iterable[ChatMessage], room: int, estimator: TokenEstimator) -> list[ChatMessage]:
    """Returns the messages of the group with the longest tool results cut, so that the group has at most `room` tokens.
    Only results are cut: if the calls alone have more than `room` tokens, so has the returned group.
    """
    messages = list(group)
    results = [each for each in messages if each.role == "tool"]
    calls = [each if each.role != "tool" else msgspec.structs.replace(each, content="") for each in messages]
    most = _cut_length([len(each.text) for each in results], estimator.characters(room - estimator.tokens(calls)))
    shorter = max(most - _CHARACTERS_OF_A_CUT, 0)
    return [
        msgspec.structs.replace(each, content=cut(each.text, shorter))
        if each.role == "tool" and len(each.text) > most
        else each
        for each in messages
    ]


def _cut_length(sizes: Collection[int], room: int) -> int:
    """Returns the greatest length to which all texts can be cut so that their total length is at most `room`. `sizes`:
    the lengths of the texts. A text that is shorter than the returned length remains as it is.
    """
    most = room
    for number, size in enumerate(sorted(sizes)):
        most = room // (len(sizes) - number)
        if size > most:
            break
        room -= size
    return most
