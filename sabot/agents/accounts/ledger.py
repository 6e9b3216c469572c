"""The ledger: it keeps a row for the usage of each call, and judges calls by the budgets of their scopes.

check_budget ─▶ reserved ─▶ the call ─▶ record_model_usage ─▶ settled: a row, which counts in the scope

A reservation is an upper bound of the usage of a call. So calls that run at the same time never use more together than
the budget has. If several processes share the budgets, an owner keeps the reservations of all of them (`shared.py`).
Otherwise this process keeps its own (`local.py`).
"""

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from decimal import Decimal

from sabot.agents.accounts.budgets import ALLOWED, FITS, Budget, JudgedCall, Judgement, Standing
from sabot.agents.accounts.contract import Durable, LedgerEvent, LedgerWriter, checked_writer
from sabot.agents.accounts.local import LocalAccounts
from sabot.agents.accounts.owners import BudgetOwner, SettledRow
from sabot.agents.accounts.shared import BACKOFF, SharedAccounts
from sabot.agents.context import ExecutionContext
from sabot.base.accounts import Amounts, Window
from sabot.base.checks import Of, Whole, check, check_called
from sabot.base.config import Duration, amount, checked_text, parse_seconds
from sabot.base.quantities import counted_words
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import BrokerUnavailable, DataError, TransientError, UserError, message_of, short_repr
from sabot.jobs.guard import Decision
from sabot.llm.errors import BudgetExceeded
from sabot.llm.results import Usage

BudgetExceededError = BudgetExceeded
"""The name of `BudgetExceeded` in document 001."""

_log = logging.getLogger(__name__)

_MOST_JUDGED = 200  # the most calls that `judged` has, for the command line and the console
_MOST_WAITING = 10_000  # waiting rows at which no further call may begin
_CONTEXT = "ExecutionContext(scope_id=…)"
BUDGETS = (
    '[Budget("scope", max_cost_daily=Decimal("10"))], or a Ledger; a BudgetSpec is one job\'s of a kernel: '
    "ExecutionRequest(…, budgets=…); a CallBudget of sabot.llm is an engine's: ExecutionEngine(…, budget=…)"
)
"""The hint in the error for a wrong `budgets=` of an app or a kernel."""


class Ledger:
    """A ledger, for one event loop. It judges calls by the budgets of their scopes, and keeps a row for the usage of
    each call. Either the accounts of the scopes are kept in this process, or, if several processes spend from the same
    budgets, a shared writer keeps them (`BudgetOwner`).

    - `reservation_timeout`: the time after which an allowed call no longer counts if its usage was not recorded.
    - `refused_rows`: the number of rows that are not stored because the writer refused their content. Each is logged as an
      error.
    - `judged`: the last 200 calls with another decision than ALLOW.
    """

    def __init__(
        self,
        writer: LedgerWriter,
        *,
        budgets: Sequence[Budget] = (),
        clock: Clock = SYSTEM_CLOCK,
        reservation_timeout: Duration = "10m",
        on_decision: Callable[[ExecutionContext, Judgement], object] | None = None,
        lease: Duration = "30s",
        patience: Duration = "10s",
    ) -> None:
        """Makes a ledger whose rows go to `writer`. Raises UserError.

        - `budgets`: the budgets. Several budgets of one scope all apply (`Budget.merge`).
        - `on_decision`: a function that is called for each call that is not simply allowed.
        - `lease`: only for a writer that several processes share. If a process has sent nothing for this time, its
          reservations are in doubt, and count as used.
        - `patience`: the time that a call waits for a shared writer that does not answer. After it the call is refused.
        """
        check_called("Ledger", on_decision=on_decision)
        self.writer = checked_writer(writer)
        self._clock = clock
        self._accounts = self._made_accounts(lease, patience)
        self._budgets: dict[str, Budget] = {}
        # Reservations of check_budget, the oldest first.
        self._held: dict[tuple[str, str, str], deque[tuple[str, float]]] = {}
        self._timeout_s = parse_seconds(reservation_timeout, name="reservation_timeout")
        self._on_decision = on_decision
        self._rows: list[tuple[SettledRow, Durable | None]] = []  # that wait for the writer
        self._writing: asyncio.Task[Exception | None] | None = None
        # Names of rows after which the writer is asked, until it has answered.
        self._asked: dict[str, asyncio.Event] = {}
        self._named: set[str] = set()  # the ids of rows that wait for the writer
        self.refused_rows = 0
        self.judged: deque[JudgedCall] = deque(maxlen=_MOST_JUDGED)
        for budget in merge_budgets(budgets):
            self.set_budget(budget)

    def _made_accounts(self, lease: Duration, patience: Duration) -> LocalAccounts | SharedAccounts:
        """Returns the accounts of the scopes. They are kept by the writer if it is shared, and otherwise in this
        process.
        """
        lease_s = parse_seconds(lease, name="lease", zero=False)
        patience_s = parse_seconds(patience, name="patience", zero=False)
        if not (getattr(self.writer, "shared", False) and isinstance(self.writer, BudgetOwner)):
            return LocalAccounts(self.writer, clock=self._clock, flush=self.flush)
        return SharedAccounts(
            self.writer,
            lease_s=lease_s,
            patience_s=patience_s,
            clock=self._clock,
            beat=self._write_again,
            flush=self.flush,
        )

    # -- budgets ------------------------------------------------------------------------------------------------------

    @property
    def shared(self) -> bool:
        """True if other processes spend from the budgets of this ledger."""
        return isinstance(self._accounts, SharedAccounts)

    def set_budget(self, budget: Budget) -> None:
        """Sets the budget of a scope from now on. The usage of the scope so far counts in the new budget. Raises
        UserError for a value that is not a Budget.
        """
        self._budgets[_checked(budget).scope_id] = budget
        self._accounts.set_budget(budget)

    @property
    def budgets(self) -> list[Budget]:
        """The budgets, one for each scope that has one."""
        return [*self._budgets.values()]

    def budget(self, scope_id: str) -> Budget:
        """Returns the budget of a scope. Raises UserError if it has none."""
        budget = self.budget_of(scope_id)
        if budget is None:
            raise UserError(
                f"scope {scope_id} has no budget", hint=f"budgets have: {', '.join(self._budgets) or 'none'}"
            )
        return budget

    def budget_of(self, scope_id: str) -> Budget | None:
        """Returns the budget of a scope, or None if the scope has no budget."""
        return self._budgets.get(checked_text(scope_id, "scope_id"))

    def limits_answers(self, scope_id: str) -> bool:
        """Returns True if tokens or money of this scope have a limit."""
        budget = self._budgets.get(scope_id)
        return budget is not None and any(limit.measure != "calls" for limit in budget.limits())

    async def used(self, scope_id: str) -> Mapping[Window, Amounts]:
        """Returns the usage of a scope in the current windows. Raises UserError for a scope without a budget."""
        return (await self.standing(scope_id)).used

    async def standing(self, scope_id: str) -> Standing:
        """Returns the account of a scope in the current windows. Raises UserError for a scope without a budget, and
        BudgetUnavailable if the owner of shared budgets does not answer.
        """
        return await self._accounts.standing(self.budget(scope_id))

    def note(self, call: str, scope_id: str, principal: str, name: str, judgement: Judgement) -> None:
        """Adds the judgement on a call to `judged`, unless the call is simply allowed. `call` is the id of the job that
        makes the call.
        """
        if judgement.decision is not Decision.ALLOW:
            self.judged.append(JudgedCall(self._clock.time(), scope_id, call, principal, name, judgement))

    # -- before a call ------------------------------------------------------------------------------------------------

    async def ready(self, scope_id: str) -> None:
        """Waits until the account of the scope is loaded. If budgets are shared, waits until their owner knows all
        reservations that this ledger has made so far.
        """
        await self._accounts.ready(scope_id)

    async def reach(self) -> None:
        """Waits until the writer answers. For shared budgets the wait is limited to `patience`, the time that a call
        waits for the owner. Raises BrokerUnavailable if the writer does not answer, and UserError if it refuses.
        """
        until, failures = SYSTEM_CLOCK.monotonic() + self._accounts.patience_s, 0
        while True:
            try:
                await self.writer.write([])
                return
            except TransientError as error:
                failures += 1
                if SYSTEM_CLOCK.monotonic() + BACKOFF.wait_s(failures) > until:
                    if isinstance(error, BrokerUnavailable):
                        raise
                    raise BrokerUnavailable(message_of(error)) from error
                if failures == 1:
                    _log.warning("ledger: its writer does not answer, and the start waits: %s", message_of(error))
            await asyncio.sleep(BACKOFF.wait_s(failures))

    def reserve(
        self, call: str, scope_id: str, wanted: Amounts, doubts: Sequence[LedgerEvent] = ()
    ) -> Judgement | Awaitable[Judgement]:
        """Judges a call, and returns the judgement.

        - If the call fits, `wanted` is reserved for it until `release` or `record`, in place of an earlier reservation
          of the call.
        - If it does not fit, an earlier reservation stays.
        - If the judgement is to ask another model or a person, nothing is reserved yet; the caller then calls `hold`.

        The result is an awaitable of the judgement if the account is not loaded yet, if too many rows wait for the
        writer, or if budgets are shared. `doubts` are the rows that are written for the call if this process dies.

        This method is for guards, which name each call; other code uses `check_budget`. Raises UserError if `call` or
        `scope_id` is not a text. Awaiting the result raises BudgetUnavailable if the owner of shared budgets does not
        answer.
        """
        budget = self._budgets.get(checked_text(scope_id, "scope_id"))
        checked_text(call, "call")
        if self.full:
            return self._reserve_later(call, scope_id, wanted, doubts)
        if budget is None:
            return ALLOWED
        return self._accounts.reserve(budget, call, wanted, doubts)

    async def _reserve_later(
        self, call: str, scope_id: str, wanted: Amounts, doubts: Sequence[LedgerEvent]
    ) -> Judgement:
        await self.flush()
        judged = self.reserve(call, scope_id, wanted, doubts)
        return judged if isinstance(judged, Judgement) else await judged

    def hold(self, call: str, scope_id: str, wanted: Amounts, doubts: Sequence[LedgerEvent] = ()) -> None:
        """Reserves the amounts even if the budget has no room for them, for a call that was allowed earlier or by a
        person. `doubts` are the rows that are written for the call if this process dies.
        """
        budget = self._budgets.get(scope_id)
        if budget is not None:
            self._accounts.hold(budget, call, wanted, doubts)

    def release(self, call: str, scope_id: str) -> None:
        """Ends the reservation of a call that was not made."""
        budget = self._budgets.get(scope_id)
        if budget is not None:
            self._accounts.release(budget, call)

    async def check_budget(
        self, context: ExecutionContext, pending_tokens: int = 0, *, pending_cost: Decimal | str | int = 0
    ) -> Decision:
        """Returns the decision on a call that uses at most `pending_tokens` tokens and `pending_cost` US dollars. If
        the budget has room for them, they are reserved. The reservation ends with the next `record_model_usage` of the
        same scope, principal and job, or after `reservation_timeout`.
        """
        check("check_budget: context", context, Of(ExecutionContext, _CONTEXT))
        cost = amount("pending_cost", pending_cost) or Decimal(0)
        check("pending_tokens", pending_tokens, Whole())
        who, now = _who(context), self._clock.monotonic()
        held = self._held.pop(who, deque())
        while held and held[0][1] <= now:
            self.release(held.popleft()[0], context.scope_id)
        if held:
            self._held[who] = held
        call = uuid.uuid4().hex
        wanted = Amounts(pending_tokens, cost, 1)
        found = self.reserve(call, context.scope_id, wanted, [_in_doubt(call, context, wanted)] if self.shared else ())
        judged = found if isinstance(found, Judgement) else await found
        if judged.decision in FITS:
            self._held.setdefault(who, deque()).append((call, now + self._timeout_s))
        self.note(context.job_id, context.scope_id, context.principal_id, "", judged)
        if judged.decision is not Decision.ALLOW and self._on_decision is not None:
            self._on_decision(context, judged)
        return judged.decision

    # -- after a call -------------------------------------------------------------------------------------------------

    async def record_model_usage(
        self,
        context: ExecutionContext,
        usage: Usage,
        *,
        cost: Decimal | None = None,
        model: str = "",
        event_id: str = "",
    ) -> LedgerEvent:
        """Records the usage of a call. Returns the row of the call when the row is written. `event_id` names the call;
        if it is used twice, the call is counted once.

        Raises UserError for tokens or a cost that are negative or not numbers, because such a row would give usage back
        to a budget. Also raises UserError for a model or a name that no database can store.
        """
        check("record_model_usage: context", context, Of(ExecutionContext, _CONTEXT))
        check("record_model_usage: usage", usage, Of(Usage, "Usage(input_tokens=…, output_tokens=…)"))
        checked_text(model, "model")
        checked_text(event_id, "event_id")
        check("input_tokens", usage.input_tokens, Whole())
        check("output_tokens", usage.output_tokens, Whole())
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
        await self._accounts.load(context.scope_id)
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
        """Returns True if the ledger has a row with this id. After False, the caller must record the row before it
        awaits anything else. Otherwise another task could record the same row.
        """
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
        """Records a row, which is written soon (`flush`). The usage in the row counts at once. If budgets are shared,
        it counts when the row is written; until then the reservation of the call counts.

        - `call`: the name of the call whose reservation ends with this row, or "".
        - `durable`: a function that waits until the journal's entry with this row is durable. So the ledger never has a
          row whose entry is lost.

        The caller must record a row only once, although the writer stores each id once.
        """
        check("record: event", event, Of(LedgerEvent))
        self._rows.append((self._accounts.settled(event, call), durable))
        self._begin_writing()

    def leave(self, durable: Durable) -> None:
        """Drops the rows that come from a journal and are not written yet, because the journal is about to be closed.
        `durable` is the function that was given to `record` for these rows. When the journal is opened again, those
        rows whose entries are durable are written.
        """
        self._rows = [(row, waits_for) for row, waits_for in self._rows if waits_for != durable]

    def _begin_writing(self) -> None:
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write(), name="ledger")

    def _write_again(self) -> None:
        """Tries again to write the rows that could not be written. Until they are written, the reservations of their
        calls count.
        """
        if self._rows:
            self._begin_writing()

    @property
    def full(self) -> bool:
        """True if so many rows wait for the writer that no further call should begin."""
        return len(self._rows) > _MOST_WAITING

    async def correct(self, events: Sequence[LedgerEvent]) -> int:
        """Writes rows in place of stored rows with other content (`LedgerWriter.correct`). Rows that the writer refuses
        are left out. Returns the number of rows that were replaced.
        """
        return await self._settle([SettledRow(each) for each in events], corrects=True)

    async def flush(self) -> None:
        """Waits until all rows are written. Raises the errors of the writer. The ledger then keeps the rows that are
        not written, and the next call tries again.
        """
        while self._rows or self._writing is not None:
            self._begin_writing()
            assert self._writing is not None
            failed = await asyncio.shield(self._writing)
            if failed is not None:
                raise failed

    async def _write(self) -> Exception | None:
        """Writes the rows that wait. Returns None, or the error if they could not be written."""
        rows: list[tuple[SettledRow, Durable | None]] = []
        try:
            while self._rows:
                rows, self._rows = self._rows, []
                for durable in {durable for _, durable in rows if durable is not None}:
                    await durable()
                await self._settle([row for row, _ in rows])
                self._named.difference_update(row.event.event_id for row, _ in rows)
                rows = []
        except Exception as error:
            _log.warning("ledger: %s could not be written yet: %s", counted_words(len(rows), "row"), message_of(error))
            return error
        finally:
            self._rows[:0] = rows
            self._writing = None
        return None

    async def _settle(self, rows: Sequence[SettledRow], *, corrects: bool = False) -> int:
        """Writes these rows. Rows that the writer refuses are logged and left out. Returns the number of stored rows
        that were replaced.
        """
        try:
            return await self._accounts.settle(rows, corrects=corrects)
        except DataError as error:
            if len(rows) > 1:
                middle = len(rows) // 2
                first = await self._settle(rows[:middle], corrects=corrects)
                return first + await self._settle(rows[middle:], corrects=corrects)
            self.refused_rows += 1
            event = rows[0].event
            _log.error("ledger: row %s of scope %s is left out: %s", event.event_id, event.scope_id, message_of(error))
            return 0

    async def close(self) -> None:
        """Writes the rows that wait, and closes the writer."""
        try:
            await self.flush()
        finally:
            await self._accounts.close()
            await self.writer.close()


def merge_budgets(budgets: Iterable[Budget]) -> list[Budget]:
    """Returns the budgets, merged to one for each scope. Raises UserError for a value that is not a Budget, and for two
    budgets of a scope that contradict each other.
    """
    check("budgets", budgets, Of(Iterable, '[Budget("scope", max_cost_daily=…)]'))
    found: dict[str, Budget] = {}
    for budget in map(_checked, budgets):
        before = found.get(budget.scope_id)
        found[budget.scope_id] = budget if before is None else before.merge(budget)
    return list(found.values())


def _checked(budget: object) -> Budget:
    if not isinstance(budget, Budget):
        raise UserError(f"{short_repr(budget)} is no Budget of sabot.agents", hint=BUDGETS)
    return budget


def _in_doubt(call: str, context: ExecutionContext, wanted: Amounts) -> LedgerEvent:
    return LedgerEvent(
        event_id=call,
        type="doubt",
        scope_id=context.scope_id,
        job_id=context.job_id,
        principal_id=context.principal_id,
        reserved_tokens=wanted.tokens,
        cost=wanted.cost or None,
    )


def _who(context: ExecutionContext) -> tuple[str, str, str]:
    return context.scope_id, context.principal_id, context.job_id
