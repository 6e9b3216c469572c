"""Channels whose two ends are in different processes, over Arrow Flight. The only room that imports pyarrow.flight.

It knows elements and channels, and nothing of plans, apps and checkpoints. An *edge* here is one such channel.
"""

from sabot.exchange.link import Tls, address_of
from sabot.exchange.service import Exchange

__all__ = ["Exchange", "Tls", "address_of"]
