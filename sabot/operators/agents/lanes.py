"""An agent whose calls are made by a crew (`calls.Crew`), whose workers have a queue each: the lanes.

A record agent has `concurrency` lanes; a key always goes to the same lane, so its records keep their order. A batch agent has one lane. A
row stays in its lane until its call has ended. What a record and a batch agent do differently stands in `records` and `batches`.
"""

import logging
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from sabot.api.agent import AgentSpec
from sabot.api.context import AgentContext, apply_writes, timer_changes
from sabot.calls import Crew
from sabot.errors import SabotError
from sabot.operators.agents.operator import AgentOperator
from sabot.process_exit import EXITS
from sabot.supervision import unexpected_end

_log = logging.getLogger(__name__)


class LaneOperator(AgentOperator):
    """What record and batch agents have in common."""

    def __init__(self, spec: AgentSpec, **wiring: Any) -> None:
        super().__init__(spec, **wiring)
        name = f"agent {spec.agent_id}"
        self._crew: Crew[Any] = Crew(name, self, spec.calls, clock=self.clock, loop=self.loop, own_queues=True)
        self.lanes = self._crew.workers

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._crew.start()
        if self.timers is not None:
            self.timers.start()

    async def quiesce(self, grace_s: float) -> None:
        self._stop_timers()
        await self._crew.quiesce(grace_s)
        self.release()  # who waits for its rows would wait for ever

    async def close(self) -> None:
        self._stop_timers()
        await self._crew.close()
        self.error_log.flush()
        for item in self._crew.left_behind:
            place = f"agent {self.spec.agent_id} at {self._where(item)}"
            if place not in self.left_behind:
                self.left_behind.append(place)
                _log.error("%s: the call refuses to be cancelled and is left behind", place)
        self.release()

    def _stop_timers(self) -> None:
        if self.timers is not None:
            self.timers.stop()

    @property
    def stopped(self) -> bool:
        return self._crew.stopped

    def end_calls(self) -> None:
        self._stop_timers()
        self._crew.end()

    async def drained(self) -> None:
        """As in the base; and every timer that is due by now has fired."""
        if self.timers is not None:
            self.timers.let_out()
        await super().drained()

    @property
    def unprocessed(self) -> bool:
        return self.held.rows > 0 or (self.timers is not None and self.timers.left_to_fire)

    @abstractmethod
    def over(self, item: Any) -> bool:
        """What the item holds has ended (`held`). -> whether all that came with it has."""

    def _done(self, item: Any) -> None:
        self.rows_ended(item.held, last=self.over(item))

    # -- figures ------------------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """As in the base; how many lanes there are, how many may call now (limit), how often a service was overloaded."""
        return {
            **super().statistics(),
            "lanes": len(self.lanes),
            "limit": self._crew.limit,
            "overloads": self._crew.overloads,
            **({} if self.timers is None else self.timers.statistics()),
        }

    def busy(self) -> tuple[str, float] | None:
        longest = self._crew.longest()
        return None if longest is None else (f"agent {self.spec.agent_id} at {self._where(longest[0])}", longest[1])

    @abstractmethod
    def _where(self, item: Any) -> str:
        """topic[partition]@offset of what a lane holds."""

    # -- calls: what the crew asks (`calls.Calls`) --------------------------------------------------------------------

    @abstractmethod
    def begin(self, item: Any, run: Callable[..., Any]) -> tuple[AgentContext, Any, bool]:
        """Calls the user's function in the context `run`: (its ctx, what it gave, whether that is to be awaited)."""

    @abstractmethod
    def written(self, item: Any, value: Any) -> Any:
        """What the function gave, as it will be emitted. Raises for what cannot be."""

    def ended(self, item: Any, ctx: AgentContext, output: Any) -> Awaitable[None] | None:
        """The call ended well: its state writes, its timers, its results and its row, in one step.

        -> what the lane waits for before the next call.
        """
        try:
            apply_writes(ctx)
        except (Exception, *EXITS) as error:
            self.on_broken(f"state, at {self._where(item)}", error)
            return None
        if self.timers is not None:
            if item.timer is not None:
                self.timers.ended(item.timer)
            if changes := timer_changes(ctx):
                self.timers.apply(item.scope, changes)
        self._end(item, output)
        self._done(item)
        port = self.port
        if port is not None and port.full:
            return port.writable()
        return self.dead_letters_writable() if self.dead_letters_full else None

    def attempt_failed(self, item: Any, failure: BaseException, attempts: int) -> bool:
        """As `Calls` says. A failure that concerns a part of the item gives up that part, and does not count as an attempt."""
        if self._salvage(item, failure, attempts):
            return True
        self.counters.errors_count += 1
        self.log_error(failure, self._where(item), attempts)
        return False

    @abstractmethod
    def renew(self, item: Any) -> None:
        """Before another attempt: the failed one may have changed what it was given."""

    def failed(self, item: Any, failure: BaseException, attempts: int) -> Awaitable[None] | None:
        """No attempt is left: the agent fails, or the item is given up. Who asks for the end of the process ends the agent."""
        if self.spec.calls.on_error == "fail" or isinstance(failure, EXITS):
            self.fail(failure, self._where(item))
            return None
        self._bury(item, failure, attempts)
        self._done(item)
        return self.dead_letters_writable() if self.dead_letters_full else None

    def worker_ended(self, item: Any, error: BaseException | None) -> None:
        """A lane has ended, unexpectedly. An error is not the call's own: state may be applied, and the row still wait."""
        where = self.spec.agent_id if item is None else self._where(item)
        if error is None:
            self.fail(RuntimeError("the task that runs the call was cancelled"), where)
        else:
            what = f"a lane of agent {self.spec.agent_id}, at {where},"
            self.on_broken(what, unexpected_end(what, error))

    def broke(self, what: str, error: SabotError) -> None:
        """A callback of the crew has ended unexpectedly."""
        self.on_broken(what, error)

    @abstractmethod
    def _end(self, item: Any, output: Any) -> None:
        """The call ended well: emit and count. Must not suspend."""

    @abstractmethod
    def _bury(self, item: Any, failure: BaseException, attempts: int) -> None:
        """The item is given up: to the dead letters."""

    def _salvage(self, item: Any, failure: BaseException, attempts: int) -> bool:
        """Gives up the part of the item that the failure concerns, if it says which. True: the rest is to be called again."""
        return False
