"""Rows of any number in an order: in memory, or in sorted runs on disk that are merged."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
from pyarrow import ipc

from sabot.base.disk import make_folder

_CHUNK_ROWS = 65_536  # the most rows of a batch that comes out
_FAN_IN = 16  # the runs that are merged at once; a batch of each is in memory


class SortedRuns:
    """Rows that are added in any order, and come out in one. Rows without a difference in the order come out as they
    were added.

    `order`: returns the numbers of the rows of a batch in their order; it must be stable. `folder`: an empty folder, or
    one to be made, where rows of more than `run_bytes` are written as sorted runs; None keeps all rows in memory. With
    a folder, about two runs are in memory at a time.
    """

    def __init__(self, order: Callable[[pa.RecordBatch], pa.Array], folder: Path | None, run_bytes: int) -> None:
        self._order, self._folder, self._run_bytes = order, folder, run_bytes
        self._held: list[pa.RecordBatch] = []
        self._bytes = self._made = 0
        self._runs: list[Path] = []

    def add(self, rows: pa.RecordBatch) -> None:
        """Adds rows. Raises OSError if a run cannot be written."""
        self._held.append(rows)
        self._bytes += rows.nbytes
        if self._folder is not None and self._bytes > self._run_bytes:
            self._end_run(self._folder)

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Yields all rows in order, and then removes the folder. No rows may be added any more."""
        if not self._runs:
            held, self._held = self._held, []
            yield from self._sorted(held, _CHUNK_ROWS)
            return
        assert self._folder is not None, "runs are in a folder"
        if self._held:
            self._end_run(self._folder)
        while len(self._runs) > _FAN_IN:
            first = self._runs[:_FAN_IN]
            self._runs[:_FAN_IN] = [self._write(self._merged(first), self._folder)]
            for path in first:
                path.unlink()
        yield from self._merged(self._runs)
        with suppress(FileNotFoundError):
            shutil.rmtree(self._folder)

    def _end_run(self, folder: Path) -> None:
        rows = sum(each.num_rows for each in self._held)
        chunk = min(_CHUNK_ROWS, max(256, rows * self._run_bytes // _FAN_IN // max(self._bytes, 1)))
        self._runs.append(self._write(self._sorted(self._held, chunk), folder))
        self._held, self._bytes = [], 0

    def _sorted(self, pieces: list[pa.RecordBatch], chunk: int) -> Iterator[pa.RecordBatch]:
        if not pieces:
            return
        rows = pa.concat_batches(pieces)
        places = self._order(rows)
        for start in range(0, rows.num_rows, chunk):
            yield rows.take(places.slice(start, chunk))

    def _write(self, batches: Iterator[pa.RecordBatch], folder: Path) -> Path:
        make_folder(folder)
        path = folder / f"{self._made}.arrow"
        self._made += 1
        first = next(batches)
        with pa.OSFile(str(path), "wb") as file, ipc.new_file(file, first.schema) as writer:
            writer.write_batch(first)
            for rows in batches:
                writer.write_batch(rows)
        return path

    def _merged(self, runs: Sequence[Path]) -> Iterator[pa.RecordBatch]:
        """Yields the rows of sorted runs in order.

        run 1:  1 4 | 7 9       the first batches are 1 4, 2 3 and 5 6. A row behind them may come before no row up to 3,
        run 2:  2 3 | 5 6       the least of their last rows: 1 2 3 are emitted, and 4 stays beside the next batches. Run
        run 3:  5 6 | 8 9       3 begins behind 3, and is left alone.
        """
        waiting = [_batches(path) for path in runs]
        heads = {run: head for run, batches in enumerate(waiting) if (head := next(batches, None)) is not None}
        while heads:
            ends = [end for head in heads.values() for end in (head.slice(0, 1), head.slice(head.num_rows - 1))]
            ranks = [0] * len(ends)
            for rank, place in enumerate(self._order(pa.concat_batches(ends)).to_pylist()):
                ranks[place] = rank
            first, last = dict(zip(heads, ranks[::2], strict=True)), dict(zip(heads, ranks[1::2], strict=True))
            least = min(heads, key=last.__getitem__)
            taking = [run for run in heads if first[run] <= last[least]]
            rows = pa.concat_batches([heads[run] for run in taking])
            end = sum(heads[run].num_rows for run in taking if run <= least) - 1  # the last row of `least`
            places = self._order(rows)
            places = places.slice(0, int((places.to_numpy() == end).argmax()) + 1)
            yield rows.take(places)
            start = 0
            for run in taking:
                head, numbers = heads[run], places.to_numpy()
                gone = int(((numbers >= start) & (numbers < start + head.num_rows)).sum())
                start += head.num_rows
                following = head.slice(gone) if gone < head.num_rows else next(waiting[run], None)
                if following is None:
                    del heads[run]
                else:
                    heads[run] = following


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path), "rb") as file, ipc.open_file(file) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
