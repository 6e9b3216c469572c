"""Steps that wait for the user's coroutine functions."""

from dataclasses import dataclass
from functools import cached_property

from sabot.api.calls import AsyncCall, LookupCall
from sabot.api.nodes.node import AddsColumns, Node
from sabot.connectors.base import Sink

__all__ = ["LookupAsync", "MapAsync"]


@dataclass(frozen=True, eq=False)
class MapAsync(Node):
    """The user's coroutine function over rows, several calls at a time. dead_letter: where rows go whose calls failed."""

    word = "map_async"
    input: Node
    call: AsyncCall
    dead_letter: str | Sink | None = None
    id: str = ""

    def text(self) -> str:
        return f"map_async {self.call.name}"

    @cached_property
    def column_names(self) -> list[str] | None:
        return list(self.call.schema.names)


@dataclass(frozen=True, eq=False)
class LookupAsync(AddsColumns):
    """Columns that the user's coroutine function knows for a key."""

    word = "lookup"
    input: Node
    call: LookupCall
    suffix: str = "_right"
    dead_letter: str | Sink | None = None
    id: str = ""

    def text(self) -> str:
        return f"lookup {self.call.call.name} on {', '.join(self.call.on)}"

    @property
    def answer_names(self) -> list[tuple[str, str]]:
        """(column of the answers, its name in the result)."""
        known = self.input.column_names or []
        return [(name, name + self.suffix if name in known else name) for name in self.call.call.schema.names]

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (frozenset(self.call.on),)

    @property
    def given(self) -> dict[str, str | None]:
        return dict.fromkeys(new for _, new in self.answer_names)
