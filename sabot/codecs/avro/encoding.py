"""Plans the encoding of columns with an Avro schema: a tree of WriteSteps, made once for each pair of schemas.

Columns are matched by their names. A field without a column gets its default. A column without a field is refused,
because its loss would be noticed only when its data is needed. Integers go into int and long if they fit, which is
checked for each value; times are rounded down to the unit of the schema; decimals keep their scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from sabot.codecs.avro.columns import is_null
from sabot.codecs.avro.defaults import encoded_default
from sabot.codecs.avro.schema import (
    NO_DEFAULT,
    AvroArray,
    AvroEnum,
    AvroFixed,
    AvroMap,
    AvroPrimitive,
    AvroRecord,
    AvroType,
    AvroUnion,
    Logical,
)
from sabot.errors import UserError

_LEAST, _MOST = -(2**63), 2**63 - 1
_NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_UNITS = {"millis": 10**6, "micros": 10**3, "nanos": 1}
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class WriteStep:
    """A step of the encoding; see `_WriteStep` in _cython/binary/avro.pyi."""

    op: str
    path: str
    column: int = -1
    size: int = 0
    null: int = -1
    multiply: int = 1
    divide: int = 1
    least: int = _LEAST
    most: int = _MOST
    steps: Sequence["WriteStep"] = ()
    data: bytes = b""
    symbols: Sequence[bytes] = ()


def encoding(record: AvroRecord, schema: pa.Schema) -> WriteStep:
    """Returns the steps that write rows with these columns as this record. Raises UserError if they do not fit."""
    return WriteStep("record", "", steps=_fields(record, list(schema), ""))


def _fields(record: AvroRecord, columns: Sequence[Any], path: str) -> list[WriteStep]:
    places = {column.name: number for number, column in enumerate(columns)}
    steps = []
    for field in record.fields:
        place = f"{path}.{field.name}" if path else field.name
        number = places.pop(field.name, None)
        if number is not None:
            steps.append(_written(field.type, columns[number].type, place, number))
        elif field.default is not NO_DEFAULT:
            steps.append(WriteStep("constant", place, data=encoded_default(field, place)))
        else:
            raise UserError(f"column {place!r} is missing: the Avro schema {record.name!r} has it, without a default")
    if places:
        raise UserError(
            f"column {next(iter(places))!r} is not in the Avro schema {record.name!r}",
            hint="drop the column before, or give a schema that has it",
        )
    return steps


def _written(kind: AvroType, column: pa.DataType, path: str, number: int) -> WriteStep:
    """Returns the step for a column, which is child `number` of its parent. Raises UserError if the column does not
    fit.
    """
    branches = kind.branches if isinstance(kind, AvroUnion) else (kind,)
    others = [each for each in branches if not is_null(each)]
    if pa.types.is_null(column) and len(others) < len(branches):
        others = [each for each in branches if is_null(each)]
    if len(others) != 1 or len(branches) > 2:
        raise UserError(f"column {path!r}: a {kind} is not written", hint="a union of null and one type is")
    step = _plain(others[0], column, path)
    if step is None:
        hint = _hint(others[0])
        raise UserError(
            f"column {path!r} of type {column} is not written as {others[0]}",
            hint=f"cast it before: {hint}" if hint else "",
        )
    return _in_union(replace(step, column=number), kind, others[0])


def _in_union(step: WriteStep, kind: AvroType, chosen: AvroType) -> WriteStep:
    """Returns the step with the number of the union's null branch if `kind` is a union, and otherwise the step as it
    is. Raises UserError for a union without null.
    """
    if not isinstance(kind, AvroUnion):
        return step
    nulls = [number for number, each in enumerate(kind.branches) if is_null(each)]
    if nulls:
        return replace(step, null=nulls[0])
    raise UserError(f"column {step.path!r}: a {kind} is not written", hint=f"a union with null is, and {chosen} itself")


def _hint(kind: AvroType) -> str:
    return f'.cast("{kind.name}")' if isinstance(kind, AvroPrimitive) and kind.logical is None else ""


def _plain(kind: AvroType, column: pa.DataType, path: str) -> WriteStep | None:
    """Returns the step for a column and a type that is not a union, or None if the column does not fit."""
    types = pa.types
    match kind:
        case AvroRecord() if types.is_struct(column):
            return WriteStep("record", path, steps=_fields(kind, list(column), path))
        case AvroArray() if types.is_list(column):
            return WriteStep("array", path, steps=(_written(kind.items, column.value_type, f"{path}[]", 0),))
        case AvroMap() if types.is_map(column) and column.key_type == pa.string():
            value = _written(kind.values, column.item_type, f"{path}{{}}", 1)
            entry = WriteStep("record", path, 0, steps=(WriteStep("bytes", f"{path}{{}}", 0), value))
            return WriteStep("array", path, steps=(entry,))
        case AvroEnum() if column == pa.string():
            return WriteStep("enum", path, symbols=[each.encode() for each in kind.symbols])
        case AvroPrimitive() | AvroFixed() if kind.logical is not None:
            return _logical(kind, kind.logical, column, path)
        case AvroFixed() if column == pa.binary() or (
            types.is_fixed_size_binary(column) and column.byte_width == kind.size
        ):
            return WriteStep("fixed", path, size=kind.size)
        case AvroPrimitive():
            return _primitive(kind.name, column, path)
        case _:
            return None


def _primitive(name: str, column: pa.DataType, path: str) -> WriteStep | None:
    types = pa.types
    is_whole = types.is_integer(column)
    is_bytes = column == pa.binary() or types.is_fixed_size_binary(column)
    match name:
        case "null" if types.is_null(column):
            return WriteStep("nothing", path)
        case "boolean" if types.is_boolean(column):
            return WriteStep("boolean", path)
        case "int" if is_whole:
            return _whole(path, 32)
        case "long" if is_whole:
            return _whole(path, 64)
        case "float" if column == pa.float32() or (is_whole and column.bit_width <= 16):
            return WriteStep("float32", path)
        case "double" if column in (pa.float32(), pa.float64()) or (is_whole and column.bit_width <= 32):
            return WriteStep("float64", path)
        case "string" if column == pa.string() or is_bytes:
            return WriteStep("text" if is_bytes else "bytes", path)
        case "bytes" if column == pa.string() or is_bytes:
            return WriteStep("bytes", path)
        case _:
            return None


def _whole(path: str, bits: int, multiply: int = 1, divide: int = 1) -> WriteStep:
    end = 2 ** (bits - 1)
    return WriteStep("whole", path, multiply=multiply, divide=divide, least=-end, most=end - 1)


def _logical(kind: AvroPrimitive | AvroFixed, logical: Logical, column: pa.DataType, path: str) -> WriteStep | None:
    types = pa.types
    fixed = isinstance(kind, AvroFixed)
    base, _, unit = logical.name.rpartition("-")
    if logical.name == "decimal":
        if not types.is_decimal(column) or column.scale != logical.scale or column.precision > logical.precision:
            return None
        return WriteStep("decimal", path, size=kind.size if isinstance(kind, AvroFixed) else -1)
    if logical.name == "uuid":
        return WriteStep("uuid" if fixed else "bytes", path) if column == pa.string() else None
    if logical.name == "date":
        if types.is_date32(column) or (types.is_integer(column) and column.bit_width <= 32):
            return _whole(path, 32)
        return _whole(path, 32, divide=_DAY_MS) if types.is_date64(column) else None
    is_time = types.is_time(column) if base == "time" else types.is_timestamp(column)
    bits = 32 if logical.name == "time-millis" else 64
    if types.is_integer(column) and unit == "millis":
        # integers in time columns are milliseconds, as everywhere
        return _within(_whole(path, bits), base, _UNITS[unit])
    if not is_time:
        return None
    multiply, divide = _NS[column.unit], _UNITS[unit]
    return _within(_whole(path, bits, max(1, multiply // divide), max(1, divide // multiply)), base, divide)


def _within(step: WriteStep, base: str, unit_ns: int) -> WriteStep:
    """Returns the step. If `base` is "time" (a time of day), the step is limited to values within a day. `unit_ns`:
    the unit of the values in ns.
    """
    return replace(step, least=0, most=_DAY_MS * 10**6 // unit_ns - 1) if base == "time" else step
