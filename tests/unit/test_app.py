"""App (rows 0.08 and 0.09): construction, `@app.agent`, start and stop, send, and batch agents."""

import asyncio
import datetime
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from sabot import AgentFailed, App, AppLocked, Message, UserError
from sabot.agents.runtime import AgentRuntime
from sabot.connectors.files import NdjsonSource
from sabot.connectors.memory import MemoryBroker
from sabot.engine.state import BackendConfig, MemoryBackend
from tools.agent_tools import (
    bounded,
    checkpoint,
    environment,
    manifests,
    processed,
    publish,
    records,
    started,
    state_of,
    until,
    values,
    write_lines,
)


@pytest.fixture
def app(memory_url):
    return App("shop", broker=memory_url)


# Construction


def test_an_app_has_the_documented_attributes_and_defaults():
    app = App("shop")
    assert app.id == "shop"
    assert app.broker == "memory://"
    assert isinstance(app.agent_runtime, AgentRuntime)
    assert app.agent_runtime.app is app
    assert app.state_backend is None
    assert app.agent_runtime._checkpoint_interval == 60.0
    assert App("shop", broker="kafka://localhost:19092").broker == "kafka://localhost:19092"


@pytest.mark.parametrize(
    "wrong",
    [{"broker": 3}, {"restart": 3}, {"reprocess": 3}, {"reprocess": [3]}, {"drop": [None]}, {"checkpoint_timeout": 0}],
    ids=str,
)
def test_a_setting_of_another_type_is_a_user_error(wrong):
    with pytest.raises(UserError):
        App("shop", **wrong)


def test_a_state_backend_may_be_assigned_until_the_start():
    app = App("shop")
    backend = MemoryBackend(BackendConfig(backend_type="memory"))
    app.state_backend = backend
    assert app.state_backend is backend


@pytest.mark.parametrize("broker", ["localhost:9092", "amqp://host", "", "kafka://"])
def test_an_address_that_is_no_broker_is_a_user_error(broker):
    with pytest.raises(UserError):
        App("shop", broker=broker)


@pytest.mark.parametrize("state", ["rocksdb://relative", "redis://host"])
def test_a_state_that_is_none_is_a_user_error(state):
    with pytest.raises(UserError):
        App("shop", state=state)


@pytest.mark.parametrize(
    ("interval", "seconds"),
    [(0.1, 0.1), ("100ms", 0.1), ("5s", 5.0), (datetime.timedelta(minutes=2), 120.0), (3, 3.0)],
)
def test_the_checkpoint_interval_is_a_duration(interval, seconds):
    assert App("shop", checkpoint_interval=interval).settings.checkpoint_interval == pytest.approx(seconds)


def test_a_checkpoint_interval_that_is_no_duration_is_a_user_error():
    with pytest.raises(UserError):
        App("shop", checkpoint_interval="soon")


# The decorator


def test_agent_works_without_an_event_loop_and_returns_the_function(app):
    async def orders(ctx):
        return None

    assert app.agent()(orders) is orders
    assert set(app.agent_runtime.get_stats()) == {"shop.orders"}


@pytest.mark.slow  # a second of a core, or more
def test_a_module_with_agents_can_be_imported_with_no_loop(tmp_path):
    (tmp_path / "shop_module.py").write_text(
        textwrap.dedent("""
            from sabot import App
            app = App("shop")

            @app.agent()
            async def orders(ctx): ...

            @app.agent(topic="t", name="renamed")
            async def other(ctx): ...
        """)
    )
    code = "import shop_module; print(sorted(shop_module.app.agent_runtime.get_stats()))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['shop.orders', 'shop.renamed']"


async def test_the_topic_is_the_functions_name_unless_given(app):
    seen = []

    @app.agent()
    async def orders(ctx):
        seen.append((ctx.topic, ctx.agent_id, ctx.message))

    @app.agent("payments", name="cashier")
    async def other(ctx):
        seen.append((ctx.topic, ctx.agent_id, ctx.message))

    publish(app, "orders", [1])
    publish(app, "payments", [2])
    async with started(app):
        await until(lambda: len(seen) == 2)
    assert sorted(seen) == [("orders", "shop.orders", 1), ("payments", "shop.cashier", 2)]


def test_two_agents_with_one_name_are_refused(app):
    @app.agent("a")
    async def orders(ctx):
        return None

    with pytest.raises(UserError, match=r"shop\.orders"):

        @app.agent("b", name="orders")
        async def other(ctx):
            return None


def test_two_functions_of_one_name_are_refused(app):
    def define():
        @app.agent("a")
        async def orders(ctx):
            return None

        return orders

    define()
    with pytest.raises(UserError, match=r"shop\.orders"):
        define()


def test_the_same_cell_of_a_notebook_replaces_its_agent(app):
    cell = "@app.agent('a')\nasync def orders(ctx):\n    return {}\n"  # run twice, edited in between
    names = {"app": app, "__name__": "__main__"}
    exec(cell.format("1"), names)
    exec(cell.format("2"), names)
    assert app.agent_runtime.agents["shop.orders"].agent_func is names["orders"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"concurrency": 0},
        {"retries": -1},
        {"timeout": "soon"},
        {"backoff": "soon"},
        {"delivery": "perhaps"},
        {"no_such_option": 1},
        {"topic": 17},
        {"topic": []},
        {"topic": ""},
        {"sink": 17},
        {"key": 17},
        {"key": ""},
        {"schema": "text"},
        {"key": "id", "on_timer": lambda: None},
        {"retries": 2},
        {"on_error": "skip", "retries": 5},
    ],
    ids=lambda wrong: next(iter(wrong)) + "=" + str(next(iter(wrong.values()))),
)
def test_a_wrong_option_is_refused_where_it_is_written(app, wrong):
    async def orders(ctx):
        return None

    with pytest.raises(UserError):
        app.agent(**wrong)(orders)


async def test_an_agent_as_sink_must_be_one(app):
    """At the latest when the app starts: the agent may be defined after the one that writes to it."""

    async def no_agent(ctx):
        return None

    async def define_and_start():
        @app.agent("a", sink=no_agent)
        async def orders(ctx):
            return None

        async with started(app):
            pass

    with pytest.raises(UserError):
        await bounded(define_and_start())


def test_the_decorator_without_brackets_says_how_it_is_written(app):
    async def orders(ctx):
        return None

    with pytest.raises(UserError, match=r"@app\.agent\(\)"):
        app.agent(orders)


# Start, run and stop


async def test_run_ends_by_itself_with_its_last_input(memory_url, tmp_path):
    app = App("shop", broker=memory_url)
    seen = []

    @app.agent(NdjsonSource(write_lines(tmp_path / "in.ndjson", range(100))))
    async def orders(ctx):
        seen.append(ctx.message)

    await bounded(app.run())
    assert seen == list(range(100))
    assert state_of(app, "orders") == "stopped"


async def test_run_that_is_cancelled_stops_the_agents_and_commits_their_offsets(app):
    @app.agent("orders")
    async def orders(ctx):
        return None

    publish(app, "orders", [1, 2, 3])
    run = asyncio.create_task(app.run())
    await until(lambda: processed(app, "orders") == 3)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bounded(run)
    assert state_of(app, "orders") == "stopped"
    assert MemoryBroker.get(app.broker).committed("shop.orders-group", "orders") == {0: 3}


async def test_stop_ends_run(app):
    @app.agent("orders")
    async def orders(ctx):
        return None

    run = asyncio.create_task(app.run())
    await until(lambda: state_of(app, "orders") == "running")
    await bounded(app.stop())
    await bounded(run)
    await bounded(app.stop())


async def test_a_stop_leaves_no_task_on_the_loop(memory_url, tmp_path):
    app = App("shop", broker=memory_url, state=str(tmp_path / "state"), checkpoint_interval=0.1)

    @app.agent("orders", sink="out", concurrency=4)
    async def orders(ctx):
        await ctx.state().put("n", ctx.message)
        return ctx.message

    @app.agent("bad")
    async def bad(ctx):
        raise ValueError("no")

    before, threads = asyncio.all_tasks(), set(threading.enumerate())
    publish(app, "orders", list(range(100)))
    publish(app, "bad", [1])
    async with started(app):
        await until(lambda: processed(app, "orders") == 100 and state_of(app, "bad") == "failed")
        await checkpoint(app)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - before == set()
    kept = {thread.name for thread in set(threading.enumerate()) - threads}
    assert {
        name for name in kept if not name.startswith(("asyncio_", "sabot-blocking"))
    } == set()  # pools of threads stay


async def test_stop_writes_a_final_checkpoint_and_the_next_start_goes_on_there(memory_url, tmp_path):
    """On memory:// the broker lives as long as the process, so positions stay good between two apps."""
    seen = []

    def build():
        app = App("shop", broker=memory_url, state=str(tmp_path / "state"))

        @app.agent("orders")
        async def orders(ctx):
            n = (await ctx.state().get("n") or 0) + 1
            await ctx.state().put("n", n)
            seen.append((ctx.message, n))

        return app

    app = build()
    publish(app, "orders", ["a", "b"])
    async with started(app):
        await until(lambda: len(seen) == 2)
    assert manifests(tmp_path / "state" / "checkpoints")
    publish(app, "orders", ["c"])
    async with started(build()):
        await until(lambda: len(seen) == 3)
    assert seen == [("a", 1), ("b", 2), ("c", 3)]


async def test_the_same_app_can_be_started_again_after_its_stop(memory_url):
    app = App("shop", broker=memory_url, state="memory")
    seen = []

    @app.agent("orders")
    async def orders(ctx):
        seen.append(ctx.message)

    async with started(app):
        publish(app, "orders", [1])
        await until(lambda: 1 in seen)
    async with started(app):
        publish(app, "orders", [2])
        await until(lambda: 2 in seen)


async def test_memory_state_writes_no_checkpoint_unless_a_directory_is_given(memory_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def build(**options):
        app = App("shop", broker=memory_url, state="memory", **options)

        @app.agent("orders")
        async def orders(ctx):
            await ctx.state().put("n", 1)

        return app

    publish(build(), "orders", [1])
    app = build()
    async with started(app):
        await until(lambda: processed(app, "orders") == 1)
        await checkpoint(app)
    assert list(tmp_path.iterdir()) == []
    app = build(checkpoint_dir=tmp_path / "given")
    async with started(app):
        await until(lambda: processed(app, "orders") == 1)
        await checkpoint(app)
    assert manifests(tmp_path / "given")


async def test_start_latest_leaves_out_what_was_there_before(memory_url):
    app = App("shop", broker=memory_url, start="latest")
    seen = []

    @app.agent("orders")
    async def orders(ctx):
        seen.append(ctx.message)

    publish(app, "orders", ["old"])
    async with started(app):
        publish(app, "orders", ["new"])
        await until(lambda: seen == ["new"])


async def test_group_offsets_are_never_taken_silently(app):
    seen = []

    @app.agent("orders")
    async def orders(ctx):
        seen.append(ctx.message)

    publish(app, "orders", [1, 2])
    MemoryBroker.get(app.broker).commit("shop.orders-group", "orders", {0: 2})
    async with started(app):
        await until(lambda: seen == [1, 2])


async def test_a_second_worker_on_one_directory_is_refused_and_the_first_goes_on(memory_url, tmp_path):
    seen = []

    def build(app_id):
        app = App(app_id, broker=memory_url, state=str(tmp_path / "state"))

        @app.agent("orders")
        async def orders(ctx):
            seen.append(ctx.message)

        return app

    first = build("shop")
    async with started(first):
        with pytest.raises(AppLocked, match=str(tmp_path / "state")):
            await bounded(build("shop").start())
        publish(first, "orders", [1])
        await until(lambda: seen == [1])
    async with started(build("shop")):
        pass


@pytest.mark.parametrize("shared", ["state", "checkpoints"])
async def test_a_directory_that_another_app_holds_is_named(memory_url, tmp_path, shared):
    def build(number):
        state, checkpoints = tmp_path / f"state-{number}", tmp_path / f"checkpoints-{number}"
        if shared == "state":
            state = tmp_path / "state"
        else:
            checkpoints = tmp_path / "checkpoints"
        app = App("shop", broker=memory_url, state=str(state), checkpoint_dir=checkpoints)

        @app.agent("orders")
        async def orders(ctx):
            await ctx.state().put("n", 1)

        return app

    async with started(build(1)):
        with pytest.raises(AppLocked, match=str(tmp_path / shared)):
            await bounded(build(2).start())
    async with started(build(2)):
        pass


async def test_fresh_forgets_state_and_positions(memory_url, tmp_path):
    seen = []

    def build():
        app = App("shop", broker=memory_url, state=str(tmp_path / "state"))

        @app.agent("orders")
        async def orders(ctx):
            n = (await ctx.state().get("n") or 0) + 1
            await ctx.state().put("n", n)
            seen.append((ctx.message, n))

        return app

    app = build()
    publish(app, "orders", ["a", "b"])
    async with started(app):
        await until(lambda: len(seen) == 2)
    app = build()
    app.configure(fresh=True)
    async with started(app):
        await until(lambda: len(seen) == 4)
    assert seen == [("a", 1), ("b", 2)] * 2


async def test_configure_replaces_what_the_program_says(memory_url, tmp_path):
    app = App("shop")
    app.configure(broker=memory_url, state=str(tmp_path / "state"), checkpoint_interval="5s")
    assert app.broker == memory_url
    seen = []

    @app.agent("orders")
    async def orders(ctx):
        await ctx.state().put("n", 1)
        seen.append(ctx.message)

    assert app.settings.checkpoint_interval == 5.0
    async with started(app):
        publish(app, "orders", [1])
        await until(lambda: seen == [1])
    assert manifests(tmp_path / "state" / "checkpoints")


@pytest.mark.slow  # a second of a core, or more
def test_ctrl_c_ends_main_cleanly_with_state_and_position_safe(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import asyncio, sys
            from sabot import App
            from sabot.connectors.files import NdjsonSource

            app = App("shop", state="state")

            @app.agent(NdjsonSource("in.ndjson"))
            async def count(ctx):
                n = (await ctx.state().get("n") or 0) + 1
                await ctx.state().put("n", n)
                print(ctx.message, n, flush=True)
                if ctx.message == 3 and sys.argv[1] == "wait":
                    await asyncio.Event().wait()

            app.main()
        """)
    )
    write_lines(tmp_path / "in.ndjson", range(6))
    process = subprocess.Popen(
        [sys.executable, program, "wait"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = [process.stdout.readline().split() for _ in range(4)]
    assert lines == [["0", "1"], ["1", "2"], ["2", "3"], ["3", "4"]]
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    done = subprocess.run(
        [sys.executable, program, "go on"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "4", "4", "5", "5", "6"]


# send


async def test_send_gives_the_offset_before_the_start_while_running_and_after(app):
    @app.agent("orders", sink="out")
    async def orders(ctx):
        return ctx.message

    assert await bounded(app.send("orders", {"n": 0}, key="k")) == 0
    async with started(app):
        assert await bounded(app.send("orders", {"n": 1})) == 1
        await until(lambda: values(app, "out") == [{"n": 0}, {"n": 1}])
    assert await bounded(app.send("orders", b"\x00raw", key=b"\xff")) == 2
    payloads = [(record.key, record.payload) for record in records(app, "orders")]
    assert payloads == [(b"k", b'{"n":0}'), (None, b'{"n":1}'), (b"\xff", b"\x00raw")]


async def test_send_carries_headers_timestamp_and_partition(app):
    MemoryBroker.get(app.broker).create_topic("orders", 3)
    offset = await app.send("orders", "x", headers=(("a", b"1"),), timestamp=1_700_000_000_123, partition=2)
    record = records(app, "orders")[0]
    assert offset == 0
    assert (record.headers, record.timestamp, record.partition) == ((("a", b"1"),), 1_700_000_000_123, 2)


@pytest.mark.parametrize("headers", [{"unit": "°C"}, [("unit", "°C")], {"unit": "°C".encode()}])
async def test_headers_may_be_a_dict_and_texts_everywhere(app, headers):
    """A reader of memory:// ended with a TypeError at a text, and the good record behind it was lost."""

    @app.agent("orders", sink="out")
    async def orders(ctx):
        return Message(ctx.headers[0][1].decode(), headers=headers)

    await app.send("orders", 1, headers=headers)
    MemoryBroker.get(app.broker).publish("orders", [2], headers=headers)
    async with started(app):
        await until(lambda: values(app, "out") == ["°C", "°C"])
    assert {record.headers for record in records(app, "out")} == {(("unit", "°C".encode()),)}


@pytest.mark.parametrize("headers", [{"unit": 1}, [("unit",)], [(b"unit", b"C")], ["ab"], "unit", None, {"a\0": b""}])
async def test_headers_that_no_record_can_have_are_refused_by_all_that_take_them(app, headers):
    with pytest.raises(UserError, match=r"send\('orders'\).*header"):
        await app.send("orders", 1, headers=headers)
    with pytest.raises(UserError, match=r"publish\('orders'\).*header"):
        MemoryBroker.get(app.broker).publish("orders", [1], headers=headers)
    with pytest.raises(UserError, match=r"Message.*header"):
        Message(1, headers=headers)
    assert records(app, "orders") == []


async def test_send_works_from_another_loop_on_another_thread_while_the_app_runs(app):
    seen, offsets = [], []

    @app.agent("orders")
    async def orders(ctx):
        seen.append(ctx.message)

    async def send_some():
        for n in range(20):
            offsets.append(await bounded(app.send("orders", n)))

    async with started(app):
        thread = threading.Thread(target=lambda: asyncio.run(send_some()))
        thread.start()
        await until(lambda: len(seen) == 20)
        await until(lambda: not thread.is_alive())
    assert seen == list(range(20))
    assert offsets == list(range(20))


async def test_send_from_inside_an_agent(app):
    @app.agent("orders")
    async def orders(ctx):
        await app.send("copies", ctx.message, key=ctx.key)

    publish(app, "orders", [1, 2], key="k")
    async with started(app):
        await until(lambda: values(app, "copies") == [1, 2])
    assert {record.key for record in records(app, "copies")} == {b"k"}


@pytest.mark.parametrize(
    "place", [{"timestamp": "now"}, {"timestamp": True}, {"partition": "0"}, {"partition": -1}], ids=str
)
async def test_a_place_that_no_record_can_have_is_a_user_error(app, place):
    with pytest.raises(UserError, match=next(iter(place))):
        await app.send("orders", 1, **place)


async def test_send_of_what_json_cannot_say_is_a_user_error(app):
    with pytest.raises(UserError):
        await app.send("orders", object())
    assert records(app, "orders") == []


# Batch agents

SCHEMA = pa.schema([("n", pa.int64()), ("who", pa.string())])


@pytest.mark.parametrize("as_async", [False, True], ids=["def", "async_def"])
async def test_a_batch_agent_takes_and_gives_arrow(app, as_async):
    seen = []

    def work(batch):
        assert isinstance(batch, pa.RecordBatch)
        assert batch.schema.equals(SCHEMA)
        seen.append(batch.num_rows)
        return batch.filter(pa.compute.greater(batch.column("n"), 1))

    if as_async:

        @app.agent("in", sink="out", batch=True, schema=SCHEMA)
        async def double(batch, ctx):
            await asyncio.sleep(0)
            return work(batch)
    else:

        @app.agent("in", sink="out", batch=True, schema=SCHEMA)
        def double(batch, ctx):
            return work(batch)

    publish(app, "in", [{"n": n, "who": f"w{n}", "ignored": [1]} for n in range(4)])
    async with started(app):
        await until(lambda: len(records(app, "out")) == 2)
        await until(lambda: processed(app, "double") == 4)
    assert values(app, "out") == [{"n": 2, "who": "w2"}, {"n": 3, "who": "w3"}]
    assert sum(seen) == 4


async def test_a_batch_agents_schema_may_be_names_of_types(app):
    schemas = []

    @app.agent("in", batch=True, schema={"n": "int64", "who": "string"})
    def look(batch, ctx):
        schemas.append(batch.schema)

    publish(app, "in", [{"n": 1, "who": "a"}])
    async with started(app):
        await until(lambda: schemas)
    assert schemas[0].equals(SCHEMA)


async def test_a_batch_agents_missing_and_null_fields_are_null_and_the_last_of_equal_names_wins(app):
    rows = []

    @app.agent("in", batch=True, schema=SCHEMA)
    def look(batch, ctx):
        rows.extend(batch.to_pylist())

    publish(app, "in", [b"{}", b'{"n":null,"who":"a"}', b'{"n":1,"who":"x","n":2}'])
    async with started(app):
        await until(lambda: len(rows) == 3)
    assert rows == [{"n": None, "who": None}, {"n": None, "who": "a"}, {"n": 2, "who": "x"}]


async def test_a_batch_agent_without_a_schema_gets_the_inferred_one(app):
    seen = []

    @app.agent("in", batch=True)
    def look(batch, ctx):
        seen.append(batch)

    publish(app, "in", [{"n": n, "price": n / 2, "who": f"w{n}", "ok": n % 2 == 0} for n in range(10)])
    async with started(app):
        await until(lambda: sum(batch.num_rows for batch in seen) == 10)
    kinds = {field.name: field.type for field in seen[0].schema}
    assert kinds == {"n": pa.int64(), "price": pa.float64(), "who": pa.string(), "ok": pa.bool_()}
    rows = [row for batch in seen for row in batch.to_pylist()]
    assert rows == [{"n": n, "price": n / 2, "who": f"w{n}", "ok": n % 2 == 0} for n in range(10)]


async def test_an_inferred_schema_stays_for_the_whole_app(app):
    schemas, rows = [], []

    @app.agent("in", batch=True)
    def look(batch, ctx):
        schemas.append(batch.schema)
        rows.extend(batch.to_pylist())

    async with started(app):
        publish(app, "in", [{"n": 1}])
        await until(lambda: len(rows) == 1)
        publish(app, "in", [{"n": 2, "new": "x"}, {"n": "wrong type"}, {"n": 3}])
        await until(lambda: len(rows) == 3)
        await until(lambda: len(records(app, "in.dlq")) == 1)
    assert rows == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert all(schema.equals(schemas[0]) for schema in schemas)
    assert values(app, "in.dlq") == [{"n": "wrong type"}]


async def test_a_batch_agent_that_returns_none_gives_nothing_and_a_table_gives_its_rows(app):
    @app.agent("in", sink="out", batch=True, schema=SCHEMA)
    def look(batch, ctx):
        return None if batch.column("n")[0].as_py() == 0 else batch

    async with started(app):
        publish(app, "in", [{"n": 0, "who": "a"}])
        await until(lambda: processed(app, "look") == 1)
        publish(app, "in", [{"n": 1, "who": "b"}])
        await until(lambda: values(app, "out") == [{"n": 1, "who": "b"}])


async def test_a_batch_may_have_other_columns_and_rows_on_its_way_out(app):
    @app.agent("in", sink="out", batch=True, schema=SCHEMA)
    def total(batch, ctx):
        return pa.record_batch({"total": [pa.compute.sum(batch.column("n")).as_py()], "rows": [batch.num_rows]})

    publish(app, "in", [{"n": n, "who": "w"} for n in range(5)])
    async with started(app):
        await until(lambda: sum(v["rows"] for v in values(app, "out")) == 5)
    assert sum(v["total"] for v in values(app, "out")) == 10


async def test_a_batch_agent_feeds_a_record_agent_through_a_channel(app):
    seen = []

    @app.agent("suspicious")
    async def alert(ctx):
        seen.append(ctx.message)

    @app.agent("in", sink=alert, batch=True, schema=SCHEMA)
    def score(batch, ctx):
        return batch.filter(pa.compute.greater(batch.column("n"), 1))

    publish(app, "in", [{"n": n, "who": f"w{n}"} for n in range(4)])
    async with started(app):
        await until(lambda: len(seen) == 2)
    assert seen == [{"n": 2, "who": "w2"}, {"n": 3, "who": "w3"}]


async def test_every_row_passes_a_batch_agent_once_and_in_order(app):
    seen = []

    @app.agent("in", batch=True, schema=SCHEMA)
    def look(batch, ctx):
        assert batch.num_rows > 0
        seen.extend(batch.column("n").to_pylist())

    for start in range(0, 20_000, 500):
        publish(app, "in", [{"n": n} for n in range(start, start + 500)])
    async with started(app):
        await until(lambda: len(seen) >= 20_000 and processed(app, "look") >= 20_000)
        assert processed(app, "look") == 20_000
    assert seen == list(range(20_000))


async def test_agent_failed_is_raised_by_run_of_an_app_with_batch_agents_too(app):
    @app.agent("in", batch=True, schema=SCHEMA)
    def bad(batch, ctx):
        raise ValueError("no good")

    publish(app, "in", [{"n": 1}])
    with pytest.raises(AgentFailed, match=r"shop\.bad"):
        await bounded(app.run())


@pytest.mark.parametrize(("settings", "warns"), [({}, True), ({"state": "memory"}, True), ({"state": "disk"}, False)])
async def test_a_budget_that_bounds_nothing_is_warned_of(
    memory_url: str, tmp_path: Path, settings: dict[str, str], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if settings.get("state") == "disk":
        settings = {"state": str(tmp_path / "state")}
    app = App("shop", memory_url, memory_budget="1MB", **settings)
    app.stream("orders", schema={"k": "string"}).to("seen")
    async with started(app):
        assert ("memory_budget=1MB bounds nothing" in caplog.text) is warns
    caplog.clear()
    silent = App("shop", memory_url)
    silent.stream("orders", schema={"k": "string"}).to("seen")
    async with started(silent):
        assert "memory_budget" not in caplog.text
