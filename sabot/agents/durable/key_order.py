"""The order of a durable agent's rows: a key has at most one job at a time, even if that job is parked.

    add ─▶ its turn, if its key has no job; else behind the key: in memory or, if the job takes long, in the mailbox

A row whose turn has come may begin its job. When that job ends, the next one of the key gets its turn. First come the
key's other jobs that are open in the journal, then the rows in its mailbox, then the rows in memory. A row stays in its
mailbox until its job is parked or has ended.
"""

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable

import msgspec

from sabot.agents.durable.job_rows import JobCall, WaitingInput, decode_waiting, encode
from sabot.agents.durable.waiting_rows import Mailboxes, MailRoom
from sabot.api.agent import AgentSpec
from sabot.base.redaction import scrubbed
from sabot.engine.operators.agents.timers import key_of
from sabot.errors import MailboxFull, SabotError, UserError
from sabot.jobs.tree import parent_of

_log = logging.getLogger(__name__)


class OrderOwner(ABC):
    """The agent whose rows a KeyOrder puts in order. KeyOrder calls these methods."""

    @abstractmethod
    def turn(self, call: JobCall) -> None:
        """Called when the job of `call` may begin: its row has no key, or no other job of the key is open."""

    @abstractmethod
    def is_known(self, call: JobCall) -> bool:
        """Decides whether the row of `call` needs no new job, because a job with its id exists. Returns False if there
        is no such job. Returns True in these cases:

        - The row equals the input of that job. Then it is dropped.
        - The row differs from that input. Then it is refused as an error.
        - The input is only known when the journal has answered. Then the row is kept. If the row is the first of its
          mailbox, it remains there (`call.mailed` is still True), and after the answer the owner calls `look_again` or
          `end` for it.
        """

    @abstractmethod
    def end_row(self, call: JobCall) -> None:
        """Called when the row of `call` has been written to a mailbox. From then on checkpoints store it with the
        mailbox, and must not store it with the agent's queue too.
        """

    @abstractmethod
    def refuse(self, call: JobCall, error: SabotError) -> None:
        """Makes the row of `call` a dead letter, with this error."""

    @abstractmethod
    def has_failed(self) -> bool:
        """Returns True if the agent has failed. After that no further job begins."""

    @abstractmethod
    def mail_room(self) -> None:
        """Called when every mailbox has room again, so that no row waits in memory for a full mailbox. The agent may
        then accept input again.
        """


class _Queue(msgspec.Struct, eq=False, gc=False):
    """The jobs and rows of a key that has a job.

    - `call`: the current job of the key.
    - `before`: other open jobs of the key that the journal contained at the start of the app. They run after `call`.
    - `waiting`: the rows that wait in memory. Their jobs run after those in `before`.

    `before` and `waiting` are None if there are no such jobs or rows, because an empty deque would take 600 bytes for
    each key.
    """

    call: JobCall
    before: deque[JobCall] | None = None
    waiting: deque[JobCall] | None = None

    @property
    def takes_long(self) -> bool:
        return self.call.parked or self.call.blocked


class KeyOrder:
    """The order in which the rows of an agent become jobs. With `key=`, at most one job of each key is open at a
    time. Meanwhile further rows of the key wait in memory. If the job is parked (it waits for something, and is not
    in memory) or blocked (its function no longer matches its journal), they wait in the mailbox of the key.

    - `boxes`: the mailboxes of the agent.
    - `crowded`: the keys whose mailbox is full, so that further rows of the key wait in memory. While there is such a
      key, the agent accepts no input.
    - `children`: the ids of the child jobs that wait until the current job of their key has ended.
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
        """Takes over the jobs that were open in the journal, and then the rows in the mailboxes. Must be called before
        the first row arrives. `calls` are the open jobs, in the order in which they began.

        If a row of a mailbox makes the agent fail, the row remains in the mailbox, and no further row is taken over.
        Raises UserError if mailboxes contain rows, but the agent no longer has `key=`.
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
                if self._owner.has_failed():  # by this row, which stays in its mailbox
                    return
        for scope in list(self.boxes):
            while scope in self.boxes and scope not in self._queues and not self._owner.has_failed():
                self._next(self._mailed(scope))

    def start(self, calls: Iterable[JobCall]) -> None:
        """Frees the memory that parked jobs no longer need after a restore, by setting `JobCall.before` to None. A job
        is parked if it waits for something and its function is not in memory. Called once, when the agent starts.
        `calls` are its jobs. From then on `suspend` frees this memory.
        """
        self._started = True
        for call in calls:
            if call.parked:
                call.before = None

    def add_child(self, call: JobCall) -> None:
        """Adds a child job, which another job (its parent) has asked for. Raises UserError if the current job of the
        child's key is the parent or an ancestor of the parent. Such a job cannot end before the child, and the child
        cannot begin before that job has ended.
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
        """Adds a row. Its job may begin at once if no other job of its key is open. Otherwise the row waits behind
        earlier rows of its key.
        """
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
        """Logs a warning that rows of a key wait behind a blocked job, whose function no longer matches its journal.
        This happens once for each blocked job.
        """
        if blocked.job_id not in self._warned:
            self._warned.add(blocked.job_id)
            _log.warning(
                "agent %s: rows for %s %r wait behind job %s, which is blocked until the app runs with the code that it began with",
                *(self._spec.agent_id, self._spec.key, scrubbed(str(key_of(blocked.scope))), blocked.job_id),
            )

    @property
    def behind_blocked(self) -> int:
        """The number of rows and jobs that cannot begin because a blocked job has the same key. A job is blocked if
        its function no longer matches its journal.
        """
        queues = [(scope, each) for scope, each in self._queues.items() if each.call.blocked]
        return sum(self.boxes.rows_of(scope) + len(q.before or ()) + len(q.waiting or ()) for scope, q in queues)

    def _turn(self, call: JobCall) -> None:
        self.children.discard(call.job_id)
        if self._spec.job_key is not None:
            self._lead(call)
        self._owner.turn(call)

    def _lead(self, call: JobCall) -> None:
        queue = self._queues.get(call.scope)
        if queue is None:
            self._queues[call.scope] = _Queue(call)
        else:
            queue.call = call

    def suspend(self, call: JobCall) -> None:
        """Moves the rows of a key from memory into the mailbox of the key. Called when the key's current job (`call`)
        is parked (it waits for something) or blocked (its function no longer matches its journal), because that job may
        stay open for long.

        Rows of child jobs stay in memory. If the mailbox is full, other rows stay in memory too, or become dead letters
        if the agent has mailbox_full="dead_letter".
        """
        if self._started:
            call.before = None
        if self._spec.job_key is not None:
            self._spill(self._queues[call.scope])

    def end(self, call: JobCall) -> None:
        """Lets the next job of a key begin. Called when the key's current job (`call`) has ended. If nothing waits,
        the key is removed.
        """
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
            if self._next(call):
                break
        if self.crowded:
            self.unpack()

    def look_again(self, call: JobCall) -> None:
        """Handles the first row of a mailbox again, after the journal has answered whether the job of the row exists.
        Gives the row its turn, or lets the next job of the key begin.
        """
        if not self._next(call):
            self.end(call)

    def _next(self, call: JobCall) -> bool:
        """Gives a row of a key its turn, so that its job may begin. Returns False if the row needs no turn, because its
        job exists already.

        If the row is the first of a mailbox and must wait until the journal has answered, it becomes the current job of
        the key, so that later rows stay behind it. Its turn then comes in `look_again`. Returns True in this case.
        """
        if call.before is not None or not self._owner.is_known(call):
            self._turn(call)
        elif call.mailed:
            self._lead(call)
        else:
            return False
        return True

    def _mailed(self, scope: bytes) -> JobCall:
        """Makes a JobCall from the first row in the mailbox of the key `scope`. The row remains in the mailbox."""
        found = decode_waiting(self.boxes.first(scope))
        asked = found.named, found.failed_run
        return JobCall(found.job, scope, found.digest, found.record, *asked, mailed=True, behalf=found.behalf)

    def _post(self, queue: _Queue, call: JobCall) -> None:
        """Puts a row into the mailbox of its key. If the mailbox is full and the agent has
        mailbox_full="dead_letter", the row becomes a dead letter. With another value of that option the row waits in
        memory, and the agent accepts no input until there is room. A child job always waits in memory.
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
        """Moves rows that wait in memory into their mailboxes, for each mailbox that has room again. If no row waits
        in memory for room after that, tells the agent that it may accept input (`OrderOwner.mail_room`).
        """
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
