"""Queries of Nexmark in Pathway, over lines of JSON, in its static mode: the batch form of its streaming engine.

    python nexmark_pathway.py QUERY FOLDER RESULT CHECKPOINT_MS        RESULT: a file for the rows as NDJSON, or "-": they are dropped

Its numbers have no decimals: prices in euros are floats, which have the same first three decimals. Time is that of `pw.run`, which reads,
computes and writes. Started by nexmark_peers.py in an environment of its own.
"""

import json
import re
import sys
import time
from pathlib import Path

import pathway as pw

query, folder, result = sys.argv[1], Path(sys.argv[2]), sys.argv[3]  # a static run takes no snapshots
COLUMNS = {
    "person": "id name emailAddress creditCard city state dateTime extra",
    "auction": "id itemName description initialBid reserve dateTime expires seller category extra",
    "bid": "auction bidder price channel url dateTime extra",
}
NUMBERS = {"number", "initialBid", "reserve", "dateTime", "expires", "seller", "category", "auction", "bidder", "price"}
TEN_MS = 10_000
RANKS = ("rank1", "rank2", "rank3")
FIVE = ["auction", "bidder", "price", "dateTime", "extra"]
HOT_CHANNELS = {"apple": "0", "google": "1", "facebook": "2", "baidu": "3"}
CHANNEL_ID = re.compile("(?:&|^)channel_id=([^&]*)")


def read(kind: str) -> pw.Table:
    """`id` is the key of a row in Pathway: the column of that name is `number` here."""
    names = ["number" if name == "id" else name for name in COLUMNS[kind].split()]
    schema = pw.schema_from_types(**{name: int if name in NUMBERS else str for name in names})
    path = str(folder / f"{kind}.ndjson")
    paths = {"number": "/id"} if "number" in names else None
    return pw.io.jsonlines.read(path, schema=schema, mode="static", json_field_paths=paths)


@pw.udf(deterministic=True)
def channel_id_of(channel: str, url: str) -> str:
    found = CHANNEL_ID.search(url)
    return HOT_CHANNELS.get(channel.lower()) or (found[1] if found else "")


@pw.udf(deterministic=True)
def part(url: str, place: int) -> str:
    parts = url.split("/")
    return parts[place] if place < len(parts) else ""


def day(bids: pw.Table) -> pw.Table:
    """The bids with their day and which of the three ranks their price is of."""
    return bids.with_columns(
        day=pw.this.dateTime.dt.utc_from_timestamp(unit="ms").dt.strftime("%Y-%m-%d"),
        rank1=pw.this.price < 10_000,
        rank2=(pw.this.price >= 10_000) & (pw.this.price < 1_000_000),
        rank3=pw.this.price >= 1_000_000,
    )


def counts() -> dict:
    found = {"total_bids": pw.reducers.count()}
    return found | {f"{rank}_bids": pw.reducers.sum(pw.cast(int, pw.this[rank])) for rank in RANKS}


def distinct_counts() -> dict:
    """Bids of another rank count as one value more, which there is where not all are of the rank."""
    found = {}
    for name in ("bidder", "auction"):
        found[f"total_{name}s"] = pw.reducers.count_distinct(pw.this[name])
        for rank in RANKS:
            others = pw.reducers.max(pw.cast(int, ~pw.this[rank]))
            found[f"{rank}_{name}s"] = pw.reducers.count_distinct(pw.if_else(pw.this[rank], pw.this[name], -1)) - others
    return found


def in_time() -> pw.Table:
    """Auctions with the bids that came between their opening and their expiry."""
    bids = (
        read("bid").rename(bid_dateTime=pw.this.dateTime, bid_extra=pw.this.extra).without(pw.this.channel, pw.this.url)
    )
    auctions = read("auction")
    pairs = auctions.join(bids, auctions.number == bids.auction).select(*auctions, *bids)
    return pairs.filter((pw.this.bid_dateTime >= pw.this.dateTime) & (pw.this.bid_dateTime <= pw.this.expires))


def q0() -> pw.Table:
    return read("bid")[FIVE]


def q1() -> pw.Table:
    return read("bid")[FIVE].with_columns(price=0.908 * pw.this.price)


def q2() -> pw.Table:
    return read("bid").filter(pw.this.auction % 123 == 0)[["auction", "price"]]


def q3() -> pw.Table:
    auctions = read("auction").filter(pw.this.category == 10)
    people = read("person")
    people = people.filter((people.state == "OR") | (people.state == "ID") | (people.state == "CA"))
    joined = auctions.join(people, auctions.seller == people.number)
    return joined.select(people.name, people.city, people.state, auctions.number)


def q4() -> pw.Table:
    final = in_time().groupby(pw.this.number, pw.this.category)
    final = final.reduce(pw.this.category, price=pw.reducers.max(pw.this.price))
    return final.groupby(pw.this.category).reduce(pw.this.category, avg_price=pw.reducers.avg(pw.this.price))


def q5() -> pw.Table:
    bids = read("bid")
    hops = bids.windowby(bids.dateTime, window=pw.temporal.sliding(hop=2_000, duration=TEN_MS), instance=bids.auction)
    counts = hops.reduce(auction=pw.this._pw_instance, starts=pw.this._pw_window_start, num=pw.reducers.count())
    best = counts.groupby(counts.starts).reduce(counts.starts, num=pw.reducers.max(counts.num))
    found = counts.join(best, counts.starts == best.starts, counts.num == best.num)
    return found.select(counts.auction, counts.num)


def q7() -> pw.Table:
    bids = read("bid").with_columns(starts=pw.this.dateTime // TEN_MS * TEN_MS)
    tens = bids.windowby(bids.dateTime, window=pw.temporal.tumbling(duration=TEN_MS))
    best = tens.reduce(starts=pw.this._pw_window_start, price=pw.reducers.max(pw.this.price))
    return bids.join(best, bids.starts == best.starts, bids.price == best.price).select(*(bids[name] for name in FIVE))


def q8() -> pw.Table:
    people, auctions = read("person"), read("auction")
    sellers = people.window_join(
        auctions,
        people.dateTime,
        auctions.dateTime,
        pw.temporal.tumbling(duration=TEN_MS),
        people.number == auctions.seller,
    ).select(people.number, people.name, starttime=pw.this._pw_window_start)
    return sellers.groupby(pw.this.number, pw.this.name, pw.this.starttime).reduce(
        pw.this.number, pw.this.name, pw.this.starttime
    )


def q9() -> pw.Table:
    pairs = in_time()
    best = pairs.groupby(pairs.number).reduce(key=pw.reducers.argmax(pw.make_tuple(pairs.price, -pairs.bid_dateTime)))
    return pairs.ix(best.key)


def q11() -> pw.Table:
    bids = read("bid")
    sessions = bids.windowby(bids.dateTime, window=pw.temporal.session(max_gap=TEN_MS), instance=bids.bidder)
    return sessions.reduce(
        bidder=pw.this._pw_instance,
        bid_count=pw.reducers.count(),
        starttime=pw.reducers.min(pw.this.dateTime),
        endtime=pw.reducers.max(pw.this.dateTime) + TEN_MS,
    )


def q13() -> pw.Table:
    bids = read("bid").with_columns(key=pw.this.auction % 10_000)
    side = pw.io.csv.read(str(folder / "side.csv"), schema=pw.schema_from_types(key=int, value=str), mode="static")
    found = bids.join(side, bids.key == side.key)
    return found.select(bids.auction, bids.bidder, bids.price, bids.dateTime, side.value)


def q14() -> pw.Table:
    bids = q1().with_columns(hour=pw.this.dateTime // 3_600_000 % 24)
    bids = bids.filter((bids.price > 1_000_000) & (bids.price < 50_000_000))
    night = pw.if_else((bids.hour <= 6) | (bids.hour >= 20), "nightTime", "otherTime")
    kind = pw.if_else((bids.hour >= 8) & (bids.hour <= 18), "dayTime", night)
    return bids.select(*(bids[name] for name in FIVE), bidTimeType=kind, c_counts=bids.extra.str.count("c"))


def q15() -> pw.Table:
    bids = day(read("bid"))
    return bids.groupby(bids.day).reduce(bids.day, **counts(), **distinct_counts())


def q16() -> pw.Table:
    minute = pw.this.dateTime.dt.utc_from_timestamp(unit="ms").dt.strftime("%H:%M")
    bids = day(read("bid")).with_columns(minute=minute)
    latest = pw.reducers.max(bids.minute)
    return bids.groupby(bids.channel, bids.day).reduce(
        bids.channel, bids.day, minute=latest, **counts(), **distinct_counts()
    )


def q17() -> pw.Table:
    bids = day(read("bid"))
    return bids.groupby(bids.auction, bids.day).reduce(
        bids.auction,
        bids.day,
        **counts(),
        min_price=pw.reducers.min(bids.price),
        max_price=pw.reducers.max(bids.price),
        avg_price=pw.reducers.avg(bids.price),
        sum_price=pw.reducers.sum(bids.price),
    )


def q18() -> pw.Table:
    bids = read("bid")
    last = bids.groupby(bids.bidder, bids.auction).reduce(key=pw.reducers.argmax(bids.dateTime))
    return bids.ix(last.key)


def q20() -> pw.Table:
    auctions = read("auction").filter(pw.this.category == 10)
    auctions = auctions.rename(auction_dateTime=pw.this.dateTime, auction_extra=pw.this.extra)
    bids = read("bid").rename(bid_dateTime=pw.this.dateTime, bid_extra=pw.this.extra)
    return bids.join(auctions, bids.auction == auctions.number).select(
        *bids, *(auctions[name] for name in auctions.column_names() if name != "number")
    )


def q21() -> pw.Table:
    bids = read("bid")
    named = bids[["auction", "bidder", "price", "channel"]].with_columns(
        channel_id=channel_id_of(bids.channel, bids.url)
    )
    return named.filter(named.channel_id != "")


def q22() -> pw.Table:
    bids = read("bid")
    return bids.select(
        bids.auction,
        bids.bidder,
        bids.price,
        bids.channel,
        dir1=part(bids.url, 3),
        dir2=part(bids.url, 4),
        dir3=part(bids.url, 5),
    )


rows = globals()[query]()
if result == "-":
    pw.io.null.write(rows)
else:
    pw.io.jsonlines.write(rows, result)
began, cpu = time.perf_counter(), time.process_time()
pw.run(monitoring_level=pw.MonitoringLevel.NONE)
seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
peak_mb = round(int(status["VmHWM"].split()[0]) / 1024)
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb}))
if result != "-":
    lines = [json.loads(line) for line in Path(result).read_text().splitlines()]
    named = [{"id" if name == "number" else name: value for name, value in row.items()} for row in lines]
    Path(result).write_text("".join(json.dumps(row) + "\n" for row in named))
