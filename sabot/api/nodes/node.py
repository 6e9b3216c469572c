"""What every step of a stream answers about itself, before anything runs.

The checks of `api/stream`, and the loops of `plan/optimise` and `plan/planner`, ask nothing but these questions, so a new step is a
subclass of `Node` that answers them. The answers here are those of a step that

    - has one input, and passes its columns on as they are (`column_names`, `given`),
    - names no column (`mentioned`), and needs all columns of its input (`asks`),
    - takes append streams only, and gives one (`takes_changes`, `changes`, `unique`),
    - keeps the event time of each row, and does not go by it (`keeps_time`, `gives_time`, `needs_time`, `goes_by_time`).

A step overrides what is otherwise with it. A step is immutable, so answers that are made from those of its inputs are found once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, TypeAlias

from sabot.api.expr import Expr
from sabot.api.words import check_names
from sabot.codecs.engine_columns import OP_COLUMN, TIME_COLUMN
from sabot.errors import UserError

Columns: TypeAlias = frozenset[str] | None
"""Names of columns; None: all."""

_OURS = {OP_COLUMN, TIME_COLUMN}


@dataclass(frozen=True, eq=False)
class Node:
    """One step. Compared by identity: two steps may do the same and stay two."""

    word: ClassVar[str]
    """The step as users write it: "top_n". Errors begin with it."""

    # -- the graph ----------------------------------------------------------------------------------------------------

    @property
    def inputs(self) -> tuple["Node", ...]:
        """The steps whose rows come in."""
        node = getattr(self, "input", None)
        return () if node is None else (node,)

    def over(self, *inputs: "Node") -> "Node":
        """The same step over other inputs, as many as it has."""
        return replace(self, input=inputs[0]) if inputs else self  # type: ignore[call-arg]

    def text(self) -> str:
        """What the step does, as a plan shows it: "top 3 by account, order amount descending". Its first word names the operator."""
        return self.word

    # -- columns ------------------------------------------------------------------------------------------------------

    @cached_property
    def column_names(self) -> list[str] | None:
        """The columns of the rows that it gives, in order; None where a function of the user's, or records to come, decide."""
        return self.inputs[0].column_names

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        """For each input, the columns of it that the step names."""
        return (frozenset(),) * len(self.inputs)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        """For each input, the columns of it that are needed when only `wanted` of the step's own are."""
        return (None,) * len(self.inputs)

    @property
    def keeps_rows(self) -> bool:
        """Whether it keeps its inputs' rows with all columns that they have: those that nothing behind it uses are dropped before it."""
        return False

    def moved_before(self, predicate: Expr) -> Expr | None:
        """The predicate over the columns of the inputs, where a filter behind the step may stand before it; None: it may not."""
        return None

    # -- changes ------------------------------------------------------------------------------------------------------

    takes_changes: ClassVar[bool] = False
    """Whether its inputs may be changes (see `operators/base`). Where only some of them may, `append_only` says which may not."""

    hint_of_changes: ClassVar[str] = ""
    """What to write instead, where its input is changes and it cannot take them."""

    @property
    def append_only(self) -> tuple["Node", ...]:
        """The inputs that must not be changes."""
        return () if self.takes_changes else self.inputs

    @cached_property
    def changes(self) -> bool:
        """Whether its rows are changes: they may take back what earlier ones said."""
        return False

    @cached_property
    def unique(self) -> tuple[str, ...] | None:
        """Columns of which a table made of its changes has each value once; None: not known, or its rows are no changes."""
        return None

    @property
    def upserted(self) -> bool:
        """The program says by which key its changes are to be kept: `.upsert(…)` stands before, and only steps over single rows since."""
        return False

    def versions(self) -> "Node":
        """A step that gives every version of the table's rows, also those that later rows replace, for a join as of event time."""
        return self.over(self.inputs[0].versions())

    # -- event time ---------------------------------------------------------------------------------------------------

    keeps_time: ClassVar[bool] = True
    """Each of its rows has the event time of a row that came in. False: its rows are made of several, or by the user's functions."""

    carries_time: ClassVar[bool] = False
    """Where its input has event time, it is read and goes through the step, though nothing behind may need it."""

    @property
    def gives_time(self) -> bool:
        """Whether its rows have event times of its own making, whatever its input has: steps behind it ask nothing of those before it."""
        return False

    @property
    def needs_time(self) -> bool:
        """Whether it cannot do without event time, so that the sources before it must have it."""
        return False

    @property
    def goes_by_time(self) -> bool:
        """Whether its result depends on event time where rows have it, though it can do without."""
        return False

    @property
    def keeps_times(self) -> bool:
        """Whether event times are in the state that it keeps, so that it cannot go on with another event time."""
        return self.needs_time or self.goes_by_time

    @property
    def time_of_left(self) -> bool:
        """Whether, for a step of two inputs, event time of the left is enough: rows of the right then have the time when they come."""
        return False

    @property
    def given(self) -> dict[str, str | None]:
        """The columns to which the step gives their names -> the column of the input that each is no more than; None: another value."""
        return {}

    @cached_property
    def event_times(self) -> dict[str, bool]:
        """The names that stand for the event time of its rows: of the column that it was read from, through all steps -> whether the values
        of that column are known to be the times as they are, in ms; False: they may have a unit, or be texts.

        Event time goes with the row, and its column keeps that meaning under another name. Where the column is gone its name still
        stands for it, so that no other comes under it unseen; a function over batches that gives the column again gives new event
        times. Behind steps that make rows of several, event time is no column's: none. Several: behind a union.
        """
        if not self.keeps_time:
            return {}
        return {self._time_behind(time) or time: as_is for time, as_is in self.inputs[0].event_times.items()}

    def _time_behind(self, time: str) -> str | None:
        """What the step calls the event time that its input calls `time`; None: it gives that name to something else."""
        given = self.given
        if time in given:
            return time if given[time] == time else None
        return next((name for name, column in given.items() if column == time), time)

    # -- checks -------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises UserError where the step names a column that is not there, or cannot take the changes that come."""
        for upstream, names in zip(self.inputs, self.mentioned, strict=True):
            check_columns(self.word, upstream, sorted(names))
        for name in _OURS.intersection(self.column_names or ()):
            raise UserError(f"{self.word}: no column can be called {name!r}", hint="a column of ours stands there")
        if any(upstream.changes for upstream in self.append_only):
            raise refused_changes(self.word, self.hint_of_changes)


class AddsColumns(Node):
    """A step that passes on the rows of its input, with further columns behind them, whose names are those of `given`."""

    @cached_property
    def column_names(self) -> list[str] | None:
        known = self.inputs[0].column_names
        return None if known is None else [*known, *self.given]

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (with_more(without(wanted, self.given), *self.mentioned),)


def time_column(node: Node) -> str | None:
    """Returns the column whose values are the event times of the step's rows, or None if no column is, or not the same one in all rows."""
    times = node.event_times
    return next((time for time, as_is in times.items() if as_is), None) if len(times) == 1 else None


def check_event_time(node: Node) -> None:
    """Raises UserError if the step puts other values into the column of the event time. Called only if a step goes by event time."""
    if not node.inputs or not node.keeps_time:
        return
    for time in sorted(node.inputs[0].event_times):
        if node._time_behind(time) is None:
            raise UserError(
                f"{node.word}: {time!r} is the stream's event time, and windows would still go by what it was",
                hint="give the new column another name; or .with_time(…) behind it says that windows go by it",
            )


def walk(ends: Iterable[Node]) -> list[Node]:
    """Every step that leads to these, once; inputs before those that read them."""
    order: dict[int, Node] = {}

    def visit(node: Node) -> None:
        if id(node) in order:
            return
        for upstream in node.inputs:
            visit(upstream)
        order[id(node)] = node

    for end in ends:
        visit(end)
    return list(order.values())


def with_id(node: Node, id: str) -> Node:
    """The step, or the last one before it that keeps state, under this id. Raises UserError where there is none, or it has one already."""
    if hasattr(node, "id"):
        if node.id:
            raise UserError(f"named: this step is called {node.id!r} already", hint="name it once")
        return replace(node, id=id)  # type: ignore[call-arg]
    if len(node.inputs) != 1:
        hint = "call it right behind the step that keeps state: aggregate, join, top_n, …"
        raise UserError(f"named({id!r}): no step before this place keeps state", hint=hint)
    return node.over(with_id(node.inputs[0], id))


def check_columns(where: str, node: Node, names: Iterable[str]) -> None:
    """Raises UserError for the first of these that is no column of the step's rows, as far as they are known."""
    if node.column_names is not None:
        check_names(where, names, node.column_names)


def refused_changes(what: str, instead: str = "") -> UserError:
    """For a step whose input must be an append stream, and is not."""
    return UserError(
        f"{what}: the rows that come in are changes (updates and deletes of earlier ones), which it cannot take",
        hint=f"{instead}.materialize() waits for the final rows, .changelog() gives each change as a row of its own",
    )


def with_more(columns: Columns, more: Iterable[str]) -> Columns:
    """These columns too."""
    return None if columns is None else columns.union(more)


def without(columns: Columns, fewer: Iterable[str]) -> Columns:
    """The columns but for these, which the step itself gives."""
    return None if columns is None else columns.difference(fewer)
