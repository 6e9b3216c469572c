"""The checks before every page: a wrong request ends here, and every answer gets the headers that bind the browser.

Host       one of the names under which the server was started, so that a page of another site whose name is made to
           point to this machine (DNS rebinding) gets nothing
Origin     on each POST: one of these names too
session    the cookie names one; without it there is the page that asks for the token
form       on each POST: the token of the session, which only pages of the console contain
role       a session that may only read makes no POST
"""

import asyncio
import hashlib
import hmac
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sabot.web.access import Access, ConsoleSession

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
ENTER, LEAVE, ASSETS = "/enter", "/leave", "/assets/"


class Guard:
    """An ASGI application that passes good requests to `pages`, with the session and the fields of a form in their scope:
    `session` and `form`.
    """

    def __init__(
        self, pages: ASGIApp, access: Access, origins: Sequence[str], cookie: str, *, ask: ASGIApp, pass_on: ASGIApp
    ) -> None:
        """`origins`: the addresses of this server, as `http://127.0.0.1:8420`. `cookie`: the name of the cookie. `ask`: answers
        with the page that asks for the token. `pass_on`: answers a link from another site with a page that goes on from here.
        """
        self._pages = pages
        self._access = access
        self._origins = set(origins)
        self._hosts = {urlsplit(each).netloc.lower() for each in origins}
        self._cookie = cookie
        self._ask = ask
        self._pass_on = pass_on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in _SECURITY.items():
                    headers[name] = value
            await send(message)

        answer = await self._refusal(scope, receive)
        await (self._pages if answer is None else answer)(scope, receive, with_headers)

    async def _refusal(self, scope: Scope, receive: Receive) -> ASGIApp | None:
        """Returns the answer to a request that is not passed on, or None."""
        headers = Headers(scope=scope)
        if [each.lower() for each in headers.getlist("host")] not in [[host] for host in self._hosts]:
            return _text(421, "The console is not known under this name. Start it with --web-origin URL to allow one.")
        if len(scope["query_string"]) > _MOST_QUERY:
            return _text(414, "The address is too long.")
        path, method = scope["path"], scope["method"]
        session = scope["session"] = self._session(headers)
        if method in ("GET", "HEAD"):
            if path == ENTER or path.startswith(ASSETS) or session is not None:
                return None
            elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site")
            return self._pass_on if elsewhere and headers.get("sec-fetch-mode") == "navigate" else self._ask
        if method != "POST":
            return _text(405, "The console has pages and forms only.")
        if headers.getlist("origin") not in [[each] for each in self._origins]:
            return _text(403, "This form was not sent by a page of the console.")
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                form = scope["form"] = await _form(receive)
        except TimeoutError:
            return _text(408, "The form did not arrive in time.")
        if form is None:
            return _text(413, "The form is too large.")
        if path == ENTER:
            return None
        if session is None:
            return self._ask
        if not hmac.compare_digest(form.get("form", "").encode(), session.form.encode()):
            return _text(403, "The form has no token of this session. Load the page again.")
        if session.role != "act" and path != LEAVE:
            return _text(403, "This session may only read. Enter with the other token to act.")
        return None

    def _session(self, headers: Headers) -> ConsoleSession | None:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return None
        return None if found is None else self._access.session(found.value)


def cookie_name(port: int, app: str) -> str:
    """Returns the name of the cookie of an app: cookies do not know ports, and all consoles are on one host."""
    return f"sabot-{port}-{hashlib.sha256(app.encode()).hexdigest()[:12]}"


async def _form(receive: Receive) -> dict[str, str] | None:
    """Returns the fields of a form, the last of several values of one name; None if the body is too large."""
    body = b""
    while True:
        message: dict[str, Any] = dict(await receive())
        body += message.get("body", b"")
        if len(body) > _MOST_BODY:
            return None
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            break
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=1_000)
    except ValueError:
        return {}
    return {name: values[-1] for name, values in fields.items()}


def _text(status: int, words: str) -> ASGIApp:
    return PlainTextResponse(words + "\n", status)
