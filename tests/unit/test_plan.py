"""What the plan makes of a program: which columns are read, where filters stand, where rows change threads."""

import pyarrow as pa
import pytest
from pyarrow import parquet

import sabot
from sabot import App, UserError, col, count_window, session, tumbling

SCHEMA = {"id": "int64", "account": "string", "amount": "float64", "ts": "int64", "country": "string"}


@pytest.fixture
def app(memory_url):
    return App("shop", broker=memory_url)


@pytest.fixture
def orders(app):
    return app.stream("orders", schema=SCHEMA, time="ts", lateness="5s")


def line(stream, start):
    """The one line of the plan that begins like this."""
    (found,) = [text for text in map(str.strip, stream.explain().splitlines()) if text.startswith(start)]
    return found


def minutes(stream, by="account"):
    return stream.key_by(by).window(tumbling("1m")).aggregate(n=sabot.count(), total=sabot.sum("amount"))


def test_only_the_columns_that_are_used_are_read(orders):
    assert line(minutes(orders.filter(col("country") == "DE")), "read") == (
        "read orders: account, amount, country; event time from ts"
    )


def test_a_sink_of_the_whole_stream_reads_all_columns(orders):
    assert line(orders.filter(col("amount") > 10), "read") == "read orders: all columns"


def test_a_column_that_is_computed_and_not_used_reads_nothing(orders):
    doubled = orders.with_columns(twice=col("amount") * 2).select("id", "twice")
    assert line(doubled, "read") == "read orders: id, amount"


def steps(stream):
    """The plan's operators, in the order in which rows meet them."""
    words = ("filter", "select", "with", "rename", "drop")
    return [text.split(" ")[0] for text in map(str.strip, stream.explain().splitlines()) if text.startswith(words)]


def test_filters_move_towards_the_source(orders):
    cheap = (
        orders.with_columns(twice=col("amount") * 2).rename({"country": "land"}).drop("id").filter(col("land") == "DE")
    )
    assert steps(cheap) == ["filter", "with", "rename", "drop"]
    assert line(cheap, "filter") == 'filter col("country") == "DE"'


def test_a_filter_stays_behind_the_column_that_it_looks_at(orders):
    assert steps(orders.with_columns(twice=col("amount") * 2).filter(col("twice") > 4)) == ["with", "filter"]


def test_a_filter_does_not_move_past_a_step_that_others_read_too(app, orders):
    both = orders.with_columns(twice=col("amount") * 2)
    both.to("all")
    both.filter(col("country") == "DE").to("german")
    assert app.graph().count('"filter') == 1
    assert "swith_1 --> sfilter_1" in app.graph()


def test_one_thread_fuses_everything_up_to_the_sink(orders):
    text = minutes(orders).explain()
    assert text.count("stage ") - text.count("-> stage ") == 3  # read, what is written, dead letters


def test_several_threads_split_rows_by_key_group_before_keyed_work(memory_url):
    app = App("shop", broker=memory_url, parallelism=2)
    text = minutes(app.stream("orders", schema=SCHEMA, time="ts")).explain()
    assert "by key group of account" in text
    assert "stage window-1  x2" in text


def test_rows_that_are_split_already_are_not_split_again(memory_url):
    app = App("shop", broker=memory_url, parallelism=2)
    orders = app.stream("orders", schema=SCHEMA, time="ts")
    again = minutes(orders).key_by("account").aggregate(n=sabot.count())
    assert again.explain().count("by key group") == 1


def test_rows_that_are_split_by_some_of_the_keys_are_split_by_all_of_them(memory_url):
    app = App("shop", broker=memory_url, parallelism=2)
    orders = app.stream("orders", schema=SCHEMA, time="ts")
    again = minutes(orders).key_by("account", "window_start").deduplicate()
    assert "by key group of account, window_start" in again.explain()  # where a restore looks for their state


def test_the_graph_is_mermaid(app, orders):
    minutes(orders).to("minutes")
    graph = app.graph()
    assert graph.startswith("flowchart LR")
    for words in ("read orders", "write minutes", "dead letters"):
        assert words in graph


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda s: s.filter("amount"), "is no expression"),
        (lambda s: s.select("id", "id"), "two columns are called 'id'"),
        (lambda s: s.key_by(), "key_by needs a column"),
        (lambda s: s.key_by("account").window("1m"), "is no window"),
        (lambda s: s.key_by("account").window(session("1m"), emit_every="1s"), "no early results"),
        (lambda s: s.key_by("account").window(tumbling("1m")).aggregate(), "at least one"),
        (
            lambda s: s.key_by("account").window(tumbling("1m")).aggregate(account=sabot.count()),
            "name of another column",
        ),
        (lambda s: s.key_by("account").aggregate(n=3), "is no aggregate"),
        (lambda s: s.aggregate(sabot.count()), r"count\(\) has no name.*aggregate\(n=count\(\)\)"),
        (lambda s: s.key_by("account").aggregate(sabot.count(), ttl="1h"), "has no name"),
        (lambda s: s.window(tumbling("1m")).aggregate(sabot.count()), "has no name"),
        (lambda s: s.flat_map(list, schema=["id"]), r"schema=\['id'\] is no schema"),
        (lambda s: s.to("x", delivery="twice"), "exactly_once"),
        (lambda s: s.to(3), "no topic and no Sink"),
        (lambda s: s.collect(), "has no end"),
        (lambda s: s.map_batches(3), "no function"),
        (lambda s: s.filter(col("amuont") > 3).explain(), "amuont"),
    ],
)
def test_mistakes_are_found_when_the_program_is_written(orders, build, says):
    with pytest.raises(UserError, match=says):
        build(orders)


@pytest.mark.parametrize("window", [tumbling("1m"), session("1m")])
def test_a_window_of_time_over_a_file_needs_a_column_of_time(app, tmp_path, window):
    from sabot import files

    (tmp_path / "a.ndjson").write_text('{"k": 1}\n')
    stream = app.stream(files(tmp_path / "a.ndjson")).key_by("k").window(window).aggregate(n=sabot.count())
    with pytest.raises(UserError, match="time of their own"):
        stream.collect()


def test_columns_of_types_that_json_does_not_have_go_through_a_stream(app, tmp_path):
    """A decimal beside the columns that were wanted made a file unreadable: the checkpoint was to keep a schema of JSON."""
    from sabot import files

    amounts = pa.array([125, None, 250], pa.decimal128(20, 2))
    parquet.write_table(pa.table({"amount": amounts, "k": ["a", "a", "b"]}), tmp_path / "a.parquet")
    source = tmp_path / "a.parquet"
    assert app.stream(files(source)).select("k").collect().num_rows == 3
    assert app.stream(files(source)).filter(col("k") == "a").collect()["amount"].to_pylist() == amounts.to_pylist()[:2]
    sums = app.stream(files(source)).key_by("k").window(count_window(9)).aggregate(total=sabot.sum("amount"))
    assert sums.collect().sort_by("k")["total"].to_pylist() == [amounts[0].as_py(), amounts[2].as_py()]


def test_an_error_of_ones_own_aggregate_names_it(app, tmp_path):
    from sabot import files

    class Share(sabot.UserAggregate):
        type = pa.float64()

        def init(self):
            return 0

        def accumulate(self, state, values):
            return state + len(values)

        def merge(self, state, other):
            return state + other

        def finish(self, state):
            return 1 / 0

    (tmp_path / "a.ndjson").write_text('{"k": 1}\n')
    one = sabot.aggregate_with(Share(), "k")
    stream = app.stream(files(tmp_path / "a.ndjson")).key_by("k").window(count_window(2)).aggregate(share=one)
    with pytest.raises(UserError, match=r"aggregate share: .*Share\.finish: ZeroDivisionError"):
        stream.collect()


def test_a_window_by_count_needs_no_time(app, tmp_path):
    from sabot import files

    (tmp_path / "a.ndjson").write_text('{"k": 1}\n{"k": 1}\n{"k": 2}\n')
    stream = app.stream(files(tmp_path / "a.ndjson")).key_by("k").window(count_window(2)).aggregate(n=sabot.count())
    assert stream.collect().sort_by("k").to_pylist() == [{"k": 1, "n": 2}, {"k": 2, "n": 1}]
