"""Average selling price by seller: the mean of the last 10 auctions of each seller that got a bid."""

from sabot import Stream, mean

from ..streams import Nexmark
from . import q9


def query(nexmark: Nexmark) -> Stream:
    last = q9.query(nexmark).key_by("seller").top_n(10, by=["bid_dateTime", "id"])
    return last.group_by("seller").aggregate(avg_price=mean("price"))
