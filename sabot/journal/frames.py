"""The records of a journal's topic: their bytes, and the rule of which of them count.

The owner writes **frames** to partition 0, each with the number that follows the last one's, `seq`. A frame that is longer than a record
may be goes in pieces, which are records one after the other.

    OwnerClaim    somebody becomes the owner; the first one is the journal's birth
    EntriesFrame  entries, and before them the long bodies that they are the first to name
    TrimFrame     jobs whose entries are removed
    BeatFrame     the owner is alive, and had nothing to say
    ReleaseFrame  the owner has closed the journal
    CopyBegin, CopyRows, CopyEnd   all that the journal holds, written anew, so that what stands before it can be deleted

**What counts** is decided by the order of the topic, and by nothing else: a frame counts if its `seq` is the next one, and it is a claim
or its writer is the owner, that is the writer of the last claim that counts. So a claim fences: what the earlier owner writes behind it
does not count, for any reader, and of two claims at once the first one counts. A frame of which pieces are missing does not count: a claim
with its number comes in its place.

        seq      7 entries (a)   8 claim (b)   8 entries (a)   9 entries (b)
                 counts          counts        a is over       counts

Letters are in partition 1, in the order of which the first one of a name counts.

On the wire: two letters, a version, msgpack. Fields are only added, at the end, with a default; what cannot be read so is a new version.
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
    """identity, key: of the journal, which each claim repeats. holder: who it is, for people. life: of its process, for others on the same
    machine (`life.is_over`). lease_s: for so long after the sending of a frame that counts it may be sure to be the owner. earlier_s: for
    so long others before it, which do not know that they are over, may still be sure of that (`Journal.predecessor_left`).
    """

    identity: str
    key: bytes
    holder: str
    life: str
    lease_s: float
    earlier_s: float = -math.inf


class EntriesFrame(msgspec.Struct, frozen=True, array_like=True, tag="entries"):
    """entries: place, bytes, and number of the letter that it is of (0: none). bodies: long ones that are not in the topic yet."""

    entries: list[tuple[int, bytes, int]]
    bodies: list[bytes] = []


class TrimFrame(msgspec.Struct, frozen=True, array_like=True, tag="trim"):
    """Of these jobs those that had ended before the place `before` are removed, with their letters up to the number `letters`; and the
    marks of jobs that had ended before `forget_before_ms` (0: none are). `kept`: the rows of those jobs that move into the history.
    `expired`: the jobs that leave the history.
    """

    jobs: list[str]
    before: int
    letters: int
    forget_before_ms: int = 0
    kept: list[EndedJob] = []
    expired: list[str] = []


class BeatFrame(msgspec.Struct, frozen=True, array_like=True, tag="beat"):
    """Nothing but its number."""


class ReleaseFrame(msgspec.Struct, frozen=True, array_like=True, tag="release"):
    """The owner writes nothing more, and sends nothing more. earlier_s: as in `OwnerClaim`."""

    earlier_s: float = -math.inf


class CopyBegin(msgspec.Struct, frozen=True, array_like=True, tag="copy"):
    """A copy of all that the frames before this one came to. claim: of the owner who writes it. next: the place of the next entry. letters:
    how far the inbox was read, so how many letters are in the copy or are over. removed: the place behind the last END whose job was
    trimmed (`JournalReader.trimmed`).
    """

    claim: OwnerClaim
    next: int
    letters: int
    removed: int = 0


class CopyRows(msgspec.Struct, frozen=True, array_like=True, tag="rows"):
    """Rows of a table (`journal.tables`)."""

    table: str
    rows: list[list[Any]]


class CopyEnd(msgspec.Struct, frozen=True, array_like=True, tag="copied"):
    """The copy is whole."""


Frame = OwnerClaim | EntriesFrame | TrimFrame | BeatFrame | ReleaseFrame | CopyBegin | CopyRows | CopyEnd


class LetterRecord(msgspec.Struct, frozen=True, array_like=True):
    """A letter in partition 1: its name, under which one counts; the job that it is for; its bytes (`entries.encode_letter`)."""

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
    """The records of a frame, each with at most so many bytes of it."""
    data = _encoder.encode(frame)
    parts = max(1, -(-len(data) // piece_bytes))
    return [
        _FRAME
        + bytes([VERSION])
        + _encoder.encode(_FramePiece(writer, seq, part, parts, data[part * piece_bytes : (part + 1) * piece_bytes]))
        for part in range(parts)
    ]


def encode_letter_record(letter: LetterRecord) -> bytes:
    """The record of a letter."""
    return _LETTER + bytes([VERSION]) + _encoder.encode(letter)


def decode_letter_record(value: bytes | None, where: str) -> LetterRecord | None:
    """The letter; None for a record that is not ours. Raises UserError for a later version, CorruptJournal; both name `where`."""
    body = _body(value, _LETTER, where)
    return None if body is None else _read(_letters, body, where)


def is_claim(value: bytes | None, seq: int, where: str) -> bool:
    """Whether the record is a claim with this number."""
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
    """The rule, over the records of partition 0 in their order. `take` gives the frames that count.

    writer: of the last claim that counts. seq: the number of the next frame.
    """

    def __init__(self) -> None:
        self.writer = b""
        self.seq = 0
        self._started = False
        self._parts: list[bytes] = []
        self._identity = ""
        self._strangers: set[bytes] = set()  # writers of other journals, by their claims
        self._ahead: dict[bytes, int] = {}  # of others, by writer: the frame that came before its turn

    def take(self, value: bytes | None, where: str) -> Frame | None:
        """The frame that this record makes whole, if it counts. Raises CorruptJournal, naming `where`, for a record before which others are
        missing; UserError for one of a later version.
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
        """Raises CorruptJournal where a frame that is not the next one says that others are missing, with the claim of its writer perhaps.

        An owner of a topic that was made anew is ahead too, with one frame: it fails then, and that frame counts for nothing.
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
