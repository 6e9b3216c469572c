"""A table of Delta Lake: its address, its settings, and the errors of deltalake as those of Sabot. Only this module imports
deltalake.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as arrow_fs

from sabot.base.os_errors import hint_of, stays
from sabot.base.redaction import clean_cause, keep_settings, keep_url, redacted_url, scrubbed
from sabot.connectors.lake.sink import LakePlace
from sabot.errors import MissingExtra, TransientError, UserError

_REFUSED = "does the table have a rule that the rows break, or a feature that deltalake does not support?"
CONVERT = "deltalake.convert_to_deltalake(…) makes a table of such a folder"
_NO_PLACE = re.compile("Invalid table location|Could not create local directory")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m|↳")
_WORDS = 600  # characters of an error of the driver, which may quote rows


class DeltaPlace(LakePlace):
    """The place of a table: a folder, or an address in an object store. `options`: settings for the object store.
    `feature`: the feature that needs deltalake, for the error if it is missing.
    """

    def __init__(self, table: str | os.PathLike[str], options: Mapping[str, str] | None, feature: str) -> None:
        try:
            import deltalake
        except ImportError as error:
            raise MissingExtra(feature, "delta") from error
        self.delta: Any = deltalake
        """The module deltalake."""
        self.uri = os.fspath(table)
        self.options = dict(options or {})
        keep_url(self.uri)
        keep_settings(self.options)
        self.name = redacted_url(self.uri) if "://" in self.uri else self.uri

    @property
    def folder(self) -> str | None:
        """The folder of a table on this machine, or None for an object store."""
        path = self.uri.removeprefix("file://")
        return None if "://" in path else path

    @property
    def conflict(self) -> type[Exception]:
        found: type[Exception] = self.delta.exceptions.CommitFailedError
        return found

    @property
    def present(self) -> tuple[type[Exception], ...]:
        return (self.delta.exceptions.DeltaError,)

    def found(self, version: int | None = None) -> Any:
        """Returns the `DeltaTable` as it is now, or at a version, or None if there is no table."""
        try:
            return self.delta.DeltaTable(self.uri, version=version, storage_options=self.options)
        except self.delta.exceptions.TableNotFoundError:
            return None

    def if_missing(self) -> str:
        if self.has_loose_files():
            return f"its folder has Parquet files without a log: files({self.uri!r}) reads them; {CONVERT}"
        return super().if_missing()

    def has_loose_files(self) -> bool:
        """Returns True if the folder of a table that is not there, on this machine, has Parquet files."""
        folder = Path(self.folder or os.devnull)
        return any(next(folder.glob(pattern), None) for pattern in ("*.parquet", "*=*/*.parquet"))

    def files(self, sizes: dict[str, int] | None = None) -> arrow_fs.FileSystem:
        """Returns the files below the table, by deltalake. `sizes`: those of files, so that an object store is not asked for them."""
        from deltalake.fs import DeltaStorageHandler

        return arrow_fs.PyFileSystem(DeltaStorageHandler(self.uri, self.options, sizes))

    def log_entry(self, version: int) -> bytes:
        """Returns the entry of the log for a version. Raises FileNotFoundError if it is not there (any more)."""
        inside = f"_delta_log/{version:020}.json"
        if self.folder is not None:
            with open(os.path.join(self.folder, inside), "rb") as file:
                return file.read()
        # deltalake keeps the interpreter's lock while it asks for a size, unless it is asked by get_file_info
        (info,) = self.files().get_file_info([inside])
        if info.type == arrow_fs.FileType.NotFound:
            raise FileNotFoundError(inside)
        with self.files({inside: info.size}).open_input_stream(inside) as stream:
            found: bytes = stream.read()
            return found

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raises errors of deltalake as those of Sabot."""
        errors = self.delta.exceptions
        try:
            yield
        except errors.CommitFailedError as error:
            text = f"{self.where}: another process has changed it: {_plain(error)}"
            raise TransientError(text) from clean_cause(error)
        except FileNotFoundError as error:
            raise UserError(
                f"{self.where}: a file that its log names cannot be read, as it is not there: {_plain(error)}",
                hint="VACUUM removes the files of old versions; start afresh (--fresh), or restore the file",
            ) from clean_cause(error)
        except pa.ArrowException as error:
            raise UserError(
                f"{self.where}: a file cannot be read: {_plain(error)}",
                hint="it is damaged, or its columns are not those of the table; restore it",
            ) from clean_cause(error)
        except OSError as error:
            if self.folder is not None and stays(error):
                raise UserError(f"{self.where}: {_plain(error)}", hint=hint_of(error)) from clean_cause(error)
            raise TransientError(
                f"{self.where} cannot be reached: {_plain(error)}",
                hint=hint_of(error, "check the address, and the keys in storage_options= or in the environment"),
            ) from clean_cause(error)
        except errors.DeltaError as error:
            wrong = "give a folder that is there, or that can be made" if _NO_PLACE.search(str(error)) else _REFUSED
            raise UserError(f"{self.where}: {_plain(error)}", hint=hint_of(error, wrong)) from clean_cause(error)


def _plain(error: Exception) -> str:
    """Returns the text of an error in one line, without colours, backtrace and secrets."""
    text = _COLOUR.sub("", str(error)).partition("\n   0: ")[0]
    return scrubbed(" ".join(text.split()))[:_WORDS]
