"""The rates and the resources of a worker's process, from its last heartbeats."""

from collections.abc import Iterable, Mapping
from typing import Any

from sabot.engine.runtime.watch.app_rates import rate_of
from sabot.engine.workers.messages import Beat

_BEATS = 6  # rates are computed between the first and the last of them


class Pace:
    """A window over a worker's last heartbeats. One thread adds; any thread may read."""

    def __init__(self) -> None:
        self._beats: tuple[tuple[float, Beat], ...] = ()

    def add(self, now_s: float, beat: Beat) -> None:
        """Adds a heartbeat. `now_s`: the coordinator's monotonic clock."""
        self._beats = (*self._beats[1 - _BEATS :], (now_s, beat))

    def report(self, tasks: Iterable[str], now_s: float) -> dict[str, Any]:
        """Returns the figures of the tasks that are placed on the worker, and of its process. A figure is None if it
        is not known, or not known yet.
        """
        beats = self._beats or ((now_s, Beat()),)
        (first_s, first), (last_s, last) = beats[0], beats[-1]
        seconds = last_s - first_s
        each = {task: _task(_figures(first, task), _figures(last, task), seconds) for task in sorted(tasks)}
        cpu = _rate(first.cpu_seconds, last.cpu_seconds, seconds)
        return {
            "rows": _sum(figures["rows"] for figures in each.values()),
            "rows_per_second": _sum(figures["rows_per_second"] for figures in each.values()),
            "lag": _sum(figures["lag"] for figures in each.values()),
            "cpu_percent": None if cpu is None else round(100 * cpu, 1),
            "memory_bytes": last.memory_bytes,
            "silent_seconds": round(now_s - last_s, 1),
            "tasks": each,
        }


def _figures(beat: Beat, task: str) -> Mapping[str, Any] | None:
    """Returns the figures of a task in a heartbeat, or None. For a stream task they are its own. For a task of agents
    they count the records that all of its agents have read.
    """
    if task not in beat.agents:
        return beat.figures.get(task)
    agents = beat.agents[task]["agents"]
    rows, lag = 0, {}
    for name, value, agent, topic, partition in beat.samples:
        if agent not in agents or isinstance(value, list):
            continue
        if name == "sabot_records_in_total":
            rows += int(value)
        elif name == "sabot_consumer_lag":
            lag[agent, topic, partition] = value
    return {"rows": rows, "input": {"lag": lag} if lag else {}}


def _task(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None, seconds: float) -> dict[str, float | None]:
    """Returns the figures of a task over `seconds`. `rows`: the rows that it has taken since its start. `lag`: the
    rows that its source has not read yet, or None if it reads from other tasks.
    """
    if now is None:
        return {"rows": None, "rows_per_second": None, "lag": None}
    rate = _rate(0 if before is None else before["rows"], now["rows"], seconds)
    lags = now["input"].get("lag")
    return {
        "rows": now["rows"],
        "rows_per_second": None if rate is None else round(rate, 1),
        "lag": None if lags is None else sum(lags.values()),
    }


def _rate(before: float | None, now: float | None, seconds: float) -> float | None:
    """Returns `rate_of` two heartbeats, or None if one of them does not know the figure, or there is only one."""
    if before is None or now is None or seconds <= 0:
        return None
    return rate_of(before, now, seconds)


def _sum(values: Iterable[float | None]) -> float | None:
    """Returns the sum of the known values, or None if none is known."""
    known = [value for value in values if value is not None]
    return round(sum(known), 1) if known else None
