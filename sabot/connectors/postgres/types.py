"""The Arrow type of a column of PostgreSQL, and the kind of its values for `ChangeDecoder`.

Types are known by what the catalog says of them, because enums, domains, ranges and the types of extensions have other oids
in each database.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from sabot.base.dataclass import dataclass
from sabot.errors import UserError

__all__ = ["TYPES_QUERY", "PostgresType", "column_of", "types_of"]

TYPES_QUERY = """
WITH RECURSIVE needed(oid) AS (
    SELECT unnest(%s::oid[])
    UNION
    SELECT within.oid FROM needed JOIN pg_type t ON t.oid = needed.oid
    LEFT JOIN pg_range r ON t.oid IN (r.rngtypid, r.rngmultitypid)
    CROSS JOIN LATERAL (VALUES (t.typelem), (t.typbasetype), (r.rngsubtype)) AS within(oid)
    WHERE within.oid <> 0
)
SELECT t.oid, t.typname, t.typtype, t.typelem, t.typbasetype, t.typtypmod, coalesce(r.rngsubtype, 0), coalesce(p.proname, '')
FROM needed JOIN pg_type t ON t.oid = needed.oid
LEFT JOIN pg_range r ON t.oid IN (r.rngtypid, r.rngmultitypid)
LEFT JOIN pg_proc p ON p.oid = t.typsend
"""
"""The types with these oids (%s, a list), and those that they consist of, as `types_of` takes them."""


@dataclass(frozen=True)
class PostgresType:
    """A row of pg_type. `kind`: b base, d domain, e enum, r range, m multirange, c composite, p pseudo. `item`: the type of the items of an
    array; `base` and `modifier`: of a domain; `bound`: of a range. `sends`: the function that writes its binary format.
    """

    oid: int
    name: str
    kind: str
    item: int
    base: int
    modifier: int
    bound: int
    sends: str


_BY_SEND: Mapping[str, tuple[pa.DataType, str]] = {
    "boolsend": (pa.bool_(), "bool"),
    "int2send": (pa.int16(), "int2"),
    "int4send": (pa.int32(), "int4"),
    "int8send": (pa.int64(), "int8"),
    "oidsend": (pa.int64(), "oid"),
    "float4send": (pa.float32(), "float4"),
    "float8send": (pa.float64(), "float8"),
    "numeric_send": (pa.string(), "numeric"),
    "date_send": (pa.date32(), "date"),
    "time_send": (pa.time64("us"), "time"),
    "timetz_send": (pa.string(), "timetz"),
    "timestamp_send": (pa.timestamp("us"), "timestamp"),
    "timestamptz_send": (pa.timestamp("us", "UTC"), "timestamptz"),
    "interval_send": (pa.string(), "interval"),
    "byteasend": (pa.binary(), "bytea"),
    "uuid_send": (pa.string(), "uuid"),
    "jsonb_send": (pa.string(), "jsonb"),
    "inet_send": (pa.string(), "inet"),
    "cidr_send": (pa.string(), "inet"),
    "macaddr_send": (pa.string(), "macaddr"),
    "macaddr8_send": (pa.string(), "macaddr"),
    "bit_send": (pa.string(), "bits"),
    "varbit_send": (pa.string(), "bits"),
    "vector_send": (pa.list_(pa.float32()), "vector"),
    **dict.fromkeys(
        (
            "textsend",
            "varcharsend",
            "bpcharsend",
            "namesend",
            "json_send",
            "xml_send",
            "enum_send",
            "citextsend",
        ),
        (pa.string(), "text"),
    ),
}
_DIGITS = 76


def types_of(rows: Iterable[Sequence[Any]]) -> dict[int, PostgresType]:
    """Returns the types of the rows of TYPES_QUERY, by oid."""
    return {row[0]: PostgresType(*row) for row in rows}


def column_of(name: str, oid: int, modifier: int, types: Mapping[int, PostgresType]) -> tuple[pa.DataType, str]:
    """Returns the Arrow type of a column, and the kind of its values. `modifier`: of its type (atttypmod). `types`: its type, and those
    that this consists of. Raises UserError for a type that has no place in Arrow.
    """
    found = _found(types[oid], modifier, types)
    if found is None:
        raise UserError(
            f"column {name}: values of the type {types[oid].name} cannot be read",
            hint="leave the column out, or add one that has the value as text",
        )
    return found


def _found(given: PostgresType, modifier: int, types: Mapping[int, PostgresType]) -> tuple[pa.DataType, str] | None:
    if given.kind == "d":
        return _found(types[given.base], given.modifier, types)
    if given.kind in "rm":
        bound = _found(types[given.bound], -1, types)
        if bound is None or " " in bound[1]:
            return None
        return pa.string(), f"{'range' if given.kind == 'r' else 'multirange'} {bound[1]}"
    if given.sends == "array_send":
        item = _found(types[given.item], modifier, types)
        if item is None or item[1].split()[0] in ("list", "multirange"):
            return None
        return pa.list_(item[0]), f"list {item[1]}"
    if given.sends == "numeric_send" and modifier >= 4:
        return _numeric(modifier - 4)
    return _BY_SEND.get(given.sends)


def _numeric(modifier: int) -> tuple[pa.DataType, str]:
    """A scale may be negative, or above the precision: numeric(3, -2) has 12,300, and numeric(2, 5) has 0.00012."""
    precision, scale = modifier >> 16 & 0xFFFF, modifier & 0x7FF
    scale -= 2 * (scale & 0x400)  # 11 bits with a sign
    digits = max(precision - min(scale, 0), scale)
    if digits > _DIGITS:
        return _BY_SEND["numeric_send"]
    kind = pa.decimal128 if digits <= 38 else pa.decimal256
    return kind(digits, max(scale, 0)), "decimal"
