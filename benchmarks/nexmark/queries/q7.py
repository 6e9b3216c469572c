"""Highest bid: the bids with the highest price of each 10 seconds."""

from sabot import Stream, tumbling

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    highest = nexmark.bid.window(tumbling("10s")).top_n(1, by="price", ties="rank")
    return highest.select("auction", "price", "bidder", "dateTime", "extra")
