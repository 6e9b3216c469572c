"""Checks that the entries of a manifest are safe to use. Its checksum finds damage, but a forged manifest has a right
checksum.

A manifest may come from shared storage or from another machine, and its names become paths that are made, linked and
removed here.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from sabot.base.inner_paths import wrong_path
from sabot.engine.checkpoint.manifest import Manifest
from sabot.engine.checkpoint.places import StoredFile
from sabot.engine.checkpoint.protocol import read_file_name
from sabot.errors import CorruptCheckpoint

_SHA256 = re.compile(r"[0-9a-f]{64}")
_INCARNATION = re.compile(r"[A-Za-z0-9_-]{0,64}")
_MOST = 1 << 63
# The folder of restored files stands before it, and both together must fit into the system's limit of 4096.
_MOST_BYTES_OF_A_PATH = 1024
_MOST_BYTES_OF_A_NAME = 255


def check_unique_keys(body: bytes, where: str) -> None:
    """Raises CorruptCheckpoint if a JSON object has a key twice: two readers could take different values for it."""

    def once(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise _wrong_entry(where, next(key for key in keys if keys.count(key) > 1), "is there twice")

    json.loads(body, object_pairs_hook=once)


def check_manifest(manifest: Manifest, where: str) -> None:
    """Raises CorruptCheckpoint, which names the manifest and the entry, for an entry that no app writes."""
    for name, value in (("created_ms", manifest.created_ms), ("checkpoint_id", manifest.checkpoint_id)):
        _refuse_number(where, name, value)
    _refuse_incarnation(where, "incarnation", manifest.incarnation)
    for path, file in manifest.contents.items():
        _refuse_path(where, path)
        _refuse_contents(where, path, file)
    _check_collisions(where, manifest.contents)
    for task in manifest.tasks.values():
        for path in (*task.files.values(), *task.states.values()):
            _refuse_path(where, path)
    for track_id, track in manifest.lanes.items():
        _refuse_incarnation(where, track_id, track.incarnation)
        for value in (track.given, track.delivered):
            _refuse_number(where, track_id, value)
        for part in track.pending:
            _refuse_path(where, part.file)
            _refuse_number(where, part.file, part.seq)
            _refuse_number(where, part.file, part.rows)


def _refuse_path(where: str, path: str) -> None:
    why = wrong_path(path, "the checkpoint")
    if not why and ("\\" in path or not path.isprintable()):
        why = "has characters that no app writes"
    if not why and (
        len(path.encode()) > _MOST_BYTES_OF_A_PATH
        or max(len(each.encode()) for each in path.split("/")) > _MOST_BYTES_OF_A_NAME
    ):
        why = "is too long"
    if why:
        raise _wrong_entry(where, path, why)


def _refuse_contents(where: str, path: str, file: StoredFile) -> None:
    if not _SHA256.fullmatch(file.sha256):
        raise _wrong_entry(where, path, f"has no SHA-256 but {_shown(file.sha256)}")
    _refuse_number(where, path, file.size)
    _refuse_number(where, path, file.generation)
    if read_file_name(file.name) is None:
        raise _wrong_entry(where, path, f"has the writer {_shown(file.writer)}")


def _check_collisions(where: str, paths: Iterable[str]) -> None:
    """Refuses two paths that are one file if the file system ignores case, and a path below another path that is a
    file.
    """
    files: dict[str, str] = {}
    for path in paths:
        other = files.setdefault(path.casefold(), path)
        if other is not path:
            raise _wrong_entry(where, path, f"is the same file as {_shown(other)} where case does not count")
    for folded, path in files.items():
        folder = folded.rpartition("/")[0]
        while folder:
            if folder in files:
                raise _wrong_entry(where, path, f"is below {_shown(files[folder])}, which is a file")
            folder = folder.rpartition("/")[0]


def _refuse_number(where: str, entry: str, value: int) -> None:
    if not 0 <= value < _MOST:
        raise _wrong_entry(where, entry, f"has the number {value}")


def _refuse_incarnation(where: str, entry: str, value: str) -> None:
    if not _INCARNATION.fullmatch(value):
        raise _wrong_entry(where, entry, f"has the incarnation {_shown(value)}")


def _wrong_entry(where: str, entry: str, why: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"{where} is damaged, or was not made by Sabot: its entry {_shown(entry)} {why}")


def _shown(text: str) -> str:
    """Returns the text as Python would write it, so that it cannot control a terminal; at most one line."""
    return ascii(text if len(text) <= 100 else f"{text[:100]}…")
