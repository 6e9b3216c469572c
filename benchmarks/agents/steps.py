"""What an effect costs in memory: steps of a plain function in jobs of a kernel, without rules, and behind a policy and a budget.

    python benchmarks/agents/steps.py --rows 320 --steps 20

    plain_cpu_us     microseconds of the processor for one step, median of --rounds; no policy, no budget
    guarded_cpu_us   the same, with a rule that looks at the arguments, and a budget that counts each call

Checked: the answer of each job, and that the rule has refused the one step that it has to. The last line is one JSON object.
"""

import argparse
import asyncio
import gc
import json
import time
from statistics import median
from typing import Any

from sabot.agents import Budget, ConstraintPolicy, ExecutionRequest, PolicyEngine, RuntimeKernel
from sabot.errors import PolicyDenied

AT_ONCE = 32


async def double(number: int) -> int:
    return 2 * number


def work(steps: int) -> Any:
    async def steps_of(ctx: Any) -> int:
        total = sum([await ctx.step(double, number, effect="read") for number in range(steps)])
        try:
            return total + await ctx.step(double, number=10**6, effect="read")
        except PolicyDenied:
            return -total

    return steps_of


async def measured(jobs: int, steps: int, guarded: bool) -> float:
    rules: dict[str, Any] = {}
    if guarded:
        rules["policy"] = PolicyEngine([ConstraintPolicy(["double"], field="number", max=steps)])
        rules["budgets"] = [Budget("*", max_calls_daily=10**9)]
    sign = -1 if guarded else 1
    expected = sign * steps * (steps - 1) + (0 if guarded else 2 * 10**6)
    async with RuntimeKernel.create(agent=work(steps), **rules) as kernel:
        gc.collect()
        began = time.process_time()
        for _ in range(jobs // AT_ONCE):
            begun = [await kernel.execute(ExecutionRequest(prompt="go")) for _ in range(AT_ONCE)]
            for each in begun:
                found = await each.result()
                if found.output != expected:
                    raise SystemExit(f"a job returned {found}, in place of {expected}")
        return (time.process_time() - began) / (jobs // AT_ONCE * AT_ONCE * (steps + 1)) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=320, help="the number of jobs")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    found: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(given.rounds):
        for guarded, times in found.items():
            times.append(asyncio.run(measured(given.rows, given.steps, guarded)))
    figures = {"plain_cpu_us": median(found[False]), "guarded_cpu_us": median(found[True])}
    print(json.dumps({"benchmark": "steps", "rows": given.rows, **figures}))


if __name__ == "__main__":
    main()
