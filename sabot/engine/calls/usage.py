"""The usage of a model's call: its tokens, and what a cost may be."""

from decimal import Decimal
from operator import add

import msgspec

from sabot.base.checks import is_whole

_MOST_TOKENS = 10**12  # of an answer; the sum of nine million of them still fits into 64 bits
_INTEGERS = {int}  # without bool


def is_cost(value: object) -> bool:
    """Returns True if the value can be a cost in dollars: a finite Decimal or a whole number, and not negative."""
    return (isinstance(value, Decimal) and value.is_finite() and 0 <= value <= _MOST_TOKENS) or is_whole(
        value, 0, _MOST_TOKENS
    )


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """The numbers of tokens of a request, as the provider counts them.

    `input_tokens`: all tokens read, including `cached_tokens` (read from the vendor's cache) and `cache_write_tokens`
    (written to it). `output_tokens`: all tokens written, including `reasoning_tokens`.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """The sum of input and output tokens."""
        return self.input_tokens + self.output_tokens

    @property
    def is_possible(self) -> bool:
        """True if a request can have these numbers of tokens: none is negative or above 10¹²; the tokens that were read
        from the cache or written to it are not more than all input tokens; and reasoning tokens are not more than all
        output tokens.
        """
        counts = msgspec.structs.astuple(self)
        plain = {*map(type, counts)} == _INTEGERS and min(counts) >= 0 and max(counts) <= _MOST_TOKENS
        if not plain and not all(is_whole(each, 0, _MOST_TOKENS) for each in counts):
            return False
        return (
            self.cached_tokens + self.cache_write_tokens <= self.input_tokens
            and self.reasoning_tokens <= self.output_tokens
        )

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*map(add, msgspec.structs.astuple(self), msgspec.structs.astuple(other)))


def counted_usage(usage: Usage) -> Usage | None:
    """Returns the usage as budgets count it, which is never less than it says:

    - A part that is more than its whole was counted beside it: `cached_tokens` and `cache_write_tokens` are then added
      to the input, and `reasoning_tokens` to the output.
    - A part that no request can have (negative, or above 10¹²) counts as 0.

    Returns None if the input or the output is such a number.
    """
    if usage.is_possible:
        return usage
    if not (is_whole(usage.input_tokens, 0, _MOST_TOKENS) and is_whole(usage.output_tokens, 0, _MOST_TOKENS)):
        return None
    read, written, cached, kept, thought = (
        each if is_whole(each, 0, _MOST_TOKENS) else 0 for each in msgspec.structs.astuple(usage)
    )
    read += cached + kept if cached + kept > read else 0
    written += thought if thought > written else 0
    return Usage(min(read, _MOST_TOKENS), min(written, _MOST_TOKENS), cached, kept, thought)
