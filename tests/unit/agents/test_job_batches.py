"""Which rows jobs have, against a set of their places; and batches as the journal has them."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sabot.agents.durable.job_batches import (
    Pins,
    batch_job_id,
    from_ipc,
    is_batch,
    offsets_of_text,
    read_batch,
    to_ipc,
)
from sabot.codecs.records import build_records
from sabot.errors import CorruptJournal

PLACES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), unique=True)


def records(places: list[tuple[int, int]], payload: bytes = b"{}") -> pa.RecordBatch:
    partitions, offsets = zip(*places, strict=True) if places else ((), ())
    return build_records([payload] * len(places), None, [0] * len(places), list(partitions), list(offsets))


def places_of(pins: Pins) -> set[tuple[int, int]]:
    return {(partition, at) for _, partition, packed in pins.facts() for at in offsets_of_text(packed).tolist()}


def passed(come: list[tuple[int, int]]) -> set[tuple[int, int]]:
    return {(partition, at) for partition, last in come for at in range(last + 1)}


@given(st.lists(PLACES), PLACES, st.lists(st.integers(0, 40)))
def test_rows_that_come_are_known_however_they_are_cut(
    jobs: list[list[tuple[int, int]]], facts: list[tuple[int, int]], cuts: list[int]
) -> None:
    """The source gives the rows of each partition in their order, in batches of any cut: each row of a job is known once."""
    pins = Pins()
    for places in jobs:
        pins.add("log", records(places))
    before = Pins()
    before.add("log", records(facts))
    pins.take(before.facts())
    pinned = {*facts, *(place for places in jobs for place in places)}
    comes = [(partition, at) for at in range(40) for partition in range(3)]
    bounds = [0, *sorted(cuts), len(comes)]
    known = []
    for start, end in pairwise(bounds):
        assert places_of(pins) == pinned - passed(comes[:start]), "rows that have not come stand in a checkpoint"
        found = pins.check("log", records(comes[start:end]))
        if found is not None:
            known += [place for place, is_known in zip(comes[start:end], found[0], strict=True) if is_known]
            assert not found[1].any()
    assert set(known) == pinned
    assert len(known) == len(pinned)
    assert pins.facts() == []


def test_rows_of_another_log_are_not_known_and_other_content_is_told() -> None:
    pins = Pins()
    pins.add("log", records([(0, 1), (0, 2), (1, 1)], b'{"a":1}'))
    assert pins.check("other", records([(0, 1)])) is None
    now = build_records([b'{"a":1}', b'{"a":2}', b'{"a":1}'], None, [0, 0, 0], [0, 0, 1], [1, 2, 1])
    found = pins.check("log", now)
    assert found is not None
    assert found[0].tolist() == [True, True, True]
    assert found[1].tolist() == [False, True, False]


def test_a_row_that_has_come_is_not_looked_for_again() -> None:
    """A log that is read on needs no memory for what has passed."""
    pins = Pins()
    pins.add("log", records([(0, at) for at in range(10)]))
    pins.check("log", records([(0, 20)]))
    assert pins.facts() == []


def test_facts_of_many_rows_are_short_and_damaged_ones_are_refused() -> None:
    pins = Pins()
    pins.add("log", records([(0, 150 * at) for at in range(10_000)]))
    ((log, partition, packed),) = pins.facts()
    assert (log, partition) == ("log", 0)
    assert len(packed) < 1000
    with pytest.raises(ValueError, match="pinned rows"):
        Pins().take([["log", 0, packed[:100]]])


def test_a_batch_is_named_by_its_first_row_and_how_many_there_are() -> None:
    name = batch_job_id("app.pay", "log/orders", records([(3, 7), (3, 8)]))
    assert name == "app.pay/log/orders/3/7+2"
    assert is_batch(name, "app.pay")
    assert not is_batch("app.pay/log/orders/3/7", "app.pay")
    assert not is_batch(f"{name}>0", "app.pay")


def test_what_is_no_batch_is_refused() -> None:
    batch = pa.record_batch({"a": np.arange(3)})
    assert from_ipc(to_ipc(batch.slice(1))).equals(batch.slice(1))
    for damaged in (b"", to_ipc(batch)[:100], b"x" * 50):
        with pytest.raises(CorruptJournal):
            from_ipc(damaged)
    with pytest.raises(CorruptJournal, match="job j: its BEGIN has no batch"):
        read_batch(b"\x93\x01\x02\x03", "j")
