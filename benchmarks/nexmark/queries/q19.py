"""Top 10 bids: of each auction the ten highest, with their places."""

from sabot import Stream

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    return nexmark.bid.key_by("auction").top_n(10, by="price", rank="rank_number")
