"""An app as the runtime needs it, and the settings of one run, which its parts share and which do not change."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sabot.api.lifespan import Lifespan
from sabot.api.nodes.read import Read, StreamEnd
from sabot.api.settings import Settings
from sabot.checkpoint import CheckpointStorage, Coordinator
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.codecs.base import Format
from sabot.config import parse_seconds
from sabot.connectors.base import Delivery, Sink, Source
from sabot.connectors.defaults import up_to
from sabot.delivery import StagedSinks
from sabot.kafka import open_sink, open_source
from sabot.runtime.placement import SingleProcess, TaskPlacement
from sabot.runtime.runnable import RunnableAgent
from sabot.runtime.streams import SpreadStreams, TaskCoordinator
from sabot.state import StateBackend
from sabot.state.base import LocalBackend

if TYPE_CHECKING:
    from sabot.jobs.guard import EffectGuard
    from sabot.jobs.log import Listener
    from sabot.journal import Journal

_WHOLE = SingleProcess()
_EPOCH_SECONDS = 1.0  # between checkpoints with an exactly-once sink, whose results wait for them
_CHECKPOINT_SECONDS = 60.0  # between checkpoints without one


class RunnableApp(Protocol):
    """An app, as the runtime needs it."""

    id: str
    settings: Settings
    """The settings of the next start. The start itself changes those that are meant for one start."""
    reprocess: set[str]
    clock: Clock
    listener: "Listener | None"
    lifespan: Lifespan
    workers: "StreamsMaker | None"
    """The maker of streams and agents in processes of their own, or None if they run in this one."""

    @property
    def configure(self) -> Callable[..., None]:
        """The method that changes settings before a start (`App.configure`)."""

    @property
    def guards(self) -> "Sequence[EffectGuard]":
        """What decides on what durable jobs ask, the first one first."""

    def open_tables(self) -> Path | None:
        """Returns the directory for the tables of streams; None: they stay in memory."""

    def open_state(self, name: str = "db") -> tuple[StateBackend | None, bool]:
        """Returns the backend, and whether the runtime closes it. name: of its database, one for each task of agents."""

    def open_journal(self) -> "tuple[Journal, LocalBackend]":
        """Opens the journal of durable agents, before `open_storage`, and what their mailboxes are kept in. The runtime closes both."""

    def open_storage(self) -> CheckpointStorage | None:
        """Opens and locks the storage for checkpoints; None: there are no checkpoints."""


def checkpoint_interval(settings: Settings, *, exactly_once: bool) -> float:
    """Returns the seconds between checkpoints: as the user set them, else by whether results wait for a checkpoint."""
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
    listener: "Listener | None" = None
    """The listener to events in the jobs of durable agents."""
    guards: "Sequence[EffectGuard]" = ()
    """The guards that decide on effects of durable agents; the first one decides first."""
    reprocess: set[str] = field(default_factory=set)
    """Durable agents whose records are read again as new jobs. Emptied when a checkpoint knows of it."""
    drop: frozenset[str] = frozenset()
    """The operators of the restored checkpoint, and OPERATOR.NAME for a part of one, whose state is not taken over."""
    first_record_s: float = math.inf
    """The seconds that a start waits for the first record of a stream without a schema."""
    has_dead_letters: bool = True
    """False if there is no place for rows that a step cannot process, so that they end the run."""
    stop_asked: Callable[[], bool] = lambda: False

    def source_of(self, node: Read) -> Source:
        """The source of a stream, not open yet. All streams of an app form one consumer group."""
        given = node.source
        source = given if isinstance(given, Source) else self.open_source(given, f"{self.app_id}-group")
        return up_to(source, node.until)


class StreamsMaker(Protocol):
    """What makes the streams and agents of each run of an app, in so many processes of their own."""

    workers: int

    def __call__(
        self,
        ends: Sequence[StreamEnd],
        settings: RunSettings,
        coordinator: Coordinator,
        delivery: StagedSinks,
        agents: Mapping[str, RunnableAgent],
    ) -> SpreadStreams:
        """Streams and agents, not open yet. delivery: exactly-once output. agents: those of the app."""

    def check(self, workers: int) -> None:
        """Raises UserError where there cannot be so many."""

    def rescale(self, workers: int, request: str = "") -> None:
        """The next run has so many, and a thread of each stage for each at least. request: that of who wants them."""

    def begun(self) -> None:
        """A run has begun with as many as are wanted."""

    @property
    def tried_enough(self) -> bool:
        """After a rescale: so many runs could not begin with the new number that no more are tried."""

    def take_back(self, why: str) -> bool:
        """After a rescale with which no run could begin, for this reason: the next run has as many as before. False: there was none."""

    def refusal(self, request: str) -> str | None:
        """Why what this request wanted was taken back; None: it was not."""


def settings_of(
    app: RunnableApp,
    *,
    coordinator: TaskCoordinator,
    staged: Callable[[str, Sink, Delivery], Sink],
    drop: frozenset[str],
    stop_asked: Callable[[], bool],
    first_record_s: float,
    placement: TaskPlacement = _WHOLE,
) -> RunSettings:
    """The settings of a run of this app."""
    settings = app.settings
    return RunSettings(
        app_id=app.id,
        app=settings,
        coordinator=coordinator,
        open_source=lambda topic, group: open_source(topic, settings.broker, group, settings.kafka),
        open_sink=lambda topic, format: open_sink(topic, settings.broker, settings.kafka, format),
        staged=staged,
        placement=placement,
        clock=app.clock,
        directory=app.open_tables(),
        listener=app.listener,
        guards=app.guards,
        reprocess=app.reprocess,
        drop=drop,
        stop_asked=stop_asked,
        first_record_s=first_record_s,
    )
