"""The size of an operator's state, read out of its figures, whose names differ with what the operator keeps."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_KEYS = ("keys", "groups", "values")
_ROWS = ("left_rows", "right_rows", "held_rows")
_BYTES = ("bytes", "left_bytes", "right_bytes", "held_bytes")


def state_size(figures: Mapping[str, Any]) -> "ToldStep":
    """Returns `state_keys`, the number of keys with state, or of the rows of an operator that keeps rows, as a join;
    and `state_bytes`, the size of the state in memory and on disk, which is an estimate.

    `figures`: the result of the operator's `statistics`.
    """
    keys = max((figures[name] for name in _KEYS if name in figures), default=None)
    if keys is None:
        keys = sum(figures.get(name, 0) for name in _ROWS)
    return {
        "state_keys": keys,
        "state_bytes": sum(figures.get(name, 0) for name in _BYTES) + figures.get("disk_bytes", 0),
    }
