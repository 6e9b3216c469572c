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
    """The settings of a fleet.

    - `min_replicas`, `max_replicas`: the least and the most replicas.
    - `target_cpu_percent`: the wanted CPU usage, on average over all replicas, in percent of a replica's limit; in percent
      of a core if its CPU is not limited.
    - `target_memory_percent`: the same for memory; it has no effect if the memory of a replica is not limited.
    - `target_lag`: the amount of waiting work for which one replica is wanted: pieces of work in the queue, or the result
      of the fleet's function `lag`.
    - `tolerance`: a share, such as 0.1. If the usage is within this share of its target, no other number of replicas is
      recommended for it.
    - `interval_secs`: seconds between two measurements. `scale_up_secs`, `scale_down_secs`: the seconds for which all
      measurements must recommend more replicas before some are started, or fewer before some are drained.
    - `drain_secs`: the seconds that a drained replica has to finish its work, and then again for the fleet's `checkpoint`.
    - `spawn_timeout_secs`: the longest wait for a child of a warm pool, in seconds. `grace_secs`: seconds from SIGTERM to
      SIGKILL.
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

    - `active`, `busy`, `draining`: the numbers of replicas that get work, that have work, and that are being drained.
    - `waiting`: the pieces of work in the queue. `lag`: the result of the fleet's function `lag`; 0 if it has none.
    - `cpu_percent`, `memory_percent`: averages over the active replicas, in the percents of `FleetConfig`. None if there
      are no figures yet, or no limit of which it would be a percentage.
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
    """A decision on the number of replicas.

    - `current`: the number of replicas now. `recommended`: the number that the metrics of this moment recommend.
    - `desired`: the number that the fleet is to have. It differs from `current` only if more, or fewer, replicas were
      recommended for long enough (`FleetConfig`); `action` says which.
    - `reason`: the figure on which the recommendation rests.
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
        """Records the recommendation that follows from these metrics, and returns the decision for a fleet of `current`
        replicas. `now`: the time of the metrics, by the clock's steady count of seconds.
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
        """Returns the number of replicas that these metrics recommend, and the reason. It is the highest of the numbers
        that the work, the lag, the CPU and the memory each ask for, within `min_replicas` and `max_replicas`.
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
        """Returns the number of replicas over which the present usage must be spread so that each one uses `target`
        percent. Returns the present number if `percent` is within the tolerance, and 0 if it is None.
        """
        if percent is None:
            return 0
        ratio = percent / target
        return metrics.active if abs(ratio - 1) <= self._config.tolerance else math.ceil(metrics.active * ratio)

    def _held(self, seconds: float, least: Callable[[list[int]], int]) -> int | None:
        """Returns the number that `least` (`min` or `max`) chooses from the recommendations of the last `seconds`. Returns
        None if the first recommendation was made less than `seconds` ago.
        """
        since = self._wanted[-1][0] - seconds
        at_first = [wanted for at, wanted in self._wanted if at <= since]
        if not at_first:
            return None
        return least([at_first[-1], *(wanted for at, wanted in self._wanted if at > since)])
