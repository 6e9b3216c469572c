"""A compiled operator driven as a chain drives it, in several subtasks, with barriers, restarts and rescaling in between."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import Watermark
from sabot._cython.groups.partition import hash_columns, partition_indices
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.operators.base import (
    END_OF_TIME,
    TIME_COLUMN,
    HoldsMarks,
    Operator,
    OperatorContext,
    Polled,
    Saved,
    Stateful,
    WaitsForCalls,
)


class Loop(asyncio.SelectorEventLoop):
    """Runs what is ready when it is told to, in the thread of the test."""

    def turns(self, count: int = 4) -> None:
        for _ in range(count):
            self.call_soon(self.stop)
            self.run_forever()


class OperatorRun:
    """`make()` in `parallelism` subtasks; rows go to them by key group, as a selection. `results` and `late` gather what comes out.

    right: the columns of a second input, fed by `feed_right`; right_keys: what they go by (None: `keys`). broadcast: the second input
    goes whole to all subtasks, and rows of the first to any. punctual: no row may come out that is older than what `advance` has said.
    loop: where coroutines of the user's run; they go on at each `poll` and at the end.
    """

    def __init__(
        self,
        make: Callable[[], Operator],
        input: pa.Schema,
        keys: Sequence[str],
        directory: Path,
        parallelism: int = 1,
        memory_budget: int | None = None,
        *,
        right: pa.Schema | None = None,
        right_keys: Sequence[str] | None = None,
        broadcast: bool = False,
        punctual: bool = False,
        clock: Clock = SYSTEM_CLOCK,
        loop: Loop | None = None,
    ) -> None:
        self._make, self._input, self._keys, self._directory = make, input, keys, directory
        self._right, self._right_keys = right, keys if right_keys is None else right_keys
        self._broadcast, self._punctual, self._clock = broadcast, punctual, clock
        self._loop = loop
        self._told: list[int] = []  # by subtask: the watermark that the next operators know
        self._memory_budget = memory_budget  # None: state is kept in memory only
        self.batches: list[Batch] = []
        self.late: list[dict[str, Any]] = []
        self.parts: list[Operator] = []
        self._checkpoints = 0
        self._dealt_anew = False
        directory.mkdir(exist_ok=True)
        self._start(parallelism, [])

    def _start(self, parallelism: int, saved: list[Saved], *, own: bool = False) -> None:
        self.parts = []
        self._told = [-(2**63)] * parallelism
        for subtask in range(parallelism):
            part = self._make()
            part.emit = partial(self._emit, subtask)
            if isinstance(part, HoldsMarks):
                part.on_mark = partial(self._tell, subtask)
            late = {name: lambda batch: self.late.extend(batch.taken().to_pylist()) for name in ("late", "late_right")}
            context = OperatorContext(
                self._input, subtask, parallelism, branches=late, right=self._right, clock=self._clock
            )
            if self._loop is not None:
                context.loop = lambda: self._loop
            if self._memory_budget is not None:
                context.memory_budget = self._memory_budget
                context.directory = self._directory / f"state-{self._checkpoints}-{subtask}"
                context.directory.mkdir()
            self.schema = part.open(context)
            if saved and isinstance(part, Stateful):
                part.restore([replace(saved[subtask], own=True)] if own else saved)
            self.parts.append(part)

    def _emit(self, subtask: int, batch: Batch) -> None:
        assert batch.schema.equals(self.schema), f"{batch.schema} is not {self.schema}"
        assert batch.num_rows
        batch.taken().validate(full=True)
        if self._punctual:
            assert min(batch.taken().column(TIME_COLUMN).to_pylist()) >= self._told[subtask]
        self.batches.append(batch)

    @property
    def results(self) -> list[dict[str, Any]]:
        return [row for batch in self.batches for row in batch.taken().to_pylist()]

    def feed(self, rows: pa.RecordBatch, size: int = 1 << 16) -> None:
        """The rows, in batches of `size`."""
        for start in range(0, rows.num_rows, size):
            data = rows.slice(start, size)
            if len(self.parts) == 1:
                self.parts[0].process(Batch(data, {("t", 0): start}))
            elif self._broadcast:
                for number, part in enumerate(self.parts):
                    some = pa.array(range(number, data.num_rows, len(self.parts)), pa.int32())
                    if len(some):
                        part.process(Batch(data).with_selection(some))
            else:
                for part, batch in self._dealt(data, self._keys):
                    part.process(batch)

    def feed_right(self, rows: pa.RecordBatch, size: int = 1 << 16) -> None:
        """Rows of the second input, in batches of `size`."""
        for start in range(0, rows.num_rows, size):
            data = rows.slice(start, size)
            if len(self.parts) == 1 or self._broadcast:
                for part in self.parts:
                    part.process_right(Batch(data, {("r", 0): start}))
            else:
                for part, batch in self._dealt(data, self._right_keys):
                    part.process_right(batch)

    def _dealt(self, data: pa.RecordBatch, keys: Sequence[str]) -> Iterator[tuple[Operator, Batch]]:
        """The rows of each subtask, as the end of a chain deals them out by key."""
        if not keys:
            yield self.parts[0], Batch(data)
            return
        hashes = hash_columns([data.column(name) for name in keys])
        indices, bounds = partition_indices(hashes, len(self.parts))
        for part, first, end in zip(self.parts, bounds.to_pylist(), bounds.to_pylist()[1:], strict=False):
            if end > first:
                yield part, Batch(data).with_selection(indices.slice(first, end - first), hashes)

    def advance(self, watermark: int) -> None:
        for number, part in enumerate(self.parts):
            if isinstance(part, HoldsMarks):
                part.hold(Watermark(watermark))
                continue
            told = part.advance(watermark)
            assert told is None or told <= watermark
            self._told[number] = max(self._told[number], watermark if told is None else told)

    def _tell(self, subtask: int, mark: Watermark) -> None:
        """An operator that holds marks gives one on."""
        assert mark.timestamp_ms >= self._told[subtask]
        self._told[subtask] = mark.timestamp_ms

    def poll(self, now_ms: int) -> None:
        """Processing time has come so far, for operators that wait for it."""
        if self._loop is not None:
            self._loop.turns()
        for part in self.parts:
            if isinstance(part, Polled):
                part.poll(now_ms)

    def checkpoint(self) -> list[Saved]:
        """A barrier: the state of each subtask is saved on the disk."""
        self._checkpoints += 1
        saved = []
        for number, part in enumerate(self.parts):
            directory = self._directory / f"{self._checkpoints}-{number}"
            directory.mkdir()
            facts, state = part.snapshot() if isinstance(part, Stateful) else ({}, None)
            if state is not None:
                written = state.save(directory)
                assert written == sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
                state.discard()
            saved.append(Saved(directory, json.loads(json.dumps(facts))))
        return saved

    def change(
        self,
        make: Callable[[], Operator],
        input: pa.Schema,
        right: pa.Schema | None = None,
        keys: Sequence[str] | None = None,
    ) -> None:
        """The next restart is that of another program: its operator, the columns of its inputs, and the keys by which rows go to subtasks
        (None: as before).
        """
        self._make, self._input, self._right = make, input, right
        if keys is not None:
            self._keys, self._dealt_anew = keys, True

    def restart(self, parallelism: int) -> None:
        """A run of so many subtasks, restored from a checkpoint that was made here: as in an app, with as many subtasks as before each gets
        what it had itself, unless rows go to any of them.
        """
        same = parallelism == len(self.parts) and not (self._broadcast or self._dealt_anew)
        saved, self._dealt_anew = self.checkpoint(), False
        for part in self.parts:
            part.close()
            part.close()
        self._start(parallelism, saved, own=same)

    def end(self, *, timed: bool = True) -> None:
        """The input has ended."""
        if timed:
            self.advance(END_OF_TIME)
        for part in self.parts:
            for _ in range(1000 if isinstance(part, WaitsForCalls) else 0):
                if part.is_empty:
                    break
                self.poll(0)
            assert not isinstance(part, WaitsForCalls) or part.is_empty
            part.finish()

    def statistic(self, name: str) -> int:
        return sum(part.statistics()[name] for part in self.parts)
