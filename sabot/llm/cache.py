"""Caches of answers. The key is a digest of provider, model and request."""

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

from sabot.base.checks import Whole, check
from sabot.base.config import Duration, parse_seconds
from sabot.base.disk import private
from sabot.base.options import answers_wrong_options
from sabot.base.sqlite_files import error_of, open_database
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.connectors.redis.server import RedisServer
from sabot.engine.calls.cache import UNKNOWN, AnswerCache
from sabot.errors import UNREADABLE, TransientError, UserError
from sabot.llm.results import Completion

T = TypeVar("T")

_log = logging.getLogger("sabot.llm")

_PRUNE_EVERY = 256  # writes
_BUSY_SECONDS = 10.0
_HINT = "name an existing cache, or a new file in a folder that can be written to"
_PAUSE_SECONDS = 5.0  # the pause before an unreachable Redis server is tried again


@runtime_checkable
class CompletionCache(Protocol):
    """An interface: a cache of the answers of models. If an answer is not in the cache and a model is asked for it,
    later calls with the same key wait for this answer and make no request. If `get` or `put` raises an error, the model
    call fails with this error.
    """

    async def get(self, key: bytes) -> Completion | None:
        """Returns the answer, or None if there is none or it has expired."""

    async def put(self, key: bytes, answer: Completion) -> None:
        """Stores the answer under the key, and replaces an earlier answer. The engine passes answers whose `output` is
        None, because the decoded value is not stored.
        """

    async def close(self) -> None:
        """Closes the cache. No other method is called afterwards. Repeated calls do nothing."""


@answers_wrong_options
class MemoryCache:
    """A cache in the memory of this process.

    - `most`: the most answers. If there are more, the least recently used one is removed.
    - `ttl`: the time for which an answer is kept, or None for no limit.
    """

    def __init__(self, most: int = 10_000, ttl: Duration | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        check("MemoryCache: most", most, Whole(1))
        ttl_s = None if ttl is None else parse_seconds(ttl, name="ttl")
        self._answers: AnswerCache[bytes] = AnswerCache(most, ttl_s, clock)

    async def get(self, key: bytes) -> Completion | None:
        """Returns the answer, or None if there is none or it has expired."""
        found = self._answers.known(key, self._answers.now())
        return None if found is UNKNOWN else found

    async def put(self, key: bytes, answer: Completion) -> None:
        """Stores the answer."""
        self._answers.keep(key, answer)

    async def close(self) -> None:
        """Does nothing."""

    def __len__(self) -> int:
        """Returns the number of answers."""
        return len(self._answers)


@answers_wrong_options
class SqliteCache:
    """A cache in a SQLite file. The answers remain after a restart, and several processes may use the file at the same
    time.

    - `most`: the most answers. `ttl`: the time for which an answer is kept, or None for no limit. Answers are deleted
      after each 256 writes by this object: first the expired ones, and then the oldest until `most` are left. Between
      these times the file may have more.

    Only the user of the operating system who created the file can read it. All access is in one thread. If the process
    dies, no stored answer is lost; if the machine loses power, the newest answers may be lost. Methods raise UserError
    if the file cannot be opened or is not such a cache.
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
        """Returns the answer, or None if there is none or it has expired. Raises UserError if it cannot be decoded."""
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
        """Closes the file, and ends the thread."""
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

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            # An existing file is not opened here: closing it would release the locks of other connections of this process.
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
        found = self._connect().execute(
            "SELECT answer FROM answers_1 WHERE key = ? AND kept > ?", (key, self._oldest())
        )
        row = found.fetchone()
        return None if row is None else row[0]

    def _write(self, key: bytes, value: bytes) -> None:
        connection = self._connect()
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


@answers_wrong_options
class RedisCache:
    """A cache in a Redis server, which processes on several machines may share.

    - `url`: the address, such as `redis://user:password@host:6379/0`.
    - `ttl`: the time for which an answer is kept; if None, the server's `maxmemory-policy` decides what is deleted.
    - `prefix`: the text with which all keys in Redis begin.
    - `timeout`: the time limit of one Redis command.
    - `failures`: the number of commands that failed because the server could not be reached.

    If the server cannot be reached, model calls do not fail: the model is asked, the answer is not stored, and a
    warning is logged. For the next five seconds the server is not tried. Raises MissingExtra if the Redis client is not
    installed. Methods raise UserError if the server refuses the password or a command.
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
        """Returns the answer, or None if there is none, it has expired, or the server is unreachable. Raises UserError
        if the answer cannot be decoded.
        """
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
        """Writes the answer, unless the server is unreachable."""
        value = self._encoder.encode(_KeptAnswer(self._clock.time(), answer))
        until = () if self._ttl_s is None else ("PX", max(1, round(self._ttl_s * 1000)))
        await self._command("SET", self._prefix + key, value, *until)

    async def close(self) -> None:
        """Closes the connections."""
        if not self._closed:
            self._closed = True
            await self._server.close()

    async def _command(self, *words: Any) -> Any:
        """Sends a Redis command, whose name and arguments are `words`, and returns the reply. Returns None if the
        server cannot be reached. For five seconds after that, returns None without trying to reach it. Raises UserError
        if the cache is closed.
        """
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
                _log.warning("%s; models are asked without the cache", error.message)
            self._away_until = self._clock.monotonic() + _PAUSE_SECONDS
            return None
        if self._away_until is not None:
            _log.info("the cache at %s is back", self._server.where)
            self._away_until = None
        return answer
