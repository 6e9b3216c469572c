"""The writers that keep the rows of a ledger in memory, or in the table `runtime_ledger` of a SQLite database."""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sabot.agents.accounts.contract import LedgerEvent, LedgerSum, counted_elsewhere, refuse_redis
from sabot.agents.accounts.owners import (
    AccountStore,
    BatchResult,
    BudgetBatch,
    Reservation,
    batch_of_rows,
    opened_account,
    work,
)
from sabot.agents.accounts.tables import TableAccountStore, tables_of_budgets
from sabot.base.accounts import WINDOWS, Account, Amounts, Window
from sabot.base.claims import FileClaim
from sabot.base.config import checked_path
from sabot.base.disk import private
from sabot.base.options import answers_wrong_options
from sabot.base.os_errors import hint_of
from sabot.base.threads import run_in_thread, run_to_end
from sabot.errors import DataError, UserError, message_of, short_repr
from sabot.journal.tables import connected, explained, transaction
from sabot.steps import step

DATABASE = "ledger.db"
"""The file name of an app's ledger in the state directory of the app."""


def _day(event: LedgerEvent) -> str:
    return datetime.fromtimestamp(event.at_ms / 1000, UTC).strftime("%Y-%m-%d")


class _Group(NamedTuple):
    """A column by which the rows of a ledger can be grouped. `of` is a function that returns the value of the column
    for a row. `sql` is an SQL expression for SQLite that returns the same value.
    """

    of: Callable[[LedgerEvent], str]
    sql: str


GROUPS = {
    "scope": _Group(lambda event: event.scope_id, "scope_id"),
    "principal": _Group(lambda event: event.principal_id, "principal_id"),
    "job": _Group(lambda event: event.job_id, "job_id"),
    "type": _Group(lambda event: event.type, "type"),
    "model": _Group(
        lambda event: "" if event.type == "tool" else event.name, "CASE type WHEN 'tool' THEN '' ELSE name END"
    ),
    "tool": _Group(
        lambda event: event.name if event.type == "tool" else "", "CASE type WHEN 'tool' THEN name ELSE '' END"
    ),
    "day": _Group(_day, "strftime('%Y-%m-%d', timestamp / 1000, 'unixepoch')"),
}
"""The words by which rows can be grouped."""


def checked_groups(by: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the columns by which rows are grouped (`GROUPS`) as a tuple. Raises UserError for an
    unknown name, and for a name that is given twice.
    """
    if isinstance(by, str):
        raise UserError(f"by={short_repr(by)}", hint='a list of words: ["scope", "model"]')
    for each in by:
        if each not in GROUPS:
            raise UserError(f"a ledger has no {short_repr(each)}", hint=f"by: {', '.join(GROUPS)}")
    if twice := [each for each in dict.fromkeys(by) if by.count(each) > 1]:
        raise UserError(f"rows of a ledger are put together by {', '.join(twice)} twice", hint="name each word once")
    return tuple(by)


class _MemoryAccountStore(AccountStore):
    """The accounts, reservations and rows of shared budgets in memory. The code is simple on purpose: tests compare
    its results with those of the stores in databases.
    """

    def __init__(self, rows: dict[str, LedgerEvent], used: Callable[[str, int], Amounts]) -> None:
        self._rows, self._used = rows, used
        self._accounts: dict[str, tuple[Mapping[Window, tuple[float, Amounts]], Amounts]] = {}
        self._reserved: dict[tuple[str, str], Reservation] = {}
        self._holders: dict[str, float] = {}

    def now(self) -> float:
        return time.time()

    def known(self, scopes: Collection[str]) -> set[str]:
        return {*scopes} & self._accounts.keys()

    def accounts(self, scopes: Collection[str], now_s: float) -> dict[str, Account]:
        found = {}
        for scope in scopes:
            if scope in self._accounts:
                found[scope] = Account(windows=WINDOWS)
                found[scope].restore(*self._accounts[scope])
            else:
                found[scope] = opened_account(partial(self._used, scope), now_s)
        return found

    def reservations(self, calls: Collection[str]) -> list[Reservation]:
        return [each for each in self._reserved.values() if each.call in calls]

    def dead(self, scopes: Collection[str], now_s: float) -> list[Reservation]:
        return [each for each in self._reserved.values() if each.scope in scopes and self._holders[each.holder] < now_s]

    def rows(self, event_ids: Collection[str]) -> dict[str, LedgerEvent]:
        return {name: self._rows[name] for name in event_ids if name in self._rows}

    def put_accounts(self, accounts: Mapping[str, Account]) -> None:
        self._accounts |= {scope: (account.windows, account.reserved) for scope, account in accounts.items()}

    def put_reservations(self, kept: Sequence[Reservation], dropped: Sequence[tuple[str, str]]) -> None:
        for name in dropped:
            self._reserved.pop(name, None)
        self._reserved |= {(each.scope, each.call): each for each in kept}

    def put_rows(self, events: Sequence[LedgerEvent], replaced: Collection[str]) -> None:
        for name in replaced:
            self._rows.pop(name, None)
        self._rows |= {event.event_id: event for event in events}

    def hold(self, holder: str, until_s: float, now_s: float) -> None:
        self._holders[holder] = until_s


@answers_wrong_options
class InMemoryLedgerWriter:
    """A ledger writer that keeps the rows in memory, for tests and scripts. With `shared=True`, several ledgers in
    this process can use the same writer object. They then share the usage and the reservations of their budgets
    (`BudgetOwner`).
    """

    where = "ledger in memory"

    def __init__(self, *, shared: bool = False) -> None:
        self.shared = shared
        self._rows: dict[str, LedgerEvent] = {}
        self._notes: dict[str, str] = {}
        self._book = _MemoryAccountStore(self._rows, self._used)

    async def work(self, batch: BudgetBatch) -> BatchResult:
        """Applies a batch of steps and rows, and returns the answer (`BudgetOwner.work`)."""
        return work(self._book, batch)

    async def known(self, event_ids: Sequence[str]) -> set[str]:
        """Returns the ids among `event_ids` for which a row with a known outcome is stored (`LedgerWriter.known`)."""
        return {name for name in event_ids if (row := self._rows.get(name)) is not None and row.type != "doubt"}

    @property
    def events(self) -> list[LedgerEvent]:
        """All rows, in the order in which they were written. If a row has replaced another one, the time of the
        replacement counts.
        """
        return list(self._rows.values())

    async def write(self, events: Sequence[LedgerEvent]) -> None:
        """Writes rows, except those whose id is stored already (`LedgerWriter.write`)."""
        await self._worked(events)

    async def correct(self, events: Sequence[LedgerEvent]) -> int:
        """Writes rows, and replaces stored rows that have the same id and other content. Returns the number of
        replaced rows (`LedgerWriter.correct`).
        """
        return await self._worked(events, corrects=True)

    async def _worked(self, events: Sequence[LedgerEvent], *, corrects: bool = False) -> int:
        """Stores rows as one batch without steps. With `corrects`, stored rows that have the same id and other
        content are replaced. Returns the number of replaced rows.
        """
        return (await self.work(batch_of_rows(events, corrects=corrects))).corrected if events else 0

    async def used(self, scope_id: str, since_ms: int) -> Amounts:
        """Returns the sum of the amounts of the rows of a scope (a tenant) since this time, in milliseconds since
        1970 (`LedgerWriter.used`).
        """
        return self._used(scope_id, since_ms)

    def _used(self, scope_id: str, since_ms: int) -> Amounts:
        total = Amounts()
        for event in self._rows.values():
            if event.scope_id == scope_id and event.at_ms >= since_ms:
                total = total.plus(event.amounts)
        return total

    async def sums(self, by: Sequence[str], since_ms: int) -> list[LedgerSum]:
        """Groups the rows since this time (milliseconds since 1970), and returns the totals of each group
        (`LedgerWriter.sums`). `by` has the names of the columns by which rows are grouped, for example "scope" and
        "model".
        """
        words = checked_groups(by)
        groups: dict[tuple[str, ...], list[LedgerEvent]] = {}
        for event in self._rows.values():
            if event.at_ms >= since_ms:
                groups.setdefault(tuple(GROUPS[word].of(event) for word in words), []).append(event)
        return [
            LedgerSum(
                group=group,
                calls=len(events),
                input_tokens=sum(each.input_tokens for each in events),
                output_tokens=sum(each.output_tokens for each in events),
                doubt_tokens=sum(each.reserved_tokens for each in events if each.type == "doubt"),
                cost=sum((each.cost or Decimal(0) for each in events if each.type != "doubt"), Decimal(0)),
                doubt_cost=sum((each.cost or Decimal(0) for each in events if each.type == "doubt"), Decimal(0)),
                unpriced=sum(each.type == "model" and each.cost is None for each in events),
            )
            for group, events in sorted(groups.items())
        ]

    async def notes(self, prefix: str) -> dict[str, str]:
        """Returns the notes whose names begin with a prefix (`LedgerWriter`)."""
        return {name: value for name, value in self._notes.items() if name.startswith(prefix)}

    async def note(self, notes: Mapping[str, str]) -> None:
        """Keeps notes (`LedgerWriter`)."""
        for name, value in notes.items():
            if value:
                self._notes[name] = value
            else:
                self._notes.pop(name, None)

    async def close(self) -> None:
        """Does nothing: rows in memory need no closing."""


_SCHEMA = """
CREATE TABLE IF NOT EXISTS runtime_ledger (event_id TEXT PRIMARY KEY, type TEXT NOT NULL, job_id TEXT NOT NULL, scope_id TEXT NOT NULL,
    principal_id TEXT NOT NULL, name TEXT NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    total_tokens INTEGER NOT NULL, reserved_tokens INTEGER NOT NULL, cost TEXT, timestamp INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ledger_of_scope ON runtime_ledger (scope_id, timestamp);
CREATE INDEX IF NOT EXISTS ledger_by_time ON runtime_ledger (timestamp);
CREATE TABLE IF NOT EXISTS runtime_notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_BUDGETS = "".join(
    f"{statement};\n".replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS").replace(
        "CREATE INDEX", "CREATE INDEX IF NOT EXISTS"
    )
    for statement in tables_of_budgets("INTEGER", "TEXT", "REAL").values()
)
SETTLES = (  # a row that settles a doubt takes its place
    "ON CONFLICT (event_id) DO UPDATE SET type = excluded.type, name = excluded.name, input_tokens = excluded.input_tokens, "
    "output_tokens = excluded.output_tokens, total_tokens = excluded.total_tokens, reserved_tokens = excluded.reserved_tokens, "
    "cost = excluded.cost, timestamp = excluded.timestamp WHERE runtime_ledger.type = 'doubt' AND excluded.type <> 'doubt'"
)
_INSERT = f"INSERT INTO runtime_ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) {SETTLES}"
_USED = (
    "SELECT coalesce(sum(CASE type WHEN 'doubt' THEN reserved_tokens ELSE total_tokens END), 0), coalesce(exact_sum(cost), '0'), "
    "coalesce(sum(type IN ('model', 'doubt')), 0) FROM runtime_ledger WHERE scope_id = ? AND timestamp >= ?"
)
_KNOWN = "SELECT event_id FROM runtime_ledger WHERE event_id = ? AND type <> 'doubt'"
_SUMS = (
    "count(*), sum(input_tokens), sum(output_tokens), sum(CASE type WHEN 'doubt' THEN reserved_tokens ELSE 0 END), "
    "exact_sum(CASE type WHEN 'doubt' THEN NULL ELSE cost END), exact_sum(CASE type WHEN 'doubt' THEN cost END), "
    "sum(type = 'model' AND cost IS NULL) FROM runtime_ledger WHERE timestamp >= ?"
)


class _ExactSum:
    """An aggregate function for SQLite: the exact sum of decimals that are stored as text."""

    def __init__(self) -> None:
        self._total = Decimal(0)

    def step(self, value: str | None) -> None:
        if value is not None:
            self._total += Decimal(value)

    def finalize(self) -> str:
        return str(self._total)


class _SqliteAccountStore(TableAccountStore):
    def now(self) -> float:
        return time.time()

    def among(self, column: str) -> str:
        return f"{column} IN (SELECT value FROM json_each(?))"

    def several(self, values: Collection[str]) -> str:
        return json.dumps(list(values))

    def rows(self, event_ids: Collection[str]) -> dict[str, LedgerEvent]:
        found = self.select(f"SELECT * FROM runtime_ledger WHERE {self.among('event_id')}", self.several(event_ids))
        return {row[0]: _event(row) for row in found}

    def put_rows(self, events: Sequence[LedgerEvent], replaced: Collection[str]) -> None:
        self.change("DELETE FROM runtime_ledger WHERE event_id = ?", [(name,) for name in replaced])
        self.change(_INSERT, [_row(event) for event in events])

    def used(self, scope_id: str, since_ms: int) -> Amounts:
        ((tokens, cost, calls),) = self.select(_USED, scope_id, since_ms)
        return Amounts(tokens, Decimal(cost), calls)


@answers_wrong_options
class SqliteLedgerWriter:
    """A ledger writer that keeps the rows in a SQLite database. If the file does not exist, it is created with mode
    0600. Other programs can read the database while it is used. With `shared=True`, several processes can use the
    database. They then share the usage and the reservations of their budgets (`BudgetOwner`). The methods raise
    UserError if the file is not a database of a ledger.
    """

    def __init__(self, path: Path | str, *, shared: bool = False) -> None:
        """Makes a writer for the file at `path`. The file is opened, and if necessary created, when it is first used.
        `shared` must be True if several processes of this machine spend from the same budgets; then it must be True
        in all processes that write to the file.
        """
        refuse_redis(path)
        self.path = Path(checked_path(path, "SqliteLedgerWriter: path"))
        self.shared = shared
        self._lock = threading.Lock()
        self.where = self._where = f"ledger {self.path}"
        self._opened: sqlite3.Connection | None = None
        self._claim = FileClaim(
            self.path.with_name(f"{self.path.name}.lock"),
            f"process {os.getpid()}",
            lambda holder: counted_elsewhere(self._where, holder or "another process"),
        )

    async def claim(self) -> None:
        """Locks a file beside the database until `close`, or until this process ends (`LedgerWriter`). Raises AppLocked if
        another writer holds the lock.
        """
        await run_to_end(run_in_thread(self._claimed))

    def _claimed(self) -> None:
        with self._connection():  # makes the folder
            try:
                self._claim.take()
            except OSError as error:
                raise UserError(
                    f"{self._where} cannot be locked: {error.strerror or error}", hint=hint_of(error)
                ) from error

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Returns a context manager that provides the database connection. While a thread is in the `with` block,
        other threads wait. The connection is opened when it is first needed, and opened again after `close`.
        """
        with explained(self._where), self._lock:
            if self._opened is None:
                self._opened = self._open()
            yield self._opened

    def _open(self) -> sqlite3.Connection:
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError), open(self.path, "xb", opener=private):
                pass
        connection = connected(self.path, "rw")
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(_SCHEMA + (_BUDGETS if self.shared else ""))
            connection.create_aggregate("exact_sum", 1, _ExactSum)  # type: ignore[arg-type]
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    async def work(self, batch: BudgetBatch) -> BatchResult:
        """Applies a batch of steps and rows in one transaction, and returns the answer (`BudgetOwner.work`)."""
        return await run_to_end(run_in_thread(self._work, batch))

    def _work(self, batch: BudgetBatch) -> BatchResult:
        with step("ledger", self.path), self._connection() as connection, transaction(connection), self._content_told():
            return work(_SqliteAccountStore(connection.cursor()), batch)

    async def write(self, events: Sequence[LedgerEvent]) -> None:
        """Writes rows in one transaction, except those whose id is stored already (`LedgerWriter.write`)."""
        if self.shared and events:
            await self.work(batch_of_rows(events))
            return
        await run_to_end(run_in_thread(self._write, [_row(event) for event in events]))

    async def correct(self, events: Sequence[LedgerEvent]) -> int:
        """Writes rows in one transaction, and replaces stored rows that have the same id and other content. Returns
        the number of replaced rows (`LedgerWriter.correct`).
        """
        if self.shared and events:
            return (await self.work(batch_of_rows(events, corrects=True))).corrected
        return await run_to_end(run_in_thread(self._write, [_row(event) for event in events], True))

    def _write(self, rows: Sequence[tuple[Any, ...]], corrects: bool = False) -> int:
        wrong: set[str] = set()
        with step("ledger", self.path), self._connection() as connection, transaction(connection):
            for row in rows if corrects else ():
                kept = connection.execute("SELECT * FROM runtime_ledger WHERE event_id = ?", row[:1]).fetchall()
                wrong |= contradicted([row], {each[0]: each for each in kept})
            connection.executemany("DELETE FROM runtime_ledger WHERE event_id = ?", [(name,) for name in wrong])
            with self._content_told():
                connection.executemany(_INSERT, rows)
        return len(wrong)

    @contextmanager
    def _content_told(self) -> Iterator[None]:
        try:
            yield
        except (OverflowError, UnicodeError, sqlite3.DataError, sqlite3.IntegrityError) as error:
            raise DataError(f"{self._where} does not take it: {message_of(error)}") from error

    async def known(self, event_ids: Sequence[str]) -> set[str]:
        """Returns the ids among `event_ids` for which a row with a known outcome is stored (`LedgerWriter.known`)."""
        found = [await run_to_end(run_in_thread(self._asked, _KNOWN, (name,))) for name in event_ids]
        return {name for rows in found for (name,) in rows}

    async def used(self, scope_id: str, since_ms: int) -> Amounts:
        """Returns the sum of the amounts of the rows of a scope (a tenant) since this time, in milliseconds since
        1970 (`LedgerWriter.used`).
        """
        ((tokens, cost, calls),) = await run_to_end(run_in_thread(self._asked, _USED, (scope_id, since_ms)))
        return Amounts(tokens, Decimal(cost), calls)

    async def sums(self, by: Sequence[str], since_ms: int) -> list[LedgerSum]:
        """Groups the rows since this time (milliseconds since 1970), and returns the totals of each group
        (`LedgerWriter.sums`). `by` has the names of the columns by which rows are grouped, for example "scope" and
        "model".
        """
        words = [GROUPS[word].sql for word in checked_groups(by)]
        groups = ", ".join(words)
        tail = f" GROUP BY {groups} ORDER BY {groups}" if words else " HAVING count(*) > 0"
        rows = await run_to_end(
            run_in_thread(self._asked, f"SELECT {groups}{', ' if words else ''}{_SUMS}{tail}", (since_ms,))
        )
        return [sum_of_row(row, len(words)) for row in rows]

    async def notes(self, prefix: str) -> dict[str, str]:
        """Returns the notes whose names begin with a prefix (`LedgerWriter`)."""
        chosen = "SELECT name, value FROM runtime_notes WHERE substr(name, 1, ?) = ?"
        return dict(await run_to_end(run_in_thread(self._asked, chosen, (len(prefix), prefix))))

    async def note(self, notes: Mapping[str, str]) -> None:
        """Keeps notes (`LedgerWriter`)."""
        await run_to_end(run_in_thread(self._note, notes))

    def _note(self, notes: Mapping[str, str]) -> None:
        with step("ledger", self.path), self._connection() as connection, transaction(connection):
            connection.executemany("DELETE FROM runtime_notes WHERE name = ?", [(name,) for name in notes])
            kept = [(name, value) for name, value in notes.items() if value]
            connection.executemany("INSERT INTO runtime_notes VALUES (?, ?)", kept)

    def _asked(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._connection() as connection:
            return connection.execute(statement, values).fetchall()

    async def close(self) -> None:
        """Closes the file; the next use opens it again."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
            self._opened = None
            self._claim.release()


def contradicted(rows: Iterable[tuple[Any, ...]], kept: Mapping[str, tuple[Any, ...]]) -> set[str]:
    """Returns the ids of the rows in `rows` for which a row with the same id and other content is stored. The first
    value of a row is its id, and the second its type. `kept` contains the stored rows, by id.

    If only one of two rows has the type "doubt" (the outcome of the call is not known), they are not compared,
    because a row with the known outcome replaces it anyway.
    """
    return {
        row[0]
        for row in rows
        if (other := kept.get(row[0], row)) != row and (row[1] == "doubt") == (other[1] == "doubt")
    }


def _row(event: LedgerEvent) -> tuple[Any, ...]:
    return (
        event.event_id,
        event.type,
        event.job_id,
        event.scope_id,
        event.principal_id,
        event.name,
        event.input_tokens,
        event.output_tokens,
        event.total_tokens,
        event.reserved_tokens,
        None if event.cost is None else str(event.cost),
        event.at_ms,
    )


def _event(row: tuple[Any, ...]) -> LedgerEvent:
    (event_id, type_, job, scope, principal, name, read, written, _, reserved, cost, at_ms) = row
    return LedgerEvent(
        event_id=event_id,
        type=type_,
        job_id=job,
        scope_id=scope,
        principal_id=principal,
        name=name,
        input_tokens=read,
        output_tokens=written,
        reserved_tokens=reserved,
        cost=None if cost is None else Decimal(cost),
        at_ms=at_ms,
    )


def sum_of_row(row: tuple[Any, ...], words: int) -> LedgerSum:
    """Makes a LedgerSum from a row of the result of an SQL query. The first `words` values of the row are the values
    of the group. The other values are the totals, in the order of the fields of `LedgerSum`.
    """
    calls, read, written, doubt, cost, doubt_cost, unpriced = row[words:]
    return LedgerSum(
        group=tuple(row[:words]),
        calls=calls,
        input_tokens=read,
        output_tokens=written,
        doubt_tokens=doubt,
        cost=Decimal(cost),
        doubt_cost=Decimal(doubt_cost),
        unpriced=unpriced,
    )
