"""Hot items: the auctions with the most bids of the last 10 seconds, each 2 seconds. Of equal ones all."""

from sabot import Stream, count, hopping, tumbling

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    counts = nexmark.bid.key_by("auction").window(hopping("10s", "2s")).aggregate(num=count())
    # The results of a window have its last millisecond as event time, so those of one window fall into the same 2 seconds.
    return counts.window(tumbling("2s")).top_n(1, by="num", ties="rank").select("auction", "num")
