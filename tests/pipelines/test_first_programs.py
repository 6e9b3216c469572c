"""What a first program most easily gets wrong ends with a word about it, not with exit code 0 and nothing."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from sabot import (
    App,
    NdjsonSink,
    UserError,
    aggregate,
    coalesce,
    col,
    concat_str,
    count,
    files,
    lag,
    lit,
    max_horizontal,
    pattern,
    tumbling,
    when,
)
from sabot.codecs.arrow import ArrowEncoder
from sabot.codecs.engine_columns import RESERVED
from sabot.connectors.checks import _FILE
from sabot.connectors.files.formats.table import SUFFIXES
from sabot.testing import MemoryBroker

HEAD = """
from sabot import App, CsvSink, files
with open("in.csv", "w") as file:
    file.write("a,b\\n1,2\\n")
app = App("first")
rows = app.stream(files("in.csv"))
"""


def script(tmp_path, text, *words):
    (tmp_path / "first.py").write_text(HEAD + text)
    command = [sys.executable, *(words or ["first.py"])]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)


BIG = col("amount") > 1


@pytest.mark.parametrize("broker", ["memory://", "kafka://127.0.0.1:1"])
@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("out.parquet", "ParquetSink('out.parquet')"),
        ("out/day.ndjson.gz", "NdjsonSink('out/day.ndjson.gz')"),
        ("OUT.CSV", "CsvSink('OUT.CSV')"),
        ("out.feather", "ArrowSink('out.feather')"),
        ("s3://bucket/folder", "files('s3://bucket/folder', \"parquet\")"),
        ("lake/orders", "ParquetSink('lake/orders')"),
        ("out/", "ParquetSink('out/')"),
        ("sqlite:///shop.db", "SqlSink('sqlite:///shop.db', table=\"…\")"),
        ("kafka://host:9092", "App(broker=…)"),
    ],
)
def test_the_name_of_a_file_is_no_topic_to_write(broker, name, fix):
    rows = App("first", broker).stream("in", schema={"a": "int64"})
    with pytest.raises(UserError, match="but a text must be the name of a topic") as refused:
        rows.to(name)
    assert fix in refused.value.hint
    with pytest.raises(UserError, match=r"late: .* but a text must be the name of a topic"):
        rows.key_by("a").window(tumbling("1m"), late=name)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_column_with_a_name_that_sabot_uses_is_refused_at_the_start(name):
    """An upsert with a column __id, or a top_n with __number, ended at its first checkpoint with an InternalError."""
    rows = App("first").stream([{name: 1, "x": 2}])
    with pytest.raises(UserError, match=f"'{name}'"):
        rows.upsert("x").collect()
    with pytest.raises(UserError, match=f"no column can be called '{name}'"):
        App("second").stream([{"x": 2}]).map_batches(lambda rows: rows.rename_columns([name])).collect()


def test_the_name_of_a_file_is_no_topic_to_read():
    with pytest.raises(UserError, match=r"'flights\.csv' is the name of a file") as refused:
        App("first").stream("flights.csv")
    assert refused.value.hint.startswith("files('flights.csv'); for a topic of this name: sabot.kafka.KafkaSource(")
    for path in ("lake/orders", "lake/*.parquet", "orders*"):
        with pytest.raises(UserError, match="but a text must be the name of a topic") as refused:
            App("first").stream(path)
        assert refused.value.hint.startswith(f"files({path!r})")


def test_a_path_of_pathlib_is_answered_with_the_source_or_sink_of_its_file():
    with pytest.raises(UserError, match="neither a topic nor a Source") as refused:
        App("first").stream(Path("in.csv"))
    assert refused.value.hint == "files('in.csv')"
    rows = App("first").stream("in", schema={"a": "int64"})
    with pytest.raises(UserError, match="neither a topic nor a Sink") as refused:
        rows.to(Path("out.csv"))
    assert refused.value.hint == "CsvSink('out.csv')"


def test_every_ending_that_files_reads_is_known_as_that_of_a_file():
    assert all(_FILE.fullmatch(f"name{suffix}") for suffix in SUFFIXES)
    assert not any(_FILE.fullmatch(topic) for topic in ("orders", "orders.dlq", "in.csv.dlq", "json", "a.b", ".csv"))


@pytest.mark.slow  # half a second of a core
def test_a_script_that_writes_streams_and_never_runs_says_so_at_its_end(tmp_path):
    done = script(tmp_path, 'rows.to(CsvSink("out.csv"))\nrows.to("copy")\n')
    assert done.returncode == 0
    assert done.stderr == (
        "sabot: app first never ran, so nothing went to out.csv, copy "
        "(end the script with app.main(), or start it by: sabot run module:app)\n"
    )


@pytest.mark.one_in(10, "a process each")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('rows.to(CsvSink("out.csv"))\napp.main()\n', ()),
        ('rows.to(CsvSink("out.csv"))\napp.main(["--help"])\n', ()),
        ('rows.to(CsvSink("out.csv"))\napp.main(["--nope"])\n', ()),
        ('rows.to(CsvSink("out.csv"))\nimport asyncio\nasyncio.run(app.agent_runtime.run())\n', ()),
        ("rows.print()\n", ()),
        ('rows.to(CsvSink("out.csv"))\n', ("-m", "sabot", "plan", "first:app")),
        ('rows.to(CsvSink("out.csv"))\n', ("-m", "sabot", "run", "first:app")),
        ('rows.to(CsvSink("out.csv"))\n', ("-c", "import first")),
        ('rows.to(CsvSink("out.csv"))\n', ("-m", "pytest", "-q", "first.py", "--collect-only")),
        ('rows.to(CsvSink("out.csv"))\nraise ValueError("own")\n', ()),
    ],
)
def test_nothing_is_said_of_a_program_that_ran_or_is_no_script(tmp_path, text, words):
    done = script(tmp_path, text, *words)
    assert "never ran" not in done.stderr


def test_a_file_sink_is_a_place_to_write(tmp_path):
    app = App("first")
    (tmp_path / "in.csv").write_text("a\n1\n")
    app.stream(files(tmp_path / "in.csv")).to(NdjsonSink(tmp_path / "out.ndjson"))
    app.main()
    assert (tmp_path / "out.ndjson").read_text() == '{"a":1}\n'


def test_a_column_that_holds_no_times_is_named_at_the_start_with_a_value(tmp_path):
    """336,776 rows were set apart, the result was empty, and the exit code 0."""
    path = tmp_path / "flights.csv"
    path.write_text("carrier,n\n" + "".join(f"A{n},{n}\n" for n in range(500)))
    flights = App("first").stream(files(path), time="carrier")
    with pytest.raises(
        UserError, match=r"stream .*flights\.csv: none of its first 500 rows has an event time"
    ) as refused:
        flights.window(tumbling("1m")).aggregate(n=count()).collect()
    assert "time='carrier'" in str(refused.value)
    assert "'A0'" in str(refused.value)


def test_first_rows_without_event_time_are_dead_letters_where_others_have_one(tmp_path):
    path = tmp_path / "flights.csv"
    path.write_text("ts,n\n" + "".join(f"{'soon' if n < 90 else n},{n}\n" for n in range(500)))
    flights = App("first").stream(files(path), time=col("ts").cast("int64", strict=False))
    assert flights.window(tumbling("1m")).aggregate(n=count()).collect()["n"].to_pylist() == [410]


def test_a_print_that_has_all_rows_it_asked_for_does_not_say_that_it_waited(capsys):
    broker = MemoryBroker.get("memory://head")
    broker.publish("in", [{"a": n} for n in range(9)])
    App("first", "memory://head").stream("in", schema={"a": "int64"}).head(3).print()
    assert capsys.readouterr().out.splitlines()[-1] == "3 rows"


@pytest.mark.slow  # a second of a core
def test_a_plan_of_nothing_says_that_there_is_nothing(tmp_path):
    done = script(tmp_path, "", "-m", "sabot", "plan", "first:")
    assert done.returncode == 1
    assert "app first has no agents, and no stream with a sink" in done.stderr


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("form", ["ndjson", "csv", "topic"])
def test_numbers_that_get_a_fraction_later_are_named_with_the_way_out_once_and_read_with_it(
    form, tmp_path, caplog, memory_url
):
    values = [*range(1_200), *(n + 0.5 for n in range(100))]
    if form == "csv":
        values = [*range(200_000), *values]  # more than the MiB that CSV's types are inferred from
    path = tmp_path / f"numbers.{form}"
    if form == "csv":
        path.write_text("x,y\n" + "".join(f"{value},a\n" for value in values))
    elif form == "ndjson":
        path.write_text("".join(f'{{"x": {value}, "y": "a"}}\n' for value in values))
    else:
        MemoryBroker.get(memory_url).publish("numbers", [{"x": value, "y": "a"} for value in values])

    def read(**options):
        app = App("numbers", memory_url)
        stream = (
            app.stream("numbers", until="now", **options) if form == "topic" else app.stream(files(path), **options)
        )
        return stream.collect()

    assert read()["x"].to_pylist() == [value for value in values if isinstance(value, int)]
    hints = [each.getMessage() for each in caplog.records if "schema_overrides" in each.getMessage()]
    assert len(hints) == 1
    assert hints[0].startswith(("numbers: the first row", f"{path}: the first row"))
    assert read(schema_overrides={"x": "float64"})["x"].to_pylist() == values


def test_types_that_are_asked_for_are_those_of_columns_that_there_are():
    stream = App("first").stream([{"a": 1}], schema_overrides={"b": "float64"})
    with pytest.raises(UserError, match=r"schema_overrides= has 'b', which was not found \(the columns are a"):
        stream.collect()
    with pytest.raises(UserError, match=r"give schema= or schema_overrides=, not both"):
        App("first").stream("topic", schema={"a": "int64"}, schema_overrides={"a": "float64"})


PAYMENTS = [{"user": "ann", "amount": 5.0, "ts": 0}, {"user": "bob", "amount": 7.0, "ts": 60_000}]
PAID = {"user": "string", "amount": "float64"}


def payments():
    return App("first").stream(PAYMENTS, time="ts")


@pytest.mark.parametrize(
    ("returned", "rows"),
    [
        (lambda row: {"user": row["user"]}, [{"user": "ann", "amount": None}, {"user": "bob", "amount": None}]),
        (
            lambda row: None if row["user"] == "ann" else [{"user": "bob", "amount": 1.0}],
            [{"user": "bob", "amount": 1.0}],
        ),
        (lambda row: (each for each in [{"user": "z"}] * (row["ts"] > 0)), [{"user": "z", "amount": None}]),
    ],
    ids=["a dict", "None", "a generator"],
)
def test_flat_map_takes_what_a_process_function_may_return(returned, rows):
    """A dict was taken for an iterable of its names, and None ended the app."""
    assert payments().flat_map(returned, schema=PAID).collect().to_pylist() == rows


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([{"usr": "ann", "amount": 1.0}], "a row has 'usr', which is not a column of its schema"),
        ("ann", "it returned 'ann'"),
        (["ann"], "'ann' is not a dict"),
        (("ann", 1.0), "'ann' is not a dict"),
    ],
)
def test_rows_of_flat_map_without_a_column_of_the_schema_are_refused_and_were_rows_of_nulls(returned, said):
    with pytest.raises(UserError, match=said):
        payments().flat_map(lambda row: returned, schema=PAID).collect()


@pytest.mark.parametrize("on_error", ["dead_letter", "null", "fail"])
def test_a_misspelt_column_of_flat_map_ends_the_app_whatever_becomes_of_bad_rows(on_error):
    app = App("first")
    rows = app.stream(PAYMENTS).flat_map(lambda row: {"usr": row["user"]}, schema=PAID, on_error=on_error)
    rows.to([])
    with pytest.raises(UserError, match="a row has 'usr'"):
        app.main()


async def asynchronous(*given):
    return given


class Asynchronous:
    async def __call__(self, *given):
        return given


@pytest.mark.parametrize(
    ("step", "called"),
    [
        (lambda f: payments().map_batches(f), "map_batches: it is called as function(batch)"),
        (lambda f: payments().flat_map(f, schema=PAID), "flat_map: it is called as function(row)"),
        (lambda f: payments().key_by("user").process(f, schema=PAID), "it is called as function(row, ctx)"),
        (
            lambda f: payments().key_by("user").process(f, schema=PAID, batch=True),
            "called as function(keys, batch, ctx)",
        ),
        (
            lambda f: payments().key_by("user").process(lambda row, ctx: None, on_timer=f, schema=PAID),
            "on_timer: it is called as function(timer, ctx)",
        ),
        (lambda f: payments().key_by("user").reduce(f), "reduce: it is called as function(so_far, row)"),
        (
            lambda f: payments().key_by("user").window(tumbling("1m")).apply(f, schema=PAID),
            "apply: it is called as function(table)",
        ),
    ],
)
def test_a_function_of_other_arguments_or_an_async_one_is_refused_where_it_is_given(step, called):
    """Each row was a dead letter with Python's message, or the first batch failed with a hint about schema=."""
    with pytest.raises(UserError) as refused:
        step(lambda: None)
    assert called in str(refused.value)
    assert refused.value.hint.startswith("def function(")
    with pytest.raises(UserError, match="async"):
        step(asynchronous)
    with pytest.raises(UserError, match="async"):
        step(Asynchronous())


@pytest.mark.parametrize(
    ("convert", "hint"),
    [
        (lambda batch: batch.to_pandas()["amount"], "series.to_frame()"),
        (lambda batch: polars.from_arrow(batch)["amount"], "series.to_frame()"),
        (lambda batch: polars.from_arrow(batch).lazy(), "frame.collect()"),
        (lambda batch: batch.to_pylist(), "pa.Table.from_pylist(rows)"),
        (lambda batch: batch.to_pydict(), "pa.table("),
        (lambda batch: batch["amount"], "pa.table("),
        (lambda batch: iter([batch]), "pl.concat"),
        (lambda batch: 5, "a polars or pandas DataFrame"),
    ],
)
def test_what_is_nearly_a_table_is_answered_with_the_way_to_make_one(convert, hint):
    for step in (
        payments().map_batches(convert, schema=PAID),
        payments().key_by("user").process(lambda keys, batch, ctx: convert(batch), schema=PAID, batch=True),
    ):
        with pytest.raises(UserError, match="which is not Arrow data") as refused:
            step.collect()
        assert hint in refused.value.hint


ZONED, PLAIN = datetime(2024, 1, 1, 12, tzinfo=ZoneInfo("Europe/Berlin")), datetime(2024, 1, 1, 12)


@pytest.mark.parametrize("times", [[PLAIN, ZONED], [ZONED, None, PLAIN]])
@pytest.mark.parametrize("schema", [None, {"at": "timestamp[us, UTC]"}])
def test_times_with_a_zone_and_times_without_one_are_no_column(times, schema):
    """The ones without were taken for UTC, an hour off, and the others lost their zone or not by which came first."""
    with pytest.raises(UserError, match="some times of 'at' have a time zone, and others have none") as refused:
        App("first").stream([{"at": at} for at in times], schema=schema)
    assert "tzinfo=" in refused.value.hint


@pytest.mark.parametrize(
    ("use", "hint"),
    [
        (lambda s: s["amount"], 'select("amount")'),
        (lambda s: s[["user", "amount"]], "select('user', 'amount')"),
        (lambda s: s[col("amount") > 1], "filter(condition)"),
        (lambda s: s[:10], "head(n)"),
        (lambda s: list(s), "collect()"),
        (lambda s: s.__setitem__("twice", col("amount") * 2), "with_columns(twice=…)"),
        (lambda s: s.filter(lambda row: row["amount"] > 3), "map_batches(function)"),
        (lambda s: s.with_columns(x=[1, 2]), "join(app.stream(…)"),
        (lambda s: s.with_columns(x=polars.Series([1, 2])), "join(app.stream(…)"),
        (lambda s: s.with_columns(x=polars.col("amount")), "sabot.col"),
        (
            lambda s: s.with_columns(size=when(col("amount") > 6).then("big").otherwise("small")),
            'lit("big") is a text',
        ),
        (lambda s: s.with_columns(x=f"{col('user')}!"), "concat_str"),
        (lambda s: s.select(), 'select("a", "b")'),
        (lambda s: s.select([]), 'select("a", "b")'),
        (lambda s: s.to(polars.DataFrame({"a": [1]})), "to_polars()"),
        (len, "counts them"),
        (lambda s: s.rename(columns={"amount": "total"}), "rename({'amount': 'total'})"),
        (lambda s: s.rename("amount", "total"), "rename({'amount': 'total'})"),
        (lambda s: s.rename([("amount", "total")]), "rename({'amount': 'total'})"),
        (lambda s: s.key_by("user").over(count("amount")), 'over(x=count(col("amount")))'),
        (lambda s: s.key_by("user").over(5, n=count()), "over(preceding=5"),
        (lambda s: s.select(n=count()), "aggregate(x=count())"),
        (lambda s: s.key_by("user").pattern(pattern("big", BIG), paid=col("amount")), 'step("big").last("amount")'),
        (lambda s: s.select(before=lag("amount")), 'over(x=lag(col("amount")))'),
        (lambda s: s.with_columns({"twice": col("amount") * 2}), "** before a dict"),
        (lambda s: s.select(size=when(col("amount") > 6)), "when(…).then(…)"),
        (lambda s: s.select(name=col("user").str.lower), "call it, lower(…)"),
        (lambda s: s.map_batches(lambda batch: batch.with_columns()).collect(), "polars.from_arrow(x)"),
        (lambda s: s.map_batches(lambda batch: batch["user"].upper(), schema=PAID).collect(), "polars.from_arrow(x)"),
        (lambda s: s.window(tumbling("1m")).apply(lambda rows: rows.sort("a"), schema=PAID).collect(), "from_arrow(x)"),
        (lambda s: s.group_by().aggregate(x=total_of("amount")).collect(), "from_arrow(x)"),
        (lambda s: App("first").stream({"a": [1, 2]}), "pa.table(columns)"),
        (lambda s: App("first").stream({"a": n} for n in range(3)), "stream(list(rows))"),
        (lambda s: App("first").stream(yields), "@app.source"),
    ],
)
def test_habits_of_data_frames_are_answered_with_what_to_write(use, hint):
    with pytest.raises(UserError) as refused:
        use(payments())
    assert hint in refused.value.hint
    assert "\n" not in str(refused.value)


def yields():
    yield {"a": 1}


@aggregate("int64")
def total_of(amounts):
    return amounts.total()


def test_a_list_of_columns_is_the_same_as_the_columns():
    """coalesce(["a", "b"]) was a column of this list of two texts."""
    both = payments().select(
        any=coalesce(["user", lit("?")]), text=concat_str(["user", "user"]), most=max_horizontal(["amount", lit(3)])
    )
    assert (
        both.collect()
        == payments()
        .select(any=coalesce("user", lit("?")), text=concat_str("user", "user"), most=max_horizontal("amount", lit(3)))
        .collect()
    )
    assert App("first").stream([{"a": [1]}, {"a": None}]).select(a=coalesce("a", [])).collect().to_pylist() == [
        {"a": [1]},
        {"a": []},
    ]


@pytest.mark.parametrize(
    "use",
    [
        lambda s, short: s.join_asof(s, on="user", tolerance=short),
        lambda s, short: s.join(s, on="user", between=("-" + short, "1s")),
        lambda s, short: s.join(s, on="user", keep=short),
        lambda s, short: s.key_by("user").over(preceding=short, n=count()),
        lambda s, short: s.window(tumbling("1m"), allowed_lateness=short),
        lambda s, short: s.window(tumbling(short)),
        lambda s, short: s.sorted(within=short),
        lambda s, short: s.deduplicate("user", within=short),
    ],
)
def test_a_fraction_of_a_millisecond_is_refused_and_was_rounded(use):
    with pytest.raises(UserError, match="is not a whole number of milliseconds"):
        use(payments(), "1.5ms")


@pytest.mark.parametrize(
    ("use", "hint"),
    [
        (lambda s: s.amount, 'col("amount") in an expression'),
        (lambda s: s.key_by("user").amount, 'col("amount") in an expression'),
        (lambda s: col("user").contains("a"), "str.contains(…), list.contains(…)"),
        (lambda s: col("ts").hour(), "dt.hour(…)"),
    ],
)
def test_a_column_or_a_method_of_a_namespace_that_is_taken_for_an_attribute_is_named(use, hint):
    with pytest.raises(AttributeError) as refused:
        use(payments())
    assert hint in str(refused.value)


def test_a_stream_is_still_neither_iterable_nor_false_and_can_be_copied():
    stream = payments()
    assert not isinstance(stream, Iterable)
    assert stream
    assert copy.copy(stream).collect() == stream.collect()
    assert round(col("x"), 1).text() == col("x").round(1).text()
    assert abs(col("x")).text() == col("x").abs().text()


def absent(caplog):
    return [record.getMessage() for record in caplog.records if "have no field" in record.getMessage()]


@pytest.mark.parametrize("listed", [False, True])
def test_a_misspelt_field_of_a_struct_is_named_with_its_path(listed, memory_url, tmp_path, caplog):
    """It was null in each row, in silence, where a misspelt column is named. Fields are not told of whose struct no record has."""
    box = {"price": 1, "at": {"day": 2}, "gone": None}
    first, rest = {"k": "a", "box": None}, {"k": "b", "box": [box] if listed else box}
    inner = pa.struct([("prcie", pa.int64()), ("at", pa.struct([("dya", pa.int64())])), ("gone", pa.int64())])
    lost = pa.struct([("x", pa.int64())])
    schema = pa.schema([("k", pa.string()), ("box", pa.list_(inner) if listed else inner), ("k2", lost)])
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("in", 1)
    for start in range(0, 1_200, 300):
        broker.publish("in", [first] + [rest] * 299)
        App("first", memory_url).stream("in", schema=schema).collect(limit=start + 300)
    told = {line.partition(" records have ")[2] for line in absent(caplog)}
    assert told == {
        "no field 'box.prcie', so this field is null: did you mean 'price'?",
        "no field 'box.at.dya', so this field is null: did you mean 'day'?",
        "no field 'k2', so this column is null: other fields: none",
    }
    caplog.clear()
    path = tmp_path / "in.ndjson"
    path.write_text(json.dumps(first) + "\n" + json.dumps(rest) + "\n")
    assert App("first").stream(files(str(path)), schema=schema).collect().num_rows == 2
    assert {line.partition(" records have ")[2] for line in absent(caplog)} == told - {
        "no field 'k2', so this column is null: other fields: none"
    }


@pytest.mark.parametrize("form", ["parquet", "arrow", "array", "records", "table"])
def test_a_field_that_the_structs_of_columns_lack_is_named_with_its_path(form, memory_url, tmp_path, caplog):
    """It was null in each row, in silence."""
    rows = [{"k": "a", "box": [{"price": 1, "at": {"day": 2}}]}, {"k": "b", "box": None}]
    inner = pa.struct([("prcie", pa.int64()), ("at", pa.struct([("dya", pa.int64())]))])
    schema = pa.schema([("k", pa.string()), ("box", pa.list_(inner))])
    table, path = pa.Table.from_pylist(rows), tmp_path / ("in.json" if form == "array" else f"in.{form}")
    source: Any = None
    if form == "parquet":
        pq.write_table(table, path)
    elif form == "arrow":
        feather.write_feather(table, path)
    elif form == "array":
        path.write_text(json.dumps(rows))
    elif form == "records":
        broker, source = MemoryBroker.get(memory_url), "in"
        broker.create_topic("in", 1)
        broker.publish("in", list(ArrowEncoder(10).encode(table.to_batches()[0]).to_pylist()))
    else:
        source = table
    source = files(str(path)) if source is None else source
    app = App("first", memory_url)
    stream = (
        app.stream("in", schema=schema, format="arrow", until="now")
        if form == "records"
        else app.stream(source, schema=schema)
    )
    assert stream.collect().column("box").to_pylist() == [[{"prcie": None, "at": {"dya": None}}], None]
    assert {line.partition(" records have ")[2] for line in absent(caplog)} == {
        "no field 'box.prcie', so this field is null: did you mean 'price'?",
        "no field 'box.at.dya', so this field is null: did you mean 'day'?",
    }
    caplog.clear()
    if form in ("parquet", "arrow"):  # files that were written before a field was added
        assert App("first").stream(source).collect().num_rows == 2
        assert not absent(caplog)


@pytest.mark.parametrize("read", ["stream", "fields", "table"])
def test_a_column_that_no_record_has_is_named_after_the_first_thousand(read, memory_url, caplog):
    """The story: 321,000 rows with a null, because schema= had amuont for amount."""
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("in", 1)
    payloads = [{"k": str(n), "amount": n, **({"rare": n} if n == 900 else {}), "gone": None} for n in range(1_200)]
    schema = {"k": "string", "amuont": "int64", "rare": "int64", "gone": "int64"}
    for start in range(0, 1_200, 300):
        broker.publish("in", payloads[start : start + 300])
        caplog.clear()
        app = App("first", memory_url)
        if read == "table":
            rows = app.table("in", key="k", schema=schema).changelog()
        else:
            rows = app.stream("in", schema=schema, fields={"header": "headers.none"} if read == "fields" else {})
        assert rows.collect(limit=start + 300).num_rows == start + 300
        if start < 900:
            assert not absent(caplog)
    (line,) = absent(caplog)
    assert line.startswith("in: the first 1,")
    assert line.endswith(" records have no field 'amuont', so this column is null: did you mean 'amount'?")


@pytest.mark.parametrize("given", ["list", "source"])
def test_a_misspelt_column_of_rows_of_python_is_named_once(given, caplog):
    rows = [{"k": str(n), "amount": n, **({"rare": n} if n == 900 else {}), "gone": None} for n in range(3_000)]
    schema = {"k": "string", "amuont": "int64", "rare": "int64", "gone": "int64"}
    app = App("first")

    @app.source(schema=schema, bounded=True)
    def numbers(position):
        for start in range(position, len(rows), 70):
            yield rows[start : start + 70]

    stream = app.stream(rows, schema=schema) if given == "list" else app.stream(numbers)
    assert stream.collect().num_rows == len(rows)
    (line,) = absent(caplog)
    assert line.startswith("stream rows-1: the first" if given == "list" else "source numbers: the first")
    assert line.endswith(" records have no field 'amuont', so this column is null: did you mean 'amount'?")


@pytest.mark.parametrize("rows", [[], [{"k": "a", "amuont": 1}], [{"k": "a", "amuont": None}]], ids=str)
def test_columns_that_rows_of_python_have_are_not_named(rows, caplog):
    schema = {"k": "string", "amuont": "int64"}
    app = App("first")

    @app.source(schema=schema, bounded=True)
    def numbers(position):
        yield from rows[position:]

    assert app.stream(rows, schema=schema).collect().num_rows == len(rows)
    assert app.stream(numbers).collect().num_rows == len(rows)
    assert not absent(caplog)


def test_a_misspelt_column_of_a_file_is_named_and_an_optional_one_is_not(tmp_path, caplog):
    path = tmp_path / "in.ndjson"
    path.write_text('{"k": "a", "amount": 1}\n\n{"k": "b", "amount": 2}\n')
    schema = {"k": "string", "amuont": "int64", "note": "string"}
    assert App("first").stream(files(str(path)), schema=schema).collect().num_rows == 2
    assert absent(caplog) == [
        f"{path}: the first 2 records have no field 'amuont', so this column is null: did you mean 'amount'?"
    ]
    caplog.clear()
    assert App("first").stream(files(str(path))).collect().column_names == ["k", "amount"]
    assert not absent(caplog)
