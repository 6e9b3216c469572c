"""Hides texts in the arguments of a call."""

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache, partial
from pathlib import PurePath
from typing import Any
from uuid import UUID

import msgspec
import pyarrow as pa

from sabot.base.arrays import empty_batch
from sabot.base.config import Secret
from sabot.base.redaction import HIDDEN
from sabot.engine.calls.batches import rows_of, with_values
from sabot.engine.calls.fields import beside_fields, setter_of
from sabot.errors import UserError
from sabot.jobs.values import with_fields


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


_MOST_DIGITS = 1_000  # of a number with a large exponent

_NO_TEXT = (type(None), bool, int, float, complex, Decimal, date, time, timedelta, UUID, Secret, msgspec.UnsetType)


def mask(value: Any, patterns: Sequence[str], *, numbers: bool = False) -> Any:
    """Returns a copy of the value in which all matches of these regular expressions are replaced by `***`. Only the
    matching part of a text is replaced. Also looks into lists, dicts, dataclasses, models of pydantic and similar
    types, and into bytes as UTF-8. If nothing matches, returns the value itself.

    Copies of dataclasses and models are not validated again, because a field may not take the text `***`. In attributes
    that are no fields, such as private ones of pydantic, objects whose type it does not know are left as they are.

    Raises UserError for an object whose type it does not know, since such an object may contain a text. Also raises it
    if two keys of a dict would be equal, because one of the entries would be lost. With `numbers` it raises UserError for
    a number whose digits match too, such as that of a card: there is no number in place of `***`.
    """
    return _without(value, [_compiled(each) for each in patterns], set(), numbers) if patterns else value


def mask_default(value: Any, patterns: Sequence[str], *, numbers: bool = False) -> Any:
    """Returns the default of a parameter as `mask` does. A default of a type that `mask` does not know is returned
    unchanged: it is an object of the program, such as a client, and no text that a caller has chosen.
    """
    if numbers and isinstance(value, int | float | Decimal):
        return mask(value, patterns, numbers=True)
    try:
        return mask(value, patterns)
    except UserError:
        return value


def _without(value: Any, patterns: Sequence[re.Pattern[str]], within: set[int], numbers: bool) -> Any:
    """Does the same as `mask`. `within`: the ids of the objects in whose attributes that are no fields it looks now, since
    such attributes often lead back to the object.
    """
    shown = _masked(value, patterns, within, numbers)
    beside = {} if isinstance(shown, _NO_TEXT) or id(value) in within else beside_fields(shown)
    changed: dict[str, Any] = {}
    if beside:
        within.add(id(value))
        for name, old in beside.items():
            with suppress(UserError):  # an object of the program, such as a client
                if (new := _without(old, patterns, within, numbers)) is not old:
                    changed[name] = new
        within.discard(id(value))
    return _with_attributes(shown, changed) if changed else shown


def _with_attributes(value: Any, changed: Mapping[str, Any]) -> Any:
    """Returns a copy of an object in which attributes that are no fields have other values."""
    made, put = copy(value), setter_of(value)
    private = getattr(made, "__pydantic_private__", None) or {}
    for name, new in changed.items():
        if name in private:
            private[name] = new  # the copy has a dict of its own
        else:
            put(made, name, new)
    return made


def _search_number(value: int | float | Decimal, patterns: Sequence[re.Pattern[str]]) -> None:
    """Raises UserError if the digits of a number, written without an exponent, match one of the patterns."""
    exact = Decimal(value if isinstance(value, Decimal | int) else float.__repr__(value))
    written = format(exact, "f") if exact.is_finite() and abs(exact.adjusted()) <= _MOST_DIGITS else str(exact)
    if any(each.search(written) for each in patterns):
        raise UserError(
            "a number in an argument matches a pattern of what is hidden, and no number can stand for ***",
            hint="give it to the call as a text, or leave its tool out of tool_patterns",
        )


def _masked(value: Any, patterns: Sequence[re.Pattern[str]], within: set[int], numbers: bool) -> Any:
    if isinstance(value, Enum):
        shown = _without(value.value, patterns, within, numbers)
        return value if shown == value.value else shown
    if isinstance(value, str):
        shown = value
        for each in patterns:
            shown = each.sub(HIDDEN, shown)
        return value if shown == value else shown  # else an object of a subclass would become a plain text
    if isinstance(value, bytes | bytearray | memoryview):
        text = bytes(value).decode(errors="surrogateescape")
        shown = _without(text, patterns, within, numbers)
        return value if shown == text else shown.encode(errors="surrogateescape")
    if isinstance(value, _NO_TEXT):
        if numbers and isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            _search_number(value, patterns)
        return value
    if isinstance(value, Mapping):
        pairs = {
            _without(key, patterns, within, numbers): _without(each, patterns, within, numbers)
            for key, each in value.items()
        }
        if len(pairs) < len(value):
            raise UserError(
                "texts cannot be hidden in the keys of an argument: two keys of a dict would be equal",
                hint="give the call a list of pairs in place of the dict",
            )
        return value if all(pairs.get(key, pairs) is each for key, each in value.items()) else pairs
    if isinstance(value, list | tuple | set | frozenset | deque):
        made = [_without(each, patterns, within, numbers) for each in value]
        if all(new is old for new, old in zip(made, value, strict=True)):
            return value
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    if isinstance(value, PurePath):
        text = str(value)
        shown = _without(text, patterns, within, numbers)
        return value if shown == text else type(value)(shown)
    without = partial(_without, patterns=patterns, within=within, numbers=numbers)
    if isinstance(value, msgspec.Struct):
        return with_fields(value, value.__struct_fields__, without)
    kind = type(value)
    if isinstance(names := getattr(kind, "__pydantic_fields__", None), Mapping) and hasattr(value, "model_copy"):
        extra = getattr(value, "__pydantic_extra__", None) or {}
        found = {name: getattr(value, name) for name in (*names, *extra)}
        changed = {
            name: new for name, old in found.items() if (new := _without(old, patterns, within, numbers)) is not old
        }
        return value.model_copy(update=changed) if changed else value
    if is_dataclass(kind):
        return with_fields(value, [each.name for each in fields(value)], without)
    if attributes := getattr(kind, "__attrs_attrs__", ()):
        return with_fields(value, [each.name for each in attributes], without)
    if kind.__module__.partition(".")[0] in _TEXTS_OF:
        secret = getattr(value, "get_secret_value", None)
        text = str(value) if secret is None else secret()
        shown = _without(text, patterns, within, numbers)
        return value if shown == text else shown if secret is None else kind(shown)
    if (rows := rows_of(value)) is not None:
        return _masked_rows(value, rows, without)
    if isinstance(value, pa.Array | pa.ChunkedArray):
        column = pa.chunked_array([value]) if isinstance(value, pa.Array) else value
        shown = with_values(column, without)
        return value if shown is column else shown.combine_chunks() if isinstance(value, pa.Array) else shown
    raise UserError(
        f"texts cannot be hidden in an argument of type {kind.__module__}.{kind.__qualname__}",
        hint="give the call text, numbers, lists, dicts, dataclasses, models of pydantic",
    )


def _masked_rows(value: Any, rows: pa.Table, without: Callable[[Any], Any]) -> Any:
    """Returns rows whose columns and their names are masked; `value`, which has the rows, if nothing in them is."""
    old = rows.columns
    new = [each if pa.types.is_temporal(each.type) else with_values(each, without) for each in old]
    names = [without(each) for each in rows.column_names]
    if names == rows.column_names and all(made is each for made, each in zip(new, old, strict=True)):
        return value
    if not isinstance(value, pa.Table | pa.RecordBatch):
        raise UserError(
            f"texts cannot be hidden in an argument of type {type(value).__module__}.{type(value).__qualname__}, and one matches",
            hint="give the call the rows as an Arrow table or a list of dicts",
        )
    renamed = [each.with_name(name) for each, name in zip(rows.schema, names, strict=True)]
    made = pa.Table.from_arrays(new, schema=pa.schema(renamed, rows.schema.metadata))
    if isinstance(value, pa.Table):
        return made
    return next(iter(made.combine_chunks().to_batches()), empty_batch(made.schema))


# modules whose other values are written as one text: addresses of the web and of machines, secrets
_TEXTS_OF = ("pydantic", "pydantic_core", "ipaddress")
