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
from typing import TYPE_CHECKING, Any

from sabot.agents.accounts.guard import use_of_answer
from sabot.agents.durable.batch_operator import DurableBatchOperator
from sabot.agents.durable.operator import DurableAgentOperator
from sabot.agents.durable.waiting_rows import NOTES, STATE, MailRoom, NotesOfParked
from sabot.api.agent import AgentSpec
from sabot.base.os_errors import restoring
from sabot.base.quantities import counted_words
from sabot.base.threads import run_in_thread, run_to_end
from sabot.clock import Clock
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.operators.agents.operator import AgentOperator
from sabot.engine.runtime.app_spec import AppSpec
from sabot.engine.runtime.life.restore import positions_in
from sabot.engine.runtime.tasks.manifest_facts import stored_journal
from sabot.engine.runtime.tasks.writing import Flushes, OperatorPort
from sabot.engine.state import open_backend
from sabot.engine.state.base import Cut, LocalBackend
from sabot.errors import SabotError, UserError
from sabot.jobs.guard import EffectGuard
from sabot.jobs.host import JobHost
from sabot.jobs.journal_calls import call_journal
from sabot.jobs.log import Listener
from sabot.jobs.open_jobs import unapplied_jobs
from sabot.jobs.owner import OpenJob
from sabot.journal import Journal, JournalReader, open_journal
from sabot.journal.base import check_place
from sabot.journal.memory import MemoryJournal, MemoryStorage
from sabot.journal.source import held_for
from sabot.journal.sqlite import SqliteJournal

if TYPE_CHECKING:
    from sabot.base.figures import ToldJobs

_log = logging.getLogger(__name__)


def journal_place(app: AppSpec) -> str | Path:
    """Returns the place of an app's journal: a directory, an address, or "memory". Raises UserError if no place is
    configured.
    """
    place = app.settings.journal_place
    if place is None:
        raise UserError(
            f"app {app.id} has durable agents, but no place for their journal",
            hint='App(..., state=DIRECTORY); or, for tests, journal="memory", which is lost with the process',
        )
    return place


def open_app_journal(
    app: AppSpec, storage: CheckpointStorage | None, memory: MemoryStorage
) -> tuple[Journal, LocalBackend]:
    """Opens the journal of an app, and a store for the mailboxes of its agents. By default the journal is in the state
    directory of the app. Blocks.

    - `storage`: the storage of the app's checkpoints, or None.
    - `memory`: the entries of the journal, if its place is "memory".

    Raises UserError in these cases:

    - No place is configured for the journal.
    - The journal is not in memory, but the app makes no checkpoints.
    - The checkpoints are in an object store, but the journal is on this machine. Then a failure could lose one of the
      two.
    - The app is started with `--fresh`, and the journal contains effects, which would be forgotten. With
      `--forget-effects` too, they are deleted, unless the journal is on a server: that also raises UserError.
    - `--forget-effects` is used without `--fresh`.
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
    """Returns, by partition of the journal, the first offset that a restart from a checkpoint needs for its jobs.
    `facts` are the data about the journal that the checkpoint contains. Jobs that ended before this offset are
    complete in the checkpoint.
    """
    positions = dict(facts["positions"])
    for partition, offset in unapplied_jobs(facts).values():
        positions[partition] = min(offset, positions[partition])
    return positions


def _needed_by(manifest: Manifest, facts: Mapping[str, Any]) -> dict[int, int]:
    """Returns, by partition of the journal, the first offset that a restart from a checkpoint needs: for its jobs, or
    for its streams that read the journal as a source. `facts` are the data about the journal that the checkpoint
    contains.
    """
    inputs = [task.meta["input"] for task in manifest.tasks.values() if "positions" in task.meta.get("input", {})]
    return held_for(map(positions_in, inputs), _needed(facts))


def check_journal(journal: JournalReader, facts: Mapping[str, Any] | None, place: object = None) -> None:
    """Checks that a journal belongs to the checkpoint from which the app starts. Blocks.

    - `facts`: the data about the journal in that checkpoint, or None if there are none.
    - `place`: the place of the checkpoints for the error message, or None.

    Raises OtherJournal if the checkpoint was made with another journal, or if this journal lacks entries that the
    checkpoint needs. Raises UserError if the journal contains jobs, but `facts` is None.
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


def tell_of_journal(journal: JournalReader, facts: Mapping[str, Any], newest: Mapping[str, Any] | None) -> None:
    """Logs how far the journal has gone since the savepoint from which the app starts. Blocks. `facts`: the data about the
    journal in the savepoint. `newest`: those in the app's newest checkpoint, or None; if it knows of more than the journal
    has, somebody has put an older copy of the journal in its place, and nobody else would notice.
    """
    there = journal.positions()
    later = sum(max(0, there.get(partition, 0) - offset) for partition, offset in dict(facts["positions"]).items())
    _log.info(
        "the savepoint does not contain the journal: %s goes on, with %s since the savepoint; what they record is not done again",
        *(journal.where, counted_words(later, "entry")),
    )
    if newest is None or newest["identity"] != facts["identity"]:
        return
    lost = sum(max(0, offset - there.get(partition, 0)) for partition, offset in dict(newest["positions"]).items())
    if lost:
        _log.warning(
            "%s lacks %s that the newest checkpoint of this app knows of: it is an older copy, and what durable agents did since "
            "then may be done again",
            *(journal.where, counted_words(lost, "entry")),
        )


def _load(restored: Manifest, task: str, name: str, load: Callable[[Path], None]) -> None:
    load(restored.state_directory(task, name))


class DurableJobs:
    """The jobs of all durable agents of an app, in one run of the app. It owns the JobHost, the mailboxes and the
    notes about parked jobs. All methods are called on the event loop of the run, unless their docstring says
    otherwise.
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
        """Makes the object. The caller must then call `open`, which reads the journal.

        - `mail`: the store of the mailboxes. `close` closes it too.
        - `known`: True if a complete checkpoint contains a position in this journal, or if the app makes no
          checkpoints. With False no job begins until such a checkpoint is complete.
        - `storage`: the storage of checkpoints and savepoints, or None.
        - `dedupe_s`: the seconds for which the journal remembers jobs that have ended, so that a record that comes
          again is recognised.
        - `on_broken`: a function that is called with a description and an error, if the state and the output of jobs
          may no longer agree.
        - `listener`: an object that gets the events of jobs, or None.
        - `guard`: the guard that decides on effects of jobs, or None.
        """
        self.journal = journal
        self._notes = NotesOfParked()
        self.host = JobHost(
            journal,
            clock=clock,
            on_broken=on_broken,
            notes=self._notes,
            listener=listener,
            guard=guard,
            use_of=use_of_answer,
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
        """Loads the mailboxes and the notes about parked jobs from the checkpoint. Reads from the journal the jobs
        that are open, and the jobs that ended after the checkpoint.

        - `restored`: the manifest of the checkpoint from which the app starts, or None.
        - `task`: the name of the task in which the agents run.
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
        await call_journal(self.host.journal.begins.limit, {})  # clients begin no jobs here

    def cut(self) -> dict[str, Cut]:
        """Returns the snapshots for a checkpoint: those of the mailboxes and of the notes about parked jobs, by the
        name of the state. A snapshot that would be empty is left out.
        """
        cuts = {STATE: self.mail.cut(), NOTES: self._notes.cut()}
        return {name: cut for name, cut in cuts.items() if cut is not None}

    def operator(self, spec: AgentSpec, **wiring: Any) -> DurableAgentOperator:
        """Makes the operator of a durable agent, and registers it by the id of the agent. `wiring` contains the
        arguments of the operator's constructor, among them `leaves_at_once`.
        """
        kind = DurableBatchOperator if spec.batch else DurableAgentOperator
        made = self._operators[spec.agent_id] = kind(spec, host=self.host, mail=self.mail, **wiring)
        return made

    def reads(self, agent_id: str, topic: str, log: str | None, again: int) -> None:
        """Sets how the job ids of an agent are made for a topic that it reads.

        - `log`: the identity of the topic's log, which changes if the topic is deleted and created again. None if job
          ids are not made from positions in the topic.
        - `again`: the number of times that the user has restarted the app with `--reprocess` to process the records
          anew.
        """
        names = self._operators[agent_id].names
        names.again = max(again, names.again)
        if log is not None:
            names.logs[topic] = log

    def restore(self, operators: Mapping[str, AgentOperator]) -> None:
        """Passes the open jobs of the journal to the operators of their agents. If a checkpoint contains the position
        in the journal (`known`), also allows jobs to begin.

        An agent whose results go directly into another durable agent is set to write its job id into the headers of
        each result. Raises UserError if the program no longer has the agent of an open job.
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
        """Called when a checkpoint is complete. If it contains the position in the journal, jobs may begin from then
        on. `manifest` describes the checkpoint, and `task` is the name of the task in which the agents run.
        """
        facts = stored_journal(manifest, task)
        if facts is not None:
            self._positions[manifest.checkpoint_id] = _needed_by(manifest, facts)
            if not self.known:
                self._admit()

    def retained(self, oldest_id: int) -> None:
        """Called when the checkpoints before `oldest_id` have been deleted. Deletes the journal entries that neither
        the remaining checkpoints nor a savepoint need.
        """
        positions = self._positions.get(oldest_id)
        self._positions = {name: each for name, each in self._positions.items() if name >= oldest_id}
        if positions is not None and not self.host.stopping:
            forget_before_ms = max(0, round((self._clock.time() - self._dedupe_s) * 1000))
            self.host.log.trim(lambda: self._with_savepoints(positions), forget_before_ms)

    def _with_savepoints(self, positions: Mapping[int, int]) -> Mapping[int, int] | None:
        """Returns, by partition of the journal, the first offset that the checkpoints or the savepoints need.
        `positions` contains the first offsets that the checkpoints need. Returns None if the savepoints cannot be
        read at present. Blocks.
        """
        needed = dict(positions)
        try:
            notes = [] if self._storage is None else self._storage.savepoints()
        except SabotError as error:
            _log.warning("the journal is not trimmed, because the notes of savepoints cannot be read: %s", error)
            return None
        notes = [note for note in notes if note.journal["identity"] == self.journal.identity]
        if notes and isinstance(self.journal, SqliteJournal):
            self.journal.drop_copies(max(note.made_ms for note in notes))
        for note in notes:
            for partition, offset in _needed(note.journal).items():
                needed[partition] = min(offset, needed.get(partition, offset))
        return needed

    def leave(self) -> None:
        """Lets the app stop although jobs are parked (they wait for something). Called when the app drains its inputs
        in order to stop, and all inputs have ended. The parked jobs stay open in the journal, and continue after the
        next start.
        """
        for operator in self._operators.values():
            operator.leaving = True
            operator.release()

    @property
    def rest(self) -> bool:
        """True if jobs are parked, which means that they wait for something. Then the app must keep running, even if
        all inputs have ended.
        """
        return self.host.parking.parked > 0

    @property
    def left_behind(self) -> list[str]:
        """The names of calls that still run although they were cancelled."""
        return self.host.left_behind

    @property
    def flushes(self) -> Flushes:
        """The log through which jobs write to the journal. A checkpoint barrier waits until the entries written so
        far are durable.
        """
        return self.host.log

    def facts(self) -> dict[str, Any]:
        """Returns the data about the journal that a checkpoint stores, such as the identity of the journal and the
        positions in it.
        """
        return self.host.log.facts()

    def start(self) -> None:
        """Starts the JobHost, which runs the jobs."""
        self.host.start()

    async def quiesce(self) -> None:
        """Stops all jobs: none begins or continues. Waits a limited time for effects whose calls have been sent."""
        await self.host.quiesce()

    async def close(self) -> None:
        """Removes the jobs from memory, and closes the mailboxes. The jobs stay open in the journal. May be called
        more than once.
        """
        await self.host.close()
        await run_in_thread(self.mail.shut)

    def statistics(self) -> "ToldJobs":
        """Returns the numbers of the JobHost, and `waiting`: the number of rows that have not ended, in the queues of
        the agents and in mailboxes. May be called from any thread.
        """
        waiting = sum(each.waiting_rows() for each in list(self._operators.values())) + self.mail.rows
        return {**self.host.statistics(), "waiting": waiting}
