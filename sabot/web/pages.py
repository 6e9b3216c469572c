"""The pages of the server: entering, leaving, the assets, and the pages of each app below its path."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from sabot.engine.plan.drawing.render import style_rules
from sabot.web.access import SESSION_SECONDS, Access, ConsoleSession
from sabot.web.app_pages import AppPages, OpenTabs, session_of
from sabot.web.guard import ASSETS, ENTER, LEAVE, TOKEN, Guard, Proxy, by_host
from sabot.web.rendering import templates_of
from sabot.web.screens import Screens

_HERE = Path(__file__).parent
_ASSETS = {"console.js": "text/javascript", "console.css": "text/css", "icon.svg": "image/svg+xml"}


_OF_QUERY = "%&=+;:@/?!$'()*,-._~"  # the characters that a query has as they are


class Pages:
    """All pages of a server. Used by its thread."""

    def __init__(
        self,
        apps: Mapping[str, Screens],
        access: Access,
        cookie: str,
        origins: list[str],
        *,
        plain: list[str],
        proxy: Proxy | None = None,
        title: str,
    ) -> None:
        """`apps`: the screens of each app, by the path below which they are: "" if there is only one. `cookie`, `origins`, `plain`,
        `proxy`: as in `Guard`; the first origin is the one to which browsers are sent. `title`: the name in the head of pages that
        are of no app.
        """
        self._own = origins[0]
        self._plain = by_host(plain)
        # Whether a browser came by TLS follows from the name under which it came, and not from a header that anybody can send.
        self._secure = {host for host, known in by_host(origins).items() if any(map(_is_tls, known))}
        self._all_secure = proxy is not None and any(map(_is_tls, origins))
        self._title = title
        self._access = access
        self._cookie = cookie
        self._tabs = OpenTabs()
        self._templates = templates_of("")
        self._assets = {name: (_HERE / "assets" / name).read_bytes() for name in _ASSETS}
        self._assets["console.css"] += style_rules().encode()
        self._apps = [
            AppPages(screens, access, templates_of(root), self._tabs, root=root) for root, screens in apps.items()
        ]
        routes = [
            Route(ENTER, self._enter, methods=["GET", "POST"]),
            Route(LEAVE, self._leave, methods=["POST"]),
            *(Route(f"{ASSETS}{name}", self._asset) for name in _ASSETS),
            *(route for pages in self._apps for route in pages.routes()),
        ]
        # A Router, and no Starlette app: this raises each error again behind the guard, which answers all of them.
        router = Router(routes, redirect_slashes=False, default=self._not_found)
        self.app: ASGIApp = Guard(
            router,
            access,
            origins,
            cookie,
            ask=self._ask,
            confirm=self._confirm,
            pass_on=self._pass_on,
            plain=plain,
            proxy=proxy,
        )

    def tick(self) -> None:
        """Publishes new figures to the open pages."""
        self._tabs.tick()

    def end(self, words: str) -> None:
        """Ends the streams of the open pages, which then say `words`."""
        self._tabs.end(words)

    async def _enter(self, request: Request) -> Response:
        """Gives a session for the token in the address or in the form."""
        form = request.scope.get("form", {})
        token = form.get("token") or request.query_params.get("token", "")
        host = request.headers["host"].lower()
        if host in self._plain and self._access.role_of(token.strip()) is not None:
            # No session at a name whose cookies every port gets: it begins at the app's own.
            return self._html("go.html", 200, session=None, target=f"{self._own}{ENTER}?token={quote(token.strip())}")
        session = self._access.enter(token.strip(), host) if token else None
        if session is None:
            words = "This is not the token of this app." if token else ""
            return self._html("enter.html", 401, session=None, problem=words)
        # No redirect: a browser that comes from another site sends a strict cookie only with the next request of this page.
        key = self._access.key(session) if session.role == "act" else ""
        answer = self._html("go.html", 200, session=session, target="/", key=key)
        answer.set_cookie(
            self._cookie,
            session.secret,
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            secure=self._all_secure or host in self._secure,
        )
        return answer

    async def _leave(self, request: Request) -> Response:
        self._access.leave(session_of(request))
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(self._cookie)
        return answer

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/" or scope["method"] == "GET":
            await self._html("enter.html", 401, session=None, problem="")(scope, receive, send)
            return
        await PlainTextResponse("There is no session.\n", 401)(scope, receive, send)

    async def _confirm(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Asks for the token, to do what a form asks for."""
        facts = {"session": scope["session"], "path": scope["path"], "fields": scope["form"], "token": TOKEN}
        await self._html("confirm.html", 403, **facts)(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = own_target(scope["path"], scope["query_string"])
        await self._html("go.html", 200, session=None, target=target)(scope, receive, send)

    async def _asset(self, request: Request) -> Response:
        name = request.url.path.removeprefix(ASSETS)
        return Response(self._assets[name], media_type=_ASSETS[name])

    def _html(self, template: str, status: int, *, session: ConsoleSession | None, **facts: Any) -> HTMLResponse:
        shared = {"app": self._title, "screens": {}, "page": "", "events": "", "parts": {}, "badges": {}, "key": ""}
        text = self._templates.get_template(template).render({**shared, "session": session, **facts})
        return HTMLResponse(text, status)

    async def _not_found(self, scope: Scope, receive: Receive, send: Send) -> None:
        session, back = scope.get("session"), {"path": "/", "title": self._title}
        answer = self._html("said.html", 404, session=session, said="There is no such page.", good=False, back=back)
        await answer(scope, receive, send)


def _is_tls(origin: str) -> bool:
    return origin.startswith("https://")


def own_target(path: str, query: bytes) -> str:
    """Returns the address, of this server, of a decoded path and a query. The path is quoted again, and begins with one slash: "//host"
    and "/\\host" name another host, and browsers leave out tabs and line breaks, as in "/\t/host".
    """
    target = "/" + quote(path.lstrip("/\\\t\r\n "), errors="replace")
    return f"{target}?{quote(query, safe=_OF_QUERY)}" if query else target
