"""A sink for object stores: s3://, gs://, az://, abfs://, hdfs://, and any file system of pyarrow.

An object becomes visible only when all of it was sent, so a part needs no token. The name of an object contains its
track and the number of its part, so a part that is delivered again replaces its objects by equal ones:

    part-<hash of the track>-<number>.parquet    with partition_by= one in each folder, day=2026-11-22/part-…

After a crash, there may be objects of some partitions of a part only. The part is in its checkpoint, so the next
start delivers it again.
"""

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.object_stores import OBJECT_STORES, check_bucket
from sabot.connectors.base import ChecksTypes, Delivers, Finishes, LostFloats, Sink, Token, Track
from sabot.connectors.files.partitions import partitions_of
from sabot.connectors.files.remote import Remotely, RemotePath, naming, remote_path
from sabot.connectors.files.text_sinks import column_format
from sabot.connectors.letters import as_columns
from sabot.connectors.refused import refused_in
from sabot.errors import TransientError, UserError
from sabot.steps import step

_OBJECT_BYTES = 64 << 20


class ObjectSink(Sink, Delivers, ChecksTypes, Finishes):
    """A sink that writes into a folder of an object store, from which `files` reads: each delivery is an object, or
    one for each partition.

    `format`: "parquet", "arrow", "ndjson" or "csv". `compression`: as for the sinks of files. Exactly once, an object
    is there when a checkpoint covers its rows. At least once, rows are sent at each checkpoint, or when there are 64
    MiB of them. Existing objects stay.
    """

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
