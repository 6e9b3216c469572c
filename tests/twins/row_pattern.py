"""The naive twin of patterns with `overlap="begun"`: MATCH_RECOGNIZE of the SQL standard (ISO/IEC 19075-5), by backtracking.

A match begins at the first row where one is possible. Of the ways to match from there the preferred one counts: of alternatives the
first, of numbers of repetitions the greatest, or the least for a reluctant quantifier, and what is further left decides first.

A greedy repetition, as Flink has it, does not end before a row that it can take: it has no other number of rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Taken = list[tuple[int, str]]
"""The rows of a match so far: (the row's place, its variable)."""

Condition = Callable[[Sequence[Mapping[str, Any]], int, Taken], bool | None]
"""DEFINE of a variable: rows, the place of the current row, and the rows before it in the match. None is unknown."""


@dataclass(frozen=True)
class Variable:
    name: str


@dataclass(frozen=True)
class Sequel:
    parts: tuple["Part", ...]


@dataclass(frozen=True)
class Choice:
    parts: tuple["Part", ...]


@dataclass(frozen=True)
class Repeated:
    part: "Part"
    least: int
    most: int | None
    is_reluctant: bool = False
    is_greedy: bool = False


Part = Variable | Sequel | Choice | Repeated


def matches(
    pattern: Part,
    define: Mapping[str, Condition],
    rows: Sequence[Mapping[str, Any]],
    *,
    skip: str | tuple[str, str] = "past_last",
    within: int | None = None,
) -> Iterator[Taken]:
    """Yields the matches among the rows of one key, which have a "time"."""

    def ways(part: Part, at: int, taken: Taken) -> Iterator[tuple[int, Taken]]:
        """Yields all ways to match from row `at` on, by preference, as (the row after it, the rows taken)."""
        if isinstance(part, Variable):
            if at < len(rows) and in_time(at, taken) and define[part.name](rows, at, taken) is True:
                yield at + 1, [*taken, (at, part.name)]
        elif isinstance(part, Sequel):
            yield from one_by_one(part.parts, at, taken)
        elif isinstance(part, Choice):
            for each in part.parts:
                yield from ways(each, at, taken)
        else:
            yield from again(part, 0, at, taken)

    def one_by_one(parts: tuple[Part, ...], at: int, taken: Taken) -> Iterator[tuple[int, Taken]]:
        if not parts:
            yield at, taken
            return
        for after, more in ways(parts[0], at, taken):
            yield from one_by_one(parts[1:], after, more)

    def again(part: Repeated, count: int, at: int, taken: Taken) -> Iterator[tuple[int, Taken]]:
        may_end = count >= part.least
        may_go_on = part.most is None or count < part.most
        if part.is_greedy and may_go_on and next(ways(part.part, at, taken), None) is not None:
            may_end = False
        if may_end and part.is_reluctant:
            yield at, taken
        if may_go_on:
            for after, more in ways(part.part, at, taken):
                if after == at:  # a repetition without rows is the last one
                    yield at, taken
                else:
                    yield from again(part, count + 1, after, more)
        if may_end and not part.is_reluctant:
            yield at, taken

    def in_time(at: int, taken: Taken) -> bool:
        return within is None or not taken or rows[at]["time"] - rows[taken[0][0]]["time"] <= within

    start = 0
    while start < len(rows):
        found = next((taken for _, taken in ways(pattern, start, []) if taken), None)
        if found is None:
            start += 1
            continue
        yield found
        if skip == "past_last":
            start = found[-1][0] + 1
        elif isinstance(skip, tuple):
            places = [at for at, name in found if name == skip[1]]
            where = (places[0] if skip[0] == "to_first" else places[-1]) if places else 0
            start = max(start + 1, where)  # the next match never begins with the same row
        else:
            start += 1
