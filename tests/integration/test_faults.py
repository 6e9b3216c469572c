"""Bad input and faults of a whole App, on the embedded broker and on a real Kafka: no good record is lost, and what is said.

Every fault that the first issue lists, and where it is shown. No file: here. Files of other folders show a part below the App.

payload that is no JSON, empty,    test_payloads_that_are_no_json_go_to_the_dead_letters_and_the_others_through
  null, or invalid UTF-8           unit/agents/test_agent_errors.py: test_undecodable_payloads_go_to_the_dead_letters_under_policy
wrong type in a field,             test_rows_that_do_not_fit_the_schema_go_to_the_dead_letters_and_missing_fields_are_null
  missing field                    unit/_cython/text/test_json_kernel.py
10 MB payload                      test_ten_megabytes_are_a_record_like_any_other_on_each_way
a result too large to be written   test_a_result_that_is_too_large_for_the_broker_stops_the_app_by_name_and_nothing_is_lost
null key, missing key field        test_a_null_key_is_nothing_special_and_a_missing_key_field_is_a_dead_letter
                                   unit/agents/test_agent_errors.py: test_skip_or_call_but_never_lose_a_message_whose_key_is_odd
unknown topic                      test_an_unknown_topic_ends_sabot_run_with_one_line_that_names_it_and_is_not_made
                                   test_agent_kafka.py: test_a_missing_source_topic_is_a_user_error_that_names_it
broker absent at the start         test_an_absent_broker_is_named_within_ten_seconds_and_ends_sabot_run_with_one_line
broker gone in the middle          test_a_broker_that_goes_in_the_middle_and_comes_back_loses_nothing
                                   test_kafka_faults.py (source and sink alone)
nothing to read for a while        test_the_figures_of_a_source_that_waits_for_records_hold_nobody_up
state directory locked,            test_a_second_worker_and_a_locked_directory_are_refused_and_the_first_worker_goes_on
  a second worker                  unit/test_app.py: test_a_directory_that_another_app_holds_is_named
                                   recovery/test_kill_minus_nine.py (after a kill)
corrupt manifest                   test_a_corrupt_manifest_ends_sabot_run_with_the_file_and_the_ways_on_which_lose_nothing
                                   test_agent_state_e2e.py: test_a_corrupt_manifest_is_named_and_nothing_is_lost
                                   unit/engine/checkpoint/test_checkpoint_storage.py: test_no_flipped_bit_of_a_manifest_changes_what_is_read
disk full at a checkpoint          test_a_disk_that_is_full_while_checkpoints_are_taken_costs_only_those
                                   unit/engine/checkpoint/test_coordinator.py: test_a_full_disk_fails_checkpoints_until_there_is_room
an agent that raises               test_an_agent_that_raises_ends_sabot_run_with_one_line_and_a_mended_one_loses_nothing
                                   unit/agents/test_agent_errors.py (policies, batches, odd errors)
an agent that hangs                test_a_call_that_hangs_fails_checkpoints_by_name_and_a_stop_ends_all_the_same
                                   test_ctrl_c_ends_sabot_run_on_kafka_while_a_call_hangs
                                   test_ctrl_c_ends_sabot_run_in_the_end_when_a_call_refuses_to_be_cancelled
                                   unit/agents/test_agent_errors.py: test_fail_of_a_hanging_call_after_its_timeout
an agent's wrong return type       test_a_result_of_the_wrong_type_stops_the_agent_by_name_and_a_mended_one_loses_nothing
                                   unit/agents/test_agent_errors.py: test_skip_takes_a_batch_agents_wrong_return_type_as_an_error
two agents with one name, module   test_a_program_that_is_wrong_is_refused_in_one_line
  missing, attribute that is       unit/test_app.py: test_two_agents_with_one_name_are_refused
  no App                           unit/cli/test_cli.py: test_a_target_that_is_not_there_is_named
kill -9                            test_after_kills_on_kafka_state_is_exact_results_are_all_there_and_offsets_never_ahead
                                   recovery/

SABOT_TEST_OUTAGE_SECONDS=20 keeps the broker away for that long at least.
"""

import asyncio
import itertools
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from pathlib import Path

import pytest
from confluent_kafka import Producer

from sabot import AgentFailed, App, BrokerUnavailable
from sabot.engine.checkpoint import CheckpointStorage
from sabot.errors import AppLocked, CheckpointFailed
from sabot.kafka.admin import partitions, topics
from tools.agent_tools import (
    bounded,
    checkpoint,
    manifest_files,
    manifests,
    processed,
    started,
    state_of,
    until,
    within,
)
from tools.broker import free_ports
from tools.fault_tools import (
    Place,
    counts_in,
    entries,
    eventually,
    header,
    jsons,
    lines_of,
    newest,
    offsets_of,
    one_line,
    outage_seconds,
    row,
    running,
    sabot_run,
    unfinished,
)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("warm_starts")]

KEYS = [f"k{n}" for n in range(9)]


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def place(request):
    """A broker of either kind, from outside."""
    return Place(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def real(kafka_url):
    """The real broker, from outside."""
    return Place(kafka_url)


@pytest.fixture
def name():
    """An app's id, and so its consumer groups, that no other test uses."""
    return f"app-{uuid.uuid4().hex[:8]}"


def checkpoints_of(app):
    """Its figures of checkpoints; not by `App.statistics`, which asks everybody else too."""
    return app.agent_runtime.checkpoint_coordinator.statistics()


async def stopped_at_the_end(app, place, agent, topic):
    """After a stop: everything is committed."""
    await bounded(app.stop())
    ends = await asyncio.to_thread(place.ends, topic)
    assert await asyncio.to_thread(place.committed, f"{app.id}.{agent}-group", topic) == ends


# Bad input


@pytest.mark.one_in(6, "a second of a core each")
@pytest.mark.parametrize("lanes", [{}, {"concurrency": 3}, {"key": "k"}], ids=["plain", "lanes", "keyed"])
async def test_payloads_that_are_no_json_go_to_the_dead_letters_and_the_others_through(place, name, lanes, tmp_path):
    bad = {
        b"{not json": "not JSON",
        b"": "not JSON",
        b'{"n": 1} and more': "not JSON",
        b'{"k": "\xff\xfe"}': "not JSON",
        b"\x00\xff\xfe": "not JSON",
        None: "null",
    }
    topic, out = place.topic(), place.topic()
    sent = list(itertools.chain.from_iterable((row(k="a", n=n), payload) for n, payload in enumerate(bad)))
    place.fill(topic, [*sent, row(k="a", n=len(bad))], key=b"\xffkey")
    app = App(name, broker=place.url, state="memory", checkpoint_dir=tmp_path, version="v7")

    @app.agent(topic, sink=out, **lanes)
    async def count(ctx):
        total = (await ctx.state().get("total") or 0) + 1
        await ctx.state().put("total", total)
        return {"n": ctx.message["n"], "total": total}

    await app.start()
    results = await eventually(place, out, len(bad) + 1)
    letters = await eventually(place, f"{topic}.dlq", len(bad))
    assert state_of(app, "count") == "running"
    await stopped_at_the_end(app, place, "count", topic)
    assert jsons(results) == [{"n": n, "total": n + 1} for n in range(len(bad) + 1)]
    assert [letter.payload for letter in letters] == list(bad)
    assert {letter.key for letter in letters} == {b"\xffkey"}
    for number, (letter, why) in enumerate(zip(letters, bad.values(), strict=True)):
        offset = str(2 * number + 1)
        assert (header(letter, "topic"), header(letter, "partition"), header(letter, "offset")) == (topic, "0", offset)
        assert (header(letter, "agent"), header(letter, "version")) == (f"{name}.count", "v7")
        assert header(letter, "error") == "DataError"
        assert f"{topic}[0]@{offset}" in header(letter, "message")
        assert why in header(letter, "message")
    stats = app.agent_runtime.get_stats()[f"{name}.count"]
    assert (stats["messages_processed"], stats["dead_letters"]) == (len(bad) + 1, len(bad))


@pytest.mark.one_in(2, "a second of a core each")
async def test_rows_that_do_not_fit_the_schema_go_to_the_dead_letters_and_missing_fields_are_null(
    place, name, tmp_path
):
    bad = {
        b'{"n": "text", "who": "x"}': "n",
        b'{"n": 1.5, "who": "x"}': "n",
        b'{"n": 1180591620717411303424}': "n",
        b'{"n": 1, "who": {"deep": 1}}': "who",
        b"[1]": "",
        b"5": "",
        b"{not json": "",
        b"": "",
        b'{"who": "\xff\xfe"}': "",
        None: "null",
    }
    good = {
        b'{"n": 1, "who": "a"}': {"n": 1, "who": "a"},
        b'{"who": "b"}': {"n": None, "who": "b"},
        b'{"n": null, "other": [1]}': {"n": None, "who": None},
        b"{}": {"n": None, "who": None},
        b'{"n": 2, "who": "c"}': {"n": 2, "who": "c"},
    }
    topic, out = place.topic(), place.topic()
    mixed = [payload for pair in itertools.zip_longest(bad, good, fillvalue=b"{}") for payload in pair]
    place.fill(topic, mixed, key=b"\xff")
    app = App(name, broker=place.url)

    @app.agent(topic, sink=out, batch=True, schema={"n": "int64", "who": "string"})
    def score(batch, ctx):
        return batch

    await app.start()
    results = await eventually(place, out, len(mixed) - len(bad))
    letters = await eventually(place, f"{topic}.dlq", len(bad))
    assert state_of(app, "score") == "running"
    await stopped_at_the_end(app, place, "score", topic)
    assert jsons(results) == [good.get(payload) for payload in mixed if payload not in bad]
    assert [letter.payload for letter in letters] == list(bad)
    assert {letter.key for letter in letters} == {b"\xff"}
    for number, (letter, why) in enumerate(zip(letters, bad.values(), strict=True)):
        assert header(letter, "offset") == str(2 * number)
        assert header(letter, "agent") == f"{name}.score"
        assert header(letter, "error") == "DataError"
        assert header(letter, "message")
        assert why in header(letter, "message")


@pytest.mark.one_in(2, "a second of a core each")
async def test_ten_megabytes_are_a_record_like_any_other_on_each_way(place, name):
    topic, out = place.topic(), place.topic()
    big = b'{"k": "a", "text": "%s"}' % (b"x" * 10_000_000)
    broken = b'{"k": "a", "text": "%s' % (b"y" * 10_000_000)
    place.fill(topic, [row(k="a", text="1"), big, broken, row(k="a", text="2")])
    app = App(name, broker=place.url)

    @app.agent(topic, sink=out)
    async def copy(ctx):
        return ctx.message

    @app.agent(topic, key="k", sink=f"{out}-batch", batch=True, schema={"k": "string", "text": "string"})
    def copy_batch(batch, ctx):
        return batch

    await app.start()
    results = await eventually(place, out, 3)
    batched = await eventually(place, f"{out}-batch", 3)
    letters = await eventually(place, f"{topic}.dlq", 2)
    await stopped_at_the_end(app, place, "copy", topic)
    texts = ["1", "x" * 10_000_000, "2"]
    assert [value["text"] for value in jsons(results)] == texts
    assert [value["text"] for value in jsons(batched)] == texts
    assert {letter.payload for letter in letters} == {broken}
    assert {header(letter, "agent") for letter in letters} == {f"{name}.copy", f"{name}.copy_batch"}
    assert all(len(header(letter, "message")) < 1000 for letter in letters)


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_a_null_key_is_nothing_special_and_a_missing_key_field_is_a_dead_letter(place, name):
    topic, plain, keyed, batched = place.topic(), place.topic(), place.topic(), place.topic()
    good = [row(k=k, n=n) for n, k in enumerate(["a", "", 0, "b", False])]
    bad = [row(n=5), row(k=None, n=6), row(k={"deep": 1}, n=7)]
    place.fill(topic, good + bad)
    app = App(name, broker=place.url, state="memory")

    @app.agent(topic, sink=plain, concurrency=3)
    async def without_key(ctx):
        assert ctx.key is None
        return ctx.message["n"]

    @app.agent(topic, key="k", sink=keyed, concurrency=3)
    async def with_key(ctx):
        await ctx.state().put("n", ctx.message["n"])
        return ctx.message["n"]

    @app.agent(topic, key="n", sink=batched, batch=True, schema={"n": "int64"})
    def batch_with_key(batch, ctx):
        return batch

    await app.start()
    assert sorted(jsons(await eventually(place, plain, 8))) == list(range(8))
    assert sorted(jsons(await eventually(place, keyed, 5))) == list(range(5))
    results = await eventually(place, batched, 8)
    letters = await eventually(place, f"{topic}.dlq", 3)
    for agent in ("without_key", "with_key", "batch_with_key"):
        assert state_of(app, agent) == "running"
    await stopped_at_the_end(app, place, "with_key", topic)
    assert [(record.value["n"], record.key) for record in results] == [(n, b"%d" % n) for n in range(8)]
    assert [letter.payload for letter in letters] == bad
    assert {header(letter, "agent") for letter in letters} == {f"{name}.with_key"}
    assert all("field 'k'" in header(letter, "message") for letter in letters)
    assert [header(letter, "offset") for letter in letters] == ["5", "6", "7"]


@pytest.mark.slow  # half a second of a core
@pytest.mark.kafka
async def test_a_result_that_is_too_large_for_the_broker_stops_the_app_by_name_and_nothing_is_lost(
    real, name, tmp_path
):
    topic, out = real.topic(), real.topic()
    real.fill(topic, [row(n=n) for n in range(6)])

    def build(size):
        app = App(name, broker=real.url, state="memory", checkpoint_dir=tmp_path)

        @app.agent(topic, sink=out)
        async def grow(ctx):
            total = (await ctx.state().get("total") or 0) + 1
            await ctx.state().put("total", total)
            return {"n": ctx.message["n"], "total": total, "text": "x" * (size if ctx.message["n"] == 3 else 1)}

        return app

    with pytest.raises(AgentFailed, match=rf"{out}.*above message\.max\.bytes"):
        await bounded(build(20_000_000).run())
    async with started(build(10)):
        records = await eventually(real, out, 6)
        while {record.value["n"] for record in records} != set(range(6)):
            records = await eventually(real, out, len(records) + 1)
    assert {(record.value["n"], record.value["total"]) for record in records} == {(n, n + 1) for n in range(6)}


# Topics and brokers that are not there


@pytest.mark.slow  # a second of a core, or more
@pytest.mark.kafka
async def test_an_unknown_topic_ends_sabot_run_with_one_line_that_names_it_and_is_not_made(real, name, tmp_path):
    missing = f"missing-{uuid.uuid4().hex[:8]}"
    words = ["fault_app:app", "--broker", real.url, "--state", str(tmp_path), "--loglevel", "warning"]
    done = await asyncio.to_thread(sabot_run, *words, FAULT_ID=name, FAULT_TOPIC=missing)
    line = one_line(done, 1)
    assert f"topic '{missing}' does not exist" in line
    assert real.url in line
    assert partitions(real.url, missing) == 0
    assert manifests(tmp_path / "checkpoints") == set()


@pytest.mark.slow  # the same of a source, of an agent and of a stream: test_kafka_faults, test_agent_kafka, test_stream_kafka
async def test_an_absent_broker_is_named_within_ten_seconds_and_ends_sabot_run_with_one_line(name, tmp_path):
    address = f"127.0.0.1:{free_ports(1)[0]}"
    words = ["fault_app:app", "--broker", f"kafka://{address}", "--state", str(tmp_path), "--loglevel", "warning"]
    run = asyncio.create_task(asyncio.to_thread(sabot_run, *words, FAULT_ID=name, FAULT_TOPIC="t"))
    app = App(name, broker=f"kafka://{address}", state="memory")
    for number in range(3):

        @app.agent([f"a{number}", f"b{number}"], name=f"agent{number}", sink="out", on_error="skip")
        async def agent(ctx):
            return ctx.message

    with (
        within(10),
        pytest.raises(BrokerUnavailable, match=rf"kafka://{address} does not answer.*\(is the broker running"),
    ):
        await bounded(app.run())
    assert {stats["state"] for stats in app.agent_runtime.get_stats().values()} == {"stopped"}
    line = one_line(await run, 1)
    assert f"kafka://{address} does not answer" in line
    assert "is the broker running, and is the address right?" in line


@pytest.mark.kafka
async def test_the_figures_of_a_source_that_waits_for_records_hold_nobody_up(real, name):
    topic = real.topic()
    app = App(name, broker=real.url)

    @app.agent(topic)
    async def look(ctx):
        return None

    real.fill(topic, [row(n=1)])
    async with started(app):
        await until(lambda: processed(app, "look") == 1)
        figures = await bounded(asyncio.to_thread(app.statistics))
    assert figures["sources"][f"{name}.look/{topic}"]["rows_in"] == 1


@pytest.mark.kafka
@pytest.mark.slow  # the same of a source, of a stream and of a delivery: test_kafka_faults, test_stream_kafka, test_kafka_delivery
async def test_a_broker_that_goes_in_the_middle_and_comes_back_loses_nothing(
    own_kafka, name, tmp_path, caplog, monkeypatch
):
    """Records come, results go and checkpoints are taken before, while and after the broker is away."""
    # Reports of the outage that have waited for a core would be taken for another outage.
    monkeypatch.setattr("sabot.kafka.client._FRESH_SECONDS", 60.0)
    real = Place(own_kafka.url)
    topic, out, sent, ended = real.topic(partitions=3), real.topic(), itertools.count(), threading.Event()

    def produce():
        """A world that goes on sending: 1,000 records, then a few all the time until it is over."""
        producer = Producer({**real.settings, "enable.idempotence": True, "linger.ms": 5})
        while not ended.wait(0.004 if (n := next(sent)) > 1000 else 0):
            producer.produce(topic, row(k=KEYS[n % len(KEYS)], n=n), b"%d" % n)
            producer.poll(0)
        assert producer.flush(60) == 0

    app = App(
        name,
        broker=real.url,
        state=str(tmp_path / "state"),
        checkpoint_interval=0.2,
        checkpoint_timeout="2s",
    )

    @app.agent(topic, key="k", sink=out, concurrency=4)
    async def count(ctx):
        total = (await ctx.state().get("total") or 0) + 1
        await ctx.state().put("total", total)
        await asyncio.sleep(0.0005)
        return ctx.message

    completed = lambda: checkpoints_of(app)["completed"]  # noqa: E731
    sending = asyncio.create_task(asyncio.to_thread(produce))
    with caplog.at_level(logging.WARNING, logger="sabot"):
        async with started(app):
            await until(lambda: processed(app, "count") > 500 and completed() >= 2)
            gone = time.monotonic()
            stopping = asyncio.create_task(asyncio.to_thread(own_kafka.stop))
            lost = (f"source of topic '{topic}'", f"sink of topic '{out}'")
            await until(lambda: all(f"{who}: {real.url} does not answer" in caplog.text for who in lost))
            assert state_of(app, "count") == "running"
            await until(lambda: time.monotonic() - gone >= outage_seconds(), patience=outage_seconds() + 15)
            await stopping
            await asyncio.to_thread(own_kafka.start)
            said = checkpoints_of(app)["last_error"]
            was, had = processed(app, "count"), completed()
            await until(lambda: processed(app, "count") > was + 500, "records after the return")
            await until(lambda: completed() >= had + 2, "checkpoints after the return")
            ended.set()
            await bounded(sending)
            total = next(sent) - 1
            await until(lambda: processed(app, "count") == total, "the last record")
            assert state_of(app, "count") == "running"
    for who in lost:
        assert caplog.text.count(f"{who}: {real.url} does not answer") == 1
        assert caplog.text.count(f"{who}: {real.url} answers again") == 1
    manifest = newest(tmp_path / "state" / "checkpoints")
    assert counts_in(manifest, KEYS) == {key: len(range(n, total, len(KEYS))) for n, key in enumerate(KEYS)}
    results = [record.value["n"] for record in real.read(out)]
    assert set(results) == set(range(total))
    assert len(results) == total  # the producer is idempotent, and nothing was restored
    ends = real.ends(topic)
    assert sum(ends.values()) == total
    assert offsets_of(manifest, "commit") == ends
    assert real.committed(f"{name}.count-group", topic) == ends
    assert jsons(real.read(f"{topic}.dlq")) == []
    if said:  # a checkpoint of the outage; it waited for the sink
        assert out in said
    idle = f"sink of topic '{topic}.dlq': {real.url} does not answer"
    assert caplog.text.count(idle) <= 1, "one line on loss, also of a sink that has nothing to write"


# Directories


@pytest.mark.slow  # three processes; the lock itself: test_checkpoint_storage
@pytest.mark.kafka
async def test_a_second_worker_and_a_locked_directory_are_refused_and_the_first_worker_goes_on(real, name, tmp_path):
    topic, rows = real.topic(), 300
    out, log, state = f"{topic}-out", tmp_path / "log", tmp_path / "state"
    real.fill(topic, [row(k=KEYS[n % 9], n=n) for n in range(rows // 2)])
    env = {"FAULT_ID": name, "FAULT_TOPIC": topic}
    words = ["fault_app:app", "--broker", real.url, "--loglevel", "warning", "--state", str(state)]
    with running(log, *words, "--checkpoint-interval", "0.2", **env) as first:
        await until(lambda: (state / "checkpoints" / "LOCK").exists() and (state / "db" / "lock").exists())
        second, locked = await asyncio.gather(
            asyncio.to_thread(sabot_run, *words, **env),
            asyncio.to_thread(sabot_run, *words, "--checkpoint-dir", str(tmp_path / "other"), **env),
        )
        for done, directory in ((second, state / "checkpoints"), (locked, state / "db")):
            line = one_line(done, 1)
            assert str(directory) in line
            assert str(first.pid) in line
            assert "(stop " in line
            assert "another directory" in line
        app = App(name, broker=real.url, state="memory", checkpoint_dir=state / "checkpoints")

        @app.agent(topic, name="count", key="k", sink=out)
        async def never(ctx):
            raise AssertionError("two workers on one app")

        with pytest.raises(AppLocked, match=rf"{state / 'checkpoints'} is in use by process {first.pid}"):
            await bounded(app.run())
        real.fill(topic, [row(k=KEYS[n % 9], n=n) for n in range(rows // 2, rows)])
        results = await eventually(real, out, rows)
        first.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(first.wait, 60) == 0, lines_of(log)
    assert sorted(record.value["n"] for record in results) == list(range(rows))
    assert sum(counts_in(newest(state / "checkpoints"), KEYS).values()) == rows
    assert real.committed(f"{name}.count-group", topic) == {0: rows}


@pytest.mark.kafka
@pytest.mark.slow  # without Kafka: test_checkpoint_storage, test_checkpoint_sound
async def test_a_corrupt_manifest_ends_sabot_run_with_the_file_and_the_ways_on_which_lose_nothing(real, name, tmp_path):
    topic, rows = real.topic(), 200
    out, log, state = f"{topic}-out", tmp_path / "log", tmp_path / "state"
    env = {"FAULT_ID": name, "FAULT_TOPIC": topic}
    words = ["fault_app:app", "--broker", real.url, "--loglevel", "warning", "--state", str(state)]

    async def run(upto):
        with running(log, *words, "--checkpoint-interval", "0.1", **env) as process:
            had = {record.value["n"] for record in await asyncio.to_thread(real.read, out)}
            real.fill(topic, [row(k=KEYS[n % 9], n=n) for n in range(len(had), upto)])
            seen = set()
            while seen != set(range(upto)):
                assert process.poll() is None, lines_of(log)
                seen = {record.value["n"] for record in await asyncio.to_thread(real.read, out)}
            await until(lambda: len(manifests(state / "checkpoints")) >= 2)
            process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)

    await run(rows // 2)
    manifest = newest(state / "checkpoints").path
    manifest.write_bytes(manifest.read_bytes()[:-40] + b"#" * 40)
    line = one_line(await asyncio.to_thread(sabot_run, *words, **env), 1)
    assert f"{manifest} is damaged" in line
    assert f"remove {manifest} to go back to checkpoint" in line
    assert "--fresh" not in line  # no advice to lose state, while there is another way
    assert len(await asyncio.to_thread(real.read, out)) == rows // 2  # it did nothing on its own account
    manifest.unlink()  # as it says
    await run(rows)
    found = newest(state / "checkpoints")
    assert sum(counts_in(found, KEYS).values()) == rows
    assert real.committed(f"{name}.count-group", topic) == {0: rows}
    for file in manifest_files(state / "checkpoints"):
        file.write_bytes(b"")
    line = one_line(await asyncio.to_thread(sabot_run, *words, **env), 1)
    assert f"{found.path} is damaged" in line
    assert "if there is none, start with sabot run fault_app:app --fresh" in line


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(mounted)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


def fill_up(path: Path) -> None:
    """Takes all the room that is left on the file system of this path."""
    with path.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(b"x" * size)
            except OSError:
                size //= 2


@pytest.mark.one_in(6, "a fifth of a second of a core each")
@pytest.mark.parametrize("full", ["checkpoints_of_memory", "checkpoints_of_rocksdb", "rocksdb_and_checkpoints"])
async def test_a_disk_that_is_full_while_checkpoints_are_taken_costs_only_those(
    place, name, full, small_disk, tmp_path
):
    topic, rows, value = place.topic(), 60, "v" * 20_000
    state = {"checkpoints_of_rocksdb": tmp_path / "state", "rocksdb_and_checkpoints": small_disk / "state"}.get(full)
    seen = []

    def build():
        directory = small_disk / "checkpoints"
        app = App(name, broker=place.url, state="memory" if state is None else str(state), checkpoint_dir=directory)

        @app.agent(topic)
        async def count(ctx):
            n = ctx.message["n"]
            before = (await ctx.state().get("total") or [0])[0]
            await ctx.state().put("total", [before + 1])
            await ctx.state().put(f"row-{n}", [n, value])
            seen.append((n, before + 1))

        return app

    app = build()
    place.fill(topic, [row(n=n) for n in range(rows // 3)])
    async with started(app):
        await until(lambda: len(seen) == rows // 3)
        good = await checkpoint(app)
        fill_up(small_disk / "ballast")
        place.fill(topic, [row(n=n) for n in range(rows // 3, 2 * rows // 3)])
        await until(lambda: len(seen) == 2 * rows // 3)  # the app goes on
        for _ in range(2):
            with pytest.raises(CheckpointFailed, match="No space left on device") as failed:
                await bounded(app.agent_runtime.trigger_checkpoint())
            assert str(small_disk) in str(failed.value)
            assert "make room" in str(failed.value)
        assert state_of(app, "count") == "running"
        assert CheckpointStorage(small_disk / "checkpoints").last_id() == good
        assert (await asyncio.to_thread(place.committed, f"{name}.count-group", topic))[0] <= rows // 3
        (small_disk / "ballast").unlink()
        assert await checkpoint(app) > good
    async with started(build()):
        place.fill(topic, [row(n=n) for n in range(2 * rows // 3, rows)])
        await until(lambda: len(seen) == rows)
    assert len(entries(newest(small_disk / "checkpoints"))) == rows + 1
    assert seen == [(n, n + 1) for n in range(rows)]


# Agents


@pytest.mark.slow  # a second of a core, or more
@pytest.mark.kafka
async def test_an_agent_that_raises_ends_sabot_run_with_one_line_and_a_mended_one_loses_nothing(real, name, tmp_path):
    topic, rows, bad = real.topic(), 200, 77
    out, log, state = f"{topic}-out", tmp_path / "log", tmp_path / "state"
    real.fill(topic, [row(k=KEYS[n % 9], n=n) for n in range(rows)])
    env = {"FAULT_ID": name, "FAULT_TOPIC": topic}
    words = ["fault_app:app", "--broker", real.url, "--state", str(state), "--checkpoint-interval", "0.1"]
    done = await asyncio.to_thread(sabot_run, *words, "--loglevel", "critical", FAULT_BAD=str(bad), **env)
    line = one_line(done, 1)
    assert f"agent {name}.count failed at {topic}[0]@{bad}: ValueError: record {bad} is no good" in line
    assert "correct the agent and start again: it continues at that record" in line
    assert 0 <= real.committed(f"{name}.count-group", topic)[0] <= bad
    assert (0, bad) in unfinished(newest(state / "checkpoints"))
    before = {record.value["n"] for record in real.read(out)}
    assert bad not in before
    with running(log, *words, **env) as process:
        results = await eventually(real, out, rows)
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
    assert sorted(record.value["n"] for record in results) == list(range(rows))  # each once: nothing crashed
    assert counts_in(newest(state / "checkpoints"), KEYS) == {
        key: len(range(n, rows, len(KEYS))) for n, key in enumerate(KEYS)
    }
    assert real.committed(f"{name}.count-group", topic) == {0: rows}
    assert real.read(f"{topic}.dlq") == []


@pytest.mark.one_in(2, "a quarter of a second of a core each")
async def test_a_call_that_hangs_fails_checkpoints_by_name_and_a_stop_ends_all_the_same(place, name, tmp_path):
    topic, out, hangs = place.topic(), place.topic(), 5
    place.fill(topic, [row(k="a", n=n) for n in range(9)])

    def build(hang):
        app = App(
            name,
            broker=place.url,
            state="memory",
            checkpoint_dir=tmp_path,
            checkpoint_interval=0.1,
            checkpoint_timeout="0.3s" if hang else "60s",
        )

        @app.agent(topic, sink=out)
        async def count(ctx):
            total = (await ctx.state().get("total") or 0) + 1
            await ctx.state().put("total", total)
            if hang and ctx.message["n"] == hangs:
                await asyncio.Event().wait()
            return [ctx.message["n"], total]

        return app

    app = build(hang=True)
    run = asyncio.create_task(app.run())
    await until(lambda: processed(app, "count") == hangs)
    told = f"agent {name}.count at {topic}[0]@{hangs}: one call has been running for"
    # On a busy machine checkpoints from before the call may have failed too, which had to wait for something else.
    await until(lambda: told in (checkpoints_of(app)["last_error"] or ""), "a checkpoint that waits for the call")
    assert "timeout=" in checkpoints_of(app)["last_error"]
    assert checkpoints_of(app)["failed"] >= 1
    app.agent_runtime.checkpoint_coordinator._timeout = 60.0  # for the last one, which waits for no call
    assert state_of(app, "count") == "running"
    assert not run.done()
    app.request_stop()
    await bounded(run)
    assert (await asyncio.to_thread(place.committed, f"{name}.count-group", topic)) == {0: hangs}
    async with started(build(hang=False)):
        results = await eventually(place, out, 9)
    assert jsons(results) == [[n, n + 1] for n in range(9)]


@pytest.mark.slow  # a second of a core, or more
@pytest.mark.kafka
async def test_ctrl_c_ends_sabot_run_on_kafka_while_a_call_hangs(real, name, tmp_path):
    topic = real.topic()
    (tmp_path / "hangs.py").write_text(
        f"import asyncio\nfrom sabot import App\napp = App({name!r}, checkpoint_timeout='0.3s')\n"
        f"@app.agent({topic!r}, sink='{topic}-out')\nasync def count(ctx):\n"
        "    if ctx.message['n'] == 3:\n        print('hangs', flush=True)\n        await asyncio.Event().wait()\n"
        "    return ctx.message\n"
    )
    real.fill(topic, [row(n=n) for n in range(6)])
    log = tmp_path / "log"
    words = ["hangs:app", "--broker", real.url, "--state", str(tmp_path / "state"), "--checkpoint-interval", "0.1"]
    with running(log, *words, folder=tmp_path) as process:
        await until(lambda: "one call has been running for" in lines_of(log))
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
    assert f"agent {name}.count at {topic}[0]@3: one call has been running for" in lines_of(log)
    assert [record.value["n"] for record in real.read(f"{topic}-out")] == [0, 1, 2]
    assert real.committed(f"{name}.count-group", topic) == {0: 3}
    assert unfinished(newest(tmp_path / "state" / "checkpoints")) == [(0, 3), (0, 4), (0, 5)]


STUBBORN = """
import asyncio
from sabot import App
from sabot.testing import MemoryBroker

app = App("shop")

@app.agent("orders")
async def check(ctx):
    print("hangs", flush=True)
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

MemoryBroker.get().publish("orders", [1])
"""


@pytest.mark.slow  # it waits for ten seconds; calls that hang and end: below
def test_ctrl_c_ends_sabot_run_in_the_end_when_a_call_refuses_to_be_cancelled(tmp_path):
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    with running(tmp_path / "log", "stubborn:app", folder=tmp_path) as process:
        limit = time.monotonic() + 60
        while "hangs" not in lines_of(tmp_path / "log"):
            assert process.poll() is None, lines_of(tmp_path / "log")
            assert time.monotonic() < limit
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert "shop.check" in lines_of(tmp_path / "log").partition("again to stop at once")[2]  # who held it up


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("kind", ["record", "batch"])
async def test_a_result_of_the_wrong_type_stops_the_agent_by_name_and_a_mended_one_loses_nothing(
    place, name, kind, tmp_path
):
    topic, out = place.topic(), place.topic()

    def build(broken):
        app = App(name, broker=place.url, state="memory", checkpoint_dir=tmp_path)

        if kind == "record":

            @app.agent(topic, sink=out)
            async def work(ctx):
                total = (await ctx.state().get("total") or 0) + 1
                await ctx.state().put("total", total)
                return object() if broken and ctx.message["n"] == 3 else {"n": ctx.message["n"]}

        else:

            @app.agent(topic, sink=out, batch=True, schema={"n": "int64"})
            def work(batch, ctx):
                return {1, 2} if broken and 3 in batch.column("n").to_pylist() else batch

        return app

    place.fill(topic, [row(n=n) for n in range(6)])
    app = build(broken=True)
    with pytest.raises(AgentFailed) as failed:
        await bounded(app.run())
    assert f"agent {name}.work failed at {topic}[0]@" in str(failed.value)
    assert ("object" if kind == "record" else "set") in str(failed.value)
    assert "correct the agent" in str(failed.value)
    assert state_of(app, "work") == "failed"
    if kind == "record":
        assert f"{topic}[0]@3" in str(failed.value)
        assert "JSON" in str(failed.value)
    async with started(build(broken=False)):
        results = await eventually(place, out, 6)
    assert [record.value["n"] for record in results] == list(range(6))


TWICE = """
from sabot import App

app = App("shop")

@app.agent("orders")
async def check(ctx):
    pass

@app.agent("payments", name="check")
async def other(ctx):
    pass
"""


@pytest.mark.slow  # a second of a core, or more
def test_a_program_that_is_wrong_is_refused_in_one_line(tmp_path):
    (tmp_path / "twice.py").write_text(TWICE)
    line = one_line(sabot_run("twice:app", folder=tmp_path), 2)
    assert "there is an agent shop.check already (give this one another name=)" in line
    assert f"{tmp_path / 'twice.py'}:10" in line


# kill -9


@pytest.mark.kafka
@pytest.mark.slow  # the same with files: test_kill_minus_nine
async def test_after_kills_on_kafka_state_is_exact_results_are_all_there_and_offsets_never_ahead(real, name, tmp_path):
    """Three kills at any moment, then a clean stop. Each look at the group's offsets happens while the app runs. In each life that is
    killed one call never ends, so no life comes to the end of the records, and each commits less than it has taken.
    """
    topic, rows, slices = real.topic(partitions=3), 9000, 3
    out, log, state, group = f"{topic}-out", tmp_path / "log", tmp_path / "state", f"{name}.count-group"
    checkpoints = state / "checkpoints"
    producer = Producer(real.settings)
    for n in range(rows):
        producer.produce(topic, row(k=KEYS[n % 9], n=n), partition=n % slices)
    assert producer.flush(60) == 0
    words = ["fault_app:app", "--broker", real.url, "--loglevel", "warning", "--state", str(state)]
    words += ["--checkpoint-interval", "0.2"]
    env = {"FAULT_ID": name, "FAULT_TOPIC": topic}
    last, looks, held_back = {}, 0, 0

    def look():
        """The group's offsets against the newest complete checkpoint, which is at least as new as they are."""
        nonlocal last, looks, held_back
        committed = real.committed(group, topic)
        manifest = newest(checkpoints)
        if manifest is None:
            assert set(committed.values()) == {0}
            return
        safe, taken = offsets_of(manifest, "commit"), offsets_of(manifest, "positions")
        for partition, offset in committed.items():
            assert last.get(partition, 0) <= offset <= safe[partition] <= taken[partition]
        try:
            repeated = unfinished(manifest)
        except FileNotFoundError:  # three newer ones are there already
            return
        for partition, offset in repeated:
            assert safe[partition] <= offset < taken[partition]
        if committed != last:
            looks += 1
        held_back += safe != taken
        last = committed

    for life in range(3):
        before, held_before = dict(last), held_back
        with running(log, *words, FAULT_HELD=str(2000 * (life + 1)), **env) as process:
            known: set[str] = manifests(checkpoints)
            while len(manifests(checkpoints) - known) < 2 or last == before or held_back == held_before:
                assert process.poll() is None, lines_of(log)
                await asyncio.to_thread(look)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        await asyncio.to_thread(look)
        done = {(value["partition"], value["offset"]) for value in jsons(await asyncio.to_thread(real.read, out))}
        assert len(done) < rows, "it was over before it was killed"
        behind = {(partition, offset) for partition, end in last.items() for offset in range(end)}
        waiting = [part for lane in newest(checkpoints).lanes.values() for part in lane.pending]
        assert len(behind - done) <= sum(part.rows for part in waiting)  # delivered, or safe in the checkpoint
    with running(log, *words, **env) as process:
        results = []
        while len({value["n"] for value in results}) < rows:
            assert process.poll() is None, lines_of(log)
            await asyncio.to_thread(look)
            results = jsons(await asyncio.to_thread(real.read, out))
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
    assert looks >= 3
    manifest = newest(checkpoints)
    assert unfinished(manifest) == []
    assert counts_in(manifest, KEYS) == dict.fromkeys(KEYS, rows // len(KEYS))
    assert (
        real.committed(group, topic) == dict.fromkeys(range(slices), rows // slices) == offsets_of(manifest, "commit")
    )
    totals = {}
    for value in results:
        totals.setdefault(value["k"], set()).add(value["total"])
    assert totals == {key: set(range(1, rows // len(KEYS) + 1)) for key in KEYS}
    assert f"{topic}.dlq" not in topics(real.url) or real.read(f"{topic}.dlq") == []
