"""Count, sum and maximum per account and minute in Bytewax: what its programs of card transactions share."""

from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import bytewax.operators as op
from bytewax.operators import KeyedStream, Stream, windowing

__all__ = ["totals"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Sums: TypeAlias = tuple[int, float, float]


def totals(rows: Stream[dict[str, Any]], minute_ms: int, lateness: timedelta) -> Stream[dict[str, Any]]:
    """The windows of rows with account, amount and ts. The watermark goes by the times of the records alone: by default it goes on with
    the system's time too.
    """
    keyed = op.map("key", rows, lambda row: (row["account"], (row["amount"], row["ts"])))
    clock = windowing.EventClock(
        lambda row: EPOCH + timedelta(milliseconds=row[1]),
        lateness,
        now_getter=lambda: EPOCH,
        to_system_utc=lambda when: None,
    )
    minutes = windowing.TumblingWindower(align_to=EPOCH, length=timedelta(milliseconds=minute_ms))
    closed: KeyedStream[tuple[int, Sums]] = windowing.fold_window(
        "windows", keyed, clock, minutes, lambda: (0, 0.0, float("-inf")), _add, _merged
    ).down
    return op.map("row", closed, lambda item: _row(minute_ms, *item))


def _add(state: Sums, row: tuple[float, int]) -> Sums:
    return state[0] + 1, state[1] + row[0], max(state[2], row[0])


def _merged(one: Sums, other: Sums) -> Sums:
    return one[0] + other[0], one[1] + other[1], max(one[2], other[2])


def _row(minute_ms: int, account: str, window: tuple[int, Sums]) -> dict[str, Any]:
    number, (n, total, biggest) = window
    return {"account": account, "window_start": number * minute_ms, "n": n, "total": total, "biggest": biggest}
