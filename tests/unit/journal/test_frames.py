"""The records of a journal's topic: what of them counts, and what is told about those that cannot be read."""

import os
import random
import signal
import subprocess
import sys

import msgspec
import pytest

from sabot.base.proc import is_over, life_of_this_process
from sabot.errors import CorruptJournal, UserError
from sabot.journal.frames import (
    BeatFrame,
    CopyBegin,
    EntriesFrame,
    Frame,
    FrameOrder,
    LetterRecord,
    OwnerClaim,
    decode_letter_record,
    encode_frame,
    encode_letter_record,
    is_claim,
)
from sabot.journal.kafka import journal_topic


def claim(holder: str) -> OwnerClaim:
    return OwnerClaim("identity", b"k" * 32, holder, "", 10.0)


def entries(text: bytes) -> EntriesFrame:
    return EntriesFrame([(0, text, 0)])


def record(writer: bytes, seq: int, frame: Frame) -> bytes:
    (one,) = encode_frame(writer, seq, frame, 1 << 20)
    return one


def counted(records: list[bytes]) -> list[Frame]:
    order = FrameOrder()
    return [frame for number, each in enumerate(records) if (frame := order.take(each, f"t[0]@{number}")) is not None]


A, B = b"a" * 8, b"b" * 8


def test_what_an_earlier_owner_writes_behind_the_next_claim_counts_for_nothing() -> None:
    assert counted(
        [
            record(A, 0, claim("a")),
            record(A, 1, entries(b"1")),
            record(B, 2, claim("b")),
            record(A, 2, entries(b"late")),
            record(A, 3, entries(b"later")),
            record(B, 3, entries(b"2")),
        ]
    ) == [claim("a"), entries(b"1"), claim("b"), entries(b"2")]


def test_of_two_claims_at_once_the_first_one_counts_and_a_claim_that_comes_too_late_does_not() -> None:
    assert counted(
        [
            record(A, 0, claim("a")),
            record(B, 0, claim("b")),
            record(A, 1, entries(b"1")),
            record(B, 1, claim("b")),
            record(A, 2, BeatFrame()),
        ]
    ) == [claim("a"), entries(b"1"), BeatFrame()]


def test_a_frame_in_pieces_counts_when_it_is_whole_and_a_claim_may_come_in_its_place() -> None:
    body = random.Random(1).randbytes(1000)
    pieces = encode_frame(A, 1, EntriesFrame([], [body]), 100)
    assert len(pieces) == 11
    first = record(A, 0, claim("a"))
    assert counted([first, *pieces]) == [claim("a"), EntriesFrame([], [body])]
    again = [each for piece in pieces for each in (piece, piece)]  # a client that sent each twice
    assert counted([first, *again]) == [claim("a"), EntriesFrame([], [body])]
    for stop in range(len(pieces)):
        torn = [first, *pieces[:stop], record(B, 1, claim("b")), *pieces[stop:], record(B, 2, BeatFrame())]
        assert counted(torn) == [claim("a"), claim("b"), BeatFrame()]


def test_a_record_before_which_others_are_missing_is_named() -> None:
    first, pieces = record(A, 0, claim("a")), encode_frame(A, 1, entries(b"x" * 300), 100)
    with pytest.raises(CorruptJournal, match=r"t\[0\]@1 is frame 2, and frame 1 is missing before it"):
        counted([first, record(A, 2, BeatFrame())])
    with pytest.raises(CorruptJournal, match=r"t\[0\]@2 is piece 2 of frame 1, and one before it is missing"):
        counted([first, pieces[0], pieces[2]])
    with pytest.raises(CorruptJournal, match="what stood before it is gone: retention"):
        counted([record(A, 7, entries(b"x"))])
    with pytest.raises(CorruptJournal, match="what stood before it is gone"):
        counted([record(A, 7, claim("a"))])


def test_an_owner_whose_claim_is_missing_is_told_and_not_left_out() -> None:
    first = [record(A, 0, claim("a")), record(A, 1, entries(b"1"))]
    with pytest.raises(CorruptJournal, match=r"t\[0\]@3 is frame 4, and frame 2 is missing before it"):
        counted([*first, record(B, 3, entries(b"2")), record(B, 4, entries(b"3"))])
    with pytest.raises(CorruptJournal, match=r"t\[0\]@2 is frame 7, and frame 2 is missing before it"):
        counted([*first, record(B, 7, claim("b"))])


def test_an_owner_of_a_topic_that_was_made_anew_and_frames_of_another_journal_are_left_out() -> None:
    first, last = [record(A, 0, claim("a")), record(A, 1, entries(b"1"))], record(A, 2, BeatFrame())
    expected = [claim("a"), entries(b"1"), BeatFrame()]
    in_pieces = encode_frame(B, 500, entries(b"x" * 300), 100)
    assert counted([*first, *in_pieces, last]) == expected
    other = OwnerClaim("another", b"k" * 32, "b", "", 10.0)
    copied = [record(B, 0, other), *(record(B, number, entries(b"x")) for number in range(1, 9))]
    assert counted([*first, *copied, last]) == expected


def test_a_topic_may_begin_with_a_copy() -> None:
    begin = CopyBegin(claim("a"), 12, 3)
    assert counted([record(A, 7, begin), record(A, 8, BeatFrame())]) == [begin, BeatFrame()]


def test_records_of_others_are_left_out_and_later_versions_are_told() -> None:
    first = record(A, 0, claim("a"))
    assert counted([b"somebody's", b"", first]) == [claim("a")]
    assert decode_letter_record(None, "t[1]@0") is None
    letter = LetterRecord("token:t", "a", b"data")
    assert decode_letter_record(encode_letter_record(letter), "t[1]@0") == letter
    later = b"SJ\x09" + first[3:]
    for read in (lambda: counted([later]), lambda: is_claim(later, 0, "t[0]@0")):
        with pytest.raises(UserError, match=r"t\[0\]@0: a record has version 9, and this Sabot knows 1"):
            read()
    with pytest.raises(UserError, match=r"t\[1\]@4: a record has version 9"):
        decode_letter_record(b"SL\x09", "t[1]@4")


def test_a_damaged_record_is_named_and_never_read_as_something_else() -> None:
    """Kafka's own checksum is before this; what passes it was written so."""
    whole = [record(A, 0, claim("a")), record(A, 1, entries(b"x" * 50))]
    told = 0
    for place in range(3, len(whole[1])):
        changed = bytearray(whole[1])
        changed[place] ^= 0x55
        try:
            found = counted([whole[0], bytes(changed)])
        except CorruptJournal as error:
            told += "t[0]@1" in str(error)
        else:
            assert found[0] == claim("a")
    assert told > 20


def test_a_claim_is_known_by_its_number() -> None:
    assert is_claim(record(A, 4, claim("a")), 4, "t")
    assert not is_claim(record(A, 4, claim("a")), 5, "t")
    assert not is_claim(record(A, 4, BeatFrame()), 4, "t")
    assert not is_claim(b"somebody's", 4, "t")


def test_an_older_frame_has_fewer_fields() -> None:
    data = msgspec.msgpack.encode(["entries", [(0, b"x", 0)]])
    assert msgspec.msgpack.decode(data, type=Frame) == entries(b"x")


def test_a_journal_is_named_by_broker_and_topic() -> None:
    assert journal_topic("kafka://h:1,g:2/orders.journal") == ("kafka://h:1,g:2", "orders.journal")
    assert journal_topic("kafka://h:1", "my app") == ("kafka://h:1", "my-app.journal")
    with pytest.raises(UserError, match="which topic has the journal"):
        journal_topic("kafka://h:1")
    with pytest.raises(UserError, match="no name of a Kafka topic"):
        journal_topic("kafka://h:1/a/b")
    with pytest.raises(UserError, match="no broker address"):
        journal_topic("kafka://", "app")
    with pytest.raises(UserError) as error:
        journal_topic("kafka://user:hunter2-secret@h:1/t")
    assert "hunter2" not in str(error.value)


def test_a_process_is_over_when_it_is_gone_and_not_when_nobody_can_tell() -> None:
    code = (
        "import sys; from sabot.base import proc as of; print(of.life_of_this_process(), flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    life = child.stdout.readline().strip()
    assert not is_over(life)
    assert not is_over(life_of_this_process())
    os.kill(child.pid, signal.SIGSTOP)
    assert not is_over(life)
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked for its status
    assert is_over(life)
    child.communicate()
    assert is_over(life)
    assert not is_over("")
    assert not is_over("another-machine pid:[1] 4711 99")
    boot, _, number, began = life.split()
    assert not is_over(f"{boot} pid:[1] {number} {began}")  # in another container
