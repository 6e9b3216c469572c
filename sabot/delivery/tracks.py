"""A track: the parts of one exactly-once sink, which its thread writes, the coordinator lists, and a thread of the track delivers."""

import logging
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from sabot.backoff import Backoff
from sabot.checkpoint.manifest import Manifest, StoredPart, StoredTrack
from sabot.clock import Clock
from sabot.connectors.base import Sink, Token, Track
from sabot.connectors.defaults import delivers_of, finish_of, keeps_token_of, set_owner
from sabot.delivery.parts import Part, PartSeries, read_part
from sabot.delivery.tokens import Opening, in_words, opening
from sabot.errors import AppLocked, DataError, SabotError, TransientError, UserError
from sabot.os_errors import hint_of
from sabot.steps import step
from sabot.threads import Handle, Spawn

_log = logging.getLogger(__name__)

FULL_EPOCHS = 16  # complete checkpoints whose output waits, of one track
FULL_BYTES = 1 << 30  # of parts that wait or are being written, of one track
RENEW_SECONDS = 3600.0  # a token that is not renewed may be forgotten by its receiver
_LEFT_SECONDS = 30.0  # how long a start waits for a delivery that an earlier one left behind
_BACKOFF = Backoff(0.2, 10.0)  # after a failed delivery


class TrackRun(Protocol):
    """What a track asks of the run of the app to which it belongs (`staged.StagedSinks`)."""

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
        """Whether no other worker has taken the app over. Blocks. Raises TransientError where nobody can say."""

    def part_path(self, track_id: str, seq: int) -> Path:
        """The path of the file of a new part."""

    def local(self, part: Part) -> Path:
        """The file of a part on this machine. Raises TransientError, CorruptCheckpoint."""

    def look_at_fullness(self) -> None:
        """Parts were added or delivered, so the track may be full now, or no longer."""

    def broken(self, name: str, error: BaseException) -> None:
        """The track of this sink has failed for good."""


class TrackWork:
    """The parts of one sink: the thread of the sink writes them, the thread of the track delivers them."""

    def __init__(self, track_id: str, sink: Sink, delivery: TrackRun) -> None:
        self.id = track_id
        receiver = delivers_of(sink)
        assert receiver is not None
        self.sink = sink
        self._receiver = receiver
        self._keeper = keeps_token_of(sink)  # None: the receiver stores no token
        self.delivered = self.known = 0  # the last number at the receiver; as the last manifest has it
        self.delivered_rows = 0
        self.failures = 0  # in a row
        self.failures_total = 0
        self.finished = False
        self.broken = False
        self._delivery = delivery
        self._written = PartSeries(partial(delivery.part_path, track_id), self.add)
        self._changed = threading.Condition()
        self._parts: deque[Part] = deque()  # sealed, not yet dropped by `listed`; the first are the oldest
        self._released = 0  # up to this number parts may be delivered
        self._epochs: deque[int] = deque()  # numbers at which releases ended that are not all delivered
        self._bytes = 0
        self._closing = False
        self._claimed = True
        self._retry_at = 0.0
        self._settled_at = 0.0
        self._finish = False
        self._note = ""
        self.name = Track("", track_id, "")  # set by `open`
        self._thread: Handle | None = None

    # -- the start ----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Reads the receiver's token without claiming the track. Raises DeliveryConflict where the token already rules this start out.
        Blocks.
        """
        stored = self._stored
        self.name = Track(self._delivery.app, self.id, self._incarnation(stored))
        _wait_for_left(self.sink)
        with self._named():
            token = self._receiver.known(self.name)
        if token is not None:
            self._opening(stored, token)

    def open(self) -> None:
        """Claims the track, and compares its token with the checkpoint. Called after `look`; raises the same errors. Blocks."""
        delivery, stored = self._delivery, self._stored
        set_owner(self.sink, delivery.still_ours)
        with self._named():
            token = self._receiver.claim(self.name)
        begin = self._opening(stored, token)
        self._begin(begin, stored, delivery.restored)

    def start(self) -> None:
        """Starts to deliver the parts that wait. Called when no track of the app was refused. Blocks."""
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
        """The incarnation of the app. Where nobody can know the last number (a start from a savepoint, into a sink without a token) the
        track gets an incarnation of its own: two apps that start from one savepoint would give the same numbers to different rows.
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
        """Completes the open part. Returns the number of the last part, which belongs to the cut that is being taken."""
        return self._written.seal()

    def drop_open(self) -> None:
        """Drops the open part. Its rows were written after the last cut, so a restore produces them again."""
        self._written.drop_open()

    @property
    def given(self) -> int:
        """The greatest number of a part so far."""
        return self._written.given

    def add(self, part: Part) -> None:
        """Takes a part that is complete, also one that another process has written. From any thread; parts come in order."""
        with self._changed:
            self._parts.append(part)
            self._bytes += part.nbytes
        self._delivery.look_at_fullness()

    def finish(self) -> None:
        """Notes that the input has ended for good; `finish_if_asked` does the rest."""
        self._finish = True

    # -- the coordinator ----------------------------------------------------------------------------------------------

    def listed(self, sealed: int) -> tuple[StoredTrack, list[Part]]:
        """Returns what a manifest whose cut ended at part `sealed` says of the track, and the parts whose files it needs.

        Also removes the files of delivered parts. One manifest is made at a time, so no manifest under way needs these files.
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
        """Lets the parts up to the number `given` be delivered: a complete checkpoint lists them."""
        with self._changed:
            if given > self._released:
                self._released = given
                if self._next() is not None:
                    self._epochs.append(given)
                self._changed.notify_all()

    @property
    def full(self) -> bool:
        """Whether so much output waits that the sources should be held."""
        with self._changed:
            return len(self._epochs) >= FULL_EPOCHS or self._bytes >= FULL_BYTES

    @property
    def waiting(self) -> bool:
        """Whether a released part is not delivered yet."""
        with self._changed:
            return self._next() is not None

    def _next(self) -> Part | None:
        return next((part for part in self._parts if self.delivered < part.seq <= self._released), None)

    # -- its own thread -----------------------------------------------------------------------------------------------

    def _step(self, wait_seconds: float) -> bool | None:
        """One turn of the thread. True: it delivered a part. None: it waited for one, at most `wait_seconds`. False: the track ended."""
        with self._changed:
            if self._closing:
                return False
            now = self._delivery.clock.monotonic()
            part = self._next() if now >= self._retry_at else None
            if part is None and (now - self._settled_at < RENEW_SECONDS or now < self._retry_at):
                self._changed.wait(wait_seconds)
                return None
        try:
            self._reclaim()
            if part is None:
                self._renew()
            elif part.seq > self.delivered:  # after a claim the token may say that the part has arrived
                self._receiver.deliver(part.seq, list(read_part(self._delivery.local(part))))
                self._is_delivered(part.seq, part.rows)
        except TransientError as error:
            self._failed(error)
        except BaseException as error:
            reason: BaseException = error
            try:
                if part is not None and self._may_drop(part, error):
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

    def _may_drop(self, part: Part, error: BaseException) -> bool:
        """Whether the part was dropped, as redeliver=skip allows: a restored part that its receiver refuses would fail each start."""
        if part.ours or not isinstance(error, UserError | DataError) or isinstance(error, AppLocked):
            return False
        if self._delivery.choice != "skip":
            error.hint = f"{error.hint}; " if error.hint else ""
            error.hint += f"it is in the checkpoint: once the receiver takes it, start again; redeliver=skip drops its {part.rows} rows"
            return False
        _log.error("sink %s: %d rows are dropped, as redeliver=skip says: %s", self.sink.name, part.rows, error)
        self._claimed = False
        self._reclaim()
        if self._keeper is not None:
            self._keeper.settle(part.seq)
        self._is_delivered(part.seq, 0)
        return True

    def _reclaim(self) -> None:
        """Claims the track again after an error, and reads from the token how far the receiver got."""
        if self._claimed:
            return
        # The error may be that of a process that stood still: its claim would end the run that has taken the app over.
        if not self._delivery.still_ours():
            raise AppLocked(
                f"sink {self.sink.name}: another worker has taken this app over, and delivers its output",
                hint="one worker runs an app: let that one go on, or stop it and start this one again",
            )
        token = self._receiver.claim(self.name)
        self._claimed = True
        if self._keeper is None or (token is None and self.delivered == 0):
            return
        if token is None:
            raise UserError(
                f"sink {self.sink.name}: the receiver has lost its token; part {in_words(self.delivered)} was delivered",
                hint="start again: the start compares, and says what can be done",
            )
        if token.incarnation != self.name.incarnation or token.seq < self.delivered:
            raise UserError(
                f"sink {self.sink.name}: the receiver's token says {in_words(token.seq)} of {token.incarnation}, and "
                f"{in_words(self.delivered)} of {self.name.incarnation} was delivered: somebody else has written it",
                hint="one app delivers into one place",
            )
        # The part before the error has arrived; otherwise the claim tells nothing about parts.
        if token.seq > self.delivered:
            rows = sum(part.rows for part in list(self._parts) if self.delivered < part.seq <= token.seq)
            self._is_delivered(token.seq, rows)

    def _renew(self) -> None:
        if self._keeper is not None:
            self._keeper.settle(self.delivered)
        self._settled_at = self._delivery.clock.monotonic()

    def _is_delivered(self, seq: int, rows: int) -> None:
        if self.failures:
            _log.warning("sink %s takes parts again, after %d failures", self.sink.name, self.failures)
        with self._changed:
            self._bytes -= sum(part.nbytes for part in self._parts if self.delivered < part.seq <= seq)
            self.delivered = max(self.delivered, seq)
            self.delivered_rows += rows
            while self._epochs and self._epochs[0] <= seq:
                self._epochs.popleft()
            self.failures = 0
            self._settled_at = self._delivery.clock.monotonic()
            self._changed.notify_all()
        self._delivery.look_at_fullness()

    def _failed(self, error: TransientError) -> None:
        self._claimed = False
        self.failures += 1
        self.failures_total += 1
        if self.failures == 1:
            _log.warning("sink %s does not take its output: %s; trying again", self.sink.name, error)
        with self._changed:
            self._retry_at = self._delivery.clock.monotonic() + _BACKOFF.wait_s(self.failures)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Names the sink in errors that the sink's own code raised."""
        try:
            yield
        except SabotError:
            raise
        except Exception as error:
            kind = TransientError if isinstance(error, OSError) else UserError
            raise kind(f"sink {self.sink.name}: {type(error).__name__}: {error}", hint=hint_of(error)) from error

    # -- the end ------------------------------------------------------------------------------------------------------

    def finish_if_asked(self) -> None:
        """Completes the result of an input that has ended, once all its parts are delivered. Blocks."""
        with self._changed:
            ready = self._finish and not self.finished and all(part.seq <= self.delivered for part in self._parts)
        if ready:
            with step("finish", self.id), self._named():
                finish_of(self.sink)()
            self.finished = True

    def close(self, seconds: float) -> None:
        """Ends the thread and closes the sink. A delivery that hangs longer than `seconds` is left behind. Blocks."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                _log.error("sink %s does not come back; the next start delivers what it did not take", self.sink.name)
                _left[id(self.sink)] = self.sink, self._thread
                return
        try:
            self.sink.close()
        except Exception:  # the receiver may be away; what it does not have is in the checkpoint
            _log.exception("sink %s could not be closed", self.sink.name)
        self.drop_open()

    def statistics(self) -> dict[str, Any]:
        with self._changed:
            waiting = [part for part in self._parts if part.seq > self.delivered]
            return {
                "sink": self.sink.name,
                "delivered_rows": self.delivered_rows,
                "undelivered_rows": sum(part.rows for part in waiting),
                "undelivered_bytes": sum(part.nbytes for part in waiting),
                "undelivered_epochs": len(self._epochs),
                "failures_total": self.failures_total,
            }


_left: dict[int, tuple[Sink, Handle]] = {}  # sinks in which a delivery of an earlier run of this process hangs


def _wait_for_left(sink: Sink) -> None:
    """Waits for a delivery that an earlier run left behind in this sink: a Sink must not be used by two threads."""
    _, thread = _left.get(id(sink), (sink, None))
    if thread is None:
        return
    thread.join(_LEFT_SECONDS)
    if thread.is_alive():
        raise TransientError(
            f"sink {sink.name} still delivers for the run before", hint="wait for it, or start the process again"
        )
    sink.close()
    del _left[id(sink)]
