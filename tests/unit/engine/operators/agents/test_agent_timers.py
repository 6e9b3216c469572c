"""Timers of agents with key=: set in a call, due by the clock, called in order with the rows of their key, kept in checkpoints."""

import asyncio
import inspect
import random
import threading

import pyarrow as pa
import pytest

from sabot import AgentContext, App, UserError, col
from sabot._cython.text.records import state_key
from sabot.base.os_errors import restoring
from sabot.engine.operators import cuts
from sabot.engine.operators.agents.timers import KeyTimers, key_of, saved_timers
from sabot.engine.state import BackendConfig, MemoryBackend
from sabot.errors import CorruptCheckpoint
from sabot.testing import END, ManualClock, ScriptedSource
from tools.agent_tools import bounded, checkpoint, crash_image, publish, records, started, state_of, until, values


@pytest.fixture
def clock():
    return ManualClock(1000.0)


@pytest.fixture
def app(memory_url, clock):
    return App("shop", broker=memory_url, state="memory", clock=clock)


def at(clock, seconds):
    """A time so many seconds from now, in ms."""
    return int((clock.time() + seconds) * 1000)


def timers(app, name):
    """How many are set."""
    return app.statistics()["operators"][f"shop.{name}"]["timers"]


async def test_a_timer_fires_when_the_clock_reaches_it_and_not_before(app, clock):
    async def remind(timer, ctx):
        return {
            **ctx.message,
            "name": timer.name,
            "kind": timer.kind,
            "at": timer.at,
            "paid": await ctx.state().get("paid"),
        }

    @app.agent("orders", key="order", sink="reminders", on_timer=remind)
    async def watch(ctx):
        await ctx.state().put("paid", ctx.message["paid"])
        ctx.timers.processing(ctx.now() + 60_000, "soon")

    publish(app, "orders", [{"order": "a", "paid": 1}, {"order": 7, "paid": 2}])
    due = at(clock, 60)
    async with started(app):
        await until(lambda: timers(app, "watch") == 2)
        clock.advance(59.9)
        await asyncio.sleep(0.12)
        assert records(app, "reminders") == []
        clock.advance(0.1)
        await until(lambda: len(records(app, "reminders")) == 2)
        assert timers(app, "watch") == 0
    soon = {"name": "soon", "kind": "processing", "at": due}
    assert values(app, "reminders") == [{"order": "a", **soon, "paid": 1}, {"order": 7, **soon, "paid": 2}]
    assert [(each.key, each.timestamp) for each in records(app, "reminders")] == [(b"a", due), (b"7", due)]


@pytest.mark.parametrize("form", ["coroutine", "plain", "async generator", "generator"])
async def test_on_timer_may_be_of_any_form_that_the_agent_may_be_of(app, clock, form):
    async def coroutine(timer, ctx):
        await asyncio.sleep(0)
        return [timer.name]

    async def async_generator(timer, ctx):
        yield [timer.name]
        await asyncio.sleep(0)

    def generator(timer, ctx):
        yield [timer.name]
        yield None

    forms = {
        "coroutine": coroutine,
        "plain": lambda timer, ctx: [timer.name],
        "async generator": async_generator,
        "generator": generator,
    }

    @app.agent("in", key="k", sink="out", on_timer=forms[form])
    def agent(ctx):
        ctx.timers.processing(ctx.now(), "x")

    publish(app, "in", [{"k": 1}])
    async with started(app):
        await until(lambda: values(app, "out") == [["x"]])


async def test_they_fire_by_time_and_a_timer_that_is_set_twice_is_one(app, clock):
    fired = []

    @app.agent("in", key="k", on_timer=lambda timer, ctx: fired.append((timer.at, timer.name)))
    async def agent(ctx):
        for seconds, name in ((3, "c"), (1, "a"), (2, "b"), (1, "a"), (1, "b")):
            ctx.timers.processing(at(clock, seconds), name)

    publish(app, "in", [{"k": 1}])
    begin = at(clock, 0)
    async with started(app):
        await until(lambda: timers(app, "agent") == 4)
        clock.advance(5)
        await until(lambda: len(fired) == 4)
    assert [(at - begin, name) for at, name in fired] == [(1000, "a"), (1000, "b"), (2000, "b"), (3000, "c")]


async def test_a_deleted_timer_does_not_fire_and_deleting_one_that_is_not_there_is_fine(app, clock):
    fired = []

    @app.agent("in", key="k", on_timer=lambda timer, ctx: fired.append(timer.name))
    async def agent(ctx):
        for name in ctx.message.get("set", []):
            ctx.timers.processing(2_000_000, name)
        for name in ctx.message.get("delete", []):
            ctx.timers.delete(2_000_000, name)

    publish(
        app,
        "in",
        [{"k": 1, "set": ["a", "b"], "delete": ["b", "c"]}, {"k": 1, "set": ["d"]}, {"k": 2, "delete": ["a"]}],
    )
    publish(app, "in", [{"k": 1, "delete": ["d"]}])
    async with started(app):
        await until(lambda: app.statistics()["agents"]["shop.agent"]["messages_processed"] == 4)
        clock.advance(2000)
        await until(lambda: fired)
        assert timers(app, "agent") == 0
    assert fired == ["a"]


async def test_a_due_timer_that_waits_in_its_lane_can_still_be_deleted(app, clock):
    fired = []

    @app.agent("in", key="k", on_timer=lambda timer, ctx: fired.append(timer.name))
    async def agent(ctx):
        if ctx.message["n"] == 0:
            ctx.timers.processing(at(clock, 1), "a")
            ctx.timers.processing(at(clock, 1), "b")
        else:
            clock.advance(1)
            await until(
                lambda: app.statistics()["operators"]["shop.agent"]["rows"] == 3
            )  # both are due, behind this row
            ctx.timers.delete(at(clock, 0), "a")

    publish(app, "in", [{"k": 1, "n": 0}, {"k": 1, "n": 1}])
    async with started(app):
        await until(lambda: fired and not timers(app, "agent"))
    assert fired == ["b"]


async def test_a_call_that_fails_sets_nothing_and_deletes_nothing(memory_url, clock):
    app = App("shop", broker=memory_url, state="memory", clock=clock)
    fired, calls = [], []

    @app.agent(
        "in", key="k", on_error="retry", retries=1, backoff="1ms", on_timer=lambda timer, ctx: fired.append(timer.name)
    )
    async def agent(ctx):
        calls.append(ctx.message["do"])
        if ctx.message["do"] == "set":
            ctx.timers.processing(at(clock, 1), "kept")
        else:
            ctx.timers.processing(at(clock, 1), "of the failed call")
            ctx.timers.delete(at(clock, 1), "kept")
            raise ValueError("no")

    publish(app, "in", [{"k": 1, "do": "set"}, {"k": 1, "do": "fail"}])
    async with started(app):
        await until(lambda: len(records(app, "in.dlq")) == 1)
        assert calls == ["set", "fail", "fail"]
        assert timers(app, "agent") == 1
        clock.advance(1)
        await until(lambda: fired)
    assert fired == ["kept"]


async def test_a_timer_stands_in_order_with_the_rows_of_its_key(app, clock):
    seen = []

    async def on_timer(timer, ctx):
        seen.append(("timer", await ctx.state().get("n")))
        await ctx.state().put("n", "from the timer")

    @app.agent("in", key="k", concurrency=4, on_timer=on_timer)
    async def agent(ctx):
        n = ctx.message["n"]
        if n == 0:
            ctx.timers.processing(at(clock, 1))
        if n == 1:
            clock.advance(1)
            await until(lambda: app.statistics()["operators"]["shop.agent"]["rows"] == 2)  # this row and the timer
            publish(app, "in", [{"k": 1, "n": 2}])
            await until(lambda: app.statistics()["operators"]["shop.agent"]["rows"] == 3)
        seen.append((n, await ctx.state().get("n")))
        await ctx.state().put("n", n)

    publish(app, "in", [{"k": 1, "n": 0}, {"k": 1, "n": 1}])
    async with started(app):
        await until(lambda: len(seen) == 4)
    assert seen == [(0, None), (1, 0), ("timer", 1), (2, "from the timer")]


async def test_a_timer_may_set_itself_again(app, clock):
    fired = []

    def tick(timer, ctx):
        fired.append(timer.at)
        if len(fired) < 3:
            ctx.timers.processing(timer.at, timer.name)

    @app.agent("in", key="k", on_timer=tick)
    async def agent(ctx):
        ctx.timers.processing(5, "tick")

    publish(app, "in", [{"k": 1}])
    async with started(app):
        await until(lambda: fired == [5, 5, 5])
        await until(lambda: timers(app, "agent") == 0)


async def test_a_timer_whose_call_fails_is_a_dead_letter_that_says_which(memory_url, clock):
    app = App("shop", broker=memory_url, state="memory", clock=clock)

    def remind(timer, ctx):
        if ctx.message["order"] == "bad":
            raise ValueError("cannot remind")
        return timer.name

    @app.agent("orders", key="order", sink="out", on_error="skip", on_timer=remind)
    async def watch(ctx):
        ctx.timers.processing(2_000_000, "pay")

    publish(app, "orders", [{"order": "bad"}, {"order": "good"}])
    clock.advance(2000)
    async with started(app):
        await until(lambda: values(app, "out") == ["pay"])
        await until(lambda: records(app, "orders.dlq"))  # it has a thread of its own
        (letter,) = records(app, "orders.dlq")
        assert timers(app, "watch") == 0
    assert letter.value == {"order": "bad"}
    facts = dict(letter.headers)
    assert facts["sabot.step"] == b"the timer 'pay' at 2000000 of order 'bad'"
    assert (facts["sabot.error"], facts["sabot.message"]) == (b"ValueError", b"cannot remind")
    assert "sabot.offset" not in facts


async def test_with_on_error_fail_the_agent_stops_at_the_timer_and_the_next_start_calls_it_again(
    memory_url, clock, tmp_path
):
    def build(fails):
        app = App("shop", broker=memory_url, state="memory", checkpoint_dir=tmp_path / "checkpoints", clock=clock)

        def remind(timer, ctx):
            if fails:
                raise ValueError("cannot remind")
            return [timer.name, ctx.message]

        @app.agent("orders", key="order", sink="out", on_timer=remind)
        async def watch(ctx):
            ctx.timers.processing(5, "pay")

        return app

    app = build(True)
    publish(app, "orders", [{"order": 1}])
    async with started(app):
        await until(lambda: state_of(app, "watch") == "failed")
        assert "the timer 'pay' at 5 of order 1: ValueError" in app.agent_runtime.get_stats()["shop.watch"]["failure"]
    again = build(False)
    async with started(again):
        await until(lambda: values(again, "out") == [["pay", {"order": 1}]])


@pytest.mark.slow  # half a second of a core
async def test_timers_are_in_the_checkpoint_and_those_due_meanwhile_fire_at_the_start(memory_url, clock, tmp_path):
    """Also those that were in lanes at the barrier; and with another concurrency."""
    go_on = asyncio.Event()

    def build(directory, concurrency, on_timer):
        app = App("shop", broker=memory_url, state="memory", checkpoint_dir=directory, clock=clock)

        @app.agent("in", key="k", concurrency=concurrency, on_timer=on_timer)
        async def agent(ctx):
            for n in range(3):
                ctx.timers.processing(at(clock, n), f"t{n}")

        return app

    async def hang(timer, ctx):
        await go_on.wait()

    app = build(tmp_path / "first", 2, hang)
    publish(app, "in", [{"k": k} for k in range(100)])
    async with started(app):
        await until(lambda: timers(app, "agent") == 300 and app.statistics()["operators"]["shop.agent"]["rows"] == 100)
        await checkpoint(app)
        image = crash_image(tmp_path / "first", tmp_path / "second")
        go_on.set()
    fired = []
    clock.advance(1)
    again = build(image, 7, lambda timer, ctx: fired.append((ctx.message["k"], timer.name)))
    async with started(again):
        await until(lambda: len(fired) == 200)
        assert timers(again, "agent") == 100
        clock.advance(1)
        await until(lambda: len(fired) == 300)
    assert sorted(fired[:200]) == [(k, name) for k in range(100) for name in ("t0", "t1")]
    assert sorted(fired[200:]) == [(k, "t2") for k in range(100)]


async def test_timers_of_an_agent_that_has_no_on_timer_any_more_are_dropped_with_a_warning(
    memory_url, clock, tmp_path, caplog
):
    def build(on_timer):
        app = App("shop", broker=memory_url, state="memory", checkpoint_dir=tmp_path, clock=clock)

        @app.agent("in", key="k", **on_timer)
        async def agent(ctx):
            if on_timer:
                ctx.timers.processing(at(clock, 1))

        return app

    app = build({"on_timer": lambda timer, ctx: None})
    publish(app, "in", [{"k": 1}])
    async with started(app):
        await until(lambda: timers(app, "agent") == 1)
    async with started(build({})):
        pass
    assert "has no on_timer= any more; its timers are dropped" in caplog.text


@pytest.mark.slow  # half a second of a core
async def test_many_timers_that_are_due_at_once_go_into_the_lanes_in_slices(app, clock):
    most, fired = [0], [0]

    def on_timer(timer, ctx):
        fired[0] += 1
        most[0] = max(most[0], app.statistics()["operators"]["shop.agent"]["rows"])

    @app.agent("in", key="k", concurrency=3, on_timer=on_timer)
    async def agent(ctx):
        for n in range(1000):
            ctx.timers.processing(at(clock, 1), str(n))

    publish(app, "in", [{"k": k} for k in range(10)])
    async with started(app):
        await until(lambda: timers(app, "agent") == 10_000)
        clock.advance(1)
        await until(lambda: fired[0] == 10_000)
        await until(lambda: timers(app, "agent") == 0)
    assert 0 < most[0] <= 1024


async def test_when_all_inputs_have_ended_due_timers_fire_and_later_ones_are_dropped(memory_url, clock, tmp_path):
    app = App("shop", broker=memory_url, state="memory", checkpoint_dir=tmp_path, clock=clock)
    fired = []

    async def on_timer(timer, ctx):
        fired.append(timer.at)
        ctx.timers.processing(timer.at + 400_000)

    @app.agent(ScriptedSource([[{"k": 1, "at": 10}, {"k": 2, "at": 20}], END]), key="k", on_timer=on_timer)
    async def agent(ctx):
        ctx.timers.processing(ctx.message["at"])
        ctx.timers.processing(at(clock, 1000), "later")

    await bounded(app.run())
    assert sorted(fired) == [10, 20, 400_010, 400_020, 800_010, 800_020]  # the clock stands at 1,000,000 ms
    again = App("shop", broker=memory_url, state="memory", checkpoint_dir=tmp_path, clock=clock)
    with pytest.raises(UserError, match="no operator or agent"):
        again.state("shop.agent:timers").to_arrow()


async def test_an_agent_that_a_stream_feeds_has_timers(memory_url, clock):
    app = App("shop", broker=memory_url, state="memory", clock=clock)

    @app.agent(key="k", sink="out", on_timer=lambda timer, ctx: {"k": ctx.message["k"], "name": timer.name})
    async def agent(ctx):
        ctx.timers.processing(ctx.message["n"], f"n{ctx.message['n']}")

    rows = app.stream(ScriptedSource([[{"k": "a", "n": 2}, {"k": "b", "n": -1}, {"k": "a", "n": 1}], END]))
    rows.filter(col("n") > 0).to(agent)
    await bounded(app.run())
    assert values(app, "out") == [{"k": "a", "name": "n1"}, {"k": "a", "name": "n2"}]


async def test_a_stop_that_drains_fires_what_is_due_and_keeps_the_rest(memory_url, clock, tmp_path):
    app = App("shop", broker=memory_url, state="memory", checkpoint_dir=tmp_path, clock=clock)
    fired = []

    @app.agent("in", key="k", on_timer=lambda timer, ctx: fired.append(timer.name))
    async def agent(ctx):
        ctx.timers.processing(at(clock, 0), "now")
        ctx.timers.processing(at(clock, 1), "later")

    publish(app, "in", [{"k": 1}])
    await app.start()
    await until(lambda: app.statistics()["agents"]["shop.agent"]["messages_processed"] == 1)
    await app.stop(drain=True)
    assert fired == ["now"]
    clock.advance(1)
    async with started(app):
        await until(lambda: fired == ["now", "later"])


async def test_a_stopped_agent_fires_no_timers_until_it_goes_on(app, clock):
    fired = []

    @app.agent("in", key="k", on_timer=lambda timer, ctx: fired.append(timer.name))
    async def agent(ctx):
        ctx.timers.processing(at(clock, 1), "x")

    publish(app, "in", [{"k": 1}])
    async with started(app):
        await until(lambda: timers(app, "agent") == 1)
        await app.agent_runtime.agents["shop.agent"].stop()
        clock.advance(1)
        await asyncio.sleep(0.12)
        assert fired == []
        await app.agent_runtime.agents["shop.agent"].start()
        await until(lambda: fired == ["x"])


async def test_a_call_of_a_timer_that_takes_too_long_is_ended_by_timeout(memory_url):
    app = App("shop", broker=memory_url, state="memory")

    async def hang(timer, ctx):
        await asyncio.sleep(3600)

    @app.agent("in", key="k", timeout="20ms", on_error="skip", on_timer=hang)
    async def agent(ctx):
        ctx.timers.processing(0)

    publish(app, "in", [{"k": 1}])
    async with started(app):
        await until(lambda: records(app, "in.dlq"))
    assert dict(records(app, "in.dlq")[0].headers)["sabot.error"] == b"TimeoutError"


async def test_state_is_read_with_its_timers(memory_url, clock, tmp_path):
    app = App("shop", broker=memory_url, state="memory", checkpoint_dir=tmp_path, clock=clock)

    @app.agent("in", key="k", on_timer=nothing)
    async def agent(ctx):
        await ctx.state().put("n", 1)
        ctx.timers.processing(5_000_000, "b")
        ctx.timers.processing(4_000_000)

    publish(app, "in", [{"k": "x"}, {"k": "y"}])
    async with started(app):
        await until(lambda: timers(app, "agent") == 4)
    read = app.state("agent:timers").to_arrow()
    assert read.to_pylist() == [
        {"key": key, "name": name, "at": at} for key in ("x", "y") for name, at in (("b", 5_000_000), ("", 4_000_000))
    ]
    assert app.state("shop.agent:timers", key="y").to_arrow().num_rows == 2
    assert app.state("agent").to_arrow().num_rows == 2
    with pytest.raises(UserError, match=r"no operator or agent 'shop\.other:timers'"):
        app.state("shop.other:timers").to_arrow()


class Fired:
    """The timers of an agent without the agent: what is due stays in the lanes until `end`."""

    def __init__(self, clock):
        self.lanes = []
        self.timers = KeyTimers("agent a", clock, self.lanes.extend, lambda what, error: pytest.fail(str(error)))

    async def look(self):
        """What is due by the clock goes into lanes."""
        self.timers.stop()
        self.timers.start()
        for _ in range(3):
            await asyncio.sleep(0)

    def end(self, timer):
        self.lanes.remove(timer)
        self.timers.ended(timer)


def saved(cut, directory):
    directory.mkdir()
    cut.save(directory)
    cut.discard()
    return directory


async def test_a_cut_of_timers_is_of_its_barrier_whenever_it_is_saved(clock, tmp_path, monkeypatch):
    """Timers are set, deleted and fire beside three open cuts: one is saved at the same time, one in between, one at the end."""
    monkeypatch.setattr(cuts, "_PIECE_SLOTS", 3)
    rng, fired = random.Random(5), Fired(clock)
    pending, gone = set(), 0

    async def change(steps):
        nonlocal gone
        for _ in range(steps):
            scope = state_key(rng.randrange(60))
            changes = [
                (
                    rng.random() < 0.7,
                    at(clock, rng.randrange(-2, 60)),
                    rng.choice(["", "a", f"name {rng.randrange(20)}"]),
                )
                for _ in range(3)
            ]
            fired.timers.apply(scope, changes)
            for is_set, when, name in changes:
                (pending.add if is_set else pending.discard)((scope, when, name))
            if rng.random() < 0.3:
                clock.advance(0.5)
                await fired.look()
            for timer in fired.lanes[: rng.choice([0, 0, 20])]:
                pending.discard(timer)
                fired.end(timer)
                gone += 1
        assert len(fired.timers) == len(pending)

    await change(300)
    clock.advance(3)
    await fired.look()  # some wait in the lanes
    wanted = sorted((key_of(scope), name, when) for scope, when, name in pending)
    assert len(wanted) > 100
    assert len(fired.lanes) > 3
    beside, between, last = [fired.timers.cut() for _ in range(3)]
    saver = threading.Thread(target=saved, args=(beside, tmp_path / "beside"))
    saver.start()
    await change(300)
    saver.join()
    saved(between, tmp_path / "between")
    await change(600)
    saved(last, tmp_path / "last")
    assert gone > 300
    for name in ("beside", "between", "last"):
        assert sorted(saved_timers(tmp_path / name)) == wanted


@pytest.mark.parametrize("older", [False, True], ids=["of now", "of before"])
async def test_restored_timers_fire_in_the_order_of_before(older, clock, tmp_path):
    """Also those of a checkpoint that has them in order, without their places."""
    fired, times = Fired(clock), [at(clock, seconds) for seconds in (5, 3, 5, 3, 4)]
    for key in (7, 3, 9, 3, 7, 1, 20, 3):
        fired.timers.apply(state_key(key), [(True, when, f"{n} of {key}") for n, when in enumerate(times)])
    fired.timers.apply(state_key(9), [(False, when, f"{n} of 9") for n, when in enumerate(times)])
    fired.timers.apply(state_key(9), [(True, times[0], "again")])
    directory = saved(fired.timers.cut(), tmp_path / "saved")
    if older:
        with pa.ipc.open_stream((directory / "timers.arrow").read_bytes()) as reader:
            rows = (
                reader.read_all()
                .sort_by([("serial", "ascending"), ("order", "ascending")])
                .select(["key", "at", "name"])
            )
        with pa.OSFile(str(directory / "timers.arrow"), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
            writer.write_table(rows)
    restored = Fired(clock)
    restored.timers.load(directory)
    clock.advance(10)
    await fired.look()
    await restored.look()
    assert [key_of(scope) for scope, when, _ in fired.lanes if when == times[1]] == [7, 7, 3, 3, 1, 1, 20, 20]
    assert restored.lanes == fired.lanes
    assert len(fired.lanes) == 4 * 5 + 1


SAVED = {"key": state_key("x"), "at": 5, "name": "n", "serial": 1, "order": 1}


@pytest.mark.parametrize(
    "damage",
    [
        *({"key": key} for key in (b"", b"\0\0", state_key("x")[:-1], b"\0\0\xa1x", state_key(b"x"))),
        {"at": None},
        {"name": 7},
        {"at": "soon"},
        {"serial": None},
    ],
)
def test_a_file_that_holds_no_timers_is_refused(damage, tmp_path):
    for row, refused in ((SAVED, False), (SAVED | damage, True)):
        rows = pa.RecordBatch.from_pylist([row])
        with pa.OSFile(str(tmp_path / "timers.arrow"), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
            writer.write_batch(rows)
        if not refused:
            assert list(saved_timers(tmp_path)) == [("x", "n", 5)]
            continue
        with pytest.raises(CorruptCheckpoint), restoring("timers", tmp_path):
            list(saved_timers(tmp_path))


# What is refused


def nothing(timer, ctx):
    return None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_timer": nothing}, "without key=, or with batch=True"),
        ({"on_timer": nothing, "key": "k", "batch": True}, "without key=, or with batch=True"),
        ({"on_timer": "remind", "key": "k"}, "is not a function"),
    ],
)
def test_on_timer_is_of_record_agents_with_a_key(options, message):
    with pytest.raises(UserError, match=message):
        App("shop").agent("in", **options)(inspect.signature)


@pytest.mark.parametrize(
    ("set_it", "message"),
    [
        (lambda ctx: ctx.timers.event(5), "agents have no event time"),
        (lambda ctx: ctx.timers.delete(5, kind="event"), "agents have no event time"),
        (lambda ctx: ctx.timers.processing(5.5), "a timer is set to 5.5"),
        (lambda ctx: ctx.timers.processing(2**63), "a timer is set to"),
        (lambda ctx: ctx.timers.processing(5, "\ud800"), "timer: name"),
        (lambda ctx: ctx.timers.processing(5, 7), "timer: name"),
    ],
)
def test_what_is_no_timer_is_refused_where_it_is_set(set_it, message):
    with pytest.raises(UserError, match=message):
        set_it(AgentContext({"k": 1}, MemoryBackend(BackendConfig("memory"))))


async def test_a_timer_of_an_agent_without_on_timer_is_refused(app):
    @app.agent("in", key="k", on_error="skip")
    async def agent(ctx):
        ctx.timers.processing(5)

    publish(app, "in", [{"k": 1}])
    async with started(app):
        await until(lambda: records(app, "in.dlq"))
    assert b"there is no function for it" in dict(records(app, "in.dlq")[0].headers)["sabot.message"]
