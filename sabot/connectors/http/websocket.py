"""`WebsocketSource`: the messages that a server sends over a websocket. Only this module imports websockets.

A thread receives them, and stops receiving while BUFFER_BYTES wait for the reader. A connection that ends is made again. The protocol has
no place to go on from, so a message counts at most once.
"""

import json
import logging
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from contextvars import copy_context
from typing import Any
from urllib.parse import urlsplit

from sabot._cython.arrow.batch import Batch
from sabot.base.backoff import Backoff
from sabot.base.config import Duration, Secret, parse_seconds
from sabot.base.redaction import clean_cause, redacted_url, visible
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import build_records
from sabot.connectors.base import Guarantee, Positions
from sabot.connectors.http.client import HeaderValue, HttpHeaders, WebAnswer, web_address
from sabot.connectors.http.poll import CountedPlace, PlacedSource
from sabot.errors import MissingExtra, TransientError, UserError, short_repr

__all__ = ["WebsocketSource"]

_log = logging.getLogger(__name__)

BUFFER_BYTES = 16 << 20
MESSAGE_BYTES = 16 << 20
_OBJECT_BYTES = 100  # of a message in memory, beside its data
_CONNECT_SECONDS = 10.0
_CLOSE_SECONDS = 1.0  # that the server has to answer the end of a connection
AGAIN_SECONDS = 1.0  # before a connection that has ended is made again
BACKOFF = Backoff(0.5, 60.0)
_PORTS = {"ws": 80, "wss": 443}
_TOO_LARGE = 1009
Sent = str | Mapping[str, Any] | Secret | Callable[[], str]


class WebsocketSource(PlacedSource[CountedPlace]):
    """A source of the messages of a websocket: `WebsocketSource("wss://example.org/feed", subscribe=[{"op": "trades"}])`.

    `url`: ws:// or wss://, with user:password@ for a Basic login. `subscribe`: messages that are sent when a connection is made, each
    time: texts, dicts (sent as JSON), secrets of the environment, or functions that return a text. `timeout`: the longest silence
    before the server is asked whether it is there, and the time that it has to answer. `headers`, `tls`: as those of `HttpSink`.
    Raises MissingExtra without the library, and UserError.

    A message counts at most once: those of the time without a connection are lost, and so are those that an app had received, and no
    checkpoint had, when it crashed. Rows are records with a message as payload, and the time of its arrival.
    """

    guarantee: Guarantee = "at most once"

    def __init__(
        self,
        url: str,
        *,
        subscribe: Sequence[Sent] = (),
        headers: Mapping[str, HeaderValue] | None = None,
        timeout: Duration = "60s",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        try:
            import websockets.exceptions
        except ImportError as error:
            raise MissingExtra("WebsocketSource", "http") from error
        self._library = websockets
        where = redacted_url(url)
        self._url, login = web_address("source", url, _PORTS, "wss://example.org/path")
        if isinstance(subscribe, str | Mapping) or not all(_can_be_sent(each) for each in subscribe):
            raise UserError(
                f"WebsocketSource: subscribe={short_repr(subscribe)}",
                hint='a list of texts, dicts, secret("NAME") or functions, such as [{"op": "subscribe"}]',
            )
        self._subscribe = list(subscribe)
        self._headers = HttpHeaders("source", where, headers or {}, login)
        self._timeout_s = parse_seconds(timeout, name="WebsocketSource: timeout", zero=False)
        self._tls = tls
        self.name = where.partition("?")[0]
        self.place = CountedPlace(0)
        self._lock = threading.Condition()
        self._error: Exception | None = None  # that ends the app
        self._receiving: _Receiving | None = None
        self._connections = self._failures = 0

    # -- read ---------------------------------------------------------------------------------------------------------

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self.close()
        self.begin(CountedPlace(0), positions, start, "a websocket begins with what comes next")
        self._error, self._connections, self._failures = None, 0, 0
        receiving = self._receiving = _Receiving(self._headers.read())
        run = copy_context().run  # what functions of `subscribe` call is judged as in this thread
        threading.Thread(target=run, args=(self._receive, receiving), name="sabot websocket", daemon=True).start()

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        with self._lock:
            receiving = self._receiving
            if receiving is None:
                raise UserError(f"the source {self.name} is not open")
            came = receiving.came

            def there() -> object:
                receiving.awaited = True  # before the look: a message that comes behind it tells of itself
                return came or self._error or receiving.ended

            self._lock.wait_for(there, timeout)
            receiving.awaited = False
            if receiving.ended or not came:
                if self._error is not None:
                    raise self._error
                return None
            rows = min(max_rows, len(came))
            messages = [came.popleft() for _ in range(rows)]
            receiving.taken_bytes += sum(map(len, messages)) + _OBJECT_BYTES * rows
            self._lock.notify_all()
        first = self.place.count
        now = [int(SYSTEM_CLOCK.time() * 1000)] * rows
        records = build_records(messages, None, now, 0, range(first, first + rows), None)
        self.place = CountedPlace(first + rows)
        return Batch(records, self.positions(), self.name)

    def close(self) -> None:
        with self._lock:
            receiving, self._receiving = self._receiving, None
            if receiving is not None:
                receiving.ended = True
            self._lock.notify_all()
        if receiving is not None:
            receiving.close()

    # -- the thread that receives -------------------------------------------------------------------------------------

    def _receive(self, receiving: "_Receiving") -> None:
        try:
            while not receiving.ended:
                try:
                    if self._converse(receiving):
                        self._wait(receiving, AGAIN_SECONDS)
                except TransientError as error:
                    self._failed(receiving, str(error))
        except Exception as error:  # raised where the app reads
            with self._lock:
                if not receiving.ended:
                    self._error = error
                    self._lock.notify_all()

    def _converse(self, receiving: "_Receiving") -> bool:
        """Connects, and receives until the connection ends. Returns False if it has to be made at once, with another login. Raises
        TransientError if there is none, and if it is cut off, or ends before a message has come.
        """
        failures = self._library.exceptions
        texts = [self._text(each) for each in self._subscribe]
        try:
            with closing(self._connected(receiving)) as raw, self._opened(receiving, raw) as connection:
                with suppress(failures.ConnectionClosed):  # what came before the end is received all the same
                    for each in texts:
                        connection.send(each)
                self._take_all(receiving, connection)
                return True
        except ssl.SSLCertVerificationError as error:  # a ValueError too
            raise UserError(
                f"source {self.name}: {error}", hint="tls= takes an ssl.SSLContext with the certificates that you trust"
            ) from clean_cause(error)
        except failures.ConnectionClosed as error:
            if error.sent is not None and error.sent.code == _TOO_LARGE:
                raise UserError(
                    f"source {self.name}: a message has more than {MESSAGE_BYTES} bytes",
                    hint="let the server send smaller ones",
                ) from clean_cause(error)
            said = "" if error.rcvd is None else visible(f"{error.rcvd.code} {error.rcvd.reason}", lines=False)
            raise TransientError(
                f"source {self.name}: the connection {f'was ended: {said}' if said else 'was cut off'}"
            ) from clean_cause(error)
        except failures.InvalidMessage as error:
            if isinstance(error.__cause__, EOFError | OSError):  # the server is starting or stopping
                raise TransientError(f"source {self.name}: {error}") from clean_cause(error)
            raise self._no_websocket(f"{error}: {error.__cause__}") from clean_cause(error)
        except (failures.InvalidHandshake, failures.InvalidURI, ValueError) as error:
            status = error.__cause__ if isinstance(error, ValueError) else error  # a redirect, which is not followed
            if not isinstance(status, failures.InvalidStatus):
                raise self._no_websocket(str(error)) from clean_cause(error)
            return self._refused(receiving, status.response, error)
        except (OSError, EOFError) as error:  # TimeoutError too
            raise TransientError(f"source {self.name}: {type(error).__name__}: {error}") from clean_cause(error)

    def _connected(self, receiving: "_Receiving") -> socket.socket:
        parts = urlsplit(self._url)
        address = parts.hostname, parts.port or _PORTS[parts.scheme]
        raw = receiving.raw = socket.create_connection(address, min(self._timeout_s, _CONNECT_SECONDS))
        return raw

    @contextmanager
    def _opened(self, receiving: "_Receiving", raw: socket.socket) -> Iterator[Any]:
        from websockets.sync.client import connect

        options: dict[str, Any] = {"ssl": self._tls} if self._url.startswith("wss:") else {}
        with connect(
            self._url,
            sock=raw,  # the library follows no redirect of a given socket: nobody else gets login and messages
            additional_headers=receiving.login,
            user_agent_header="sabot",
            open_timeout=min(self._timeout_s, _CONNECT_SECONDS),
            close_timeout=_CLOSE_SECONDS,
            ping_interval=None,  # those of the library would time out while a slow reader holds the connection
            max_size=MESSAGE_BYTES,
            **options,
        ) as connection:
            receiving.connection = connection
            self._connections += 1
            yield connection

    def _take_all(self, receiving: "_Receiving", connection: Any) -> None:
        """Receives messages until `close`, or until the server ends the connection in order. Raises the errors of the library."""
        asked: threading.Event | None = None  # set when the server has answered a ping
        came = False
        while not receiving.ended:
            try:
                message = connection.recv(timeout=self._timeout_s, decode=False)
            except TimeoutError as error:
                if asked is not None and not asked.is_set():
                    raise TransientError(
                        f"source {self.name}: nothing has come for {2 * self._timeout_s:g} s, and no answer to a ping"
                    ) from clean_cause(error)
                asked = connection.ping()
                continue
            except self._library.exceptions.ConnectionClosedOK:
                if not came:
                    raise
                return
            if not came:
                came = True
                if self._failures:
                    _log.info("source %s sends messages again", self.name)
                    self._failures = 0
            receiving.came.append(message)
            receiving.came_bytes += len(message) + _OBJECT_BYTES
            if receiving.awaited:  # a lock for each message would take a fifth of this thread's time
                with self._lock:
                    receiving.awaited = False
                    self._lock.notify_all()
            if receiving.held > BUFFER_BYTES:
                with self._lock:
                    self._lock.wait_for(lambda: receiving.held <= BUFFER_BYTES or receiving.ended)

    def _refused(self, receiving: "_Receiving", response: Any, error: Exception) -> bool:
        """Decides what follows an answer that makes no websocket. Returns False if the login is another one now."""
        answer = WebAnswer(response.status_code, {}, bytes(response.body or b""))
        if answer.passes:
            raise TransientError(f"source {self.name} answers {answer.text}") from clean_cause(error)
        if answer.refuses_login and (login := self._headers.read()) != receiving.login:
            receiving.login = login
            return False
        raise UserError(f"source {self.name} answers {answer.text}", hint="check address and headers") from clean_cause(
            error
        )

    def _no_websocket(self, why: str) -> UserError:
        return UserError(
            f"source {self.name}: {visible(why, lines=False)}", hint="check that a websocket is at this address"
        )

    def _failed(self, receiving: "_Receiving", why: str) -> None:
        self._failures += 1
        if self._failures == 1:
            _log.warning("source %s cannot be read, and is asked until it answers: %s", self.name, why)
        self._wait(receiving, max(AGAIN_SECONDS, BACKOFF.wait_s(self._failures)))

    def _wait(self, receiving: "_Receiving", seconds: float) -> None:
        with self._lock:
            self._lock.wait_for(lambda: receiving.ended, seconds)

    def _text(self, given: Sent) -> str:
        if isinstance(given, Mapping):
            return json.dumps(given)
        text = given if isinstance(given, str) else given.read() if isinstance(given, Secret) else given()
        if not isinstance(text, str):
            raise UserError(f"source {self.name}: a function of subscribe= returns {short_repr(text)}, and no text")
        return text

    # -- facts --------------------------------------------------------------------------------------------------------

    def lag(self) -> dict[tuple[str, int], int]:
        receiving = self._receiving
        return {} if receiving is None else {(self.name, 0): len(receiving.came)}

    def figures(self) -> Mapping[str, int | float | str]:
        receiving = self._receiving
        held = 0 if receiving is None else receiving.held
        return {"buffered_bytes": held, "reconnects": max(0, self._connections - 1)}


class _Receiving:
    """One opening of the source. `login`: the headers that are sent. `ended`: True from `close` on. `came`: the messages for the reader,
    which the thread that receives appends without the lock. `came_bytes`: of all that came, written by that thread alone; `taken_bytes`:
    of those that the reader has taken, written by it alone. `awaited`: True while the reader waits for a message.
    """

    def __init__(self, login: dict[str, str]) -> None:
        self.login, self.ended = login, False
        self.raw: socket.socket | None = None
        self.connection: Any = None
        self.came: deque[bytes] = deque()
        self.came_bytes = self.taken_bytes = 0
        self.awaited = False

    @property
    def held(self) -> int:
        return self.came_bytes - self.taken_bytes

    def close(self) -> None:
        """Ends the connection, from any thread: in order, or, while it is being made, by its socket."""
        with suppress(OSError):
            if self.connection is not None:
                self.connection.close()
            elif self.raw is not None:
                self.raw.shutdown(socket.SHUT_RDWR)


def _can_be_sent(given: object) -> bool:
    return isinstance(given, str | Mapping | Secret) or callable(given)
