"""The place to which a sink of files writes, one file or a folder of parts, and the writer of rows at least once. The docstring
of `parts` explains in which state a crash leaves a file, and how the file is continued.
"""

import logging
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sabot._cython.arrow.batch import Batch
from sabot.base.disk import check_reach
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.connectors.files.formats.base import FileFormat
from sabot.connectors.files.formats.table import format_of
from sabot.connectors.files.parts import (
    PartFile,
    PartitionedPart,
    PendingPart,
    TextPart,
    beside,
    make_folders,
    pending_of,
    remove,
    unfinished,
)
from sabot.connectors.files.paths import codec_of
from sabot.errors import UserError

_log = logging.getLogger(__name__)


class FileTarget:
    """The path of a sink. `look` sets `folder` and the path of the `token`, and `make` makes the folder. Errors are OSError."""

    token: Path

    def __init__(self, format: FileFormat[Any], *, overwrite: bool) -> None:
        self.name = format.name
        self.path = Path(self.name)
        self.overwrite = overwrite
        self.folder = False
        self._format = format

    def check_ending(self, kind: str) -> None:
        """Raises UserError if the path says that the file has another format or another compression. `kind`: the class of
        the sink, for the message.
        """
        suffix = self._format.suffix
        if self._says_folder() or os.path.isdir(self.name):
            return
        said = format_of(self.name)
        if said not in (None, suffix[1:]):
            raise UserError(
                f"file {self.name!r}: its ending says {said}, and {kind} writes {suffix[1:]}",
                hint=f"give it the ending {suffix}, or use the sink of the other format",
            )
        if codec_of(self.name) is not None and not self._format.compresses:
            raise UserError(
                f"file {self.name!r}: {kind} does not compress a file as a whole",
                hint=f"its columns are compressed inside (compression=): give it the ending {suffix}",
            )
        if not self._is_folder() and self._format.compression != codec_of(self.name):
            raise UserError(
                f"file {self.name!r}: compression={self._format.compression!r}, which its ending does not say",
                hint=f"give it the ending {self._format.ending}; compression= is for the parts of a folder",
            )

    def look(self) -> None:
        """Finds out whether the path is a file or a folder. Raises OSError if no file can be made there. Changes nothing."""
        path = self.path
        self.folder = self._is_folder()
        self.token = beside(path / f"part{self._format.ending}" if self.folder else path, "token")
        check_reach(self.token)

    def make(self) -> None:
        """Makes the folder if it is missing. Called after `look`."""
        folder = self.path if self.folder else self.path.parent
        make_folders((*reversed(folder.parents), folder))

    def _is_folder(self) -> bool:
        path = self.path
        bare = self._format.needs_suffix and path.suffix == "" and not path.is_file()
        return bool(self._format.partition_by) or self._says_folder() or path.is_dir() or bare

    def _says_folder(self) -> bool:
        return self.name.endswith(("/", os.sep))

    def file(self, number: int) -> Path:
        """Returns the one file, or the part of this number."""
        return self.path / f"part-{number:05}{self._format.ending}" if self.folder else self.path

    def part(self, path: Path) -> PartFile[Any]:
        """Returns the one file, or a part, of this path while it is written."""
        if self._format.partition_by:
            return PartitionedPart(path, self._format)
        return (
            TextPart(path, self._format, hidden=self.folder)
            if self._format.continues
            else PendingPart(path, self._format)
        )

    def parts(self) -> tuple[dict[int, Path], dict[int, Path]]:
        """Returns two dicts of the folder's parts by number: the complete parts, and the incomplete ones. The path of
        an incomplete part is the path that it gets when it is complete. With `partition_by`, the path is that of one
        of the part's files.
        """
        ending = re.escape(self._format.ending)
        complete: dict[int, Path] = {}
        unfinished_parts: dict[int, Path] = {}
        for place in self._places():
            found = re.fullmatch(rf"(\.?)(part-(\d+){ending})(?:\.(?:tmp|journal|copy|files))?", place.name)
            if found is not None and (not found[1] or place.parent == self.path):
                (unfinished_parts if found[1] else complete)[int(found[3])] = place.with_name(found[2])
        return complete, unfinished_parts

    def newest(self) -> Path | None:
        """Returns the newest complete part of the folder, or None without one. Makes nothing, so that it needs no `look`."""
        complete = self.parts()[0] if self.path.is_dir() else {}
        return complete[max(complete)] if complete else None

    def clear(self) -> None:
        """Removes all complete parts of the folder."""
        ending = re.escape(self._format.ending)
        for place in list(self._places()):
            if re.fullmatch(rf"part-\d+{ending}", place.name):
                remove(place)

    def _places(self) -> Iterable[Path]:
        return self.path.rglob("*part-*") if self._format.partition_by else self.path.iterdir()

    def say_kept(self) -> None:
        """Logs whether rows of an earlier run are kept, if there are any. Called before an app that starts without a checkpoint
        writes.
        """
        kept = self.newest() is not None if self.folder else self.path.exists() and self.path.stat().st_size > 0
        if kept and self.overwrite:
            _log.info("sink %s: the rows of earlier runs are removed, as overwrite= says", self.name)
        elif kept:
            _log.warning(
                "sink %s has rows already, and this start without a checkpoint adds to them (overwrite=True begins empty)",
                self.name,
            )

    def drop(self, path: Path) -> None:
        """Removes the hidden files of an earlier run that has not completed this file."""
        for leftover in unfinished(path):
            _log.warning("sink %s: %s, left unfinished by an earlier run, is dropped", self.name, leftover.name)
        self.part(path).discard()


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
        self._part: PartFile[Any] | None = None
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
        if self._target.folder and (self._part.nbytes >= self._part_bytes or (late and self._part.rows)):
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

    def _next_part(self) -> PartFile[Any]:
        part = self._new_part(self._target.file(self.number))
        if self._complete:
            part.take_over()
        self._complete = False
        return part

    def _new_part(self, path: Path) -> PartFile[Any]:
        part = self._target.part(path)
        self._format.begins_with(None)
        try:
            part.resume(truncate=self._anew and not self._target.folder)
        except BaseException:
            part.close()
            raise
        return part

    def _seal(self) -> bool:
        assert self._part is not None
        if not self._part.rows and (head := self._format.before_first()) is not None:
            self._part.write(head)
        made = self._part.seal()
        self._part = None
        self.number += made
        return made
