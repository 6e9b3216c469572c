"""A run of a program for one record: what it is given, what it says, and how it ends."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import msgspec

from sabot.llm.tools import Effect
from sabot.process.client import Child, Command, Supervisor
from sabot.process.errors import CommunicationError, ExecutionError
from sabot.process.status import ExitStatus

__all__ = [
    "GRACE_SECONDS",
    "LAST_BYTES",
    "MAX_LINES",
    "MAX_OUTPUT_BYTES",
    "ProgramOutput",
    "ProgramRuns",
    "RunId",
    "how_ended",
    "last_lines",
    "last_words",
]

MAX_OUTPUT_BYTES = 10 << 20
"""Of stdout, for one record. The lines are kept until the program has ended well, and a journal is not for files."""

MAX_LINES = 100_000
"""As many results one record may have."""

GRACE_SECONDS = 1.0
"""Between SIGTERM and SIGKILL."""

LAST_BYTES = 2000
"""Of stderr, in an error: at most so many bytes of its last lines."""

_LAST_LINES = 10


class ProgramOutput(msgspec.Struct, frozen=True):
    """What a program has said, and how it ended. error: it has said that it failed; "" it has not."""

    lines: Sequence[str] = ()
    code: int = 0
    cpu_seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class RunId:
    """What a program is run for. job: the id of the job, or the record's place. key: the same for each attempt, and for no other record."""

    job: str
    key: str

    @classmethod
    def of(cls, effect: Effect) -> "RunId":
        """That of an effect of a job."""
        return cls(effect.id.job, effect.key)


class ProgramRuns:
    """Runs a program once for each record."""

    def __init__(self, program: str, command: Command, *, codes: frozenset[int], timeout_s: float | None) -> None:
        """program: its name, in errors. codes: those with which it ends well."""
        self._program, self._command, self._codes, self._timeout_s = program, command, codes, timeout_s

    async def run(self, argv: Sequence[str], stdin: str | None, run_id: RunId) -> ProgramOutput:
        """Runs the program to its end. Raises SpawnFailed, ExecutionError where it ends badly, CommunicationError where the supervisor was
        killed, and its children with it. It never outlives this call.
        """
        child = await (await Supervisor.running()).spawn(replace(self._command, argv=argv))
        try:
            async with asyncio.timeout(self._timeout_s):
                output = await self._output(child, stdin)
        except TimeoutError:
            await child.stop(GRACE_SECONDS)
            why = f"has not ended in {self._timeout_s:g} s, and was ended"
            raise ExecutionError(f"{self._program} {why}{await last_words(child)}") from None
        finally:
            if not child.is_over:
                with suppress(CommunicationError):
                    await child.stop(GRACE_SECONDS)
        return output

    async def _output(self, child: Child, stdin: str | None) -> ProgramOutput:
        if child.stdin is not None and stdin is not None:
            with suppress(CommunicationError):  # it may end well without having read it
                child.stdin.write(stdin.encode())
            child.stdin.close()
        assert child.stdout is not None
        said, count, too_much = bytearray(), 0, False
        while piece := await child.stdout.read():
            said += piece
            count += piece.count(b"\n")
            too_much = len(said) > MAX_OUTPUT_BYTES or count > MAX_LINES
            if too_much:
                child.kill()
                break
        status = await child.wait()
        if too_much and status.limit is None:
            why = f"was ended, because it wrote more than {MAX_OUTPUT_BYTES >> 20} MB, or {MAX_LINES:,} lines"
        elif status.limit is not None or status.code not in self._codes:
            why = how_ended(status)
        elif child.stdout.dropped_bytes:
            why = f"has written {child.stdout.dropped_bytes:,} bytes that were not read in time"
        else:
            lines = said.decode(errors="replace").split("\n")
            return ProgramOutput(lines if lines[-1] else lines[:-1], status.code or 0, status.cpu_seconds)
        raise ExecutionError(f"{self._program} {why}{await last_words(child)}")


def how_ended(status: ExitStatus) -> str:
    """What an error says of it."""
    if status.limit is not None:
        return f"was ended, because it had more than its {status.limit}"
    return f"ended with {status.code}" if status.signal is None else f"was ended by signal {status.signal}"


async def last_words(child: Child) -> str:
    """The last lines of stderr, which has ended."""
    assert child.stderr is not None
    said = b""
    while piece := await child.stderr.read():
        said = (said + piece)[-LAST_BYTES:]
    return last_lines(said)


def last_lines(said: bytes) -> str:
    """What an error says of the end of stderr. It hides the secrets in it."""
    last = "\n".join(said.decode(errors="replace").strip().splitlines()[-_LAST_LINES:])
    return f":\n{last}" if last else ""
