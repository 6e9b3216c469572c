"""Time zones: conversion between UTC and the local time of a zone.

The rules of zones come from `zoneinfo`, which knows them for all years. (pyarrow reads only the list of changes,
which ends with 2037 or, in smaller editions of the data, with the last change of a rule.) zoneinfo converts one time
per call. So the changes of a zone are computed once for each ten years, and a batch is compared with them.

                   start            start
    ───────────────┬────────────────┬──────────▶ UTC     an interval: from a change to the next, with one offset
      offset +1h   │   offset +2h   │  offset +1h
"""

import datetime
import functools
import itertools
import re
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

from sabot.base.arrays import PER_SECOND, integer_array, integers, is_utc
from sabot.base.dataclass import dataclass

_DAY = 86400
_FIRST = -130 * 365 * _DAY  # 1840: no zone has an earlier change
_LAST = 830 * 365 * _DAY  # 2799: from here on the rules repeat every 400 years, as the calendar does
_CYCLE = 146097 * _DAY
_BLOCK = 3650 * _DAY
_PROBE = 3 * _DAY  # two changes of a zone are at least 3.98 days apart, in all of tzdata
_UTC = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_LEAST, _GREATEST = -(2**63), 2**63 - 1

Change = tuple[int, int, str]
"""A change of a zone: its second since 1970 UTC, the offset from UTC in seconds from then on, the abbreviation
("CEST").
"""


@dataclass(frozen=True, slots=True)
class Intervals:
    """The intervals of a time zone that the times of a column fall into.

    `starts`, `offsets`: of each interval, in the column's unit. `names`: the abbreviations ("CEST"), as for `%Z`.
    `rows`: the number of each time's interval, or one number if all are in the same. `cycles`: for times after 2799,
    the whole cycles of 400 years that were subtracted before the look-up, in the column's unit; 0 for other times.
    """

    starts: Any
    offsets: Any
    names: tuple[str, ...]
    rows: Any
    cycles: Any

    @classmethod
    def of(cls, values: Any, zone: str | None, unit: str) -> "Intervals":
        """Finds the intervals of times.

        `values`: times since 1970 UTC in `unit` (numpy). Raises ArrowInvalid for an unknown zone, and for times
        within a day of the ends of 64 bits, whose local time may not fit.
        """
        per_second = PER_SECOND[unit]
        low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
        if low < _LEAST + _DAY * per_second or high > _GREATEST - _DAY * per_second:
            raise pa.ArrowInvalid(f"this time is too far from 1970 for the time zone {zone}")
        cycles: Any = 0
        if high >= _LAST * per_second:
            cycle = _CYCLE * per_second
            cycles = np.maximum((values - _LAST * per_second) // cycle + 1, 0) * cycle
            values = values - cycles
            low, high = int(values.min()), int(values.max())
        blocks = [
            max(each // per_second - _FIRST, 0) // _BLOCK
            for each in (low - _DAY * per_second, high + _DAY * per_second)
        ]
        starts, offsets, names = _table(zone, per_second, *blocks)
        return cls(starts, offsets, names, _places(starts[1:], values), cycles)


def intervals_of(array: pa.Array) -> Intervals:
    """Returns the intervals of the times of an array. A type without a time zone counts as UTC."""
    return Intervals.of(_valid(array), array.type.tz, array.type.unit)


def zone_texts(array: pa.Array, code: str) -> pa.Array:
    """Returns the text of `%z` ("+0200") or `%Z` ("CEST") for each time of an array. A type without a time zone
    counts as UTC.
    """
    found = intervals_of(array)
    texts = found.names
    if code == "z":
        minutes = (found.offsets // PER_SECOND[array.type.unit] // 60).tolist()
        texts = tuple(f"{'-' if each < 0 else '+'}{abs(each) // 60:02}{abs(each) % 60:02}" for each in minutes)
    rows = np.broadcast_to(found.rows, len(array))
    return pa.array(texts, pa.string()).take(pa.array(rows, mask=array.is_null().to_numpy(zero_copy_only=False)))


def clock_of(array: pa.Array, step_s: int = 1) -> pa.Array:
    """Converts timestamps to the local time of their time zone, as timestamps without a zone. `step_s`: 60 for a clock whose
    distance from UTC is in whole minutes, as `zone_texts` writes it; until 1972 some had seconds (-00:25:21 is -0026).
    """
    found = intervals_of(array)
    step = step_s * PER_SECOND[array.type.unit]
    offsets = found.offsets // step * step
    return integer_array(_valid(array) + offsets[found.rows], pa.timestamp(array.type.unit), array)


def times_at(clock: Any, array: pa.Array) -> pa.Array:
    """Converts local times of a zone to timestamps. A local time that occurs twice gives the earlier one; a local
    time that is skipped gives the end of the gap.

    `clock`: local times in the unit of `array` (numpy). `array`: its type has the zone, and its nulls become those of
    the result.
    """
    if array.null_count:
        clock = np.where(array.is_null().to_numpy(zero_copy_only=False), 0, clock)
    found = Intervals.of(clock, array.type.tz, array.type.unit)
    clock = clock - found.cycles
    rows = _places(found.starts[1:] + found.offsets[:-1], clock)  # the end of each interval in its own local time
    made = np.maximum(clock - found.offsets[rows], found.starts[rows])
    return integer_array(made + found.cycles, array.type, array)


def later_times(made: pa.Array) -> tuple[pa.Array, Any]:
    """Returns, for times of a zone, the next time at which the clock of the zone shows the same, and True for each time that has one.

    `made`: times of which the clock shows the first occurrence, as `times_at` gives them.
    """
    found, values = intervals_of(made), _valid(made)
    rows = np.broadcast_to(found.rows, len(made))
    after = np.minimum(rows + 1, len(found.offsets) - 1)
    later = values + found.offsets[rows] - found.offsets[after]
    twice = (after > rows) & (later - found.cycles >= found.starts[after])
    return integer_array(np.where(twice, later, values), made.type, made), twice


def times_before(past: Any, array: pa.Array, found: Intervals) -> pa.Array:
    """Returns, for each time of `array`, the last earlier time at which the zone's clock shows `past` less. If the
    clock skips that local time, returns the end of the gap.

    Example: at 10:00 with a `past` of 3 hours, the result is the time at which the clock showed 7:00, even if the
    clock was changed in between. `past`: less than a day, in the array's unit. `found`: the intervals of the array.
    """
    values = _valid(array) - found.cycles
    starts = found.starts[found.rows]
    made = values - past
    if np.any(made < starts):  # the offset has changed in between
        before = np.maximum(found.rows - 1, 0)
        earlier = made + found.offsets[found.rows] - found.offsets[before]
        made = np.where(made < starts, np.minimum(earlier, starts), made)
    return integer_array(made + found.cycles, array.type, array)


def _valid(array: pa.Array) -> Any:
    """Returns the times as integers, with 0 for null, because the value behind a null may be any number."""
    values = integers(array)
    return np.where(array.is_null().to_numpy(zero_copy_only=False), 0, values) if array.null_count else values


def _places(bounds: Any, values: Any) -> Any:
    """Returns how many of the sorted bounds are less than or equal to each value, or one number if it is the same for
    all.
    """
    if not len(values):
        return 0
    least, most = np.searchsorted(bounds, [values.min(), values.max()], "right").tolist()
    return least if least == most else np.searchsorted(bounds, values, "right")


@functools.lru_cache(maxsize=1024)
def _table(zone: str | None, per_second: int, first: int, last: int) -> tuple[Any, Any, tuple[str, ...]]:
    """Returns the starts, offsets and names of the intervals in these blocks of years. The first interval begins
    before all times.
    """
    changes = [change for block in range(first, last + 1) for change in _changes(zone, block)]
    changes = [changes[0], *(new for old, new in itertools.pairwise(changes) if new[1:] != old[1:])]
    starts = [max(change[0] * per_second, _LEAST) for change in changes]
    offsets = [change[1] * per_second for change in changes]
    return np.array([_LEAST, *starts[1:]]), np.array(offsets), tuple(change[2] for change in changes)


@functools.lru_cache(maxsize=4096)
def _changes(zone: str | None, block: int) -> list[Change]:
    """Returns the changes of a zone in a block of ten years, and before them the state at the start of the block.
    Raises ArrowInvalid for an unknown zone.
    """
    if zone is None or is_utc(zone):
        return [(_FIRST + block * _BLOCK, 0, "UTC")]
    if (fixed := re.fullmatch(r"([+-])(\d\d):?(\d\d)", zone)) is not None:
        seconds = int(f"{fixed[1]}1") * (int(fixed[2]) * 3600 + int(fixed[3]) * 60)
        return [(_FIRST + block * _BLOCK, seconds, zone)]
    try:
        known = ZoneInfo(zone)
    except (KeyError, ValueError, OSError) as error:
        raise pa.ArrowInvalid(f"Cannot locate timezone '{zone}': {error}") from error

    def state(second: int) -> tuple[int, str]:
        shown = (_UTC + datetime.timedelta(seconds=second)).astimezone(known)
        return round((shown.utcoffset() or datetime.timedelta()).total_seconds()), shown.tzname() or ""

    begin = _FIRST + block * _BLOCK
    made = [(begin, *state(begin))]
    for end in range(begin + _PROBE, begin + _BLOCK + _PROBE, _PROBE):
        if (after := state(min(end, begin + _BLOCK))) != made[-1][1:]:
            low, high = end - _PROBE, min(end, begin + _BLOCK)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if state(middle) == made[-1][1:] else (low, middle)
            made.append((high, *after))
    return made
