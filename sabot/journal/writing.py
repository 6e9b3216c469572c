"""Group commit: a bounded queue of entries, and one thread that makes all waiting entries durable in one step.

While the disk writes one group, the entries of the next group collect in the queue. So the size of a group follows the
load: a single entry needs one commit, and a thousand waiting entries share one. No timer delays an entry in order to
collect more.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from sabot.base.os_errors import hint_of
from sabot.base.present_job import refuse_in_job
from sabot.base.threads import call_on_loop, threads
from sabot.errors import JournalFailed, JournalFull, SabotError, UserError
from sabot.journal.base import Approval, Position
from sabot.journal.entries import INLINE_BYTES, Entry, body_of, encode_entry, without_body

CAPACITY_BYTES = 64 << 20

_OVERHEAD = 200  # bytes that an entry in the queue costs in addition to its own
_MOST = 4096  # the most entries of one group


def _loop_here() -> asyncio.AbstractEventLoop:
    """Returns the event loop whose future the writer's thread wakes. Raises UserError in the function of a job: no thread can
    wake its loop, so the writer would end with the error, and all jobs of the journal wait for ever.
    """
    refuse_in_job("looks into the jobs of a kernel", "await ctx.step(f, …) calls f outside of the job, once")
    return asyncio.get_running_loop()


@dataclass(frozen=True, slots=True)
class Appended:
    """An entry in the queue of a GroupWriter.

    - `data`: the entry as bytes. It is empty if the body is long; the writer's thread then computes the hash of the
      body and encodes the entry.
    - `letter`: the number of the letter from which the entry was made; 0 for none.
    - `size`: the bytes of the entry in the queue, which are limited by `capacity_bytes`.
    - `approvals`: the approvals that are noted with the entry (`Journal.note_approval`).
    - `goes_on`: True if the next entry is in the same group.
    """

    offset: int
    entry: Entry
    data: bytes
    letter: int
    size: int
    approvals: tuple[Approval, ...] = ()
    goes_on: bool = False


class GroupWriter:
    """The writer of one partition of a journal, with its queue and its thread.

    - `commit`: a function that makes a group of entries durable, or raises an error. It is called in the writer's
      thread. After an error, the writer has failed and never calls the function again.
    - `capacity_bytes`: the most bytes that may wait in the queue.
    - `store`: the name of the disk or server, for messages.
    - `idle`: a function that is called in the writer's thread, many times a second, while the queue is empty. If it
      raises an error, the writer has failed too. None to call nothing.
    """

    def __init__(
        self,
        where: str,
        partition: int,
        first: int,
        commit: Callable[[list[Appended]], None],
        capacity_bytes: int = CAPACITY_BYTES,
        store: str = "disk",
        *,
        idle: Callable[[], None] | None = None,
    ) -> None:
        self._where = where
        self._partition = partition
        self._commit = commit
        self._idle = idle
        self._capacity = capacity_bytes
        self._store = store
        self._changed = threading.Condition()
        self._queue: deque[Appended] = deque()
        self._noted: tuple[Approval, ...] = ()  # with the next entry
        self._waiting_bytes = 0
        self._next = self._durable = first
        self._last = first - 1
        self._failed: JournalFailed | None = None
        self._closing = False
        self._awaited: dict[asyncio.AbstractEventLoop, list[tuple[int, asyncio.Future[None]]]] = {}
        self._roomless: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.commits = self._appended = 0
        self._thread = threads.spawn(f"sabot-journal {where}", self._turn)
        self._thread.start()

    @property
    def durable_offset(self) -> int:
        """The offset behind the last durable entry."""
        return self._durable

    @property
    def last_offset(self) -> int:
        """The offset of the last entry that was appended; the one before the first if there is none."""
        return self._last

    def jump(self, offset: int) -> None:
        """Lets the next entry have this offset, which is higher than all before, or another one above it."""
        with self._changed:
            self._next = max(self._next, offset)
            if not self._queue:
                self._durable = self._next

    def append(self, entry: Entry, letter: int = 0) -> Position:
        """Appends an entry as `Journal.append` does. `letter`: the number of the letter from which the entry was
        made; 0 for none.
        """
        data, size = _encoded(entry)
        with self._changed:
            self._check_room()
            return self._add(entry, letter, data, size)

    def append_all(self, entries: Sequence[tuple[Entry, int]]) -> list[Position]:
        """Appends entries, each with the number of its letter, that become durable in one step. Otherwise as `append`."""
        encoded = [(entry, letter, *_encoded(entry)) for entry, letter in entries]
        with self._changed:
            self._check_room()
            whole = [self._add(*each, goes_on=True) for each in encoded[:-1]]
            return [*whole, *(self._add(*each) for each in encoded[-1:])]

    def _check_room(self) -> None:
        self._check()
        # raised only if the queue was full before: after `room`, an entry of any length is taken
        if self._waiting_bytes >= self._capacity:
            raise JournalFull(
                f"{self._where}: {len(self._queue):,} entries with {self._waiting_bytes:,} bytes wait for its {self._store}"
            )

    def _add(self, entry: Entry, letter: int, data: bytes, size: int, *, goes_on: bool = False) -> Position:
        offset = self._last = self._next
        self._next += 1
        self._appended += 1
        self._queue.append(Appended(offset, entry, data, letter, size, self._noted, goes_on))
        self._noted = ()
        self._waiting_bytes += size
        if len(self._queue) == 1:
            self._changed.notify_all()
        return Position(self._partition, offset)

    def note(self, approval: Approval) -> None:
        """Notes an approval with the next entry (`Journal.note_approval`)."""
        with self._changed:
            self._noted += (approval,)

    def _check(self) -> None:
        if self._failed is not None:
            raise JournalFailed(self._failed.message, hint=self._failed.hint) from self._failed.__cause__
        if self._closing:
            raise UserError(f"{self._where} is closed")

    async def durable(self, offset: int) -> None:
        """Waits until the entry at this offset is durable (`Journal.durable`)."""
        if offset < self._durable:
            return
        loop = _loop_here()
        with self._changed:
            if offset < self._durable:
                return
            if self._failed is not None:
                self._check()
            future: asyncio.Future[None] = loop.create_future()
            self._awaited.setdefault(loop, []).append((offset, future))
        await future

    def wait_durable(self, offset: int, timeout: float | None) -> bool:
        """Blocks until the entry at this offset is durable, as `Journal.wait_durable` does. Returns False if it is not
        durable after `timeout` seconds.
        """
        with self._changed:
            self._changed.wait_for(lambda: offset < self._durable or self._failed is not None, timeout)
            if offset < self._durable:
                return True
            if self._failed is not None:
                self._check()
            return False

    async def room(self) -> None:
        """Waits until at most half of the queue's capacity is used. The caller can then append many entries before it
        has to wait again (see `Journal.room`). Raises JournalFailed.
        """
        while True:
            with self._changed:
                self._check()
                if self._waiting_bytes <= self._capacity // 2:
                    return
                loop = _loop_here()
                future: asyncio.Future[None] = loop.create_future()
                self._roomless.append((loop, future))
            await future

    def statistics(self) -> dict[str, int]:
        """Returns figures:

        - `entries`, `commits`: the numbers of entries and of commits since the writer was made.
        - `waiting`, `bytes_waiting`: the number of entries that are not durable yet, and the bytes of these.
        """
        return {
            "entries": self._appended,
            "commits": self.commits,
            "waiting": len(self._queue),
            "bytes_waiting": self._waiting_bytes,
        }

    def close(self) -> None:
        """Closes the queue, waits until the entries in it are durable, and ends the thread. Does not wait for entries
        if a commit has failed.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _turn(self, wait_seconds: float) -> bool | None:
        with self._changed:
            if not self._queue and not self._closing and wait_seconds:
                self._changed.wait(wait_seconds)
            if self._failed is not None or (self._closing and not self._queue):
                return False
            group = list(islice(self._queue, _MOST))
            while group and group[-1].goes_on:
                group.append(self._queue[len(group)])
        try:
            if group:
                self._commit(group)
            elif self._idle is not None:
                self._idle()
        except BaseException as error:  # any error must be raised in all who wait
            self.fail(error)
            return False
        if not group:
            return None
        with self._changed:
            for each in group:
                self._queue.popleft()
                self._waiting_bytes -= each.size
            self._durable = self._queue[0].offset if self._queue else self._next
            self.commits += 1
            ready = self._ready()
            self._changed.notify_all()
        for loop, futures in ready:
            call_on_loop(loop, _set, futures)
        return True

    def _ready(self) -> list[tuple[asyncio.AbstractEventLoop, list["asyncio.Future[None]"]]]:
        """Returns the futures whose wait is over now, with their event loops. They wait for entries that are durable
        by now, or for room in the queue. All futures of one loop that wait for entries are in one list, so a commit
        wakes the loop only once.
        """
        ready = []
        for loop, awaited in list(self._awaited.items()):
            ready.append((loop, [future for offset, future in awaited if offset < self._durable]))
            left = [each for each in awaited if each[0] >= self._durable]
            if left:
                self._awaited[loop] = left
            else:
                del self._awaited[loop]
        if self._waiting_bytes <= self._capacity // 2:
            ready += [(loop, [future]) for loop, future in self._roomless]
            self._roomless.clear()
        return ready

    def fail(self, error: BaseException) -> None:
        """Makes the writer fail because of this error. All callers that wait now, and all later calls, raise
        JournalFailed.
        """
        mend = hint_of(error)
        anew = mend and f"{mend}; then open the journal anew, since it takes no entries until then: open jobs go on"
        failed = JournalFailed(
            f"{self._where}: entries could not be made durable: {getattr(error, 'message', None) or error}",
            hint=(error.hint if isinstance(error, SabotError) else "") or anew,
        )
        failed.__cause__ = error
        with self._changed:
            if self._failed is not None:
                return
            self._failed = failed
            waiting = [(loop, [future for _, future in awaited]) for loop, awaited in self._awaited.items()]
            waiting += [(loop, [future]) for loop, future in self._roomless]
            self._awaited.clear()
            self._roomless.clear()
            self._changed.notify_all()
        for loop, futures in waiting:
            call_on_loop(loop, _break, futures, failed)


def _encoded(entry: Entry) -> tuple[bytes, int]:
    """Returns the `data` and the `size` of an entry in the queue."""
    body = body_of(entry)
    if isinstance(body, bytes) and len(body) > INLINE_BYTES:
        encode_entry(without_body(entry))  # so that a wrong entry is refused here, and not in the writer's thread
        return b"", len(body) + _OVERHEAD
    data = encode_entry(entry)
    return data, len(data) + _OVERHEAD


def _set(futures: list["asyncio.Future[None]"]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def _break(futures: list["asyncio.Future[None]"], failed: JournalFailed) -> None:
    for future in futures:
        if not future.done():
            error = JournalFailed(failed.message, hint=failed.hint)
            error.__cause__ = failed.__cause__
            future.set_exception(error)
