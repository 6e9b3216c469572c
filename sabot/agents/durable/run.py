"""The jobs of the durable agents in one run of an app, with their journal, their host, and their mailboxes (rows that wait
for the job of their key).

    open ─▶ restore ─▶ jobs may begin once a complete checkpoint contains the journal's position ─▶ the journal is trimmed with checkpoints

Jobs begin only after a complete checkpoint that contains the journal's position. So if a journal has jobs and there is no
such checkpoint, the checkpoints of the app are lost.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from sabot.agents.accounts.ledger import Ledger
from sabot.agents.durable.batch_operator import DurableBatchOperator
from sabot.agents.durable.mailbox import NOTES, STATE, MailRoom, NotesOfParked
from sabot.agents.durable.operator import DurableAgentOperator
from sabot.api.agent import AgentSpec
from sabot.api.settings import Settings
from sabot.base.os_errors import restoring
from sabot.base.threads import run_in_thread, run_to_end
from sabot.checkpoint import CheckpointStorage, Manifest
from sabot.clock import Clock
from sabot.errors import SabotError, UserError
from sabot.jobs.guard import EffectGuard
from sabot.jobs.host import JobHost
from sabot.jobs.log import Listener
from sabot.jobs.open_jobs import unapplied_jobs
from sabot.jobs.owner import OpenJob
from sabot.journal import Journal, JournalReader, open_journal
from sabot.journal.base import check_place
from sabot.journal.memory import MemoryJournal, MemoryStorage
from sabot.journal.source import held_for
from sabot.operators.agents.operator import AgentOperator
from sabot.runtime.facts import stored_journal
from sabot.runtime.restore import positions_in
from sabot.runtime.writing import Flushes, OperatorPort
from sabot.state import open_backend
from sabot.state.base import Cut, LocalBackend

_log = logging.getLogger(__name__)


class JournalOwner(Protocol):
    """An app with a journal. `journal_storage` has the contents of a journal in memory, so that the app's next run in
    this process finds the entries.
    """

    id: str
    clock: Clock
    settings: Settings
    listener: Listener | None
    journal_storage: MemoryStorage | None

    @property
    def accounts(self) -> Ledger | None:
        """The ledger with the budgets of the app."""

    def checkpoints(self) -> CheckpointStorage | None:
        """Returns the storage of the app's checkpoints, without locking it. Returns None if the app has none."""


def journal_place(app: JournalOwner) -> str | Path:
    """Returns the place of an app's journal: a directory, an address, or "memory". Raises UserError if the app has no
    place for a journal.
    """
    place = app.settings.journal_place
    if place is None:
        raise UserError(
            f"app {app.id} has durable agents, but no place for their journal",
            hint='App(..., state=DIRECTORY); or, for tests, journal="memory", which is lost with the process',
        )
    return place


def open_app_journal(
    app: JournalOwner, storage: CheckpointStorage | None, memory: MemoryStorage
) -> tuple[Journal, LocalBackend]:
    """Opens the journal of an app, and a store for mailboxes. By default the journal is in the state directory of the
    app. Blocks.

    - `storage`: the storage of the app's checkpoints, or None.
    - `memory`: the contents of the journal if its place is "memory".

    Raises UserError if a failure could lose the journal but not the checkpoints, or the other way round. Also raises
    UserError if the setting `fresh` would forget effects, and the user has not allowed that.
    """
    settings = app.settings
    fresh = settings.fresh
    if settings.forget_effects and not fresh:
        raise UserError(
            "--forget-effects without --fresh", hint="they go together: sabot run … --fresh --forget-effects"
        )
    place = journal_place(app)
    if place != "memory" and storage is None:
        raise UserError(
            f"app {app.id} has a journal but keeps no checkpoints: after a crash its jobs would have no state to continue with",
            hint="App(..., state=DIRECTORY), or checkpoint_dir=",
        )
    is_local = isinstance(place, Path) or "://" not in place
    if is_local and storage is not None and not isinstance(storage.directory, Path):
        raise UserError(
            f"app {app.id} keeps its checkpoints in an object store, but the journal of its durable agents on this machine",
            hint='journal="kafka://…" or "postgresql://…", which other machines can reach; or a checkpoint_dir= on this machine',
        )
    journal: Journal
    if place == "memory":
        journal = MemoryJournal(memory)
    else:
        anew = fresh and settings.forget_effects
        journal = open_journal(place, app=app.id, clock=app.clock, kafka=settings.kafka, anew=anew)
    if fresh and not journal.is_new:
        journal.close()
        raise UserError(
            f"app {app.id}: --fresh would forget the effects in {journal.where}, so effects may be repeated",
            hint="--fresh --forget-effects, if effects may be repeated; without --fresh the app resumes from its checkpoint",
        )
    try:
        mail = open_backend("memory" if settings.state_dir is None else settings.state, "mailboxes")
    except BaseException:
        journal.abandon()
        raise
    assert isinstance(mail, LocalBackend)
    return journal, mail


def _needed(facts: Mapping[str, Any]) -> dict[int, int]:
    """Returns, by partition, the first offset of the journal that a checkpoint needs for its jobs. `facts` are the
    checkpoint's facts about the journal. The checkpoint contains the results of every job whose END is before this
    offset.
    """
    positions = dict(facts["positions"])
    for partition, offset in unapplied_jobs(facts).values():
        positions[partition] = min(offset, positions[partition])
    return positions


def _needed_by(manifest: Manifest, facts: Mapping[str, Any]) -> dict[int, int]:
    """Returns, by partition, the first offset of the journal that a checkpoint needs: for its jobs, or for its streams
    that read the journal. `facts` are the checkpoint's facts about the journal.
    """
    inputs = [task.meta["input"] for task in manifest.tasks.values() if "positions" in task.meta.get("input", {})]
    return held_for(map(positions_in, inputs), _needed(facts))


def check_journal(journal: JournalReader, facts: Mapping[str, Any] | None, place: object = None) -> None:
    """Checks that a journal belongs to a checkpoint. Blocks.

    - `facts`: the checkpoint's facts about the journal, or None.
    - `place`: the place of the checkpoints for the error message, or None.

    Raises OtherJournal if the checkpoint was made with another journal, or if this journal lacks entries that the
    checkpoint needs. Raises UserError if the journal has jobs, but there is no checkpoint that contains a position in
    the journal.
    """
    if facts is not None:
        check_place(journal, facts["identity"], dict(facts["positions"]), _needed(facts))
    elif not journal.is_new:
        raise UserError(
            f"{journal.where} has jobs, and no checkpoint{'' if place is None else f' in {place}/checkpoints'} contains them",
            hint="list the folder of the checkpoints first. If it has *.json files (an object store may list new ones late), start again; "
            "if the app kept its checkpoints elsewhere, give that place. Only if they are lost: --fresh --forget-effects, and effects may "
            "be made again",
        )


def _load(restored: Manifest, task: str, name: str, load: Callable[[Path], None]) -> None:
    load(restored.state_directory(task, name))


class DurableJobs:
    """The jobs of the durable agents in one run of an app. The methods run on the event loop of the run, unless they
    say otherwise.
    """

    def __init__(
        self,
        journal: Journal,
        mail: LocalBackend,
        *,
        clock: Clock,
        known: bool,
        storage: CheckpointStorage | None,
        dedupe_s: float,
        on_broken: Callable[[str, BaseException], None],
        listener: Listener | None = None,
        guard: EffectGuard | None = None,
    ) -> None:
        """Makes the jobs; `open` opens them.

        - `mail`: the store of the mailboxes. `close` closes it.
        - `known`: True if a checkpoint contains the journal's position, or if no checkpoint is ever taken.
        - `storage`: the storage of checkpoints and savepoints, or None.
        - `dedupe_s`: the seconds for which the ids of ended jobs are kept.
        - `on_broken`: a function that is called, with a description and the error, if state and output may no longer
          agree.
        - `listener`: receives the events of jobs.
        - `guard`: decides on the effects of jobs.
        """
        self.journal = journal
        self._notes = NotesOfParked()
        self.host = JobHost(
            journal, clock=clock, on_broken=on_broken, notes=self._notes, listener=listener, guard=guard
        )
        self.mail = MailRoom(mail)
        self.known = known
        self.go_on = 0  # the number of jobs that were open when the app started
        self._storage = storage
        self._clock = clock
        self._dedupe_s = dedupe_s
        self._operators: dict[str, DurableAgentOperator] = {}
        self._open: list[OpenJob] = []
        self._positions: dict[
            int, Mapping[int, int]
        ] = {}  # by checkpoint: the positions from which on it needs the journal

    async def open(self, restored: Manifest | None, task: str) -> None:
        """Reads from the journal the open jobs, and the jobs that ended after the checkpoint. Loads from the checkpoint
        the mailboxes and the notes of parked jobs. `restored` is the manifest of the checkpoint, or None. `task` is the
        name of the task in which the agents run.
        """
        facts = stored_journal(restored, task)
        if restored is not None and facts is not None:
            self._positions[restored.checkpoint_id] = _needed_by(restored, facts)
            for name, what, load in (
                (STATE, "mailboxes", self.mail.load),
                (NOTES, "notes of parked jobs", self._notes.load),
            ):
                if name in restored.tasks[task].states:
                    with restoring(what, restored.path):
                        await run_to_end(run_in_thread(_load, restored, task, name, load))
        if facts is None:
            self._open = await self.host.open(None)
        else:
            self._open = await self.host.open(dict(facts["positions"]), unapplied_jobs(facts))

    def cut(self) -> dict[str, Cut]:
        """Returns snapshots of the mailboxes and of the notes of parked jobs, by the names of their states."""
        cuts = {STATE: self.mail.cut(), NOTES: self._notes.cut()}
        return {name: cut for name, cut in cuts.items() if cut is not None}

    def operator(self, spec: AgentSpec, **wiring: Any) -> DurableAgentOperator:
        """Makes the operator of a durable agent. `wiring` has the argument `leaves_at_once`, and the arguments that all
        operators take.
        """
        kind = DurableBatchOperator if spec.batch else DurableAgentOperator
        made = self._operators[spec.agent_id] = kind(spec, host=self.host, mail=self.mail, **wiring)
        return made

    def reads(self, agent_id: str, topic: str, log: str | None, again: int) -> None:
        """Sets two facts about the topic that a durable agent reads.

        - `log`: the identity of the topic's log, or None if job ids are not made from positions in the log.
        - `again`: the number of times that `--reprocess` has made new jobs of the topic's rows.
        """
        names = self._operators[agent_id].names
        names.again = max(again, names.again)
        if log is not None:
            names.logs[topic] = log

    def restore(self, operators: Mapping[str, AgentOperator]) -> None:
        """Gives the open jobs of the journal to the operators of their agents. Also tells each durable agent that
        writes into another one to add the id of the job to each row. Raises UserError if an open job belongs to an
        agent that the program does not have.
        """
        for agent_id, operator in operators.items():
            below = operator.port.operator if isinstance(operator.port, OperatorPort) else None
            if isinstance(operator, DurableAgentOperator) and isinstance(below, DurableAgentOperator):
                operator.hands_on = True
                below.names.parents |= {agent_id}
        self._operators = {name: each for name, each in operators.items() if isinstance(each, DurableAgentOperator)}
        gone = Counter(job.agent for job in self._open if job.agent not in self._operators)
        if gone:
            names = ", ".join(f"{agent} ({count:,})" for agent, count in sorted(gone.items()))
            raise UserError(
                f"{self.journal.where} has open jobs of agents that are not durable agents of this program: {names}",
                hint="keep these agents until their jobs have ended; or --fresh --forget-effects, and effects may be repeated",
            )
        jobs: defaultdict[str, list[OpenJob]] = defaultdict(list)
        for job in self._open:
            jobs[job.agent].append(job)
        for agent_id, operator in self._operators.items():
            operator.restore(jobs[agent_id])
        self.go_on = sum(job.ended is None for job in self._open)
        self._open = []
        if self.known:
            self._admit()

    def _admit(self) -> None:
        self.known = True
        for operator in self._operators.values():
            operator.admit()

    def completed(self, manifest: Manifest, task: str) -> None:
        """Called when a checkpoint is complete. If it contains the journal's position, jobs may begin from now on."""
        facts = stored_journal(manifest, task)
        if facts is not None:
            self._positions[manifest.checkpoint_id] = _needed_by(manifest, facts)
            if not self.known:
                self._admit()

    def retained(self, oldest_id: int) -> None:
        """Trims the journal. Keeps the entries that are needed by a savepoint, by the checkpoint `oldest_id`, or by a
        later checkpoint.
        """
        positions = self._positions.get(oldest_id)
        self._positions = {name: each for name, each in self._positions.items() if name >= oldest_id}
        if positions is not None and not self.host.stopping:
            forget_before_ms = max(0, round((self._clock.time() - self._dedupe_s) * 1000))
            self.host.log.trim(lambda: self._with_savepoints(positions), forget_before_ms)

    def _with_savepoints(self, positions: Mapping[int, int]) -> Mapping[int, int] | None:
        """Returns, by partition, the first offset of the journal that a checkpoint or a savepoint needs. `positions`
        has the offsets that the checkpoints need. Returns None if the notes of the savepoints cannot be read now.
        Blocks.
        """
        needed = dict(positions)
        try:
            notes = [] if self._storage is None else self._storage.savepoints()
        except SabotError as error:
            _log.warning("the journal is not trimmed, because the notes of savepoints cannot be read: %s", error)
            return None
        for note in notes:
            if note.journal["identity"] == self.journal.identity:
                for partition, offset in _needed(note.journal).items():
                    needed[partition] = min(offset, needed.get(partition, offset))
        return needed

    def leave(self) -> None:
        """Lets the durable agents end although some of their jobs are parked. These jobs stay parked in the journal.
        Called when all inputs have ended while the app drains.
        """
        for operator in self._operators.values():
            operator.leaving = True
            operator.release()

    @property
    def rest(self) -> bool:
        """True if jobs are parked. In that case the app is not finished, even if all its inputs have ended."""
        return self.host.parking.parked > 0

    @property
    def left_behind(self) -> list[str]:
        """The names of calls that still run although they were cancelled."""
        return self.host.left_behind

    @property
    def flushes(self) -> Flushes:
        """The log of the jobs. A barrier waits until its entries are durable."""
        return self.host.log

    def facts(self) -> dict[str, Any]:
        """Returns the facts about the journal for a checkpoint."""
        return self.host.log.facts()

    def start(self) -> None:
        """Starts the host of the jobs."""
        self.host.start()

    async def quiesce(self) -> None:
        """Stops all jobs. No job begins or continues. Effects that are under way have some time to end."""
        await self.host.quiesce()

    async def close(self) -> None:
        """Removes the jobs from memory, and closes the mailboxes. The jobs stay in the journal. Idempotent."""
        await self.host.close()
        await run_in_thread(self.mail.shut)

    def statistics(self) -> dict[str, Any]:
        """Returns the figures of the host, and `waiting`, the number of rows that wait for their turn, in memory and in
        mailboxes. May be called from any thread.
        """
        waiting = sum(each.waiting_rows() for each in list(self._operators.values())) + self.mail.rows
        return {**self.host.statistics(), "waiting": waiting}
