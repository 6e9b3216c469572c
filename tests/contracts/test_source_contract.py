"""What `connectors/base.py` promises of every source, on the embedded broker, a file and a real broker."""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
import redis

from contracts.places import (
    PAYLOADS,
    FilePlace,
    FollowedPlace,
    GzipPlace,
    JournalPlace,
    KafkaPlace,
    MemoryPlace,
    Place,
    RedisPlace,
    TablePlace,
)
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import RECORD_SCHEMA, Record, iterate_records
from sabot.connectors.base import Positions, Source, overrides
from sabot.connectors.files import FileSource, NdjsonSource, files
from sabot.errors import DataError, UserError
from sabot.kafka import KafkaSource, open_source
from sabot.testing.connectors import ConnectorPlace, SourceSuite
from sabot.testing.connectors.place import NewPlace
from tools.broken_promises import FindsFaults
from tools.redis_server import server_or_skip

WAIT = 60.0  # seconds; only a test that fails waits so long


@pytest.fixture(
    params=[
        "memory",
        "ndjson",
        "ndjson.gz",
        "followed",
        "journal",
        "journal.db",
        "redis",
        pytest.param("kafka", marks=pytest.mark.kafka),
    ]
)
def place(request: pytest.FixtureRequest, topic: str, tmp_path: Path) -> Place:
    """Where records stand: as in conftest, and what only a source reads."""
    if request.param.startswith("journal"):
        return JournalPlace(tmp_path, in_memory=request.param == "journal")
    if request.param == "memory":
        return MemoryPlace(request.getfixturevalue("memory_url"), topic)
    if request.param == "redis":
        return RedisPlace(server_or_skip().url, topic)
    if request.param == "kafka":
        return KafkaPlace(request.getfixturevalue("kafka_url"), topic)
    return {"ndjson": FilePlace, "ndjson.gz": GzipPlace, "followed": FollowedPlace}[request.param](tmp_path)


class Numbered(ConnectorPlace):
    """One of these places for the suite."""

    def __init__(self, place: Place) -> None:
        self.place = place
        place.create()

    def put(self, numbers: Sequence[int]) -> None:
        self.place.put([b'{"n": %d}' % n for n in numbers])

    def source(self) -> Source:
        return self.place.source()


class NumberedRedis(Numbered):
    """A stream of Redis, which can be trimmed. One that is deleted is empty until its next entry, so `drop` puts another value there."""

    def remove(self, numbers: Sequence[int]) -> None:
        with closing(redis.Redis.from_url(self.place.url)) as client:
            client.xtrim(self.place.topic, maxlen=client.xlen(self.place.topic) - len(numbers), approximate=False)

    def drop(self) -> None:
        with closing(redis.Redis.from_url(self.place.url)) as client:
            client.set(self.place.topic, "no stream any more")


class NumberedFile(Numbered):
    """A file, which can be removed. One that is followed may be missing."""

    def drop(self) -> None:
        Path(self.place.topic).unlink()


class TestSources(FindsFaults, SourceSuite):
    @pytest.fixture
    def new_place(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> NewPlace:
        if isinstance(place, FollowedPlace):
            monkeypatch.setattr(self, "starts", ("earliest",))
            return lambda: Numbered(place)
        kind = {RedisPlace: NumberedRedis, FilePlace: NumberedFile, GzipPlace: NumberedFile}.get(type(place), Numbered)
        return lambda: kind(place)


def read(source: Source, rows: int, max_rows: int = 65536) -> list[Record]:
    """Exactly so many rows; checks on the way what every batch must be."""
    found: list[Record] = []
    before = source.positions()
    while len(found) < rows:
        batch = source.read_batch(min(max_rows, rows - len(found)), WAIT)
        assert batch is not None, f"{len(found)} of {rows} rows came"
        assert 0 < batch.num_rows <= max_rows
        assert batch.topic == source.name
        assert batch.schema.equals(RECORD_SCHEMA)
        batch.data.validate(full=True)
        records = iterate_records(batch.data, batch.topic)
        seen: Positions = {}
        for record in records:
            assert record.offset >= seen.get((record.topic, record.partition), before[(record.topic, record.partition)])
            seen[(record.topic, record.partition)] = record.offset + 1
        assert set(batch.offsets) == set(seen)
        assert all(batch.offsets[place] >= offset for place, offset in seen.items())
        before = {**before, **batch.offsets}
        assert source.positions() == before
        found += records
    return found


def payloads(source: Source, rows: int, max_rows: int = 65536) -> list[bytes | None]:
    return [record.payload for record in read(source, rows, max_rows)]


def test_the_identity_of_a_log_is_its_own_for_ever_and_grows_with_no_record(place: Place, tmp_path: Path) -> None:
    place.create()
    place.put(PAYLOADS[:5])
    source = place.source()
    source.open(None)
    identity = source.identity()
    source.close()
    if not place.identified:
        assert identity is None
        return
    place.put(PAYLOADS[5:])
    later = place.source()
    later.open({(place.topic, 0): 3} if place.name == "memory" else None)
    assert identity
    assert later.identity() == identity
    later.close()
    place.topic += ".other" if place.groups else ".ndjson"
    place.create()
    place.put(PAYLOADS)
    other = place.source()
    other.open(None)
    assert other.identity() != identity
    other.close()


def test_a_file_that_begins_with_another_record_is_another_log(tmp_path: Path) -> None:
    (path := tmp_path / "rows.ndjson").write_bytes(b'{"day": 1}\n{"n": 1}\n')
    source = NdjsonSource(str(path))
    source.open(None)
    before = source.identity()
    path.write_bytes(b'{"day": 2}\n{"n": 1}\n')
    source.open(None)
    assert source.identity() != before
    source.scan(None, ["day"])
    assert source.identity() is None  # its rows are no records
    source.close()


def test_positions_know_every_partition_before_anything_was_read(place: Place) -> None:
    place.create()
    source = place.source()
    source.open(None)
    assert source.positions().keys() == {(place.topic, 0)}
    source.close()


def test_two_readers_do_not_disturb_each_other(place: Place) -> None:
    place.create()
    place.put(PAYLOADS)
    one, two = place.source("one"), place.source("two")
    one.open(None)
    two.open(None)
    assert payloads(one, 4) == PAYLOADS[:4]
    assert payloads(two, 10) == PAYLOADS
    assert payloads(one, 6) == PAYLOADS[4:]
    one.close()
    two.close()


@pytest.mark.one_in(9, "a tenth of a second of a core each")
def test_a_payload_of_10_megabytes_and_its_small_neighbours_come_through(place: Place) -> None:
    place.create()
    big = b'{"text":"' + b"x" * 10_000_000 + b'"}'
    place.put([b"1", big, b"2"])
    source = place.source()
    source.open(None)
    assert payloads(source, 3) == [b"1", big, b"2"]
    source.close()


def test_bytes_that_are_no_utf8_come_through(place: Place) -> None:
    place.create()
    place.put([b'{"name": "\xff\xfe"}', b"\x80"])
    source = place.source()
    source.open(None)
    assert payloads(source, 2) == [b'{"name": "\xff\xfe"}', b"\x80"]
    source.close()


def test_lag_is_zero_at_the_end_and_from_any_thread(place: Place) -> None:
    place.create()
    place.put(PAYLOADS)
    source = place.source()
    assert source.lag() == {}
    source.open(None)
    read(source, 10)
    seen: list[dict[tuple[str, int], int]] = []
    thread = threading.Thread(target=lambda: seen.append(source.lag()))
    thread.start()
    thread.join()
    assert seen == [{(place.topic, 0): 0} if overrides(source, "lag") else {}]
    source.close()


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_the_backlog_is_what_was_there_at_the_start(broker_place: MemoryPlace, start: str) -> None:
    broker_place.create(2)
    broker_place.put(PAYLOADS)
    source = broker_place.source()
    source.open(None, start)
    there = len(PAYLOADS) if start == "earliest" else 0
    assert source.backlog() == there
    broker_place.put(PAYLOADS)
    assert source.backlog() == there
    if there:
        read(source, 1)
        assert 0 < (source.backlog() or 0) < there
    read(source, there + len(PAYLOADS) - (1 if there else 0))
    assert source.backlog() == 0
    source.close()


def test_partitions_that_are_held_give_no_rows_and_then_go_on_where_they_were(broker_place: MemoryPlace) -> None:
    broker_place.create(2)
    for index in (0, 1):
        broker_place.put([b"%d" % n for n in range(20)], partition=index)
    source = broker_place.source()
    source.open(None)
    found = read(source, 3, 1)
    one, other = ((broker_place.topic, index) for index in (0, 1))
    for held, rows in ((one, 4), (other, 4)):
        source.hold({held})
        before = source.positions()[held]
        some = read(source, rows, 1)
        assert {record.partition for record in some} == {1 - held[1]}
        assert source.positions()[held] == before
        found += some
    source.hold({one, other})
    assert source.read_batch(10, 0.2) is None
    source.hold(set())
    found += read(source, 40 - len(found))
    for index in (0, 1):
        offsets = [record.offset for record in found if record.partition == index]
        assert offsets == list(range(len(offsets)))
    source.hold({one})
    source.close()
    source.open(None)  # for another run, which holds nothing
    assert {record.partition for record in read(source, 40)} == {0, 1}
    source.close()


def test_a_tombstone_an_empty_payload_and_a_null_key_stay_what_they_are(broker_place: MemoryPlace) -> None:
    broker_place.create()
    broker_place.put([None, b"", b"x"])
    broker_place.put([b"y"], key=b"")
    broker_place.put([b"z"], key=b"k")
    source = broker_place.source()
    source.open(None)
    found = read(source, 5)
    assert [record.payload for record in found] == [None, b"", b"x", b"y", b"z"]
    assert [record.key for record in found] == [None, None, None, b"", b"k"]
    assert [record.offset for record in found] == [0, 1, 2, 3, 4]
    source.close()


def test_records_with_headers_stand_among_others_without(broker_place: MemoryPlace) -> None:
    """Of every shape of payload: none, empty, one that ends with a byte 0; and a header that is all zeros."""
    broker_place.create(1)
    pairs = (("n", None), ("", b""), ("zero", b"\0\0"))
    sent = [
        (payload, headers) for payload in (None, b"", b"\0", b"a\0", b"b") for headers in ((), pairs, (), pairs[:1])
    ]
    for payload, headers in sent:
        broker_place.put([payload], headers=headers)
    source = broker_place.source()
    source.open(None)
    assert [(each.payload, each.headers) for each in read(source, len(sent))] == sent
    source.close()


def test_headers_and_timestamps_come_through(broker_place: MemoryPlace) -> None:
    broker_place.create()
    pairs = (("trace", b"\x00\xff"), ("trace", b""), ("ünï", b"1"))
    broker_place.put([b"1"], timestamp=1_600_000_000_123)
    broker_place.put([b"2"], headers=pairs, timestamp=1_600_000_000_456)
    source = broker_place.source()
    source.open(None)
    one, two = read(source, 2)
    assert (one.headers, one.timestamp) == ((), 1_600_000_000_123)
    assert (two.headers, two.timestamp) == (pairs, 1_600_000_000_456)
    source.close()


def test_a_record_without_a_timestamp_gets_the_time_now(broker_place: MemoryPlace) -> None:
    broker_place.create()
    before = SYSTEM_CLOCK.time() * 1000 - 5000
    broker_place.put([b"1"])
    source = broker_place.source()
    source.open(None)
    (record,) = read(source, 1)
    assert before < record.timestamp < SYSTEM_CLOCK.time() * 1000 + 5000
    source.close()


def test_committed_begins_where_the_group_stands_and_other_groups_at_the_earliest(broker_place: MemoryPlace) -> None:
    broker_place.create()
    broker_place.put(PAYLOADS)
    source = broker_place.source("a")
    source.open(None)
    read(source, 4)
    source.commit(source.positions())
    read(source, 3)
    source.close()
    source.open(None, "committed")
    assert payloads(source, 6) == PAYLOADS[4:]
    source.close()
    source.open(None)  # commits are never read unless asked for
    assert payloads(source, 10) == PAYLOADS
    source.close()
    other = broker_place.source("b")
    other.open(None, "committed")
    assert payloads(other, 10) == PAYLOADS
    other.close()


def test_a_timestamp_begins_at_the_first_record_of_that_time(broker_place: MemoryPlace) -> None:
    broker_place.create()
    for n, payload in enumerate(PAYLOADS):
        broker_place.put([payload], timestamp=1_600_000_000_000 + n * 1000)
    for start, first in ((1_600_000_003_000, 3), (1_600_000_003_001, 4), (0, 0)):
        source = broker_place.source()
        source.open(None, start)
        assert payloads(source, 10 - first) == PAYLOADS[first:]
        source.close()
    source = broker_place.source()
    source.open(None, 1_600_000_010_000)
    assert source.positions() == {(broker_place.topic, 0): 10}
    source.close()


def test_all_partitions_are_read_each_in_its_order(broker_place: MemoryPlace) -> None:
    broker_place.create(3)
    for partition in range(3):
        broker_place.put([b"%d-%d" % (partition, n) for n in range(5)], partition=partition)
    source = broker_place.source()
    source.open(None)
    found = read(source, 15, 4)
    for partition in range(3):
        mine = [record.payload for record in found if record.partition == partition]
        assert mine == [b"%d-%d" % (partition, n) for n in range(5)]
    assert source.positions() == {(broker_place.topic, partition): 5 for partition in range(3)}
    source.close()


def test_positions_of_several_partitions_resume_exactly(broker_place: MemoryPlace) -> None:
    broker_place.create(3)
    for partition in range(3):
        broker_place.put([b"%d-%d" % (partition, n) for n in range(5)], partition=partition)
    source = broker_place.source()
    source.open(None)
    first = payloads(source, 7, 2)
    positions = source.positions()
    source.close()
    source.open(positions)
    rest = payloads(source, 8)
    source.close()
    assert len(set(first + rest)) == 15


def test_one_key_always_goes_to_one_partition(broker_place: MemoryPlace) -> None:
    broker_place.create(4)
    for _ in range(3):
        for key in range(8):
            broker_place.put([b"1"], key=b"key-%d" % key)
    places = {(record.key, record.partition) for record in broker_place.records()}
    assert len(places) == 8
    assert len({partition for _, partition in places}) > 1


def test_a_new_partition_is_found_and_read_from_its_beginning(broker_place: MemoryPlace) -> None:
    broker_place.create(1)
    broker_place.put([b"old"], partition=0)
    source = broker_place.source()
    source.open(None, "latest")
    broker_place.create(2)
    broker_place.put([b"new"], partition=1)
    assert [(record.payload, record.partition) for record in read_new(source)] == [(b"new", 1)]
    assert source.positions() == {(broker_place.topic, 0): 1, (broker_place.topic, 1): 1}
    source.close()


def read_new(source: Source) -> list[Record]:
    batch = source.read_batch(10, WAIT)
    assert batch is not None
    return iterate_records(batch.data, batch.topic)


def test_a_partition_newer_than_the_checkpoint_begins_at_its_first_record(broker_place: MemoryPlace) -> None:
    broker_place.create(1)
    broker_place.put([b"old"], partition=0)
    source = broker_place.source()
    source.open(None)
    read(source, 1)
    positions = source.positions()
    source.close()
    broker_place.create(2)
    broker_place.put([b"new"], partition=1)
    source.open(positions, "latest")
    assert payloads(source, 1) == [b"new"]
    source.close()


def test_a_position_in_a_partition_that_is_gone_is_refused(broker_place: MemoryPlace) -> None:
    broker_place.create(1)
    source = broker_place.source()
    with pytest.raises(UserError, match=r"\[5\]"):
        source.open({(broker_place.topic, 0): 0, (broker_place.topic, 5): 3})
    source.close()


def test_positions_of_other_sources_do_not_count(place: Place) -> None:
    place.create()
    place.put(PAYLOADS)
    source = place.source()
    source.open({("another", 0): 7, ("another", 9): 1})
    assert payloads(source, 10) == PAYLOADS
    source.close()


def face(place: MemoryPlace, group: str = "g") -> KafkaSource:
    return KafkaSource(place.topic, place.url, f"{place.topic}.{group}")


async def put(place: MemoryPlace, *values: bytes | None) -> None:
    await asyncio.to_thread(place.put, values)


async def test_get_next_gives_decoded_values_and_next_record_all_of_a_record(broker_place: MemoryPlace) -> None:
    broker_place.create()
    await put(broker_place, b'{"a": 1}', b'"text"', b"[1, NaN]")
    source = face(broker_place)
    await source.start()
    await source.start()
    assert await source.get_next() == {"a": 1}
    record = await source.next_record()
    assert (record.value, record.offset, record.topic) == ("text", 1, broker_place.topic)
    assert source.positions() == {(broker_place.topic, 0): 2}
    assert (await source.get_next())[0] == 1
    await source.stop()
    await source.stop()


async def test_a_cancelled_get_next_consumes_nothing(broker_place: MemoryPlace) -> None:
    broker_place.create()
    source = face(broker_place)
    await source.start()
    for n in range(3):
        waiting = asyncio.create_task(source.get_next())
        await asyncio.sleep(0)
        if n == 1:
            await put(broker_place, b"1", b"2")  # it may have its record by now, or not
        waiting.cancel()
        (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError) or outcome == 1
        if outcome == 1:
            break
    else:
        assert await source.get_next() == 1
    assert await source.get_next() == 2
    await source.stop()


async def test_a_source_iterates_over_its_values(broker_place: MemoryPlace) -> None:
    broker_place.create()
    await put(broker_place, b"1", b"2", b"3")
    source = face(broker_place)
    await source.start()
    found = []
    async for value in source:
        found.append(value)
        if len(found) == 3:
            break
    assert found == [1, 2, 3]
    await source.stop()


async def test_a_payload_that_is_not_json_is_a_data_error_with_its_place_and_the_next_call_goes_on(
    broker_place: MemoryPlace,
) -> None:
    broker_place.create()
    await put(broker_place, b"{oops", b"", None, b"4")
    source = face(broker_place)
    await source.start()
    for offset in range(3):
        with pytest.raises(DataError, match=rf"{broker_place.topic}\[0\]@{offset}"):
            await source.get_next()
    assert await source.get_next() == 4
    await source.stop()


async def test_a_stopped_source_goes_on_where_it_was_when_started_again(broker_place: MemoryPlace) -> None:
    broker_place.create()
    await put(broker_place, b"1", b"2", b"3")
    source = face(broker_place)
    await source.start()
    assert await source.get_next() == 1
    await source.stop()
    with pytest.raises(UserError, match="start"):
        await source.get_next()
    again = face(broker_place)
    await again.start()
    assert await again.get_next() == 2
    await again.stop()
    other = face(broker_place, "other")
    await other.start()
    assert await other.get_next() == 1
    await other.stop()


def test_open_source_takes_either_address(broker_place: MemoryPlace) -> None:
    broker_place.create()
    broker_place.put(PAYLOADS)
    source = open_source(broker_place.topic, broker_place.url, "g", {})
    source.open(None)
    assert payloads(source, 10) == PAYLOADS
    source.close()


# --- decoded columns, and several readers: files in all formats

TABLE = pa.table(
    {
        "n": range(40),
        "text": [None if n % 7 == 3 else "ü" * (n % 5) + str(n) for n in range(40)],
        "x": [n / 4 for n in range(40)],
    }
)
KINDS = ["ndjson", "csv", "parquet", "arrow", "arrows"]
KINDS += ["ndjson.gz", "csv.zst", "arrows.gz", "ndjson/", "csv/", "parquet/", "arrow/", "arrows/", "ndjson.zst/"]


@pytest.fixture(params=KINDS)
def table_place(request: pytest.FixtureRequest, tmp_path: Path) -> TablePlace:
    """A file or a folder with the rows of TABLE."""
    place = TablePlace(tmp_path, request.param)
    for part in (TABLE[:11], TABLE[11:12], TABLE[12:40]) if place.many else (TABLE,):
        place.put(part)
    return place


def scanned(source: Source, max_rows: int = 7, batches: int = 1_000_000) -> list[int]:
    """The column n of so many batches, or of all; checks on the way what every batch must be."""
    found: list[int] = []
    while not source.exhausted and batches > 0:
        batch = source.read_batch(max_rows, WAIT)
        if batch is None:
            continue
        assert source.schema is not None
        assert batch.schema.equals(source.schema)
        assert 0 < batch.num_rows <= max_rows
        assert batch.offsets == source.positions()
        assert batch.bad is None
        batch.data.validate(full=True)
        found += batch.data["n"].to_pylist()
        batches -= 1
    return found


@pytest.mark.one_in(4, "some hundredths of a second of a core each")
def test_columns_come_in_order_in_batches_of_any_size(table_place: TablePlace) -> None:
    for max_rows in (1, 3, 100):
        source = table_place.source()
        assert source.infer_schema().equals(TABLE.schema)
        assert source.scan(None, None)
        source.open(None)
        rows = []
        while not source.exhausted:
            batch = source.read_batch(max_rows, WAIT)
            rows += [] if batch is None else batch.data.to_pylist()
        assert rows == TABLE.to_pylist()
        assert source.read_batch(max_rows, 3600) is None
        source.close()


@pytest.mark.one_in(4, "some hundredths of a second of a core each")
def test_only_the_columns_asked_for_come_and_in_that_order(table_place: TablePlace) -> None:
    for columns in (["x", "n"], ["text"], []):
        source = table_place.source()
        assert source.scan(None, columns)
        assert source.schema is not None
        assert source.schema.names == columns
        source.open(None)
        rows = 0
        while not source.exhausted:
            batch = source.read_batch(100, WAIT)
            if batch is not None:
                assert batch.schema.equals(source.schema)
                rows += batch.num_rows
        assert rows == 40
        source.close()
    with pytest.raises(UserError, match="'nowhere'"):
        table_place.source().scan(None, ["n", "nowhere"])


def test_a_schema_asked_for_gives_its_types(table_place: TablePlace) -> None:
    source = table_place.source()
    assert source.scan(pa.schema({"n": pa.float64(), "text": pa.string(), "x": pa.float32()}), ["x", "n"])
    source.open(None)
    assert source.schema is not None
    assert source.schema.types == [pa.float32(), pa.float64()]
    assert scanned(source) == list(range(40))
    source.close()


@pytest.mark.one_in(60, "each kind of file and table has another number of readers")
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_readers_share_the_rows_and_each_goes_on_from_every_position(table_place: TablePlace, count: int) -> None:
    source = table_place.source()
    assert source.scan(None, ["n"])
    readers = source.readers(count)
    assert 1 <= len(readers) <= count
    whole: list[list[int]] = []
    for reader in readers:
        reader.open(None)
        whole.append(scanned(reader))
        assert whole[-1] == sorted(whole[-1])
        reader.close()
    assert sorted(n for share in whole for n in share) == list(range(40))
    steps = 0
    while True:
        first: list[list[int]] = []
        positions: Positions = {}
        for reader in readers:
            reader.open(None)
            first.append(scanned(reader, 2, steps))
            positions |= reader.positions()
            reader.close()
        again = table_place.source()
        again.scan(None, ["n"])
        for reader, before, share in zip(again.readers(count), first, whole, strict=True):
            reader.open(positions, "latest")
            assert before + scanned(reader) == share
            reader.close()
        if first == whole:
            break
        steps += 1


@pytest.mark.one_in(12, "some hundredths of a second of a core each")
def test_files_that_go_on_are_read_on_from_every_position(table_place: TablePlace) -> None:
    def opened() -> FileSource:
        kind = "arrow" if table_place.format == "arrows" else table_place.format
        source = files(table_place.path, kind, follow="1h")
        assert isinstance(source, FileSource)
        assert source.scan(None, ["n"])
        assert [reader.name for reader in source.readers(3)] == [source.name]
        return source

    def some(source: FileSource, batches: int) -> list[int]:
        found = []
        while batches and (batch := source.read_batch(3, 0)) is not None:
            found += batch.data["n"].to_pylist()
            batches -= 1
        return found

    steps = 0
    while True:
        source = opened()
        source.open(None)
        before = some(source, steps)
        memory, positions = source.remember(), source.positions()
        source.close()
        later = opened()
        later.recall(memory)
        later.open(positions)
        assert before + some(later, 1000) == list(range(40))
        assert not later.exhausted
        later.close()
        if len(before) == 40:
            break
        steps += 1


def test_readers_move_together(tmp_path: Path) -> None:
    for kind in ("ndjson", "parquet", "arrow"):
        (tmp_path / kind).mkdir()
        place = TablePlace(tmp_path / kind, kind)
        place.put(TABLE)
        source = place.source()
        source.scan(None, ["n"])
        shares: Sequence[Source] = source.readers(2)
        for share in shares:
            share.open(None)
            assert scanned(share, 100, 2)[0] < 8
            share.close()


def test_positions_of_another_number_of_readers_are_refused(table_place: TablePlace) -> None:
    source = table_place.source()
    readers = source.readers(2)
    if len(readers) == 1:
        pytest.skip("one piece has one reader")
    positions: Positions = {}
    for reader in readers:
        reader.open(None)
        positions |= reader.positions()
        reader.close()
    alone = table_place.source()
    with pytest.raises(UserError, match="2 readers, not with 1"):
        alone.open(positions)
    alone.open(None)
    positions = alone.positions()
    alone.close()
    with pytest.raises(UserError, match="1 readers, not with 3"):
        table_place.source().readers(3)[0].open(positions)


def test_progress_of_all_readers_adds_up_to_the_bytes_of_the_files(table_place: TablePlace) -> None:
    path = Path(table_place.path)
    size = sum(file.stat().st_size for file in (path.iterdir() if table_place.many else [path]))
    source = table_place.source()
    source.scan(None, None)
    readers = source.readers(2)
    assert source.progress() is None
    last = 0.0
    for reader in readers:
        reader.open(None)
        while not reader.exhausted:
            progress = reader.progress()
            assert progress is not None
            assert last <= progress[0] <= progress[1]
            last = progress[0]
            reader.read_batch(5, WAIT)
        last = 0.0
        assert set(reader.lag().values()) == {0}
        reader.close()
    done = [progress for reader in readers if (progress := reader.progress()) is not None]
    assert sum(part[0] for part in done) == sum(part[1] for part in done) == size


def test_latest_has_no_rows_and_a_position_behind_the_end_is_refused(table_place: TablePlace) -> None:
    source = table_place.source()
    source.open(None, "latest")
    assert scanned(source) == []
    (place, *_) = source.positions()
    source.close()
    with pytest.raises(UserError, match="position"):
        open_and_read(source, {place: 1 << 60})
    source.close()


def open_and_read(source: Source, positions: Positions) -> None:
    source.open(positions)
    source.read_batch(10, 0)
