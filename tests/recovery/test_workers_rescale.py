"""`sabot rescale` and `sabot workers` of a running app: every window is in the topic once, with the right answer, though the number of
workers changes while rows come, and processes are killed in the middle of it.
"""

import asyncio
import os
import random
import signal
import sys
import uuid
from contextlib import suppress
from functools import partial

import pytest
from test_workers_kill import HERE, Place, World, alive, attempts, checkpoint_after, jsons, lines_of, running, where

from sabot import App
from sabot.cli import load_app
from sabot.engine.checkpoint.requests import ask
from sabot.engine.workers import LocalLauncher, TcpRendezvous, over_workers
from sabot.errors import UserError
from tools.agent_tools import environment, read_lines, until
from tools.command_line import lines, sabot_says
from tools.stream_tools import PARTITIONS, answers, expected, tick

pytestmark = [
    pytest.mark.integration,
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.usefixtures("warm_children"),
]  # some fifteen processes


async def test_windows_are_there_once_though_the_number_of_workers_changes_and_processes_are_killed(
    kafka_url, tmp_path
):
    rng, place, name = random.Random(17), Place(kafka_url), f"app-{uuid.uuid4().hex[:8]}"
    topic, out, log, state = place.topic(PARTITIONS), place.topic(), tmp_path / "log", tmp_path / "state"
    env = {"MINUTES_ID": name, "MINUTES_IN": topic, "MINUTES_OUT": out}
    words = ["minutes_app:app", "--broker", place.url, *where("rocksdb", tmp_path), "--checkpoint-interval", "0.1"]
    words += ["--workers", "2", "--restart", "fixed(5, 100ms)"]

    async def rescaled(workers):
        found = await asyncio.to_thread(lines, "rescale", state, "--workers", workers, "--json")
        assert [each["worker"] for each in found] == list(range(1, workers + 1))
        return found

    with World(place, topic) as world:
        with running(log, *words, folder=HERE, **env) as process:
            await until(lambda: process.poll() is not None or len(attempts(log)) == 1, "workers")
            await checkpoint_after(log, tmp_path, process)
            found = await asyncio.to_thread(lines, "workers", state, "--json")
            assert [each["pid"] for each in found] == attempts(log)[0]
            assert sum(each["memory_bytes"] for each in found) > 10_000_000
            (shown,) = await asyncio.to_thread(lines, "top", state, "--json")
            assert [each["pid"] for each in shown["workers"]] == attempts(log)[0]
            assert {worker for task in shown["tasks"] for worker in task["workers"]} == {1, 2}
            refused = await asyncio.to_thread(sabot_says, "rescale", state, "--workers", 65)
            assert refused.exit_code == 1
            assert "an app has 1 to 64 workers" in refused.stderr

            found = await rescaled(3)
            assert [each["pid"] for each in found] == attempts(log)[1]
            assert [each["restarts"] for each in found] == [0, 0, 0]
            assert not any(alive(pid) for pid in attempts(log)[0])
            await checkpoint_after(log, tmp_path, process)

            asked = asyncio.create_task(rescaled(1))  # a worker is killed while the app stops, or starts again
            await asyncio.sleep(rng.uniform(0.2, 1.0))
            with suppress(ProcessLookupError):
                os.kill(rng.choice(attempts(log)[-1]), signal.SIGKILL)
            await asked
            await checkpoint_after(log, tmp_path, process)

            asked = asyncio.create_task(
                asyncio.to_thread(sabot_says, "rescale", state, "--workers", 4, "--timeout", 60)
            )
            await asyncio.sleep(rng.uniform(0.2, 1.0))
            process.kill()
            process.wait()
            ended = await asked
            assert ended.exit_code == 1
            # the app was killed before it had the request, or behind it
            assert "no app that uses" in ended.stderr or "the app that used" in ended.stderr
        await until(lambda: not any(alive(pid) for pid in attempts(log)[-1]), "the end of the workers")
    tick(place.settings, topic)
    wanted = expected(world.sent)
    with running(log, *words, folder=HERE, **env) as process:
        await until(
            lambda: process.poll() is not None or answers(jsons(place.read(out))).keys() >= wanted.keys(),
            "every window",
        )
        assert process.poll() is None, lines_of(log)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
    rows = jsons(place.read(out))
    assert answers(rows) == wanted
    assert len(rows) == len(wanted), "a window came twice"
    assert place.committed(f"{name}-group", topic) == place.ends(topic)


class TwoAtMost(LocalLauncher):
    """A third worker ends as soon as it begins."""

    async def launch(self, ticket):
        return await (LocalLauncher(["false"]) if ticket.number == 2 else super()).launch(ticket)


async def test_what_ends_the_run_before_a_rescale_is_no_failure_of_the_new_number():
    maker = over_workers(App("narrow").spec, TcpRendezvous.of(partial(LocalLauncher, ["false"]), None, None).begin, 2)
    maker.rescale(3, "request")
    assert not maker.take_back("a worker of the run that stops was killed")
    assert (maker.workers, maker.refusal("request")) == (3, None)


@pytest.mark.parametrize("restarts", [1, 100_000])
async def test_a_number_of_workers_with_which_the_app_cannot_begin_is_taken_back(tmp_path, monkeypatch, restarts):
    module = f"narrow_{restarts}"  # a process imports a module of one name once
    (tmp_path / f"{module}.py").write_text(
        "import sabot\n"
        "from sabot.testing import ScriptedSource\n"
        f"app = sabot.App('narrow', checkpoint_dir='checkpoints', restart='fixed({restarts}, 10ms)')\n"
        "rows = app.stream(ScriptedSource([{'n': n} for n in range(100)]), schema={'n': 'int64'})\n"
        "rows.to(sabot.NdjsonSink('out.ndjson'))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    app = load_app(f"{module}:app")
    command = [sys.executable, "-P", "-m", "sabot", "run-worker", f"{module}:app"]
    app.spec.workers = over_workers(app.spec, TcpRendezvous.of(partial(TwoAtMost, command), None, None).begin, 2)
    running = asyncio.create_task(app.run())
    await until(lambda: running.done() or app.agent_runtime.runner.started, "the workers")
    with pytest.raises(
        UserError, match=r"could not begin with 3 workers, and goes on with 2: .*worker 3 .*exit code 1"
    ):
        await asyncio.to_thread(ask, tmp_path / "checkpoints", {"rescale": 3}, 120)
    found = await asyncio.to_thread(ask, tmp_path / "checkpoints", {"workers": True}, 60)
    assert [each["worker"] for each in found["workers"]] == [1, 2]
    app.agent_runtime.runner.request_stop()
    await asyncio.wait_for(running, 60)
    assert sorted(row["n"] for row in read_lines(tmp_path / "out.ndjson")) == list(range(100))
