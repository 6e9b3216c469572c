"""`col("name").str`: what can be done with strings."""

from dataclasses import dataclass
from typing import Generic

from sabot.api.expr.made import E, Make
from sabot.api.expr.words import string_of, whole_of
from sabot.errors import UserError

__all__ = ["StringExpr"]


@dataclass(frozen=True, slots=True)
class StringExpr(Generic[E]):
    """`col("name").str`: strings. Patterns are RE2's: Rust's, except that \\w, \\d, \\s and \\b know ASCII only."""

    make: Make[E]

    def lower(self) -> E:
        """In lower case."""
        return self.make("str.lower")

    def upper(self) -> E:
        """In upper case."""
        return self.make("str.upper")

    def strip(self, characters: str | None = None) -> E:
        """Without these characters (white space) at both ends."""
        return self.make("str.strip", characters=None if characters is None else string_of("strip", characters))

    def split(self, by: str) -> E:
        """The list of what stands between `by`."""
        if not string_of("split", by):
            raise UserError("str.split: there is nothing to split by", hint='str.split(",")')
        return self.make("str.split", by=by)

    def contains(self, pattern: str, literal: bool = False) -> E:
        """Whether the regular expression (with `literal`, the text) is found in it."""
        return self.make("str.contains", pattern=string_of("contains", pattern), literal=bool(literal))

    def startswith(self, prefix: str) -> E:
        """Whether it begins with this text."""
        return self.make("str.startswith", prefix=string_of("startswith", prefix))

    def endswith(self, suffix: str) -> E:
        """Whether it ends with this text."""
        return self.make("str.endswith", suffix=string_of("endswith", suffix))

    def regexp_extract(self, pattern: str, group: int = 1) -> E:
        """What the group (0: all of it) of the first match holds; null without a match, "" for a group that took no part in it."""
        pattern = string_of("regexp_extract", pattern)
        return self.make("str.regexp_extract", pattern=pattern, group=whole_of("regexp_extract", group))

    def extract(self, pattern: str, group_index: int = 1) -> E:
        """As `regexp_extract`."""
        return self.regexp_extract(pattern, group_index)

    def length(self) -> E:
        """Characters, as int32."""
        return self.make("str.length")

    def slice(self, offset: int, length: int | None = None) -> E:
        """`length` characters (all) from `offset` on; an offset below 0 counts from the end."""
        taken = None if length is None else whole_of("slice", length)
        if taken is not None and taken < 0:
            raise UserError(f"str.slice: length {length} is negative")
        return self.make("str.slice", offset=whole_of("slice", offset), length=taken)

    def replace(self, pattern: str, value: str, literal: bool = False) -> E:
        """With `value` for the first match; $1 or ${1} in it stand for a group, $$ for a dollar sign (not with `literal`)."""
        return self._replaced("str.replace", pattern, value, literal)

    def replace_all(self, pattern: str, value: str, literal: bool = False) -> E:
        """With `value` for each match."""
        return self._replaced("str.replace_all", pattern, value, literal)

    def _replaced(self, kind: str, pattern: str, value: str, literal: bool) -> E:
        return self.make(kind, pattern=string_of(kind, pattern), value=string_of(kind, value), literal=bool(literal))

    to_lowercase = lower
    to_uppercase = upper
    strip_chars = strip
    starts_with = startswith
    ends_with = endswith
    len_chars = length
