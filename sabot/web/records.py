"""Records of a running app, made of its figures: the data of the screens, of CSV and of JSON."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from sabot.base.figures import STEP_COUNTS, AgentFigures, AppFigures, StepFigures, TaskFigures, ThreadFigures
from sabot.base.redaction import scrubbed
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.plan.drawing import SHARES, PlanFigures
from sabot.engine.runtime.tasks.taps import TapPoint
from sabot.engine.runtime.watch.app_rates import AppReading, lag_of, rate_of, rates_between, shares_of
from sabot.engine.runtime.watch.figure_rings import FigureRings, Tick, rows_read, time_of, unread, watermark_of

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
    `queue`: the rows that wait in front of the task. `behind`: the seconds by which the watermark is behind the clock. `counts`: by the
    name of their column (`STEP_COUNTS`).
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
    counts: Mapping[str, int]
    skew: float | None = None
    """The rows of the busiest subtask, divided by the mean of all subtasks; None for a single one."""
    late_half: float | None = None
    """The seconds that half of the late rows were late at most."""
    late_most: float | None = None
    """The seconds by which the latest of the late rows was late."""
    watermark: float | None = None
    """The watermark, in seconds since 1970."""


_STALE_SECONDS = 30.0  # a run that goes on writes its figures each ten seconds

COUNT_COLUMNS = tuple(each.column for each in STEP_COUNTS)
_NONE = dict.fromkeys(COUNT_COLUMNS, 0)
STEP_COLUMNS = {each.name for each in fields(StepRecord)} - {"shares", "counts"}


def app_record(id: str, run: "RunFacts", figures: FigureRings) -> AppRecord:
    """Returns the record of an app."""
    before, now = figures.span
    checkpoints = now.figures.checkpoints
    watermark = watermark_of(now.figures)
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
        rows_per_second=rate_of(rows_read(before.figures), rows_read(now.figures), span),
        rows=rows_read(now.figures),
        lag=unread(now.figures),
        watermark=None if watermark is None else watermark / 1000,
        memory_bytes=figures.curves["memory"].fine[-1] if figures.curves["memory"].fine else None,
        checkpoint=checkpoints.last_id or None,
        checkpoint_at=checkpoints.last_at,
        checkpoint_seconds=checkpoints.last_seconds,
        checkpoint_bytes=checkpoints.last_bytes,
        checkpoints_failed=checkpoints.failed,
        checkpoint_error=scrubbed(checkpoints.last_error),
        late_rows=sum(each.counts["late_rows"] for each in steps),
        dead_letters=sum(each.counts["dead_letters"] for each in steps),
        late_most=max((each.late_most for each in steps if each.late_most is not None), default=None),
        stale=SYSTEM_CLOCK.time() - now.at > _STALE_SECONDS,
    )


def source_records(figures: FigureRings) -> list[SourceRecord]:
    """Returns the sources, the one with most rows per second first."""
    before, now = figures.span
    span = now.steady - before.steady
    readers: dict[str, set[str]] = defaultdict(set)
    rows: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for at, each in enumerate((before.figures, now.figures)):
        for task, facts in each.streams.items():
            if source := facts.input.source:
                rows[source][at] += facts.input.rows_in
                readers[source].add(task.rpartition("/")[0])
        for name, of_agent in each.sources.items():
            agent, _, topic = name.rpartition("/")
            rows[topic][at] += of_agent.rows_in
            readers[topic].add(agent)
    found = [SourceRecord(name, len(readers[name]), new, rate_of(old, new, span)) for name, (old, new) in rows.items()]
    return sorted(found, key=lambda each: -each.rows_per_second)


def step_records(figures: FigureRings) -> list[StepRecord]:
    """Returns the records of all steps and agents, in the order of the app's figures."""
    before, now = figures.span
    span = now.steady - before.steady
    found: list[StepRecord] = []
    for name, task in now.figures.streams.items():
        stage, _, subtask = name.rpartition("/")
        old = before.figures.streams.get(name, TaskFigures())
        found += _steps_of(stage or name, int(subtask) if subtask.isdigit() else 0, task, old, span, now.at)
    for name, agent in now.figures.agents.items():
        found.append(_agent_step(name, agent, now.figures, before.figures, span))
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
    )
    rows = total("rows_in")
    return replace(
        group[0],
        **{name: total(name) for name in sums},
        seconds=sum(known("seconds")) / len(group) if known("seconds") else None,
        counts={name: sum(each.counts[name] for each in group) for name in COUNT_COLUMNS},
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
    if column in COUNT_COLUMNS:
        return sorted(found, key=lambda each: each.counts[column], reverse=order.startswith("-"))
    if column not in STEP_COLUMNS:
        return found
    known = [each for each in found if getattr(each, column) is not None]
    rest = [each for each in found if getattr(each, column) is None]
    return sorted(known, key=lambda each: getattr(each, column), reverse=order.startswith("-")) + rest


def flat(step: StepRecord) -> dict[str, Any]:
    """Returns the values of a record by name, for CSV and JSON; shares of time by the names of their states."""
    found: dict[str, Any] = {}
    for name, value in asdict(step).items():
        if name != "shares":
            found |= step.counts if name == "counts" else {name: value}
    return found | {f"share_{name}": step.shares.get(name) for name in SHARES}


def _steps_of(
    stage: str, subtask: int, task: TaskFigures, old: TaskFigures, span: float, at: float
) -> Iterable[StepRecord]:
    source = task.input
    common: dict[str, Any] = {"task": stage, "subtask": subtask, "shares": _shares(old, task, span)}
    if source.source:
        yield StepRecord(
            step=source.source,
            kind="source",
            rows_in=source.rows_in,
            rows_out=None,
            rows_per_second=rate_of(old.input.rows_in, source.rows_in, span),
            seconds=None,
            behind=_behind(time_of(source.watermark_ms), at),
            fill=None,
            queue=None,
            lag=lag_of(source),
            state_keys=None,
            state_bytes=None,
            counts=_NONE | {"dead_letters": source.dead_letters},
            **common,
        )
    for step, operator in task.operators.items():
        earlier = old.operators.get(step, StepFigures())
        yield StepRecord(
            step=operator.sink or step,
            kind="sink" if operator.sink else "step",
            rows_in=operator.rows_in,
            rows_out=operator.rows_out,
            rows_per_second=rate_of(earlier.rows_in, operator.rows_in, span),
            seconds=min(1.0, rate_of(earlier.seconds, operator.seconds, span)) if span else None,
            behind=_behind(time_of(operator.watermark_ms), at),
            fill=source.fill,
            queue=None if source.source else source.rows,
            lag=None,
            state_keys=operator.state_keys,
            state_bytes=operator.state_bytes,
            counts={each.column: getattr(operator, each.figure) for each in STEP_COUNTS},
            watermark=_seconds(time_of(operator.watermark_ms)),
            late_half=_seconds(operator.late_p50_ms),
            late_most=_seconds(operator.late_most_ms),
            **common,
        )


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _agent_step(name: str, agent: AgentFigures, now: AppFigures, before: AppFigures, span: float) -> StepRecord:
    lanes = now.operators.get(name)
    earlier = before.agents.get(name, AgentFigures()).messages_processed
    tasks = now.agent_tasks
    one = next(iter(tasks), "") if len(tasks) == 1 else ""  # without workers one task has all agents
    task = name if name in tasks else one
    told, old = (each.agent_tasks.get(task, ThreadFigures()) for each in (now, before))
    return StepRecord(
        step=name,
        kind="agent",
        task=name,
        subtask=0,
        rows_in=agent.messages_processed,
        rows_out=None if lanes is None else lanes.rows_out,
        rows_per_second=rate_of(earlier, agent.messages_processed, span),
        seconds=None,
        shares=_shares(old, told, span),
        behind=None,
        fill=None,
        queue=None if lanes is None else lanes.rows,
        lag=None,
        state_keys=None,
        state_bytes=None,
        counts=_NONE | {"dead_letters": agent.dead_letters},
    )


def plan_figures(figures: FigureRings) -> PlanFigures:
    """Returns the figures for the drawing of the plan."""
    before, now = figures.span
    return rates_between(_reading(before), _reading(now)).drawn()


def tap_points(figures: FigureRings) -> dict[TapPoint, str]:
    """Returns the points of the running streams at which rows can be copied, in the order of the plan, and their names."""
    found: dict[TapPoint, str] = {}
    for name, task in figures.last.figures.streams.items():
        stage, source = name.rpartition("/")[0], task.input.source
        for edge in task.edges:
            point = TapPoint(edge.origin, edge.branch)
            if point.origin != stage:
                found.setdefault(point, f"{point.origin}{', ' + point.branch if point.branch else ''}")
            elif not point.branch:  # the dead letters of a task are no rows
                found.setdefault(point, f"source {source}" if source else f"input of {stage}")
    return found


def _reading(tick: Tick) -> AppReading:
    return AppReading("", tick.steady, tick.at * 1000, 0, tick.figures)


def _shares(before: ThreadFigures, now: ThreadFigures, span: float) -> dict[str, float]:
    """Returns the part of the time in each state since `before`; since the start of the task if there is no span."""
    return shares_of(before if span else ThreadFigures(), now)


def _behind(watermark_ms: int | None, now: float) -> float | None:
    return None if watermark_ms is None else max(0.0, now - watermark_ms / 1000)
