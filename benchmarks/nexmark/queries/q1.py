"""Currency conversion: each bid, with its price in euros."""

from decimal import Decimal

from sabot import Stream, col

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    price = (Decimal("0.908") * col("price")).alias("price")
    return nexmark.bid.select("auction", "bidder", price, "dateTime", "extra")
