"""The manager that measures child processes with their descendants, and enforces their quotas."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sabot.base.accounts import NOTHING, Account, Amounts, window_start
from sabot.base.checks import check_called, is_whole
from sabot.base.config import Duration, parse_seconds
from sabot.base.supervision import TaskSet, call_listener
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import SabotError, UserError, message_of, short_repr
from sabot.process.client import Child, ProcessUsage
from sabot.process.document_names import LifecycleState
from sabot.process.errors import (
    InvalidQuota,
    LifecycleError,
    QuotaError,
    QuotaExceeded,
    QuotaNotFound,
    QuotaSuspendFailed,
    QuotaTerminateFailed,
    QuotaUpdateFailed,
)
from sabot.process.inspection import UsageMeter
from sabot.specified.processes.lifecycle import AgentInstance, LifecycleManager
from sabot.specified.processes.quotas import (
    CountsTokens,
    QuotaAction,
    QuotaMode,
    QuotaResource,
    QuotaViolation,
    ResourceQuota,
    ResourceReport,
    parse_cpu,
)

_log = logging.getLogger("sabot.process.resources")

_HOUR = 3600.0
_LEAST_SECONDS = 0.2  # the least time between two measurements of the CPU
_VIOLATIONS_KEPT = 1000
_NO_USAGE = ProcessUsage(0, 0, 0.0)


@dataclass
class _LimitedInstance:
    """An instance that has a quota, with its measured usage and the actions that were taken because of the quota."""

    instance: AgentInstance  # the present instance with its id
    quota: ResourceQuota
    meter: UsageMeter
    child: Child | None = None  # the child to which `held_to` belongs
    usage: ProcessUsage = _NO_USAGE  # the usage at the last look
    peak_memory: int = 0
    # tokens that were reported here
    reported: Account = field(default_factory=partial(Account, windows=("hourly", "total")))
    # tokens that `tokens_of` has returned
    asked: Account = field(default_factory=partial(Account, windows=("hourly",)))
    held_to: float | None = None  # the cores to which `child` is held now
    # by resource whose limit is exceeded: the time since when
    breaches: dict[QuotaResource, float] = field(default_factory=dict)
    # by resource: the violation with the action that was taken
    measures: dict[QuotaResource, QuotaViolation] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def used(self, resource: QuotaResource, now_s: float) -> float:
        """Returns the usage of a resource: the cores or bytes of the last measurement, or the tokens since the last
        full hour of the clock. `now_s`: the time in seconds since 1970.
        """
        if resource is QuotaResource.TOKENS:
            return sum(each.used(now_s)["hourly"].tokens for each in (self.reported, self.asked))
        return (self.meter.cores or 0.0) if resource is QuotaResource.CPU else self.usage.memory_bytes

    async def measure(self) -> None:
        """Measures the present process, if there is one, and records the usage. If this is a new process of a throttled
        instance, throttles it like the process before.
        """
        child = self.instance.child
        used = await self.meter.look(child)
        if used is None:
            self.child, self.held_to, self.usage = None, None, _NO_USAGE
            return
        if child is not self.child:
            self.child, self.held_to = child, None
            self.hold()
        self.usage = used
        self.peak_memory = max(self.peak_memory, used.memory_bytes)

    def hold(self) -> None:
        """Limits the CPU of the present process. If the instance is throttled because of several resources, the
        lowest of their numbers of cores applies. Removes the limit if the instance is not throttled.
        """
        throttled = [each for each, measure in self.measures.items() if measure.action is QuotaAction.THROTTLE]
        least, limits = parse_cpu(self.quota.throttled_cpu), self.quota.limits()
        wanted = min((limits[each] if each is QuotaResource.CPU else least for each in throttled), default=None)
        if self.child is not None and wanted != self.held_to:
            self.child.hold_cpu(None if wanted is None else 100 * wanted)
            self.held_to = wanted


class ResourceManager:
    """A manager that measures the instances that have a quota every `report_interval` seconds, and enforces the quotas.
    It begins with `start`, or when it is used as an asynchronous context manager.

    - `lives`: the lifecycle manager of the instances.
    - `default`: the quota of each instance for which `set_quota` was not called; with None these have no quota.
    - `tokens_of`: a coroutine function that is called with an instance's id, and returns the tokens that the instance
      has used since the last full hour of the clock, for example from a ledger. They are added to the tokens of
      `report_tokens`.
    - `on_report`, `on_violation`: called with each ResourceReport, and with each QuotaViolation.
    """

    def __init__(
        self,
        lives: LifecycleManager,
        *,
        default: ResourceQuota | None = None,
        report_interval: Duration = 10.0,
        tokens_of: Callable[[str], Awaitable[int]] | None = None,
        on_report: Callable[[ResourceReport], object] | None = None,
        on_violation: Callable[[QuotaViolation], object] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        check_called("ResourceManager", on_report=on_report, on_violation=on_violation)
        self._lives = lives
        self._default = default
        self._interval = parse_seconds(report_interval, name="report_interval", zero=False)
        self._tokens_of = tokens_of
        self._on_report = on_report
        self._on_violation = on_violation
        self._clock = clock
        self._sleep = sleep
        self._limited: dict[str, _LimitedInstance] = {}
        self._violations: deque[QuotaViolation] = deque(maxlen=_VIOLATIONS_KEPT)
        self._tasks = TaskSet("the resource manager")
        self._looking: asyncio.Task[Any] | None = None

    async def start(self) -> None:
        """Begins to measure every `report_interval` seconds."""
        if self._looking is None or self._looking.done():
            self._looking = self._tasks.every(self._interval, self.check_all, self._sleep)

    async def close(self) -> None:
        """Stops measuring. Instances that are throttled or suspended at that time remain so."""
        await self._tasks.cancel()

    async def __aenter__(self) -> "ResourceManager":
        await self.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    # -- quotas -------------------------------------------------------------------------------------------------------

    async def set_quota(self, agent_id: str, quota: ResourceQuota) -> None:
        """Replaces the quota of an instance. First undoes the throttles and suspensions that the old quota has
        caused. Then enforces the new quota, by the usage of the last measurement. If the instance had no quota, the
        new one is enforced from the next measurement on.

        Raises UnknownAgent if there is no instance with this id; QuotaUpdateFailed if a suspended instance cannot be
        resumed; QuotaSuspendFailed, QuotaTerminateFailed or ResumeFailed if an action of the new quota failed.
        """
        if agent_id not in self._limited:
            self._limit(agent_id, quota)
            return
        async with self._locked(agent_id) as limited:
            await self._let_go(limited)
            limited.quota = quota
            for resource in QuotaResource:
                await self._judge(limited, resource)

    async def update_quota(self, agent_id: str, **changes: object) -> ResourceQuota:
        """Changes some fields of an instance's quota, sets the result with `set_quota`, and returns it. `changes`:
        new values by the names of fields of ResourceQuota.

        Raises QuotaNotFound if the instance has no quota. Raises QuotaUpdateFailed if a name or a value is not valid,
        or if a suspended instance cannot be resumed; then the quota is unchanged. Raises QuotaSuspendFailed,
        QuotaTerminateFailed or ResumeFailed if an action of the new quota failed.
        """
        limited = self._find(agent_id)
        try:
            quota = replace(limited.quota, **changes)  # type: ignore[arg-type]
        except (InvalidQuota, TypeError) as error:
            raise QuotaUpdateFailed(f"the quota of instance {agent_id!r} stays: {message_of(error)}") from error
        await self.set_quota(agent_id, quota)
        return quota

    async def remove_quota(self, agent_id: str) -> None:
        """Removes the quota of an instance, and undoes the throttles and suspensions that it has caused. From then on
        the `default` quota applies to the instance, if there is one. Raises QuotaNotFound if the instance has no
        quota; QuotaUpdateFailed if a suspended instance cannot be resumed.
        """
        async with self._locked(agent_id) as limited:
            await self._let_go(limited)
            del self._limited[agent_id]

    async def reset(self, agent_id: str) -> None:
        """Sets the CPU time, the highest memory and the tokens of `report_tokens` of an instance to 0, and undoes the
        throttles and suspensions that its quota has caused. The tokens that the function `tokens_of` returns are not
        changed. Raises QuotaNotFound if the instance has no quota; UnknownAgent if there is no instance with this id;
        QuotaUpdateFailed if a suspended instance cannot be resumed, and then no number is set to 0.
        """
        async with self._locked(agent_id) as limited:
            await self._let_go(limited)
            limited.reported.restore({"hourly": (0.0, NOTHING), "total": (0.0, NOTHING)})
            limited.peak_memory, limited.meter.cpu_seconds = 0, 0.0

    def quota(self, agent_id: str) -> ResourceQuota:
        """Returns the quota of an instance. Raises QuotaNotFound if it has none."""
        return self._find(agent_id).quota

    @property
    def violations(self) -> list[QuotaViolation]:
        """The newest thousand violations, the oldest first."""
        return list(self._violations)

    # -- tokens -------------------------------------------------------------------------------------------------------

    async def report_tokens(self, agent_id: str, used: int | CountsTokens) -> None:
        """Adds tokens that a model has used for the instance, and enforces its quota of tokens. Raises QuotaNotFound
        if the instance has no quota; QuotaSuspendFailed, QuotaTerminateFailed or ResumeFailed if an action failed, and
        the tokens are counted then, too. Raises UserError if `used` is no number of tokens.
        """
        tokens: Any = getattr(used, "total_tokens", used)
        if not is_whole(tokens, 0):
            raise UserError(f"instance {agent_id!r}: {short_repr(used)} is no number of tokens")
        async with self._locked(agent_id) as limited:
            limited.reported.add(Amounts(tokens), self._clock.time())
            await self._judge(limited, QuotaResource.TOKENS)

    async def require_tokens(self, agent_id: str, tokens: int) -> None:
        """Checks that the instance may use `tokens` further tokens before the next full hour of the clock. Raises
        QuotaExceeded if that would exceed its quota. Does not raise it as long as the quota would only report a
        violation (WARN_ONLY, or SOFT_THEN_HARD before its `grace_seconds` are over). Raises QuotaNotFound if the
        instance has no quota.

        The tokens are not reserved, so several callers at the same time may together exceed the quota. The `Budget` of
        a ledger prevents that.
        """
        async with self._locked(agent_id) as limited:
            await self._ask_for_tokens(limited)
            used = limited.used(QuotaResource.TOKENS, self._clock.time())
            limit = limited.quota.limits().get(QuotaResource.TOKENS)
            action = self._action(limited, QuotaResource.TOKENS)
        if limit is None or used + tokens <= limit or action is QuotaAction.WARN:
            return
        left = _HOUR - self._clock.time() % _HOUR
        raise QuotaExceeded(
            f"instance {agent_id!r} has used {used} of {limit:.0f} tokens in this hour, and wants {tokens}",
            hint=f"in {left:.0f} s there are new ones",
        )

    # -- looks --------------------------------------------------------------------------------------------------------

    async def check(self, agent_id: str) -> ResourceReport:
        """Measures an instance now, enforces its quota, and returns the report of the measurement.

        Raises QuotaNotFound if the instance has no quota; UnknownAgent if there is no instance with this id;
        QuotaSuspendFailed, QuotaTerminateFailed or ResumeFailed if an action failed.
        """
        errors = []
        async with self._locked(agent_id) as limited:
            await limited.measure()
            for resource in QuotaResource:
                if resource is QuotaResource.TOKENS:
                    await self._ask_for_tokens(limited)
                try:
                    await self._judge(limited, resource)
                except (QuotaError, LifecycleError) as error:  # the other resources are judged too
                    errors.append(error)
            report = self._report(limited)
        call_listener("on_report of the resource manager", self._on_report, report)
        if errors:
            raise errors[0]
        return report

    async def check_all(self) -> list[ResourceReport]:
        """Checks all instances that have a quota and have not ended, and returns their reports. If a check fails, it
        logs the error and returns no report of that instance; the next call tries again.
        """
        infos = {info.id: info for info in self._lives.list_agents()}
        for agent_id in self._limited.keys() - infos.keys():  # they ended long ago, and are forgotten
            del self._limited[agent_id]
        reports = []
        for info in infos.values():
            if info.state in (LifecycleState.TERMINATED, LifecycleState.FAILED):
                continue
            if info.id in self._limited or self._default is not None:
                try:
                    reports.append(await self.check(info.id))
                except SabotError as error:
                    _log.warning("instance %r: %s", info.id, error)
                except Exception:  # `tokens_of` may raise anything: the other quotas still hold
                    _log.exception("the quota of instance %r was not checked", info.id)
        return reports

    async def _ask_for_tokens(self, limited: _LimitedInstance) -> None:
        if self._tokens_of is not None:
            tokens = await self._tokens_of(limited.instance.id)
            limited.asked.restore({"hourly": (window_start("hourly", self._clock.time()), Amounts(tokens))})

    # -- actions ------------------------------------------------------------------------------------------------------

    async def _judge(self, limited: _LimitedInstance, resource: QuotaResource) -> None:
        instance, limit = limited.instance, limited.quota.limits().get(resource)
        used = limited.used(resource, self._clock.time())
        measure = limited.measures.get(resource)
        done = None if measure is None else measure.action
        if limit is None or used <= limit:
            if resource in limited.breaches and not _is_low_by(done, resource, instance):
                await self._lift(limited, resource)
            return
        limited.breaches.setdefault(resource, self._clock.monotonic())
        action = self._action(limited, resource)
        if self._is_done(instance, done, action):
            return
        violation = QuotaViolation(instance.id, self._clock.time(), resource, used, limit, action)
        try:
            await self._do(instance, action, str(violation))
        except SabotError as error:
            self._note(replace(violation, error=message_of(error)))
            raise
        limited.measures[resource] = violation
        limited.hold()
        self._note(violation)

    def _action(self, limited: _LimitedInstance, resource: QuotaResource) -> QuotaAction:
        """Returns the action to take now against an instance that exceeds its limit of this resource: WARN while the
        mode of the quota only reports violations, otherwise the quota's action for this resource.
        """
        quota, now = limited.quota, self._clock.monotonic()
        soft = (
            quota.mode is QuotaMode.SOFT_THEN_HARD and now - limited.breaches.get(resource, now) < quota.grace_seconds
        )
        return QuotaAction.WARN if soft or quota.mode is QuotaMode.WARN_ONLY else quota.action(resource)

    def _is_done(self, instance: AgentInstance, done: QuotaAction | None, action: QuotaAction) -> bool:
        match action:
            case QuotaAction.SUSPEND:  # somebody may have resumed the instance
                return instance.state is not LifecycleState.RUNNING
            case QuotaAction.TERMINATE:
                return instance.is_over
        return done is action

    async def _do(self, instance: AgentInstance, action: QuotaAction, why: str) -> None:
        """Suspends or terminates the instance if `action` is SUSPEND or TERMINATE; does nothing for any other action.
        `why`: the reason. Raises QuotaSuspendFailed or QuotaTerminateFailed if this fails.
        """
        try:
            if action is QuotaAction.SUSPEND:
                await self._lives.suspend(instance.id, why=why)
            elif action is QuotaAction.TERMINATE:
                await self._lives.terminate(instance.id, why=why)
        except LifecycleError as error:
            failed = QuotaSuspendFailed if action is QuotaAction.SUSPEND else QuotaTerminateFailed
            raise failed(f"{why}: {error.message}", hint=error.hint) from error

    async def _lift(self, limited: _LimitedInstance, resource: QuotaResource) -> None:
        """Undoes the action that was taken because of this resource: removes the throttle, or resumes the instance.
        If the instance has been suspended for another reason since then, it stays suspended. Raises ResumeFailed if
        it cannot be resumed.
        """
        instance, measure = limited.instance, limited.measures.get(resource)
        is_ours = measure is not None and measure.action is QuotaAction.SUSPEND and instance.why == str(measure)
        if is_ours and instance.state is LifecycleState.SUSPENDED:
            await self._lives.resume(instance.id)
        del limited.breaches[resource]
        limited.measures.pop(resource, None)
        limited.hold()

    async def _let_go(self, limited: _LimitedInstance) -> None:
        for resource in list(limited.breaches):
            try:
                await self._lift(limited, resource)
            except LifecycleError as error:
                raise QuotaUpdateFailed(f"instance {limited.instance.id!r} is not let go: {error.message}") from error

    def _note(self, violation: QuotaViolation) -> None:
        self._violations.append(violation)
        _log.warning("%s", violation)
        call_listener("on_violation of the resource manager", self._on_violation, violation)

    def _report(self, limited: _LimitedInstance) -> ResourceReport:
        return ResourceReport(
            limited.instance.id,
            self._clock.time(),
            limited.instance.state,
            limited.usage.processes,
            limited.meter.cores or 0.0,
            limited.meter.cpu_seconds,
            limited.usage.memory_bytes,
            limited.peak_memory,
            int(limited.used(QuotaResource.TOKENS, self._clock.time())),
            limited.reported.total.tokens,
            limited.held_to,
            tuple(limited.breaches),
        )

    @asynccontextmanager
    async def _locked(self, agent_id: str) -> AsyncIterator[_LimitedInstance]:
        limited = self._find(agent_id)
        async with limited.lock:
            if self._limited.get(agent_id) is not limited:
                raise QuotaNotFound(f"instance {agent_id!r} has no quota any more")
            limited.instance = self._lives.agent(agent_id)
            yield limited

    def _find(self, agent_id: str) -> _LimitedInstance:
        found = self._limited.get(agent_id)
        if found is None:
            if self._default is None:
                raise QuotaNotFound(f"instance {agent_id!r} has no quota", hint="set_quota gives it one")
            found = self._limit(agent_id, self._default)
        return found

    def _limit(self, agent_id: str, quota: ResourceQuota) -> _LimitedInstance:
        meter = UsageMeter(self._clock, least_s=_LEAST_SECONDS)
        found = self._limited[agent_id] = _LimitedInstance(self._lives.agent(agent_id), quota, meter)
        return found


def _is_low_by(done: QuotaAction | None, resource: QuotaResource, instance: AgentInstance) -> bool:
    """Returns True if the CPU usage of the instance is low only because its quota has throttled or suspended it for
    using too much CPU. Then the low usage is no reason to undo this action: the instance would soon exceed its quota
    again.

    `done`: the action that was taken because of `resource`; None if none was taken.
    """
    suspended = done is QuotaAction.SUSPEND and instance.state is LifecycleState.SUSPENDED
    return resource is QuotaResource.CPU and (suspended or done is QuotaAction.THROTTLE)
