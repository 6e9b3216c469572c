"""What is asked of a journal while jobs run, whose home may be gone for a while."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sabot.errors import TransientError
from sabot.threads import aside

P = ParamSpec("P")
T = TypeVar("T")

_AGAIN_SECONDS = 0.1


async def answered(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `threads.aside`, asked again for as long as the journal's home does not answer. Entries wait for it too: it is the journal that
    loses its patience, and ends the run.
    """
    while True:
        try:
            return await aside(call, *args, **kwargs)
        except TransientError:
            await asyncio.sleep(_AGAIN_SECONDS)
