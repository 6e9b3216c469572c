"""Explode: a row for each value of a list."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot.api.arguments import RowPolicy
from sabot.api.nodes import rows as nodes
from sabot.engine.operators.base import CHUNK_ROWS, OP_COLUMN, Operator, OperatorContext
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.rows.bad import BadRows, row_place
from sabot.engine.operators.rows.marked import pairs_split
from sabot.engine.operators.rows.origin import of_selected
from sabot.errors import DataError, UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep


class Explode(Operator):
    """Emits a row for each value of the lists in these columns; the other columns are repeated. If a row has lists of
    different lengths, it is set apart as `on_error` says.

    `empty_as_null`: True if an empty list makes one row with null, False if it makes no row. `keep_nulls`: the same
    for a list that is null. A change of a row is one of each of its values; an update becomes deletes and inserts, because
    the two lists of a pair may differ in length.
    """

    def __init__(
        self,
        columns: Sequence[str],
        *,
        empty_as_null: bool = False,
        keep_nulls: bool = True,
        on_error: RowPolicy = "fail",
    ) -> None:
        self.columns = tuple(columns)
        self.empty_as_null = empty_as_null
        self.keep_nulls = keep_nulls
        self.on_error = on_error

    def open(self, context: OperatorContext) -> pa.Schema:
        self._bad = BadRows(self.step.text or "explode", self.on_error, context, self.step)
        schema = context.input
        self._indices = []
        for name in self.columns:
            index = schema.get_field_index(name)
            if index < 0:
                raise UserError(
                    f"explode: there is no column {name!r}", hint=f"the columns are {', '.join(schema.names)}"
                )
            kind = schema.field(index).type
            if not pa.types.is_list(kind) and not pa.types.is_fixed_size_list(kind):
                raise UserError(
                    f"explode: column {name!r} is {kind}, not a list", hint='col("tags").str.split(",") makes one'
                )
            schema = schema.set(index, pa.field(name, kind.value_type))
            self._indices.append(index)
        self._schema = schema
        return schema

    def process(self, batch: Batch) -> None:
        batch = of_selected(batch, batch.taken())
        if OP_COLUMN in batch.schema.names:
            batch = pairs_split(batch)
        data = batch.data
        lists = [_as_lists(data.column(index)) for index in self._indices]
        sizes = [pc.fill_null(pc.list_value_length(each), 0).to_numpy() for each in lists]
        rows = [self._row_counts(each, size) for each, size in zip(lists, sizes, strict=True)]
        counts = rows[0]
        differ = np.logical_or.reduce([each != counts for each in rows])
        if differ.any():
            self._reject(batch, np.flatnonzero(differ), rows)
            counts = np.where(differ, 1 if self._bad.nulls else 0, counts)
        of = np.repeat(np.arange(data.num_rows, dtype=np.int32), counts)
        # the place of each value in its list
        place = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
        values = [
            (pc.list_flatten(each), np.cumsum(size) - size, (size == 0) | differ)
            for each, size in zip(lists, sizes, strict=True)
        ]
        for start in range(0, len(of), CHUNK_ROWS):  # without rows, nothing is emitted
            chosen = of[start : start + CHUNK_ROWS]
            last = start + CHUNK_ROWS >= len(of)  # only the last batch covers all rows, so only it carries the offsets
            numbers = pa.array(chosen)
            columns: dict[int, Any] = {}
            for index, (flat, begins, empty) in zip(self._indices, values, strict=True):
                mask = empty[chosen]
                at = np.where(mask, 0, begins[chosen] + place[start : start + CHUNK_ROWS])
                columns[index] = flat.take(pa.array(at, mask=mask))
            made = [columns[i] if i in columns else data.column(i).take(numbers) for i in range(data.num_columns)]
            origin = None if batch.records is None else batch.records.taken(numbers)
            rows_made = pa.RecordBatch.from_arrays(made, schema=self._schema)
            self.emit(Batch(rows_made, batch.offsets if last else None, batch.topic, origin))

    def _row_counts(self, lists: pa.Array, sizes: Any) -> Any:
        """Returns the number of rows that each of these lists makes. `sizes`: the lengths of the lists, 0 for null."""
        counts = np.where(sizes == 0, int(self.empty_as_null), sizes)
        if lists.null_count:
            counts[lists.is_null().to_numpy(zero_copy_only=False)] = self.keep_nulls
        return counts

    def _reject(self, batch: Batch, numbers: Any, rows: list[Any]) -> None:
        errors: dict[int, BaseException] = {}
        for row in numbers.tolist():
            found = ", ".join(f"{name!r} {each[row]}" for name, each in zip(self.columns, rows, strict=True))
            errors[row] = DataError(f"explode: the lists of a row differ in length: {found}; {row_place(batch, row)}")
        if self._bad.fails:
            raise errors[int(numbers[0])]
        self._bad.set_apart(batch, errors)

    def close(self) -> None:
        if hasattr(self, "_bad"):
            self._bad.close()

    def statistics(self) -> "ToldStep":
        return self._bad.statistics()


def _as_lists(lists: pa.Array) -> pa.Array:
    return lists.cast(pa.list_(lists.type.value_type)) if pa.types.is_fixed_size_list(lists.type) else lists


def plan_explode(node: nodes.Explode, point: PlanPoint) -> PlanPoint:
    keys = None if point.keys is not None and set(point.keys) & set(node.columns) else point.keys
    policy = point.policy() if len(node.columns) > 1 else "fail"  # lists of one column cannot differ in length
    nulls = {"empty_as_null": node.empty_as_null, "keep_nulls": node.keep_nulls}
    return point.step(node.text(), partial(Explode, node.columns, **nulls, on_error=policy), keys=keys)


PLANNERS: Planners = {nodes.Explode: plan_explode}
