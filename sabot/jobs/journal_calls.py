"""Repeats calls of a journal while the journal's server does not answer."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sabot.base.threads import run_in_thread
from sabot.errors import TransientError

P = ParamSpec("P")
T = TypeVar("T")

_AGAIN_SECONDS = 0.1


async def call_journal(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls `call` in a thread, and returns its result. If the server of the journal does not answer
    (TransientError), calls it again until the server answers. This function has no time limit of its own: if the
    server is away for too long, the journal itself fails, because its entries cannot be written, and the app stops.
    """
    while True:
        try:
            return await run_in_thread(call, *args, **kwargs)
        except TransientError:
            await asyncio.sleep(_AGAIN_SECONDS)
