"""The messages between a coordinator and its workers: one tagged map each, in msgpack. No message makes the receiver
run code.
"""

from typing import Any

import msgspec

from sabot import errors
from sabot.base.metrics import Sample
from sabot.base.process_exit import find_exit
from sabot.engine.checkpoint.places import StoredFile
from sabot.errors import DataError, InternalError, SabotError, TransientError, UserError

__all__ = [
    "AbortBarriers",
    "AgentHasFailed",
    "Beat",
    "Close",
    "Closed",
    "Complete",
    "ControlMessage",
    "Declined",
    "Drift",
    "HasFirst",
    "Hello",
    "Hold",
    "HoldReaders",
    "Join",
    "JoinRefused",
    "Opened",
    "PartSealed",
    "Ping",
    "Retained",
    "RowsTaken",
    "RunTasks",
    "SavedFile",
    "SavedFolder",
    "Start",
    "Stop",
    "Stopped",
    "TapRows",
    "TaskCut",
    "TaskEnded",
    "TasksOver",
    "TrackEnded",
    "Trigger",
    "Welcome",
    "WorkerFailed",
    "error_of",
    "failed",
]

SavedFile = str | StoredFile
"""A file that a worker has saved: its path in the shared folder, or its entry in the object store of the checkpoints."""
SavedFolder = str | dict[str, StoredFile]


class ControlMessage(msgspec.Struct, frozen=True, tag=True):
    """The base of all messages."""


# -- from the coordinator to a worker -----------------------------------------------------------------------------------


class Welcome(ControlMessage, frozen=True):
    """The answer to a `Join` that is accepted. `token`: the secret of this attempt for the exchange of rows.
    `settings`: the settings that the user has given beside the program.
    """

    worker: int
    token: str
    settings: dict[str, Any]


class JoinRefused(ControlMessage, frozen=True):
    """The answer to a `Join` that is refused. The coordinator then closes the connection."""

    message: str
    hint: str = ""


class Ping(ControlMessage, frozen=True):
    """A sign of life of the coordinator."""


class Start(ControlMessage, frozen=True):
    """An order to open tasks.

    - `attempt`: the id of this attempt.
    - `placement`: the worker of each task.
    - `addresses`: the address of each worker's exchange.
    - `columns`: the Arrow schemas of streams whose columns were inferred.
    - `plan`: the fingerprint of the coordinator's plan.
    - `checkpoint`, `place`: the id of the checkpoint to restore, and its location, or None if it is where the program says.
    - `folder`: the shared folder for saved state. None if the app keeps no checkpoints, or keeps them in an object store.
    - `store`, `generation`: the object store of the checkpoints, or None, and the generation under which workers store files
      there.
    - `tracks`: the folder of the parts of each exactly-once sink.
    - `drop`, `refill`, `reemit`, `is_savepoint`: as in `RunSettings`.
    - `over`: True if the streams had ended in the checkpoint and are not opened.
    - `reprocess`: the durable agents whose records are read again.
    - `proof`: the content of the file `proof` in `folder`. A worker that reads another text there sees a folder of its own
      machine.
    """

    attempt: str
    placement: dict[str, int]
    addresses: list[str]
    columns: dict[str, bytes]
    plan: str
    checkpoint: int | None
    place: str | None
    folder: str | None
    tracks: dict[str, str]
    drop: list[str]
    over: bool = False
    reprocess: list[str] = []
    reemit: list[str] = []
    refill: list[str] = []
    is_savepoint: bool = False
    proof: str = ""
    store: str | None = None
    generation: int = 0


class RunTasks(ControlMessage, frozen=True):
    """An order to run the tasks, when every worker has opened its own. `given`: by track, the number of the last part
    so far.
    """

    given: dict[str, int]


class Trigger(ControlMessage, frozen=True):
    """An order to emit the barriers of this checkpoint."""

    checkpoint_id: int


class AbortBarriers(ControlMessage, frozen=True):
    """The notice that this checkpoint has failed, so that its barriers are dropped."""

    checkpoint_id: int


class Complete(ControlMessage, frozen=True):
    """The notice that this checkpoint is complete. `inputs`: its facts about the input of each reader of this worker;
    if the worker has agents, of all readers. `agents`: its facts about each task of agents on this worker.
    """

    checkpoint_id: int
    inputs: dict[str, dict[str, Any]]
    agents: dict[str, dict[str, Any]] = {}


class TapRows(ControlMessage, frozen=True):
    """An order to copy rows at a point of the streams for some seconds, and to answer with those since the last order. `origin`,
    `branch`: as in `TapPoint`. `rows`: the most that each task copies in a second.
    """

    origin: str
    branch: str
    rows: int


class Retained(ControlMessage, frozen=True):
    """The notice that earlier checkpoints than this one are gone."""

    oldest_id: int


class Hold(ControlMessage, frozen=True):
    """An order to pause reading (`held`), or to resume it."""

    held: bool


class Stop(ControlMessage, frozen=True):
    """An order to stop reading. `drain`: True to process rows that were read to their end."""

    drain: bool


class Close(ControlMessage, frozen=True):
    """An order to close everything, and to end. `again`: True if another run of the app follows at once, so a worker
    that others have started should join again.
    """

    again: bool = False


# -- from a worker to the coordinator -----------------------------------------------------------------------------------


class Join(ControlMessage, frozen=True):
    """A worker's first message. `token`: the one with which it was started. `worker`: its number, or None for any.
    `versions`: those that must be equal in all processes of an app.
    """

    token: str
    worker: int | None
    pid: int
    host: str
    versions: dict[str, str]


class Hello(ControlMessage, frozen=True):
    """The notice of a worker that has imported the program and is ready to open tasks. `address`: that of its
    exchange.
    """

    address: str


class Opened(ControlMessage, frozen=True):
    """The notice that a worker's tasks are open, and that rows of other workers have a place."""


class TaskCut(ControlMessage, frozen=True):
    """The notice that a task has passed its barrier on, with its snapshot.

    `states`: by name, the folders of saved state, or the files that the worker has stored, by their paths below the
    folder. `files`: by name, the paths of small files, which are in a folder of their own, or their entries in the
    store. The other fields are as in TaskSnapshot; the time `saved` is that of the worker.
    """

    checkpoint_id: int
    task: str
    meta: dict[str, Any]
    states: dict[str, SavedFolder]
    sealed: dict[str, int]
    files: dict[str, SavedFile] = {}
    times: dict[str, float] = {}


class Declined(ControlMessage, frozen=True):
    """The notice that a task's state at its barrier could not be saved."""

    checkpoint_id: int
    task: str
    why: str


class TaskEnded(ControlMessage, frozen=True):
    """The notice that a task has ended, with its last snapshot, as in `TaskCut`."""

    task: str
    meta: dict[str, Any]
    states: dict[str, SavedFolder]
    sealed: dict[str, int]
    files: dict[str, SavedFile] = {}


class PartSealed(ControlMessage, frozen=True):
    """The notice that a part of exactly-once output is complete, in its file."""

    track: str
    seq: int
    file: SavedFile
    rows: int
    nbytes: int


class TrackEnded(ControlMessage, frozen=True):
    """The notice that the input of an exactly-once sink has ended."""

    track: str


class TasksOver(ControlMessage, frozen=True):
    """The notice that all tasks of a worker have ended."""


class Stopped(ControlMessage, frozen=True):
    """The answer to `Stop`: nothing is read any more, and calls of agents have ended, or were cancelled."""


class WorkerFailed(ControlMessage, frozen=True):
    """The notice that an error has ended a worker's tasks.

    `kind`: the class of the error. `passing`: True if it was caused by something outside, and may not occur again.
    `edge`: True for an error of the exchange, which may only be the effect of another worker's death. `exits`: True
    if the user's code asked for the end of the process.
    """

    kind: str
    message: str
    hint: str = ""
    passing: bool = False
    edge: bool = False
    exits: bool = False
    code: int | str | None = None


class AgentHasFailed(ControlMessage, frozen=True):
    """The notice that an agent has failed at a record. The others go on."""

    agent: str
    error: WorkerFailed


class Beat(ControlMessage, frozen=True):
    """A worker's heartbeat.

    `samples`: (name, value, operator, topic, partition) each. `hints`: the current work of tasks, during a
    checkpoint. `agents`: for each task of agents on the worker, the result of `WorkerAgents.statistics`.
    `memory_bytes`: resident memory; `cpu_seconds`: since the start of the process; each is None if the system does
    not report it. `saving`: the tasks whose snapshot for the current checkpoint is taken but not saved yet.
    """

    progress: tuple[float, float] | None = None
    figures: dict[str, Any] = {}
    samples: list[tuple[str, float | list[float], str, str, str]] = []
    hints: dict[str, str] = {}
    agents: dict[str, dict[str, Any]] = {}
    memory_bytes: int | None = None
    cpu_seconds: float | None = None
    saving: list[str] = []

    def read(self, worker: str) -> list[Sample]:
        """Returns the samples, with the worker's name as label."""
        found = [
            Sample(name, tuple(value) if isinstance(value, list) else value, operator, topic, partition, worker)
            for name, value, operator, topic, partition in self.samples
        ]
        if self.memory_bytes is not None:
            found.append(Sample("sabot_worker_memory_bytes", self.memory_bytes, worker=worker))
        if self.cpu_seconds is not None:
            found.append(Sample("sabot_worker_cpu_seconds_total", self.cpu_seconds, worker=worker))
        return found


class RowsTaken(ControlMessage, frozen=True):
    """The answer to `TapRows`, one for each batch of rows, in Arrow's IPC format."""

    origin: str
    branch: str
    rows: bytes


class Closed(ControlMessage, frozen=True):
    """The answer to `Close`. `left_behind`: calls of the user's that refused to be cancelled."""

    left_behind: list[str]


# -- in both directions -------------------------------------------------------------------------------------------------


class HoldReaders(ControlMessage, frozen=True):
    """The notice that a task has no room (`held`), or has room again. Readers of other workers whose rows reach the
    task's stage pause, or resume, for this name.
    """

    stage: str
    name: str
    held: bool


class HasFirst(ControlMessage, frozen=True):
    """The notice that a task has processed the input for which sources of all workers wait."""

    stage: str
    task: str


class Drift(ControlMessage, frozen=True):
    """The least event times of the partitions that are aligned for a stage: of a worker, or, from the coordinator, of
    all other workers.

    `least_ms`: that of the partition that is furthest behind. `least_unread_ms`: the same among the partitions with
    rows to read. Each is None if there is no such partition.
    """

    stage: str
    least_ms: int | None
    least_unread_ms: int | None


_INTERRUPT = "KeyboardInterrupt"
_KINDS: tuple[type[SabotError], ...] = (UserError, DataError, TransientError, InternalError, SabotError)


def failed(error: BaseException, *, edge: bool = False) -> WorkerFailed:
    """Returns an error as a message."""
    asked = find_exit(error)
    kind = next((each.__name__ for each in _KINDS if isinstance(error, each)), InternalError.__name__)
    message = error.message if isinstance(error, SabotError) else f"{type(error).__name__}: {error}"
    hint = error.hint if isinstance(error, SabotError) else ""
    passing = isinstance(error.__cause__, OSError | TransientError)
    code: int | str | None = None
    if isinstance(asked, KeyboardInterrupt):
        code = _INTERRUPT
    elif isinstance(asked, SystemExit):
        code = asked.code if isinstance(asked.code, int | str | None) else str(asked.code)
    return WorkerFailed(kind, message, hint, passing, edge, asked is not None, code)


def error_of(message: WorkerFailed, worker: str) -> SabotError:
    """Returns the error that a worker has reported, with the worker's name, and a cause with the text of the
    original.
    """
    kind: type[SabotError] = getattr(errors, message.kind)
    error = kind(f"{worker}: {message.message}", hint=message.hint)
    if message.exits:
        error.__cause__ = KeyboardInterrupt() if message.code == _INTERRUPT else SystemExit(message.code)
    elif message.passing:
        error.__cause__ = TransientError("it was caused by something outside")
    return error
