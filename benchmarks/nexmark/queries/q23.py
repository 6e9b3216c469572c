"""Expand bids further: the bids of people who sell something, with all that is known of the person and of each auction."""

from sabot import Stream

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    bids = nexmark.bid.select("bidder", "price", "channel", "url", bid_extra="extra")
    people = nexmark.person.rename({"id": "person_id", "extra": "person_extra"}).drop("dateTime")
    auctions = nexmark.auction.rename({"dateTime": "auction_dateTime", "extra": "auction_extra"}).drop("id")
    found = bids.join(people.with_columns(buyer="person_id"), left_on="bidder", right_on="buyer")
    return found.join(auctions.with_columns(owner="seller"), left_on="bidder", right_on="owner")
