"""A compiled operator driven as a chain drives it, in several subtasks, with barriers, restarts and rescaling in between."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from sabot._cython.batch import Batch
from sabot._cython.keyed import hash_columns
from sabot._cython.partition import partition_indices
from sabot.operators.base import END_OF_TIME, Operator, OperatorContext, SavedState


class OperatorRun:
    """`make()` in `parallelism` subtasks; rows go to them by key group, as a selection. `results` and `late` gather what comes out."""

    def __init__(
        self,
        make: Callable[[], Operator],
        input: pa.Schema,
        keys: Sequence[str],
        directory: Path,
        parallelism: int = 1,
        memory_budget: int | None = None,
    ) -> None:
        self._make, self._input, self._keys, self._directory = make, input, keys, directory
        self._memory_budget = memory_budget  # None: state is kept in memory only
        self.batches: list[Batch] = []
        self.late: list[dict[str, Any]] = []
        self.parts: list[Operator] = []
        self._checkpoints = 0
        directory.mkdir(exist_ok=True)
        self._start(parallelism, [])

    def _start(self, parallelism: int, saved: list[SavedState]) -> None:
        self.parts = []
        for subtask in range(parallelism):
            part = self._make()
            part.emit = self._emit
            side = {"late": lambda batch: self.late.extend(batch.taken().to_pylist())}
            context = OperatorContext(self._input, subtask, parallelism, side=side)
            if self._memory_budget is not None:
                context.memory_budget = self._memory_budget
                context.directory = self._directory / f"state-{self._checkpoints}-{subtask}"
                context.directory.mkdir()
            self.schema = part.open(context)
            if saved:
                part.restore(saved)
            self.parts.append(part)

    def _emit(self, batch: Batch) -> None:
        assert batch.schema.equals(self.schema), f"{batch.schema} is not {self.schema}"
        assert batch.num_rows
        batch.taken().validate(full=True)
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
                continue
            hashes = hash_columns([data.column(name) for name in self._keys])
            indices, bounds = partition_indices(hashes, len(self.parts))
            for part, first, end in zip(self.parts, bounds.to_pylist(), bounds.to_pylist()[1:], strict=False):
                if end > first:
                    part.process(Batch(data).with_selection(indices.slice(first, end - first), hashes))

    def advance(self, watermark: int) -> None:
        for part in self.parts:
            part.advance(watermark)

    def checkpoint(self) -> list[SavedState]:
        """A barrier: what each subtask was, on the disk."""
        self._checkpoints += 1
        saved = []
        for number, part in enumerate(self.parts):
            directory = self._directory / f"{self._checkpoints}-{number}"
            directory.mkdir()
            facts, state = part.snapshot()
            if state is not None:
                written = state.save(directory)
                assert written == sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
                state.discard()
            saved.append(SavedState(directory, json.loads(json.dumps(facts))))
        return saved

    def restart(self, parallelism: int) -> None:
        """From a checkpoint made here, in so many subtasks."""
        saved = self.checkpoint()
        for part in self.parts:
            part.close()
            part.close()
        self._start(parallelism, saved)

    def end(self, *, timed: bool = True) -> None:
        """The input is over."""
        for part in self.parts:
            if timed:
                part.advance(END_OF_TIME)
            part.finish()

    def statistic(self, name: str) -> int:
        return sum(part.statistics()[name] for part in self.parts)
