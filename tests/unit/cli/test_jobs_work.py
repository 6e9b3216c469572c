"""`sabot jobs work`: its processes are those of `tests/recovery/test_kernel_kill.py`."""

import asyncio
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sabot.agents import DurableContext, ExecutionRequest, RuntimeKernel
from sabot.base.backoff import Backoff
from sabot.cli import commands
from sabot.errors import BrokerUnavailable, UserError
from sabot.journal import opening
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


async def test_a_kernel_ends_if_the_name_of_its_server_stays_unknown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Backoff, "wait_s", lambda *_: 0.0)
    kernel = RuntimeKernel.create(agent=_echo, journal="postgresql://u@nowhere.invalid/shop", name="shop")
    with pytest.raises(UserError, match="stays unknown: PostgreSQL at nowhere") as raised:
        await kernel.start()
    assert isinstance(raised.value.__cause__, BrokerUnavailable)
    assert caplog.text.count("kernel shop waits for its journal: ") == 10


@pytest.mark.slow  # the client asks for ten seconds
def test_a_broker_whose_name_nobody_knows_is_told_apart() -> None:
    with pytest.raises(BrokerUnavailable) as raised:
        opening.open_reader("kafka://nowhere.invalid:9092/shop")
    assert raised.value.unresolved


async def test_a_kernel_does_not_wait_for_a_database_that_refuses_it() -> None:
    with server_or_skip().database() as url:
        kernel = RuntimeKernel.create(agent=_echo, journal=f"{url.rpartition('/')[0]}/nothing", name="shop")
        with pytest.raises(UserError, match='database "nothing" does not exist'):
            await kernel.start()


def test_an_unknown_name_is_waited_for_anew_when_it_was_known_once() -> None:
    wait, unknown = opening.ServerWait(), BrokerUnavailable("no host db")
    unknown.unresolved = True
    waits = [wait.next_s(each) for each in [unknown] * 10 + [BrokerUnavailable("refused")] + [unknown] * 10]
    assert (waits[:5], waits[-1], sum(waits[:10])) == ([0.5, 1, 2, 4, 8], 10, 65.5)
    with pytest.raises(UserError, match="no host db"):
        wait.next_s(unknown)


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
