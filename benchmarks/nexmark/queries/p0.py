"""A pattern: the bids of a person for an auction fall, and rise again."""

from sabot import Stream, col, lit, pattern, step

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    last = step("down").last("price")
    falls = (last.is_null() & (col("price") < step("start").last("price"))) | (col("price") < last)
    rises = col("price") > step("down").last("price", offset=1)
    turns = pattern("start", lit(True)).next("down", falls, times=(1, None)).greedy().next("up", rises)
    return (
        nexmark.bid.key_by("auction", "bidder")
        .pattern(
            turns,
            skip=("to_last", "up"),
            overlap="begun",
            start_tstamp=step("start").first("dateTime"),
            bottom_tstamp=step("down").last("dateTime"),
            end_tstamp=step("up").last("dateTime"),
        )
        .drop("match_start", "match_end")
    )
