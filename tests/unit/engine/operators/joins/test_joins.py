"""The regular join and the lookup, beside brute force and DuckDB.

Whatever comes out is applied to an empty table, change by change: nothing may be taken that is not there, and at the end the table must
be what a batch join of all rows gives. That must not depend on which side's rows come first, where batches end, on restarts, or on the
number of subtasks.
"""

import datetime
import decimal
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.arrow.batch import Batch
from sabot.engine.operators.base import (
    DELETE,
    INSERT,
    OP_COLUMN,
    TIME_COLUMN,
    UPDATE_AFTER,
    UPDATE_BEFORE,
    OperatorContext,
    Saved,
)
from sabot.engine.operators.joins.join import Join, Sides, TableLookup
from sabot.engine.operators.joins.sides import JoinOperator
from sabot.errors import UserError
from tools.operator_run import OperatorRun

FEW = settings(max_examples=15, deadline=None)

LEFT = pa.schema([("k", pa.string()), ("a", pa.int64()), (TIME_COLUMN, pa.int64())])
RIGHT = pa.schema([("b", pa.float64()), ("rk", pa.string()), (TIME_COLUMN, pa.int64())])
SIDES = Sides(("k",), ("rk",), (("b", "b_right"),))
ALONE = Sides(("k",), ("rk",))
HOWS = ["inner", "left", "right", "full", "semi", "anti"]

Row = tuple[Any, ...]


def with_op(schema: pa.Schema) -> pa.Schema:
    return schema.insert(len(schema) - 1, pa.field(OP_COLUMN, pa.int8()))


def batch_of(rows: Sequence[Row], schema: pa.Schema) -> pa.RecordBatch:
    columns = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(schema)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def plain(row: dict[str, Any]) -> Row:
    """A result as a table's row: without marks."""
    return tuple(
        "NaN" if isinstance(value, float) and math.isnan(value) else value
        for name, value in row.items()
        if name not in (OP_COLUMN, TIME_COLUMN)
    )


def applied(results: Sequence[dict[str, Any]]) -> Counter[Row]:
    """The table that the changes make. Every prefix is valid."""
    table: Counter[Row] = Counter()
    for row in results:
        sign = -1 if row.get(OP_COLUMN, INSERT) & 1 else 1
        table[plain(row)] += sign
        assert table[plain(row)] >= 0, f"{row} is taken away, and is not there"
    return +table


def joined(left: Sequence[Row], right: Sequence[Row], how: str) -> Counter[Row]:
    """Brute force over (k, a, …) and (b, rk, …)."""
    pairs = [(one, other) for one in left for other in right if one[0] == other[1] and one[0] is not None]
    found = {id(one) for one, _ in pairs}
    partnered = {id(other) for _, other in pairs}
    if how in ("semi", "anti"):
        return Counter(one[:2] for one in left if (id(one) in found) == (how == "semi"))
    rows = [(one[0], one[1], other[0]) for one, other in pairs]
    if how in ("left", "full"):
        rows += [(one[0], one[1], None) for one in left if id(one) not in found]
    if how in ("right", "full"):
        rows += [(other[1], None, other[0]) for other in right if id(other) not in partnered]
    return Counter(rows)


KEYS = st.sampled_from(["x", "y", "z", "", None])
LEFT_ROW = st.tuples(KEYS, st.integers(0, 2), st.integers(0, 50))
RIGHT_ROW = st.tuples(st.sampled_from([0.0, 0.5, None]), KEYS, st.integers(0, 50))
# of a side: rows, each with a number that may say which earlier row is taken away instead
PART = st.lists(st.tuples(LEFT_ROW, RIGHT_ROW, st.none() | st.integers(0, 30)), min_size=1, max_size=12)
STEPS = st.lists(st.tuples(st.booleans(), PART, st.sampled_from([0, 0, 0, 1, 2, 4])), max_size=8)
SIZES = st.sampled_from([1, 3, 1000])


def changes_of(part: Sequence[tuple[Row, int | None]], there: list[Row], changes: bool) -> list[Row]:
    """Valid changes: rows that are added, and some of those that are there taken away (with another time)."""
    made = []
    for row, gone in part:
        if changes and gone is not None and there:
            old = there.pop(gone % len(there))
            made.append((*old[:2], DELETE if gone % 2 else UPDATE_BEFORE, row[2]))
        elif changes:
            there.append(row)
            made.append((*row[:2], UPDATE_AFTER if row[2] % 2 else INSERT, row[2]))
        else:
            there.append(row)
            made.append(row)
    return made


def drive(
    how: str, steps: Any, size: int, left_changes: bool, right_changes: bool, broadcast: bool = False
) -> tuple[OperatorRun, list[Row], list[Row]]:
    """-> (the run at its end, the rows that are there on the left, on the right)."""
    sides = ALONE if how in ("semi", "anti") else SIDES
    left_schema = with_op(LEFT) if left_changes else LEFT
    right_schema = with_op(RIGHT) if right_changes else RIGHT
    left: list[Row] = []
    right: list[Row] = []

    def make() -> Join:
        return Join(sides, how, left_changes=left_changes, right_changes=right_changes, broadcast=broadcast)

    with tempfile.TemporaryDirectory() as directory:
        run = OperatorRun(
            make, left_schema, ["k"], Path(directory), right=right_schema, right_keys=["rk"], broadcast=broadcast
        )
        for on_left, part, restart in steps:
            if on_left:
                rows = changes_of([(one, gone) for one, _, gone in part], left, left_changes)
                run.feed(batch_of(rows, left_schema), size)
            else:
                rows = changes_of([(other, gone) for _, other, gone in part], right, right_changes)
                run.feed_right(batch_of(rows, right_schema), size)
            if restart:
                run.restart(restart)
        run.end()
    return run, left, right


@settings(max_examples=30, deadline=None)
@given(STEPS, SIZES, st.sampled_from(HOWS), st.booleans(), st.booleans())
def test_what_comes_out_makes_the_table_of_a_batch_join(
    steps: Any, size: int, how: str, left_changes: bool, right_changes: bool
) -> None:
    run, left, right = drive(how, steps, size, left_changes, right_changes)
    assert applied(run.results) == joined(left, right, how)
    assert run.statistic("unknown_takes") == 0
    appends = not left_changes and not right_changes and how in ("inner", "semi")
    assert (OP_COLUMN in run.schema.names) == (not appends)


@FEW
@given(STEPS, SIZES, st.sampled_from(["inner", "left", "semi", "anti"]), st.booleans())
def test_a_right_side_that_is_broadcast_gives_the_same(steps: Any, size: int, how: str, right_changes: bool) -> None:
    run, left, right = drive(how, steps, size, False, right_changes, broadcast=True)
    assert applied(run.results) == joined(left, right, how)


@FEW
@given(STEPS, SIZES, st.sampled_from(["inner", "left", "right", "full"]))
def test_the_time_of_a_pair_is_the_later_of_both(steps: Any, size: int, how: str) -> None:
    run, left, right = drive(how, steps, size, False, False)
    times = {
        (one[0], one[1], other[0], max(one[2], other[2]))
        for one in left
        for other in right
        if one[0] == other[1] and one[0] is not None
    }
    rows = {(*plain(row), row[TIME_COLUMN]) for row in run.results}
    pairs = {row for row in rows if row[1] is not None and row[2] is not None}
    assert pairs == {row for row in times if row[2] is not None}


def start(
    directory: Path, how: str, *, sides: Sides = SIDES, left: pa.Schema = LEFT, right: pa.Schema = RIGHT, **options: Any
) -> OperatorRun:
    return OperatorRun(
        lambda: Join(sides, how, **options),
        left,
        list(sides.left_keys),
        directory,
        right=right,
        right_keys=list(sides.right_keys),
    )


def changes_in(run: OperatorRun) -> list[Row]:
    """(op, the row, time)."""
    return [(row[OP_COLUMN], *plain(row), row[TIME_COLUMN]) for row in run.results]


def test_a_row_alone_is_taken_back_before_its_first_pair_comes(tmp_path: Path) -> None:
    run = start(tmp_path, "left")
    run.feed(batch_of([("x", 1, 5), ("y", 2, 6), (None, 3, 7)], LEFT))
    assert changes_in(run) == [(INSERT, "x", 1, None, 5), (INSERT, "y", 2, None, 6), (INSERT, None, 3, None, 7)]
    run.batches.clear()
    run.feed_right(batch_of([(0.5, "x", 9), (1.5, "x", 8), (2.5, None, 9), (3.5, "q", 9)], RIGHT))
    assert changes_in(run) == [
        (DELETE, "x", 1, None, 8),
        (INSERT, "x", 1, 0.5, 9),
        (INSERT, "x", 1, 1.5, 8),
    ]


def test_a_row_whose_partner_changes_is_not_alone_in_between(tmp_path: Path) -> None:
    right = with_op(RIGHT)
    run = start(tmp_path, "left", right=right, right_changes=True)
    run.feed_right(batch_of([(0.5, "x", INSERT, 1)], right))
    run.feed(batch_of([("x", 1, 5)], LEFT))
    run.batches.clear()
    run.feed_right(batch_of([(0.5, "x", UPDATE_BEFORE, 9), (1.5, "x", UPDATE_AFTER, 9)], right))
    assert changes_in(run) == [(DELETE, "x", 1, 0.5, 9), (INSERT, "x", 1, 1.5, 9)]
    run.batches.clear()
    run.feed_right(batch_of([(1.5, "x", DELETE, 12)], right))
    assert changes_in(run) == [(DELETE, "x", 1, 1.5, 12), (INSERT, "x", 1, None, 12)]


def test_changes_that_cancel_out_in_a_batch_give_nothing(tmp_path: Path) -> None:
    right = with_op(RIGHT)
    run = start(tmp_path, "full", right=right, right_changes=True)
    run.feed(batch_of([("x", 1, 5)], LEFT))
    run.batches.clear()
    run.feed_right(batch_of([(0.5, "x", INSERT, 9), (0.5, "x", DELETE, 10)], right))
    assert run.results == []
    assert run.statistic("right_rows") == 0


def test_a_partner_that_changes_does_not_touch_a_semi_join(tmp_path: Path) -> None:
    right = with_op(RIGHT)
    run = start(tmp_path, "semi", sides=ALONE, right=right, right_changes=True)
    run.feed_right(batch_of([(0.5, "x", INSERT, 1)], right))
    run.feed(batch_of([("x", 1, 5)], LEFT))
    assert changes_in(run) == [(INSERT, "x", 1, 5)]
    run.feed_right(batch_of([(0.5, "x", UPDATE_BEFORE, 9), (1.5, "x", UPDATE_AFTER, 9)], right))
    assert len(run.results) == 1
    run.feed_right(batch_of([(1.5, "x", DELETE, 9)], right))
    assert changes_in(run)[1:] == [(DELETE, "x", 1, 9)]


def test_of_a_semi_or_anti_join_only_what_can_still_matter_is_kept(tmp_path: Path) -> None:
    for how in ("semi", "anti"):
        run = start(tmp_path / how, how, sides=ALONE)
        run.feed_right(batch_of([(float(n), f"k{n % 3}", n) for n in range(300)], RIGHT), 50)
        assert run.statistic("right_rows") == 3
        run.feed(batch_of([(f"k{n % 5}", n, n) for n in range(100)], LEFT), 7)
        assert run.statistic("left_rows") == 40
        run.feed_right(batch_of([(1.0, "k3", 500)], RIGHT))
        assert run.statistic("left_rows") == 20
        assert run.statistic("right_rows") == 4


def test_equal_rows_are_taken_away_one_by_one(tmp_path: Path) -> None:
    left = with_op(LEFT)
    run = start(tmp_path, "inner", left=left, left_changes=True)
    run.feed(batch_of([("x", 1, INSERT, n) for n in range(5)] + [("x", 2, INSERT, 9)], left))
    run.feed_right(batch_of([(0.5, "x", 3)], RIGHT))
    run.feed(batch_of([("x", 1, DELETE, 50)] * 3, left))
    assert applied(run.results) == Counter({("x", 1, 0.5): 2, ("x", 2, 0.5): 1})
    assert run.statistic("left_rows") == 3


def test_a_row_that_is_not_there_is_not_taken_away(tmp_path: Path) -> None:
    left = with_op(LEFT)
    run = start(tmp_path, "anti", sides=ALONE, left=left, left_changes=True)
    run.feed(batch_of([("x", 1, INSERT, 1), ("x", 1, DELETE, 2), ("x", 2, DELETE, 2), ("y", 1, INSERT, 3)], left))
    run.feed(batch_of([("y", 1, DELETE, 4), ("y", 1, DELETE, 4)], left))
    assert applied(run.results) == Counter()
    assert run.statistic("unknown_takes") == 2
    run.restart(2)
    assert run.statistic("unknown_takes") == 2


def test_rows_of_any_type_are_found_again_when_they_are_taken_away(tmp_path: Path) -> None:
    fields = [
        ("k", pa.int32()),
        ("tags", pa.list_(pa.string())),
        ("d", pa.decimal128(9, 2)),
        ("who", pa.struct([("n", pa.float64())])),
        ("f", pa.float64()),
        (OP_COLUMN, pa.int8()),
    ]
    left = pa.schema(fields)
    right = pa.schema([("k", pa.int32()), ("v", pa.date32())])
    day = datetime.date(2026, 5, 1)
    rows: list[Row] = [
        (1, ["a", None], decimal.Decimal("1.25"), {"n": 1.0}, math.nan),
        (1, ["a", None], decimal.Decimal("1.25"), {"n": None}, math.nan),
        (1, ["a"], decimal.Decimal("1.25"), None, 0.0),
        (1, None, None, None, None),
    ]
    run = start(tmp_path, "left", sides=Sides(("k",), ("k",), (("v", "v"),)), left=left, right=right, left_changes=True)
    run.feed(batch_of([(*row, INSERT) for row in rows * 2], left))
    run.feed_right(batch_of([(1, day)], right))
    for number, row in enumerate(rows):
        run.feed(batch_of([(*row, DELETE)], left))
        run.restart(1)
        assert run.statistic("left_rows") == 7 - number
    run.feed(batch_of([(*row[:4], -0.0 if row[4] == 0.0 else row[4], DELETE) for row in rows], left))
    assert run.statistic("left_rows") == run.statistic("unknown_takes") == 0
    assert len(run.results) == 8 + 8 + 8 + 8


@pytest.mark.slow  # a second of a core, or more
def test_several_keys_agree_with_duckdb(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)

    def table(rows: int, value: str) -> pa.Table:
        some = rng.random(rows) < 0.05
        return pa.table(
            {
                "who": pa.array([f"u{n}" for n in rng.integers(0, 300, rows)], mask=some),
                "day": pa.array(rng.integers(0, 20, rows).astype(np.int32), pa.date32()),
                value: pa.array(rng.integers(0, 1000, rows)),
            }
        )

    one, other = table(8_000, "a"), table(6_000, "b")
    sides = Sides(("who", "day"), ("who", "day"), (("b", "b"),))
    for how in HOWS:
        alone = how in ("semi", "anti")
        given = Sides(sides.left_keys, sides.right_keys) if alone else sides
        run = start(tmp_path / how, how, sides=given, left=one.schema, right=other.schema)
        lefts, rights = (t.combine_chunks().to_batches()[0] for t in (one, other))
        for start_row in range(0, 8_000, 2_000):
            run.feed(lefts.slice(start_row, 2_000), 700)
            run.feed_right(rights.slice(start_row, 2_000), 1_100)
            if start_row == 4_000:
                run.restart(3)
        columns = "one.who, one.day, a" if alone else "coalesce(one.who, other.who), coalesce(one.day, other.day), a, b"
        query = f"SELECT {columns} FROM one {how} JOIN other ON one.who = other.who AND one.day = other.day"
        assert applied(run.results) == Counter(duckdb.sql(query).fetchall())


@FEW
@given(
    STEPS, SIZES, st.sampled_from(["inner", "left", "right", "full"]), st.sampled_from([(3, None), (None, 3), (0, 5)])
)
def test_rows_that_were_forgotten_stay_in_what_came_out(steps: Any, size: int, how: str, keep: Any) -> None:
    """A row is met by those that come before the watermark has passed it by `keep`; the time of step n is 2 n."""
    want = Counter[Row]()
    sides: dict[bool, list[list[Any]]] = {True: [], False: []}  # rows, the time of each, whether it was met
    with tempfile.TemporaryDirectory() as directory:
        run = OperatorRun(
            lambda: Join(SIDES, how, left_keep_ms=keep[0], right_keep_ms=keep[1]),
            LEFT,
            ["k"],
            Path(directory),
            right=RIGHT,
            right_keys=["rk"],
            punctual=True,
        )
        for number, (on_left, part, restart) in enumerate(steps):
            time = 2 * number
            if on_left:
                mine = [((*one[:2], time), False) for one, _, _ in part]
                run.feed(batch_of([row for row, _ in mine], LEFT), size)
            else:
                mine = [((*other[:2], time), False) for _, other, _ in part]
                run.feed_right(batch_of([row for row, _ in mine], RIGHT), size)
            others = sides[not on_left]
            for row, _ in mine:
                entry = [row, False]
                key = row[0] if on_left else row[1]
                for other in others:
                    ms = keep[1] if on_left else keep[0]
                    there = ms is None or other[0][2] >= time - ms
                    if there and key is not None and key == other[0][1 if on_left else 0]:
                        entry[1] = other[1] = True
                        left, right = (row, other[0]) if on_left else (other[0], row)
                        want[(left[0], left[1], right[0])] += 1
                sides[on_left].append(entry)
            if restart:
                run.restart(restart)
            run.advance(time + 2)
        run.end()
    if how in ("left", "full"):
        want.update((row[0], row[1], None) for row, met in sides[True] if not met)
    if how in ("right", "full"):
        want.update((row[1], None, row[0]) for row, met in sides[False] if not met)
    assert applied(run.results) == want
    for name, ms in zip(("left_rows", "right_rows"), keep, strict=True):
        assert ms is None or run.statistic(name) == 0


def test_nan_and_both_zeros_are_keys_like_others(tmp_path: Path) -> None:
    left = pa.schema([("k", pa.float64()), ("a", pa.int64())])
    right = pa.schema([("k", pa.float64()), ("b", pa.int64())])
    run = start(tmp_path, "full", sides=Sides(("k",), ("k",), (("b", "b"),)), left=left, right=right)
    run.feed(batch_of([(math.nan, 1), (-0.0, 2), (None, 3)], left))
    run.feed_right(batch_of([(0.0, 7), (math.nan, 8), (None, 9)], right))
    assert applied(run.results) == Counter({("NaN", 1, 8): 1, (0.0, 2, 7): 1, (None, 3, None): 1, (None, None, 9): 1})


def test_a_column_that_cannot_be_a_key_is_said(tmp_path: Path) -> None:
    lists = pa.schema([("k", pa.list_(pa.int64())), ("a", pa.int64())])
    with pytest.raises(UserError, match=r"cannot be keys of a join"):
        start(tmp_path, "inner", sides=Sides(("k",), ("k",)), left=lists, right=lists)


def test_without_keys_every_row_meets_every_other(tmp_path: Path) -> None:
    sides = Sides((), (), (("rk", "rk"), ("b", "b")))
    run = start(tmp_path, "inner", sides=sides)
    run.feed(batch_of([("x", n, n) for n in range(3)], LEFT))
    run.feed_right(batch_of([(1.0, "r", 1), (2.0, None, 1)], RIGHT))
    run.restart(2)
    run.feed(batch_of([(None, 9, 1)], LEFT))
    assert len(applied(run.results)) == 8
    with pytest.raises(UserError, match="without keys"):
        Join(Sides((), ()), "semi")


def test_what_comes_out_at_once_is_bounded(tmp_path: Path) -> None:
    run = start(tmp_path, "full")
    run.feed(batch_of([("hot", n, n) for n in range(900)], LEFT))
    run.feed_right(batch_of([(float(n), "hot", n) for n in range(300)], RIGHT))
    assert max(batch.num_rows for batch in run.batches) <= 65_536
    assert len(run.batches) <= 8
    assert sum(batch.num_rows for batch in run.batches) == 900 + 900 + 270_000


@pytest.mark.parametrize(
    ("make", "left", "right", "message"),
    [
        (lambda: Join(SIDES, "outer"), LEFT, RIGHT, "how='outer' is not known"),
        (lambda: Join(SIDES, "full", broadcast=True), LEFT, RIGHT, "broadcast"),
        (lambda: Join(SIDES, "left", left_changes=True, broadcast=True), LEFT, RIGHT, "broadcast"),
        (lambda: Join(Sides(("q",), ("rk",)), "inner"), LEFT, RIGHT, "left side has no column 'q'"),
        (lambda: Join(Sides(("k",), ("q",)), "inner"), LEFT, RIGHT, "right side has no column 'q'"),
        (lambda: Join(Sides(("k",), ("b",)), "inner"), LEFT, RIGHT, "'k' is string on the left, 'b' is double"),
        (lambda: Join(Sides(("k",), ("rk",), (("b", "a"),)), "inner"), LEFT, RIGHT, "two columns 'a'"),
        (lambda: Join(Sides(("k",), ("rk",), (("c", "c"),)), "inner"), LEFT, RIGHT, "no column 'c'"),
        (lambda: Join(SIDES, "left", left_changes=True), LEFT, RIGHT, "not a stream of changes"),
        (lambda: Join(SIDES, "inner", left_changes=True, left_keep_ms=5), LEFT, RIGHT, "when its rows are removed"),
        (lambda: Join(ALONE, "anti", right_keep_ms=5), LEFT, RIGHT, "kept for ever"),
        (lambda: Join(SIDES, "inner", right_keep_ms=-1), LEFT, RIGHT, "-1 ms"),
        (lambda: Join(SIDES, "inner", left_keep_ms=5), pa.schema(list(LEFT)[:2]), RIGHT, "have no event time"),
        (lambda: TableLookup(SIDES, "right"), LEFT, RIGHT, "how='right' is not known"),
    ],
)
def test_a_join_says_what_it_cannot_do(make: Callable[[], JoinOperator], left: Any, right: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make().open(OperatorContext(left, right=right))


def test_the_state_of_a_join_can_be_read_by_one_that_its_reader_makes(tmp_path: Path) -> None:
    run = start(tmp_path, "left")
    run.feed(batch_of([("x", 1, 5), ("y", 2, 6)], LEFT))
    run.feed_right(batch_of([(0.5, "x", 9), (1.5, None, 9)], RIGHT))
    [part] = run.parts
    assert part.state_schema() == {
        "kind": "join",
        "keys": [["k", "string"]],
        "right_keys": [["rk", "string"]],
        "how": "left",
        "left_changes": False,
        "right_changes": False,
        "broadcast": False,
        "left_keep_ms": None,
        "right_keep_ms": None,
        "left": [["k", "string"], ["a", "int64"]],
        "right": [["b", "double"], ["rk", "string"]],
    }
    saved = run.checkpoint()
    assert saved[0].facts["groups"] == 3
    reader = Join.read_with(saved[0].facts["reader"])
    reader.open(OperatorContext(LEFT, right=RIGHT))
    reader.restore(saved)
    rows = [row for piece in reader.contents() for row in piece.to_pylist()]
    assert rows == [
        {"side": "left", "k": "x", "a": 1, "b_right": None},
        {"side": "left", "k": "y", "a": 2, "b_right": None},
        {"side": "right", "k": "x", "a": None, "b_right": 0.5},
    ]


# Lookups


@FEW
@given(STEPS, SIZES, st.sampled_from(["left", "inner"]), st.booleans())
def test_a_lookup_meets_the_table_as_it_is(steps: Any, size: int, how: str, right_changes: bool) -> None:
    right_schema = with_op(RIGHT) if right_changes else RIGHT
    table: dict[str, Any] = {}
    want = []
    with tempfile.TemporaryDirectory() as directory:
        run = OperatorRun(
            lambda: TableLookup(SIDES, how), LEFT, ["k"], Path(directory), right=right_schema, right_keys=["rk"]
        )
        for on_left, part, restart in steps:
            if on_left:
                run.feed(batch_of([one for one, _, _ in part], LEFT), size)
                for (k, a, time), _, _ in part:
                    if k in table or how == "left":
                        want.append({"k": k, "a": a, "b_right": table.get(k), TIME_COLUMN: time})
            else:
                rows = []
                for _, (b, key, time), gone in part:
                    if right_changes and gone is not None and table.get(key) is not None:
                        rows.append((table.pop(key), key, DELETE if gone % 2 else UPDATE_BEFORE, time))
                    else:
                        rows.append((b, key, INSERT, time) if right_changes else (b, key, time))
                        if key is not None:
                            table[key] = b
                run.feed_right(batch_of(rows, right_schema), size)
            if restart:
                run.restart(restart)
        run.end()
    assert Counter(map(repr, run.results)) == Counter(map(repr, want))
    assert run.statistic("right_rows") == len(table)
    assert OP_COLUMN not in run.schema.names


def test_a_lookup_keeps_one_row_a_key(tmp_path: Path) -> None:
    run = OperatorRun(lambda: TableLookup(SIDES, "left"), LEFT, ["k"], tmp_path, right=RIGHT, right_keys=["rk"])
    run.feed_right(batch_of([(float(n), f"k{n % 10}", n) for n in range(1000)], RIGHT), 64)
    assert run.statistic("right_rows") == 10
    run.feed(batch_of([("k3", 1, 0), ("k99", 2, 0)], LEFT))
    assert [row["b_right"] for row in run.results] == [993.0, None]
    saved = run.checkpoint()
    reader = TableLookup.read_with(saved[0].facts["reader"])
    reader.open(OperatorContext(LEFT, right=RIGHT))
    reader.restore(saved)
    assert sum(piece.num_rows for piece in reader.contents()) == 10


# Checkpoints


def test_a_checkpoint_has_the_rows_of_its_barrier_whatever_comes_before_it_is_saved(tmp_path: Path) -> None:
    left = with_op(LEFT)
    run = OperatorRun(
        lambda: Join(SIDES, "full", left_changes=True),
        left,
        ["k"],
        tmp_path,
        memory_budget=1_000_000,
        right=RIGHT,
        right_keys=["rk"],
    )
    run.feed(batch_of([(f"k{n % 50}", n, INSERT, n) for n in range(3_000)], left))
    run.feed_right(batch_of([(float(n), f"k{n}", n) for n in range(40)], RIGHT))
    [part] = run.parts
    before = applied(run.results)
    facts, state = part.snapshot()
    assert state is not None
    run.feed(batch_of([(f"k{n % 50}", n, DELETE, n) for n in range(0, 3_000, 2)], left))
    run.feed_right(batch_of([(0.25, "k49", 1)], RIGHT))
    (tmp_path / "saved").mkdir()
    state.save(tmp_path / "saved")
    state.discard()
    part.close()

    again = Join(SIDES, "full", left_changes=True)
    emitted: list[dict[str, Any]] = []
    again.emit = lambda batch: emitted.extend(batch.taken().to_pylist())
    again.open(OperatorContext(left, right=RIGHT))
    again.restore([Saved(tmp_path / "saved", facts)])
    assert again.statistics()["left_rows"] == 3_000
    rows = [(f"k{n % 50}", n, DELETE, 0) for n in range(3_000)]
    again.process(Batch(batch_of(rows, left)))
    made = applied([dict(zip(("k", "a", "b_right"), row, strict=True)) for row in before.elements()] + emitted)
    assert made == Counter({(f"k{n}", None, float(n)): 1 for n in range(40)})
    assert again.statistics()["unknown_takes"] == 0


def test_rows_that_a_checkpoint_has_already_are_not_written_again(tmp_path: Path) -> None:
    run = OperatorRun(
        lambda: Join(SIDES, "inner"), LEFT, ["k"], tmp_path, memory_budget=1_000_000, right=RIGHT, right_keys=["rk"]
    )
    run.feed(batch_of([(f"k{n}", n, n) for n in range(20_000)], LEFT))
    run.checkpoint()
    run.feed(batch_of([(f"k{n}", n, n) for n in range(50)], LEFT))
    saved = run.checkpoint()[0].directory
    files = [file.stat() for file in saved.rglob("*") if file.is_file()]
    assert sum(file.st_size for file in files if file.st_nlink == 1) < sum(file.st_size for file in files) / 10
    run.restart(2)
    run.feed_right(batch_of([(0.5, "k7", 1)], RIGHT))
    assert counted_rows(run) == Counter({("k7", 7, 0.5): 2})


@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_drained_app_that_goes_on_begins_time_anew(tmp_path: Path, parallelism: int) -> None:
    """Rows of a right side without event time have the watermark as theirs, which was at the end of time."""
    untimed = RIGHT.remove(RIGHT.get_field_index(TIME_COLUMN))
    run = OperatorRun(lambda: Join(SIDES, "inner"), LEFT, ["k"], tmp_path, right=untimed, right_keys=["rk"])
    run.feed(batch_of([("a", 1, 5)], LEFT))
    run.advance(3)
    run.restart(parallelism)
    run.feed_right(batch_of([(0.5, "a")], untimed))
    run.end()
    run.restart(parallelism)
    run.feed_right(batch_of([(1.5, "a")], untimed))
    run.advance(20)
    run.feed_right(batch_of([(2.5, "a")], untimed))
    assert [(row["b_right"], row[TIME_COLUMN]) for row in run.results] == [(0.5, 5), (1.5, 5), (2.5, 20)]


def counted_rows(run: OperatorRun) -> Counter[Row]:
    return Counter(plain(row) for row in run.results)
