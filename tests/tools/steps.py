"""Crashes at the steps of a pipeline, so many as a run of the tests has time for."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sabot.testing import Crashes, crash_at_every_step
from tools.drawing import commit

__all__ = ["crashes_survived"]

_TRIED = 80


def crashes_survived(
    build: Callable[[Path], Any], check: Callable[[Path], Any], *kinds: str, share: float = 0.8, **how: Any
) -> Crashes:
    """Crashes before, after and in the middle of 80 steps, drawn by the commit; with EVERY=1 of all of them. Raises AssertionError
    where one changes what `check` finds, where the pipeline has no steps of one of these kinds, or where fewer than this share of the
    runs came to their step.
    """
    if not os.environ.get("EVERY"):
        how |= {"sample": _TRIED, "seed": commit()}
    crashes = crash_at_every_step(build, check, workers=2, **how)
    print(crashes)
    assert set(kinds) <= crashes.kinds.keys()
    assert crashes.died >= crashes.runs * share
    return crashes
