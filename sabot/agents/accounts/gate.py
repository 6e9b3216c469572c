"""The ledger of jobs: each call that a job asks for is judged by the budget of its scope, and its result is a row.

    decide ─▶ reserved, in the INTENT ─▶ RESULT, with the row as its usage ─▶ the ledger

The journal is the authority. A row is made of a RESULT and named by its effect and attempt, so the ledger can be made anew from the journal
(`rows_of`), and no crash or replay counts a call twice. An attempt of which no result is recorded (a crash, a connection that broke) may
have been paid: it is a row of type "doubt", with what was reserved for it.
"""

from collections.abc import Awaitable, Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from sabot.agents.accounts.budgets import Amounts, Budget, BudgetDecision
from sabot.agents.accounts.ledger import Ledger, LedgerEvent
from sabot.agents.accounts.rows import DATABASE, InMemoryLedgerWriter, SqliteLedgerWriter
from sabot.clock import Clock
from sabot.errors import UNREADABLE, CorruptJournal, UserError, short_repr
from sabot.jobs.gate import Behalf, CallKind, Decision, EffectGate, GatedCall, GateVerdict
from sabot.jobs.values import unpack, unpack_error
from sabot.journal import EffectId, JournalReader
from sabot.journal.entries import EffectResult, Entry
from sabot.llm.middleware import tokens_asked
from sabot.llm.results import Completion, Usage
from sabot.threads import aside, to_the_end

__all__ = ["ASSUMED_TOKENS", "LedgerGate", "brought_up", "ledger_of", "rows_of"]

ASSUMED_TOKENS = 4096
"""That an answer may have, where its request has no max_tokens."""

_DECISIONS = {
    BudgetDecision.ALLOW: Decision.ALLOW,
    BudgetDecision.WARN: Decision.WARN,
    BudgetDecision.DEGRADE: Decision.DEGRADE,
    BudgetDecision.ASK: Decision.ASK,
    BudgetDecision.DENY: Decision.DENY,
}
_AT_ONCE = 1000  # rows
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


class LedgerGate(EffectGate):
    """Judges calls by a ledger. Money is reserved where the engine of a call has prices; else a cost is known when there is a result."""

    def __init__(self, ledger: Ledger, *, closes: bool = True) -> None:
        """closes: the ledger belongs to who runs the jobs, and is closed with them."""
        self.ledger = ledger
        self._closes = closes
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
        cost = None if call.price is None else call.price(call.name, usage)
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

    async def open(self, journal: JournalReader) -> None:
        """As `EffectGate.open`: rows that a crash has left out are written."""
        await brought_up(self.ledger, journal)

    async def flush(self) -> None:
        """As `EffectGate.flush`."""
        await self.ledger.flush()

    async def close(self) -> None:
        """As `EffectGate.close`."""
        await (self.ledger.close() if self._closes else self.ledger.flush())

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


async def brought_up(ledger: Ledger, journal: JournalReader) -> int:
    """Gives the ledger the rows of a journal that it does not have, as after a crash; those that it has stay as they are. -> how many rows
    the journal has.
    """
    await ledger.writer.write([])  # a server that is missing is told of now, and not by the first call
    count, rows = 0, rows_of(entry for _, entry in journal.read())
    while chunk := await to_the_end(aside(list, islice(rows, _AT_ONCE))):
        await ledger.writer.write(chunk)
        count += len(chunk)
    return count


def ledger_of(budgets: "Sequence[Budget] | Ledger", directory: Path | None, clock: Clock) -> Ledger:
    """A ledger with these budgets: in a file of the directory, or in memory where there is none."""
    if isinstance(budgets, Ledger):
        return budgets
    if isinstance(budgets, str) or not isinstance(budgets, Sequence):
        raise UserError(
            f"budgets={short_repr(budgets)}", hint='[Budget("scope", max_cost_daily=Decimal("10"))], or a Ledger'
        )
    writer = InMemoryLedgerWriter() if directory is None else SqliteLedgerWriter(directory / DATABASE)
    return Ledger(writer, budgets=budgets, clock=clock)
