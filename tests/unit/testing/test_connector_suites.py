"""The suites for connectors find what is broken: a source of pages, a sink with a token and one without, written from the documents
alone, and each promise of theirs broken by itself.
"""

import json
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from sabot import Batch, Sink, Source, Token
from sabot.connectors import Bounded, KeepsToken, TakesBound
from sabot.errors import AppLocked, UserError
from sabot.steps import step
from sabot.testing.connectors import ConnectorPlace, DeliverySuite, SinkSuite, SourceSuite, TypesSuite
from sabot.testing.connectors import place as places

SCHEMA = pa.schema([("n", pa.int64())])
ROWS_OF_A_PAGE = 4


class Service:
    """Pages of rows under names that say nothing of their order. What a client has acknowledged it may forget."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.first = 0
        self.gone = False

    def page(self, cursor: str) -> tuple[list[int], str]:
        """Rows behind a cursor, at most a page, and the cursor behind them."""
        at = self.place(cursor)
        if at < self.first or self.gone:
            raise UserError("these rows are gone")
        found = self.rows[at : at + ROWS_OF_A_PAGE]
        return found, f"c{at + len(found)}"

    def place(self, cursor: str) -> int:
        return int(cursor.removeprefix("c"))

    def acknowledge(self, cursor: str) -> None:
        self.first = max(self.first, self.place(cursor))


class Feed(Source):
    """Reads a Service page by page. Its position counts rows; the cursor and the rows of its page that were taken are its memory."""

    name = "feed"
    schema = SCHEMA

    def __init__(self, service: Service, broken: str) -> None:
        self.service, self.broken = service, broken
        self.memory: dict[tuple[str, int], bytes] = {}
        self.cursors: dict[int, str] = {}
        self.is_open = False
        self.file = os.open(os.devnull, os.O_RDONLY)
        self.stopped = threading.Event()
        self.opener: int | None = None

    def recall(self, memory: Any) -> None:
        self.memory = {} if self.broken == "forgets its memory" else dict(memory)

    def open(self, positions: Any, start: str | int = "earliest") -> None:
        known = (positions or {}).get((self.name, 0))
        if self.broken == "takes the position of another source":
            known = next(iter((positions or {}).values()), None)
        self.page: list[int] = []
        self.cursor, self.taken, self.next = "c0", 0, 0
        if known is not None:
            if (self.name, 0) in self.memory:
                self.cursor, self.taken = json.loads(self.memory[self.name, 0])
            if known != self.service.place(self.cursor) + self.taken and not self.broken:
                raise UserError(f"feed: position {known} is not that of the cursor {self.cursor}")
            if self.broken == "passes over what was removed" and self.service.place(self.cursor) < self.service.first:
                self.cursor, self.taken = f"c{self.service.first}", 0
            self.next = known
            self.page = self.service.page(self.cursor)[0]
        elif start == "latest":
            self.next = len(self.service.rows)
            self.cursor = f"c{self.next}"
        elif start == "earliest":
            self.next = self.service.first
            self.cursor = f"c{self.next}"
            self.service.page(self.cursor)
        elif self.broken != "takes any start":
            raise UserError(f"feed: start={start!r}")
        self.memory, self.is_open = {}, True
        self.opener = threading.get_ident()

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if not self.is_open:
            raise UserError("the source feed is not open")
        if self.broken == "is bound to the thread that opened it" and self.opener != threading.get_ident():
            raise UserError("this client was made by another thread")
        if self.taken >= len(self.page):
            if self.page:
                self.cursor = f"c{self.service.place(self.cursor) + len(self.page)}"
            self.page, self.taken = [], 0
            try:
                self.page, _ = self.service.page(self.cursor)
            except UserError:
                if self.broken != "swallows an error":
                    raise
            if self.broken == "acknowledges what no checkpoint has":
                self.service.acknowledge(f"c{self.service.place(self.cursor) + len(self.page)}")
        most = len(self.page) if self.broken == "gives whole pages" else max_rows
        found = self.page[self.taken : self.taken + most]
        if not found:
            if self.broken == "waits for a row as long as it takes":
                self.stopped.wait()
            return None
        self.taken += len(found)
        self.next += len(found)
        self.cursors[self.next] = self.cursor
        offsets = {} if self.broken == "gives rows without offsets" else self.positions()
        return Batch(pa.record_batch([pa.array(found, pa.int64())], SCHEMA), offsets, self.name)

    def positions(self) -> dict[tuple[str, int], int]:
        return {(self.name, 0): self.next + (self.broken == "is a row ahead" and self.next > 0)}

    def remember(self) -> dict[tuple[str, int], bytes]:
        taken = 0 if self.broken == "remembers the beginning of its page" else self.taken
        return {(self.name, 0): json.dumps([self.cursor, taken]).encode()}

    def commit(self, positions: Any) -> None:
        if (cursor := self.cursors.get(positions.get((self.name, 0), 0))) is not None:
            self.service.acknowledge(cursor)

    def readers(self, count: int) -> Sequence[Source]:
        return [Feed(self.service, self.broken) for _ in range(count)] if self.broken == "shares no rows" else [self]

    def lag(self) -> dict[tuple[str, int], int]:
        if self.broken == "tells its lag only while it is open":
            return {(self.name, 0): len(self.service.rows) - self.next}
        return {(self.name, 0): len(self.service.rows) - self.next} if self.is_open else {}

    def close(self) -> None:
        self.is_open = False
        self.stopped.set()
        if self.file and self.broken != "keeps its file open":
            os.close(self.file)
            self.file = 0


class EndingFeed(Feed, Bounded):
    """A Feed that ends behind the rows that are there."""

    @property
    def exhausted(self) -> bool:
        if self.broken == "never ends":
            return False
        return self.next >= len(self.service.rows) - (self.broken == "ends a row too early")


class BoundedFeed(Feed, TakesBound):
    """A Feed with `until="now"`."""

    def open(self, positions: Any, start: str | int = "earliest") -> None:
        super().open(positions, start)
        if self.bound is not None:
            if self.broken == "settles its bound anew at a restart":
                self.bound.keep(None)
            self.bound.settle(self, [0], [0])

    def span(self, partition: int) -> tuple[int, int]:
        return self.service.first, len(self.service.rows)

    def committed(self, partitions: Any) -> dict[int, int]:
        return {}

    def at(self, partitions: Any, ms: int) -> dict[int, int]:
        return {}

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if self.bound is None or self.broken == "reads past its bound":
            return super().read_batch(max_rows, timeout)
        return None if self.exhausted else super().read_batch(min(max_rows, self.bound.of(0) - self.next), timeout)

    @property
    def exhausted(self) -> bool:
        ends_early = self.broken == "ends a row in front of its bound"
        return self.bound is not None and self.next >= self.bound.of(0) - ends_early


class FeedPlace(ConnectorPlace):
    kind: type[Feed] = Feed

    def __init__(self, broken: str) -> None:
        self.service, self.broken = Service(), broken

    def put(self, numbers: Sequence[int]) -> None:
        self.service.rows += numbers

    def remove(self, numbers: Sequence[int]) -> None:
        self.service.first = max(numbers) + 1

    def drop(self) -> None:
        self.service.gone = True

    def source(self) -> Source:
        return self.kind(self.service, self.broken)


class EndingPlace(FeedPlace):
    kind = EndingFeed


class BoundedPlace(FeedPlace):
    kind = BoundedFeed


class Air:
    """Sends each row once, to who listens."""

    def __init__(self) -> None:
        self.heard: list[int] | None = None
        self.last: list[int] = []


class Listener(Source):
    """Gives what the Air sends while it is open. Its position counts rows, and its memory has the count too."""

    name = "air"
    schema = SCHEMA
    guarantee = "at most once"

    def __init__(self, air: Air, broken: str) -> None:
        self.air, self.broken, self.count = air, broken, 0
        self.heard: list[int] | None = None
        self.memory: dict[tuple[str, int], bytes] = {}

    def recall(self, memory: Any) -> None:
        self.memory = dict(memory)

    def open(self, positions: Any, start: str | int = "earliest") -> None:
        known = (positions or {}).get((self.name, 0))
        if known is None and start not in ("earliest", "latest"):
            raise UserError(f"air: start={start!r}")
        if known is not None and str(known).encode() != self.memory.get((self.name, 0)) and not self.broken:
            raise UserError(f"air: nothing is known of the position {known}")
        self.count = 0 if self.broken == "counts anew at each start" else known or 0
        self.heard = self.air.heard = []
        if self.broken == "gives the last row again" and known:
            self.heard += self.air.last

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if self.heard is None:
            raise UserError("the source air is not open")
        found = self.heard[:max_rows]
        if not found:
            return None
        if self.broken == "turns the order":
            found.reverse()
        self.heard[:] = [] if self.broken == "drops what it was not asked for" else self.heard[len(found) :]
        self.air.last = found[-1:]
        self.count += len(found)
        return Batch(pa.record_batch([pa.array(found, pa.int64())], SCHEMA), self.positions(), self.name)

    def positions(self) -> dict[tuple[str, int], int]:
        return {(self.name, 0): self.count}

    def remember(self) -> dict[tuple[str, int], bytes]:
        return {(self.name, 0): str(self.count).encode()}

    def close(self) -> None:
        self.heard = self.air.heard = None


class AirPlace(ConnectorPlace):
    def __init__(self, broken: str) -> None:
        self.air, self.broken = Air(), broken

    def put(self, numbers: Sequence[int]) -> None:
        if self.air.heard is not None:
            self.air.heard += numbers

    def source(self) -> Source:
        return Listener(self.air, self.broken)


class Shelf:
    """A receiver that keeps rows, and facts beside them; each call of `put` is one step of its own."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str | None]] = []
        self.facts: dict[str, Any] = {}
        self.gone = False
        self.refused: set[int] = set()

    def put(self, rows: Sequence[tuple[int, str | None]], facts: dict[str, Any]) -> None:
        if self.gone:
            raise UserError("there is no such shelf")
        if self.refused.intersection(row[0] for row in rows):
            raise UserError("the shelf refuses a row")
        self.rows += rows
        self.facts.update(facts)


class ShelfSink(Sink, KeepsToken):
    name = "shelf"
    format = None

    def __init__(self, shelf: Shelf, broken: str) -> None:
        self.shelf, self.broken = shelf, broken
        self.track: Any = None
        self.lost = False

    def known(self, track: Any) -> Token | None:
        if self.broken == "claims when it is asked":
            return self.claim(track)
        return (
            self.shelf.facts[track.key]
            if self.broken == "knows only what is there"
            else self.shelf.facts.get(track.key)
        )

    def claim(self, track: Any) -> Token | None:
        if self.track is not None and not self.ours():
            raise AppLocked("shelf: another process has claimed the track")
        self.track = track
        self.shelf.put([], {f"{track.key}/owner": self})
        return self.token()

    def token(self) -> Token | None:
        key = "one" if self.broken == "has one token for all tracks" else self.track.key
        return self.shelf.facts.get(key)

    def ours(self) -> bool:
        return self.broken == "fences nobody" or self.shelf.facts[f"{self.track.key}/owner"] is self

    def deliver(self, seq: int, batches: Any) -> None:
        rows = [row for each in batches for row in zip(*each.to_pydict().values(), strict=True)]
        if self.broken == "leaves refused rows out in silence":
            rows = [row for row in rows if row[0] not in self.shelf.refused]
        self.set(seq, rows)

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        if self.broken == "writes in fitting":
            self.shelf.put([(99, "fitting")][: data.num_rows], {})
        return data.slice(1) if self.broken == "drops a row in fitting" else data

    def refused_rows(self, batches: Any) -> dict[int, str]:
        rows = [row for each in batches for row in zip(*each.to_pydict().values(), strict=True)]
        found = {n: "the shelf has no place for it" for n, row in enumerate(rows) if row[0] in self.shelf.refused}
        if self.broken == "names refused rows by their batch":
            return {n % 4: why for n, why in found.items()}
        if self.broken == "tries rows at the receiver":
            self.shelf.rows.extend(row for n, row in enumerate(rows) if n not in found)
        if self.broken == "refuses a row without a reason":
            return dict.fromkeys(found, "")
        return {} if self.broken == "names no refused row" else found

    def settle(self, seq: int) -> None:
        self.set(seq, [(0, "settled")] if self.broken == "settles with rows" else [])

    def set(self, seq: int, rows: Sequence[tuple[int, str | None]]) -> None:
        if self.track is None:
            raise UserError("the sink shelf is not open")
        if self.shelf.gone and self.broken == "swallows an error":
            return
        if not self.ours():
            raise AppLocked("shelf: another process has claimed the track")
        last = self.token()
        looks = self.broken != "takes no look at the token"
        if looks and rows and last is not None and last.incarnation == self.track.incarnation and last.seq >= seq:
            return
        key = "one" if self.broken == "has one token for all tracks" else self.track.key
        fact = {key: Token(seq, self.track.incarnation)}
        if self.broken == "writes the token before the rows":
            with step("commit", "token"):
                self.shelf.put([], fact)
            with step("commit", "rows"):
                self.shelf.put(rows, {})
        elif self.broken == "tears a part":
            for row in rows[:-1]:
                with step("commit", "row"):
                    self.shelf.put([row], {})
            with step("commit", "last row"):
                self.shelf.put(rows[-1:], fact)
        elif self.broken == "tells of no step":
            self.shelf.put(rows, fact)
        else:
            with step("commit", self.name):
                self.shelf.put(rows, fact)

    def close(self) -> None:
        self.track = None

    def open(self) -> None:
        """The sink is opened by its claim."""

    def write(self, batch: Batch) -> None:
        raise UserError("shelf: its rows are written exactly once")

    def flush(self) -> None:
        """No row waits in memory."""


class HeapSink(Sink):
    """Puts rows on a Shelf at least once."""

    name = "heap"
    format = None

    def __init__(self, shelf: Shelf, broken: str) -> None:
        self.shelf, self.broken = shelf, broken
        self.waiting: list[tuple[int, str | None]] | None = None

    def open(self) -> None:
        self.waiting = []
        if self.broken == "begins anew at each open":
            self.shelf.rows.clear()

    def rows(self) -> list[tuple[int, str | None]]:
        if self.waiting is None:
            raise UserError("the sink heap is not open")
        return self.waiting

    def write(self, batch: Batch) -> None:
        data = batch.data if self.broken == "writes what a filter has dropped" else batch.taken()
        self.rows().extend(zip(*data.to_pydict().values(), strict=True))

    def flush(self) -> None:
        rows = self.rows()
        if self.broken == "keeps rows until it is closed":
            return
        with step("commit", self.name):
            try:
                self.shelf.put(rows[::-1] if self.broken == "turns the order" else rows, {})
            except UserError:
                if self.broken != "swallows an error":
                    raise
        if self.broken != "writes a row again at each flush":
            rows.clear()

    def close(self) -> None:
        if self.waiting and self.broken == "keeps rows until it is closed":
            self.shelf.put(self.waiting, {})
        if self.broken != "can be written when it is closed":
            self.waiting = None


class ShelfPlace(ConnectorPlace):
    kind: Callable[[Shelf, str], Sink] = ShelfSink

    def __init__(self, broken: str) -> None:
        self.shelf, self.broken = Shelf(), broken

    def sink(self) -> Sink:
        return type(self).kind(self.shelf, self.broken)

    def refuse(self, numbers: Sequence[int]) -> None:
        self.shelf.refused.update(numbers)

    def drop(self) -> None:
        self.shelf.gone = True

    def rows(self) -> Sequence[Any]:
        return self.shelf.rows


class HeapPlace(ShelfPlace):
    kind = HeapSink


class TypedShelf(ShelfSink):
    """A ShelfSink whose receiver has no unsigned integers, no decimals and no texts of more than 1,000 characters."""

    def check_types(self, schema: pa.Schema) -> None:
        kind = schema.field("v").type
        if pa.types.is_decimal(kind) and self.broken != "rounds decimals":
            raise UserError("a kind of number" if self.broken == "names no column" else f"column v: no type for {kind}")

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        values = data.column("v").to_pylist()
        if pa.types.is_string(data.schema.field("v").type) and any(len(value or "") > 1000 for value in values):
            if self.broken != "cuts texts":
                raise UserError("column v: a text is too long")
            return data.set_column(1, "v", pa.array([None if value is None else value[:1000] for value in values]))
        if self.broken == "turns null into the least value" and pa.types.is_int64(data.schema.field("v").type):
            return data.set_column(1, "v", data.column("v").fill_null(-(1 << 63)))
        if self.broken == "gives floats for large integers" and pa.types.is_uint64(data.schema.field("v").type):
            return data.set_column(1, "v", data.column("v").cast(pa.float64(), safe=False))
        if self.broken == "forgets the zone of a time" and getattr(data.schema.field("v").type, "tz", None):
            return data.set_column(1, "v", data.column("v").cast(pa.timestamp("us")))
        if self.broken == "rounds decimals" and pa.types.is_decimal(data.schema.field("v").type):
            return data.set_column(1, "v", data.column("v").cast(pa.float64()))
        return data


class TypedPlace(ShelfPlace):
    kind = TypedShelf

    def values(self) -> Sequence[Any]:
        return [value for _, value in self.shelf.rows]


@pytest.fixture(autouse=True)
def short_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a test that fails wait only so long."""
    monkeypatch.setattr(places, "GUARD_SECONDS", 0.3)


def findings(suite: Any, new_place: Callable[[], ConnectorPlace]) -> list[str]:
    """The tests of a suite that fail over these places."""
    failed = []
    for name in sorted(name for name in dir(suite) if name.startswith("test_")):
        try:
            getattr(suite, name)(new_place)
        except (AssertionError, UserError, AppLocked, KeyError, AttributeError):
            failed.append(name.removeprefix("test_"))
    return failed


GOES_ON = "a_source_goes_on_behind_each_row_of_an_older_one"
FITTING = "fitting_changes_nothing_and_its_rows_are_what_is_delivered"
REFUSED = "rows_that_the_receiver_refuses_are_named_and_the_others_are_the_part"
BOUND = "a_bound_is_where_the_log_was_at_the_first_start"
CRASH = "a_crash_at_any_step_loses_nothing_and_repeats_nothing"


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ("is a row ahead", GOES_ON),
        ("remembers the beginning of its page", GOES_ON),
        ("forgets its memory", GOES_ON),
        (
            "acknowledges what no checkpoint has",
            "the_log_forgets_nothing_that_the_last_complete_checkpoint_does_not_cover",
        ),
        ("gives whole pages", "rows_come_in_order_in_batches_of_any_size"),
        ("takes any start", "an_unknown_start_is_refused"),
        ("takes the position of another source", "positions_of_other_sources_are_not_its_own"),
        ("gives rows without offsets", "rows_come_in_order_in_batches_of_any_size"),
        ("passes over what was removed", "a_position_whose_rows_were_removed_is_refused"),
        ("swallows an error", "a_log_that_is_gone_is_an_error_and_no_end"),
        ("is bound to the thread that opened it", "rows_come_in_order_in_batches_of_any_size"),
        ("shares no rows", "readers_share_the_rows_and_go_on_at_the_positions_of_all"),
        ("tells its lag only while it is open", "figures_are_told_at_any_time_and_in_any_thread"),
        ("keeps its file open", "close_releases_threads_and_files"),
    ],
)
def test_a_source_that_breaks_a_promise_is_found(broken: str, found: str) -> None:
    assert found in findings(SourceSuite(), lambda: FeedPlace(broken))


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ("gives the last row again", GOES_ON),
        ("counts anew at each start", GOES_ON),
        ("believes any position", "a_position_that_does_not_exist_is_refused"),
        ("turns the order", "rows_come_in_order_in_batches_of_any_size"),
        ("drops what it was not asked for", "rows_come_in_order_in_batches_of_any_size"),
    ],
)
def test_a_source_of_a_log_that_keeps_nothing_is_found_if_it_breaks_what_it_can_promise(
    broken: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "GUARD_SECONDS", 0.2)  # rows that are lost do not come
    assert found in findings(SourceSuite(), lambda: AirPlace(broken))


def test_a_source_that_waits_longer_than_it_may_is_found() -> None:
    suite = SourceSuite()
    with pytest.raises(AssertionError, match=r"timeout of 0.05 s, has not come back"):
        suite.test_read_batch_comes_back_with_the_first_row_or_when_its_time_is_over(
            lambda: FeedPlace("waits for a row as long as it takes")
        )


@pytest.mark.parametrize("broken", ["never ends", "ends a row too early"])
def test_a_source_that_does_not_end_with_its_last_row_is_found(broken: str) -> None:
    found = findings(SourceSuite(), lambda: EndingPlace(broken))
    assert "a_source_that_ends_says_so_behind_its_last_row_and_not_before" in found


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ("writes the token before the rows", CRASH),
        ("tears a part", CRASH),
        ("tells of no step", CRASH),
        ("takes no look at the token", "a_part_that_comes_again_changes_nothing"),
        ("fences nobody", "who_lost_the_track_is_refused"),
        ("has one token for all tracks", "tracks_do_not_know_of_each_other"),
        ("settles with rows", "settle_moves_the_token_and_nothing_else"),
        ("claims when it is asked", "known_claims_nothing_and_makes_no_token"),
        ("knows only what is there", "known_claims_nothing_and_makes_no_token"),
        ("swallows an error", "a_receiver_that_is_gone_is_an_error"),
        ("writes in fitting", FITTING),
        ("drops a row in fitting", FITTING),
        ("names refused rows by their batch", REFUSED),
        ("tries rows at the receiver", REFUSED),
        ("refuses a row without a reason", REFUSED),
        ("names no refused row", REFUSED),
        ("leaves refused rows out in silence", REFUSED),
    ],
)
def test_a_sink_that_breaks_a_promise_is_found(broken: str, found: str) -> None:
    assert found in findings(DeliverySuite(), lambda: ShelfPlace(broken))


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ("writes what a filter has dropped", "rows_that_a_filter_has_dropped_are_not_written"),
        ("turns the order", "flushed_rows_are_there_in_order"),
        ("writes a row again at each flush", "flushed_rows_are_there_in_order"),
        ("keeps rows until it is closed", "flushed_rows_are_there_in_order"),
        ("begins anew at each open", "what_was_flushed_stays_when_the_sink_is_opened_again"),
        ("can be written when it is closed", "close_may_come_twice_and_first_and_a_closed_sink_writes_nothing"),
        ("swallows an error", "a_receiver_that_is_gone_is_an_error"),
    ],
)
def test_a_sink_of_at_least_once_that_breaks_a_promise_is_found(broken: str, found: str) -> None:
    assert found in findings(SinkSuite(), lambda: HeapPlace(broken))


@pytest.mark.parametrize(
    "broken", ["settles its bound anew at a restart", "reads past its bound", "ends a row in front of its bound"]
)
def test_a_source_that_does_not_keep_to_its_bound_is_found(broken: str) -> None:
    assert BOUND in findings(SourceSuite(), lambda: BoundedPlace(broken))


@pytest.mark.parametrize(
    "broken",
    [
        "names no column",
        "rounds decimals",
        "cuts texts",
        "turns null into the least value",
        "gives floats for large integers",
        "forgets the zone of a time",
    ],
)
def test_a_sink_that_changes_a_value_is_found(broken: str) -> None:
    assert findings(TypesSuite(), lambda: TypedPlace(broken)) == [
        "each_value_is_at_the_receiver_as_it_was_or_is_refused"
    ]


def test_a_sink_that_does_not_deliver_is_told_its_suite() -> None:
    with pytest.raises(AssertionError, match="HeapSink does not have the ability Delivers: SinkSuite tests"):
        DeliverySuite().test_crash_after_crash_comes_to_an_end(lambda: HeapPlace(""))


def test_connectors_that_keep_their_promises_pass() -> None:
    assert findings(SourceSuite(), lambda: FeedPlace("")) == []
    assert findings(SourceSuite(), lambda: EndingPlace("")) == []
    assert findings(SourceSuite(), lambda: BoundedPlace("")) == []
    assert findings(SourceSuite(), lambda: AirPlace("")) == []
    assert findings(SinkSuite(), lambda: HeapPlace("")) == []
    assert findings(TypesSuite(), lambda: TypedPlace("")) == []
    assert findings(DeliverySuite(), lambda: ShelfPlace("")) == []


def test_a_place_that_lacks_a_member_says_which() -> None:
    with pytest.raises(UserError, match=r"ConnectorPlace has no source\(\)"):
        SourceSuite().test_an_unknown_start_is_refused(ConnectorPlace)
