"""Patterns as users write them: sequences of rows of a key, in the order of event time. Descriptions only: `operators/patterns` runs them.

    p = (
        sabot.pattern("login", col("kind") == "login")
        .then("fail", col("kind") == "fail", times=(3, None))
        .without(col("kind") == "logout")
        .then("big", col("amount") > sabot.step("login").first("limit"))
        .within("5m")
    )
    stream.key_by("user").pattern(p, fails=sabot.step("fail").count(), amount=sabot.step("big").last("amount"))

A match gives rows of one key to steps, in order. What users of other engines trip over, and how it is here:

- What stands between two rows is the step's own: `next` wants the very next row of the key, `then` passes over rows that do not match
  the step (one that does must be taken), `then_any` passes over any. The same holds between the rows of a step with `times`.
- The last step is complete with its least number of rows; one before it goes on as long as rows match, and the match with most is
  found. `skip="none"` finds all matches: also those in which such a step ended earlier, unless it is `greedy`.
- `skip="past_last"`: matches do not overlap. What is complete first counts; of what one row completes, the match that began first, and
  of these the one that took rows rather than leave them out.
- `within` is at most: two rows five minutes apart are within five minutes.
- Rows of equal time come in the order in which they arrived.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from sabot.api.expr import Expr, as_column
from sabot.arrays import python_value
from sabot.checks import is_whole
from sabot.config import Duration, parse_ms
from sabot.errors import UserError

MATCH_START, MATCH_END = "match_start", "match_end"
MOST_STEPS = 62
SKIPS = ("past_last", "to_next", "none")

Times = int | tuple[int, int | None]
Before = Literal["next", "then", "then_any"]

_COMPARISONS = frozenset(["==", "!=", "<", "<=", ">", ">="])
_TURNED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_POSSIBLE = (
    "possible are comparisons (== != < <= > >=) of an expression over the row with one over first or last values of one step, "
    'joined by &: col("price") > step("a").last("price") * 1.1'
)


# -- values of steps --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StepValue(Expr):
    """A value computed from the rows of a step. Its kind is "step.first", "step.count", …; the argument is its only input."""

    @property
    def name(self) -> str:
        return self.kind.removeprefix("step.") if not self.inputs else self.inputs[0].name

    def substitute(self, columns: Mapping[str, Expr]) -> Expr:
        return StepValue(self.kind, tuple(each.substitute(columns) for each in self.inputs), self.options)

    def __repr__(self) -> str:
        plain = [each.name if each.kind == "col" else repr(each) for each in self.inputs]
        words = [f'"{text}"' if each.kind == "col" else text for text, each in zip(plain, self.inputs, strict=True)]
        return f'step("{self.option("step")}").{self.kind.removeprefix("step.")}({", ".join(words)})'


@dataclass(frozen=True)
class StepRows:
    """The rows of a match that are of one step. Arguments are names of columns or expressions over the row.

    Of a step without rows (`optional`) a count is 0, a list empty, and all else null. first and last may be null where their row's is.
    """

    step: str

    def count(self) -> Expr:
        """The number of rows, int64."""
        return StepValue("step.count", (), (("step", self.step),))

    def first(self, x: str | Expr) -> Expr:
        """The value of the first row. In the predicate of a step: that of an earlier step."""
        return self._value("first", x)

    def last(self, x: str | Expr) -> Expr:
        """The value of the last row. In a step's own predicate: of its row before the current one. Its first row has none, and passes."""
        return self._value("last", x)

    def sum(self, x: str | Expr) -> Expr:
        """The sum, as `sabot.sum`."""
        return self._value("sum", x)

    def min(self, x: str | Expr) -> Expr:
        """The least value."""
        return self._value("min", x)

    def max(self, x: str | Expr) -> Expr:
        """The greatest value."""
        return self._value("max", x)

    def mean(self, x: str | Expr) -> Expr:
        """The mean, float64."""
        return self._value("mean", x)

    def list(self, x: str | Expr) -> Expr:
        """All values in order, nulls included."""
        return self._value("list", x)

    def _value(self, kind: str, x: str | Expr) -> Expr:
        argument = as_column(x)
        if list(step_values(argument)):
            raise UserError(
                f'step("{self.step}").{kind}({argument.text()}): a value of a step is made of columns of its rows'
            )
        return StepValue(f"step.{kind}", (argument,), (("step", self.step),))


def step(name: str) -> StepRows:
    """The rows of the step of this name, for measures and for predicates of later steps."""
    return StepRows(_step_name(name))


def step_values(expr: Expr) -> Iterator[Expr]:
    """All values of steps that are part of an expression."""
    if expr.kind.startswith("step."):
        yield expr
    else:
        for each in expr.inputs:
            yield from step_values(each)


def with_step_values(expr: Expr, values: Mapping[str, Expr]) -> Expr:
    """The expression with each value of a step replaced: by the expression that the mapping has under the value's text."""
    if expr.kind.startswith("step."):
        return values[expr.text()]
    if not expr.inputs:
        return expr
    return Expr(expr.kind, tuple(with_step_values(each, values) for each in expr.inputs), expr.options)


# -- predicates -------------------------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """`left op right`. Each side is an expression over the current row, or over an earlier one, given as (step, "first" or "last")."""

    op: str
    left: Expr
    right: Expr
    left_of: tuple[str, str] | None
    right_of: tuple[str, str] | None


def split(predicate: Expr) -> tuple[Expr | None, list[Comparison]]:
    """Splits a predicate into the part about the row alone, and comparisons with rows of earlier steps. It is true where all are.

    Raises UserError for a use of values of steps that is not supported; the hint says which are.
    """
    alone: Expr | None = None
    comparisons = []
    for part in predicate.conjuncts():
        if list(step_values(part)):
            comparisons.append(_comparison(part))
        else:
            alone = part if alone is None else alone & part
    return alone, comparisons


def _comparison(part: Expr) -> Comparison:
    if part.kind not in _COMPARISONS:
        raise UserError(f"{part.text()} cannot be asked of a row and rows before it", hint=_POSSIBLE)
    (left, left_of), (right, right_of) = (_side(part, each) for each in part.inputs)
    return Comparison(part.kind, left, right, left_of, right_of)


def _side(part: Expr, side: Expr) -> tuple[Expr, tuple[str, str] | None]:
    """One side of a comparison as an expression over one row, and which row that is."""
    values = {value.text(): value for value in step_values(side)}
    if not values:
        return side, None
    rows = {(str(value.option("step")), value.kind.removeprefix("step.")) for value in values.values()}
    blank = Expr("lit", (), (("value", None), ("type", None)))
    own = with_step_values(side, dict.fromkeys(values, blank)).columns
    (first, *others) = sorted(rows)
    if others or own or first[1] not in ("first", "last"):
        raise UserError(f"{part.text()} cannot be asked of a row and rows before it", hint=_POSSIBLE)
    return with_step_values(side, {text: value.inputs[0] for text, value in values.items()}), first


# -- patterns ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PatternStep:
    """A step: `least` to `most` rows (None: any number) for which `predicate` is true. An optional step may also have no row.

    before, between: which rows may stand before its first row, and between its rows. without: rows that may not come before it.
    """

    name: str
    predicate: Expr
    least: int
    most: int | None
    before: Before
    between: Before
    is_optional: bool = False
    is_greedy: bool = False
    forbidden: tuple[Expr, ...] = ()

    def text(self) -> str:
        """As one reads it in a plan."""
        begin = f"{self.before} {self.name}: {self.predicate.text()}"
        most = "" if self.most is None else self.most
        times = "" if (self.least, self.most) == (1, 1) else f" times {self.least}..{most}"
        words = [
            word
            for word, there in (
                ("consecutive", self.between == "next" != self.before),
                ("optional", self.is_optional),
                ("greedy", self.is_greedy),
            )
            if there
        ]
        before = "".join(f"without {each.text()}, " for each in self.forbidden)
        return before + " ".join([begin + times, *words])


@dataclass(frozen=True)
class Pattern:
    """A sequence of steps: `pattern(…)`, and then what its methods add. Immutable."""

    steps: tuple[PatternStep, ...]
    within_ms: int | None = None
    ending: tuple[Expr, ...] = ()
    """Rows that may not come after the last step; where another step follows, before that one."""

    def next(self, name: str, predicate: Expr, *, times: Times = 1) -> "Pattern":
        """The very next row of the key; with `times`, so many rows without others between them."""
        if self.ending:
            raise UserError(
                f"without, and then next({name!r}): between these there is no row", hint="then, or a stricter predicate"
            )
        return self._with(name, predicate, times, "next")

    def then(self, name: str, predicate: Expr, *, times: Times = 1) -> "Pattern":
        """The next row that matches, whatever rows come before it; with `times`, the next ones."""
        return self._with(name, predicate, times, "then")

    def then_any(self, name: str, predicate: Expr, *, times: Times = 1) -> "Pattern":
        """Any later row that matches, not only the next one: a match for each, with skip="none". With `times`, any of them together:
        their number grows fast, so state it within a time, and with as few rows as may be."""
        return self._with(name, predicate, times, "then_any")

    def optional(self) -> "Pattern":
        """The last step may have no rows. Then what stands before and after it is what the step behind it says."""
        return self._changed(is_optional=True)

    def greedy(self) -> "Pattern":
        """The last step takes each row that it can: none is left out, or left to the step behind it. Matters where skip="none", or where
        a row matches both."""
        if self.steps[-1].between == "then_any":
            raise UserError(f"step {self.steps[-1].name!r} cannot be greedy and then_any", hint="then, or next")
        return self._changed(is_greedy=True)

    def consecutive(self) -> "Pattern":
        """The rows of the last step follow each other: no row of the key stands between two of them."""
        return self._changed(between="next")

    def without(self, predicate: Expr) -> "Pattern":
        """No such row between the step before and the one behind.

        From the row on with which the step before has its least number of rows, a row for which `predicate` is true ends the partial
        match, even if it would match the step behind too. Where that is optional, it is asked between the steps that are there.
        At the end, with `within`: no such row after the last step until `within` after the first row; the match is complete then, and
        match_end is that time.
        """
        _check_predicate("without", predicate)
        self._check_steps("without", predicate, own=None)
        return replace(self, ending=(*self.ending, predicate))

    def within(self, duration: Duration) -> "Pattern":
        """From the first row to the last at most this much event time. Without it partial matches stay for ever."""
        if self.within_ms is not None:
            raise UserError("within was given twice", hint="it is one for the whole pattern")
        ms = parse_ms(duration, name="within")
        if ms < 1:
            raise UserError(f"within: {duration!r} is less than a millisecond")
        return replace(self, within_ms=ms)

    @property
    def columns(self) -> frozenset[str]:
        """Names of the columns that it reads."""
        exprs = [*self.ending, *(each for step in self.steps for each in (step.predicate, *step.forbidden))]
        return frozenset().union(*(each.columns for each in exprs))

    def text(self) -> str:
        """As one reads it in a plan."""
        first, *others = [each.text() for each in self.steps]
        words = [first.removeprefix("then "), *others, *(f"without {each.text()}" for each in self.ending)]
        if self.within_ms is not None:
            words.append(f"within {self.within_ms} ms")
        return ", ".join(words)

    def _with(self, name: str, predicate: Expr, times: Times, before: Before) -> "Pattern":
        """This pattern with one more step."""
        if any(each.name == name for each in self.steps):
            raise UserError(f"there are two steps {name!r}", hint="each has a name of its own")
        if len(self.steps) == MOST_STEPS:
            raise UserError(f"a pattern has at most {MOST_STEPS} steps")
        _check_predicate(f"step {_step_name(name)!r}", predicate)
        self._check_steps(f"step {name!r}", predicate, own=name)
        least, most = _times(name, times)
        new = PatternStep(
            name, predicate, max(least, 1), most, before, before, is_optional=least == 0, forbidden=self.ending
        )
        return replace(self, steps=(*self.steps, new), ending=())

    def _changed(self, **what: Any) -> "Pattern":
        """This pattern with another last step."""
        if self.ending:
            word = next(iter(what)).removeprefix("is_")
            raise UserError(f"{word} stands behind a without", hint="it is said of a step: put it right behind that")
        return replace(self, steps=(*self.steps[:-1], replace(self.steps[-1], **what)))

    def _check_steps(self, where: str, predicate: Expr, own: str | None) -> None:
        """Raises UserError for a predicate that names a step which does not come before it, or uses values of steps as `split` refuses."""
        known = [*(each.name for each in self.steps), *([] if own is None else [own])]
        for value in step_values(predicate):
            if value.option("step") not in known:
                raise UserError(
                    f"{where}: {value.text()}, and no such step stands before it", hint=f"there are {', '.join(known)}"
                )
        split(predicate)


def pattern(name: str, predicate: Expr, *, times: Times = 1) -> Pattern:
    """A pattern that begins with a step: a row for which `predicate` is true, or `times` rows, others between them passed over.

    times: a number, or (least, most), most None for any number; least 0: the step is optional.
    """
    return Pattern(())._with(name, predicate, times, "then")


def check_measures(pattern: Pattern, skip: str, measures: Mapping[str, Any]) -> tuple[tuple[str, Expr], ...]:
    """Checks the arguments of `keyed.pattern(pattern, skip=…, **measures)`, and returns the measures. Raises UserError."""
    if not isinstance(pattern, Pattern):
        raise UserError(f"{pattern!r} is no pattern", hint='sabot.pattern("a", col("kind") == "login").then(…)')
    if skip not in SKIPS:
        raise UserError(f"skip: {skip!r}", hint=f"one of {', '.join(SKIPS)}")
    if pattern.ending and pattern.within_ms is None:
        raise UserError("without at the end of a pattern never comes to an end", hint='.within("5m")')
    if all(each.is_optional for each in pattern.steps):
        raise UserError("all steps of the pattern are optional: it would match nothing, everywhere")
    if pattern.steps[-1].is_optional and skip != "none" and not pattern.ending:
        raise UserError(
            f"the last step, {pattern.steps[-1].name!r}, is optional: the match is complete before it",
            hint='leave it out, or find all matches with skip="none"',
        )
    names = [each.name for each in pattern.steps]
    for name, measure in measures.items():
        if not isinstance(measure, Expr):
            raise UserError(
                f"{name}: {measure!r} is no measure", hint=f'step("{names[0]}").last("amount"), .count(), …'
            )
        _check_values(name, step_values(measure), names)
    return tuple(measures.items())


def _check_values(measure: str, values: Iterable[Expr], names: list[str]) -> None:
    for value in values:
        if value.option("step") not in names:
            raise UserError(
                f"{measure}: {value.text()}, and there is no such step", hint=f"there are {', '.join(names)}"
            )


def _check_predicate(where: str, predicate: Any) -> None:
    if not isinstance(predicate, Expr):
        raise UserError(f"{where}: {predicate!r} is no predicate", hint='col("kind") == "login"')


def _step_name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise UserError(f"a step's name is text, not {name!r}")
    return name


def _times(name: str, times: Any) -> tuple[int, int | None]:
    least, most = python_value(times if isinstance(times, tuple) and len(times) == 2 else (times, times))
    if not is_whole(least, 0) or not (most is None or is_whole(most, max(1, least))):
        raise UserError(f"step {name!r}: times={times!r}", hint="a number, or (least, most); most may be None")
    return least, most
