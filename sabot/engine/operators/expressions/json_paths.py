"""Values inside of JSON texts, by a path such as `$.items[0].name`.

A text is parsed level by level along the path; what lies beside the path stays unparsed bytes. So a number has the
digits that the text has.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec
import pyarrow as pa

from sabot.errors import DataError, UserError

_STEP = re.compile(r"""\.(\w+)|\.?(?:\[(\d+)\]|\[\s*'([^']*)'\s*\]|\[\s*"([^"]*)"\s*\])""")
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_WHOLE = msgspec.json.Decoder(msgspec.Raw)
_NO_JSON = (msgspec.DecodeError, RecursionError)
_SHOWN = 80  # characters of a text in an error
_KINDS = {"object": b"{", "array": b"["}


def steps_of(path: str) -> list[str | int]:
    """Returns the names and the indices of a path. Raises UserError for what is no path, and for a path that may find
    several values.
    """
    text = re.sub(r"^\s*(lax|strict)\s+", "", path).strip()
    found: list[str | int] = []
    place = 1
    while text.startswith("$") and place < len(text):
        match = _STEP.match(text, place)
        if match is None:
            break
        found.append(
            int(match[2]) if match[2] is not None else next(name for name in match.groups() if name is not None)
        )
        place = match.end()
    if not text.startswith("$") or place < len(text):
        raise UserError(
            f"{path!r} is not a path to one value of a JSON text", hint="$.name, $['a name'], $.items[0].name"
        )
    return found


def value_at(text: str, steps: list[str | int]) -> bytes | None:
    """Returns the bytes of the value at a path, without white space around them. None: the text has none there, or is
    no JSON.
    """
    raw: Any = text.encode()
    try:
        raw = _WHOLE.decode(raw)
        for step in steps:
            if isinstance(step, int):
                items = _LIST.decode(raw)
                raw = items[step] if step < len(items) else None
            else:
                raw = _OBJECT.decode(raw).get(step)
            if raw is None:
                return None
    except _NO_JSON:
        return None
    return bytes(raw).strip()


_ALL = re.compile(r"\[\s*\*\s*\]|\.\*")


def all_at(text: str, path: str) -> str | None:
    """Returns the values at a path that may find several (`$.items[*].name`), as an array of JSON; None for a text that is
    no JSON. Raises UserError for what is no path.
    """
    first, *others = _ALL.split(re.sub(r"^\s*lax\s+", "", path).strip())
    parts = [steps_of(first), *(steps_of(f"${each}") for each in others)]
    try:
        found: list[Any] = [_WHOLE.decode(text.encode())]
    except _NO_JSON:
        return None
    for i, steps in enumerate(parts):
        below = found if i == 0 else [item for each in found for item in _items_of(each)]
        found = [value for each in below if (value := value_at(bytes(each).decode(), steps)) is not None]
    return f"[{','.join(bytes(each).decode() for each in found)}]"


def _items_of(raw: Any) -> list[Any]:
    """Returns the elements of an array, or the values of an object; nothing for any other value."""
    if raw[:1] == b"[":
        return _LIST.decode(raw)
    return list(_OBJECT.decode(raw).values()) if raw[:1] == b"{" else []


def matching(path: str, only: str | None, *, strict: bool) -> Callable[[pa.Array], pa.Array]:
    """Returns a function from texts to the values at a path, as texts; see `StringExpr.json_path_match`."""
    steps = steps_of(path)

    def value(text: str) -> str | None:
        raw = value_at(text, steps)
        if raw is None or raw == b"null":
            return None
        nested = raw[:1] in (b"{", b"[")
        if nested:
            return None if only == "scalar" else msgspec.json.format(raw, indent=-1).decode()
        if only == "nested":
            return None
        return str(msgspec.json.decode(raw)) if raw[:1] == b'"' and only != "json" else raw.decode()

    def needed(text: str) -> str:
        found = value(text)
        if found is None:
            shown = text if len(text) < _SHOWN else f"{text[:_SHOWN]}…"
            what = "no value" if only in (None, "json") else "no object or array" if only == "nested" else f"no {only}"
            raise DataError(f"{what} at {path!r} of {shown!r}", hint="strict=False, or NULL ON … in SQL, gives NULL")
        return found

    return lambda texts: _each(needed if strict else value, texts, pa.string())


def existing(path: str) -> Callable[[pa.Array], pa.Array]:
    """Returns a function from texts to True if they have a value at a path."""
    steps = steps_of(path)
    return lambda texts: _each(lambda text: value_at(text, steps) is not None, texts, pa.bool_())


def being(kind: str) -> Callable[[pa.Array], pa.Array]:
    """Returns a function from texts to True if they are JSON of a kind."""

    def check(text: str) -> bool:
        raw = value_at(text, [])
        if raw is None or kind == "value":
            return raw is not None
        return raw[:1] not in _KINDS.values() if kind == "scalar" else raw[:1] == _KINDS[kind]

    return lambda texts: _each(check, texts, pa.bool_())


def _each(function: Callable[[str], Any], texts: pa.Array, type: pa.DataType) -> pa.Array:
    return pa.array([None if text is None else function(text) for text in texts.to_pylist()], type)
