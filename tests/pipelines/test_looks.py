"""A look at a stream without an end: the next rows, or those of some time; on the console; in a notebook."""

import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

import sabot
from sabot import App, UserError, console
from sabot.testing import END, MemoryBroker, ScriptedSource
from tools.agent_tools import bounded


def patient(look: Callable[[float], pa.Table], rows: int) -> pa.Table:
    """What a look of so many seconds sees; longer ones on a machine that is too busy for a short one."""
    for seconds in (0.05, 0.5, 5.0, 30.0):
        found = look(seconds)
        if found.num_rows >= rows:
            break
    return found


def numbers(url: str, count: int, partitions: int = 1) -> sabot.Stream:
    broker = MemoryBroker.get(url)
    broker.create_topic("in", partitions)
    broker.publish("in", [{"n": n, "odd": n % 2} for n in range(count)])
    return App("looks", url).stream("in", schema={"n": "int64", "odd": "int64"})


def test_limit_waits_for_so_many_rows_and_takes_no_more(memory_url: str) -> None:
    stream = numbers(memory_url, 100)
    assert stream.collect(limit=5)["n"].to_pylist() == [0, 1, 2, 3, 4]
    assert stream.filter(sabot.col("odd") == 1).collect(limit=2)["n"].to_pylist() == [1, 3]
    none = stream.collect(limit=0)
    assert (none.num_rows, none.column_names) == (0, ["n", "odd"])


def test_head_of_a_topic_ends_by_itself(memory_url: str) -> None:
    stream = numbers(memory_url, 100)
    assert stream.head(3).collect()["n"].to_pylist() == [0, 1, 2]
    assert stream.head(3).collect(limit=2).num_rows == 2


def test_seconds_end_a_stream_that_has_fewer_rows(memory_url: str) -> None:
    stream = numbers(memory_url, 3)
    assert patient(lambda s: stream.collect(limit=10, seconds=s), 3)["n"].to_pylist() == [0, 1, 2]
    assert patient(lambda s: stream.collect(seconds=f"{s * 1000:g}ms"), 3)["n"].to_pylist() == [0, 1, 2]


def test_of_changes_what_exists_after_the_seconds_shows(memory_url: str) -> None:
    totals = numbers(memory_url, 10).group_by("odd").aggregate(n=sabot.count())
    found = patient(lambda s: totals.collect(seconds=s), 2)
    assert sorted(found.to_pylist(), key=str) == [{"odd": 0, "n": 5}, {"odd": 1, "n": 5}]
    assert patient(lambda s: totals.collect(limit=1, seconds=s), 1).num_rows == 1
    with pytest.raises(UserError, match=r"has no end.*the rows are changes.*seconds=5"):
        totals.collect(limit=1)


def test_limit_is_for_streams_with_an_end_too() -> None:
    stream = App("looks").stream(ScriptedSource([*([{"n": n}] for n in range(50)), END]))
    assert stream.collect(limit=3)["n"].to_pylist() == [0, 1, 2]
    assert stream.collect().num_rows == 50


async def test_a_look_does_not_move_what_the_app_reads(memory_url: str) -> None:
    """Nothing is committed: it works under a running loop, and a second look sees the same."""
    stream = numbers(memory_url, 4, partitions=2)
    found = [sorted(stream.collect(limit=4)["n"].to_pylist()) for _ in range(2)]
    assert found == [[0, 1, 2, 3]] * 2
    assert MemoryBroker.get(memory_url).committed("looks", "in") == {}


def test_print_says_how_long_it_looked(memory_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    numbers(memory_url, 3).select("n").print(2)
    assert capsys.readouterr().out == "n\n0\n1\n2 rows\n"
    nothing = App("looks", memory_url).stream("empty", schema={"n": "int64"})
    nothing.print(9, seconds="10ms")
    assert re.fullmatch(r"n\n0 rows in \d+(\.\d+)? s\n", capsys.readouterr().out)  # the seconds that it took


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({}, "limit=20"),
        ({"limit": -1}, "limit=-1"),
        ({"limit": 1.5}, "limit=1.5"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": "soon"}, "seconds"),
    ],
)
def test_what_would_never_end_is_refused(memory_url: str, asked: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        numbers(memory_url, 1).collect(**asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [-1, 1.5])
def test_print_of_no_number_of_rows_names_print(memory_url: str, n: Any) -> None:
    bounded_stream = App("looks").stream(ScriptedSource([[{"n": 1}], END]))
    for stream in (numbers(memory_url, 1), bounded_stream):
        with pytest.raises(UserError, match=f"print: {n} is not a number of rows"):
            stream.print(n)
        with pytest.raises(UserError, match="print: seconds"):
            stream.print(seconds="soon")


async def test_the_console_shows_rows_as_json(memory_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What would control the terminal is escaped, in rows and in payloads that are no JSON."""
    evil = "\x1b[2J \x9b31m \u202e"
    app = App("looks")
    app.stream(ScriptedSource([[{"n": 1, "t": evil}, {"n": 2, "t": "ä"}], END])).to(console())
    await bounded(app.run())
    shown = r'{"n":1,"t":"\u001b[2J \u009b31m \u202e"}' + '\n{"n":2,"t":"ä"}\n'
    assert capsys.readouterr().out == shown


async def test_the_console_shows_what_agents_give(memory_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    app = App("looks", memory_url)

    @app.agent(ScriptedSource([[{"n": 1}, {"n": 2}], END]), sink=console())
    async def raw(ctx: sabot.AgentContext) -> object:
        return sabot.Message(b"\x1b\xff\r") if ctx.message["n"] == 1 else {"n": ctx.message["n"]}

    await bounded(app.run())
    assert capsys.readouterr().out == '\\u001b\\xff\\u000d\n{"n":2}\n'


def test_notebooks_get_columns_and_plan_escaped(memory_url: str) -> None:
    stream = App("looks", memory_url).stream("in", schema={"<script>": "int64"})
    page = stream._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;: int64" in page
    assert "read in" in page
    plan = stream.explain()
    assert plan in str(plan)
    assert plan._repr_html_().startswith("<pre>stage")  # type: ignore[attr-defined]


def test_ipython_shows_columns_and_types_in_a_terminal(memory_url: str) -> None:
    pretty = pytest.importorskip("IPython.lib.pretty", reason="pip install ipython").pretty
    stream = App("looks", memory_url).stream("in", schema={"k": "string", "n": "int64"})
    assert pretty(stream) == "Stream\nk: string\nn: int64"
    assert pretty(stream.key_by("k")) == "KeyedStream(by k)\nk: string\nn: int64"
    assert pretty(stream.group_by("k")) == "GroupedStream(by k)\nk: string\nn: int64"
    windows = pretty(stream.key_by("k").window(sabot.tumbling("1m")))
    assert windows.startswith("WindowedStream(")
    assert windows.endswith("\nk: string\nn: int64")


def test_notebooks_show_the_columns_of_streams_with_a_key_or_a_window(memory_url: str) -> None:
    stream = App("looks", memory_url).stream("in", schema={"k": "string", "n": "int64"})
    for kind, heading in (
        (stream.key_by("k"), "KeyedStream(by k)"),
        (stream.group_by("k"), "GroupedStream(by k)"),
        (stream.key_by("k").window(sabot.tumbling("1m")), "WindowedStream("),
    ):
        assert repr(kind).startswith(heading)
        page = kind._repr_html_()
        assert "k: string\nn: int64" in page
        assert "read in" in page


def test_notebooks_get_the_plan_of_a_stream_and_of_an_app_as_a_drawing(memory_url: str) -> None:
    """Both forms have it: JupyterLab and VS Code take the page where a result has one, other front ends the drawing."""
    formatters = pytest.importorskip("IPython.core.formatters", reason="pip install ipython")
    app = App("looks", memory_url)
    stream = app.stream("in", schema={"n": "int64"}).filter(sabot.col("n") > 3)
    stream.to("out")
    for shown, last in ((stream, "filter-1"), (app, "out")):
        given, _ = formatters.DisplayFormatter().format(shown)
        drawing, page = given["image/svg+xml"], given["text/html"]
        assert drawing.startswith("<svg ")
        assert f">{last}<" in drawing
        assert drawing in page
        assert "<summary>The plan as text</summary><pre>stage read-1" in page
    assert app.draw() == app._repr_svg_()
    assert app._repr_html_().startswith("<b>App looks</b>")


def test_a_notebook_shows_why_there_is_no_plan(memory_url: str) -> None:
    app = App("looks", memory_url)

    @app.agent("in")
    async def read(ctx: sabot.AgentContext) -> None: ...

    for sink in ("a", "b"):
        app.stream(read, schema={"n": "int64"}).to(sink)
    assert app._repr_svg_() is None
    assert "two streams read agent looks.read" in app._repr_html_()
    assert "<svg" in App("empty")._repr_html_()


def test_a_notebook_shows_a_stream_whose_columns_nobody_knows(memory_url: str) -> None:
    assert "not known before the first records" in App("looks", memory_url).stream("in")._repr_html_()


def test_schema_and_describe_of_a_topic_look_at_the_records_that_are_there(memory_url):
    MemoryBroker.get(memory_url).publish("clicks", [{"user": "u1", "n": 1}, {"user": "u2", "n": 5}])
    clicks = App("look", broker=memory_url).stream("clicks")
    assert clicks.schema == pa.schema([("user", pa.string()), ("n", pa.int64())])
    found = {row["column"]: row for row in clicks.describe().to_pylist()}
    assert (found["n"]["count"], found["n"]["mean"], found["user"]["max"]) == (2, 3.0, "u2")
    totals = clicks.group_by("user").aggregate(n=sabot.sum("n"))
    assert totals.schema.names == ["user", "n"]
    assert totals.describe().num_rows == 2
    with pytest.raises(UserError, match="there is no record before until="):
        App("look", broker=memory_url).stream("nothing").schema  # noqa: B018


def test_describe_has_figures_of_all_types():
    rows = {
        "x": [float("nan"), 1.0, -0.0, 0.0, None],
        "d": pa.array([1.5, 2.5, 1.5, None, 9.5]).cast(pa.decimal128(5, 2)),
        "wait": pa.array([5, 1, None, 9, 3], pa.duration("s")),
        "tags": [["a"], [], None, ["b"], ["a"]],
        "big": pa.array([2**64 - 1, 0, 1, 2, 3], pa.uint64()),
    }
    found = {row["column"]: row for row in App("looks").stream(pa.table(rows)).describe().to_pylist()}
    assert (found["x"]["count"], found["x"]["distinct"], found["x"]["50%"]) == (4, 3, 0.0)
    assert (found["d"]["min"], found["d"]["max"], found["d"]["nulls"]) == ("1.50", "9.50", 1)
    assert (found["d"]["mean"], found["d"]["std"]) == (3.75, pytest.approx(3.862210075418823))
    assert [found["d"][each] for each in ("25%", "50%", "75%")] == [1.5, 2.5, 2.5]
    assert (found["wait"]["min"], found["wait"]["max"]) == ("0:00:01", "0:00:09")
    assert (found["tags"]["count"], found["tags"]["distinct"]) == (4, None)
    assert (found["big"]["50%"], found["big"]["max"]) == (2.0, str(2**64 - 1))
