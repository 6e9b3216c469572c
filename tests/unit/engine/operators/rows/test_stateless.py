"""Steps without state: the rows that count stay the same whether they are taken or selected."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot import App, files
from sabot._cython.arrow.batch import Batch
from sabot.api.aggregates import (
    Aggregate,
    UserAggregate,
    aggregate_with,
    arg_max,
    arg_min,
    collect_list,
    count,
    count_distinct,
    first,
    last,
    mean,
    stddev,
    variance,
)
from sabot.api.aggregates import any as any_of
from sabot.api.aggregates import max as max_of
from sabot.api.aggregates import min as min_of
from sabot.api.aggregates import sum as sum_of
from sabot.api.expr import Expr, col, lit
from sabot.base.arrays import to_ms
from sabot.engine.operators.base import TIME_COLUMN, Operator, OperatorContext
from sabot.engine.operators.rows.mapped import FlatMap, MapBatches
from sabot.engine.operators.rows.stateless import Drop, Filter, Rename, Select, WithColumns
from sabot.errors import DataError, UserError

SCHEMA = pa.schema([("a", pa.int64()), ("s", pa.string()), pa.field(TIME_COLUMN, pa.int64(), nullable=False)])
OFFSETS = {("pay", 0): 7}


def rows(*data: tuple[int | None, str | None], time: int = 1000) -> pa.RecordBatch:
    columns = [[a for a, _ in data], [s for _, s in data], [time + i for i in range(len(data))]]
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


FOUR = rows((1, "x"), (20, "y"), (None, "z"), (40, None))


def selected(data: pa.RecordBatch, *numbers: int) -> Batch:
    return Batch(
        data,
        OFFSETS,
        "pay",
        selection=pa.array(numbers, pa.int32()),
        hashes=pa.array(range(data.num_rows), pa.uint64()),
    )


def run(operator: Operator, *batches: Batch, input: pa.Schema = SCHEMA) -> list[Batch]:
    """What the operator emits; each batch has the columns that `open` promised."""
    out: list[Batch] = []
    operator.emit = out.append
    schema = operator.open(OperatorContext(input))
    for batch in batches:
        operator.process(batch)
    operator.close()
    for batch in out:
        assert batch.schema.equals(schema)
        batch.data.validate(full=True)
    return out


def taken(batches: list[Batch]) -> list[dict[str, Any]]:
    return [row for batch in batches for row in batch.taken().to_pylist()]


# -- filter ---------------------------------------------------------------------------------------------------------------


def test_filter_selects_and_copies_nothing() -> None:
    (out,) = run(Filter(col("a") > 10), Batch(FOUR, OFFSETS, "pay"))
    assert out.data is FOUR
    assert out.selection is not None
    assert out.selection.to_pylist() == [1, 3]
    assert (out.offsets, out.topic) == (OFFSETS, "pay")


def test_filters_in_a_row_narrow_one_selection() -> None:
    batch = selected(FOUR, 3, 1, 0)
    (out,) = run(Filter(col("a") < 30), batch)
    assert out.selection.to_pylist() == [1, 0]
    assert out.hashes is batch.hashes


def test_filter_lets_no_empty_batch_through_and_passes_a_full_one_as_it_is() -> None:
    whole, none, part = Batch(FOUR), Batch(FOUR.slice(0, 0)), selected(FOUR, 1)
    assert run(Filter(col("a") > 100), whole, none, part) == []
    out = run(Filter(col(TIME_COLUMN) >= 1000), whole, none, part)
    assert out == [whole, part]
    assert out[0] is whole


def test_filter_does_not_look_at_rows_that_are_filtered_already_where_looking_could_fail() -> None:
    data = rows((1, "1"), (2, "no number"), (3, "30"))
    predicate = col("s").cast("int64") > 10
    (out,) = run(Filter(predicate), selected(data, 0, 2))
    assert out.selection.to_pylist() == [2]
    with pytest.raises(
        DataError,
        match=r"'s': 'no number' is no int64; row 1 of a batch of 3 rows of pay\[0\] before offset 7.*strict=False",
    ):
        run(Filter(predicate), Batch(data, OFFSETS, "pay"))


def test_a_far_value_in_a_row_that_is_filtered_already_does_not_end_the_app() -> None:
    data = pa.record_batch(
        {"a": pa.array([1, 32503680000000, 2], pa.timestamp("ms")), "b": pa.array([1, 1, 1], pa.duration("ns"))}
    )
    (out,) = run(Select([("c", col("a") + col("b"))]), selected(data, 0, 2), input=data.schema)
    assert out.taken().column(0).cast(pa.int64()).to_pylist() == [1_000_001, 2_000_001]
    with pytest.raises(
        DataError,
        match=r" cannot be computed for .*3000.*out of bounds.*; row 1 of a batch of 3 rows of pay\[0\] before offset 7",
    ):
        run(Select([("c", col("a") + col("b"))]), Batch(data, OFFSETS, "pay"), input=data.schema)


def test_filter_refuses_at_build_time() -> None:
    with pytest.raises(UserError, match="not true or false"):
        run(Filter(col("a") + 1))
    with pytest.raises(UserError, match=r"no column 'b'.*are a, s"):
        run(Filter(col("b") > 1))


def test_a_literal_predicate_is_for_all_rows() -> None:
    assert run(Filter(lit(False)), Batch(FOUR)) == []
    assert taken(run(Filter(lit(True)), selected(FOUR, 2))) == FOUR.slice(2, 1).to_pylist()


def test_filter_counts_rows() -> None:
    operator = Filter(col("a") > 10)
    run(operator, Batch(FOUR), Batch(FOUR))
    assert operator.statistics() == {"rows_in": 8, "rows_out": 4}


# -- columns --------------------------------------------------------------------------------------------------------------


def test_select_of_plain_columns_keeps_the_selection_and_event_time() -> None:
    batch = selected(FOUR, 0, 3)
    (out,) = run(Select([("s", col("s")), ("b", col("a").alias("x"))]), batch)
    assert out.data.schema.names == ["s", "b", TIME_COLUMN]
    assert out.selection is batch.selection
    assert out.hashes is batch.hashes
    assert out.data.column(0).buffers()[2].address == FOUR.column("s").buffers()[2].address


def test_select_without_event_time_adds_none() -> None:
    data = FOUR.drop_columns([TIME_COLUMN])
    (out,) = run(Select([("twice", col("a") * 2)]), Batch(data), input=data.schema)
    assert taken([out]) == [{"twice": 2}, {"twice": 40}, {"twice": None}, {"twice": 80}]


def test_with_columns_replaces_in_place_and_appends() -> None:
    batch = Batch(FOUR, OFFSETS, hashes=pa.array(range(4), pa.uint64()))
    (out,) = run(WithColumns([("a", col("a") + 1), ("n", col("a").fill_null(0))]), batch)
    assert out.data.schema.names == ["a", "s", "n", TIME_COLUMN]
    assert [(row["a"], row["n"]) for row in taken([out])] == [(2, 1), (21, 20), (None, 0), (41, 40)]
    assert out.hashes is None  # they may have been of the old `a`
    (out,) = run(WithColumns([("n", col("a") * 2)]), batch)
    assert out.hashes is batch.hashes


def test_what_is_computed_over_a_selection_is_right_whether_rows_are_taken_or_not() -> None:
    data = pa.RecordBatch.from_arrays(
        [pa.array(range(100)), pa.array(["x"] * 100), pa.array(range(100))], schema=SCHEMA
    )
    for numbers in ([3, 5], list(range(0, 100, 2)), []):
        (out,) = run(WithColumns([("n", col("a") * 2), ("one", lit(1))]), selected(data, *numbers))
        assert out.num_rows == len(numbers)
        assert [row["n"] for row in taken([out])] == [2 * i for i in numbers]
        assert [row["one"] for row in taken([out])] == [1] * len(numbers)
        (out,) = run(Select([("k", lit("v"))]), selected(data, *numbers))
        assert [row["k"] for row in taken([out])] == ["v"] * len(numbers)


def test_a_strict_cast_sees_only_selected_rows() -> None:
    data = rows((1, "1"), (2, "no"), (3, "3"))
    (out,) = run(Select([("n", col("s").cast("int64"))]), selected(data, 0, 2))
    assert taken([out]) == [{"n": 1, TIME_COLUMN: 1000}, {"n": 3, TIME_COLUMN: 1002}]


def test_drop_and_rename_pass_the_selection_through() -> None:
    batch = selected(FOUR, 1, 2)
    (out,) = run(Drop(["a"]), batch)
    assert taken([out]) == [{"s": "y", TIME_COLUMN: 1001}, {"s": "z", TIME_COLUMN: 1002}]
    (out,) = run(Rename({"a": "s", "s": "a"}), batch)
    assert out.data.schema.names == ["s", "a", TIME_COLUMN]
    assert out.selection is batch.selection
    assert taken([out])[0] == {"s": 20, "a": "y", TIME_COLUMN: 1001}


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (Drop(["b"]), "drop: there is no column 'b'.*are a, s"),
        (Drop(["a", "s"]), "a, s are all columns"),
        (Drop([TIME_COLUMN]), "is a column that Sabot uses itself"),
        (Rename({"b": "c"}), "rename: there is no column 'b'"),
        (Rename({"a": "s"}), "two columns are called 's'"),
        (Rename({"a": TIME_COLUMN}), "no column can be called"),
        (Rename({TIME_COLUMN: "t"}), "is a column that Sabot uses itself"),
        (Select([]), "there are no columns"),
        (Select([("x", col("a")), ("x", col("s"))]), "two columns are called 'x'"),
        (Select([("x", col("b"))]), "no column 'b'"),
        (WithColumns([(TIME_COLUMN, col("a"))]), "no column can be called"),
    ],
)
def test_columns_that_cannot_be_are_refused_at_build_time(operator: Operator, words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(operator)


# -- map_batches ----------------------------------------------------------------------------------------------------------


def test_map_batches_learns_its_columns_from_an_empty_batch_and_keeps_event_time() -> None:
    seen: list[pa.RecordBatch] = []

    def double(batch: pa.RecordBatch) -> pl.DataFrame:
        seen.append(batch)
        return pl.DataFrame(pl.from_arrow(batch)).select(pl.col("s"), twice=pl.col("a") * 2)

    (out,) = run(MapBatches(double), selected(FOUR, 1, 3))
    assert [batch.num_rows for batch in seen] == [0, 2]
    assert seen[1].schema.names == ["a", "s"]
    assert out.schema.field("s").type == pa.string()  # polars gives string_view
    assert taken([out]) == [{"s": "y", "twice": 40, TIME_COLUMN: 1001}, {"s": None, "twice": 80, TIME_COLUMN: 1003}]
    assert out.offsets == OFFSETS


@pytest.mark.parametrize(
    "give",
    [
        lambda batch: batch,
        lambda batch: pa.Table.from_batches([batch]),
        lambda batch: batch.slice(0, 1).to_struct_array(),
        lambda batch: pl.from_arrow(batch),
    ],
)
def test_map_batches_takes_whatever_speaks_arrow(give: Callable[[pa.RecordBatch], Any]) -> None:
    data = FOUR.drop_columns([TIME_COLUMN])
    if isinstance(give(data), pa.StructArray):
        give = lambda batch: pa.RecordBatch.from_struct_array(batch.to_struct_array())  # noqa: E731
    assert taken(run(MapBatches(give, data.schema), Batch(data), input=data.schema)) == data.to_pylist()


def test_map_batches_may_give_nothing() -> None:
    assert run(MapBatches(lambda batch: None, FOUR.schema.remove(2)), Batch(FOUR)) == []
    assert run(MapBatches(lambda batch: batch.slice(0, 0), time="a"), Batch(FOUR)) == []


def test_map_batches_reads_event_time_again_from_its_column() -> None:
    def last_two(batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.record_batch(
            {"ts": pa.array([dt.datetime(1970, 1, 1, 0, 0, 1), dt.datetime(1970, 1, 1)], pa.timestamp("us"))}
        )

    (out,) = run(MapBatches(last_two, time="ts"), Batch(FOUR))
    assert out.data.column(TIME_COLUMN).to_pylist() == [1000, 0]


def test_map_batches_that_loses_event_time_is_told_so() -> None:
    with pytest.raises(UserError, match=r"returned 1 rows for 4.*pay\[0\] before offset 7.*time="):
        run(MapBatches(lambda batch: batch.slice(0, 1)), Batch(FOUR, OFFSETS))
    with pytest.raises(UserError, match="1 rows have no event time"):
        run(MapBatches(lambda batch: batch, time="a"), Batch(FOUR))
    with pytest.raises(UserError, match="column of event time, 's', is string"):
        run(MapBatches(lambda batch: batch, time="s"))


def test_an_exception_of_map_batches_names_the_step_and_the_batch() -> None:
    def broken(batch: pa.RecordBatch) -> Any:
        if batch.num_rows:
            raise KeyError("country")
        return batch

    with pytest.raises(
        UserError, match=r"map_batches\(.*broken\): KeyError: 'country'; a batch of 4 rows of pay\[0\] before offset 7"
    ) as caught:
        run(MapBatches(broken), Batch(FOUR, OFFSETS))
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_function_that_takes_no_empty_batch_is_told_to_give_a_schema() -> None:
    for function in (lambda batch: batch["a"][0] and batch, lambda batch: None):
        with pytest.raises(UserError, match=r"empty batch.*schema="):
            run(MapBatches(function))
    with pytest.raises(UserError, match="returned a dict, which is not Arrow data"):
        run(MapBatches(lambda batch: batch.to_pydict()))


def test_columns_in_another_order_are_put_right_and_others_refused() -> None:
    want = pa.schema([("x", pa.int64()), ("y", pa.list_(pa.field("element", pa.int64())))])

    def give(*columns: Any, names: str) -> MapBatches:
        return MapBatches(lambda batch: pa.record_batch(list(columns), names=list(names)), want)

    ints, lists = pa.array([1]), pa.array([[1]])
    data = FOUR.slice(0, 1)
    assert taken(run(give(lists, ints, names="yx"), Batch(data))) == [{"x": 1, "y": [1], TIME_COLUMN: 1000}]
    for operator, words in [
        (give(ints, names="x"), "no column 'y'"),
        (give(ints, lists, ints, names="xyz"), "an extra column 'z'"),
        (give(pa.array([1.0]), lists, names="xy"), "'x' is double, not int64"),
        (give(ints, lists, ints, names="xyx"), "two columns"),
    ]:
        with pytest.raises(UserError, match=words):
            run(operator, Batch(data))
    strict = MapBatches(
        lambda batch: pa.record_batch({"x": pa.array([None], pa.int64())}),
        pa.schema([pa.field("x", pa.int64(), nullable=False)]),
    )
    with pytest.raises(UserError, match="'x' has 1 nulls"):
        run(strict, Batch(data))


# -- flat_map -------------------------------------------------------------------------------------------------------------


def test_flat_map_gives_each_row_the_event_time_of_the_one_it_was_made_of() -> None:
    def words(row: dict[str, Any]) -> list[dict[str, Any]]:
        assert TIME_COLUMN not in row
        return [{"w": c} for c in (row["s"] or "")]

    data = rows((1, "ab"), (2, None), (3, "c"))
    (out,) = run(FlatMap(words, pa.schema({"w": pa.string()})), Batch(data, OFFSETS))
    assert taken([out]) == [{"w": "a", TIME_COLUMN: 1000}, {"w": "b", TIME_COLUMN: 1000}, {"w": "c", TIME_COLUMN: 1002}]
    assert out.offsets == OFFSETS


def test_flat_map_reads_event_time_from_its_column_and_emits_no_empty_batch() -> None:
    def later(row: dict[str, Any]) -> Any:
        yield {"ts": row["a"]}

    (out,) = run(FlatMap(later, pa.schema({"ts": pa.int64()}), time="ts"), Batch(FOUR.slice(0, 2)))
    assert out.data.column(TIME_COLUMN).to_pylist() == [1, 20]
    assert run(FlatMap(lambda row: [], pa.schema({"x": pa.int64()})), Batch(FOUR)) == []


def test_a_large_flat_map_comes_in_pieces_of_which_the_last_has_the_offsets() -> None:
    operator = FlatMap(lambda row: ({"n": i} for i in range(70_000)), pa.schema({"n": pa.int64()}))
    out = run(operator, Batch(FOUR.slice(0, 2), OFFSETS))
    assert max(batch.num_rows for batch in out) == 65_536
    assert [batch.offsets for batch in out] == [*[{}] * (len(out) - 1), OFFSETS]
    assert sum(row["n"] for row in taken(out)) == 2 * sum(range(70_000))


def test_errors_of_flat_map_name_the_row_or_the_schema() -> None:
    with pytest.raises(UserError, match=r"flat_map\(.*\): TypeError.*; row 2 of a batch of 4 rows of pay\[0\]"):
        run(FlatMap(lambda row: [{"n": row["a"] + 1}], pa.schema({"n": pa.int64()})), Batch(FOUR, OFFSETS))
    with pytest.raises(UserError, match="its rows do not fit the schema"):
        run(FlatMap(lambda row: [{"n": "x"}], pa.schema({"n": pa.int64()})), Batch(FOUR))
    for made in ("x", [("n", 1)], ["n"]):  # pyarrow takes a text for a row without columns
        with pytest.raises(UserError, match=r"it returned 'x' |\) is not a dict|'n' is not a dict|returned"):
            run(FlatMap(lambda row, made=made: made, pa.schema({"n": pa.int64()})), Batch(FOUR))


# -- event time -----------------------------------------------------------------------------------------------------------


def test_to_ms_rounds_down_and_keeps_nulls() -> None:
    ns = pa.array([-1, 1_999_999, None, 0], pa.timestamp("ns"))
    assert to_ms(ns).to_pylist() == [-1, 1, None, 0]
    assert to_ms(ns.slice(1, 2)).to_pylist() == [1, None]
    assert to_ms(pa.array([1, None], pa.timestamp("s", "Europe/Berlin"))).to_pylist() == [1000, None]
    assert to_ms(pa.array([dt.date(1970, 1, 2), None])).to_pylist() == [86_400_000, None]
    assert to_ms(pa.array([1, None], pa.int32())).equals(pa.array([1, None], pa.int64()))
    ready = pa.array([1, None])
    assert to_ms(ready) is ready
    assert to_ms(pa.array([], pa.timestamp("us"))).type == pa.int64()
    with pytest.raises(UserError, match="string is no time"):
        to_ms(pa.array(["x"]))


# -- any chain, any selection ---------------------------------------------------------------------------------------------

STEPS: list[tuple[Callable[[], Operator], Callable[[list[dict[str, Any]]], list[dict[str, Any]]]]] = [
    (lambda: Filter(col("a") > 2), lambda rows: [r for r in rows if r["a"] is not None and r["a"] > 2]),
    (lambda: Filter(col("s").is_not_null()), lambda rows: [r for r in rows if r["s"] is not None]),
    (lambda: Filter(col("a").cast("int8") < 9), lambda rows: [r for r in rows if r["a"] is not None and r["a"] < 9]),
    (
        lambda: WithColumns([("a", col("a") * 2)]),
        lambda rows: [{**r, "a": None if r["a"] is None else r["a"] * 2} for r in rows],
    ),
    (
        lambda: Select([("s", col("s")), ("a", col("a").fill_null(0))]),
        lambda rows: [{"s": r["s"], "a": r["a"] or 0, TIME_COLUMN: r[TIME_COLUMN]} for r in rows],
    ),
    (lambda: MapBatches(lambda batch: batch), lambda rows: rows),
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.one_of(st.none(), st.integers(-9, 12)), st.sampled_from(["x", "ä", None])), max_size=30),
    st.lists(st.sampled_from(range(len(STEPS))), max_size=5),
    st.data(),
)
def test_any_chain_gives_what_plain_python_gives(table: list[Any], steps: list[int], draw: Any) -> None:
    data = rows(*table)
    batch = Batch(data)
    if draw.draw(st.booleans()):
        numbers = [i for i in range(len(table)) if draw.draw(st.booleans())]
        batch = batch.with_selection(pa.array(numbers, pa.int32()))
    expected = batch.taken().to_pylist()
    batches, schema = [batch], SCHEMA
    for step in steps:
        make, naive = STEPS[step]
        operator = make()
        batches, before = run(operator, *batches, input=schema), schema
        schema = operator.open(OperatorContext(before))
        expected = naive(expected)
    assert [{k: r[k] for k in sorted(r)} for r in taken(batches)] == [{k: r[k] for k in sorted(r)} for r in expected]


# -- aggregates as described ----------------------------------------------------------------------------------------------


class Total(UserAggregate):
    type = pa.float64()

    def init(self) -> float:
        return 0.0

    def accumulate(self, state: float, batch: pa.RecordBatch) -> float:
        return state + sum(x * y for x, y in zip(*batch.to_pydict().values(), strict=True))

    def merge(self, a: float, b: float) -> float:
        return a + b

    def finish(self, state: float) -> float:
        return state


def test_every_aggregate_of_the_list_is_described() -> None:
    one = [sum_of, min_of, max_of, mean, variance, stddev, first, last, any_of, count_distinct, collect_list]
    assert [make("x").kind for make in one] == (
        ["sum", "min", "max", "mean", "variance", "stddev", "first", "last", "any", "count_distinct", "collect_list"]
    )
    for make in one:
        made = make("x")
        assert isinstance(made, Aggregate)
        assert made.argument is not None
        assert made.argument.same(col("x"))
        assert make(col("x") * 2).columns == {"x"}
    assert (count().argument, count("x").columns) == (None, {"x"})
    assert arg_max("x", by="y").columns == arg_min("x", "y").columns == {"x", "y"}
    assert dict(variance("x", ddof=0).options) == {"ddof": 0}
    assert stddev("x").options["ddof"] == 1


def test_filters_of_an_aggregate_add_up_and_it_reads_like_the_program() -> None:
    made = sum_of("x").filter(col("y") > 1).filter(col("z"))
    assert made.predicate is not None
    assert made.predicate.same((col("y") > 1) & col("z"))
    assert made.columns == {"x", "y", "z"}
    assert made.text() == 'sum(col("x")).filter((col("y") > 1) & col("z"))'
    assert repr(variance("x", ddof=0)) == 'variance(col("x"), ddof=0)'
    assert count().same(count())
    assert not count().same(count("x"))
    with pytest.raises(UserError, match="not an expression"):
        sum_of("x").filter("y")  # type: ignore[arg-type]


def test_a_user_aggregate_reads_its_columns_as_a_batch() -> None:
    total = Total()
    made = aggregate_with(total, "x", (col("y") + 1).alias("z"))
    assert (made.kind, made.columns) == ("user", {"x", "y"})
    assert made.text() == 'aggregate_with(Total, col("x"), (col("y") + 1).alias("z"))'
    assert made.same(aggregate_with(total, "x", (col("y") + 1).alias("z")))
    assert not made.same(aggregate_with(Total(), "x", (col("y") + 1).alias("z")))
    data = pa.record_batch({"x": [1.0, 2.0, 3.0], "y": [1, 2, 3]})
    assert isinstance(made.argument, Expr)
    (out,) = run(Select([("v", made.argument)]), Batch(data), input=data.schema)
    function: Any = made.function
    parts = [function.accumulate(function.init(), out.data.column("v").slice(i, 2)) for i in (0, 2)]
    assert function.finish(function.merge(*parts)) == 1 * 2 + 2 * 3 + 3 * 4
    assert function.type == pa.float64()
    assert function.accumulate(0.0, data) == 1 + 4 + 9


def test_a_user_aggregate_that_cannot_be_is_refused() -> None:
    class Untyped(Total):
        type = None  # type: ignore[assignment]

    for make, words in [
        (lambda: aggregate_with(Total), "not a UserAggregate"),  # type: ignore[arg-type]
        (lambda: aggregate_with(Untyped(), "x"), "has no attribute `type`"),
        (lambda: aggregate_with(Total()), "needs the columns"),
        (lambda: aggregate_with(Total(), "x", col("x") + 1), "one name"),
        (lambda: variance("x", ddof=-1), "ddof"),
    ]:
        with pytest.raises(UserError, match=words):
            make()


# -- data that is no valid Arrow ------------------------------------------------------------------------------------------

NOT_UTF8 = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe"))


def damaged(batch, *more):
    return pa.record_batch([pa.array([1]), NOT_UTF8], names=["n", "s"]).slice(0, batch.num_rows)


@pytest.mark.parametrize(
    "step",
    [
        lambda s: s.map_batches(damaged),
        lambda s: s.map_batches(damaged, schema={"n": "int64", "s": "string"}),
        lambda s: s.key_by("n").process(
            lambda keys, rows, ctx: damaged(rows), schema={"n": "int64", "s": "string"}, batch=True
        ),
        lambda s: s.map_async(damaged_soon, schema={"n": "int64", "s": "string"}, batch=True),
    ],
)
def test_what_a_function_gives_must_be_utf8(tmp_path, step):
    r"""b"\xff\xfe" went through to files and topics: `{"s":"\xff\xfe"}` is no JSON."""
    (tmp_path / "a.ndjson").write_text('{"n": 1}\n')
    stream = step(App("utf8").stream(files(tmp_path / "a.ndjson")))
    with pytest.raises(UserError, match="not valid Arrow: column 's'"):
        stream.collect()


async def damaged_soon(batch):
    return damaged(batch)


def test_a_time_beyond_64_bits_of_ms_is_none():
    """18,446,744,073,709,552 s were read as 384 ms after 1970."""
    seconds = pa.array([18_446_744_073_709_552, -18_446_744_073_709_552, 5, None, 2**63 // 1000], pa.timestamp("s"))
    assert to_ms(seconds).to_pylist() == [None, None, 5000, None, 2**63 // 1000 * 1000]
