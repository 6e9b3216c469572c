"""Channel statistics: bids, bidders and auctions of each channel and day, and the last minute with a bid."""

from sabot import Stream, col, max

from ..ranks import bids_by_rank, distinct_by_rank
from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    time = col("dateTime").dt
    days = nexmark.bid.group_by("channel", day=time.strftime("%Y-%m-%d"))
    return days.aggregate(
        minute=max(time.strftime("%H:%M")),
        **bids_by_rank(),
        **distinct_by_rank("bidder", "bidders"),
        **distinct_by_rank("auction", "auctions"),
    )
