"""What a journal knows of its places, against a plain set of them."""

import sqlite3
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sabot.errors import CorruptJournal
from sabot.journal.entry_counts import GONE, begin_to_count, check_counted, make_tables, note_gone, runs_of

places = st.sets(st.integers(0, 30))


def tables() -> sqlite3.Connection:
    database = sqlite3.connect(":memory:")
    make_tables(database, "INTEGER")
    return database


@given(st.lists(places, max_size=5))
def test_trimmed_places_are_kept_as_runs_that_are_never_side_by_side(trims: list[set[int]]) -> None:
    database, gone = tables(), set[int]()
    for each in trims:
        new = each - gone
        note_gone(database, runs_of(sorted(new)))
        gone |= new
    runs = database.execute("SELECT first, behind FROM gone ORDER BY first").fetchall()
    assert [place for first, behind in runs for place in range(first, behind)] == sorted(gone)
    assert all(one[1] < other[0] for one, other in pairwise(runs))


@given(places, places, st.integers(0, 30), st.integers(0, 31))
def test_the_first_place_that_has_neither_an_entry_nor_a_trim_is_told(
    present: set[int], trimmed: set[int], first: int, behind: int
) -> None:
    trimmed -= present
    database = tables()
    note_gone(database, runs_of(sorted(trimmed)))
    there = [place for place in sorted(present) if first <= place < behind]
    lost = [place for place in range(first, behind) if place not in present | trimmed]

    def check() -> None:
        check_counted(lambda *window: database.execute(GONE, window).fetchall(), "journal", first, there, behind)

    if not lost:
        check()
        return
    run = next(each for each in runs_of(lost) if each[0] == lost[0])
    what = f"entry {run[0]} is" if run[1] == run[0] + 1 else f"entries {run[0]} to {run[1] - 1} are"
    with pytest.raises(CorruptJournal, match=f"journal: {what} missing"):
        check()


def test_a_journal_of_before_takes_what_is_missing_for_trimmed() -> None:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE entries (place INTEGER PRIMARY KEY)")
    database.execute("CREATE TABLE meta (name, value)")
    database.execute("INSERT INTO meta VALUES ('trimmed', 12)")
    database.executemany("INSERT INTO entries VALUES (?)", [(3,), (4,), (8,)])
    begin_to_count(database, "INTEGER")
    assert database.execute("SELECT first, behind FROM gone ORDER BY first").fetchall() == [(0, 3), (5, 8), (9, 12)]
    assert database.execute("SELECT place FROM log_end").fetchall() == [(12,)]
