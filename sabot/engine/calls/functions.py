"""Inspects the user's functions, and runs those that yield their results in pieces."""

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial, wraps
from types import FunctionType, MethodType
from typing import Any, TypeVar, cast

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def unwrap(function: Any) -> Any:
    """Returns the function that a call runs: the function in a functools.partial or a tool, or the `__call__` of an object. Any
    other function is returned unchanged.
    """
    target = getattr(function, "func", function)
    while not isinstance(target, FunctionType | MethodType) and callable(inner := getattr(target, "func", None)):
        target = inner  # a partial of a tool, or the other way round
    if not inspect.isroutine(target) and callable(target):
        target = type(target).__call__
    return target


def stands_for(function: Any, signature: inspect.Signature | None = None) -> Callable[[F], F]:
    """A decorator for a function that is called in place of `function`, which may be a partial, a method or an object. It
    has the names, the annotations and the signature of that one, or the signature that is given.
    """
    typed = function
    if not inspect.isroutine(function):
        typed = function.func if isinstance(function, partial) else function.__call__

    def decorate(made: F) -> F:
        named: Any = wraps(typed)(made)
        named.__signature__ = inspect.signature(function) if signature is None else signature
        return cast("F", named)

    return decorate


def is_async_generator(function: Any) -> bool:
    """Returns True for an `async def` that yields."""
    return inspect.isasyncgenfunction(unwrap(function))


async def for_each_piece(pieces: AsyncGenerator[T, None], take: Callable[[T], Awaitable[None] | None]) -> None:
    """Runs an async generator, and passes each piece that it yields to `take`. If `take` returns an awaitable, waits
    for it before asking the generator for the next piece; so `take` can slow the generator down. Closes the generator
    at the end, also after an error.
    """
    try:
        async for piece in pieces:
            room = take(piece)
            if room is not None:
                await room
    finally:
        await pieces.aclose()


def awaitable(value: Any) -> tuple[Any, bool]:
    """Returns (a coroutine, True) if `value` has to be awaited, and otherwise (`value`, False)."""
    if value is None or not inspect.isawaitable(value):
        return value, False
    return (value if hasattr(value, "send") else _awaited(value)), True


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value
