"""What the sink asks of a database; `sqlite` and `postgres` say how. One connection, driven by one owner at a time.

Every error of the driver comes out as ours: TransientError for what may pass, UserError for the rest. After any error, ours or
a crash's, the connection is closed, which undoes the open transaction: there is no state in between to reason about.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import pyarrow as pa

from sabot.connectors.base import Token, Track
from sabot.connectors.sql.rows import Columns
from sabot.errors import JobLocked, UserError
from sabot.steps import step

__all__ = ["TOKENS", "Database", "quoted"]

TOKENS = "sabot_tokens"


def quoted(name: str) -> str:
    """A name as SQL writes it, whatever is in it."""
    if not name or "\0" in name:
        raise UserError(f"{name!r} cannot be the name of a table or a column")
    return '"' + name.replace('"', '""') + '"'


class Database(ABC):
    """`table` as the user wrote it; `keys`: a row replaces the one with the same values of these columns."""

    mark: ClassVar[str]
    """What stands for a value in a statement."""

    def __init__(self, table: str, keys: Sequence[str]) -> None:
        self.table = table
        self.keys = list(keys)

    @property
    @abstractmethod
    def where(self) -> str:
        """Which database, for messages: no password is in it."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The table, quoted, where statements take values."""

    @property
    @abstractmethod
    def tokens(self) -> str:
        """The table of tokens, quoted, where statements take values."""

    @abstractmethod
    def connect(self, session: str) -> None:
        """Opens a connection in place of the one there was. `session` names it to other processes ("": nobody asks)."""

    def connect_to_read(self) -> None:
        """As `connect`; a database that is not there is not made, and no session has this one's name."""
        self.connect("")

    @abstractmethod
    def close(self) -> None:
        """Undoes the open transaction, if any. Idempotent."""

    @abstractmethod
    def begin(self) -> None:
        """Begins a transaction that no other writer of the track can run beside."""

    @abstractmethod
    def commit(self) -> None:
        """Ends the transaction: it is durable when this returns."""

    @abstractmethod
    def explained(self) -> AbstractContextManager[None]:
        """Around calls of the driver: its errors as ours."""

    @abstractmethod
    def run(self, statement: str, values: Sequence[Any] = ()) -> tuple[int, list[tuple[Any, ...]]]:
        """Runs one statement -> rows changed, rows read."""

    @abstractmethod
    def columns(self) -> Columns | None:
        """Of the table, in order, without generated ones; None: there is no such table."""

    @abstractmethod
    def same_column(self, name: str) -> str:
        """Two columns' names are one to the database when this is equal."""

    @abstractmethod
    def create(self, schema: pa.Schema) -> None:
        """Makes the table."""

    @abstractmethod
    def check_keys(self) -> None:
        """UserError unless a unique index has just the columns `keys`."""

    @abstractmethod
    def try_types(self, empty: pa.RecordBatch) -> None:
        """What `insert` would make of these columns. Raises UserError. Not connected."""

    @abstractmethod
    def insert(self, data: pa.RecordBatch) -> None:
        """All rows, in order, in the open transaction."""

    @abstractmethod
    def delete(self, data: pa.RecordBatch) -> None:
        """The rows whose `keys` are among these, which are all the columns of `data`, in the open transaction."""

    @abstractmethod
    def make_tokens(self) -> None:
        """The table of tokens is there."""

    @abstractmethod
    def expel(self, owner: str) -> None:
        """Ends what the session of this name has open, where the database can."""

    # -- what is the same for all --------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is done inside happens together or not at all."""
        try:
            with self.explained():
                self.begin()
                yield
                with step("commit", self.table):
                    self.commit()
        except BaseException:
            self.close()
            raise

    def claim(self, track: Track, owner: str, *, again: bool) -> Token | None:
        """From now on the track is `owner`'s -> its token. In a transaction.

        `again`: it was his before; JobLocked when another has claimed it since.
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
        """The track's token. In a transaction."""
        self.make_tokens()
        _, rows = self.run(f"SELECT seq, incarnation FROM {self.tokens} WHERE lane = {self.mark}", (track.key,))
        return Token(int(rows[0][0]), rows[0][1]) if rows and rows[0][0] is not None else None

    def advance(self, track: Track, owner: str, seq: int, *, anyhow: bool = False) -> bool:
        """Sets the token, and keeps others off the track until the end of the transaction. False: it has this part already.

        JobLocked when the track is somebody else's. `anyhow`: to a lower number too.
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

    def _lost(self, track: Track) -> JobLocked:
        return JobLocked(
            f"another process delivers {track.key!r} into table {self.table} of {self.where} now",
            hint="stop one of the two; a job that is not the same needs another name (App(id))",
        )

    def _gone(self, track: Track) -> UserError:
        return UserError(
            f"{self.where}: the row {track.key!r} has gone from {TOKENS}, and with it what was delivered",
            hint="nobody but the job may change that table; start again to be given the choice",
        )
