"""What a piece of work takes, counted: the same on each machine, however busy it is."""

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["calls_of"]


def calls_of(work: Callable[[], object]) -> int:
    """How many functions of Python it calls in this thread."""
    count = 0

    def on_call(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    gc.disable()  # what other tests have left would be taken apart in here, and its calls counted
    sys.setprofile(on_call)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count
