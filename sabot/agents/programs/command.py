"""Agents that are programs. A child process of `sabot.process` handles a record, and the lines that it writes are the
results.

   record ─▶ the words of the command, filled ─▶ a child ─▶ its lines ─▶ results, if it ends well
                                                  └─ it ends badly: an error of the agent, and no results
   record ─▶ a line to a child that serves many records (`pool`) ─▶ its answer ─▶ results

In a durable agent, the run of the program is one effect, and the journal has the lines as the result of the effect.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
import pyarrow as pa

from sabot.agents.programs.pool import PoolProtocol, ProgramPool
from sabot.agents.programs.runs import Heard, LiveLines, ProgramOutput, ProgramRuns, RunId
from sabot.agents.programs.sessions import ProgramSessions
from sabot.agents.programs.templates import CommandTemplate
from sabot.api.context import AgentContext, Message
from sabot.api.lifespan import Resource
from sabot.base.checks import OneOf, Whole, check, is_whole
from sabot.base.config import Duration, parse_seconds
from sabot.base.threads import run_in_thread
from sabot.codecs.records import decode_json, encode_json
from sabot.engine.calls.effects import RULES, EffectClass, EffectName, effect_class
from sabot.engine.calls.tool_context import Effect
from sabot.engine.calls.tools import InDoubt, tool
from sabot.errors import DataError, UserError, short_repr
from sabot.process.backends import program_of
from sabot.process.command import Command
from sabot.process.errors import ExecutionError
from sabot.process.health import HealthMonitor
from sabot.process.limits import ResourceLimits
from sabot.process.sandbox.levels import Sandbox, TrustLevel, check_available, sandbox_of
from sabot.process.sandbox.paths import remember_writable, way_to

if TYPE_CHECKING:
    from sabot.agents.durable.context import DurableContext

LineFormat = Literal["text", "json"]

_log = logging.getLogger("sabot.agents.programs")

_MOST_CHILDREN = 1000  # the most children of a pool
_SESSION = "session"
_RESUME = 'resume=["claude", "-p", "Go on", "--resume", "{session}"]'


class AgentCommand:
    """The program that handles the records of an agent. `function` and `durable_function` return the function that the
    app calls for each record. `resources` are the resources, such as a pool of processes, that the app opens when it
    starts and closes when it stops.
    """

    def __init__(
        self,
        where: str,
        command: Sequence[str],
        *,
        stdin: bool = False,
        lines: LineFormat = "text",
        noise: Literal["fail", "skip"] = "fail",
        exit_record: bool = False,
        exit_codes: Collection[int] = (0,),
        environment: Mapping[str, str] | None = None,
        working_dir: Any = None,
        limits: ResourceLimits | None = None,
        trust: Sandbox | TrustLevel | str | None = None,
        timeout: Duration | None = None,
        pool: int | None = None,
        protocol: PoolProtocol | None = None,
        resume: Sequence[str] | None = None,
        session: str | None = None,
        live: LiveLines | None = None,
        health: tuple[HealthMonitor, str],
    ) -> None:
        """Makes the command of an agent.

        - `where`: the name of the agent, for error messages.
        - `health`: the monitor that watches the program, and the name under which it does so.

        The other arguments are those of `App.process_agent`. Raises UserError if an argument is not valid.
        """
        check(f"{where}: lines", lines, OneOf(get_args(LineFormat)))
        check(f"{where}: noise", noise, OneOf(("fail", "skip")))
        if noise == "skip" and (lines == "text" or pool is not None):
            said = "with pool=, whose lines are the answers" if pool is not None else "without lines='json'"
            raise UserError(f"{where}: noise='skip' {said}", hint="leave it out")
        self._skips = noise == "skip"
        if limits is not None and not isinstance(limits, ResourceLimits):
            raise UserError(f"{where}: limits={short_repr(limits)}", hint="limits=ResourceLimits(max_memory_mb=2048)")
        if not exit_codes or not all(is_whole(each, 0) for each in exit_codes):
            raise UserError(
                f"{where}: exit_codes={exit_codes!r}", hint="those with which the program ends well: (0, 1)"
            )
        try:
            self._command = Command(
                argv=command,
                environment=environment or {},
                working_dir=working_dir,
                stdin="pipe" if stdin else "null",
                limits=limits,
                trust=trust,
            )
        except UserError as error:
            raise UserError(f"{where}: {error.message}", hint=error.hint) from error
        self.words = CommandTemplate(where, command)
        self._program = self.words.program
        timeout_s = None if timeout is None else parse_seconds(timeout, name=f"{where}: timeout")
        if timeout_s == 0:
            raise UserError(f"{where}: timeout=0", hint='a time above 0 ("30s"), or None for no limit')
        codes = frozenset(exit_codes)
        self._stdin, self._lines, self._exit_record = stdin or pool is not None, lines, exit_record
        self._runs = ProgramRuns(self._program, self._command, codes=codes, timeout_s=timeout_s)
        self.resources: list[Resource[Any]] = []
        self._pool: Resource[ProgramPool] | None = None
        self._live = live
        self._monitor, self._watched_as = health
        self._monitor.register(self._watched_as)
        self._session = session or program_of(self._program).session or "session_id"
        if pool is None and protocol is not None:
            raise UserError(f"{where}: protocol={protocol!r} is that of a pool", hint="pool=4, or leave it out")
        if pool is not None:
            ends = {"exit_record": exit_record, "exit_codes": codes != {0}, "resume": resume, "live": live}
            self._check_pool(where, pool, protocol, ends)
            self._lines = "json" if protocol == "json" else lines
            self._pool = self._opened_pool(where, pool, protocol or "lines", timeout_s)
            self.resources.append(self._pool)
        if session is not None and resume is None:
            raise UserError(f"{where}: session={session!r} without resume=", hint="resume= says how it goes on")
        self._resume = None if resume is None else self._resume_words(where, resume)

    @staticmethod
    def _resume_words(where: str, resume: Sequence[str]) -> CommandTemplate:
        if isinstance(resume, str) or not resume or not all(isinstance(each, str) for each in resume):
            raise UserError(f"{where}: resume={short_repr(resume)} is no command", hint=_RESUME)
        words = CommandTemplate(f"{where}: resume", resume)
        if (_SESSION,) not in words.fields:
            raise UserError(f"{where}: resume= does not say where the session's id goes", hint=_RESUME)
        return words

    def _check_pool(self, where: str, pool: int, protocol: Any, given: Mapping[str, Any]) -> None:
        check(f"{where}: pool", pool, Whole(1, _MOST_CHILDREN))
        if protocol not in (None, *get_args(PoolProtocol)):
            raise UserError(f"{where}: protocol={protocol!r}", hint=f"one of {', '.join(get_args(PoolProtocol))}")
        if wrong := [name for name, is_given in given.items() if is_given]:
            raise UserError(
                f"{where}: {wrong[0]}= with pool=, whose children do not end with a record", hint="leave it out"
            )
        if self.words.fields:
            raise UserError(
                f"{where}: {{{'.'.join(self.words.fields[0])}}} in the command of a pool, whose children are started before any record",
                hint="they get each record on stdin; {{ and }} are braces",
            )

    def _opened_pool(
        self, where: str, size: int, protocol: PoolProtocol, timeout_s: float | None
    ) -> Resource[ProgramPool]:
        @asynccontextmanager
        async def opened() -> AsyncIterator[ProgramPool]:
            pool = ProgramPool(self._program, self._command, size, protocol, timeout_s=timeout_s)
            try:
                yield pool
            finally:
                await pool.close()

        return Resource(f"pool of {where}", opened)

    async def check_system(self) -> None:
        """Raises SandboxUnavailable if this system lacks something that the program's sandbox needs. Does nothing if
        the program has no sandbox.

        Also registers the folders to which the program may write. An earlier execution may have left symbolic links
        there that lead to other folders. Sandboxes refuse such links in registered folders.
        """
        sandbox = sandbox_of(self._command.trust)
        if sandbox is not None:
            await run_in_thread(check_available, sandbox, self._program)
            folders = [*sandbox.writable, *([self._command.working_dir] if self._command.working_dir else [])]
            await run_in_thread(remember_writable, [way_to(each).real for each in folders])

    def check_schema(self, schema: pa.Schema, where: str) -> None:
        """Raises UserError unless records with this schema have all fields that the command uses. `where` is the name
        of the agent, for the error message.
        """
        self.words.check_schema(schema, where)
        if self._resume is not None:
            self._resume.check_schema(schema, f"{where}: resume", known=[_SESSION])

    def function(self, name: str) -> Callable[[AgentContext], Any]:
        """Returns the function of an agent that is not durable; `name` becomes its name. Each call runs the program for
        one record, and yields its output as messages. If the app reads a record again after a restart, the program runs
        again for it. A run is a plain call of the tool `name`, whose arguments are those of a durable agent's effect
        (`durable_function`), so that rules and budgets judge it.
        """

        def running(run_id: RunId) -> Callable[[Sequence[str], str | None], Awaitable[ProgramOutput]]:
            async def made_of(argv: Sequence[str], stdin: str | None) -> ProgramOutput:
                return await self._run(argv, stdin, run_id)

            return made_of

        made = tool(effect="idempotent", name=name)(running(RunId("", "")))

        async def run(ctx: AgentContext) -> AsyncIterator[Message]:
            place = f"{ctx.topic}[{ctx.partition}]@{ctx.offset}"
            judged = replace(made, func=running(RunId(place, place)))
            output = await judged(self.words.of(ctx.message), self._input(ctx.message))
            for each in self._results(output, ctx.agent_id, place):
                yield each

        run.__name__ = run.__qualname__ = name
        return run

    def durable_function(
        self,
        name: str,
        effect: EffectName | EffectClass,
        in_doubt: InDoubt,
        *,
        retries: int = 0,
        backoff: Duration = 0,
        fails: bool = True,
    ) -> "Callable[[DurableContext], Any]":
        """Returns the function of a durable agent. It runs the program as one effect of the job. The arguments of the
        effect are the words of the command and the stdin.

        - `name`: the name of the function and of the effect.
        - `effect`: the effect class.
        - `in_doubt`: decides what happens if nobody knows whether the program has run to its end.
        - `retries`: the number of times that the program is run again after the effect has failed. These runs belong to
          the same attempt of the job, because a later attempt would only get the recorded error. If effects of the class
          may not be repeated, `retries` is ignored, and with `fails=True` it must be 0.
        - `backoff`: the time before the first repetition.
        - `fails`: True if an ExecutionError of the program makes the effect fail. With False, the effect succeeds and
          the error is its recorded result; then the program is not run again, and the function raises the error.

        Raises UserError if an option is not valid.
        """

        # what a person may give as the result of a run in doubt is in the annotation too (see `_output_of`)
        async def made_of(argv: Sequence[str], stdin: str | None, effect: Effect) -> ProgramOutput | list[str] | None:
            try:
                return await self._run(argv, stdin, RunId.of(effect))
            except ExecutionError as error:
                if fails:
                    raise
                return ProgramOutput(error=error.message)

        if not RULES[effect_class(effect)].repeatable:
            if retries and fails:
                raise UserError(
                    f'process_agent {name}: on_error="retry" of a program whose effect is {effect!r}',
                    hint='effect="idempotent" where it may be run again, else on_error="skip"',
                )
            retries = 0
        made = tool(effect=effect, in_doubt=in_doubt, retries=retries, backoff=backoff, name=name)(made_of)
        sessions, resumed = self._sessions(name, effect, in_doubt), self._resume

        async def run(ctx: "DurableContext") -> AsyncIterator[Message]:
            argv, stdin = self.words.of(ctx.message), self._input(ctx.message)
            if sessions is None or resumed is None:
                said = await ctx.call(made, argv, stdin)
            else:
                said = await sessions.output(ctx, argv, stdin, partial(_resumed, resumed, ctx.message))
            for each in self._results(self._output_of(said), ctx.agent_id, ctx.job_id):
                yield each

        run.__name__ = run.__qualname__ = name
        return run

    def _sessions(self, name: str, effect: EffectName | EffectClass, in_doubt: InDoubt) -> ProgramSessions | None:
        if self._resume is None:
            return None
        sessions = ProgramSessions(self._program, name, self._run, self._session, effect, in_doubt)
        self.resources.append(Resource(f"sessions of process_agent {name}", sessions.open))
        return sessions

    async def _run(
        self, argv: Sequence[str], stdin: str | None, run_id: RunId, heard: Heard | None = None
    ) -> ProgramOutput:
        with self._monitor.request(self._watched_as) as request:
            if self._pool is not None:
                return await self._pool().run(argv, stdin, run_id, request.by)
            heard = heard if self._live is None else self._live.of(run_id, heard)
            return await self._runs.run(argv, stdin, heard, request.by)

    def _output_of(self, said: Any) -> ProgramOutput:
        """Returns the output of the program from `said`, the recorded result of the effect. If nobody knew whether the
        program had run, a person may have entered this result: a whole output as an object, a list of lines, or null
        for no lines. Raises ExecutionError if the result has another form, or if the program has reported an error.
        """
        if not isinstance(said, dict):
            said = {"lines": [] if said is None else said}
        try:
            output = msgspec.convert(said, ProgramOutput)
        except msgspec.ValidationError as error:
            raise ExecutionError(
                f"{self._program}: what it was said to have given are no lines: {error}", hint='["one", "two"]'
            ) from error
        if output.error:
            raise ExecutionError(output.error)
        return output

    def _input(self, record: Any) -> str | None:
        return encode_json(record).decode() + "\n" if self._stdin else None

    def _results(self, output: ProgramOutput, agent_id: str, job: str) -> list[Message]:
        """Returns one message for each line of the output, and one more with the exit code if the agent has
        `exit_record=True`. Raises ExecutionError if the agent has `lines="json"` without `noise="skip"`, and a line is
        not JSON.
        """
        ours = (("process.agent", agent_id.encode()), ("process.job", job.encode()))
        made, skipped = [], 0
        for number, line in enumerate(output.lines, 1):
            if self._lines == "json" and not line.strip():
                continue
            try:
                value = self._value(line, number)
            except ExecutionError:
                if not self._skips:
                    raise
                skipped += 1
            else:
                made.append(Message(value, headers=(*ours, ("process.line", b"%d" % number))))
        if skipped:
            _log.warning("agent %s: %d of %d lines for %s are no JSON", agent_id, skipped, len(output.lines), job)
        if self._exit_record:
            last = (*ours, ("process.exit", b"%d" % output.code))
            value = {"exit": output.code, "lines": len(output.lines), "cpu_seconds": output.cpu_seconds}
            made.append(Message({**value, "skipped": skipped} if self._skips else value, headers=last))
        return made

    def _value(self, line: str, number: int) -> Any:
        if self._lines == "text":
            return line
        try:
            return decode_json(line.encode(), where=f"{self._program}: line {number}")
        except DataError as error:
            raise ExecutionError(f"{self._program}: line {number} is not JSON: {short_repr(line)}") from error


def _resumed(words: CommandTemplate, record: Any, session: str) -> list[str]:
    """Returns the command that continues the program's session with the id `session`. The fields of the template are
    filled from the record and that id.
    """
    return words.of({**(record if isinstance(record, Mapping) else {}), _SESSION: session})
