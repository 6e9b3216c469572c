"""SQL programs: the statements of a text, one after the other, over the tables of one app."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from sabot.api.expr import col
from sabot.api.model_engine import ModelEngine
from sabot.api.nodes.read import Write
from sabot.api.stream import Stream
from sabot.connectors.base import Sink
from sabot.connectors.files import files
from sabot.connectors.files.formats.table import format_of
from sabot.connectors.memory import TableSink
from sabot.connectors.rows import RowsSource
from sabot.errors import UserError, short_repr
from sabot.sql.bind.equal_steps import without_repeats
from sabot.sql.bind.rankings import unbounded
from sabot.sql.bind.relations import QueryBinder
from sabot.sql.catalog import check_table, read_table, with_partition, write_table
from sabot.sql.functions import AGGREGATES, FUNCTIONS, MOMENTS
from sabot.sql.models import model_of
from sabot.sql.moments import with_clocks
from sabot.sql.options import SqlOptions
from sabot.sql.registered import (
    Registered,
    RegisteredAgent,
    RegisteredFunction,
    RegisteredModel,
    registered_function,
)
from sabot.sql.scope import Relation, as_shown, at, fields_of, node_of, renamed, stated, statement_name, time_of_rows
from sabot.sql.showing import (
    columns_table,
    connectors_table,
    declared_rows,
    is_declared,
    named_like,
    names_table,
    options_table,
    relation_rows,
)
from sabot.sql.syntax.parser import parse
from sabot.sql.syntax.text import Fault, Span, SqlError, SqlFault, SqlText, list_names
from sabot.sql.syntax.tree import (
    Alias,
    ColumnDefinition,
    CreateFunction,
    CreateModel,
    CreateTable,
    CreateView,
    Describe,
    DropStatement,
    Explain,
    Hint,
    Insert,
    Name,
    Query,
    SetOption,
    Show,
    Statement,
    StatementSet,
    TableOption,
    Use,
)
from sabot.sql.table_options import renewed
from sabot.sql.templates import TemplateText, text_of
from sabot.sql.types import type_of
from sabot.sql.values import Compile, Context

if TYPE_CHECKING:
    from sabot.api.streams import HasStreams


Result: TypeAlias = Stream | pa.Table | str | None
"""The result of a statement: the rows of a query, a table or a text for what the shell shows, or None."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A table, view or stream of a session. `table`: its CREATE TABLE, or its rows.

    `text`, `span`: its statement; a stream has none. `view`: the statement of a view.
    """

    name: str
    table: CreateTable | Relation
    text: SqlText
    span: Span
    view: CreateView | None = None


class Session:
    """The tables, views and streams that SQL statements of an app know, and the statements that run over them.

    `compile`: see `Context`. `engine_of`: makes the engine of a model that a statement declares.
    """

    def __init__(self, app: "HasStreams", compile: Compile, engine_of: Callable[..., ModelEngine[Any]]) -> None:
        self._app = app
        self._options = SqlOptions(app)
        self._compile = compile
        self._engine_of = engine_of
        self._relations: dict[str, Declared] = {}  # by the name in lower case
        self._read: dict[str, Relation] = {}  # of tables that a query has read
        self._file_sinks: dict[CreateTable, Sink] = {}  # of tables of files that statements write
        self._registered: dict[str, Registered] = {}  # by the name in lower case

    def register(self, name: str, thing: Any, options: Mapping[str, Any]) -> None:
        """Makes a stream, a function, an agent or a model known under a name. See `App.register`."""
        if not isinstance(name, str) or not name.isidentifier():
            raise UserError(f"register({name!r}): this is no name of SQL", hint="letters, digits and _")
        key = name.lower()
        registered: Registered
        if isinstance(thing, Stream):
            if options:
                raise UserError(f"register({name!r}): a stream has no {next(iter(options))}=", hint="leave it out")
            self._relations[key] = Declared(name, _relation_of(thing, name), SqlText(""), Span(0, 0))
            self._read.pop(key, None)
            return
        if hasattr(thing, "provider"):
            registered = RegisteredModel(name, thing, dict(options))
        elif not callable(thing):
            raise UserError(
                f"register({name!r}): {thing!r} is no stream, function, agent or engine of models",
                hint='app.register("f", function)',
            )
        elif self._is_agent(thing):
            registered = RegisteredAgent(name, thing)
        else:
            registered = registered_function(name, thing, options)
        self._registered[key] = registered

    def _is_agent(self, function: Any) -> bool:
        try:
            self._app.agent_of(function)
        except UserError:
            return False
        return True

    def tables(self) -> dict[str, Stream | None]:
        """Returns the rows of each view by its name, with the names and types that its columns have in SQL. The rows are None for
        a table, a registered stream, and a ranking that nothing bounds.
        """
        found: dict[str, Stream | None] = {}
        for each in self._relations.values():
            rows, found[each.name] = each.table, None
            if isinstance(rows, Relation) and each.view is not None and rows.ranking is None:
                names = {field.name: col(field.column) for field in rows.fields if not field.clock}
                found[each.name] = as_shown(rows).select(**names)
        return found

    def words(self) -> set[str]:
        """Returns the names of the tables, and of the columns that are known without reading, for completion."""
        found = set()
        for each in self._relations.values():
            table = each.table
            columns = [column.name.text for column in table.columns] if isinstance(table, CreateTable) else []
            found |= {each.name, *columns}
            if isinstance(table, Relation):
                found |= {field.name for field in table.fields}
        return found

    def run(self, text: str | TemplateText, values: Mapping[str, Any], name: str = "SQL") -> Result:
        """Runs the statements of a text, and returns the result of the last one.

        `values`: the values of parameters (`:least`), and streams, which are tables of this text. Raises SqlError with
        the errors of all statements.
        """
        if not isinstance(text, str):
            if not hasattr(text, "strings"):
                raise UserError(f"sql: {short_repr(text)} is not a text", hint='app.sql("SELECT …")')
            text, values = text_of(text, values)
        source = SqlText(text, name)
        return self.execute(source, parse(source), values)

    def execute(self, source: SqlText, statements: Sequence[Statement], values: Mapping[str, Any]) -> Result:
        """Runs statements that `parse` has read from a text; see `run`."""
        tables = {key: value for key, value in values.items() if isinstance(value, Stream)}
        parameters = {key: value for key, value in values.items() if key not in tables}
        options = self._options
        context = Context(
            self._compile,
            parameters,
            self._registered,
            self._rows,
            lambda: options.zone,
            lambda: options.state_ttl,
            lambda: options.idle,
            self._app.clock.time,
        )
        scope = _Statements(self, context, tables, source)
        faults: list[Fault] = []
        result: Result = None
        broken: set[str] = set()
        for i, statement in enumerate(statements):
            try:
                result = scope.run(statement, last=i == len(statements) - 1)
            except SqlFault as error:
                if not (broken and _is_about(error.fault, broken)):
                    faults.append(error.fault)
                if isinstance(statement, CreateTable | CreateView):
                    broken.add(statement.name[-1].text.lower())
        if faults:
            raise SqlError(source, faults)
        return result

    def _rows(self, table: pa.Table) -> Stream:
        """Returns the rows of VALUES. The name of their source is that of the statement, so that other statements do not
        change it.
        """
        base = "-".join(re.findall(r"\w+", statement_name().lower())) or "values"
        sources = [read.source.name for read in self._app.begun_streams if isinstance(read.source, RowsSource)]
        number = 1 + sum(name.startswith(f"{base}-") for name in sources)
        return self._app.stream(RowsSource(table, f"{base}-{number}"))


def _is_about(fault: Fault, names: set[str]) -> bool:
    """Returns True for an error that only says that a table is missing whose own statement has an error."""
    return any(fault.message.lower() == f'there is no table "{name}"' for name in names)


def _columns_of(rows: Relation, span: Span) -> tuple[ColumnDefinition, ...]:
    """Returns the columns of a table that CREATE TABLE … AS declares. `span`: the place of its name."""
    return tuple(
        ColumnDefinition(Name(each.name, span), type_of(each.sql_type, span), None, None, False, None, span)
        for each in rows.fields
    )


def _relation_of(stream: Stream, name: str) -> Relation:
    time = time_of_rows(stream)
    return Relation(stream, fields_of(stream, name, {time: 0} if time is not None else None))


_PARENTS = ("default_catalog", "default_database")
"""The catalog and the database of Flink in which all tables are: their names may stand before a table's."""


class _Statements:
    """One run of a text: the tables of the session and those that were given with the text."""

    def __init__(self, session: Session, context: Context, given: Mapping[str, Stream], text: SqlText) -> None:
        self._session = session
        self._context = context
        self._text = text
        self._given = {name.lower(): _relation_of(stream, name) for name, stream in given.items()}
        self._queries = QueryBinder(context, self._find)

    def run(self, statement: Statement, *, last: bool) -> Result:
        """Runs a statement, and returns its result."""
        session = self._session
        if isinstance(statement, Query):
            if not last:
                raise SqlFault(statement.span, "only the last statement is a query: its rows are the result")
            return self._finished(self._with_clocks(self._query(statement, ""), statement))
        if isinstance(statement, CreateTable):
            self._create_table(statement)
        elif isinstance(statement, CreateView):
            self._create_view(statement)
        elif isinstance(statement, Insert):
            self._insert(statement)
        elif isinstance(statement, StatementSet):
            for insert in statement.inserts:
                self._insert(insert)
        elif isinstance(statement, DropStatement):
            self._drop(statement)
        elif isinstance(statement, CreateFunction):
            name = statement.name[-1].text
            if not isinstance(session._registered.get(name.lower()), RegisteredFunction):
                message = f"the program has not registered the function {name}"
                raise SqlFault(statement.span, message, f'app.register("{name}", function)')
        elif isinstance(statement, SetOption):
            zone = session._options.zone
            options = session._options.run(statement)
            if session._options.zone != zone:
                self._bind_again(statement)
            return None if options is None else options_table(options)
        elif isinstance(statement, Use):
            used = tuple(each.text.lower() for each in statement.name)
            if used != (_PARENTS[:1] if statement.catalog else _PARENTS[-len(used) :]):
                message = f"there is no {'catalog' if statement.catalog else 'database'} {'.'.join(used)}"
                raise SqlFault(statement.span, message, f"the only one is {'.'.join(_PARENTS)}: leave USE out")
        elif isinstance(statement, Explain):
            return self._explain(statement)
        elif isinstance(statement, Show):
            shown = self._show(statement)
            return named_like(shown, statement.like) if isinstance(shown, pa.Table) else shown
        elif isinstance(statement, Describe):
            return self._describe(statement.name)
        else:
            self._create_model(statement)
        return None

    def _create_model(self, statement: CreateModel) -> None:
        key = self._key(statement.name)
        if key in self._session._registered:
            if statement.if_not_exists:
                return
            name = statement.name[-1].text
            raise SqlFault(
                statement.name[-1].span, f"there is a function or a model {name} already", f"DROP MODEL {name}"
            )
        self._session._registered[key] = model_of(statement, self._session._engine_of)

    def _drop(self, statement: DropStatement) -> None:
        key = self._key(statement.name)
        session = self._session
        tables, others = session._relations, session._registered
        known: dict[str, Any] = tables if statement.what in ("TABLE", "VIEW") else others
        if key not in known:
            if statement.if_exists:
                return
            if known is tables:
                raise self._missing(statement.name)
            name, what = statement.name[0], statement.what.lower()
            raise SqlFault(name.span, f"there is no {what} {name.text}", list_names(name.text, others))
        if known is tables:
            kind = "TABLE" if tables[key].view is None else "VIEW"
            if kind != statement.what:
                message = f"{tables[key].name} is a {kind.lower()}, and no {statement.what.lower()}"
                raise SqlFault(statement.name[0].span, message, f"DROP {kind} {tables[key].name}")
        del known[key]
        session._read.pop(key, None)

    def _query(self, query: Query, name: str, text: SqlText | None = None) -> Relation:
        """Returns the rows of a query of the statement that is bound now. `name`, `text`: those of the statement."""
        with stated(name, text or self._text, query.span):
            relation = self._queries.query(query)
        node = node_of(relation.stream)
        (merged,) = without_repeats([node], name)
        return relation if merged is node else replace(relation, stream=Stream(self._session._app, merged))

    def _with_clocks(self, relation: Relation, query: Query) -> Relation:
        """Returns the rows that leave a query, with values in their columns of PROCTIME()."""
        if relation.ranking is not None:
            return relation
        with stated("", self._text, query.span):
            return with_clocks(self._context, relation, query.span)

    def _finished(self, relation: Relation) -> Stream:
        if relation.ranking is not None:
            relation = unbounded(relation, relation.ranking)
            columns = (each.column for each in relation.fields if not each.clock)
            # without what only the ranking needed
            relation = replace(relation, stream=relation.stream.select(*columns))
        return as_shown(relation)

    def _key(self, parts: tuple[Name, ...]) -> str:
        parents = tuple(each.text.lower() for each in parts[:-1])
        if parents and parents != _PARENTS[-len(parents) :]:
            name = ".".join(part.text for part in parts)
            hint = f"a file has quotes: '{name}'" if format_of(name) else parts[-1].text
            raise SqlFault(parts[0].span.to(parts[-1].span), "there are no catalogs and databases", hint)
        return parts[-1].text.lower()

    def _missing(self, parts: tuple[Name, ...]) -> SqlFault:
        known = [each.name for each in self._session._relations.values()] + list(self._given)
        return SqlFault(parts[0].span, f'there is no table "{parts[0].text}"', list_names(parts[0].text, known))

    def _find(self, parts: tuple[Name, ...], hint: Hint | None = None) -> Relation:
        """Returns the table or view of a name. `hint`: OPTIONS, whose options come before those of the table."""
        key = self._key(parts)
        if hint is not None:
            return self._with_options(parts, hint)
        if key in self._given:
            return self._given[key]
        found = self._session._relations.get(key)
        read = self._session._read
        if found is None:
            path = parts[0].text
            if not (parts[0].quoted and format_of(path)):
                raise self._missing(parts)
            if path not in read:
                with stated(f"TABLE {path}", self._text, parts[0].span), at(parts[0].span):
                    read[path] = _relation_of(self._session._app.stream(files(path)), path)
            return read[path]
        table = found.table
        if isinstance(table, Relation):
            return table
        if key not in read:
            with stated(f"TABLE {key}", found.text, found.span):
                read[key] = read_table(self._session._app, self._context, table, parts[-1].span)
        return read[key]

    def _with_options(self, parts: tuple[Name, ...], hint: Hint) -> Relation:
        """Returns the rows of a table that is read with other options: each combination is a source of its own."""
        found = self._declared(parts)
        if not isinstance(found.table, CreateTable):
            message = f"{found.name} is a view or a stream, which has no options"
            raise SqlFault(hint.span, message, "give the hint OPTIONS to the table that the view reads")
        options = tuple(TableOption(name, value, hint.span, hint.span) for name, value in hint.options)
        named = {each.key for each in options}
        kept = (each for each in found.table.options if each.key not in named)
        table = replace(found.table, options=(*kept, *options))
        key, read = f"{self._key(parts)} {sorted(hint.options)}", self._session._read
        if key not in read:
            check_table(self._context, table)
            with stated(f"TABLE {self._key(parts)}", self._text, hint.span):
                read[key] = read_table(self._session._app, self._context, table, hint.span)
        return read[key]

    def _free(self, parts: tuple[Name, ...], maybe: bool) -> bool:
        key = self._key(parts)
        if key in self._session._relations or key in self._given:
            if maybe:
                return False
            raise SqlFault(parts[0].span, f"there is a table {parts[0].text} already", f"DROP TABLE {parts[0].text}")
        return True

    def _create_table(self, statement: CreateTable) -> None:
        if not self._free(statement.name, statement.if_not_exists):
            return
        statement = replace(statement, options=renewed(statement.options))
        if statement.like:
            statement = self._like(statement)
        if statement.query is not None and (statement.columns or statement.watermark):
            raise SqlFault(statement.span, "CREATE TABLE … AS has the columns of its query", "write no others")
        names = [each.name.text.lower() for each in statement.columns]
        for each in statement.columns:
            if names.count(each.name.text.lower()) > 1:
                raise SqlFault(each.name.span, f"two columns are called {each.name.text}")
        target = f"INSERT INTO {self._key(statement.name)}"
        rows = None
        if statement.query is not None:
            rows = self._with_clocks(self._query(statement.query, target), statement.query)
        if rows is not None:
            names = [each.name.lower() for each in rows.fields]
            if statement.key:  # the formats of keys need the types of all columns
                statement = replace(statement, columns=_columns_of(rows, statement.name[-1].span))
        for name in (*statement.key, *statement.partition):
            if names and name.text.lower() not in names:
                raise SqlFault(name.span, f'there is no column "{name.text}"', list_names(name.text, names))
        check_table(self._context, statement)
        declared = Declared(statement.name[-1].text, statement, self._text, statement.span)
        if rows is not None:
            self._finished(rows)
            with stated(target, self._text, statement.span):
                assert statement.query is not None
                place = statement.name[-1].span
                write_table(
                    self._session._app,
                    self._context,
                    statement,
                    rows,
                    (),
                    statement.query,
                    place,
                    self._session._file_sinks,
                )
        self._session._relations[self._key(statement.name)] = declared

    def _like(self, statement: CreateTable) -> CreateTable:
        """Returns the statement with the columns, the key, the watermark and the options of the table of LIKE.

        What the statement itself says comes first. With a connector of its own it takes no options: those of another
        connector have no meaning for it.
        """
        found = self._declared(statement.like)
        like = found.table
        if not isinstance(like, CreateTable):
            raise SqlFault(statement.like[0].span, f"{found.name} is a view or a stream, and no table")
        own = {option.key for option in statement.options}
        without = statement.without
        others = () if "connector" in own or "OPTIONS" in without else like.options
        kept = [
            replace(each, primary=each.primary and "CONSTRAINTS" not in without)
            for each in like.columns
            if not (each.computed is not None and "GENERATED" in without)
            and not (each.metadata is not None and "METADATA" in without)
        ]
        return replace(
            statement,
            columns=(*kept, *statement.columns),
            watermark=statement.watermark or (None if "WATERMARKS" in without else like.watermark),
            key=statement.key or (() if "CONSTRAINTS" in without else like.key),
            partition=statement.partition or (() if "PARTITIONS" in without else like.partition),
            options=(*statement.options, *(each for each in others if each.key not in own)),
            like=(),
        )

    def _create_view(self, statement: CreateView) -> None:
        if not self._free(statement.name, statement.if_not_exists):
            return
        self._bind_view(statement, self._text)

    def _bind_view(self, statement: CreateView, text: SqlText) -> None:
        """Gives the session a view. `text`: that of its statement."""
        name = statement.name[-1]
        relation = self._query(statement.query, f"VIEW {name.text.lower()}", text)
        relation = renamed(relation, Alias(name, statement.columns))
        declared = Declared(name.text, relation, text, statement.span, statement)
        self._session._relations[self._key(statement.name)] = declared

    def _bind_again(self, option: SetOption) -> None:
        """Binds the views, and the computed columns of tables, to the session's new time zone: the types of windows and of casts depend on
        it. Raises SqlFault if a view is over a stream or a parameter that only its own text had.
        """
        session = self._session
        faults: list[SqlFault] = []
        for key, each in list(session._relations.items()):
            if isinstance(each.table, CreateTable) and any(column.computed for column in each.table.columns):
                session._read.pop(key, None)
            if each.view is None:
                continue
            try:
                self._bind_view(each.view, each.text)
            except SqlFault as error:
                del session._relations[key]  # it would go on in the zone of before
                why = f"the view {each.name} is dropped, as it cannot be bound to the new time zone: {error.fault.message}"
                faults.append(SqlFault(option.span, why, f"write SET before CREATE VIEW {each.name}"))
        if faults:
            raise faults[0]

    def _insert(self, statement: Insert) -> None:
        target = f"INSERT INTO {self._key(statement.table)}"
        with stated(target, self._text, statement.span):
            self._write(statement, target)

    def _write(self, statement: Insert, target: str) -> None:
        key = self._key(statement.table)
        found = self._session._relations.get(key)
        agent = None if found is not None else self._agent(statement.table[0].text)
        if agent is not None:
            stream = self._finished(self._with_clocks(self._query(statement.query, target), statement.query))
            with at(statement.span):
                stream.to(agent)
            return
        if found is None:
            raise self._missing(statement.table)
        table = found.table
        if not isinstance(table, CreateTable):
            raise SqlFault(statement.table[0].span, f"{statement.table[0].text} is a view or a stream, and no table")
        relation = self._with_clocks(self._query(statement.query, target), statement.query)
        self._finished(relation)
        columns = statement.columns
        if statement.partition:
            relation, columns = with_partition(self._context, statement, table, relation)
        place, query = statement.table[-1].span, statement.query
        write_table(
            self._session._app, self._context, table, relation, columns, query, place, self._session._file_sinks
        )

    def _agent(self, name: str) -> Any:
        """Returns the function of the agent that is registered under a name, or has it; None if there is none."""
        registered = self._session._registered.get(name.lower())
        if isinstance(registered, RegisteredAgent):
            return registered.function
        try:
            return self._session._app.agent_of(name).func
        except UserError:
            return None

    # -- SHOW, DESCRIBE, EXPLAIN --------------------------------------------------------------------------------------

    def _declared(self, parts: tuple[Name, ...]) -> Declared:
        found = self._session._relations.get(self._key(parts))
        if found is None:
            raise self._missing(parts)
        return found

    def _show(self, statement: Show) -> Result:
        every = self._session._relations.values()
        if statement.what in ("TABLES", "VIEWS"):
            views = statement.what == "VIEWS"
            names = [each.name for each in every if not views or isinstance(each.table, Relation)]
            return names_table("view name" if views else "table name", [*names, *([] if views else self._given)])
        if statement.what == "FUNCTIONS":
            return names_table(
                "function name", [*FUNCTIONS, *MOMENTS, *AGGREGATES, *self._registered(RegisteredFunction)]
            )
        if statement.what == "MODELS":
            return names_table("model name", self._registered(RegisteredModel))
        if statement.what == "CONNECTORS":
            return connectors_table()
        if (kind := statement.what.removeprefix("CURRENT ").rstrip("S")) in ("CATALOG", "DATABASE"):
            current = "current " if statement.what.startswith("CURRENT") else ""
            return names_table(f"{current}{kind.lower()} name", [_PARENTS[kind == "DATABASE"]])
        if statement.what == "COLUMNS":
            return self._describe(statement.name)
        found = self._declared(statement.name)
        if statement.what == "CREATE TABLE" and not isinstance(found.table, CreateTable):
            raise SqlFault(
                statement.name[0].span, f"{found.name} is a view or a stream", f"SHOW CREATE VIEW {found.name}"
            )
        return found.text.shown(found.span)

    def _registered(self, kind: type) -> list[str]:
        return [each.name for each in self._session._registered.values() if isinstance(each, kind)]

    def _describe(self, name: tuple[Name, ...]) -> pa.Table:
        declared = self._session._relations.get(self._key(name))
        table = declared.table if declared is not None and isinstance(declared.table, CreateTable) else None
        if table is not None and is_declared(table):
            return columns_table(declared_rows(table))
        with self._unused():
            return columns_table(relation_rows(table, self._find(name)))

    @contextmanager
    def _unused(self) -> Iterator[None]:
        """Lets tables be read for their columns alone, so that the app does not warn of rows that nothing takes."""
        begun = self._session._app.begun_streams
        before = len(begun)
        try:
            yield
        finally:
            del begun[before:]

    def _explain(self, statement: Explain) -> str:
        app, inner = self._session._app, statement.statement
        if isinstance(inner, CreateTable):
            if inner.query is None:
                hint = f"DESCRIBE {inner.name[-1].text}, or SHOW CREATE TABLE {inner.name[-1].text}"
                raise SqlFault(inner.span, "EXPLAIN takes a query, an INSERT, or a set of INSERTs", hint)
            inner = inner.query
        with self._unused(), app.captured() as ends:
            if isinstance(inner, Query):
                stream = self._finished(self._with_clocks(self._query(inner, ""), inner))
                ends.append(Write(node_of(stream), TableSink("result"), None))
            else:
                self.run(inner, last=False)
        with at(statement.span):
            return app.explain_ends(ends, statement.kind, statement.checkpoint)
