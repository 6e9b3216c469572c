"""Steps over the rows of a key that compare each row with those before it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

from sabot.api.aggregates import Aggregate
from sabot.api.nodes.node import AddsColumns, Columns, Node, refused_changes, with_more
from sabot.api.over import OverFunction
from sabot.api.words import by_keys, name_of, named_texts, order_text
from sabot.base.quantities import span_words
from sabot.errors import UserError

Ties: TypeAlias = Literal["row_number", "rank", "dense_rank"]

_OF_ORDER = ("first", "last", "any", "collect_list")


class ByKey(Node):
    """A step over the rows of a key that names the key columns only.

    The class has no dataclass fields: they would come before those of the step, whose order is stored (`plan/paths`).
    """

    keys: tuple[str, ...]

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (frozenset(self.keys),)


class Aggregates(ByKey):
    """A step whose rows are keys and aggregates, so that it needs only the columns that the keys and aggregates read."""

    aggregates: tuple[tuple[str, Aggregate], ...]

    @cached_property
    def column_names(self) -> list[str] | None:
        return [*self.keys, *(name for name, _ in self.aggregates)]

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (_mentioned_by(self.keys, self.aggregates),)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return self.mentioned

    @property
    def goes_by_time(self) -> bool:
        return any(each.kind in _OF_ORDER for _, each in self.aggregates)


class FirstRows(AddsColumns):
    """A step that gives the first rows of each key. `by`: pairs (column, True if the greatest come first)."""

    keys: tuple[str, ...]
    by: tuple[tuple[str, bool], ...]
    rank: str | None

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (frozenset([*self.keys, *(name for name, _ in self.by)]),)

    @property
    def keeps_rows(self) -> bool:
        return True

    @property
    def given(self) -> dict[str, str | None]:
        return {} if self.rank is None else {self.rank: None}

    def check(self) -> None:
        super().check()
        if self.rank in (self.inputs[0].column_names or ()):
            raise UserError(f"top_n: rank={self.rank!r} is the name of another column", hint="choose another name")


def _mentioned_by(keys: Iterable[str], columns: Iterable[tuple[str, Aggregate | OverFunction]]) -> frozenset[str]:
    """Returns the keys, and the columns that the aggregates read."""
    return frozenset(keys).union(*(each.columns for _, each in columns))


@dataclass(frozen=True, eq=False)
class RunningAggregate(Aggregates):
    """A step that gives for each row the aggregates of its key so far, including the row."""

    word = "aggregate"
    hint_of_changes = 'group_by("key").aggregate(…) takes changes; '
    carries_time = True
    input: Node
    keys: tuple[str, ...]
    aggregates: tuple[tuple[str, Aggregate], ...]
    ttl_ms: int | None
    id: str = ""

    def text(self) -> str:
        return f"aggregate{by_keys(self.keys)}: {named_texts(self.aggregates)}"

    @property
    def needs_time(self) -> bool:
        return self.ttl_ms is not None

    @property
    def given(self) -> dict[str, str | None]:
        return dict.fromkeys(name for name, _ in self.aggregates)


@dataclass(frozen=True, eq=False)
class Reduce(ByKey):
    """A step that gives for each row the rows of its key so far, reduced to one by a function of the user."""

    word = "reduce"
    carries_time = True
    input: Node
    keys: tuple[str, ...]
    function: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
    ttl_ms: int | None
    id: str = ""

    def text(self) -> str:
        return f"reduce{by_keys(self.keys)}: {name_of(self.function)}"

    @property
    def needs_time(self) -> bool:
        return self.ttl_ms is not None


@dataclass(frozen=True, eq=False)
class Deduplicate(ByKey):
    """A step that passes the first row of each key. Over changes, the result is a table with the first existing row
    of each key: if that row is deleted, the next one takes its place.
    """

    word = "deduplicate"
    takes_changes = True
    carries_time = True
    input: Node
    keys: tuple[str, ...]
    within_ms: int | None
    id: str = ""

    def text(self) -> str:
        again = "" if self.within_ms is None else f", again after {span_words(self.within_ms)}"
        return f"deduplicate{by_keys(self.keys)}{again}"

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (with_more(wanted, self.keys),)

    @cached_property
    def changes(self) -> bool:
        return self.input.changes

    @cached_property
    def unique(self) -> tuple[str, ...] | None:
        return self.keys if self.changes else None

    @property
    def needs_time(self) -> bool:
        return self.within_ms is not None

    def check(self) -> None:
        super().check()
        if self.changes and self.within_ms is not None:
            raise refused_changes("deduplicate(within=)")


@dataclass(frozen=True, eq=False)
class TopN(FirstRows):
    """A step that keeps the first rows of each key up to date. `by`: pairs (column, True if the greatest come first)."""

    word = "top_n"
    takes_changes = True
    carries_time = True
    input: Node
    keys: tuple[str, ...]
    n: int
    by: tuple[tuple[str, bool], ...]
    ties: Ties
    rank: str | None
    id: str = ""

    def text(self) -> str:
        return f"top {self.n}{by_keys(self.keys)}, order {order_text(self.by)}"

    @cached_property
    def changes(self) -> bool:
        return True

    @cached_property
    def unique(self) -> tuple[str, ...] | None:
        return None if self.rank is None or self.ties != "row_number" else (*self.keys, self.rank)


@dataclass(frozen=True, eq=False)
class Over(AddsColumns):
    """A step that adds columns computed from a row and the rows of its key before it.

    `preceding_rows`, `preceding_ms`: the frame, as a number of earlier rows or as event time. At most one of the two
    is set; if both are None, the frame has all earlier rows.
    """

    word = "over"
    input: Node
    keys: tuple[str, ...]
    columns: tuple[tuple[str, Aggregate | OverFunction], ...]
    preceding_rows: int | None = None
    preceding_ms: int | None = None
    id: str = ""

    def text(self) -> str:
        frame = "" if self.preceding_rows is None else f", {self.preceding_rows} rows before"
        frame = frame if self.preceding_ms is None else f", {span_words(self.preceding_ms)} before"
        return f"over{by_keys(self.keys)}{frame}: {named_texts(self.columns)}"

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (_mentioned_by(self.keys, self.columns),)

    @property
    def needs_time(self) -> bool:
        return True

    @property
    def given(self) -> dict[str, str | None]:
        return dict.fromkeys(name for name, _ in self.columns)
