"""The base of record and batch agents: their calls are made by a crew (`calls.Crew`), whose workers are the lanes.

A record agent has `concurrency` lanes. A key always goes to the same lane, so its records keep their order. A batch
agent has one lane. A row stays in the queue of its lane until its call has ended. `records` and `batches` have the
differences.
"""

import logging
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from sabot.api.agent import AgentSpec
from sabot.api.context import AgentContext, apply_writes, timer_changes
from sabot.base.process_exit import EXITS
from sabot.base.supervision import unexpected_end
from sabot.engine.calls import Crew
from sabot.engine.operators.agents.operator import AgentOperator
from sabot.errors import SabotError

if TYPE_CHECKING:
    from sabot.base.figures import ToldLanes

_log = logging.getLogger(__name__)


class LaneOperator(AgentOperator):
    """The base of record and batch agents."""

    def __init__(self, spec: AgentSpec, **wiring: Any) -> None:
        super().__init__(spec, **wiring)
        name = f"agent {spec.agent_id}"
        self._crew: Crew[Any] = Crew(name, self, spec.calls, clock=self.clock, loop=self.loop, own_queues=True)
        self.lanes = self._crew.workers

    # -- start and end ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._crew.start()
        if self.timers is not None:
            self.timers.start()

    async def quiesce(self, grace_s: float) -> None:
        self._stop_timers()
        await self._crew.quiesce(grace_s)
        self.release()  # callers of `drained` would wait for ever

    async def close(self) -> None:
        self._stop_timers()
        await self._crew.close()
        self.error_log.flush()
        for item in self._crew.left_behind:
            place = f"agent {self.spec.agent_id} at {self._where(item)}"
            if place not in self.left_behind:
                self.left_behind.append(place)
                _log.error("%s: the call cannot be cancelled and is left running", place)
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
        """Waits until every row has been processed, or the agent has failed or was stopped, and every timer that is
        due by now has fired.
        """
        if self.timers is not None:
            self.timers.fire_due_only()
        await super().drained()

    @property
    def unprocessed(self) -> bool:
        return self.held.rows > 0 or (self.timers is not None and self.timers.left_to_fire)

    @abstractmethod
    def end_rows_of(self, item: Any) -> bool:
        """Ends the rows of the item in `self.held`. Returns True if all rows that came together with them have ended."""

    def _done(self, item: Any) -> None:
        self.rows_ended(item.held, last=self.end_rows_of(item))

    # -- metrics ------------------------------------------------------------------------------------------------------

    def statistics(self) -> "ToldLanes":
        """Returns the base's figures, the number of lanes, those of the crew, and those of timers."""
        return {
            **super().statistics(),
            "lanes": len(self.lanes),
            **self._crew.statistics(),
            **({} if self.timers is None else self.timers.statistics()),
        }

    def busy(self) -> tuple[str, float] | None:
        longest = self._crew.longest()
        return None if longest is None else (f"agent {self.spec.agent_id} at {self._where(longest[0])}", longest[1])

    @abstractmethod
    def _where(self, item: Any) -> str:
        """Returns the place of an item, as topic[partition]@offset, for messages."""

    # -- calls: methods for the crew (`calls.Calls`) --------------------------------------------------------------------

    @abstractmethod
    def begin(self, item: Any, run: Callable[..., Any]) -> tuple[AgentContext, Any, bool]:
        """Calls the user's function in the context `run`. Returns (its ctx, its result, True if that must be
        awaited).
        """

    @abstractmethod
    def written(self, item: Any, value: Any) -> Any:
        """Returns the result in the form in which it is emitted. Raises an exception for a result that cannot be."""

    def ended(self, item: Any, ctx: AgentContext, output: Any) -> Awaitable[None] | None:
        """Applies the state writes and timers of a call that has succeeded, emits its results, and ends its row, all
        in one step.

        Returns an awaitable for which the lane must wait before its next call, or None.
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
        """Handles a failed attempt, as `Calls.attempt_failed`. If the failure names rows of the item, only these rows
        become dead letters, the attempt is not counted, and True is returned.
        """
        if self._salvage(item, failure, attempts):
            return True
        self.counters.errors_count += 1
        self.log_error(failure, self._where(item), attempts)
        return False

    @abstractmethod
    def renew(self, item: Any) -> None:
        """Restores the item for another attempt, because the failed one may have changed it."""

    def failed(self, item: Any, failure: BaseException, attempts: int) -> Awaitable[None] | None:
        """Handles the failure of the last attempt: the agent fails, or the item's rows become dead letters. A request
        to end the process fails the agent.
        """
        if self.spec.calls.on_error == "fail" or isinstance(failure, EXITS):
            self.fail(failure, self._where(item))
            return None
        self._send_to_dead_letters(item, failure, attempts)
        self._done(item)
        return self.dead_letters_writable() if self.dead_letters_full else None

    def worker_ended(self, item: Any, error: BaseException | None) -> None:
        """Handles the unexpected end of a lane. Its error is not an error of the call: the state of the call may be
        applied although its row is still in the queue.
        """
        where = self.spec.agent_id if item is None else self._where(item)
        if error is None:
            self.fail(RuntimeError("the task that runs the call was cancelled"), where)
        else:
            what = f"a lane of agent {self.spec.agent_id}, at {where},"
            self.on_broken(what, unexpected_end(what, error))

    def broke(self, what: str, error: SabotError) -> None:
        """Reports an error in a callback that the crew (`calls.Crew`) has called, after which the agent cannot
        continue.
        """
        self.on_broken(what, error)

    @abstractmethod
    def _end(self, item: Any, output: Any) -> None:
        """Emits the results of a call that has succeeded, and counts it. Must not suspend."""

    @abstractmethod
    def _send_to_dead_letters(self, item: Any, failure: BaseException, attempts: int) -> None:
        """Sends the rows of an item to the dead letters."""

    def _salvage(self, item: Any, failure: BaseException, attempts: int) -> bool:
        """Gives up the rows of the item that the failure names. Returns True if it names some, and the others must be
        called again.
        """
        return False
