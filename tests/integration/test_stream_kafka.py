"""Streams on a real Kafka broker, as users run them: topic to topic, in a process, with a broker that goes and comes back.

`--broker kafka://host:port` takes a running Kafka; without it the fixture starts one. Rows are made and read with the plain client.
"""

import asyncio
import itertools
import json
import signal
import threading
import time
import uuid
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, Producer, TopicPartition

import sabot
from sabot import App, col, count, tumbling
from sabot.engine.runtime.tasks.reading import Reader
from sabot.errors import UserError
from sabot.kafka import admin
from sabot.kafka.admin import create_topic
from sabot.kafka.reader import KafkaReader
from sabot.testing import ListSink
from tools.agent_tools import bounded, checkpoint, crash_image, started, until
from tools.broker import free_ports
from tools.fault_tools import Place, eventually, header, lines_of, one_line, running, sabot_run
from tools.stream_tools import BASE, PARTITIONS, SCHEMA, WINDOW, answers, expected, payments, send, tick

pytestmark = [pytest.mark.integration, pytest.mark.kafka]

RECOVERY = Path(__file__).parents[1] / "recovery"  # where minutes_app.py is


@pytest.fixture
def place(kafka_url):
    return Place(kafka_url)


@pytest.fixture
def name():
    return f"app-{uuid.uuid4().hex[:8]}"


def output(records):
    """The rows of the output topic: their keys are the accounts."""
    rows = [json.loads(record.payload) for record in records]
    assert [record.key for record in records] == [row["account"].encode() for row in rows]
    return rows


def windows(stream):
    """The query of these tests."""
    return (
        stream.filter(col("amount") > 0)
        .key_by("account")
        .window(tumbling("10s"))
        .aggregate(n=sabot.count(), total=sabot.sum("amount"), ids=sabot.collect_list("id"))
    )


def rows_in(app):
    return sum(task["input"].get("rows_in", 0) for task in app.statistics()["streams"].values())


def late_rows(app):
    tasks = app.statistics()["streams"].values()
    return sum(operator.get("late_rows", 0) for task in tasks for operator in task["operators"].values())


def commands(place, name, topic, out, tmp_path, *more):
    """`sabot run minutes_app:app`: the words, and the environment."""
    words = ["minutes_app:app", "--broker", place.url, "--state", str(tmp_path / "state"), "--loglevel", "warning"]
    return [*words, *more], {"MINUTES_ID": name, "MINUTES_IN": topic, "MINUTES_OUT": out}


async def test_a_look_at_a_topic_gives_the_next_rows_and_commits_nothing(place, name):
    topic, rows = place.topic(1), payments(200)
    send(place.settings, topic, rows, slices=1)
    stream = App(name, broker=place.url, parallelism=2).stream(topic, schema=SCHEMA)
    for _ in range(2):
        assert stream.select("id").collect(limit=50).to_pylist() == [{"id": row["id"]} for row in rows[:50]]
    assert stream.head(7).collect().num_rows == 7
    group = Consumer(place.settings | {"group.id": name})
    try:
        (committed,) = group.committed([TopicPartition(topic, 0)], timeout=60)
    finally:
        group.close()
    assert committed.offset == OFFSET_INVALID


def test_fields_of_records_are_those_that_a_plain_client_sees(place, name):
    topic = place.topic(2)
    producer = Producer(place.settings)
    for number in range(60):
        headers = [("trace", b"old"), ("trace", b"t%d" % number)] if number % 3 == 0 else None
        key = None if number % 5 == 0 else b"k%d" % number
        at = BASE + 10 * number
        producer.produce(topic, b'{"n":%d}' % number, key=key, partition=number % 2, timestamp=at, headers=headers)
    assert producer.flush(60) == 0
    wanted = {}
    for record in place.read(topic):
        trace = dict(record.headers).get("trace")
        wanted[json.loads(record.payload)["n"]] = {
            "key": None if record.key is None else record.key.decode(),
            "partition": record.partition,
            "offset": record.offset,
            "timestamp": record.timestamp,
            "headers": [{"name": header, "value": value} for header, value in record.headers] or None,
            "headers.trace": None if trace is None else trace.decode(),
        }
    assert wanted[3]["headers.trace"] == "t3"
    app = App(name, broker=place.url, parallelism=2)
    stream = app.stream(topic, schema={"n": "int64"}, fields=list(wanted[0]))
    found = stream.with_columns(timestamp=col("timestamp").cast("int64")).collect(limit=60).to_pylist()
    assert {row.pop("n"): row for row in found} == wanted


@pytest.mark.one_in(2, "the same in memory: test_streams_against_batch")
@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("time_of", ["column", "record"])
async def test_windows_from_topic_to_topic_are_those_of_plain_python(place, name, parallelism, time_of):
    topic, out, rows = place.topic(PARTITIONS), place.topic(PARTITIONS), payments(3000)
    stamp = time_of == "record"
    send(place.settings, topic, rows, stamp=stamp)
    app = App(name, broker=place.url, parallelism=parallelism)
    windows(app.stream(topic, schema=SCHEMA, time=None if stamp else "ts", lateness="2s")).to(out, key="account")
    wanted = expected(rows)
    async with started(app):
        tick(place.settings, topic, stamp=stamp)
        records = await eventually(place, out, len(wanted))
        assert late_rows(app) == 0
    assert answers(output(records)) == wanted
    assert len(records) == len(wanted)
    homes = defaultdict(set)
    for record in records:
        homes[record.key].add(record.partition)
    assert all(len(partitions) == 1 for partitions in homes.values())  # a key keeps its partition
    assert len(set.union(*homes.values())) > 1


@pytest.mark.one_in(2, "a quarter of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 4])
async def test_a_partition_without_rows_holds_windows_back_no_longer_than_idle(place, name, parallelism):
    topic, out, rows = place.topic(PARTITIONS), place.topic(), payments(1500)
    send(place.settings, topic, rows, slices=3)
    tick(place.settings, topic, slices=3)
    app = App(name, broker=place.url, parallelism=parallelism)
    windows(app.stream(topic, schema=SCHEMA, time="ts", lateness="2s", idle="1s")).to(out, key="account")
    wanted = expected(rows)
    async with started(app):
        records = await eventually(place, out, len(wanted))
        assert late_rows(app) == 0
    assert answers(output(records)) == wanted
    assert len(records) == len(wanted)


@pytest.mark.slow  # half a second of a core
async def test_a_partition_that_nobody_has_read_yet_is_not_idle(place, name):
    """The story: a step that was busy for longer than `idle` let the watermark run over what waited in the other partition."""
    topic, out, rows = place.topic(2), place.topic(), 80_000  # some batches
    producer = Producer({**place.settings, "queue.buffering.max.messages": 2 * rows})
    for partition in (0, 1):
        for number in range(rows):
            producer.produce(topic, b'{"p":%d,"ts":%d}' % (partition, number), partition=partition)
    assert producer.flush(60) == 0
    busy = [0.3, 0.3, 0.3]

    def linger(batch):
        time.sleep(busy.pop() if batch.num_rows and busy else 0)
        return batch

    app = App(name, broker=place.url)
    stream = app.stream(topic, schema={"p": "int64", "ts": "int64"}, time="ts", idle="200ms").map_batches(linger)
    stream.key_by("p").window(tumbling("10s")).aggregate(n=sabot.count()).to(out)
    async with started(app):
        await until(lambda: rows_in(app) == 2 * rows)
        tick(place.settings, topic, slices=2)
        records = await eventually(place, out, 16)
        assert late_rows(app) == 0
    assert [json.loads(record.payload)["n"] for record in records] == [10_000] * 16


@pytest.mark.slow  # half a second of a core
async def test_readers_of_a_topic_that_was_silent_wait_for_each_other(place, name):
    """The story: the reader that was awake first moved event time on while another's first rows were still on their way to the window."""
    topic, out, rounds = place.topic(PARTITIONS), place.topic(), 3

    def linger(batch):
        time.sleep(0.06 if 1 in batch["p"].to_pylist() else 0)
        return batch

    app = App(name, broker=place.url, parallelism=PARTITIONS)
    # Longer than a busy machine keeps the rows of one partition back, when those of the others are there.
    stream = app.stream(topic, schema={"p": "int64", "ts": "int64"}, time="ts", idle="5s").map_batches(linger)
    stream.key_by("p").window(tumbling("1s")).aggregate(n=sabot.count()).to(out)

    def silent():
        return all(task["input"].get("idle", PARTITIONS) == PARTITIONS for task in app.statistics()["streams"].values())

    producer = Producer(place.settings)
    async with started(app):
        for number in range(rounds):
            for partition in range(PARTITIONS):
                for ts in range(number * 10_000, number * 10_000 + 10_000, 100):
                    producer.produce(topic, b'{"p":%d,"ts":%d}' % (partition, ts), partition=partition)
            assert producer.flush(60) == 0
            await until(lambda sent=(number + 1) * 400: rows_in(app) == sent)
            await until(silent, "silence")
        assert late_rows(app) == 0


@pytest.mark.slow  # the same in memory: test_stream_recovery
async def test_ctrl_c_keeps_windows_open_for_the_next_start_and_the_group_knows_how_far_it_came(place, name, tmp_path):
    topic, out, log = place.topic(PARTITIONS), place.topic(), tmp_path / "log"
    words, env = commands(place, name, topic, out, tmp_path)
    rows = payments(2500)  # 50 s of event time, cut in the middle of windows
    for first in (0, 1250):
        send(place.settings, topic, rows[first : first + 1250])
        with running(log, *words, "--checkpoint-interval", "0.1", folder=RECOVERY, **env) as process:
            await until(lambda: place.committed(f"{name}-group", topic) == place.ends(topic), lines_of(log))
            process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
    seen = len(place.read(out))
    assert 0 < seen < len(expected(rows))
    tick(place.settings, topic)
    with running(log, *words, folder=RECOVERY, **env) as process:
        records = await eventually(place, out, len(expected(rows)))
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
    assert answers(output(records)) == expected(rows)
    assert len(records) == len(expected(rows))  # nothing was repeated: each stop took a checkpoint
    assert place.committed(f"{name}-group", topic) == place.ends(topic)


@pytest.mark.slow  # half a second of a core
async def test_a_stream_that_was_drained_goes_on_with_the_rows_of_later_windows(place, name, tmp_path):
    """The story: the end of time, at which the drain closed all windows, stood in the checkpoint, and every later row was late."""
    topic, out, rows = place.topic(PARTITIONS), place.topic(), payments(1500)
    cut = (
        max(row["ts"] for row in rows[:600]) // WINDOW * WINDOW + WINDOW
    )  # where the windows end that the drain closes
    halves = rows[:600], [row for row in rows[600:] if row["ts"] >= cut]
    for half in halves:
        app = App(name, broker=place.url, state=str(tmp_path / "state"), parallelism=2)
        windows(app.stream(topic, schema=SCHEMA, time="ts", lateness="2s")).to(out, key="account")
        await app.start()
        send(place.settings, topic, half)
        await until(lambda app=app, half=half: rows_in(app) == len(half))
        await app.stop(drain=True)
        assert late_rows(app) == 0
    assert answers(output(place.read(out))) == expected([*halves[0], *halves[1]])


@pytest.mark.one_in(2, "a third of a second of a core each")
@pytest.mark.parametrize("reads", ["stream", "agent"])
async def test_a_topic_that_was_made_again_while_the_app_was_stopped_is_refused_and_fresh_reads_all_of_it(
    place, name, tmp_path, reads
):
    """It has more rows than before: without the ids of both the app would go on in its middle."""
    topic, out = place.topic(), place.topic()

    def build(fresh=False):
        app = App(name, broker=place.url, state=str(tmp_path / "state"))
        app.configure(fresh=fresh)
        if reads == "stream":
            app.stream(topic, schema={"v": "int64"}).to(out, delivery="at_least_once")
        else:

            @app.agent(topic, sink=out, delivery="at_least_once")
            async def same(ctx):
                return {"v": ctx.message["v"]}

        return app

    def seen():
        return [json.loads(record.payload)["v"] for record in place.read(out)]

    place.fill(topic, [b'{"v": %d}' % n for n in range(20)])
    for rows in (20, 25):  # of the same topic: a start goes on
        async with started(build()):
            await until(lambda rows=rows: len(seen()) == rows)
        if rows == 20:
            place.fill(topic, [b'{"v": %d}' % n for n in range(20, 25)])
    admin.delete_topic(place.url, topic)
    await until(lambda: not admin.partitions(place.url, topic))
    place.topic(name=topic)
    place.fill(topic, [b'{"v": %d}' % n for n in range(1000, 1030)])
    with pytest.raises(UserError, match=f"{topic} was deleted and made again since the checkpoint: it was .*, and is"):
        await build().start()
    async with started(build(fresh=True)):
        await until(lambda: len(seen()) == 55)
    assert seen() == [*range(25), *range(1000, 1030)]


BAD = {
    b"{not json": "invalid JSON",
    b'{"account": "a1", "amount": "much", "id": 1, "ts": 1}': "amount",
    b"[1, 2]": "object",
    b"": "empty",
    None: "null",
    b'{"account": "a1", "amount": 1.0, "id": 2, "ts": null, "note": "not read, not lost"}': "'ts' is null",
    b'{"account": "a1", "amount": 1.0, "id": 3}': "'ts' is null",
}


async def test_payloads_that_are_no_rows_go_to_the_dead_letters_as_they_came_and_the_others_through(place, name):
    topic, out, rows = place.topic(), place.topic(), payments(7 * 50)
    producer, offsets = Producer(place.settings), {}
    for number, fields in enumerate(rows):
        producer.produce(topic, json.dumps(fields), partition=0)
        if number % 50 == 25:
            payload = list(BAD)[len(offsets)]
            offsets[payload] = number + len(offsets) + 1
            producer.produce(topic, payload, b"k\xff", headers=[("trace", b"\x00\x01")], partition=0, timestamp=BASE)
    assert producer.flush(60) == 0
    app = App(name, broker=place.url)
    windows(app.stream(topic, schema=SCHEMA, time="ts", lateness="2s")).to(out, key="account")
    async with started(app):
        tick(place.settings, topic, slices=1)
        records = await eventually(place, out, len(expected(rows)))
        letters = await eventually(place, f"{topic}.dlq", len(BAD))
    assert answers(output(records)) == expected(rows)
    assert {letter.payload: int(header(letter, "offset")) for letter in letters} == offsets
    assert len(letters) == len(BAD)
    for letter in letters:
        assert BAD[letter.payload] in header(letter, "message")
        assert header(letter, "topic") == topic
        assert header(letter, "partition") == "0"
        assert header(letter, "timestamp") == str(BASE)
        assert header(letter, "error") == "DataError"
        assert letter.key == b"k\xff"
        assert ("trace", b"\x00\x01") in letter.headers


@pytest.mark.slow  # the same of a source, of an agent: test_kafka_faults, test_agent_kafka
async def test_a_missing_topic_and_an_absent_broker_end_sabot_run_with_one_line_that_names_them(place, name, tmp_path):
    """With a schema, and where it would be inferred."""
    missing, absent = f"missing-{uuid.uuid4().hex[:8]}", Place(f"kafka://127.0.0.1:{free_ports(1)[0]}")

    async def said(where, topic, **more):
        words, env = commands(where, name, topic, "minutes", tmp_path / uuid.uuid4().hex)
        return one_line(await asyncio.to_thread(sabot_run, *words, folder=RECOVERY, **env, **more), 1)

    lines = await asyncio.gather(
        said(place, missing),
        said(place, missing, MINUTES_INFER="1"),
        said(absent, "t"),
        said(absent, "t", MINUTES_INFER="1"),
    )
    for line in lines[:2]:
        assert f"topic '{missing}' does not exist" in line
        assert place.url in line
    for line in lines[2:]:
        assert absent.url in line


def waits_for(topic):
    """A thread of the reader of this topic: it is open."""
    return any(thread.name == f"kafka-watch-{topic}" for thread in threading.enumerate())


async def test_a_stream_without_a_schema_waits_for_its_first_record(place, name):
    topic, out, rows = place.topic(PARTITIONS), place.topic(), payments(1200)
    app = App(name, broker=place.url)
    windows(app.stream(topic, time="ts", lateness="2s")).to(out, key="account")
    running = asyncio.create_task(app.run())
    try:
        await until(lambda: waits_for(topic))
        send(place.settings, topic, rows)
        tick(place.settings, topic)
        records = await eventually(place, out, len(expected(rows)))
    finally:
        app.request_stop()
        await bounded(running)
    assert answers(output(records)) == expected(rows)


IMPATIENT = """
import os, signal, threading, time
from sabot import App

app = App({name!r}, state="state")
app.stream({topic!r}).to({out!r})

def interrupt():
    while not any(thread.name == "kafka-watch-{topic}" for thread in threading.enumerate()):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
"""


@pytest.mark.slow  # a second of a core, or more
async def test_ctrl_c_ends_sabot_run_while_a_stream_waits_for_its_first_record(place, name, tmp_path):
    topic, out = place.topic(PARTITIONS), place.topic()
    (tmp_path / "impatient.py").write_text(IMPATIENT.format(name=name, topic=topic, out=out))
    done = await asyncio.to_thread(sabot_run, "impatient:app", "--broker", place.url, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow  # the same in memory: test_restart
async def test_two_streams_and_an_agent_go_back_to_one_checkpoint(place, name, tmp_path):
    """The crash is a copy of the complete checkpoints, taken while the app runs and has gone on: exactly once would stop for a choice."""
    topic, minutes, totals, seen = place.topic(PARTITIONS), place.topic(), place.topic(), place.topic()
    rows = payments(1000)

    def build(root):
        app = App(name, broker=place.url, state=str(root / "state"), checkpoint_dir=root / "checkpoints", parallelism=2)
        windows(app.stream(topic, schema=SCHEMA, time="ts", lateness="2s")).to(
            minutes, key="account", delivery="at_least_once"
        )
        running = app.stream(topic, schema={"account": "string", "id": "int64"}).key_by("account")
        running.aggregate(n=sabot.count(), ids=sabot.sum("id")).to(totals, key="account", delivery="at_least_once")

        @app.agent(topic, key="account", sink=seen, delivery="at_least_once")
        async def count(ctx):
            n = (await ctx.state().get("n") or 0) + 1
            await ctx.state().put("n", n)
            return {"account": ctx.message["account"], "n": n}

        return app

    def counts(records):
        found = defaultdict(set)
        for record in records:
            value = json.loads(record.payload)
            found[value["account"]].add(value["n"])
        return found

    def done(wanted):
        """Every row of the topic has come out of the agent, and of the running totals."""
        return (
            sum(map(len, counts(place.read(seen)).values()))
            >= wanted
            <= sum(map(len, counts(place.read(totals)).values()))
        )

    first = build(tmp_path / "first")
    async with started(first):
        send(place.settings, topic, rows[:400])
        await until(lambda: done(400))
        await checkpoint(first)
        image = crash_image(tmp_path / "first" / "checkpoints", tmp_path / "crash" / "checkpoints")
        send(place.settings, topic, rows[400:700])
        await until(lambda: done(700))
    send(place.settings, topic, rows[700:])
    tick(place.settings, topic)
    second = build(image.parent)
    async with started(second):
        await until(lambda: done(len(rows) + PARTITIONS))
        records = await eventually(place, minutes, len(expected(rows)))
        assert second.agent_runtime.runner.restored_from is not None
        await until(lambda: rows_in(second) == 2 * (600 + PARTITIONS))  # from the checkpoint on, not from the start
    assert answers(output(records)) == expected(rows)
    wanted = defaultdict(set)
    for each in [*rows, *[{"account": "tick"}] * PARTITIONS]:
        wanted[each["account"]].add(len(wanted[each["account"]]) + 1)
    assert counts(place.read(seen)) == wanted
    assert counts(place.read(totals)) == wanted


@pytest.mark.slow  # the same of a source, of a delivery: test_kafka_faults, test_kafka_delivery
async def test_a_broker_that_goes_in_the_middle_and_comes_back_leaves_every_window_exact(own_kafka, name, tmp_path):
    """Rows come and checkpoints are taken before, while and after the broker is away."""
    place = Place(own_kafka.url)
    topic, out, ended, sent = place.topic(PARTITIONS), place.topic(), threading.Event(), []

    def produce():
        """A world that goes on sending."""
        producer = Producer({**place.settings, "enable.idempotence": True, "linger.ms": 5})
        for number in itertools.count():
            [row] = payments(1, first=number)
            sent.append(row)
            producer.produce(topic, json.dumps(row), row["account"], partition=number % PARTITIONS)
            producer.poll(0)
            if ended.wait(0.002 if number > 1000 else 0):
                break
        assert producer.flush(60) == 0

    app = App(
        name,
        broker=place.url,
        state=str(tmp_path / "state"),
        checkpoint_interval=0.2,
        checkpoint_timeout="2s",
        parallelism=2,
    )
    windows(app.stream(topic, schema=SCHEMA, time="ts", lateness="2s")).to(out, key="account")
    completed = lambda: app.statistics()["checkpoints"]["completed"]  # noqa: E731
    sending = asyncio.create_task(asyncio.to_thread(produce))
    try:
        async with started(app):
            await until(lambda: rows_in(app) > 1000 and completed() >= 2)
            await asyncio.to_thread(own_kafka.stop)
            was = rows_in(app)
            await asyncio.to_thread(own_kafka.start)
            await until(lambda: rows_in(app) > was + 500, "rows after the return")
            had = completed()
            await until(lambda: completed() >= had + 2, "checkpoints after the return")
            ended.set()
            await bounded(sending)
            tick(place.settings, topic)
            wanted = expected(sent)
            records = await eventually(place, out, len(wanted))
            assert late_rows(app) == 0
    finally:
        ended.set()
    assert answers(output(records)) == wanted
    assert place.committed(f"{name}-group", topic) == place.ends(topic)


async def test_partitions_that_are_paused_until_others_have_come_as_far_give_each_pair_once(
    kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, held, hold = uuid.uuid4().hex[:8], set(), KafkaReader.hold
    monkeypatch.setattr(Reader.__init__, "__kwdefaults__", {"max_rows": 50})  # rows of a batch
    monkeypatch.setattr(KafkaReader, "hold", lambda self, places: (held.update(places), hold(self, places))[1])
    producer = Producer({"bootstrap.servers": kafka_url.removeprefix("kafka://")})
    for side, parts in (("a", 2), ("b", 3)):
        create_topic(kafka_url, f"{side}-{name}", parts)
        for n in range(600):
            row = b'{"n": %d, "ts": %d}' % (n, n * 1000)
            producer.produce(f"{side}-{name}", row, partition=n % parts)
    producer.flush()
    app, out, schema = App(f"app-{name}", broker=kafka_url), ListSink(), {"n": "int64", "ts": "int64"}
    app.configure(checkpoint_interval=0.05)
    a, b = (app.stream(f"{side}-{name}", schema=schema, time="ts", lateness="1h") for side in "ab")
    a.join(b.rename({"ts": "at"}), on="n", between=("-1s", "1s"), max_drift="1m").to(out)
    async with started(app):
        await until(lambda: len(out.rows) >= 600)
    assert sorted(row["n"] for row in out.rows) == list(range(600))
    assert held


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
async def test_partitions_of_a_topic_wait_for_each_other_and_no_window_loses_a_row(
    parallelism: int, kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, apart, hold = uuid.uuid4().hex[:8], set(), KafkaReader.hold
    monkeypatch.setattr(Reader.__init__, "__kwdefaults__", {"max_rows": 50})  # rows of a batch
    monkeypatch.setattr(KafkaReader, "hold", lambda self, places: (apart.update(places), hold(self, places))[1])
    producer = Producer({"bootstrap.servers": kafka_url.removeprefix("kafka://")})
    create_topic(kafka_url, name, 2)
    for n in range(600):
        for part, step_ms in ((0, 10_000), (1, 1000)):
            producer.produce(name, b'{"n": %d, "ts": %d}' % (n % 7, n * step_ms), partition=part)
    producer.flush()
    app, out, schema = App(f"app-{name}", broker=kafka_url), ListSink(), {"n": "int64", "ts": "int64"}
    app.configure(parallelism=parallelism, checkpoint_interval=0.05)
    rows = app.stream(name, schema=schema, time="ts", idle="2s", idle_closes=True, max_drift="1m")
    rows.key_by("n").window(tumbling("1m")).aggregate(rows=count()).to(out)
    async with started(app):
        await until(lambda: sum(row["rows"] for row in out.rows) >= 1200)
    wanted = Counter((n % 7, n * step_s // 60 * 60) for n in range(600) for step_s in (10, 1))
    assert {(row["n"], row["window_start"].timestamp()): row["rows"] for row in out.rows} == wanted
    assert len(out.rows) == len(wanted)
    assert parallelism > 1 or (name, 0) in apart


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
async def test_a_step_is_refilled_from_its_topic_and_its_table_is_written_again(place, name, parallelism, tmp_path):
    topic, out = f"{name}-cars", f"{name}-newest"
    create_topic(place.url, topic, 3)

    def cars(number: int) -> dict[str, object]:
        return {"id": number % 7, "maker": f"m{number % 3}", "seats": number}

    async def live(numbers, *columns, **settings):
        app = App(name, place.url, state=str(tmp_path / "state"), parallelism=parallelism)
        app.configure(**settings)
        table = app.stream(topic, schema={"id": "int64", "maker": "string", "seats": "int64"}).select("id", *columns)
        table.upsert("id").named("newest").to(out)
        await app.start()
        for number in numbers:
            await app.send(topic, cars(number), key=str(number % 7))
        await until(lambda: rows_in(app) == len(numbers))
        await bounded(app.stop())
        return [json.loads(record.payload) for record in place.read(out)]

    before = await live(range(50), "maker")
    after = await live(range(50, 52), "maker", "seats", refill=["newest"])
    written = after[len(before) :]
    assert sorted(written[:7], key=str) == sorted((cars(number) for number in range(43, 50)), key=str)
    assert written[7:] == [cars(50), cars(51)]
    again = await live([], "maker", "seats", reemit=[out])
    assert sorted(again[len(after) :], key=str) == sorted((cars(number) for number in range(45, 52)), key=str)
