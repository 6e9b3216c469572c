"""The steps about event time: another one, the watermark as a column, and rows in the order of event time."""

from functools import cached_property
from typing import Any

from sabot.api.arguments import TimeUnit
from sabot.api.expr import Expr
from sabot.api.nodes.node import AddsColumns, Columns, Node, with_more
from sabot.api.nodes.read import check_time, named_time, path_of, said_time
from sabot.base.config import Duration, parse_ms
from sabot.base.dataclass import dataclass
from sabot.base.quantities import span_words
from sabot.connectors.base import Sink
from sabot.errors import UserError


@dataclass(frozen=True, eq=False)
class WithTime(Node):
    """A step that gives rows another event time. `time`: a column, a path to a field of a struct, or an expression;
    the other fields are those of `Read`.
    """

    word = "with_time"
    carries_time = True
    input: Node
    time: str | Expr
    time_unit: TimeUnit | None
    time_format: str | None
    lateness_ms: int
    id: str = ""
    time_zone: str | None = None

    @property
    def gives_time(self) -> bool:
        return True

    def text(self) -> str:
        said = self.time.text() if isinstance(self.time, Expr) else self.time
        return f"with_time {said}, lateness {span_words(self.lateness_ms)}"

    @property
    def keeps_times(self) -> bool:
        return True

    @property
    def said_time(self) -> str:
        """The definition of event time as a text, as checkpoints record it."""
        return f"{said_time(self.time, self.time_unit, self.time_format, self.time_zone)} of with_time"

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        if isinstance(self.time, Expr):
            return (self.time.columns,)
        known = self.input.column_names
        return (frozenset([self.time]) if known is not None and self.time in known else path_of(self.time).columns,)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        if isinstance(self.time, str) and self.input.column_names is None and "." in self.time:
            return (None,)  # only the columns tell whether it is a path
        return (with_more(wanted, *self.mentioned),)

    @cached_property
    def event_times(self) -> dict[str, bool]:
        """The column that `time` names, as {name: False}; {} if it names none. False means that the unit of the
        values is unknown here.
        """
        return named_time(self.time, self.input.column_names)


def with_time_node(
    input: Node, time: Any, unit: TimeUnit | None, format: str | None, zone: str | None, lateness: Duration
) -> WithTime:
    """Returns the checked node of `Stream.with_time`. Raises UserError."""
    if time is None:
        raise UserError(
            "with_time needs a column or an expression",
            hint='with_time("created_at"), with_time(col("epoch_s") * 1000)',
        )
    check_time("with_time", time, unit, format, zone)
    node = WithTime(input, time, unit, format, parse_ms(lateness, name="lateness"), time_zone=zone)
    node.check()
    return node


@dataclass(frozen=True, eq=False)
class WithWatermark(AddsColumns):
    """A step that adds the watermark as a column: the event time (UTC, ms) up to which all rows have come, and null before the
    first one. A row that is late has a time that is not behind it.
    """

    word = "with_watermark"
    input: Node
    name: str

    def text(self) -> str:
        return f"with the watermark as {self.name}"

    @property
    def given(self) -> dict[str, str | None]:
        return {self.name: None}

    @property
    def needs_time(self) -> bool:
        return True

    @property
    def keeps_times(self) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class InTimeOrder(Node):
    """A step that emits the rows of a stream in the order of their event time.

    - `wait_ms`: a row waits until event time is so many ms past the row's own time.
    - `late`: the sink for rows that arrive after that; None if they are dropped.
    """

    word = "sorted"
    hint_of_changes = "sort(column) sorts the final rows, if the input has an end; "
    input: Node
    wait_ms: int = 0
    late: str | Sink | None = None
    id: str = ""

    def text(self) -> str:
        return f"sorted by event time{f' within {self.wait_ms} ms' if self.wait_ms else ''}"

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return (wanted if self.late is None else None,)  # late rows are written with all columns

    @property
    def keeps_rows(self) -> bool:
        return True

    def moved_before(self, predicate: Expr) -> Expr | None:
        return predicate if self.late is None else None

    @property
    def needs_time(self) -> bool:
        return True
