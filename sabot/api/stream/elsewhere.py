"""Methods of streams in other libraries, by name: the error for such a method names the way to do the same here."""

from typing import TYPE_CHECKING, NoReturn

HERE = {
    "agg": 'aggregate(n=sabot.count(), total=sabot.sum("x"))',
    "apply": "flat_map(function, schema=…) for rows, map_batches(function) for batches, window(…).apply(function, schema=…) for windows",
    "assign": "with_columns(name=expression)",
    "distinct": 'deduplicate("column")',
    "columns": "schema.names",
    "drop_nulls": 'filter(col("x").is_not_null())',
    "dtypes": "schema",
    "fill_null": 'with_columns(x=col("x").fill_null(0))',
    "first": "head(1)",
    "groupBy": 'group_by("column")',
    "groupby": 'group_by("column")',
    "keyBy": 'key_by("column")',
    "limit": "head(n)",
    "map": "with_columns(y=col(…)), map_batches(function), flat_map(function, schema=…)",
    "map_elements": "flat_map(function, schema=…), map_batches(function)",
    "order_by": 'sort("x"), if the stream has an end; else top_n(n, by="x") after key_by or window',
    "plot": "to_polars().plot or to_pandas().plot",
    "partition_by": 'key_by("column")',
    "show": "print()",
    "sink_csv": 'to(CsvSink("orders.csv"))',
    "sink_parquet": 'to(ParquetSink("folder"))',
    "tail": 'top_n(n, by="ts") after key_by or window: a stream has no end',
    "take": "head(n)",
    "unique": 'deduplicate("column")',
    "unnest": 'with_columns(city=col("place").struct.field("city"))',
    "value_counts": 'group_by("x").aggregate(count=sabot.count())',
    "where": 'filter(col("x") > 3)',
    "withColumn": "with_columns(name=expression)",
    "with_column": "with_columns(name=expression)",
    "write_csv": 'to(CsvSink("orders.csv"))',
    "write_parquet": 'to(ParquetSink("folder"))',
}
"""The name of a method in another library, and the way to do the same here."""


class NamedElsewhere:
    """A base class of streams whose AttributeError names the counterpart of a missing method, or the kind of stream
    that has the method.
    """

    _made_by = ""
    """The call that makes this kind of stream from a Stream; "" for a Stream."""
    _ends_in = ""
    """The methods of this kind that return a Stream."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            here = HERE.get(name) or self._of_another_kind(name)
            what = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(f"{what} (here it is {here})" if here else what, name=name, obj=self)

    def _of_another_kind(self, name: str) -> str:
        """Returns the call of this method on the kind of stream that has it, or "" if none has it."""
        kinds = NamedElsewhere.__subclasses__()
        made = [kind._made_by for kind in kinds if any(name in vars(base) for base in kind.__mro__)]
        if name.startswith("_") or not made:
            return ""
        if "" in made:
            return f"{name}(…) of a Stream: before {self._made_by}, or after {self._ends_in}"
        return f"{min(made)}.{name}(…)"
