"""kill -9 and pauses of a web app of four processes whose agent refunds orders, and of its model and its bank; then all is counted.

    python tests/recovery/web_dance.py [--minutes 10] [--seed 1] [--journal postgres|sqlite] [--keep]

A shop begins jobs by HTTP, and awaits their answers. Each job asks a model over HTTP, waits for an approval of two people who answer by
HTTP side by side, calls its unsafe tool, and asks the model again. Over PostgreSQL the four processes are the workers; a journal in SQLite
has one worker, which is a process of its own. Processes are killed, or stopped for up to 15 s; the model and the witness of refunds go away
and come back. In the middle the app is updated to another version, without a gap: the new one starts, then the old one gets SIGTERM.

The last line is JSON. All of these are 0 in a good run:

    twice, lost      refunds that the witness has twice, or not at all
    undelivered      jobs whose answer did not come, or was another one
    taken_twice      approvals that were taken from both people, or twice into the journal
    asked_by_update  effects in doubt that the update has left to a person
    late             waits of a job, without an open question and without an open unsafe call, longer than the lease and 2 s, and 2 s more
                     for each kill and stop meanwhile; over SQLite than a stop in place of the lease. longest_s: the longest one
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import httpx2

from sabot.jobs.history import IN_DOUBT
from sabot.journal import open_reader
from sabot.journal.entries import Answer, Begin, EffectResult, End, Intent
from sabot.llm import ToolCall, assistant
from sabot.testing import FakeModelServer, Witness
from tools.broker import free_ports
from tools.command_line import SABOT
from tools.leftovers import leftovers
from tools.postgres import Postgres

ROOT = Path(__file__).parents[2]
LEASE_S, REAP_S = 10.0, 2.0
QUIET_S = 15.0  # before the update: what was killed is taken over by then, and effects in doubt are asked
LONGEST_STOP_S = 15.0  # beyond the lease
ANSWER_S, PATIENCE_S = 30.0, 300.0
OPEN = 40
REFUNDED, PARTS = "order {} is refunded", ("web", "web", "web", "model", "witness")

DESK = """
import asyncio
import httpx2
from sabot.agents import PolicyEngine, RuntimeKernel, ToolPolicy
from sabot.llm import Agent, Effect, ExecutionEngine, OpenAIProvider, tool
from sabot.testing import WitnessClient

BANK = WitnessClient({witness!r})

@tool(effect="unsafe", timeout=5)
async def refund(order: int, effect: Effect) -> str:
    while True:
        try:
            await BANK.do_async("refund", order, key=effect.key, deadline=effect.deadline)
            return f"order {{order}} is refunded"
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)

@tool(effect="read")
async def hours() -> str:
    return "nine to five"

tools = [refund, hours] if {version!r} == "2" else [refund]
engine = ExecutionEngine(OpenAIProvider("any", base_url={model!r}, api_key="any"), retries=10)
policy = PolicyEngine()
policy.add_rule(ToolPolicy(tool_patterns=["refund"], require_approval=True))
desk = Agent(engine, tools=tools, name="desk")
kernel = RuntimeKernel.create(agent=desk, journal={journal!r}, shared={shared!r}, policy=policy, version={version!r})
"""

WEB = """
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.routing import Mount
from sabot.agents import JobClient
from sabot.web import Caller, jobs_app

@asynccontextmanager
async def lifespan(app):
    if not {shared!r}:
        yield
        return
    from {desk} import kernel
    async with kernel:
        await kernel.resume()
        yield

site = jobs_app(JobClient({journal!r}), who=lambda request: Caller("ann"))
app = Starlette(lifespan=lifespan, routes=[Mount("/api", site)])
"""


def answer(spec: Any) -> Any:
    """The model: it asks for the refund of the order in the first message, and then says what it was told."""
    last = spec.messages[-1]
    order = int(spec.messages[0].text)
    return last.text if last.role == "tool" else assistant("", ToolCall("c", "refund", json.dumps({"order": order})))


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class App:
    """One version of the web app: uvicorn with four processes, and over SQLite the worker beside them."""

    def __init__(self, folder: Path, journal: str, model: str, witness: str, version: str) -> None:
        self.shared = "://" in journal
        self._folder, self._words = folder, f"desk{version}:kernel"
        facts = {"journal": journal, "model": model, "witness": witness, "version": version, "shared": self.shared}
        (folder / f"desk{version}.py").write_text(DESK.format(**facts))
        (folder / f"web{version}.py").write_text(WEB.format(**facts, desk=f"desk{version}"))
        (self.port,) = free_ports(1)
        web = [
            "-m",
            "uvicorn",
            f"web{version}:app",
            "--workers",
            "4",
            "--port",
            str(self.port),
            "--log-level",
            "warning",
        ]
        # uvicorn ends a process that does not answer it: these are stopped longer
        self._server = self._start([sys.executable, *web, "--timeout-worker-healthcheck", "60"])
        self._worker = None if self.shared else self._start([*SABOT, "jobs", "work", self._words])

    def _start(self, words: list[str]) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{self._folder}"}
        with open(self._folder / "log", "ab") as log:
            return subprocess.Popen(
                words, cwd=self._folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def processes(self) -> list[int]:
        """Those that may be killed or stopped."""
        found = [] if self._worker is None else [self._worker.pid]
        with contextlib.suppress(FileNotFoundError):
            children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children").read_text().split()
            for pid in map(int, children):
                with contextlib.suppress(OSError):
                    if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        found.append(pid)
        return found

    def mend(self) -> None:
        """Starts the worker again, as who supervises it; uvicorn does that for its own processes."""
        if self._worker is not None and self._worker.poll() is not None:
            self._worker = self._start([*SABOT, "jobs", "work", self._words])

    def stop(self) -> None:
        """Ends in good order."""
        ends = [each for each in (self._worker, self._server) if each is not None]
        for each in ends:
            each.terminate()
        for each in ends:
            each.wait(PATIENCE_S)

    def end_worker(self) -> None:
        """Ends the worker in good order: of a journal in SQLite the next one has to wait for it."""
        if self._worker is not None:
            self._worker.terminate()
            self._worker.wait(PATIENCE_S)
            self._worker = None

    def kill(self) -> None:
        for each in (self._server, self._worker):
            if each is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(each.pid, signal.SIGKILL)
                each.wait()


class Dance:
    def __init__(self, folder: Path, journal: str, seed: int, model: FakeModelServer, witness: Witness) -> None:
        self._draws, self._folder, self.journal = random.Random(seed), folder, journal
        self._model, self._witness = model, witness
        self.app = self._app("1")
        # a connection to a process that is stopped would be of no use to the next request
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx2.AsyncClient(timeout=ANSWER_S, limits=limits, verify=False)
        self.hits = list[float]()  # when something was killed, or stopped
        self.done = Counter[str]()
        self._over = asyncio.Event()
        self.started, self.answers, self.given = dict[str, tuple[int, float]](), dict[str, str](), Counter[str]()
        self.given_at = dict[str, float]()
        self.update_s = (0.0, 0.0)

    def _app(self, version: str) -> App:
        return App(self._folder, self.journal, self._model.openai_url, self._witness.url, version)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer of whichever process has it. One that is killed or stopped is asked again."""
        limit, whys = time.monotonic() + PATIENCE_S, Counter[str]()
        while True:
            try:
                found = await self._http.request(method, f"http://127.0.0.1:{self.app.port}/api{path}", json=body)
                if found.status_code < 500:
                    return found
                whys[found.text] += 1
            except httpx2.HTTPError as error:
                whys[repr(error)] += 1
            if time.monotonic() > limit:
                raise RuntimeError(f"{method} {path} had no answer for {PATIENCE_S:g} s: {dict(whys)}")
            await asyncio.sleep(0.05)

    async def order(self, number: int) -> None:
        asked = {"agent": "desk", "message": str(number), "idempotency_key": str(number)}
        found = await self.ask("POST", "/jobs", asked)
        assert found.status_code in (200, 202), found.text
        said = found.json()
        self.started[said["job_id"]] = number, time.time()
        while (found := await self.ask("GET", f"/jobs/{said['url_id']}/result?wait=10")).status_code == 202:
            pass
        self.answers[said["job_id"]] = str(found.json().get("content"))

    async def orders(self) -> None:
        """Begins jobs, about three a second and at most OPEN at once, until it is over; then awaits those that are open."""
        number, open_jobs = 0, set[asyncio.Task[None]]()
        while not self._over.is_set():
            if len(open_jobs) < OPEN:
                open_jobs.add(asyncio.create_task(self.order(number)))
                number += 1
            await asyncio.sleep(self._draws.uniform(0.1, 0.5))
            for each in [each for each in open_jobs if each.done()]:
                open_jobs.discard(each)
                each.result()
        for each in await asyncio.wait_for(asyncio.gather(*open_jobs, return_exceptions=True), PATIENCE_S * 2):
            if isinstance(each, BaseException):
                raise each

    async def approver(self) -> None:
        """One of two people: says yes to each refund, and looks up whether a call in doubt was made."""
        while True:
            for each in (await self.ask("GET", "/actions?status=pending")).json()["actions"]:
                given: dict[str, Any] = {"approved": True}
                if each["type"] == IN_DOUBT:
                    said = each["payload"]["arguments"]
                    (order,) = said if isinstance(said, list) else said.values()
                    made = await asyncio.to_thread(self._witness.count, "refund", order)
                    given = {"outcome": "done", "result": REFUNDED.format(order)} if made else {"outcome": "not_done"}
                found = await self.ask("POST", f"/actions/{each['token']}", {"resolution": given})
                if found.status_code == 200:
                    self.given[each["token"]] += 1
                    self.given_at.setdefault(each["token"], time.time())
                else:
                    assert found.status_code in (404, 409), found.text
            await asyncio.sleep(self._draws.uniform(0.05, 0.3))

    async def disturb(self, seconds: float) -> None:
        """Kills and stops for so many seconds."""
        limit = time.monotonic() + seconds
        while (left := limit - time.monotonic()) > 0:
            await asyncio.sleep(min(left, self._draws.uniform(1.0, 5.0)))
            what = self._draws.choice(PARTS)
            if what == "web":
                await self._hit(self._draws.choice(["kill", "kill", "stop"]))
            elif what == "model":
                self._model.stop()
                await asyncio.sleep(self._draws.uniform(0.0, 0.5))
                self._model.start()
            else:
                self._witness.stop(kill=True)
                await asyncio.sleep(self._draws.uniform(0.0, 0.5))
                self._witness.start()
            if what != "web":
                self.hits.append(time.time())
                self.done[what] += 1
            self.app.mend()

    async def _hit(self, how: str) -> None:
        if not (processes := self.app.processes()):
            return
        pid = self._draws.choice(processes)
        self.hits.append(time.time())
        self.done[how] += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
            if how == "stop":
                await asyncio.sleep(self._draws.uniform(0.2, LONGEST_STOP_S))
                os.kill(pid, signal.SIGCONT)

    async def update(self) -> None:
        """The next version takes over while nothing is killed."""
        await asyncio.sleep(QUIET_S)
        began, before = time.time(), self.app
        if not before.shared:
            await asyncio.to_thread(before.end_worker)
        after = self._app("2")
        try:
            while True:
                with contextlib.suppress(httpx2.HTTPError):
                    if (await self._http.get(f"http://127.0.0.1:{after.port}/api/jobs?limit=1")).status_code == 200:
                        break
                await asyncio.sleep(0.05)
            self.app = after
            await asyncio.to_thread(before.stop)
        except BaseException:
            after.kill()
            raise
        finally:
            before.kill()
        await asyncio.sleep(LEASE_S)  # who takes over what the old ones held asks by then
        self.update_s = began, time.time()
        say(f"updated in {self.update_s[1] - began - LEASE_S:.1f} s")

    async def run(self, seconds: float) -> None:
        people = [asyncio.create_task(self.approver()) for _ in range(2)]
        orders = asyncio.create_task(self.orders())
        await self.ask("GET", "/jobs?limit=1")
        try:
            for part in (partial(self.disturb, seconds / 2), self.update, partial(self.disturb, seconds / 2)):
                await _beside(part(), orders, *people)
            self._over.set()
            await _beside(orders, *people)
        finally:
            for each in (orders, *people):
                each.cancel()
            await asyncio.gather(orders, *people, return_exceptions=True)
            await self._http.aclose()
            self.app.kill()

    def figures(self) -> dict[str, Any]:
        made = Counter(effect.arguments for effect in self._witness.effects("refund"))
        found: dict[str, Any] = {
            "jobs": len(self.started),
            "twice": sum(count > 1 for count in made.values()),
            "lost": sum(not made[number] for number, _ in self.started.values()),
            "undelivered": sum(
                self.answers.get(job) != REFUNDED.format(number) for job, (number, _) in self.started.items()
            ),
        }
        waits, doubts = list[tuple[float, float, str]](), list[float]()
        taken = Counter[str]()
        reader = open_reader(self.journal)
        try:
            for job, (_, started_s) in self.started.items():
                entries = [entry for _, entry in reader.history.entries(job)]
                doubts += [each.at_ms / 1000 for each in entries if isinstance(each, Intent) and each.name == IN_DOUBT]
                taken.update(each.token for each in entries if isinstance(each, Answer))
                waits += self._waits(job, started_s, entries)
        finally:
            reader.close()
        held_s = (
            LEASE_S if "://" in self.journal else LONGEST_STOP_S
        )  # the one worker of SQLite keeps its jobs while it is stopped
        late = [each for each in waits if each[0] > held_s + REAP_S * (1 + self._hits_within(*each[:2]))]
        for seconds, until_s, words in sorted(late, reverse=True)[:5]:
            say(f"late: {seconds:.1f} s {words}, {self._hits_within(seconds, until_s)} kills and stops meanwhile")
        found["taken_twice"] = sum(count > 1 for count in self.given.values()) + sum(n > 1 for n in taken.values())
        found["asked_by_update"] = sum(self.update_s[0] <= at <= self.update_s[1] for at in doubts)
        found |= {"late": len(late), "longest_s": round(max((wait for wait, *_ in waits), default=0.0), 1)}
        return found | {"approvals": len(taken), "in_doubt": len(doubts), **self.done}

    def _hits_within(self, seconds: float, until_s: float) -> int:
        return sum(until_s - seconds <= at <= until_s for at in self.hits)

    def _waits(self, job: str, started_s: float, entries: list[Any]) -> Iterator[tuple[float, float, str]]:
        """Yields the waits of a job: the seconds, the end, and words."""
        asks, unsafe, before_s, before = set[int](), set[int](), started_s, "start"
        for each in entries:
            at_s, name = each.at_ms / 1000, type(each).__name__
            if isinstance(each, Answer) and each.token in self.given_at:
                yield at_s - self.given_at[each.token], at_s, f"from an answer until it is taken, job {job}"
            elif not asks and not unsafe:
                yield at_s - before_s, at_s, f"from {before} to {name}, job {job}"
            if isinstance(each, Intent):
                if each.token:
                    asks.add(each.ordinal)
                elif each.effect_class == "unsafe":
                    unsafe.add(each.ordinal)
            elif isinstance(each, Answer):
                asks.discard(each.ordinal)
            elif isinstance(each, EffectResult):
                unsafe.discard(each.ordinal)
            elif isinstance(each, Begin | End):
                asks, unsafe = set(), set()
            before_s, before = at_s, name


async def _beside(part: Awaitable[Any], *others: "asyncio.Task[None]") -> None:
    """Awaits a part of the dance. Raises the error of another one that ends before."""
    task = asyncio.ensure_future(part)
    try:
        while not task.done():
            await asyncio.wait([task, *(each for each in others if not each.done())], return_when="FIRST_COMPLETED")
            for each in others:
                if each.done():
                    each.result()
        task.result()
    finally:
        task.cancel()


BAD = ("twice", "lost", "undelivered", "taken_twice", "asked_by_update", "late")


def dance(folder: Path, journal: str, seconds: float, seed: int) -> dict[str, Any]:
    async def go(make: Callable[[], Dance]) -> dict[str, Any]:
        run = make()
        await run.run(seconds)
        return await asyncio.to_thread(run.figures)

    with FakeModelServer(answer) as model, Witness(folder / "witness.db") as witness:
        made = lambda: Dance(folder, journal, seed, model, witness)  # noqa: E731
        return asyncio.run(go(made))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--journal", choices=["postgres", "sqlite"], default="postgres")
    parser.add_argument("--keep", action="store_true", help="leave the files where they are")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sabot-web-"))
    if not options.keep:
        leftovers().folder(folder)
    server = Postgres("fsync=on") if options.journal == "postgres" else None
    try:
        journal = str(folder / "jobs") if server is None else server.url
        found = dance(folder, journal, options.minutes * 60, options.seed)
    finally:
        if server is not None:
            server.remove()
    print(json.dumps(found))
    sys.exit(any(found[name] for name in BAD))


if __name__ == "__main__":
    main()
