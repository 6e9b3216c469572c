"""The first n rows of each key, ordered by some columns, among all rows so far. `windows.top` has the first n rows of
a window.

A `RankTable` stores the rows, decides which are among the first n, and returns the changes that a batch makes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.rows.ranked import NUMBER_COLUMN, RankTable
from sabot.api.nodes import keyed as nodes
from sabot.base.checks import is_whole
from sabot.codecs.json import schema_text
from sabot.engine.operators.base import (
    CHUNK_ROWS,
    OP_COLUMN,
    TIME_COLUMN,
    FilledFromTable,
    GivesTable,
    OperatorContext,
    Saved,
    with_marks,
    without_marks,
)
from sabot.engine.operators.columns import key_columns, key_table
from sabot.engine.operators.cuts import Rows
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.readers import StateReaders
from sabot.engine.operators.rows.origin import reselected
from sabot.engine.operators.slot_state import SlotState
from sabot.engine.operators.state_facts import StateReader, StateSchema
from sabot.engine.operators.state_parts import (
    StatefulOperator,
    StateParts,
    columns_schema,
    fewer_columns,
    only_columns_of,
)
from sabot.errors import InternalError, UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

TIES = ("row_number", "rank", "dense_rank")
_TIMESTAMP = pa.timestamp("ms", "UTC")
CANNOT_CHANGE = "columns of a top_n cannot change between a checkpoint and its restore"
_READ_SLOTS = 8_192  # the number of keys whose rows are read at once

Array: TypeAlias = pa.Array


class RankedOperator(StatefulOperator):
    """The base of TopN and WindowTopN: their arguments, and the columns of their rows."""

    def __init__(
        self, keys: Sequence[str], n: int, by: Sequence[tuple[str, bool]], ties: str, rank: str | None
    ) -> None:
        if not is_whole(n, 1):
            raise UserError(f"top_n: {n!r} is not a number of rows", hint="give a whole number, 1 or more")
        if ties not in TIES:
            raise UserError(f"top_n: ties {ties!r} is unknown", hint=f"one of {', '.join(TIES)}")
        self.names, self._n, self._by = list(keys), n, [(name, bool(descending)) for name, descending in by]
        self._ties, self.rank = ties, rank

    def open_rows(self, context: OperatorContext, *, changes: bool = False, ranked: bool = False) -> None:
        """Sets the columns of the rows, and `table_of`, which creates an empty table of them. Raises UserError for
        columns that do not exist, or whose type a table cannot store.

        `changes`: True if the input may remove rows. `ranked`: True if results have a column with the rank.
        """
        self._context = context
        self.rows = without_marks(context.input)
        self.keys, self.key_indices = key_columns(self.names, context.input)
        key_table(self.keys)
        for name, _ in self._by:
            if name not in self.rows.names:
                raise UserError(
                    f"top_n by {name!r}: there is no such column", hint=f"there are {', '.join(self.rows.names)}"
                )
        if self.rank is not None and self.rank in self.rows.names:
            raise UserError(f"top_n: there is a column {self.rank!r} already", hint="give the rank another name")
        by = [(self.rows.get_field_index(name), descending) for name, descending in self._by]

        def table() -> RankTable:
            return RankTable(self.rows, by, self._n, ties=self._ties, ranked=ranked, changes=changes)

        try:
            table()
        except TypeError as error:
            raise UserError(f"top_n: {error}", hint="leave the column out, or cast it") from error
        self.table_of: Callable[[], RankTable] = table

    def saved_schema(self) -> pa.Schema:
        return saved_columns(self._context.input)

    def schema_facts(self) -> StateSchema:
        """Returns the entries of `state_schema` that TopN and WindowTopN share."""
        return {
            "keys": columns_schema(self.keys),
            "n": self._n,
            "by": [[name, "descending" if descending else "ascending"] for name, descending in self._by],
            "ties": self._ties,
            "columns": columns_schema(self.rows),
        }

    def taken_over(self, fact: str, before: Any, now: Any, groups: int) -> str | None:
        """Lets the state continue if the program has fewer columns. The columns that order the rows must be the same.
        Rows that become equal because a column is missing are still separate rows.
        """
        return fewer_columns(before, now) if fact == "columns" else None

    def reader_facts(self) -> StateReader:
        """Returns the entries of `state_reader` that TopN and WindowTopN share."""
        return {
            "keys": self.names,
            "n": self._n,
            "by": [list(each) for each in self._by],
            "ties": self._ties,
            "rank": self.rank,
            "input": schema_text(self._context.input),
        }


class TopN(RankedOperator, GivesTable, FilledFromTable):
    """Emits the rows that are among the first `n` of their key, as changes.

    `by`: the columns that order the rows, as (name, descending). A null comes after NaN, and NaN after all numbers,
    descending or not. Among equal rows the first to arrive comes first. `ties`: which rows are among the first n:
    "row_number": n rows; "rank": rows with fewer than n better ones; "dense_rank": rows with one of the n best
    values. `rank`: the name of the column for that number (int64), or None for no column. With "row_number", key and
    rank are unique, and if another row gets a rank, the change is an update pair. `changes`: True if the input is
    changes. All rows are then stored, otherwise only the first n. `parted_by`: the keys that decide to which subtask
    a row goes, and to which subtask its state belongs, if they are only some of `keys`; else empty.

    After each batch the difference is emitted: first the rows that leave the result, then the rows that enter it. A
    row that leaves has its own event time. If a row is taken away and several equal rows are stored, the newest is
    removed. With a directory, the state keeps to the memory budget. Raises InternalError if a change takes away a row
    that is not stored.
    """

    def __init__(
        self,
        keys: Sequence[str],
        n: int,
        by: Sequence[tuple[str, bool]],
        *,
        ties: str = "row_number",
        rank: str | None = None,
        changes: bool = False,
        parted_by: tuple[str, ...] = (),
    ) -> None:
        super().__init__(keys, n, by, ties, rank)
        self._changes = self.needs_table = changes
        self.parted_by = parted_by
        self._state: _RankState | None = None

    def open(self, context: OperatorContext) -> pa.Schema:
        if self._changes != (OP_COLUMN in context.input.names):
            raise InternalError(
                f"top_n over {'changes' if self._changes else 'rows'}: the input has {context.input.names}"
            )
        self.open_rows(context, changes=self._changes, ranked=self.rank is not None)
        context = replace(context, parted_by=self.parted_by)
        self._state = _RankState(self.table_of(), self.keys, self.key_indices, self.saved_schema(), context)
        self._time = int(context.input.get_field_index(TIME_COLUMN))
        self._op = int(context.input.get_field_index(OP_COLUMN)) if self._changes else -1
        rank = [] if self.rank is None else [pa.field(self.rank, pa.int64())]
        self._schema = with_marks(pa.schema([*self.rows, *rank]), op=True, timed=self._time >= 0)
        self.state_parts = StateParts(context, [self._state], keyed=len(self.names) > 0)
        return self._schema

    def process(self, batch: Batch) -> None:
        assert self._state is not None
        if self.parted_by and batch.hashes is not None:  # these hashes are of `parted_by`, not of all keys
            batch = reselected(batch, batch.selection, None)
        state, data = self._state, batch.data
        table = state.table
        with state.changing:
            slots = state.resolve(batch)
            try:
                table.add(
                    slots,
                    data,
                    selection=batch.selection,
                    ops=data.column(self._op) if self._op >= 0 else None,
                    time=data.column(self._time) if self._time >= 0 else None,
                )
            except KeyError as error:
                raise InternalError(f"top_n: the changes are not valid: {error.args[0]}") from error
            vacant = table.settle()
            if len(vacant):
                state.known.remove(vacant)
            pieces = table.pieces(CHUNK_ROWS)
            state.settle()
        for columns, ranks, ops, times in pieces:
            self.emit(Batch(self._result(columns, ranks, ops, times)))

    def _result(self, columns: list[Array], ranks: Array, ops: Array, times: Array) -> pa.RecordBatch:
        columns = [*columns, *([] if self.rank is None else [ranks]), ops, *([times] if self._time >= 0 else [])]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def unfit_to_fill(self, names: frozenset[str]) -> str:
        return "" if self._by else "the table does not say which row of a key came first"

    def state_schema(self) -> StateSchema:
        return {"kind": "top_n", **self.schema_facts(), "ranked": self.rank is not None, "changes": self._changes}

    def state_reader(self) -> StateReader:
        return {**self.reader_facts(), "changes": self._changes}

    def contents(self) -> Iterator[pa.RecordBatch]:
        """Yields the stored rows, key by key, in order."""
        if self._state is not None:
            for rows in self._state.every_row():
                yield rows.select(self.rows.names)

    def table(self) -> Iterator[Batch]:
        """Yields the rows that are among the first n. If the input is changes, more rows than these are stored, so each
        piece of them is ranked anew, with all rows of its keys; equal rows are in the order in which they arrived.
        """
        assert self._state is not None
        for rows in self._state.every_row():
            table = self.table_of()
            slots = key_table(self.keys).resolve(rows, self.key_indices)
            table.add(slots, rows, time=rows.column(TIME_COLUMN) if self._time >= 0 else None)
            table.settle()
            for columns, ranks, ops, times in table.pieces(CHUNK_ROWS):
                yield Batch(self._result(columns, ranks, ops, times))

    def group_count(self) -> int:
        return 0 if self._state is None else self._state.key_count

    def close(self) -> None:
        if self._state is not None:
            self._state.close()
            # the former ones would keep the rows in memory
            self.state_parts = StateParts(self._context, [], keyed=False)
        self._state = None

    def statistics(self) -> "ToldStep":
        if self._state is None:
            return {}
        rows = len(self._state.table) + self._state.cold_rows
        return {"keys": self._state.key_count, "rows": rows, **self._state.figures()}


class _RankState(SlotState):
    """The keys of a TopN, and the rows of each key. `rows`: the columns of these rows in a checkpoint."""

    refusal = ("the rows have", CANNOT_CHANGE)

    def __init__(
        self, table: RankTable, keys: pa.Schema, indices: Sequence[int], rows: pa.Schema, context: OperatorContext
    ) -> None:
        self.table = table
        owners = [indices[place] for place in context.owners(keys.names)]
        super().__init__(key_table(keys), indices, {"rows": rows}, indices, context, owners=owners)

    def files_of(self, saved: Sequence[Saved]) -> Mapping[str, pa.Schema]:
        return self.files_in(saved)

    def renewed(self, rows: Rows) -> Rows:
        """Returns rows without the columns that the program no longer keeps."""
        return [only_columns_of(self.files["rows"], rows[0])]

    def rows_of(self, slots: pa.Int32Array) -> Rows:
        return [self.table.export(slots).replace_schema_metadata(self.files["rows"].metadata)]

    def put(self, rows: Rows) -> Any:
        (data,) = rows
        slots = self.known.resolve(data, self.keys_at)
        self.note(slots)
        self.table.load(slots, data, data.column(NUMBER_COLUMN), data.column(TIME_COLUMN))
        self.table.settle()
        return pc.unique(slots)

    def forget(self, slots: pa.Int32Array) -> None:
        self.table.remove(slots)
        self.known.remove(slots)

    def every_row(self) -> Iterator[pa.RecordBatch]:
        """Yields all rows, key by key, in pieces."""
        yield from _exported(self.table, self.known.slots())
        for slots in self.every_read():
            yield self.table.export(slots)

    @property
    def nbytes(self) -> int:
        return self.known.nbytes + self.table.nbytes

    def close(self) -> None:
        if not self.is_held:
            self.known.clear()
        super().close()


def _exported(table: RankTable, slots: pa.Int32Array) -> Iterator[pa.RecordBatch]:
    """Yields the rows of these slots, in pieces."""
    for start in range(0, len(slots), _READ_SLOTS):
        yield table.export(slots.slice(start, _READ_SLOTS))


# -- their place in a plan ----------------------------------------------------------------------------------------------


def plan_top_n(node: nodes.TopN, point: PlanPoint) -> PlanPoint:
    point, parted_by = point.partition_by_some(node.keys, "ranked")
    make = partial(
        TopN, node.keys, node.n, node.by, ties=node.ties, rank=node.rank, changes=point.changes, parted_by=parted_by
    )
    return point.step(node.text(), make, id=node.id)


PLANNERS: Planners = {nodes.TopN: plan_top_n}


def saved_columns(input: pa.Schema) -> pa.Schema:
    """Returns the columns of the rows in a checkpoint, for the columns of the input."""
    marks = pa.field(NUMBER_COLUMN, pa.int64()), pa.field(TIME_COLUMN, pa.int64())
    return pa.schema([*without_marks(input), *marks], without_marks(input).metadata)


def ranked_of(reader: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the constructor that `RankedOperator.reader_facts` has written to `reader`."""
    by = [(name, descending) for name, descending in reader["by"]]
    return {"keys": reader["keys"], "n": reader["n"], "by": by, "ties": reader["ties"], "rank": reader["rank"]}


STATE_READERS: StateReaders = {"top_n": lambda reader: TopN(**ranked_of(reader), changes=reader["changes"])}
