"""A track: the parts of one exactly-once sink. The sink's thread writes them, the coordinator lists them, and a
thread of the track delivers them.
"""

import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa

from sabot.base.backoff import Backoff, Failures
from sabot.base.os_errors import hint_of
from sabot.base.threads import Handle, Spawn
from sabot.clock import Clock
from sabot.connectors.base import Delivers, KeepsToken, Sink, Token, Track
from sabot.engine.checkpoint.manifest import Manifest, StoredPart, StoredTrack
from sabot.engine.delivery.parts import Part, PartSeries, read_part
from sabot.engine.delivery.tokens import ASIDE, Opening, first_seq, in_words, opening, without_aside
from sabot.engine.letters.log import LetterLog, ReasonCounts
from sabot.engine.letters.refused import is_refusal, letters_in, letters_of_refused, parted, shortened, with_row_ids
from sabot.errors import AppLocked, DataError, SabotError, TransientError, UserError, message_of
from sabot.steps import step

if TYPE_CHECKING:
    from sabot.base.figures import ToldTrack

_log = logging.getLogger(__name__)

# A track is full when so many deliveries wait: the output of a complete checkpoint, or what is gathered to one.
FULL_EPOCHS = 16
FULL_BYTES = 1 << 30  # a track is full when the parts that wait or are being written have so many bytes
GATHER_BYTES = 256 << 20  # parts of so many bytes are delivered before the time of `gather_s`
RENEW_SECONDS = 3600.0  # a token that is not renewed may be forgotten by its receiver
_LOOK_SECONDS = 0.5  # between looks of a thread that waits for a delivery aside
_LEFT_SECONDS = 30.0  # the longest wait of a start for a delivery that an earlier run has left running
_BACKOFF = Backoff(0.2, 10.0)  # the waits after failed deliveries, in seconds


class TrackRun(Protocol):
    """The services and settings of an app's run that a track uses (`staged.StagedSinks`)."""

    app: str
    restored: Manifest | None
    incarnation: str
    generation: int
    newest: bool
    choice: str | None
    fresh: bool
    clock: Clock
    spawn: Spawn

    def still_ours(self) -> bool:
        """Returns False if another worker has taken the app over. Blocks. Raises TransientError if that cannot be
        found out.
        """

    def part_path(self, track_id: str, seq: int) -> Path:
        """Returns the path for the file of a new part."""

    def local(self, part: Part) -> Path:
        """Returns the path of a part's file on this machine. Raises TransientError, CorruptCheckpoint."""

    def look_at_fullness(self) -> None:
        """Checks whether too much output waits. Called after parts were added or delivered."""

    def broken(self, name: str, error: BaseException) -> None:
        """Reports that the track of the sink `name` has failed for good."""


class TrackWork:
    """The parts of one sink: the sink's thread writes them, and the track's own thread delivers them."""

    def __init__(self, track_id: str, sink: Sink, delivery: TrackRun) -> None:
        self.id = track_id
        self.sink: Sink = sink
        assert isinstance(sink, Delivers)
        self._receiver: Delivers = sink
        self._keeper = sink if isinstance(sink, KeepsToken) else None  # None: the receiver stores no token
        # Without a token nobody knows how parts were put together before a crash, and a prefix of parts counts by their own rows.
        self._gather_s = self._keeper.gather_s if self._keeper is not None and sink.whole else 0.0
        self.delivered = self.known = 0  # the last part at the receiver: now, and in the last manifest
        self.delivered_rows = 0
        self.failures = Failures(_BACKOFF)  # of deliveries
        self.failures_total = 0
        self.finished = False
        self.broken = False
        self._delivery = delivery
        self._written = PartSeries(partial(delivery.part_path, track_id), self.add)
        self._changed = threading.Condition()
        self._parts: deque[Part] = deque()  # sealed, not yet dropped by `listed`; the first are the oldest
        self._released = 0  # up to this number parts may be delivered
        # The last part of each delivery that is not done: that of a release, or of the releases that are gathered.
        self._epochs: deque[int] = deque()
        self._epoch_at = 0.0  # when the last of them began
        self._next_at = 0.0  # parts are gathered until then
        self._hurried = False
        self._bytes = 0
        self._closing = False
        self._claimed = True
        self._settled_at = 0.0
        self._finish = False
        self._note = ""
        self.name = Track("", track_id, "")  # set by `open`
        self._thread: Handle | None = None
        self.letters: Callable[[pa.RecordBatch], None] | None = None
        """The function that makes dead letters of refused rows safe, or None if such rows end the app. Blocks."""
        self.letter_origin: Mapping[str, str] = {}  # the fields of a dead letter that name the sink and the program
        self._reasons = ReasonCounts()
        self._refused = LetterLog(self._reasons, delivery.clock, "refused row")
        self._aside: deque[pa.RecordBatch] = deque()  # rows of other threads, to be delivered at once
        self._asides = 0  # how many of them were delivered
        # held by a delivery aside and by `finish`, which another thread may call at its end
        self._turn = threading.Lock()
        self._aside_begun = False  # the delivery of the first of them may have arrived
        self.refused_rows = 0

    # -- the start ----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Reads the receiver's token without claiming the track. Raises DeliveryConflict if the token already shows
        that this start could repeat or lose output. Blocks.
        """
        stored = self._stored
        self.name = Track(self._delivery.app, self.id, self._incarnation(stored))
        _wait_for_left(self.sink)
        with self._named():
            token = without_aside(self._receiver.known(self.name))
        if token is not None:
            self._opening(stored, token)

    def open(self) -> None:
        """Claims the track, and compares its token with the checkpoint. Called after `look`, whose errors it raises.
        Blocks.
        """
        delivery, stored = self._delivery, self._stored
        self.sink.still_ours = delivery.still_ours
        with self._named():
            token = without_aside(self._receiver.claim(self.name))
        begin = self._opening(stored, token)
        self._begin(begin, stored, delivery.restored)

    def start(self) -> None:
        """Starts the thread that delivers the parts. Called when the tracks of all sinks are open without an error.
        Blocks.
        """
        delivery = self._delivery
        if self._note:
            _log.warning("sink %s: %s", self.sink.name, self._note)
        if self._keeper is not None:  # the token is set, or renewed
            with self._named():
                self._keeper.settle(self.delivered)
        self._settled_at = delivery.clock.monotonic()
        self._thread = delivery.spawn(f"delivery {self.id}", self._step)
        self._thread.start()

    @property
    def _stored(self) -> StoredTrack | None:
        restored = self._delivery.restored
        return None if restored is None else restored.lanes.get(self.id)

    def _opening(self, stored: StoredTrack | None, token: Token | None) -> Opening:
        run = self._delivery
        return opening(
            self.sink.name,
            stored,
            token,
            keeps_token=self._keeper is not None,
            incarnation=self.name.incarnation,
            generation=run.generation,
            newest=run.newest,
            choice=run.choice,
            fresh=run.fresh,
            token_place="" if self._keeper is None else self._keeper.token_place,
        )

    def _incarnation(self, stored: StoredTrack | None) -> str:
        """Returns the incarnation under which the track numbers its parts: that of the app. If the last delivered
        number cannot be known (a start from a savepoint, with a sink that keeps no token), it is a new one: otherwise
        two apps that start from one savepoint would give the same numbers to different rows.
        """
        if not self._delivery.newest and self._keeper is None:
            return uuid.uuid4().hex
        return (stored.incarnation if stored is not None else "") or self._delivery.incarnation

    def _begin(self, begin: Opening, stored: StoredTrack | None, restored: Manifest | None) -> None:
        self.delivered = self.known = begin.delivered
        self._note = begin.note
        self._written.given = begin.above
        for part in [] if stored is None else stored.pending:
            if part.seq <= begin.delivered:
                continue
            assert restored is not None
            path = restored.part_path(part)
            seq = part.seq
            if begin.renumber:
                seq = self._written.given = self._written.given + 1
            self._parts.append(Part(seq, path, part.rows, path.stat().st_size, ours=False))
        self._bytes = sum(part.nbytes for part in self._parts)
        if self._parts and not begin.renumber:  # new numbers are in no checkpoint yet
            self._released = self._parts[-1].seq
            self._epochs.append(self._released)

    # -- the sink's thread --------------------------------------------------------------------------------------------

    def write(self, data: pa.RecordBatch) -> None:
        """Adds rows to the open part."""
        self._written.write(data)

    def seal(self) -> int:
        """Completes the open part. Returns the number of the last part that belongs to the checkpoint being taken."""
        return self._written.seal()

    def drop_open(self) -> None:
        """Removes the open part. Its rows were written after the last barrier, so a restore produces them again."""
        self._written.drop_open()

    @property
    def given(self) -> int:
        """The greatest number of a part so far."""
        return self._written.given

    def add(self, part: Part) -> None:
        """Adds a complete part, which another process may have written. Callable from any thread; parts are added in
        the order of their numbers.
        """
        with self._changed:
            self._parts.append(part)
            self._bytes += part.nbytes
        self._delivery.look_at_fullness()

    def finish(self) -> None:
        """Notes that the input has ended for good. `finish_if_asked` later lets the sink complete its result."""
        self._finish = True

    # -- the coordinator ----------------------------------------------------------------------------------------------

    def listed(self, sealed: int) -> tuple[StoredTrack, list[Part]]:
        """Returns the track for a manifest, and the parts whose files that manifest needs. `sealed`: the number of
        the last part before the barrier.

        Also removes the files of delivered parts. One manifest is made at a time, so no unfinished manifest needs
        these files.
        """
        with self._changed:
            delivered = self.delivered
            sealed = max(sealed, self._released)  # a task that is gone reports 0, but its released parts still count
            while self._parts and self._parts[0].seq <= delivered:
                part = self._parts.popleft()
                if part.ours and isinstance(part.file, Path):
                    part.file.unlink(missing_ok=True)
            waiting = [part for part in self._parts if part.seq <= sealed]
        pending = [StoredPart(part.seq, f"stages/{self.id}/{part.seq}.arrow", part.rows) for part in waiting]
        self.known = delivered
        given, incarnation = max(sealed, delivered), self.name.incarnation
        return StoredTrack(self.sink.name, given, delivered, pending, self.finished, incarnation), waiting

    def release(self, given: int) -> None:
        """Marks the parts up to the number `given` as deliverable, because a complete checkpoint lists them."""
        with self._changed:
            if given > self._released:
                self._released = given
                if self._next() is not None:
                    now = self._delivery.clock.monotonic()
                    if self._epochs and now - self._epoch_at < self._gather_s:
                        self._epochs[-1] = given
                    else:
                        self._epochs.append(given)
                        self._epoch_at = now
                self._changed.notify_all()

    @property
    def full(self) -> bool:
        """True while so much output waits that the sources should be held."""
        with self._changed:
            return len(self._epochs) >= FULL_EPOCHS or self._bytes >= FULL_BYTES

    @property
    def waiting(self) -> bool:
        """True while a released part is not delivered yet."""
        with self._changed:
            return self._next() is not None

    def hurry(self) -> None:
        """Lets parts be delivered that are being gathered, from now on."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def _deliverable(self) -> Iterator[Part]:
        return (part for part in self._parts if self.delivered < part.seq <= self._released)

    def _next(self) -> Part | None:
        return next(self._deliverable(), None)

    def _due(self, now: float) -> list[Part]:
        """Returns the parts to deliver as one now; [] while there are none, or more are gathered."""
        if not self._gather_s:
            part = self._next()
            return [] if part is None else [part]
        behind = len(self._epochs) > 1
        if not behind and self._bytes >= GATHER_BYTES:  # bytes of parts that no complete checkpoint lists hurry nothing
            behind = sum(part.nbytes for part in self._deliverable()) >= GATHER_BYTES
        if now < self._next_at and not (behind or self._hurried or self._finish):
            return []
        found: list[Part] = []
        nbytes = 0
        for part in self._deliverable():
            # Each restored part is refused by itself where the user drops those that are (redeliver=skip).
            if found and (part.ours != found[0].ours or (not part.ours and self._delivery.choice == "skip")):
                break
            found.append(part)
            nbytes += part.nbytes
            if nbytes >= GATHER_BYTES:
                break
        return found

    # -- its own thread -----------------------------------------------------------------------------------------------

    def _step(self, wait_seconds: float) -> bool | None:
        """Runs one turn of the thread. Returns True if it delivered or changed something, None if it waited (for
        `wait_seconds` at most), and False if the track has ended.
        """
        with self._changed:
            if self._closing:
                return False
            now = self._delivery.clock.monotonic()
            waits = now < self.failures.until_s
            aside = None if waits or not self._aside else self._aside[0]
            parts = [] if waits or aside is not None else self._due(now)
            if not parts and aside is None and (waits or now - self._settled_at < RENEW_SECONDS):
                self._changed.wait(wait_seconds)
                return None
        try:
            self._reclaim()
            if aside is not None:
                self._put_aside(aside)
            elif not parts:
                self._renew()
            # The claim may have found out that parts have arrived.
            elif left := [part for part in parts if part.seq > self.delivered]:
                self._deliver(left)
        except TransientError as error:
            self._failed(error)
        except BaseException as error:
            reason: BaseException = error
            try:
                if parts and self._may_drop(parts, error):
                    return True
            except BaseException as other:
                reason = other
            with self._changed:
                if self._closing:
                    _log.debug("sink %s: %s, while it was closed", self.sink.name, reason)
                    return False
            self._delivery.broken(self.sink.name, reason)
            self.broken = True  # set after the report, so whoever sees it finds the error reported
            return False
        return True

    def _deliver(self, parts: Sequence[Part]) -> None:
        """Delivers parts as one. Dead letters in them, and those of the rows that the receiver refuses, are made safe before
        the token moves: a crash in between repeats them, and loses none.
        """
        rows: list[pa.RecordBatch] = []
        names: list[str] = []  # of the parts
        counts: list[int] = []  # of their rows
        refused = 0
        for part in parts:
            found_rows, letters = letters_in(list(read_part(self._delivery.local(part))))
            names.append(f"{self.name.key}.{self.name.incarnation}.{part.seq}")
            before = 0
            for each in letters:
                self._save(with_row_ids(each, [f"{names[-1]}.before.{before + row}" for row in range(len(each))]))
                before += len(each)
            refused += before
            rows += found_rows
            counts.append(sum(each.num_rows for each in found_rows))
        # Of the rows that are left: the part, and the number in it. A later delivery may put the parts together in another way.
        owners = np.repeat(np.arange(len(parts)), counts)
        numbers = np.concatenate([np.arange(count) for count in counts])
        last = parts[-1].seq
        while True:
            try:
                self._receiver.deliver(last, rows)
                break
            except Exception as error:
                if self.letters is None or not is_refusal(error):
                    raise
                self._claim_again()
                if last <= self.delivered:
                    return
                found = self._receiver.refused_rows(rows)
                if not found:
                    raise
                self._claim_again()
                ids = [f"{names[owners[row]]}.{numbers[row]}" for row in sorted(found)]
                self._save(letters_of_refused(rows, found, **self.letter_origin, ids=ids))
                self._tell_refused(error, len(found))
                refused += len(found)
                owners, numbers = np.delete(owners, list(found)), np.delete(numbers, list(found))
                rows = [each for each in parted(rows, found) if each.num_rows]
        self._is_delivered(last, sum(part.rows for part in parts) - refused)

    def _save(self, letters: pa.RecordBatch) -> None:
        if self.letters is None:
            raise UserError(
                f"sink {self.sink.name}: the checkpoint has {len(letters)} dead letters of rows that it refused, and the program "
                "has no place for them",
                hint='run the program that wrote it, without on_error="fail", until they are delivered',
            )
        with step("refuse", self.id):
            self.letters(letters)
        self.refused_rows += len(letters)

    def _tell_refused(self, error: Exception, rows: int) -> None:
        log, name = self._refused, f"sink {self.sink.name}"
        self._reasons.add(error, rows)
        if log.begun:
            log.note(name)
        else:
            log.begin(message_of(error), "%s refuses rows, which become dead letters; the first: %s", name, error)

    def deliver_aside(self, data: pa.RecordBatch) -> None:
        """Delivers rows at once, before the parts that wait. When it returns they are at the receiver. Called by threads
        of other sinks. Raises TransientError if the track ends before that.
        """
        with self._changed:
            self._aside.append(data)
            self._changed.notify_all()
            while any(each is data for each in self._aside):
                if self._closing or self.broken:
                    raise TransientError(f"sink {self.sink.name}, which gets the dead letters, was closed")
                self._changed.wait(_LOOK_SECONDS)

    def _put_aside(self, data: pa.RecordBatch) -> None:
        """Delivers rows under a number of their own, and sets the token back. If the process ends in between, the next
        claim does that.
        """
        numbered = self.delivered if self._keeper is not None else first_seq(self._delivery.generation) + self._asides
        self._aside_begun = True
        with self._turn:
            try:
                self._receiver.deliver(ASIDE | numbered, [data])
            except Exception as error:
                if not is_refusal(error):
                    raise
                self._claim_again()
                short = shortened(data, self._receiver.refused_rows([data]).keys())
                if short.equals(data):
                    raise
                self._claim_again()
                self._receiver.deliver(ASIDE | numbered, [short])
            self.finished = False  # the result has grown
            self._is_aside()
            if self._keeper is not None:
                self._keeper.settle(self.delivered)

    def _is_aside(self) -> None:
        with self._changed:
            self._asides, self._aside_begun = self._asides + 1, False
            self._aside.popleft()
            self.failures.note("")
            self._changed.notify_all()

    def _may_drop(self, parts: Sequence[Part], error: BaseException) -> bool:
        """Drops a part that the receiver refuses and returns True, if the part was restored and the user chose
        redeliver=skip: otherwise each start would fail at this part. Returns False in other cases.
        """
        rows, last = sum(part.rows for part in parts), parts[-1]
        if last.ours or not isinstance(error, UserError | DataError) or isinstance(error, AppLocked):
            return False
        if self._delivery.choice != "skip":
            error.hint = f"{error.hint}; " if error.hint else ""
            error.hint += f"its rows are in the checkpoint: start again when the receiver takes them; redeliver=skip drops {rows} rows"
            if len(parts) > 1:
                error.hint += " at most"
            return False
        _log.error(
            "sink %s: %d rows are dropped, because redeliver=skip is set and the receiver refuses them: %s",
            self.sink.name,
            rows,
            error,
        )
        self._claim_again()
        if self._keeper is not None:
            self._keeper.settle(last.seq)
        self._is_delivered(last.seq, 0)
        return True

    def _reclaim(self) -> None:
        """Claims the track again after an error, and reads from the token how far the receiver got. Raises AppLocked
        if another worker has taken the app over, and UserError if the token is lost or another app has written it.
        """
        if self._claimed:
            return
        # After an error this process may no longer own the app, if it was paused: a claim would then end the new owner's run.
        if not self._delivery.still_ours():
            raise AppLocked(
                f"sink {self.sink.name}: another worker has taken this app over, and delivers its output",
                hint="only one worker may run an app: let that worker run, or stop it and start this one again",
            )
        token = self._receiver.claim(self.name)
        self._claimed = True
        if self._keeper is not None and token is not None and token.seq >= ASIDE:  # the rows have arrived after all
            if self._aside_begun:
                self._is_aside()
            self._keeper.settle(self.delivered)
            token = without_aside(token)
        if self._keeper is None or (token is None and self.delivered == 0) or (token is not None and token.empty):
            return
        if token is None:
            raise UserError(
                f"sink {self.sink.name}: the receiver has lost its token; part {in_words(self.delivered)} was delivered",
                hint="start the app again: it compares the receiver with the checkpoint, and names the choices",
            )
        if token.incarnation != self.name.incarnation or token.seq < self.delivered:
            raise UserError(
                f"sink {self.sink.name}: the receiver's token says {in_words(token.seq)} of {token.incarnation}, and "
                f"{in_words(self.delivered)} of {self.name.incarnation} was delivered: another app has written the token",
                hint="only one app may deliver into one place; give each app a topic, table or folder of its own",
            )
        # The part whose delivery failed has arrived after all.
        if token.seq > self.delivered:
            rows = sum(part.rows for part in list(self._parts) if self.delivered < part.seq <= token.seq)
            self._is_delivered(token.seq, rows)

    def _claim_again(self) -> None:
        self._claimed = False
        self._reclaim()

    def _renew(self) -> None:
        if self._keeper is not None:
            self._keeper.settle(self.delivered)
        self._settled_at = self._delivery.clock.monotonic()

    def _is_delivered(self, seq: int, rows: int) -> None:
        if failures := self.failures.count:
            _log.warning("sink %s accepts output again, after %d failed deliveries", self.sink.name, failures)
        with self._changed:
            self._bytes -= sum(part.nbytes for part in self._parts if self.delivered < part.seq <= seq)
            self.delivered = max(self.delivered, seq)
            self.delivered_rows += rows
            while self._epochs and self._epochs[0] <= seq:
                self._epochs.popleft()
            self.failures.note("")
            self._settled_at = self._delivery.clock.monotonic()
            self._next_at = self._settled_at + self._gather_s
            self._changed.notify_all()
        self._delivery.look_at_fullness()

    def _failed(self, error: TransientError) -> None:
        self._claimed = False
        self.failures_total += 1
        if not self.failures.count:
            _log.warning("a delivery into sink %s has failed, and will be retried: %s", self.sink.name, error)
        with self._changed:
            self.failures.note(type(error).__name__, self._delivery.clock.monotonic())

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Raises errors of the sink's own code as errors that name the sink."""
        try:
            yield
        except SabotError:
            raise
        except Exception as error:
            kind = TransientError if isinstance(error, OSError) else UserError
            raise kind(f"sink {self.sink.name}: {type(error).__name__}: {error}", hint=hint_of(error)) from error

    # -- the end ------------------------------------------------------------------------------------------------------

    def finish_if_asked(self) -> None:
        """Lets the sink complete its result, if `finish` was called and all parts are delivered; otherwise does
        nothing. An error of the sink's own code names the sink. Blocks.
        """
        with self._changed:
            ready = self._finish and not self.finished and all(part.seq <= self.delivered for part in self._parts)
        if ready:
            with self._turn, step("finish", self.id), self._named():
                self.sink.finish()
                self.finished = True

    def close(self, seconds: float) -> None:
        """Ends the thread and closes the sink. A delivery that hangs for longer than `seconds` is left running, with
        an error in the log. Blocks.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                _log.error(
                    "a delivery into sink %s does not end; the next start delivers the parts that the receiver does not have",
                    self.sink.name,
                )
                _left[id(self.sink)] = self.sink, self._thread
                return
        try:
            self.sink.close()
        except Exception:  # the receiver may be unreachable; rows that it does not have are in the checkpoint
            _log.exception("sink %s could not be closed", self.sink.name)
        self.drop_open()

    def statistics(self) -> "ToldTrack":
        with self._changed:
            waiting = [part for part in self._parts if part.seq > self.delivered]
            return {
                "sink": self.sink.name,
                "delivered_rows": self.delivered_rows,
                "undelivered_rows": sum(part.rows for part in waiting),
                "undelivered_bytes": sum(part.nbytes for part in waiting),
                "undelivered_epochs": len(self._epochs),
                "failures_total": self.failures_total,
                **({"refused_rows": self.refused_rows} if self.refused_rows else {}),
            }


_left: dict[int, tuple[Sink, Handle]] = {}  # by id, the sinks with a delivery of an earlier run that hangs


def _wait_for_left(sink: Sink) -> None:
    """Waits for a delivery that an earlier run of this process left running in this sink, as two threads must not use
    one Sink; then closes the sink. Raises TransientError if the delivery does not end within 30 s.
    """
    _, thread = _left.get(id(sink), (sink, None))
    if thread is None:
        return
    thread.join(_LEFT_SECONDS)
    if thread.is_alive():
        raise TransientError(
            f"a delivery that an earlier run began still runs in sink {sink.name}",
            hint="wait until it ends, or restart the process",
        )
    sink.close()
    del _left[id(sink)]
