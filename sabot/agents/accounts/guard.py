"""The guard that judges each call of a job by the budget of its scope, and makes a row of the result of each call.

   decide ────────── reserves the upper bound of an attempt in the account of the scope, if it fits            ─▶ INTENT, with the verdict
     again ───────── the same for one more attempt; earlier attempts may have to be paid, and stay reserved    ─▶ ATTEMPT
     degraded ────── reserves the difference, if a dearer model is asked instead                               ─▶ ATTEMPT, with a note
   settle ────────── replaces the reservation by a row for the result, and a row of type "doubt" for each
                     earlier attempt                                                                           ─▶ RESULT, with the rows
   end_job ───────── makes a row of type "doubt" for each attempt of the calls that are open                   ─▶ END, with the rows
   drop ──────────── ends the reservation, because the call was not made

   unrecorded ────── of a call that is in no journal: stores a row of type "doubt" before the attempt is sent

The account of a scope is in this process, or with the owner of shared budgets; `Ledger` uses either. The methods of
`Ledger` correspond to those of every account (`base/accounts.py`): `reserve` reserves an amount if the call fits,
`hold` reserves it in any case, `record` settles a call, and `release` ends its reservation.

The rows can always be made anew from the journal (`journal_rows`). The id of a row is made of the effect and the attempt, so
no crash or replay counts a call twice. A row of a job is written only when its entry in the journal is durable, so the
ledger has no row of a job without an entry.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from pathlib import Path

import msgspec

from sabot.agents.accounts.budgets import ALLOWED, FITS, Budget, Judgement, unpriced
from sabot.agents.accounts.contract import Durable, LedgerEvent, refuse_redis
from sabot.agents.accounts.job_limits import (
    decode_answer,
    has_price,
    most_use,
    reported_use,
    unpaid,
)
from sabot.agents.accounts.journal_rows import catch_up, mark, update_ledger
from sabot.agents.accounts.ledger import BUDGETS, Ledger, merge_budgets
from sabot.agents.accounts.rows import DATABASE, InMemoryLedgerWriter, SqliteLedgerWriter
from sabot.base.accounts import NOTHING, Amounts
from sabot.base.quantities import plain
from sabot.base.stored_names import stored_name
from sabot.clock import Clock
from sabot.engine.calls.effects import EffectId
from sabot.engine.calls.errors import BudgetUnavailable
from sabot.errors import SabotError, TransientError, UserError, message_of, short_repr
from sabot.jobs.guard import (
    BUDGET,
    NO_OBJECTION,
    Behalf,
    CallKind,
    DecidedEffect,
    Decision,
    EffectGuard,
    GuardedCall,
    GuardVerdict,
    OpenCall,
    most_cost,
)
from sabot.journal import Journal
from sabot.journal.entries import Begin, Body, EffectResult, Entry
from sabot.llm.token_counts import ASSUMED_TOKENS

_log = logging.getLogger(__name__)

MARK_EVERY = 1000  # rows and jobs that begin, between two marks in a journal
_MARK_SECONDS = 5.0  # the wait for the journal at the end of a host
_UNWANTED = GuardVerdict(Decision.DENY, reason="nobody waits for it any more")


@dataclass(slots=True)
class _Open:
    """A call that has no result yet.

    - `name`: the model or the tool that the call began with.
    - `wanted`: the most that one attempt of the call may use.
    - `attempt`: the number of the last attempt, or 0 if the call waits for the approval of a person.
    - `recorded`: the number of the last attempt for which a ledger row exists.
    - `judged`: True if the budget had room for the call. Then each further attempt is checked against the budget too.
      False if the budget had no room, and a person was asked or a cheaper model is used instead. Then further
      attempts are not checked.
    - `models`: the fallback models of the call, by the number of the first attempt that uses the model.
    """

    scope: str
    principal: str
    agent: str
    kind: CallKind
    name: str
    wanted: Amounts
    attempt: int = 1
    recorded: int = 0
    judged: bool = True
    models: dict[int, str] | None = None

    def asks(self, model: str, attempt: int) -> None:
        """Records that the attempt with the number `attempt`, and each later attempt, uses the model `model`."""
        self.models = {**(self.models or {}), attempt: model}

    def asked(self, attempt: int) -> str:
        """Returns the name of the model or tool that this attempt calls."""
        models = self.models or {}
        return models.get(max((each for each in models if each <= attempt), default=0), self.name)

    def row(self, effect: EffectId, attempt: int, at_ms: int) -> LedgerEvent:
        """Returns the ledger row for an attempt whose usage is not known yet. For a model call the row has the type
        "doubt", and contains the most that the attempt may use. For a call of a tool it has the type "tool".
        """
        return LedgerEvent(
            event_id=f"{_name(effect)}/{attempt}",
            type="tool" if self.kind == "tool" else "doubt",
            scope_id=self.scope,
            agent=self.agent,
            job_id=effect.job,
            principal_id=self.principal,
            name=self.asked(attempt),
            reserved_tokens=self.wanted.tokens,
            cost=self.wanted.cost or None,
            at_ms=at_ms,
        )

    @property
    def reserved(self) -> int:
        """The number of attempts for which the most that they may use is reserved: all attempts without a ledger row. A
        call that waits for a person reserves one attempt, or none if the budget was used up before.
        """
        return self.attempt - self.recorded if self.attempt else int(self.judged)

    def rows_in_doubt(self, effect: EffectId, before: int, at_ms: int) -> list[LedgerEvent]:
        """Returns a row of type "doubt" for each attempt with a number less than `before` that has no ledger row yet.
        The outcomes of these attempts are not known, and the provider may charge for them. Returns [] if the call is
        not a model call. `at_ms` is the time of the rows.
        """
        if self.kind != "model":
            return []
        return [self.row(effect, attempt, at_ms) for attempt in range(self.recorded + 1, before)]


class LedgerGuard(EffectGuard):
    """A guard that judges calls by the budgets of a ledger. If a budget limits money, and the price of a call is not
    known, the call is denied or a person is asked (`Budget.unpriced`).
    """

    declared = frozenset({"budgets"})

    def __init__(self, ledger: Ledger, *, closes: bool = True, counted: bool = False) -> None:
        """Makes a guard. If `closes` is True, the ledger belongs to the guard, and `close` closes it too. `counted`: True
        if what the journal has at the start was counted when it was made, by another job.
        """
        self.ledger = ledger
        self._closes, self._counted = closes, counted
        self._durable: Durable | None = None
        self._journal: Journal | None = None
        self._ends: Mapping[int, int] = {}  # of the journal, when the ledger has caught up
        self._unmarked = 0
        self._marking: asyncio.Task[None] | None = None
        self._open: dict[str, dict[int, _Open]] = {}  # by job and ordinal
        # The rows of attempts that are sent when their rows are stored. Those that come while a batch is stored are the next.
        self._doubts: list[LedgerEvent] = []
        self._batch: asyncio.Task[TransientError | UserError | None] | None = None
        self._next_batch: asyncio.Task[TransientError | UserError | None] | None = None

    def decide(self, call: GuardedCall) -> GuardVerdict | Awaitable[GuardVerdict]:
        """Decides whether a call may be made. A model call is checked against the budget of its scope (a tenant). A
        call of a tool is always allowed, because budgets limit only the use of models; but a ledger row is written
        for it when it ends. A call that begins a child job is always allowed, because the model calls of the child
        are checked one by one.

        Returns an awaitable of the verdict if the ledger cannot decide at once.
        """
        if call.after == "unrecorded":
            return self._written_down(call.effect)
        if call.after:
            return self._decide_again(call.effect) if call.after == "again" else self._decide_degraded(call)
        if call.kind == "child":
            return NO_OBJECTION
        if call.kind == "tool":
            self._open_call(call, call.name, NOTHING, call.effect.attempt)
            return NO_OBJECTION
        if not (self.ledger.is_alone or self._counted):
            return self._claimed_and_decided(call)
        opened = _Open(
            call.scope, call.principal, call.agent, call.kind, call.name, most_use(call), call.effect.attempt
        )
        found = self._judged(call.effect, opened, partial(self._decided, call, opened.wanted))
        return found if isinstance(found, GuardVerdict) else self._decided_and_held(call, found)

    async def _claimed_and_decided(self, call: GuardedCall) -> GuardVerdict:
        await self.ledger.claim()
        found = self.decide(call)
        return found if isinstance(found, GuardVerdict) else await found

    async def _decided_and_held(self, call: GuardedCall, found: Awaitable[GuardVerdict]) -> GuardVerdict:
        verdict = await found
        if verdict.decision is Decision.DEGRADE and self.ledger.shared:  # its cost is reserved beyond the limit
            try:
                await self._held(call.scope)
            except BudgetUnavailable as error:
                self._drop(call.effect)
                return _denied(_unavailable(error))
        return verdict

    def _judged(
        self, effect: EffectId, opened: _Open, decided: Callable[[Judgement], GuardVerdict]
    ) -> GuardVerdict | Awaitable[GuardVerdict]:
        """Reserves the most that the attempts of a call may use (`_Open.reserved`), if the budget has room for it. Then
        calls `decided` with the judgement of the ledger, and returns the verdict that `decided` returns.

        Returns an awaitable of the verdict if the ledger must wait before it can judge, for example because the account
        is not loaded, or is shared with other processes.
        """
        rows = self._rows_in_doubt(effect, opened)
        judged = self.ledger.reserve(_name(effect), opened.scope, opened.wanted.times(opened.reserved), rows)
        return decided(judged) if isinstance(judged, Judgement) else _decided_later(judged, decided)

    def _decide_degraded(self, call: GuardedCall) -> GuardVerdict | Awaitable[GuardVerdict]:
        """Decides whether a fallback model may be asked after the first model has failed, or a request be sent that a
        middleware has changed. `call.name` is its model. If it may use more tokens or cost more than was reserved,
        reserves that. The verdict denies the call if the budget has no room for that, or if it limits the cost and the
        price of the model is not known.
        """
        opened = self._open.get(call.effect.job, {}).get(call.effect.ordinal)
        if opened is None:
            return NO_OBJECTION
        if opened.attempt and not call.effect.attempt:
            opened.attempt = 0
            self._hold(call.effect, opened)
        if opened.judged and (refused := self._unpriced(call)):
            return _denied(refused)
        wanted = opened.wanted.reaching(most_use(call))
        if wanted == opened.wanted:
            opened.asks(call.name, call.effect.attempt)
            return NO_OBJECTION
        dearer = replace(opened, wanted=wanted)
        if not opened.judged:
            return self._decided_degraded(call, opened, dearer, ALLOWED)
        decided = partial(self._decided_degraded, call, opened, dearer)
        return self._judged(call.effect, dearer, decided)

    def _decided_degraded(self, call: GuardedCall, opened: _Open, dearer: _Open, judged: Judgement) -> GuardVerdict:
        if self._is_over(call.effect, opened):
            return _UNWANTED
        fits = judged.decision in FITS
        if fits:
            opened.wanted = dearer.wanted
            opened.asks(call.name, call.effect.attempt)
        self._hold(call.effect, opened)
        if not fits:
            self.ledger.note(call.effect.job, call.scope, call.principal, call.name, judged)
            return _denied(judged)
        return GuardVerdict(tokens=opened.wanted.tokens, cost=plain(opened.wanted.cost))

    def _is_over(self, effect: EffectId, opened: _Open) -> bool:
        """Returns True if the job has ended while the ledger judged the call. In that case, also ends the reservation
        that the ledger has just made for the call. Returns False if the call is still open.
        """
        if self._open.get(effect.job, {}).get(effect.ordinal) is opened:
            return False
        self.ledger.release(_name(effect), opened.scope)
        return True

    def _unpriced(self, call: GuardedCall) -> Judgement | None:
        """Returns the judgement of the budget if the call is a request to a model whose price is not known. Returns
        None for other calls, if the scope (a tenant) has no budget, and if its budget does not limit the cost.
        """
        budget = None if call.kind != "model" or has_price(call) else self.ledger.budget_of(call.scope)
        return None if budget is None else unpriced(budget, call.name)

    def _decided(self, call: GuardedCall, wanted: Amounts, judged: Judgement) -> GuardVerdict:
        if judged.decision in FITS and (refused := self._unpriced(call)):
            self.ledger.release(_name(call.effect), call.scope)
            judged = refused
        if judged.decision is Decision.WARN and not self.ledger.is_news(call.scope, judged):
            judged = ALLOWED
        self.ledger.note(call.effect.job, call.scope, call.principal, call.name, judged)
        decision, model = judged.decision, ""
        if decision is Decision.DEGRADE:
            model = self.ledger.budget(call.scope).degrade_to
            if call.kind != "model" or call.name == model:  # no cheaper model can be asked
                decision, model = Decision.DENY, ""
            else:
                other = most_use(msgspec.structs.replace(call, name=model))
                wanted = other if other.cost else wanted  # without a price, the first model's cost stays reserved
        if decision is not Decision.DENY:
            attempt = 0 if decision is Decision.ASK else call.effect.attempt
            opened = self._open_call(call, model or call.name, wanted, attempt)
            opened.judged = decision in FITS
            if decision is Decision.DEGRADE:
                self._hold(call.effect, opened)
        return GuardVerdict(
            decision,
            rule=judged.rule,
            version=BUDGET if judged.rule else "",
            reason=judged.reason,
            model=model,
            error=judged.error,
            tokens=wanted.tokens,
            cost=plain(wanted.cost) if wanted.cost else "",
            most_tokens=ASSUMED_TOKENS if self._sets_a_bound(call) else 0,
            once=decision is Decision.ASK,
        )

    def _open_call(self, call: GuardedCall, name: str, wanted: Amounts, attempt: int) -> _Open:
        opened = _Open(call.scope, call.principal, call.agent, call.kind, name, wanted, attempt)
        self._open.setdefault(call.effect.job, {})[call.effect.ordinal] = opened
        return opened

    def _sets_a_bound(self, call: GuardedCall) -> bool:
        """Returns True if the budget limits tokens or cost, and the request itself has no limit for the length of the
        answer. In that case the guard adds a limit to the request: the number of tokens that is reserved for the
        answer.
        """
        return call.spec is not None and call.spec.max_tokens is None and self.ledger.limits_answers(call.scope)

    def drop(self, effect: EffectId) -> None:
        self._drop(effect)

    def _drop(self, effect: EffectId) -> None:
        opened = self._close(effect)
        if opened is not None:
            self.ledger.release(_name(effect), opened.scope)

    def settle(self, entry: EffectResult, kind: CallKind, name: str) -> EffectResult:
        """Ends a call that has a result. Records its ledger row, and ends its reservation (with shared budgets, when
        the row is stored). For each earlier attempt without a row, records a row of type "doubt", because the outcome
        of that attempt is not known. The entry gets these rows as its usage.

        Returns the entry unchanged for a call that this guard does not know, a call that a person did not approve, and
        a call that began a child job.
        """
        effect, at_ms = EffectId(entry.job, entry.ordinal, entry.attempt), entry.at_ms
        opened = self._close(effect)
        if opened is None:
            return entry
        # refused by a person; or a child, whose calls have rows of their own
        if effect.attempt == 0 or kind == "child":
            self.ledger.release(_name(effect), opened.scope)
            return entry
        doubt = opened.row(effect, effect.attempt, at_ms)
        row = _settled(doubt, kind, name, entry.outcome, bytes(entry.body))  # type: ignore[arg-type]
        if kind == "model" and opened.recorded >= effect.attempt:
            row = msgspec.structs.replace(row, settles=doubt.amounts[:3])
        rows = self._recorded(effect, opened, [*opened.rows_in_doubt(effect, effect.attempt, at_ms), row])
        return msgspec.structs.replace(entry, usage=_usage(rows))

    def _recorded(self, effect: EffectId, opened: _Open, rows: list[LedgerEvent]) -> list[LedgerEvent]:
        """Passes rows to the ledger, ends the reservation of their call, and returns the same rows. The ledger stores
        the rows later, when the journal entry that contains them is durable. It counts the usage of the rows at once.
        But if several processes share the budgets, the usage is counted, and the reservation ends, only when the rows
        are stored.
        """
        for each in rows[:-1]:
            self.ledger.record(each, durable=self._durable)
        if rows:
            self.ledger.record(rows[-1], _name(effect), durable=self._durable)
            self._unmarked += len(rows)
            if self._unmarked >= MARK_EVERY:
                self._make_mark()
        else:
            self.ledger.release(_name(effect), opened.scope)
        return rows

    def _hold(self, effect: EffectId, opened: _Open, ahead: int = 0) -> None:
        """Reserves the most that the attempts of a call may use (`_Open.reserved`), even if the budget has no room
        for it. This replaces the earlier reservation of the call. `ahead` is the number of further attempts that are
        reserved too, although they have not been made.
        """
        if (attempts := opened.reserved + ahead) > 0:
            rows = self._rows_in_doubt(effect, opened)
            self.ledger.hold(_name(effect), opened.scope, opened.wanted.times(attempts), rows)
        else:
            self.ledger.release(_name(effect), opened.scope)

    def _rows_in_doubt(self, effect: EffectId, opened: _Open) -> list[LedgerEvent]:
        """Returns the rows that another process records for a call if this process dies before the call has ended: a
        row of type "doubt" for each attempt of a model call that has no row yet. The database that keeps the shared
        budgets stores these rows together with the reservation. Returns [] if the budgets are not shared between
        processes.
        """
        return opened.rows_in_doubt(effect, opened.attempt + 1, 0) if self.ledger.shared else []

    def reopen(self, effect: EffectId, agent: str, behalf: Behalf, decided: DecidedEffect) -> None:
        """Registers a call that was open in the journal when the process started, and reserves the most that its
        attempts may use. Does nothing if the call is registered already.

        If the call was attempted before, one further attempt is reserved, because the job will soon try the call again.
        Without this reservation, other jobs could use up the budget before. The further attempt uses the first model of
        the call again.
        """
        job = self._open.setdefault(effect.job, {})
        if effect.ordinal in job:
            return
        verdict, recorded, instead = decided.verdict, decided.recorded, decided.instead
        scope, name = behalf.scope or agent.rpartition(".")[0], verdict.model or verdict.about
        wanted = Amounts(verdict.tokens, most_cost(verdict, instead.values()), int(bool(name)))
        kind: CallKind = "model" if name else "tool"
        beyond = verdict.decision in (Decision.ASK, Decision.DEGRADE) and BUDGET in verdict.version.split()
        opened = _Open(scope, behalf.principal, agent, kind, name, wanted, effect.attempt, recorded, not beyond)
        if instead:
            models = {attempt: each.model or each.about for attempt, each in instead.items()}
            opened.models = {**models, effect.attempt + 1: name}
        job[effect.ordinal] = opened
        self._hold(effect, opened, ahead=int(effect.attempt > 0))

    def _decide_again(self, effect: EffectId) -> GuardVerdict | Awaitable[GuardVerdict]:
        """Decides whether another attempt of a call may be made. Earlier attempts of the call are counted with the most
        that they may have used, because the provider may charge for them.
        """
        opened = self._open.get(effect.job, {}).get(effect.ordinal)
        if opened is None:
            return NO_OBJECTION
        made = replace(opened, attempt=effect.attempt)
        decided = partial(self._decided_again, effect, opened)
        if opened.judged and opened.kind == "model" and effect.attempt > 1:
            return self._judged(effect, made, decided)
        if opened.kind == "model" and self.ledger.shared and self.ledger.budget_of(opened.scope) is not None:
            self._hold(effect, made)
            return _decided_later(self._held(opened.scope), decided)
        return decided(ALLOWED)

    def _decided_again(self, effect: EffectId, opened: _Open, judged: Judgement) -> GuardVerdict:
        if self._is_over(effect, opened):
            return _UNWANTED
        fits = judged.decision in FITS
        if fits:
            opened.attempt = effect.attempt
        self._hold(effect, opened)
        return NO_OBJECTION if fits else _denied(judged, "with attempts before it that may have been paid, ")

    def _written_down(self, effect: EffectId) -> GuardVerdict | Awaitable[GuardVerdict]:
        """Writes a row of type "doubt" for each attempt of a model call up to this one, which is sent next and has no
        journal. The row of the result replaces it. If the process dies before, the most that the attempt may have used
        is counted. The verdict denies the attempt if the rows cannot be written.

        Does nothing for a scope (a tenant) without a budget, and for shared budgets, whose owner has these rows with the
        reservation.
        """
        opened = self._open.get(effect.job, {}).get(effect.ordinal)
        if opened is None or self.ledger.shared or self.ledger.budget_of(opened.scope) is None:
            return NO_OBJECTION
        return _decided_later(
            self._doubted(effect, opened), lambda judged: NO_OBJECTION if judged is ALLOWED else _denied(judged)
        )

    async def _doubted(self, effect: EffectId, opened: _Open) -> Judgement:
        now_ms = round((await self.ledger.standing(opened.scope)).at * 1000)
        self._doubts += opened.rows_in_doubt(effect, opened.attempt + 1, now_ms)
        if self._next_batch is None:
            self._next_batch = asyncio.create_task(self._store_doubts(self._batch), name="doubts of the ledger")
        if (error := await asyncio.shield(self._next_batch)) is not None:
            raise _unwritten(opened.scope, error) from error
        return ALLOWED

    async def _store_doubts(
        self, before: "asyncio.Task[TransientError | UserError | None] | None"
    ) -> TransientError | UserError | None:
        """Waits until the batch `before` is stored, and stores the rows that have gathered. Returns the error if it fails."""
        if before is not None:
            await asyncio.wait([before])
        rows, self._doubts = self._doubts, []
        self._batch, self._next_batch = self._next_batch, None
        try:
            await self.ledger.correct(rows)
        except (TransientError, UserError) as error:
            return error
        return None

    async def _held(self, scope: str) -> Judgement:
        """Waits until the database of the shared budgets has stored all reservations of this process, then returns
        ALLOWED. After that a reservation is counted even if this process dies. Raises BudgetUnavailable if the
        database does not answer or refuses the request.
        """
        try:
            await self.ledger.ready(scope)
        except (TransientError, UserError) as error:
            raise _unwritten(scope, error) from error
        return ALLOWED

    def end_job(self, job_id: str, at_ms: int) -> bytes:
        """Ends the open calls of a job that ends. For each attempt of a model call without a ledger row, records a
        row of type "doubt", because the outcome of the attempt is not known. Ends the reservations of the calls.
        Returns the rows, encoded for the journal's END entry, or b"" if there are none.
        """
        rows = []
        for ordinal, opened in self._open.pop(job_id, {}).items():
            effect = EffectId(job_id, ordinal)
            rows += self._recorded(effect, opened, opened.rows_in_doubt(effect, opened.attempt + 1, at_ms))
        return _usage(rows)

    async def catch_up(self, journal: Journal) -> Collection[str] | None:
        """Writes into the ledger the rows that the journal has and the ledger lacks, for example after a crash. Returns the
        jobs that may have a reservation.
        """
        if self._counted:
            return None
        await self.ledger.claim()
        shared = journal.begins.shared
        self._ends, jobs = await catch_up(self.ledger, journal, shared=shared)
        return () if shared else jobs  # the owner of shared budgets has the reservations of workers that are gone

    async def take(self, journal: Journal, jobs: Mapping[str, Body], calls: Sequence[OpenCall]) -> None:
        """Reserves the most that the open calls may use. From then on rows are written only when their journal entries are
        durable. Waits until the accounts of all open calls are loaded, which another attempt of a call needs.

        For jobs of workers that are gone, also writes the rows that these have not written. Those of their other jobs are
        found by the next worker that starts.
        """
        first, self._journal, self._durable = self._journal is None, journal, journal.flush
        if journal.begins.shared and jobs and not self._counted:
            await update_ledger(self.ledger, journal, jobs)
        await super().take(journal, jobs, calls)
        for scope in {opened.scope for job in self._open.values() for opened in job.values()}:
            # if budgets are shared, this also waits until their owner knows the reservations that `reopen` has made
            await self.ledger.ready(scope)
        if first and not self._counted:
            await self._mark(journal, self._ends, self._reserving())

    def begin_job(self, begin: Begin, taken: Sequence[Entry] = ()) -> None:
        self._unmarked += 1
        if self._unmarked >= MARK_EVERY:
            self._make_mark()

    def _make_mark(self) -> None:
        """Makes a mark in the journal, so that a start after a crash reads only what came behind it."""
        if self._journal is None or self._counted or self._marking is not None:
            return
        self._unmarked = 0
        self._marking = asyncio.get_running_loop().create_task(
            self._mark_later(self._journal), name="mark of the ledger"
        )

    async def _mark_later(self, journal: Journal) -> None:
        try:
            # before the wait: a call that is decided later has its INTENT behind these entries
            jobs = self._reserving()
            ends = await journal.flush()
            await self.ledger.flush()  # the rows of these entries were recorded before
            await self._mark(journal, ends, jobs)
        except (SabotError, OSError) as error:
            _log.info("%s: the next start reads more of it: %s", journal.where, error)
        finally:
            self._marking = None

    def _reserving(self) -> list[str]:
        return [job for job, calls in self._open.items() if any(each.wanted != NOTHING for each in calls.values())]

    async def _mark(self, journal: Journal, ends: Mapping[int, int], jobs: Collection[str]) -> None:
        await mark(self.ledger, journal, ends, None if journal.begins.shared else jobs)

    async def leave(self) -> None:
        await self.ledger.flush()

    async def close(self) -> None:
        self.ledger.warn_of_unused_budgets()
        try:
            await self.ledger.flush_soon()
            if (journal := self._journal) is not None and not self._counted:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_MARK_SECONDS):
                        await self._mark_later(journal)
        finally:  # rows whose entries are not durable may be in no journal
            if self._marking is not None:
                self._marking.cancel()
            if self._durable is not None:
                self.ledger.leave(self._durable)
            if self._closes:
                await self.ledger.close()

    def _close(self, effect: EffectId) -> _Open | None:
        job = self._open.get(effect.job)
        opened = None if job is None else job.pop(effect.ordinal, None)
        if job is not None and not job:
            del self._open[effect.job]
        return opened


def _name(effect: EffectId) -> str:
    return f"{effect.job}/{effect.ordinal}"


def _settled(row: LedgerEvent, kind: CallKind, name: str, outcome: str, body: bytes) -> LedgerEvent:
    """Returns the final row of a call that has ended. `row` is the row that was made for the call's last attempt
    before its outcome was known; the result is a copy of it with the usage that the answer reports.

    - If the answer reports no token count, the reserved tokens are used instead.
    - If the request was not sent, or the provider has turned it away, so that nobody charges for it, the row has the type
      "free", and is no call. So has an answer of the cache.
    - If it failed otherwise, `row` is returned unchanged. Its type is "doubt", which means that the outcome is not
      known.
    """
    if kind != "model":
        return msgspec.structs.replace(row, type="tool", name=name, cost=None)
    if outcome != "ok":
        free = unpaid(outcome, body)
        return msgspec.structs.replace(row, type="free", reserved_tokens=0, cost=Decimal(0)) if free else row
    answer = decode_answer(body)
    name = (answer.model or name).replace("\0", "\N{REPLACEMENT CHARACTER}")  # the server's name may have a NUL
    if answer.cached:
        made = {"name": name, "cost": Decimal(0), "reserved_tokens": 0}
        return msgspec.structs.replace(row, type="free", **made)
    usage, cost = reported_use(answer, row.amounts)
    made = {"name": name, "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    return msgspec.structs.replace(row, type="model", cost=cost, **made)


def use_of_answer(effect: EffectId, agent: str, behalf: Behalf, name: str, body: bytes, at_ms: int) -> bytes:
    """Returns the ledger row of an answer of a model that no ledger has judged, encoded for its RESULT entry. So the
    usage of a job is known without budgets too. The arguments are those of `jobs.guard.UseOf`.
    """
    scope = GuardedCall(effect, "model", name, agent, behalf).scope
    opened = _Open(scope, behalf.principal, agent, "model", name, NOTHING, effect.attempt)
    return _usage([_settled(opened.row(effect, effect.attempt, at_ms), "model", name, "ok", body)])


def _denied(judged: Judgement, beside: str = "") -> GuardVerdict:
    reason = beside + judged.reason if judged.window else judged.reason
    return GuardVerdict(Decision.DENY, judged.rule, BUDGET, reason, error=judged.error)


async def _decided_later(judging: Awaitable[Judgement], decided: Callable[[Judgement], GuardVerdict]) -> GuardVerdict:
    """Waits for the judgement of the ledger, calls `decided` with it, and returns the verdict that `decided` returns.

    The judgement denies the call if a shared budget cannot be read, or if rows cannot be stored or read. The error of
    the ledger's writer (TransientError, UserError) is not raised.
    """
    try:
        judged = await judging
    except BudgetUnavailable as error:
        judged = _unavailable(error)
    except (TransientError, UserError) as error:
        judged = _unavailable(BudgetUnavailable(f"the ledger cannot judge the call: {message_of(error)}"))
    return decided(judged)


def _unwritten(scope: str, error: TransientError | UserError) -> BudgetUnavailable:
    return BudgetUnavailable(f"the budget of {scope} does not know of the call: {message_of(error)}")


def _unavailable(error: BudgetUnavailable) -> Judgement:
    return Judgement(Decision.DENY, message_of(error), error=stored_name(type(error)))


def _usage(rows: list[LedgerEvent]) -> bytes:
    return _encode(rows) if rows else b""


_encode = msgspec.msgpack.Encoder().encode


def checked_budgets(given: object) -> "list[Budget] | Ledger":
    """Checks the value of a `budgets=` argument. Returns a Ledger unchanged, and a list of budgets merged to one
    budget for each scope (a tenant). Raises UserError for any other value, and for two budgets of one scope with
    settings that contradict each other.
    """
    refuse_redis(given)
    if isinstance(given, Ledger):
        return given
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UserError(f"budgets={short_repr(given)}", hint=BUDGETS)
    return merge_budgets(given)


def ledger_of(budgets: "Sequence[Budget] | Ledger", directory: Path | None, clock: Clock) -> Ledger:
    """Returns `budgets` if it is a Ledger. Otherwise makes a Ledger with these budgets. Its rows are stored in a
    SQLite file in `directory`, or in memory if `directory` is None.
    """
    given = checked_budgets(budgets)
    if isinstance(given, Ledger):
        return given
    writer = InMemoryLedgerWriter() if directory is None else SqliteLedgerWriter(directory / DATABASE)
    return Ledger(writer, budgets=given, clock=clock)
