"""The three ranks of prices, which q15, q16 and q17 count by."""

from sabot import Aggregate, Expr, col, count, count_distinct

RANKS: dict[str, Expr] = {
    "rank1": col("price") < 10_000,
    "rank2": (col("price") >= 10_000) & (col("price") < 1_000_000),
    "rank3": col("price") >= 1_000_000,
}


def bids_by_rank() -> dict[str, Aggregate]:
    """total_bids, and those of each rank."""
    return {"total_bids": count()} | {f"{rank}_bids": count().filter(within) for rank, within in RANKS.items()}


def distinct_by_rank(column: str, name: str) -> dict[str, Aggregate]:
    """How many different values of the column there are, under total_`name`, and those of each rank."""
    distinct = count_distinct(column)
    return {f"total_{name}": distinct} | {f"{rank}_{name}": distinct.filter(within) for rank, within in RANKS.items()}
