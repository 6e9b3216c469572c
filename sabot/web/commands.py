"""Commands of Sabot that the console runs, in processes of their own: what needs the code of the app as it is on the disk.

The process of the run has the code with which it began, and code that fails while it is imported must not reach the run.
"""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping

from sabot.errors import UserError

SECONDS = 60.0
"""The longest time of a command."""


async def said_by(
    *words: str, module: str = "sabot", input: bytes | None = None, environment: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Runs a command of Sabot. Returns its exit code, its output and its errors. Raises UserError if it takes too long.

    `module`: the module of Sabot that is run. `input`: the bytes of its stdin, or None. `environment`: further variables.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *words),
        stdin=DEVNULL if input is None else PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, **(environment or {})},
    )
    try:
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate(input)
    except TimeoutError:
        raise UserError(f"the program takes longer than {SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")
