"""A row of a ledger, and what keeps rows: the contract of the writers in `rows`, and in `stores`."""

from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from sabot.base.accounts import Amounts
from sabot.errors import UserError, short_repr

LedgerEventType = Literal["model", "tool", "doubt"]


class LedgerEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A row. type: what was called; "doubt": nobody knows whether it was, so it may have been paid. name: of the model, or of the tool.
    cost: in US dollars, of a doubt the most that it was; None: the price is not known. reserved_tokens: of a doubt, the most that it used.
    at_ms: since 1970. agent: whose job it is; no table has it. settles: what a doubt of the same id counts, whose place it takes.
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
        """Read and written."""
        return self.input_tokens + self.output_tokens

    @property
    def amounts(self) -> Amounts:
        """What it counts in a budget: a doubt its reservation, since it may have been paid."""
        tokens = self.reserved_tokens if self.type == "doubt" else self.total_tokens
        return Amounts(tokens, self.cost or Decimal(0), int(self.type != "tool"))

    @property
    def adds(self) -> Amounts:
        """What a budget counts with it that it did not count before: what settles a doubt takes that back."""
        return self.amounts if self.settles is None else self.amounts.minus(Amounts(*self.settles))

    @property
    def doubts(self) -> Amounts:
        """The part of `adds` that is an upper bound: what settles a doubt takes its bound back."""
        if self.settles is not None:
            return Amounts().minus(Amounts(*self.settles))
        return self.amounts if self.type == "doubt" else Amounts()


class LedgerSum(msgspec.Struct, frozen=True, kw_only=True):
    """Rows together. group: by what they were put together, in the order that was asked for. doubt_tokens, doubt_cost: the most that calls
    have used of which nobody knows whether they were paid. unpriced: calls of models whose price is not known.
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
"""Returns when all that was recorded in a journal so far is durable."""


@runtime_checkable
class LedgerWriter(Protocol):
    """Where rows are kept. A row whose id is there already is not written again; but a doubt makes room for the row that settles it."""

    async def write(self, events: Sequence[LedgerEvent]) -> None:
        """They are there when it returns. Raises DataError, and keeps none, where one of them cannot be kept for what it says."""

    async def known(self, event_ids: Sequence[str]) -> set[str]:
        """Those of which there is a row that is no doubt."""

    async def correct(self, events: Sequence[LedgerEvent]) -> int:
        """As `write`; and rows of the same ids that say something else are replaced. -> how many were. A doubt and what settles it say the
        same.
        """

    async def used(self, scope_id: str, since_ms: int) -> Amounts:
        """What the rows of a scope count in its budget, from this time on."""

    async def sums(self, by: Sequence[str], since_ms: int) -> list[LedgerSum]:
        """Rows from this time on, put together by these words (`rows.GROUPS`), in the order of the groups. Raises UserError."""

    async def close(self) -> None:
        """What was written stays."""


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
    """Returns the writer. Raises UserError if `given` is none."""
    refuse_redis(given)
    if not isinstance(given, LedgerWriter):
        lacks = [name for name in ("write", "correct", "known", "used", "sums", "close") if not hasattr(given, name)]
        raise UserError(
            f"{short_repr(given)} is no LedgerWriter: it has no {', '.join(lacks)}",
            hint="InMemoryLedgerWriter(), SqliteLedgerWriter(path), PostgresLedgerWriter(url)",
        )
    return given
