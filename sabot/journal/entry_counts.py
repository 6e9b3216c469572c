"""Detects missing entries. The places of a journal are numbered from 0. Each place either has its entry, or is recorded
as trimmed.

   log_end   a table of one row: the place behind the last entry that was written; changed in the transaction that writes the entry
   gone      a table of runs of places whose entries were trimmed; they do not overlap, and are not adjacent

So a missing entry is found whatever the cause, also at the end of the log. For example, somebody has deleted rows, or
has restored one table without the others. A commit of entries changes one row of these tables. A trim changes only the
runs next to the places that it trims. The statements work in SQLite and PostgreSQL, with `?` for values.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from sabot.errors import CorruptJournal

T = TypeVar("T")

COUNTED = 2
"""The first version of the tables' format in which places are numbered."""

_TABLES = (
    "CREATE TABLE log_end (place {whole} PRIMARY KEY)",
    "CREATE TABLE gone (first {whole} PRIMARY KEY, behind {whole} NOT NULL UNIQUE)",
    "INSERT INTO log_end VALUES (0)",
)

_MOST_NAMED = 400  # the most values in one statement
_FILLED_AT_ONCE = 50  # rows that are filled by one statement, which compares each with each
ENDS = "SELECT (SELECT max(place) FROM entries), (SELECT value FROM meta WHERE name = 'trimmed')"
"""The statement that selects the row for `end_of_rows`."""

WRITTEN_END = "SELECT place FROM log_end"
"""The statement that selects the place behind the last entry that was ever written."""

COUNTS = (
    "SELECT (SELECT count(*) FROM entries), "
    "(SELECT place FROM log_end) - (SELECT CAST(coalesce(sum(behind - first), 0) AS bigint) FROM gone)"
)
"""The statement that selects how many entries there are, and how many there must be."""

GONE = "SELECT first, behind FROM gone WHERE behind > ? AND first < ? ORDER BY first"
"""The statement that selects trimmed runs, with the two values that a function of type `Gone` gets."""

# a look-up by key stays fast during a long dump, for which the database keeps all versions of the row
_WRITTEN = "UPDATE log_end SET place = ? WHERE place = ?"
_GAPS = (
    "INSERT INTO gone (first, behind) SELECT previous + 1, place FROM "
    "(SELECT place, lag(place, 1, CAST(-1 AS bigint)) OVER (ORDER BY place) AS previous FROM entries) AS places "
    "WHERE place > previous + 1"
)
_HINT = "bring back a copy of the journal that has them; or start --fresh --forget-effects: effects that were made may be made again"

Run = tuple[int, int]
"""A run of places: the first place, and the place behind the last one."""

Gone = Callable[[int, int], Sequence[Run]]
"""A function of two places. It returns the runs of trimmed places that overlap the range between them, in order. The
first place belongs to the range, the second does not.
"""


class Connection(Protocol):
    """A database connection with an open transaction. It is either a connection to SQLite, or the wrapper
    `schemas.Statements` around a connection to PostgreSQL. Statements have `?` for their values in both cases.
    """

    def execute(self, statement: str, values: Sequence[Any] = ..., /) -> Any: ...
    def executemany(self, statement: str, rows: Sequence[Sequence[Any]], /) -> object: ...


def runs_of(places: Iterable[int]) -> list[Run]:
    """Returns the groups of consecutive places: for the places 4, 5, 6, 9 these are (4, 7) and (9, 10). A group is a
    pair of its first place and the place behind its last one. `places`: places of the log, in rising order.
    """
    runs: list[Run] = []
    for place in places:
        if runs and runs[-1][1] == place:
            runs[-1] = runs[-1][0], place + 1
        else:
            runs.append((place, place + 1))
    return runs


def joined(runs: Iterable[Run]) -> list[Run]:
    """Returns groups of places in rising order, after joining those that touch each other: (4, 7) and (7, 9) become
    (4, 9). Each group is a pair of its first place and the place behind its last one. The groups must not overlap.
    """
    found: list[Run] = []
    for first, behind in sorted(runs):
        if found and found[-1][1] == first:
            found[-1] = found[-1][0], behind
        else:
            found.append((first, behind))
    return found


def written(connection: Connection, first: int, behind: int) -> None:
    """Records that new entries were written at the places from `first` to `behind` - 1, so that `behind` is the new
    end of the log. Called in the transaction that writes the entries.
    """
    connection.execute(_WRITTEN, (behind, first))


def note_gone(connection: Connection, runs: Sequence[Run]) -> None:
    """Records that the entries at these places were trimmed, so that they are not reported as missing. Called in the
    transaction that trims them. `runs`: groups of places in rising order, each a pair of its first place and the
    place behind its last one.
    """
    beside: set[Run] = set()
    for some in parts(runs):
        for column, values in (("behind", [first for first, _ in some]), ("first", [behind for _, behind in some])):
            found = connection.execute(f"SELECT first, behind FROM gone WHERE {column} {among(values)}", values)
            beside.update((int(first), int(behind)) for first, behind in found.fetchall())
    for some in parts(sorted(beside)):
        connection.execute(f"DELETE FROM gone WHERE first {among(some)}", [first for first, _ in some])
    for some in parts(joined([*runs, *beside])):
        marks = ", ".join(["(?, ?)"] * len(some))
        connection.execute(f"INSERT INTO gone (first, behind) VALUES {marks}", [place for run in some for place in run])


def parts(values: Sequence[T], most: int = _MOST_NAMED) -> Iterator[Sequence[T]]:
    """Yields the values in groups of at most `most`, so that each group can be passed to one SQL statement."""
    for first in range(0, len(values), most):
        yield values[first : first + most]


def among(values: Sequence[Any]) -> str:
    """Returns the SQL condition `IN (?, …)`, with one `?` for each of the values. It has to be put after the name of
    a column.
    """
    return f"IN ({', '.join('?' * len(values))})"


def fill(connection: Connection, table: str, columns: str, rows: Sequence[Sequence[Any]]) -> None:
    """Writes values into rows of a table. `columns`: the names of the values; the first one names the row."""
    # not UPDATE … FROM, which SQLite has since version 3.33 only
    key, *names = columns.split(", ")
    chosen = f"SELECT {', '.join(f'v.{name}' for name in names)} FROM v WHERE v.{key} = {table}.{key}"
    for some in parts(rows, _FILLED_AT_ONCE):
        marks = ", ".join([f"({', '.join('?' * len(some[0]))})"] * len(some))
        connection.execute(
            f"WITH v ({columns}) AS (VALUES {marks}) UPDATE {table} SET ({', '.join(names)}) = ({chosen}) "
            f"WHERE {key} IN (SELECT v.{key} FROM v)",
            [value for row in some for value in row],
        )


def make_tables(connection: Connection, whole: str) -> None:
    """Creates the tables by which missing entries are detected (`log_end` and `gone`), for a journal without entries.

    `whole`: the column type for integers of 63 bits. It is bigint in PostgreSQL. In SQLite it has to be INTEGER,
    because a key of this type is the row number itself and needs no index of its own; so a commit writes one page
    less.
    """
    for statement in _TABLES:
        connection.execute(statement.format(whole=whole))


def begin_to_count(connection: Connection, whole: str) -> None:
    """Creates the tables by which missing entries are detected (`make_tables`) in a journal of an older format.
    Entries that are missing by now are recorded as trimmed. The caller records the new format. `whole`: the column
    type for integers of 63 bits, as in `make_tables`.
    """
    make_tables(connection, whole)
    count_anew(connection)


def count_anew(connection: Connection) -> None:
    """Records all entries that are missing now as trimmed, and sets the end of the log. Called for a journal of an
    older format, in which nobody knows why entries are missing, and for a local copy whose tables were filled anew.
    """
    ((last,),) = connection.execute("SELECT coalesce(max(place), -1) FROM entries").fetchall()
    behind = end_of_log(connection)
    connection.execute("DELETE FROM gone")
    connection.execute(_GAPS)
    if last + 1 < behind:
        note_gone(connection, [(last + 1, behind)])
    connection.execute("UPDATE log_end SET place = ?", (behind,))


def end_of_log(connection: Connection) -> int:
    """Returns the place behind the last entry that was written to the log, even if that entry was trimmed since."""
    return end_of_rows(connection.execute(ENDS).fetchall())


def end_of_rows(rows: Sequence[Sequence[Any]]) -> int:
    """Returns the place behind the last entry that was written to the log. `rows`: the result of the SQL statement
    `ENDS`. It has one row with two values: the last place in the table `entries`, and the end of the log at the time of
    the last trim.
    """
    ((last, trimmed),) = rows
    return max(-1 if last is None else last + 1, int(trimmed or 0), 0)


def check_counted(gone: Gone, where: str, first: int, places: Sequence[int], behind: int) -> None:
    """Raises CorruptJournal if an entry is missing at one of the places from `first` to `behind` - 1, unless it was
    trimmed.

    - `places`: the places in this range at which there are entries, in rising order.
    - `gone`: a function that returns the trimmed places in a range, as pairs of a first place and the place behind
      the last one.
    - `where`: the name of the journal, for the message.
    """
    if len(places) >= behind - first:
        return
    known = gone(first, behind)
    starts = [run[0] for run in known]
    at = first
    for place in (*places, behind):
        if at < place:
            before = bisect_right(starts, at) - 1
            lost = max(at, known[before][1]) if before >= 0 else at
            if lost < place:
                until = min([place, *starts[before + 1 : before + 2]])
                what = f"entry {lost} is" if until == lost + 1 else f"entries {lost} to {until - 1} are"
                raise CorruptJournal(f"{where}: {what} missing, and nobody has trimmed them", hint=_HINT)
        at = place + 1
