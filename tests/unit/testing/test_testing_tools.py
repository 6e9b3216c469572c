"""The tools that are shipped for users' tests: scripts, the sink that keeps its rows, runs with several lives, the simulation."""

import asyncio
import subprocess
import sys
import threading
import time
from collections import Counter

import pyarrow as pa
import pytest

import sabot
from sabot import App, Batch, UserError, col
from sabot.clock import ManualClock
from sabot.connectors.base import Track
from sabot.errors import InternalError
from sabot.steps import step
from sabot.testing import BARRIER, CRASH, END, ListSink, ScriptedSource, run, simulate
from sabot.testing.connectors import dance as dances
from sabot.testing.connectors import place as places

A, B = {"k": "a", "n": 1}, {"k": "b", "n": 2}


def sums(script, sink, delivery=None, **options):
    """An app that adds up n by k: a row for each change."""

    def build(directory):
        app = App("sums", state="memory", checkpoint_dir=directory, **options)
        rows = app.stream(ScriptedSource(script))
        rows.key_by("k").aggregate(total=sabot.sum("n")).to(sink, delivery=delivery)
        return app

    return build


def counts(script, sink, **options):
    """An app whose agent numbers what it reads, with a wait between its read and its write."""

    def build(directory):
        app = App("counts", state="memory", checkpoint_dir=directory)

        @app.agent(ScriptedSource(script), sink=sink, **options)
        async def number(ctx):
            seen = (await ctx.state().get("seen") or 0) + 1
            await asyncio.sleep(0.001)
            await ctx.state().put("seen", seen)
            return [seen, ctx.message]

        return app

    return build


# -- scripts --------------------------------------------------------------------------------------------------------------


def test_a_crash_changes_nothing_of_the_output():
    crashed, undisturbed = ListSink(), ListSink()
    assert run(sums([[A, B], BARRIER, A, CRASH, A, BARRIER, B, CRASH, END], crashed)) == 3
    assert run(sums([[A, B], A, A, B, END], undisturbed)) == 1
    assert Counter(map(str, crashed.rows)) == Counter(map(str, undisturbed.rows))
    assert [row["total"] for row in crashed.rows if row["k"] == "a"] == [1, 2, 3]


def test_a_barrier_stands_where_the_script_has_it():
    sink = ListSink()
    run(sums([A, BARRIER, B, BARRIER, A, END], sink))
    assert [data.to_pylist() for data in sink.batches] == [
        [{"k": "a", "total": 1}],
        [{"k": "b", "total": 2}],
        [{"k": "a", "total": 2}],
    ]


def test_an_agent_goes_on_from_its_last_barrier():
    sink = ListSink()
    assert run(counts(["x", "y", BARRIER, CRASH, "z", END], sink, delivery="exactly_once")) == 2
    assert sink.rows == [[1, "x"], [2, "y"], [3, "z"]]


def test_without_a_barrier_everything_is_read_again():
    sink = ListSink()
    assert run(counts(["x", CRASH, "y", END], sink, delivery="exactly_once")) == 2
    assert sink.rows == [[1, "x"], [2, "y"]]


def test_at_least_once_may_repeat_what_was_flushed_after_the_last_checkpoint():
    sink = ListSink()
    run(counts(["x", BARRIER, "y", CRASH, "z", END], sink, delivery="at_least_once"))
    assert [row for row in sink.rows if row[1] != "y"] == [[1, "x"], [3, "z"]]
    assert sink.rows.count([2, "y"]) in (1, 2)


def test_rows_are_arrow_batches_or_dicts_with_a_schema():
    batch = pa.record_batch({"k": ["a", "b"], "n": [1, 2]})
    for script, schema in (
        ([batch, END], None),
        ([pa.Table.from_batches([batch]), END], None),
        ([[A, B], END], batch.schema),
    ):
        sink = ListSink()

        def build(directory, script=script, schema=schema, sink=sink):
            app = App("rows", state="memory", checkpoint_dir=directory)
            app.stream(ScriptedSource(script, schema=schema)).filter(col("n") > 1).select("k").to(sink)
            return app

        run(build)
        assert sink.table().to_pydict() == {"k": ["b"]}


def test_a_batch_larger_than_the_engine_takes_at_once_comes_in_slices():
    source = ScriptedSource([list(range(10)), BARRIER, [10], END])
    source.open({("script", 0): 4})
    first, second = source.read_batch(5, 0), source.read_batch(5, 0)
    assert (first.num_rows, first.offsets) == (5, {("script", 0): 9})
    assert (second.num_rows, second.offsets) == (1, {("script", 0): 10})


def test_a_barrier_that_was_restored_is_not_taken_again():
    source = ScriptedSource([1, BARRIER, 2, END])
    source.open({("script", 0): 1})
    batch = source.read_batch(10, 0)
    assert batch.offsets == {("script", 0): 3}
    assert source.read_batch(10, 0) is None
    assert source.exhausted


def test_a_failed_checkpoint_at_a_barrier_ends_the_run():
    class Full(ListSink):
        def flush(self):
            raise OSError("no room")

    with pytest.raises(sabot.SabotError, match="no room"):
        run(sums([A, BARRIER, B, END], Full(), "at_least_once", restart="none"))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([1, END, 2], "something follows END"),
        ([pa.record_batch({"a": [1]}), pa.record_batch({"b": [1]})], "different columns"),
    ],
)
def test_a_script_that_cannot_be_is_refused(script, message):
    with pytest.raises(UserError, match=message):
        ScriptedSource(script)


def test_a_run_without_an_end_is_refused():
    with pytest.raises(UserError, match="has no END"):
        run(sums([A, BARRIER], ListSink()))


async def test_marks_need_a_runner(tmp_path):
    with pytest.raises(UserError, match=r"sabot\.testing\.run"):
        await sums([A, BARRIER, END], ListSink(), restart="none")(tmp_path).run()


async def test_run_works_where_an_event_loop_runs():
    sink = ListSink()
    assert run(sums([A, CRASH, A, END], sink)) == 2
    assert [row["total"] for row in sink.rows] == [1, 2]


def test_after_a_crash_no_step_of_that_life_happens():
    """A thread of the life before holds on to its work; the world does not see it."""
    done = []

    class Slow(ListSink):
        def deliver(self, seq, batches):
            crashed.wait(60)
            with step("deliver", "slow"):
                done.append(seq)

    class Waiting(ScriptedSource):
        def _carry_out(self, mark, timeout):
            happened = super()._carry_out(mark, timeout)
            if mark is CRASH and not happened:
                crashed.set()
            return happened

    crashed = threading.Event()

    def build(directory):
        app = App("slow", state="memory", checkpoint_dir=directory)
        app.stream(Waiting([A, BARRIER, CRASH, B, END])).to(Slow())
        return app

    assert run(build) == 2
    assert len(done) == len(set(done)) == 2


# -- the sink -------------------------------------------------------------------------------------------------------------


def test_the_sink_takes_a_part_once():
    sink, data = ListSink(), pa.record_batch({"n": [1]})
    assert sink.claim(Track("app", "sink", "one")) is None
    for seq in (1, 1, 3, 1, 3):
        sink.deliver(seq, [data])
    sink.claim(Track("app", "sink", "another"))  # its numbers begin again
    sink.deliver(1, [data])
    assert [row["n"] for row in sink.rows] == [1, 1, 1]


def test_the_sink_loses_what_was_not_flushed():
    sink, data = ListSink(), pa.record_batch({"n": [1]})
    sink.open()
    sink.write(Batch(data))
    sink.flush()
    sink.write(Batch(data))
    sink.open()
    sink.flush()
    assert sink.table().to_pydict() == {"n": [1]}


def test_the_table_of_a_sink_needs_rows_alike():
    sink = ListSink()
    sink.claim(Track("app", "sink", "one"))
    sink.deliver(1, [pa.record_batch({"n": [1]}), pa.record_batch({"m": [1]})])
    assert sink.rows == [{"n": 1}, {"m": 1}]
    with pytest.raises(UserError, match="different columns"):
        sink.table()


# -- the simulation -------------------------------------------------------------------------------------------------------

SCRIPT = [[A, B], BARRIER, A, CRASH, A, BARRIER, B, END]


@pytest.mark.one_in(10, "a tenth of a second of a core each")
@pytest.mark.parametrize("seed", range(12))
def test_the_answer_does_not_depend_on_the_seed(seed):
    streams, agents = ListSink(), ListSink()
    done = simulate(sums(SCRIPT, streams, parallelism=3), seed, crashes=2, stops=1)
    assert sorted(row["total"] for row in streams.rows) == [1, 2, 2, 3, 4]
    assert done.crashes >= 1
    assert done.lives == 1 + done.crashes + done.stops
    simulate(counts(["x", BARRIER, "y", CRASH, "z", END], agents, delivery="exactly_once"), seed, crashes=2)
    assert agents.rows == [[1, "x"], [2, "y"], [3, "z"]]


@pytest.mark.slow  # half a second of a core
def test_the_same_seed_does_the_same_and_another_seed_something_else():
    first, again, other = (simulate(sums(SCRIPT, ListSink(), parallelism=2), seed) for seed in (1, 1, 2))
    assert first == again
    assert first.steps != other.steps


@pytest.mark.slow  # a second of a core, or more
def test_hours_of_virtual_time_take_no_time():
    def build(directory):
        app = App("slow", state="memory", checkpoint_dir=directory, checkpoint_interval="10m")

        @app.agent(ScriptedSource([1, 2, 3, END]), sink=sink, concurrency=1)
        async def wait(ctx):
            await asyncio.sleep(900)
            return ctx.message

        return app

    sink, began = ListSink(), time.monotonic()
    assert simulate(build, 0).seconds >= 2700
    assert sink.rows == [1, 2, 3]
    assert time.monotonic() - began < 60


def test_an_error_has_the_seed_as_its_note():
    def build(directory):
        app = App("bad", state="memory", checkpoint_dir=directory)

        @app.agent(ScriptedSource([1, END]))
        async def fail(ctx):
            raise ValueError("no")

        return app

    with pytest.raises(sabot.AgentFailed) as raised:
        simulate(build, 17)
    assert raised.value.__notes__ == ["in the simulation with seed 17, in life 1"]


def test_an_app_that_does_not_end_is_said_to_be_stuck():
    def build(directory):
        app = App("stuck", state="memory", checkpoint_dir=directory, checkpoint_interval=1000)
        app.stream(ScriptedSource([A])).to(ListSink())
        return app

    with pytest.raises(InternalError, match=r"does not end: .*threads that run: .*read-1/0"):
        simulate(build, 0, most_turns=5000)


def test_what_a_simulation_imports_has_the_clock_of_the_machine_afterwards():
    """The clock of task_times was a default: with an app that was simulated before any other the times of tasks stood still."""
    lines = (
        "import time",
        "from sabot.clock import SYSTEM_CLOCK",
        "vars(SYSTEM_CLOCK).update(monotonic=lambda: 0.0)  # as a simulation does",
        "from sabot.engine.runtime.tasks.task_times import TaskTimes",
        "vars(SYSTEM_CLOCK).clear()",
        "times = TaskTimes()",
        "times.begin()",
        "time.sleep(0.01)",
        "assert sum(times.read().values()) >= 0.01",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_time_threads_and_steps_are_the_machines_again_afterwards(tmp_path):
    simulate(sums([A, END], ListSink()), 0)
    assert abs(sabot.clock.SYSTEM_CLOCK.time() - time.time()) < 5
    sink = ListSink()
    asyncio.run(sums([A, END], sink)(tmp_path).run())
    assert sink.rows == [{"k": "a", "total": 1}]


def test_a_dance_waits_as_long_as_rows_arrive_however_slow_all_of_them_are(tmp_path, monkeypatch):
    clock = ManualClock()
    monkeypatch.setattr(dances, "SYSTEM_CLOCK", clock)
    given, arrived = [], []

    def rows():
        """Five rows more at each look, which comes after most of the time that a dance waits for a row."""
        clock.advance(places.GUARD_SECONDS - 1)
        arrived.extend(given[len(arrived) : len(arrived) + 5])
        return arrived

    program = "import threading; threading.Event().wait()"
    dance = dances.Dance(program, tmp_path, put=given.extend, rows=rows, expected=lambda n: n, seed=2)
    danced = dance.run(kills=1)
    assert danced.rows == len(given) > 20
    assert (danced.lost, danced.repeated, danced.wrong) == ([], [], [])
