"""The rules of a policy (`policy.PolicyEngine`). They decide by names and scopes, by arguments, by labels of data, and
by texts.
"""

import inspect
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Collection, Container, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from fnmatch import translate
from functools import cached_property, partial
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, ClassVar, Literal, get_args

from sabot.agents.durable.job_rows import version_of
from sabot.agents.policy.bounds import can_judge
from sabot.api.context import AgentContext
from sabot.base.checks import FLAG, TEXT, TEXTS, Of, OneOf, check, check_fields, check_pattern, is_whole
from sabot.base.config import Duration, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.engine.calls.arguments import argument_values, converted_arguments, lacks, may_hide, values_left_out
from sabot.engine.calls.effects import RULES, EffectClass
from sabot.engine.calls.fields import (
    CLOSED_VALUE,
    LEFT_VALUE,
    MISSING_VALUE,
    REST,
    beside_fields,
    fields_of,
    is_no_value,
)
from sabot.engine.calls.functions import unwrap
from sabot.engine.calls.tools import UNTRUSTED, Tool, is_ours
from sabot.errors import UserError, short_repr
from sabot.jobs.guard import CallKind, Decision, GuardedCall, GuardVerdict
from sabot.jobs.masking import mask, mask_default
from sabot.jobs.values import UNCHANGEABLE, pack

RuleAnswer = GuardVerdict | Decision | None
"""The answer of a rule. None means that the rule has no opinion on this call."""

Otherwise = Literal["deny", "ask", "warn"]

_PLAIN = frozenset({bool, int, float, str})
_CHANGES_WORLD = tuple(each.value for each in EffectClass if RULES[each].settles)


class PolicyRule(ABC):
    """A rule of a PolicyEngine. To write a rule of your own, make a subclass with the method `decide`, or pass a
    function to `PolicyEngine.add_rule`. `name` is the name of the rule in the journal and in messages. `editable` is
    False if a person who is asked by the rule may not change the arguments of the call.
    """

    name: str = ""
    editable: bool = True

    @property
    def by_name(self) -> bool:
        """True if the rule's answer depends only on the kind, the name, the scope and the principal of the call. Then
        the policy caches the answer for each combination of these four. The answer None is not cached: the rule is
        asked again. `decide` must not be async if this is True.
        """
        return False

    def matches(self, kind: CallKind, name: str) -> bool:
        """Returns True if the rule applies to the tool, model or agent of this name. `kind` says which of the three
        it is. The policy remembers the answer.
        """
        return True

    @abstractmethod
    def decide(self, call: GuardedCall) -> RuleAnswer | Awaitable[RuleAnswer]:
        """Decides on a call. Returns None if the rule has no opinion on it. If it raises an error, the call is denied.
        The method may be async. Then the call is also denied if the answer takes longer than `timeout` of the
        PolicyEngine.
        """

    def version(self) -> str:
        """Returns a text made of the class, of the fields whose names do not begin with "_", and of the code of
        `decide`. The text changes if one of these changes. It is the same in all processes that have the same version
        of Python, if the fields have a `repr` that is the same in all of them. A rule whose answers depend on more
        than that should override this method.
        """
        return f"{declared_words(self)} {version_of(type(self).decide)}"


def declared_words(rule: PolicyRule) -> str:
    """Returns the class of a rule and its fields whose names do not begin with "_", as a text."""
    given = vars(rule).items()  # without `editable=True`, which earlier versions did not have
    made = sorted(each for each in given if not each[0].startswith("_") and each != ("editable", True))
    return f"{type(rule).__qualname__}{made!r}"


# -- rules by names and scopes ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _NameRule(PolicyRule):
    """A base class for rules that decide by the caller of a tool, model or agent, and by its name. The first of these
    options that applies gives the decision:

    - `denied`: True denies all calls.
    - `allowed_scopes`: a call is denied if its tenant matches none of these patterns.
    - `denied_scopes`: a call is denied if its tenant matches one of these patterns.
    - `allowed_principals`: a call is denied if the person who makes it matches none of these patterns.
    - `require_approval`: True asks a person about each call. The person must answer within `approval_timeout`; None
      sets no limit. With `editable=False` the person cannot change the arguments.
    - `warn`: True allows the call with the decision WARN, so that a warning is logged.

    Otherwise the call is allowed. All patterns are `fnmatch` patterns; None instead of patterns sets no restriction.
    `reason` is the explanation that people get, in place of a default text.
    """

    allowed_scopes: Sequence[str] | None = None
    denied_scopes: Sequence[str] = ()
    allowed_principals: Sequence[str] | None = None
    denied: bool = False
    require_approval: bool = False
    approval_timeout: Duration | None = None
    warn: bool = False
    reason: str = ""
    name: str = ""
    editable: bool = True

    def __post_init__(self) -> None:
        kind = type(self).__name__
        checked = _patterns(kind, self._patterns_field, getattr(self, self._patterns_field))
        object.__setattr__(self, self._patterns_field, checked)
        for each in ("allowed_scopes", "denied_scopes", "allowed_principals"):
            given = getattr(self, each)
            object.__setattr__(self, each, None if given is None else _patterns(kind, each, given, empty=True))
        flags = {"denied": FLAG, "require_approval": FLAG, "warn": FLAG, "editable": FLAG}
        check_fields(self, kind, **flags, reason=TEXT, name=TEXT)
        object.__setattr__(self, "name", self.name or f"{kind} {', '.join(checked)}")
        asks = "" if self.require_approval else "require_approval=True"
        object.__setattr__(self, "_wait_s", _wait_s(kind, self.approval_timeout, asks))
        _check_editable(kind, self.editable, asks)

    _patterns_field: ClassVar[str] = ""
    _kind: ClassVar[CallKind] = "tool"
    _wait_s = 0.0

    @property
    def by_name(self) -> bool:
        return type(self).__module__ == __name__  # a user's subclass may decide by anything

    def matches(self, kind: CallKind, name: str) -> bool:
        return kind == self._kind and _fits(getattr(self, self._patterns_field), name)

    def refuses(self, call: GuardedCall) -> str:
        """Returns the reason why this caller may not make the call, by the options `denied`, `allowed_scopes`,
        `denied_scopes` and `allowed_principals`. Returns "" if the caller may make it.
        """
        if self.denied:
            return f"{asked_words(call)} is denied"
        if self.allowed_scopes is not None and not _fits(self.allowed_scopes, call.scope):
            return f"scope {call.scope} may not use {asked_words(call)}"
        if self.denied_scopes and _fits(self.denied_scopes, call.scope):
            return f"scope {call.scope} may not use {asked_words(call)}"
        if self.allowed_principals is not None and not _fits(self.allowed_principals, call.principal):
            return f"principal {call.principal or '(nobody)'} may not use {asked_words(call)}"
        return ""

    def decide(self, call: GuardedCall) -> RuleAnswer:
        refused = self.refuses(call)
        if refused:
            return GuardVerdict(Decision.DENY, reason=self.reason or refused)
        if self.require_approval:
            return GuardVerdict(
                Decision.ASK, reason=self.reason or f"{asked_words(call)} needs approval", wait_s=self._wait_s
            )
        if self.warn:
            return GuardVerdict(Decision.WARN, reason=self.reason or f"{call.name} was used by {call.scope}")
        return Decision.ALLOW


@answers_wrong_options
@dataclass(frozen=True)
class ToolPolicy(_NameRule):
    """A rule that decides who may call the tools whose names match `tool_patterns`, and with whose approval. The
    patterns are `fnmatch` patterns. `ctx.step(f)` counts as a call of a tool with the name of the function `f`.
    """

    tool_patterns: Sequence[str]
    _patterns_field = "tool_patterns"


@answers_wrong_options
@dataclass(frozen=True)
class AgentPolicy(_NameRule):
    """A rule that decides which callers may begin child jobs of the agents whose ids match `agent_patterns`, and with
    whose approval. The id of an agent is "app.agent". The rule also decides on calls of agents that are tools of other
    agents; these agents have their names only. The patterns are `fnmatch` patterns.
    """

    agent_patterns: Sequence[str]
    _patterns_field = "agent_patterns"
    _kind = "child"


@answers_wrong_options
@dataclass(frozen=True)
class ModelPolicy(_NameRule):
    """A rule that decides who may ask the models whose names match `model_patterns` (`fnmatch` patterns), and with
    whose approval.

    `degrade_to` is the name of another model of the same engine. If the rule would deny a request, the request is
    sent to that model instead. If the rule has no option that restricts callers, asks for approval or warns, all
    requests to matching models are sent to the other model. This rule never denies the other model. All other rules
    are asked about it.
    """

    model_patterns: Sequence[str]
    degrade_to: str = ""
    _patterns_field = "model_patterns"
    _kind = "model"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, degrade_to=TEXT)

    def decide(self, call: GuardedCall) -> RuleAnswer:
        found = super().decide(call)
        mild = found is Decision.ALLOW and self.allowed_scopes is None and self.allowed_principals is None
        denied = isinstance(found, GuardVerdict) and found.decision is Decision.DENY
        if not self.degrade_to or not ((mild and not self.denied_scopes) or denied):
            return found
        if call.name == self.degrade_to:
            return Decision.ALLOW  # the replacement itself is allowed
        why = self.reason or (found.reason if isinstance(found, GuardVerdict) else "a smaller model is to be asked")
        return GuardVerdict(Decision.DEGRADE, reason=f"{why}: {self.degrade_to} is asked", model=self.degrade_to)


def is_idle(rule: PolicyRule, default: str) -> bool:
    """Returns True for a ToolPolicy, ModelPolicy or AgentPolicy that allows what is allowed without it.

    `default`: the decision of the policy on calls without a rule, "allow" or "deny".
    """
    if not isinstance(rule, _NameRule) or not rule.by_name or (default == "deny" and not isinstance(rule, AgentPolicy)):
        return False
    limits = rule.allowed_scopes is not None or rule.allowed_principals is not None or bool(rule.denied_scopes)
    return not (limits or rule.denied or rule.require_approval or rule.warn or bool(vars(rule).get("degrade_to")))


# -- rules by what is in the call -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _ContentRule(PolicyRule):
    otherwise: Otherwise = "deny"
    approval_timeout: Duration | None = None
    name: str = ""
    editable: bool = True

    _wait_s = 0.0

    def _check(self, named_by: str, *patterns: str) -> None:
        """Checks the options of a rule, and sets `name` if it is "". Raises UserError if an option is not valid.

        - `named_by`: the option whose value becomes a part of the name.
        - `patterns`: the options that contain `fnmatch` patterns.
        """
        kind = type(self).__name__
        check(f"{kind}: otherwise", self.otherwise, OneOf(get_args(Otherwise)))
        check(f"{kind}: {named_by}", getattr(self, named_by), Of(Collection, "texts in a list"))
        for each in patterns:
            given = getattr(self, each)
            wild = each not in ("labels", "effects")
            object.__setattr__(self, each, None if given is None else _patterns(kind, each, given, wild=wild))
        check_fields(self, kind, name=TEXT, editable=FLAG)
        named = getattr(self, named_by)
        name = self.name or f"{kind} {named if isinstance(named, str) else ', '.join(named)}"
        object.__setattr__(self, "name", name)
        asks = "" if self.otherwise == "ask" else 'otherwise="ask"'
        object.__setattr__(self, "_wait_s", _wait_s(kind, self.approval_timeout, asks))
        _check_editable(kind, self.editable, asks)

    def _broken(self, reason: str) -> GuardVerdict:
        return GuardVerdict(Decision(self.otherwise), reason=reason, wait_s=self._wait_s)


@answers_wrong_options
@dataclass(frozen=True)
class ConstraintPolicy(_ContentRule):
    """A rule about the value of one argument of a tool.

    - `tool_patterns`: the tools, as `fnmatch` patterns of their names.
    - `field`: the name of the argument, or a path into it, such as "order.total" or "items.*.price". "*" stands for
      every item.
    - `min`, `max`: the least and the greatest value that is allowed. None sets no limit.
    - `allowed`, `denied`: the values that are allowed, and those that are not. With `allowed=None` all are allowed.
    - `pattern`: a regular expression. The whole text must match it.
    - `max_length`: the greatest length of a text or a list.
    - `required`: True if the argument must be given. With "*" in the path it must be given in every item, and there
      must be an item. With False, calls without the argument do not concern the rule.
    - `otherwise`: the decision on a call that does not satisfy the rule: "deny", "ask" or "warn".
    - `approval_timeout`: with "ask", the time in which the person must answer. None sets no limit. With `editable=False`
      the person cannot change the arguments.

    An argument that the caller leaves out is judged by its default in the tool. If that is None, `min` and `max` judge it,
    and so does `allowed`, which has to list None. A None in the place of a model, an object or a list on the path is judged
    as a None at its end: a tool that gets None instead of an order takes an amount of its own. An optional field of an MCP
    tool's schema without a default, and a key that a TypedDict may leave out, are judged like that if they are left out,
    since nobody knows what the tool takes then. A field that has several names, such as the alias of a field of pydantic,
    may be named by each of them.

    If a tool that is named exactly, or all tools that a pattern matches, certainly have no such argument or field, or one
    whose type cannot be compared with the bounds, the app does not start where the tools are known then. Otherwise the
    calls of a tool that is named exactly do not satisfy the rule, a pattern limits the tools that have the field, and a
    value that cannot be compared is denied, whatever `otherwise` is. So is one in which the path cannot be followed: a
    text or an iterator in place of a list.

    Raises UserError if no value could break the rule, or if `min` is greater than `max`.
    """

    tool_patterns: Sequence[str]
    field: str
    min: Any = None
    max: Any = None
    allowed: Collection[Any] | None = None
    denied: Collection[Any] = ()
    pattern: str | None = None
    max_length: int | None = None
    required: bool = False

    def __post_init__(self) -> None:
        check_fields(self, field=TEXT)
        if not all(self.field.split(".")):
            raise UserError(
                f"ConstraintPolicy: field={short_repr(self.field)}", hint='the name of an argument, or a path: "a.b"'
            )
        self._check("field", "tool_patterns")
        check_fields(self, required=FLAG)
        object.__setattr__(self, "allowed", None if self.allowed is None else self._values("allowed"))
        object.__setattr__(self, "denied", self._values("denied"))
        self._check_bounds()
        if self.pattern is not None:
            _checked_expression("ConstraintPolicy: pattern", self.pattern)
        if self.max_length is not None and not is_whole(self.max_length, 0):
            raise UserError(f"ConstraintPolicy: max_length={short_repr(self.max_length)}", hint="a whole number")
        said = (self.min, self.max, self.allowed, self.pattern, self.max_length)
        if all(each is None for each in said) and not self.denied and not self.required:
            raise UserError(
                f"ConstraintPolicy of {self.field} says nothing of it",
                hint="min, max, allowed, denied, pattern, max_length or required",
            )

    def _values(self, name: str) -> tuple[Any, ...]:
        given = getattr(self, name)
        if isinstance(given, str | bytes | Mapping) or not isinstance(given, Collection):
            raise UserError(f"ConstraintPolicy: {name}={short_repr(given)}", hint=f"a list of values: {name}=[…]")
        # the order of a set differs between processes, and `version` is to be the same in all
        return tuple(sorted(given, key=repr) if isinstance(given, Set) else given)

    def _check_bounds(self) -> None:
        for name in ("min", "max"):
            bound = getattr(self, name)
            try:
                ordered = bound is None or (bound <= bound) is True
            except (TypeError, ArithmeticError):  # a value without an order, or a signalling Decimal
                ordered = False
            several = isinstance(bound, Collection) and not isinstance(bound, str | bytes)
            if not ordered or several or isinstance(bound, bool):
                raise UserError(
                    f"ConstraintPolicy: {name}={short_repr(bound)} is no bound", hint="a number, a text or a time"
                )
        try:
            none_fits = self.min is not None and self.max is not None and not self.min <= self.max
        except TypeError:
            none_fits = True
        if none_fits:
            raise UserError(
                f"ConstraintPolicy: nothing lies between min={short_repr(self.min)} and max={short_repr(self.max)}"
            )

    @cached_property
    def _path(self) -> list[str]:
        return self.field.split(".")

    @cached_property
    def _by_values(self) -> bool:
        return self.allowed is not None or bool(self.denied) or self.pattern is not None or self.max_length is not None

    @cached_property
    def _judges_none(self) -> bool:
        """True if the rule concerns an argument that is left out, and has no default or the default None."""
        return (
            self.min is not None
            or self.max is not None
            or bool(self._way_out)
            or any(each is None for each in self.denied)
        )

    @cached_property
    def _way_out(self) -> str:
        """The hint how the argument may be left out, if `allowed` does not let it be; else ""."""
        listed = self.allowed is None or any(each is None for each in self.allowed)
        return "" if listed else "; allowed=[…, None] lets it be left out"

    def matches(self, kind: CallKind, name: str) -> bool:
        return kind == "tool" and _fits(self.tool_patterns, name)

    def decide(self, call: GuardedCall) -> RuleAnswer:
        path, by_values = self._path, self._by_values
        found = argument_values(call.tool, call.arguments, path, extremes=not by_values)
        if len(found) == 1 and not self.required:  # one plain value, as of most calls
            value = found[0]
            if type(value) in _PLAIN and not self._unlike(value) and not self._wrong(value):
                return Decision.ALLOW
        left_out = path[0] not in (REST, *call.given)
        if self.required and left_out:
            return self._broken(f"{self.field} is missing ({asked_words(call)})")
        absent = ""
        if call.tool is not None and (not found or any(each is None or is_no_value(each) for each in found)):
            absent = lacks(call.tool, path)
        lost = absent if call.name in self.tool_patterns else ""
        if absent:  # a None on the way is no value of a field that the tool does not have
            found = [MISSING_VALUE if each is None else each for each in found]
        if any(each is None for each in found):
            if left_out and not self._judges_none:
                return None  # the tool goes without it by default
            around = argument_values(call.tool, call.arguments, path[:-1]) if self.required and path[1:] else ()
            if any(each is None for each in around):
                return self._broken(f"{self.field} is missing ({asked_words(call)})")
        for value in found:
            if value is LEFT_VALUE and self._judges_none:
                said = f"{self.field} is left out, and what {call.name} takes then is not known ({asked_words(call)})"
                return self._broken(f"{said}{self._way_out}")
            if value is MISSING_VALUE or value is LEFT_VALUE or (value is CLOSED_VALUE and lost):
                continue
            if value is CLOSED_VALUE:
                instead = "a text, a number, a list, an iterator, or a dict for a list, is in the place of what has it"
                said = f"{self.field} is missing: {instead} ({asked_words(call)})"
                return GuardVerdict(Decision.DENY, reason=said)
            if unlike := self._unlike(value):
                said = (
                    f"{self.field} is {short_repr(value)}, which cannot be compared with {unlike} ({asked_words(call)})"
                )
                return GuardVerdict(Decision.DENY, reason=said)
            if wrong := self._wrong(value):
                way = self._way_out if value is None and left_out else ""
                return self._broken(f"{self.field} is {short_repr(value)}, {wrong} ({asked_words(call)}){way}")
        missing = [*map(is_no_value, found)]
        if all(missing) and (unnamed := may_hide(call.tool, call.arguments, path)):
            said = f"{self.field} may be among the arguments of *{unnamed}, which have no names ({asked_words(call)})"
            return GuardVerdict(Decision.DENY, reason=said)
        if not found or any(missing):
            if self.required:
                return self._broken(f"{self.field} is missing ({asked_words(call)})")
            if lost:
                return self._broken(
                    f"{call.name} has no argument {self.field}{_part(lost, self.field)}: the rule, or the tool, is another one"
                )
        return None if all(missing) else Decision.ALLOW

    def _unlike(self, value: Any) -> str:
        """Returns words for a bound with which the value cannot be compared, such as "denied=['500']" for 500; or ""."""
        if value is None:
            return ""
        for name in ("min", "max"):
            bound = getattr(self, name)
            if bound is not None and not isinstance(value, bool) and not can_judge(name, bound, value):
                return f"{name}={short_repr(bound)}"
        if self.max_length is not None and not can_judge("max_length", self.max_length, value):
            return f"max_length={self.max_length}"
        if self.denied and not any(can_judge("denied", each, value) for each in self.denied):
            return f"denied={short_repr([*self.denied])}"
        return ""

    def _wrong(self, value: Any) -> str:
        if (value is None or isinstance(value, bool)) and (self.min is not None or self.max is not None):
            return "which is no number"
        # written as `not <=`, since NaN is not greater than anything
        if self.max is not None and not value <= self.max:
            return f"and at most {self.max} is allowed"
        if self.min is not None and not value >= self.min:
            return f"and at least {self.min} is allowed"
        if self.allowed is not None and not any(
            each == value and isinstance(each, bool) == isinstance(value, bool) for each in self.allowed
        ):
            return f"and allowed are {', '.join(map(short_repr, self.allowed))}"
        if value in self.denied:
            return "which is denied"
        if self.pattern is not None and not (isinstance(value, str) and re.fullmatch(self.pattern, value)):
            return f"which {self.pattern!r} does not match"
        if self.max_length is not None and value is None:
            return "which has no length"
        if self.max_length is not None and len(value) > self.max_length:
            return f"and a length of at most {self.max_length} is allowed"
        return ""


@answers_wrong_options
@dataclass(frozen=True)
class DataAccessPolicy(_ContentRule):
    """A rule about data that have certain labels: who may read them, and where they may be sent. Tools give labels to
    their results (`@tool(labels=…)`).

    - `allowed_scopes`, `allowed_principals`: the tenants and persons that may call tools whose results have one of
      `labels`.
    - `allowed_models`, `allowed_tools`, `allowed_agents`: the models, tools and child agents that a job may call
      after it has seen data with one of `labels`.
    - `otherwise`: the decision on a call that does not satisfy the rule: "deny", "ask" or "warn".
    - `approval_timeout`: with "ask", the time in which the person must answer. None sets no limit. With `editable=False`
      the person cannot change the arguments.

    All of the `allowed_…` options are lists of `fnmatch` patterns. None allows everything.
    """

    labels: Sequence[str]
    allowed_scopes: Sequence[str] | None = None
    allowed_principals: Sequence[str] | None = None
    allowed_models: Sequence[str] | None = None
    allowed_tools: Sequence[str] | None = None
    allowed_agents: Sequence[str] | None = None

    def __post_init__(self) -> None:
        limits = ("allowed_scopes", "allowed_principals", "allowed_models", "allowed_tools", "allowed_agents")
        self._check("labels", "labels", *limits)
        if all(getattr(self, each) is None for each in limits):
            raise UserError(f"{self.name} forbids nothing", hint=f"one of {', '.join(limits)}")

    def decide(self, call: GuardedCall) -> RuleAnswer:
        read = () if call.tool is None or call.kind != "tool" else call.tool.labels
        for label in self.labels:
            if label in read:
                if self.allowed_scopes is not None and not _fits(self.allowed_scopes, call.scope):
                    return self._broken(f"scope {call.scope} may not read what is {label} by {asked_words(call)}")
                if self.allowed_principals is not None and not _fits(self.allowed_principals, call.principal):
                    who = call.principal or "(nobody)"
                    return self._broken(f"principal {who} may not read what is {label} by {asked_words(call)}")
            if label in call.labels:
                to = {"model": self.allowed_models, "tool": self.allowed_tools, "child": self.allowed_agents}[call.kind]
                also = self.allowed_agents if call.tool is not None and call.tool.is_agent else None
                if any(each is not None and not _fits(each, call.name) for each in (to, also)):
                    return self._broken(f"what is {label} may not go to {asked_words(call)}")
        return None


@answers_wrong_options
@dataclass(frozen=True)
class LabelPolicy(_ContentRule):
    """A rule for jobs that have seen data from an untrusted source. Such data may contain instructions of an attacker
    to the model. So after that the job must not change anything outside of the app without approval.

    - `labels`: the labels of the data. By default the label of the results of `@tool(open_world=True)`.
    - `tool_patterns`, `effects`: the names of the tools (`fnmatch` patterns) and the effect classes to which the rule
      applies. By default it applies to all tools that can change something outside of the app.
    - `otherwise`: the decision on such a call. By default "ask": a person must approve the call, within the time
      `approval_timeout` if it is set.
    """

    labels: Sequence[str] = (UNTRUSTED,)
    tool_patterns: Sequence[str] = ("*",)
    effects: Sequence[str] = _CHANGES_WORLD
    otherwise: Otherwise = "ask"

    def __post_init__(self) -> None:
        self._check("labels", "labels", "tool_patterns", "effects")
        words = [each.value for each in EffectClass]
        check("LabelPolicy: effects", self.effects, TEXTS)
        for each in self.effects:
            if each not in words:
                raise UserError(f"LabelPolicy: effects: {short_repr(each)}", hint=f"some of {', '.join(words)}")

    def matches(self, kind: CallKind, name: str) -> bool:
        return kind == "tool" and _fits(self.tool_patterns, name)

    def decide(self, call: GuardedCall) -> RuleAnswer:
        seen = [each for each in self.labels if each in call.labels]
        if not seen or call.effect_class not in self.effects:
            return None
        return self._broken(f"its job has read what is {', '.join(seen)} ({asked_words(call)})")


@answers_wrong_options
@dataclass(frozen=True)
class RedactionPolicy(PolicyRule):
    """A rule that hides parts of texts. `patterns` are regular expressions. Each part of a text that matches one of them
    is replaced by `***`: in the arguments of a call, in requests to models, and in their copies in the journal. A call
    with a number whose digits match is denied, since no number can stand for `***`.

    `tool_patterns`, `model_patterns` and `agent_patterns` are `fnmatch` patterns of the names of tools, models and
    agents for which this is done. By default it is done for all.
    """

    patterns: Sequence[str]
    tool_patterns: Sequence[str] = ("*",)
    model_patterns: Sequence[str] = ("*",)
    agent_patterns: Sequence[str] = ("*",)
    name: str = ""

    def __post_init__(self) -> None:
        for each in ("patterns", "tool_patterns", "model_patterns", "agent_patterns"):
            wild = each != "patterns"
            checked = _patterns("RedactionPolicy", each, getattr(self, each), empty=wild, wild=wild)
            object.__setattr__(self, each, checked)
        for each in self.patterns:
            _checked_expression("RedactionPolicy: patterns", each)
            if re.fullmatch(each, ""):
                raise UserError(
                    f"RedactionPolicy: {short_repr(each)} is found in any text",
                    hint="a pattern of what is to be hidden",
                )
        if not (self.tool_patterns or self.model_patterns or self.agent_patterns):
            raise UserError(
                "RedactionPolicy hides nothing from anybody", hint="tool_patterns, model_patterns or agent_patterns"
            )
        check_fields(self, name=TEXT)
        object.__setattr__(self, "name", self.name or "RedactionPolicy")

    def matches(self, kind: CallKind, name: str) -> bool:
        about = {"tool": self.tool_patterns, "model": self.model_patterns, "child": self.agent_patterns}[kind]
        return _fits(about, name)

    def decide(self, call: GuardedCall) -> RuleAnswer:
        said, numbers = ((call.args, call.kwargs), True) if call.spec is None else (call.spec, False)
        if mask(said, self.patterns, numbers=numbers) is said and not self._in_defaults(call):
            return None
        return GuardVerdict(
            Decision.REDACT, reason=f"texts in it are hidden ({asked_words(call)})", hide=tuple(self.patterns)
        )

    def _in_defaults(self, call: GuardedCall) -> bool:
        if call.tool is None or call.kind != "tool":
            return False
        left_out = values_left_out(call.tool, call.args, call.kwargs).values()
        made = converted_arguments(call.tool, call.args, call.kwargs).values()
        return any(mask_default(each, self.patterns, numbers=True) is not each for each in (*left_out, *made))


RESTRICTS = (DataAccessPolicy, LabelPolicy, RedactionPolicy)
"""The classes of rules that only restrict calls. Their answers allow no call that `default="deny"` denies."""


# -- helpers of rules -------------------------------------------------------------------------------------------------


def asked_words(call: GuardedCall) -> str:
    """Returns a short description of a call for messages. For example, it is "tool refund" for a call of the tool
    `refund`, and "tool refund of MCP server bank" for one of a server.
    """
    of = server_of(call.tool)
    return f"{'agent' if call.kind == 'child' else call.kind} {call.name}{of and f' of MCP server {of}'}"


def server_of(tool: Tool | None) -> str:
    """Returns the name of the MCP server of a tool; "" for other tools."""
    return "" if tool is None or tool.parameters is None else tool.parameters.server


def home_of(tool: Tool | None, doubled: Container[str] = ()) -> tuple[str, bool]:
    """Returns words by which a tool differs from others of its name: " of " and its MCP server, or the module and the
    qualified name of its function, with a digest of the values that the function has got where it was made; "" for a call of
    no tool. Also returns False if another tool may have these words: objects and lists in a closure, or those of methods,
    are not the same after a restart. Then the name of the tool has to tell, if it is not that of the function, nor one
    of several tools with the same words: `doubled` has these (`named_home`).
    """
    if tool is None:
        return "", True
    tool = tool.part_of or tool
    if server := server_of(tool):
        return f" of {server}", True
    function = inspect.unwrap(unwrap(tool.func))
    words = f" of {_module_of(function)}.{getattr(function, '__qualname__', '')}"
    told: list[str] = []
    knows_all = _note_given(tool.func, told, {id(tool)})
    if told:
        words = f"{words} with {blake2b(' '.join(told).encode(errors='replace'), digest_size=8).hexdigest()}"
    return words, knows_all or (f"{tool.name}{words}" not in doubled and _has_own_name(tool, function))


def named_home(tool: Tool) -> str:
    """Returns the name of a tool with the words by which it differs from others of the name (`home_of`)."""
    return f"{(tool.part_of or tool).name}{home_of(tool)[0]}"


def _has_own_name(tool: Tool, function: Any) -> bool:
    """Returns True if the program has given the tool another name than that of its function. A name that a class gives
    (`@tool(name=…)` over a method) is one of the tools of all its objects.
    """
    func: Any = tool.func
    if type(func) is MethodType:
        declared = [each for kind in type(func.__self__).__mro__ for each in vars(kind).values()]
        if any(isinstance(each, Tool) and each.func is func.__func__ for each in declared):
            return False
    return tool.name != getattr(function, "__name__", "")


def _note_given(func: Any, told: list[str], seen: set[int]) -> bool:
    """Adds texts of the values that a function has got where it was made: those in its closure, those of a
    `functools.partial`, and the attributes of the object of a method. Returns False if one of them cannot be told from
    others. `seen`: the ids of the objects so far.
    """
    knows_all = True
    while func is not None and id(func) not in seen:
        seen.add(id(func))
        values: list[Any] = []
        inner = getattr(func, "__wrapped__", None)
        if isinstance(func, Tool | partial):
            values = [] if isinstance(func, Tool) else [*func.args, *chain(*sorted(func.keywords.items()))]
            inner = func.func
        elif isinstance(func, MethodType):
            values, inner = [] if is_ours(func.__func__) else [func.__self__], func.__func__
        elif isinstance(func, FunctionType):
            for cell in () if is_ours(func) else func.__closure__ or ():
                with suppress(ValueError):  # nothing is in it yet
                    values.append(cell.cell_contents)
        elif isinstance(func, BuiltinFunctionType):
            values = [func.__self__]
        elif not isinstance(func, type):
            values = [*getattr(func, "__dict__", {}).values()]
        for each in values:
            if each is not inner:
                knows_all &= _tell(each, told, seen)
        func = inner
    return knows_all


def _tell(value: Any, told: list[str], seen: set[int]) -> bool:
    """Adds the text of a value that cannot change, and is the same in all processes. Returns False for another value."""
    if isinstance(value, AgentContext | ModuleType):  # the job's own; the module of a C function
        return True
    if isinstance(value, FunctionType | MethodType | partial | Tool):
        function = inspect.unwrap(unwrap(value))
        told.append(f"{_module_of(function)}.{getattr(function, '__qualname__', '')}")
        return _note_given(value, told, seen)
    told.append(type(value).__qualname__ if not isinstance(value, type) else f"{value.__module__}.{value.__qualname__}")
    if isinstance(value, type):
        return True
    if isinstance(value, Enum):
        told.append(value.name)
        return True
    if type(value) in UNCHANGEABLE:
        told.append(pack(value, "a value", sort=True).hex())
        return True
    if isinstance(value, tuple | frozenset):
        parts = sorted(value, key=repr) if isinstance(value, frozenset) else list(value)
        return all([_tell(each, told, seen) for each in parts])
    if id(value) in seen:
        return True
    seen.add(id(value))
    known = {each.attribute for each in fields_of(type(value)).values()}
    if not known and (type(value).__basicsize__ != _WITHOUT_MORE or not hasattr(value, "__dict__")):
        return False  # it has more than its attributes: a list, a socket
    given = {name: getattr(value, name, None) for name in known} | (beside_fields(value) if known else vars(value))
    told += sorted(given)
    return all([_tell(each, told, seen) for _, each in sorted(given.items())])


_WITHOUT_MORE = type("", (), {}).__basicsize__  # the size of an object with attributes only


def _module_of(function: Any) -> str:
    """Returns the name of the module of a function, also if the module is the program that was started."""
    module = getattr(function, "__module__", None) or ""
    main = sys.modules.get(module) if module == "__main__" else None
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return str(spec.name) if spec is not None else Path(file).stem if file else module


def _patterns(kind: str, what: str, given: Any, *, empty: bool = False, wild: bool = True) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Collection) or not (given or empty):
        raise UserError(f"{kind}: {what}={short_repr(given)}", hint=f'a list: {what}=["…"]')
    if not all(isinstance(each, str) and each for each in given):
        raise UserError(f"{kind}: {what}={short_repr(given)}", hint="texts that are not empty")
    for each in given if wild else ():
        check_pattern(f"{kind}: {what}", each)
    return tuple(given if isinstance(given, Sequence) else sorted(given))


_compiled: dict[tuple[str, ...], re.Pattern[str]] = {}


def _fits(patterns: Sequence[str], word: str) -> bool:
    """Returns True if one of these `fnmatch` patterns matches the word. Upper and lower case are different."""
    key = patterns if isinstance(patterns, tuple) else tuple(patterns)
    found = _compiled.get(key)
    if found is None:
        found = _compiled[key] = re.compile("|".join(map(translate, key)) or r"(?!)")
    return found.match(word) is not None


def _checked_expression(what: str, pattern: Any) -> None:
    if not isinstance(pattern, str):
        raise UserError(f"{what}={short_repr(pattern)}", hint="a regular expression is a text")
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UserError(f"{what}: {short_repr(pattern)} is no regular expression: {error}") from error


def _wait_s(kind: str, timeout: Duration | None, asks: str) -> float:
    """Returns the time limit for an approval in seconds, or 0.0 if there is no limit.

    - `kind`: the class of the rule, for messages.
    - `asks`: "" if the rule asks a person. Otherwise the option that would make it ask, as a hint for the user.

    Raises UserError if there is a time limit although no person is asked.
    """
    seconds = 0.0 if timeout is None else parse_seconds(timeout, name=f"{kind}: approval_timeout", zero=False)
    if seconds and asks:
        raise UserError(f"{kind}: approval_timeout={short_repr(timeout)}, and nobody is asked", hint=asks)
    return seconds


def _check_editable(kind: str, editable: bool, asks: str) -> None:
    if not editable and asks:
        raise UserError(f"{kind}: editable=False, and nobody is asked", hint=asks)


def _part(lost: str, field: str) -> str:
    return "" if lost == field else f" (there is no {lost})"
