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
    """Calls `call` in a thread, and repeats the call as long as the server of the journal does not answer. Returns its
    result. There is no time limit here: the entries that wait for the same server have one, and the journal then ends
    the run of the app.
    """
    while True:
        try:
            return await run_in_thread(call, *args, **kwargs)
        except TransientError:
            await asyncio.sleep(_AGAIN_SECONDS)
