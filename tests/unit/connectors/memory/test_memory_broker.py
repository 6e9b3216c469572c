"""The embedded broker: retention, backpressure, threads and loops, and what the contract suites do not say."""

import asyncio
import logging
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import build_records
from sabot.connectors.memory import MemoryBroker, MemorySink, MemorySource
from sabot.connectors.memory.topic import Partition
from sabot.errors import TransientError, UserError
from sabot.testing import MemoryBroker as PublicBroker

WAIT = 60.0


def batch(rows: int, size: int = 100) -> Batch:
    return Batch(build_records([b"x" * size] * rows, None, np.zeros(rows), 0, np.arange(rows)))


def opened(url: str, topic: str = "t", group: str = "g") -> MemorySource:
    source = MemorySource(topic, url, group)
    source.open(None)
    return source


def sink_to(url: str, topic: str = "t", **settings: float) -> MemorySink:
    sink = MemorySink(topic, url, **settings)
    sink.open()
    return sink


def test_there_is_one_broker_per_name(memory_url: str) -> None:
    assert PublicBroker.get(memory_url) is MemoryBroker.get(memory_url)
    assert MemoryBroker.get("memory://") is MemoryBroker.get()
    assert MemoryBroker.get(memory_url) is not MemoryBroker.get()
    with pytest.raises(UserError, match="kafka"):
        MemoryBroker.get("kafka://localhost:9092")


def test_publish_takes_bytes_as_they_are_none_as_null_and_the_rest_as_json(memory_url: str) -> None:
    broker = MemoryBroker.get(memory_url)
    assert broker.publish("t", [b"raw", None, {"a": [1, 2.5, None]}, "text", 7]) == 4
    assert broker.publish("t", []) == -1
    found = [record.payload for record in broker.records("t")]
    assert found == [b"raw", None, b'{"a":[1,2.5,null]}', b'"text"', b"7"]
    assert broker.records("unknown") == []


async def test_a_time_that_no_record_can_hold_is_refused_and_loses_no_record(memory_url: str) -> None:
    """It was found when the records were read: those that stood beside it were lost."""
    broker = MemoryBroker.get(memory_url)
    broker.publish("t", [1])
    with pytest.raises(UserError, match="64 bits"):
        broker.publish("t", [2], timestamp=1 << 63)
    with pytest.raises(UserError, match="64 bits"):
        await broker.send("t", b"2", timestamp=-1 << 64)
    assert [record.value for record in broker.records("t")] == [1]


def test_records_that_cannot_be_sealed_stay_where_they_are() -> None:
    part = Partition(0)
    part.extend([b"1"], None, 0, (), 80)
    part.extend([b"2"], None, 0, (("unit", 3),), 80)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(TypeError):
            part.seal()
        assert (part.payloads, part.end, part.nbytes) == ([b"1", b"2"], 2, 160)


def test_keys_may_be_bytes_text_or_anything_json_says(memory_url: str) -> None:
    broker = MemoryBroker.get(memory_url)
    for key in (None, b"\xff", "ü", 7, ["a", 1]):
        broker.publish("t", [1], key=key)
    assert [record.key for record in broker.records("t")] == [None, b"\xff", "ü".encode(), b"7", b'["a",1]']


def test_publishing_something_impossible_says_what(memory_url: str) -> None:
    broker = MemoryBroker.get(memory_url)
    with pytest.raises(UserError, match="list of values"):
        broker.publish("t", {"a": 1})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="object"):
        broker.publish("t", [object()])
    with pytest.raises(UserError, match="no partition 3"):
        broker.publish("t", [1], partition=3)
    with pytest.raises(UserError, match="0 partitions"):
        broker.create_topic("t", 0)
    assert broker.records("t") == []


def test_a_topic_grows_and_never_shrinks(memory_url: str) -> None:
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("t", 3)
    broker.create_topic("t", 2)
    assert broker.topics() == {"t": 3}


def test_null_keys_take_partitions_in_turn(memory_url: str) -> None:
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("one-call", 3)
    broker.publish("one-call", [b"1"] * 30_000)
    assert Counter(record.partition for record in broker.records("one-call")) == {0: 8192 + 5424, 1: 8192, 2: 8192}
    broker.create_topic("sink", 3)
    sink_to(memory_url, "sink").write(batch(30_000))
    assert len(Counter(record.partition for record in broker.records("sink"))) == 3


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 60)), max_size=25))
def test_any_mix_of_publishing_writing_and_reading_gives_every_row_once_in_order(
    steps: list[tuple[int, int, int]],
) -> None:
    broker = MemoryBroker("hypothesis")
    MemoryBroker._brokers["hypothesis"] = broker
    source, sink = opened("memory://hypothesis"), sink_to("memory://hypothesis")
    written: list[bytes | None] = []
    found: list[bytes | None] = []
    for kind, rows, max_rows in steps:
        payloads: list[bytes | None] = [b"%d" % (len(written) + n) for n in range(rows)]
        if kind == 0:
            broker.publish("t", payloads)
        elif kind == 1:
            for payload in payloads:
                broker.publish("t", [payload])
        elif kind == 2:
            sink.write(Batch(build_records(payloads, None, np.zeros(rows), 0, np.zeros(rows))))
        if kind < 3:
            written += payloads
        read = source.read_batch(max_rows, 0)
        if read is not None:
            assert read.num_rows <= max_rows
            found += read.data.column(0).to_pylist()
            assert read.offsets == {("t", 0): len(found)} == source.positions()
            assert read.data.column(4).to_pylist()[-1] == len(found) - 1
    while (read := source.read_batch(1000, 0)) is not None:
        found += read.data.column(0).to_pylist()
    assert found == written == [record.payload for record in broker.records("t")]
    assert broker.statistics()["rows"] == len(written)


def test_a_batch_is_stored_and_read_without_copying_its_payloads(memory_url: str) -> None:
    written = batch(10_000)
    sink_to(memory_url).write(written)
    read = opened(memory_url).read_batch(10_000, 0)
    assert read is not None
    assert read.data.column(0).buffers()[2].address == written.data.column(0).buffers()[2].address


def test_a_small_slice_does_not_keep_its_parent_in_memory(memory_url: str) -> None:
    sink_to(memory_url).write(batch(100_000).slice(5, 10))
    read = opened(memory_url).read_batch(10, 0)
    assert read is not None
    assert read.data.get_total_buffer_size() < 10_000


@pytest.mark.slow  # half a second of a core
def test_single_records_do_not_make_the_log_long(memory_url: str) -> None:
    broker, source = MemoryBroker.get(memory_url), opened(memory_url)
    for n in range(2_000):
        broker.publish("t", [n])
        assert source.read_batch(10, 0) is not None
    assert len(broker.topic("t").partitions[0].chunks) < 20


def test_without_readers_the_oldest_go_and_are_counted_and_warned_of_once(
    memory_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker = MemoryBroker.get(memory_url)
    broker.retention_bytes = 100_000
    sink = sink_to(memory_url)
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            sink.write(batch(100))
        for n in range(5_000):
            broker.publish("t", [b"%d" % n])
    figures = broker.statistics()
    assert figures["rows_total"] == 10_000
    assert figures["dropped_rows"] > 5_000
    assert figures["rows"] + figures["dropped_rows"] == 10_000
    assert figures["bytes"] <= 100_000
    assert len([line for line in caplog.messages if "nobody reads" in line]) == 1
    records = broker.records("t")
    assert records[-1].payload == b"4999"
    assert [record.offset for record in records] == list(range(10_000 - len(records), 10_000))


def test_a_position_beyond_retention_is_refused_and_earliest_is_what_is_held(memory_url: str) -> None:
    broker = MemoryBroker.get(memory_url)
    broker.retention_bytes = 50_000
    broker.commit("g", "t", {0: 1})
    sink = sink_to(memory_url)
    for _ in range(50):
        sink.write(batch(100))
    source = MemorySource("t", memory_url, "g")
    for positions, start in (({("t", 0): 1}, "earliest"), (None, "committed")):
        with pytest.raises(UserError, match="position 1 does not exist"):
            source.open(positions, start)
    source.open(None)
    assert source.positions() == {("t", 0): broker.statistics()["dropped_rows"]}


def test_a_writer_waits_for_the_slowest_live_reader_and_nothing_is_lost(memory_url: str) -> None:
    broker = MemoryBroker.get(memory_url)
    broker.retention_bytes = 100_000
    fast, slow = opened(memory_url, group="fast"), opened(memory_url, group="slow")
    sink = sink_to(memory_url)
    most = []

    def write() -> None:
        for _ in range(100):
            sink.write(batch(100))
            most.append(broker.statistics()["bytes"])

    def read(source: MemorySource) -> None:
        rows = 0
        while rows < 10_000:
            found = source.read_batch(37, WAIT)
            assert found is not None
            rows += found.num_rows
            assert found.offsets == {("t", 0): rows}

    writer = threading.Thread(target=write)
    writer.start()
    reader = threading.Thread(target=read, args=(slow,))
    reader.start()
    read(fast)
    reader.join(WAIT)
    writer.join(WAIT)
    assert not reader.is_alive()
    assert not writer.is_alive()
    assert max(most) <= 100_000


def test_a_writer_whose_reader_stands_still_gives_up_with_a_clear_error(memory_url: str) -> None:
    MemoryBroker.get(memory_url).retention_bytes = 20_000
    source = opened(memory_url)
    sink = sink_to(memory_url, write_timeout=0.05)
    sink.write(batch(100))
    with pytest.raises(TransientError, match="reader has not read"):
        sink.write(batch(100))
    with pytest.raises(TransientError, match="reader has not read"):
        MemoryBroker.get(memory_url).publish("t", [b"x" * 20_000])
    source.close()  # a reader that is gone holds nothing back
    sink.write(batch(50))


@pytest.mark.parametrize("end", ["close the reader", "close the sink", "reset"])
def test_a_waiting_writer_wakes_when_the_reader_goes_the_sink_is_closed_or_the_broker_reset(
    memory_url: str, end: str
) -> None:
    broker = MemoryBroker.get(memory_url)
    broker.retention_bytes = 20_000
    source, sink = opened(memory_url), sink_to(memory_url)
    sink.write(batch(100))
    outcome: list[str] = []

    def write() -> None:
        try:
            sink.write(batch(100))
            outcome.append("written")
        except (TransientError, UserError) as error:
            outcome.append(str(error))

    writer = threading.Thread(target=write)
    writer.start()
    if end == "close the reader":
        source.close()
    elif end == "close the sink":
        sink.close()
    else:
        broker.reset()
    writer.join(WAIT)
    assert not writer.is_alive()
    expected = {"close the reader": "written", "close the sink": "closed", "reset": "reset"}[end]
    assert expected in outcome[0] or "not open" in outcome[0]


def test_a_batch_above_the_bound_passes_through_an_empty_topic(memory_url: str) -> None:
    MemoryBroker.get(memory_url).retention_bytes = 1_000
    source, sink = opened(memory_url), sink_to(memory_url)
    for _ in range(3):
        sink.write(batch(100))
        read = source.read_batch(100, 0)
        assert read is not None
        assert read.num_rows == 100


def test_a_waiting_read_ends_when_the_source_is_closed(memory_url: str) -> None:
    source = opened(memory_url)
    found: list[Batch | None] = []
    reader = threading.Thread(target=lambda: found.append(source.read_batch(10, 3600)))
    reader.start()
    while not source._topic.readable._waiters:  # type: ignore[union-attr]
        pass
    source.close()
    reader.join(WAIT)
    assert found == [None]


def test_reset_forgets_everything_and_ends_what_is_open(memory_url: str) -> None:
    broker = MemoryBroker.get(memory_url)
    source, sink = opened(memory_url), sink_to(memory_url)
    broker.publish("t", [1, 2])
    source.commit({("t", 0): 2})
    broker.reset()
    with pytest.raises(UserError, match="reset"):
        source.read_batch(1, WAIT)
    with pytest.raises(UserError, match="reset"):
        sink.write(batch(1))
    assert broker.topics() == {}
    assert broker.committed("g", "t") == {}
    assert broker.publish("t", [3]) == 0
    again = opened(memory_url)
    assert again.positions() == {("t", 0): 0}


def test_many_threads_publish_and_read_and_every_row_comes_once(memory_url: str) -> None:
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("t", 3)
    source = opened(memory_url)

    def publish(writer: int) -> None:
        for n in range(500):
            broker.publish("t", [b"%d-%d" % (writer, n)], key=b"%d" % writer)

    writers = [threading.Thread(target=publish, args=(writer,)) for writer in range(4)]
    for writer in writers:
        writer.start()
    found: list[bytes] = []
    while len(found) < 2_000:
        read = source.read_batch(100, WAIT)
        assert read is not None
        found += read.data.column(0).to_pylist()
    for writer in writers:
        writer.join()
    for writer_id in range(4):
        mine = [payload for payload in found if payload.startswith(b"%d-" % writer_id)]
        assert mine == [b"%d-%d" % (writer_id, n) for n in range(500)]


async def test_an_async_read_wakes_for_a_record_published_by_another_thread(memory_url: str) -> None:
    source = opened(memory_url)
    reading = asyncio.create_task(source.read_batch_async(10))
    await asyncio.sleep(0)
    await asyncio.to_thread(MemoryBroker.get(memory_url).publish, "t", [b"1"])
    read = await asyncio.wait_for(reading, WAIT)
    assert read is not None
    assert read.data.column(0).to_pylist() == [b"1"]
    assert await source.read_batch_async(10, 0.01) is None


async def test_a_cancelled_async_read_consumes_nothing_and_leaves_nothing_behind(memory_url: str) -> None:
    source = opened(memory_url)
    reading = asyncio.create_task(source.read_batch_async(10))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    topic = MemoryBroker.get(memory_url).topic("t")
    assert topic.readers._callbacks == []
    MemoryBroker.get(memory_url).publish("t", [1])
    read = await source.read_batch_async(10)
    assert read is not None
    assert read.offsets == {("t", 0): 1}


async def test_an_async_read_ends_when_the_source_is_closed(memory_url: str) -> None:
    source = opened(memory_url)
    reading = asyncio.create_task(source.read_batch_async(10))
    await asyncio.sleep(0)
    source.close()
    assert await asyncio.wait_for(reading, WAIT) is None


async def test_send_waits_for_room_without_holding_the_loop(memory_url: str) -> None:
    broker = MemoryBroker.get(memory_url)
    broker.retention_bytes = 1_000
    source = opened(memory_url)
    assert await broker.send("t", b"x" * 800) == 0
    sending = asyncio.create_task(broker.send("t", b"y" * 800))
    await asyncio.sleep(0)
    assert not sending.done()
    assert source.read_batch(1, 0) is not None
    assert await asyncio.wait_for(sending, WAIT) == 1


def test_a_forgotten_source_holds_no_writer_back(memory_url: str) -> None:
    MemoryBroker.get(memory_url).retention_bytes = 20_000
    source = opened(memory_url)
    sink = sink_to(memory_url, write_timeout=0.05)
    sink.write(batch(100))
    del source
    sink.write(batch(100))
