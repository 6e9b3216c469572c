"""AgentRuntime: the agents of an app by their names, and the life of the app (`runtime.life.app_runner`) as agents see it."""

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from sabot.api.agent import AgentSpec
from sabot.api.nodes.node import walk
from sabot.api.nodes.read import Read, StreamEnd, Write
from sabot.api.unrun import note_run
from sabot.base.config import Duration
from sabot.base.lazy_imports import no_collections
from sabot.engine.runtime.agents.process import AgentProcess
from sabot.errors import UserError, short_repr

if TYPE_CHECKING:
    from sabot.engine.checkpoint import Coordinator
    from sabot.engine.runtime.app_spec import AppSpec
    from sabot.engine.runtime.life.app_runner import AppRunner

_log = logging.getLogger(__name__)


class AgentRuntime:
    """Registers agents and the ends of streams, and runs them all."""

    def __init__(self, app: Any) -> None:
        """`app`: the App, of which it needs `spec`."""
        spec = getattr(app, "spec", None)
        if spec is None:
            raise UserError(
                f"AgentRuntime: app={short_repr(app)}", hint="an App, which makes its own: app.agent_runtime"
            )
        self.app = app
        self._spec: AppSpec = spec
        self.agents = cast("dict[str, AgentProcess]", spec.agents)
        self._runner: AppRunner | None = None
        # A thread may ask for figures, and a signal for the stop, before there is a runner.
        self._one_runner = threading.RLock()

    @property
    def runner(self) -> "AppRunner":
        """The life of the app. A program that is only described, or planned, does not load what runs it."""
        if self._runner is None:
            with no_collections():
                from sabot.engine.runtime.life.app_runner import AppRunner
            with self._one_runner:
                if self._runner is None:
                    self._runner = AppRunner(self._spec)
        return self._runner

    def load(self) -> None:
        """Loads what will run it, as `runner` does."""
        assert self.runner is not None

    @property
    def _started(self) -> bool:
        return self._runner is not None and self._runner.started

    async def register_agent(self, agent_id: str, agent_func: Callable[..., Any], topic: Any, **options: Any) -> None:
        """Adds an agent; `options` are those of `App.agent`."""
        self.add(AgentSpec.of(agent_id, agent_func, topic, **options))

    def add(self, spec: AgentSpec) -> None:
        """Adds an agent before the start. Raises UserError for a name that is taken, except by a re-run notebook cell."""
        if self._started:
            raise UserError(f"agent {spec.agent_id}: the app runs already", hint="register agents before the start")
        taken = self.agents.get(spec.agent_id)
        if taken is not None and not _same_cell(taken.agent_func, spec.func):
            raise UserError(f"there is an agent {spec.agent_id} already", hint="give this one another name=")
        self.agents[spec.agent_id] = AgentProcess(
            agent_id=spec.agent_id,
            agent_func=spec.func,
            topic=spec.topics[0] if len(spec.topics) == 1 else list(spec.topics),
            broker=self._spec.settings.broker,
            spec=spec,
            kafka=self._spec.settings.kafka,
            clock=self._spec.clock,
            _app=self._spec,
        )

    def add_stream(self, end: StreamEnd) -> None:
        """A stream that runs with the app."""
        if self._started:
            raise UserError("the app runs already", hint="say where streams go (.to) before the start")
        sources = [node.source for node in walk([end]) if isinstance(node, Read)]
        if isinstance(end, Write) and isinstance(end.sink, str) and end.sink in sources:
            raise UserError(
                f"to({end.sink!r}): this stream reads {end.sink}, so each of its results would be its input again, without end",
                hint="write into another topic",
            )
        self._spec.ends.append(end)

    async def start_all(self) -> None:
        """Restores the last checkpoint, if there is one, and starts every agent and the periodic checkpoints."""
        note_run(self._spec.id)
        await self.runner.start()

    async def stop_all(self, *, drain: bool = False) -> None:
        """Stops every agent behind a last checkpoint. `drain`: first processes what was read. Idempotent."""
        try:
            await self.runner.stop(drain=drain)
        finally:
            await self._spec.keep_accounts()

    async def run(self, listening: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Blocks until every input has ended, no agent is left, or the app is stopped (`AppRunner.run`)."""
        note_run(self._spec.id)
        try:
            await self.runner.run(listening)
        finally:
            await self._spec.keep_accounts()

    async def trigger_checkpoint(self) -> int:
        """Takes a checkpoint now; returns its id when all running agents have acknowledged. Raises CheckpointFailed."""
        return await self.runner.checkpoint()

    @property
    def restored_from(self) -> int | None:
        """The id of the checkpoint that this run, or the last one, has begun from; None where it began with nothing."""
        return self.runner.restored_from

    @property
    def checkpoint_coordinator(self) -> "Coordinator":
        """Makes the checkpoints of the app."""
        return self.runner.coordinator

    @property
    def _checkpoint_interval(self) -> float:
        return self.runner.checkpoint_interval

    @_checkpoint_interval.setter
    def _checkpoint_interval(self, interval: Duration) -> None:
        """Sets the time between checkpoints, as `App.configure(checkpoint_interval=…)` does. Raises UserError while the
        app runs.
        """
        if self._runner is not None and self._runner.running:
            raise UserError(f"app {self._spec.id} runs already", hint="set checkpoint_interval before the start")
        self._spec.configure(checkpoint_interval=interval)

    def get_stats(self) -> dict[str, dict[str, Any]]:
        """{agent_id: {state, messages_processed, errors, last_message_time, dead_letters, failure}}"""
        return {agent_id: agent.figures() for agent_id, agent in self.agents.items()}


def _same_cell(old: Callable[..., Any], new: Callable[..., Any]) -> bool:
    """A notebook cell that was run again: the same qualified name in `__main__`."""
    return getattr(new, "__module__", None) == "__main__" == getattr(old, "__module__", None) and getattr(
        new, "__qualname__", new
    ) == getattr(old, "__qualname__", old)
