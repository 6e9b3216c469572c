"""Expand bids: the bids for auctions of category 10, with all that is known of the auction."""

from sabot import Stream, col

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    bids = nexmark.bid.rename({"dateTime": "bid_dateTime", "extra": "bid_extra"})
    auctions = nexmark.auction.filter(col("category") == 10)
    pairs = bids.join(auctions, left_on="auction", right_on="id")
    return pairs.rename({"dateTime": "auction_dateTime", "extra": "auction_extra"})
