"""Patterns as users write them: sequences of rows of a key, in the order of event time. They only describe;
`operators/patterns` runs them.

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
  with `times`.
- **Repeated steps.** The last step is complete with its least number of rows. An earlier step continues while rows match, and the
  longest match is found. `skip="none"` finds all matches, also those in which such a step ended earlier, unless it is `greedy`.
- **Overlap.** With `skip="past_last"` matches do not overlap. The match that is complete first counts. If one row completes several,
  the match that began first counts, and of these the one that took rows where others skipped them.
- **Time limit.** `within` includes its bound: two rows five minutes apart are within five minutes.
- **Order.** Rows of equal time are in order of arrival.
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
    """An expression over the rows of a step. Its kind is "step.first", "step.count" and so on; its only input is the
    argument.
    """

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
    """The rows of a match that belong to one step. The methods take names of columns, or expressions over one row.

    For a step without rows (`optional`), the count is 0, a list is empty, and all other values are null.
    """

    step: str

    def count(self) -> Expr:
        """Returns the number of rows, as int64."""
        return StepValue("step.count", (), (("step", self.step),))

    def first(self, x: str | Expr) -> Expr:
        """Returns the value of the first row, which may be null. In a predicate, the step must come before the one
        that has the predicate.
        """
        return self._value("first", x)

    def last(self, x: str | Expr) -> Expr:
        """Returns the value of the last row, which may be null.

        In the predicate of the step itself, it is the value of the row that the step matched before the current row.
        At the first row of the step there is no such row, and a comparison with it is true.
        """
        return self._value("last", x)

    def sum(self, x: str | Expr) -> Expr:
        """Returns the sum, as `sabot.sum`."""
        return self._value("sum", x)

    def min(self, x: str | Expr) -> Expr:
        """Returns the least value."""
        return self._value("min", x)

    def max(self, x: str | Expr) -> Expr:
        """Returns the greatest value."""
        return self._value("max", x)

    def mean(self, x: str | Expr) -> Expr:
        """Returns the mean, as float64."""
        return self._value("mean", x)

    def list(self, x: str | Expr) -> Expr:
        """Returns a list of all values in order, nulls included."""
        return self._value("list", x)

    def _value(self, kind: str, x: str | Expr) -> Expr:
        argument = as_column(x)
        if list(step_values(argument)):
            raise UserError(
                f'step("{self.step}").{kind}({argument.text()}): a value of a step is made of columns of its rows'
            )
        return StepValue(f"step.{kind}", (argument,), (("step", self.step),))


def step(name: str) -> StepRows:
    """Returns the rows of the step of this name, for measures, and for predicates of later steps. Raises UserError
    for an empty name.
    """
    return StepRows(_step_name(name))


def step_values(expr: Expr) -> Iterator[Expr]:
    """Yields all values of steps that are part of an expression."""
    if expr.kind.startswith("step."):
        yield expr
    else:
        for each in expr.inputs:
            yield from step_values(each)


def with_step_values(expr: Expr, values: Mapping[str, Expr]) -> Expr:
    """Returns the expression with each value of a step replaced by the expression that `values` has for the text of
    the value.
    """
    if expr.kind.startswith("step."):
        return values[expr.text()]
    if not expr.inputs:
        return expr
    return Expr(expr.kind, tuple(with_step_values(each, values) for each in expr.inputs), expr.options)


# -- predicates -------------------------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """A comparison `left op right` of the current row with earlier rows. `left_of`, `right_of`: the row that this
    side is about, as (step, "first" or "last"), or None for the current row.
    """

    op: str
    left: Expr
    right: Expr
    left_of: tuple[str, str] | None
    right_of: tuple[str, str] | None


def split(predicate: Expr) -> tuple[Expr | None, list[Comparison]]:
    """Splits a predicate into the part about the current row (None if there is none) and the comparisons with earlier
    rows. The predicate is true if this part and all comparisons are true.

    Raises UserError if values of steps are used in another way than in such comparisons; the hint describes them.
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
        raise UserError(f"{part.text()} cannot compare a row with rows before it", hint=_POSSIBLE)
    (left, left_of), (right, right_of) = (_side(part, each) for each in part.inputs)
    return Comparison(part.kind, left, right, left_of, right_of)


def _side(part: Expr, side: Expr) -> tuple[Expr, tuple[str, str] | None]:
    """Returns one side of a comparison as an expression over one row, and which row that is (see `Comparison`)."""
    values = {value.text(): value for value in step_values(side)}
    if not values:
        return side, None
    rows = {(str(value.option("step")), value.kind.removeprefix("step.")) for value in values.values()}
    blank = Expr("lit", (), (("value", None), ("type", None)))
    own = with_step_values(side, dict.fromkeys(values, blank)).columns
    (first, *others) = sorted(rows)
    if others or own or first[1] not in ("first", "last"):
        raise UserError(f"{part.text()} cannot compare a row with rows before it", hint=_POSSIBLE)
    return with_step_values(side, {text: value.inputs[0] for text, value in values.items()}), first


# -- patterns ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PatternStep:
    """A step of a pattern: `least` to `most` rows (None: any number) for which `predicate` is true. An optional step
    may also have no row.

    `before`, `between`: the rule for rows before the first row of the step, and between its rows. `forbidden`: the
    predicates of rows that must not come before the step (`without`).
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
        """Returns the step as plans show it."""
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
    """A sequence of steps, made by `pattern(…)` and extended by the methods. It is immutable: each method returns a
    new pattern.
    """

    steps: tuple[PatternStep, ...]
    within_ms: int | None = None
    ending: tuple[Expr, ...] = ()
    """The predicates of `without` after the last step. If another step is added, they apply before that step."""

    def next(self, name: str, predicate: Expr, *, times: Times = 1) -> "Pattern":
        """Adds a step: the very next row of the key. With `times`, several rows that follow each other directly.

        Raises UserError after `without`, and for a name that another step has.
        """
        if self.ending:
            raise UserError(
                f"next({name!r}) after without: no row can be between the two steps",
                hint="use then, or a stricter predicate",
            )
        return self._with(name, predicate, times, "next")

    def then(self, name: str, predicate: Expr, *, times: Times = 1) -> "Pattern":
        """Adds a step: the next row that matches, whatever rows come before it. With `times`, the next rows that
        match.

        Raises UserError for a name that another step has.
        """
        return self._with(name, predicate, times, "then")

    def then_any(self, name: str, predicate: Expr, *, times: Times = 1) -> "Pattern":
        """Adds a step: any later row that matches, not only the next one. With `skip="none"` each such row gives a
        match.

        With `times` it is any combination of such rows. Their number grows fast, so set `within` and keep `times`
        small. Raises UserError for a name that another step has.
        """
        return self._with(name, predicate, times, "then_any")

    def optional(self) -> "Pattern":
        """Makes the last step optional: it may have no rows. The rule of the step after it then applies to all rows
        in between.

        Raises UserError after `without`.
        """
        return self._changed(is_optional=True)

    def greedy(self) -> "Pattern":
        """Makes the last step take every row that matches it, even if the row matches the next step too, or if a
        match without it exists.

        It matters with `skip="none"`, and if a row can match both steps. Raises UserError after `then_any` and
        `without`.
        """
        if self.steps[-1].between == "then_any":
            raise UserError(f"step {self.steps[-1].name!r} cannot be greedy and then_any", hint="then, or next")
        return self._changed(is_greedy=True)

    def consecutive(self) -> "Pattern":
        """Requires that the rows of the last step follow each other: no other row of the key is between two of them.

        Raises UserError after `without`.
        """
        return self._changed(between="next")

    def without(self, predicate: Expr) -> "Pattern":
        """Forbids rows between the step before and the step after: a row for which `predicate` is true ends the
        partial match.

        This applies as soon as the step before has its least number of rows, even to a row that matches the step
        after. If the step before is optional and has no rows, the step before that one is meant; the same applies to
        the step after.

        At the end of a pattern with `within`, no such row may come after the last step until `within` has passed
        since the first row. The match is complete then, and `match_end` is that time. Raises UserError for values of
        later steps.
        """
        _check_predicate("without", predicate)
        self._check_steps("without", predicate, own=None)
        return replace(self, ending=(*self.ending, predicate))

    def within(self, duration: Duration) -> "Pattern":
        """Limits the event time from the first row to the last one. Without it, partial matches stay in the state for
        ever.

        Raises UserError for less than 1 ms, and if the pattern has a limit already.
        """
        if self.within_ms is not None:
            raise UserError("within was called twice", hint="a pattern has one time limit")
        ms = parse_ms(duration, name="within")
        if ms < 1:
            raise UserError(f"within: {duration!r} is less than a millisecond")
        return replace(self, within_ms=ms)

    @property
    def columns(self) -> frozenset[str]:
        """The names of the columns that the pattern reads."""
        exprs = [*self.ending, *(each for step in self.steps for each in (step.predicate, *step.forbidden))]
        return frozenset().union(*(each.columns for each in exprs))

    def text(self) -> str:
        """Returns the pattern as plans show it."""
        first, *others = [each.text() for each in self.steps]
        words = [first.removeprefix("then "), *others, *(f"without {each.text()}" for each in self.ending)]
        if self.within_ms is not None:
            words.append(f"within {self.within_ms} ms")
        return ", ".join(words)

    def _with(self, name: str, predicate: Expr, times: Times, before: Before) -> "Pattern":
        """Returns this pattern with one more step. Raises UserError."""
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
        """Returns this pattern with a changed last step. Raises UserError after `without`."""
        if self.ending:
            word = next(iter(what)).removeprefix("is_")
            raise UserError(f"{word} comes after without", hint="call it directly after its step")
        return replace(self, steps=(*self.steps[:-1], replace(self.steps[-1], **what)))

    def _check_steps(self, where: str, predicate: Expr, own: str | None) -> None:
        """Raises UserError for a predicate that names a step which does not come before it, or that `split` refuses."""
        known = [*(each.name for each in self.steps), *([] if own is None else [own])]
        for value in step_values(predicate):
            if value.option("step") not in known:
                raise UserError(
                    f"{where}: {value.text()}, but no step of this name comes before it",
                    hint=f"there are {', '.join(known)}",
                )
        split(predicate)


def pattern(name: str, predicate: Expr, *, times: Times = 1) -> Pattern:
    """Begins a pattern with a step: a row for which `predicate` is true. With `times`, several such rows; other rows
    between them are skipped.

    `times`: a number, or (least, most), with most None for any number; with least 0 the step is optional. Raises
    UserError for a predicate that is not an expression.
    """
    return Pattern(())._with(name, predicate, times, "then")


def check_measures(pattern: Pattern, skip: str, measures: Mapping[str, Any]) -> tuple[tuple[str, Expr], ...]:
    """Checks the arguments of `keyed.pattern(pattern, skip=…, **measures)`, and returns the measures. Raises
    UserError.
    """
    if not isinstance(pattern, Pattern):
        raise UserError(f"{pattern!r} is not a pattern", hint='sabot.pattern("a", col("kind") == "login").then(…)')
    if skip not in SKIPS:
        raise UserError(f"skip={skip!r} is unknown", hint=f"one of {', '.join(SKIPS)}")
    if pattern.ending and pattern.within_ms is None:
        raise UserError("without at the end of a pattern needs within, or it never ends", hint='.within("5m")')
    if all(each.is_optional for each in pattern.steps):
        raise UserError("all steps of the pattern are optional: it would match without any row")
    if pattern.steps[-1].is_optional and skip != "none" and not pattern.ending:
        raise UserError(
            f"the last step, {pattern.steps[-1].name!r}, is optional: the match is complete before it",
            hint='leave it out, or find all matches with skip="none"',
        )
    names = [each.name for each in pattern.steps]
    for name, measure in measures.items():
        if not isinstance(measure, Expr):
            raise UserError(
                f"{name}: {measure!r} is not a measure", hint=f'step("{names[0]}").last("amount"), .count(), …'
            )
        _check_values(name, step_values(measure), names)
    return tuple(measures.items())


def _check_values(measure: str, values: Iterable[Expr], names: list[str]) -> None:
    for value in values:
        if value.option("step") not in names:
            raise UserError(
                f"{measure}: {value.text()}, but there is no step of this name", hint=f"there are {', '.join(names)}"
            )


def _check_predicate(where: str, predicate: Any) -> None:
    if not isinstance(predicate, Expr):
        raise UserError(f"{where}: {predicate!r} is not a predicate", hint='col("kind") == "login"')


def _step_name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise UserError(f"a step's name is text, not {name!r}")
    return name


def _times(name: str, times: Any) -> tuple[int, int | None]:
    least, most = python_value(times if isinstance(times, tuple) and len(times) == 2 else (times, times))
    if not is_whole(least, 0) or not (most is None or is_whole(most, max(1, least))):
        raise UserError(
            f"step {name!r}: times={times!r} is not a number of rows",
            hint="a number, or (least, most); most may be None",
        )
    return least, most
