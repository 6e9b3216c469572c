"""Views of a backend that intercept reads and writes: writes of a call that are applied when it ends, or undone if it
fails; and values as they were at another time.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar, TypeVarTuple

from sabot.engine.state.base import LocalBackend, Snapshot, StateBackend
from sabot.engine.state.expiry import EventExpiry, Expiry
from sabot.errors import SabotError, UserError

_UNKNOWN = b"\x00unknown"  # compared by identity

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _CallView(StateBackend):
    """A view of a backend that can only read and write: operations on the whole backend raise UserError."""

    __slots__ = ()

    def items(self, namespace: str) -> Iterator[tuple[bytes, bytes]]:
        _refuse("items")

    def namespaces(self) -> list[str]:
        _refuse("namespaces")

    async def snapshot(self) -> Snapshot:
        _refuse("snapshot")

    async def restore(self, snapshot: Snapshot) -> None:
        _refuse("restore")

    async def close(self) -> None:
        _refuse("close")


class Overlay(_CallView):
    """Keeps writes over a base backend. Reads see these writes first, then the base. `apply` writes them to the base,
    `discard` drops them; then the overlay can be used again.
    """

    __slots__ = ("_base", "_writes", "expires")

    def __init__(self, base: StateBackend) -> None:
        self._base = base
        self.expires = base.expires
        self._writes: dict[str, dict[bytes, bytes | None]] = {}

    def read(self, namespace: str, key: bytes) -> bytes | None:
        writes = self._writes.get(namespace)
        if writes is not None:
            value = writes.get(key, _UNKNOWN)
            if value is not _UNKNOWN:
                return value
        return self._base.read(namespace, key)

    def write(self, namespace: str, key: bytes, value: bytes | None) -> None:
        writes = self._writes.get(namespace)
        if writes is None:
            writes = self._writes[namespace] = {}
        writes[key] = value

    def read_many(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        values = self._base.read_many(namespace, keys)
        writes = self._writes.get(namespace)
        if writes:
            values = [writes.get(key, value) for key, value in zip(keys, values, strict=True)]
        return values

    def write_many(self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        self._writes.setdefault(namespace, {}).update(zip(keys, values, strict=True))

    def apply(self) -> None:
        """Writes all entries to the base, in one call per namespace."""
        for namespace, writes in self._writes.items():
            if len(writes) == 1:
                for key, value in writes.items():
                    self._base.write(namespace, key, value)
            else:
                self._base.write_many(namespace, list(writes), list(writes.values()))
        self._writes.clear()

    def discard(self) -> None:
        """Drops all writes."""
        self._writes.clear()

    def statistics(self) -> dict[str, int]:
        """Returns the keys and bytes of the writes that it keeps."""
        tables = self._writes.values()
        return {
            "keys": sum(map(len, tables)),
            "bytes": sum(len(key) + len(value or b"") for table in tables for key, value in table.items()),
        }


class HeldWrites(Overlay):
    """Wraps a user's own backend, whose `snapshot` may read the values some time after it was called. Writes between
    `hold` and `release` are stored here, so that they are not in the snapshot; reads return them.
    """

    __slots__ = ("_holding",)

    def __init__(self, base: StateBackend) -> None:
        super().__init__(base)
        self._holding = False

    def hold(self) -> None:
        """Stores writes here from now on, so that they are not in the snapshot that is being taken.

        Raises SabotError if an earlier snapshot is still being taken: when it ends, its held writes are applied to
        the base, and would be in the new snapshot.
        """
        if self._holding:
            raise SabotError(
                "the state backend still takes the snapshot of an earlier checkpoint",
                hint="its snapshot() takes longer than checkpoint_timeout=: raise that, or make it faster",
            )
        self._holding = True

    def release(self) -> None:
        """Writes the held writes to the base. Called when the snapshot no longer needs the base."""
        self._holding = False
        self.apply()

    def write(self, namespace: str, key: bytes, value: bytes | None) -> None:
        if self._holding:
            super().write(namespace, key, value)
        else:
            self._base.write(namespace, key, value)

    def write_many(self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        if self._holding:
            super().write_many(namespace, keys, values)
        else:
            self._base.write_many(namespace, keys, values)


class ExpiringOverlay(Overlay):
    """An overlay for values with a time to live. It stores with each write the event time at which it was made; the
    time to live begins then.
    """

    __slots__ = ("_expiry", "_put_at")

    def __init__(self, base: LocalBackend, expiry: EventExpiry) -> None:
        super().__init__(base)
        self._expiry = expiry
        self._put_at: dict[tuple[str, bytes], int] = {}

    def read(self, namespace: str, key: bytes) -> bytes | None:
        return None if self._is_over(namespace, key) else super().read(namespace, key)

    def write(self, namespace: str, key: bytes, value: bytes | None) -> None:
        self._put_at[namespace, key] = self._expiry.now_ms
        super().write(namespace, key, value)

    def read_many(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        values = super().read_many(namespace, keys)
        return [None if self._is_over(namespace, key) else value for key, value in zip(keys, values, strict=True)]

    def write_many(self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        self._put_at.update(((namespace, key), self._expiry.now_ms) for key in keys)
        super().write_many(namespace, keys, values)

    def apply(self) -> None:
        now_ms = self._expiry.now_ms
        for namespace, writes in self._writes.items():
            for key, value in writes.items():
                self._expiry.now_ms = self._put_at[namespace, key]
                self._base.write(namespace, key, value)
        self._expiry.now_ms = now_ms
        self.discard()

    def discard(self) -> None:
        self._put_at.clear()
        super().discard()

    keep, undo = apply, discard

    def _is_over(self, namespace: str, key: bytes) -> bool:
        at = self._put_at.get((namespace, key))
        return at is not None and at + self._expiry.ttl_ms <= self._expiry.now_ms


class LoggedWrites(_CallView):
    """Writes to the base, and logs the earlier values. `keep` empties the log; `undo` restores the values in it.

    `log`: namespace, key, value before, namespace, key, value before, … A caller that has just read the value may
    write to the base itself and append to the log.
    """

    __slots__ = ("_base", "expires", "log")

    def __init__(self, base: StateBackend) -> None:
        self._base = base
        self.expires = base.expires
        self.log: list[Any] = []

    def read(self, namespace: str, key: bytes) -> bytes | None:
        return self._base.read(namespace, key)

    def write(self, namespace: str, key: bytes, value: bytes | None) -> None:
        self.log.extend((namespace, key, self._base.read(namespace, key)))
        self._base.write(namespace, key, value)

    def read_many(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._base.read_many(namespace, keys)

    def write_many(self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        for key, before in zip(keys, self._base.read_many(namespace, keys), strict=True):
            self.log.extend((namespace, key, before))
        self._base.write_many(namespace, keys, values)

    def keep(self) -> None:
        """Makes the writes permanent."""
        self.log.clear()

    def undo(self) -> None:
        """Undoes the writes since the last `keep`."""
        for at in range(len(self.log) - 3, -1, -3):
            self._base.write(*self.log[at : at + 3])
        self.log.clear()

    def statistics(self) -> dict[str, int]:
        return self._base.statistics()


class StateAt(_CallView):
    """The values of a backend at a time other than the clock's: values that had expired by then are absent, and the
    time to live of written values begins then.
    """

    __slots__ = ("_base", "_expiry", "_now_ms")

    expires = True

    def __init__(self, base: StateBackend, expiry: Expiry, now_ms: Callable[[], int]) -> None:
        """`expiry`: of the backend. `now_ms`: returns the time in ms since 1970."""
        self._base, self._expiry, self._now_ms = base, expiry, now_ms

    def read(self, namespace: str, key: bytes) -> bytes | None:
        return self._at_its_time(self._base.read, namespace, key)

    def write(self, namespace: str, key: bytes, value: bytes | None) -> None:
        self._at_its_time(self._base.write, namespace, key, value)

    def read_many(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._at_its_time(self._base.read_many, namespace, keys)

    def write_many(self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        self._at_its_time(self._base.write_many, namespace, keys, values)

    def statistics(self) -> dict[str, int]:
        return self._base.statistics()

    def _at_its_time(self, do: Callable[[*Ts], T], *given: *Ts) -> T:
        self._expiry.at_ms = self._now_ms()
        try:
            return do(*given)
        finally:
            self._expiry.at_ms = None


def _refuse(what: str) -> NoReturn:
    raise UserError(
        f"{what}() is not possible on the state of one call, which can only be read and written",
        hint="call it on the backend itself",
    )
