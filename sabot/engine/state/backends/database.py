"""A RocksDB database in one directory. Only this module imports rocksdict, and only this module knows column
families.

All writes are sorted files that the database ingests; the memtable is not used. Compared with WriteBatches of
rocksdict 0.3.29 this has three advantages. A full disk fails only the file being written, and the database goes on; a
failed memtable flush stops the database until it is reopened, and loses the memtable. There is no WAL to turn off,
and nothing to flush before a checkpoint. And no call holds the GIL for long.

Not thread safe: one thread writes. Others may read at the same time.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.disk import TemporaryFolder, make_folder, private
from sabot.base.inner_paths import wrong_path
from sabot.base.os_errors import checkpoint_error
from sabot.engine.state.files import link_for_reading
from sabot.errors import UNREADABLE, CorruptCheckpoint, SabotError, UserError

if TYPE_CHECKING:  # it is loaded with the first database: the state of most programs that try Sabot out is in memory
    from rocksdict import Options

MARK_FILE = "sabot-state.json"
_FORMAT = 1
# The prefix of a namespace's column family, so that RocksDB's own "default" family does not count as a namespace.
_FAMILY = "state:"
# The column family with an empty value under each (expiry, namespace, key), in a database of sealed values.
_EXPIRY = "expiry"
_SORT_CHUNK = 50_000  # keys that are converted to or from Arrow at a time, which holds the GIL
_EXPIRE_CHUNK = 1000
# RocksDB appends each write to its MANIFEST, some 130 bytes and four keys, and by default begins a new MANIFEST only
# at 1 GB. But a checkpoint stores the whole MANIFEST. Above this size RocksDB begins a new one, which lists the
# existing files. If that list alone is longer (more than 1000 to 2000 files, 64 to 128 GB), each write begins a new
# MANIFEST, and takes 66 ms instead of 8 ms (2,500 files); so the limit is not smaller.
_MANIFEST_BYTES = 256 << 10

_file_numbers = count(1)

Piece = tuple[Sequence[bytes], Sequence[bytes | None]]
"""Keys and their values; the value None deletes its key."""


def database_options(cache_bytes: int, extra: Mapping[str, Any], *, lookups: bool = False) -> "Options":
    """Returns the settings of a database. `extra`: arguments for `Options` setters by name. Raises UserError for an
    unknown setter.

    `lookups`: True for many random reads. RocksDB's index then stays in memory outside of the cache (about 2 bytes
    per key), and blocks are not compressed: a read took 1.9 us instead of 6.3 us with a million keys and a cache of
    32 MB.
    """
    import rocksdict

    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_stats_dump_period_sec(0)
    options.set_max_log_file_size(1 << 18)  # RocksDB's own log grows by a few KB at each checkpoint
    options.set_keep_log_file_num(2)
    # RocksDB would make 16 files; if one cannot be made, it ends the process (SIGABRT)
    options.set_max_file_opening_threads(1)
    options.set_max_manifest_file_size(_MANIFEST_BYTES)
    table = rocksdict.BlockBasedOptions()
    table.set_bloom_filter(10, False)
    table.set_block_cache(rocksdict.Cache(cache_bytes))
    table.set_cache_index_and_filter_blocks(not lookups)
    if lookups:
        options.set_compression_type(rocksdict.DBCompressionType.none())
    options.set_block_based_table_factory(table)
    for name, value in extra.items():
        setter = getattr(options, name if name.startswith("set_") else f"set_{name}", None)
        if setter is None:
            raise UserError(f"RocksDB has no option {name!r}", hint="use the names of rocksdict.Options setters")
        try:
            setter(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"RocksDB option {name!r}: {error}") from error
    return options


class StateDatabase:
    """Stored values under (namespace, key). `sealed`: True if each value begins with 8 bytes of expiry; expired
    values can then be removed.
    """

    def __init__(self, directory: Path, options: "Options", *, sealed: bool) -> None:
        from rocksdict import Rdict

        self.directory = directory
        self._options = options
        self._sealed = sealed
        self._expired_until = b""
        self._closed = False
        names = Rdict.list_cf(str(directory), options) if (directory / "CURRENT").exists() else ["default"]
        make_folder(directory)
        # Any, because the stubs of rocksdict describe its pickling mode; in raw mode keys and values are bytes.
        self._db: Any = Rdict(str(directory), options, dict.fromkeys(names, options))
        self._families: dict[str, Any] = {}
        try:
            for name in names:
                if name != "default":
                    self._families[name] = self._db.get_column_family(name)
        except BaseException:
            self.close()
            raise

    def get(self, namespace: str, key: bytes) -> bytes | None:
        family = self._families.get(_FAMILY + namespace)
        return None if family is None else family.get(key)

    def get_many(self, namespace: str, keys: list[bytes]) -> list[bytes | None]:
        family = self._families.get(_FAMILY + namespace)
        if family is None or not keys:
            return [None] * len(keys)
        values: list[bytes | None] = family.get(keys)
        return values

    def items(self, namespace: str, start: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yields keys and values in key order, from `start` on, as they are at the call."""
        family = self._families.get(_FAMILY + namespace)
        return iter(()) if family is None else family.items(from_key=start)

    def namespaces(self) -> list[str]:
        """Returns the namespaces that were ever written, even if they are empty by now."""
        return [name.removeprefix(_FAMILY) for name in list(self._families) if name.startswith(_FAMILY)]

    def statistics(self) -> dict[str, int]:
        """Returns RocksDB's own estimates; 0 once the database is closed."""
        from rocksdict import DbClosedError

        figures = {"keys": 0, "bytes": 0}
        with suppress(DbClosedError):  # another thread may ask while the run ends
            for name, family in list(self._families.items()):
                if name.startswith(_FAMILY):
                    figures["keys"] += family.property_int_value("rocksdb.estimate-num-keys") or 0
                    figures["bytes"] += family.property_int_value("rocksdb.estimate-live-data-size") or 0
        return figures

    def write(self, namespace: str, entries: Mapping[bytes, bytes | None]) -> None:
        """Stores the entries; the value None deletes its key. If it raises, some entries may be stored; they may be
        written again.
        """
        if not entries:
            return
        self._ingest(_FAMILY + namespace, _sorted_pieces(entries))
        if self._sealed:
            name = namespace.encode()
            head = struct.pack(">H", len(name)) + name
            marks = [value[:8] + head + key for key, value in entries.items() if value is not None]
            self._ingest(_EXPIRY, _sorted_pieces(dict.fromkeys(marks, b"")))

    def write_sorted(self, namespace: str, pieces: Iterable[Piece]) -> None:
        """Stores keys and values like `write`. Keys come in order, each once. Not for sealed values."""
        self._ingest(_FAMILY + namespace, pieces)

    def delete_range(self, namespace: str, begin: bytes, end: bytes) -> None:
        """Removes the keys from `begin` to before `end`, at a cost that does not depend on their number."""
        family = self._families.get(_FAMILY + namespace)
        if family is not None:
            family.delete_range(begin, end)

    def remove_expired(self, now_mark: bytes) -> None:
        """Removes the values whose expiry is at most `now_mark`, at a cost that depends only on their number."""
        index = self._families.get(_EXPIRY)
        if index is None:
            return
        marks: list[bytes] = []
        # Earlier removals have left tombstones, which are slow to scan: begin after them.
        for mark in index.keys(from_key=self._expired_until or None):
            if mark[:8] > now_mark:
                break
            marks.append(mark)
        keys: dict[str, list[bytes]] = {}
        for mark in marks:
            end = 10 + struct.unpack_from(">H", mark, 8)[0]
            keys.setdefault(mark[10:end].decode(), []).append(mark[end:])
        for namespace, candidates in keys.items():
            expired: set[bytes] = set()
            for start in range(0, len(candidates), _EXPIRE_CHUNK):
                chunk = candidates[start : start + _EXPIRE_CHUNK]
                values = self.get_many(namespace, chunk)
                # A key that was written again has a later expiry, and a later entry in the index.
                expired.update(
                    key for key, value in zip(chunk, values, strict=True) if value is not None and value[:8] <= now_mark
                )
            self._ingest(_FAMILY + namespace, _sorted_pieces(dict.fromkeys(expired)))
        self._ingest(_EXPIRY, [(marks, [None] * len(marks))] if marks else [])
        self._expired_until = now_mark

    def checkpoint(self, directory: Path) -> None:
        """Makes a new directory with hard links to all files; it can be opened as a database of its own."""
        from rocksdict import Checkpoint

        self._check_open()
        Checkpoint(self._db).create_checkpoint(str(directory))
        files = {file.name: file.stat().st_size for file in directory.iterdir()}
        with open((directory / MARK_FILE), "x", opener=private) as mark:
            json.dump({"format": _FORMAT, "sealed": self._sealed, "files": files}, mark)

    def close(self) -> None:
        """Closes all handles, because RocksDB releases the directory when the last one is closed. If closing one
        raises, the others are closed too. Idempotent.
        """
        if self._closed:
            return
        self._closed, families = True, self._families
        self._families = {}
        with ExitStack() as handles:
            handles.callback(self._db.close)
            for family in families.values():
                handles.callback(family.close)

    def _check_open(self) -> None:
        if self._closed:
            raise SabotError(
                f"{self.directory} is closed, because the run of the app that wrote it has ended or failed"
            )

    def _ingest(self, name: str, pieces: Iterable[Piece]) -> None:
        """Writes the pieces, which are in key order, to a file, and adds the file to the database."""
        from rocksdict import IngestExternalFileOptions, SstFileWriter

        self._check_open()
        file = self.directory.with_name(f"{self.directory.name}.{next(_file_numbers)}.sst")
        writer = SstFileWriter(self._options)
        some = False
        try:
            writer.open(str(file))
            for keys, values in pieces:
                some = some or bool(keys)
                for key, value in zip(keys, values, strict=True):
                    if value is None:
                        del writer[key]
                    else:
                        writer[key] = value
            if not some:
                return
            writer.finish()
            family = self._families.get(name)
            if family is None:
                family = self._families[name] = self._db.create_column_family(name, self._options)
            how = IngestExternalFileOptions()
            how.set_move_files(True)
            family.ingest_external_file([str(file)], how)
        finally:
            del writer
            file.unlink(missing_ok=True)


def read_mark(directory: Path) -> bool:
    """Returns True if the checkpoint in `directory` has sealed values. Raises CorruptCheckpoint if a file is missing
    or too short.
    """
    mark_file = directory / MARK_FILE
    try:
        mark = json.loads(mark_file.read_text())
        if mark["format"] != _FORMAT:
            raise CorruptCheckpoint(f"{mark_file}: is not state of this version of Sabot")
        sealed, files = bool(mark["sealed"]), dict(mark["files"])
    except (OSError, KeyError, TypeError, *UNREADABLE) as error:
        raise checkpoint_error(f"{mark_file}: cannot be read as state", error) from error
    for name, size in files.items():
        if "/" in name or wrong_path(name, "the state"):
            raise CorruptCheckpoint(f"{mark_file}: its entry {name!a} is not a file of a database")
        file = directory / name
        found = file.stat().st_size if file.exists() else None
        if found != size:
            raise CorruptCheckpoint(
                f"{file}: should have {size} bytes, {'is missing' if found is None else f'has {found}'}"
            )
    return sealed


def read_database(directory: Path) -> Iterator[tuple[str, bytes, bytes]]:
    """Yields the entries (namespace, key, stored value) of a checkpoint, without writing into it. Raises
    CorruptCheckpoint.
    """
    from rocksdict import AccessType, Rdict

    options = database_options(8 << 20, {})
    with TemporaryFolder("sabot-database-") as folder:
        view = folder / "db"
        try:
            make_folder(view)
            link_for_reading(directory, view)
            names = Rdict.list_cf(str(view), options)
            db: Any = Rdict(str(view), options, dict.fromkeys(names, options), AccessType.read_only(False))
        except Exception as error:  # rocksdict has no exception class of its own for RocksDB's errors
            raise checkpoint_error(f"{directory}: cannot be read as state", error) from error
        with db:
            for name in names:
                if name.startswith(_FAMILY):
                    family = db.get_column_family(name)
                    for key, value in family.items():
                        yield name.removeprefix(_FAMILY), key, value
                    family.close()


def _sorted_pieces(entries: Mapping[bytes, bytes | None]) -> Iterator[Piece]:
    """Yields the entries in key order. Arrow sorts them, because it releases the GIL: Python's sort of 200,000 keys
    holds the GIL for 50 ms.
    """
    keys = list(entries)
    if not keys:
        return
    chunks = [pa.array(keys[at : at + _SORT_CHUNK], pa.binary()) for at in range(0, len(keys), _SORT_CHUNK)]
    order = pc.sort_indices(pa.chunked_array(chunks))
    for at in range(0, len(order), _SORT_CHUNK):
        piece = [keys[index] for index in order.slice(at, _SORT_CHUNK).to_numpy().tolist()]
        yield piece, [entries[key] for key in piece]
