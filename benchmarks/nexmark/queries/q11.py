"""User sessions: how often each user bids until silent for 10 seconds."""

from sabot import Stream, count, session

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    sessions = nexmark.bid.key_by("bidder").window(session("10s")).aggregate(bid_count=count())
    return sessions.select("bidder", "bid_count", starttime="window_start", endtime="window_end")
