"""Patterns as regular expressions over rows: groups, alternatives, conditions on several earlier rows, and which of overlapping matches
counts. All of it beside the twin that backtracks as the SQL standard says, whatever the batches, restarts and the parallelism.
"""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sabot.api.expr import Expr, coalesce, col, lit, when
from sabot.api.patterns import Pattern as Sequel
from sabot.api.patterns import check_measures, pattern, step
from sabot.engine.operators.base import TIME_COLUMN
from sabot.engine.operators.patterns.match import Pattern
from sabot.errors import UserError
from tools.operator_run import OperatorRun
from twins import row_pattern as twin

SCHEMA = pa.schema([("key", pa.string()), ("kind", pa.string()), ("x", pa.int64()), (TIME_COLUMN, pa.int64())])
NAMES = "abc"
FEW = settings(max_examples=150, deadline=None)


def batch_of(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(SCHEMA)
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


def is_(kind: str) -> Expr:
    return col("kind") == kind


# -- one thing each -------------------------------------------------------------------------------------------------------

A, B, C = (pattern(letter, is_(letter)) for letter in "abc")


def found(sequel: Sequel, letters: str, skip: Any = "past_last", overlap: Any = "begun") -> list[str]:
    """The rows of the matches among letters that come one a millisecond: "0-2 abb"."""
    rows = batch_of([("k", letter, i, i) for i, letter in enumerate(letters)])
    measures = [("places", step().list("x")), ("kinds", step().list("kind"))]
    with tempfile.TemporaryDirectory() as directory:
        run = OperatorRun(
            lambda: Pattern(["key"], sequel, skip, measures, overlap=overlap), SCHEMA, ["key"], Path(directory)
        )
        run.feed(rows)
        run.end()
    return [f"{row['places'][0]}-{row['places'][-1]} {''.join(row['kinds'])}" for row in run.results]


ANY = lit(True)


@pytest.mark.parametrize(
    ("sequel", "letters", "want"),
    [
        (A.next(B | C), "abacab", ["0-1 ab", "2-3 ac", "4-5 ab"]),
        (A.next(B.next("c", is_("c")), times=(1, None)), "abcbcabcx", ["0-4 abcbc", "5-7 abc"]),
        (A.next(B.next("c", is_("c")), times=2), "abcbcbc", ["0-4 abcbc"]),
        (A.next(B.next("c", is_("c")), times=(1, 2)).next("a", is_("a")), "abcabcbca", ["0-3 abca"]),
        (A.next("b", is_("b"), times=(1, None)), "abbb", ["0-3 abbb"]),  # at the end of the input
        (A.next("b", is_("b"), times=(1, None)).reluctant(), "abbb", ["0-1 ab"]),
        (A.next("b", ANY, times=(1, None)).next("c", is_("c")), "abcbcb", ["0-4 abcbc"]),  # goes back to the last c
        (A.next("b", ANY, times=(1, None)).reluctant().next("c", is_("c")), "abcbcb", ["0-2 abc"]),
        (A.next("b", ANY, times=(1, None)).greedy().next("c", is_("c")), "abcbcb", []),  # "b" takes all
        (A.next("b", ANY, times=(1, 2)).greedy().next("c", is_("c")), "abbcabcc", ["0-3 abbc", "4-7 abcc"]),
        (A.next("b", is_("b") | is_("c")).optional().greedy().next("c", ANY), "acacx", ["0-2 aca"]),
        (pattern("b", is_("b")).optional().greedy().next("c", ANY), "bca", ["0-1 bc", "2-2 a"]),
        (A.next("b", is_("b")).optional(), "aab", ["0-0 a", "1-2 ab"]),
        ((A | A.next("b", is_("b"))).next("c", is_("c")), "abcac", ["0-2 abc", "3-4 ac"]),
        (A.next("x", ANY).next("a", is_("a")), "abaca", ["0-2 aba"]),  # a name twice
        (pattern((A | B), times=(2, None)).next("c", is_("c")), "xababcbac", ["1-5 ababc", "6-8 bac"]),
        (pattern(pattern("a", is_("a"), times=(0, 2)).next("b", is_("b")), times=2), "aabb", ["0-3 aabb"]),
        (A.then(B | C, times=2).within("4ms"), "axbxcab", ["0-4 abc"]),
    ],
    ids=lambda value: value.text() if isinstance(value, Sequel) else None,
)
def test_groups_alternatives_and_quantifiers(sequel: Sequel, letters: str, want: list[str]) -> None:
    assert found(sequel, letters) == want


def test_of_overlapping_matches_the_one_that_began_first_counts() -> None:
    late = pattern("a", is_("a")).next("x", ANY, times=(0, 3)).next("c", is_("c"))
    early = pattern("b", is_("b")).next("d", is_("d"))
    assert found(late | early, "abdc") == ["0-3 abdc"]
    assert found(late | early, "abdc", overlap="complete") == ["1-2 bd"]
    assert found(late | early, "abdxxx") == ["1-2 bd"]  # known when the first cannot become complete any more
    assert found(late | early, "abdc", skip="to_next") == ["0-3 abdc", "1-2 bd"]


@pytest.mark.parametrize(
    ("skip", "want"),
    [
        ("past_last", ["0-3 abbc"]),
        ("to_next", ["0-3 abbc", "1-3 bbc", "2-3 bc"]),
        (("to_first", "b"), ["0-3 abbc", "1-3 bbc", "2-3 bc"]),
        (("to_last", "b"), ["0-3 abbc", "2-3 bc"]),
        (("to_last", "c"), ["0-3 abbc"]),
    ],
)
@pytest.mark.parametrize("overlap", ["begun", "complete"])
def test_where_the_next_match_begins(skip: Any, want: list[str], overlap: Any) -> None:
    sequel = pattern("a", is_("a"), times=(0, 1)).next("b", is_("b"), times=(1, None)).next("c", is_("c"))
    assert found(sequel, "abbc", skip) == want
    if overlap == "complete" and skip != "to_next":
        assert found(sequel, "abbc", skip, overlap)[0] == want[0]


def test_the_event_time_of_a_match_is_when_it_was_certain(tmp_path: Path) -> None:
    sequel = pattern("a", is_("a")).next("b", is_("b"), times=(1, None)).within("10ms")
    run = OperatorRun(
        lambda: Pattern(["key"], sequel, "past_last", [("n", step("b").count())], overlap="begun"),
        SCHEMA,
        ["key"],
        tmp_path / "run",
        punctual=True,
    )
    run.feed(
        batch_of(
            [("k", "a", 0, 0), ("k", "b", 0, 1), ("k", "b", 0, 2), ("k", "x", 0, 7), ("l", "a", 0, 8), ("l", "b", 0, 9)]
        )
    )
    run.advance(15)
    assert [(row["key"], row["n"], row[TIME_COLUMN]) for row in run.results] == [("k", 2, 7)]
    run.advance(19)
    assert [(row["key"], row["n"], row[TIME_COLUMN]) for row in run.results[1:]] == [("l", 1, 18)]


def test_a_long_run_of_rows_keeps_few_partial_matches(tmp_path: Path) -> None:
    falling = coalesce(col("x") < step("down").last("x"), lit(False)) | step("down").last("x").is_null()
    sequel = pattern("first", ANY).next("down", falling, times=(1, None)).next("up", col("x") > step("down").last("x"))
    run = OperatorRun(
        lambda: Pattern(["key"], sequel, "past_last", [], overlap="begun"), SCHEMA, ["key"], tmp_path / "run"
    )
    run.feed(batch_of([("k", "", -i, i) for i in range(5000)]))
    assert run.statistic("partial_matches") <= 4
    run.feed(batch_of([("k", "", 1, 5000)]))
    assert [row["match_start"].timestamp() for row in run.results] == [0.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: A.next(B, is_("b")), "no predicate of its own"),
        (lambda: A.next(B.within("5m")), "no within"),
        (lambda: A | is_("b"), "not a pattern"),
        (lambda: (A | B).greedy(), "group cannot be greedy"),
        (lambda: (A | B).without(is_("c")), "not after a group"),
        (lambda: A.greedy().reluctant(), "greedy and reluctant"),
        (lambda: A.reluctant().greedy(), "greedy and reluctant"),
        (lambda: A.next("b"), "not a predicate"),
        (lambda: A.next(B, times=62), "at most 62 steps"),
        (lambda: step("a").last("x", offset=-1), "offset=-1"),
        (
            lambda: check_measures(A.next("b", col("x") > step("c").first("x")).next("c", ANY), "past_last", {}),
            "no step of this name",
        ),
        (
            lambda: check_measures(A | pattern("b", col("x") > step("a").last("x")), "past_last", {}),
            "no step of this name",
        ),
        (lambda: check_measures(A, ("to_last", "b"), {}), "no step of this name"),
        (lambda: check_measures(A.next("b", ANY), ("to_first", "a"), {}), "the same row"),
        (lambda: check_measures(A, ("to_end", "a"), {}), "unknown"),
        (lambda: check_measures(A, "past_last", {}, "last"), "overlap='last'"),
        (lambda: check_measures(pattern(pattern("a", ANY).optional(), times=3), "past_last", {}), "without any row"),
        (lambda: pattern("a", step("a").list("x").is_null()), "no lists"),
        (lambda: A.next("b", (col("kind") + step("a").last("kind")).str.len_chars() > 2), "over several rows"),
    ],
)
def test_what_cannot_be_is_said(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_types_that_cannot_be_computed_over_rows_are_said_before_any_row() -> None:
    for expr in (
        col("x").cast("uint64") + step("a").last(col("x").cast("uint64")) > 1,
        col("x").cast(pa.decimal128(9, 2)) > step("a").sum(col("x").cast(pa.decimal128(9, 2))),
        (col("x") + step("a").last("x")).cast("string") == "2",
    ):
        with pytest.raises(UserError, match="cast"):
            Pattern(["key"], A.next("b", expr), "past_last", []).open(_context())


def _context() -> Any:
    from sabot.engine.operators.base import OperatorContext

    return OperatorContext(SCHEMA)


# -- conditions beside Python ----------------------------------------------------------------------------------------------


def of_rows(rows: Any, taken: twin.Taken, name: str | None) -> list[Any]:
    return [rows[at]["x"] for at, its in taken if name in (None, its)]


def present(values: list[Any]) -> list[Any]:
    return [value for value in values if value is not None]


AGGREGATES: dict[str, Callable[[list[Any]], Any]] = {
    "sum": lambda values: sum(present(values)) if present(values) else None,
    "min": lambda values: min(present(values), default=None),
    "max": lambda values: max(present(values), default=None),
    "mean": lambda values: sum(present(values)) / len(present(values)) if present(values) else None,
    "first": lambda values: values[0] if values else None,
    "last": lambda values: values[-1] if values else None,
    "second": lambda values: values[1] if len(values) > 1 else None,
    "before": lambda values: values[-2] if len(values) > 1 else None,
    "count": len,
}


def step_value(name: str | None, what: str) -> Expr:
    rows = step(name)
    if what == "count":
        return rows.count()
    if what in ("second", "before"):
        return rows.first("x", offset=1) if what == "second" else rows.last("x", offset=1)
    return getattr(rows, what)("x")  # type: ignore[no-any-return]


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


@st.composite
def conditions(draw: st.DrawFn, names: list[str], depth: int = 2) -> tuple[Expr, twin.Condition]:
    """A condition as an expression, and as a function of Python."""
    kind = draw(
        st.sampled_from(["letter", "letter", "true", "compare", "compare", *(["and", "or", "not"] if depth else [])])
    )
    if kind == "letter":
        letter = draw(st.sampled_from("ab"))
        return is_(letter), lambda rows, at, taken: rows[at]["kind"] == letter
    if kind == "true":
        return lit(True), lambda rows, at, taken: True
    if kind == "compare":
        return draw(comparisons(names))
    expr, holds = draw(conditions(names, depth - 1))
    if kind == "not":
        return ~expr, lambda rows, at, taken: None if (it := holds(rows, at, taken)) is None else not it
    other, too = draw(conditions(names, depth - 1))
    deciding = kind == "or"

    def both(rows: Any, at: int, taken: twin.Taken) -> bool | None:
        answers = [holds(rows, at, taken), too(rows, at, taken)]
        return deciding if deciding in answers else None if None in answers else not deciding

    return (expr | other if deciding else coalesce(expr & other, lit(None))), both


@st.composite
def comparisons(draw: st.DrawFn, names: list[str]) -> tuple[Expr, twin.Condition]:
    name, other = draw(st.sampled_from([*names, None])), draw(st.sampled_from([*names, None]))
    what, which = draw(st.sampled_from(sorted(AGGREGATES))), draw(st.sampled_from(sorted(AGGREGATES)))
    op = draw(st.sampled_from(sorted(COMPARE)))
    shape = draw(st.sampled_from(["row", "null", "two", "with", "case", "divided"]))
    value, its = step_value(name, what), AGGREGATES[what]

    def compared(a: Any, b: Any) -> bool | None:
        return None if a is None or b is None else COMPARE[op](a, b)

    if shape == "null":
        return value.is_null(), lambda rows, at, taken: its(of_rows(rows, taken, name)) is None
    if shape == "row":  # the engine takes such a comparison with the step's own row before for true at its first row
        return coalesce(Expr(op, (col("x"), value)), lit(None)), lambda rows, at, taken: compared(
            rows[at]["x"], its(of_rows(rows, taken, name))
        )
    second, their = step_value(other, which), AGGREGATES[which]
    if shape == "two":
        return coalesce(Expr(op, (col("x") * 2, value + second)), lit(None)), lambda rows, at, taken: compared(
            None if (x := rows[at]["x"]) is None else 2 * x,
            None
            if (a := its(of_rows(rows, taken, name))) is None or (b := their(of_rows(rows, taken, other))) is None
            else a + b,
        )
    if shape == "with":
        return coalesce(
            Expr(op, (coalesce(value, lit(0)) + col("x").fill_null(0), lit(3))), lit(None)
        ), lambda rows, at, taken: compared((its(of_rows(rows, taken, name)) or 0) + (rows[at]["x"] or 0), 3)
    if shape == "case":
        return coalesce(
            Expr(op, (when(value > 1).then(second).otherwise(col("x")), lit(2))), lit(None)
        ), lambda rows, at, taken: compared(
            their(of_rows(rows, taken, other))
            if (a := its(of_rows(rows, taken, name))) is not None and a > 1
            else rows[at]["x"],
            2,
        )
    whole = step(name).sum("x")
    return (
        coalesce(Expr(op, (whole // col("x"), whole % col("x") - 1)), lit(None)),
        lambda rows, at, taken: (
            None
            if (a := AGGREGATES["sum"](of_rows(rows, taken, name))) is None or not (x := rows[at]["x"])
            else COMPARE[op](a // x, a % x - 1)
        ),
    )


# -- random patterns ---------------------------------------------------------------------------------------------------------


@st.composite
def parts(draw: st.DrawFn, exprs: dict[str, Expr], depth: int) -> tuple[Sequel, twin.Part]:
    """A pattern of rows without gaps, and the same for the twin."""
    made: Sequel | None = None
    pieces: list[twin.Part] = []
    for _ in range(draw(st.integers(1, 3 if depth else 2))):
        least, most = draw(
            st.sampled_from([(1, 1), (1, 1), (0, 1), (1, None), (0, None), (2, 2), (1, 2), (2, None), (0, 2)])
        )
        reluctant = draw(st.integers(0, 3)) == 0
        kind = draw(st.sampled_from(["step", "step", *(["group", "choice"] if depth else [])]))
        given: tuple[Any, ...]
        if kind == "step":
            name = draw(st.sampled_from(sorted(exprs)))
            given, piece = (name, exprs[name]), twin.Variable(name)
        else:
            some = [draw(parts(exprs, depth - 1)) for _ in range(1 if kind == "group" else 2)]
            group, piece = some[0]
            for other, its in some[1:]:
                group, piece = group | other, twin.Choice((piece, its))
            given = (group,)
        made = pattern(*given, times=(least, most)) if made is None else made.next(*given, times=(least, most))
        if (least, most) != (1, 1):
            greedy = depth == 2 and kind == "step" and not reluctant and draw(st.booleans())
            made, piece = made.consecutive(), twin.Repeated(piece, least, most, reluctant, greedy)
            made = made.reluctant() if reluctant else made.greedy() if greedy else made
        pieces.append(piece)
    assert made is not None
    return made, twin.Sequel(tuple(pieces))


EVENTS = st.lists(
    st.tuples(st.sampled_from(["k", "l"]), st.sampled_from("abx"), st.none() | st.integers(-2, 4), st.integers(0, 2)),
    max_size=12,
)
CUTS = st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.sampled_from([0, 0, 1, 2, 3])), max_size=4)


@pytest.mark.slow  # half a second of a core
@FEW
@given(st.data(), EVENTS, CUTS, st.sampled_from([1, 3, 1000]), st.none() | st.integers(0, 8))
def test_matches_are_those_of_the_standard(data: Any, drawn: Any, cuts: Any, size: int, within: int | None) -> None:
    names = list(NAMES[: data.draw(st.integers(1, 3))])
    define = {name: data.draw(conditions(names)) for name in names}
    try:
        sequel, part = data.draw(parts({name: expr for name, (expr, _) in define.items()}, 2))
    except UserError:
        assume(False)  # it has too many steps
    sequel = sequel.within(within / 1000) if within else sequel
    there = sorted({each.name for each in sequel.steps})
    skip = data.draw(
        st.sampled_from(["past_last", "past_last", "to_next", *itertools.product(["to_first", "to_last"], there)])
    )
    measures = [("places", step().list(col("i"))), *((f"of_{name}", step(name).list(col("i"))) for name in there)]
    measures += [(f"n_{name}", step(name).count()) for name in there]
    try:
        check_measures(sequel, skip, dict(measures), "begun")
    except UserError:
        assume(False)  # it may match no row, or a predicate names a step that cannot come before
    times = list(itertools.accumulate(gap for *_, gap in drawn))
    events = [(key, kind, x, i, at) for i, ((key, kind, x, _), at) in enumerate(zip(drawn, times, strict=True))]
    schema = pa.schema([*list(SCHEMA)[:3], ("i", pa.int64()), (TIME_COLUMN, pa.int64())])

    def batch(rows: list[Any]) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)

    with tempfile.TemporaryDirectory() as directory:
        run = OperatorRun(
            lambda: Pattern(["key"], sequel, skip, measures, overlap="begun"),
            schema,
            ["key"],
            Path(directory),
            punctual=True,
        )
        at = 0
        for cut, watermark, restart in sorted(cuts):
            if at < cut:
                run.feed(batch(events[at:cut]), size)
                at = min(cut, len(events))
            if watermark and at < len(events):
                run.advance(events[at][4])
            if restart:
                run.restart(restart)
        if events[at:]:
            run.feed(batch(events[at:]), size)
        run.end()
    want = []
    for key in "kl":
        rows = [{"kind": kind, "x": x, "i": i, "time": at} for its, kind, x, i, at in events if its == key]
        holds = {name: condition for name, (_, condition) in define.items()}
        for match in twin.matches(part, holds, rows, skip=skip, within=within or None):
            of_name = {name: [rows[at]["i"] for at, its in match if its == name] for name in there}
            row = {
                "key": key,
                "places": [rows[at]["i"] for at, _ in match],
                **{f"of_{name}": of_name[name] for name in there},
            }
            want.append({**row, **{f"n_{name}": len(of_name[name]) for name in there}})
    shown = [{name: row[name] for name in ["key", *dict(measures)]} for row in run.results]
    assert sorted(shown, key=repr) == sorted(want, key=repr)
