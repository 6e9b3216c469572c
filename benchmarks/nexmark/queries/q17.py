"""Auction statistics: the bids of each auction and day, by the rank of the price, and their prices."""

from sabot import Stream, col, max, mean, min, sum

from ..ranks import bids_by_rank
from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    days = nexmark.bid.group_by("auction", day=col("dateTime").dt.strftime("%Y-%m-%d"))
    return days.aggregate(
        **bids_by_rank(),
        min_price=min("price"),
        max_price=max("price"),
        avg_price=mean("price"),
        sum_price=sum("price"),
    )
