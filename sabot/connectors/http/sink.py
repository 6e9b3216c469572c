"""`HttpSink`: sends rows to a web server, at least once, each request with a key by which the server may know it again.

The rows of a part keep their numbers, and a part is cut into requests in the same way each time, so a request that is sent again after
a crash has the same rows and the same key.
"""

import logging
import threading
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal
from urllib.parse import quote

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.text.records import bytes_list
from sabot.base.backoff import Backoff
from sabot.base.checks import FLAG, OneOf, Whole, check
from sabot.base.config import Duration, parse_seconds
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.base import Format
from sabot.codecs.formats import JSON, Json
from sabot.codecs.records import RECORD_SCHEMA, to_records
from sabot.connectors.base import Delivers, LostFloats, Sink, Token, Track
from sabot.connectors.http.client import HeaderValue, HttpClient, WebAnswer
from sabot.errors import UNREADABLE, RowErrors, TransientError, UserError
from sabot.steps import step

__all__ = ["HttpSink"]

_log = logging.getLogger(__name__)

Method = Literal["POST", "PUT", "PATCH"]
_METHODS: Sequence[Method] = ("POST", "PUT", "PATCH")
_BODY_BYTES = 4 << 20  # a request has fewer rows than `batch` if they have more bytes
_ANSWER_BYTES = 64 << 10
_KEY_CHARACTERS = 255  # that servers take in a key
# Answers to the request as such, which are the same for all rows: a program with another address or login would be taken.
_NOT_THE_ROWS = {401, 402, 403, 404, 405, 406, 407, 410, 411, 415, 417, 421, 426, 428, 431, 451}
_IN_WORK = 409  # to a request whose key is being worked on
_TRIES_IN_WORK = 5
_BACKOFF = Backoff(0.2, 10.0)


class HttpSink(Sink, Delivers):
    """A sink that sends rows to a web server: `HttpSink("https://example.org/alerts", headers={"Authorization": secret("ALERTS")})`.

    `url`: http:// or https://, with user:password@ for a Basic login. `batch`: the most rows of a request; with 1 the body is the row,
    else an array of rows. `headers`: texts, secrets, or functions that return a text, which are asked again when the server refuses
    the login. `format`: that of a row; an array needs JSON. `timeout`: for a whole request with its answer. `tls`: an
    `ssl.SSLContext`, for a CA or a client certificate of your own. `idempotent`: True if the server does a request only once whose
    Idempotency-Key it knows: the rows are then written exactly once. Raises MissingExtra without the library, and UserError.

    A request is sent until the server takes it (2xx). After 408, 425, 429 and from 500 on, or without a whole answer, it is sent again
    with the same key, not before the time of Retry-After. Other answers from 400 on refuse its rows, which become dead letters: of a
    request with several rows each half is tried alone. An answer that says nothing about rows, such as 401 or 404, and a redirect to
    another server end the app. One request at a time is under way, so the rows arrive in order.
    """

    whole = False
    repeats = "a request whose answer is lost is sent again, with the same Idempotency-Key"
    format: Format

    def __init__(
        self,
        url: str,
        *,
        batch: int = 1,
        method: Method = "POST",
        headers: Mapping[str, HeaderValue] | None = None,
        format: Format = JSON,
        timeout: Duration = "30s",
        idempotent: bool = False,
        tls: Any = None,
    ) -> None:
        self._batch = check("HttpSink: batch", batch, Whole(1))
        self._method = check("HttpSink: method", method, OneOf(_METHODS))
        if batch > 1 and not isinstance(format, Json):
            raise UserError(
                f"HttpSink: batch={batch} makes arrays of JSON, and the format is {format.name}",
                hint="batch=1 sends each row alone, in any format",
            )
        if check("HttpSink: idempotent", idempotent, FLAG):
            self.repeats = ""
        seconds = parse_seconds(timeout, name="HttpSink: timeout", zero=False)
        self._client = HttpClient("sink", "HttpSink", url, headers, seconds, tls)
        self.name = self._client.where.partition("?")[0]  # a query may have a token, and a checkpoint has the name
        self.format = format
        self._encoder = format.encoder(self.name)
        self._typed = any(name.lower() == "content-type" for name in headers or {})
        self._track: Track | None = None
        self._requests: _PartRequests | None = None  # those of the rows that are being sent, or were refused in part
        self._not_before = 0.0
        self._closed = threading.Event()

    def check_types(self, schema: pa.Schema) -> None:
        self.format.check_types(schema, f"sink {self.name!r}")

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        return self.format.floats_lost(kind)

    # -- at least once ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        self._track = self._requests = None
        self._closed.clear()
        self._client.open()

    def write(self, batch: Batch) -> None:
        """Sends the rows, and waits for a server that is away: the app would begin anew otherwise, and send all since its checkpoint."""
        self._opened()
        payloads = self._payloads([self._records(batch.taken())])
        if self._rest_of("", payloads):
            return
        requests = self._requests_of("", uuid.uuid4().hex, payloads)
        failures = 0
        while True:
            try:
                self._send(requests)
                break
            except TransientError as error:
                failures += 1
                if failures == 1:
                    _log.warning("sink %s takes no rows, and is tried until it does: %s", self.name, error)
                wait_s = max(_BACKOFF.wait_s(failures), self._not_before - SYSTEM_CLOCK.monotonic())
                if self._closed.wait(wait_s):
                    raise
        if failures:
            _log.info("sink %s takes rows again, after %d tries", self.name, failures)

    def flush(self) -> None:
        self._opened()

    def close(self) -> None:
        self._closed.set()
        self._client.close()
        self._track = self._requests = None

    # -- parts --------------------------------------------------------------------------------------------------------

    def claim(self, track: Track) -> Token | None:
        if track != self._track:
            self._requests = None
        if not self._client.is_open:
            self._closed.clear()
            self._client.open()
        self._track = track
        return None

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        return self._records(data)

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        self._opened()
        track = self._track
        if track is None:
            raise UserError(f"sink {self.name} is not open for parts: no track was claimed")
        if (left := self._not_before - SYSTEM_CLOCK.monotonic()) > 0:
            raise TransientError(f"sink {self.name} asks for rows in {left:.0f} s, and not before")
        name = f"{quote(track.key)}/{track.incarnation}/{seq}"
        payloads = self._payloads([self._records(each) for each in batches])
        if not self._rest_of(name, payloads):
            self._send(self._requests_of(name, name, payloads))

    def refused_rows(self, batches: Sequence[pa.RecordBatch]) -> Mapping[int, str]:
        """Returns the rows of the last part that the server has refused."""
        requests = self._requests
        return {} if requests is None or requests.todo else requests.refused

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _records(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns rows as records. Raises RowErrors for those that no body can be."""
        records = to_records(Batch(data), int(SYSTEM_CLOCK.time() * 1000), None, self._encoder)
        payloads = records.column("payload")
        wrong: dict[int, str] = {}
        if payloads.null_count:
            without: Any = pc.indices_nonzero(pc.is_null(payloads))
            wrong = dict.fromkeys(without.to_pylist(), f"sink {self.name}: a record without a payload has no body")
        elif self._batch > 1 and data.schema.equals(RECORD_SCHEMA):  # payloads that the format has not made
            for row, payload in enumerate(bytes_list(payloads)):
                try:
                    msgspec.json.decode(payload or b"")
                except UNREADABLE as error:
                    wrong[row] = (
                        f"sink {self.name}: the payload is no JSON, and batch={self._batch} sends arrays: {error}"
                    )
        if wrong:
            raise RowErrors(wrong)
        return records

    def _payloads(self, batches: Sequence[pa.RecordBatch]) -> list[bytes]:
        return [payload or b"" for each in batches for payload in bytes_list(each.column("payload"))]

    def _rest_of(self, name: str, payloads: list[bytes]) -> bool:
        """Returns True for rows that come again without those that were refused: the server has taken them."""
        requests = self._requests
        if requests is None or requests.name != name or requests.todo or not requests.refused:
            return False
        taken = [each for row, each in enumerate(requests.payloads) if row not in requests.refused]
        if payloads != taken:
            return False
        self._requests = None
        return True

    def _requests_of(self, name: str, key: str, payloads: list[bytes]) -> "_PartRequests":
        """Returns the requests for these rows, without those that the server has taken already."""
        known = self._requests
        if known is None or not name or (known.name, known.payloads) != (name, payloads):
            known = self._requests = _PartRequests(name, key, payloads, self._batch)
        return known

    def _send(self, requests: "_PartRequests") -> None:
        """Sends what is left. Raises RowErrors when all was sent, and rows were refused."""
        while requests.todo:
            first, last = requests.todo[0]
            answer = self._sent(requests, first, last)
            if 200 <= answer.status < 300:
                requests.todo.popleft()
                continue
            self._check(answer)
            requests.todo.popleft()
            if last - first > 1:  # one of them may be the cause
                half = (first + last) // 2
                requests.todo.extendleft([(half, last), (first, half)])
            else:
                requests.refused[first] = f"sink {self.name} answers {answer.text}"
        if requests.refused:
            raise RowErrors(requests.refused)
        self._requests = None

    def _sent(self, requests: "_PartRequests", first: int, last: int) -> WebAnswer:
        rows = requests.payloads[first:last]
        body = rows[0] if self._batch == 1 else b"[" + b",".join(rows) + b"]"
        headers = {"Idempotency-Key": requests.key_of(first, last)}
        if not self._typed:
            kind = "application/json" if isinstance(self.format, Json) else "application/octet-stream"
            headers["Content-Type"] = kind
        for tries in range(_TRIES_IN_WORK):
            with step("post", self.name):
                answer = self._client.ask(self._method, body=body, headers=headers, most_bytes=_ANSWER_BYTES, cuts=True)
            if answer.status != _IN_WORK or self._closed.wait(_BACKOFF.wait_s(tries + 1)):
                break
        return answer

    def _check(self, answer: WebAnswer) -> None:
        """Raises the error of an answer that refuses no rows: TransientError if it may pass."""
        if answer.passes:
            self._not_before = SYSTEM_CLOCK.monotonic() + answer.wait_s
            raise TransientError(f"sink {self.name} answers {answer.text}")
        if answer.status in _NOT_THE_ROWS or not 400 <= answer.status < 500:
            raise UserError(
                f"sink {self.name} answers {answer.text}",
                hint="check address, method and headers; the rows are kept until it takes them",
            )

    def _opened(self) -> None:
        if not self._client.is_open:
            raise UserError(f"the sink {self.name} is not open")


class _PartRequests:
    """The requests that send rows. `todo`: the first row of each that is left, and the row behind its last. `refused`: the reasons, by the
    number of the row.
    """

    def __init__(self, name: str, key: str, payloads: list[bytes], batch: int) -> None:
        self.name, self.payloads = name, payloads
        self.todo: deque[tuple[int, int]] = deque()
        self.refused: dict[int, str] = {}
        self._key = key
        first = size = 0
        for row, payload in enumerate(payloads):
            if row > first and (row - first == batch or size + len(payload) > _BODY_BYTES):
                self.todo.append((first, row))
                first, size = row, 0
            size += len(payload)
        if payloads:
            self.todo.append((first, len(payloads)))

    def key_of(self, first: int, last: int) -> str:
        """Returns the key of the request with these rows."""
        key = f"{self._key}/{first}-{last - 1}"
        return key if len(key) <= _KEY_CHARACTERS else blake2b(key.encode(), digest_size=32).hexdigest()
