"""Calls of a journal that wait while its server does not answer."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sabot.base.threads import run_in_thread
from sabot.errors import TransientError

P = ParamSpec("P")
T = TypeVar("T")

_AGAIN_SECONDS = 0.1


async def call_journal(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs `call` in a thread, and repeats it as long as the server of the journal does not answer. There is no limit
    of time: entries wait for the same server, and the journal ends the run if they wait too long.
    """
    while True:
        try:
            return await run_in_thread(call, *args, **kwargs)
        except TransientError:
            await asyncio.sleep(_AGAIN_SECONDS)
