"""The console over processes that it is not in: an app with workers, a journal in PostgreSQL, checkpoints in an object store."""

import asyncio
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pyarrow import fs
from unit.web.test_console import Browser

from sabot.agents import ExecutionRequest, RuntimeKernel
from sabot.engine.runtime.watch.run_record import RECORD_FILE
from tools.command_line import ENV, SABOT, child
from tools.postgres import Postgres, server_or_skip

pytestmark = pytest.mark.slow  # each has some five processes

PROGRAM = """
import json, os
from pathlib import Path
from sabot import App, NdjsonSink, NdjsonSource, files
from sabot.agents import Budget
from sabot.llm import Completion, ExecutionEngine, ScriptedProvider, Usage, assistant

folder = Path(__file__).parent
app = App("shop", state=str(folder / "state"), budgets=[Budget("ann", max_tokens_daily=10_000_000)])
answer = Completion(message=assistant("yes"), usage=Usage(100, 50), model="m", provider="scripted")
engine = ExecutionEngine(ScriptedProvider(lambda spec: answer, model="m"))

@app.agent(NdjsonSource(folder / "tickets.ndjson"), durable=True, scope="who", sink=NdjsonSink(folder / "out.ndjson"))
async def handle(ctx):
    await ctx.llm(engine).complete("hi", max_tokens=100)
    if ctx.message["n"] % 5 == 0:
        await ctx.ask("confirm", {"n": ctx.message["n"]})
    return {"n": ctx.message["n"]}

def slowly(batch):
    import time
    time.sleep(0.25)
    return batch

orders = app.stream(files(str(folder / "orders")), schema={"n": "int64"})
orders.map_batches(slowly).to(NdjsonSink(folder / "slow.ndjson"))
"""


def wait_until(done: Callable[[], bool], said: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + 90
    while not done():
        assert time.monotonic() < deadline, said()
        time.sleep(0.1)


class Child:
    """A process of Sabot whose console a browser has entered."""

    def __init__(self, process: Any, log: Path, links: int) -> None:
        self.process, self._log = process, log
        self._until(lambda: len(re.findall(r"/enter\?token=", log.read_text())) >= links)
        found = re.findall(r"http://[\w.-]+:(\d+)/enter\?token=(\S+)", log.read_text())[links - 2]
        self.browser = Browser(cast("Any", SimpleNamespace(port=int(found[0])))).enter(found[1])

    def _until(self, done: Callable[[], bool]) -> None:
        def done_or_over() -> bool:
            assert self.process.poll() is None, self._log.read_text()
            return done()

        wait_until(done_or_over, self._log.read_text)

    def page(self, path: str, text: str = "") -> str:
        """Returns a page as soon as it has the text."""
        found = ""

        def shows() -> bool:
            nonlocal found
            _, found = self.browser.ask(path)
            return text in found

        try:
            self._until(shows)
        except AssertionError:
            raise AssertionError(f"{path} has no {text!r}: {found}") from None
        return found

    def table(self, path: str, enough: Callable[[Any], bool] = bool) -> Any:
        """Returns a table as soon as there is enough in it."""
        rows: Any = []

        def has() -> bool:
            nonlocal rows
            status, text = self.browser.ask(path)
            rows = json.loads(text) if status == 200 else []
            return enough(rows)

        self._until(has)
        return rows


@pytest.fixture(scope="module")
def postgres() -> Postgres:
    return server_or_skip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(PROGRAM)
    (tmp_path / "tickets.ndjson").write_text("".join(f'{{"n": {n}, "who": "ann"}}\n' for n in range(20)))
    (tmp_path / "orders").mkdir()
    for part in range(1_000):  # the step needs two minutes for them
        (tmp_path / "orders" / f"{part}.ndjson").write_text('{"n": 1}\n')
    return tmp_path


def launched(folder: Path, name: str, *words: str) -> Any:
    env = ENV | {"XDG_STATE_HOME": str(folder / "home")}
    return child(*SABOT, *words, cwd=folder, env=env, stderr=open(folder / name, "w"))


def looks(shown: Child, root: str) -> None:
    """Looks at all screens whose facts are in other processes."""
    over = {"succeeded", "waiting_action"}
    shown.table(f"{root}/jobs.json", lambda rows: len(rows) == 20 and {each["status"] for each in rows} == over)
    assert "4 open questions" in shown.page(f"{root}/inbox", "4 open questions")
    models = shown.table(f"{root}/models.json", lambda rows: sum(each["calls"] for each in rows) >= 20)
    assert [(each["kind"], each["calls"], each["tokens"]) for each in models] == [("model", 20, 3_000)]
    (limit,) = shown.table(f"{root}/budgets.json?of=limits", lambda rows: rows and rows[0]["spent"] == "3000")
    assert limit["limit"] == "10000000"
    points = re.findall(r'href="([^"]+/rows\?[^"]+|/rows\?[^"]+)"', shown.page(f"{root}/rows", "/rows?of="))
    rows = shown.table(unescape(points[-1]).replace("/rows?", "/rows.json?"))
    assert all(each["n"].isdecimal() for each in rows)


def test_an_app_with_workers_and_a_journal_in_postgresql_has_all_screens(postgres: Postgres, folder: Path) -> None:
    journal = ("--journal", postgres.url)
    run = ("run", "shop:app", "--workers", "2", *journal, "--web", "--web-port", "0", "--web-show", "n")
    with launched(folder, "run.log", *run, "--loglevel", "warning") as process:
        own = Child(process, folder / "run.log", 2)
        looks(own, "")
        assert "/stack?" not in own.page("/steps", "read-1"), "stacks of workers cannot be looked at"
        with launched(folder, "web.log", "web", "state", "--web-port", "0", "--web-show", "n") as web:
            other = Child(web, folder / "web.log", 2)
            assert "As of" in other.page("/apps/shop/")
            looks(other, "/apps/shop")
            process.send_signal(signal.SIGKILL)
            assert "has ended without a stop" in other.page("/apps/shop/", "has ended without a stop")
            assert other.table("/apps/shop/models.json", len)[0]["calls"] == 20
            assert len(other.table("/apps/shop/jobs.json")) == 20
            other.page("/apps/shop/rows?of=read-1&branch=", "only running streams have rows")


async def asks(ctx: Any) -> Any:
    return (await ctx.ask("confirm", {"n": ctx.message})).resolution


def test_pages_say_which_server_is_away_and_since_when_and_come_back_with_it(tmp_path: Path) -> None:
    """The inbox was a 500 with a line of the app's log, and the other pages were not possible."""
    own = Postgres()

    async def begin() -> str:
        async with RuntimeKernel.create(agent=asks, journal=own.url, name="k") as kernel:
            return (await kernel.execute(ExecutionRequest(prompt=1))).job_id

    try:
        job = asyncio.run(begin())
        with launched(tmp_path, "web.log", "web", f"{own.url}?app=k", "--web-port", "0") as web:
            shown = Child(web, tmp_path / "web.log", 2)
            paths = ["/apps/k/jobs", f"/apps/k/job?id={job}", "/apps/k/inbox"]
            for path in paths:
                shown.page(path, "k.asks")
            own.stop()
            moments = set[str]()
            for path in paths * 2:
                status, text = shown.browser.ask(path)
                assert status == 503, text
                assert f"PostgreSQL at 127.0.0.1:{own.port}/postgres: " in text
                assert '<meta http-equiv="refresh" content="5">' in text
                moments.update(re.findall(r"has not answered since ([\d :-]+ UTC)", text))
            assert len(moments) == 1
            for path in ("/apps/k/jobs.json", "/apps/k/inbox.json"):
                status, text = shown.browser.ask(path)
                assert (status, text.partition(" at ")[0]) == (503, "PostgreSQL")
            assert [shown.browser.ask(path)[0] for path in ("/", "/apps/k/", "/apps/k/models", "/apps/k/log")] == [
                200
            ] * 4
            own.start()
            for path in paths:
                shown.page(path, "k.asks")
        assert "ERROR" not in (tmp_path / "web.log").read_text()
    finally:
        own.remove()


@pytest.fixture
def store() -> Iterator[str]:
    """The URI of a place in a bucket."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true"
        uri = f"s3://any:any@kept/shop?{options}"
        fs.FileSystem.from_uri(uri)[0].create_dir("kept")
        yield uri
    finally:
        server.stop()


def test_an_app_with_checkpoints_in_an_object_store_is_shown_by_its_places(
    postgres: Postgres, store: str, folder: Path
) -> None:
    program = folder / "shop.py"
    program.write_text(program.read_text().replace('App("shop"', 'App("kept"'))  # the journal of the other test stays
    where = ("--checkpoint-dir", store, "--checkpoint-interval", "1", "--journal", postgres.url)
    with launched(folder, "run.log", "run", "shop:app", *where, "--loglevel", "warning") as process:
        wait_until(lambda: (folder / "state" / RECORD_FILE).exists())
        places = ("state", store, f"{postgres.url}?app=kept")  # those of one app, in which nothing contradicts
        with launched(folder, "web.log", "web", *places, "--web-port", "0", "--web-show", "n") as web:
            other = Child(web, folder / "web.log", 2)
            looks(other, "/apps/kept")
            other.page("/apps/kept/checkpoints", "/checkpoint?id=")
            other.page("/apps/kept/state", "kept.handle")
            process.send_signal(signal.SIGKILL)
            other.page("/apps/kept/", "has ended without a stop")
            other.page("/apps/kept/checkpoints", "/checkpoint?id=")
        with launched(folder, "alone.log", "web", *places[1:], "--web-port", "0") as web:  # as on another machine
            alone = Child(web, folder / "alone.log", 2)
            assert len(alone.table("/apps/kept/jobs.json")) == 20
            alone.page("/apps/kept/checkpoints", "/checkpoint?id=")
            alone.page("/apps/kept/state", "kept.handle")
            alone.page("/apps/kept/budgets", "the budgets of the app are known only while it runs")
