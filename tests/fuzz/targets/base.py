"""What a target is, and what all that read files share."""

import random
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from mutations import mutated

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot._cython.groups.partition import hash_columns, partition_indices
from sabot._cython.rows.row_table import RowTable
from sabot.codecs.records import to_records
from sabot.connectors.files import CsvSink, FileSource
from sabot.errors import InternalError, SabotError, UserError

__all__ = ["Target", "found_in", "refused", "use"]


class Target(ABC):
    """A reader, valid inputs for it, and what must hold whatever it is given."""

    name: ClassVar[str]
    tokens: ClassVar[Sequence[bytes]] = ()
    seeds: Sequence[bytes] = ()
    a_moment: ClassVar[int] = 25  # inputs of the test

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sabot-fuzz-")
        self.directory = Path(self._folder.name)

    def make(self, rng: random.Random) -> bytes:
        """An input: damaged, or (one of twenty) as it should be."""
        return rng.choice(list(self.seeds)) if rng.random() < 0.05 else mutated(rng, self.seeds, self.tokens)

    @abstractmethod
    def check(self, data: bytes) -> bool:
        """Whether the reader took it. What it raises is a finding."""


def refused(error: SabotError, *names: str) -> bool:
    """False: a refusal as it should be, which names where it is. AssertionError where it is not."""
    assert not isinstance(error, InternalError), f"bad input is no bug of ours: {error}"
    text = str(error)
    assert all(name in text for name in names), f"{text!r} does not name {names}"
    return False


def found_in(source: FileSource, rows: int, schema: pa.Schema | None = None) -> Iterator[Batch]:
    """All batches of a source, decoded into columns."""
    try:
        source.scan(schema, None)
        source.open(None)
        while not source.exhausted:
            batch = source.read_batch(rows, 0)
            if batch is not None:
                yield batch
    finally:
        source.close()


_CSV = CsvSink("never-opened.csv")._format


def use(data: pa.RecordBatch) -> None:
    """What a program does with rows: their bytes are hashed, put into tables, compared, written as text."""
    data.validate(full=True)
    batch = Batch(data)
    try:
        to_records(batch, 0).validate(full=True)
    except (UserError, TypeError) as error:  # a type that JSON lacks, bytes that are no text
        if "cannot be written as JSON" not in str(error) and "JSON cannot hold" not in str(error):
            raise
    try:
        _CSV.rows(batch, first=True)
    except UserError as error:
        if "cannot be written as CSV" not in str(error):
            raise
    keyed = [number for number, field in enumerate(data.schema) if _is_key(field.type)]
    if not data.num_rows or not keyed:
        return
    hashes = hash_columns([data.column(number) for number in keyed])
    indices, _ = partition_indices(hashes, 3)
    data.take(indices).validate(full=True)
    keys = pa.schema([data.schema.field(number) for number in keyed])
    table = GroupTable(keys, [("count", None)])
    table.update(data, keyed, [-1])
    table.export().validate(full=True)
    rows = RowTable(data.schema, keys.names)
    order: Any = pa.array(range(data.num_rows), pa.int64())
    rows.insert(data, order)
    for piece in rows.cut().read():
        piece.validate(full=True)


def _is_key(kind: pa.DataType) -> bool:
    """Whether rows can be grouped by it."""
    types = pa.types
    refused = (types.is_nested, types.is_null, types.is_decimal32, types.is_decimal64, types.is_fixed_size_binary)
    return kind != pa.float16() and not any(is_one(kind) for is_one in refused)
