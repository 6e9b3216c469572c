"""The settings of one run of an app, which do not change during the run."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from sabot.api.nodes.read import Read, StreamEnd
from sabot.api.settings import Settings
from sabot.base.config import parse_seconds
from sabot.base.dataclass import dataclass
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.codecs.base import Format
from sabot.connectors.base import Delivery, Sink, Source
from sabot.connectors.checks import up_to
from sabot.engine.checkpoint import Coordinator
from sabot.engine.delivery import StagedSinks
from sabot.engine.runtime.agents.kind import AgentKind
from sabot.engine.runtime.agents.runnable import RunnableAgent
from sabot.engine.runtime.life.parts import RunParts, TaskCoordinator
from sabot.engine.runtime.tasks.placement import TaskPlacement

_WHOLE = TaskPlacement()
_EPOCH_SECONDS = 1.0  # between checkpoints with an exactly-once sink, whose results wait for them
_CHECKPOINT_SECONDS = 60.0  # between checkpoints without one


def checkpoint_interval(settings: Settings, *, exactly_once: bool) -> float:
    """Returns the seconds between checkpoints: those that the user set, else 1 s with an exactly-once sink, whose
    results wait for checkpoints, and 60 s without one.
    """
    if settings.checkpoint_interval is not None:
        return parse_seconds(settings.checkpoint_interval)
    return _EPOCH_SECONDS if exactly_once else _CHECKPOINT_SECONDS


@dataclass(frozen=True)
class RunSettings:
    """The settings of one run of an app, for its streams and its agents."""

    app_id: str
    coordinator: TaskCoordinator
    open_source: Callable[[str, str], Source]
    """A function of a topic and a consumer group that returns the topic's source, not open yet."""
    open_sink: Callable[[str, Format | None], Sink]
    """A function of a topic and the format of its rows (None: JSON) that returns the topic's sink, not open yet."""
    staged: Callable[[str, Sink, Delivery], Sink] = lambda room, sink, wanted: sink
    """A function of the writer ("streams" or "agents"), a sink and `delivery=` that returns the sink, staged if it is exactly once."""
    app: Settings = Settings()
    """The settings of the app when the run began."""
    placement: TaskPlacement = _WHOLE
    """The choice of the stream tasks that run in this process."""
    clock: Clock = SYSTEM_CLOCK
    directory: Path | None = None
    """The directory for the databases of keyed tables, or None if they stay in memory."""
    guards: Sequence[Any] = ()
    """The guards that decide on effects of durable agents; the first one decides first."""
    kind: Callable[[], AgentKind] | None = None
    """The maker of what knows these guards (`AppSpec.durable_kind`), or None if there are none."""
    reprocess: set[str] = field(default_factory=set)
    """The durable agents whose records are read again as new jobs. The set is emptied once a checkpoint contains this
    start.
    """
    drop: frozenset[str] = frozenset()
    """The ids of operators in the restored checkpoint whose state is not restored, and OPERATOR.NAME for a part of an
    operator's state.
    """
    refill: frozenset[str] = frozenset()
    """The ids of operators that begin anew, and are filled from the tables above them."""
    reemit: frozenset[str] = frozenset()
    """The names of the sinks into which tables are written again, whole."""
    is_savepoint: bool = False
    """True if the restored checkpoint is a savepoint, which is not changed, so that no step is refilled."""
    first_record_s: float = math.inf
    """The seconds that a start waits for the first record of a stream without a schema."""
    has_dead_letters: bool = True
    """False if there are no dead letters for rows that a step cannot process: such a row ends the run."""
    stop_asked: Callable[[], bool] = lambda: False

    def judge(self) -> Any:
        """Returns a judge of the calls that agents and streams make themselves, or None if there are no guards. Called
        on the event loop.
        """
        return None if not self.guards or self.kind is None else self.kind().judge(self.guards)

    def source_of(self, node: Read) -> Source:
        """Returns the source of a stream, not open yet. All streams of an app form one consumer group."""
        given = node.source
        source = given if isinstance(given, Source) else self.open_source(given, f"{self.app_id}-group")
        source.app = self.app_id
        return up_to(source, node.until)


class StreamsMaker(ABC):
    """A maker of the streams and agents of each run of an app, in a number of processes."""

    workers: int

    @abstractmethod
    def __call__(
        self,
        ends: Sequence[StreamEnd],
        settings: RunSettings,
        coordinator: Coordinator,
        delivery: StagedSinks,
        agents: Mapping[str, RunnableAgent],
    ) -> RunParts:
        """Returns the streams and agents of a run, not open yet. `delivery`: the exactly-once output. `agents`: the
        agents of the app.
        """

    @abstractmethod
    def check(self, workers: int) -> None:
        """Raises UserError if the app cannot have this number of workers."""

    @abstractmethod
    async def make_room(self, workers: int) -> None:
        """Makes sure that the next run can have this number of workers. Raises UserError if it cannot; the present run is
        not changed.
        """

    @abstractmethod
    def rescale(self, workers: int, request: str = "") -> None:
        """Makes the next run use this number of workers, and at least as many threads for each stage. The processes of
        the present run may take part in it. `request`: the id of the request for it.
        """

    @abstractmethod
    def begun(self) -> None:
        """Called when a run has begun with the wanted number of workers: `take_back` then has nothing to undo."""

    @property
    @abstractmethod
    def tried_enough(self) -> bool:
        """True if no run could begin after a rescale, in several attempts, so no further one is tried with the new
        number of workers.
        """

    @abstractmethod
    def take_back(self, why: str) -> bool:
        """Gives up a rescale with which no run could begin: the next run has the earlier number of workers. `why`:
        the reason. Returns False if there was no rescale.
        """

    @abstractmethod
    def refusal(self, request: str) -> str | None:
        """Returns the reason why this request was given up, or None."""
