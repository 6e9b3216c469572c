"""The guard that judges each call of a job by the budget of its scope, and makes a row of the result of each call.

   decide ────────── reserves the upper bound of an attempt in the account of the scope, if it fits            ─▶ INTENT, with the verdict
   decide_again ──── the same for one more attempt; earlier attempts may have to be paid, and stay reserved    ─▶ ATTEMPT
   decide_degraded ─ reserves the difference, if a dearer model is asked instead                               ─▶ ATTEMPT, with a note
   settle ────────── replaces the reservation by a row for the result, and a row of type "doubt" for each
                     earlier attempt                                                                           ─▶ RESULT, with the rows
   end_job ───────── makes a row of type "doubt" for each attempt of the calls that are open                   ─▶ END, with the rows
   drop ──────────── ends the reservation, because the call was not made

The account of a scope is in this process, or with the owner of shared budgets; `Ledger` uses either. The methods of
`Ledger` correspond to those of every account (`base/accounts.py`): `reserve` reserves an amount if the call fits,
`hold` reserves it in any case, `record` settles a call, and `release` ends its reservation.

The rows can always be made anew from the journal (`rows_of`). The id of a row is made of the effect and the attempt, so
no crash or replay counts a call twice. A row is written only when its entry in the journal is durable, so the ledger has
no row without an entry.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import msgspec

from sabot.agents.accounts.budgets import ALLOWED, FITS, Budget, Judgement, unpriced
from sabot.agents.accounts.contract import Durable, LedgerEvent, refuse_redis
from sabot.agents.accounts.ledger import BUDGETS, Ledger, merge_budgets
from sabot.agents.accounts.limits import ASSUMED_TOKENS, TreeUse, has_price, most_use, reported_use, unpaid
from sabot.agents.accounts.rows import DATABASE, InMemoryLedgerWriter, SqliteLedgerWriter
from sabot.base.accounts import NOTHING, Amounts
from sabot.base.quantities import counted_words
from sabot.base.stored_names import stored_name
from sabot.base.threads import run_in_thread, run_to_end
from sabot.clock import Clock
from sabot.errors import UNREADABLE, CorruptJournal, TransientError, UserError, message_of, short_repr
from sabot.jobs.guard import (
    Behalf,
    CallKind,
    DecidedEffect,
    Decision,
    EffectGuard,
    GuardedCall,
    GuardVerdict,
    most_cost,
)
from sabot.jobs.values import unpack
from sabot.journal import Journal, JournalReader
from sabot.journal.effects import EffectId
from sabot.journal.entries import EffectResult, End, Entry
from sabot.llm.errors import BudgetUnavailable
from sabot.llm.results import Completion

_log = logging.getLogger(__name__)

_AT_ONCE = 1000  # rows
_VERSION = "budget"
_UNWANTED = GuardVerdict(Decision.DENY, reason="nobody waits for it any more")
_Verdict = TypeVar("_Verdict", bound=GuardVerdict | None)


@dataclass(slots=True)
class _Open:
    """A call without a result.

    - `attempt`: the number of the last attempt, or 0 if a person has to allow the call first.
    - `recorded`: the number of the last attempt that has a row in the ledger.
    - `wanted`: the upper bound of the usage of one attempt.
    - `judged`: True if the budget has allowed the call; then the budget also decides on each further attempt. False if
      the budget is used up; then a person decides, or a cheaper model is asked.
    - `models`: the models that are asked in place of `name`. The key is the number of the first attempt that asks the
      model.
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
        """Records that the attempts from `attempt` on ask this model."""
        self.models = {**(self.models or {}), attempt: model}

    def asked(self, attempt: int) -> str:
        """Returns the name of the model or tool that this attempt calls."""
        models = self.models or {}
        return models.get(max((each for each in models if each <= attempt), default=0), self.name)

    def row(self, effect: EffectId, attempt: int, at_ms: int) -> LedgerEvent:
        """Returns the row for an attempt whose usage is not known. For a model it is a row of type "doubt"."""
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
    def unrecorded(self) -> int:
        """The number of attempts without a row. It is at least 1."""
        return max(1, self.attempt - self.recorded)

    def rows_in_doubt(self, effect: EffectId, before: int, at_ms: int) -> list[LedgerEvent]:
        """Returns a row of type "doubt" for each attempt that comes before the attempt `before` and has no row yet. The
        results of these attempts are unknown, and they may have to be paid. Returns [] if the call is that of a tool.
        """
        if self.kind != "model":
            return []
        return [self.row(effect, attempt, at_ms) for attempt in range(self.recorded + 1, before)]


class LedgerGuard(EffectGuard):
    """A guard that judges calls by the budgets of a ledger. If a budget limits money, and the price of a call is not
    known, the call is denied or a person is asked (`Budget.unpriced`).
    """

    def __init__(self, ledger: Ledger, *, closes: bool = True) -> None:
        """Makes a guard. If `closes` is True, the ledger belongs to the guard, and `close` closes it too."""
        self.ledger = ledger
        self._closes = closes
        self._durable: Durable | None = None
        self._open: dict[str, dict[int, _Open]] = {}  # by job and ordinal

    def decide(self, call: GuardedCall) -> GuardVerdict | Awaitable[GuardVerdict]:
        """Decides on a call. A call of a model is judged by the budget of its scope. A call of a tool is always
        allowed, because a budget limits nothing that a tool uses; it only gets a row. A child job is always allowed
        too, because its own calls are judged later.
        """
        if call.kind == "child":
            return GuardVerdict()
        if call.kind == "tool":
            return self._decided(call, NOTHING, ALLOWED)
        opened = _Open(
            call.scope, call.principal, call.agent, call.kind, call.name, most_use(call), call.effect.attempt
        )
        found = self._judged(call.effect, opened, 1, partial(self._decided, call, opened.wanted))
        return found if isinstance(found, GuardVerdict) else self._decided_and_held(call, found)

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
        self, effect: EffectId, opened: _Open, attempts: int, decided: Callable[[Judgement], _Verdict]
    ) -> _Verdict | Awaitable[_Verdict]:
        """Asks the ledger to reserve the upper bound of `attempts` attempts, if the budget has room. Returns the
        verdict that `decided` makes of the ledger's judgement, or an awaitable of that verdict if the account is not in
        this process.
        """
        rows = self._rows_in_doubt(effect, opened)
        judged = self.ledger.reserve(_name(effect), opened.scope, opened.wanted.times(attempts), rows)
        return decided(judged) if isinstance(judged, Judgement) else _decided_later(judged, decided)

    def decide_degraded(self, call: GuardedCall) -> GuardVerdict | Awaitable[GuardVerdict]:
        """Decides whether another model may be asked in place of the first one. If the other model may cost more,
        reserves the higher cost.
        """
        opened = self._open.get(call.effect.job, {}).get(call.effect.ordinal)
        cost = most_use(call).cost
        if opened is None:
            return GuardVerdict()
        if opened.attempt and not call.effect.attempt:
            opened.attempt = 0
            self._hold(call.effect, opened, 1)
        if opened.judged and (refused := self._unpriced(call)):
            return _denied(refused)
        if cost <= opened.wanted.cost:
            opened.asks(call.name, call.effect.attempt)
            return GuardVerdict()
        dearer = replace(opened, wanted=opened.wanted.costing(cost))
        if not opened.judged:
            return self._decided_degraded(call, opened, dearer, ALLOWED)
        decided = partial(self._decided_degraded, call, opened, dearer)
        return self._judged(call.effect, dearer, opened.unrecorded, decided)

    def _decided_degraded(self, call: GuardedCall, opened: _Open, dearer: _Open, judged: Judgement) -> GuardVerdict:
        if self._is_over(call.effect, opened):
            return _UNWANTED
        fits = judged.decision in FITS
        if fits:
            opened.wanted = dearer.wanted
            opened.asks(call.name, call.effect.attempt)
        self._hold(call.effect, opened, opened.unrecorded)
        if not fits:
            self.ledger.note(call.effect.job, call.scope, call.principal, call.name, judged)
            return _denied(judged)
        return GuardVerdict(tokens=opened.wanted.tokens, cost=str(opened.wanted.cost))

    def _is_over(self, effect: EffectId, opened: _Open) -> bool:
        """Returns True if the job has ended while the ledger judged the call. In that case it also ends the reservation
        of the call, because nobody else would.
        """
        if self._open.get(effect.job, {}).get(effect.ordinal) is opened:
            return False
        self.ledger.release(_name(effect), opened.scope)
        return True

    def _unpriced(self, call: GuardedCall) -> Judgement | None:
        """Returns the judgement on a call of a model whose price is not known. Returns None if the price is known, or
        if the budget does not limit money.
        """
        budget = None if call.kind != "model" or has_price(call) else self.ledger.budget_of(call.scope)
        return None if budget is None else unpriced(budget, call.name)

    def _decided(self, call: GuardedCall, wanted: Amounts, judged: Judgement) -> GuardVerdict:
        if judged.decision in FITS and (refused := self._unpriced(call)):
            self.ledger.release(_name(call.effect), call.scope)
            judged = refused
        self.ledger.note(call.effect.job, call.scope, call.principal, call.name, judged)
        decision, model = judged.decision, ""
        if decision is Decision.DEGRADE:
            model = self.ledger.budget(call.scope).degrade_to
            if call.kind != "model" or call.name == model:  # no cheaper model can be asked
                decision, model = Decision.DENY, ""
            else:
                other = most_use(replace(call, name=model))
                wanted = other if other.cost else wanted  # without a price, the first model's cost stays reserved
        if decision is not Decision.DENY:
            attempt = 0 if decision is Decision.ASK else call.effect.attempt
            opened = _Open(call.scope, call.principal, call.agent, call.kind, model or call.name, wanted, attempt)
            opened.judged = decision in FITS
            self._open.setdefault(call.effect.job, {})[call.effect.ordinal] = opened
            if decision is Decision.DEGRADE:
                self._hold(call.effect, opened, 1)
        return GuardVerdict(
            decision,
            rule=judged.rule,
            version=_VERSION if judged.rule else "",
            reason=judged.reason,
            model=model,
            error=judged.error,
            tokens=wanted.tokens,
            cost=str(wanted.cost) if wanted.cost else "",
            most_tokens=ASSUMED_TOKENS if self._sets_a_bound(call) else 0,
        )

    def _sets_a_bound(self, call: GuardedCall) -> bool:
        """Returns True if the budget limits tokens or money, but the request does not limit the length of the answer.
        In that case the verdict limits the answer to the reserved tokens.
        """
        return call.spec is not None and call.spec.max_tokens is None and self.ledger.limits_answers(call.scope)

    def drop(self, effect: EffectId) -> None:
        self._drop(effect)

    def _drop(self, effect: EffectId) -> None:
        opened = self._close(effect)
        if opened is not None:
            self.ledger.release(_name(effect), opened.scope)

    def settle(self, effect: EffectId, kind: CallKind, name: str, outcome: str, body: bytes, at_ms: int) -> bytes:
        """Makes the row of a call that has a result, and a row of type "doubt" for each earlier attempt that has no
        row. Returns these rows encoded for the RESULT entry. Returns b"" for a call that was not made, and for a child
        job.
        """
        opened = self._close(effect)
        if opened is None:
            return b""
        # refused by a person; or a child, whose calls have rows of their own
        if effect.attempt == 0 or kind == "child":
            self.ledger.release(_name(effect), opened.scope)
            return b""
        doubt = opened.row(effect, effect.attempt, at_ms)
        row = _settled(doubt, kind, name, outcome, body)
        if kind == "model" and opened.recorded >= effect.attempt:
            row = msgspec.structs.replace(row, settles=doubt.amounts[:3])
        return _usage(self._recorded(effect, opened, [*opened.rows_in_doubt(effect, effect.attempt, at_ms), row]))

    def _recorded(self, effect: EffectId, opened: _Open, rows: list[LedgerEvent]) -> list[LedgerEvent]:
        """Records rows in the ledger, ends the reservation of their call, and returns the rows. The ledger writes them
        later, when the journal's entry with these rows is durable.
        """
        for each in rows[:-1]:
            self.ledger.record(each, durable=self._durable)
        if rows:
            self.ledger.record(rows[-1], _name(effect), durable=self._durable)
        else:
            self.ledger.release(_name(effect), opened.scope)
        return rows

    def _hold(self, effect: EffectId, opened: _Open, attempts: int) -> None:
        """Reserves the upper bound of `attempts` attempts of a call, in place of its earlier reservation, even if the
        budget has no room for it. With 0 attempts only ends the earlier reservation.
        """
        if attempts > 0:
            rows = self._rows_in_doubt(effect, opened)
            self.ledger.hold(_name(effect), opened.scope, opened.wanted.times(attempts), rows)
        else:
            self.ledger.release(_name(effect), opened.scope)

    def _rows_in_doubt(self, effect: EffectId, opened: _Open) -> list[LedgerEvent]:
        """Returns the rows of type "doubt" that are written for the attempts of this call if this process dies. The
        owner of shared budgets writes them. Returns [] if the budgets are not shared.
        """
        return opened.rows_in_doubt(effect, opened.attempt + 1, 0) if self.ledger.shared else []

    def reopen(self, effect: EffectId, agent: str, behalf: Behalf, decided: DecidedEffect) -> None:
        """Reserves amounts for a call that was open in the journal when the process started: the upper bound of its
        earlier attempts, and of its next one, which asks the first model again. Reserves nothing if the call waits for
        a person's approval because the budget is used up.
        """
        job = self._open.setdefault(effect.job, {})
        if effect.ordinal in job:
            return
        verdict, recorded, instead = decided.verdict, decided.recorded, decided.instead
        scope, name = behalf.scope or agent.rpartition(".")[0], verdict.model or verdict.about
        wanted = Amounts(verdict.tokens, most_cost(verdict, instead.values()), int(bool(name)))
        kind: CallKind = "model" if name else "tool"
        beyond = verdict.decision in (Decision.ASK, Decision.DEGRADE) and _VERSION in verdict.version.split()
        opened = _Open(scope, behalf.principal, agent, kind, name, wanted, effect.attempt, recorded, not beyond)
        if instead:
            models = {attempt: each.model or each.about for attempt, each in instead.items()}
            opened.models = {**models, effect.attempt + 1: name}
        job[effect.ordinal] = opened
        waits = verdict.decision is Decision.ASK and beyond and not effect.attempt
        self._hold(effect, opened, 0 if waits else effect.attempt + 1 - recorded)

    async def ready(self) -> None:
        """Waits until the accounts of all open calls are loaded. `decide_again` needs these accounts."""
        for scope in {opened.scope for job in self._open.values() for opened in job.values()}:
            # if budgets are shared, this also waits until their owner knows the reservations that `reopen` has made
            await self.ledger.ready(scope)

    def decide_again(self, effect: EffectId) -> GuardVerdict | Awaitable[GuardVerdict | None] | None:
        """Decides on another attempt of a call. Returns None if the attempt is allowed. Returns a verdict that denies
        it if the budget has no room for it. The earlier attempts count as used, because they may have to be paid.
        """
        opened = self._open.get(effect.job, {}).get(effect.ordinal)
        if opened is None:
            return None
        made = replace(opened, attempt=effect.attempt)
        attempts, decided = effect.attempt - opened.recorded, partial(self._decided_again, effect, opened)
        if opened.judged and opened.kind == "model" and effect.attempt > 1:
            return self._judged(effect, made, attempts, decided)
        if opened.kind == "model" and self.ledger.shared and self.ledger.budget_of(opened.scope) is not None:
            self._hold(effect, made, attempts)
            return _decided_later(self._held(opened.scope), decided)
        return decided(ALLOWED)

    def _decided_again(self, effect: EffectId, opened: _Open, judged: Judgement) -> GuardVerdict | None:
        if self._is_over(effect, opened):
            return _UNWANTED
        fits = judged.decision in FITS
        if fits:
            opened.attempt = effect.attempt
        self._hold(effect, opened, effect.attempt - opened.recorded - (not fits))
        return None if fits else _denied(judged, "with attempts before it that may have been paid, ")

    async def _held(self, scope: str) -> Judgement:
        """Waits until the owner of shared budgets knows the reservations of this process, and returns ALLOWED. From
        then on the call counts in the budget, even if this process dies. Raises BudgetUnavailable if the owner does not
        answer.
        """
        try:
            await self.ledger.ready(scope)
        except (TransientError, UserError) as error:
            raise BudgetUnavailable(f"the budget of {scope} does not know of the call: {message_of(error)}") from error
        return ALLOWED

    def end_job(self, job_id: str, at_ms: int) -> bytes:
        """Makes a row of type "doubt" for each attempt of the job's open model calls that has no row yet. Returns these
        rows, encoded for the END entry.
        """
        rows = []
        for ordinal, opened in self._open.get(job_id, {}).items():
            effect = EffectId(job_id, ordinal)
            rows += self._recorded(effect, opened, opened.rows_in_doubt(effect, opened.attempt + 1, at_ms))
        return _usage(rows)

    def forget_job(self, job_id: str) -> None:
        for ordinal, opened in self._open.pop(job_id, {}).items():
            self._hold(EffectId(job_id, ordinal), opened, 0)

    async def open(self, journal: Journal) -> None:
        """Writes into the ledger the rows that the journal has and the ledger lacks, for example after a crash."""
        await update_ledger(self.ledger, journal)
        self._durable = journal.flush

    async def flush(self) -> None:
        await self.ledger.flush()

    async def close(self) -> None:
        try:
            await self.ledger.flush()
        finally:  # rows whose entries are not durable may be in no journal
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
    """Returns the row of a call that has ended. It is made from `row`, the row of the call's last attempt. If the
    answer has no token count, the reserved tokens count.
    """
    if kind != "model":
        return msgspec.structs.replace(row, type="tool", name=name, cost=None)
    if outcome != "ok":
        free = unpaid(outcome, body)
        return msgspec.structs.replace(row, type="model", reserved_tokens=0, cost=None) if free else row
    answer = msgspec.convert(unpack(body), Completion)
    name = (answer.model or name).replace("\0", "\N{REPLACEMENT CHARACTER}")  # the server's name may have a NUL
    if answer.cached:
        made = {"name": name, "cost": Decimal(0), "reserved_tokens": 0}
        return msgspec.structs.replace(row, type="model", **made)
    usage, cost = reported_use(answer, row.amounts)
    made = {"name": name, "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    return msgspec.structs.replace(row, type="model", cost=cost, **made)


def _denied(judged: Judgement, beside: str = "") -> GuardVerdict:
    reason = beside + judged.reason if judged.window else judged.reason
    return GuardVerdict(Decision.DENY, judged.rule, _VERSION, reason, error=judged.error)


async def _decided_later(judging: Awaitable[Judgement], decided: Callable[[Judgement], _Verdict]) -> _Verdict:
    try:
        judged = await judging
    except BudgetUnavailable as error:
        judged = _unavailable(error)
    return decided(judged)


def _unavailable(error: BudgetUnavailable) -> Judgement:
    return Judgement(Decision.DENY, message_of(error), error=stored_name(type(error)))


def _usage(rows: list[LedgerEvent]) -> bytes:
    return _encode(rows) if rows else b""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[LedgerEvent] | TreeUse).decode


def rows_of(entries: Iterable[Entry]) -> Iterator[LedgerEvent]:
    """Yields the rows of a ledger that are in these entries. Raises CorruptJournal."""
    for entry in entries:
        if isinstance(entry, EffectResult | End) and entry.usage:
            try:
                used = _decode(entry.usage)
                if not isinstance(used, TreeUse):  # the use of a child, whose calls have rows of their own
                    yield from used
            except UNREADABLE as error:
                what = (
                    f"effect {entry.ordinal} has used" if isinstance(entry, EffectResult) else "its calls may have used"
                )
                raise CorruptJournal(f"job {entry.job}: what {what} cannot be read: {error}") from error


async def update_ledger(ledger: Ledger, journal: JournalReader) -> int:
    """Writes into the ledger the rows that the journal has and the ledger lacks, for example after a crash. Rows of the
    ledger that differ from those of the journal are replaced, and this is logged. Returns the number of the journal's
    rows.

    Raises BrokerUnavailable if the server of the ledger does not answer. Because this is called at the start of the
    program, a missing server is noticed before the first call.
    """
    await ledger.reach()
    count, corrected, rows = 0, 0, rows_of(entry for _, entry in journal.read())
    while chunk := await run_to_end(run_in_thread(list, islice(rows, _AT_ONCE))):
        corrected += await ledger.correct(chunk)
        count += len(chunk)
    if corrected:
        _log.warning(
            "%s: corrected %s of the ledger, which said something else", journal.where, counted_words(corrected, "row")
        )
    return count


def checked_budgets(given: object) -> "list[Budget] | Ledger":
    """Returns `given` if it is a list of budgets or a Ledger, as an app or a kernel takes it. Raises UserError for
    anything else, and for two budgets of one scope that contradict each other.
    """
    refuse_redis(given)
    if isinstance(given, Ledger):
        return given
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UserError(f"budgets={short_repr(given)}", hint=BUDGETS)
    return merge_budgets(given)


def ledger_of(budgets: "Sequence[Budget] | Ledger", directory: Path | None, clock: Clock) -> Ledger:
    """Returns a ledger with these budgets, in a file of the directory, or in memory if `directory` is None."""
    given = checked_budgets(budgets)
    if isinstance(given, Ledger):
        return given
    writer = InMemoryLedgerWriter() if directory is None else SqliteLedgerWriter(directory / DATABASE)
    return Ledger(writer, budgets=given, clock=clock)
