"""Monitor new users: people who have come, and opened an auction, in the same 10 seconds."""

from sabot import Stream, tumbling

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    sellers = nexmark.person.join(nexmark.auction, left_on="id", right_on="seller", how="semi", window=tumbling("10s"))
    return sellers.select("id", "name", starttime="window_start")
