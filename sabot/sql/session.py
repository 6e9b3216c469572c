"""SQL programs: the statements of a text, one after the other, over the tables of one app."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sabot.api.expr import Expr
from sabot.api.nodes.node import time_column
from sabot.api.stream import Stream
from sabot.errors import UserError
from sabot.sql.catalog import read_table, write_table
from sabot.sql.options import SqlHost, SqlOptions
from sabot.sql.relations import QueryBinder, renamed
from sabot.sql.scope import Relation, fields_of, node_of
from sabot.sql.syntax.parser import parse
from sabot.sql.syntax.text import Fault, SqlError, SqlFault, SqlText, list_names
from sabot.sql.syntax.tree import (
    Alias,
    CreateFunction,
    CreateTable,
    CreateView,
    DropStatement,
    Explain,
    Insert,
    Name,
    Query,
    SetOption,
    Statement,
    StatementSet,
)
from sabot.sql.values import Context

if TYPE_CHECKING:
    from sabot.api.streams import HasStreams


class Session:
    """The tables, views and streams that SQL statements of an app know, and the statements that run over them.

    `host`: the app once more, whose settings SET changes. `type_of`: see `Context`.
    """

    def __init__(self, app: "HasStreams", host: SqlHost, type_of: Callable[[Expr, pa.Schema], pa.DataType]) -> None:
        self._app = app
        self._options = SqlOptions(host)
        self._type_of = type_of
        self._relations: dict[str, tuple[str, CreateTable | Relation]] = {}  # by the name in lower case
        self._read: dict[str, Relation] = {}  # of tables that a query has read

    def register(self, name: str, stream: Stream) -> None:
        """Makes a stream a table of this name. Raises UserError for anything but a stream of the app."""
        if not isinstance(stream, Stream):
            raise UserError(f"register({name!r}): {stream!r} is not a stream", hint="app.stream(…)")
        self._relations[name.lower()] = (name, _relation_of(stream, name))
        self._read.pop(name.lower(), None)

    def run(self, text: str, values: Mapping[str, Any], name: str = "SQL") -> Stream | None:
        """Runs the statements of a text, and returns the stream of the last one if that is a query.

        `values`: the values of parameters (`:least`), and streams, which are tables of this text. Raises SqlError with
        the errors of all statements.
        """
        source = SqlText(text, name)
        statements = parse(source)
        tables = {key: value for key, value in values.items() if isinstance(value, Stream)}
        parameters = {key: value for key, value in values.items() if key not in tables}
        scope = _Statements(self, Context(self._type_of, parameters, {}), tables)
        faults: list[Fault] = []
        result: Stream | None = None
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


def _is_about(fault: Fault, names: set[str]) -> bool:
    """Returns True for an error that only says that a table is missing whose own statement has an error."""
    return any(fault.message.lower() == f'there is no table "{name}"' for name in names)


def _relation_of(stream: Stream, name: str) -> Relation:
    time = time_column(node_of(stream))
    return Relation(stream, fields_of(stream, name, {time: 0} if time is not None else None))


class _Statements:
    """One run of a text: the tables of the session and those that were given with the text."""

    def __init__(self, session: Session, context: Context, given: Mapping[str, Stream]) -> None:
        self._session = session
        self._context = context
        self._given = {name.lower(): _relation_of(stream, name) for name, stream in given.items()}
        self._queries = QueryBinder(context, self._find)

    def run(self, statement: Statement, *, last: bool) -> Stream | None:
        """Runs a statement. Returns the stream of a query."""
        session = self._session
        if isinstance(statement, Query):
            if not last:
                raise SqlFault(statement.span, "only the last statement is a query: its rows are the result")
            return self._finished(self._queries.query(statement))
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
            key = self._key(statement.name)
            if key not in session._relations:
                if not statement.if_exists:
                    raise self._missing(statement.name)
                return None
            del session._relations[key]
            session._read.pop(key, None)
        elif isinstance(statement, CreateFunction):
            name = statement.name[-1].text
            raise SqlFault(statement.span, f"function {name} is a class of Java", f'app.register("{name}", function)')
        elif isinstance(statement, SetOption):
            session._options.run(statement)
        elif isinstance(statement, Explain):
            raise SqlFault(statement.span, "EXPLAIN is not supported here", "app.sql(…).explain()")
        else:
            raise SqlFault(statement.span, "this statement is for the shell")
        return None

    def _finished(self, relation: Relation) -> Stream:
        if relation.ranking is not None:
            raise SqlFault(
                relation.ranking.span,
                "a ranking needs a bound",
                "SELECT * FROM (SELECT …, ROW_NUMBER() OVER (…) AS n FROM t) WHERE n <= 3",
            )
        return relation.stream

    def _key(self, parts: tuple[Name, ...]) -> str:
        if len(parts) > 1:
            raise SqlFault(parts[0].span.to(parts[-1].span), "there are no catalogs and databases", parts[-1].text)
        return parts[0].text.lower()

    def _missing(self, parts: tuple[Name, ...]) -> SqlFault:
        known = [name for name, _ in self._session._relations.values()] + list(self._given)
        return SqlFault(parts[0].span, f'there is no table "{parts[0].text}"', list_names(parts[0].text, known))

    def _find(self, parts: tuple[Name, ...]) -> Relation:
        key = self._key(parts)
        if key in self._given:
            return self._given[key]
        found = self._session._relations.get(key)
        if found is None:
            raise self._missing(parts)
        _, table = found
        if isinstance(table, Relation):
            return table
        read = self._session._read
        if key not in read:
            read[key] = read_table(self._session._app, self._context, table)
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
        for node, word in ((statement.like, "LIKE"), (statement.query, "AS")):
            if node:
                raise SqlFault(statement.span, f"CREATE TABLE … {word} is not supported", "write its columns")
        names = [each.name.text.lower() for each in statement.columns]
        for each in statement.columns:
            if names.count(each.name.text.lower()) > 1:
                raise SqlFault(each.name.span, f"two columns are called {each.name.text}")
        for name in (*statement.key, *statement.partition):
            if name.text.lower() not in names:
                raise SqlFault(name.span, f'there is no column "{name.text}"', list_names(name.text, names))
        self._session._relations[self._key(statement.name)] = (statement.name[-1].text, statement)

    def _create_view(self, statement: CreateView) -> None:
        if not self._free(statement.name, statement.if_not_exists):
            return
        relation = self._queries.query(statement.query)
        name = statement.name[-1]
        relation = renamed(relation, Alias(name, statement.columns))
        self._session._relations[self._key(statement.name)] = (name.text, relation)

    def _insert(self, statement: Insert) -> None:
        key = self._key(statement.table)
        found = self._session._relations.get(key)
        if found is None:
            raise self._missing(statement.table)
        _, table = found
        if not isinstance(table, CreateTable):
            raise SqlFault(statement.table[0].span, f"{statement.table[0].text} is a view or a stream, and no table")
        relation = self._queries.query(statement.query)
        self._finished(relation)
        write_table(self._session._app, table, relation, statement.columns, statement.span)
