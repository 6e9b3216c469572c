"""Programs that gave a wrong answer once, each with its story; found by a sceptical reviewer and by a new user."""

import asyncio
import io
import json
import logging
import shutil
import sys
import threading

import pytest

import sabot
from sabot import App, CsvSink, NdjsonSource, SabotError, StorageLost, UserError, col, files, tumbling
from sabot.testing import ListSink, ManualClock, MemoryBroker
from tools.agent_tools import bounded, until

ROWS = [{"x": n % 7, "m": n % 5, "y": n, "ts": n * 100} for n in range(700)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "rows.ndjson"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def stream(path, parallelism, **options):
    return App("faults", parallelism=parallelism).stream(NdjsonSource(path, block_bytes=2000), **options)


@pytest.mark.parametrize("parallelism", [1, 3])
def test_hashes_of_one_key_are_not_taken_for_those_of_another(path, tmp_path, parallelism):
    """A batch kept the hashes of an earlier key on its way through a union: 35 rows passed, not 5."""
    app = App("faults", parallelism=parallelism)
    first = app.stream(NdjsonSource(path, block_bytes=2000)).deduplicate("x", "m")
    second = app.stream(files(path)).filter(col("y") < 0)
    assert sorted(first.union(second).deduplicate("m").collect()["m"].to_pylist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("parallelism", [1, 3])
def test_a_dropped_key_does_not_live_on_in_the_column_that_takes_its_name(path, parallelism):
    """Rows were taken for split by "x" although "x" was another column by then."""
    other = stream(path, parallelism).deduplicate("x", "m").drop("x").rename({"m": "x"}).deduplicate("x")
    assert sorted(other.collect()["x"].to_pylist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("parallelism", [1, 3])
def test_a_union_takes_what_is_used_of_branches_that_read_more(path, parallelism):
    """Each branch was read with what its own steps need, and the union found them different."""
    app = App("faults", parallelism=parallelism)
    one = app.stream(NdjsonSource(path)).filter(col("y") >= 350)
    both = one.union(app.stream(files(path)).with_columns(y=col("y") + 0))
    counts = both.key_by("x").aggregate(n=sabot.count()).collect()
    assert sorted(counts["n"].to_pylist()) == sorted(list(range(1, 151)) * 7)
    again = App("faults", parallelism=parallelism)
    either = again.stream(NdjsonSource(path)).union(again.stream(files(path)))
    assert sorted(either.aggregate(n=sabot.count()).collect()["n"].to_pylist()) == list(range(1, 1401))


def test_late_rows_leave_with_all_their_columns_and_are_told_of_where_they_have_no_place(path, tmp_path, caplog):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[350:], *lines[:350]]) + "\n")
    late = tmp_path / "late.ndjson"
    app = App("faults")
    minutes = app.stream(NdjsonSource(path, block_bytes=2000), time="ts").key_by("x")
    minutes.window(tumbling("1s"), late=sabot.NdjsonSink(late)).aggregate(n=sabot.count()).to(
        sabot.NdjsonSink(tmp_path / "n.ndjson")
    )
    app.main()
    rows = [json.loads(line) for line in late.read_text().splitlines()]
    assert rows
    assert all(row == ROWS[row["y"]] for row in rows)
    with caplog.at_level(logging.WARNING, logger="sabot"):
        counted = stream(path, 1, time="ts").key_by("x").window(tumbling("1s")).aggregate(n=sabot.count()).collect()
    assert f"{700 - sum(counted['n'].to_pylist())} rows came too late" in caplog.text


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2, 4])
def test_what_a_span_of_event_time_decides_does_not_depend_on_how_many_read(path, parallelism):
    """Readers stand at different places of event time: up to three quarters of the rows were taken for repeated."""
    rows = stream(path, parallelism, time="ts", lateness="1s")
    assert rows.deduplicate("x", within="7s").collect().num_rows == 70
    assert set(rows.key_by("x").aggregate(ttl="500ms", n=sabot.count()).collect()["n"].to_pylist()) == {1}


def test_a_source_is_read_by_one_run_at_a_time(path):
    """Of four runs at once one gave 77,651 of 300,000 rows, and no error."""
    source, inside, go_on = NdjsonSource(path), threading.Event(), threading.Event()

    def wait(batch):
        if batch.num_rows:
            inside.set()
            go_on.wait(60)
        return batch

    found = []
    slow = App("slow").stream(source).map_batches(wait)
    thread = threading.Thread(target=lambda: found.append(slow.collect().num_rows))
    thread.start()
    try:
        assert inside.wait(60)
        with pytest.raises(UserError, match="is read by another run"):
            App("other").stream(source).collect()
    finally:
        go_on.set()
        thread.join(60)
    assert found == [700]
    assert App("later").stream(source).collect().num_rows == 700


def test_two_sinks_of_one_file_are_refused(path, tmp_path):
    app = App("faults")
    rows = app.stream(files(path))
    rows.to(CsvSink(tmp_path / "one.csv"))
    rows.to(CsvSink(tmp_path / "one.csv"))
    with pytest.raises(UserError, match=r"two sinks write the same file, .*one\.csv"):
        app.main()


def test_a_computed_key_does_not_take_the_place_of_a_column(path):
    with pytest.raises(UserError, match=r"alias"):
        stream(path, 1).key_by(col("y") % 2)
    sums = stream(path, 1).key_by((col("y") % 2).alias("odd")).aggregate(total=sabot.sum("y")).collect()
    assert max(sums["total"].to_pylist()) == sum(range(1, 700, 2))


def test_event_time_that_a_step_replaces_is_refused_where_windows_follow(path):
    replaced = stream(path, 1, time="ts").with_columns(ts=col("ts") * 10)
    with pytest.raises(UserError, match="event time"):
        replaced.window(tumbling("1s")).aggregate(n=sabot.count()).collect()
    assert replaced.collect().num_rows == 700


async def test_dead_letters_of_a_stream_say_as_much_as_those_of_an_agent(memory_url):
    """They left out who set them apart, and under which version of the program."""
    app = App("shop", broker=memory_url, version="1.4")
    app.stream("orders", schema={"x": "int64"}).to("copies")
    broker = MemoryBroker.get(memory_url)
    broker.publish("orders", [b"no json"])
    await app.start()
    await until(lambda: broker.records("orders.dlq"))
    await app.stop()
    (letter,) = broker.records("orders.dlq")
    assert letter.payload == b"no json"
    headers = {name.removeprefix("sabot."): value.decode() for name, value in letter.headers}
    message = headers.pop("message")
    assert "byte 0" in message
    assert int(headers.pop("written")) >= int(headers.pop("timestamp")) > 0
    assert headers == {
        "topic": "orders",
        "partition": "0",
        "offset": "0",
        "agent": "shop/read-1/0",
        "error": "DataError",
        "attempts": "0",
        "version": "1.4",
    }


async def test_the_progress_over_files_is_known_while_they_are_read_and_shown_on_a_terminal(tmp_path, monkeypatch):
    path, inside, go_on = tmp_path / "rows.ndjson", threading.Event(), threading.Event()
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def wait(batch):
        if batch.num_rows:
            inside.set()
            go_on.wait(60)
        return batch

    app = App("progress")
    app.stream(NdjsonSource(path, block_bytes=2000)).map_batches(wait).to(sabot.NdjsonSink(tmp_path / "out.ndjson"))
    assert app.progress() is None
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    running = asyncio.ensure_future(app.run())
    try:
        await until(inside.is_set)
        done, total = app.progress()
        assert 0 < done < total == path.stat().st_size
        await until(lambda: "kB" in screen.getvalue(), "the line of progress")
    finally:
        go_on.set()
        await bounded(running)


@pytest.mark.slow  # a second of a core, or more
@pytest.mark.parametrize("by_agent", [False, True])
async def test_a_service_that_does_not_answer_gathers_no_channel_full_of_rows_at_each_checkpoint(tmp_path, by_agent):
    """A barrier waits for no call, so the rows before it are taken without room: each checkpoint took 74,000 more in."""
    rows, channel, topic = 400_000, 65_536, f"gathered {by_agent}"
    MemoryBroker.get().publish(topic, [{"k": n} for n in range(rows)])
    app = App("gathers", state="memory", checkpoint_dir=tmp_path, checkpoint_interval=3600)
    answers, answered = asyncio.Event(), []

    async def look_up(batch):
        await answers.wait()
        answered.append(batch.num_rows)
        return batch

    if by_agent:

        @app.agent(topic, batch=True, schema={"k": "int64"})
        def orders(batch, ctx):
            return batch

        stream = app.stream(orders, schema={"k": "int64"})
    else:
        app.configure(parallelism=2)
        stream = app.stream(topic, schema={"k": "int64"}).deduplicate("k")
    sink = ListSink("answers")
    stream.map_async(look_up, schema={"k": "int64"}, concurrency=10, batch=True).to(sink)

    def held():
        tasks = app.statistics()["streams"].values()
        return [each["held_rows"] for task in tasks for each in task["operators"].values() if "held_rows" in each]

    await app.start()
    await until(lambda: max(held(), default=0) > 0, "the first rows before the calls")
    for _ in range(12):
        await asyncio.sleep(0.05)  # so that a channel may fill again
        await app.agent_runtime.runner.checkpoint()
    assert 0 < max(held()) < (3.5 if by_agent else 2.5) * channel
    answers.set()
    await until(lambda: sum(answered) == rows)
    await app.stop(drain=True)
    assert sorted(row["k"] for row in sink.rows) == list(range(rows))


def test_a_stream_into_its_own_source_is_refused():
    """It filled its topic for ever; also behind a union, where the topic is one of two."""
    app = App("round")
    orders = app.stream("orders", schema={"a": "int64"})
    with pytest.raises(UserError, match=r"to\('orders'\): this stream reads orders"):
        orders.union(app.stream("more", schema={"a": "int64"})).filter(col("a") > 1).to("orders")
    orders.to("copies")


async def test_a_start_without_a_record_says_what_it_lacks(memory_url):
    """`start()` on an empty topic waited for ever for columns that only its caller could send."""
    clock = ManualClock(1_000.0)
    app = App("first", broker=memory_url, clock=clock)
    app.stream("orders").to("copies")
    starting = asyncio.ensure_future(app.start())
    await until(lambda: app.agent_runtime.runner.status.phase == "starting")

    def refused():
        clock.advance(1.0)
        return starting.done()

    await until(refused)
    with pytest.raises(UserError, match=r"stream orders: no record has come in 10 s.*schema="):
        await starting
    await bounded(app.stop())


@pytest.mark.parametrize("made_again", [False, True], ids=["gone", "empty"])
async def test_a_state_directory_that_is_removed_ends_the_run(memory_url, tmp_path, made_again):
    """It went on without results, and said at each checkpoint that the app goes on."""
    app = App("gone", broker=memory_url, state=tmp_path / "state", checkpoint_interval=3600)
    app.stream("orders", schema={"k": "string"}).key_by("k").aggregate(n=sabot.count()).to("counts")
    await app.start()
    await app.send("orders", {"k": "a"})
    await app.agent_runtime.trigger_checkpoint()
    shutil.rmtree(tmp_path / "state")
    if made_again:
        (tmp_path / "state" / "checkpoints").mkdir(parents=True)
    with pytest.raises(SabotError, match=r"checkpoints was removed, or emptied, while the app ran"):
        await app.agent_runtime.trigger_checkpoint()
    assert isinstance(app.agent_runtime.runner.status.failure, StorageLost)
    with pytest.raises(StorageLost):
        await bounded(app.stop())
