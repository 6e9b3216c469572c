"""Patterns over columns: what is a match, what is measured, and that no split, restart or rescale changes it."""

import datetime
import itertools
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.arrow.batch import Batch
from sabot.api.expr import Expr, col, concat_str, lit, max_horizontal
from sabot.api.patterns import Pattern as Sequel
from sabot.api.patterns import check_measures, pattern, step
from sabot.codecs.json import schema_of_text
from sabot.engine.operators.base import TIME_COLUMN, Operator, OperatorContext
from sabot.engine.operators.keyed.ordered import EventOrder
from sabot.engine.operators.patterns.match import Pattern
from sabot.engine.operators.patterns.state import PatternState
from sabot.errors import CorruptCheckpoint, DataError, UserError
from tools.operator_run import OperatorRun
from twins.pattern import Row, Spec, twin

SCHEMA = pa.schema([("key", pa.string()), ("kind", pa.string()), ("x", pa.float64()), (TIME_COLUMN, pa.int64())])
UTC = datetime.UTC


def is_(kind: str) -> Expr:
    return col("kind") == kind


def batch_of(rows: Sequence[tuple[Any, ...]], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def time(ms: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ms / 1000, UTC)


def measures_of(**measures: Expr) -> list[tuple[str, Expr]]:
    return list(measures.items())


def run_of(
    make: Callable[[], Operator], rows: pa.RecordBatch, tmp_path: Path, *, keys: Sequence[str] = ("key",)
) -> OperatorRun:
    run = OperatorRun(make, rows.schema, list(keys), tmp_path / "run")
    run.feed(rows)
    run.end()
    return run


def found(sequel: Sequel, letters: str, skip: str = "past_last") -> list[str]:
    """The matches among letters that come one a millisecond, each as the letters' places: "a0 b1b2 c5"."""
    rows = batch_of([("k", letter, float(i), i) for i, letter in enumerate(letters)])
    places = [(each.name, step(each.name).list("x")) for each in sequel.steps]
    with tempfile.TemporaryDirectory() as directory:
        run = run_of(lambda: Pattern(["key"], sequel, skip, places), rows, Path(directory))
    return [
        " ".join("".join(f"{name}{int(at)}" for at in row[name]) for name, _ in places if row[name])
        for row in run.results
    ]


# The words


def test_logins_that_fail_and_then_a_large_payment(tmp_path: Path) -> None:
    sequel = (
        pattern("login", is_("login"))
        .then("fail", is_("fail"), times=(3, None))
        .without(is_("logout"))
        .then("big", col("x") > step("login").first("x") * 2)
        .within("5m")
    )
    minute = 60_000
    events = [
        ("ann", "login", 10.0, 0),
        ("bob", "login", 10.0, 1),
        *(("ann", "fail", 0.0, t * 1000) for t in (1, 2, 3, 4)),
        *(("bob", "fail", 0.0, t * 1000) for t in (5, 6, 7)),
        ("ann", "pay", 20.0, minute),
        ("bob", "logout", 0.0, minute + 1),
        ("ann", "pay", 20.5, minute + 2),
        ("bob", "pay", 99.0, minute + 3),
        ("cyd", "login", 1.0, 2 * minute),
        *(("cyd", "fail", 0.0, 2 * minute + t) for t in (1, 2, 3)),
        ("cyd", "pay", 9.0, 7 * minute + 1),
    ]
    measures = measures_of(
        fails=step("fail").count(),
        limit=step("login").first("x"),
        paid=step("big").last("x"),
        over=step("big").last("x") - step("login").first("x"),
        took=(col("match_end") - col("match_start")).cast("int64"),
    )
    run = run_of(lambda: Pattern(["key"], sequel, "past_last", measures), batch_of(events), tmp_path)
    assert run.results == [
        {
            "key": "ann",
            "match_start": time(0),
            "match_end": time(minute + 2),
            "fails": 4,
            "limit": 10.0,
            "paid": 20.5,
            "over": 10.5,
            "took": minute + 2,
            TIME_COLUMN: minute + 2,
        }
    ]


DECIMAL = col("x").cast(pa.decimal128(30, 2))
A, B, C = is_("a"), is_("b"), is_("c")


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("sequel", "letters", "past_last", "to_next", "none"),
    [
        (pattern("a", A).next("b", B), "axbab", ["a3 b4"], ["a3 b4"], ["a3 b4"]),
        (pattern("a", A).then("b", B), "axbb", ["a0 b2"], ["a0 b2"], ["a0 b2"]),
        (pattern("a", A).then("b", B), "aabb", ["a0 b2"], ["a0 b2", "a1 b2"], ["a0 b2", "a1 b2"]),
        (pattern("a", A).then_any("b", B), "axbb", ["a0 b2"], ["a0 b2"], ["a0 b2", "a0 b3"]),
        (pattern("a", A).then("b", B, times=2), "abxb", ["a0 b1b3"], ["a0 b1b3"], ["a0 b1b3"]),
        (pattern("a", A).next("b", B, times=2), "abxbabb", ["a4 b5b6"], ["a4 b5b6"], ["a4 b5b6"]),
        (pattern("a", A).then("b", B, times=2).consecutive(), "abxbb", [], [], []),
        (pattern("a", A).then_any("b", B, times=2).consecutive(), "abxbb", ["a0 b3b4"], ["a0 b3b4"], ["a0 b3b4"]),
        (
            pattern("a", A).then_any("b", B, times=2),
            "abbb",
            ["a0 b1b2"],
            ["a0 b1b2"],
            ["a0 b1b2", "a0 b1b3", "a0 b2b3"],
        ),
        (
            pattern("a", A).then("b", B, times=(1, None)).then("c", C),
            "abbc",
            ["a0 b1b2 c3"],
            ["a0 b1b2 c3"],
            ["a0 b1b2 c3", "a0 b1 c3"],
        ),
        (
            pattern("a", A).then("b", B, times=(1, None)).greedy().then("c", C),
            "abbc",
            ["a0 b1b2 c3"],
            ["a0 b1b2 c3"],
            ["a0 b1b2 c3"],
        ),
        (pattern("a", A).then("b", B, times=(1, None)), "abb", ["a0 b1"], ["a0 b1"], ["a0 b1", "a0 b1b2"]),
        (
            pattern("a", A).then("b", B).optional().then("c", C),
            "abc",
            ["a0 b1 c2"],
            ["a0 b1 c2"],
            ["a0 b1 c2", "a0 c2"],
        ),
        (pattern("a", A).then("b", B, times=(0, 2)).then("c", C), "axc", ["a0 c2"], ["a0 c2"], ["a0 c2"]),
        (pattern("a", A).without(B).then("c", C), "abcac", ["a3 c4"], ["a3 c4"], ["a3 c4"]),
        (
            pattern("a", A, times=2).without(B).then("c", C),
            "abacaabc",
            ["a0a2 c3"],
            ["a0a2 c3"],
            ["a0a2 c3"],
        ),
        (pattern("a", A).then("b", B).without(C).within(0.005), "abcabaxxxx", ["a3 b4"], ["a3 b4"], ["a3 b4"]),
        (pattern("a", A).then("b", B).within(0.002), "axbaxxb", ["a0 b2"], ["a0 b2"], ["a0 b2"]),
        (pattern("a", A), "aba", ["a0", "a2"], ["a0", "a2"], ["a0", "a2"]),
        (
            pattern("a", A, times=(2, 3)),
            "aaaa",
            ["a0a1", "a2a3"],
            ["a0a1", "a1a2", "a2a3"],
            ["a0a1", "a0a1a2", "a1a2", "a1a2a3", "a2a3"],
        ),
        (pattern("a", lit(True)).next("b", lit(True)), "xyz", ["a0 b1"], ["a0 b1", "a1 b2"], ["a0 b1", "a1 b2"]),
    ],
    ids=lambda value: value.text() if isinstance(value, Sequel) else None,
)
def test_what_is_a_match(
    sequel: Sequel, letters: str, past_last: list[str], to_next: list[str], none: list[str]
) -> None:
    assert sorted(found(sequel, letters)) == sorted(past_last)
    assert sorted(found(sequel, letters, "to_next")) == sorted(to_next)
    assert sorted(found(sequel, letters, "none")) == sorted(none)


def test_prices_that_fall_and_rise_again() -> None:
    falling = (col("x") < step("a").last("x")) & (col("x") < step("down").last("x"))
    rising = (col("x") > step("down").last("x")) & (col("x") > step("up").last("x"))
    sequel = pattern("a", lit(True)).next("down", falling, times=(1, None)).next("up", rising, times=(2, None))
    prices = [5.0, 4.0, 2.0, 3.0, 6.0, 1.0]
    rows = batch_of([("k", "tick", price, i) for i, price in enumerate(prices)])
    lists = measures_of(down=step("down").list("x"), up=step("up").list("x"))
    with tempfile.TemporaryDirectory() as directory:
        run = run_of(lambda: Pattern(["key"], sequel, "past_last", lists), rows, Path(directory))
    assert [(row["down"], row["up"]) for row in run.results] == [([4.0, 2.0], [3.0, 6.0])]


def test_what_did_not_follow_is_found_when_its_time_is_over(tmp_path: Path) -> None:
    sequel = pattern("order", is_("order")).without(is_("pay")).within("10s")
    run = OperatorRun(lambda: Pattern(["key"], sequel, "past_last", []), SCHEMA, ["key"], tmp_path / "run")
    run.feed(batch_of([("ann", "order", 0.0, 0), ("bob", "order", 0.0, 1000), ("ann", "pay", 0.0, 10_000)]))
    run.advance(11_000)
    assert run.results == []  # a row at 11,000 may still be bob's payment
    run.feed(batch_of([("cyd", "order", 0.0, 11_000)]))
    run.advance(11_001)
    assert run.results == [{"key": "bob", "match_start": time(1000), "match_end": time(11_000), TIME_COLUMN: 11_000}]


def test_a_key_is_not_the_row_of_another(tmp_path: Path) -> None:
    sequel = pattern("a", A).next("b", B)
    rows = batch_of(
        [("k", "a", 0.0, 0), ("l", "x", 0.0, 1), ("k", "b", 0.0, 2), (None, "a", 0.0, 3), (None, "b", 0.0, 4)]
    )
    run = run_of(lambda: Pattern(["key"], sequel, "past_last", []), rows, tmp_path)
    assert [row["key"] for row in run.results] == ["k", None]


# Measures


def test_measures_of_steps_with_and_without_rows(tmp_path: Path) -> None:
    sequel = pattern("a", A, times=(1, None)).then("b", B).optional().then("c", C)
    rows = batch_of(
        [("k", kind, x, i) for i, (kind, x) in enumerate([("a", 1.0), ("a", None), ("a", 4.0), ("c", 7.0)])]
    )
    of = {"first", "last", "sum", "min", "max", "mean", "list"}
    measures = measures_of(
        **{f"a_{kind}": getattr(step("a"), kind)("x") for kind in sorted(of)},
        **{f"b_{kind}": getattr(step("b"), kind)("x") for kind in sorted(of)},
        a=step("a").count(),
        b=step("b").count(),
        kinds=step("c").list(col("kind").str.upper()),
        both=step("a").sum("x") + step("c").sum(col("x") * 2),
    )
    (row,) = run_of(lambda: Pattern(["key"], sequel, "past_last", measures), rows, tmp_path).results
    assert {name: value for name, value in row.items() if name.startswith("a")} == {
        "a": 3,
        "a_first": 1.0,
        "a_last": 4.0,
        "a_sum": 5.0,
        "a_min": 1.0,
        "a_max": 4.0,
        "a_mean": 2.5,
        "a_list": [1.0, None, 4.0],
    }
    assert {name: value for name, value in row.items() if name.startswith("b_")} == {
        "b_list": [],
        **{f"b_{kind}": None for kind in of - {"list"}},
    }
    assert (row["b"], row["kinds"], row["both"]) == (0, ["C"], 19.0)


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("type", "values", "op", "hits"),
    [
        (pa.int8(), [3, 2, 4], ">", [4]),
        (pa.uint64(), [2**63, 5, 2**64 - 1], ">", [2**64 - 1]),
        (pa.bool_(), [True, False, True], "==", [True]),
        (pa.float32(), [1.5, 1.5, math.nan], ">", [math.nan]),
        (pa.float64(), [math.nan, 1.0, math.nan], "==", [math.nan]),
        (pa.float64(), [0.0, 1.0, -0.0], "==", [-0.0]),
        (pa.string(), ["be", None, "bee"], ">", ["bee"]),
        (pa.binary(), [b"a", b"b", b"a"], "==", [b"a"]),
        (
            pa.date32(),
            [datetime.date(2026, 1, 2), datetime.date(2026, 1, 1), datetime.date(2026, 1, 3)],
            ">",
            [datetime.date(2026, 1, 3)],
        ),
        (pa.timestamp("us", "UTC"), [time(5), time(4), time(6)], ">", [time(6)]),
        (
            pa.duration("ms"),
            [datetime.timedelta(1), datetime.timedelta(0), datetime.timedelta(2)],
            ">",
            [datetime.timedelta(2)],
        ),
        (pa.time32("s"), [datetime.time(1), datetime.time(0), datetime.time(2)], ">", [datetime.time(2)]),
    ],
    ids=lambda value: str(value) if isinstance(value, pa.DataType) else None,
)
def test_values_of_each_type_are_compared_with_those_of_earlier_rows(
    type: pa.DataType, values: list[Any], op: str, hits: list[Any], tmp_path: Path
) -> None:
    schema = pa.schema([("key", pa.int64()), ("i", pa.int64()), ("v", type), (TIME_COLUMN, pa.int64())])
    rows = batch_of([(1, i, value, i) for i, value in enumerate(values)], schema)
    sequel = pattern("a", col("i") == 0).then("b", Expr(op, (col("v"), step("a").last("v"))))
    measures = measures_of(v=step("b").last("v"))

    run = OperatorRun(lambda: Pattern(["key"], sequel, "past_last", measures), schema, ["key"], tmp_path / "run")
    for i in range(3):
        run.feed(rows.slice(i, 1))
        run.restart(1)  # what is remembered comes back
    assert repr([row["v"] for row in run.results]) == repr(pa.array(hits, type).to_pylist())


def test_integers_of_different_widths_and_floats_are_compared_by_value(tmp_path: Path) -> None:
    schema = pa.schema([("key", pa.int64()), ("i", pa.int8()), ("f", pa.float64()), (TIME_COLUMN, pa.int64())])
    sequel = pattern("a", col("i") == 1).then("b", (col("f") > step("a").last("i")) & (step("a").last("f") < col("i")))
    rows = batch_of([(1, 1, 0.5, 0), (1, 0, 1.5, 1), (1, 3, 1.0, 2), (1, 3, 1.25, 3)], schema)
    run = run_of(lambda: Pattern(["key"], sequel, "past_last", measures_of(f=step("b").last("f"))), rows, tmp_path)
    assert [row["f"] for row in run.results] == [1.25]


@pytest.mark.parametrize("type", [pa.timestamp("s"), pa.timestamp("ms", "UTC"), pa.timestamp("us"), pa.date32()])
def test_the_time_between_rows_is_compared_with_a_duration(type: pa.DataType, tmp_path: Path) -> None:
    """A literal duration has microseconds: the difference of times in ms was refused beside it."""
    schema = pa.schema([("key", pa.int64()), ("i", pa.int64()), ("at", type), (TIME_COLUMN, pa.int64())])
    gap = col("at") - step("a").last("at")
    day, more = datetime.timedelta(days=1), datetime.timedelta(days=1, microseconds=1)
    near = gap.between(day, more) & (gap.abs() < more) & (-gap < day) & (step("a").last("at") + day == col("at"))
    sequel = pattern("a", col("i") == 0).then("b", near)
    days = [datetime.date(2024, 1, day) for day in (1, 1, 2)]
    rows = batch_of([(1, i, pa.scalar(day).cast(type).as_py(), i) for i, day in enumerate(days)], schema)
    run = run_of(lambda: Pattern(["key"], sequel, "past_last", measures_of(i=step("b").last("i"))), rows, tmp_path)
    assert [row["i"] for row in run.results] == [2]


@pytest.mark.parametrize(
    "predicate",
    [
        max_horizontal(step("none").last("v"), lit(3)) == 3,
        max_horizontal(step("a").last("v", offset=1), lit(3)) == 3,
        step("none").first("v").replace_strict({1: "one"}, default="other") == "other",
        concat_str(step("none").last("v"), lit("x"), ignore_nulls=True) == "x",
        (max_horizontal(step("a").last("v"), lit(0)) == 5) & (max_horizontal(step().last("v"), lit(0)) == 5),
    ],
    ids=Expr.text,
)
def test_a_value_of_rows_that_are_not_there_is_null_for_every_function(predicate: Expr, tmp_path: Path) -> None:
    schema = pa.schema([("key", pa.int64()), ("i", pa.int64()), ("v", pa.int64()), (TIME_COLUMN, pa.int64())])
    sequel = pattern("a", col("i") == 0).next("none", col("i") == 9).optional().next("b", predicate)
    rows = batch_of([(1, 0, 5, 0), (1, 1, 7, 1)], schema)
    run = run_of(lambda: Pattern(["key"], sequel, "past_last", measures_of(v=step("b").last("v"))), rows, tmp_path)
    assert [row["v"] for row in run.results] == [7]


def test_a_null_among_the_values_of_is_in_decides_nothing(tmp_path: Path) -> None:
    schema = pa.schema([("key", pa.int64()), ("i", pa.int64()), (TIME_COLUMN, pa.int64())])
    step_up = col("i") - step("a").last("i")
    sequel = pattern("a", col("i") == 0).then("b", ~step_up.is_in([1, None]) & ~step_up.is_in([]))
    rows = batch_of([(1, i, i) for i in range(3)], schema)
    run = run_of(lambda: Pattern(["key"], sequel, "past_last", measures_of(i=step("b").last("i"))), rows, tmp_path)
    assert [row["i"] for row in run.results] == [2]


def test_integers_that_are_no_floats_are_computed_with_floats(tmp_path: Path) -> None:
    """Those above 2**53, such as ids and ns, ended the app when they were divided by those of an earlier row."""
    schema = pa.schema([("key", pa.int64()), ("i", pa.int64()), ("u", pa.uint64()), (TIME_COLUMN, pa.int64())])
    a = step("a")
    grown = (col("i") / a.last("i") > 1.5) & (col("i") > a.mean("i")) & (col("u") * 1.5 > a.last("u"))
    sequel = pattern("a", col("i") >= 0).then("b", grown)
    rows = batch_of([(1, 2**60 + 1, 2**63 + 1, 0), (1, 2**61 + 3, 2**63 + 3, 1)], schema)
    run = run_of(lambda: Pattern(["key"], sequel, "past_last", measures_of(i=step("b").last("i"))), rows, tmp_path)
    assert [row["i"] for row in run.results] == [2**61 + 3]


# No split, restart or rescale changes anything

LETTERS = "abcd"
FEW = settings(max_examples=60, deadline=None)


@st.composite
def sequels(draw: st.DrawFn) -> tuple[Sequel, Spec]:
    """A pattern, and the same as the twin of the kernel takes it."""
    count, within = draw(st.integers(1, 4)), draw(st.none() | st.integers(1, 15))
    sequel: Sequel | None = None
    steps, gaps = [], []
    slots = [
        (i, first) for i in range(count) for first in (True, False)
    ]  # slot 2i: the first x of step i; 2i + 1: the last

    def predicate(own: int) -> tuple[Expr, Any]:
        bit = draw(st.integers(0, 3))
        expr, conditions = is_(LETTERS[bit]), []
        known = [i for i in range(len(steps) + (own >= 0))]
        if known and draw(st.integers(0, 2)) == 0:
            i, op, last = (
                draw(st.sampled_from(known)),
                draw(st.sampled_from(["==", "!=", "<", ">="])),
                draw(st.booleans()),
            )
            remembered = step(f"s{i}").last("x") if last else step(f"s{i}").first("x")
            expr = expr & Expr(op, (col("x"), remembered))
            conditions = [(op, 2 * i + last, i == own)]
        return expr, (bit, conditions)

    for i in range(count):
        gap = []
        kind = draw(st.sampled_from(["then", "then", "then_any", "next"])) if sequel is not None else "then"
        if sequel is not None and kind != "next" and draw(st.integers(0, 3)) == 0:
            expr, test = predicate(-1)
            sequel, gap = sequel.without(expr), [test]
        expr, test = predicate(i)
        least, most = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (1, None), (2, None)]))
        sequel = (
            pattern("s0", expr, times=(least, most))
            if sequel is None
            else getattr(sequel, kind)(f"s{i}", expr, times=(least, most))
        )
        between, greedy, optional = kind, False, False
        if draw(st.integers(0, 4)) == 0:
            sequel, between = sequel.consecutive(), "next"
        if between != "then_any" and draw(st.integers(0, 4)) == 0:
            sequel, greedy = sequel.greedy(), True
        if 0 < i < count - 1 and draw(st.integers(0, 4)) == 0:
            sequel, optional = sequel.optional(), True
        steps.append((least, most, kind, between, optional, greedy, test))
        gaps.append(gap)
    last = []
    if within is not None:
        if draw(st.integers(0, 3)) == 0:
            expr, test = predicate(-1)
            sequel, last = sequel.without(expr), [test]
        sequel = sequel.within(within / 1000)
    skip = draw(st.sampled_from(["past_last", "to_next", "none"]))
    return sequel, Spec(steps, [*gaps, last], slots, "float", within, skip)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob", None]),
        st.sampled_from("aabbccdx"),
        st.none() | st.integers(0, 3),
        st.integers(0, 3),
    ),
    max_size=14,
)
ASKED = st.sampled_from([["list", "sum"], ["first", "last"], ["last"], []])  # of x, beside the count
CUTS = st.lists(st.tuples(st.integers(0, 14), st.booleans(), st.sampled_from([0, 0, 1, 2, 3])), max_size=4)


MEASURED: dict[str, Callable[[list[Any]], Any]] = {
    "list": lambda values: values,
    "sum": lambda values: sum(known) if (known := [x for x in values if x is not None]) else None,
    "first": lambda values: values[0] if values else None,
    "last": lambda values: values[-1] if values else None,
}


@FEW
@given(sequels(), EVENTS, CUTS, st.sampled_from([1, 3, 1000]), st.lists(ASKED, min_size=4, max_size=4))
def test_matches_and_measures_are_those_of_the_twin(
    given_: tuple[Sequel, Spec], drawn: Any, cuts: Any, size: int, asked: list[list[str]]
) -> None:
    sequel, spec = given_
    times = list(itertools.accumulate(gap for *_, gap in drawn))
    events = [
        (key, kind, None if x is None else float(x), at) for (key, kind, x, _), at in zip(drawn, times, strict=True)
    ]
    names = [each.name for each in sequel.steps]
    measures = measures_of(
        **{f"n_{name}": step(name).count() for name in names},
        **{
            f"{kind}_{name}": getattr(step(name), kind)("x")
            for name, kinds in zip(names, asked, strict=False)
            for kind in kinds
        },
    )
    with tempfile.TemporaryDirectory() as directory:
        run = OperatorRun(lambda: Pattern(["key"], sequel, spec.skip, measures), SCHEMA, ["key"], Path(directory))
        at = 0
        for cut, watermark, restart in sorted(cuts):
            if cut > at:
                run.feed(batch_of(events[at:cut]), size)
                at = min(cut, len(events))
            if watermark and at < len(events):
                run.advance(events[at][3])
            if restart:
                run.restart(restart)
        if events[at:]:
            run.feed(batch_of(events[at:]), size)
        run.end()
    want = []
    for key in ("ann", "bob", None):
        mine = [event for event in events if event[0] == key]
        rows = [Row(0, at, [kind == letter for letter in LETTERS], x) for _, kind, x, at in mine]
        for match in twin(spec, rows):
            of_step = [[mine[r] for r, its in match if its == i] for i in range(len(names))]
            start = mine[match[0][0]][3]
            end = start + spec.within if spec.gaps[-1] and spec.within is not None else mine[match[-1][0]][3]
            row = {"key": key, "match_start": time(start), "match_end": time(end)}
            row |= {f"n_{name}": len(rows) for name, rows in zip(names, of_step, strict=True)}
            for name, rows, kinds in zip(names, of_step, asked, strict=False):
                row |= {f"{kind}_{name}": MEASURED[kind]([x for _, _, x, _ in rows]) for kind in kinds}
            want.append({**row, TIME_COLUMN: end})
    assert sorted(run.results, key=repr) == sorted(want, key=repr)


def test_two_readers_at_different_places_give_what_one_gives(tmp_path: Path) -> None:
    sequel = pattern("a", A).next("b", B).within("1s")
    rows = [("k", "ab"[i % 2], float(i), i * 10) for i in range(200)]
    lists = measures_of(a=step("a").list("x"), b=step("b").list("x"))
    alone = run_of(lambda: Pattern(["key"], sequel, "past_last", lists), batch_of(rows), tmp_path).results
    order, matcher = EventOrder(("key",)), Pattern(["key"], sequel, "past_last", lists)
    results: list[dict[str, Any]] = []
    matcher.emit = lambda batch: results.extend(batch.taken().to_pylist())
    order.emit = matcher.process
    for operator in (order, matcher):
        operator.open(OperatorContext(SCHEMA))
    ahead, behind = [row for row in rows if row[3] % 70 < 30], [row for row in rows if row[3] % 70 >= 30]
    order.process(Batch(batch_of(ahead)))
    for start in range(0, len(behind), 7):
        order.process(Batch(batch_of(behind[start : start + 7])))
        for operator in (order, matcher):
            operator.advance(behind[start][3])
    for operator in (order, matcher):
        operator.advance(10**6)
    assert len(results) == 100
    assert results == alone


def test_late_rows_are_counted_and_go_to_their_side(tmp_path: Path) -> None:
    sequel = pattern("a", A).then("b", B)
    run = OperatorRun(lambda: Pattern(["key"], sequel, "past_last", []), SCHEMA, ["key"], tmp_path / "run")
    run.feed(batch_of([("k", "a", 0.0, 100)]))
    run.advance(200)
    run.feed(batch_of([("k", "b", 1.0, 199), ("k", "x", 2.0, 200), ("l", "b", 3.0, 0)]))
    assert run.late == [{"key": "k", "kind": "b", "x": 1.0}, {"key": "l", "kind": "b", "x": 3.0}]
    run.restart(2)
    assert run.statistic("late_rows") == 2
    run.feed(batch_of([("k", "b", 1.0, 150), ("k", "b", 4.0, 300)]))
    run.end()
    assert [row["match_end"] for row in run.results] == [time(300)]
    assert run.statistic("late_rows") == 3


def test_a_row_that_does_not_count_cannot_fail(tmp_path: Path) -> None:
    operator = Pattern(["key"], pattern("a", col("kind").cast("int64") > 1), "past_last", [])
    found: list[Batch] = []
    operator.emit = found.append
    operator.open(OperatorContext(SCHEMA))
    rows = batch_of([("k", "2", 0.0, 0), ("k", "two", 0.0, 1)])
    operator.process(Batch(rows).with_selection(pa.array([0], pa.int32())))
    assert [batch.num_rows for batch in found] == [1]
    with pytest.raises(DataError):
        operator.process(Batch(rows))


# State


def test_a_week_of_rows_leaves_the_state_of_a_minute(tmp_path: Path) -> None:
    sequel = pattern("a", A).then("b", B).within("1m")
    operator = Pattern(["key"], sequel, "none", measures_of(x=step("a").list("x"), kind=step("b").last("kind")))
    operator.emit = lambda batch: None
    operator.open(OperatorContext(SCHEMA))
    second = 1000
    for day in range(7):
        start = day * 86_400 * second
        rows = [(f"k{i}", "a", float(i), start + i * second) for i in range(10_000)]
        operator.process(Batch(batch_of(rows)))
        operator.advance(rows[-1][3] + second)
        figures = operator.statistics()
        assert (figures["partial_matches"], figures["keys"]) == (60, 60)
        assert figures["held_rows"] <= 4 * 60 + 65_536 + 10_000
    operator.advance(8 * 86_400 * second)
    assert (operator.statistics()["partial_matches"], operator.statistics()["keys"]) == (0, 0)
    assert operator.snapshot()[1] is None


def test_rows_that_no_match_needs_any_more_are_let_go(tmp_path: Path) -> None:
    sequel = pattern("a", A).then("b", B)
    lists = measures_of(x=step("a").first("x"))
    run = OperatorRun(lambda: Pattern(["key"], sequel, "past_last", lists), SCHEMA, ["key"], tmp_path / "run")
    kept = [(f"kept{i}", "a", float(i), 0) for i in range(100)]
    run.feed(batch_of(kept))
    gone = [(f"gone{i // 2}", "ab"[i % 2], -1.0, 0) for i in range(40_000)]
    for _ in range(6):
        run.feed(batch_of(gone), 5000)
    assert run.statistic("held_rows") <= 4 * 100 + 65_536 + 5000
    run.batches.clear()
    run.feed(batch_of([(key, "b", 0.0, 1) for key, *_ in kept]))
    assert sorted(row["x"] for row in run.results) == [float(i) for i in range(100)]


def test_too_many_partial_matches_are_an_error_that_names_the_key(tmp_path: Path) -> None:
    sequel = pattern("a", A).then_any("b", B, times=(1, None)).then("c", C)
    run = OperatorRun(lambda: Pattern(["key"], sequel, "none", [], max_partial=1000), SCHEMA, ["key"], tmp_path / "run")
    rows = [("ann", kind, 0.0, i) for i, kind in enumerate("abbbbb")] + [
        ("bob", kind, 0.0, i) for i, kind in enumerate("abbbbbbbbbbbbb")
    ]
    with pytest.raises(UserError, match=r"1,000 partial matches .* of one key, key = 'bob'") as error:
        run.feed(batch_of(rows))
    assert "max_partial" in error.value.hint


def test_the_state_can_be_read_with_and_without_the_program(tmp_path: Path) -> None:
    sequel = pattern("one", A).then("two", B, times=(2, 3)).then("three", C)
    run = OperatorRun(lambda: Pattern(["key"], sequel, "past_last", []), SCHEMA, ["key"], tmp_path / "run")
    run.feed(batch_of([("ann", "a", 0.0, 1), ("ann", "b", 0.0, 2), ("bob", "a", 0.0, 3)]))
    want = [
        {"key": "ann", "match_start": time(1), "step": "two", "rows": 2},
        {"key": "bob", "match_start": time(3), "step": "one", "rows": 1},
    ]
    assert [row for piece in run.parts[0].contents() for row in piece.to_pylist()] == want
    saved = run.checkpoint()
    facts = saved[0].facts
    assert (facts["groups"], facts["schema"]["kind"]) == (2, "pattern")
    reader = PatternState(facts["reader"]["keys"], facts["reader"]["steps"])
    input = schema_of_text(facts["reader"]["input"])
    assert input is not None
    reader.open(OperatorContext(input))
    reader.restore(saved)
    assert [row for piece in reader.contents() for row in piece.to_pylist()] == want


def test_state_of_another_pattern_is_refused(tmp_path: Path) -> None:
    sequel = pattern("a", A).then("b", B)
    run = OperatorRun(
        lambda: Pattern(["key"], sequel, "past_last", measures_of(x=step("a").first("x"))),
        SCHEMA,
        ["key"],
        tmp_path / "run",
    )
    run.feed(batch_of([("ann", "a", 0.0, 1)]))
    saved = run.checkpoint()
    other = sequel.then("c", C & (col("x") > step("a").first("x")))
    for keys, changed, measures in (
        (["key"], sequel, measures_of(x=step("a").first("kind"))),
        (["key"], sequel, measures_of(x=step("a").list("x"))),
        (["kind", "key"], sequel, measures_of(x=step("a").first("x"))),
        (["key"], other, measures_of(x=step("a").first("x"))),
    ):
        operator = Pattern(keys, changed, "past_last", measures)
        operator.open(OperatorContext(SCHEMA))
        with pytest.raises(CorruptCheckpoint):
            operator.restore(saved)


def test_the_description_says_what_is_asked() -> None:
    sequel = (
        pattern("a", A)
        .without(B)
        .then("c", (col("x") > step("a").last("x") * 1.1) & C, times=(2, None))
        .consecutive()
        .greedy()
        .without(col("z") > 1)
        .within("5m")
    )
    assert sequel.text() == (
        'a: col("kind") == "a", without col("kind") == "b", then c: (col("x") > (step("a").last("x") * 1.1)) & (col("kind") == "c")'
        ' times 2.. consecutive greedy, without col("z") > 1, within 300000 ms'
    )
    assert sequel.columns == {"kind", "x", "z"}
    renamed = step("a").last("x").renamed({"x": "y"})
    assert renamed.text() == 'step("a").last("y")'


# What cannot be


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pattern("", A), "a step's name"),
        (lambda: pattern("a", "kind == 'a'"), "not a predicate"),
        (lambda: pattern("a", A, times=0), "times=0"),
        (lambda: pattern("a", A, times=(3, 2)), "times="),
        (lambda: pattern("a", A, times=True), "times="),
        (lambda: pattern("a", A).then("a", B), "two steps 'a'"),
        (lambda: pattern("a", A).without(B).next("c", C), "no row can be between"),
        (lambda: pattern("a", A).without(B).optional(), "after without"),
        (lambda: pattern("a", A).then_any("b", B).greedy(), "cannot be greedy"),
        (lambda: pattern("a", A).within("5m").within("1m"), "twice"),
        (lambda: pattern("a", A).within(0), "not a whole number of milliseconds, 1 or more"),
        (
            lambda: check_measures(pattern("a", A).then("b", col("x") > step("c").last("x")), "past_last", {}),
            "no step of this name comes before",
        ),
        (
            lambda: check_measures(
                pattern("a", A).without(col("x") > step("b").last("x")).then("b", B), "past_last", {}
            ),
            "no step of this name comes before",
        ),
        (lambda: step("a").last(step("b").last("x")), "columns of its rows"),
        (lambda: check_measures(A, "past_last", {}), "not a pattern"),
        (lambda: check_measures(pattern("a", A), "all", {}), "skip"),
        (lambda: check_measures(pattern("a", A).without(B), "none", {}), "or it never ends"),
        (lambda: check_measures(pattern("a", A).optional(), "none", {}), "would match without any row"),
        (lambda: check_measures(pattern("a", A).then("b", B).optional(), "to_next", {}), "complete before it"),
        (lambda: check_measures(pattern("a", A), "none", {"n": "x"}), "not a measure"),
        (lambda: check_measures(pattern("a", A), "none", {"n": step("b").count()}), "no step of this name"),
    ],
)
def test_what_cannot_be_is_said_when_it_is_written(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("sequel", "measures", "message"),
    [
        (pattern("a", col("kin") == "a"), {}, "no column 'kin'"),
        (pattern("a", col("x")), {}, "not true or false"),
        (pattern("a", A), {"n": step("a").first("y")}, "no column 'y'"),
        (pattern("a", A), {"n": col("x")}, "no column 'x'"),
        (pattern("a", A), {"key": step("a").first("x")}, "two columns 'key'"),
        (pattern("a", A), {"n": step("a").sum("kind")}, "sum of"),
        (pattern("a", A).then("b", col("x") == step("a").last("kind")), {}, "cannot be"),
        (
            pattern("a", A).then("b", step("a").last(DECIMAL) == DECIMAL),
            {},
            "of an earlier row cannot be compared",
        ),
        (
            reduce(lambda so_far, i: so_far.without(col("x") == i), range(70), pattern("a", A)).then("b", B),
            {},
            "72 predicates",
        ),
    ],
)
def test_what_does_not_fit_the_columns_is_said_before_any_row(
    sequel: Sequel, measures: dict[str, Expr], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Pattern(["key"], sequel, "past_last", list(measures.items())).open(OperatorContext(SCHEMA))


def test_a_stream_without_event_time_has_no_patterns() -> None:
    with pytest.raises(UserError, match="event time"):
        Pattern(["key"], pattern("a", A), "past_last", []).open(OperatorContext(pa.schema(list(SCHEMA)[:3])))
