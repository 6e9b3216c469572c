"""Durable agents over each home of a journal: asked and answered from a shell, a worker that takes over from a stopped one, a server that
is gone for a while, state or journal lost, records that retention has deleted.
"""

import asyncio
import inspect
import itertools
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import durable_child
import psycopg
import pytest

from sabot import App, UserError
from sabot.agents import JobRecord
from sabot.cli import load_app
from sabot.errors import CheckpointFailed, CorruptJournal, OtherJournal
from sabot.journal.kafka import KafkaJournal
from sabot.journal.postgres import PostgresJournal
from sabot.kafka.admin import delete_before
from sabot.kafka.client import link_of
from sabot.llm import tool
from sabot.testing import ManualClock, MemoryBroker, Witness
from tools.agent_tools import checkpoint, environment, started, until
from tools.broker import Broker, running_or_skipped
from tools.command_line import child, sabot_says
from tools.fault_tools import Place, outage_seconds
from tools.postgres import Postgres, server_or_skip

HOMES = ["sqlite", "postgres", pytest.param("kafka", marks=pytest.mark.kafka)]
SERVERS = HOMES[1:]
_numbers = itertools.count()


class Home(NamedTuple):
    """Where a journal is: as an app says it (None: in its state directory), and as the command line does."""

    journal: str | None
    address: str


@pytest.fixture
def home(request: pytest.FixtureRequest, tmp_path: Path, topic: str) -> Iterator[Home]:
    if request.param == "sqlite":
        yield Home(None, str(tmp_path / "state"))
    elif request.param == "postgres":
        with server_or_skip().database() as url:
            yield Home(url, f"{url}?app=shop")
    else:
        url = f"{request.getfixturevalue('kafka_url')}/{topic}"
        yield Home(url, url)


def jobs(app: App) -> dict[str, Any]:
    found: dict[str, Any] = app.statistics()["jobs"]
    return found


# -- from a shell -----------------------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio

from sabot import App
from sabot.llm import tool

app = App("shop", {broker!r}, state="state", checkpoint_interval=3600, journal={journal!r})
made = []

@tool(effect="unsafe", timeout="50ms")
async def refund(order):
    made.append(order)
    if len(made) == 1:
        await asyncio.Event().wait()  # nobody knows whether it was done
    return f"refunded {{order}}"

@app.agent("tickets", key="customer", sink="answers", durable=True)
async def handle(ctx):
    answer = await ctx.ask("confirm", {{"message": "Go?"}})
    said = await ctx.call(refund, ctx.message["order"])
    return {{"by": answer.by, "said": said, "paid": await ctx.wait("paid")}}
"""


class Shell:
    """The commands of another process."""

    def __init__(self, home: Home) -> None:
        self._place = ("--journal", home.address)

    async def says(self, *words: str) -> str:
        done = await asyncio.to_thread(sabot_says, *words, *self._place)
        assert done.exit_code == 0, done.output + done.stderr
        return done.stdout

    async def objects(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (await self.says(*words, "--json")).splitlines()]

    async def question(self) -> str:
        """The token of the only one that is open."""
        (action,) = await self.objects("actions", "list")
        return str(action["resume_token"])


@pytest.mark.one_in(3, "a second of a core each")
@pytest.mark.parametrize("home", HOMES, indirect=True)
async def test_jobs_and_questions_are_served_from_a_shell_while_the_app_runs_and_while_it_does_not(
    home: Home, memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"durable_journals_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(PROGRAM.format(broker=memory_url, journal=home.journal))
    target, shell = f"{name}:app", Shell(home)
    app, broker = load_app(target), MemoryBroker.get(memory_url)

    async def parked_at(kind: str) -> str:
        """-> the job"""

        found: list[JobRecord] = []
        while not any(each.kind == kind for job in found for each in job.open):
            await checkpoint(app)  # what is read is what is durable
            found = await app.jobs.find()
        await until(lambda: jobs(app)["parked"] == 1)
        (job,) = await app.jobs.find()
        return job.job_id

    async def verdicts() -> list[str]:
        done = await asyncio.to_thread(sabot_says, "jobs", "check", target, "--json")
        assert done.exit_code == 0, done.output + done.stderr
        return [json.loads(line)["verdict"] for line in done.stdout.splitlines()]

    async with started(app):
        broker.publish("tickets", [{"customer": "ann", "order": 7}])
        job = await parked_at("ask")
        (seen,) = await shell.objects("jobs", "list")
        assert (seen["job_id"], seen["status"], seen["agent"]) == (job, "waiting_action", "shop.handle")
        assert await verdicts() == ["ok"]
        assert (
            await shell.says("actions", "resolve", await shell.question(), "--approve", "--by", "ann") == "answered\n"
        )
        await until(lambda: jobs(app)["doubts"] == 1)
        assert await parked_at("call") == job
        assert "was refund(7) done?" in await shell.says("actions", "list")
    doubt = await shell.question()  # it is down
    assert await verdicts() == ["ok"]
    (seen,) = await shell.objects("jobs", "show", job)
    assert [each["in_doubt"] for each in seen["open"]] == [True]
    assert await shell.says("actions", "resolve", doubt, "--not-done", "--by", "bob") == "answered\n"
    again = await asyncio.to_thread(sabot_says, "actions", "resolve", doubt, "--done", "--journal", home.address)
    assert (again.exit_code, "already answered" in again.stderr) == (1, True)
    (action,) = [each for each in await app.actions.find(job_id=job) if each.type == "in_doubt"]
    assert (action.status, action.by) == ("resolved", "bob")
    async with started(app):
        assert await parked_at("wait") == job
        assert await verdicts() == ["ok"]
        await shell.says("jobs", "signal", job, "paid", "--with", "12.5", "--by", "bank")
        await until(lambda: broker.records("answers"))
        await checkpoint(app)
        (seen,) = await shell.objects("jobs", "list")
        assert seen["status"] == "succeeded"
        assert (await app.jobs.get(job)).ended
    (answer,) = broker.records("answers")
    assert answer.value == {"by": "ann", "said": "refunded 7", "paid": 12.5}
    assert sys.modules[name].made == [7, 7]
    shown = await shell.says("journal", "show", job)
    assert [line.split()[3] for line in shown.splitlines()[1:]] == (
        ["begin", "intent", "answer", "intent", "intent", "answer", "attempt", "result", "intent", "signal", "end"]
    )


# -- a worker that takes over -------------------------------------------------------------------------------------------------


def worker(name: str, folder: Path, home: Home, witness: Witness) -> Any:
    words = (sys.executable, durable_child.__file__, name, folder, home.journal or "", witness.url)
    return child(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())


@pytest.mark.integration
@pytest.mark.slow  # two processes and a lease; the parts: test_host_ends, test_postgres_journal, test_kafka_journal
@pytest.mark.parametrize("home", HOMES, indirect=True)
async def test_a_stopped_worker_that_was_succeeded_does_nothing_more_when_it_wakes_up(
    home: Home, tmp_path: Path
) -> None:
    """In SQLite nobody succeeds it: the lock is its as long as it lives."""
    with Witness(tmp_path / "witness.db") as witness, worker("one", tmp_path, home, witness) as one:
        await until((tmp_path / "holding-one").exists)
        one.send_signal(signal.SIGSTOP)
        with worker("two", tmp_path, home, witness) as two:
            if home.journal is None:
                told, _ = await asyncio.to_thread(two.communicate, timeout=60)
                assert two.returncode == durable_child.LOCKED, told
            else:
                await until((tmp_path / "holding-two").exists)
            (tmp_path / "go").touch()
            if home.journal is not None:
                assert await asyncio.to_thread(two.wait, 60) == 0, two.stderr.read()
            one.send_signal(signal.SIGCONT)
            _, log = await asyncio.to_thread(one.communicate, timeout=60)
        assert ("another owner has taken the journal over" in log) == (home.journal is not None), log
        does = "one" if home.journal is None else "two"
        done = [(effect.name, effect.arguments) for effect in witness.effects()]
        assert done == [("first", "one"), ("look", does), ("second", does)]


# -- a server that is gone ----------------------------------------------------------------------------------------------------


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path, topic: str) -> Iterator[tuple[Any, str]]:
    """One that a test may stop, and the address of a journal on it."""
    if request.param == "postgres":
        server_or_skip()
        postgres = Postgres()
        yield postgres, postgres.url
        postgres.remove()
    else:
        (tmp_path / "broker").mkdir()
        with running_or_skipped(Broker(tmp_path / "broker")) as broker:
            yield broker, f"{broker.url}/{topic}"


@pytest.mark.slow  # it starts servers; without them: test_host_ends
@pytest.mark.parametrize("server", SERVERS, indirect=True)
async def test_while_the_journals_server_is_gone_nothing_is_done_and_then_all_of_it_once(
    server: tuple[Any, str], memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SABOT_TEST_OUTAGE_SECONDS=30 keeps it away for so long."""
    for kind in (KafkaJournal, PostgresJournal):
        monkeypatch.setitem(inspect.unwrap(kind.__init__).__kwdefaults__, "lease_s", 1.0)
    machine, journal = server
    looked: list[int] = []
    refunded: list[int] = []

    @tool(effect="unsafe")
    async def refund(order: int) -> None:
        refunded.append(order)

    async def handle(ctx: Any) -> Any:
        order = ctx.message["order"]
        await ctx.step(looked.append, order, effect="read")
        await ctx.call(refund, order)
        return {"order": order}

    app = App("shop", memory_url, state=str(tmp_path / "state"), checkpoint_interval=3600, journal=journal)
    app.agent("tickets", sink="answers", durable=True, concurrency=8)(handle)
    broker = MemoryBroker.get(memory_url)
    async with started(app):
        broker.publish("tickets", [{"order": 0}])
        await until(lambda: len(broker.records("answers")) == 1)
        await asyncio.to_thread(machine.stop)
        broker.publish("tickets", [{"order": 1}])  # its intent is on the way
        own = app.agent_runtime.runner.journal
        assert own is not None
        await until(lambda: own.claim_left() == 0.0)
        seen = [*looked]
        broker.publish("tickets", [{"order": order} for order in range(2, 6)])
        await until(lambda: jobs(app)["in_flight"] == 5)
        await asyncio.sleep(outage_seconds())
        assert (looked, refunded) == (seen, [0])
        await asyncio.to_thread(machine.start)
        await until(lambda: len(broker.records("answers")) == 6)
        await checkpoint(app)
    assert sorted(looked) == sorted(refunded) == list(range(6))


@pytest.mark.slow  # it starts servers, and waits for one that is gone; the parts: test_runner, test_host
@pytest.mark.parametrize("server", SERVERS, indirect=True)
async def test_a_stop_while_the_journals_server_is_gone_ends_soon_and_says_why(
    server: tuple[Any, str], memory_url: str, tmp_path: Path
) -> None:
    """It waited for calls that were not sent (30 s), for the last checkpoint (60 s), and for the journal (10 s; Kafka: five minutes)."""
    machine, journal = server
    refunded: list[int] = []

    @tool(effect="unsafe")
    async def refund(order: int) -> None:
        refunded.append(order)

    async def handle(ctx: Any) -> Any:
        await ctx.call(refund, ctx.message["order"])
        return ctx.message

    def shop() -> App:
        app = App("shop", memory_url, state=str(tmp_path / "state"), checkpoint_interval=3600, journal=journal)
        app.agent("tickets", sink="answers", durable=True, concurrency=8)(handle)
        return app

    app, broker = shop(), MemoryBroker.get(memory_url)
    await app.start()
    broker.publish("tickets", [{"order": 0}])
    await until(lambda: len(broker.records("answers")) == 1)
    await asyncio.to_thread(machine.stop)
    broker.publish("tickets", [{"order": 1}])
    await until(lambda: jobs(app)["in_flight"] == 1)
    with pytest.raises(CheckpointFailed, match=r"no last checkpoint: .*has not answered for 5 s"):
        await asyncio.wait_for(app.stop(), 120)  # 15, where the machine has nothing else to do
    assert refunded == [0]
    await asyncio.to_thread(machine.start)
    async with started(shop()):
        await until(lambda: len({record.value["order"] for record in broker.records("answers")}) == 2)
    assert refunded == [0, 1]


# -- what is lost -------------------------------------------------------------------------------------------------------------


@pytest.mark.one_in(4, "a fifth of a second of a core each")
@pytest.mark.parametrize("home", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize(("lost", "told"), [("place >= 10", "entries 10 to 15 are"), ("place = 5", "entry 5 is")])
async def test_a_start_over_a_journal_that_lacks_entries_makes_no_effect_and_says_which_are_missing(
    home: Home, memory_url: str, tmp_path: Path, lost: str, told: str
) -> None:
    """The last ones, behind the checkpoint, were not noticed: unsafe effects were made twice. One in the middle was told as other code."""
    calls: list[int] = []

    @tool(effect="unsafe")
    async def refund(order: int) -> None:
        calls.append(order)

    def shop() -> App:
        app = App("shop", memory_url, state=str(tmp_path / "state"), checkpoint_interval=3600, journal=home.journal)

        @app.agent("tickets", durable=True)
        async def handle(ctx: Any) -> None:
            await ctx.call(refund, ctx.message["order"])
            await ctx.sleep("1d")

        return app

    first, broker = shop(), MemoryBroker.get(memory_url)
    await first.start()
    broker.publish("tickets", [{"order": order} for order in range(2)])
    await until(lambda: jobs(first)["parked"] == 2)
    await checkpoint(first)
    kept = tmp_path / "checkpoints"
    shutil.copytree(tmp_path / "state" / "checkpoints", kept)
    broker.publish("tickets", [{"order": order} for order in range(2, 4)])
    await until(lambda: jobs(first)["parked"] == 4)
    await first.stop()
    shutil.rmtree(tmp_path / "state" / "checkpoints")  # as a kill leaves it: the checkpoint of the stop is not there
    shutil.copytree(kept, tmp_path / "state" / "checkpoints")
    if home.journal is None:
        with closing(sqlite3.connect(tmp_path / "state" / "journal" / "journal.db")) as database, database:
            database.execute(f"DELETE FROM entries WHERE {lost}")
    else:
        with psycopg.connect(home.journal, autocommit=True) as server:
            server.execute(f"DELETE FROM sabot_shop.entries WHERE {lost}")  # type: ignore[arg-type]
    with pytest.raises(CorruptJournal, match=f"{told} missing, and nobody has trimmed them"):
        await shop().start()
    assert calls == [0, 1, 2, 3]


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("home", SERVERS, indirect=True)
async def test_state_without_its_journal_and_a_journal_without_its_state_are_refused(
    home: Home, memory_url: str, tmp_path: Path, topic: str
) -> None:
    calls: list[int] = []

    @tool(effect="unsafe")
    async def refund(order: int) -> None:
        calls.append(order)

    def app(state: str = "state", journal: str | None = home.journal) -> App:
        app = App("shop", memory_url, state=str(tmp_path / state), checkpoint_interval=3600, journal=journal)

        @app.agent("tickets", sink="answers", durable=True)
        async def handle(ctx: Any) -> Any:
            await ctx.call(refund, ctx.message["order"])
            return ctx.message

        return app

    broker = MemoryBroker.get(memory_url)
    async with started(app()):
        broker.publish("tickets", [{"order": 1}])
        await until(lambda: broker.records("answers"))
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(UserError, match=r"no checkpoint in .*/checkpoints contains them"):
        await app().start()
    fresh = app()
    fresh.configure(fresh=True)
    with pytest.raises(UserError, match="--fresh would forget the effects"):
        await fresh.start()
    fresh = app()
    fresh.configure(fresh=True, forget_effects=True)
    with pytest.raises(UserError, match="is not forgotten from here"):
        await fresh.start()
    with pytest.raises(OtherJournal, match="was made with"):
        await app("copy", str(tmp_path / "another")).start()
    async with started(app("copy")):
        broker.publish("tickets", [{"order": 2}])
        await until(lambda: len(broker.records("answers")) == 2)
    assert calls == [1, 2]


def by_lifespan(app: App) -> str:
    @app.on_start
    async def connect() -> None:
        raise UserError("the service is down")

    return "the service is down"


def by_effects(app: App) -> str:
    return "--fresh would forget the effects"


def by_server(app: App) -> str:
    app.configure(forget_effects=True)
    return "is not forgotten from here"


@pytest.mark.one_in(6, "half a second of a core each")
@pytest.mark.parametrize("home", HOMES, indirect=True)
@pytest.mark.parametrize("refuses", [by_lifespan, by_effects, by_server], ids=lambda refuses: refuses.__name__)
async def test_a_fresh_start_that_is_refused_leaves_journal_and_checkpoints_as_they_were(
    home: Home, memory_url: str, tmp_path: Path, refuses: Any
) -> None:
    """`by_lifespan`: no effect is in the journal, so nothing but the service refuses the start."""
    if refuses is by_server and home.journal is None:
        pytest.skip("a journal in a folder is emptied")
    calls: list[int] = []
    has_effects = refuses is not by_lifespan

    @tool(effect="unsafe")
    async def refund(order: int) -> None:
        calls.append(order)

    def shop(**settings: Any) -> App:
        where = tmp_path / "state"
        app = App("shop", memory_url, state=str(where), checkpoint_interval=3600, journal=home.journal, **settings)

        @app.agent("tickets", durable=True, sink="answers")
        async def handle(ctx: Any) -> Any:
            await ctx.call(refund, ctx.message["order"])
            return await ctx.wait("paid")

        @app.agent("counts", key="shop", sink="counted")
        async def count(ctx: Any) -> Any:
            state = ctx.state()
            await state.put("n", (await state.get("n") or 0) + 1)
            return await state.get("n")

        return app

    broker = MemoryBroker.get(memory_url)
    app = shop()
    async with started(app):
        broker.publish("counts", [{"shop": "oslo"}])
        await until(lambda: broker.records("counted"))
        if has_effects:
            broker.publish("tickets", [{"order": 1}])
            await until(lambda: jobs(app)["parked"] == 1)
    before = {each: each.read_bytes() for each in (tmp_path / "state/checkpoints").rglob("*.json")}
    assert before
    app = shop(fresh=True)
    message = refuses(app)
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            await app.start()
        assert {each: each.read_bytes() for each in (tmp_path / "state/checkpoints").rglob("*.json")} == before
    app = shop()
    async with started(app):
        broker.publish("counts", [{"shop": "oslo"}])
        await until(lambda: len(broker.records("counted")) == 2)
        if not has_effects:
            broker.publish("tickets", [{"order": 1}])
            await until(lambda: jobs(app)["parked"] == 1)
        (job,) = await app.jobs.find()
        await app.jobs.signal(job.job_id, "paid", "yes")
        await until(lambda: broker.records("answers"))
    assert broker.records("counted")[-1].value == 2
    assert (calls, broker.records("answers")[0].value) == ([1], "yes")


@pytest.mark.kafka
async def test_a_job_goes_on_although_retention_has_deleted_its_record(
    kafka_url: str, topic: str, tmp_path: Path
) -> None:
    clock = ManualClock(1_790_000_000.0)
    place, calls = Place(kafka_url), list[int]()
    place.topic(name=topic)
    place.topic(name=f"{topic}-out")

    @tool(effect="unsafe")
    async def refund(order: int) -> None:
        calls.append(order)

    def build() -> App:
        app = App(f"shop-{topic}", kafka_url, state=str(tmp_path), checkpoint_interval=3600, clock=clock)

        @app.agent(topic, name="handle", key="order", sink=f"{topic}-out", durable=True, delivery="at_least_once")
        async def handle(ctx: Any) -> Any:
            await ctx.call(refund, ctx.message["order"])
            await ctx.sleep("1h")
            return ctx.message

        return app

    app = build()
    await app.start()
    place.fill(topic, [b'{"order": 1}', b'{"order": 2}'])
    await until(lambda: jobs(app)["parked"] == 2)
    journal = app.agent_runtime.runner.journal
    assert journal is not None
    await journal.flush()
    app.agent_runtime.checkpoint_coordinator.refuse("the process died")
    with pytest.raises(CheckpointFailed):
        await app.stop()
    delete_before(link_of(kafka_url, "test"), {}, topic, {0: 2})
    place.fill(topic, [b'{"order": 3}'])
    app = build()
    async with started(app):
        await until(lambda: jobs(app)["parked"] == 3)
        clock.advance(3600)
        await until(lambda: jobs(app)["ended"] == 3)
    assert calls == [1, 2, 3]
    assert sorted(record.value["order"] for record in place.read(f"{topic}-out")) == [1, 2, 3]
