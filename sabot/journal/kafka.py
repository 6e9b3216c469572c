"""A journal in a Kafka topic: its owner, its readers, and an inbox that needs no owner. `frames` describes the records
of the topic, and which of them count.

**Durable** means that all replicas in sync have acknowledged a record (`acks=all`), in a topic that deletes nothing by
itself. All entries that wait go into one frame, so a group commit is one request.

Kafka's transactions are not needed, because the order of the records in the topic shuts out an earlier owner. A claim
takes the number of the next frame, so the frames that the earlier owner writes after the claim do not count. The
earlier owner finds out: the broker tells it a higher offset than expected, so it reads the records in between, and
fails.

**The claim** ends by time. The owner relies on it for `lease_s` seconds after it sent the last acknowledged frame, and
sends a beat if it has nothing to write. A new process watches the topic for a while. If the owner shows a sign of life,
the new process is refused; otherwise it becomes the owner. It then knows for how long the earlier owner, which may only
be paused, could still send calls. If the process of the earlier owner was on this machine and has ended, nobody waits.

**Letters** have a partition of their own. Of several letters with the same name, the first one in its order counts, for
every reader. A sender appends its letter, and then reads the partition up to it, to learn whether it was the first.

**Trimming** writes a frame with the jobs that are removed. Kafka can only delete from the beginning of a topic. So when
most of the topic is obsolete, the owner writes the whole content anew, as a copy, between other frames. The entries
keep their places. Then the records before the copy are deleted. Readers ignore an incomplete copy. A copy is only
written if about as many bytes can then be deleted as the copy adds.
"""

import logging
import os
import secrets
import socket
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from sabot.base.options import answers_wrong_options
from sabot.base.proc import is_over, life_of_this_process
from sabot.base.threads import run_in_thread
from sabot.clock import SYSTEM_CLOCK, Clock, boot_seconds
from sabot.errors import (
    AppLocked,
    CorruptJournal,
    JournalFailed,
    LetterRefused,
    NoJournal,
    SabotError,
    TransientError,
    UserError,
)
from sabot.journal.base import Inbox, JobMark, Position, Question, check_letter, once_of, queued_once
from sabot.journal.ended_jobs import EndedJob, JobQuery
from sabot.journal.entries import Entry, Letter, StoredBody, body_of, encode_letter
from sabot.journal.frames import (
    BeatFrame,
    CopyBegin,
    CopyEnd,
    CopyRows,
    EntriesFrame,
    Frame,
    LetterRecord,
    OwnerClaim,
    ReleaseFrame,
    TrimFrame,
    encode_frame,
    encode_letter_record,
    is_claim,
)
from sabot.journal.history_tables import SqlHistory
from sabot.journal.job_tables import note_blocked
from sabot.journal.owner_inbox import OwnerInbox, SqlJournal
from sabot.journal.replica import FRAMES, LETTERS, Replica, journal_topic, trimmed
from sabot.journal.tables import StoredEntry, TablesReader, add, copied, letter_facts, rows_of
from sabot.journal.writing import CAPACITY_BYTES, Appended, GroupWriter
from sabot.kafka.admin import delete_before, replicas_of, set_topic, settings_of
from sabot.kafka.client import ANSWER_SECONDS, NoSuchTopic, ensure_topic
from sabot.kafka.log import TopicAppender
from sabot.steps import step

log = logging.getLogger("sabot.journal")

PATIENCE_SECONDS = 300.0
LEASE_SECONDS = 10.0

_BEATS = 10  # beats in the time of a lease
_MARGIN = 0.1  # the fraction of a lease on which its owner does not rely
_FOREVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
_PIECE_BYTES = 512 << 10  # the most bytes of a frame in one record, if the topic allows it
_FRAME_BYTES = 8 << 20  # the bytes of entries and bodies in a frame after which no more are added
_COPY_SLACK_BYTES = 64 << 20  # the obsolete bytes of the topic below which no copy is written
_OVERHEAD_BYTES = 2048  # bytes of a record and its batch, in addition to the piece
_TAKE_SECONDS = 2.0
_GOODBYE_SECONDS = 5.0
_AT_THE_END = 5.0  # seconds for which `close` waits for a broker that does not answer
_GONE = "bring back a copy of the topic; or give another journal, and effects may be made again"


class KafkaJournalReader(TablesReader):
    """A reader of the journal at `kafka://host:port/topic` (without a topic: `{app}.journal`). It reads the whole
    topic once, and after that only new records.

    `kafka`: settings of the client by which it reaches the broker. Raises UserError if there is no journal, and
    BrokerUnavailable if the broker does not answer.
    """

    def __init__(self, address: str, *, app: str = "", kafka: Mapping[str, Any] | None = None) -> None:
        self._replica = _opened(address, app, kafka)
        try:
            super().__init__(self._replica.database, self._replica.where)
        except BaseException:
            self._replica.close()
            raise

    def positions(self) -> dict[int, int]:
        self._replica.catch_up()
        return super().positions()

    def read(self, job: str | None = None, start: Mapping[int, int] | None = None) -> Iterator[tuple[Position, Entry]]:
        self._replica.catch_up()
        return super().read(job, start)

    def read_jobs(self, jobs: Collection[str]) -> Iterator[tuple[Position, Entry]]:
        self._replica.catch_up()
        return super().read_jobs(jobs)

    def unfinished(self, since: Mapping[int, int]) -> list[str]:
        self._replica.catch_up()
        return super().unfinished(since)

    def open_agents(self) -> dict[str, int]:
        self._replica.catch_up()
        return super().open_agents()

    def open_marks(self) -> list[JobMark]:
        self._replica.catch_up()
        return super().open_marks()

    def trimmed(self) -> dict[int, int]:
        self._replica.catch_up()
        return super().trimmed()

    def job(self, job: str) -> JobMark | None:
        self._replica.catch_up()
        return super().job(job)

    def marked(self, jobs: Collection[str]) -> dict[str, JobMark]:
        self._replica.catch_up()
        return super().marked(jobs)

    def logged(self, query: JobQuery, most: int) -> list[JobMark]:
        self._replica.catch_up()
        return super().logged(query, most)

    def logged_counts(self, query: JobQuery) -> dict[str, int]:
        self._replica.catch_up()
        return super().logged_counts(query)

    def logged_below(self, jobs: Collection[str]) -> list[str]:
        self._replica.catch_up()
        return super().logged_below(jobs)

    def begun_again(self) -> list[str]:
        self._replica.catch_up()
        return super().begun_again()

    def question(self, token: str) -> Question | None:
        self._replica.catch_up()
        return super().question(token)

    def letters(self) -> list[Letter]:
        self._replica.catch_up()
        return super().letters()

    def letter(self, once: str) -> Letter | None:
        self._replica.catch_up()
        return super().letter(once)

    @property
    def history(self) -> SqlHistory:
        self._replica.catch_up()
        return super().history

    def close(self) -> None:
        super().close()
        self._replica.close()


class _TopicInbox(Inbox):
    """An inbox that writes letters to the Kafka topic of a journal. `replica`: the local copy of the topic.
    `catch_up`: a function that reads the new records of the topic into that copy.
    """

    def __init__(self, replica: Replica, catch_up: Callable[[], object], clock: Clock) -> None:
        self._replica = replica
        self._catch_up = catch_up
        self._clock = clock
        self._lock = threading.Lock()
        self._appender: TopicAppender | None = None

    @property
    def key(self) -> bytes:  # type: ignore[override]  # it is known when the topic was read
        return self._replica.key

    def post(self, letter: Letter) -> None:
        replica = self._replica
        with self._lock:
            self._catch_up()
            with replica.writes() as tables:
                question, mark, earlier = letter_facts(tables, letter)
                job = check_letter(letter, question, mark, earlier, round(self._clock.time() * 1000))
            record = encode_letter_record(LetterRecord(once_of(letter, mark), job, encode_letter(letter)))
            if self._appender is None:
                self._appender = TopicAppender(replica.link, replica.kafka, replica.topic, patience_s=ANSWER_SECONDS)
            with step("journal", f"{replica.topic}: letter"):
                (offset,) = self._appender.append(LETTERS, [record])
            number = offset + 1
            replica.letters_up_to(number)
            if number in replica.second:
                raise LetterRefused(f"job {job}: another letter of this name came first", reason="second")

    def close(self) -> None:
        if self._appender is not None:
            self._appender.close()


@answers_wrong_options
class KafkaInbox(_TopicInbox):
    """An inbox of the journal at an address. `address`, `app` and `kafka` have the same meaning as in
    KafkaJournalReader. Raises UserError if there is no journal, and BrokerUnavailable if the broker does not answer.
    """

    def __init__(
        self, address: str, *, app: str = "", kafka: Mapping[str, Any] | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        replica = _opened(address, app, kafka)
        super().__init__(replica, replica.catch_up, clock)

    def close(self) -> None:
        super().close()
        self._replica.close()


def _opened(address: str, app: str, kafka: Mapping[str, Any] | None) -> Replica:
    """Returns the local copy of an existing journal, up to date. Raises UserError if there is no journal."""
    replica = Replica(*journal_topic(address, app), kafka or {})
    try:
        try:
            there = replica.frames_log.partitions(replica.topic) and replica.catch_up()
        except NoSuchTopic:
            there = False
        if not there:
            raise NoJournal(
                f"{replica.where}: there is none", hint="its owner makes it; look at the address and the topic"
            )
    except BaseException:
        replica.close()
        raise
    replica.link.opened = True
    return replica


@answers_wrong_options
class KafkaJournal(TablesReader, SqlJournal):
    """The owner of the journal at `kafka://host:port/topic` (without a topic: `{app}.journal`). A missing topic is
    created.

    - `kafka`: settings of the client by which it reaches the broker.
    - `capacity_bytes`: the most bytes of entries that may wait for the broker.
    - `patience_s`: the journal has failed if the broker does not answer for this many seconds.
    - `lease_s`: the seconds for which the claim is valid after each frame that the owner sends (`claim_left`). If the
      earlier owner has not closed the journal, a new owner watches the topic for half of the earlier owner's lease
      before it takes over.
    - `copy_slack_bytes`: the journal is compacted only if the topic has more obsolete bytes than this. To compact it,
      the owner writes its whole content anew and deletes the older records.

    Raises AppLocked if another owner is still writing to the topic, UserError if the settings of the topic let Kafka
    delete records by itself, and BrokerUnavailable if the broker does not answer.
    """

    look_s = 0.1  # a look is a request to the broker

    def __init__(
        self,
        address: str,
        *,
        app: str = "",
        kafka: Mapping[str, Any] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        capacity_bytes: int = CAPACITY_BYTES,
        patience_s: float = PATIENCE_SECONDS,
        lease_s: float = LEASE_SECONDS,
        copy_slack_bytes: int = _COPY_SLACK_BYTES,
    ) -> None:
        self._lease_s = lease_s
        self._slack_bytes = copy_slack_bytes
        self._closed = False
        # The error for which nothing more is written: the claim is lost, or it is not known what the broker has.
        self._lost: BaseException | None = None
        self._frames = threading.Lock()  # held while a frame is written and applied
        with ExitStack() as opened:
            self._replica = replica = Replica(*journal_topic(address, app), kafka or {}, owned=True)
            opened.callback(replica.close)
            self._piece_bytes = _prepared(replica)
            self._appender = TopicAppender(
                replica.link,
                replica.kafka,
                replica.topic,
                patience_s=patience_s,
                batch_bytes=self._piece_bytes + _OVERHEAD_BYTES,
            )
            opened.callback(self._appender.close)
            self._take_claim()
            super().__init__(replica.database, replica.where)
            opened.pop_all()  # nothing failed: keep everything open
        replica.link.opened = True
        (first,) = TablesReader.positions(self).values()
        writer = GroupWriter(self.where, 0, first, self._commit, capacity_bytes, store="broker", idle=self._beat)
        self.start(writer, _OwnerInbox(replica, clock, self._trim, self._note_blocked), clock)
        if replica.whole_copy is not None:  # its writer ended before it deleted the records before the copy
            self._delete_before(*replica.whole_copy)

    # -- the claim --------------------------------------------------------------------------------------------------------

    def _take_claim(self) -> None:
        replica = self._replica
        if not replica.catch_up():
            _harden(replica)
        self._me = secrets.token_bytes(8)
        while True:
            earlier, since = replica.claim, boot_seconds()
            left = replica.earlier_s  # the time that owners before `earlier` may still have
            if earlier is not None and not replica.released and not is_over(earlier.life):
                self._watch(earlier, since)
                left = max(left, earlier.lease_s)
            self._predecessor_until = since + left
            claim = OwnerClaim(
                replica.identity or uuid.uuid4().hex,
                replica.key or secrets.token_bytes(32),
                f"process {os.getpid()} on {socket.gethostname()}",
                life_of_this_process(),
                self._lease_s,
                self._predecessor_until - boot_seconds(),
            )
            seq, self._sure_at = replica.order.seq, boot_seconds()
            with step("claim", replica.topic):
                (offset,) = self._appender.append(FRAMES, encode_frame(self._me, seq, claim, self._piece_bytes))
            replica.catch_up()
            if replica.next <= offset:
                raise CorruptJournal(
                    f"{replica.where} does not give what is in it: the claim is at offset {offset} of {replica.topic}[{FRAMES}], "
                    f"and {replica.next} is the last one that can be read",
                    hint=_GONE,
                )
            if replica.order.writer == self._me:
                break  # otherwise another process has written a frame since we read the topic: try again
        self._claim = claim
        self._seq, self._end, self._log_bytes = replica.order.seq, replica.next, replica.log_bytes

    def _watch(self, earlier: OwnerClaim, since: float) -> None:
        """Watches for half a lease whether the earlier owner writes to the topic. Raises AppLocked if it does.
        Returns at the end of that time if it does not. Returns sooner if it has closed the journal, or if its process
        has certainly ended. `since`: the time at which the watch began.
        """
        seq, still = self._replica.order.seq, threading.Event()
        while boot_seconds() < since + earlier.lease_s / 2:
            still.wait(earlier.lease_s / 50)
            self._replica.catch_up()
            if self._replica.released or is_over(earlier.life):
                return
            if self._replica.order.seq != seq:
                raise AppLocked(f"{self._replica.where} belongs to {earlier.holder}", hint="stop that one first")

    def claim_left(self) -> float:
        if self._lost or self._closed:
            return 0.0
        return max(0.0, self._sure_at + self._lease_s * (1 - _MARGIN) - boot_seconds())

    def predecessor_left(self, job: str) -> float:
        return self._predecessor_until - boot_seconds()

    def _beat(self) -> None:
        """Writes a BeatFrame if no frame was written for a tenth of the lease, so that the claim remains valid.
        Called in the thread of the GroupWriter while there is nothing else to write.
        """
        if boot_seconds() >= self._sure_at + self._lease_s / _BEATS:
            with self._frames:
                self._write(BeatFrame())

    # -- frames -----------------------------------------------------------------------------------------------------------

    def _write(self, frame: Frame, seconds: float | None = None) -> None:
        """Writes a frame to the topic, and returns when it is durable and certainly valid. The caller has to hold the
        lock `_frames`. After an error, all later calls raise JournalFailed and write nothing. `seconds`: the time in
        which the broker has to answer; None for the usual time.
        """
        if (before := self._lost) is not None:
            why = getattr(before, "message", "") or f"the journal has failed before: {type(before).__name__}: {before}"
            raise JournalFailed(why, hint=getattr(before, "hint", "")) from before
        records = encode_frame(self._me, self._seq, frame, self._piece_bytes)
        sent_at = boot_seconds()
        try:
            for offset in self._appender.append(FRAMES, records, seconds):
                if offset != self._end:
                    self._look(offset)
                self._end = offset + 1
        except BaseException as error:
            self._lost = error
            if isinstance(error, NoSuchTopic):
                self._lost = JournalFailed(f"{error.message}: it was deleted", hint=_GONE)
                raise self._lost from error
            raise
        self._seq += 1
        self._log_bytes += sum(len(record) for record in records)
        self._sure_at = sent_at

    def _look(self, offset: int) -> None:
        """Checks the records that other writers have put into the topic before our record at `offset`. Raises
        JournalFailed if one of them is a valid claim of another owner, or if the topic has lost records. Other
        records of an earlier owner are ignored.
        """
        replica = self._replica
        if offset < self._end:
            raise JournalFailed(
                f"topic {replica.topic!r} has lost records, or was made anew: it went to {self._end}, and goes on at {offset}",
                hint=_GONE,
            )
        for message in replica.frames_log.messages(replica.topic, FRAMES, self._end, offset):
            if is_claim(message.value(), self._seq, f"{replica.topic}[{FRAMES}]@{message.offset()}"):
                raise JournalFailed("another owner has taken the journal over", hint="stop one of the two")
        replica.frames_log.rest()
        log.debug("%s: records at %d to %d count for nothing", replica.where, self._end, offset)

    def _commit(self, group: list[Appended]) -> None:
        """Writes entries to the topic as one or more frames, and adds them to the local copy. Called in the thread of
        the GroupWriter.
        """
        with self._frames:
            for rows in _portions(rows_of(group)):
                bodies = self._new_bodies(rows)
                frame = EntriesFrame([(row.place, row.data, row.letter) for row in rows], list(bodies.values()))
                with step("journal", self._replica.topic):
                    self._write(frame)
                with self._replica.writes() as tables:
                    add(tables, rows)
                self.bodies += len(bodies)

    def _new_bodies(self, rows: Sequence[StoredEntry]) -> dict[bytes, bytes]:
        """Returns, by hash, the long bodies of these rows that the topic does not have yet."""
        found = {
            named.hash: row.body for row in rows if isinstance(named := body_of(row.entry), StoredBody) and row.body
        }
        return {
            name: body
            for name, body in found.items()
            if not self.select("SELECT 1 FROM bodies WHERE hash = ?", (name,))
        }

    # -- letters ----------------------------------------------------------------------------------------------------------

    def letters(self) -> list[Letter]:
        self._replica.catch_up_letters()
        return super().letters()

    async def look(self) -> bool:
        await run_in_thread(self._replica.catch_up_letters)
        return await super().look()

    def take(self) -> list[tuple[Position, Entry]]:
        """Turns letters into entries as `Journal.take` does. Blocks, because it first reads new letters from the
        broker. If the broker does not answer, new letters are handled by a later call.
        """
        if not self._replica.link.lost:
            with suppress(TransientError):
                self._replica.catch_up_letters(_TAKE_SECONDS)
        return super().take()

    def untaken(self, after: int = 0) -> list[tuple[int, Letter]]:
        """Returns the letters that were not taken yet, each with its number. Only letters with numbers above `after`
        are returned.

        Leaves out letters to jobs that were trimmed. Such a letter exists if its sender was paused between checking
        the job and posting the letter.
        """
        return [(number, letter) for number, letter in super().untaken(after) if self._is_for_somebody(letter)]

    def _is_for_somebody(self, letter: Letter) -> bool:
        if letter.kind in ("answer", "withdraw"):
            return self.question(letter.token) is not None
        known = self.job(letter.job) is not None
        if letter.kind == "begin":
            return not known  # a job begins once
        begins = queued_once(letter)
        return known or bool(begins and self.select("SELECT 1 FROM inbox WHERE once = ?", (begins,)))

    # -- trimming ---------------------------------------------------------------------------------------------------------

    def trim(self, before: Mapping[int, int], forget_before_ms: int = 0, *, sessions: bool = False) -> int:
        removed = super().trim(before, forget_before_ms, sessions=sessions)
        if self._log_bytes > self._slack_bytes + 2 * self._replica.live_bytes():
            self._copy()
        return removed

    def _trim(
        self,
        jobs: Sequence[str] = (),
        before: int = 0,
        *,
        kept: Sequence[EndedJob] = (),
        forget_before_ms: int = 0,
        expired: Sequence[str] = (),
    ) -> int:
        letters = self._replica.letters_next
        frame = TrimFrame(list(jobs), before, letters, forget_before_ms, list(kept), list(expired))
        with self._all_or_failed(), self._frames, step("journal", f"{self._replica.topic}: trim"):
            self._write(frame)
            with self._replica.writes() as tables:
                return trimmed(tables, frame)

    def _note_blocked(self, reasons: Mapping[str, str]) -> None:
        frame = BeatFrame(dict(reasons))
        with self._all_or_failed(), self._frames, step("journal", f"{self._replica.topic}: blocked"):
            self._write(frame)
            with self._replica.writes() as tables:
                note_blocked(tables, frame.blocked)

    @contextmanager
    def _all_or_failed(self) -> Iterator[None]:
        """Runs the `with` block. If the block raises an error, the journal fails: all callers that wait for it get a
        JournalFailed.
        """
        try:
            yield
        except BaseException as error:
            self.writer.fail(error)
            raise

    def _copy(self) -> None:
        """Writes the whole content of the journal to the topic again, as a copy, and then deletes the records before
        this copy.
        """
        replica = self._replica
        with self._all_or_failed():
            with self._frames, step("journal", f"{replica.topic}: copy"):
                rows, letters = replica.seen_now(lambda tables: copied(tables, self._piece_bytes))
                (next_place,) = TablesReader.positions(self).values()
                removed = self.trimmed().get(0, 0)
                self._write(CopyBegin(self._claim, next_place, letters, removed))
                begin, before = self._end - 1, self._log_bytes
            for table, portion in rows:
                with self._frames, step("journal", f"{replica.topic}: rows of {table}"):
                    self._write(CopyRows(table, [list(row) for row in portion]))
            with self._frames, step("journal", f"{replica.topic}: copied"):
                self._write(CopyEnd())
                self._log_bytes -= before
        self._delete_before(begin, letters)

    def _delete_before(self, frames: int, letters: int) -> None:
        replica = self._replica
        delete_before(replica.link, replica.kafka, replica.topic, {FRAMES: frames, LETTERS: letters})

    def close(self) -> None:
        if self._closed:
            return
        self._appender.hurry(_AT_THE_END)
        self.writer.close()
        self._closed = True
        with self._frames:
            if not self._lost:
                try:
                    self._write(ReleaseFrame(self._predecessor_until - boot_seconds()), _GOODBYE_SECONDS)
                except SabotError as error:
                    log.warning("%s: its next owner will wait for a while: %s", self.where, error.message)
        self._appender.close()
        self.inbox.close()
        super().close()
        self._replica.close()


class _OwnerInbox(_TopicInbox, OwnerInbox):
    """The inbox of a Kafka journal for the owner of the journal. Its methods `trim`, `expire` and `forget` each write
    a TrimFrame to the topic, and `note_blocked` writes a BeatFrame.
    """

    def __init__(
        self,
        replica: Replica,
        clock: Clock,
        trim: Callable[..., int],
        note_blocked: Callable[[Mapping[str, str]], None],
    ) -> None:
        super().__init__(replica, replica.catch_up_letters, clock)
        self._trim = trim
        self._note_blocked = note_blocked

    def trim(self, jobs: Sequence[str], before: int, kept: Sequence[EndedJob]) -> int:
        return self._trim(jobs, before, kept=kept)

    def note_blocked(self, reasons: Mapping[str, str]) -> None:
        self._note_blocked(reasons)

    def expire(self, jobs: Sequence[str]) -> None:
        self._trim(expired=jobs)

    def forget(self, before_ms: int) -> None:
        self._trim(forget_before_ms=before_ms)


def _portions(rows: Sequence[StoredEntry]) -> Iterable[Sequence[StoredEntry]]:
    """Yields the rows in their order, in groups of about _FRAME_BYTES bytes. Each group is written as one frame."""
    first = nbytes = 0
    for number, row in enumerate(rows):
        if nbytes > _FRAME_BYTES and not rows[number - 1].goes_on:
            yield rows[first:number]
            first, nbytes = number, 0
        nbytes += len(row.data) + len(row.body)
    yield rows[first:]


def _prepared(replica: Replica) -> int:
    """Creates the topic if it is missing. Returns the maximum number of bytes of a frame that are written in one
    record; longer frames are divided. Raises UserError if the topic does not have two partitions, or if its settings
    let Kafka delete records by itself.
    """
    link, topic = replica.link, replica.topic
    ensure_topic(link, topic, replica.kafka, 2, _FOREVER)
    partitions = len(replica.frames_log.partitions(topic))
    if partitions != 2:
        raise UserError(
            f"topic {topic!r} on kafka://{link.address} has {partitions} partitions, and a journal has 2: entries, and letters",
            hint="give another topic; Sabot makes it where it is missing",
        )
    settings = settings_of(link, replica.kafka, topic) or {}
    wrong = {name: settings[name] for name, value in _FOREVER.items() if settings.get(name, value) != value}
    if settings.get("unclean.leader.election.enable", "false") != "false":
        wrong["unclean.leader.election.enable"] = "true"
    if wrong:
        right = ",".join(f"{name}={_FOREVER.get(name, 'false')}" for name in wrong)
        found = ", ".join(f"{name}={value}" for name, value in wrong.items())
        raise UserError(
            f"topic {topic!r} on kafka://{link.address} would lose entries of the journal: {found}",
            hint=f"kafka-configs --bootstrap-server {link.address.split(',')[0]} --alter --entity-type topics "
            f"--entity-name {topic} --add-config {right}",
        )
    return min(_PIECE_BYTES, int(settings.get("max.message.bytes", _PIECE_BYTES << 1)) - _OVERHEAD_BYTES)


def _harden(replica: Replica) -> None:
    """Changes the settings of a new topic, so that an acknowledged record is not lost if a machine fails. If the
    topic has several replicas, a record is acknowledged only when two machines have it. If it has only one replica,
    the broker writes each record to its disk at once.
    """
    if replicas_of(replica.link, replica.kafka, replica.topic) > 1:
        set_topic(replica.link, replica.kafka, replica.topic, "min.insync.replicas", "2")
    else:
        set_topic(replica.link, replica.kafka, replica.topic, "flush.messages", "1")
