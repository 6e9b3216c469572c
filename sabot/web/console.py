"""The console: a server with the pages of the app that runs in this process, or of apps elsewhere."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sabot.base.http_server import LimitedServer
from sabot.base.redaction import redacted_url
from sabot.clock import SYSTEM_CLOCK
from sabot.web.access import Access
from sabot.web.guard import Proxy, cookie_name
from sabot.web.index_screen import index_of
from sabot.web.kept_app import AppPlaces, KeptApp
from sabot.web.pages import Pages
from sabot.web.payloads import Payloads
from sabot.web.reader import ConsoleReader
from sabot.web.screens import ScreensOfApp
from sabot.web.shown import LiveApp, ShownApp

if TYPE_CHECKING:
    from sabot.app import App

_log = logging.getLogger(__name__)

HOST = "127.0.0.1"
DEFAULT_PORT = 8420
_TICK_SECONDS = 1.0


class ConsoleSite:
    """A server with the pages of some apps. It is open from its construction to `close`."""

    _ended = "The app has ended"  # what open pages say after `close`

    def __init__(
        self,
        apps: Mapping[str, ShownApp],
        access: Access,
        *,
        title: str,
        port: int = DEFAULT_PORT,
        listen: str = HOST,
        origins: tuple[str, ...] = (),
        proxy: Proxy | None = None,
        refresh: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`apps`: by the path below which each is, "" for a single one. `title`: names the server, and its cookie. `port`: the wanted port;
        the next free one is taken if it is not free, and any free one for 0. `listen`: the address to listen at. `origins`: further
        addresses under which browsers reach this server, such as that of a tunnel. `proxy`: the proxy from which all requests come, or
        None. `refresh`: reads anew what the pages show; called each second.

        Raises UserError if no port is free.
        """
        self.access = access
        self._refresh = refresh
        self._reader = ConsoleReader()
        self._server = LimitedServer(port, listen, name="the console", option="--web-port")
        self.port = self._server.port
        address = f"http://{listen}:{self.port}"
        given = [each.rstrip("/") for each in origins]
        plain = [address, f"http://localhost:{self.port}"]
        own = f"http://{access.host_name(title)}:{self.port}"
        if proxy is not None:  # many proxies send the address at which they ask as Host
            known, plain = [*given, *plain], []
        elif listen != HOST:  # a name below localhost leads to 127.0.0.1 only
            known, plain = [address, *given], plain[1:]
        else:
            known, plain = [own, *given], [each for each in plain if each not in given]
        self._shown_address = known[0]
        self.screens = {root: ScreensOfApp(app, self._reader, root) for root, app in apps.items()}
        index = {} if "" in apps else {"": index_of(title, apps)}  # the last, because its routes catch all paths
        self._pages = Pages(
            {**self.screens, **index},
            access,
            cookie_name(self.port, title),
            known,
            plain=plain,
            proxy=proxy,
            title=title,
        )
        self._server.start(self._pages.app, self._tick, lambda: self._pages.end(self._ended))

    @property
    def link(self) -> str:
        """The address with the token of a session that may act."""
        return f"{self._shown_address}/enter?token={self.access.token('act')}"

    @property
    def reading_link(self) -> str:
        """The address with the token of a session that may only read."""
        return f"{self._shown_address}/enter?token={self.access.token('read')}"

    def close(self) -> None:
        """Tells open pages that it is over, and stops the server. Blocks up to three seconds."""
        self._server.close()

    async def _tick(self) -> None:
        """Publishes the figures once a second, until the server stops."""
        following = SYSTEM_CLOCK.monotonic()
        try:
            while True:
                try:
                    if self._refresh is not None:
                        await self._refresh()
                    self._pages.tick()
                except Exception:
                    _log.exception("the console could not show new figures")
                following = max(following + _TICK_SECONDS, SYSTEM_CLOCK.monotonic())
                await asyncio.sleep(following - SYSTEM_CLOCK.monotonic())
        finally:
            self._reader.close()


class Console(ConsoleSite):
    """The console of an app of this process."""

    def __init__(
        self,
        app: "App",
        *,
        port: int = DEFAULT_PORT,
        listen: str = HOST,
        origins: tuple[str, ...] = (),
        payloads: Payloads | None = None,
        program: Sequence[str] = (),
        proxy: Proxy | None = None,
    ) -> None:
        """`port`, `listen`, `origins`, `proxy`: as in `ConsoleSite`. `payloads`: the values that pages may show; default: none.
        `program`: as in `ShownApp`.

        Raises UserError if no port is free, and OSError if the state directory cannot be written.
        """
        access = Access(app.settings.state_dir)
        shown = LiveApp(app, payloads or Payloads(), program)
        super().__init__({"": shown}, access, title=app.id, port=port, listen=listen, origins=origins, proxy=proxy)
        self._recorder = app.agent_runtime.runner.watch.recorder
        self._recorder.open()

    def after_run(self) -> str:
        """Does what was asked for with the stop of the app, and returns it in words, or "". Call it when the run has ended without an
        error. Blocks. Raises SabotError.
        """
        made = self.screens[""].after_run()
        return "" if made is None else f"checkpoint {made.checkpoint} is kept in {redacted_url(made.savepoint)}"

    def close(self) -> None:
        super().close()
        self._recorder.close()


class KeptConsole(ConsoleSite):
    """The console of apps that run elsewhere, or not at all."""

    _ended = "This console has been closed"

    def __init__(
        self, apps: Sequence[AppPlaces], access: Access, *, payloads: Payloads | None = None, **options: Any
    ) -> None:
        """`options`: as in `ConsoleSite`. Raises UserError if no port is free."""
        kept: dict[str, KeptApp] = {}
        for each in apps:
            name = re.sub(r"[^A-Za-z0-9_.-]+", "-", each.id)[:60].strip("-.") or "app"
            path, number = f"/apps/{name}", 2
            while path in kept:
                path, number = f"/apps/{name}-{number}", number + 1
            kept[path] = KeptApp(each, payloads or Payloads())
        self._kept = list(kept.values())
        self._read()
        super().__init__(kept, access, title="sabot web", refresh=self._read_again, **options)

    def _read(self) -> None:
        for each in self._kept:
            each.refresh()

    async def _read_again(self) -> None:
        await asyncio.to_thread(self._read)
