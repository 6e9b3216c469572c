"""Facts about the user's functions: what really runs, and whether its results come in pieces."""

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


def unwrap(function: Any) -> Any:
    """The function that runs when this is called: that of a functools.partial, the `__call__` of an object."""
    target = getattr(function, "func", function)
    if not inspect.isroutine(target) and callable(target):
        target = type(target).__call__
    return target


def is_async_generator(function: Any) -> bool:
    """It is an `async def` that yields."""
    return inspect.isasyncgenfunction(unwrap(function))


async def for_each_piece(pieces: AsyncGenerator[T, None], take: Callable[[T], Awaitable[None] | None]) -> None:
    """Gives each piece to `take` as it comes. The next one is asked for when what `take` returned, if anything, has been awaited: so
    whoever has no room holds up the function. The generator is closed in any case.
    """
    try:
        async for piece in pieces:
            room = take(piece)
            if room is not None:
                await room
    finally:
        await pieces.aclose()


def awaitable(value: Any) -> tuple[Any, bool]:
    """What a function gave -> (a coroutine, True) if it is to be awaited, (the value, False) if not."""
    if value is None or not inspect.isawaitable(value):
        return value, False
    return (value if hasattr(value, "send") else _awaited(value)), True


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value
