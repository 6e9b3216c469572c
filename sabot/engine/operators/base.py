"""The contract of an operator: one step of a stream, in one subtask.

`Operator` has the eight members that every operator has. What only some do is an ability, a class beside it (decision 052). The suite
`tests/contracts/test_operator_contract.py` checks the contract for each case in `operator_cases`; a new operator needs a case there.

A chain is a list of operators in one subtask: plain calls, no queue. One thread owns the chain and makes all calls, in this order:

    open ─▶ [restore] ─▶ ( process | advance | poll | snapshot )* ─▶ [finish] ─▶ [snapshot] ─▶ close

A batch may carry a `selection`: only the rows that it names count. An operator that cannot use a selection calls `batch.taken()`.

Event time travels in the column TIME_COLUMN (int64, ms UTC, not null), the last column, if a step further on needs it.

Changes: rows of a result that is not final have the column OP_COLUMN (int8, not null), before TIME_COLUMN. INSERT and UPDATE_AFTER add a
row to a table, which is a multiset; DELETE and UPDATE_BEFORE take an equal row away, which must be in the table. So any prefix of the
changes makes a table. UPDATE_BEFORE is directly followed by its UPDATE_AFTER, with the same unique key. An operator that cannot keep the
two together emits DELETE and INSERT instead, which mean the same.
"""

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.nodes.origin import NO_ORIGIN, StepOrigin
from sabot.base.dataclass import dataclass
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.codecs.engine_columns import DELETE, INSERT, OP_COLUMN, TIME_COLUMN, UPDATE_AFTER, UPDATE_BEFORE
from sabot.codecs.records import RECORD_SCHEMA
from sabot.engine.operators.state_facts import StateReader, StateSchema
from sabot.engine.state.base import Cut, Saved

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

__all__ = [
    "CHUNK_ROWS",
    "COMPLETE",
    "DELETE",
    "END_OF_TIME",
    "INSERT",
    "LETTERS",
    "OP_COLUMN",
    "START_OF_TIME",
    "TIME_COLUMN",
    "UPDATE_AFTER",
    "UPDATE_BEFORE",
    "Cut",
    "FilledFromTable",
    "GivesTable",
    "HasBranches",
    "HoldsMarks",
    "Operator",
    "OperatorContext",
    "Polled",
    "Restorable",
    "Saved",
    "SecondInput",
    "Stateful",
    "StepInfo",
    "WaitsForCalls",
    "WritesOutside",
    "branch_schema",
    "with_marks",
    "with_time",
    "without_marks",
    "without_time",
]

LETTERS = "/letters"  # ends the name of an output branch whose rows are dead letters (RECORD_SCHEMA)
CHUNK_ROWS = 65_536  # the most rows of a batch that an operator makes out of its state
START_OF_TIME = -(2**63)  # the watermark before the first one
END_OF_TIME = 2**63 - 1  # the watermark after the last row of a bounded input

# A mark behind the rows that were in a source when it was opened. It is an empty batch, so a gate returns it with the channel it came
# through, and does not align it.
COMPLETE = Batch(pa.RecordBatch.from_arrays([], schema=pa.schema([])))


def with_time(schema: pa.Schema, timed: bool = True) -> pa.Schema:
    """Returns the columns with TIME_COLUMN behind them, or unchanged if `timed` is False."""
    return schema.append(pa.field(TIME_COLUMN, pa.int64())) if timed else schema


def without_time(schema: pa.Schema) -> pa.Schema:
    """Returns the columns without event time."""
    return pa.schema([field for field in schema if field.name != TIME_COLUMN], schema.metadata)


def with_marks(schema: pa.Schema, *, op: bool, timed: bool) -> pa.Schema:
    """Returns the columns that users see, with OP_COLUMN if `op` is True, and TIME_COLUMN if `timed` is True."""
    return with_time(schema.append(pa.field(OP_COLUMN, pa.int8())) if op else schema, timed)


def without_marks(schema: pa.Schema) -> pa.Schema:
    """Returns the columns that users see: those without event time and without the op of changes."""
    return pa.schema([field for field in schema if field.name not in (TIME_COLUMN, OP_COLUMN)], schema.metadata)


@dataclass
class OperatorContext:
    """The facts that an operator gets when it is opened.

    `input`: the columns of the rows that will come, with TIME_COLUMN if the plan needs it. `subtask`, `parallelism`:
    the number of this subtask, and the number of all subtasks. `directory`: an empty directory of the operator's own,
    for a database, or None if state is kept in memory only. `memory_budget`: the bytes that the state may take in
    memory if there is a directory. `branches`: the receivers of output branches, by name ("late"). Rows of a branch
    that is absent are counted and dropped; a branch whose name ends in LETTERS receives dead letters. `only`: a
    function from key hashes to True for each key whose state a restore loads, or None for the keys of the subtask's
    key groups. `right`: the columns of the second input, or None. `clock`: the processing time. `loop`: returns the
    event loop of the user's coroutines, which runs in another thread. `agent`, `version`: the name and the version
    that dead letters of this operator carry. `parted_by`: the columns by whose key groups rows come to the subtasks,
    if these are only some of the operator's keys. `dead_letters`: receives dead letters (RECORD_SCHEMA) of rows that
    the operator cannot process, or None if the app has no place for them.
    """

    input: pa.Schema
    subtask: int = 0
    parallelism: int = 1
    directory: Path | None = None
    memory_budget: int = 256_000_000
    branches: dict[str, Callable[[Batch], None]] = field(default_factory=dict)
    only: Callable[[pa.UInt64Array], pa.BooleanArray] | None = None
    right: pa.Schema | None = None
    clock: Clock = SYSTEM_CLOCK
    loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.get_event_loop
    agent: str = ""
    version: str = ""
    parted_by: tuple[str, ...] = ()
    dead_letters: Callable[[pa.RecordBatch], None] | None = None

    def owners(self, keys: Sequence[str]) -> list[int]:
        """Returns the indices of the columns among `keys` whose hash decides to which subtask a row comes: those of
        `parted_by`, or all keys.
        """
        return [list(keys).index(key) for key in self.parted_by or keys]


@dataclass(eq=False)
class StepInfo:
    """The place of an operator in the plan. The planner sets it; the operator reads it from `open` on.

    `id`: the name of the operator's state in checkpoints, which stays the same over restarts.
    `text`: what the operator does, for people.
    `named`: True if the user gave the id (`.named("x")`).
    `path`: a digest of all steps before the operator, by which a start finds the state of a step without a name.
    `event_time`: the expressions, as text, that gave the event times in the state, or "" if the state has none.
    `lineage`: for each input, the tables whose changes come through it, as JSON values (`plan.lineage`).
    `origin`: the statement of a script that made the step.
    `conditions`: the conditions of filters that its rows have passed, as text, with their positions in the script.
    `computed`: for each input of a step of a script, the columns that it needs, and the expressions that made them, as text.
    `table`: the name of the topic or source whose table it keeps (`App.table`), or "".
    """

    id: str = ""
    text: str = ""
    named: bool = False
    path: str = ""
    event_time: str = ""
    lineage: Sequence[Any] = ()
    origin: StepOrigin = NO_ORIGIN
    conditions: Mapping[str, str] = field(default_factory=dict)
    computed: Sequence[Mapping[str, str]] = ()
    table: str = ""


_ABILITIES: dict[str, type["Operator"]] = {}  # by the name of a member, the ability that defines it


class Operator:
    """One step of a stream in one subtask: the eight members that every operator has.

    Each method is called in the thread of the task, and may raise: an error ends the task, and the app recovers. A step without state
    overrides `process`, and `open` if its columns change:

        class Doubled(Operator):
            def process(self, batch: Batch) -> None:
                self.emit(batch.with_data(twice(batch.data)))

    What only some operators do is an ability: a class below, which an operator names among its bases. The task asks by `isinstance` once,
    when it builds the chain. A class that defines a member of an ability without having it as a base is refused with a TypeError.
    """

    step: StepInfo = StepInfo()
    """The place of the operator in the plan. It is set before `open`."""

    emit: Callable[[Batch], None]
    """Passes the rows that the operator has made to the next operator or channel. It is set before `open`. It blocks
    while a channel behind the chain is full.
    """

    def __init_subclass__(cls, *, ability: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        if ability:
            names = {*vars(cls), *inspect.get_annotations(cls)}
            _ABILITIES.update({name: cls for name in names if not name.startswith("_")})
            return
        for base in cls.__mro__:
            for name in vars(base):
                needed = _ABILITIES.get(name)
                if needed is not None and not issubclass(cls, needed):
                    raise TypeError(
                        f"{cls.__qualname__} defines {name}, which only an operator with the ability {needed.__name__} has: "
                        f"nothing would call it; write class {cls.__name__}(…, {needed.__name__}), or choose another name"
                    )

    def open(self, context: OperatorContext) -> pa.Schema:
        """Makes the operator ready to process, and returns the columns of the rows that it emits.

        Called once, by the thread that builds the app, before any row. The planner also opens and closes an operator only to learn its
        columns. Raises UserError for columns that do not exist or do not fit.
        """
        return context.input

    def process(self, batch: Batch) -> None:
        """Processes rows of the first input, in order, and emits the rows that follow from them. May block in `emit`.

        Batches are immutable, so the operator may keep them. It emits a batch without rows only if it was given one.
        """
        self.emit(batch)

    def advance(self, watermark_ms: int) -> int | None:
        """Advances event time: no row below this watermark is expected any more. Emits results that have become
        complete.

        Returns the watermark for the next operator, which is lower if older rows are still to be emitted, or None for
        the same watermark. After `advance(END_OF_TIME)` the next operator gets END_OF_TIME, whatever this method
        returns.
        """

    def finish(self) -> None:
        """Emits all rows that are left. Called once, when the input has ended for good, after `advance(END_OF_TIME)`. May block."""

    def close(self) -> None:
        """Releases files, memory, threads and connections. Idempotent; also called for an operator that was never opened.

        Called by the thread that ends the app, when the task's thread has ended. Rows that were not emitted are lost.
        """

    def statistics(self) -> "ToldStep":
        """Returns figures for metrics, by name. Called from any thread, at any time after `open`; must not block."""
        return {}


class SecondInput(Operator, ABC, ability=True):
    """An operator with two inputs, as a join. It is the first operator of its chain; `OperatorContext.right` has its second columns."""

    @abstractmethod
    def process_right(self, batch: Batch) -> None:
        """Processes rows of the second input, in order. Otherwise like `process`; rows of both inputs come in any order."""


class HasBranches(Operator, ABC, ability=True):
    """An operator with an output branch whose columns are others than those of its input, as a join's late rows of the right."""

    @abstractmethod
    def branch_schema(self, name: str, input: pa.Schema) -> pa.Schema:
        """Returns the columns of the rows that go to `context.branches[name]`. Called after `open`, while the chain is built.

        `input`: the columns of the operator's first input.
        """


class Polled(Operator, ABC, ability=True):
    """An operator that acts without new rows, for example when a timer is due or a call ends. A chain with such an
    operator is polled between elements.
    """

    @abstractmethod
    def poll(self, now_ms: int) -> None:
        """Emits what has become ready. Called by the task between elements, at least every 50 ms. May block in `emit`.

        `now_ms`: the processing time.
        """


class WaitsForCalls(Polled, ability=True):
    """An operator whose rows wait for calls that run outside of the task's thread, as `map_async`."""

    wake: Callable[[], None] = staticmethod(lambda: None)
    """Asks the task for a `poll` soon. Set before `open`; the operator calls it from any thread."""

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """False if the operator is at its limit of rows in flight. The task then takes no rows, and polls. Asked after each `poll`."""

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """True if no row is in flight. At the end of the input the task polls until it is True, and then calls `finish`."""

    @property
    @abstractmethod
    def left_behind(self) -> list[str]:
        """The user's calls that refused to be cancelled, for a message. Asked after `close`."""


class HoldsMarks(Operator, ABC, ability=True):
    """An operator that decides when watermarks go on to the next operator. `hold` is called in place of `advance`."""

    on_mark: Callable[[Any], None]
    """Passes a mark on to the next operator. Set before `open`; the operator calls it in the task's thread."""

    @abstractmethod
    def hold(self, mark: Any) -> None:
        """Receives a mark: a Watermark, IDLE, ACTIVE, or COMPLETE (all rows that the sources had at the start have
        been read). The operator passes it to `on_mark` when all rows before it are emitted.

        An operator that makes event times of its own may drop a watermark and pass on another one.
        """


class WritesOutside(Operator, ABC, ability=True):
    """An operator whose rows leave the app: the writer of a sink."""

    wrote: Mapping[str, Any] | None = None
    """The columns that the app has written into the sink so far, for the checkpoint (`runtime.tasks.manifest_facts.Wrote`); None
    if they are not known.
    """
    stands: Mapping[str, Any] | None = None
    """What the sink has of its table since the start, for the checkpoint (`plan.standing.SinkTable`); None if its name is not its own."""

    @abstractmethod
    def flush(self) -> Mapping[str, int]:
        """Makes all rows so far safe: at the receiver, or in parts that the checkpoint will name.

        Called at a barrier and at the end of the input, before `snapshot` of any operator of the chain. May block.
        The task acknowledges the barrier only after it returns. Returns the number of the last sealed part by track;
        for a sink that is not exactly-once, an empty dict.
        """


class Restorable(Operator, ability=True):
    """An operator that restores state from a checkpoint and shows it. The command `sabot state` needs no more than this."""

    def restore(self, saved: list[Saved], forgets: frozenset[str] = frozenset()) -> None:
        """Restores the state of a checkpoint. Called at most once, after `open` and before any row.

        `saved`: an entry for each subtask that the operator had in the checkpoint. If it has as many subtasks now,
        `saved` is only the entry of this subtask, with `own` set. `forgets`: names (of aggregates, or of a function's
        values) whose state the user drops. Raises CorruptCheckpoint, and UserError for state that does not fit.
        """
        raise NotImplementedError

    def contents(self) -> Iterator[pa.RecordBatch]:
        """Yields the state as columns (keys, bounds of windows, values), in pieces. Called after `restore`, before any row."""
        return iter(())


class Stateful(Restorable, ABC, ability=True):
    """An operator whose state is part of every checkpoint. Most such operators extend `StatefulOperator`, which
    implements snapshots and restores.
    """

    parted_by: tuple[str, ...] = ()
    """The columns by whose key group rows come to the subtasks, if these are only some of the operator's keys; else empty."""

    spent_at_end = False
    """True if nobody needs the state when all inputs of the app have ended, as of a join. A checkpoint then leaves it out, unless the
    user has named the operator."""

    _about: dict[str, Any] | None = None

    @abstractmethod
    def snapshot(self) -> tuple[dict[str, Any], Cut | None]:
        """Returns the facts for the manifest, as JSON values with those of `about_state`, and the state to be saved, or None.

        Called at a barrier, and once more at the end of the input. Must be quick, since no row moves meanwhile: other threads save the
        Cut, which does not change when the state does.
        """

    @abstractmethod
    def state_schema(self) -> StateSchema:
        """Returns what the state consists of, as JSON values under names for people; "kind" is one. Called after `open`.

        State of one program continues in another if the schemas are equal, or if `taken_over` says how.
        """

    def state_reader(self) -> StateReader:
        """Returns the facts, as JSON values, from which `operators.reading` makes an operator that reads the state.
        Called after `open`.
        """
        return {}

    def taken_over(self, fact: str, before: Any, now: Any, groups: int) -> str | None:
        """Returns a text that says how the state continues although the entry `fact` of `state_schema` has changed,
        or None if the state cannot continue. `before`, `now`: the value of this entry in the checkpoint and in the
        program. `groups`: the number of groups in the checkpoint.

        Called by the planner, after `open`, also after `close`.
        """
        return None

    def about_state(self, groups: int) -> dict[str, Any]:
        """Returns the facts that every `snapshot` contains, by which a start recognises the state.

        `groups`: about how many groups the state has. A start that would lose them is refused.
        """
        if self._about is None:
            self._about = {"schema": self.state_schema(), "reader": self.state_reader()}
        step = self.step
        about = {"named": step.named, "path": step.path, "event_time": step.event_time, "groups": groups}
        about |= {"conditions": list(step.conditions), "computed": list(step.computed)}
        about |= {"lineage": step.lineage} if step.lineage else {}
        about |= {"origin": step.origin.name} if step.origin.name else {}
        return {**self._about, **about, **({"parted_by": list(self.parted_by)} if self.parted_by else {})}


class GivesTable(Stateful, ability=True):
    """An operator that keeps a table and emits its changes. A step behind it that is new in the program can be filled from the table."""

    @abstractmethod
    def table(self) -> Iterator[Batch]:
        """Yields the rows of the table, as inserts with all marks. Called after `restore`, before any row, by the
        thread that starts the app.
        """


class FilledFromTable(Stateful, ability=True):
    """An operator that needs all rows of the tables whose changes it processes. Without the rows from before it was
    added to the program, its results would be wrong: a change may take a row away that the operator has never had. So
    a start fills the operator from the table, or is refused (decision 032).
    """

    needs_table = True
    """False if the input is an append stream. Then the operator may begin with the rows from now on."""

    def unfit_to_fill(self, names: frozenset[str]) -> str:
        """Returns the reason why the rows of the table cannot replace the changes that made it, or "" if they can.

        `names`: the aggregates to be filled, or no name for all state of the operator. Called by the planner, after
        `open`, also after `close`.
        """
        return ""

    def fill(self, rows: Iterator[Batch], names: frozenset[str]) -> None:
        """Fills aggregates that were added to the program, and are empty after `restore`, from the rows of the table.

        Only called if `state_schema` lists aggregates. Called before any row, by the thread that starts the app.
        `names`: the aggregates to fill.
        """
        raise NotImplementedError


def branch_schema(operator: Operator, name: str, input: pa.Schema) -> pa.Schema:
    """Returns the columns of the rows that go to the output branch `name` of an open operator: dead letters, or rows of the input.

    `input`: the columns of the operator's first input.
    """
    if name.endswith(LETTERS):
        return RECORD_SCHEMA
    return operator.branch_schema(name, input) if isinstance(operator, HasBranches) else without_time(input)
