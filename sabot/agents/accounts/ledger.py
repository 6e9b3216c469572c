"""The ledger: what was used, by whom, and whether more may be. Its rows are written once, by their ids.

check_budget ─▶ reserved ─▶ the call ─▶ record_model_usage ─▶ settled: a row, and what the scope has used

A reservation is an upper bound. So however many calls run side by side, what they use together fits in the budget.
"""

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from sabot.agents.accounts.budgets import (
    WINDOWS,
    Account,
    Amounts,
    Budget,
    BudgetDecision,
    Judgement,
    Window,
    window_start,
)
from sabot.agents.context import ExecutionContext
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.config import Duration, amount, check_called, checked_kind, checked_text, parse_seconds, whole
from sabot.errors import DataError, UserError, short_repr, words_of
from sabot.llm.errors import BudgetExceeded
from sabot.llm.results import Usage

__all__ = [
    "BudgetExceededError",
    "Durable",
    "Ledger",
    "LedgerEvent",
    "LedgerEventType",
    "LedgerSum",
    "LedgerWriter",
    "checked_writer",
    "together",
]

BudgetExceededError = BudgetExceeded
"""As document 001 calls it."""

LedgerEventType = Literal["model", "tool", "doubt"]

_log = logging.getLogger(__name__)

_MOST_WAITING = 10_000  # rows that wait for the writer
_CONTEXT = "ExecutionContext(scope_id=…)"
_BUDGET = 'Budget("scope", max_cost_daily=Decimal("10")); a CallBudget of sabot.llm is an engine\'s: ExecutionEngine(…, budget=…)'


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
    settles: Amounts | None = None

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
        return self.amounts.minus(self.settles) if self.settles is not None else self.amounts


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
        """Rows from this time on, put together by these words (`ledger_rows.GROUPS`), in the order of the groups. Raises UserError."""

    async def close(self) -> None:
        """What was written stays."""


class Ledger:
    """Judges calls by the budgets of their scopes, and keeps what they used. For one event loop; one ledger owns the budgets of a scope.

    reservation_timeout: a call that was allowed, and of which nothing was recorded for so long, counts no more. refused_rows: how many rows
    the writer did not take for what they say; the log has them.
    """

    def __init__(
        self,
        writer: LedgerWriter,
        *,
        budgets: Sequence[Budget] = (),
        clock: Clock = SYSTEM_CLOCK,
        reservation_timeout: Duration = "10m",
        on_decision: Callable[[ExecutionContext, Judgement], object] | None = None,
    ) -> None:
        """budgets: those of the same scope hold together (`Budget.together`). on_decision: told of each call that is not simply allowed."""
        check_called("Ledger", on_decision=on_decision)
        self.writer = checked_writer(writer)
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        # Reservations of check_budget, the oldest first.
        self._held: dict[tuple[str, str, str], deque[tuple[str, float]]] = {}
        self._timeout_s = parse_seconds(reservation_timeout, name="reservation_timeout")
        self._on_decision = on_decision
        self._rows: list[tuple[LedgerEvent, Durable | None]] = []
        self._recorded = 0
        self._writing: asyncio.Task[Exception | None] | None = None
        # Names of rows after which the writer is asked, until it has answered.
        self._asked: dict[str, asyncio.Event] = {}
        self._named: set[str] = set()  # of rows that wait for the writer
        self.refused_rows = 0
        for budget in together(budgets):
            self.set_budget(budget)

    # -- budgets ------------------------------------------------------------------------------------------------------

    def set_budget(self, budget: Budget) -> None:
        """From now on, in place of what the scope had; what was used counts in it. Raises UserError for what is no Budget."""
        _checked(budget)
        account = self._accounts.get(budget.scope_id)
        if account is None:
            self._accounts[budget.scope_id] = Account(budget)
        else:
            account.changed(budget)

    @property
    def budgets(self) -> list[Budget]:
        """One for each scope that has one."""
        return [account.budget for account in self._accounts.values()]

    def budget(self, scope_id: str) -> Budget:
        """Of this scope. Raises UserError where it has none."""
        account = self._accounts.get(checked_text(scope_id, "scope_id"))
        if account is None:
            raise UserError(
                f"scope {scope_id} has no budget", hint=f"budgets have: {', '.join(self._accounts) or 'none'}"
            )
        return account.budget

    def limits_answers(self, scope_id: str) -> bool:
        """Whether tokens or money of this scope have a limit."""
        account = self._accounts.get(scope_id)
        return account is not None and account.limits_answers

    async def used(self, scope_id: str) -> Mapping[Window, Amounts]:
        """In the windows of now. Raises UserError for a scope without a budget."""
        self.budget(scope_id)
        account = await self._account(scope_id)
        assert account is not None
        return account.used(self._clock.time())

    async def _account(self, scope_id: str) -> Account | None:
        """With what its rows say."""
        account = self._accounts.get(scope_id)
        if account is None:
            return None
        loading = self._loading.get(scope_id)
        if loading is None:
            loading = self._loading[scope_id] = asyncio.create_task(self._load(account))
        if not loading.done():
            await asyncio.shield(loading)
        loading.result()
        return account

    async def _load(self, account: Account) -> None:
        try:
            recorded = -1
            while recorded != self._recorded:  # what is recorded meanwhile is among the rows, or not
                recorded = self._recorded
                await self.flush()
                now = self._clock.time()
                scope = account.budget.scope_id
                used = {each: await self.writer.used(scope, round(window_start(each, now) * 1000)) for each in WINDOWS}
        except BaseException:
            del self._loading[account.budget.scope_id]  # the next one tries again
            raise
        account.load(used, now)

    # -- before a call ------------------------------------------------------------------------------------------------

    async def ready(self, scope_id: str) -> None:
        """`reserve` may be called for this scope from now on."""
        await self._account(scope_id)

    def reserve(self, call: str, scope_id: str, wanted: Amounts) -> Judgement:
        """Whether this call may be made; if so, that much is reserved for it until `release` or `record`. A call that is degraded or that a
        person is asked for has no reservation yet: `hold` makes one.
        """
        account = self._accounts.get(scope_id)
        if account is None:
            return Judgement(BudgetDecision.ALLOW)
        account.release(call)
        judged = account.judge(wanted, self._clock.time())
        if judged.decision in (BudgetDecision.ALLOW, BudgetDecision.WARN):
            account.reserve(call, wanted)
        return judged

    def hold(self, call: str, scope_id: str, wanted: Amounts) -> None:
        """Reserves that much, whatever the budget says: the call was allowed before, or by a person."""
        account = self._accounts.get(scope_id)
        if account is not None:
            account.reserve(call, wanted)

    def release(self, call: str, scope_id: str) -> None:
        """The call was not made."""
        account = self._accounts.get(scope_id)
        if account is not None:
            account.release(call)

    async def check_budget(
        self, context: ExecutionContext, pending_tokens: int = 0, *, pending_cost: Decimal | str | int = 0
    ) -> BudgetDecision:
        """Whether a call may be made that uses at most that much. If so, it is reserved for the context until the next `record_model_usage`
        of an equal scope, principal and job, or until `reservation_timeout`.
        """
        checked_kind(context, ExecutionContext, "check_budget: context", _CONTEXT)
        cost = amount("pending_cost", pending_cost) or Decimal(0)
        whole("pending_tokens", pending_tokens)
        await self._account(context.scope_id)
        held = self._held.setdefault(_who(context), deque())
        now = self._clock.monotonic()
        while held and held[0][1] <= now:
            self.release(held.popleft()[0], context.scope_id)
        call = uuid.uuid4().hex
        judged = self.reserve(call, context.scope_id, Amounts(pending_tokens, cost, 1))
        if judged.decision in (BudgetDecision.ALLOW, BudgetDecision.WARN):
            held.append((call, now + self._timeout_s))
        elif not held:
            del self._held[_who(context)]
        if judged.decision is not BudgetDecision.ALLOW and self._on_decision is not None:
            self._on_decision(context, judged)
        return judged.decision

    # -- after it -----------------------------------------------------------------------------------------------------

    async def record_model_usage(
        self,
        context: ExecutionContext,
        usage: Usage,
        *,
        cost: Decimal | None = None,
        model: str = "",
        event_id: str = "",
    ) -> LedgerEvent:
        """A call has used that much. event_id: its own name, by which it counts once. Returns the row when it is written.

        Raises UserError for tokens or a cost that are negative or no numbers: such a row would give a budget back what it has used; and for
        a model or a name that no database can keep.
        """
        checked_kind(context, ExecutionContext, "record_model_usage: context", _CONTEXT)
        checked_kind(usage, Usage, "record_model_usage: usage", "Usage(input_tokens=…, output_tokens=…)")
        checked_text(model, "model")
        checked_text(event_id, "event_id")
        whole("input_tokens", usage.input_tokens)
        whole("output_tokens", usage.output_tokens)
        cost = amount("cost", cost)
        event = LedgerEvent(
            event_id=event_id or uuid.uuid4().hex,
            type="model",
            scope_id=context.scope_id,
            job_id=context.job_id,
            principal_id=context.principal_id,
            name=model,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost=cost,
            at_ms=round(self._clock.time() * 1000),
        )
        await self._account(context.scope_id)
        held = self._held.get(_who(context))
        call = held.popleft()[0] if held else ""
        if held is not None and not held:
            del self._held[_who(context)]
        if event_id and await self._has(event_id):
            self.release(call, context.scope_id)
        else:
            self.record(event, call)
        await self.flush()
        return event

    async def _has(self, event_id: str) -> bool:
        """Whether there is a row of this name; else the caller has it, and is to record it at once."""
        while (asked := self._asked.get(event_id)) is not None:
            await asked.wait()
        if event_id in self._named:
            return True
        asked = self._asked[event_id] = asyncio.Event()
        try:
            if await self.writer.known([event_id]):
                return True
        finally:
            del self._asked[event_id]
            asked.set()
        self._named.add(event_id)
        return False

    def record(self, event: LedgerEvent, call: str = "", *, durable: Durable | None = None) -> None:
        """A row, which counts at once and is written soon (`flush`). call: whose reservation it settles. durable: what is waited for before
        it is written: the journal that has it, so that no row outlives its entry.

        Who calls this gives each row once; it is kept once in any case.
        """
        checked_kind(event, LedgerEvent, "record: event")
        account = self._accounts.get(event.scope_id)
        if account is not None:
            account.release(call)
            account.add(event.adds, self._clock.time())
        self._recorded += 1
        self._rows.append((event, durable))
        self._begin_writing()

    def leave(self, durable: Durable) -> None:
        """Rows that still wait for this are not written: their journal is about to be closed, and has them, or not."""
        self._rows = [each for each in self._rows if each[1] != durable]

    def _begin_writing(self) -> None:
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write(), name="ledger")

    @property
    def full(self) -> bool:
        """Whether so many rows wait for the writer that no call should begin."""
        return len(self._rows) > _MOST_WAITING

    async def correct(self, events: Sequence[LedgerEvent]) -> int:
        """As `LedgerWriter.correct`, of those rows that the writer takes."""
        return await self._kept(events, self.writer.correct)

    async def flush(self) -> None:
        """Until all rows are written. Raises what the writer raises; the rows are kept, and tried again by the next one."""
        while self._rows or self._writing is not None:
            self._begin_writing()
            assert self._writing is not None
            failed = await asyncio.shield(self._writing)
            if failed is not None:
                raise failed

    async def _write(self) -> Exception | None:
        """Writes what waits. -> why it could not."""
        rows: list[tuple[LedgerEvent, Durable | None]] = []
        try:
            while self._rows:
                rows, self._rows = self._rows, []
                for durable in {each for _, each in rows if each is not None}:
                    await durable()
                await self._kept([event for event, _ in rows], self.writer.write)
                self._named.difference_update(event.event_id for event, _ in rows)
                rows = []
        except Exception as error:
            _log.warning("ledger: %d rows could not be written, and wait: %s", len(rows), words_of(error))
            return error
        finally:
            self._rows[:0] = rows
            self._writing = None
        return None

    async def _kept(
        self, events: Sequence[LedgerEvent], keep: Callable[[Sequence[LedgerEvent]], Awaitable[int | None]]
    ) -> int:
        """Has the writer keep those of these rows that it takes; the others are told in the log. -> how many it has corrected."""
        try:
            return await keep(events) or 0
        except DataError as error:
            if len(events) > 1:
                middle = len(events) // 2
                return await self._kept(events[:middle], keep) + await self._kept(events[middle:], keep)
            self.refused_rows += 1
            _log.error(
                "ledger: row %s of scope %s is left out: %s", events[0].event_id, events[0].scope_id, words_of(error)
            )
            return 0

    async def close(self) -> None:
        """Writes what waits, and closes the writer."""
        try:
            await self.flush()
        finally:
            await self.writer.close()


def together(budgets: Iterable[Budget]) -> list[Budget]:
    """One for each scope. Raises UserError for what is no Budget, and for two that contradict each other."""
    checked_kind(budgets, Iterable, "budgets", '[Budget("scope", max_cost_daily=…)]')
    found: dict[str, Budget] = {}
    for budget in map(_checked, budgets):
        before = found.get(budget.scope_id)
        found[budget.scope_id] = budget if before is None else before.together(budget)
    return list(found.values())


def checked_writer(given: Any) -> "LedgerWriter":
    """Raises UserError for what keeps no rows."""
    if not isinstance(given, LedgerWriter):
        lacks = [name for name in ("write", "correct", "known", "used", "sums", "close") if not hasattr(given, name)]
        raise UserError(
            f"{short_repr(given)} is no LedgerWriter: it has no {', '.join(lacks)}",
            hint="InMemoryLedgerWriter(), SqliteLedgerWriter(path), PostgresLedgerWriter(url)",
        )
    return given


def _checked(budget: object) -> Budget:
    if not isinstance(budget, Budget):
        raise UserError(f"{short_repr(budget)} is no Budget of sabot.agents", hint=_BUDGET)
    return budget


def _who(context: ExecutionContext) -> tuple[str, str, str]:
    return context.scope_id, context.principal_id, context.job_id
