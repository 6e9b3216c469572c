"""Checks of arguments: a kind defines which values are allowed, and `check` raises UserError for all others.

    rows = check("map_async: rows", rows, Whole(1))
    check_fields(self, max_depth=Whole(0), otherwise=OneOf(("deny", "ask")))

Texts with a notation of their own (durations, sizes, addresses, names) are read by `config`.
"""

import inspect
import re
from collections.abc import Collection, Iterable
from functools import partial
from types import UnionType
from typing import Any, Protocol, TypeGuard, TypeVar

from sabot.base.dataclass import dataclass
from sabot.base.redaction import has_password, redacted_url
from sabot.errors import UserError, short_repr

T = TypeVar("T")


class Kind(Protocol):
    """A set of values that an argument may have."""

    @property
    def wanted(self) -> str:
        """The hint of the error: a description of the allowed values."""

    def fits(self, value: Any) -> bool:
        """Returns True if the value is allowed."""


def check(what: str, value: T, kind: Kind) -> T:
    """Returns the value if it is of this kind, and raises UserError otherwise.

    `what`: the owner and the name of the argument, such as "join: how".
    """
    if not kind.fits(value):
        raise UserError(f"{what}={shown(value)}", hint=kind.wanted)
    return value


def check_fields(owner: object, where: str = "", **kinds: Kind) -> None:
    """Checks attributes of an object, given as name and kind. Raises UserError for the first wrong one.

    `where`: the owner's name in the message, by default the name of its class.
    """
    for name, kind in kinds.items():
        check(f"{where or type(owner).__name__}: {name}", getattr(owner, name), kind)


def shown(value: object) -> str:
    """Returns a value as messages show it: shortened, and without the password of a URL."""
    return short_repr(redacted_url(value) if isinstance(value, str) and has_password(value) else value)


@dataclass(frozen=True, slots=True)
class Whole:
    """Whole numbers from `least` to `most`; without an upper bound if `most` is None. True and False are not allowed."""

    least: int = 0
    most: int | None = None

    @property
    def wanted(self) -> str:
        return f"a whole number, {f'{self.least} or more' if self.most is None else f'{self.least} to {self.most}'}"

    def fits(self, value: Any) -> bool:
        return is_whole(value, self.least, self.most)


@dataclass(frozen=True, slots=True)
class OneOf:
    """Texts that are one of `words`."""

    words: Iterable[str]

    @property
    def wanted(self) -> str:
        return f"one of {', '.join(repr(str(word)) for word in self.words)}"

    def fits(self, value: Any) -> bool:
        return isinstance(value, str) and value in tuple(self.words)


@dataclass(frozen=True, slots=True)
class Of:
    """Values of a type. `hint`: an example of such a value, for the error."""

    type: type | UnionType
    hint: str = ""

    @property
    def wanted(self) -> str:
        return self.hint or f"a {getattr(self.type, '__name__', self.type)}"

    def fits(self, value: Any) -> bool:
        return isinstance(value, self.type)


@dataclass(frozen=True, slots=True)
class Texts:
    """Collections of at least `least` texts. A single text is not allowed; if `least` is above 0, no text may be
    empty.
    """

    least: int = 0
    hint: str = "texts in a list"

    @property
    def wanted(self) -> str:
        return self.hint

    def fits(self, value: Any) -> bool:
        if isinstance(value, str | bytes) or not isinstance(value, Collection) or len(value) < self.least:
            return False
        return all(isinstance(each, str) and (each or not self.least) for each in value)


FLAG = Of(bool, "True or False")  # bool("no") is True
TEXT = Of(str, "a text")
TEXTS = Texts()


def check_pattern(what: str, pattern: str) -> None:
    """Raises UserError for an `fnmatch` pattern with a "[" that no "]" closes, and one with a range in which nothing
    lies. `fnmatch` takes the first for the character "[", and lets the second match nothing.

    `what`: the owner and the name of the argument, as in `check`.
    """
    at = pattern.find("[")
    while at >= 0:
        first = at + 2 if pattern[at + 1 : at + 2] == "!" else at + 1
        end = pattern.find("]", first + 1)  # a "]" at the first place is a character
        wrong = 'its "[" has no "]"' if end < 0 else ""
        for low, high in re.findall("(.)-(.)", pattern[first:end]):
            wrong = wrong or (f"nothing lies in {low}-{high}" if low > high else "")
        if wrong:
            raise UserError(f"{what}: the pattern {short_repr(pattern)} is broken: {wrong}", hint='"[[]" matches a "["')
        at = pattern.find("[", end + 1)


def is_whole(value: object, least: int, most: int | None = None) -> bool:
    """Returns True for a whole number from `least` to `most`, both included. True and False are not numbers."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value and (most is None or value <= most)


def is_number(value: object) -> TypeGuard[int | float]:
    """Returns True for a number. True and False are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_called(where: str, **functions: object) -> None:
    """Raises UserError if one of the functions is async, because its result would not be awaited. An object with an
    async `__call__` counts too.

    None and values that cannot be called pass.
    """
    for name, function in functions.items():
        plain = inspect.isroutine(function) or isinstance(function, partial)
        target = function if plain else getattr(type(function), "__call__", None)  # noqa: B004 - a class is called otherwise
        if inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target):
            raise UserError(
                f"{where}: {name}={short_repr(function)} is async, but it is called without await",
                hint="give a plain function; it can start a task, or put long work into a queue",
            )
