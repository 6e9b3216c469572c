"""Steps that wait for the user's coroutine functions, or for models."""

from functools import cached_property

from sabot.api.calls import AsyncCall, LookupCall, PromptCall
from sabot.api.nodes.node import AddsColumns, Columns, Node, with_more, without
from sabot.api.prompts import columns_of
from sabot.base.dataclass import dataclass
from sabot.connectors.base import Sink
from sabot.errors import UserError


@dataclass(frozen=True, eq=False)
class MapAsync(Node):
    """A step that calls the user's coroutine function for rows, with several calls at a time. `dead_letter`: the sink
    of rows whose calls failed.
    """

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

    def check(self) -> None:
        super().check()
        _check_letters(self.word, self.call, self.dead_letter)


@dataclass(frozen=True, eq=False)
class LookupAsync(AddsColumns):
    """A step that adds the columns that the user's coroutine function returns for a key. `dead_letter`: the sink of
    rows whose calls failed.
    """

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
        """The columns of the answers, as (column of the answer, its name in the result)."""
        known = self.input.column_names or []
        return [(name, name + self.suffix if name in known else name) for name in self.call.call.schema.names]

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (frozenset(self.call.on),)

    @property
    def given(self) -> dict[str, str | None]:
        return dict.fromkeys(new for _, new in self.answer_names)

    def check(self) -> None:
        super().check()
        _check_letters(self.word, self.call.call, self.dead_letter)


@dataclass(frozen=True, eq=False)
class MapLlm(AddsColumns):
    """A step that adds the columns of a model's answer to each row. The prompt is made from the row. `dead_letter`:
    the sink of rows whose calls failed.
    """

    word = "map_llm"
    input: Node
    asked: PromptCall
    dead_letter: str | Sink | None = None
    id: str = ""

    def text(self) -> str:
        return f"map_llm {self.asked.text()}"

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (columns_of(self.asked.prompt) or frozenset(),)

    @property
    def given(self) -> dict[str, str | None]:
        return dict.fromkeys(self.asked.call.schema.names)

    def asks(self, wanted: Columns) -> tuple[Columns, ...]:
        read = columns_of(self.asked.prompt)
        return (None if read is None else with_more(without(wanted, self.given), read),)

    def check(self) -> None:
        super().check()
        _check_letters(self.word, self.asked.call, self.dead_letter)
        if clash := [name for name in self.given if name in (self.inputs[0].column_names or ())]:
            raise UserError(
                f"map_llm: the answer has a column {clash[0]!r}, which the rows have already",
                hint=f'rename({{"{clash[0]}": …}}) before it, or another name in output=',
            )


def _check_letters(word: str, call: AsyncCall, dead_letter: str | Sink | None) -> None:
    """Raises UserError if failed rows have a sink, although the app stops at the first of them. `word`: the step."""
    if dead_letter is not None and call.options.on_error != "skip":
        raise UserError(
            f'{word}: dead_letter= is for rows that are skipped, and with on_error="fail" the app stops at the first one',
            hint='on_error="skip", or leave dead_letter= out',
        )
