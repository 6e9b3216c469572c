"""The first rows of a stream: the batch in which the last of them comes is not copied, and the count survives. Rows by chance: where the
generators go on.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sabot._cython.arrow.batch import Batch
from sabot.engine.operators.base import OperatorContext, Saved
from sabot.engine.operators.rows.subset import Head, Sample

DATA = pa.record_batch({"n": pa.array(range(4), pa.int64())})
OFFSETS = {("pay", 0): 7}


def opened(n: int, subtask: int = 0) -> tuple[Head, list[Batch]]:
    out: list[Batch] = []
    head = Head(n)
    head.emit = out.append
    assert head.open(OperatorContext(DATA.schema, subtask=subtask, parallelism=2)).equals(DATA.schema)
    return head, out


def numbers(batches: list[Batch]) -> list[int]:
    return [n for batch in batches for n in batch.taken().column("n").to_pylist()]


def test_batches_before_the_last_row_pass_as_they_are() -> None:
    head, out = opened(8)
    batch = Batch(DATA)
    head.process(batch)
    assert out == [batch]
    assert out[0] is batch


def test_the_batch_of_the_last_row_is_cut_by_a_selection_and_nothing_is_copied() -> None:
    head, out = opened(6)
    for _ in range(3):
        head.process(Batch(DATA, OFFSETS, "pay"))
    assert numbers(out) == [0, 1, 2, 3, 0, 1]
    assert out[1].data is DATA
    assert (out[1].offsets, out[1].topic) == (OFFSETS, "pay")


def test_only_selected_rows_count_in_the_order_of_the_selection() -> None:
    head, out = opened(3)
    hashes = pa.array(range(4), pa.uint64())
    for chosen in ([3, 1], [2, 0]):
        head.process(Batch(DATA).with_selection(pa.array(chosen, pa.int32()), hashes))
    assert numbers(out) == [3, 1, 2]
    assert out[1].hashes is hashes


def test_of_no_rows_none_passes() -> None:
    head, out = opened(0)
    head.process(Batch(DATA))
    assert out == []
    assert head.group_count() == 0


@pytest.mark.parametrize(("later", "more"), [(5, [0, 1]), (3, []), (2, []), (9, [0, 1, 2, 3])])
def test_after_a_restore_it_counts_on_under_another_n_too(later: int, more: list[int]) -> None:
    head, _ = opened(3)
    head.process(Batch(DATA))
    facts, cut = head.snapshot()
    assert cut is None
    again, out = opened(later)
    again.restore([Saved(Path("nothing was saved"), facts)])
    again.process(Batch(DATA))
    assert numbers(out) == more


def test_the_count_is_in_one_subtask_after_a_restore() -> None:
    saved = [Saved(Path("nothing was saved"), {"passed": passed}) for passed in (3, 0)]
    rows: list[dict[str, Any]] = []
    for subtask in (0, 1):
        head, _ = opened(9, subtask)
        head.restore(saved)
        rows += [row for piece in head.contents() for row in piece.to_pylist()]
    assert rows == [{"rows": 3}]


def sampled(subtask: int, parallelism: int, saved: list[Saved]) -> tuple[Sample, list[int]]:
    """(a sample that was restored, if there is something saved; the rows that it passes of many)."""
    out: list[Batch] = []
    sample = Sample(0.5, 7)
    sample.emit = out.append
    sample.open(OperatorContext(DATA.schema, subtask=subtask, parallelism=parallelism))
    if saved:
        sample.restore(saved)
    for _ in range(20):
        sample.process(Batch(DATA))
    return sample, numbers(out)


def saved_of(*samples: Sample) -> list[Saved]:
    return [Saved(Path("nothing was saved"), sample.snapshot()[0]) for sample in samples]


def test_each_generator_goes_on_where_it_was_whoever_else_comes_or_goes() -> None:
    first = [sampled(subtask, 2, [])[0] for subtask in (0, 1)]
    saved = saved_of(*first)
    own = [sampled(subtask, 2, [saved[subtask]])[1] for subtask in (0, 1)]  # as many as before: each gets its own
    fresh = [sampled(subtask, 3, [])[1] for subtask in (0, 1, 2)]
    assert own[0] != own[1]
    assert [sampled(subtask, 3, saved)[1] for subtask in (0, 1, 2)] == [*own, fresh[2]]
    assert sampled(0, 1, saved)[1] == own[0]


def test_a_subtask_that_was_not_there_does_not_draw_the_numbers_of_the_first() -> None:
    """It took over the generator of the only subtask that there had been, so both passed the same places of their batches."""
    saved = saved_of(sampled(0, 1, [])[0])
    one, other = (sampled(subtask, 2, saved)[1] for subtask in (0, 1))
    assert one != other
    assert other == sampled(1, 2, [])[1]
