"""Converts message types to columns: descriptors of Protobuf to the fields that the kernel is compiled from, and
these to Arrow types.

Descriptors come from the package protobuf, which the user has installed. This module imports it only to read a
FileDescriptorSet.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from sabot._cython.binary.protobuf import WireField
from sabot.errors import MissingExtra, UserError

_NESTED = 60  # the greatest nesting of types; Arrow imports up to 64 levels
_GROUP, _MESSAGE, _ENUM = 10, 11, 14
_KINDS = {  # by the numbers of FieldDescriptorProto.Type
    **{1: "double", 2: "float", 3: "int64", 4: "uint64", 5: "int32", 6: "fixed64", 7: "fixed32", 8: "bool"},
    **{9: "string", 12: "bytes", 13: "uint32", 15: "sfixed32", 16: "sfixed64", 17: "sint32", 18: "sint64"},
}
_ARROW: dict[str | None, pa.DataType] = {
    "double": pa.float64(),
    "float": pa.float32(),
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "int32": pa.int32(),
    "fixed64": pa.uint64(),
    "fixed32": pa.uint32(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "bytes": pa.binary(),
    "uint32": pa.uint32(),
    "enum": pa.string(),
    "sfixed32": pa.int32(),
    "sfixed64": pa.int64(),
    "sint32": pa.int32(),
    "sint64": pa.int64(),
    "timestamp": pa.timestamp("us", "UTC"),
    "duration": pa.duration("us"),
}
_KNOWN = {
    "google.protobuf.Timestamp": ("timestamp", None),
    "google.protobuf.Duration": ("duration", None),
    "google.protobuf.DoubleValue": ("wrapped", "double"),
    "google.protobuf.FloatValue": ("wrapped", "float"),
    "google.protobuf.Int64Value": ("wrapped", "int64"),
    "google.protobuf.UInt64Value": ("wrapped", "uint64"),
    "google.protobuf.Int32Value": ("wrapped", "int32"),
    "google.protobuf.UInt32Value": ("wrapped", "uint32"),
    "google.protobuf.BoolValue": ("wrapped", "bool"),
    "google.protobuf.StringValue": ("wrapped", "string"),
    "google.protobuf.BytesValue": ("wrapped", "bytes"),
}


def message_type(message: Any) -> Any:
    """Returns the descriptor of a message type that a user has given in any form. Raises UserError for anything else."""
    descriptor = getattr(message, "DESCRIPTOR", message)
    if not (hasattr(descriptor, "fields_by_name") and hasattr(descriptor, "oneofs_by_name")):
        raise UserError(
            f"{message!r:.80} is not a type of Protobuf messages",
            hint="give a generated class, its DESCRIPTOR, or descriptor_of(files, name)",
        )
    return descriptor


def descriptor_of(files: bytes, name: str) -> Any:
    """Returns the message type called `name` (with its package) in these files, a serialized FileDescriptorSet from
    `protoc --include_imports --descriptor_set_out=FILE`. Raises UserError; MissingExtra without the package protobuf.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingExtra("format=Protobuf", "protobuf") from error
    found = descriptor_pb2.FileDescriptorSet()
    try:
        found.ParseFromString(files)
    except DecodeError as error:
        hint = "protoc --include_imports --descriptor_set_out=FILE writes one"
        raise UserError("the bytes are not a FileDescriptorSet", hint=hint) from error
    pool = descriptor_pool.DescriptorPool()
    try:
        for file in found.file:
            pool.Add(file)
    except TypeError as error:
        raise UserError(
            f"the FileDescriptorSet: {error}", hint="protoc writes imported files with --include_imports"
        ) from error
    try:
        return pool.FindMessageTypeByName(name)
    except KeyError as error:
        names = [f"{file.package}.{each.name}".lstrip(".") for file in found.file for each in file.message_type]
        own = ", ".join(each for each in names if not each.startswith("google.protobuf."))
        raise UserError(
            f"no message {name!r} in the FileDescriptorSet", hint=f"there are {own or 'none':.300}"
        ) from error


def arrow_schema(message: Any) -> pa.Schema:
    """Returns the columns of a message of this type. Raises UserError if it contains itself."""
    descriptor = message_type(message)
    return pa.schema(map(arrow_field, wire_fields(descriptor, [field.name for field in descriptor.fields])))


def wire_fields(descriptor: Any, names: Sequence[str]) -> list[WireField]:
    """Returns the fields with these names, in this order. Raises UserError for an unknown or repeated name."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"the field {twice[0]!r} of {descriptor.full_name} is named twice", hint="name it once")
    for name in names:
        if name not in descriptor.fields_by_name:
            known = ", ".join(field.name for field in descriptor.fields)
            raise UserError(
                f"the message {descriptor.full_name} has no field {name!r}", hint=f"its fields are {known:.300}"
            )
    return [_wire_field(descriptor.fields_by_name[name], name, (descriptor.full_name,)) for name in names]


def oneof_others(descriptor: Any, names: Sequence[str]) -> list[WireField]:
    """Returns the members of the same oneofs as these fields, without the fields themselves. A message among them has
    no inner fields.
    """
    oneofs = {descriptor.fields_by_name[name].containing_oneof for name in names} - {None}
    others = [field for oneof in descriptor.oneofs if oneof in oneofs for field in oneof.fields]
    return [_wire_field(field, field.name, None) for field in others if field.name not in names]


def arrow_field(field: WireField) -> pa.Field:
    """Returns the column of a field."""
    return pa.field(field.name, arrow_type(field), nullable=field.presence and not field.required)


def arrow_type(field: WireField) -> pa.DataType:
    """Returns the type of a field's column."""
    if field.map:
        key, value = field.fields
        return pa.map_(arrow_type(key), pa.field("value", arrow_type(value), nullable=False))
    kind = pa.struct(map(arrow_field, field.fields)) if field.kind == "message" else _ARROW[field.inner or field.kind]
    return pa.list_(pa.field("item", kind, nullable=False)) if field.repeated else kind


def _wire_field(field: Any, path: str, above: tuple[str, ...] | None) -> WireField:
    """Returns the field as the kernel needs it. `above`: the names of the messages around the field, from the
    outermost; None for a message whose fields are not read.
    """
    oneof = field.containing_oneof
    found = WireField(
        field.name,
        path,
        field.number,
        _KINDS.get(field.type, ""),
        presence=field.has_presence,
        required=field.is_required,
        repeated=field.is_repeated,
        packed=field.is_packed,
        group=field.type == _GROUP,
        oneof=oneof.index if oneof is not None and len(oneof.fields) > 1 else -1,
    )
    if field.type == _ENUM:
        names = tuple((value.name, value.number) for value in field.enum_type.values)
        return replace(found, kind="enum", values=names, closed=field.enum_type.is_closed)
    if field.type not in (_MESSAGE, _GROUP):
        return found
    if field.message_type.full_name in _KNOWN:
        kind, inner = _KNOWN[field.message_type.full_name]
        return replace(found, kind=kind, inner=inner)
    is_map = field.message_type.GetOptions().map_entry
    below = () if above is None else _below(field.message_type, f"{path}[]" if found.repeated else path, above)
    if is_map:  # key and value of a pair are never missing: a missing one is the default
        below = tuple(replace(each, presence=False) for each in below)
    return replace(found, kind="message", map=is_map, fields=below)


def _below(descriptor: Any, path: str, above: tuple[str, ...]) -> tuple[WireField, ...]:
    """Returns the fields of a message within other messages. Raises UserError for a message within itself, or too
    many levels.
    """
    if descriptor.full_name in above:
        raise UserError(
            f"column {path!r}: the message {descriptor.full_name} contains itself, which a column cannot",
            hint="name the columns that are wanted, without this one",
        )
    if len(above) == _NESTED:
        raise UserError(f"column {path:.100}… is nested deeper than {_NESTED} messages", hint="leave it out")
    within = (*above, descriptor.full_name)
    return tuple(_wire_field(field, f"{path}.{field.name}", within) for field in descriptor.fields)
