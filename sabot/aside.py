"""Blocking work beside the event loop, in threads of the engine's own.

The pool behind `asyncio.to_thread` is the user's: when his calls fill it, checkpoints and deliveries must not wait behind them, least of
all when these calls wait for a checkpoint.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from sabot.exits import EXITS, carried

__all__ = ["aside"]

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 32  # more than waits at any time: a few for each checkpoint, one for each sink that is being closed

_pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="sabot-aside")


async def aside(work: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T:
    """The result of `work(*args, **options)`, which may block."""
    return await asyncio.get_running_loop().run_in_executor(_pool, partial(_done, partial(work, *args, **options)))


def _done(work: Callable[[], T]) -> T:
    try:
        return work()
    except EXITS as asked:  # the user's code is in there: a task that awaits this must not end the event loop
        raise carried(asked, "the user's code") from asked
