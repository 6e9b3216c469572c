"""The sinks of files over a format: `FileSink` on this machine, which `at_least_once` writes at least once, and `exactly_once`
exactly once, and `ObjectSink` in an object store: s3://, gs://, az://, abfs://, hdfs://, and any file system of pyarrow.
"""

import hashlib
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.checks import FLAG, Whole, check
from sabot.base.config import Duration, parse_seconds
from sabot.base.object_stores import OBJECT_STORES, check_bucket
from sabot.base.os_errors import hint_of
from sabot.base.redaction import redacted_url
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.connectors.base import Delivers, KeepsToken, LostFloats, Sink, Token, Track
from sabot.connectors.files.at_least_once import FileTarget, FileWriting
from sabot.connectors.files.exactly_once import FileDelivering
from sabot.connectors.files.formats.base import FileFormat
from sabot.connectors.files.formats.table import checked_format, column_format
from sabot.connectors.files.paths import Remotely, RemotePath, is_remote, naming, partitions_of, remote_path
from sabot.engine.letters.form import as_columns
from sabot.engine.letters.refused import refused_in
from sabot.errors import TransientError, UserError
from sabot.steps import step

_PART_BYTES = 64 << 20
_OBJECT_BYTES = 64 << 20


class FileSink(Sink, KeepsToken):
    """A sink that writes files. A path that ends in "/" or is a folder gets parts `part-00000.<format>`; any other
    path is one file.

    A part becomes visible when it is complete. At least once, a part is completed at a flush when it holds
    `part_bytes` (64 MiB), at the end of the input, and when the sink is closed. Exactly once, each delivery is a part
    of its own; with `part_bytes`, a part is completed when so many bytes of rows (before compression) were delivered,
    and until then they are safe but not visible.

    Existing rows are kept:

    - A folder gets further parts, and a text file further rows.
    - A file of another format is replaced by a file with the old and the new rows when that file is complete.

    An app that starts without a checkpoint (`start_afresh`) drops rows that an earlier run has left unfinished, and logs
    a warning if it adds its rows to complete ones. With `overwrite` it removes the old result first: a text file is
    emptied, the parts of a folder are removed, and any other file is replaced when the new one is complete.
    """

    format = None

    def __init__(
        self,
        format: FileFormat[Any],
        *,
        overwrite: bool = False,
        part_bytes: int | None = None,
        part_time: Duration | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name = checked_format("FileSink", format, format).name
        if is_remote(self.name):
            raise UserError(
                f"{redacted_url(self.name).partition('?')[0]}: this sink writes files of this machine",
                hint=f'ObjectSink(path, "{format.suffix[1:]}") writes into object stores',
            )
        part_s = None if part_time is None else parse_seconds(part_time, name="part_time", zero=False)
        check("overwrite", overwrite, FLAG)
        if part_bytes is not None:
            check("part_bytes", part_bytes, Whole(1))
        waits = math.inf if part_s is not None else 0  # bytes that complete a part of a folder
        self._format = format
        self._target = FileTarget(format, overwrite=overwrite)
        least_bytes = _PART_BYTES if part_bytes is None else part_bytes
        self._writing = FileWriting(self._target, format, least_bytes, part_s, clock)
        self._delivering = FileDelivering(
            self._target, format, self._writing, waits if part_bytes is None else part_bytes, part_s, clock
        )
        self.evolve = format.evolve
        self._afresh = False  # `start_afresh` was called for the next `open`
        self._opened = False
        self._begins = False  # the files are checked, and the first write makes or empties them
        self._target.check_ending(type(self).__name__)

    @property
    def token_place(self) -> str:
        return os.fspath(self._target.token)

    def start_afresh(self) -> None:
        self._afresh = True

    def check_types(self, schema: pa.Schema) -> None:
        self._format.check_types(schema)

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        return self._format.floats_lost

    def expect(self, schema: pa.Schema) -> None:
        self._format.expected = schema

    def missing_columns(self, schema: pa.Schema) -> list[str] | None:
        try:
            newest = self._target.newest()
            known = None if newest is None else self._format.columns_in(newest)
        except OSError as error:
            raise UserError(
                f"folder {self.name!r} cannot be read: {error.strerror or error}", hint=hint_of(error)
            ) from error
        partitions = self._format.partition_by
        return (
            None if known is None else [name for name in schema.names if name not in known and name not in partitions]
        )

    def open(self) -> None:
        self._check_columns()
        self._writing.close()
        with self._explained():
            self._delivering.look()
            self._delivering.check_free()
        self._opened = self._begins = True
        if not self._afresh:  # else another sink may still refuse the start
            self._begin()

    def _begin(self) -> None:
        """Makes, continues or empties the files, which were checked."""
        with self._explained():
            if self._afresh:
                self._target.say_kept()
            self._target.make()
            self._delivering.give_up()
            self._writing.open(afresh=self._afresh)
        self._afresh = self._begins = False

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raises errors of the disk as UserError."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"file {self.name!r} cannot be written: {error.strerror or error}", hint=hint_of(error)
            ) from error

    def write(self, batch: Batch) -> None:
        self._check_open()
        if batch.num_rows == 0:
            return
        batch = Batch(as_columns(batch.taken()))
        self._format.check_values(batch.taken())
        with self._format.writing():
            self._writing.write(batch)

    def flush(self) -> None:
        self._check_open()
        with self._format.writing():
            self._writing.flush()

    def finish(self) -> None:
        track = self._delivering.track
        if track is not None:
            if not self._delivering.claimed:
                self.claim(track)
            self._delivering.finish()
            return
        self._check_open()
        with self._format.writing():
            self._writing.finish()

    def close(self) -> None:
        """Closes the files, and completes the part of a folder if all its rows are flushed."""
        self._delivering.close()
        opened, self._opened, self._begins = self._opened, False, False
        if opened:
            with self._format.writing():
                self._writing.complete_clean()
        self._writing.close()

    def known(self, track: Track) -> Token | None:
        return None if self._afresh and self._target.overwrite else self._delivering.known(track)

    def claim(self, track: Track) -> Token | None:
        self._check_columns()
        self._writing.close()
        self._opened = self._begins = False
        token = self._delivering.claim(track, afresh=self._afresh)
        self._afresh = False
        return token

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        return self._format.fitting(as_columns(data))

    def refused_rows(self, batches: Sequence[pa.RecordBatch]) -> Mapping[int, str]:
        return refused_in(batches, lambda data: self._format.try_rows(as_columns(data)))

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        self._delivering.deliver(seq, batches)

    def settle(self, seq: int) -> None:
        self._delivering.settle(seq)

    def _check_columns(self) -> None:
        """Raises UserError if the newest part of the folder lacks columns that come, unless they may be added."""
        expected, anew = self._format.expected, self._afresh and self._target.overwrite
        if expected is None or anew or self.evolve or not (missing := self.missing_columns(expected)):
            return
        raise UserError(
            f"folder {self.name!r}: its newest part has no column {', '.join(missing)}",
            hint=f"{type(self).__name__}(…, evolve=True) writes further parts with the column; or give another folder, "
            "or leave the column out (select) before the sink",
        )

    def _check_open(self) -> None:
        if not self._opened:
            raise UserError(f"the sink of file {self.name!r} is not open")
        if self._begins:
            self._begin()


class ObjectSink(Sink, Delivers):
    """A sink that writes into a folder of an object store, from which `files` reads: each delivery is an object, or
    one for each partition.

    `format`: "parquet", "arrow", "ndjson" or "csv". `compression`: as for the sinks of files. Exactly once, an object
    is there when a checkpoint covers its rows. At least once, rows are sent at each checkpoint, or when there are 64
    MiB of them. Existing objects stay.
    """

    # An object becomes visible only when all of it was sent, so a part needs no token. Its name contains its track and the number
    # of the part, so a part that is delivered again replaces its objects by equal ones:
    #
    #     part-<hash of the track>-<number>.parquet    with partition_by= one in each folder, day=2026-11-22/part-…
    #
    # After a crash, there may be objects of some partitions of a part only. The part is in its checkpoint, so the next start
    # delivers it again.

    format = None

    def __init__(
        self,
        path: str | Remotely,
        format: str = "parquet",
        *,
        compression: str | None = None,
        partition_by: Sequence[str] = (),
    ) -> None:
        self._path: RemotePath = remote_path(path)
        self.name = str(self._path)
        self._format = column_format(format, self.name, compression, partition_by)
        self._atomic = self._path.filesystem.type_name in OBJECT_STORES
        self._begun = ""  # the beginning of the names of objects, or "" if the sink is not open
        self._sent = 0
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0

    def check_types(self, schema: pa.Schema) -> None:
        self._format.check_types(schema)

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        return self._format.floats_lost

    def open(self) -> None:
        self._open(uuid.uuid4().hex)

    def claim(self, track: Track) -> Token | None:
        self._open(hashlib.sha256(f"{track.key}\0{track.incarnation}".encode()).hexdigest()[:16])
        return None

    def _open(self, begun: str) -> None:
        self._begun, self._sent, self._waiting, self._waiting_bytes = "", 0, [], 0
        try:
            with naming(self._path):
                self._path.filesystem.get_file_info([self._path.inside])
        except OSError as error:
            raise TransientError(f"{error}", hint="check the address, and the keys in the environment") from error
        check_bucket(self._path.filesystem, self._path.inside, self.name)
        self._begun = begun

    def write(self, batch: Batch) -> None:
        self._check_open()
        if batch.num_rows:
            data = self.fitting(batch.taken())
            self._waiting.append(data)
            self._waiting_bytes += data.nbytes
            if self._waiting_bytes >= _OBJECT_BYTES:
                self.flush()

    def flush(self) -> None:
        self._check_open()
        if self._waiting:
            self._put(self._sent, self._waiting)
            self._sent, self._waiting, self._waiting_bytes = self._sent + 1, [], 0

    def finish(self) -> None:
        if self._begun:
            self.flush()

    def close(self) -> None:
        self._begun, self._waiting = "", []

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        return self._format.fitting(as_columns(data))

    def refused_rows(self, batches: Sequence[pa.RecordBatch]) -> Mapping[int, str]:
        return refused_in(batches, lambda data: self._format.try_rows(as_columns(data)))

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        self._check_open()
        self._put(seq, batches)

    def _put(self, number: int, batches: Sequence[pa.RecordBatch]) -> None:
        """Sends the rows as the objects of this number. A second call with the same rows changes nothing."""
        rows = [batch.replace_schema_metadata(None) for batch in batches if batch.num_rows]
        if not rows:
            return
        file = f"part-{self._begun}-{number:020}{self._format.ending}"
        for folder, part in self._divided(pa.Table.from_batches(rows)):
            with self._format.writing():
                body = self._encoded(part)
            self._send(f"{self._path.inside}/{folder}", file, body)

    def _divided(self, table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        """Yields the folder of each partition, with its rows; "" with all rows if there are no partitions."""
        if not self._format.partition_by:
            yield "", table
            return
        for folder, rows in partitions_of(table, self._format.partition_by):
            yield f"{folder}/", rows

    def _encoded(self, rows: pa.Table) -> pa.Buffer:
        body = pa.BufferOutputStream()
        batches = rows.to_batches()
        writer = self._format.start(body, batches[0])
        assert writer is not None
        for batch in batches:
            writer.write(batch)
        writer.close()
        return body.getvalue()

    def _send(self, folder: str, file: str, body: pa.Buffer) -> None:
        target, store = self._path.at(folder + file), self._path.filesystem
        try:
            with naming(target), step("upload", target) as each:
                if self._atomic:
                    with store.open_output_stream(target.inside, compression=None) as stream:
                        stream.write(body)
                    return
                store.create_dir(folder.rstrip("/"), recursive=True)
                # The name is the same each time, so that the next delivery replaces it.
                unfinished = f"{folder}.{file}.tmp"
                with store.open_output_stream(unfinished, compression=None) as stream:
                    each.write(stream, body)
                store.move(unfinished, target.inside)
        except OSError as error:
            check_bucket(store, target.inside, target)
            raise TransientError(
                f"{error}", hint="does the bucket exist, and may this machine write into it?"
            ) from error

    def _check_open(self) -> None:
        if not self._begun:
            raise UserError(f"the sink of {self.name} is not open")
