"""Functions over times for expressions: the local time of a time zone, rounding down to a multiple of a duration,
conversion to text.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.text.times import write_times
from sabot.base.arrays import PER_SECOND, as_timestamp, has_far_times, integer_array, integers, is_utc, to_unit
from sabot.engine.operators.expressions.zones import clock_of, intervals_of, times_at, times_before, zone_texts
from sabot.errors import UserError

_NS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
    "w": 7 * 86400 * 10**9,
}
_MONTHS = {"mo": 1, "q": 3, "y": 12}
_MONDAY_NS = 4 * 86400 * 10**9  # 1970-01-05: weeks begin on Mondays


def local(array: pa.Array) -> pa.Array:
    """Converts timestamps to the local time of their time zone, as timestamps without a zone."""
    array = as_timestamp(array)
    if array.type.tz is None:
        return array
    return array.view(pa.timestamp(array.type.unit)) if is_utc(array.type.tz) else clock_of(array)


def truncate(every: str, type: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    """Returns a function that rounds times down to multiples of `every` ("15m", "1mo") in the column's time zone.
    Raises UserError if the type's unit is too coarse.
    """
    match = re.fullmatch(r"(\d+)(\w+)", every)
    assert match is not None
    count, unit = int(match[1]), match[2]
    if unit in _MONTHS:
        return lambda array: _truncate_months(array, count * _MONTHS[unit])
    ns = count * _NS[unit]
    start = _MONDAY_NS if unit == "w" else 0

    def run(array: pa.Array) -> pa.Array:
        step_ns = _step_ns(array.type)
        if step_ns >= ns:
            return array
        if ns % step_ns:
            raise UserError(f"{every} is not a multiple of the unit of {array.type}")
        steps, first = ns // step_ns, start // step_ns
        if _zone(array.type) is None:
            values = integers(array).astype(np.int64, copy=False)
            made = values - np.remainder(values - first, steps)
            return integer_array(made.astype(f"i{array.type.bit_width // 8}"), array.type, array)
        if ns >= _NS["d"]:
            clock = integers(clock_of(array))
            return times_at(clock - np.remainder(clock - first, steps), array)
        found = intervals_of(array)
        return times_before(np.remainder(integers(array) + found.offsets[found.rows], steps), array, found)

    run(pa.array([], type))
    return run


_CODES = frozenset("aAbBcCdDeFgGhHIjmMnprRStTuUVwWxXyYzZ%")  # the codes of pyarrow, without those of fractions
_UNPADDED = frozenset("mdHIMSj")  # codes that may have a - behind %, for a number without zeros before it
# the width of each code of `write_times`, which is much faster than pyarrow
_DIGITS = {"Y": 4, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2}
_SHORT_CODES = {"F": "%Y-%m-%d", "T": "%H:%M:%S", "R": "%H:%M"}


def format_time(format: str, type: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    """Returns a function that converts times to text. Seconds are integers; %3f, %6f, %9f and %f are digits of their
    fraction, and %.3f has the point too.

    Raises UserError for a code that this type of time does not have.
    """
    fractions = not pa.types.is_date(type)
    for code in re.findall(r"%(\.?[369]?f|-?.|$)", format, re.DOTALL):
        code = code[1:] if code[1:] in _UNPADDED else code
        if not (code in _CODES or (fractions and code.endswith("f"))):
            raise UserError(
                f"strftime({format!r}): %{code} is not a code for {type}", hint="%Y-%m-%d %H:%M:%S, %3f for ms, …"
            )
        if code in ("z", "Z") and not pa.types.is_integer(type) and getattr(type, "tz", None) is None:
            raise UserError(
                f"strftime({format!r}): {type} has no time zone for %{code}", hint='.cast("timestamp[ms, UTC]")'
            )
    parts = [part for part in re.split(r"((?<!%)(?:%%)*%(?:(?:\.?[369])?f|[zZ]|-.))", format) if part]
    template, fields = _fields_of(format)

    def run(array: pa.Array) -> pa.Array:
        if pa.types.is_integer(array.type):
            array = as_timestamp(array)
        clock = local(array)
        if fields and (texts := write_times(clock, PER_SECOND[clock.type.unit], template, fields)) is not None:
            return texts
        if has_far_times(clock):
            raise pa.ArrowInvalid("strftime knows years up to 32767")  # pyarrow would write another year
        if pa.types.is_date(array.type) and "%-" not in format:
            return pc.strftime(array, format=format)
        whole = to_unit(clock, "s").view(pa.timestamp("s", "UTC"))  # pyarrow refuses "%%z" for times without a zone
        texts = []
        for part in parts:
            if (match := re.fullmatch(r"((?:%%)*)%([zZ])", part)) is not None:
                texts.append(_prefixed(match[1].replace("%%", "%"), zone_texts(array, match[2])))
                continue
            match = re.fullmatch(r"((?:%%)*)%-(.)", part)
            if match is not None:  # without the 0 before a single digit
                padded = pc.strftime(whole, format=f"%{match[2]}")
                number = pc.replace_substring_regex(padded, r"^0+(.)", r"\1")
                texts.append(_prefixed(match[1].replace("%%", "%"), number))
                continue
            match = re.fullmatch(r"((?:%%)*)%(\.?)([369])?f", part)
            if match is None:
                texts.append(pc.strftime(whole, format=part))
                continue
            digits = int(match[3] or 9)
            before = match[1].replace("%%", "%") + match[2]
            texts.append(_fraction(array, digits, before))
        return texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, "")

    return run


def _fields_of(format: str) -> tuple[bytes, list[tuple[str, int, int]]]:
    """Returns the arguments of `write_times` for the format: the text with a "0" for each digit, and the fields. No
    fields are returned if the format has no code or one that only pyarrow knows.
    """
    template, fields = b"", []
    long = re.sub("%([%FRT])", lambda match: _SHORT_CODES.get(match[1], match[0]), format)
    for other, point, digits, code in re.findall(r"([^%]+)|%(\.?)([369]?)(.)", long, re.DOTALL):
        template += (other or point).encode()
        if code == "%":
            template += b"%"
        elif code:
            width = int(digits or 9) if code == "f" else _DIGITS.get(code, 0)
            if not width:
                return b"", []
            fields.append((code, len(template), width))
            template += b"0" * width
    return template, fields


def _fraction(array: pa.Array, digits: int, before: str) -> pa.Array:
    per_second = PER_SECOND[array.type.unit]
    values = np.remainder(integers(array), per_second) * (10**9 // per_second) // 10 ** (9 - digits)
    text = pc.utf8_lpad(pc.cast(integer_array(values, pa.int64(), array), pa.string()), width=digits, padding="0")
    return _prefixed(before, text)


def _prefixed(before: str, texts: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(before, texts, "") if before else texts


def _truncate_months(array: pa.Array, months: int) -> pa.Array:
    def first_day(stamps: Any) -> Any:
        month = stamps.astype("datetime64[M]").astype(np.int64)
        return (month - np.remainder(month, months)).view("datetime64[M]").astype(stamps.dtype)

    return _on_clock(array, first_day)


def offset(by: str, type: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    """Returns a function that moves times by a duration ("15m", "-1mo"), on the clock of the column's time zone if it
    has days or longer units. It raises ArrowInvalid for a time that does not fit the type. Raises UserError if the
    type's unit is too coarse.
    """
    match = re.fullmatch(r"(-?\d+)(\w+)", by)
    assert match is not None
    count, unit = int(match[1]), match[2]
    if unit in _MONTHS:
        return lambda array: _on_clock(array, lambda clock: _months_later(clock, count * _MONTHS[unit]))
    ns, step_ns = count * _NS[unit], _step_ns(type)
    if ns % step_ns:
        raise UserError(f"{by} is not a multiple of the unit of {type}")
    if _NS[unit] >= _NS["d"]:
        return lambda array: _on_clock(array, lambda clock: _later(clock, ns // step_ns))
    return lambda array: integer_array(_later(_ticks(array), ns // step_ns), array.type, array)


def _ticks(array: pa.Array) -> Any:
    """Returns times as int64. The value of a null row is that of another row, because the number behind a null may be
    no valid time.
    """
    values = integers(array).astype(np.int64, copy=False)
    if not array.null_count:
        return values
    null = array.is_null().to_numpy(zero_copy_only=False)
    return np.where(null, values[null.argmin()] if not null.all() else 0, values)


def _later(values: Any, steps: int) -> Any:
    """Adds a number to times (numpy). Raises ArrowInvalid if one does not fit 64 bits."""
    ticks = values.view(np.int64)
    if not len(ticks):
        return values
    if not -(2**63) <= int(ticks.min()) + steps <= int(ticks.max()) + steps < 2**63:
        raise pa.ArrowInvalid("the time does not fit 64 bits")
    return values + steps


def _on_clock(array: pa.Array, move: Callable[[Any], Any]) -> pa.Array:
    """Returns times whose local times are moved. `move`: a function over datetime64 (numpy)."""
    zone = _zone(array.type)
    unit = "D" if pa.types.is_date32(array.type) else _unit(array.type)
    if array.null_count == len(array):
        return array
    stamps = _ticks(array if zone is None else local(array)).view(f"datetime64[{unit}]")
    values = move(stamps).astype(np.int64)
    if zone is not None:
        return times_at(values, array)
    return integer_array(values.astype(f"i{array.type.bit_width // 8}"), array.type, array)


def _months_later(stamps: Any, months: int) -> Any:
    """Returns times of months later, of the same day, or of the last day of a shorter month."""
    before = stamps.astype("datetime64[M]")
    after = before + months
    if np.any(after.astype(stamps.dtype).astype("datetime64[M]") != after):
        raise pa.ArrowInvalid("the time does not fit 64 bits")
    days = (stamps - before).astype("timedelta64[D]")
    most = ((after + 1).astype("datetime64[D]") - after.astype("datetime64[D]")) - 1
    in_day = (stamps - before) - days
    return after.astype(stamps.dtype) + np.minimum(days, most) + in_day


def _zone(type: pa.DataType) -> str | None:
    """Returns the time zone of a type, or None if it has none or is UTC."""
    return type.tz if pa.types.is_timestamp(type) and not is_utc(type.tz) else None


def _unit(type: pa.DataType) -> str:
    return str(type.unit) if pa.types.is_timestamp(type) else "ms"


def _step_ns(type: pa.DataType) -> int:
    return _NS["d"] if pa.types.is_date32(type) else 10**9 // PER_SECOND[_unit(type)]
