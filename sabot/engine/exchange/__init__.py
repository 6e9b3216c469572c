"""Channels whose two ends are in different processes, over Arrow Flight. The only room that imports pyarrow.flight.

This room handles elements and channels only: it uses no plans, apps or checkpoints. An *edge* here is one such
channel.
"""

from sabot.engine.exchange.link import Tls, address_of
from sabot.engine.exchange.service import Exchange

__all__ = ["Exchange", "Tls", "address_of"]
