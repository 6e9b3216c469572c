"""`lookup(f, on=…)`: adds the columns that an async function returns for the key of each row."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.api.calls import check_coroutine_function, function_name
from sabot.api.nodes import calls as nodes
from sabot.api.nodes.read import only_source
from sabot.engine.operators.base import OperatorContext, Restorable
from sabot.engine.operators.calls.async_operator import AsyncOperator
from sabot.engine.operators.calls.questions import QuestionChunk, QuestionOperator
from sabot.engine.operators.joins.join import TableLookup
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.readers import StateReaders
from sabot.errors import UserError

_CHUNK_ROWS = 65_536


class LookupAsync(QuestionOperator):
    """A step that adds the columns of `await function(key)` behind those of the row. The function returns a dict with
    the columns of `schema`, or None.

    `on`: the key columns. The function gets the value of one column, or a tuple of several. It is not called for a
    key with a null. `names`: the names of added columns that are renamed. `how`: "left" if rows without an answer
    have nulls, "inner" if they are dropped. `cache_rows`, `cache_ttl_s`: as in QuestionOperator. After a restore the cache
    is empty.

    Raises UserError for missing key columns, and for keys of nested types.
    """

    kind = "lookup"
    argument = "key"

    def __init__(
        self,
        function: Callable[[Any], Any],
        on: Sequence[str],
        schema: pa.Schema,
        *,
        names: Mapping[str, str] | None = None,
        how: str = "left",
        cache_ttl_s: float | None = 600.0,
        **calls: Any,
    ) -> None:
        check_coroutine_function(function, "lookup")
        super().__init__(
            function, schema, names=dict(names or {}), inner=how == "inner", cache_ttl_s=cache_ttl_s, **calls
        )
        self._on = tuple(on)
        self.name = f"lookup({function_name(function)})"

    def open(self, context: OperatorContext) -> pa.Schema:
        output = super().open(context)
        for name in self._on:
            if self.user.get_field_index(name) < 0:
                raise UserError(
                    f"{self.name}: there is no column {name!r}", hint=f"there are {', '.join(self.user.names)}"
                )
            if pa.types.is_nested(self.user.field(name).type):
                kind = self.user.field(name).type
                raise UserError(
                    f"{self.name}: {name!r} is {kind}, which cannot be a key", hint="use a column of plain values"
                )
        return output

    def _question_chunks(self, data: pa.RecordBatch) -> Iterator[tuple[QuestionChunk, int | None]]:
        for start in range(0, data.num_rows, _CHUNK_ROWS):
            piece = data.slice(start, _CHUNK_ROWS)
            codes, keys, null = _distinct([piece.column(name) for name in self._on])
            yield QuestionChunk(piece, codes, keys, self.answer), null


def _distinct(columns: list["pa.Array[Any]"]) -> tuple[Any, list[Any], int | None]:
    """Returns three values: for each row, the number of its key; the distinct keys by their numbers; and the number
    that stands for all keys with a null, or None if no key has one.
    """
    codes: Any = np.zeros(len(columns[0]), np.int64)
    null: Any = np.zeros(len(columns[0]), np.bool_)
    values: list[Any] = []
    for column in columns:
        encoded = column.dictionary_encode()
        if column.null_count:
            null |= pc.is_null(column).to_numpy(zero_copy_only=False)
        places = encoded.indices.fill_null(0).to_numpy()
        values.append(encoded.dictionary)
        codes = codes * max(1, len(encoded.dictionary)) + places
        if len(columns) > 1:  # renumbers the pairs, so that the numbers stay small
            codes = np.unique(codes, return_inverse=True)[1]
    if len(columns) == 1:
        keys = values[0].to_pylist()
    else:
        there = np.flatnonzero(~null)
        _, first, codes[there] = np.unique(codes[there], return_index=True, return_inverse=True)
        rows = pa.array(there[first])
        keys = list(zip(*(column.take(rows).to_pylist() for column in columns), strict=True))
    if not null.any():
        return codes, keys, None
    codes[null] = len(keys)
    return codes, [*keys, None], len(keys)


# -- their place in a plan ----------------------------------------------------------------------------------------------


def plan_lookup_async(node: nodes.LookupAsync, point: PlanPoint) -> PlanPoint:
    lookup, call = node.call, node.call.call
    make = partial(
        LookupAsync,
        call.function,
        lookup.on,
        call.schema,
        options=call.options,
        names=dict(node.answer_names),
        how=lookup.how,
        keys=point.keys or (),
        ordered=call.ordered,
        cache_rows=lookup.cache_rows,
        cache_ttl_s=lookup.cache_ttl_s,
        source=only_source(node),
    )
    return point.step(node.text(), make, id=node.id).branch_to("dead", node.dead_letter)


PLANNERS: Planners = {nodes.LookupAsync: plan_lookup_async}


def _read_with(reader: Mapping[str, Any]) -> Restorable:
    """Makes an operator that reads the state of a `lookup`: a TableLookup if the lookup was in a table, an
    AsyncOperator if it called a function.
    """
    return TableLookup.read_with(reader) if "sides" in reader else AsyncOperator(keys=reader["keys"])


STATE_READERS: StateReaders = {"lookup": _read_with}
