"""Jobs of one journal with several processes: clients begin them, workers run them, another process answers their questions.

    python benchmarks/agents/job_workers.py --rows 4000 --stores sqlite,postgres --repeat 3

Each process is a program of its own on this machine. A journal in PostgreSQL has --workers workers, one in SQLite has one; --clients
processes begin the jobs, 100 with each call of `start_all`. PostgreSQL runs with fsync, and is started and stopped here.

    jobs_per_s          from the first start until the journal has the end of all --rows jobs. Each job has one effect, of class read
    worker_ms, client_ms, server_ms   of the processor for each of these jobs: all workers, all clients, the server of PostgreSQL
    rows_written        inserted, changed and deleted in the journal's tables in PostgreSQL for each of these jobs, by its statistics
    dumped              jobs_per_s while `pg_dump` reads the database, as a share of that without it just before: the median of all
                        rounds. The snapshot of the dump is open for the whole run, since nobody reads on what it writes until the end
    answer_p50_ms, _p99 from the moment at which an answer to one of --answers questions is durable, which another process gives --rate a
                        second, until the function of the job goes on
    take_ms, begin_ms   of a worker's claim of 64 letters, with the least of 20, and until they are jobs, durably; among --waiting jobs
                        that wait, as many that have ended, and 0.7 of that number of letters: "free" without a limit, "lanes" in
                        2,000 lanes of a limit by key; worker_ms, server_ms: of the processor, for each of these jobs
    alone               with --alone, and nothing else: of the processor, for each job, where one process begins --rows jobs by lists of
                        100 (list_ms), 20 by themselves (one_ms), and then runs all of them (run_ms); each for the process and the server
    fsync_ms            4 KiB appended to a file in the same folder and fsynced, before each round

Checked: each job has succeeded and its effect was called once; each answered job went on once, and all others wait; a take begins 64 jobs,
of 64 lanes where there is a limit. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from journal import fsync_ms

from sabot.agents import ExecutionRequest, JobClient, JobLimit, RuntimeKernel
from sabot.journal import open_reader
from sabot.journal.base import EVERY
from sabot.journal.begin_facts import stored_key
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.entries import Begin, Letter, encode_entry, encode_letter
from sabot.journal.postgres_workers import PostgresWorker

NAME = "bench"
PATIENCE_S = 600.0
AT_ONCE = 100
LANES = 2_000
TAKEN = 64
CALLS = Counter[int]()


async def call(number: int) -> int:
    CALLS[number] += 1
    return number


async def work(ctx: Any) -> Any:
    return await ctx.step(call, ctx.message, effect="read")


async def asks(ctx: Any) -> float:
    answer = await ctx.ask("confirm", {"order": ctx.message})
    assert answer.approved
    return time.time()


# -- programs that are started ----------------------------------------------------------------------------------------


def used_ms() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return (used.ru_utime + used.ru_stime) * 1000


async def be_worker(place: str) -> None:
    kernel = RuntimeKernel.create(agent=[work, asks], journal=place, name=NAME, shared="://" in place)
    async with kernel:
        await kernel.resume()
        before = used_ms()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        said = {"cpu_ms": used_ms() - before, "calls": CALLS.total(), "twice": sum(each > 1 for each in CALLS.values())}
    print(json.dumps(said), flush=True)


async def be_client(place: str, agent: str, first: int, count: int) -> None:
    client = JobClient(place, name=NAME)
    before = used_ms()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for at in range(first, first + count, AT_ONCE):
        numbers = range(at, min(at + AT_ONCE, first + count))
        await client.start_all([ExecutionRequest(prompt=number, agent=agent) for number in numbers])
    print(json.dumps({"cpu_ms": used_ms() - before}), flush=True)


async def be_person(place: str, rate: float) -> None:
    client = JobClient(place, name=NAME)
    asked = await client.actions.find()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    given, began = dict[str, float](), time.perf_counter()
    for number, each in enumerate(asked):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        await client.actions.resolve(each.resume_token, {"approved": True})
        given[each.job_id] = time.time()
    print(json.dumps(given), flush=True)


class Program:
    """One of these, once it is ready. `go`: it begins, or a worker ends. `said`: what it has printed at its end."""

    def __init__(self, *words: object) -> None:
        command = [sys.executable, __file__, "--be", *map(str, words)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ready(self) -> "Program":
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "a program did not start"
        return self

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def said(self) -> dict[str, Any]:
        out, _ = self._process.communicate(timeout=PATIENCE_S)
        assert self._process.returncode == 0, f"a program ended with {self._process.returncode}"
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


# -- measurements -----------------------------------------------------------------------------------------------------


class Home:
    """A journal, and the server that has it. `place`: its address."""

    def __init__(self, place: str, server: Any, folder: Path) -> None:
        self.place, self.server, self.folder = place, server, folder
        self.is_shared = server is not None

    def server_ms(self) -> float:
        """Of the processor, for the server and all its processes that there are and were."""
        if self.server is None:
            return 0.0
        root = int((self.server.folder / "data" / "postmaster.pid").read_text().split()[0])
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                continue
            if int(stat.parent.name) == root:
                ticks += sum(map(int, fields[11:15]))
            elif int(fields[1]) == root:
                ticks += sum(map(int, fields[11:13]))
        return ticks * 1000 / os.sysconf("SC_CLK_TCK")

    def rows_written(self) -> int:
        """So far, by sessions that have ended; those of others are told a second late."""
        if self.server is None:
            return 0
        with psycopg.connect(self.place.partition("?")[0], autocommit=True) as connection:
            told = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables WHERE schemaname = %s"
            ((count,),) = connection.execute(told, (f"sabot_{NAME}",)).fetchall()
        return int(count or 0)

    def counts(self, agent: str) -> dict[str, int]:
        reader = open_reader(self.place)
        try:
            return dict(reader.logged_counts(JobQuery(f"{NAME}.{agent}")))
        finally:
            reader.close()

    def wait(self, agent: str, status: str, count: int) -> None:
        """Returns when so many jobs of an agent have a status. Raises if another job has failed."""
        reader, limit = open_reader(self.place), time.monotonic() + PATIENCE_S
        try:
            while (found := reader.logged_counts(JobQuery(f"{NAME}.{agent}"))).get(status, 0) < count:
                assert not {"failed", "blocked"} & found.keys(), found
                assert time.monotonic() < limit, f"waited {PATIENCE_S:g} s in vain: {found}"
                time.sleep(0.02)
        finally:
            reader.close()


@contextmanager
def home_of(store: str) -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="sabot-workers-") as name, ExitStack() as opened:
        if store == "sqlite":
            yield Home(f"{name}/jobs", None, Path(name))
            return
        from tools.postgres import Postgres

        server = Postgres("fsync=on", "max_connections=100")
        opened.callback(server.remove)
        with server.database() as url:
            yield Home(f"{url}?app={NAME}", server, Path(name))


def begin(home: Home, agent: str, first: int, count: int, clients: int) -> tuple[float, float]:
    """Lets clients begin jobs. Returns the time of the first start, and the ms of the processor that the clients have used."""
    shares = [(first + count * at // clients, first + count * (at + 1) // clients) for at in range(clients)]
    programs = [Program("client", home.place, agent, low, high - low) for low, high in shares if high > low]
    for each in programs:
        each.ready()
    began = time.perf_counter()
    for each in programs:
        each.go()
    return began, sum(each.said()["cpu_ms"] for each in programs)


@contextmanager
def dump_of(home: Home) -> Iterator[None]:
    """A dump of the database that has its snapshot for as long as the block runs, and is whole behind it."""
    address = home.place.partition("?")[0]
    dump = subprocess.Popen([_program("pg_dump"), "--dbname", address], stdout=subprocess.PIPE)
    assert dump.stdout is not None
    begun = dump.stdout.read(1000)
    yield
    text = begun + dump.stdout.read()
    assert dump.wait(PATIENCE_S) == 0
    assert b"PostgreSQL database dump complete" in text


def _program(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else name


def measure_rate(home: Home, options: argparse.Namespace) -> dict[str, Any]:
    count, done, rounds, ratios = options.rows, 0, list[dict[str, float]](), list[float]()
    workers = [Program("worker", home.place) for _ in range(options.workers if home.is_shared else 1)]
    try:
        for each in workers:
            each.ready()
        for _ in range(options.repeat):
            rates = list[float]()
            for dumped in (False, True) if home.is_shared else (False,):
                fsync, server_ms = fsync_ms(home.folder), home.server_ms()
                with ExitStack() as opened:
                    if dumped:
                        opened.enter_context(dump_of(home))
                    began, clients_ms = begin(home, "work", done, count, options.clients)
                    done += count
                    home.wait("work", "succeeded", done)
                    rates.append(count / (time.perf_counter() - began))
                if not dumped:
                    used = {"client_ms": clients_ms / count, "server_ms": (home.server_ms() - server_ms) / count}
                    rounds.append({"jobs_per_s": rates[0], **used, "fsync_ms": fsync})
            ratios.append(rates[-1] / rates[0])
        for each in workers:
            each.go()
        ends = [each.said() for each in workers]
    except BaseException:
        for each in workers:
            each.kill()
        raise
    assert (sum(end["calls"] for end in ends), sum(end["twice"] for end in ends)) == (done, 0)
    assert home.counts("work") == {"succeeded": done}
    found = {name: median(each[name] for each in rounds) for name in rounds[0]}
    found["worker_ms"] = sum(end["cpu_ms"] for end in ends) / done
    if home.is_shared:
        found |= {"dumped": median(ratios), "rows_written": home.rows_written() / done}
    return found


def measure_answers(home: Home, options: argparse.Namespace) -> dict[str, float]:
    count = options.answers
    worker = Program("worker", home.place).ready()
    try:
        begin(home, "asks", 0, count, 1)
        home.wait("asks", "waiting_action", count)
        person = Program("person", home.place, options.rate).ready()
        person.go()
        given = person.said()
        home.wait("asks", "succeeded", count)
        went_on = asyncio.run(_results(home.place, list(given)))
        worker.go()
        worker.said()
    except BaseException:
        worker.kill()
        raise
    assert len(given) == count
    assert home.counts("asks") == {"succeeded": count}
    taken = sorted((went_on[job] - at) * 1000 for job, at in given.items())
    return {"answer_p50_ms": median(taken), "answer_p99_ms": taken[int(len(taken) * 0.99)]}


async def measure_alone(home: Home, rows: int) -> dict[str, float]:
    """One process, so that its processor time is that of the code and not of waits for others."""
    found = dict[str, float]()

    @contextmanager
    def used_for(name: str, jobs: int) -> Iterator[None]:
        process_ms, server_ms = used_ms(), home.server_ms()
        yield
        found[f"{name}_ms"] = (used_ms() - process_ms) / jobs
        found[f"{name}_server_ms"] = (home.server_ms() - server_ms) / jobs

    def kernel() -> RuntimeKernel:
        return RuntimeKernel.create(agent=[work], journal=home.place, name=NAME, shared=home.is_shared)

    async with kernel():
        pass
    client = JobClient(home.place, name=NAME)
    with used_for("list", rows):
        for first in range(0, rows, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, rows))
            await client.start_all([ExecutionRequest(prompt=number, agent="work") for number in numbers])
    with used_for("one", 20):
        for number in range(20):
            await client.start("work", rows + number)
    async with kernel() as running:
        with used_for("run", rows + 20):
            while running.statistics()["ended"] < rows + 20:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert home.counts("work") == {"succeeded": rows + 20}
    return found


async def _results(place: str, jobs: list[str]) -> dict[str, float]:
    client = JobClient(place, name=NAME)
    return {job: (await (await client.handle(job)).result()).output for job in jobs}


def measure_take(home: Home, options: argparse.Namespace, lanes: int) -> dict[str, float]:
    """The tables are filled by statements: a worker that lives holds all jobs that wait."""
    app = f"take{lanes}"
    address, agent = home.place.partition("?")[0], f"{app}.work"
    journals = [PostgresWorker(address, app, lease_s=3_600.0) for _ in range(2)]
    holder, worker = journals
    worker.begins.agents = frozenset({agent})
    if lanes:
        worker.begins.limit({agent: JobLimit(agent, per="key", concurrency=1)})
    letters = int(options.waiting * 0.7)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f'SET search_path = "sabot_{app}"')
        fields = "job, began, digest, agent, created_ms, worker"
        for kind, more, values in (
            ("waits", "asks", "1"),
            ("ended", "ended, outcome, ended_ms", "n, 'succeeded', n"),
        ):
            connection.execute(
                f"INSERT INTO jobs ({fields}, {more}) SELECT '{kind}-' || n, n, '', '{agent}', n, {holder.lease.number}, {values} "
                f"FROM generate_series(1, {options.waiting}) n"
            )
        names = "once, job, letter, agent, key"
        with connection.cursor() as cursor, cursor.copy(f"COPY inbox ({names}) FROM STDIN") as copy:
            for number in range(letters):
                job, key = f"{agent}/{number}", f"key-{number % lanes}" if lanes else ""
                body = encode_entry(Begin(job, 1, agent, key=stored_key(key)))
                data = encode_letter(Letter("begin", job=job, name=agent, body=body))
                copy.write_row((f"begin:{job}", job, data, agent, key))
        connection.execute("ANALYZE")
    taken, begins, begun = list[float](), list[float](), set[str]()
    room = TAKEN
    worker.begins.room = lambda: room
    used, server_ms = used_ms(), home.server_ms()
    for _ in range(min(20, letters // TAKEN, (lanes or EVERY) // TAKEN)):
        room, began = TAKEN, time.perf_counter()
        worker.claim_letters()
        room, claimed = 0, time.perf_counter()
        found = worker.take()
        assert all(worker.wait_durable(position, 60) for position, _ in found)
        taken.append((claimed - began) * 1000)
        begins.append((time.perf_counter() - claimed) * 1000)
        worker.begins.begun_all()
        assert len(found) == TAKEN
        begun |= {entry.job for _, entry in found}
    assert len(begun) == TAKEN * len(taken), "a job was taken twice"
    if lanes:
        assert len({int(job.rpartition("/")[2]) % lanes for job in begun}) == len(begun), "two jobs of one lane"
    used, server_ms = (used_ms() - used) / len(begun), (home.server_ms() - server_ms) / len(begun)
    for each in journals:
        each.close()
    figures = {
        "take_ms": median(taken),
        "take_least_ms": min(taken),
        "begin_ms": median(begins),
        "worker_ms": used,
        "server_ms": server_ms,
    }
    return {f"{'lanes' if lanes else 'free'} {name}": figure for name, figure in figures.items()}


def measure(store: str, options: argparse.Namespace) -> dict[str, float]:
    with home_of(store) as home:
        if options.alone:
            found = asyncio.run(measure_alone(home, options.rows))
            return {name: round(value, 3) for name, value in found.items()}
        found = measure_rate(home, options)
        found |= measure_answers(home, options)
        if home.is_shared and options.waiting:
            found |= measure_take(home, options, 0) | measure_take(home, options, LANES)
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000, help="jobs of a round")
    parser.add_argument("--stores", default="sqlite", help="sqlite,postgres")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--answers", type=int, default=0, help="questions; default: a tenth of the jobs, at least 20")
    parser.add_argument("--rate", type=float, default=100.0, help="answers a second")
    parser.add_argument("--waiting", type=int, default=100_000, help="jobs that wait beside a take; 0 for no take")
    parser.add_argument("--alone", action="store_true", help="measure one process that begins jobs and runs them")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    options.answers = options.answers or max(20, options.rows // 10)
    found = {store: measure(store, options) for store in options.stores.split(",")}
    print(json.dumps({"benchmark": "job_workers", "load": os.getloadavg()[0], **found}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--be"]:
        kind, place, *words = sys.argv[2:]
        if kind == "worker":
            asyncio.run(be_worker(place))
        elif kind == "client":
            asyncio.run(be_client(place, words[0], int(words[1]), int(words[2])))
        else:
            asyncio.run(be_person(place, float(words[0])))
    else:
        main()
