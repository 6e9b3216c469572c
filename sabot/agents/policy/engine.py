"""Policies: rules on which tools, models and agents a job may use, with which arguments, and whose approval it needs.

   policy = PolicyEngine()
   policy.add_rule(ToolPolicy(tool_patterns=["file_*"], allowed_scopes=["internal"]))
   policy.add_rule(ModelPolicy(model_patterns=["gpt-4*"], require_approval=True))
   app = App("support", policy=policy)

Every rule whose patterns match a call gives an answer. The strictest answer decides; from strict to mild they are deny,
ask, degrade, redact, warn, allow. If two answers are equally strict, that of the rule that was added first decides. The
texts that the other rules hide are hidden too, and the notes of those rules are kept.

If no rule has an opinion on a call, the call is allowed, or with `default="deny"` denied. The rules in `RESTRICTS` only
restrict calls: with `default="deny"` another rule must allow the call. If a rule raises an error or takes too long, the
call is denied.
"""

import asyncio
import inspect
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import msgspec

from sabot.agents.context import ExecutionContext
from sabot.agents.durable.context import DurableContext
from sabot.agents.durable.job_rows import version_of
from sabot.agents.policy.names import check_names, check_unasked, misnamed, passed_by, warn_of_same_names
from sabot.agents.policy.rules import (
    RESTRICTS,
    DataAccessPolicy,
    PolicyRule,
    RuleAnswer,
    asked_words,
    declared_words,
    home_of,
    is_idle,
    server_of,
)
from sabot.base.checks import TEXTS, Of, check
from sabot.base.config import Duration, checked_text, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.engine.calls.effects import EffectClass, EffectId
from sabot.engine.calls.functions import unwrap
from sabot.engine.calls.judging import ValueCode
from sabot.engine.calls.messages import ChatMessage
from sabot.engine.calls.model_requests import RequestSpec
from sabot.engine.calls.tools import Tool, as_tool, names_beside
from sabot.errors import UserError, message_of, short_repr
from sabot.jobs.guard import (
    NO_OBJECTION,
    NOBODY,
    Behalf,
    CallKind,
    Decision,
    EffectGuard,
    GuardedCall,
    GuardVerdict,
    degraded_to,
    for_degraded,
    ring_of,
)
from sabot.jobs.values import pack

_log = logging.getLogger(__name__)

_OURS = "sabot.agents.policy"  # the package of rules that change no call
_NAMES = 4096  # the most keys (see `_matching`) whose matching rules are cached
_Key = tuple[CallKind, str, str, str, bool, tuple[str, ...], str, str, frozenset[str]]
# the field without which nobody can carry out a decision
_NEEDED = {Decision.DEGRADE: "model", Decision.REDACT: "hide"}


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """The decision of a policy on a call.

    - `allowed`: True if the call may be made without asking a person. False if it is denied, or if a person must
      approve it first. In the second case `decision` is ASK.
    - `reason`: the explanation of the decision for people, or "".
    - `rule`: the name of the rule that led to the decision. It is "default" if the call was denied because no rule
      allows it (`PolicyEngine(default="deny")`), and "" if it was allowed because no rule had an opinion.
    - `version`: the version of the rules.
    """

    allowed: bool
    decision: Decision
    reason: str
    rule: str
    version: str


class _Matching(NamedTuple):
    """A rule that matches a call.

    - `name`: its name in the decision. `terms`: a digest of all that it declares.
    - `known`: its answer, if that depends on the name of the call and the caller only.
    - `verdicts`: the verdicts of its answers so far, by decision and `editable`.
    - `of_start`: True if it judges the call as one of the tool that the call goes on with (`Tool.part_of`).
    """

    rule: PolicyRule
    name: str
    terms: str
    known: GuardVerdict | None
    verdicts: dict[tuple[Decision, bool], GuardVerdict]
    of_start: bool = False


class _FunctionRule(PolicyRule):
    def __init__(self, function: Callable[[GuardedCall], RuleAnswer | Awaitable[RuleAnswer]]) -> None:
        self.name = getattr(function, "__name__", type(function).__name__)
        self._function = function

    def decide(self, call: GuardedCall) -> RuleAnswer | Awaitable[RuleAnswer]:
        return self._function(call)

    def version(self) -> str:
        return f"{self.name} {version_of(self._function)}{_given_to(self._function)}"


@answers_wrong_options
class PolicyEngine(EffectGuard):
    """A list of rules that decides whether calls of tools, models and child agents may be made. As `App(policy=…)` it
    is asked about each call of each job. A program can also ask it, with `check_tool`, `check_model` and `check`.
    """

    declared = frozenset({"policy"})

    def __init__(
        self,
        rules: Sequence[PolicyRule | Callable[[GuardedCall], Any]] = (),
        *,
        default: Literal["allow", "deny"] = "allow",
        timeout: Duration = "10s",
        name: str = "",
    ) -> None:
        """Makes a policy.

        - `rules`: the rules. More can be added with `add_rule`.
        - `default`: the decision on a call of a tool or a model on which no rule has an opinion. A rule has none if it
          does not match the call, or returns None. With "deny", a call is also denied if only rules of the classes
          DataAccessPolicy, LabelPolicy and RedactionPolicy have an opinion, because these never allow a call. The
          beginning of a child job is allowed if no rule has an opinion on it, whatever `default` is.
        - `timeout`: the longest time for the answer of an async rule. If it takes longer, the call is denied.
        - `name`: the name by which a request to a kernel can choose this policy (`PolicyRef`).
        """
        if default not in ("allow", "deny"):
            raise UserError(f"PolicyEngine: default={short_repr(default)}", hint='"allow" or "deny"')
        self.default, self.name = default, checked_text(name, "PolicyEngine: name")
        self._timeout_s = parse_seconds(timeout, name="timeout", zero=False)
        self._rules: list[PolicyRule] = []
        self._steps: set[str] = set()  # the names of functions that may be steps
        # the names of rules that hold for some tools of a function only, each with the name of another one: the log told it
        self._beside: set[tuple[str, str]] = set()
        self._doubled: set[str] = set()  # the names and homes that several tools of agents have
        self._foreign: set[int] = set()  # the ids of rules with code of the user
        self._by_name: dict[_Key, list[_Matching]] = {}
        self._version: str | None = None
        if isinstance(rules, str) or not isinstance(rules, Sequence):
            raise UserError(f"PolicyEngine: rules={short_repr(rules)}", hint="a list: PolicyEngine([ToolPolicy(…)])")
        for rule in rules:
            self.add_rule(rule)

    def add_rule(self, rule: PolicyRule | Callable[[GuardedCall], Any]) -> None:
        """Adds a rule. It is applied to all calls from now on. The rule is an object of a class in this package, an
        object of your own subclass of PolicyRule, or a function. A function gets the GuardedCall, and returns a
        Decision, a GuardVerdict, or None if it has no opinion on the call. It may be async. If it raises an error, or
        returns something else, the call is denied. Raises UserError if `rule` is neither a PolicyRule nor a function.
        """
        if not isinstance(rule, PolicyRule):
            if isinstance(rule, type) or not callable(rule):
                raise UserError(
                    f"add_rule({short_repr(rule)}): no rule", hint="a PolicyRule, or a function of the call"
                )
            rule = _FunctionRule(rule)
        if isinstance(rule, _FunctionRule) or not type(rule).__module__.startswith(_OURS):
            self._foreign.add(id(rule))
        self._rules.append(rule)
        self._by_name.clear()
        self._version = None

    def check_names(
        self,
        functions: Sequence[Callable[..., Any]],
        agents: Collection[str],
        where: str,
        without_jobs: Mapping[str, Sequence[Callable[..., Any]]] | None = None,
    ) -> None:
        """Raises UserError if a rule names a tool, model or agent that does not exist. Only logs a warning if a pattern
        with wildcards matches nothing, if a rule has no options, so that it allows what is allowed without it, and if a
        tool is unknown but the program uses MCP servers, which may not have listed their tools yet. Also warns of several
        tools with one name.

        Also raises UserError if a rule would ask a person about a tool that an agent without jobs can call, because
        nobody can be asked for that agent.

        - `functions`: the functions of the agents. Names in their code count as existing.
        - `agents`: the ids of the agents.
        - `where`: the owner of the policy, for messages.
        - `without_jobs`: the functions of the agents without jobs, by the ids of the agents.
        """
        check("check_names: functions", functions, Of(Sequence, "those of the agents, in a list"))
        check("check_names: agents", agents, TEXTS)
        steps = check_names(self._rules, functions, agents, checked_text(where, "check_names: where"))
        self._steps.update(steps)
        if self._rules:
            self._doubled.update(warn_of_same_names(self._rules, functions, where, self._beside))
        for rule in self._rules:
            if is_idle(rule, self.default):
                _log.warning(
                    "%s: %s says nothing: what it matches is allowed without it (denied=True, require_approval=True, "
                    "allowed_scopes=[…], warn=True; or leave it out)",
                    *(where, rule.name),
                )
        for agent_id, theirs in (without_jobs or {}).items():
            check_unasked(self._rules, agent_id, theirs, where)

    @property
    def rules(self) -> tuple[PolicyRule, ...]:
        """The rules, in the order in which they were added."""
        return tuple(self._rules)

    @property
    def version(self) -> str:
        """A short hash of the rules. It is stored with each decision in the journal, in the INTENT entry of the call.
        Equal rules have the same hash in all processes that have the same version of Python.
        """
        if self._version is None:
            said = "\n".join([self.default, *(rule.version() for rule in self._rules)])
            self._version = blake2b(said.encode(errors="replace"), digest_size=6).hexdigest()
        return self._version

    # -- asked directly -----------------------------------------------------------------------------------------------

    async def check_tool(
        self,
        tool: str | Tool | Callable[..., Any],
        ctx: ExecutionContext | DurableContext | None = None,
        *,
        arguments: Mapping[str, Any] | None = None,
        labels: Collection[str] = (),
    ) -> PolicyResult:
        """Returns the decision on a call of this tool, without making the call. `tool` is the tool or its name.

        - `ctx`: the context of the caller, which names the tenant and the person. None names nobody.
        - `arguments`: the arguments of the call, by name.
        - `labels`: the labels of the data that the caller has seen. Those in a DurableContext are added.
        """
        if arguments is not None:
            check("check_tool: arguments", arguments, Of(Mapping, "by the names of parameters"))
        made = None if isinstance(tool, str) else as_tool(tool)
        name = tool if isinstance(tool, str) else as_tool(tool).name
        kind = EffectClass.UNSAFE if made is None else made.effect
        facts = {"effect_class": kind, "tool": made, "kwargs": dict(arguments or {})}
        return await self.check(self._call("tool", name, ctx, labels, **facts))

    async def check_model(
        self,
        model: str,
        ctx: ExecutionContext | DurableContext | None = None,
        *,
        messages: Sequence[ChatMessage] = (),
        labels: Collection[str] = (),
    ) -> PolicyResult:
        """Returns the decision on a request to this model with these messages, without sending the request.

        - `ctx`: the context of the caller, which names the tenant and the person. None names nobody.
        - `labels`: the labels of the data that the caller has seen. Those in a DurableContext are added.
        """
        check("check_model: model", model, Of(str, "its name"))
        check("check_model: messages", messages, Of(Sequence, "ChatMessages in a list"))
        spec = RequestSpec(messages=tuple(messages), model=model)
        return await self.check(self._call("model", model, ctx, labels, effect_class=EffectClass.METERED, spec=spec))

    async def check(self, call: GuardedCall) -> PolicyResult:
        """Returns the decision on a call. Waits for the answers of async rules."""
        check("check: call", call, Of(GuardedCall))
        found = self.decide(call)
        verdict = found if isinstance(found, GuardVerdict) else await found
        allowed = verdict.decision not in (Decision.DENY, Decision.ASK)
        return PolicyResult(allowed, verdict.decision, verdict.reason, verdict.rule, verdict.version)

    def _call(
        self,
        kind: CallKind,
        name: str,
        ctx: ExecutionContext | DurableContext | None,
        labels: Collection[str],
        **facts: Any,
    ) -> GuardedCall:
        check(
            f"check_{kind}: ctx",
            ctx,
            Of(ExecutionContext | DurableContext | None, "an ExecutionContext, or the ctx of a job"),
        )
        check(f"check_{kind}: labels", labels, TEXTS)
        behalf, agent = NOBODY, ""
        if isinstance(ctx, ExecutionContext):
            behalf = Behalf(ctx.scope_id, ctx.principal_id, session=ctx.session_id)
        elif ctx is not None:
            behalf = Behalf(ctx.scope, ctx.principal, session=ctx.session)
            agent, labels = ctx.agent_id, {*labels, *ctx.labels}
        return GuardedCall(EffectId("", 0), kind, name, agent, behalf, labels=frozenset(labels), **facts)

    # -- as a guard (`jobs.guard.EffectGuard`) ------------------------------------------------------------------------

    def decide(self, call: GuardedCall) -> GuardVerdict | Awaitable[GuardVerdict]:
        """Returns the decision on a call, or an awaitable of it if an async rule must be asked. If a rule chooses
        another model, the rules are also asked about that model.
        """
        if call.after == "unrecorded":
            return NO_OBJECTION
        if call.after != "again":
            return self._followed(self._judge(call), call, None, ())
        if not call.asked_under or self.version in call.asked_under.split():
            return NO_OBJECTION  # rules decide on a call once, and not on each of its attempts
        # a deploy has changed the rules since a person was asked
        found = self._followed(self._judge(call), call, None, ())
        return self._of_today(found) if isinstance(found, GuardVerdict) else self._of_today_later(found)

    def _of_today(self, verdict: GuardVerdict) -> GuardVerdict:
        """Returns the decision on a call about which other rules have asked a person who has approved it. It is made as it
        was shown, or not at all: a rule that asks is satisfied, and one that denies it, or would change it, denies it.
        """
        if verdict.decision is not Decision.DENY and not verdict.changes:
            return NO_OBJECTION
        reason = f"the rules have changed since a person was asked: {verdict.reason or verdict.decision}"
        return msgspec.structs.replace(verdict, decision=Decision.DENY, reason=reason)

    async def _of_today_later(self, found: Awaitable[GuardVerdict]) -> GuardVerdict:
        return self._of_today(await found)

    def _followed(
        self,
        found: GuardVerdict | Awaitable[GuardVerdict],
        call: GuardedCall,
        so_far: GuardVerdict | None,
        asked: tuple[str, ...],
    ) -> GuardVerdict | Awaitable[GuardVerdict]:
        """Completes a decision. As long as a rule has replaced the model of the call by another one, asks all rules
        about the other model too. Returns the strictest decision on all of these models together, or an awaitable of
        it if an async rule must be asked. If the rules replace models in a circle, the call is denied.

        - `found`: the decision on `call`, or an awaitable of it.
        - `so_far`: the decision on the earlier models together, or None if `call` is the original call.
        - `asked`: the names of the earlier models, in order.
        """
        while isinstance(found, GuardVerdict):
            if so_far is not None:
                found = for_degraded(found, call.name, asked[0])
                so_far = msgspec.structs.replace(so_far.and_then(found), version=self.version)
            else:
                so_far = found
            model, asked = degraded_to(call, found), (*asked, call.name)
            if not model:
                return so_far
            if model in asked:
                ring = ring_of((*asked, model), found.rule, self.version)
                return msgspec.structs.replace(so_far.and_then(ring), version=self.version)
            call = call.changed(found)
            found = self._judge(call)
        return self._followed_later(found, call, so_far, asked)

    async def _followed_later(
        self, found: Awaitable[GuardVerdict], call: GuardedCall, so_far: GuardVerdict | None, asked: tuple[str, ...]
    ) -> GuardVerdict:
        rest = self._followed(await found, call, so_far, asked)
        return rest if isinstance(rest, GuardVerdict) else await rest

    def _judge(self, call: GuardedCall) -> GuardVerdict | Awaitable[GuardVerdict]:
        """Returns the decision of the rules on this call alone, or an awaitable of it if an async rule must be asked.
        If a rule replaces the model of the call, the rules are not asked about the other model.
        """
        verdict, later, permitted = None, [], False
        for matching in self._matching(call):
            try:
                asked = _as_start(call) if matching.of_start else call
                found = matching.known or self._ask(matching.rule, asked)
            except (Exception, asyncio.CancelledError) as error:  # the rule may be the user's code
                found = self._failed(matching.rule, error)
            if found is None:
                continue
            if not isinstance(found, GuardVerdict | Decision) and inspect.isawaitable(found):
                later.append((matching, found))
                continue
            verdict = self._joined(
                verdict, self._allowed_before(call, matching.known or self._verdict(matching, found))
            )
            permitted = permitted or not isinstance(matching.rule, RESTRICTS)
            if verdict.decision is Decision.DENY:
                break
        if not later:
            return self._final(call, verdict, permitted)
        if verdict is not None and verdict.decision is Decision.DENY:
            for _, awaited in later:
                _close(awaited)
            return verdict
        return self._decide_later(call, verdict, later, permitted)

    def _ask(self, rule: PolicyRule, call: GuardedCall) -> Any:
        """Returns the answer of a rule, or an awaitable of it. The answer is a denial if the rule has changed the call:
        later rules would judge, and the tool would get, other arguments than those of the caller.
        """
        if id(rule) not in self._foreign:
            if rule.by_name:  # it looks at no values
                return rule.decide(call)
            with ValueCode(call.name):
                return rule.decide(call)
        before = call.contents()
        found = rule.decide(call)
        if call.contents() == before:
            return found
        _close(found)
        return self._changing(rule)

    def _changing(self, rule: PolicyRule) -> GuardVerdict:
        name = rule.name or type(rule).__name__
        reason = (
            f"its arguments were changed while rule {name} decided about them: a rule returns its answer, and changes a "
            "copy (copy.deepcopy)"
        )
        return GuardVerdict(Decision.DENY, name, self.version, reason)

    async def _decide_later(
        self, call: GuardedCall, verdict: GuardVerdict | None, later: list[tuple[_Matching, Any]], permitted: bool
    ) -> GuardVerdict:
        for at, (matching, awaited) in enumerate(later):
            rule = matching.rule
            limit, before = asyncio.timeout(self._timeout_s), call.contents()
            try:
                async with limit:
                    found = await awaited
                if call.contents() != before:
                    found = self._changing(rule)
            except (Exception, asyncio.CancelledError) as error:  # the rule is the user's code
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                verdict = self._failed(rule, error, late=limit.expired())
            else:
                if limit.expired():  # the rule has caught its cancellation: what it says now is no answer
                    verdict = self._failed(rule, TimeoutError(), late=True)
                elif found is not None:
                    verdict = self._joined(verdict, self._allowed_before(call, self._verdict(matching, found)))
                    permitted = permitted or not isinstance(rule, RESTRICTS)
            if verdict is not None and verdict.decision is Decision.DENY:
                for _, other in later[at + 1 :]:
                    _close(other)
                return verdict
        return self._final(call, verdict, permitted)

    def _matching(self, call: GuardedCall) -> list[_Matching]:
        """Returns the rules that match the call. Of several rules with the same name, the second one gets the name
        "NAME (2)", and likewise its terms: a person who approves what one rule asks about ("always") has not been asked by
        the other one, and has not been asked by the rule that has its place or its name after a deploy.

        If several rules allow the call by its name and caller, only the first of them is returned. The result is
        cached.
        """
        tool = call.tool
        hands_over = tool is not None and tool.is_agent
        others = () if tool is None else tool.other_names
        start = "" if tool is None or tool.part_of is None else tool.part_of.name
        # Of two tools of one name one may be made of the function of a ruled tool. Agents as tools share a function of ours,
        # and the steps of a session that of its start, by whose rules they are judged.
        beside = frozenset[str]() if tool is None or hands_over or start else names_beside(tool)
        # a reason names the server of a tool
        key = (call.kind, call.name, call.scope, call.principal, hands_over, others, start, server_of(tool), beside)
        found = self._by_name.get(key)
        if found is None:
            found, allowed, names, alike = [], False, Counter[str](), Counter[str]()
            for rule in self._rules:
                judges = self._judged_as(rule, call, hands_over)
                if not judges:
                    continue
                name = rule.name or type(rule).__name__
                names[name] += 1
                name = name if names[name] == 1 else f"{name} ({names[name]})"
                terms = self._terms(rule)
                alike[terms] += 1
                terms = terms if alike[terms] == 1 else f"{terms} ({alike[terms]})"
                for of_start in judges:
                    asked = _as_start(call) if of_start else call
                    answer = self._ask(rule, asked) if rule.by_name else None
                    if answer is Decision.ALLOW and allowed:
                        continue
                    allowed = allowed or answer is Decision.ALLOW
                    matching = _Matching(rule, name, terms, None, {})
                    known = None if answer is None else self._verdict(matching, answer)
                    found.append(_Matching(rule, name, terms, known, matching.verdicts, of_start))
            if tool is not None and others and (wrong := misnamed(self._rules, tool, self._steps)) is not None:
                rule, pattern = wrong
                reason = (
                    f"rule {rule.name} names {pattern!r}, which is {tool.name} here: a rule names a tool of an MCP server "
                    "as models do"
                )
                found = self._denied_by(rule, reason)
            # a tool that the program makes when it calls it, so that no code of the start names it
            if beside and (passed := passed_by(self._rules, call.name, beside, self._beside)) is not None:
                rule, named = passed
                reason = (
                    f"{call.name} calls the function of the tool {named}, for which {rule.name} holds, and no rule names "
                    f"{call.name!r}: name it in that rule, or in a rule of its own"
                )
                found = self._denied_by(rule, reason)
            if len(self._by_name) >= _NAMES:
                self._by_name.clear()
            self._by_name[key] = found
        return found

    def _denied_by(self, rule: PolicyRule, reason: str) -> list[_Matching]:
        return [_Matching(rule, rule.name, "", GuardVerdict(Decision.DENY, rule.name, self.version, reason), {})]

    def _judged_as(self, rule: PolicyRule, call: GuardedCall, hands_over: bool) -> list[bool]:
        """Returns for each call that the rule judges whether it is that of the tool with which this call goes on (True), or
        this one (False). A rule of the user may look for either name, so it judges both.
        """
        own = rule.matches(call.kind, call.name) or (hands_over and rule.matches("child", call.name))
        tool = call.tool
        part_of = None if tool is None else tool.part_of
        by_caller = rule.by_name or type(rule) is DataAccessPolicy  # and by no argument
        if tool is None or part_of is None or (tool.waits and not by_caller) or not rule.matches("tool", part_of.name):
            return [False] if own else []
        return [True, False] if own and id(rule) in self._foreign else [True]

    def _terms(self, rule: PolicyRule) -> str:
        """Returns a digest of all that a rule declares, and of its code if that is the user's."""
        said = rule.version() if id(rule) in self._foreign else declared_words(rule)
        return blake2b(said.encode(errors="replace"), digest_size=8).hexdigest()

    def _verdict(self, matching: _Matching, found: Any) -> GuardVerdict:
        rule, name, terms, verdicts = matching.rule, matching.name, matching.terms, matching.verdicts
        try:
            found = checked_answer(found)
        except UserError as error:
            return self._failed(rule, error)
        if isinstance(found, GuardVerdict):
            editable, terms = found.editable and rule.editable, terms if found.decision is Decision.ASK else ""
            return msgspec.structs.replace(found, rule=name, version=self.version, editable=editable, terms=terms)
        said = found, rule.editable
        if (verdict := verdicts.get(said)) is None:
            terms = terms if found is Decision.ASK else ""
            verdict = GuardVerdict(found, name, self.version, editable=rule.editable, terms=terms)
            verdicts[said] = verdict
        return verdict

    def _failed(self, rule: PolicyRule, error: BaseException, *, late: bool = False) -> GuardVerdict:
        name = rule.name or type(rule).__name__
        said = f"no answer within {self._timeout_s:g} s" if late else message_of(error)
        reason = f"rule {name} has failed: {type(error).__name__}: {said}"
        return GuardVerdict(Decision.DENY, name, self.version, reason)

    def _joined(self, verdict: GuardVerdict | None, other: GuardVerdict) -> GuardVerdict:
        if verdict is None:
            return other
        plain = not (verdict.notes or other.notes)
        if plain and verdict.decision is other.decision is Decision.ALLOW:
            return other if other.reason and not verdict.reason else verdict
        if plain and any(each.decision is Decision.ALLOW and not each.reason for each in (verdict, other)):
            return other if other.decision.strictness > verdict.decision.strictness else verdict
        model = verdict.model or other.model
        return msgspec.structs.replace(verdict.and_then(other), version=self.version, model=model)

    def _allowed_before(self, call: GuardedCall, verdict: GuardVerdict) -> GuardVerdict:
        """Returns a verdict that allows the call if a person has answered the question of the same rule about the same tool,
        model or agent for the whole job, session or scope. Otherwise returns the verdict of the rule. Its terms have the home
        of the tool (`home_of`): an approval of its calls is none of those of another tool of the same name. If another tool
        may have this home, an approval holds for one call.
        """
        if verdict.decision is not Decision.ASK:
            return verdict
        home, is_alone = home_of(call.tool, self._doubled)
        if not is_alone:
            return msgspec.structs.replace(verdict, once=True)
        if verdict.terms and home:
            verdict = msgspec.structs.replace(verdict, terms=f"{verdict.terms}{home}")
        said = call.standing.get(verdict.asked_by)
        return verdict if said is None else GuardVerdict(rule=verdict.rule, version=verdict.version, reason=said)

    def _final(self, call: GuardedCall, verdict: GuardVerdict | None, permitted: bool) -> GuardVerdict:
        """Returns the decision on a call after all rules have answered, with the default applied.

        - `verdict`: the answers of the rules together, or None if no rule had an opinion.
        - `permitted`: True if one of these answers came from a rule that can allow calls, and not only restrict them.
        """
        if verdict is not None and (permitted or verdict.decision is Decision.DENY):
            return verdict
        waits = call.tool is not None and call.tool.waits  # for what a rule has allowed
        if self.default == "deny" and call.kind != "child" and not waits:
            denied = GuardVerdict(Decision.DENY, "default", self.version, f"no rule allows {asked_words(call)}")
            return denied if verdict is None else self._joined(denied, verdict)
        return GuardVerdict(version=self.version) if verdict is None else verdict


def checked_answer(found: object) -> GuardVerdict | Decision:
    """Returns the answer of a rule that has an opinion, `GuardVerdict("deny")` with the member of Decision. Raises UserError
    if it is no decision, or one that nobody can carry out: a replacement without its model, or hidden texts without
    their patterns.
    """
    if isinstance(found, GuardVerdict):
        try:
            found = msgspec.convert(msgspec.structs.astuple(found), GuardVerdict)
        except msgspec.ValidationError as error:
            raise UserError(f"it says {short_repr(found)}: {error}") from None
        decision = found.decision
    elif isinstance(found, Decision):
        decision = found
    else:
        raise UserError(f"it says {short_repr(found)}: no Decision, GuardVerdict or None")
    needed = _NEEDED.get(decision)
    if needed is not None and not getattr(found, needed, ""):
        raise UserError(f"it says {decision}: that needs a GuardVerdict with {needed}=")
    return found


def _as_start(call: GuardedCall) -> GuardedCall:
    """Returns the call as one of the tool that it goes on with (`Tool.part_of`)."""
    assert call.tool is not None
    part_of = call.tool.part_of
    assert part_of is not None
    # one that only waits has other arguments: no rule about arguments judges it
    tool = call.tool if call.tool.waits else part_of
    return msgspec.structs.replace(call, name=part_of.name, effect_class=part_of.effect, tool=tool)


def _given_to(function: Any) -> str:
    """Returns the values that a function has got where it was made, as a text: those of its closure, its defaults, a
    `functools.partial` and an object that is called. Rules that one function makes differ by nothing else.
    """
    target = unwrap(function)
    given = [*getattr(function, "args", ()), *getattr(function, "keywords", {}).items()]
    given += [*(getattr(target, "__defaults__", None) or ()), *(getattr(target, "__kwdefaults__", None) or {}).items()]
    given += [] if inspect.isroutine(function) else [*getattr(function, "__dict__", {}).items()]
    for cell in getattr(target, "__closure__", None) or ():
        with suppress(ValueError):  # nothing is in it yet
            given.append(cell.cell_contents)
    return "".join(f" {_stable(each)}" for each in given)


def _stable(value: Any) -> str:
    """Returns a text of a value that is the same in all processes: of one that cannot be recorded, the name of its type."""
    try:
        return pack(value, "a value", sort=True).hex()
    except UserError:
        return type(value).__qualname__


def _is_cancelled() -> bool:
    """Returns True if a CancelledError was raised because the task that waits for the decision was cancelled. Returns
    False if a rule raised it by itself.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _close(awaited: Any) -> None:
    """Closes a coroutine that will not be awaited, so that Python gives no warning about it."""
    if inspect.iscoroutine(awaited):
        awaited.close()
