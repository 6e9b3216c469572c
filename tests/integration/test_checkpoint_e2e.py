"""Checkpoints through whole apps (row 0.16): end to end, several agents, failures that cost only themselves."""

import asyncio
import contextlib
import shutil

import pytest

from sabot import App
from sabot.connectors.files import NdjsonSink, NdjsonSource
from sabot.engine.state import BackendConfig, MemoryBackend, ValueState
from sabot.errors import CheckpointFailed
from tools.agent_tools import (
    bounded,
    checkpoint,
    crash_image,
    manifest_files,
    manifests,
    processed,
    publish,
    read_lines,
    started,
    state_of,
    until,
    write_lines,
)

pytestmark = pytest.mark.integration

KINDS = ["memory", "rocksdb"]


class CountingBackend(MemoryBackend):
    """A user's own backend that counts its snapshots."""

    def __init__(self):
        super().__init__(BackendConfig(backend_type="memory"))
        self.awaited = 0

    async def snapshot(self):
        taken = await super().snapshot()
        await asyncio.sleep(0)
        self.awaited += 1
        return taken


def options(kind, root):
    state = "memory" if kind == "memory" else str(root / "state")
    return {"state": state, "checkpoint_dir": root / "checkpoints"}


async def test_checkpoint_end_to_end(memory_url):
    """Document 000, step 2.6, with every comment of it done."""
    backend = CountingBackend()
    app = App("test-app", broker=memory_url)
    app.state_backend = backend

    @app.agent(topic="test-topic")
    async def stateful_agent(ctx):
        count = await ctx.state().get("count") or 0
        await ctx.state().put("count", count + 1)

    publish(app, "test-topic", ["x"] * 10)
    async with started(app):
        await until(lambda: processed(app, "stateful_agent") == 10)
        first = await checkpoint(app)
        assert backend.awaited == 1
        publish(app, "test-topic", ["x"] * 5)
        await until(lambda: processed(app, "stateful_agent") == 15)
        second = await checkpoint(app)
        assert backend.awaited == 2
    assert 0 < first < second
    assert await ValueState(backend, "default").get("count") == 15


async def test_multiple_agents_checkpoint(memory_url, tmp_path):
    """Document 000, step 2.6: all agents take part, seen in what comes back."""
    files = {name: write_lines(tmp_path / f"{name}.ndjson", range(100)) for name in ("agent1", "agent2", "agent3")}

    def build(root, trace, go_on):
        app = App("test-app", broker=memory_url, **options("rocksdb", root))

        async def count(ctx, name):
            if ctx.message == 40:
                await bounded(go_on.wait())
            n = (await ctx.state(name).get("n") or 0) + 1
            await ctx.state(name).put("n", n)
            trace[name].append((ctx.message, n))

        @app.agent(NdjsonSource(files["agent1"]))
        async def agent1(ctx):
            await count(ctx, "agent1")

        @app.agent(NdjsonSource(files["agent2"]))
        async def agent2(ctx):
            await count(ctx, "agent2")

        @app.agent(NdjsonSource(files["agent3"]))
        async def agent3(ctx):
            await count(ctx, "agent3")

        return app

    go_on = asyncio.Event()
    trace = {name: [] for name in files}
    app = build(tmp_path / "first", trace, go_on)
    async with started(app):
        await until(lambda: all(len(seen) == 40 for seen in trace.values()))
        await checkpoint(app)
        image = crash_image(tmp_path / "first" / "checkpoints", tmp_path / "crash" / "checkpoints")
        go_on.set()
    again = {name: [] for name in files}
    await bounded(build(image.parent, again, go_on).run())
    assert again == {name: [(n, n + 1) for n in range(40, 100)] for name in files}


async def test_multiple_agents_of_different_kinds_all_acknowledge(memory_url):
    """With and without key, with and without state, record and batch, chained: one trigger waits for all of them."""
    app = App("test-app", broker=memory_url, state="memory")

    @app.agent("last")
    async def last(ctx):
        await ctx.state().put("n", 1)

    @app.agent("keyed", key="k", concurrency=4, sink=last)
    async def keyed(ctx):
        await ctx.state().put("n", 1)
        return ctx.message

    @app.agent("batch", batch=True, sink="out")
    def batch(rows, ctx):
        return rows

    @app.agent(["plain", "other"])
    async def plain(ctx):
        return None

    async with started(app):
        ids = [await checkpoint(app)]
        publish(app, "keyed", [{"k": n} for n in range(50)])
        publish(app, "batch", [{"n": n} for n in range(50)])
        publish(app, "other", list(range(50)))
        ids.append(await checkpoint(app))
        await until(lambda: [processed(app, name) for name in ("last", "keyed", "batch", "plain")] == [50] * 4)
        ids.append(await checkpoint(app))
    assert ids == sorted(set(ids))


async def test_multiple_agents_go_on_when_some_have_come_to_their_end(memory_url, tmp_path):
    """An ended agent has nothing to acknowledge; what it left is still in the later checkpoints."""
    short, long = write_lines(tmp_path / "short.ndjson", range(5)), write_lines(tmp_path / "long.ndjson", range(100))

    def build(root, trace, go_on):
        app = App("test-app", broker=memory_url, **options("rocksdb", root))

        @app.agent(NdjsonSource(short))
        async def ends(ctx):
            await ctx.state("short").put(str(ctx.message), 1)
            trace.append(("ends", ctx.message))

        @app.agent(NdjsonSource(long), key=None)
        async def goes_on(ctx):
            if ctx.message == 50:
                await bounded(go_on.wait())
            left = sum([await ctx.state("short").get(str(n)) or 0 for n in range(5)])
            trace.append(("goes_on", ctx.message, left))

        return app

    go_on, trace = asyncio.Event(), []
    app = build(tmp_path / "first", trace, go_on)
    async with started(app):
        await until(lambda: len(trace) == 55)
        await checkpoint(app)
        await checkpoint(app)
        image = crash_image(tmp_path / "first" / "checkpoints", tmp_path / "crash" / "checkpoints")
        go_on.set()
    again = []
    await bounded(build(image.parent, again, go_on).run())
    assert again == [("goes_on", n, 5) for n in range(50, 100)]


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("kind", KINDS)
async def test_each_checkpoint_of_a_running_app_is_a_place_to_go_on_from(kind, memory_url, tmp_path):
    """Crashes at checkpoints that fall anywhere: the count in the state always fits the position."""
    rows = 3000
    lines = write_lines(tmp_path / "in.ndjson", [{"k": f"k{n % 13}", "n": n} for n in range(rows)])

    def build(root, trace):
        app = App("counter", broker=memory_url, **options(kind, root))

        @app.agent(NdjsonSource(lines), key="k", concurrency=4)
        async def count(ctx):
            n = (await ctx.state().get("n") or 0) + 1
            await asyncio.sleep(0)
            await ctx.state().put("n", n)
            trace[ctx.message["n"]] = n

        return app

    trace, images = {}, []
    app = build(tmp_path / "first", trace)
    async with started(app):
        for crash in range(5):
            await until(lambda crash=crash: len(trace) > crash * 500)
            await checkpoint(app)
            target = tmp_path / f"crash-{crash}" / "checkpoints"
            images.append(crash_image(tmp_path / "first" / "checkpoints", target))
        await until(lambda: len(trace) == rows)
    expected = {n: n // 13 + 1 for n in range(rows)}
    assert trace == expected
    for image in images:
        again = {}
        await bounded(build(image.parent, again).run())
        assert again.items() <= expected.items()
        assert len(again) < rows or image is images[0]
        assert max(again, default=rows - 1) == rows - 1


async def test_periodic_checkpoints_of_a_tenth_of_a_second_work(memory_url, tmp_path):
    app = App("counter", broker=memory_url, checkpoint_interval=0.1, **options("rocksdb", tmp_path))

    @app.agent("in")
    async def count(ctx):
        await ctx.state().put("n", ctx.message)

    publish(app, "in", [1])
    seen = set()
    async with started(app):

        def three():
            seen.update(manifests(tmp_path / "checkpoints"))
            return len(seen) >= 3

        await until(three)


async def test_a_failed_checkpoint_leaves_the_app_running_and_the_previous_one_valid(memory_url, tmp_path):
    """The directory cannot be written for a while: something else is in the way."""
    lines = write_lines(tmp_path / "in.ndjson", range(300))

    def build(root, trace, gate):
        app = App("counter", broker=memory_url, **options("memory", root))

        @app.agent(NdjsonSource(lines))
        async def count(ctx):
            await gate.acquire()
            n = (await ctx.state().get("n") or 0) + 1
            await ctx.state().put("n", n)
            trace.append((ctx.message, n))

        return app

    gate, trace = asyncio.Semaphore(100), []
    app = build(tmp_path / "first", trace, gate)
    directory = tmp_path / "first" / "checkpoints"
    async with started(app):
        await until(lambda: len(trace) == 100)
        good = await checkpoint(app)
        complete = next(path for path in manifest_files(directory) if int(path.name.split("-")[0]) == good)
        in_the_way = complete.with_name(complete.name.replace(f"{good:010d}-", f"{good + 1:010d}-"))
        in_the_way.mkdir()  # the name of the next manifest is taken
        (in_the_way / "stranger").write_text("not a checkpoint")
        for _ in range(100):
            gate.release()
        await until(lambda: len(trace) == 200)
        with pytest.raises(CheckpointFailed):
            await checkpoint(app)
        assert state_of(app, "count") == "running"
        assert complete.name in manifests(directory)
        target = crash_image(directory, tmp_path / "crash" / "checkpoints")
        shutil.rmtree(in_the_way)
        await checkpoint(app)
        for _ in range(100):
            gate.release()
        await until(lambda: len(trace) == 300)
    again = []
    await bounded(build(target.parent, again, asyncio.Semaphore(300)).run())
    assert again == [(n, n + 1) for n in range(100, 300)]


async def test_a_checkpoint_that_was_never_completed_is_no_place_to_go_on_from(memory_url, tmp_path):
    """A crash while a checkpoint is written leaves files without a manifest, or half of one: the one before it counts."""
    lines = write_lines(tmp_path / "in.ndjson", range(50))
    free = asyncio.Event()

    def build(root, trace, pause_at=None):
        app = App("counter", broker=memory_url, **options("rocksdb", root))

        @app.agent(NdjsonSource(lines))
        async def count(ctx):
            if ctx.message == pause_at:
                await bounded(free.wait())
            n = (await ctx.state().get("n") or 0) + 1
            await ctx.state().put("n", n)
            trace.append((ctx.message, n))

        return app

    trace = []
    app = build(tmp_path / "first", trace, pause_at=20)
    async with started(app):
        await until(lambda: len(trace) == 20)
        await checkpoint(app)
        image = crash_image(tmp_path / "first" / "checkpoints", tmp_path / "crash" / "checkpoints")
        free.set()
    complete = max(manifest_files(image))
    for name in (".tmp", ".json.tmp", "-0000000001.json.0123.tmp"):
        (image / "checkpoints" / f"0000000999{name}").write_bytes(complete.read_bytes()[:100])
    (image / "scratch" / "0000000999").mkdir(parents=True)
    again = []
    await bounded(build(image.parent, again).run())
    assert again == [(n, n + 1) for n in range(20, 50)]


async def test_results_in_a_file_are_all_there_after_a_crash(memory_url, tmp_path):
    """At least once: what a checkpoint covers was flushed before it."""
    lines, out = write_lines(tmp_path / "in.ndjson", range(500)), tmp_path / "out.ndjson"
    free = asyncio.Event()

    def build(root, out, pause_at=None):
        app = App("copy", broker=memory_url, **options("memory", root))

        @app.agent(NdjsonSource(lines), sink=NdjsonSink(out), delivery="at_least_once")
        async def copy(ctx):
            if ctx.message == pause_at:
                await bounded(free.wait())
            return ctx.message

        return app

    app = build(tmp_path / "first", out, pause_at=250)
    async with started(app):
        await until(lambda: processed(app, "copy") == 250)
        await checkpoint(app)
        image = crash_image(tmp_path / "first" / "checkpoints", tmp_path / "crash" / "checkpoints")
        shutil.copy(out, tmp_path / "crash" / "out.ndjson")
        free.set()
    await bounded(build(image.parent, tmp_path / "crash" / "out.ndjson").run())
    assert read_lines(tmp_path / "crash" / "out.ndjson") == list(range(500))


async def test_a_stop_while_a_checkpoint_is_under_way_ends(memory_url, tmp_path):
    app = App("counter", broker=memory_url, **options("rocksdb", tmp_path))

    @app.agent("in")
    async def count(ctx):
        await ctx.state().put("n", ctx.message)

    await app.start()
    publish(app, "in", list(range(100)))
    asked = asyncio.create_task(app.agent_runtime.trigger_checkpoint())
    await asyncio.sleep(0)
    await bounded(app.stop())
    with contextlib.suppress(CheckpointFailed):
        await bounded(asked)


@pytest.mark.slow  # thousands of lines; crashes of agents: test_random_crashes
@pytest.mark.parametrize("kind", KINDS)
async def test_a_chain_of_stateful_agents_counts_each_line_once_whenever_it_crashes(kind, memory_url, tmp_path):
    """File -> numbering agent with state of its own -> keyed agent with lanes: both states fit at every cut."""
    rows, keys = 1500, 11
    lines = write_lines(tmp_path / "in.ndjson", range(rows))

    free = asyncio.Event()

    def build(root, numbers, totals):
        app = App("chain", broker=memory_url, **options(kind, root))

        @app.agent("by-key", key="k", concurrency=4)
        async def count(ctx):
            n = (await ctx.state().get("n") or 0) + 1
            await ctx.state().put("n", n)
            for _ in range(ctx.message["number"] % 3):
                await asyncio.sleep(0)
            totals.setdefault(ctx.message["k"], []).append(n)

        @app.agent(NdjsonSource(lines), sink=count)
        async def number(ctx):
            if ctx.message == rows * 3 // 4:
                await bounded(free.wait())  # the rest is to come when it crashes
            n = (await ctx.state().get("number") or 0) + 1
            await ctx.state().put("number", n)
            await asyncio.sleep(0)
            numbers[ctx.message] = n
            yield {"k": ctx.message % keys, "number": n}
            yield {"k": f"again-{ctx.message % keys}", "number": n}

        return app

    expected = {}
    for line in range(rows):
        expected[line % keys] = expected[f"again-{line % keys}"] = line // keys + 1

    numbers, totals, images = {}, {}, []
    app = build(tmp_path / "first", numbers, totals)
    async with started(app):
        for crash in range(4):
            await until(lambda crash=crash: processed(app, "count") > crash * 600 + 50)
            await checkpoint(app)
            target = tmp_path / f"crash-{crash}" / "checkpoints"
            images.append(crash_image(tmp_path / "first" / "checkpoints", target))
        free.set()
        await until(lambda: processed(app, "count") == 2 * rows)
    assert {key: seen[-1] for key, seen in totals.items()} == expected
    for image in images:
        again, counted = {}, {}
        async with started(build(image.parent, again, counted)):
            await until(lambda counted=counted: {key: seen[-1] for key, seen in counted.items()} == expected)
        assert set(again) >= set(range(rows * 3 // 4, rows))
        assert all(again[line] == line + 1 for line in again)
        for key, seen in counted.items():
            assert seen == list(range(expected[key] - len(seen) + 1, expected[key] + 1)), key
