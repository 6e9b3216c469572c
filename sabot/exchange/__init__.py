"""The exchange: channels whose two ends are in different processes, over Arrow Flight. The only importer of pyarrow.flight.

It knows elements and channels, and nothing of plans, apps and checkpoints.
"""

from sabot.exchange.link import Tls, address_of
from sabot.exchange.service import Exchange

__all__ = ["Exchange", "Tls", "address_of"]
