"""Values as text: the filters of the templates, for people, and tables as CSV and JSON, for programs."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, TypeAlias

from markupsafe import Markup

from sabot.base.quantities import bytes_words, count_words, counted_words, duration_words
from sabot.base.quantities import money as in_dollars

NOTHING = "–"

TableForm: TypeAlias = Literal["csv", "json"]
"""The form of a table for programs."""


def number(value: float | None) -> str:
    """Returns a count or a rate with separators; "–" for None."""
    return NOTHING if value is None else count_words(value)


def counted(value: float, noun: str) -> str:
    """Returns a count with a noun, in the plural unless the count is 1."""
    return counted_words(value, noun)


def share(value: float | None) -> str:
    """Returns a part of a whole as a percentage; "–" for None."""
    return NOTHING if value is None else f"{value:.0%}"


def nbytes(value: float | None) -> str:
    """Returns a number of bytes in a readable unit; "–" for None."""
    return NOTHING if value is None else bytes_words(value)


def duration(seconds: float | None) -> str:
    """Returns seconds as text of two units at most; "–" for None."""
    return NOTHING if seconds is None else duration_words(seconds)


def money(value: Decimal | float | None) -> str:
    """Returns US dollars, with as many digits as small amounts need; "–" for None."""
    if value is None:
        return NOTHING
    dollars = float(value)
    return f"${dollars:,.2f}" if not dollars or abs(dollars) >= 1 else in_dollars(float(f"{dollars:.2g}"))


def moment(at: float | None) -> Markup:
    """Returns a time, in seconds since 1970, as an element that the page's script shows in the reader's zone; without the script
    it is in UTC.
    """
    if at is None:
        return Markup(NOTHING)
    text = moment_text(at)
    if not text.endswith(" UTC"):
        return Markup("{}").format(text)
    iso = datetime.fromtimestamp(at, UTC).replace(tzinfo=None).isoformat("T", "milliseconds")
    return Markup('<time datetime="{}Z">{}</time>').format(iso, text)


def moment_text(at: float) -> str:
    """Returns a time, in seconds since 1970, as text in UTC."""
    try:
        return f"{datetime.fromtimestamp(at, UTC).replace(tzinfo=None).isoformat(' ', 'seconds')} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{at} s"


def table_text(rows: Sequence[Mapping[str, Any]], form: TableForm) -> str:
    """Returns rows, which have the same columns, as the text of a file."""
    if form == "json":
        return json.dumps(rows, ensure_ascii=False)
    text = io.StringIO()
    writer = csv.writer(text)
    lines = [list(rows[0]), *(list(each.values()) for each in rows)] if rows else []
    writer.writerows([[cell(value) for value in line] for line in lines])
    return text.getvalue()


def cell(value: object) -> object:
    """Returns a value for CSV. A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
