"""The settings of an app, and those of one run, which its parts share and which do not change."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sabot.api.lifespan import Lifespan
from sabot.api.nodes.read import Read, StreamEnd
from sabot.checkpoint import CheckpointStorage, Coordinator
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.codecs.base import Format
from sabot.config import Restart
from sabot.connectors.base import Delivery, Sink, Source
from sabot.connectors.defaults import up_to
from sabot.connectors.places import Place
from sabot.delivery import StagedSinks
from sabot.kafka import open_sink, open_source
from sabot.runtime.runnable import RunnableAgent
from sabot.runtime.spread import Spread, WholeApp
from sabot.runtime.streams import SpreadStreams, TaskCoordinator
from sabot.state import StateBackend
from sabot.state.base import LocalBackend

if TYPE_CHECKING:
    from sabot.jobs.guard import EffectGuard
    from sabot.jobs.log import Listener
    from sabot.journal import Journal

_WHOLE = WholeApp()
_EPOCH_SECONDS = 1.0  # between checkpoints with an exactly-once sink, whose results wait for them
_CHECKPOINT_SECONDS = 60.0  # between checkpoints without one


class AppSettings(Protocol):
    """The settings that a run reads from its app at each start."""

    id: str
    broker: str
    kafka: dict[str, Any]
    version: str
    clock: Clock
    checkpoint_timeout_s: float
    dedupe_s: float
    listener: "Listener | None"
    reprocess: set[str]
    drop: frozenset[str]
    refresh_schema: bool
    metrics_port: int | None
    metrics_host: str
    lifespan: Lifespan
    parallelism: int
    memory_budget_bytes: int
    start_at: Place
    end_at: Place | None
    checkpoint_interval_s: float | None
    restart: Restart
    redeliver: str | None
    from_: str | None
    fresh: bool
    workers: "StreamsMaker | None"
    """What runs streams and agents in processes of their own; None: they run in this one."""

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


def checkpoint_interval(app: AppSettings, *, exactly_once: bool) -> float:
    """Returns the seconds between checkpoints: as the user set them, else by whether results wait for a checkpoint."""
    if app.checkpoint_interval_s is not None:
        return app.checkpoint_interval_s
    return _EPOCH_SECONDS if exactly_once else _CHECKPOINT_SECONDS


@dataclass(frozen=True)
class Settings:
    """The settings of one run of an app, for its streams and its agents."""

    app: str
    coordinator: TaskCoordinator
    open_source: Callable[[str, str], Source]
    """(topic, consumer group) -> its source, not open yet."""
    open_sink: Callable[[str, Format | None], Sink]
    """(topic, format of its rows; None: JSON) -> its sink, not open yet."""
    staged: Callable[[str, Sink, Delivery], Sink] = lambda room, sink, wanted: sink
    """(who writes: "streams" or "agents", sink, delivery=) -> the sink, or what exactly once needs before it."""
    spread: Spread = _WHOLE
    """Which tasks of streams run in this process."""
    clock: Clock = SYSTEM_CLOCK
    version: str = ""
    start: Place = "earliest"
    until: Place | None = None
    """Where topics end that no stream, table or agent names an end of; None: nowhere."""
    parallelism: int = 1
    directory: Path | None = None
    """For the databases of keyed tables; None: state in memory."""
    memory_budget: int = 256_000_000
    hung_after_s: float = 60.0
    """How long a call of an agent may run at a barrier before it is taken for hung."""
    dedupe_s: float = 7 * 86_400.0
    """How long the id of a durable agent's job is known after its end."""
    listener: "Listener | None" = None
    """Is told what happens in the jobs of durable agents."""
    guards: "Sequence[EffectGuard]" = ()
    """What decides on what they ask, the first one first."""
    reprocess: set[str] = field(default_factory=set)
    """Durable agents whose records are read again as new jobs. Emptied when a checkpoint knows of it."""
    drop: frozenset[str] = frozenset()
    """Of the restored checkpoint: operators, and OPERATOR.NAME for a part of one, whose state is not taken over."""
    refresh_schema: bool = False
    """Columns that were inferred are not those that the checkpoint keeps, but those of the records that come."""
    first_record_s: float = math.inf
    """How long a start waits for the first record of a stream whose columns nobody has said."""
    has_dead_letters: bool = True
    """False: there is no place for rows that a step cannot process, so they end the run."""
    stop_asked: Callable[[], bool] = lambda: False

    def source_of(self, node: Read) -> Source:
        """The source of a stream, not open yet. All streams of an app form one consumer group."""
        given = node.source
        source = given if isinstance(given, Source) else self.open_source(given, f"{self.app}-group")
        return up_to(source, node.until)


class StreamsMaker(Protocol):
    """What makes the streams and agents of each run of an app, in so many processes of their own."""

    workers: int

    def __call__(
        self,
        ends: Sequence[StreamEnd],
        settings: Settings,
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
    app: AppSettings,
    *,
    coordinator: TaskCoordinator,
    staged: Callable[[str, Sink, Delivery], Sink],
    drop: frozenset[str],
    stop_asked: Callable[[], bool],
    first_record_s: float,
    spread: Spread = _WHOLE,
) -> Settings:
    """The settings of a run of this app."""
    return Settings(
        app=app.id,
        coordinator=coordinator,
        open_source=lambda topic, group: open_source(topic, app.broker, group, app.kafka),
        open_sink=lambda topic, format: open_sink(topic, app.broker, app.kafka, format),
        staged=staged,
        spread=spread,
        clock=app.clock,
        version=app.version,
        start=app.start_at,
        until=app.end_at,
        parallelism=app.parallelism,
        directory=app.open_tables(),
        memory_budget=app.memory_budget_bytes,
        hung_after_s=app.checkpoint_timeout_s,
        dedupe_s=app.dedupe_s,
        listener=app.listener,
        guards=app.guards,
        reprocess=app.reprocess,
        drop=drop,
        refresh_schema=app.refresh_schema,
        stop_asked=stop_asked,
        first_record_s=first_record_s,
    )
