"""Winning bids: of each auction the highest bid before it expired, of equal ones the first."""

from sabot import Stream, col

from ..generator import SCHEMAS
from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    winning = nexmark.bids_in_time().key_by("id").top_n(1, by=["price", "bid_dateTime"], descending=[True, False])
    bid = ("bidder", "price", "bid_dateTime", "bid_extra")
    return winning.select(*SCHEMAS["auction"].names, col("id").alias("auction"), *bid)
