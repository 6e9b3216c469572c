"""Messages to and from a model, their parts, and the tool calls in them.

They are values: messages with equal fields are equal. Journals and conversations store them as msgpack.
"""

from typing import Any, Literal, TypeAlias

import msgspec

from sabot.errors import UserError, short_repr

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
