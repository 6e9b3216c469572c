"""What a run asks of the streams of its app, and they of it, wherever their tasks are."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from sabot.checkpoint import CheckpointStorage, Manifest, TaskSnapshot
from sabot.checkpoint.task_states import RestoredState
from sabot.errors import AgentFailed
from sabot.metrics import Sample
from sabot.runtime.facts import read_to_end
from sabot.runtime.restore import stored_streams
from sabot.runtime.task import StreamTask
from sabot.threads import Handle


class TaskCoordinator(Protocol):
    """Who takes the checkpoints of tasks: a `Coordinator`, or what a worker process has whose coordinator is another process."""

    on_complete: list[Callable[[Manifest], None]]

    def attach(
        self,
        task: str,
        inject: Callable[[int], None],
        abort: Callable[[int], None],
        hint: Callable[[], str] | None = None,
    ) -> None:
        """See `Coordinator.attach`."""

    def acknowledge(self, checkpoint_id: int, task: str, snapshot: TaskSnapshot) -> None:
        """See `Coordinator.acknowledge`."""

    def detach(self, task: str, final: TaskSnapshot | None = None) -> None:
        """See `Coordinator.detach`."""

    def refuse(self, why: str) -> None:
        """See `Coordinator.refuse`."""

    def abandon(self, task: str) -> None:
        """See `Coordinator.abandon`."""


class AgentCoordinator(TaskCoordinator, Protocol):
    """The same for the task of agents, which looks at the checkpoints that are left."""

    storage: CheckpointStorage | None
    on_retained: list[Callable[[int], None]]

    def begin_after(self, checkpoint_id: int) -> None:
        """See `Coordinator.begin_after`."""

    def decline(self, checkpoint_id: int, task: str, reason: str) -> None:
        """See `Coordinator.decline`."""


class Streams(Protocol):
    """The streams of one run of an app, wherever their tasks run: here (`LocalStreams`), or in processes of their own."""

    was_complete: bool
    awaited: bool
    on_failed: Callable[[BaseException], None]
    left: list[tuple[str, Handle]]

    async def open(self, restored: Manifest | None = None) -> None:
        """See `LocalStreams.open`, as for all the others."""

    def run(self) -> None: ...

    @property
    def linked(self) -> bool: ...

    @property
    def tasks(self) -> list[StreamTask]:
        """Those of this process."""

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

    def statistics(self) -> dict[str, Any]: ...

    def workers(self) -> list[dict[str, Any]]:
        """What each of its worker processes does; none where all tasks are in this one. From any thread."""

    def samples(self) -> Iterator[Sample]: ...


class AgentsElsewhere(Protocol):
    """The agents of a run, in processes of their own."""

    on_failed: Callable[[str, AgentFailed], None]
    """Is called with the id of an agent that has failed at a record."""
    needs_checkpoint: bool
    """See `LocalAgents.needs_checkpoint`."""

    def statistics(self) -> dict[str, Any]:
        """See `AgentTask.statistics`; and `state`, of the backend. From any thread."""


class SpreadStreams(Streams, Protocol):
    """The streams of a run in processes of their own, and its agents."""

    goes_on: bool
    """Whether the app goes on in another run as soon as this one is closed."""

    @property
    def agents(self) -> AgentsElsewhere: ...

    async def make_room(self, workers: int) -> None:
        """Makes sure that the next run may have so many. Raises UserError where they cannot be had; this run is left as it is."""


def had_ended(restored: Manifest) -> bool:
    """Whether every task of streams had ended in the checkpoint, its input read to the end, and all results were complete. An app that was
    drained before the end of its inputs had not.
    """
    stored = stored_streams(restored)
    metas = [task.meta for task in stored.values()]
    if not stored or not all(map(read_to_end, metas)):
        return False
    return all(track.finished for track_id, track in restored.lanes.items() if track_id.startswith("streams."))


def keep_finals(restored: Manifest, checkpoints: TaskCoordinator) -> None:
    """Later checkpoints keep what this one says of the tasks of streams, which are not opened again."""
    for name, task in stored_streams(restored).items():
        states = {state: RestoredState(restored.state_directory(name, state)) for state in task.states}
        checkpoints.detach(name, TaskSnapshot(task.meta, {}, states))
