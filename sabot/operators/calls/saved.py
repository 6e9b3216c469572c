"""What a checkpoint keeps of rows that wait for calls: the rows, and the outcomes of the calls that have ended.

rows.arrow      the rows, in order
done.arrow      of each call that has ended: its first row, its rows, how many results it gave (or the error)
results.arrow   the results of all of these, in the same order
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sabot.calls.handover import Failed
from sabot.errors import CorruptCheckpoint
from sabot.operators.base import Cut
from sabot.operators.calls.answers import Answers, joined
from sabot.operators.calls.chunks import Chunk, Done
from sabot.operators.row_queue import RowNumbers
from sabot.operators.state_parts import Batches, PartsCut, read_batches

_DONE = pa.schema([("row", pa.int64()), ("rows", pa.int32()), ("results", pa.int32()), ("error", pa.string())])
_FAILED = -1  # in place of the number of results
_AGAIN = object()  # in place of an outcome: the call is to be made again


class CallsCut:
    """Rows that wait, and the results of those whose calls have ended, as they were at a barrier. Columns are made by who saves it."""

    def __init__(self, input: pa.Schema, answers: Answers | None, waiting: list[tuple[Chunk, RowNumbers, Any]]) -> None:
        self._input, self._answers, self._waiting = input, answers, waiting

    def save(self, directory: Path) -> int:
        rows: list[pa.RecordBatch] = []
        done: list[Done] = []
        before = 0
        for chunk, numbers, settled in self._waiting:
            rows.append(chunk.data.take(pa.array(numbers)))
            done += [(before + first, count, outcome) for first, count, outcome in chunk.done(numbers, settled)]
            before += len(numbers)
        results, counts, outcomes = self._columns([outcome for _, _, outcome in done])
        failed = [outcome.text if isinstance(outcome, Failed) else None for outcome in outcomes]
        table = pa.RecordBatch.from_arrays(
            [
                pa.array([first for first, _, _ in done], pa.int64()),
                pa.array([count for _, count, _ in done], pa.int32()),
                pa.array(
                    [_FAILED if text is not None else n for text, n in zip(failed, counts, strict=True)], pa.int32()
                ),
                pa.array(failed, pa.string()),
            ],
            schema=_DONE,
        )
        table = table.filter(pa.array([outcome is not _AGAIN for outcome in outcomes], pa.bool_()))
        files: dict[str, Cut | Batches] = {"rows": Batches(self._input, rows), "done": Batches(_DONE, [table])}
        if results is not None and results.num_rows:
            files["results"] = Batches(results.schema, [results])
        self._waiting = []
        return PartsCut(files).save(directory)

    def _columns(self, outcomes: list[Any]) -> tuple[pa.RecordBatch | None, Sequence[int], list[Any]]:
        """(the rows of all outcomes, how many each has, the outcomes). What fits no schema is no outcome: the call is made again, and then
        somebody is told.
        """
        if self._answers is not None:
            made, counts, kept = self._answers.columns(outcomes, lambda number, what: _AGAIN)
            return made, counts.tolist(), kept
        batches = [outcome for outcome in outcomes if isinstance(outcome, pa.RecordBatch)]
        sizes = [outcome.num_rows if isinstance(outcome, pa.RecordBatch) else 0 for outcome in outcomes]
        return joined(batches) if batches else None, sizes, outcomes

    def discard(self) -> None:
        self._waiting = []


def read_done(directory: Path, schema: pa.Schema | None, *, skip: bool) -> list[Done]:
    """The calls that had ended. schema: of the columns of outcomes; None of the calls, where the program wants other columns now: they
    are made again. skip: rows whose calls fail are passed over, so a call that had failed is not made again.
    """
    table = pa.Table.from_batches(read_batches(directory, "done"), _DONE)
    results = list(read_batches(directory, "results"))
    if not table.num_rows or (results and (schema is None or not results[0].schema.equals(schema))):
        return []
    made = joined(results) if results else None
    done: list[Done] = []
    at = 0
    for row in table.to_pylist():
        outcome: Any = None
        if row["results"] == _FAILED:
            if not skip:
                continue
            outcome = Failed(row["error"])
        elif row["results"]:
            if made is None or at + row["results"] > made.num_rows:
                raise CorruptCheckpoint(f"{directory / 'results.arrow'} has fewer rows than done.arrow says")
            outcome = made.slice(at, row["results"])
            at += row["results"]
        done.append((row["row"], row["rows"], outcome))
    return done


def filtered(data: pa.RecordBatch, done: list[Done], mask: Any) -> tuple[pa.RecordBatch, list[Done]]:
    """The rows where the mask is true, and the calls of which all rows are there."""
    places = np.cumsum(mask) - 1
    kept = [(int(places[first]), rows, outcome) for first, rows, outcome in done if mask[first : first + rows].all()]
    return data.filter(pa.array(mask)), kept
