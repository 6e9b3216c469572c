"""Files of Protobuf from a registry: the position of a message in its file, which the header of a payload contains."""

import re
from base64 import b64decode
from binascii import Error
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sabot.errors import MissingExtra, UserError

Place = tuple[int, ...]
"""The index of a message in its file; for a message within messages the index of the outermost one, and so on
inwards.
"""

_DEEPEST = 100  # levels of braces; the library of Protobuf has the same limit for messages
# A comment or text without an end takes the rest of the file. A pattern that fails there would be tried again at each
# character, which takes quadratic time.
_COMMENT_OR_TEXT = r"""//[^\n]*|/\*.*?(?:\*/|\Z)|"(?:\\.|[^"\\])*"?|'(?:\\.|[^'\\])*'?"""
_TOKEN = re.compile(rf"{_COMMENT_OR_TEXT}|[\w.]+|[^\s\w]", re.DOTALL)


@dataclass
class _Named:
    """A message, with the messages in it in the order of the file. `entry`: True for the message of a map, which the
    file does not name.
    """

    name: str
    entry: bool = False
    within: "list[_Named]" = field(default_factory=list)


def places_of(file: str, message: str) -> set[Place]:
    """Returns the places of the message with this full name in a file, given as text or as a serialized
    FileDescriptorProto in base64. Returns an empty set if it has none.

    There may be two places: libraries with protoc's descriptors count the entries of maps among the messages of a
    message, Java's does not. Raises UserError for a file that cannot be read.
    """
    try:
        package, messages = _of_descriptor(b64decode(file, validate=True))
    except (Error, ValueError):
        package, messages = _of_text(file)
    prefix = f"{package}." if package else ""
    return {
        place for entries in (True, False) for name, place in _walk(messages, prefix, (), entries) if name == message
    }


def _walk(messages: list[_Named], prefix: str, above: Place, entries: bool) -> Iterator[tuple[str, Place]]:
    counted = [each for each in messages if entries or not each.entry]
    for index, each in enumerate(counted):
        yield prefix + each.name, (*above, index)
        yield from _walk(each.within, f"{prefix}{each.name}.", (*above, index), entries)


def _of_descriptor(data: bytes) -> tuple[str, list[_Named]]:
    try:
        from google.protobuf.descriptor_pb2 import FileDescriptorProto
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingExtra("format=Protobuf", "protobuf") from error
    try:
        file = FileDescriptorProto.FromString(data)
    except DecodeError as error:
        raise UserError("it is not a Protobuf file", hint="its text, or a serialized FileDescriptorProto") from error

    def made(message: Any) -> _Named:
        return _Named(message.name, message.options.map_entry, [made(each) for each in message.nested_type])

    return file.package, [made(each) for each in file.message_type]


def _of_text(text: str) -> tuple[str, list[_Named]]:
    """Reads the names of messages. Everything else between braces is skipped. A group is a message at the position of
    its field.
    """
    tokens = [each for each in _TOKEN.findall(text) if not each.startswith(("//", "/*", '"', "'"))]
    package, file = "", _Named("")
    open_: list[_Named] = [file]  # for each open brace: the message that it belongs to
    after = ";"  # the token before
    named = ""  # the message that the next brace opens
    for token, next_, third in zip(tokens, [*tokens[1:], ""], [*tokens[2:], "", ""], strict=False):
        if token == "{":
            if len(open_) > _DEEPEST:
                raise UserError(f"its braces are nested deeper than {_DEEPEST}")
            inner = open_[-1]
            if named:
                inner = _Named(named)
                open_[-1].within.append(inner)
            open_.append(inner)
            named = ""
        elif token == "}":
            if len(open_) == 1:
                raise UserError("its braces do not match")
            open_.pop()
        elif token == "package" and after in ";}" and len(open_) == 1:
            package = next_
        elif (token == "message" and after in ";{}" and third == "{") or (token == "group" and third == "="):
            named = next_
        elif token == "map" and next_ == "<":
            open_[-1].within.append(_Named("", entry=True))
        after = token
    return package, file.within
