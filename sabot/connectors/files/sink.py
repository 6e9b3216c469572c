"""The sink of files over a format: `at_least_once` writes at least once, `exactly_once` exactly once."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.checks import FLAG, Whole, check
from sabot.base.config import Duration, parse_seconds
from sabot.base.os_errors import hint_of
from sabot.base.redaction import redacted_url
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.connectors.base import (
    ChecksTypes,
    ExpectsColumns,
    Finishes,
    KeepsToken,
    LostFloats,
    Sink,
    StartsAfresh,
    Token,
    Track,
)
from sabot.connectors.files.at_least_once import FileWriting
from sabot.connectors.files.exactly_once import FileDelivering
from sabot.connectors.files.format import FileFormat
from sabot.connectors.files.remote import is_remote
from sabot.connectors.files.target import FileTarget
from sabot.connectors.letters import as_columns
from sabot.connectors.refused import refused_in
from sabot.errors import UserError

_PART_BYTES = 64 << 20


class FileSink(Sink, KeepsToken, StartsAfresh, ExpectsColumns, ChecksTypes, Finishes):
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
        overwrite: bool,
        part_bytes: int | None,
        part_time: Duration | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name = format.name
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
        return os.fspath(self._target.ledger.path)

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
            self._target.look()
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
