"""Who holds the event loop up."""

import logging
import types
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, TypeVar

from sabot.clock import Clock

T = TypeVar("T")

_log = logging.getLogger(__name__)

_LONG_SECONDS = 1.0


def watched(call: Awaitable[T], name: str, clock: Clock) -> Awaitable[T]:
    """The call; where it is a coroutine, a warning with the name is logged for each of its steps, from one `await` to the next, that takes
    a second or more: so long nothing else ran on the event loop.
    """
    return _in_steps(call, name, clock) if isinstance(call, types.CoroutineType) else call


@types.coroutine
def _in_steps(call: Coroutine[Any, Any, T], name: str, clock: Clock) -> Generator[Any, Any, T]:
    value: Any = None
    error: BaseException | None = None
    while True:
        began = clock.monotonic()
        try:
            waits_for = call.send(value) if error is None else call.throw(error)
        except StopIteration as over:
            result: T = over.value
            return result
        finally:
            took = clock.monotonic() - began
            if took >= _LONG_SECONDS:
                _log.warning(
                    "%s held the event loop up for %.1f s, and all else with it: await in it, or make it a plain def, for a thread",
                    name,
                    took,
                )
        value = error = None
        try:
            value = yield waits_for
        except BaseException as raised:  # it is the coroutine's to handle
            error = raised
