"""`sabot jobs work`: its processes are those of `tests/recovery/test_kernel_kill.py`."""

import asyncio
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sabot.agents import DurableContext, ExecutionRequest, RuntimeKernel
from sabot.cli import commands
from tools.agent_tools import until
from tools.command_line import ENV, SABOT
from tools.commit_wire import CommitWire
from tools.postgres import server_or_skip


def test_an_app_is_refused_with_the_command_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worked.py").write_text('from sabot import App\n\napp = App("shop", state="state")\n')
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(commands.cli, ["jobs", "work", "worked:app"])
    assert done.exit_code == 2
    assert "worked:app is an App, and no kernel" in done.output
    assert "sabot run worked:app" in done.output


def test_a_worker_waits_for_a_server_that_does_not_answer_at_its_start(tmp_path: Path) -> None:
    with server_or_skip().database() as url, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # nobody listens: connections are refused
        place = f"{url.rpartition(':')[0]}:{bound.getsockname()[1]}/{url.rpartition('/')[2]}"
        (tmp_path / "worked.py").write_text(
            "from sabot.agents import RuntimeKernel\n\n\nasync def echo(ctx):\n    return ctx.message\n\n\n"
            f"kernel = RuntimeKernel.create(agent=echo, journal={place!r}, name='shop', shared=True)\n"
        )
        command = [*SABOT, "jobs", "work", "worked:kernel"]
        env = {**ENV, "PYTHONPATH": f"{ENV['PYTHONPATH']}:{tmp_path}"}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as worker:
            assert worker.stderr is not None
            assert "kernel shop waits for its journal: " in worker.stderr.readline()
            with closing(CommitWire(url, bound)):
                said = next(line for line in worker.stderr if "waits" not in line and "fsync" not in line)
                worker.terminate()
                rest = worker.stderr.read()
        assert said == "sabot: kernel shop runs jobs\n"
        assert (worker.returncode, rest) == (0, "sabot: kernel shop stops: SIGTERM\n")


async def test_a_kernel_of_a_web_server_waits_for_its_database_with_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with server_or_skip().database() as url, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        place = f"{url.rpartition(':')[0]}:{bound.getsockname()[1]}/{url.rpartition('/')[2]}"
        kernel = RuntimeKernel.create(agent=_echo, journal=place, name="shop")
        starting = asyncio.create_task(kernel.start())
        await until(lambda: "kernel shop waits for its journal: " in caplog.text)
        assert not starting.done()
        with closing(CommitWire(url, bound)):
            await starting
            assert (await (await kernel.execute(ExecutionRequest(prompt="hi"))).result()).output == "hi"
            await kernel.close()


async def _echo(ctx: DurableContext) -> object:
    return ctx.message


def test_a_server_of_jobs_waits_for_its_database_with_words() -> None:
    with server_or_skip().database() as url, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        place = f"{url.rpartition(':')[0]}:{bound.getsockname()[1]}/{url.rpartition('/')[2]}"
        command = [*SABOT, "jobs", "serve", "--journal", place, "--http", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENV) as served:
            assert served.stderr is not None
            assert "sabot: waits for the journal: " in served.stderr.readline()
            with closing(CommitWire(url, bound)):
                said = next(line for line in served.stderr if "waits" not in line)
                served.terminate()
                served.stderr.read()
        assert "no journal" in said
