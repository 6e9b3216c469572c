"""What `connectors/base.py` promises of every sink, on the embedded broker, a file and a real broker."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from contracts.places import PAYLOADS, MemoryPlace, Place

from sabot._cython.batch import Batch
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.base import Headers, build_records, decode_json
from sabot.errors import UserError
from sabot.kafka import RecordSender, open_sink


def records(
    payloads: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[Headers] | None = None,
    timestamp: int = 1_600_000_000_000,
) -> Batch:
    rows = len(payloads)
    return Batch(build_records(payloads, keys, np.full(rows, timestamp), 7, np.arange(rows) + 1000, headers))


def test_payloads_are_written_as_they_are_and_in_order(place: Place) -> None:
    sink = place.sink()
    sink.open()
    for start in range(0, 10, 3):
        sink.write(records(PAYLOADS[start : start + 3]))
    sink.flush()
    assert [record.payload for record in place.records()] == PAYLOADS
    sink.close()


def test_other_columns_become_one_json_object_a_row(place: Place) -> None:
    sink = place.sink()
    sink.open()
    sink.write(Batch(pa.record_batch({"n": [1, None], "name": ["a", "ü"], "x": [0.5, 2.0]})))
    sink.flush()
    values = [decode_json(record.payload, where="") for record in place.records()]
    assert values == [{"n": 1, "name": "a", "x": 0.5}, {"n": None, "name": "ü", "x": 2.0}]
    sink.close()


def test_a_slice_writes_only_its_own_rows(place: Place) -> None:
    sink = place.sink()
    sink.open()
    sink.write(records(PAYLOADS).slice(3, 4))
    sink.write(records([]))
    sink.flush()
    assert [record.payload for record in place.records()] == PAYLOADS[3:7]
    sink.close()


def test_what_was_flushed_is_there_when_the_sink_is_opened_again(place: Place) -> None:
    for half in (PAYLOADS[:5], PAYLOADS[5:]):
        sink = place.sink()
        sink.open()
        sink.write(records(half))
        sink.flush()
        sink.close()
    assert [record.payload for record in place.records()] == PAYLOADS


def test_many_rows_arrive_once_each(place: Place) -> None:
    many = [b"%d" % n for n in range(50_000)]
    sink = place.sink()
    sink.open()
    for start in range(0, len(many), 7_000):
        sink.write(records(many[start : start + 7_000]))
    sink.flush()
    assert [record.payload for record in place.records()] == many
    sink.close()


def test_a_payload_of_10_megabytes_is_written(place: Place) -> None:
    big = b'{"text":"' + b"x" * 10_000_000 + b'"}'
    place.create()
    sink = place.sink()
    sink.open()
    sink.write(records([b"1", big, b"2"]))
    sink.flush()
    assert [record.payload for record in place.records()] == [b"1", big, b"2"]
    sink.close()


def test_close_may_come_twice_and_first_and_a_closed_sink_writes_nothing(place: Place) -> None:
    sink = place.sink()
    sink.close()
    sink.open()
    sink.close()
    sink.close()
    with pytest.raises(UserError, match="not open"):
        sink.write(records(PAYLOADS))
    assert place.records() == []


def test_a_flush_of_nothing_returns(place: Place) -> None:
    sink = place.sink()
    sink.open()
    sink.flush()
    sink.flush()
    sink.close()


def test_keys_headers_timestamps_and_nulls_are_written_as_they_are(broker_place: MemoryPlace) -> None:
    sink = broker_place.sink()
    sink.open()
    pairs = (("h", b"\xff"), ("h", b""))
    sink.write(records([None, b"", b"\xff"], [None, b"", b"k"], [(), pairs, ()]))
    sink.flush()
    found = broker_place.records()
    assert [record.payload for record in found] == [None, b"", b"\xff"]
    assert [record.key for record in found] == [None, b"", b"k"]
    assert [record.headers for record in found] == [(), pairs, ()]
    assert {record.timestamp for record in found} == {1_600_000_000_000}
    assert [(record.partition, record.offset) for record in found] == [(0, 0), (0, 1), (0, 2)]
    sink.close()


def test_a_null_timestamp_becomes_the_time_now(broker_place: MemoryPlace) -> None:
    sink = broker_place.sink()
    sink.open()
    data = records([b"1"]).data
    before = SYSTEM_CLOCK.time() * 1000 - 1
    sink.write(Batch(data.set_column(2, data.schema.field(2), pa.nulls(1, pa.int64()))))
    sink.flush()
    (record,) = broker_place.records()
    assert before <= record.timestamp <= SYSTEM_CLOCK.time() * 1000 + 1
    sink.close()


def test_rows_of_one_key_stay_in_one_partition_and_in_order(broker_place: MemoryPlace) -> None:
    broker_place.create(3)
    sink = broker_place.sink()
    sink.open()
    keys = [None if n % 10 == 9 else b"key-%d" % (n % 9) for n in range(900)]
    sink.write(records([b"%d" % n for n in range(450)], keys[:450]))
    sink.write(records([b"%d" % n for n in range(450, 900)], keys[450:]))
    sink.flush()
    found = broker_place.records()
    assert sorted(int(record.payload or b"") for record in found) == list(range(900))
    for key in {record.key for record in found} - {None}:
        mine = [record for record in found if record.key == key]
        assert len({record.partition for record in mine}) == 1
        assert [int(record.payload or b"") for record in mine] == sorted(int(record.payload or b"") for record in mine)
    assert len({record.partition for record in found}) > 1
    sink.close()


async def test_a_sent_record_has_its_offset_from_any_loop_and_thread(broker_place: MemoryPlace) -> None:
    sender = RecordSender(broker_place.url)
    topic = broker_place.topic  # made by the first send
    assert await sender.send(topic, b"0", b"k", (("h", b"v"),), 1234) == 0
    assert await asyncio.to_thread(lambda: asyncio.run(sender.send(topic, None))) == 1
    assert await sender.send(topic, b"2", partition=0) == 2
    assert sorted(await asyncio.gather(*(sender.send(topic, b"n") for _ in range(20)))) == list(range(3, 23))
    with pytest.raises(UserError, match="partition"):
        await sender.send(topic, b"", partition=99)
    await asyncio.to_thread(sender.close)
    found = await asyncio.to_thread(broker_place.records)
    assert len(found) == 23
    first = found[0]
    assert (first.payload, first.key, first.headers, first.timestamp) == (b"0", b"k", (("h", b"v"),), 1234)
    assert found[1].payload is None


def test_open_sink_takes_either_address(broker_place: MemoryPlace) -> None:
    sink = open_sink(broker_place.topic, broker_place.url, {})
    sink.open()
    sink.write(records(PAYLOADS))
    sink.flush()
    sink.close()
    assert [record.payload for record in broker_place.records()] == PAYLOADS
