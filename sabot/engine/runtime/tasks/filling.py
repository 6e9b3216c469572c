"""Fills the state of steps that a changed program adds with the earlier rows, from the tables in the checkpoint.

    the checkpoint's state of the maker ──▶ its table ──▶ the steps between ──▶ rows of this subtask's keys ──▶ the step

The maker is the step that keeps the table. Each subtask reads the whole table and takes the rows of its own keys. A
new step gets the rows in its task's thread before the first element: before all later changes, and before the first
barrier.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.partition import hash_columns
from sabot.base.dataclass import dataclass
from sabot.base.disk import make_folder, own_folder
from sabot.base.quantities import counted_words
from sabot.connectors.base import receiver_of
from sabot.engine.operators.base import (
    DELETE,
    OP_COLUMN,
    FilledFromTable,
    GivesTable,
    Operator,
    OperatorContext,
    Saved,
    SecondInput,
    Stateful,
)
from sabot.engine.operators.sink import SinkWriter
from sabot.engine.operators.state_parts import owned_groups
from sabot.engine.plan import Edge, Plan, Stage, Step, Verdict, Way, ways
from sabot.engine.state.files import remove_tree

if TYPE_CHECKING:
    from sabot.connectors.sql import SqlSink

_log = logging.getLogger(__name__)

_SHOWN_KEYS = 5


class Fill:
    """The filling of one operator. The tables are already read from the checkpoint; `run` passes their rows to the
    operator.
    """

    def __init__(self, operator: Operator, folder: Path | None) -> None:
        self.rows: list[tuple[int, Iterator[Batch]]] = []  # by input of the operator
        self.opened: list[Operator] = []
        self._operator, self._folder = operator, folder

    def run(self) -> None:
        """Passes the rows to the operator, which may emit rows. Called in the task's thread before its first element."""
        try:
            for number, rows in self.rows:
                take = self._operator.process
                if number:
                    assert isinstance(self._operator, SecondInput)
                    take = self._operator.process_right
                for batch in rows:
                    take(batch)
        finally:
            self.close()

    def close(self) -> None:
        """Closes the tables, and deletes the folder into which they were read, if there is one. Idempotent."""
        for operator in self.opened:
            operator.close()
        self.opened, self.rows = [], []
        if self._folder is not None:
            remove_tree(self._folder)


class Filling:
    """The fillings of all operators that have to be filled at this start. The verdicts on the program and the
    checkpoint say which these are.
    """

    def __init__(
        self,
        plan: Plan,
        verdicts: Sequence[Verdict],
        saved: Mapping[str, Sequence[Saved]],
        directory: Path | None,
        reemits: Mapping[str, Sequence[Way]],
    ) -> None:
        """`saved`: the state of each operator in the checkpoint. `directory`: the directory of the run's state, or
        None if it is in memory. `reemits`: the paths of the tables that are written into sinks again, as `plan.reemit_of`.
        """
        self._reemits = reemits
        self._verdicts = {each.id: each for each in verdicts}
        self._saved, self._directory = saved, directory
        self._inputs: dict[str, tuple[pa.Schema, pa.Schema | None]] = {}
        keeping: set[str] = set()

        def look(stage: Stage, step: Step, operator: Operator, context: OperatorContext) -> None:
            self._inputs[step.id] = context.input, context.right
            if isinstance(operator, Stateful):
                keeping.add(step.id)

        if reemits or any(each.fills for each in verdicts):
            plan.schemas(look)
            self._ways = ways(plan, keeping)

    def of(self, operator: Operator, task: str, parallelism: int) -> Fill | None:
        """Prepares the filling of an operator of a task, by reading the tables from the checkpoint. Returns the
        filling, or None if the operator does not have to be filled, or is filled already.

        Called when the operator's state is restored. If only some aggregates were added, they are filled before this
        returns. For a new operator, the caller has to call `Fill.run` later. `parallelism`: the number of subtasks of
        the task's stage.
        """
        verdict = self._verdicts.get(operator.step.id)
        if verdict is None or not verdict.fills:
            return None
        folder = self._folder(task, operator)
        fill = Fill(operator, folder)
        subtask = int(task.rsplit("/", 1)[1])
        self._prepare(fill, operator, _Share(subtask, parallelism, folder))
        if fill.rows:
            return fill
        fill.close()
        return None

    def into(self, writer: Operator, task: str, sink: str) -> Fill | None:
        """Prepares the second writing of the tables of a sink, whose stage has this id. Returns None if nothing has to be
        written. A table that is filled at this start is left out, since its step emits all rows.
        """
        ways = [way for way in self._reemits.get(sink, ()) if self._verdicts[way.maker.id].saved_as is not None]
        if not ways:
            return None
        from sabot.connectors.sql import SqlSink  # here, because most programs have no table to fill

        assert isinstance(writer, SinkWriter)
        folder = self._folder(task, writer)
        fill = Fill(writer, folder)
        tables = [self._rows(way, _Share(0, 1, folder), fill) for way in ways]
        given = receiver_of(writer.sink)
        rows = chain.from_iterable(tables)
        fill.rows = [(0, _with_gone_keys(rows, given) if isinstance(given, SqlSink) else rows)]
        return fill

    def _folder(self, task: str, operator: Operator) -> Path | None:
        """Returns an empty folder for the tables that are read for an operator, or None if state is in memory."""
        if self._directory is None:
            return None
        own_folder(self._directory)
        folder = self._directory / f"filling-{task.replace('/', '-')}-{operator.step.id}"
        remove_tree(folder)
        make_folder(folder)
        return folder

    def _prepare(self, fill: Fill, operator: Operator, share: "_Share") -> None:
        verdict = self._verdicts[operator.step.id]
        for number in verdict.fills:
            way = self._ways[operator.step.id][number]
            assert way is not None
            rows = self._rows(way, share, fill)
            if verdict.saved_as is None:
                fill.rows.append((number, rows))
            else:
                assert isinstance(operator, FilledFromTable)
                operator.fill(rows, frozenset(part.name for part in verdict.parts if part.now and part.source is None))

    def _rows(self, way: Way, share: "_Share", fill: Fill) -> Iterator[Batch]:
        """Yields the rows of the table at the start of the path that belong to the subtask, as the steps of the path
        emit them.
        """
        edges = [each for each in way.through if isinstance(each, Edge)]
        last = edges[-1] if edges else None
        input, right = self._inputs[way.maker.id]
        maker = way.maker.make()
        assert isinstance(maker, GivesTable)
        fill.opened.append(maker)
        maker.step = way.maker
        verdict = self._verdicts[way.maker.id]
        folder = None if share.folder is None else share.folder / str(len(fill.opened))
        if folder is not None:
            make_folder(folder)
        whole = _Share(0, 1, folder) if last is not None and not last.straight else replace(share, folder=folder)
        columns = maker.open(OperatorContext(input, whole.subtask, whole.parallelism, folder, right=right))
        maker.restore(list(self._saved[way.maker.id]), verdict.forgets)
        if verdict.fills:
            self._prepare(fill, maker, whole)
        steps: list[Operator] = []
        for step in (each for each in way.through if isinstance(each, Step)):
            operator = step.make()
            columns = operator.open(OperatorContext(columns))
            steps.append(operator)
        fill.opened += steps
        return _passed(maker, steps, last, share)


def _with_gone_keys(rows: Iterator[Batch], sink: "SqlSink") -> Iterator[Batch]:
    """Yields the rows of all tables that are written into the sink again. Then, if the sink may delete rows that it has
    not written (`overwrite=True`), yields the deletions of the keys that these tables do not have. If it may not, logs
    how many such keys there are.
    """
    hashes: list[pa.Array] = []
    schema: pa.Schema | None = None
    for batch in rows:
        data = batch.taken()
        schema = data.schema
        hashes.append(hash_columns([data.column(name) for name in sink.keys]))
        yield batch
    if schema is None:
        return
    gone = sink.keys_besides(pa.concat_arrays(hashes), pa.schema([schema.field(name) for name in sink.keys]))
    if gone is None:
        _log.info("sink %s: rows of keys that its table does not have any more stay; they are not counted", sink.name)
    elif gone.num_rows and sink.overwrites:
        _log.info(
            "sink %s: deletes %s of keys that its table does not have any more, as overwrite= says",
            *(sink.name, counted_words(gone.num_rows, "row")),
        )
        columns = [_of_deletion(field, gone) for field in schema]
        yield Batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    elif gone.num_rows:
        some = ", ".join(map(str, gone.slice(0, _SHOWN_KEYS).to_pylist()))
        _log.warning(
            "sink %s: %s of keys that its table does not have any more stay (overwrite=True of the sink deletes them): %s%s",
            *(sink.name, counted_words(gone.num_rows, "row"), some, ", …" if gone.num_rows > _SHOWN_KEYS else ""),
        )


def _of_deletion(field: pa.Field, keys: pa.RecordBatch) -> pa.Array:
    """Returns a column of the deletions of these keys, of which only the key counts."""
    if field.name == OP_COLUMN:
        return pa.array([DELETE] * keys.num_rows, field.type)
    at = keys.schema.get_field_index(field.name)
    return pa.nulls(keys.num_rows, field.type) if at < 0 else keys.column(at)


@dataclass(frozen=True)
class _Share:
    """The share of the rows that one subtask of several takes: those of its keys. `folder`: the folder for state that
    is read, or None for memory.
    """

    subtask: int
    parallelism: int
    folder: Path | None


def _passed(maker: GivesTable, steps: Sequence[Operator], edge: Edge | None, share: _Share) -> Iterator[Batch]:
    """Yields the rows of the maker's table after these steps, limited to those that the edge passes to the subtask."""
    came: list[Batch] = []
    receive: Callable[[Batch], None] = came.append
    for operator in reversed(steps):
        operator.emit, receive = receive, operator.process
    for table in maker.table():
        receive(table)
        for batch in came:
            if edge is not None and edge.keys is not None and not edge.everywhere and share.parallelism > 1:
                data = batch.taken()
                owned = owned_groups(OperatorContext(data.schema, share.subtask, share.parallelism))
                batch = Batch(data.filter(owned(hash_columns([data.column(name) for name in edge.keys]))))
            if batch.num_rows:
                yield batch
        came.clear()
