"""Streams that crash: what a checkpoint holds is enough to go on, and every window comes out exact.

A crash is what the disk holds at that moment: the last complete checkpoint and what the sinks had written. Sinks deliver at least
once, so a row may be there twice; what must not happen is a row that is missing, or one that is wrong.
"""

import asyncio
import json
import random
import threading
import time
from collections import defaultdict

import pytest

import sabot
from sabot import App, NdjsonSink, NdjsonSource, SabotError, UserError, col, files, hopping, session, tumbling
from sabot.testing import MemoryBroker
from tools.agent_tools import bounded, publish, until, values

pytestmark = pytest.mark.integration

MINUTE = 60_000
GAP = 4_000
WINDOWS = {"tumbling": tumbling("1m"), "hopping": hopping("1m", "20s"), "session": session("4s")}


def rows_in(app):
    return sum(task["input"].get("rows_in", 0) for task in app.statistics()["streams"].values())


def make_rows(rng, count):
    """Event time rises about 100 ms a row, up to 3 s out of order; amounts are multiples of 1/64."""
    for number in range(count):
        yield {
            "id": number,
            "account": f"a{rng.randrange(40)}",
            "amount": rng.randrange(-640, 6400) / 64,
            "ts": 1_000_000 + number * 100 + rng.randrange(3000),
        }


class Crash(Exception):
    """Stands for the end of the process: no last checkpoint, no goodbye to the sinks."""


class Life:
    """One run of the program: checkpoints are asked for at random batches, and at one of them it crashes."""

    def __init__(self, folder, kind, rng, *, state, parallelism, crashes):
        self.rng = rng
        self.batches = 0
        self.crash_at = rng.randrange(10, 60) if crashes else None
        self.lock = threading.Lock()
        self.app = App(
            "minutes",
            state=str(folder / "db") if state == "rocksdb" else "memory",
            checkpoint_dir=folder / "checkpoints",
            parallelism=parallelism,
        )
        (
            self.app.stream(NdjsonSource(folder / "in.ndjson", block_bytes=1500), time="ts", lateness="3s")
            .map_batches(self.look, on_error="fail")
            .filter(col("amount") > 0)
            .key_by("account")
            .window(WINDOWS[kind])
            .aggregate(
                n=sabot.count(), total=sabot.sum("amount"), biggest=sabot.max("amount"), ids=sabot.collect_list("id")
            )
            .to(NdjsonSink(folder / "out.ndjson"))
        )

    def look(self, batch):
        if batch.num_rows == 0:  # to see what columns it gives
            return batch
        with self.lock:
            self.batches += 1
            if self.batches == self.crash_at:
                self.let_a_checkpoint_complete()
                raise Crash
            if self.rng.random() < 0.3:
                self.app.agent_runtime.checkpoint_coordinator.trigger()
        return batch

    def let_a_checkpoint_complete(self):
        """Most crashes should have something to go back to; a moment is enough, and none is needed to be right."""
        for _ in range(50):
            if self.app.statistics()["checkpoints"]["completed"]:
                break
            time.sleep(0.002)

    async def live(self):
        """-> whether it came to the end."""
        try:
            await bounded(self.app.run())
        except SabotError as error:
            if not isinstance(error.__cause__, Crash):
                raise
            return False
        return True


def expected(rows, kind):
    """The windows, by plain Python: what each holds of ids, sum and greatest amount."""
    windows = defaultdict(list)
    good = [row for row in rows if row["amount"] > 0]
    if kind == "session":
        for account in {row["account"] for row in good}:
            mine = sorted((row for row in good if row["account"] == account), key=lambda row: row["ts"])
            begin = last = None
            for row in mine:
                if last is None or row["ts"] >= last + GAP:
                    begin = row["ts"]
                last = row["ts"]
                windows[account, begin].append(row)
    else:
        size, slide = (MINUTE, MINUTE) if kind == "tumbling" else (MINUTE, MINUTE // 3)
        for row in good:
            first = (row["ts"] // slide) * slide
            for start in range(first, first - size, -slide):
                windows[row["account"], start].append(row)
    return {
        (account, start): (
            sorted(row["id"] for row in rows),
            sum(row["amount"] for row in rows),
            max(row["amount"] for row in rows),
        )
        for (account, start), rows in windows.items()
    }


@pytest.mark.one_in(25, "a second of a core each")
@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize(
    ("state", "parallelism"), [("memory", 1), ("memory", 3), ("rocksdb", 2), ("memory", 0), ("rocksdb", 0)]
)
@pytest.mark.parametrize("seed", range(2))
async def test_windows_are_exact_whatever_crashed(tmp_path, kind, state, parallelism, seed):
    rng = random.Random(f"{kind} {state} {parallelism} {seed}")
    rows = list(make_rows(rng, 2000))
    (tmp_path / "in.ndjson").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lives, restored = 0, []
    while True:
        threads = parallelism or rng.choice([1, 2, 4])  # 0: another one in each life
        life = Life(tmp_path, kind, rng, state=state, parallelism=threads, crashes=lives < 5)
        ended = await life.live()
        restored.append(life.app.agent_runtime.runner.restored_from)
        lives += 1
        if ended:
            break
    assert lives > 1
    print("restored from", restored)
    found = {}
    for line in (tmp_path / "out.ndjson").read_text().splitlines():
        row = json.loads(line)
        window = (sorted(row["ids"]), row["total"], row["biggest"])
        assert row["n"] == len(row["ids"])
        assert found.setdefault((row["account"], row["window_start"]), window) == window, "two answers for one window"
    assert found == expected(rows, kind)


async def test_a_finished_app_started_again_reads_nothing_twice(tmp_path):
    (tmp_path / "in.ndjson").write_text('{"k": 1, "ts": 5}\n{"k": 1, "ts": 6}\n')

    def app():
        app = App("counts", state="memory", checkpoint_dir=tmp_path / "checkpoints")
        stream = app.stream(files(tmp_path / "in.ndjson"), time="ts").key_by("k").window(tumbling("1s"))
        stream.aggregate(n=sabot.count()).to(NdjsonSink(tmp_path / "out.ndjson"))
        return app

    for _ in range(3):
        await bounded(app().run())
    (line,) = (tmp_path / "out.ndjson").read_text().splitlines()
    assert json.loads(line)["n"] == 2


async def test_stop_keeps_windows_open_and_drain_closes_them(memory_url, tmp_path):
    schema = {"k": "string", "ts": "int64"}

    def app():
        app = App("counts", broker=memory_url, state="memory", checkpoint_dir=tmp_path / "checkpoints")
        stream = app.stream("orders", schema=schema, time="ts").key_by("k").window(tumbling("1m"))
        stream.aggregate(n=sabot.count()).to("minutes")
        return app

    first = app()
    publish(first, "orders", [{"k": "a", "ts": 1000}, {"k": "a", "ts": 2000}])
    await first.start()
    await until(lambda: rows_in(first) == 2)
    await bounded(first.stop())
    assert values(first, "minutes") == []
    second = app()
    publish(second, "orders", [{"k": "a", "ts": 3000}])
    await second.start()
    await until(lambda: rows_in(second) == 1)
    await bounded(second.stop(drain=True))
    (minute,) = values(second, "minutes")
    assert minute["n"] == 3


async def test_a_drained_app_goes_on_with_what_came_after(memory_url, tmp_path):
    """It "had ended": its tasks had, its topic had not, and nothing was ever read again. Windows that drain closed begin anew."""

    def app():
        app = App("counts", broker=memory_url, state="memory", checkpoint_dir=tmp_path / "checkpoints")
        orders = app.stream("orders", schema={"k": "string", "ts": "int64"}, time="ts")
        orders.key_by("k").window(tumbling("1m")).aggregate(n=sabot.count()).to("minutes")
        orders.key_by("k").aggregate(n=sabot.count()).to("running")
        return app

    for life, minutes, running in ((1, [10], 10), (2, [10, 5], 15)):
        each = app()
        publish(each, "orders", [{"k": "a", "ts": 1000 + number} for number in range(10 if life == 1 else 5)])
        await each.start()
        await until(lambda each=each, running=running: len(values(each, "running")) == running)
        await bounded(each.stop(drain=True))
        assert [row["n"] for row in values(each, "minutes")] == minutes
        assert [row["n"] for row in values(each, "running")] == list(range(1, running + 1))


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("threads", [(1, 2), (2, 1), (2, 2)])
async def test_a_drained_app_with_calls_goes_on_with_another_parallelism(memory_url, tmp_path, threads):
    """The end of time of the first life was a watermark of the second, so all its rows were late."""

    async def same(row):
        return {"k": row["k"]}

    for life, parallelism in enumerate(threads, 1):
        app = App(
            "counts",
            broker=memory_url,
            state="memory",
            checkpoint_dir=tmp_path / "checkpoints",
            parallelism=parallelism,
        )
        orders = app.stream("orders", schema={"k": "string", "ts": "int64"}, time="ts")
        called = orders.key_by("k").aggregate(n=sabot.count()).map_async(same, schema={"k": "string"})
        called.to("copies")
        called.key_by("k").window(tumbling("1m")).aggregate(n=sabot.count()).to("minutes")
        publish(app, "orders", [{"k": "a", "ts": 1000 + number} for number in range(5)])
        await app.start()
        await until(lambda app=app, life=life: len(values(app, "copies")) == 5 * life)
        await bounded(app.stop(drain=True))
    assert [row["n"] for row in values(app, "minutes")] == [5, 5]


async def test_counts_of_an_app_go_on_from_those_of_all_its_subtasks(memory_url, tmp_path):
    """Where each subtask got its own state back, the first alone went on with its count."""

    def dropped(app):
        tasks = app.statistics()["streams"].values()
        return sum(each.get("dropped_rows", 0) for task in tasks for each in task["operators"].values())

    for life, parallelism in enumerate((2, 2, 3, 3, 1)):
        app = App(
            "counts",
            broker=memory_url,
            state="memory",
            checkpoint_dir=tmp_path / "checkpoints",
            parallelism=parallelism,
        )
        app.stream("orders", schema={"k": "string"}).deduplicate("k").to("firsts")
        publish(app, "orders", [{"k": f"k{number}"} for number in range(20)])
        await app.start()
        await until(lambda app=app, life=life: dropped(app) == 20 * life, "all duplicates to be counted")
        await bounded(app.stop())


async def test_a_program_without_the_step_whose_state_a_checkpoint_has_is_refused(tmp_path, memory_url):
    """The state was dropped without a word, and the positions went on: rows were missing in the windows."""

    def app(window):
        app = App("counts", broker=memory_url, state="memory", checkpoint_dir=tmp_path / "checkpoints")
        app.stream("orders", schema={"k": "string", "ts": "int64"}, time="ts").filter(col("k") != "z").key_by(
            "k"
        ).window(window).aggregate(n=sabot.count()).to("minutes")
        return app

    first = app(tumbling("1m"))
    publish(first, "orders", [{"k": "a", "ts": 1000}])
    await first.start()
    await until(lambda: rows_in(first) == 1)
    await bounded(first.stop())
    with pytest.raises(UserError, match=r"tumbling window.*--refill session-1.*--drop session-1"):
        await app(session("1m")).start()


async def test_a_topic_that_has_more_partitions_now_goes_on(tmp_path, memory_url):
    """The readers of the checkpoint were two, the topic asked for four, and no parallelism fitted both."""
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("orders", 2)

    def app():
        app = App("counts", broker=memory_url, state="memory", checkpoint_dir=tmp_path / "checkpoints", parallelism=3)
        app.stream("orders", schema={"k": "string"}).key_by("k").aggregate(n=sabot.count()).to("running")
        return app

    for partitions, rows in ((2, 20), (4, 40)):
        broker.create_topic("orders", partitions)
        each = app()
        for number in range(20):
            broker.publish("orders", [{"k": "a"}], partition=number % partitions)
        await each.start()
        await until(lambda each=each, rows=rows: len(values(each, "running")) == rows)
        await bounded(each.stop())
    assert sorted(row["n"] for row in values(each, "running")) == list(range(1, 41))


async def test_a_stop_while_the_first_record_is_waited_for_ends_the_wait(tmp_path, memory_url):
    app = App("counts", broker=memory_url)
    app.stream("orders").to("copies")
    starting = asyncio.ensure_future(app.start())
    await until(lambda: app.agent_runtime.runner.status.phase == "starting")
    await bounded(app.stop())
    with pytest.raises(SabotError, match="before its first record"):
        await bounded(starting)


async def test_the_failure_of_a_stream_is_told(tmp_path, memory_url, caplog):
    """Between `start` and `stop` nobody asked the app how it went."""
    app = App("counts", broker=memory_url)

    def broken(batch):
        raise ValueError("no luck")

    app.stream("orders", schema={"k": "string"}).map_batches(broken, schema={"k": "string"}, on_error="fail").to(
        "copies"
    )
    publish(app, "orders", [{"k": "a"}])
    await app.start()
    await until(lambda: "no luck" in caplog.text)
    with pytest.raises(SabotError, match="no luck"):  # by whatever is called next
        await bounded(app.agent_runtime.trigger_checkpoint())
    with pytest.raises(SabotError, match=r"broken.*no luck.*orders"):
        await bounded(app.stop())


@pytest.mark.one_in(6, "a third of a second of a core each")
@pytest.mark.parametrize("state", ["memory", "rocksdb"])
@pytest.mark.parametrize("threads", [(1, 4, 2), (4, 1, 3), (2, 3, 1)])
async def test_a_stopped_app_goes_on_with_another_parallelism(tmp_path, memory_url, state, threads):
    """Every keyed step finds the state of its key groups, whoever had it before."""
    MemoryBroker.get(memory_url).create_topic("orders", 3)
    for life, parallelism in enumerate(threads):
        app = App(
            "shop",
            broker=memory_url,
            state=str(tmp_path / "db") if state == "rocksdb" else "memory",
            checkpoint_dir=tmp_path / "checkpoints",
            parallelism=parallelism,
        )
        orders = app.stream("orders", schema={"k": "string", "n": "int64", "ts": "int64"}, time="ts")
        keyed = orders.key_by("k")
        keyed.aggregate(n=sabot.count()).to("running")
        keyed.window(tumbling("1h")).aggregate(n=sabot.count(), all=sabot.collect_list("n")).to("hours")
        keyed.window(session("1h")).aggregate(n=sabot.count()).to("sessions")
        orders.window(tumbling("1h")).aggregate(n=sabot.count()).to("total")
        orders.deduplicate("k").to("firsts")
        for number in range(60):
            row = {"k": f"k{number % 20}", "n": life, "ts": 1000 + number}
            MemoryBroker.get(memory_url).publish("orders", [row], partition=number % 3)
        await app.start()
        await until(lambda app=app, life=life: len(values(app, "running")) == 60 * (life + 1))
        await bounded(app.stop(drain=life == len(threads) - 1))
    assert sorted(row["n"] for row in values(app, "running")) == sorted(list(range(1, 10)) * 20)
    assert sorted((row["k"], row["n"], sorted(row["all"])) for row in values(app, "hours")) == sorted(
        (f"k{key}", 9, [0, 0, 0, 1, 1, 1, 2, 2, 2]) for key in range(20)
    )
    assert [row["n"] for row in values(app, "sessions")] == [9] * 20
    assert [row["n"] for row in values(app, "total")] == [180]
    assert sorted(row["k"] for row in values(app, "firsts")) == sorted(f"k{key}" for key in range(20))


@pytest.mark.parametrize("order", ["given first", "inferred first"])
async def test_two_streams_of_one_topic_keep_their_own_columns_over_a_restart(tmp_path, memory_url, order):
    """The one whose columns were inferred took those that the other was given, and wrote only these."""

    def app():
        app = App("two", broker=memory_url, state="memory", checkpoint_dir=tmp_path / "checkpoints")
        streams = {
            "given": lambda: app.stream("orders", schema={"x": "int64"}).to("given"),
            "inferred": lambda: app.stream("orders").to("inferred"),
        }
        for name in ("given", "inferred") if order == "given first" else ("inferred", "given"):
            streams[name]()
        return app

    for life in range(1, 3):
        each = app()
        publish(each, "orders", [{"x": life, "y": 2, "z": 3}])
        await each.start()
        await until(lambda each=each, life=life: len(values(each, "given")) == len(values(each, "inferred")) == life)
        await bounded(each.stop())
    assert values(each, "given") == [{"x": 1}, {"x": 2}]
    assert values(each, "inferred") == [{"x": 1, "y": 2, "z": 3}, {"x": 2, "y": 2, "z": 3}]
