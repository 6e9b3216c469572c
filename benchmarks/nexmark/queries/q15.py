"""Bidding statistics: bids, bidders and auctions of each day, in all and by the rank of the price."""

from sabot import Stream, col

from ..ranks import bids_by_rank, distinct_by_rank
from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    days = nexmark.bid.group_by(day=col("dateTime").dt.strftime("%Y-%m-%d"))
    return days.aggregate(
        **bids_by_rank(), **distinct_by_rank("bidder", "bidders"), **distinct_by_rank("auction", "auctions")
    )
