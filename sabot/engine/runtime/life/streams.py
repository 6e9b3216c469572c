"""The contracts between a run and the streams of its app, wherever the tasks of these streams run."""

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from sabot.base.metrics import Sample
from sabot.base.threads import Handle
from sabot.engine.checkpoint import CheckpointStorage, Manifest, TaskSnapshot
from sabot.engine.checkpoint.task_states import RestoredState
from sabot.engine.runtime.life.restore import stored_streams
from sabot.engine.runtime.tasks.facts import read_to_end
from sabot.engine.runtime.tasks.taps import TapPoint
from sabot.engine.runtime.tasks.task import StreamTask
from sabot.errors import AgentFailed

if TYPE_CHECKING:
    from sabot.base.figures import ToldTask


class TaskCoordinator(Protocol):
    """The coordinator of the checkpoints of tasks: a `Coordinator`, or its stand-in in a worker process."""

    storage: CheckpointStorage | None
    on_complete: list[Callable[[Manifest], None]]
    on_retained: list[Callable[[int], None]]
    """Called when old checkpoints are removed, with the id of the oldest that is kept."""

    def begin_after(self, checkpoint_id: int) -> None:
        """Makes all later ids of checkpoints greater than this one."""

    def attach(
        self,
        task: str,
        inject: Callable[[int], None],
        abort: Callable[[int], None],
        hint: Callable[[], str] | None = None,
    ) -> None:
        """Adds a running task."""

    def acknowledge(self, checkpoint_id: int, task: str, snapshot: TaskSnapshot) -> None:
        """Receives the snapshot of a task that has passed its barrier on."""

    def decline(self, checkpoint_id: int, task: str, reason: str) -> None:
        """Fails the checkpoint because the task cannot take its snapshot."""

    def detach(self, task: str, final: TaskSnapshot | None = None) -> None:
        """Removes a task that has ended or failed. `final`: its last snapshot, or None."""

    def refuse(self, why: str) -> None:
        """Fails the checkpoint in flight and all later ones, because a task has failed."""

    def abandon(self, task: str) -> None:
        """Removes a task that is gone without a last snapshot."""


class Streams(Protocol):
    """The streams of one run of an app, in this process (`LocalStreams`) or in processes of their own. Methods
    without a text do what those of `LocalStreams` do.
    """

    was_complete: bool
    awaited: bool
    on_failed: Callable[[BaseException], None]
    left: list[tuple[str, Handle]]

    async def open(self, restored: Manifest | None = None) -> None:
        """Opens the streams like `LocalStreams.open`."""

    def run(self) -> None: ...

    @property
    def linked(self) -> bool: ...

    @property
    def tasks(self) -> list[StreamTask]:
        """The tasks that run in this process."""

    @property
    def running(self) -> asyncio.Future[None]: ...

    @property
    def broken(self) -> bool: ...

    @property
    def left_behind(self) -> list[str]: ...

    def hold(self, held: bool) -> None: ...

    async def stop(self, *, drain: bool) -> None: ...

    async def close(self) -> None: ...

    def progress(self) -> tuple[float, float] | None: ...

    def statistics(self) -> "dict[str, ToldTask]": ...

    def tap(self, point: TapPoint) -> list[pa.RecordBatch]: ...

    def workers(self) -> list[dict[str, Any]]:
        """Returns the state of each worker process, or an empty list if all tasks are in this process. From any
        thread.
        """

    def samples(self) -> Iterator[Sample]: ...


class AgentsElsewhere(Protocol):
    """The agents of a run, in processes of their own."""

    on_failed: Callable[[str, AgentFailed], None]
    """A callback that gets the id of an agent that has failed at a record, and the error."""
    needs_checkpoint: bool
    """True if jobs of durable agents wait for the first checkpoint that contains the position of their journal."""

    def statistics(self) -> "dict[str, ToldTask]":
        """Returns the figures of `AgentTask.statistics`, and `state`, those of the backend. From any thread."""


class SpreadStreams(Streams, Protocol):
    """The streams and the agents of a run in processes of their own."""

    goes_on: bool
    """True if the app continues in another run as soon as this run is closed."""

    @property
    def agents(self) -> AgentsElsewhere: ...

    async def make_room(self, workers: int) -> None:
        """Makes sure that the next run can have this number of workers. Raises UserError if it cannot; this run is
        not changed.
        """


def had_ended(restored: Manifest) -> bool:
    """Returns True if every stream task had ended in the checkpoint: all input was read to its end, and all results
    were complete. After a drain before the end of the input it returns False.
    """
    stored = stored_streams(restored)
    metas = [task.meta for task in stored.values()]
    if not stored or not all(map(read_to_end, metas)):
        return False
    return all(track.finished for track_id, track in restored.lanes.items() if track_id.startswith("streams."))


def keep_finals(restored: Manifest, checkpoints: TaskCoordinator) -> None:
    """Hands the last states of ended stream tasks to the coordinator, so that later checkpoints contain them. These
    tasks are not opened again.
    """
    for name, task in stored_streams(restored).items():
        states = {state: RestoredState(restored.state_directory(name, state)) for state in task.states}
        # What a source remembers, too: a changed program may open it again.
        kept = TaskSnapshot(task.meta, {file: restored.read_file(name, file) for file in task.files}, states)
        checkpoints.detach(name, kept)
