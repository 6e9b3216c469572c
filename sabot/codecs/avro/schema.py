"""Parses Avro schemas, given as JSON, into checked types. The specification is
https://avro.apache.org/docs/1.12.0/specification/.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sabot.base.config import FIELDS
from sabot.errors import UserError

NO_DEFAULT: Any = object()
"""The default of a field that has none."""

_DEEPEST = 60  # levels of types; Arrow imports up to 64
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_LEAST_BYTES = {"null": 0, "boolean": 1, "int": 1, "long": 1, "float": 4, "double": 8, "bytes": 1, "string": 1}
_LOGICAL = {
    "date": ("int",),
    "time-millis": ("int",),
    "time-micros": ("long",),
    "time-nanos": ("long",),
    "timestamp-millis": ("long",),
    "timestamp-micros": ("long",),
    "timestamp-nanos": ("long",),
    "local-timestamp-millis": ("long",),
    "local-timestamp-micros": ("long",),
    "local-timestamp-nanos": ("long",),
    "uuid": ("string", "fixed"),
    "decimal": ("bytes", "fixed"),
}
UNITS_OF_DAY = {"time-millis": 86_400_000, "time-micros": 86_400_000_000, "time-nanos": 86_400_000_000_000}
"""The types of times of day, and the units of a day, which is longer than each time."""
_CONNECT_DIGITS = 64  # of a decimal whose number of digits Connect does not know
_CONNECT = {
    "org.apache.kafka.connect.data.Date": "date",
    "org.apache.kafka.connect.data.Decimal": "decimal",
    "org.apache.kafka.connect.data.Time": "time-millis",
    "org.apache.kafka.connect.data.Timestamp": "timestamp-millis",
    "io.debezium.time.Date": "date",
    "io.debezium.time.Time": "time-millis",
    "io.debezium.time.MicroTime": "time-micros",
    "io.debezium.time.NanoTime": "time-nanos",
    "io.debezium.time.Timestamp": "local-timestamp-millis",
    "io.debezium.time.MicroTimestamp": "local-timestamp-micros",
    "io.debezium.time.NanoTimestamp": "local-timestamp-nanos",
}
"""The types to which Connect's Avro converter gives only a name, as `connect.name`: Debezium's times and, in converters
that write no logicalType, Connect's own.
"""


@dataclass(frozen=True, slots=True)
class Logical:
    """The meaning of a value beyond its encoding. `precision`, `scale`: for decimals."""

    name: str
    precision: int = 0
    scale: int = 0

    def __str__(self) -> str:
        return f"decimal({self.precision}, {self.scale})" if self.name == "decimal" else self.name


@dataclass(frozen=True, eq=False)
class AvroPrimitive:
    """The type null, boolean, int, long, float, double, bytes or string."""

    name: str
    logical: Logical | None = None
    weight: int = field(default=1, init=False)
    depth: int = field(default=1, init=False)

    @property
    def least_bytes(self) -> int:
        """The fewest bytes that a value of this type takes in a payload."""
        return _LEAST_BYTES[self.name]

    def __str__(self) -> str:
        return self.name if self.logical is None else f"{self.name} ({self.logical})"


@dataclass(frozen=True, eq=False)
class AvroFixed:
    """A type with a fixed number of bytes. `name` includes the namespace, like all names."""

    name: str
    size: int
    aliases: frozenset[str]
    logical: Logical | None = None
    weight: int = field(default=1, init=False)
    depth: int = field(default=1, init=False)

    @property
    def least_bytes(self) -> int:
        """The bytes of a value."""
        return self.size

    def __str__(self) -> str:
        return f"fixed({self.size})" if self.logical is None else f"fixed({self.size}) ({self.logical})"


@dataclass(frozen=True, eq=False)
class AvroEnum:
    """A type whose values are symbols. `default`: the symbol for a writer's symbol that this type does not have."""

    name: str
    symbols: tuple[str, ...]
    aliases: frozenset[str]
    default: str | None
    weight: int = field(default=1, init=False)
    depth: int = field(default=1, init=False)
    least_bytes: int = field(default=1, init=False)

    def __str__(self) -> str:
        return f"enum {self.name}"


@dataclass(frozen=True, eq=False)
class _Nested:
    """A type that contains other types. A named type is counted each time that it is used."""

    @property
    def below(self) -> "tuple[AvroType, ...]":
        """The types that it directly contains."""
        raise NotImplementedError

    @cached_property
    def weight(self) -> int:
        """The number of types: this one, and all that it contains at any depth."""
        return 1 + sum(each.weight for each in self.below)

    @cached_property
    def depth(self) -> int:
        """The number of levels of types, at least 1."""
        return 1 + max((each.depth for each in self.below), default=0)


@dataclass(frozen=True, eq=False)
class AvroArray(_Nested):
    """A list of any number of items."""

    items: "AvroType"
    least_bytes: int = field(default=1, init=False)

    @property
    def below(self) -> "tuple[AvroType, ...]":
        return (self.items,)

    def __str__(self) -> str:
        return "array"


@dataclass(frozen=True, eq=False)
class AvroMap(_Nested):
    """A map from texts to values."""

    values: "AvroType"
    least_bytes: int = field(default=1, init=False)

    @property
    def below(self) -> "tuple[AvroType, ...]":
        return (self.values,)

    def __str__(self) -> str:
        return "map"


@dataclass(frozen=True, eq=False)
class AvroUnion(_Nested):
    """A value of one of several types."""

    branches: "tuple[AvroType, ...]"
    least_bytes: int = field(default=1, init=False)

    @property
    def below(self) -> "tuple[AvroType, ...]":
        return self.branches

    def __str__(self) -> str:
        return f"union of {', '.join(map(str, self.branches))}"


@dataclass(frozen=True, eq=False)
class AvroField:
    """A field of a record. `default`: as JSON, or NO_DEFAULT."""

    name: str
    type: "AvroType"
    default: Any
    aliases: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class AvroRecord(_Nested):
    """A record of named fields."""

    name: str
    fields: tuple[AvroField, ...]
    aliases: frozenset[str]

    @property
    def below(self) -> "tuple[AvroType, ...]":
        return tuple(each.type for each in self.fields)

    @cached_property
    def least_bytes(self) -> int:
        """The fewest bytes that a value of this type takes in a payload."""
        return sum(each.type.least_bytes for each in self.fields)

    def __str__(self) -> str:
        return f"record {self.name}"


AvroType = AvroPrimitive | AvroFixed | AvroEnum | AvroArray | AvroMap | AvroUnion | AvroRecord


SchemaLike = Mapping[str, Any] | str | os.PathLike[str] | AvroRecord
"""A schema: a dict, JSON text, the path of a file with it, or a result of `parsed_record`."""


def parsed_record(schema: SchemaLike) -> AvroRecord:
    """Returns the record type of a schema. Raises UserError for a schema that is not a record, and for records that
    contain themselves.
    """
    if isinstance(schema, AvroRecord):
        return schema
    made = _Parser().type(_json_of(schema), "", "the schema", 1)
    if not isinstance(made, AvroRecord):
        raise UserError(
            f"the Avro schema is of {made}, not of a record",
            hint="a payload is a row: put the type into a field of a record",
        )
    return made


def _json_of(schema: Mapping[str, Any] | str | os.PathLike[str]) -> Any:
    if isinstance(schema, os.PathLike):
        try:
            schema = Path(schema).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the Avro schema {os.fspath(schema)!r} cannot be read: {error}") from error
    if isinstance(schema, str):
        try:
            return json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"the Avro schema is not JSON: {error}",
                hint="a schema is a dict, its JSON text, or a pathlib.Path of its file",
            ) from error
    return schema


class _Parser:
    """A parser of one schema. `_named` has each named type from its definition on; its value is None while the fields
    of the record are being parsed.
    """

    def __init__(self) -> None:
        self._named: dict[str, AvroType | None] = {}

    def type(self, node: Any, namespace: str, where: str, depth: int) -> AvroType:
        """Returns the type for a JSON value. `where`: the beginning of error messages. Raises UserError."""
        if depth > _DEEPEST:
            raise UserError(f"{where}: types are nested deeper than {_DEEPEST}")
        if isinstance(node, str):
            made = AvroPrimitive(node) if node in _LEAST_BYTES else self._known(node, namespace, where)
        elif isinstance(node, list):
            made = self._union(node, namespace, where, depth)
        elif isinstance(node, Mapping) and "type" in node:
            made = self._complex(node, namespace, where, depth)
        else:
            raise UserError(f"{where}: {json.dumps(node, default=repr)[:60]} is not an Avro type")
        if made.depth > _DEEPEST or made.weight > FIELDS:
            raise UserError(f"{where}: more than {FIELDS} types, or nested deeper than {_DEEPEST}")
        return made

    def _known(self, name: str, namespace: str, where: str) -> AvroType:
        for full in (_full_name(name, namespace), name):
            if full in self._named:
                made = self._named[full]
                if made is None:
                    raise UserError(
                        f"{where}: the record {full!r} contains itself", hint="columns have no recursive types"
                    )
                return made
        raise UserError(f"{where}: {name!r} is not an Avro type", hint="a named type is defined before it is used")

    def _union(self, node: list[Any], namespace: str, where: str, depth: int) -> AvroUnion:
        branches = tuple(self.type(each, namespace, where, depth + 1) for each in node)
        kinds = [each.name if hasattr(each, "name") else type(each) for each in branches]
        if not branches or AvroUnion in kinds or len(set(kinds)) < len(kinds):
            raise UserError(f"{where}: a union has branches of different types, and none is a union")
        return AvroUnion(branches)

    def _complex(self, node: Mapping[str, Any], namespace: str, where: str, depth: int) -> AvroType:
        kind = node["type"]
        if kind == "array" or kind == "map":
            key = "items" if kind == "array" else "values"
            if key not in node:
                raise UserError(f"{where}: this {kind} has no {key!r}")
            inner = self.type(node[key], namespace, f"{where}{'[]' if kind == 'array' else '{}'}", depth + 1)
            return AvroArray(inner) if kind == "array" else AvroMap(inner)
        if kind in ("record", "error", "enum", "fixed"):
            return self._definition(kind, node, namespace, where, depth)
        if isinstance(kind, str) and kind in _LEAST_BYTES:
            return AvroPrimitive(kind, _logical(node, kind, 0))
        return self.type(kind, namespace, where, depth + 1)  # {"type": {"type": …}}

    def _definition(self, kind: str, node: Mapping[str, Any], namespace: str, where: str, depth: int) -> AvroType:
        name = node.get("name")
        space = namespace if node.get("namespace") is None else node["namespace"]  # some generators write null
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(space, str):
            raise UserError(
                f"{where}: {name!r} is not a name for a type", hint="letters, digits and _, with dots between them"
            )
        full = _full_name(name, space)
        space = full.rpartition(".")[0]
        if full in self._named:
            raise UserError(f"{where}: {full!r} is defined twice")
        aliases = frozenset(_full_name(each, space) for each in _texts(node.get("aliases", []), f"{where}: aliases"))
        made: AvroType
        if kind == "fixed":
            size = node.get("size")
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**31:
                raise UserError(f"{where}: {size!r} is not a size")
            made = AvroFixed(full, size, aliases, _logical(node, "fixed", size))
        elif kind == "enum":
            symbols = _texts(node.get("symbols"), f"{where}: symbols")
            default = node.get("default")
            if len(set(symbols)) < len(symbols) or not all(map(_NAME.fullmatch, symbols)):
                raise UserError(f"{where}: the symbols of an enum are different names")
            if default is not None and default not in symbols:
                raise UserError(f"{where}: the default {default!r} is not a symbol of the enum")
            made = AvroEnum(full, symbols, aliases, default)
        else:
            self._named[full] = None
            made = AvroRecord(full, self._fields(node.get("fields"), space, where, depth), aliases)
        self._named[full] = made
        return made

    def _fields(self, nodes: Any, namespace: str, where: str, depth: int) -> tuple[AvroField, ...]:
        if not isinstance(nodes, list):
            raise UserError(f"{where}: a record has a list of fields")
        made: dict[str, AvroField] = {}
        for node in nodes:
            name = node.get("name") if isinstance(node, Mapping) else None
            if not isinstance(name, str) or not _NAME.fullmatch(name) or "." in name or name in made:
                raise UserError(f"{where}: a field has a name of its own, not {name!r}", hint="letters, digits and _")
            place = name if where == "the schema" else f"{where}.{name}"
            if "type" not in node:
                raise UserError(f"{place}: the field has no type")
            kind = self.type(node["type"], namespace, place, depth + 1)
            aliases = _texts(node.get("aliases", []), f"{place}: aliases")
            made[name] = AvroField(name, kind, node.get("default", NO_DEFAULT), aliases)
        return tuple(made.values())


def _full_name(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _texts(values: Any, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise UserError(f"{where}: not a list of names")
    return tuple(values)


def _logical(node: Mapping[str, Any], kind: str, size: int) -> Logical | None:
    """Returns the logical type of a node, or None. A logical type that does not fit its type is ignored, as the
    specification demands.
    """
    name = node.get("logicalType") or _CONNECT.get(str(node.get("connect.name")))
    if not isinstance(name, str) or kind not in _LOGICAL.get(name, ()):
        return None
    if name == "uuid" and kind == "fixed" and size != 16:
        return None
    if name != "decimal":
        return Logical(name)
    precision, scale = _digits(node) if "logicalType" not in node else (node.get("precision"), node.get("scale", 0))
    if not isinstance(precision, int) or not isinstance(scale, int) or not 0 <= scale <= precision or precision < 1:
        return None
    return Logical(name, precision, scale)


def _digits(node: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the precision and the scale of a decimal to which Connect gives only a name."""
    told = node.get("connect.parameters")
    texts = told if isinstance(told, Mapping) else {}
    given = {
        name: int(text)
        for name, text in (("scale", texts.get("scale")), ("precision", texts.get("connect.decimal.precision")))
        if isinstance(text, str) and text.isdecimal()
    }
    return (
        node.get("precision", given.get("precision", _CONNECT_DIGITS)),
        node.get("scale", given.get("scale", 0)),
    )
