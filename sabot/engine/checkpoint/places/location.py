"""Parses the location of checkpoints that users write."""

import os
from pathlib import Path

from pyarrow import fs as arrow_fs

from sabot.base.config import checked_path
from sabot.base.object_stores import found_by
from sabot.engine.checkpoint.places.base import Place
from sabot.engine.checkpoint.places.local import LocalPlace
from sabot.engine.checkpoint.places.remote import RemotePlace

Location = str | os.PathLike[str] | tuple[arrow_fs.FileSystem, str]
"""A directory, a URI of a file system that pyarrow knows, or a file system and a path in it."""


def place_of(location: Location, scratch: Path | None = None) -> Place:
    """Returns the place for a location. Raises UserError. `scratch`: see `RemotePlace`."""
    if isinstance(location, tuple):
        filesystem, path = location
        where = f"{filesystem.type_name}:{path}"
    else:
        words = checked_path(location, "the place of checkpoints")
        scheme, separator, _ = words.partition("://")
        if not separator or os.sep in scheme:
            return LocalPlace(Path(words).absolute())
        filesystem, path, where = found_by(words, " is not a place for checkpoints")
        where = where.rstrip("/")
    if isinstance(filesystem, arrow_fs.LocalFileSystem):
        return LocalPlace(Path(path).absolute())
    return RemotePlace(filesystem, path, where, scratch)
