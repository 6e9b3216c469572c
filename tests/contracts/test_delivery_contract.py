"""The suite of sinks that deliver (`sabot.testing.connectors.DeliverySuite`) over every receiver of ours."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc

from contracts.delivery_places import PLACES
from sabot.codecs.records import build_records
from sabot.connectors.base import Token
from sabot.connectors.memory import MemoryBroker, MemorySink, MemorySource
from sabot.errors import TransientError, UserError
from sabot.testing.connectors import DeliverySuite
from sabot.testing.connectors.delivery import ALL, PARTS, TRACK, rows_of
from sabot.testing.connectors.place import NewPlace, Row
from tools.broken_promises import AGAIN, SINK_FAULTS, another_name_each_time, broken, check_found

# A twentieth of a second of a core for each time that DuckDB opens its file.
mostly_without_duckdb = pytest.mark.parametrize(
    "new_place",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "duckdb" else []) for name in PLACES],
    indirect=True,
)


@pytest.fixture(params=PLACES)
def new_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewPlace]:
    with PLACES[request.param](tmp_path) as new:
        yield new


@pytest.mark.one_in(3, "hundredths of a second of a core each")
class TestDelivery(DeliverySuite):
    @mostly_without_duckdb
    def test_a_crash_at_any_step_loses_nothing_and_repeats_nothing(self, new_place: NewPlace) -> None:
        super().test_a_crash_at_any_step_loses_nothing_and_repeats_nothing(new_place)

    @mostly_without_duckdb
    def test_crash_after_crash_comes_to_an_end(self, new_place: NewPlace) -> None:
        super().test_crash_after_crash_comes_to_an_end(new_place)


KEEP_A_TOKEN = [name for name in PLACES if name not in ("objects", "documented")]
BROKEN = [
    (name, fault)
    for name in KEEP_A_TOKEN
    for fault in SINK_FAULTS
    if (name, fault) != ("memory", "swallows errors")  # a topic that is dropped is made again
]


@pytest.mark.slow  # seconds of each: a crash at each step, for what no change of a sink is likely to break
@pytest.mark.parametrize(("new_place", "fault"), BROKEN, indirect=["new_place"])
def test_a_sink_that_breaks_a_promise_is_found(
    new_place: NewPlace, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks, test = SINK_FAULTS[fault]
    check_found(TestDelivery(), test, broken(new_place, "sink", breaks), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("new_place", ["objects", "documented"], indirect=True)
def test_a_sink_that_gives_a_part_another_name_is_found(new_place: NewPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    check_found(TestDelivery(), AGAIN, broken(new_place, "sink", another_name_each_time), monkeypatch)


def results(rows: Sequence[Row]) -> pa.RecordBatch:
    """Rows as a record agent gives them."""
    payloads = [json.dumps({"n": n, "text": text}).encode() for n, text in rows]
    return build_records(payloads, None, [0] * len(rows), 0, range(len(rows)))


def test_agents_results_are_parts_too(new_place: NewPlace) -> None:
    place = new_place()
    sink: Any = place.sink()
    sink.claim(TRACK)
    sink.deliver(1, [results(ALL[:5]), results(ALL[5:6])])
    sink.deliver(2, [results(ALL[6:])])
    assert place.rows() == ALL
    sink.close()


# --- the embedded broker


def test_a_part_without_room_is_not_begun(memory_url: str) -> None:
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("results", 3)
    reader = MemorySource("results", memory_url)
    reader.open(None)
    part = [results(rows_of(0, 100)), results(rows_of(100, 50))]
    broker.retention_bytes = 2 * part[0].nbytes
    sink = MemorySink("results", memory_url, write_timeout=0.0)
    sink.claim(TRACK)
    sink.deliver(1, part[:1])
    with pytest.raises(TransientError, match="has not read"):
        sink.deliver(2, part)
    assert len(broker.records("results")) == 100
    assert sink.claim(TRACK) == Token(1, "first")
    while reader.read_batch(1000, 0) is not None:
        pass
    sink.deliver(2, part)
    assert len(broker.records("results")) == 150  # the oldest made room
    sink.close()
    reader.close()


def test_reset_forgets_the_tokens(memory_url: str) -> None:
    sink = MemorySink("results", memory_url)
    assert not sink.lasting
    sink.claim(TRACK)
    sink.deliver(*PARTS[0])
    MemoryBroker.get(memory_url).reset()
    with pytest.raises(UserError, match="was reset"):
        sink.deliver(*PARTS[1])
    sink.close()
    assert MemorySink("results", memory_url).claim(TRACK) is None


def test_rows_of_a_part_outlive_its_file(memory_url: str, tmp_path: Path) -> None:
    path = tmp_path / "part.arrow"
    with ipc.new_stream(path, results([]).schema) as stream:
        stream.write_batch(results(ALL))
    sink = MemorySink("results", memory_url)
    sink.claim(TRACK)
    with pa.memory_map(str(path)) as mapped, ipc.open_stream(mapped) as batches:
        before = mapped.size()
        sink.deliver(1, list(batches))
    path.write_bytes(b"\0" * before)  # in place: what is still mapped would be seen to change
    assert [record.value["n"] for record in MemoryBroker.get(memory_url).records("results")] == [n for n, _ in ALL]
    sink.close()
