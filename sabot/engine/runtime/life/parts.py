"""The contracts between a run and its parts, wherever the tasks of its streams and agents run."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from sabot.base.metrics import Sample
from sabot.base.threads import Handle
from sabot.engine.checkpoint import CheckpointStorage, Manifest, TaskSnapshot
from sabot.engine.checkpoint.task_states import RestoredState
from sabot.engine.runtime.life.restore import stored_streams
from sabot.engine.runtime.tasks.manifest_facts import read_to_end
from sabot.engine.runtime.tasks.taps import TapPoint
from sabot.errors import AgentFailed, SabotError

if TYPE_CHECKING:
    from sabot.base.figures import ToldAgents, ToldTask
    from sabot.engine.runtime.tasks.blocking import Working


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


class RunParts(Protocol):
    """The streams and the agents of one run of an app, in this process (`LocalParts`) or in processes of their own
    (`workers.streams.WorkerStreams`). All methods run on one event loop, unless said otherwise. They are started once.
    """

    awaited: bool
    """True if a caller awaits `running`, and gets the failure."""
    on_failed: Callable[[BaseException], None]
    """Called with the failure of the streams if nobody awaits `running`."""
    on_agent_failed: Callable[[str, AgentFailed], None]
    """Called with the id of an agent that has failed at a record, and the error."""

    @property
    def left(self) -> list[tuple[str, Handle]]:
        """The threads that did not end, with their names. Valid after `close`."""

    @property
    def left_behind(self) -> list[str]:
        """The user's calls that refused to be cancelled. Valid after `close`."""

    @property
    def was_complete(self) -> bool:
        """True if everything had ended in the restored checkpoint."""

    @property
    def open_durable(self) -> int:
        """The number of jobs of durable agents in this process that go on, though all inputs had been read."""

    @property
    def linked(self) -> bool:
        """True if the streams pass rows to agents, or get rows from them."""

    @property
    def running(self) -> Sequence[asyncio.Future[None]]:
        """Futures that are done when all inputs have ended and every row is processed. They raise the error of the part that
        has failed.
        """

    @property
    def broken(self) -> bool:
        """True if no checkpoint can be taken any more."""

    @property
    def agents_failure(self) -> SabotError | None:
        """The error that broke the task of the agents in this process, or None. The failure of one agent does not break it."""

    @property
    def needs_checkpoint(self) -> bool:
        """True if jobs of durable agents wait for the first checkpoint that contains the position of their journal."""

    async def open(self, restored: Manifest | None = None) -> None:
        """Opens everything at the positions of the checkpoint."""

    def run(self) -> None:
        """Starts what `open` has opened."""

    def hold(self, held: bool) -> None:
        """Pauses reading while `held`; barriers pass. From any thread."""

    async def stop(self, *, drain: bool) -> None:
        """Stops reading. `drain`: True to process the rows that were read to their end: windows close, tasks end."""

    async def close(self) -> None:
        """Closes everything. Idempotent."""

    def busy(self) -> "Working":
        """Returns what works in this process, for the `BlockingMonitor`. From any thread."""

    def progress(self) -> tuple[float, float] | None:
        """Returns the bytes read and the total bytes of the bounded sources of streams, or None if there are none."""

    def statistics(self) -> "dict[str, ToldTask]":
        """Returns the figures of each task of streams. From any thread."""

    def agent_statistics(self) -> "ToldAgents":
        """Returns the figures of the agents; of other processes also `state` and `engines`. From any thread."""

    def tap(self, point: TapPoint) -> list[pa.RecordBatch]:
        """Copies rows behind a step, as `LocalStreams.tap` does. From any thread."""

    def workers(self) -> list[dict[str, Any]]:
        """Returns the state of each worker process, or an empty list if all tasks are in this process. From any
        thread.
        """

    def samples(self) -> Iterator[Sample]:
        """Yields metrics samples. From any thread."""


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
