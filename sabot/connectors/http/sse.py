"""`SseSource`: the events that a server sends over one long answer (text/event-stream).

A thread of the client receives them, and stops receiving while BUFFER_BYTES wait for the reader. A connection that ends is made again with
the id of the last event, and so is that of a restart: the server sends what came behind it, as far back as it keeps events.
"""

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Literal

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.backoff import Backoff
from sabot.base.checks import OneOf, check
from sabot.base.config import Duration, parse_seconds
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import RECORD_SCHEMA, Headers, build_records
from sabot.connectors.base import Guarantee, Positions
from sabot.connectors.http.client import HeaderValue, HttpClient, WebAnswer
from sabot.connectors.http.events import EventParser, SentEvent
from sabot.connectors.http.poll import CountedPlace, PlacedSource
from sabot.errors import TransientError, UserError, short_repr

__all__ = ["SseSource"]

_log = logging.getLogger(__name__)

BUFFER_BYTES = 16 << 20
_OBJECT_BYTES = 200  # of an event in memory, beside its data
_RETRY_SECONDS = 1.0  # before a connection that has ended is made again, if the server does not say
_RETRY_BOUNDS = 0.05, 3600.0
_BACKOFF = Backoff(0.5, 60.0)
_NO_MORE = 204
Ids = Literal["given", "consecutive", "none"]
_IDS: Sequence[Ids] = ("given", "consecutive", "none")


class _EventPlace(CountedPlace):
    """`id`: that of the last event, or None before the first."""

    id: str | None


class SseSource(PlacedSource[_EventPlace]):
    """A source of server-sent events: `SseSource("https://example.org/events")`.

    `url`: as that of `HttpSink`. `events`: the types of the events that are rows; () for all. `ids`: what the ids of the events are:
    "given" (each event has one, and the server knows how to go on behind it), "consecutive" (they are whole numbers that go up by
    one, so a gap is an error, and an event that comes again is dropped), or "none". `after`: the id behind which a start without a
    checkpoint begins; "" leaves it to the server. `timeout`: the time for the head of an answer, and the longest silence before the
    connection is made again. `headers`, `tls`: as those of `HttpSink`. Raises MissingExtra without the library, and UserError.

    Each event counts once, as far back as the server keeps events: one that has forgotten what follows the last id sends later
    events, and only consecutive ids tell. Without ids an event counts at most once: those of the time without a connection are lost.
    Rows are records with the data of an event as payload, the time of its arrival, and the headers `event` and `id`.
    """

    def __init__(
        self,
        url: str,
        *,
        events: Sequence[str] = (),
        ids: Ids = "given",
        after: str = "",
        headers: Mapping[str, HeaderValue] | None = None,
        timeout: Duration = "60s",
        tls: Any = None,
    ) -> None:
        if isinstance(events, str) or not all(isinstance(each, str) and each for each in events):
            raise UserError(f"SseSource: events={short_repr(events)}", hint='the types, such as ["message", "update"]')
        self._kinds = frozenset(each.encode() for each in events)
        self._ids: Ids = check("SseSource: ids", ids, OneOf(_IDS))
        if not isinstance(after, str) or (after and ids == "none") or "\0" in after or "\n" in after or "\r" in after:
            raise UserError(f"SseSource: after={short_repr(after)} with ids={ids!r}", hint='after="the id of an event"')
        self._after = after
        if after and ids == "consecutive":
            self._number(after.encode(), "after")
        seconds = parse_seconds(timeout, name="SseSource: timeout", zero=False)
        self._client = HttpClient("source", "SseSource", url, headers, seconds, tls)
        self.name = self._client.where.partition("?")[0]
        self.place = _EventPlace(0, None)
        self._lock = threading.Condition()
        self._came: deque[tuple[list[SentEvent], int]] = deque()  # the events of a piece of the answer, and their bytes
        self._held = self._waiting = 0  # bytes and number of them
        self._stream: Future[WebAnswer] | None = None
        self._received: bytes | None = None  # the id of the last event that came
        self._connect_at = 0.0
        self._retry_s = _RETRY_SECONDS
        self._failures = self._connections = 0
        self._alive = False  # the connection has brought something
        self._has_headers = True
        self._last: tuple[int, Sequence[SentEvent]] = 0, ()  # the events of the last batch, and the offset of the first

    @property
    def guarantee(self) -> Guarantee:  # type: ignore[override]
        return "at most once" if self._ids == "none" else "exactly once"

    # -- read ---------------------------------------------------------------------------------------------------------

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self.close()
        first = _EventPlace(0, self._after or None)
        self.begin(first, positions, start, "after= is the id behind which it begins")
        self._received = None if self.place.id is None else self.place.id.encode()
        self._connect_at, self._retry_s = 0.0, _RETRY_SECONDS
        self._failures = self._connections = 0
        self._client.open()

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if not self._client.is_open:
            raise UserError(f"the source {self.name} is not open")
        until = SYSTEM_CLOCK.monotonic() + timeout
        while True:
            with self._lock:
                taken = self._take(max_rows)
            if taken and (batch := self._batch(taken)) is not None:
                return batch
            if not taken and not self._waited(until):
                return None

    def _take(self, max_rows: int) -> list[SentEvent]:
        taken: list[SentEvent] = []
        while self._came and (room := max_rows - len(taken)) > 0:
            events, size = self._came[0]
            taken += events[:room]
            if len(events) > room:
                self._came[0] = events[room:], size
            else:
                self._came.popleft()
                self._held -= size
        self._waiting -= len(taken)
        return taken

    def _waited(self, until: float) -> bool:
        """Waits for events, and keeps the connection. Returns False when the time is over."""
        now = SYSTEM_CLOCK.monotonic()
        with self._lock:
            if self._stream is None and now < self._connect_at:
                self._lock.wait(max(0.0, min(until, self._connect_at) - now))
                if not self._client.is_open or SYSTEM_CLOCK.monotonic() >= until:
                    return False
                if SYSTEM_CLOCK.monotonic() < self._connect_at:
                    return True
        if self._stream is None:
            self._connect()
        stream = self._stream
        assert stream is not None
        with self._lock:
            ready = self._lock.wait_for(lambda: bool(self._came) or stream.done(), max(0.0, until - now))
            if self._came or not ready:
                return bool(self._came)
        self._stream = None
        try:
            self._ended(stream.result())
        except CancelledError:
            return False  # closed
        except TransientError as error:
            self._failed(str(error), 0.0)
        return True

    def _connect(self) -> None:
        headers: dict[str, str | bytes] = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        if self._received and self._ids != "none":
            headers["Last-Event-ID"] = self._received
        again, parser = self._received, EventParser()
        self._alive = False
        self._connections += 1

        def begun(answer: WebAnswer) -> None:
            kind = answer.headers.get("content-type", "no type")
            if kind.partition(";")[0].strip().lower() != "text/event-stream":
                raise UserError(
                    f"source {self.name}: the answer is {short_repr(kind)}, and no stream of events",
                    hint="check the address",
                )
            if (coded := answer.headers.get("content-encoding", "identity").strip().lower()) not in ("identity", ""):
                raise UserError(f"source {self.name}: a stream of events with Content-Encoding {short_repr(coded)}")

        def take(piece: bytes) -> None:
            nonlocal again
            try:
                events = parser.feed(piece)
            except ValueError as error:
                raise UserError(f"source {self.name}: {error}", hint="let the server send smaller ones") from error
            if parser.retry_ms is not None:
                self._retry_s = max(_RETRY_BOUNDS[0], min(parser.retry_ms / 1000, _RETRY_BOUNDS[1]))
            if again is not None and events and self._ids == "given":
                if events[0][2] == again:  # some servers send the event of Last-Event-ID too
                    del events[0]
                again = None
            with self._lock:
                self._alive = True
                if events:
                    self._received = next((own for _, _, own in reversed(events) if own is not None), self._received)
                    size = len(piece) + _OBJECT_BYTES * len(events)
                    self._came.append((events, size))
                    self._held, self._waiting = self._held + size, self._waiting + len(events)
                    self._lock.notify_all()

        stream = self._stream = self._client.follow(headers, begun, take, lambda: self._held > BUFFER_BYTES)
        stream.add_done_callback(self._notify)

    def _notify(self, stream: "Future[WebAnswer]") -> None:
        with self._lock:
            self._lock.notify_all()

    def _ended(self, answer: WebAnswer) -> None:
        """Decides what follows an answer that has ended."""
        if answer.status == 200 and self._alive:
            if self._failures:
                _log.info("source %s sends events again", self.name)
            self._failures = 0
            self._connect_at = SYSTEM_CLOCK.monotonic() + self._retry_s
        elif answer.status == 200:
            self._failed(f"source {self.name} ends its answers at once", 0.0)
        elif answer.passes or answer.status == _NO_MORE:
            self._failed(f"source {self.name} answers {answer.text}", answer.wait_s)
        elif not self._client.logs_in_anew(answer):
            raise UserError(f"source {self.name} answers {answer.text}", hint="check address and headers")

    def _failed(self, why: str, wait_s: float) -> None:
        self._failures = 1 if self._alive else self._failures + 1
        if self._failures == 1:
            _log.warning("source %s cannot be read, and is asked until it answers: %s", self.name, why)
        self._connect_at = SYSTEM_CLOCK.monotonic() + max(wait_s, self._retry_s, _BACKOFF.wait_s(self._failures))

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _batch(self, events: Sequence[SentEvent]) -> Batch | None:
        """Returns the rows of events, or None if there is nothing that a checkpoint would keep."""
        chosen: list[SentEvent] = []
        place, first, kinds, ids = self.place.id, self.place.count, self._kinds, self._ids
        last = None if place is None else place.encode()
        before = None if last is None or ids != "consecutive" else int(last)
        for event in events:
            kind, _, own = event
            if own is not None:
                if ids == "consecutive":
                    number = self._number(own, "the id of an event")
                    if before is not None and number != before + 1:
                        if number <= before:
                            continue  # it has come before
                        raise self._forgotten(before, number)
                    before = number
                last = own
            elif ids != "none" and kind:
                raise UserError(
                    f"source {self.name}: an event of type {short_repr(kind.decode(errors='replace'))} has no id, so a restart could not "
                    "go on behind it",
                    hint='ids="none" reads such a stream, at most once',
                )
            if kind and (not kinds or kind in kinds):
                chosen.append(event)
        if self._failures:
            _log.info("source %s sends events again", self.name)
            self._failures = 0
        reached = None if last is None else last.decode(errors="replace")
        if not chosen and reached == place:
            return None
        rows, self._last = len(chosen), (first, chosen)
        now = [int(SYSTEM_CLOCK.time() * 1000)] * rows
        headers = [_headers(each) for each in chosen] if self._has_headers else None
        records = build_records([data for _, data, _ in chosen], None, now, 0, range(first, first + rows), headers)
        self.place = _EventPlace(first + rows, reached)
        return Batch(records, self.positions(), self.name)

    def leave_headers(self) -> None:
        self._has_headers = False

    def with_headers(self, records: pa.RecordBatch) -> pa.RecordBatch:
        if self._has_headers:
            return records
        first, events = self._last
        headers = [_headers(events[offset - first]) for offset in records.column("offset").to_pylist()]
        rows = len(headers)
        made = build_records([b""] * rows, None, [0] * rows, 0, [0] * rows, headers)
        return records.set_column(
            RECORD_SCHEMA.get_field_index("headers"), RECORD_SCHEMA.field("headers"), made.column("headers")
        )

    def _forgotten(self, before: int, number: int) -> UserError:
        return UserError(
            f"source {self.name}: the server has forgotten the events {before + 1} to {number - 1}: behind {before} it sends {number}",
            hint="they are lost, unless the server can be made to send them; start afresh (--fresh), or with after= a later id",
        )

    def _number(self, id: bytes, what: str) -> int:
        if not id.isdigit() or len(id) > 30:
            raise UserError(
                f"SseSource: {what} is {short_repr(id.decode(errors='replace'))}, and no whole number",
                hint='ids="given" is for ids that are not counted',
            )
        return int(id)

    def close(self) -> None:
        self._client.close()
        with self._lock:
            self._stream = None
            self._came.clear()
            self._held = self._waiting = 0
            self._lock.notify_all()

    # -- facts --------------------------------------------------------------------------------------------------------

    def lag(self) -> dict[tuple[str, int], int]:
        return {(self.name, 0): self._waiting} if self._client.is_open else {}

    def figures(self) -> Mapping[str, int | float | str]:
        return {"buffered_bytes": self._held, "reconnects": max(0, self._connections - 1)}


def _headers(event: SentEvent) -> Headers:
    kind, _, own = event
    return (("event", kind),) if own is None else (("event", kind), ("id", own))
