"""Checks the rules of a policy when a program starts. A rule about a tool that does not exist protects nothing, and one
that asks a person cannot do so for an agent without jobs.

These names are known:

   a tool     made by @tool, given to an Agent, offered by an MCP server that was asked, or named in the module of an agent's function,
              which may call any function as a step
   a model    of an engine or an Agent, or written in the module of an agent's function
   an agent   of the app or the kernel, or given to an Agent as a tool

A program may make tools and agents while it runs, and their names cannot be known when it starts. So every name that is
written in the code counts as known. Only a name that is not written there either is refused as misspelt.
"""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial, partialmethod
from glob import escape
from inspect import getattr_static, isasyncgenfunction, isgeneratorfunction
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, NamedTuple, TypeGuard

from sabot.agents.policy.bounds import bounds_of, fits, meant, type_words
from sabot.agents.policy.rules import ConstraintPolicy, DataAccessPolicy, LabelPolicy, PolicyRule, named_home
from sabot.engine.calls.arguments import call_names, lacks, types_at
from sabot.engine.calls.effects import EffectId
from sabot.engine.calls.fields import REST
from sabot.engine.calls.functions import unwrap
from sabot.engine.calls.names import MODELS, SERVERS, TOOLS, tools_named
from sabot.engine.calls.tools import Tool, as_tool, recorded_way
from sabot.errors import UserError, short_repr
from sabot.jobs.guard import CallKind, Decision, GuardedCall, GuardVerdict
from sabot.llm.agent import Agent

_log = logging.getLogger(__name__)

_FIELDS: tuple[tuple[str, CallKind], ...] = (
    ("tool_patterns", "tool"),
    ("allowed_tools", "tool"),
    ("model_patterns", "model"),
    ("allowed_models", "model"),
    ("agent_patterns", "child"),
    ("allowed_agents", "child"),
)
_WORDS: dict[CallKind, str] = {"tool": "tool", "model": "model", "child": "agent"}
_WILD = frozenset("*?[")
_IN_C = (ClassMethodDescriptorType, MethodDescriptorType, BuiltinFunctionType)


class _CodeWords(NamedTuple):
    """The words in some code: `names` contains its identifiers, and `texts` its string constants."""

    names: set[str]
    texts: set[str]


def names_around(functions: Iterable[Callable[..., Any]]) -> _CodeWords:
    """Returns the names and strings in the code of these functions and of their modules."""
    found, seen = _CodeWords(set(), set()), set[int]()
    for function in functions:
        runs = unwrap(function)
        if not isinstance(runs, FunctionType):
            continue
        _of_code(runs.__code__, found)
        for cell in runs.__closure__ or ():
            if isinstance(held := _held(cell), FunctionType):
                _of_code(held.__code__, found)
        if id(runs.__globals__) in seen:
            continue
        seen.add(id(runs.__globals__))
        found.names.update(runs.__globals__)
        for each in list(runs.__globals__.values()):
            if isinstance(code := getattr(each, "__code__", None), CodeType):
                _of_code(code, found)
    return found


def _has_other_name(pattern: str, functions: Iterable[Callable[..., Any]]) -> str:
    """Returns the name as which the journal and rules know a tool or a function that the code of these functions calls
    `pattern`: `from bank import pay as pattern`, or a decorator without functools.wraps. Returns "" if the code has no
    such name, or may have something else whose own name it is.
    """
    known: list[tuple[str, Any]] = []
    for function in functions:
        if isinstance(runs := unwrap(function), FunctionType):
            cells = zip(runs.__code__.co_freevars, runs.__closure__ or (), strict=True)
            known += [*runs.__globals__.items(), *((name, _held(cell)) for name, cell in cells)]
    own = {_own_name(held) for name, held in known if name == pattern} - {""}
    defined = _CodeWords(set(), set())
    for _, held in known:
        if isinstance(code := getattr(held, "__code__", None), CodeType):
            _of_code(code, defined, only_defined=True)
    kinds = {held if isinstance(held, type) else type(held) for _, held in known}
    methods = [getattr_static(kind, pattern, None) for kind in kinds if hasattr(kind, pattern)]
    own |= {_own_name(each) or pattern for each in methods if not isinstance(each, _IN_C)}
    return "" if len(own) != 1 or pattern in own | defined.names else own.pop()


def _own_name(held: Any) -> str:
    """Returns the name of a tool, an agent or a function, as a call of it has it; "" for anything else."""
    while isinstance(held, partial | partialmethod | staticmethod | classmethod):
        held = held.func if isinstance(held, partial | partialmethod) else held.__func__
    if isinstance(held, Tool | Agent):
        return held.name
    is_called = callable(held) and not isinstance(held, type)
    return getattr(held, "__name__", type(held).__name__) if is_called else ""


def steps_around(functions: Iterable[Callable[..., Any]]) -> dict[str, FunctionType]:
    """Returns the functions in the modules of these functions by name. Each may be a step of a job."""
    runs = [each for function in functions if isinstance(each := unwrap(function), FunctionType)]
    return {name: held for each in runs for name, held in [*each.__globals__.items()] if _is_step(held)}


def _is_step(held: Any) -> TypeGuard[FunctionType]:
    return isinstance(held, FunctionType) and not (isgeneratorfunction(held) or isasyncgenfunction(held))


def _held(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell has no value yet
        return None


def _of_code(code: CodeType, found: _CodeWords, *, only_defined: bool = False) -> None:
    found.names.add(code.co_name)
    if not only_defined:
        found.names.update(code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    for each in code.co_consts:
        if isinstance(each, CodeType):
            _of_code(each, found, only_defined=only_defined)
        elif isinstance(each, str):
            found.texts.add(each)


def check_names(
    rules: Sequence[PolicyRule], functions: Sequence[Callable[..., Any]], agents: Collection[str], where: str
) -> Set[str]:
    """Returns the names of the functions that may be steps.

    Raises UserError if a rule names a tool, model or agent that is not known. The error suggests similar names. Only
    logs a warning for a pattern with wildcards that matches no known name. Also only logs a warning for an unknown tool
    if there are MCP servers, because their tools may not be known yet.

    - `functions`: the functions of the agents. Names in their code count as known.
    - `agents`: the ids of the agents.
    - `where`: the owner of the policy, for messages.

    Also raises UserError if the tools of a ConstraintPolicy certainly do not have its field, or one whose type cannot be
    compared with its bounds, and if a rule names the tool of an MCP server by another name than models do (`misnamed`).
    """
    steps = steps_around(functions)
    for tool in [each for name in [*TOOLS] for each in tools_named(name) if each.other_names]:
        if (found := misnamed(rules, tool, steps.keys())) is not None:
            rule, pattern = found
            raise UserError(
                f"{where}: {rule.name} names the tool {pattern!r}, which has another name here",
                hint=f"{tool.name!r}: a rule names a tool of an MCP server as models do",
            )
    around = names_around(functions)
    degraded = {to for rule in rules if (to := getattr(rule, "degrade_to", ""))}
    sure = TOOLS | {each.rpartition(".")[2] for each in agents}
    known: dict[CallKind, set[str]] = {
        "tool": sure | around.names,
        "model": MODELS | around.texts | degraded,
        "child": {*agents, *(name for name in TOOLS if any(each.is_agent for each in tools_named(name)))},
    }
    for rule, kind, pattern in _patterns_of(rules):
        what, names = _WORDS[kind], known[kind]
        if not _WILD.isdisjoint(pattern):
            if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
                _log.warning("%s: %s matches no %s that is known at the start", where, rule.name, what)
        elif pattern not in names:
            said = f"{where}: {rule.name} names the {what} {pattern!r}, and there is none of this name"
            if kind == "tool" and SERVERS:  # servers that may not have been asked for their tools yet
                _log.warning("%s so far: is it the tool of an MCP server?", said)
                continue
            raise UserError(said, hint=_hint(kind, pattern, names, agents))
        elif kind == "tool" and pattern not in sure and not SERVERS and (own := _has_other_name(pattern, functions)):
            raise UserError(
                f"{where}: {rule.name} names the tool {pattern!r}, and calls of what the program names so are calls of {own!r}",
                hint=f"{own!r}; a decorator that has functools.wraps(f) keeps the name of f",
            )
    for rule in rules:
        if isinstance(rule, ConstraintPolicy):
            _check_constraint(rule, steps, where)
    return steps.keys()


def misnamed(rules: Sequence[PolicyRule], tool: Tool, steps: Set[str]) -> tuple[PolicyRule, str] | None:
    """Returns the first rule with a pattern that matches no tool, but another name of this tool of an MCP server: that of
    the server, or the one without `prefix=` of the pool. Such a rule would hold nothing. Returns None if there is none.

    `steps`: the names of functions that may be steps.
    """
    named = ((rule, "tool", escape(name)) for rule in rules for name in getattr(rule, "named_tools", ()))
    for rule, kind, pattern in (*_patterns_of(rules), *named):
        if kind != "tool" or fnmatchcase(tool.name, pattern):
            continue
        if any(fnmatchcase(each, pattern) for each in tool.other_names) and not _matches_other(pattern, tool, steps):
            return rule, pattern
    return None


def _matches_other(pattern: str, tool: Tool, steps: Set[str]) -> bool:
    """Returns True if a pattern matches another tool or step. The same tool of the same server does not count if it had
    its name before that became equal to another one: the program may have it from an earlier list of the server.
    """
    own, before = getattr(tool.func, "of_server", None), tool.name.rpartition("_")[0]
    names = (
        [pattern] if _WILD.isdisjoint(pattern) else [each for each in (*TOOLS, *steps) if fnmatchcase(each, pattern)]
    )
    for each in (each for name in names for each in tools_named(name)):
        if own is None or getattr(each.func, "of_server", None) != own or not each.name.startswith(before):
            return True
    return not steps.isdisjoint(names)


def _check_constraint(rule: ConstraintPolicy, steps: Mapping[str, FunctionType], where: str) -> None:
    """Raises UserError if no tool that a pattern of the rule matches has the field of the rule, or if the types of the
    field cannot be compared with a bound. If only some tools have it, the rule limits those; a warning names others
    that have a field with a similar name, and those whose type does not fit, because all of their calls are denied.

    - `steps`: the functions that may be steps, by name.
    """
    path = rule.field.split(".")
    limited: list[Tool] = []
    similar: list[str] = []
    for pattern in rule.tool_patterns:
        found = _tools_matching(pattern, steps)
        having = [tool for tool in found if not lacks(tool, path)]
        limited += having
        if found and not having:
            error = _lacking(rule, pattern, found, where)
            if _WILD.isdisjoint(pattern) or not SERVERS:
                raise error
            _log.warning("%s so far: is it about the tool of an MCP server?", error.message)
        elif not _WILD.isdisjoint(pattern):
            names = {tool.name for tool in having}
            similar += [each for tool in found if tool.name not in names and (each := _similar(tool, path))]
        _check_types(rule, having, where)
    if similar:
        _log.warning(
            "%s: %s limits only tools that have %s; is it another name in %s?",
            where,
            rule.name,
            rule.field,
            ", ".join(sorted(set(similar))[:8]),
        )
    for option, bound in bounds_of(rule):  # also one value of several that never occurs is misspelt
        if limited and not any(_fits(rule, tool, option, bound) for tool in limited):
            raise _unlike(rule, limited[0], option, bound, where)


def _tools_matching(pattern: str, steps: Mapping[str, FunctionType]) -> list[Tool]:
    """Returns the tools that a pattern matches, and tools of the functions of these names, which may be steps."""
    names = [pattern] if _WILD.isdisjoint(pattern) else [*TOOLS, *steps]
    found: list[Tool] = []
    for name in sorted({each for each in names if fnmatchcase(each, pattern)}):
        made = tools_named(name)
        if not made and name in steps:
            made = [as_tool(steps[name])]
        found += made
    return found


def _lacking(rule: ConstraintPolicy, pattern: str, tools: Sequence[Tool], where: str) -> UserError:
    """Returns the error for a rule whose field no tool has that the pattern matches."""
    path = rule.field.split(".")
    deepest = max(tools, key=lambda tool: path.index(lacks(tool, path)))
    lost = path.index(lacks(deepest, path))
    known = list(dict.fromkeys(name for tool in tools for name in call_names(tool, path[:lost])))
    near = get_close_matches(path[lost], known, n=3, cutoff=0.7)
    what = f"tool {pattern} has no" if _WILD.isdisjoint(pattern) else f"none of the tools that {pattern} matches has"
    hint = f"it has {', '.join(known)}" if _WILD.isdisjoint(pattern) else f"they have {', '.join(known)}"
    if not known:
        hint = f"{'.'.join(path[:lost])} has no fields" if lost else "no argument of it is known"
    of_items = [*path[:lost], REST, *path[lost:]]
    if lost and not known and not lacks(deepest, of_items):
        hint = f"field={'.'.join(of_items)!r} is about each item"
    return UserError(
        f"{where}: {rule.name} is about {rule.field}, and {what} {'.'.join(path[: lost + 1])}",
        hint=f"did you mean {' or '.join(map(repr, near))}?" if near else hint,
    )


def _similar(tool: Tool, path: Sequence[str]) -> str:
    """Returns words for a field of the tool whose name is similar to the part of a path that it lacks; or ""."""
    at = path.index(lacks(tool, path))
    near = get_close_matches(path[at], call_names(tool, path[:at]), n=1, cutoff=0.7)
    return f"{tool.name} ({'.'.join([*path[:at], *near])})" if near else ""


def _check_types(rule: ConstraintPolicy, tools: Sequence[Tool], where: str) -> None:
    """Raises UserError if a bound of the rule can be compared with the field of none of these tools, which a pattern
    matches. Logs a warning for each of them of which a bound cannot be compared, so that all of its calls are denied.
    """
    by_option: dict[str, list[Any]] = {}
    for option, bound in bounds_of(rule):
        by_option.setdefault(option, []).append(bound)
    for option, bounds in by_option.items():
        wrong = [tool for tool in tools if not any(_fits(rule, tool, option, each) for each in bounds)]
        if wrong and len(wrong) == len(tools):
            raise _unlike(rule, wrong[0], option, bounds[0], where)
        for tool in wrong:
            _log.warning("%s, so its calls are denied", _unlike(rule, tool, option, bounds[0], where).message)


def _fits(rule: ConstraintPolicy, tool: Tool, option: str, bound: Any) -> bool:
    kinds = types_at(tool, rule.field.split("."))
    return not kinds or any(fits(option, bound, each) for each in kinds)


def _unlike(rule: ConstraintPolicy, tool: Tool, option: str, bound: Any, where: str) -> UserError:
    """Returns the error for a bound that cannot be compared with the values of a tool's field."""
    kinds = types_at(tool, rule.field.split("."))
    told = f"[{short_repr(bound)}]" if option in ("allowed", "denied") else short_repr(bound)
    return UserError(
        f"{where}: {rule.name} has {option}={told}, with which no {rule.field} of tool {tool.name} can be compared: its "
        f"type is {type_words(kinds)}",
        hint=meant(option, bound, kinds, rule.field),
    )


def _patterns_of(rules: Sequence[PolicyRule]) -> Iterator[tuple[PolicyRule, CallKind, str]]:
    for rule in rules:
        for field, kind in _FIELDS:
            given = getattr(rule, field, None)
            if isinstance(given, Sequence) and not isinstance(given, str):
                for pattern in given:
                    if isinstance(pattern, str):
                        yield rule, kind, pattern


def _told(kind: CallKind, agents: Collection[str]) -> Collection[str]:
    """Returns the names of tools, models or agents (`kind`) that an error message may suggest. Names that only occur
    in the code of the agents are not included.
    """
    made: dict[CallKind, Collection[str]] = {"tool": TOOLS, "model": MODELS - {""}, "child": agents}
    return made[kind]


def _hint(kind: CallKind, pattern: str, names: set[str], agents: Collection[str]) -> str:
    near = get_close_matches(pattern, sorted(names), n=3, cutoff=0.7)
    what = _WORDS[kind]
    known = sorted(_told(kind, agents))[:8]
    first = f"did you mean {' or '.join(map(repr, near))}?" if near else f"{what}s that are known: {', '.join(known)}"
    return f"{first} A rule for a {what} that may come later is a pattern: {pattern + '*'!r}"


# -- approvals of agents without jobs ---------------------------------------------------------------------------------


def check_unasked(
    rules: Sequence[PolicyRule], agent_id: str, functions: Sequence[Callable[..., Any]], where: str
) -> None:
    """Raises UserError if a rule may ask a person about a tool that this agent, which has no jobs, can call, or judges
    the tool by the labels of data that the agent has read. Does nothing for a tool that another rule denies anyway.
    """
    tools = tools_of(functions)
    labels = {label for tool in tools for label in tool.labels}
    for tool in tools:
        call = GuardedCall(EffectId("", 0), "tool", tool.name, agent_id, effect_class=tool.effect, tool=tool)
        matching = [rule for rule in rules if rule.matches("tool", tool.name)]
        said = {id(rule): _decision(rule.decide(call)) for rule in matching if rule.by_name}
        if Decision.DENY in said.values():
            continue
        for rule in matching:
            asks = said.get(id(rule)) is Decision.ASK or getattr(rule, "otherwise", "") == "ask"
            if asks and _concerns(rule, tool, labels):
                why = f"would ask a person about the tool {tool.name}", "nobody can be asked"
            elif _judges_by_read(rule) and _concerns(rule, tool, labels):
                why = f"judges the tool {tool.name} by what was read before", "nothing remembers what it has read"
            else:
                continue
            raise UserError(
                f"{where}: {rule.name} {why[0]}, which agent {agent_id} can call, and that agent has no jobs, so {why[1]}",
                hint=f"@app.agent(…, durable=True), and {recorded_way(tool)}; or let a rule deny the calls: "
                f'ToolPolicy(["{tool.name}"], denied=True)',
            )


def _decision(answer: Any) -> Any:
    return answer.decision if isinstance(answer, GuardVerdict) else answer


def _judges_by_read(rule: PolicyRule) -> bool:
    """Returns True if the rule judges a call by the labels of the data that were read before. Only jobs remember them."""
    if isinstance(rule, DataAccessPolicy):
        given = (rule.allowed_models, rule.allowed_tools, rule.allowed_agents)
        return rule.otherwise != "warn" and any(each is not None for each in given)
    return isinstance(rule, LabelPolicy) and rule.otherwise != "warn"


def _concerns(rule: PolicyRule, tool: Tool, labels: set[str]) -> bool:
    """Returns False if the rule is about labels that no tool of the agent has, or about other classes of tools.
    `labels`: the labels of all tools that the agent can call.
    """
    if isinstance(rule, LabelPolicy) and tool.effect not in rule.effects:
        return False
    return not isinstance(rule, LabelPolicy | DataAccessPolicy) or not labels.isdisjoint(rule.labels)


def warn_of_same_names(
    rules: Sequence[PolicyRule], functions: Sequence[Callable[..., Any]], where: str, told: set[tuple[str, str]]
) -> set[str]:
    """Logs a warning for each name of several tools that these functions can call: rules are by name, so those of one tool
    hold for the others too. Also logs a warning for each rule that holds for a tool, but not for another one of the same
    function, and adds it to `told` (`warn_of_other_names`). Returns the words by which nothing tells two tools of one name
    apart (`named_home`).
    """
    by_name: dict[str, dict[Any, Tool]] = {}
    by_function: dict[Any, dict[str, Tool]] = {}
    for each in tools_of(functions):
        server = getattr(each.func, "of_server", None)
        made_of = server or _made_of(each.func, set())
        by_name.setdefault(each.name, {}).setdefault(made_of, each)
        if server is None and not each.is_agent:
            by_function.setdefault(made_of, {}).setdefault(each.name, each)
    homes: Counter[str] = Counter()
    for name, several in by_name.items():
        if len(several) == 1:
            continue
        homes.update(named_home(each) for each in several.values())
        _log.warning(
            "%s: its agents have %d tools with the name %s, so rules of one are those of the others "
            '(@tool(name="…") and pool.tools(…, prefix="…") give one another name)',
            *(where, len(several), name),
        )
    for several in by_function.values():
        told.update(warn_of_other_names(rules, several.keys(), where))
    return {home for home, times in homes.items() if times > 1}


def warn_of_other_names(rules: Sequence[PolicyRule], names: Set[str], where: str) -> Iterator[tuple[str, str]]:
    """Logs a warning for each rule that holds for some of these names, which tools of one function have, and not for the
    others. Yields these rules, each with each of the other names.
    """
    for rule in rules if len(names) > 1 else ():
        beside = sorted(name for name in names if not rule.matches("tool", name))
        if 0 < len(beside) < len(names):
            _log.warning(
                "%s: %s holds for %s, and not for %s, which calls the same function (a rule that names all of them)",
                *(where, rule.name, ", ".join(sorted(names - set(beside))), ", ".join(beside)),
            )
            yield from ((rule.name, name) for name in beside)


def passed_by(
    rules: Sequence[PolicyRule], name: str, beside: Set[str], told: Set[tuple[str, str]]
) -> tuple[PolicyRule, str] | None:
    """Returns the first rule that a call under this name would pass, as the rule names only another tool of the same
    function, and this tool. Returns None if there is none, or if a rule has this very name.

    `beside`: the names of the other tools. `told`: what `warn_of_other_names` has told the log at the start.
    """
    if any(kind == "tool" and pattern in (name, escape(name)) for _, kind, pattern in _patterns_of(rules)):
        return None
    for rule in rules:
        if (rule.name, name) not in told and not rule.matches("tool", name):
            for other in sorted(beside):
                if rule.matches("tool", other):
                    return rule, other
    return None


def _made_of(func: Any, seen: set[int]) -> tuple[Any, ...]:
    """Returns what tells functions apart in this process: their code, the object whose method one is, and the values that it
    has got where it was made, by a closure, a decorator or a `functools.partial`. `seen`: the ids of the functions so far.
    """
    found: list[Any] = []
    while func is not None and id(func) not in seen:
        seen.add(id(func))
        inner, values = getattr(func, "__wrapped__", None), list[Any]()
        if isinstance(func, Tool):
            inner = func.func
        elif isinstance(func, partial):
            inner, values = func.func, [*func.args, *sorted(func.keywords), *func.keywords.values()]
        elif isinstance(func, MethodType):
            inner, values = func.__func__, [func.__self__]
        elif isinstance(func, FunctionType):
            found.append(func.__code__)
            values = [_held(cell) for cell in func.__closure__ or ()]
        else:
            found.append(id(func))
        for each in values:
            if each is inner:
                continue
            if isinstance(each, FunctionType | MethodType | partial | Tool):
                found.append(_made_of(each, seen))
            else:
                found.append((type(each), each) if type(each) in _ATOMS else id(each))
        func = inner
    return tuple(found)


def tools_of(functions: Sequence[Callable[..., Any]]) -> list[Tool]:
    """Returns the tools that functions can call: those that their code names, and those of the functions, objects and
    llm agents that it names. Code of libraries is not looked into.
    """
    reach = _Reach()
    for each in functions:
        reach.add(each, frozenset())
    return reach.tools


class _Reach:
    """The tools that code can reach. `seen` has what was looked at: the objects, by their ids and the names of
    attributes that were looked up in them.
    """

    def __init__(self) -> None:
        self.tools: list[Tool] = []
        self._seen: dict[tuple[int, frozenset[str]], Any] = {}

    def add(self, value: Any, names: frozenset[str]) -> None:
        """Adds the tools that code reaches by `value`, if it reads attributes with these names."""
        if isinstance(value, _ATOMS) or (key := (id(value), names)) in self._seen:
            return
        self._seen[key] = value  # kept, because ids of dead objects are used again
        inner: Iterable[Any] = ()
        if isinstance(value, Tool):
            if not any(each is value for each in self.tools):
                self.tools.append(value)
            inner, names = (value.func,), frozenset()
        elif isinstance(value, Agent):
            inner = [*value.tools.values(), *value.agent_tools.values()]
        elif isinstance(value, partial):
            inner = (value.func, *value.args, *value.keywords.values())
        elif isinstance(value, FunctionType):
            inner, names = _named_by(value)
        elif isinstance(value, MethodType):
            self.add(value.__func__, frozenset())
            inner, names = (value.__self__,), _names_of(value.__func__)
        elif isinstance(value, dict):
            inner = list(dict.values(value))  # a subclass may have code of its own
        elif isinstance(value, Mapping):
            inner = list(value.values())
        elif holder := next((each for each in _HOLDERS if isinstance(value, each)), None):
            inner = list(holder.__iter__(value))
        elif type(value).__module__.startswith("sabot.specified.flows"):
            inner = list(vars(value).values())
        elif not _is_of_library(value.__name__ if isinstance(value, ModuleType) else type(value).__module__):
            inner = self._attributes(value, names)
        for each in inner:
            self.add(each, names)

    def _attributes(self, value: Any, names: frozenset[str]) -> Iterator[Any]:
        """Yields the attributes of an object or a module. Runs no code of the user: properties are not asked."""
        called = vars(type(value)).get("__call__")
        for name in names | ({"__call__"} if isinstance(called, FunctionType) else frozenset()):
            found = getattr_static(value, name, None)
            if isinstance(found, FunctionType) and not isinstance(value, ModuleType):
                found = MethodType(found, value)
            yield found


_HOLDERS: tuple[Any, ...] = (list, tuple, set, frozenset)
_ATOMS = (str, bytes, int, float, type, CodeType, type(None))


def _is_of_library(module: str, file: str = "") -> bool:
    first = module.partition(".")[0]
    return first == "sabot" or first in sys.stdlib_module_names - {"__main__"} or "site-packages" in file


def _names_of(function: Callable[..., Any]) -> frozenset[str]:
    found = _CodeWords(set(), set())
    if isinstance(function, FunctionType):
        _of_code(function.__code__, found)
    return frozenset(found.names)


def _named_by(function: FunctionType) -> tuple[list[Any], frozenset[str]]:
    """Returns the objects that the code of a function names, and all of the names in it."""
    held = [_held(cell) for cell in function.__closure__ or ()]
    if _is_of_library(function.__module__ or "", function.__code__.co_filename):
        return [each for each in held if isinstance(each, Agent | Tool)], frozenset()  # of an llm agent or a program
    names = _names_of(function)
    given = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*held, *given, *(function.__globals__[each] for each in sorted(names & function.__globals__.keys()))], names
