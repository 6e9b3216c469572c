"""Agents and their state: access, backends, keys, overlays (rows 0.12 to 0.14). `--backend rocksdb` runs one backend only."""

import asyncio
import threading

import pyarrow as pa
import pytest

from sabot import AgentContext, App, NoStateBackend, UserError
from sabot.agents.runtime import AgentProcess
from sabot.api.context import CallTimers, record_context
from sabot.clock import ManualClock
from sabot.connectors.memory import MemoryBroker
from sabot.engine.operators.agents.operator import Row
from sabot.engine.state import BackendConfig, MemoryBackend, RocksDBBackend, ValueState
from tools.agent_tools import bounded, processed, publish, records, started, until, values


def open_backend(kind, path):
    if kind == "memory":
        return MemoryBackend(BackendConfig(backend_type="memory"))
    return RocksDBBackend(BackendConfig(backend_type="rocksdb", path=path))


@pytest.fixture(params=["memory", "rocksdb"])
def kind(request):
    wanted = request.config.getoption("--backend", default=None)
    if wanted and wanted != request.param:
        pytest.skip(f"--backend {wanted}")
    return request.param


@pytest.fixture
async def backend(kind, tmp_path):
    backend = open_backend(kind, tmp_path / "assigned")
    yield backend
    await backend.close()


@pytest.fixture
def app(kind, memory_url, tmp_path):
    return App("shop", broker=memory_url, state="memory" if kind == "memory" else str(tmp_path / "state"))


# The context (row 0.12)


def test_state_without_a_backend_raises():
    ctx = AgentContext(message={"a": 1})
    assert ctx.message == {"a": 1}
    with pytest.raises(RuntimeError, match="No state backend configured"):
        ctx.state()
    with pytest.raises(NoStateBackend):
        ctx.state("named")
    assert issubclass(NoStateBackend, UserError)


async def test_state_says_its_backend_and_its_namespace(backend):
    """Document 000 has both; ValueState made of them is the same state."""
    state = AgentContext(message=1, state_backend=backend).state("visits")
    assert (state.backend, state.namespace) == (backend, "visits")
    await state.put("ann", 3)
    assert await ValueState(state.backend, state.namespace).get("ann") == 3
    with pytest.raises(AttributeError):
        state.namespace = "other"


async def test_state_of_an_app_without_one_raises_inside_the_agent(memory_url):
    app = App("shop", broker=memory_url)
    errors = []

    @app.agent("in")
    async def look(ctx):
        try:
            ctx.state()
        except RuntimeError as error:
            errors.append(error)

    publish(app, "in", [1])
    async with started(app):
        await until(lambda: errors)
    assert isinstance(errors[0], NoStateBackend)
    assert "No state backend configured" in str(errors[0])


async def test_accessor_gets_puts_and_deletes(backend):
    ctx = AgentContext(message=None, state_backend=backend)
    state = ctx.state()
    assert await state.get("k") is None
    await state.put("k", {"n": 1})
    assert await state.get("k") == {"n": 1}
    await state.delete("k")
    assert await state.get("k") is None
    await state.delete("k")


async def test_accessor_is_the_value_state_of_its_namespace(backend):
    await AgentContext(message=None, state_backend=backend).state().put("k", 1)
    await AgentContext(message=None, state_backend=backend).state("other").put("k", 2)
    assert await ValueState(backend, "default").get("k") == 1
    assert await ValueState(backend, "other").get("k") == 2
    await ValueState(backend, "default").put("k", 3)
    assert await AgentContext(message=None, state_backend=backend).state().get("k") == 3


async def test_values_come_back_with_their_types_and_as_copies(backend):
    value = {"text": "x", "raw": b"\x00", "list": [1, 2.5, None, True], "big": 2**63, "negative": -1, "deep": {"a": []}}
    state = AgentContext(message=None, state_backend=backend).state()
    await state.put("k", value)
    first = await state.get("k")
    assert first == value
    assert [type(v) for v in first.values()] == [type(v) for v in value.values()]
    first["list"].append("changed")
    value["deep"]["a"].append("changed too")
    assert (await state.get("k"))["list"] == [1, 2.5, None, True]
    assert (await state.get("k"))["deep"] == {"a": []}


async def test_a_value_that_msgpack_cannot_say_is_refused(backend):
    state = AgentContext(message=None, state_backend=backend).state()
    with pytest.raises((UserError, TypeError)):
        await state.put("k", object())
    assert await state.get("k") is None


# Backends (row 0.13)


async def test_snapshot_restores_into_another_backend(backend, kind, tmp_path):
    await ValueState(backend, "default").put("k", 1)
    snapshot = await backend.snapshot()
    await ValueState(backend, "default").put("k", 2)
    other = open_backend(kind, tmp_path / "other")
    await other.restore(snapshot)
    assert await ValueState(other, "default").get("k") == 1
    assert await ValueState(backend, "default").get("k") == 2
    await other.close()


async def test_agent_process_can_access_state(backend, memory_url):
    """Document 000, step 2.3, with the message really sent."""
    counters = []

    async def stateful_agent(ctx):
        await ctx.state().put("counter", 1)
        counters.append(await ctx.state().get("counter"))

    agent = AgentProcess("stateful", stateful_agent, "test", memory_url, state_backend=backend)
    await bounded(agent.start())
    MemoryBroker.get(memory_url).publish("test", [{"test": "data"}])
    await until(lambda: agent.messages_processed == 1)
    await bounded(agent.stop())
    assert counters == [1]
    assert await ValueState(backend, "default").get("counter") == 1
    ctx = AgentContext(message={"test": "data"}, state_backend=backend)
    await stateful_agent(ctx)
    assert counters == [1, 1]


async def test_an_assigned_backend_is_used_as_it_is_and_stays_open_after_the_stop(backend, memory_url):
    app = App("shop", broker=memory_url)
    app.state_backend = backend
    assert app.state_backend is backend

    @app.agent("in")
    async def count(ctx):
        await ctx.state().put("n", (await ctx.state().get("n") or 0) + 1)

    publish(app, "in", ["x"] * 5)
    await app.start()
    await until(lambda: processed(app, "count") == 5)
    assert await ValueState(backend, "default").get("n") == 5
    await app.stop()
    assert app.state_backend is backend
    assert await ValueState(backend, "default").get("n") == 5


async def test_a_backend_assigned_after_the_start_is_refused(backend, memory_url):
    app = App("shop", broker=memory_url)

    @app.agent("in")
    async def look(ctx):
        return None

    async with started(app):
        with pytest.raises(UserError):
            app.state_backend = backend


# What a call sees


async def test_a_call_reads_its_own_writes(app):
    seen = []

    @app.agent("in")
    async def look(ctx):
        state = ctx.state()
        before = await state.get("k")
        await state.put("k", ctx.message)
        await asyncio.sleep(0)
        own = await state.get("k")
        await state.delete("k")
        gone = await ctx.state("default").get("k")
        await state.put("k", ctx.message)
        seen.append((before, own, gone))

    publish(app, "in", ["a", "b"])
    async with started(app):
        await until(lambda: len(seen) == 2)
    assert seen == [(None, "a", None), ("a", "b", None)]


async def test_writes_of_an_unfinished_call_are_its_own_until_it_ends(backend, memory_url):
    app = App("shop", broker=memory_url)
    app.state_backend = backend
    wrote, go_on = asyncio.Event(), asyncio.Event()

    @app.agent("in")
    async def writer(ctx):
        await ctx.state().put("k", "written")
        wrote.set()
        await bounded(go_on.wait())

    publish(app, "in", [1])
    async with started(app):
        await bounded(wrote.wait())
        assert await ValueState(backend, "default").get("k") is None
        go_on.set()
        await until(lambda: processed(app, "writer") == 1)
        assert await ValueState(backend, "default").get("k") == "written"


async def test_agents_of_one_app_share_their_namespaces(app):
    seen = []

    @app.agent("write")
    async def writer(ctx):
        await ctx.state().put("shared", ctx.message)
        await ctx.state("named").put("shared", "other")

    @app.agent("read")
    async def reader(ctx):
        seen.append((await ctx.state().get("shared"), await ctx.state("named").get("shared")))

    async with started(app):
        publish(app, "write", [42])
        await until(lambda: processed(app, "writer") == 1)
        publish(app, "read", ["?"])
        await until(lambda: seen)
    assert seen == [(42, "other")]


async def test_a_keyed_agent_has_a_state_of_its_own_for_each_key(app):
    seen = []

    @app.agent("payments", key="account")
    async def check(ctx):
        n = (await ctx.state().get("seen") or 0) + 1
        await ctx.state().put("seen", n)
        named = (await ctx.state("sums").get("total") or 0) + ctx.message["amount"]
        await ctx.state("sums").put("total", named)
        seen.append((ctx.message["account"], n, named))

    rows = [("a", 1), ("b", 10), ("a", 2), (7, 100), ("b", 20), (7, 200), ("a", 3)]
    publish(app, "payments", [{"account": account, "amount": amount} for account, amount in rows])
    async with started(app):
        await until(lambda: len(seen) == len(rows))
    assert sorted(seen, key=repr) == sorted(
        [("a", 1, 1), ("a", 2, 3), ("a", 3, 6), ("b", 1, 10), ("b", 2, 30), (7, 1, 100), (7, 2, 300)], key=repr
    )


async def test_keyed_agents_do_not_see_the_state_of_agents_without_key(app):
    seen = []

    @app.agent("payments", key="account")
    async def keyed(ctx):
        seen.append(await ctx.state().get("n"))
        await ctx.state().put("n", "keyed")

    @app.agent("plain")
    async def plain(ctx):
        seen.append(await ctx.state().get("n"))
        await ctx.state().put("n", "plain")

    async with started(app):
        publish(app, "plain", [1])
        await until(lambda: len(seen) == 1)
        publish(app, "payments", [{"account": "a"}])
        await until(lambda: len(seen) == 2)
        publish(app, "plain", [2])
        await until(lambda: len(seen) == 3)
    assert seen == [None, None, "plain"]


async def test_a_keyed_agent_with_concurrency_loses_no_update(app):
    totals = {}

    @app.agent("in", key="k", concurrency=8)
    async def count(ctx):
        n = await ctx.state().get("n") or 0
        await asyncio.sleep(0)
        await ctx.state().put("n", n + 1)
        totals[ctx.message["k"]] = n + 1

    publish(app, "in", [{"k": n % 7} for n in range(700)])
    async with started(app):
        await until(lambda: processed(app, "count") == 700)
    assert totals == dict.fromkeys(range(7), 100)


# Batches


async def test_get_many_and_put_many_are_plain_calls_on_arrow_arrays(app):
    @app.agent("in", sink="out", batch=True, schema=pa.schema([("who", pa.string()), ("n", pa.int64())]))
    def total(batch, ctx):
        keys = pa.array(sorted(set(batch.column("who").to_pylist())))
        before = ctx.state("totals").get_many(keys)
        assert isinstance(before, pa.Array)
        assert len(before) == len(keys)
        sums = dict(zip(keys.to_pylist(), (v or 0 for v in before.to_pylist()), strict=True))
        for who, n in zip(batch.column("who").to_pylist(), batch.column("n").to_pylist(), strict=True):
            sums[who] += n
        ctx.state("totals").put_many(keys, pa.array([sums[k] for k in keys.to_pylist()], pa.int64()))
        again = ctx.state("totals").get_many(keys).to_pylist()
        assert again == [sums[k] for k in keys.to_pylist()]
        return pa.record_batch({"who": keys, "total": pa.array(again)})

    publish(app, "in", [{"who": "a", "n": 1}, {"who": "b", "n": 2}])
    async with started(app):
        await until(lambda: len(records(app, "out")) == 2)
        publish(app, "in", [{"who": "a", "n": 10}, {"who": "c", "n": 5}])
        await until(lambda: len(records(app, "out")) == 4)
    assert {(v["who"], v["total"]) for v in values(app, "out")} == {("a", 1), ("b", 2), ("a", 11), ("c", 5)}
    assert records(app, "in.dlq") == []


async def test_get_many_of_absent_keys_is_null_and_sees_what_put_wrote(app):
    seen = []

    @app.agent("record")
    async def record(ctx):
        await ctx.state().put("a", 1)
        await ctx.state().put("b", 2)

    @app.agent("in", batch=True)
    async def batch_agent(batch, ctx):
        seen.append(ctx.state().get_many(pa.array(["a", "nowhere", "b", "a"])).to_pylist())
        ctx.state().put_many(pa.array(["c"]), pa.array(["text"]))
        seen.append(await ctx.state().get("c"))

    async with started(app):
        publish(app, "record", [1])
        await until(lambda: processed(app, "record") == 1)
        publish(app, "in", [{"n": 1}])
        await until(lambda: len(seen) == 2)
    assert seen == [[1, None, 2, 1], "text"]


async def test_state_directories_of_a_stopped_app_are_free_again(memory_url, tmp_path):
    """Also from another thread with a loop of its own."""
    counts = []

    def build():
        app = App("shop", broker=memory_url, state=str(tmp_path / "state"))

        @app.agent("in")
        async def count(ctx):
            n = (await ctx.state().get("n") or 0) + 1
            await ctx.state().put("n", n)
            counts.append(n)

        return app

    async def once(app):
        before = len(counts)
        async with started(app):
            publish(app, "in", ["x"])
            await until(lambda: len(counts) == before + 1)

    await once(build())
    thread = threading.Thread(target=lambda: asyncio.run(once(build())))
    thread.start()
    await until(lambda: not thread.is_alive())
    assert counts == [1, 2]


async def test_a_value_is_what_it_was_when_it_was_put(app):
    seen = []

    @app.agent("in")
    async def look(ctx):
        state = ctx.state()
        seen.append(await state.get("list"))
        value = [1]
        await state.put("list", value)
        value.append("changed afterwards")
        got = await state.get("list")
        seen.append(list(got))
        got.append("changed too")
        seen.append(await state.get("list"))

    publish(app, "in", [1, 2])
    async with started(app):
        await until(lambda: processed(app, "look") == 2)
    assert seen == [None, [1], [1], [1], [1], [1]]


async def test_keys_of_different_types_are_different_keys(app):
    seen = []

    @app.agent("in", key="k", on_error="skip")
    async def look(ctx):
        n = (await ctx.state().get("n") or 0) + 1
        await ctx.state().put("n", n)
        seen.append((ctx.message["k"], n))

    keys = [1, "1", True, -1, 2**40, "", "1", 1]
    publish(app, "in", [{"k": key} for key in keys])
    async with started(app):
        await until(lambda: len(seen) == len(keys))
    expected = [(1, 1), ("1", 1), (True, 1), (-1, 1), (2**40, 1), ("", 1), ("1", 2), (1, 2)]
    assert sorted(map(repr, seen)) == sorted(map(repr, expected))


async def test_many_namespaces_with_odd_names_do_not_mix(backend):
    ctx = AgentContext(message=None, state_backend=backend)
    names = ["default", "a", "a/b", "a.b", "A", "", "ключ", " ", "a\nb", "x" * 200]
    for number, name in enumerate(names):
        await ctx.state(name).put("k", number)
    assert [await ctx.state(name).get("k") for name in names] == list(range(len(names)))


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_a_namespace_made_while_running_survives_a_restart(kind, memory_url, tmp_path):
    found = []

    def build():
        app = App(
            "shop",
            broker=memory_url,
            state="memory" if kind == "memory" else str(tmp_path / "state"),
            checkpoint_dir=tmp_path / "checkpoints",
        )

        @app.agent("in")
        async def look(ctx):
            found.append([await ctx.state(f"ns-{n}").get("k") for n in range(3)])
            await ctx.state(f"ns-{ctx.message}").put("k", ctx.message)

        return app

    for number in range(3):
        app = build()
        publish(app, "in", [number])
        async with started(app):
            await until(lambda number=number: len(found) == number + 1)
    assert found == [[None, None, None], [0, None, None], [0, 1, None]]


def test_the_context_of_a_record_has_all_that_init_gives_one(backend):
    headers, clock, timers = (("trace", b"1"),), ManualClock(), CallTimers("shop.check", fires=False)
    row = Row(b'{"a":1}', b"k", 7, 3, 42, headers, "payments", value={"a": 1}, scope=b"scope")
    fast = record_context(row, backend, "shop.check", "shop.check/", clock, timers)
    made = AgentContext(
        {"a": 1},
        backend,
        payload=b'{"a":1}',
        key=b"k",
        headers=headers,
        timestamp=7,
        topic="payments",
        partition=3,
        offset=42,
        agent_id="shop.check",
        buffered=True,
        scope=b"scope",
        prefix="shop.check/",
        clock=clock,
        timers=timers,
    )
    shown = [name for name in AgentContext.__slots__ if name != "_raw"] + ["payload"]
    assert [getattr(fast, name) for name in shown] == [getattr(made, name) for name in shown]
