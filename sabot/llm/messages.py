"""What is said to a model, and what it says: messages, their parts, and the calls of tools in them.

They are values, equal where they say the same, and are kept in journals and conversations as msgpack.
"""

from typing import Any, Literal, TypeAlias

import msgspec

from sabot.errors import UserError, short_repr

Role = Literal["system", "user", "assistant", "tool"]


class Text(msgspec.Struct, frozen=True, tag="text"):
    """A part of a message that has other parts too."""

    text: str


class Image(msgspec.Struct, frozen=True, tag="image", omit_defaults=True):
    """A picture, by its address or by its bytes. media_type: of the bytes, like "image/png"."""

    url: str = ""
    data: bytes = b""
    media_type: str = ""

    def __post_init__(self) -> None:
        if bool(self.url) == bool(self.data) or bool(self.data) != bool(self.media_type):
            raise UserError(
                "an image has either a url, or data and its media_type", hint='Image(data=…, media_type="image/png")'
            )


Part: TypeAlias = Text | Image


class ToolCall(msgspec.Struct, frozen=True):
    """A model asks for a call of a tool. id: the model's, by which the result is told. arguments: the text that the model wrote, which
    should be a JSON object.
    """

    id: str
    name: str
    arguments: str


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a conversation.

    content: text, or parts. tool_calls: of an assistant's message. tool_call_id: which call a tool's message is the result of; is_error: it
    says what went wrong. vendor: what the model's vendor wants to get back with the message, and nobody else reads (signed reasoning): JSON
    by the vendor's API; a number is of tokens that the vendor itself keeps, and reads again.
    """

    role: Role
    content: str | tuple[Part, ...] = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    is_error: bool = False
    vendor: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """The text of its parts, pictures left out."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, Text))


def system(text: str) -> ChatMessage:
    """What the model is told to be. First in a conversation."""
    return ChatMessage("system", text)


def user(*content: str | Part) -> ChatMessage:
    """What a user says: a text, or texts and images."""
    if len(content) == 1 and isinstance(content[0], str):
        return ChatMessage("user", content[0])
    return ChatMessage("user", tuple(Text(part) if isinstance(part, str) else part for part in content))


def assistant(text: str = "", *tool_calls: ToolCall) -> ChatMessage:
    """What the model says, and which tools it asks for."""
    return ChatMessage("assistant", text, tool_calls)


def tool_result(call_id: str, text: str, *, is_error: bool = False) -> ChatMessage:
    """What a tool has returned, or the words of its error."""
    return ChatMessage("tool", text, tool_call_id=call_id, is_error=is_error)


def messages_of(prompt: object) -> tuple[ChatMessage, ...]:
    """A prompt is a text, a message, or several of them. Raises UserError."""
    if isinstance(prompt, str):
        return (user(prompt),)
    if isinstance(prompt, ChatMessage):
        return (prompt,)
    if isinstance(prompt, list | tuple) and prompt and all(isinstance(each, str | ChatMessage) for each in prompt):
        return tuple(user(each) if isinstance(each, str) else each for each in prompt)
    raise UserError(f"{short_repr(prompt)} is no prompt", hint='a text, a message such as user("…"), or a list of them')
