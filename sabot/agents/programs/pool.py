"""Runs a program for many records in a pool of child processes. A child gets the records on stdin, each as a line of
JSON, and works on one record at a time.

   protocol "lines"    to the child      the record
                       from the child    its answer: the next line that it writes
   protocol "json"     to the child      {"id": …, "record": …}
                       from the child    {"id": …, "line": …}, any number, then {"id": …, "result": …} or {"id": …, "error": {"message": …}}

If a child ends while it works on a record, nobody knows how far it came, so the record fails with CommunicationError.
The pool itself ends a child that does not answer in time or that writes too much. The other children go on, and the
pool starts another child, after a wait that grows with each failure.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Literal

import msgspec

from sabot.agents.programs.runs import (
    GRACE_SECONDS,
    MAX_LINES,
    MAX_OUTPUT_BYTES,
    Began,
    ProgramOutput,
    RunId,
    last_words,
    tail_of,
)
from sabot.base.surrogates import has_lone_halves, whole_json
from sabot.base.threads import run_to_end
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import encode_json
from sabot.errors import short_repr
from sabot.process.client import Child
from sabot.process.command import Command
from sabot.process.errors import CommunicationError, ExecutionError
from sabot.process.instance import Instance
from sabot.process.limits import ResourceLimits
from sabot.process.phases import Phase
from sabot.process.pool import Pool, end_member

PoolProtocol = Literal["lines", "json"]

_log = logging.getLogger("sabot.agents.program_pool")


class _AnswerLine(msgspec.Struct):
    """A line of JSON that a child process of a ProgramPool writes in the protocol "json". A field that is missing in
    the line is UNSET; it is not None, because a field may have the value null.

    - `id`: the key of the record to which the line belongs.
    - `line`: one line of the answer.
    - `result`: the last line of the answer.
    - `error`: the error because of which the record has failed.
    """

    id: Any = None
    line: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: Any = msgspec.UNSET


_decoder = msgspec.json.Decoder(_AnswerLine)


class ProgramPool:
    """A pool of at most `size` child processes that run the same program. Each of them handles many records, one at a
    time. A pool belongs to the event loop on which `run` is called. `close` ends the processes.
    """

    def __init__(
        self,
        program: str,
        command: Command,
        size: int,
        protocol: PoolProtocol,
        *,
        timeout_s: float | None,
        first_wait_s: float = 0.1,
    ) -> None:
        """Makes a pool, without starting a process.

        - `program`: the name of the program, for error messages.
        - `command`: the command of each child process. Its limits of time and output apply to each record.
        - `size`: the most child processes.
        - `protocol`: "lines" if the answer to a record is one line of any text; "json" if it is several lines of JSON
          with the id of the record.
        - `timeout_s`: the seconds in which a process has to answer a record; None sets no limit.
        - `first_wait_s`: if a process ends before it has answered any record, the pool waits this many seconds before
          it starts another one. Each further such failure doubles the wait.
        """
        limits = command.limits or ResourceLimits.none()
        times = [each for each in (timeout_s, limits.max_task_duration) if each is not None]
        self._program, self._protocol = program, protocol
        self._timeout_s = min(times, default=None)
        self._most = min(MAX_OUTPUT_BYTES, limits.max_output_bytes or MAX_OUTPUT_BYTES)
        own = limits.without("max_task_duration", "max_output_bytes")
        self._command = replace(command, stdin="pipe", limits=own, output_bytes=self._most + 1, lossless=True)
        self._pool: Pool[_PooledInstance] = Pool(
            f"the pool of {program}",
            start=self._start,
            missing=lambda: min(self._pool.waiting, size - len(self._pool.members)),
            ended=self._ended,
            end=_PooledInstance.end,
            given=lambda instance, is_given: instance.instance.work(begins=is_given),
            can_work=self._can_work,
            tells_errors=True,
            first_wait_s=first_wait_s,
            clock=SYSTEM_CLOCK,
            sleep=asyncio.sleep,
        )
        self._pool.running = True

    async def close(self) -> None:
        """Ends the child processes. Calls of `run` that wait for a free process raise ExecutionError."""
        await self._pool.close(lambda: ExecutionError(f"{self._program}: its pool was closed"))

    async def run(
        self, argv: Sequence[str], stdin: str | None, run_id: RunId, began: Began | None = None
    ) -> ProgramOutput:
        """Sends a record to a free child process, waits for the answer, and returns it.

        - `argv`: the command for processes that the pool starts from now on.
        - `stdin`: the record as a line of JSON.
        - `run_id`: the id of the record in the protocol "json".
        - `began`: a function that is called with the process before the record is sent.

        The time limit of the pool begins when a process is free; the wait for a free process has no limit. Raises
        ExecutionError if the answer is an error, or if the pool is closed before a process is free. Raises SpawnFailed
        if no process can be started, and CommunicationError if the process ends before it has answered. The pool ends a
        process that does not answer in time or writes too much; this is a CommunicationError too.
        """
        assert stdin is not None
        self._command = replace(self._command, argv=argv)
        async with self._instance() as instance:
            if began is not None:
                began(instance.child)
            before = instance.stdout.total_bytes
            try:
                async with asyncio.timeout(self._timeout_s):
                    lines = await self._answered(instance, stdin, run_id, before)
            except TimeoutError:
                why = f"has not answered in {self._timeout_s:g} s, and was ended"
                raise await self._lost(instance, why) from None
            except ExecutionError:
                self._has_answered(instance)
                raise
            self._has_answered(instance)
        return ProgramOutput(lines)

    def _has_answered(self, instance: "_PooledInstance") -> None:
        self._pool.was_of_use()
        instance.has_answered = True
        instance.instance.work(begins=False)

    @asynccontextmanager
    async def _instance(self) -> "AsyncIterator[_PooledInstance]":
        """Yields a free child process to the `with` block, and waits for one if there is none. If the process has not
        answered its record at the end of the block, it is ended; otherwise it is free for the next record.
        """
        instance = self._pool.take() or await self._pool.wait()
        try:
            yield instance
        finally:
            if instance.instance.phase is Phase.IDLE and instance in self._pool.members:
                self._pool.offer(instance)
            else:
                await run_to_end(instance.end())

    def _can_work(self, instance: "_PooledInstance") -> bool:
        """Returns True if a free child process can handle another record. Otherwise logs the reason
        and returns False.
        """
        why = instance.unusable(self._protocol)
        if why:
            _log.warning("%s (pid %d) %s: another one is started", self._program, instance.child.pid, why)
        return not why

    def _ended(self, instance: "_PooledInstance", child: Child, was_free: bool) -> str:
        if was_free:  # else the task that uses the child ends it, and closes its streams
            self._pool.tasks.begin(instance.end())
        return f"(pid {child.pid}) has ended: {child.how}"

    async def _start(self) -> "tuple[_PooledInstance, Child]":
        instance = Instance(self._command, name=self._program)
        child = await instance.start()
        return _PooledInstance(instance, child), child

    async def _answered(self, instance: "_PooledInstance", stdin: str, run_id: RunId, began: int) -> list[str]:
        line = stdin.encode()
        if self._protocol == "json":
            line = b'{"id": %s, "record": %s}\n' % (encode_json(run_id.key), line.rstrip(b"\n"))
        assert instance.child.stdin is not None
        try:
            instance.child.stdin.write(line)
            await instance.child.stdin.drain()
        except CommunicationError:  # the child reads no more, whether it has ended or not
            raise await self._lost(instance, "") from None
        found: list[str] = []
        for count in range(1, MAX_LINES + 2):
            try:
                said = await anext(instance.lines, None)
            except CommunicationError:  # the line is longer than the limit
                break
            if said is None or instance.stdout.is_cut_off:  # a line without its end may be the half of an answer
                raise await self._lost(instance, "")
            if instance.stdout.total_bytes - began > self._most or count > MAX_LINES:
                break
            if self._protocol == "lines":
                return [said.decode(errors="replace")]
            if self._taken(said, run_id, found):
                return found
        why = f"was ended, because it wrote more than {self._most:,} bytes, or {MAX_LINES:,} lines"
        raise await self._lost(instance, why)

    def _taken(self, said: bytes, run_id: RunId, found: list[str]) -> bool:
        """Handles one line that a child process has written in the protocol "json".

        - `said`: the line. A line that is not for this record is ignored.
        - `run_id`: the identity of the record.
        - `found`: the list of output lines, to which this method appends the content of the line.

        Returns True if the line is the end of the answer. Raises ExecutionError if it reports an error.
        """
        try:
            message = _decoder.decode(whole_json(said) if has_lone_halves(said) else said)
        except msgspec.DecodeError:
            return False
        if message.id != run_id.key:
            return False
        if message.error is not msgspec.UNSET:
            error = message.error
            words = error.get("message", error) if isinstance(error, Mapping) else error
            raise ExecutionError(f"{self._program}: {words if isinstance(words, str) else short_repr(words)}")
        for each in (message.line, message.result):
            if isinstance(each, msgspec.Raw) and bytes(each) != b"null":
                found.append(bytes(each).decode())
        return message.result is not msgspec.UNSET

    async def _lost(self, instance: "_PooledInstance", why: str) -> CommunicationError:
        """Ends a child process that works on a record, and returns the error for that record. `why` is the reason, as a
        part of the error message. With "" the message describes how the process has ended by itself, for example its
        exit code.
        """
        await instance.end()
        try:
            why = why or (await instance.child.wait()).how
        except CommunicationError as error:  # the supervisor was killed
            why = why or f"was ended: {error.message}"
        return CommunicationError(
            f"{self._program} {why}, with a record in hand: nobody knows how far it came{tail_of(instance.words)}"
        )


class _PooledInstance:
    """A child process of a ProgramPool, together with the Instance that controls it, its output lines (`lines`) and the
    end of its stderr (`words`).
    """

    def __init__(self, instance: Instance, child: Child) -> None:
        assert child.stdout is not None
        self.instance, self.child, self.stdout = instance, child, child.stdout
        self.has_answered = False
        self.lines = self.stdout.lines()
        self.words = last_words(self.child)

    def unusable(self, protocol: PoolProtocol) -> str:
        """Returns the reason why this free child process cannot handle another record, as a part of a message. Returns
        "" if it can.
        """
        if not self.has_answered:
            return ""
        unread = self.stdout.read_nowait()
        if self.child.is_over or self.stdout.at_end or unread == b"":
            return "has ended"
        if unread and protocol == "lines":
            return f"has written {short_repr(unread)}, which answers no record"
        return ""

    async def end(self) -> None:
        """Ends the child process with all its descendants, and closes its streams."""
        await end_member(self.instance, GRACE_SECONDS, "its pool has ended it")
        await self.words.over(close=self.child.status is None)  # the supervisor was killed, and the child with it
        self.stdout.close()
        await self.lines.aclose()
