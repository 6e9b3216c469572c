"""Steps over the rows of a key that compare each row with those before it."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, Literal, TypeAlias

from sabot.api.aggregates import Aggregate
from sabot.api.nodes.node import AddsColumns, Columns, Node, refused_changes, with_more
from sabot.api.over import OverFunction
from sabot.api.words import by_keys, name_of, named_texts, order_text
from sabot.base.dataclass import dataclass
from sabot.base.quantities import span_words
from sabot.errors import UserError

Ties: TypeAlias = Literal["row_number", "rank", "dense_rank"]

_OF_ORDER = ("first", "last", "any", "collect_list")


class ByKey(Node):
    """A base class of steps that work on the rows of each key separately, and read no other columns by name than
    those of the key.

    The class has no dataclass fields: they would come before those of the step, and the order of fields is stored in
    checkpoints (`engine/plan/paths`).
    """

    keys: tuple[str, ...]

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (frozenset(self.keys),)


class Aggregates(ByKey):
    """A base class of steps whose result has only keys and aggregates. Such a step needs no other columns of its
    input than those that its keys and aggregates read.
    """

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
    """A base class of steps that return the first rows of each key. `by`: the order, as pairs of a column and True if
    its greatest values come first. `rank`: the name of the column for the rank of a row; None for no such column.
    """

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
    """Returns the names of the keys, and of the columns that the aggregates or functions read."""
    return frozenset(keys).union(*(each.columns for _, each in columns))


@dataclass(frozen=True, eq=False)
class RunningAggregate(Aggregates):
    """A step that emits for each row the aggregates of its key so far, including this row."""

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
    """A step that emits, for each row, one row that a function of the user has computed from all rows of the key so
    far.
    """

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
    """A step that passes the first row of each key. If the input is changes, the result is a table with the first row
    of each key that exists: if this row is deleted, the next one replaces it.
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
    """A step that keeps the first `n` rows of each key up to date, as changes. `by`: the order, as pairs of a column
    and True if its greatest values come first.
    """

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
    """A step that adds columns to each row that are computed from this row and the earlier rows of its key.

    `preceding_rows`, `preceding_ms`: the earlier rows that are used: at most so many rows, or those of so many ms of
    event time. At most one of the two is set; if both are None, all earlier rows are used. `peers`: True if an aggregate
    of all earlier rows has those of equal time that come later too, as one of `preceding_ms` has.
    """

    word = "over"
    input: Node
    keys: tuple[str, ...]
    columns: tuple[tuple[str, Aggregate | OverFunction], ...]
    preceding_rows: int | None = None
    preceding_ms: int | None = None
    peers: bool = False
    id: str = ""

    def text(self) -> str:
        frame = ", rows of equal time together" if self.peers else ""
        frame = frame if self.preceding_rows is None else f", {self.preceding_rows} rows before"
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
