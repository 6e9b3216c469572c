"""A ledger in PostgreSQL: its rows in the table `runtime_ledger`, and, in further tables, budgets that several
processes share.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from sabot.agents.accounts.contract import LedgerEvent, LedgerSum, counted_elsewhere, refuse_redis
from sabot.agents.accounts.owners import BatchResult, BudgetBatch, batch_of_rows, check_skew, work
from sabot.agents.accounts.rows import GROUPS, SETTLES, checked_groups, contradicted, sum_of_row
from sabot.agents.accounts.tables import TableAccountStore, tables_of_budgets
from sabot.agents.stores.tables import PostgresTables
from sabot.base.accounts import Amounts
from sabot.base.options import answers_wrong_options
from sabot.base.redaction import clean_cause
from sabot.base.threads import run_in_thread, run_to_end
from sabot.errors import DataError, UserError, message_of
from sabot.steps import step

_TABLES = {
    "runtime_ledger": """
CREATE TABLE runtime_ledger (event_id TEXT PRIMARY KEY, type TEXT NOT NULL, job_id TEXT NOT NULL, scope_id TEXT NOT NULL,
    principal_id TEXT NOT NULL, name TEXT NOT NULL, input_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL,
    total_tokens BIGINT NOT NULL, reserved_tokens BIGINT NOT NULL, cost NUMERIC, timestamp TIMESTAMPTZ NOT NULL);
CREATE INDEX ledger_of_scope ON runtime_ledger (scope_id, timestamp);
CREATE INDEX ledger_by_time ON runtime_ledger (timestamp)
"""
}
_NOTES = {"runtime_notes": "CREATE TABLE runtime_notes (name TEXT PRIMARY KEY, value TEXT NOT NULL)"}
_NOTE = (
    "INSERT INTO runtime_notes (name, value) SELECT * FROM unnest(%s::text[], %s::text[]) "
    "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
_WIDE = {"runtime_ledger": ("input_tokens", "output_tokens", "total_tokens", "reserved_tokens")}
_CONTENT = ("22", "54", "23514")  # beginnings of SQLSTATE: wrong data, limits of the server, a failed CHECK
_TIME = "to_timestamp({} / 1000.0)"
_SINCE = _TIME.format("%s::bigint")
_INSERT = (  # all rows in one statement, each column as an array
    "INSERT INTO runtime_ledger (event_id, type, job_id, scope_id, principal_id, name, input_tokens, output_tokens, total_tokens, "
    f"reserved_tokens, cost, timestamp) SELECT r.a, r.b, r.c, r.d, r.e, r.f, r.g, r.h, r.g + r.h, r.i, r.j, {_TIME.format('r.k')} "
    "FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], "
    "%s::bigint[], %s::numeric[], %s::bigint[]) AS r(a, b, c, d, e, f, g, h, i, j, k) "
)
_ONCE = "ON CONFLICT (event_id) DO NOTHING"
_KEPT = (
    "SELECT event_id, type, job_id, scope_id, principal_id, name, input_tokens, output_tokens, reserved_tokens, cost, "
    "round(extract(epoch FROM timestamp) * 1000)::bigint FROM runtime_ledger WHERE event_id = ANY(%s)"
)
_COLUMNS = (  # the columns of _KEPT and of a row, in order
    "event_id",
    "type",
    "job_id",
    "scope_id",
    "principal_id",
    "name",
    "input_tokens",
    "output_tokens",
    "reserved_tokens",
    "cost",
    "at_ms",
)
_KNOWN = "SELECT event_id FROM runtime_ledger WHERE event_id = ANY(%s) AND type <> 'doubt'"
_CLAIM = "SELECT pg_advisory_lock((368561::bigint << 32) + 'runtime_ledger'::regclass::oid::bigint)"
_USED = (
    "SELECT coalesce(sum(CASE type WHEN 'doubt' THEN reserved_tokens ELSE total_tokens END), 0)::bigint, coalesce(sum(cost), 0), "
    f"count(*) FILTER (WHERE type IN ('model', 'doubt')) FROM runtime_ledger WHERE scope_id = %s AND timestamp >= {_SINCE}"
)
_SUMS = (
    "count(*), sum(input_tokens)::bigint, sum(output_tokens)::bigint, "
    "sum(CASE type WHEN 'doubt' THEN reserved_tokens ELSE 0 END)::bigint, "
    "coalesce(sum(cost) FILTER (WHERE type <> 'doubt'), 0), coalesce(sum(cost) FILTER (WHERE type = 'doubt'), 0), "
    f"count(*) FILTER (WHERE type = 'model' AND cost IS NULL) FROM runtime_ledger WHERE timestamp >= {_SINCE}"
)
_WORDS = {word: group.sql for word, group in GROUPS.items()} | {
    "day": "to_char(timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
}


@answers_wrong_options
class PostgresLedgerWriter:
    """A writer of a ledger's rows to the table `runtime_ledger` in PostgreSQL. A missing table is created. Several
    processes may write to the table, and other programs may read it. A method that writes returns when the server has
    committed the rows. With `shared=True`, the database also stores the budgets that several processes share
    (`BudgetOwner`).

    Methods raise BrokerUnavailable or TransientError if the server does not answer, UserError if it refuses a
    statement, and DataError if it refuses the content of a row.
    """

    def __init__(self, pool: Any, *, make: bool = True, shared: bool = False) -> None:
        """Makes a writer, and does not connect yet.

        - `pool`: an address (postgresql://user@host:5432/database), or a pool of asyncpg, of which only the address is
          used.
        - `make`: True creates a missing table. With False, the first use raises UserError if the table is missing.
        - `shared`: True if several processes use the same budgets. Then all processes that write to the table have to
          set it.

        Raises UserError for a `pool` of another type, and MissingExtra if psycopg is not installed.
        """
        refuse_redis(pool)
        self.shared, self._makes = shared, make
        made_by = _TABLES | (tables_of_budgets("BIGINT", "NUMERIC", "DOUBLE PRECISION") if shared else {})
        self._tables = PostgresTables(
            pool, "ledger", "PostgresLedgerWriter", made_by if make else {}, _WIDE if make else None
        )
        # with a connection of their own, so that a user who may not make the table can keep rows
        self._notes = PostgresTables(pool, "ledger", "PostgresLedgerWriter", _NOTES if make else {})
        self.where = self._tables.where

    async def create_tables(self) -> None:
        """Creates missing tables now. Otherwise the first use creates them. Raises UserError if the writer was made
        with `make=False`.
        """
        if not self._makes:
            raise UserError(f"{self.where}: it was made with make=False, and makes no tables")
        await run_to_end(run_in_thread(self._tables.create))

    async def claim(self) -> None:
        """Takes an advisory lock of the table until `close`, or until the session of this process ends (`LedgerWriter`).
        Raises AppLocked if another session has held it for 5 seconds.
        """
        await run_to_end(run_in_thread(self._claimed))

    def _claimed(self) -> None:
        with self._tables.transaction():  # makes the table
            pass
        self._tables.hold(_CLAIM, lambda: counted_elsewhere(self.where, "another process"))

    async def work(self, batch: BudgetBatch) -> BatchResult:
        """Applies a batch of changes to the shared budgets and their rows, in one transaction, and returns their
        results. `BudgetOwner.work` describes the errors.
        """
        return await run_to_end(run_in_thread(self._work, batch))

    def _work(self, batch: BudgetBatch) -> BatchResult:
        with (
            step("ledger", "runtime_accounts"),
            self._tables.transaction() as connection,
            _content_told(connection),
            connection.cursor() as cursor,
        ):
            worked = work(_PostgresAccountStore(cursor), batch)
            # raises before the commit, so nothing of the batch is done
            check_skew(batch.machine_s, worked.now_s, self.where)
            return worked

    async def write(self, events: Sequence[LedgerEvent]) -> None:
        """Writes rows in one transaction. A row whose id is stored already is ignored, so the same rows may be written
        again. Only a stored row of the type "doubt" is replaced, by a row with the known outcome of the call. With no
        rows, only makes sure that the table exists.
        """
        if self.shared and events:
            await self.work(batch_of_rows(events))
            return
        await run_to_end(run_in_thread(self._write, _rows(events), _conflict(events)))

    async def correct(self, events: Sequence[LedgerEvent]) -> int:
        """Writes rows in one transaction, and replaces stored rows that have the same id and other content. Returns the
        number of replaced rows. The user of the database needs the right to delete rows.
        """
        if self.shared and events:
            return (await self.work(batch_of_rows(events, corrects=True))).corrected
        return await run_to_end(run_in_thread(self._write, _rows(events), _conflict(events), True))

    def _write(self, rows: list[tuple[Any, ...]], conflict: str, corrects: bool = False) -> int:
        wrong: set[str] = set()
        with step("ledger", "runtime_ledger"), self._tables.transaction() as connection, _content_told(connection):
            if corrects:
                kept = connection.execute(_KEPT, ([row[0] for row in rows],)).fetchall()
                wrong = contradicted(rows, {each[0]: each for each in kept})
                if wrong:
                    connection.execute("DELETE FROM runtime_ledger WHERE event_id = ANY(%s)", (sorted(wrong),))
            if rows:
                connection.execute(_INSERT + conflict, [list(values) for values in zip(*rows, strict=True)])
        return len(wrong)

    async def known(self, event_ids: Sequence[str]) -> set[str]:
        """Returns those of the given ids for which the table has a row with a known outcome. A row of the type "doubt",
        which records that nobody knows the outcome of a call, does not count.
        """
        return {name for (name,) in await self._asked(_KNOWN, (list(event_ids),))}

    async def used(self, scope_id: str, since_ms: int) -> Amounts:
        """Returns the tokens, the costs and the number of model calls that a tenant has used since the time `since_ms`,
        in milliseconds since 1970. A call whose outcome is not known (a row of the type "doubt") is counted with the
        most that it may have used.
        """
        ((tokens, cost, calls),) = await self._asked(_USED, (scope_id, since_ms))
        return Amounts(tokens, Decimal(cost), calls)

    async def sums(self, by: Sequence[str], since_ms: int) -> list[LedgerSum]:
        """Groups the rows since the time `since_ms` (milliseconds since 1970), and returns the totals of each group.
        `by` contains the names of the columns by which the rows are grouped, such as "scope" or "day"
        (`accounts.rows.GROUPS`). Raises UserError for another name.
        """
        words = [_WORDS[word] for word in checked_groups(by)]
        groups = "".join(f"{word}, " for word in words)
        order = ", ".join(f'({word}) COLLATE "C"' for word in words)
        tail = f" GROUP BY {groups[:-2]} ORDER BY {order}" if words else " HAVING count(*) > 0"
        rows = await self._asked(f"SELECT {groups}{_SUMS}{tail}", (since_ms,))
        return [sum_of_row(row, len(words)) for row in rows]

    async def notes(self, prefix: str) -> dict[str, str]:
        """Returns the notes whose names begin with a prefix (`LedgerWriter`)."""
        chosen = "SELECT name, value FROM runtime_notes WHERE starts_with(name, %s)"
        return dict(await run_to_end(run_in_thread(self._notes.select, chosen, (prefix,))))

    async def note(self, notes: Mapping[str, str]) -> None:
        """Keeps notes (`LedgerWriter`). The user of the database needs the right to delete rows of `runtime_notes`."""
        await run_to_end(run_in_thread(self._note, notes))

    def _note(self, notes: Mapping[str, str]) -> None:
        kept = {name: notes[name] for name in sorted(notes) if notes[name]}  # as `_rows`
        with step("ledger", "runtime_notes"), self._notes.transaction() as connection:
            if gone := [name for name in notes if name not in kept]:
                connection.execute("DELETE FROM runtime_notes WHERE name = ANY(%s)", (sorted(gone),))
            if kept:
                connection.execute(_NOTE, (list(kept), list(kept.values())))

    async def _asked(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return await run_to_end(run_in_thread(self._tables.select, statement, values))

    async def close(self) -> None:
        """Closes the connections to the database. The next use opens new ones."""
        for tables in (self._tables, self._notes):
            await run_to_end(run_in_thread(tables.close))


class _PostgresAccountStore(TableAccountStore):
    mark, lock = "%s", "FOR UPDATE"

    def now(self) -> float:
        ((now,),) = self.select("SELECT extract(epoch FROM clock_timestamp())::float8")
        return float(now)

    def among(self, column: str) -> str:
        return f"{column} = ANY(?)"

    def several(self, values: Collection[str]) -> list[str]:
        return list(values)

    def rows(self, event_ids: Collection[str]) -> dict[str, LedgerEvent]:
        found = self.select(_KEPT, list(event_ids))
        return {row[0]: LedgerEvent(**dict(zip(_COLUMNS, row, strict=True))) for row in found}

    def put_rows(self, events: Sequence[LedgerEvent], replaced: Collection[str]) -> None:
        if replaced:
            self.change("DELETE FROM runtime_ledger WHERE event_id = ANY(?)", [(sorted(replaced),)])
        rows = [_row(event) for event in sorted(events, key=lambda event: event.event_id)]  # as `_rows`
        self.change(_INSERT, [tuple(list(values) for values in zip(*rows, strict=True))])

    def used(self, scope_id: str, since_ms: int) -> Amounts:
        ((tokens, cost, calls),) = self.select(_USED, scope_id, since_ms)
        return Amounts(tokens, Decimal(cost), calls)


@contextmanager
def _content_told(connection: Any) -> Iterator[None]:
    """Runs the `with` block. If the server or the driver refuses the content of a row, raises a DataError instead of
    their error.
    """
    try:
        yield
    except (connection.Error, UnicodeError) as error:
        state = getattr(error, "sqlstate", None) or ""
        if isinstance(error, connection.DataError | UnicodeError) or state.startswith(_CONTENT):
            raise DataError(f"runtime_ledger does not take it: {message_of(error).strip()}") from clean_cause(error)
        raise


def _conflict(events: Sequence[LedgerEvent]) -> str:
    """Returns the ON CONFLICT clause of the INSERT statement, which applies to events whose ids are stored already. If
    an event has the known outcome of a call whose outcome was unknown before, the clause replaces the stored row of the
    type "doubt". Otherwise it keeps all stored rows, and the user of the database needs no right to update rows.
    """
    return SETTLES if any(event.settles is not None for event in events) else _ONCE


def _rows(events: Sequence[LedgerEvent]) -> list[tuple[Any, ...]]:
    """Returns the events as rows for one INSERT statement, one row for each id. If several events have the same id, the
    first one whose type is not "doubt" becomes the row; if all have the type "doubt", the first one. The rows are
    sorted by id, so that two writers lock the same rows in the same order, and do not deadlock.
    """
    once: dict[str, LedgerEvent] = {}
    for event in events:
        before = once.get(event.event_id)
        if before is None or (before.type == "doubt" and event.type != "doubt"):
            once[event.event_id] = event
    return [_row(once[name]) for name in sorted(once)]


def _row(event: LedgerEvent) -> tuple[Any, ...]:
    return tuple(getattr(event, name) for name in _COLUMNS)
