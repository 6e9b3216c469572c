"""The figures of a running app: which exist, what they count, and in which unit.

Each part of an app tells its own by name (`statistics()`, the classes `Told…`) and leaves out the names that it does not have.
`App.statistics` gives all of them to users as one dict, and workers send them to each other. All that looks at an app reads the
structs, which `AppFigures.of` makes of that dict: rates, the narrow place, `sabot top`, the console, the summary of a run. What an app does
not tell has its default; a name that no struct has is left out.

A figure is added here, where it is counted, and where it is shown. A count of a step with a line in `STEP_COUNTS` is shown by `sabot top`,
on the console and to Prometheus, and needs no more: its operator tells it, or the link that counts for all operators (`tasks.chain`).

A count begins with the run unless it says otherwise, and can go back between two readings only by a restart. Names that end in `_ms` have
milliseconds, and those that end in `seconds` floats.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec

from sabot.base.quantities import bytes_words, duration_words

if TYPE_CHECKING:  # dicts when the program runs: making these classes would cost each start a millisecond

    class ToldStep(TypedDict, total=False):
        """A step of a stream in one subtask. The link around its operator tells the first six, and the operator all others."""

        seconds: float  # its work, without waits
        watermark_ms: int | None
        state_keys: int  # keys with state, or rows of a step that keeps rows; an estimate, as the next
        state_bytes: int
        rows_in: int
        rows_out: int
        function: str  # the user's, that it calls
        sink: str  # that it writes

        # Calls of the function, and its timers
        in_flight: int
        limit: int  # the calls that may be in flight
        attempts: int  # that have ended, with repetitions
        attempt_seconds: float  # the sum of their times
        running_seconds: float  # the sum of the times so far of those that run
        retries: int  # attempts after a failure
        timeouts: int  # attempts that took longer than `timeout=`
        overloads: int  # attempts that the receiver turned away (429)
        calls: int  # that have begun
        failed_calls: int  # after all attempts
        timers: int  # that are set
        timers_fired: int

        # Rows that were not handed on
        late_rows: int  # over restarts, as all about late rows
        late_p50_ms: int  # quantiles are at most a fifth too high; they and the next are told if there are late rows
        late_p99_ms: int
        late_most_ms: int
        dead_rows: int
        dead_row_reasons: dict[str, int]  # by the class of the error
        dropped: dict[str, int]  # by a branch of `process` that nothing reads
        dropped_rows: int  # of a key that had come before
        refused_rows: int  # by the receiver of a sink
        nulled: int  # floats that a sink's format cannot represent, written as null

        # State, in memory and on disk; what a key, a group or a row is differs with what the step keeps
        keys: int
        groups: int
        values: int
        rows: int
        bytes: int
        disk_bytes: int
        hot: int  # groups in memory
        cold: int  # groups or rows on disk
        dirty: int  # groups that have changed since the last checkpoint
        evicted_total: int  # from memory to disk
        faults_total: int  # back into memory
        held_rows: int  # in a queue, or until their time has come
        held_bytes: int
        left_rows: int  # of a join, by its input
        left_bytes: int
        right_rows: int
        right_bytes: int
        unknown_takes: int  # rows that were to be taken back and are not in the join
        broadcast: int  # values that every subtask has
        cached_rows: int  # answers that are kept
        cache_hits: int
        distinct_keys: int  # questions, each of which is asked once

        # Windows, sessions and patterns
        panes: int
        windows: int
        results: int
        merges: int  # of panes into windows
        sessions: int
        merged: int  # sessions that a row between them has joined
        partial_matches: int
        matches: int

    class ToldThread(TypedDict, total=False):
        """A thread, or an event loop. `queued_seconds` and `turns` are told where the system counts them."""

        time: dict[str, float]  # seconds by state
        state: str  # the present one; "" before the start and after the end
        state_seconds: float  # for how long
        queued_seconds: float  # the thread was ready and had no processor
        turns: int  # how often it got one: one that waits for the interpreter's lock wakes up every 5 ms, one that sleeps does not
        cut_seconds: float  # how long the last snapshot held up its rows

    ToldEdge = TypedDict(
        "ToldEdge",
        {
            "from": str,  # the step that sends, or the stage whose input it is
            "to": str,
            "branch": str,
            "right": bool,  # the second input of its target
            "rows": int,
            "batches": int,
            # Of ways to other tasks
            "keys": list[str] | None,  # by which rows are divided among channels
            "seconds": float,  # of sending, without waits
            "waiting": int,  # rows in the channels
            "capacity_rows": int,
            "fill": float,  # of the fullest channel, 0 to 1
            "full_total": int,  # how often a channel was full
        },
        total=False,
    )
    """A way of rows into a chain, between its operators, or out of it."""

    class ToldInput(TypedDict, total=False):
        """The input of a task of streams: the gate over its channels (`Gate.statistics`), or a source."""

        inputs: int
        ended: int
        idle: int
        held: int
        rows: int
        bytes: int
        awaited: int
        barriers_total: int
        aborts_total: int
        alignment_seconds: float
        fill: float  # of the fullest channel, 0 to 1
        late_seconds: dict[str, float]  # for which it waited for a barrier, by the task before it

        source: str
        rows_in: int
        lag: dict[str, int]  # rows or bytes (`lag_unit`) that are not read yet, by "topic[partition]"
        lag_unit: str
        dead_letters: int
        dead_letter_reasons: dict[str, int]
        watermark_ms: int | None
        figures: dict[str, int | float | str]  # `Source.figures`
        overdue_seconds: float  # by which polls took longer than they were asked to wait
        ends: bool  # it is bounded
        exhausted: bool
        backlog: int | None
        waits_for: list[str]
        registry: str  # why it waits for a schema registry, or ""
        ahead: list[str]  # the partitions that are held back

    class ToldTask(ToldThread, total=False):
        """A subtask of a stage of streams."""

        batches: int
        rows: int
        ended: bool
        watermark_ms: int | None
        cut_seconds_total: float
        reading_seconds: float  # of its work
        cutting_seconds: float  # of its work: taking snapshots
        operators: dict[str, ToldStep]
        edges: list[ToldEdge]
        input: ToldInput
        worker: int  # its number

    class ToldLanes(ToldStep, total=False):
        """An agent: the rows in its queue and lanes with their limits, and its calls; of a durable one also its jobs."""

        capacity_rows: int
        capacity_bytes: int
        batches: int  # that have ended
        batch_seconds_total: float
        dead_letter_reasons: dict[str, int]
        lanes: int
        running: int
        parked: int  # jobs that wait, and whose functions are not in memory
        blocked: int  # jobs whose functions no longer match their journals
        behind_blocked: int  # rows and jobs that cannot begin because a blocked job has the same key
        mailbox_rows: int
        duplicates: int  # rows that were dropped because their job existed already

    class ToldPort(ToldThread, total=False):
        """A source or a sink of agents."""

        channel: dict[str, int]  # `Channel.statistics`
        rows_in: int
        ended: bool
        lag: dict[str, int]  # as the next two in `ToldInput`
        registry: str
        figures: dict[str, int | float | str]
        rows_out: int
        waiting: int  # elements that the full channel refused
        dead_letters: bool  # True of a sink that takes those
        nulled: int

    class ToldJobs(TypedDict, total=False):
        """Jobs of durable agents, or of a kernel."""

        running: int  # in memory, with those whose history is being read
        parked: int
        waiting: int  # rows that have not ended, in queues and mailboxes; of a kernel jobs that wait because `max_jobs` others run
        blocked: dict[str, str]  # why a job cannot continue, by its id
        begun: int
        ended: int
        effects: int
        doubts: int  # questions to a person whether an effect was made
        in_flight: int  # calls that have no outcome yet
        tools: dict[str, dict[str, int | tuple[float, ...]]]  # `EffectRunner.tools`
        journal: dict[str, int]  # `Journal.statistics`

    class ToldAgents(TypedDict, total=False):
        """The agents of an app: sources by "agent/topic", operators by agent, sinks by name, `agent_tasks` by task."""

        sources: dict[str, ToldPort]
        operators: dict[str, ToldLanes]
        sinks: dict[str, ToldPort]
        jobs: ToldJobs
        gate: ToldInput
        agent_tasks: dict[str, ToldThread]

    class ToldTrack(TypedDict, total=False):
        """The output of a sink that waits to be delivered, exactly once."""

        sink: str
        delivered_rows: int
        undelivered_rows: int
        undelivered_bytes: int
        undelivered_epochs: int
        failures_total: int
        refused_rows: int  # told if there are any

    class ToldCheckpoints(TypedDict):
        """Checkpoints since the start. Id 0 means none; times are in seconds since 1970, or None."""

        completed: int
        failed: int
        last_id: int  # of the last complete one, as the next two
        last_seconds: float
        last_bytes: int
        oldest_id: int  # of those that are still stored
        in_flight: int
        last_error: str  # of the last one that failed
        last_at: float | None
        failed_at: float | None


# -- as structs, for all that looks at an app ----------------------------------------------------------------------------------------


class ThreadFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of a thread goes.

    `time`: seconds by state (`plan.drawing.SHARES`). `state`: the present one; "" before the start and after the end.
    `queued_seconds`: the thread was ready and had no processor. `turns`: how often it got one; None if the system does not
    count it.
    """

    time: dict[str, float] = {}
    state: str = ""
    queued_seconds: float = 0.0
    turns: int | None = None


class ChannelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Rows and bytes that wait in a channel or a queue, and its limits."""

    rows: int = 0
    bytes: int = 0
    capacity_rows: int = 0
    capacity_bytes: int = 0

    @property
    def fill(self) -> float:
        """How full it is, by rows or by bytes, 0 to 1."""
        pairs = ((self.rows, self.capacity_rows), (self.bytes, self.capacity_bytes))
        return min(1.0, max((held / most for held, most in pairs if most), default=0.0))


class CallLoad(ChannelFigures, frozen=True, kw_only=True):
    """Calls on the event loop that a step or an agent makes.

    `limit`: the calls that may be in flight; None if it makes none. `attempts`: those that have ended, with repetitions.
    `attempt_seconds`: the sum of their times. `overloads`: those that the receiver turned away (429).
    """

    in_flight: int = 0
    limit: int | None = None
    attempts: int = 0
    attempt_seconds: float = 0.0
    overloads: int = 0


class StepFigures(CallLoad, frozen=True, kw_only=True):
    """A step of a stream in one subtask.

    `seconds`: its work, without waits. `state_keys`, `state_bytes`: None without state. `late_p50_ms`, `late_most_ms`: how late
    half of the late rows and the latest were, at most; None without late rows. `function`: the function of the user, or "".
    `sink`: the name of the sink that it writes, or "".
    """

    rows_in: int = 0
    rows_out: int = 0
    seconds: float = 0.0
    watermark_ms: int | None = None
    state_keys: int | None = None
    state_bytes: int | None = None
    late_rows: int = 0
    late_p50_ms: int | None = None
    late_most_ms: int | None = None
    dead_rows: int = 0
    dead_row_reasons: dict[str, int] = {}
    function: str = ""
    sink: str = ""


class StepCount(msgspec.Struct, frozen=True):
    """A count of a step that `sabot top`, the console and Prometheus show, as the sum of its subtasks."""

    figure: str  # its name in `StepFigures`
    column: str  # in the table of steps of the console, as CSV and JSON too
    title: str  # of that column
    short: str  # its name in `sabot top`
    metric: str  # for Prometheus, with its help
    help: str
    from_zero: bool = False  # Prometheus gets it before anything was counted


_LATE = "Rows that came after the end of their window."
_DEAD = "Records and rows that an agent, a source or a step set apart as dead letters."
STEP_COUNTS = (
    StepCount("late_rows", "late_rows", "late", "late", "sabot_records_late_total", _LATE, from_zero=True),
    StepCount("dead_rows", "dead_letters", "dead letters", "dead", "sabot_dead_letters_total", _DEAD),
)


class EdgeFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A way of rows into a chain, between its operators, or out of it.

    `fill`: how full its fullest channel is, 0 to 1; None within the chain. `seconds`: the work of dividing rows among channels.
    `keys`: the columns by which it divides them.
    """

    origin: str = msgspec.field(default="", name="from")
    to: str = ""
    branch: str = ""
    rows: int = 0
    fill: float | None = None
    seconds: float = 0.0
    keys: list[str] | None = None


class InputFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The input of a task of streams: a source, or channels from other tasks.

    - Of channels: `fill`: how full the fullest is, 0 to 1. `rows`: the rows in them, if told. `inputs`: their number. `late_seconds`:
      the time for which it waited for a barrier, by the task before it.
    - Of a source: `source`: its name. `lag`: rows or bytes (`lag_unit`) that are not read yet, by partition. `ends`: it is
      bounded. `exhausted`: it has ended. `overdue_seconds`: by which polls took longer than they were asked to wait. `ahead`:
      the partitions that are held back. `registry`: why it waits for a schema registry, or "". `figures`: what `Source.figures`
      tells, by name.
    """

    fill: float | None = None
    rows: int | None = None
    inputs: int = 1
    late_seconds: dict[str, float] = {}
    source: str = ""
    rows_in: int = 0
    lag: dict[str, int | float | None] | None = None
    lag_unit: str = "rows"
    ends: bool = False
    exhausted: bool = False
    overdue_seconds: float = 0.0
    ahead: list[str] = []
    watermark_ms: int | None = None
    dead_letters: int = 0
    dead_letter_reasons: dict[str, int] = {}
    registry: str = ""
    figures: dict[str, int | float | str] = {}


class TaskFigures(ThreadFigures, frozen=True, kw_only=True):
    """A subtask of a stage of streams.

    `cut_seconds_total`: how long its snapshots held up its rows. `reading_seconds`, `cutting_seconds`: its work of reading, and of
    taking snapshots. `worker`: the number of its worker, or None without workers.
    """

    rows: int = 0
    batches: int = 0
    watermark_ms: int | None = None
    cut_seconds_total: float = 0.0
    reading_seconds: float = 0.0
    cutting_seconds: float = 0.0
    operators: dict[str, StepFigures] = {}
    edges: list[EdgeFigures] = []
    input: InputFigures = InputFigures()
    worker: int | None = None


class AgentSourceFigures(ThreadFigures, frozen=True, kw_only=True):
    """A source of an agent. Fields as in `InputFigures`."""

    rows_in: int = 0
    ended: bool = False
    lag: dict[str, int | float | None] | None = None
    watermark_ms: int | None = None
    registry: str = ""
    figures: dict[str, int | float | str] = {}
    channel: ChannelFigures = ChannelFigures()


class AgentSinkFigures(ThreadFigures, frozen=True, kw_only=True):
    """A sink of agents. `waiting`: elements that its full channel refused. `dead_letters`: True if it takes those. One
    without `time` leads to a stream, or to the sink of one.
    """

    rows_out: int = 0
    waiting: int = 0
    channel: ChannelFigures = ChannelFigures()
    dead_letters: bool = False


class AgentFigures(msgspec.Struct, frozen=True, kw_only=True):
    """An agent. Both are saved in checkpoints, and go on from there."""

    messages_processed: int = 0
    dead_letters: int = 0


class LaneFigures(CallLoad, frozen=True, kw_only=True):
    """The rows that wait in the lanes of an agent, its calls, and the rows that it has emitted."""

    rows_out: int = 0


class CalledFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of a tool by jobs, or of a model. `durations`: a histogram of their times (`Durations.read`), or () of old records."""

    calls: int = 0
    in_flight: int = 0
    failed: int = 0
    durations: tuple[float, ...] = ()


class ToolCalls(CalledFigures, frozen=True, kw_only=True):
    """Calls of a tool by jobs. `unknown`: those of which nobody knows whether they were made."""

    unknown: int = 0


class EngineFigures(CalledFigures, frozen=True, kw_only=True):
    """Calls of a model, which are explained at `ExecutionEngine.statistics`. `cost`: US dollars."""

    limit: int | None = None
    waiting: int = 0
    retries: int = 0
    overloads: int = 0
    fallbacks: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


class JobsFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs of durable agents. `waiting`: rows that have not ended, in queues and mailboxes."""

    waiting: int = 0
    tools: dict[str, ToolCalls] = {}


class CheckpointFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of checkpoints, and the last complete one: its id (0 for none), seconds and bytes. `last_at`, `failed_at`: when
    it was complete, and when the last one failed, in seconds since 1970, or None.
    """

    completed: int = 0
    failed: int = 0
    last_id: int = 0
    last_seconds: float = 0.0
    last_bytes: int = 0
    in_flight: int = 0
    last_error: str = ""
    last_at: float | None = None
    failed_at: float | None = None


class FlowFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of a task, or of all tasks of a worker; None: not known yet. `lag`: what their sources have not read."""

    rows: int | None = None
    rows_per_second: float | None = None
    lag: int | float | None = None


class WorkerFigures(FlowFigures, frozen=True, kw_only=True):
    """A worker. `cpu_percent`: 100 for one processor, or None. `silent_seconds`: since its last heartbeat."""

    worker: int = 0
    pid: int = 0
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    silent_seconds: float = 0.0
    tasks: dict[str, FlowFigures] = {}


class TrackFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The output that waits to be delivered to a sink, exactly once."""

    sink: str = ""
    undelivered_rows: int = 0


class BrokerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The broker of memory://, in the app's own process. `topics`: 0 for other brokers."""

    topics: int = 0


class ProcessFigures(msgspec.Struct, frozen=True, kw_only=True):
    """This process. `cpus`: the processors that it may use. None: not known."""

    cpu_seconds: float | None = None
    cpus: int | None = None


class AppFigures(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of an app. Those of agents: `sources` by "agent/topic", `sinks` by name, `agents` and `operators` by agent,
    `agent_tasks` by task. `streams`: by subtask ("stage/0"). `engines`: by "provider model". `delivery`: by track.
    """

    failure: str | None = None
    streams: dict[str, TaskFigures] = {}
    sources: dict[str, AgentSourceFigures] = {}
    sinks: dict[str, AgentSinkFigures] = {}
    agents: dict[str, AgentFigures] = {}
    operators: dict[str, LaneFigures] = {}
    agent_tasks: dict[str, ThreadFigures] = {}
    jobs: JobsFigures = JobsFigures()
    engines: dict[str, EngineFigures] = {}
    delivery: dict[str, TrackFigures] = {}
    checkpoints: CheckpointFigures = CheckpointFigures()
    workers: list[WorkerFigures] = []
    broker: BrokerFigures = BrokerFigures()
    process: ProcessFigures = ProcessFigures()

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "AppFigures":
        """Returns the figures that `App.statistics` tells."""
        return msgspec.convert(told, cls)

    @property
    def inputs(self) -> "list[InputFigures | AgentSourceFigures]":
        """The sources of streams and agents."""
        return [*(task.input for task in self.streams.values() if task.input.source), *self.sources.values()]

    @property
    def of_servers(self) -> dict[str, str]:
        """The figures of sources and their servers, by the name of the source, as words: "held wal 12 MB, wal status reserved"."""
        told = [(task.input.source, task.input.figures) for task in self.streams.values()]
        told += [(name.partition("/")[2], source.figures) for name, source in self.sources.items()]
        return {name: ", ".join(_words(*each) for each in sorted(given.items())) for name, given in told if given}


def _words(name: str, value: int | float | str) -> str:
    """Returns a figure for people. The end of its name is its unit."""
    plain, _, unit = name.rpartition("_")
    if isinstance(value, str) or unit not in ("bytes", "seconds", "ms"):
        return f"{name.replace('_', ' ')} {value}"
    if unit == "ms":  # a moment
        shown = datetime.fromtimestamp(value / 1000, UTC).isoformat(" ", "seconds")
    else:
        shown = bytes_words(value) if unit == "bytes" else duration_words(value)
    return f"{plain.replace('_', ' ')} {shown}"
