"""Steps that call functions of the user with the rows of a key, its state and its timers."""

from functools import cached_property

from sabot.api.arguments import RowPolicy
from sabot.api.functions import ProcessSpec
from sabot.api.nodes.joins import TwoInputs
from sabot.api.nodes.keyed import ByKey
from sabot.api.nodes.node import Node
from sabot.api.words import by_keys
from sabot.base.dataclass import dataclass


@dataclass(frozen=True, eq=False)
class Process(ByKey):
    """A step that calls functions of the user with the rows of a key, its state and its timers."""

    word = "process"
    keeps_time = False
    carries_time = True
    input: Node
    keys: tuple[str, ...]
    spec: ProcessSpec
    id: str = ""
    on_error: RowPolicy | None = None  # None: the policy of the stream
    order: str | None = None  # "time": rows come in order of event time; None: as they come

    def text(self) -> str:
        return f"{self.spec.name}{by_keys(self.keys)}"

    @property
    def needs_time(self) -> bool:
        return self.order is not None

    @cached_property
    def column_names(self) -> list[str] | None:
        return list(self.spec.schema.names)

    @property
    def goes_by_time(self) -> bool:
        return True

    @property
    def keeps_times(self) -> bool:
        return self.spec.keeps_times


@dataclass(frozen=True, eq=False)
class Connect(TwoInputs):
    """A process step over two streams. They have the same keys, or the right one is broadcast to every subtask."""

    word = "process"
    keeps_time = False
    carries_time = True
    left_keys: tuple[str, ...]
    right_keys: tuple[str, ...]
    spec: ProcessSpec
    id: str = ""
    on_error: RowPolicy | None = None  # None: the policy of the left stream

    def text(self) -> str:
        return f"{self.spec.name}{by_keys(self.left_keys)}"

    @cached_property
    def column_names(self) -> list[str] | None:
        return list(self.spec.schema.names)

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return frozenset(self.left_keys), frozenset(self.right_keys)

    @property
    def goes_by_time(self) -> bool:
        return True

    @property
    def keeps_times(self) -> bool:
        return self.spec.keeps_times

    @property
    def time_of_left(self) -> bool:
        return True


@dataclass(frozen=True, eq=False)
class Side(Node):
    """A step that passes on the rows of one output branch of a process step."""

    word = "side"
    keeps_time = False
    input: Process | Connect
    name: str

    @cached_property
    def column_names(self) -> list[str] | None:
        return list(self.input.spec.sides[self.name].names)
