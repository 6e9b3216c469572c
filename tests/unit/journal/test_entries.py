"""Entries as bytes: what another version of them is told, and that damage is told from it."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sabot.errors import CorruptJournal, UserError
from sabot.journal.entries import (
    INLINE_BYTES,
    VERSION,
    Answer,
    Attempt,
    Begin,
    Cancel,
    EffectResult,
    End,
    Entry,
    Intent,
    Letter,
    Signal,
    StoredBody,
    decode_entry,
    decode_letter,
    encode_entry,
    encode_letter,
    kind_of,
    with_stored_body,
)

ENTRIES: list[Entry] = [
    Begin("job", 1, "agent", b"body", b"key", b"digest", "code"),
    Attempt("job", 2, 3, 4),
    Intent("job", 2, 3, "call", "refund", b"digest", "unsafe", b"body", "token", 5, b"note"),
    EffectResult("job", 2, 3, 4, "ValueError", StoredBody(b"hash", 7), b"usage"),
    Answer("job", 2, 3, "token", "expired", b"body", "ann"),
    Signal("job", 2, "name", "token", b"body", "ann"),
    Cancel("job", 2, "reason", "ann"),
    End("job", 2, "failed", "result", b"digest", b"body"),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=kind_of)
def test_an_entry_comes_back_from_its_bytes(entry: Entry) -> None:
    assert decode_entry(encode_entry(entry), "here") == entry


@pytest.mark.parametrize("entry", ENTRIES, ids=kind_of)
def test_an_entry_without_its_last_fields_has_their_defaults(entry: Entry) -> None:
    """So fields can be added at the end without a new version."""
    values = msgspec.msgpack.decode(encode_entry(entry)[1:])
    fields = msgspec.structs.fields(type(entry))
    if fields[-1].required:  # there are only those that it cannot be without
        return
    found = decode_entry(bytes([VERSION]) + msgspec.msgpack.encode(values[:-1]), "here")
    assert getattr(found, fields[-1].name) == fields[-1].default


def test_an_unknown_version_is_told_by_its_number() -> None:
    data = bytes([9]) + encode_entry(ENTRIES[0])[1:]
    with pytest.raises(UserError, match=f"here: an entry has version 9, and this Sabot knows {VERSION}") as error:
        decode_entry(data, "here")
    assert not isinstance(error.value, CorruptJournal)


def test_an_unknown_kind_and_damaged_bytes_are_corrupt() -> None:
    whole = encode_entry(ENTRIES[2])
    unknown = bytes([VERSION]) + msgspec.msgpack.encode(["dream", "job", 1])
    for data in (b"", whole[:1], whole[:-1], whole[:5], unknown, bytes([VERSION]) + b"\xc1"):
        with pytest.raises(CorruptJournal, match="here: an entry"):
            decode_entry(data, "here")


@given(
    st.sampled_from(ENTRIES),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4),
    st.integers(0, 200),
)
def test_damaged_bytes_are_another_entry_or_told_and_nothing_else(
    entry: Entry, changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(encode_entry(entry))
    for place, byte in changes:
        data[place % len(data)] = byte
    try:
        decode_entry(bytes(data[:length]), "here")
    except UserError as error:
        told = str(error)
        assert told.startswith("here: an entry")


@given(st.binary(max_size=60))
def test_bytes_of_anybody_are_told(data: bytes) -> None:
    for each in (data, bytes([VERSION]) + data):
        for decode in (decode_entry, decode_letter):
            with suppress(UserError):
                decode(each, "here")


def test_only_a_long_body_is_taken_out_of_its_entry() -> None:
    short, long = Begin("job", 1, body=b"x" * INLINE_BYTES), Begin("job", 1, body=b"x" * (INLINE_BYTES + 1))
    assert with_stored_body(short) == (short, b"")
    entry, body = with_stored_body(long)
    assert body == long.body
    assert isinstance(entry, Begin)
    assert isinstance(entry.body, StoredBody)
    assert entry.body.size == len(body)
    assert with_stored_body(Cancel("job", 1)) == (Cancel("job", 1), b"")


def test_a_letter_comes_back_from_its_bytes() -> None:
    letter = Letter("signal", "token", "job", "name", b"body", "ann")
    assert decode_letter(encode_letter(letter), "here") == letter
    with pytest.raises(UserError, match="version 9"):
        decode_letter(b"\x09" + encode_letter(letter)[1:], "here")
    with pytest.raises(CorruptJournal):
        decode_letter(encode_letter(letter)[:-3], "here")
