"""The distinct slots of a batch, and the changes of their rows. See changes.pyi for the contract. Plain loops over
numpy arrays.
"""

import numpy as np

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t

__all__ = ["Touches", "weave", "woven"]


cdef class Touches:
    """Finds the distinct slots of a batch, in the order of their first rows. See changes.pyi."""

    cdef object array
    cdef int32_t[::1] places        # by slot: its index among the slots of this call, or -1

    def __init__(self):
        self.array = np.full(1024, -1, np.int32)
        self.places = self.array

    cdef int reach(self, int64_t slot) except -1:
        cdef int64_t known = len(self.array)
        if slot >= known:
            self.array = np.full(max(slot + 1, 2 * known), -1, np.int32)
            self.places = self.array
        return 0

    def of(self, const int32_t[::1] slots, times=None):
        cdef int64_t count = len(slots), i
        cdef int32_t slot, highest = -1, least = 0, place, found = 0
        cdef bint fresh
        touched = np.empty(count, np.int32)
        rows = np.empty(count, np.int32)
        inverse = np.empty(count, np.int32)
        latest = None if times is None else np.empty(count, np.int64)
        if times is not None and len(times) != count:
            raise ValueError(f"{len(times)} times for {count} rows")
        if not count:
            return touched, rows, inverse, latest
        cdef int32_t[::1] out = touched
        cdef int32_t[::1] first = rows
        cdef int32_t[::1] back = inverse
        cdef const int64_t[::1] when
        cdef int64_t[::1] last
        with nogil:
            for i in range(count):
                highest = max(highest, slots[i])
                least = min(least, slots[i])
        if least < 0:
            raise IndexError(f"there is no slot {least}")
        self.reach(highest)
        cdef int32_t[::1] places = self.places
        with nogil:
            for i in range(count):  # without a branch, which would be mispredicted
                slot = slots[i]
                place = places[slot]
                fresh = place < 0
                place = found if fresh else place
                places[slot] = place
                out[found] = slot  # for a slot seen before, the next row overwrites this, and the row below
                first[found] = <int32_t> i
                back[i] = place
                found += fresh
            for i in range(found):
                places[out[i]] = -1
        if times is not None:
            when = times
            last = latest
            with nogil:
                for i in range(found):
                    last[i] = when[first[i]]
                for i in range(count):
                    place = back[i]
                    last[place] = max(last[place], when[i])
            latest = latest[:found]
        return touched[:found], rows[:found], inverse, latest


def weave(taken, added):
    """Lists the changes of keys. See changes.pyi."""
    cdef const uint8_t[::1] away = np.ascontiguousarray(taken).view(np.uint8)
    cdef const uint8_t[::1] here = np.ascontiguousarray(added).view(np.uint8)
    cdef int64_t count = len(away), i, total = 0
    if len(here) != count:
        raise ValueError(f"`added` has {len(here)} rows, and `taken` has {count}")
    for i in range(count):
        total += (away[i] != 0) + (here[i] != 0)
    rows = np.empty(total, np.int32)
    choice = np.empty(total, np.int32)
    ops = np.empty(total, np.int8)
    if not total:
        return rows, choice, ops
    cdef int32_t[::1] row = rows
    cdef int32_t[::1] chosen = choice
    cdef int8_t[::1] op = ops
    cdef int64_t at = 0
    with nogil:
        for i in range(count):
            if away[i]:
                row[at] = <int32_t> i
                chosen[at] = <int32_t> i
                op[at] = 1 if here[i] else 3
                at += 1
            if here[i]:
                row[at] = <int32_t> i
                chosen[at] = <int32_t> (i + count)
                op[at] = 2 if away[i] else 0
                at += 1
    return rows, choice, ops


def woven(const int64_t[::1] before, const int64_t[::1] after, const int32_t[::1] choice):
    """Picks values of both arrays by `choice`. See changes.pyi."""
    cdef int64_t count = len(before), total = len(choice), i
    cdef int32_t place
    if len(after) != count:
        raise ValueError(f"{count} rows before, {len(after)} after")
    result = np.empty(total, np.int64)
    if not total:
        return result
    cdef int64_t[::1] out = result
    cdef bint within = True
    with nogil:
        for i in range(total):
            within &= 0 <= choice[i] < 2 * count
        if within:
            for i in range(total):
                place = choice[i]
                out[i] = before[place] if place < count else after[place - count]
    if not within:
        raise IndexError(f"a row number is outside of the {count} rows before and the {count} rows after")
    return result
