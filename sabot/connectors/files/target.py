"""The place to which a sink of files writes: one file, or a folder of parts."""

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sabot.base.disk import check_reach
from sabot.connectors.files.format import FileFormat
from sabot.connectors.files.growing import GrowingFile
from sabot.connectors.files.partitions import PartitionedFile
from sabot.connectors.files.parts import beside, remove, sync_folder, unfinished
from sabot.connectors.files.paths import codec_of, format_of
from sabot.connectors.files.token_file import Ledger
from sabot.errors import UserError
from sabot.steps import step

_log = logging.getLogger(__name__)


class FileTarget:
    """The path of a sink. `look` sets `folder` and `ledger`, and `make` makes the folder. Errors of the disk are OSError."""

    ledger: Ledger

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
        self.ledger = Ledger(beside(path / f"part{self._format.ending}" if self.folder else path, "token"))
        check_reach(self.ledger.path)

    def make(self) -> None:
        """Makes the folder if it is missing. Called after `look`."""
        folder = self.path if self.folder else self.path.parent
        for each in (*reversed(folder.parents), folder):
            if not each.is_dir():
                with step("make folder", each):
                    each.mkdir(exist_ok=True)
                sync_folder(each.parent)

    def _is_folder(self) -> bool:
        path = self.path
        bare = self._format.needs_suffix and path.suffix == "" and not path.is_file()
        return bool(self._format.partition_by) or self._says_folder() or path.is_dir() or bare

    def _says_folder(self) -> bool:
        return self.name.endswith(("/", os.sep))

    def file(self, number: int) -> Path:
        """Returns the one file, or the part of this number."""
        return self.path / f"part-{number:05}{self._format.ending}" if self.folder else self.path

    def growth(self, number: int) -> GrowingFile[Any]:
        """Returns the one file, or the part of this number, as it grows exactly once."""
        return self._format.new_growth(self.file(number), hidden=self.folder)

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
        leftovers = unfinished(path)
        for leftover in leftovers:
            _log.warning("sink %s: %s, left unfinished by an earlier run, is dropped", self.name, leftover.name)
        growth = self._format.new_growth(path, hidden=self.folder)
        if isinstance(growth, PartitionedFile):
            growth.discard()
        for leftover in leftovers:
            remove(leftover)
