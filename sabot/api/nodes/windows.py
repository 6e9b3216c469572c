"""Steps over the rows of a key that are in the same window."""

from functools import cached_property

from sabot.api.aggregates import Aggregate
from sabot.api.nodes.keyed import Aggregates, FirstRows, Ties
from sabot.api.nodes.node import Columns, Node
from sabot.api.windows import (
    WINDOW_END,
    WINDOW_START,
    CountWindow,
    TimeWindow,
    Window,
)
from sabot.api.words import by_keys, named_texts, order_text, window_text
from sabot.base.dataclass import dataclass
from sabot.connectors.base import Sink

WINDOW_COLUMNS = (WINDOW_START, WINDOW_END)


@dataclass(frozen=True, eq=False)
class AggregateWindow(Aggregates):
    """A step with one row for each key and window."""

    word = "window"
    hint_of_changes = 'group_by("key").aggregate(…) takes changes; '
    keeps_time = False
    carries_time = True
    input: Node
    keys: tuple[str, ...]
    window: Window
    aggregates: tuple[tuple[str, Aggregate], ...]
    allowed_lateness_ms: int
    emit_every_ms: int | None
    late: str | Sink | None
    id: str = ""  # the id of `named`; "" if there is none

    def text(self) -> str:
        return f"{window_text(self.window)}{by_keys(self.keys)}: {named_texts(self.aggregates)}"

    @cached_property
    def column_names(self) -> list[str] | None:
        if isinstance(self.window, CountWindow):
            return None  # with event time the result also has the bounds of its windows
        return [*self.keys, *WINDOW_COLUMNS, *(name for name, _ in self.aggregates)]

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return super().asks(wanted) if self.late is None else (None,)  # late rows are written with all columns

    @property
    def gives_time(self) -> bool:
        return not isinstance(self.window, CountWindow) and self.window.time == "processing"

    @property
    def needs_time(self) -> bool:
        return not isinstance(self.window, CountWindow) and self.window.time == "event"

    @property
    def keeps_times(self) -> bool:
        return super().keeps_times or isinstance(self.window, CountWindow)  # the bounds of an open window


@dataclass(frozen=True, eq=False)
class WindowTopN(FirstRows):
    """A step that emits the first rows of each key and window, in an order of some columns."""

    word = "window"
    keeps_time = False
    input: Node
    keys: tuple[str, ...]
    window: TimeWindow
    n: int
    by: tuple[tuple[str, bool], ...]
    ties: Ties
    rank: str | None
    allowed_lateness_ms: int
    late: str | Sink | None
    id: str = ""

    def text(self) -> str:
        return f"top {self.n} of {window_text(self.window)}{by_keys(self.keys)}, order {order_text(self.by)}"

    @property
    def given(self) -> dict[str, str | None]:
        return dict.fromkeys(WINDOW_COLUMNS) | super().given

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return super().asks(wanted) if self.late is None else (None,)  # late rows are written with all columns

    @property
    def gives_time(self) -> bool:
        return self.window.time == "processing"

    @property
    def needs_time(self) -> bool:
        return self.window.time == "event"
