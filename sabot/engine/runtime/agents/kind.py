"""The contract of the runtime with the agents whose jobs a journal keeps (`agents.durable.kind`).

The runtime runs agents that are plain functions by itself. An app that has durable agents, or guards of model calls,
has such a kind of agents too. Only the app knows where it is; the runtime loads nothing of it otherwise.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sabot.api.agent import AgentSpec
from sabot.api.nodes.read import StreamEnd
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.state.base import Cut

if TYPE_CHECKING:
    from sabot.base.figures import ToldJobs
    from sabot.engine.operators.agents.operator import AgentOperator
    from sabot.engine.runtime.tasks.writing import Flushes


class AgentKind(Protocol):
    """Durable agents, and the guards of an app."""

    def open(self) -> "OpenJournal":
        """Opens the journal of the app, and the store of its mailboxes. Blocks. Raises UserError."""

    def judge(self, guards: Sequence[Any]) -> Any:
        """Returns the judge of model calls that no job makes, by the guards of this run, or None if there are none."""

    async def budgets(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the budgets of the app and their use, for a console of another process, which knows what they are.
        Called on the app's event loop. Raises UserError if the app has none.
        """

    def warn_of_unused(self) -> None:
        """Logs a warning about budgets that nobody had in this run. Called at its end."""

    def warn_of_lost_labels(self, agents: Sequence[AgentSpec], ends: Sequence[StreamEnd]) -> None:
        """Logs a warning if labels of data are lost between two durable agents. `ends`: the streams of the app."""

    def refuses(self, agents: Sequence[AgentSpec]) -> None:
        """Raises UserError if one of these agents cannot run in another process."""


class OpenJournal(Protocol):
    """The journal of an app and the store of its mailboxes, while both are open in this process."""

    @property
    def journal(self) -> Any:
        """The journal, for code that knows what it is."""

    def check(self, facts: Mapping[str, Any] | None, place: object = None) -> None:
        """Compares the journal with a checkpoint. Blocks.

        `facts`: those of the checkpoint about the journal, or None if it has none. `place`: the place of the
        checkpoints for messages, or None. Raises OtherJournal if the two do not belong together, and UserError if
        the journal has jobs but no checkpoint has a position in it.
        """

    def tell(self, facts: Mapping[str, Any], newest: Mapping[str, Any] | None) -> None:
        """Logs how far the journal has gone since the savepoint from which the app starts. Blocks. `facts`: those of the
        savepoint about the journal. `newest`: those of the app's newest checkpoint, or None.
        """

    def run(
        self,
        guards: Sequence[Any],
        *,
        known: bool,
        storage: CheckpointStorage | None,
        on_broken: Callable[[str, BaseException], None],
    ) -> "JobsOfRun":
        """Returns the jobs of a run over this journal, not open yet.

        `guards`: those of this run. `known`: True if a checkpoint contains the journal's position, or if no checkpoint
        is ever taken. `storage`: the storage of the checkpoints, which lists savepoints too, or None. `on_broken`:
        called with a description and the error if state and output may no longer agree.
        """

    def close(self, *, ran: bool = True) -> None:
        """Closes both. Blocks. `ran`: False if the start failed; a journal that this start has made is then removed."""


class JobsOfRun(Protocol):
    """The jobs of one run. Methods run on the run's event loop unless they say otherwise."""

    @property
    def known(self) -> bool:
        """False if no complete checkpoint contains the journal's position yet, so that no job may begin."""

    @property
    def go_on(self) -> int:
        """The number of jobs that were open at the start, and go on."""

    @property
    def rest(self) -> bool:
        """True if some jobs are parked. The app is then not finished, even if all inputs have ended."""

    @property
    def left_behind(self) -> list[str]:
        """The calls that ignored their cancellation, as texts that name the agent and the record."""

    @property
    def flushes(self) -> "Flushes":
        """The journal, for which a barrier waits."""

    async def open(self, restored: Manifest | None, task: str) -> None:
        """Reads the jobs that the checkpoint does not cover completely, and its mailboxes. `task`: the task of the
        agents.
        """

    def operator(self, spec: AgentSpec, *, leaves_at_once: bool, **wiring: Any) -> "AgentOperator":
        """Makes the operator of a durable agent. `leaves_at_once`: True if results can be seen outside of the app
        before a checkpoint covers them. `wiring`: the arguments of all operators.
        """

    def reads(self, agent_id: str, topic: str, log: str | None, again: int) -> None:
        """Tells a durable agent which log its topic is, before any row comes. `log`: the identity of the log, or None
        if the agent's jobs are not named by positions in it. `again`: how often its rows became new jobs
        (`--reprocess`).
        """

    def restore(self, operators: "Mapping[str, AgentOperator]") -> None:
        """Hands the open jobs to their agents. `operators`: all agents of the task by id, connected to each other.
        Raises UserError if the program lacks an agent of some jobs.
        """

    def start(self) -> None:
        """Starts the run of jobs."""

    def facts(self) -> dict[str, Any]:
        """Returns the facts about the journal for a checkpoint."""

    def cut(self) -> dict[str, Cut]:
        """Returns snapshots by the names of their states in a checkpoint."""

    def completed(self, manifest: Manifest, task: str) -> None:
        """Lets jobs begin once a complete checkpoint contains the journal's position. Called when a checkpoint is
        complete.
        """

    def retained(self, oldest_id: int) -> None:
        """Trims the entries of the journal that neither checkpoint `oldest_id` nor a later one needs."""

    def leave(self) -> None:
        """Makes the durable agents end without waiting for parked jobs. Called when a drain has ended the inputs."""

    async def quiesce(self) -> None:
        """Stops all jobs: none begins or continues, and effects that run have some time to end."""

    async def close(self) -> None:
        """Drops the jobs in memory; the journal has them. Idempotent."""

    def statistics(self) -> "ToldJobs":
        """Returns the figures of the jobs. From any thread."""
