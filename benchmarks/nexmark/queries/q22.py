"""URL directories: the three of each bid's url."""

from sabot import Stream, col

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    parts = col("url").str.split("/").list
    return nexmark.bid.select(
        "auction", "bidder", "price", "channel", dir1=parts.get(3), dir2=parts.get(4), dir3=parts.get(5)
    )
