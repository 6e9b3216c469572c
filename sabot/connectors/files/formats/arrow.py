"""Files of Arrow IPC (also called Feather), and IPC streams. Readers share the batches of a file; a stream is one piece, and may
be compressed as a whole. Written is the file format.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import ipc

from sabot.base.checks import OneOf, check
from sabot.codecs.json import paths_of
from sabot.connectors.files.formats.base import FileReader, RowWriter, Share, no_place, tell_columns
from sabot.connectors.files.formats.columns import ColumnFormat, ColumnReader, Gathered, all_columns, width_of
from sabot.connectors.files.paths import DataFile, codec_of, last_bytes, open_raw, open_stream
from sabot.errors import UserError

_MAGIC = b"ARROW1"
_ROWS = 1 << 16  # of a batch


class ArrowFormat(ColumnFormat):
    """The format of Arrow IPC files. `compression`: None, "lz4" or "zstd"."""

    suffixes = (".arrow", ".arrows", ".ipc", ".feather")

    def __init__(self, name: str, compression: str | None = None) -> None:
        super().__init__(name)
        if compression is not None:
            check("compression", compression, OneOf(("lz4", "zstd")))
        self._options = ipc.IpcWriteOptions(compression=compression)

    def pieces(self, file: DataFile) -> bool:
        return not _is_stream(file.path)

    def grows(self, file: DataFile) -> bool:
        return _is_stream(file.path)

    def is_whole(self, file: DataFile) -> bool:
        # A stream need not have an end mark: what comes later is read from where it ended.
        return _is_stream(file.path) or last_bytes(file, len(_MAGIC)) == _MAGIC

    def open_file(self, file: DataFile, offset: int, share: Share, schema: pa.Schema | None) -> FileReader:
        assert schema is not None, "open asks for columns"
        made = _StreamReader if _is_stream(file.path) else _IpcReader
        reader = made(file, offset, share, schema, self.record_bytes)
        reader.guessed = () if self.inferred is None else self.inferred.guessed
        tell_columns(self.inferred, file, paths_of(reader.in_file))
        return reader

    def infer(self, files: Sequence[DataFile]) -> pa.Schema:
        path = files[0].path
        if _is_stream(path):
            raw, stream = open_stream(path)
            with raw, ipc.open_stream(stream) as opened:
                return all_columns(opened.schema, path)
        with open_raw(path) as raw, ipc.open_file(raw) as opened:
            return all_columns(opened.schema, path)

    def batches(self, path: Path) -> Iterator[pa.RecordBatch]:
        with pa.OSFile(os.fspath(path)) as file, ipc.open_file(file) as opened:
            for number in range(opened.num_record_batches):
                yield opened.get_batch(number)

    def writer(self, file: Any, schema: pa.Schema) -> RowWriter[pa.RecordBatch]:
        return Gathered(ipc.new_file(file, schema, options=self._options), file, _ROWS, joins=True)


def _is_stream(path: str) -> bool:
    if codec_of(path) is not None:
        return True
    with open_raw(path) as file:
        start: bytes = file.read(len(_MAGIC))
    if start.startswith(b"FEA1"):
        raise UserError(
            f"file {path!r} is Feather version 1, which is no Arrow IPC", hint="write it again as version 2"
        )
    return start != _MAGIC


class _IpcReader(ColumnReader):
    """A reader of the batches of this share. Of other readers' batches it reads only enough to count their rows."""

    def __init__(self, file: DataFile, offset: int, share: Share, schema: pa.Schema, record_bytes: int) -> None:
        super().__init__(file, offset, schema, record_bytes)
        self._share = share
        self._raw = open_raw(file.path)
        try:
            self.in_file = whole = ipc.open_file(self._raw).schema
            fields = [number for number, name in enumerate(whole.names) if name in schema.names]
            least = _narrowest(whole)  # an empty list would select all columns; to count rows, one is enough
            self._opened = ipc.open_file(self._raw, options=_only(fields or least))
            self._counted = ipc.open_file(self._raw, options=_only(least))
        except BaseException:
            self.close()
            raise
        self._batch = 0
        self._at = 0  # the number of the first row of that batch

    def next_batch(self, max_rows: int) -> tuple[int, pa.RecordBatch] | None:
        while self._batch < self._opened.num_record_batches:
            mine = self._share.has(self.file.number, self._batch)
            data = (self._opened if mine else self._counted).get_batch(self._batch)
            self._batch += 1
            first, self._at = self._at, self._at + data.num_rows
            if mine and self._at > self.offset:
                return first, data
        if self.offset > self._at:
            raise no_place(f"file {self.file.path!r}: position {self.offset} is behind its {self._at} rows")
        self.offset = self._at
        return None

    @property
    def fraction(self) -> float:
        batches = self._opened.num_record_batches
        return self._batch / batches if batches else 1.0

    def close(self) -> None:
        self._raw.close()


class _StreamReader(ColumnReader):
    """A reader of one batch after the other, from the beginning."""

    def __init__(self, file: DataFile, offset: int, share: Share, schema: pa.Schema, record_bytes: int) -> None:
        super().__init__(file, offset, schema, record_bytes)
        self._raw, self._stream = open_stream(file.path)
        self._mine = share.has(file.number, 0)
        self._at = 0
        try:
            self._opened = ipc.open_stream(self._stream) if self._mine else None
            if self._opened is not None:
                self.in_file = whole = self._opened.schema
                fields = [number for number, name in enumerate(whole.names) if name in schema.names]
                self._raw.close()
                self._raw, self._stream = open_stream(file.path)
                self._opened = ipc.open_stream(self._stream, options=_only(fields or _narrowest(whole)))
        except BaseException:
            self.close()
            raise

    def next_batch(self, max_rows: int) -> tuple[int, pa.RecordBatch] | None:
        while self._opened is not None:
            try:
                data = self._opened.read_next_batch()
            except StopIteration:
                break
            first, self._at = self._at, self._at + data.num_rows
            if self._at > self.offset:
                return first, data
        if self._opened is not None and self.offset > self._at:
            raise no_place(f"file {self.file.path!r}: position {self.offset} is behind its {self._at} rows")
        self.offset = max(self.offset, self._at)
        return None

    @property
    def fraction(self) -> float:
        return min(1.0, self._raw.tell() / self.file.size) if self._mine and self.file.size else 1.0

    def close(self) -> None:
        self._raw.close()


def _narrowest(schema: pa.Schema) -> list[int]:
    """Returns a list with one index: that of the column whose rows take the fewest bytes. Returns an empty list if
    there are no columns.
    """
    return sorted(range(len(schema)), key=lambda number: width_of(schema.field(number).type))[:1]


def _only(fields: list[int]) -> ipc.IpcReadOptions:
    # The buffers of a file may lie at any address; those that are not aligned for their type are copied.
    return ipc.IpcReadOptions(
        included_fields=fields, use_threads=False, ensure_alignment=ipc.Alignment.DataTypeSpecific
    )
