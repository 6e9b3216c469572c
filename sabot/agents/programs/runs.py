"""Runs a program once for each record, with the input of the record, and returns its output and exit code."""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from sabot.base.threads import run_to_end
from sabot.codecs.records import decode_json
from sabot.engine.calls.tool_context import Effect
from sabot.errors import DataError
from sabot.process import backends
from sabot.process.backends import program_of
from sabot.process.client import Child
from sabot.process.command import Command
from sabot.process.errors import CommunicationError, ExecutionError
from sabot.process.instance import Instance
from sabot.process.pool import end_member
from sabot.process.streams import LastWords

MAX_OUTPUT_BYTES = 10 << 20
"""The most bytes that a program may write to stdout for one record. The lines are kept in memory until the program has
ended, and a durable agent stores them in its journal.
"""

MAX_LINES = 100_000
"""The most lines, which are results, that a program may write for one record."""

GRACE_SECONDS = 1.0
"""The seconds that a program has to end between SIGTERM and SIGKILL."""

T = TypeVar("T")

_log = logging.getLogger("sabot.agents.program_runs")

_LAST_LINES = 10  # the lines of stderr that an error shows
_LAST_BYTES = 2000


class ProgramOutput(msgspec.Struct, frozen=True):
    """The output of a program for one record.

    - `lines`: the lines that the program has written to stdout.
    - `code`: its exit code.
    - `cpu_seconds`: the CPU time that it has used, in seconds.
    - `error`: the error that the program itself has reported, or "".
    """

    lines: Sequence[str] = ()
    code: int = 0
    cpu_seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class RunId:
    """The identity of one execution of a program for a record.

    - `job`: the id of the job. For an agent that is not durable, it is the text "topic[partition]@offset" of the
      record.
    - `key`: a key for the record. It is the same in all attempts to handle the record, and different for other records.
    """

    job: str
    key: str

    @classmethod
    def of(cls, effect: Effect) -> "RunId":
        """Returns the identity of the execution that is the effect `effect` of a job."""
        return cls(effect.id.job, effect.key)


Began = Callable[[Child], object]
"""A function that is called with the child process when a program has started."""

Heard = Callable[[list[str]], Awaitable[None]]
"""A function that gets a program's lines as soon as they are written. No further lines are read until it has returned."""


class LiveLines:
    """A sender of a program's output lines to a topic. It sends each line as soon as the program writes it, even if the
    program fails later. A line may be sent more than once. The lines of one execution are sent in order. After an error
    of the topic, no more lines of that execution are sent, and the error is logged.
    """

    def __init__(
        self, send: Callable[..., Awaitable[int]], topic: str, agent_id: str, *, json: bool, skip: bool = False
    ) -> None:
        """Makes a sender.

        - `send`: the method `App.send`.
        - `topic`: the name of the topic.
        - `agent_id`: the id of the agent, which is sent as a header of each line.
        - `json`: True if the lines are JSON; then lines without any text are not sent. `skip`: True if those that are
          no JSON are not sent either.
        """
        self._skips = skip
        self._send, self._topic, self._agent, self._json = send, topic, agent_id.encode(), json

    def of(self, run_id: RunId, also: Heard | None) -> Heard:
        """Returns a function that gets the output lines of one execution, as a list of new lines at a time, and sends
        them to the topic. If `also` is not None, the function first passes each list to `also`.
        """
        run, number = uuid.uuid4().hex.encode(), 0
        broken = False

        async def told(lines: list[str]) -> None:
            nonlocal number, broken
            if also is not None:
                await also(lines)
            sending = []
            for line in lines:
                number += 1
                if not broken and (not self._json or self._tells(line)):
                    place = (("process.line", b"%d" % number), ("process.run", run))
                    headers = (("process.agent", self._agent), ("process.job", run_id.job.encode()), *place)
                    value = line.encode() if self._json else line
                    sending.append(self._send(self._topic, value, key=run_id.job, headers=headers))
            failed = [each for each in await asyncio.gather(*sending, return_exceptions=True) if each is not None]
            if errors := [each for each in failed if isinstance(each, Exception)]:
                broken = True
                _log.warning("the lines of a run for %s are not told in %s: %s", run_id.job, self._topic, errors[0])

        return told

    def _tells(self, line: str) -> bool:
        if not line.strip() or not self._skips:
            return bool(line.strip())
        try:
            decode_json(line.encode(), where="a line")
        except DataError:
            return False
        return True


def last_words(child: Child) -> LastWords:
    """Starts to read the stderr of a program. Returns the reader, which keeps only the last 2000 bytes."""
    return LastWords(_LAST_BYTES, child.stderr)


def tail_of(words: LastWords) -> str:
    """Returns the last 10 lines of a program's stderr, in a form that can be appended to an error message: ":", a line
    break, and the lines, in which secrets are hidden. Returns "" if the program wrote nothing to stderr.
    """
    last = "\n".join(words.text().strip().splitlines()[-_LAST_LINES:])
    return f":\n{last}" if last else ""


class ProgramRuns:
    """A runner of a program that starts a new process for each record."""

    def __init__(self, program: str, command: Command, *, codes: frozenset[int], timeout_s: float | None) -> None:
        """Makes a runner.

        - `program`: the name of the program, for error messages.
        - `command`: the command, whose words each call of `run` replaces.
        - `codes`: the exit codes that mean success.
        - `timeout_s`: the most seconds that one execution may take; None sets no limit.
        """
        self._program, self._codes, self._timeout_s = program, codes, timeout_s
        self._known = program_of(program)
        self._command = replace(command, lossless=True)

    async def run(
        self, argv: Sequence[str], stdin: str | None, heard: Heard | None = None, began: Began | None = None
    ) -> ProgramOutput:
        """Runs the program in a new process until it ends, and returns its output. When this method returns or raises,
        the process has ended. A program that is known to write a last event with its result (claude) has 5 seconds to
        end after it. Then it is ended, and its output counts; so does that of a program which is ended for a limit, or
        whose time is over, after this event.

        - `argv`: the words of the command.
        - `stdin`: the text that the program can read from stdin, or None for an empty stdin.
        - `heard`: a function that gets the output lines as soon as they are written.
        - `began`: a function that is called with the process when it has started.

        Raises SpawnFailed if the program cannot be started. Raises ExecutionError if its exit code does not mean
        success, if it takes too long, or if it writes too much. Raises CommunicationError if the supervisor process was
        killed, which also kills the program.
        """
        instance = Instance(replace(self._command, argv=argv), name=self._program)
        child = await instance.start()
        if began is not None:
            began(child)
        words = last_words(child)
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                return await self._output(instance, child, stdin, words, heard, limit)
        except TimeoutError:
            await end_member(instance, GRACE_SECONDS, "its time is over")
            await words.over()
            why = f"has not ended in {self._timeout_s:g} s, and was ended"
            raise ExecutionError(f"{self._program} {why}{tail_of(words)}") from None
        finally:
            await run_to_end(_ended(instance, child, words))

    async def _output(
        self,
        instance: Instance,
        child: Child,
        stdin: str | None,
        words: LastWords,
        heard: Heard | None,
        limit: asyncio.Timeout,
    ) -> ProgramOutput:
        if child.stdin is not None:
            with suppress(CommunicationError):  # a program may end well without reading its input
                child.stdin.write((stdin or "").encode())
            child.stdin.close()
        assert child.stdout is not None
        said, count, told, too_much = bytearray(), 0, 0, False
        looked, due = 0, _Due(instance, self._program)
        while piece := await due.by(child.stdout.read):
            said += piece
            if self._known.result is not None and (end := said.rfind(b"\n", looked) + 1):
                if any(self._known.is_result(bytes(line)) for line in said[looked:end].splitlines()):
                    due.begin()
                    limit.reschedule(None)  # the result is there, and is not thrown away
                looked = end
            count += piece.count(b"\n")
            too_much = len(said) > MAX_OUTPUT_BYTES or count > MAX_LINES
            if too_much:
                child.kill()
                break
            if heard is not None and (end := said.rfind(b"\n", told) + 1):
                await heard(_lines(said[told:end]))
                told = end
        status = await due.by(child.wait)
        is_whole = due.has_begun and (due.is_over or status.code is None)
        if too_much and status.limit is None:
            why = f"was ended, because it wrote more than {MAX_OUTPUT_BYTES >> 20} MB, or {MAX_LINES:,} lines"
        elif (status.limit is not None or status.code not in self._codes) and not is_whole:
            why = status.how
        else:
            if heard is not None and said[told:]:
                await heard(_lines(said[told:]))
            return ProgramOutput(_lines(said), status.code or 0, status.cpu_seconds)
        await words.over()
        raise ExecutionError(f"{self._program} {why}{tail_of(words)}")


class _Due:
    """The time that a program has to end after it has written its result."""

    def __init__(self, instance: Instance, program: str) -> None:
        self._instance, self._program = instance, program
        self._at: float | None = None
        self.has_begun = False
        self.is_over = False

    def begin(self) -> None:
        """Begins the time, also if it has begun before: the program goes on, and has written another result."""
        if not self.is_over:
            self.has_begun, self._at = True, asyncio.get_running_loop().time() + backends.RESULT_SECONDS

    async def by(self, wait: Callable[[], Awaitable[T]]) -> T:
        """Returns what `wait` returns. If the time ends before, ends the program first."""
        try:
            async with asyncio.timeout_at(self._at) as due:
                return await wait()
        except TimeoutError:
            if not due.expired():
                raise
        self.is_over, self._at = True, None
        why = "has written its result and does not end"
        _log.warning("%s %s: it is ended", self._program, why)
        await end_member(self._instance, GRACE_SECONDS, f"it {why}")
        return await wait()


async def _ended(instance: Instance, child: Child, words: LastWords) -> None:
    """Ends the remaining processes of one execution of a program, and closes its streams. Returns when no process is
    left.
    """
    await end_member(instance, GRACE_SECONDS, "its run is over")
    await words.over(close=True)
    assert child.stdout is not None
    child.stdout.close()


def _lines(said: bytes | bytearray) -> list[str]:
    lines = said.decode(errors="replace").split("\n")
    last = lines.pop()  # no line end follows it
    return [each.removesuffix("\r") for each in lines] + ([last] if last else [])
