"""Programs that live on: each gets one record after the other on stdin, a line of JSON each, and has at most one in hand.

    protocol "lines"    to it    the record
                        from it  its answer, one line: the next one that it writes
    protocol "json"     to it    {"id": …, "record": …}
                        from it  {"id": …, "line": …}, any number, then {"id": …, "result": …} or {"id": …, "error": {"message": …}}

A child that ends with a record in hand, or is ended because it does not answer in time or says too much, leaves nobody to know how far it
came: `CommunicationError`. The others are not touched, and another child takes its place, later each time.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Literal

import msgspec

from sabot.agents.program_runs import (
    GRACE_SECONDS,
    MAX_LINES,
    MAX_OUTPUT_BYTES,
    Began,
    ErrorTail,
    ProgramOutput,
    RunId,
)
from sabot.backoff import Backoff
from sabot.codecs.records import encode_json
from sabot.errors import short_repr
from sabot.process.client import Child, Supervisor
from sabot.process.command import Command
from sabot.process.errors import CommunicationError, ExecutionError
from sabot.process.limits import ResourceLimits
from sabot.threads import run_to_end

PoolProtocol = Literal["lines", "json"]

_BACKOFF = Backoff(0.1, 30.0)  # after children that ended one after the other, before any of them has answered

_log = logging.getLogger(__name__)


class _AnswerLine(msgspec.Struct):
    """A line of the protocol "json". What is not there is UNSET; null is a value."""

    id: Any = None
    line: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: Any = msgspec.UNSET


_decoder = msgspec.json.Decoder(_AnswerLine)


class ProgramPool:
    """At most `size` children of one command. They belong to the event loop that `run` is called on, and end with `close`."""

    def __init__(
        self,
        program: str,
        command: Command,
        size: int,
        protocol: PoolProtocol,
        *,
        timeout_s: float | None,
        backoff: Backoff = _BACKOFF,
    ) -> None:
        """program: its name, in errors. command: of a child; of its limits time and output are those of a record. timeout_s: so long a
        child may take for one.
        """
        limits = command.limits or ResourceLimits.none()
        times = [each for each in (timeout_s, limits.max_task_duration) if each is not None]
        self._program, self._protocol, self._backoff = program, protocol, backoff
        self._timeout_s = min(times, default=None)
        self._most = min(MAX_OUTPUT_BYTES, limits.max_output_bytes or MAX_OUTPUT_BYTES)
        own = limits.without("max_task_duration", "max_output_bytes")
        self._command = replace(command, stdin="pipe", limits=own, output_bytes=self._most + 1, lossless=True)
        self._slots = asyncio.Semaphore(size)
        self._idle: list[_PooledInstance] = []
        self._all: set[_PooledInstance] = set()
        self._ended = 0  # children, since one has answered
        self._not_before = 0.0  # of the loop's clock: then the next child is started

    async def close(self) -> None:
        """Ends its children."""
        await asyncio.gather(*(each.end() for each in list(self._all)))

    async def run(
        self, argv: Sequence[str], stdin: str | None, run_id: RunId, began: Began | None = None
    ) -> ProgramOutput:
        """Gives the record to a child that is free, and waits for its answer. stdin: the record, as a line of JSON.

        Raises ExecutionError for an answer that says that it has failed; SpawnFailed; CommunicationError where the child has ended with the
        record in hand, or was ended because of it.
        """
        assert stdin is not None
        async with self._slots, self._instance(argv) as instance:
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
        self._ended = 0
        instance.is_free = True

    @asynccontextmanager
    async def _instance(self, argv: Sequence[str]) -> "AsyncIterator[_PooledInstance]":
        """A child that has no record in hand. If it still has one afterwards, it is ended."""
        while self._idle:
            instance = self._idle.pop()
            if not (why := instance.unusable(self._protocol)):
                break
            _log.warning("%s (pid %d) %s: another one is started", self._program, instance.child.pid, why)
            await run_to_end(self._gone(instance))
        else:
            instance = await self._started(argv)
        instance.is_free = False
        try:
            yield instance
        finally:
            if instance.is_free:
                self._idle.append(instance)
            else:
                await run_to_end(self._gone(instance))

    async def _started(self, argv: Sequence[str]) -> "_PooledInstance":
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._not_before - loop.time()))
        try:
            child = await (await Supervisor.running()).spawn(replace(self._command, argv=argv))
        except BaseException:
            self._count(loop)
            raise
        instance = _PooledInstance(child)
        self._all.add(instance)
        return instance

    async def _gone(self, instance: "_PooledInstance") -> None:
        if instance in self._all:
            self._all.discard(instance)
            self._count(asyncio.get_running_loop())
            await instance.end()

    def _count(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ended += 1
        self._not_before = loop.time() + self._backoff.wait_s(self._ended)

    async def _answered(self, instance: "_PooledInstance", stdin: str, run_id: RunId, began: int) -> list[str]:
        line = stdin.encode()
        if self._protocol == "json":
            line = b'{"id": %s, "record": %s}\n' % (encode_json(run_id.key), line.rstrip(b"\n"))
        assert instance.child.stdin is not None
        try:
            instance.child.stdin.write(line)
            await instance.child.stdin.drain()
        except CommunicationError:  # it does not read any more, whether it has ended or not
            raise await self._lost(instance, "") from None
        found: list[str] = []
        for count in range(1, MAX_LINES + 2):
            try:
                said = await anext(instance.lines, None)
            except CommunicationError:  # a line that does not end
                break
            if said is None:
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
        """Whether it is the end of the answer. What is no answer to this record is passed over. Raises ExecutionError."""
        try:
            message = _decoder.decode(said)
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
        """The child has ended, or is ended now, and had a record in hand. why: "": as its status says."""
        try:
            await instance.end()
            why = why or (await instance.child.wait()).how
        except CommunicationError as error:  # the supervisor was killed
            why = why or f"was ended: {error.message}"
        return CommunicationError(
            f"{self._program} {why}, with a record in hand: nobody knows how far it came{instance.tail}"
        )


class _PooledInstance:
    """A child of a pool, with what it says. is_free: it has no record in hand."""

    def __init__(self, child: Child) -> None:
        assert child.stdout is not None
        self.child, self.stdout, self.is_free = child, child.stdout, True
        self.lines = child.stdout.lines()
        self.tail = ErrorTail(child)

    def unusable(self, protocol: PoolProtocol) -> str:
        """Why it can be given no record; "": it can."""
        unread = self.stdout.read_nowait()
        if self.child.is_over or self.stdout.at_end or unread == b"":
            return "has ended"
        if unread and protocol == "lines":
            return f"has written {short_repr(unread)}, which answers no record"
        return ""

    async def end(self) -> None:
        """Ends it and all that it has started."""
        try:
            await self.child.stop(GRACE_SECONDS)
            await self.tail.over()
        except CommunicationError:  # the supervisor was killed, and the child with it
            await self.tail.over(close=True)
        self.stdout.close()
        await self.lines.aclose()
