"""`minutes_app`, whose workers reach each other through a proxy. When the file CUT_FILE comes, the network to one of them is cut, once."""

import os
import sys
import threading
from pathlib import Path
from typing import Any

from minutes_app import app

import sabot.engine.workers.process as process
from sabot.engine.exchange import Exchange

sys.path.append(str(Path(__file__).parents[1]))
from tools.tcp_proxy import TcpProxy

__all__ = ["app"]

TIMEOUT_SECONDS = 5.0  # an edge whose worker has no core for a second is not broken


class CutExchange(Exchange):
    """Tells others the address of its proxy in the place of its own."""

    def __init__(self, token: str, **given: Any) -> None:
        super().__init__(token, **{**given, "timeout": TIMEOUT_SECONDS})
        self._proxy = TcpProxy(self.address).__enter__()
        self.address = self._proxy.address
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self) -> None:
        self._over.set()
        super().close()

    def _watch(self) -> None:
        asked = Path(os.environ["CUT_FILE"])
        while not self._over.wait(0.02):
            try:
                asked.rename(asked.with_suffix(".taken"))  # by one of them
            except FileNotFoundError:
                continue
            self._proxy.cut()


process.Exchange = CutExchange
