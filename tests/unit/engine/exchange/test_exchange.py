"""Channels whose ends are in two exchanges behave as one channel: what goes in comes out, in order, and a full one stops its producer."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import ACTIVE, END, IDLE, Abort, Barrier, Channel, ChannelClosed, Watermark
from sabot.engine.exchange import Exchange
from sabot.engine.operators.base import COMPLETE
from sabot.engine.operators.rows.origin import RowOrigin
from sabot.errors import InternalError, UserError
from tools.broker import has_ipv6

TOKEN = "a token of the tests"


class Pair:
    """Two exchanges that send to each other, and what broke at each."""

    def __init__(self, **options) -> None:
        self.broken: list[tuple[str, str]] = []
        self.here, self.there = Exchange(TOKEN, **options), Exchange(TOKEN, **options)
        for each in (self.here, self.there):
            each.on_failed = lambda edge, error: self.broken.append((edge, str(error)))

    def edge(self, name: str, rows: int = 65_536, near_rows: int = 65_536) -> tuple[Channel, Channel]:
        near, far = Channel(near_rows, name=f"{name} near"), Channel(rows, name=f"{name} far")
        self.there.receive(name, far)
        self.here.send(name, near, self.there.address)
        return near, far


@contextlib.contextmanager
def exchanges(**options) -> Iterator[Pair]:
    pair = Pair(**options)
    try:
        yield pair
        assert pair.broken == []
    finally:
        pair.here.close()
        pair.there.close()


def fill(channel: Channel, elements: list) -> threading.Thread:
    def run() -> None:
        for element in elements:
            channel.put(element)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def flat(elements: list) -> list:
    """One entry a row and a mark, which says all that a reader may rely on: batches may be joined and divided on the way."""
    found: list = []
    for element in elements:
        if not isinstance(element, Batch) or element is COMPLETE:
            found.append("COMPLETE" if element is COMPLETE else element)
            continue
        data = element.taken()
        origin = element.records
        rows = element.selection
        places = [None] * data.num_rows
        if origin is not None:
            places = origin.places(range(data.num_rows) if rows is None else rows.to_pylist())
        found += [
            (element.topic, data.schema.names, tuple(row.items()), place)
            for row, place in zip(data.to_pylist(), places, strict=True)
        ]
    return found


def drain(channel: Channel, *, pause: float = 0.0, until=END) -> list:
    found = []
    while not found or found[-1] != until:
        element = channel.get(60)
        assert element is not None, f"nothing comes any more after {found[-3:]}"
        found.append(element)
        if pause:
            time.sleep(pause)
    return found


MARKS = st.one_of(
    st.sampled_from([IDLE, ACTIVE, COMPLETE]),
    st.integers(-(2**63), 2**63 - 1).map(Watermark),
    st.integers(1, 2**40).map(Barrier),
    st.integers(1, 2**40).map(Abort),
)


@st.composite
def batches(draw) -> Batch:
    rows = draw(st.integers(0, 20))
    shape = draw(st.sampled_from(["numbers", "texts", "nothing"]))
    numbers = pa.array(draw(st.lists(st.none() | st.integers(0, 9), min_size=rows, max_size=rows)), pa.int64())
    data = pa.record_batch({"n": numbers})
    if shape == "texts":
        data = pa.record_batch(
            {
                "flag": pa.array([None if n is None else n > 4 for n in numbers.to_pylist()], pa.bool_()),
                "text": pa.array([None if n is None else "ä" * n for n in numbers.to_pylist()], pa.string()),
                "list": pa.array([None if n is None else [n] * n for n in numbers.to_pylist()], pa.list_(pa.int32())),
            }
        )
    elif shape == "nothing":
        data = data.select([])
    start = draw(st.integers(0, rows))
    data = data.slice(start)
    origin = None
    if draw(st.booleans()):
        offsets = pa.array(range(start, rows), pa.int64())
        origin = RowOrigin.of_records(pa.array([number % 3 for number in range(start, rows)], pa.int32()), offsets)
    batch = Batch(data, {("t", 0): rows}, draw(st.sampled_from(["", "t"])), origin)
    if draw(st.booleans()):
        chosen = pa.array(
            sorted(draw(st.sets(st.integers(0, max(0, data.num_rows - 1)))) if data.num_rows else []), pa.int32()
        )
        records = None if origin is None else origin.counting(len(chosen))
        hashes = pa.array(range(data.num_rows), pa.uint64())
        batch = Batch(data, batch.offsets, batch.topic, records, (), chosen, hashes)
    return batch


@settings(max_examples=40, deadline=None)
@given(
    edges=st.lists(
        st.tuples(st.lists(st.one_of(batches(), MARKS), max_size=25), st.sampled_from([1, 7, 65_536]), st.booleans()),
        min_size=1,
        max_size=3,
    ),
    credit=st.sampled_from([(1, 1), (16, 4_096), (65_536, 8 << 20)]),
    message_bytes=st.sampled_from([64, 4 << 20]),
)
def test_what_goes_in_comes_out_in_order(edges, credit, message_bytes):
    with exchanges(credit_rows=credit[0], credit_bytes=credit[1], message_bytes=message_bytes) as pair:
        channels = [pair.edge(f"edge {i}", rows, rows) for i, (_, rows, _) in enumerate(edges)]
        for (near, _), (elements, _, _) in zip(channels, edges, strict=True):
            fill(near, [*elements, END])
        for (_, far), (elements, _, slow) in zip(channels, edges, strict=True):
            got = drain(far, pause=0.0005 if slow else 0.0)
            assert flat(got) == flat([*elements, END])


def test_the_offsets_come_with_the_last_row_of_their_batch():
    with exchanges(message_bytes=1_000) as pair:
        near, far = pair.edge("a")
        near.put(Batch(pa.record_batch({"x": list(range(1_000))}), {("t", 1): 17}, "t"))
        near.put(END)
        *parts, _ = drain(far)
        assert len(parts) > 3
        assert [part.offsets for part in parts] == [{}] * (len(parts) - 1) + [{("t", 1): 17}]


def test_columns_begin_at_whole_words_for_the_kernels():
    with exchanges() as pair:
        near, far = pair.edge("a")
        for rows in (1, 37, 5_000):
            near.put(Batch(pa.record_batch({"x": list(range(rows)), "t": ["é"] * rows})))
            batch = far.get(60)
            buffers = [buffer for column in batch.data.columns for buffer in column.buffers() if buffer is not None]
            assert [buffer.address % 8 for buffer in buffers] == [0] * len(buffers)
            assert batch.data["t"].to_pylist() == ["é"] * rows


def test_small_batches_that_wait_cross_together_and_marks_stay_between_them():
    with exchanges(credit_rows=1, credit_bytes=1) as pair:
        near, far = pair.edge("a", rows=1)
        one = Batch(pa.record_batch({"x": [1]}))
        fill(near, [*[one] * 500, Barrier(1), *[one] * 500, END]).join(60)
        got = drain(far)
        rows = [element.num_rows if isinstance(element, Batch) else element for element in got]
        cut = rows.index(Barrier(1))
        assert (sum(rows[:cut]), sum(rows[cut + 1 : -1])) == (500, 500)
        assert len(rows) < 50


def test_a_full_channel_stops_its_producer_and_no_other_edge():
    batch = Batch(pa.record_batch({"x": list(range(1_000))}))
    with exchanges(credit_rows=4_000, credit_bytes=1 << 20) as pair:
        stalled, stalled_far = pair.edge("stalled", rows=1_000, near_rows=1_000)
        flowing, flowing_far = pair.edge("flowing", rows=1_000, near_rows=1_000)
        taken, waits = 0, 0
        while (put := stalled.put(batch, timeout=1.0)) or not waits:  # its thread may have had no core for a second
            taken += put
            waits = pair.here.statistics()["sent"]["stalled"]["waits"]
        # its far channel; its credit, and a message beyond; the one in hand; its near channel
        assert taken <= 1 + 4 + 1 + 1 + 1
        fill(flowing, [*[batch] * 500, END])
        assert sum(element.num_rows for element in drain(flowing_far)[:-1]) == 500_000
        assert pair.here.statistics()["sent"]["stalled"]["waits"] >= 1
        fill(stalled, [Barrier(1)])
        got = drain(stalled_far, until=Barrier(1))
        assert sum(element.num_rows for element in got[:-1]) == 1_000 * taken


def test_the_producer_learns_that_the_reader_has_closed():
    with exchanges() as pair:
        near, far = pair.edge("a")
        near.put(Watermark(1))
        assert far.get(60) == Watermark(1)
        far.close()
        with pytest.raises(ChannelClosed):
            fill_for_ever(near)


def fill_for_ever(channel: Channel) -> None:
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        channel.put(Watermark(1))
        time.sleep(0.001)


def test_a_sender_may_come_before_its_receiver():
    with exchanges() as pair:
        near, far = Channel(), Channel()
        near.put(END)
        pair.here.send("a", near, pair.there.address)
        pair.there.receive("a", far)
        assert far.get(60) is END


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_an_exchange_is_reached_over_ipv6_and_cuts_off_who_came_by_it():
    with exchanges(host="::1") as pair:
        assert pair.there.address.startswith("[::1]:")
        near, far = pair.edge("words")
        near.put(Watermark(7))
        near.put(END)
        assert drain(far) == [Watermark(7), END]
        pair.edge("open")  # its call is under way when the exchange is closed, which would wait for it


def test_an_edge_is_used_once():
    with exchanges() as pair:
        pair.edge("a")
        with pytest.raises(InternalError, match="'a' is received already"):
            pair.there.receive("a", Channel())
        with pytest.raises(InternalError, match="'a' is sent already"):
            pair.here.send("a", Channel(), pair.there.address)


def test_a_short_token_and_a_wrong_address_are_refused():
    with pytest.raises(UserError, match="16 characters"):
        Exchange("short")
    with exchanges() as pair, pytest.raises(UserError, match="is not the address"):
        pair.here.send("a", Channel(), "somewhere")


def test_closing_ends_threads_and_files():
    def sizes() -> tuple[int, set[str]]:
        return len(os.listdir("/dev/fd")), {thread.name for thread in threading.enumerate()}

    with exchanges() as pair:  # what gRPC keeps for the process
        pair.edge("first")
    before = sizes()
    for _ in range(3):
        with exchanges() as pair:
            near, far = pair.edge("open")
            done, done_far = pair.edge("done")
            near.put(Watermark(1))
            done.put(END)
            assert (far.get(60), done_far.get(60)) == (Watermark(1), END)
    settled = time.monotonic() + 60
    while sizes() != before and time.monotonic() < settled:
        time.sleep(0.01)  # gRPC closes its sockets in threads of its own
    assert sizes() == before
    with pytest.raises(ChannelClosed):
        near.put(Watermark(2))
    with pytest.raises(InternalError, match="closed"):
        pair.here.send("late", Channel(), pair.there.address)
