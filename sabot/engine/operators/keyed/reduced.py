"""The state of `Reduce`: for each run of rows, the row to which it is reduced, as a Python object."""

from typing import Any

import pyarrow as pa

from sabot.engine.operators.windows.sessions import KeyedRuns

_ROW_BYTES, _VALUE_BYTES = 200, 60  # about the size of a reduced row as a dict, and of each of its values


class ReducedRuns(KeyedRuns):
    """The runs of each key, and the row to which each run is reduced. In a checkpoint these rows are in the file
    "rows".
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.made: list[dict[str, Any] | None] = []  # the reduced row of each run

    @property
    def nbytes(self) -> int:
        columns = len(self.files["rows"])
        return super().nbytes + len(self.runs) * (_ROW_BYTES + columns * _VALUE_BYTES)

    def begin(self, runs: list[int]) -> None:
        """Adds new runs, which have no row yet."""
        if runs and max(runs) >= len(self.made):
            self.made.extend([None] * (max(runs) + 1 - len(self.made)))
        for run in runs:
            self.made[run] = None

    def remove(self, numbers: pa.Int32Array) -> None:
        super().remove(numbers)
        for run in numbers.to_pylist():
            self.made[run] = None

    def rows_of(self, slots: pa.Int32Array) -> list[pa.RecordBatch]:
        (runs,) = super().rows_of(slots)
        made = [self.made[run] for run in runs.column(0).to_pylist()]
        return [runs, pa.RecordBatch.from_pylist(made, schema=self.files["rows"])]

    def put(self, rows: list[pa.RecordBatch]) -> Any:
        numbers = super().put(rows)
        runs = numbers.tolist()
        self.begin(runs)
        for run, row in zip(runs, rows[1].to_pylist(), strict=True):
            self.made[run] = row
        return numbers
