"""Checks the names in the rules of a policy when a program starts. A rule about a tool that does not exist protects nothing.

These names are known:

   a tool     made by @tool, given to an Agent, offered by an MCP server that was asked, or named in the module of an agent's function,
              which may call any function as a step
   a model    of an engine or an Agent, or written in the module of an agent's function
   an agent   of the app or the kernel

A program may make tools and agents while it runs, and their names cannot be known when it starts. So every name that is
written in the code counts as known. Only a name that is not written there either is refused as misspelt.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from sabot.agents.policy.rules import PolicyRule
from sabot.calls.functions import unwrap
from sabot.errors import UserError
from sabot.jobs.guard import CallKind
from sabot.llm.names import MODELS, SERVERS, TOOLS

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


def _held(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell has no value yet
        return None


def _of_code(code: CodeType, found: _CodeWords) -> None:
    found.names.add(code.co_name)
    found.names.update(code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    for each in code.co_consts:
        if isinstance(each, CodeType):
            _of_code(each, found)
        elif isinstance(each, str):
            found.texts.add(each)


def check_names(
    rules: Sequence[PolicyRule], functions: Sequence[Callable[..., Any]], agents: Collection[str], where: str
) -> None:
    """Raises UserError if a rule names a tool, model or agent that is not known. The error suggests similar names.
    Only logs a warning for a pattern with wildcards that matches no known name. Also only logs a warning for an
    unknown tool if there are MCP servers, because their tools may not be known yet.

    - `functions`: the functions of the agents. Names in their code count as known.
    - `agents`: the ids of the agents.
    - `where`: the owner of the policy, for messages.
    """
    around = names_around(functions)
    degraded = {to for rule in rules if (to := getattr(rule, "degrade_to", ""))}
    known: dict[CallKind, set[str]] = {
        "tool": TOOLS | around.names | {each.rpartition(".")[2] for each in agents},
        "model": MODELS | around.texts | degraded,
        "child": set(agents),
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
