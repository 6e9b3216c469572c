"""What `connectors/base.py` promises of every sink, on the embedded broker, a file and a real broker."""

import asyncio
import copy
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from contracts.places import PAYLOADS, MemoryPlace, Place, TablePlace
from sabot._cython.arrow.batch import Batch
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import Headers, build_records, decode_json
from sabot.connectors.base import Sink
from sabot.errors import UserError
from sabot.kafka import RecordSender, open_sink
from sabot.testing.connectors import ConnectorPlace, SinkSuite
from sabot.testing.connectors.place import NewPlace, Row


def records(
    payloads: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[Headers] | None = None,
    timestamp: int = 1_600_000_000_000,
) -> Batch:
    rows = len(payloads)
    return Batch(build_records(payloads, keys, np.full(rows, timestamp), 7, np.arange(rows) + 1000, headers))


class Numbered(ConnectorPlace):
    """One of these places for the suite, under a name of its own."""

    def __init__(self, place: Place, number: int) -> None:
        self.place = copy.copy(place)
        self.place.topic += f".{number}" if place.groups else f".{number}.ndjson"
        self.place.create()

    def sink(self) -> Sink:
        return self.place.sink()

    def rows(self) -> list[Row]:
        return [
            (value["n"], value["text"])
            for record in self.place.records()
            for value in [decode_json(record.payload, where="")]
        ]


@pytest.mark.one_in(2, "a tenth of a second of a core each")
class TestSinks(SinkSuite):
    @pytest.fixture
    def new_place(self, place: Place) -> NewPlace:
        numbers = itertools.count()
        return lambda: Numbered(place, next(numbers))


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


@pytest.mark.one_in(3, "a fifth of a second of a core each")
def test_many_rows_arrive_once_each(place: Place) -> None:
    many = [b"%d" % n for n in range(50_000)]
    sink = place.sink()
    sink.open()
    for start in range(0, len(many), 7_000):
        sink.write(records(many[start : start + 7_000]))
    sink.flush()
    assert [record.payload for record in place.records()] == many
    sink.close()


@pytest.mark.one_in(3, "a tenth of a second of a core each")
def test_a_payload_of_10_megabytes_is_written(place: Place) -> None:
    big = b'{"text":"' + b"x" * 10_000_000 + b'"}'
    place.create()
    sink = place.sink()
    sink.open()
    sink.write(records([b"1", big, b"2"]))
    sink.flush()
    assert [record.payload for record in place.records()] == [b"1", big, b"2"]
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


# --- columns: files in all formats

ROWS = pa.record_batch(
    {
        "n": range(30),
        "text": [None if n % 7 == 3 else "" if n % 7 == 4 else f'a "quoted",\nü{n}' for n in range(30)],
        "x": [None if n % 5 == 2 else n / 4 for n in range(30)],
    }
)
KINDS = ["ndjson", "csv", "parquet", "arrow", "ndjson.gz", "csv.zst"]
KINDS += [f"{kind}/" for kind in KINDS]


@pytest.fixture(params=KINDS)
def table_place(request: pytest.FixtureRequest, tmp_path: Path) -> TablePlace:
    """A file, or a folder of parts."""
    return TablePlace(tmp_path, request.param)


def read_back(place: TablePlace) -> list[dict[str, object]]:
    source = place.source()
    source.scan(ROWS.schema, None)
    source.open(None)
    found: list[dict[str, object]] = []
    while not source.exhausted:
        batch = source.read_batch(100, 1)
        if batch is not None:
            assert batch.bad is None
            found += batch.data.to_pylist()
    source.close()
    return found


def test_what_is_finished_reads_back_as_it_was(table_place: TablePlace) -> None:
    sink = table_place.sink()
    sink.open()
    for start in range(0, 30, 4):
        sink.write(Batch(ROWS.slice(start, 4)))
    sink.finish()
    sink.finish()
    sink.close()
    assert read_back(table_place) == ROWS.to_pylist()
    assert [path.name for path in table_place.folder.rglob(".*")] == []


def test_a_selection_is_all_that_is_written(table_place: TablePlace) -> None:
    sink = table_place.sink()
    sink.open()
    sink.write(Batch(ROWS).with_selection(pa.array([3, 5, 28], pa.int32())))
    sink.write(Batch(ROWS).with_selection(pa.array([], pa.int32())))
    sink.finish()
    sink.close()
    assert read_back(table_place) == [ROWS.to_pylist()[n] for n in (3, 5, 28)]


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("flushes", [1, 3])
def test_flushed_rows_survive_a_crash(table_place: TablePlace, flushes: int) -> None:
    rows = ROWS.to_pylist()
    sink = table_place.sink()
    sink.open()
    for start in range(0, 6 * flushes, 6):
        sink.write(Batch(ROWS.slice(start, 6)))
        sink.flush()
    sink.write(Batch(ROWS.slice(0, 2)))  # not flushed: may be there or not
    later = table_place.after_a_crash()
    sink.close()
    again = later.sink()
    again.open()
    again.write(Batch(ROWS.slice(6 * flushes)))
    again.finish()
    again.close()
    found = read_back(later)
    assert found[: 6 * flushes] == rows[: 6 * flushes]
    assert found[6 * flushes :] in [between + rows[6 * flushes :] for between in ([], rows[:1], rows[:2])]


def test_a_stop_without_the_end_of_the_input_loses_nothing(table_place: TablePlace) -> None:
    for start in range(0, 30, 10):
        sink = table_place.sink()
        sink.open()
        sink.write(Batch(ROWS.slice(start, 10)))
        sink.flush()
        sink.close()
    sink = table_place.sink()
    sink.open()
    sink.finish()
    sink.close()
    assert read_back(table_place) == ROWS.to_pylist()


def test_an_app_that_is_found_to_be_finished_changes_nothing(table_place: TablePlace) -> None:
    for overwrite in (False, True, False):
        sink = table_place.sink(overwrite=overwrite)
        sink.expect(ROWS.schema)
        sink.open()
        if not overwrite and not Path(table_place.path).with_name("done").exists():
            sink.write(Batch(ROWS))
            Path(table_place.path).with_name("done").touch()
        sink.flush()
        sink.finish()
        sink.close()
        assert read_back(table_place) == ROWS.to_pylist()


def test_an_app_that_goes_on_after_its_end_adds_to_what_is_there(table_place: TablePlace) -> None:
    for start in (0, 10):
        sink = table_place.sink()
        sink.open()
        sink.write(Batch(ROWS.slice(start, 10)))
        sink.finish()
        sink.close()
    assert read_back(table_place) == ROWS.slice(0, 20).to_pylist()


def test_overwrite_at_the_start_of_an_app_leaves_nothing_of_the_run_before(table_place: TablePlace) -> None:
    for run in range(3):
        sink = table_place.sink(overwrite=True)
        sink.start_afresh()
        sink.open()
        sink.write(Batch(ROWS.slice(run, 5)))
        sink.flush()
        sink.write(Batch(ROWS.slice(10, 5)))
        if run != 1:  # that one is stopped before its end
            sink.finish()
            assert read_back(table_place) == ROWS.slice(run, 5).to_pylist() + ROWS.slice(10, 5).to_pylist()
        sink.close()


def test_an_empty_result_is_a_file_with_the_columns_that_were_expected(table_place: TablePlace) -> None:
    sink = table_place.sink()
    sink.expect(ROWS.schema)
    sink.open()
    sink.flush()
    sink.finish()
    sink.close()
    source = table_place.source()
    found = source.infer_schema()
    if table_place.format != "ndjson":
        assert found.names == ROWS.schema.names
    assert read_back(table_place) == []


def test_nothing_half_done_is_seen_under_the_name_of_a_file(table_place: TablePlace) -> None:
    if not table_place.many and table_place.kind in ("ndjson", "csv"):
        pytest.skip("plain text is appended to, row by row")
    sink = table_place.sink()
    sink.open()
    sink.write(Batch(ROWS))
    sink.flush()
    sink.write(Batch(ROWS))
    assert [path for path in table_place.folder.rglob("[!.]*") if path.is_file()] == []
    sink.close()


def test_what_is_no_table_is_refused_by_a_format_of_columns(table_place: TablePlace) -> None:
    if table_place.format == "ndjson":
        pytest.skip("NDJSON takes records")
    sink = table_place.sink()
    sink.open()
    with pytest.raises(UserError, match="not decoded"):
        sink.write(records(PAYLOADS))
    sink.write(Batch(ROWS))
    with pytest.raises(UserError, match=r"do not fit|begins with"):
        sink.write(Batch(ROWS.select(["x", "n"])))
    sink.close()
