"""The console of an app that runs in this process."""

import asyncio
import logging
from typing import TYPE_CHECKING

from sabot.clock import SYSTEM_CLOCK
from sabot.redaction import redacted_url
from sabot.state import state_directory
from sabot.web.access import Access
from sabot.web.figures import FigureRings
from sabot.web.guard import cookie_name
from sabot.web.log_ring import LogRing
from sabot.web.pages import Pages
from sabot.web.payloads import Payloads
from sabot.web.reader import ConsoleReader
from sabot.web.screens import Screens
from sabot.web.server import DEFAULT_PORT, HOST, ConsoleServer
from sabot.web.shown import LiveApp

if TYPE_CHECKING:
    from sabot.app import App

_log = logging.getLogger(__name__)

_TICK_SECONDS = 1.0


class Console:
    """The console of an app. It is open from its construction to `close`."""

    def __init__(
        self,
        app: "App",
        *,
        port: int = DEFAULT_PORT,
        origins: tuple[str, ...] = (),
        payloads: Payloads | None = None,
    ) -> None:
        """`port`: the wanted port; the next free one is taken if it is not free, and any free one for 0. `origins`: further addresses
        under which browsers reach this server, such as that of a tunnel. `payloads`: the values that pages may show; default: none.

        Raises UserError if no port is free, and OSError if the state directory cannot be written.
        """
        self.access = Access(state_directory(app.settings.state))
        self.figures = FigureRings(app.statistics)
        self._server = ConsoleServer(port)
        self.port = self._server.port
        self.address = f"http://{HOST}:{self.port}"
        own = [self.address, f"http://localhost:{self.port}"]
        self._log = LogRing()
        self._screens = Screens(LiveApp(app, self.figures, self._log, payloads or Payloads()), ConsoleReader())
        self._pages = Pages(
            {"": self._screens},
            self.access,
            cookie_name(self.port, app.id),
            [*own, *(each.rstrip("/") for each in origins)],
            title=app.id,
        )
        self._log.open()
        self._server.start(self._pages.app, self._tick)

    @property
    def link(self) -> str:
        """The address with the token of a session that may act."""
        return f"{self.address}/enter?token={self.access.token('act')}"

    @property
    def reading_link(self) -> str:
        """The address with the token of a session that may only read."""
        return f"{self.address}/enter?token={self.access.token('read')}"

    def after_run(self) -> str:
        """Does what was asked for with the stop of the app, and returns it in words, or "". Call it when the run has ended without an
        error. Blocks. Raises SabotError.
        """
        made = self._screens.after_run()
        return "" if made is None else f"checkpoint {made.checkpoint} is kept in {redacted_url(made.savepoint)}"

    def close(self) -> None:
        """Stops the server. Blocks up to three seconds."""
        self._server.close()
        self._log.close()

    async def _tick(self) -> None:
        """Reads the figures once a second, and publishes them, until the server stops."""
        following = SYSTEM_CLOCK.monotonic()
        try:
            while True:
                try:
                    self.figures.take()
                    await self._pages.tick()
                except Exception:
                    _log.exception("the console could not read the figures of the app")
                following = max(following + _TICK_SECONDS, SYSTEM_CLOCK.monotonic())
                await asyncio.sleep(following - SYSTEM_CLOCK.monotonic())
        finally:
            self._screens.reader.close()
