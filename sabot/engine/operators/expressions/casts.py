"""Conversions between types: the common type of two columns, and `cast`, by the rules of polars."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.api.expr.time import ZONED
from sabot.base.arrays import (
    PER_SECOND,
    decimal_floats,
    decimal_type,
    empty_array,
    epoch,
    integer_array,
    integer_range,
    integers,
    is_utc,
    shown,
    text_decimals,
    time_texts,
    to_unit,
    where,
    with_exact_numbers,
)
from sabot.engine.operators.expressions.rounding import rescaled, round_decimals, upscaled
from sabot.engine.operators.expressions.times import local
from sabot.engine.operators.expressions.zones import clock_of, zone_texts
from sabot.errors import DataError, UserError

_SIGNED = [pa.int8(), pa.int16(), pa.int32(), pa.int64()]
_UNSIGNED = [pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
_UNITS = ["s", "ms", "us", "ns"]
_DIVIDES = 9  # the most digits of a decimal that pyarrow can drop; it fails for more (see `rescaled`)
_PLAIN_SCALE = 6  # up to it pyarrow writes all digits of a decimal
_WHOLE = r"^[+-]?[0-9]+$"
_FINER = {  # by unit: the pattern of a fraction of a second with more digits than the unit has
    "s": r"(:[0-9]{2})\.[0-9]+",
    "ms": r"(:[0-9]{2}\.[0-9]{3})[0-9]+",
    "us": r"(:[0-9]{2}\.[0-9]{6})[0-9]+",
    "ns": r"(:[0-9]{2}\.[0-9]{9})[0-9]+",
}

Convert = Callable[[pa.Array], pa.Array]


# -- the common type ------------------------------------------------------------------------------------------------------


def common_type(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Returns the type that can hold the values of both types, or None if there is none. Integers and floats have the
    common type that polars gives them.
    """
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if is_number(a) and is_number(b):
        return _common_number(a, b)
    for is_it, make in ((pa.types.is_duration, pa.duration), (pa.types.is_timestamp, pa.timestamp)):
        if is_it(a) and is_it(b):
            unit = max(a.unit, b.unit, key=_UNITS.index)
            return pa.duration(unit) if make is pa.duration else pa.timestamp(unit, a.tz or b.tz)
    if pa.types.is_date(a) and pa.types.is_date(b):
        return pa.date32()
    if pa.types.is_time(a) and pa.types.is_time(b):
        return max(a, b, key=lambda type: _UNITS.index(type.unit))
    if pa.types.is_date(a) and pa.types.is_timestamp(b):
        return b
    if pa.types.is_timestamp(a) and pa.types.is_date(b):
        return a
    if pa.types.is_list(a) and pa.types.is_list(b):
        inner = common_type(a.value_type, b.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_struct(a) and pa.types.is_struct(b) and [f.name for f in a] == [f.name for f in b]:
        types = [common_type(x.type, y.type) for x, y in zip(a, b, strict=True)]
        if all(each is not None for each in types):
            return pa.struct([(field.name, each) for field, each in zip(a, types, strict=True)])
    return None


def is_number(type: pa.DataType) -> bool:
    """Returns True for integers, floats, decimals, and bool, which counts as 0 and 1."""
    return bool(
        pa.types.is_integer(type)
        or pa.types.is_floating(type)
        or pa.types.is_boolean(type)
        or pa.types.is_decimal(type)
    )


def _common_number(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if pa.types.is_boolean(a) or pa.types.is_boolean(b):
        other = b if pa.types.is_boolean(a) else a
        return None if pa.types.is_decimal(other) else other
    if pa.types.is_floating(b):
        a, b = b, a
    if pa.types.is_floating(a):
        narrow = pa.types.is_floating(b) or (pa.types.is_integer(b) and b.bit_width <= 16)
        return (
            pa.float32()
            if narrow and max(a.bit_width, b.bit_width if pa.types.is_floating(b) else 0) <= 32
            else pa.float64()
        )
    if pa.types.is_decimal(a) or pa.types.is_decimal(b):
        return _common_decimal(a, b)
    if pa.types.is_signed_integer(a) == pa.types.is_signed_integer(b):
        return a if a.bit_width >= b.bit_width else b
    signed, unsigned = (a, b) if pa.types.is_signed_integer(a) else (b, a)
    if unsigned.bit_width == 64:
        return None
    return next(each for each in _SIGNED if each.bit_width > unsigned.bit_width and each.bit_width >= signed.bit_width)


def _common_decimal(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    parts = [(each.precision, each.scale) if pa.types.is_decimal(each) else (20, 0) for each in (a, b)]
    scale = max(s for _, s in parts)
    digits = max(p - s for p, s in parts) + scale
    return decimal_type(min(digits, 76), scale)


def literal_integer(value: int, like: pa.DataType) -> pa.DataType:
    """Returns the type of a literal that exceeds the type of a column: 32 bits if they hold it, else 64. The type is
    unsigned if `like` is unsigned and the value is not negative. Fewer bits would often not hold the results of
    arithmetic with the literal. Raises UserError for a value that does not fit into 64 bits.
    """
    first = _UNSIGNED if pa.types.is_unsigned_integer(like) else _SIGNED
    for each in [*first[2:], *_SIGNED[2:], *_UNSIGNED[2:]]:
        low, high = integer_range(each)
        if low <= value <= high:
            return each
    raise UserError(f"{value} does not fit into 64 bits")


class RefusedValues(DataError):
    """The error for values that a strict cast cannot convert. The message shows the first.

    `rows`: True for each of these values, in the order of the rows that were cast.
    """

    def __init__(
        self,
        what: str,
        values: pa.Array,
        target: pa.DataType,
        rows: pa.BooleanArray,
        hint: str = "cast(…, strict=False) makes such values null",
    ) -> None:
        self.rows = rows
        self._what, self._values, self._target = what, values, target
        super().__init__(self.text_of(pc.index(rows, True).as_py()), hint=hint)

    def text_of(self, row: int) -> str:
        """Returns the message for the value of one row."""
        return f"{self._what}: {shown(self._values[row])} is no {self._target}"

    def spread(self, kept: pa.BooleanArray) -> "RefusedValues":
        """Returns the same error for all rows of a batch, if only the rows were cast for which `kept` is True."""
        places = places_of(kept)
        return RefusedValues(
            self._what, self._values.take(places), self._target, pc.fill_null(self.rows.take(places), False), self.hint
        )


def places_of(kept: pa.BooleanArray) -> pa.Int64Array:
    """Returns, for each row, the place of its value among the rows that a filter by `kept` keeps; null for others."""
    flags = kept.to_numpy(zero_copy_only=False)
    return pa.array(np.cumsum(flags) - 1, mask=~flags)


# -- cast -----------------------------------------------------------------------------------------------------------------


def caster(
    source: pa.DataType, target: pa.DataType, *, strict: bool, what: str, lenient: bool = False
) -> tuple[Convert, bool]:
    """Returns (the function that casts, True if it can fail). Raises UserError for types that cannot be cast.

    `strict`: True if a value that the target cannot hold raises DataError, False if it becomes null. `what`: the
    column, for messages. `lenient`: True to read texts that cannot be cast as SQL does: ' 12 ', 'yes', '2024-4-5'.
    """
    convert, total = _conversion(source, target)
    try:
        convert(pa.nulls(1, source) if pa.types.is_nested(source) else empty_array(source))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise UserError(f"{what}: {source} cannot be cast to {target}: {error}") from error
    if total:
        return convert, False

    def run(array: pa.Array) -> pa.Array:
        result = _salvaged(convert, array, target)
        if lenient and result.null_count > array.null_count:
            refused = pc.and_(pc.is_null(result), pc.is_valid(array))
            texts = _as_sql_writes(array.filter(refused), target)
            result = pc.replace_with_mask(result, refused, _salvaged(convert, texts, target))
        if strict and result.null_count > array.null_count:
            raise RefusedValues(what, array, target, pc.and_(pc.is_null(result), pc.is_valid(array)))
        return result

    return run, strict


def _conversion(source: pa.DataType, target: pa.DataType) -> tuple[Convert, bool]:
    """Returns (a function that casts, True if it can cast every value). For other values the function returns null or
    raises ArrowInvalid.
    """
    types = pa.types
    plain = functools.partial(pc.cast, target_type=target)
    unsafe = functools.partial(pc.cast, target_type=target, safe=False)
    if source == target:
        return lambda array: array, True
    if types.is_nested(source) or (types.is_decimal(target) and not (types.is_null(source) or is_number(source))):
        return lambda array: pc.cast(with_exact_numbers(array, target), target), False
    if types.is_null(source) or (types.is_boolean(source) and (is_number(target) or types.is_string(target))):
        return plain, True
    if types.is_boolean(target):
        if types.is_integer(source) or types.is_floating(source):
            return lambda array: pc.not_equal(array, pa.scalar(0, source)), True
        if types.is_string(source):
            return _parse_bool, False
    if types.is_floating(target) and (types.is_integer(source) or types.is_floating(source)):
        return unsafe, True
    if types.is_floating(target) and types.is_decimal(source):
        return functools.partial(decimal_floats, type=target), True
    divides = types.is_decimal(source) and (types.is_decimal(target) or types.is_integer(target))
    if divides and source.scale - getattr(target, "scale", 0) > _DIVIDES:
        return functools.partial(rescaled, target=target), False
    counts = types.is_integer(source) or types.is_decimal(source)
    if counts and types.is_decimal(target) and getattr(source, "scale", 0) <= target.scale:
        return functools.partial(upscaled, target=target), False
    if types.is_integer(target):
        if types.is_integer(source):
            low, high = integer_range(target)
            fits = low <= integer_range(source)[0] and integer_range(source)[1] <= high
            return plain, fits
        if types.is_floating(source):
            return functools.partial(_cut_off, target=target), False
        if types.is_string(source):
            return functools.partial(_parse_integer, target=target), False
        if (
            types.is_timestamp(source)
            or types.is_date64(source)
            or types.is_duration(source)
            or types.is_time64(source)
        ):
            return lambda array: pc.cast(
                array.view(pa.int64()), target
            ), target.bit_width == 64 and target != pa.uint64()
        if types.is_date32(source) or types.is_time32(source):
            return lambda array: pc.cast(array.view(pa.int32()), target), target in (pa.int32(), pa.int64())
    if types.is_temporal(target) and types.is_floating(source):
        first, _ = _conversion(source, pa.int64())
        then, _ = _conversion(pa.int64(), target)
        return lambda array: then(first(array)), False
    whole = pa.int64() if types.is_temporal(target) and target.bit_width == 64 else pa.int32()
    if types.is_temporal(target) and types.is_integer(source) and source != whole:
        to_whole, _ = _conversion(whole, target)
        return lambda array: to_whole(pc.cast(array, whole)), False
    if types.is_time(target) and types.is_integer(source):
        return functools.partial(_time_of_day, target=target), False
    if types.is_date64(target) and types.is_integer(source):
        return _whole_days, False
    if types.is_time(target) and types.is_time(source):
        return functools.partial(_time_in_unit, target=target), True
    if types.is_time(target) and types.is_timestamp(source) and is_utc(source.tz):
        return lambda array: _time_in_unit(_time_in_day(array), target), True
    if types.is_timestamp(source) and not is_utc(source.tz) and (types.is_string(target) or types.is_time(target)):
        clock, total = _conversion(pa.timestamp(source.unit), target)
        if types.is_time(target):
            return lambda array: clock(local(array)), total
        return lambda array: pc.binary_join_element_wise(clock(clock_of(array, 60)), zone_texts(array, "z"), ""), total
    if types.is_string(target):
        if types.is_floating(source):
            return _float_text, True
        if types.is_timestamp(source) or types.is_date(source):
            return time_texts, True
        if types.is_decimal(source) and source.scale > _PLAIN_SCALE:
            return _decimal_text, True
        if types.is_integer(source) or types.is_temporal(source) or types.is_decimal(source):
            return plain, True
    if types.is_timestamp(target):
        if types.is_timestamp(source) and source.tz is None and not is_utc(target.tz):
            raise UserError(
                f"{source} has no time zone, so a cast to {target} could mean two things",
                hint=f'.dt.replace_time_zone("{target.tz}") if it is the time on clocks there; '
                f'.dt.convert_time_zone("{target.tz}") if it is UTC',
            )
        if types.is_timestamp(source):
            step = _UNITS.index(source.unit) >= _UNITS.index(target.unit)
            return lambda array: pc.cast(to_unit(array, target.unit), target), step
        if types.is_string(source):
            return functools.partial(_parse_time, target=target), False
    if types.is_duration(source) and types.is_duration(target):
        return lambda array: to_unit(array, target.unit), _UNITS.index(source.unit) >= _UNITS.index(target.unit)
    if types.is_timestamp(source) and types.is_date(target):
        return lambda array: _dates(array, target), source.unit in (
            "us",
            "ns",
            # timestamps in us and ns always fit: their range is smaller than that of days in 32 bits
        )
    return plain, False


_YES, _NO = ("t", "true", "y", "yes", "1"), ("f", "false", "n", "no", "0")
_DATE = r"^(?P<y>[0-9]{1,4})(?:-(?P<m>[0-9]{1,2})(?:-(?P<d>[0-9]{1,2}))?)?(?: .*)?$"
_MOMENT = (
    r"^(?P<y>[0-9]{4})-(?P<m>[0-9]{1,2})-(?P<d>[0-9]{1,2})"
    r"(?:[ T](?P<H>[0-9]{1,2}):(?P<M>[0-9]{1,2}):(?P<S>[0-9]{1,2})(?P<f>\.[0-9]{1,9})?)?$"
)


def _as_sql_writes(texts: pa.Array, target: pa.DataType) -> pa.Array:
    """Returns texts that the engine's cast refuses as it reads them, where the casts of Flink read them: without spaces
    around, a number without its fraction as an integer and with fewer digits as a decimal, dates with one digit of a month.
    """
    texts = pc.utf8_trim_whitespace(texts)
    if pa.types.is_boolean(target):
        lower = pc.utf8_lower(texts)
        is_no = pc.is_in(lower, value_set=pa.array(_NO))
        return pc.if_else(pc.is_in(lower, value_set=pa.array(_YES)), "true", pc.if_else(is_no, "false", texts))
    if pa.types.is_integer(target):
        return pc.replace_substring_regex(texts, r"^([+-]?[0-9]+)\.[0-9]*$", r"\1")
    if pa.types.is_decimal(target):
        wide = pa.decimal256(76, 38)
        texts = pc.replace_substring_regex(texts, r"^([+-]?[0-9]*\.[0-9]{38})[0-9]+$", r"\1")
        made = _salvaged(functools.partial(text_decimals, type=wide), texts, wide)
        rounded = round_decimals(made, target.scale, "away")
        return pc.cast(rescaled(rounded, pa.decimal256(76, target.scale)), pa.string())
    if pa.types.is_date(target):
        year, month, day = _parts_of(texts, _DATE, 3)
        return _joined(pc.utf8_lpad(year, 4, "0"), month, day, "-")
    if pa.types.is_timestamp(target):
        year, month, day, *clock, fraction = _parts_of(texts, _MOMENT, 7)
        fraction = pc.if_else(pc.equal(fraction, "0"), "", fraction)
        return pc.binary_join_element_wise(_joined(year, month, day, "-"), "T", _joined(*clock, ":"), fraction, "")
    return texts


def _joined(*texts: Any) -> pa.Array:
    """Returns texts with a separator, the last argument, between them. Texts of one digit have two."""
    return pc.binary_join_element_wise(*(pc.utf8_lpad(each, 2, "0") for each in texts[:-1]), texts[-1])


def _parts_of(texts: pa.Array, pattern: str, count: int) -> list[pa.Array]:
    """Returns the groups of a pattern; 1 for a month or a day that is left out, 0 for another part."""
    found = pc.extract_regex(texts, pattern=pattern)
    parts = [pc.struct_field(found, [i]) for i in range(count)]
    return [pc.if_else(pc.equal(part, ""), "1" if i < 3 else "0", part) for i, part in enumerate(parts)]


def _salvaged(convert: Convert, array: pa.Array, target: pa.DataType) -> pa.Array:
    """Casts an array, with null for each value that cannot be cast. If the cast fails, each half of the array is cast
    by itself, and so on down to single values.
    """
    try:
        return convert(array)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if len(array) == 1:
            return pa.nulls(1, target)
    middle = len(array) // 2
    halves = [_salvaged(convert, part, target) for part in (array.slice(0, middle), array.slice(middle))]
    return pa.concat_arrays(halves)


def _cut_off(array: pa.Array, target: pa.DataType) -> pa.Array:
    low, high = integer_range(target)
    whole = pc.trunc(array)
    ends = [pa.scalar(float(low), pa.float64()), pa.scalar(float(high + 1), pa.float64())]
    fits = pc.and_(pc.greater_equal(whole, ends[0]), pc.less(whole, ends[1]))
    if pc.all(fits, min_count=0).as_py() is False:
        whole = where(fits, whole)
    return pc.cast(whole, target, safe=False)


def _parse_bool(array: pa.Array) -> pa.Array:
    text = pc.utf8_lower(array)
    yes = pc.equal(text, "true")
    return where(pc.or_(yes, pc.equal(text, "false")), yes)


def _parse_integer(array: pa.Array, target: pa.DataType) -> pa.Array:
    try:
        made = pc.cast(array, target)
        if not pc.any(pc.match_substring(array, "x", ignore_case=True), min_count=0).as_py():
            return made
    except pa.ArrowInvalid:
        if len(array) == 1 and not pc.match_substring_regex(array, r"^\+[0-9]+$")[0].as_py():
            raise
    text = where(pc.match_substring_regex(array, _WHOLE), array)  # pyarrow would accept 0x10
    return pc.cast(pc.replace_substring_regex(text, r"^\+", ""), target)


def _parse_time(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Parses ISO 8601. A text without a time zone is read as UTC."""
    naive, utc = pa.timestamp(target.unit), pa.timestamp(target.unit, "UTC")
    zoned = pc.match_substring_regex(array, ZONED)
    without = _salvaged(functools.partial(_times, type=naive), where(pc.invert(zoned), array), naive)
    if pc.any(zoned, min_count=0).as_py():
        within = _salvaged(functools.partial(_times, type=utc), where(zoned, array), utc)
        without = pc.coalesce(without, within.view(naive))
    return without.view(target) if target != naive else without


def _times(texts: pa.Array, type: pa.TimestampType) -> pa.Array:
    """Parses texts that all have a time zone, or all have none. Digits behind those of the unit are cut off."""
    try:
        return pc.cast(texts, type)
    except pa.ArrowInvalid:
        return pc.cast(pc.replace_substring_regex(texts, _FINER[type.unit], r"\1"), type)


def _time_of_day(array: pa.Array, target: pa.DataType) -> pa.Array:
    ends = pc.min_max(array).as_py()
    if ends["min"] is not None and not (ends["min"] >= 0 and ends["max"] < 86400 * PER_SECOND[target.unit]):
        raise pa.ArrowInvalid("a time of day must be less than a day")
    return array.view(target)


def _time_in_day(array: pa.Array) -> pa.Array:
    """Returns the time of day of UTC timestamps, in their unit. pyarrow's own cast is wrong for times far from 1970."""
    unit = array.type.unit
    values = np.remainder(integers(array), 86400 * PER_SECOND[unit])
    if unit in ("s", "ms"):
        return integer_array(values.astype(np.int32), pa.time32(unit), array)
    return integer_array(values, pa.time64(unit), array)


def _time_in_unit(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Returns times of day in the unit of `target`, rounded down if it is coarser, as times with a date are."""
    have, want = PER_SECOND[array.type.unit], PER_SECOND[target.unit]
    if have <= want:
        return pc.cast(array, target)
    width = np.int32 if target.bit_width == 32 else np.int64
    return integer_array((integers(array) // (have // want)).astype(width), target, array)


def _whole_days(array: pa.Array) -> pa.Array:
    """Rounds milliseconds since 1970 down to dates. Raises ArrowInvalid for a date whose start does not fit into 64
    bits.
    """
    values = integers(array)
    if len(values) and pc.min(array).as_py() is not None and pc.min(array).as_py() < -(2**63) + 86_400_000:
        raise pa.ArrowInvalid("the start of its day does not fit into 64 bits")
    return integer_array(values - np.remainder(values, 86_400_000), pa.date64(), array)


def _float_text(array: pa.Array) -> pa.Array:
    """Writes floats as polars does: 1.0 with its fraction, NaN in capitals."""
    text = pc.cast(array, pa.string())
    whole = pc.and_(pc.equal(array, pc.trunc(array)), pc.invert(pc.match_substring_regex(text, "[.en]")))
    text = pc.if_else(whole, pc.binary_join_element_wise(text, ".0", ""), text)
    return pc.if_else(pc.is_nan(array), "NaN", text)


def _decimal_text(array: pa.Array) -> pa.Array:
    """Writes decimals with all their digits: 0.00000005, which pyarrow writes as 5E-8."""
    text = pc.cast(array, pa.string())
    small = pc.fill_null(pc.match_substring(text, "E-"), False)
    if not pc.any(small, min_count=0).as_py():
        return text
    some, scale = array.filter(small), array.type.scale
    if some.type.bit_width < 128:
        some = pc.cast(some, pa.decimal128(38, scale))
    whole = pa.decimal128(38, 0) if some.type.bit_width == 128 else pa.decimal256(76, 0)
    digits = pc.cast(
        pa.Array.from_buffers(whole, len(some), [None, some.buffers()[1]], offset=some.offset), pa.string()
    )
    sign = pc.if_else(pc.starts_with(digits, "-"), "-0.", "0.")
    plain = pc.utf8_lpad(pc.utf8_ltrim(digits, characters="-"), width=scale, padding="0")
    return pc.replace_with_mask(text, small, pc.binary_join_element_wise(sign, plain, ""))


def _dates(array: pa.Array, target: pa.DataType) -> pa.Array:
    days = epoch(local(array) if not is_utc(array.type.tz) else array, "d")
    return pc.cast(pc.cast(days, pa.int32()).view(pa.date32()), target)
