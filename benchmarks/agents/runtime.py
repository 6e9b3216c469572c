"""What the parts of the agent runtime cost by themselves.

    python benchmarks/agents/runtime.py --rows 200000 --jobs 20000 --peers all

    events_per_s           events that one publisher hands to --subscribers handlers in memory, half of them coroutine functions, until all
                           have handled all
    policy_us              of the processor, for one decision with --rules rules, of which a tenth match: by scope, argument, label
    policy_all_us          for one that each of as many rules matches, by name and scope
    jobs_per_s             jobs of a kernel over a journal in SQLite, each with one step that does nothing, at most --at-once at a time,
                           from `execute` to `result`; jobs_per_cpu_s: for each second of the processor
    dbos-sqlite step, …    the same of the peers of effects.py, --peer-jobs of them: jobs of one step that does nothing
    settled_per_s          calls that are judged by a budget with three limits, reserved, and settled by a row in SQLite, until all rows are
                           written
    shared settled_per_s   the same by --owners of budgets that processes share, on servers of their own that sync their disks: of one
                           ledger, and of three together, 200 calls in flight each; reserve_ms: a reservation alone, p50
    verified_per_s         of these jobs, recorded and run over their entries with today's code, without a call

Checked: each handler got each event once, in order; each decision is the one that the rules say; what each job returned, and what the
journal has; what the ledger has used, and each of its rows; that a verified job asks what is recorded; of peers as effects.py does. The
last line is one JSON object.
"""

import argparse
import asyncio
import gc
import json
import statistics
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from effects import KINDS, PEERS, SQLITE, chosen, known
from effects import measure as measure_peer
from journal import fsync_ms

from sabot.agents import (
    Budget,
    BudgetDecision,
    ConstraintPolicy,
    Decision,
    DurableContext,
    ExecutionRequest,
    GuardedCall,
    GuardVerdict,
    InMemoryEventBus,
    LabelPolicy,
    Ledger,
    LedgerEvent,
    LedgerWriter,
    PolicyEngine,
    PostgresLedgerWriter,
    RuntimeEvent,
    RuntimeEventType,
    RuntimeKernel,
    SqliteLedgerWriter,
    ToolPolicy,
    record_job,
)
from sabot.agents.replay.verification import hash_of_steps, verified
from sabot.base.accounts import Amounts
from sabot.engine.calls.effects import EffectId
from sabot.jobs.guard import Behalf
from sabot.journal import open_reader
from sabot.journal.entries import Begin
from tools.postgres import Postgres

OWNERS = ("sqlite", "postgres")


class Order:
    """Handlers that check the order of what they get."""

    def __init__(self) -> None:
        self.next = 0

    def take(self, event: RuntimeEvent) -> None:
        assert event.data["number"] == self.next
        self.next += 1

    async def take_later(self, event: RuntimeEvent) -> None:
        self.take(event)


async def events(rows: int, subscribers: int) -> dict[str, float]:
    """Of an InMemoryEventBus."""
    bus, counters = InMemoryEventBus(), [Order() for _ in range(subscribers)]
    for number, counter in enumerate(counters):
        await bus.subscribe(counter.take_later if number % 2 else counter.take)
    gc.collect()
    began = time.perf_counter()
    for number in range(rows):
        await bus.publish(RuntimeEvent(RuntimeEventType.PROGRESS, "job", {"number": number}))
    await bus.flush()
    seconds = time.perf_counter() - began
    assert [counter.next for counter in counters] == [rows] * subscribers, "events are missing"
    return {"events_per_s": round(rows / seconds)}


def pays_much(call: GuardedCall) -> Decision | None:
    """A rule as a user writes it."""
    return Decision.WARN if call.arguments.get("amount", 0) > 40 else None


def policy(rows: int, rules: int) -> dict[str, float]:
    """Of a PolicyEngine."""
    ten = rules // 10
    some = PolicyEngine()
    for number in range(ten):
        each: list[Any] = [ToolPolicy([f"tool_{number}", f"other_{at}_*"], denied_scopes=["guests"]) for at in range(8)]
        each += [ConstraintPolicy([f"tool_{number}"], "amount", max=80), LabelPolicy(tool_patterns=[f"tool_{number}"])]
        for rule in each:
            some.add_rule(rule)
    some.add_rule(pays_much)
    every = PolicyEngine([ToolPolicy(["tool_*"], denied_scopes=["guests"]) for _ in range(rules)])
    calls = [
        GuardedCall(
            EffectId("job", number),
            "tool",
            f"tool_{number % ten}",
            behalf=Behalf("guests" if number % 5 == 4 else "acme"),
            effect_class="unsafe",
            kwargs={"amount": number % 100},
            labels=frozenset({"untrusted"} if number % 7 == 6 else ()),
        )
        for number in range(1000)
    ]
    expected = [
        "deny"
        if number % 5 == 4 or number % 100 > 80
        else "ask"
        if number % 7 == 6
        else "warn"
        if number % 100 > 40
        else "allow"
        for number in range(1000)
    ]
    figures = {}
    for name, engine in (("policy_us", some), ("policy_all_us", every)):
        found, began = [], time.process_time()
        for at in range(rows):
            found.append(engine.decide(calls[at % 1000]))
        figures[name] = round((time.process_time() - began) / rows * 1e6, 2)
        said = [verdict.decision.value for verdict in found[:1000] if isinstance(verdict, GuardVerdict)]
        right = expected if engine is some else ["deny" if at % 5 == 4 else "allow" for at in range(1000)]
        assert said == right[: min(rows, 1000)], "a decision is wrong"
    return figures


async def nothing(number: int) -> int:
    return number + 1


async def step(ctx: DurableContext) -> int:
    """The function of a job."""
    made: int = await ctx.step(nothing, ctx.message, effect="read")
    return made


async def jobs(count: int, at_once: int, folder: Path) -> dict[str, float]:
    """Of a RuntimeKernel. As many callers wait for a result and ask for the next job as may run at once."""
    numbers, found = iter(range(count)), []

    async def caller(kernel: RuntimeKernel) -> None:
        for number in numbers:
            handle = await kernel.execute(ExecutionRequest(prompt=number))
            found.append((number, (await handle.result()).output))

    async with RuntimeKernel.create(agent=step, journal=folder, max_jobs=at_once, keep_jobs=count) as kernel:
        began, cpu_began = time.perf_counter(), time.process_time()
        await asyncio.gather(*(caller(kernel) for _ in range(at_once)))
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    assert sorted(found) == [(number, number + 1) for number in range(count)], "a job has returned something else"
    with closing(open_reader(folder)) as reader:
        entries = Counter(type(entry).__name__ for _, entry in reader.read())
    assert entries == dict.fromkeys(("Begin", "Intent", "EffectResult", "End"), count), f"the journal has {entries}"
    return {"jobs_per_s": round(count / seconds), "jobs_per_cpu_s": round(count / cpu_seconds)}


async def ledger(rows: int, folder: Path) -> dict[str, float]:
    """Of a Ledger over SQLite. 100 calls are in flight at a time."""
    budget = Budget("acme", max_tokens_daily=10**12, max_tokens_monthly=10**12, max_cost_daily=Decimal(10**9))
    accounts = Ledger(SqliteLedgerWriter(folder / "ledger.db"), budgets=[budget])
    await accounts.ready("acme")
    wanted, cost, now = Amounts(1000, Decimal("0.01"), 1), Decimal("0.005"), round(time.time() * 1000)
    gc.collect()
    began, open_calls = time.perf_counter(), deque[str]()

    def settle() -> None:
        call = open_calls.popleft()
        used = {"input_tokens": 400, "output_tokens": 100, "cost": cost, "at_ms": now}
        accounts.record(LedgerEvent(event_id=call, type="model", scope_id="acme", name="m", **used), call)

    for number in range(rows):
        name = f"job/{number}/1"
        judged = accounts.reserve(name, "acme", wanted)
        assert judged.decision is BudgetDecision.ALLOW
        open_calls.append(name)
        if len(open_calls) > 100:
            settle()
        if number % 256 == 0:
            await asyncio.sleep(0)
        if accounts.full:
            await accounts.flush()
    while open_calls:
        settle()
    await accounts.flush()
    seconds = time.perf_counter() - began
    used = (await accounts.used("acme"))["daily"]
    assert used == Amounts(500 * rows, cost * rows, rows), f"the ledger has used {used}"
    (kept,) = await accounts.writer.sums([], 0)
    assert (kept.calls, kept.cost) == (rows, cost * rows), f"the rows are {kept}"
    await accounts.close()
    return {"settled_per_s": round(rows / seconds)}


async def shared(rows: int, connect: Callable[[], LedgerWriter]) -> dict[str, float]:
    """Of ledgers over one owner."""
    budget = Budget(
        "acme", max_tokens_daily=10**12, max_tokens_monthly=10**12, max_cost_daily=Decimal(10**6), warn_at=1
    )
    wanted, cost = Amounts(1000, Decimal("0.01"), 1), Decimal("0.005")
    figures, settled = dict[str, float](), 0
    for count in (1, 3):
        ledgers = [Ledger(connect(), budgets=[budget], patience="60s") for _ in range(count)]
        numbers = iter(range(rows))

        async def caller(accounts: Ledger, count: int = count, numbers: Iterator[int] = numbers) -> None:
            for number in numbers:
                name = f"{count}/{number}/1"
                doubt = LedgerEvent(
                    event_id=name, type="doubt", scope_id="acme", reserved_tokens=1000, cost=wanted.cost
                )
                judged = await accounts.reserve(name, "acme", wanted, [doubt])
                assert judged.decision is BudgetDecision.ALLOW
                used = {"input_tokens": 400, "output_tokens": 100, "cost": cost, "at_ms": round(time.time() * 1000)}
                accounts.record(LedgerEvent(event_id=name, type="model", scope_id="acme", name="m", **used), name)

        await asyncio.gather(*(each.used("acme") for each in ledgers))
        began = time.perf_counter()
        await asyncio.gather(*(caller(each) for each in ledgers for _ in range(200)))
        await asyncio.gather(*(each.flush() for each in ledgers))
        figures[f"settled_per_s_{count}"] = round(rows / (time.perf_counter() - began))
        settled += rows
        used = (await ledgers[0].used("acme"))["monthly"]
        assert used == Amounts(500 * settled, cost * settled, settled), f"the owner says that {used} is used"
        (kept,) = await ledgers[0].writer.sums([], 0)
        assert (kept.calls, kept.cost) == (settled, cost * settled), f"the rows are {kept}"
        took = []
        for _ in range(50 if count == 1 else 0):
            alone = time.perf_counter()
            await ledgers[0].reserve("alone", "acme", wanted)
            took.append(time.perf_counter() - alone)
            ledgers[0].release("alone", "acme")
        if took:
            figures["reserve_ms"] = round(statistics.median(took) * 1000, 2)
        for each in ledgers:
            await each.close()
    return figures


def owners(names: Sequence[str], rows: int, folder: Path) -> dict[str, dict[str, float]]:
    """Of each of these owners."""
    found = {}
    with ExitStack() as opened:
        for name in names:
            if name == "postgres":
                server = Postgres("fsync=on")
                opened.callback(server.remove)
                connect: Callable[[], Any] = partial(PostgresLedgerWriter, server.url, shared=True)
            else:
                connect = partial(SqliteLedgerWriter, folder / "shared.db", shared=True)
            found[f"shared {name}"] = asyncio.run(shared(rows, connect))
    return found


def replayed(count: int, folder: Path) -> dict[str, float]:
    """Of the jobs that `jobs` has left."""
    kernel = RuntimeKernel.create(agent=step, journal=folder)
    with closing(open_reader(folder)) as reader:
        names = [entry.job for _, entry in reader.read() if isinstance(entry, Begin)][:count]
        began = time.perf_counter()
        for name in names:
            recording = record_job(reader, name)
            found = verified(recording, kernel.code())
            assert found.same, found.difference
            assert found.events_hash == hash_of_steps(recording)
        seconds = time.perf_counter() - began
    return {"verified": len(names), "verified_per_s": round(len(names) / seconds)}


def peers(names: list[str], count: int, at_once: int) -> dict[str, dict[str, float]]:
    """Jobs of one step in other engines, over SQLite."""
    alone = argparse.Namespace(steps=1, at_once=at_once, alone=2)
    found = {}
    for engine, python in known(names).items():
        for kind in KINDS[engine] if engine in names else ():
            with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder:
                figures = measure_peer(python, engine, kind, SQLITE[engine].format(folder), count, alone)
            rates = {"jobs_per_s": figures["effects_per_s"], "jobs_per_cpu_s": figures["effects_per_cpu_s"]}
            found[f"{engine}-sqlite {kind}"] = rates
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="events")
    parser.add_argument("--subscribers", type=int, default=10, help="of the events")
    parser.add_argument("--rules", type=int, default=100, help="of the policy")
    parser.add_argument("--jobs", type=int, default=20_000, help="of the kernel")
    parser.add_argument("--at-once", type=int, default=256, help="jobs at a time")
    parser.add_argument("--owners", default="none", help=f"none, all, or some of {','.join(OWNERS)}")
    parser.add_argument("--peers", default="none", help=f"none, all, or some of {','.join(PEERS)}")
    parser.add_argument("--peer-jobs", type=int, default=2_000, help="of each peer")
    options = parser.parse_args()
    options.jobs = min(options.jobs, options.rows)
    outcome: dict[str, Any] = {"benchmark": "runtime", "rows": options.rows, "subscribers": options.subscribers}
    outcome |= {"jobs": options.jobs, "at_once": options.at_once}
    outcome |= asyncio.run(events(options.rows, options.subscribers))
    outcome |= {"rules": options.rules, **policy(max(1, options.rows // 10), options.rules)}
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder:
        outcome["fsync_ms"] = round(fsync_ms(Path(folder)), 3)
        outcome |= asyncio.run(jobs(options.jobs, options.at_once, Path(folder)))
        outcome |= replayed(min(options.jobs, 1000), Path(folder))
        outcome |= asyncio.run(ledger(max(1, options.rows // 2), Path(folder)))
        outcome |= owners(chosen(options.owners, OWNERS), max(1, options.rows // 20), Path(folder))
    outcome |= peers(chosen(options.peers, PEERS), options.peer_jobs, options.at_once)
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
