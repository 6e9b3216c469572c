"""What the function of a job does by itself, beside its effects: it is refused by name, since each replay would do it again.
And what it logs: each line once.
"""

import asyncio
import ctypes.util
import http.client
import importlib.metadata
import io
import locale
import logging
import logging.handlers
import mimetypes
import multiprocessing
import os
import platform
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import uuid
import zipfile
import zoneinfo
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from sabot import App
from sabot.agents import ExecutionRequest, RuntimeKernel
from sabot.agents.durable.context import DurableContext
from sabot.connectors.memory import MemoryBroker
from sabot.errors import EffectError, UserError
from sabot.process import Command, ProcessRuntime, Supervisor, TaskDelegation
from tools.agent_tools import bounded, started, until

BEGIN = ExecutionRequest(prompt=1)


class Witness:
    """A server outside of Sabot that counts what reaches it: requests and mere connections."""

    def __init__(self) -> None:
        self.posts: list[bytes] = []
        posts = self.posts

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                posts.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Writes no line."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/pay?secret=1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def pay(self, amount: int = 1) -> int:
        with urlopen(self.url, data=b"%d" % amount) as answer:
            return int(answer.status)


@pytest.fixture
def witness() -> Iterator[Witness]:
    made = Witness()
    yield made
    made.server.shutdown()
    made.server.server_close()


async def run(kernel: RuntimeKernel, waits: int = 0, before: int = 0) -> Any:
    """Runs a job that waits for a signal so many times, after so many other effects: each time it is parked, and then
    replayed.
    """
    handle = await kernel.execute(BEGIN)
    for number in range(waits):
        await until(partial(parked, kernel, before + number + 1))
        await kernel.jobs.signal(handle.job_id, "go", number)
    return (await handle.result()).output


def parked(kernel: RuntimeKernel, effects: int) -> bool:
    """True once the job of the kernel is parked, and the kernel has made so many effects."""
    found = kernel.statistics()
    return bool(found["parked"] == 1 and found["effects"] == effects)


def refused_in(call: Callable[[], object]) -> Callable[[DurableContext], Any]:
    async def direct(ctx: DurableContext) -> str:
        call()
        return "done"

    return direct


async def test_a_blocking_client_in_a_function_is_refused_by_name_before_it_sends_anything(witness: Witness) -> None:
    async def pays(ctx: DurableContext) -> str:
        witness.pay()
        for _ in range(3):
            await ctx.wait("go")
        return "paid"

    async with RuntimeKernel.create(agent=pays) as kernel:
        with pytest.raises(
            EffectError, match=r"the function sends a request to 127.0.0.1, in .*test_direct_io.py"
        ) as error:
            await run(kernel)
    assert "await ctx.step(f, …)" in str(error.value)
    assert "secret" not in str(error.value)
    assert witness.posts == []


async def test_the_same_client_in_a_step_sends_once_over_all_replays(witness: Witness) -> None:
    async def pays(ctx: DurableContext) -> Any:
        status = await ctx.step(witness.pay, 5)
        for _ in range(3):
            await ctx.wait("go")
        return status

    async with RuntimeKernel.create(agent=pays) as kernel:
        assert await bounded(run(kernel, 3, before=1)) == 200
    assert witness.posts == [b"5"]


async def test_a_job_that_swallows_the_refusal_fails_all_the_same(witness: Witness) -> None:
    async def hides(ctx: DurableContext) -> str:
        with suppress(Exception):
            witness.pay()
        return "nothing happened"

    async with RuntimeKernel.create(agent=hides) as kernel:
        with pytest.raises(EffectError, match="sends a request"):
            await run(kernel)
    assert witness.posts == []


async def test_a_connection_that_was_open_before_is_refused_too(witness: Witness) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", witness.port)) as connection:
        connection.connect()
        function = refused_in(lambda: connection.request("POST", "/", body=b"1"))
        async with RuntimeKernel.create(agent=function) as kernel:
            with pytest.raises(EffectError, match=r"sends a request to 127\.0\.0\.1"):
                await run(kernel)
    assert witness.posts == []


def _by_socket(open_one: socket.socket, way: str, witness: Witness) -> None:
    request = b"POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 1\r\n\r\n1"
    if way == "sendfile":
        with tempfile.TemporaryFile() as file:
            file.write(request)
            file.seek(0)
            open_one.sendfile(file)
    else:
        getattr(open_one, way)(request)
    open_one.recv(1)


@pytest.mark.parametrize("way", ["send", "sendall", "sendfile", "httpx"])
async def test_a_connection_of_a_pool_that_a_step_has_opened_is_refused_in_the_function(
    witness: Witness, way: str
) -> None:
    """The pool of httpx has a socket, whose `send` Python does not tell of: each replay paid once more."""
    httpx2 = pytest.importorskip("httpx2")

    async def pays(ctx: DurableContext) -> str:
        await ctx.step(pay, effect="unsafe")
        pay()
        await ctx.wait("go")
        return "paid"

    with socket.create_connection(("127.0.0.1", witness.port)) as connection, httpx2.Client() as client:

        def pay() -> None:
            if way == "httpx":
                client.post(witness.url, content=b"1")
            else:
                _by_socket(connection, way, witness)

        async with RuntimeKernel.create(agent=pays) as kernel:
            with pytest.raises(EffectError, match=r"the function sends data to 127\.0\.0\.1:\d+, in .*test_direct_io"):
                await bounded(run(kernel))
    assert witness.posts == [b"1"], "that of the step"


async def test_a_stream_of_asyncio_that_was_open_before_is_refused_too(witness: Witness) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", witness.port)
    function = refused_in(lambda: writer.write(b"POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 1\r\n\r\n1"))
    async with RuntimeKernel.create(agent=function) as kernel:
        with pytest.raises(EffectError, match=r"sends data to 127\.0\.0\.1:\d+"):
            await bounded(run(kernel))
    with pytest.raises(UserError, match="sends data"):  # asyncio closes a stream whose socket raises an error
        await reader.read()
    assert witness.posts == []


async def test_another_event_loop_may_be_woken_and_a_pair_of_sockets_outside_of_jobs_sends(witness: Witness) -> None:
    loop, one, other = asyncio.get_running_loop(), *socket.socketpair()
    woken = asyncio.Event()

    async def wakes(ctx: DurableContext) -> str:
        loop.call_soon_threadsafe(woken.set)
        return "woken"

    with one, other:
        async with RuntimeKernel.create(agent=wakes) as kernel:
            assert await bounded(run(kernel)) == "woken"
            one.send(b"1")
            assert other.recv(1) == b"1"
            with tempfile.TemporaryFile() as file:
                file.write(b"12")
                file.flush()
                assert one.sendfile(file, offset=1, count=1) == 1  # with names too
            assert other.recv(2) == b"2"
    await asyncio.wait_for(woken.wait(), 5)


async def test_a_finally_block_of_a_parked_job_sends_nothing(witness: Witness, caplog: Any) -> None:
    async def pays(ctx: DurableContext) -> str:
        try:
            await ctx.wait("go")
        finally:
            if ctx.message == 1 and not ctx.labels:
                witness.pay()
        return "paid"

    kernel = RuntimeKernel.create(agent=pays)
    await kernel.execute(BEGIN)
    await until(lambda: kernel.statistics()["parked"] == 1)
    await kernel.close()
    assert witness.posts == []
    assert "the function sends a request to 127.0.0.1" in caplog.text


def _in_a_pool() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(print)


DIRECT: dict[str, Callable[[Path], object]] = {
    "opens a connection to 127.0.0.1:9": lambda path: socket.create_connection(("127.0.0.1", 9)),
    "sends data to 127.0.0.1:9": lambda path: socket.socket(type=socket.SOCK_DGRAM).sendto(b"1", ("127.0.0.1", 9)),
    "opens a server at 127.0.0.1:0": lambda path: socket.socket().bind(("127.0.0.1", 0)),
    "opens the database": lambda path: sqlite3.connect(path / "paid.db"),
    "starts the process 'touch'": lambda path: subprocess.run(["touch", str(path / "x")], check=True),
    "starts the process '.*python.*'": lambda path: multiprocessing.get_context("spawn").Process(target=print).start(),
    "starts the process .*python": lambda path: _in_a_pool(),
    "starts the process": lambda path: os.system(f"touch {path / 'x'}"),
    "opens .*x' for writing": lambda path: (path / "x").open("a"),
    "opens .*y' for writing": lambda path: (path / "y").write_text("1"),
    "opens .*z' for writing": lambda path: os.open(path / "z", os.O_CREAT),
    "makes .*d'": lambda path: (path / "d").mkdir(),
    "removes .*kept'": lambda path: (path / "kept").unlink(),
    "moves .*kept'": lambda path: (path / "kept").rename(path / "x"),
    "changes .*kept'": lambda path: (path / "kept").chmod(0o600),
    "makes ": lambda path: tempfile.mkdtemp(dir=path),
    "opens the database 'file:": lambda path: sqlite3.connect(f"file:{path}/x?mode=rwc", uri=True),
    "opens the database .*memory": lambda path: sqlite3.connect(path / "memory"),
    "opens the database .*mode=memory": lambda path: sqlite3.connect(f"{path}/x?mode=memory"),
    "makes .*tmp": lambda path: tempfile.NamedTemporaryFile(dir=path).close(),
    "starts the process 'uname'": lambda path: subprocess.check_output(["uname", "-p"]),
    "sends a signal to process": lambda path: os.kill(os.getpid(), signal.SIGCONT),
    "removes .*kept' ?": lambda path: os.remove(path / "kept"),
    "changes ": lambda path: os.truncate(path / "kept", 0),
}


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("what", DIRECT)
async def test_what_a_function_does_to_the_world_is_named(what: str, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("1")
    async with RuntimeKernel.create(agent=refused_in(lambda: DIRECT[what](tmp_path))) as kernel:
        with pytest.raises(EffectError, match=f"the function {what}.*, in .*test_direct_io.py, line "):
            await run(kernel)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["kept"]


async def test_reading_computing_and_importing_are_no_effects(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "module_of_a_job.py").write_text(f"open({str(tmp_path / 'written')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    handler = logging.FileHandler(tmp_path / "log", delay=True)
    log = logging.getLogger("of.a.job")
    log.addHandler(handler)

    async def computes(ctx: DurableContext) -> Any:
        import module_of_a_job  # type: ignore[import-not-found]

        log.warning("written by a handler, which opens its file now")
        with closing(sqlite3.connect(":memory:")) as database, open(os.devnull, "w") as nowhere:
            nowhere.write("1")
            (found,) = database.execute("SELECT 40 + 2").fetchone()
        return found, module_of_a_job.__name__, Path(__file__).read_text()[:3]

    try:
        async with RuntimeKernel.create(agent=computes) as kernel:
            assert await run(kernel) == [42, "module_of_a_job", '"""']
    finally:
        log.removeHandler(handler)
        handler.close()
    assert "written by a handler" in (tmp_path / "log").read_text()


def _ask_the_platform() -> None:
    platform._platform_cache.clear()  # type: ignore[attr-defined]
    platform._uname_cache = None  # type: ignore[attr-defined]
    assert platform.platform()
    assert platform.uname().processor is not None


def _ask_for_a_folder() -> None:
    tempfile.tempdir = None
    tempfile.gettempdir()


def _roll_over() -> None:
    with tempfile.SpooledTemporaryFile(max_size=1) as file:
        file.write(b"more than one")


def _rotate(path: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(path / "log", maxBytes=10, backupCount=1)
    for _ in range(3):
        handler.emit(logging.makeLogRecord({"msg": "twelve bytes"}))
    handler.close()


ORDINARY: dict[str, Callable[[Path], object]] = {
    "a shared database in memory": lambda path: sqlite3.connect("file::memory:?cache=shared", uri=True).close(),
    "a named database in memory": lambda path: sqlite3.connect("file:x?mode=memory", uri=True).close(),
    "one with other options": lambda path: sqlite3.connect("file:y?cache=shared&mode=memory", uri=True).close(),
    "a database without a name": lambda path: sqlite3.connect("").close(),
    "a database that is only read": lambda path: sqlite3.connect(f"file:{path}/kept.db?mode=ro", uri=True).close(),
    "one that nobody changes": lambda path: sqlite3.connect(f"file:{path}/kept.db?immutable=1", uri=True).close(),
    "platform.platform": lambda path: _ask_the_platform(),
    "uuid.getnode": lambda path: (setattr(uuid, "_node", None), uuid.getnode(), uuid.uuid1()),
    "ctypes.util.find_library": lambda path: (ctypes.util.find_library("c"), ctypes.util.find_library("no_library")),
    "locale": lambda path: (locale.getlocale(), locale.localeconv(), locale.getpreferredencoding()),
    "the name of the host": lambda path: (socket.gethostname(), socket.getaddrinfo("localhost", 80)),
    "a pair of sockets": lambda path: [each.close() for each in socket.socketpair()],
    "the folder of temporary files": lambda path: _ask_for_a_folder(),
    "a file without a name": lambda path: tempfile.TemporaryFile(dir=path).close(),
    "a file in memory that rolls over": lambda path: _roll_over(),
    "zones": lambda path: (zoneinfo.ZoneInfo.no_cache("Europe/Berlin"), zoneinfo.available_timezones()),
    "certificates": lambda path: ssl.create_default_context(),
    "types of files": lambda path: mimetypes.init(),
    "handlers of logs": lambda path: _rotate(path / "logs"),
    "what is printed": lambda path: (print("x"), open("/dev/stderr", "w").close()),
    "whether a process is there": lambda path: os.kill(os.getpid(), 0),
    "a folder that is there": lambda path: ((path / "logs").mkdir(exist_ok=True), os.makedirs(path, exist_ok=True)),
    "a file that is not there": lambda path: (path / "no").unlink(missing_ok=True),
    "a pipe": lambda path: [os.close(each) for each in os.pipe()],
    "facts about packages": lambda path: importlib.metadata.version("pyarrow"),
    "an archive in memory": lambda path: zipfile.ZipFile(io.BytesIO(), "w").close(),
    "a client that sends nothing": lambda path: http.client.HTTPSConnection("example.com").close(),
}


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("what", ORDINARY)
async def test_ordinary_calls_of_the_standard_library_are_no_effects(what: str, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    sqlite3.connect(tmp_path / "kept.db").close()
    async with RuntimeKernel.create(agent=refused_in(lambda: ORDINARY[what](tmp_path))) as kernel:
        assert await run(kernel) == "done"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["kept.db", "logs"]


@pytest.mark.parametrize(("switch", "warnings"), [("warn", 1), ("allow", 0)])
async def test_the_switch_makes_warnings_of_errors(
    switch: str, warnings: int, witness: Witness, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setenv("SABOT_DIRECT_IO", switch)

    async def pays(ctx: DurableContext) -> int:
        return witness.pay()

    async with RuntimeKernel.create(agent=pays) as kernel:
        assert [await run(kernel), await run(kernel)] == [200, 200]
    assert witness.posts == [b"1", b"1"]
    assert len([each for each in caplog.messages if "sends a request to 127.0.0.1" in each]) == warnings


async def test_what_runs_beside_a_job_is_not_watched(witness: Witness, tmp_path: Path) -> None:
    async def waits(ctx: DurableContext) -> str:
        await ctx.wait("go")
        return "done"

    async with RuntimeKernel.create(agent=waits) as kernel:
        handle = await kernel.execute(BEGIN)
        assert witness.pay() == 200
        (tmp_path / "x").write_text("1")
        await kernel.jobs.signal(handle.job_id, "go")
        await handle.result()


async def test_a_durable_agent_of_an_app_is_watched_as_well(memory_url: str, tmp_path: Path, witness: Witness) -> None:
    app = App("shop", memory_url, state=str(tmp_path / "state"))

    @app.agent("tickets", sink="answers", durable=True, on_error="skip")
    async def pays(ctx: Any) -> str:
        witness.pay()
        return "paid"

    broker = MemoryBroker.get(memory_url)
    broker.publish("tickets", [{"order": 1}])
    async with started(app):
        await until(lambda: bool(broker.records("tickets.dlq")))
    assert "sends a request to 127.0.0.1" in str(broker.records("tickets.dlq")[0].headers)
    assert witness.posts == []


# -- what a function logs -------------------------------------------------------------------------------------------------


def said(caplog: Any) -> list[str]:
    return [each.message.partition(": ")[2] for each in caplog.records if each.name == "kernel.talks"]


async def talks(ctx: DurableContext) -> str:
    ctx.log.info("begins with %d%%", 100)
    for number in range(3):
        await ctx.wait("go")
        ctx.log.info("go %d", number)
    return "done"


async def test_a_job_logs_each_line_once_however_often_it_is_replayed(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    async with RuntimeKernel.create(agent=talks) as kernel:
        assert await bounded(run(kernel, 3)) == "done"
    assert said(caplog) == ["begins with 100%", "go 0", "go 1", "go 2"]
    assert all(each.startswith("job kernel.talks/") for each in caplog.messages if "go " in each)


async def test_a_job_logs_each_line_once_over_restarts(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    journal = tmp_path / "journal"
    async with RuntimeKernel.create(agent=talks, journal=journal) as kernel:
        job_id = (await kernel.execute(BEGIN)).job_id
        await until(lambda: kernel.statistics()["parked"] == 1)
    for number in range(3):
        async with RuntimeKernel.create(agent=talks, journal=journal) as kernel:
            (handle,) = await kernel.resume()
            await until(lambda: kernel.statistics()["parked"] == 1)
            await kernel.jobs.signal(job_id, "go")
            if number == 2:
                await handle.result()
            else:
                await until(partial(parked, kernel, 1))
    assert said(caplog) == ["begins with 100%", "go 0", "go 1", "go 2"]


async def test_a_line_of_a_turn_that_asks_for_nothing_is_logged_once_in_one_process(caplog: Any) -> None:
    """The job waits for two signals at once: the turn after the first one asks for no effect, so only the place where the
    job was parked says that its line was logged."""
    caplog.set_level(logging.INFO)

    async def talks(ctx: DurableContext) -> str:
        async def one(name: str) -> None:
            await ctx.wait(name)
            ctx.log.info("got %s", name)

        await asyncio.gather(*(one(name) for name in "abc"))
        return "done"

    async with RuntimeKernel.create(agent=talks) as kernel:
        handle = await kernel.execute(BEGIN)
        for number, name in enumerate("bca", 1):
            await until(lambda: kernel.statistics()["parked"] == 1)
            await kernel.jobs.signal(handle.job_id, name)
            await until(partial(lambda number: len(said(caplog)) == number, number))
        await handle.result()
    assert said(caplog) == ["got b", "got c", "got a"]


async def test_another_attempt_logs_its_own_lines(memory_url: str, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    app = App("shop", memory_url, state=str(tmp_path / "state"))

    @app.agent("tickets", sink="answers", durable=True, on_error="retry", retries=1, backoff=0.01)
    async def handle(ctx: Any) -> str:
        ctx.log.info("attempt %d", ctx.attempt)
        await ctx.sleep("2s")
        ctx.log.info("slept in %d", ctx.attempt)
        if ctx.attempt == 1:
            raise ValueError("once")
        return "done"

    broker = MemoryBroker.get(memory_url)
    broker.publish("tickets", [{"order": 1}])
    async with started(app):
        await until(lambda: bool(broker.records("answers")))
    lines = [each.getMessage().partition(": ")[2] for each in caplog.records if each.name == "shop.handle"]
    assert lines == ["attempt 1", "slept in 1", "attempt 2", "slept in 2"]


LOGS = """
import asyncio, logging, sys
from sabot.agents import ExecutionRequest, RuntimeKernel
from sabot.base.logs import set_up_logging

set_up_logging(sys.argv[1])

async def talks(ctx):
    logging.getLogger("mine").warning("begins")
    await ctx.wait("go")
    return 1

async def main():
    async with RuntimeKernel.create(agent=talks) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=1))
        while kernel.statistics()["parked"] != 1:
            await asyncio.sleep(0.001)
        await kernel.jobs.signal(handle.job_id, "go")
        await handle.result()

asyncio.run(main())
"""


@pytest.mark.slow  # a second of a core
@pytest.mark.parametrize(("level", "times"), [("info", 1), ("debug", 2)])
def test_the_log_of_sabot_drops_plain_lines_of_replays_too(level: str, times: int) -> None:
    done = subprocess.run([sys.executable, "-c", LOGS, level], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.count("mine: begins") == times, done.stderr


@pytest.mark.slow  # a second of a core
def test_only_jobs_pay_for_the_hook() -> None:
    """An audit hook cannot be removed, so a process without jobs does not get it."""
    code = "import sys, sabot, sabot.agents.kernel, sabot.jobs.direct_io as d; print(d._watches)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"


async def _direct(work: Any, place: Any = None) -> str:
    """The error with which a job fails whose function calls `work`, and catches what that raises."""

    async def f(ctx: DurableContext) -> str:
        with suppress(Exception):
            await work()
        return "went on"

    async with RuntimeKernel.create(agent=f, journal=place, name="shop") as kernel:
        _KERNELS[:] = [kernel]
        job = await kernel.execute(BEGIN)
        with pytest.raises(EffectError) as caught:
            await bounded(job.result())
        other = await kernel.execute(BEGIN)  # the journal still works: the second job fails the same way
        with pytest.raises(EffectError):
            await bounded(other.result())
        return caught.value.message


_KERNELS: list[RuntimeKernel] = []


@pytest.mark.parametrize(
    "call",
    [
        lambda kernel: kernel.jobs.get("shop.f/1"),
        lambda kernel: kernel.jobs.find(),
        lambda kernel: kernel.jobs.cancel("shop.f/1"),
        lambda kernel: kernel.jobs.retry("shop.f/1"),
        lambda kernel: kernel.jobs.signal("shop.f/1", "go"),
        lambda kernel: kernel.actions.find(),
        lambda kernel: kernel.actions.resolve("t", {"approved": True}),
    ],
)
async def test_the_jobs_of_a_kernel_are_refused_in_the_function_of_a_job(tmp_path: Path, call: Any) -> None:
    """The thread of the journal ended with the error when it woke the function: all jobs of the kernel waited for ever."""
    message = await _direct(lambda: call(_KERNELS[0]), str(tmp_path / "jobs"))
    assert "no job may call" in message or "looks into the jobs of a kernel; each replay" in message


async def test_a_running_child_process_is_told_nothing_by_the_function_of_a_job(tmp_path: Path) -> None:
    """A line that the function wrote came once for each replay, and a task of a ProcessRuntime let the job hang."""
    supervisor, seen = await Supervisor.running(), tmp_path / "seen"
    child = await supervisor.spawn(Command(argv=["sh", "-c", f"while read -r line; do echo $line >> {seen}; done"]))
    assert child.stdin is not None
    stdin = child.stdin
    told = {
        "writes to the stdin of a child process": lambda: stdin.write(b"pay\n"),
        "closes the stdin of a child process": stdin.close,
        "tells its supervisor about the child 'sh'": child.kill,
        "tells its supervisor about the child": child.pause,
    }
    for words, call in told.items():

        async def work(call: Any = call) -> None:
            call()

        assert f"the function {words}" in await _direct(work)

    async def stop() -> None:
        await child.stop()

    assert "closes the stdin of a child process" in await _direct(stop)
    assert not child.is_over
    child.stdin.write(b"beside the jobs\n")
    child.stdin.close()
    await bounded(child.wait())
    assert seen.read_text() == "beside the jobs\n"


async def test_a_task_of_a_runtime_is_refused_in_the_function_of_a_job(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = f"while read -r task; do echo task >> {seen}; echo '{{\"result\": 1}}'; done"
    async with ProcessRuntime() as runtime:
        worker = await runtime.spawn_agent("worker-1", "developer", "sh", ["-c", script])
        message = await _direct(lambda: runtime.execute_task(worker, TaskDelegation(objective="pay")))
        assert "writes to the stdin of a child process; each replay" in message
    assert not seen.exists()
