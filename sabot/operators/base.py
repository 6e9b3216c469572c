"""The contract of a step of a compiled chain. What is written here holds for every operator of a stream;
`tests/contracts/test_operator_contract.py` checks it for each of `operator_cases`, where a new operator needs a case.

A chain is a list of operators in one subtask: plain calls, no queue. One thread owns it and makes all calls, in this order:

    open ─▶ [restore] ─▶ ( process | advance | snapshot )* ─▶ [finish] ─▶ close

Operators call `emit` (set before `open`) with what they have made; it may block, which is backpressure. A batch may carry a
`selection`: only the rows that it names count. An operator that cannot use one asks for `batch.taken()`.

Event time travels as the column TIME_COLUMN (int64, ms UTC, not null), last of the columns, where something downstream needs it.

Changes: rows of a result that is not final carry OP_COLUMN (int8, not null), before TIME_COLUMN. INSERT and UPDATE_AFTER add a row to
a table, a multiset; DELETE and UPDATE_BEFORE take an equal one away, which is there: whatever came so far, applied in order, is a
table. UPDATE_BEFORE is directly followed by its UPDATE_AFTER, of the same unique key; an operator that cannot keep them together emits
DELETE and INSERT instead, which mean the same.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.codecs.marks import DELETE, INSERT, OP_COLUMN, TIME_COLUMN, UPDATE_AFTER, UPDATE_BEFORE
from sabot.codecs.records import RECORD_SCHEMA
from sabot.state.base import Cut, Saved

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
    "Operator",
    "OperatorContext",
    "Saved",
    "with_marks",
    "with_time",
    "without_marks",
    "without_time",
]

LETTERS = "/letters"  # ends the name of an output branch whose rows are dead letters (RECORD_SCHEMA)
CHUNK_ROWS = 65_536  # the most rows of a batch that an operator makes out of its state
START_OF_TIME = -(2**63)  # the watermark before the first one
END_OF_TIME = 2**63 - 1  # the watermark after the last row of a bounded input

# A mark behind the rows that were in a source when it was opened. It is an empty batch: a gate says through which channel it came, and
# aligns nothing.
COMPLETE = Batch(pa.RecordBatch.from_arrays([], schema=pa.schema([])))


def with_time(schema: pa.Schema, timed: bool = True) -> pa.Schema:
    """The columns, with TIME_COLUMN behind them where rows are timed."""
    return schema.append(pa.field(TIME_COLUMN, pa.int64())) if timed else schema


def without_time(schema: pa.Schema) -> pa.Schema:
    """The columns without event time."""
    return pa.schema([field for field in schema if field.name != TIME_COLUMN], schema.metadata)


def with_marks(schema: pa.Schema, *, op: bool, timed: bool) -> pa.Schema:
    """The columns that users see, with OP_COLUMN and TIME_COLUMN behind them as asked for."""
    return with_time(schema.append(pa.field(OP_COLUMN, pa.int8())) if op else schema, timed)


def without_marks(schema: pa.Schema) -> pa.Schema:
    """The columns that users see: those without event time and the op of changes."""
    return pa.schema([field for field in schema if field.name not in (TIME_COLUMN, OP_COLUMN)], schema.metadata)


@dataclass
class OperatorContext:
    """What an operator is told when it is opened.

    input: the columns of the rows that will come (with TIME_COLUMN where the plan needs it).
    directory: an empty directory of the operator's own, for a database; None: state is kept in memory only.
    memory_budget: the bytes that its state may take in memory where it has a directory.
    branches: by name of an output branch ("late"), what takes its rows; rows of a branch that is absent are counted and dropped.
    A branch whose name ends in LETTERS takes them as dead letters.
    only: key hashes -> which of them a restore takes in; None: those of the subtask's key groups.
    right: the columns of the second input, for an operator that has two. clock: processing time. loop: the event loop on which the
    user's coroutines run, in another thread than the operator's. agent, version: who made a dead letter, as the letter says it.
    parted_by: the columns by whose key groups rows come to the subtasks, where these are only some of the operator's keys.
    dead_letters: takes letters (RECORD_SCHEMA) of rows that the operator cannot process; None: there is no place for them.
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
        """Which of an operator's keys say, by their hash, whose a group is: those by which its rows come to the subtasks."""
        return [list(keys).index(key) for key in self.parted_by or keys]


class Operator:
    """One step of a chain. A step without state overrides `process`, and `open` if its output has other columns than its input."""

    id: str = ""  # stable over restarts: it names the operator's state in checkpoints
    parted_by: tuple[str, ...] = ()  # as of the context, where the operator can keep its state by some of its keys
    sealed: Mapping[str, int] = {}  # an exactly-once sink says here, by track, its last part before the last snapshot
    text: str = ""  # what the operator does, as the plan says it
    named: bool = False  # whether the user gave the id
    path: str = ""  # a digest of the steps before it, which tells two operators that do the same apart
    lineage: Sequence[Any] = ()  # by input, of which tables its changes are, as JSON values (`plan.lineage`)
    event_time: str = ""  # what the event times in its state were read from, in words; "": it has none
    forgets: frozenset[str] = frozenset()  # set before `restore`: names of what it does not take over, as aggregates
    emit: Callable[[Batch], None]
    spent_at_end = False  # True: unless it is named, nobody needs its state when all inputs of the app have ended
    inputs = 1  # 2: rows of a second input come to `process_right`; such an operator is the first of its chain
    polls = False  # True: the task calls `poll` between elements, at least every 50 ms
    gives_table = False  # True: `table` gives the rows that its changes have made
    takes_table = (
        False  # True: it keeps what the changes of its inputs have made; without what came before it would be wrong
    )
    holds = False  # True: watermarks do not pass by themselves; the operator gets them in `hold`, and gives them to `on_mark`
    on_mark: Callable[[Any], None]  # set before `open` for an operator that holds
    wake: Callable[[], None] = staticmethod(lambda: None)  # asks for a `poll` soon, from any thread
    _about: dict[str, Any] | None = None

    def open(self, context: OperatorContext) -> pa.Schema:
        """Makes the operator ready to process; -> the columns of what it emits. Raises UserError for columns that are not there."""
        return context.input

    def branch_schema(self, name: str, input: pa.Schema) -> pa.Schema:
        """The columns of the rows that go to `context.branches[name]`; called after `open`. input: the columns of its input."""
        return RECORD_SCHEMA if name.endswith(LETTERS) else without_time(input)

    def restore(self, saved: list[Saved]) -> None:
        """Takes back the state of a checkpoint.

        saved: an entry for each subtask that the operator had then; where it has as many now, only that of this one, which is `own`.
        """

    def process(self, batch: Batch) -> None:
        """Takes rows, in order, and emits what follows from them. It emits a batch without rows only if one came, which changes nothing.

        Batches are immutable, and may be kept.
        """
        self.emit(batch)

    def process_right(self, batch: Batch) -> None:
        """Takes rows of the second input, in order."""
        raise NotImplementedError

    def advance(self, watermark_ms: int) -> int | None:
        """No row below this event time is expected any more. Emits what has become complete; then the chain calls the next operator.

        -> the watermark for the next operator: a lower one where older rows are still to be emitted; None: the same one. The end of
        time is passed on as it is, whatever `advance` returned.
        """

    def poll(self, now_ms: int) -> None:
        """Called if the operator `polls`: emits what has become ready without new rows. now_ms: processing time."""

    def hold(self, mark: Any) -> None:
        """Called if the operator `holds`: `mark` (of time, or COMPLETE) goes to `on_mark` once all rows before it are emitted."""

    @property
    def has_room(self) -> bool:
        """False when the operator is at its limit of rows in flight: the task takes no more elements for now, and polls."""
        return True

    @property
    def is_empty(self) -> bool:
        """True when no row is in flight. The end of the input waits for that."""
        return True

    def flush(self) -> None:
        """At a barrier, before any `snapshot` of the chain: makes safe what must be safe outside before the task acknowledges.

        May block. An error ends the task.
        """

    def snapshot(self) -> tuple[dict[str, Any], Cut | None]:
        """At a barrier: (facts for the manifest, as JSON values; what must be saved). Must be quick, since no row moves meanwhile."""
        return {}, None

    def state_schema(self) -> dict[str, Any] | None:
        """What the state consists of, as JSON values under names for people; called after `open`. None: the operator has no state.

        State of one program goes on in another where the schemas are equal, or `taken_over` says how.
        """
        return None

    def taken_over(self, fact: str, before: Any, now: Any, groups: int) -> str | None:
        """How the state of a checkpoint goes on though `fact` of `state_schema` was `before` in it and is `now`, in words for people. None:
        it cannot. groups: how many the checkpoint has, as `group_count`. Called after `open`, also after `close`.
        """
        return None

    def state_reader(self) -> dict[str, Any]:
        """What `operators.reading` needs to make an operator that can read the state, as JSON values."""
        return {}

    def contents(self) -> Iterator[pa.RecordBatch]:
        """The state as columns (keys, bounds of windows, aggregates), in pieces. Called after `restore`, before any row."""
        return iter(())

    def table(self) -> Iterator[Batch]:
        """The rows that its changes have made so far, as inserts with all marks. Called after `restore`, where it `gives_table`."""
        return iter(())

    def unfit_to_fill(self, names: frozenset[str]) -> str:
        """Why the rows of a table cannot take the place of the changes that made it, for these aggregates, or with no names for all that
        the operator keeps; "" where they can. Called after `open`, also after `close`.
        """
        return ""

    def fill(self, rows: Iterator[Batch], names: frozenset[str]) -> None:
        """Fills these aggregates, which are empty after a restore, from the rows of the table that the others were made of."""
        raise NotImplementedError

    def about_state(self, groups: int) -> dict[str, Any]:
        """The facts that every operator with state puts into its snapshot. groups: about how many it keeps."""
        if self._about is None:
            self._about = {"schema": self.state_schema(), "reader": self.state_reader()}
        about = {"named": self.named, "path": self.path, "event_time": self.event_time, "groups": groups}
        about |= {"lineage": self.lineage} if self.lineage else {}
        return {**self._about, **about, **({"parted_by": list(self.parted_by)} if self.parted_by else {})}

    def finish(self) -> None:
        """The input has ended for good, after `advance(END_OF_TIME)` where it had event time: emits all that is left."""

    def close(self) -> None:
        """Lets go of everything. Idempotent."""

    @property
    def left_behind(self) -> list[str]:
        """After `close`: the user's calls that refused to be cancelled."""
        return []

    def statistics(self) -> dict[str, Any]:
        """Figures for metrics; may be called from any thread."""
        return {}
