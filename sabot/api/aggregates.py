"""Aggregates as users write them: `total=sabot.sum("amount")`. They are descriptions; operators compute the values.

Arguments are names of columns or expressions. Aggregates ignore nulls, unless their docstring says otherwise. If a
group has no values, `count`, `count_distinct` and `approx_count_distinct` are 0, `collect_list`, `collect_set` and
`top_k` are empty lists, and all other aggregates are null (as in SQL).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from types import MappingProxyType
from typing import Any, ClassVar

import pyarrow as pa

from sabot.api.expr import Expr, Operators, as_column, struct
from sabot.api.expr.words import fraction_of
from sabot.base.arrays import python_value
from sabot.base.checks import is_whole
from sabot.base.dataclass import dataclass
from sabot.errors import UserError


class UserAggregate(ABC):
    """An aggregate of your own. One object is used for all groups. The data of a group is its state: None, bool, int
    (64 bit), float, str, bytes, or lists and dicts of these. A tuple may come back as a list. Another type is a
    UserError when the state is saved or merged.

    Rows arrive in batches, and the result must not depend on where one batch ends and the next one begins. The engine
    may merge the states of several sets of rows in any grouping, but the first argument of `merge` always has the
    earlier rows: rows are in the order of arrival.
    """

    type: pa.DataType
    """The Arrow type of the values that `finish` returns."""

    @abstractmethod
    def init(self) -> Any:
        """Returns the state of a group without rows."""

    @abstractmethod
    def accumulate(self, state: Any, batch: pa.RecordBatch) -> Any:
        """Returns the state after these rows have been added. All rows are of one group. It may change `state` in
        place.

        `batch`: the rows, with the columns that were given to `aggregate_with`.
        """

    @abstractmethod
    def merge(self, a: Any, b: Any) -> Any:
        """Returns the state for the rows of both states; the rows of `a` came before those of `b`. It may change `a`
        in place, but not `b`.
        """

    @abstractmethod
    def finish(self, state: Any) -> Any:
        """Returns the value of the group, or None for null. It must not change `state`, because more rows may be
        added later.
        """


@dataclass(frozen=True, eq=False)
class _OverColumns:
    """An adapter of a UserAggregate for the engine. It accepts the rows also as a struct array, whose fields are the
    columns that the UserAggregate gets as a RecordBatch. `wants_time`: True if the rows should have their event time as
    a last column.
    """

    of: UserAggregate

    @property
    def type(self) -> pa.DataType:
        return self.of.type

    @property
    def name(self) -> str:
        return str(getattr(self.of, "name", type(self.of).__qualname__))

    @property
    def wants_time(self) -> bool:
        return bool(getattr(self.of, "wants_time", False))

    def init(self) -> Any:
        return self.of.init()

    def accumulate(self, state: Any, rows: Any) -> Any:
        if not isinstance(rows, pa.RecordBatch):
            rows = pa.RecordBatch.from_arrays(rows.flatten(), schema=pa.schema(list(rows.type)))
        return self.of.accumulate(state, rows)

    def merge(self, a: Any, b: Any) -> Any:
        return self.of.merge(a, b)

    def finish(self, state: Any) -> Any:
        return self.of.finish(state)


@dataclass(frozen=True, eq=False)
class Aggregate(Operators):
    """An aggregate, such as `sabot.sum("amount")`. In `aggregate(total=sabot.sum("amount"))` it computes the column
    `total`.

    - `kind`: the name of a function of this module, or "user".
    - `argument`: the expression over which it aggregates; None for the number of rows. For the kind "user" it is a
      struct of several columns.
    - `by`: the expression that `arg_min` and `arg_max` compare; otherwise None.
    - `options`: "ddof" of variance and stddev, "q" of approx_quantile, "k" of top_k.
    - `predicate`: only rows for which it is true are aggregated; None for all rows.
    - `function`: the user's aggregate, for the kind "user". Its method `accumulate` accepts the rows as a RecordBatch
      or as a struct array.
    - `computed`: a function from the aggregate's value to the result, both as expressions: the median, for example,
      is computed from a list of all values. None if the value is the result.
    """

    _of_engine: ClassVar[str] = "argument by columns computed expression function kind options predicate same text"

    def _of_another_kind(self, name: str) -> str:
        return f"expression().{name}(…)" if not name.startswith("_") and hasattr(Expr, name) else ""

    kind: str
    argument: Expr | None = None
    by: Expr | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    predicate: Expr | None = None
    function: "_OverColumns | None" = None
    computed: Callable[[Expr], Expr] | None = None

    def filter(self, predicate: Expr) -> "Aggregate":
        """Returns the same aggregate over only those rows for which the predicate is true. If the aggregate already
        has a predicate, both must be true. Raises UserError if `predicate` is not an expression.
        """
        if not isinstance(predicate, Expr):
            raise UserError(
                f"{self.kind}(…).filter: {predicate!r} is not an expression", hint='.filter(col("amount") > 10)'
            )
        return replace(self, predicate=predicate if self.predicate is None else self.predicate & predicate)

    @property
    def columns(self) -> frozenset[str]:
        """The names of the columns that the aggregate reads."""
        used = [each.columns for each in (self.argument, self.by, self.predicate) if each is not None]
        return frozenset().union(*used)

    def same(self, other: object) -> bool:
        """Returns True if `other` is an equal aggregate: the same function over equal expressions."""
        return (
            isinstance(other, Aggregate)
            and getattr(self.function, "of", None) is getattr(other.function, "of", None)
            and self.text() == other.text()
        )

    def text(self) -> str:
        """Returns the aggregate as plans show it."""
        if self.computed is not None:
            return self.expression().text()
        words = [each.text() for each in (self.argument, self.by) if each is not None]
        if self.function is not None and self.argument is not None:
            words = [self.function.name, *(each.text() for each in self.argument.inputs)]
        words += [f"{name}={value!r}" for name, value in self.options.items() if (name, value) != ("ddof", 1)]
        kind = "aggregate_with" if self.function is not None else self.kind
        return f"{kind}({', '.join(words)})" + (
            f".filter({self.predicate.text()})" if self.predicate is not None else ""
        )

    def __repr__(self) -> str:
        return self.text()

    # -- expressions of aggregates: `sum("amount") / count()` may take the place of an aggregate ---------------------------

    def expression(self) -> Expr:
        """Returns the value of the aggregate as an expression, so that all methods of expressions apply:
        `sabot.mean("x").expression().clip(0, 1)`.
        """
        value = Expr("aggregate", (), (("of", replace(self, computed=None)),))
        return value if self.computed is None else self.computed(value)

    def round(self, decimals: int = 0) -> Expr:
        """Returns the value of the aggregate, rounded as by `Expr.round`."""
        return self.expression().round(decimals)

    def cast(self, type: Any) -> Expr:
        """Returns the value of the aggregate, converted to another type as by `Expr.cast`."""
        return self.expression().cast(type)

    def fill_null(self, value: Any) -> Expr:
        """Returns the value of the aggregate, or `value` if it is null, for example because no row was aggregated."""
        return self.expression().fill_null(value)

    __round__ = round


def count(x: str | Expr | None = None) -> Aggregate:
    """Returns the number of rows, as int64. With `x`, it is the number of rows in which `x` is not null."""
    return Aggregate("count", None if x is None else as_column(x))


def sum(x: str | Expr) -> Aggregate:
    """Returns the sum: int64 for integers, uint64 for unsigned integers, float64 for floats.

    If the sum of a group does not fit its type, the stream stops with a DataError that names the key of the group.
    Cast the values to a wider type before to avoid this.
    """
    return Aggregate("sum", as_column(x))


def min(x: str | Expr) -> Aggregate:
    """Returns the least value. Nulls are ignored; NaN is returned only if all other values are NaN."""
    return Aggregate("min", as_column(x))


def max(x: str | Expr) -> Aggregate:
    """Returns the greatest value. Nulls are ignored; NaN is returned only if all other values are NaN."""
    return Aggregate("max", as_column(x))


def mean(x: str | Expr) -> Aggregate:
    """Returns the mean of the values, as float64."""
    return Aggregate("mean", as_column(x))


def variance(x: str | Expr, ddof: int = 1) -> Aggregate:
    """Returns the variance, as float64: the sum of squared deviations divided by n - ddof; null if there are at most
    `ddof` values.

    Raises UserError if `ddof` is not a whole number, 0 or more.
    """
    return Aggregate("variance", as_column(x), options=_freedom("variance", ddof))


def stddev(x: str | Expr, ddof: int = 1) -> Aggregate:
    """Returns the standard deviation, as float64: the square root of `variance`."""
    return Aggregate("stddev", as_column(x), options=_freedom("stddev", ddof))


def first(x: str | Expr) -> Aggregate:
    """Returns the value of the first row, even if it is null. The first row is the one with the earliest event time;
    in a stream without event time, the one that arrived first.
    """
    return Aggregate("first", as_column(x))


def last(x: str | Expr) -> Aggregate:
    """Returns the value of the last row, even if it is null. The last row is the one with the latest event time; in a
    stream without event time, the one that arrived last.
    """
    return Aggregate("last", as_column(x))


def any(x: str | Expr) -> Aggregate:
    """Returns the value of an arbitrary row. (To test whether a bool is true in any row, use `max`.)"""
    return Aggregate("any", as_column(x))


def count_distinct(x: str | Expr) -> Aggregate:
    """Returns the exact number of distinct values, as int64. The state keeps all distinct values."""
    return Aggregate("count_distinct", as_column(x))


def approx_count_distinct(x: str | Expr) -> Aggregate:
    """Returns the approximate number of distinct values, as int64. It is exact up to 512, and within 1.6 % (standard
    error) above.

    It is HyperLogLog with 4096 registers: a group needs at most about 8 KiB, however many values it has. It cannot
    remove values, so it cannot aggregate changes (updates and deletes of earlier rows): use `count_distinct` there.
    """
    return Aggregate("approx_count_distinct", as_column(x))


def approx_quantile(x: str | Expr, q: float | Sequence[float]) -> Aggregate:
    """Returns approximately the value below which the fraction `q` of the values is (0.5 is the median), as float64.
    Null and NaN are ignored.

    `q`: a fraction from 0 to 1; a list of fractions returns a list of values. Raises UserError for any other `q`.

    The exact quantile of n values is the one with index floor(q * (n - 1)) in ascending order, counted from 0; the
    result differs from it by at most 1 % of its value. The algorithm is DDSketch: a group needs 16 bytes for each 2 %
    of the range of its values (about 15 KB from 1e-3 to 1e6), however many values there are.
    """
    several = list(q) if isinstance(q, Sequence) and not isinstance(q, str) else [q]
    if not several:
        raise UserError("approx_quantile: q=[] has no fractions", hint="q=0.5, or q=[0.25, 0.5, 0.75]")
    wanted = [fraction_of("approx_quantile: q", each) for each in several]
    options = {"q": wanted if isinstance(q, Sequence) else wanted[0]}
    return Aggregate("approx_quantile", as_column(x), options=MappingProxyType(options))


def quantile(x: str | Expr, q: float, interpolation: str = "nearest") -> Aggregate:
    """Returns the exact value below which the fraction `q` of the values is, as float64. Null and NaN are ignored.
    The state keeps all values: for many values in a group use `approx_quantile`.

    `interpolation`: what to return if the fraction is between two values: "nearest", "lower", "higher", "midpoint" or
    "linear". Raises UserError if `q` is not from 0 to 1, and for any other word.
    """
    made = replace(collect_list(x), computed=lambda values: values.list.quantile(q, interpolation))
    made.expression()  # checks `q` and `interpolation`
    return made


def median(x: str | Expr) -> Aggregate:
    """Returns the exact median, as float64. For an even number of values it is the mean of the two in the middle.
    Null and NaN are ignored. The state keeps all values.
    """
    return replace(collect_list(x), computed=lambda values: values.list.median())


def top_k(x: str | Expr, k: int) -> Aggregate:
    """Returns a list of the `k` greatest values, the greatest first. Equal values are repeated; null and NaN are
    ignored.

    Raises UserError if `k` is not a whole number, 1 or more.
    """
    k = python_value(k)
    if not is_whole(k, 1):
        raise UserError(f"top_k: k={k!r} is not a number of values", hint="a whole number, 1 or more")
    return Aggregate("top_k", as_column(x), options=MappingProxyType({"k": k}))


def collect_list(x: str | Expr) -> Aggregate:
    """Returns a list of all values, nulls included. They are in the order of event time; in a stream without event
    time, in order of arrival.
    """
    return Aggregate("collect_list", as_column(x))


def collect_set(x: str | Expr) -> Aggregate:
    """Returns a list of the distinct values, the least first; nulls are left out. The state keeps all distinct
    values.
    """
    return Aggregate("collect_set", as_column(x))


def arg_min(x: str | Expr, by: str | Expr) -> Aggregate:
    """Returns the value of `x` in the row whose `by` is least. Rows in which `by` is null are ignored."""
    return Aggregate("arg_min", as_column(x), by=as_column(by))


def arg_max(x: str | Expr, by: str | Expr) -> Aggregate:
    """Returns the value of `x` in the row whose `by` is greatest. Rows in which `by` is null are ignored."""
    return Aggregate("arg_max", as_column(x), by=as_column(by))


def aggregate_with(function: UserAggregate, *columns: str | Expr) -> Aggregate:
    """Returns an aggregate of your own over these columns.

    `columns`: names of columns, or expressions. Their names become the columns of the batch that
    `UserAggregate.accumulate` gets. Raises UserError without columns, if two columns have the same name, and if
    `function` is not a UserAggregate with a `type`.
    """
    if not isinstance(function, UserAggregate):
        raise UserError(
            f"aggregate_with: {function!r} is not a UserAggregate", hint="an object of a class that derives from it"
        )
    if not isinstance(getattr(function, "type", None), pa.DataType):
        raise UserError(
            f"aggregate_with: {type(function).__qualname__} has no attribute `type`",
            hint="type = pa.float64(), the type of the values of finish",
        )
    if not columns:
        raise UserError("aggregate_with needs the columns that it reads", hint='aggregate_with(Mine(), "amount")')
    exprs = [as_column(each) for each in columns]
    names = [each.name for each in exprs]
    if len(set(names)) < len(names):
        raise UserError(f"aggregate_with: two of the columns have one name: {', '.join(names)}", hint='.alias("…")')
    return Aggregate("user", struct(**dict(zip(names, exprs, strict=True))), function=_OverColumns(function))


def _freedom(where: str, ddof: int) -> Mapping[str, Any]:
    ddof = python_value(ddof)
    if not is_whole(ddof, 0):
        raise UserError(f"{where}: ddof={ddof!r} is not a whole number, 0 or more")
    return MappingProxyType({"ddof": ddof})
