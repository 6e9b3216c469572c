"""The number of workers of an app, also after a rescale, and the maker of the streams of each of its runs."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sabot.api.nodes.read import StreamEnd
from sabot.engine.checkpoint import Coordinator
from sabot.engine.delivery import StagedSinks
from sabot.engine.runtime.agents.runnable import RunnableAgent
from sabot.engine.runtime.app_spec import AppSpec
from sabot.engine.runtime.life.settings import RunSettings, StreamsMaker
from sabot.engine.workers.refusals import refuse
from sabot.engine.workers.rendezvous import BeginRound
from sabot.engine.workers.streams import WorkerStreams
from sabot.errors import UserError

_log = logging.getLogger(__name__)

_WORKERS_MAX = 64
_RESCALE_TRIES = 3  # attempts to begin with another number of workers, whatever number of restarts the app may have


def over_workers(app: AppSpec, rendezvous: BeginRound, workers: int) -> StreamsMaker:
    """Returns a maker that runs the streams of the app in `workers` processes, and agents with `process=` in
    additional ones. `rendezvous`: brings these processes to this one. Raises UserError for 1 worker without such
    agents.
    """
    own = any(spec.process for spec in app.agent_specs)
    if workers == 1 and not own:
        raise UserError(
            "workers=1: one worker is the same as running the app in this process", hint="leave --workers out"
        )
    return _WorkerStreamsMaker(app, rendezvous, workers)


class _WorkerStreamsMaker(StreamsMaker):
    def __init__(self, app: AppSpec, rendezvous: BeginRound, workers: int) -> None:
        self._app = app
        self._rendezvous = rendezvous
        self._parallelism = app.settings.parallelism  # the user's setting, whatever the number of workers
        # The number of workers of the last run that has begun, until one begins with the new number; and the failed attempts so far.
        self._before: int | None = None
        self._tries = 0
        self._made: WorkerStreams | None = None  # of the last run
        self._request = self._refusal = ""  # the last rescale, and the reason for which it was given up
        self.check(workers)
        self._have(workers)

    def check(self, workers: int) -> None:
        if not 1 <= workers <= _WORKERS_MAX:
            raise UserError(f"workers={workers}: an app has 1 to {_WORKERS_MAX} workers")

    async def make_room(self, workers: int) -> None:
        if self._made is not None:
            await self._made.make_room(workers)

    def rescale(self, workers: int, request: str = "") -> None:
        if self._made is not None:
            self._made.goes_on = True
        self._before, self._request, self._refusal = self.workers, request, ""
        self._tries = 0
        self._have(workers)

    def begun(self) -> None:
        self._before = None

    @property
    def tried_enough(self) -> bool:
        return self._before is not None and self._tries >= _RESCALE_TRIES

    def take_back(self, why: str) -> bool:
        if self._before is None or not self._tries:  # an error of the run before has nothing to do with the rescale
            return False
        self._refusal = f"it could not begin with {self.workers} workers, and goes on with {self._before}: {why}"
        self._have(self._before)
        self._before = None
        return True

    def refusal(self, request: str) -> str | None:
        return self._refusal if request == self._request and self._refusal else None

    def _have(self, workers: int) -> None:
        self.workers = workers
        self._app.configure(parallelism=max(self._parallelism, workers))
        if workers > self._parallelism:
            _log.info("parallelism is %d, one thread of each stage for each worker", workers)

    def __call__(
        self,
        ends: Sequence[StreamEnd],
        settings: RunSettings,
        coordinator: Coordinator,
        delivery: StagedSinks,
        agents: Mapping[str, RunnableAgent],
    ) -> "WorkerStreams":
        app, asked = self._app, self._app.settings
        self._tries += 1
        refuse(app, ends, [agent.spec for agent in agents.values() if agent.spec is not None], self.workers)
        told = {
            "broker": asked.broker,
            "state": asked.state,
            "journal": None if asked.journal is None else os.fspath(asked.journal),
            "checkpoint_dir": os.fspath(asked.checkpoint_dir) if isinstance(asked.checkpoint_dir, str | Path) else None,
            "until": asked.end_at,
            "parallelism": asked.parallelism,
            "schema": asked.schema,
        }
        rendezvous, workers = self._rendezvous, self.workers
        self._made = WorkerStreams(
            ends, settings, coordinator, delivery, agents, rendezvous, told, workers, asked.from_
        )
        return self._made
