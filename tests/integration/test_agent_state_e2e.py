"""Agents and state through a whole App (row 0.14): persistence across messages and restarts, sharing between agents."""

import asyncio
import re
import shutil

import pyarrow as pa
import pytest

from sabot import App, CorruptCheckpoint
from sabot.connectors.files import NdjsonSink, NdjsonSource
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.state import BackendConfig, MemoryBackend, RocksDBBackend, ValueState
from tools.agent_tools import (
    PATIENCE,
    bounded,
    checkpoint,
    crash_image,
    manifest_files,
    processed,
    publish,
    read_lines,
    records,
    started,
    until,
    values,
    write_lines,
)

pytestmark = pytest.mark.integration

KINDS = ["memory", "rocksdb"]


def options(kind, root):
    """App options that keep checkpoints under root/checkpoints with this kind of state."""
    state = "memory" if kind == "memory" else f"rocksdb://{root / 'state'}"
    return {"state": state, "checkpoint_dir": root / "checkpoints"}


def backend_of(kind, root):
    if kind == "memory":
        return MemoryBackend(BackendConfig(backend_type="memory"))
    return RocksDBBackend(BackendConfig(backend_type="rocksdb", path=root / "db"))


@pytest.mark.parametrize("kind", KINDS)
async def test_agent_state_persistence(kind, memory_url, tmp_path):
    """Document 000, step 2.4, with the messages really sent."""
    backend = backend_of(kind, tmp_path)
    app = App("test-app", broker=memory_url)
    app.state_backend = backend

    @app.agent(topic="counter-topic", sink="counts")
    async def counter_agent(ctx):
        current = await ctx.state().get("count") or 0
        await ctx.state().put("count", current + 1)
        return current + 1

    publish(app, "counter-topic", ["x"] * 25)
    async with started(app):
        await until(lambda: len(records(app, "counts")) == 25)
    assert values(app, "counts") == list(range(1, 26))
    assert await ValueState(backend, "default").get("count") == 25
    await backend.close()


async def test_multiple_agents_share_state(memory_url):
    """Document 000, step 2.4."""
    app = App("test-app", broker=memory_url)
    app.state_backend = MemoryBackend(BackendConfig(backend_type="memory"))

    @app.agent(topic="writer-topic")
    async def writer_agent(ctx):
        await ctx.state().put("shared", ctx.message)

    @app.agent(topic="reader-topic", sink="read")
    async def reader_agent(ctx):
        return await ctx.state().get("shared")

    async with started(app):
        publish(app, "writer-topic", [{"n": 1}])
        await until(lambda: processed(app, "writer_agent") == 1)
        publish(app, "reader-topic", ["?"])
        await until(lambda: values(app, "read") == [{"n": 1}])


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_file_app_that_is_stopped_half_way_goes_on_with_state_and_position(kind, memory_url, tmp_path):
    lines = write_lines(tmp_path / "in.ndjson", range(1000))
    counts = []

    def build(pause_at):
        app = App("counter", broker=memory_url, **options(kind, tmp_path))

        @app.agent(NdjsonSource(lines))
        async def count(ctx):
            n = (await ctx.state().get("n") or 0) + 1
            await ctx.state().put("n", n)
            if ctx.message == pause_at:
                await asyncio.Event().wait()
            counts.append((ctx.message, n))

        return app

    async with started(build(pause_at=500)):
        await until(lambda: len(counts) == 500)
    await bounded(build(pause_at=None).run())
    assert counts == [(n, n + 1) for n in range(1000)]


@pytest.mark.parametrize("kind", ["rocksdb"])
async def test_keyed_state_comes_back_for_each_key(kind, memory_url, tmp_path):
    rows = [{"account": f"a{n % 7}", "n": n} for n in range(700)]
    lines = write_lines(tmp_path / "in.ndjson", rows)
    totals = {}

    def build(pause_at):
        app = App("counter", broker=memory_url, **options(kind, tmp_path))

        @app.agent(NdjsonSource(lines), key="account", concurrency=3)
        async def count(ctx):
            if ctx.message["n"] == pause_at:
                await asyncio.Event().wait()
            n = (await ctx.state().get("n") or 0) + 1
            await ctx.state().put("n", n)
            totals.setdefault(ctx.message["account"], []).append(n)

        return app

    async with started(build(pause_at=350)):
        await until(lambda: sum(map(len, totals.values())) >= 300)
    await bounded(build(pause_at=None).run())
    assert totals == {f"a{n}": list(range(1, 101)) for n in range(7)}


async def test_a_finished_app_started_again_says_that_it_is_complete(memory_url, tmp_path, caplog):
    lines = write_lines(tmp_path / "in.ndjson", range(10))
    seen = []

    def build():
        app = App("counter", broker=memory_url, **options("rocksdb", tmp_path))

        @app.agent(NdjsonSource(lines))
        async def count(ctx):
            seen.append(ctx.message)

        return app

    await bounded(build().run())
    with caplog.at_level("INFO"):
        await bounded(build().run())
    assert seen == list(range(10))
    assert re.search("complete|ended", caplog.text)
    assert "fresh" in caplog.text
    fresh = build()
    fresh.configure(fresh=True)
    await bounded(fresh.run())
    assert seen == list(range(10)) * 2


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
async def test_a_corrupt_manifest_is_named_and_nothing_is_lost(kind, damage, memory_url, tmp_path):
    seen = []

    def build():
        app = App("counter", broker=memory_url, **options(kind, tmp_path))

        @app.agent("in", sink="out")
        async def count(ctx):
            n = (await ctx.state().get("n") or 0) + 1
            await ctx.state().put("n", n)
            seen.append((ctx.message, n))
            return ctx.message

        return app

    app = build()
    publish(app, "in", list(range(50)))
    async with started(app):
        await until(lambda: len(seen) == 50)
    publish(app, "in", list(range(50, 100)))
    found = manifest_files(tmp_path / "checkpoints")
    assert found
    good = {path: path.read_bytes() for path in found}
    for path, content in good.items():
        bad = {"garbage": b"\x00garbage", "truncated": content[: len(content) // 2], "empty": b""}[damage]
        path.write_bytes(bad)
    with pytest.raises(CorruptCheckpoint) as raised:
        await bounded(build().start())
    assert str(found[-1]) in str(raised.value)
    assert len(seen) == 50
    for path, content in good.items():
        path.write_bytes(content)
    async with started(build()):
        await until(lambda: len(seen) >= 100)
    assert seen == [(n, n + 1) for n in range(100)]


async def test_a_damaged_state_file_is_named(memory_url, tmp_path):
    lines = write_lines(tmp_path / "in.ndjson", range(100))

    def build():
        app = App("counter", broker=memory_url, **options("rocksdb", tmp_path))

        @app.agent(NdjsonSource(lines))
        async def count(ctx):
            await ctx.state().put(str(ctx.message), ctx.message)

        return app

    await bounded(build().run())
    contents = CheckpointStorage(tmp_path / "checkpoints").latest().contents
    files = [tmp_path / "checkpoints" / file.name for path, file in contents.items() if path.endswith(".sst")]
    assert files
    for path in files:
        damaged = path.read_bytes()[:-1] + b"\x00\x01"
        path.unlink()  # it may be a hard link
        path.write_bytes(damaged)
    with pytest.raises(CorruptCheckpoint, match=r"\.sst"):
        await bounded(build().run())


async def test_a_source_that_moved_under_its_checkpoint_is_an_error(memory_url, tmp_path):
    lines = write_lines(tmp_path / "in.ndjson", range(1000))
    seen = []

    def build(pause_at=None):
        app = App("counter", broker=memory_url, **options("rocksdb", tmp_path))

        @app.agent(NdjsonSource(lines))
        async def count(ctx):
            if ctx.message == pause_at:
                await asyncio.Event().wait()
            seen.append(ctx.message)

        return app

    async with started(build(pause_at=600)):
        await until(lambda: len(seen) == 600)
    write_lines(lines, range(10))
    with pytest.raises(Exception, match=r"in\.ndjson"):
        await asyncio.wait_for(build().run(), PATIENCE)


# DESIGN.md, decision 10: one owner, one cut. The crash is a copy of the complete checkpoints, taken while the app runs.


@pytest.mark.one_in(2, "a third of a second of a core each")
@pytest.mark.parametrize("kind", KINDS)
async def test_no_write_of_two_agents_that_share_state_is_lost_where_its_offset_is_covered(kind, memory_url, tmp_path):
    """One agent writes what the other reads and marks. Snapshots of the two apart would lose what is between them: a
    line whose offset is covered, and whose write is not in the state.
    """
    rows = 200
    puts = write_lines(tmp_path / "puts.ndjson", range(rows))
    marks = write_lines(tmp_path / "marks.ndjson", range(rows))

    def build(root, trace, gate):
        app = App("pair", broker=memory_url, checkpoint_dir=root / "checkpoints")
        app.state_backend = backend_of(kind, root)

        @app.agent(NdjsonSource(puts))
        async def writer(ctx):
            n = str(ctx.message)
            trace.append(("put", ctx.message, await ctx.state().get(n)))
            await ctx.state().put(n, "put")
            await gate.acquire()

        @app.agent(NdjsonSource(marks))
        async def reader(ctx):
            n = str(ctx.message)
            while await ctx.state().get(n) is None:  # noqa: ASYNC110 - until the writer has come this far
                await asyncio.sleep(0.001)
            trace.append(("mark", ctx.message, await ctx.state("marks").get(n)))
            await ctx.state().put(n, "put and marked")
            await ctx.state("marks").put(n, 1)

        return app

    gate, trace, images = asyncio.Semaphore(0), [], []
    app = build(tmp_path / "first", trace, gate)

    async def crash():
        await checkpoint(app)
        target = tmp_path / f"crash-{len(images)}" / "checkpoints"
        images.append(crash_image(tmp_path / "first" / "checkpoints", target))

    async with started(app):
        for done in (50, 100, 150):
            for _ in range(50):
                gate.release()
            await until(lambda done=done: len(trace) > 2 * done - 60)
            await crash()  # somewhere
            await until(lambda done=done: len(trace) == 2 * done + 1)
            await crash()  # the writer inside its call, with an unfinished put, the reader waiting for it
        for _ in range(rows):
            gate.release()
    await app.state_backend.close()

    for image in images:
        trace = []
        app = build(image.parent, trace, asyncio.Semaphore(rows))
        await bounded(app.run())
        put_again = [n for kind_, n, _ in trace if kind_ == "put"]
        marked_again = [n for kind_, n, _ in trace if kind_ == "mark"]
        assert 0 < len(put_again) < rows
        assert put_again == list(range(rows - len(put_again), rows))
        assert marked_again == list(range(rows - len(marked_again), rows))
        assert {found for _, _, found in trace} == {None}, "a line that is read again was in the state already"
        state, marked = ValueState(app.state_backend, "default"), ValueState(app.state_backend, "marks")
        assert [n for n in range(rows) if await state.get(str(n)) != "put and marked"] == []
        assert [n for n in range(rows) if await marked.get(str(n)) != 1] == []
        await app.state_backend.close()


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keyed", [False, True], ids=["one_state", "keyed"])
async def test_a_put_before_an_await_at_a_barrier_is_not_applied_twice(kind, keyed, memory_url, tmp_path):
    lines = write_lines(tmp_path / "in.ndjson", [{"k": "one", "n": n} for n in range(10)])
    hanging, free = asyncio.Event(), asyncio.Event()

    def build(root, counts, pause_at=None):
        app = App("counter", broker=memory_url, **options(kind, root))

        @app.agent(NdjsonSource(lines), key="k" if keyed else None)
        async def count(ctx):
            n = (await ctx.state().get("n") or 0) + 1
            await ctx.state().put("n", n)
            if ctx.message["n"] == pause_at:
                hanging.set()
                await bounded(free.wait())
            counts.append((ctx.message["n"], n))

        return app

    first = []
    app = build(tmp_path / "first", first, pause_at=4)
    async with started(app):
        await bounded(hanging.wait())
        await checkpoint(app)
        image = crash_image(tmp_path / "first" / "checkpoints", tmp_path / "crash" / "checkpoints")
        assert first == [(n, n + 1) for n in range(4)]
        free.set()  # the crash is taken; a call that hangs would only hold up the stop
    again = []
    await bounded(build(image.parent, again).run())
    assert again == [(n, n + 1) for n in range(4, 10)]


@pytest.mark.parametrize("kind", KINDS)
async def test_of_calls_in_flight_at_a_barrier_each_is_in_the_state_or_done_again(kind, memory_url, tmp_path):
    """Eight lanes, some calls ended and some not: after the crash every key has counted every line exactly once."""
    rows = [{"k": f"k{n % 16}", "n": n} for n in range(320)]
    lines = write_lines(tmp_path / "in.ndjson", rows)
    stuck, inside, free = {"k3", "k8", "k11"}, asyncio.Event(), asyncio.Event()

    def build(root, counts, stick):
        app = App("counter", broker=memory_url, **options(kind, root))

        @app.agent(NdjsonSource(lines), key="k", concurrency=8)
        async def count(ctx):
            who = ctx.message["k"]
            n = (await ctx.state().get("n") or 0) + 1
            await ctx.state().put("n", n)
            if stick and who in stuck and n > 5:
                inside.set()
                await bounded(free.wait())
            await asyncio.sleep(0)
            counts.setdefault(who, []).append(n)

        return app

    first = {}
    app = build(tmp_path / "first", first, stick=True)
    async with started(app):
        await bounded(inside.wait())
        await checkpoint(app)
        image = crash_image(tmp_path / "first" / "checkpoints", tmp_path / "crash" / "checkpoints")
        seen = {who: list(numbers) for who, numbers in first.items()}
        free.set()
    again = {}
    await bounded(build(image.parent, again, stick=False).run())
    assert stuck <= set(again)
    for who in (f"k{n}" for n in range(16)):
        counted = again.get(who, [])
        assert counted == list(range(20 - len(counted) + 1, 21)), who
        assert 20 - len(counted) <= len(seen.get(who, ())), f"{who}: more is in the state than had ended"


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("kind", KINDS)
async def test_what_waits_in_a_channel_between_two_agents_at_a_barrier_is_in_the_checkpoint(kind, memory_url, tmp_path):
    lines = write_lines(tmp_path / "in.ndjson", range(200))

    free = asyncio.Event()

    def build(root, counts, stop_at=None):
        app = App("chain", broker=memory_url, **options(kind, root))

        @app.agent("second-in")
        async def second(ctx):
            if stop_at is not None and ctx.message >= stop_at:
                await bounded(free.wait())
            n = (await ctx.state().get(f"n{ctx.message % 5}") or 0) + 1
            await ctx.state().put(f"n{ctx.message % 5}", n)
            counts[ctx.message % 5] = n

        @app.agent(NdjsonSource(lines), sink=second)
        async def first(ctx):
            return ctx.message

        return app

    app = build(tmp_path / "first", {}, stop_at=60)
    async with started(app):
        await until(lambda: processed(app, "second") == 60)
        await checkpoint(app)
        image = crash_image(tmp_path / "first" / "checkpoints", tmp_path / "crash" / "checkpoints")
        free.set()
    counts = {}
    async with started(build(image.parent, counts)):
        await until(lambda: counts == dict.fromkeys(range(5), 40))


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_batch_whose_call_is_unfinished_at_a_barrier_is_done_again_and_not_twice(kind, memory_url, tmp_path):
    lines = write_lines(tmp_path / "in.ndjson", [{"n": n} for n in range(1000)])
    hanging, free = asyncio.Event(), asyncio.Event()

    def build(root, totals, hang):
        app = App("batches", broker=memory_url, **options(kind, root))

        @app.agent(NdjsonSource(lines), batch=True)
        async def count(batch, ctx):
            keys = pa.array(["rows"])
            total = (ctx.state().get_many(keys)[0].as_py() or 0) + batch.num_rows
            ctx.state().put_many(keys, pa.array([total]))
            if hang:
                hanging.set()
                await bounded(free.wait())
            totals.append(total)

        return app

    app = build(tmp_path / "first", [], hang=True)
    async with started(app):
        await bounded(hanging.wait())
        await checkpoint(app)
        image = crash_image(tmp_path / "first" / "checkpoints", tmp_path / "crash" / "checkpoints")
        free.set()
    totals = []
    await bounded(build(image.parent, totals, hang=False).run())
    assert totals[-1] == 1000


@pytest.mark.parametrize("kind", ["memory"])
async def test_a_record_that_waits_for_its_next_attempt_at_a_barrier_is_not_lost(kind, memory_url, tmp_path):
    lines = write_lines(tmp_path / "in.ndjson", range(10))

    def build(root, counts, calls, broken):
        app = App("patient", broker=memory_url, **options(kind, root))

        @app.agent(NdjsonSource(lines), on_error="retry", retries=3, backoff="1h")
        async def count(ctx):
            calls.append(ctx.message)
            n = (await ctx.state().get("n") or 0) + 1
            await ctx.state().put("n", n)
            if broken and ctx.message == 4:
                raise ConnectionError("not yet")
            counts.append((ctx.message, n))

        return app

    calls, again = [], []
    app = build(tmp_path / "first", [], calls, broken=True)
    async with started(app):
        await until(lambda: calls == [0, 1, 2, 3, 4])
        await checkpoint(app)
        image = crash_image(tmp_path / "first" / "checkpoints", tmp_path / "crash" / "checkpoints")
    await bounded(build(image.parent, again, [], broken=False).run())
    assert again == [(n, n + 1) for n in range(4, 10)]


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("kind", KINDS)
async def test_the_record_of_a_failed_agent_stays_in_the_later_checkpoints(kind, memory_url, tmp_path):
    """The other agent goes on, and its checkpoints must still hold where the failed one stands."""
    files = {name: write_lines(tmp_path / f"{name}.ndjson", range(100)) for name in ("bad", "good")}
    free = asyncio.Event()

    def build(root, trace, broken):
        app = App("pair", broker=memory_url, **options(kind, root))

        async def count(ctx, name):
            n = (await ctx.state(name).get("n") or 0) + 1
            await ctx.state(name).put("n", n)
            if broken and name == "bad" and ctx.message == 30:
                raise ValueError("thirty")
            trace.append((name, ctx.message, n))

        @app.agent(NdjsonSource(files["bad"]))
        async def bad(ctx):
            await count(ctx, "bad")

        @app.agent(NdjsonSource(files["good"]))
        async def good(ctx):
            if broken and ctx.message == 60:
                await bounded(free.wait())
            await count(ctx, "good")

        return app

    trace = []
    app = build(tmp_path / "first", trace, broken=True)
    async with started(app):
        await until(lambda: len(trace) == 90)
        await checkpoint(app)
        image = crash_image(tmp_path / "first" / "checkpoints", tmp_path / "crash" / "checkpoints")
        free.set()
    again = []
    await bounded(build(image.parent, again, broken=False).run())
    assert [row for row in again if row[0] == "bad"] == [("bad", n, n + 1) for n in range(30, 100)]
    assert [row for row in again if row[0] == "good"] == [("good", n, n + 1) for n in range(60, 100)]


@pytest.mark.slow  # a second of a core, or more
async def test_results_that_wait_for_their_sink_at_a_barrier_are_written_after_a_crash(memory_url, tmp_path):
    """At least once, whatever the sink had taken at the crash: every line's result is in the file in the end."""
    lines, out = write_lines(tmp_path / "in.ndjson", range(3000)), tmp_path / "out.ndjson"

    def build(root, out):
        app = App("copy", broker=memory_url, **options("memory", root))

        @app.agent(NdjsonSource(lines), sink=NdjsonSink(out), delivery="at_least_once")
        async def copy(ctx):
            await asyncio.sleep(0)
            yield ctx.message
            yield -ctx.message

        return app

    app = build(tmp_path / "first", out)
    images = []
    async with started(app):
        for crash in range(3):
            await until(lambda crash=crash: processed(app, "copy") > crash * 700 + 100)
            await checkpoint(app)
            image = crash_image(tmp_path / "first" / "checkpoints", tmp_path / f"crash-{crash}" / "checkpoints")
            shutil.copy(out, image.parent / "out.ndjson")
            images.append(image)
    for image in images:
        out = image.parent / "out.ndjson"
        lines_of_crash = out.read_text().split("\n")
        out.write_text("".join(line + "\n" for line in lines_of_crash[:-1]))  # the last may be half written
        await bounded(build(image.parent, out).run())
        written = read_lines(out)
        assert set(written) == {sign * n for n in range(3000) for sign in (1, -1)}
