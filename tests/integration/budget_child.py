"""A process that spends from a budget it shares. Arguments: place, name, number of calls, "spend" or "hold". place: the address or file
of its owner.

Makes so many calls at once, each of which may use 300 tokens. hold: prints "held N" when N of them were allowed, and waits to be killed.
spend: each that was allowed uses 200 tokens; prints "spent N".
"""

import asyncio
import sys
from typing import Any

from sabot.agents import (
    Budget,
    ExecutionContext,
    Ledger,
    LedgerEvent,
    PostgresLedgerWriter,
    SqliteLedgerWriter,
)
from sabot.base.accounts import Amounts
from sabot.llm import Usage

LIMIT = 30_000
BUDGET = Budget("tenant", max_tokens_daily=2 * LIMIT, max_tokens_monthly=LIMIT, warn_at=1)


def shared_ledger(place: str, lease: str = "30s", **options: Any) -> Ledger:
    """`lease`: no process is taken for dead because it had no core for a while, or its server was away."""
    writer: Any = (PostgresLedgerWriter if "://" in place else SqliteLedgerWriter)(place, shared=True)
    return Ledger(writer, budgets=[BUDGET], lease=lease, **options)


async def hold(ledger: Ledger, name: str, calls: int) -> int:
    async def call(number: int) -> bool:
        job = f"{name}/{number}"
        doubt = LedgerEvent(
            event_id=f"{job}/1", type="doubt", scope_id="tenant", job_id=job, name="m", reserved_tokens=300
        )
        judged = await ledger.reserve(job, "tenant", Amounts(300, calls=1), [doubt])
        return judged.decision == "allow"

    return sum(await asyncio.gather(*map(call, range(calls))))


async def spend(ledger: Ledger, name: str, calls: int) -> int:
    async def call(number: int) -> bool:
        context = ExecutionContext(scope_id="tenant", job_id=f"{name}/{number}")
        if await ledger.check_budget(context, 300) == "deny":
            return False
        await ledger.record_model_usage(context, Usage(200), model="m")
        return True

    return sum(await asyncio.gather(*map(call, range(calls))))


async def main(place: str, name: str, calls: str, what: str) -> None:
    ledger = shared_ledger(place, "1s" if what == "hold" else "30s")
    if what == "hold":
        print("held", await hold(ledger, name, int(calls)), flush=True)
        await asyncio.Event().wait()
    print("spent", await spend(ledger, name, int(calls)), flush=True)
    await ledger.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
