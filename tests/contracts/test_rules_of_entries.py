"""A rule holds for a job whoever has begun it, and in whichever process it runs: a client of the journal, HTTP, workers that share a
journal, `sabot jobs work`. The cells of `test_rules_contract`, with these for surfaces; a kernel that forgets its policy is found.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from contracts.test_rules_contract import EFFECTS, FUNCTIONS, RECORDED, RULES, SAYS, WAYS, Desk, Place, Seen, call, said
from sabot.agents import BudgetSpec, JobClient, PolicyEngine, RuntimeKernel
from sabot.agents.kernel import kernel as kernels
from sabot.agents.kernel.client import ClientHandle
from sabot.jobs.guard import guard_of
from sabot.web import Caller, jobs_app
from tools.agent_tools import PATIENCE
from tools.command_line import ENV, SABOT
from tools.postgres import server_or_skip

KNOWN = Desk()  # rules are compared with the names of tools when a kernel starts, and the cells make theirs later

Start = Callable[..., Awaitable[ClientHandle]]
"""Begins a job of the agent `work` with a message, and perhaps with budgets."""


async def _reads(ctx: Any, desk: Desk, way: str) -> Any:
    async def pays() -> Any:
        return await call(way, desk)

    return await ctx.step(pays, effect="read")


PLACES: Mapping[str, Place] = {
    "step": EFFECTS["step"],
    "function": FUNCTIONS["function"],
    "reading step": _reads,
    "recorded": lambda ctx, desk, way: RECORDED[way](ctx, desk),
}


class Calls(list[str]):
    """The calls of one cell, which are lines of a file, since the tool may be called in another process."""

    def __init__(self, file: Path, cell: str) -> None:
        self._file, self._line = file, f"{cell}\n".encode()

    def append(self, order: str) -> None:
        file = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, self._line)
        os.close(file)


def kernel_of(journal: str | Path, rule: str, file: Path, *, shared: bool = False) -> RuntimeKernel:
    async def work(ctx: Any) -> str:
        place, way = ctx.message
        return await said(PLACES[place](ctx, Desk(Calls(file, f"{place}, {way}")), way))

    options: dict[str, Any] = {"shared": True} if shared else {}
    return RuntimeKernel.create(agent=work, journal=journal, name="shop", policy=RULES[rule], **options)


Entry = Callable[[str, str, Path], AbstractAsyncContextManager[tuple[JobClient, Start]]]


@asynccontextmanager
async def _a_client(database: str, rule: str, folder: Path) -> AsyncIterator[tuple[JobClient, Start]]:
    async with kernel_of(folder / "jobs", rule, folder / "made") as kernel:
        await kernel.resume()
        yield _by(JobClient(folder / "jobs", name="shop"))


def _by(client: JobClient) -> tuple[JobClient, Start]:
    return client, lambda message, **options: client.start("work", message, **options)


@asynccontextmanager
async def _http(database: str, rule: str, folder: Path) -> AsyncIterator[tuple[JobClient, Start]]:
    httpx2 = pytest.importorskip("httpx2")
    client = JobClient(folder / "jobs", name="shop")
    app = jobs_app(client, who=lambda request: Caller("ann", ["acme"]))
    async with (
        kernel_of(folder / "jobs", rule, folder / "made") as kernel,
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://site") as http,
    ):
        await kernel.resume()

        async def start(message: Any, budgets: BudgetSpec | None = None) -> ClientHandle:
            body = {"agent": "work", "message": message}
            answer = await http.post(
                "/jobs", json=body | ({} if budgets is None else {"budgets": {"max_tool_calls": 1}})
            )
            assert answer.status_code == 202, answer.text
            return await client.handle(answer.json()["url_id"])

        yield client, start


@asynccontextmanager
async def _workers(database: str, rule: str, folder: Path) -> AsyncIterator[tuple[JobClient, Start]]:
    place = f"{database}?app=jobs-{uuid.uuid4().hex[:12]}"
    async with AsyncExitStack() as running:
        for _ in range(2):
            kernel = await running.enter_async_context(kernel_of(place, rule, folder / "made", shared=True))
            await kernel.resume()
        yield _by(JobClient(place, name="shop"))


@asynccontextmanager
async def _jobs_work(database: str, rule: str, folder: Path) -> AsyncIterator[tuple[JobClient, Start]]:
    (folder / "worked.py").write_text(
        f"""from pathlib import Path

from contracts import test_rules_of_entries as entries

if {kernels.guard_of is not guard_of}:
    entries.forget()
kernel = entries.kernel_of({str(folder / "jobs")!r}, {rule!r}, Path({str(folder / "made")!r}))
"""
    )
    env = {**ENV, "PYTHONPATH": f"{ENV['PYTHONPATH']}:{Path(__file__).parents[1]}:{folder}"}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*SABOT, "jobs", "work", "worked:kernel", stderr=pipe, env=env)
    assert process.stderr is not None
    try:
        said_first = await asyncio.wait_for(process.stderr.readline(), PATIENCE)
        assert b"kernel shop runs jobs" in said_first, said_first + await process.stderr.read()
        yield _by(JobClient(folder / "jobs", name="shop"))
    finally:
        process.terminate()
        await process.communicate()


ENTRIES: Mapping[str, Entry] = {
    "a client": _a_client,
    "HTTP": _http,
    "workers of one journal": _workers,
    "sabot jobs work": _jobs_work,
}


SOME = [pytest.param(each, marks=[pytest.mark.slow] if each == "sabot jobs work" else []) for each in ENTRIES]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with server_or_skip().database() as url:
        yield url


async def cells(entry: str, database: str, rule: str, folder: Path, places: Mapping[str, Any]) -> dict[str, Seen]:
    """Returns what was seen of each place and way. `places`: those to try, and the options of their jobs."""
    async with ENTRIES[entry](database, rule, folder) as (client, start):
        tried = [(place, way) for place in places for way in (RECORDED if place == "recorded" else WAYS)]
        handles = [await start([place, way], **places[place]) for place, way in tried]
        results = {each.job_id: asyncio.ensure_future(each.result()) for each in handles}
        asked = set[str]()
        while waits := [result for job, result in results.items() if not (result.done() or job in asked)]:
            await asyncio.wait(waits, timeout=0.05)
            asked = {each.job_id for each in await client.actions.find()}
        for job in asked:
            results[job].cancel()
        ended = [
            ("", True, False) if job in asked else (await said(_output(result)), False, result.exception() is not None)
            for job, result in results.items()
        ]
    made = (folder / "made").read_text().splitlines() if (folder / "made").exists() else []
    return {
        f"{place}, {way}": Seen(made.count(f"{place}, {way}"), words, is_asked, failed)
        for (place, way), (words, is_asked, failed) in zip(tried, ended, strict=True)
    }


async def _output(result: "asyncio.Future[Any]") -> Any:
    return (await result).output


@pytest.mark.one_in(3, "half a second of a core each")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("entry", SOME)
async def test_a_rule_holds_whoever_begins_the_job_and_wherever_it_runs(
    entry: str, rule: str, database: str, tmp_path: Path
) -> None:
    places: dict[str, Any] = {"step": {}, "function": {}, "recorded": {}}
    for cell, seen in (await cells(entry, database, rule, tmp_path, places)).items():
        in_function = cell.startswith("function")
        seen.check(f"{entry}, {cell}, {rule}", rule, refused=in_function)
        assert seen.failed is in_function, f"{entry}, {cell}, {rule}: {seen}"
        assert seen.asked is (cell.startswith("recorded") and rule == "approval"), f"{entry}, {cell}: {seen}"


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("entry", SOME)
async def test_budgets_and_classes_hold_whoever_begins_the_job_and_wherever_it_runs(
    entry: str, database: str, tmp_path: Path
) -> None:
    one = BudgetSpec(max_tool_calls=1)  # the step around the call is the first one
    for cell, seen in (
        await cells(entry, database, "none", tmp_path, {"step": {"budgets": one}, "reading step": {}})
    ).items():
        expected = SAYS["budget"] if cell.startswith("step") else "whose class 'read' allows to repeat it"
        assert seen.made == 0, f"{entry}, {cell}: {seen}"
        assert expected in seen.said, f"{entry}, {cell}: {seen}"


def _without_policy(guards: Any) -> Any:
    return guard_of([each for each in guards if not isinstance(each, PolicyEngine)])


def forget() -> None:
    """Plants the door: kernels do not ask their policy."""
    kernels.guard_of = _without_policy


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("entry", SOME)
async def test_a_kernel_that_forgets_its_policy_is_found(
    entry: str, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "guard_of", _without_policy)
    seen = await cells(entry, database, "denied", tmp_path, {"step": {}, "recorded": {}})
    assert {cell for cell, each in seen.items() if each.made == 0} == set()
