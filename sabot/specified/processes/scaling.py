"""A fleet of instances that do one kind of work: as many replicas as the work needs.

        run(work) ─▶ a free replica does the work, or the work waits in the queue
        each `interval_secs`: the replicas are measured ─▶ a number of replicas is recommended
            ─▶ if it was recommended for long enough: replicas are started, or drained

A replica that is drained gets no new work, and has `drain_secs` to finish its present work. Then the hook `checkpoint` saves
its state, and its child is ended. The caller of work that was not finished gets DrainTimeout, or another replica does it.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, TypeVar

from sabot.base.metrics import Sample
from sabot.base.threads import run_to_end
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import UserError
from sabot.process.client import Child
from sabot.process.command import Command
from sabot.process.errors import AgentError, DrainTimeout, ScaleDownFailed, ScaleUpFailed
from sabot.process.inspection import UsageMeter
from sabot.process.limits import ResourceLimits
from sabot.process.pool import Pool, end_member
from sabot.specified.processes.lifecycle import AgentInstance, LifecycleManager
from sabot.specified.processes.recommending import FleetConfig, FleetMetrics, Recommendations, ScalingDecision
from sabot.specified.processes.warm import WarmPool

_log = logging.getLogger("sabot.process.scaling")

T = TypeVar("T")


@dataclass(eq=False)
class FleetReplica:
    """A replica of a fleet: an instance with its work.

    - `number`: a number that no other replica of this fleet has had.
    - `state`: `active` if the replica gets further work; `draining` if it only finishes its present work; `ending` if
      its child is being ended.
    - `done`: the number of pieces of work that it has done.
    - `quiet`: an asyncio event that is set while the replica has no work. `work`: the asyncio task of its present
      work, or None.
    """

    number: int
    instance: AgentInstance
    child: Child
    state: Literal["active", "draining", "ending"] = "active"
    done: int = 0
    quiet: asyncio.Event = field(default_factory=asyncio.Event)  # set while the replica has no work
    work: "asyncio.Task[Any] | None" = None

    @property
    def is_busy(self) -> bool:
        """True if the replica has work."""
        return not self.quiet.is_set()

    def works(self, begins: bool) -> None:
        """Records that the replica begins work (`begins` is True), or that its work is over (`begins` is False)."""
        self.quiet.clear() if begins else self.quiet.set()
        self.instance.work(begins=begins)


class FleetManager:
    """A fleet: child processes of the same command ("replicas"), as many as their work needs. `close` ends them, and so
    does the end of this process, in whatever way it ends.

    If there is too little work, the fleet drains some replicas: it gives them no further work, waits until their
    present work is done, and ends them.

    - `what`: the command of a replica, or a warm pool from which the fleet takes its replicas.
    - `lag`: a function that returns the amount of work that waits outside the fleet, for example the number of records
      by which a Kafka consumer lags behind. The callers that wait in `run` are not part of it.
    - `checkpoint`: a coroutine function that is called with a replica before its child is ended, when its last work is
      done. If the work takes longer than `drain_secs`, `checkpoint` is called while the work still runs. If
      `checkpoint` fails, the replica stays in the fleet; but when the fleet is closed, the child is ended nevertheless.
    - `lives`: a lifecycle manager that lists the replicas among its instances, so that they can have quotas. If `what`
      is a warm pool, give the manager to that pool instead.
    - `name`: the name of the fleet in messages and Prometheus metrics.
    - `sleep`: a coroutine function with which the fleet waits a number of seconds.
    """

    def __init__(
        self,
        what: Command | WarmPool,
        config: FleetConfig | None = None,
        *,
        lag: Callable[[], float | Awaitable[float]] | None = None,
        checkpoint: Callable[[FleetReplica], Awaitable[Any]] | None = None,
        lives: LifecycleManager | None = None,
        name: str = "fleet",
        clock: Clock = SYSTEM_CLOCK,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if lives is not None and isinstance(what, WarmPool):
            raise UserError(f"fleet {name!r}: lives= is of its warm pool", hint="WarmPool(command, lives=…)")
        self.config = config or FleetConfig()
        self.name = name
        self._lives = lives
        self._what = what
        self._limits = (what.command if isinstance(what, WarmPool) else what).limits or ResourceLimits.none()
        self._lag = lag
        self._checkpoint = checkpoint
        self._clock = clock
        self._sleep = sleep
        self._numbers = count(1)
        self._recommendations = Recommendations(self.config, clock.monotonic())
        self._target = 0
        self._pool: Pool[FleetReplica] = Pool(
            f"fleet {name!r}",
            start=self._start,
            missing=lambda: self._target - len(self._active()),
            ended=self._ended,
            end=self._end,
            given=FleetReplica.works,
            can_work=lambda replica: not replica.child.trouble,
            clock=clock,
            sleep=sleep,
        )
        self._scaling = asyncio.Lock()
        self._last = FleetMetrics(0, 0, 0, 0, 0.0, None, None, 0)
        self._counts = {"up": 0, "down": 0, "died": 0, "given_back": 0}

    async def start(self) -> None:
        """Starts `min_replicas` replicas, waits until they run, and begins to measure the fleet regularly. Does nothing
        if the fleet runs already.

        Raises ScaleUpFailed (E2090) if the start of a replica fails with an AgentError or an OSError. Raises any other
        error of the start as it is. After an error all replicas are ended, and the fleet does not run.
        """
        if self._pool.running:
            return
        self._pool.running = True
        self._recommendations = Recommendations(self.config, self._clock.monotonic())
        try:
            await self._grow(self.config.min_replicas)
        except BaseException:
            await run_to_end(self.close())
            raise
        self._pool.tasks.every(self.config.interval_secs, self._look, self._sleep)

    async def __aenter__(self) -> "FleetManager":
        await self.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await run_to_end(self.close())

    @property
    def replicas(self) -> list[FleetReplica]:
        """All replicas that have not ended, the oldest first."""
        return list(self._pool.members)

    async def run(self, work: Callable[[Child], Awaitable[T]], *, repeatable: bool = False) -> T:
        """Waits for a free replica, calls `work` with its child, and returns the result of `work`. Callers that wait
        are served in the order of their calls.

        If `work` raises or is cancelled, the replica is ended and replaced; otherwise its late output could be mistaken
        for the answer to the next work.

        If the replica has to end, `work` has `drain_secs` to return. After that, the fleet's `checkpoint` is called,
        and `work` is cancelled. Then DrainTimeout (E2093) is raised. With `repeatable`, `work` is called again with
        another replica instead, unless the fleet is being closed. DrainTimeout is also raised if the fleet is closed
        before a replica is free.

        Raises UserError if the fleet does not run.
        """
        given_back = False
        while True:
            replica = await self._free(first=given_back)
            try:
                return await self._do(replica, work)
            except DrainTimeout:
                if not repeatable or not self._pool.running:
                    raise
                given_back = True

    async def evaluate(self) -> ScalingDecision:
        """Measures the replicas, and returns the decision whether to start or to drain some. Does not carry out the
        decision.
        """
        metrics = await self.measure()
        return self._recommendations.decide(metrics, self._target, self._clock.monotonic())

    async def scale_to(self, replicas: int) -> None:
        """Starts or drains replicas until the fleet has `replicas` active ones. A replica is drained by giving it no
        further work, waiting for the end of its present work, and ending it. Replicas without work are drained first,
        then the youngest.

        - Raises ScaleUpFailed (E2090) if `replicas` is above `max_replicas`, or if some replicas did not start. Those
          that did start stay.
        - Raises ScaleDownFailed (E2091) if `replicas` is below `min_replicas`, or if `checkpoint` failed for a
          replica. That replica stays in the fleet.
        - Raises UserError if the fleet does not run; and any error of a start that is no AgentError and no OSError.
        """
        if not self._pool.running:
            raise self._not_running()
        async with self._scaling:
            if replicas > self.config.max_replicas:
                raise ScaleUpFailed(
                    f"fleet {self.name!r}: {replicas} replicas are more than max_replicas={self.config.max_replicas}"
                )
            if replicas < self.config.min_replicas:
                raise ScaleDownFailed(
                    f"fleet {self.name!r}: {replicas} replicas are fewer than min_replicas={self.config.min_replicas}"
                )
            if replicas > self._target:
                await run_to_end(self._grow(replicas))
                self._counts["up"] += 1
            elif replicas < self._target:
                await self._shrink(self._target - replicas)
                self._counts["down"] += 1

    async def measure(self) -> FleetMetrics:
        """Measures the active replicas with all their descendants, and returns the measurement. The CPU usage is an
        average since the last measurement.
        """
        active = self._active()
        used = await asyncio.gather(*(each.instance.meter.look(each.child) for each in active))
        lag = 0.0
        if self._lag is not None:
            said = self._lag()
            lag = float(await said if inspect.isawaitable(said) else said)
        memory, most = [each.memory_bytes for each in used if each is not None], self._limits.max_memory_bytes
        cores = [cores for each in active if (cores := each.instance.meter.cores) is not None]
        share = (self._limits.cpu_limit_percent or 100) / 100
        self._last = FleetMetrics(
            active=len(active),
            busy=sum(each.is_busy for each in active),
            draining=len(self._pool.members) - len(active),
            waiting=self._pool.waiting,
            lag=lag,
            cpu_percent=100 * sum(cores) / len(cores) / share if cores else None,
            memory_percent=100 * sum(memory) / len(memory) / most if memory and most is not None else None,
            memory_bytes=sum(memory),
        )
        return self._last

    def samples(self) -> list[Sample]:
        """Returns the fleet's Prometheus samples. The numbers of replicas and of waiting callers are those of this
        moment; lag, memory and CPU are those of the last measurement. May be called from any thread.
        """
        every = self.replicas
        draining = sum(each.state != "active" for each in every)
        busy = sum(each.is_busy for each in every if each.state == "active")
        states = {"idle": len(every) - draining - busy, "busy": busy, "draining": draining}
        last = self._last
        return [
            *(Sample("sabot_fleet_replicas", each, self.name, state) for state, each in states.items()),
            *(Sample("sabot_fleet_events_total", each, self.name, what) for what, each in self._counts.items()),
            Sample("sabot_fleet_waiting", self._pool.waiting, self.name),
            Sample("sabot_fleet_lag", last.lag, self.name),
            Sample("sabot_fleet_memory_bytes", last.memory_bytes, self.name),
            *([] if last.cpu_percent is None else [Sample("sabot_fleet_cpu_percent", last.cpu_percent, self.name)]),
        ]

    async def close(self) -> None:
        """Ends all replicas. First waits until their present work is done, but at most `drain_secs` seconds. Calls of
        `run` that still wait for a replica raise DrainTimeout. Raises ScaleDownFailed if `checkpoint` failed for a
        replica; all children have ended in that case, too.
        """
        await self._pool.stop(self._not_begun)
        self._target = 0
        active = [each for each in self.replicas if each.state != "ending"]
        drained = await asyncio.gather(*map(self._drain, active), return_exceptions=True)
        await self._pool.close(self._not_begun)
        for error in drained:
            if isinstance(error, BaseException):
                raise error

    # -- looks --------------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        for replica in self._active():
            # a stopped process: its work would never end
            if (why := replica.child.trouble) and not replica.child.is_over:
                _log.warning("fleet %r: replica %d is ended: %s", self.name, replica.number, why)
                self._counts["died"] += 1
                self._retire(replica)
        try:
            decision = await self.evaluate()
        except Exception:  # the user's `lag=` may raise anything
            _log.exception("fleet %r cannot be measured", self.name)
            return
        if decision.action != "none":
            numbers = (decision.current, decision.desired, decision.reason)
            _log.info("fleet %r: %d replicas, %d wanted (%s)", self.name, *numbers)
            try:
                await self.scale_to(decision.desired)
            except (ScaleUpFailed, ScaleDownFailed) as error:  # tried again at the next look
                _log.warning("%s", error)

    # -- work -----------------------------------------------------------------------------------------------------------

    async def _free(self, *, first: bool) -> FleetReplica:
        if not self._pool.running:
            raise self._not_running()
        if self._target == 0:  # start the first replica at once, without waiting for a look
            self._target = 1
        return self._pool.take() or await self._pool.wait(first=first)

    async def _do(self, replica: FleetReplica, work: Callable[[Child], Awaitable[T]]) -> T:
        if replica.state == "ending":
            raise self._not_begun()
        task: asyncio.Task[T] = asyncio.ensure_future(_called(work, replica.child))
        replica.work = task
        try:
            result = await task
        except BaseException as error:
            current = asyncio.current_task()
            is_drained = task.cancelling() and not (current is not None and current.cancelling())
            self._spoiled(replica)
            if is_drained and isinstance(error, asyncio.CancelledError):
                self._counts["given_back"] += 1
                raise self._given_back(f"it was not done in {self.config.drain_secs:g} s") from None
            raise
        replica.work = None
        replica.done += 1
        self._pool.was_of_use()
        self._offer(replica)
        return result

    def _offer(self, replica: FleetReplica) -> None:
        """Records that a replica has done its work, and gives the replica to the caller that has waited longest. If
        no caller waits, the replica is free. A replica that is being drained gets no further work.
        """
        replica.works(False)
        if replica.state == "active":
            self._pool.offer(replica)

    def _spoiled(self, replica: FleetReplica) -> None:
        """Ends and replaces a replica whose work has raised an error or was cancelled. The child may still write an
        answer to this work, which would be mistaken for the answer to the next work.
        """
        replica.work = None
        if replica.state == "active" and replica in self._pool.members:
            self._retire(replica)
        replica.works(False)

    def _retire(self, replica: FleetReplica) -> None:
        replica.state = "ending"
        self._pool.retire(replica)

    def _given_back(self, why: str) -> DrainTimeout:
        return DrainTimeout(
            f"fleet {self.name!r}: the work is given back: {why}",
            hint="run it again where that is safe (repeatable=True does), or give a drain more time (drain_secs=)",
        )

    def _not_begun(self) -> DrainTimeout:
        return self._given_back("it was not begun")

    def _not_running(self) -> UserError:
        return UserError(f"fleet {self.name!r} does not run", hint="await fleet.start() before, or `async with`")

    # -- replicas -------------------------------------------------------------------------------------------------------

    def _active(self) -> list[FleetReplica]:
        return [each for each in self._pool.members if each.state == "active"]

    async def _grow(self, replicas: int) -> None:
        if not self._pool.running:
            raise self._not_running()
        wanted = replicas - self._target
        self._target = replicas
        if failed := await self._pool.begin(wanted):
            self._target -= len(failed)
            if not self._pool.running:
                raise self._not_running()
            if not isinstance(failed[0], AgentError | OSError):
                raise failed[0]
            raise ScaleUpFailed(
                f"fleet {self.name!r}: {len(failed)} of {wanted} replicas did not start: {failed[0]}"
            ) from failed[0]

    async def _start(self) -> tuple[FleetReplica, Child]:
        if isinstance(self._what, WarmPool):
            instance = await self._what.take(self.config.spawn_timeout_secs)
        else:
            instance = AgentInstance(self._what, name=self.name, clock=self._clock)
            await instance.start()
            if self._lives is not None:
                self._lives.adopt(instance)
        assert instance.child is not None
        instance.meter = UsageMeter(self._clock, None if isinstance(self._what, WarmPool) else instance.child)
        replica = FleetReplica(next(self._numbers), instance, instance.child)
        replica.quiet.set()
        return replica, replica.child

    def _ended(self, replica: FleetReplica, child: Child, was_free: bool) -> str:
        replica.instance.see()
        if replica.state != "active":
            return ""
        replica.state = "ending"
        self._counts["died"] += 1
        why = f"(replica {replica.number}) has ended: {child.how}"
        if not replica.done:
            return why
        _log.warning("fleet %r: a child %s", self.name, why)
        return ""

    async def _shrink(self, by: int) -> None:
        """Drains `by` replicas at the same time. If the drain of one fails, the others are still completed; then the
        first error is raised.
        """
        some = sorted(self._active(), key=lambda each: (each.is_busy, -each.number))[:by]
        self._target -= by  # so that a replica that dies meanwhile is not replaced
        try:
            drained = await asyncio.gather(*map(self._drain, some), return_exceptions=True)
        finally:
            self._target += sum(each.state == "active" for each in some)
        for error in drained:
            if isinstance(error, BaseException):
                raise error

    async def _drain(self, replica: FleetReplica) -> None:
        replica.state = "draining"
        self._pool.free.pop(replica, None)
        try:
            await self._within(replica.quiet.wait())
            if self._checkpoint is not None and not replica.child.is_over:
                await self._saved(replica, self._checkpoint)
        except BaseException:
            if self._pool.running:
                replica.state = "active"
                if not replica.is_busy:
                    self._offer(replica)
            raise
        finally:
            if replica.state == "draining":
                replica.state = "ending"
                if replica.work is not None:
                    replica.work.cancel()
                await run_to_end(self._end(replica))

    async def _saved(self, replica: FleetReplica, checkpoint: Callable[[FleetReplica], Awaitable[Any]]) -> None:
        what = f"fleet {self.name!r}: replica {replica.number} is not drained, because its checkpoint"
        saving: asyncio.Future[Any] = asyncio.ensure_future(_called(checkpoint, replica))
        try:
            is_done = await self._within(saving)
        finally:
            saving.cancel()
        if not is_done:
            raise ScaleDownFailed(f"{what} was not made in {self.config.drain_secs:g} s")
        if (error := saving.exception()) is not None:
            raise ScaleDownFailed(f"{what} has failed: {error}") from error

    async def _within(self, what: Awaitable[Any]) -> bool:
        """Waits for `what`, but at most `drain_secs` seconds. Returns True if it is done by then; otherwise cancels
        it, and returns False.
        """
        work = asyncio.ensure_future(what)
        late = asyncio.ensure_future(self._sleep(self.config.drain_secs))
        try:
            await asyncio.wait((work, late), return_when=asyncio.FIRST_COMPLETED)
            return work.done()
        finally:
            late.cancel()
            if not work.done():
                work.cancel()

    async def _end(self, replica: FleetReplica) -> None:
        if replica.state == "active":  # a replica that cannot work
            replica.state = "ending"
            self._counts["died"] += 1
        if isinstance(self._what, WarmPool):
            await self._what.give_back(replica.child)
        else:
            await end_member(replica.instance, self.config.grace_secs, "its fleet has ended it")
        self._pool.members.pop(replica, None)


async def _called(work: Callable[[Any], Awaitable[T]], what: Any) -> T:
    return await work(what)
