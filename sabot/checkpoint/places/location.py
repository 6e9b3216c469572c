"""The location of checkpoints as users write it, and the place that it stands for."""

import os
from pathlib import Path

import pyarrow as pa
from pyarrow import fs as arrow_fs

from sabot.checkpoint.places.base import Place
from sabot.checkpoint.places.local import LocalPlace
from sabot.checkpoint.places.remote import RemotePlace
from sabot.config import checked_path
from sabot.errors import UserError
from sabot.redaction import has_password, keep_url, redacted_url

__all__ = ["Location", "place_of"]

Location = str | os.PathLike[str] | tuple[arrow_fs.FileSystem, str]
"""A directory, a URI of a file system that pyarrow knows, or a file system and a path in it."""

_PLACE_HINT = "give a directory, s3://bucket/path, gs://…, abfs://… or hdfs://…, or (a pyarrow FileSystem, a path)"
_KEY_HINT = (
    "in a name or a key / is written %2F, + %2B, @ %40, : %3A; or leave them out, and let the environment say who calls"
)


def place_of(location: Location, scratch: Path | None = None) -> Place:
    """The place that a location stands for. Raises UserError. scratch: see `RemotePlace`."""
    if isinstance(location, tuple):
        filesystem, path = location
        where = f"{filesystem.type_name}:{path}"
    else:
        words = checked_path(location, "the place of checkpoints")
        scheme, separator, _ = words.partition("://")
        if not separator or os.sep in scheme:
            return LocalPlace(Path(words).absolute())
        keep_url(words)
        where = redacted_url(words).partition("?")[0].rstrip("/")
        try:
            filesystem, path = arrow_fs.FileSystem.from_uri(words)
        except (pa.ArrowException, OSError, ValueError) as error:
            # The error quotes the part of the address that it cannot read, which may be part of a key that has a / in it.
            secret = "@" in words or has_password(words)
            why = "its address cannot be read" if secret else str(error).replace(words, where)
            raise UserError(
                f"{where} is no place for checkpoints: {why}", hint=_KEY_HINT if secret else _PLACE_HINT
            ) from (None if secret else error)
    if isinstance(filesystem, arrow_fs.LocalFileSystem):
        return LocalPlace(Path(path).absolute())
    return RemotePlace(filesystem, path, where, scratch)
