"""The steps of a pattern in the order in which a match may visit them, as the kernel takes them.

    pattern("a", …).next("b", …, times=(1, None)).next(p("c") | p("d"))     start ─▶ a ─▶ b ─▶ c ─▶ accept
                                                                                          └──▶ d ─▶ accept

Each step of the text is one of the automaton (Glushkov's construction); a group that is repeated a number of times is
copied. The edges that leave a step are in the order of preference: of alternatives the one that is written first, and one
more repetition before the end of the repetition, or after it if the group is reluctant.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from sabot.api.expr import Expr
from sabot.api.patterns import Pattern, PatternGroup, PatternStep

END, ACCEPT = "end", "accept"
_ENTRY = "entry"  # stands for the rule by which a group is entered, before that is known
_STRICTEST = (_ENTRY, "next", "then", "then_any")


@dataclass(frozen=True, slots=True)
class PatternEdge:
    """A way to a step, to END or to ACCEPT. `to` is an object of its own while the end of a repetition is not known.
    `passed`: the optional greedy steps that the way passes by: it has no row that one of them would take.
    """

    to: object
    before: str = "then"
    gap: tuple[Expr, ...] = ()
    passed: tuple[PatternStep, ...] = ()

    def behind(self, gap: tuple[Expr, ...], passed: tuple[PatternStep, ...] = ()) -> "PatternEdge":
        """Returns this edge as the last part of a way that began with this gap, and passed these steps."""
        return replace(self, gap=(*gap, *self.gap), passed=(*passed, *self.passed))


Edges: TypeAlias = list[PatternEdge]
Entry: TypeAlias = tuple[str, tuple[Expr, ...]]  # the rule for rows before, and the predicates of forbidden rows


@dataclass(frozen=True, eq=False)
class _StepCopy:
    number: int
    step: PatternStep
    entry: Entry


@dataclass(frozen=True, eq=False)
class _GroupCopy:
    """Alternatives, each a sequence. `entry`: how the group is entered, `again`: how its next repetition is, or None if
    it is not repeated without end.
    """

    alternatives: Sequence[Sequence["_StepCopy | _GroupCopy"]]
    entry: Entry
    again: Entry | None = None
    is_optional: bool = False
    is_reluctant: bool = False


@dataclass
class Automaton:
    """`steps`: the visits of steps. `after`: for each, the predicates of rows that end it. `edges`: those from the start,
    and then those from each step.
    """

    steps: list[PatternStep] = field(default_factory=list)
    after: list[tuple[Expr, ...]] = field(default_factory=list)
    edges: list[Edges] = field(default_factory=list)


def automaton_of(pattern: Pattern) -> Automaton:
    """Returns the automaton of a pattern."""
    return _Builder().build(pattern)


class _Builder:
    def __init__(self) -> None:
        self._made = Automaton()

    def build(self, pattern: Pattern) -> Automaton:
        nodes = [node for part in pattern.parts for node in self._expanded(part)]
        made = self._made
        made.after = [()] * len(made.steps)
        made.edges = [[] for _ in range(len(made.steps) + 1)]
        last = [PatternEdge(END, gap=pattern.ending) if pattern.ending else PatternEdge(ACCEPT)]
        made.edges[0] = self._connected(nodes, last, pattern.ending, None)
        return made

    # -- copies -----------------------------------------------------------------------------------------------------------

    def _expanded(self, part: PatternStep | PatternGroup) -> list[_StepCopy | _GroupCopy]:
        """Returns the part as a sequence, with its steps numbered."""
        first: Entry = (part.before, part.forbidden)
        if isinstance(part, PatternStep):
            self._made.steps.append(part)
            return [_StepCopy(len(self._made.steps) - 1, part, first)]
        later: Entry = (part.between, ())
        endless = part.most is None
        copies: list[_StepCopy | _GroupCopy] = [
            self._copy(part, later if i else first, later if endless and i == part.least - 1 else None)
            for i in range(part.least)
        ]
        copies += self._optional(part, (part.most or part.least) - part.least, later)
        if part.is_optional:
            copies = [_GroupCopy([copies], first, is_optional=True, is_reluctant=part.is_reluctant)]
        return copies

    def _copy(self, part: PatternGroup, entry: Entry, again: Entry | None) -> _GroupCopy:
        alternatives = [[node for each in one.parts for node in self._expanded(each)] for one in part.alternatives]
        return _GroupCopy(alternatives, entry, again, is_reluctant=part.is_reluctant)

    def _optional(self, part: PatternGroup, count: int, entry: Entry) -> list[_StepCopy | _GroupCopy]:
        """Returns up to `count` more copies: X, and after it perhaps one more, and so on."""
        if not count:
            return []
        body = [self._copy(part, entry, None), *self._optional(part, count - 1, entry)]
        return [_GroupCopy([body], entry, is_optional=True, is_reluctant=part.is_reluctant)]

    # -- edges ------------------------------------------------------------------------------------------------------------

    def _connected(
        self, nodes: Sequence[_StepCopy | _GroupCopy], onward: Edges, after: tuple[Expr, ...], entry: Entry | None
    ) -> Edges:
        """Connects a sequence with the edges that lead on from its end, and returns those that lead into it.

        `after`: the predicates of rows that end its last step. `entry`: how the first node is entered, or None for its
        own rule.
        """
        for i in range(len(nodes) - 1, -1, -1):
            node = nodes[i]
            onward = self._entered(node, onward, after, node.entry if i or entry is None else entry)
            after = node.entry[1]
        return onward

    def _entered(self, node: _StepCopy | _GroupCopy, onward: Edges, after: tuple[Expr, ...], entry: Entry) -> Edges:
        before, forbidden = entry
        if isinstance(node, _StepCopy):
            self._made.after[node.number] = after
            self._made.edges[node.number + 1] = onward
            into = [PatternEdge(node.number, before, forbidden)]
            is_optional, is_reluctant = node.step.is_optional, node.step.is_reluctant
            passed = (node.step,) if node.step.is_greedy else ()
        else:
            into = self._into_group(node, onward, after, entry)
            is_optional, is_reluctant = node.is_optional, node.is_reluctant
            passed = ()
        if not is_optional:
            return into
        past = [each.behind(forbidden, passed) for each in onward]
        return _merged([*past, *into] if is_reluctant else [*into, *past])

    def _into_group(self, group: _GroupCopy, onward: Edges, after: tuple[Expr, ...], entry: Entry) -> Edges:
        if group.again is None:
            return _merged(edge for each in group.alternatives for edge in self._connected(each, onward, after, entry))
        end = PatternEdge(object())  # stands for what follows a repetition
        into = _merged(
            edge for each in group.alternatives for edge in self._connected(each, [end], after, (_ENTRY, ()))
        )
        again = _replaced(_with_entry(into, group.again), end, onward)
        both = _merged([*onward, *again] if group.is_reluctant else [*again, *onward])
        edges = self._made.edges
        edges[1:] = [_replaced(each, end, both) for each in edges[1:]]
        return _replaced(_with_entry(into, entry), end, onward)


def _with_entry(edges: Edges, entry: Entry) -> Edges:
    """Returns edges into a group with the rule by which the group is entered."""
    before, forbidden = entry
    return [replace(each.behind(forbidden), before=before if each.before == _ENTRY else each.before) for each in edges]


def _replaced(edges: Edges, end: PatternEdge, onward: Edges) -> Edges:
    """Returns the edges with those in `onward` in the place of `end`."""
    if all(each.to is not end.to for each in edges):
        return edges
    return _merged(
        new
        for each in edges
        for new in ([one.behind(each.gap, each.passed) for one in onward] if each.to is end.to else [each])
    )


def _merged(edges: Iterable[PatternEdge]) -> Edges:
    """Returns the edges, of several to one step only the first. It gets the rule that allows the most rows before it, and
    no `passed` unless all have the same.
    """
    found: dict[object, PatternEdge] = {}
    for each in edges:
        known = found.setdefault(each.to, each)
        if each.passed != known.passed:
            known = found[each.to] = replace(known, passed=())
        if _STRICTEST.index(each.before) > _STRICTEST.index(known.before):
            found[each.to] = replace(known, before=each.before)
    return list(found.values())
