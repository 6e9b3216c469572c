"""What the plan makes of a program: which columns are read, where filters stand, where rows change threads."""

import copy
import datetime
import pickle
import re
from importlib import import_module

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import sabot
from sabot import (
    App,
    DataError,
    GroupedStream,
    KeyedStream,
    Stream,
    UserError,
    WindowedStream,
    col,
    count_window,
    files,
    session,
    tumbling,
)
from sabot.api.elsewhere import (
    APPS,
    EXPRESSIONS,
    FUNCTIONS,
    LISTS,
    STREAMS,
    STRUCTS,
    TEXTS,
    TIMES,
    TOTALS,
    WINDOWS,
)
from sabot.api.nodes.rows import Union
from sabot.api.stream.stream import ProcessedStream
from sabot.testing import END, ScriptedSource

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
    assert line(orders.filter(col("amount") > 10), "read") == "read orders: all columns; ts is not null"


def test_a_column_that_is_computed_and_not_used_reads_nothing(orders):
    doubled = orders.with_columns(twice=col("amount") * 2).select("id", "twice")
    assert line(doubled, "read") == "read orders: id, amount; ts is not null"


def test_columns_that_nothing_uses_are_neither_computed_nor_read(orders):
    """Behind select and with_columns all that they name was read, and computed."""
    named = orders.select("id", "account", "ts", twice=col("amount") * 2, land=col("country").str.lower())
    totals = (
        named.with_columns(half=col("twice") / 2, more=col("id") + 1).group_by("account").aggregate(n=sabot.max("more"))
    )
    assert shown(totals) == [
        "read orders: id, account; event time from ts",
        "select id, account",
        'with more = col("id") + 1',
        'group by account: n = max(col("more"))',
    ]
    assert shown(named.group_by().aggregate(n=sabot.count())) == [
        "read orders: id; event time from ts",
        "select _ = lit(True)",
        "group: n = count()",
    ]


def shown(stream):
    """What the stages of the plan do, without where their rows go."""
    lines = map(str.strip, stream.explain().splitlines())
    return [each for each in lines if not each.startswith(("stage", "->", "write"))]


@pytest.fixture
def others(app):
    return app.stream("others", schema={"account": "string", "amount": "float64", "limit": "int64"})


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        (
            lambda rows, others: rows.join(others, on="account").select("id", "limit"),
            ["select id, account", "select account, limit"],
        ),
        (
            lambda rows, others: others.join(rows, on="account").select("id", "limit"),
            ["select account, limit", "select id, account"],
        ),
        (
            lambda rows, others: rows.join(others, on="account", how="semi").select("id"),
            ["select id, account", "select account"],
        ),
        (
            lambda rows, others: rows.join(others, on="account", window=tumbling("1m")).select("id"),
            ["select id, account", "select account"],
        ),
        (lambda rows, others: rows.key_by("account").top_n(1, "id").select("id"), ["select id, account"]),
        (lambda rows, others: rows.window(tumbling("1m")).top_n(1, "id", rank="place").select("place"), ["select id"]),
        (lambda rows, others: rows.upsert("account").select("id"), ["select id, account"]),
    ],
)
def test_rows_are_kept_without_the_columns_that_only_a_step_before_needed(orders, others, step, kept):
    both = step(orders.filter(col("amount") > 1), others.filter(col("amount") > 2))
    assert [each for each in shown(both) if each.startswith("select ")][: len(kept)] == kept


def test_rows_are_kept_as_they_come_where_all_columns_are_used_or_unknown(orders):
    assert shown(orders.key_by("account").top_n(1, "id"))[1:] == ["top 1 by account, order id descending"]
    ours = orders.map_batches(lambda rows: rows).key_by("account").top_n(1, "id").select("id")
    assert shown(ours)[2:] == ["top 1 by account, order id descending", "select id"]


def test_the_last_rows_of_changes_are_kept_with_all_columns_that_were_read(orders):
    """They are packed into bytes, of which a checkpoint cannot lose a column."""
    counts = orders.group_by("account", "country").aggregate(n=sabot.count(), most=sabot.max("amount"))
    assert "select" not in "".join(shown(counts.upsert("account").select("account", "n"))[:-1])


def test_what_a_column_that_nothing_uses_would_have_refused_goes_on(app, tmp_path):
    parquet.write_table(pa.table({"k": ["a", "b"], "x": ["1", "none"]}), tmp_path / "rows.parquet")
    rows = app.stream(files(tmp_path / "rows.parquet"), on_error="fail").select("k", n=col("x").cast("int64"))
    assert rows.select("k").collect().column("k").to_pylist() == ["a", "b"]
    with pytest.raises(DataError, match="none"):
        rows.collect()


def test_top_n_passes_on_columns_that_are_called_as_those_of_windows(app):
    """They were taken for columns that it makes, as top_n of a window does, and were not read."""
    rows = app.stream("rows", schema={"k": "string", "x": "int64", "window_start": "int64"})
    best = rows.key_by("k").top_n(1, "x").select("window_start")
    assert line(best, "read") == "read rows: k, x, window_start; event time from the records"


def test_top_n_of_a_window_behind_a_window_has_the_bounds_of_both(app, tmp_path):
    table = pa.table({"k": ["a", "b", "a", "b", "b"], "ts": [0, 10, 20, 61_000, 62_000]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    rows = app.stream(files(tmp_path / "rows.parquet"), time="ts")
    counts = rows.key_by("k").window(tumbling("1m")).aggregate(n=sabot.count())
    best = counts.window(tumbling("2m")).top_n(2, by=["n", "window_start"]).collect()
    found = [
        tuple(map(row.get, ("k", "n", "row_window_start", "window_start", "window_end"))) for row in best.to_pylist()
    ]
    at = [datetime.datetime.fromtimestamp(seconds, datetime.UTC) for seconds in (0, 60, 120)]
    assert found == [("b", 2, at[1], at[0], at[2]), ("a", 2, at[0], at[0], at[2])]


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


def test_groups_are_made_where_rows_are_together_by_some_of_the_keys(memory_url):
    """After a join of orders and items by order, groups by (item, order) need no other thread; those by item do."""
    app = App("shop", broker=memory_url, parallelism=2)
    orders = app.stream("orders", schema={"id": "int64", "land": "string"})
    items = app.stream("items", schema={"order": "int64", "item": "string", "amount": "int64"})
    both = orders.join(items, left_on="id", right_on="order").group_by("item", "id").aggregate(n=sabot.sum("amount"))
    lines = both.group_by("item").aggregate(most=sabot.max("n")).explain().splitlines()
    assert [each.strip() for each in lines if "by key group" in each] == [
        "-> stage join-1 by key group of id",
        "-> stage join-1 (right) by key group of order",
        "-> stage grouped-1 by key group of item, changes",
    ]


def test_rows_are_ranked_where_they_are_together_by_some_of_the_keys(memory_url):
    app = App("shop", broker=memory_url, parallelism=2)
    orders = app.stream("orders", schema={"id": "int64", "land": "string"})
    items = app.stream("items", schema={"order": "int64", "item": "string", "amount": "int64"})
    first = orders.join(items, left_on="id", right_on="order").key_by("item", "id").top_n(1, by="amount")
    assert first.explain().count("by key group") == 2  # the two inputs of the join


def test_windows_are_where_rows_are_together_by_some_of_the_keys(memory_url):
    app = App("shop", broker=memory_url, parallelism=2)
    orders = app.stream("orders", schema=SCHEMA, time="ts")
    again = minutes(orders).select("account", "n", "total").key_by("account", "total")
    for each in (
        again.window(tumbling("1h")).aggregate(many=sabot.count()),
        again.window(tumbling("1h")).top_n(1, by="n"),
    ):
        assert each.explain().count("by key group") == 1


def test_the_graph_is_mermaid(app, orders):
    minutes(orders).to("minutes")
    graph = app.graph()
    assert graph.startswith("flowchart LR")
    for words in ("read orders", "write minutes", "dead letters"):
        assert words in graph


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda s: s.filter("amount"), "is not an expression"),
        (lambda s: s.select("id", "id"), "two columns are called 'id'"),
        (lambda s: s.key_by(), "key_by needs a column"),
        (lambda s: s.group_by(account=col("id") * 2), r"group_by: .* would take the place of column .account."),
        (
            lambda s: s.key_by(id=col("id") * 2),
            r"key_by: .* would take the place of column 'id' \(key_by\(id_key=…\)\)",
        ),
        (lambda s: s.key_by("account", account="id"), "two columns are called 'account'"),
        (lambda s: s.key_by("account").window("1m"), "is not a window"),
        (lambda s: s.key_by("account").window(session("1m"), emit_every="1s"), "no early results"),
        (lambda s: s.key_by("account").window(session("1m"), allowed_lateness="1s"), "would count twice"),
        (lambda s: s.key_by("account").window(tumbling("1m")).aggregate(), "at least one"),
        (
            lambda s: s.key_by("account").window(tumbling("1m")).aggregate(account=sabot.count()),
            "name of another column",
        ),
        (lambda s: s.key_by("account").aggregate(n=3), "is not an aggregate"),
        (lambda s: s.aggregate(sabot.count()), r"count\(\) needs a name.*aggregate\(n=count\(\)\)"),
        (lambda s: s.key_by("account").aggregate(sabot.count(), ttl="1h"), "needs a name"),
        (lambda s: s.window(tumbling("1m")).aggregate(sabot.count()), "needs a name"),
        (lambda s: s.flat_map(list, schema=["id"]), r"schema=\['id'\] is not a schema"),
        (lambda s: s.to("x", delivery="twice"), "exactly_once"),
        (lambda s: s.to(3), "neither a topic nor a Sink"),
        (lambda s: s.collect(), "has no end"),
        (lambda s: s.map_batches(3), "not a function"),
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
    with pytest.raises(UserError, match="neither record timestamps"):
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


# -- event time and its column --------------------------------------------------------------------------------------------

TIMED = {"id": "int64", "k": "string", "ts": "int64", "expires": "int64"}


@pytest.fixture
def timed(app):
    return app.stream("jobs", schema=TIMED, time="ts")


def shifted(batch):
    return batch.rename_columns(["id", "k", "ts"])


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("with_columns", lambda s: s.with_columns(ts=col("ts") + 1)),
        ("select", lambda s: s.select("k", ts=col("ts") + 1)),
        ("select", lambda s: s.select("k", ts="expires")),
        ("select", lambda s: s.select("k", col("expires").alias("ts"))),
        ("select", lambda s: s.select("k", when="ts", ts="expires")),
        ("rename", lambda s: s.rename({"ts": "expires", "expires": "ts"})),
        ("rename", lambda s: s.drop("ts").rename({"expires": "ts"})),
        ("rename", lambda s: s.select("k", "expires").rename({"expires": "ts"})),
        ("with_columns", lambda s: s.drop("ts").with_columns(ts="expires")),
        ("with_columns", lambda s: s.filter(col("id") > 1).drop("ts").sample(0.5).with_columns(ts="expires")),
        ("aggregate", lambda s: s.key_by("k").aggregate(ts=sabot.max("expires"))),
        ("over", lambda s: s.drop("ts").key_by("k").over(ts=sabot.max("expires"))),
        ("with_columns", lambda s: s.union(s).with_columns(ts="expires")),
        ("with_columns", lambda s: s.key_by("k").deduplicate().with_columns(ts="expires")),
    ],
)
def test_no_other_column_comes_under_the_name_of_event_time(timed, name, step):
    """Only with_columns refused it; the others kept the old event time beside the new column, and windows fell elsewhere."""
    with pytest.raises(UserError, match=f"{name}: 'ts' is the stream's event time"):
        step(timed).window(tumbling("1m")).aggregate(n=sabot.count()).explain()


@pytest.mark.parametrize(
    "timed",
    [
        lambda app: app.stream("jobs", schema=TIMED, time="ts", time_unit="s"),
        lambda app: app.stream("jobs", schema=TIMED, time=col("ts")),
        lambda app: app.stream("jobs", schema=TIMED | {"ts": "string"}, time="ts"),
        lambda app: app.stream("jobs", schema=TIMED, time="expires").with_time("ts"),
        lambda app: app.stream("jobs", schema=TIMED).with_time(col("ts"), time_unit="us").filter(col("id") > 1),
    ],
    ids=["unit", "expression", "text", "with_time", "with_time of a unit"],
)
def test_a_column_that_is_read_as_event_time_keeps_its_name_whatever_it_counts(app, timed):
    """Only columns that are ms or timestamps at the source were watched; behind all others windows went by what had been."""
    steps = {
        "with_columns": lambda s: s.with_columns(ts=col("id") + 1),
        "select": lambda s: s.select("id", ts="expires"),
        "rename": lambda s: s.drop("ts").rename({"expires": "ts"}),
    }
    for name, step in steps.items():
        with pytest.raises(UserError, match=f"{name}: 'ts' is the stream's event time"):
            step(timed(app)).window(tumbling("1m")).aggregate(n=sabot.count()).explain()
    again = steps["with_columns"](timed(app)).with_time("ts")
    assert again.window(tumbling("1m")).aggregate(n=sabot.count()).explain()


async def answer(row):
    return {"a": 1}


def taken(row, ctx):
    return row


@pytest.mark.parametrize(
    ("names", "step"),
    [
        ("stream: idle_closes", lambda s, no: App("a").stream("rows", idle_closes=no)),
        ("explode: empty_as_null", lambda s, no: s.explode("k", empty_as_null=no)),
        ("explode: keep_nulls", lambda s, no: s.explode("k", keep_nulls=no)),
        ("map_async(answer): ordered", lambda s, no: s.map_async(answer, schema={"a": "int64"}, ordered=no)),
        ("process(taken): batch", lambda s, no: s.key_by("k").process(taken, schema=TIMED, batch=no)),
        ("top_n: descending", lambda s, no: s.key_by("k").top_n(1, by="ts", descending=no)),
        ("top_n: descending", lambda s, no: s.key_by("k").top_n(1, by=["ts", "id"], descending=[True, no])),
        ("cast: strict", lambda s, no: s.select(a=col("k").cast("int64", strict=no))),
        ("contains: literal", lambda s, no: s.filter(col("k").str.contains("a.", literal=no))),
        ("to_datetime: strict", lambda s, no: s.select(a=col("k").str.to_datetime(strict=no))),
        ("list.get: null_on_oob", lambda s, no: s.select(a=col("k").list.get(0, null_on_oob=no))),
    ],
)
@pytest.mark.parametrize("no", ["no", "1s", 0, None])
def test_what_is_neither_true_nor_false_is_refused(timed, names, step, no):
    """bool("no") is True: the opposite of what was meant passed."""
    with pytest.raises(UserError, match=f"^{re.escape(f'{names}={no!r}')} ") as refused:
        step(timed, no)
    assert refused.value.hint == "True or False"


def test_a_column_of_which_a_field_is_event_time_may_change(app):
    stream = app.stream("bids", schema={"bid": pa.struct({"at": pa.int64()}), "n": "int64"}, time="bid.at")
    for timed in (stream, stream.with_time("bid.at"), stream.with_time(col("n") * 1000)):
        assert timed.with_columns(bid="n", n=col("n") + 1).window(tumbling("1m")).aggregate(n=sabot.count()).explain()


@pytest.mark.parametrize(
    "step",
    [
        lambda s: s.rename({"ts": "at"}),
        lambda s: s.select("k", at="ts"),
        lambda s: s.select("k", col("ts").alias("at")),
    ],
)
def test_event_time_follows_its_column_under_another_name(timed, step):
    moved = step(timed)
    assert "event time from ts" in moved.window(tumbling("1m")).aggregate(n=sabot.count()).explain()
    with pytest.raises(UserError, match="with_columns: 'at' is the stream's event time"):
        moved.with_columns(at=col("at") + 1).window(tumbling("1m")).aggregate(n=sabot.count()).explain()
    assert moved.with_columns(ts=col("at") + 1).window(tumbling("1m")).aggregate(n=sabot.count()).explain()


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.key_by("k").aggregate(first=sabot.first("id")),
        lambda s: s.group_by("k").aggregate(last=sabot.last("id")),
        lambda s: s.key_by("k").deduplicate(within="1h"),
        lambda s: s.key_by("k").process(lambda row, ctx: row, schema=TIMED),
    ],
)
def test_what_goes_by_event_time_without_a_window_asks_the_same(timed, use):
    with pytest.raises(UserError, match="is the stream's event time"):
        use(timed.select("id", "k", ts="expires")).explain()


@pytest.mark.parametrize(
    "use",
    [lambda s: s, lambda s: s.group_by("k").aggregate(last=sabot.max("ts")), lambda s: s.key_by("k").deduplicate()],
)
def test_where_nothing_goes_by_event_time_its_name_is_free(timed, use):
    assert use(timed.select("id", "k", ts=col("expires") + 1)).explain()


def test_a_function_over_batches_gives_event_time_anew_though_the_column_was_gone(app, tmp_path):
    from sabot import files

    (tmp_path / "a.ndjson").write_text('{"id": 1, "k": "a", "ts": 0, "expires": 90000}\n')
    stream = app.stream(files(tmp_path / "a.ndjson"), time="ts").drop("ts").map_batches(shifted)
    (row,) = stream.window(tumbling("1m")).aggregate(n=sabot.count()).collect().to_pylist()
    assert row["window_start"].timestamp() == 60


@pytest.mark.parametrize(
    "step", [lambda s: s, lambda s: s.select("id"), lambda s: s.drop("ts").key_by("k").deduplicate()]
)
def test_rows_without_event_time_are_dead_letters_whether_or_not_something_goes_by_it(app, tmp_path, step):
    """They passed where no window followed, though docs/streams.md says that they do not."""
    from sabot import files
    from sabot.testing import ListSink

    (tmp_path / "a.ndjson").write_text(
        '{"id": 1, "k": "a", "ts": 0}\n{"id": 2, "k": "b", "ts": null}\n{"id": 3, "k": "c"}\n'
    )
    letters = ListSink()
    stream = app.stream(files(tmp_path / "a.ndjson"), time="ts", dead_letter=letters)
    assert step(stream).collect()["id"].to_pylist() == [1]
    assert step(stream.filter(col("id") > 1)).collect().num_rows == 0


def test_a_column_that_is_no_time_is_refused_though_nothing_goes_by_it(app, tmp_path):
    from sabot import files

    (tmp_path / "a.ndjson").write_text('{"id": 1, "at": true}\n')
    with pytest.raises(UserError, match="'at'"):
        app.stream(files(tmp_path / "a.ndjson"), time="at").collect()


def test_methods_of_other_libraries_say_what_does_the_same_here(orders):
    streams = [orders, orders.key_by("id"), orders.group_by("id"), orders.key_by("id").window(tumbling("1m"))]
    for each in streams:
        with pytest.raises(AttributeError, match=f"'{type(each).__name__}' object has no attribute 'agg' .*aggregate"):
            each.agg(n=sabot.count())
        with pytest.raises(AttributeError, match=r"has no attribute 'nonsense'$"):
            _ = each.nonsense
        assert not hasattr(each, "_repr_png_")


def test_a_comparison_with_a_list_is_answered_with_is_in():
    rows = App("lists").stream([{"country": "DE"}])
    with pytest.raises(UserError, match="== of string and list") as refused:
        rows.filter(country=["DE", "FR"]).collect()
    assert refused.value.hint == """col("country").is_in(['DE', 'FR'])"""
    with pytest.raises(UserError, match="!= of string and list") as refused:
        rows.filter(col("country") != ["DE"]).collect()
    assert refused.value.hint == """~col("country").is_in(['DE'])"""


def test_an_aggregate_as_a_method_is_one_row_of_a_whole_stream_and_one_for_each_key_of_another(orders):
    with pytest.raises(AttributeError, match=r"here it is group_by\(\)\.aggregate\(n=sabot\.count\(\)\) for one row"):
        orders.count()
    with pytest.raises(AttributeError, match=r"here it is aggregate\(n=sabot\.count\(\)\)\)"):
        orders.key_by("account").count()


METHODS = set().union(*map(dir, [Stream, KeyedStream, GroupedStream, WindowedStream, ProcessedStream]))


@pytest.mark.parametrize(
    ("names", "there", "here"),
    [
        (STREAMS, set(dir(Stream)), METHODS),
        (TOTALS, set(dir(Stream)), METHODS),
        (WINDOWS, set(dir(WindowedStream)), METHODS),
        (APPS, set(dir(App)), set(dir(App))),
        (EXPRESSIONS, set(dir(sabot.Expr)), {*dir(sabot.Expr), *METHODS, "when", "map_batches"}),
        (TEXTS, set(dir(col("x").str)), {*dir(col("x").str), *METHODS}),
        (TIMES, set(dir(col("x").dt)), {*dir(col("x").dt), *METHODS}),
        (LISTS, set(dir(col("x").list)), {*dir(col("x").list), *METHODS}),
        (STRUCTS, set(dir(col("x").struct)), {*dir(col("x").struct), *METHODS}),
        (FUNCTIONS, set(dir(sabot)), set(dir(sabot))),
    ],
    ids=[
        *("streams", "totals", "windows", "apps", "expressions", "texts", "times", "lists", "structs", "functions"),
    ],
)
def test_what_is_written_instead_of_a_name_of_another_library_exists(
    names: dict[str, str], there: set[str], here: set[str]
) -> None:
    """The first word of each hint, each name behind `sabot.`, and each method of app, stream or col("x")."""
    x = col("x")
    everything = METHODS.union(*map(dir, [App, sabot.Expr, sabot.When, sabot.Then, x.str, x.dt, x.list, x.struct]))
    for name, hint in names.items():
        assert name not in there, name
        elsewhere = re.findall(r"(\w+), from (sabot[\w.]+)", hint)
        assert all(hasattr(import_module(module), one) for one, module in elsewhere), (name, hint)
        hint = re.sub(r"\w+, from sabot[\w.]+", "", hint)
        first = re.match(r"\w*", hint)[0]
        assert first in here | {"sabot", "app", "col"} or not first, (name, hint)
        code = re.sub(r'"[^"]*"', '""', hint)
        assert {each for each in re.findall(r"sabot\.(\w+)", code)} <= set(dir(sabot)), (name, hint)
        assert {each for each in re.findall(r"(?<!sabot)\.(\w+)\(", code)} <= everything, (name, hint)


def test_names_of_other_libraries_are_answered_by_the_app_and_the_package() -> None:
    with pytest.raises(AttributeError, match=r"'App' object has no attribute 'dataframe' \(here it is stream\("):
        App("shop").dataframe("orders")
    with pytest.raises(AttributeError, match=r"module 'sabot' has no attribute 'sliding' \(here it is hopping\("):
        sabot.sliding("10m")
    with pytest.raises(AttributeError, match=r"has no attribute 'nonsense'$"):
        sabot.nonsense()
    with pytest.raises(ImportError, match=r"^cannot import name 'PostgresSink' from 'sabot' \(here it is SqlSink\("):
        from sabot import PostgresSink  # noqa: F401
    with pytest.raises(ImportError, match=r"^cannot import name 'nonsense' from 'sabot' \(/"):
        from sabot import nonsense  # noqa: F401
    assert not hasattr(sabot, "PostgresSink")
    with pytest.raises(AttributeError, match=r"has no attribute 'nonsense'$"):
        App("shop").nonsense()


def test_methods_of_another_kind_of_stream_say_where_they_are_written(orders):
    missing = {
        "filter": (orders.key_by("id"), r'before key_by\("column"\), or after aggregate'),
        "with_time": (orders.key_by("id"), r'before key_by\("column"\), or after aggregate'),
        "print": (orders.window(tumbling("1m")), r'before window\(tumbling\("1m"\)\), or after aggregate.*top_n'),
        "window": (orders.group_by("id"), r'before group_by\("column"\), or after aggregate'),
        "over": (orders, r'\(here it is key_by\("column"\)\.over'),
        "top_n": (orders.group_by("id"), r'\(here it is key_by\("column"\)\.top_n'),
        "take": (orders, r"head\(n\)"),
        "assign": (orders, "with_columns"),
        "value_counts": (orders, r'group_by\("x"\).aggregate'),
    }
    for name, (stream, here) in missing.items():
        with pytest.raises(AttributeError, match=f"{type(stream).__name__}.* no attribute '{name}'.*{here}"):
            getattr(stream, name)


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("sum", r'sabot.sum\("x"\), in aggregate'),
        ("std", r'sabot.stddev\("x"\)'),
        ("shift", r'sabot.lag\("x"\)'),
        ("isin", "is_in"),
        ("map_elements", "map_batches"),
        ("cum_sum", "over"),
        ("rank", "row_number"),
        ("unique", "deduplicate"),
    ],
)
def test_a_method_that_expressions_do_not_have_is_answered_with_what_does_the_same(name: str, here: str) -> None:
    with pytest.raises(AttributeError, match=f"'Expr' object has no attribute '{name}'.*{here}"):
        getattr(col("amount") * 2, name)
    with pytest.raises(AttributeError, match=r"has no attribute 'nonsense'$"):
        _ = col("amount").nonsense
    assert copy.copy(col("amount")).text() == col("amount").text()
    assert pickle.loads(pickle.dumps(col("amount") * 2)).text() == (col("amount") * 2).text()


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda s: s.with_columns(c=2.0), r"with_columns, c: 2\.0 is not an expression \(c=lit\(2\.0\)\)"),
        (
            lambda s: s.key_by("k", parallelism=2),
            r"parallelism: 2 is not an expression \(threads are of the whole app: App\(parallelism=…\)",
        ),
        (lambda s: s.select(c=None), r"\(c=lit\(None\)\)"),
        (lambda s: s.explode(col("l")), r'\(explode\("l"\)\)'),
        (lambda s: s.explode(col("o")["items"]), r'with_columns\(items=.*"items".*\)\.explode\("items"\)'),
        (lambda s: s.explode("o.items"), r'first with_columns\(items=col\("o"\)\["items"\]\)'),
        (lambda s: s.group_by("o.p.q"), r'first with_columns\(q=col\("o"\)\["p"\]\["q"\]\)'),
    ],
)
def test_a_value_or_a_field_where_a_column_is_due_is_told_how_to_become_one(app, build, says):
    items = pa.struct({"items": pa.list_(pa.int64()), "p": pa.struct({"q": pa.int64()})})
    stream = app.stream("nested", schema={"l": pa.list_(pa.int64()), "o": items})
    with pytest.raises(UserError, match=says):
        build(stream)


def test_the_plan_of_an_agent_s_rows_has_all_that_feeds_it(memory_url):
    app = App("one", broker=memory_url)

    @app.agent(schema={"n": "int64"})
    async def last(ctx):
        return ctx.message

    @app.agent("apart")
    async def apart(ctx):
        return None

    @app.agent("middles", sink=last)
    async def middle(ctx):
        return ctx.message

    app.stream("firsts", schema={"n": "int64"}).to(middle)
    stream = app.stream(last, schema={"n": "int64"}).select("n")
    plan = stream.explain()
    assert all(part in plan for part in ("read firsts", "agent one.middle", "agent one.last", "read one.last"))
    assert "apart" not in plan
    assert "n: int64" in stream._repr_html_()
    assert "agent one.middle" in stream._repr_html_()


@pytest.mark.parametrize("look", ["collect", "print"])
def test_rows_of_an_agent_are_no_look_at_a_stream(memory_url, look):
    app = App("one", broker=memory_url)

    @app.agent("numbers")
    async def give(ctx):
        return ctx.message

    stream = app.stream(give, schema={"n": "int64"})
    with pytest.raises(UserError, match=f"{look}: agent one.give gives rows only while the app runs.*console"):
        getattr(stream, look)(1) if look == "print" else stream.collect(limit=1)
    assert "agent one.give\n  read numbers\n" in stream.explain()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"between": ("0s", "1h"), "max_drift": "2s"}, "\n  left, right: read at most 2 s apart (max_drift)\n"),
        ({"between": ("0s", "1h")}, "\n  left, right: read at most 5 min apart (max_drift)\n"),
        ({"between": ("0s", "1h"), "max_drift": None}, None),
        ({}, None),
    ],
)
def test_the_plan_says_which_sources_wait_for_each_other(memory_url, how, said):
    app = App("one", broker=memory_url)
    left, right = (app.stream(name, schema={"k": "int64", "ts": "int64"}, time="ts") for name in ("left", "right"))
    plan = left.join(right, on="k", **how).explain()
    assert said in plan if said else "max_drift" not in plan


def test_the_plan_says_of_which_source_the_partitions_wait_for_each_other():
    stream = App("one").stream("rows", schema={"k": "int64", "ts": "int64"}, time="ts", max_drift="2s")
    windows = stream.key_by("k").window(tumbling("1m")).aggregate(n=sabot.count())
    assert "\n  rows: read at most 2 s apart (max_drift)\n" in windows.explain()
    assert "max_drift" not in stream.explain(), "nothing keeps its rows by event time"


def test_a_file_that_is_read_first_waits_for_nobody(app, tmp_path):
    """Neither the plan nor the start aligns it: what waits for its end is aligned alone."""
    (tmp_path / "names.ndjson").write_text('{"k": 1, "ts": 1}\n')
    orders = app.stream("orders", schema={"k": "int64", "ts": "int64"}, time="ts")
    plan = orders.join_asof(app.table(sabot.files(tmp_path / "names.ndjson"), key="k", time="ts"), on="k").explain()
    assert "before all others" in plan
    assert "\n  orders: read at most 5 min apart (max_drift)\n" in plan


def test_an_agent_s_unknown_type_comes_with_the_hint(app):
    with pytest.raises(UserError, match=r"column 'id' has unknown type 'decimal' \(.*decimal\(10, 2\)"):

        @app.agent("in", schema={"id": "decimal"})
        async def give(ctx):
            return None


@pytest.mark.parametrize("whole", [np.int64, np.int32, np.uint8])
def test_numpy_s_whole_numbers_are_counts_and_durations(memory_url, whole):
    """The plan, and so the checkpoint, is that of Python's numbers."""

    async def ask(batch):
        return batch

    def built(number):
        app = App("one", broker=memory_url, parallelism=number(2))
        app.topic("made", partitions=number(2))
        stream = app.stream("in", schema={"k": "int64", "ts": "int64"}, time="ts", lateness=number(5), idle=number(9))
        by_key = stream.key_by("k")
        steps = [
            stream.head(number(1)),
            stream.window(tumbling(number(60))).aggregate(n=sabot.top_k("k", number(3))),
            by_key.window(sabot.count_window(number(4))).aggregate(v=sabot.variance("k", ddof=number(1))),
            by_key.top_n(number(2), by="k"),
            by_key.over(preceding=number(5), m=sabot.mean("k"), before=sabot.lag("k", number(2))),
            by_key.aggregate(n=sabot.count(), ttl=number(7)),
            stream.map_async(ask, schema={"k": "int64"}, concurrency=number(4), retries=number(1), timeout=number(3)),
            stream.join(stream, on="k", between=(-5, number(5))),
        ]
        return [(step.explain(), repr(step._node)) for step in steps], app.settings.parallelism

    assert built(whole) == built(int)
    with pytest.raises(UserError, match="not a number of rows"):
        App("one").stream("in").head(np.float64(1.5))
    with pytest.raises(UserError, match="no duration"):
        tumbling(np.bool_(True))


def test_a_look_takes_numpy_s_numbers(app, tmp_path):
    (tmp_path / "a.ndjson").write_text('{"id": 1}\n{"id": 2}\n')
    stream = app.stream(sabot.files(tmp_path / "a.ndjson"))
    assert stream.collect(limit=np.int64(1), seconds=np.int64(30)).num_rows == 1
    assert stream.head(np.int64(1)).collect().num_rows == 1
    stream.print(np.int64(1))


def test_a_step_is_looked_at_once_however_often_streams_part_and_meet(app, orders, monkeypatch):
    looked = 0
    inputs = Union.inputs.fget

    def counted(node):
        nonlocal looked
        looked += 1
        return inputs(node)

    other, stream = app.stream("other", schema=orders._node.schema, time="ts"), orders
    for least in range(12):
        small, large = stream.split(col("amount") < least)
        stream = small.union(large)
    monkeypatch.setattr(Union, "inputs", property(counted))
    assert "max_drift" in stream.join(other, on="account", between=("-1m", "1m")).explain()
    assert looked < 1000  # by its 4,096 ways to the source it would be more


@pytest.mark.parametrize("kind", [pa.dense_union, pa.sparse_union])
@pytest.mark.parametrize("around", [lambda union: union, pa.list_, lambda union: pa.struct([("x", union)])])
def test_a_union_is_refused_by_the_name_of_its_column(kind, around):
    """It ended in pyarrow's bare `dense_union`."""
    union = around(kind([pa.field("a", pa.int64()), pa.field("b", pa.string())]))
    source = ScriptedSource([END], schema=pa.schema([("n", pa.int64()), ("u", union)]))
    with pytest.raises(UserError, match=r"^column 'u' is .*_union<.*, which streams do not support") as refused:
        App("unions").stream(source).select("n").collect()
    assert refused.value.hint == "leave it out, or give each of its types a column"
    with pytest.raises(UserError, match=r"^stream: column 'u' is .*_union<.*, which streams do not support"):
        App("unions").stream(pa.table({"u": pa.chunked_array([], union)}))
