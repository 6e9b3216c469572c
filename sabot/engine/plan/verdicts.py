"""The operators of a program and the state in a checkpoint, which are compared before a start, and the verdict on
each.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from shlex import quote
from typing import Any, Literal, NamedTuple

from sabot.api.nodes.origin import NO_ORIGIN, StepOrigin
from sabot.base.dataclass import dataclass
from sabot.engine.operators.aggregates.migration import AggregateVerdict
from sabot.engine.plan.fills import Way

Outcome = Literal["keep", "migrate", "refill", "drop", "new", "refuse"]


@dataclass(frozen=True)
class Planned:
    """An operator of a plan that keeps state, with the facts that are known once it is open and has its columns."""

    id: str
    text: str
    schema: Mapping[str, Any]
    parallelism: int
    named: bool  # True if the user gave the id
    path: str
    event_time: str  # the origin of the event times in the state, as text, or "" if it has none
    taken_over: Callable[[str, Any, Any, int], str | None]  # the method of the operator
    timed: bool = False  # True if its rows have event time, and a result depends on it
    lineage: Sequence[Any] = ()  # the description of the tables from which its changes come (`plan.lineage`)
    gives_table: bool = False  # True if the operator can return its state as a table
    unfit: Callable[[frozenset[str]], str] | None = (
        None  # the operator's method `unfit_to_fill`, if it keeps rows of tables that change
    )
    # by input, the path from the step that makes its changes (`plan.fills`)
    ways: Sequence[Way | None] = field(default=())
    origin: StepOrigin = NO_ORIGIN  # the statement of a script that made it
    conditions: Mapping[str, str] = field(default_factory=dict)  # those of filters before it, with their places
    computed: Sequence[Mapping[str, str]] = ()  # by input, the expressions of the columns that a step of a script needs
    table: str = ""  # the name of the topic whose table it keeps (`App.table`), or ""

    @property
    def keeps_copy(self) -> bool:
        """True if its state is a copy of the table on its right: a lookup keeps no row of the left, and emits nothing for changes of
        the table.
        """
        return bool(self.schema["kind"] == "lookup")

    @property
    def makers(self) -> list[str]:
        """The ids of the steps that make its changes, sorted."""
        return sorted({each["from"] for lineages in self.lineage for each in lineages})


@dataclass(frozen=True)
class Verdict:
    """The decision on the state of one operator.

    - `before`, `now`: the text of the operator in the checkpoint and in the program, or None if it is not there.
    - `outcome`, `why`: "keep": the state continues as it is. "migrate": it continues, and `why` says what changes.
      "refill": it is computed again from its topics, as the user asked, or from the tables above it. "new":
      the checkpoint has no state for the operator, so it begins empty. "drop": the program has no such operator.
      "refuse": the program's operator with this id keeps other state, and `why` says what differs.
    - `saved_as`: the operator's id in the checkpoint, or None if its state is not restored.
    - `groups`: about how many groups of it the checkpoint has.
    - `parts`: the decision on each of its aggregates.
    - `forgets`: the names whose state is not restored, because the user asked for that.
    - `given_up`: True if the user asked to drop all of its state.
    - `fills`: the numbers of the inputs from whose tables the operator is filled: the new aggregates in `parts`, or the
      whole operator if no state is restored.
    - `instead`: for a refusal, the ids of the operators whose state the user must drop for the start; empty if it is
      enough to drop the state of this operator or of its refused `parts`.
    - `other_rows`: True if the state continues, and rows that have passed other steps than those so far come to it.
    - `lacks_columns`: for a refusal, True if nothing differs but columns that the program adds to the kept rows.
    - `refills`: for a refusal, the ids of the operators whose refill avoids it (`plan.refills`); empty if it cannot be avoided so.
    - `place`: the position of the step in a script, such as "pipeline.sql:3:14", or "" for steps of Python.
    """

    id: str
    before: str | None
    now: str | None
    outcome: Outcome
    why: str = ""
    saved_as: str | None = None
    groups: int = 0
    parts: tuple[AggregateVerdict, ...] = ()
    forgets: frozenset[str] = frozenset()
    given_up: bool = False
    fills: tuple[int, ...] = ()
    instead: tuple[str, ...] = ()
    place: str = ""
    refills: tuple[str, ...] = ()
    other_rows: bool = False
    lacks_columns: bool = False

    @property
    def loses(self) -> bool:
        """True if the start must be refused, because state would be lost that the user has not given up."""
        return self.outcome == "refuse" or (self.outcome == "drop" and self.groups > 0 and not self.given_up)

    @property
    def reason(self) -> str:
        """`why`, with the place in the script if the state cannot continue."""
        return f"{self.why} (at {self.place})" if self.place and self.outcome == "refuse" else self.why

    @property
    def ways(self) -> list[str]:
        """The options of the command line (`--drop …`) that give up exactly the state that would be lost."""
        return [f"--drop {quote(name)}" for name in self.names_to_drop]

    @property
    def names_to_drop(self) -> list[str]:
        """The names in `ways`."""
        names = [f"{self.id}.{part.name}" for part in self.parts if part.outcome == "refuse"]
        return list(self.instead) or names or [self.id]


def steps_of_tables(operators: Sequence[Planned]) -> dict[str, str]:
    """Returns the ids of the steps that keep the tables of topics, by the name of the topic. A name that is also the id of a
    step, or that of two tables, is not among them.
    """
    names = Counter(each.table for each in operators)
    taken = {"", *(each.id for each in operators)}
    return {each.table: each.id for each in operators if names[each.table] == 1 and each.table not in taken}


def refill_options(lost: Iterable[tuple[Sequence[str], Sequence[str]]]) -> list[str]:
    """Returns the options of the command line with which as little state as possible is lost: `--refill …` where a step can be computed
    again, `--drop …` where not. The list is empty if no step can be.

    `lost`: for each state that would be lost, the steps whose refill keeps it, and the options that give it up.
    """
    found = list(lost)
    refills = dict.fromkeys(f"--refill {quote(name)}" for names, _ in found for name in names)
    drops = dict.fromkeys(way for names, ways in found if not names for way in ways)
    return [*refills, *drops] if refills else []


class SavedStep(NamedTuple):
    """An operator with state, as a checkpoint describes it."""

    id: str
    text: str
    schema: Mapping[str, Any]
    subtasks: int
    groups: int
    named: bool
    path: str
    names: frozenset[str]  # the names of state that are not in the schema
    event_time: str  # as in Planned; also "" if the checkpoint does not contain it
    timed: bool  # True if its rows had event time
    lineage: Sequence[Any]  # as in Planned
    origin: str  # the name of the statement of a script that made it, or ""
    conditions: Sequence[str] | None  # those of filters before it; None if the checkpoint does not say them
    computed: Sequence[Mapping[str, str]]  # as in Planned; empty if the checkpoint does not say them
    made_for: str  # the id of the step for which a refill has made it, in the checkpoint of that refill; else ""
