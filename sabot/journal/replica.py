"""A local copy of a journal's Kafka topic: the content of its frames, as tables in a temporary SQLite database.

A topic cannot be searched. So each process that needs the journal (a reader, an inbox, the owner) reads the topic once
from its beginning into the tables of `journal.tables`, and after that only new records. The tables are removed when the
process ends, since they can be made again.
"""

import math
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from sabot.base.checks import Of, check
from sabot.base.config import checked_topic, legal_topic, parse_broker
from sabot.base.disk import TemporaryFolder, private
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import BrokerUnavailable, CorruptJournal, DataError, UserError
from sabot.journal.entries import decode_entry
from sabot.journal.frames import (
    BeatFrame,
    CopyBegin,
    CopyEnd,
    CopyRows,
    EntriesFrame,
    Frame,
    FrameOrder,
    OwnerClaim,
    ReleaseFrame,
    TrimFrame,
    decode_letter_record,
)
from sabot.journal.history_tables import expire
from sabot.journal.job_tables import note_blocked
from sabot.journal.tables import (
    StoredEntry,
    add,
    add_body,
    add_letter,
    clear,
    connected,
    explained,
    forget,
    index_anew,
    make,
    put_back,
    remove,
    transaction,
)
from sabot.kafka.client import ANSWER_SECONDS, connection_of, link_of
from sabot.kafka.log import RecordsGone, TopicLog

T = TypeVar("T")

FRAMES, LETTERS = 0, 1  # the numbers of the partitions
# short, since a broker answers the requests of a connection one after the other: the next one waits for a fetch
_WAIT_MS = 20
_LETTERS_WAIT_MS = 200
_PORTION = 200  # the most frames that are applied in one transaction
_ROWS_ARE_GONE = "bring back a copy of the topic; or give another journal, and effects may be made again"


def journal_topic(address: str, app: str = "") -> tuple[str, str]:
    """Returns the broker and the topic of the address `kafka://host:port/topic`. If the address names no topic, the
    topic is `{app}.journal`. Raises UserError if there is neither a topic nor an app, or if the address has another
    form.
    """
    check("journal: address", address, Of(str, "kafka://host:port/topic"))
    scheme, separator, rest = address.partition("://")
    hosts, _, topic = rest.partition("/")
    broker = f"{scheme}{separator}{hosts}"
    parse_broker(broker)
    if not topic and not app:
        raise UserError(f"{address}: which topic has the journal?", hint="write kafka://host:port/TOPIC")
    return broker, checked_topic(topic or f"{legal_topic(app)}.journal", "the journal's topic", kafka=True)


class Replica:
    """The local copy of a journal that is in a Kafka topic. It consists of SQLite tables, which are empty until the
    first `catch_up`. Its methods block, and may be called from any thread.

    They raise NoSuchTopic, BrokerUnavailable, other UserErrors of the broker, and CorruptJournal.
    """

    def __init__(self, broker: str, topic: str, kafka: Mapping[str, Any], *, owned: bool = False) -> None:
        """Makes a local copy. `owned`: True for the owner of the journal. From the moment when it has the claim, the
        owner writes all frames itself and adds them to its copy. So it only has to read the letters of others from
        the topic.
        """
        self.topic = topic
        self.link = link_of(broker, f"journal in topic {topic!r}", kafka, "Write" if owned else "Read")
        self.kafka = connection_of(kafka)  # no other settings: durability must not depend on a user's setting
        self.where = f"journal {broker}/{topic}"
        self.identity = ""
        self.key = b""
        self.claim: OwnerClaim | None = None
        self.released = False
        self.earlier_s = -math.inf
        """`OwnerClaim.earlier_s` of the last claim, or `ReleaseFrame.earlier_s` if the owner has closed the journal."""
        self.order = FrameOrder()
        self.next = 0
        """The offset behind the last record of the frames' partition that was read."""
        self.begins = 0
        """The offset of the first record of the frames' partition that was read."""
        self.log_bytes = 0
        """The number of bytes of the records from `begins` on."""
        self.whole_copy: tuple[int, int] | None = None
        """For the last complete copy of the journal in the topic, its offset and its `CopyBegin.letters`. None if there
        is no copy with records before it.
        """
        self.letters_next = 0
        self.second: set[int] = set()
        """The numbers of letters that do not count, because another letter of the same name came before."""
        self._copy: tuple[int, int] | None = None
        self._valid = False
        self._lock = threading.RLock()
        self._letters_lock = threading.Lock()
        self._owned = owned
        self._connection: sqlite3.Connection | None = None
        self._folder = TemporaryFolder("sabot-journal-")
        self.database = self._folder.path / "journal.db"
        settings: dict[str, Any] = {"check.crcs": True, "auto.offset.reset": "error"}
        name = f"sabot.journal.{topic}"
        self.frames_log = TopicLog(name, self.link, self.kafka, fetch_wait_ms=_WAIT_MS, **settings)
        try:
            self._letters_log = TopicLog(
                name, self.link, self.kafka, fetch_wait_ms=_LETTERS_WAIT_MS if owned else _WAIT_MS, **settings
            )
        except BaseException:
            self.frames_log.close()
            raise

    def close(self) -> None:
        """Closes the database and the connections. Idempotent."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
        self.frames_log.close()
        self._letters_log.close()
        self._folder.cleanup()

    @contextmanager
    def writes(self) -> Iterator[sqlite3.Connection]:
        """Runs the `with` block as a transaction on the tables. The block gets the connection to the database."""
        with explained(self.where), self._lock:
            assert self._connection is not None
            with transaction(self._connection):
                yield self._connection

    def catch_up(self) -> bool:
        """Reads the new records of the topic. Returns True if the topic has a journal, and False if it is still empty."""
        with self._lock:
            deadline = SYSTEM_CLOCK.monotonic() + ANSWER_SECONDS
            while True:
                first, end = self.frames_log.bounds(self.topic, FRAMES)
                try:
                    self._catch_up(first, end)
                except RecordsGone as error:
                    if not self._is_trimmed(first) or SYSTEM_CLOCK.monotonic() > deadline:
                        raise self._lost(error.message) from error
                else:
                    return bool(self.identity)

    def _catch_up(self, first: int, end: int) -> None:
        if not (self._valid and self.identity) or first > self.next:
            self._load(first)
        else:
            self._follow(end)
        self.frames_log.rest()
        if self.identity:
            self._new_letters(ANSWER_SECONDS)

    def _is_trimmed(self, first: int) -> bool:
        """Returns True if the owner of the journal has deleted records of the topic that this local copy has not read
        yet. The owner does so only after it has written a complete copy of the journal. There are two signs:

        - The partition of frames now begins behind the offset `first`, at which it began before.
        - The partition of letters begins behind the next letter to read.
        """
        letters_first, _ = self.frames_log.bounds(self.topic, LETTERS)
        return self.frames_log.bounds(self.topic, FRAMES)[0] > first or letters_first > self.letters_next

    def _lost(self, what: str) -> CorruptJournal:
        return CorruptJournal(f"{self.where} has lost records: {what}", hint=_ROWS_ARE_GONE)

    # -- frames ---------------------------------------------------------------------------------------------------------

    def _load(self, first: int) -> None:
        """Reads the topic again from its first record. If the topic begins with a complete copy of the journal,
        writes that copy into the tables, and then applies the frames after it. `first`: the offset of the first
        record.
        """
        self.order, self.next, self.begins, self.log_bytes = FrameOrder(), first, first, 0
        self.whole_copy = self._copy = None
        self._valid = True
        letters_first, _ = self._letters_log.bounds(self.topic, LETTERS)
        # asked after the letters: if a copy allowed the owner to delete letters, that copy stands before this end
        _, end = self.frames_log.bounds(self.topic, FRAMES)
        order = FrameOrder()
        for offset, frame in self._frames(order, first, end):
            if isinstance(frame, CopyBegin):
                self._start(frame.claim, frame.next, frame.letters, frame.removed)
                self._put_back(order, offset + 1, end)
            elif isinstance(frame, OwnerClaim):
                self._start(frame, 0, letters_first, 0)
            self._follow(end)
            if isinstance(frame, OwnerClaim) and letters_first > (self.whole_copy or (0, 0))[1]:
                self._valid = False
                raise CorruptJournal(
                    f"{self.where} has lost records: {self.topic}[{LETTERS}] begins at offset {letters_first}, and no trim has deleted "
                    "what stood before",
                    hint=_ROWS_ARE_GONE,
                )
            return

    def _start(self, claim: OwnerClaim, next_place: int, letters_next: int, removed: int) -> None:
        if self._connection is None:
            with explained(self.where):
                with open(self.database, "xb", opener=private):
                    pass
                make(self.database, claim.identity, claim.key)
                self._connection = connected(self.database, "rw", synced=False)
                self._connection.execute("PRAGMA journal_mode = WAL")
        elif claim.identity != self.identity:
            raise CorruptJournal(
                f"{self.where} was {self.identity}, and is {claim.identity} now: somebody has made it anew",
                hint="start again; what was in the old one is gone",
            )
        self.identity, self.key, self.letters_next = claim.identity, claim.key, letters_next
        with self.writes() as tables:
            clear(tables, next_place, removed)

    def _put_back(self, order: FrameOrder, first: int, end: int) -> None:
        """Writes the rows of a copy of the journal into the tables. `first`: the offset behind the CopyBegin frame.
        `end`: the end of the topic. Raises CorruptJournal if the copy has no CopyEnd frame.
        """
        for _, frame in self._frames(order, first, end):
            if isinstance(frame, CopyEnd):
                with self.writes() as tables:
                    index_anew(tables, self.where)
                return
            if isinstance(frame, CopyRows):
                with self.writes() as tables:
                    put_back(tables, frame.table, frame.rows)
        raise CorruptJournal(f"{self.where}: the copy at its beginning has no end", hint=_ROWS_ARE_GONE)

    def _follow(self, end: int) -> None:
        """Reads the frames from the offset `self.next` to `end` - 1, and applies the valid ones (see `FrameOrder`) to
        the tables.
        """
        self._valid = False  # stays False if this method raises
        portion: list[tuple[int, Frame]] = []
        for offset, frame in self._frames(self.order, self.next, end, counted=True):
            portion.append((offset, frame))
            if len(portion) == _PORTION:
                self._apply(portion)
                portion = []
        self._apply(portion)
        self._valid = True

    def _frames(self, order: FrameOrder, first: int, end: int, *, counted: bool = False) -> Iterator[tuple[int, Frame]]:
        """Reads the records from the offset `first` to `end` - 1. Yields the valid frames among them, as `order`
        decides, each with the offset of its last record. `counted`: True to set `self.next` behind each record that
        is read, and to add its bytes to `self.log_bytes`.
        """
        for message in self._records(self.frames_log, FRAMES, first, end):
            value, offset = message.value(), message.offset()
            frame = order.take(value, f"{self.topic}[{FRAMES}]@{offset}")
            if counted:
                self.next = offset + 1
                self.log_bytes += len(value or b"")
            if frame is not None:
                yield offset, frame

    def _records(self, topic_log: TopicLog, partition: int, first: int, end: int) -> Iterator[Any]:
        if end < first:
            raise RecordsGone(f"{self.topic}[{partition}] went to offset {first}, and ends at {end} now")
        try:
            yield from topic_log.messages(self.topic, partition, first, end)
        except RecordsGone:
            raise
        except DataError as error:
            raise CorruptJournal(f"{self.where}: {error.message}", hint=_ROWS_ARE_GONE) from error

    def _apply(self, frames: list[tuple[int, Frame]]) -> None:
        named = max((number for _, frame in frames for number in _letters_of(frame)), default=0)
        if named > self.letters_next:
            self._new_letters(ANSWER_SECONDS)
            if named > self.letters_next:
                raise RecordsGone(
                    f"a frame names letter {named}, and {self.topic}[{LETTERS}] ends at {self.letters_next}"
                )
        with self.writes() as tables:
            for offset, frame in frames:
                self._applied(tables, offset, frame)

    def _applied(self, tables: sqlite3.Connection, offset: int, frame: Frame) -> None:
        match frame:
            case OwnerClaim():
                self.claim, self.released, self.earlier_s, self._copy = frame, False, frame.earlier_s, None
            case ReleaseFrame():
                self.released, self.earlier_s = True, frame.earlier_s
            case EntriesFrame():
                for body in frame.bodies:
                    add_body(tables, body)
                rows = [
                    StoredEntry(place, decode_entry(data, self.where), data, b"", letter)
                    for place, data, letter in frame.entries
                ]
                add(tables, rows)
            case TrimFrame():
                trimmed(tables, frame)
            case BeatFrame():
                note_blocked(tables, frame.blocked)
            case CopyBegin():
                self.claim, self.released, self.earlier_s = frame.claim, False, frame.claim.earlier_s
                self._copy = (offset, frame.letters)
            case CopyEnd():
                if self._copy is not None and self._copy[0] > self.begins:
                    self.whole_copy = self._copy

    # -- letters --------------------------------------------------------------------------------------------------------

    def catch_up_letters(self, seconds: float = ANSWER_SECONDS) -> None:
        """Reads new letters. Raises BrokerUnavailable if the broker has not answered after `seconds` seconds."""
        try:
            self._new_letters(seconds)
        except RecordsGone as error:
            raise self._lost(error.message) from error

    def _new_letters(self, seconds: float) -> None:
        with self._letters_lock:
            # the end is asked for without waiting for letters
            _, end = self.frames_log.bounds(self.topic, LETTERS, seconds)
            letters = []
            reached = self.letters_next
            for message in self._records(self._letters_log, LETTERS, self.letters_next, end):
                reached = message.offset() + 1
                letter = decode_letter_record(message.value(), f"{self.topic}[{LETTERS}]@{message.offset()}")
                if letter is not None:
                    letters.append((reached, letter))
            if letters:
                with self.writes() as tables:
                    for number, letter in letters:
                        if not add_letter(tables, letter.once, letter.job, letter.data, number):
                            self.second.add(number)
            self.letters_next = reached
            if not self._owned:
                self._letters_log.rest()

    def letters_up_to(self, number: int) -> None:
        """Reads new letters. Raises BrokerUnavailable if the broker does not answer, or if the letter with this
        number cannot be read yet.
        """
        self.catch_up_letters()
        if self.letters_next < number:
            raise BrokerUnavailable(f"{self.where} does not show a letter that it has taken")

    def seen_now(self, look: Callable[[sqlite3.Connection], Iterator[T]]) -> tuple[Iterator[T], int]:
        """Calls `look` with a snapshot of the tables, which later writes do not change. Returns the result of `look`,
        and the number of the next letter to read at the time of the snapshot.
        """
        with explained(self.where), self._letters_lock, self._lock:
            reading = connected(self.database, "ro")
            reading.execute("BEGIN")
            # the first read fixes the snapshot of the transaction
            reading.execute("SELECT count(*) FROM meta").fetchone()
            return _closing(reading, look(reading)), self.letters_next

    def live_bytes(self) -> int:
        """Returns approximately the number of bytes that the content of the journal has without obsolete records."""
        with self._lock:
            assert self._connection is not None
            (pages,), (free,), (size,) = (
                self._connection.execute(f"PRAGMA {name}").fetchone()
                for name in ("page_count", "freelist_count", "page_size")
            )
            held: int = (pages - free) * size
            return held


def _closing(reading: sqlite3.Connection, rows: Iterator[T]) -> Iterator[T]:
    try:
        yield from rows
    finally:
        reading.close()


def trimmed(tables: sqlite3.Connection, frame: TrimFrame) -> int:
    """Removes from the tables what a TrimFrame names. Returns the number of removed entries."""
    removed = remove(tables, frame.jobs, frame.before, frame.kept, frame.letters)
    if frame.forget_before_ms:
        forget(tables, frame.forget_before_ms)
    if frame.expired:
        expire(tables, frame.expired)
    return removed


def _letters_of(frame: Frame) -> Iterator[int]:
    match frame:
        case EntriesFrame():
            for _, _, letter in frame.entries:
                yield letter
        case TrimFrame():
            yield frame.letters
