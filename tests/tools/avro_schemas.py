"""Random Avro schemas with values of theirs, as fastavro takes them, for property tests."""

import string
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

__all__ = ["as_read", "evolved", "schemas", "values"]

_EPOCH = datetime(1970, 1, 1)
_NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=5)
_TEXTS = st.text(max_size=20)
_MICROS = st.integers(-(10**15), 10**15)
_PLAIN: dict[str, Any] = {
    "null": st.none(),
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1) | st.integers(-100, 100),
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "bytes": st.binary(max_size=20),
    "string": _TEXTS,
}
_LOGICAL: dict[tuple[str, str], Any] = {
    ("int", "date"): st.dates(),
    ("int", "time-millis"): st.integers(0, 86_399_999).map(lambda ms: (_EPOCH + timedelta(milliseconds=ms)).time()),
    ("long", "time-micros"): st.times(),
    ("long", "timestamp-millis"): _MICROS.map(
        lambda n: (_EPOCH + timedelta(milliseconds=n // 100)).replace(tzinfo=UTC)
    ),
    ("long", "timestamp-micros"): _MICROS.map(lambda n: (_EPOCH + timedelta(microseconds=n)).replace(tzinfo=UTC)),
    ("long", "local-timestamp-millis"): _MICROS.map(lambda n: _EPOCH + timedelta(milliseconds=n // 100)),
    ("long", "local-timestamp-micros"): _MICROS.map(lambda n: _EPOCH + timedelta(microseconds=n)),
    ("string", "uuid"): st.uuids(),
}


@st.composite
def schemas(draw: Any, depth: int = 3, name: str = "R") -> dict[str, Any]:
    """The schema of a record with up to five fields."""
    names = draw(st.lists(_NAMES, max_size=5, unique=True))
    fields = [{"name": each, "type": draw(_types(depth, f"{name}_{number}"))} for number, each in enumerate(names)]
    return {"type": "record", "name": name, "fields": fields}


@st.composite
def _types(draw: Any, depth: int, name: str, nullable: bool = True) -> Any:
    kinds = ["plain", "plain", "logical", "decimal", "enum", "fixed"]
    if nullable:
        kinds += ["union", "union"]
    if depth:
        kinds += ["array", "map", "record"]
    kind = draw(st.sampled_from(kinds))
    if kind == "plain":
        return draw(st.sampled_from(sorted(_PLAIN)))
    if kind == "logical":
        base, logical = draw(st.sampled_from(sorted(_LOGICAL)))
        return {"type": base, "logicalType": logical}
    if kind == "decimal":
        precision = draw(st.integers(1, 70))
        about = {"logicalType": "decimal", "precision": precision, "scale": draw(st.integers(0, precision))}
        if draw(st.booleans()):
            return {"type": "bytes", **about}
        return {"type": "fixed", "name": name, "size": draw(st.integers(30, 40)), **about}
    if kind == "enum":
        return {"type": "enum", "name": name, "symbols": draw(st.lists(_NAMES, min_size=1, max_size=4, unique=True))}
    if kind == "fixed":
        return {"type": "fixed", "name": name, "size": draw(st.integers(1, 9))}
    if kind == "union":
        inner = draw(_types(depth, name, nullable=False).filter(lambda each: each != "null"))
        return draw(st.permutations(["null", inner]))
    if kind == "array":
        return {"type": "array", "items": draw(_types(depth - 1, name).filter(lambda each: each != "null"))}
    if kind == "map":
        return {"type": "map", "values": draw(_types(depth - 1, name))}
    return draw(schemas(depth - 1, name))


def values(kind: Any) -> Any:
    """A strategy of values of a type."""
    if isinstance(kind, list):
        return st.one_of([values(each) for each in kind])
    if isinstance(kind, str):
        return _PLAIN[kind]
    base = kind["type"]
    if kind.get("logicalType") == "decimal":
        precision, scale = kind["precision"], kind["scale"]
        return st.integers(-(10**precision) + 1, 10**precision - 1).map(
            lambda whole: Decimal((int(whole < 0), tuple(map(int, str(abs(whole)))), -scale))
        )
    if "logicalType" in kind:
        return _LOGICAL[base, kind["logicalType"]]
    if base == "record":
        return st.fixed_dictionaries({each["name"]: values(each["type"]) for each in kind["fields"]})
    if base == "array":
        return st.lists(values(kind["items"]), max_size=4)
    if base == "map":
        return st.dictionaries(_TEXTS, values(kind["values"]), max_size=3)
    if base == "enum":
        return st.sampled_from(kind["symbols"])
    if base == "fixed":
        return st.binary(min_size=kind["size"], max_size=kind["size"])
    return _PLAIN[base]


_PROMOTED = {
    "int": ["long", "float", "double"],
    "long": ["float", "double"],
    "float": ["double"],
    "string": ["bytes"],
    "bytes": ["string"],
}
_ADDED: list[tuple[Any, Any]] = [
    ("int", 7),
    ("string", "é"),
    (["null", "long"], None),
    ({"type": "array", "items": "double"}, [0.5, 1]),
    ({"type": "map", "values": "boolean"}, {"k": True}),
]


@st.composite
def evolved(draw: Any, record: dict[str, Any]) -> dict[str, Any]:
    """A schema that reads what this one wrote: fields are left out, come in another order, under another name, as a wider type or one that
    may be null, and there are new ones.
    """
    fields = []
    for number, field in enumerate(record["fields"]):
        how = draw(st.sampled_from(["keep", "keep", "drop", "rename"]))
        if how != "drop":
            kind = draw(_widened(field["type"]))
            about = (
                {"name": f"{field['name']}_{number}", "aliases": [field["name"]]}
                if how == "rename"
                else {"name": field["name"]}
            )
            fields.append({**about, "type": kind})
    for number in range(draw(st.integers(0, 2))):
        kind, default = draw(st.sampled_from(_ADDED))
        fields.append({"name": f"added_{number}", "type": kind, "default": default})
    return {**record, "fields": draw(st.permutations(fields))}


@st.composite
def _widened(draw: Any, kind: Any) -> Any:
    if isinstance(kind, list):
        return [
            each if each == "null" else draw(_widened(each).filter(lambda made: not isinstance(made, list)))
            for each in kind
        ]
    if isinstance(kind, dict):
        if kind["type"] == "record":
            return draw(evolved(kind))
        if kind["type"] == "enum":
            return {**kind, "symbols": draw(st.permutations([*kind["symbols"], "OTHER"]))}
        for inner in ("items", "values"):
            if inner in kind:
                return {**kind, inner: draw(_widened(kind[inner]))}
    elif draw(st.booleans()):
        kind = draw(st.sampled_from(_PROMOTED.get(kind, [kind])))
    return ["null", kind] if kind != "null" and draw(st.booleans()) else kind


def as_read(value: Any) -> Any:
    """A value that fastavro takes or gives, or a row of Arrow's, in one form for both: maps as dicts (empty ones as []), UUIDs as texts."""
    if isinstance(value, dict):
        return {name: as_read(each) for name, each in value.items()} or []
    if isinstance(value, list):
        if value and all(isinstance(each, tuple) for each in value):
            return {name: as_read(each) for name, each in value}
        return [as_read(each) for each in value]
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime):
        return value.replace(tzinfo=None)
    assert isinstance(value, date | time | Decimal | str | bytes | int | float | None), value
    return value
