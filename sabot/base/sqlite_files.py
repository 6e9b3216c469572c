"""Opens SQLite databases, always with the same care, and converts SQLite's errors into SabotErrors.

Several processes may use one file. One of them writes at a time, and the others wait for it, at most `wait_s`
seconds.
"""

import os
import sqlite3
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from sabot.base.os_errors import hint_of
from sabot.errors import SabotError, TransientError, UserError

HELD = "see who has the database open (fuser, lsof): sqlite3 in a terminal, a copy that is being made"
"""The hint of the error for a database that another process has held for too long."""

_SAID = {
    sqlite3.SQLITE_NOTADB: "it is a file of something else, or is encrypted: give the path of a database of SQLite, or one at which no "
    "file is",
    sqlite3.SQLITE_CORRUPT: "it is damaged: PRAGMA integrity_check says where; go back to a copy of it",
    sqlite3.SQLITE_CANTOPEN: "its folder has to be there, and this process may have to make files in it; the path of a folder is none "
    "of a database",
    sqlite3.SQLITE_READONLY: "this process may not write the file, or was it moved or replaced while it was open?",
}


def open_database(
    path: Path,
    *,
    wait_s: float,
    mode: Literal["ro", "rw", "rwc"] = "rwc",
    write_ahead: bool = False,
    synchronous: Literal["OFF", "NORMAL", "FULL"] = "FULL",
) -> sqlite3.Connection:
    """Opens a connection. Any thread may use it, one at a time. The caller begins the transactions itself.

    `wait_s`: the seconds that a transaction waits for another one. `mode`: "ro" to read, "rw" for a file that exists,
    "rwc" to make a missing file. `write_ahead`: True switches the file to a write-ahead log, in which readers and the
    writer do not wait for each other. `synchronous`: with "FULL" a commit is on the disk when it returns; with
    "NORMAL" a crash of the machine may lose the last commits. Raises sqlite3.Error.
    """
    connection = sqlite3.connect(
        f"file:{'//' if path.is_absolute() else ''}{quote(os.fspath(path))}?mode={mode}",  # "//", else //a is a host a
        uri=True,
        timeout=wait_s,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        if write_ahead:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
    except BaseException:
        connection.close()
        raise
    return connection


def is_held(error: sqlite3.Error) -> bool:
    """Returns True if another connection has held the database for as long as this one waits."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def error_of(error: sqlite3.Error, where: object, *, wait_s: float, hint: str = "") -> SabotError:
    """Returns a TransientError if another connection holds the database, else a UserError. Both messages begin with
    `where`.

    `wait_s`: the seconds that this connection has waited, for the message. `hint`: the hint of the UserError, unless
    the operating system caused the error and has a hint of its own.
    """
    if is_held(error):
        return TransientError(f"{where}: another process has held it for {wait_s:g} s", hint=HELD)
    return UserError(f"{where}: {error}", hint=hint_of_file(error, hint))


def hint_of_file(error: sqlite3.Error, otherwise: str = "") -> str:
    """Returns the hint for an error of a file of SQLite: that of the operating system, else `otherwise`, else that of its code."""
    return hint_of(error, otherwise or _SAID.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, ""))
