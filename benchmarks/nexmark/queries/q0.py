"""Pass through: each bid as it is."""

from sabot import Stream

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    return nexmark.bid.select("auction", "bidder", "price", "dateTime", "extra")
