"""A child process, as its lifecycle manager has it: where it is, what it was told, and its configuration."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sabot.checks import is_whole
from sabot.config import parse_seconds
from sabot.errors import IllegalTransition, UserError, short_repr
from sabot.process.client import Child
from sabot.process.command import Command

_log = logging.getLogger(__name__)


class LifecycleState(StrEnum):
    """Where an instance is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    SUSPENDED = "suspended"
    TERMINATED = "terminated"
    FAILED = "failed"


_NEXT: Final[Mapping[LifecycleState, tuple[LifecycleState, ...]]] = {
    LifecycleState.PENDING: (
        LifecycleState.RUNNING,
        LifecycleState.SUSPENDED,
        LifecycleState.FAILED,
        LifecycleState.TERMINATED,
    ),
    LifecycleState.RUNNING: (
        LifecycleState.PENDING,
        LifecycleState.SUSPENDED,
        LifecycleState.FAILED,
        LifecycleState.TERMINATED,
    ),
    LifecycleState.SUSPENDED: (LifecycleState.PENDING, LifecycleState.RUNNING, LifecycleState.TERMINATED),
    LifecycleState.FAILED: (LifecycleState.PENDING, LifecycleState.TERMINATED),
    LifecycleState.TERMINATED: (),
}
OVER = (LifecycleState.TERMINATED, LifecycleState.FAILED)
"""An instance that is in one of these is started again only when somebody restarts it."""


@dataclass(frozen=True, kw_only=True)
class LifecycleConfig:
    """Times in seconds.

    spawn_timeout: until an instance is ready. shutdown_timeout: from SIGTERM to SIGKILL, and for a checkpoint.
    max_restarts: of an instance that fails, after `restart_backoff`, and twice as long each time, at most 60 s; who has run for
    `stable_after` begins the count anew. idle_suspend: who does nothing for so long is suspended; None: nobody is. release_idle: its memory
    is given back then.
    """

    spawn_timeout: float = 60.0
    shutdown_timeout: float = 30.0
    max_restarts: int = 5
    restart_backoff: float = 1.0
    stable_after: float = 300.0
    idle_suspend: float | None = 300.0
    release_idle: bool = False

    def __post_init__(self) -> None:
        for name in ("spawn_timeout", "shutdown_timeout", "restart_backoff", "stable_after", "idle_suspend"):
            if (value := getattr(self, name)) is not None:
                may_be_zero = name in ("shutdown_timeout", "restart_backoff", "stable_after")
                seconds = parse_seconds(value, name=f"LifecycleConfig: {name}", zero=may_be_zero)
                object.__setattr__(self, name, seconds)
        if not is_whole(self.max_restarts, 0):
            raise UserError(
                f"LifecycleConfig: max_restarts={short_repr(self.max_restarts)}", hint="a whole number from 0 up"
            )


@dataclass(frozen=True)
class InstanceInfo:
    """An instance at this moment.

    pid: 0 for none. started_at: of its process, in seconds since 1970; 0 for none. restarts: since the beginning. why: what ended its last
    process, or suspended it. next_start_at: when it is started again, in seconds since 1970; None: nothing is planned.
    """

    id: str
    name: str
    state: LifecycleState
    pid: int
    started_at: float
    restarts: int
    why: str
    next_start_at: float | None


class AgentInstance:
    """An instance of a LifecycleManager, over all its processes, of which it has at most one at a time.

    name: that of its program where none was given. label: names it in errors, by its own name or its id.
    child: its process, None where it has none. command: with which it is started the next time. failures: since it has run long enough.
    """

    def __init__(
        self,
        agent_id: str,
        name: str,
        command: Command,
        *,
        ready: Callable[[Child], Awaitable[object]] | None = None,
        on_state: "OnState | None" = None,
    ) -> None:
        self.id = agent_id
        self.name = name or command.argv[0]
        self.label = repr(name) if name else f"{agent_id!r} ({self.name})"
        self.command = command
        self.first_command = command
        self.state = LifecycleState.PENDING
        self.child: Child | None = None
        self.restarts = 0
        self.failures = 0
        self.why = ""
        self.next_start_at: float | None = None
        self.ready = ready
        self.users = 0  # who are inside of `in_use`
        self.is_asleep = False  # suspended because it was idle
        self.running_since = 0.0
        self.active_at = 0.0
        self.seen = (0, 0.0)  # output and CPU seconds, when it was last looked at
        self.lock = asyncio.Lock()
        self.given_up = asyncio.Event()  # it is to be terminated
        self.is_adopted = False  # something else starts it, and ends it
        self._changed = asyncio.Event()
        self._on_state = on_state
        self.waiting: asyncio.Task[None] | None = None  # for its next start

    def __repr__(self) -> str:
        return f"<AgentInstance {self.name!r} {self.id} {self.state}>"

    @property
    def is_over(self) -> bool:
        """Whether it is not started any more, unless somebody restarts it."""
        return self.state in OVER

    @property
    def info(self) -> InstanceInfo:
        """What there is to say of it now."""
        pid, started_at = (0, 0.0) if self.child is None else (self.child.pid, self.child.started_at)
        return InstanceInfo(
            self.id, self.name, self.state, pid, started_at, self.restarts, self.why, self.next_start_at
        )

    def become(self, state: LifecycleState) -> None:
        """Goes to this state, and tells of it. Raises IllegalTransition."""
        before = self.state
        if state not in _NEXT[before]:
            raise IllegalTransition(f"instance {self.label}: one that is {before} does not become {state}")
        self.state = state
        self._changed.set()
        if self._on_state is not None:
            try:
                self._on_state(self, before, state)
            except Exception:  # who listens has no say
                _log.exception("on_state of the lifecycle manager has failed for instance %s", self.label)

    async def until(self, *states: LifecycleState) -> LifecycleState:
        """Returns when it is in one of these states, with that one."""
        while self.state not in states:
            self._changed.clear()
            await self._changed.wait()
        return self.state


OnState = Callable[[AgentInstance, LifecycleState, LifecycleState], None]
"""Is told of an instance, its state before, and the new one."""
