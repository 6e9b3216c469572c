"""A database as SqlSink uses it: tables, transactions, tokens (`claim`, `advance`).

`sqlite`, `duckdb` and `postgres` fill in what differs. A database has one connection, which one thread at a time uses.

Every error of the driver becomes an error of Sabot: TransientError for one that may pass, UserError for the others.
After any error the connection is closed, which rolls the open transaction back, as a crash does. So no half-done work
remains.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from sabot.base.os_errors import hint_of
from sabot.connectors.base import LostFloats, Token, Track
from sabot.connectors.sql.rows import Columns
from sabot.errors import AppLocked, UserError
from sabot.steps import step

TOKENS = "sabot_tokens"


def quoted(name: str) -> str:
    """Returns a name in SQL's quotes, whatever characters it has. Raises UserError for a name that no database
    accepts.
    """
    if not name or "\0" in name:
        raise UserError(f"{name!r} cannot be the name of a table or a column")
    return '"' + name.replace('"', '""') + '"'


class Database(ABC):
    """A table of a database. `table`: its name as the user wrote it. `keys`: the columns whose values a row shares
    with the row that it replaces.
    """

    mark: ClassVar[str]
    """The placeholder for a value in a statement."""

    def __init__(self, table: str, keys: Sequence[str]) -> None:
        self.table = table
        self.keys = list(keys)
        self.left: Sequence[str] = ()
        """Columns that the app no longer writes. A row that is replaced gets their defaults, as a new row would."""

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        """Returns the floats that become NULL in a column of this type. Lists and structs are JSON."""
        return "not_finite" if pa.types.is_nested(kind) else None

    def column(self, name: str) -> str:
        """Returns the quoted name of a column, for statements that take values."""
        return quoted(name)

    def as_text(self, name: str) -> str:
        """Returns the expression of a column whose values are read into texts. SQLite's are few, and Python's texts of them are its own."""
        return self.column(name)

    def replacing(self, names: Sequence[str]) -> str:
        """Returns the action of an INSERT with these columns for a row that the table has already."""
        keys = {self.same_column(key) for key in self.keys}
        columns = [quoted(name) for name in (*names, *self.left) if self.same_column(name) not in keys]
        return f"UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in columns)}" if columns else "NOTHING"

    @property
    @abstractmethod
    def where(self) -> str:
        """The address of the database without a password, for messages."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The quoted name of the table, for statements that take values."""

    @property
    @abstractmethod
    def tokens(self) -> str:
        """The quoted name of the table of tokens, for statements that take values."""

    @abstractmethod
    def connect(self, session: str) -> None:
        """Opens a new connection in place of the old one. `session`: its name for other processes, or "" if none
        needs to find it.
        """

    def connect_to_read(self) -> None:
        """Opens a new connection in place of the old one, without a name, and without making a database that does not
        exist.
        """
        self.connect("")

    @property
    def exists(self) -> bool:
        """False if the database is known, without a connection, not to exist yet."""
        return True

    @abstractmethod
    def close(self) -> None:
        """Closes the connection, which rolls the open transaction back. May be called twice."""

    def release(self) -> None:  # noqa: B027  most databases keep nobody out
        """Releases the lock or file that keeps other processes out; the next statement takes it again. Called between transactions."""

    @abstractmethod
    def begin(self) -> None:
        """Begins a transaction. No other writer of the track can have one at the same time."""

    @abstractmethod
    def commit(self) -> None:
        """Commits the transaction. It is durable when this returns."""

    @abstractmethod
    def explained(self) -> AbstractContextManager[None]:
        """Raises errors of the driver as those of Sabot."""

    @abstractmethod
    def run(self, statement: str, values: Sequence[Any] = ()) -> tuple[int, list[tuple[Any, ...]]]:
        """Runs one statement. Returns the number of rows that it changed, and the rows that it read."""

    def read(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Returns the rows of a query outside of any transaction."""
        with self.explained():
            return self.run(statement, values)[1]

    @abstractmethod
    def columns(self) -> Columns | None:
        """Returns the columns of the table, in order, without generated ones; None if the table does not exist."""

    @abstractmethod
    def has_rows(self) -> bool:
        """Returns True if the table, which exists, is known to have rows."""

    @abstractmethod
    def same_column(self, name: str) -> str:
        """Folds a column's name as the database does: two names with the same result are one column."""

    @abstractmethod
    def create(self, schema: pa.Schema) -> None:
        """Makes the table."""

    @abstractmethod
    def add_columns(self, schema: pa.Schema) -> None:
        """Adds columns to the table, which are null in its rows."""

    @abstractmethod
    def check_keys(self) -> None:
        """Raises UserError unless a unique index has exactly the columns `keys`."""

    @abstractmethod
    def try_types(self, empty: pa.RecordBatch) -> None:
        """Raises UserError if `insert` cannot write these columns. Needs no connection."""

    @abstractmethod
    def insert(self, data: pa.RecordBatch) -> None:
        """Inserts all rows, in order, in the open transaction."""

    @abstractmethod
    def delete(self, data: pa.RecordBatch) -> None:
        """Deletes, in the open transaction, the rows whose `keys` are among those in `data`, which has only these
        columns.
        """

    @abstractmethod
    def last_of_equal(self, keys: pa.RecordBatch) -> list[int] | None:
        """Returns the rows of `keys`, in order, that no later row follows which is equal in the database, by the type
        or the collation of its columns. Returns None if the database tells apart all values of these types. Called
        after `columns`, in the open transaction.
        """

    @abstractmethod
    def make_tokens(self) -> None:
        """Makes the table of tokens if it is missing."""

    @abstractmethod
    def expel(self, owner: str) -> None:
        """Ends the open transaction of the session `owner`, if the database can do that."""

    # -- what is the same for all --------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self, *, keep: bool = False) -> Iterator[None]:
        """Runs the block in a transaction: all of its statements take effect or none. `keep`: True to `release` nothing,
        as another transaction follows soon.
        """
        try:
            with self.explained():
                self.begin()
                yield
                with step("commit", self.table):
                    self.commit()
                if not keep:
                    self.release()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Runs the block in a transaction that is rolled back at its end."""
        with self.explained():
            self.begin()
            try:
                yield
            finally:
                self.close()

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Runs the block in a part of a transaction, which takes effect as a whole or not at all; then the transaction
        goes on.
        """
        self.run("SAVEPOINT sabot_attempt")
        try:
            with self.explained():
                yield
        except UserError:
            with self.explained():
                self.undo()
            raise
        with self.explained():
            self.run("RELEASE SAVEPOINT sabot_attempt")

    def undo(self) -> None:
        """Takes back what was done since the savepoint of `attempt`."""
        self.run("ROLLBACK TO SAVEPOINT sabot_attempt")

    def misfit(self, field: "pa.Field[Any]") -> str:
        """Returns the type of the column of the table, for a message, if it cannot take values of this field's type; else
        "". Called after `columns`.
        """
        return ""

    def refused(self, data: pa.RecordBatch) -> dict[int, str]:
        """Returns the rows that `insert` cannot write whatever the table is, or whose values its columns do not hold as
        far as `columns` has told them: the reason, by the number of the row. Needs no connection.
        """
        return {}

    def repeated(self, data: pa.RecordBatch) -> Mapping[int, Sequence[tuple[str, int | None]]]:
        """Returns the rows that `insert` without keys cannot write because a value is unique: for each such value the
        reason, and the number of the first row of `data` with the same value, or None if the table has it. May return
        too few rows. Called after `columns`, in a `trial`.
        """
        return {}

    def claim(self, track: Track, owner: str, *, again: bool) -> Token | None:
        """Makes `owner` the owner of the track, and returns the track's token. Called in a transaction.

        `again`: True if `owner` has claimed the track before; AppLocked if another owner has claimed it since.
        """
        self.make_tokens()
        mark = self.mark
        _, before = self.run(f"SELECT owner FROM {self.tokens} WHERE lane = {mark}", (track.key,))
        if again and (not before or before[0][0] != owner):
            raise self._lost(track) if before else self._gone(track)
        if before:
            self.expel(before[0][0])
        with step("claim", track.key):
            self.run(
                f"INSERT INTO {self.tokens} (lane, owner) VALUES ({mark}, {mark}) "
                "ON CONFLICT (lane) DO UPDATE SET owner = excluded.owner",
                (track.key, owner),
            )
        _, rows = self.run(f"SELECT seq, incarnation FROM {self.tokens} WHERE lane = {mark}", (track.key,))
        seq, incarnation = rows[0]
        return None if seq is None else Token(int(seq), incarnation)

    def known(self, track: Track) -> Token | None:
        """Returns the token of the track, or None. Called in a transaction."""
        self.make_tokens()
        _, rows = self.run(f"SELECT seq, incarnation FROM {self.tokens} WHERE lane = {self.mark}", (track.key,))
        return Token(int(rows[0][0]), rows[0][1]) if rows and rows[0][0] is not None else None

    def advance(self, track: Track, owner: str, seq: int, *, anyhow: bool = False) -> bool:
        """Sets the token, which locks the track for others until the end of the transaction. Returns False if the
        receiver has this part already.

        `anyhow`: True sets the token to a lower number too. Raises AppLocked if another owner has claimed the track.
        """
        mark = self.mark
        newer = "" if anyhow else f" AND (seq IS NULL OR seq < {mark} OR incarnation <> {mark})"
        with step("token", track.key):
            changed, _ = self.run(
                f"UPDATE {self.tokens} SET seq = {mark}, incarnation = {mark} WHERE lane = {mark} AND owner = {mark}{newer}",
                (seq, track.incarnation, track.key, owner, *(() if anyhow else (seq, track.incarnation))),
            )
        if changed:
            return True
        _, rows = self.run(f"SELECT owner FROM {self.tokens} WHERE lane = {mark}", (track.key,))
        if not rows:
            raise self._gone(track)
        if rows[0][0] != owner:
            raise self._lost(track)
        return False

    def _lost(self, track: Track) -> AppLocked:
        return AppLocked(
            f"another process delivers {track.key!r} into table {self.table} of {self.where} now",
            hint="stop one of the two; two different apps need different names (App(id))",
        )

    def _gone(self, track: Track) -> UserError:
        return UserError(
            f"{self.where}: the row {track.key!r} is gone from {TOKENS}, so nobody knows what was delivered",
            hint="only the app may change that table; start again, and choose",
        )


class FileDatabase(Database):
    """A table of a database that is one file, at `path`."""

    def __init__(self, path: Path, table: str, keys: Sequence[str]) -> None:
        super().__init__(table, keys)
        self.path = path

    @property
    def where(self) -> str:
        return str(self.path)

    @property
    def exists(self) -> bool:
        return self.path.is_file()

    def connect_to_read(self) -> None:
        if not self.exists:
            raise UserError(f"database {self.path} does not exist", hint="give the path of a file that exists")
        self.connect("")

    def make_folder(self) -> None:
        """Makes the folder of the file. Raises UserError."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.path.parent} cannot be made: {error.strerror or error}", hint=hint_of(error)
            ) from error
