"""Dead letters in files: NDJSON as `NdjsonSink` writes it, one dead letter a line.

Each file of a folder is a partition, in the order of their names; the offset of a dead letter is that of its line's
first byte.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from sabot.base.os_errors import hint_of
from sabot.connectors.files.paths import bare_suffix, codec_of, open_stream
from sabot.engine.letters.form import DeadLetter, letter_of_row
from sabot.engine.letters.places import Home
from sabot.errors import UNREADABLE, UserError

# A longer line is no dead letter: a record has some 16 MiB at most, and JSON writes a byte as up to six.
_LINE_BYTES = 256 << 20
_BLOCK_BYTES = 1 << 20
_MEAN_LINE_BYTES = 1 << 10
_COMPRESSED_LINES = 2_000  # are read at once from the end

_read = msgspec.json.Decoder(dict[str, Any]).decode


class FileHome(Home):
    """A file of dead letters, or a folder of them, as it is now (`letters.places.Home`). A line that is no dead
    letter has no facts.

    Raises UserError for a path that does not exist or cannot be read.
    """

    grows_at_its_end = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(Path(path).absolute())
        self.words = f"file {os.fspath(path)!r}"
        self._files = self._found(Path(path))
        self.id = hashlib.sha256(self._first_line()).hexdigest()[:32]
        self.bounds = {index: (0, self._end(file)) for index, file in enumerate(self._files)}

    def read(self, partition: int, first: int, end: int) -> Iterator[DeadLetter]:
        for offset, line in self._lines(self._files[partition], first, end):
            yield _letter(line, partition, offset)

    def before(self, partition: int, end: int, count: int) -> int:
        path = self._files[partition]
        if codec_of(path.name) is not None:  # it can only be read from its beginning, so that is done seldom
            lines = deque((at for at, _ in self._lines(path, 0, end)), maxlen=_COMPRESSED_LINES)
            return lines[0] if lines else 0
        size = count * _MEAN_LINE_BYTES
        while size < end:
            found = next(self._lines(path, end - size, end), None)
            if found is not None:
                return found[0]
            size *= 2  # a line is longer
        return 0

    def close(self) -> None:
        """Does nothing: no file is open between two calls."""

    def _found(self, path: Path) -> list[Path]:
        if path.is_dir():
            files = sorted(
                each for each in path.iterdir() if bare_suffix(each.name) == ".ndjson" and each.name[0] not in "._"
            )
        else:
            files = [path] if path.exists() else []
        if not files:
            raise UserError(f"{self.words} does not exist", hint="give the path of an NdjsonSink's file or folder")
        return files

    def _first_line(self) -> bytes:
        return next((line for _, line in self._lines(self._files[0], 0, 1)), b"")

    def _end(self, path: Path) -> int:
        """Returns the offset after the last whole line. For a compressed file, whose length is not known without
        reading it, it is a greater number.
        """
        return 1 << 62 if codec_of(path.name) is not None else path.stat().st_size

    def _lines(self, path: Path, first: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yields the whole lines that begin at first <= offset < end, as pairs of the offset and the line without its
        end.
        """
        at, rest = 0, b""
        try:
            with open_stream(os.fspath(path))[1] as stream:
                if codec_of(path.name) is None and first > 0:
                    at = first - 1  # the end of a line, or in the middle of one, which is passed over
                    stream.seek(at)
                while at < end and (block := stream.read(_BLOCK_BYTES)):
                    *lines, rest = (rest + block).split(b"\n")
                    for line in lines:
                        if first <= at < end:
                            yield at, line
                        at += len(line) + 1
                    if len(rest) > _LINE_BYTES:
                        raise UserError(
                            f"{self.words}: a line of it has more than {_LINE_BYTES} bytes",
                            hint="such a line is no dead letter",
                        )
        except OSError as error:
            raise UserError(f"{self.words} cannot be read: {error.strerror or error}", hint=hint_of(error)) from error


def _letter(line: bytes, partition: int, offset: int) -> DeadLetter:
    try:
        letter = letter_of_row(_read(line), partition, offset)
    except UNREADABLE:
        letter = None
    return letter or DeadLetter(partition, offset, 0, None, line, (), {})
