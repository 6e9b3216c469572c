"""The state in a checkpoint in pages, and the difference of two checkpoints, as records: for the command line and the console.

State is read by key group, so that a page needs the memory of a page and not of the state. A step whose keys do not divide it
is read whole.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import pyarrow as pa

from sabot._cython.groups.partition import KEY_GROUPS
from sabot.engine.checkpoint.inspection import AppCheckpoints
from sabot.engine.checkpoint.manifest import Manifest
from sabot.engine.operators.reading import is_divided, keys_of, operators_of, state_of
from sabot.errors import UserError

PAGE_ROWS = 100
MOST_DIFFERENCES = 1_000
_ROWS_AT_ONCE = 10_000  # of a difference, in each of the two checkpoints
_GROUPS_AT_FIRST = 16  # where the number of rows is not known
_ALL_GROUPS = range(KEY_GROUPS)
_SHARED = ("namespace", "window_start", "window_end", "side")  # with the key columns they say which row it is


@dataclass(frozen=True)
class StateOwner:
    """A step or an agent that keeps state. `rows`: about how many rows it has, or None if that is unknown without reading them.
    `bytes`: the size of its files, 0 for state that several agents share.
    """

    name: str
    kind: str
    text: str
    rows: int | None
    bytes: int


@dataclass(frozen=True)
class StatePage:
    """A page of state. `rows`: values that JSON can say, by column. `following`: the cursor of the next page, or ""."""

    columns: list[str]
    rows: list[dict[str, Any]]
    following: str = ""


@dataclass(frozen=True)
class KeyChange:
    """A key whose state differs in two checkpoints. `before`, `after`: its rows, values by column, without those of the key."""

    kind: Literal["added", "removed", "changed"]
    key: dict[str, Any]
    before: list[dict[str, Any]]
    after: list[dict[str, Any]]


@dataclass(frozen=True)
class StateDifference:
    """The difference of the state of one owner in two checkpoints. `unread`: the bytes of files that are equal in both, and so were
    not read. `more`: True if there are more changes than these.
    """

    columns: list[str]
    keys: list[str]
    changes: list[KeyChange]
    unread: int
    more: bool


def state_owners(manifest: Manifest) -> list[StateOwner]:
    """Returns the steps and agents that keep state in a checkpoint."""
    sizes: dict[str, int] = {}
    for task in manifest.tasks.values():
        for name, folder in task.states.items():
            sizes[name] = sizes.get(name, 0) + sum(file.size for _, file in _files(manifest, folder))
    return [
        StateOwner(each.id, each.kind, each.text, each.rows, sizes.get(each.id, 0)) for each in operators_of(manifest)
    ]


def state_rows(
    manifest: Manifest, owner: str, *, key: str | None = None, cursor: str = "", most: int = PAGE_ROWS
) -> StatePage:
    """Returns a page of at least `most` rows, if there are so many, in the order of key groups; with a key, all of its rows up to `most`.

    `cursor`: that of the page before, or "" for the first. Raises UserError for an owner, key or cursor that does not exist, and
    CorruptCheckpoint.
    """
    if key is not None:
        table = state_of(manifest, owner, key, _ALL_GROUPS)
        return StatePage(table.schema.names, _rows(manifest, owner, table.slice(0, most)))
    begin, end, skipped = _at(cursor)
    size = end - begin if end else groups_for(manifest, owner, most)
    columns: dict[str, None] = {}
    found: list[dict[str, Any]] = []
    while begin < KEY_GROUPS and len(found) < most:
        end = min(begin + size, KEY_GROUPS)
        table = state_of(manifest, owner, None, range(begin, end))
        columns.update(dict.fromkeys(table.schema.names))
        stop = skipped + most - len(found)
        found += _rows(manifest, owner, table.slice(skipped, stop - skipped))
        if stop < table.num_rows:
            return StatePage([*columns], found, f"{begin}-{end}-{stop}")
        begin, skipped, size = end, 0, 2 * size
    following = f"{begin}-{min(begin + size, KEY_GROUPS)}-0" if begin < KEY_GROUPS else ""
    return StatePage([*columns], found, following)


def state_difference(before: Manifest, after: Manifest, owner: str, *, most: int = MOST_DIFFERENCES) -> StateDifference:
    """Returns the keys of an owner whose state differs in two checkpoints of an app, at most `most`.

    A part of the state whose files have equal hashes in both is not read. Raises UserError for an owner that neither has, and
    CorruptCheckpoint.
    """
    both = (before, after)
    # A namespace, or a name without the app's, is in no list of owners: it is read in both, which raises if one does not have it.
    known = [each for each in both if owner in {one.id for one in operators_of(each)}] or both
    equal, unread = _equal_parts(before, after, owner)
    older, newer = (_without(each, owner, equal) if each in known else None for each in both)
    columns: dict[str, None] = {}
    keys: dict[str, None] = {}
    found: list[KeyChange] = []
    size = min(groups_for(each, owner, _ROWS_AT_ONCE) for each in known)
    for begin in range(0, KEY_GROUPS, size):
        groups = range(begin, min(begin + size, KEY_GROUPS))
        rows: list[list[dict[str, Any]]] = []
        for manifest in (older, newer):
            table = pa.table({}) if manifest is None else state_of(manifest, owner, None, groups)
            columns.update(dict.fromkeys(table.schema.names))
            if manifest is not None:
                keys.update(dict.fromkeys(_identity(manifest, owner, table)))
            rows.append([] if manifest is None else _rows(manifest, owner, table))
        for change in _changes(rows[0], rows[1], [*keys]):
            if len(found) == most:
                return StateDifference([*columns], [*keys], found, unread, True)
            found.append(change)
    return StateDifference([*columns], [*keys], found, unread, False)


# The same for another process, which opens the checkpoint at its place. An id of 0 names the newest checkpoint.


@dataclass(frozen=True)
class OwnersOfState:
    """The owners of the state in one checkpoint. `written`: milliseconds since 1970."""

    checkpoint: int
    written: int
    owners: list[StateOwner]


def owners_in(place: str, checkpoint_id: int) -> OwnersOfState:
    """Returns the result of `state_owners`. Raises UserError for a checkpoint that is not there."""
    with _opened(place, checkpoint_id) as manifest:
        return OwnersOfState(manifest.checkpoint_id, manifest.created_ms, state_owners(manifest))


def rows_in(place: str, checkpoint_id: int, owner: str, key: str | None, cursor: str) -> StatePage:
    """Returns the result of `state_rows`, and raises its errors."""
    with _opened(place, checkpoint_id) as manifest:
        return state_rows(manifest, owner, key=key, cursor=cursor)


def all_rows_in(place: str, checkpoint_id: int, owner: str) -> Iterator[StatePage]:
    """Yields all pages of `state_rows`, with more rows each, and raises its errors."""
    with _opened(place, checkpoint_id) as manifest:
        page = state_rows(manifest, owner, most=_ROWS_AT_ONCE)
        yield page
        while page.following:
            page = state_rows(manifest, owner, cursor=page.following, most=_ROWS_AT_ONCE)
            yield page


def difference_in(place: str, checkpoint_id: int, older_place: str, older_id: int, owner: str) -> StateDifference:
    """Returns the result of `state_difference`, and raises its errors."""
    with _opened(place, checkpoint_id) as manifest, _opened(older_place, older_id) as older:
        return state_difference(older, manifest, owner)


@contextmanager
def _opened(place: str, checkpoint_id: int) -> Iterator[Manifest]:
    app = AppCheckpoints(place)
    try:
        yield app.manifest(checkpoint_id or None)
    finally:
        app.storage.release_restored()


def groups_for(manifest: Manifest, owner: str, most: int) -> int:
    """Returns the number of key groups that have about `most` rows."""
    if not is_divided(manifest, owner):
        return KEY_GROUPS
    rows = {each.id: each.rows for each in operators_of(manifest)}.get(owner)
    return _GROUPS_AT_FIRST if rows is None else max(1, min(KEY_GROUPS, KEY_GROUPS * most // max(rows, 1)))


def _at(cursor: str) -> tuple[int, int, int]:
    """Returns the first key group of a page, the one after its last, and the number of rows to skip. Raises UserError."""
    parts = cursor.split("-") if cursor else ["0", "0", "0"]
    if len(parts) == 3 and all(each.isascii() and each.isdigit() and len(each) < 10 for each in parts):
        begin, end, skipped = map(int, parts)
        if begin <= end <= KEY_GROUPS and (begin < end or not cursor):
            return begin, end, skipped
    raise UserError("there is no such page of state", hint="begin with the first page")


def _rows(manifest: Manifest, owner: str, table: pa.Table) -> list[dict[str, Any]]:
    """Returns the rows as values that JSON can say. Keys and values of agents are read from their text: pages of groups have JSON."""
    rows: list[dict[str, Any]] = msgspec.to_builtins(table.to_pylist(), str_keys=True)
    if any(task.meta.get("operators", {}).get(owner) for task in manifest.tasks.values()):
        return rows
    texts = [name for name in ("record_key", "key", "value") if name in table.schema.names]
    return [row | {name: json.loads(row[name]) for name in texts} for row in rows]


def _identity(manifest: Manifest, owner: str, table: pa.Table) -> list[str]:
    """Returns the columns whose values say which row it is; all columns if the keys are not known."""
    keys = [*keys_of(manifest, owner, table), *_SHARED]
    return [name for name in table.schema.names if name in keys] or table.schema.names


def _changes(older: list[dict[str, Any]], newer: list[dict[str, Any]], keys: list[str]) -> Iterator[KeyChange]:
    before, after = _by_key(older, keys), _by_key(newer, keys)
    for text in sorted(before.keys() | after.keys()):
        was, now = before.get(text, []), after.get(text, [])
        if json.dumps(was) != json.dumps(now):  # as text: NaN is not equal to itself
            key = {name: (was or now)[0].get(name) for name in keys}
            kind: Literal["added", "removed", "changed"] = "changed" if was and now else "added" if now else "removed"
            yield KeyChange(kind, key, _values(was, keys), _values(now, keys))


def _by_key(rows: list[dict[str, Any]], keys: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows by the text of their keys. The rows of a key are in an order that depends on nothing else."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(json.dumps([row.get(name) for name in keys]), []).append(row)
    return {key: sorted(alike, key=json.dumps) for key, alike in found.items()}


def _values(rows: list[dict[str, Any]], keys: list[str]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in keys} for row in rows]


def _equal_parts(before: Manifest, after: Manifest, owner: str) -> tuple[set[str], int]:
    """Returns the tasks whose part of the owner's state is the same in both checkpoints, and the bytes of its files."""
    equal, nbytes = set(), 0
    for name in before.tasks.keys() & after.tasks.keys():
        was, now = before.tasks[name].states.get(owner), after.tasks[name].states.get(owner)
        facts = [each.tasks[name].meta.get("operators", {}).get(owner) for each in (before, after)]
        if was is None or now is None or facts[0] != facts[1]:
            continue
        files = _files(after, now)
        hashes = [sorted((path, file.sha256) for path, file in each) for each in (_files(before, was), files)]
        if hashes[0] == hashes[1]:
            equal.add(name)
            nbytes += sum(file.size for _, file in files)
    return equal, nbytes


def _files(manifest: Manifest, folder: str) -> list[tuple[str, Any]]:
    start = f"{folder}/"
    return [(path.removeprefix(start), file) for path, file in manifest.contents.items() if path.startswith(start)]


def _without(manifest: Manifest, owner: str, tasks: set[str]) -> Manifest | None:
    """Returns the manifest without these tasks, or None if no other task has state of the owner."""
    if not tasks:
        return manifest
    left = {name: each for name, each in manifest.tasks.items() if name not in tasks}
    some = any(each.meta.get("operators", {}).get(owner) for each in left.values())
    return msgspec.structs.replace(manifest, tasks=left) if some else None
