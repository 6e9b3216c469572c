"""The kinds of keyed state that user code sees, over any backend.

    ValueState                one value per key
    ListState, MapState       many values per key; adding one costs the same however many there are
    ReducingState             one value per key, made by reduce(old, new)
    AggregatingState          one accumulator per key, and a result computed from it

A key is any value that `state_key` takes: None, bool, int, float, str, bytes and tuples of these. A value is any value
that msgpack has: these, lists and dicts; a tuple is read back as a list. Anything else raises UserError, which names the
type and the namespace. Putting None deletes the key. The methods are coroutines that never suspend. Process functions,
which have no event loop, use the plain calls of PlainValue, PlainList and PlainMap, which take encoded keys.

`scope` is the encoded key of a keyed agent's record: it separates the keys of one record key from those of another. A
namespace has one kind of state.
"""

import struct
from collections.abc import Callable
from functools import lru_cache
from itertools import repeat
from typing import Any, Generic, NoReturn, TypeVar

import msgspec
import pyarrow as pa

from sabot._cython.text.json import NESTING_MAX
from sabot._cython.text.records import decode_values, encode_keys, encode_values, state_key
from sabot.base.config import checked_text
from sabot.engine.state.base import StateBackend
from sabot.errors import CorruptCheckpoint, UserError

_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_LIST, _MAP = 1, 2
_PLACES = 4096  # entries of a list or a map that are read in one call
_KINDS = {_LIST: "a list", _MAP: "a map"}
# The greatest nesting of a value that comes in as JSON, and some levels that an agent adds. All readers of state
# accept that depth.
_NESTING_MAX = NESTING_MAX + 64
_ALL: Any = object()

# The head of a list or a map, which is the value under its key: a msgpack extension (fixext 16) of its kind, first
# place, and place after the last.
_HEAD = struct.Struct(">BBQQ")
_FIXEXT_16 = 0xD8

A = TypeVar("A")
T = TypeVar("T")


class _WrongKind(Exception):
    """Raised if the head of a list or a map is found instead of a value."""


def _refuse_head(code: int, data: memoryview) -> NoReturn:
    raise _WrongKind(_KINDS.get(code, f"an extension of type {code}"))


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ext_hook=_refuse_head).decode


def unfit(value: object, room: int = _NESTING_MAX) -> str:
    """Returns the reason why msgpack would not return this value unchanged, or "". (msgspec itself accepts far more
    types.)

    `room`: the greatest allowed nesting.
    """
    kind = type(value)
    if kind in _PLAIN:
        return ""
    if not room:
        return f"nested deeper than {_NESTING_MAX}"
    inner: Any
    if kind is dict:
        if not _PLAIN.issuperset(map(type, value)):  # type: ignore[call-overload]
            return next(f"a dict key of type {_name(type(key))}" for key in value if type(key) not in _PLAIN)  # type: ignore[attr-defined]
        inner = value.values()  # type: ignore[attr-defined]
    elif kind is list or kind is tuple:
        inner = value
    else:
        return f"type {_name(kind)}"
    if _PLAIN.issuperset(map(type, inner)):
        return ""
    return next(filter(None, map(unfit, inner, repeat(room - 1))), "")


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def _hint(named: str) -> str:
    """Returns a hint for a type of numpy, if one is named, else ""."""
    return "value.item() of numpy's is a plain Python value, array.tolist() a list" if "numpy." in named else ""


@lru_cache(maxsize=1024)
def _known(namespace: str) -> str:
    """Returns the namespace if it can be a name in every database that keeps state. Raises UserError."""
    return checked_text(namespace, "state: namespace")


class _State:
    """The base of all kinds of state: the backend's calls for one namespace and one scope."""

    __slots__ = ("_backend", "_namespace", "_read", "_scope", "_write")

    def __init__(self, backend: StateBackend, namespace: str, scope: bytes = b"") -> None:
        self._backend = backend
        self._namespace = _known(namespace)
        self._scope = scope
        self._read = backend.read
        self._write = backend.write

    @property
    def backend(self) -> StateBackend:
        """The backend that stores the state."""
        return self._backend

    @property
    def namespace(self) -> str:
        """The namespace of the state, as the backend knows it. That of an agent begins with the id of its app."""
        return self._namespace

    def _key(self, key: object) -> bytes:
        try:
            return state_key(key, scope=self._scope)
        except (TypeError, ValueError) as error:
            raise UserError(f"state {self._namespace!r}: {error}", hint=_hint(_name(type(key)))) from error

    def _encoded(self, value: object) -> bytes:
        try:
            reason = "" if type(value) in _PLAIN else unfit(value)
            if not reason:
                return _encode(value)
        except (OverflowError, UnicodeEncodeError, RecursionError) as error:
            reason = str(error)
        raise UserError(
            f"state {self._namespace!r} cannot keep this {type(value).__name__}: {reason}",
            hint=_hint(reason) or "use None, bool, int (64 bit), float, str, bytes, and lists and dicts of these",
        )

    def _decoded(self, data: bytes) -> Any:
        try:
            return _decode(data)
        except _WrongKind as error:
            raise UserError(f"state {self._namespace!r} holds {error} under this key, not a value") from None

    def _head(self, kind: int, base: bytes) -> tuple[int, int]:
        """Returns the head of a list or map: (first place, place after the last), or (0, 0) if there is nothing under
        the key. Raises UserError if another kind of state is there.
        """
        data = self._read(self._namespace, base)
        if data is None:
            return 0, 0
        if len(data) == _HEAD.size:
            mark, code, first, end = _HEAD.unpack(data)
            if mark == _FIXEXT_16 and code == kind:
                return first, end
        raise UserError(f"state {self._namespace!r} does not hold {_KINDS[kind]} under this key")

    def _read_places(self, base: bytes, first: int, end: int) -> list[bytes | None]:
        """Returns the entries at these places, with None for expired ones. Reads in pieces, because a damaged head
        may claim more places than exist. Raises CorruptCheckpoint if an entry is missing that cannot have expired.
        """
        found: list[bytes | None] = []
        for start in range(first, end, _PLACES):
            keys = [state_key(n, scope=base) for n in range(start, min(start + _PLACES, end))]
            found += self._backend.read_many(self._namespace, keys)
            if found[-1] is None and not self._backend.expires:
                raise CorruptCheckpoint(
                    f"state {self._namespace!r} is damaged: a list or map of {end - first} entries lacks number {start + len(keys) - 1}",
                    hint="Sabot never writes such a list: go back to another checkpoint, or start with --fresh",
                )
        return found


def _head_bytes(kind: int, first: int, end: int) -> bytes | None:
    return _HEAD.pack(_FIXEXT_16, kind, first, end) if end > first else None


class ValueState(_State):
    """One value per key."""

    __slots__ = ()

    async def get(self, key: object) -> Any:
        """Returns the value, or None if absent."""
        data = self._read(self._namespace, self._key(key))
        return None if data is None else self._decoded(data)

    async def put(self, key: object, value: object) -> None:
        """Sets the value of the key. None removes it."""
        self._write(self._namespace, self._key(key), None if value is None else self._encoded(value))

    async def delete(self, key: object) -> None:
        """Removes the value of the key."""
        self._write(self._namespace, self._key(key), None)

    def get_many(self, keys: "pa.Array[Any]") -> "pa.Array[Any]":
        """Returns an array whose row i is the value of keys[i], or null if absent. Not a coroutine."""
        return decode_values(self._backend.read_many(self._namespace, self._keys(keys)))

    def put_many(self, keys: "pa.Array[Any]", values: "pa.Array[Any]") -> None:
        """Sets the value of keys[i] to values[i] for each row i. Null deletes; of equal keys the last row counts. Not
        a coroutine.
        """
        if len(keys) != len(values):
            raise UserError(f"state {self._namespace!r}: {len(keys)} keys, {len(values)} values")
        try:
            encoded = encode_values(values)
        except TypeError as error:
            raise UserError(f"state {self._namespace!r}: {error}") from error
        self._backend.write_many(self._namespace, self._keys(keys), encoded)

    def _keys(self, keys: "pa.Array[Any]") -> list[bytes]:
        try:
            encoded = encode_keys(keys)
        except (TypeError, ValueError) as error:
            raise UserError(f"state {self._namespace!r}: {error}") from error
        return [self._scope + key[2:] for key in encoded] if self._scope else encoded


class PlainValue(_State):
    """One value under each encoded key, by plain calls."""

    __slots__ = ()

    def value_at(self, key: bytes) -> Any:
        """Returns the value, or None if absent."""
        data = self._read(self._namespace, key)
        return None if data is None else self._decoded(data)

    def put_at(self, key: bytes, value: Any) -> None:
        """Sets the value. None removes it."""
        self._write(self._namespace, key, None if value is None else self._encoded(value))

    def decoded(self, data: bytes) -> Any:
        """Returns the value that is stored as these bytes."""
        return self._decoded(data)

    def encoded(self, value: Any) -> bytes:
        """Returns a value as the bytes to be stored. Raises UserError for a value that state cannot store."""
        return self._encoded(value)


class PlainList(_State):
    """A list under each encoded key, by plain calls. Each entry has a stored key of its own, which ends with its
    number (its place). The value under the encoded key, the head, has the first place and the place after the last.
    """

    __slots__ = ()

    def add_at(self, base: bytes, value: object) -> None:
        """Adds a value at the end of the list under this encoded key."""
        data = self._encoded(value)
        first, end = self._head(_LIST, base)
        self._write(self._namespace, state_key(end, scope=base), data)
        self._write(self._namespace, base, _head_bytes(_LIST, first, end + 1))

    def entries_at(self, base: bytes) -> list[Any]:
        """Returns all entries in the order in which they were added; [] if absent. With a ttl, expired entries are
        left out.
        """
        first, end = self._head(_LIST, base)
        if first == end:
            return []
        found = self._read_places(base, first, end)
        if found[0] is None:  # expired: the head is moved on, so that the next call does not read those places again
            gone = next((place for place, data in enumerate(found) if data is not None), len(found))
            self._write(self._namespace, base, _head_bytes(_LIST, first + gone, end))
        return [self._decoded(data) for data in found if data is not None]

    def delete_at(self, base: bytes) -> None:
        """Removes the whole list under this encoded key."""
        first, end = self._head(_LIST, base)
        if end - first > _PLACES:
            self._read_places(base, first, end)
        keys = [base, *(state_key(n, scope=base) for n in range(first, end))]
        self._backend.write_many(self._namespace, keys, [None] * len(keys))


class ListState(PlainList):
    """A list per key."""

    __slots__ = ()

    async def add(self, key: object, value: object) -> None:
        """Adds a value at the end of the list."""
        self.add_at(self._key(key), value)

    async def get(self, key: object) -> list[Any]:
        """Returns all entries in the order in which they were added; [] if absent. With a ttl, expired entries are
        left out.
        """
        return self.entries_at(self._key(key))

    async def delete(self, key: object) -> None:
        """Removes the whole list."""
        self.delete_at(self._key(key))


class PlainMap(_State):
    """A dict under each encoded key, by plain calls. A field can be any value that a key can be.

    Each field has an entry (its place, its value) under a stored key of its own. Each place stores the name of its
    field, so that `items_at` finds the fields without a scan. Removing a field moves the field at the last place into
    the free one.
    """

    __slots__ = ()

    def put_at(self, base: bytes, field: object, value: object) -> None:
        """Sets the value of the field. None removes the field."""
        if value is None:
            self.remove_at(base, field)
            return
        at = self._field(base, field)
        data = self._encoded(value)
        entry = self._read(self._namespace, at)
        if entry is None:
            first, end = self._head(_MAP, base)
            place, end = end, end + 1
        else:
            place = self._decoded(entry)[0]
            if not self._backend.expires:
                self._write(self._namespace, at, _entry(place, data))
                return
            first, end = self._head(_MAP, base)
        keys = [at, state_key(place, scope=base), base]
        self._backend.write_many(
            self._namespace, keys, [_entry(place, data), self._encoded(field), _head_bytes(_MAP, first, end)]
        )

    def value_at(self, base: bytes, field: object) -> Any:
        """Returns the value of the field, or None if absent."""
        entry = self._read(self._namespace, self._field(base, field))
        return None if entry is None else self._decoded(entry)[1]

    def items_at(self, base: bytes) -> dict[Any, Any]:
        """Returns all fields and values; {} if absent. A tuple as a field is read back as a tuple."""
        first, end = self._head(_MAP, base)
        if first == end:
            return {}
        places = self._read_places(base, first, end)
        if places[0] is None:  # expired, see PlainList.entries_at
            gone = next((n for n, data in enumerate(places) if data is not None), len(places))
            self._write(self._namespace, base, _head_bytes(_MAP, first + gone, end))
        fields = [hashable(self._decoded(data)) for data in places if data is not None]
        entries = self._backend.read_many(self._namespace, [self._field(base, field) for field in fields])
        return {
            field: self._decoded(entry)[1] for field, entry in zip(fields, entries, strict=True) if entry is not None
        }

    def delete_at(self, base: bytes) -> None:
        """Removes all fields."""
        first, end = self._head(_MAP, base)
        fields = [hashable(self._decoded(d)) for d in self._read_places(base, first, end) if d is not None]
        places = [state_key(n, scope=base) for n in range(first, end)]
        keys = [base, *places, *(self._field(base, name) for name in fields)]
        self._backend.write_many(self._namespace, keys, [None] * len(keys))

    def remove_at(self, base: bytes, field: object) -> None:
        """Removes one field."""
        first, end = self._head(_MAP, base)
        at = self._field(base, field)
        entry = self._read(self._namespace, at)
        if entry is None:
            return
        place = self._decoded(entry)[0]
        self._write(self._namespace, at, None)
        # Moving an entry would renew its expiry; the hole is removed when its neighbours expire.
        if self._backend.expires:
            self._write(self._namespace, state_key(place, scope=base), None)
            return
        last = state_key(end - 1, scope=base)
        moved = self._read(self._namespace, last)
        if place != end - 1 and moved is not None:
            moved_at = self._field(base, hashable(self._decoded(moved)))
            moved_entry = self._read(self._namespace, moved_at)
            if moved_entry is not None:
                self._write(self._namespace, moved_at, _entry(place, self._encoded(self._decoded(moved_entry)[1])))
            self._write(self._namespace, state_key(place, scope=base), moved)
        self._write(self._namespace, last, None)
        self._write(self._namespace, base, _head_bytes(_MAP, first, end - 1))

    def _field(self, base: bytes, field: object) -> bytes:
        try:
            return state_key((field,), scope=base)  # in a tuple, so that no field looks like a place
        except (TypeError, ValueError) as error:
            raise UserError(f"state {self._namespace!r}: field: {error}") from error


class MapState(PlainMap):
    """A dict per key."""

    __slots__ = ()

    async def put(self, key: object, field: object, value: object) -> None:
        """Sets the value of the field. None removes the field."""
        self.put_at(self._key(key), field, value)

    async def get(self, key: object, field: object) -> Any:
        """Returns the value of the field, or None if absent."""
        return self.value_at(self._key(key), field)

    async def items(self, key: object) -> dict[Any, Any]:
        """Returns all fields and values; {} if absent. A tuple as a field is read back as a tuple."""
        return self.items_at(self._key(key))

    async def delete(self, key: object, field: object = _ALL) -> None:
        """Removes one field, or without `field` all of them."""
        if field is _ALL:
            self.delete_at(self._key(key))
        else:
            self.remove_at(self._key(key), field)


def _entry(place: int, data: bytes) -> bytes:
    return b"\x92" + _encode(place) + data  # a msgpack array of two


def hashable(field: Any) -> Any:
    """Returns a key in a form that a dict accepts: lists in it become tuples."""
    return tuple(map(hashable, field)) if isinstance(field, list) else field


def _made(value: T, function: str, state: ValueState) -> T:
    """Returns what a user's function has made of the old value. Raises UserError for None, which would delete it."""
    if value is None:
        raise UserError(
            f"state {state._namespace!r}: {function} returned None",
            hint="return the new value, also if the function changes the old one in place; delete(key) deletes it",
        )
    return value


class ReducingState:
    """One value per key. `add(key, v)` replaces it by `reduce(old, v)`; the first `v` is stored unchanged."""

    __slots__ = ("_reduce", "_state")

    def __init__(
        self, backend: StateBackend, namespace: str, *, reduce: Callable[[Any, Any], Any], scope: bytes = b""
    ) -> None:
        self._state = ValueState(backend, namespace, scope=scope)
        self._reduce = reduce

    async def add(self, key: object, value: object) -> None:
        """Replaces the value of the key by reduce(old value, `value`). If the key has no value, stores `value`. Raises
        UserError if `reduce` returns None.
        """
        old = await self._state.get(key)
        await self._state.put(key, value if old is None else _made(self._reduce(old, value), "reduce", self._state))

    async def get(self, key: object) -> Any:
        """Returns the reduced value, or None if absent."""
        return await self._state.get(key)

    async def delete(self, key: object) -> None:
        """Removes the value of the key."""
        await self._state.delete(key)


class AggregatingState(Generic[A]):
    """One accumulator per key: `create()` makes it, `add(accumulator, v)` returns the next one, and a read returns
    `result(accumulator)`.

    The accumulator must be a value that state can keep; `add` may change the given one and return it. If it returns
    None, a UserError is raised.
    """

    __slots__ = ("_add", "_create", "_result", "_state")

    def __init__(
        self,
        backend: StateBackend,
        namespace: str,
        *,
        create: Callable[[], A],
        add: Callable[[A, Any], A],
        result: Callable[[A], Any],
        scope: bytes = b"",
    ) -> None:
        self._state = ValueState(backend, namespace, scope=scope)
        self._create = create
        self._add = add
        self._result = result

    async def add(self, key: object, value: object) -> None:
        old = await self._state.get(key)
        accumulator = self._add(self._create() if old is None else old, value)
        await self._state.put(key, _made(accumulator, "add", self._state))

    async def get(self, key: object) -> Any:
        """Returns the result, or None if nothing was added."""
        accumulator = await self._state.get(key)
        return None if accumulator is None else self._result(accumulator)

    async def delete(self, key: object) -> None:
        await self._state.delete(key)
