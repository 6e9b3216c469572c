"""`col("name").str`: methods for columns of strings."""

from dataclasses import dataclass
from typing import Generic

from sabot.api.expr.made import E, Make
from sabot.api.expr.words import string_of, whole_of
from sabot.errors import UserError

__all__ = ["StringExpr"]


@dataclass(frozen=True, slots=True)
class StringExpr(Generic[E]):
    """Methods of `col("name").str`. The syntax of patterns is RE2's: that of Rust, except that \\w, \\d, \\s and \\b match ASCII only."""

    make: Make[E]

    def lower(self) -> E:
        """Converts to lower case."""
        return self.make("str.lower")

    def upper(self) -> E:
        """Converts to upper case."""
        return self.make("str.upper")

    def strip(self, characters: str | None = None) -> E:
        """Removes these characters (white space by default) at both ends."""
        return self.make("str.strip", characters=None if characters is None else string_of("strip", characters))

    def split(self, by: str) -> E:
        """Splits at each `by` into a list of strings."""
        if not string_of("split", by):
            raise UserError("str.split: there is nothing to split by", hint='str.split(",")')
        return self.make("str.split", by=by)

    def contains(self, pattern: str, literal: bool = False) -> E:
        """Returns whether the string contains a match of the regular expression; with `literal`, the text itself."""
        return self.make("str.contains", pattern=string_of("contains", pattern), literal=bool(literal))

    def startswith(self, prefix: str) -> E:
        """Returns whether the string begins with this text."""
        return self.make("str.startswith", prefix=string_of("startswith", prefix))

    def endswith(self, suffix: str) -> E:
        """Returns whether the string ends with this text."""
        return self.make("str.endswith", suffix=string_of("endswith", suffix))

    def regexp_extract(self, pattern: str, group: int = 1) -> E:
        """Returns the group (0: all) of the first match; null if nothing matches, "" if the group took no part in the match."""
        pattern = string_of("regexp_extract", pattern)
        return self.make("str.regexp_extract", pattern=pattern, group=whole_of("regexp_extract", group))

    def extract(self, pattern: str, group_index: int = 1) -> E:
        """The same as `regexp_extract`."""
        return self.regexp_extract(pattern, group_index)

    def length(self) -> E:
        """Returns the number of characters, as int32."""
        return self.make("str.length")

    def slice(self, offset: int, length: int | None = None) -> E:
        """Returns `length` characters (by default all) from `offset` on; a negative offset counts from the end."""
        taken = None if length is None else whole_of("slice", length)
        if taken is not None and taken < 0:
            raise UserError(f"str.slice: length {length} is negative")
        return self.make("str.slice", offset=whole_of("slice", offset), length=taken)

    def replace(self, pattern: str, value: str, literal: bool = False) -> E:
        """Replaces the first match by `value`, in which $1 or ${1} stand for a group, and $$ for a dollar sign (not with `literal`)."""
        return self._replaced("str.replace", pattern, value, literal)

    def replace_all(self, pattern: str, value: str, literal: bool = False) -> E:
        """Replaces each match by `value`, as `replace` does."""
        return self._replaced("str.replace_all", pattern, value, literal)

    def _replaced(self, kind: str, pattern: str, value: str, literal: bool) -> E:
        return self.make(kind, pattern=string_of(kind, pattern), value=string_of(kind, value), literal=bool(literal))

    to_lowercase = lower
    to_uppercase = upper
    strip_chars = strip
    starts_with = startswith
    ends_with = endswith
    len_chars = length
