"""Runs of an app's code over recorded jobs, for the console: dry runs and forks, by the commands of `sabot jobs`.

The code is loaded in a process of its own, so it is that of today, and nothing of it is loaded into the process of the console. The
job goes there in a file that only its user can read, so it may be of any journal, also of one in memory.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from sabot.agents.replay import Recording
from sabot.base.redaction import scrubbed, visible
from sabot.base.threads import run_in_thread
from sabot.errors import UserError
from sabot.web.commands import said_by

T = TypeVar("T")

_MOST_CHARS = 2_000  # of an error that it prints


class ForkedStep(msgspec.Struct):
    """A step of a fork, without its values."""

    ordinal: int
    kind: str
    name: str
    outcome: str


class ForkedJob(msgspec.Struct):
    """A fork of a job, as `sabot jobs fork --json` prints it. `first_difference`: the first step that is not that of the job; None if all
    are. `waits_for`: its open timers, questions and signals at its end. `booked_as`: the job under which its use is booked, or "".
    """

    outcome: str
    steps: list[ForkedStep]
    error: str = ""
    first_difference: int | None = None
    waits_for: list[str] = []
    booked_as: str = ""


class _DryRun(msgspec.Struct):
    steps: int
    same: bool
    difference: str = ""


@dataclass(frozen=True)
class AppCode:
    """The code of an app. `program`: the words by which commands find it, as in `ShownApp`."""

    program: Sequence[str]

    async def dry_run(self, recording: Recording) -> str:
        """Runs the code over the recorded steps of a job, and returns in words what it did. No effect is made. Raises UserError if the code
        does something else, or cannot be loaded.
        """
        found = await self._run(recording, "replay", [], _DryRun)
        if not found.same:
            raise UserError(f"today's code does something else: {scrubbed(found.difference)}")
        return f"Today's code does all {found.steps:,} steps as recorded. No effect was made."

    async def fork(self, recording: Recording, step: int) -> ForkedJob:
        """Lets a copy of a job continue behind a step with live calls of models, and of tools that only read. Raises UserError if the code
        cannot be loaded.
        """
        return await self._run(recording, "fork", ["--from", str(step), "--no-wait"], ForkedJob)

    async def _run(self, recording: Recording, command: str, options: Sequence[str], kind: type[T]) -> T:
        *functions, target = self.program
        with tempfile.TemporaryDirectory(prefix="sabot-job-") as folder:
            file = Path(folder) / "job.replay.json"
            await run_in_thread(recording.save, file)
            words = ["jobs", command, str(file), "-A", target, *options, "--json"]
            _, out, err = await said_by(*functions, *words)
        for line in reversed(out.splitlines()):
            try:
                return msgspec.json.decode(line, type=kind)
            except msgspec.DecodeError:  # a line of the program's own
                continue
        said = err.strip()[-_MOST_CHARS:]
        raise UserError(f"the code of {target} could not be run: {visible(scrubbed(said), lines=False)}")
