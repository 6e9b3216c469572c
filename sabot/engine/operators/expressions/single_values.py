"""Functions of single values for which Arrow has no kernel: hashes, and encodings of texts. They are functions of SQL.

Each of `FUNCTIONS` is called with the values of one row; the result is null if one of them is null. TO_BASE64 and
the JSON of a value are computed for a column.
"""

import base64
import datetime
import hashlib
import json
import math
import re
import urllib.parse
import zoneinfo
from collections.abc import Callable
from decimal import ROUND_DOWN, ROUND_HALF_UP, Context, Decimal
from functools import lru_cache, partial
from itertools import repeat
from typing import Any, NamedTuple

import pyarrow as pa

from sabot.api.expr import Expr
from sabot.engine.operators.expressions.json_paths import all_at
from sabot.engine.operators.expressions.node import Compiled, Steps, apply, to_type
from sabot.errors import DataError, UserError

_TEXT, _BYTES, _WHOLE = pa.string(), pa.binary(), pa.int64()
_LONGEST = 1_000_000  # characters of a text that is repeated


class SingleValue(NamedTuple):
    """A function of single values, the types of its arguments, and the type of its result."""

    function: Callable[..., Any]
    arguments: tuple[pa.DataType, ...]
    result: pa.DataType


def _hash(name: str) -> SingleValue:
    return SingleValue(
        lambda text: hashlib.new(name, text.encode(), usedforsecurity=False).hexdigest(), (_TEXT,), _TEXT
    )


def _from_base64(text: str) -> str | None:
    try:
        return base64.b64decode(text, validate=True).decode(errors="replace")
    except ValueError:
        return None


def _unhex(text: str) -> bytes | None:
    if not re.fullmatch("[0-9A-Fa-f]*", text):
        return None
    return bytes.fromhex(text if len(text) % 2 == 0 else f"0{text}")


def _url_decode(text: str) -> str | None:
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        return None
    return urllib.parse.unquote_plus(text)


def _repeated(text: str, count: int) -> str:
    if len(text) * count > _LONGEST:
        raise pa.ArrowInvalid(f"the text would have more than {_LONGEST:,} characters")
    return text * count


def _substring(text: str, start: int, length: int) -> str | None:
    """Returns a part of a text by Flink's rule: 1 is the first character, and 0 too; -1 is the last one."""
    first = start + len(text) if start < 0 else max(start - 1, 0)
    return None if length < 0 else "" if first < 0 else text[first : first + length]


def _split_part(text: str, separator: str, index: int) -> str | None:
    parts = text.split(separator) if separator else []
    return parts[index] if 0 <= index < len(parts) else None


def _place(part: str, text: str, start: int) -> int:
    return text.find(part, start - 1) + 1 if 1 <= start <= max(len(text), 1) else 0


def _filled(text: str, length: int, fill: str, at_start: bool) -> str | None:
    if length < 0 or not fill:
        return None
    if length > _LONGEST:
        raise pa.ArrowInvalid(f"the text would have more than {_LONGEST:,} characters")
    more = (fill * max(length - len(text), 0))[: max(length - len(text), 0)]
    return more + text if at_start and more else (text + more)[:length]


def _translated(text: str, old: str, new: str) -> str:
    pairs: dict[int, str] = {}
    for i, character in enumerate(old):
        pairs.setdefault(ord(character), new[i : i + 1])
    return text.translate(pairs)


def _overlaid(text: str, part: str, start: int, length: int) -> str:
    """Replaces characters of a text by Flink's rule: nothing for a start outside of it, its rest for no length."""
    if not 1 <= start <= len(text):
        return text
    return text[: start - 1] + part + (text[start - 1 + length :] if length > 0 else "")


def _json_object(members: list[str]) -> str:
    """Returns members such as `"a":1` as an object of JSON."""
    read, keys = json.JSONDecoder().raw_decode, set()
    for member in members:
        key = read(member)[0]
        if key is None or key in keys:
            what = "a key is NULL" if key is None else f"the key {key!r} comes twice"
            raise DataError(f"{what} in one object of JSON", hint="FILTER (WHERE …) behind JSON_OBJECTAGG")
        keys.add(key)
    return f"{{{','.join(members)}}}"


def _months_later(time: datetime.datetime, months: int) -> datetime.datetime:
    """Moves a time by months, to the last day of a month that is shorter: 31 January and one month is 29 February."""
    from calendar import monthrange  # half a millisecond of the start of each program, for a function of few

    year, month = divmod(12 * time.year + time.month - 1 + months, 12)
    if not datetime.MINYEAR <= year <= datetime.MAXYEAR:
        raise DataError(f"{time} and {months:,} months are in the year {year}, which no time has")
    return time.replace(year=year, month=month + 1, day=min(time.day, monthrange(year, month + 1)[1]))


def _truncated(number: float, digits: int) -> float:
    if number in (float("inf"), float("-inf")) or number != number:
        return number
    exact = Decimal(repr(number))
    if exact.as_tuple().exponent >= -digits:  # type: ignore[operator]
        return number
    return float(exact.scaleb(digits).to_integral_value(ROUND_DOWN).scaleb(-digits))


_URL = re.compile(
    r"(?P<PROTOCOL>[A-Za-z][A-Za-z0-9+.-]*):(?://(?P<AUTHORITY>[^/?#]*))?(?P<FILE>(?P<PATH>[^?#]*)(?:\?(?P<QUERY>[^#]*))?)(?:\#(?P<REF>.*))?",
    re.DOTALL,
)


def _url_part(text: str, part: str) -> str | None:
    found = _URL.fullmatch(text)
    if found is None:
        return None
    if part not in ("HOST", "USERINFO"):
        return found[part] if part in _URL.groupindex else None
    user, at, host = (found["AUTHORITY"] or "").rpartition("@")
    return (re.sub(r":\d*$", "", host) or None) if part == "HOST" else user if at else None


def _url_parameter(text: str, part: str, key: str) -> str | None:
    query = _url_part(text, part) if part == "QUERY" else None
    found = re.search(rf"(?:^|&){re.escape(key)}=([^&]*)", query) if query is not None else None
    return None if found is None else found[1]


_CHARACTERS = {
    "US-ASCII": "ascii",
    "ISO-8859-1": "latin-1",
    "UTF-8": "utf-8",
    "UTF-16BE": "utf-16-be",
    "UTF-16LE": "utf-16-le",
}


def _encoded(text: str, characters: str) -> bytes:
    if characters == "UTF-16":
        return b"\xfe\xff" + text.encode("utf-16-be")
    return text.encode(_CHARACTERS[characters], errors="replace")


def _decoded(data: bytes, characters: str) -> str:
    if characters == "UTF-16":
        little = data.startswith(b"\xff\xfe")
        marked = little or data.startswith(b"\xfe\xff")
        return data[2 * marked :].decode("utf-16-le" if little else "utf-16-be", errors="replace")
    return data.decode(_CHARACTERS[characters], errors="replace")


@lru_cache(maxsize=1024)
def _zone(name: str) -> datetime.tzinfo:
    """Returns a time zone by its name or its offset from UTC; UTC for any other text, as Java does."""
    offset = re.fullmatch(r"(?:GMT|UTC)?([+-])(\d\d?)(?::?(\d\d))?", name)
    if offset is not None:
        minutes = int(offset[2]) * 60 + int(offset[3] or 0)
        return datetime.timezone(datetime.timedelta(minutes=-minutes if offset[1] == "-" else minutes))
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return datetime.UTC


def _on_another_clock(time: datetime.datetime, before: str, after: str) -> str:
    return f"{time.replace(tzinfo=_zone(before)).astimezone(_zone(after)):%Y-%m-%d %H:%M:%S}"


def _padded(text: str, flags: str, width: int) -> str:
    if "-" in flags:
        return text.ljust(width)
    if "0" in flags:
        return text.zfill(width)
    return text.rjust(width)


def _signed(text: str, flags: str) -> str:
    sign = "" if text.startswith("-") else "+" if "+" in flags else " " if " " in flags else ""
    return sign + text


def _printed_whole(flags: str, width: int, number: int) -> str:
    return _padded(_signed(f"{number:,}" if "," in flags else str(number), flags), flags, width)


def _printed_float(flags: str, width: int, digits: int, number: float) -> str:
    if not math.isfinite(number):
        return _padded(
            "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity", flags.replace("0", ""), width
        )
    value = Decimal(repr(number)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP, Context(prec=400))
    return _padded(_signed(f"{value:,f}" if "," in flags else f"{value:f}", flags), flags, width)


FUNCTIONS = {
    **{name: _hash(name) for name in ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")},
    "from_base64": SingleValue(_from_base64, (_TEXT,), _TEXT),
    "hex": SingleValue(lambda text: text.encode().hex().upper(), (_TEXT,), _TEXT),
    "hex_of_bytes": SingleValue(lambda data: data.hex().upper(), (_BYTES,), _TEXT),
    "hex_of_number": SingleValue(lambda number: f"{number % (1 << 64):X}", (_WHOLE,), _TEXT),
    "unhex": SingleValue(_unhex, (_TEXT,), _BYTES),
    "bin": SingleValue(lambda number: f"{number % (1 << 64):b}", (_WHOLE,), _TEXT),
    "ascii": SingleValue(lambda text: ord(text[0]) if text else 0, (_TEXT,), pa.int32()),
    "chr": SingleValue(lambda number: chr(number % 256) if number >= 0 else "", (_WHOLE,), _TEXT),
    "encode": SingleValue(_encoded, (_TEXT, _TEXT), _BYTES),
    "decode": SingleValue(_decoded, (_BYTES, _TEXT), _TEXT),
    "url_encode": SingleValue(
        lambda text: urllib.parse.quote_plus(text, safe="*").replace("~", "%7E"), (_TEXT,), _TEXT
    ),
    "url_decode": SingleValue(_url_decode, (_TEXT,), _TEXT),
    "url_part": SingleValue(_url_part, (_TEXT, _TEXT), _TEXT),
    "url_parameter": SingleValue(_url_parameter, (_TEXT, _TEXT, _TEXT), _TEXT),
    "repeat": SingleValue(_repeated, (_TEXT, _WHOLE), _TEXT),
    "substring": SingleValue(_substring, (_TEXT, _WHOLE, _WHOLE), _TEXT),
    "left": SingleValue(lambda text, count: text[: max(count, 0)], (_TEXT, _WHOLE), _TEXT),
    "right": SingleValue(lambda text, count: text[-count:] if count > 0 else "", (_TEXT, _WHOLE), _TEXT),
    "split_index": SingleValue(_split_part, (_TEXT, _TEXT, _WHOLE), _TEXT),
    "locate": SingleValue(_place, (_TEXT, _TEXT, _WHOLE), pa.int32()),
    "replace": SingleValue(str.replace, (_TEXT, _TEXT, _TEXT), _TEXT),
    "startswith": SingleValue(str.startswith, (_TEXT, _TEXT), pa.bool_()),
    "endswith": SingleValue(str.endswith, (_TEXT, _TEXT), pa.bool_()),
    "pad_start": SingleValue(partial(_filled, at_start=True), (_TEXT, _WHOLE, _TEXT), _TEXT),
    "pad_end": SingleValue(partial(_filled, at_start=False), (_TEXT, _WHOLE, _TEXT), _TEXT),
    "translate": SingleValue(_translated, (_TEXT, _TEXT, _TEXT), _TEXT),
    "overlay": SingleValue(_overlaid, (_TEXT, _TEXT, _WHOLE, _WHOLE), _TEXT),
    "json_all": SingleValue(all_at, (_TEXT, _TEXT), _TEXT),
    "convert_tz": SingleValue(_on_another_clock, (pa.timestamp("us"), _TEXT, _TEXT), _TEXT),
    "print_text": SingleValue(lambda flags, width, text: _padded(text, flags, width), (_TEXT, _WHOLE, _TEXT), _TEXT),
    "print_whole": SingleValue(_printed_whole, (_TEXT, _WHOLE, _WHOLE), _TEXT),
    "print_float": SingleValue(_printed_float, (_TEXT, _WHOLE, _WHOLE, pa.float64()), _TEXT),
    "add_months": SingleValue(_months_later, (pa.timestamp("us"), _WHOLE), pa.timestamp("us")),
    "json_object": SingleValue(_json_object, (pa.list_(_TEXT),), _TEXT),
    "truncate": SingleValue(_truncated, (pa.float64(), _WHOLE), pa.float64()),
}


def _step(expr: Expr, nodes: list[Compiled]) -> Compiled:
    function, arguments, result = FUNCTIONS[expr.kind.removeprefix("value.")]
    made = [_typed(expr, nodes, node, type) for node, type in zip(nodes, arguments, strict=True)]

    def run(*columns: Any) -> pa.Array:
        values = [repeat(each.as_py()) if isinstance(each, pa.Scalar) else each.to_pylist() for each in columns]
        rows = zip(*values, strict=False)
        return pa.array([None if any(each is None for each in row) else function(*row) for row in rows], result)

    return apply(expr, run, *made)


def _typed(expr: Expr, nodes: list[Compiled], node: Compiled, type: pa.DataType) -> Compiled:
    """Returns the node of an argument with the type that the function takes. Raises UserError if it has another kind."""
    is_number = pa.types.is_integer(type) or pa.types.is_floating(type)
    fits = pa.types.is_integer(node.type) or (pa.types.is_floating(type) and pa.types.is_floating(node.type))
    if node.type == type or pa.types.is_null(node.type) or (is_number and fits):
        return to_type(node, type)
    found = " and ".join(str(each.type) for each in nodes)
    hint = '.cast("string") first' if pa.types.is_string(type) else ""
    raise UserError(f"{expr.text()} cannot be computed: {expr.kind} of {found}", hint=hint)


def _of_column(expr: Expr, nodes: list[Compiled]) -> Compiled:
    """Makes the node of an encoding over a column, in base64 of a text, or in JSON of any value."""
    from sabot.engine.operators.expressions.json_values import base64_texts, values_as_json  # few programs have it

    (node,) = nodes
    if expr.kind == "value.json":
        return apply(expr, values_as_json, node)
    return apply(expr, lambda texts: base64_texts(texts.cast(_BYTES)), _typed(expr, nodes, node, _TEXT))


STEPS: Steps = {f"value.{name}": _step for name in FUNCTIONS}
STEPS |= {"value.json": _of_column, "value.to_base64": _of_column}
