"""Calculation: bids within bounds, with the time of day, and what a function of the user's says of a text."""

from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

from sabot import Stream, col, lit, when

from ..streams import Nexmark


def count_c(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The function of the user's: how often `c` is in `extra`."""
    return batch.append_column("c_counts", pc.count_substring(batch["extra"], "c").cast("int64"))


def query(nexmark: Nexmark) -> Stream:
    hour = col("dateTime").dt.hour()
    kind = (
        when(hour.between(8, 18))
        .then(lit("dayTime"))
        .when((hour <= 6) | (hour >= 20))
        .then(lit("nightTime"))
        .otherwise(lit("otherTime"))
    )
    bids = nexmark.bid.with_columns(price=Decimal("0.908") * col("price"))
    within = bids.filter((col("price") > 1_000_000) & (col("price") < 50_000_000))
    return within.select("auction", "bidder", "price", kind.alias("bidTimeType"), "dateTime", "extra").map_batches(
        count_c
    )
