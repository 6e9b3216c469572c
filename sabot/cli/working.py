"""`sabot jobs work`: runs the jobs of a kernel."""

import asyncio
import signal
from contextlib import suppress
from typing import Annotated

import typer

from sabot.agents.kernel.kernel import RuntimeKernel
from sabot.cli.agent_jobs import jobs
from sabot.cli.journal import quietly
from sabot.cli.loading import WrongUse, load_program


@jobs.command("work")
def work(
    target: Annotated[str, typer.Argument(metavar="MODULE:KERNEL", help="The module and the RuntimeKernel in it.")],
) -> None:
    """Run the jobs of a kernel until SIGTERM or Ctrl-C: those that clients begin, and those that are open.

    A kernel with shared=True becomes one more worker of its journal. A stop gives the calls under way the stop_grace of the
    kernel; a second signal ends the process at once. If the server of the journal does not answer at the start, the command waits
    for it.
    """

    def run() -> None:
        kernel = load_program(target)
        if not isinstance(kernel, RuntimeKernel):
            raise WrongUse(f"{target} is an App, and no kernel", hint=f"sabot run {target}")
        asyncio.run(_work(kernel))

    quietly(run)


async def _work(kernel: RuntimeKernel) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def stops(number: int) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)
        typer.echo(f"sabot: kernel {kernel.name} stops: {signal.Signals(number).name}", err=True)
        stop.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stops, each)
    stopped = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(kernel.start())  # waits for a server that does not answer, and logs it
    await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        await starting
    starting.cancel()
    if stopped.done():
        with suppress(asyncio.CancelledError):
            await starting
        await kernel.close()
        return
    async with kernel:
        await kernel.resume()
        typer.echo(f"sabot: kernel {kernel.name} runs jobs", err=True)
        serving = asyncio.create_task(kernel.serve())
        await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if serving.done():
            await serving  # raises the error that has stopped the kernel
        serving.cancel()
