"""The steps of benchmarks/agents/effects.py in DBOS. Runs in its own environment (requirements-dbos.txt), started by effects.py.

Each step is a `DBOS.step`: its result is committed before the workflow goes on, and there is nothing in the database before the call, so
a step is at least once. The workflows run on one event loop; DBOS commits in threads. kind: "step", there is no other.
"""

import asyncio

import effects_job
from dbos import DBOS, SetWorkflowID

options = effects_job.arguments()
meter = effects_job.Meter()
DBOS(config={"name": "effects", "system_database_url": options.address, "log_level": "ERROR"})


@DBOS.step()
async def step(number: int) -> int:
    return await meter.step(number)


@DBOS.workflow()
async def job(steps: int) -> int:
    return await meter.job(step, steps)


async def run(name: str, steps: int) -> int:
    with SetWorkflowID(name):
        return await job(steps)


async def main() -> None:
    DBOS.launch()
    await effects_job.measure(meter, run, options)
    stored = 0
    for number in range(options.jobs):
        stored += len(await DBOS.list_workflow_steps_async(f"job-{number}"))
    assert stored == options.jobs * options.steps, f"{stored} steps are stored"
    DBOS.destroy()


asyncio.run(main())
