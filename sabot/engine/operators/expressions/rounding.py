"""Rounds to a number of decimal digits as Python's `round` does: to the nearest, and halves to the even digit.

pyarrow's `round` multiplies, rounds and divides, and each of the three steps adds an error: at two digits 2.675
becomes 2.68, though the float is less than 2.675, and from eleven digits on most results are wrong (0.1 becomes
0.099999999998). Here the error of the product is computed too, and decides where the product looks like a half.

Decimals are rounded as integers. pyarrow loses the error of a value that does not fit if a later row fits. It also
divides wrongly where 32 bits of a quotient are all ones: of decimal(38, 20) 4294967295.5 became 4294967295, of
decimal(60, 20) 18446744073709551615.5 became 18446744067371298615.
"""

import decimal
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.arrays import decimal_array, decimal_integers, floats

_TENS = 22  # powers of ten up to 10**22 are floats without rounding
_WHOLE = 2.0**52  # from here on floats have no fraction
_FINE = 2.0**54  # from so many steps of 10**-digits on, a float is the nearest one to its own rounded value
_SPLIT = 2.0**27 + 1
_MOST_STEPS = 80  # more digits than any decimal has


def round_to(x: pa.Array, digits: int, *, away: bool = False) -> pa.Array:
    """Rounds floats or decimals to `digits` digits behind the point. Raises ArrowInvalid if a rounded decimal does
    not fit its type. `away`: True to round halves away from zero.
    """
    if pa.types.is_decimal(x.type):
        return round_decimals(x, digits, "away" if away else "round")
    if digits == 0 and not away:
        return pc.round(x)
    values = floats(x).astype(np.float64, copy=False)
    with np.errstate(all="ignore"):
        if away and abs(digits) <= _TENS:
            made = _away(values, digits)
        elif abs(digits) > _TENS:
            made = _rare(values, digits)
        elif digits > 0:
            made = _fractions(values, digits)
        else:
            made = _tens(values, -digits)
        made = made.astype(floats(x).dtype, copy=False)
    return pa.array(made, mask=x.is_null().to_numpy(zero_copy_only=False) if x.null_count else None)


def round_decimals(x: pa.Array, digits: int, kind: str) -> pa.Array:
    """Rounds decimals to `digits` digits behind the point. `kind`: "round", "away", "floor" or "ceil". Raises ArrowInvalid if
    a rounded decimal does not fit its type.
    """
    step = 10 ** min(max(x.type.scale - digits, 0), _MOST_STEPS)
    if step == 1:
        return x
    values = decimal_integers(x, room=2 * step)
    steps, rest = _divided(values, step)
    up = (rest > 0) & (kind == "ceil")
    if kind == "round":
        up = (2 * rest > step) | ((2 * rest == step) & (steps % 2 == 1))
    if kind == "away":
        up = (2 * rest > step) | ((2 * rest == step) & (steps >= 0))
    return decimal_array((steps + up) * step, x.type, x)


def rescaled(x: pa.Array, target: pa.DataType) -> pa.Array:
    """Converts decimals to decimals with fewer digits behind the point, or to integers. Raises ArrowInvalid for a
    value that does not fit, or that would lose digits.
    """
    whole = pa.types.is_integer(target)
    step = 10 ** (x.type.scale - (0 if whole else target.scale))
    steps, rest = _divided(decimal_integers(x, room=step), step)
    if rest.any():
        raise pa.ArrowInvalid("the cast would lose digits")
    made = decimal_array(steps, pa.decimal256(76, 0) if whole else target, x)
    return pc.cast(made, target) if whole else made


def upscaled(x: pa.Array, target: pa.DataType) -> pa.Array:
    """Converts integers or decimals to decimals with as many digits behind the point or more. Raises ArrowInvalid for
    a value with more digits in front of it than `target` has.
    """
    if not pa.types.is_decimal(x.type) or x.type.bit_width < 128:
        scale = x.type.scale if pa.types.is_decimal(x.type) else 0
        x = pc.cast(x, pa.decimal128(20, scale))  # of up to 64 bits
    whole = target.precision - target.scale
    if x.type.precision - x.type.scale > whole:  # pyarrow misses values whose product overflows, also if safe=True
        span, most = pc.min_max(x), decimal.Decimal((0, (1,), whole))
        if span["min"].is_valid and not -most < span["min"].as_py() <= span["max"].as_py() < most:
            raise pa.ArrowInvalid(f"it does not fit in {target}")
    return pc.cast(x, target, safe=False)


def _divided(values: Any, step: int) -> tuple[Any, Any]:
    steps = values // step
    return steps, values - steps * step


def _fractions(values: Any, digits: int) -> Any:
    """Rounds each value to 1 to 22 digits behind the point, and returns the nearest floats of the results."""
    ten = 10.0**digits
    product = values * ten
    steps = np.rint(product)
    half = np.flatnonzero(np.abs(product - steps) == 0.5)
    if len(half):  # the exact product may be a little less or more than a half
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


def _away(values: Any, digits: int) -> Any:
    """Rounds each value to -22 to 22 digits behind the point, halves away from zero: 2.675 to 2.68, although the float
    is a little less. The middle between two steps is the float nearest to it, as it is for a number that is written.
    """
    size, ten = np.abs(values), 10.0 ** abs(digits)
    down = np.floor(size * ten if digits >= 0 else size / ten)
    middle = (down + 0.5) / ten if digits >= 0 else (down + 0.5) * ten
    steps = down + (size >= middle)
    made = np.copysign(steps / ten if digits >= 0 else steps * ten, values) + 0.0  # and no -0.0
    return np.where(down < _WHOLE, made, values)  # NaN and what has no fraction too


def _error(values: Any, ten: float, product: Any) -> Any:
    """Returns the difference between the exact product of floats and the computed one (Dekker 1971)."""
    high = _SPLIT * values
    high = high - (high - values)
    low = values - high
    ten_high = _SPLIT * ten
    ten_high = ten_high - (ten_high - ten)
    ten_low = ten - ten_high
    return ((high * ten_high - product) + high * ten_low + low * ten_high) + low * ten_low


def _quotients(steps: Any, digits: int) -> Any:
    """Divides integers of up to 54 bits by 10**digits, and returns the nearest floats. Floats cannot divide them
    exactly, so the quotient is written as text and parsed.
    """
    texts = pc.binary_join_element_wise(pc.cast(pa.array(steps), pa.string()), pa.scalar(f"e-{digits}"), "")
    return floats(pc.cast(texts, pa.float64()))


def _tens(values: Any, digits: int) -> Any:
    """Rounds each value to a multiple of 10**digits (1 to 22), and returns the nearest floats of the results.
    Remainders of floats are exact.
    """
    ten = 10.0**digits
    size = np.abs(values)
    rest = np.fmod(size, ten)
    up = (2 * rest > ten) | ((2 * rest == ten) & (np.fmod(size, 2 * ten) >= ten))
    made = np.copysign(np.where(up, size + (ten - rest), size - rest), values)
    return np.where(np.isfinite(values), made, values)


def _rare(values: Any, digits: int) -> Any:
    """Rounds values with Python, for numbers of digits whose power of ten is no float. It is called only for values
    that the rounding changes to something other than 0; these are few for any number of digits.
    """
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
