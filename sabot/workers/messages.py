"""What a coordinator and its workers tell each other: msgpack, one tagged map each. Nothing of it runs code at the receiver."""

from typing import Any

import msgspec

from sabot import errors
from sabot.checkpoint.places import StoredFile
from sabot.errors import DataError, InternalError, SabotError, TransientError, UserError
from sabot.metrics import Sample
from sabot.process_exit import find_exit

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
    "RunTasks",
    "SavedFile",
    "SavedFolder",
    "Start",
    "Stop",
    "Stopped",
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
"""What a worker has saved: the path of a file in the shared folder, or what it has stored in the object store of the checkpoints."""
SavedFolder = str | dict[str, StoredFile]


class ControlMessage(msgspec.Struct, frozen=True, tag=True):
    """Any of them."""


# -- from the coordinator to a worker -----------------------------------------------------------------------------------


class Welcome(ControlMessage, frozen=True):
    """The answer to `Join`. token: of this epoch of the app, for the exchange. settings: what the user has said beside the program."""

    worker: int
    token: str
    settings: dict[str, Any]


class JoinRefused(ControlMessage, frozen=True):
    """The answer to a `Join`, instead of `Welcome`; the connection ends behind it."""

    message: str
    hint: str = ""


class Ping(ControlMessage, frozen=True):
    """The coordinator lives."""


class Start(ControlMessage, frozen=True):
    """Open your tasks.

    placement: the worker of each task. addresses: of the exchange of each worker. columns: of streams whose columns were inferred, as an
    Arrow schema. plan: the fingerprint of the coordinator's. checkpoint: the one that is restored, in `place`; None: in the place that the
    program names. folder: for saved state; None: the app keeps no checkpoints, or store and generation are given: the object store of its
    checkpoints, into which workers store what they save, in files of this generation. tracks: the folder of the parts of each exactly-once
    sink. over: the streams had ended in the checkpoint, and are not opened. reprocess: durable agents whose records are read again. proof:
    what the file `proof` in the folder says, by which a worker knows that it sees the coordinator's folder, and not one of its own machine.
    """

    epoch: str
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
    proof: str = ""
    store: str | None = None
    generation: int = 0


class RunTasks(ControlMessage, frozen=True):
    """Every worker has opened its tasks: run them. given: by track, the number of the last part so far."""

    given: dict[str, int]


class Trigger(ControlMessage, frozen=True):
    """Emit the barriers of this checkpoint."""

    checkpoint_id: int


class AbortBarriers(ControlMessage, frozen=True):
    """This checkpoint has failed: forget its barriers."""

    checkpoint_id: int


class Complete(ControlMessage, frozen=True):
    """This checkpoint is complete. inputs: what it says of the input of each reader of this worker; where agents are, of all readers.
    agents: what it says of each task of agents that is here.
    """

    checkpoint_id: int
    inputs: dict[str, dict[str, Any]]
    agents: dict[str, dict[str, Any]] = {}


class Retained(ControlMessage, frozen=True):
    """Checkpoints before this one are gone."""

    oldest_id: int


class Hold(ControlMessage, frozen=True):
    """Read no more (held), or go on."""

    held: bool


class Stop(ControlMessage, frozen=True):
    """Stop reading. drain: what was read is processed to its end."""

    drain: bool


class Close(ControlMessage, frozen=True):
    """Close everything, and end. again: the app goes on without delay, and a worker that somebody else has started is wanted again."""

    again: bool = False


# -- from a worker to the coordinator -----------------------------------------------------------------------------------


class Join(ControlMessage, frozen=True):
    """The first one. token: what it was started with. worker: its number; None: any. versions: of what must be alike in all processes of a
    app.
    """

    token: str
    worker: int | None
    pid: int
    host: str
    versions: dict[str, str]


class Hello(ControlMessage, frozen=True):
    """Imported, and ready to open tasks. address: of its exchange."""

    address: str


class Opened(ControlMessage, frozen=True):
    """Its tasks are open, and what other workers send them has a place."""


class TaskCut(ControlMessage, frozen=True):
    """A task has passed its barrier on. states: by name the folders in which its state is saved, or the files, by their paths below it,
    that the worker has stored. files: the paths of its small files, by name, which have a folder to themselves; or what was stored. As
    TaskSnapshot otherwise.
    """

    checkpoint_id: int
    task: str
    meta: dict[str, Any]
    states: dict[str, SavedFolder]
    sealed: dict[str, int]
    files: dict[str, SavedFile] = {}


class Declined(ControlMessage, frozen=True):
    """The state of a task at its barrier could not be saved."""

    checkpoint_id: int
    task: str
    why: str


class TaskEnded(ControlMessage, frozen=True):
    """A task has ended; as `TaskCut`, its last state."""

    task: str
    meta: dict[str, Any]
    states: dict[str, SavedFolder]
    sealed: dict[str, int]
    files: dict[str, SavedFile] = {}


class PartSealed(ControlMessage, frozen=True):
    """A part of exactly-once output is complete, in its file."""

    track: str
    seq: int
    file: SavedFile
    rows: int
    nbytes: int


class TrackEnded(ControlMessage, frozen=True):
    """The input of an exactly-once sink has ended."""

    track: str


class TasksOver(ControlMessage, frozen=True):
    """All its tasks have ended."""


class Stopped(ControlMessage, frozen=True):
    """As `Stop` has asked: nothing is read any more, and calls of agents have ended, or were cancelled."""


class WorkerFailed(ControlMessage, frozen=True):
    """An error has ended what the worker does. kind: the class of the error. passing: it came of something outside. edge: it is one of the
    exchange, which may only be what others see of a worker that has died. exits: the user's code asked for the end of the process.
    """

    kind: str
    message: str
    hint: str = ""
    passing: bool = False
    edge: bool = False
    exits: bool = False
    code: int | str | None = None


class AgentHasFailed(ControlMessage, frozen=True):
    """An agent has ended at a record. The others go on."""

    agent: str
    error: WorkerFailed


class Beat(ControlMessage, frozen=True):
    """The worker lives. samples: (name, value, operator, topic, partition) each. hints: what tasks are busy with, during a checkpoint.
    agents: of each task of agents that is here, as `WorkerAgents.statistics`.
    memory_bytes: resident. cpu_seconds: since its start. Both are None where the system does not say them.
    saving: tasks whose cut for the checkpoint under way is taken, and not saved yet.
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
        """Its samples, with the worker's number as label."""
        found = [
            Sample(name, tuple(value) if isinstance(value, list) else value, operator, topic, partition, worker)
            for name, value, operator, topic, partition in self.samples
        ]
        if self.memory_bytes is not None:
            found.append(Sample("sabot_worker_memory_bytes", self.memory_bytes, worker=worker))
        if self.cpu_seconds is not None:
            found.append(Sample("sabot_worker_cpu_seconds_total", self.cpu_seconds, worker=worker))
        return found


class Closed(ControlMessage, frozen=True):
    """Everything is closed. left_behind: calls of the user's that refused to be cancelled."""

    left_behind: list[str]


# -- in both directions -------------------------------------------------------------------------------------------------


class HoldReaders(ControlMessage, frozen=True):
    """A task has no room (held), or has it again: the readers of other workers whose rows reach its stage wait for this name."""

    stage: str
    name: str
    held: bool


class HasFirst(ControlMessage, frozen=True):
    """A task has processed the input for which sources wait, of all workers."""

    stage: str
    task: str


class Drift(ControlMessage, frozen=True):
    """Event time of the partition that is furthest behind, of those that are read at about the same event time for this stage: of the
    worker, or, from the coordinator, of all others. least_unread_ms: of those with rows to read. None: there is none.
    """

    stage: str
    least_ms: int | None
    least_unread_ms: int | None


_INTERRUPT = "KeyboardInterrupt"
_KINDS: tuple[type[SabotError], ...] = (UserError, DataError, TransientError, InternalError, SabotError)


def failed(error: BaseException, *, edge: bool = False) -> WorkerFailed:
    """An error, as a message."""
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
    """The error that a worker has told of, with the worker's name, and with a cause that says as much as the original's."""
    kind: type[SabotError] = getattr(errors, message.kind)
    error = kind(f"{worker}: {message.message}", hint=message.hint)
    if message.exits:
        error.__cause__ = KeyboardInterrupt() if message.code == _INTERRUPT else SystemExit(message.code)
    elif message.passing:
        error.__cause__ = TransientError("it came of something outside")
    return error
