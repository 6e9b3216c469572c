"""Average price for a category: the mean, over its auctions, of the winning bids."""

from sabot import Stream, max, mean

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    finals = nexmark.bids_in_time().group_by("id", "category").aggregate(final=max("price"))
    return finals.group_by("category").aggregate(avg_price=mean("final"))
