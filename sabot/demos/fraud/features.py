"""Rolling features per customer and per terminal, kept as day buckets in keyed state.

Exact definitions, so that a batch program over all rows at once gets the same bits (tests/pipelines does):

- A row's *day* is `ts // DAY_MS`, but never before the newest day that its customer (terminal) has had: a row that comes
  late counts as one of that newest day. In a stream sorted by time this changes nothing.
- `customer_count_W`, `customer_mean_W`: the customer's rows on the last W days, the row's own day included, up to and
  with the row itself, in stream order; W = 1, 7, 30. The mean is sum / count, amounts rounded to 1/64.
- `terminal_count_W`, `terminal_risk_W`: the terminal's rows on the W days that end DELAY_DAYS before the row's day, and the
  share of frauds among them (0 where there are none): a label is known only after that delay.

One key of state holds the buckets of one id as little-endian int64: the newest day, then one bucket a day, oldest first. A
bucket is `count * 2**40 + sum`, so that one addition, one running sum and one subtraction serve both.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sabot.demos.fraud.generator import AMOUNT_UNIT, DAY_MS
from sabot.engine.state import ValueState
from sabot.errors import UserError

WINDOW_DAYS = (1, 7, 30)
DELAY_DAYS = 7

_COUNT = 1 << 40  # adds one row to a bucket; the bits below hold the sum, in ±2**39
_BUCKET = np.dtype("<i8")
_SPAN_DAYS = 64  # days of rows that are processed at once, so that a batch of years needs bounded memory

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


class CustomerFeatures:
    """The features of customers: the count and the mean amount of the customer's rows."""

    def __init__(self) -> None:
        self._buckets = _DayBuckets(max(WINDOW_DAYS))

    def update(self, ids: pa.Array, ts: pa.Array, amounts: pa.Array, state: ValueState) -> dict[str, _Floats | _Ints]:
        """Adds the rows to the state, and returns the rows' features by name, each with `len(ids)` values. There must
        be no nulls, and amounts must be within ±2**20.

        Reads and writes each id once. Raises UserError if the state has another layout.
        """
        units = np.rint(amounts.to_numpy(zero_copy_only=False) * AMOUNT_UNIT).astype(np.int64)
        windows = self._buckets.update(ids, ts, units, state)
        features: dict[str, _Floats | _Ints] = {}
        for days, packed in zip(WINDOW_DAYS, windows, strict=True):
            count, total = _unpack(packed)
            features[f"customer_count_{days}"] = count
            features[f"customer_mean_{days}"] = total / AMOUNT_UNIT / count
        return features


class TerminalFeatures:
    """The features of terminals: the count of the terminal's rows and the share of frauds among them, as known after
    the delay.
    """

    def __init__(self) -> None:
        self._buckets = _DayBuckets(max(WINDOW_DAYS), DELAY_DAYS)

    def update(self, ids: pa.Array, ts: pa.Array, is_fraud: pa.Array, state: ValueState) -> dict[str, _Floats | _Ints]:
        """Works like `CustomerFeatures.update`, with the labels of the rows instead of amounts."""
        labels = is_fraud.to_numpy(zero_copy_only=False).astype(np.int64)
        windows = self._buckets.update(ids, ts, labels, state)
        features: dict[str, _Floats | _Ints] = {}
        for days, packed in zip(WINDOW_DAYS, windows, strict=True):
            count, frauds = _unpack(packed)
            features[f"terminal_count_{days}"] = count
            features[f"terminal_risk_{days}"] = frauds / np.maximum(count, 1)
        return features


class _DayBuckets:
    """Packed pairs (count, sum) per id and day for the last days, and their sums over windows."""

    def __init__(self, longest_window: int, delay_days: int = 0) -> None:
        self._delay = delay_days
        self._kept = longest_window + delay_days

    def update(self, ids: pa.Array, ts: pa.Array, values: _Ints, state: ValueState) -> list[_Ints]:
        """Adds the rows to the state. Returns, for each window, the packed sum that each row sees, in the order of
        the rows.
        """
        id_of = ids.to_numpy(zero_copy_only=False)
        order = _stable_order(id_of)
        id_of = id_of[order]
        day = ts.to_numpy(zero_copy_only=False)[order] // DAY_MS
        packed = values[order] + _COUNT
        first = np.flatnonzero(np.diff(id_of, prepend=id_of[:1] - 1)) if len(id_of) else np.zeros(0, np.int64)
        # by row: the index of its id in `keys`
        owner = np.repeat(np.arange(len(first)), np.diff(first, append=len(id_of)))

        keys = pa.array(id_of[first])
        table = self._load(state.get_many(keys), len(first))
        newest, buckets = table[:, 0], table[:, 1:]
        day = _never_back(day, owner, first, newest)

        seen = [np.empty(len(day), np.int64) for _ in WINDOW_DAYS]
        left = np.arange(len(day))
        while len(left):  # runs once, unless the batch covers more than _SPAN_DAYS
            start = int(day[left].min())
            now = day[left] < start + _SPAN_DAYS
            rows, left = left[now], left[~now]
            sums = self._advance(newest, buckets, owner[rows], day[rows], packed[rows])
            for whole, part in zip(seen, sums, strict=True):
                whole[order[rows]] = part
        state.put_many(keys, _blobs(table))
        return seen

    def _advance(self, newest: _Ints, buckets: _Ints, owner: _Ints, day: _Ints, packed: _Ints) -> list[_Ints]:
        """Returns the packed sums of each window, for rows that are sorted by owner, then day. Adds the rows to
        `newest` and `buckets`.

        It works on a matrix with a line per owner and a column per day, the same days for all:

            origin                 start - kept            start                end
            |<------- kept ------->|<----- kept - 1 ------>|<- days of the rows ->|
             older buckets, unread   days that rows can see
        """
        kept = self._kept
        start, end = int(day.min()), int(day.max())
        origin = start - 2 * kept + 1
        width = end - origin + 1
        turn = np.diff(owner, prepend=-1) != 0
        owners = owner[turn]
        line = np.cumsum(turn) - 1
        lines = np.arange(len(owners))

        frame = np.zeros((len(owners), width), np.int64)
        windows = np.lib.stride_tricks.sliding_window_view(frame, kept, axis=1, writeable=True)
        windows[lines, np.maximum(newest[owners] - (origin + kept - 1), 0)] = buckets[owners]

        turn |= np.diff(day, prepend=start) != 0
        change = np.flatnonzero(turn)  # the first row of each (owner, day)
        ends = np.append(change[1:], len(day)) - 1
        cell = line * width + (day - origin)
        running = np.cumsum(packed)
        frame.reshape(-1)[cell[change]] += np.diff(running[ends], prepend=0)

        totals = np.cumsum(frame, axis=1).reshape(-1)
        cell -= self._delay
        last = totals[cell]
        if not self._delay:  # a row does not see the later rows of its own day
            last -= np.repeat(running[ends], np.diff(change, append=len(day))) - running
        sums = [last - totals[cell - days] for days in WINDOW_DAYS]

        newest[owners] = day[np.append(np.flatnonzero(np.diff(owner)), len(owner) - 1)]
        buckets[owners] = windows[lines, newest[owners] - (origin + kept - 1)]
        return sums

    def _load(self, found: pa.Array, ids: int) -> _Ints:
        """Decodes the stored values of the ids, which are null for new ids, into a matrix (ids, 1 + kept): the newest
        day, then the buckets.
        """
        table = np.zeros((ids, 1 + self._kept), _BUCKET)
        table[:, 0] = np.iinfo(np.int64).min // 2
        if found.null_count == len(found):
            return table
        known = found.drop_null().cast(pa.binary())
        _, offset_buffer, data = known.buffers()
        offsets = np.frombuffer(offset_buffer, np.int32, len(known) + 1, 4 * known.offset)
        if (np.diff(offsets) != table.strides[0]).any():
            raise UserError("the state of the fraud features has another layout", hint="start with --fresh")
        blobs = np.frombuffer(data, _BUCKET, len(known) * (1 + self._kept), int(offsets[0]))
        table[found.is_valid().to_numpy(zero_copy_only=False)] = blobs.reshape(len(known), -1)
        return table


def _stable_order(ids: _Ints) -> npt.NDArray[np.intp]:
    """Returns a stable argsort. numpy sorts 16-bit integers by radix, several times faster than wider ones."""
    if len(ids) and ids.min() >= 0 and ids.max() < 1 << 16:
        return np.argsort(ids.astype(np.uint16), kind="stable")
    return np.argsort(ids, kind="stable")


def _never_back(day: _Ints, owner: _Ints, first: _Ints, newest: _Ints) -> _Ints:
    """Returns the running maximum of the days of each id, beginning with its newest day."""
    if not len(day):
        return day
    day = day.copy()
    day[first] = np.maximum(day[first], newest)
    lowest = int(day.min())
    lift = owner * (int(day.max()) - lowest + 1)  # lifts each id's days above those of the id before it
    return np.asarray(np.maximum.accumulate(day - lowest + lift) - lift + lowest)


def _unpack(packed: _Ints) -> tuple[_Ints, _Ints]:
    count = (packed + _COUNT // 2) >> 40
    return count, packed - count * _COUNT


def _blobs(table: _Ints) -> pa.Array:
    width = table.strides[0]
    offsets = np.arange(len(table) + 1, dtype=np.int32) * np.int32(width)
    return pa.Array.from_buffers(pa.binary(), len(table), [None, pa.py_buffer(offsets), pa.py_buffer(table)])
