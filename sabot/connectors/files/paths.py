"""Paths of files: as users write them, in the order in which the files are read; addresses in object stores (s3://, gs://,
az:// and abfs://, hdfs://, and any file system of pyarrow); and folders named by the values of columns, as Hive has them:
day=2026-11-22/hour=7/part-00003.parquet.

The path of a file in an object store is a RemotePath: a str with the address without keys, for messages and positions,
which also has the file system and the path in it as attributes.
"""

import glob
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as arrow_fs

from sabot.base.checks import Texts, check
from sabot.base.config import checked_path
from sabot.base.dataclass import dataclass
from sabot.base.object_stores import check_bucket, found_by, hint_of_store
from sabot.base.os_errors import hint_of
from sabot.base.redaction import clean_cause, scrubbed
from sabot.errors import UserError, short_repr

Remotely = tuple[arrow_fs.FileSystem, str]
"""A file system of pyarrow's, and a path in it."""

Paths = str | os.PathLike[str] | Remotely | Sequence[str | os.PathLike[str] | Remotely]

COMPRESSION = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}

_PATHS = 'a file, a folder, a glob such as "data/*.ndjson", a list'
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_MAGIC = re.compile(r"[*?[]")
_NULL = "__HIVE_DEFAULT_PARTITION__"
_NAME_BYTES = 255
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}")  # not 007, which would lose its zeros


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file as it was when it was found. `number`: its place in the order. `stamp`: its time of modification, in ms.
    `below`: its path below the folder, or the part of the glob without wildcards, that the user gave; "" for a file that was named.
    `whole`: False if its last record may still be written, so that only records are read whose end is there; for plain text.
    """

    path: str
    number: int
    size: int
    stamp: int
    below: str = ""
    whole: bool = True


def codec_of(path: str) -> str | None:
    """Returns the compression of the file, as its suffix says."""
    return COMPRESSION.get(os.path.splitext(path)[1].lower())


def bare_suffix(path: str) -> str:
    """Returns the suffix that names the format, in lower case and without the suffix of a compression."""
    stem, suffix = os.path.splitext(path)
    return (os.path.splitext(stem)[1] if suffix.lower() in COMPRESSION else suffix).lower()


def open_raw(path: str) -> Any:
    """Opens a file, of this machine or of an object store, to be read at any place."""
    return path.open() if isinstance(path, RemotePath) else pa.OSFile(path)


def size_now(path: str, raw: Any) -> int:
    """Returns the current size of a file that `open_raw` has opened. The file object of pyarrow itself returns the
    size at the time of the opening.
    """
    size: int = raw.size() if isinstance(path, RemotePath) else os.fstat(raw.fileno()).st_size
    return size


def last_bytes(file: DataFile, count: int) -> bytes:
    """Returns the last bytes of a file of this size. Raises OSError."""
    with open_raw(file.path) as raw:
        raw.seek(max(0, file.size - count))
        found: bytes = raw.read(min(file.size, count))
        return found


def cut_anywhere(path: str) -> bool:
    """Returns True if several readers can share the file, each reading some of its lines: if it is a file of this
    machine and not compressed.
    """
    return codec_of(path) is None and not isinstance(path, RemotePath)


def open_stream(path: str) -> tuple[Any, Any]:
    """Returns the file and the stream of its content. If the suffix says that the file is compressed, the stream
    decompresses it; otherwise both values are the same object.
    """
    raw = open_raw(path)
    codec = codec_of(path)
    return raw, raw if codec is None else pa.CompressedInputStream(raw, codec)


def _each(paths: Paths) -> list[str]:
    if not isinstance(paths, str | os.PathLike | Sequence) or isinstance(paths, bytes):
        raise UserError(f"path {short_repr(paths)} is no path of files", hint=_PATHS)
    each: Any = [paths] if isinstance(paths, str | os.PathLike) or is_remote(paths) else paths
    return [remote_path(path) if is_remote(path) else checked_path(path, "path") for path in each]


def name_of(paths: Paths) -> str:
    """Returns the name of these paths in messages, metrics and positions. It is kept as written: checkpoints know a source by it."""
    found = _each(paths)
    if not found:
        raise UserError("a source of files needs a path, and the list of them is empty", hint=_PATHS)
    return ", ".join(found)


def find_files(paths: Paths, suffixes: Iterable[str]) -> tuple[list[DataFile], bool]:
    """Returns the files, in order, and True if later runs may find other files (the path is a folder, a glob or a
    list).

    A file that is named is read whatever its suffix. Of a folder and its subfolders, all files with one of
    `suffixes`, compressed or not, are read, by name, except hidden files and files whose name begins with "_". Raises
    UserError that names what is missing.
    """
    wanted = tuple(suffixes)
    each = _each(paths)
    found: list[str] = []
    known: dict[str, DataFile] = {}
    roots: dict[str, str] = {}
    for path in each:
        before = len(found)
        if isinstance(path, RemotePath):
            stored, by_ending = listed(path)
            taken = [file for file in stored if not by_ending or bare_suffix(file[0]) in wanted]
            if not taken:
                raise UserError(f"{str(path)!r} has no file that ends in {' or '.join(wanted)}", hint="give a glob")
            for file, info in taken:
                known[file] = DataFile(file, 0, info.size, (info.mtime_ns or 0) // 1_000_000)
                found.append(file)
            roots |= dict.fromkeys(found[before:], _root_of(path.inside))
        elif os.path.isdir(path):
            found += _folder(path, wanted)
            roots |= dict.fromkeys(found[before:], path)
        elif glob.has_magic(path) and not os.path.exists(path):
            matches = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
            if not matches:
                raise UserError(f"no file matches {path!r}", hint=f"the current folder is {os.getcwd()!r}")
            found += matches
            roots |= dict.fromkeys(matches, _root_of(path))
        else:
            found.append(path)
    files = [
        replace(
            known[path] if path in known else _stated(path, number),
            number=number,
            below=_below(path, roots.get(path)),
        )
        for number, path in enumerate(found)
    ]
    return files, len(each) > 1 or found != each


def _root_of(inside: str) -> str:
    """Returns the folders of a path before the first wildcard."""
    parts = inside.split("/")
    first = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return "/".join(parts[:first])


def _below(path: str, root: str | None) -> str:
    if root is None:
        return ""
    inside = path.inside if isinstance(path, RemotePath) else path
    return os.path.relpath(inside, root or ".") if inside.startswith("/") == root.startswith("/") else ""


def _folder(path: str, suffixes: tuple[str, ...]) -> list[str]:
    def refuse(error: OSError) -> None:
        raise UserError(f"folder {error.filename!r} cannot be read: {error.strerror}", hint=hint_of(error)) from error

    each = (Path(folder) / name for folder, _, names in os.walk(path, onerror=refuse) for name in names)
    seen = sorted(str(file) for file in each if file.is_file() and not _hidden(file, Path(path)))
    found = [each for each in seen if bare_suffix(each) in suffixes]
    if not found:
        others = f"; it holds {len(seen)} others, the first is {seen[0]!r}" if seen else ""
        raise UserError(
            f"folder {path!r} has no file that ends in {' or '.join(suffixes)}{others}",
            hint=f'a glob ("folder/*") takes files with any ending; {_writing(path)}',
        )
    return found


def _writing(path: str) -> str:
    return f"files() reads, and NdjsonSink({path!r}), CsvSink, ParquetSink or ArrowSink would write there"


def _hidden(path: Path, folder: Path) -> bool:
    return any(is_hidden(part) for part in path.relative_to(folder).parts)


def _stated(path: str, number: int) -> DataFile:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"the name of file {path!r} is not UTF-8", hint="rename it, or leave it out") from None
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would wait for a writer
        try:
            found = os.fstat(file)
        finally:
            os.close(file)
    except OSError as error:
        raise UserError(
            f"file {path!r} cannot be read: {error.strerror}",
            hint=hint_of(error, f"the current folder is {os.getcwd()!r}; {_writing(path)}"),
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(
            f"{path!r} is no file: a pipe, a device or the like, which cannot be read again after a crash",
            hint="write what comes out of it into a file or a topic, and read that",
        )
    return DataFile(path, number, found.st_size, found.st_mtime_ns // 1_000_000)


class Listed(NamedTuple):
    """A file of a listing. `below`: as in `DataFile`. `inode`: 0 in an object store."""

    path: str
    below: str
    inode: int
    found: "os.DirEntry[str] | arrow_fs.FileInfo"

    def facts(self) -> tuple[int, int] | None:
        """Returns its size and its time of modification (ns), or None if it is gone by now. Of a local file they are asked for
        now, and not by the listing.
        """
        if isinstance(self.found, arrow_fs.FileInfo):
            return self.found.size, self.found.mtime_ns or 0
        try:
            stated = self.found.stat()
        except FileNotFoundError:
            return None
        return stated.st_size, stated.st_mtime_ns


def list_files(paths: Paths, suffixes: Iterable[str]) -> tuple[list[Listed], list[tuple[int, str]]]:
    """Returns the files that are at these paths now, in no order, and inode and path of all others in the same folders of this
    machine. Which files are taken is as in `find_files`; there may be none. Raises UserError and OSError for folders that cannot
    be listed.
    """
    wanted = tuple(suffixes)
    endings = tuple(suffix + more for suffix in wanted for more in ("", *COMPRESSION))
    found: dict[str, Listed] = {}
    others: list[tuple[int, str]] = []
    for path in _each(paths):
        if isinstance(path, RemotePath):
            stored, by_ending = listed(path, some=False)
            root = _root_of(path.inside) if [each for each, _ in stored] != [path] else None
            for file, info in stored:
                if not by_ending or bare_suffix(file) in wanted:
                    found[file] = Listed(file, _below(file, root), 0, info)
        elif os.path.isdir(path):
            _list_folder(path, lambda below: below.lower().endswith(endings), found, others)
        elif glob.has_magic(path) and not os.path.exists(path):
            root = _root_of(path)
            parts = [part for part in path[len(root) :].split("/") if part]
            folder, depth = root or ("/" if path[0] == "/" else "."), None if "**" in parts else len(parts)
            _list_folder(folder, _pattern(parts).fullmatch, found, others, depth=depth, hidden=True)
        elif not bare_suffix(path):
            raise UserError(f"folder {path!r} does not exist", hint=f"the current folder is {os.getcwd()!r}")
        else:
            folder, alone = os.path.split(path)
            alone_there: dict[str, Listed] = {}
            _list_folder(folder or ".", {alone}.__contains__, alone_there, others, depth=1, hidden=True)
            found |= {name: Listed(name, "", each.inode, each.found) for name, each in alone_there.items()}
    return list(found.values()), others


def _list_folder(
    folder: str,
    take: Callable[[str], object],
    found: dict[str, Listed],
    others: list[tuple[int, str]],
    *,
    depth: int | None = None,
    hidden: bool = False,
) -> None:
    """Adds the files below a folder. `take`: returns something true for the path, below the folder, of a file that is taken.
    `depth`: how many levels are listed; None for all. `hidden`: True if `take` itself leaves out what is hidden.
    """
    top = "" if folder == "." else "/" if folder == "/" else folder.rstrip("/") + "/"
    waiting = [("", 1)]
    while waiting:
        below, level = waiting.pop()
        try:
            with os.scandir(folder if not below else top + below) as entries:
                for entry in entries:
                    inside = below + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if (depth is None or level < depth) and (hidden or not is_hidden(entry.name)):
                            waiting.append((inside + "/", level + 1))
                    elif not entry.is_file():
                        continue
                    elif (hidden or not is_hidden(entry.name)) and take(inside):
                        inode = entry.stat().st_ino if entry.is_symlink() else entry.inode()
                        found[top + inside] = Listed(top + inside, inside, inode, entry)
                    else:
                        others.append((entry.inode(), top + inside))
        except FileNotFoundError:
            if not below:
                raise


def digest(files: Sequence[DataFile], *, sizes: bool = False) -> int:
    """Returns a number below 2^56 that differs if the names of these files, or their order, differ, or, with `sizes`, their sizes."""
    names = "\0".join(f"{file.path}\0{file.size}" if sizes else file.path for file in files).encode(
        errors="surrogateescape"
    )
    return int.from_bytes(blake2b(names, digest_size=7).digest(), "big")


# -- object stores ------------------------------------------------------------------------------------------------------


class HasPath(ABC):
    """The ability of a source to go on under another way to write its path, which a checkpoint knows it by."""

    @abstractmethod
    def has_path(self, path: str) -> bool:
        """Returns True if the source reads one local path, and `path` is another way to write it."""

    @abstractmethod
    def use_path(self, path: str) -> None:
        """Reads the same file or folder by another path, which is its name from now on. Called before `open`."""


class RemotePath(str):
    """The address of a file or of a folder of files, without keys. `inside`: its path in `filesystem`. `tag`: the ETag of the
    object that `open` has opened last, or "" if the store gives none.
    """

    filesystem: arrow_fs.FileSystem
    inside: str
    tag: str = ""

    def __new__(cls, text: str, filesystem: arrow_fs.FileSystem, inside: str) -> "RemotePath":
        """`text`: the address, without keys."""
        path = super().__new__(cls, text)
        path.filesystem, path.inside = filesystem, inside.rstrip("/")
        return path

    def at(self, inside: str) -> "RemotePath":
        """Returns the file at this path of the same file system."""
        root = self.removesuffix("/")
        root = root[: len(root) - len(self.inside)] if root.endswith(self.inside) else f"{root}:"
        return RemotePath(root + inside, self.filesystem, inside)

    def open(self) -> Any:
        """Opens the file, to be read at any place. Raises OSError."""
        with naming(self):
            file = self.filesystem.open_input_file(self.inside)
            self.tag = _tag_of(file)
            return file


def has_pattern(path: RemotePath) -> bool:
    """Returns True if the path has the characters of a glob. It is used as a glob only if no file or folder has this
    name.
    """
    return _MAGIC.search(path.inside) is not None


def is_remote(path: object) -> TypeGuard[str | Remotely]:
    """Returns True if the path is one of an object store."""
    if isinstance(path, tuple):
        return len(path) == 2 and isinstance(path[0], arrow_fs.FileSystem)
    return isinstance(path, RemotePath) or (isinstance(path, str) and _SCHEME.match(path) is not None)


def remote_path(path: str | Remotely) -> RemotePath:
    """Returns the path of an address, without a request to the store. Raises UserError for an address that cannot be
    read.
    """
    if isinstance(path, RemotePath):
        return path
    if isinstance(path, tuple):
        return RemotePath(f"{path[0].type_name}:{path[1]}", *path)
    filesystem, inside, shown = found_by(path)
    return RemotePath(shown, filesystem, inside)


def listed(path: RemotePath, *, some: bool = True) -> tuple[list[tuple[RemotePath, arrow_fs.FileInfo]], bool]:
    """Returns the files at a path, by name, and True if the path is a folder, so that the caller has to select files
    by their suffix. For the path of a file or a glob returns False. Raises UserError if there is no file, unless `some`
    is False.
    """
    try:
        with naming(path):
            (info,) = path.filesystem.get_file_info([path.inside])
            if info.type == arrow_fs.FileType.File:
                return [(path, info)], False
            folder, matches = path.inside, None
            if info.type == arrow_fs.FileType.NotFound and _MAGIC.search(path.inside):
                parts = path.inside.split("/")
                fixed = next(number for number, part in enumerate(parts) if _MAGIC.search(part))
                folder, matches = "/".join(parts[:fixed]), _pattern(parts)
            selector = arrow_fs.FileSelector(folder, allow_not_found=True, recursive=True)
            infos = [each for each in path.filesystem.get_file_info(selector) if each.type == arrow_fs.FileType.File]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error}", hint=hint_of_store(path.filesystem, str(error))
        ) from clean_cause(error)
    if matches is not None:
        infos = [each for each in infos if matches.fullmatch(each.path)]
    else:
        infos = [each for each in infos if not _hidden_below(each.path[len(folder) :])]
    if not infos and some:
        check_bucket(path.filesystem, path.inside, path)
        what = "no file matches" if matches is not None else "there is no file at"
        raise UserError(
            f"{what} {str(path)!r}",
            hint="a file, a folder, or a glob; to write there: files(…, 'parquet')",
        )
    return sorted(((path.at(each.path), each) for each in infos), key=lambda found: found[0]), matches is None


def _hidden_below(below: str) -> bool:
    return any(is_hidden(part) for part in below.split("/"))


def is_hidden(name: str) -> bool:
    """Returns True for the name of a file or folder that is left out of the files of a folder. A folder that is named after the value of
    a column, as _day=2026-11-22, is none.
    """
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _pattern(parts: list[str]) -> "re.Pattern[str]":
    """Returns the regular expression of a glob: as in the glob module, * and ? stay within a name, ** stands for any
    number of folders, and none of them matches a leading dot.
    """
    texts = []
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            texts.append(r"(?!\.).*" if last else r"(?:(?!\.)[^/]+/)*")
            continue
        text = "" if part[0] == "." else r"(?!\.)"
        for piece in re.findall(r"\[!?[^]]+\]|.", part):
            if len(piece) > 1:
                text += piece.replace("[!", "[^")
            else:
                text += {"*": "[^/]*", "?": "[^/]"}.get(piece, re.escape(piece))
        texts.append(text if last else f"{text}/")
    return re.compile("".join(texts))


def _tag_of(file: Any) -> str:
    for name, value in file.metadata().items():
        if name.lower() == "etag":
            return str(value.decode(errors="replace"))
    return ""


@contextmanager
def naming(path: RemotePath) -> Iterator[None]:
    """Converts errors of the store into OSError whose text has the address, without the keys that a store may repeat
    in its text.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise OSError(f"{path}: {scrubbed(str(error))}") from clean_cause(error)


# -- folders named by values --------------------------------------------------------------------------------------------


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
        folder = "/".join(_folder_of(column, key[start].as_py()) for column, key in zip(by, keys, strict=True))
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


def _folder_of(column: str, value: object) -> str:
    """Returns column=value, both escaped as in an address, so that no value leads out of its folder."""
    text = _NULL if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    name = f"{quote(column, safe='')}={quote(text, safe=' :')}"
    if len(name) > _NAME_BYTES:
        raise UserError(f"partition_by: column {column!r}: a value of {len(text)} characters is too long for a folder")
    return name
