"""The figures of an app as structs: which exist, what they count, and in which unit.

The parts of a running app tell their figures by name (`statistics()`), also between processes, and `App.statistics` gives
them to users as one dict. All that looks at them reads these structs, which `AppFigures.of` makes of that dict: rates,
the narrow place, `sabot top`, the console, the summary of a run. A figure is added here, where it is counted, and where
it is shown. What an app does not tell has its default; a name that no struct has is left out.

A count begins with the run unless it says otherwise, and can go back between two readings only by a restart.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from sabot.base.quantities import bytes_words, duration_words


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
