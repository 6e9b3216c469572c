"""`Stream.describe`: a summary of each column of a bounded stream: exact for up to EXACT_ROWS rows, and with estimates for
more, so that its memory is bounded.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sabot.api import aggregates
from sabot.api.aggregates import Aggregate, count, max, mean, min, stddev
from sabot.api.expr import col

QUARTILES = (0.25, 0.5, 0.75)
EXACT_ROWS = 1_000_000

_SCHEMA = pa.schema(
    [
        ("column", pa.string()),
        ("type", pa.string()),
        ("count", pa.int64()),
        ("nulls", pa.int64()),
        ("distinct", pa.int64()),
        ("mean", pa.float64()),
        ("std", pa.float64()),
        ("min", pa.string()),
        ("25%", pa.float64()),
        ("50%", pa.float64()),
        ("75%", pa.float64()),
        ("max", pa.string()),
    ]
)


def aggregates_of(schema: pa.Schema) -> dict[str, Aggregate]:
    """Returns the aggregates that `Stream.describe` computes, by name. "rows" is the number of rows. The name of a
    statistic of a column begins with the number of the column, from 0, such as "0.min" for the least value of the
    first column.

    A column has only the statistics that its type allows: nested columns have just a count, and only numbers have a
    mean, a standard deviation and quartiles.
    """
    wanted: dict[str, Aggregate] = {"rows": count()}
    for i, column in enumerate(schema):
        name, number = column.name, _is_number(column.type)
        wanted[f"{i}.count"] = count(name)
        if not pa.types.is_nested(column.type):
            wanted[f"{i}.distinct"] = aggregates.approx_count_distinct(name)
            wanted |= {f"{i}.min": min(name), f"{i}.max": max(name)}
        if number:
            value = col(name).cast("float64") if pa.types.is_decimal(column.type) else col(name)
            wanted |= {f"{i}.mean": mean(value), f"{i}.std": stddev(value)}
            wanted |= {f"{i}.{q:.0%}": aggregates.approx_quantile(value, q) for q in QUARTILES}
    return wanted


def figures_of(rows: pa.Table) -> dict[str, Any]:
    """Returns the exact statistics of these rows, by the names that `aggregates_of` uses. NaN is counted as a value
    and makes the mean NaN; it is ignored for the least and the greatest value and for the quartiles.
    """
    values: dict[str, Any] = {"rows": rows.num_rows}
    for i, column in enumerate(rows.columns):
        known = column.drop_null()
        values[f"{i}.count"] = len(known)
        if pa.types.is_nested(column.type):
            continue
        if pa.types.is_floating(column.type):
            known = pc.add(known.cast(pa.float64()), 0.0)  # 0.0 and -0.0 are one value
        values[f"{i}.distinct"] = len(pc.unique(known))
        ordered = known.filter(pc.invert(pc.is_nan(known))) if pa.types.is_floating(column.type) else known
        if pa.types.is_duration(column.type):  # pyarrow does not compare them
            ordered = ordered.cast(pa.int64())
        ends = pc.min_max(ordered)
        values |= {f"{i}.{end}": ends[end].cast(known.type).as_py() for end in ("min", "max")}
        if _is_number(column.type):
            numbers = known.cast(pa.float64(), safe=False)
            deviation = pc.stddev(numbers, ddof=1)
            if pa.types.is_decimal(column.type):
                ordered = ordered.cast(pa.float64())
            values |= {f"{i}.mean": pc.mean(numbers).as_py(), f"{i}.std": deviation.as_py()}
            quartiles = pc.quantile(ordered, list(QUARTILES), interpolation="nearest").to_pylist()
            values |= {f"{i}.{q:.0%}": found for q, found in zip(QUARTILES, quartiles, strict=True)}
    return values


def table_of(schema: pa.Schema, values: dict[str, Any]) -> pa.Table:
    """Returns a table with one row of statistics for each column of the stream.

    `schema`: the columns of the stream. `values`: the statistics by the names that `aggregates_of` uses. A missing
    statistic is null in the table; if "rows" is missing, it counts as 0.
    """
    rows = []
    for i, column in enumerate(schema):
        row: dict[str, Any] = {field.name: values.get(f"{i}.{field.name}") for field in _SCHEMA}
        row |= {"column": column.name, "type": str(column.type), "count": row["count"] or 0}
        row["nulls"] = (values.get("rows") or 0) - row["count"]
        least, greatest = row["min"], row["max"]
        if row["25%"] is not None and least <= greatest:  # quartiles are estimates, and may be slightly out of range
            row |= {f"{q:.0%}": float(sorted([least, row[f"{q:.0%}"], greatest])[1]) for q in QUARTILES}
        row |= {end: None if row[end] is None else str(row[end]) for end in ("min", "max")}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
