"""Hides texts in the arguments of a call."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any
from uuid import UUID

import msgspec

from sabot.base.config import Secret
from sabot.base.redaction import HIDDEN
from sabot.errors import UserError


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


_NO_TEXT = (type(None), bool, int, float, Decimal, date, time, timedelta, UUID, Secret)


def mask(value: Any, patterns: Sequence[str]) -> Any:
    """Returns a copy of the value in which all matches of these regular expressions are replaced by `***`. Only the
    matching part of a text is replaced. Also looks into lists, dicts, dataclasses and similar types, and into bytes
    as UTF-8. If nothing matches, returns the value itself.

    Raises UserError for an object whose type it does not know, since such an object may contain a text. Also raises it
    if two keys of a dict would be equal, because one of the entries would be lost.
    """
    return _without(value, [_compiled(each) for each in patterns]) if patterns else value


def _without(value: Any, patterns: Sequence[re.Pattern[str]]) -> Any:
    if isinstance(value, Enum):
        shown = _without(value.value, patterns)
        return value if shown == value.value else shown
    if isinstance(value, str):
        shown = value
        for each in patterns:
            shown = each.sub(HIDDEN, shown)
        return value if shown == value else shown  # else an object of a subclass would become a plain text
    if isinstance(value, bytes):
        text = value.decode(errors="surrogateescape")
        shown = _without(text, patterns)
        return value if shown == text else shown.encode(errors="surrogateescape")
    if isinstance(value, _NO_TEXT):
        return value
    if isinstance(value, Mapping):
        pairs = {_without(key, patterns): _without(each, patterns) for key, each in value.items()}
        if len(pairs) < len(value):
            raise UserError(
                "texts cannot be hidden in the keys of an argument: two keys of a dict would be equal",
                hint="give the call a list of pairs in place of the dict",
            )
        return value if all(pairs.get(key, pairs) is each for key, each in value.items()) else pairs
    if isinstance(value, list | tuple | set | frozenset):
        made = [_without(each, patterns) for each in value]
        if all(new is old for new, old in zip(made, value, strict=True)):
            return value
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    if isinstance(value, msgspec.Struct):
        changed = _fields(value, value.__struct_fields__, patterns)
        return msgspec.structs.replace(value, **changed) if changed else value
    if is_dataclass(value) and not isinstance(value, type):
        changed = _fields(value, [each.name for each in fields(value) if each.init], patterns)
        return replace(value, **changed) if changed else value
    kind = type(value)
    raise UserError(
        f"texts cannot be hidden in an argument of type {kind.__module__}.{kind.__qualname__}",
        hint="give the call text, numbers, lists, dicts, dataclasses",
    )


def _fields(value: Any, names: Sequence[str], patterns: Sequence[re.Pattern[str]]) -> dict[str, Any]:
    found = {name: (getattr(value, name), _without(getattr(value, name), patterns)) for name in names}
    return {name: new for name, (old, new) in found.items() if new is not old}
