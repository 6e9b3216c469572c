"""Rows that wait and survive a barrier (`operators.row_queue`), beside a plain list of them."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot.engine.operators.row_queue import QueuedRows, RowQueue


def chunk(first: int, rows: int) -> QueuedRows:
    return QueuedRows(rows, pa.record_batch({"n": range(first, first + rows)}), topic="in")


def left(held: RowQueue[QueuedRows]) -> list[int]:
    """What a barrier would save."""
    pieces = [each.waiting_data() for each in held]
    return [n for piece in pieces if piece is not None for n in piece["n"].to_pylist()]


ENDS = st.tuples(st.sampled_from(["one", "several"]), st.lists(st.integers(0, 200), min_size=1, max_size=8))
ADDS = st.tuples(st.just("add"), st.integers(0, 5))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(ADDS, ENDS), max_size=40))
def test_a_barrier_saves_the_rows_that_have_not_ended_in_the_order_in_which_they_came(steps) -> None:
    held: RowQueue[QueuedRows] = RowQueue(1000, 1 << 20)
    twin: list[int] = []
    owner: dict[int, tuple[QueuedRows, int]] = {}
    count = 0
    for step, what in steps:
        if step == "add":
            new = chunk(count, what)
            held.add(new)
            owner |= {count + row: (new, row) for row in range(what)}
            twin += range(count, count + what)
            count += what
            continue
        for picked in {twin[place % len(twin)] for place in what} if twin else ():
            rows, row = owner[picked]
            last = held.end(rows, row) if step == "one" else held.end_rows(rows, [row])
            twin.remove(picked)
            assert last == all(owner[other][0] is not rows for other in twin)
        assert left(held) == twin
        assert held.rows == len(twin)
        assert held.nbytes == sum({id(owner[n][0]): owner[n][0].nbytes for n in twin}.values())
        assert [n for each in held for n in each.waiting()] == [owner[n][1] for n in twin]


def test_rows_may_end_from_the_first_on() -> None:
    held: RowQueue[QueuedRows] = RowQueue(1000, 1 << 20)
    first, second = chunk(0, 3), chunk(3, 2)
    held.add(first)
    held.add(second)
    assert not held.end_first(first, 2)
    assert (first.first, left(held), held.first) == (2, [2, 3, 4], first)
    assert held.end_first(first, 1)
    assert (left(held), held.first, len(held)) == ([3, 4], second, 1)
    assert held.end_first(second, 2)
    assert (left(held), held.first, held.nbytes) == ([], None, 0)


@pytest.mark.parametrize(("rows", "nbytes", "has_room"), [(5, 1000, True), (4, 1000, False), (5, 32, False)])
def test_they_are_bounded_by_rows_and_bytes(rows, nbytes, has_room) -> None:
    held: RowQueue[QueuedRows] = RowQueue(rows, nbytes)
    held.add(chunk(0, 4))  # 32 bytes
    assert held.has_room is has_room
    held.add(chunk(4, 4))
    assert not held.has_room


def test_rows_that_no_checkpoint_keeps_count_all_the_same() -> None:
    held: RowQueue[QueuedRows] = RowQueue(2, 1000)
    timers = QueuedRows(2)
    held.add(timers)
    assert (held.rows, held.has_room, left(held)) == (2, False, [])
    held.end(timers, 1)
    assert (held.rows, left(held)) == (1, [])
