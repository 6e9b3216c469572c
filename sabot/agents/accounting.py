"""The ledger of jobs: each call that a job asks for is judged by the budget of its scope, and its result is a row.

    decide ─▶ reserved, in the INTENT ─▶ RESULT, with the row as its usage ─▶ the ledger

The journal is the authority. A row is made of a RESULT and named by its effect and attempt, so the ledger can be made anew from the journal
(`rows_of`), and no crash or replay counts a call twice. An attempt of which no result is recorded (a crash, a connection that broke) may
have been paid: it is a row of type "doubt", with what was reserved for it.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Iterator
from decimal import Decimal
from typing import NamedTuple

import msgspec

from sabot.agents.budgets import Amounts, BudgetDecision
from sabot.agents.ledger import Ledger, LedgerEvent
from sabot.errors import UNREADABLE, CorruptJournal
from sabot.jobs.gate import Behalf, CallKind, Decision, GatedCall, GateVerdict
from sabot.jobs.values import unpack, unpack_error
from sabot.journal import EffectId
from sabot.journal.entries import EffectResult, Entry
from sabot.llm.middleware import tokens_asked
from sabot.llm.prices import Prices
from sabot.llm.results import Completion, Usage

__all__ = ["ASSUMED_TOKENS", "LedgerGate", "brought_up", "rows_of"]

ASSUMED_TOKENS = 4096
"""That an answer may have, where its request has no max_tokens."""

_DECISIONS = {
    BudgetDecision.ALLOW: Decision.ALLOW,
    BudgetDecision.WARN: Decision.WARN,
    BudgetDecision.DEGRADE: Decision.DEGRADE,
    BudgetDecision.ASK: Decision.ASK,
    BudgetDecision.DENY: Decision.DENY,
}
_VERSION = "budget"
_FREE = frozenset(
    {"AuthenticationFailed", "CircuitOpen", "ContextLengthExceeded", "NotSent", "RateLimited", "RequestRefused"}
)
"""Errors of calls that no vendor is paid for."""


class _Open(NamedTuple):
    """A call without a result."""

    scope: str
    principal: str
    wanted: Amounts


class LedgerGate:
    """An `EffectGate` over a ledger. prices: for reservations of money; None: what a call costs is known when it has a result."""

    def __init__(self, ledger: Ledger, *, prices: Prices | None = None) -> None:
        self.ledger = ledger
        self._prices = prices
        self._open: dict[str, dict[int, _Open]] = {}  # by job and ordinal
        self._ready: set[str] = set()  # scopes whose accounts are loaded

    def decide(self, call: GatedCall) -> GateVerdict | Awaitable[GateVerdict]:
        """As `EffectGate.decide`. Children are their agents' business."""
        if call.kind == "child":
            return GateVerdict()
        if call.scope in self._ready and not self.ledger.full:
            return self._decide(call)
        return self._decide_later(call)

    async def _decide_later(self, call: GatedCall) -> GateVerdict:
        await self.ledger.ready(call.scope)
        if self.ledger.full:
            await self.ledger.flush()
        self._ready.add(call.scope)
        return self._decide(call)

    def _decide(self, call: GatedCall) -> GateVerdict:
        wanted = self._wanted(call)
        name = _name(call.effect)
        judged = self.ledger.reserve(name, call.scope, wanted)
        decision = _DECISIONS[judged.decision]
        model = ""
        if decision is Decision.DEGRADE:
            model = self.ledger.budget(call.scope).degrade_to
            if call.kind != "model" or call.name == model:  # there is nothing cheaper
                decision, model = Decision.DENY, ""
            else:
                self.ledger.hold(name, call.scope, wanted)
        if decision is not Decision.DENY:
            opened = _Open(call.scope, call.principal, wanted)
            self._open.setdefault(call.effect.job, {})[call.effect.ordinal] = opened
        return GateVerdict(
            decision,
            rule=f"{judged.window} budget" if judged.window else "",
            version=_VERSION if judged.window else "",
            reason=judged.reason,
            model=model,
            error="BudgetExceeded",
            tokens=wanted.tokens,
            cost=str(wanted.cost) if wanted.cost else "",
        )

    def _wanted(self, call: GatedCall) -> Amounts:
        """The most that the call may use, by rule of thumb."""
        if call.spec is None:
            return Amounts()
        read, written = tokens_asked(call.spec), call.spec.max_tokens
        usage = Usage(read, ASSUMED_TOKENS if written is None else written)
        cost = None if self._prices is None else self._prices.cost("", call.name, usage)
        return Amounts(usage.total_tokens, cost or Decimal(0), 1)

    def drop(self, effect: EffectId) -> None:
        """As `EffectGate.drop`."""
        opened = self._close(effect)
        if opened is not None:
            self.ledger.release(_name(effect), opened.scope)

    def settle(self, effect: EffectId, kind: CallKind, name: str, outcome: str, body: bytes, at_ms: int) -> bytes:
        """As `EffectGate.settle`. Only what was made has used something: a call that was denied has no row."""
        opened = self._close(effect)
        if opened is None:
            return b""
        if effect.attempt == 0:  # a person has refused it
            self.ledger.release(_name(effect), opened.scope)
            return b""
        row = _row(effect, kind, name, opened, outcome, body, at_ms)
        rows = [*_doubts(row, effect), row]
        for each in rows[:-1]:
            self.ledger.record(each)
        self.ledger.record(row, _name(effect))
        return msgspec.msgpack.encode(row)

    def reopen(self, effect: EffectId, agent: str, behalf: Behalf, verdict: GateVerdict) -> None:
        """As `EffectGate.reopen`: what the earlier attempt may have used, and what the next one may."""
        scope = behalf.scope or agent.rpartition(".")[0]
        wanted = Amounts(verdict.tokens, Decimal(verdict.cost or 0), int(verdict.tokens > 0))
        opened = _Open(scope, behalf.principal, wanted)
        self._open.setdefault(effect.job, {})[effect.ordinal] = opened
        self.ledger.hold(_name(effect), scope, wanted.plus(wanted))

    def over(self, job_id: str) -> None:
        """As `EffectGate.over`."""
        for ordinal, opened in self._open.pop(job_id, {}).items():
            self.ledger.release(_name(EffectId(job_id, ordinal)), opened.scope)

    def _close(self, effect: EffectId) -> _Open | None:
        job = self._open.get(effect.job)
        opened = None if job is None else job.pop(effect.ordinal, None)
        if job is not None and not job:
            del self._open[effect.job]
        return opened


def _name(effect: EffectId) -> str:
    return f"{effect.job}/{effect.ordinal}"


def _row(
    effect: EffectId, kind: CallKind, name: str, opened: _Open, outcome: str, body: bytes, at_ms: int
) -> LedgerEvent:
    """What this call has used. An answer that does not say its tokens counts with what was reserved."""
    row = LedgerEvent(
        event_id=f"{_name(effect)}/{effect.attempt}",
        type="model" if kind == "model" else "tool",
        scope_id=opened.scope,
        job_id=effect.job,
        principal_id=opened.principal,
        name=name,
        reserved_tokens=opened.wanted.tokens,
        at_ms=at_ms,
    )
    if kind != "model":
        return row
    if outcome != "ok":
        free = unpack_error(body).type in _FREE
        return msgspec.structs.replace(row, reserved_tokens=0) if free else msgspec.structs.replace(row, type="doubt")
    answer = msgspec.convert(unpack(body), Completion)
    if answer.cached:
        return msgspec.structs.replace(row, name=answer.model or row.name, cost=Decimal(0), reserved_tokens=0)
    usage = answer.usage or Usage(opened.wanted.tokens)
    return msgspec.structs.replace(
        row,
        name=answer.model or row.name,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost=answer.cost,
    )


def _doubts(row: LedgerEvent, effect: EffectId) -> Iterator[LedgerEvent]:
    """A row for each earlier attempt of a call of a model: it has no result of its own, and may have been paid."""
    if row.type != "tool":
        for attempt in range(1, effect.attempt):
            yield LedgerEvent(
                event_id=f"{_name(effect)}/{attempt}",
                type="doubt",
                scope_id=row.scope_id,
                job_id=row.job_id,
                principal_id=row.principal_id,
                name=row.name,
                reserved_tokens=row.reserved_tokens,
                at_ms=row.at_ms,
            )


def rows_of(entries: Iterable[Entry]) -> Iterator[LedgerEvent]:
    """The rows of a ledger that these entries are. Raises CorruptJournal."""
    for entry in entries:
        if not isinstance(entry, EffectResult) or not entry.usage:
            continue
        try:
            row = msgspec.msgpack.decode(entry.usage, type=LedgerEvent)
        except UNREADABLE as error:
            raise CorruptJournal(
                f"job {entry.job}: what effect {entry.ordinal} has used cannot be read: {error}"
            ) from error
        yield from _doubts(row, EffectId(entry.job, entry.ordinal, entry.attempt))
        yield row


async def brought_up(ledger: Ledger, entries: Iterable[Entry]) -> int:
    """Gives the ledger the rows of a journal that it does not have, as after a crash; those that it has stay as they are. -> how many rows
    the entries are.
    """
    count, rows = 0, list[LedgerEvent]()
    for row in rows_of(entries):
        rows.append(row)
        count += 1
        if len(rows) >= 1000:
            await ledger.writer.write(rows)
            rows = []
            await asyncio.sleep(0)
    if rows:
        await ledger.writer.write(rows)
    return count
