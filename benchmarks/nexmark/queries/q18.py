"""Last bid: of each bidder and auction the latest one."""

from sabot import Stream

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    last = nexmark.bid.key_by("bidder", "auction").top_n(1, by="dateTime")
    return last.select("auction", "bidder", "price", "channel", "url", "dateTime", "extra")
