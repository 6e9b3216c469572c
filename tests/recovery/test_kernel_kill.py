"""A kernel killed with SIGKILL between two answers of its model, and the one that goes on."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sabot.agents import ActionStatus, ExecutionRequest, JobClient, RuntimeKernel
from sabot.errors import LetterRefused, TransientError
from sabot.jobs.history import IN_DOUBT
from sabot.llm import Effect, RequestSpec, ToolCall, assistant, tool
from sabot.llm.agent import Agent
from sabot.llm.engine import ExecutionEngine
from sabot.llm.providers.scripted import ScriptedProvider

pytestmark = pytest.mark.usefixtures("warm_children")

T = TypeVar("T")

JOBS = 8
ROOT = Path(__file__).parents[2]


class World:
    """What the jobs have done outside, one word for each time."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "world"

    def note(self, word: str) -> None:
        with open(self.file, "ab") as file:
            file.write(f"{word}\n".encode())

    def words(self, kind: str) -> list[str]:
        return sorted(word for word in self.file.read_text().split() if word.startswith(kind))

    def wait_for(self, words: int) -> bool:
        """Returns True as soon as the world has so many words; False after a minute."""
        deadline = time.monotonic() + 60
        while len(self.file.read_text().split()) < words:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True


def kernel_in(folder: Path, *, deadly: bool = False) -> RuntimeKernel:
    """Its agent pays an order, and then says so. deadly: once the model was asked again of all of them, which is when the journal has that
    they are paid, it is the end of the process.
    """
    world, asked_again = World(folder), set[str]()

    @tool
    async def pay(order: str) -> str:
        """Pays an order."""
        world.note(f"paid-{order}")
        return "paid"

    async def answer(spec: RequestSpec) -> Any:
        order, told = spec.messages[0].text, spec.messages[-1].role == "tool"
        if told and deadly:
            asked_again.add(order)
            if len(asked_again) == JOBS:
                os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.Event().wait()
        world.note(f"asked-{order}-{int(told)}")
        return f"order {order} is paid" if told else assistant("", ToolCall("c", "pay", f'{{"order": "{order}"}}'))

    engine = ExecutionEngine(ScriptedProvider(answer))
    return RuntimeKernel.create(agent=Agent(engine, tools=[pay], name="payer"), journal=folder / "jobs")


def requests() -> list[ExecutionRequest]:
    return [ExecutionRequest(prompt=str(number), idempotency_key=str(number)) for number in range(JOBS)]


async def until_killed(folder: Path) -> None:
    async with kernel_in(folder, deadly=True) as kernel:
        handles = await asyncio.gather(*map(kernel.execute, requests()))
        await asyncio.gather(*(handle.result() for handle in handles))


@pytest.mark.slow  # it starts an interpreter; `tests/unit/agents/test_kernel.py` cuts the journal at each entry
async def test_a_kernel_that_was_killed_goes_on_with_what_is_not_done(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(tmp_path)]
    killed = await asyncio.to_thread(subprocess.run, command, env=environment, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    async with kernel_in(tmp_path) as kernel:
        handles = await kernel.resume()
        assert len(handles) == JOBS
        answers = sorted([(await handle.result()).content for handle in handles])
        assert answers == [f"order {number} is paid" for number in range(JOBS)]
        again = await asyncio.gather(*map(kernel.execute, requests()))
        assert {handle.job_id for handle in again} == {handle.job_id for handle in handles}
    world = World(tmp_path)
    assert world.words("paid") == [f"paid-{number}" for number in range(JOBS)]
    assert world.words("asked") == [f"asked-{number}-{turn}" for number in range(JOBS) for turn in (0, 1)]


def paying_in(folder: Path, shared: str = "") -> RuntimeKernel:
    """A kernel whose jobs clients begin. Each pays an order, with a key by which the world would find it a second time."""
    world = World(folder)

    @tool(effect="idempotent")
    async def pay(order: int, effect: Effect) -> str:
        world.note(f"paid-{order}-{effect.key}")
        return f"order {order} is paid"

    async def payer(ctx: Any) -> Any:
        return await ctx.call(pay, ctx.message)

    return RuntimeKernel.create(agent=payer, journal=shared or folder / "jobs", shared=bool(shared), max_jobs=4)


async def serve(folder: Path, shared: str = "") -> None:
    async with paying_in(folder, shared) as kernel:
        await kernel.resume()
        await asyncio.Event().wait()


@pytest.mark.slow  # it starts six interpreters
async def test_jobs_that_clients_begin_are_done_once_while_the_kernel_is_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command, kills, jobs = [sys.executable, __file__, str(tmp_path), "serve"], 5, 60
    async with paying_in(tmp_path):
        pass
    client, world, handles = JobClient(tmp_path / "jobs"), World(tmp_path), list[Any]()
    world.file.touch()
    for kill in range(kills + 1):
        serving = await asyncio.to_thread(subprocess.Popen, command, env=environment)
        try:
            for number in range(kill * 10, kill * 10 + 10):
                handles.append(await client.start("payer", number, idempotency_key=str(number)))
                await client.start("payer", number, idempotency_key=str(number))  # as one who has seen no answer
            if kill < kills:
                paid = await asyncio.to_thread(world.wait_for, kill * 10 + 1 + kill)
                assert paid
            else:
                found = [(await handle.result()).output for handle in handles]
                assert found == [f"order {number} is paid" for number in range(jobs)]
        finally:
            serving.kill()
            serving.wait()
    known = await client.jobs.find()
    assert (len(known), {job.status for job in known}) == (jobs, {"succeeded"})
    keys = {word.rpartition("-")[2] for word in world.words("paid")}
    assert len(keys) == jobs


async def begin(folder: Path, how: str, *, deadly: bool = True) -> str:
    """What a job says whose tool begins another job by a key that is a new one at each attempt. deadly: the process ends
    behind that.
    """
    world = World(folder)

    @tool
    async def pay() -> str:
        world.note("paid")
        return "paid"

    async def payer(ctx: Any) -> Any:
        return await ctx.call(pay)

    @tool(effect="idempotent", retries=3)
    async def order() -> str:
        world.note("attempt")
        key = uuid.uuid4().hex
        if how == "client":
            await JobClient(folder / "jobs").start("payer", "go", idempotency_key=key)
        else:
            async with RuntimeKernel.create(agent=payer, journal=folder / "jobs") as kernel:
                await (await kernel.execute(ExecutionRequest(prompt="go", idempotency_key=key))).result()
        if deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return "begun"

    async def orders(ctx: Any) -> Any:
        return await ctx.call(order)

    async with RuntimeKernel.create(agent=payer, journal=folder / "jobs"):
        pass  # a client needs a journal
    async with RuntimeKernel.create(agent=orders, journal=folder / "orders") as kernel:
        (handle,) = await kernel.resume() or [await kernel.execute(ExecutionRequest(prompt="go"))]
        try:
            return str((await handle.result()).output)
        except Exception as error:
            return str(error)


@pytest.mark.slow  # it starts an interpreter; `test_repeated_starts` clears the memory of one
@pytest.mark.parametrize("how", ["kernel", "client"])
async def test_a_tool_begins_no_other_job_after_it_was_killed(tmp_path: Path, how: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(tmp_path), how]
    killed = await asyncio.to_thread(subprocess.run, command, env=environment, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    words = await begin(tmp_path, how, deadly=False)
    assert "no job was begun: an earlier attempt of effect 1 of job" in words
    known = await JobClient(tmp_path / "jobs").jobs.find()
    assert [job.status for job in known] == ["succeeded" if how == "kernel" else "queued"]
    world = World(tmp_path)
    assert world.words("paid") == ["paid"] * (how == "kernel")
    assert len(world.words("attempt")) > 1


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process, and those that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Workers:
    """Processes that are workers of the kernel `paying_in`. They end with the `with` block."""

    def __init__(self, folder: Path, url: str, command: list[str] | None = None) -> None:
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._command = command or [sys.executable, __file__, str(folder), "serve", url]
        self._folder = folder
        self._started = contextlib.ExitStack()
        self.url = url

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        self._started.close()

    async def start(self) -> "subprocess.Popen[bytes]":
        how = {"env": self._environment, "cwd": self._folder, "start_new_session": True}
        process = await asyncio.to_thread(subprocess.Popen, self._command, **how)
        self._started.callback(_end, process)
        return process

    async def until(self, what: str) -> None:
        """Waits until this is so of the table of workers: SQL. The number of the worker of the test is 1."""
        import psycopg  # not in the processes that are started

        found, deadline = False, time.monotonic() + 60
        with psycopg.connect(self.url, autocommit=True) as connection:
            while not found and time.monotonic() < deadline:
                ((found,),) = connection.execute(f"SELECT {what} FROM sabot_kernel.workers").fetchall()  # type: ignore[call-overload]
                await asyncio.sleep(0.01)
        assert found


@pytest.mark.slow  # it starts a server of PostgreSQL and five interpreters
async def test_jobs_of_several_workers_are_done_once_while_these_are_killed(tmp_path: Path) -> None:
    from tools.postgres import server_or_skip  # not in the processes that are started

    world, kills, a_kill = World(tmp_path), 3, 20
    world.file.touch()
    with server_or_skip().database() as url, Workers(tmp_path, url) as workers:
        async with paying_in(tmp_path, url):
            pass
        running = [await workers.start() for _ in range(2)]
        client, handles = JobClient(url), list[Any]()
        for kill in range(kills):
            for number in range(kill * a_kill, (kill + 1) * a_kill):
                handles.append(await client.start("payer", number, idempotency_key=str(number)))
            paid = await asyncio.to_thread(world.wait_for, kill * a_kill + 1)
            assert paid
            running.pop(0).kill()
            running.append(await workers.start())
        found = [(await handle.result()).output for handle in handles]
        assert found == [f"order {number} is paid" for number in range(kills * a_kill)]
        known = await client.jobs.find()
    assert (len(known), {job.status for job in known}) == (len(handles), {"succeeded"})
    assert len({word.rpartition("-")[2] for word in world.words("paid")}) == len(handles)


@pytest.mark.slow  # it starts a server of PostgreSQL and two interpreters, and waits for a lease of 10 s
async def test_a_worker_that_was_stopped_beyond_its_lease_begins_anew(tmp_path: Path) -> None:
    """Its jobs were done by the other one meanwhile. When that one is killed, it does the next ones."""
    from tools.postgres import server_or_skip  # not in the processes that are started

    world, jobs = World(tmp_path), 60
    world.file.touch()
    with server_or_skip().database() as url, Workers(tmp_path, url) as workers:
        async with paying_in(tmp_path, url):
            pass
        client, handles = JobClient(url), list[Any]()
        stopped = await workers.start()
        await workers.until("max(number) = 2")
        for number in range(jobs):
            handles.append(await client.start("payer", number, idempotency_key=str(number)))
            if number == 20:
                paid = await asyncio.to_thread(world.wait_for, 1)
                assert paid
                stopped.send_signal(signal.SIGSTOP)
                other = await workers.start()
        found = [(await handle.result()).output for handle in handles]
        assert found == [f"order {number} is paid" for number in range(jobs)]
        await workers.until("count(*) FILTER (WHERE number = 2 AND NOT gone) = 0")
        stopped.send_signal(signal.SIGCONT)
        await workers.until("max(number) = 4")
        other.kill()
        last = [await client.start("payer", number, idempotency_key=str(number)) for number in range(jobs, jobs + 5)]
        assert [(await handle.result()).output for handle in last] == [f"order {jobs + n} is paid" for n in range(5)]
        assert stopped.poll() is None
        known = await client.jobs.find()
    assert (len(known), {job.status for job in known}) == (jobs + 5, {"succeeded"})
    assert len({word.rpartition("-")[2] for word in world.words("paid")}) == jobs + 5


DESK = """
import os
from sabot.agents import RuntimeKernel
from sabot.llm import Effect, tool

WORLD = {world!r}

@tool(effect="unsafe")
async def pay(order: int) -> str:
    with open(WORLD, "ab") as file:
        file.write(f"paid-{{order}}\\n".encode())
    return f"order {{order}} is paid"

async def payer(ctx):
    await ctx.ask("confirm", {{"order": ctx.message}})
    return await ctx.call(pay, ctx.message)

async def killer(ctx):
    await ctx.call(look)  # so that its beginning is durable

@tool(effect="read")
async def look() -> str:
    if not os.path.exists(WORLD + ".mended"):
        os._exit(9)
    return "mended"

kernel = RuntimeKernel.create(agent=[payer, killer], journal={url!r}, shared=True)
"""


HOLDERS = (
    "SELECT count(DISTINCT worker) FROM sabot_kernel.jobs JOIN sabot_kernel.workers ON worker = number "
    "WHERE ended IS NULL AND NOT gone"
)


@pytest.mark.slow  # it starts a server of PostgreSQL and five interpreters
async def test_jobs_are_spread_over_the_workers_that_are_left(tmp_path: Path) -> None:
    """`sabot jobs work` four times: one is killed, one is stopped by SIGTERM, and one joins. Each job waits for a person."""
    import psycopg  # not in the processes that are started

    from tools.command_line import SABOT
    from tools.postgres import server_or_skip

    jobs, world = 40, World(tmp_path)
    world.file.touch()
    with server_or_skip().database() as url, Workers(tmp_path, url, [*SABOT, "jobs", "work", "desk:kernel"]) as workers:
        (tmp_path / "desk.py").write_text(DESK.format(world=str(world.file), url=url))
        async with paying_in(tmp_path, url):
            pass
        killed, stopped = await workers.start(), await workers.start()
        await workers.until("max(number) = 3")
        client, handles = JobClient(url), list[Any]()

        async def spread(count: int) -> None:
            """Starts jobs, `jobs` at least in all, until so many workers that live have some: one that has only joined may not look yet."""
            await workers.until(f"count(*) FILTER (WHERE NOT gone) = {count}")
            with psycopg.connect(url, autocommit=True) as connection:
                while len(handles) < jobs or connection.execute(HOLDERS).fetchall() != [(count,)]:
                    number = len(handles)
                    handles.append(await client.start("payer", number, idempotency_key=str(number)))
                    await asyncio.sleep(0.02 if number >= jobs else 0)

        async def held() -> list[int]:
            """The jobs of each worker, when all jobs ask and belong to one that lives."""
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("SET search_path = sabot_kernel")
                while True:
                    asked = connection.execute("SELECT count(*) FROM questions WHERE closed = ''").fetchall()
                    found = connection.execute(
                        "SELECT count(*) FROM jobs JOIN workers ON worker = number WHERE ended IS NULL AND NOT gone GROUP BY worker"
                    ).fetchall()
                    counts = sorted(count for (count,) in found)
                    if asked == [(len(handles),)] and sum(counts) == len(handles):
                        return counts
                    await asyncio.sleep(0.01)

        await spread(2)
        assert len(await held()) == 2
        joined = await workers.start()
        await spread(3)
        killed.kill()
        killed.wait()
        await workers.until("count(*) FILTER (WHERE NOT gone) = 2")  # before, its jobs belong to one that seems to live
        first, second = await held()
        assert (first + second, killed.returncode) == (len(handles), -signal.SIGKILL)
        last = await workers.start()
        await spread(3)
        stopped.terminate()
        assert await asyncio.to_thread(stopped.wait) == 0
        parts = await held()
        assert (sum(parts), len(parts)) == (len(handles), 2)
        for handle in handles:
            (question,) = await handle.get_pending_actions()
            await handle.resolve_action(question.resume_token, {"order": "yes"})
        assert [(await handle.result()).output for handle in handles] == [
            f"order {n} is paid" for n in range(len(handles))
        ]
        for process in (joined, last):
            process.terminate()
            assert await asyncio.to_thread(process.wait) == 0
    assert world.words("paid") == sorted(f"paid-{number}" for number in range(len(handles)))


@pytest.mark.slow  # it starts a server of PostgreSQL and some twelve interpreters
async def test_a_job_that_kills_its_workers_is_set_aside_and_the_others_go_on(tmp_path: Path) -> None:
    """Its process ends when it calls its tool. Who supervises two workers starts each again; the others wait for a person."""
    from tools.command_line import SABOT
    from tools.postgres import server_or_skip

    jobs, world, deaths = 20, World(tmp_path), 0
    world.file.touch()
    with server_or_skip().database() as url, Workers(tmp_path, url, [*SABOT, "jobs", "work", "desk:kernel"]) as workers:
        (tmp_path / "desk.py").write_text(DESK.format(world=str(world.file), url=url))
        async with paying_in(tmp_path, url):
            pass
        client = JobClient(url)
        handles = [await client.start("payer", number, idempotency_key=str(number)) for number in range(jobs)]
        kills = await client.start("killer", None)
        running = [await workers.start() for _ in range(2)]
        while not (record := await client.jobs.get(kills.job_id)).blocked:
            for process in [each for each in running if each.poll() is not None]:
                running.remove(process)
                running.append(await workers.start())
                deaths += 1
            await asyncio.sleep(0.05)
        assert "set aside: 10 workers in a row have ended while they ran it" in record.blocked
        assert 9 <= deaths <= 10
        for handle in handles:
            questions: list[Any] = []
            while not questions:
                questions = await handle.get_pending_actions()
            await handle.resolve_action(questions[0].resume_token, {"order": "yes"})
        assert [(await handle.result()).output for handle in handles] == [f"order {n} is paid" for n in range(jobs)]
        Path(f"{world.file}.mended").touch()
        await client.jobs.retry(kills.job_id)
        assert (await kills.result()).output is None
    assert world.words("paid") == sorted(f"paid-{number}" for number in range(jobs))


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """What the server answers as soon as it is there."""
    while True:
        with contextlib.suppress(TransientError):
            return await ask()
        await asyncio.sleep(0.02)


TALKS = """
from sabot.agents import JobLimit, RuntimeKernel
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider

def answer(spec):
    said = [each.text for each in spec.messages if each.role == "user"]
    with open({world!r}, "ab") as file:
        file.write(f"{{said[-1]}}\\n".encode())
    return f"{{len(said)}}: {{said[-1]}}"

desk = Agent(ExecutionEngine(ScriptedProvider(answer), retries=0), name="desk")
limits = [JobLimit("desk", per="key", concurrency=1)]
kernel = RuntimeKernel.create(agent=desk, journal={url!r}, shared=True, limits=limits)
"""


@pytest.mark.slow  # it starts a server of PostgreSQL four times, and some nine interpreters
async def test_conversations_keep_their_turns_in_order_while_workers_and_the_database_are_killed(
    tmp_path: Path,
) -> None:
    """Three sessions of eight turns; each job answers with the number of turns that it knows, its own among them."""
    from tools.command_line import SABOT
    from tools.postgres import Postgres

    kills, sessions, turns, draws, world = 6, "abc", 8, random.Random(52), World(tmp_path)
    world.file.touch()
    server = Postgres("fsync=on")
    try:
        with Workers(tmp_path, server.url, [*SABOT, "jobs", "work", "talks:kernel"]) as workers:
            (tmp_path / "talks.py").write_text(TALKS.format(url=server.url, world=str(world.file)))
            async with paying_in(tmp_path, server.url):
                pass
            client, handles = JobClient(server.url), dict[tuple[str, int], Any]()
            for turn in range(turns):
                for each in sessions:
                    of: dict[str, Any] = {"session": each, "key": each, "idempotency_key": f"{each}-{turn}"}
                    handles[each, turn] = await client.start("desk", f"q{turn}", **of)
            running = [await workers.start() for _ in range(2)]
            for kill in range(kills):
                # one more job is running, or has just ended
                assert await asyncio.to_thread(world.wait_for, 1 + kill * turns * len(sessions) // kills)
                if kill % 2:
                    server.stop(kill=True)
                    server.start()
                else:
                    running.pop(draws.randrange(len(running))).kill()
                running = [each for each in running if each.poll() is None]
                running += [await workers.start() for _ in range(2 - len(running))]
            for (_, turn), handle in handles.items():
                assert (await patiently(handle.result)).content == f"{turn + 1}: q{turn}"
            for each in sessions:
                found = await patiently(partial(client.jobs.conversation, "desk", each))
                assert [message.text for message in found.messages] == [
                    text for turn in range(turns) for text in (f"q{turn}", f"{turn + 1}: q{turn}")
                ]
    finally:
        server.remove()


async def answer_all(client: JobClient, world: World) -> None:
    """Answers each open question: of an order with yes, and whether a call was made by what the world has."""
    for each in await patiently(lambda: client.actions.find(statuses=[ActionStatus.PENDING])):
        answer: dict[str, Any] = {"order": "yes"}
        if each.type == IN_DOUBT:
            (order,) = each.payload["arguments"].values()
            made = f"paid-{order}" in world.words("paid")
            answer = {"outcome": "done", "result": f"order {order} is paid"} if made else {"outcome": "not_done"}
        with contextlib.suppress(LetterRefused):  # an answer whose acknowledgement was lost with the server
            await patiently(partial(client.actions.resolve, each.resume_token, answer))


async def dance(folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Kills one of three workers, or their database, at random moments, and starts it again, while jobs begin, ask a person and
    make an unsafe call each. Returns how many workers and how many servers were killed. Each call must be made once.
    """
    from tools.command_line import SABOT
    from tools.postgres import Postgres

    world, draws, killed = World(folder), random.Random(seed), [0, 0]
    world.file.touch()
    server = Postgres()
    try:
        command = [*SABOT, "jobs", "work", "desk:kernel"]
        with Workers(folder, server.url, command) as workers:
            (folder / "desk.py").write_text(DESK.format(world=str(world.file), url=server.url))
            async with paying_in(folder, server.url):
                pass
            client, handles = JobClient(server.url), list[Any]()
            running = [await workers.start() for _ in range(3)]
            for kill in range(kills):
                for number in range(2 * kill, 2 * kill + 2):
                    start = partial(client.start, "payer", number, idempotency_key=str(number))
                    handles.append(await patiently(start))
                await answer_all(client, world)
                await asyncio.sleep(draws.random() * 0.5)
                if draws.random() < 0.2:
                    killed[1] += 1
                    await asyncio.to_thread(server.stop, kill=True)
                    await asyncio.to_thread(server.start)
                else:
                    killed[0] += 1
                    running[draws.randrange(3)].kill()
                for at, process in enumerate(running):
                    if process.poll() is not None:  # also one that has started while its server was gone
                        running[at] = await workers.start()
            ends = [asyncio.create_task(handle.result()) for handle in handles]
            while not all(end.done() for end in ends):
                await answer_all(client, world)
                await asyncio.sleep(0.05)
            assert [(await end).output for end in ends] == [f"order {number} is paid" for number in range(2 * kills)]
    finally:
        server.remove()
    assert world.words("paid") == sorted(f"paid-{number}" for number in range(2 * kills))
    return killed[0], killed[1]


@pytest.mark.slow  # it starts a server of PostgreSQL and some twelve interpreters
async def test_each_unsafe_call_is_made_once_while_workers_and_their_database_are_killed(tmp_path: Path) -> None:
    from tools.postgres import server_or_skip

    server_or_skip()
    assert sum(await dance(tmp_path, 10, 52)) == 10


if __name__ == "__main__":
    place, how = Path(sys.argv[1]), "".join(sys.argv[2:3])
    if how in ("kernel", "client"):
        asyncio.run(begin(place, how))
    else:
        asyncio.run(serve(place, *sys.argv[3:]) if how else until_killed(place))
