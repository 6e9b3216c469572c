"""The narrow places of an app in words: for each rule of `bottleneck` a sentence, and what would help."""

from collections.abc import Sequence

from sabot.base.figures import CallLoad, EngineFigures, TrackFigures
from sabot.engine.runtime.watch.spans import TaskSpan

Words = tuple[str, str]  # the sentence, and what would help

_WITHOUT_WORKERS = "workers need topics in Kafka: those at memory:// are in this process"
_CONTENDED = 0.1  # the share of contended time from which on it is told
_ALMOST_FULL = 0.9


def divides_rows(task: TaskSpan, stage: str) -> Words:
    return (
        f"{task.name} is the narrow place: most of its work is to divide its rows among the tasks of {stage}{_behind(task.fill)}",
        "fewer columns before that step (select), or a lower parallelism, makes the exchange cheaper",
    )


def all_processors(task: TaskSpan, alone: bool) -> Words:
    return (
        f"the processors are the narrow place: the app uses all of them, and {task.name} was ready to "
        f"compute and had to wait for one {_percent(task.shares['contended'])} of the time{_behind(task.fill)}",
        f"a machine with more processors{f'; {_WITHOUT_WORKERS}' if alone else ', or workers on several machines'}",
    )


def interpreter_lock(task: TaskSpan, waiting: Sequence[str], alone: bool) -> Words:
    """`waiting`: the names of the tasks that wait for the lock."""
    names = waiting[:3]
    said = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else f"{task.name} and other threads"
    return (
        f"the interpreter is the narrow place: {said} take turns with its lock, and {task.name} was ready to "
        f"compute and had to wait for it {_percent(task.shares['contended'])} of the time{_behind(task.fill)}",
        "expressions in place of Python functions need no lock; "
        + (_WITHOUT_WORKERS if alone else "workers (--workers) have an interpreter each"),
    )


def other_programs(task: TaskSpan, alone: bool) -> Words:
    return (
        f"the processors are the narrow place: other programs use them, and {task.name} was ready to "
        f"compute and had to wait for one {_percent(task.queued)} of the time{_behind(task.fill)}",
        f"fewer programs on this machine{f'; {_WITHOUT_WORKERS}' if alone else ', or workers on others'}",
    )


def sleeps(task: TaskSpan, name: str, share: float, more_subtasks: str) -> Words:
    return (
        f"{task.name} is the narrow place: {name} sleeps or waits for something {_percent(share)} of the time{_behind(task.fill)}",
        f"map_async makes such calls at the same time; {more_subtasks}",
    )


def slow_function(task: TaskSpan, function: str, more_subtasks: str) -> Words:
    return (
        f"{task.name} is the narrow place: it {_computing(task)}, most of it in {function}{_behind(task.fill)}",
        f"a faster function, as one over whole batches or an expression; {more_subtasks}",
    )


def slow_step(task: TaskSpan, main: str, more_subtasks: str) -> Words:
    what = {"reading": "reading and decoding its rows", "cutting": "taking snapshots for checkpoints"}.get(main, main)
    most = f", most of it in {what}" if what else ""
    return (
        f"{task.name} is the narrow place: it {_computing(task)}{most}{_behind(task.fill)}",
        "checkpoints less often" if main == "cutting" else f"less work in this step; {more_subtasks}",
    )


def more_subtasks(task: TaskSpan, subtasks: Sequence[TaskSpan], alone: bool) -> str:
    """Returns the part of an advice that says how a task gets more subtasks, or why it gets none."""
    if alone:
        return _WITHOUT_WORKERS
    partitions = {name for each in subtasks for name in each.lag}
    input = task.now.input
    if not partitions or input.ends or len(subtasks) < len(partitions):  # the lag of files is not by partition
        return "or a higher parallelism with --workers"
    count = "1 partition" if len(partitions) == 1 else f"{len(partitions)} partitions"
    return f"or more partitions: topic {input.source} has {count}, so more workers do not help"


def hot_key(task: TaskSpan, rows: float) -> Words:
    """`rows`: those of another subtask."""
    times = f"{task.rows / rows:.0f} times as many" if rows else "all"
    return (
        f"{task.name} is the narrow place: few keys have most rows, so it gets {times} rows as the other subtasks of "
        f"{task.stage}, and {_computing(task)}{_behind(task.fill)}",
        "combine rows of a key before this step (two aggregations), or a further key column",
    )


def slow_sink(task: TaskSpan, in_commits: bool) -> Words:
    does = "its commits take" if in_commits else "its receiver takes"
    return (
        f"sink {task.name} is the narrow place: {does} {_percent(task.shares['backpressured'])} of the time{_behind(task.fill)}",
        "checkpoints less often" if in_commits else "a faster receiver, or larger batches into it",
    )


def slow_sink_of_agents(name: str, share: float) -> Words:
    return (
        f"{name} is the narrow place: its receiver takes {_percent(share)} of the time, and agents wait for room",
        "a faster receiver, or larger batches into it",
    )


def slow_delivery(track: TrackFigures, share: float) -> Words:
    return (
        f"the delivery into sink {track.sink} is the narrow place: {track.undelivered_rows:,} rows "
        f"wait for it, and the sources have waited {_percent(share)} of the time",
        "a faster receiver; the rows that wait are safe in checkpoints",
    )


def model_limit(engine: str, figures: EngineFigures, overloads: int, who: str, share: float) -> Words:
    """`overloads`: calls that were turned away between the readings."""
    turned = f"{overloads} calls were turned away (429)"
    waits = f"{figures.waiting} calls wait for its limit of {figures.limit}"
    return (
        f"the limit of model {engine} is the narrow place: {turned if overloads > 0 else waits}, "
        f"and {who} waits for its calls {_percent(share)} of the time",
        "a higher limit at the provider, a fallback model, or a cache",
    )


def service_limit(name: str, refused: int, who: str, share: float) -> Words:
    return (
        f"the service behind {name} is the narrow place: it turned {refused} calls away, and {who} waits for calls "
        f"{_percent(share)} of the time",
        "a higher limit at the service, or rate= so that fewer calls are turned away",
    )


def slow_calls(before: CallLoad, now: CallLoad, who: str, of: str, share: float, fill: float | None) -> Words:
    """`of`: the function, or "" of an agent."""
    ended, seconds = now.attempts - before.attempts, now.attempt_seconds - before.attempt_seconds
    each = f", {seconds / ended:.2g} s each" if ended > 0 else ""
    return (
        f"{who} is the narrow place: it waits {_percent(share)} of the time for calls{f' of {of}' if of else ''} ({now.in_flight} of "
        f"{now.limit} run{each}){_behind(fill) if of else f', and {now.rows:,} records wait'}",
        "a higher concurrency=, if what is called allows it",
    )


def slow_alignment(task: TaskSpan, name: str, slow: TaskSpan | None) -> Words:
    """`name`: the task whose barriers are late, or "". `slow`: that task, if what it does is worth telling."""
    which = f", {name}" if name else ""
    if slow is not None:
        which += f", which {_computing(slow)}"
    share = _percent(task.shares["aligning"])
    return (
        f"{task.name} waits {share} of the time for the barrier of a checkpoint on its slowest input{which}",
        "checkpoints less often, or smaller batches in the slow input",
    )


def slow_exchange(task: TaskSpan, to: str) -> Words:
    return (
        f"the exchange from {task.name} to {to} is the narrow place: its channel is full, and the tasks behind it have room",
        "fewer columns before the exchange (select), or a faster network between the workers",
    )


def held_event_loop(agent: str, rows: int) -> Words:
    return (
        f"agent {agent} is the narrow place: its function holds the event loop, so its calls run one after the other, and "
        f"{rows:,} records wait",
        "await in the function, asyncio.to_thread(…) for what computes, or batch=True",
    )


def slow_partition(task: TaskSpan, name: str, share: float) -> Words:
    return (
        f"partition {name} is behind: it has {_percent(share)} of the {sum(task.lag.values()):,} unread rows "
        f"of {task.name}, and the other partitions have been read",
        "records with a key that spreads them over all partitions",
    )


def starved_source(task: TaskSpan, source: str, unread: float | None) -> Words:
    """`unread`: its rows, or None if it is not behind."""
    why = "" if unread is None else f", and has {unread:,} unread rows"
    return (
        f"source {source} is the narrow place: {task.name} waits {_percent(task.shares['idle'])} of the time for rows of "
        f"it{why}; every step has time left",
        "more readers or partitions of this source, or a faster one",
    )


def _behind(fill: float | None) -> str:
    """Returns the part of a sentence that says what waits for a task whose input is so full; None: it reads a source."""
    if fill is None:
        return "; the tasks behind it wait"
    full = "full" if fill >= _ALMOST_FULL else f"{_percent(fill)} full"
    return f"; its input is {full}, and the tasks before it wait"


def _computing(task: TaskSpan) -> str:
    """Returns the part of a sentence that says for how long a task computed, or was ready to compute."""
    if task.shares["contended"] < _CONTENDED:
        return f"computes {_percent(task.load)} of the time"
    waited = _percent(task.shares["contended"])
    return f"computes {_percent(task.shares['busy'])} of the time, and is contended (could compute, but has to wait) {waited}"


def _percent(share: float) -> str:
    return f"{round(100 * min(share, 1.0))} %"
