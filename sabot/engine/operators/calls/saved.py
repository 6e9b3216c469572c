"""The state of rows that wait for calls in a checkpoint: the rows, and the outcomes of calls that have ended.

rows.arrow      the rows, in order
done.arrow      for each call that has ended: its first row, its rows, the number of its results (or the error)
results.arrow   the results of all of these calls, in the same order
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sabot.engine.calls.handover import Failed
from sabot.engine.operators.base import Cut
from sabot.engine.operators.calls.answers import Answers, joined
from sabot.engine.operators.calls.chunks import Chunk, EndedCall
from sabot.engine.operators.row_queue import RowNumbers
from sabot.engine.operators.state_parts import Batches, PartsCut, read_batches
from sabot.errors import CorruptCheckpoint

_DONE = pa.schema([("row", pa.int64()), ("rows", pa.int32()), ("results", pa.int32()), ("error", pa.string())])
_FAILED = -1  # stands for the number of results of a failed call
_AGAIN = object()  # stands for the outcome of a call that must be made again


class CallsCut:
    """A snapshot of the waiting rows and of the outcomes of their ended calls at a barrier. The thread that saves the
    snapshot converts the outcomes to columns.
    """

    def __init__(self, input: pa.Schema, answers: Answers | None, waiting: list[tuple[Chunk, RowNumbers, Any]]) -> None:
        self._input, self._answers, self._waiting = input, answers, waiting

    def save(self, directory: Path) -> int:
        rows: list[pa.RecordBatch] = []
        done: list[EndedCall] = []
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
        """Returns (the rows of all outcomes, or None if there are none; the number of rows of each outcome; the
        outcomes).

        An outcome that does not fit the schema is replaced by _AGAIN, which has no rows: after a restore the call is
        made again, and the error is raised then.
        """
        if self._answers is not None:
            made, counts, kept = self._answers.columns(outcomes, lambda number, what: _AGAIN)
            return made, counts.tolist(), kept
        batches = [outcome for outcome in outcomes if isinstance(outcome, pa.RecordBatch)]
        sizes = [outcome.num_rows if isinstance(outcome, pa.RecordBatch) else 0 for outcome in outcomes]
        return joined(batches) if batches else None, sizes, outcomes

    def discard(self) -> None:
        self._waiting = []


def read_done(directory: Path, schema: pa.Schema | None, *, skip: bool) -> list[EndedCall]:
    """Returns the calls that had ended at the checkpoint. Raises CorruptCheckpoint if results are missing.

    `schema`: the columns of outcomes. If results were saved with other columns, or if `schema` is None, returns no
    calls, so all are made again. `skip`: True if rows of failed calls are dropped; failed calls are then returned
    too, and are not made again.
    """
    table = pa.Table.from_batches(read_batches(directory, "done"), _DONE)
    results = list(read_batches(directory, "results"))
    if not table.num_rows or (results and (schema is None or not results[0].schema.equals(schema))):
        return []
    made = joined(results) if results else None
    done: list[EndedCall] = []
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


def filtered(data: pa.RecordBatch, done: list[EndedCall], mask: Any) -> tuple[pa.RecordBatch, list[EndedCall]]:
    """Returns the rows where the mask is True, and those of the calls `done` whose rows are all among them, numbered
    anew.
    """
    places = np.cumsum(mask) - 1
    kept = [(int(places[first]), rows, outcome) for first, rows, outcome in done if mask[first : first + rows].all()]
    return data.filter(pa.array(mask)), kept
