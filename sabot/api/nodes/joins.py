"""Steps that join the rows of two streams whose keys are equal."""

from dataclasses import field, replace
from functools import cached_property
from typing import ClassVar, Literal, TypeAlias

from sabot.api.nodes.changes import Upsert
from sabot.api.nodes.node import Columns, Node
from sabot.api.nodes.rows import Broadcast, RowStep
from sabot.api.nodes.windows import WINDOW_COLUMNS
from sabot.api.windows import TimeWindow, TumblingWindow
from sabot.api.words import window_text
from sabot.base.dataclass import dataclass
from sabot.base.quantities import span_words
from sabot.connectors.base import Sink
from sabot.errors import UserError

MADE_KEY = "__on_"  # the prefix of key columns that are computed by expressions

JoinHow: TypeAlias = Literal["inner", "left", "right", "full", "semi", "anti"]


@dataclass(frozen=True, eq=False)
class TwoInputs(Node):
    """A step over the rows of two streams."""

    left_may_stay: ClassVar[bool] = False
    """True if rows of the left need not be repartitioned when the right side is broadcast, because each row is joined
    independently.
    """

    left: Node
    right: Node

    @property
    def inputs(self) -> tuple[Node, ...]:
        return self.left, self.right

    def over(self, *inputs: Node) -> Node:
        return replace(self, left=inputs[0], right=inputs[1])


@dataclass(frozen=True, eq=False)
class Join(TwoInputs):
    """A step that joins rows whose keys are equal. The result has the columns of the left stream, then those of the
    right stream without its keys.

    - `keep_ms`: how long rows of the left and of the right stream are stored, as a pair in ms of event time; None for
      ever.
    - `max_drift_ms`: if the sources of one stream are ahead of those of the other by more ms of event time, they
      wait; None for no limit.
    """

    word = "join"
    left_may_stay = True
    takes_changes = True
    keeps_time = False
    carries_time = True
    left_keys: tuple[str, ...]
    right_keys: tuple[str, ...]
    how: JoinHow = "inner"
    suffix: str = "_right"
    keep_ms: tuple[int | None, int | None] = (None, None)
    max_drift_ms: int | None = None
    id: str = ""

    @property
    def broadcast(self) -> bool:
        """True if every subtask gets all rows of the right stream."""
        return isinstance(self.right, Broadcast)

    def text(self) -> str:
        pairs = zip(self.left_keys, self.right_keys, strict=True)
        on = ", ".join(one if one == two else f"{one} = {two}" for one, two in pairs)
        return f"{self.word} {self.how} on {on}{self._more_text()}"

    def _more_text(self) -> str:
        kept = [f"{side} kept {span_words(ms)}" for side, ms in zip(("left", "right"), self.keep_ms, strict=True) if ms]
        return "".join(f", {each}" for each in [*kept, *(["broadcast"] if self.broadcast else [])])

    @property
    def _added(self) -> tuple[str, ...]:
        """The columns of the result that the join itself adds, such as the bounds of a window. They are after the
        columns of the left stream.
        """
        return ()

    @cached_property
    def right_names(self) -> list[tuple[str, str]] | None:
        """The columns that the right stream contributes to the result, without its keys, as (column, its name in the
        result). None if the columns of a stream are unknown; empty for "semi" and "anti".

        Raises UserError if two columns of the result would have the same name.
        """
        if self.how in ("semi", "anti"):
            return []
        left, right = self.left.column_names, self.right.column_names
        if left is None or right is None:
            return None
        taken = {*left, *self._added}
        names = [(name, name + self.suffix if name in taken else name) for name in right if name not in self.right_keys]
        for _, new in names:
            if new in taken:
                raise UserError(
                    f"join: two columns of the result would be called {new!r}",
                    hint='choose another suffix="…", or rename one',
                )
            taken.add(new)
        return names

    @cached_property
    def column_names(self) -> list[str] | None:
        left, names = self.left.column_names, self.right_names
        return None if left is None or names is None else [*left, *self._added, *(new for _, new in names)]

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return frozenset(self.left_keys), frozenset(self.right_keys)

    @property
    def keeps_rows(self) -> bool:
        return True

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        left, names = self.left.column_names, self.right_names
        if wanted is None or left is None or names is None:
            return None, frozenset(self.right_keys) if names == [] else None
        of_right = (old for old, new in names if new in wanted)
        return wanted.intersection(left).union(self.left_keys), frozenset(self.right_keys).union(of_right)

    @cached_property
    def changes(self) -> bool:
        return self.how not in ("inner", "semi") or self.left.changes or self.right.changes

    @property
    def needs_time(self) -> bool:
        return self.keep_ms != (None, None)

    @property
    def time_of_left(self) -> bool:
        return self.how in ("inner", "left", "semi", "anti") and self.keep_ms[1] is None

    @property
    def given(self) -> dict[str, str | None]:
        return dict.fromkeys(new for _, new in self.right_names or ())


@dataclass(frozen=True, eq=False)
class _AppendJoin(Join):
    """A join whose result is append-only: a row of the result is emitted once, and is never updated or deleted."""

    takes_changes = False

    @cached_property
    def changes(self) -> bool:
        return False

    @property
    def needs_time(self) -> bool:
        return True

    @property
    def time_of_left(self) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class JoinByTime(_AppendJoin):
    """A join by event time. `late`, `late_right`: the sinks for rows of the left and of the right side that arrive
    too late, or None if such rows are dropped.
    """

    late: str | Sink | None = None
    late_right: str | Sink | None = None

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        left, right = super().asks(wanted)
        return None if self.late is not None else left, None if self.late_right is not None else right


@dataclass(frozen=True, eq=False)
class IntervalJoin(JoinByTime):
    """A join of rows that are close in event time: the time of the right row is from left + `lower_ms` to left +
    `upper_ms`, both included. None for a bound means that there is none.

    `left_time`: True if a pair has the event time of its left row, as in SQL, and not the later one of both rows.
    """

    word = "join(…, between=)"
    lower_ms: int | None = None
    upper_ms: int | None = None
    left_time: bool = False

    @property
    def keeps_time(self) -> bool:  # type: ignore[override]
        return self.left_time

    def _more_text(self) -> str:
        lower, upper = ("open" if ms is None else span_words(ms) for ms in (self.lower_ms, self.upper_ms))
        return f", between {lower} and {upper}"


@dataclass(frozen=True, eq=False)
class WindowJoin(JoinByTime):
    """A join of rows that are in the same window."""

    word = "join(…, window=)"
    window: TimeWindow = field(default_factory=lambda: TumblingWindow(1))

    def _more_text(self) -> str:
        return f", {window_text(self.window)}"

    @property
    def _added(self) -> tuple[str, ...]:
        return WINDOW_COLUMNS


@dataclass(frozen=True, eq=False)
class AsofJoin(JoinByTime):
    """A join of each left row with a row of the right stream that was valid at the left row's event time, by
    `strategy`.
    """

    word = "join_asof"
    keeps_time = True
    strategy: Literal["backward", "forward", "nearest"] = "backward"
    tolerance_ms: int | None = None

    def _more_text(self) -> str:
        return f", {self.strategy}" + ("" if self.tolerance_ms is None else f" within {span_words(self.tolerance_ms)}")

    @property
    def append_only(self) -> tuple[Node, ...]:
        return (self.left,)

    def check(self) -> None:
        super().check()
        if self.right.changes:
            self._check_versions()

    def _check_versions(self) -> None:
        """Raises UserError if it is not certain that the right stream has at most one valid row of each key at any
        event time. This is certain for an `upsert` of an append-only stream by the key of the join: then a row is
        valid from its event time until that of the next row of its key.
        """
        right = self.right
        while isinstance(right, RowStep):
            right = right.input
        if not isinstance(right, Upsert) or right.input.changes:
            raise UserError(
                "join_asof: the other stream changes as rows come, not by event time",
                hint=".lookup(…) joins the rows that exist",
            )
        key = self.right.unique or right.keys
        if set(key) != set(self.right_keys):
            raise UserError(
                f"join_asof: the other stream has one row for each {', '.join(key)}, "
                f"not for each {', '.join(self.right_keys)}",
                hint=f"join on {', '.join(key)}, or .upsert({', '.join(map(repr, self.right_keys))})",
            )


@dataclass(frozen=True, eq=False)
class Lookup(_AppendJoin):
    """A join of each left row with the row that the right stream has for its key at the moment when the left row
    arrives.
    """

    word = "lookup"
    keeps_time = True

    @property
    def append_only(self) -> tuple[Node, ...]:
        return (self.left,)

    @property
    def needs_time(self) -> bool:
        return self.keep_ms != (None, None)

    @property
    def time_of_left(self) -> bool:
        return True
