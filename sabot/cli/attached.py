"""The tables of an app as its newest checkpoint has them, for statements of `sabot sql --attach`."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pyarrow as pa
import typer

from sabot.api.nodes.changes import Changelog, Materialize, Upsert
from sabot.api.nodes.joins import TwoInputs
from sabot.api.nodes.node import Node, walk
from sabot.api.nodes.read import Read, StreamEnd, Write
from sabot.api.nodes.rows import MapBatches, RowStep, Union
from sabot.api.stream import Stream
from sabot.app import App
from sabot.cli.app_checkpoints import find_checkpoints, names_program
from sabot.cli.loading import load_app
from sabot.cli.printing import moment
from sabot.connectors.base import Sink
from sabot.connectors.rows import RowsSource
from sabot.engine.checkpoint import ask
from sabot.engine.checkpoint.inspection import control_of
from sabot.engine.checkpoint.manifest import Manifest
from sabot.engine.checkpoint.saved_tables import Clean, SavedTable, saved_tables
from sabot.engine.operators.reading import has_rows, operators_of, state_of
from sabot.engine.plan.optimise import optimise
from sabot.engine.plan.paths import path_of, steps_of
from sabot.engine.runtime.life.restore import check_app
from sabot.errors import CorruptCheckpoint
from sabot.sql.scope import node_of
from sabot.sql.syntax.text import Fault, SqlError

_NO_TABLE = 'there is no table "'


class NotKept(Exception):
    """Raised for rows that no state of the checkpoint has. The text says why."""


class AttachedApp:
    """An app, running or not, whose tables SQL may ask.

    A table is a view of the app's SQL, what an INSERT or `to` writes into a table, a topic or a sink, or any state, by the id that
    `sabot state` lists. Views and written tables are computed from the table of the last step before them that keeps one: a group, a
    ranking, or the last row of each key. `word`: the argument APP of commands. `state`: the state directory, or None. `fresh`: True to
    ask the running app for a checkpoint before each statement. `clean`: changes the rows of all states as they are read.
    """

    def __init__(self, word: str, state: str | None = None, *, fresh: bool = False, clean: Clean | None = None) -> None:
        self._checkpoints = find_checkpoints(word, state)
        self._program = None
        if names_program(program := word.partition("@")[0]):
            with _without_warnings("sabot.sql"):  # of its statements, which its start has shown
                self._program = load_app(program)
        self._fresh, self._clean = fresh, clean
        self.reasons: dict[str, str] = {}
        """Why a table of the app cannot be asked, by its name in lower case."""
        self.names: list[str] = []
        """The names of the tables that can be asked."""
        self._manifest: Manifest | None = None

    def streams(self, app: App, text: str) -> dict[str, Stream]:
        """Returns the tables of the app by their names in lower case, as streams of `app`, all of one checkpoint: the newest. `text`:
        the statement; a state whose id is not in it is left out, because all of its rows are read here.

        Raises UserError if there is no checkpoint, and CorruptCheckpoint.
        """
        wanted = None
        if self._fresh and (control := control_of(self._checkpoints)) is not None:
            wanted = ask(control, {"checkpoint": True})["checkpoint"]
        while True:
            manifest = self._checkpoints.manifest(wanted)
            try:
                return self._streams(manifest, app, text)
            except CorruptCheckpoint:
                # The running app may have removed the checkpoint before its files were linked: then the newest is read.
                if manifest.checkpoint_id in self._checkpoints.storage.ids() or self._checkpoints.chosen:
                    raise
                wanted = None

    @property
    def manifest(self) -> Manifest:
        """The checkpoint of the last `streams`."""
        assert self._manifest is not None, "streams comes first"
        return self._manifest

    def print_place(self) -> None:
        """Prints the checkpoint of the last statement on stderr."""
        place = self.manifest
        typer.echo(f"as of checkpoint {place.checkpoint_id}, {moment(place.created_ms)}", err=True)

    def explained(self, error: SqlError) -> SqlError:
        """Returns the error with the tables that can be asked, and why others cannot."""
        faults, hint = [], f"there are {', '.join(self.names) or 'none'}"
        for fault in error.faults:
            if fault.message.startswith(_NO_TABLE):
                name = fault.message.removeprefix(_NO_TABLE).removesuffix('"')
                why = self.reasons.get(name.lower())
                fault = Fault(fault.span, f"{name} cannot be asked: {why}" if why else fault.message, hint)
            faults.append(fault)
        return SqlError(error.text, faults)

    def release(self) -> None:
        """Removes the copies of the state that the last statement has read."""
        self._checkpoints.storage.release_restored()

    def _streams(self, manifest: Manifest, app: App, text: str) -> dict[str, Stream]:
        kept, words = _SavedTables(manifest, app, self._clean), text.lower()
        found: dict[str, Stream] = {}
        reasons: dict[str, str] = {}
        if self._program is not None:
            check_app(manifest, self._program.id)
            for name, make in _tables_of(self._program):
                try:
                    found.setdefault(name.lower(), Stream(app, make(kept)))
                except NotKept as error:
                    reasons.setdefault(name.lower(), str(error))
        names = [name if name.isidentifier() else f'"{name}"' for name in found]
        for state in (each for each in operators_of(manifest) if has_rows(each.kind)):
            if state.id.lower() in words and state.id.lower() not in found:
                rows = state_of(manifest, state.id)
                if self._clean is not None:
                    rows = pa.Table.from_batches(map(self._clean, rows.to_batches()), rows.schema)
                found[state.id.lower()] = app.stream(RowsSource(rows, state.id))
            if state.id.lower() not in names:
                names.append(f'"{state.id}"')
        self.names, self.reasons, self._manifest = names, reasons, manifest
        return found


@contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class _SavedTables:
    """The tables that the steps of an app keep in a checkpoint. `app`: the app that asks them."""

    def __init__(self, manifest: Manifest, app: App, clean: Clean | None) -> None:
        self._manifest, self._app, self._clean = manifest, app, clean
        self._tables: dict[tuple[str, str], list[tuple[str, pa.Schema]]] = {}  # by the path to the step, and its text
        for id, (path, text, columns) in saved_tables(manifest).items():
            self._tables.setdefault((steps_of(path), text), []).append((id, columns))
        self._reads: dict[str, Node] = {}

    def rows(self, node: Node) -> Node:
        """Returns a step that gives the rows of the table whose changes `node` emits, as they were at the checkpoint. Raises NotKept."""
        if isinstance(node, Changelog | Materialize):
            return self.rows(node.inputs[0])
        (id, columns), *others = self._tables.get((_path(node), node.text()), [("", None)])
        if columns is not None and not others and node.changes:
            if id not in self._reads:
                self._reads[id] = node_of(self._app.stream(SavedTable(self._manifest, id, columns, self._clean)))
            return self._reads[id]
        if isinstance(node, Upsert) and node.input.changes and set(node.input.unique or ()) == set(node.keys):
            return self.rows(node.input)
        if isinstance(node, Read):
            raise NotKept(f"{node.name} is read, and not kept")
        if isinstance(node, TwoInputs):
            why = "a join keeps the rows of its two tables, and no table of the joined ones"
            raise NotKept(f"{why}: ask for these tables, and join them in the question")
        if not isinstance(node, RowStep | MapBatches | Union):
            why = "the app has changed since, or filters its rows first" if node.changes else "its rows are not kept"
            raise NotKept(f"checkpoint {self._manifest.checkpoint_id} has no table of {node.text()!r}: {why}")
        inputs = [self.rows(each) for each in node.inputs]
        for below, names in zip(inputs, node.mentioned, strict=True):
            if missing := sorted(names - set(below.column_names or names)):
                raise NotKept(f"the app does not keep its column {missing[0]}, which nothing in it uses")
        return node.over(*inputs)


def _path(node: Node) -> str:
    """Returns the path to a step that has one input, as a checkpoint names it; "" for others."""
    if len(node.inputs) != 1:
        return ""
    paths: dict[int, str] = {}
    for each in walk(node.inputs):
        paths[id(each)] = path_of(each, [paths[id(input)] for input in each.inputs])
    return steps_of(paths[id(node.inputs[0])])


def _tables_of(program: App) -> Iterator[tuple[str, Callable[[_SavedTables], Node]]]:
    """Yields the tables of an app, each with the function that returns its rows: views, then what is written."""
    known = program.sql_session.tables()
    for name, rows in known.items():
        if rows is not None:
            yield name, partial(_of_view, node_of(rows))
    written: dict[str, list[StreamEnd]] = {}
    for end in optimise(program.spec.ends):
        if isinstance(end, Write):
            sink = end.sink.name if isinstance(end.sink, Sink) else end.sink
            for name in dict.fromkeys(filter(None, (end.origin.name.removeprefix("INSERT INTO "), sink))):
                written.setdefault(name, []).append(end)
    for name, ends in written.items():
        yield name, partial(_of_ends, ends)
    for name in known:
        yield name, _not_written  # of the others; the first of a name counts


def _of_view(node: Node, kept: _SavedTables) -> Node:
    try:
        return kept.rows(node)
    except NotKept:  # the plan moves filters to the sources
        (end,) = optimise([Write(node, "view", None)])
        return kept.rows(end.inputs[0])


def _of_ends(ends: list[StreamEnd], kept: _SavedTables) -> Node:
    if len(ends) > 1:
        raise NotKept("several statements write into it")
    return kept.rows(ends[0].inputs[0])


def _not_written(kept: _SavedTables) -> Node:
    raise NotKept("it is read, and not kept")
