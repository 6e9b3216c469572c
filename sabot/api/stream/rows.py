"""The methods of a stream whose steps look at one row, or one batch, after the other."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sabot.api.arguments import (
    RowPolicy,
    Schema,
    TimeUnit,
    column_names,
    expression_of,
    flat,
    named_columns_of,
    row_policy,
)
from sabot.api.expr import Expr
from sabot.api.nodes.node import Node
from sabot.api.nodes.rows import (
    Drop,
    Explode,
    Filter,
    Head,
    OnError,
    Rename,
    Sample,
    Select,
    WithColumns,
    flat_map_node,
    map_batches_node,
)
from sabot.api.nodes.times import with_time_node
from sabot.arrays import python_value
from sabot.config import Duration, checked_flag, is_whole
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.api.stream.base import Stream


class RowMethods:
    """The part of a Stream that picks rows and columns, and computes them."""

    _node: Node

    def _then(self, node: Node) -> "Stream":
        """Checks the next step, and returns the stream behind it."""
        raise NotImplementedError

    def filter(self, *predicates: Expr) -> "Stream":
        """The rows for which all predicates are true. A row for which one is null is dropped."""
        if not predicates:
            raise UserError("filter needs a predicate", hint='filter(col("amount") > 10)')
        node = self._node
        for predicate in predicates:
            node = Filter(node, expression_of(predicate, "filter"))
        return self._then(node)

    def select(self, *columns: str | Expr | Sequence[str | Expr], **named: Expr | Any) -> "Stream":
        """These columns, in this order: names, expressions, or name=expression."""
        return self._then(Select(self._node, named_columns_of(columns, named, "select")))

    def with_columns(self, *columns: Expr, **named: Expr | Any) -> "Stream":
        """Adds columns, or replaces those of the same name. All expressions see the columns as they were before the step."""
        return self._then(WithColumns(self._node, named_columns_of(columns, named, "with_columns")))

    def drop(self, *names: str | Sequence[str]) -> "Stream":
        """All columns but these."""
        return self._then(Drop(self._node, column_names(flat(names), "drop")))

    def rename(self, names: Mapping[str, str]) -> "Stream":
        """Renames columns: {old name: new name}."""
        pairs = tuple((str(old), str(new)) for old, new in names.items())
        return self._then(Rename(self._node, pairs))

    def with_time(
        self,
        time: str | Expr,
        *,
        lateness: Duration = 0,
        time_unit: TimeUnit | None = None,
        time_format: str | None = None,
    ) -> "Stream":
        """Rows have this event time from here on; windows behind go by it. Arguments as in `App.stream`; values that are no times are
        errors of their rows (`on_error`).
        """
        return self._then(with_time_node(self._node, time, time_unit, time_format, lateness))

    def on_error(self, policy: RowPolicy) -> "Stream":
        """What becomes of a row for which an expression or a function of a later step fails: "dead_letter", "null" or "fail"."""
        return self._then(OnError(self._node, row_policy("on_error", policy)))

    def map_batches(
        self,
        function: Callable[[pa.RecordBatch], Any],
        *,
        schema: Schema | None = None,
        on_error: RowPolicy | None = None,
    ) -> "Stream":
        """Calls `function(batch: pa.RecordBatch)`, which returns anything that speaks Arrow, or None for no rows.

        schema: of the result; without one, the function is called once with an empty batch to find out. If windows follow, event time is
        read again from its column if the result has it; otherwise the number of rows must stay the same. on_error: as of `on_error`, for
        this step; where the function fails it is called again with halves of the batch, until the rows that it fails for are found.
        """
        return self._then(map_batches_node(self._node, function, schema, on_error))

    def flat_map(
        self, function: Callable[[dict[str, Any]], Any], *, schema: Schema, on_error: RowPolicy | None = None
    ) -> "Stream":
        """Calls `function(row: dict)`, which returns an iterable of dicts. This is a Python call for each row: prefer `map_batches`."""
        return self._then(flat_map_node(self._node, function, schema, on_error))

    def explode(self, *columns: str | Sequence[str], empty_as_null: bool = False, keep_nulls: bool = True) -> "Stream":
        """A row for each value of the list in this column; a list that is null gives a row with null, an empty one none, as in polars.

        empty_as_null: an empty list gives a row with null, too. keep_nulls=False: one that is null gives none. Lists of several columns go
        together; a row in which they differ in length fails (`on_error`). Not for changes.
        """
        for each in flat(columns):
            if isinstance(each, Expr):
                name = each.column
                hint = f'with_columns(items={each!r}).explode("items")' if name is None else f'explode("{name}")'
                raise UserError(f"explode: {each!r} is an expression, and explode takes names of columns", hint=hint)
        names = column_names(flat(columns), "explode")
        if not names or len(set(names)) < len(names):
            raise UserError("explode needs columns of lists, each once", hint='explode("tags")')
        return self._then(
            Explode(
                self._node,
                names,
                checked_flag("explode: empty_as_null", empty_as_null),
                checked_flag("explode: keep_nulls", keep_nulls),
            )
        )

    def head(self, n: int) -> "Stream":
        """The first `n` rows to arrive (0 or more), of all subtasks together; no rows after those.

        The count is in the checkpoint, so n rows pass in total, whatever crashes, and with whatever parallelism the app resumes. With
        several readers or partitions, the order of arrival may differ from run to run. The input is still read to its end (an endless one
        for ever), as other streams may read it too, and for its event time. Not for changes.
        """
        n = python_value(n)
        if not is_whole(n, 0):
            raise UserError(
                f"head: {n!r} is no number of rows",
                hint="a whole number, 0 or more; which rows are last is known only at the end",
            )
        return self._then(Head(self._node, n))

    def sample(self, fraction: float, *, seed: int = 0) -> "Stream":
        """A random sample: each row passes with the probability `fraction` (0 to 1). `seed`: that of the random number generator.

        The same rows, in the same order and with the same parallelism, give the same sample.
        """
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
            raise UserError(f"sample: {fraction!r} is no share of the rows", hint="from 0 to 1: sample(0.1)")
        return self._then(Sample(self._node, float(fraction), seed))

    def split(self, predicate: Expr) -> tuple["Stream", "Stream"]:
        """Returns two streams: the rows for which the predicate is true, and all other rows, also those for which it is null."""
        yes = expression_of(predicate, "split")
        return self.filter(yes), self.filter(~yes.fill_null(False))
