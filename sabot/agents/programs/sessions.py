"""Runs programs that keep sessions. If the run of a program is cut off, another run of it continues the session.

Three effects of the job do that:

   start   has the effect class of the agent: starts the program; its result is {"session", "run"}, as soon as a line names the session
   finish  is a read: waits for the end of that run; its result is the output, or null if the run is gone
   resume  may be repeated: starts the command that continues the session; its result is that of `start`

Rules about the tool `start` hold for the other two as well (`Tool.part_of`), and a person who approves it is not asked again:
the three are steps of one call.

So the journal has the id of the session while the program runs. If the worker is killed before the journal has it,
`start` is in doubt, as any effect of its class would be.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from sabot.agents.durable.context import calls_in_steps
from sabot.agents.programs.runs import Heard, ProgramOutput, RunId
from sabot.codecs.records import decode_json
from sabot.engine.calls.effects import EffectClass, EffectName
from sabot.engine.calls.tool_context import Effect
from sabot.engine.calls.tools import InDoubt, Tool, tool, tool_within
from sabot.errors import DataError
from sabot.process.errors import CommunicationError, ExecutionError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sabot.agents.durable.context import DurableContext

_MOST_RESUMES = 100  # the most resumes for one record

Run = Callable[[Sequence[str], str | None, RunId, Heard | None], Awaitable[ProgramOutput]]


class ProgramSessions:
    """The executions of a program that keeps sessions, as coding agents do. Such a program prints the id of its
    session, and another command with that id continues the session later.

    - `run`: a function that executes the program to its end.
    - `field`: the name of the field with the id of the session, in a JSON line that the program writes.
    - `effect`, `in_doubt`: the effect class of the first execution, and the decision if nobody knows whether it has
      ended.
    """

    def __init__(
        self, program: str, name: str, run: Run, field: str, effect: EffectName | EffectClass, in_doubt: InDoubt
    ) -> None:
        self._program, self._run, self._field = program, run, field
        self._running: dict[str, asyncio.Future[ProgramOutput]] = {}
        self._start: Tool = tool(effect=effect, in_doubt=in_doubt, name=name)(self._begun)
        self._finish = tool_within(self._start, self._finished, "finish", "read")
        self._resume = tool_within(self._start, self._begun, "resume", "idempotent")

    @asynccontextmanager
    async def open(self) -> "AsyncIterator[None]":
        """Executes the `with` block, and then cancels the executions of the program that have not ended."""
        try:
            yield
        finally:
            await asyncio.gather(*map(_cancelled, self._running.values()))
            self._running.clear()

    async def output(
        self, ctx: "DurableContext", argv: Sequence[str], stdin: str | None, resumed: Callable[[str], Sequence[str]]
    ) -> Any:
        """Returns the output of the program for the record of this job. If the process of the program is lost before it
        ends, for example in a crash of the worker, another command continues its session. This is repeated at most 100
        times.

        - `argv`, `stdin`: the command and the input of the first execution.
        - `resumed`: a function that returns the command that continues the session with a given id.

        Raises EffectError if the program fails, and ExecutionError if its process was lost too often.
        """
        call = calls_in_steps(ctx)
        said = await call(self._start, argv, stdin)
        for _ in range(_MOST_RESUMES):
            if not isinstance(said, Mapping) or "session" not in said:
                return said
            session = str(said["session"])
            found = await call(self._finish, session, said.get("run", ""))
            if found is not None:
                return found
            said = await call(self._resume, resumed(session), None)
        raise ExecutionError(f"{self._program} was cut off {_MOST_RESUMES} times")

    async def _begun(self, argv: Sequence[str], stdin: str | None, effect: Effect) -> ProgramOutput | dict[str, str]:
        """Starts the program, and waits until it writes a line with the id of its session. Then returns a dict with
        this id as "session" and an id of the execution as "run", while the program continues. If the program ends
        without such a line, returns its output.
        """
        known: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def heard(lines: list[str]) -> None:
            for line in lines:
                if not known.done() and (found := self._session_in(line)):
                    known.set_result(found)

        running = asyncio.ensure_future(self._run(argv, stdin, RunId.of(effect), heard))
        try:
            waiting: list[asyncio.Future[Any]] = [running, known]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _cancelled(running)
            raise
        if running.done():
            return running.result()
        token = uuid.uuid4().hex
        self._running[token] = running
        return {"session": known.result(), "run": token}

    async def _finished(self, session: str, run: str) -> ProgramOutput | None:
        """Waits for the end of an execution of the program, and returns its output. `run` is the id that `_begun` has
        returned. Returns None if that execution no longer exists, because this worker or the supervisor process was
        restarted; the caller then continues the session. Raises ExecutionError if the program failed.
        """
        running = self._running.get(run)
        if running is None:
            return None
        try:
            return await asyncio.shield(running)
        except CommunicationError:
            return None
        finally:
            await _cancelled(running)
            self._running.pop(run, None)

    def _session_in(self, line: str) -> str:
        """Returns the id of the session if this line of output is a JSON object with the field for it; otherwise ""."""
        if self._field not in line:
            return ""
        try:
            value = decode_json(line.encode(), where=self._program)
        except DataError:
            return ""
        found = value.get(self._field) if isinstance(value, Mapping) else None
        return found if isinstance(found, str) else ""


async def _cancelled(running: "asyncio.Future[Any]") -> None:
    """Cancels the execution of a program, and returns when it has ended. Raises none of its errors."""
    running.cancel()
    await asyncio.wait([running])
    if not running.cancelled():
        running.exception()  # marks the error as retrieved: the caller that waited has it
