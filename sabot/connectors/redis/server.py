"""A Redis server: its address, a client for each event loop or for one thread, and its errors as SabotErrors. Only this
module imports redis.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sabot.base.os_errors import hint_of
from sabot.base.redaction import clean_cause, keep_url, redacted_url
from sabot.base.threads import close_with_loop
from sabot.errors import BrokerUnavailable, MissingExtra, TransientError, UserError, short_repr

_ADDRESS = "redis://user:password@host:6379/0, rediss://… for TLS, unix:///path"
_SCHEMES = ("redis://", "rediss://", "unix://")
_PASSING = ("CLUSTERDOWN", "MASTERDOWN", "MISCONF", "NOREPLICAS", "TRYAGAIN")
"""The codes of answers that may be others later, and for which the client has no class of its own."""
_NO_ANSWER = (
    "is the server running at this address? One that takes TLS alone has rediss://, and one without TLS redis://"
)
_OTHER = "the answer is none of a Redis server: check host and port, which another program may have"

ALIVE_SECONDS = (
    30  # after so long without a command a connection is asked whether it lives, and made again if it does not
)


class RedisServer:
    """The database at an address, with a client for each event loop.

    `what`: the part of Sabot that uses it, for messages, as in "cache". `feature`: the feature that needs the
    library, for the error if the library is missing. `timeout_s`: the time for a command, and for a connection.
    `connections`: the most connections; a caller that finds none free waits for one.

    A connection that the server has closed is made again, once. A connection belongs to the event loop in which it
    was made, so each loop has a client of its own: `collect()` runs each program in a loop that it closes. Raises
    MissingExtra, UserError.
    """

    def __init__(self, url: str, what: str, feature: str, *, timeout_s: float = 5.0, connections: int = 64) -> None:
        try:
            import redis
            import redis.asyncio.retry
            import redis.backoff
            import redis.retry
        except ImportError as error:
            raise MissingExtra(feature, "redis") from error
        keep_url(url)
        self.where = redacted_url(url)
        """The address without user and password, for messages."""
        if not url.startswith(_SCHEMES):
            raise UserError(f"{what}: {self.where} is no address of a Redis server", hint=_ADDRESS)
        self._what, self._ours = what, True
        self._errors: Any = redis.exceptions
        retry = redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 1)

        def make() -> Any:
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=connections,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=retry,
            )
            return redis.asyncio.Redis(connection_pool=pool, retry=retry)

        def make_blocking() -> Any:
            client = redis.Redis.from_url(
                url,
                protocol=2,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                health_check_interval=ALIVE_SECONDS,
                retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),  # a command that was sent may have been executed
            )
            client.response_callbacks.clear()
            return client

        self._make: Callable[[], Any] = make
        self.blocking: Callable[[], Any] = make_blocking
        """Makes a client for one thread, whose answers are as the server sends them: lists, numbers and bytes."""
        self._clients: dict[asyncio.AbstractEventLoop, Any] = {}
        try:
            self._unused: Any = make()  # the client for the first event loop
        except ValueError as error:
            raise UserError(f"{what}: {self.where}: {error}", hint=_ADDRESS) from clean_cause(error)

    @classmethod
    def of(cls, client: Any, what: str, feature: str) -> "RedisServer":
        """Returns the server at an address, or that of a client that the caller has made, which `close` leaves open.
        Raises UserError for anything else.
        """
        if isinstance(client, str):
            return cls(client, what, feature)
        try:
            import redis.asyncio
        except ImportError as error:
            raise MissingExtra(feature, "redis") from error
        if not isinstance(client, redis.asyncio.Redis):
            raise UserError(
                f"{what}: {short_repr(client)} is no client", hint=f"a redis.asyncio.Redis, or an address: {_ADDRESS}"
            )
        made = cls.__new__(cls)
        facts = client.connection_pool.connection_kwargs
        made.where = f"{facts.get('host', facts.get('path', 'a server'))}:{facts.get('port', '')}".rstrip(":")
        made._what, made._errors, made._unused, made._ours = what, redis.exceptions, client, False
        return made

    @property
    def client(self) -> Any:
        """The `redis.asyncio.Redis` of the running event loop; a client of the caller's serves all loops. Call it
        within `explained`.
        """
        try:
            loop = asyncio.get_running_loop() if self._ours else None
        except RuntimeError:
            loop = None
        if loop is None:
            self._unused = self._unused or self._make()
            return self._unused
        found = self._clients.get(loop)
        if found is None:
            found, self._unused = self._unused or self._make(), None
            self._clients = {each: client for each, client in self._clients.items() if not each.is_closed()}
            self._clients[loop] = found
            close_with_loop(partial(_closed, found))
        return found

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Converts errors of the client: into TransientError if the error may pass, else into UserError."""
        try:
            yield
        except (self._errors.RedisError, OSError) as error:
            raise self.error_of(error) from clean_cause(error)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self._what} at {self.where}: some values are not text, but the client decodes all of them",
                hint="make the client without decode_responses=True",
            ) from error

    def error_of(self, error: Exception) -> TransientError | UserError:
        """Returns the TransientError or UserError for an error of the client."""
        errors = self._errors
        message = f"{self._what} at {self.where}: {type(error).__name__}: {error}"
        if isinstance(error, errors.AuthenticationError | errors.AuthorizationError | errors.NoPermissionError):
            return UserError(message, hint="check user and password in the address")
        if isinstance(error, errors.InvalidResponse):
            return UserError(message, hint=_OTHER)
        if isinstance(error, errors.ConnectionError | errors.TimeoutError | OSError):
            return BrokerUnavailable(message, hint=hint_of(error, _NO_ANSWER))
        passing = isinstance(error, errors.ReadOnlyError | errors.OutOfMemoryError) or str(error).startswith(_PASSING)
        return TransientError(message) if passing else UserError(message)

    async def close(self) -> None:
        """Closes the connections of the running loop, unless the caller has made the client; those of another loop
        end with that loop. May be called twice.
        """
        client = self._clients.pop(asyncio.get_running_loop(), None) if self._ours else None
        if client is not None:
            await _closed(client)


async def _closed(client: Any) -> None:
    await client.aclose()
    await client.connection_pool.aclose()
