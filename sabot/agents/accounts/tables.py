"""The accounts of a shared budget in tables beside `runtime_ledger`, in SQLite and in PostgreSQL.

`runtime_accounts`      the usage of a scope in each window; the window "reserved" has the reservations of the scope
`runtime_reservations`  the reservation of each call in flight, with the process that holds it
`runtime_holders`       the time at which the lease of each process ends

A transaction that changes an account locks the rows of the account.
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from sabot.agents.accounts.owners import AccountStore, Reservation, decode_doubts, encode_doubts, opened_account
from sabot.base.accounts import WINDOWS, Account, Amounts, Window

_RESERVED = "reserved"


def tables_of_budgets(number: str, money: str, time: str) -> dict[str, str]:
    """Returns the CREATE statements of the tables that keep shared budgets, by the name of the table. `number`,
    `money` and `time` are the column types of the database for numbers of tokens and calls, for costs and for times.
    """
    amounts = f"tokens {number} NOT NULL, cost {money} NOT NULL, calls {number} NOT NULL"
    return {
        "runtime_accounts": f"CREATE TABLE runtime_accounts (scope_id TEXT NOT NULL, span TEXT NOT NULL, began {time} NOT NULL, {amounts}, "
        "PRIMARY KEY (scope_id, span))",
        "runtime_reservations": "CREATE TABLE runtime_reservations (call_id TEXT NOT NULL, scope_id TEXT NOT NULL, holder TEXT NOT NULL, "
        f"number {number} NOT NULL, {amounts}, doubts TEXT NOT NULL, PRIMARY KEY (call_id, scope_id));\n"
        "CREATE INDEX runtime_reservations_of_holder ON runtime_reservations (holder)",
        "runtime_holders": f"CREATE TABLE runtime_holders (holder TEXT PRIMARY KEY, until {time} NOT NULL)",
    }


class TableAccountStore(AccountStore):
    """An `AccountStore` that reads and writes tables with a database cursor. The caller begins and ends the
    transaction. There is a subclass for each database.

    - `mark`: the placeholder for a parameter in the database's SQL.
    - `lock`: the SQL words after a SELECT that lock the selected rows, or "".
    """

    mark = "?"
    lock = ""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor
        self._dead: list[str] = []

    @abstractmethod
    def among(self, column: str) -> str:
        """Returns an SQL condition that is true if the value of `column` is in a collection. The condition has a single
        placeholder, whose parameter is the whole collection in the form that `several` returns.
        """

    @abstractmethod
    def several(self, values: Collection[str]) -> Any:
        """Returns a collection in the form in which the database takes it as a single parameter, such as a list or a
        JSON text.
        """

    @abstractmethod
    def used(self, scope_id: str, since_ms: int) -> Amounts:
        """Returns the sum of the amounts of all rows of a scope (a tenant) since this time (milliseconds since 1970).
        A call whose outcome is not known (a row of type "doubt") is counted with the most that it may have used.
        """

    def select(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Executes a SELECT statement with these parameter values, and returns its rows. The statement contains `?`
        in the place of each parameter, whatever the placeholder of the database is.
        """
        self._cursor.execute(statement.replace("?", self.mark), values)
        found: list[tuple[Any, ...]] = self._cursor.fetchall()
        return found

    def change(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Executes a statement once for each tuple in `rows`, which contains the parameters. The statement contains
        `?` in the place of each parameter. Does nothing if `rows` is empty.
        """
        if rows:
            self._cursor.executemany(statement.replace("?", self.mark), rows)

    def known(self, scopes: Collection[str]) -> set[str]:
        found = self.select(
            f"SELECT scope_id FROM runtime_accounts WHERE span = ? AND {self.among('scope_id')}",
            _RESERVED,
            self.several(scopes),
        )
        return {scope for (scope,) in found}

    def accounts(self, scopes: Collection[str], now_s: float) -> dict[str, Account]:
        """Locks and returns the accounts of these scopes, by scope. Accounts are locked in the order of their names,
        so that transactions do not deadlock. If a scope (a tenant) has no account yet, a new one is made, with the
        usage in the stored rows of the scope at the time `now_s`, in seconds since 1970.
        """
        if not scopes:
            return {}
        accounts = self._locked(scopes)
        if missing := sorted({*scopes} - accounts.keys()):
            made = "INSERT INTO runtime_accounts VALUES (?, ?, 0, 0, 0, 0) ON CONFLICT DO NOTHING"
            # waits for another transaction that inserts the same row
            self.change(made, [(scope, _RESERVED) for scope in missing])
            accounts = self._locked(scopes)
            for scope in missing:
                if scope not in accounts:
                    accounts[scope] = opened_account(partial(self.used, scope), now_s)
        return accounts

    def _locked(self, scopes: Collection[str]) -> dict[str, Account]:
        """Locks and returns the stored accounts of these scopes (tenants), by scope. Scopes without an account are
        missing in the result.
        """
        found = self.select(
            f"SELECT scope_id, span, began, tokens, cost, calls FROM runtime_accounts WHERE {self.among('scope_id')} "
            f"ORDER BY scope_id, span {self.lock}",
            self.several(scopes),
        )
        spans: dict[str, dict[str, tuple[float, Amounts]]] = {}
        for scope, span, began, tokens, cost, calls in found:
            spans.setdefault(scope, {})[span] = float(began), Amounts(tokens, Decimal(cost), calls)
        accounts = {}
        for scope, each in spans.items():
            if all(window in each for window in WINDOWS):
                account = accounts[scope] = Account(windows=WINDOWS)
                windows: dict[Window, tuple[float, Amounts]] = {window: each[window] for window in WINDOWS}
                account.restore(windows, each[_RESERVED][1])
        return accounts

    def put_accounts(self, accounts: Mapping[str, Account]) -> None:
        rows: list[tuple[Any, ...]] = []
        for scope, account in accounts.items():
            rows += [(scope, window, began, *_kept(used)) for window, (began, used) in account.windows.items()]
            rows.append((scope, _RESERVED, 0.0, *_kept(account.reserved)))
        self.change(
            "INSERT INTO runtime_accounts VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (scope_id, span) DO UPDATE SET began = excluded.began, "
            "tokens = excluded.tokens, cost = excluded.cost, calls = excluded.calls",
            rows,
        )

    def reservations(self, calls: Collection[str]) -> list[Reservation]:
        return self._reservations(self.among("call_id"), self.several(calls))

    def dead(self, scopes: Collection[str], now_s: float) -> list[Reservation]:
        holders = [name for (name,) in self.select("SELECT holder FROM runtime_holders WHERE until < ?", now_s)]
        self._dead = holders
        if not holders or not scopes:
            return []
        where = f"{self.among('holder')} AND {self.among('scope_id')} ORDER BY scope_id, call_id"
        return self._reservations(where, self.several(holders), self.several(scopes))

    def _reservations(self, where: str, *values: Any) -> list[Reservation]:
        found = self.select(
            f"SELECT scope_id, call_id, holder, number, tokens, cost, calls, doubts FROM runtime_reservations WHERE {where}",
            *values,
        )
        return [
            Reservation(scope, call, holder, number, Amounts(tokens, Decimal(cost), calls), decode_doubts(doubts))
            for scope, call, holder, number, tokens, cost, calls, doubts in found
        ]

    def put_reservations(self, kept: Sequence[Reservation], dropped: Sequence[tuple[str, str]]) -> None:
        self.change("DELETE FROM runtime_reservations WHERE scope_id = ? AND call_id = ?", dropped)
        self.change(
            "INSERT INTO runtime_reservations VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (call_id, scope_id) DO UPDATE SET "
            "holder = excluded.holder, number = excluded.number, tokens = excluded.tokens, cost = excluded.cost, calls = excluded.calls, "
            "doubts = excluded.doubts",
            [
                (
                    each.call,
                    each.scope,
                    each.holder,
                    each.number,
                    *_kept(each.amounts),
                    encode_doubts(each.doubts).decode(),
                )
                for each in kept
            ],
        )

    def hold(self, holder: str, until_s: float, now_s: float) -> None:
        self.change(
            "INSERT INTO runtime_holders VALUES (?, ?) ON CONFLICT (holder) DO UPDATE SET until = excluded.until",
            [(holder, until_s)],
        )
        if self._dead:
            self.change(
                "DELETE FROM runtime_holders WHERE until < ? AND NOT EXISTS (SELECT 1 FROM runtime_reservations r "
                "WHERE r.holder = runtime_holders.holder)",
                [(now_s,)],
            )


def _kept(amounts: Amounts) -> tuple[int, str, int]:
    return amounts.tokens, str(amounts.cost), amounts.calls
