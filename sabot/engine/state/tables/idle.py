"""Chooses for `store` which groups leave the memory when there are too many: those that were idle for longest."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from sabot._cython.groups.keyed import GroupTable


def longest_idle(tables: Sequence[GroupTable], goal: int, tick: int, since: int = 0) -> tuple[list[pa.Int32Array], int]:
    """Chooses the groups that were not touched for the longest time, `goal` or a few more of all tables together.
    Returns the slots to evict, by table, and a tick for `since` of the next call.

    `tick`: the current tick of the tables, the clock by which they note when a group was touched. `since`: the tick
    that an earlier call returned; the search begins there.
    """
    low, high = since, tick + 1  # idle since `low`: fewer than the goal; idle since `high`: all
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sum(len(each.idle_since(middle)) for each in tables) < goal else (low, middle)
    older = [each.idle_since(low).to_numpy() for each in tables]
    # If the ticks have begun again from 0, `tick` is less than the ticks of groups that were not touched since then.
    idle = [(each.slots() if high > tick else each.idle_since(high)).to_numpy() for each in tables]
    last = [np.setdiff1d(new, old, assume_unique=True) for new, old in zip(idle, older, strict=True)]
    # Of the groups that were last touched at tick `low`, each table evicts the same share.
    share = min(max(goal - sum(map(len, older)), 0) / max(sum(map(len, last)), 1), 1.0)
    leaving = [np.concatenate([old, new[: math.ceil(len(new) * share)]]) for old, new in zip(older, last, strict=True)]
    return [pa.array(each) for each in leaving], low
