"""Kafka Connect's types in JSON: numbers and texts whose meaning is in the schema around a payload, or in settings.

    {"schema": {"type": "struct", "fields": [{"field": "at", "type": "int64", "name": "io.debezium.time.MicroTimestamp"}]},
     "payload": {"at": 1769860800007000}}

The JSON converter writes the schema before each payload (schemas.enable=true), with the same bytes until the table
changes. So the payloads of a batch are grouped by the bytes that they begin with, and each schema is read once.
"""

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.arrays import PER_SECOND, decimal_array, decimal_floats, decimal_type, to_unit
from sabot.base.quantities import counted_words
from sabot.errors import UNREADABLE

ConnectType = tuple[str, int]
"""The name of a type of Connect, and its scale if it is a decimal."""
Node = Mapping[str, Any]
"""A type in a schema of Connect, as JSON; {} if it is not known."""

_DECIMAL = "org.apache.kafka.connect.data.Decimal"
_VARIABLE = "io.debezium.data.VariableScaleDecimal"
_TIMES = {
    "io.debezium.time.Timestamp": pa.timestamp("ms"),
    "io.debezium.time.MicroTimestamp": pa.timestamp("us"),
    "io.debezium.time.NanoTimestamp": pa.timestamp("ns"),
    "org.apache.kafka.connect.data.Timestamp": pa.timestamp("ms"),
    "io.debezium.time.Date": pa.date32(),
    "org.apache.kafka.connect.data.Date": pa.date32(),
    "io.debezium.time.Time": pa.time32("ms"),
    "io.debezium.time.MicroTime": pa.time64("us"),
    "io.debezium.time.NanoTime": pa.time64("ns"),
    "org.apache.kafka.connect.data.Time": pa.time32("ms"),
}
_YEAR_1, _YEAR_10000 = -62_135_596_800_000, 253_402_300_800_000  # in ms
_MOST_PLACES = 76
_NUMBER_OF_LETTER = np.full(256, 255, np.uint8)
_NUMBER_OF_LETTER[list(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")] = np.arange(64)
SCHEMAS = 1000
"""The greatest number of schemas around payloads for which a codec keeps a decoder."""
_HEADS = 16  # distinct schemas in one batch; with more, the schema of each payload is read by itself
_NAMES = ("org.apache.kafka.connect.data.", "io.debezium.")

Convert = Callable[[Any], Any]


class _Wrapped(msgspec.Struct):
    schema: msgspec.Raw = msgspec.Raw(b"")


class ConnectTypes:
    """A converter of columns whose types Kafka Connect writes in its own way: JSON is decoded with the schema
    `plain`, and then `typed` converts the columns.

    `known`: the nodes of the payloads' schema, by column. Without a schema a time is in ms, a date in days, and a decimal
    a text, at every depth of lists and structs.
    """

    def __init__(self, schema: pa.Schema, known: Mapping[str, Node] | None = None) -> None:
        self.schema = schema
        self._known = known or {}
        self._conversions: dict[int, Convert] = {}
        fields = []
        for index, field in enumerate(schema):
            found = _conversion(field.type, self._known.get(field.name, {}))
            if found is not None:
                self._conversions[index] = found[1]
            fields.append(field if found is None else pa.field(field.name, found[0], field.nullable))
        self.plain = pa.schema(fields)

    def typed(self, columns: Sequence[Any]) -> tuple[list[Any], dict[int, str]]:
        """Returns the columns converted to the schema's types, with null for values that cannot be converted, and the
        error of each such row.
        """
        made: list[Any] = list(columns)
        wrong: dict[int, str] = {}
        for index, convert in self._conversions.items():
            field, column = self.schema.field(index), columns[index]
            try:
                made[index] = convert(column)
            except pa.ArrowInvalid:
                values, lost = [], []
                for row in range(len(column)):  # only if some value of the column is wrong, which is rare
                    try:
                        values.append(convert(column.slice(row, 1)))
                    except pa.ArrowInvalid:
                        values.append(pa.nulls(1, field.type))
                        lost.append(row)
                made[index] = pa.concat_arrays(values)
                for row in lost:
                    node = self._known.get(field.name, {})
                    wrong[row] = _reason(field.name, field.type, node, column.slice(row, 1))
        return made, wrong


_UNITS_HINT = " (the connector needs time.precision.mode=connect, or schemas.enable=true, which gives the unit)"


def _reason(path: str, kind: pa.DataType, node: Node, column: Any) -> str:
    """Returns why the only value of the column, or one inside it, is not a value of the type, or "" if all are."""
    if (found := _conversion(kind, node)) is None:
        return ""
    try:
        found[1](column)
        return ""
    except pa.ArrowInvalid:
        pass  # the reason is below
    if pa.types.is_list(kind) and pa.types.is_list(column.type):
        items, inner = column.flatten(), _node_of(node, None)
        parts = ((f"{path}[]", kind.value_type, inner, items.slice(row, 1)) for row in range(len(items)))
        return next(filter(None, (_reason(*part) for part in parts)), "")
    if pa.types.is_struct(kind) and pa.types.is_struct(column.type):
        fields = zip(kind, column.flatten(), strict=True)
        parts = ((f"{path}.{each.name}", each.type, _node_of(node, each.name), values) for each, values in fields)
        return next(filter(None, (_reason(*part) for part in parts)), "")
    return f"field {path}: {_reason_of_value(kind, _named(node), column[0])}"


def _reason_of_value(kind: Any, known: ConnectType | None, value: Any) -> str:
    number = _number_in(value.as_py(), known) if pa.types.is_decimal(kind) else None
    if number is not None and (why := _too_many_digits(number, kind)):
        return why
    if known is not None:
        return f"{value.as_py()!r:.80} as {known[0]} is not a value of type {kind}"
    if pa.types.is_timestamp(kind):
        shown = value.cast(pa.int64()).as_py() if value.type != pa.string() else value.as_py()
        per_ms = PER_SECOND[kind.unit] / 1000
        return f"{shown / per_ms:.0f} ms since 1970 is not a time in the years 1 to 9999{_UNITS_HINT}"
    if pa.types.is_time(kind):
        return f"{value.as_py()} ms is not a time of day{_UNITS_HINT}"
    hint = " (the connector needs decimal.handling.mode=string, or schemas.enable=true)"
    return f"{str(value.as_py())[:40]!r} is not a value of type {kind}{hint if pa.types.is_decimal(kind) else ''}"


def _number_in(value: Any, known: ConnectType | None) -> Decimal | None:
    """Returns the number in the value of a decimal column as the connector has written it, or None if it is none."""
    try:
        if known is None:
            number = Decimal(value)
        else:
            text, scale = (value["value"], value["scale"]) if known[0] == _VARIABLE else (value, known[1])
            number = _decimals(pa.array([text], pa.string()), scale)[0].as_py()
    except (InvalidOperation, TypeError, LookupError, pa.ArrowException):
        return None
    return number if number.is_finite() else None


def _too_many_digits(number: Decimal, kind: Any) -> str:
    """Returns the reason why a column of this decimal type does not hold the number, with the type that does, or ""."""
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    zeros = len(digits) - len(bytes(digits).rstrip(b"\0"))  # at the end, which need no room behind the point
    before, behind = max(len(digits) + exponent, 0), max(-exponent - zeros, 0)
    room = kind.precision - kind.scale
    if before <= room and behind <= kind.scale:
        return ""
    whole, places = max(before, room), max(behind, kind.scale)
    wider = f"decimal({whole + places}, {places}) in schema=, or as " if whole + places <= _MOST_PLACES else ""
    return (
        f"{number!s:.80} has {counted_words(before, 'digit')} before the point and {behind} behind it, and {kind} has room for "
        f"{room} and {kind.scale} (declare the column as {wider}float64, which rounds; then redrive these records)"
    )


def by_schema(payloads: pa.Array) -> Iterator[tuple[bytes, Any]]:
    """Yields the distinct texts of the schemas around the payloads, with the numbers of their rows. Payloads whose
    schema names no type of Connect come with b"".
    """
    rest = np.arange(len(payloads))
    for _ in range(_HEADS):
        if not len(rest):
            return
        left = payloads.take(pa.array(rest)) if len(rest) < len(payloads) else payloads
        named = pc.starts_with(left, b'{"schema":')
        first = pc.index(named, True).as_py()
        if first < 0:
            break
        payload = left[first].as_py()
        schema = _schema_in(payload)
        begin = payload[: payload.find(schema) + len(schema)]
        same = np.asarray(pc.starts_with(left, begin).fill_null(False)) if schema else np.arange(len(left)) == first
        yield schema, rest[same]
        rest = rest[~same]
    if not len(rest):
        return
    left = payloads.take(pa.array(rest))
    telling = np.asarray(pc.or_(*(pc.match_substring(left, name) for name in _NAMES)).fill_null(False))
    groups: dict[bytes, list[int]] = {b"": rest[~telling].tolist()}
    for row in np.flatnonzero(
        telling
    ).tolist():  # the schema comes after its payload, or very many tables are in one topic
        groups.setdefault(_schema_in(left[row].as_py()), []).append(int(rest[row]))
    yield from ((schema, np.array(rows)) for schema, rows in groups.items() if rows)


def _schema_in(payload: bytes) -> bytes:
    try:
        return bytes(msgspec.json.decode(payload, type=_Wrapped).schema)
    except UNREADABLE:
        return b""  # the decoder of the payload will give the reason


def types_of(schema: bytes, inside: Sequence[str] = (), alone: str | None = None) -> dict[str, Node]:
    """Returns the nodes of a schema of Connect, by field. `inside`: field names such as "after"; the first of
    them that the schema has is read instead of the schema itself. `alone`: the name for a schema that has no fields.
    """
    try:
        node = json.loads(schema)
        if alone is not None and "fields" not in node:
            return {alone: node}
        fields = node["fields"]
        if inside:
            fields = next(each["fields"] for name in inside for each in fields if each.get("field") == name)
        return {str(each["field"]): each for each in fields}
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration, RecursionError):
        return {}  # not a schema of Connect: its columns are read as without one


def _named(node: Node) -> ConnectType | None:
    """Returns the type of Connect that a node names, or None."""
    try:
        return (
            None
            if node.get("name") is None
            else (str(node["name"]), int((node.get("parameters") or {}).get("scale", 0)))
        )
    except (ValueError, TypeError, AttributeError):
        return None  # not of Connect: read as without a schema


def _node_of(node: Node, field: str | None) -> Node:
    """Returns the node inside a node: that of the field of a struct or map, or with None that of an array's items."""
    if field is None:
        found = node.get("items")
    elif node.get("type") == "map":
        found = node.get("values")
    else:
        fields = node.get("fields")
        every = [each for each in fields if isinstance(each, dict)] if isinstance(fields, list) else []
        found = next((each for each in every if each.get("field") == field), None)
    return found if isinstance(found, dict) else {}


def _conversion(kind: pa.DataType, node: Node) -> tuple[pa.DataType, Convert] | None:
    """Returns the type with which JSON is decoded, and the conversion from that type to `kind`. Returns None if the
    JSON decoder makes values of `kind` directly.
    """
    types = pa.types
    if (known := _named(node)) is not None:
        found = _known_conversion(kind, *known)
        if found is not None:
            return found[0], _tried(found[1], pa.array([], found[0]))
    if types.is_list(kind):
        return _conversion_of_lists(kind, _conversion(kind.value_type, _node_of(node, None)))
    if types.is_struct(kind):
        return _conversion_of_structs(kind, [_conversion(each.type, _node_of(node, each.name)) for each in kind])
    if types.is_decimal(kind):
        return pa.string(), lambda column: column.cast(kind)
    if types.is_date(kind):
        return pa.int32(), lambda column: column.cast(pa.date32()).cast(kind)
    if types.is_time(kind):
        return pa.int64(), lambda column: _timely(column, pa.time32("ms"), kind)
    if types.is_timestamp(kind):
        return kind, _checked_years
    return None


def _conversion_of_lists(kind: Any, inner: tuple[pa.DataType, Convert] | None) -> tuple[pa.DataType, Convert] | None:
    if inner is None:
        return None

    def convert(column: Any) -> Any:
        ends = np.cumsum(np.asarray(pc.fill_null(pc.list_value_length(column), 0)), dtype=np.int32)
        offsets = pa.array(np.concatenate([np.zeros(1, np.int32), ends]))
        return pa.ListArray.from_arrays(offsets, inner[1](column.flatten()), type=kind, mask=column.is_null())

    return pa.list_(kind.value_field.with_type(inner[0])), convert


def _conversion_of_structs(
    kind: Any, inner: Sequence[tuple[pa.DataType, Convert] | None]
) -> tuple[pa.DataType, Convert] | None:
    if not any(inner):
        return None

    def convert(column: Any) -> Any:
        parts = zip(column.flatten(), inner, strict=True)
        made = [values if found is None else found[1](values) for values, found in parts]
        return pa.StructArray.from_arrays(made, fields=list(kind), mask=column.is_null())

    pairs = zip(kind, inner, strict=True)
    return pa.struct([each if found is None else each.with_type(found[0]) for each, found in pairs]), convert


def _known_conversion(kind: pa.DataType, name: str, scale: int) -> tuple[pa.DataType, Convert] | None:
    types = pa.types
    if name in _TIMES and (types.is_timestamp(kind) or types.is_date(kind) or types.is_time(kind)):
        return pa.int64(), lambda column: _timely(column, _TIMES[name], kind)
    if not (types.is_decimal(kind) or types.is_floating(kind) or types.is_integer(kind) or types.is_string(kind)):
        return None
    if name == _DECIMAL:
        return pa.string(), lambda column: _numbers(_decimals(column, scale), kind)
    if name == _VARIABLE:
        return pa.struct([("scale", pa.int32()), ("value", pa.string())]), lambda column: _variable(column, kind)
    return None


def _tried(convert: Convert, nothing: pa.Array) -> Convert:
    """Returns the conversion or, if there is none between these types, a function that refuses each value."""
    try:
        convert(nothing)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        why = str(error)

        def refuse(column: Any) -> Any:
            raise pa.ArrowInvalid(why)

        return refuse
    return convert


def _checked_years(times: Any) -> Any:
    """Returns times that JSON gave in ms. Raises ArrowInvalid for one outside the years 1 to 9999, which must be in
    another unit.
    """
    ends = pc.min_max(times.cast(pa.int64())).as_py()
    per_ms = max(PER_SECOND[times.type.unit] / 1000, 0.001)
    if ends["min"] is not None and not (_YEAR_1 * per_ms <= ends["min"] and ends["max"] < _YEAR_10000 * per_ms):
        raise pa.ArrowInvalid("no time in ms")
    return times


def _timely(column: Any, written: pa.DataType, kind: pa.DataType) -> Any:
    """Converts integers in the unit of the type `written` to times of the type `kind`, rounded down."""
    made = (column if written.bit_width == 64 else column.cast(pa.int32())).view(written)
    if pa.types.is_time(written):
        ends = pc.min_max(column).as_py()
        if ends["min"] is not None and not (ends["min"] >= 0 and ends["max"] < 86400 * PER_SECOND[written.unit]):
            raise pa.ArrowInvalid("no time of day")
    if pa.types.is_timestamp(written) and pa.types.is_timestamp(kind):
        return to_unit(made, kind.unit).view(kind)
    return pc.cast(made, kind, safe=not (pa.types.is_time(written) and pa.types.is_time(kind)))


def _numbers(decimals: Any, kind: pa.DataType) -> Any:
    return decimal_floats(decimals, kind) if pa.types.is_floating(kind) else decimals.cast(kind)


def _variable(column: Any, kind: pa.DataType) -> Any:
    """Converts structs of Connect's type VariableScaleDecimal, in which each value has its own scale, to decimals of
    the type `kind`.
    """
    scales = pc.struct_field(column, [0])
    made = pa.nulls(len(column), kind)
    for scale in pc.unique(scales.drop_null()).to_pylist():
        of_scale = pc.fill_null(pc.equal(scales, scale), False)
        texts = pc.if_else(of_scale, pc.struct_field(column, [1]), pa.nulls(len(column), pa.string()))
        made = pc.if_else(of_scale, _numbers(_decimals(texts, scale), kind), made)
    return made


def _decimals(texts: Any, scale: int) -> Any:
    """Returns decimals whose unscaled values are base64 texts of a two's complement, highest byte first."""
    if not -_MOST_PLACES <= scale <= _MOST_PLACES:
        raise pa.ArrowInvalid(f"a decimal of scale {scale}")
    values: Any = np.zeros(len(texts), np.int64)
    lengths = np.asarray(pc.fill_null(pc.binary_length(texts), -1))
    for length in np.unique(lengths[lengths >= 0]).tolist():
        if length % 4 or not length:
            raise pa.ArrowInvalid("no base64")
        rows = np.flatnonzero(lengths == length)
        letters = np.frombuffer(texts.take(pa.array(rows)).buffers()[2], np.uint8)[: len(rows) * length]
        letters = letters.reshape(-1, length)
        digits, ends = _NUMBER_OF_LETTER[letters], letters[:, -2:] == ord("=")
        if (digits > 63).sum() != ends.sum() or (ends[:, 0] & ~ends[:, 1]).any():
            raise pa.ArrowInvalid("no base64")
        parts = np.where(digits > 63, 0, digits).reshape(len(rows), -1, 4).astype(np.uint32)
        three = (parts[:, :, 0] << 18) | (parts[:, :, 1] << 12) | (parts[:, :, 2] << 6) | parts[:, :, 3]
        octets = (
            np.stack([three >> 16, (three >> 8) & 255, three & 255], axis=2).reshape(len(rows), -1).astype(np.uint8)
        )
        for missing in (0, 1, 2):
            some = ends.sum(axis=1) == missing
            width = octets.shape[1] - missing
            if width > 8 and values.dtype != object and some.any():
                values = values.astype(object)
            values[rows[some]] = _signed(octets[some, :width])
    places = decimal_type(38 if scale <= 38 and values.dtype != object else _MOST_PLACES, scale)
    return decimal_array(values, places, texts)


def _signed(octets: Any) -> Any:
    """Returns rows of bytes as integers: of 64 bits, or Python integers if a row has more than 8 bytes."""
    wide = octets.shape[1] > 8
    made = octets[:, 0].astype(np.int8).astype(object if wide else np.int64)
    for place in range(1, octets.shape[1]):
        made = made * 256 + octets[:, place].astype(object if wide else np.int64)
    return made


_UNTOUCHED = "__debezium_unavailable_value"


@cache
def _untouched_texts() -> "tuple[pa.Array[Any], pa.Array[Any]]":
    """Returns what Debezium writes for texts, bytes in base64 or hex and hstore in JSON that an update did not touch, and
    the lengths of these texts. They are no constants, since making them imports pandas, which takes half a second.
    """
    octets = _UNTOUCHED.encode()
    texts = [_UNTOUCHED, base64.b64encode(octets).decode(), octets.hex(), f'{{"{_UNTOUCHED}":"{_UNTOUCHED}"}}']
    return pa.array(texts), pa.array([len(each) for each in texts], pa.int32())


def untouched(rows: Mapping[str, Any]) -> dict[int, str]:
    """Returns the reason for each row with a value that the database has and the record lacks. PostgreSQL does not log a
    large value (TOAST) that an update leaves as it is, and Debezium writes a placeholder, which is no value of the table.
    `rows`: the columns, by name.
    """
    hint = "; the row can be read with REPLICA IDENTITY FULL on the table in PostgreSQL"
    return {
        int(row): f"field {name}: {_UNTOUCHED} in place of a large value that the update did not touch{hint}"
        for name, column in rows.items()
        for row in _untouched(column)
    }


def _untouched(column: Any) -> Any:
    """Returns the numbers of the rows that have a placeholder at any depth."""
    kind, types = column.type, pa.types
    none = np.zeros(0, np.int64)
    if types.is_string(kind) or types.is_binary(kind):
        texts, lengths = _untouched_texts()
        found, sizes = none, np.asarray(pc.fill_null(pc.binary_length(column), 0))
        for text, length in zip(texts, lengths, strict=True):
            if (sizes == length.as_py()).any():  # by far the most batches have no text to compare
                same = pc.fill_null(pc.equal(column, text.cast(kind)), False)
                found = np.union1d(found, np.flatnonzero(np.asarray(same)))
        return found
    if types.is_struct(kind):
        return np.unique(np.concatenate([none, *map(_untouched, column.flatten())]))
    if not types.is_list(kind):
        return none
    if types.is_integer(kind.value_type) or types.is_floating(kind.value_type):
        octets = list(_UNTOUCHED.encode())  # of an array of numbers Debezium writes the bytes
        lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
        return np.array(
            [row for row in np.flatnonzero(lengths == len(octets)) if column[row].as_py() == octets], np.int64
        )
    inside = _untouched(column.flatten())
    return np.unique(np.asarray(pc.list_parent_indices(column))[inside]) if len(inside) else inside
