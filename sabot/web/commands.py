"""Commands of Sabot that the console runs, in processes of their own: what needs the code of the app as it is on the disk.

The process of the run has the code with which it began, and code that fails while it is imported must not reach the run.
"""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE

from sabot.errors import UserError

SECONDS = 60.0
"""The longest time of a command."""


async def said_by(*words: str) -> tuple[int, str, str]:
    """Runs a command of Sabot. Returns its exit code, its output and its errors. Raises UserError if it takes too long."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sabot", *words), stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    try:
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate()
    except TimeoutError:
        raise UserError(f"the program takes longer than {SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")
