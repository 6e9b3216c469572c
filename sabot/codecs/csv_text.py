"""The text form of CSV: values from fields and fields from values, for files and for the payloads of records."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from sabot._cython.arrow.batch import normalise
from sabot.base.arrays import PER_SECOND, has_far_times, integers, time_texts, to_unit
from sabot.codecs.json import loses_digits, whole_number
from sabot.errors import UserError

_UNQUOTABLE = '"\r\n'
# The most values that are cast one by one to find those that fail.
_SINGLY = 8
_WHOLE_MINUTES = 64_000_000  # seconds: in January 1972 the last clock, that of Monrovia, came to whole minutes from UTC


def checked_delimiter(mark: Any, what: str) -> str:
    """Returns a character that may stand between fields. Raises UserError, which names `what`, for anything else."""
    if isinstance(mark, str) and len(mark) == 1 and mark.isascii() and mark not in _UNQUOTABLE:
        return mark
    raise UserError(f"{what}(delimiter={mark!r})", hint='one character of ASCII, as "," or "\\t"; no quote')


def parse_options(delimiter: str, **more: Any) -> csv.ParseOptions:
    """Returns options with which a quoted field may contain line breaks."""
    return csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, **more)


def convert_options(
    wanted: pa.Schema | None,
    names: Sequence[str] = (),
    null_values: Sequence[str] = (),
    decimal_point: str = ".",
) -> csv.ConvertOptions:
    """Returns options for the conversion of fields to columns. `wanted`: the columns, found by name, or None to guess
    their types. `names`: the names of all fields. `null_values`: further texts that are null. `decimal_point`: the
    character before the fraction of a number. An empty field is null, and a quoted empty field is an empty text.

    Raises UserError for a type that cannot be read from text.
    """
    options = csv.ConvertOptions(
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=["", *null_values],
        decimal_point=decimal_point,
    )
    if wanted is not None:
        for field in wanted:
            if not _is_parsed(field.type):
                raise UserError(
                    f"column {field.name!r} of type {field.type} cannot be read from CSV", hint="make it a string"
                )
        options.column_types = {field.name: _parsed_type(field.type) for field in wanted}
        options.include_columns = wanted.names or list(names[:1])  # an empty list would include all columns
    return options


def _is_parsed(kind: Any) -> bool:
    """Returns False for types whose values Arrow cannot parse."""
    types = pa.types
    if types.is_decimal(kind):
        return bool(types.is_decimal128(kind))
    refused = (types.is_nested, types.is_interval, types.is_float16, types.is_string_view, types.is_binary_view)
    return not any(is_kind(kind) for is_kind in refused)


def _parsed_type(kind: Any) -> Any:
    """Returns the type as which Arrow parses a field of this type: it refuses digits of the second that a type lacks."""
    return pa.timestamp("us", kind.tz) if pa.types.is_timestamp(kind) and kind.unit in ("s", "ms") else kind


def in_units(data: pa.RecordBatch, wanted: pa.Schema) -> pa.RecordBatch:
    """Returns fields that were parsed by `convert_options` in the types of `wanted`: times rounded down to their unit."""
    for number, field in enumerate(wanted):
        if data.schema.field(number).type != field.type and pa.types.is_timestamp(field.type):
            data = data.set_column(number, field, to_unit(data.column(number), field.type.unit))
    return data


def parse_error(value: bytes, kind: Any) -> str:
    """Returns the message of Arrow's parser for this value."""
    if _texts(kind):
        return "invalid UTF8 data"
    text = (value.strip(b" \t") if _trimmed(kind) else value).decode(errors="replace")
    if pa.types.is_timestamp(kind):
        try:
            pa.scalar(text).cast(pa.timestamp(_parsed_type(kind).unit, None if kind.tz else "UTC"))
        except pa.ArrowInvalid:
            return f"invalid value '{text}'"
        return f"expected {'a' if kind.tz else 'no'} zone offset in '{text}'"
    return f"invalid value '{text}'"


def _trimmed(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_date(kind))


def _texts(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _plausible(kind: Any) -> str | None:
    """Returns a regular expression that every valid text of this type matches: a text without a match is not a value.
    Returns None for types where Arrow's `cast` and its CSV parser disagree about the valid texts.
    """
    if pa.types.is_integer(kind):
        return "^[-+]?(0[xX][0-9a-fA-F]+|[0-9]+)$"
    if pa.types.is_floating(kind):
        return "^[-+]?([0-9.][-+0-9.eE]*|[iInN].*)$"
    if pa.types.is_boolean(kind):
        return "^(0|1|[tT]rue|TRUE|[fF]alse|FALSE)$"
    if pa.types.is_date(kind):
        return "^[-0-9]+$"
    return "^[0-9][-+0-9T:.Z ]*$" if pa.types.is_timestamp(kind) else None


_INTEGER = r"^\s*-?[0-9]+\s*$"
_CODE = r"^\s*(\+[0-9]+|[+-]?0[0-9]+|[+-]?0[xX][0-9a-fA-F]+)\s*$"  # whole numbers as no program writes them
_LONG = r"^\s*-?[0-9]{16,}\s*$"


def are_whole(texts: Any) -> bool:
    """Returns True if all texts are whole numbers."""
    return bool(pc.all(pc.match_substring_regex(texts, _INTEGER)).as_py())


def codes(texts: Any) -> list[int]:
    """Returns the indexes of texts that are codes: two of them may be one number, as 01234 and 1234 are."""
    return _matching(texts, _CODE)


def long_numbers(texts: Any) -> list[int]:
    """Returns the indexes of texts that are whole numbers of which floats lose digits."""
    return [at for at in _matching(texts, _LONG) if loses_digits(whole_number(texts[at].as_py()))]


def _matching(texts: Any, pattern: str) -> list[int]:
    """Returns the indexes of texts that match. Neither makes an array of values of Python nor one of numpy, for which pyarrow loads pandas,
    where that is installed.
    """
    return pc.indices_nonzero(pc.match_substring_regex(texts, pattern)).to_pylist()  # type: ignore[no-any-return]


def changed_texts(texts: Any, kind: Any) -> dict[int, str]:
    """Returns the part that is lost of each text that is another one as a number of a type, by the index of the text."""
    found = dict.fromkeys(codes(texts), "zeros, a sign or hexadecimal digits")
    return found | dict.fromkeys(long_numbers(texts) if pa.types.is_floating(kind) else (), "digits")


def failing_texts(texts: pa.Array, kind: Any) -> list[int]:
    """Returns the indexes of fields that are not values of the type. A field that is not returned may still be bad:
    the parser decides.
    """
    failing: list[int] = []
    numbers: Any = np.arange(len(texts))
    if not _texts(kind):
        pattern = _plausible(kind)
        if pattern is None:
            return failing
        texts = texts.view(pa.string())
        if _trimmed(kind):
            texts = pc.ascii_trim(texts, " \t")
        good = pc.match_substring_regex(texts, pattern).fill_null(True)
        numbers, wrong = np.flatnonzero(good), np.flatnonzero(pc.invert(good))
        failing += wrong.tolist()
        texts = texts.filter(good)

    def look(low: int, high: int) -> None:
        try:
            texts.slice(low, high - low).cast(_parsed_type(kind))
        except pa.ArrowInvalid:
            if high - low == 1:
                failing.append(int(numbers[low]))
                return
            step = (high - low + 1) // 2 if high - low > _SINGLY else 1
            for at in range(low, high, step):
                look(at, min(at + step, high))

    look(0, len(texts))
    return failing


# -- writing ----------------------------------------------------------------------------------------------------------


def refuse_csv_types(schema: pa.Schema, where: str) -> None:
    """Raises UserError, whose text begins with `where`, for a column that CSV cannot represent."""
    for field in schema:
        kind = field.type
        if (
            pa.types.is_nested(kind)
            or pa.types.is_binary(kind)
            or pa.types.is_fixed_size_binary(kind)
            or pa.types.is_interval(kind)
        ):
            raise UserError(
                f"{where}: column {field.name!r} of type {kind} cannot be written as CSV",
                hint="cast it to a string, or leave it out (select), before the sink",
            )


def plain_times(data: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the batch with those times as texts, formatted as pyarrow's CSV writer would, for which that writer is slow
    (in UTC it needs 2.5 us for each) or wrong (beyond the year 32767, and where a clock is not whole minutes from UTC, as
    some were until 1972: their texts are in UTC).
    """
    for number, field in enumerate(data.schema):
        if pa.types.is_timestamp(field.type) or pa.types.is_date(field.type):
            column: Any = data.column(number)
            if getattr(field.type, "tz", None) in ("UTC", "Etc/UTC") or has_far_times(column):
                data = data.set_column(number, field.name, time_texts(column))
            elif getattr(field.type, "tz", None) is not None and (odd := _has_seconds(column)).any():
                texts = pc.if_else(pa.array(odd), time_texts(column), column.cast(pa.string()))
                data = data.set_column(number, field.name, texts)
    return data


def _has_seconds(times: Any) -> Any:
    """Returns, as a numpy mask, the times at which the distance of their zone's clock from UTC has seconds."""
    per_second = PER_SECOND[times.type.unit]
    found = integers(times)
    if not len(found) or found.min() >= _WHOLE_MINUTES * per_second:
        return np.zeros(len(found), np.bool_)
    return (integers(pc.local_timestamp(times)) - found) % (60 * per_second) != 0


def field_texts(data: pa.RecordBatch, delimiter: str) -> list[pa.StringArray]:
    """Returns each column as fields. Null is an empty field; an empty text is quoted, and so is a text with a
    delimiter, a quote or a line break in it.
    """
    marks = "[" + "".join(f"\\x{ord(mark):02x}" for mark in {delimiter, '"', "\n", "\r"}) + "]"
    made = []
    for field, column in zip(data.schema, plain_times(normalise(data)).columns, strict=True):
        text: Any = column.cast(pa.string())
        if pa.types.is_string(field.type):
            quoted = pc.or_(pc.match_substring_regex(text, marks), pc.equal(text, ""))
            if pc.any(quoted).as_py():
                doubled = pc.replace_substring(text, '"', '""')
                text = pc.if_else(quoted, pc.binary_join_element_wise('"', doubled, '"', ""), text)
        made.append(pc.fill_null(text, ""))
    return made
