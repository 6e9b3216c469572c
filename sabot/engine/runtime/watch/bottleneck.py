"""The narrow place of a running app in words: the task that sets the pace of everything else, and why.

`narrow_places` compares two readings of an app's figures that are some seconds apart. It is a pure function, so any
viewer can call it: the command line, a page, a log.

A task is a candidate if its own time is used up and rows wait for it: its input is full, or the tasks before it wait
for room. A task that itself waits for room is none, because the place is further on. What it does with its time is
the cause. An app whose tasks have time left, or whose inputs are empty, has no narrow place.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from sabot.base.figures import AppFigures, CallLoad
from sabot.engine.runtime.watch import narrow_words as words
from sabot.engine.runtime.watch.app_rates import lag_of
from sabot.engine.runtime.watch.spans import AppSpan, TaskSpan, ThreadSpan, both, stage_of

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
    app = _Rules(before, now)
    found = [*app.sinks(), *app.computing(), *app.waiting(), *app.exchanges(), *app.agents()]
    found += app.aligning({place.task for place in found})
    found = sorted(found, key=lambda place: -place.share)
    causes: set[tuple[str, Cause]] = set()
    rank = []
    for place in found:  # subtasks of one stage with one cause are one place, and so are all that wait for the lock
        key = "" if place.cause in _SHARED else stage_of(place.task), place.cause
        if key not in causes:
            causes.add(key)
            rank.append(place)
    return (rank or [*app.partitions()] or [*app.starved()])[:_MOST]


def in_one_process(figures: AppFigures) -> bool:
    """Returns True if the app cannot have workers because its topics are at memory://, in its own process."""
    return figures.broker.topics > 0


class _Rules:
    """The rules that find narrow places among the tasks of an app."""

    def __init__(self, before: AppFigures, now: AppFigures) -> None:
        self._app = AppSpan(before, now)
        self._tasks = self._app.tasks
        self._alone = in_one_process(now)

    def computing(self) -> Iterator[NarrowPlace]:
        """Yields tasks that compute all the time while rows wait for them."""
        for task in self._tasks:
            if task.load < _BUSY or task.shares["backpressured"] > _PRESSED or not (task.targets or task.fill is None):
                continue
            main, part = task.main_work()
            step = task.now.operators.get(main)
            function = step.function if step is not None and part >= _MAIN else ""
            if task.fill is None and not self._reads_on(task, bool(function)):
                continue
            if task.fill is not None and not self._pressed(task):
                continue
            yield self._skewed(task) or self._computes(task, main if part >= _MAIN else "", function)

    def _pressed(self, task: TaskSpan) -> bool:
        """Returns True if rows wait for the task: its input is full, and the tasks before it wait for room."""
        fill = task.fill or 0.0
        return fill >= _FULL or (self._app.backpressured_before(task) >= _PRESSED and fill >= _FULL / 2)

    def _reads_on(self, task: TaskSpan, calls: bool) -> bool:
        """Returns True if the source has more rows than the task could read: the source is bounded, or it lags behind.
        If the source does not tell, a task that mostly calls a function (`calls`) must have no time left.
        """
        if task.now.input.ends:
            return True
        return sum(task.lag.values()) > max(1, task.rows) if task.lag else calls and task.load >= _SPENT

    def _computes(self, task: TaskSpan, main: str, function: str) -> NarrowPlace:
        if main.startswith("to "):
            divides = words.divides_rows(task, main.removeprefix("to "))
            return _place(task, Cause.SLOW_EXCHANGE, task.load, main, divides)
        step, contended = function or main, task.shares["contended"]
        if contended >= _PRESSED and contended >= task.shares["busy"] / 2:
            cpu = self._app.cpu(task)
            if cpu is not None and cpu >= _ALL * self._app.cpus(task):
                return _place(task, Cause.PROCESSORS, task.load, step, words.all_processors(task, self._alone))
            if cpu is not None and self._is_locked(task, cpu):
                waiting = [each.name for each in self._beside(task) if each.shares["contended"] >= _PRESSED / 2]
                takes_turns = words.interpreter_lock(task, waiting, self._alone)
                return _place(task, Cause.INTERPRETER_LOCK, task.load, step, takes_turns)
            if task.queued >= max(_WAITS, 2 * task.shares["busy"]):
                return _place(task, Cause.PROCESSORS, task.queued, step, words.other_programs(task, self._alone))
            slept = contended - min(task.queued, contended)
            if slept >= _PRESSED:
                sleeps = words.sleeps(task, step or task.name, slept, self._more_subtasks(task))
                return _place(task, Cause.SLOW_FUNCTION, slept, step, sleeps)
        if function:
            said = words.slow_function(task, function, self._more_subtasks(task))
            return _place(task, Cause.SLOW_FUNCTION, task.load, function, said)
        return _place(task, Cause.SLOW_STEP, task.load, main, words.slow_step(task, main, self._more_subtasks(task)))

    def _beside(self, task: TaskSpan) -> list[TaskSpan]:
        return [each for each in self._tasks if each.now.worker == task.now.worker]

    def _is_locked(self, task: TaskSpan, cpu: float) -> bool:
        """Returns True if other threads had the interpreter's lock while the task waited. `cpu`: processors that its process used."""
        others = max(0.0, cpu - task.shares["busy"])
        if task.now.worker is not None:  # the threads of the exchange do not need the lock
            others = min(others, sum(each.shares["busy"] for each in self._beside(task) if each is not task))
        # Other programs may leave the app only a part of a processor: of that, the other threads must have had a share.
        return cpu <= _ONE and others >= max(_OTHERS, _PRESSED * cpu) and task.wakes_for_lock

    def _more_subtasks(self, task: TaskSpan) -> str:
        subtasks = [each for each in self._tasks if each.stage == task.stage]
        return words.more_subtasks(task, subtasks, self._alone)

    def _skewed(self, task: TaskSpan) -> NarrowPlace | None:
        """Returns a narrow place for the subtask if it has far more rows than the other subtasks of its stage, else
        None.
        """
        others = [each for each in self._tasks if each.stage == task.stage and each is not task]
        if not others or task.fill is None or not self._app.divides_by_key(task.stage):
            return None
        rows = median(each.rows for each in others)
        if task.rows < _SKEW * max(rows, 1) or median(each.load for each in others) > task.load / 1.5:
            return None
        return _place(task, Cause.HOT_KEY, task.load, "", words.hot_key(task, rows))

    def sinks(self) -> Iterator[NarrowPlace]:
        """Yields the tasks of sinks that wait for their receivers, or compute, while rows wait for them."""
        for task in self._tasks:
            if task.targets or task.fill is None or not self._pressed(task):
                continue
            waits, step = task.shares["backpressured"], next(iter(task.now.operators), "")
            if waits + task.load >= _BUSY and waits >= task.load / 2:
                cuts = (task.now.cut_seconds_total - task.before.cut_seconds_total) / task.seconds
                yield _place(task, Cause.SLOW_SINK, waits, step, words.slow_sink(task, cuts >= waits / 2))
            elif task.load >= _BUSY:
                yield self._computes(task, step, "")
        for name, (was, sink) in both(self._app.before.sinks, self._app.now.sinks):
            if sink.time:
                thread, fill = ThreadSpan(f"sink {name}", was, sink), sink.channel.fill
                share = thread.shares["backpressured"]
                if share >= _WAITS and (fill >= _FULL or sink.waiting):
                    said = words.slow_sink_of_agents(thread.name, share)
                    yield NarrowPlace(thread.name, Cause.SLOW_SINK, share, fill, name, *said)
        readers = [task for task in self._tasks if task.fill is None and task.shares["backpressured"] >= _WAITS]
        if readers and not any((edge.fill or 0.0) >= _FULL for task in readers for edge in task.targets):
            share = max(task.shares["backpressured"] for task in readers)
            for track, (_, figures) in both(self._app.before.delivery, self._app.now.delivery):
                if figures.undelivered_rows:
                    said = words.slow_delivery(figures, share)
                    yield NarrowPlace(track, Cause.SLOW_SINK, share, None, figures.sink, *said)

    def waiting(self) -> Iterator[NarrowPlace]:
        """Yields tasks whose calls on the event loop are at their limit."""
        for task in self._tasks:
            if task.shares["waiting"] < _WAITS:
                continue
            for id, (before, now) in both(task.before.operators, task.now.operators):
                if now.limit is not None and now.in_flight + 1e-9 >= _MAIN * now.limit:
                    yield self._calls(task, now.function or id, before, now, task.fill)

    def _calls(
        self, task: ThreadSpan, name: str, before: CallLoad, now: CallLoad, fill: float | None, agent: str = ""
    ) -> NarrowPlace:
        """Returns the narrow place of a task whose calls are at their limit. `name`: the step or agent that makes
        them. `before`, `now`: its figures in both readings. `fill`: how full the queue before it is. `agent`: the id of
        the agent, or "" for a step.
        """
        share, place, who = task.shares["waiting"], agent or task.name, f"agent {agent}" if agent else task.name
        refused = now.overloads - before.overloads
        for engine, (was, figures) in both(self._app.before.engines, self._app.now.engines):
            overloads = figures.overloads - was.overloads
            refused += overloads
            if overloads > 0 or figures.waiting:
                said = words.model_limit(engine, figures, overloads, who, share)
                return NarrowPlace(place, Cause.MODEL_LIMIT, share, fill, engine, *said)
        if refused > 0:
            said = words.service_limit(name, refused, who, share)
            return NarrowPlace(place, Cause.MODEL_LIMIT, share, fill, name, *said)
        said = words.slow_calls(before, now, who, "" if agent else name, share, fill)
        return NarrowPlace(place, Cause.SLOW_FUNCTION, share, fill, name, *said)

    def aligning(self, narrow: Set[str]) -> Iterator[NarrowPlace]:
        """Yields tasks that wait for barriers on one input while another one is held. If the task before that input has no
        time left, or is a narrow place itself (`narrow`: their tasks) or about to be one, late barriers are a consequence,
        and the narrow place is there or further on.
        """
        for task in self._tasks:
            share = task.shares["aligning"]
            if share < _ALIGNS or task.fill is None or not task.rows or task.now.input.inputs < 2:
                continue
            late = task.late()
            name = max(late, key=lambda each: late[each], default="")
            slow = next((each for each in self._tasks if each.name == name), None)
            if slow is not None and (slow.name in narrow or self._has_no_time(slow)):
                continue
            told = slow if slow is not None and slow.load >= _ALIGNS else None
            yield _place(task, Cause.SLOW_ALIGNMENT, share, name, words.slow_alignment(task, name, told))

    def _has_no_time(self, task: TaskSpan) -> bool:
        """Returns True if the task has no time left, or little while its input fills, as it does at first before it is full."""
        return task.load + task.shares["backpressured"] >= _SPENT or (
            task.load >= _BUSY and (task.fill or 0.0) >= _FULL / 2
        )

    def exchanges(self) -> Iterator[NarrowPlace]:
        """Yields tasks that wait for a channel to another process, whose reader has room."""
        for task in self._tasks:
            share = task.shares["backpressured"]
            if share < _WAITS or task.now.worker is None:
                continue
            for edge in task.targets:
                readers = [each for each in self._tasks if each.stage == edge.to]
                if (edge.fill or 0.0) >= _FULL and readers and all(self._awaits(each, task) for each in readers):
                    yield _place(task, Cause.SLOW_EXCHANGE, share, edge.to, words.slow_exchange(task, edge.to))

    def _awaits(self, reader: TaskSpan, sender: TaskSpan) -> bool:
        """Returns True if the reader has time left, and waits for rows or for the barriers of the sender."""
        late = reader.late().get(sender.name, 0.0)
        return reader.load < _BUSY / 2 and max(reader.shares["idle"], late / reader.seconds) >= _PRESSED

    def agents(self) -> Iterator[NarrowPlace]:
        """Yields agents that are at their limit of calls while rows wait, and an event loop that is always busy."""
        tasks = both(self._app.before.agent_tasks, self._app.now.agent_tasks)
        spans = [ThreadSpan(name, *each) for name, each in tasks]
        waits = max(spans, key=lambda task: task.shares["waiting"] + task.load, default=None)
        if waits is None or not waits.seconds:
            return
        share = min(1.0, waits.shares["waiting"] + waits.load)
        if share < _WAITS or waits.shares["backpressured"] > _PRESSED:
            return
        for id, (before, now) in both(self._app.before.operators, self._app.now.operators):
            if now.limit is None or now.rows <= now.in_flight:
                continue
            seconds = now.attempt_seconds - before.attempt_seconds
            alone = now.limit > 1 and now.in_flight <= 1 and seconds <= _ALONE * waits.seconds
            if alone and seconds >= _BUSY * waits.seconds:
                held, said = min(1.0, seconds / waits.seconds), words.held_event_loop(id, now.rows)
                yield NarrowPlace(id, Cause.SLOW_FUNCTION, held, now.fill, id, *said)
            elif now.in_flight >= _MAIN * now.limit:
                yield self._calls(waits, f"agent {id}", before, now, now.fill, id)

    def partitions(self) -> Iterator[NarrowPlace]:
        """Yields sources most of whose unread rows are in one partition."""
        for task in self._tasks:
            unread = sum(task.lag.values())
            if len(task.lag) < 2 or unread <= max(1, task.rows):
                continue
            name, rows = max(task.lag.items(), key=lambda each: each[1])
            if rows >= _LAGS * unread:
                share = rows / unread
                yield _place(task, Cause.SLOW_PARTITION, share, name, words.slow_partition(task, name, share))

    def starved(self) -> Iterator[NarrowPlace]:
        """Yields sources that have unread rows and deliver them too slowly, while every task has time left."""
        for task in self._tasks:
            figures, before = task.now.input, task.before.input
            if task.fill is not None or task.shares["idle"] < _BUSY or figures.exhausted or figures.ahead:
                continue
            overdue = figures.overdue_seconds - before.overdue_seconds
            lags = [lag_of(each) or 0 for each in (before, figures)]
            behind = min(lags) > max(1, task.rows)
            if behind or figures.ends or overdue >= _WAITS * task.seconds:
                source = figures.source or "its source"
                said = words.starved_source(task, source, lags[1] if behind else None)
                yield _place(task, Cause.STARVED_SOURCE, task.shares["idle"], source, said)


def _place(task: TaskSpan, cause: Cause, share: float, step: str, said: words.Words) -> NarrowPlace:
    return NarrowPlace(task.name, cause, min(1.0, share), task.fill, step, *said)
