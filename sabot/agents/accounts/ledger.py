"""The ledger: it keeps a row for the usage of each call, and judges calls by the budgets of their scopes.

check_budget ─▶ reserved ─▶ the call ─▶ record_model_usage ─▶ settled: a row, which counts in the scope

A reservation is an upper bound of the usage of a call. So calls that run at the same time never use more together than
the budget has. If several processes share the budgets, an owner keeps the reservations of all of them (`shared.py`).
Otherwise this process keeps its own (`local.py`).
"""

import asyncio
import logging
import math
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import TypeVar

from sabot.agents.accounts.budgets import (
    ALLOWED,
    FITS,
    Budget,
    BudgetTable,
    JudgedCall,
    Judgement,
    Standing,
    is_pattern,
)
from sabot.agents.accounts.contract import Durable, LedgerEvent, LedgerWriter, checked_writer, counted_elsewhere
from sabot.agents.accounts.local import LocalAccounts
from sabot.agents.accounts.owners import BudgetOwner, SettledRow
from sabot.agents.accounts.shared import BACKOFF, SHORT_PATIENCE_S, SharedAccounts
from sabot.agents.context import ExecutionContext
from sabot.base.accounts import Amounts, Window, window_start
from sabot.base.checks import Of, Whole, check, check_called
from sabot.base.claims import ObjectClaims
from sabot.base.config import Duration, amount, checked_text, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.base.quantities import counted_words
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.calls.errors import BudgetExceeded, BudgetUnavailable
from sabot.engine.calls.judging import judged_clock
from sabot.engine.calls.usage import Usage
from sabot.errors import AppLocked, BrokerUnavailable, DataError, TransientError, UserError, message_of, short_repr
from sabot.jobs.guard import Decision

BudgetExceededError = BudgetExceeded
"""The name of `BudgetExceeded` in document 001."""

T = TypeVar("T")

_log = logging.getLogger(__name__)

_MOST_JUDGED = 200  # the most calls that `judged` has, for the command line and the console
_MOST_LISTED = 100  # the most scopes of a pattern in a list of budgets
_MOST_WARNED = 30_000  # windows of scopes
_MOST_WAITING = 10_000  # waiting rows at which no further call may begin
_CONTEXT = "ExecutionContext(scope_id=…)"
_counting: "ObjectClaims[Ledger]" = ObjectClaims()  # of writers
_Who = tuple[str, str, str]  # the scope, the principal and the job of a context
BUDGETS = (
    '[Budget("scope", max_cost_daily=Decimal("10"))], or a Ledger; a BudgetSpec is one job\'s of a kernel: '
    "ExecutionRequest(…, budgets=…); a CallBudget of sabot.llm is an engine's: ExecutionEngine(…, budget=…)"
)
"""The hint in the error for a wrong `budgets=` of an app or a kernel."""


@answers_wrong_options
class Ledger:
    """A ledger: it checks calls against the budgets of their scopes, and stores a row with the usage of each call. A
    ledger is used on one event loop.

    The current usage of each scope (a tenant) is kept in this process. If several processes share the budgets, it is
    kept by a shared writer instead (a `BudgetOwner`, for example a PostgreSQL database).

    - `refused_rows`: the number of rows that were not stored because the writer refused their content. An error was
      logged for each.
    - `judged`: the last 200 calls for which the decision was not ALLOW; of warnings the first one in each window.
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
        patience: Duration = "5min",
    ) -> None:
        """Makes a ledger that stores its rows with `writer`. Raises UserError for an argument that is not valid.

        - `budgets`: the budgets. If a scope (a tenant) has several, the limits of all of them are applied
          (`Budget.merge`).
        - `reservation_timeout`: the age at which a reservation of `check_budget` ends although no usage was recorded
          for it.
        - `on_decision`: a function that `check_budget` calls with each decision other than ALLOW; with WARN once in a
          window.
        - `lease`: only used if several processes share the writer. If a process has sent nothing for this time, it is
          regarded as dead, and the amounts that it had reserved are counted as used.
        - `patience`: the longest time that a call waits for a writer that does not answer. After that the call is
          refused. It is as long as that of a journal, so that an outage which jobs survive does not end them here. A
          start and the end of a ledger wait for at most ten seconds of it.
        """
        check_called("Ledger", on_decision=on_decision)
        self.writer = checked_writer(writer)
        self._clock = judged_clock(clock)
        self._accounts = self._made_accounts(lease, patience)
        self._table = BudgetTable(self._accounts.set_budget, self._accounts.forget)
        # Reservations of check_budget, the oldest first: who has made them, and when they end; and by who the same calls.
        self._held: dict[str, tuple[_Who, float]] = {}
        self._held_by: dict[_Who, deque[str]] = {}
        self._timeout_s = parse_seconds(reservation_timeout, name="reservation_timeout")
        self._on_decision = on_decision
        self._rows: list[tuple[SettledRow, Durable | None]] = []  # that wait for the writer
        self._writing: asyncio.Task[Exception | None] | None = None
        self._recorded = self._stored = 0  # rows; of those that were recorded, the first ones are stored
        # Names of rows after which the writer is asked, until it has answered.
        self._asked: dict[str, asyncio.Event] = {}
        self._named: set[str] = set()  # the ids of rows that wait for the writer
        self._warned: dict[tuple[str, Window], float] = {}  # by scope and window: the begin of that of the last warning
        self.is_alone = self.shared
        """True if no other ledger counts these budgets by itself (`claim`), or if the budgets are shared."""
        self.refused_rows = 0
        self.judged: deque[JudgedCall] = deque(maxlen=_MOST_JUDGED)
        for budget in merge_budgets(budgets):
            self.set_budget(budget)

    def _made_accounts(self, lease: Duration, patience: Duration) -> LocalAccounts | SharedAccounts:
        """Makes the object that keeps the usage of each scope (a tenant): SharedAccounts if the writer is shared
        between processes, otherwise LocalAccounts.
        """
        lease_s = parse_seconds(lease, name="lease", zero=False)
        patience_s = parse_seconds(patience, name="patience", zero=False)
        if not (getattr(self.writer, "shared", False) and isinstance(self.writer, BudgetOwner)):
            return LocalAccounts(self.writer, patience_s=patience_s, clock=self._clock, flush=self.flush)
        return SharedAccounts(
            self.writer,
            lease_s=lease_s,
            patience_s=patience_s,
            clock=self._clock,
            beat=self._write_again,
            flush=self.flush_soon,
        )

    # -- budgets ------------------------------------------------------------------------------------------------------

    @property
    def shared(self) -> bool:
        """True if the budgets of this ledger are shared with other processes."""
        return isinstance(self._accounts, SharedAccounts)

    def set_budget(self, budget: Budget) -> None:
        """Sets the budget of a scope (a tenant), or of each scope that matches a pattern, from now on. The usage of the
        scope so far counts in the new budget. Raises UserError for a value that is not a Budget.
        """
        self._table.set(_checked(budget))
        self.is_alone = self.shared or _counting.holder(self.writer) is self

    @property
    def budgets(self) -> list[Budget]:
        """The budgets of this ledger, as they were set: at most one for each scope (a tenant) or pattern."""
        return [*self._table.given.values()]

    async def budgets_in_use(self) -> list[Budget]:
        """Returns the budgets that name a scope (a tenant), and those that patterns have made for the scopes that have
        used something in this month: for each pattern at most 100 scopes, those that have used the most. If a pattern
        has none, returns its own budget. Raises the error of the writer if the rows cannot be read.
        """
        found = [each for each in self.budgets if not is_pattern(each.scope_id)]
        if len(found) == len(self.budgets):
            return found
        month = window_start("monthly", self._clock.time())
        sums = await self.writer.sums(["scope"], round(month * 1000))
        sums.sort(key=lambda each: (each.cost + each.doubt_cost, each.input_tokens + each.output_tokens), reverse=True)
        scopes = dict.fromkeys([*(each.group[0] for each in sums), *self._table.made])
        of_pattern: dict[str, list[Budget]] = {each.scope_id: [] for each in self.budgets if is_pattern(each.scope_id)}
        for scope in scopes:
            pattern = self._table.pattern_of(scope)
            if pattern is not None and len(listed := of_pattern[pattern.scope_id]) < _MOST_LISTED:
                listed.append(replace(pattern, scope_id=scope))
        for name, listed in of_pattern.items():
            found += listed or [self._table.given[name]]
        return found

    def warn_of_unused_budgets(self) -> None:
        """Logs a warning about budgets of scopes (tenants) that have called no model, which may be misspelt. Called at
        the end of a run; a warning is not repeated.
        """
        if said := self._table.unused():
            _log.warning("budgets: %s", said)

    def budget(self, scope_id: str) -> Budget:
        """Returns the budget of a scope (a tenant). Raises UserError if the scope has no budget."""
        budget = self.budget_of(scope_id)
        if budget is None:
            raise UserError(
                f"scope {scope_id} has no budget", hint=f"budgets have: {', '.join(self._table.given) or 'none'}"
            )
        return budget

    def budget_of(self, scope_id: str) -> Budget | None:
        """Returns the budget of a scope (a tenant), or None if the scope has no budget."""
        return self._table.find(checked_text(scope_id, "scope_id"))

    def limits_answers(self, scope_id: str) -> bool:
        """Returns True if the budget of the scope (a tenant) limits tokens or cost. In that case the length of each
        answer must be limited. Returns False if the scope has no budget, or its budget limits only the number of
        calls.
        """
        budget = self._table.find(scope_id)
        return budget is not None and any(limit.measure != "calls" for limit in budget.limits())

    async def used(self, scope_id: str) -> Mapping[Window, Amounts]:
        """Returns the usage of a scope (a tenant) in the current hour, day and month, by window. Reservations are not
        included. Raises UserError for a scope without a budget, BudgetUnavailable if a shared budget cannot be read,
        and the error of the writer if the rows of the scope cannot be read or stored.
        """
        return (await self.standing(scope_id)).used

    async def standing(self, scope_id: str) -> Standing:
        """Returns the usage of a scope (a tenant) in the current hour, day and month, and the amounts that are
        reserved for its open calls. Raises UserError for a scope without a budget, BudgetUnavailable if a shared
        budget cannot be read, and the error of the writer if the rows of the scope cannot be read or stored.
        """
        return await self._accounts.standing(self.budget(scope_id))

    def note(self, call: str, scope_id: str, principal: str, name: str, judgement: Judgement) -> None:
        """Appends a call and the decision on it to `judged`, if the decision is not ALLOW.

        - `call`: the id of the job that makes the call.
        - `name`: the name of the model, or "".
        """
        if judgement.decision is not Decision.ALLOW:
            self.judged.append(JudgedCall(self._clock.time(), scope_id, call, principal, name, judgement))

    def is_news(self, scope_id: str, judgement: Judgement) -> bool:
        """Returns False for a judgement that only warns of limits of which this ledger has warned in their present
        windows. A warning with each call near the end of a budget would hide all others.
        """
        if judgement.decision is not Decision.WARN:
            return judgement.decision is not Decision.ALLOW
        now, news = self._clock.time(), False
        for window in judgement.near:
            began = window_start(window, now)
            if self._warned.get((scope_id, window), -1.0) < began:
                if len(self._warned) >= _MOST_WARNED:
                    self._warned.clear()
                self._warned[scope_id, window], news = began, True
        return news

    # -- before a call ------------------------------------------------------------------------------------------------

    async def claim(self) -> None:
        """Makes this ledger the only one that counts budgets over its writer, until it is closed. Repeated calls do nothing,
        and so does a ledger that has no budgets, or shares them.

        A ledger that is not shared reads the rows of its writer once, and then counts by itself. Two of them over one
        writer would let a scope use its budget twice. So the second one raises AppLocked here. Raises the error of the writer
        if it does not answer.
        """
        if self.is_alone or not self.budgets:
            self.is_alone = True
            return
        if _counting.take(self.writer, self) is not None:
            raise counted_elsewhere(
                getattr(self.writer, "where", short_repr(self.writer)), "another ledger of this process"
            )
        try:
            if (claim := getattr(self.writer, "claim", None)) is not None:
                await claim()
        except BaseException:
            self._unclaim()
            raise
        self.is_alone = True

    def _unclaim(self) -> None:
        _counting.release(self.writer, self)
        self.is_alone = self.shared

    async def ready(self, scope_id: str) -> None:
        """Waits until the usage of the scope (a tenant) is loaded from the stored rows. If several processes share
        the budgets, waits instead until the shared writer has stored all reservations that this ledger has made so
        far, in all scopes.
        """
        await self._accounts.ready(scope_id)

    async def reach(self, most_s: float = math.inf) -> None:
        """Waits until the writer answers. If several processes share the budgets, tries again for the time `patience`
        of the ledger, at most `most_s` seconds. Otherwise tries only once.

        Raises BrokerUnavailable if the writer does not answer, and UserError if the writer answers that it cannot be
        used, for example because the file is no ledger.
        """
        try:
            await self._again(
                lambda: self.writer.write([]),
                min(most_s, self._accounts.patience_s) if self.shared else 0.0,
                "the start waits",
            )
        except BrokerUnavailable:
            raise
        except TransientError as error:
            raise BrokerUnavailable(message_of(error)) from error

    async def _again(self, step: Callable[[], Awaitable[T]], patience_s: float, what: str) -> T:
        """Runs a step, again and again while the writer does not answer, for at most `patience_s` seconds. Then raises the
        error of the writer. `what`: what waits meanwhile, for the log.
        """
        until, failures = SYSTEM_CLOCK.monotonic() + patience_s, 0
        while True:
            try:
                return await step()
            except BudgetUnavailable:  # the owner of shared budgets was waited for
                raise
            except TransientError as error:
                failures += 1
                if SYSTEM_CLOCK.monotonic() + BACKOFF.wait_s(failures) > until:
                    raise
                if failures == 1:
                    _log.warning("ledger: its writer does not answer, and %s: %s", what, message_of(error))
            await asyncio.sleep(BACKOFF.wait_s(failures))

    def reserve(
        self, call: str, scope_id: str, wanted: Amounts, doubts: Sequence[LedgerEvent] = ()
    ) -> Judgement | Awaitable[Judgement]:
        """Checks a call against the budget of its scope (a tenant), and returns the judgement. This method is for
        guards; other programs use `check_budget`.

        - If the decision is ALLOW or WARN, `wanted` is reserved for the call, and replaces an earlier reservation of
          the same call. The reservation remains until `release` or `record` is called for this call.
        - With any other decision nothing changes: an earlier reservation of the call remains. After DEGRADE or ASK, the
          guard may still make the call, with another model or with the approval of a person. Then it reserves the
          amount with `hold`.
        - If the scope has no budget, the decision is ALLOW, and nothing is reserved.

        The result is an awaitable of the judgement if the usage of the scope is not loaded yet, if too many rows wait
        to be written, or if several processes share the budgets. Awaiting it raises BudgetUnavailable if the shared
        writer does not answer, and the error of the writer if rows cannot be stored or read. Raises UserError if `call`
        or `scope_id` is not a text.

        - `call`: a name for the call. The same name is passed to `hold`, `release` and `record`.
        - `doubts`: rows of type "doubt" (the outcome of the call is not known). If this process dies before the call
          has ended, the shared writer records these rows, and ends the reservation.
        """
        budget = self._table.find_for_call(checked_text(scope_id, "scope_id"))
        checked_text(call, "call")
        if self._held:
            self._end_old_checks()
        if self.full:
            return self._reserve_later(call, scope_id, wanted, doubts)
        if budget is None:
            return ALLOWED
        found = self._accounts.reserve(budget, call, wanted, doubts)
        if isinstance(found, Judgement) or self.shared:
            return found
        return self._judged_later(found, partial(self._accounts.reserve, budget, call, wanted, doubts))

    async def _judged_later(
        self, found: Awaitable[Judgement], again: Callable[[], Judgement | Awaitable[Judgement]]
    ) -> Judgement:
        """Waits for a judgement, and asks for it again while the writer does not answer."""
        first: list[Judgement | Awaitable[Judgement]] = [found]

        async def judged() -> Judgement:
            asked = first.pop() if first else again()
            return asked if isinstance(asked, Judgement) else await asked

        return await self._again(judged, self._accounts.patience_s, "calls wait")

    async def _reserve_later(
        self, call: str, scope_id: str, wanted: Amounts, doubts: Sequence[LedgerEvent]
    ) -> Judgement:
        await self._again(self.flush, self._accounts.patience_s, "calls wait")
        judged = self.reserve(call, scope_id, wanted, doubts)
        return judged if isinstance(judged, Judgement) else await judged

    def hold(self, call: str, scope_id: str, wanted: Amounts, doubts: Sequence[LedgerEvent] = ()) -> None:
        """Reserves `wanted` for a call, even if the budget has no room for it. It replaces an earlier reservation of
        the call. Used for a call that was allowed before, for example by a person. Does nothing if the scope (a
        tenant) has no budget.

        `doubts` are the rows with which a shared writer replaces the reservation if this process dies before the call
        has ended. They have the type "doubt", because the outcome of the call is then not known.
        """
        budget = self._table.find(scope_id)
        if budget is not None:
            self._accounts.hold(budget, call, wanted, doubts)

    def release(self, call: str, scope_id: str) -> None:
        """Ends the reservation of a call that was not made. Does nothing if the call has no reservation."""
        budget = self._table.find(scope_id)
        if budget is not None:
            self._accounts.release(budget, call)

    async def check_budget(
        self, context: ExecutionContext, pending_tokens: int = 0, *, pending_cost: Decimal | str | float = 0
    ) -> Decision:
        """Decides whether a call that needs at most `pending_tokens` tokens and `pending_cost` US dollars may be
        made. If the decision is ALLOW or WARN, these amounts are reserved.

        Each `record_model_usage` with the same scope, principal and job ends one such reservation, the oldest. A
        reservation also ends after `reservation_timeout`. Raises BudgetUnavailable if a shared budget cannot be read,
        UserError for a context or an amount that is not valid, and AppLocked if another ledger counts budgets over the same
        writer (`claim`).
        """
        check("check_budget: context", context, Of(ExecutionContext, _CONTEXT))
        cost = amount("pending_cost", pending_cost) or Decimal(0)
        check("pending_tokens", pending_tokens, Whole())
        if not self.is_alone:
            await self.claim()
        who, call = _who(context), uuid.uuid4().hex
        wanted = Amounts(pending_tokens, cost, 1)
        found = self.reserve(call, context.scope_id, wanted, [_in_doubt(call, context, wanted)] if self.shared else ())
        judged = found if isinstance(found, Judgement) else await found
        if judged.decision in FITS:
            self._held[call] = who, self._clock.monotonic() + self._timeout_s
            self._held_by.setdefault(who, deque()).append(call)
        if self.is_news(context.scope_id, judged):
            self.note(context.job_id, context.scope_id, context.principal_id, "", judged)
            if self._on_decision is not None:
                self._on_decision(context, judged)
        return judged.decision

    def _end_old_checks(self) -> None:
        """Ends the reservations of `check_budget` for which no usage was recorded within `reservation_timeout`."""
        now = self._clock.monotonic()
        while self._held:
            who, end = next(iter(self._held.values()))
            if end > now:
                break
            self.release(self._end_oldest(who), who[0])

    def _end_oldest(self, who: _Who) -> str:
        """Removes the oldest reservation that `check_budget` has made for `who`. Returns the name of its call, or "" if
        there is none.
        """
        calls = self._held_by.get(who)
        if calls is None:
            return ""
        call = calls.popleft()
        del self._held[call]
        if not calls:
            del self._held_by[who]
        return call

    # -- after a call -------------------------------------------------------------------------------------------------

    async def record_model_usage(
        self,
        context: ExecutionContext,
        usage: Usage,
        *,
        cost: Decimal | str | float | None = None,
        model: str = "",
        event_id: str = "",
    ) -> LedgerEvent:
        """Records the usage of a model call, and ends the oldest reservation that `check_budget` made for the same
        scope, principal and job. Waits until the row of the call is stored, and returns it. `event_id` is the id of
        the call; with "" a new id is made. If a row with this id is stored already, the call is not counted again.

        Raises UserError if the tokens or the cost are negative or not numbers, because such a row would reduce the
        usage of the scope (a tenant). Also raises UserError if `model` or `event_id` contains characters that a
        database cannot store. If the database of the ledger does not answer, the error of the ledger's writer is
        raised. The usage may then be counted already, and stored later. So use the same `event_id` to try again.
        """
        check("record_model_usage: context", context, Of(ExecutionContext, _CONTEXT))
        check("record_model_usage: usage", usage, Of(Usage, "Usage(input_tokens=…, output_tokens=…)"))
        checked_text(model, "model")
        checked_text(event_id, "event_id")
        check("input_tokens", usage.input_tokens, Whole())
        check("output_tokens", usage.output_tokens, Whole())
        event = LedgerEvent(
            event_id=event_id or uuid.uuid4().hex,
            type="model",
            scope_id=context.scope_id,
            job_id=context.job_id,
            principal_id=context.principal_id,
            name=model,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost=amount("cost", cost),
            at_ms=round(self._clock.time() * 1000),
        )
        await self._accounts.load(context.scope_id)
        known = bool(event_id) and await self._has(event_id)
        call = self._end_oldest(_who(context))  # only now: if the writer does not answer, the reservation remains
        if known:
            self.release(call, context.scope_id)
        else:
            self.record(event, call)
        await self.flush()
        return event

    async def _has(self, event_id: str) -> bool:
        """Returns True if a row with this id is stored, or waits to be stored. Returns False otherwise. After False,
        the caller must record a row with this id before it awaits anything else. Otherwise another task could record
        a second row with the id.
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
        """Records a row. The row is stored soon, by a background task; `flush` waits for it.

        The usage in the row is counted at once. If several processes share the budgets, the usage is counted when the
        row is stored, and until then the reservation of the call is counted instead.

        - `call`: the name of the call whose reservation ends with this row, or "" if no reservation ends.
        - `durable`: a function that waits until the journal entry with this row is durable. The row is stored only
          after that, so that the ledger never contains a row whose entry was lost. None if the row is in no journal.

        The caller must not record the same row twice. The writer would store it once, but this process could count
        its usage twice.
        """
        check("record: event", event, Of(LedgerEvent))
        self._rows.append((self._accounts.settled(event, call), durable))
        self._recorded += 1
        self._begin_writing()

    def leave(self, durable: Durable) -> None:
        """Drops the rows that came from a journal and are not stored yet, because the journal is about to be closed.
        `durable` is the function that was passed to `record` with these rows. The rows are not lost: when the journal
        is opened again, `update_ledger` stores the rows of all its entries.
        """
        before = len(self._rows)
        self._rows = [(row, waits_for) for row, waits_for in self._rows if waits_for != durable]
        self._recorded -= before - len(self._rows)

    def _begin_writing(self) -> None:
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write(), name="ledger")

    def _write_again(self) -> None:
        """Starts to write the waiting rows, if there are any. SharedAccounts calls this several times in each lease, so
        that rows whose writing has failed are written later. Until then the reservations of their calls remain.
        """
        if self._rows:
            self._begin_writing()

    @property
    def full(self) -> bool:
        """True if more than 10,000 rows wait to be stored. Then `reserve` first waits until they are stored."""
        return len(self._rows) > _MOST_WAITING

    async def correct(self, events: Sequence[LedgerEvent]) -> int:
        """Writes rows, and replaces stored rows with the same id and other content. Returns the number of these
        replaced rows. A row of type "doubt" is also replaced by the row with the known outcome, but is not counted
        (`LedgerWriter.correct`). Rows whose content the database refuses are skipped, and an error is logged.
        """
        return await self._settle([SettledRow(each) for each in events], corrects=True)

    async def flush(self) -> None:
        """Waits until all rows are stored that were recorded before this call. Raises the error of the writer if they cannot
        be stored. Then the rows remain in the queue, and the next `flush` tries again.
        """
        until = self._recorded
        while self._stored < min(until, self._recorded):  # `leave` drops some
            self._begin_writing()
            assert self._writing is not None
            failed = await asyncio.shield(self._writing)
            if failed is not None:
                raise failed

    async def flush_soon(self) -> None:
        """Does the same as `flush`. If several processes share the budgets, waits for at most ten seconds, and then raises
        TransientError.
        """
        most_s = min(SHORT_PATIENCE_S, self._accounts.patience_s)
        try:
            async with asyncio.timeout(most_s if self.shared else None):
                await self.flush()
        except TimeoutError as error:
            where = getattr(self.writer, "where", short_repr(self.writer))
            raise TransientError(
                f"{where} has not answered for {most_s:g} s, and {counted_words(len(self._rows), 'row')} of the ledger wait"
            ) from error

    async def _write(self) -> Exception | None:
        """Writes the rows that wait now, and lets the next task write those that come meanwhile. Returns None, or the error if
        they could not be written.
        """
        rows, self._rows = self._rows, []
        try:
            for durable in {durable for _, durable in rows if durable is not None}:
                await durable()
            await self._settle([row for row, _ in rows])
            self._named.difference_update(row.event.event_id for row, _ in rows)
            self._stored += len(rows)
            rows = []
        except Exception as error:
            if isinstance(error, AppLocked):
                self._unclaim()  # another ledger has it since: the next call is judged by a claim
            _log.warning("ledger: %s could not be written yet: %s", counted_words(len(rows), "row"), message_of(error))
            return error
        finally:
            self._rows[:0] = rows
            self._writing = None
        if self._rows:
            self._begin_writing()
        return None

    async def _settle(self, rows: Sequence[SettledRow], *, corrects: bool = False) -> int:
        """Passes rows to the writer, and waits until they are stored. A row whose content the writer refuses is
        skipped, counted in `refused_rows`, and logged as an error. With `corrects`, stored rows with the same id and
        other content are replaced. Returns the number of these replaced rows.
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
        """Stores the rows that wait, and closes the writer. Raises the error of the writer if rows cannot be stored;
        it is closed in that case too.
        """
        self.warn_of_unused_budgets()
        try:
            await self.flush_soon()
        finally:
            self._unclaim()
            await self._accounts.close()
            if (writing := self._writing) is not None:
                writing.cancel()
                await asyncio.wait([writing])
            await self.writer.close()


def merge_budgets(budgets: Iterable[Budget]) -> list[Budget]:
    """Returns the budgets, merged to one for each scope (a tenant). Raises UserError for a value that is not a
    Budget, and for two budgets of a scope whose settings other than the limits differ.
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


def _who(context: ExecutionContext) -> _Who:
    return context.scope_id, context.principal_id, context.job_id
