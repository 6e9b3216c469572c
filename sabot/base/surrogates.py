"""Halves of surrogate pairs in JSON and in texts from outside.

JSON writes a character beyond U+FFFF, such as an emoji, as two escapes (`"\\ud83d\\ude00"`). A proxy that cuts a text
between them leaves a half on each side, which UTF-8 cannot write: neither a journal nor a message can hold it. The
functions here join the halves that belong together, and put U+FFFD, the replacement character, in the place of others.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from sabot.errors import UNREADABLE

# An escaped half, not beside its other half; or the bytes of a half in UTF-8, which it does not allow.
_LONE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|\xed[\xa0-\xbf]"
)
_MARKS = ("type", "item_id", "index", "output_index", "content_index", "summary_index")  # which text a delta belongs to

_Path = tuple[object, ...]


def has_lone_halves(data: bytes) -> bool:
    """Returns True if this JSON seems to have a half of a pair without its other half. It may be wrong about a text with
    a backslash before such an escape.
    """
    return (b"\\u" in data or b"\xed" in data) and _LONE.search(data) is not None


def whole_text(text: str) -> str:
    """Returns the text with its halves joined to pairs, and with U+FFFD in the place of each half without another."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def whole_texts(value: Any) -> Any:
    """Returns a copy of a value of lists, tuples and dicts in which all texts are as `whole_text` makes them. Tuples
    become lists.
    """
    return _copy(value, lambda path, text: whole_text(text), ())


def whole_json(data: bytes) -> bytes:
    """Returns JSON with the texts that `whole_text` makes, or `data` itself if it cannot be read at all. Bytes that are
    no UTF-8 become U+FFFD too.
    """
    try:
        return _written(whole_texts(_read(data)))
    except UNREADABLE:
        return data


class CutPairs:
    """Joins the halves of pairs that were cut apart between the events of a stream. An event is a JSON value, and the
    next piece of a text is below its field "delta". If the piece ends with a first half, that half is held back, and put
    before the next piece of the same text.
    """

    def __init__(self) -> None:
        self._held: dict[_Path, tuple[str, Any]] = {}  # by text: its half, and the event that had it

    def join(self, data: bytes) -> bytes:
        """Returns the event `data` with whole texts. Returns `data` itself if it has no halves, and none are held."""
        if not self._held and not has_lone_halves(data):
            return data
        try:
            event = _read(data)

            def whole(path: _Path, text: str) -> str:
                if text and path in self._held:
                    text = self._held.pop(path)[0] + text
                if "delta" in path and "\ud800" <= text[-1:] <= "\udbff":
                    self._held[path] = text[-1], event
                    text = text[:-1]
                return whole_text(text)

            return _written(_copy(event, whole, ()))
        except UNREADABLE:
            return data

    def rest(self) -> list[bytes]:
        """Returns an event for each half that is still held: the piece U+FFFD of its text. Called at the end."""
        held, self._held = self._held, {}
        return [_written(_copy(event, _only(each), ())) for each, (_, event) in held.items()]


def _only(place: _Path) -> Callable[[_Path, str], str]:
    """Returns the texts of an event that adds U+FFFD to the text at `place`, and nothing to others."""

    def text_at(path: _Path, text: str) -> str:
        if path == place:
            return "\ufffd"
        return "" if "delta" in path and path[-1] not in _MARKS else whole_text(text)

    return text_at


def _copy(value: Any, text_at: Callable[[_Path, str], str], path: _Path) -> Any:
    """Returns a copy of a JSON value whose texts are those that `text_at` returns. A path has the names of the fields
    around a text, and the marks beside them: numbers of calls and parts, but no places in lists, which differ between the
    events of one text.
    """
    if isinstance(value, str):
        return text_at(path, value)
    if isinstance(value, list | tuple):
        return [_copy(each, text_at, path) for each in value]
    if isinstance(value, dict):
        marks = tuple(value[name] for name in _MARKS if isinstance(value.get(name), str | int))
        return {
            whole_text(name) if isinstance(name, str) else name: _copy(each, text_at, (*path, *marks, name))
            for name, each in value.items()
        }
    return value


def _read(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError:
        return json.loads(data.decode("utf-8", "replace"))


def _written(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
