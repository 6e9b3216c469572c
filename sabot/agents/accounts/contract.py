"""A row of a ledger, and the contract of the writers that keep rows (`rows`, `stores`)."""

from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from sabot.base.accounts import Amounts
from sabot.errors import AppLocked, UserError, short_repr

LedgerEventType = Literal["model", "tool", "doubt", "free"]


class LedgerEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a ledger: one attempt of a model call, or one call of a tool.

    - `type`: "model", "tool", "doubt" or "free". A "doubt" is a row for an attempt whose outcome is not known, for example
      after a crash. Perhaps the provider charges for it, so it is counted with the most that it may have used. A "free" row
      is for a request that was no call: it was not sent, the provider has turned it away, or the cache has answered it.
    - `name`: the name of the model or of the tool.
    - `cost`: the cost in US dollars, or None if the price is not known. In a row of type "doubt", the most that the
      attempt may have cost.
    - `reserved_tokens`: in a row of type "doubt", the most tokens that the attempt may have used.
    - `at_ms`: the time in milliseconds since 1970.
    - `agent`: the agent of the job. Ledgers in a database do not store this field.
    - `settles`: the (tokens, cost, calls) of an earlier row of type "doubt" with the same id, if this row replaces
      that row because the outcome is now known. None for all other rows. Ledgers in a database do not store this
      field.
    """

    event_id: str
    type: LedgerEventType
    scope_id: str
    job_id: str = ""
    principal_id: str = ""
    name: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Decimal | None = None
    reserved_tokens: int = 0
    at_ms: int = 0
    agent: str = ""
    settles: tuple[int, Decimal, int] | None = None

    @property
    def total_tokens(self) -> int:
        """The number of tokens that the model has read and written in this call."""
        return self.input_tokens + self.output_tokens

    @property
    def amounts(self) -> Amounts:
        """The amounts by which this row is counted in a budget. For a row of type "doubt" (the outcome of the call is
        not known) they are the amounts that were reserved for the call.
        """
        tokens = self.reserved_tokens if self.type == "doubt" else self.total_tokens
        return Amounts(tokens, self.cost or Decimal(0), int(self.type in ("model", "doubt")))

    @property
    def adds(self) -> Amounts:
        """The change of the scope's usage when this row is recorded. Usually these are the amounts of the row. If the
        row replaces an earlier row of type "doubt" (`settles`), because the outcome of the call is now known, the
        amounts of that row are subtracted.
        """
        return self.amounts if self.settles is None else self.amounts.minus(Amounts(*self.settles))

    @property
    def doubts(self) -> Amounts:
        """The part of `adds` that is only an upper bound, because the outcome of the call is not known. For a row of
        type "doubt" it is the whole amount. For a row that replaces a row of type "doubt", it is the amount of that
        row with a negative sign. For all other rows it is zero.
        """
        if self.settles is not None:
            return Amounts().minus(Amounts(*self.settles))
        return self.amounts if self.type == "doubt" else Amounts()


class LedgerSum(msgspec.Struct, frozen=True, kw_only=True):
    """The totals of a group of ledger rows.

    - `group`: the values by which the rows were grouped. For rows grouped by "scope" and "model", for example, it is
      (scope, model).
    - `calls`: the number of rows, including rows of type "doubt", "tool" and "free".
    - `cost`, `doubt_cost`: US dollars.
    - `doubt_tokens`, `doubt_cost`: the totals of the rows of type "doubt", whose calls may or may not have been made.
      They are upper bounds, and are not contained in the other totals of tokens and cost.
    - `unpriced`: the number of model calls whose price is not known.
    """

    group: tuple[str, ...]
    calls: int
    input_tokens: int
    output_tokens: int
    doubt_tokens: int
    cost: Decimal
    doubt_cost: Decimal
    unpriced: int


Durable = Callable[[], Awaitable[object]]
"""A function that returns when all entries recorded in a journal so far are durable."""


@runtime_checkable
class LedgerWriter(Protocol):
    """A store for the rows of a ledger. Each row has an id. If a row with the same id is stored already, a new row is
    ignored. There is one exception: a new row with the known outcome of a call replaces a stored row of type "doubt".

    A writer that other processes can open too may have a method `async def claim(self) -> None`. A ledger with budgets
    that are not shared awaits it before the first call. It raises AppLocked while another writer has the claim of the
    same rows, and `close` gives the claim up.

    A writer may keep short texts beside its rows, by methods `async def note(self, notes: Mapping[str, str]) -> None` and
    `async def notes(self, prefix: str) -> dict[str, str]`. `note` keeps texts by their names, all or none, in place of earlier
    ones; "" removes one. `notes` returns those whose names begin with a prefix. A ledger notes there up to which entry of a
    journal it has the rows, so that a start does not read the entries before (`journal_rows`); without them it reads all.
    """

    async def write(self, events: Sequence[LedgerEvent]) -> None:
        """Writes rows. They are durable when this returns. Raises DataError, and writes none of the rows, if the
        content of one of them cannot be stored.
        """

    async def known(self, event_ids: Sequence[str]) -> set[str]:
        """Returns the ids among `event_ids` for which a row with a known outcome is stored. An id whose stored row
        has the type "doubt" (the outcome of the call is not known) is not returned.
        """

    async def correct(self, events: Sequence[LedgerEvent]) -> int:
        """Writes rows as `write` does, and also replaces stored rows that are wrong: those with the same id as a new
        row, and other content. Returns the number of wrong rows.

        Rows of type "doubt" (the outcome of the call is not known) are treated as in `write`. A stored row of this type
        is replaced by a row with the known outcome, but is not counted as wrong. A new row of this type does not
        replace a row with the known outcome.
        """

    async def used(self, scope_id: str, since_ms: int) -> Amounts:
        """Returns the sum of the amounts of all rows of a scope (a tenant) since this time (milliseconds since 1970).
        A call whose outcome is not known (a row of type "doubt") is counted with the most that it may have used.
        """

    async def sums(self, by: Sequence[str], since_ms: int) -> list[LedgerSum]:
        """Groups the rows since this time (milliseconds since 1970), and returns the totals of each group, sorted by
        `LedgerSum.group`. `by` has the names of the columns by which rows are grouped, for example "scope" and
        "model". `rows.GROUPS` has all possible names. Raises UserError for another name.
        """

    async def close(self) -> None:
        """Closes the writer. The rows stay stored."""


def refuse_redis(given: object) -> None:
    """Raises UserError if `given` is the address of a Redis server, because budgets cannot be kept in Redis. The
    message does not show the address, which may contain a password.
    """
    if isinstance(given, str) and given.startswith(("redis:", "rediss:")):
        raise UserError(
            "Redis keeps no budgets and no ledger",
            hint="processes share PostgresLedgerWriter('postgresql://user@host/database', shared=True); those of one machine "
            "also SqliteLedgerWriter('ledger.db', shared=True)",
        )


def counted_elsewhere(where: str, holder: str) -> AppLocked:
    """Returns the error for a ledger whose budgets are counted by another one, which does not know of its calls."""
    return AppLocked(
        f"{where}: {holder} counts budgets over these rows by itself, so each could use all of a budget",
        hint="give both kernels or apps one Ledger; in several processes give each its own Ledger over a writer with "
        "shared=True: SqliteLedgerWriter('ledger.db', shared=True), PostgresLedgerWriter(url, shared=True); or close "
        "the other one first",
    )


def checked_writer(given: Any) -> LedgerWriter:
    """Returns `given` if it is a LedgerWriter. Raises UserError otherwise."""
    refuse_redis(given)
    if not isinstance(given, LedgerWriter):
        lacks = [name for name in ("write", "correct", "known", "used", "sums", "close") if not hasattr(given, name)]
        raise UserError(
            f"{short_repr(given)} is no LedgerWriter: it has no {', '.join(lacks)}",
            hint="InMemoryLedgerWriter(), SqliteLedgerWriter(path), PostgresLedgerWriter(url)",
        )
    return given
