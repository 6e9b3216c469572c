"""Average selling price by seller: the mean of the last 10 auctions of each seller that got a bid."""

from sabot import Stream, mean

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    bids = nexmark.bids_in_time().select("id", "seller", "price", "bid_dateTime")
    winning = bids.key_by("id").top_n(1, by=["price", "bid_dateTime"], descending=[True, False])
    last = winning.key_by("seller").top_n(10, by=["bid_dateTime", "id"])
    return last.group_by("seller").aggregate(avg_price=mean("price"))
