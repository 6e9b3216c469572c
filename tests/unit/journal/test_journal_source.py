"""A journal as a source: entries of many rows, and what is trimmed before it was read. The rest is in the contract of sources."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sabot.codecs.records import iterate_records
from sabot.errors import UserError
from sabot.journal import JournalReader
from sabot.journal.entries import Begin, EffectResult, End, Entry
from sabot.journal.memory import MemoryJournal, MemoryReader, MemoryStorage
from sabot.journal.source import ROWS, JournalRow, JournalSource, held_for

NAME = "journal of shop"


def rows(entry: Entry) -> list[JournalRow]:
    """A RESULT has a row for each byte of its usage."""
    usage = entry.usage if isinstance(entry, EffectResult) else b""
    return [JournalRow(bytes([each]), b"k", entry.at_ms) for each in usage]


def journal(*usages: bytes) -> MemoryStorage:
    home = MemoryStorage()
    with_claim = MemoryJournal(home)
    for number, usage in enumerate(usages):
        with_claim.append(EffectResult("job", number, 1, usage=usage))
    with_claim.close()
    return home


def source(home: MemoryStorage) -> JournalSource:
    @contextmanager
    def reading() -> Iterator[JournalReader]:
        yield MemoryReader(home)

    return JournalSource("shop", reading, rows)


def read(from_: JournalSource, most: int) -> list[tuple[int, bytes | None, int]]:
    batch = from_.read_batch(most, 0)
    if batch is None:
        return []
    return [(each.offset, each.payload, each.timestamp) for each in iterate_records(batch.data, batch.topic)]


@pytest.mark.parametrize("most", [1, 2, 3, 10])
def test_an_entry_of_many_rows_is_cut_where_a_batch_is_full_and_goes_on_there(most: int) -> None:
    home = journal(b"", b"abc", b"", b"d", b"ef")
    first = ROWS
    whole = [
        (first, b"a", 1),
        (first + 1, b"b", 1),
        (first + 2, b"c", 1),
        (3 * ROWS, b"d", 3),
        (4 * ROWS, b"e", 4),
        (4 * ROWS + 1, b"f", 4),
    ]
    found: list[tuple[int, bytes | None, int]] = []
    positions = None
    while True:  # another source each time, as after a crash
        reading = source(home)
        reading.open(positions)
        part = read(reading, most)
        positions = reading.positions()
        reading.close()
        assert len(part) <= most
        if not part:
            break
        found += part
        assert positions == {(NAME, 0): part[-1][0] + 1}
    assert found == whole


@pytest.mark.parametrize("position", [ROWS + 4, 9 * ROWS, 2 * ROWS + 1])
def test_a_position_that_no_entry_has_is_refused(position: int) -> None:
    reading = source(journal(b"", b"abc", b""))
    with pytest.raises(UserError, match=f"position {position} does not exist"):
        reading.open({(NAME, 0): position})


def test_what_was_trimmed_before_it_was_read_is_an_error_at_a_start_and_while_it_runs() -> None:
    home = journal(b"a")
    owner = MemoryJournal(home)
    reading = source(home)
    reading.open(None)
    assert len(read(reading, 10)) == 1
    positions = reading.positions()
    for entry in (Begin("other", 2), EffectResult("other", 3, 1, usage=b"b"), End("other", 4, "succeeded")):
        owner.append(entry)
    owner.trim(owner.positions(), 1)
    with pytest.raises(UserError, match="entries before 4 were trimmed, and only those before 1 were read"):
        read(reading, 10)
    with pytest.raises(UserError, match="are lost"):
        source(home).open(positions)
    afresh = source(home)
    afresh.open(None)
    assert [payload for _, payload, _ in read(afresh, 10)] == [b"a"]
    owner.close()


def test_a_checkpoint_holds_the_journal_from_where_its_streams_have_read_it() -> None:
    read_so_far = [{("orders", 0): 5}, {(NAME, 0): 3 * ROWS + 2, (NAME, 1): 90 * ROWS}]
    assert held_for(read_so_far, {0: 10, 1: 20}) == {0: 3, 1: 20}
    assert held_for([], {0: 10}) == {0: 10}
