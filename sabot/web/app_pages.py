"""The pages of one app: its screens as pages and tables, its actions, and the streams of fragments that keep pages up to date.

A page is whole when it is loaded. Its fragments, the elements with `data-part`, are rendered by the same templates once a
second for all viewers together, and are sent to those who do not have them yet.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar, get_args
from urllib.parse import urlencode

from jinja2 import Environment
from markupsafe import Markup
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sabot.base.redaction import scrubbed
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import CorruptCheckpoint, CorruptJournal, SabotError, TransientError, UserError
from sabot.web.access import Access, ConsoleSession
from sabot.web.screen import BY, FORM, Download, Screen, Table
from sabot.web.screens import Screens
from sabot.web.texts import TableForm, moment_text, table_text

_log = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_TABS = 32
_SEND_SECONDS = 5.0  # for a browser to take an event
_FORGOTTEN_SECONDS = 60.0
AWAY_SECONDS = 5
"""After so many seconds a page that misses a server loads itself again."""

_NOTICE = "notice"  # the fragment that all pages have


class OpenTabs:
    """The open pages of a server, and its ticks, one each second. `ended`: why there will be no further tick, in words, or ""."""

    def __init__(self) -> None:
        self.number = 0
        self.ended = ""
        self.open: set[object] = set()
        self._ticked = asyncio.Event()

    def tick(self) -> None:
        """Wakes those that wait for the next tick."""
        self.number += 1
        self._ticked.set()
        self._ticked = asyncio.Event()

    def end(self, words: str) -> None:
        """Wakes those that wait, for the last time."""
        self.ended = words
        self._ticked.set()

    async def wait(self) -> None:
        """Waits for the next tick, or the end."""
        await self._ticked.wait()


class _Away:
    """The servers that do not answer, by the first words of the errors, which name them: since when, and when that was seen last; and by
    the name of a screen the server that it has missed.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}
        self._missed: dict[str, str] = {}

    def since(self, screen: str, error: TransientError) -> float:
        """Returns since when the server of this error does not answer, as far as the pages have seen."""
        what, now = error.message.partition(": ")[0], SYSTEM_CLOCK.time()
        since, last = self._seen.get(what, (now, now))
        if now - last > _FORGOTTEN_SECONDS:  # nobody has looked meanwhile
            since = now
        if len(self._seen) > _MOST_TABS:
            self._seen.clear()
        self._seen[what], self._missed[screen] = (since, now), what
        return since

    def answers(self, screen: str) -> None:
        """Notes that a screen was read."""
        if (what := self._missed.pop(screen, None)) is not None:
            self._seen.pop(what, None)


class AppPages:
    """The pages of one app. Used by the thread of the server."""

    def __init__(self, screens: Screens, access: Access, templates: Environment, tabs: OpenTabs, *, root: str) -> None:
        """`root`: the path below which the pages are, or ""."""
        self._screens = screens
        self._access = access
        self._templates = templates
        self._tabs = tabs
        self._root = root
        self._made: dict[tuple[str, str, str], tuple[int, dict[str, str]]] = {}
        self._away = _Away()

    @property
    def _home(self) -> Screen:
        """The first screen."""
        return next(iter(self._screens.screens.values()))

    def _list_of(self, screen: Screen) -> Screen:
        """Returns the screen with the list of which a screen shows one item, such as /letters for /letter, or else the first screen."""
        one = f"/{screen.path.split('/')[1]}"
        listed = (each for each in self._screens.screens.values() if each.listed and each.path == f"{one}s")
        return next(listed, self._home)

    def routes(self) -> Iterator[Route]:
        """Yields the routes of all pages."""
        root, screens = self._root, self._screens.screens
        yield Route(f"{root}/events/{{page}}", self._events_page)
        for name, screen in screens.items():
            yield Route(f"{root}{screen.path}", self._page_of(name))
            if screen.rows is not None:
                for form in get_args(TableForm):
                    yield Route(f"{root}{screen.path}.{form}", self._table_of(screen, screen.rows, form))
            if screen.file is not None:
                yield Route(f"{root}{screen.path}.bin", self._file_of(screen, screen.file))
        for name in self._screens.actions:
            yield Route(f"{root}/act/{name}", self._action_of(name), methods=["POST"])
        yield Route(f"{root}/{{rest:path}}", self._not_found, methods=["GET", "POST"])

    def _page_of(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        async def page(request: Request) -> Response:
            session, query = session_of(request), _query(request)
            screen = self._screens.screens[name]
            if not screen.open_to(session):
                return self._for_acting(session)
            parts = self._parts(name, query, session)
            try:
                more = {} if screen.more is None else await _while_wanted(screen.more(query), request)
            except UserError as error:
                back = self._list_of(screen)
                said = scrubbed(str(error))
                return self._html("said.html", _status_of(error), session=session, said=said, good=False, back=back)
            except TransientError as error:
                since, said = moment_text(self._away.since(name, error)), scrubbed(str(error))
                answer = self._html("away.html", 503, session=session, said=said, since=since, page=name)
                answer.headers["retry-after"] = f"{AWAY_SECONDS}"
                return answer
            self._away.answers(name)
            events = f"{self._root}/events/{name}?{urlencode(query)}"
            marked = {part: Markup(text) for part, text in parts.items()}  # rendered by the templates, which escape
            return self._html(
                f"{name}.html", 200, session=session, parts=marked, events=events, page=name, query=query, **more
            )

        return page

    def _table_of(self, screen: Screen, rows: Table, form: TableForm) -> Callable[..., Awaitable[Response]]:
        async def table(request: Request) -> Response:
            if not screen.open_to(session := session_of(request)):
                return self._for_acting(session)
            try:
                made = rows({**_query(request), FORM: form})
                found = made if isinstance(made, list) else await _while_wanted(made, request)
            except (UserError, TransientError) as error:
                return _unread(error)
            text = found if isinstance(found, str) else table_text(found, form)
            if form == "json":
                return Response(text, media_type="application/json")
            return Response(text, media_type="text/csv", headers={"content-disposition": "attachment"})

        return table

    def _file_of(
        self, screen: Screen, file: Callable[[dict[str, str]], Awaitable[Download]]
    ) -> Callable[..., Awaitable[Response]]:
        async def save(request: Request) -> Response:
            if not screen.open_to(session := session_of(request)):
                return self._for_acting(session)
            try:
                found = await _while_wanted(file(_query(request)), request)
            except (UserError, TransientError) as error:
                return _unread(error)
            headers = {"content-disposition": f'attachment; filename="{found.name}"'}
            return Response(found.data, media_type="application/octet-stream", headers=headers)

        return save

    def _parts(self, name: str, query: dict[str, str], session: ConsoleSession) -> dict[str, str]:
        """Returns the fragments of a page, rendered once for each tick of the figures."""
        # the forms of a part have the session's token
        key, number = ((name, urlencode(query), session.form), self._tabs.number)
        known = self._made.get(key)
        if known is None or known[0] != number:
            if len(self._made) > _MOST_TABS:
                self._made.clear()
            screen = self._screens.screens[name]
            facts = {"session": session, "query": query, "notice": self._screens.app.notice(), **screen.facts(query)}
            parts = [_NOTICE, *screen.parts]
            known = number, {part: self._templates.get_template(f"parts/{part}.html").render(facts) for part in parts}
            self._made[key] = known
        return known[1]

    def _html(self, template: str, status: int, *, session: ConsoleSession | None, **facts: Any) -> HTMLResponse:
        screens = {
            name: each for name, each in self._screens.screens.items() if session is not None and each.open_to(session)
        }
        badges = {} if session is None else self._badges(session)
        shared = {
            "app": self._screens.app.id,
            "run": self._screens.app.figures.run,
            "screens": screens,
            "page": "",
            "events": "",
            "parts": {},
            "badges": badges,
        }
        text = self._templates.get_template(template).render({**shared, "session": session, **facts})
        return HTMLResponse(text, status)

    def _badges(self, session: ConsoleSession) -> dict[str, int]:
        """Returns the numbers in the head of the pages, by the name of the screen."""
        screens = self._screens.screens.items()
        return {name: each.badge() for name, each in screens if each.badge is not None and each.open_to(session)}

    def _action_of(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        async def act(request: Request) -> Response:
            session = session_of(request)
            try:
                said, good = await self._screens.actions[name](request.scope["form"] | {BY: session.principal}), True
            except SabotError as error:
                said, good = scrubbed(str(error)), False
            back = request.scope["form"].get("back", "")
            page = self._screens.screens.get(back, self._home)
            return self._html("said.html", 200 if good else 409, session=session, said=said, good=good, back=page)

        return act

    def _for_acting(self, session: ConsoleSession) -> Response:
        words, back = "This screen can show data. Enter with the token to act.", self._home
        return self._html("said.html", 403, session=session, said=words, good=False, back=back)

    async def _not_found(self, request: Request) -> Response:
        words, back, session = "There is no such page.", self._home, request.scope["session"]
        return self._html("said.html", 404, session=session, said=words, good=False, back=back)

    # -- events -------------------------------------------------------------------------------------------------------

    async def _events_page(self, request: Request) -> Response:
        name = request.path_params["page"]
        if name not in self._screens.screens:
            return PlainTextResponse("There is no such page.\n", 404)
        if not self._screens.screens[name].open_to(session_of(request)):
            return PlainTextResponse("This session may only read.\n", 403)
        last_id = request.headers.get("last-event-id", "")
        return _Events(self, self._tabs, name, _query(request), session_of(request), last_id)

    async def stream(self, events: "_Events", send: Callable[[bytes], Awaitable[None]]) -> None:
        """Sends an event for each tick, with the fragments that have changed, until the session, the connection or the server ends. The
        last event says that the server has ended.
        """
        sent: dict[str, str] = {}
        last = events.last_id
        while not self._tabs.ended and self._access.lasts(events.session):
            run = self._screens.app.figures.run
            if last != (now := f"{run}:{self._tabs.number}"):
                parts = self._parts(events.page, events.query, events.session)
                changed = {part: text for part, text in parts.items() if sent.get(part) != text}
                sent, last = dict(parts), now
                badges = self._badges(events.session)
                data = json.dumps({"run": run, "parts": changed, "badges": badges})
                async with asyncio.timeout(_SEND_SECONDS):
                    await send(f"id: {last}\ndata: {data}\n\n".encode())
            await self._tabs.wait()
        if self._tabs.ended:
            async with asyncio.timeout(_SEND_SECONDS):
                await send(f"event: ended\ndata: {self._tabs.ended}\n\n".encode())


class _Events(Response):
    """The stream of events of one tab."""

    def __init__(
        self, pages: AppPages, tabs: OpenTabs, page: str, query: dict[str, str], session: ConsoleSession, last_id: str
    ) -> None:
        super().__init__(media_type="text/event-stream")
        self.page = page
        self.query = query
        self.session = session
        self.last_id = last_id
        self._pages = pages
        self._tabs = tabs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Counted before anything is awaited: else many that come at once find a place all.
        if len(self._tabs.open) >= _MOST_TABS:
            words = f"{_MOST_TABS} pages are open already. Reload the page to see new figures.\n"
            await PlainTextResponse(words, 503)(scope, receive, send)
            return
        self._tabs.open.add(self)
        try:
            await self._send(receive, send)
        finally:
            self._tabs.open.discard(self)

    async def _send(self, receive: Receive, send: Send) -> None:
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


def _unread(error: SabotError) -> Response:
    """Returns the answer in place of a table or a file that cannot be read, or not now."""
    headers = {"retry-after": f"{AWAY_SECONDS}"} if isinstance(error, TransientError) else None
    return PlainTextResponse(f"{scrubbed(str(error))}\n", _status_of(error), headers)


def _status_of(error: SabotError) -> int:
    """Returns the status of an answer in place of a page, a table or a file: it cannot be read now, is damaged, or is not there."""
    if isinstance(error, TransientError):
        return 503
    return 500 if isinstance(error, CorruptJournal | CorruptCheckpoint) else 404


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


def session_of(request: Request) -> ConsoleSession:
    """Returns the session of a request that the guard has passed."""
    session = request.scope["session"]
    assert isinstance(session, ConsoleSession)  # the guard has refused requests without one
    return session


def _query(request: Request) -> dict[str, str]:
    """Returns the parameters of the address, the last of several values of one name. The guard bounds their length."""
    return dict(request.query_params)
