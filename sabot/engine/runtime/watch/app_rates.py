"""Rates of a running app, from two readings of its figures: per task, step and link of the plan. All rates are made here.

The subtasks of a task are folded into one row. Nothing here waits or asks the app.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, replace
from typing import Any

from sabot.base.dataclass import dataclass
from sabot.base.figures import (
    STEP_COUNTS,
    AgentFigures,
    AgentSinkFigures,
    AgentSourceFigures,
    AppFigures,
    EdgeFigures,
    InputFigures,
    LaneFigures,
    StepFigures,
    TaskFigures,
    ThreadFigures,
)
from sabot.engine.operators.base import END_OF_TIME, START_OF_TIME
from sabot.engine.plan.drawing import AGENT_SINK, SHARES, BoxFigures, LinkFigures, LinkKey, PlanFigures


@dataclass(frozen=True)
class AppReading:
    """The figures of an app at one time. `seconds`: the app's steady clock; `now_ms`: its wall clock."""

    app: str
    seconds: float
    now_ms: float
    restarts: int
    figures: AppFigures

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> "AppReading":
        """Returns the reading in an answer of the app (`AppRequests`)."""
        figures = AppFigures.of(answer["figures"])
        return cls(answer["app"], answer["seconds"], answer["now_ms"], answer["restarts"], figures)


@dataclass
class StepRates:
    """Rates of a step, or of an agent.

    `rows_in` and `rows_out`: rows per second, or None if they are not known. `share`: the part of the time, from 0 to
    1, in which its task worked in this step, as the mean of the subtasks, or None. `counts`: since the start, by their
    short names (`STEP_COUNTS`).
    """

    id: str
    rows_in: float | None = None
    rows_out: float | None = None
    share: float | None = None
    counts: Counter[str] = field(default_factory=Counter)


@dataclass
class TaskRates:
    """Rates of a task, all subtasks together.

    `kind`: "source", "sink" or "task" of streams; "agents"; "agent's source" or "agent's sink". `name`: the source or the
    sink, or "". `shares`: the mean share of time by state. `fill`: how full its fullest input is, 0 to 1, or None if it
    reads a source. `lag`: rows or bytes (`lag_unit`) of its source that are not read yet, or None. `behind_s`: seconds by which its
    watermark is behind the clock, or None if it has none. `counts`: those of its steps, and the dead letters of its source.
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
    counts: Counter[str] = field(default_factory=Counter)
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
        return sum(task.counts["late"] for task in self.tasks)

    @property
    def dead(self) -> int:
        """The number of dead letters since the start."""
        return sum(task.counts["dead"] for task in self.tasks)

    def drawn(self) -> PlanFigures:
        """Returns the figures for a drawing of the plan (`plan.drawing`).

        Agents that share a task have the shares of its time each.
        """
        tasks: dict[str, BoxFigures] = {}
        steps: dict[str, BoxFigures] = {}
        for task in self.tasks:
            counts = task.counts
            figures = BoxFigures(
                task.shares, task.behind_s, late=counts["late"], dead_letters=counts["dead"], subtasks=task.subtasks
            )
            own = {
                step.id: BoxFigures(late=step.counts["late"], dead_letters=step.counts["dead"], own_time=step.share)
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
    """Returns the rates between two readings of one app."""
    seconds = max(after.seconds - before.seconds, 1e-9)
    tasks = _StreamRates(before, after, seconds)
    agents = _agent_tasks(before.figures, after.figures, seconds)
    links = tasks.links() | dict(_agent_links(before.figures, after.figures, seconds))
    return AppRates(seconds, [*tasks.found.values(), *agents], links)


def rate_of(before: float, now: float, seconds: float) -> float:
    """Returns the growth of a count per second. One that has gone back, because the app has restarted meanwhile, and no
    time, give 0.
    """
    return max(0.0, now - before) / seconds if seconds > 0 else 0.0


def shares_of(before: ThreadFigures, now: ThreadFigures) -> dict[str, float]:
    """Returns the shares of time by state between two readings of one thread, or {} if it did not run."""
    spent = {name: max(0.0, now.time.get(name, 0.0) - before.time.get(name, 0.0)) for name in SHARES}
    whole = sum(spent.values())
    return {name: value / whole for name, value in spent.items()} if whole > 0 else {}


def lag_of(source: InputFigures | AgentSourceFigures) -> float | None:
    """Returns the rows, or bytes, that a source has not read, or None if it does not know."""
    known = [each for each in (source.lag or {}).values() if each is not None]
    return sum(known) if known else None


def _plus(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else one + other


def _most(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else max(one, other)


class _StreamRates:
    """Folds the subtasks of the tasks of streams."""

    def __init__(self, before: AppReading, after: AppReading, seconds: float) -> None:
        self.found: dict[str, TaskRates] = {}
        self._seconds = seconds
        self._rates: defaultdict[LinkKey, float] = defaultdict(float)
        self._fills: dict[LinkKey, float] = {}
        for name, now in after.figures.streams.items():
            self._add(name, before.figures.streams.get(name, TaskFigures()), now, after.now_ms)
        for task in self.found.values():
            task.shares = {name: value / task.subtasks for name, value in task.shares.items()}
            for step in task.steps.values():
                step.share = None if step.share is None else step.share / task.subtasks

    def links(self) -> dict[LinkKey, LinkFigures]:
        return {key: LinkFigures(rate, self._fills.get(key)) for key, rate in self._rates.items()}

    def _add(self, name: str, before: TaskFigures, after: TaskFigures, now_ms: float) -> None:
        id = name.rpartition("/")[0]
        given = after.input
        task = self.found.setdefault(id, TaskRates(id, "source" if given.source else "task", given.source))
        task.subtasks += 1
        task.rows_in = _plus(task.rows_in, rate_of(before.rows, after.rows, self._seconds))
        for state, share in shares_of(before, after).items():
            task.shares[state] = task.shares.get(state, 0.0) + share
        task.fill = _most(task.fill, given.fill)
        if given.lag is not None:
            task.lag = _plus(task.lag, lag_of(given) or 0)
            task.lag_unit = given.lag_unit
        watermark = after.watermark_ms
        if watermark is not None and START_OF_TIME < watermark < END_OF_TIME:
            task.behind_s = _most(task.behind_s, (now_ms - watermark) / 1000)
        task.counts["dead"] += given.dead_letters
        if after.worker is not None and after.worker not in task.workers:
            task.workers.append(after.worker)
        for step, figures in after.operators.items():
            self._add_step(task, step, before.operators.get(step, StepFigures()), figures)
        self._add_links(task, before.edges, after.edges)

    def _add_step(self, task: TaskRates, id: str, before: StepFigures, after: StepFigures) -> None:
        step = task.steps.setdefault(id, StepRates(id))
        step.rows_in = _plus(step.rows_in, rate_of(before.rows_in, after.rows_in, self._seconds))
        step.rows_out = _plus(step.rows_out, rate_of(before.rows_out, after.rows_out, self._seconds))
        step.share = _plus(step.share, rate_of(before.seconds, after.seconds, self._seconds))
        if after.sink:
            task.kind, task.name = "sink", after.sink
        counts = {each.short: getattr(after, each.figure) for each in STEP_COUNTS}
        step.counts.update(counts)
        task.counts.update(counts)

    def _add_links(self, task: TaskRates, before: Iterable[EdgeFigures], after: Iterable[EdgeFigures]) -> None:
        then = {_key(edge): edge.rows for edge in before}
        for edge in after:
            key = _key(edge)
            rate = rate_of(then.get(key, 0), edge.rows, self._seconds)
            self._rates[key] += rate
            if edge.fill is not None:
                self._fills[key] = max(self._fills.get(key, 0.0), edge.fill)
                if not key.branch:
                    task.rows_out = _plus(task.rows_out, rate)


def _key(edge: EdgeFigures) -> LinkKey:
    return LinkKey(edge.origin, edge.to, edge.branch)


def _agent_tasks(before: AppFigures, after: AppFigures, seconds: float) -> Iterator[TaskRates]:
    """Yields the sources of agents, the tasks of agents, and the sinks of agents."""
    fills: dict[str, float] = defaultdict(float)
    for name, source in after.sources.items():
        then = before.sources.get(name, AgentSourceFigures())
        rate = rate_of(then.rows_in, source.rows_in, seconds)
        yield TaskRates(name, "agent's source", "", 1, rate, rate, shares_of(then, source), lag=lag_of(source) or 0)
        agent = name.partition("/")[0]
        fills[agent] = max(fills[agent], source.channel.fill)
    agents: dict[str, StepRates] = {}
    for name, lanes in after.operators.items():
        told, earlier = (each.agents.get(name, AgentFigures()) for each in (after, before))
        rows_in = rate_of(earlier.messages_processed, told.messages_processed, seconds)
        rows_out = rate_of(before.operators.get(name, LaneFigures()).rows_out, lanes.rows_out, seconds)
        agents[name] = StepRates(name, rows_in, rows_out, None, Counter(dead=told.dead_letters))
    for task, thread in after.agent_tasks.items():
        one = len(after.agent_tasks) == 1
        steps = agents if one else {task: agents[task]} if task in agents else {}
        shares = shares_of(before.agent_tasks.get(task, ThreadFigures()), thread)
        rates = TaskRates(task, "agents", "", 1, shares=shares, steps=steps)
        for name, step in steps.items():
            rates.rows_in = _plus(rates.rows_in, step.rows_in)
            rates.rows_out = _plus(rates.rows_out, step.rows_out)
            rates.fill = _most(rates.fill, fills.get(name))
            rates.counts.update(step.counts)
        yield rates
    for name, sink in after.sinks.items():
        was = before.sinks.get(name, AgentSinkFigures())
        rate = rate_of(was.rows_out, sink.rows_out, seconds)
        yield TaskRates(name, "agent's sink", "", 1, rate, rate, shares_of(was, sink), fill=sink.channel.fill)


def _agent_links(before: AppFigures, after: AppFigures, seconds: float) -> Iterator[tuple[LinkKey, LinkFigures]]:
    """Yields the links from topics to agents."""
    for name, now in after.sources.items():
        rate = rate_of(before.sources.get(name, AgentSourceFigures()).rows_in, now.rows_in, seconds)
        yield LinkKey(name, name.partition("/")[0]), LinkFigures(rate, now.channel.fill)
