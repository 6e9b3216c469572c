"""What an agent's function gets: the message, where it came from, and its state."""

from typing import Any

import pyarrow as pa

from sabot.errors import NoStateBackend
from sabot.state import Overlay, StateBackend, ValueState

__all__ = ["AgentContext", "Message", "StateAccessor"]


class Message:
    """A result with a key or headers of its own: `return Message(value, key=b"acc1")`.

    `value`: bytes go as they are, anything else as JSON. `key`: bytes or str; not given: the key of the input.
    """

    __slots__ = ("headers", "key", "value")

    def __init__(
        self, value: Any, *, key: bytes | str | None = None, headers: tuple[tuple[str, bytes], ...] = ()
    ) -> None:
        self.value = value
        self.key = key.encode() if isinstance(key, str) else key
        self.headers = tuple(headers)


class StateAccessor:
    """One namespace of an agent's state. Missing keys read as None (null in the bulk form)."""

    __slots__ = ("_value", "backend", "namespace")

    def __init__(self, backend: StateBackend, namespace: str, *, scope: bytes = b"") -> None:
        self.backend = backend
        self.namespace = namespace
        self._value = ValueState(backend, namespace, scope=scope)

    async def get(self, key: Any) -> Any:
        """The value of `key`, a copy; None if there is none."""
        return await self._value.get(key)

    async def put(self, key: Any, value: Any) -> None:
        """Keep `value` (what msgpack can say) under `key`; None deletes."""
        await self._value.put(key, value)

    async def delete(self, key: Any) -> None:
        """Forget `key`."""
        await self._value.delete(key)

    def get_many(self, keys: pa.Array) -> pa.Array:
        """Values of n keys in one call, for batch agents: row i is the value of keys[i], null if there is none."""
        return self._value.get_many(keys)

    def put_many(self, keys: pa.Array, values: pa.Array) -> None:
        """Keep values[i] under keys[i]; of a key that occurs twice the last value stays; null deletes."""
        self._value.put_many(keys, values)


class AgentContext:
    """One call of an agent.

    `message` is the decoded value (the RecordBatch for a batch agent). `key` is the record's key in bytes, `timestamp` ms UTC.
    Made by the engine, state writes are kept aside until the call ends and dropped if it raises; made by hand
    (`AgentContext(message, state_backend)`), they go straight to the backend.
    """

    __slots__ = (
        "_backend",
        "_buffered",
        "_overlay",
        "_prefix",
        "_scope",
        "agent_id",
        "headers",
        "key",
        "message",
        "offset",
        "partition",
        "timestamp",
        "topic",
    )

    def __init__(
        self,
        message: Any,
        state_backend: StateBackend | None = None,
        *,
        key: bytes | None = None,
        headers: tuple[tuple[str, bytes], ...] = (),
        timestamp: int = 0,
        topic: str = "",
        partition: int = 0,
        offset: int = 0,
        agent_id: str = "",
        buffered: bool = False,
        scope: bytes = b"",
        prefix: str = "",
    ) -> None:
        self.message = message
        self.key = key
        self.headers = headers
        self.timestamp = timestamp
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.agent_id = agent_id
        self._backend = state_backend
        self._buffered = buffered
        self._overlay: Overlay | None = None
        self._scope = scope
        self._prefix = prefix

    @property
    def state_backend(self) -> StateBackend:
        """The backend as this call sees it: for `ListState(ctx.state_backend, "seen")` and the other typed states."""
        if self._backend is None:
            raise NoStateBackend()
        if not self._buffered:
            return self._backend
        if self._overlay is None:
            self._overlay = Overlay(self._backend)
        return self._overlay

    def state(self, namespace: str = "default") -> StateAccessor:
        """The agent's state: of its own key with `key=`, else shared by namespace with the app's other agents."""
        return StateAccessor(self.state_backend, self._prefix + namespace, scope=self._scope)

    def _apply(self) -> None:
        """The call ended well: its writes become the state."""
        if self._overlay is not None:
            self._overlay.apply()
