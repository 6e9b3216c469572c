"""Patterns as users write them: sequences of rows of a key, in the order of event time. They only describe;
`engine/operators/patterns` runs them.

    p = (
        sabot.pattern("login", col("kind") == "login")
        .then("fail", col("kind") == "fail", times=(3, None))
        .without(col("kind") == "logout")
        .then("big", col("amount") > sabot.step("login").first("limit"))
        .within("5m")
    )
    stream.key_by("user").pattern(p, fails=sabot.step("fail").count(), amount=sabot.step("big").last("amount"))

A match assigns rows of one key to steps, in order. These rules differ between engines:

- **Rows between two steps** are ruled by the later step. `next` takes only the very next row of the key. `then` skips rows that do
  not match the step, and must take the first one that does. `then_any` may skip any rows. The same holds between the rows of a step
  with `times`, and between the repetitions of a group.
- **Repeated steps.** The last step is complete with its least number of rows. An earlier step continues while rows match, and the
  longest match is found. `skip="none"` finds all matches, also those in which such a step ended earlier, unless it is `greedy`.
- **Overlap.** Unless `skip="none"`, of overlapping matches one counts. With `overlap="complete"` that is the match that is complete
  first. If one row completes several, the match that began first counts, and of these the one that took rows where others skipped
  them. With `overlap="begun"`, as in standard SQL, it is the match that began first; of these, the one with the longest repetitions
  (the shortest, for a `reluctant` step), and with the first alternative. Such a match is known when no other can be preferred to it.
- **Time limit.** `within` includes its bound: two rows five minutes apart are within five minutes.
- **Order.** Rows of equal time are in order of arrival.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from sabot.api.arguments import whole_ms
from sabot.api.expr import Expr, as_column
from sabot.api.expr.words import quoted
from sabot.base.arrays import python_value
from sabot.base.checks import is_whole
from sabot.base.config import Duration
from sabot.base.dataclass import dataclass
from sabot.errors import UserError

MATCH_START, MATCH_END = "match_start", "match_end"
MOST_STEPS = 62
SKIPS = ("past_last", "to_next", "none")
SKIPS_TO = ("to_first", "to_last")
OVERLAPS = ("complete", "begun")

Times = int | tuple[int, int | None]
Before = Literal["next", "then", "then_any"]
Skip = Literal["past_last", "to_next", "none"] | tuple[Literal["to_first", "to_last"], str]
Overlap = Literal["complete", "begun"]

COMPARISONS = frozenset(["==", "!=", "<", "<=", ">", ">="])
_NULL_AWARE = frozenset(
    ["is_null", "is_not_null", "fill_null", "coalesce", "when", "&", "|", "struct", "list.get", "list.len"]
)
_WORDS = ("is_null", "is_not_null", "fill_null", "coalesce", "when", "between", "is_in", "abs", "cast", "alias")
_OVER_ROWS = COMPARISONS.union(_WORDS, ["+", "-", "*", "/", "//", "%", "&", "|", "^", "neg", "not"])
_POSSIBLE = (
    "possible are arithmetic, comparisons, & | ~, is_null, coalesce, when, between, is_in and abs: "
    'col("price") > step("a").last("price") * 1.1'
)


# -- values of steps --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StepValue(Expr):
    """An expression over the rows of one step of a match, such as `step("a").first("x")`. Its kind is "step.first",
    "step.count" and so on. Its only input is the expression over one row; "step.count" has no input.
    """

    @property
    def name(self) -> str:
        return self.kind.removeprefix("step.") if not self.inputs else self.inputs[0].name

    def substitute(self, columns: Mapping[str, Expr]) -> Expr:
        return StepValue(self.kind, tuple(each.substitute(columns) for each in self.inputs), self.options)

    def __repr__(self) -> str:
        words = [f'"{each.name}"' if each.kind == "col" else repr(each) for each in self.inputs]
        words += [f"offset={self.offset}"] if self.offset else []
        name = self.option("step")
        return f"step({'' if name is None else quoted(name)}).{self.kind.removeprefix('step.')}({', '.join(words)})"

    @property
    def offset(self) -> int:
        """The number of rows by which the value's row is after the first row of the step, or before its last row."""
        return int(dict(self.options).get("offset", 0))


@dataclass(frozen=True)
class StepRows:
    """The rows of a match that belong to one step, or all rows of the match (`step` is None). The arguments of its
    methods are names of columns, or expressions over one row.

    For a step without rows (`optional`), the count is 0, a list is empty, and all other values are null. In a
    predicate, only the rows before the current row are seen, and `list` is not possible.
    """

    step: str | None

    def count(self) -> Expr:
        """Returns the number of rows, as int64."""
        return StepValue("step.count", (), (("step", self.step),))

    def first(self, x: str | Expr, *, offset: int = 0) -> Expr:
        """Returns the value of `x` in the first row, which may be null. `offset`: takes the row that is so many rows
        later instead; if there is no such row, the result is null. Raises UserError for an offset that is not a whole
        number.
        """
        return self._value("first", x, offset)

    def last(self, x: str | Expr, *, offset: int = 0) -> Expr:
        """Returns the value of `x` in the last row, which may be null. `offset`: takes the row that is so many rows
        earlier instead; if there is no such row, the result is null.

        The predicate of a step can use it for the same step: then the last row is the row that the step matched
        before the current row. At the step's first row there is no such row. A comparison with this value is then
        true, if it is the whole predicate or is joined to the rest by `&`. Raises UserError for an offset that is not
        a whole number.
        """
        return self._value("last", x, offset)

    def sum(self, x: str | Expr) -> Expr:
        """Returns the sum of `x` over the rows, with the type that `sabot.sum` has."""
        return self._value("sum", x)

    def min(self, x: str | Expr) -> Expr:
        """Returns the least value of `x` in the rows."""
        return self._value("min", x)

    def max(self, x: str | Expr) -> Expr:
        """Returns the greatest value of `x` in the rows."""
        return self._value("max", x)

    def mean(self, x: str | Expr) -> Expr:
        """Returns the mean of `x` over the rows, as float64."""
        return self._value("mean", x)

    def list(self, x: str | Expr) -> Expr:
        """Returns a list of the values of `x` in the rows, in order, nulls included."""
        return self._value("list", x)

    def _value(self, kind: str, x: str | Expr, offset: Any = 0) -> Expr:
        argument = as_column(x)
        if list(step_values(argument)):
            raise UserError(f"{self!r}.{kind}({argument.text()}): a value of a step is made of columns of its rows")
        if not is_whole(offset, 0):
            raise UserError(f"{self!r}.{kind}: offset={offset!r} is not a number of rows", hint="a whole number")
        options = [("step", self.step), *([("offset", offset)] if offset else [])]
        return StepValue(f"step.{kind}", (argument,), tuple(options))

    def __repr__(self) -> str:
        return "step()" if self.step is None else f'step("{self.step}")'


def step(name: str | None = None) -> StepRows:
    """Returns an object for the rows of the step of this name, for use in measures and predicates:
    `step("a").count()`. Without a name it is for all rows of the match. Raises UserError for an empty name.
    """
    return StepRows(None if name is None else _step_name(name))


def step_values(expr: Expr) -> Iterator[StepValue]:
    """Yields all values of steps that are part of an expression."""
    if isinstance(expr, StepValue):
        yield expr
    else:
        for each in expr.inputs:
            yield from step_values(each)


def with_step_values(expr: Expr, values: Mapping[str, Expr]) -> Expr:
    """Returns the expression with each StepValue in it replaced. `values`: a dict from the text of a StepValue to the
    expression that replaces it.
    """
    if expr.kind.startswith("step."):
        return values[expr.text()]
    if not expr.inputs:
        return expr
    return Expr(expr.kind, tuple(with_step_values(each, values) for each in expr.inputs), expr.options)


def columns_of_match(measure: Expr) -> frozenset[str]:
    """Returns the names of the columns that a measure reads outside of values of steps."""
    if isinstance(measure, StepValue):
        return frozenset()
    return measure.columns if not measure.inputs else frozenset().union(*map(columns_of_match, measure.inputs))


# -- predicates -------------------------------------------------------------------------------------------------------------


class RowValue(NamedTuple):
    """An expression that is computed from one earlier row of a match. `step`: the step of this row; None for all rows
    of the match. `end`, `offset`: "first" for the row that is `offset` rows after the step's first row, "last" for
    the row that is `offset` rows before its last row. `expr`: the expression over this row.
    """

    step: str | None
    end: str
    offset: int
    expr: Expr


def split(predicate: Expr) -> tuple[Expr | None, list[Expr]]:
    """Splits a predicate at its `&` into two parts: an expression over the current row alone (None if there is none),
    and a list of conditions that also use earlier rows. The predicate is true if the expression and all conditions
    are true.

    Raises UserError if a condition uses values of steps in a way that is not possible. The hint lists what is
    possible.
    """
    alone: Expr | None = None
    conditions = []
    for part in predicate.conjuncts():
        if list(step_values(part)):
            _check_condition(part, part)
            conditions.append(part)
        else:
            alone = part if alone is None else alone & part
    return alone, conditions


def _check_condition(whole: Expr, part: Expr) -> None:
    if isinstance(part, StepValue):
        if part.kind == "step.list":
            raise UserError(f"{whole.text()}: a predicate has no lists", hint=_POSSIBLE)
    elif list(step_values(part)) and value_of_row(part) is None:
        if part.kind not in _OVER_ROWS:
            raise UserError(f"{part.text()} cannot be computed over several rows", hint=_POSSIBLE)
        for each in part.inputs:
            _check_condition(whole, each)


def value_of_row(expr: Expr) -> RowValue | None:
    """Returns the expression as a RowValue, if it depends on one earlier row only. Such a value can be computed and
    stored when that row arrives.

    Returns None if the expression uses other values than `first` or `last` of the same row, or may have a value
    although that row is missing.
    """
    values = {value.text(): value for value in step_values(expr)}
    rows = {(value.option("step"), value.kind.removeprefix("step."), value.offset) for value in values.values()}
    if len(rows) != 1 or _sees_null(expr):
        return None
    ((step, end, offset),) = rows
    blank = Expr("lit", (), (("value", None), ("type", None)))
    if end not in ("first", "last") or with_step_values(expr, dict.fromkeys(values, blank)).columns:
        return None
    return RowValue(
        step, end, offset, with_step_values(expr, {text: value.inputs[0] for text, value in values.items()})
    )


def _sees_null(expr: Expr) -> bool:
    """Returns True if the expression may have a value although a StepValue in it is null, because it uses a function
    such as `is_null` or `coalesce`.
    """
    if isinstance(expr, StepValue):
        return False
    return any(list(step_values(each)) and (expr.kind in _NULL_AWARE or _sees_null(each)) for each in expr.inputs)


# -- patterns ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PatternPart:
    """A part of a pattern: a step or a group.

    - `least`, `most`: how many rows (of a step) or repetitions (of a group) it has; `most` is None for no limit.
    - `is_optional`: True if the part may also be left out.
    - `before`: the rule for rows between the part before and this one: "next", "then" or "then_any". `between`: the
      same for rows between its own rows or repetitions.
    - `forbidden`: the predicates of rows that must not come before it (`without`).
    """

    least: int
    most: int | None
    before: Before
    between: Before
    is_optional: bool = False
    is_greedy: bool = False
    is_reluctant: bool = False
    forbidden: tuple[Expr, ...] = ()

    def _text(self, inner: str) -> str:
        most = "" if self.most is None else self.most
        times = "" if (self.least, self.most) == (1, 1) else f" times {self.least}..{most}"
        words = [
            word
            for word, there in (
                ("consecutive", self.between == "next" != self.before),
                ("optional", self.is_optional),
                ("greedy", self.is_greedy),
                ("reluctant", self.is_reluctant),
            )
            if there
        ]
        before = "".join(f"without {each.text()}, " for each in self.forbidden)
        return before + " ".join([f"{self.before} {inner}{times}", *words])


@dataclass(frozen=True)
class PatternStep(PatternPart):
    """A step of a pattern: rows for which `predicate` is true."""

    name: str
    predicate: Expr

    def text(self) -> str:
        """Returns the step as plans show it."""
        return self._text(f"{self.name}: {self.predicate.text()}")


@dataclass(frozen=True)
class PatternGroup(PatternPart):
    """A part of a pattern that is itself a pattern, or one of several `alternatives`."""

    alternatives: "tuple[Pattern, ...]"

    def text(self) -> str:
        """Returns the group as plans show it."""
        return self._text(f"({' | '.join(each.text() for each in self.alternatives)})")


@dataclass(frozen=True)
class Pattern:
    """A sequence of steps, made by `pattern(…)` and extended by the methods. It is immutable: each method returns a
    new pattern.
    """

    parts: tuple[PatternStep | PatternGroup, ...]
    within_ms: int | None = None
    ending: tuple[Expr, ...] = ()
    """The predicates of `without` after the last step. If another step is added, they apply before that step."""

    @property
    def steps(self) -> tuple[PatternStep, ...]:
        """All steps, also those of groups, in the order in which they are written."""
        found: list[PatternStep] = []
        for part in self.parts:
            if isinstance(part, PatternStep):
                found.append(part)
            else:
                found += (each for alternative in part.alternatives for each in alternative.steps)
        return tuple(found)

    def __or__(self, other: "Pattern") -> "Pattern":
        """Returns a pattern that matches if this pattern or the other one matches: `pattern("a", …) | pattern("b",
        …)`.

        If both match, this pattern is preferred. Raises UserError if one of them has `within`, or ends with
        `without`.
        """
        if not isinstance(other, Pattern):
            raise UserError(f"{other!r} is not a pattern", hint='pattern("a", …) | pattern("b", …)')
        mine = self._alternatives()
        return _checked(
            Pattern((PatternGroup((*mine, *other._alternatives()), least=1, most=1, before="then", between="then"),))
        )

    def next(self, name: "str | Pattern", predicate: Expr | None = None, *, times: Times = 1) -> "Pattern":
        """Adds a step that must match the very next row of the key. With `times`, it must match several rows that
        follow each other directly.

        With a pattern instead of a name and a predicate, adds it as a group: `next(pattern("b", …).next("c", …),
        times=3)`. Raises UserError after `without`, and if another step has the same name and another predicate.
        """
        if self.ending:
            raise UserError(
                f"next({name!r}) after without: no row can be between the two steps",
                hint="use then, or a stricter predicate",
            )
        return self._with(name, predicate, times, "next")

    def then(self, name: "str | Pattern", predicate: Expr | None = None, *, times: Times = 1) -> "Pattern":
        """Adds a step that matches the next row for which its predicate is true; any rows may come before that row.
        With `times`, it matches several such rows. A pattern instead of a name and a predicate is added as a group,
        as in `next`.

        Raises UserError if another step has the same name and another predicate.
        """
        return self._with(name, predicate, times, "then")

    def then_any(self, name: "str | Pattern", predicate: Expr | None = None, *, times: Times = 1) -> "Pattern":
        """Adds a step that may match any later row for which its predicate is true, not only the first one. With
        `skip="none"` each such row leads to a match of its own. A pattern instead of a name and a predicate is added
        as a group, as in `next`.

        With `times`, any combination of such rows is possible. Their number grows fast, so set `within` and keep
        `times` small. Raises UserError if another step has the same name and another predicate.
        """
        return self._with(name, predicate, times, "then_any")

    def optional(self) -> "Pattern":
        """Makes the last step optional: a match may have no row for it. The rule of the step after it (`next`,
        `then`, `then_any`) then applies to all rows since the step before it.

        Raises UserError after `without`.
        """
        return self._changed(is_optional=True)

    def greedy(self) -> "Pattern":
        """Makes the last step match every row that it can match. It does so even if the row could also be matched by
        the next step, or if there would be a match without the row.

        It has an effect with `skip="none"`, and if a row can match both steps. Raises UserError after `then_any`,
        after `without`, if the step is `reluctant`, and for a group.
        """
        last = self.parts[-1]
        if isinstance(last, PatternGroup):
            raise UserError("a group cannot be greedy", hint="make its steps greedy")
        if last.between == "then_any" or last.is_reluctant:
            word = "reluctant" if last.is_reluctant else "then_any"
            raise UserError(f"step {last.name!r} cannot be greedy and {word}", hint="then, or next")
        return self._changed(is_greedy=True)

    def reluctant(self) -> "Pattern":
        """Makes the last step or group match as few rows as possible. By default as many rows as possible are
        preferred.

        It has an effect with `overlap="begun"`, and if one row completes several matches. Raises UserError after
        `without`, and if the step is `greedy`.
        """
        if self.parts[-1].is_greedy:
            raise UserError("a step cannot be greedy and reluctant", hint="one of them")
        return self._changed(is_reluctant=True)

    def consecutive(self) -> "Pattern":
        """Requires that the rows of the last step directly follow each other: no other row of the key may be between
        two of them.

        Raises UserError after `without`.
        """
        return self._changed(between="next")

    def without(self, predicate: Expr) -> "Pattern":
        """Forbids some rows between the last step and the step that is added next: a row for which `predicate` is
        true ends the partial match.

        The rule applies as soon as the last step has its least number of rows, even to a row that matches the next
        step. If the last step is optional and has no rows, the rule applies from the step before it; if the next step
        is optional and has no rows, it applies up to the step after that.

        At the end of a pattern with `within`, no such row may come after the last step until `within` has passed
        since the first row. The match is complete only then, and its `match_end` is that time. Raises UserError if
        `predicate` uses values of later steps.
        """
        _predicate("without", predicate)
        if isinstance(self.parts[-1], PatternGroup):
            raise UserError("without stands after a step, not after a group", hint="say it before the group")
        return replace(self, ending=(*self.ending, predicate))

    def within(self, duration: Duration) -> "Pattern":
        """Limits the event time from the first row of a match to the last one. Without a limit, partial matches
        remain in the state for ever.

        Raises UserError for less than 1 ms, and if the pattern already has a limit.
        """
        if self.within_ms is not None:
            raise UserError("within was called twice", hint="a pattern has one time limit")
        return replace(self, within_ms=whole_ms(duration, "within", least=1))

    @property
    def columns(self) -> frozenset[str]:
        """The names of the columns that the pattern reads."""
        exprs = [*self.ending, *(each for part in self.parts for each in part.forbidden)]
        exprs += (part.predicate for part in self.parts if isinstance(part, PatternStep))
        groups = (each for part in self.parts if isinstance(part, PatternGroup) for each in part.alternatives)
        return frozenset().union(*(each.columns for each in exprs), *(each.columns for each in groups))

    def text(self) -> str:
        """Returns the pattern as plans show it."""
        first, *others = [each.text() for each in self.parts]
        words = [first.removeprefix("then "), *others, *(f"without {each.text()}" for each in self.ending)]
        if self.within_ms is not None:
            words.append(f"within {self.within_ms} ms")
        return ", ".join(words)

    def _with(self, name: "str | Pattern", predicate: Expr | None, times: Times, before: Before) -> "Pattern":
        """Returns this pattern with one more step or group. Raises UserError."""
        new: PatternStep | PatternGroup
        least, most = _times("group" if isinstance(name, Pattern) else f"step {_step_name(name)!r}", times)
        shape: Any = {"least": max(least, 1), "most": most, "before": before, "between": before}
        shape |= {"is_optional": least == 0, "forbidden": self.ending}
        if isinstance(name, Pattern):
            if predicate is not None:
                raise UserError("a group has no predicate of its own", hint="its steps have")
            new = PatternGroup(name._alternatives(), **shape)
        else:
            known = _predicate(f"step {name!r}", predicate)
            split(known)
            new = PatternStep(name, known, **shape)
        return _checked(replace(self, parts=(*self.parts, new), ending=()))

    def _alternatives(self) -> "tuple[Pattern, ...]":
        """Returns the alternatives of a group that is made from this pattern: the patterns that `|` has joined, or
        this pattern alone. Raises UserError if the pattern has `within`, or ends with `without`.
        """
        if self.within_ms is not None or self.ending:
            raise UserError("a group has no within, and does not end with without", hint="say it of the whole pattern")
        part = self.parts[0]
        plain = isinstance(part, PatternGroup) and len(self.parts) == 1 and (part.least, part.most) == (1, 1)
        return part.alternatives if plain and isinstance(part, PatternGroup) and not part.is_optional else (self,)

    def _changed(self, **what: Any) -> "Pattern":
        """Returns this pattern with other values for some fields of its last step. Raises UserError after `without`."""
        if self.ending:
            word = next(iter(what)).removeprefix("is_")
            raise UserError(f"{word} comes after without", hint="call it directly after its step")
        return replace(self, parts=(*self.parts[:-1], replace(self.parts[-1], **what)))


def pattern(name: str | Pattern, predicate: Expr | None = None, *, times: Times = 1) -> Pattern:
    """Begins a pattern with a step, which matches a row for which `predicate` is true. With `times`, the step matches
    several such rows; other rows between them are skipped. A pattern instead of a name and a predicate is a group, as
    in `Pattern.next`.

    `times`: a number, or (least, most), where None for most means no limit; with least 0 the step is optional. Raises
    UserError for a predicate that is not an expression.
    """
    return Pattern(())._with(name, predicate, times, "then")


def _checked(pattern: Pattern) -> Pattern:
    """Returns the pattern unchanged. Raises UserError if it has too many steps, or if two of its steps have the same
    name and different predicates.
    """
    if _visits(pattern) > MOST_STEPS:
        raise UserError(f"a pattern has at most {MOST_STEPS} steps", hint="those of a repeated group count each time")
    known: dict[str, PatternStep] = {}
    for each in pattern.steps:
        if not known.setdefault(each.name, each).predicate.same(each.predicate):
            raise UserError(f"there are two steps {each.name!r}", hint="steps of one name have one predicate")
    return pattern


def _visits(pattern: Pattern) -> int:
    """Returns the number of steps of the pattern. The steps of a group are counted as often as the group may be
    repeated.
    """
    return sum(
        1
        if isinstance(part, PatternStep)
        else (part.most or part.least) * sum(_visits(each) for each in part.alternatives)
        for part in pattern.parts
    )


def _may_be_empty(pattern: Pattern) -> bool:
    return all(
        part.is_optional or (isinstance(part, PatternGroup) and any(map(_may_be_empty, part.alternatives)))
        for part in pattern.parts
    )


def _check_order(pattern: Pattern, known: frozenset[str]) -> frozenset[str]:
    """Checks that no predicate uses values of a step that comes after it. Returns `known` and the names of all steps
    of the pattern. `known`: the names of the steps before the pattern. Raises UserError for a predicate that uses any
    other step.
    """
    for part in pattern.parts:
        _check_known("without", part.forbidden, known)
        if isinstance(part, PatternStep):
            known |= {part.name}
            _check_known(f"step {part.name!r}", [part.predicate], known)
            continue
        if part.most != 1:
            known = known.union(*({step.name for step in each.steps} for each in part.alternatives))
        known = frozenset().union(*(_check_order(each, known) for each in part.alternatives))
    _check_known("without", pattern.ending, known)
    return known


def _check_known(where: str, predicates: Iterable[Expr], known: frozenset[str]) -> None:
    for predicate in predicates:
        split(predicate)
        for value in step_values(predicate):
            if value.option("step") not in (None, *known):
                raise UserError(
                    f"{where}: {value.text()}, but no step of this name comes before it",
                    hint=f"there are {', '.join(sorted(known))}" if known else "it is the first step",
                )


def check_measures(
    pattern: Pattern, skip: Skip, measures: Mapping[str, Any], overlap: Overlap = "complete"
) -> tuple[tuple[str, Expr], ...]:
    """Checks the arguments of `keyed.pattern(pattern, skip=…, **measures)`. Returns the measures as (name,
    expression) pairs. Raises UserError if an argument is not valid.
    """
    if not isinstance(pattern, Pattern):
        raise UserError(f"{pattern!r} is not a pattern", hint='sabot.pattern("a", col("kind") == "login").then(…)')
    _check_skip(pattern, skip)
    if overlap not in OVERLAPS:
        raise UserError(f"overlap={overlap!r} is unknown", hint=f"one of {', '.join(OVERLAPS)}")
    _check_order(pattern, frozenset())
    if pattern.ending and pattern.within_ms is None:
        raise UserError("without at the end of a pattern needs within, or it never ends", hint='.within("5m")')
    if _may_be_empty(pattern):
        raise UserError("all steps of the pattern are optional: it would match without any row")
    if pattern.parts[-1].is_optional and overlap == "complete" and skip != "none" and not pattern.ending:
        last = pattern.parts[-1]
        word = f"step, {last.name!r}, is" if isinstance(last, PatternStep) else "group is"
        raise UserError(
            f"the last {word} optional: the match is complete before it",
            hint='leave it out, find all matches with skip="none", or the longest with overlap="begun"',
        )
    names = [each.name for each in pattern.steps]
    for name, measure in measures.items():
        if not isinstance(measure, Expr):
            raise UserError(
                f"{name}: {measure!r} is not a measure", hint=f'step("{names[0]}").last("amount"), .count(), …'
            )
        _check_values(name, step_values(measure), names)
    return tuple(measures.items())


def skip_text(skip: Skip, overlap: Overlap) -> str:
    """Returns the arguments `skip` and `overlap`, by which one of several overlapping matches is chosen, as a text
    for plans and checkpoints.
    """
    text = " ".join(skip) if isinstance(skip, tuple) else skip
    return text if overlap == "complete" else f"{text}, first {overlap}"


def _check_skip(pattern: Pattern, skip: Any) -> None:
    if isinstance(skip, tuple) and len(skip) == 2 and skip[0] in SKIPS_TO:
        names = list(dict.fromkeys(each.name for each in pattern.steps))
        if skip[1] not in names:
            raise UserError(f"skip={skip!r}: there is no step of this name", hint=f"there are {', '.join(names)}")
        first = pattern.parts[0]
        if isinstance(first, PatternStep) and skip == ("to_first", first.name) and not first.is_optional:
            raise UserError(
                f"skip={skip!r}: the next match would begin with the same row", hint='skip="to_next", or another step'
            )
    elif not isinstance(skip, str) or skip not in SKIPS:
        raise UserError(f"skip={skip!r} is unknown", hint=f'one of {", ".join(SKIPS)}, or ("to_last", "a")')


def _check_values(measure: str, values: Iterable[Expr], names: list[str]) -> None:
    for value in values:
        if value.option("step") not in (None, *names):
            raise UserError(
                f"{measure}: {value.text()}, but there is no step of this name", hint=f"there are {', '.join(names)}"
            )


def _predicate(where: str, predicate: Any) -> Expr:
    if not isinstance(predicate, Expr):
        raise UserError(f"{where}: {predicate!r} is not a predicate", hint='col("kind") == "login"')
    return predicate


def _step_name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise UserError(f"a step's name is text, not {name!r}")
    return name


def _times(name: str, times: Any) -> tuple[int, int | None]:
    least, most = python_value(times if isinstance(times, tuple) and len(times) == 2 else (times, times))
    if not is_whole(least, 0) or not (most is None or is_whole(most, max(1, least))):
        raise UserError(
            f"{name}: times={times!r} is not a number of rows",
            hint="a number, or (least, most); most may be None",
        )
    return least, most
