"""The measures of a pattern: the columns that they need, and their values for matches."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from sabot.api.expr import Expr, col
from sabot.api.patterns import MATCH_END, MATCH_START, StepValue, step_values, with_step_values
from sabot.engine.operators.aggregates.aggregator import AggregateColumn, Aggregator
from sabot.engine.operators.expressions.compiled import compile_expr

TIMESTAMP = pa.timestamp("ms", "UTC")
_KINDS = {"list": "collect_list"}  # all other values of steps have the name of their aggregate
_KEPT = ("count", "ends", "each")  # the rows of a step that are kept, from few to many
# columns of rows of matches: the number of the match, and how many rows the row stands for
_MATCH, _WEIGHT = ("__match", "__rows")

Array: TypeAlias = pa.Array


class MatchedRows(NamedTuple):
    """The rows of matches. Match i has the rows offsets[i] to offsets[i + 1] - 1. Each row has the number of its step's name, its number,
    and the number of input rows that it represents.
    """

    offsets: Any
    steps: Any
    rows: Any
    weights: pa.Int64Array


class Measures:
    """The measures of a pattern.

    `rows`: the columns that are kept of rows. `kept`: for each step the rows that are kept: "each", "ends" (the first
    and the last), or "count" (none, only their number). `results`: a field for each measure. `checked`: the
    expressions over rows that may raise DataError. Raises UserError for missing columns and for types that do not fit.
    """

    def __init__(
        self, measures: Sequence[tuple[str, Expr]], steps: Sequence[str], keys: pa.Schema, input: pa.Schema
    ) -> None:
        values = {value.text(): value for _, measure in measures for value in step_values(measure)}
        arguments = {each.text(): each for value in values.values() for each in value.inputs}
        compiled = [compile_expr(each, input) for each in arguments.values()]  # raises UserError for missing columns
        self.checked = [each for each in compiled if each.can_fail]
        used = frozenset().union(*(each.columns for each in arguments.values()))
        self._input = pa.schema([field for field in input if field.name in used])
        self._arguments = [compile_expr(each, self._input) for each in arguments.values()]
        self.rows = pa.schema(
            [pa.field(text, each.type) for text, each in zip(arguments, self._arguments, strict=True)]
        )
        self._of_match = pa.schema([pa.field(_MATCH, pa.int64()), pa.field(_WEIGHT, pa.int64()), *self.rows])
        self._of_step: list[tuple[int, Aggregator, bool]] = []
        self.kept: list[str] = []
        fields: list[pa.Field] = []
        for number, step in enumerate([*steps, None]):  # at last the values of all rows
            asked = {text: value for text, value in values.items() if value.option("step") == step}
            kinds = {"list" if value.offset else value.kind for value in asked.values()} - {"step.count"}
            self.kept.append("each" if kinds - {"step.first", "step.last"} else "ends" if kinds else "count")
            if asked:
                aggregates = [_call(text, value) for text, value in asked.items()]
                aggregator = Aggregator([_MATCH], aggregates, self._of_match)
                self._of_step.append((number, aggregator, bool(kinds)))
                fields += list(aggregator.schema)[1:]
        of_all = self.kept.pop()
        self.kept = [max(each, of_all, key=_KEPT.index) for each in self.kept]
        bounds = [pa.field(MATCH_START, TIMESTAMP), pa.field(MATCH_END, TIMESTAMP)]
        self._values = pa.schema([*keys, *bounds, *fields])
        self._steps = len(steps)
        found = {text: _found(text, each) for text, each in values.items()}
        self._exprs = [compile_expr(with_step_values(measure, found), self._values) for _, measure in measures]
        self.results = [pa.field(name, each.type) for (name, _), each in zip(measures, self._exprs, strict=True)]

    def of_rows(self, data: pa.RecordBatch, rows: pa.Int32Array) -> pa.RecordBatch:
        """Returns the columns that are kept of these rows of `data`."""
        chosen = data.select(self._input.names).take(rows)
        return pa.RecordBatch.from_arrays([each(chosen) for each in self._arguments], schema=self.rows)

    def of_matches(
        self, bounds: Sequence[Array], found: "MatchedRows", taken: Callable[[Any], pa.RecordBatch]
    ) -> list[Array]:
        """Returns a column for each measure, with a value for each match. `bounds`: the columns of keys, match_start
        and match_end. `found`: the rows of the matches. `taken`: returns kept rows by their numbers.
        """
        count = len(found.offsets) - 1
        matches = np.repeat(np.arange(count), np.diff(found.offsets))
        everyone = self._rows_of(np.arange(count), pa.nulls(count, pa.int64()), None)
        columns = list(bounds)
        for step, aggregator, has_columns in self._of_step:
            there = np.flatnonzero(found.steps == step) if step < self._steps else np.arange(len(found.steps))
            data = taken(found.rows[there]) if has_columns else None
            table, extras = aggregator.table(), aggregator.extras()
            slots = table.resolve(everyone, [0])  # a match without rows of the step needs a slot too
            aggregator.add(table, extras, self._rows_of(matches[there], found.weights.take(pa.array(there)), data))
            columns += aggregator.finish(table, extras, slots).columns[1:]
        values = pa.RecordBatch.from_arrays(columns, schema=self._values)
        return [each(values) for each in self._exprs]

    def _rows_of(self, matches: Any, weights: pa.Int64Array, data: pa.RecordBatch | None) -> pa.RecordBatch:
        """Returns the rows of matches with the columns that the aggregators read: the match of each row (`matches`),
        the number of input rows that it represents (`weights`), and the kept columns (`data`). If `data` is None, the
        kept columns are null.
        """
        columns = [pa.nulls(len(matches), field.type) for field in self.rows] if data is None else data.columns
        return pa.RecordBatch.from_arrays([pa.array(matches), weights, *columns], schema=self._of_match)


def _call(text: str, value: StepValue) -> AggregateColumn:
    kind = value.kind.removeprefix("step.")
    if kind == "count":
        return AggregateColumn(text, "sum", _WEIGHT)
    return AggregateColumn(text, "collect_list" if value.offset else _KINDS.get(kind, kind), value.inputs[0].text())


def _found(text: str, value: StepValue) -> Expr:
    """Returns the value of a step in terms of the column of its aggregate."""
    if value.kind == "step.count":
        return col(text).fill_null(0)
    if not value.offset:
        return col(text)
    place = value.offset if value.kind == "step.first" else -1 - value.offset
    return col(text).list.get(place, null_on_oob=True)
