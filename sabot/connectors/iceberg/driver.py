"""What Sabot does with pyiceberg: files that are on the disk before a commit names them, and commits that are tried once.

This module is imported when a table is opened, as pyiceberg takes a second of a core to import. SQLAlchemy, a third of that, is imported
by pyiceberg for a catalog in a database alone.

pyiceberg tries a commit that has failed again by itself. It builds the snapshot anew, but not the tag beside it, so a part could be
there without its token: `Commit` does one try, and the sink looks at the table between two. And a transaction of pyiceberg keeps one
requirement of each kind, so of a branch and a tag only the first would be asked for: `Commit` has its own list.
"""

import io
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
from pyiceberg import exceptions
from pyiceberg.catalog import load_catalog
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import ArrowScan, PyArrowFile, PyArrowFileIO, _dataframe_to_data_files, schema_to_pyarrow
from pyiceberg.manifest import ManifestContent, ManifestEntryStatus
from pyiceberg.table import FileScanTask, Table, TableProperties, Transaction
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.update import AssertRefSnapshotId, AssertTableUUID, RemoveSnapshotsUpdate, SetSnapshotRefUpdate
from pyiceberg.transforms import IdentityTransform, VoidTransform, parse_transform
from pyiceberg.utils.properties import property_as_bool, property_as_int

from sabot.base.disk import sync
from sabot.base.inner_paths import first_outside, wrong_path
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.iceberg.types import split
from sabot.errors import UserError, short_repr

__all__ = [
    "Commit",
    "catalog_of",
    "check_places",
    "columns_of",
    "create",
    "data_files",
    "exceptions",
    "later",
    "partitions_of",
    "refused",
]

_log = logging.getLogger(__name__)

_LATER = (
    exceptions.CommitFailedException,
    exceptions.CommitStateUnknownException,
    exceptions.ServerError,
    exceptions.ServiceUnavailableError,
    exceptions.TooManyRequestsError,
    exceptions.WaitingForLockException,
    OSError,
)

_REFUSED = (
    exceptions.RESTError,
    exceptions.ValidationError,
    exceptions.ValidationException,
    exceptions.NoSuchTableError,
    exceptions.NoSuchNamespaceError,
    exceptions.NoSuchPropertyException,
    exceptions.NotInstalledError,
    exceptions.TableAlreadyExistsError,
    NotImplementedError,
    ValueError,  # also of Arrow
)

_MAIN = "main"
_FOREVER = 2**63 - 1  # ms: what expires old snapshots never takes the tag
_EXPIRES = "sabot.expire-snapshots"
_PROPERTIES = {
    "format-version": "2",
    "commit.manifest-merge.enabled": "true",  # else each commit has a manifest more to name, and is slower than the one before
    "write.metadata.delete-after-commit.enabled": "true",
    _EXPIRES: "true",  # each commit reads and writes the list of all snapshots
    TableProperties.MIN_SNAPSHOTS_TO_KEEP: "100",
}
"""Properties of a table that is made."""
EXPIRED_AT_ONCE = 100
"""So many snapshots are removed together, so that only one commit of so many has this work."""


class _OnDisk(io.FileIO):
    """A file that is on the disk when it is closed."""

    def close(self) -> None:
        if not self.closed:
            self.flush()
            os.fsync(self.fileno())
            super().close()
            sync(Path(str(self.name)).parent)


class _OnDiskFile(PyArrowFile):  # type: ignore[misc]
    def __init__(self, location: str, path: str, files: Any) -> None:
        super().__init__(location, path, files)
        self._local = path

    def create(self, overwrite: bool = False) -> Any:
        os.makedirs(os.path.dirname(self._local), exist_ok=True)
        return io.BufferedWriter(_OnDisk(self._local, "w" if overwrite else "x"))


class OnDisk(PyArrowFileIO):  # type: ignore[misc]
    """Files of a table on this machine, which outlive a loss of power once a commit names them."""

    def new_output(self, location: str) -> PyArrowFile:
        scheme, host, path = self.parse_location(location, self.properties)
        if scheme != "file":
            return super().new_output(location)
        return _OnDiskFile(location, path, self.fs_by_scheme(scheme, host))


class Commit(Transaction):  # type: ignore[misc]
    """One try of one commit. `tag`: the name of a tag that the commit moves to its snapshot, or None.

    The commit fails if another one came behind the `table` that it was made for, or if the tag is not where this table has it.
    """

    def __init__(self, table: Table, tag: str | None) -> None:
        super().__init__(table)
        self._before = table
        self._tag = tag

    @property
    def table_metadata(self) -> Any:
        """The metadata with the updates of this transaction. pyiceberg asks for it fifteen times before there is one, and its own copies
        the metadata each time, with all snapshots in it. The classes of metadata are frozen, so nobody needs a copy.
        """
        return super().table_metadata if self._updates else self._before.metadata

    def add(self, files: Sequence[Any], summary: Mapping[str, str]) -> int:
        """Adds a snapshot with the files, and `summary` in its summary. Returns its id."""
        append = self.update_snapshot(snapshot_properties=dict(summary)).merge_append()
        for file in files:
            append.append_data_file(file)
        append.commit()
        found: int = append.snapshot_id
        if self._tag is not None:
            update = SetSnapshotRefUpdate(
                ref_name=self._tag, type=SnapshotRefType.TAG, snapshot_id=found, max_ref_age_ms=_FOREVER
            )
            self._updates += (update,)
        if len(expired := self._expired()) >= EXPIRED_AT_ONCE:
            self._updates += (RemoveSnapshotsUpdate(snapshot_ids=expired),)
        return found

    def _expired(self) -> list[int]:
        """Returns the snapshots that the properties of the table let go. The parent of the next one stays, and so do those of branches and
        tags, such as ours. Files that only these snapshots name are left to who removes orphan files, so a table of others, whose owner
        may expire snapshots together with their files, is left alone.
        """
        before, names = self._before.metadata, TableProperties
        if not property_as_bool(before.properties, _EXPIRES, False):
            return []
        age_ms = property_as_int(before.properties, names.MAX_SNAPSHOT_AGE_MS, names.MAX_SNAPSHOT_AGE_MS_DEFAULT) or 0
        least = (
            property_as_int(before.properties, names.MIN_SNAPSHOTS_TO_KEEP, names.MIN_SNAPSHOTS_TO_KEEP_DEFAULT) or 1
        )
        until = SYSTEM_CLOCK.time() * 1000 - age_ms
        kept = {ref.snapshot_id for ref in before.refs.values()}
        old = sorted(before.snapshots, key=lambda each: each.sequence_number or 0)[: -max(1, least)]
        return [each.snapshot_id for each in old if each.timestamp_ms < until and each.snapshot_id not in kept]

    def remove_all(self) -> None:
        """Adds a snapshot without files. The tag stays where it is."""
        self.delete(AlwaysTrue())

    def commit_transaction(self) -> Table:
        table, before = self._before, self._before.metadata
        if not self._updates:
            return table
        refs = [_MAIN] if self._tag is None or not before.snapshots else [_MAIN, self._tag]
        seen = {name: before.refs[name].snapshot_id if name in before.refs else None for name in refs}
        required = [AssertRefSnapshotId(ref=name, snapshot_id=found) for name, found in seen.items()]
        answer = table.catalog.commit_table(table, (AssertTableUUID(uuid=before.table_uuid), *required), self._updates)
        _remove_old_metadata(table, answer.metadata)
        return table


def _remove_old_metadata(table: Table, after: Any) -> None:
    """Removes the files of metadata that the last commit no longer names, if the table asks for that. pyiceberg does it for its own
    commits. The log of metadata is read from a file, so a path that is not below the folder of the table stays.
    """
    if not property_as_bool(after.properties, TableProperties.METADATA_DELETE_AFTER_COMMIT_ENABLED, False):
        return
    for path in {each.metadata_file for each in table.metadata.metadata_log}.difference(
        each.metadata_file for each in after.metadata_log
    ):
        try:
            _check_inside(table, [path])
            table.io.delete(path)
        except (UserError, OSError) as error:  # the commit is there, and the file is only in the way
            _log.warning("table %s: old metadata cannot be removed: %s", ".".join(table.name()), error)


def later() -> tuple[type[Exception], ...]:
    """Returns the errors that may be over at another try."""
    return (*_LATER, *_of_database("OperationalError"))


def refused() -> tuple[type[Exception], ...]:
    """Returns the errors that stay."""
    return (*_REFUSED, *_of_database("SQLAlchemyError"))


def _of_database(name: str) -> list[type[Exception]]:
    """Returns an error of SQLAlchemy, which only a catalog in a database loads: 0.2 s of a core."""
    loaded = sys.modules.get("sqlalchemy.exc")
    return [] if loaded is None else [getattr(loaded, name)]


def catalog_of(settings: str | Mapping[str, str]) -> Any:
    """Returns a catalog. `settings`: its properties, or its name in the configuration of pyiceberg."""
    if isinstance(settings, str):
        return load_catalog(settings)
    given = {name: str(value) for name, value in settings.items()}
    if (warehouse := given.get("warehouse", "")) and "://" not in warehouse and given.get("type") == "sql":
        # the metadata keeps it, and another process may stand elsewhere
        given["warehouse"] = os.path.abspath(warehouse)
        given.setdefault("py-io-impl", f"{OnDisk.__module__}.{OnDisk.__name__}")
    return load_catalog(given.pop("name", "default"), **given)


def columns_of(table: Table) -> pa.Schema:
    """Returns the columns of a table."""
    return schema_to_pyarrow(table.schema(), include_field_ids=False)


def partitions_of(table: Table) -> list[str]:
    """Returns that by which a table is partitioned, as `split` takes it."""
    found = []
    for field in table.spec().fields:
        column = str(table.schema().find_column_name(field.source_id))
        if isinstance(field.transform, IdentityTransform):
            found.append(column)
        elif not isinstance(field.transform, VoidTransform):
            name, _, width = str(field.transform).partition("[")
            found.append(f"{name}({width.rstrip(']')}, {column})" if width else f"{name}({column})")
    return found


def create(catalog: Any, name: str, schema: pa.Schema, by: Sequence[str]) -> Table:
    """Makes a table, and its namespace if that is missing."""
    namespace = name.rpartition(".")[0]
    if not catalog.namespace_exists(namespace):
        catalog.create_namespace_if_not_exists(namespace)
    making = catalog.create_table_transaction(name, schema, properties=_PROPERTIES)
    if by:
        with making.update_spec() as spec:
            for transform, column in map(split, by):
                kind = transform.partition("[")[0]
                spec.add_field(column, parse_transform(transform), column if kind == "identity" else f"{column}_{kind}")
    return making.commit_transaction()


def data_files(table: Table, rows: Sequence[pa.RecordBatch]) -> list[Any]:
    """Writes rows, which have all columns of the table, into files. Returns these for `Commit.add`."""
    if not rows:
        return []
    return list(_dataframe_to_data_files(table.metadata, pa.Table.from_batches(rows), table.io, uuid4()))


def projected(table: Table, snapshot: int | None, names: Sequence[str] | None) -> Any:
    """Returns the columns of a snapshot, or those with these names, as pyiceberg has them, with their ids."""
    return table.scan(snapshot_id=snapshot, selected_fields=("*",) if names is None else tuple(names)).projection()


def arrow_of(columns: Any) -> pa.Schema:
    """Returns what `projected` has returned as columns of Arrow."""
    return schema_to_pyarrow(columns, include_field_ids=False)


def files_of(table: Table, snapshot: int) -> list[Any]:
    """Returns all files of a snapshot, in the order in which they were committed: a file of a later commit comes later."""
    found = table.snapshot_by_id(snapshot)
    entries = [] if found is None else [entry for entry, _ in _entries(table, found)]  # checks what `scan` reads below
    order = {entry.data_file.file_path: entry.sequence_number or 0 for entry in entries}
    files = _checked(table, list(table.scan(snapshot_id=snapshot).plan_files()))
    # which keeps the order by path within a commit
    return sorted(files, key=lambda each: order.get(each.file.file_path, 0))


def added_files(table: Table, snapshot: Any) -> list[Any]:
    """Returns the files that a snapshot has added, in the same order each time."""
    return _checked(
        table,
        [
            FileScanTask(entry.data_file)
            for entry, by in _entries(table, snapshot)
            if by == snapshot.snapshot_id and entry.status == ManifestEntryStatus.ADDED
        ],
    )


def _entries(table: Table, snapshot: Any) -> Iterator[tuple[Any, int]]:
    """Yields each data file of a snapshot, and the id of the snapshot that has written its manifest."""
    for manifest in _manifests(table, snapshot):
        if manifest.content == ManifestContent.DATA:
            for entry in manifest.fetch_manifest_entry(table.io):
                yield entry, manifest.added_snapshot_id


def read(table: Table, file: Any, columns: Any) -> Any:
    """Yields the rows of a file without those that the table has deleted, with columns that `projected` has returned."""
    return iter(ArrowScan(table.metadata, table.io, columns, AlwaysTrue()).to_record_batches([file]))


def _manifests(table: Table, snapshot: Any) -> list[Any]:
    """Returns the manifests of a snapshot. Raises UserError if one of them, or their list, is not below the folder of the table."""
    _check_inside(table, [snapshot.manifest_list])
    found: list[Any] = snapshot.manifests(table.io)
    _check_inside(table, [each.manifest_path for each in found])
    return found


def _checked(table: Table, files: list[Any]) -> list[Any]:
    """Returns the files, sorted by their paths. Raises UserError for a file that is not below the folder of the table."""
    _check_inside(table, [each.file.file_path for each in files])
    _check_inside(table, [old.file_path for each in files for old in each.delete_files])
    return sorted(files, key=lambda each: each.file.file_path)


def check_places(table: Table) -> None:
    """Raises UserError for a table whose properties would have its files written outside of its folder, or by code that they name."""
    if code := table.properties.get(TableProperties.WRITE_PY_LOCATION_PROVIDER_IMPL):
        raise UserError(
            f"table {'.'.join(table.name())} has its files named by {short_repr(code)}, which would be imported and run",
            hint=f"remove the property {TableProperties.WRITE_PY_LOCATION_PROVIDER_IMPL} of the table",
        )
    places = table.location_provider()
    _check_inside(table, [places.new_data_location("rows.parquet"), places.new_metadata_location("manifest.avro")])


def _check_inside(table: Table, paths: Sequence[str]) -> None:
    """Raises UserError for a path that is not below the folder of the table. The folder is the one in which the catalog has the
    metadata: who can write only the files of a table could name any folder as its location.
    """
    folder = table.location().rstrip("/")
    place = table.metadata_location.rpartition("/")[0].rpartition("/")[0]  # FOLDER/metadata/FILE
    if place.removeprefix("file://") != folder.removeprefix("file://"):
        raise UserError(
            f"table {'.'.join(table.name())} says that it is in {short_repr(folder)}, and the catalog has its metadata at "
            f"{short_repr(table.metadata_location)}",
            hint="its metadata has to be in the folder metadata/ of its location: leave out write.metadata.path",
        )
    for path in paths:
        why = (
            wrong_path(path.removeprefix(f"{folder}/"), "the table")
            if path.startswith(f"{folder}/")
            else "is elsewhere"
        )
        if why:
            raise _refused(table, path, why)
    if "://" not in folder or folder.startswith("file://"):
        local = folder.removeprefix("file://")
        if outside := first_outside(local, [path.removeprefix("file://") for path in paths]):
            raise _refused(table, outside, "leads out of the table by a symbolic link")


def _refused(table: Table, path: str, why: str) -> UserError:
    folder = f"{table.location().removeprefix('file://').rstrip('/')}/"
    shown = short_repr(path.removeprefix("file://").removeprefix(folder))  # which cuts a long path before its end
    return UserError(
        f"table {'.'.join(table.name())} lists the file {shown}, which {why}",
        hint=f"files of a table are below its folder, {table.location()}; copy such rows into a table of their own",
    )
