"""State of a checkpoint as tables, read without the program that wrote it.

The checkpoint describes the state of each operator of a stream (`Stateful.state_reader`). From the description an
operator is made that restores the state of all subtasks and yields its `contents`. `state.reading` reads the state of
agents.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.groups.partition import KEY_GROUPS, hash_columns
from sabot.base.os_errors import restoring
from sabot.codecs.json import schema_of_text
from sabot.engine.operators.agents.timers import saved_timers, state_name
from sabot.engine.operators.base import GivesTable, OperatorContext, Restorable, Saved, StepInfo, without_marks
from sabot.engine.operators.layout.operator_table import reader_of
from sabot.engine.state.reading import (
    SavedApp,
    json_column,
    key_candidates,
    namespaces_in,
    plain_column,
    read_namespaces,
)
from sabot.errors import UNREADABLE, CorruptCheckpoint, UserError

_AGENTS = "agents"  # the task that runs all agents
_TIMERS = ":timers"  # AGENT:timers is the name of the timers that an agent has set


class StateView:
    """State in a checkpoint. It is read when `to_arrow` is called."""

    def __init__(self, read: Callable[[], pa.Table]) -> None:
        self._read = read

    def to_arrow(self) -> pa.Table:
        """Reads the state, and returns the columns that `sabot state` shows. Raises UserError if the name, key or
        checkpoint does not exist.
        """
        return self._read()


class OperatorInfo(NamedTuple):
    """An operator or agent with state in a checkpoint. `rows`: about how many groups, keys or rows it has, or None if
    that is unknown without reading them.
    """

    id: str
    text: str
    kind: str
    rows: int | None


def operators_of(manifest: SavedApp) -> list[OperatorInfo]:
    """Returns all operators of streams that keep state, then all agents, then the timers of agents."""
    found: dict[str, OperatorInfo] = {}
    with _reading(manifest):
        for task in manifest.tasks.values():
            for operator, facts in task.meta.get("operators", {}).items():
                if facts:
                    before = found.get(operator)
                    rows = facts.get("groups", 0) + (0 if before is None or before.rows is None else before.rows)
                    text = task.meta["texts"].get(operator, operator)
                    found[operator] = OperatorInfo(operator, text, facts["schema"]["kind"], rows)
        agents = [OperatorInfo(agent, f"agent {agent}", "agent", None) for agent in _agents(manifest)]
        stored = manifest.tasks[_AGENTS].states if _AGENTS in manifest.tasks else {}
        timers = [
            OperatorInfo(agent + _TIMERS, f"timers of agent {agent}", "timers", None)
            for agent in _agents(manifest)
            if state_name(agent) in stored
        ]
    return [*found.values(), *agents, *timers]


def _reading(manifest: SavedApp) -> AbstractContextManager[None]:
    return restoring("its state", f"checkpoint {manifest.checkpoint_id}")


def parts_of(manifest: SavedApp, operator: str) -> dict[str, Saved]:
    """Returns the state of a stream's operator, by the task that saved it."""
    parts = {}
    for name, task in sorted(manifest.tasks.items()):
        facts = task.meta.get("operators", {}).get(operator)
        if facts is not None:
            saved = operator in task.states
            directory = manifest.state_directory(name, operator) if saved else Path("nothing was saved")
            parts[name] = Saved(directory, facts)
    return parts


def state_of(manifest: SavedApp, operator: str, key: Any = None, groups: range | None = None) -> pa.Table:
    """Returns the state of a stream's operator, of an agent, or of a namespace of agents' state, as it was at the
    checkpoint.

    State of a stream's operator has its key columns, window_start and window_end if it has windows, and the values
    under the user's names. State of a user's function is JSON text. A join gives the rows of both sides, with the
    column `side`. A process step gives a row for each value, list and map; a pattern its partial matches; async calls
    the rows in flight. `state.reading.read_namespaces` describes the state of agents. AGENT:timers gives the agent's
    timers, as key, name and at (ms).

    `key`: gives only the rows of this key. It is a value, or a list with a value for each key column (as text, a JSON
    list). Text is cast to the type of the key column. `groups`: gives only the rows of keys in these key groups, if
    `is_divided`.

    Raises UserError for an operator that does not exist or keeps no state, and CorruptCheckpoint.
    """
    with _reading(manifest):
        parts = parts_of(manifest, operator)
        if any(part.facts for part in parts.values()):
            with _reader_for(operator, list(parts.values()), key, groups) as (reader, columns, wanted):
                pieces = [_matching(piece, wanted) for piece in reader.contents()]
            table = pa.Table.from_batches(pieces) if pieces else columns.empty_table()
            return table.select(without_marks(table.schema).names)
    if parts:
        raise UserError(f"{operator} keeps no state", hint=_names_hint(manifest))
    return _agent_state(manifest, operator, key, groups)


def is_divided(manifest: SavedApp, operator: str) -> bool:
    """Returns True if `state_of` can read single key groups of the state."""
    for task in manifest.tasks.values():
        facts = task.meta.get("operators", {}).get(operator)
        if facts:
            return _divides(facts.get("reader") or {})
    return not operator.endswith(_TIMERS)


def keys_of(manifest: SavedApp, operator: str, table: pa.Table) -> list[str]:
    """Returns the key columns of `state_of`'s table, or none if they are unknown."""
    for part in parts_of(manifest, operator).values():
        if part.facts.get("reader"):
            return list(part.facts["reader"].get("keys", ()))
    return [name for name in ("record_key", "key") if name in table.schema.names]


def _names_hint(manifest: SavedApp) -> str:
    names = [each.id for each in operators_of(manifest)]
    return f"state is kept by {', '.join(names)}" if names else "nothing in the checkpoint keeps state"


# Streams


@contextmanager
def _reader_for(
    name: str,
    parts: Sequence[Saved],
    key: Any = None,
    groups: range | None = None,
    *,
    only: pa.RecordBatch | None = None,
    restored: bool = True,
) -> Iterator[tuple[Restorable, pa.Schema, pa.RecordBatch | None]]:
    """Returns an operator that reads the state of these parts, the columns of its results, and the wanted key as a row of
    the key columns. `only`: keys, rows of the key columns, if there are several; rows of other keys may be among the state of these.
    `restored`: False if only its columns are asked for.
    """
    parts = [part for part in parts if part.facts]
    reader = parts[0].facts.get("reader")
    schema = parts[0].facts.get("schema")
    make = _reader_of(schema)
    if isinstance(make, str):
        raise UserError(f"{name} keeps no rows, only {make}")
    if not reader or make is None:
        raise UserError(
            f"the state of {name} cannot be read from outside", hint="run the program, and write its results to a sink"
        )
    input = schema_of_text(reader["input"])
    assert input is not None
    operator = make(reader)
    operator.step = StepInfo(name)
    context = OperatorContext(input, right=schema_of_text(reader.get("right")))
    wanted = None
    if key is not None:
        wanted = _key_row(name, [input.field(column) for column in reader["keys"]], key)
        wanted_hash = hash_columns(wanted.columns)[0]
        context.only = lambda hashes: pc.equal(hashes, wanted_hash)
    elif only is not None:
        wanted_hashes = hash_columns(only.columns)
        context.only = lambda hashes: pc.is_in(hashes, value_set=wanted_hashes)
    elif groups is not None and _divides(reader):
        context.only = lambda hashes: pa.array(np.isin(hashes.to_numpy() % np.uint64(KEY_GROUPS), groups))
    columns = operator.open(context)
    try:
        if restored:
            operator.restore(parts)
        yield operator, columns, wanted
    finally:
        operator.close()


def columns_of_table(manifest: SavedApp, operator: str) -> pa.Schema | None:
    """Returns the columns of the table that a stream's operator keeps and emits the changes of; None if it keeps no such
    table, or results of the program's own functions. Reads no rows. Raises CorruptCheckpoint.
    """
    with _reading(manifest):
        parts = list(parts_of(manifest, operator).values())
        reader = next((part.facts.get("reader") for part in parts if part.facts), None)
        if not reader or any(each["kind"] == "user" for each in reader.get("calls", ())):
            return None
        with _reader_for(operator, parts, restored=False) as (made, columns, _):
            return without_marks(columns) if isinstance(made, GivesTable) else None


def keys_of_table(manifest: SavedApp, operator: str, columns: pa.Schema) -> pa.Schema:
    """Returns those of the columns of `columns_of_table` that are the keys of the state, in the order in which they are hashed; none if
    the table does not have all of them.
    """
    parts = parts_of(manifest, operator).values()
    reader = next((part.facts["reader"] for part in parts if part.facts.get("reader")), None)
    if reader is None or not _divides(reader):
        return pa.schema([])
    input = schema_of_text(reader["input"])
    assert input is not None
    keys = pa.schema([input.field(name) for name in reader["keys"]])
    there = {field.name: field.type for field in columns}
    return keys if all(there.get(field.name) == field.type for field in keys) else pa.schema([])


def table_of(manifest: SavedApp, operator: str, groups: range, only: pa.RecordBatch | None = None) -> pa.Table:
    """Returns the rows of the table of `columns_of_table`, as they were at the checkpoint. `groups`: as for `state_of`, whose
    errors it raises. `only`: rows of `keys_of_table`; gives the rows of these keys, of all key groups, and perhaps others.
    """
    with _reading(manifest):
        parts = list(parts_of(manifest, operator).values())
        with _reader_for(operator, parts, None, groups, only=only) as (made, columns, _):
            assert isinstance(made, GivesTable)
            pieces = [batch.taken() for batch in made.table()]
        names = without_marks(columns).names
        return (pa.Table.from_batches(pieces) if pieces else columns.empty_table()).select(names)


def has_rows(kind: str) -> bool:
    """Returns True if state of this kind (`OperatorInfo.kind`) may have rows."""
    return not isinstance(reader_of(kind), str)


def _divides(reader: Mapping[str, Any]) -> bool:
    """Returns True if each row of the state belongs to one key group: not without keys, nor if each subtask has all rows of a side."""
    return bool(reader.get("keys")) and not reader.get("broadcast")


def _reader_of(schema: Mapping[str, Any] | None) -> Callable[[Mapping[str, Any]], Restorable] | str | None:
    """Returns the function that makes a reader of this kind of state, or of this kind of window. Returns a text that
    says why the state has no rows, if it has none, and None if there is no reader.
    """
    if not schema:
        return None
    kind = schema["kind"]
    return reader_of(schema["window"].partition("(")[0] if kind == "window" else kind)


def _key_row(operator: str, fields: list[pa.Field], key: Any) -> pa.RecordBatch:
    """Returns the key as one row of the operator's key columns. Raises UserError if it does not fit them."""
    if not fields:
        raise UserError(f"{operator} has no keys", hint="leave the key out")
    values = [key]
    if len(fields) > 1:
        if isinstance(key, str):
            try:
                key = msgspec.json.decode(key)
            except UNREADABLE:
                key = None
        if not isinstance(key, list | tuple) or len(key) != len(fields):
            names = [field.name for field in fields]
            raise UserError(f"a key of {operator} is {len(fields)} values: {', '.join(names)}", hint=_example(fields))
        values = list(key)
    columns = [_key_value(operator, field, value) for field, value in zip(fields, values, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def _key_value(operator: str, field: pa.Field, value: Any) -> "pa.Array[Any]":
    try:
        if isinstance(value, str):
            return pa.array([value], pa.string()).cast(field.type)
        return pa.array([value], field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{field.name}, a key of {operator}, is {field.type}, and cannot be {value!r}") from error


def _example(fields: list[pa.Field]) -> str:
    return f"give a list, as text in JSON: {json.dumps([f'<{field.name}>' for field in fields])}"


def _matching(piece: pa.RecordBatch, wanted: pa.RecordBatch | None) -> pa.RecordBatch:
    """Returns the rows of this key. Other keys may share its hash."""
    if wanted is None or not piece.num_rows:
        return piece
    mask = None
    for name, value in zip(wanted.schema.names, wanted.columns, strict=True):
        column = piece.column(name)
        same = pc.is_null(column) if value.null_count else pc.fill_null(pc.equal(column, value[0]), False)
        if pa.types.is_floating(column.type) and pc.is_nan(value)[0].as_py():
            same = pc.fill_null(pc.is_nan(column), False)
        mask = same if mask is None else pc.and_(mask, same)
    return piece.filter(mask)


# Agents


def _agents(manifest: SavedApp) -> dict[str, list[str]]:
    """Returns all agents, each with its tasks."""
    found: dict[str, list[str]] = {}
    for task, stored in manifest.tasks.items():
        for agent in stored.meta.get("agents", {}):
            found.setdefault(agent, []).append(task)
    return found


def _agent_state(manifest: SavedApp, name: str, key: Any, groups: range | None) -> pa.Table:
    """Returns the state of an agent with `key=`, the shared state for an agent without it, or a namespace."""
    agents = _agents(manifest)
    agent = name.removesuffix(_TIMERS)
    alike = [agent] if agent in agents else [each for each in agents if each.endswith(f".{agent}")]
    tasks = agents[alike[0]] if len(alike) == 1 else [_AGENTS]
    return pa.concat_tables(
        [_state_in(manifest, task, list(agents), name, key, groups) for task in tasks], promote_options="permissive"
    )


def _state_in(
    manifest: SavedApp, within: str, agents: list[str], name: str, key: Any, groups: range | None
) -> pa.Table:
    """Returns the rows that one task of agents has of the state."""
    name, of_timers = name.removesuffix(_TIMERS), name.endswith(_TIMERS)
    alike = [agent for agent in agents if agent.endswith(f".{name}")]
    if name not in agents and len(alike) == 1:
        name = alike[0]  # without the app's id before it
    if of_timers:
        return _timers_of(manifest, within, name, key, groups)
    task = manifest.tasks.get(within)
    if task is None or "state" not in task.states:
        if name in agents:
            raise UserError(f"agent {name} keeps no state", hint="App(..., state=...) lets it keep state")
        raise _unknown(manifest, name)
    directory = manifest.state_directory(within, "state")
    try:
        with _reading(manifest):
            known = namespaces_in(directory)
    except CorruptCheckpoint as error:
        if not any((directory / file).exists() for file in ("state.arrow", "CURRENT")):
            raise UserError(
                f"the state of {name} cannot be read from outside: its backend is the program's own, not one of Sabot's"
            ) from error
        raise
    own = {space for space in known if space.startswith(f"{name}/")} if name in agents else set()
    if own:
        with _reading(manifest):
            return read_namespaces(
                directory, manifest.created_ms, own.__contains__, by_record=True, key=key, groups=groups
            )
    if name not in agents and name not in known:
        raise _unknown(manifest, name, known)
    spaces = {name} if name in known else {space for space in known if space.partition("/")[0] not in agents}
    with _reading(manifest):
        return read_namespaces(directory, manifest.created_ms, spaces.__contains__, key=key, groups=groups)


def _timers_of(manifest: SavedApp, within: str, agent: str, key: Any, groups: range | None) -> pa.Table:
    """Returns the timers that an agent has set in one of its tasks, or only those of `key`; with groups, those of all groups, with keys
    as JSON text.
    """
    task = manifest.tasks.get(within)
    if task is None or state_name(agent) not in task.states:
        raise _unknown(manifest, agent + _TIMERS)
    wanted = None if key is None else key_candidates(key)
    with _reading(manifest):
        found = saved_timers(manifest.state_directory(within, state_name(agent)))
        rows = [row for row in found if wanted is None or row[0] in wanted]
    keys, names, times = zip(*rows, strict=True) if rows else ((), (), ())
    column = plain_column if groups is None else json_column
    columns = {"key": column(list(keys)), "name": pa.array(names, pa.string()), "at": pa.array(times, pa.int64())}
    return pa.table(columns)


def _unknown(manifest: SavedApp, name: str, spaces: list[str] | None = None) -> UserError:
    known = [each.id for each in operators_of(manifest)] + (spaces or [])
    what = f"there are {', '.join(known)}" if known else "nothing in the checkpoint keeps state"
    return UserError(f"checkpoint {manifest.checkpoint_id} has no operator or agent {name!r}", hint=what)
