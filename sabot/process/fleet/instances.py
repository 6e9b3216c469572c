"""The names of document 002 for an instance: the states of its lifecycle, its configuration, and a view of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sabot.base.config import check_numbers, checked_durations
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.process.command import Command
from sabot.process.document_names import LifecycleState
from sabot.process.inspection import UsageMeter
from sabot.process.instance import Instance, RestartPolicy
from sabot.process.phases import OVER, Phase

IDLE = "it was idle"
"""Why an instance is suspended that goes on as soon as it is used."""


@dataclass(frozen=True, kw_only=True)
class LifecycleConfig:
    """The settings of a lifecycle manager. Times are in seconds.

    - `spawn_timeout`: the longest time until an instance is ready. `shutdown_timeout`: the time from SIGTERM to
      SIGKILL, and the longest time of a checkpoint.
    - `max_restarts`: restarts of an instance that fails, before which it waits for `restart_backoff`, and twice as
      long each time, at most 60 s. An instance that has run for `stable_after` begins the count anew.
    - `idle_suspend`: the time without work after which an instance is suspended; None: never. `release_idle`: True to
      give its memory back then.
    """

    spawn_timeout: float = 60.0
    shutdown_timeout: float = 30.0
    max_restarts: int = 5
    restart_backoff: float = 1.0
    stable_after: float = 300.0
    idle_suspend: float | None = 300.0
    release_idle: bool = False

    def __post_init__(self) -> None:
        checked_durations(self, "spawn_timeout")
        checked_durations(self, "shutdown_timeout", "restart_backoff", "stable_after", zero=True)
        checked_durations(self, "idle_suspend", none=True)
        check_numbers(self, "max_restarts", zero=True, whole=True)

    def policy(self) -> RestartPolicy:
        """Returns the restart policy that these settings describe."""
        return RestartPolicy(
            most=self.max_restarts, first_wait_s=self.restart_backoff, stable_after_s=self.stable_after
        )


@dataclass(frozen=True)
class InstanceInfo:
    """An instance at this moment.

    - `pid`: 0 if there is no process. `started_at`: the start of the process in seconds since 1970; 0 if there is none.
    - `restarts`: a count since the beginning. `why`: the reason of the last end or suspension.
    - `next_start_at`: the time of the planned start in seconds since 1970, or None.
    """

    id: str
    name: str
    state: LifecycleState
    pid: int
    started_at: float
    restarts: int
    why: str
    next_start_at: float | None


class AgentInstance(Instance):
    """An instance as document 002 names it: with its state, and with the figures by which it is found idle."""

    def __init__(self, command: Command, *, clock: Clock = SYSTEM_CLOCK, **options: Any) -> None:
        """`options`: those of Instance."""
        super().__init__(command, clock=clock, **options)
        self.first_command = command
        self.is_adopted = False  # something else starts it, and ends it
        self.users = 0  # callers inside of `in_use`
        self.active_at = 0.0
        self.written_bytes = 0  # output of its process at the last look
        self.meter = UsageMeter(clock)

    @property
    def state(self) -> LifecycleState:
        """The state in document 002."""
        return self.phase.lifecycle_state

    @property
    def is_asleep(self) -> bool:
        """True if the instance was suspended because it was idle."""
        return self.phase is Phase.SUSPENDED and self.suspended_for is IDLE

    @property
    def info(self) -> InstanceInfo:
        """A view of the instance at this moment."""
        started_at = self.child.started_at if self.child is not None and self.pid else 0.0
        return InstanceInfo(
            self.id, self.name, self.state, self.pid, started_at, self.restarts, self.why, self.next_start_at
        )

    async def until_over(self) -> LifecycleState:
        """Waits until the instance is terminated or has failed for good, and returns that state."""
        return (await self.until(lambda phase: phase in OVER)).lifecycle_state


OnState = Callable[[AgentInstance, LifecycleState, LifecycleState], None]
"""A listener, called with an instance, its state before, and the new one."""
