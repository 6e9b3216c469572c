"""Answers of models that are kept, by a digest of the model and the request."""

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from sabot.calls.cache import UNKNOWN, KeptAnswers
from sabot.calls.options import checked_whole
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.config import Duration, parse_seconds
from sabot.disk import private
from sabot.errors import UNREADABLE, UserError
from sabot.llm.results import Completion

__all__ = ["CompletionCache", "MemoryCache", "SqliteCache"]

T = TypeVar("T")

_PRUNE_EVERY = 256  # answers
_BUSY_SECONDS = 10.0


class CompletionCache(Protocol):
    """Keeps answers by key. An engine gives it no two calls for one key at once. What `get` or `put` raises is the error of the call."""

    async def get(self, key: bytes) -> Completion | None:
        """The answer; None: it is not known, or too old."""

    async def put(self, key: bytes, answer: Completion) -> None:
        """Keeps the answer, in place of the one before. It has no `output`."""

    async def close(self) -> None:
        """Afterwards it is not used. Repeated calls do nothing."""


class MemoryCache:
    """Answers in this process. most: how many; beyond, the one goes that was not used for longest. ttl: how long one is kept; None: as long
    as there is room.
    """

    def __init__(self, most: int = 10_000, ttl: Duration | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        checked_whole("MemoryCache", "most", most, 1)
        ttl_s = None if ttl is None else parse_seconds(ttl, name="ttl")
        self._answers: KeptAnswers[bytes] = KeptAnswers(most, ttl_s, clock)

    async def get(self, key: bytes) -> Completion | None:
        """The answer, if it is kept."""
        found = self._answers.known(key, self._answers.now())
        return None if found is UNKNOWN else found

    async def put(self, key: bytes, answer: Completion) -> None:
        """Keeps the answer."""
        self._answers.keep(key, answer)

    async def close(self) -> None:
        """Does nothing."""

    def __len__(self) -> int:
        """How many answers it has."""
        return len(self._answers)


class SqliteCache:
    """Answers in a file, which lasts, and which several processes may use. most, ttl: as of a MemoryCache; what is beyond goes now and
    then, the oldest first.

    The file is for its user alone, and is read and written in one thread. It is safe from the death of the process; that of the machine may
    take the last answers with it. Raises UserError where the file is no such cache.
    """

    def __init__(
        self, path: Path | str, *, most: int = 1_000_000, ttl: Duration | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        checked_whole("SqliteCache", "most", most, 1)
        self._path = Path(path)
        self._most = most
        self._ttl_s = None if ttl is None else parse_seconds(ttl, name="ttl")
        self._clock = clock
        self._puts = 0
        self._closed = False
        self._thread = ThreadPoolExecutor(1, "sabot-llm-cache")
        self._connection: sqlite3.Connection | None = None
        self._decoder = msgspec.msgpack.Decoder(Completion)
        self._encoder = msgspec.msgpack.Encoder()

    async def get(self, key: bytes) -> Completion | None:
        """The answer, if it is in the file and not too old."""
        value = await self._in_thread(self._read, key)
        if value is None:
            return None
        try:
            return self._decoder.decode(value)
        except UNREADABLE as error:
            raise UserError(f"cache {self._path}: an answer cannot be read: {error}", hint="remove the file") from error

    async def put(self, key: bytes, answer: Completion) -> None:
        """Writes the answer."""
        await self._in_thread(self._write, key, self._encoder.encode(answer))

    async def close(self) -> None:
        """Closes the file."""
        if not self._closed:
            await self._in_thread(self._close)
            self._closed = True
            self._thread.shutdown(wait=False)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        if self._closed:
            raise UserError(f"cache {self._path}: it is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(self._explained, function, *args))

    # -- in the thread ------------------------------------------------------------------------------------------------

    def _explained(self, function: Callable[..., T], *args: Any) -> T:
        try:
            return function(*args)
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"cache {self._path}: {error}",
                hint="a file that is a cache, or none yet, in a folder that can be written to",
            ) from error

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            # Not a file that is there: to close it would end the locks that another connection of this process has on it.
            with suppress(FileExistsError):
                os.close(private(str(self._path), os.O_RDWR | os.O_CREAT | os.O_EXCL))
            connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS answers_1 (key BLOB PRIMARY KEY, kept REAL NOT NULL, answer BLOB NOT NULL)"
                )
                connection.execute("CREATE INDEX IF NOT EXISTS answers_1_kept ON answers_1 (kept)")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _oldest(self) -> float:
        return -1.0 if self._ttl_s is None else self._clock.time() - self._ttl_s

    def _read(self, key: bytes) -> bytes | None:
        found = self._opened().execute("SELECT answer FROM answers_1 WHERE key = ? AND kept > ?", (key, self._oldest()))
        row = found.fetchone()
        return None if row is None else row[0]

    def _write(self, key: bytes, value: bytes) -> None:
        connection = self._opened()
        connection.execute("INSERT OR REPLACE INTO answers_1 VALUES (?, ?, ?)", (key, self._clock.time(), value))
        self._puts += 1
        if self._puts % _PRUNE_EVERY == 0:
            connection.execute("DELETE FROM answers_1 WHERE kept <= ?", (self._oldest(),))
            connection.execute(
                "DELETE FROM answers_1 WHERE rowid IN (SELECT rowid FROM answers_1 ORDER BY kept DESC LIMIT -1 OFFSET ?)",
                (self._most,),
            )

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
