"""The budget of one job and all jobs that it has begun (`BudgetSpec`), as a guard.

    job ◀── account of the job
     ├─ child ◀── account whose parent is that of the job; the RESULT of the child has its total
     └─ child

The account of the job judges the calls of the job and of all its children. So it does not matter which of them makes a
call. The accounts are not stored: when a process starts, it computes them again from the entries of the journal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import msgspec

from sabot.agents.context import BudgetSpec
from sabot.base.accounts import NOTHING, Account, Amounts
from sabot.base.quantities import money, plain
from sabot.base.stored_names import stored_name
from sabot.base.threads import run_in_thread, run_to_end
from sabot.engine.calls.certainty import NOT_SENT_NAMES
from sabot.engine.calls.effects import EffectId
from sabot.engine.calls.errors import UNPAID, BudgetExceeded, TurnLimitExceeded
from sabot.engine.calls.usage import Usage, counted_usage, is_cost
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
    decode_verdict,
    most_cost,
)
from sabot.jobs.open_jobs import entries_of_trees, whole_entries
from sabot.jobs.tree import child_id, first_of, is_retry, parent_of
from sabot.jobs.values import unpack, unpack_error
from sabot.journal import Journal
from sabot.journal.entries import Attempt, Begin, Body, EffectResult, End, Entry, Intent
from sabot.llm.prices import PRICES_HINT
from sabot.llm.results import Completion
from sabot.llm.token_counts import ASSUMED_TOKENS, most_input_tokens

_FIELDS = frozenset(bytes([0x80 + count]) for count in range(16))  # the first byte of a msgpack mapping with few fields
_COUNTED = ("max_tokens", "max_cost", "max_turns", "max_tool_calls")
_MOST_ENDED = 10_000  # jobs that are over, and are still known to have had limits
_RULE = "budget of the job"
_FREE = frozenset({"ContextLengthExceeded", "NotSent", *map(stored_name, UNPAID)})


def unpaid(outcome: str, body: bytes) -> bool:
    """Returns True if a call has failed with an error after which the provider certainly does not charge for it: for
    example, the request was refused or not sent. `outcome` is "ok" or the type of the error. `body` is the encoded
    error.
    """
    return outcome != "ok" and unpack_error(body).type in _FREE


def was_not_sent(outcome: str, body: bytes) -> bool:
    """Returns True if a call of a tool has failed with an error by which nothing was sent. `outcome` is "ok" or the type of the
    error. `body` is the encoded error.
    """
    return outcome != "ok" and unpack_error(body).type in NOT_SENT_NAMES


class AnswerUse(msgspec.Struct):
    """The fields of a `Completion` about its usage. They are decoded from a packed answer without the rest of it."""

    usage: Usage | None = None
    cost: Decimal | None = None
    model: str = ""
    cached: bool = False


decode_answer = msgspec.msgpack.Decoder(AnswerUse).decode


class TreeUse(msgspec.Struct, frozen=True, omit_defaults=True):
    """The usage of a child job and of its own children, or the usage of the model calls that a tool has made itself.
    It is stored in the RESULT entry of the effect that began the child or called the tool. `turns` is the number of
    model calls.
    """

    tokens: int = 0
    cost: Decimal = NOTHING.cost
    turns: int = 0
    tool_calls: int = 0

    @property
    def amounts(self) -> Amounts:
        """The same usage as an Amounts object, which accounts can add."""
        return Amounts(self.tokens, self.cost, self.turns, self.tool_calls)


class _TreeCall(msgspec.Struct):
    """A call that has no result yet.

    - `wanted`: the most that one attempt of the call may use.
    - `attempt`: the number of the last attempt, or 0 if the call waits for the approval of a person.
    """

    kind: CallKind
    wanted: Amounts
    attempt: int = 1

    def most(self, attempts: int) -> Amounts:
        """Returns the most that `attempts` attempts of this call may use. Tokens and cost are multiplied by
        `attempts`. The number of calls is 1, because the attempts are attempts of one call.
        """
        if self.kind != "model":
            return Amounts(tool_calls=1)
        return Amounts(self.wanted.tokens * attempts, self.wanted.cost * attempts, 1)


@dataclass(slots=True)
class _Job:
    """The usage of a job that has a `BudgetSpec`, or of a job that such a job has begun (a child). The account of a
    child adds its usage to the account of its parent too.

    - `limits`: the limits that are checked. A child without a `BudgetSpec` has the limits of its parent.
    - `children`: the ids of the child jobs whose usage is not yet stored in a RESULT entry.
    - `open`: the calls that have no result yet. The key is the ordinal of the call's effect, or a text for a model
      call that a tool of the job makes itself, because such a call is not an effect.
    - `apart`: the ordinals of the effects that are exempt from the limits (`GuardedCall.apart`).
    - `asked`: the usage of the model calls that a tool has made itself, by the ordinal of the tool's effect. An item
      is removed when the result of that effect is recorded.
    - `over`: True if the job has ended.
    """

    limits: BudgetSpec
    account: Account
    children: set[str] = field(default_factory=set)
    open: dict[int | str, _TreeCall] = field(default_factory=dict)
    apart: set[int] = field(default_factory=set)
    asked: dict[int, Amounts] = field(default_factory=dict)
    over: bool = False

    def begin(self, key: int | str, call: _TreeCall) -> None:
        """Registers an open call, or replaces it if the key is registered already. Reserves the most that the attempts
        of the call so far may use. For a call that was not attempted yet, reserves one attempt.
        """
        self.open[key] = call
        self.account.reserve(key, call.most(max(1, call.attempt)))

    def most(self) -> Amounts:
        """Returns the usage of the whole tree of jobs to which this job belongs: of the job that has the limits, and
        of all its children. Calls that have no result yet are included with the most that they may use.
        """
        root = self.account.root
        return root.total.plus(root.reserved)


class JobLimits(EffectGuard):
    """A guard that checks the limits of single jobs: the `BudgetSpec` in the BEGIN entry of a job. It checks the
    calls of such a job, of its tools and of its child jobs. It allows all calls of other jobs.

    It also denies calls of jobs that code has begun which may be repeated, if their tools must not be called again.
    `around`: the judges of that code (`judging.repeated_around`) by job; the one by "" is for all jobs.
    """

    declared: frozenset[str] = frozenset()

    def __init__(self, around: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.around = dict(around)
        self._jobs: dict[str, _Job] = {}
        self._within: dict[
            tuple[str, int], EffectId
        ] = {}  # calls that tools make by themselves -> the effects of these tools
        self._ended: dict[str, None] = {}  # the newest jobs with limits that are over: their tools may have left tasks

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def begin_job(self, begin: Begin, taken: Sequence[Entry] = ()) -> None:
        """Opens the account of a job, if the job or its parent has limits. `taken` contains the entries that a forked
        job has copied from the job that it was forked from, or the earlier entries of a job that begins again. The usage
        in these entries is counted for the job.
        """
        self._begun(begin)
        job = self._jobs.get(begin.job)
        for entry in taken if job is not None else ():
            if isinstance(entry, End) and entry.job == begin.job:
                self._doubt_open(self._jobs[begin.job])
            else:
                self._read_entry(entry)

    def _begun(self, begin: Begin) -> None:
        if begin.job in self._jobs:  # the job goes on: ctx.continue_as, or another run after a failure
            self._jobs[begin.job].over = False
            return
        self._ended.pop(begin.job, None)
        limits, parent = _limits_of(begin), self._parent(begin.job)
        if limits is not None:
            self._jobs[begin.job] = _Job(limits, Account())
        elif parent is not None:
            parent.children.add(begin.job)
            self._jobs[begin.job] = _Job(parent.limits, Account(parent=parent.account))

    def _parent(self, job_id: str) -> _Job | None:
        name, ordinal = parent_of(job_id)
        parent = self._jobs.get(name)
        if parent is None or ordinal in parent.apart:
            return None
        return parent

    def end_job(self, job_id: str, at_ms: int) -> bytes:
        """Ends the account of a job. A call that has no result is counted with the most that it may have used. But a
        call that still waits for the approval of a person is not counted.

        Returns b"", because this guard stores nothing in the END entry.
        """
        self.around.pop(job_id, None)
        job = self._jobs.get(job_id)
        if job is not None:
            self._doubt_open(job)
            job.over = True
            if self._parent(job_id) is None:
                self._forget(job_id)
        return b""

    @staticmethod
    def _doubt_open(job: _Job) -> None:
        """Counts the calls of a job without a result with the most that they may have used."""
        for key, each in job.open.items():
            if each.attempt:
                job.account.doubt(key)
            else:
                job.account.release(key)
        job.open.clear()
        job.asked.clear()

    def _forget(self, job_id: str) -> Amounts:
        """Removes from memory a job, and those of its descendants that have ended. Returns the usage of the job and
        its descendants. This usage remains in the account of the job's parent.
        """
        job = self._jobs.pop(job_id)
        self._ended[job_id] = None
        if len(self._ended) > _MOST_ENDED:
            del self._ended[next(iter(self._ended))]
        for name in job.children & self._jobs.keys():
            if self._jobs[name].over:
                self._forget(name)
        return job.account.total

    # -- calls --------------------------------------------------------------------------------------------------------

    def decide(self, call: GuardedCall) -> GuardVerdict:
        if self.around and (why := self._why_not_again(call)):
            return GuardVerdict(Decision.DENY, reason=why)
        if call.after == "unrecorded":
            return NO_OBJECTION
        if call.after:
            return self._decide_again(call.effect) if call.after == "again" else self._decide_degraded(call)
        within = call.within
        job = self._jobs.get(call.effect.job if within is None else within.job)
        if job is None and within is not None and within.job in self._ended:
            return _denied(f"job {within.job} has ended, so nothing counts what a task of its tool still calls")
        if job is None or (within is not None and within.ordinal in job.apart):
            return NO_OBJECTION
        if within is not None and call.kind == "child":
            return _denied(
                f"job {within.job} has limits (BudgetSpec), and what a job uses that a tool begins does not count in them: await "
                "ctx.child(…) in the function of the job"
            )
        if within is not None:
            self._within[call.effect[:2]] = within
        elif call.apart:
            job.apart.add(call.effect.ordinal)
            return GuardVerdict(apart=True)
        limits = job.limits
        if call.kind == "tool":
            most = limits.max_tool_calls
            is_counted = self._key(call.effect) in job.open  # it is judged again: a person or a program has changed it
            if most is not None and not is_counted and job.most().tool_calls >= most:
                return _denied(f"the job may call tools {most} times")
            job.begin(self._key(call.effect), _TreeCall("tool", NOTHING, attempt=call.effect.attempt))
        elif call.kind == "model":
            return self._model(call, job)
        return NO_OBJECTION

    def _why_not_again(self, call: GuardedCall) -> str:
        if call.tool is None or call.kind != "tool":
            return ""
        job = call.effect.job if call.within is None else call.within.job
        judge = self.around.get("") or self.around.get(first_of(job))
        return "" if judge is None else str(judge.why_not_again(call.tool))

    def _decide_degraded(self, call: GuardedCall) -> GuardVerdict:
        """Decides whether a fallback model may be asked after the first model has failed. `call.name` is the fallback
        model. If that model may cost more than was reserved, reserves the higher cost. The verdict denies the call if
        the limits have no room for that cost, or if they limit the cost and the price of the model is not known.
        """
        job, opened = self._opened(call.effect)
        if job is not None and opened is not None and job.limits.max_cost is not None and not has_price(call):
            return _denied(_unpriced(job.limits, call))
        if job is None or opened is None or (wanted := opened.wanted.reaching(most_use(call))) == opened.wanted:
            return NO_OBJECTION
        attempts, used = max(1, opened.attempt), job.most()
        others, most = used.minus(opened.wanted.times(attempts)), wanted.times(attempts)
        if (limit := job.limits.max_cost) is not None and others.cost + most.cost > limit:
            return _denied(
                f"the job may cost {money(limit)}: {money(others.cost)} are used, or may be by calls in flight, and this one may "
                f"cost {money(most.cost)}"
            )
        if (tokens := job.limits.max_tokens) is not None and others.tokens + most.tokens > tokens:
            return _denied(
                f"the job may use {tokens:,} tokens: {others.tokens:,} are used, or may be by calls in flight, and this one may "
                f"use {most.tokens:,}"
            )
        opened.wanted = wanted
        job.begin(self._key(call.effect), opened)
        return GuardVerdict(tokens=wanted.tokens, cost=plain(wanted.cost) if wanted.cost else "")

    def _model(self, call: GuardedCall, job: _Job) -> GuardVerdict:
        assert call.spec is not None
        limits, used = job.limits, job.most()
        if limits.max_turns is not None and used.calls >= limits.max_turns:
            return _denied(f"the job may ask models {limits.max_turns} times", TurnLimitExceeded)
        read, written, most_tokens = most_input_tokens(call.spec), call.spec.max_tokens, 0
        if limits.max_tokens is not None:
            left = limits.max_tokens - used.tokens - read
            if left <= 0:
                return _denied(
                    f"the job may use {limits.max_tokens:,} tokens: {used.tokens:,} are used, or may be by calls in flight, and this one "
                    f"would read {read:,}"
                )
            if written is None or written > left:
                written = most_tokens = min(left, ASSUMED_TOKENS if written is None else left)
        elif limits.max_cost is not None and written is None:
            written = most_tokens = ASSUMED_TOKENS
        usage = Usage(read, ASSUMED_TOKENS if written is None else written)
        price = None if call.price is None else call.price(call.name, usage)
        if limits.max_cost is not None and price is not None and used.cost + price > limits.max_cost:
            return _denied(
                f"the job may cost {money(limits.max_cost)}: {money(used.cost)} are used, or may be by calls in flight, and this one "
                f"may cost {money(price)}"
            )
        asks = limits.max_cost is not None and price is None
        if asks and limits.unpriced == "deny":
            return _denied(_unpriced(limits, call))
        wanted = Amounts(usage.total_tokens, price or Decimal(0), 1)
        job.begin(self._key(call.effect), _TreeCall("model", wanted, attempt=0 if asks else call.effect.attempt))
        cost = plain(wanted.cost) if wanted.cost else ""
        verdict = GuardVerdict(tokens=wanted.tokens, cost=cost, most_tokens=most_tokens)
        if not asks:
            return verdict
        why = {
            "rule": _RULE,
            "version": BUDGET,
            "reason": _unpriced(limits, call),
            "error": stored_name(BudgetExceeded),
        }
        return msgspec.structs.replace(verdict, decision=Decision.ASK, once=True, **why)  # each call costs anew

    def drop(self, effect: EffectId) -> None:
        job, _ = self._opened(effect)
        if job is not None:
            self._close(job, self._key(effect))
            job.apart.discard(effect.ordinal if effect.job in self._jobs else 0)
        self._within.pop(effect[:2], None)

    def _key(self, effect: EffectId) -> int | str:
        """Returns the key under which a call is stored in `_Job.open`: the ordinal of the effect. For a model call
        that a tool makes itself, the key is "job/ordinal", made from the id of that call.
        """
        return f"{effect.job}/{effect.ordinal}" if effect[:2] in self._within else effect.ordinal

    def _opened(self, effect: EffectId) -> tuple[_Job | None, _TreeCall | None]:
        """Returns the job whose limits apply to a call, and the open call. The job is None if no limits apply. The
        call is None if it is not open. For a model call that a tool makes itself, the job is the one that called the
        tool.
        """
        within = self._within.get(effect[:2])
        job = self._jobs.get(effect.job if within is None else within.job)
        return job, None if job is None else job.open.get(self._key(effect))

    def _decide_again(self, effect: EffectId) -> GuardVerdict:
        """Decides whether another attempt of a call may be made. Earlier attempts of the call are counted with the
        most that they may have used, because the provider may charge for them.
        """
        job, opened = self._opened(effect)
        if job is None or opened is None:
            return NO_OBJECTION
        if opened.kind == "model" and effect.attempt > 1:
            limits, used = job.limits, job.most()
            tokens, cost = used.tokens + opened.wanted.tokens, used.cost + opened.wanted.cost
            if limits.max_tokens is not None and tokens > limits.max_tokens:
                return _denied(
                    f"with attempts before it that may have been paid, it may use {tokens:,} of {limits.max_tokens:,} tokens"
                )
            if limits.max_cost is not None and cost > limits.max_cost:
                return _denied(
                    f"with attempts before it that may have been paid, it may cost {money(cost)} of {money(limits.max_cost)}"
                )
        if effect.attempt != opened.attempt:
            opened.attempt = effect.attempt
            job.begin(self._key(effect), opened)
        return NO_OBJECTION

    def reopen(self, effect: EffectId, agent: str, behalf: Behalf, decided: DecidedEffect) -> None:
        job = self._jobs.get(effect.job)
        if job is None or effect.ordinal in job.open or decided.is_child:  # a child counts by its own calls
            return
        verdict = decided.verdict
        if verdict.apart:
            job.apart.add(effect.ordinal)
            return
        kind: CallKind = "model" if verdict.about else "tool"
        wanted = Amounts(verdict.tokens, most_cost(verdict, decided.instead.values()), 1)
        job.begin(effect.ordinal, _TreeCall(kind, wanted, effect.attempt))

    def settle(self, entry: EffectResult, kind: CallKind, name: str) -> EffectResult:
        """Closes a call that has a result, and counts its usage. A call that a person did not approve is not counted.

        If the call began a child job that is not exempt from the limits, the entry gets the usage of the child and of
        its own children; and for a tool, that of the models that the tool has asked itself.
        """
        effect = EffectId(entry.job, entry.ordinal, entry.attempt)
        job, opened = self._opened(effect)
        key, within = self._key(effect), self._within.pop(effect[:2], None)
        if job is None:
            return entry
        if kind == "child":
            child = child_id(effect.job, effect.ordinal)
            if child not in self._jobs or effect.ordinal in job.apart:
                return entry
            job.children.discard(child)
            return msgspec.structs.replace(entry, usage=msgspec.msgpack.encode(TreeUse(*self._forget(child))))
        self._close(job, key)
        if opened is not None and effect.attempt:
            used = _used(opened, effect.attempt, entry.outcome, bytes(entry.body))  # type: ignore[arg-type]
            job.account.add(used)
            if within is not None:
                job.asked[within.ordinal] = job.asked.get(within.ordinal, NOTHING).plus(used)
        asked = job.asked.pop(effect.ordinal, None) if within is None else None
        if asked is None:
            return entry
        return msgspec.structs.replace(entry, asked=msgspec.msgpack.encode(TreeUse(*asked)))

    @staticmethod
    def _close(job: _Job, key: int | str) -> None:
        job.open.pop(key, None)
        job.account.release(key)

    # -- the journal --------------------------------------------------------------------------------------------------

    async def take(self, journal: Journal, jobs: Mapping[str, Body], calls: Sequence[OpenCall]) -> None:
        """Opens an account for each of these jobs that has limits. Usage that the journal records for them is counted.
        Reads the entries of trees in which a job has limits, or a job that has ended may have had some.
        """
        await run_to_end(run_in_thread(self._read, journal, jobs))
        await super().take(journal, jobs, calls)

    def _read(self, journal: Journal, jobs: Mapping[str, Body]) -> None:
        chosen = [
            job
            for job, body in jobs.items()
            if ((parent := parent_of(job)[0]) and parent not in jobs) or _limits_in(journal.load(body)) is not None
        ]
        for position, entry in entries_of_trees(journal, chosen) if chosen else ():
            if isinstance(entry, Begin) or (isinstance(entry, EffectResult) and entry.job in self._jobs):
                entry = msgspec.structs.replace(entry, body=journal.load(entry.body))
            if isinstance(entry, Begin) and is_retry(entry) and _limits_of(entry) is not None:
                # its account was forgotten at its END, or it had none before
                self.begin_job(entry, [each for at, each in whole_entries(journal, entry.job) if at < position])
            else:
                self._read_entry(entry)

    def _read_entry(self, entry: Entry) -> None:
        """Applies one entry of the journal to the accounts: it may begin a job, begin or end a call, or end the job.
        The caller must have loaded the body of the entry if it is a BEGIN or a RESULT.
        """
        if isinstance(entry, Begin):
            self._begun(entry)
        elif entry.job in self._jobs:
            self._again_by(entry)

    def _again_by(self, entry: Entry) -> None:
        job = self._jobs[entry.job]
        if isinstance(entry, Intent) and (verdict := decode_verdict(entry.note)) is not None:
            if verdict.apart:
                job.apart.add(entry.ordinal)
            if entry.kind == "call" and verdict.decision is not Decision.DENY:
                attempt = 0 if verdict.decision is Decision.ASK else 1
                effect = EffectId(entry.job, entry.ordinal, attempt)
                self.reopen(effect, "", Behalf(), DecidedEffect(verdict, attempt))
        elif isinstance(entry, Attempt):
            opened = job.open.get(entry.ordinal)
            if opened is not None and (verdict := decode_verdict(entry.note)) is not None:
                opened.wanted = opened.wanted.costing(max(opened.wanted.cost, most_cost(verdict)))
                job.begin(entry.ordinal, opened)
            elif opened is not None:
                opened.attempt = entry.attempt
                job.begin(entry.ordinal, opened)
        elif isinstance(entry, EffectResult):
            if entry.asked:
                job.account.add(_decode_asked(entry.asked).amounts)
            if entry.usage and (used := _child_use(entry.usage)) is not None:
                child = child_id(entry.job, entry.ordinal)
                job.children.discard(child)
                # usage that was read from the child's own entries, and counts here already
                known = self._forget(child) if child in self._jobs else NOTHING
                job.account.add(used.amounts.minus(known))
            elif entry.ordinal in job.open:
                self.settle(entry, job.open[entry.ordinal].kind, "")
        elif isinstance(entry, End):
            self.end_job(entry.job, 0)


def most_use(call: GuardedCall) -> Amounts:
    """Returns the most that a model call may use: an upper bound for what the model reads, and the request's limit
    for the length of the answer, which is 4096 tokens if the request has none. The cost is that of the dearest model
    that may be asked (`GuardedCall.price`), and 0 if the price is not known. For a call that is no model call, all
    amounts are 0.
    """
    if call.spec is None:
        return Amounts()
    written = call.spec.max_tokens
    usage = Usage(most_input_tokens(call.spec), ASSUMED_TOKENS if written is None else written)
    cost = None if call.price is None else call.price(call.name, usage)
    return Amounts(usage.total_tokens, cost or Decimal(0), 1)


def _used(opened: _TreeCall, attempt: int, outcome: str, body: bytes) -> Amounts:
    """Returns the usage of a call that has ended. `attempt` is the number of its last attempt, and `outcome` and
    `body` are the result of that attempt. Each earlier attempt is counted with the most that it may have used,
    because the provider may charge for it. What was not sent, or was turned away, is no call, and neither is an answer of the
    cache.
    """
    most = opened.most(attempt)
    if opened.kind != "model":
        return NOTHING if attempt == 1 and was_not_sent(outcome, body) else most
    before, wanted = opened.most(attempt - 1) if attempt > 1 else NOTHING, opened.wanted
    if unpaid(outcome, body):
        return before
    if outcome != "ok":
        return most
    answer = msgspec.convert(unpack(body), Completion)
    if answer.cached:
        return before
    usage, cost = reported_use(answer, wanted)
    return Amounts(before.tokens + usage.total_tokens, before.cost + (cost or 0), 1)


def reported_use(answer: Completion | AnswerUse, wanted: Amounts) -> tuple[Usage, Decimal | None]:
    """Returns the tokens and the cost with which an answer is counted in a budget. The cost is None if it is not known.
    `wanted` contains the amounts that were reserved for the call.

    - Usually the tokens and the cost are those that the answer reports. Parts that it reports beside input and output
      are counted too (`counted_usage`).
    - If the answer reports no tokens, the tokens in `wanted` are counted. The cost is the reported cost, or the cost in
      `wanted` if none is reported.
    - If the answer reports impossible numbers, such as negative tokens, the tokens and the cost in `wanted` are counted.
      If only the cost is impossible, the cost in `wanted` is counted.

    So a server with wrong reports cannot reduce the usage of a budget.
    """
    usage = None if answer.usage is None else counted_usage(answer.usage)
    cost, is_lie = answer.cost, usage is None and answer.usage is not None
    if (cost is not None and not is_cost(cost)) or is_lie or (usage is None and cost is None):
        cost = wanted.cost or None
    return Usage(wanted.tokens) if usage is None else usage, cost


def has_price(call: GuardedCall) -> bool:
    """Returns True if the price of the model to which the call sends its request is known."""
    return call.price is not None and call.price(call.name, Usage(1, 1)) is not None


def _unpriced(limits: BudgetSpec, call: GuardedCall) -> str:
    return f"the job may cost {money(limits.max_cost or 0)}, and the price of {call.name} is not known: {PRICES_HINT}"


def _denied(reason: str, error: type[Exception] = BudgetExceeded) -> GuardVerdict:
    return GuardVerdict(Decision.DENY, _RULE, BUDGET, reason, error=stored_name(error))


_decode_use = msgspec.msgpack.Decoder(TreeUse | list).decode


_decode_asked = msgspec.msgpack.Decoder(TreeUse).decode


def _child_use(usage: bytes) -> TreeUse | None:
    used = _decode_use(usage)
    return used if isinstance(used, TreeUse) else None


def _limits_of(begin: Begin) -> BudgetSpec | None:
    """Returns the limits of a job that a kernel runs: the field `budgets` of the request to the kernel. The request is
    the input of the job (`begin.body`). Returns None if the input is not a request to a kernel, or if the request sets
    no limit for tokens, cost, model calls or tool calls.
    """
    return _limits_in(begin.body) if begin.agent and isinstance(begin.body, bytes) else None


def _limits_in(body: bytes) -> BudgetSpec | None:
    asked = unpack(body) if body[:1] in _FIELDS else None
    if not isinstance(asked, dict) or not isinstance(said := asked.get("budgets"), dict):
        return None
    limits = msgspec.convert(said, BudgetSpec, strict=False)
    return limits if any(getattr(limits, name) is not None for name in _COUNTED) else None
