"""Conversions between Arrow arrays, numpy views of their values, and columns of times as int64 since 1970 UTC; and of
objects of users into values that pyarrow takes (`typed_fields`).
"""

import datetime
import decimal
import fractions
import ipaddress
import re
import struct
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.errors import DataError, UserError

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""The number of each timestamp unit in a second."""

_EXACT, _EXACT_TENS = 2**53, 22  # integers up to 2**53, and powers of ten up to 10**22, are floats without rounding

_TYPES: dict[Any, str] = {
    **{str: "string", int: "int64", float: "float64", bool: "bool"},
    **{"str": "string", "int": "int64", "float": "float64", "double": "float64", "boolean": "bool", "date": "date32"},
    **{"tinyint": "int8", "smallint": "int16", "integer": "int64", "bigint": "int64", "real": "float32"},
    **{"double precision": "float64", "varchar": "string", "text": "string", "blob": "binary", "bytea": "binary"},
    **{"timestamp": "timestamp[us]", "datetime": "timestamp[us]", "timestamptz": "timestamp[us, UTC]"},
}
_DEEPEST = 64  # levels of a nested type

_STRING = pa.string()
_INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
_PACKED: dict[tuple[type, pa.DataType], str] = {  # how the module struct writes a value as Arrow stores it
    **{(bool, pa.bool_()): "?", (float, pa.float32()): "f", (float, pa.float64()): "d"},
    **{(int, kind): form for kind, form in zip(_INTEGERS, "bhiqBHIQ", strict=True)},
}


def python_value(value: Any) -> Any:
    """Returns the Python value of a numpy scalar (NaT becomes None), also inside a list. Other values, and scalars
    without an exact Python value such as a time in ns, are returned unchanged.
    """
    if isinstance(value, list | tuple):
        return [python_value(each) for each in value]
    if not isinstance(value, np.generic):
        return value
    if isinstance(value, np.datetime64 | np.timedelta64):
        if np.isnat(value):
            return None
        made: Any = value if value.dtype == "M8[D]" else value.astype(f"{value.dtype.kind}8[us]")
        try:
            return made.item() if made == value else value
        except TypeError:  # years and months as durations
            return value
    made = value.item()
    return value if isinstance(made, np.generic) else made


def dumped_model(value: Any, mode: Literal["json", "python"]) -> Any:
    """Returns the fields of a model of pydantic as a dict (its value, if it is a RootModel); any other value unchanged.
    With the mode "json" dates and the like become text, with "python" they stay.
    """
    dump = getattr(value, "model_dump", None)
    return dump(mode=mode) if callable(dump) and not isinstance(value, type) else value


_TYPED = (bytes, datetime.datetime, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal)
TEXTS = (
    PurePath,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
    fractions.Fraction,
)
"""Types whose values are written as texts."""


def typed_fields(value: Any) -> Any:
    """Returns an object as pyarrow takes it: a Struct, dataclass or model of pydantic as a dict, an enum as its value,
    a set as a list. Bytes, times and Decimals keep their types. Raises TypeError for other objects.
    """
    return msgspec.to_builtins(value, builtin_types=_TYPED, enc_hook=_typed)


def _typed(value: Any) -> Any:
    made = dumped_model(python_value(value), "python")
    if made is value and (isinstance(value, TEXTS) or type(value).__module__.startswith("pydantic")):
        return str(value)  # an address, a path or a secret that pydantic masks
    if made is value:
        raise TypeError(f"{type(value).__qualname__} has no type in Arrow")
    return made


def column_of(values: Sequence[Any], type: pa.DataType | None) -> pa.Array:
    """Returns Python or numpy values as an array of this type, or of the type that pyarrow finds (None). Raises the
    errors of pyarrow, and ValueError for a value that the type would cut.
    """
    made = _converted(values, type)
    if wrong := loss_of(values, made.type):
        raise ValueError(wrong)
    return made


def batch_of_rows(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Returns rows of Python or numpy values as a batch, with null where a row lacks a column. Raises the errors of
    pyarrow, ValueError for a value that its column would cut, and TypeError for a row that is no mapping: pyarrow
    takes a text for a row without columns.
    """
    if not all(issubclass(kind, Mapping) for kind in set(map(_kind, rows))):
        wrong = next(row for row in rows if not isinstance(row, Mapping))
        raise TypeError(f"{wrong!r:.80} is not a dict")
    columns = []
    for name, type in zip(schema.names, schema.types, strict=True):
        values = [row.get(name) for row in rows]
        columns.append(_converted(values, type))
        if lost := loss_of(values, type):
            raise ValueError(f"column {name!r}: {lost}")
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def table_of(rows: Any) -> pa.Table:
    """Returns the rows of an object that gives them to Arrow as a stream, such as a data frame. Raises UserError for what
    its library would cut without an error: of a column of Python objects in a frame of pandas, the hour of a datetime
    beside dates, or the zone of a time; periods of pandas, and objects of polars. Raises the errors of pyarrow.
    """
    table = pa.table(rows)
    kinds = map(str, getattr(rows, "dtypes", ()))
    for place, (name, kind) in enumerate(zip(getattr(rows, "columns", ()), kinds, strict=False)):
        if kind == "Object":
            hint = f"with_columns(pl.col({name!r}).map_elements(…, return_dtype=…)), or drop({name!r})"
            raise UserError(
                f"column {name!r} of the frame has Python objects, of which Arrow gets no values", hint=hint
            )
        if kind.startswith("period["):
            hint = f"frame[{name!r}].dt.to_timestamp()"
            raise UserError(f"column {name!r} of the frame has periods, of which Arrow gets numbers only", hint=hint)
        type = table.schema.types[place]
        if kind == "object" and (pa.types.is_temporal(type) or pa.types.is_nested(type)):
            values = [None if _is_missing(value) else value for value in rows.iloc[:, place]]
            if lost := loss_of(values, type) or mixed_zones(name, values):
                raise UserError(f"column {name!r} of the frame: {lost}", hint="give all values of the column one type")
    return table


def _is_missing(value: Any) -> bool:
    """Returns True for what pandas takes as null beside None: NaN, NaT and NA."""
    return (value is not None and _kind(value).__name__ in ("NaTType", "NAType")) or (
        isinstance(value, float) and value != value
    )


def mixed_zones(name: str, values: Sequence[Any]) -> str:
    """Returns the message for a column of which some times have a zone and others none, or "": Arrow takes these for UTC."""
    zoned = {value.tzinfo is not None for value in values if isinstance(value, datetime.datetime)}
    return f"some times of {name!r} have a time zone, and others have none" if len(zoned) > 1 else ""


def _converted(values: Sequence[Any], type: pa.DataType | None) -> pa.Array:
    try:
        return pa.array(values, type)
    except (pa.ArrowException, TypeError):  # pyarrow takes most scalars of numpy's, not times, and not into all types
        made = [python_value(value) for value in values]
        if all(new is old for new, old in zip(made, values, strict=True)):
            raise
        return pa.array(made, type)


_kind = type  # the builtin, where a parameter has its name
_NONE = type(None)
_WHOLE = frozenset([int, _NONE])
_DAYS, _MOMENTS = frozenset([datetime.date, int, _NONE]), frozenset([datetime.datetime, int, _NONE])
_SPANS, _NOTHING = frozenset([datetime.timedelta, int, _NONE]), frozenset([_NONE])
_FINE = ("us", "ns")  # units that keep all digits of Python's times


def loss_of(values: Sequence[Any], type: pa.DataType) -> str:
    """Returns the message for the first value that pyarrow has cut to make this type of it, or "" if all are whole.
    pyarrow has taken all `values`. Looks at single values only where their Python types may not fit.
    """
    types = pa.types
    # pyarrow itself refuses what it would cut of an array, a pandas.Series, or scalars of its own
    if hasattr(values, "__array__") or (len(values) and isinstance(values[0], pa.Scalar)):
        return ""
    if types.is_integer(type):
        return _first(values, _WHOLE, type, lambda value: "its fraction" if value != int(value) else "")
    if types.is_float32(type) or types.is_float16(type):
        return _infinite(values, type)
    if types.is_temporal(type):
        return _loss_of_times(values, type)
    if types.is_nested(type):
        return _loss_inside([value for value in values if value is not None], type)
    if types.is_dictionary(type):
        return loss_of(values, type.value_type)
    return loss_of(values, type.storage_type) if isinstance(type, pa.BaseExtensionType) else ""


def _first(values: Sequence[Any], whole: frozenset[Any], type: pa.DataType, lost: Callable[[Any], str]) -> str:
    """Returns the message for the first value that loses something. Values of the types `whole` lose nothing."""
    if whole.issuperset(map(_kind, values)):
        return ""
    for value in values:
        if _kind(value) not in whole and (value := python_value(value)) is not None and (what := lost(value)):
            return _losing(value, what, type)
    return ""


def _losing(value: Any, what: str, type: pa.DataType) -> str:
    return f"{value!r:.80} would lose {what} as {type}"


def _infinite(values: Sequence[Any], type: pa.DataType) -> str:
    given = np.array([0.0 if value is None else value for value in values], np.float64)
    with np.errstate(over="ignore"):
        far = np.isinf(given.astype(type.to_pandas_dtype())) & np.isfinite(given)
    return f"{values[int(far.argmax())]!r:.80} would be infinite as {type}" if far.any() else ""


def _loss_of_times(values: Sequence[Any], type: pa.DataType) -> str:
    unit = getattr(type, "unit", "us")
    step = 1 if unit in _FINE else 1_000_000 // PER_SECOND[unit]  # microseconds

    def lost(value: Any) -> str:
        if isinstance(value, float | decimal.Decimal):
            return "its fraction" if value != int(value) else ""
        if (getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0)) and unit != "ns":  # of pandas
            return "its nanoseconds"
        if pa.types.is_date(type):
            return "its hour" if isinstance(value, datetime.datetime) and value.time() != datetime.time() else ""
        if pa.types.is_time(type) and getattr(value, "tzinfo", None) is not None:
            return "its zone"
        count = getattr(value, "microseconds" if pa.types.is_duration(type) else "microsecond", 0)
        return "its microseconds" if count % step else ""

    if pa.types.is_date(type):
        return _first(values, _DAYS, type, lost)
    if pa.types.is_timestamp(type):
        return _first(values, _MOMENTS if step == 1 else _NOTHING, type, lost)
    return _first(values, _SPANS if step == 1 and pa.types.is_duration(type) else _NOTHING, type, lost)


def _loss_inside(values: Sequence[Any], type: pa.DataType) -> str:
    """Does as `_loss` for the values inside structs, lists and maps. `values` are not None."""
    if pa.types.is_struct(type):
        rows = [value if isinstance(value, Mapping) else dict(value) for value in values]
        names = [field.name for field in type]
        if unknown := set().union(*rows) - set(names):
            name = sorted(map(str, unknown))[0]
            return f"{name!r} is not a field of {type}"
        inside = [([row.get(name) for row in rows], type.field(name).type) for name in names]
    elif pa.types.is_map(type):
        pairs = [pair for value in values for pair in (value.items() if isinstance(value, Mapping) else value)]
        inside = [([pair[0] for pair in pairs], type.key_type), ([pair[1] for pair in pairs], type.item_type)]
    elif hasattr(type, "value_type"):
        inside = [([each for value in values for each in value], type.value_type)]
    else:  # a union, which pyarrow does not make of Python values
        return ""
    return next((lost for lost in (loss_of(*each) for each in inside) if lost), "")


def python_rows(data: pa.RecordBatch, where: str = "") -> list[dict[str, Any]]:
    """Returns the rows as dicts of Python values. Raises DataError, which names the column and the value, for a time
    that has no Python value: one beyond the year 9999, or, without pandas, one with nanoseconds.

    `where`: the step that reads the rows, as the beginning of the message, or "".
    """
    try:
        rows: list[dict[str, Any]] = data.to_pylist()
    except (ValueError, OverflowError) as error:
        for name, column in zip(data.schema.names, data.columns, strict=True):
            for value in column:
                if not _has_python_value(value):
                    raise DataError(
                        f"{where and f'{where}: '}column {name!r} is {shown(value)}, for which Python has no value",
                        hint="cast the column before this step (to us, if it has nanoseconds), or leave such rows out",
                    ) from error
        raise
    return rows


def _has_python_value(value: pa.Scalar) -> bool:
    try:
        value.as_py()
    except (ValueError, OverflowError):
        return False
    return True


def scalar_of(value: Any, type: pa.DataType | None) -> pa.Scalar:
    """Returns what `pa.scalar(value, type)` returns, of a bool, a number, a decimal, a text or None without importing pandas.

    pyarrow imports pandas, where it is installed, with the first array or scalar that it makes of a Python or numpy value.
    This takes longer than all else at the start of a program. So code that runs at each start makes its scalars here.
    """
    if value is None:
        return pa.nulls(1, type)[0]
    try:
        if value.__class__ is str and type == _STRING:
            text = value.encode()
            return pa.Array.from_buffers(
                type, 1, [None, pa.py_buffer(struct.pack("=2i", 0, len(text))), pa.py_buffer(text)]
            )[0]
        if value.__class__ is decimal.Decimal:
            type = _decimal_type(value) if type is None else type
            data = _decimal_bytes(value, type)
        else:
            data = struct.pack(f"={_PACKED[value.__class__, type]}", value)
    except (KeyError, OverflowError, UnicodeError, struct.error):  # pyarrow converts it or says why it cannot
        return pa.scalar(value, type)
    return pa.Array.from_buffers(type, 1, [None, pa.py_buffer(data)])[0]


def _decimal_type(value: decimal.Decimal) -> pa.DataType:
    """Returns the type that pyarrow gives a decimal. Raises KeyError for one of more than 38 digits, or of none."""
    _, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise KeyError(value)
    precision = max(len(digits) + max(exponent, 0), -exponent)
    if precision > 38:
        raise KeyError(value)
    return pa.decimal128(precision, max(-exponent, 0))


def _decimal_bytes(value: decimal.Decimal, type: pa.DataType) -> bytes:
    """Returns how Arrow stores a decimal. Raises KeyError for one that the type does not hold, or not exactly."""
    sign, digits, exponent = value.as_tuple()
    if not pa.types.is_decimal128(type) or not isinstance(exponent, int):
        raise KeyError(value)
    moved = type.scale + exponent
    if moved < 0 or len(digits) + moved > type.precision:
        raise KeyError(value)
    whole: int = int("".join(map(str, digits))) * 10**moved
    return (-whole if sign else whole).to_bytes(16, "little", signed=True)


def twice_named(fields: Iterable[pa.Field], above: str = "") -> str:
    """Returns the first name that two columns have, or two fields of a struct at any depth ("order.id"), or "". `above`: the
    names above these fields, each with a dot behind it.
    """
    seen = set()
    for field in fields:
        if field.name in seen:
            return f"{above}{field.name}"
        seen.add(field.name)
        if twice := twice_named(_inner_fields(field.type), f"{above}{field.name}."):
            return twice
    return ""


def _inner_fields(type: Any) -> list[pa.Field]:
    """Returns the fields of a struct, also of one in a list or a map."""
    if pa.types.is_map(type):
        return [*_inner_fields(type.key_type), *_inner_fields(type.item_type)]
    if hasattr(type, "value_type") and type.num_fields:
        return _inner_fields(type.value_type)
    return list(type) if pa.types.is_struct(type) else []


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """Returns a batch without rows. Unlike `Schema.empty_table` it does not import pandas (see `scalar_of`). Raises UserError
    for a union, also within another type.
    """
    try:
        return pa.RecordBatch.from_arrays(list(map(empty_array, schema.types)), schema=schema)
    except pa.ArrowNotImplementedError:
        check_no_union(schema, "")
        raise


def check_no_union(
    schema: pa.Schema, where: str, hint: str = "leave it out, or give each of its types a column"
) -> None:
    """Raises UserError, whose text begins with `where`, for a column that is a union or holds one."""
    for field in schema:
        if holds_union(field.type):
            raise UserError(f"{where}column {field.name!r} is {field.type}, which streams do not support", hint=hint)


def holds_union(type: pa.DataType) -> bool:
    """Returns True for a union, also within another type."""
    return pa.types.is_union(type) or any(holds_union(type.field(i).type) for i in range(type.num_fields))


def empty_array(type: pa.DataType) -> pa.Array:
    """Returns an array without values. It does not import pandas (see `scalar_of`), if its type is flat: nulls of other types
    may have values that are missing only to their parent.
    """
    if pa.types.is_dictionary(type):  # pyarrow makes none of a list for each type of values
        indices, values = empty_array(type.index_type), empty_array(type.value_type)
        return pa.DictionaryArray.from_arrays(indices, values, ordered=type.ordered)
    return pa.array([], type) if pa.types.is_nested(type) else pa.nulls(0, type)


def broadcast(value: Any, rows: int) -> pa.Array:
    """Returns a scalar as an array of `rows` rows, and an array or chunked array as one array."""
    if isinstance(value, pa.Scalar):
        return pa.repeat(value, rows) if rows and value.is_valid else pa.nulls(rows, value.type)
    return value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value


def integers(array: pa.Array) -> Any:
    """Returns the values of an array of integers, times or dates as numpy integers, without a copy. The value of a
    null row is arbitrary.
    """
    return _view(array, "u" if pa.types.is_unsigned_integer(array.type) else "i")


def floats(array: pa.Array) -> Any:
    """Returns the values of an array of floats as numpy floats, without a copy. The value of a null row is arbitrary."""
    return _view(array, "f")


def decimal_floats(array: pa.Array, type: pa.DataType) -> pa.Array:
    """Returns decimals as the nearest floats of `type`; null stays null. (pyarrow's own cast makes 3.3000000000000003
    of 3.30.)
    """
    if type == pa.float64() and 0 <= array.type.scale <= _EXACT_TENS and array.type.bit_width >= 128:
        words = decimal_words(array)
        low, fits = words[:, 0], (words[:, 1:] == (words[:, :1] >> 63)).all(axis=1)
        if (fits & (low >= -_EXACT) & (low <= _EXACT)).all():  # both are exact floats: one division rounds once
            return integer_array(low / float(10**array.type.scale), type, array)
    if pa.types.is_float16(type):
        return pc.cast(array, type, safe=False)
    return pc.cast(pc.cast(array, pa.string()), type)


def exact_cast(array: pa.Array, type: pa.DataType) -> pa.Array:
    """Returns an array in another type. Raises ArrowInvalid for a value that the type would cut, wrap or round in silence, at each
    depth of structs and lists; floats of fewer bits are the nearest ones.
    """
    array = with_exact_numbers(array, type)
    made = array.cast(type)
    check_exact(array, made)
    return made


def scalar_of_text(text: str | None, type: pa.DataType) -> pa.Scalar:
    """Returns what a text says as a value of a type. Raises ArrowInvalid for a text that says none, or one that the type would cut."""
    return exact_cast(pa.array([text], pa.string()), type)[0]


def with_exact_numbers(array: pa.Array, type: pa.DataType) -> pa.Array:
    """Returns an array with the numbers of `type` that pyarrow's cast gets wrong, at each depth: floats of decimals, which a
    cast of structs and lists would round a second time, and decimals of texts (`text_decimals`). Raises ArrowInvalid for a
    text that is no decimal of the type.
    """
    types, kind = pa.types, array.type
    if kind == type:
        return array
    if types.is_dictionary(kind) and (types.is_decimal(type) or types.is_floating(type)):
        return with_exact_numbers(array.dictionary_decode(), type)
    if types.is_decimal(type) and _is_any_text(kind):
        return text_decimals(array if types.is_large_string(kind) else array.cast(pa.string()), type)
    if types.is_decimal(kind) and types.is_floating(type):
        return decimal_floats(array, type)
    if types.is_struct(kind) and types.is_struct(type):
        given = [array.field(place) for place in range(kind.num_fields)]
        places = [type.get_field_index(field.name) for field in kind]
        made = [
            values if place < 0 else with_exact_numbers(values, type.field(place).type)
            for values, place in zip(given, places, strict=True)
        ]
        if all(one.type == other.type for one, other in zip(given, made, strict=True)):
            return array
        fields = [field.with_type(values.type) for field, values in zip(kind, made, strict=True)]
        return pa.StructArray.from_arrays(made, fields=fields, mask=array.is_null())
    if _is_any_list(kind) and _is_any_list(type):
        if len(array.values) > len(array.flatten()):
            array = array.take(pa.array(range(len(array)), pa.int64()))  # of a slice: other values may be no numbers
        values = with_exact_numbers(array.values, type.value_type)
        if values.type == array.values.type:
            return array
        buffers = array.buffers()[: 1 if types.is_fixed_size_list(kind) else 2]
        return pa.Array.from_buffers(_list_like(kind, values.type), len(array), buffers, -1, array.offset, [values])
    if types.is_map(kind) and types.is_map(type):
        if len(array.items) > array.offsets[-1].as_py() - array.offsets[0].as_py():
            array = array.take(pa.array(range(len(array)), pa.int64()))
        items = with_exact_numbers(array.items, type.item_type)
        if items.type == array.items.type:
            return array
        found = pa.map_(kind.key_type, kind.item_field.with_type(items.type))
        entries = pa.StructArray.from_arrays([array.keys, items], fields=[found.key_field, found.item_field])
        return pa.Array.from_buffers(found, len(array), array.buffers()[:2], -1, array.offset, [entries])
    return array


def _list_like(kind: pa.DataType, values: pa.DataType) -> pa.DataType:
    """Returns the type of a list with other values."""
    field = kind.value_field.with_type(values)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(field, kind.list_size)
    return pa.large_list(field) if pa.types.is_large_list(kind) else pa.list_(field)


def check_exact(given: pa.Array, made: pa.Array) -> None:
    """Raises ArrowInvalid for the first value of `given` that a cast has cut, at any depth. `made`: the result of the cast."""
    types, kind, type = pa.types, given.type, made.type
    if kind == type or len(made) == made.null_count:
        return
    if types.is_struct(kind) and types.is_struct(type):
        inner = dict(zip([field.name for field in kind], given.flatten(), strict=True))
        for field, values in zip(type, made.flatten(), strict=True):
            if field.name in inner:
                check_exact(inner[field.name], values)
    elif _is_any_list(kind) and _is_any_list(type):
        check_exact(given.flatten(), made.flatten())
    elif types.is_map(kind) and types.is_map(type):
        for before, after in zip(_entries(given), _entries(made), strict=True):
            check_exact(before, after)
    elif (lost := _lost_in_cast(given, made)) is not None:
        lost = pc.fill_null(lost, False)
        if (row := pc.index(lost, True).as_py()) >= 0:
            raise pa.ArrowInvalid(f"{shown(given[row])} would be {shown(made[row])} as {type}")


def _entries(maps: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Returns the keys and the items of all these maps."""
    first, last = maps.offsets[0].as_py(), maps.offsets[-1].as_py()
    return maps.keys.slice(first, last - first), maps.items.slice(first, last - first)


def _is_any_text(type: pa.DataType) -> bool:
    """Returns True for texts, and for bytes, which pyarrow reads as texts; polars gives views of texts."""
    types = pa.types
    return bool(
        types.is_string(type)
        or types.is_large_string(type)
        or types.is_string_view(type)
        or types.is_binary(type)
        or types.is_large_binary(type)
        or types.is_binary_view(type)
        or types.is_fixed_size_binary(type)
    )


def _is_any_list(type: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type))


def _lost_in_cast(given: pa.Array, made: pa.Array) -> Any:
    """Returns which values are another in the new type, or None if the cast of pyarrow refuses these."""
    types, kind, type = pa.types, given.type, made.type
    if types.is_timestamp(kind) and types.is_date(type):
        clock = given if kind.tz is None else pc.local_timestamp(given)
        return pc.not_equal(clock, made.cast(clock.type))
    if types.is_date64(type) or types.is_time(type):
        if types.is_timestamp(kind):
            return pc.is_valid(given)
        if not types.is_integer(kind):
            return None
        values, day = integers(made), 86_400 * PER_SECOND[getattr(type, "unit", "ms")]
        lost = values % day != 0 if types.is_date64(type) else (values < 0) | (values >= day)
        return pc.and_(pa.array(lost), made.is_valid())
    if types.is_boolean(type) and (types.is_integer(kind) or types.is_floating(kind)):
        return pc.not_equal(given, made.cast(kind))
    if types.is_floating(kind) and types.is_floating(type):
        return pc.and_(pc.is_inf(made), pc.is_finite(given))
    if types.is_floating(kind) and types.is_decimal(type):
        return pc.not_equal(given, decimal_floats(made, kind))
    return None


def integer_range(type: pa.DataType) -> tuple[int, int]:
    """Returns the least and the greatest value of an integer type."""
    if pa.types.is_unsigned_integer(type):
        return 0, 2**type.bit_width - 1
    return -(2 ** (type.bit_width - 1)), 2 ** (type.bit_width - 1) - 1


def decimal_type(precision: int, scale: int) -> pa.DataType:
    """Returns the decimal type with `precision` digits, at most 76, of which `scale` are behind the point."""
    return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)


_DIGITS = {32: 9, 64: 18, 128: 38, 256: 76}  # that any decimal of so many bits holds
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,9})?")
_NO_ROUNDING = decimal.Context(prec=80, traps=[decimal.Inexact, decimal.InvalidOperation])


def text_decimals(texts: pa.Array, type: pa.DataType) -> pa.Array:
    """Returns the decimals that texts show. Raises ArrowInvalid for a text that is no decimal of this type.

    pyarrow's cast keeps the low bits of a number that has more than the type, also of one that the zeros of its scale make too long:
    39 nines become a negative number. So texts with many digits or an exponent are read by Python, which is exact.
    """
    most = _DIGITS[type.bit_width]
    lengths = pc.binary_length(texts)
    doubtful = pc.or_(pc.match_substring(texts, "e"), pc.match_substring(texts, "E"))
    if (pc.max(lengths).as_py() or 0) > most - type.scale:  # else the zeros of the scale make none too long
        long = pc.match_substring_regex(texts, f"^[+-]?[0-9]{{{max(most + 1 - type.scale, 1)}}}")
        doubtful = pc.or_(doubtful, pc.or_(long, pc.greater(lengths, most)))
    doubtful = pc.fill_null(doubtful, False)
    if pc.any(doubtful).as_py():
        plain = [_without_exponent(each, type) for each in texts.filter(doubtful).to_pylist()]
        texts = pc.replace_with_mask(texts, doubtful, pa.array(plain, texts.type))
    return pc.cast(texts, type)


def _without_exponent(text: str, type: pa.DataType) -> str:
    """Returns the text of a number with the digits behind the point that a decimal type has; another text as it is."""
    if _NUMBER.fullmatch(text) is None:
        return text
    number = decimal.Decimal(text)
    if number and number.adjusted() >= type.precision - type.scale:
        raise pa.ArrowInvalid(f"{shown(pa.scalar(text))} does not fit {type}")
    try:
        return format(_NO_ROUNDING.quantize(number, decimal.Decimal(1).scaleb(-type.scale)), "f")
    except decimal.Inexact:
        raise pa.ArrowInvalid(f"{shown(pa.scalar(text))} has more digits behind the point than {type}") from None


def decimal_words(array: pa.Array) -> Any:
    """Returns the unscaled values of decimals of 128 or 256 bits: a row of int64 words for each, the least
    significant first, and 0 for null.
    """
    width = array.type.bit_width // 64
    data = array.buffers()[1]
    if data is None:
        return np.zeros((len(array), width), np.int64)
    words = np.frombuffer(data, np.int64)[array.offset * width :][: len(array) * width].reshape(-1, width)
    missing = _missing(array)
    return words if missing is None else np.where(missing[:, None], np.int64(0), words)


def decimal_integers(array: pa.Array, room: int) -> Any:
    """Returns the unscaled values of decimals, 0 for null: as int64 if `room` can be added to all of them without
    overflow, else as Python integers.
    """
    words = decimal_words(array if array.type.bit_width >= 128 else pc.cast(array, pa.decimal128(38, array.type.scale)))
    low = words[:, 0]
    most = 2**63 - 1 - room
    if (
        most > 0
        and (words[:, 1:] == (low[:, None] >> 63)).all()
        and (np.abs(low) <= most).all()
        and low.min(initial=0) > -(2**63)
    ):
        return low
    made = words[:, -1].astype(object)
    for word in range(words.shape[1] - 2, -1, -1):
        made = made * 2**64 + words[:, word].astype(np.uint64).astype(object)
    return made


def decimal_array(values: Any, type: pa.DataType, source: pa.Array) -> pa.Array:
    """Returns decimals with these unscaled values, null where `source` is null. Raises ArrowInvalid for a value with
    more digits than the type.
    """
    most = 10**type.precision
    if len(values) and (most <= 2**63 or values.dtype == object) and (abs(values) >= most).any():
        raise pa.ArrowInvalid(f"it does not fit in {type}")
    kind = type if type.bit_width >= 128 else pa.decimal128(38, type.scale)
    words = np.empty((len(values), kind.bit_width // 64), np.uint64)
    for word in range(words.shape[1]):
        words[:, word] = (values & (2**64 - 1)).astype(np.uint64) if values.dtype == object else values.view(np.uint64)
        values = values >> 64 if values.dtype == object else values >> 63
    missing = _missing(source)
    valid = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    made = pa.Array.from_buffers(kind, len(words), [valid, pa.py_buffer(words)])
    return made if kind == type else pc.cast(made, type)


def _missing(array: pa.Array) -> Any:
    return array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None


def _view(array: pa.Array, kind: str) -> Any:
    dtype = np.dtype(f"{kind}{array.type.bit_width // 8}")
    data = array.buffers()[1]
    if data is None:
        return np.zeros(len(array), dtype)
    return np.frombuffer(data, dtype)[array.offset : array.offset + len(array)]


def is_ascii(strings: pa.Array) -> bool:
    """Returns True if all bytes of these strings are ASCII, including bytes behind nulls. Scans the buffer once."""
    _, offsets, data = strings.buffers()
    if len(strings) == 0 or data is None:
        return True
    ends = np.frombuffer(offsets, np.int32)
    start, end = ends[strings.offset], ends[strings.offset + len(strings)]
    return bool(np.frombuffer(data, np.uint8)[start:end].max(initial=0) < 0x80)


def shown(value: pa.Scalar) -> str:
    """Returns a value as messages show it; a time outside the range of Python's datetime becomes its number."""
    try:
        return repr(value.as_py())
    except (OverflowError, ValueError):
        count = getattr(value, "value", None)
        if not isinstance(count, int):
            return f"a {value.type}"
        since = "" if pa.types.is_duration(value.type) else " since 1970"
        return f"{count} {getattr(value.type, 'unit', 'days')}{since}"


def integer_array(values: Any, type: pa.DataType, *sources: Any, nulls: Any = None) -> pa.Array:
    """Returns numpy integers or floats as an array of `type`, which has the same width. A row is null if any of `sources` is
    null there, or if `nulls` is True there.
    """
    for source in sources:
        if isinstance(source, pa.Scalar):
            if not source.is_valid:
                return pa.nulls(len(values), type)
        elif source.null_count:
            more = source.is_null().to_numpy(zero_copy_only=False)
            nulls = more if nulls is None else nulls | more
    valid = None if nulls is None else pa.py_buffer(np.packbits(~nulls, bitorder="little"))
    return pa.Array.from_buffers(type, len(values), [valid, pa.py_buffer(np.ascontiguousarray(values))])


def where(mask: Any, array: pa.Array) -> pa.Array:
    """Returns the values where the mask is True, and null elsewhere. (pyarrow 17 breaks a slice of strings if the
    null is a scalar.)
    """
    return pc.if_else(mask, array, pa.nulls(len(array), array.type))


def is_utc(zone: str | None) -> bool:
    """Returns True if the zone is UTC under any of its names, or None."""
    return zone is None or zone in ("UTC", "Etc/UTC", "Z", "+00:00", "utc")


def is_time(type: pa.DataType) -> bool:
    """Returns True if a column of this type can hold points in time: timestamps, dates, or integers (ms)."""
    return bool(pa.types.is_timestamp(type) or pa.types.is_date(type) or pa.types.is_integer(type))


def to_ms(array: pa.Array) -> pa.Array:
    """Returns int64 ms since 1970 UTC from timestamps of any unit (rounded down), dates, or integers (which are ms
    already). Null stays null, and a value that does not fit into 64 bits becomes null. Raises UserError for other
    types.
    """
    if pa.types.is_integer(array.type):
        return signed(array)
    if not is_time(array.type):
        raise UserError(f"{array.type} is no time", hint="a timestamp, a date, or int64 as ms since 1970 UTC")
    return epoch(array, "ms")


def signed(array: pa.Array) -> pa.Array:
    """Returns integers of any type as int64, with null for uint64 values that do not fit."""
    if not pa.types.is_uint64(array.type):
        return array if pa.types.is_int64(array.type) else pc.cast(array, pa.int64())
    far = integers(array) > 2**63 - 1
    return integer_array(integers(array).view(np.int64), pa.int64(), array, nulls=far if far.any() else None)


def as_timestamp(array: pa.Array) -> pa.Array:
    """Returns integers (ms) and dates as timestamps, and timestamps unchanged. Raises ArrowInvalid for integers that
    do not fit into int64.
    """
    if pa.types.is_timestamp(array.type):
        return array
    if pa.types.is_date32(array.type):
        return pc.cast(array, pa.timestamp("s"))
    if pa.types.is_date64(array.type):
        return pc.cast(array, pa.timestamp("ms"))
    return pc.cast(array, pa.int64()).view(pa.timestamp("ms"))


def finer_unit(type: pa.DataType) -> bool:
    """Returns True for times in a unit finer than ms."""
    return pa.types.is_timestamp(type) and type.unit in ("us", "ns")


def finer_than_ms(array: pa.Array) -> Any:
    """Returns, as a numpy mask, the rows with a time that ms would cut. Columns that are no times have none."""
    if not finer_unit(array.type):
        return np.zeros(len(array), bool)
    return (integers(array) % (PER_SECOND[array.type.unit] // 1000) != 0) & np.asarray(array.is_valid())


def to_unit(array: pa.Array, unit: str) -> pa.Array:
    """Returns timestamps or durations in `unit`, rounded down if it is coarser. Raises ArrowInvalid if a finer unit
    overflows.
    """
    zoned = pa.types.is_timestamp(array.type)
    type = pa.timestamp(unit, array.type.tz) if zoned else pa.duration(unit)
    have, want = PER_SECOND[array.type.unit], PER_SECOND[unit]
    if have <= want:
        return pc.cast(array, type)
    return integer_array(np.floor_divide(integers(array), have // want), type, array)


def epoch(array: pa.Array, unit: str) -> pa.Array:
    """Returns the int64 count of `unit` ("d": days) since 1970 UTC, rounded down, with null where it does not fit
    into 64 bits.
    """
    array = as_timestamp(signed(array) if pa.types.is_integer(array.type) else array)
    have, want = PER_SECOND[array.type.unit], PER_SECOND.get(unit, 1)
    values = integers(array)
    if have > want:
        values = np.floor_divide(values, have // want)
    elif have < want:
        limit = (2**63 - 1) // (want // have)
        far = (values > limit) | (values < -limit)
        if far.any():  # the count does not fit into 64 bits
            return integer_array(np.where(far, 0, values) * (want // have), pa.int64(), array, nulls=far)
        values = values * (want // have)
    if unit == "d":
        values = np.floor_divide(values, 86400)
    return integer_array(values, pa.int64(), array)


def merges_integers(array: pa.Array) -> bool:
    """Returns True if pandas, which has integers beside a null as floats, would make one of two integers, also in lists."""
    if isinstance(array, pa.ChunkedArray):
        return any(map(merges_integers, array.chunks))
    type = array.type
    if pa.types.is_integer(type) and type.bit_width == 64:
        values: Any = integers(array.drop_null()) if array.null_count else ()
        return bool(len(values) and max(int(values.max()), -int(values.min())) > _EXACT)
    if pa.types.is_struct(type):
        return any(merges_integers(each) for each in array.flatten() if pa.types.is_nested(each.type))
    return pa.types.is_nested(type) and hasattr(array, "flatten") and merges_integers(array.flatten())


_CYCLE_DAYS = 146_097  # the calendar repeats every 400 years, and its weeks too
_NEAR_DAYS = 11_248_738  # pyarrow knows years up to 32767, and as many before our era


def near_times(array: pa.Array, most_days: int = _NEAR_DAYS) -> tuple[pa.Array, Any]:
    """Returns timestamps or dates for functions of pyarrow, whose years have 16 bits, and the years that have to be added
    to each (0: to none). From times beyond the year 32767, or so many days from 1970, whole cycles of 400 years are
    subtracted.
    """
    days = pa.types.is_date32(array.type)
    unit = 1 if days else 86_400 * PER_SECOND[getattr(array.type, "unit", "ms")]
    if len(array) == 0 or (unit >= 86_400 * PER_SECOND["ns"] and most_days == _NEAR_DAYS):
        return array, 0
    values = integers(array)
    if -(most_days - 1) * unit <= int(values.min()) and int(values.max()) < (most_days - 1) * unit:
        return array, 0  # so it is nearly always, and dividing each time would take longer than the function
    values = values.astype(np.int64, copy=False)
    far = np.abs(values // unit + 1) >= most_days  # the first day of the year -32767 counts as far
    if array.null_count:
        far &= ~_missing(array)
    if not far.any():
        return array, 0
    cycles = np.where(far, values // (unit * _CYCLE_DAYS), 0)
    values = (values - cycles * (unit * _CYCLE_DAYS)).astype(np.int32 if days else np.int64)
    return integer_array(values, array.type, array), cycles * 400


def has_far_times(array: pa.Array) -> bool:
    """Returns True if a timestamp or date is beyond the year 32767, which pyarrow cannot write as text."""
    return not isinstance(near_times(array)[1], int)


def time_texts(array: pa.Array) -> pa.Array:
    """Returns timestamps (UTC or without a zone) or dates as texts, as pyarrow writes them; also those beyond the year
    32767, for which pyarrow writes `<value out of range: …>`.
    """
    zoned = pa.types.is_timestamp(array.type) and array.type.tz is not None
    clock = array.view(pa.timestamp(array.type.unit)) if zoned else array
    near, years = near_times(clock)
    text = pc.cast(near, pa.string())
    if not isinstance(years, int):
        year = pc.cast(pa.array(pc.year(near).fill_null(0).to_numpy() + years), pa.string())
        text = pc.if_else(
            pa.array(years != 0), pc.binary_join_element_wise(year, pc.utf8_slice_codeunits(text, 4), ""), text
        )
    return pc.binary_join_element_wise(text, "Z", "") if zoned else text


def _of_sql(name: str) -> pa.DataType | None:
    """Returns the type of an SQL name with length or digits: varchar(20) is text of any length, decimal(10, 2) a
    decimal. Returns None for an unknown name.
    """
    match = re.fullmatch(
        r"(varchar|decimal(?:128|256)?|numeric)\s*\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)", name.strip().lower()
    )
    if match is None:
        known = _TYPES.get(name.strip().lower())
        return as_type(known) if known is not None and known != name else None
    if match[1] == "varchar":
        return pa.string()
    digits, scale = int(match[2]), int(match[3] or 0)
    if not 0 < digits <= 76 or scale > digits:
        raise UserError(f"{name!r} is no decimal", hint="decimal(digits, digits behind the point), up to 76 digits")
    small = digits <= 38 and match[1] != "decimal256"
    return pa.decimal128(digits, scale) if small else pa.decimal256(digits, scale)


def _of_arrow(name: str) -> pa.DataType | None:
    """Returns the nested type of a text as pyarrow prints it, such as `struct<a: int64, b: list<item: string>>`, in
    which float has 32 bits. Returns None for other texts.
    """
    match = re.fullmatch(r"\s*(struct|list|large_list|map)\s*<(.*)>\s*", name, re.DOTALL)
    if match is None or name.count("<") > _DEEPEST:
        return None
    inside = [_field_of_arrow(each, "" if match[1] == "struct" else "item") for each in _parts(match[2])]
    if match[1] == "struct":
        return pa.struct(inside) if all(field.name for field in inside) else None
    if match[1] == "map":
        return pa.map_(inside[0].type, inside[1]) if len(inside) == 2 else None
    if len(inside) != 1:
        return None
    return pa.list_(inside[0]) if match[1] == "list" else pa.large_list(inside[0])


def _field_of_arrow(text: str, unnamed: str) -> pa.Field:
    """Returns the field of a text as pyarrow prints it: "a: int64 not null". `unnamed`: the name of a field without
    one.
    """
    match = re.fullmatch(r"\s*(?:([^<>\[\]():]+):\s*)?(.*?)(\s+not null)?\s*", text, re.DOTALL)
    assert match is not None  # each part is
    kind = {"float": "float32", "double": "float64"}.get(match[2], match[2])
    return pa.field(match[1] or unnamed, as_type(kind), nullable=match[3] is None)


def _parts(text: str) -> list[str]:
    """Splits a text at the commas outside all brackets. Returns an empty list for an empty text."""
    depth, parts = 0, [""] if text.strip() else []
    for char in text:
        depth += (char in "<[(") - (char in ">])")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def as_type(type: Any) -> pa.DataType:
    """Returns the type: a pa.DataType as it is, or the type with this name in Arrow, Python (int, float, str, bool) or SQL; nested
    ones as pyarrow prints them.
    """
    if isinstance(type, pa.DataType):
        return type
    if isinstance(type, str) and (known := _of_sql(type) or _of_arrow(type)) is not None:
        return known
    name = _TYPES.get(type, type) if isinstance(type, Hashable) else type
    zoned = re.fullmatch(r"timestamp\[(s|ms|us|ns),\s*(?:tz=)?([\w/+:-]+)\]", name) if isinstance(name, str) else None
    if zoned is not None:
        return pa.timestamp(zoned[1], zoned[2])
    try:
        return pa.type_for_alias(name)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{type!r} is no name of a type",
            hint='"int64", "float64", "string", "bool", "timestamp[ms]", …; a pa.DataType for the others: '
            'pa.struct({"x": pa.int64()}), pa.list_(pa.string()); decimals: "decimal(10, 2)"',
        ) from error
