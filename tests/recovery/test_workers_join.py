"""`sabot run --listen` and `sabot join`: workers that somebody else starts, over TLS; one is killed, and another takes its place; and the
app is given another number of them.
"""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from cryptography import x509

from tools.agent_tools import manifests, read_lines, until, write_lines
from tools.broker import free_ports, has_ipv6
from tools.command_line import lines, sabot_says
from tools.secure_broker import Authority
from tools.stream_tools import answers, expected, payments

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from test_stream_kill import HERE, where

from tools.fault_tools import HOLDING, lines_of, one_line, running, sabot_run

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("warm_children")]  # some six processes

SECONDS = 150


def secrets(path, *, token="a token of sixteen characters", tls=True):
    path.mkdir()
    (path / "token").write_text(token)
    if tls:
        authority = Authority("app")
        pem = authority.server(x509.DNSName("sabot-workers"))
        for name, data in {"tls.crt": pem, "tls.key": pem, "ca.crt": authority.pem}.items():
            (path / name).write_bytes(data)
    return str(path)


async def test_workers_that_join_over_tls_make_every_window_once_though_one_is_killed(tmp_path):
    rows, out, log = payments(6000), tmp_path / "out.ndjson", tmp_path / "log"
    write_lines(tmp_path / "in.ndjson", rows)
    env = {"MINUTES_ID": "files", "MINUTES_IN": str(tmp_path / "in.ndjson"), "MINUTES_OUT": str(out)}
    hurry = tmp_path / "hurry"
    env |= {"MINUTES_SLOW": "0.2", "MINUTES_HURRY": str(hurry)}  # the first checkpoint is in the midst of the rows
    env |= {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    given, [port] = secrets(tmp_path / "secrets"), free_ports(1)
    address = f"127.0.0.1:{port}"
    words = ["minutes_app:app", *where("rocksdb", tmp_path), "--checkpoint-interval", "0.1"]
    words += ["--workers", "2", "--listen", address, "--secrets", given, "--restart", "fixed(5, 100ms)"]
    joins = [tmp_path / f"join{number}" for number in range(3)]

    def join(number):
        return running(joins[number], address, "minutes_app:app", "--secrets", given, folder=HERE, verb="join", **env)

    def lives():
        return re.findall(r"tasks on 2 workers: pids (\d+), (\d+)", lines_of(log))

    app = running(log, *words, folder=tmp_path, program=HOLDING, **env)
    with join(0) as first, join(1) as second, join(2) as third, app as process:
        await until(lambda: process.poll() is not None or lives(), "workers")
        await until(
            lambda: process.poll() is not None or manifests(tmp_path / "state" / "checkpoints"),
            "a checkpoint",
        )
        assert process.poll() is None, lines_of(log)
        os.kill(int(lives()[0][0]), signal.SIGKILL)
        hurry.touch()
        for number in (1, 2, 3):  # of the attempts: it is held before the kill only, so that it is not over then
            (tmp_path / f"killed-{number}").touch()
        assert await asyncio.to_thread(process.wait, SECONDS) == 0, lines_of(log)
        workers = (first, second, third)
        await until(lambda: [each.poll() for each in workers].count(0) == 2, "the end of two")
    assert len(lives()) >= 2, lines_of(log)
    found = read_lines(out)
    assert answers(found) == expected(rows)
    assert len(found) == len(expected(rows)), "a window came twice"


async def test_an_app_whose_workers_join_is_given_as_many_of_them_as_are_there(tmp_path):
    rows, out, log = payments(12_000), tmp_path / "out.ndjson", tmp_path / "log"
    write_lines(tmp_path / "in.ndjson", rows)
    env = {"MINUTES_ID": "files", "MINUTES_IN": str(tmp_path / "in.ndjson"), "MINUTES_OUT": str(out)}
    env["MINUTES_SLOW"] = "0.5"  # so that it runs for minutes, until all is asked, and is then ended
    given, [port] = secrets(tmp_path / "secrets", tls=False), free_ports(1)
    address, state = f"{'[::1]' if has_ipv6() else '127.0.0.1'}:{port}", tmp_path / "state"
    words = ["minutes_app:app", *where("rocksdb", tmp_path), "--checkpoint-interval", "0.1"]
    words += ["--workers", "2", "--listen", address, "--secrets", given]

    def join(number):
        log = tmp_path / f"join{number}"
        return running(log, address, "minutes_app:app", "--secrets", given, folder=HERE, verb="join", **env)

    async def reached(words):
        await until(lambda: process.poll() is not None or words in lines_of(log), words, patience=SECONDS)
        assert process.poll() is None, lines_of(log)

    async def rescaled(workers):
        found = await asyncio.to_thread(lines, "rescale", state, "--workers", workers, "--json")
        assert [each["worker"] for each in found] == list(range(1, workers + 1))

    with join(0) as first, join(1) as second, running(log, *words, folder=HERE, **env) as process:
        await reached("tasks on 2 workers")
        refused = await asyncio.to_thread(sabot_says, "rescale", state, "--workers", 4)
        assert refused.exit_code == 1
        assert f"the app needs 2 more workers, but only 0 stand by at {address}" in refused.stderr
        await rescaled(1)
        await reached("stands by")
        await rescaled(2)
        assert (process.poll(), first.poll(), second.poll()) == (None, None, None), lines_of(log)
        process.terminate()
        assert await asyncio.to_thread(process.wait, SECONDS) == 0, lines_of(log)
    env["MINUTES_SLOW"] = "0"
    done = await asyncio.to_thread(
        lambda: sabot_run(words[0], *where("rocksdb", tmp_path), seconds=SECONDS, folder=HERE, **env)
    )
    assert done.returncode == 0, done.stderr
    found = read_lines(out)
    assert answers(found) == expected(rows)
    assert len(found) == len(expected(rows)), "a window came twice"


async def test_a_worker_with_another_token_is_refused_in_one_line_at_both_ends(tmp_path):
    [port] = free_ports(1)
    address, log = f"127.0.0.1:{port}", tmp_path / "log"
    write_lines(tmp_path / "in.ndjson", payments(10))
    env = {"MINUTES_ID": "files", "MINUTES_IN": str(tmp_path / "in.ndjson"), "MINUTES_OUT": str(tmp_path / "out")}
    ours = secrets(tmp_path / "ours", tls=False)
    theirs = secrets(tmp_path / "theirs", token="another token of that length", tls=False)
    words = ["minutes_app:app", "--workers", "2", "--listen", address, "--secrets", ours]
    with running(log, *words, folder=HERE, **env) as process:
        done = await asyncio.to_thread(
            lambda: sabot_run(
                address, "minutes_app:app", "--secrets", theirs, folder=HERE, seconds=SECONDS, verb="join", **env
            )
        )
        assert done.returncode == 1
        assert "another token than this app" in done.stderr
        assert "another token of that length" not in done.stderr + lines_of(log)
        assert process.poll() is None
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
    assert "has another token" in lines_of(log)


async def test_to_wait_for_workers_without_a_token_is_refused(tmp_path):
    (tmp_path / "small.py").write_text("import sabot\napp = sabot.App('small')\n")
    done = await asyncio.to_thread(
        lambda: sabot_run("small:app", "--workers", "2", "--listen", "127.0.0.1:0", folder=tmp_path, seconds=SECONDS)
    )
    assert "show a token" in one_line(done, 2)
