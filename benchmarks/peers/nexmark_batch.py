"""Nexmark's queries over files in DuckDB and in polars: the batch bound, which has the whole input at once.

Started by nexmark_peers.py as `python nexmark_batch.py PEER QUERY FOLDER RESULT THREADS`. Prints seconds and cpu_seconds, from the opening
of the files to the result in memory; then writes that to RESULT as Parquet, unless it is "-". Where it is, DuckDB writes the
result of q10, which is files in folders, within that time.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

KINDS = ("person", "auction", "bid")
TIMES = ("dateTime", "expires")
FOLDERS = {"q10": ["dt", "hm"]}
TWINS = Path(__file__).parents[1] / "nexmark" / "queries"


# DuckDB


def duckdb_source(kind: str, folder: Path, format: str) -> str:
    """What the table of a kind is read from."""
    if format == "parquet":
        return f"from read_parquet('{folder / kind}.parquet')"
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(folder / f"{kind}.parquet")
    columns = {field.name: "bigint" if field.name in TIMES or field.type == "int64" else "varchar" for field in schema}
    names = [f'epoch_ms("{name}") as "{name}"' if name in TIMES else f'"{name}"' for name in schema.names]
    source = f"read_json('{folder / kind}.ndjson', columns = {columns}, format = 'newline_delimited')"
    return f"select {', '.join(names)} from {source}"


def run_duckdb(query: str, folder: Path, threads: int, format: str, written: Path | None) -> Any:
    """Tables are views of the files, but where the query goes by the order of their rows. written: where a result in folders goes; None: it
    stays in memory, as the others do.
    """
    import duckdb

    sql = (TWINS / f"{query}.sql").read_text()
    connection = duckdb.connect(config={"threads": threads})
    what = "table" if "rowid" in sql else "view"
    for kind in KINDS:
        connection.execute(f"create {what if kind in sql else 'view'} {kind} as {duckdb_source(kind, folder, format)}")
    sides = "columns = {'key': 'bigint', 'value': 'varchar'}"
    connection.execute(f"create view side as from read_csv('{folder / 'side.csv'}', {sides})")
    rows = connection.sql(sql)
    if written is None or query not in FOLDERS:
        return rows.to_arrow_table()
    rows.write_parquet(str(written), partition_by=FOLDERS[query])
    return None


# polars


def polars_queries(folder: Path) -> dict[str, Callable[[], Any]]:
    import polars as pl

    person, auction, bid = (pl.scan_parquet(folder / f"{kind}.parquet") for kind in KINDS)
    side = pl.scan_csv(folder / "side.csv", schema={"key": pl.Int64, "value": pl.String})
    price, time, col = pl.col("price"), pl.col("dateTime"), pl.col
    euros = (price.cast(pl.Decimal(20, 3)) * pl.lit(Decimal("0.908"))).alias("price")
    five = ["auction", "bidder", "price", "dateTime", "extra"]
    day, minute = time.dt.strftime("%Y-%m-%d"), time.dt.strftime("%H:%M")
    ranks = {
        "rank1": price < 10_000,
        "rank2": (price >= 10_000) & (price < 1_000_000),
        "rank3": price >= 1_000_000,
    }
    bids = [pl.len().alias("total_bids"), *(each.sum().alias(f"{name}_bids") for name, each in ranks.items())]
    distinct = [
        count
        for what in ("bidder", "auction")
        for count in (
            col(what).n_unique().alias(f"total_{what}s"),
            *(col(what).filter(each).n_unique().alias(f"{name}_{what}s") for name, each in ranks.items()),
        )
    ]
    in_time = auction.join(
        bid.rename({"dateTime": "bid_dateTime", "extra": "bid_extra"}).drop("channel", "url"),
        left_on="id",
        right_on="auction",
        maintain_order="right",
    )
    in_time = in_time.filter(col("bid_dateTime").is_between(time, col("expires"))).with_columns(auction="id")
    best = in_time.sort("price", "bid_dateTime", descending=[True, False], maintain_order=True)
    winning = best.unique("id", keep="first", maintain_order=True)
    ten = pl.duration(seconds=10)

    def q5() -> Any:
        steps = pl.int_ranges(0, 5).alias("step")
        starts = (time.dt.truncate("2s") - pl.duration(seconds=2) * col("step")).alias("starts")
        hops = bid.select("auction", "dateTime").with_columns(steps).explode("step").group_by("auction", starts)
        counts = hops.agg(num=pl.len())
        return counts.filter(col("num") == col("num").max().over("starts")).select("auction", "num")

    def q8() -> Any:
        new = person.select("id", "name", starttime=time.dt.truncate("10s"))
        sellers = auction.select(id="seller", starttime=time.dt.truncate("10s")).unique()
        return new.join(sellers, on=["id", "starttime"], how="semi").unique()

    def q11() -> Any:
        begins = (time.diff() >= ten).fill_null(True).cum_sum().over("bidder")
        sessions = bid.select("bidder", "dateTime").sort("bidder", "dateTime").with_columns(number=begins)
        made = sessions.group_by("bidder", "number").agg(
            bid_count=pl.len(), starttime=time.min(), endtime=time.max() + ten
        )
        return made.drop("number")

    def q14() -> Any:
        hour = time.dt.hour()
        named = pl.when(hour.is_between(8, 18)).then(pl.lit("dayTime"))
        named = named.when((hour <= 6) | (hour >= 20)).then(pl.lit("nightTime")).otherwise(pl.lit("otherTime"))
        count = col("extra").str.count_matches("c", literal=True)
        some = bid.with_columns(euros).filter((price > 1_000_000) & (price < 50_000_000))
        return some.select(
            "auction", "bidder", "price", named.alias("bidTimeType"), "dateTime", "extra", c_counts=count
        )

    def q20() -> Any:
        given = auction.filter(col("category") == 10)
        given = given.rename({"dateTime": "auction_dateTime", "extra": "auction_extra"})
        found = bid.rename({"dateTime": "bid_dateTime", "extra": "bid_extra"})
        columns = [
            "auction",
            "bidder",
            "price",
            "channel",
            "url",
            "bid_dateTime",
            "bid_extra",
            "itemName",
            "description",
        ]
        columns += ["initialBid", "reserve", "auction_dateTime", "expires", "seller", "category", "auction_extra"]
        return found.join(given, left_on="auction", right_on="id").select(columns)

    def q21() -> Any:
        hot = {"apple": "0", "google": "1", "facebook": "2", "baidu": "3"}
        found = col("url").str.extract("(&|^)channel_id=([^&]*)", 2)
        named = col("channel").str.to_lowercase().replace_strict(hot, default=found, return_dtype=pl.String)
        made = bid.select("auction", "bidder", "price", "channel", channel_id=named)
        return made.filter(col("channel_id").is_not_null() & (col("channel_id") != ""))

    def q22() -> Any:
        parts = col("url").str.split("/")
        return bid.select(
            "auction", "bidder", "price", "channel", *(parts.list.get(n + 2).alias(f"dir{n}") for n in (1, 2, 3))
        )

    mean = price.mean().alias("avg_price")
    statistics = [price.min().alias("min_price"), price.max().alias("max_price"), mean, price.sum().alias("sum_price")]
    place = price.rank("ordinal", descending=True).over("auction").alias("rank_number")
    states = col("state").is_in(["OR", "ID", "CA"])
    q3 = auction.filter(col("category") == 10).join(person.filter(states), left_on="seller", right_on="id")
    last_ten = winning.sort("bid_dateTime", "id")
    return {
        "q0": lambda: bid.select(five),
        "q1": lambda: bid.with_columns(euros).select(five),
        "q2": lambda: bid.filter(col("auction") % 123 == 0).select("auction", "price"),
        "q3": lambda: q3.select("name", "city", "state", "id"),
        "q4": lambda: in_time.group_by("id", "category").agg(price.max()).group_by("category").agg(mean),
        "q5": q5,
        "q6": lambda: last_ten.group_by("seller").tail(10).group_by("seller").agg(mean),
        "q7": lambda: bid.filter(price == price.max().over(time.dt.truncate("10s"))).select(
            "auction", "price", "bidder", "dateTime", "extra"
        ),
        "q8": q8,
        "q9": lambda: winning.select(
            *auction.collect_schema().names(), "auction", "bidder", "price", "bid_dateTime", "bid_extra"
        ),
        "q10": lambda: bid.select(*five, dt=day, hm=minute),
        "q11": q11,
        "q13": lambda: (
            bid.with_columns(key=col("auction") % 10_000)
            .join(side, on="key")
            .select("auction", "bidder", "price", "dateTime", "value")
        ),
        "q14": q14,
        "q15": lambda: bid.group_by(day.alias("day")).agg(*bids, *distinct),
        "q16": lambda: bid.group_by("channel", day.alias("day")).agg(minute.max().alias("minute"), *bids, *distinct),
        "q17": lambda: bid.group_by("auction", day.alias("day")).agg(*bids, *statistics),
        "q18": lambda: (
            bid.sort("dateTime", descending=True, maintain_order=True)
            .unique(["bidder", "auction"], keep="first", maintain_order=True)
            .select("auction", "bidder", "price", "channel", "url", "dateTime", "extra")
        ),
        "q19": lambda: bid.with_columns(place).filter(col("rank_number") <= 10),
        "q20": q20,
        "q21": q21,
        "q22": q22,
    }


def main() -> None:
    peer, query, folder, result, threads = sys.argv[1:]
    os.environ["POLARS_MAX_THREADS"] = threads
    if peer == "polars":
        import polars  # noqa: F401 - its import is not timed
    else:
        import duckdb  # noqa: F401
    with TemporaryDirectory(prefix="sabot-bench-") as place:
        began, cpu = time.perf_counter(), time.process_time()
        if peer == "polars":
            found = polars_queries(Path(folder))[query]().collect()
        else:
            written = Path(place) / "rows" if result == "-" else None
            format = "json" if peer == "duckdb-json" else "parquet"
            found = run_duckdb(query, Path(folder), int(threads), format, written)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak_mb = round(int(status["VmHWM"].split()[0]) / 1024)
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb}))
    if result != "-":
        import pyarrow.parquet as pq

        pq.write_table(found.to_arrow() if peer == "polars" else found, result)


if __name__ == "__main__":
    main()
