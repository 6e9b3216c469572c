"""What `connectors/base.py` promises of every sink that delivers: a part is there once, whatever happens in between."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc

from contracts.delivery_places import PLACES, DeliveryPlace, Row
from sabot import steps
from sabot.codecs.records import build_records
from sabot.connectors.base import Delivers, KeepsToken, Sink, Token, Track
from sabot.connectors.memory import MemoryBroker, MemorySink, MemorySource
from sabot.errors import AppLocked, TransientError, UserError

TRACK = Track(f"app-{os.getpid()}", "sink.1", "first")  # a broker is shared by workers, and knows one owner of a track
SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string())])
GENERATION = 2**40
Part = tuple[int, list[pa.RecordBatch]]
NewPlace = Callable[[], DeliveryPlace]


@pytest.fixture(params=PLACES)
def new_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewPlace]:
    with PLACES[request.param](tmp_path) as new:
        yield new


# A twentieth of a second of a core for each time that DuckDB opens its file.
mostly_without_duckdb = pytest.mark.parametrize(
    "new_place",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "duckdb" else []) for name in PLACES],
    indirect=True,
)


@pytest.fixture
def place(new_place: NewPlace) -> DeliveryPlace:
    return new_place()


def columns(rows: Sequence[Row]) -> pa.RecordBatch:
    return pa.record_batch([[n for n, _ in rows], [text for _, text in rows]], schema=SCHEMA)


def results(rows: Sequence[Row]) -> pa.RecordBatch:
    """The same as a record agent gives them."""
    payloads = [json.dumps({"n": n, "text": text}).encode() for n, text in rows]
    return build_records(payloads, None, [0] * len(rows), 0, range(len(rows)))


def rows_of(start: int, count: int) -> list[Row]:
    return [(n, None if n % 5 == 4 else f'text "{n}", ü\n\\.\n') for n in range(start, start + count)]


PARTS: list[Part] = [
    (GENERATION + 1, [columns(rows_of(0, 3)), columns(rows_of(3, 4))]),
    (GENERATION + 2, [columns(rows_of(0, 12)).slice(7, 5)]),
    (3 * GENERATION + 1, [columns([]), columns(rows_of(12, 1))]),
]
ALL = rows_of(0, 13)


def claimed(place: DeliveryPlace, track: Track = TRACK) -> Sink:
    sink = place.sink()
    sink.claim(track)
    return sink


def run(place: DeliveryPlace, parts: Sequence[Part]) -> None:
    """A run of an app whose checkpoint lists these parts."""
    sink = place.sink()
    assert isinstance(sink, Delivers)
    sink.expect(SCHEMA)
    token = sink.claim(TRACK)
    there = 0 if token is None else token.seq
    for seq, batches in parts:
        if seq > there:
            sink.deliver(seq, batches)
    sink.finish()
    sink.close()


class Crash(BaseException):
    """The process is gone: nothing that it does from here on reaches the world."""


class CrashAt:
    """Crashes at the moment of this number, and at each later one. A step is two moments: before and after."""

    def __init__(self, moment: int | None = None) -> None:
        self.moments: list[str] = []
        self._moment = moment

    def before(self, name: str, what: str) -> None:
        self._pass(f"before {name} {what}")

    def after(self, name: str, what: str) -> None:
        self._pass(f"after {name} {what}")

    def torn(self, name: str, what: str, size: int) -> int:
        return size

    def _pass(self, moment: str) -> None:
        self.moments.append(moment)
        if self._moment is not None and len(self.moments) > self._moment:
            raise Crash(moment)


@pytest.fixture
def watched() -> Iterator[Callable[[CrashAt | None], None]]:
    yield steps.watch
    steps.watch(None)


@pytest.mark.one_in(3, "hundredths of a second of a core each")
def test_parts_are_there_in_order_when_deliver_returns(place: DeliveryPlace) -> None:
    sink = claimed(place)
    expected: list[Row] = []
    for seq, batches in PARTS:
        sink.deliver(seq, batches)
        expected += [row for batch in batches for row in zip(*batch.to_pydict().values(), strict=True)]
        assert place.rows() == expected
    assert expected == ALL
    sink.close()


def test_agents_results_are_parts_too(place: DeliveryPlace) -> None:
    sink = claimed(place)
    sink.deliver(1, [results(ALL[:5]), results(ALL[5:6])])
    sink.deliver(2, [results(ALL[6:])])
    assert place.rows() == ALL
    sink.close()


@pytest.mark.one_in(3, "hundredths of a second of a core each")
def test_a_part_that_comes_again_changes_nothing(place: DeliveryPlace) -> None:
    sink = claimed(place)
    sink.deliver(*PARTS[0])
    sink.deliver(*PARTS[0])
    sink.claim(TRACK)
    sink.deliver(*PARTS[0])
    sink.deliver(*PARTS[1])
    sink.close()
    later = claimed(place)
    later.deliver(*PARTS[1])
    later.deliver(*PARTS[2])
    later.close()
    assert place.rows() == ALL


@pytest.mark.one_in(3, "a tenth of a second of a core each")
def test_a_claim_tells_the_last_part(place: DeliveryPlace) -> None:
    sink = place.sink()
    assert sink.claim(TRACK) is None
    for seq, batches in PARTS:
        sink.deliver(seq, batches)
        for later in (sink, place.sink()):
            assert later.claim(TRACK) == (Token(seq, "first") if isinstance(later, KeepsToken) else None)
        sink.close()
        sink = later
    sink.close()


@pytest.mark.one_in(3, "hundredths of a second of a core each")
def test_a_part_without_rows_moves_the_token(place: DeliveryPlace) -> None:
    sink = claimed(place)
    sink.deliver(5, [])
    sink.deliver(6, [columns([])])
    token = sink.claim(TRACK)
    assert token == (Token(6, "first") if isinstance(sink, KeepsToken) else None)
    assert place.rows() == []
    sink.close()


@pytest.mark.one_in(3, "hundredths of a second of a core each")
def test_tracks_do_not_know_of_each_other(place: DeliveryPlace) -> None:
    others = [Track(TRACK.app, "sink.2", "first"), Track(f"{TRACK.app}.2", "sink.1", "other")]
    sink = claimed(place)
    sink.deliver(*PARTS[2])
    for number, track in enumerate(others):
        other = place.sink()
        other.start_afresh()
        assert other.claim(track) is None
        if isinstance(other, KeepsToken):
            other.deliver(1, [columns([(100 + number, "other")])])
        other.close()
    if isinstance(sink, KeepsToken):
        assert place.rows() == [*ALL[12:], (100, "other"), (101, "other")]
        assert sink.claim(TRACK) == Token(PARTS[2][0], "first")
    sink.close()


@pytest.mark.one_in(3, "hundredths of a second of a core each")
def test_numbers_of_another_incarnation_count_anew(place: DeliveryPlace) -> None:
    sink = claimed(place)
    sink.deliver(PARTS[2][0], [columns(ALL[:4])])
    sink.close()
    afresh = place.sink()
    afresh.start_afresh()
    token = afresh.claim(Track(TRACK.app, TRACK.sink, "second"))
    assert (token is not None) == isinstance(afresh, KeepsToken)
    if token is not None:  # a receiver may keep a digest of the incarnation, which is still that of another one
        assert (token.seq, token.incarnation == "second") == (PARTS[2][0], False)
    afresh.deliver(GENERATION + 1, [columns(ALL[4:])])
    afresh.deliver(GENERATION + 1, [columns(ALL[4:])])
    told = afresh.claim(Track(TRACK.app, TRACK.sink, "second"))
    assert told == (Token(GENERATION + 1, "second") if isinstance(afresh, KeepsToken) else None)
    afresh.close()
    assert sorted(place.rows()) == ALL


@pytest.mark.one_in(3, "a tenth of a second of a core each")
def test_who_lost_the_track_is_refused(place: DeliveryPlace) -> None:
    if not place.fences:
        pytest.skip("this receiver cannot keep a predecessor out")
    before, after = claimed(place), place.sink()
    before.deliver(*PARTS[0])
    assert after.claim(TRACK) == Token(PARTS[0][0], "first")
    for attempt in (lambda: before.deliver(*PARTS[1]), lambda: before.claim(TRACK), lambda: before.claim(TRACK)):
        with pytest.raises(AppLocked):
            attempt()
    assert place.rows() == ALL[:7]
    after.deliver(*PARTS[1])
    before.close()
    assert before.claim(TRACK) == Token(PARTS[1][0], "first")  # now it is the newcomer
    with pytest.raises(AppLocked):
        after.settle(1)
    before.deliver(*PARTS[2])
    after.close()
    before.close()
    assert place.rows() == ALL


@pytest.mark.one_in(3, "hundredths of a second of a core each")
def test_settle_moves_the_token_and_nothing_else(place: DeliveryPlace) -> None:
    sink = claimed(place)
    if not isinstance(sink, KeepsToken):
        pytest.skip("it keeps no token")
    sink.settle(PARTS[0][0])
    assert sink.claim(TRACK) == Token(PARTS[0][0], "first")
    sink.deliver(*PARTS[0])  # skipped: it is said to be there
    sink.deliver(*PARTS[1])
    sink.settle(PARTS[0][0])
    assert sink.claim(TRACK) == Token(PARTS[0][0], "first")
    assert place.rows() == ALL[7:12]
    sink.close()


def test_a_sink_that_was_not_claimed_delivers_nothing(place: DeliveryPlace) -> None:
    sink = place.sink()
    sink.close()
    if not isinstance(sink, KeepsToken):
        pytest.skip("a sink of a user's own need not look")
    with pytest.raises(UserError, match="not open"):
        sink.deliver(*PARTS[0])
    sink.claim(TRACK)
    sink.close()
    sink.close()
    with pytest.raises(UserError, match="not open"):
        sink.deliver(*PARTS[0])
    assert place.rows() == []


@pytest.mark.one_in(6, "a tenth of a second of a core each")
@mostly_without_duckdb
def test_a_crash_at_any_step_loses_nothing_and_repeats_nothing(
    new_place: NewPlace, watched: Callable[[Any], None]
) -> None:
    undisturbed = CrashAt()
    watched(undisturbed)
    place = new_place()
    run(place, PARTS)
    assert place.rows() == ALL
    if not undisturbed.moments:
        pytest.skip("it does not tell of its steps")
    for moment, name in enumerate(undisturbed.moments):
        place = new_place()
        watched(CrashAt(moment))
        with pytest.raises(Crash, match=name.split()[0]):
            run(place, PARTS)
        watched(None)
        so_far = place.rows()
        if place.sink().whole:
            assert so_far in [ALL[:0], ALL[:7], ALL[:12], ALL], f"a crash {name} left a part of a part"
        assert so_far == ALL[: len(so_far)], f"a crash {name} left rows without those before them"
        run(place, PARTS)
        assert place.rows() == ALL, f"after a crash {name}"


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@mostly_without_duckdb
def test_crash_after_crash_comes_to_an_end(new_place: NewPlace, watched: Callable[[Any], None]) -> None:
    place = new_place()
    for moment in range(1000):
        watched(CrashAt(moment))
        try:
            run(place, PARTS)
            break
        except Crash:
            continue
    watched(None)
    assert place.rows() == ALL


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
