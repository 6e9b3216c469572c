"""The health of child processes: whether they live, are ready, or are stuck; their usage, and the share of failed requests.

a probe finds something wrong ─▶ several times in a row (`HealthConfig`) ─▶ the instance does not live, or is not ready
the next probe that finds nothing ─▶ it lives, or is ready, again
a child that is stopped, work without progress ─▶ stuck, at the first probe that finds it
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from sabot.base.backoff import Failures
from sabot.base.checks import check_called
from sabot.base.config import check_numbers, checked_durations
from sabot.base.metrics import Durations, Health, Metrics, Sample
from sabot.base.probes import Page, page_of
from sabot.base.supervision import call_listener
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import UserError
from sabot.process.client import Child
from sabot.process.errors import NotFound
from sabot.process.inspection import silence, usage_of

_log = logging.getLogger(__name__)

_MOST_REQUESTS = 10_000  # the most requests of an instance that are kept for the window


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """The settings of a health monitor. A probe is one check of all instances.

    - `liveness_interval_secs`: seconds between two probes of liveness. `liveness_failures`: an instance counts as not
      live when so many of these probes in a row have found that it does not live.
    - `readiness_interval_secs`: seconds between two probes of readiness. `readiness_failures`: an instance counts as
      not ready when so many of these probes in a row have found that it is not ready.
    - `stuck_secs`: an instance is stuck if its work has made no progress for more than so many seconds.
    - `window_secs`: latencies and failed requests are counted over the last `window_secs` seconds.
    - `max_error_rate`: the largest share of these requests that may fail, from 0 to 1; an instance with more failures
      is not ready. `min_requests`: the share is checked only if there were at least so many requests.
    """

    liveness_interval_secs: float = 10
    liveness_failures: int = 3
    readiness_interval_secs: float = 5
    readiness_failures: int = 2
    stuck_secs: float = 600
    window_secs: float = 300
    max_error_rate: float = 0.5
    min_requests: int = 5

    def __post_init__(self) -> None:
        check_numbers(self, "liveness_failures", "readiness_failures", "min_requests", whole=True)
        checked_durations(self, "liveness_interval_secs", "readiness_interval_secs", "stuck_secs", "window_secs")
        check_numbers(self, "max_error_rate", zero=True)
        if self.max_error_rate > 1:
            raise UserError(f"HealthConfig: max_error_rate={self.max_error_rate}", hint="from 0 to 1")


@dataclass(frozen=True)
class HealthSnapshot:
    """The health of an instance at one moment.

    - `live`, `ready`, `stuck`: whether the instance lives, is ready, or is stuck.
    - `why_not_live`, `why_not_ready`, `why_stuck`: the reasons; "" if it lives, is ready, or is not stuck.
    - `in_progress`: the number of requests that are not done yet.
    - `requests`: the number of requests that have ended in the last `HealthConfig.window_secs` seconds. Only the newest
      10,000 requests of an instance are kept.
    - `error_rate`: the share of these requests that failed. `latency_mean_secs`, `latency_p50_secs`,
      `latency_p99_secs`: the seconds that they took, as mean, median and 99th percentile. All four are None if there
      was no request.
    - `memory_bytes`, `cpu_seconds`: the usage of its children with all their descendants, as the last probe of
      liveness has measured it.
    """

    agent_id: str
    live: bool
    ready: bool
    stuck: bool
    why_not_live: str
    why_not_ready: str
    why_stuck: str
    in_progress: int
    requests: int
    error_rate: float | None
    latency_mean_secs: float | None
    latency_p50_secs: float | None
    latency_p99_secs: float | None
    memory_bytes: int
    cpu_seconds: float


@dataclass(frozen=True)
class HealthChange:
    """A change of an instance's health.

    - `what`: the part of the health that changed: "live", "ready" or "stuck". `now`: the new value of this part: True
      if the instance is live, ready or stuck from now on, False if it no longer is.
    - `why`: the reason why the instance is not live, not ready, or stuck; "" otherwise.
    """

    agent_id: str
    what: Literal["live", "ready", "stuck"]
    now: bool
    why: str


class WatchedRequest:
    """A piece of work of an instance.

    - `child`: the child that does the work; None if it is not known.
    - `failed`: set it to True if the work has failed without raising an error.
    - `began`: the time of the start, in seconds of a monotonic clock. `moved_at`: the time of the last probe that
      noticed progress, by the same clock; the time of the start if there was none.
    """

    def __init__(self, began: float, child: Child | None) -> None:
        self.began = began
        self.child = child
        self.failed = False
        self.moved_at = began
        self._progressed = False
        self._seen_bytes = 0

    def by(self, child: Child) -> None:
        """Records which child does the work, from now on. From then on, output of this child counts as progress of
        the request.
        """
        self.child = child

    def progress(self) -> None:
        """Records progress of the work. Output of its child counts as progress, too."""
        self._progressed = True

    def look(self, now: float) -> float:
        """Looks for progress of the work, and returns how many seconds the work has made none. That is 0 if this call
        notices progress; otherwise the time since the last call that noticed some, or since the start of the work. New
        output of the child counts as progress. `now`: the time in seconds of a monotonic clock.
        """
        seen = 0 if self.child is None else self.child.output_bytes
        if self._progressed or seen != self._seen_bytes:
            self._progressed, self._seen_bytes, self.moved_at = False, seen, now
        return now - self.moved_at


@dataclass(eq=False)
class _WatchedInstance:
    agent_id: str
    child_of: Callable[[], Child | None] | None  # None for an instance that has children only for its work
    is_suspended: Callable[[], bool]
    beat_at: float | None  # None for an instance without heartbeats
    open: set[WatchedRequest] = field(default_factory=set)
    past: deque[tuple[float, float, bool]] = field(default_factory=lambda: deque(maxlen=_MOST_REQUESTS))
    durations: Durations = field(default_factory=Durations)
    requests: int = 0
    errors: int = 0
    not_live: Failures = field(default_factory=Failures)  # counts probes in a row
    not_ready: Failures = field(default_factory=Failures)
    wrong: dict[str, str] = field(default_factory=dict)  # the reasons why it is not live, not ready, or stuck
    memory_bytes: int = 0
    cpu_seconds: float = 0.0

    @property
    def is_probed(self) -> bool:
        """True if the instance must be probed, for one of these reasons:

        - It has a child, heartbeats, or a request in progress.
        - It is recorded as not live, not ready or stuck. A later probe may find that this is over.
        - It had requests that are still counted. A later probe removes those that are older than `window_secs`.
        """
        return self.child_of is not None or self.beat_at is not None or bool(self.open or self.wrong or self.past)

    def children(self) -> list[Child]:
        """Returns the child of the instance itself, and the children that do its work."""
        own = None if self.child_of is None else self.child_of()
        every = [own, *(request.child for request in list(self.open))]
        return list(dict.fromkeys(child for child in every if child is not None))


class HealthMonitor(Health):
    """A monitor that regularly checks ("probes") the health of child processes, and reports it. It only reports: to
    end a process that hangs is the task of its owner (`ProcessRuntime.check_health`, or a fleet) or of the user's
    function `on_change`.

    Probes are asyncio tasks. They are started when an instance with a child, heartbeats or work is registered, and
    end when there is no such instance any more. `liveness`, `readiness`, `snapshots` and `samples` may be called from
    any thread.

    - `name`: the app's name, which the HTTP pages of `serve` and the Prometheus metrics show.
    - `on_change`: called with each HealthChange.
    """

    def __init__(
        self,
        name: str = "agents",
        config: HealthConfig | None = None,
        *,
        on_change: Callable[[HealthChange], object] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        check_called("HealthMonitor", on_change=on_change)
        self.name = name
        self.config = config or HealthConfig()
        self._on_change = on_change
        self._clock = clock
        self._sleep = sleep
        self._instances: dict[str, _WatchedInstance] = {}
        self._probes: list[asyncio.Task[None]] = []
        self._figures: list[Callable[[], list[Sample]]] = []
        self._metrics: Metrics | None = None

    # -- what is watched ----------------------------------------------------------------------------------------------

    def register(
        self,
        agent_id: str,
        child: Child | Callable[[], Child | None] | None = None,
        *,
        heartbeats: bool = False,
        is_suspended: Callable[[], bool] = lambda: False,
    ) -> None:
        """Watches an instance from now on. If an instance with the same id is watched already, this call replaces it,
        and keeps its counts of requests. The new instance counts as live, ready and not stuck until a probe finds
        otherwise. If the old one was not live, not ready or stuck, `on_change` is called for the change.

        - `child`: the child of the instance, or a function that returns its present child. None if the instance has
          no child of its own, but only children that work on single requests (`request`).
        - `heartbeats`: True if the caller calls `beat` for the instance at least every `liveness_interval_secs`
          seconds.
        - `is_suspended`: a function that returns True while the instance is stopped on purpose. It then counts as
          live, and as not ready.
        """
        check_called(f"HealthMonitor: instance {agent_id!r}", child=child, is_suspended=is_suspended)
        before = self._instances.get(agent_id)
        child_of = (lambda: child) if isinstance(child, Child) else child
        beat_at = self._clock.monotonic() if heartbeats else None
        watched = _WatchedInstance(agent_id, child_of, is_suspended, beat_at)
        if before is not None:
            watched.past, watched.durations = before.past, before.durations
            watched.requests, watched.errors, watched.open = before.requests, before.errors, before.open
            for what in ("live", "ready", "stuck"):
                self._becomes(before, what, "")
        self._instances[agent_id] = watched
        self._look_after()

    def unregister(self, agent_id: str) -> None:
        """Stops watching the instance. Does nothing if no instance with this id is watched."""
        self._instances.pop(agent_id, None)
        self._look_after()

    def beat(self, agent_id: str) -> None:
        """Records a heartbeat of the instance, which also counts as progress of its work. An instance that was registered
        without `heartbeats` must send them from now on. Raises NotFound if no instance with this id is watched.
        """
        watched = self._find(agent_id)
        watched.beat_at = self._clock.monotonic()
        for request in watched.open:
            request.progress()
        self._look_after()

    @contextmanager
    def request(self, agent_id: str, child: Child | None = None) -> Iterator[WatchedRequest]:
        """Counts the `with` block as one request of the instance. The request has failed if the block raises an error, or sets
        `failed = True` on the WatchedRequest that the `with` statement gives it. A cancelled block is not counted.

        `child`: the child that does the work, if it is known. Raises NotFound if no instance with this id is watched.
        """
        watched = self._find(agent_id)
        request = WatchedRequest(self._clock.monotonic(), child)
        watched.open.add(request)
        self._look_after()
        try:
            yield request
        except asyncio.CancelledError:  # the caller waits no more, which is no failure of the instance
            watched.open.discard(request)
            raise
        except BaseException:
            request.failed = True
            raise
        finally:
            if request in watched.open:
                watched.open.discard(request)
                watched = self._instances.get(agent_id, watched)  # another child may have been registered meanwhile
                self._record(watched, self._clock.monotonic() - request.began, request.failed)
            self._look_after()

    def record_request(self, agent_id: str, seconds: float, *, failed: bool = False) -> None:
        """Counts a request that has ended, and on which the instance has worked for `seconds`. `failed`: True if the
        request failed. Raises NotFound if no instance with this id is watched.
        """
        self._record(self._find(agent_id), seconds, failed)

    def include(self, figures: Callable[[], list[Sample]]) -> None:
        """Adds the Prometheus samples of another object to the result of `samples`. `figures`: a function that
        returns them, such as the method `samples` of a fleet or of a warm pool.
        """
        self._figures.append(figures)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["HealthMonitor"]:
        """Starts the probes at the beginning of the `with` block if an instance must be probed by then, and stops all
        probes at its end. Instances that are registered in the block are probed, too.
        """
        self._look_after()
        try:
            yield self
        finally:
            probes, self._probes = self._probes, []
            for each in probes:
                each.cancel()
            if probes:
                await asyncio.wait(probes)

    async def close(self) -> None:
        """Stops watching all instances, and closes the pages that `serve` has opened. The children are not ended."""
        self._instances.clear()
        self._look_after()
        if self._metrics is not None:
            metrics, self._metrics = self._metrics, None
            await asyncio.to_thread(metrics.close)

    # -- probes -------------------------------------------------------------------------------------------------------

    async def probe_liveness(self) -> None:
        """Checks once for each instance whether it lives and whether it is stuck, and measures the usage of its
        children.
        """
        for watched in list(self._instances.values()):
            self._stuck(watched)
            why = self._why_not_live(watched)
            if watched.not_live.note(why) >= self.config.liveness_failures or not why:
                self._becomes(watched, "live", why)
        await asyncio.gather(*map(self._measure, list(self._instances.values())))

    async def probe_readiness(self) -> None:
        """Checks once for each instance whether it is ready and whether it is stuck."""
        for watched in list(self._instances.values()):
            self._stuck(watched)
            why = self._why_not_ready(watched)
            if watched.not_ready.note(why) >= self.config.readiness_failures or not why:
                self._becomes(watched, "ready", why)

    def snapshot(self, agent_id: str) -> HealthSnapshot:
        """Returns the health of the instance at this moment. Raises NotFound if no instance with this id is watched."""
        return self._snapshot(self._find(agent_id))

    def snapshots(self) -> list[HealthSnapshot]:
        """Returns the health of all watched instances at this moment. May be called from any thread."""
        return [self._snapshot(each) for each in list(self._instances.values())]

    # -- pages --------------------------------------------------------------------------------------------------------

    def liveness(self) -> tuple[str, dict[str, str]]:
        """Returns a pair that says which watched instances live, by the last probes of this monitor. The first value is
        "" if all live, and otherwise a text with the reasons of those that do not. The second is a dict from the id of
        every watched instance to its own reason, or "" if it lives. A suspended instance counts as living. May be
        called from any thread.
        """
        return self._lacking("live")

    def readiness(self) -> tuple[str, dict[str, str]]:
        """Returns a pair. The first value is "" if all instances are ready, and otherwise a text with the reasons of
        those that are not. The second is a dict from the id of every instance to its own reason, or "" if it is
        ready. May be called from any thread.
        """
        return self._lacking("ready")

    def samples(self) -> Iterator[Sample]:
        """Yields the Prometheus samples of all instances, and those of the functions that `include` has added. May be
        called from any thread.
        """
        for each in list(self._instances.values()):
            instance = each.agent_id
            for name, what in (("sabot_process_live", "live"), ("sabot_process_ready", "ready")):
                yield Sample(name, float(what not in each.wrong), instance)
            yield Sample("sabot_process_stuck", float("stuck" in each.wrong), instance)
            yield Sample("sabot_process_in_progress", len(each.open), instance)
            yield Sample("sabot_process_requests_total", each.requests, instance)
            yield Sample("sabot_process_errors_total", each.errors, instance)
            yield Sample("sabot_process_request_seconds", each.durations.read(), instance)
            yield Sample("sabot_process_memory_bytes", each.memory_bytes, instance)
        for figures in list(self._figures):
            yield from figures()

    def serve(self, port: int = 0, host: str = "127.0.0.1") -> int:
        """Starts an HTTP server on host:port with the pages `/healthz`, `/ready` and `/metrics`, and returns the
        port. `close` stops the server. With port 0 the system chooses a free port. An app does not need this: it has
        these pages on its own port.

        Raises MissingExtra if a package for the pages is not installed; UserError for an address that cannot be used,
        or if this monitor serves its pages already.
        """
        if self._metrics is not None:
            raise UserError(f"health of {self.name} is served already, on port {self._metrics.port}")
        metrics = Metrics(self.name, self.samples, {"/healthz": self._healthz, "/ready": self._readiness})
        port = metrics.serve(port, host)
        self._metrics = metrics
        return port

    def _healthz(self) -> Page:
        why, instances = self.liveness()
        return page_of({"app": self.name, "healthy": not why, "why": why, "agents": instances}, good=not why)

    def _readiness(self) -> Page:
        why, instances = self.readiness()
        return page_of({"app": self.name, "ready": not why, "why": why, "agents": instances}, good=not why)

    def _lacking(self, what: Literal["live", "ready"]) -> tuple[str, dict[str, str]]:
        instances = {each.agent_id: each.wrong.get(what, "") for each in list(self._instances.values())}
        not_so = "does not live" if what == "live" else "is not ready"
        return "; ".join(
            f"instance {instance} {not_so}: {why}" for instance, why in instances.items() if why
        ), instances

    # -- internals ----------------------------------------------------------------------------------------------------

    def _find(self, agent_id: str) -> _WatchedInstance:
        if (found := self._instances.get(agent_id)) is None:
            raise NotFound(f"instance {agent_id!r} is not watched", hint="monitor.register(agent_id) before")
        return found

    def _record(self, watched: _WatchedInstance, seconds: float, failed: bool) -> None:
        watched.past.append((self._clock.monotonic(), seconds, failed))
        watched.durations.add(seconds)
        watched.requests += 1
        watched.errors += failed

    def _why_not_live(self, watched: _WatchedInstance) -> str:
        if watched.is_suspended():
            return ""
        if watched.child_of is not None and ((child := watched.child_of()) is None or child.is_over):
            return "its process has ended"
        if stopped := _stopped(watched):
            return stopped
        return silence(watched.beat_at, self._clock.monotonic(), self.config.liveness_interval_secs)

    def _why_not_ready(self, watched: _WatchedInstance) -> str:
        if watched.is_suspended():
            return "it is suspended"
        if why := self._why_not_live(watched) or watched.wrong.get("stuck"):
            return why
        since = self._clock.monotonic() - self.config.window_secs
        while watched.past and watched.past[0][0] < since:
            watched.past.popleft()
        past = self._window(watched)
        failed = sum(each for _, each in past)
        if len(past) >= self.config.min_requests and failed > self.config.max_error_rate * len(past):
            return f"{failed} of {len(past)} requests of the last {self.config.window_secs:g} s have failed"
        return ""

    def _stuck(self, watched: _WatchedInstance) -> None:
        now = self._clock.monotonic()
        why = ""
        if not watched.is_suspended():
            idle = max((request.look(now) for request in watched.open), default=0.0)
            why = _stopped(watched)
            if not why and idle > self.config.stuck_secs:
                why = f"its work has made no progress for {idle:.0f} s"
        self._becomes(watched, "stuck", why)

    def _becomes(self, watched: _WatchedInstance, what: Literal["live", "ready", "stuck"], why: str) -> None:
        before = watched.wrong.get(what, "")
        if why:
            watched.wrong[what] = why
        else:
            watched.wrong.pop(what, None)
        if bool(before) != bool(why):
            is_so = bool(why) if what == "stuck" else not why
            if why:
                _log.warning("instance %r: %s: %s", watched.agent_id, what if is_so else f"not {what}", why)
            change = HealthChange(watched.agent_id, what, is_so, why)
            call_listener(
                f"on_change of the health monitor, for instance {watched.agent_id!r},", self._on_change, change
            )

    async def _measure(self, watched: _WatchedInstance) -> None:
        found = [each for child in watched.children() if (each := await usage_of(child)) is not None]
        watched.memory_bytes = sum(each.memory_bytes for each in found)
        watched.cpu_seconds = sum(each.cpu_seconds for each in found)

    def _window(self, watched: _WatchedInstance) -> list[tuple[float, bool]]:
        since = self._clock.monotonic() - self.config.window_secs
        return [(seconds, failed) for at, seconds, failed in list(watched.past) if at >= since]

    def _snapshot(self, watched: _WatchedInstance) -> HealthSnapshot:
        past, wrong = self._window(watched), dict(watched.wrong)
        taken = sorted(seconds for seconds, _ in past)
        return HealthSnapshot(
            agent_id=watched.agent_id,
            live="live" not in wrong,
            ready="ready" not in wrong,
            stuck="stuck" in wrong,
            why_not_live=wrong.get("live", ""),
            why_not_ready=wrong.get("ready", ""),
            why_stuck=wrong.get("stuck", ""),
            in_progress=len(watched.open),
            requests=len(past),
            error_rate=sum(failed for _, failed in past) / len(past) if past else None,
            latency_mean_secs=sum(taken) / len(taken) if taken else None,
            latency_p50_secs=_quantile(taken, 0.5),
            latency_p99_secs=_quantile(taken, 0.99),
            memory_bytes=watched.memory_bytes,
            cpu_seconds=watched.cpu_seconds,
        )

    def _look_after(self) -> None:
        """Starts the probes as tasks of the running event loop if an instance must be probed, and cancels them if
        none must be. Probes that run in another event loop are replaced. Does nothing if no event loop is running.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        needed = any(each.is_probed for each in self._instances.values())
        if self._probes and (not needed or self._probes[0].get_loop() is not loop):
            probes, self._probes = self._probes, []
            for each in probes:
                if not each.get_loop().is_closed():
                    each.cancel()
        if needed and not self._probes:
            each_live, each_ready = self.config.liveness_interval_secs, self.config.readiness_interval_secs
            self._probes = [
                loop.create_task(self._each(each_live, self.probe_liveness), name="probes of liveness"),
                loop.create_task(self._each(each_ready, self.probe_readiness), name="probes of readiness"),
            ]

    async def _each(self, seconds: float, probe: Callable[[], Awaitable[Any]]) -> None:
        while True:
            await self._sleep(seconds)
            await probe()
            self._look_after()  # ends the probes if there is nothing more to watch


def _stopped(watched: _WatchedInstance) -> str:
    """Returns the reason why the first stopped child of the instance cannot work (somebody has stopped it with
    SIGSTOP). Returns "" if no child is stopped. Children that have ended are skipped.
    """
    return next((child.trouble for child in watched.children() if child.trouble and not child.is_over), "")


def _quantile(ordered: list[float], share: float) -> float | None:
    """Returns a quantile of the sorted values: the smallest value v for which at least `share` (from 0 to 1) of all
    values are v or less. Returns None if there are no values.
    """
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
