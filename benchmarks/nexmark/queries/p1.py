"""A pattern: the longest runs of bids of a person for an auction whose mean is below 10,000. They do not overlap."""

from typing import Literal

from sabot import Stream, coalesce, col, lit, pattern, step

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    return cheap_bids(nexmark, "past_last")


def cheap_bids(nexmark: Nexmark, skip: Literal["past_last", "to_next"]) -> Stream:
    """The runs, each with one bid more behind it. skip: where the next run may begin."""
    a = step("a")
    mean = (coalesce(a.sum("price"), lit(0)) + col("price")) // (a.count() + 1)
    runs = pattern("a", mean < 10_000, times=(1, None)).consecutive().greedy().next("b", lit(True))
    return (
        nexmark.bid.key_by("auction", "bidder")
        .pattern(
            runs,
            skip=skip,
            overlap="begun",
            start_tstamp=a.first("dateTime"),
            end_tstamp=a.last("dateTime"),
            avg_price=a.sum("price") // a.count(),
        )
        .drop("match_start", "match_end")
    )
