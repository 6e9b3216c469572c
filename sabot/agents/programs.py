"""Agents that are programs: a child of `sabot.process` for each record, whose lines are the results.

    record ─▶ the words of the command, filled ─▶ a child ─▶ its lines ─▶ results, when it has ended well
                                                   └─ it ends badly: an error of the agent, and no results
    record ─▶ a line to a child that lives on (`program_pool`) ─▶ its answer ─▶ results

In a durable agent the run of the program is one effect, and its lines are the result that the journal has.
"""

import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import PurePath
from string import Formatter
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
import pyarrow as pa

from sabot.agents.program_pool import PoolProtocol, ProgramPool
from sabot.agents.program_runs import ProgramOutput, ProgramRuns, RunId
from sabot.api.context import AgentContext, Message
from sabot.api.lifespan import Resource
from sabot.calls.options import checked_whole
from sabot.codecs.records import decode_json, encode_json
from sabot.config import Duration, is_whole, parse_seconds
from sabot.errors import DataError, UserError, short_repr
from sabot.journal.effects import RULES, effect_class
from sabot.llm.tools import Effect, InDoubt, tool
from sabot.process.client import Command
from sabot.process.errors import ExecutionError
from sabot.process.limits import ResourceLimits
from sabot.process.sandbox import Sandbox, TrustLevel, check_available, sandbox_of
from sabot.redaction import keep_settings
from sabot.threads import aside

if TYPE_CHECKING:
    from sabot.api.durable import DurableContext

__all__ = ["AgentCommand", "LineFormat"]

LineFormat = Literal["text", "json"]

_WORD_BYTES = (128 << 10) - 1  # the longest word that Linux gives a program (MAX_ARG_STRLEN)
_MOST_CHILDREN = 1000  # of a pool
_BRACES = "{field} is a field of the record, {place.city} one inside of it; {{ and }} are braces"
_SHELLS = {"sh", "ash", "bash", "dash", "ksh", "zsh"}


class _Word:
    """A word of a command: texts[0] fields[0] texts[1] … texts[n]. fields: paths into the record. may_be_option: of a value that is the
    beginning of the word, the program may be told that it is an option.
    """

    def __init__(self, template: str, where: str, may_be_option: bool) -> None:
        """Raises UserError for what is no template."""
        self._texts, self.fields = [""], list[tuple[str, ...]]()
        where = f"{where}: the word {short_repr(template)}"
        try:
            for text, field, form, conversion in Formatter().parse(template):
                self._texts[-1] += text
                if field is None:
                    continue
                names = tuple(field.split("."))
                if form or conversion or not all(names) or any("[" in each or each.isdigit() for each in names):
                    raise UserError(f"{where}: {{{field}}} names no field of a record", hint=_BRACES)
                self.fields.append(names)
                self._texts.append("")
        except ValueError as error:
            raise UserError(f"{where}: {error}", hint=_BRACES) from error
        self._checks_option = may_be_option and bool(self.fields) and not self._texts[0]

    def of(self, record: Any) -> str:
        """The word for this record. Raises DataError."""
        made = self._texts[0]
        for names, text in zip(self.fields, self._texts[1:], strict=True):
            value = _field(record, names)
            if self._checks_option and not made and isinstance(value, str) and value.startswith("-"):
                raise DataError(
                    f"field {'.'.join(names)!r} begins with '-', which the program would take for an option",
                    hint='"--" before it in the command, where the program knows that; or a text: "Task: {task}"; or stdin=True',
                )
            made += value if isinstance(value, str) else encode_json(value).decode()
            if wrong := _unfit(made):
                raise DataError(
                    f"field {'.'.join(names)!r} makes a word that {wrong}, which no program can be given",
                    hint="give the record on stdin: stdin=True",
                )
            made += text
        return made


class AgentCommand:
    """The program of an agent: `function` is what the agent calls, `argv` what it is called with. pool: of children that live on, open
    while the app runs; None: a child for each record.
    """

    def __init__(
        self,
        where: str,
        command: Sequence[str],
        *,
        stdin: bool = False,
        lines: LineFormat = "text",
        exit_record: bool = False,
        exit_codes: Collection[int] = (0,),
        environment: Mapping[str, str] | None = None,
        working_dir: Any = None,
        limits: ResourceLimits | None = None,
        trust: Sandbox | TrustLevel | str | None = None,
        timeout: Duration | None = None,
        pool: int | None = None,
        protocol: PoolProtocol | None = None,
    ) -> None:
        """where: names the agent in errors. The others as of `App.process_agent`. Raises UserError."""
        if lines not in get_args(LineFormat):
            raise UserError(f"{where}: lines={lines!r}", hint=f"one of {', '.join(map(repr, get_args(LineFormat)))}")
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
        keep_settings(self._command.environment)
        self._program = PurePath(command[0]).name
        ends = command.index("--") if "--" in command else len(command)
        self._words = [_Word(word, where, number < ends) for number, word in enumerate(command)]
        self._check(where, command)
        timeout_s = None if timeout is None else parse_seconds(timeout, name=f"{where}: timeout")
        if timeout_s == 0:
            raise UserError(f"{where}: timeout=0", hint='more than nothing ("30s"), or None for no limit')
        codes = frozenset(exit_codes)
        self._stdin, self._lines, self._exit_record = stdin or pool is not None, lines, exit_record
        self._runs = ProgramRuns(self._program, self._command, codes=codes, timeout_s=timeout_s)
        self.pool: Resource[ProgramPool] | None = None
        if pool is None and protocol is not None:
            raise UserError(f"{where}: protocol={protocol!r} is that of a pool", hint="pool=4, or leave it out")
        if pool is not None:
            self._check_pool(where, pool, protocol, {"exit_record": exit_record, "exit_codes": codes != {0}})
            self._lines = "json" if protocol == "json" else lines
            self.pool = self._resource(where, pool, protocol or "lines", timeout_s)

    def _check_pool(self, where: str, pool: int, protocol: Any, given: Mapping[str, bool]) -> None:
        checked_whole(where, "pool", pool, 1, _MOST_CHILDREN)
        if protocol not in (None, *get_args(PoolProtocol)):
            raise UserError(f"{where}: protocol={protocol!r}", hint=f"one of {', '.join(get_args(PoolProtocol))}")
        if wrong := [name for name, is_given in given.items() if is_given]:
            raise UserError(
                f"{where}: {wrong[0]}= with pool=, whose children do not end with a record", hint="leave it out"
            )
        if fields := [".".join(names) for word in self._words for names in word.fields]:
            raise UserError(
                f"{where}: {{{fields[0]}}} in the command of a pool, whose children are started before their records are there",
                hint="they get each record on stdin; {{ and }} are braces",
            )

    def _resource(
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
        """Raises SandboxUnavailable where this system does not have what its level of trust demands."""
        sandbox = sandbox_of(self._command.trust)
        if sandbox is not None:
            await aside(check_available, sandbox, self._program)

    def _check(self, where: str, command: Sequence[str]) -> None:
        if self._words[0].fields:
            raise UserError(
                f"{where}: the program {short_repr(command[0])} would be named by a record",
                hint="an agent for each program; its arguments may have fields",
            )
        if self._program not in _SHELLS:
            return
        for option, word in zip(command[1:], self._words[2:], strict=False):
            if re.fullmatch(r"-\w*c\w*", option) and word.fields:
                raise UserError(
                    f"{where}: a record would be a part of the script of {self._program}, which runs what it says",
                    hint=f"""command=["{self._program}", "-c", 'echo "$1"', "{self._program}", "{{field}}"]""",
                )

    def check_schema(self, schema: pa.Schema, where: str) -> None:
        """Raises UserError where a word names a field that no record of this schema has."""
        for names in (names for word in self._words for names in word.fields):
            if names[0] not in schema.names:
                raise UserError(
                    f"{where}: {{{'.'.join(names)}}} is no field of schema=", hint=f"it has {', '.join(schema.names)}"
                )

    def argv(self, record: Any) -> list[str]:
        """The words for this record. Raises DataError for one that does not have what they need."""
        return [word.of(record) for word in self._words]

    def function(self, name: str) -> Callable[[AgentContext], Any]:
        """Of an agent that is not durable: the program is run each time that the record is read."""

        async def run(ctx: AgentContext) -> AsyncIterator[Message]:
            place = f"{ctx.topic}[{ctx.partition}]@{ctx.offset}"
            output = await self._run(self.argv(ctx.message), self._input(ctx.message), RunId(place, place))
            for each in self._results(output, ctx.agent_id, place):
                yield each

        run.__name__ = run.__qualname__ = name
        return run

    def durable_function(
        self, name: str, effect: str, in_doubt: InDoubt, *, retries: int = 0, backoff: Duration = 0, fails: bool = True
    ) -> "Callable[[DurableContext], Any]":
        """Of a durable agent: the program is an effect of this class, whose arguments are the words and what it gets on stdin. retries: of
        that effect, as what the journal has is not asked again; fails: also where the program itself says that it has failed. Raises
        UserError.
        """

        async def made_of(argv: Sequence[str], stdin: str | None, effect: Effect) -> ProgramOutput:
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

        async def run(ctx: "DurableContext") -> AsyncIterator[Message]:
            said = await ctx.call(made, self.argv(ctx.message), self._input(ctx.message))
            for each in self._results(self._output_of(said), ctx.agent_id, ctx.job_id):
                yield each

        run.__name__ = run.__qualname__ = name
        return run

    async def _run(self, argv: Sequence[str], stdin: str | None, run_id: RunId) -> ProgramOutput:
        runs = self._runs if self.pool is None else self.pool()
        return await runs.run(argv, stdin, run_id)

    def _output_of(self, said: Any) -> ProgramOutput:
        """What the journal has. After a doubt it is what a person has given: the output as here, or its lines alone, or nothing. Raises
        ExecutionError, also where the program has said that it failed.
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
        """Raises ExecutionError for a line that is not JSON, where it should be."""
        ours = (("process.agent", agent_id.encode()), ("process.job", job.encode()))
        made = [
            Message(self._value(line, number), headers=(*ours, ("process.line", b"%d" % number)))
            for number, line in enumerate(output.lines, 1)
            if self._lines == "text" or line.strip()
        ]
        if self._exit_record:
            last = (*ours, ("process.exit", b"%d" % output.code))
            value = {"exit": output.code, "lines": len(output.lines), "cpu_seconds": output.cpu_seconds}
            made.append(Message(value, headers=last))
        return made

    def _value(self, line: str, number: int) -> Any:
        if self._lines == "text":
            return line
        try:
            return decode_json(line.encode(), where=f"{self._program}: line {number}")
        except DataError as error:
            raise ExecutionError(f"{self._program}: line {number} is not JSON: {short_repr(line)}") from error


def _unfit(word: str) -> str:
    """Why the system refuses the word; "": it does not."""
    try:
        size = len(word.encode())
    except UnicodeEncodeError:
        return "has half a surrogate pair"
    return "has a null character" if "\0" in word else f"has {size:,} bytes" if size > _WORD_BYTES else ""


def _field(record: Any, names: tuple[str, ...]) -> Any:
    value = record
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    if value is None:
        raise DataError(f"field {'.'.join(names)!r}, which the command has, is missing or null")
    return value
