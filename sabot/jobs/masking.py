"""Hides texts in the arguments of a call."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from datetime import date, time, timedelta
from decimal import Decimal
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

    Raises UserError for an object whose type it does not know, since such an object may contain a text.
    """
    return _without(value, [_compiled(each) for each in patterns]) if patterns else value


def _without(value: Any, patterns: Sequence[re.Pattern[str]]) -> Any:
    if isinstance(value, str):
        for each in patterns:
            value = each.sub(HIDDEN, value)
        return value
    if isinstance(value, bytes):
        text = value.decode(errors="surrogateescape")
        shown = _without(text, patterns)
        return value if shown == text else shown.encode(errors="surrogateescape")
    if isinstance(value, _NO_TEXT):
        return value
    if isinstance(value, Mapping):
        pairs = {_without(key, patterns): _without(each, patterns) for key, each in value.items()}
        same = len(pairs) == len(value) and all(pairs.get(key, pairs) is each for key, each in value.items())
        return value if same else pairs
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
