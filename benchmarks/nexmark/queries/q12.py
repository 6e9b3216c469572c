"""Processing time windows: how often each user bids in 10 seconds of the clock on the wall."""

from sabot import Stream, count, tumbling

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    counts = nexmark.bid.key_by("bidder").window(tumbling("10s", time="processing")).aggregate(bid_count=count())
    return counts.select("bidder", "bid_count", starttime="window_start", endtime="window_end")
