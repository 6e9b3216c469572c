"""Annotations of Python as types of columns: of a function's results, and of the answers of a model."""

import dataclasses
import datetime
import decimal
import enum
import types
import typing
import uuid
from collections.abc import Sequence, Set
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pyarrow as pa

from sabot.errors import UserError

_PLAIN: dict[Any, pa.DataType] = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    bytes: pa.binary(),
    datetime.datetime: pa.timestamp("us", "UTC"),
    datetime.date: pa.date32(),
    datetime.time: pa.time64("us"),
    uuid.UUID: pa.string(),
}


def fields_of_class(kind: Any) -> dict[str, Any] | None:
    """Returns the types of the fields of a class, by the names of the fields in JSON. Returns None if `kind` is not a
    Struct, pydantic model, dataclass or TypedDict.
    """
    if not isinstance(kind, type):
        return None
    if issubclass(kind, msgspec.Struct):
        return {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    if hasattr(kind, "model_fields"):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if not dataclasses.is_dataclass(kind) and not typing.is_typeddict(kind):
        return None
    known = get_type_hints(kind, include_extras=True)
    return (
        {field.name: known[field.name] for field in dataclasses.fields(kind)}
        if dataclasses.is_dataclass(kind)
        else known
    )


def arrow_type(kind: Any, where: str) -> pa.DataType:
    """Returns the type of an Arrow column that can store values of the Python type `kind`. None in a union is ignored,
    because each column can contain nulls. Raises UserError if no Arrow type can store the values. `where`: the text
    with which the error message begins.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Annotated, typing.Required, typing.NotRequired):
        return arrow_type(arguments[0], where)
    if origin is Literal:
        return _one_of({type(value) for value in arguments if value is not None}, kind, where)
    if origin in (Union, types.UnionType):
        some = [each for each in arguments if each not in (type(None), msgspec.UnsetType)]
        return _one_of(some, kind, where)
    if isinstance(kind, typing.NewType):
        return arrow_type(kind.__supertype__, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _one_of({type(member.value) for member in kind}, kind, where)
    if origin in (list, set, frozenset, Sequence, Set) or (origin is tuple and arguments[1:] == (...,)):
        return pa.list_(arrow_type(arguments[0], where))
    if isinstance(kind, type) and kind in _PLAIN:
        return _PLAIN[kind]
    if fields := fields_of_class(kind):
        return pa.struct([(name, arrow_type(each, f"{where}.{name}")) for name, each in fields.items()])
    hint = "text, bool, numbers, dates, times, lists, enums, or types of such fields"
    if kind is decimal.Decimal:
        hint = '{"price": "float64"}, or {"price": pa.decimal128(10, 2)}: a column of decimals has a precision'
    raise UserError(f"{where}: {getattr(kind, '__name__', kind)} is no type of a column", hint=hint)


def _one_of(kinds: Any, of: Any, where: str) -> pa.DataType:
    found = {arrow_type(kind, where) for kind in kinds}
    if found == {pa.int64(), pa.float64()}:
        return pa.float64()
    if len(found) != 1:
        raise UserError(f"{where}: {of} has values of several types", hint="all values of a column have one type")
    return found.pop()
