"""Resolves a writer's schema against a reader's: the specification's chapter "Schema Resolution", done once for each pair of
schemas, never per record.

The result is a tree of ReadSteps in the order of the writer's bytes:

    writer {a: long, b: string, c: ["null", float]}     reader {c: ["null", double], a: long, d: int = 7}
    steps  int64 -> a, skip_sized, float32_as_float64 -> c (null is its branch 0), constant 7 -> d
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sabot.codecs.avro.columns import is_null, nullable_type
from sabot.codecs.avro.defaults import encoded_default
from sabot.codecs.avro.schema import (
    NO_DEFAULT,
    UNITS_OF_DAY,
    AvroArray,
    AvroEnum,
    AvroField,
    AvroFixed,
    AvroMap,
    AvroPrimitive,
    AvroRecord,
    AvroType,
    AvroUnion,
    Logical,
)
from sabot.errors import UserError


@dataclass(frozen=True, slots=True)
class ReadStep:
    """A step of the decoding; see `_ReadStep` in _cython/binary/avro.pyi."""

    op: str
    path: str
    child: int = -1
    size: int = 0
    null: int = -1
    steps: Sequence["ReadStep"] = ()
    texts: Sequence[bytes] = ()
    known: Sequence[bool] = ()


_OPS = {
    **{("boolean", "boolean"): "boolean", ("int", "int"): "int32", ("long", "long"): "int64"},
    **{
        ("float", "float"): "float32",
        ("double", "double"): "float64",
        ("bytes", "bytes"): "bytes",
        ("string", "string"): "text",
    },
    **{("int", "long"): "int32_as_int64", ("int", "float"): "int32_as_float32", ("int", "double"): "int32_as_float64"},
    **{
        ("long", "float"): "int64_as_float32",
        ("long", "double"): "int64_as_float64",
        ("float", "double"): "float32_as_float64",
    },
    **{("string", "bytes"): "bytes", ("bytes", "string"): "text"},
}
_PASSED_OVER = {"null": 0, "boolean": 1, "float": 4, "double": 8}


def resolved(writer: AvroRecord, reader: AvroRecord, columns: Sequence[str]) -> ReadStep:
    """Returns the steps that read these columns of the reader's schema, in this order. Raises UserError if the
    schemas do not fit.
    """
    return _record(writer, reader, "", columns)


def failing(reason: str) -> ReadStep:
    """Returns a step that makes every payload a bad row with this reason."""
    return ReadStep("fail", "", texts=(reason.encode(),))


def _read(writer: AvroType, reader: AvroType, path: str, child: int) -> ReadStep:
    """Returns the step that reads a value into child `child` of its column, or skips it for -1. Raises UserError if
    the types do not fit.
    """
    inner, nullable = nullable_type(reader, path)
    if isinstance(writer, AvroUnion):
        return _of_union(writer, reader, path, child)
    if is_null(writer):
        if not nullable:
            raise UserError(f"field {path}: the writer has null, the reader {inner}")
        return ReadStep("nothing", path, child)
    step = _match(writer, inner, path)
    if step is None:
        raise UserError(f"field {path}: the writer's {writer} is not read as {inner}")
    return replace(step, child=child)


def _of_union(writer: AvroUnion, reader: AvroType, path: str, child: int) -> ReadStep:
    steps, errors = [], []
    for branch in writer.branches:
        try:
            steps.append(_read(branch, reader, path, child))
        except UserError as error:
            errors.append(error)
            reason = f"the value is a {branch}, which the schema that is read with does not allow"
            steps.append(ReadStep("fail", path, texts=(reason.encode(),)))
    some = [each for each in steps if each.op not in ("fail", "nothing")]
    if errors and not some:
        raise errors[-1]
    nulls = [number for number, each in enumerate(steps) if each.op == "nothing"]
    if len(steps) == 2 and len(some) == 1 and nulls:
        return replace(some[0], null=nulls[0])
    return ReadStep("union", path, child, steps=steps)


def _match(writer: AvroType, reader: AvroType, path: str) -> ReadStep | None:
    """Returns the step that reads a value (not a union) as the reader's type, or None if it does not fit."""
    match writer, reader:
        case AvroFixed(logical=Logical(name="uuid")), AvroPrimitive(name="string", logical=None):  # that of a UUID
            return ReadStep("uuid", path, size=writer.size)
        case (AvroPrimitive() | AvroFixed(), AvroPrimitive() | AvroFixed()):
            return _plain(writer, reader, path)
        case AvroEnum(), AvroEnum() if _same_name(writer, reader):
            known = [each in reader.symbols for each in writer.symbols]
            other = reader.default
            texts = [each if fits or other is None else other for each, fits in zip(writer.symbols, known, strict=True)]
            return ReadStep(
                "enum",
                path,
                texts=[each.encode() for each in texts],
                known=[fits or other is not None for fits in known],
            )
        case AvroEnum(), AvroPrimitive(name="string", logical=None):  # such is the type of a column of symbols
            return ReadStep(
                "enum", path, texts=[each.encode() for each in writer.symbols], known=[True] * len(writer.symbols)
            )
        case AvroArray(), AvroArray():
            item = _read(writer.items, reader.items, f"{path}[]", 0)
            return ReadStep("array", path, size=writer.items.least_bytes, steps=(item,))
        case AvroMap(), AvroMap():
            value = _read(writer.values, reader.values, f"{path}{{}}", 1)
            entry = ReadStep("record", path, 0, steps=(ReadStep("text", f"{path}{{}}", 0), value))
            return ReadStep("array", path, size=1 + writer.values.least_bytes, steps=(entry,))
        case AvroRecord(), AvroRecord() if _same_name(writer, reader):
            return _record(writer, reader, path, [each.name for each in reader.fields])
        case _:
            return None


def _plain(writer: AvroPrimitive | AvroFixed, reader: AvroPrimitive | AvroFixed, path: str) -> ReadStep | None:
    meaning = reader.logical
    if (meaning is not None and writer.logical not in (None, meaning)) or not _same_kind(writer, reader, meaning):
        return None
    if meaning is not None and meaning.name == "decimal":
        return ReadStep("decimal", path, size=writer.size if isinstance(writer, AvroFixed) else -1)
    if isinstance(writer, AvroFixed):
        return ReadStep("fixed" if meaning is None else "uuid", path, size=writer.size)
    if meaning is not None and meaning.name in UNITS_OF_DAY:
        op = "time32" if reader.name == "int" else "time64"
        return ReadStep(op, path, size=UNITS_OF_DAY[meaning.name]) if writer.name == reader.name else None
    found = _OPS.get((writer.name, reader.name))
    return None if found is None else ReadStep(found, path)


def _same_kind(writer: AvroPrimitive | AvroFixed, reader: AvroPrimitive | AvroFixed, meaning: Logical | None) -> bool:
    """Returns True if the reader's type can read values of the writer's type as far as fixed types matter: both are
    fixed with the same name and size, or neither is fixed. Equal decimals may be bytes in one schema and fixed in the
    other.
    """
    if meaning is not None and meaning.name == "decimal" and writer.logical == meaning:
        return True
    if isinstance(writer, AvroFixed) and isinstance(reader, AvroFixed):
        return writer.size == reader.size and _same_name(writer, reader)
    if meaning is not None and meaning.name == "decimal" and writer.name != "bytes":
        return False
    return isinstance(writer, AvroPrimitive) and isinstance(reader, AvroPrimitive)


def _same_name(writer: AvroRecord | AvroEnum | AvroFixed, reader: AvroRecord | AvroEnum | AvroFixed) -> bool:
    """Returns True if the types have the same name, without namespaces, or the writer's name is an alias of the
    reader's type.
    """
    return writer.name.rpartition(".")[2] == reader.name.rpartition(".")[2] or writer.name in reader.aliases


def _record(writer: AvroRecord, reader: AvroRecord, path: str, wanted: Sequence[str]) -> ReadStep:
    """Returns the step that fills the children of a struct, which are the `wanted` fields of the reader's record."""
    if not _same_name(writer, reader):
        where = f"field {path}: " if path else ""
        raise UserError(
            f"{where}the writer's record {writer.name!r} is not the reader's {reader.name!r}",
            hint="an alias joins them",
        )
    fields = {each.name: each for each in reader.fields}
    sources = _sources(writer, reader)
    targets = {sources[name]: (number, fields[name]) for number, name in enumerate(wanted) if name in sources}
    steps: list[ReadStep] = []
    for place, field in enumerate(writer.fields):
        if place in targets:
            number, target = targets[place]
            steps.append(_read(field.type, target.type, _below(path, target.name), number))
        else:
            _pass_over(field.type, _below(path, field.name), steps)
    for number, name in enumerate(wanted):
        if name not in sources:
            steps.append(_default(fields[name], _below(path, name), number))
    return ReadStep("record", path, steps=steps)


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _sources(writer: AvroRecord, reader: AvroRecord) -> dict[str, int]:
    """Returns, by the name of a field of the reader, the index of the writer's field from which it is read. Fields
    are matched by name, or else by an alias that is not the name of another field. Fields that the writer lacks are
    left out.
    """
    places = {each.name: place for place, each in enumerate(writer.fields)}
    names = {each.name for each in reader.fields}
    found: dict[str, int] = {}
    for field in reader.fields:
        others = [each for each in field.aliases if each not in names]
        name = next((each for each in [field.name, *others] if each in places), None)
        if name is not None:
            found[field.name] = places.pop(name)
    return found


def _default(field: AvroField, path: str, child: int) -> ReadStep:
    if field.default is NO_DEFAULT:
        raise UserError(
            f"field {path}: the writer does not have it, and it has no default", hint="give it a default, or an alias"
        )
    value = _read(field.type, field.type, path, child)
    return ReadStep("constant", path, child, steps=(value,), texts=(encoded_default(field, path),))


def _pass_over(kind: AvroType, path: str, steps: list[ReadStep]) -> None:
    """Adds the steps that skip a value. A run of fixed length becomes one step."""
    size = (
        _PASSED_OVER.get(kind.name)
        if isinstance(kind, AvroPrimitive)
        else kind.size
        if isinstance(kind, AvroFixed)
        else None
    )
    if size is not None:
        if steps and steps[-1].op == "skip" and steps[-1].null < 0:
            steps[-1] = replace(steps[-1], size=steps[-1].size + size)
        elif size:
            steps.append(ReadStep("skip", path, size=size))
        return
    match kind:
        case AvroRecord():
            for field in kind.fields:
                _pass_over(field.type, f"{path}.{field.name}", steps)
        case AvroUnion():
            steps.append(_union_passed_over(kind, path))
        case AvroArray():
            steps.append(
                ReadStep("array", path, size=kind.items.least_bytes, steps=(_passed_over(kind.items, f"{path}[]"),))
            )
        case AvroMap():
            inner = [ReadStep("skip_sized", f"{path}{{}}")]
            _pass_over(kind.values, f"{path}{{}}", inner)
            size = 1 + kind.values.least_bytes
            steps.append(ReadStep("array", path, size=size, steps=(ReadStep("record", path, steps=inner),)))
        case AvroPrimitive(name="string" | "bytes"):
            steps.append(ReadStep("skip_sized", path))
        case _:
            steps.append(ReadStep("skip_varint", path))


def _passed_over(kind: AvroType, path: str) -> ReadStep:
    """Returns one step that skips a value."""
    steps: list[ReadStep] = []
    _pass_over(kind, path, steps)
    return steps[0] if len(steps) == 1 else ReadStep("record", path, steps=steps)


def _union_passed_over(kind: AvroUnion, path: str) -> ReadStep:
    steps = [_passed_over(each, path) for each in kind.branches]
    nulls = [number for number, each in enumerate(kind.branches) if is_null(each)]
    if len(steps) == 2 and nulls:
        step = steps[1 - nulls[0]]
        # A record whose only field is such a union too would be the step of that field: each of the two has a branch
        # number to read.
        step = step if step.null < 0 else ReadStep("record", path, steps=(step,))
        return replace(step, null=nulls[0])
    return ReadStep("union", path, steps=steps)
