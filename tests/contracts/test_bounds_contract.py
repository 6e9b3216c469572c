"""A topic that is read up to a bound (`TakesBound.end_at`), on the embedded broker and on a real one."""

from datetime import UTC, datetime
from typing import Any

import pytest

from contracts.places import PAYLOADS, MemoryPlace
from sabot.codecs.records import iterate_records
from sabot.connectors.base import Source
from sabot.connectors.places import Bound, Place, checked_start, checked_until
from sabot.errors import UserError

WAIT = 60.0  # seconds; only a test that fails waits so long


def bounded(place: MemoryPlace, until: Any, facts: dict[str, Any] | None = None) -> Source:
    """A source that is not open yet. facts: what a checkpoint has kept of its bound."""
    source = place.source()
    asked = checked_until(until, "test")
    assert asked is not None
    source.end_at(Bound(asked))
    assert source.bounded
    assert source.bound is not None
    source.bound.keep(facts)
    return source


def rest(source: Source, max_rows: int = 65536) -> list[tuple[int, bytes | None]]:
    """(partition, payload) of all that comes until the source is exhausted."""
    found = []
    while not source.exhausted:
        batch = source.read_batch(max_rows, WAIT)
        assert batch is not None or source.exhausted, f"nothing came behind {found}"
        if batch is not None:
            assert 0 < batch.num_rows <= max_rows
            assert set(batch.offsets) >= {(source.name, r.partition) for r in iterate_records(batch.data, batch.topic)}
            found += [(record.partition, record.payload) for record in iterate_records(batch.data, batch.topic)]
    return found


def filled(place: MemoryPlace, partitions: int = 2) -> list[tuple[int, bytes | None]]:
    place.create(partitions)
    rows: list[tuple[int, bytes | None]] = []
    for partition in range(partitions):
        place.put(PAYLOADS[: 4 + partition], partition=partition)
        rows += [(partition, payload) for payload in PAYLOADS[: 4 + partition]]
    return rows


def more(place: MemoryPlace) -> None:
    for partition in (0, 1):
        place.put([b"later", b"later still"], partition=partition)


@pytest.mark.parametrize("max_rows", [1, 3, 65536])
def test_now_is_what_is_there_when_the_source_is_opened(broker_place: MemoryPlace, max_rows: int) -> None:
    rows = filled(broker_place)
    source = bounded(broker_place, "now")
    assert not source.exhausted
    source.open(None)
    more(broker_place)
    assert sorted(rest(source, max_rows)) == sorted(rows)
    assert source.read_batch(10, WAIT) is None
    assert source.positions() == {(source.name, 0): 4, (source.name, 1): 5}
    assert set(source.lag().values()) <= {0}
    assert source.backlog() == 0
    source.close()


def test_a_topic_without_records_has_been_read_at_once(broker_place: MemoryPlace) -> None:
    broker_place.create(2)
    source = bounded(broker_place, "now")
    source.open(None)
    assert source.exhausted
    assert source.read_batch(10, WAIT) is None
    source.close()


def test_what_begins_behind_the_bound_reads_nothing_and_keeps_its_place(broker_place: MemoryPlace) -> None:
    filled(broker_place)
    source = bounded(broker_place, {0: 1, 1: 2})
    source.open(None, "latest")
    assert source.exhausted
    assert source.positions() == {(source.name, 0): 4, (source.name, 1): 5}
    source.close()


def test_a_time_ends_before_its_first_record_and_where_there_is_none_with_what_is_there(
    broker_place: MemoryPlace,
) -> None:
    broker_place.create(2)
    for n, payload in enumerate(PAYLOADS):
        broker_place.put([payload], timestamp=1_600_000_000_000 + n * 1000, partition=0)
    broker_place.put([b"early"], timestamp=1_500_000_000_000, partition=1)
    for until, count in (
        (1_600_000_003_000, 3),
        (datetime.fromtimestamp(1_600_000_003.001, UTC), 4),
        (1_700_000_000_000, 10),
    ):
        source = bounded(broker_place, until)
        source.open(None)
        more(broker_place)
        found = rest(source)
        assert [payload for partition, payload in found if partition == 0][:10] == PAYLOADS[:count]
        assert (1, b"early") in found
        source.close()


def test_offsets_that_are_not_there_yet_are_waited_for(broker_place: MemoryPlace) -> None:
    rows = filled(broker_place)
    source = bounded(broker_place, {0: 5, 1: 3})
    source.open(None)
    found = []
    while len(found) < 4 + 3:
        batch = source.read_batch(10, WAIT)
        assert batch is not None
        found += [(record.partition, record.payload) for record in iterate_records(batch.data, batch.topic)]
    assert source.read_batch(10, 0.3) is None
    assert not source.exhausted
    more(broker_place)
    assert rest(source) == [(0, b"later")]
    assert sorted(found) == sorted(rows[:4] + rows[4:7])
    source.close()


@pytest.mark.parametrize("until", [{0: 3}, {0: 3, 1: 3, 2: 3}])
def test_offsets_name_each_partition(broker_place: MemoryPlace, until: Place) -> None:
    filled(broker_place)
    source = bounded(broker_place, until)
    with pytest.raises(UserError, match=r"partitions 0, 1, but the offsets are for 0"):
        source.open(None)
    source.close()


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("read", [0, 1, 5, 8, 9])
def test_a_restart_ends_where_the_first_start_would_have_ended(broker_place: MemoryPlace, read: int) -> None:
    rows = filled(broker_place)
    source = bounded(broker_place, "now")
    source.open(None)
    found: list[tuple[int, bytes | None]] = []
    while len(found) < read:
        batch = source.read_batch(1, WAIT)
        assert batch is not None
        found += [(record.partition, record.payload) for record in iterate_records(batch.data, batch.topic)]
    assert source.bound is not None
    positions, facts = source.positions(), source.bound.facts()
    source.close()
    broker_place.create(3)  # a partition that is newer than the bound has nothing before it
    broker_place.put([b"new"], partition=2)
    more(broker_place)
    again = bounded(broker_place, "now", facts)
    again.open(positions)
    assert sorted(found + rest(again)) == sorted(rows)
    assert again.bound is not None
    assert [pair for pair in again.bound.facts()["ends"] if pair[0] != 2] == facts["ends"]
    again.close()


def test_another_bound_than_that_of_the_checkpoint_is_found_anew(broker_place: MemoryPlace) -> None:
    filled(broker_place)
    source = bounded(broker_place, {0: 1, 1: 1})
    source.open(None)
    assert len(rest(source)) == 2
    assert source.bound is not None
    positions, facts = source.positions(), source.bound.facts()
    source.close()
    more(broker_place)
    again = bounded(broker_place, "now", facts)
    again.open(positions)
    assert len(rest(again)) == 3 + 4 + 4
    again.close()


def test_readers_that_share_the_partitions_end_each_with_its_own(broker_place: MemoryPlace) -> None:
    rows = filled(broker_place, 3)
    source = bounded(broker_place, {0: 2, 1: 5, 2: 0})
    found = []
    for reader in source.readers(2):
        reader.open(None)
        found += rest(reader)
        reader.close()
    assert sorted(found) == sorted(rows[:2] + rows[4:9])


def test_a_partition_that_is_over_stays_so_when_others_were_held(broker_place: MemoryPlace) -> None:
    filled(broker_place)
    source = bounded(broker_place, {0: 2, 1: 4})
    source.open(None)
    source.hold({(source.name, 1)})
    found = []
    while len(found) < 2:
        batch = source.read_batch(10, WAIT)
        assert batch is not None
        found += [(record.partition, record.payload) for record in iterate_records(batch.data, batch.topic)]
    more(broker_place)
    assert not source.exhausted
    source.hold({(source.name, 0), (source.name, 1)})
    source.hold(set())
    assert rest(source) == [(1, payload) for payload in PAYLOADS[:4]]
    assert found == [(0, payload) for payload in PAYLOADS[:2]]
    source.close()


@pytest.mark.parametrize("wrong", ["later", -1, 1.5, True, datetime(2026, 1, 1), {}, {0: -1}, {"0": 3}, [3]])
def test_what_is_no_place_is_refused_with_what_is_one(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"stream: start=.* is not a place to start at") as caught:
        checked_start(wrong, "stream")
    assert "datetime with a zone" in str(caught.value.hint)
    with pytest.raises(UserError, match=r"stream: until=.* is not a place to end at") as caught:
        checked_until(wrong, "stream")
    assert '"now"' in str(caught.value.hint)
