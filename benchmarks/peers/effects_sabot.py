"""The steps of benchmarks/agents/effects.py in Sabot. Started by effects.py.

Each job is a record in a topic of the process, and is over when its result is read from another one. kind: the class of the step. "read":
its result is written in the background. "unsafe": its intent is committed before the call, its result with the next commit. address: of
the journal, or the state directory in which it is made.
"""

import asyncio
import tempfile
from typing import Any

import effects_job

from sabot import App

options = effects_job.arguments()
meter = effects_job.Meter()
ended: dict[str, "asyncio.Future[int]"] = {}


def build(folder: str) -> App:
    journal = {"journal": options.address} if "://" in options.address else {}
    state = folder if journal else options.address
    app = App("effects", state=state, checkpoint_interval="1s", **journal)

    @app.agent("jobs", sink="results", durable=True, concurrency=options.at_once)
    async def job(ctx: Any) -> dict[str, Any]:
        async def step(number: int) -> int:
            return await ctx.step(meter.step, number, effect=options.kind)

        return {"name": ctx.message["name"], "total": await meter.job(step, ctx.message["steps"])}

    @app.agent("results")
    async def result(ctx: Any) -> None:
        ended.pop(ctx.message["name"]).set_result(ctx.message["total"])

    return app


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder:
        app = build(folder)
        await app.start()

        async def run(name: str, steps: int) -> int:
            future = ended[name] = asyncio.get_running_loop().create_future()
            await app.send("jobs", {"name": name, "steps": steps})
            return await future

        await effects_job.measure(meter, run, options)
        await app.stop()


asyncio.run(main())
