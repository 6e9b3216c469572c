"""A row of a ledger, and the contract of the writers that keep rows (`rows`, `stores`)."""

from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from sabot.base.accounts import Amounts
from sabot.errors import UserError, short_repr

LedgerEventType = Literal["model", "tool", "doubt"]


class LedgerEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a ledger: one call of a model or of a tool.

    `type` is "model" or "tool". It is "doubt" if nobody knows whether the call was made, so that it may have been paid.
    `name` is the name of the model or of the tool. `cost` is in US dollars, or None if the price is not known; for a
    doubt it is the most that the call may have cost. `reserved_tokens` is, for a doubt, the most tokens that the call
    may have used. `at_ms` is the time in milliseconds since 1970. `agent` is the agent of the job; tables do not store
    it. `settles` is set if this row replaces a doubt with the same id; it has the amounts of that doubt.
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
        """The tokens that the model has read and written."""
        return self.input_tokens + self.output_tokens

    @property
    def amounts(self) -> Amounts:
        """The amounts of the row in a budget. For a doubt they are the amounts that were reserved for the call."""
        tokens = self.reserved_tokens if self.type == "doubt" else self.total_tokens
        return Amounts(tokens, self.cost or Decimal(0), int(self.type != "tool"))

    @property
    def adds(self) -> Amounts:
        """The amounts by which the row changes the usage of its budget. A row that settles a doubt takes the doubt's amounts back."""
        return self.amounts if self.settles is None else self.amounts.minus(Amounts(*self.settles))

    @property
    def doubts(self) -> Amounts:
        """The part of `adds` that is an upper bound. It is negative for a row that settles a doubt, because the bound
        is taken back.
        """
        if self.settles is not None:
            return Amounts().minus(Amounts(*self.settles))
        return self.amounts if self.type == "doubt" else Amounts()


class LedgerSum(msgspec.Struct, frozen=True, kw_only=True):
    """The sum of some rows. `group`: the values that these rows share, one per grouping word of the query and in the
    same order. `doubt_tokens`, `doubt_cost`: upper bounds of the usage of the calls in doubt. `unpriced`: the number of
    calls of models whose price is not known.
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
    """A store of rows. A row with a known id is not written again, except that a row that settles a doubt replaces it."""

    async def write(self, events: Sequence[LedgerEvent]) -> None:
        """Writes rows. They are durable when it returns. Raises DataError, and writes none, if the content of one
        cannot be stored.
        """

    async def known(self, event_ids: Sequence[str]) -> set[str]:
        """Returns those of these ids that have a row in the store, and whose row is not a doubt."""

    async def correct(self, events: Sequence[LedgerEvent]) -> int:
        """Writes rows as `write` does, and replaces stored rows that have the same id and other content. Returns the
        number of replaced rows. A row and the doubt that it settles do not count as different.
        """

    async def used(self, scope_id: str, since_ms: int) -> Amounts:
        """Returns the sum of the rows of a scope since this time, as a budget counts it."""

    async def sums(self, by: Sequence[str], since_ms: int) -> list[LedgerSum]:
        """Returns the sums of the rows since this time, grouped by the words `by` (`rows.GROUPS`) and in the order of
        the groups. Raises UserError for an unknown word.
        """

    async def close(self) -> None:
        """Closes the writer. The rows stay stored."""


def refuse_redis(given: object) -> None:
    """Raises UserError if `given` is the address of a Redis server, which keeps no budgets. The address may have a password, so no message
    shows it.
    """
    if isinstance(given, str) and given.startswith(("redis:", "rediss:")):
        raise UserError(
            "Redis keeps no budgets and no ledger",
            hint="processes share PostgresLedgerWriter('postgresql://user@host/database', shared=True); those of one machine "
            "also SqliteLedgerWriter('ledger.db', shared=True)",
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
