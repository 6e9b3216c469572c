"""The text of a SQL program: positions in it, and errors that show them.

An error is printed as a line with its position, the line of the text, and a caret:

    pipeline.sql:3:14: there is no column "auctoin"
      SELECT bid.auctoin FROM bid
                 ^^^^^^^
      hint: there are auction, bidder, price
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from operator import itemgetter
from typing import NamedTuple

from sabot.base.redaction import shown_setting
from sabot.base.surrogates import whole_text
from sabot.errors import UserError

_LINE_LENGTH = 160
# 'key' = 'value', wherever it stands: a text with errors has no tokens. The value may lack its last quote.
_OPTION = re.compile(r"(['\"`]?)([A-Za-z][\w.\-]*)\1(\s*=\s*)'((?:[^']|'')*)(?:'|\Z)")
_NAMES_SHOWN = 12


class Span(NamedTuple):
    """A range of characters of a text: `start` is included, `end` is not."""

    start: int
    end: int

    def to(self, other: "Span") -> "Span":
        """Returns the range from the start of this one to the end of the other one."""
        return Span(self.start, max(self.end, other.end))


@dataclass(frozen=True, slots=True)
class Fault:
    """One error of a text. `hint`: what to write instead, or empty."""

    span: Span
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class SqlText:
    """A text of SQL. `name`: the file that it comes from, or "SQL"."""

    text: str
    name: str = "SQL"

    def of(self, span: Span) -> str:
        """Returns the characters of a range."""
        return self.text[span.start : span.end]

    def shown(self, span: Span) -> str:
        """Returns the characters of a range that has no errors, with *** in place of the values of secret options."""
        shown, place = self._without_secrets(quotes="'")
        return shown.text[place(span.start) : place(span.end)]

    def _without_secrets(self, quotes: str) -> tuple["SqlText", Callable[[int], int]]:
        """Returns the text without the values of secret options, and the function that returns where a character of
        the present text is in it. `quotes`: the quotes around the names of options, of which "" is none.
        """
        pieces, moved, end, length = [], [(0, 0)], 0, 0
        for found in _OPTION.finditer(self.text):
            if found[1] not in quotes.split(",") or (not found[1] and found[2].lower() == "key"):
                continue  # a column in a condition
            value = found[4].replace("''", "'")
            if (shown := str(shown_setting(found[2], value))) != value:
                start = found.start(4)
                pieces += [self.text[end:start], shown]
                length += start - end
                moved += [(start, length), (end := found.end(4), length := length + len(shown))]
        text = "".join([*pieces, self.text[end:]])

        def place(offset: int) -> int:
            number = bisect_right(moved, offset, key=itemgetter(0)) - 1
            most = moved[number + 1][1] if number + 1 < len(moved) else len(text)
            return min(moved[number][1] + offset - moved[number][0], most)

        return SqlText(text, self.name), place

    def position(self, offset: int) -> tuple[int, int]:
        """Returns line and column of a character; both begin at 1."""
        before = self.text[:offset]
        return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1

    def show(self, fault: Fault) -> str:
        """Returns the lines that describe an error: position and message, the line of the text, a caret, the hint."""
        row, column = self.position(fault.span.start)
        text, place = self._without_secrets(quotes="',,`,\"")  # an option may be written wrongly
        span = Span(place(fault.span.start), place(fault.span.end))
        first = text.position(span.start)[1] - 1
        line = whole_text(text.text[span.start - first :].split("\n", 1)[0].rstrip("\r"))
        length = max(1, min(span.end - span.start, len(line) - first))
        if len(line) > _LINE_LENGTH:
            cut = max(0, min(first - _LINE_LENGTH // 2, len(line) - _LINE_LENGTH))
            line = line[cut : cut + _LINE_LENGTH]
            first -= cut
            length = max(1, min(length, len(line) - first))
        margin = "".join("\t" if each == "\t" else " " for each in line[:first])
        shown = [f"{self.name}:{row}:{column}: {fault.message}", f"  {line}", f"  {margin}{'^' * length}"]
        return "\n".join([*shown, f"  hint: {fault.hint}"] if fault.hint else shown)


class SqlError(UserError):
    """A SQL text that has errors. The message shows all of them with their positions."""

    def __init__(self, text: SqlText, faults: Sequence[Fault]) -> None:
        self.text = text
        """The text that has the errors."""
        self.faults = tuple(sorted(faults, key=lambda fault: fault.span))
        """The errors, in the order of the text."""
        super().__init__("\n".join([text.show(fault) for fault in self.faults]))

    def __reduce__(self) -> tuple[type["SqlError"], tuple[SqlText, tuple[Fault, ...]]]:
        return SqlError, (self.text, self.faults)


class SqlFault(Exception):
    """Raised inside this package for one error; turned into a `SqlError` where the text is known."""

    def __init__(self, span: Span, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.fault = Fault(span, message, hint)


def near_names(wrong: str, names: Iterable[str]) -> str:
    """Returns a hint with the names that resemble `wrong`: "did you mean a or b?"; empty if none does."""
    folded: dict[str, str] = {}
    for name in names:
        folded.setdefault(name.lower(), name)
    near = [folded[match] for match in get_close_matches(wrong.lower(), folded, n=3, cutoff=0.6)]
    return f"did you mean {' or '.join(near)}?" if near else ""


def list_names(wrong: str, names: Iterable[str]) -> str:
    """Returns a hint with the names that resemble `wrong`, or else with all names: "there are a, b, c"."""
    every = list(dict.fromkeys(names))
    if not every:
        return ""
    if near := near_names(wrong, every):
        return near
    more = f", … ({len(every)} in all)" if len(every) > _NAMES_SHOWN else ""
    return f"there {'is' if len(every) == 1 else 'are'} {', '.join(every[:_NAMES_SHOWN])}{more}"
