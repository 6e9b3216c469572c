"""The statements of a SQL shell or file, one after the other. Each query runs in an app of its own."""

import asyncio
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer

from sabot._cython.arrow.batch import Batch
from sabot._cython.text.json import encode_rows
from sabot.api.nodes.read import Write, endless_read
from sabot.api.nodes.rows import Head
from sabot.api.stream import Stream
from sabot.app import App
from sabot.base.arrays import is_utc, time_texts
from sabot.base.quantities import counted_words
from sabot.cli.asked_keys import read_asked_keys
from sabot.cli.attached import AttachedApp
from sabot.cli.loading import WrongUse, register_functions
from sabot.cli.printing import columns
from sabot.cli.running import drop_output
from sabot.codecs.csv_text import field_texts
from sabot.connectors.base import Sink
from sabot.connectors.memory import TableSink
from sabot.engine.operators.expressions.json_values import base64_texts
from sabot.sql.options import app_name
from sabot.sql.scope import node_of
from sabot.sql.session import Session
from sabot.sql.syntax.parser import parse
from sabot.sql.syntax.text import SqlError, SqlText
from sabot.sql.syntax.tree import CreateTable, CreateView, Insert, Query, Statement, StatementSet

FORMATS = ("table", "json", "csv", "parquet")

_REFRESH_SECONDS = 0.5
_OP = "op"
_ROWS_SHOWN = 1000
_CHANGES_MAX = 100_000  # beyond twice the rows of a result


class SqlProgram:
    """The tables that statements have declared so far, and the way in which results are printed.

    `format`: one of FORMATS. `changes`: True to print each change of a result, as it comes, and not the table. `attached`: the app
    whose tables statements know too, or None.
    """

    def __init__(self, format: str = "table", *, changes: bool = False, attached: AttachedApp | None = None) -> None:
        self.format = format
        self.changes = changes
        self._attached = attached
        self._kept: list[tuple[SqlText, Statement]] = []
        self._broken: dict[str, SqlError] = {}  # by the name in lower case, what no longer can be declared, and why
        self._given: dict[str, Stream] = {}
        self._app, self._session = self._replayed("sql")

    def words(self) -> set[str]:
        """Returns the names of tables and columns, for completion."""
        return self._session.words()

    def run(self, text: str, name: str = "SQL") -> None:
        """Runs the statements of a text and prints their results. Blocks until queries and INSERTs end, or Ctrl-C.

        Raises UserError at the first statement that has an error.
        """
        source = SqlText(text, name)
        statements = parse(source)
        if (wanted := app_name(statements)) is not None and wanted != self._app.id:
            self._app, self._session = self._replayed(wanted)
        for statement in statements:
            self._run(source, statement)

    def _run(self, source: SqlText, statement: Statement) -> None:
        writes = isinstance(statement, Insert | StatementSet)
        if writes or isinstance(statement, Query) or (isinstance(statement, CreateTable) and statement.query):
            app, session = self._replayed(text=source.text)
            try:
                result = session.execute(source, [statement], self._given)
            except SqlError as error:
                for name, reason in self._broken.items():
                    if f'there is no table "{name}"' in str(error).lower():
                        raise reason from error
                raise error if self._attached is None else self._attached.explained(error) from None
            if self._attached is not None:
                read_asked_keys([Write(node_of(result), "", None)] if isinstance(result, Stream) else app.spec.ends)
            try:
                if isinstance(result, Stream):
                    self._show_rows(app, result)
                else:
                    asyncio.run(app.run())
            finally:
                if self._attached is not None:
                    self._attached.print_place()
                    self._attached.release()
            if isinstance(result, Stream):
                return
            if isinstance(statement, CreateTable):  # its rows are written: from now on it is a table
                self._kept.append((source, replace(statement, query=None)))
                self._app, self._session = self._replayed()
            return
        try:
            result = self._session.execute(source, [statement], self._given)
        except SqlError as error:
            raise error if self._attached is None else self._attached.explained(error) from None
        if result is None:
            self._kept.append((source, statement))
        elif isinstance(result, str):
            typer.echo(result)
        else:
            self._print(result)

    def _replayed(self, name: str = "", text: str = "") -> tuple[App, Session]:
        """Returns a new app that knows all tables so far, but for those of which it has an error, such as a view over a file
        that has been deleted: other statements, and DROP VIEW, go on without it. `text`: that of the statement to run.
        """
        app = App(name or self._app.id, restart="none")
        register_functions(app)
        session = app.sql_session
        self._broken = {}
        if self._attached is not None:
            self._given = self._attached.streams(app, "\n".join([text, *(kept.text for kept, _ in self._kept)]))
        for source, statement in self._kept:
            try:
                session.execute(source, [statement], self._given)
            except SqlError as error:
                if isinstance(statement, CreateTable | CreateView):
                    self._broken[statement.name[-1].text.lower()] = error
        app.begun_streams.clear()  # no warning of views that the statement does not use
        return app, session

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _show_rows(self, app: App, stream: Stream) -> None:
        node = node_of(stream)
        endless, updated = endless_read(node) is not None, node.changes
        rows = stream.changelog() if updated else stream
        limit = node.n if isinstance(node, Head) else None
        final = self.format in ("table", "parquet") or (updated and not self.changes)
        sink = _KeptResult(limit, updated) if final and not self.changes else _PrintedResult(self.format, limit)
        sink.on_full = app.request_stop
        app.agent_runtime.runner.watch.says_summary = False  # the result has its own number of rows
        rows.to(sink)
        if isinstance(sink, _PrintedResult):
            asyncio.run(app.run())
            sink.print_titles()
            return
        if endless and self.format == "table" and sys.stdout.isatty():
            with _Refreshing(sink):
                asyncio.run(app.run())
        else:
            asyncio.run(app.run())
        self._print(sink.rows())

    def _print(self, table: pa.Table) -> None:
        if self.format == "table":
            print_table(table)
        elif self.format == "parquet":
            if sys.stdout.isatty():
                raise WrongUse("--format parquet writes bytes, which a terminal cannot show", hint="add > FILE")
            sys.stdout.flush()
            pq.write_table(table, sys.stdout.buffer)
        else:
            _PrintedResult(self.format, None).print(table)


def kept_rows(app: App, stream: Stream, most: int) -> pa.Table:
    """Runs the app, which has no other work, and returns the rows of a query: at most `most`, but all that updates have made. Blocks."""
    updated = node_of(stream).changes
    sink = _KeptResult(None if updated else most, updated)
    sink.on_full = app.request_stop
    app.agent_runtime.runner.watch.says_summary = False
    (stream.changelog() if updated else stream).to(sink)
    asyncio.run(app.run())
    return sink.rows()


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Returns rows as values that JSON can say (`_shown`), with numbers with fractions as texts, so that they keep their digits."""
    batches = _shown(table).to_batches()
    return [json.loads(line, parse_float=str) for batch in batches for line in encode_rows(batch).to_pylist()]


class _KeptResult(TableSink):
    """A sink that keeps the rows of a query; they may be read while it runs. `updated`: True for changes, in whose place the
    rows that they make are kept from time to time, so that a query without an end keeps no more than a few for each row.
    """

    def __init__(self, limit: int | None, updated: bool) -> None:
        super().__init__("result", limit=limit)
        self._updated = updated
        self._count, self._most = 0, _CHANGES_MAX

    def write(self, batch: Batch) -> None:
        super().write(batch)
        self._count += batch.data.num_rows
        if self._updated and self._count > self._most:
            changes = self.table()
            rows, place = _applied(changes), changes.schema.get_field_index(_OP)
            ops = pa.array(["insert"] * rows.num_rows, changes.schema.field(place).type)
            self._batches = rows.add_column(place, changes.schema.field(place), ops).to_batches()
            self._count, self._most = rows.num_rows, 2 * rows.num_rows + _CHANGES_MAX

    def rows(self) -> pa.Table:
        """Returns the rows so far; those that the changes so far make, for changes."""
        table = self.table()
        return _applied(table) if self._updated else table


class _PrintedResult(Sink):
    """A sink that prints each row as a line of JSON or CSV, when it comes. `limit`: the number of rows after which it
    calls `on_full`.
    """

    def __init__(self, format: str, limit: int | None) -> None:
        self.name = "result"
        self.on_full: Callable[[], object] = lambda: None
        self._free = limit
        self._csv = format == "csv"
        self._titled = False
        self._columns: pa.Schema | None = None

    def expect(self, schema: pa.Schema) -> None:
        self._columns = schema

    def open(self) -> None:
        if self._free == 0:
            self.on_full()

    def write(self, batch: Batch) -> None:
        data = batch.data if self._free is None else batch.data.slice(0, self._free)
        self.print(pa.Table.from_batches([data]))
        if self._free is not None:
            self._free -= data.num_rows
            if self._free == 0:
                self.on_full()

    def flush(self) -> None:
        """Does nothing: `print` flushes."""

    def close(self) -> None:
        """There is nothing to close."""

    def print_titles(self) -> None:
        """Prints the titles of CSV of a result without rows, if its columns are known."""
        if self._csv and not self._titled and self._columns is not None:
            self.print(self._columns.empty_table())

    def print(self, table: pa.Table) -> None:
        """Prints the rows; those of CSV with a first line of titles."""
        if self._csv:
            titles = pa.record_batch([[name] for name in table.column_names], table.column_names)
            rows = [] if self._titled else _csv_lines(titles)
            self._titled = True
            rows += [row for batch in _shown(table).to_batches() for row in _csv_lines(batch)]
            text = "".join(f"{row}\n" for row in rows)
        else:
            lines = [line for batch in _shown(table).to_batches() for line in encode_rows(batch).to_pylist()]
            text = b"".join(line + b"\n" for line in lines).decode(errors="backslashreplace")
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            drop_output()
            self.on_full()


def _shown(table: pa.Table) -> pa.Table:
    """Returns the rows with dates and times as texts in ISO 8601, and bytes as base64, also those inside of arrays, maps and rows."""
    columns = [_texts(column.combine_chunks()) for column in table.columns]
    return pa.Table.from_arrays(columns, table.column_names)


def _texts(values: Any) -> Any:
    """Returns an array with dates, times and bytes as texts.

    TIMESTAMP(3) 2024-05-17 12:30:00.250 -> 2024-05-17T12:30:00.25; the same TIMESTAMP_LTZ -> 2024-05-17T12:30:00.25Z
    """
    type = values.type
    if pa.types.is_list(type):
        ends = pc.cumulative_sum(pc.fill_null(pc.list_value_length(values), 0))
        starts = pa.concat_arrays([pa.array([0], ends.type), ends])
        return pa.ListArray.from_arrays(starts, _texts(values.flatten()), mask=values.is_null())
    if pa.types.is_struct(type):
        names = [field.name for field in type]
        return pa.StructArray.from_arrays([_texts(each) for each in values.flatten()], names, mask=values.is_null())
    if pa.types.is_map(type):
        values = values.take(pa.array(range(len(values)))) if values.offset else values  # Arrow masks no slice
        keys, items = _texts(values.keys), _texts(values.items)
        return pa.MapArray.from_arrays(values.offsets, keys, items, mask=values.is_null())
    if pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_fixed_size_binary(type):
        return base64_texts(values.cast(pa.binary()))
    if pa.types.is_duration(type):
        return pa.array([None if each is None else str(each) for each in values.to_pylist()], pa.string())
    if not pa.types.is_temporal(type):
        return values
    plain = pa.types.is_date(type) or (pa.types.is_timestamp(type) and is_utc(type.tz))
    texts = pc.replace_substring(time_texts(values) if plain else values.cast(pa.string()), " ", "T")
    return pc.replace_substring_regex(texts, r"(\.\d*[1-9])0+(Z?)$|\.0+(Z?)$", r"\1\2\3")


def _csv_lines(rows: pa.RecordBatch) -> list[str]:
    """Returns the rows as lines of CSV, with arrays and rows as texts of JSON."""
    for i, column in enumerate(rows.columns):
        if pa.types.is_nested(column.type):
            whole = encode_rows(pa.record_batch([column], ["v"])).cast(pa.string())
            inner = pc.utf8_slice_codeunits(whole, len('{"v":'), -1)
            texts = pc.if_else(column.is_null(), pa.scalar(None, pa.string()), inner)
            rows = rows.set_column(i, rows.schema.names[i], texts)
    return [",".join(row) for row in zip(*(each.to_pylist() for each in field_texts(rows, ",")), strict=True)]


def _applied(changes: pa.Table) -> pa.Table:
    """Returns the rows that exist after these changes, in the order in which they came."""
    data = changes.drop_columns([_OP])
    alive: Counter[int] = Counter()
    places: dict[str, list[int]] = {}
    for i, (op, row) in enumerate(zip(changes[_OP].to_pylist(), data.to_pylist(), strict=True)):
        same = places.setdefault(json.dumps(row, default=str), [])
        if op in ("insert", "update_after"):
            same.append(i)
            alive[i] = 1
        elif same:
            del alive[same.pop()]
    return data.take(pa.array(sorted(alive), pa.int64()))


def print_table(table: pa.Table) -> None:
    """Prints a table in aligned columns, at most 1,000 rows, and the number of its rows."""
    shown = table.slice(0, _ROWS_SHOWN).to_pydict()
    columns(table.column_names, list(zip(*(map(_cell, shown[name]) for name in table.column_names), strict=True)))
    more = f", of which {_ROWS_SHOWN:,} are shown" if table.num_rows > _ROWS_SHOWN else ""
    typer.echo(f"({table.num_rows:,} {'row' if table.num_rows == 1 else 'rows'}{more})")


def _cell(value: Any) -> str:
    return "NULL" if value is None else str(value)


class _Refreshing:
    """Shows the newest rows of a running query on the terminal, again and again."""

    def __init__(self, sink: _KeptResult) -> None:
        self._sink = sink
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _refresh(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console()
        with Live(console=console, transient=True, auto_refresh=False, screen=False) as live:
            while not self._over.wait(_REFRESH_SECONDS):
                live.update(self._view(max(3, console.height - 4)), refresh=True)

    def _view(self, height: int) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        rows = self._sink.rows()
        newest = rows.slice(max(0, rows.num_rows - height))
        view = Table(box=None)
        for name in rows.column_names:
            view.add_column(Text(name))
        for row in zip(*(map(_cell, newest[name].to_pylist()) for name in rows.column_names), strict=True):
            view.add_row(*map(Text, row))
        return Group(view, Text(f"{counted_words(rows.num_rows, 'row')}; Ctrl-C ends the query", style="dim"))
