"""Log to files: each bid with its day and minute, in a folder for each of them."""

from sabot import Stream, col

from ..streams import Nexmark

PARTITION_BY = ["dt", "hm"]


def query(nexmark: Nexmark) -> Stream:
    time = col("dateTime").dt
    return nexmark.bid.select(
        "auction", "bidder", "price", "dateTime", "extra", dt=time.strftime("%Y-%m-%d"), hm=time.strftime("%H:%M")
    )
