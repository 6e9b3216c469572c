"""kill -9 of a worker, and of the coordinator, of `sabot run --workers`: every window is in the topic once, with the right answer.

A worker that dies ends the attempt: the coordinator starts all workers anew, from the last checkpoint. A coordinator that dies takes its
workers with it, and the next start goes on. And an app goes from workers to one process, and back, by its checkpoints.
"""

import asyncio
import os
import random
import re
import signal
import sys
import uuid
from functools import partial
from pathlib import Path

import pytest

from sabot.cli import load_app
from sabot.engine.checkpoint import Coordinator
from sabot.engine.workers import LocalLauncher, TcpRendezvous, over_workers
from sabot.errors import WorkerLost
from tools.agent_tools import Remembered, environment, manifests, read_lines, until, write_lines
from tools.stream_tools import PARTITIONS, answers, expected, payments, tick

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from test_stream_kill import HERE, World, where

from tools.fault_tools import Place, jsons, lines_of, one_line, running, sabot_run
from tools.leftovers import started

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("warm_children")]

SECONDS = 150  # for several interpreters to start, import the program and end, on a machine that does much else


def attempts(log):
    """The pids of the workers of each attempt so far."""
    found = re.findall(r"tasks on \d+ workers: pids ([\d, ]+)", lines_of(log))
    return [[int(pid) for pid in pids.split(", ")] for pids in found]


def alive(pid):
    """Whether a process runs; a zombie does not."""
    return bool(started(pid))


async def checkpoint_after(log, folder, process):
    """Waits for a checkpoint that is newer than this call."""
    known = manifests(folder / "state" / "checkpoints")
    await until(
        lambda: process.poll() is not None or manifests(folder / "state" / "checkpoints") - known,
        "a checkpoint",
        patience=150,
    )
    assert process.poll() is None, lines_of(log)


@pytest.mark.kafka
@pytest.mark.slow  # some ten processes
async def test_windows_of_a_topic_are_there_once_whichever_process_was_killed(kafka_url, tmp_path):
    rng, place, name = random.Random(5), Place(kafka_url), f"app-{uuid.uuid4().hex[:8]}"
    topic, out, log = place.topic(PARTITIONS), place.topic(), tmp_path / "log"
    env = {"MINUTES_ID": name, "MINUTES_IN": topic, "MINUTES_OUT": out}
    one = ["minutes_app:app", "--broker", place.url, *where("rocksdb", tmp_path), "--checkpoint-interval", "0.1"]
    several = [*one, "--workers", "2", "--restart", "fixed(5, 100ms)"]
    with World(place, topic) as world:
        with running(log, *several, folder=HERE, **env) as process:
            for life in (1, 2):
                await until(lambda life=life: process.poll() is not None or len(attempts(log)) >= life, "workers")
                await checkpoint_after(log, tmp_path, process)
                await asyncio.sleep(rng.uniform(0, 0.3))
                os.kill(rng.choice(attempts(log)[-1]), signal.SIGKILL)
            await until(lambda: process.poll() is not None or len(attempts(log)) >= 3, "workers")
            await checkpoint_after(log, tmp_path, process)
            await asyncio.sleep(rng.uniform(0, 0.3))
            process.kill()
            process.wait()
        await until(lambda: not any(alive(pid) for pid in attempts(log)[-1]), "the end of the workers")
        with running(log, *several, folder=HERE, **env) as process:
            await checkpoint_after(log, tmp_path, process)
            process.terminate()
            assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
        with running(log, *one, "--parallelism", "3", folder=HERE, **env) as process:
            await checkpoint_after(log, tmp_path, process)
            process.kill()
            process.wait()
    tick(place.settings, topic)
    wanted = expected(world.sent)
    with running(log, *several, folder=HERE, **env) as process:

        def complete():
            assert process.poll() is None, lines_of(log)
            return answers(jsons(place.read(out))).keys() >= wanted.keys()

        await until(complete, "every window")
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
    rows = jsons(place.read(out))
    assert answers(rows) == wanted
    assert len(rows) == len(wanted), "a window came twice"
    assert place.committed(f"{name}-group", topic) == place.ends(topic)
    assert lines_of(log).count("was killed by SIGKILL") >= 2


@pytest.mark.slow  # four processes
async def test_workers_make_of_a_file_what_one_process_makes(tmp_path):
    rows, out = payments(6000), tmp_path / "out.ndjson"
    write_lines(tmp_path / "in.ndjson", rows)
    env = {"MINUTES_ID": "files", "MINUTES_IN": str(tmp_path / "in.ndjson"), "MINUTES_OUT": str(out)}
    done = await asyncio.to_thread(
        lambda: sabot_run(
            "minutes_app:app", "--workers", "3", *where("rocksdb", tmp_path), folder=HERE, seconds=SECONDS, **env
        )
    )
    assert done.returncode == 0, done.stderr
    found = read_lines(out)
    assert answers(found) == expected(rows)
    assert len(found) == len(expected(rows))


def program(folder, name, function, out="out.ndjson"):
    """A program whose only step is a function of the user's."""
    write_lines(folder / "in.ndjson", [{"n": n} for n in range(100)])
    (folder / f"{name}.py").write_text(
        "import sabot, sys\n"
        f"app = sabot.App({name!r}, restart='none')\n"
        f"out = {out!r}\n"
        "rows = app.stream(sabot.files('in.ndjson'), schema={'n': 'int64'})\n"
        f"{function}\n"
        "rows.map_batches(look, schema={'n': 'int64'}).to(sabot.NdjsonSink(out))\n"
    )


@pytest.mark.slow  # five processes
async def test_an_app_ends_although_workers_have_no_task(tmp_path):
    (tmp_path / "small.py").write_text(
        "import sabot\n"
        "from sabot.testing import END, ScriptedSource\n"
        "app = sabot.App('small')\n"
        "rows = app.stream(ScriptedSource([{'n': 1}, END]), schema={'n': 'int64'})\n"
        "rows.to(sabot.NdjsonSink('out.ndjson'))\n"
    )
    done = await asyncio.to_thread(lambda: sabot_run("small:app", "--workers", "4", folder=tmp_path, seconds=SECONDS))
    assert done.returncode == 0, done.stderr
    assert read_lines(tmp_path / "out.ndjson") == [{"n": 1}]


@pytest.mark.slow  # three processes
async def test_an_error_of_a_worker_is_told_in_one_line_with_its_name(tmp_path):
    program(tmp_path, "failing", "def look(batch): return batch", "in.ndjson/out.ndjson")
    done = await asyncio.to_thread(lambda: sabot_run("failing:app", "--workers", "2", folder=tmp_path, seconds=SECONDS))
    line = one_line(done, 1)
    assert re.search(r"worker \d \(pid \d+\): .*in.ndjson/out.ndjson", line), line


@pytest.mark.slow  # three processes
async def test_the_exit_that_a_function_asks_for_in_a_worker_is_that_of_the_app(tmp_path):
    program(tmp_path, "leaving", "def look(batch): sys.exit(7)")
    done = await asyncio.to_thread(lambda: sabot_run("leaving:app", "--workers", "2", folder=tmp_path, seconds=SECONDS))
    assert done.returncode == 7, done.stderr


@pytest.mark.slow  # two processes, and three seconds
async def test_a_worker_that_says_nothing_is_taken_for_dead(tmp_path, monkeypatch):
    (tmp_path / "endless.py").write_text(
        "import sabot\n"
        "from sabot.testing import ScriptedSource\n"
        "app = sabot.App('endless', restart='none')\n"
        "app.stream(ScriptedSource([{'n': 1}]), schema={'n': 'int64'}).to(sabot.NdjsonSink('out.ndjson'))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setattr("sabot.engine.workers.streams.SILENT_SECONDS", 8.0)
    app = load_app("endless:app")
    command = [sys.executable, "-P", "-m", "sabot", "run-worker", "endless:app"]
    app.spec.workers = made = Remembered(
        over_workers(app.spec, TcpRendezvous.of(partial(LocalLauncher, command), None, None).begin, 2)
    )
    running = asyncio.create_task(app.run())
    await until(lambda: running.done() or app.agent_runtime.runner.started, "the workers")
    pids = [member.pid for member in made.runs[0].members]
    os.kill(pids[1], signal.SIGSTOP)
    with pytest.raises(WorkerLost, match=rf"worker 2 \(pid {pids[1]}\) has sent no message for"):
        await asyncio.wait_for(running, 60)
    assert not any(alive(pid) for pid in pids)


async def test_a_worker_that_never_joins_is_lost_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sabot.engine.workers.rendezvous._JOIN_SECONDS", 0.3)
    program(tmp_path, "waited", "def look(batch): return batch")
    monkeypatch.chdir(tmp_path)
    app = load_app("waited:app")
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    app.spec.workers = made = Remembered(
        over_workers(app.spec, TcpRendezvous.of(partial(LocalLauncher, command), None, None).begin, 2)
    )
    with pytest.raises(WorkerLost, match=r"worker 1 \(pid \d+\) has not joined in 0.3 s"):
        await asyncio.wait_for(app.run(), 60)
    assert not any(alive(member.pid) for member in made.runs[0].members)


def counted(folder, name, also="", source="sabot.files"):
    """A program that copies a hundred rows, and restarts three times."""
    write_lines(folder / "in.ndjson", [{"n": n} for n in range(100)])
    (folder / f"{name}.py").write_text(
        f"import contextlib, os, signal, sys\nimport sabot\n{also}"
        f"app = sabot.App({name!r}, checkpoint_dir='checkpoints', restart='fixed(3, 10ms)')\n"
        f"rows = app.stream({source}('in.ndjson'), schema={{'n': 'int64'}})\n"
        "rows.to(sabot.NdjsonSink('out.ndjson'))\n"
    )


@pytest.mark.slow  # five processes
async def test_a_worker_that_stands_still_while_it_opens_its_tasks_is_replaced(tmp_path, monkeypatch):
    """In the first start; nothing else would end that."""
    stops = (
        "class Stopping(sabot.NdjsonSource):\n"
        "    def open(self, *given):\n"
        "        if 'run-worker' in sys.argv:\n"
        "            with contextlib.suppress(FileExistsError):\n"
        "                open('stopped', 'x').close()\n"
        "                os.kill(os.getpid(), signal.SIGSTOP)\n"
        "        super().open(*given)\n"
    )
    counted(tmp_path, "still", stops, "Stopping")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    app = load_app("still:app")
    command = [sys.executable, "-P", "-m", "sabot", "run-worker", "still:app"]
    app.spec.workers = made = Remembered(
        over_workers(app.spec, TcpRendezvous.of(partial(LocalLauncher, command), None, None).begin, 2)
    )
    run = asyncio.ensure_future(app.run())
    await until(lambda: run.done() or (tmp_path / "stopped").exists(), "a worker that stands still")
    # Its time is over now, and not that of those that follow, which a busy machine may open slowly.
    with monkeypatch.context() as patched:
        patched.setattr("sabot.engine.workers.streams._OPEN_SECONDS", 1.0)
        await until(lambda: run.done() or len(made.runs) >= 2, "the next run")
    await asyncio.wait_for(run, SECONDS)
    assert len(made.runs) >= 2
    assert sorted(row["n"] for row in read_lines(tmp_path / "out.ndjson")) == list(range(100))


@pytest.mark.slow  # five processes
async def test_a_worker_that_dies_in_the_first_start_is_replaced(tmp_path):
    dies = (
        "if 'run-worker' in sys.argv:\n"
        "    try:\n"
        "        open('died', 'x').close()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    except FileExistsError:\n"
        "        print('another one has', file=sys.stderr)\n"
    )
    counted(tmp_path, "unlucky", dies)
    done = await asyncio.to_thread(lambda: sabot_run("unlucky:app", "--workers", "2", folder=tmp_path, seconds=SECONDS))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    assert "was killed by SIGKILL" in done.stderr
    assert sorted(row["n"] for row in read_lines(tmp_path / "out.ndjson")) == list(range(100))


@pytest.mark.slow  # three processes
async def test_a_signal_to_all_processes_of_a_start_is_a_stop_though_workers_die_of_it(tmp_path):
    """As a service manager sends it; Ctrl-C does not reach workers."""
    dies = (
        "if 'run-worker' in sys.argv:\n"
        "    try:\n"
        "        open('died', 'x').close()\n"
        "        os.kill(os.getppid(), signal.SIGTERM)\n"
        "    except FileExistsError:\n"
        "        print('told by another one', file=sys.stderr)\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    counted(tmp_path, "early", dies)
    done = await asyncio.to_thread(lambda: sabot_run("early:app", "--workers", "2", folder=tmp_path, seconds=SECONDS))
    assert done.returncode == 0, done.stderr
    assert re.search("was killed by SIGTERM|stopped before all workers were there", done.stderr)  # what came first
    assert "ERROR" not in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow  # five processes
async def test_a_worker_that_dies_during_the_last_checkpoint_is_replaced(tmp_path, monkeypatch):
    counted(tmp_path, "late")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    app = load_app("late:app")
    command = [sys.executable, "-P", "-m", "sabot", "run-worker", "late:app"]
    app.spec.workers = made = Remembered(
        over_workers(app.spec, TcpRendezvous.of(partial(LocalLauncher, command), None, None).begin, 2)
    )
    killed, take = [], Coordinator.take

    async def last(coordinator):
        if not killed:
            killed.extend(member.pid for member in made.runs[0].members)
            os.kill(killed[0], signal.SIGKILL)
            await until(lambda: made.runs[0].broken, "the end of the worker")
        return await take(coordinator)

    monkeypatch.setattr(Coordinator, "take", last)
    await asyncio.wait_for(app.run(), SECONDS)
    assert len(made.runs) == 2
    assert sorted(row["n"] for row in read_lines(tmp_path / "out.ndjson")) == list(range(100))


@pytest.mark.slow  # a process
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("app.stream('t', schema={'n': 'int64'}).to('out')", "which exists in one process only"),
    ],
)
async def test_what_cannot_be_spread_is_refused_by_name(tmp_path, program, words):
    (tmp_path / "refused.py").write_text(f"import sabot\napp = sabot.App('refused')\n{program}\n")
    done = await asyncio.to_thread(lambda: sabot_run("refused:app", "--workers", "2", folder=tmp_path, seconds=SECONDS))
    assert words in one_line(done, 1)
