"""Methods of polars and pandas that expressions do not have: the error names the way to do the same here."""

from typing import TYPE_CHECKING, NoReturn

_AGGREGATES = {
    "count": "count",
    "first": "first",
    "implode": "collect_list",
    "last": "last",
    "max": "max",
    "mean": "mean",
    "min": "min",
    "n_unique": "count_distinct",
    "nunique": "count_distinct",
    "std": "stddev",
    "sum": "sum",
    "var": "variance",
}
_HERE = {
    "apply": "map_batches(function) or flat_map(function, schema=…) of the stream",
    "astype": 'cast("int64")',
    "cum_sum": 'key_by("k").over(total=sabot.sum("x")) of the stream',
    "diff": 'col("x") - col("before") after key_by("k").over(before=sabot.lag("x"))',
    "eq": "==",
    "fillna": "fill_null(0)",
    "isin": "is_in([1, 2])",
    "isna": "is_null()",
    "isnull": "is_null()",
    "floordiv": "//",
    "map_elements": "map_batches(function) or flat_map(function, schema=…) of the stream",
    "filter": 'when(col("ok")).then("x"), or sabot.sum("x").filter(…) of an aggregate',
    "median": 'sabot.median("x"), in aggregate(…) of the stream',
    "mod": "%",
    "notna": "is_not_null()",
    "over": 'key_by("k").over(total=sabot.sum("x")) of the stream',
    "pow": "**",
    "rank": 'sabot.row_number(), in over(…) of the stream, or top_n(n, by="x", rank="place") after key_by or window',
    "rolling_mean": 'key_by("k").over(preceding=2, mean=sabot.mean("x")) of the stream',
    "sort": 'sort("x") of the stream',
    "unique": 'deduplicate("x") of the stream',
    "quantile": 'sabot.quantile("x", 0.9), or sabot.approx_quantile("x", 0.9) for many values, in aggregate(…) of the stream',
    "shift": 'sabot.lag("x"), in over(…) of the stream',
    "value_counts": 'group_by("x").aggregate(count=sabot.count()) of the stream',
    "top_k": 'sabot.top_k("x", 3), in aggregate(…) of the stream',
    **{there: f'sabot.{here}("x"), in aggregate(…) or over(…) of the stream' for there, here in _AGGREGATES.items()},
}


class MissingMethods:
    """A base class whose AttributeError names the counterpart of a method of polars or pandas."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            here, what = _HERE.get(name), f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(f"{what} (here it is {here})" if here else what, name=name, obj=self)
