"""The values and types with which the bounds of a ConstraintPolicy can be compared.

A bound that cannot be compared with the values of an argument limits nobody, or denies every call: `denied=["500"]` of
an `int`, `max="2024-01-01"` of a `date`, `pattern=` of a number. Python's operators decide what can be compared; a type
is tried by a sample of its values.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import Any, Literal, TypeGuard, get_args, get_origin
from uuid import UUID

import msgspec

from sabot.base.config import Secret
from sabot.errors import short_repr

_SAMPLES: Mapping[Any, tuple[Any, ...]] = {
    bool: (True,),
    int: (0,),
    float: (0.0,),
    Decimal: (Decimal(),),
    Fraction: (Fraction(),),
    str: ("",),
    bytes: (b"",),
    date: (date.min,),
    datetime: (datetime.min, datetime.min.replace(tzinfo=UTC)),
    time: (time.min, time.min.replace(tzinfo=UTC)),
    timedelta: (timedelta(),),
    UUID: (UUID(int=0),),
    PurePath: (PurePath(),),
    list: ([],),
    tuple: ((),),
    set: (set(),),
    frozenset: (frozenset(),),
    dict: ({},),
    Sequence: ([],),
    Set: (set(),),
    Mapping: ({},),
}
_NUMBERS = (int, float, Decimal, Fraction)
_LIMITS = ("min", "max")
_VALUES = ("allowed", "denied")


def bounds_of(rule: Any) -> Iterator[tuple[str, Any]]:
    """Yields the bounds of a ConstraintPolicy as pairs of an option and a value: one for each of `allowed` and
    `denied`.
    """
    for option in (*_LIMITS, "pattern", "max_length"):
        if (value := getattr(rule, option)) is not None:
            yield option, value
    for option in _VALUES:
        for value in getattr(rule, option) or ():
            yield option, value


def can_judge(option: str, bound: Any, value: Any) -> bool:
    """Returns False if a value cannot be compared with a bound, the value of an option of a ConstraintPolicy."""
    if option in _LIMITS:
        return not isinstance(value, bool) and _is_ordered(value, bound)
    if option == "pattern":
        return isinstance(value, str)
    return hasattr(value, "__len__") if option == "max_length" else _is_comparable(value, bound)


def fits(option: str, bound: Any, kind: Any) -> bool:
    """Returns False if no value of a type can be compared with a bound; for `allowed` and `denied`, also if none can be
    equal to it.
    """
    samples = _samples_of(kind)
    if samples is None or bound is None:
        return True
    if not any(can_judge(option, bound, each) for each in samples):
        return False
    if option not in _VALUES:
        return True
    if get_origin(kind) is Literal or _is_enum(kind):
        return any(_is_same(each, bound) for each in samples)
    return kind not in _NUMBERS or _is_number_of(kind, bound)


def meant(option: str, bound: Any, kinds: Sequence[Any], field: str) -> str:
    """Returns a hint: a bound that can be compared with values of these types. `field`: the path of the rule."""
    for kind in kinds:
        values = _samples_of(kind) if get_origin(kind) is Literal or _is_enum(kind) else None
        if values and option in _VALUES:
            return f"its values are {', '.join(map(_text_of, values))}"
        if option in _LIMITS and kind is str and isinstance(bound, _NUMBERS):
            return f"texts are compared by their characters, so make {field} a number, or list the texts in allowed="
        if option in (*_LIMITS, *_VALUES) and (made := _converted(option, bound, kind)) is not None:
            return f"{option}={_text_of(made)}" if option in _LIMITS else f"{option}=[{_text_of(made)}]"
        origin = get_origin(kind) or kind
        if (
            isinstance(origin, type)
            and issubclass(origin, list | tuple | Sequence | Set)
            and not issubclass(origin, str)
        ):
            return f'field="{field}.*" is about each item'
        if option in _LIMITS and kind is bool:
            return "allowed=[True] or allowed=[False]"
    if option == "pattern":
        return "pattern= is for texts; other values have min, max, allowed and denied"
    if option == "max_length":
        return "max_length= is for texts and lists; numbers have max"
    return f"a bound of the type {type_words(kinds)}, or the path of a field within it"


def type_words(kinds: Sequence[Any]) -> str:
    """Returns the names of types for a message: "int or str"."""
    return " or ".join(
        dict.fromkeys(
            short_repr(each).removeprefix("typing.") if get_origin(each) else getattr(each, "__name__", str(each))
            for each in kinds
        )
    )


def _samples_of(kind: Any) -> tuple[Any, ...] | None:
    """Returns some values of a type, or all of an Enum and a Literal. None if it is not known what its values are."""
    origin = get_origin(kind) or kind
    if origin is Literal:
        return get_args(kind)
    if not isinstance(origin, type):
        return None
    if _is_enum(origin):
        return tuple(origin) or None
    if hasattr(origin, "__pydantic_fields__") or hasattr(origin, "__dataclass_fields__"):
        try:
            return (object.__new__(origin),)
        except TypeError:  # it inherits from a class of C, whose own `__new__` has to make it
            return None
    for each in origin.__mro__:
        if each in _SAMPLES:
            return _SAMPLES[each]
        if "__eq__" in vars(each) or "__le__" in vars(each):  # it may be compared with anything
            return None
    return None


def _is_enum(kind: Any) -> TypeGuard[type[Enum]]:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _is_ordered(value: Any, bound: Any) -> bool:
    try:
        value <= bound  # noqa: B015  # only whether it raises
        return bool(value == value)  # NaN is neither within a bound nor beyond it
    except (TypeError, ArithmeticError):  # the NaN of decimals raises when it is compared
        return False
    except Exception:  # a comparison of the user's code; the sample of a class has no fields
        return True


def _is_comparable(value: Any, bound: Any) -> bool:
    if value is None or bound is None:
        return True
    if _hides_text(value) is not _hides_text(bound):  # pydantic's says that it is unequal, whatever its text is
        return False
    if isinstance(value, _NUMBERS) and isinstance(bound, _NUMBERS):
        return isinstance(value, bool) == isinstance(bound, bool)
    if isinstance(value, date) and isinstance(bound, date):  # a datetime is a date, and never equal to one
        return isinstance(value, datetime) == isinstance(bound, datetime)
    if isinstance(value, type(bound)) or isinstance(bound, type(value)):  # such as two members of a plain Enum
        return True
    try:
        told = [getattr(type(one), "__eq__")(one, other) for one, other in ((value, bound), (bound, value))]  # noqa: B009
    except Exception:  # as in `_is_ordered`
        return True
    return any(each is not NotImplemented for each in told)


def _hides_text(value: Any) -> bool:
    return isinstance(value, Secret) or (hasattr(value, "get_secret_value") and not isinstance(value, type))


def _is_same(value: Any, bound: Any) -> bool:
    return bool(value == bound) and isinstance(value, bool) == isinstance(bound, bool)


def _is_number_of(kind: Any, bound: Any) -> bool:
    """Returns False if no number of this type is equal to the bound. For example, 0.1 is the binary fraction that is
    nearest to one tenth, so `Decimal("0.1")` is not equal to it.
    """
    try:
        if kind is int:
            return bool(int(bound) == bound)
        if kind is float:
            return bool(float(bound) == bound)
        return not isinstance(bound, float) or Decimal(repr(bound)) == bound
    except (OverflowError, ValueError):  # an infinite number, or none
        return False


def _converted(option: str, bound: Any, kind: Any) -> Any:
    """Returns the bound as a value of a type with which it can be compared; None if it has no such form."""
    for form in (bound, str(bound)) if isinstance(bound, _NUMBERS) else (bound,):
        try:
            made = msgspec.convert(form, kind, strict=False)
        except (msgspec.ValidationError, TypeError, NotImplementedError):
            continue
        if fits(option, made, kind):
            return made
    return None


def _text_of(value: Any) -> str:
    return f"{type(value).__name__}.{value.name}" if isinstance(value, Enum) else repr(value)
