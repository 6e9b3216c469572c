"""Agents that are programs: a child of `sabot.process` for each record, whose lines are the results.

    record ─▶ the words of the command, filled ─▶ a child ─▶ its lines ─▶ results, when it has ended well
                                                   └─ it ends badly: an error of the agent, and no results

In a durable agent the run of the program is one effect, and its lines are the result that the journal has.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePath
from string import Formatter
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
import pyarrow as pa

from sabot.api.context import AgentContext, Message
from sabot.codecs.records import decode_json, encode_json
from sabot.config import Duration, is_whole, parse_seconds
from sabot.errors import DataError, UserError, short_repr
from sabot.journal.effects import RULES
from sabot.llm.tools import InDoubt, tool
from sabot.process.client import Child, Command, Supervisor
from sabot.process.errors import CommunicationError, ExecutionError
from sabot.process.limits import ResourceLimits
from sabot.redaction import keep_settings

if TYPE_CHECKING:
    from sabot.api.durable import DurableContext

__all__ = ["MAX_LINES", "MAX_OUTPUT_BYTES", "AgentCommand", "LineFormat", "ProgramOutput"]

LineFormat = Literal["text", "json"]

MAX_OUTPUT_BYTES = 10 << 20
"""Of stdout, for one record. The lines are kept until the program has ended well, and a journal is not for files."""

MAX_LINES = 100_000
"""As many results one record may have."""

_GRACE_SECONDS = 1.0
_WORD_BYTES = (128 << 10) - 1  # the longest word that Linux gives a program (MAX_ARG_STRLEN)
_LAST_LINES = 10  # of stderr, in an error
_LAST_BYTES = 2000
_BRACES = "{field} is a field of the record, {place.city} one inside of it; {{ and }} are braces"
_SHELLS = {"sh", "ash", "bash", "dash", "ksh", "zsh"}


class ProgramOutput(msgspec.Struct, frozen=True):
    """What a program has said, and how it ended."""

    lines: Sequence[str] = ()
    code: int = 0
    cpu_seconds: float = 0.0


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
    """The program of an agent: `function` is what the agent calls, `argv` what it is called with."""

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
        timeout: Duration | None = None,
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
            )
        except UserError as error:
            raise UserError(f"{where}: {error.message}", hint=error.hint) from error
        keep_settings(self._command.environment)
        self._program = PurePath(command[0]).name
        ends = command.index("--") if "--" in command else len(command)
        self._words = [_Word(word, where, number < ends) for number, word in enumerate(command)]
        self._check(where, command)
        self._stdin, self._lines, self._exit_record = stdin, lines, exit_record
        self._codes = frozenset(exit_codes)
        self._timeout_s = None if timeout is None else parse_seconds(timeout, name=f"{where}: timeout")
        if self._timeout_s == 0:
            raise UserError(f"{where}: timeout=0", hint='more than nothing ("30s"), or None for no limit')

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
            output = await self.run(self.argv(ctx.message), self._input(ctx.message))
            place = f"{ctx.topic}[{ctx.partition}]@{ctx.offset}"
            for each in self._results(output, ctx.agent_id, place):
                yield each

        run.__name__ = run.__qualname__ = name
        return run

    def durable_function(
        self, name: str, effect: str, in_doubt: InDoubt, *, retries: int, backoff: Duration
    ) -> "Callable[[DurableContext], Any]":
        """Of a durable agent: the program is an effect of this class, whose arguments are the words and what it gets on stdin. retries: of
        that effect, as what the journal has is not asked again. Raises UserError.
        """
        made = tool(effect=effect, in_doubt=in_doubt, retries=retries, backoff=backoff, name=name)(self.run)
        if retries and not RULES[made.effect].repeatable:
            raise UserError(
                f'process_agent {name}: on_error="retry" of a program whose effect is {str(made.effect)!r}',
                hint='effect="idempotent" where it may be run again, else on_error="skip"',
            )

        async def run(ctx: "DurableContext") -> AsyncIterator[Message]:
            said = await ctx.call(made, self.argv(ctx.message), self._input(ctx.message))
            for each in self._results(self._output_of(said), ctx.agent_id, ctx.job_id):
                yield each

        run.__name__ = run.__qualname__ = name
        return run

    def _output_of(self, said: Any) -> ProgramOutput:
        """What the journal has. After a doubt it is what a person has given: the output as here, or its lines alone, or nothing."""
        if not isinstance(said, dict):
            said = {"lines": [] if said is None else said}
        try:
            return msgspec.convert(said, ProgramOutput)
        except msgspec.ValidationError as error:
            raise ExecutionError(
                f"{self._program}: what it was said to have given are no lines: {error}", hint='["one", "two"]'
            ) from error

    def _input(self, record: Any) -> str | None:
        return encode_json(record).decode() + "\n" if self._stdin else None

    async def run(self, argv: Sequence[str], stdin: str | None) -> ProgramOutput:
        """Runs the program to its end. Raises SpawnFailed, ExecutionError where it ends badly, CommunicationError where the supervisor was
        killed, and its children with it. It never outlives this call.
        """
        child = await (await Supervisor.running()).spawn(replace(self._command, argv=argv))
        try:
            async with asyncio.timeout(self._timeout_s):
                output = await self._output(child, stdin)
        except TimeoutError:
            await child.stop(_GRACE_SECONDS)
            why = f"has not ended in {self._timeout_s:g} s, and was ended"
            raise ExecutionError(f"{self._program} {why}{await _last_words(child)}") from None
        finally:
            if not child.is_over:
                with suppress(CommunicationError):
                    await child.stop(_GRACE_SECONDS)
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
        if status.limit is not None:
            why = f"was ended, because it had more than its {status.limit}"
        elif too_much:
            why = f"was ended, because it wrote more than {MAX_OUTPUT_BYTES >> 20} MB, or {MAX_LINES:,} lines"
        elif status.signal is not None:
            why = f"was ended by signal {status.signal}"
        elif status.code not in self._codes:
            why = f"ended with {status.code}"
        elif child.stdout.dropped_bytes:
            why = f"has written {child.stdout.dropped_bytes:,} bytes that were not read in time"
        else:
            lines = said.decode(errors="replace").split("\n")
            return ProgramOutput(lines if lines[-1] else lines[:-1], status.code or 0, status.cpu_seconds)
        raise ExecutionError(f"{self._program} {why}{await _last_words(child)}")

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


async def _last_words(child: Child) -> str:
    """The last lines of stderr. An error hides the secrets in them."""
    assert child.stderr is not None
    said = b""
    while piece := await child.stderr.read():
        said = (said + piece)[-_LAST_BYTES:]
    last = "\n".join(said.decode(errors="replace").strip().splitlines()[-_LAST_LINES:])
    return f":\n{last}" if last else ""
