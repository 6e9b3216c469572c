"""Reads the state of agents from a checkpoint, as a table, without the program that wrote it.

Agents keep bytes under (namespace, key), in the layout of `values`. A list or a map is one row here, as JSON.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pyarrow as pa

from sabot._cython.text.records import state_key
from sabot.engine.state.opening import load_snapshot
from sabot.errors import UNREADABLE, CorruptCheckpoint, UserError

_GROUP_BYTES = 2
_EXPIRY_BYTES = 8
_LIST, _MAP = 1, 2  # codes of the msgpack extensions for the heads of a list and a map, see `values`
_MOST_INT64 = 2**63 - 1
_SCALARS: dict[type, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bytes: pa.binary(),
}


class SavedApp(Protocol):
    """The fields of `checkpoint.Manifest` that reading needs."""

    @property
    def checkpoint_id(self) -> int: ...
    @property
    def created_ms(self) -> int: ...
    @property
    def tasks(self) -> Mapping[str, Any]: ...
    def state_directory(self, task: str, name: str) -> Path: ...


def namespaces_in(directory: Path) -> list[str]:
    """Returns the namespaces that have entries. Reads every key. Raises CorruptCheckpoint for files that are not
    state of Sabot.
    """
    return [namespace for namespace, _ in groupby(load_snapshot(directory).entries(), key=lambda entry: entry[0])]


def read_namespaces(
    directory: Path,
    now_ms: int,
    wanted: Callable[[str], bool],
    *,
    by_record: bool | None = None,
    key: Any = None,
    groups: range | None = None,
) -> pa.Table:
    """Returns a table of the values that a backend saved in `directory`: namespace, [record_key,] key, value, in the
    order of namespaces and stored keys.

    `by_record`: True if keys are scoped by the key of the record, which then is the column record_key; None to find
    out whether all are. `key`: only the rows of this key (of the record, if there is one); a text is also tried as
    JSON. `groups`: only the rows of these key groups, with keys and values as JSON text, so that all pages are alike.
    Else a column of keys or values has their own type if all are of one scalar type, or is JSON text. A list becomes a
    JSON list; a map becomes a JSON object, or a list of pairs if some field is not text. Values that had expired at
    `now_ms` are left out. Raises CorruptCheckpoint for files that are not state of Sabot, UserError for a key that
    cannot be one.
    """
    spaces: list[str] = []
    keys: list[list[Any]] = []
    values: list[Any] = []
    chosen = None if key is None and groups is None else _choice(key, groups)
    for namespace, entries in _by_namespace(directory, now_ms, wanted, chosen):
        for parts, value in _values(sorted(entries), directory):
            spaces.append(namespace)
            keys.append(parts)
            values.append(value)
    if by_record is None:
        by_record = bool(keys) and all(len(parts) == 2 for parts in keys)
    column = plain_column if groups is None else json_column
    columns = {"namespace": pa.array(spaces, pa.string())}
    if by_record:
        columns["record_key"] = column([parts[0] for parts in keys])
    columns["key"] = column([parts[-1] for parts in keys])
    columns["value"] = column(values)
    return pa.table(columns)


def key_candidates(key: Any) -> list[Any]:
    """Returns the values that a key may stand for: itself; for text, which may come from a command line, also its
    value as JSON and its bytes.
    """
    if not isinstance(key, str):
        return [key]
    found: list[Any] = [key, key.encode()]
    try:
        found.append(msgspec.json.decode(key))
    except UNREADABLE:
        return found
    return found if not isinstance(found[-1], dict) else found[:-1]


def _choice(key: Any, groups: range | None) -> Callable[[bytes], bool]:
    """Returns a function that says of a stored key if it is `key`, or, if that is None, if it is in one of the groups."""
    if key is None:
        assert groups is not None
        return lambda stored: int.from_bytes(stored[:_GROUP_BYTES], "big") in groups
    prefixes = tuple(_prefixes(key))
    return lambda stored: stored.startswith(prefixes)


def _prefixes(key: Any) -> Iterator[bytes]:
    """Yields prefixes of stored keys, one for each value that the key may stand for. Raises UserError if none can be
    a key.
    """
    for each in key_candidates(key):
        try:
            yield state_key(each)
        except (TypeError, ValueError, OverflowError) as error:
            if each is key:
                raise UserError(
                    f"key {key!r}: {error}", hint="give the key in the form that the agent's records have"
                ) from error


def plain_column(values: list[Any]) -> "pa.Array[Any]":
    """Returns a column of the values' own type if they are all of one scalar type (None: null), else of JSON text."""
    kinds = {type(value) for value in values if value is not None}
    kind = _SCALARS.get(next(iter(kinds), str)) if len(kinds) <= 1 else None
    if kind == pa.int64() and any(value > _MOST_INT64 for value in values if value is not None):
        kind = pa.uint64() if all(value >= 0 for value in values if value is not None) else None
    if kind is not None:
        return pa.array(values, kind)
    return pa.array([None if value is None else json_text(value) for value in values], pa.string())


def json_column(values: list[Any]) -> "pa.Array[Any]":
    """Returns a column of the values as JSON text."""
    return pa.array(map(json_text, values), pa.string())


def json_text(value: Any) -> str:
    """Returns the value as JSON text. Bytes become base64; a dict with keys that JSON does not allow becomes a list
    of pairs.
    """
    return msgspec.json.encode(_jsonable(value)).decode()


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        if all(isinstance(name, str) for name in value):
            # map() takes one frame per level, so deep values fit
            return dict(zip(value, map(_jsonable, value.values()), strict=True))
        return list(map(list, zip(map(_jsonable, value), map(_jsonable, value.values()), strict=True)))
    return list(map(_jsonable, value)) if isinstance(value, list | tuple) else value


def _by_namespace(
    directory: Path, now_ms: int, wanted: Callable[[str], bool], chosen: Callable[[bytes], bool] | None
) -> Iterator[tuple[str, Iterator[tuple[bytes, bytes]]]]:
    """Yields pairs of a namespace and its keys and values, without expired values, limited to the chosen keys."""
    snapshot = load_snapshot(directory)
    now_mark = now_ms.to_bytes(_EXPIRY_BYTES, "big")

    def alive(entries: Iterator[tuple[str, bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        for _, key, value in entries:
            if chosen is not None and not chosen(key):
                continue
            if not snapshot.sealed:
                yield key, value
            elif value[:_EXPIRY_BYTES] > now_mark:
                yield key, value[_EXPIRY_BYTES:]

    for namespace, entries in groupby(snapshot.entries(), key=lambda entry: entry[0]):
        if wanted(namespace):
            yield namespace, alive(entries)


def _values(entries: list[tuple[bytes, bytes]], where: Path) -> Iterator[tuple[list[Any], Any]]:
    """Yields, for each value, list and map, the parts of its key (`_parts`) and the value. `entries`: in key order,
    so that the entries of a list or map follow its head.
    """
    place = 0
    while place < len(entries):
        base, data = entries[place]
        place += 1
        value = _decoded(data, where)
        if isinstance(value, msgspec.msgpack.Ext):
            begin = place
            while place < len(entries) and entries[place][0].startswith(base):
                place += 1
            value = _gathered(value.code, base, entries[begin:place], where)
        yield _parts(base[_GROUP_BYTES:], where), value


def _gathered(kind: int, base: bytes, entries: list[tuple[bytes, bytes]], where: Path) -> Any:
    """Returns a list or a map from its entries."""
    below = [(_parts(key[len(base) :], where)[0], _decoded(data, where)) for key, data in entries]
    if kind == _LIST:
        return [value for _, value in sorted(below, key=lambda pair: pair[0])]
    if kind != _MAP:
        raise CorruptCheckpoint(f"{where} has state of kind {kind}, which this version of Sabot cannot read")
    fields = [(field[0], value) for field, value in below if isinstance(field, list)]
    fields.sort(key=lambda pair: pair[1][0])  # by place, the order in which they were added
    if all(isinstance(field, str) for field, _ in fields):
        return {field: value for field, (_, value) in fields}
    return [[field, value] for field, (_, value) in fields]


def _parts(data: bytes, where: Path) -> list[Any]:
    """Returns the consecutive msgpack values of a stored key: the record's key (if any), the user's key, and a place
    or a field (if any).
    """
    for count in (1, 2, 3):
        try:
            parts: list[Any] = msgspec.msgpack.decode(bytes([0x90 + count]) + data)
        except UNREADABLE:
            continue
        return parts
    raise CorruptCheckpoint(f"{where}: {data[:40]!r} is not a key of state")


def _decoded(data: bytes, where: Path) -> Any:
    try:
        return msgspec.msgpack.decode(data)
    except UNREADABLE as error:
        raise CorruptCheckpoint(f"{where}: {data[:40]!r} is not a value of state: {error}") from error
