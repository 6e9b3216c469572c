"""The methods of `col("name").str`, for columns of texts."""

from collections.abc import Mapping
from typing import Any, ClassVar, Generic

import pyarrow as pa

from sabot.api.elsewhere import TEXTS, NamedElsewhere
from sabot.api.expr.made import E, Make
from sabot.api.expr.words import as_type, whole_of
from sabot.base.checks import FLAG, TEXT, OneOf, check
from sabot.base.dataclass import dataclass
from sabot.errors import UserError

_WIDEST = 10_000  # the greatest length in characters for padding


@dataclass(frozen=True, slots=True)
class StringExpr(NamedElsewhere, Generic[E]):
    r"""The methods of `col("name").str`, for columns of texts. All of them return null for null.

    Regular expressions have the syntax of RE2, which is that of Rust's `regex`, but \w, \d, \s and \b match ASCII
    only.
    """

    _elsewhere: ClassVar[Mapping[str, str]] = TEXTS
    _of_engine: ClassVar[str] = "make"
    make: Make[E]

    def lower(self) -> E:
        """Converts to lower case."""
        return self.make("str.lower")

    def upper(self) -> E:
        """Converts to upper case."""
        return self.make("str.upper")

    def to_titlecase(self) -> E:
        """Converts the first letter of each word to upper case, and the others to lower case. A word consists of letters
        and digits.
        """
        return self.make("str.to_titlecase")

    def strip(self, characters: str | None = None) -> E:
        """Removes these characters (white space by default) at both ends."""
        return self.make(
            "str.strip", characters=None if characters is None else check("strip: characters", characters, TEXT)
        )

    def strip_start(self, characters: str | None = None) -> E:
        """Removes these characters (white space by default) at the start."""
        return self.make(
            "str.strip_start",
            characters=None if characters is None else check("strip_start: characters", characters, TEXT),
        )

    def strip_end(self, characters: str | None = None) -> E:
        """Removes these characters (white space by default) at the end."""
        return self.make(
            "str.strip_end", characters=None if characters is None else check("strip_end: characters", characters, TEXT)
        )

    def pad_start(self, length: int, fill_char: str = " ") -> E:
        """Adds `fill_char` at the start up to this number of characters, at most 10,000. A longer text does not
        change.
        """
        return self.make("str.pad_start", length=_width("pad_start", length), fill_char=_one("pad_start", fill_char))

    def pad_end(self, length: int, fill_char: str = " ") -> E:
        """Adds `fill_char` at the end up to this number of characters, at most 10,000. A longer text does not change."""
        return self.make("str.pad_end", length=_width("pad_end", length), fill_char=_one("pad_end", fill_char))

    def split(self, by: str) -> E:
        """Splits the text at each `by` into a list. Raises UserError if `by` is empty."""
        if not check("split: by", by, TEXT):
            raise UserError("str.split: `by` is empty", hint='str.split(",")')
        return self.make("str.split", by=by)

    def contains(self, pattern: str, literal: bool = False) -> E:
        """Returns True if the text contains a match of the regular expression. With `literal`, `pattern` is not a
        regular expression, but the text to find.
        """
        return self.make(
            "str.contains",
            pattern=check("contains: pattern", pattern, TEXT),
            literal=check("contains: literal", literal, FLAG),
        )

    def count_matches(self, pattern: str, literal: bool = False) -> E:
        """Returns the number of matches of the regular expression that do not overlap, as int32. With `literal`,
        `pattern` is the text to find, which must not be empty.
        """
        if literal and not pattern:
            raise UserError(
                "str.count_matches: the text to count is empty", hint='str.count_matches("a", literal=True)'
            )
        return self.make(
            "str.count_matches",
            pattern=check("count_matches: pattern", pattern, TEXT),
            literal=check("count_matches: literal", literal, FLAG),
        )

    def startswith(self, prefix: str) -> E:
        """Returns True if the text begins with this text."""
        return self.make("str.startswith", prefix=check("startswith: prefix", prefix, TEXT))

    def endswith(self, suffix: str) -> E:
        """Returns True if the text ends with this text."""
        return self.make("str.endswith", suffix=check("endswith: suffix", suffix, TEXT))

    def regexp_extract(self, pattern: str, group: int = 1) -> E:
        """Returns a group of the first match; group 0 is the whole match.

        The result is null if the text has no match, and "" if the group took no part in the match.
        """
        pattern = check("regexp_extract: pattern", pattern, TEXT)
        return self.make("str.regexp_extract", pattern=pattern, group=whole_of("regexp_extract", group))

    def extract(self, pattern: str, group_index: int = 1) -> E:
        """Returns a group of the first match, by default the first group, as `regexp_extract` does."""
        return self.regexp_extract(pattern, group_index)

    def length(self) -> E:
        """Returns the number of characters, as int32."""
        return self.make("str.length")

    def len_bytes(self) -> E:
        """Returns the number of bytes in UTF-8, as int32."""
        return self.make("str.len_bytes")

    def to_datetime(self, format: str | None = None, strict: bool = True) -> E:
        """Reads a time from a text. Without `format` the text is in ISO 8601, such as "2024-02-29 13:45"; with
        `format` it is in that format, such as "%d.%m.%Y %H:%M:%S". The time is read as UTC.

        The result is timestamp[us] without a zone; a format with %z returns it with the zone UTC. Digits behind the
        microseconds are cut off. The codes of a format are %Y %m %d %H %M %S %b (Jan) %B (January) %F %T %R %z, and
        %I %p for an hour of half a day (03 PM); %f, %3f, %6f, %9f for the digits of a fraction of a second, and %.f for
        these digits with the decimal point. A text that is not such a time is an error of the row (DataError), which
        the stream's `on_error` handles; with `strict=False` it becomes null.
        """
        return self.make("str.to_datetime", format=_format(format), strict=check("to_datetime: strict", strict, FLAG))

    def strptime(self, dtype: Any, format: str | None = None, strict: bool = True) -> E:
        """Reads a date or a time. `dtype`: "date32" for a date, read as by `to_date`; "timestamp[us]" for a time,
        read as by `to_datetime`.

        Raises UserError for any other type; use `cast` on the result to get it.
        """
        if isinstance(dtype, str) and "%" in dtype:
            raise UserError(f"str.strptime: {dtype!r} is a format, no type", hint=f"str.to_datetime({dtype!r})")
        type = as_type(dtype)
        if type == pa.date32():
            return self.to_date(format, strict)
        if type == pa.timestamp("us"):
            return self.to_datetime(format, strict)
        raise UserError(
            f"str.strptime: {type} is neither date32 nor timestamp[us]", hint=f'str.to_datetime(…).cast("{type}")'
        )

    def to_date(self, format: str | None = None, strict: bool = True) -> E:
        """Reads a date such as 2024-02-29, or a date in a format with the codes of `to_datetime`.

        A text that is not such a date is an error of the row (DataError), which the stream's `on_error` handles; with
        `strict=False` it becomes null.
        """
        return self.make("str.to_date", format=_format(format), strict=check("to_date: strict", strict, FLAG))

    def reverse(self) -> E:
        """Returns the characters in the opposite order."""
        return self.make("str.reverse")

    def json_path_match(self, json_path: str, only: str | None = None, *, strict: bool = False) -> E:
        """Returns the value at a path of a JSON text, such as `$.items[0].name`, as a text. An object or a list is
        returned as JSON.

        The result is null if there is no value at the path, if the value is JSON's null, or if the text is not JSON.
        With `strict=True` each of these is an error of the row (DataError), which the stream's `on_error` handles.

        `only`: "scalar" returns null for objects and lists; "nested" returns null for all other values; "json"
        returns every value as JSON, so that a text has its quotes. Raises UserError for a path that may match several
        values.
        """
        if only is not None:
            check("json_path_match: only", only, OneOf(("scalar", "nested", "json")))
        path = check("json_path_match: json_path", json_path, TEXT)
        failing = {"strict": True} if check("json_path_match: strict", strict, FLAG) else {}
        return self.make("str.json_path_match", json_path=path, only=only, **failing)

    def json_exists(self, json_path: str) -> E:
        """Returns True if there is a value at a path of a JSON text, also if it is JSON's null. Returns False if
        there is none, or if the text is not JSON.
        """
        return self.make("str.json_exists", json_path=check("json_exists: json_path", json_path, TEXT))

    def is_json(self, of: str = "value") -> E:
        """Returns True if the text is JSON of this kind. `of`: "value" for any JSON, or "object", "array" or
        "scalar".
        """
        return self.make("str.is_json", of=check("is_json: of", of, OneOf(("value", "object", "array", "scalar"))))

    def slice(self, offset: int, length: int | None = None) -> E:
        """Returns `length` characters (by default all) from `offset`; a negative offset counts from the end.

        Raises UserError if `length` is negative.
        """
        taken = None if length is None else whole_of("slice", length)
        if taken is not None and taken < 0:
            raise UserError(f"str.slice: length {length} is negative")
        return self.make("str.slice", offset=whole_of("slice", offset), length=taken)

    def replace(self, pattern: str, value: str, literal: bool = False) -> E:
        """Replaces the first match of the regular expression by `value`.

        In `value`, $1 or ${1} is a group of the match and $$ a dollar sign. With `literal`, both arguments are plain
        texts.
        """
        return self._replaced("str.replace", pattern, value, literal)

    def replace_all(self, pattern: str, value: str, literal: bool = False) -> E:
        """Replaces each match by `value`, as `replace` does. With `literal`, an empty `pattern` raises UserError."""
        return self._replaced("str.replace_all", pattern, value, literal)

    def _replaced(self, kind: str, pattern: str, value: str, literal: bool) -> E:
        if not check(f"{kind}: pattern", pattern, TEXT) and literal and kind == "str.replace_all":
            raise UserError(
                "str.replace_all: the text to replace is empty", hint='str.replace_all("a", "b", literal=True)'
            )
        return self.make(
            kind,
            pattern=pattern,
            value=check(f"{kind}: value", value, TEXT),
            literal=check(f"{kind}: literal", literal, FLAG),
        )

    to_lowercase = lower
    to_uppercase = upper
    strip_chars = strip
    strip_chars_start = strip_start
    strip_chars_end = strip_end
    starts_with = startswith
    ends_with = endswith
    len_chars = length


def _format(format: str | None) -> str | None:
    return None if format is None else check("format: format", format, TEXT)


def _width(where: str, length: int) -> int:
    if whole_of(where, length) < 0:
        raise UserError(f"str.{where}: length {length} is negative")
    if length > _WIDEST:
        raise UserError(
            f"str.{where}: length {length} is more than {_WIDEST:,}", hint="each value would be as long as that"
        )
    return int(length)


def _one(where: str, character: str) -> str:
    if len(check(f"{where}: fill_char", character, TEXT)) != 1:
        raise UserError(f"str.{where}: {character!r} is not one character", hint=f'str.{where}(8, "0")')
    return character
