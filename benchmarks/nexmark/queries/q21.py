"""Channel id: that of the four large channels, of others the one in the url."""

from sabot import Stream, col, lit, when

from ..streams import Nexmark


def query(nexmark: Nexmark) -> Stream:
    name = col("channel").str.lower()
    channel_id = (
        when(name == "apple")
        .then(lit("0"))
        .when(name == "google")
        .then(lit("1"))
        .when(name == "facebook")
        .then(lit("2"))
        .when(name == "baidu")
        .then(lit("3"))
        .otherwise(col("url").str.regexp_extract("(&|^)channel_id=([^&]*)", 2))
    )
    named = nexmark.bid.select("auction", "bidder", "price", "channel", channel_id=channel_id)
    return named.filter(col("channel_id").is_not_null())
