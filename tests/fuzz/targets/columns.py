"""Parquet and Arrow files: an error that names the file, or rows whose every byte is the file's own."""

import io
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
from pyarrow import ipc
from pyarrow import parquet as pq

from sabot.connectors.files import ArrowSource, FileSource, ParquetSource
from sabot.errors import SabotError
from targets.base import Target, found_in, refused, use

__all__ = ["Arrow", "Parquet"]


def tables(rng: random.Random) -> list[pa.Table]:
    """Small tables of all types that a source reads, with nulls, empty values, views, dictionaries and nesting."""
    rows = 7
    words = ["", "a", "café", None, "x" * 40, "b", "日本"]
    moment = datetime(2024, 2, 29, 12, tzinfo=UTC)
    plain: dict[str, Any] = {
        "id": pa.array(range(rows)),
        "small": pa.array([1, -1, None, 127, -128, 0, 5], pa.int8()),
        "unsigned": pa.array([0, 2**64 - 1, 1, None, 4, 5, 6], pa.uint64()),
        "x": pa.array([0.5, None, float("nan"), -0.0, 1e300, float("inf"), 3]),
        "flag": pa.array([True, None, False, True, True, False, None]),
        "word": pa.array(words),
        "raw": pa.array([None if word is None else word.encode() for word in words], pa.binary()),
        "day": pa.array([moment.date()] * rows, pa.date32()),
        "ts": pa.array([moment + timedelta(milliseconds=row) for row in range(rows)], pa.timestamp("ms", "UTC")),
    }
    nested: dict[str, Any] = {
        "numbers": pa.array([[1, 2], [], None, [3], [None], [4, 5, 6], [7]], pa.list_(pa.int64())),
        "texts": pa.array([["a"], [], None, ["b", None], ["ccc"], [""], ["d"]], pa.list_(pa.string())),
        "both": pa.array([{"a": row, "b": word} if row % 3 else None for row, word in enumerate(words)]),
        "price": pa.array([Decimal("1.25"), None] + [Decimal("-0.5")] * 5, pa.decimal128(9, 2)),
        "map": pa.array([[("k", 1)], [], None, [("a", 2), ("b", 3)], [], [], []], pa.map_(pa.string(), pa.int64())),
    }
    odd: dict[str, Any] = {
        "dictionary": pa.array(words).dictionary_encode(),
        "large": pa.array(words, pa.large_string()),
        "view": pa.array(words, pa.string_view()),
        "fixed": pa.array([b"abcd", None, *[b"efgh"] * 5], pa.binary(4)),
        "time": pa.array([1, 2, None, 4, 5, 6, 7], pa.time32("ms")),
        "took": pa.array([1, 2, None, 4, 5, 6, 7], pa.duration("us")),
    }
    words_alone = {"word": pa.array([rng.choice("abcdef") * rng.randrange(9) for _ in range(20)])}
    return [pa.table(columns) for columns in (plain, nested, odd, words_alone)]


class _File(Target):
    kind: type[FileSource]

    def check(self, data: bytes) -> bool:
        path = self.directory / f"fuzzed.{self.name}"
        path.write_bytes(data)
        count = 0
        try:
            for batch in found_in(self.kind(path), 4):
                use(batch.data)
                count += batch.num_rows
        except SabotError as error:
            return refused(error, path.name)
        return count > 0


class Parquet(_File):
    """Parquet files."""

    name = "parquet"
    kind = ParquetSource

    def __init__(self) -> None:
        super().__init__()
        self.seeds = []
        ways: list[dict[str, Any]] = [
            {"compression": "none", "use_dictionary": False},
            {"compression": "none", "row_group_size": 3},
            {"compression": "snappy", "data_page_version": "2.0", "write_page_checksum": False},
            {"compression": "zstd", "write_statistics": False},
        ]
        for table in tables(random.Random(1)):
            for way in ways:
                file = io.BytesIO()
                pq.write_table(table, file, store_schema=way["compression"] != "snappy", **way)
                self.seeds.append(file.getvalue())


class Arrow(_File):
    """Arrow IPC, files and streams."""

    name = "arrow"
    kind = ArrowSource

    def __init__(self) -> None:
        super().__init__()
        self.seeds = []
        for table in tables(random.Random(1)):
            for write in (ipc.new_file, ipc.new_stream):
                for compression in (None, "lz4"):
                    file = io.BytesIO()
                    with write(file, table.schema, options=ipc.IpcWriteOptions(compression=compression)) as writer:
                        for batch in table.to_batches(max_chunksize=4):
                            writer.write_batch(batch)
                    self.seeds.append(file.getvalue())
