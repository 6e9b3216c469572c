"""Rates of a running app, from two readings of its figures (`App.statistics`): per task, step and link of the plan.

The subtasks of a task are folded into one row. Nothing here waits or asks the app.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, replace
from typing import Any

from sabot.base.dataclass import dataclass
from sabot.operators.base import END_OF_TIME, START_OF_TIME
from sabot.plan.drawing import AGENT_SINK, SHARES, BoxFigures, LinkFigures, LinkKey, PlanFigures


@dataclass(frozen=True)
class AppReading:
    """The figures of an app at one time. `seconds`: the app's steady clock; `now_ms`: its wall clock."""

    app: str
    seconds: float
    now_ms: float
    restarts: int
    figures: Mapping[str, Any]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> "AppReading":
        """Returns the reading in an answer of the app (`AppRequests`)."""
        return cls(answer["app"], answer["seconds"], answer["now_ms"], answer["restarts"], answer["figures"])


@dataclass
class StepRates:
    """Rates of a step, or of an agent.

    `rows_in` and `rows_out`: rows per second, or None if they are not known. `share`: the part of the time, from 0 to
    1, in which its task worked in this step, as the mean of the subtasks, or None. `late`, `dead`: counts of late
    rows and dead letters since the start.
    """

    id: str
    rows_in: float | None = None
    rows_out: float | None = None
    share: float | None = None
    late: int = 0
    dead: int = 0


@dataclass
class TaskRates:
    """Rates of a task, all subtasks together.

    `kind`: "source", "sink" or "task" of streams; "agents"; "agent's source" or "agent's sink". `name`: the source or the
    sink, or "". `shares`: the mean share of time by state. `fill`: how full its fullest input is, 0 to 1, or None if it
    reads a source. `lag`: rows or bytes (`lag_unit`) of its source that are not read yet, or None. `behind_s`: seconds by which its
    watermark is behind the clock, or None if it has none.
    """

    id: str
    kind: str
    name: str = ""
    subtasks: int = 0
    rows_in: float | None = None
    rows_out: float | None = None
    shares: dict[str, float] = field(default_factory=dict)
    fill: float | None = None
    lag: float | None = None
    lag_unit: str = "rows"
    behind_s: float | None = None
    late: int = 0
    dead: int = 0
    workers: list[int] = field(default_factory=list)
    steps: dict[str, StepRates] = field(default_factory=dict)


@dataclass
class AppRates:
    """The rates of an app over the last `seconds`. `links`: the rates of the links of its plan."""

    seconds: float
    tasks: list[TaskRates]
    links: dict[LinkKey, LinkFigures]

    @property
    def late(self) -> int:
        """The number of late rows since the start."""
        return sum(task.late for task in self.tasks)

    @property
    def dead(self) -> int:
        """The number of dead letters since the start."""
        return sum(task.dead for task in self.tasks)

    def drawn(self) -> PlanFigures:
        """Returns the figures for a drawing of the plan (`plan.drawing`).

        Agents that share a task have the shares of its time each.
        """
        tasks: dict[str, BoxFigures] = {}
        steps: dict[str, BoxFigures] = {}
        for task in self.tasks:
            figures = BoxFigures(
                task.shares, task.behind_s, late=task.late, dead_letters=task.dead, subtasks=task.subtasks
            )
            own = {
                step.id: BoxFigures(late=step.late, dead_letters=step.dead, own_time=step.share)
                for step in task.steps.values()
            }
            if task.kind == "agents":
                tasks |= {id: replace(figures, dead_letters=each.dead_letters) for id, each in own.items()}
            elif task.kind == "agent's sink":
                tasks[AGENT_SINK + task.id] = figures
            else:
                tasks[task.id] = figures
                steps |= own
        return PlanFigures(tasks, steps, self.links)


def rates_between(before: AppReading, after: AppReading) -> AppRates:
    """Returns the rates between two readings of one app. A counter that has gone back, because the app has restarted
    meanwhile, gives 0.
    """
    seconds = max(after.seconds - before.seconds, 1e-9)
    tasks = _StreamRates(before, after, seconds)
    agents = _agent_tasks(before.figures, after.figures, seconds)
    links = tasks.links() | dict(_agent_links(before.figures, after.figures, seconds))
    return AppRates(seconds, [*tasks.found.values(), *agents], links)


def _rate(before: Mapping[str, Any], after: Mapping[str, Any], name: str, seconds: float) -> float | None:
    """Returns the growth of a counter per second, or None if the app does not count it."""
    now = after.get(name)
    return None if now is None else max(0.0, now - before.get(name, 0)) / seconds


def _plus(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else one + other


def _most(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else max(one, other)


def _shares(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """Returns the shares of time by state between two readings of one subtask, or {} if it did not run."""
    then, now = before.get("time", {}), after.get("time", {})
    spent = {name: max(0.0, now.get(name, 0.0) - then.get(name, 0.0)) for name in SHARES}
    whole = sum(spent.values())
    return {name: value / whole for name, value in spent.items()} if whole > 0 else {}


class _StreamRates:
    """Folds the subtasks of the tasks of streams."""

    def __init__(self, before: AppReading, after: AppReading, seconds: float) -> None:
        self.found: dict[str, TaskRates] = {}
        self._seconds = seconds
        self._rates: defaultdict[LinkKey, float] = defaultdict(float)
        self._fills: dict[LinkKey, float] = {}
        then = before.figures.get("streams", {})
        for name, now in after.figures.get("streams", {}).items():
            self._add(name, then.get(name, {}), now, after.now_ms)
        for task in self.found.values():
            task.shares = {name: value / task.subtasks for name, value in task.shares.items()}
            for step in task.steps.values():
                step.share = None if step.share is None else step.share / task.subtasks

    def links(self) -> dict[LinkKey, LinkFigures]:
        return {key: LinkFigures(rate, self._fills.get(key)) for key, rate in self._rates.items()}

    def _add(self, name: str, before: Mapping[str, Any], after: Mapping[str, Any], now_ms: float) -> None:
        id = name.rpartition("/")[0]
        given = after.get("input", {})
        kind = "source" if "source" in given else "task"
        task = self.found.setdefault(id, TaskRates(id, kind, given.get("source", "")))
        task.subtasks += 1
        task.rows_in = _plus(task.rows_in, _rate(before, after, "rows", self._seconds))
        for state, share in _shares(before, after).items():
            task.shares[state] = task.shares.get(state, 0.0) + share
        task.fill = _most(task.fill, given.get("fill"))
        if "lag" in given:
            task.lag = _plus(task.lag, sum(given["lag"].values()))
            task.lag_unit = given.get("lag_unit", "rows")
        watermark = after.get("watermark_ms")
        if watermark is not None and START_OF_TIME < watermark < END_OF_TIME:
            task.behind_s = _most(task.behind_s, (now_ms - watermark) / 1000)
        task.dead += given.get("dead_letters", 0)
        if after.get("worker") is not None and after["worker"] not in task.workers:
            task.workers.append(after["worker"])
        then = before.get("operators", {})
        for step, figures in after.get("operators", {}).items():
            self._add_step(task, step, then.get(step, {}), figures)
        self._add_links(task, before.get("edges", ()), after.get("edges", ()))

    def _add_step(self, task: TaskRates, id: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        step = task.steps.setdefault(id, StepRates(id))
        step.rows_in = _plus(step.rows_in, _rate(before, after, "rows_in", self._seconds))
        step.rows_out = _plus(step.rows_out, _rate(before, after, "rows_out", self._seconds))
        step.share = _plus(step.share, _rate(before, after, "seconds", self._seconds))
        if "sink" in after:
            task.kind, task.name = "sink", after["sink"]
        step.late += after.get("late_rows", 0)
        step.dead += after.get("dead_rows", 0)
        task.late += after.get("late_rows", 0)
        task.dead += after.get("dead_rows", 0)

    def _add_links(
        self, task: TaskRates, before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]]
    ) -> None:
        then = dict(_by_key(before))
        for key, edge in _by_key(after):
            rate = _rate(then.get(key, {}), edge, "rows", self._seconds) or 0.0
            self._rates[key] += rate
            if "fill" in edge:
                self._fills[key] = max(self._fills.get(key, 0.0), edge["fill"])
                if not key.branch:
                    task.rows_out = _plus(task.rows_out, rate)


def _by_key(edges: Iterable[Mapping[str, Any]]) -> Iterator[tuple[LinkKey, Mapping[str, Any]]]:
    for edge in edges:
        yield LinkKey(edge["from"], edge["to"], edge["branch"]), edge


def _agent_tasks(before: Mapping[str, Any], after: Mapping[str, Any], seconds: float) -> Iterator[TaskRates]:
    """Yields the sources of agents, the tasks of agents, and the sinks of agents."""

    def of(section: str, name: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return before.get(section, {}).get(name, {}), after.get(section, {}).get(name, {})

    for name in after.get("sources", {}):
        then, now = of("sources", name)
        rate = _rate(then, now, "rows_in", seconds)
        lag = sum(now.get("lag", {}).values())
        yield TaskRates(name, "agent's source", "", 1, rate, rate, _shares(then, now), lag=lag)
    fills: dict[str, float] = defaultdict(float)
    for name, figures in after.get("sources", {}).items():
        fills[name.partition("/")[0]] = max(fills[name.partition("/")[0]], _fill(figures.get("channel", {})))
    agents: dict[str, StepRates] = {}
    for name in after.get("operators", {}):
        told = of("agents", name)
        rows_in = _rate(*told, "messages_processed", seconds)
        rows_out = _rate(*of("operators", name), "rows_out", seconds)
        agents[name] = StepRates(name, rows_in, rows_out, None, dead=told[1].get("dead_letters", 0))
    tasks = after.get("agent_tasks", {})
    for task in tasks:
        steps = agents if len(tasks) == 1 else {task: agents[task]} if task in agents else {}
        rates = TaskRates(task, "agents", "", 1, shares=_shares(*of("agent_tasks", task)), steps=steps)
        for name, step in steps.items():
            rates.rows_in = _plus(rates.rows_in, step.rows_in)
            rates.rows_out = _plus(rates.rows_out, step.rows_out)
            rates.fill = _most(rates.fill, fills.get(name))
            rates.dead += step.dead
        yield rates
    for name in after.get("sinks", {}):
        then, now = of("sinks", name)
        rate = _rate(then, now, "rows_out", seconds)
        yield TaskRates(name, "agent's sink", "", 1, rate, rate, _shares(then, now), fill=_fill(now.get("channel", {})))


def _agent_links(
    before: Mapping[str, Any], after: Mapping[str, Any], seconds: float
) -> Iterator[tuple[LinkKey, LinkFigures]]:
    """Yields the links from topics to agents."""
    then = before.get("sources", {})
    for name, now in after.get("sources", {}).items():
        rate = _rate(then.get(name, {}), now, "rows_in", seconds)
        yield LinkKey(name, name.partition("/")[0]), LinkFigures(rate, _fill(now.get("channel", {})))


def _fill(channel: Mapping[str, Any]) -> float:
    """Returns how full a channel is, in rows or in bytes, 0 to 1."""
    pairs = (("rows", "capacity_rows"), ("bytes", "capacity_bytes"))
    return max((channel[held] / channel[most] for held, most in pairs if channel.get(most)), default=0.0)
