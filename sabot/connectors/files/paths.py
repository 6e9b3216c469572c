"""Turns paths as users write them into files, in the order in which they are read; interprets their suffixes."""

import glob
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa

from sabot.base.config import checked_path
from sabot.base.os_errors import hint_of
from sabot.connectors.files.remote import Remotely, RemotePath, is_hidden, is_remote, listed, remote_path
from sabot.errors import UserError, short_repr

Paths = str | os.PathLike[str] | Remotely | Sequence[str | os.PathLike[str] | Remotely]

SUFFIXES = {
    "ndjson": (".ndjson", ".jsonl", ".json"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".arrows", ".ipc", ".feather"),
}
"""The suffixes of each format of files. A sink gives its files the first one."""
FORMATS = {suffix: name for name, suffixes in SUFFIXES.items() for suffix in suffixes}
COMPRESSION = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}

_PATHS = 'a file, a folder, a glob such as "data/*.ndjson", a list'


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file as it was when it was found. `number`: its place in the order. `stamp`: its time of modification, in ms.
    `below`: its path below the folder, or the part of the glob without wildcards, that the user gave; "" for a file that was named.
    """

    path: str
    number: int
    size: int
    stamp: int
    below: str = ""


def codec_of(path: str) -> str | None:
    """Returns the compression of the file, as its suffix says."""
    return COMPRESSION.get(os.path.splitext(path)[1].lower())


def bare_suffix(path: str) -> str:
    """Returns the suffix that names the format, in lower case and without the suffix of a compression."""
    stem, suffix = os.path.splitext(path)
    return (os.path.splitext(stem)[1] if suffix.lower() in COMPRESSION else suffix).lower()


def format_of(path: str) -> str | None:
    """Returns the format that the suffix of a path names, or None if it names none."""
    return FORMATS.get(bare_suffix(path))


def open_raw(path: str) -> Any:
    """Opens a file, of this machine or of an object store, to be read at any place."""
    return path.open() if isinstance(path, RemotePath) else pa.OSFile(path)


def size_now(path: str, raw: Any) -> int:
    """Returns the current size of a file that `open_raw` has opened. The file object of pyarrow itself returns the
    size at the time of the opening.
    """
    size: int = raw.size() if isinstance(path, RemotePath) else os.fstat(raw.fileno()).st_size
    return size


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
            known[path] if path in known else _stated(path, number), number=number, below=_below(path, roots.get(path))
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


def digest(files: Sequence[DataFile], *, sizes: bool = False) -> int:
    """Returns a number below 2^56 that differs if the names of these files, or their order, differ, or, with `sizes`, their sizes."""
    names = "\0".join(f"{file.path}\0{file.size}" if sizes else file.path for file in files).encode(
        errors="surrogateescape"
    )
    return int.from_bytes(blake2b(names, digest_size=7).digest(), "big")
