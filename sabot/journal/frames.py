"""The records of a journal's topic in Kafka: their encoding, and the rule that decides which of them count.

The owner writes **frames** to partition 0. Each frame has the next number, `seq`. A frame that is too long for one
record is written in pieces, which are consecutive records.

   OwnerClaim    somebody becomes the owner; the first one creates the journal
   EntriesFrame  entries, and before them the long bodies that they are the first to name
   TrimFrame     jobs whose entries are removed
   BeatFrame     a sign of life of an owner without new entries; it may note which jobs are blocked
   ReleaseFrame  the owner has closed the journal
   CopyBegin, CopyRows, CopyEnd   the whole content of the journal, written anew, so that the records before it can be deleted

**Which frames count** follows only from the order of the records in the topic. A frame counts if its `seq` is the next
number, and if its writer is the owner or the frame is a claim. The owner is the writer of the last claim that counts.

So a claim shuts out the earlier owner: no reader counts the frames that the earlier owner writes after the claim. If
two processes write a claim at once, the first one counts. A frame with missing pieces does not count, and a claim may
take its number.

       seq      7 entries (a)   8 claim (b)   8 entries (a)   9 entries (b)      a, b: the writers
                counts          counts        does not        counts

Letters are in partition 1. Of several letters with the same name (`base.once_of`), the first one counts.

A record consists of two letters, a version, and msgpack. New fields are only added at the end, with a default. Any
other change needs a new version.
"""

import logging
import math
from typing import Any

import msgspec

from sabot.errors import UNREADABLE, CorruptJournal, UserError
from sabot.journal.ended_jobs import EndedJob

log = logging.getLogger("sabot.journal")

VERSION = 1
_FRAME = b"SJ"
_LETTER = b"SL"


class OwnerClaim(msgspec.Struct, frozen=True, array_like=True, tag="claim"):
    """The frame by which a process becomes the owner of a journal in a Kafka topic. (A frame is one unit that is
    written to the topic.)

    - `identity`, `key`: the identity and the key of the journal. Every claim repeats them.
    - `holder`: a description of the owner for people.
    - `life`: identifies the owner's process for other processes of the same machine (`life.is_over`).
    - `lease_s`: the seconds for which the owner may rely on its claim after it has sent its last valid frame.
    - `earlier_s`: the seconds for which earlier owners may still rely on their claims, because they do not know yet
      that they were replaced (`Journal.predecessor_left`).
    """

    identity: str
    key: bytes
    holder: str
    life: str
    lease_s: float
    earlier_s: float = -math.inf


class EntriesFrame(msgspec.Struct, frozen=True, array_like=True, tag="entries"):
    """The frame by which the owner of a journal writes new entries to the Kafka topic.

    - `entries`: for each entry its place, its bytes, and the number of the letter from which it was made (0 for
      none).
    - `bodies`: the long bodies of these entries that are not in the topic yet.
    """

    entries: list[tuple[int, bytes, int]]
    bodies: list[bytes] = []


class TrimFrame(msgspec.Struct, frozen=True, array_like=True, tag="trim"):
    """The frame by which the owner of a journal removes entries and marks of jobs. Whoever reads the topic removes them
    from its local copy.

    - `jobs`, `before`: the jobs to remove. A job is only removed if it had ended before the place `before`.
    - `letters`: a number. The letters to these jobs are removed up to the letter with this number.
    - `forget_before_ms`: marks of jobs that had ended before this time are removed; 0 removes no marks.
    - `kept`: rows of the history. Each of these jobs that has a row here moves into the history; the others are
      deleted.
    - `expired`: the ids of jobs that are removed from the history.
    """

    jobs: list[str]
    before: int
    letters: int
    forget_before_ms: int = 0
    kept: list[EndedJob] = []
    expired: list[str] = []


class BeatFrame(msgspec.Struct, frozen=True, array_like=True, tag="beat"):
    """The frame by which an owner without new entries shows that it is still running. A process that wants to become
    the owner is refused if it sees one. `blocked`: by job, the reason why it cannot continue (`Journal.note_blocked`).
    """

    blocked: dict[str, str] = {}


class ReleaseFrame(msgspec.Struct, frozen=True, array_like=True, tag="release"):
    """The last frame of an owner that has closed the journal. After it, the owner begins no more calls. `earlier_s`:
    the seconds for which owners before it may still rely on their claims (as in `OwnerClaim`).
    """

    earlier_s: float = -math.inf


class CopyBegin(msgspec.Struct, frozen=True, array_like=True, tag="copy"):
    """The frame that begins a copy of the journal's whole content. The copy has the content that all frames before
    this one have produced. The older frames can be deleted once the copy is complete.

    - `claim`: the claim of the owner that writes the copy.
    - `next`: the place of the next entry.
    - `letters`: the number of the next letter to read. Earlier letters are in the copy, or are no longer needed.
    - `removed`: the place behind the last END of a trimmed job (`JournalReader.trimmed`).
    """

    claim: OwnerClaim
    next: int
    letters: int
    removed: int = 0


class CopyRows(msgspec.Struct, frozen=True, array_like=True, tag="rows"):
    """The frame with rows of one table, as a part of a copy of the journal. `table`: the name of the table
    (`journal.tables`). `rows`: for each row the list of its values.
    """

    table: str
    rows: list[list[Any]]


class CopyEnd(msgspec.Struct, frozen=True, array_like=True, tag="copied"):
    """The frame that ends a copy of the journal. A copy without this frame is incomplete, and readers ignore it."""


Frame = OwnerClaim | EntriesFrame | TrimFrame | BeatFrame | ReleaseFrame | CopyBegin | CopyRows | CopyEnd


class LetterRecord(msgspec.Struct, frozen=True, array_like=True):
    """A letter as a record in partition 1 of a journal's topic. `once`: the name of the letter (`base.once_of`); if
    several letters have the same name, only the first is valid. `job`: the id of the job. `data`: the letter, as
    `entries.encode_letter` returns it.
    """

    once: str
    job: str
    data: bytes


class _FramePiece(msgspec.Struct, frozen=True, array_like=True):
    writer: bytes
    seq: int
    part: int
    parts: int
    data: bytes


_encoder = msgspec.msgpack.Encoder()
_frames: "msgspec.msgpack.Decoder[Frame]" = msgspec.msgpack.Decoder(Frame)
_pieces = msgspec.msgpack.Decoder(_FramePiece)
_letters = msgspec.msgpack.Decoder(LetterRecord)


def encode_frame(writer: bytes, seq: int, frame: Frame, piece_bytes: int) -> list[bytes]:
    """Returns the records by which a frame is written to the topic. A long frame needs several, each with at most
    `piece_bytes` bytes of it. `writer`: the id of the owner that writes the frame. `seq`: the number of the frame in
    the topic.
    """
    data = _encoder.encode(frame)
    parts = max(1, -(-len(data) // piece_bytes))
    return [
        _FRAME
        + bytes([VERSION])
        + _encoder.encode(_FramePiece(writer, seq, part, parts, data[part * piece_bytes : (part + 1) * piece_bytes]))
        for part in range(parts)
    ]


def encode_letter_record(letter: LetterRecord) -> bytes:
    """Returns the bytes of the Kafka record for a letter."""
    return _LETTER + bytes([VERSION]) + _encoder.encode(letter)


def decode_letter_record(value: bytes | None, where: str) -> LetterRecord | None:
    """Returns the letter that a Kafka record contains; None for a record that contains no letter. Raises UserError
    for a later version of the format, and CorruptJournal for damaged bytes. `where`: the place of the record, for
    these errors.
    """
    body = _body(value, _LETTER, where)
    return None if body is None else _read(_letters, body, where)


def is_claim(value: bytes | None, seq: int, where: str) -> bool:
    """Returns True if the record is an OwnerClaim with the frame number `seq`. `where`: the place of the record, for
    errors.
    """
    piece = _piece(value, where)
    if piece is None or piece.seq != seq or piece.parts != 1:
        return False
    return isinstance(_read(_frames, piece.data, where), OwnerClaim)


def _body(value: bytes | None, mark: bytes, where: str) -> bytes | None:
    if value is None or value[:2] != mark or len(value) < 3:
        log.warning("%s: a record is not of a journal, and is left out: only sabot writes there", where)
        return None
    if value[2] != VERSION:
        raise UserError(
            f"{where}: a record has version {value[2]}, and this Sabot knows {VERSION}",
            hint="a newer Sabot has written it: start with that one",
        )
    return value[3:]


def _read(decoder: "msgspec.msgpack.Decoder[Any]", data: bytes, where: str) -> Any:
    try:
        return decoder.decode(data)
    except UNREADABLE as error:
        raise CorruptJournal(f"{where}: a record of the journal cannot be read: {error}") from error


def _piece(value: bytes | None, where: str) -> _FramePiece | None:
    body = _body(value, _FRAME, where)
    if body is None:
        return None
    piece: _FramePiece = _read(_pieces, body, where)
    return piece


class FrameOrder:
    """Reads the frames of a journal's topic, and decides which of them are valid. A frame is valid if it has the next
    number, and if its writer is the owner or the frame is an OwnerClaim. Frames of an owner that was replaced are
    therefore invalid. `take` gets the records of partition 0 in order, and returns the valid frames.

    - `writer`: the id of the owner, which is the writer of the last valid OwnerClaim.
    - `seq`: the number that the next valid frame must have.
    """

    def __init__(self) -> None:
        self.writer = b""
        self.seq = 0
        self._started = False
        self._parts: list[bytes] = []
        self._identity = ""
        self._strangers: set[bytes] = set()  # writers whose claims name another journal
        self._ahead: dict[bytes, int] = {}  # by writer other than the owner: the number of a frame that came too early

    def take(self, value: bytes | None, where: str) -> Frame | None:
        """Reads the next record. Returns the frame whose last record this is, if the frame is valid. Returns None if
        more records of the frame follow, or if the frame is not valid. Raises CorruptJournal if earlier records are
        missing, and UserError for a later version of the format. `where`: the place of the record, for these errors.
        """
        piece = _piece(value, where)
        if piece is None:
            return None
        if not self._started:
            return self._first(piece, where)
        if piece.seq != self.seq:
            self._judge(piece, where)
            return None
        if piece.writer != self.writer:
            if piece.parts != 1 or not isinstance(claim := _read(_frames, piece.data, where), OwnerClaim):
                return None
            self.writer = piece.writer
            self._strangers.discard(piece.writer)
            return self._counted(claim)
        if piece.part != len(self._parts):
            if piece.part < len(self._parts):
                return None
            raise CorruptJournal(f"{where} is piece {piece.part} of frame {self.seq}, and one before it is missing")
        self._parts.append(piece.data)
        if len(self._parts) < piece.parts:
            return None
        return self._counted(_read(_frames, b"".join(self._parts), where))

    def _judge(self, piece: _FramePiece, where: str) -> None:
        """Handles a frame whose number is not the next one. Such a frame is never used.

        - A frame with a lower number is ignored. It is a repetition, or its writer is an owner that was replaced.
        - All frames of a writer whose claim names another journal are ignored.
        - A higher number means that frames before it are missing, and raises CorruptJournal. But the first such frame
          of a writer that is not the owner is only logged, unless it is an OwnerClaim: if a topic was deleted and
          created again, the old owner writes one frame into the new topic before it notices.
        """
        if piece.writer != self.writer:
            frame = _read(_frames, piece.data, where) if piece.parts == 1 else None
            if isinstance(frame, OwnerClaim) and frame.identity != self._identity:
                self._strangers.add(piece.writer)
            if piece.seq < self.seq or piece.writer in self._strangers:
                return
            if not isinstance(frame, OwnerClaim) and self._ahead.setdefault(piece.writer, piece.seq) == piece.seq:
                log.warning("%s is frame %d of an unknown owner, and is left out", where, piece.seq)
                return
        if piece.seq > self.seq:
            raise CorruptJournal(
                f"{where} is frame {piece.seq}, and frame {self.seq} is missing before it",
                hint="bring back a copy of the topic; or give another journal, and effects may be made again",
            )

    def _first(self, piece: _FramePiece, where: str) -> Frame:
        frame = _read(_frames, piece.data, where) if piece.parts == 1 else None
        if not isinstance(frame, CopyBegin) and not (isinstance(frame, OwnerClaim) and piece.seq == 0):
            raise CorruptJournal(
                f"{where} is frame {piece.seq}, and what stood before it is gone: retention, or somebody who deleted records",
                hint="bring back a copy of the topic; or give another journal, and effects may be made again",
            )
        self._started = True
        self.writer, self.seq = piece.writer, piece.seq
        self._identity = frame.claim.identity if isinstance(frame, CopyBegin) else frame.identity
        return self._counted(frame)

    def _counted(self, frame: Frame) -> Frame:
        self.seq += 1
        self._parts.clear()
        return frame
