"""A table of Iceberg: its catalog, its name, and the errors of pyiceberg as those of Sabot."""

import importlib.util
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from sabot.base.os_errors import hint_of, stays
from sabot.base.redaction import clean_cause, keep_settings, redacted_url, scrubbed
from sabot.base.sqlite_files import hint_of_file
from sabot.connectors.lake.sink import LakePlace
from sabot.errors import MissingExtra, TransientError, UserError

_CHARACTERS = 600  # of an error of the driver, which may quote rows


class IcebergPlace(LakePlace):
    """The place of a table: its catalog, and its name there, such as "lake.orders". `feature`: the feature that needs pyiceberg, for
    the error if it is missing.
    """

    def __init__(self, catalog: str | Mapping[str, str], table: str, feature: str) -> None:
        if not all(map(importlib.util.find_spec, ("pyiceberg", "sqlalchemy"))):
            raise MissingExtra(feature, "iceberg")
        self.name = table
        if not all(table.split(".")[0:2]) or "." not in table:
            raise UserError(f"table {table!r} has no namespace", hint='"lake.orders": the namespace, and the table')
        self.settings = catalog if isinstance(catalog, str) else dict(catalog)
        if isinstance(catalog, Mapping):
            keep_settings(catalog)
        self._catalog: Any = None

    @property
    def driver(self) -> ModuleType:
        """The module that imports pyiceberg: a second of a core, which a process that only plans or runs other steps does not need."""
        from sabot.connectors.iceberg import driver

        return driver

    @property
    def conflict(self) -> type[Exception]:
        found: type[Exception] = self.driver.exceptions.CommitFailedException
        return found

    @property
    def present(self) -> tuple[type[Exception], ...]:
        return (self.driver.exceptions.TableAlreadyExistsError, self.conflict)

    @property
    def unknown(self) -> tuple[type[Exception], ...]:
        found: tuple[type[Exception], ...] = self.driver.later()
        return found

    @property
    def address(self) -> str:
        """The catalog and the name, without secrets."""
        return f"{self._catalog_address}/{self.name}"

    @property
    def _catalog_address(self) -> str:
        settings = self.settings
        return settings if isinstance(settings, str) else redacted_url(str(settings.get("uri", "")))

    @property
    def catalog(self) -> Any:
        """The catalog, which is opened at its first use."""
        if self._catalog is None:
            self._catalog = self.driver.catalog_of(self.settings)
        return self._catalog

    def found(self) -> Any:
        try:
            return self.catalog.load_table(self.name)
        except self.driver.exceptions.NoSuchTableError:
            return None

    def close(self) -> None:
        catalog, self._catalog = self._catalog, None
        if catalog is not None:
            catalog.close()

    @contextmanager
    def explained(self) -> Iterator[None]:
        driver = self.driver
        try:
            yield
        except FileNotFoundError as error:
            raise UserError(
                f"{self.where}: a file that it names is gone: {_plain(error)}",
                hint="was the table, or a file below it, removed by hand?",
            ) from clean_cause(error)
        except driver.exceptions.CommitFailedException as error:
            text = f"{self.where}: another process has changed it: {_plain(error)}"
            raise TransientError(text) from clean_cause(error)
        except driver.later() as error:
            if isinstance(error, OSError) and error.errno is not None and stays(error):  # of this machine
                raise UserError(f"{self.where}: {_plain(error)}", hint=hint_of(error)) from clean_cause(error)
            endpoint = "" if isinstance(self.settings, str) else redacted_url(str(self.settings.get("s3.endpoint", "")))
            places = f"of the catalog and of the warehouse{f' ({endpoint})' if endpoint else ''}"
            hint = _hint_of(error, f"check the address {places}, and their keys")
            text = f"{self.where}{self._in_catalog} cannot be reached: {_plain(error)}"
            raise TransientError(text, hint=hint) from clean_cause(error)
        except driver.refused() as error:
            hint = _hint_of(error, "see the settings of the catalog, and what pyiceberg supports")
            raise UserError(f"{self.where}{self._in_catalog}: {_plain(error)}", hint=hint) from clean_cause(error)

    @property
    def _in_catalog(self) -> str:
        """The words for the catalog in a message about it or the warehouse."""
        return f" in catalog {self._catalog_address}" if self._catalog_address else ""


def _below(error: Exception) -> Exception:
    """Returns the error of the driver of a database for one of SQLAlchemy, which has the statement and its values in its text."""
    found = getattr(error, "orig", None)
    return found if isinstance(found, Exception) else error


def _hint_of(error: Exception, otherwise: str) -> str:
    below = _below(error)
    if isinstance(below, sqlite3.Error):
        return hint_of_file(below) or otherwise
    if "Invalid JSON" in str(error):
        return "the answer is none of a REST catalog: check its uri, with the path before /v1"
    return hint_of(below, otherwise) if isinstance(below, OSError) else otherwise


def _plain(error: Exception) -> str:
    """Returns the text of an error in one line, without secrets."""
    return scrubbed(" ".join(str(_below(error)).split()))[:_CHARACTERS]
