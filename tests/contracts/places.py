"""The places that the contract suites run on: how each is filled and read from outside, beside the code under
test.
"""

import asyncio
import functools
import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import redis
from pyarrow import csv, ipc
from pyarrow import parquet as pq

from sabot._cython.text.json import encode_rows
from sabot.codecs.records import Headers, Record, iterate_records
from sabot.connectors.base import Positions, Sink, Source
from sabot.connectors.files import (
    ArrowSink,
    CsvSink,
    CsvSource,
    FileSource,
    NdjsonSink,
    NdjsonSource,
    ParquetSink,
    files,
)
from sabot.connectors.files.followed import FollowedFiles
from sabot.connectors.files.formats.ndjson import NdjsonFormat
from sabot.connectors.memory import MemoryBroker, MemorySink, MemorySource
from sabot.connectors.redis import RedisStreamSink, RedisStreamSource
from sabot.journal import Journal, JournalReader
from sabot.journal.entries import EffectResult, Entry
from sabot.journal.memory import MemoryJournal, MemoryReader, MemoryStorage
from sabot.journal.source import JournalRow, JournalSource
from sabot.journal.sqlite import SqliteJournal, SqliteReader
from sabot.kafka import KafkaSink, KafkaSource, RecordSender

PAYLOADS = [json.dumps({"n": n}).encode() for n in range(10)]


class MemoryPlace:
    """A topic of the embedded broker. A place of another kind has the same members; only those that are brokers have keys,
    headers, times and partitions, and a place of a source alone has no `sink` and no `records`. The suites make a second place
    by adding to `topic`, the name of the source.
    """

    name = "memory"
    exact = True  # it keeps keys, headers, timestamps, and payloads that are no line of text
    groups = True  # it has consumer groups; and a topic may be called "….other", a file of text "….ndjson"
    identified = True  # `Source.identity` names the log

    def __init__(self, url: str, topic: str) -> None:
        self.topic = topic
        self.url = url
        self.broker = MemoryBroker.get(url)

    def create(self, partitions: int = 1) -> None:
        self.broker.create_topic(self.topic, partitions)

    def put(
        self,
        payloads: Sequence[bytes | None],
        *,
        key: bytes | None = None,
        headers: Headers = (),
        timestamp: int | None = None,
        partition: int | None = None,
    ) -> None:
        self.broker.publish(self.topic, payloads, key=key, headers=headers, timestamp=timestamp, partition=partition)

    def source(self, group: str = "g") -> Source:
        return MemorySource(self.topic, self.url, group)

    def sink(self) -> Sink:
        return MemorySink(self.topic, self.url)

    def records(self) -> list[Record]:
        return self.broker.records(self.topic)


class FilePlace:
    """An NDJSON file."""

    name = "ndjson"
    exact = False
    groups = False
    identified = True

    def __init__(self, folder: Path) -> None:
        self.topic = os.fspath(folder / "rows.ndjson")

    def create(self, partitions: int = 1) -> None:
        Path(self.topic).touch()

    def put(self, payloads: Sequence[bytes | None]) -> None:
        with open(self.topic, "ab") as file:
            file.writelines(payload + b"\n" for payload in payloads if payload is not None)

    def source(self, group: str = "g") -> Source:
        return NdjsonSource(self.topic)

    def sink(self) -> Sink:
        return NdjsonSink(self.topic)

    def records(self) -> list[Record]:
        if not os.path.exists(self.topic):
            return []
        lines = Path(self.topic).read_bytes().split(b"\n")
        assert lines.pop() == b""
        return [Record(line, None) for line in lines]


class GzipPlace(FilePlace):
    """A compressed NDJSON file, for sources: what a sink writes is there when it is finished."""

    name = "ndjson.gz"

    def __init__(self, folder: Path) -> None:
        self.topic = os.fspath(folder / "rows.ndjson.gz")

    def put(self, payloads: Sequence[bytes | None]) -> None:
        with gzip.open(self.topic, "ab", compresslevel=1) as file:
            file.writelines(payload + b"\n" for payload in payloads if payload is not None)


class FollowedPlace(FilePlace):
    """An NDJSON file that goes on. Its positions mean something together with what the source remembers, which the place keeps, as a
    checkpoint does.
    """

    name = "followed"
    identified = False  # a restart may take the records in another order

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.kept: dict[tuple[Any, ...], dict[tuple[str, int], bytes]] = {}

    def source(self, group: str = "g") -> Source:
        return _Followed(self.topic, self.kept)


class _Followed(FollowedFiles):
    def __init__(self, path: str, kept: dict[tuple[Any, ...], dict[tuple[str, int], bytes]]) -> None:
        super().__init__(path, NdjsonFormat(path), 0.01)
        self.kept = kept

    def positions(self) -> Positions:
        found = super().positions()
        self.kept[tuple(found.items())] = self.remember()
        return found

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self.recall(self.kept.get(tuple((positions or {}).items()), {}))
        super().open(positions, start)


class KafkaPlace(MemoryPlace):
    """A topic of a real broker."""

    name = "kafka"

    def __init__(self, url: str, topic: str) -> None:
        from sabot.kafka import admin

        self.topic = topic
        self.url = url
        self.admin = admin
        self.sender = _sender(url)

    def create(self, partitions: int = 1) -> None:
        self.admin.create_topic(self.url, self.topic, partitions, config={"max.message.bytes": "16777216"})

    def put(self, payloads: Sequence[bytes | None], **where: object) -> None:
        async def send() -> None:
            for payload in payloads:
                await self.sender.send(self.topic, payload, **where)  # type: ignore[arg-type]

        asyncio.run(send())

    def source(self, group: str = "g") -> Source:
        return KafkaSource(self.topic, self.url, f"{self.topic}.{group}", partition_check=0.2)

    def sink(self) -> Sink:
        return KafkaSink(self.topic, self.url)

    def records(self) -> list[Record]:
        source = self.source("records")
        source.open(None, "latest")
        end = source.positions()
        source.close()
        source.open(None)
        found: list[Record] = []
        while source.positions() != end:
            batch = source.read_batch(65536, 60)
            assert batch is not None
            found += iterate_records(batch.data, self.topic)
        source.close()
        return sorted(found, key=lambda record: (record.partition, record.offset))


@functools.cache
def _sender(url: str) -> RecordSender:
    """One producer for all tests: an idempotent one takes half a second to get its id."""
    return RecordSender(url)


class RedisPlace(MemoryPlace):
    """A stream of a Redis server. Its positions mean something together with the count that the source remembers, which the place
    keeps, as a checkpoint does.
    """

    name = "redis"
    identified = False  # the key may be made again

    def __init__(self, url: str, topic: str) -> None:
        self.topic, self.url = topic, url
        self.kept: dict[tuple[Any, ...], dict[tuple[str, int], bytes]] = {}

    def create(self, partitions: int = 1) -> None:
        """Does nothing: a stream begins with its first entry."""

    def put(
        self,
        payloads: Sequence[bytes | None],
        *,
        key: bytes | None = None,
        headers: Headers = (),
        timestamp: int | None = None,
        partition: int | None = None,
    ) -> None:
        with closing(redis.Redis.from_url(self.url)) as client:
            for payload in payloads:
                words: list[Any] = ["value", payload, *(() if key is None else ("key", key))]
                words += [each for header in headers for each in header]
                client.execute_command("XADD", self.topic, "*" if timestamp is None else f"{timestamp}-*", *words)

    def source(self, group: str = "g") -> Source:
        return _OfRedis(self.topic, self.url, group, self.kept)

    def sink(self) -> Sink:
        return RedisStreamSink(self.url, self.topic)

    def records(self) -> list[Record]:
        with closing(redis.Redis.from_url(self.url)) as client:
            entries = client.execute_command("XRANGE", self.topic, "-", "+") or []
        found = []
        for id, fields in entries:
            pairs = list(fields.items())
            payload, key = fields.pop(b"value"), fields.pop(b"key", None)
            headers = tuple((name.decode(), value) for name, value in pairs if name not in (b"value", b"key"))
            ms = int(id.split(b"-")[0])
            found.append(Record(payload, key, headers, ms, self.topic, 0, (ms << 20) + int(id.split(b"-")[1])))
        return found


class _OfRedis(RedisStreamSource):
    def __init__(
        self, stream: str, url: str, group: str, kept: dict[tuple[Any, ...], dict[tuple[str, int], bytes]]
    ) -> None:
        super().__init__(url, stream, group)
        self.kept = kept

    def positions(self) -> Positions:
        found = super().positions()
        self.kept[tuple(found.items())] = self.remember()
        return found

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self.recall(self.kept.get(tuple((positions or {}).items()), {}))
        super().open(positions, start)


class JournalPlace:
    """A journal, whose entries are rows: each RESULT its usage."""

    name = "journal"
    exact = False
    groups = False
    identified = True

    def __init__(self, folder: Path, *, in_memory: bool) -> None:
        self.topic = "journal of the test"
        self.folder, self.in_memory = folder, in_memory
        self.homes: dict[str, MemoryStorage] = {}

    def _where(self) -> Path:
        return self.folder / str(len(self.topic))

    def journal(self) -> Journal:
        if self.in_memory:
            return MemoryJournal(self.homes.setdefault(self.topic, MemoryStorage()))
        return SqliteJournal(self._where())

    def create(self, partitions: int = 1) -> None:
        self.journal().close()

    def put(self, payloads: Sequence[bytes | None]) -> None:
        journal = self.journal()
        last = [journal.append(EffectResult("job", 1, 1, usage=each)) for each in payloads if each is not None][-1]
        assert journal.wait_durable(last, 60)
        journal.close()

    def source(self, group: str = "g") -> JournalSource:
        def rows(entry: Entry) -> list[JournalRow]:
            return [JournalRow(entry.usage, None, entry.at_ms)] if isinstance(entry, EffectResult) else []

        return JournalSource(self.topic.removeprefix("journal of "), self.reading, rows)

    @contextmanager
    def reading(self) -> Iterator[JournalReader]:
        with closing(MemoryReader(self.homes[self.topic]) if self.in_memory else SqliteReader(self._where())) as reader:
            yield reader


Place = MemoryPlace | FilePlace | KafkaPlace | JournalPlace


# --- places of columns: files in all formats


def _as_ndjson(table: pa.Table, path: Path, group: int) -> None:
    rows = [line.as_py() + b"\n" for batch in table.to_batches() for line in encode_rows(batch)]
    path.write_bytes(b"".join(rows))


def _as_csv(table: pa.Table, path: Path, group: int) -> None:
    csv.write_csv(table, path)


def _as_parquet(table: pa.Table, path: Path, group: int) -> None:
    pq.write_table(table, path, row_group_size=group)


def _as_arrow(table: pa.Table, path: Path, group: int) -> None:
    with ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, group)


def _as_arrows(table: pa.Table, path: Path, group: int) -> None:
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, group)


WRITERS: dict[str, Callable[[pa.Table, Path, int], None]] = {
    "ndjson": _as_ndjson,
    "csv": _as_csv,
    "parquet": _as_parquet,
    "arrow": _as_arrow,
    "arrows": _as_arrows,
}
SINKS: dict[str, Callable[..., Any]] = {
    "ndjson": NdjsonSink,
    "csv": CsvSink,
    "parquet": ParquetSink,
    "arrow": ArrowSink,
}


class TablePlace:
    """A file, or a folder of files, of one format. `kind`: "parquet", "csv.gz", "ndjson/" (a folder), "csv.zst/", ...

    `group`: rows of a row group or a batch; a block of NDJSON or CSV is as small.
    """

    def __init__(self, folder: Path, kind: str, group: int = 3) -> None:
        self.kind = kind
        self.format, _, self.compression = kind.rstrip("/").partition(".")
        self.group = group
        self.folder = folder / "place"
        self.folder.mkdir()
        self.many = kind.endswith("/")
        self.path = os.fspath(self.folder / ("rows" if self.many else f"rows.{kind}")) + ("/" if self.many else "")
        self.tables = 0

    def put(self, table: pa.Table) -> None:
        """A file; another one each time where the place is a folder."""
        path = Path(self.path)
        if self.many:
            path.mkdir(exist_ok=True)
            path = path / f"{self.tables:03}.{self.kind.rstrip('/')}"
            self.tables += 1
        bare = path.with_suffix("") if self.compression else path
        WRITERS[self.format](table, bare, self.group)
        if self.compression:
            codec = "gzip" if self.compression == "gz" else "zstd"
            with pa.CompressedOutputStream(pa.OSFile(os.fspath(path), "wb"), codec) as stream:
                stream.write(bare.read_bytes())
            bare.unlink()

    def source(self) -> FileSource:
        text = {"ndjson": NdjsonSource, "csv": CsvSource}
        if self.format in text:
            return text[self.format](self.path, block_bytes=20 * self.group)
        return files(self.path, "arrow" if self.format == "arrows" else self.format)

    def sink(self, **options: Any) -> Any:
        if self.many and self.compression:
            options["compression"] = "gzip" if self.compression == "gz" else "zstd"
        return SINKS[self.format](self.path, **options)

    def after_a_crash(self) -> "TablePlace":
        """What a new process would find now: the same files, in another folder."""
        later = TablePlace.__new__(TablePlace)
        later.__dict__.update(self.__dict__)
        later.folder = self.folder.with_name(self.folder.name + "-later")
        shutil.copytree(self.folder, later.folder)
        later.path = self.path.replace(os.fspath(self.folder), os.fspath(later.folder), 1)
        return later
