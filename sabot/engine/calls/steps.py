"""Finds calls that block the event loop."""

import logging
import types
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, TypeVar

from sabot.clock import Clock

T = TypeVar("T")

_log = logging.getLogger(__name__)

_LONG_SECONDS = 1.0


def watched(call: Awaitable[T], name: str, clock: Clock) -> Awaitable[T]:
    """Returns an awaitable that does the same as `call`. If `call` is a coroutine, the awaitable also measures each
    step of it, from one `await` to the next. It logs a warning with `name` for each step of a second or more, because
    such a step blocks the event loop.
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
                    "%s blocked the event loop for %.1f s: await in it, or make it a plain def, which runs in a thread",
                    name,
                    took,
                )
        value = error = None
        try:
            value = yield waits_for
        except BaseException as raised:  # the coroutine handles it
            error = raised
