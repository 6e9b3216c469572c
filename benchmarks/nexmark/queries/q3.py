"""Local item suggestion: who sells in Oregon, Idaho or California, and in category 10."""

from sabot import Stream, col

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    auctions = nexmark.auction.filter(col("category") == 10).select("id", "seller")
    people = nexmark.person.filter(col("state").is_in(["OR", "ID", "CA"])).select("id", "name", "city", "state")
    return auctions.join(people, left_on="seller", right_on="id").select("name", "city", "state", "id")
