"""Rows in the order of event time, whatever order they came in."""

import random

import pyarrow as pa
import pytest

from sabot._cython.arrow.batch import Batch
from sabot.engine.operators.base import END_OF_TIME, TIME_COLUMN, OperatorContext, Saved
from sabot.engine.operators.keyed.ordered import EventOrder, SortedByTime

SCHEMA = pa.schema([("k", pa.int64()), (TIME_COLUMN, pa.int64())])


class Run:
    """An operator fed by hand; `rows` is what came out."""

    def __init__(self, subtask=0, parallelism=1, within_ms=None):
        self.rows, self.late = [], []
        self.operator = EventOrder(("k",)) if within_ms is None else SortedByTime(within_ms)
        self.operator.emit = lambda batch: self.rows.extend(
            map(tuple, zip(*batch.taken().to_pydict().values(), strict=True))
        )
        branches = {"late": lambda batch: self.late.extend(batch.taken().column("k").to_pylist())}
        self.operator.open(OperatorContext(SCHEMA, subtask, parallelism, branches=branches))

    def feed(self, *rows):
        self.operator.process(
            Batch(pa.RecordBatch.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA))
        )


def test_rows_wait_for_the_watermark_and_come_out_sorted():
    run = Run()
    run.feed((1, 30), (2, 10))
    run.feed((3, 20), (4, 40))
    assert run.rows == []
    run.operator.advance(31)
    assert run.rows == [(2, 10), (3, 20), (1, 30)]
    run.operator.advance(END_OF_TIME)
    assert run.rows[3:] == [(4, 40)]


def test_rows_of_equal_time_keep_the_order_in_which_they_came():
    run = Run()
    run.feed((1, 5), (2, 5))
    run.feed((3, 5), (4, 1))
    run.operator.advance(6)
    assert run.rows == [(4, 1), (1, 5), (2, 5), (3, 5)]


def test_a_row_that_waits_is_not_copied_at_each_watermark():
    """Rows ten seconds out of order took 30 times as long as rows in order: each watermark copied all rows that stayed."""
    run, out = Run(), []
    run.operator.emit = out.append
    run.feed(*((number, number * 37 % 1000) for number in range(1000)))
    for watermark in range(10, 1001, 10):
        run.operator.advance(watermark)
    assert [row for batch in out for row in batch.data.column(1).to_pylist()] == list(range(1000))
    copies = {batch.data.column(1).buffers()[1].address for batch in out}
    assert len(copies) < 12  # a copy for each time that half of the rows have gone, so that their memory goes too


def test_a_late_row_goes_on_at_once():
    run = Run()
    run.operator.advance(100)
    run.feed((1, 150), (2, 50))
    assert run.rows == [(2, 50)]
    assert run.operator.statistics() == {"held_rows": 1, "held_bytes": 16}


def test_a_late_row_goes_on_at_once_after_a_restore_too(tmp_path):
    """It waited for the first watermark after the restore. A drained app begins time anew."""
    run = Run()
    for watermark, late in ((100, [(2, 50)]), (END_OF_TIME, [])):
        run.operator.advance(watermark)
        facts, state = run.operator.snapshot()
        assert state is None
        again = Run()
        again.operator.restore([Saved(tmp_path, facts)])
        again.feed((2, 50))
        assert again.rows == late


@pytest.mark.parametrize("seed", range(5))
def test_any_split_any_watermarks_and_a_restore_give_the_same(seed, tmp_path):
    rng = random.Random(seed)
    rows = [(number, number * 10 + rng.randrange(200)) for number in range(3000)]
    run, watermark, came = Run(), -1000, []
    position = 0
    while position < len(rows):
        size = rng.choice([1, 7, 300])
        run.feed(*rows[position : position + size])
        position += size
        watermark = max(watermark, position * 10 - 250)
        run.operator.advance(watermark)
        if rng.random() < 0.05:
            folder = tmp_path / str(position)
            folder.mkdir()
            facts, state = run.operator.snapshot()
            state.save(folder)
            came += run.rows
            run = Run()
            run.operator.restore([Saved(folder, facts)])
            run.operator.advance(watermark)
    run.operator.advance(END_OF_TIME)
    came += run.rows
    assert came == sorted(rows, key=lambda row: row[1])


def test_restored_into_more_subtasks_each_takes_its_own_keys(tmp_path):
    run = Run()
    run.feed(*((number, 10 - number % 10) for number in range(100)))
    facts, state = run.operator.snapshot()
    (tmp_path / "state").mkdir()
    state.save(tmp_path / "state")
    parts = [Run(subtask, 3) for subtask in range(3)]
    for part in parts:
        part.operator.restore([Saved(tmp_path / "state", facts)])
        part.operator.advance(END_OF_TIME)
    assert all(part.rows for part in parts)
    assert sorted(row for part in parts for row in part.rows) == sorted((n, 10 - n % 10) for n in range(100))


def test_sorted_rows_wait_a_time_in_addition_and_the_watermark_waits_with_them():
    run = Run(within_ms=100)
    run.feed((1, 900), (2, 1000))
    assert run.operator.advance(1000) == 900
    assert run.rows == []
    run.feed((3, 950), (4, 899))  # the watermark was at 1000, and one of them came within 100 ms of it
    assert (run.rows, run.late) == ([], [4])
    assert run.operator.advance(1051) == 951
    assert run.rows == [(1, 900), (3, 950)]
    assert run.operator.advance(END_OF_TIME) == END_OF_TIME
    assert run.rows == [(1, 900), (3, 950), (2, 1000)]
    assert run.operator.statistics()["late_rows"] == 1


def test_sorted_rows_stay_in_order_although_a_restore_lets_them_wait_longer(tmp_path):
    run = Run(within_ms=10)
    run.feed((1, 100), (2, 195))
    run.operator.advance(200)
    facts, state = run.operator.snapshot()
    state.save(tmp_path)
    again = Run(within_ms=100)
    again.operator.restore([Saved(tmp_path, facts)])
    again.feed((3, 150), (4, 190))
    assert again.late == [3]
    assert again.operator.advance(250) == 190  # not 150: rows up to 190 were emitted
    again.operator.advance(END_OF_TIME)
    assert run.rows + again.rows == [(1, 100), (4, 190), (2, 195)]


def test_state_of_rows_in_order_goes_on_as_sorted_rows(tmp_path):
    run = Run()
    run.feed((1, 20), (2, 10))
    facts, state = run.operator.snapshot()
    state.save(tmp_path)
    again = Run(within_ms=0)
    again.operator.restore([Saved(tmp_path, facts)])
    again.operator.advance(END_OF_TIME)
    assert again.rows == [(2, 10), (1, 20)]
