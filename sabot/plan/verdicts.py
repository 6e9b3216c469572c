"""What is compared before a start: the operators of a program, the state of a checkpoint, and the verdict on each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from shlex import quote
from typing import Any, Literal, NamedTuple

from sabot.operators.aggregates.carried import Fate
from sabot.plan.fills import Way

Outcome = Literal["keep", "migrate", "drop", "new", "refuse"]


@dataclass(frozen=True)
class Planned:
    """An operator of a plan that keeps state, opened on the columns that it gets."""

    id: str
    text: str
    schema: Mapping[str, Any]
    parallelism: int
    named: bool  # whether the user gave the id
    path: str
    event_time: str  # what the event times that it keeps are read from; "": it keeps none
    taken_over: Callable[[str, Any, Any, int], str | None]  # of the operator
    timed: bool = False  # whether rows come to it with event time, on which a result depends
    lineage: Sequence[Any] = ()  # of which tables its changes are (`plan.lineage`)
    gives_table: bool = False  # as of the operator
    unfit: Callable[[frozenset[str]], str] | None = None  # its `unfit_to_fill`, if it keeps rows of tables that change
    ways: Sequence[Way | None] = field(default=())  # by input, from the makers of its changes (`plan.fills`)

    @property
    def makers(self) -> list[str]:
        """The ids of the steps that make its changes."""
        return sorted({each["from"] for lineages in self.lineage for each in lineages})


@dataclass(frozen=True)
class Verdict:
    """What becomes of an operator's state.

    keep: it goes on as it is. migrate: it goes on, and `why` says what changes. new: the checkpoint has none, so it begins empty. drop: the
    program has no such operator. refuse: the program's operator of that id keeps other state; `why` says what differs.
    saved_as: the operator's id in the checkpoint; None: no state is taken over. groups: about how many groups the checkpoint has of it.
    parts: what becomes of each of its aggregates. forgets: names of which nothing is taken over, as the user asked. given_up: the user
    asked for all of its state to be dropped. fills: the inputs whose rows so far it gets from the tables before it: for what is new in
    `parts`, or for all of it, where no state is taken over. instead: the ids of the operators that would have to be given up.
    """

    id: str
    before: str | None
    now: str | None
    outcome: Outcome
    why: str = ""
    saved_as: str | None = None
    groups: int = 0
    parts: tuple[Fate, ...] = ()
    forgets: frozenset[str] = frozenset()
    given_up: bool = False
    fills: tuple[int, ...] = ()
    instead: tuple[str, ...] = ()

    @property
    def loses(self) -> bool:
        """Whether state would be lost that the user has not given up. A start is refused then."""
        return self.outcome == "refuse" or (self.outcome == "drop" and self.groups > 0 and not self.given_up)

    @property
    def ways(self) -> list[str]:
        """The options by which the user gives up what would be lost, and no more."""
        names = [f"{self.id}.{part.name}" for part in self.parts if part.outcome == "refuse"]
        names = list(self.instead) or names or [self.id]
        return [f"--drop {quote(name)}" for name in names]


class SavedStep(NamedTuple):
    """An operator with state, as the checkpoint describes it."""

    id: str
    text: str
    schema: Mapping[str, Any]
    subtasks: int
    groups: int
    named: bool
    path: str
    names: frozenset[str]  # of what it keeps, beside those in the schema
    event_time: str  # as that of Planned; "" also where the checkpoint does not say
    timed: bool  # whether rows came to it with event time
    lineage: Sequence[Any]  # likewise
