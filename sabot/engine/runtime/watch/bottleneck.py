"""The narrow place of a running app in words: the task that sets the pace of everything else, and why.

`narrow_places` compares two readings of an app's figures that are some seconds apart. It is a pure function, so any
viewer can call it: the command line, a page, a log.

A task is a candidate if its own time is used up and rows wait for it: its input is full, or the tasks before it wait
for room. A task that itself waits for room is none, because the place is further on. What it does with its time is
the cause. An app whose tasks have time left, or whose inputs are empty, has no narrow place.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import TypeVar

from sabot.base.figures import (
    AppFigures,
    CallLoad,
    EdgeFigures,
    StepFigures,
    TaskFigures,
    ThreadFigures,
)
from sabot.engine.plan.drawing import SHARES
from sabot.engine.runtime.watch.app_rates import lag_of, rate_of, shares_of

_T = TypeVar("_T")

_MOST = 3  # places in a rank
_BUSY = 0.7  # the share of time from which on a task has little left
_SPENT = 0.9  # the share of time from which on a task has none left
_WAITS = 0.5  # the same for a task that waits for a sink, for calls or for barriers
_ALIGNS = 0.3
_ALONE = 1.2  # seconds of calls in a second, up to which calls run one after the other
_PRESSED = 0.3  # the share of time for which the tasks before must have waited
_ALL = 0.85  # the share of the processors from which on they are used up
_FULL = 0.5  # how full an input must be, on average of both readings
_MAIN = 0.5  # the share of a task's work from which on a step is its main work
_SKEW = 2.0  # how many times the work of the others a subtask has if rows are distributed unevenly
_LAGS = 0.8  # the share of unread rows from which on one partition is slow
_ONE = 1.5  # processors that an app uses at most if it is bound by one interpreter
_OTHERS = 0.1  # processors that its other threads use at least if they have the lock
_TURNS = 100  # a thread that waits for the interpreter's lock wakes up at least so often a second
_WITHOUT_WORKERS = "workers need topics in Kafka: those at memory:// are in this process"
_LEAST_SECONDS = 0.5  # two readings that are closer say nothing


class Cause(StrEnum):
    """The reason why a task is the narrow place."""

    SLOW_FUNCTION = "slow function"
    SLOW_STEP = "slow step"
    INTERPRETER_LOCK = "interpreter lock"
    PROCESSORS = "processors"
    SLOW_SINK = "slow sink"
    STARVED_SOURCE = "starved source"
    HOT_KEY = "hot key"
    SLOW_ALIGNMENT = "slow alignment"
    MODEL_LIMIT = "model limit"
    SLOW_EXCHANGE = "slow exchange"
    SLOW_PARTITION = "slow partition"


_SHARED = (Cause.INTERPRETER_LOCK, Cause.PROCESSORS)  # causes that are no task's own


@dataclass(frozen=True)
class NarrowPlace:
    """A task that limits the app. `share`: the share of the time, from 0 to 1, that the cause takes. `fill`: how full
    the task's input is, from 0 to 1, or None if it reads a source. `step`: the step, function, sink or agent that the
    sentence names, or "".
    """

    task: str
    cause: Cause
    share: float
    fill: float | None
    step: str
    sentence: str
    advice: str


def narrow_places(before: AppFigures, now: AppFigures) -> list[NarrowPlace]:
    """Returns at most three narrow places of an app, the narrowest first; none if nothing limits the app.

    `before`, `now`: two readings, some seconds apart. Tasks that are not in both are left out,
    so nothing is said right after a start or a rescale.
    """
    app = _AppSpan(before, now)
    found = [*app.sinks(), *app.computing(), *app.waiting(), *app.exchanges(), *app.agents()]
    found += app.aligning({place.task for place in found})
    found = sorted(found, key=lambda place: -place.share)
    causes: set[tuple[str, Cause]] = set()
    rank = []
    for place in found:  # subtasks of one stage with one cause are one place, and so are all that wait for the lock
        key = "" if place.cause in _SHARED else _stage(place.task), place.cause
        if key not in causes:
            causes.add(key)
            rank.append(place)
    return (rank or [*app.partitions()] or [*app.starved()])[:_MOST]


def in_one_process(figures: AppFigures) -> bool:
    """Returns True if the app cannot have workers because its topics are at memory://, in its own process."""
    return figures.broker.topics > 0


class _ThreadSpan:
    """The figures of one task over the time between two readings."""

    def __init__(self, name: str, before: ThreadFigures, now: ThreadFigures) -> None:
        self.name, self.stage = name, _stage(name)
        self.seconds = max(0.0, sum(now.time.values()) - sum(before.time.values()))
        self.shares = dict.fromkeys(SHARES, 0.0) | shares_of(before, now)
        self.queued = min(1.0, rate_of(before.queued_seconds, now.queued_seconds, self.seconds))
        self.turns = None if now.turns is None or before.turns is None else max(0, now.turns - before.turns)

    @property
    def wakes_for_lock(self) -> bool:
        """True if the thread got a processor often enough in its contended time to have waited for the interpreter's
        lock: a thread that waits for the lock wakes up every 5 ms. False if it slept. True too if the system does not
        count this.
        """
        contended = self.shares["contended"] * self.seconds
        return self.turns is None or self.turns >= _TURNS * contended

    @property
    def load(self) -> float:
        """The share of time in which the thread computed, or was ready to compute."""
        return self.shares["busy"] + self.shares["contended"]


class _TaskSpan(_ThreadSpan):
    """A task of streams."""

    def __init__(self, name: str, before: TaskFigures, now: TaskFigures) -> None:
        super().__init__(name, before, now)
        self.before, self.now = before, now
        self.rows = now.rows - before.rows
        self.lag = {name: rows for name, rows in (now.input.lag or {}).items() if rows is not None}

    @property
    def fill(self) -> float | None:
        """The mean fill of its input at the two readings, from 0 to 1, or None if it reads a source."""
        fills = [each.input.fill for each in (self.before, self.now) if each.input.fill is not None]
        return sum(fills) / 2 if len(fills) == 2 else None

    def late(self) -> dict[str, float]:
        """Returns the seconds for which it waited for a barrier of each task before it."""
        before = self.before.input.late_seconds
        return {name: seconds - before.get(name, 0.0) for name, seconds in self.now.input.late_seconds.items()}

    @property
    def targets(self) -> list[EdgeFigures]:
        """The edges to other tasks."""
        return [edge for edge in self.now.edges if edge.fill is not None]

    def work(self) -> dict[str, float]:
        """The seconds of each piece of its work: steps by their id, "reading", "cutting", and "to STAGE"."""
        before, now = self.before, self.now
        found = {
            id: figures.seconds - before.operators.get(id, StepFigures()).seconds
            for id, figures in now.operators.items()
        }
        for own, was in zip(now.edges, before.edges, strict=False):
            if own.fill is not None:
                place = f"to {own.to}"
                found[place] = found.get(place, 0.0) + own.seconds - was.seconds
        found["reading"] = now.reading_seconds - before.reading_seconds
        found["cutting"] = now.cutting_seconds - before.cutting_seconds
        return found

    def main_work(self) -> tuple[str, float]:
        """The piece of work that takes most of the task's time, and its share of the time of all pieces."""
        work = self.work()
        name = max(work, key=lambda each: work[each], default="")
        total = sum(work.values())
        return name, work[name] / total if name and total > 0 else 0.0


class _AppSpan:
    """The tasks of an app over the time between two readings."""

    def __init__(self, before: AppFigures, now: AppFigures) -> None:
        self.before, self.now = before, now
        self.alone = in_one_process(now)
        self.tasks = [
            task
            for name, (was, is_) in _both(before.streams, now.streams)
            if was.time and is_.state and (task := _TaskSpan(name, was, is_)).seconds >= _LEAST_SECONDS
        ]
        self.senders: dict[str, list[_TaskSpan]] = {}  # by stage: the tasks that send it rows
        for task in self.tasks:
            for edge in task.targets:
                if task not in self.senders.setdefault(edge.to, []):
                    self.senders[edge.to].append(task)

    # -- what presses ---------------------------------------------------------------------------------------------------

    def pressed(self, task: _TaskSpan) -> bool:
        """Returns True if rows wait for the task: its input is full, and the tasks before it wait for room."""
        senders = self.senders.get(task.stage, ())
        waits = max((each.shares["backpressured"] for each in senders), default=0.0)
        fill = task.fill or 0.0
        return fill >= _FULL or (waits >= _PRESSED and fill >= _FULL / 2)

    def cpu(self, task: _TaskSpan) -> float | None:
        """Returns how many processors the process of the task used, or None if that is not known."""
        if task.now.worker is not None:
            found = next((each.cpu_percent for each in self.now.workers if each.worker == task.now.worker), None)
            return None if found is None else found / 100
        before, now = self.before.process.cpu_seconds, self.now.process.cpu_seconds
        return None if before is None or now is None or not task.seconds else (now - before) / task.seconds

    def cpus(self, task: _TaskSpan) -> float:
        """Returns the number of processors that the process of the task may use; infinite if that is not known."""
        known = self.now.process.cpus
        return float("inf") if known is None or task.now.worker is not None else float(known)

    # -- the candidates -------------------------------------------------------------------------------------------------

    def computing(self) -> Iterator[NarrowPlace]:
        """Yields tasks that compute all the time while rows wait for them."""
        for task in self.tasks:
            if task.load < _BUSY or task.shares["backpressured"] > _PRESSED or not (task.targets or task.fill is None):
                continue
            main, part = task.main_work()
            step = task.now.operators.get(main)
            function = step.function if step is not None and part >= _MAIN else ""
            if task.fill is None and not self._reads_on(task, bool(function)):
                continue
            if task.fill is not None and not self.pressed(task):
                continue
            yield self._skewed(task) or self._computes(task, main if part >= _MAIN else "", function)

    def _reads_on(self, task: _TaskSpan, calls: bool) -> bool:
        """Returns True if the source has more rows than the task could read: the source is bounded, or it lags behind.
        If the source does not tell, a task that mostly calls a function (`calls`) must have no time left.
        """
        if task.now.input.ends:
            return True
        return sum(task.lag.values()) > max(1, task.rows) if task.lag else calls and task.load >= _SPENT

    def _computes(self, task: _TaskSpan, main: str, function: str) -> NarrowPlace:
        behind = _behind(task.fill)
        contended = task.shares["contended"]
        cpu = self.cpu(task)
        beside = [each for each in self.tasks if each.now.worker == task.now.worker]
        others = None if cpu is None else max(0.0, cpu - task.shares["busy"])
        if others is not None and task.now.worker is not None:  # the threads of the exchange do not need the lock
            others = min(others, sum(each.shares["busy"] for each in beside if each is not task))
        if main.startswith("to "):
            stage = main.removeprefix("to ")
            return _place(
                task,
                Cause.SLOW_EXCHANGE,
                task.load,
                main,
                f"{task.name} is the narrow place: most of its work is to divide its rows among the tasks of {stage}{behind}",
                "fewer columns before that step (select), or a lower parallelism, makes the exchange cheaper",
            )
        waits = contended >= _PRESSED and contended >= task.shares["busy"] / 2
        if waits and cpu is not None and cpu >= _ALL * self.cpus(task):
            return _place(
                task,
                Cause.PROCESSORS,
                task.load,
                function or main,
                f"the processors are the narrow place: the app uses all of them, and {task.name} was ready to "
                f"compute and had to wait for one {_percent(contended)} of the time{behind}",
                "a machine with more processors"
                + (f"; {_WITHOUT_WORKERS}" if self.alone else ", or workers on several machines"),
            )
        # Other programs may leave the app only a part of a processor: of that, the other threads must have had a share.
        locked = others is not None and cpu is not None and cpu <= _ONE and others >= max(_OTHERS, _PRESSED * cpu)
        if waits and locked and task.wakes_for_lock:
            names = [each.name for each in beside if each.shares["contended"] >= _PRESSED / 2]
            said = _and(names[:3]) if len(names) > 1 else f"{task.name} and other threads"
            return _place(
                task,
                Cause.INTERPRETER_LOCK,
                task.load,
                function or main,
                f"the interpreter is the narrow place: {said} take turns with its lock, and {task.name} was ready to "
                f"compute and had to wait for it {_percent(contended)} of the time{behind}",
                "expressions in place of Python functions need no lock; "
                + (_WITHOUT_WORKERS if self.alone else "workers (--workers) have an interpreter each"),
            )
        if waits and task.queued >= max(_WAITS, 2 * task.shares["busy"]):
            return _place(
                task,
                Cause.PROCESSORS,
                task.queued,
                function or main,
                f"the processors are the narrow place: other programs use them, and {task.name} was ready to "
                f"compute and had to wait for one {_percent(task.queued)} of the time{behind}",
                "fewer programs on this machine"
                + (f"; {_WITHOUT_WORKERS}" if self.alone else ", or workers on others"),
            )
        slept = contended - min(task.queued, contended)
        if waits and slept >= _PRESSED:
            name = function or main or task.name
            return _place(
                task,
                Cause.SLOW_FUNCTION,
                slept,
                function or main,
                f"{task.name} is the narrow place: {name} sleeps or waits for something {_percent(slept)} of the time{behind}",
                f"map_async makes such calls at the same time; {self._more_subtasks(task)}",
            )
        if function:
            return _place(
                task,
                Cause.SLOW_FUNCTION,
                task.load,
                function,
                f"{task.name} is the narrow place: it {_computing(task)}, most of it in {function}{behind}",
                f"a faster function, as one over whole batches or an expression; {self._more_subtasks(task)}",
            )
        what = {"reading": "reading and decoding its rows", "cutting": "taking snapshots for checkpoints"}.get(
            main, main
        )
        return _place(
            task,
            Cause.SLOW_STEP,
            task.load,
            main,
            f"{task.name} is the narrow place: it {_computing(task)}"
            + (f", most of it in {what}" if what else "")
            + behind,
            "checkpoints less often" if main == "cutting" else f"less work in this step; {self._more_subtasks(task)}",
        )

    def _more_subtasks(self, task: _TaskSpan) -> str:
        """Returns the part of an advice that says how a task gets more subtasks, or why it gets none."""
        if self.alone:
            return _WITHOUT_WORKERS
        subtasks = [each for each in self.tasks if each.stage == task.stage]
        partitions = {name for each in subtasks for name in each.lag}
        input = task.now.input
        if not partitions or input.ends or len(subtasks) < len(partitions):  # the lag of files is not by partition
            return "or a higher parallelism with --workers"
        count = "1 partition" if len(partitions) == 1 else f"{len(partitions)} partitions"
        return f"or more partitions: topic {input.source} has {count}, so more workers do not help"

    def _skewed(self, task: _TaskSpan) -> NarrowPlace | None:
        """Returns a narrow place for the subtask if it has far more rows than the other subtasks of its stage, else
        None.
        """
        others = [each for each in self.tasks if each.stage == task.stage and each is not task]
        if not others or task.fill is None or not self._by_key(task.stage):
            return None
        rows = median(each.rows for each in others)
        if task.rows < _SKEW * max(rows, 1) or median(each.load for each in others) > task.load / 1.5:
            return None
        times = f"{task.rows / rows:.0f} times as many" if rows else "all"
        return _place(
            task,
            Cause.HOT_KEY,
            task.load,
            "",
            f"{task.name} is the narrow place: few keys have most rows, so it gets {times} rows as the other subtasks of "
            f"{task.stage}, and {_computing(task)}{_behind(task.fill)}",
            "combine rows of a key before this step (two aggregations), or a further key column",
        )

    def _by_key(self, stage: str) -> bool:
        return any(edge.to == stage and edge.keys for each in self.senders.get(stage, ()) for edge in each.targets)

    def sinks(self) -> Iterator[NarrowPlace]:
        """Yields the tasks of sinks that wait for their receivers, or compute, while rows wait for them."""
        for task in self.tasks:
            if task.targets or task.fill is None or not self.pressed(task):
                continue
            waits = task.shares["backpressured"]
            if waits + task.load < _BUSY or waits < task.load / 2:
                if task.load >= _BUSY:
                    yield self._computes(task, next(iter(task.now.operators), ""), "")
                continue
            cuts = (task.now.cut_seconds_total - task.before.cut_seconds_total) / task.seconds
            does = "its commits take" if cuts >= waits / 2 else "its receiver takes"
            yield _place(
                task,
                Cause.SLOW_SINK,
                waits,
                next(iter(task.now.operators), ""),
                f"sink {task.name} is the narrow place: {does} {_percent(waits)} of the time{_behind(task.fill)}",
                "checkpoints less often" if cuts >= waits / 2 else "a faster receiver, or larger batches into it",
            )
        for name, (was, sink) in _both(self.before.sinks, self.now.sinks):
            if sink.time:
                thread, fill = _ThreadSpan(f"sink {name}", was, sink), sink.channel.fill
                if thread.shares["backpressured"] >= _WAITS and (fill >= _FULL or sink.waiting):
                    share = thread.shares["backpressured"]
                    yield NarrowPlace(
                        thread.name,
                        Cause.SLOW_SINK,
                        share,
                        fill,
                        name,
                        f"{thread.name} is the narrow place: its receiver takes {_percent(share)} of the time, and agents "
                        "wait for room",
                        "a faster receiver, or larger batches into it",
                    )
        readers = [task for task in self.tasks if task.fill is None and task.shares["backpressured"] >= _WAITS]
        if readers and not any((edge.fill or 0.0) >= _FULL for task in readers for edge in task.targets):
            for track, (_, figures) in _both(self.before.delivery, self.now.delivery):
                if figures.undelivered_rows:
                    share = max(task.shares["backpressured"] for task in readers)
                    yield NarrowPlace(
                        track,
                        Cause.SLOW_SINK,
                        share,
                        None,
                        figures.sink,
                        f"the delivery into sink {figures.sink} is the narrow place: {figures.undelivered_rows:,} rows "
                        f"wait for it, and the sources have waited {_percent(share)} of the time",
                        "a faster receiver; the rows that wait are safe in checkpoints",
                    )

    def waiting(self) -> Iterator[NarrowPlace]:
        """Yields tasks whose calls on the event loop are at their limit."""
        for task in self.tasks:
            if task.shares["waiting"] < _WAITS:
                continue
            for id, (before, now) in _both(task.before.operators, task.now.operators):
                if now.limit is not None and now.in_flight + 1e-9 >= _MAIN * now.limit:
                    yield self._calls(task, now.function or id, before, now, task.fill)

    def _calls(
        self, task: _ThreadSpan, name: str, before: CallLoad, now: CallLoad, fill: float | None, agent: str = ""
    ) -> NarrowPlace:
        """Returns the narrow place of a task whose calls are at their limit. `name`: the step or agent that makes
        them. `before`, `now`: its figures in both readings. `fill`: how full the queue before it is. `agent`: the id of
        the agent, or "" for a step.
        """
        share, who = task.shares["waiting"], f"agent {agent}" if agent else task.name
        place = agent or task.name
        ended, seconds = now.attempts - before.attempts, now.attempt_seconds - before.attempt_seconds
        each = f", {seconds / ended:.2g} s each" if ended > 0 else ""
        of = "" if agent else f" of {name}"
        behind = f", and {now.rows:,} records wait" if agent else _behind(fill)
        refused = now.overloads - before.overloads
        for engine, (was, figures) in _both(self.before.engines, self.now.engines):
            overloads = figures.overloads - was.overloads
            refused += overloads
            if overloads > 0 or figures.waiting:
                turned = f"{overloads} calls were turned away (429)"
                waits = f"{figures.waiting} calls wait for its limit of {figures.limit}"
                return NarrowPlace(
                    place,
                    Cause.MODEL_LIMIT,
                    share,
                    fill,
                    engine,
                    f"the limit of model {engine} is the narrow place: {turned if overloads > 0 else waits}, "
                    f"and {who} waits for its calls {_percent(share)} of the time",
                    "a higher limit at the provider, a fallback model, or a cache",
                )
        if refused > 0:
            return NarrowPlace(
                place,
                Cause.MODEL_LIMIT,
                share,
                fill,
                name,
                f"the service behind {name} is the narrow place: it turned {refused} calls away, and {who} waits for calls "
                f"{_percent(share)} of the time",
                "a higher limit at the service, or rate= so that fewer calls are turned away",
            )
        return NarrowPlace(
            place,
            Cause.SLOW_FUNCTION,
            share,
            fill,
            name,
            f"{who} is the narrow place: it waits {_percent(share)} of the time for calls{of} ({now.in_flight} of "
            f"{now.limit} run{each}){behind}",
            "a higher concurrency=, if what is called allows it",
        )

    def aligning(self, narrow: Set[str]) -> Iterator[NarrowPlace]:
        """Yields tasks that wait for barriers on one input while another one is held. If the task before that input has no
        time left, or is a narrow place itself (`narrow`: their tasks) or about to be one, late barriers are a consequence,
        and the narrow place is there or further on.
        """
        for task in self.tasks:
            share = task.shares["aligning"]
            if share < _ALIGNS or task.fill is None or not task.rows or task.now.input.inputs < 2:
                continue
            late = task.late()
            name = max(late, key=lambda each: late[each], default="")
            slow = next((each for each in self.tasks if each.name == name), None)
            if slow is not None and (slow.name in narrow or self._has_no_time(slow)):
                continue
            which = f", {name}" if name else ""
            if slow is not None and slow.load >= _ALIGNS:
                which += f", which {_computing(slow)}"
            yield _place(
                task,
                Cause.SLOW_ALIGNMENT,
                share,
                name,
                f"{task.name} waits {_percent(share)} of the time for the barrier of a checkpoint on its slowest input{which}",
                "checkpoints less often, or smaller batches in the slow input",
            )

    def _has_no_time(self, task: _TaskSpan) -> bool:
        """Returns True if the task has no time left, or little while its input fills, as it does at first before it is full."""
        return task.load + task.shares["backpressured"] >= _SPENT or (
            task.load >= _BUSY and (task.fill or 0.0) >= _FULL / 2
        )

    def exchanges(self) -> Iterator[NarrowPlace]:
        """Yields tasks that wait for a channel to another process, whose reader has room."""
        for task in self.tasks:
            share = task.shares["backpressured"]
            if share < _WAITS or task.now.worker is None:
                continue
            for edge in task.targets:
                readers = [each for each in self.tasks if each.stage == edge.to]
                if (edge.fill or 0.0) >= _FULL and readers and all(self._awaits(each, task) for each in readers):
                    yield _place(
                        task,
                        Cause.SLOW_EXCHANGE,
                        share,
                        edge.to,
                        f"the exchange from {task.name} to {edge.to} is the narrow place: its channel is full, and the tasks "
                        "behind it have room",
                        "fewer columns before the exchange (select), or a faster network between the workers",
                    )

    def _awaits(self, reader: _TaskSpan, sender: _TaskSpan) -> bool:
        """Returns True if the reader has time left, and waits for rows or for the barriers of the sender."""
        late = reader.late().get(sender.name, 0.0)
        return reader.load < _BUSY / 2 and max(reader.shares["idle"], late / reader.seconds) >= _PRESSED

    def agents(self) -> Iterator[NarrowPlace]:
        """Yields agents that are at their limit of calls while rows wait, and an event loop that is always busy."""
        tasks = [_ThreadSpan(name, *each) for name, each in _both(self.before.agent_tasks, self.now.agent_tasks)]
        waits = max(tasks, key=lambda task: task.shares["waiting"] + task.load, default=None)
        if waits is None or not waits.seconds:
            return
        share = min(1.0, waits.shares["waiting"] + waits.load)
        if share < _WAITS or waits.shares["backpressured"] > _PRESSED:
            return
        for id, (before, now) in _both(self.before.operators, self.now.operators):
            if now.limit is None or now.rows <= now.in_flight:
                continue
            seconds = now.attempt_seconds - before.attempt_seconds
            alone = now.limit > 1 and now.in_flight <= 1 and seconds <= _ALONE * waits.seconds
            if alone and seconds >= _BUSY * waits.seconds:
                yield NarrowPlace(
                    id,
                    Cause.SLOW_FUNCTION,
                    min(1.0, seconds / waits.seconds),
                    now.fill,
                    id,
                    f"agent {id} is the narrow place: its function holds the event loop, so its calls run one after the other, and "
                    f"{now.rows:,} records wait",
                    "await in the function, asyncio.to_thread(…) for what computes, or batch=True",
                )
            elif now.in_flight >= _MAIN * now.limit:
                yield self._calls(waits, f"agent {id}", before, now, now.fill, id)

    def partitions(self) -> Iterator[NarrowPlace]:
        """Yields sources most of whose unread rows are in one partition."""
        for task in self.tasks:
            lag = task.lag
            if len(lag) < 2 or sum(lag.values()) <= max(1, task.rows):
                continue
            name, rows = max(lag.items(), key=lambda each: each[1])
            if rows >= _LAGS * sum(lag.values()):
                yield _place(
                    task,
                    Cause.SLOW_PARTITION,
                    rows / sum(lag.values()),
                    name,
                    f"partition {name} is behind: it has {_percent(rows / sum(lag.values()))} of the {sum(lag.values()):,} unread rows "
                    f"of {task.name}, and the other partitions have been read",
                    "records with a key that spreads them over all partitions",
                )

    def starved(self) -> Iterator[NarrowPlace]:
        """Yields sources that have unread rows and deliver them too slowly, while every task has time left."""
        for task in self.tasks:
            figures, before = task.now.input, task.before.input
            if task.fill is not None or task.shares["idle"] < _BUSY or figures.exhausted or figures.ahead:
                continue
            overdue = figures.overdue_seconds - before.overdue_seconds
            lags = [lag_of(each) or 0 for each in (before, figures)]
            behind = min(lags) > max(1, task.rows)
            if behind or figures.ends or overdue >= _WAITS * task.seconds:
                why = f", and has {lags[1]:,} unread rows" if behind else ""
                source = figures.source or "its source"
                yield _place(
                    task,
                    Cause.STARVED_SOURCE,
                    task.shares["idle"],
                    source,
                    f"source {source} is the narrow place: {task.name} waits {_percent(task.shares['idle'])} of the time for rows of "
                    f"it{why}; every step has time left",
                    "more readers or partitions of this source, or a faster one",
                )


def _place(task: _TaskSpan, cause: Cause, share: float, step: str, sentence: str, advice: str) -> NarrowPlace:
    return NarrowPlace(task.name, cause, min(1.0, share), task.fill, step, sentence, advice)


def _both(before: Mapping[str, _T], now: Mapping[str, _T]) -> list[tuple[str, tuple[_T, _T]]]:
    return [(name, (before[name], now[name])) for name in now if name in before]


def _stage(task: str) -> str:
    stage, slash, number = task.rpartition("/")
    return stage if slash and number.isdigit() else task


def _behind(fill: float | None) -> str:
    """Returns the part of a sentence that says what waits for a task whose input is so full; None: it reads a source."""
    if fill is None:
        return "; the tasks behind it wait"
    return f"; its input is {'full' if fill >= 0.9 else f'{_percent(fill)} full'}, and the tasks before it wait"


def _computing(task: _TaskSpan) -> str:
    """Returns the part of a sentence that says for how long a task computed, or was ready to compute."""
    if task.shares["contended"] < _PRESSED / 3:
        return f"computes {_percent(task.load)} of the time"
    waited = _percent(task.shares["contended"])
    return f"computes {_percent(task.shares['busy'])} of the time, and is contended (could compute, but has to wait) {waited}"


def _percent(share: float) -> str:
    return f"{round(100 * min(share, 1.0))} %"


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
