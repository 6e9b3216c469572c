"""From a thread's future to an event loop."""

import asyncio
from concurrent.futures import Future
from typing import Any

__all__ = ["done"]


async def done(future: Future[Any]) -> None:
    """Returns when the future is done, however it ended. Cancelling this leaves it alone.

    `asyncio.wrap_future` passes a cancellation on, and complains of an error that nobody fetched from its copy.
    """
    loop = asyncio.get_running_loop()
    finished = asyncio.Event()

    def wake(_: Future[Any]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(finished.set)

    future.add_done_callback(wake)
    await finished.wait()
