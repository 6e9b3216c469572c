"""Agents of `sabot run --workers`, and kill -9 of the processes that run them: every record has its effects once."""

import asyncio
import json
import os
import random
import signal
import sys
import uuid
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.operators.reading import state_of
from tools.agent_tools import until

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from test_stream_kill import HERE, World, where
from test_workers_kill import SECONDS, attempts, checkpoint_after

from tools.fault_tools import Place, jsons, lines_of, one_line, running, sabot_run
from tools.stream_tools import PARTITIONS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("warm_children")]


def seen(place, out, sent):
    """How many records of each agent came; AssertionError for one that came twice, or is wrong."""
    counted = jsons(place.read(f"{out}.count"))
    doubled = jsons(place.read(f"{out}.double"))
    refunded = jsons(place.read(f"{out}.refund"))
    by_id = {row["id"]: row for row in list(sent)}
    for rows in (counted, doubled, refunded):
        assert max(Counter(row["id"] for row in rows).values(), default=0) <= 1, "a record came twice"
    numbers = defaultdict(list)
    for row in counted:
        numbers[row["account"]].append(row["n"])
    for found in numbers.values():
        assert sorted(found) == list(range(1, len(found) + 1)), "the state is not that of the records that came"
    assert all(row["amount"] == 2 * by_id[row["id"]]["amount"] for row in doubled if row["id"] in by_id)
    assert all(by_id[row["id"]]["amount"] <= 0 for row in refunded if row["id"] in by_id)
    return len(counted), len(doubled), len(refunded)


@pytest.mark.kafka
@pytest.mark.slow  # some twelve processes, or twenty
@pytest.mark.parametrize("own", [False, True], ids=["one task", "own processes"])
async def test_agents_give_each_result_once_whichever_process_was_killed(kafka_url, tmp_path, own):
    rng, place, name = random.Random(17), Place(kafka_url), f"app-{uuid.uuid4().hex[:8]}"
    topic, log = place.topic(PARTITIONS), tmp_path / "log"
    out = f"out-{uuid.uuid4().hex[:8]}"
    env = {"AGENTS_ID": name, "AGENTS_IN": topic, "AGENTS_OUT": out, **({"AGENTS_OWN": "1"} if own else {})}
    one = ["agents_app:app", "--broker", place.url, *where("rocksdb", tmp_path), "--checkpoint-interval", "0.1"]
    several = [*one, "--workers", "2", "--restart", "fixed(5, 100ms)"]
    with World(place, topic) as world:
        with running(log, *several, folder=HERE, **env) as process:
            for life in (1, 2):
                await until(
                    lambda life=life: process.poll() is not None or len(attempts(log)) >= life, "workers", patience=150
                )
                await checkpoint_after(log, tmp_path, process)
                await asyncio.sleep(rng.uniform(0, 0.3))
                os.kill(rng.choice(attempts(log)[-1]), signal.SIGKILL)
            await until(lambda: process.poll() is not None or len(attempts(log)) >= 3, "workers", patience=150)
            await checkpoint_after(log, tmp_path, process)
            process.kill()
            process.wait()
        with running(
            log, *one, folder=HERE, **env
        ) as process:  # goes on in one process, or in those of the agents and one more
            await checkpoint_after(log, tmp_path, process)
            process.kill()
            process.wait()
        with running(log, *several, folder=HERE, **env) as process:
            await checkpoint_after(log, tmp_path, process)
            process.terminate()
            assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
    wanted = (len(world.sent), len(world.sent), sum(row["amount"] <= 0 for row in world.sent))
    with running(log, *one, "--workers", "3", folder=HERE, **env) as process:

        def complete():
            assert process.poll() is None, lines_of(log)
            return seen(place, out, world.sent) == wanted

        await until(complete, "every record", patience=150)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
    assert seen(place, out, world.sent) == wanted
    assert place.committed(f"{name}.count-group", topic) == place.ends(topic)


def write(folder, name, text):
    (folder / f"{name}.py").write_text(f"import sabot\napp = sabot.App({name!r}, restart='none')\n{text}\n")


@pytest.mark.kafka
@pytest.mark.slow  # some eight processes
async def test_keys_are_spread_over_processes_with_their_state(kafka_url, tmp_path):
    place, topic, log = Place(kafka_url), Place(kafka_url).topic(PARTITIONS), tmp_path / "log"
    out = place.topic()
    write(
        tmp_path,
        "spread",
        "import os\n"
        f"@app.agent({topic!r}, key='k', process=2, sink={out!r}, delivery='exactly_once')\n"
        "async def count(ctx):\n"
        "    n = (await ctx.state().get('n') or 0) + 1\n"
        "    await ctx.state().put('n', n)\n"
        "    return {'k': ctx.message['k'], 'n': n, 'pid': os.getpid()}\n",
    )
    words = ["spread:app", "--broker", place.url, *where("rocksdb", tmp_path), "--checkpoint-interval", "0.1"]
    for life in (1, 2):
        for key in range(12):
            rows = [json.dumps({"k": f"k{key}"}).encode()] * 5
            place.fill(topic, rows, key=f"k{key}".encode(), partition=key % PARTITIONS)
        with running(log, *words, folder=tmp_path) as process:

            def complete(life=life):
                assert process.poll() is None, lines_of(log)
                return len(jsons(place.read(out))) >= 60 * life

            await until(complete, "every record", patience=150)
            process.terminate()
            assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
    rows = jsons(place.read(out))
    assert Counter((row["k"], row["n"]) for row in rows) == {
        (f"k{key}", n): 1 for key in range(12) for n in range(1, 11)
    }
    assert len({row["pid"] for row in rows}) == 4, "two processes in each of two lives"
    kept = state_of(CheckpointStorage(tmp_path / "state" / "checkpoints").latest(), "count", None)
    assert sorted(kept.column("record_key").to_pylist()) == sorted(f"k{key}" for key in range(12))
    place.fill(topic, [b'{"k": "k1"}'], key=b"other")
    done = await asyncio.to_thread(lambda: sabot_run(*words, folder=tmp_path, seconds=SECONDS))
    assert "so records of one key may be in several partitions" in done.stderr
    assert done.returncode == 1


@pytest.mark.slow  # three processes
async def test_an_agent_that_fails_in_a_worker_fails_the_run_with_its_own_words(tmp_path):
    (tmp_path / "in.ndjson").write_text('{"n": 1}\n{"n": 0}\n{"n": 2}\n')
    write(
        tmp_path,
        "failing",
        "@app.agent(sabot.NdjsonSource('in.ndjson'), sink=sabot.NdjsonSink('out.ndjson'))\n"
        "async def divided(ctx): return {'n': 1 // ctx.message['n']}",
    )
    done = await asyncio.to_thread(lambda: sabot_run("failing:app", "--workers", "2", folder=tmp_path, seconds=SECONDS))
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "agent failing.divided failed at" in last, last
    assert "ZeroDivisionError" in last, last


@pytest.mark.slow  # three processes
async def test_the_figures_of_agents_in_a_worker_are_those_of_the_app(tmp_path):
    (tmp_path / "in.ndjson").write_text("".join(f'{{"n": {n}}}\n' for n in range(100)))
    write(
        tmp_path,
        "counting",
        "import atexit, json\n"
        "@app.agent(sabot.NdjsonSource('in.ndjson'), sink=sabot.NdjsonSink('out.ndjson'), on_error='skip')\n"
        "async def halves(ctx):\n"
        "    if ctx.message['n'] == 7: raise ValueError('seven')\n"
        "    return {'n': ctx.message['n'] / 2}\n"
        "def told():\n"
        "    if app.spec.workers is not None: open('figures', 'w').write(json.dumps(app.statistics()['agents']))\n"
        "atexit.register(told)\n",
    )
    done = await asyncio.to_thread(
        lambda: sabot_run("counting:app", "--workers", "2", folder=tmp_path, seconds=SECONDS)
    )
    assert done.returncode == 0, done.stderr
    [figures] = json.loads((tmp_path / "figures").read_text()).values()
    assert (figures["messages_processed"], figures["errors"], figures["dead_letters"]) == (99, 1, 1)
    assert figures["state"] == "stopped"
    assert "app counting: 100 rows in, 99 out in " in done.stderr, "a summary counts what workers have done"


@pytest.mark.slow  # three processes
async def test_a_summary_counts_rows_that_an_agents_sink_writes_when_its_worker_has_stopped(tmp_path):
    """The first write of the sink returns when the worker has reported its stop: only the last checkpoint waits for it."""
    (tmp_path / "in.ndjson").write_text("".join(f'{{"n": {n}}}\n' for n in range(100)))
    write(
        tmp_path,
        "late",
        "import threading\n"
        "from sabot.engine.workers.process import AppWorker\n"
        "stopped = threading.Event()\n"
        "stop = AppWorker._stop\n"
        "async def heard(self, opened, *, drain):\n"
        "    await stop(self, opened, drain=drain)\n"
        "    stopped.set()\n"
        "AppWorker._stop = heard\n"
        "class Late(sabot.NdjsonSink):\n"
        "    def write(self, batch):\n"
        "        assert stopped.wait(60)\n"
        "        super().write(batch)\n"
        "@app.agent(sabot.NdjsonSource('in.ndjson'), sink=Late('out.ndjson'))\n"
        "async def same(ctx): return ctx.message\n",
    )
    done = await asyncio.to_thread(lambda: sabot_run("late:app", "--workers", "2", folder=tmp_path, seconds=SECONDS))
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out.ndjson").read_text().splitlines()) == 100
    assert "app late: 100 rows in, 100 out in " in done.stderr


@pytest.mark.slow  # a process
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("@app.agent('t')\nasync def look(ctx): pass", "topic t is at memory://"),
        (
            "app.configure(broker='kafka://localhost:1', journal='here')\n"
            "@app.agent('t', durable=True)\nasync def look(ctx): pass",
            "agent refused.look is durable, but its journal here is not on a server",
        ),
        (
            "from sabot.engine.state import MemoryBackend\napp.state_backend = MemoryBackend()\n"
            "@app.agent(sabot.NdjsonSource('x'))\nasync def look(ctx): pass",
            "has a state_backend= of its own",
        ),
    ],
)
async def test_agents_that_live_in_one_process_are_refused_by_name(tmp_path, program, words):
    write(tmp_path, "refused", program)
    done = await asyncio.to_thread(lambda: sabot_run("refused:app", "--workers", "2", folder=tmp_path, seconds=SECONDS))
    assert words in one_line(done, 1)
