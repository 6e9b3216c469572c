"""The encoder of Protobuf payloads."""

from dataclasses import replace
from typing import Any

import pyarrow as pa
from pyarrow import types

from sabot._cython.binary.protobuf import ProtobufWriter, WireField
from sabot.base.arrays import exact_cast
from sabot.codecs.protobuf.fields import arrow_type, message_type, wire_fields
from sabot.errors import UserError


class ProtobufEncoder:
    """An encoder that writes rows as payloads of one message type. Columns have the names of fields; fields without a
    column are left out.

    `message`: see ProtobufCodec. `schema_id`: the id for the header of Confluent's schema registry, or None for no
    header. Numbers may be of any width if their values fit; enums may be names or numbers; times may have any unit. A
    column of nulls only may have any type. An encoder belongs to one thread: see `another`.
    """

    def __init__(self, message: Any, *, schema_id: int | None = None) -> None:
        self._given = (message, schema_id)
        self._message = message_type(message)
        self._header = b"" if schema_id is None else _header(self._message, schema_id)
        self._schema: pa.Schema | None = None
        self._writer: ProtobufWriter | None = None

    def another(self) -> "ProtobufEncoder":
        message, schema_id = self._given
        return ProtobufEncoder(message, schema_id=schema_id)

    def check(self, schema: pa.Schema) -> None:
        """Raises UserError for a column without a field in the message, for a repeated column, for a column whose
        type does not fit the field, and for a required field without a column.
        """
        self._writer_of(schema)

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        """Returns a payload for each row. Raises the errors of `check`, and UserError, with row and column, for a
        value that the message cannot represent.
        """
        if self._writer is None or batch.schema != self._schema:
            self._writer, self._schema = self._writer_of(batch.schema), batch.schema
        wanted = self._writer.schema
        if wanted.types != batch.schema.types:
            columns = [_converted(column, field) for column, field in zip(batch.columns, wanted, strict=True)]
            batch = pa.RecordBatch.from_arrays(columns, schema=wanted)
        return self._writer.encode(batch)

    def _writer_of(self, schema: pa.Schema) -> ProtobufWriter:
        fields = wire_fields(self._message, schema.names)
        for field in self._message.fields:
            if field.is_required and field.name not in schema.names:
                raise _lacks(field.name, self._message.full_name)
        fitted = [each.with_type(_fitted(each.type, field)) for each, field in zip(schema, fields, strict=True)]
        return ProtobufWriter(fields, pa.schema(fitted), self._header)


def _header(descriptor: Any, schema_id: int) -> bytes:
    """Returns the header of Confluent's schema registry: a 0, the id, and the path of the message in its file, as
    zigzag numbers.
    """
    path = []
    while descriptor.containing_type is not None:
        path.append([each.name for each in descriptor.containing_type.nested_types].index(descriptor.name))
        descriptor = descriptor.containing_type
    path.append(list(descriptor.file.message_types_by_name).index(descriptor.name))
    indexes = b"\0" if path == [0] else b"".join(_varint(2 * number) for number in (len(path), *reversed(path)))
    return b"\0" + schema_id.to_bytes(4, "big") + indexes


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


# -- conversion of columns to types that a message takes


def _fitted(kind: pa.DataType, field: WireField) -> pa.DataType:
    """Returns the type that the kernel writes for this field, to which a column of type `kind` is cast. Raises
    UserError if there is none.
    """
    if types.is_null(kind):
        return arrow_type(field)
    if field.map:
        if not types.is_map(kind):
            raise _misfit(kind, field, "map")
        key, value = field.fields
        return pa.map_(
            kind.key_field.with_type(_fitted(kind.key_type, key)),
            kind.item_field.with_type(_fitted(kind.item_type, value)),
        )
    if field.repeated:
        if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
            raise _misfit(kind, field, "list")
        return pa.list_(kind.value_field.with_type(_fitted(kind.value_type, replace(field, repeated=False))))
    if field.kind == "message":
        if not types.is_struct(kind):
            raise _misfit(kind, field, "message")
        return _fitted_struct(kind, field)
    return _fitted_value(kind, field)


def _fitted_struct(kind: pa.StructType, field: WireField) -> pa.DataType:
    known = {each.name: each for each in field.fields}
    columns = [kind.field(i) for i in range(kind.num_fields)]
    for column in columns:
        if column.name not in known:
            hint = f"its fields are {', '.join(known):.300}"
            raise UserError(f"column {field.path!r}: the message has no field for {column.name!r}", hint=hint)
    for name, each in known.items():
        if each.required and kind.get_field_index(name) < 0:
            raise _lacks(each.name, field.path)
    return pa.struct([column.with_type(_fitted(column.type, known[column.name])) for column in columns])


def _fitted_value(kind: pa.DataType, field: WireField) -> pa.DataType:
    wanted = field.inner or field.kind
    plain = kind.value_type if types.is_dictionary(kind) else kind
    text = types.is_string(plain) or types.is_large_string(plain) or types.is_string_view(plain)
    fits: bool
    found: pa.DataType = arrow_type(replace(field, repeated=False))
    match wanted:
        case "timestamp":
            fits = types.is_timestamp(plain) or types.is_date(plain)
            found = plain if types.is_timestamp(plain) else pa.timestamp("ms", "UTC")
        case "duration":
            fits, found = types.is_duration(plain), plain
        case "enum":
            fits = text or types.is_integer(plain)
            found = pa.string() if text else pa.int32()
        case "string":
            fits = text
        case "bytes":
            fits = text or types.is_binary(plain) or types.is_large_binary(plain) or types.is_fixed_size_binary(plain)
        case "bool":
            fits = types.is_boolean(plain)
        case "float" | "double":
            fits = types.is_floating(plain) or types.is_integer(plain)
        case _:
            fits = types.is_integer(plain)
    if not fits:
        raise _misfit(kind, field, wanted)
    return found


def _converted(column: Any, field: pa.Field) -> Any:
    """Converts the column to the type that the kernel writes. Raises UserError, with the row, for a value that does
    not fit.
    """
    if column.type == field.type:
        return column
    try:
        return exact_cast(column, field.type)
    except pa.ArrowInvalid:  # pyarrow also casts items of rows outside of the slice
        column = column.take(_numbers(0, len(column)))
    try:
        return exact_cast(column, field.type)
    except pa.ArrowInvalid as error:
        row = _first_unfit(column, field.type)
        raise UserError(
            f"column {field.name!r}, row {row}: {str(column[row].as_py())[:80]} does not fit the message: {error}",
            hint="cast it before the sink, or filter such rows out",
        ) from error


def _first_unfit(column: Any, kind: pa.DataType) -> int:
    """Returns the row of the first value that cannot be cast, in a column that has one."""
    low, high = 0, len(column)  # all rows before `low` can be cast, and some row before `high` cannot
    while high - low > 1:
        middle = (low + high) // 2
        try:
            exact_cast(column.take(_numbers(low, middle)), kind)
            low = middle
        except pa.ArrowInvalid:
            high = middle
    return low


def _numbers(low: int, high: int) -> Any:
    return pa.array(range(low, high), pa.int64())


def _lacks(path: str, message: str) -> UserError:
    return UserError(
        f"the field {path!r} of {message} is required, and no column has it", hint="add the column before the sink"
    )


def _misfit(kind: pa.DataType, field: WireField, wanted: str) -> UserError:
    return UserError(
        f"column {field.path!r} of type {kind} cannot be written as Protobuf's {wanted}", hint="cast it before the sink"
    )
