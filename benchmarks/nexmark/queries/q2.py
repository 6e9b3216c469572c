"""Selection: the bids for every 123rd auction."""

from sabot import Stream, col

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    return nexmark.bid.filter(col("auction") % 123 == 0).select("auction", "price")
