"""Conversations: what was said, as it is kept from one run to the next, and what of it fits a model's context window.

kept     system │ user │ assistant: calls a, b │ tool a │ tool b │ assistant │ user │ …
groups            ─┬──   ────────────┬─────────────────   ────┬────   ─┬──
                   └ a group is sent whole or not at all: no tool call without its result, no result without its call
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from typing import Any

import msgspec

from sabot.errors import UNREADABLE, CorruptCheckpoint
from sabot.llm.messages import ChatMessage, Image
from sabot.llm.results import Completion
from sabot.llm.spec import ToolSchema
from sabot.redaction import scrubbed

_CHARACTERS_A_TOKEN = 3.5
_TOKENS_OF_A_MESSAGE = 4
_TOKENS_OF_AN_IMAGE = 1000
_TOLD_CHARACTERS = 24_000  # of a conversation, where people read it
_TOLD_OF_A_MESSAGE = 6_000
_CHARACTERS_OF_A_CUT = 60  # of the words which say that something was cut off

Group = tuple[ChatMessage, ...]


class Conversation:
    """What an agent remembers: the messages of earlier runs, without the instructions.

    A run that ends adds all that was said in it; one that fails or is cancelled adds the turns that were complete.
    """

    def __init__(self, messages: Iterable[ChatMessage] = ()) -> None:
        self.messages: list[ChatMessage] = list(messages)

    def __len__(self) -> int:
        return len(self.messages)

    def __bool__(self) -> bool:
        return True

    def to_bytes(self) -> bytes:
        """The conversation as msgpack, which `from_bytes` reads."""
        return msgspec.msgpack.encode(self.messages)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Conversation":
        """The conversation that was written. Raises CorruptCheckpoint."""
        try:
            return cls(_decoder.decode(data))
        except UNREADABLE as error:
            raise CorruptCheckpoint(f"a conversation cannot be read: {error}") from error


_decoder = msgspec.msgpack.Decoder(list[ChatMessage])


def groups_of(messages: Sequence[ChatMessage]) -> list[Group]:
    """The messages in groups that are sent together: an assistant's with tool calls and the results, each other one by itself.

    Results of no call, and calls without all of their results, which no provider takes, are left out.
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
        asked, told = [call.id for call in first.tool_calls], [message.tool_call_id for message in messages[at:end]]
        if sorted(asked) == sorted(told):
            groups.append((first, *messages[at:end]))
        at = end
    return groups


class Gauge:
    """Estimates how many tokens messages have; after each answer from what the provider has counted."""

    def __init__(self) -> None:
        self._a_token = _CHARACTERS_A_TOKEN

    def tokens(self, messages: Iterable[ChatMessage], tools: Sequence[ToolSchema] = ()) -> int:
        """An estimate, rather too many than too few."""
        characters, fixed = _size(messages)
        characters += sum(len(msgspec.json.encode(tool)) for tool in tools)
        return round(characters / self._a_token) + fixed

    def characters(self, tokens: int) -> int:
        """How many characters have at most so many tokens, by the estimate."""
        return max(int((tokens - 1) * self._a_token), 0)

    def learn(self, messages: Iterable[ChatMessage], tools: Sequence[ToolSchema], completion: Completion) -> None:
        """The provider has counted the tokens of a request."""
        if completion.usage is None or completion.cached or not completion.usage.input_tokens:
            return
        characters, fixed = _size(messages)
        characters += sum(len(msgspec.json.encode(tool)) for tool in tools)
        counted = completion.usage.input_tokens - fixed
        if characters > 1000 and counted > 0:
            self._a_token = min(_CHARACTERS_A_TOKEN, max(1.0, characters / counted))


def _size(messages: Iterable[ChatMessage]) -> tuple[int, int]:
    """Characters, and tokens that no character has."""
    characters = fixed = 0
    for message in messages:
        fixed += _TOKENS_OF_A_MESSAGE
        characters += len(message.text) + sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
        if not isinstance(message.content, str):
            fixed += _TOKENS_OF_AN_IMAGE * sum(isinstance(part, Image) for part in message.content)
    return characters, fixed


def without_oldest(
    messages: Sequence[ChatMessage], fixed: int, room: int, gauge: Gauge
) -> tuple[list[ChatMessage], list[ChatMessage]]:
    """What is left out, and what is sent: the newest groups that fit. fixed: tokens of the rest of the request. room: of the context
    window, without the answer.
    """
    groups = groups_of(messages)
    sums = accumulate((gauge.tokens(group) for group in reversed(groups)), initial=fixed)
    first = len(groups) - sum(sum_ <= room for sum_ in sums) + 1
    first = min(max(first, 0), len(groups))
    return [each for group in groups[:first] for each in group], [each for group in groups[first:] for each in group]


def cut(text: str, most: int) -> str:
    """The first characters of the text, at most so many, and how many more there were."""
    return text if len(text) <= most else f"{text[:most]}\n… ({len(text) - most:,} more characters were cut off)"


def as_json(messages: Sequence[ChatMessage]) -> bytes:
    """Returns the newest messages as JSON for people, a list of objects with role, content and calls: bounded, without known secrets."""
    told: list[dict[str, Any]] = []
    left = _TOLD_CHARACTERS
    for message in reversed(messages):
        one: dict[str, Any] = {"role": message.role, "content": cut(scrubbed(message.text), _TOLD_OF_A_MESSAGE)}
        if message.tool_calls:
            one["calls"] = [
                {"name": call.name, "arguments": cut(scrubbed(call.arguments), _TOLD_OF_A_MESSAGE)}
                for call in message.tool_calls
            ]
        left -= len(msgspec.json.encode(one))
        if left < 0:
            told.append({"role": "", "content": f"({len(messages) - len(told)} messages before these are left out)"})
            break
        told.append(one)
    return msgspec.json.encode(told[::-1])


def with_shorter_results(group: Iterable[ChatMessage], room: int, gauge: Gauge) -> list[ChatMessage]:
    """The group with the longest results of its calls cut off, so that it has `room` tokens; more only where the calls themselves have."""
    messages = list(group)
    told = [each for each in messages if each.role == "tool"]
    calls = [each if each.role != "tool" else msgspec.structs.replace(each, content="") for each in messages]
    most = _share([len(each.text) for each in told], gauge.characters(room - gauge.tokens(calls)))
    shorter = max(most - _CHARACTERS_OF_A_CUT, 0)
    return [
        msgspec.structs.replace(each, content=cut(each.text, shorter))
        if each.role == "tool" and len(each.text) > most
        else each
        for each in messages
    ]


def _share(sizes: Collection[int], room: int) -> int:
    """The greatest length to which all sizes can be cut for their sum to be at most `room`."""
    most = room
    for number, size in enumerate(sorted(sizes)):
        most = room // (len(sizes) - number)
        if size > most:
            break
        room -= size
    return most
