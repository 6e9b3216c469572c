"""The records of a journal's topic: their encoding, and the rule that decides which of them count.

The owner writes **frames** to partition 0, each with the next number, `seq`. A frame that is too long for one record is
written in pieces, which are consecutive records.

   OwnerClaim    somebody becomes the owner; the first one creates the journal
   EntriesFrame  entries, and before them the long bodies that they are the first to name
   TrimFrame     jobs whose entries are removed
   BeatFrame     a sign of life of an owner with nothing to write
   ReleaseFrame  the owner has closed the journal
   CopyBegin, CopyRows, CopyEnd   the whole content of the journal, written anew, so that the records before it can be deleted

**Which frames count** is decided only by the order of the topic: a frame counts if its `seq` is the next one, and it is
a claim, or its writer is the owner, which is the writer of the last claim that counts. So a claim fences: frames that
the earlier owner writes behind it count for no reader, and of two claims at once the first one counts. A frame with
missing pieces does not count: a claim takes its number.

       seq      7 entries (a)   8 claim (b)   8 entries (a)   9 entries (b)
                counts          counts        does not        counts

Letters are in partition 1; of several letters of one name the first counts.

A record is two letters, a version, and msgpack. Fields are only added, at the end, with a default; any other change
needs a new version.
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
    """A claim: its writer becomes the owner. Each claim repeats the `identity` and the `key` of the journal. `holder`
    is a description of the owner for people. `life` identifies the owner's process for other processes of the same
    machine (`life.is_over`). `lease_s` is the number of seconds, from the sending of a frame that counts, for which the
    owner may rely on its claim. `earlier_s` is the number of seconds for which earlier owners, which do not know that
    they were replaced, may still rely on theirs (`Journal.predecessor_left`).
    """

    identity: str
    key: bytes
    holder: str
    life: str
    lease_s: float
    earlier_s: float = -math.inf


class EntriesFrame(msgspec.Struct, frozen=True, array_like=True, tag="entries"):
    """A frame of new entries: the place of each, its bytes, and the number of the letter that it was made of (0 for
    none). `bodies` are the long ones that are not in the topic yet.
    """

    entries: list[tuple[int, bytes, int]]
    bodies: list[bytes] = []


class TrimFrame(msgspec.Struct, frozen=True, array_like=True, tag="trim"):
    """A trim. It removes those of `jobs` that had ended before the place `before`, with their letters up to the number
    `letters`. It removes the marks of jobs that had ended before `forget_before_ms` (0 removes no marks). `kept` has
    the rows of those jobs that move into the history, and `expired` names the jobs that leave the history.
    """

    jobs: list[str]
    before: int
    letters: int
    forget_before_ms: int = 0
    kept: list[EndedJob] = []
    expired: list[str] = []


class BeatFrame(msgspec.Struct, frozen=True, array_like=True, tag="beat"):
    """A sign of life, which has only its number."""


class ReleaseFrame(msgspec.Struct, frozen=True, array_like=True, tag="release"):
    """The last frame of an owner that has closed the journal, and will begin no more calls. `earlier_s` has the meaning
    that it has in `OwnerClaim`.
    """

    earlier_s: float = -math.inf


class CopyBegin(msgspec.Struct, frozen=True, array_like=True, tag="copy"):
    """The beginning of a copy of the journal's whole content, as the frames before this one have made it. `claim` is
    the claim of the writer. `next` is the place of the next entry. `letters` is the number of the next letter to read:
    earlier letters are in the copy, or are no longer needed. `removed` is the place behind the last END of a trimmed
    job (`JournalReader.trimmed`).
    """

    claim: OwnerClaim
    next: int
    letters: int
    removed: int = 0


class CopyRows(msgspec.Struct, frozen=True, array_like=True, tag="rows"):
    """Some rows of a table (`journal.tables`) in a copy."""

    table: str
    rows: list[list[Any]]


class CopyEnd(msgspec.Struct, frozen=True, array_like=True, tag="copied"):
    """The end of a copy that is complete."""


Frame = OwnerClaim | EntriesFrame | TrimFrame | BeatFrame | ReleaseFrame | CopyBegin | CopyRows | CopyEnd


class LetterRecord(msgspec.Struct, frozen=True, array_like=True):
    """A letter in partition 1: `once`, the name under which one letter counts; its job; and its bytes
    (`entries.encode_letter`).
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
    """Returns the records of a frame. Each has at most `piece_bytes` bytes of it."""
    data = _encoder.encode(frame)
    parts = max(1, -(-len(data) // piece_bytes))
    return [
        _FRAME
        + bytes([VERSION])
        + _encoder.encode(_FramePiece(writer, seq, part, parts, data[part * piece_bytes : (part + 1) * piece_bytes]))
        for part in range(parts)
    ]


def encode_letter_record(letter: LetterRecord) -> bytes:
    """Returns the record of a letter."""
    return _LETTER + bytes([VERSION]) + _encoder.encode(letter)


def decode_letter_record(value: bytes | None, where: str) -> LetterRecord | None:
    """Returns the letter in a record, or None for a record of another kind. Raises UserError for a later version, and
    CorruptJournal; both errors name `where`.
    """
    body = _body(value, _LETTER, where)
    return None if body is None else _read(_letters, body, where)


def is_claim(value: bytes | None, seq: int, where: str) -> bool:
    """Returns True if the record is a claim with this number."""
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
    """The rule for which frames count. It takes the records of partition 0 in order, and `take` returns the frames that
    count.

    `writer` is the id of the writer whose claim is the last one that counts. `seq` is the number of the next frame.
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
        """Takes the next record. Returns the frame that this record completes, or None if it completes none or the
        frame does not count. Raises CorruptJournal if records before it are missing, and UserError for a later version;
        both errors name `where`.
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
        """Handles a frame whose number is not the next one, and which therefore does not count. Raises CorruptJournal
        if the number shows that earlier frames are missing, for example the claim of its writer.

        One such frame of an unknown writer is tolerated. If a topic was deleted and created anew, the owner of the
        deleted topic writes one frame into the new one before it fails.
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
