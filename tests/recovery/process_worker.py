"""A worker with children, which is killed: `process_worker.py COUNT FOLDER`. Some of the children leave their session and their parent,
some ignore SIGTERM. Prints the pid of its supervisor when all of them run.
"""

import asyncio
import sys
import types
from pathlib import Path

package = types.ModuleType(
    "sabot"
)  # without the rest of the engine, which would take most of the test's time to import
package.__path__ = [str(Path(__file__).parents[2] / "sabot")]
sys.modules["sabot"] = package

from sabot.process import Command, Supervisor  # noqa: E402

KINDS = (
    "echo up; exec sleep 1000",
    "setsid env -i sh -c 'echo up; sleep 1000 & exec sleep 1000' & exec sleep 1000",
    "(setsid sh -c 'echo up; sleep 1000; sleep 1000' &); exec sleep 1000",
    "trap '' TERM; echo up; while :; do sleep 1000; done",
)


async def main(count: int, folder: str) -> None:
    supervisor = await Supervisor.running()
    kinds = [KINDS[number % len(KINDS)] for number in range(count)]
    commands = [Command(argv=["sh", "-c", kind], working_dir=folder) for kind in kinds]
    children = await asyncio.gather(*map(supervisor.spawn, commands))
    for child in children:
        assert child.stdout is not None
        assert await child.stdout.read() == b"up\n"
    print(supervisor.pid, flush=True)
    await asyncio.gather(*(child.wait() for child in children))


asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
