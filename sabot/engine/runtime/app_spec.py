"""AppSpec: what the engine knows of an app, which an `App` makes and a run, its workers and the durable agents read. AppStatus:
what its runner and its runs write of its state, and all that shows the app reads.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sabot.api.agent import AgentSpec
from sabot.api.lifespan import Lifespan
from sabot.api.nodes.read import Read, StreamEnd
from sabot.api.settings import Settings
from sabot.base.dataclass import dataclass
from sabot.clock import Clock
from sabot.engine.calls.judging import judged_clock, refuse_without_rules
from sabot.engine.state import StateBackend, open_backend
from sabot.errors import SabotError, UserError, message_of

if TYPE_CHECKING:
    from sabot.engine.checkpoint import CheckpointStorage
    from sabot.engine.plan import Plan
    from sabot.engine.runtime.agents.kind import AgentKind
    from sabot.engine.runtime.agents.runnable import RunnableAgent
    from sabot.engine.runtime.life.parts import TaskCoordinator
    from sabot.engine.runtime.life.settings import RunSettings, StreamsMaker

_log = logging.getLogger(__name__)


class AppSpec:
    """An app as the engine knows it: its settings, the ends of its streams, its agents, and what opens its state.

    A start changes `settings`, of those that are meant for one start, and `reprocess`.
    """

    def __init__(
        self,
        id: str,
        settings: Settings,
        clock: Clock,
        *,
        kind: "Callable[[AppSpec], AgentKind]",
        guards: Callable[[], Sequence[Any]],
        accounts: Callable[[], Any],
        listener: Any,
        close: Callable[[], Awaitable[None]],
    ) -> None:
        """Takes the functions of the app that make the parts which are above this room, and are loaded only if they are used:

        - `kind`: returns the object that runs durable agents, and judges calls by the guards.
        - `guards`: returns the guards of effects and of model calls (`jobs.guard.EffectGuard`); the first decides first.
        - `accounts`: returns the ledger with the budgets of the app (`agents.accounts.ledger.Ledger`), or None without budgets.
        - `listener`: the listener to jobs (`jobs.log.Listener`), or None.
        - `close`: a coroutine function that writes the records of `send` that are not written yet.
        """
        self.id = id
        self.settings = settings
        self.clock = judged_clock(clock)
        self.listener = listener
        self.lifespan = Lifespan()
        self.agents: dict[str, RunnableAgent] = {}  # by id
        self.ends: list[StreamEnd] = []  # the writes of streams to topics, sinks and agents
        self.reprocess: set[str] = set()
        self.workers: StreamsMaker | None = None  # None: streams and agents run in this process
        self.state_backend: StateBackend | None = None  # one of the user's, who closes it
        self.journal_storage: Any = None  # the entries of a journal in memory, for a later run in this process
        self._kind, self._guards, self._accounts, self._close = kind, guards, accounts, close

    @property
    def guards(self) -> Sequence[Any]:
        """The guards of effects and of model calls; the first one decides first."""
        return self._guards()

    @property
    def accounts(self) -> Any:
        """The ledger with the budgets of the app, or None if the app has no budgets."""
        return self._accounts()

    @property
    def agent_specs(self) -> list[AgentSpec]:
        """The declarations of the agents."""
        return [agent.spec for agent in self.agents.values() if agent.spec is not None]

    def configure(self, **settings: Any) -> None:
        """Changes settings for the next start. None leaves a setting as it is. Raises UserError for a wrong value."""
        given = {name: value for name, value in settings.items() if value is not None}
        self.settings = replace(self.settings, **given)
        if "reprocess" in given:
            self.reprocess = {name if "." in name else f"{self.id}.{name}" for name in self.settings.reprocess}

    def check_names(self) -> None:
        """Raises UserError for a tool or an agent in the rules of the guards, or a topic in `from_earliest=`, that the app
        does not have.
        """
        from sabot.engine.plan import walk

        specs = self.agent_specs
        for guard in self.guards:
            guard.check_names(
                [each.func for each in specs],
                [each.agent_id for each in specs],
                f"app {self.id}: its policy",
                {each.agent_id: [each.func, each.on_timer or each.func] for each in specs if not each.durable},
            )
        if any(each.durable for each in specs):
            self.durable_kind().warn_of_lost_labels(specs, self.ends)
        reads = {node.name for node in walk(self.ends) if isinstance(node, Read)}
        reads |= {topic for spec in specs for topic in spec.topics}
        if unknown := sorted(self.settings.skipping - reads):
            raise UserError(
                f"--from-earliest {unknown[0]}: the app reads no topic of that name",
                hint=f"it reads {', '.join(sorted(reads))}",
            )

    def plan(self) -> "Plan":
        """Returns the plan of streams and agents, as far as it is known without their data."""
        from sabot.engine.plan import make_plan

        return make_plan(self.ends, agents=self.agent_specs, parallelism=self.settings.parallelism)

    def durable_kind(self) -> "AgentKind":
        """Returns what runs durable agents, and judges calls by the guards. Nothing of it is loaded before this call."""
        return self._kind(self)

    def judge_of_functions(self) -> Any:
        """Returns a judge of the calls that functions at start and stop, resources and timers of the app make, or None
        if there are no guards. Called on the event loop. Raises UserError if judged code starts an app without such guards.
        """
        guards = self.guards
        refuse_without_rules(
            f"app {self.id}", {name for each in guards for name in getattr(each, "declared", ("policy",))}
        )
        return self.durable_kind().judge(guards) if guards else None

    def settings_of_run(self, coordinator: "TaskCoordinator") -> "RunSettings":
        """Returns the settings of a run of this app, without those that only the run knows."""
        from sabot.engine.runtime.life.settings import RunSettings
        from sabot.kafka import open_sink, open_source

        settings = self.settings
        return RunSettings(
            app_id=self.id,
            app=settings,
            coordinator=coordinator,
            open_source=lambda topic, group: open_source(topic, settings.broker, group, settings.kafka),
            open_sink=lambda topic, format: open_sink(topic, settings.broker, settings.kafka, format),
            clock=self.clock,
            directory=self.open_tables(),
            guards=self.guards,
            kind=self.durable_kind,
            reprocess=self.reprocess,
        )

    def open_tables(self) -> Path | None:
        """Returns the directory for the tables of streams, or None if they stay in memory."""
        return None if (base := self.settings.state_dir) is None else base / "streams"

    def open_state(self, name: str = "db") -> tuple[StateBackend | None, bool]:
        """Returns the state backend of agents, and True if the runtime has to close it. `name`: the name of its
        database, one for each task of agents.
        """
        if self.state_backend is not None:
            return self.state_backend, False
        return open_backend(self.settings.state, name), True

    def checkpoints(self) -> "CheckpointStorage | None":
        """Returns the storage for checkpoints, not locked, or None if the app keeps none."""
        place, base = self.settings.checkpoint_place, self.settings.state_dir
        if place is None:
            return None
        from sabot.engine.checkpoint import CheckpointStorage

        return CheckpointStorage(place, scratch=None if base is None else base / "scratch")

    def open_storage(self) -> "CheckpointStorage | None":
        """Opens and locks the storage for checkpoints. Returns None if the app keeps no checkpoints."""
        storage = self.checkpoints()
        if storage is not None:
            storage.lock()
        return storage

    async def keep_accounts(self) -> None:
        """Returns when the usage by calls is written, also that of agents that are not durable."""
        guards = self.guards
        for guard in guards:
            try:
                await guard.leave()
            except (SabotError, OSError) as error:
                _log.warning("what calls of models have used is not kept: %s", message_of(error))
        if guards:
            self.durable_kind().warn_of_unused()

    async def let_go(self) -> None:
        """Called at the end of a process that has run a part of the app. Returns when the use of budgets by this
        process's calls is recorded, and all records of `send` are written.
        """
        await self.keep_accounts()
        await self._close()


@dataclass
class AppStatus:
    """The state of an app, over all its runs. Written on its event loop, and read from any thread.

    - `phase`: running: everything is open and runs. stopping: from the beginning of the stop until everything is closed.
    - `failure`: what has ended this run, or the last one; after a failure nothing is read or saved any more.
    - `stalled_by`: the failure of an agent, if the streams of this run, or of the last one, wait for its rows for ever.
    - `restarts`: their number after failures. `will_restart`: True while another run is waited for.
    - `loop`, `loop_thread`: of this run, or of the last one; None before the first one. The loop may be closed.
    """

    phase: Literal["starting", "running", "stopping", "stopped"] = "stopped"
    failure: SabotError | None = None
    stalled_by: SabotError | None = None
    restarts: int = 0
    will_restart: bool = False
    loop: asyncio.AbstractEventLoop | None = None
    loop_thread: int | None = None

    @property
    def words(self) -> str:
        """The phase, or "failed" after a failure."""
        return "failed" if (self.failure or self.stalled_by) and self.phase != "starting" else self.phase
