"""Writes rows into files at least once. The docstring of `parts` explains in which state a crash leaves a file, and
how the file is continued.
"""

import math
from pathlib import Path
from typing import Any

from sabot._cython.arrow.batch import Batch
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.connectors.files.format import FileFormat
from sabot.connectors.files.parts import FilePart, SealedPart, pending_of, remove, unfinished
from sabot.connectors.files.target import FileTarget


class FileWriting:
    """The at-least-once writer of a file sink: it writes into the one file of a target, or into the newest part of
    its folder. Errors of the disk are OSError.

    `number`: the number of the next part in a folder. A flush completes a part that holds `part_bytes`, or has had
    rows for `part_s` seconds.
    """

    def __init__(
        self,
        target: FileTarget,
        format: FileFormat[Any],
        part_bytes: int,
        part_s: float | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.number = 0
        self._target = target
        self._format = format
        self._part_bytes = part_bytes
        self._part_s = math.inf if part_s is None else part_s
        self._clock = clock
        self._since = 0.0  # when the newest part got its first rows in this process
        self._part: FilePart[Any] | None = None
        self._anew = False  # the app begins, and may overwrite what is there
        self._complete = False  # True if the sink's one file existed when it was opened, or is finished

    def open(self, *, afresh: bool) -> None:
        """Continues the existing files. `afresh`: True if the app begins, so that rows which an earlier run left
        unfinished are dropped.
        """
        self._format.forget()
        self.number = 0
        self._since = self._clock.monotonic()
        self._complete = False
        self._anew = afresh and self._target.overwrite
        if self._target.folder:
            self._open_folder(afresh)
        else:
            self._open_file(afresh)

    def _open_file(self, afresh: bool) -> None:
        path = self._target.path
        if not self._format.continues:
            if afresh:
                self._target.drop(path)
            if path.exists() and not self._anew and not pending_of(path).exists():
                self._complete = True  # opened again when there are rows to add
                return
        self._part = self._new_part(path)

    def _open_folder(self, afresh: bool) -> None:
        complete, open_parts = self._target.parts()
        if self._anew:
            self._target.clear()
            complete = {}
        for number, path in sorted(open_parts.items()):
            if afresh:
                self._target.drop(path)
                continue
            if number in complete and not self._format.partition_by:  # the part was completed just before the crash
                for leftover in unfinished(path):
                    remove(leftover)
                continue
            part = self._new_part(path)
            if part.rows:
                if self._part is not None:
                    self._seal()
                self._part, self.number = part, number
                complete.pop(number, None)  # only some of its partitions have their files
            else:
                part.close()
        self.number = max([self.number, *(number + 1 for number in complete)])
        if self._part is not None and self._format.outgrown:
            self._seal()
            self._format.forget()

    def write(self, batch: Batch) -> None:
        """Adds the rows, and may keep them in memory."""
        if self._part is None:
            self._part = self._next_part()
            self._since = self._clock.monotonic()
        self._part.write(self._format.rows(batch, first=not self._part.rows))

    def flush(self) -> None:
        """Writes all rows so that they survive a crash of the machine."""
        if self._part is None:
            return
        self._part.flush()
        late = self._clock.monotonic() - self._since >= self._part_s
        if self._target.folder and (self._part.size >= self._part_bytes or (late and self._part.rows)):
            self._seal()

    def finish(self) -> None:
        """Completes the file, or the last part, which may have no rows if the columns are known."""
        if self._target.folder:
            if self._part is not None:
                self._seal()
            elif self.number == 0 and self._format.expected is not None:
                self._part = self._next_part()
                self._seal()
        elif self._part is not None:
            path, self._complete = self._part.path, True
            if not self._seal() and self._anew:
                remove(path)  # the result of this run is no file

    def complete_clean(self) -> None:
        """Completes the part of a folder if all its rows are flushed."""
        part = self._part
        if self._target.folder and part is not None and part.rows and part.clean:
            self._seal()

    def close(self) -> None:
        """Closes the file without completing it. May be called twice."""
        part, self._part = self._part, None
        if part is not None:
            part.close()

    def _next_part(self) -> FilePart[Any]:
        part = self._new_part(self._target.file(self.number))
        if self._complete and isinstance(part, SealedPart):
            part.take_over()
        self._complete = False
        return part

    def _new_part(self, path: Path) -> FilePart[Any]:
        folder = self._target.folder
        return self._format.new_part(path, hidden=folder, truncate=self._anew and not folder)

    def _seal(self) -> bool:
        assert self._part is not None
        if not self._part.rows and (head := self._format.before_first()) is not None:
            self._part.write(head)
        made = self._part.seal()
        self._part = None
        self.number += made
        return made
