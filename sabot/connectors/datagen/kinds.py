"""The columns of the connector datagen: random values of each type, and sequences."""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.connectors.datagen.source import Field, Numbers

HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def random_field(
    type: pa.DataType, *, least: Any = None, most: Any = None, length: int = 100, varies: bool = False
) -> Field:
    """Returns the column of random values. `least`, `most`: bounds of numbers, or None for those of the type; of times, `most`
    is the greatest age in ms. `length`: of texts and bytes, each of another length up to it if it `varies`.

    Raises ValueError for bounds that the type does not have, and TypeError for a type of which there are no random values.
    """
    if pa.types.is_integer(type):
        limits = np.iinfo(type.to_pandas_dtype())
        low, high = int(limits.min if least is None else least), int(limits.max if most is None else most)
        if not limits.min <= low <= high <= limits.max:
            raise ValueError(f"there are no values from {low} to {high} of the type")
        return lambda dice, rows, times: pa.array(dice.integers(low, high, len(rows), endpoint=True)).cast(type)
    if pa.types.is_floating(type):
        bounds = np.finfo(type.to_pandas_dtype())
        return partial(
            _floats, type, float(bounds.min if least is None else least), float(bounds.max if most is None else most)
        )
    if pa.types.is_decimal(type):
        return partial(_decimals, type, least, most)
    if pa.types.is_boolean(type):
        return lambda dice, rows, times: pa.array(dice.random(len(rows)) < 0.5)
    if pa.types.is_string(type) or pa.types.is_binary(type):
        return partial(_bytes, type, length, varies)
    if pa.types.is_timestamp(type):
        return partial(_times, type, 0 if most is None else int(most))
    if pa.types.is_date(type):
        return lambda dice, rows, times: pa.array(times, pa.timestamp("ms")).cast(pa.date32())
    if pa.types.is_time(type):
        return lambda dice, rows, times: time_column(times % 86_400_000, type)
    raise TypeError("there are no random values of this type")


def time_column(ms: Numbers, type: pa.DataType) -> pa.Array:
    """Returns milliseconds as times of this type; what a coarser unit lacks is cut off."""
    units = ms // 1000 if type.unit == "s" else ms * {"ms": 1, "us": 1000, "ns": 1_000_000}[type.unit]
    return pa.array(units.astype(np.int32) if type.bit_width == 32 else units).cast(type)


def sequence_field(type: pa.DataType, first: int, last: int) -> Field:
    """Returns the column of first, first + 1, … up to `last`. Raises TypeError for a type that is neither a number nor a text."""
    if not (
        pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_decimal(type) or pa.types.is_string(type)
    ):
        raise TypeError("a sequence has numbers or texts")

    def numbered(dice: np.random.Generator, rows: Numbers, times: Numbers) -> pa.Array:
        numbers = np.minimum(rows + first, last)  # rows of the block behind the last one are made too, and never read
        return pa.array(numbers).cast(_wide(type)).cast(type)

    return numbered


def _wide(type: pa.DataType) -> pa.DataType:
    return pa.decimal128(19 + type.scale, type.scale) if pa.types.is_decimal(type) and type.scale <= 19 else pa.int64()


def some_null(field: Field, rate: float) -> Field:
    """Returns the column with NULL in a part of the rows, `rate` of them."""

    def with_nulls(dice: np.random.Generator, rows: Numbers, times: Numbers) -> pa.Array:
        null = pa.array(dice.random(len(rows)) < rate)
        values = field(dice, rows, times)
        return pc.if_else(null, pa.scalar(None, values.type), values)

    return with_nulls


def list_field(type: pa.DataType, element: Field, length: int) -> Field:
    """Returns the column of lists of so many elements."""

    def lists(dice: np.random.Generator, rows: Numbers, times: Numbers) -> pa.Array:
        offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * length)
        return pa.ListArray.from_arrays(offsets, element(dice, np.repeat(rows, length), np.repeat(times, length)), type)

    return lists


def map_field(type: pa.MapType, key: Field, item: Field, length: int) -> Field:
    """Returns the column of maps of at most so many entries: of equal keys the last one stays."""

    def maps(dice: np.random.Generator, rows: Numbers, times: Numbers) -> pa.Array:
        counted, at = np.repeat(rows, length), np.repeat(times, length)
        keys, items = key(dice, counted, at), item(dice, counted, at)
        pairs = zip(np.arange(len(rows)).repeat(length).tolist(), keys.to_pylist(), strict=True)
        last = {pair: place for place, pair in enumerate(pairs)}
        places = np.sort(np.fromiter(last.values(), np.int64, len(last)))
        bounds = np.searchsorted(places, np.arange(len(rows) + 1) * length).astype(np.int32)
        kept = pa.array(places)
        return pa.MapArray.from_arrays(pa.array(bounds), keys.take(kept), items.take(kept)).cast(type)

    return maps


def struct_field(type: pa.StructType, parts: dict[str, Field]) -> Field:
    """Returns the column of rows with these fields."""
    return lambda dice, rows, times: pa.StructArray.from_arrays(
        [parts[each.name](dice, rows, times) for each in type], fields=list(type)
    )


def _floats(
    type: pa.DataType, low: float, high: float, dice: np.random.Generator, rows: Numbers, times: Numbers
) -> pa.Array:
    part = dice.random(len(rows))
    return pa.array((low * (1 - part) + high * part).astype(type.to_pandas_dtype()))


def _decimals(
    type: pa.DataType, least: Any, most: Any, dice: np.random.Generator, rows: Numbers, times: Numbers
) -> pa.Array:
    """Returns decimals of at most 18 digits: their digits as integers are their bytes."""
    digits = 10 ** min(type.precision, 18)
    low = 0 if least is None else int(least * 10**type.scale)
    high = digits - 1 if most is None else min(int(most * 10**type.scale), digits - 1)
    words = np.zeros((len(rows), type.byte_width // 8), np.int64)
    words[:, 0] = dice.integers(low, high, len(rows), endpoint=True)
    words[:, 1:] = (words[:, :1] < 0) * -1
    return pa.Array.from_buffers(type, len(rows), [None, pa.py_buffer(words.tobytes())])


def _bytes(
    type: pa.DataType, length: int, varies: bool, dice: np.random.Generator, rows: Numbers, times: Numbers
) -> pa.Array:
    lengths = dice.integers(1, length, len(rows), endpoint=True) if varies else np.full(len(rows), length)
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    made = dice.integers(0, 256, int(offsets[-1]), dtype=np.uint8)
    if pa.types.is_string(type):
        made = HEX[made % 16]
    return pa.Array.from_buffers(type, len(rows), [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(made.tobytes())])


def _times(type: pa.DataType, age_ms: int, dice: np.random.Generator, rows: Numbers, times: Numbers) -> pa.Array:
    ages = dice.integers(0, age_ms, len(rows), endpoint=True) if age_ms else 0
    return time_column(times - ages, type)
