"""Answers of models that are kept, by a digest of the model and the request."""

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec

from sabot.calls.cache import UNKNOWN, AnswerCache
from sabot.checks import Whole, check
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.config import Duration, parse_seconds
from sabot.connectors.redis import RedisServer
from sabot.disk import private
from sabot.errors import UNREADABLE, TransientError, UserError
from sabot.llm.results import Completion
from sabot.sqlite_files import error_of, open_database

T = TypeVar("T")

_log = logging.getLogger("sabot.llm")

_PRUNE_EVERY = 256  # answers
_BUSY_SECONDS = 10.0
_HINT = "a file that is a cache, or none yet, in a folder that can be written to"
_PAUSE_SECONDS = 5.0  # in which a Redis server that failed is not asked


@runtime_checkable
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
        check("MemoryCache: most", most, Whole(1))
        ttl_s = None if ttl is None else parse_seconds(ttl, name="ttl")
        self._answers: AnswerCache[bytes] = AnswerCache(most, ttl_s, clock)

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
        check("SqliteCache: most", most, Whole(1))
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
        except sqlite3.Error as error:
            raise error_of(error, f"cache {self._path}", hint=_HINT, wait_s=_BUSY_SECONDS) from error
        except OSError as error:
            raise UserError(f"cache {self._path}: {error}", hint=_HINT) from error

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            # Not a file that is there: to close it would end the locks that another connection of this process has on it.
            with suppress(FileExistsError):
                os.close(private(str(self._path), os.O_RDWR | os.O_CREAT | os.O_EXCL))
            connection = open_database(self._path, write_ahead=True, synchronous="NORMAL", wait_s=_BUSY_SECONDS)
            try:
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


class _KeptAnswer(msgspec.Struct, array_like=True):
    kept: float  # seconds since 1970
    answer: Completion


class RedisCache:
    """Answers in a Redis server, which processes on several machines may share. url: `redis://user:password@host:6379/0`. ttl: as of a
    MemoryCache; None: as long as the server has room, which its `maxmemory-policy` says. prefix: of its keys. timeout: of a command.

    A server that is away fails no call: the model is asked, nothing is kept, and a line is logged. It is asked again after five seconds.
    `failures`: how often it did not answer. Raises MissingExtra; UserError where the server refuses us.
    """

    def __init__(
        self,
        url: str,
        *,
        ttl: Duration | None = None,
        prefix: str = "sabot:llm:",
        timeout: Duration = "1s",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        timeout_s = parse_seconds(timeout, name="timeout")
        self._server = RedisServer(url, "the cache", "RedisCache", timeout_s=timeout_s)
        self._prefix = f"{prefix}1:".encode()
        self._ttl_s = None if ttl is None else parse_seconds(ttl, name="ttl")
        self._clock = clock
        self.failures = 0
        self._away_until: float | None = None
        self._closed = False
        self._decoder = msgspec.msgpack.Decoder(_KeptAnswer)
        self._encoder = msgspec.msgpack.Encoder()

    async def get(self, key: bytes) -> Completion | None:
        """The answer, if the server has it and it is not too old."""
        value = await self._command("GET", self._prefix + key)
        if value is None:
            return None
        try:
            found = self._decoder.decode(value)
        except UNREADABLE as error:
            raise UserError(
                f"cache {self._server.where}: an answer cannot be read: {error}",
                hint="give the cache a prefix= of its own",
            ) from error
        return None if self._ttl_s is not None and self._clock.time() - found.kept >= self._ttl_s else found.answer

    async def put(self, key: bytes, answer: Completion) -> None:
        """Writes the answer."""
        value = self._encoder.encode(_KeptAnswer(self._clock.time(), answer))
        until = () if self._ttl_s is None else ("PX", max(1, round(self._ttl_s * 1000)))
        await self._command("SET", self._prefix + key, value, *until)

    async def close(self) -> None:
        """Ends the connections."""
        if not self._closed:
            self._closed = True
            await self._server.close()

    async def _command(self, *words: Any) -> Any:
        """What the server answers; None: it is away."""
        if self._closed:
            raise UserError(f"cache {self._server.where}: it is closed")
        now = self._clock.monotonic()
        if self._away_until is not None and now < self._away_until:
            return None
        try:
            with self._server.explained():
                answer = await self._server.client.execute_command(*words)
        except TransientError as error:
            self.failures += 1
            if self._away_until is None:
                _log.warning("%s; models are asked without it", error.message)
            self._away_until = self._clock.monotonic() + _PAUSE_SECONDS
            return None
        if self._away_until is not None:
            _log.info("the cache at %s is back", self._server.where)
            self._away_until = None
        return answer
