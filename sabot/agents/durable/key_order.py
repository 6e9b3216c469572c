"""The order of a durable agent's rows: a key has at most one job at a time, even if that job is parked.

    add ─▶ its turn, if its key has no job; else behind the key: in memory or, if the job takes long, in the mailbox

A row whose turn has come may begin its job. When that job ends, the next one of the key gets its turn. First come the
key's other jobs that are open in the journal, then the rows in its mailbox, then the rows in memory. A row stays in its
mailbox until its job is parked or has ended.
"""

import logging
from collections import deque
from collections.abc import Iterable
from typing import Protocol

import msgspec

from sabot.agents.durable.job_rows import JobCall, WaitingInput, decode_waiting, encode
from sabot.agents.durable.mailbox import Mailboxes, MailRoom
from sabot.api.agent import AgentSpec
from sabot.base.redaction import scrubbed
from sabot.errors import MailboxFull, SabotError, UserError
from sabot.jobs.tree import parent_of
from sabot.operators.agents.timers import key_of

_log = logging.getLogger(__name__)


class OrderOwner(Protocol):
    """The owner of the rows that are put in order: a durable agent."""

    def turn(self, call: JobCall) -> None:
        """Called when the turn of a row has come, because it is the next one of its key or has no key. The job of the
        row may now begin.
        """

    def is_known(self, call: JobCall) -> bool:
        """Looks for the job of this call among those that have begun. If it is there, drops the row, or refuses it if
        its content differs from the job's input. Returns True if the job was found.
        """

    def end_row(self, call: JobCall) -> None:
        """Called when a row has been written to a mailbox. From now on, checkpoints save it with the mailbox, and no
        longer among the unfinished rows.
        """

    def refuse(self, call: JobCall, error: SabotError) -> None:
        """Makes the row a dead letter."""

    def has_failed(self) -> bool:
        """Returns True if the agent has failed. After that no row gets its turn."""

    def mail_room(self) -> None:
        """Called when no row in memory waits for a full mailbox any more. The agent then accepts input again."""


class _Queue(msgspec.Struct, eq=False, gc=False):
    """The queue of a key that has a job.

    - `before`: the key's other jobs that were open in the journal. They come first.
    - `waiting`: the rows in memory. They come after those jobs.

    Both are None while they are empty, as they are for most keys. An empty deque takes 600 bytes, and slows the garbage
    collector.
    """

    call: JobCall
    before: deque[JobCall] | None = None
    waiting: deque[JobCall] | None = None

    @property
    def takes_long(self) -> bool:
        return self.call.parked or self.call.blocked


class KeyOrder:
    """The order of an agent's rows. It decides when the turn of each row comes.

    - `crowded`: the keys whose mailbox is full, so that their further rows wait in memory. While there is such a key,
      the agent takes no input.
    - `children`: the ids of child jobs that wait for their turn.
    """

    def __init__(self, spec: AgentSpec, room: MailRoom, owner: OrderOwner) -> None:
        self.boxes = Mailboxes(room, spec.agent_id, spec.mailbox)
        self.crowded: dict[bytes, None] = {}
        self.children: set[str] = set()
        self._spec = spec
        self._owner = owner
        self._queues: dict[bytes, _Queue] = {}
        self._warned: set[str] = set()
        self._started = False
        room.on_room.append(self.unpack)

    def restore(self, calls: Iterable[JobCall]) -> None:
        """Restores the open jobs of the journal (`calls`, in the order in which they began), and then the mailboxes.
        Called before any row comes. Raises UserError if rows wait in mailboxes, but the agent no longer has `key=`.
        """
        if self._spec.job_key is None and self.boxes.rows:
            raise UserError(
                f"agent {self._spec.agent_id} has no key=, and {self.boxes.rows:,} records wait in mailboxes of the keys that it had",
                hint="keep the old key= until its jobs have ended",
            )
        for call in calls:
            queue = self._queues.get(call.scope)
            if self._spec.job_key is None or queue is None:
                self._turn(call)
            else:
                queue.before = _with(queue.before, call)
        for scope in list(self.boxes):
            # Rows of jobs that have begun are the first of their mailbox. They are removed at once: if one were still there at the next
            # barrier, and its job had ended by then, the job would begin again after a restore.
            while scope in self.boxes and self._owner.is_known(self._mailed(scope)):
                pass
            if scope in self.boxes and scope not in self._queues:
                self._turn(self._mailed(scope))

    def start(self, calls: Iterable[JobCall]) -> None:
        """Ends the restore. Called when the facts of the checkpoint are restored. Drops `JobCall.before`, the job as it
        was in the journal, of those `calls` that are parked already. From now on `suspend` does this for each job that
        is parked.
        """
        self._started = True
        for call in calls:
            if call.parked:
                call.before = None

    def add_child(self, call: JobCall) -> None:
        """Adds a child job that another job, its parent, has asked for. Raises UserError if the key already has a job
        that is the parent or one of the parent's ancestors. That job and the child would wait for each other.
        """
        queue = None if self._spec.job_key is None else self._queues.get(call.scope)
        above = parent_of(call.job_id)[0]
        while queue is not None and above:
            if queue.call.job_id == above:
                raise UserError(
                    f"ctx.child: {self._spec.agent_id} has one job of {self._spec.key} {key_of(call.scope)!r} at a time, and that is job "
                    f"{above}, which would wait for this child",
                    hint="call a function, begin a child with another key or of an agent without key=, or use ctx.continue_as",
                )
            above = parent_of(above)[0]
        self.children.add(call.job_id)
        self.add(call)

    def add(self, call: JobCall) -> None:
        """Adds a row behind the rows of its key that came before."""
        queue = None if self._spec.job_key is None else self._queues.get(call.scope)
        if queue is not None and queue.call.blocked:
            self._warn_blocked(queue.call)
        if queue is None:
            self._turn(call)
        elif queue.takes_long or call.scope in self.boxes:
            self._post(queue, call)
        else:
            queue.waiting = _with(queue.waiting, call)

    def _warn_blocked(self, blocked: JobCall) -> None:
        """Logs that rows of a key wait behind its blocked job. It does so once for each blocked job."""
        if blocked.job_id not in self._warned:
            self._warned.add(blocked.job_id)
            _log.warning(
                "agent %s: rows for %s %r wait behind job %s, which is blocked until the app runs with the code that it began with",
                *(self._spec.agent_id, self._spec.key, scrubbed(str(key_of(blocked.scope))), blocked.job_id),
            )

    @property
    def behind_blocked(self) -> int:
        """The number of rows and jobs that wait behind blocked jobs of their keys."""
        queues = [(scope, each) for scope, each in self._queues.items() if each.call.blocked]
        return sum(self.boxes.rows_of(scope) + len(q.before or ()) + len(q.waiting or ()) for scope, q in queues)

    def _turn(self, call: JobCall) -> None:
        self.children.discard(call.job_id)
        if self._spec.job_key is not None:
            queue = self._queues.get(call.scope)
            if queue is None:
                self._queues[call.scope] = _Queue(call)
            else:
                queue.call = call
        self._owner.turn(call)

    def suspend(self, call: JobCall) -> None:
        """Moves the rows of a key that wait in memory into the mailbox of the key. Called when the key's job (`call`)
        is parked or blocked.
        """
        if self._started:
            call.before = None
        if self._spec.job_key is not None:
            self._spill(self._queues[call.scope])

    def end(self, call: JobCall) -> None:
        """Gives the next row of a key its turn. Called when the key's job (`call`) has ended."""
        if self._spec.job_key is None:
            return
        scope, queue = call.scope, self._queues[call.scope]
        while not self._owner.has_failed():
            if queue.before:
                call = queue.before.popleft()
            elif scope in self.boxes:
                call = self._mailed(scope)
            elif queue.waiting:
                call = queue.waiting.popleft()
            else:
                del self._queues[scope]
                break
            if call.before is not None or not self._owner.is_known(call):
                self._turn(call)
                break
        if self.crowded:
            self.unpack()

    def _mailed(self, scope: bytes) -> JobCall:
        """Returns a call for the first row of a mailbox."""
        found = decode_waiting(self.boxes.first(scope))
        asked = found.named, found.failed_run
        return JobCall(found.job, scope, found.digest, found.record, *asked, mailed=True, behalf=found.behalf)

    def _post(self, queue: _Queue, call: JobCall) -> None:
        """Puts a row into the mailbox of its key. If the mailbox is full, the row becomes a dead letter, or it waits in
        memory and the agent accepts no input meanwhile. A child job always waits in memory.
        """
        assert call.record is not None
        scope = call.scope
        if call.job_id in self.children:
            queue.waiting = _with(queue.waiting, call)  # its parent asks for it again after a restart
        elif scope not in self.crowded and self.boxes.has_room(scope):
            waiting = WaitingInput(call.job_id, call.digest, call.named, call.failed_run, call.record, call.behalf)
            self.boxes.add(scope, encode(waiting))
            self._owner.end_row(call)
        elif self._spec.mailbox_full == "dead_letter":
            full = f"the mailbox of {self._spec.key} {key_of(scope)!r} is full: job {queue.call.job_id} has not ended"
            self._owner.refuse(call, MailboxFull(full))
        else:
            queue.waiting = _with(queue.waiting, call)
            self.crowded[scope] = None

    def _spill(self, queue: _Queue) -> None:
        waiting, queue.waiting = queue.waiting, None
        for call in waiting or ():
            self._post(queue, call)

    def unpack(self) -> None:
        """Moves rows that wait in memory into their mailboxes, as far as these have room again."""
        for scope in list(self.crowded):
            queue = self._queues.get(scope)
            if queue is None or not (queue.takes_long or scope in self.boxes):
                del self.crowded[scope]  # its rows wait in memory now
            elif self.boxes.has_room(scope):
                del self.crowded[scope]
                self._spill(queue)
        if not self.crowded:
            self._owner.mail_room()


def _with(calls: deque[JobCall] | None, call: JobCall) -> deque[JobCall]:
    if calls is None:
        return deque((call,))
    calls.append(call)
    return calls
