"""The types of columns in Iceberg, as Arrow types."""

import re
from typing import Any

import pyarrow as pa

from sabot.connectors.lake.types import check_times, lake_type

_BY = re.compile(r"(year|month|day|hour|bucket|truncate)\((?:(\d+), *)?([^()]+)\)")
_YEARS = -719_162, 2_932_896  # the days of the years 1 to 9999, since 1970

_WIDER = {kind: pa.int32() for kind in (pa.int8(), pa.int16(), pa.uint8(), pa.uint16())} | {
    kind: pa.time64("us") for kind in (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns"))
}
"""The types that Iceberg has for short integers and for times."""


def iceberg_type(kind: Any) -> pa.DataType:
    """Returns the type of a column in Iceberg, as `lake_type`."""
    return lake_type(kind, "Iceberg", _WIDER.get)


def iceberg_schema(schema: pa.Schema) -> pa.Schema:
    """Returns the columns with the types that they have in Iceberg. Raises UserError for a type that Iceberg does not have."""
    return pa.schema([pa.field(field.name, iceberg_type(field.type)) for field in schema])


def check_years(data: pa.RecordBatch, where: str) -> None:
    """Raises UserError for a date or timestamp outside of the years 1 to 9999, of which pyiceberg cannot compute statistics."""
    check_times(
        data, where, "pyiceberg", _YEARS, lambda kind: pa.types.is_date(kind) or bool(pa.types.is_timestamp(kind))
    )


def widens(column: Any, kind: Any) -> bool:
    """Returns True if a column can become one of `kind`, both types of Iceberg, while its files stay as they are."""
    types = pa.types
    if types.is_decimal(column) and types.is_decimal(kind):
        return bool(column.scale == kind.scale and column.precision < kind.precision)
    return (column, kind) in ((pa.int32(), pa.int64()), (pa.float32(), pa.float64()))


def split(by: str) -> tuple[str, str]:
    """Returns (transform, column) of an item of `partition_by`: "day(ts)" is ("day", "ts"), "region" ("identity", "region")."""
    if (found := _BY.fullmatch(by)) is None:
        return "identity", by
    name, width, column = found.groups()
    return (name if width is None else f"{name}[{width}]"), column.strip()


def takes(transform: str, kind: Any) -> bool:
    """Returns True if rows can be divided by a transform of a column of this type."""
    types, name = pa.types, transform.partition("[")[0]
    if name == "identity":
        return not types.is_nested(kind) and not types.is_floating(kind)
    if name in ("year", "month", "day", "hour"):
        return types.is_timestamp(kind) or (types.is_date(kind) and name != "hour")
    many = types.is_integer(kind) or types.is_decimal(kind) or types.is_string(kind) or types.is_binary(kind)
    if name == "bucket":
        many = many or types.is_temporal(kind)
    return bool(many and transform != name)
