"""Parts of a folder, divided by the values of columns into folders as Hive has them:
day=2026-11-22/hour=7/part-00003.parquet.

Rows of all partitions wait in one pending list. When the part is complete, each partition gets one file of it, one
after the other, so that one file is open at a time however many partitions there are:

    .part-00003.parquet.files   the names of these files; written before the first of them
    day=…/.part-00003.parquet.tmp    renamed when the token calls the part `ready`; at least once, when all of them are there

At least once, the pending list decides: while it is there, the files of its part are made again, under the same
names.
"""

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.checks import Texts, check
from sabot.base.disk import private
from sabot.connectors.files.growing import PendingFile, WholeFile
from sabot.connectors.files.parts import Encoding, SealedPart, beside, pending_of, remove, sync_folder
from sabot.errors import UserError
from sabot.steps import step

_NULL = "__HIVE_DEFAULT_PARTITION__"
_NAME_BYTES = 255
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}")  # not 007, which would lose its zeros


class PartitionedFile(PendingFile[pa.RecordBatch]):
    """A part whose rows become a file in the folder of each partition. `by`: the columns that name the folders, which
    are not in the files.
    """

    def __init__(self, path: Path, encoding: Encoding[pa.RecordBatch], by: Sequence[str]) -> None:
        super().__init__(path, encoding)
        self._by = by
        self._each = encoding  # the encoding of the file of each partition
        self._names = beside(path, "files")

    def complete(self, length: int, rows: Iterable[pa.RecordBatch] = ()) -> bool:
        batches = list(itertools.chain(self.counted(length), rows))
        if not batches:
            return False
        found = list(partitions_of(pa.Table.from_batches(batches), self._by))
        paths = [self.path.parent / folder / self.path.name for folder, _ in found]
        remove(self._names)
        names = WholeFile(self._names, "xb+", "write", private)
        try:
            names.write(json.dumps([folder for folder, _ in found]).encode())
            names.sync()
        finally:
            names.close()
        sync_folder(self.path.parent)
        for path, (_, table) in zip(paths, found, strict=True):
            self._make(path.parent)
            PendingFile(path, self._each).complete(0, table.to_batches())
        return True

    def publish(self) -> None:
        for path in self._files():
            temporary = beside(path, "tmp")
            if temporary.exists():
                with step("rename", path):
                    os.rename(temporary, path)
                sync_folder(path.parent)
        remove(pending_of(self.path))
        remove(self._names)

    def keep(self, length: int, token: Path) -> None:
        self._unmake()
        super().keep(length, token)

    def discard(self) -> None:
        """Removes the rows in the pending list, and the files made of them that do not have their final names yet."""
        self._unmake()
        remove(self.grown)

    def _unmake(self) -> None:
        for path in self._files():
            remove(beside(path, "tmp"))
        remove(self._names)

    def taken(self) -> bool:
        """Returns False, because no check is needed: the number of this part is free. Exactly once, the token counts
        the numbers; at least once, counting begins above the numbers in all folders.
        """
        return False

    def _files(self) -> list[Path]:
        """Returns the files whose names were written down, whether they exist or not."""
        if not self._names.exists():
            return []
        try:
            folders = json.loads(self._names.read_bytes())
        except ValueError:  # the list of names is incomplete, so none of the files was made
            return []
        return [self.path.parent / folder / self.path.name for folder in folders]

    def _make(self, folder: Path) -> None:
        for each in (*reversed(folder.relative_to(self.path.parent).parents), folder.relative_to(self.path.parent)):
            made = self.path.parent / each
            if not made.is_dir():
                with step("make folder", made):
                    made.mkdir(exist_ok=True)
                sync_folder(made.parent)


class PartitionedPart(SealedPart[pa.RecordBatch]):
    """A part like PartitionedFile that is written at least once. Rows are only in the pending list until the part is
    sealed.
    """

    def __init__(self, path: Path, encoding: Encoding[pa.RecordBatch], by: Sequence[str]) -> None:
        self._growth = PartitionedFile(path, encoding, by)
        self._bytes = 0
        super().__init__(path, encoding)
        if not self.rows:
            self.close()
            self._growth.discard()

    def _add(self, rows: pa.RecordBatch) -> None:
        self.rows = True
        self._bytes += rows.nbytes

    def seal(self) -> bool:
        self.flush()
        made = self._growth.complete(self._growth.size())
        if made:
            self._growth.publish()
        self.close()
        return made

    @property
    def size(self) -> int:
        return self._bytes


def checked_names(by: Sequence[str]) -> tuple[str, ...]:
    """Returns the columns that a user gives as `partition_by=`. Raises UserError for a text in place of a list."""
    return tuple(check("partition_by", by, Texts(hint='columns in a list: partition_by=["day"]')))


def check_partitions(schema: pa.Schema, by: Sequence[str], where: str) -> None:
    """Raises UserError, whose text begins with `where`, for columns by which rows cannot be divided into folders."""
    for column in by:
        if column not in schema.names:
            raise UserError(
                f"{where}: partition_by names {column!r}, but the rows have {', '.join(schema.names)}",
                hint="add it before the sink: with_columns(day=col(…).dt.strftime('%Y-%m-%d'))",
            )
        kind = schema.field(column).type
        if not (
            pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or pa.types.is_integer(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_date(kind)
        ):
            raise UserError(
                f"{where}: partition_by: column {column!r} of type {kind} cannot name folders",
                hint="cast it to text, a whole number, a boolean or a date",
            )
    if len(schema) == len(by):
        raise UserError(f"{where}: partition_by takes all columns, so none is left for the files")


def partitions_of(table: pa.Table, by: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yields the folder of each partition, and its rows in their order, without the columns `by`."""
    order = pc.sort_indices(table, sort_keys=[(column, "ascending") for column in by])
    ordered = table.take(order)
    keys = [ordered.column(column).combine_chunks() for column in by]
    ends = sorted({end for key in keys for end in pc.run_end_encode(key).run_ends.to_pylist()})
    rows = ordered.drop_columns(list(by))
    start = 0
    for end in ends:
        folder = "/".join(_folder(column, key[start].as_py()) for column, key in zip(by, keys, strict=True))
        yield folder, rows.slice(start, end - start)
        start = end


def values_of(below: str) -> dict[str, str | None]:
    """Returns the texts of the values in the folders of a file, by column. `below`: the path of the file below the source's folder."""
    found: dict[str, str | None] = {}
    for name, named, text in (part.partition("=") for part in below.split("/")[:-1]):
        if named and name:
            found[unquote(name)] = None if text == _NULL else unquote(text)
    return found


def columns_of(folders: Iterable[Mapping[str, str | None]]) -> pa.Schema:
    """Returns the columns that folders name. The type of a column is int64 or bool if all its texts are such values as a sink writes
    them, else string.
    """
    texts: dict[str, set[str]] = {}
    for folder in folders:
        for name, text in folder.items():
            texts.setdefault(name, set()).update(() if text is None else (text,))
    return pa.schema([(name, _type_of(each)) for name, each in texts.items()])


def _type_of(texts: Set[str]) -> pa.DataType:
    if texts and all(_WHOLE.fullmatch(text) and abs(int(text)) < 1 << 63 for text in texts):
        return pa.int64()
    return pa.bool_() if texts and texts <= {"true", "false"} else pa.string()


def _folder(column: str, value: object) -> str:
    """Returns column=value, both escaped as in an address, so that no value leads out of its folder."""
    text = _NULL if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    name = f"{quote(column, safe='')}={quote(text, safe=' :')}"
    if len(name) > _NAME_BYTES:
        raise UserError(f"partition_by: column {column!r}: a value of {len(text)} characters is too long for a folder")
    return name
