"""Records of a running app, made of its figures: the data of the screens, of CSV and of JSON."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from sabot.base.redaction import scrubbed
from sabot.clock import SYSTEM_CLOCK
from sabot.plan.drawing import SHARES, PlanFigures
from sabot.runtime.tasks.taps import TapPoint
from sabot.runtime.watch.app_rates import AppReading, rates_between
from sabot.runtime.watch.figure_rings import FigureRings, Tick, lag_of, rows_read, time_of, watermark_of

if TYPE_CHECKING:
    from sabot.web.shown import RunFacts


@dataclass(frozen=True)
class AppRecord:
    """An app at one time. Times are seconds since 1970. A value that is not known, or does not exist, is None.

    `state`: starting, running, stopping, failed, stopped, killed or not known. `why`: the failure that ended a run, or "".
    `rows_per_second`, `rows`: the rows that all streams and agents read; a row that two of them read counts twice.
    `late_most`: the seconds by which the latest of the late rows was late. `stale`: True if the figures are old.
    """

    id: str
    version: str
    state: str
    why: str
    at: float
    began: float
    restarts: int
    rows_per_second: float
    rows: int
    lag: float | None
    watermark: float | None
    memory_bytes: float | None
    checkpoint: int | None
    checkpoint_at: float | None
    checkpoint_seconds: float
    checkpoint_bytes: int
    checkpoints_failed: int
    checkpoint_error: str
    late_rows: int
    dead_letters: int
    late_most: float | None
    stale: bool


@dataclass(frozen=True)
class SourceRecord:
    """The rows that were read from one source, by all that read it. `readers`: the number of streams and agents that do."""

    name: str
    readers: int
    rows: int
    rows_per_second: float


@dataclass(frozen=True)
class StepRecord:
    """A step of a stream, or an agent, in one subtask of a task. A value that is not known, or does not exist, is None.

    `kind`: source, step, sink or agent. `seconds`: the part of the last ten seconds that the task spent in the step, 0 to 1.
    `shares`: the part of these seconds that the task spent in each state. `fill`: how full the fullest input channel of the task is.
    `queue`: the rows that wait in front of the task. `behind`: the seconds by which the watermark is behind the clock.
    """

    step: str
    kind: str
    task: str
    subtask: int
    rows_in: int
    rows_out: int | None
    rows_per_second: float
    seconds: float | None
    shares: Mapping[str, float]
    behind: float | None
    fill: float | None
    queue: int | None
    lag: float | None
    state_keys: int | None
    state_bytes: int | None
    late_rows: int
    dead_letters: int
    skew: float | None = None
    """The rows of the busiest subtask, divided by the mean of all subtasks; None for a single one."""
    late_half: float | None = None
    """The seconds that half of the late rows were late at most."""
    late_most: float | None = None
    """The seconds by which the latest of the late rows was late."""
    watermark: float | None = None
    """The watermark, in seconds since 1970."""


_STALE_SECONDS = 30.0  # a run that goes on writes its figures each ten seconds

STEP_COLUMNS = tuple(each.name for each in fields(StepRecord) if each.name != "shares")


def app_record(id: str, run: "RunFacts", figures: FigureRings) -> AppRecord:
    """Returns the record of an app."""
    before, now = figures.span
    statistics = now.statistics
    checkpoints = statistics["checkpoints"]
    watermark = watermark_of(statistics)
    span = now.steady - before.steady
    steps = step_records(figures)
    return AppRecord(
        id=id,
        version=run.version,
        state=run.state,
        why=run.why,
        at=now.at,
        began=run.began,
        restarts=run.restarts,
        rows_per_second=max(0, rows_read(statistics) - rows_read(before.statistics)) / span if span else 0.0,
        rows=rows_read(statistics),
        lag=lag_of(statistics),
        watermark=None if watermark is None else watermark / 1000,
        memory_bytes=figures.curves["memory"].fine[-1] if figures.curves["memory"].fine else None,
        checkpoint=checkpoints["last_id"] or None,
        checkpoint_at=checkpoints["last_at"],
        checkpoint_seconds=checkpoints["last_seconds"],
        checkpoint_bytes=checkpoints["last_bytes"],
        checkpoints_failed=checkpoints["failed"],
        checkpoint_error=scrubbed(checkpoints["last_error"]),
        late_rows=sum(each.late_rows for each in steps),
        dead_letters=sum(each.dead_letters for each in steps),
        late_most=max((each.late_most for each in steps if each.late_most is not None), default=None),
        stale=SYSTEM_CLOCK.time() - now.at > _STALE_SECONDS,
    )


def source_records(figures: FigureRings) -> list[SourceRecord]:
    """Returns the sources, the one with most rows per second first."""
    before, now = figures.span
    span = now.steady - before.steady
    readers: dict[str, set[str]] = defaultdict(set)
    rows: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for at, each in enumerate((before.statistics, now.statistics)):
        for task, facts in each["streams"].items():
            if "source" in (source := facts.get("input", {})):
                rows[source["source"]][at] += source["rows_in"]
                readers[source["source"]].add(task.rpartition("/")[0])
        for name, facts in each["sources"].items():  # of agents
            agent, _, topic = name.rpartition("/")
            rows[topic][at] += facts.get("rows_in", 0)
            readers[topic].add(agent)
    found = [SourceRecord(name, len(readers[name]), new, _rate(new, old, span)) for name, (old, new) in rows.items()]
    return sorted(found, key=lambda each: -each.rows_per_second)


def step_records(figures: FigureRings) -> list[StepRecord]:
    """Returns the records of all steps and agents, in the order of the app's figures."""
    before, now = figures.span
    span = now.steady - before.steady
    found: list[StepRecord] = []
    for name, task in now.statistics["streams"].items():
        stage, _, subtask = name.rpartition("/")
        if "operators" in task:
            old = before.statistics["streams"].get(name, {})
            found += _steps_of(stage or name, int(subtask) if subtask.isdigit() else 0, task, old, span, now.at)
    for name, agent in now.statistics["agents"].items():
        found.append(_agent_step(name, agent, now.statistics, before.statistics, span))
    return found


def folded(steps: Iterable[StepRecord]) -> list[StepRecord]:
    """Returns one record for all subtasks of each step: sums of counts and rates, means of parts of the time, the fullest channel and
    the watermark that is
    furthest behind.
    """
    groups: dict[tuple[str, str, str], list[StepRecord]] = {}
    for each in steps:
        groups.setdefault((each.task, each.kind, each.step), []).append(each)
    return [group[0] if len(group) == 1 else _fold(group) for group in groups.values()]


def _fold(group: Sequence[StepRecord]) -> StepRecord:
    def known(name: str) -> list[Any]:
        return [value for each in group if (value := getattr(each, name)) is not None]

    def total(name: str) -> Any:
        return sum(known(name)) if known(name) else None

    sums = (
        "rows_in",
        "rows_out",
        "rows_per_second",
        "queue",
        "lag",
        "state_keys",
        "state_bytes",
        "late_rows",
        "dead_letters",
    )
    rows = total("rows_in")
    return replace(
        group[0],
        **{name: total(name) for name in sums},
        seconds=sum(known("seconds")) / len(group) if known("seconds") else None,
        shares={name: sum(each.shares.get(name, 0.0) for each in group) / len(group) for name in group[0].shares},
        behind=max(known("behind"), default=None),
        fill=max(known("fill"), default=None),
        watermark=min(known("watermark"), default=None),
        late_half=max(known("late_half"), default=None),
        late_most=max(known("late_most"), default=None),
        skew=max(known("rows_in")) * len(group) / rows if rows else None,
    )


def chosen(steps: Iterable[StepRecord], search: str, order: str) -> list[StepRecord]:
    """Returns the records whose step, task or kind contains the searched text, in an order: the name of a column, with "-" before it
    for the greatest first; any other text leaves the order. What is not known comes last.
    """
    wanted = search.casefold()
    found = [each for each in steps if wanted in f"{each.step}\n{each.task}\n{each.kind}".casefold()]
    column = order.removeprefix("-")
    if column in SHARES:
        return sorted(found, key=lambda each: each.shares.get(column, 0.0), reverse=order.startswith("-"))
    if column not in STEP_COLUMNS:
        return found
    known = [each for each in found if getattr(each, column) is not None]
    rest = [each for each in found if getattr(each, column) is None]
    return sorted(known, key=lambda each: getattr(each, column), reverse=order.startswith("-")) + rest


def flat(step: StepRecord) -> dict[str, Any]:
    """Returns the values of a record by name, for CSV and JSON; shares of time by the names of their states."""
    return {name: value for name, value in asdict(step).items() if name != "shares"} | {
        f"share_{name}": step.shares.get(name) for name in SHARES
    }


def _steps_of(
    stage: str, subtask: int, task: Mapping[str, Any], old: Mapping[str, Any], span: float, at: float
) -> Iterable[StepRecord]:
    shares = _shares(task.get("time", {}), old.get("time", {}), span)
    source = task.get("input", {})
    common: dict[str, Any] = {"task": stage, "subtask": subtask, "shares": shares}
    if "source" in source:
        rows, lags = source["rows_in"], [each for each in (source.get("lag") or {}).values() if each is not None]
        yield StepRecord(
            step=source["source"],
            kind="source",
            rows_in=rows,
            rows_out=None,
            rows_per_second=_rate(rows, old.get("input", {}).get("rows_in", 0), span),
            seconds=None,
            behind=_behind(time_of(source), at),
            fill=None,
            queue=None,
            lag=sum(lags) if lags else None,
            state_keys=None,
            state_bytes=None,
            late_rows=0,
            dead_letters=source.get("dead_letters", 0),
            **common,
        )
    for step, operator in task["operators"].items():
        earlier = old.get("operators", {}).get(step, {})
        seconds = None if not span else min(1.0, max(0.0, operator["seconds"] - earlier.get("seconds", 0.0)) / span)
        yield StepRecord(
            step=operator.get("sink", step),
            kind="sink" if "sink" in operator else "step",
            rows_in=operator["rows_in"],
            rows_out=operator["rows_out"],
            rows_per_second=_rate(operator["rows_in"], earlier.get("rows_in", 0), span),
            seconds=seconds,
            behind=_behind(time_of(operator), at),
            fill=source.get("fill"),
            queue=None if "source" in source else source.get("rows"),
            lag=None,
            state_keys=operator.get("state_keys"),
            state_bytes=operator.get("state_bytes"),
            late_rows=operator.get("late_rows", 0),
            dead_letters=operator.get("dead_rows", 0),
            watermark=_seconds(time_of(operator)),
            late_half=_seconds(operator.get("late_p50_ms")),
            late_most=_seconds(operator.get("late_most_ms")),
            **common,
        )


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _agent_step(
    name: str, agent: Mapping[str, Any], now: Mapping[str, Any], before: Mapping[str, Any], span: float
) -> StepRecord:
    operator = now["operators"].get(name, {})
    earlier = before["agents"].get(name, {}).get("messages_processed", 0)
    tasks = now.get("agent_tasks", {})
    task = (
        name if name in tasks else next(iter(tasks), "") if len(tasks) == 1 else ""
    )  # without workers one task has all agents
    told, old = tasks.get(task, {}), before.get("agent_tasks", {}).get(task, {})
    return StepRecord(
        step=name,
        kind="agent",
        task=name,
        subtask=0,
        rows_in=agent["messages_processed"],
        rows_out=operator.get("rows_out"),
        rows_per_second=_rate(agent["messages_processed"], earlier, span),
        seconds=None,
        shares=_shares(told.get("time", {}), old.get("time", {}), span),
        behind=None,
        fill=None,
        queue=operator.get("rows"),
        lag=None,
        state_keys=None,
        state_bytes=None,
        late_rows=0,
        dead_letters=agent["dead_letters"],
    )


def plan_figures(figures: FigureRings) -> PlanFigures:
    """Returns the figures for the drawing of the plan."""
    before, now = figures.span
    return rates_between(_reading(before), _reading(now)).drawn()


def tap_points(figures: FigureRings) -> dict[TapPoint, str]:
    """Returns the points of the running streams at which rows can be copied, in the order of the plan, and their names."""
    found: dict[TapPoint, str] = {}
    for name, task in figures.last.statistics["streams"].items():
        stage, source = name.rpartition("/")[0], task.get("input", {}).get("source", "")
        for edge in task.get("edges", ()):
            point = TapPoint(edge["from"], edge["branch"])
            if point.origin != stage:
                found.setdefault(point, f"{point.origin}{', ' + point.branch if point.branch else ''}")
            elif not point.branch:  # the dead letters of a task are no rows
                found.setdefault(point, f"source {source}" if source else f"input of {stage}")
    return found


def _reading(tick: Tick) -> AppReading:
    return AppReading("", tick.steady, tick.at * 1000, 0, tick.statistics)


def _shares(now: Mapping[str, float], before: Mapping[str, float], span: float) -> dict[str, float]:
    """Returns the part of the time in each state since `before`; since the start of the task if there is no span."""
    spent = {name: max(0.0, seconds - (before.get(name, 0.0) if span else 0.0)) for name, seconds in now.items()}
    total = sum(spent.values())
    return {name: seconds / total for name, seconds in spent.items()} if total > 0 else {}


def _rate(now: float, before: float, span: float) -> float:
    return max(0.0, now - before) / span if span > 0 else 0.0


def _behind(watermark_ms: int | None, now: float) -> float | None:
    return None if watermark_ms is None else max(0.0, now - watermark_ms / 1000)
