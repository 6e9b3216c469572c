"""The arguments of expressions: how they are checked, and how plans show them. This module does not depend on
expressions.
"""

import datetime
import decimal
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from sabot.base.arrays import as_type, scalar_of
from sabot.errors import UserError

__all__ = [
    "as_type",
    "fraction_of",
    "literal_of",
    "numbers_of",
    "option_text",
    "quoted",
    "replacements_of",
    "type_text",
    "value_text",
    "whole_of",
]

_SHOWN_VALUES = 20

_LITERALS = (
    type(None)
    | bool
    | int
    | float
    | str
    | bytes
    | datetime.date
    | datetime.time
    | datetime.timedelta
    | decimal.Decimal
    | pa.Scalar
)


# -- checked ---------------------------------------------------------------------------------------------------------


def literal_of(value: Any, type: Any) -> tuple[Any, pa.DataType | None]:
    """Returns the value of a literal, converted to Python or Arrow, and its type. The type is None if the user gave
    none. Raises UserError for a value that no column can contain, or that is not of the type.
    """
    if isinstance(value, np.generic):
        value = value.item()
    known = None if type is None else as_type(type)
    try:
        if known is None and isinstance(value, list | tuple | dict):
            value = pa.scalar(list(value) if isinstance(value, tuple) else value)
        elif known is not None:
            scalar_of(value.as_py() if isinstance(value, pa.Scalar) else value, known)
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise UserError(f"lit: {value} has more than 64 bits")
    except (pa.ArrowException, TypeError, OverflowError, ValueError) as error:
        raise UserError(f"lit: {value!r} is not a value of {known or 'one type'}: {error}") from error
    if not isinstance(value, _LITERALS):
        raise UserError(
            f"{value!r} is not a value that a column can hold", hint="a number, text, bytes, bool, date, time or None"
        )
    return value, known


def whole_of(where: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserError(f"{where}: {value!r} is not a whole number")
    if not -(2**63) <= value < 2**63:
        raise UserError(f"{where}: {value} has more than 64 bits")
    return int(value)


def fraction_of(where: str, value: Any) -> float:
    """Returns the value as a float, if it is a number from 0 to 1. Raises UserError for any other value; the message
    begins with `where`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
        raise UserError(f"{where}={value!r} is not a fraction from 0 to 1", hint="0.5 is the median")
    return float(value)


def numbers_of(where: str, values: Any) -> tuple[float, ...]:
    """Returns the numbers as floats. Raises UserError if there are none, or if they are not in ascending order; the
    message begins with `where`.
    """
    given = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    good = all(isinstance(each, int | float | np.number) and not isinstance(each, bool) for each in given)
    if not given or not good or math.isnan(given[0]) or not all(a < b for a, b in itertools.pairwise(given)):
        raise UserError(f"{where}: {values!r} are not numbers in ascending order", hint=f"{where}([0, 10, 100])")
    return tuple(float(each) for each in given)


def replacements_of(where: str, old: Any, new: Any) -> tuple[tuple[str, Any], ...]:
    """Returns the pair of options `old` and `new` for an expression that replaces values: (("old", values), ("new",
    values)). Raises UserError for lists of different length, for a repeated value, and for null in `old`.
    """
    if isinstance(old, Mapping) and new is None:
        pairs = list(old.items())
    else:
        olds, news = (list(each) if isinstance(each, list | tuple) else [each] for each in (old, new))
        news = news * len(olds) if len(news) == 1 else news
        if len(olds) != len(news):
            raise UserError(f"{where}: {len(olds)} values have {len(news)} replacements", hint=f'{where}({{"a": "x"}})')
        pairs = list(zip(olds, news, strict=True))
    if not pairs:
        raise UserError(f"{where}: there is nothing to replace", hint=f'{where}({{"a": "x"}})')
    given = [literal_of(each, None)[0] for each, _ in pairs]
    for place, each in enumerate(given):
        if each is None:
            raise UserError(f"{where}: null has no replacement here", hint=".fill_null(…)")
        if each in given[:place]:
            raise UserError(f"{where}: {each!r} is given twice")
    return ("old", tuple(given)), ("new", tuple(literal_of(each, None)[0] for _, each in pairs))


# -- as text ---------------------------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def type_text(type: pa.DataType) -> str:
    """Returns a name of the type that `as_type` can read. (`str(type)` is not always one: it is "float" for float32.)"""
    return quoted(
        {"halffloat": "float16", "float": "float32", "double": "float64", "date32[day]": "date32"}.get(
            str(type), str(type)
        )
    )


def value_text(value: Any) -> str:
    if isinstance(value, str):
        return quoted(value)
    return repr(value.as_py()) if isinstance(value, pa.Scalar) else repr(value)


def option_text(value: Any) -> str:
    if isinstance(value, pa.DataType):
        return type_text(value)
    if not isinstance(value, tuple):
        return value_text(value)
    words = [value_text(each) for each in value[:_SHOWN_VALUES]]
    if len(value) > _SHOWN_VALUES:
        words.append(f"… {len(value)} values, {hashlib.sha256(repr(value).encode()).hexdigest()[:12]}")
    return f"[{', '.join(words)}]"
