"""Policies in Cedar, a language for policies (`pip install sabot[cedar]`), as one rule of a PolicyEngine.

Cedar is asked about each call with these values:

   principal   Principal::"ann"; its parent is Scope::"acme"
   action      Action::"tool", Action::"model", Action::"child"
   resource    Tool::"refund", Model::"gpt-4o", Agent::"desk.handle"; its attribute `name` is its id, for patterns
   context     scope, agent, effect_class (texts), labels (a set of texts), arguments (a record; empty for a request to a model)

Cedar permits nothing by default, and a policy that forbids a call wins. If a policy raises an error, Cedar ignores that
policy. It may be one that forbids the call, so this rule then denies the call.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from math import isclose, isfinite
from typing import Any, get_args
from uuid import UUID

import msgspec

from sabot.agents.policy.rules import PolicyRule
from sabot.base.checks import TEXTS, Of, check
from sabot.base.options import answers_wrong_options
from sabot.engine.calls.arguments import types_of
from sabot.engine.calls.fields import under_all_names
from sabot.errors import MissingExtra, UserError, message_of, short_repr
from sabot.jobs.guard import CallKind, Decision, GuardedCall, GuardVerdict

_RESOURCES: dict[CallKind, str] = {"tool": "Tool", "model": "Model", "child": "Agent"}
_AS_TEXT = (date, datetime, time, timedelta, UUID)


@answers_wrong_options
class CedarPolicy(PolicyRule):
    """A rule that asks the authorization engine Cedar, with policies in Cedar's language. For example:
    `PolicyEngine([CedarPolicy(Path("agents.cedar").read_text())])`.

    If Cedar permits a call, this rule allows it. Other rules of the engine may still ask for approval, choose another
    model, or deny the call. If Cedar does not permit the call, or cannot decide, this rule denies it.

    The arguments of the call are passed to Cedar in the context of the request, with the defaults of those that the
    caller leaves out. Models, dataclasses and Structs become records, which have each field under all of its names (also
    under its aliases). Arguments that are None are left out. An Enum becomes its value.
    Numbers with a fraction become decimals with four digits; a call with more digits is denied. Lists, tuples and sets
    become sets. Dates, times, durations and UUIDs become texts.
    """

    def __init__(
        self,
        policies: str,
        *,
        entities: Sequence[Mapping[str, Any]] = (),
        schema: str | Mapping[str, Any] | None = None,
        kinds: Collection[CallKind] = get_args(CallKind),
        name: str = "CedarPolicy",
    ) -> None:
        """Makes the rule.

        - `policies`: policies in Cedar's language.
        - `entities`: entities in Cedar's JSON form, for example persons with their roles. For each call the rule
          makes the entities of the caller, the tenant, and the tool, model or agent. An entity given here is used
          instead of the one with the same id.
        - `schema`: a Cedar schema, against which the policies and each request are checked. None means no check.
        - `kinds`: the kinds of calls for which Cedar is asked. Other calls do not concern this rule.
        - `name`: the name of the rule in decisions and messages.

        Raises UserError if Cedar cannot read the policies, entities or schema, and MissingExtra if Cedar is not
        installed.
        """
        try:
            import cedarpy
        except ImportError as error:
            raise MissingExtra("CedarPolicy", "cedar") from error
        if not isinstance(policies, str):
            raise UserError(f"CedarPolicy: policies={short_repr(policies)}", hint="a text in Cedar's language")
        check("CedarPolicy: kinds", kinds, TEXTS)
        if not isinstance(entities, Sequence) or not all(isinstance(each, Mapping) for each in entities):
            raise UserError(
                f"CedarPolicy: entities={short_repr(entities)}", hint="a list of objects, in Cedar's JSON form"
            )
        check("CedarPolicy: schema", schema, Of(str | Mapping | None, "Cedar's text, or its JSON form"))
        if not kinds or not set(kinds) <= set(_RESOURCES):
            raise UserError(f"CedarPolicy: kinds={short_repr(kinds)}", hint=f"some of {', '.join(_RESOURCES)}")
        self.name, self.policies, self.kinds = name, policies, tuple(sorted(kinds))
        self.entities = [dict(each) for each in entities]
        self.schema = schema if schema is None or isinstance(schema, str) else dict(schema)
        self._cedar = cedarpy
        try:
            self._policies = cedarpy.PolicySet.from_str(policies)
            self._base = cedarpy.Entities.from_json_str(json.dumps(self.entities))
            self._given = {_uid(each["uid"]) for each in self.entities}
            found = [] if self.schema is None else cedarpy.validate_policies(policies, self.schema).errors
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"CedarPolicy {name}: {message_of(error)}", hint="policies and entities as Cedar has them"
            ) from error
        if found:
            raise UserError(
                f"CedarPolicy {name}: {'; '.join(map(str, found))}", hint="change the policies, or the schema="
            )

    @property
    def named_tools(self) -> list[str]:
        """The names of tools in the policies."""
        return re.findall(r'Tool::"([^"\\]+)"', self.policies)

    def matches(self, kind: CallKind, name: str) -> bool:
        return kind in self.kinds

    def decide(self, call: GuardedCall) -> GuardVerdict | Decision | None:
        who, what = ("Principal", call.principal), (_RESOURCES[call.kind], call.name)
        context = {
            "scope": call.scope,
            "agent": call.agent,
            "effect_class": str(call.effect_class),
            "labels": sorted(call.labels),
            "arguments": _arguments(call),
        }
        request = {
            "principal": {"type": who[0], "id": who[1]},
            "action": {"type": "Action", "id": call.kind},
            "resource": {"type": what[0], "id": what[1]},
            "context": context,
        }
        scope = ("Scope", call.scope)
        found = [_entity(who, parents=[scope]), _entity(what, name=call.name), _entity(scope)]
        made = [each for each in found if _uid(each["uid"]) not in self._given]
        said = self._cedar.is_authorized(
            request, self._policies, self._base.with_added_json_str(json.dumps(made)), self.schema
        )
        reasons, errors = said.diagnostics.reasons, said.diagnostics.errors
        if errors:
            return GuardVerdict(Decision.DENY, reason=f"Cedar could not decide: {'; '.join(errors)}")
        if said.allowed:
            return Decision.ALLOW
        if not reasons and call.tool is not None and call.tool.part_of is not None:
            return None  # it is permitted as a call of the tool that it goes on with
        ids = said.diagnostics.id_annotations_by_reason
        names = ", ".join(sorted(ids.get(each) or each for each in reasons))
        return GuardVerdict(
            Decision.DENY, reason=f"Cedar forbids it: {names}" if names else "no Cedar policy permits it"
        )


def _uid(said: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the (type, id) of a Cedar entity. `said` is the entity's id in JSON form, with the keys "type" and
    "id", either directly or in an object under the key "__entity".
    """
    plain = said.get("__entity", said)
    return plain["type"], plain["id"]


def _entity(uid: tuple[str, str], *, parents: Sequence[tuple[str, str]] = (), **attributes: str) -> dict[str, Any]:
    above = [{"type": kind, "id": name} for kind, name in parents]
    return {"uid": {"type": uid[0], "id": uid[1]}, "attrs": attributes, "parents": above}


def _arguments(call: GuardedCall) -> dict[str, Any]:
    """Returns the arguments of a call as Cedar takes them. Leaves out a default of the tool that Cedar cannot represent,
    such as a client. Raises UserError for such a value that the caller has given.
    """
    types, found = {} if call.tool is None else types_of(call.tool), dict[str, Any]()
    for name, each in call.arguments.items():
        try:
            if each is not None:
                found[str(name)] = _cedar(under_all_names(each, types.get(name, Any)))
        except UserError:
            if name in call.given:
                raise
    return found


def _four_digits(value: float | Decimal) -> str:
    """Returns a number as a decimal of Cedar. Raises ValueError, by which the call is denied, also for a default, if the
    decimal would be another number: 100.00001 is above a bound of 100. The last digits of a float may be of its sums.
    """
    text = f"{value:.4f}"
    if not isfinite(value) or value == Decimal(text):  # Cedar itself says that NaN is no decimal
        return text
    if isinstance(value, float) and isclose(value, float(text), rel_tol=1e-12):
        return text
    raise ValueError(f"{value} has more than the four digits behind the point that a decimal of Cedar has")


def _cedar(value: Any) -> Any:
    """Converts the argument of a call to the form that Cedar takes. Raises UserError for a value that Cedar cannot
    represent.
    """
    if isinstance(value, Enum):
        return _cedar(value.value)
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | Decimal):
        return {"__extn": {"fn": "decimal", "arg": _four_digits(value)}}
    if isinstance(value, Mapping):
        return {str(name): _cedar(each) for name, each in value.items() if each is not None}
    if isinstance(value, list | tuple | set | frozenset):
        return [_cedar(each) for each in value if each is not None]
    if isinstance(value, _AS_TEXT):
        return str(value)
    try:
        return _cedar(msgspec.to_builtins(value, builtin_types=(Decimal, *_AS_TEXT)))
    except (TypeError, RecursionError) as error:
        raise UserError(
            f"an argument of type {type(value).__name__} cannot be told to Cedar",
            hint="give the call text, numbers, lists, dicts",
        ) from error
