"""Bounded side input join: each bid with a value from a table."""

from sabot import Stream, col

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    found = nexmark.bid.lookup(nexmark.side.broadcast(), left_on=col("auction") % 10_000, right_on="key", how="inner")
    return found.select("auction", "bidder", "price", "dateTime", "value")
