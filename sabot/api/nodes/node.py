"""The questions that every step of a stream answers before anything runs.

The checks of `api/stream` and the loops of `engine/plan/optimise` and `engine/plan/planner` use these questions only, so a new step
is a subclass of `Node` that answers them. The answers of `Node` itself are right for a step that

    - has one input, and passes its columns on unchanged (`column_names`, `given`),
    - names no column (`mentioned`), and needs all columns of its input (`asks`),
    - takes append-only streams, and gives one (`takes_changes`, `changes`, `unique`),
    - keeps the event time of each row, and does not use it (`keeps_time`, `gives_time`, `needs_time`, `goes_by_time`).

A step overrides the answers that differ. A step is immutable, so an answer that follows from those of its inputs is
computed once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import field, replace
from functools import cached_property
from typing import ClassVar, TypeAlias

from sabot.api.expr import Expr
from sabot.api.nodes.origin import StepOrigin, current_origin
from sabot.api.words import check_names
from sabot.base.dataclass import dataclass
from sabot.codecs.engine_columns import RESERVED
from sabot.errors import UserError

Columns: TypeAlias = frozenset[str] | None
"""Names of columns, or None for all columns."""


@dataclass(frozen=True, eq=False)
class Node:
    """One step of a stream. Nodes are compared by identity: two steps with equal fields are two different steps."""

    word: ClassVar[str]
    """The step as users write it, such as "top_n". Errors begin with it."""

    origin: StepOrigin = field(default_factory=current_origin, kw_only=True, repr=False)
    """The statement of a script that made the step. Both of its texts are empty for steps of Python."""

    # -- the graph ----------------------------------------------------------------------------------------------------

    @property
    def inputs(self) -> tuple["Node", ...]:
        """The steps whose rows this step reads."""
        node = getattr(self, "input", None)
        return () if node is None else (node,)

    def over(self, *inputs: "Node") -> "Node":
        """Returns the same step over other inputs. Their number stays the same."""
        return replace(self, input=inputs[0]) if inputs else self  # type: ignore[call-arg]

    def text(self) -> str:
        """Returns the step as a plan shows it: "top 3 by account, order amount descending". Its first word names the
        operator.
        """
        return self.word

    # -- columns ------------------------------------------------------------------------------------------------------

    @cached_property
    def column_names(self) -> list[str] | None:
        """The columns of the step's rows, in order. None if they are not known yet, because they depend on a function
        of the user or on records that were not read yet.
        """
        return self.inputs[0].column_names

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        """The columns that the step reads by name, for each of its inputs."""
        return (frozenset(),) * len(self.inputs)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        """Returns the columns that this step needs, for each of its inputs; None for all columns. `wanted`: the
        columns of this step that later steps need; None for all.
        """
        return (None,) * len(self.inputs)

    @property
    def keeps_rows(self) -> bool:
        """True if the step stores whole rows of its inputs. The planner then drops, before the step, the columns that
        no later step uses.
        """
        return False

    def moved_before(self, predicate: Expr) -> Expr | None:
        """Finds out whether a filter after this step can be moved before it. Returns the filter's predicate,
        rewritten over the columns of the inputs; None if the filter must stay where it is.
        """
        return None

    # -- changes ------------------------------------------------------------------------------------------------------

    takes_changes: ClassVar[bool] = False
    """True if the inputs may be changes (see `engine/operators/base`). If only some inputs may be changes, `append_only`
    returns the others.
    """

    hint_of_changes: ClassVar[str] = ""
    """The beginning of the hint of the error for changes that the step cannot process: another step that can. "" if
    there is none.
    """

    @property
    def append_only(self) -> tuple["Node", ...]:
        """The inputs that must be append-only, which means that they must not be changes (updates and deletes of
        earlier rows).
        """
        return () if self.takes_changes else self.inputs

    @cached_property
    def changes(self) -> bool:
        """True if the rows of the step are changes: they may update or delete earlier rows."""
        return False

    @cached_property
    def unique(self) -> tuple[str, ...] | None:
        """The columns that identify a row of the table that the step's changes maintain: no two of its rows have
        equal values in all of them. None if such columns are unknown, or if the rows are not changes.
        """
        return None

    @property
    def upserted(self) -> bool:
        """True if the user has named the key of the changes with `.upsert(…)`, and only steps that handle each row
        alone come after it.
        """
        return False

    def versions(self) -> "Node":
        """Returns a step that emits every version of the rows of the table, also the versions that were replaced
        later. A join by event time needs them.
        """
        return self.over(self.inputs[0].versions())

    # -- event time ---------------------------------------------------------------------------------------------------

    keeps_time: ClassVar[bool] = True
    """True if each row of the step has the event time of an input row; False if rows are made of several rows, or by
    functions of the user.
    """

    carries_time: ClassVar[bool] = False
    """True if event time is read and passed through the step whenever the input has it, even if no later step needs
    it.
    """

    @property
    def gives_time(self) -> bool:
        """True if the step sets new event times, so that the steps before it need no event time for the steps after
        it.
        """
        return False

    @property
    def needs_time(self) -> bool:
        """True if the step cannot work without event time, so that the rows of its sources must have it."""
        return False

    @property
    def goes_by_time(self) -> bool:
        """True if the step also works without event time, but its result depends on event time if the rows have it."""
        return False

    @property
    def keeps_times(self) -> bool:
        """True if the state of the step contains event times. It can then not be restored if the event time has
        another definition.
        """
        return self.needs_time or self.goes_by_time

    @property
    def time_of_left(self) -> bool:
        """True if a step with two inputs needs event time of the left input only. Rows of the right input then apply
        from their arrival.
        """
        return False

    @property
    def given(self) -> dict[str, str | None]:
        """The columns that the step sets, by name. The value is the name of the input's column that it passes on
        unchanged under this name, or None if it computes new values. Columns that keep their name and values may be
        missing.
        """
        return {}

    @cached_property
    def event_times(self) -> dict[str, bool]:
        """The columns that contain the event time of the rows, by name. The value is True if the column is known to
        have times in ms or timestamps, and False if it may have another unit, or texts.

        - If a step renames such a column, the new name is here.
        - If a step drops it, the old name remains here. So an error can be raised if a later step uses this name for
          a new column.
        - If a function over batches returns such a column, its values are the new event times.
        - The dict is empty after steps that make one row of several. It may have several names after a union.
        """
        if not self.keeps_time:
            return {}
        return {self._time_behind(time) or time: as_is for time, as_is in self.inputs[0].event_times.items()}

    def _time_behind(self, time: str) -> str | None:
        """Returns the name that the input's event time column `time` has after this step. Returns None if the step
        gives the name `time` to a column with other values.
        """
        given = self.given
        if time in given:
            return time if given[time] == time else None
        return next((name for name, column in given.items() if column == time), time)

    # -- checks -------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises UserError if the step reads a column that does not exist, or makes a column with a reserved name.
        Also raises it if an input is changes (updates and deletes of earlier rows), and the step cannot process them.
        """
        for upstream, names in zip(self.inputs, self.mentioned, strict=True):
            check_columns(self.word, upstream, sorted(names))
        for name in sorted(RESERVED.intersection(self.column_names or ())):
            raise UserError(f"{self.word}: no column can be called {name!r}", hint="Sabot uses this name itself")
        if any(upstream.changes for upstream in self.append_only):
            raise refused_changes(self.word, self.hint_of_changes)


class AddsColumns(Node):
    """A base class of steps that add columns at the end of each row of their input. `given` has the names of these
    columns.
    """

    @cached_property
    def column_names(self) -> list[str] | None:
        known = self.inputs[0].column_names
        return None if known is None else [*known, *self.given]

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (with_more(without(wanted, self.given), *self.mentioned),)


def time_column(node: Node) -> str | None:
    """Returns the column that contains the event times of the step's rows, in ms or as timestamps. Returns None if
    there is no such column, if rows have it in different columns (after a union), or if its values may be in another
    unit, or texts.
    """
    times = node.event_times
    return next((time for time, as_is in times.items() if as_is), None) if len(times) == 1 else None


def check_event_time(node: Node) -> None:
    """Raises UserError if the step replaces the values of the column of event time. Called only if a later step uses
    event time.
    """
    if not node.inputs or not node.keeps_time:
        return
    for time in sorted(node.inputs[0].event_times):
        if node._time_behind(time) is None:
            raise UserError(
                f"{node.word}: {time!r} is the stream's event time, and windows would still use its old values",
                hint="give the new column another name; or use .with_time(…) after the step, so that windows use the new values",
            )


def walk(ends: Iterable[Node]) -> list[Node]:
    """Returns `ends` and all steps before them, each once. Each step comes after the steps that it reads."""
    order: dict[int, Node] = {}
    # Steps whose inputs are being visited, as a list: a program may have more steps in a row than Python allows calls.
    waiting: list[tuple[Node, Iterator[Node]]] = []
    for end in ends:
        waiting.append((end, iter(end.inputs)))
        while waiting:
            node, inputs = waiting[-1]
            upstream = next(inputs, None) if id(node) not in order else None
            if upstream is None:
                order.setdefault(id(node), node)
                waiting.pop()
            elif id(upstream) not in order:
                waiting.append((upstream, iter(upstream.inputs)))
    return list(order.values())


def with_id(node: Node, id: str) -> Node:
    """Returns the step with this id. If it keeps no state, the last step before it that keeps state gets the id
    instead.

    Raises UserError if no step keeps state, or if that step already has an id.
    """
    if hasattr(node, "id"):
        if node.id:
            raise UserError(f"named: this step is called {node.id!r} already", hint="name it once")
        return replace(node, id=id)  # type: ignore[call-arg]
    if len(node.inputs) != 1:
        hint = "call it directly after the step that keeps state: aggregate, join, top_n, …"
        raise UserError(f"named({id!r}): no step before this place keeps state", hint=hint)
    return node.over(with_id(node.inputs[0], id))


def check_columns(where: str, node: Node, names: Iterable[str]) -> None:
    """Raises UserError for the first name that is not a column of the step's rows. If the columns are unknown, it
    does nothing.
    """
    if node.column_names is not None:
        check_names(where, names, node.column_names)


WAYS_OF_CHANGES = ".materialize() waits for the final rows, .changelog() gives each change as a row of its own"
"""What a program of Python writes before a step that takes no changes."""


def refused_changes(what: str, instead: str = "") -> UserError:
    """Returns the error for a step whose input is changes (updates and deletes of earlier rows), but must be
    append-only. `what`: the beginning of the message. `instead`: the beginning of the hint.
    """
    return UserError(
        f"{what}: the rows that come in are changes (updates and deletes of earlier ones), which it cannot take",
        hint=f"{instead}{WAYS_OF_CHANGES}",
    )


def with_more(columns: Columns, more: Iterable[str]) -> Columns:
    """Returns the union of `columns` and `more`. If `columns` is None (all columns), returns None."""
    return None if columns is None else columns.union(more)


def without(columns: Columns, fewer: Iterable[str]) -> Columns:
    """Returns `columns` without `fewer`. If `columns` is None (all columns), returns None. `fewer`: columns that the
    step computes itself, so that it does not need them from its input.
    """
    return None if columns is None else columns.difference(fewer)
