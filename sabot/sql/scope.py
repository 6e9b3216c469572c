"""The tables of a query as they are bound: a stream, and the SQL names of its columns."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from sabot.api.calls import LookupOptions
from sabot.api.expr import Expr, col
from sabot.api.nodes.node import WAYS_OF_CHANGES, Node, time_column, walk
from sabot.api.nodes.origin import StepOrigin, originating
from sabot.api.nodes.read import Read, endless_read
from sabot.api.nodes.times import WithTime
from sabot.api.stream import Stream
from sabot.api.stream.stream import Steps
from sabot.api.windows import (
    CalendarWindow,
    ClockWindow,
    CumulativeWindow,
    HoppingWindow,
    SessionWindow,
    TumblingWindow,
)
from sabot.base.arrays import is_time
from sabot.errors import UserError
from sabot.sql.syntax.text import Span, SqlFault, SqlText, list_names, near_names
from sabot.sql.syntax.tree import Alias, Call, Expression, Name

_log = logging.getLogger(__name__)

_WAYS_OF_CHANGES = (
    "a ranking by the event time, a ranking within a window, and SELECT DISTINCT give final rows; or take this step first and rank "
    "last, into a table with a PRIMARY KEY"
)

TimeWindow = TumblingWindow | CalendarWindow | HoppingWindow | CumulativeWindow | ClockWindow | SessionWindow


class TypedExpr(NamedTuple):
    """A bound expression: the engine's expression and its type."""

    expr: Expr
    type: pa.DataType


@dataclass(frozen=True, slots=True)
class WindowEdge:
    """A column that has the start, the end, or the last millisecond ("time") of a window. `partition`: the columns that
    PARTITION BY of SESSION names.
    """

    edge: Literal["start", "end", "time"]
    window: TimeWindow
    partition: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column of a table in FROM.

    - `qualifier`: the alias of the table, or an empty text.
    - `name`: the name in SQL.
    - `column`: the name of the stream's column.
    - `shift_ms`: the distance of the values from the event time of the row; None for values that are no event time.
    - `window`: set if the values are the start or the end of the row's window.
    - `clock`: True for PROCTIME(), which has no value in a row.
    - `never_null`: True if no value is NULL.
    - `session_key`: the name in the table of sessions, for a column of its PARTITION BY; else empty.
    - `merged`: True for a key that USING has made one column of two: only `qualifier.name` finds it.
    - `shown`: the type in SQL of a column that has another type in the engine, with the same values; else None. It is
      TIMESTAMP for the bounds of windows of a TIMESTAMP, which the engine has as times in UTC.
    """

    qualifier: str
    name: str
    column: str
    type: pa.DataType
    shift_ms: int | None = None
    window: WindowEdge | None = None
    clock: bool = False
    merged: bool = False
    never_null: bool = False
    session_key: str = ""
    shown: pa.DataType | None = None

    @property
    def sql_type(self) -> pa.DataType:
        """The type of the column in SQL."""
        return self.type if self.shown is None else self.shown


def has_text_of_event_time(relation: "Relation", column: str) -> bool:
    """Returns True if a column of texts has the event times of the rows, as ISO 8601 has them."""
    node = node_of(relation.stream)
    given = [each for each in walk([node]) if isinstance(each, Read | WithTime)]
    return column in node.event_times and not any(each.time_format or each.time_unit for each in given)


def clock_column(name: str, qualifier: str = "") -> TableColumn:
    """Returns the column of a PROCTIME()."""
    return TableColumn(qualifier, name, name, pa.null(), clock=True)


def is_clock(node: Expression) -> bool:
    """Returns True for PROCTIME()."""
    return isinstance(node, Call) and node.name.text.upper() == "PROCTIME" and not node.arguments


@dataclass(frozen=True, slots=True)
class StarName(Name):
    """A name that `*` stands for. `column`: the column of the table, which needs no search."""

    column: TableColumn | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """ROW_NUMBER, RANK or DENSE_RANK over the rows of a table, which an outer query bounds (`WHERE n <= 3`).

    `column`: its name in the table. `by`: pairs of a column and True for the greatest first. `time`: "event" if the order is that of
    event time, ascending; "first" or "last" if it is that in which rows arrive (`ORDER BY PROCTIME()`), ascending or descending;
    else "". `ttl`: the time of the hint STATE_TTL, or None.
    """

    column: str
    ties: Literal["row_number", "rank", "dense_rank"]
    partition: tuple[str, ...]
    by: tuple[tuple[str, bool], ...]
    span: Span
    time: Literal["", "event", "first", "last"] = ""
    ttl: str | None = None


FindsRows = Callable[[Sequence[str]], tuple[Callable[[Any], Any], LookupOptions]]
"""A function that returns, for the columns of a key, the coroutine function which finds the rows of a key, as {"found": [row, …]}, or
None, and the options of `Stream.lookup` for it.
"""


@dataclass(frozen=True, slots=True)
class Relation:
    """A bound table: rows and the names by which a query may use them.

    - `window`: the window of TABLE(TUMBLE(…)) and its kin, before GROUP BY has applied it.
    - `ranking`: the ranking that the rows do not have yet.
    - `calls`: the columns of the stream that have results of registered functions, by `key_of` of the call.
    - `key`: the PRIMARY KEY of a table that CREATE TABLE declares, empty if it has none; None for any other table.
    """

    stream: Stream
    fields: tuple[TableColumn, ...]
    window: TimeWindow | None = None
    ranking: Ranking | None = None
    calls: Mapping[Any, TypedExpr] = field(default_factory=dict)
    key: tuple[str, ...] | None = None

    def named(self, qualifier: str) -> "Relation":
        """Returns the same table under another alias."""
        return replace(self, fields=tuple(replace(each, qualifier=qualifier) for each in self.fields))

    @property
    def schema(self) -> pa.Schema:
        """The columns of the stream with their types."""
        types = {each.column: each.type for each in self.fields if not each.clock}
        types |= {str(each.expr.column): each.type for each in self.calls.values()}
        return pa.schema(types.items())

    def find(self, parts: tuple[Name, ...]) -> tuple[TableColumn, tuple[Name, ...]]:
        """Returns the field that a name means, and the names behind it, which are fields of a struct.

        Raises SqlFault if there is none, or if several tables have it.
        """
        first = parts[0].text
        if isinstance(parts[0], StarName) and parts[0].column is not None:
            return parts[0].column, parts[1:]
        if len(parts) > 1 and (found := self._of(self._qualified(first), parts[1])):
            return found, parts[2:]
        found = self._of((each for each in self.fields if not each.merged), parts[0])
        if found is not None and (len(parts) == 1 or pa.types.is_struct(found.type) or not self._qualified(first)):
            return found, parts[1:]
        span = parts[0].span.to(parts[-1].span)
        if len(parts) > 1 and (known := self._qualified(first)):
            names = [each.name for each in known]
            raise SqlFault(parts[1].span, f'{first} has no column "{parts[1].text}"', list_names(parts[1].text, names))
        if len(parts) > 1:
            tables = dict.fromkeys(each.qualifier for each in self.fields if each.qualifier)
            raise SqlFault(span, f'there is no table or column "{first}"', list_names(first, tables))
        names = [each.name for each in self.fields]
        hint = list_names(first, names) if names else "SELECT … FROM table"
        if parts[0].quoted:
            near = near_names(first, names)
            hint = f"a text has single quotes: '{first}'" + (f"; {near}" if near else "")
        elif first.lower() in ("window_start", "window_end", "window_time"):
            hint = "FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' HOUR)) has it"
        raise SqlFault(span, f'there is no column "{first}"', hint)

    def _qualified(self, qualifier: str) -> list[TableColumn]:
        exact = [each for each in self.fields if each.qualifier == qualifier]
        return exact or [each for each in self.fields if each.qualifier.lower() == qualifier.lower()]

    def _of(self, fields: Iterable[TableColumn], name: Name) -> TableColumn | None:
        every = list(fields)
        found = [each for each in every if each.name == name.text]
        if not found and not name.quoted:
            found = [each for each in every if each.name.lower() == name.text.lower()]
        if len(found) > 1:
            tables = [f"{each.qualifier}.{each.name}" for each in found]
            message = f'"{name.text}" may be {" or ".join(tables)}'
            if len(set(tables)) < len(tables) or not all(each.qualifier for each in found):
                raise SqlFault(name.span, f'several columns are called "{name.text}"', "give them aliases")
            raise SqlFault(name.span, message, "write the name of the table before it")
        return found[0] if found else None

    def stars(self, qualifier: tuple[Name, ...], span: Span) -> list[TableColumn]:
        """Returns the fields of `*` or `qualifier.*`."""
        if not qualifier:
            return [each for each in self.fields if not each.merged]
        name = ".".join(part.text for part in qualifier)
        found = self._qualified(name)
        if not found:
            tables = dict.fromkeys(each.qualifier for each in self.fields)
            raise SqlFault(span, f'there is no table "{name}"', list_names(name, tables))
        return found


def check_plain(relation: Relation, span: Span, place: str, *, clocks: bool = False) -> None:
    """Raises SqlFault for rows with columns that have no values yet. `place`: the clause that needs them. `clocks`: True
    if columns of the time of processing are allowed.
    """
    for each in relation.fields:
        if each.clock and not clocks:
            message = f"{each.name} is the time of processing, which has no value in a row {place}"
            raise SqlFault(span, message, "name the other columns in place of *")
    if relation.ranking is not None or relation.window is not None:
        raise SqlFault(span, f"group or bound the rows of this query {place}")


def renamed(relation: Relation, alias: Alias) -> Relation:
    """Returns the table under an alias, with the names of its columns if the alias has them."""
    if not alias.columns:
        return relation.named(alias.name.text)
    if len(alias.columns) != len(relation.fields):
        message = f"{alias.name.text} has {len(relation.fields)} columns, and {len(alias.columns)} names"
        raise SqlFault(alias.name.span.to(alias.columns[-1].span), message)
    fields = [
        replace(each, name=name.text, qualifier=alias.name.text)
        for each, name in zip(relation.fields, alias.columns, strict=True)
    ]
    return replace(relation, fields=tuple(fields))


def as_shown(relation: Relation) -> Stream:
    """Returns the rows with the types that their columns have in SQL (`TableColumn.shown`)."""
    shown = {each.column: col(each.column).cast(each.shown) for each in relation.fields if each.shown is not None}
    return relation.stream.with_columns(**shown) if shown else relation.stream


def node_of(stream: Stream) -> Node:
    """Returns the step of a stream, which knows its columns and its event time."""
    return steps_of(stream).node


def steps_of(stream: Stream) -> Steps:
    """Returns the steps of a stream, to which a step can be added."""
    steps = Steps.of(stream)
    if steps is None:
        raise UserError(f"{stream!r} is not a stream", hint="app.stream(…)")
    return steps


def time_of_rows(stream: Stream) -> str | None:
    """Returns the column that has the event times of a stream's rows as they are, or None: they may be computed, texts, in another
    unit, on the clocks of a zone, or have come since with a `with_time` of such.
    """
    node = node_of(stream)
    if (found := time_column(node)) is not None:
        return found
    given = [each for each in walk([node]) if isinstance(each, Read | WithTime)]
    if len(node.event_times) != 1 or any((each.time_format or each.time_zone or each.time_unit) for each in given):
        return None
    (time,) = node.event_times
    kinds = [field.type for field in stream.schema if field.name == time]
    return time if kinds and is_time(kinds[0]) else None


def warn_of_growth(stream: Stream, what: str, kept: str, instead: str) -> None:
    """Warns that a step keeps rows of a stream without an end for ever. `what`: the clause. `instead`: what bounds it.

    The rows of a table that is updated are kept below already.
    """
    if not stream.changes and endless_read(node_of(stream)) is not None:
        _log.warning("%s keeps %s for ever; %s", what, kept, instead)


def may_expire(stream: Stream) -> bool:
    """Returns True if the rows of a stream have an event time at which the state of a step over them can expire."""
    return not stream.changes and bool(node_of(stream).event_times)


def ttl_of(
    relation: "Relation", stream: Stream, hinted: str | None, session: str | None, span: Span, what: str, kept: str
) -> str | None:
    """Returns the time that STATE_TTL (`hinted`) or the session gives the state of a clause, or None for no end.

    `relation`: the rows of FROM.

    Raises SqlFault if STATE_TTL asks for it and the rows have no event time. Warns if the state of a stream without an
    end is kept for ever: `what` is the clause, `kept` what it keeps.
    """
    if hinted is not None:
        if not may_expire(stream):
            raise SqlFault(
                span,
                "STATE_TTL counts event time, and these rows have none",
                "WATERMARK FOR ts AS ts - INTERVAL '5' SECOND in CREATE TABLE",
            )
        return hinted
    if session is not None and may_expire(stream):
        return session
    name = next((each.qualifier for each in relation.fields if each.qualifier), "")
    instead = "a window bounds it: FROM TABLE(TUMBLE(…))"
    if may_expire(stream) and name:
        instead += f", or the hint /*+ STATE_TTL('{name}' = '1d') */"
    elif session is not None:
        instead = f"'table.exec.state.ttl' has no effect without an event time; {instead}"
    warn_of_growth(stream, what, kept, instead)
    return None


def fields_of(stream: Stream, qualifier: str, times: dict[str, int] | None = None) -> tuple[TableColumn, ...]:
    """Returns the fields of all columns of a stream. `times`: the columns that are event time, with their shift."""
    shifts = times or {}
    return tuple(
        TableColumn(qualifier, each.name, each.name, each.type, shifts.get(each.name), never_null=each.name in shifts)
        for each in stream.schema
    )


def hint_of_time(relation: "Relation", end: str = "") -> str:
    """Returns the column of a table that is its event time, and `end`; if there is none, also how it gets one."""
    known = next((each.name for each in relation.fields if each.shift_ms is not None), None)
    if known is not None:
        return f"{known}{end}"
    ways = "WATERMARK FOR ts AS ts - INTERVAL '5' SECOND, or stream.with_time(\"ts\")"
    return f"ts{end}, once its table has a TIMESTAMP as event time: {ways}"


@dataclass(slots=True)
class Names:
    """Names of columns that are taken. A further column of a name gets a number: id, id0, id1."""

    taken: set[str] = field(default_factory=set)

    def free(self, name: str) -> str:
        """Returns the name, or the name with the first free number, and takes it."""
        found, number = name, 0
        while found in self.taken:
            found, number = f"{name}{number}", number + 1
        self.taken.add(found)
        return found


def names_of(relation: Relation) -> Names:
    """Returns the names of a table's columns, those that no query can see included."""
    return Names({each.column for each in relation.fields} | set(node_of(relation.stream).column_names or ()))


@dataclass(frozen=True, slots=True)
class _Statement:
    """The statement that is bound now. `name`: the name of its steps (`StepOrigin`). `span`: the place in its text."""

    name: str
    text: SqlText
    span: Span


_bound: ContextVar[_Statement | None] = ContextVar("bound", default=None)


def _origin() -> StepOrigin:
    statement = _bound.get()
    if statement is None:
        return StepOrigin()
    row, column = statement.text.position(statement.span.start)
    return StepOrigin(statement.name, f"{statement.text.name}:{row}:{column}")


def statement_name() -> str:
    """Returns the name of the statement that is bound now, without the names of queries in it; "" if it has none."""
    statement = _bound.get()
    return "" if statement is None else statement.name.split(", ")[0]


@contextmanager
def stated(name: str, text: SqlText, span: Span) -> Iterator[None]:
    """Returns a context in which the steps of the engine that are made have this statement as their origin.

    `name`: a name that no change elsewhere in the text affects, such as "INSERT INTO totals"; "" for a query.
    """
    token = _bound.set(_Statement(name, text, span))
    try:
        with originating(_origin):
            yield
    finally:
        _bound.reset(token)


@contextmanager
def part_of_statement(name: str) -> Iterator[None]:
    """Returns a context in which steps are of a part of the statement that is bound now: a query that has a name."""
    statement = _bound.get()
    if statement is None or not statement.name:
        yield
        return
    token = _bound.set(replace(statement, name=f"{statement.name}, {name}"))
    try:
        yield
    finally:
        _bound.reset(token)


@contextmanager
def at(span: Span) -> Iterator[None]:
    """Turns a UserError of the engine into an error at this place of the text, which new steps have as their place."""
    statement = _bound.get()
    token = None if statement is None else _bound.set(replace(statement, span=span))
    try:
        yield
    except UserError as error:
        hint = getattr(error, "hint", "") or ""
        hint = _WAYS_OF_CHANGES if hint.endswith(WAYS_OF_CHANGES) else hint
        raise SqlFault(span, error.args[0] if error.args else str(error), hint) from error
    finally:
        if token is not None:
            _bound.reset(token)
