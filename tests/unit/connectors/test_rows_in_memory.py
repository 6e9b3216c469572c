"""`app.stream` of what a program has in memory, and `stream.to(a list)`."""

import datetime
import decimal
import sys
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import sabot
from sabot import App, MissingExtra, UserError, col, lit, tumbling
from sabot.connectors.rows import RowsSource
from tools.agent_tools import until

ORDERS = [{"id": 1, "shop": "oslo"}, {"id": 2, "price": 2.5}, {"id": 3, "shop": "rome", "price": 1}]
WHOLE = [
    {"id": 1, "shop": "oslo", "price": None},
    {"id": 2, "shop": None, "price": 2.5},
    {"id": 3, "shop": "rome", "price": 1.0},
]
FRAME = pl.DataFrame({"shop": ["oslo", "rome", "oslo"], "n": [1, 2, 3]})
AT = datetime.datetime(2026, 1, 1)
TWICE = pa.struct([("n", pa.int64()), ("n", pa.int64())])


def reader():
    return pa.RecordBatchReader.from_batches(pa.schema([("n", pa.int64())]), [pa.record_batch({"n": [1, 2]})] * 2)


def test_a_list_of_dicts_is_a_stream_that_ends():
    orders = App("memory").stream(ORDERS)
    assert str(orders.schema.types) == "[DataType(int64), DataType(string), DataType(double)]"
    assert orders.collect().to_pylist() == WHOLE
    assert orders.collect().num_rows == 3  # again


@pytest.mark.parametrize(
    "rows",
    [
        FRAME,
        FRAME.to_arrow(),
        FRAME.to_arrow().to_batches()[0],
        pa.RecordBatchReader.from_stream(FRAME),
        duckdb.sql("SELECT * FROM FRAME"),
        FRAME.to_dicts(),
        tuple(FRAME.to_dicts()),
    ],
    ids=["polars", "table", "batch", "reader", "duckdb", "dicts", "tuple"],
)
def test_each_library_that_speaks_arrow_gives_the_same_rows(rows):
    shops = App("memory").stream(rows)
    assert shops.filter(col("n") > 1).collect().to_pylist() == [{"shop": "rome", "n": 2}, {"shop": "oslo", "n": 3}]


def test_a_data_frame_of_pandas_is_a_stream_without_its_unnamed_index():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"n": [1, 2, 3]})
    assert App("memory").stream(frame[frame.n > 1]).collect().to_pylist() == [{"n": 2}, {"n": 3}]
    by_shop = pandas.DataFrame({"shop": ["oslo"], "n": [1]}).set_index("shop")
    assert App("memory").stream(by_shop).collect().to_pylist() == [{"n": 1, "shop": "oslo"}]


def test_an_index_of_pandas_that_counts_is_a_column_too_if_it_has_a_name():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"n": [10, 20], "id": [7, 9]}).set_index("id")
    expected = [{"n": 10, "id": 7}, {"n": 20, "id": 9}]
    assert App("memory").stream(frame).collect().to_pylist() == expected
    counting = frame.set_axis(pandas.RangeIndex(7, 11, 2, name="id"))
    assert App("memory").stream(counting).collect().to_pylist() == expected, "Arrow has no column for it"
    assert App("memory").stream(counting, schema={"id": "int32"}).collect().to_pylist() == [{"id": 7}, {"id": 9}]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1, 5)], "would lose its hour as date32"),
        (
            [None, {"d": datetime.date(2024, 1, 1)}, {"d": datetime.datetime(2024, 1, 1, 5)}],
            "would lose its hour as date32",
        ),
        ([datetime.time(1, tzinfo=datetime.UTC)], "would lose its zone as time64"),
        (
            [datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)],
            "some times of 'v' have a time zone",
        ),
        ([pd.NaT, pd.Timestamp(1, unit="ns")], "would lose its nanoseconds as timestamp"),
        ([pd.Timedelta(1, unit="ns"), pd.NA], "would lose its nanoseconds as duration"),
    ],
)
@pytest.mark.parametrize("way", ["stream", "map_batches"])
def test_what_pandas_would_cut_of_python_objects_is_refused(values: list[Any], said: str, way: str) -> None:
    frame = pd.DataFrame({"n": range(len(values)), "v": pd.Series(values, dtype=object)})
    app = App("memory")
    with pytest.raises(UserError, match=f"column 'v' of the frame: .*{said}"):
        (app.stream(frame) if way == "stream" else app.stream([{"n": 1}]).map_batches(lambda batch: frame)).collect()


def test_objects_of_pandas_that_arrow_has_whole_are_taken() -> None:
    values = [datetime.datetime(2024, 1, 1, 5), pd.NaT, None]
    frame = pd.DataFrame({"t": pd.Series(values, dtype=object), "s": ["a", None, "c"], "l": [[1], None, [2]]})
    assert App("memory").stream(frame).collect().to_pydict() == {
        "t": [values[0], None, None],
        "s": ["a", None, "c"],
        "l": [[1], None, [2]],
    }


def test_columns_of_frames_that_arrow_has_only_as_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="column 'a' of the frame has Python objects, of which Arrow gets no values"):
        App("memory").stream(pl.DataFrame({"a": [object()]}))
    periods = pd.DataFrame({"month": pd.period_range("2024-01", periods=2, freq="M")})
    with pytest.raises(UserError, match=r"'month' of the frame has periods.*frame\['month'\].dt.to_timestamp\(\)"):
        App("memory").stream(periods)
    sparse = pd.DataFrame({"a": pd.arrays.SparseArray([0, 1])})
    with pytest.raises(UserError, match=r"the columns of a pandas.DataFrame cannot be read: Sparse"):
        App("memory").stream(sparse)


def test_nanoseconds_of_a_timedelta_in_a_row_are_not_lost() -> None:
    with pytest.raises(UserError, match="would lose its nanoseconds as duration"):
        App("memory").stream([{"d": pd.Timedelta(1, unit="ns")}])


@pytest.mark.parametrize("library", ["polars", "pandas"])
def test_a_single_column_of_a_library_is_refused_with_the_way_out(library):
    series = pytest.importorskip(library).Series(["a"])
    with pytest.raises(UserError, match=rf"stream: a {library}\.Series has no columns.*to_frame\(\)"):
        App("memory").stream(series)


def test_types_of_other_libraries_become_those_of_streams():
    frame = pl.DataFrame({"kind": ["a", "b"], "at": [AT, AT]}).with_columns(pl.col("kind").cast(pl.Categorical))
    stream = App("memory").stream(frame, time="at")
    assert stream.schema == pa.schema([("kind", pa.string()), ("at", pa.timestamp("us"))])
    assert stream.window(tumbling("1h")).aggregate(n=sabot.count()).collect().column("n").to_pylist() == [2]


def test_a_schema_chooses_columns_and_types():
    rows = [{"id": 1, "price": 2, "note": "x"}]
    schema = {"price": "float64", "id": "int32"}
    wanted = [{"price": 2.0, "id": 1}]
    assert App("memory").stream(rows, schema=schema).collect().to_pylist() == wanted
    assert App("memory").stream(pa.Table.from_pylist(rows), schema=schema).collect().to_pylist() == wanted
    assert App("memory").stream([], schema=schema).collect().num_rows == 0


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "rows without columns"),
        ([{"n": 1}, 2], {}, "row 1 is 2, not a dict"),
        ([{"n": 1}, {"n": "x"}], {}, "the values of 'n' have no type in common"),
        ([{"n": "x"}], {"schema": {"n": "int64"}}, "a value of 'n' does not fit int64"),
        (pa.table({"n": ["x"]}), {"schema": {"n": "int64"}}, "the rows do not fit schema="),
        (pa.table({"n": [1]}), {"schema": {"m": "int64"}}, "the rows have no column 'm'"),
        (pa.table([[1], [2]], names=["n", "n"]), {}, "the rows have two columns 'n'"),
        (pd.DataFrame([[1, 2]], columns=["n", "n"]), {}, "the rows have two columns 'n'"),
        (pd.DataFrame([[1, 2]], columns=[0, "0"]), {}, "the rows have two columns '0'"),
        (pa.table([[1], [2]], names=["n", "n"]).to_batches()[0], {}, "the rows have two columns 'n'"),
        (pa.table([[1], [2]], names=["n", "n"]).to_reader(), {}, "the rows have two columns 'n'"),
        (duckdb.sql("SELECT 1 AS n, 2 AS n"), {}, "the rows have two columns 'n'"),
        (pa.table({"s": [None]}, pa.schema([("s", pa.list_(TWICE))])), {}, "the rows have two columns 's.n'"),
        ([{"n": 1}], {"schema": pa.schema([*TWICE])}, "schema: two columns are called 'n'"),
        ([{"s": {"n": 1}}], {"schema": {"s": TWICE}}, "schema: two columns are called 's.n'"),
        (pa.table({"n": [1]}), {"until": "now"}, "until= needs a topic"),
        (pl.LazyFrame({"n": [1]}), {}, r"neither a topic nor a Source .*stream\(frame.collect\(\)\)"),
        (duckdb.connect(), {}, r'neither a topic nor a Source .*connection.table\("orders"\)'),
    ],
)
def test_rows_that_cannot_be_a_stream_are_refused_in_the_line_that_gives_them(rows, options, message):
    with pytest.raises(UserError, match=message):
        App("memory").stream(rows, **options)


@pytest.mark.parametrize(
    "given",
    [pd.DataFrame([[1, 2]], columns=["n", "n"]), pa.table([[1], [2]], names=["n", "n"])],
    ids=["pandas", "arrow"],
)
@pytest.mark.parametrize(
    "step",
    [
        lambda rows, given: rows.map_batches(lambda batch: given),
        lambda rows, given: rows.map_batches(lambda batch: given, schema={"n": "int64"}),
        lambda rows, given: rows.key_by("k").window(tumbling("1s")).apply(lambda batch: given, schema={"n": "int64"}),
        lambda rows, given: rows.key_by("k").process(lambda keys, batch, ctx: given, schema={"n": "int64"}, batch=True),
    ],
    ids=["map_batches", "map_batches with a schema", "apply", "process"],
)
def test_a_frame_with_two_columns_of_one_name_is_refused_wherever_it_is_given(step, given):
    """A frame of pandas ended with Arrow's ValueError, or with an error of Sabot itself."""
    rows = App("memory").stream([{"k": 1, "t": AT}], time="t")
    with pytest.raises(UserError, match=r"two columns|'n'"):
        step(rows, given).collect()


def test_a_table_in_memory_enriches_a_stream():
    app = App("memory")
    names = app.table([{"id": 1, "name": "Ann"}, {"id": 1, "name": "Anna"}], key="id")
    visits = app.stream([{"id": 1}, {"id": 2}]).lookup(names, on="id")
    assert visits.collect().to_pylist() == [{"id": 1, "name": "Anna"}, {"id": 2, "name": None}]


async def test_streams_write_into_lists():
    app, all_rows, dear = App("memory"), [], []
    orders = app.stream(ORDERS)
    orders.to(all_rows)
    orders.filter(col("price") > 2).select("id").to(dear)
    await app.run()
    assert (all_rows, dear) == (WHOLE, [{"id": 2}])


def test_changes_into_a_list_are_refused_with_the_way_out():
    with pytest.raises(UserError, match=r"this sink can only add rows .*materialize\(\)"):
        App("memory").stream(ORDERS).upsert("id").to([])


async def test_a_second_run_continues_behind_the_rows_of_the_first_one(tmp_path):
    found = []
    for run in range(2):
        app = App("memory", state=str(tmp_path))
        app.stream([{"n": 1}, {"n": 2}]).select("n", run=lit(run)).to(found)
        app.stream([{"m": 5}]).to(found)  # a second list under the same name
        await app.run()
    assert sorted(map(str, found)) == ["{'m': 5}", "{'n': 1, 'run': 0}", "{'n': 2, 'run': 0}"]


async def test_other_rows_than_those_of_the_checkpoint_are_read_from_their_start(tmp_path, memory_url, caplog):
    found = []
    for rows, wanted in (([{"n": 1}, {"n": 2}], 2), ([{"n": 1}, {"n": 2}], 2), ([{"n": 3}, {"n": 4}], 4)):
        app = App("memory", broker=memory_url, state=str(tmp_path))
        app.stream(rows).to(found)
        app.stream("endless", schema={"n": "int64"}).to(found)
        await app.start()
        await until(lambda n=wanted: len(found) == n)
        await app.stop()
    assert found == [{"n": n} for n in (1, 2, 3, 4)]
    assert "source rows-1: its rows are not those of the checkpoint" in caplog.text


@pytest.mark.parametrize("at", range(5))
def test_the_source_continues_behind_each_row(at):
    def read(source):
        while (batch := source.read_batch(3, 0)) is not None:
            yield from batch.taken().column("n").to_pylist()

    first = RowsSource(pa.concat_tables([pa.table({"n": [0, 1]}), pa.table({"n": [2, 3]})]), "rows")
    first.open(None)
    given = [] if at == 0 else first.read_batch(at, 0).taken().column("n").to_pylist()
    second = RowsSource([{"n": n} for n in range(4)], "rows")
    second.open(first.positions())
    assert given + list(read(second)) == [0, 1, 2, 3]
    assert second.exhausted
    assert first.log_id == second.log_id


def test_equal_rows_are_one_log_whatever_their_batches_and_types():
    rows = [
        {"a": [1, None], "d": decimal.Decimal(n), "f": None if n % 3 == 0 else 1.5, "t": AT, "s": str(n)}
        for n in range(9)
    ]
    whole = pa.Table.from_pylist(rows)
    parts = pa.concat_tables([whole.slice(0, 4), whole.slice(4)])
    assert RowsSource(rows, "rows").log_id == RowsSource(parts, "rows").log_id
    for name in whole.column_names:
        other = [*rows[:-1], rows[-1] | {name: None}]
        assert RowsSource(other, "rows").log_id != RowsSource(rows, "rows").log_id


# Rows as data frames


def test_a_stream_becomes_a_data_frame_or_a_table():
    shops = App("memory").stream(FRAME)
    assert shops.to_polars().equals(FRAME)
    assert shops.filter(col("n") > 1).to_polars(limit=1).rows() == [("rome", 2)]
    assert shops.to_arrow() == shops.collect()
    database = duckdb.connect()
    shops.group_by("shop").aggregate(n=sabot.sum("n")).to_duckdb(database, "totals")
    assert database.sql("SELECT shop, n FROM totals ORDER BY shop").fetchall() == [("oslo", 4), ("rome", 2)]
    with pytest.raises(UserError, match=r"table 'totals' cannot be made: .*already exists"):
        shops.to_duckdb(database, "totals")
    shops.to_duckdb(database, "totals", overwrite=True)
    assert len(database.sql("SELECT * FROM totals").fetchall()) == len(FRAME)
    database.execute("CREATE SCHEMA mine")
    for _ in range(2):
        shops.to_duckdb(database, 'mine."all of it"', overwrite=True)
    assert len(database.sql('SELECT * FROM mine."all of it"').fetchall()) == len(FRAME)
    with pytest.raises(UserError, match="is no connection of DuckDB"):
        shops.to_duckdb("totals", database)


def test_a_stream_becomes_a_data_frame_of_pandas():
    pytest.importorskip("pandas")
    frame = App("memory").stream(FRAME).to_pandas()
    assert frame.to_dict("records") == FRAME.to_dicts()


def test_two_ids_beside_a_null_stay_two_in_pandas():
    """As floats both would be 9007199254740992: a join or a group_by of the frame would take them for one."""
    pandas = pytest.importorskip("pandas")
    table = pa.table(
        {
            "id": pa.array([2**53, 2**53 + 1, None]),
            "wide": pa.array([2**64 - 1, 2**64 - 2, None], pa.uint64()),
            "small": pa.array([1, 2, None]),
            "whole": pa.array([2**53, 2**53 + 1, -1]),
            "list": pa.array([[2**53, None], [2**53 + 1, None], None]),
            "row": pa.array([{"id": 2**53, "ids": [2**53 + 1, None]}, {"id": 2**53 + 1, "ids": []}, None]),
        }
    )
    frame = App("memory").stream(table).to_pandas()
    assert frame["id"].nunique() == 2
    assert frame["id"].tolist() == [2**53, 2**53 + 1, pandas.NA]
    assert frame["wide"].tolist() == [2**64 - 1, 2**64 - 2, pandas.NA]
    assert frame["list"].tolist() == [[2**53, None], [2**53 + 1, None], None]
    assert frame["row"].tolist() == table["row"].to_pylist()
    assert [str(frame[name].dtype) for name in ("id", "wide", "small", "whole")] == [
        "Int64",
        "UInt64",
        "float64",
        "int64",
    ]


@pytest.mark.parametrize("name", ["polars", "pandas"])
def test_without_the_library_the_error_says_what_to_install(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf"to_{name} needs an optional package \(pip install 'sabot\[{name}\]'\)"):
        getattr(App("memory").stream(FRAME), f"to_{name}")()


def test_a_topic_needs_a_limit_and_the_error_names_the_method(memory_url):
    with pytest.raises(UserError, match="has no end"):
        App("memory", broker=memory_url).stream("orders", schema={"n": "int64"}).to_polars()


WHOLE_DAY, HOUR = datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1, 5)


@pytest.mark.parametrize(
    ("column", "type"),
    [([HOUR], "date32"), ([0.125], "decimal128(9, 2)"), ([5], "bool"), ([1e40], "float32")],
    ids=["hour", "digits", "bool", "inf"],
)
@pytest.mark.parametrize("way", ["process", "apply"])
def test_a_result_of_a_function_over_batches_is_not_cut_to_its_schema(column: list[Any], type: str, way: str) -> None:
    stream = App("memory").stream([{"id": 1, "at": HOUR}], time="at")
    made = pa.table({"v": column})
    if way == "process":
        given = stream.key_by("id").process(lambda keys, batch, ctx: (made, [0]), schema={"v": type}, batch=True)
    else:
        given = stream.key_by("id").window(tumbling("1h")).apply(lambda rows: made, schema={"v": type})
    with pytest.raises(UserError, match="would be"):
        given.collect()
