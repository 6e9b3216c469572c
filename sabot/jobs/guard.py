"""The contract of guards. A guard decides whether an effect may be made. It decides once, before the effect is made,
and the INTENT entry records the decision.

   ask ─▶ decide ─▶ INTENT, with the verdict ─┬ allow, warn ─────▶ made                            RESULT ─▶ settle
                                              ├ redact, degrade ─▶ made with the changes of the verdict
                                              ├ ask ─────────────▶ a question to a person, then made or denied
                                              └ deny ────────────▶ RESULT, an error that the function sees

A job that runs again over its history finds the earlier verdicts there. So a policy that has changed meanwhile only
decides on later effects. Another attempt of a job (`on_error="retry"`, or a dead letter that is sent again) asks again
for effects that a rule had denied, and the guard decides on them anew. If a person has refused an effect, it stays
refused.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from decimal import Decimal
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec

from sabot.engine.calls.arguments import all_given, call_arguments, converted_arguments, values_left_out, with_arguments
from sabot.engine.calls.effects import EffectId
from sabot.engine.calls.judging import ValueCode
from sabot.engine.calls.model_requests import RequestSpec
from sabot.engine.calls.tools import Tool
from sabot.engine.calls.usage import Usage
from sabot.errors import UNREADABLE, CorruptJournal, UserError, message_of, short_repr
from sabot.jobs.masking import mask, mask_default
from sabot.jobs.values import UNCHANGEABLE, contents_of, copied, pack
from sabot.journal.base import Journal
from sabot.journal.entries import UNSENT, Attempt, Begin, Body, EffectResult, Entry

CallKind = Literal["tool", "model", "child"]

After = Literal["", "degraded", "again", "unrecorded"]
"""The values of `GuardedCall.after`."""

Price = Callable[[str, Usage], Decimal | None]
"""A function that returns the price in US dollars of this usage of this model; None if the price is unknown."""

CONFIRM = "confirm"
"""The type of the question to a person whether an effect may be made. The INTENT entry of the question has the ordinal
of the effect.
"""


BUDGET = "budget"
"""What stands in `GuardVerdict.version` if a budget has decided; a policy has the version of its rules there."""

APART: ContextVar[bool] = ContextVar("APART", default=False)
"""True in code whose effects the job's own budget does not count."""


class Behalf(NamedTuple):
    """The tenant and the actor for whom a job runs. Checkpoints contain it, so new fields are only added at the end.

    - `scope`: the tenant; "" if the tenant is the app itself.
    - `principal`: the actor, such as a user; "" if there is none.
    - `labels`: words that describe the job's input, such as "untrusted". Rules can check them.
    - `session`: the session (the conversation) to which the job belongs; "" if there is none.
    """

    scope: str = ""
    principal: str = ""
    labels: tuple[str, ...] = ()
    session: str = ""


NOBODY = Behalf()
"""A Behalf that names no actor, with the app as the tenant."""


class Decision(StrEnum):
    """The decision of a guard on a call. The members are in order from the mildest to the strictest. If several
    guards decide, the strictest decision applies.

    - `ALLOW`: the call is made.
    - `WARN`: the call is made, and a warning is logged.
    - `REDACT`: the call is made, and some texts in its arguments are hidden from it.
    - `DEGRADE`: the call is made, and asks another model.
    - `ASK`: a person decides whether the call is made.
    - `DENY`: the call is not made.
    """

    ALLOW = "allow"
    WARN = "warn"
    REDACT = "redact"
    DEGRADE = "degrade"
    ASK = "ask"
    DENY = "deny"

    @property
    def strictness(self) -> int:
        """The rank of the decision: 0 for ALLOW, and higher for each stricter decision."""
        return _STRICTNESS[self]


_STRICTNESS = {each: at for at, each in enumerate(Decision)}


class GuardVerdict(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The verdict of a guard on one call. It is stored in `Intent.note`; therefore new fields are only added at the
    end, with a default.

    - `rule`: the rule that decided, or "" if none matched. `version`: the version of the rules.
    - `reason`: the reason, as a text for people. `notes`: the reasons of other guards, whose verdicts were not
      stricter.
    - `about`: for a call of a model, the model about which the guard has decided. `model`: the model that the call has
      to ask instead; "" to keep that model.
    - `hide`: regular expressions. Each match in the texts of the call's arguments is replaced by `***`.
    - `wait_s`: for ASK, the seconds that a person has for the answer; 0 for no limit.
    - `error`: for DENY, the type of the error that the call gets.
    - `tokens`, `cost`: the maximum usage that is reserved for the call: its tokens, and its US dollars as a decimal
      number.
    - `most_tokens`: the limit on the tokens that a model may write; 0 to keep the limit of the request.
    - `apart`: True if the call is not counted in the job's own budget.
    - `editable`: False if the person who approves the call may not change its arguments.
    - `once`: True if the person who approves the call cannot approve later calls too ("always").
    - `named`: True if the body of the INTENT entry has all arguments of the tool by name, with all of their fields. A
      parameter or field that it lacks was then added by a later program.
    - `terms`: for ASK, a digest of all that the rule declares; "" if the guard gives none. An approval of later calls holds
      for a rule with the same terms.
    - `hidden`: for ASK, the paths in the arguments at which the question shows `***` in place of a value that the tool gets;
      None if it shows no `***`, or if an earlier version has written the entry.
    """

    decision: Decision = Decision.ALLOW
    rule: str = ""
    version: str = ""
    reason: str = ""
    model: str = ""
    hide: tuple[str, ...] = ()
    wait_s: float = 0.0
    error: str = "PolicyDenied"
    tokens: int = 0
    cost: str = ""
    notes: tuple[str, ...] = ()
    about: str = ""
    most_tokens: int = 0
    apart: bool = False
    editable: bool = True
    once: bool = False
    named: bool = False
    terms: str = ""
    hidden: tuple[str, ...] | None = None

    @property
    def asked_by(self) -> str:
        """The rule to whose later questions an approval ("always") is the answer too: its terms, or its name if it has
        none. A verdict of an earlier version has no terms, so its approval holds for no rule of today.
        """
        return self.terms or self.rule

    @property
    def changes(self) -> bool:
        """True if the verdict changes the call before it is made."""
        return bool(self.model or self.hide or self.most_tokens)

    def spec(self, spec: RequestSpec) -> RequestSpec:
        """Returns a copy of the request to a model, with the changes that this verdict requires: another model, and
        another limit on the tokens that the model may write.
        """
        spec = msgspec.structs.replace(spec, model=self.model) if self.model else spec
        return msgspec.structs.replace(spec, max_tokens=self.most_tokens) if self.most_tokens else spec

    def and_then(self, other: "GuardVerdict") -> "GuardVerdict":
        """Combines this verdict with the verdict `other` of the next guard in the chain. The decision, the rule and the
        reason are those of the stricter verdict, or of this one if the two are equally strict. The changes to the call
        are those of both.
        """
        first, second = (self, other) if self.decision.strictness >= other.decision.strictness else (other, self)
        noted = (*first.notes, *((second.reason,) if second.reason else ()), *second.notes)
        return msgspec.structs.replace(
            first,
            version=" ".join(dict.fromkeys((*self.version.split(), *other.version.split()))),
            model=other.model or self.model,
            hide=(*self.hide, *(each for each in other.hide if each not in self.hide)),
            tokens=max(self.tokens, other.tokens),
            cost=other.cost or self.cost,
            notes=noted,
            most_tokens=min(filter(None, (self.most_tokens, other.most_tokens)), default=0),
            apart=self.apart or other.apart,
            editable=self.editable and other.editable,
        )


NO_OBJECTION = GuardVerdict()
"""The verdict of a guard that allows a call and changes nothing."""

_NONE_INSTEAD: Mapping[int, GuardVerdict] = MappingProxyType({})  # no other model was asked in place of the first one


class DecidedEffect(NamedTuple):
    """The guard's decision on an effect that has no result yet.

    - `verdict`: the decision.
    - `attempt`: the number of the last attempt; 0 if a person still has to approve the first attempt.
    - `recorded`: the number of the last attempt whose usage the journal has; 0 for none.
    - `instead`: a call may change to another model, for example if its first provider fails. These are the verdicts on
      such models. The key is the number of the first attempt with that model.
    - `is_child`: True if the effect begins a child job.
    """

    verdict: GuardVerdict
    attempt: int
    recorded: int = 0
    instead: Mapping[int, GuardVerdict] = _NONE_INSTEAD
    is_child: bool = False


OpenCall = tuple[EffectId, str, Behalf, DecidedEffect]
"""A call without a result that was open when the app stopped: its id, the id of the job's agent, for whom the job runs,
and the decision."""


def most_cost(verdict: GuardVerdict, instead: Iterable[GuardVerdict] = ()) -> Decimal:
    """Returns the cost in US dollars that these verdicts reserve for a call, which is the highest one among them.
    `instead`: the verdicts on the models that the call has asked instead of its own (`DecidedEffect.instead`).
    """
    return max(Decimal(each.cost or 0) for each in (verdict, *instead))


class GuardedCall(msgspec.Struct, frozen=True):
    """A call on which a guard decides.

    - `effect`: the id of the call. Its attempt is 0 if a person has to approve the call, because an earlier guard of
      the chain requires it. The guards then decide again, on the first attempt after the approval.
    - `kind`: "tool", "model" or "child". `name`: the name of the tool, of the model, or of the child's agent.
    - `agent`: the id of the job's agent. `behalf`: the tenant and the actor for whom the job runs.
    - `effect_class`: the class of the tool (`EffectClass`), by which the call may or may not be repeated. `tool`: the
      tool itself.
    - `args`, `kwargs`: the arguments of a tool; for a child, `args` is a tuple of its input.
    - `spec`, `price`: for a model, the request, and a function that returns the price of its tokens.
    - `labels`: the labels of all data that the job has received so far (see `Behalf.labels`).
    - `apart`: True if the call is not counted in the job's own budget.
    - `within`: if a tool calls a model or another tool itself, without the job, the effect that runs it; else None.
    - `standing`: the rules (`GuardVerdict.asked_by`) whose questions about this tool, model or agent a person has answered
      for the whole job, session or scope ("always"), each with the words that say who has done it. A PolicyEngine does not
      ask by them again.
    - `asked_under`: for the first attempt after a person has approved the call, the version of the rules that have
      asked; else "".
    - `after`: "" for a call on which nobody has decided yet. "degraded" if the call was allowed before, and now asks
      another model; "again" if it was allowed before, and this is another attempt, or the first one after a person has
      approved it; "unrecorded" if it was allowed before, is in no journal, and is sent next.
    """

    effect: EffectId
    kind: CallKind
    name: str
    agent: str = ""
    behalf: Behalf = NOBODY
    effect_class: str = ""
    tool: Tool | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = msgspec.field(default_factory=dict)
    spec: RequestSpec | None = None
    price: Price | None = None
    labels: frozenset[str] = frozenset()
    apart: bool = False
    within: EffectId | None = None
    standing: Mapping[str, str] = msgspec.field(default_factory=dict)
    after: After = ""
    asked_under: str = ""
    _seen: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def scope(self) -> str:
        """The tenant. If the job names none, it is the app."""
        return self.behalf.scope or self.agent.rpartition(".")[0]

    @property
    def principal(self) -> str:
        """The actor, such as a user; "" if there is none."""
        return self.behalf.principal

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments by name, as the call will get them. For a tool, the names are those of its parameters, and
        those that the caller leaves out have their default values. For a child, the dict is {"message": …}. For a
        model, it is empty.
        """
        found: Mapping[str, Any] | None = self._seen.get("arguments")
        if found is not None:
            return found
        if self.tool is None or self.kind != "tool":
            return {"message": self.args[0]} if self.args and self.kind == "child" else self.kwargs
        found = self._seen["arguments"] = self._unseen(self.tool)
        self._seen["as given"] = self.tool.parameters is None and _cannot_change(found)
        return found

    def _unseen(self, tool: Tool) -> Mapping[str, Any]:
        found: Mapping[str, Any] | None = self._seen.get("unseen")
        return own_arguments(tool, self.args, self.kwargs) if found is None else found

    def contents(self) -> Any:
        """Returns a form of everything in the call that a rule could change, such as an item of a list. Two forms of one
        call are equal if nothing has changed between them.
        """
        found: Mapping[str, Any] = self.kwargs
        if self.tool is not None and self.kind == "tool":
            # the same values for a rule that looks later: a default may be made anew each time
            found = self.arguments if self.was_seen else self._seen.setdefault("unseen", self._unseen(self.tool))
        func = None if self.tool is None else self.tool.func
        by_place = func.args if isinstance(func, partial) else ()  # `found` has copies of them
        with ValueCode(self.name):
            return contents_of((self.args, self.kwargs, found, self.spec, by_place))

    @property
    def given(self) -> Mapping[str, Any]:
        """The arguments as in `arguments`, without those that the caller leaves out."""
        if self.tool is None or self.kind != "tool":
            return self.arguments
        return call_arguments(self.tool, self.args, self.kwargs, filled=False)

    @property
    def was_seen(self) -> bool:
        """True if a rule has looked at the arguments, so that the call must be made with those that it has seen."""
        return "arguments" in self._seen

    def changed(self, verdict: GuardVerdict) -> "GuardedCall":
        """Returns a copy of the call with the changes that this verdict requires: another model, another limit on the
        tokens that the model may write, and hidden texts. Raises UserError if texts cannot be hidden in an argument.

        The copy also has the defaults at which a rule has looked, if another process would fill them in, as an MCP server
        does, or if another call could change them, such as a list.
        """
        if not verdict.changes and (not self.was_seen or self._seen["as given"]):
            return self
        spec, args, kwargs = self.spec, self.args, self.kwargs
        is_tool = self.tool is not None and self.kind == "tool"
        if self.tool is not None and is_tool and (self.was_seen or verdict.hide):
            args, kwargs = sent_arguments(
                self.tool, args, kwargs, verdict.hide, self.arguments if self.was_seen else None
            )
        if not verdict.changes and kwargs is self.kwargs:
            return self
        if spec is not None:
            spec = mask(verdict.spec(spec), verdict.hide)
        if not is_tool:
            with ValueCode(self.name):
                args, kwargs = mask((args, kwargs), verdict.hide)
        name = verdict.model if verdict.model and self.kind == "model" else self.name
        return msgspec.structs.replace(self, name=name, spec=spec, args=args, kwargs=kwargs, _seen={})


UseOf = Callable[[EffectId, str, Behalf, str, bytes, int], bytes]
"""A function that returns, as bytes, the usage that the answer of a model reports, for its RESULT entry. Its arguments
are the effect, the id of the job's agent, the tenant and the actor, the name of the model, the packed answer, and the
time in milliseconds since 1970."""


def own_arguments(tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the arguments of a call as `call_arguments` does. Defaults that a call could change, such as a list, are
    copies: all calls of the tool share the default, and another call could change it after a rule has seen it. An object
    that nobody can record, such as a client, is no value, and stays itself.
    """
    if (given := all_given(tool, args, kwargs)) is not None:  # so there is no default, nor code of one
        return given
    with ValueCode(tool.name):
        found = call_arguments(tool, args, kwargs)
        if not _cannot_change(found):
            for name, each in values_left_out(tool, args, kwargs, found).items():
                if type(each) not in UNCHANGEABLE:
                    with suppress(UserError):
                        found[name] = _own(each, name)
    return found


def _cannot_change(arguments: Mapping[str, Any]) -> bool:
    return UNCHANGEABLE.issuperset(map(type, arguments.values()))


def own_tool(tool: Tool) -> Tool:
    """Returns the tool for one call. It has copies of the values that a `functools.partial` gives it by place and the program
    could change while a rule decides, such as a list. A value that cannot be recorded, such as a client, stays itself.
    """
    func = tool.func
    if not isinstance(func, partial) or UNCHANGEABLE.issuperset(map(type, func.args)):
        return tool
    given = list(func.args)
    with ValueCode(tool.name):
        for place, each in enumerate(given):
            with suppress(UserError):
                given[place] = _own(each, f"argument {place}")
    return replace(tool, func=partial(func.func, *given, **func.keywords))


def _own(value: Any, name: str) -> Any:
    """Returns a copy of a default for one call. Raises UserError for an object that nobody can record or copy."""
    pack(value, name)
    return copied(value, name)


def sent_arguments(
    tool: Tool,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    hide: Sequence[str],
    seen: Mapping[str, Any] | None = None,
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Returns the arguments with which a tool is called, after a guard has decided. Matches of the regular expressions
    `hide` are replaced by `***` in them, also in the defaults of the tool. Returns the same objects if nothing changes.

    `seen`: the arguments at which a rule has looked (`own_arguments`); None if none has. Defaults of a tool of another
    process, such as an MCP server, are then sent with the call, because that process may have others by now. So are
    defaults that another call may change.
    """
    plain = seen is None or _cannot_change(seen)
    if plain and not hide and tool.parameters is None:
        return args, kwargs
    with ValueCode(tool.name):
        changed: dict[str, Any] = {}
        before = args, kwargs
        if hide:
            left_out = values_left_out(tool, args, kwargs)
            args, kwargs = mask((args, kwargs), hide)
            changed = {
                name: shown for name, each in left_out.items() if (shown := mask_default(each, hide)) is not each
            }
            args, kwargs = with_arguments(tool, args, kwargs, changed)
            for name, each in converted_arguments(tool, args, kwargs).items():
                if mask_default(each, hide) is not each:
                    raise UserError(f"validate_call of {tool.name} makes a text of {name} that has to be hidden")
        if seen is None:
            return args, kwargs
        if tool.parameters is not None:
            filled = call_arguments(tool, args, kwargs)
            return args, kwargs if filled == kwargs else filled
        # validate_call copies its defaults itself, and validates values that are given
        if not plain and not converted_arguments(tool, *before):
            for name, each in values_left_out(tool, *before, seen).items():
                if name not in changed and type(each) not in UNCHANGEABLE:
                    with suppress(UserError):  # no value, or one that a functools.partial gives by its place
                        args, kwargs = with_arguments(tool, args, kwargs, {name: _own(each, name)})
        return args, kwargs


class EffectGuard:
    """A policy that decides which effects jobs may make. Its methods are called on the event loop of the host
    (`JobHost`), and must not block it. Only the coroutines and awaitables that they return may wait.

    The methods in the order of a job: `catch_up` and `take`, when the app starts; `begin_job`, `decide`, `settle` or `drop` for each
    effect, `end_job`; `leave`, before entries are deleted; and `close`. The judges of calls that are not effects of a
    job (`GuardJudge`) call `decide`, `settle` and `drop` too.
    """

    name: str = ""
    """The name by which requests of a kernel may choose the guard (`PolicyRef`)."""

    def check_names(
        self,
        functions: Sequence[Callable[..., Any]],
        agents: Collection[str],
        where: str,
        without_jobs: Mapping[str, Sequence[Callable[..., Any]]] | None = None,
    ) -> None:
        """Checks that the rules of the guard name only tools, models and agents that exist, and that they ask no person
        about a tool of an agent without jobs. Raises UserError otherwise. Called when the app starts.

        `functions`: the functions of the agents. `agents`: the ids of the agents. `where`: the name of the app or of
        the kernel, for messages. `without_jobs`: the functions of the agents without jobs, by the ids of the agents.
        """

    async def catch_up(self, journal: Journal) -> Collection[str] | None:
        """Reads from the journal what the guard lacks, when the app starts, before `take`. Returns the open jobs that the guard
        has to take up before any job runs, and perhaps others that have ended; None for all. By default returns none.
        """
        return ()

    async def take(self, journal: Journal, jobs: Mapping[str, Body], calls: Sequence[OpenCall]) -> None:
        """Takes up open jobs of a journal before any of them goes on: when the app starts, and when a worker gets the
        jobs of another one. Reads the earlier results that the guard needs, such as their usage, and restores the
        reservations for the calls without a result. By default only calls `reopen` for each of `calls`.

        `jobs`: by the id of each job the input of its last BEGIN entry; whole trees, but for jobs that have ended.
        """
        for call in calls:
            self.reopen(*call)

    def begin_job(self, begin: Begin, taken: Sequence[Entry] = ()) -> None:
        """Prepares for a job, for example by reserving its budget; does nothing by default. Called before the BEGIN
        entry of the job is recorded: for a new job, and for a job that has failed and now begins again with a replay
        of its history. If that is a retry of a kernel's job, it is called when the earlier entries were read.

        `taken`: the entries that follow `begin` if the job continues from a checkpoint of another job; for a retry, the
        earlier entries of the job.
        """

    def reopen(self, effect: EffectId, agent: str, behalf: Behalf, decided: DecidedEffect) -> None:
        """Restores the reservation for a call that has no result yet, and on which the guard has decided before the
        app or the job was started again. Does nothing if the reservation exists already.

        `decided`: the decision, and the number of the last attempt.
        """

    def decide(self, call: GuardedCall) -> GuardVerdict | Awaitable[GuardVerdict]:
        """Returns the verdict on a call. If the decision takes time, returns an awaitable of the verdict; other jobs
        continue meanwhile, and the call may have ended before the awaitable is done. If the method or the awaitable
        raises an error, the call is denied.

        A guard that has allowed the call decides on it again in three cases (`GuardedCall.after`). It then denies the
        call, or allows it; its other decisions are not looked at:

        - "degraded": the call now asks another model, because a guard has replaced the first one (the decision
          DEGRADE), or because the call's first provider has failed. If the other model may cost more, the guard
          reserves the difference. If it denies the model, earlier reservations remain.
        - "again": another attempt of the call, or the first one after a person has approved it. `effect` has the
          number of the new attempt.
        - "unrecorded": the attempt `effect` of a model call that no journal has, such as one of a stream, is sent next.
          After a crash nobody calls `reopen` for it, so a guard that counts it has to store it durably now.
        """
        raise NotImplementedError

    def drop(self, effect: EffectId) -> None:
        """Withdraws the decision on this call, and releases the tokens and the cost that were reserved for it. Called
        in these cases:

        - The decision has taken time. Meanwhile the job has stopped waiting for the call or has left memory, or the
          host has begun to stop.
        - Another guard of the same chain has denied the call.
        - The job no longer awaits the call, and a person has not approved it yet.
        - The call is not an effect of a job, and the verdict is DENY or ASK, or the call was cancelled before the
          verdict was there.

        It may be called for a call on which this guard has not decided, and then has to do nothing.
        """

    def settle(self, entry: EffectResult, kind: CallKind, name: str) -> EffectResult:
        """Handles the result of a call of a tool, a model or an agent, before its RESULT entry is recorded. Replaces
        the tokens and the cost that were reserved for the call by those that it has used. Returns the entry, with what
        the guard knows of them: `usage`, what the call has used, and `asked`, what the models have used that a tool has
        asked itself. Only one guard of a chain sets each of these.

        `kind`, `name`: "tool", "model" or "child", and the name of the tool or model. The body of the entry is loaded.
        """
        return entry

    def end_job(self, job_id: str, at_ms: int) -> bytes:
        """Drops the calls without a result of a job that ends. It is unknown what these have used. Returns, as bytes,
        the most that they may have used, for the END entry of the job; b"" by default, and for a job that has ended
        before. Called before that entry is recorded, and again when the parent of the job is told.
        """
        return b""

    async def leave(self) -> None:
        """Waits until everything that the guard has computed from results, such as sums of costs, is durable outside
        of the journal. After that, the journal may remove the results. Returns at once by default.
        """

    async def close(self) -> None:
        """Closes the guard; does nothing by default. Called when the host closes, after it has removed all jobs from
        memory.
        """


class EffectGuards(EffectGuard):
    """A chain of guards that acts as one guard. Each guard gets the call as the guards before it have changed it, and
    the strictest decision applies. If a guard replaces the model of the call, the guards before it also decide on the
    new model.
    """

    def __init__(self, guards: Sequence[EffectGuard]) -> None:
        self._guards = tuple(guards)
        self.declared = frozenset().union(*map(declared_by, self._guards))

    def decide(self, call: GuardedCall) -> GuardVerdict | Awaitable[GuardVerdict]:
        return self._other_model(call) if call.after == "degraded" else self._from(0, call, None)

    async def _other_model(self, call: GuardedCall) -> GuardVerdict:
        verdict, _ = await self._stands_in(call, NO_OBJECTION, [call.name], len(self._guards), 0)
        return verdict

    def _from(self, at: int, call: GuardedCall, so_far: GuardVerdict | None) -> GuardVerdict | Awaitable[GuardVerdict]:
        # no coroutine while the guards answer at once, as they mostly do: it would delay the effect by a turn of the loop
        while at < len(self._guards):
            found = judge_call(self._guards[at], call)
            if not isinstance(found, GuardVerdict):
                return self._awaited(found, at, call, so_far)
            if at and degraded_to(call, found):  # the guards before it have judged the model that it replaces
                return self._degraded(found, at, call, so_far)
            so_far, call = self._joined(at, call, so_far, found)
            if so_far.decision is Decision.DENY:
                break
            at += 1
        return NO_OBJECTION if so_far is None else so_far

    async def _awaited(
        self, found: Awaitable[GuardVerdict], at: int, call: GuardedCall, so_far: GuardVerdict | None
    ) -> GuardVerdict:
        return await self._degraded(await found, at, call, so_far)

    async def _degraded(
        self, found: GuardVerdict, at: int, call: GuardedCall, so_far: GuardVerdict | None
    ) -> GuardVerdict:
        """Handles the verdict `found` of guard number `at`, and asks the guards after it. Returns the verdict of the
        whole chain. If `found` replaces the model of the call, first lets the guards before number `at` decide on the
        new model.

        `so_far`: the combined verdict of the guards before number `at`; None if there are none.
        """
        first = call.name
        so_far, call = self._joined(at, call, so_far, found)
        if call.name != first:
            so_far, call = await self._stands_in(call, so_far, [first, call.name], at, at + 1)
        if so_far.decision is Decision.DENY:
            return so_far
        rest = self._from(at + 1, call, so_far)
        return rest if isinstance(rest, GuardVerdict) else await rest

    async def _stands_in(
        self, call: GuardedCall, so_far: GuardVerdict, asked: list[str], count: int, dropped: int
    ) -> tuple[GuardVerdict, GuardedCall]:
        """Lets guards decide on a call that now asks another model. Asks the first `count` guards in order, and stops
        if one denies the call. If one of them replaces the model again, begins again with the first guard; the guard
        that chose the replaced model is then asked too. Returns the combined verdict, and the call with the changes of
        that verdict.

        - `so_far`: the combined verdict up to now.
        - `asked`: the names of the models, from the first one that the call asked to the one that it asks now. The call
          is denied if a guard chooses one of them again.
        - `dropped`: the number of guards that have decided on the call in this chain. If the call is denied, their
          `drop` is called. It is 0 for a call that is already running.
        """
        place, first, effect = 0, asked[0], call.effect
        while place < count and so_far.decision is not Decision.DENY:
            # a call that is under way keeps its attempt
            asked_call = msgspec.structs.replace(call, effect=call.effect if dropped else effect, after="degraded")
            answer = judge_call(self._guards[place], asked_call)
            said = for_degraded(answer if isinstance(answer, GuardVerdict) else await answer, call.name, first)
            place += 1
            if model := degraded_to(call, said):
                if model in asked:
                    said = ring_of([*asked, model], said.rule, said.version)
                asked.append(model)
                # all guards decide on this model, also the one that chose the model before
                place, count = 0, max(count, dropped)
            so_far, call = self._joined(dropped, call, so_far, said)
        return so_far, call

    def _joined(
        self, at: int, call: GuardedCall, so_far: GuardVerdict | None, found: GuardVerdict
    ) -> tuple[GuardVerdict, GuardedCall]:
        if found is NO_OBJECTION:  # as of most guards: nothing to join
            return (found if so_far is None else so_far), call.changed(found)
        if found.decision is Decision.DENY and not call.after:  # else it was allowed before, and its result settles it
            for guard in self._guards[:at]:
                guard.drop(call.effect)
        call = call.changed(found)
        if found.decision is Decision.ASK:  # no attempt yet: when a person has approved it, all guards decide again
            call = msgspec.structs.replace(call, effect=EffectId(*call.effect[:2], attempt=0))
        return (found if so_far is None else so_far.and_then(found)), call

    async def catch_up(self, journal: Journal) -> Collection[str] | None:
        found = [await guard.catch_up(journal) for guard in self._guards]
        return None if None in found else {job for jobs in found for job in jobs or ()}

    async def take(self, journal: Journal, jobs: Mapping[str, Body], calls: Sequence[OpenCall]) -> None:
        for guard in self._guards:
            await guard.take(journal, jobs, calls)

    def begin_job(self, begin: Begin, taken: Sequence[Entry] = ()) -> None:
        for guard in self._guards:
            guard.begin_job(begin, taken)

    def reopen(self, effect: EffectId, agent: str, behalf: Behalf, decided: DecidedEffect) -> None:
        for guard in self._guards:
            guard.reopen(effect, agent, behalf, decided)

    def drop(self, effect: EffectId) -> None:
        for guard in self._guards:
            guard.drop(effect)

    def settle(self, entry: EffectResult, kind: CallKind, name: str) -> EffectResult:
        for guard in self._guards:
            entry = guard.settle(entry, kind, name)
        return entry

    def end_job(self, job_id: str, at_ms: int) -> bytes:
        used = [guard.end_job(job_id, at_ms) for guard in self._guards]
        return next(filter(None, used), b"")

    async def leave(self) -> None:
        for guard in self._guards:
            await guard.leave()

    async def close(self) -> None:
        for guard in self._guards:
            await guard.close()


def declared_by(guard: EffectGuard | None) -> frozenset[str]:
    """Returns which of the options "policy" and "budgets" of an app or kernel this guard stands for. A guard that does not tell is one
    of a user, who gives it as `policy=`.
    """
    return frozenset() if guard is None else getattr(guard, "declared", frozenset({"policy"}))


def checked_guard(given: Any) -> EffectGuard | None:
    """Returns the given policy of an app or a kernel unchanged. Raises UserError if it is not an EffectGuard."""
    if given is not None and not isinstance(given, EffectGuard):
        raise UserError(f"policy={short_repr(given)}", hint="a PolicyEngine: PolicyEngine([ToolPolicy(…)])")
    return given


def guard_of(guards: Sequence[EffectGuard]) -> EffectGuard | None:
    """Returns one guard that asks all of `guards`. Returns None if `guards` is empty; then all effects are allowed."""
    return EffectGuards(guards) if len(guards) > 1 else next(iter(guards), None)


def degraded_to(call: GuardedCall, verdict: GuardVerdict) -> str:
    """Returns the name of the model by which the verdict replaces the call's own model. Returns "" if the verdict
    denies the call or does not change its model.
    """
    other = call.kind == "model" and verdict.decision is not Decision.DENY and verdict.model != call.name
    return verdict.model if other else ""


def for_degraded(verdict: GuardVerdict, model: str, asked: str) -> GuardVerdict:
    """Returns a copy of the verdict whose reason also says that `model` is asked in place of `asked`. Returns the
    same verdict if it has no reason, or if the two models are the same. `verdict`: a guard's verdict on `model`.
    """
    if not verdict.reason or model == asked:
        return verdict
    return msgspec.structs.replace(verdict, reason=f"{model}, in place of {asked}: {verdict.reason}")


def ring_of(models: Sequence[str], rule: str = "", version: str = "") -> GuardVerdict:
    """Returns a verdict that denies a call, because its guards replace models in a circle: A by B, and B by A.
    `models`: the models in this order, up to the first one that occurs twice. `rule`, `version`: the rule that has
    closed the circle, and the version of the rules.
    """
    reason = f"models stand in for each other in a ring: {', '.join(models)}"
    return GuardVerdict(Decision.DENY, rule, version, reason)


def judge_call(guard: EffectGuard, call: GuardedCall) -> GuardVerdict | Awaitable[GuardVerdict]:
    """Asks the guard to decide on the call. Returns the verdict, or an awaitable of it. If the guard raises an error, or
    if the changes of its verdict cannot be made to the call, returns a verdict that denies the call and names the error.
    """
    try:
        found = guard.decide(call)
        if isinstance(found, GuardVerdict):
            call.changed(_sound(found))
            return found
    except Exception as error:  # a rule is the user's code
        return _broken(error)
    return _judged_later(found, call)


async def _judged_later(found: Awaitable[GuardVerdict], call: GuardedCall) -> GuardVerdict:
    try:
        verdict = await found
        call.changed(_sound(verdict))
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return _broken(error)  # the error of something that the rule has awaited
    except Exception as error:  # a rule is the user's code
        return _broken(error)
    return verdict


def denial_of(
    found: GuardVerdict | Awaitable[GuardVerdict],
) -> GuardVerdict | Awaitable[GuardVerdict | None] | None:
    """Returns a verdict on another attempt of a call if it denies the attempt; None if it allows the attempt. Returns an
    awaitable of either for an awaitable of the verdict.
    """
    if isinstance(found, GuardVerdict):
        return found if found.decision is Decision.DENY else None
    return _denial_later(found)


async def _denial_later(found: Awaitable[GuardVerdict]) -> GuardVerdict | None:
    verdict = await found
    return verdict if verdict.decision is Decision.DENY else None


def _sound(verdict: GuardVerdict) -> GuardVerdict:
    """Returns the verdict, after a check that the journal can store it and read it again. Raises an error that says
    what is wrong if it cannot, for example because the reason is not a text.
    """
    encode_verdict(verdict)
    return verdict


def _broken(error: BaseException) -> GuardVerdict:
    said = f"what decides on it has failed: {type(error).__name__}: {message_of(error)}"
    return GuardVerdict(Decision.DENY, reason=said)


# -- in the journal -------------------------------------------------------------------------------------------------------

_encode = msgspec.msgpack.Encoder().encode
_DEFAULTS = msgspec.structs.astuple(GuardVerdict())
_SHORT = GuardVerdict.__struct_fields__.index("editable")


def encode_verdict(verdict: GuardVerdict) -> bytes:
    """Returns the verdict as bytes. The fields from `editable` on are left out if they and all behind them have their
    defaults: journals have had none of them before.
    """
    if verdict is NO_OBJECTION:  # that on most effects; `id` raises an audit event, which is heard (`jobs.direct_io`)
        return _NO_OBJECTION
    known = _notes.get(id(verdict))
    if known is None:
        note = _encoded(verdict)
        _decode(note)
        if len(_notes) >= _MOST_NOTES:
            _notes.clear()
        known = _notes[id(verdict)] = (verdict, note)
    return known[1]


def _encoded(verdict: GuardVerdict) -> bytes:
    values = msgspec.structs.astuple(verdict)
    count = _SHORT if values[_SHORT:] == _DEFAULTS[_SHORT:] else len(values)
    while count > _SHORT and values[count - 1] == _DEFAULTS[count - 1]:
        count -= 1
    return _encode(values[:count])


_decode = msgspec.msgpack.Decoder(GuardVerdict).decode

# Verdicts that were checked, and their bytes, by the verdict's id, which no other object gets while it is in here: each
# effect asks several times for both, and the guards give the same verdict for most effects.
_notes: dict[int, tuple[GuardVerdict, bytes]] = {}
_MOST_NOTES = 64
_NO_OBJECTION = _encoded(NO_OBJECTION)


def decode_verdict(note: bytes) -> GuardVerdict | None:
    """Returns the verdict that is stored in the note of an entry; None if the note has no verdict. Raises
    CorruptJournal if the note cannot be decoded.
    """
    if not note or note == UNSENT:
        return None
    try:
        return _decode(note)
    except UNREADABLE as error:
        raise CorruptJournal(f"what was decided of an effect cannot be read: {error}") from error


def stood_in(entry: Attempt) -> GuardVerdict | None:
    """Returns the verdict with which an ATTEMPT entry records that the call asks another model from that attempt on.
    Returns None if the entry records no other model, or if the verdict did not allow the model.
    """
    verdict = decode_verdict(entry.note)
    return None if verdict is None or verdict.decision in (Decision.DENY, Decision.ASK) else verdict
