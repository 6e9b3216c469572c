"""A pattern: the bids of a person for an auction fall by more than 50 within five seconds."""

from sabot import Stream, col, lit, pattern, step

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    first = step("a").last("price") - 50
    drops = (
        pattern("a", lit(True))
        .next("b", col("price") > first, times=(0, None))
        .greedy()
        .next("c", col("price") < first)
        .within("4999ms")
    )
    return (
        nexmark.bid.key_by("auction", "bidder")
        .pattern(
            drops,
            overlap="begun",
            drop_time=step("c").last("dateTime"),
            drop_diff=step("a").last("price") - step("c").last("price"),
        )
        .drop("match_start", "match_end")
    )
