"""The types of columns in Delta, as Arrow types: which type a column gets, and which values a column can hold."""

from typing import Any

import pyarrow as pa

from sabot.connectors.lake.types import check_times, lake_type

_FIRST_DAY, _LAST_DAY = -96_465_292, 95_026_236  # of the years -262143 and 262142
_SIGNED = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32()}
"""The types for short unsigned integers, because Delta has only signed ones."""


def delta_schema(schema: pa.Schema) -> pa.Schema:
    """Returns the columns with the types that they have in Delta. Raises UserError for a type that Delta does not have."""
    return pa.schema([pa.field(field.name, delta_type(field.type)) for field in schema])


def columns_of(table: Any) -> pa.Schema:
    """Returns the columns of a `deltalake.DeltaTable`."""
    return pa.schema(table.schema().to_arrow())


def delta_type(kind: Any) -> pa.DataType:
    """Returns the type of a column in Delta, as `lake_type`."""
    return lake_type(kind, "Delta", lambda each: _SIGNED.get(each))


def check_days(data: pa.RecordBatch, where: str) -> None:
    """Raises UserError for a date in a year above 262142 or below -262143, of which deltalake cannot compute statistics."""
    check_times(data, where, "Delta Lake", (_FIRST_DAY, _LAST_DAY), pa.types.is_date)
