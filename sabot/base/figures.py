"""The figures that the parts of a running app tell, by name: which exist, what they count, and in which unit.

Each part tells its own (`statistics()`) and leaves out the names that it does not have. `App.statistics` gives all of them to
users as one dict. What looks at an app reads them as structs with defaults (`engine.runtime.watch.figures`).

A count begins with the run unless it says otherwise. Names that end in `_ms` have milliseconds, and those that end in `seconds`
floats.
"""

from typing import TypedDict


class ToldCalls(TypedDict, total=False):
    """Calls of a user's function, and its timers."""

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


class ToldStep(ToldCalls, total=False):
    """A step of a stream in one subtask. All but the first four are told by its operator."""

    seconds: float  # its work, without waits
    watermark_ms: int | None
    state_keys: int  # keys with state, or rows of a step that keeps rows; an estimate, as the next
    state_bytes: int
    rows_in: int
    rows_out: int
    function: str  # the user's, that it calls
    sink: str  # that it writes

    # Rows that were not handed on
    late_rows: int  # over restarts, as all about late rows
    late_p50_ms: int  # quantiles are at most a fifth too high; they and the next are told if there are late rows
    late_p99_ms: int
    late_most_ms: int
    dead_rows: int
    dead_row_reasons: dict[str, int]  # by the class of the error
    dropped: dict[str, int]
    dropped_rows: int
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


class ToldLanes(ToldCalls, total=False):
    """An agent: the rows in its queue and lanes with their limits, and its calls; of a durable one also its jobs."""

    rows: int
    bytes: int
    capacity_rows: int
    capacity_bytes: int
    rows_out: int
    batches: int  # that have ended
    batch_seconds_total: float
    dead_letter_reasons: dict[str, int]
    nulled: int
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
