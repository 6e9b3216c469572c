"""Rounding to a number of digits, as Python's `round`: the decimal number nearest to the value, halves to the even one.

pyarrow's `round` multiplies, rounds and divides, and each of the three steps rounds once more: 2.675 becomes 2.68 at two digits, though
the float is less than that, and from eleven digits on most values come out wrong (0.1 as 0.099999999998). Here the error of the product
is computed too, and it decides where the product alone says a half.

Decimals are rounded as integers. pyarrow loses the error of a value that does not fit where a later row does, and it divides wrongly
where 32 bits of a quotient are all ones: of decimal(38, 20) 4294967295.5 became 4294967295, of decimal(60, 20) 18446744073709551615.5
became 18446744067371298615.
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.arrays import decimal_array, decimal_integers, floats

_TENS = 22  # powers of ten up to 10**22 are floats without rounding
_WHOLE = 2.0**52  # from here on floats have no fraction
_FINE = 2.0**54  # a float of so many steps of 10**-digits is the one nearest to its rounded value
_SPLIT = 2.0**27 + 1
_MOST_STEPS = 80  # no decimal has so many digits


def round_to(x: pa.Array, digits: int) -> pa.Array:
    """Rounds floats or decimals to so many digits behind the point. Raises ArrowInvalid for a decimal that does not fit its type then."""
    if pa.types.is_decimal(x.type):
        return round_decimals(x, digits, "round")
    if digits == 0:
        return pc.round(x)
    values = floats(x).astype(np.float64, copy=False)
    with np.errstate(all="ignore"):
        if abs(digits) > _TENS:
            made = _rare(values, digits)
        elif digits > 0:
            made = _fractions(values, digits)
        else:
            made = _tens(values, -digits)
        made = made.astype(floats(x).dtype, copy=False)
    return pa.array(made, mask=x.is_null().to_numpy(zero_copy_only=False) if x.null_count else None)


def round_decimals(x: pa.Array, digits: int, kind: str) -> pa.Array:
    """Rounds decimals to so many digits behind the point. kind: "round", "floor" or "ceil". Raises ArrowInvalid for one that does not fit
    its type then.
    """
    step = 10 ** min(max(x.type.scale - digits, 0), _MOST_STEPS)
    if step == 1:
        return x
    values = decimal_integers(x, room=2 * step)
    steps, rest = _divided(values, step)
    up = (rest > 0) & (kind == "ceil")
    if kind == "round":
        up = (2 * rest > step) | ((2 * rest == step) & (steps % 2 == 1))
    return decimal_array((steps + up) * step, x.type, x)


def rescaled(x: pa.Array, target: pa.DataType) -> pa.Array:
    """Decimals as decimals with fewer digits behind the point, or as integers. Raises ArrowInvalid for one that does not fit, or has those
    digits.
    """
    whole = pa.types.is_integer(target)
    step = 10 ** (x.type.scale - (0 if whole else target.scale))
    steps, rest = _divided(decimal_integers(x, room=step), step)
    if rest.any():
        raise pa.ArrowInvalid("it has digits that would be lost")
    made = decimal_array(steps, pa.decimal256(76, 0) if whole else target, x)
    return pc.cast(made, target) if whole else made


def _divided(values: Any, step: int) -> tuple[Any, Any]:
    steps = values // step
    return steps, values - steps * step


def _fractions(values: Any, digits: int) -> Any:
    """The nearest float of each value that is rounded to 1 to 22 digits."""
    ten = 10.0**digits
    product = values * ten
    steps = np.rint(product)
    half = np.flatnonzero(np.abs(product - steps) == 0.5)
    if len(half):  # the value may be a little less or more than a half
        error = _error(values[half], ten, product[half])
        exact = steps[half]
        steps[half] = np.where(error > 0, np.ceil(product[half]), np.where(error < 0, np.floor(product[half]), exact))
    made = steps / ten
    far = ~(np.abs(product) < _WHOLE)
    if far.any():
        made[far] = values[far]
        some = np.flatnonzero(far & (np.abs(product) < _FINE))
        if len(some):
            error = _error(values[some], ten, product[some])
            whole = product[some].astype(np.int64)
            step = np.rint(error).astype(np.int64)
            tied = (np.abs(error - np.trunc(error)) == 0.5) & ((whole + step) & 1 == 1)
            step[tied] = (2 * error[tied]).astype(np.int64) - step[tied]
            made[some] = _quotients(whole + step, digits)
    return made


def _error(values: Any, ten: float, product: Any) -> Any:
    """What a product of floats lacks of the exact one (Dekker 1971)."""
    high = _SPLIT * values
    high = high - (high - values)
    low = values - high
    ten_high = _SPLIT * ten
    ten_high = ten_high - (ten_high - ten)
    ten_low = ten - ten_high
    return ((high * ten_high - product) + high * ten_low + low * ten_high) + low * ten_low


def _quotients(steps: Any, digits: int) -> Any:
    """The nearest floats of integers of up to 54 bits divided by a power of ten: floats cannot divide those exactly, texts say them."""
    texts = pc.binary_join_element_wise(pc.cast(pa.array(steps), pa.string()), pa.scalar(f"e-{digits}"), "")
    return floats(pc.cast(texts, pa.float64()))


def _tens(values: Any, digits: int) -> Any:
    """The nearest float of each value that is rounded to a multiple of 10**1 to 10**22. Remainders of floats are exact."""
    ten = 10.0**digits
    size = np.abs(values)
    rest = np.fmod(size, ten)
    up = (2 * rest > ten) | ((2 * rest == ten) & (np.fmod(size, 2 * ten) >= ten))
    made = np.copysign(np.where(up, size + (ten - rest), size - rest), values)
    return np.where(np.isfinite(values), made, values)


def _rare(values: Any, digits: int) -> Any:
    """The values rounded to powers of ten that no float is, by Python: only those that are not 0, or themselves, whatever the digits."""
    step = float(f"1e{-digits}") if digits < 324 else 0.0
    made = np.where(np.abs(values) < step / 4, np.copysign(0.0, values), values)
    some = np.flatnonzero((np.abs(values) >= step / 4) & (np.abs(values) < step * _FINE * 2))
    for row in some.tolist():
        value = float(values[row])
        try:
            made[row] = round(value, digits)
        except OverflowError:  # 1.7e308 to whole 1e308
            made[row] = math.copysign(math.inf, value)
    return made
