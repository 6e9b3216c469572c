"""Files in object stores: s3://, gs://, az:// and abfs://, hdfs://, and any file system of pyarrow.

The path of such a file is a RemotePath: a str with the address without keys, for messages and positions, which also
has the file system and the path in it as attributes.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import pyarrow as pa
from pyarrow import fs as arrow_fs

from sabot.base.object_stores import check_bucket, found_by, hint_of_store
from sabot.base.redaction import clean_cause, scrubbed
from sabot.errors import UserError

Remotely = tuple[arrow_fs.FileSystem, str]
"""A file system of pyarrow's, and a path in it."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_MAGIC = re.compile(r"[*?[]")


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


def listed(path: RemotePath) -> tuple[list[tuple[RemotePath, arrow_fs.FileInfo]], bool]:
    """Returns the files at a path, by name, and True if the path is a folder, so that the caller has to select files
    by their suffix. For the path of a file or a glob returns False. Raises UserError if there is no file.
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
        infos = [each for each in infos if not _hidden(each.path[len(folder) :])]
    if not infos:
        check_bucket(path.filesystem, path.inside, path)
        what = "no file matches" if matches is not None else "there is no file at"
        raise UserError(
            f"{what} {str(path)!r}",
            hint="a file, a folder, or a glob; to write there: files(…, 'parquet')",
        )
    return sorted(((path.at(each.path), each) for each in infos), key=lambda found: found[0]), matches is None


def _hidden(below: str) -> bool:
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
