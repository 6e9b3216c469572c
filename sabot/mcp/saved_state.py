"""Tools that read the state of an app from its checkpoints: keyed state of agents, aggregates and tables of streams.

The answer of a tool names the checkpoint, and has at most 1,000 rows and 64 KB. A call with `cursor` set to the `next`
of an answer returns the following rows of the same checkpoint. The tools only read files of checkpoints, so the app
need not run.
"""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, Protocol, TypedDict

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.redaction import HIDDEN, clean_value, holds_secret
from sabot.engine.calls.tools import Tool, tool
from sabot.errors import UNREADABLE, UserError, short_repr

_ROWS_MOST = 1000
_PAGE_BYTES = 65_536
_CELL_MOST = 8_192  # the bytes of a value as JSON above which only its beginning is shown
_SAMPLED = 1000  # the values whose fields are described


class StateInfo(TypedDict):
    """A part of the app that has state: an operator of a stream, a table, or an agent. `rows`: the approximate number
    of its rows, or None if the rows would have to be read to count them.
    """

    name: str
    kind: str
    rows: int | None
    text: str


class StateRows(TypedDict):
    """A page of rows of a state.

    - `as_of`: the checkpoint from which the rows were read.
    - `rows`: the rows of this page, each as a dict by column.
    - `total`: the number of rows that match, on all pages together.
    - `next`: the cursor with which the next page can be read; None on the last page.
    """

    as_of: dict[str, Any]
    rows: list[dict[str, Any]]
    total: int
    next: str | None


class SavedState(Protocol):
    """The state of an app in one checkpoint. Its methods may block. They raise UserError for a state that does not
    exist; the message names the app and the state.
    """

    @property
    def checkpoint_id(self) -> int: ...
    @property
    def created_ms(self) -> int: ...

    def kept(self) -> list[StateInfo]:
        """Returns the parts of the app that have state in the checkpoint."""

    def read(self, name: str, key: str | None) -> tuple[pa.Table, list[str]]:
        """Returns a pair: the rows of the state `name`, and the names of its key columns. The list of names is empty if
        they are not known. `key`: if it is given, only the rows with this key are returned.
        """


def state_tools(
    open_checkpoint: Callable[[int | None], AbstractContextManager[SavedState]], *, only: Collection[str] = ()
) -> list[Tool]:
    """Returns the tools `state_list`, `state_schema` and `state_read`, which read the saved state of an app.

    - `open_checkpoint`: a function that gets the id of a checkpoint, or None for the newest one. It returns a context
      manager that opens this checkpoint. It may block. It raises UserError if the checkpoint does not exist or has been
      deleted.
    - `only`: the names of the states that can be read; all if it is empty.

    In the results, the known secrets of this process are hidden. The value of a field or column whose name is that of a
    secret, such as `password` or `api_key`, is hidden too, and so are those of a list or map with such a name.
    """

    def checked(name: str) -> str:
        if only and name not in only:
            raise UserError(f"{short_repr(name)} is not offered", hint=f"there are {', '.join(sorted(only))}")
        return name

    @tool(effect="read")
    def state_list() -> dict[str, Any]:
        """List the parts of this streaming app that have saved state: agents, aggregates, tables. Their names are
        arguments of state_schema and state_read.
        """
        with open_checkpoint(None) as saved:
            kept = [each for each in saved.kept() if not only or each["name"] in only]
            return {"as_of": _as_of(saved), "state": kept}

    @tool(effect="read")
    def state_schema(name: str) -> dict[str, Any]:
        """Describe the columns of a state: their types, which of them are the key, and the fields of values that are
        objects.

        Args:
            name: The name of the state, from state_list.
        """
        with open_checkpoint(None) as saved:
            table, keys = saved.read(checked(name), None)
            columns = {each: _described(table[each]) for each in table.column_names}
            return {"as_of": _as_of(saved), "name": name, "key": keys, "columns": columns, "rows": table.num_rows}

    @tool(effect="read")
    def state_read(
        name: str, key: str | None = None, prefix: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> StateRows:
        """Read rows of a state from the app's newest checkpoint.

        Args:
            name: The name of the state, from state_list.
            key: Return only the rows with this key. For several key columns, a JSON list.
            prefix: Return only rows whose first key column, as text, begins with this.
            limit: The most rows, from 1 to 1000.
            cursor: The value of next in the previous page. Repeat the other arguments unchanged.
        """
        if isinstance(limit, bool) or not 1 <= limit <= _ROWS_MOST:
            raise UserError(f"limit={short_repr(limit)}", hint=f"from 1 to {_ROWS_MOST:,}")
        checkpoint_id, begin = (None, 0) if cursor is None else _place(cursor)
        with open_checkpoint(checkpoint_id) as saved:
            table, keys = saved.read(checked(name), key)
            if prefix is not None:
                table = _beginning(table, keys, prefix)
            rows = _page(table, begin, limit)
            end = begin + len(rows)
            following = f"{saved.checkpoint_id}:{end}" if end < table.num_rows else None
            return StateRows(as_of=_as_of(saved), rows=rows, total=table.num_rows, next=following)

    return [state_list, state_schema, state_read]


def _as_of(saved: SavedState) -> dict[str, int | str]:
    written = datetime.fromtimestamp(saved.created_ms / 1000, UTC)
    return {"checkpoint": saved.checkpoint_id, "written": written.isoformat(timespec="milliseconds")}


def _place(cursor: str) -> tuple[int, int]:
    """Splits a cursor into the id of the checkpoint and the number of the next row. Raises UserError if the cursor is
    not valid.
    """
    checkpoint_id, _, begin = cursor.partition(":")
    if not (checkpoint_id.isascii() and checkpoint_id.isdigit() and begin.isascii() and begin.isdigit()):
        raise UserError(f"cursor={short_repr(cursor)}", hint="give back what stands under next, or leave it out")
    return int(checkpoint_id), int(begin)


def _beginning(table: pa.Table, keys: list[str], prefix: str) -> pa.Table:
    """Returns the rows in which the text of the first key column begins with the prefix. `keys`: the names of the key
    columns.
    """
    if not table.num_columns:
        return table
    column = table[keys[0] if keys else table.column_names[0]]
    if not pa.types.is_string(column.type):
        column = pa.chunked_array([[None if each is None else _text(each) for each in column.to_pylist()]], pa.string())
    return table.filter(pc.starts_with(column, pattern=prefix))


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _page(table: pa.Table, begin: int, limit: int) -> list[dict[str, Any]]:
    """Returns rows as JSON values, from row number `begin` on. There are at most `limit` rows, and only as many as fit
    in 64 KB; but the first row is returned even if it does not fit.
    """
    readers = {name: _reader(table[name]) for name in table.column_names}
    rows: list[dict[str, Any]] = []
    size = 0
    for row in table.slice(begin, limit).to_pylist():
        read = {name: clean_value({name: readers[name](value)}, fields=True)[name] for name, value in row.items()}
        if "value" in read:  # of an agent: the name of the field, and of the map or list (`desk.handle/passwords`)
            kept = str(read.get("namespace", "")).rpartition("/")[2]
            named = any(isinstance(name, str) and holds_secret(name, read["value"]) for name in (read.get("key"), kept))
            read["value"] = HIDDEN if named else read["value"]
        shown = {name: _bounded(value) for name, value in read.items()}
        size += len(msgspec.json.encode(shown))
        if rows and size > _PAGE_BYTES:
            break
        rows.append(shown)
    return rows


def _reader(column: "pa.ChunkedArray[Any]") -> Callable[[Any], Any]:
    """Returns a function that converts a value of the column into a JSON value.

    An agent's values that are nested, or of several types, are saved as JSON in a column of text. Such a column is
    recognized by its first 1,000 values: all are JSON, and at least one of them is an object, a list or a text. Its
    values are decoded.
    """
    if pa.types.is_string(column.type):
        texts = [text for text in column.slice(0, _SAMPLED).to_pylist() if text is not None]
        if all(map(_is_json, texts)) and any(text.startswith(("{", "[", '"')) for text in texts):
            return _said
    return msgspec.to_builtins


def _said(text: str | None) -> Any:
    """Decodes the JSON in a text. Returns the text itself if it is not JSON, and None for None."""
    return msgspec.json.decode(text) if text is not None and _is_json(text) else text


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except UNREADABLE:
        return False
    return True


def _bounded(value: Any) -> Any:
    """Returns the value. If its JSON is too long to be shown, returns `{"cut": …, "bytes": …}` instead: the beginning
    of the JSON, and the size of the whole in bytes.
    """
    text = msgspec.json.encode(value)
    if len(text) <= _CELL_MOST:
        return value
    return {"cut": text[:_CELL_MOST].decode(errors="ignore"), "bytes": len(text)}


def _described(column: "pa.ChunkedArray[Any]") -> dict[str, Any]:
    """Returns a description of a column as a dict. "type" is its Arrow type, or "json" for a column of JSON texts. A
    column of JSON texts also has "kinds", which lists the kinds of its values, such as "object". If values are objects,
    it has "fields", with the kinds of value of each field. Only the first 1,000 rows are examined for this.
    """
    read = _reader(column)
    if read is msgspec.to_builtins:
        return {"type": str(column.type)}
    fields: dict[str, set[str]] = {}
    kinds: set[str] = set()
    for value in map(read, column.slice(0, _SAMPLED).to_pylist()):
        kinds.add(_kind(value))
        for name, each in value.items() if isinstance(value, dict) else ():
            fields.setdefault(name, set()).add(_kind(each))
    described: dict[str, Any] = {"type": "json", "kinds": sorted(kinds)}
    if fields:
        described["fields"] = {name: sorted(found) for name, found in sorted(fields.items())[:100]}
    return described


def _kind(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", list: "array"}
    return names.get(type(value), "null")
