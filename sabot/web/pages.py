"""The pages of the console: routes, templates, and the stream of fragments that keeps a page up to date.

A page is whole when it is loaded. Its fragments, the elements with `data-part`, are rendered by the same templates once a
second for all viewers together, and are sent to those who do not have them yet.
"""

import asyncio
import csv
import io
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sabot.errors import SabotError, UserError
from sabot.plan.drawing import style_rules
from sabot.redaction import scrubbed
from sabot.web import texts
from sabot.web.access import Access, ConsoleSession
from sabot.web.charts import bar
from sabot.web.guard import ASSETS, ENTER, LEAVE, Guard
from sabot.web.screen import BY, Rows, Screen
from sabot.web.screens import Screens

_log = logging.getLogger(__name__)

T = TypeVar("T")

_HERE = Path(__file__).parent
_MOST_TABS = 32
_SEND_SECONDS = 5.0  # for a browser to take an event
_ASSETS = {"console.js": "text/javascript", "console.css": "text/css", "icon.svg": "image/svg+xml"}


class Pages:
    """The pages of one app. Used by the thread of the server."""

    def __init__(self, screens: Screens, access: Access, cookie: str, origins: list[str]) -> None:
        """`cookie`, `origins`: as in `Guard`."""
        self._screens = screens
        self._access = access
        self._cookie = cookie
        self._tabs: set[object] = set()
        self._made: dict[tuple[str, str, str], tuple[int, dict[str, str]]] = {}
        self._ticked = asyncio.Condition()
        loader = FileSystemLoader(_HERE / "templates")
        self._templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, auto_reload=False)
        self._templates.globals.update(bar=bar)
        self._templates.filters.update(
            number=texts.number, share=texts.share, nbytes=texts.nbytes, duration=texts.duration, moment=texts.moment
        )
        self._assets = {name: (_HERE / "assets" / name).read_bytes() for name in _ASSETS}
        self._assets["console.css"] += style_rules().encode()
        routes = [
            Route(ENTER, self._enter, methods=["GET", "POST"]),
            Route(LEAVE, self._leave, methods=["POST"]),
            Route("/events/{page}", self._events_page),
            *(Route(f"{ASSETS}{name}", self._asset) for name in _ASSETS),
            *(Route(screen.path, self._page_of(name)) for name, screen in screens.screens.items()),
            *(
                Route(f"{screen.path}.{form}", self._table_of(screen, screen.rows, form))
                for screen in screens.screens.values()
                if screen.rows is not None
                for form in ("csv", "json")
            ),
            *(Route(f"/act/{name}", self._action_of(name), methods=["POST"]) for name in screens.actions),
        ]
        handlers: dict[Any, Any] = {404: self._not_found, ClientDisconnect: _unread, Exception: self._failed}
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.router.redirect_slashes = False
        self.app: ASGIApp = Guard(app, access, origins, cookie, ask=self._ask, pass_on=self._pass_on)

    async def tick(self) -> None:
        """Publishes new figures to the open pages."""
        async with self._ticked:
            self._ticked.notify_all()

    # -- entering -----------------------------------------------------------------------------------------------------

    async def _enter(self, request: Request) -> Response:
        """Gives a session for the token in the address or in the form."""
        form = request.scope.get("form", {})
        token = form.get("token") or request.query_params.get("token", "")
        session = self._access.enter(token.strip()) if token else None
        if session is None:
            words = "This is not the token of this app." if token else ""
            return self._html("enter.html", 401, session=None, problem=words)
        # No redirect: a browser that comes from another site sends a strict cookie only with the next request of this page.
        answer = self._html("go.html", 200, session=session, target="/")
        answer.set_cookie(self._cookie, session.secret, max_age=30 * 86_400, httponly=True, samesite="strict")
        return answer

    async def _leave(self, request: Request) -> Response:
        self._access.leave(_session(request))
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(self._cookie)
        return answer

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/" or scope["method"] == "GET":
            await self._html("enter.html", 401, session=None, problem="")(scope, receive, send)
            return
        await PlainTextResponse("There is no session.\n", 401)(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = scope["query_string"].decode("ascii", "replace")
        path = "/" + scope["path"].lstrip("/\\")  # two slashes would name another host
        target = path + (f"?{query}" if query else "")
        await self._html("go.html", 200, session=None, target=target)(scope, receive, send)

    # -- pages --------------------------------------------------------------------------------------------------------

    async def _asset(self, request: Request) -> Response:
        name = request.url.path.removeprefix(ASSETS)
        return Response(self._assets[name], media_type=_ASSETS[name])

    def _page_of(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        async def page(request: Request) -> Response:
            session, query = _session(request), _query(request)
            screen = self._screens.screens[name]
            if not screen.open_to(session):
                return self._for_acting(session)
            parts = self._parts(name, query, session)
            try:
                more = {} if screen.more is None else await _while_wanted(screen.more(query), request)
            except UserError as error:
                back = self._screens.screens["app"]
                return self._html("said.html", 404, session=session, said=scrubbed(str(error)), good=False, back=back)
            events = f"/events/{name}?{urlencode(query)}"
            marked = {part: Markup(text) for part, text in parts.items()}  # rendered by the templates, which escape
            return self._html(
                f"{name}.html", 200, session=session, parts=marked, events=events, page=name, query=query, **more
            )

        return page

    def _table_of(
        self, screen: Screen, rows: Callable[[dict[str, str]], Rows | Awaitable[Rows]], form: str
    ) -> Callable[..., Awaitable[Response]]:
        async def table(request: Request) -> Response:
            if not screen.open_to(session := _session(request)):
                return self._for_acting(session)
            try:
                made = rows(_query(request))
                found = await _while_wanted(made, request) if isinstance(made, Awaitable) else made
            except UserError as error:
                return PlainTextResponse(f"{scrubbed(str(error))}\n", 404)
            if form == "json":
                return Response(json.dumps(found, ensure_ascii=False), media_type="application/json")
            text = io.StringIO()
            writer = csv.writer(text)
            writer.writerows([found[0].keys(), *(map(cell, each.values()) for each in found)] if found else [])
            return Response(text.getvalue(), media_type="text/csv", headers={"content-disposition": "attachment"})

        return table

    def _parts(self, name: str, query: dict[str, str], session: ConsoleSession) -> dict[str, str]:
        """Returns the fragments of a page, rendered once for each tick of the figures."""
        key, number = (name, urlencode(query), session.role), self._screens.figures.last.number
        known = self._made.get(key)
        if known is None or known[0] != number:
            if len(self._made) > _MOST_TABS:
                self._made.clear()
            screen = self._screens.screens[name]
            facts = {"session": session, "query": query, **screen.facts(query)}
            known = (
                number,
                {part: self._templates.get_template(f"parts/{part}.html").render(facts) for part in screen.parts},
            )
            self._made[key] = known
        return known[1]

    def _html(self, template: str, status: int, *, session: ConsoleSession | None, **facts: Any) -> HTMLResponse:
        screens = {
            name: each for name, each in self._screens.screens.items() if session is not None and each.open_to(session)
        }
        shared = {"app": self._screens.app.id, "screens": screens, "page": "", "events": ""}
        text = self._templates.get_template(template).render({**shared, "session": session, **facts})
        return HTMLResponse(text, status)

    def _action_of(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        async def act(request: Request) -> Response:
            session = _session(request)
            try:
                said, good = await self._screens.actions[name](request.scope["form"] | {BY: session.principal}), True
            except SabotError as error:
                said, good = scrubbed(str(error)), False
            back = request.scope["form"].get("back", "")
            page = self._screens.screens[back if back in self._screens.screens else "app"]
            return self._html("said.html", 200 if good else 409, session=session, said=said, good=good, back=page)

        return act

    def _for_acting(self, session: ConsoleSession) -> Response:
        words, back = "This screen can show data. Enter with the token to act.", self._screens.screens["app"]
        return self._html("said.html", 403, session=session, said=words, good=False, back=back)

    async def _not_found(self, request: Request, error: Exception) -> Response:
        session = request.scope.get("session")
        back = self._screens.screens["app"]
        return self._html("said.html", 404, session=session, said="There is no such page.", good=False, back=back)

    async def _failed(self, request: Request, error: Exception) -> Response:
        _log.error("the page %s could not be made", request.url.path, exc_info=error)
        return PlainTextResponse("The page could not be made; the log of the app has the error.\n", 500)

    # -- events -------------------------------------------------------------------------------------------------------

    async def _events_page(self, request: Request) -> Response:
        name = request.path_params["page"]
        if name not in self._screens.screens:
            return PlainTextResponse("There is no such page.\n", 404)
        if not self._screens.screens[name].open_to(_session(request)):
            return PlainTextResponse("This session may only read.\n", 403)
        if len(self._tabs) >= _MOST_TABS:
            return PlainTextResponse(f"{_MOST_TABS} pages are open already. Reload the page to see new figures.\n", 503)
        return _Events(self, name, _query(request), _session(request), request.headers.get("last-event-id", ""))

    async def stream(self, events: "_Events", send: Callable[[bytes], Awaitable[None]]) -> None:
        """Sends an event for each tick, with the fragments that have changed, until the session or the connection ends."""
        sent: dict[str, str] = {}
        figures, last = self._screens.figures, events.last_id
        self._tabs.add(events)
        try:
            while self._access.session(events.session.secret) is not None:
                number = figures.last.number
                if last != f"{figures.run}:{number}":
                    parts = self._parts(events.page, events.query, events.session)
                    changed = {part: text for part, text in parts.items() if sent.get(part) != text}
                    sent, last = dict(parts), f"{figures.run}:{number}"
                    data = json.dumps({"run": figures.run, "parts": changed})
                    async with asyncio.timeout(_SEND_SECONDS):
                        await send(f"id: {last}\ndata: {data}\n\n".encode())
                async with self._ticked:
                    await self._ticked.wait()
        finally:
            self._tabs.discard(events)


class _Events(Response):
    """The stream of events of one tab."""

    def __init__(self, pages: Pages, page: str, query: dict[str, str], session: ConsoleSession, last_id: str) -> None:
        super().__init__(media_type="text/event-stream")
        self.page = page
        self.query = query
        self.session = session
        self.last_id = last_id
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def body(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        streaming, waiting = (
            asyncio.ensure_future(self._pages.stream(self, body)),
            asyncio.ensure_future(_gone(receive)),
        )
        try:
            await asyncio.wait({streaming, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (streaming, waiting):
                each.cancel()
            done = await asyncio.gather(streaming, waiting, return_exceptions=True)
        if isinstance(done[0], Exception) and not isinstance(done[0], TimeoutError):
            _log.error("the page %s could not be kept up to date", self.page, exc_info=done[0])
        if not isinstance(done[0], TimeoutError):
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    """Waits until the browser has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _while_wanted(work: Awaitable[T], request: Request) -> T:
    """Returns the result of the work. If the browser gives the request up, the work is cancelled. Raises ClientDisconnect then."""
    doing, waiting = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        for each in (doing, waiting):
            each.cancel()
        await asyncio.gather(doing, waiting, return_exceptions=True)


async def _unread(request: Request, error: Exception) -> Response:
    """Returns the answer to a request that the browser has given up: nobody reads it."""
    return Response(status_code=499)


def _session(request: Request) -> ConsoleSession:
    session = request.scope["session"]
    assert isinstance(session, ConsoleSession)  # the guard has refused requests without one
    return session


def _query(request: Request) -> dict[str, str]:
    """Returns the parameters of the address, the last of several values of one name, cut to a length for a search box."""
    found: Mapping[str, str] = request.query_params
    return {name[:40]: value[:200] for name, value in list(found.items())[:20]}


def cell(value: object) -> object:
    """Returns a value for CSV. A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
