"""The number of replicas that a fleet should have: recommendations from measurements, and how long they have held."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sabot.base.config import check_numbers, checked_durations
from sabot.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FleetConfig:
    """The settings of a fleet. To drain a replica means to give it no further work, to wait until its present work is
    done, and then to end it.

    - `min_replicas`, `max_replicas`: the least and the most replicas.
    - `target_cpu_percent`: the wanted CPU usage, on average over all replicas, in percent of a replica's CPU limit;
      in percent of a core if a replica has no CPU limit.
    - `target_memory_percent`: the wanted memory usage, on average over all replicas, in percent of a replica's memory
      limit; it has no effect if a replica has no memory limit.
    - `target_lag`: the amount of waiting work for which one replica is wanted. It is compared with the pieces of work
      in the fleet's queue, and with the result of the fleet's function `lag`.
    - `tolerance`: a share, such as 0.1. If the CPU or memory usage differs from its target by at most this share, it
      does not change the recommended number of replicas.
    - `interval_secs`: seconds between two measurements.
    - `scale_up_secs`: replicas are started when all measurements of so many seconds have recommended more of them.
      `scale_down_secs`: replicas are drained when all measurements of so many seconds have recommended fewer.
    - `drain_secs`: the most seconds that a drained replica may take to finish its work. The fleet's `checkpoint`,
      which is called after that, may take as long again.
    - `spawn_timeout_secs`: the longest wait for a child of a warm pool, in seconds. `grace_secs`: seconds from
      SIGTERM to SIGKILL.
    """

    min_replicas: int = 1
    max_replicas: int = 100
    target_cpu_percent: float = 70
    target_memory_percent: float = 80
    target_lag: float = 10
    tolerance: float = 0.1
    interval_secs: float = 15
    scale_up_secs: float = 60
    scale_down_secs: float = 300
    drain_secs: float = 30
    spawn_timeout_secs: float = 60
    grace_secs: float = 5

    def __post_init__(self) -> None:
        check_numbers(self, "min_replicas", zero=True, whole=True)
        check_numbers(self, "max_replicas", whole=True)
        if self.min_replicas > self.max_replicas:
            raise UserError(
                f"FleetConfig: min_replicas={self.min_replicas}, max_replicas={self.max_replicas}",
                hint="0 <= min_replicas <= max_replicas, and at least one replica",
            )
        check_numbers(self, "target_cpu_percent", "target_memory_percent", "target_lag")
        checked_durations(self, "interval_secs")
        check_numbers(self, "tolerance", zero=True)
        checked_durations(self, "scale_up_secs", "scale_down_secs", zero=True)
        checked_durations(self, "spawn_timeout_secs", "drain_secs", "grace_secs", zero=True)


@dataclass(frozen=True)
class FleetMetrics:
    """A measurement of a fleet.

    - `active`: the number of replicas that can get work. `busy`: the number of those that are working. `draining`:
      the number of replicas that get no further work, and will be ended.
    - `waiting`: the number of pieces of work in the queue. `lag`: the result of the fleet's function `lag`; 0 without
      one.
    - `cpu_percent`: the average CPU usage of the active replicas, in percent of a replica's CPU limit, or of a core
      if there is no limit. None if it could not be measured yet.
    - `memory_percent`: the average memory usage of the active replicas, in percent of a replica's memory limit; None
      if there is no limit, or nothing was measured yet. `memory_bytes`: the resident memory of all active replicas
      together.
    """

    active: int
    busy: int
    draining: int
    waiting: int
    lag: float
    cpu_percent: float | None
    memory_percent: float | None
    memory_bytes: int


@dataclass(frozen=True)
class ScalingDecision:
    """A decision on the number of replicas of a fleet.

    - `current`: the number of replicas now.
    - `recommended`: the number that the latest measurement alone recommends. `reason`: the value that led to this
      number.
    - `action`: "up" to start replicas, "down" to drain some, "none" to change nothing.
    - `desired`: the number of replicas that the fleet is to have. With the action "none" it equals `current`.
    - `metrics`: the latest measurement.
    """

    action: Literal["up", "down", "none"]
    current: int
    recommended: int
    desired: int
    reason: str
    metrics: FleetMetrics


class Recommendations:
    """The record of recent recommendations for a fleet, each with its time, from which decisions are made."""

    def __init__(self, config: FleetConfig, now: float) -> None:
        self._config = config
        self._wanted = deque([(now, config.min_replicas)])

    def decide(self, metrics: FleetMetrics, current: int, now: float) -> ScalingDecision:
        """Records the number of replicas that these metrics recommend, and returns the decision for a fleet that has
        `current` replicas now. `now`: the time of the metrics, in seconds of a monotonic clock.
        """
        own = self._config
        recommended, reason = self._of(metrics)
        self._wanted.append((now, recommended))
        while len(self._wanted) > 1 and self._wanted[1][0] <= now - max(own.scale_up_secs, own.scale_down_secs):
            self._wanted.popleft()
        more, fewer = self._held(own.scale_up_secs, min), self._held(own.scale_down_secs, max)
        if more is not None and more > current:
            return ScalingDecision("up", current, recommended, more, reason, metrics)
        if fewer is not None and fewer < current:
            return ScalingDecision("down", current, recommended, fewer, reason, metrics)
        return ScalingDecision("none", current, recommended, current, reason, metrics)

    def _of(self, metrics: FleetMetrics) -> tuple[int, str]:
        """Returns the number of replicas that these metrics recommend, and the reason. The work, the lag, the CPU and
        the memory each recommend a number; the result is the highest of them. It is raised to `min_replicas` if it is
        below, and lowered to `max_replicas` if it is above.
        """
        own = self._config
        wanted = {
            "work": metrics.busy + math.ceil(metrics.waiting / own.target_lag),
            "lag": math.ceil(metrics.lag / own.target_lag),
            "CPU": self._by_share(metrics, metrics.cpu_percent, own.target_cpu_percent),
            "memory": self._by_share(metrics, metrics.memory_percent, own.target_memory_percent),
        }
        why = max(wanted, key=lambda each: wanted[each])
        figures = {
            "work": f"{metrics.busy} busy, {metrics.waiting} waiting",
            "lag": f"{metrics.lag:g}",
            "CPU": f"{metrics.cpu_percent or 0:.0f} % of {own.target_cpu_percent:g} %",
            "memory": f"{metrics.memory_percent or 0:.0f} % of {own.target_memory_percent:g} %",
        }
        return min(max(wanted[why], own.min_replicas), own.max_replicas), f"{why}: {figures[why]}"

    def _by_share(self, metrics: FleetMetrics, percent: float | None, target: float) -> int:
        """Returns the number of replicas with which the present usage would be `target` percent for each replica.
        Returns the present number of active replicas if `percent` is close enough to `target` (`tolerance`), and 0 if
        `percent` is None.

        `percent`: the present usage of a replica, on average over the active ones.
        """
        if percent is None:
            return 0
        ratio = percent / target
        return metrics.active if abs(ratio - 1) <= self._config.tolerance else math.ceil(metrics.active * ratio)

    def _held(self, seconds: float, least: Callable[[list[int]], int]) -> int | None:
        """Returns the lowest or the highest recommendation of the last `seconds`; `least` is `min` for the lowest,
        and `max` for the highest. Returns None if the first recommendation was made less than `seconds` ago.
        """
        since = self._wanted[-1][0] - seconds
        at_first = [wanted for at, wanted in self._wanted if at <= since]
        if not at_first:
            return None
        return least([at_first[-1], *(wanted for at, wanted in self._wanted if at > since)])
