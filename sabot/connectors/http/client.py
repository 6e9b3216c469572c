"""Requests to a web server, each bounded in time and size. Only this module imports httpx2.

The requests run in an event loop in a thread of its own: a coroutine can be ended at any moment, so a server that sends a byte every
ten seconds holds nobody up, which time-outs of single reads would allow. What calls this client may be any thread.
"""

import asyncio
import re
import threading
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager, contextmanager
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, TypeVar
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from sabot.base.config import Secret
from sabot.base.dataclass import dataclass
from sabot.base.redaction import clean_cause, keep_headers, keep_url, redacted_url, visible
from sabot.errors import BrokerUnavailable, MissingExtra, TransientError, UserError, short_repr

__all__ = ["HeaderValue", "HttpClient", "HttpHeaders", "WebAnswer", "web_address"]

T = TypeVar("T")

HeaderValue = str | Secret | Callable[[], str]
"""A header's value: a text, a secret of the environment, or a function that returns it, which is asked again when the server refuses
the login.
"""

_CONNECT_SECONDS = 10.0
_REDIRECTS = 5
_SHOWN = 300  # characters of an answer in a message
_LONGEST_WAIT = 3600.0  # seconds that a server may ask us to wait
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OF_THE_CLIENT = {"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "idempotency-key"}
_FULL_SECONDS = 0.02  # between two looks whether a reader has made room
_OK = 200
_LOGIN_REFUSED = 401
_MOVED = {301, 302, 303, 307, 308}
_SAME_METHOD = {307, 308}
_WAITS = {408, 425, 429}
_NEVER = {501, 505}  # of the answers from 500 on, those that say nothing about the moment


@dataclass(frozen=True)
class WebAnswer:
    """An answer of a server. `headers`: by their names in small letters. `body`: its bytes, at most as many as were asked for.
    `cut`: True if there were more.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    cut: bool = False

    @property
    def passes(self) -> bool:
        """True if a later try may have another answer."""
        return self.status in _WAITS or (self.status >= 500 and self.status not in _NEVER)

    @property
    def refuses_login(self) -> bool:
        """True if another login may be let in."""
        return self.status == _LOGIN_REFUSED

    @property
    def text(self) -> str:
        """The status and the beginning of the body, for messages."""
        said = visible(self.body[: 4 * _SHOWN].decode(errors="replace"), lines=False).strip()
        return f"{self.status}{': ' if said else ''}{said[:_SHOWN]}"

    @property
    def wait_s(self) -> float:
        """The seconds that the server asks the client to wait (`Retry-After`), or 0."""
        said = self.headers.get("retry-after", "").strip()
        if re.fullmatch(r"\d{1,9}", said):
            return min(float(said), _LONGEST_WAIT)
        try:  # a time of the server's clock, which its own Date is too; ours may be another one
            until, now = parsedate_to_datetime(said), parsedate_to_datetime(self.headers.get("date", ""))
            return min(max(0.0, (until - now).total_seconds()), _LONGEST_WAIT)
        except (ValueError, TypeError):
            return 0.0


class HttpHeaders:
    """The headers that a user gives a connector. `where`: the address, for messages. `login`: the value of Authorization that the address
    has, or "". Raises UserError for a header that cannot be set.
    """

    def __init__(self, what: str, where: str, headers: Mapping[str, HeaderValue], login: str) -> None:
        self._named, self._given = f"{what} {where}", _checked(what, headers)
        if login and not any(name.lower() == "authorization" for name in self._given):
            self._given["Authorization"] = login

    def read(self) -> dict[str, str]:
        """Returns the headers with their present values, by their names. Raises UserError for a value that is no text of ASCII."""
        found = {name: self._value(name, given) for name, given in self._given.items()}
        keep_headers(found, apart=[name for name, given in self._given.items() if not isinstance(given, str)])
        return found

    def _value(self, name: str, given: HeaderValue) -> str:
        value = given if isinstance(given, str) else given.read() if isinstance(given, Secret) else given()
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise UserError(
                f"{self._named}: the header {name} has a value that is no text of ASCII",
                hint="a text without line breaks; encode other characters, for example with base64",
            )
        return value.strip()


class HttpClient:
    """A client of the server at an address.

    `what`: the part of Sabot that uses it, for messages, as in "sink". `feature`: the feature that needs the library. `url`: http:// or
    https://, with user:password@ for a Basic login. `headers`: sent with each request. `timeout_s`: the time for a whole request and
    its answer. `tls`: an `ssl.SSLContext` with certificates of its own. Raises MissingExtra, UserError.

    A redirect is followed to the same scheme, host and port only, so no other server gets headers, login or rows.
    """

    def __init__(
        self, what: str, feature: str, url: str, headers: Mapping[str, HeaderValue] | None, timeout_s: float, tls: Any
    ) -> None:
        try:
            import httpx2
        except ImportError as error:
            raise MissingExtra(feature, "http") from error
        self._http = httpx2
        self.where = redacted_url(url)
        """The address without user, password and secret parameters, for messages."""
        self.what = what
        self.url, login = web_address(what, url, ("http", "https"), "https://example.org/path")
        self._headers = HttpHeaders(what, self.where, headers or {}, login)
        self._timeout_s, self._tls = timeout_s, tls
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = None
        self._sent: dict[str, str] = {}

    def open(self) -> None:
        """Makes the client ready. Connects to nobody."""
        self.close()
        self._sent = self._headers.read()
        loop = self._loop = asyncio.new_event_loop()
        threading.Thread(target=_run, args=(loop,), name=f"sabot {self.what}", daemon=True).start()
        self._client = self._http.AsyncClient(
            verify=self._tls or (self.url.startswith("https:") and _trusted()),
            timeout=self._http.Timeout(self._timeout_s, connect=min(self._timeout_s, _CONNECT_SECONDS)),
            follow_redirects=False,
            headers={"User-Agent": "sabot", "Accept": "*/*", "Accept-Encoding": "gzip, deflate"},
        )

    @property
    def is_open(self) -> bool:
        """True between `open` and `close`."""
        return self._loop is not None

    def close(self) -> None:
        """Ends what waits, and all connections. Any thread may call it, and may call it twice."""
        loop, self._loop = self._loop, None
        client, self._client = self._client, None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(_end(client), loop).result()
            loop.call_soon_threadsafe(loop.stop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the thread of the client, and returns its result. Raises TransientError if `close` ends it."""
        loop = self._loop
        if loop is None:
            work.close()
            raise UserError(f"{self.what} {self.where} is not open")
        try:
            return asyncio.run_coroutine_threadsafe(work, loop).result()
        except CancelledError as error:
            raise TransientError(f"{self.what} {self.where} was closed") from error

    def ask(
        self,
        method: str,
        url: str = "",
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        most_bytes: int,
        cuts: bool = False,
    ) -> WebAnswer:
        """Sends a request, and returns the whole answer. `url`: another address of the same server. `most_bytes`: the largest body that
        is read: `cuts` says that of a larger one the beginning will do. Raises TransientError if there is no whole answer, whatever
        the server did, UserError if there will be none, and for a server that refuses the login twice.
        """
        own = dict(headers or {})
        answer = self.run(self._asked(method, url or self.url, body, {**self._sent, **own}, most_bytes, cuts))
        if self.logs_in_anew(answer):
            answer = self.run(self._asked(method, url or self.url, body, {**self._sent, **own}, most_bytes, cuts))
        return answer

    def begin(self, url: str, headers: Mapping[str, str], most_bytes: int) -> "Future[WebAnswer]":
        """Begins to ask for a page, as `ask` does, and returns its answer as a future, which `close` cancels."""
        assert self._loop is not None
        work = self._asked("GET", url, b"", {**self._sent, **headers}, most_bytes, False)
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def follow(
        self,
        headers: Mapping[str, str | bytes],
        begun: Callable[[WebAnswer], None],
        take: Callable[[bytes], None],
        full: Callable[[], bool],
    ) -> "Future[WebAnswer]":
        """Begins to ask for an answer that may have no end, and returns it as a future when it has ended, which `close` cancels.

        `begun` gets status and headers of an answer of 200, and `take` then each piece of its body; both may raise an error, which ends
        the answer, and are called in the thread of the client. Nothing is read while `full` returns True. Other answers have the
        beginning of their body. Raises TransientError from the future if nothing comes for the time of a request, and for an answer
        that is cut off.
        """
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(
            self._followed({**self._sent, **headers}, begun, take, full), self._loop
        )

    async def _followed(
        self,
        headers: Mapping[str, str | bytes],
        begun: Callable[[WebAnswer], None],
        take: Callable[[bytes], None],
        full: Callable[[], bool],
    ) -> WebAnswer:
        loop = asyncio.get_running_loop()
        try:
            async with (
                asyncio.timeout(self._timeout_s) as limit,
                self.answering("GET", self.url, b"", headers) as response,
            ):
                if response.status_code != _OK:
                    data, cut = await self._read(response, 4 * _SHOWN, True)
                    return WebAnswer(response.status_code, _headers(response), data, cut)
                answer = WebAnswer(_OK, _headers(response), b"")
                begun(answer)
                async for piece in response.aiter_raw():
                    take(piece)
                    if full():
                        limit.reschedule(None)  # it is our time that passes
                        while full():  # noqa: ASYNC110  the reader is a thread, and makes room each batch
                            await asyncio.sleep(_FULL_SECONDS)
                    limit.reschedule(loop.time() + self._timeout_s)
                return answer
        except TimeoutError as error:
            raise TransientError(f"{self._named}: nothing has come for {self._timeout_s:g} s") from error

    def logs_in_anew(self, answer: WebAnswer) -> bool:
        """Returns True if the answer refuses the login, and there is another one now, which is sent from here on."""
        if not answer.refuses_login or (login := self._headers.read()) == self._sent:
            return False
        self._sent = login
        return True

    def address_of(self, place: str) -> str:
        """Returns the address of a place of this server, such as that of a further page. Raises UserError for one of another server."""
        to = urljoin(self.url, place)
        if _origin(to) != _origin(self.url):
            raise UserError(
                f"{self._named}: the next page is at {redacted_url(to)}: that is another server, and would get headers and login",
                hint="give an address of that server",
            )
        return to

    async def _asked(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str], most_bytes: int, cuts: bool
    ) -> WebAnswer:
        try:
            async with asyncio.timeout(self._timeout_s), self.answering(method, url, body, headers) as response:
                data, cut = await self._read(response, most_bytes, cuts)
                return WebAnswer(response.status_code, _headers(response), data, cut)
        except TimeoutError as error:
            raise TransientError(f"{self._named}: no whole answer in {self._timeout_s:g} s") from error

    @asynccontextmanager
    async def answering(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str | bytes]
    ) -> AsyncIterator[Any]:
        """Sends a request, and gives the `with` block the answer, whose body is not read yet. Called in the thread of the client."""
        with self._explained():
            for _ in range(_REDIRECTS + 1):
                request = self._client.build_request(method, url, content=body or None, headers=headers)
                response = await self._client.send(request, stream=True)
                try:
                    if response.status_code not in _MOVED:
                        yield response
                        return
                    url = self._next(method, url, response)
                finally:
                    await response.aclose()
        raise UserError(f"{self._named} redirects more than {_REDIRECTS} times", hint="give the address at the end")

    def _next(self, method: str, url: str, response: Any) -> str:
        """Returns the address of a redirect. Raises UserError for one that is not followed."""
        to: str = urljoin(url, str(response.headers.get("location", "")))
        kept = method in ("GET", "HEAD") or response.status_code in _SAME_METHOD
        if not kept or _origin(to) != _origin(url):
            raise UserError(
                f"{self._named} redirects with {response.status_code} to {redacted_url(to)}, which is not followed"
                + (
                    " by a request with rows" if not kept else ": it is another server, and would get headers and login"
                ),
                hint="give the address to which it redirects, if it is the right one",
            )
        return to

    async def _read(self, response: Any, most_bytes: int, cuts: bool) -> tuple[bytes, bool]:
        """Returns the body, and whether it is only the beginning. What a body grows to when it is inflated counts."""
        coded = response.headers.get("content-encoding", "identity").strip().lower()
        if coded not in ("identity", "", "gzip", "x-gzip", "deflate"):
            raise UserError(f"{self._named} answers with Content-Encoding {short_repr(coded)}, which is not read")
        inflate = zlib.decompressobj(47) if "gzip" in coded or coded == "deflate" else None
        data = bytearray()
        async for piece in response.aiter_raw():
            if inflate is not None:
                try:
                    piece = inflate.decompress(piece, most_bytes + 1 - len(data))
                except zlib.error as error:
                    raise TransientError(f"{self._named}: the answer cannot be inflated: {error}") from error
            data += piece
            if len(data) > most_bytes:
                if not cuts:
                    raise UserError(
                        f"{self._named}: an answer has more than {most_bytes} bytes", hint="ask for smaller pages"
                    )
                return bytes(data[:most_bytes]), True
        if inflate is not None and data and not inflate.eof:
            raise TransientError(f"{self._named}: the answer ends before it is whole")
        return bytes(data), False

    @property
    def _named(self) -> str:
        return f"{self.what} {self.where}"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Converts errors of the library: into TransientError if they may pass, else into UserError."""
        http = self._http
        try:
            yield
        except TimeoutError:  # of the whole request
            raise
        except (http.HTTPError, http.InvalidURL, http.StreamError, OSError) as error:
            message = f"{self._named}: {type(error).__name__}: {error}"
            if "CERTIFICATE_VERIFY_FAILED" in message:
                hint = "tls= takes an ssl.SSLContext with the certificates that you trust"
                raise UserError(message, hint=hint) from clean_cause(error)
            if isinstance(error, http.UnsupportedProtocol | http.LocalProtocolError | http.InvalidURL):
                raise UserError(message, hint="check address and headers") from clean_cause(error)
            away = isinstance(error, http.ConnectError | http.ConnectTimeout)
            raise (BrokerUnavailable if away else TransientError)(message) from clean_cause(error)


@cache
def _trusted() -> Any:
    """Returns the trusted certificates. They are cached: reading them takes longer than a request."""
    import httpx2

    return httpx2.create_ssl_context()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _end(client: Any) -> None:
    """Cancels all tasks of the running loop, and closes the connections of the client."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for each in others:
        each.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    if client is not None:
        await client.aclose()


def web_address(what: str, url: str, schemes: Collection[str], hint: str) -> tuple[str, str]:
    """Returns an address without its login and fragment, and the value of the header Authorization for the login, or "". What is secret in
    the address is hidden from here on. Raises UserError for one that is not of these schemes. `hint`: an example of one.
    """
    keep_url(url)
    where = redacted_url(url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UserError(f"{what}: {where} is no address: {error}", hint=hint) from clean_cause(error)
    if parts.scheme not in schemes or not parts.hostname or not url.isascii() or not url.isprintable():
        raise UserError(f"{what}: {where} is no address of a web server", hint=hint)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    bare = urlunsplit((parts.scheme, host if port is None else f"{host}:{port}", parts.path or "/", parts.query, ""))
    if parts.username is None:
        return bare, ""
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return bare, f"Basic {b64encode(login.encode()).decode()}"


def _checked(what: str, headers: Mapping[str, HeaderValue]) -> dict[str, HeaderValue]:
    if not isinstance(headers, Mapping):
        raise UserError(f"{what}: headers={short_repr(headers)}", hint='headers={"Authorization": secret("NAME")}')
    for name, value in headers.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name.lower() in _OF_THE_CLIENT:
            raise UserError(f"{what}: {short_repr(name)} is no header that can be set")
        if not (isinstance(value, str | Secret) or callable(value)):
            raise UserError(
                f"{what}: the header {name} has a value of type {type(value).__name__}",
                hint='a text, secret("NAME"), or a function that returns a text',
            )
    return dict(headers)


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _headers(response: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}
