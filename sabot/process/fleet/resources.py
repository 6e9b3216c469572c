"""The manager that measures child processes, over all that they have started, and does what their quotas say."""

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
from sabot.process.client import Child
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
from sabot.process.fleet.lifecycle import AgentInstance, LifecycleManager
from sabot.process.fleet.quotas import (
    CountsTokens,
    QuotaAction,
    QuotaMode,
    QuotaResource,
    QuotaViolation,
    ResourceQuota,
    ResourceReport,
    parse_cpu,
)
from sabot.process.inspection import UsageMeter

_log = logging.getLogger(__name__)

_HOUR = 3600.0
_LEAST_SECONDS = 0.2  # between two looks at the CPU
_VIOLATIONS_KEPT = 1000


@dataclass
class _Account:
    """An instance with its quota and its measured usage."""

    quota: ResourceQuota
    meter: UsageMeter
    child: Child | None = None  # to which `held_to` belongs
    memory: int = 0
    peak_memory: int = 0
    processes: int = 0
    reported: Account = field(
        default_factory=partial(Account, windows=("hourly", "total"))
    )  # tokens that were reported here
    asked: Account = field(
        default_factory=partial(Account, windows=("hourly",))
    )  # tokens that `tokens_of` has returned
    held_to: float | None = None  # the cores to which `child` is held now
    breaches: dict[QuotaResource, float] = field(default_factory=dict)  # since when a limit is exceeded
    measures: dict[QuotaResource, QuotaViolation] = field(default_factory=dict)  # with the action that was taken
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    limits: dict[QuotaResource, float] = field(init=False)

    def __post_init__(self) -> None:
        self.limits = self.quota.limits()

    def used(self, resource: QuotaResource, now_s: float) -> float:
        """Returns the cores, the bytes, or the tokens of the hour of this time."""
        if resource is QuotaResource.TOKENS:
            return sum(each.used(now_s)["hourly"].tokens for each in (self.reported, self.asked))
        return (self.meter.cores or 0.0) if resource is QuotaResource.CPU else self.memory

    def hold(self) -> None:
        """Holds the present process to the fewest cores of the measures that throttle it."""
        throttled = [each for each, measure in self.measures.items() if measure.action is QuotaAction.THROTTLE]
        least = parse_cpu(self.quota.throttled_cpu)
        wanted = min((self.limits[each] if each is QuotaResource.CPU else least for each in throttled), default=None)
        if self.child is not None and wanted != self.held_to:
            self.child.hold_cpu(None if wanted is None else 100 * wanted)
            self.held_to = wanted


class ResourceManager:
    """Measures the instances of a lifecycle manager that have a quota, each `report_interval` seconds, and enforces the quotas.

    - `default`: the quota of instances without one of their own, or None.
    - `tokens_of`: returns the tokens that an instance has used in this hour of the clock, say by a ledger. They are added to the tokens
      that are reported here.
    - `on_report`, `on_violation`: called with each report, and with each violation.
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
        self._accounts: dict[str, _Account] = {}
        self._violations: deque[QuotaViolation] = deque(maxlen=_VIOLATIONS_KEPT)
        self._tasks = TaskSet("the resource manager")
        self._looking: asyncio.Task[Any] | None = None

    async def start(self) -> None:
        """Begins to look every `report_interval` seconds."""
        if self._looking is None or self._looking.done():
            self._looking = self._tasks.every(self._interval, self.check_all, self._sleep)

    async def close(self) -> None:
        """Stops looking. Instances, and the measures taken, stay as they are."""
        await self._tasks.cancel()

    async def __aenter__(self) -> "ResourceManager":
        await self.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    # -- quotas -------------------------------------------------------------------------------------------------------

    async def set_quota(self, agent_id: str, quota: ResourceQuota) -> None:
        """Gives an instance this quota in the place of its present one. Measures of the old quota are undone, and the usage is judged anew.

        Raises UnknownAgent; QuotaUpdateFailed if the instance cannot be released; the errors of `check`.
        """
        instance = self._lives.agent(agent_id)
        if agent_id not in self._accounts:
            self._accounts[agent_id] = self._account_with(quota)
            return
        async with self._locked(agent_id) as account:
            await self._let_go(instance, account)
            account.quota, account.limits = quota, quota.limits()
            for resource in QuotaResource:
                await self._judge(instance, account, resource)

    async def update_quota(self, agent_id: str, **changes: object) -> ResourceQuota:
        """Changes fields of an instance's quota, and returns the new quota. Raises QuotaNotFound; QuotaUpdateFailed, and then nothing has
        changed; the errors of `check`.
        """
        account = self._account(agent_id)
        try:
            quota = replace(account.quota, **changes)  # type: ignore[arg-type]
        except (InvalidQuota, TypeError) as error:
            raise QuotaUpdateFailed(f"the quota of instance {agent_id!r} stays: {message_of(error)}") from error
        await self.set_quota(agent_id, quota)
        return quota

    async def remove_quota(self, agent_id: str) -> None:
        """Removes the quota of an instance, which has the `default` from now on. Measures of the old quota are undone. Raises
        QuotaNotFound; QuotaUpdateFailed if the instance cannot be released.
        """
        async with self._locked(agent_id) as account:
            await self._let_go(self._lives.agent(agent_id), account)
            del self._accounts[agent_id]

    async def reset(self, agent_id: str) -> None:
        """Sets the usage of an instance to zero, also its reported tokens, and undoes the measures of its quota. Raises QuotaNotFound;
        QuotaUpdateFailed if the instance cannot be released.
        """
        async with self._locked(agent_id) as account:
            await self._let_go(self._lives.agent(agent_id), account)
            account.reported.restore({"hourly": (0.0, NOTHING), "total": (0.0, NOTHING)})
            account.peak_memory, account.meter.cpu_seconds = 0, 0.0

    def quota(self, agent_id: str) -> ResourceQuota:
        """Returns the quota of an instance. Raises QuotaNotFound."""
        return self._account(agent_id).quota

    @property
    def violations(self) -> list[QuotaViolation]:
        """The newest thousand violations, the oldest first."""
        return list(self._violations)

    # -- tokens -------------------------------------------------------------------------------------------------------

    async def report_tokens(self, agent_id: str, used: int | CountsTokens) -> None:
        """Adds tokens that a model has used for the instance, and enforces the quota. Raises QuotaNotFound, and the errors of `check`."""
        tokens: Any = getattr(used, "total_tokens", used)
        if not is_whole(tokens, 0):
            raise UserError(f"instance {agent_id!r}: {short_repr(used)} is no number of tokens")
        async with self._locked(agent_id) as account:
            account.reported.add(Amounts(tokens), self._clock.time())
            await self._judge(self._lives.agent(agent_id), account, QuotaResource.TOKENS)

    async def require_tokens(self, agent_id: str, tokens: int) -> None:
        """Checks that the quota leaves room for a call of so many tokens. It reserves nothing: calls at the same time may exceed the quota
        together, which the `Budget` of a ledger prevents. Raises QuotaExceeded if the quota acts, and does not only warn; QuotaNotFound.
        """
        async with self._locked(agent_id) as account:
            await self._ask_for_tokens(agent_id, account)
            used = account.used(QuotaResource.TOKENS, self._clock.time())
            limit = account.limits.get(QuotaResource.TOKENS)
            action = self._action(account, QuotaResource.TOKENS)
        if limit is None or used + tokens <= limit or action is QuotaAction.WARN:
            return
        left = _HOUR - self._clock.time() % _HOUR
        raise QuotaExceeded(
            f"instance {agent_id!r} has used {used} of {limit:.0f} tokens in this hour, and wants {tokens}",
            hint=f"in {left:.0f} s there are new ones",
        )

    # -- looks --------------------------------------------------------------------------------------------------------

    async def check(self, agent_id: str) -> ResourceReport:
        """Measures an instance now, and enforces its quota.

        Raises QuotaNotFound; UnknownAgent; QuotaSuspendFailed, QuotaTerminateFailed and ResumeFailed if an action failed.
        """
        instance = self._lives.agent(agent_id)
        errors = []
        async with self._locked(agent_id) as account:
            await self._measure(instance, account)
            for resource in QuotaResource:
                if resource is QuotaResource.TOKENS:
                    await self._ask_for_tokens(agent_id, account)
                try:
                    await self._judge(instance, account, resource)
                except (QuotaError, LifecycleError) as error:  # the others are judged too
                    errors.append(error)
            report = self._report(instance, account)
        call_listener("on_report of the resource manager", self._on_report, report)
        if errors:
            raise errors[0]
        return report

    async def check_all(self) -> list[ResourceReport]:
        """Checks all instances that have a quota and have not ended. A failed action is logged, and is tried again at the next look."""
        infos = {info.id: info for info in self._lives.list_agents()}
        for agent_id in self._accounts.keys() - infos.keys():  # they ended long ago
            del self._accounts[agent_id]
        reports = []
        for info in infos.values():
            if info.state in (LifecycleState.TERMINATED, LifecycleState.FAILED):
                continue
            if info.id in self._accounts or self._default is not None:
                try:
                    reports.append(await self.check(info.id))
                except SabotError as error:
                    _log.warning("instance %r: %s", info.id, error)
                except Exception:  # of `tokens_of`: the quotas of the others hold
                    _log.exception("the quota of instance %r was not checked", info.id)
        return reports

    async def _measure(self, instance: AgentInstance, account: _Account) -> None:
        child = instance.child
        used = await account.meter.look(child)
        if used is None:
            account.child, account.held_to, account.memory, account.processes = None, None, 0, 0
            return
        if child is not account.child:
            account.child, account.held_to = child, None
            account.hold()
        account.memory, account.processes = used.memory_bytes, used.processes
        account.peak_memory = max(account.peak_memory, used.memory_bytes)

    async def _ask_for_tokens(self, agent_id: str, account: _Account) -> None:
        if self._tokens_of is not None:
            tokens = await self._tokens_of(agent_id)
            account.asked.restore({"hourly": (window_start("hourly", self._clock.time()), Amounts(tokens))})

    # -- what follows -------------------------------------------------------------------------------------------------

    async def _judge(self, instance: AgentInstance, account: _Account, resource: QuotaResource) -> None:
        limit = account.limits.get(resource)
        used = account.used(resource, self._clock.time())
        measure = account.measures.get(resource)
        done = None if measure is None else measure.action
        if limit is None or used <= limit:
            if resource in account.breaches and not _is_low_by(done, resource, instance):
                await self._lift(instance, account, resource)
            return
        account.breaches.setdefault(resource, self._clock.monotonic())
        action = self._action(account, resource)
        if self._is_done(instance, done, action):
            return
        violation = QuotaViolation(instance.id, self._clock.time(), resource, used, limit, action)
        try:
            await self._do(instance, action, str(violation))
        except SabotError as error:
            self._note(replace(violation, error=message_of(error)))
            raise
        account.measures[resource] = violation
        account.hold()
        self._note(violation)

    def _action(self, account: _Account, resource: QuotaResource) -> QuotaAction:
        """Returns the action for a limit that is exceeded, or would be."""
        quota, now = account.quota, self._clock.monotonic()
        soft = (
            quota.mode is QuotaMode.SOFT_THEN_HARD and now - account.breaches.get(resource, now) < quota.grace_seconds
        )
        return QuotaAction.WARN if soft or quota.mode is QuotaMode.WARN_ONLY else quota.action(resource)

    def _is_done(self, instance: AgentInstance, done: QuotaAction | None, action: QuotaAction) -> bool:
        match action:
            case QuotaAction.SUSPEND:  # somebody may have resumed it
                return instance.state is not LifecycleState.RUNNING
            case QuotaAction.TERMINATE:
                return instance.is_over
        return done is action

    async def _do(self, instance: AgentInstance, action: QuotaAction, why: str) -> None:
        """Calls the verb of an action that has one. Raises QuotaSuspendFailed, QuotaTerminateFailed."""
        try:
            if action is QuotaAction.SUSPEND:
                await self._lives.suspend(instance.id, why=why)
            elif action is QuotaAction.TERMINATE:
                await self._lives.terminate(instance.id, why=why)
        except LifecycleError as error:
            failed = QuotaSuspendFailed if action is QuotaAction.SUSPEND else QuotaTerminateFailed
            raise failed(f"{why}: {error.message}", hint=error.hint) from error

    async def _lift(self, instance: AgentInstance, account: _Account, resource: QuotaResource) -> None:
        """Undoes the measure for this limit. An instance that was suspended for another reason meanwhile stays suspended. Raises
        ResumeFailed.
        """
        measure = account.measures.get(resource)
        is_ours = measure is not None and measure.action is QuotaAction.SUSPEND and instance.why == str(measure)
        if is_ours and instance.state is LifecycleState.SUSPENDED:
            await self._lives.resume(instance.id)
        del account.breaches[resource]
        account.measures.pop(resource, None)
        account.hold()

    async def _let_go(self, instance: AgentInstance, account: _Account) -> None:
        for resource in list(account.breaches):
            try:
                await self._lift(instance, account, resource)
            except LifecycleError as error:
                raise QuotaUpdateFailed(f"instance {instance.id!r} is not let go: {error.message}") from error

    def _note(self, violation: QuotaViolation) -> None:
        self._violations.append(violation)
        _log.warning("%s", violation)
        call_listener("on_violation of the resource manager", self._on_violation, violation)

    def _report(self, instance: AgentInstance, account: _Account) -> ResourceReport:
        return ResourceReport(
            instance.id,
            self._clock.time(),
            instance.state,
            account.processes,
            account.meter.cores or 0.0,
            account.meter.cpu_seconds,
            account.memory,
            account.peak_memory,
            int(account.used(QuotaResource.TOKENS, self._clock.time())),
            account.reported.total.tokens,
            account.held_to,
            tuple(account.breaches),
        )

    @asynccontextmanager
    async def _locked(self, agent_id: str) -> AsyncIterator[_Account]:
        account = self._account(agent_id)
        async with account.lock:
            if self._accounts.get(agent_id) is not account:
                raise QuotaNotFound(f"instance {agent_id!r} has no quota any more")
            yield account

    def _account(self, agent_id: str) -> _Account:
        found = self._accounts.get(agent_id)
        if found is None:
            if self._default is None:
                raise QuotaNotFound(f"instance {agent_id!r} has no quota", hint="set_quota gives it one")
            self._lives.agent(agent_id)
            found = self._accounts[agent_id] = self._account_with(self._default)
        return found

    def _account_with(self, quota: ResourceQuota) -> _Account:
        return _Account(quota, UsageMeter(self._clock, least_s=_LEAST_SECONDS))


def _is_low_by(done: QuotaAction | None, resource: QuotaResource, instance: AgentInstance) -> bool:
    """Returns True if the instance uses little only because it is held or suspended. If that lifted the measure, the
    next look would take it again: only another quota lifts it.
    """
    suspended = done is QuotaAction.SUSPEND and instance.state is LifecycleState.SUSPENDED
    return resource is QuotaResource.CPU and (suspended or done is QuotaAction.THROTTLE)
