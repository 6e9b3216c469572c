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

    - `type`: "model" or "tool", or "doubt". A doubt stands for a call of which nobody knows whether it was made, and so
      whether it has to be paid.
    - `name`: the name of the model or of the tool.
    - `cost`: the cost in US dollars, or None if the price is not known. For a doubt it is the most that the call may
      have cost.
    - `reserved_tokens`: for a doubt, the most tokens that the call may have used.
    - `at_ms`: the time in milliseconds since 1970.
    - `agent`: the agent of the job. Tables do not store this field.
    - `settles`: set if this row replaces a stored doubt with the same id. It has the amounts of that doubt.
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
        """The amounts of this row that a budget counts. For a doubt they are the amounts that were reserved for the call."""
        tokens = self.reserved_tokens if self.type == "doubt" else self.total_tokens
        return Amounts(tokens, self.cost or Decimal(0), int(self.type != "tool"))

    @property
    def adds(self) -> Amounts:
        """The amounts by which this row changes the usage of its budget. If the row replaces a doubt, the doubt's
        amounts are subtracted.
        """
        return self.amounts if self.settles is None else self.amounts.minus(Amounts(*self.settles))

    @property
    def doubts(self) -> Amounts:
        """The part of `adds` that is only an upper bound. It is negative for a row that replaces a doubt, because the
        bound of that doubt is subtracted.
        """
        if self.settles is not None:
            return Amounts().minus(Amounts(*self.settles))
        return self.amounts if self.type == "doubt" else Amounts()


class LedgerSum(msgspec.Struct, frozen=True, kw_only=True):
    """The sum of some rows of a ledger.

    - `group`: the values that these rows share, one for each grouping word of the query, in the order of the words.
    - `doubt_tokens`, `doubt_cost`: upper bounds of the usage of the calls in doubt.
    - `unpriced`: the number of calls of models whose price is not known.
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
    """A store of the rows of a ledger. It does not write a row whose id is stored already, with one exception: a row
    that settles a doubt replaces that doubt.
    """

    async def write(self, events: Sequence[LedgerEvent]) -> None:
        """Writes rows. They are durable when this returns. Raises DataError, and writes none of the rows, if the
        content of one of them cannot be stored.
        """

    async def known(self, event_ids: Sequence[str]) -> set[str]:
        """Returns those of these ids that the store has rows for. Ids of doubts are left out."""

    async def correct(self, events: Sequence[LedgerEvent]) -> int:
        """Writes rows as `write` does. If the store has a row with the same id and other content, that row is replaced.
        Returns the number of replaced rows. A row that settles a doubt also replaces the doubt, but is not counted.
        """

    async def used(self, scope_id: str, since_ms: int) -> Amounts:
        """Returns the amounts that a scope has used since this time (milliseconds since 1970), as a budget counts them."""

    async def sums(self, by: Sequence[str], since_ms: int) -> list[LedgerSum]:
        """Returns the sums of the rows since this time (milliseconds since 1970), in the order of their groups. The
        words `by` name the groups; `rows.GROUPS` has all words. Raises UserError for an unknown word.
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
