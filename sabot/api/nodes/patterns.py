"""The step that finds sequences of rows of a key."""

from functools import cached_property

from sabot.api.expr import Expr
from sabot.api.nodes.node import Columns, Node
from sabot.api.patterns import MATCH_END, MATCH_START, Overlap, Pattern, Skip, skip_text
from sabot.api.words import by_keys
from sabot.base.dataclass import dataclass
from sabot.connectors.base import Sink


@dataclass(frozen=True, eq=False)
class Match(Node):
    """A step that emits one row for each sequence of rows of a key that matches a pattern. The rows of a key are
    matched in the order of event time.
    """

    word = "pattern"
    keeps_time = False
    input: Node
    keys: tuple[str, ...]
    pattern: Pattern
    skip: Skip
    measures: tuple[tuple[str, Expr], ...]
    overlap: Overlap = "complete"
    max_partial: int = 10_000
    late: str | Sink | None = None
    id: str = ""

    def text(self) -> str:
        return f"pattern{by_keys(self.keys)}: {self.pattern.text()}; {skip_text(self.skip, self.overlap)}"

    @cached_property
    def column_names(self) -> list[str] | None:
        return [*self.keys, MATCH_START, MATCH_END, *(name for name, _ in self.measures)]

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (self.pattern.columns.union(self.keys, *(expr.columns for _, expr in self.measures)),)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        return self.mentioned if self.late is None else (None,)  # late rows are written with all columns

    @property
    def needs_time(self) -> bool:
        return True
