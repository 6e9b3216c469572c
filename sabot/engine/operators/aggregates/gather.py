"""The description of an aggregate without a fixed width (`Gather`), and the contract of the classes that store its
state by slot (`GatheredValues`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.checks import is_whole
from sabot.base.dataclass import dataclass
from sabot.engine.operators.aggregates.decimals import sum_type
from sabot.errors import UserError

ROWS = ("least", "greatest", "latest")  # reductions that keep one row of each slot, by its rank
VALUES = ("min", "max", "sum", "distinct", "top")  # reductions that skip nulls

Array: TypeAlias = pa.Array


@dataclass(frozen=True)
class Gather:
    """The description of an aggregate that stores values without a fixed width.

    `type`: the type of the result. `columns`: the columns that are stored of each value. `states`: the columns in an
    export: one row for each group, with a list in each column. `kept_as`: the prefix of the names of the `states`
    columns, or "" for `name`. It is independent of `name`, so the state continues if the aggregate is renamed.
    `argument`, `rank`, `where`, `order`: indices of input columns, or -1. `skip_null_rank`: True if rows whose rank
    is null or NaN are skipped. `width`: the number of input columns. `option`: the number of values of "top"; the
    quantile or quantiles of a sketch. `column`: the name of the argument, for errors. `reduce`: which values of a
    slot are stored:

        least, greatest   the row with that rank; of equal ranks the one with the least order, then the first to arrive
        latest            of the rows with the greatest rank, the last to arrive
        min, max, sum     one value
        distinct          each value once
        list              all values
        top               the `option` greatest values, greatest first
        user              the state of a user's function
        sketch            a sketch of the values
    """

    name: str
    reduce: str
    type: pa.DataType
    columns: tuple[pa.Field, ...]
    argument: int
    rank: int
    where: int
    order: int
    skip_null_rank: bool
    width: int
    function: Any = None
    kept_as: str = ""
    option: Any = None
    column: str = ""

    @staticmethod
    def of(
        name: str,
        kind: str,
        input: pa.Schema,
        argument: int,
        *,
        by: int,
        where: int,
        order: int,
        function: Any = None,
        kept_as: str = "",
        option: Any = None,
    ) -> "Gather":
        """Returns the description of `kind(argument)` over rows of `input`. Raises UserError for a type that the kind
        cannot aggregate, and for an `option` out of range.

        `by`, `where`, `order`: indices of input columns, or -1.
        """
        if kind == "user":
            state = (pa.field("state", pa.binary()),)
            return Gather(
                name, "user", function.type, state, argument, -1, where, order, False, len(input), function, kept_as
            )
        value = input.field(argument).type
        if kind in ("approx_count_distinct", "approx_quantile"):
            result = _sketched(name, kind, input.field(argument), option)
            state = (pa.field("state", pa.large_binary()),)
            return Gather(
                name, "sketch", result, state, argument, -1, where, order, False, len(input), None, kept_as, option
            )
        rank, skip, ordered = -1, False, False
        if kind in ("min", "max"):
            reduce, result = kind, value
            _check(name, f"{kind} of", input.field(argument))
        elif kind == "sum":
            value = result = sum_type(value)
            reduce = "sum"
        elif kind == "count_distinct":
            reduce, result = "distinct", pa.int64()
            _check(name, "count_distinct of", input.field(argument))
        elif kind == "collect_set":
            reduce, result = "distinct", pa.list_(value)
            _check(name, "collect_set of", input.field(argument))
        elif kind == "top_k":
            if not is_whole(option, 1):
                raise UserError(f"{name}: top_k of {option!r} values", hint="give a whole number, 1 or more")
            reduce, result = "top", pa.list_(value)
            _check(name, "top_k of", input.field(argument))
        elif kind == "collect_list":
            reduce, result, ordered = "list", pa.list_(value), order >= 0
        elif kind in ("first", "any", "last"):
            reduce, result, rank = "latest" if kind == "last" else "least", value, order
        else:
            reduce, result, rank = "least" if kind == "arg_min" else "greatest", value, by
            skip, ordered = True, order >= 0
            _check(name, f"{kind} by", input.field(by))
        columns: tuple[pa.Field, ...] = (pa.field("value", value),)
        if reduce in ROWS:
            columns += (pa.field("rank", pa.int64() if rank < 0 else input.field(rank).type),)
        if ordered:
            columns += (pa.field("order", pa.int64()),)
        shape = (columns, argument, rank, where, order, skip, len(input))
        return Gather(name, reduce, result, *shape, None, kept_as, option, input.field(argument).name)

    def counted(
        self, slots: pa.Int32Array, data: pa.RecordBatch, selection: pa.Int32Array | None
    ) -> tuple[pa.Int32Array, pa.Int32Array | None]:
        """Returns `slots` and `selection` without the rows for which the column `where` is not true."""
        if self.where < 0:
            return slots, selection
        mask = selected(data.column(self.where), selection)
        rows = pc.indices_nonzero(mask).cast(pa.int32()) if selection is None else selection.filter(mask)
        return slots.filter(mask), rows

    @property
    def states(self) -> list[pa.Field]:
        name = self.kept_as or self.name
        return [pa.field(f"{name}.{column.name}", pa.list_(column.type)) for column in self.columns]


class GatheredValues(ABC):
    """The state of one aggregate, by slot. The methods are those of `Extras`."""

    def __init__(self, gather: Gather) -> None:
        self.gather = gather

    @abstractmethod
    def add(self, slots: pa.Int32Array, data: pa.RecordBatch, selection: pa.Int32Array | None) -> None: ...
    @abstractmethod
    def merge(self, slots: pa.Int32Array, columns: list[Array]) -> None: ...
    @abstractmethod
    def results(self, slots: pa.Int32Array) -> Array: ...
    def results_over(self, slots: Any, first: Any, sizes: Any) -> Array:
        """Returns the results of ranges of slots: of slots[first[i]] and those behind it, sizes[i] in all, merged in
        this order. The rows of a slot come before those of the slots behind it in its ranges.
        """
        each = type(self)(self.gather)
        parents = pa.array(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes))
        chosen = pa.array(ranges(first, sizes))
        each.merge(parents, [column.take(chosen) for column in self.states(pa.array(slots))])
        return each.results(pa.array(np.arange(len(sizes), dtype=np.int32)))

    @abstractmethod
    def states(self, slots: pa.Int32Array) -> list[Array]: ...
    @abstractmethod
    def move(self, into: Any, source: Any) -> None: ...
    @abstractmethod
    def remove(self, slots: Any) -> None: ...
    @abstractmethod
    def clear(self) -> None: ...
    @property
    def nbytes(self) -> int:
        return 0


def ranges(first: Any, sizes: Any) -> Any:
    """Returns the numbers first[0], first[0] + 1, … (sizes[0] of them), then those from first[1] on, and so on."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - ends + sizes, sizes)


def _sketched(name: str, kind: str, field: pa.Field, option: Any) -> pa.DataType:
    """Returns the type of a sketch's result. Raises UserError for a type that has no sketch, and for a quantile
    outside of 0 to 1.
    """
    _check(name, f"{kind} of", field)
    if kind == "approx_count_distinct":
        return pa.int64()
    types = pa.types
    if not (types.is_integer(field.type) or types.is_floating(field.type) or types.is_decimal(field.type)):
        raise UserError(f"{name}: {kind} of {field.name!r}, which is {field.type}", hint="cast it to a number")
    several = option if isinstance(option, list | tuple) else [option]
    for each in several:
        if isinstance(each, bool) or not isinstance(each, int | float) or not 0 <= each <= 1:
            raise UserError(f"{name}: there is no quantile {each!r}", hint="give one from 0 to 1: 0.5 is the median")
    return pa.list_(pa.float64()) if several is option else pa.float64()


def joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Returns batches of one schema as one batch. Raises UserError if they are more than a batch can hold.

    `batches`: at least one.
    """
    if len(batches) == 1:
        return batches[0]
    whole = pa.Table.from_batches(batches).combine_chunks().to_batches()
    if len(whole) > 1:
        raise UserError(
            "the values to be aggregated at once have more than 2 GiB of text",
            hint="aggregate shorter texts, use shorter windows, or raise the parallelism",
        )
    return whole[0]


def _check(name: str, what: str, field: pa.Field) -> None:
    kind = field.type
    if pa.types.is_decimal(kind) and kind.bit_width < 128:
        raise UserError(
            f"{name}: {what} {field.name!r}, which is {kind}",
            hint=f"cast it: pa.decimal128({kind.precision}, {kind.scale})",
        )
    if pa.types.is_interval(kind) or isinstance(kind, pa.BaseExtensionType):
        raise UserError(
            f"{name}: {what} {field.name!r}, which is {kind}", hint="cast it to another type, or leave it out"
        )
    if pa.types.is_nested(kind) or pa.types.is_null(kind):
        raise UserError(
            f"{name}: {what} {field.name!r}, which is {kind}", hint="aggregate a number, a text or a time in it"
        )


def selected(column: Array, selection: pa.Int32Array | None) -> Array:
    return column if selection is None else column.take(selection)
