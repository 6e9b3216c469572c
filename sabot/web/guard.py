"""The checks before every page: a wrong request ends here, and every answer gets the headers that bind the browser.

peer       the proxy, if there is one
Host       one of the names under which the server was started, so that a page of another site whose name is made to
           point to this machine (DNS rebinding) gets nothing
session    the cookie names one; without it there is the page that asks for the token. No cookie counts at 127.0.0.1
           and localhost: browsers send it to every port. Programs send the token with each request there
Origin     on each POST: one of these names too
form       on each POST: the token of the session, which only pages of the console contain
role       a session that may only read makes no POST
key        on each action: what the browser got with its session, and the cookie does not give; or the token again
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sabot.base.redaction import scrubbed, visible
from sabot.errors import UserError, short_repr
from sabot.web.access import Access, ConsoleSession

_log = logging.getLogger(__name__)

_SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    # Not no-referrer: with it a browser sends `Origin: null` from the console's own forms. Nothing leaves for another site.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_MOST_BODY = 65_536
_BODY_SECONDS = 5.0
_MOST_QUERY = 4_096
SECRET_HEADER = "x-sabot-proxy-secret"
_MOST_USER = 200  # characters
_MOST_ASKED = 200
_MOST_WHY = 500
ENTER, LEAVE, ASSETS = "/enter", "/leave", "/assets/"
KEY, TOKEN = "action_key", "action_token"
"""The fields of a form with the key of the session, and with the token that a person gives in its place."""

_BEARER = "Bearer "


@dataclass(frozen=True)
class Proxy:
    """The proxy from which all requests come. `user_header`: the header in which it names the user, in small letters, or "". `secret`:
    the value of SECRET_HEADER without which the user header does not count.
    """

    address: str
    user_header: str = ""
    secret: str = ""

    def user(self, headers: Headers) -> str:
        """Returns the user that the proxy names, or "" if it names none, or is not known by its secret."""
        if not self.user_header:
            return ""
        given, users = headers.getlist(SECRET_HEADER), headers.getlist(self.user_header)
        if len(given) != 1 or len(users) != 1 or not hmac.compare_digest(given[0].encode(), self.secret.encode()):
            return ""
        return visible(users[0].strip(), lines=False)[:_MOST_USER]


class Guard:
    """An ASGI application that passes good requests to `pages`, with the session and the fields of a form in their scope:
    `session` and `form`.
    """

    def __init__(
        self,
        pages: ASGIApp,
        access: Access,
        origins: Sequence[str],
        cookie: str,
        *,
        ask: ASGIApp,
        confirm: ASGIApp,
        pass_on: ASGIApp,
        plain: Sequence[str] = (),
        proxy: Proxy | None = None,
    ) -> None:
        """`origins`: the addresses of this server for browsers, as `http://shop-4f2a.localhost:8420`. `cookie`: the name of the cookie.
        `ask`: answers with the page that asks for the token. `confirm`: answers an action without a key with the page that asks for
        the token to do it. `pass_on`: answers a link from another site with a page that goes on from here. `plain`: the addresses at
        which no cookie counts, as `http://127.0.0.1:8420`. `proxy`: the proxy from which all requests come, or None.
        """
        self._pages = pages
        self._access = access
        self._origins = by_host(origins)
        self._plain = by_host(plain)
        self._cookie = cookie
        self._ask = ask
        self._confirm = confirm
        self._pass_on = pass_on
        self._proxy = proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            return

        begun = False

        async def with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in _SECURITY.items():
                    headers[name] = value
            await send(message)

        try:
            answer = await self._refusal(scope, receive)
            await (self._pages if answer is None else answer)(scope, receive, with_headers)
        except ClientDisconnect:
            return  # nobody reads the answer
        except asyncio.CancelledError:
            if not begun:  # the server stops; uvicorn's own answer is a 500, as of a bug
                ended = _text(
                    503, "The app ended before it had answered. It is not known whether this was done.", close=True
                )
                await ended(scope, receive, with_headers)
            raise
        except Exception as error:
            answer = _failed(scope, error)
            if begun:
                raise  # the server ends the connection, so that the client sees that the answer is not whole
            await answer(scope, receive, with_headers)

    async def _refusal(self, scope: Scope, receive: Receive) -> ASGIApp | None:
        """Returns the answer to a request that is not passed on, or None."""
        headers = Headers(scope=scope)
        peer = (scope.get("client") or ("",))[0]
        if self._proxy is not None and peer != self._proxy.address:
            return _text(403, "The console answers its proxy only.")
        hosts = [each.lower() for each in headers.getlist("host")]
        if len(hosts) != 1 or not (hosts[0] in self._origins or hosts[0] in self._plain):
            return _text(421, "The console is not known under this name. Start it with --web-origin URL to allow one.")
        if "transfer-encoding" in headers:
            # A proxy and this server could see two different ends of such a request, and what one takes for its body the other
            # takes for the next request, of somebody else. No browser sends one.
            return _text(400, "The console takes requests with a Content-Length only.", close=True)
        if len(scope["query_string"]) > _MOST_QUERY:
            return _text(414, "The address is too long.")
        path, method = scope["path"], scope["method"]
        session = scope["session"] = self._session(headers, hosts[0])
        if method in ("GET", "HEAD"):
            if path == ENTER or path.startswith(ASSETS) or session is not None:
                return None
            elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site")
            return self._pass_on if elsewhere and headers.get("sec-fetch-mode") == "navigate" else self._ask
        if method != "POST":
            return _text(405, "The console has pages and forms only.")
        if not self._is_own(headers.getlist("origin"), path, session):
            return _text(403, "This form was not sent by a page of the console.")
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                form = scope["form"] = await _form(receive)
        except TimeoutError:
            return _text(408, "The form did not arrive in time.")
        except ClientDisconnect:
            return _text(400, "The form did not arrive whole.")
        except UserError as error:
            return _text(400, error.message)
        if form is None:
            return _text(413, "The form is too large.")
        if path == ENTER:
            return None
        if session is None:
            return self._ask
        key, token = form.pop(KEY, ""), form.pop(TOKEN, "")
        if not session.by_token and not hmac.compare_digest(form.get("form", "").encode(), session.form.encode()):
            return _text(403, "The form has no token of this session. Load the page again.")
        if path == LEAVE:
            return None
        if session.role != "act":
            return _text(403, "This session may only read. Enter with the other token to act.")
        if session.by_token or hmac.compare_digest(key.encode(), self._access.key(session).encode()):
            return None
        return None if self._access.role_of(token.strip()) == "act" else self._confirm

    def _is_own(self, given: Sequence[str], path: str, session: ConsoleSession | None) -> bool:
        """Returns True if a page of this server has sent a form. A program that sends the token with it needs no origin: no page of
        another site can do this.
        """
        if not given:
            return session is not None and session.by_token
        own = {*self._origins.values()} | ({*self._plain.values()} if path == ENTER or session is None else set())
        return len(given) == 1 and any(given[0] in each for each in own)

    def _session(self, headers: Headers, host: str) -> ConsoleSession | None:
        token = headers.get("authorization", "")
        session = self._access.of_token(token.removeprefix(_BEARER)) if token.startswith(_BEARER) else None
        if session is None and host in self._origins:
            try:
                found = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
            except CookieError:
                return None
            session = None if found is None else self._access.session(found.value, host)
        if session is None or self._proxy is None:
            return session
        return replace(session, user=self._proxy.user(headers))


def by_host(origins: Sequence[str]) -> dict[str, frozenset[str]]:
    """Returns the origins of each host, with its port as the header Host has it."""
    hosts = {urlsplit(each).netloc.lower() for each in origins}
    return {host: frozenset(each for each in origins if urlsplit(each).netloc.lower() == host) for host in hosts}


def cookie_name(port: int, app: str) -> str:
    """Returns the name of the cookie of an app: cookies do not know ports, and all consoles are on one host."""
    return f"sabot-{port}-{hashlib.sha256(app.encode()).hexdigest()[:12]}"


async def _form(receive: Receive) -> dict[str, str] | None:
    """Returns the fields of a form; None if the body is too large. Raises ClientDisconnect if the connection ends before
    the form does: without its last fields a form may select more. Raises UserError for a field with two values: which is
    meant, an approval or a refusal, nobody knows.
    """
    body = b""
    while True:
        message: dict[str, Any] = dict(await receive())
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > _MOST_BODY:
            return None
        if not message.get("more_body"):
            break
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=1_000)
    except ValueError:
        return {}
    if twice := next((name for name, values in fields.items() if len(set(values)) > 1), None):
        raise UserError(f"The form has the field {short_repr(twice)} with two values.")
    return {name: values[-1] for name, values in fields.items()}


def _text(status: int, words: str, *, close: bool = False) -> ASGIApp:
    return PlainTextResponse(words + "\n", status, {"connection": "close"} if close else None)


def _failed(scope: Scope, error: Exception) -> ASGIApp:
    """Logs an error of ours in one line, and returns the page that names the line. Requests come from outside: whoever sends many that
    fail must not fill the app's log, so tracebacks are at the level debug.
    """
    number = secrets.token_hex(4)
    raised = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(raised.filename).name}:{raised.lineno}"
    asked = visible(f"{scope['method']} {scope['path']}"[:_MOST_ASKED], lines=False)
    why = visible(scrubbed(f"{type(error).__name__}: {error}")[:_MOST_WHY], lines=False)
    _log.error("error %s of the console: %s: %s (%s)", number, asked, why, where)
    _log.debug("error %s of the console", number, exc_info=error)
    return _text(500, f"This could not be done; the log of the app has error {number}.")
