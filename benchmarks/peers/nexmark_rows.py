"""What Bytewax, Quix Streams and Faust have in common in Nexmark: a Python function for each bid, and where its rows go.

`stateless` gives a row of a bid, or none; `running` gives the row of a key as it is after a bid: the last one of each key is the result.
"""

import json
import re
import time
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

__all__ = ["RUNNING", "STATELESS", "Output", "Row", "best_of", "running", "stateless"]

Row = dict[str, Any]
FIVE = ("auction", "bidder", "price", "dateTime", "extra")
FOUR = ("auction", "bidder", "price", "channel")
EUROS = Decimal("0.908")
HOUR_MS = 3_600_000
HOT_CHANNELS = {"apple": "0", "google": "1", "facebook": "2", "baidu": "3"}
CHANNEL_ID = re.compile("(?:&|^)channel_id=([^&]*)")
RUNNING = ("q17", "q18")
STATELESS = ("q0", "q1", "q2", "q13", "q14", "q21", "q22")


class Output:
    """Rows are counted, and dropped or kept. Seconds are those from the first record that `begin` is called for to `end`."""

    def __init__(self, result: str) -> None:
        """result: a file for the rows as NDJSON, written behind the end; "-": they are dropped."""
        self.rows = 0
        self._result = None if result == "-" else Path(result)
        self._kept: list[Row] = []
        self._last: dict[Hashable, tuple[Row, ...]] = {}
        self._began: float | None = None
        self._cpu = 0.0

    def begin(self) -> None:
        if self._began is None:
            self._began, self._cpu = time.perf_counter(), time.process_time()

    def write(self, *rows: Row, key: Hashable = None) -> None:
        """key: of rows that later ones of this key replace."""
        self.rows += len(rows)
        if self._result is None:
            return
        if key is not None:
            self._last[key] = rows
        else:
            self._kept += rows

    def end(self) -> None:
        """Prints the figures."""
        assert self._began is not None, "no record has come"
        seconds, cpu_seconds = time.perf_counter() - self._began, time.process_time() - self._cpu
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak_mb = round(int(status["VmHWM"].split()[0]) / 1024)
        if self._result is not None:
            rows = [*self._kept, *(row for rows in self._last.values() for row in rows)]
            self._result.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
        print(
            json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb, "rows": self.rows}),
            flush=True,
        )


def stateless(query: str, folder: Path) -> Callable[[Row], Row | None]:
    """The row that the query makes of a bid; None: it makes none."""
    if query != "q13":
        return _FUNCTIONS[query]
    lines = (folder / "side.csv").read_text().splitlines()[1:]
    values = {int(key): value for key, _, value in (line.partition(",") for line in lines)}

    def q13(bid: Row) -> Row | None:
        value = values.get(bid["auction"] % 10_000)
        return None if value is None else {**{name: bid[name] for name in FIVE[:4]}, "value": value}

    return q13


def running(query: str) -> tuple[Callable[[Row], str], Callable[[Row | None, Row], Row]]:
    """The key of a bid; and the row of a key, of the one before, if there was one, and a bid."""
    if query == "q17":
        return lambda bid: f"{bid['auction']} {_day(bid)}", _q17
    return lambda bid: f"{bid['bidder']} {bid['auction']}", _q18


def best_of(best: tuple[int, list[Any]], found: Any, number: int) -> tuple[int, list[Any]]:
    """The highest number, and all that were found with it."""
    if number > best[0]:
        return number, [found]
    return (number, [*best[1], found]) if number == best[0] else best


def _q0(bid: Row) -> Row:
    return {name: bid[name] for name in FIVE}


def _q1(bid: Row) -> Row:
    return {**_q0(bid), "price": EUROS * bid["price"]}


def _q2(bid: Row) -> Row | None:
    return {"auction": bid["auction"], "price": bid["price"]} if bid["auction"] % 123 == 0 else None


def _q14(bid: Row) -> Row | None:
    price = EUROS * bid["price"]
    if not 1_000_000 < price < 50_000_000:
        return None
    hour = bid["dateTime"] // HOUR_MS % 24
    kind = "dayTime" if 8 <= hour <= 18 else "nightTime" if hour <= 6 or hour >= 20 else "otherTime"
    return {**_q0(bid), "price": price, "bidTimeType": kind, "c_counts": bid["extra"].count("c")}


def _q21(bid: Row) -> Row | None:
    channel_id = HOT_CHANNELS.get(bid["channel"].lower())
    if channel_id is None:
        found = CHANNEL_ID.search(bid["url"])
        channel_id = found[1] if found else ""
    return {**{name: bid[name] for name in FOUR}, "channel_id": channel_id} if channel_id else None


def _q22(bid: Row) -> Row:
    parts = [*bid["url"].split("/"), "", "", ""]
    return {**{name: bid[name] for name in FOUR}, "dir1": parts[3], "dir2": parts[4], "dir3": parts[5]}


def _day(bid: Row) -> str:
    return datetime.fromtimestamp(bid["dateTime"] // 1000, UTC).strftime("%Y-%m-%d")


def _q17(row: Row | None, bid: Row) -> Row:
    price = bid["price"]
    if row is None:
        row = {"auction": bid["auction"], "day": _day(bid), "total_bids": 0}
        row |= {
            "rank1_bids": 0,
            "rank2_bids": 0,
            "rank3_bids": 0,
            "min_price": price,
            "max_price": price,
            "sum_price": 0,
        }
    rank = "rank1_bids" if price < 10_000 else "rank2_bids" if price < 1_000_000 else "rank3_bids"
    total, count = row["sum_price"] + price, row["total_bids"] + 1
    found = {**row, "total_bids": count, rank: row[rank] + 1, "sum_price": total, "avg_price": total / count}
    return found | {"min_price": min(row["min_price"], price), "max_price": max(row["max_price"], price)}


def _q18(row: Row | None, bid: Row) -> Row:
    return {name: bid[name] for name in ("auction", "bidder", "price", "channel", "url", "dateTime", "extra")}


_FUNCTIONS: dict[str, Callable[[Row], Row | None]] = {
    "q0": _q0,
    "q1": _q1,
    "q2": _q2,
    "q14": _q14,
    "q21": _q21,
    "q22": _q22,
}
