"""Hot state: the latest state of an agent, in memory or in Redis. In Redis, other processes can read it at once."""

import math
from typing import Any

import msgspec

from sabot.base.config import Duration, checked_name, parse_bytes, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.connectors.redis.server import RedisServer
from sabot.errors import UNREADABLE, DataError, UserError


@answers_wrong_options
class HotState:
    """A store of values by name, such as the latest state of an agent. Each save replaces the earlier value of the
    name. If the values are stored in Redis, other processes can read them. They are not used to restore jobs.

    - `client`: a `redis.asyncio.Redis`, which the caller closes, or the address of a server. None stores the values in
      the memory of this process.
    - `prefix`: the prefix of the keys in Redis.
    - `ttl`: the time for which a value is kept after it was saved. None keeps it until `remove` is called.
    - `max_size`: the most bytes that one value may have as JSON.
    """

    def __init__(
        self,
        client: Any = None,
        *,
        prefix: str = "sabot:hot",
        ttl: Duration | None = "1h",
        max_size: str | int = "1MB",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._server = None if client is None else RedisServer.of(client, "hot state", "HotState")
        self._prefix = prefix
        self._ttl_s = None if ttl is None else parse_seconds(ttl, name="HotState: ttl", zero=False)
        self._most = parse_bytes(max_size, name="HotState: max_size")
        self._clock = clock
        # by name: the state as JSON, and the time until which it is kept
        self._here: dict[str, tuple[bytes, float]] = {}

    async def save(self, name: str, state: Any) -> None:
        """Saves a value under a name, and replaces an earlier value. Raises UserError if JSON cannot represent the
        value or if it is larger than `max_size`, and TransientError if the server does not answer.
        """
        checked_name(name, "hot state: name")
        try:
            data = msgspec.json.encode(state)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise UserError(f"hot state {name} cannot be written as JSON: {error}") from error
        if len(data) > self._most:
            raise UserError(
                f"hot state {name} has {len(data):,} bytes, and {self._most:,} are allowed",
                hint="HotState(max_size=…), or keep less of it",
            )
        if self._server is None:
            self._keep_here(name, data)
            return
        until = None if self._ttl_s is None else max(1, round(self._ttl_s * 1000))
        with self._server.explained():
            await self._server.client.set(f"{self._prefix}:{name}", data, px=until)

    def _keep_here(self, name: str, data: bytes) -> None:
        now = self._clock.monotonic()
        self._here = {each: kept for each, kept in self._here.items() if kept[1] > now}
        self._here[name] = (data, math.inf if self._ttl_s is None else now + self._ttl_s)

    async def load(self, name: str) -> Any:
        """Returns the value of this name, or None if there is none or it is older than `ttl`. Raises TransientError if
        the server does not answer, and DataError if the stored bytes are not JSON.
        """
        data: bytes | str | None
        if self._server is None:
            data, until = self._here.get(name, (None, math.inf))
            data = data if self._clock.monotonic() < until else None
        else:
            with self._server.explained():
                data = await self._server.client.get(f"{self._prefix}:{name}")
        if data is None:
            return None
        try:
            return msgspec.json.decode(data)
        except UNREADABLE as error:
            hint = "give HotState a prefix= of its own"
            raise DataError(f"hot state {name} cannot be read: {error}", hint=hint) from error

    async def remove(self, name: str) -> None:
        """Removes the value of this name, if there is one. Raises TransientError if the server does not answer."""
        if self._server is None:
            self._here.pop(name, None)
            return
        with self._server.explained():
            await self._server.client.delete(f"{self._prefix}:{name}")

    async def close(self) -> None:
        """Closes the connections that the store itself has opened, and removes the values that are stored in memory.
        Values in Redis remain.
        """
        self._here.clear()
        if self._server is not None:
            await self._server.close()
