"""Messages to and from a model, their parts, and the tool calls in them.

They are values: messages with equal fields are equal. Journals and conversations store them as msgpack.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from sabot.base.redaction import scrubbed
from sabot.errors import UserError, short_repr

_SHOWN_CHARACTERS = 24_000  # of a conversation that is shown to people
_SHOWN_OF_A_MESSAGE = 6_000
_PROMPT = 'a text, or a list of messages such as {"role": "user", "content": "…"}'

Role = Literal["system", "user", "assistant", "tool"]


class Text(msgspec.Struct, frozen=True, tag="text"):
    """A part of a message: a text. It is used in messages with several parts."""

    text: str


class Image(msgspec.Struct, frozen=True, tag="image", omit_defaults=True):
    """A picture, given by its address or by its bytes. `media_type`: the type of the bytes, such as "image/png".
    Raises UserError unless there is either a `url`, or `data` with its `media_type`.
    """

    url: str = ""
    data: bytes = b""
    media_type: str = ""

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.data) or bool(self.data) != bool(self.media_type):
            raise UserError(
                "an image has either a url, or data and its media_type", hint='Image(data=…, media_type="image/png")'
            )


Part: TypeAlias = Text | Image


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True, repr_omit_defaults=True):
    """A model's request to call a tool.

    - `id`: the id that the model has given to the call. The message with the result contains the same id.
    - `name`: the name of the tool.
    - `arguments`: the text that the model wrote, which should be a JSON object.
    - `vendor`: data that a vendor has sent with this call and needs again, such as the signature of a thought, in the
      form of `ChatMessage.vendor`.
    """

    id: str
    name: str
    arguments: str
    vendor: dict[str, Any] | None = None


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a conversation.

    - `content`: the text, or a tuple of texts and images.
    - `tool_calls`: in a message of the model, the tool calls that it asks for.
    - `tool_call_id`: in a message with the result of a tool, the id of the tool call.
    - `is_error`: True if this result is an error.
    - `vendor`: a dict by the name of a vendor's API, with data that this vendor has sent with the message and needs
      again with later requests, such as signed reasoning. Other vendors do not get it. Fields of chat completions that
      OpenAI does not have are under "openai.chat" with the host of the server, and go back to this server only. A value
      that is a number means that the vendor has stored the data itself, and that they have this number of tokens.
    """

    role: Role
    content: str | tuple[Part, ...] = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    is_error: bool = False
    vendor: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """The texts of the content, joined. Images are left out."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, Text))


def system(text: str) -> ChatMessage:
    """Returns a system message: instructions for the model. It is the first message of a conversation."""
    return ChatMessage("system", text)


def user(*content: str | Part) -> ChatMessage:
    """Returns a message of the user: a text, or texts and images."""
    if len(content) == 1 and isinstance(content[0], str):
        return ChatMessage("user", content[0])
    return ChatMessage("user", tuple(Text(part) if isinstance(part, str) else part for part in content))


def assistant(text: str = "", *tool_calls: ToolCall) -> ChatMessage:
    """Returns a message of the model: its text, and the tool calls that it asks for."""
    return ChatMessage("assistant", text, tool_calls)


def tool_result(call_id: str, text: str, *, is_error: bool = False) -> ChatMessage:
    """Returns a message with the result of a tool call, or with the text of its error."""
    return ChatMessage("tool", text, tool_call_id=call_id, is_error=is_error)


def given_arguments(text: str) -> str:
    """Returns the arguments of a tool call as the model wrote them, or "{}" if it wrote none: some write nothing,
    spaces or null for them.
    """
    return "{}" if text.strip() in ("", "null") else text


def messages_of(prompt: object) -> tuple[ChatMessage, ...]:
    """Returns the messages of a prompt, which is a text, a message, or a list of them. Raises UserError for anything
    else.
    """
    if isinstance(prompt, str):
        return (user(prompt),)
    if isinstance(prompt, ChatMessage):
        return (prompt,)
    if isinstance(prompt, list | tuple) and prompt and all(isinstance(each, str | ChatMessage) for each in prompt):
        return tuple(user(each) if isinstance(each, str) else each for each in prompt)
    raise UserError(f"{short_repr(prompt)} is no prompt", hint='a text, a message such as user("…"), or a list of them')


def decode_prompt(given: object) -> str | list[ChatMessage]:
    """Returns the prompt that JSON types contain: a text, or the messages of a list of texts and objects. A text in a list
    is a message of the user, as in `messages_of`. Raises UserError for anything else, for a field that a message does not
    have, and for a message without content that calls no tool: the model would get an empty text.
    """
    if isinstance(given, str):
        return given
    if not isinstance(given, list | tuple) or not given:
        raise UserError(f"{short_repr(given)} is no prompt of an Agent", hint=_PROMPT)
    return [
        user(each) if isinstance(each, str) else _decode_message(each, f"message {at} of the prompt")
        for at, each in enumerate(given, 1)
    ]


def _decode_message(given: object, where: str) -> ChatMessage:
    if not isinstance(given, Mapping):
        raise UserError(f"{where} is {short_repr(given)}", hint=_PROMPT)
    _check_fields(given, ChatMessage, where)
    parts, calls = given.get("content"), given.get("tool_calls")
    for part in parts if isinstance(parts, list | tuple) else ():
        if isinstance(part, Mapping) and part.get("type") in _PARTS:
            _check_fields(part, _PARTS[part["type"]], f"{where}, a part of its content", "type")
    for call in calls if isinstance(calls, list | tuple) else ():
        _check_fields(call, ToolCall, f"{where}, a tool call")
    if parts is None and not calls:
        raise UserError(f"{where} has no content: {short_repr(given)}", hint=_PROMPT)
    try:
        return msgspec.convert(given, ChatMessage)
    except msgspec.ValidationError as error:
        raise UserError(f"{where} is no message: {error}", hint=_PROMPT) from None


_PARTS: dict[str, type[msgspec.Struct]] = {"text": Text, "image": Image}


def _check_fields(given: object, kind: type[msgspec.Struct], where: str, *more: str) -> None:
    known = (*more, *kind.__struct_fields__)
    if (
        isinstance(given, Mapping)
        and (unknown := next((each for each in given if each not in known), None)) is not None
    ):
        raise UserError(f"{where} has a field {short_repr(unknown)}", hint=f"the fields are {', '.join(known)}")


def cut(text: str, most: int) -> str:
    """Returns the text, cut to `most` characters, with a note that says how many were cut off."""
    return text if len(text) <= most else f"{text[:most]}\n… ({len(text) - most:,} more characters were cut off)"


def shown_messages(messages: Sequence[ChatMessage]) -> bytes:
    """Returns the newest messages as JSON, to be shown to people: a list of objects with `role`, `content` and, if
    there are tool calls, `calls`. Texts longer than 6,000 characters are cut, the known secrets of this process are
    hidden, and the list has about 24,000 characters at most. If older messages are left out, the first object says how
    many.
    """
    shown: list[dict[str, Any]] = []
    left = _SHOWN_CHARACTERS
    for message in reversed(messages):
        one: dict[str, Any] = {"role": message.role, "content": cut(scrubbed(message.text), _SHOWN_OF_A_MESSAGE)}
        if message.tool_calls:
            one["calls"] = [
                {"name": call.name, "arguments": cut(scrubbed(call.arguments), _SHOWN_OF_A_MESSAGE)}
                for call in message.tool_calls
            ]
        left -= len(msgspec.json.encode(one))
        if left < 0:
            shown.append({"role": "", "content": f"({len(messages) - len(shown)} messages before these are left out)"})
            break
        shown.append(one)
    return msgspec.json.encode(shown[::-1])
