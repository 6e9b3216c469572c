"""The contract of a step of a compiled chain. What is written here holds for every operator of a stream;
`tests/contracts/test_operator_contract.py` checks it for each of `operator_cases`, where a new operator needs a case.

A chain is a list of operators in one subtask: plain calls, no queue. One thread owns it and makes all calls, in this order:

    open ─▶ [restore] ─▶ ( process | advance | snapshot )* ─▶ [finish] ─▶ close

Operators call `emit` (set before `open`) with what they have made; it may block, which is backpressure. A batch may carry a
`selection`: only the rows that it names count. An operator that cannot use one asks for `batch.taken()`.

Event time travels as the column TIME_COLUMN (int64, ms UTC, not null), last of the columns, where something downstream needs it.

Changes: rows of a result that is not final carry OP_COLUMN (int8, not null), before TIME_COLUMN. INSERT and UPDATE_AFTER add a row to
a table, a multiset; DELETE and UPDATE_BEFORE take an equal one away, which is there: whatever came so far, applied in order, is a
table. UPDATE_BEFORE is directly followed by its UPDATE_AFTER, of the same unique key; who cannot keep them together writes DELETE and
INSERT, and means the same.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.codecs.marks import DELETE, INSERT, OP_COLUMN, TIME_COLUMN, UPDATE_AFTER, UPDATE_BEFORE
from sabot.state.base import Cut, Saved

__all__ = [
    "DELETE",
    "END_OF_TIME",
    "INSERT",
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

START_OF_TIME = -(2**63)  # the watermark before the first one
END_OF_TIME = 2**63 - 1  # the watermark after the last row of a bounded input


def with_time(schema: pa.Schema, timed: bool = True) -> pa.Schema:
    """The columns, and event time behind them."""
    return schema.append(pa.field(TIME_COLUMN, pa.int64())) if timed else schema


def without_time(schema: pa.Schema) -> pa.Schema:
    """The columns without event time."""
    return pa.schema([field for field in schema if field.name != TIME_COLUMN], schema.metadata)


def with_marks(schema: pa.Schema, *, op: bool, timed: bool) -> pa.Schema:
    """The columns that users see, and those of ours behind them."""
    return with_time(schema.append(pa.field(OP_COLUMN, pa.int8())) if op else schema, timed)


def without_marks(schema: pa.Schema) -> pa.Schema:
    """The columns that users see: without event time and the op of changes."""
    return pa.schema([field for field in schema if field.name not in (TIME_COLUMN, OP_COLUMN)], schema.metadata)


@dataclass
class OperatorContext:
    """What an operator is told when it is opened.

    input: the columns that will come (with TIME_COLUMN where the plan needs it).
    directory: its own, empty, for a database; None: state is kept in memory only.
    memory_budget: bytes that its state may take in memory where it has a directory.
    branches: by name, where rows go that leave the main road ("late"); absent: they are counted and dropped.
    only: key hashes -> which of them a restore takes in; None: those of the subtask's key groups.
    right: of an operator with two inputs, the columns of the second. clock: processing time. loop: where coroutines of the user's run;
    not the operator's thread. agent, version: what dead letters say of who made them.
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


class Operator:
    """One step. Without state of its own it overrides `process` and, where columns change, `open`."""

    id: str = ""  # stable over restarts: names its state in checkpoints
    sealed: Mapping[str, int] = {}  # of an exactly-once sink: by track, its last part before the last snapshot
    text: str = ""  # what it does, as the plan says it
    named: bool = False  # its id was given by the user
    path: str = ""  # stands for what its rows have gone through before it: tells two that do the same apart
    emit: Callable[[Batch], None]
    inputs = 1  # 2: rows of a second input come to `process_right`; such an operator is the first of its chain
    polls = False  # the task calls `poll` between elements, at least each 50 ms
    holds = False  # event time does not pass by itself: the operator gets the marks in `hold`, and gives them on to `on_mark`
    on_mark: Callable[[Any], None]  # set before `open`, of one that holds
    wake: Callable[[], None] = staticmethod(lambda: None)  # any thread: `poll` soon
    _about: dict[str, Any] | None = None

    def open(self, context: OperatorContext) -> pa.Schema:
        """Ready to process; -> the columns of what it emits. Raises UserError for columns that are not there."""
        return context.input

    def branch_schema(self, name: str, input: pa.Schema) -> pa.Schema:
        """The columns of what goes to `context.branches[name]`; after `open`. input: of what comes in."""
        return without_time(input)

    def restore(self, saved: list[Saved]) -> None:
        """The state of a checkpoint comes back: one entry for each subtask that the operator had then."""

    def process(self, batch: Batch) -> None:
        """Rows, in order. Emits what follows from them: never a batch without rows, unless one came, which changes nothing.

        Batches are immutable, and may be kept.
        """
        self.emit(batch)

    def process_right(self, batch: Batch) -> None:
        """Rows of the second input, in order."""
        raise NotImplementedError

    def advance(self, watermark_ms: int) -> int | None:
        """No row below this event time is expected any more. Emits what has become complete. The chain then tells the next.

        -> what it is told: a watermark that is less, where rows are still to be emitted that are older; None: the same. The end of
        time is told as it is.
        """

    def poll(self, now_ms: int) -> None:
        """Of one that `polls`: emits what has become ready by itself. now_ms: processing time."""

    def hold(self, mark: Any) -> None:
        """Of one that `holds`: a WATERMARK, IDLE or ACTIVE, to be given to `on_mark` when everything before it has been emitted."""

    @property
    def has_room(self) -> bool:
        """No: the task takes no more elements for now, and polls."""
        return True

    @property
    def is_empty(self) -> bool:
        """Nothing is in flight. The end of the input waits for that."""
        return True

    def flush(self) -> None:
        """At a barrier, before any `snapshot` of the chain: what must be safe outside before the task acknowledges is, when it returns.

        May block. What it raises ends the task.
        """

    def snapshot(self) -> tuple[dict[str, Any], Cut | None]:
        """At a barrier: (facts for the manifest, JSON values; what must be saved beside it). Must be quick: it stops the rows."""
        return {}, None

    def state_schema(self) -> dict[str, Any] | None:
        """What its state consists of, by names for people, JSON values; after `open`. None: it keeps none.

        Where it is equal, state of one program may go on in another (`plan.against` says where else).
        """
        return None

    def state_reader(self) -> dict[str, Any]:
        """What `operators.reading` needs to make an operator that can read the state: JSON values."""
        return {}

    def contents(self) -> Iterator[pa.RecordBatch]:
        """The state as columns: keys, bounds of windows, aggregates; in pieces. After `restore`, before any row."""
        return iter(())

    def about_state(self, groups: int) -> dict[str, Any]:
        """Part of the facts of a snapshot of every operator with state. groups: about how many it keeps."""
        if self._about is None:
            self._about = {"schema": self.state_schema(), "reader": self.state_reader()}
        return {**self._about, "named": self.named, "path": self.path, "groups": groups}

    def finish(self) -> None:
        """The input has ended for good, after `advance(END_OF_TIME)` where it had event time: emit all that is left."""

    def close(self) -> None:
        """Let go of everything. Idempotent."""

    @property
    def left_behind(self) -> list[str]:
        """After `close`: calls of the user's that refused to be cancelled."""
        return []

    def statistics(self) -> dict[str, Any]:
        """Figures, from any thread."""
        return {}
