"""`WebhookSource`: receives the requests of senders, and answers when they are on the disk.

A sender repeats a request that was not answered with 2xx. So nothing is lost if such an answer means that the row is durable, and nothing
comes twice if a request is known by its key: both hold in the spool, whose rows the source reads by their number.

    request -> bounded -> signed -> key -> [spool: one fsync for all that wait] -> 202 new, 200 known, 503 full
                                              |
                                              v  by number; a checkpoint that is complete trims it
                                            the app
"""

import asyncio
import logging
import re
import ssl
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sabot._cython.arrow.batch import Batch
from sabot.base.addresses import is_loopback
from sabot.base.checks import TEXT, Whole, check
from sabot.base.config import Duration, Secret, parse_bytes, parse_seconds
from sabot.base.doors import SESSION
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import Headers, build_records
from sabot.connectors.base import Guarantee, Positions, Source
from sabot.connectors.http.signatures import SCHEMES, Signatures
from sabot.connectors.http.spool import Arrival, Spool, Stored
from sabot.errors import UNREADABLE, UserError, short_repr

if TYPE_CHECKING:
    from sabot.base.http_server import LimitedServer, Message, Receive, Send

__all__ = ["WebhookSource"]

_log = logging.getLogger(__name__)

BODY_SECONDS = 10.0  # in which a body has to arrive
_STORE_SECONDS = 30.0
UNDER_WAY_BYTES = 64 << 20  # of bodies that arrive, and of those that wait for the disk
_RETRY_SECONDS = "5"
_TOLD_SECONDS = 60.0  # between two lines of the log about requests that were refused
_KEY_BYTES = 512
_ANSWERS = {Stored.NEW: 202, Stored.KNOWN: 200, Stored.FULL: 503, Stored.FAILED: 503}
# Not kept with a row: logins, and what is about the connection.
_NOT_KEPT = {
    "authorization",
    "proxy-authorization",
    "cookie",
    "connection",
    "content-length",
    "transfer-encoding",
    "host",
}
_NOT_KEPT |= {"accept", "accept-encoding", "keep-alive", "te", "expect", "upgrade"}
_OURS = "sabot."  # the begin of headers that Sabot itself gives to records: no sender may do that
_PATH = re.compile(r"/[!-~]*")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_IN_BODY = "$."


class _NotTaken(Exception):
    """A request that is not taken. `status`, `why`: of the answer."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class WebhookSource(Source):
    """A source of requests that others send: `WebhookSource("hooks.db", port=8080, verify="github", secret=secret("HOOKS"))`.

    `spool`: the SQLite file in which requests wait; it is made if it is missing, and belongs to one app. `port`: at which it listens; 0
    takes a free one. `path`: the path of the address; others get 404. `host`: the address to listen at, which others can reach only
    with `verify`. `verify`: how requests are signed: "standard" (Standard Webhooks), "stripe", "github", or the name of a header with
    the HMAC-SHA256 of the body. `secret`: of the signatures; several while they are changed. `key`: what names a delivery, so that a
    repeated one is no row: a header, or "$." and a path in the JSON of the body; by default that of `verify`, "" for none. `body_bytes`:
    the largest body. `spool_bytes`: the most that the spool keeps. `keys`: for how long a key is known. `tls`: an `ssl.SSLContext` with
    the certificate of the address; None for HTTP. Raises UserError.

    A request is answered with 2xx when it is on the disk, so a sender that repeats others loses none. With a key each delivery counts
    once; without one a repeated request is another row. Rows are records with the body as payload, the key, the headers of the request,
    and the time of its arrival.
    """

    def __init__(
        self,
        spool: str | Path,
        *,
        port: int,
        path: str = "/",
        host: str = "127.0.0.1",
        verify: str = "",
        secret: str | Secret | Sequence[str | Secret] = (),
        key: str | None = None,
        body_bytes: str | int = "1MiB",
        spool_bytes: str | int = "1GiB",
        keys: Duration = "24h",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        check("WebhookSource: port", port, Whole(0))
        if not isinstance(path, str) or not _PATH.fullmatch(path) or "?" in path or "#" in path:
            raise UserError(f"WebhookSource: path={short_repr(path)} is no path of an address", hint='path="/orders"')
        check("WebhookSource: verify", verify, TEXT)
        secrets = [secret] if isinstance(secret, str | Secret) else list(secret)
        if not all(isinstance(each, str | Secret) and each for each in secrets):
            raise UserError("WebhookSource: secret= is no text", hint='secret("NAME"), of the environment')
        if bool(verify) != bool(secrets):
            raise UserError(
                f"WebhookSource: verify={verify!r} with {len(secrets)} secrets",
                hint='verify="standard", "stripe", "github" or the name of a header, and secret=secret("NAME")',
            )
        if verify and verify not in SCHEMES and not _NAME.fullmatch(verify):
            raise UserError(f"WebhookSource: verify={verify!r} is no header", hint='verify="X-Signature"')
        if not verify and not is_loopback(host):
            raise UserError(
                f"WebhookSource: others can reach {host}, and their rows would be taken unsigned",
                hint='verify= and secret=; or host="127.0.0.1", behind a proxy that checks',
            )
        if key is None:
            key = SCHEMES[verify].key if verify in SCHEMES else ""
        named = check("WebhookSource: key", key, TEXT)
        if named and not named.startswith(_IN_BODY) and not _NAME.fullmatch(named):
            raise UserError(
                f"WebhookSource: key={named!r}", hint='a header, "Webhook-Id", or a path in the body, "$.id"'
            )
        self._key = named if named.startswith(_IN_BODY) else named.lower()
        if tls is not None:
            _check_certificate(tls)
        self._path, self._port, self._host, self._tls = path, port, host, tls
        self._signatures = Signatures(verify, secrets) if verify else None
        self._body_bytes = parse_bytes(body_bytes, name="WebhookSource: body_bytes")
        self._spool = Spool(
            Path(spool),
            parse_bytes(spool_bytes, name="WebhookSource: spool_bytes"),
            parse_seconds(keys, name="WebhookSource: keys", zero=False),
        )
        self.name = f"webhook {path}"
        self._server: LimitedServer | None = None
        self._next = self._there = 0
        self._under_way = 0  # bytes of bodies that arrive
        self._outcomes: _Outcomes  # of the loop of the server
        self._refused: Counter[int] = Counter()
        self._told = -_TOLD_SECONDS

    @property
    def guarantee(self) -> Guarantee:  # type: ignore[override]
        return "exactly once" if self._key else "at least once"

    @property
    def port(self) -> int:
        """The port at which the source listens, while it is open."""
        return self._port if self._server is None else self._server.port

    # -- read ---------------------------------------------------------------------------------------------------------

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        from sabot.base.http_server import LimitedServer

        self.close()
        known = (positions or {}).get((self.name, 0))
        if known is None and start not in ("earliest", "latest", "committed"):
            raise UserError(
                f"source {self.name}: start={start!r} is no place in a spool",
                hint='"earliest" reads all that it has, "latest" only what comes from now on',
            )
        spool = self._spool
        try:
            if self._signatures is not None:
                self._signatures.open()
            spool.open()
            if known is not None:
                self._check(known)
            self._next = known if known is not None else spool.end if start == "latest" else spool.first
            self._there = spool.end
            self._server = LimitedServer(
                self._port, self._host, name=f"source {self.name}", option="port", ports=1, tls=self._tls
            )
            self._server.start(self._answer, self._beside, lambda: None)
        except BaseException:
            self.close()
            raise

    def _check(self, known: int) -> None:
        """Raises UserError for a position whose rows are not in the spool."""
        spool = self._spool
        if known < spool.first:
            raise UserError(
                f"source {self.name}: the requests {known} to {spool.first - 1} are not in the spool {spool.path} any more: a later "
                "checkpoint had them",
                hint="an older checkpoint was restored; start afresh (--fresh) with what the spool has",
            )
        if known > spool.end:
            raise UserError(
                f"source {self.name}: the spool {spool.path} ends at {spool.end}, before the position {known} of the checkpoint",
                hint="give the spool of this app: it is another one, or an older copy; or start afresh (--fresh)",
            )

    async def _beside(self) -> None:
        self._outcomes = _Outcomes()
        await asyncio.Event().wait()

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        server = self._server
        if server is None:
            raise UserError(f"the source {self.name} is not open")
        rows = self._spool.take(self._next, max_rows, timeout)
        if not rows:
            if not server.running and self._server is not None:
                raise UserError(
                    f"source {self.name}: its server has ended", hint="the log says why; start the app again"
                )
            return None
        numbers, times, keys, headers, payloads = zip(*rows, strict=True)
        records = build_records(payloads, keys, times, 0, numbers, headers)
        self._next = numbers[-1] + 1
        return Batch(records, self.positions(), self.name)

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()  # first: what it has taken is written before the spool ends
        self._spool.close()
        self._under_way = 0

    # -- position -----------------------------------------------------------------------------------------------------

    def positions(self) -> Positions:
        return {(self.name, 0): self._next}

    def topic_id(self) -> str:
        return self._spool.id if self._server is not None else Spool.id_of(self._spool.path)

    def identity(self) -> str | None:
        return self._spool.id

    # -- delivery -----------------------------------------------------------------------------------------------------

    def commit(self, positions: Positions) -> None:
        position = positions.get((self.name, 0))
        if position is not None and self._server is not None:
            self._spool.trim(position)

    # -- facts --------------------------------------------------------------------------------------------------------

    def lag(self) -> dict[tuple[str, int], int]:
        return {} if self._server is None else {(self.name, 0): max(0, self._spool.end - self._next)}

    def backlog(self) -> int | None:
        return None if self._server is None else max(0, self._there - self._next)

    def figures(self) -> Mapping[str, int | float | str]:
        spool = self._spool
        found: dict[str, int | float | str] = {"spool_bytes": spool.bytes, "spool_rows": spool.end - spool.first}
        return found | {f"answers_{status}": count for status, count in sorted(self._refused.items())}

    # -- requests: in the thread of the server ------------------------------------------------------------------------

    async def _answer(self, scope: "Message", receive: "Receive", send: "Send") -> None:
        more: list[tuple[bytes, bytes]] = []
        try:
            status, why = await self._taken(scope, receive), ""
        except _NotTaken as refused:
            status, why = refused.status, refused.why
        except Exception:  # the sender comes again; the other requests go on
            _log.exception("source %s has failed at a request", self.name)
            status, why = 500, "the request could not be worked on"
        if status >= 400:
            self._tell(status, why)
            # The rest of a body that is not wanted is not read, so the connection cannot go on.
            more = [(b"connection", b"close"), (b"content-type", b"text/plain; charset=utf-8")]
        if status == 405:
            more.append((b"allow", b"POST"))
        if status in (429, 503):
            more.append((b"retry-after", _RETRY_SECONDS.encode()))
        body = why.encode()
        more.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": more})
        await send({"type": "http.response.body", "body": body})

    def _tell(self, status: int, why: str) -> None:
        self._refused[status] += 1
        now = SYSTEM_CLOCK.monotonic()
        if now - self._told >= _TOLD_SECONDS:
            self._told = now
            _log.warning("source %s has answered a request with %d: %s", self.name, status, why)

    async def _taken(self, scope: "Message", receive: "Receive") -> int:
        """Returns the status of the answer to a request, when it is on the disk. Raises _NotTaken."""
        if scope["path"] != self._path:
            raise _NotTaken(404, "nothing is received at this path")
        if scope["method"] != "POST":
            raise _NotTaken(405, "requests are received by POST")
        pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        headers = dict(reversed(pairs))  # the first of each
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise _NotTaken(415, "a compressed body is not read")
        if self._signatures is None and "origin" in headers:  # a page that somebody has open on this machine
            raise _NotTaken(403, "requests of browsers are not received without a signature")
        body = await self._body(headers, receive)
        if self._signatures is not None and (why := self._signatures.refusal(headers, body, SYSTEM_CLOCK.time())):
            raise _NotTaken(401, why)
        scope[SESSION] = {}  # the connections of senders stay longest
        key = self._key_of(headers, body)
        hidden = _NOT_KEPT | ({self._signatures.header} if self._signatures is not None else set())
        kept: Headers = tuple(
            (name, value.encode("latin-1"))
            for name, value in pairs
            if name not in hidden and not name.startswith(_OURS)
        )
        if self._spool.waiting_bytes > UNDER_WAY_BYTES:
            raise _NotTaken(429, "more is on the way to the disk than it takes")
        return await self._store(body, key, kept)

    async def _body(self, headers: Mapping[str, str], receive: "Receive") -> bytes:
        """Returns the body of a request. Raises _NotTaken for one that is too large, too slow, or cut off."""
        most, length = self._body_bytes, headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise _NotTaken(413, f"a body has at most {most} bytes")
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise _NotTaken(400, "the request was cut off")
                    piece = message.get("body", b"")
                    body += piece
                    self._under_way += len(piece)
                    if len(body) > most:
                        raise _NotTaken(413, f"a body has at most {most} bytes")
                    if self._under_way > UNDER_WAY_BYTES:
                        raise _NotTaken(429, "too many bodies are under way")
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise _NotTaken(408, f"the body has not come in {BODY_SECONDS:g} s") from None
        finally:
            self._under_way -= len(body)

    def _key_of(self, headers: Mapping[str, str], body: bytes) -> bytes | None:
        """Returns what names the delivery, or None if nothing does. Raises _NotTaken for a request without it."""
        if not self._key:
            return None
        if not self._key.startswith(_IN_BODY):
            found = headers.get(self._key, "").encode("latin-1")
        else:
            try:
                value: Any = msgspec.json.decode(body)
                for name in self._key.removeprefix(_IN_BODY).split("."):
                    value = value.get(name) if isinstance(value, dict) else None
            except UNREADABLE:
                value = None
            found = str(value).encode() if isinstance(value, str | int) and not isinstance(value, bool) else b""
        if not found or len(found) > _KEY_BYTES:
            raise _NotTaken(400, f"it has no {self._key} that names the delivery, of at most {_KEY_BYTES} bytes")
        return found

    async def _store(self, body: bytes, key: bytes | None, headers: Headers) -> int:
        done: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        told = partial(self._outcomes.tell, done)
        self._spool.put(Arrival(body, key, headers, int(SYSTEM_CLOCK.time() * 1000), told))
        try:
            outcome = await asyncio.wait_for(done, _STORE_SECONDS)
        except TimeoutError:
            raise _NotTaken(503, f"the disk has not taken it in {_STORE_SECONDS:g} s") from None
        if (status := _ANSWERS[outcome]) >= 400:
            raise _NotTaken(status, "the spool is full" if outcome is Stored.FULL else "the disk does not take it")
        return status


class _Outcomes:
    """The way of outcomes from the thread that writes to the event loop, which it wakes once for all of a transaction. Made in the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[asyncio.Future[Stored], Stored]] = deque()
        self._woken = False

    def tell(self, done: "asyncio.Future[Stored]", outcome: Stored) -> None:
        """Called by the thread that writes."""
        self._waiting.append((done, outcome))
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the server has ended
                self._loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        self._woken = False  # first: what is told from here on wakes the loop again
        while self._waiting:
            done, outcome = self._waiting.popleft()
            if not done.done():  # its sender may have gone
                done.set_result(outcome)


def _check_certificate(tls: ssl.SSLContext) -> None:
    """Raises UserError for a context with which no handshake succeeds: senders would see that, and the app would not."""
    hint = 'context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); context.load_cert_chain("cert.pem", "key.pem")'
    if not isinstance(tls, ssl.SSLContext):
        raise UserError(f"WebhookSource: tls={short_repr(tls)} is no ssl.SSLContext", hint=hint)
    asks = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asks.check_hostname, asks.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        for side in (asks.wrap_bio(to_client, to_server), tls.wrap_bio(to_server, to_client, server_side=True)):
            with suppress(ssl.SSLWantReadError):  # the other one's turn
                side.do_handshake()
    except ssl.SSLError as error:
        raise UserError(
            f"WebhookSource: tls= shows no certificate to senders ({error.reason or error})", hint=hint
        ) from error
