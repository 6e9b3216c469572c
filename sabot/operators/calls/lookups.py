"""Rows with what an async function says of their keys beside them: `lookup(f, on=…)`.

A batch's keys are made distinct; those whose answer is kept need no call, and equal ones in flight have one together. Rows whose
keys are all known are emitted where they stand: nothing goes to the event loop for them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.api.calls import check_coroutine_function, function_name
from sabot.api.nodes import calls as nodes
from sabot.api.nodes.read import only_source
from sabot.calls.cache import UNKNOWN, Questions
from sabot.calls.handover import Call, Failed
from sabot.errors import UserError
from sabot.operators.base import Operator, OperatorContext, with_time
from sabot.operators.calls.answers import Answers, joined
from sabot.operators.calls.chunks import Chunk, Done
from sabot.operators.calls.held_calls import HeldCalls
from sabot.operators.held import RowNumbers
from sabot.operators.joins.join import TableLookup
from sabot.operators.layout.sites import Places, Site
from sabot.operators.readers import Readers

__all__ = ["PLACES", "READERS", "LookupAsync"]

_CHUNK_ROWS = 65_536
_TAKE_KEYS = 64


class _KeyChunk(Chunk):
    """Rows whose calls are for their distinct keys. Rows without a key have one call, which is not made: there is nothing for them.

    keys: the key of each call. owned: the calls that this chunk makes; the others are answered already, or another chunk makes them.
    """

    def __init__(self, data: pa.RecordBatch, codes: Any, keys: list[Any], answers: Answers) -> None:
        super().__init__(data, len(keys), codes)
        self.keys = keys
        self.owned: list[int] = []
        self._answers = answers

    @property
    def calls(self) -> int:
        return len(self.owned)

    @property
    def exhausted(self) -> bool:
        return self._taken >= len(self.owned)

    def take(self, places: Iterator[int]) -> Sequence[Call]:
        first, self._taken = self._taken, min(self._taken + _TAKE_KEYS, len(self.owned))
        return [(self, number, self.keys[number], next(places)) for number in self.owned[first : self._taken]]

    def outcome(self, number: int, result: Any) -> Any:
        return self._answers.outcome(result)


class LookupAsync(HeldCalls):
    """`await function(key)` gives a dict with the columns of `schema`, or None where there is nothing. They stand behind the row's own.

    on: the columns of the key; the function gets the value of one column, or a tuple of several. Null is no key: the function is not
    asked. names: what columns of the answer are called beside the row, where not as they are. how: rows without an answer have nulls
    ("left"), or go no further ("inner"). Of the answers the cache_rows that were used last are kept, each for cache_ttl_s of processing
    time at most (None: however old); those of failed calls are not, and a restore begins without any.
    """

    kind = "lookup"

    def __init__(
        self,
        function: Callable[[Any], Any],
        on: Sequence[str],
        schema: pa.Schema,
        *,
        names: Mapping[str, str] | None = None,
        how: str = "left",
        cache_rows: int = 10_000,
        cache_ttl_s: float | None = 600.0,
        keys: Sequence[str] = (),
        **calls: Any,
    ) -> None:
        check_coroutine_function(function, "lookup")
        super().__init__(function, keys=keys, **calls)
        self._on, self._schema, self._names = tuple(on), schema, dict(names or {})
        self._inner = how == "inner"
        self._cache_rows, self._cache_ttl_s = cache_rows, cache_ttl_s
        self._asked = 0
        self.name = f"lookup({function_name(function)})"

    def open(self, context: OperatorContext) -> pa.Schema:
        super().open(context)
        self._questions: Questions[Any, tuple[_KeyChunk, int]] = Questions(
            self._cache_rows, self._cache_ttl_s, context.clock
        )
        for name in self._on:
            if self.user.get_field_index(name) < 0:
                raise UserError(
                    f"{self.name}: there is no column {name!r}", hint=f"there are {', '.join(self.user.names)}"
                )
            if pa.types.is_nested(self.user.field(name).type):
                kind = self.user.field(name).type
                raise UserError(f"{self.name}: {name!r} is {kind}, which is no key", hint="a column of plain values")
        self._answer = Answers(self.name, self._schema, several=False)
        added = [field.with_name(self._names.get(field.name, field.name)) for field in self._answer.schema]
        columns = [*self.user, *added]
        names = [field.name for field in columns]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(
                f"{self.name}: the result would have two columns {twice!r}", hint="give the added ones a suffix"
            )
        self._output = with_time(pa.schema(columns), self.timed)
        return self._output

    # -- keys ---------------------------------------------------------------------------------------------------------

    def _chunks(self, data: pa.RecordBatch, done: Sequence[Done]) -> Iterable[Chunk]:
        at = 0
        for start in range(0, data.num_rows, _CHUNK_ROWS):
            piece = data.slice(start, _CHUNK_ROWS)
            codes, keys, null = _distinct([piece.column(name) for name in self._on])
            chunk = _KeyChunk(piece, codes, keys, self._answer)
            if null is not None:
                chunk.know(null, None)
            while at < len(done) and done[at][0] < start + piece.num_rows:
                chunk.know(int(codes[done[at][0] - start]), done[at][2])
                at += 1
            self._ask(chunk)
            yield chunk

    def _ask(self, chunk: _KeyChunk) -> None:
        """Takes the answers that are kept; of the other keys, those that no other chunk asks for are this one's to ask."""
        questions, settled = self._questions, chunk.settled.tolist()
        now = questions.now()
        self._asked += len(chunk.keys)
        for number, key in enumerate(chunk.keys):
            if settled[number]:
                continue
            answer = questions.known(key, now)
            if answer is not UNKNOWN:
                chunk.know(number, answer)
            elif (waiting := questions.under_way(key)) is not None:
                waiting.append((chunk, number))
            else:
                chunk.owned.append(number)

    def _ended(self, chunk: Any, number: int) -> None:
        key, outcome = chunk.keys[number], chunk.outcomes[number]
        super()._ended(chunk, number)
        for other, its in self._questions.answered(key, outcome, keep=type(outcome) is not Failed):
            other.outcomes[its] = outcome
            super()._ended(other, its)

    # -- out ----------------------------------------------------------------------------------------------------------

    def _made(self, parts: list[tuple[Chunk, RowNumbers]]) -> pa.RecordBatch | None:
        pieces = [piece for chunk, rows in parts if (piece := self._beside(chunk, rows)).num_rows]
        return joined(pieces) if pieces else None

    def _beside(self, chunk: Chunk, rows: RowNumbers) -> pa.RecordBatch:
        calls, places = np.unique(chunk.codes[rows], return_inverse=True)
        outcomes = [chunk.outcomes[call] for call in calls.tolist()]

        def refuse(number: int, what: str) -> Any:
            mine = np.flatnonzero(places == number)
            failed = self.misfit(chunk, int(rows[mine[0]]), what)
            self.bury(chunk, rows[mine[1:]], [failed] * (len(mine) - 1))
            return failed

        answers, counts, outcomes = self._answer.columns(outcomes, refuse)
        found = np.where(counts > 0, np.cumsum(counts) - 1, -1)[places]
        dead = np.array([type(outcome) is Failed for outcome in outcomes], np.bool_)[places]
        kept = found >= 0 if self._inner else ~dead
        if not kept.all():
            rows, found = rows[kept], found[kept]
        data = chunk.data
        if len(rows) and int(rows[-1]) - int(rows[0]) + 1 == len(rows):
            data = data.slice(int(rows[0]), len(rows))
        else:
            data = data.take(pa.array(rows))
        added = answers.take(pa.array(found, mask=found < 0)).columns
        columns = [*data.columns[: len(self.user)], *added]
        if self.timed:
            columns.append(data.column(data.num_columns - 1))
        return pa.RecordBatch.from_arrays(columns, schema=self._output)

    def _answers(self) -> Answers | None:
        return self._answer

    def statistics(self) -> dict[str, Any]:
        figures = {
            "cached_rows": len(self._questions),
            "cache_hits": self._questions.hits,
            "distinct_keys": self._asked,
        }
        return {**super().statistics(), **figures}


def _distinct(columns: list["pa.Array[Any]"]) -> tuple[Any, list[Any], int | None]:
    """(row -> the number of its key, the keys, the number of what is no key: a null in it)."""
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
        if len(columns) > 1:  # numbers of pairs so far, so that they stay small
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


# -- where they stand in a plan -----------------------------------------------------------------------------------------


def place_lookup_async(node: nodes.LookupAsync, site: Site) -> Site:
    lookup, call = node.call, node.call.call
    make = partial(
        LookupAsync,
        call.function,
        lookup.on,
        call.schema,
        options=call.options,
        names=dict(node.answer_names),
        how=lookup.how,
        keys=site.keys or (),
        ordered=call.ordered,
        cache_rows=lookup.cache_rows,
        cache_ttl_s=lookup.cache_ttl_s,
        source=only_source(node),
    )
    return site.step(node.text(), make, id=node.id).beside("dead", node.dead_letter)


PLACES: Places = {nodes.LookupAsync: place_lookup_async}


def _read_with(reader: Mapping[str, Any]) -> Operator:
    """In a table, or by calls."""
    return TableLookup.read_with(reader) if "sides" in reader else HeldCalls(keys=reader["keys"])


READERS: Readers = {"lookup": _read_with}
