"""`DeltaSource`: reads a version of a table of Delta Lake, and then what later versions add, or their changes.

The log of the source is that of a `LakeSource`; a file of a later version is one that its commit has added. With keys a commit that removes
rows is read too: first the deletions of its keys, which are held in memory, and then the rows that it adds, from the files of the change
feed if the commit has them. So an update whose key stays is one change, and a row that moves to another key, two.
"""

import copy
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from sabot.base.checks import Whole, check
from sabot.base.config import RECORD_BYTES, Duration, parse_bytes
from sabot.base.inner_paths import first_outside, wrong_path
from sabot.base.redaction import clean_cause
from sabot.codecs.engine_columns import INSERT, UPDATE_AFTER
from sabot.connectors.base import Sink
from sabot.connectors.delta.files import FROM_FILE, Columns, Mask, Removed, RowFile, masks, physical_name
from sabot.connectors.delta.log import (
    Action,
    LogCommit,
    binary_partition,
    check_features,
    partition_value,
    read_commit,
)
from sabot.connectors.delta.sink import DeltaSink
from sabot.connectors.delta.table import DeltaPlace
from sabot.connectors.delta.types import columns_of
from sabot.connectors.files.formats.base import FileReader, Share
from sabot.connectors.files.formats.columns import canonical
from sabot.connectors.files.paths import DataFile, HasPath, RemotePath
from sabot.connectors.lake.source import AFRESH, LakeFile, LakeSource
from sabot.errors import UserError, short_repr

__all__ = ["DeltaSource"]

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


class DeltaSource(LakeSource, HasPath):
    """A source that reads the rows of a table of Delta Lake: `DeltaSource("lake/orders")`.

    `table`: the folder of the table, or its address in an object store. `version`: the number of the version, or None
    for the newest one when the app starts without a checkpoint; a start from a checkpoint reads the same version on.
    `follow`: the time between two looks for new versions, such as "10s"; None reads one version, and ends. `since`: with
    `follow=`, the first version whose rows are read, without those of the versions before it. `keys`: the columns that name
    a row, for a table whose rows change: `app.table(source)` has it. `storage_options`: settings for the object store, as of
    `DeltaSink`. `record_bytes`: the largest size of a row.

    Each row counts once, also across crashes. Rows that new versions add are read in the order of the versions. One that only
    rewrites files (a compaction) has no new row. One that removes or replaces rows ends the app without `keys=`, as does a
    place that is no longer in the log of the table.

    Only the columns are read that are used. With `version=` several readers share the files; without it there is one,
    as the readers of several processes could find different versions.
    """

    snapshot_word = asks = "version"

    def __init__(
        self,
        table: str | os.PathLike[str],
        *,
        version: int | None = None,
        follow: Duration | None = None,
        since: int | None = None,
        keys: Sequence[str] = (),
        storage_options: Mapping[str, str] | None = None,
        record_bytes: int | str = RECORD_BYTES,
    ) -> None:
        for name, number in (("version", version), ("since", since)):
            if number is not None:
                check(f"DeltaSource: {name}", number, Whole(0))
        if isinstance(keys, str):
            raise UserError(f"DeltaSource: keys={keys!r} is no list", hint=f"keys=[{keys!r}]")
        if since is not None and (follow is None or version is not None):
            raise UserError(
                "DeltaSource: since= is for a table that is followed, and takes no version=", hint='follow="10s"'
            )
        self._place = DeltaPlace(table, storage_options, "a source of Delta Lake")
        self._keys = list(keys)
        self._since = since
        self._record_bytes = parse_bytes(record_bytes, name="record_bytes")
        self._taken: Columns | None = None
        self._newest_seen = -1  # the version whose columns are read
        super().__init__(self._place, version, follow)

    def has_path(self, path: str) -> bool:
        folder = self._place.folder
        return folder is not None and os.path.abspath(folder) == os.path.abspath(path)

    def use_path(self, path: str) -> None:
        self._place = self._lake_place = DeltaPlace(path, self._place.options, "a source of Delta Lake")
        self.name = self._place.name

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    def readers(self, count: int) -> Sequence[Self]:
        if self.asked is None or not self.bounded or count <= 1:
            return [self]
        found = [copy.copy(self) for _ in range(count)]
        for index, reader in enumerate(found):
            reader.share = Share(index, count)
        return found

    def as_sink(self) -> Sink:
        return DeltaSink(self._place.uri, storage_options=self._place.options)

    # -- the format -----------------------------------------------------------------------------------------------------

    def _all_columns(self, table: Any) -> pa.Schema:
        found = canonical(self._columns_in(self._shown(table)))
        for key in self._keys:
            kind = found.field(key).type if key in found.names else None
            if kind is None or pa.types.is_nested(kind) or pa.types.is_floating(kind):
                what = "is no column" if kind is None else f"is {kind}, by which rows cannot be told apart"
                raise UserError(
                    f"{self._place.where}: keys= names {key!r}, which {what}",
                    hint=f"it has {', '.join(found.names)}",
                )
        return found

    def _shown(self, table: Any) -> Any:
        """Returns the table at the version whose columns are read: the one that is asked for, or the newest one."""
        return self._at(self.asked) if self.asked is not None and self.bounded else table

    def _columns_in(self, table: Any) -> pa.Schema:
        columns = columns_of(table)
        check_features(self._place.where, table.protocol().reader_features or (), columns)
        return columns

    def _id_of(self, table: Any) -> str:
        return str(table.metadata().id)

    def _newest(self, table: Any) -> int | None:
        newest = int(table.version())
        if self._since is None:
            return newest
        if self._since > newest + 1:
            raise UserError(
                f"{self._place.where} is at version {newest}, and since= says {self._since}", hint=f"since={newest + 1}"
            )
        return self._since - 1

    def _begin(self, table: Any, *, rows: bool) -> None:
        super()._begin(table, rows=rows and self._since is None)

    def _has_snapshot(self, table: Any, snapshot: int) -> bool:
        return snapshot <= table.version() and self._version(snapshot) is not None

    def _version(self, version: int) -> Any:
        """Returns the table at a version, or None if its log does not have it (any more)."""
        try:
            return self._place.found(version)
        except self._place.delta.exceptions.DeltaError:
            return None

    def _at(self, version: int) -> Any:
        """Returns the table at a version. Raises UserError if its log does not have it."""
        if (table := self._version(version)) is None:
            raise UserError(
                f"{self._place.where} does not have version {version} any more, or not yet",
                hint=f"old versions end with delta.logRetentionDuration; {AFRESH}",
            )
        return table

    def _take_columns(self, table: Any, names: Sequence[str]) -> None:
        shown = self._shown(table)
        mode = shown.metadata().configuration.get("delta.columnMapping.mode", "none")
        columns = self._columns_in(shown)
        self._newest_seen = shown.version()
        where, most = self._place.where, self._record_bytes
        self._taken = Columns(where, columns, mode, names, self._keys, most)

    def _first_files(self, table: Any, snapshot: int) -> list[LakeFile]:
        """Lists the files of a version in the order in which they were written."""
        table = table if table.version() == snapshot else self._version(snapshot)
        if table is None:
            raise self.expired()
        columns, taken = self._columns_in(table), self._columns_taken
        found = pa.table(table.get_add_actions())
        parts: Any = found.column("partition").combine_chunks() if "partition" in found.column_names else None
        actions = found.select(["path", "size_bytes", "modification_time", "num_records"]).to_pylist()
        order = sorted(range(len(actions)), key=lambda at: (actions[at]["modification_time"], actions[at]["path"]))
        paths = self._paths([(actions[at]["path"], actions[at]["size_bytes"]) for at in order], snapshot)
        keep = self._masks(table) if "deletionVectors" in (table.protocol().reader_features or ()) else {}
        listed = []
        for number, (at, path) in enumerate(zip(order, paths, strict=True)):
            action = actions[at]
            file = DataFile(path, number, action["size_bytes"], action["modification_time"])
            values = {} if parts is None else {
                physical_name(columns.field(name)): _unescaped(value) for name, value in parts[at].items()
            }  # fmt: skip
            rows = action["num_records"] if action["num_records"] is not None else taken.rows_in(file)
            kept = keep.pop(unquote(action["path"]), None)
            listed.append(LakeFile(rows, file.size, RowFile(file, values, kept, INSERT if self._keys else None)))
        if keep:
            raise self._refused(next(iter(keep)), "has a deletion vector and is not in the version", snapshot)
        return listed

    @property
    def _columns_taken(self) -> Columns:
        assert self._taken is not None  # `open` takes them first
        return self._taken

    def _open_file(self, file: LakeFile, row: int) -> FileReader:
        return self._columns_taken.open(file.what, row, self.share)

    def _later(self, table: Any, snapshot: int | None) -> list[int]:
        newest, before = table.version(), -1 if snapshot is None else snapshot
        if newest < before or self._id_of(table) != self.table_id:
            raise self.expired()
        return list(range(newest, before, -1))

    def _added(self, table: Any, snapshot: int) -> list[LakeFile]:
        commit = self._commit(table, snapshot)
        if not commit.removed and not (self._keys and commit.changed):
            return self._listed(commit.added, table, snapshot, INSERT if self._keys else None)
        if not self._keys:
            raise UserError(
                f"{self._place.where}: version {snapshot} removes or replaces rows ({commit.operation}), which a source that "
                "follows reads only by keys",
                hint=f'DeltaSource(…, keys=["id"]) and app.table(source) take changes; or {AFRESH}; or read it without follow=',
            )
        if commit.changed:
            changed = self._listed(commit.changed, table, snapshot, FROM_FILE)
            removed, added = changed, changed
        else:
            added = self._listed(commit.added, table, snapshot, UPDATE_AFTER)
            removed = self._listed(commit.removed, table, snapshot - 1, None)
            added, removed = _apart(added, removed), _apart(removed, added)
        held = Removed([file.what for file in removed], [file.what for file in added])
        return [LakeFile(0, 0, held), *added]

    def _commit(self, table: Any, version: int) -> LogCommit:
        try:
            commit = read_commit(self._place, version)
        except FileNotFoundError as error:
            raise self.expired() from clean_cause(error)
        check_features(self._place.where, commit.features, pa.schema([]))
        if commit.schema is not None and version > self._newest_seen:
            before = self._columns_taken.described(columns_of(self._at(self._newest_seen)))
            columns = self._columns_in(self._at(version))
            for (name, path, kind), now in zip(before, self._columns_taken.described(columns), strict=True):
                if (name, path, kind) != now:
                    raise UserError(
                        f"{self._place.where}: version {version} has changed or dropped column {name}",
                        hint="start the program again, which then reads the columns as they are now",
                    )
            self._newest_seen = version
        return commit

    def _listed(self, actions: Sequence[Action], table: Any, version: int, op: int | None) -> list[LakeFile]:
        """Lists files of a commit. `version`: one that has their deletion vectors."""
        kinds = {physical_name(field): field.type for field in columns_of(table)}
        paths = self._paths([(action["path"], action.get("size") or 0) for action in actions], version)
        vectors = [action["deletionVector"] for action in actions if action.get("deletionVector")]
        for vector in vectors:
            if vector.get("storageType") == "p":
                raise self._refused(vector["pathOrInlineDv"], "is a deletion vector elsewhere", version)
        keep = self._masks(self._at(version)) if vectors else {}
        listed = []
        for number, (action, path) in enumerate(zip(actions, paths, strict=True)):
            size, stamp = action.get("size") or 0, action.get("modificationTime") or 0
            given = (action.get("partitionValues") or {}).items()
            values = {name: partition_value(text, kinds[name]) for name, text in given if name in kinds}
            kept = None
            if action.get("deletionVector") and (kept := keep.get(unquote(action["path"]))) is None:
                raise self._refused(action["path"], "has a deletion vector that cannot be read", version)
            rows = json.loads(action.get("stats") or "{}").get("numRecords") or 0
            listed.append(LakeFile(rows, size, RowFile(DataFile(path, number, size, stamp), values, kept, op)))
        return listed

    def _masks(self, table: Any) -> dict[str, Mask]:
        """Returns the masks of the files with deletion vectors, by their paths below the table."""
        root = f"{table.table_uri.rstrip('/')}/"
        found = {}
        for address, keep in masks(pa.table(table.deletion_vectors().read_all()).to_batches()):
            path = unquote(address.removeprefix("file://"))
            inside = path.removeprefix(unquote(root.removeprefix("file://")))
            found[inside] = keep
        return found

    # -- paths ----------------------------------------------------------------------------------------------------------

    def _paths(self, listed: Iterable[tuple[str, int]], version: int) -> list[str]:
        """Returns the paths of files as they are opened. `listed`: their paths as the log has them, and their sizes. Raises UserError for a
        path that leads out of the folder of the table.
        """
        sizes: dict[str, int] = {}
        for path, size in listed:
            inside = unquote(path)
            why = "is an address of its own" if _ADDRESS.match(inside) else wrong_path(inside, "the table")
            if why:
                raise self._refused(path, why, version)
            sizes[inside] = size
        folder = self._place.folder
        if folder is None:
            remote: Any = self._place.files({inside: size for inside, size in sizes.items() if size})
            return [RemotePath(f"{self.name}/{inside}", remote, inside) for inside in sizes]
        if outside := first_outside(folder, (os.path.join(folder, each) for each in sizes)):
            raise self._refused(os.path.relpath(outside, folder), "leads out of the table by a symbolic link", version)
        return [os.path.join(folder, inside) for inside in sizes]

    def _refused(self, path: str, why: str, version: int) -> UserError:
        return UserError(
            f"{self._place.where}, version {version}: its log lists the file {short_repr(path)}, which {why}",
            hint="files of a table are below its folder; a shallow clone lists those of another table: read that table, "
            "or make a deep clone",
        )


def _unescaped(value: pa.Scalar) -> pa.Scalar:
    """Returns a value of a partition as the table means it: deltalake gives bytes as their text in the log."""
    if not value.is_valid or not pa.types.is_binary(value.type):
        return value
    return pa.scalar(binary_partition(value.as_py().decode()), value.type)


def _apart(files: Sequence[LakeFile], others: Sequence[LakeFile]) -> list[LakeFile]:
    """Returns the rows of files that the others do not have: a commit that marks rows of a file as deleted adds and removes the file."""
    by_path = {each.what.file.path: each.what.keep for each in others}
    found = []
    for each in files:
        rows: RowFile = each.what
        if rows.file.path in by_path:
            keep, other = rows.keep, by_path[rows.file.path]
            size = max(len(mask) for mask in (keep, other, ()) if mask is not None)
            here, there = (np.ones(size, bool) for _ in range(2))
            for mask, given in ((here, keep), (there, other)):
                mask[: 0 if given is None else len(given)] = () if given is None else given
            rows = replace(rows, keep=here & ~there, beyond=False)
        found.append(LakeFile(each.rows, each.size, rows))
    return found
