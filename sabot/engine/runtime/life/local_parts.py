"""The streams and the agents of a run in this process, as one part of the run."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sabot.base.metrics import Sample
from sabot.base.threads import Handle
from sabot.engine.checkpoint import Manifest
from sabot.engine.runtime.agents.kind import OpenJournal
from sabot.engine.runtime.app_spec import AppSpec
from sabot.engine.runtime.life.local_streams import LocalStreams
from sabot.engine.runtime.life.settings import RunSettings
from sabot.engine.runtime.tasks.blocking import Working
from sabot.engine.runtime.tasks.taps import TapPoint
from sabot.engine.state import StateBackend
from sabot.errors import AgentFailed, SabotError

if TYPE_CHECKING:
    from sabot.base.figures import ToldAgents, ToldTask
    from sabot.engine.runtime.agents.local_agents import LocalAgents

_log = logging.getLogger(__name__)


class LocalParts:
    """The streams and the agents of a run, in this process (`life.parts.RunParts`). An app may lack one of the two."""

    def __init__(
        self,
        app: AppSpec,
        settings: RunSettings,
        *,
        backend: StateBackend | None,
        journal: OpenJournal | None,
        on_agents_broken: Callable[[], None],
    ) -> None:
        """`backend`, `journal`: those of the agents; the caller closes them. `on_agents_broken`: called when
        `agents_failure` is set.
        """
        self.awaited = False
        self.on_failed: Callable[[BaseException], None] = lambda error: _log.error("%s", error)
        self.on_agent_failed: Callable[[str, AgentFailed], None] = lambda agent_id, failure: None
        self.streams: LocalStreams | None = None
        self.agents: LocalAgents | None = None
        self._app = app
        self._settings = settings
        self._backend = backend
        self._journal = journal
        self._on_agents_broken = on_agents_broken

    async def open(self, restored: Manifest | None = None) -> None:
        """Opens the streams and the agents at the positions of the checkpoint. After an error, call `close`."""
        app, specs = self._app, self._app.agent_specs
        if app.agents:
            from sabot.engine.runtime.agents.local_agents import LocalAgents  # late: it loads the rooms of agents

            self.agents = LocalAgents(
                specs, self._settings, app.agents, backend=self._backend, ends=app.ends, journal=self._journal
            )
            self.agents.on_failed = self.on_agent_failed
        if app.ends:
            wanted = {} if self.agents is None else self.agents.sinks.wanted
            self.streams = LocalStreams(app.ends, self._settings, agents=specs, wanted=wanted)
            self.streams.on_failed = self._streams_failed
            if self.agents is not None:
                self.agents.streams = self.streams
            await self.streams.open(restored)
        if self.agents is not None:  # after the streams, as opening those may wait for their first record
            await self.agents.open(restored)

    def run(self) -> None:
        if self.streams is not None:
            self.streams.run()
            self.streams.running.add_done_callback(self._streams_over)
        if self.agents is not None:
            self.agents.task.on_broken = self._on_agents_broken
            self.agents.run()

    def _streams_failed(self, error: BaseException) -> None:
        if not self.awaited:
            self.on_failed(error)

    def _streams_over(self, over: asyncio.Future[None]) -> None:
        if self.agents is not None and not over.cancelled() and over.exception() is not None:
            self.agents.task.streams_failed()

    @property
    def _both(self) -> "list[LocalAgents | LocalStreams]":
        return [part for part in (self.agents, self.streams) if part is not None]

    @property
    def was_complete(self) -> bool:
        return all(part.was_complete for part in self._both)

    @property
    def open_durable(self) -> int:
        jobs = None if self.agents is None else self.agents.task.jobs
        return 0 if jobs is None else jobs.go_on

    @property
    def linked(self) -> bool:
        return self.streams is not None and self.streams.linked

    @property
    def running(self) -> Sequence[asyncio.Future[None]]:
        return [part.running for part in self._both]

    @property
    def broken(self) -> bool:
        return any(part.broken for part in self._both)

    @property
    def agents_failure(self) -> SabotError | None:
        return None if self.agents is None else self.agents.task.broken

    @property
    def needs_checkpoint(self) -> bool:
        return self.agents is not None and self.agents.needs_checkpoint

    def hold(self, held: bool) -> None:
        for part in self._both:
            part.hold(held)

    async def stop(self, *, drain: bool) -> None:
        # At the same time, because each may end inputs of the other.
        await asyncio.gather(*(part.stop(drain=drain) for part in self._both))

    async def close(self) -> None:
        try:
            if self.streams is not None:
                await self.streams.close()
        finally:
            if self.agents is not None:
                await self.agents.close()

    @property
    def left(self) -> list[tuple[str, Handle]]:
        return [left for part in self._both for left in part.left]

    @property
    def left_behind(self) -> list[str]:
        return [call for part in self._both for call in part.left_behind]

    # -- figures, from any thread -------------------------------------------------------------------------------------

    def busy(self) -> Working:
        operators = {} if self.agents is None else dict(self.agents.task.operators)
        waiting = {agent_id: operator.held.rows for agent_id, operator in operators.items()}
        return [] if self.streams is None else [task.taking for task in self.streams.tasks], waiting

    def progress(self) -> tuple[float, float] | None:
        return None if self.streams is None else self.streams.progress()

    def statistics(self) -> "dict[str, ToldTask]":
        return {} if self.streams is None else self.streams.statistics()

    def agent_statistics(self) -> "ToldAgents":
        return {} if self.agents is None else self.agents.task.statistics()

    def tap(self, point: TapPoint) -> list[pa.RecordBatch]:
        return [] if self.streams is None else self.streams.tap(point)

    def workers(self) -> list[dict[str, Any]]:
        return []

    def samples(self) -> Iterator[Sample]:
        if self.streams is not None:
            yield from self.streams.samples()
        if self.agents is not None:
            yield from self.agents.task.samples()
