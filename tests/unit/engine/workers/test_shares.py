"""One app as several shares of it in this process: what they make together is what the whole makes."""

import asyncio
import json
from collections import Counter
from dataclasses import replace

import pytest

import sabot
from sabot import App, col, tumbling
from sabot._cython.flow.channel import END
from sabot.base.threads import run_in_thread, threads
from sabot.connectors.memory import MemoryBroker
from sabot.engine.checkpoint import Coordinator
from sabot.engine.plan import make_plan
from sabot.engine.runtime.life.build import Build
from sabot.engine.runtime.life.local_streams import LocalStreams
from sabot.engine.runtime.life.settings import RunSettings
from sabot.engine.workers.messages import HasFirst, Start
from sabot.engine.workers.placement import fingerprint, place
from sabot.engine.workers.share import CoordinatorPlacement, WorkerPlacement
from sabot.errors import UserError
from sabot.kafka.topics import open_sink, open_source

COLUMNS = {"id": "int64", "key": "string", "ts": "int64"}


class Wires:
    """Rows between shares: what goes into one end comes out at the other."""

    def __init__(self):
        self.ends = {}

    def receive(self, edge, channel):
        assert edge not in self.ends
        self.ends[edge] = channel

    def send(self, edge, channel, address):
        def turn(wait_seconds):
            element = channel.get(wait_seconds)
            if element is not None:
                self.ends[edge].put(element)
            return element is not END

        threads.spawn(edge, turn).start()


async def results(app, workers=None):
    """What the app writes into "out", as one app or in so many shares."""
    before = len(MemoryBroker.get(app.broker).records("out"))
    settings = RunSettings(
        app_id=app.id,
        coordinator=Coordinator(),
        open_source=lambda topic, group: open_source(topic, app.broker, group, {}),
        open_sink=lambda topic, format: open_sink(topic, app.broker, {}, format),
        app=app.settings,
    )
    parts = [LocalStreams(app.spec.ends, settings)] if workers is None else await shares(app, settings, workers)
    try:
        for part in parts:
            await part.open()
        for part in parts:
            if isinstance(part.settings.placement, WorkerPlacement):
                part.settings.placement.connect()
            part.run()
        await asyncio.wait_for(asyncio.gather(*(part.running for part in parts)), 60)
    finally:
        for part in parts:
            await part.close()
    return Counter(json.dumps(record.value) for record in MemoryBroker.get(app.broker).records("out")[before:])


async def shares(app, settings, workers):
    whole = Build(
        app.spec.ends,
        replace(settings, placement=CoordinatorPlacement()),
        agents=(),
        wanted={},
        loop=asyncio.get_running_loop(),
    )
    await run_in_thread(whole.open, None)
    whole.give_back_sources()
    placement = place(whole.plan.stages, workers)
    assert set(placement.values()) == set(range(workers))
    start = Start("1", placement, ["here"] * workers, {}, fingerprint(app.id, whole.plan), None, None, None, {}, [])
    wires, parts = Wires(), []

    def told(worker, message):
        assert isinstance(message, HasFirst)
        for part in parts[:worker] + parts[worker + 1 :]:
            part.build.has_first(message.stage, message.task)

    for worker in range(workers):
        share = WorkerPlacement(app.id, worker, start, wires, lambda message, worker=worker: told(worker, message))
        parts.append(LocalStreams(app.spec.ends, replace(settings, coordinator=Coordinator(), placement=share)))
    return parts


def filled(url, topic, count, keys=7):
    broker = MemoryBroker.get(url)
    broker.create_topic(topic, 3)
    for n in range(count):
        row = {"id": n, "key": f"k{n % keys}", "ts": 1000 * n}
        broker.publish(topic, [json.dumps(row).encode()], partition=n % 3)


def windows(app):
    rows = app.stream("in", schema=COLUMNS, time="ts", until="now")
    rows.key_by("key").window(tumbling("10s")).aggregate(n=sabot.count(), ids=sabot.collect_list("id")).select(
        "key", "window_start", "n"
    ).to("out")


def two_shuffles(app):
    rows = app.stream("in", schema=COLUMNS, until="now")
    named = rows.select((col("id") % 3).alias("third"), "key", "id")
    named.key_by("key").aggregate(n=sabot.count()).materialize().key_by("n").aggregate(
        keys=sabot.count()
    ).materialize().to("out")


def met(app):
    left = app.stream("in", schema=COLUMNS, time="ts", until="now")
    right = app.stream("other", schema=COLUMNS, time="ts", until="now").select(col("id").alias("other"), "key")
    left.join(right, on="key", between=("-20s", "20s"), max_drift=None).select("id", "other").to("out")


def apart(app):
    rows = app.stream("in", schema=COLUMNS, until="now")
    rows.filter(col("id") % 2 == 0).select("id").to("out")
    rows.filter(col("id") % 3 == 0).select("id").to("out")


def looked_up(app):
    known = app.table("other", key="key", schema=COLUMNS, until="now")
    app.stream("in", schema=COLUMNS, until="now").lookup(known, on="key").select("id", "key", "ts_right").to("out")


@pytest.mark.one_in(8, "a fifth of a second of a core each")
@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("program", [windows, two_shuffles, met, apart, looked_up])
async def test_shares_make_what_the_whole_makes(memory_url, program, workers):
    filled(memory_url, "in", 300)
    filled(memory_url, "other", 5, keys=5)
    MemoryBroker.get(memory_url).create_topic("out", 1)
    app = App("shared", broker=memory_url, parallelism=3)
    program(app)
    whole = await results(app)
    assert whole
    assert await results(app, workers) == whole


def test_a_worker_with_another_program_refuses():
    start = Start("1", {}, [], {}, "another", None, None, None, {}, [])
    app = App("shared")
    app.stream("in", schema=COLUMNS).to("out")
    plan = make_plan(app.spec.ends)
    with pytest.raises(UserError, match="differs from the coordinator's"):
        WorkerPlacement("shared", 0, start, Wires(), lambda message: None).agree(plan)
