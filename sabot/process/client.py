"""The worker's side of its supervisor. A worker has one supervisor for all its event loops; the first spawn starts it."""

import asyncio
import atexit
import itertools
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sabot.base.checks import is_number
from sabot.base.config import Duration, parse_seconds
from sabot.base.disk import warn_of_open_folder
from sabot.base.present_job import refuse_in_job
from sabot.base.threads import call_on_loop, run_in_thread, run_to_end, wait_done
from sabot.errors import UserError, short_repr
from sabot.process.cgroups import ControlGroups
from sabot.process.command import Command, confined_command, spawn_failure, spawn_request
from sabot.process.errors import AgentError, CommunicationError, IoError
from sabot.process.lease import end_what_is_left
from sabot.process.limits import ResourceLimits
from sabot.process.sandbox.levels import BOOT
from sabot.process.streams import IN_A_STEP, ChildInput, ChildOutput
from sabot.process.supervisor import cut_frames, framed
from sabot.process.user_folder import user_folder

_STOP_SECONDS = 20.0
_GONE_SECONDS = 5.0
_ANSWER_SECONDS = 30.0  # for the supervisor to say whether a program has begun, what it uses, or that it has ended
_MOST_UNSENT = 100_000  # requests that a supervisor has not taken


@dataclass(frozen=True)
class ExitStatus:
    """The end of a program: its exit code, or the signal that ended it.

    - `code`: the exit code; None if a signal has ended the program. `signal`: the number of this signal; None if the
      program has an exit code.
    - `cpu_seconds`: the CPU time of the program and of its descendants that were reaped.
    - `limit`: the name of the field of ResourceLimits, such as `max_memory_bytes`, if the program was ended because
      it exceeded this limit; else None.
    """

    code: int | None
    signal: int | None
    cpu_seconds: float = 0.0
    limit: str | None = None

    @property
    def success(self) -> bool:
        """True if the program ended by itself with exit code 0."""
        return self.code == 0

    @property
    def how(self) -> str:
        """The end of the program as the words that follow its name in a message, such as `ended with 3`."""
        if self.limit is not None:
            return f"was ended, because it had more than its {self.limit}"
        return f"ended with {self.code}" if self.signal is None else f"was ended by signal {self.signal}"


@dataclass(frozen=True)
class ProcessUsage:
    """The usage of a child and all its descendants.

    - `processes`: the number of processes now. `memory_bytes`: their resident memory now.
    - `cpu_seconds`: the CPU time since the start of the child.
    """

    processes: int
    memory_bytes: int
    cpu_seconds: float


class Child:
    """A program that was started, with all its descendants. Its streams may be used only in the event loop that
    spawned it; all other methods may be called from any loop.

    - `pid`: the program's process, which leads a session of its own. `started_at`: the start of the program, in
      seconds since 1970.
    - `stdin`, `stdout`, `stderr`: the streams; None if the command has no pipe for the stream.
    - `output_bytes`: the number of bytes that the program has written to stdout and stderr.
    - `confined_by`: the names of the protections that the sandbox of the program uses, out of
      `sabot.process.sandbox.levels.MEANS`. It is empty without a sandbox.
    - `paused`: True if somebody has stopped the program's process (SIGSTOP).
    """

    def __init__(
        self,
        supervisor: "Supervisor",
        number: int,
        command: Command,
        streams: "Sequence[ChildInput | ChildOutput | None]",
    ) -> None:
        self._supervisor = supervisor
        self._number = number
        self._ended: Future[ExitStatus] = Future()
        self._loop = asyncio.get_running_loop()
        self._command = command  # whose secrets are known as long as somebody has the child
        self.argv = tuple(command.argv)
        self.stdin: ChildInput | None
        self.stdout: ChildOutput | None
        self.stderr: ChildOutput | None
        self.stdin, self.stdout, self.stderr = streams  # type: ignore[assignment]
        for each in (self.stdout, self.stderr):
            if each is not None:
                each.wrote = self._wrote
        self._limits = command.limits or ResourceLimits.none()
        self.output_bytes = 0
        self.confined_by: frozenset[str] = frozenset()
        self.pid = 0
        self.started_at = 0.0
        self.paused = False

    def __repr__(self) -> str:
        return f"<Child {self.argv[0]!r} pid={self.pid}{'' if self.status is None else f' {self.status}'}>"

    @property
    def status(self) -> ExitStatus | None:
        """How the program ended. None as long as the program or a descendant runs, and None if the supervisor was
        killed.
        """
        return self._ended.result() if self._ended.done() and self._ended.exception() is None else None

    @property
    def how(self) -> str:
        """The end of a child that has ended, as a sentence such as `it ended with 3`."""
        return "its supervisor was killed" if self.status is None else f"it {self.status.how}"

    @property
    def is_over(self) -> bool:
        """True if the child has ended, or if its supervisor has ended."""
        return self._ended.done()

    @property
    def trouble(self) -> str:
        """The reason why the child cannot work: its process has ended, or somebody has stopped it (SIGSTOP). It is ""
        if the child can work.
        """
        if self.is_over:
            return "its process has ended"
        return f"its process {self.pid} is stopped (SIGSTOP)" if self.paused else ""

    async def wait(self) -> ExitStatus:
        """Waits until the program and all its descendants have ended, and returns how the program ended. When the
        program ends, the supervisor ends the descendants that still run. The output can still be read after this
        call. Raises CommunicationError if the supervisor was killed.
        """
        await wait_done(self._ended)
        return self._ended.result()

    def signal(self, number: int) -> None:
        """Sends a signal to the process group of the program, as a terminal does. Does nothing if the program has ended. Raises UserError
        for a number that is no signal of this system.
        """
        if number and number not in signal.valid_signals():
            raise UserError(f"{self.argv[0]}: signal({short_repr(number)})", hint="a signal of the module signal")
        self._ask("signal", signal=int(number))

    def pause(self) -> None:
        """Stops all processes of the child (SIGSTOP) until `resume` is called."""
        self._ask("pause")

    def resume(self) -> None:
        """Continues processes that were stopped (SIGCONT)."""
        self._ask("resume")

    def hold_cpu(self, percent: float | None) -> None:
        """Limits the CPU of the child to `percent` of a core from now on. If the command has a lower limit, that
        limit applies instead. None removes the limit that an earlier call has set; the limit of the command still
        applies. Raises UserError for a value that is not a finite number above 0.
        """
        if percent is not None and not (is_number(percent) and 0 < percent < math.inf):
            hint = "a percentage of one core, above 0; pause() stops the child"
            raise UserError(f"{self.argv[0]}: hold_cpu({short_repr(percent)})", hint=hint)
        both = [each for each in (percent, self._limits.cpu_limit_percent) if each is not None]
        self._ask("cpu", percent=min(both, default=None))

    def kill(self) -> None:
        """Ends the program and all its descendants now (SIGKILL). `wait` returns when they have ended."""
        self._ask("stop", grace=0.0)

    def end_after(self, seconds: Duration | None) -> None:
        """Replaces the time limit of the child, which was the `max_task_duration` of its command. The child is now
        ended `seconds` from this call; with None it has no time limit any more. Raises UserError if `seconds` is not a
        valid duration.
        """
        self._ask("time", seconds=None if seconds is None else parse_seconds(seconds, name="end_after: seconds"))

    async def stop(self, grace_seconds: Duration = 5.0) -> ExitStatus:
        """Ends the program and all its descendants: closes stdin, sends SIGTERM, and sends SIGKILL to those that
        still run `grace_seconds` later. Returns the end of the program.

        Raises CommunicationError if the supervisor was killed, or has not reported the end 30 s after SIGKILL. Raises
        UserError if `grace_seconds` is not a valid duration; the program then still runs.
        """
        grace_s = parse_seconds(grace_seconds, name="stop: grace_seconds")
        if not self.is_over:
            if self.stdin is not None:
                self.stdin.close()
            self._ask("stop", grace=grace_s)
        try:
            async with asyncio.timeout(grace_s + _ANSWER_SECONDS):
                return await self.wait()
        except TimeoutError:
            raise self._supervisor.silent(f"{self.argv[0]} (pid {self.pid}) is to end") from None

    async def usage(self) -> ProcessUsage:
        """Returns the usage at this moment. For a child that has ended, the number of processes and the memory are 0.
        Raises CommunicationError if the supervisor has ended, or has not answered in 30 s.
        """
        if self.is_over:
            status = self.status
            return ProcessUsage(0, 0, 0.0 if status is None else status.cpu_seconds)
        return await self._supervisor.usage(self._number)

    def _wrote(self, count: int) -> None:
        """Counts bytes of output, and ends the child if they exceed its limit."""
        before, self.output_bytes = self.output_bytes, self.output_bytes + count
        if (most := self._limits.max_output_bytes) is not None and before <= most < self.output_bytes:
            self._ask("stop", grace=0.0, limit="max_output_bytes")

    def _ask(self, what: str, **more: float | str | None) -> None:
        refuse_in_job(f"tells its supervisor about the child {self.argv[0]!r}", IN_A_STEP)
        if not self.is_over:
            self._supervisor.tell({"do": what, "child": self._number, **more})

    # -- told by the supervisor's thread --------------------------------------------------------------------------------

    def _take(self, message: Mapping[str, Any]) -> None:
        """Updates this child by a message of the supervisor about it. Called in the thread that reads the
        supervisor's messages.
        """
        match message["event"]:
            case "began":
                self.pid, self.started_at = message["pid"], message["at"]
            case "stopped":
                self.paused = True
            case "continued":
                self.paused = False
            case "ended":
                code = os.waitstatus_to_exitcode(message["status"])
                number, limit = (-code if code < 0 else None), message["limit"]
                if number == signal.SIGXFSZ and limit is None and self._limits.max_file_bytes is not None:
                    limit = "max_file_bytes"
                self._record_end(ExitStatus(code if code >= 0 else None, number, message["cpu"], limit))

    def _record_end(self, end: ExitStatus | AgentError) -> None:
        """Records the end of the child, and so ends the waiting of `wait`. `end`: the exit status that `wait`
        returns, or the error that it raises if the supervisor was killed. Called in the thread that reads the
        supervisor's messages.
        """
        if self._loop.is_closed():
            self._close_streams()
        elif self.stdin is not None:
            call_on_loop(self._loop, self.stdin.abandon)
        if isinstance(end, ExitStatus):
            self._ended.set_result(end)
        else:
            self._ended.set_exception(end)

    def _close_streams(self) -> None:
        """Closes all streams: nobody reads or writes them any more."""
        if self.stdin is not None:
            self.stdin.abandon()
        for each in (self.stdout, self.stderr):
            if each is not None:
                each.close()

    def _forget(self) -> None:
        """Closes the pipes of the child in a fork of the worker, which has copies of them. With an open copy the child
        would not notice that the worker has closed its end of the pipe.
        """
        for each in (self.stdin, self.stdout, self.stderr):
            if each is not None:
                each.forget()


class Supervisor:
    """The connection of this process (the worker) to its supervisor process, which starts and ends all child
    processes. `await Supervisor.running()` returns the connection, and starts the supervisor process if there is
    none.

    When the worker ends, in whatever way, the supervisor ends every child with its descendants. A fork of the worker
    does not use this supervisor; it starts one of its own.

    `control_groups`: the controllers (`cpu`, `memory`, `pids`) whose limits the kernel enforces; empty until the
    supervisor process has sent its first message. The supervisor enforces all other limits itself, by measuring the
    processes.
    """

    _lock = threading.Lock()
    _current: "Supervisor | None" = None

    def __init__(self, *, mount: str = "/sys/fs/cgroup") -> None:
        if sys.platform != "linux":
            raise UserError(
                f"children are owned by the kernel's subreaper, which {sys.platform} has not",
                hint="run child processes on Linux",
            )
        self._sending = threading.Lock()
        self._unsent: deque[tuple[bytes, list[int]]] = deque()  # requests, with descriptors to be sent and closed
        self._mount = Path(mount)
        self._leases = user_folder()
        warn_of_open_folder(self._leases.parent)
        self._socket, far = socket.socketpair()
        with far:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    BOOT.format(module="supervisor"),  # it is up in 30 ms, in 10 MB
                    str(Path(__file__).parents[1]),
                    str(far.fileno()),
                    str(os.getpid()),
                    mount,
                    str(self._leases),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env=Command(argv=["-"]).whole_environment(),
                pass_fds=[far.fileno()],
                start_new_session=True,  # Ctrl-C does not reach it
            )
        self._numbers = itertools.count(1)
        self._replies: dict[int, Future[dict[str, Any]]] = {}
        self._children: dict[int, Child] = {}
        self._over = False
        self._lease = ""
        self.control_groups: tuple[str, ...] = ()
        self._reader = threading.Thread(target=self._listen, name="sabot-supervisor", daemon=True)
        self._reader.start()

    @classmethod
    async def running(cls) -> "Supervisor":
        """Returns the supervisor of this process. Starts one if there is none, or if the last one has ended. Raises
        IoError if the folder in which the supervisor records its children cannot be created; UserError on another
        system than Linux.
        """
        current = cls._current
        return current if current is not None and not current._over else await run_in_thread(cls._started)

    @classmethod
    def _started(cls) -> "Supervisor":
        with cls._lock:
            if cls._current is None or cls._current._over:
                cls._current = cls()
            return cls._current

    @property
    def pid(self) -> int:
        """The pid of the supervisor process."""
        return self._process.pid

    @property
    def children(self) -> list[Child]:
        """The children that have been started and have not ended. A child whose start is still under way is not
        listed.
        """
        return [child for child in self._children.values() if child.pid]

    async def spawn(self, command: Command) -> Child:
        """Starts the program, and returns its child as soon as the kernel executes the program.

        - Raises SpawnFailed if the program or its directory does not exist, or if permission is denied; SandboxError
          if the sandbox cannot be made.
        - Raises IoError if this process cannot open more files for the pipes, or if its current folder was removed.
        - Raises CommunicationError if the supervisor has ended, if 100,000 earlier requests still wait for it, or if it
          has not answered in 30 s. If the program starts later than that, it is killed.
        """
        number = next(self._numbers)
        try:
            sandbox = None if command.trust is None else await run_in_thread(confined_command, command)
            request = spawn_request(number, command, sandbox)
            streams, far = _pipes(command)
        except AgentError:
            raise
        except OSError as error:  # no more open files, or no current folder any more
            raise IoError(f"{command.argv[0]} could not be started: {error.strerror or error}") from error
        reply = self._replies[number] = Future()
        child = self._children[number] = Child(self, number, command, streams)
        try:
            if sandbox is not None:
                child.confined_by = sandbox.means
            try:
                self.tell(request, far)
            except (AgentError, OSError) as error:  # nothing was sent, so no answer will remove these
                self._replies.pop(number, None)
                self._children.pop(number, None)
                if isinstance(error, AgentError):
                    raise
                raise IoError(f"{command.argv[0]} could not be started: {error.strerror or error}") from error
            try:
                began = await self._answer(reply)
            except TimeoutError:
                child.kill()
                raise self.silent(command.argv[0]) from None
        except BaseException as error:  # also a caller that is cancelled, whose child nobody would have
            child._close_streams()
            if not isinstance(error, AgentError):
                child.kill()
                await run_to_end(_until_over(child, reply))
            raise
        finally:
            for each in set(far):
                os.close(each)
        if began["event"] == "failed":
            child._close_streams()
            raise spawn_failure(command, began)
        return child

    async def usage(self, number: int) -> ProcessUsage:
        """Measures a child, as `Child.usage` does. `number`: the number by which the worker and the supervisor
        identify the child. Raises CommunicationError if the supervisor has ended, or does not answer.
        """
        ask = next(self._numbers)
        reply = self._replies[ask] = Future()
        try:
            self.tell({"do": "usage", "child": number, "ask": ask})
        except AgentError:  # it was not sent, so no answer will remove this
            self._replies.pop(ask, None)
            raise
        try:
            found = await self._answer(reply)
        except TimeoutError:
            raise self.silent(f"child {number}") from None
        return ProcessUsage(found["processes"], found["memory"], found["cpu"])

    async def _answer(self, reply: "Future[dict[str, Any]]") -> dict[str, Any]:
        """Waits for a reply of the supervisor, and returns it. Raises TimeoutError if no reply has come after 30 s;
        CommunicationError if the supervisor ends before it has replied.
        """
        if self._over:  # perhaps before it knew of this reply
            raise self._lost()
        async with asyncio.timeout(_ANSWER_SECONDS):
            await wait_done(reply)
        return reply.result()

    def silent(self, whose: str) -> CommunicationError:
        """Returns the error to raise when the supervisor has not answered a request. `whose`: the words with which its
        message begins, such as the name of the child.
        """
        return CommunicationError(
            f"{whose}: the supervisor of this worker's children (pid {self.pid}, {_state_of(self.pid)}) has not answered in"
            f" {_ANSWER_SECONDS:g} s",
            hint=f"was it stopped? kill -CONT {self.pid}",
        )

    def _lost(self) -> CommunicationError:
        return CommunicationError(
            f"the supervisor of this worker's children (pid {self._process.pid}) has ended, and its children with it",
            hint="was it killed? The next spawn starts a new one",
        )

    def tell(self, request: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Sends a request to the supervisor without waiting. If the supervisor does not read it at once, for example
        because it is stopped, a thread sends it later. Does nothing if the supervisor has ended.

        `descriptors`: open files that are sent with the request; this call copies them, so the caller closes its own.
        Raises CommunicationError if too many requests wait, and OSError if this process cannot open more files for the
        copies; the request is not sent then.
        """
        data = framed(request)
        with self._sending:
            if len(self._unsent) >= _MOST_UNSENT:
                raise self.silent(f"{len(self._unsent):,} requests wait")
            given: list[int] = []
            try:
                for each in descriptors:
                    given.append(os.dup(each))
            except OSError:
                for each in given:
                    os.close(each)
                raise
            self._unsent.append((data, given))
            if len(self._unsent) == 1:
                if self._send_first(socket.MSG_DONTWAIT):
                    self._unsent.popleft()
                else:
                    threading.Thread(target=self._send_all, name="sabot-supervisor-requests", daemon=True).start()

    def _send_all(self) -> None:
        """Sends the requests that the supervisor did not read at once, and waits until it reads them. Runs in a thread
        of its own.
        """
        more = True
        while more:
            self._send_first(0)
            with self._sending:
                self._unsent.popleft()
                more = bool(self._unsent)

    def _send_first(self, flags: int) -> bool:
        """Sends the oldest request of the queue. `flags`: 0 to wait until the supervisor reads it, or
        `socket.MSG_DONTWAIT` not to wait. Returns True if the whole request was sent or the supervisor has ended;
        returns False if the socket was full, and keeps the unsent rest in the queue.
        """
        data, descriptors = self._unsent[0]
        while data:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
            try:
                sent = self._socket.sendmsg([data], rights, flags)
            except BlockingIOError:
                self._unsent[0] = data, descriptors
                return False
            except OSError:  # it has ended
                sent = len(data)
            for each in descriptors:
                os.close(each)
            data, descriptors = data[sent:], []
        return True

    def _listen(self) -> None:
        """Reads the messages of the supervisor, and handles each, until the supervisor ends. Runs in a thread of its
        own.
        """
        received = bytearray()
        while data := self._receive():
            received += data
            for message in cut_frames(received):
                self._told(message)
        self._over = True
        self._process.wait()
        end_what_is_left(self._leases, ControlGroups(self._mount), self._lease)  # if it was killed
        lost = self._lost()
        for reply in list(self._replies.values()):
            reply.set_exception(lost)
        while self._children:
            self._children.popitem()[1]._record_end(lost)
        self._socket.close()

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 16)
        except OSError:
            return b""

    def _told(self, message: dict[str, Any]) -> None:
        match message["event"]:
            case "began" | "failed":
                child = self._children[message["child"]]
                child._take(message)
                if message["event"] == "failed":
                    del self._children[message["child"]]
                self._replies.pop(message["child"]).set_result(message)
            case "usage":
                self._replies.pop(message["ask"]).set_result(message)
            case "ended":
                self._children.pop(message["child"])._take(message)
            case "ready":
                self.control_groups, self._lease = tuple(message["groups"]), message["lease"]
            case "stopped" | "continued":
                self._children[message["child"]]._take(message)

    def close(self) -> None:
        """Ends the supervisor, which ends all children, and waits until it has ended, but at most 20 s. Called when
        this process or a test ends.
        """
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)

    def forget(self) -> None:
        """Closes this process's copies of the socket and of the children's pipes, and marks the supervisor as ended.
        Called in a fork of the worker, since the supervisor and its children belong to the worker.
        """
        self._over = True
        self._socket.close()
        self._process.returncode = 0  # not a child of this process: nobody is to wait for it
        for child in self._children.values():
            child._forget()


def _state_of(pid: int) -> str:
    """Returns the state of a process as the kernel names it, such as `T (stopped)`."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("State:"):
                return line.partition(":")[2].strip()
    return "it has ended"


async def _until_over(child: Child, reply: "Future[dict[str, Any]]") -> None:
    """Waits until the supervisor has reported the end of a child that was killed during its start, or that the child
    did not start. Waits for 5 s at most, and then returns without an error. `reply`: the supervisor's reply to the
    request to start the child.
    """
    with suppress(TimeoutError, AgentError):
        async with asyncio.timeout(_GONE_SECONDS):
            await wait_done(reply)
            if reply.result()["event"] == "began":
                await child.wait()


def _pipes(command: Command) -> tuple[list[ChildInput | ChildOutput | None], list[int]]:
    """Opens the pipes of a child. Returns the worker's ends for stdin, stdout and stderr (None for a stream without a
    pipe), and the three descriptors that the child gets as its streams.
    """
    opened: list[int] = []
    streams: list[ChildInput | ChildOutput | None] = []
    far: list[int] = []
    try:
        for kind in (command.stdin, command.stdout, command.stderr):
            if kind == "stdout":
                streams.append(None)
                far.append(far[1])
                continue
            if kind == "null":
                opened.append(os.open(os.devnull, os.O_RDWR))
                streams.append(None)
                far.append(opened[-1])
                continue
            reader, writer = os.pipe()
            opened += [reader, writer]
            if not far:
                streams.append(ChildInput(writer))
                far.append(reader)
            else:
                name = f"{command.argv[0]}: {'stderr' if len(far) == 2 else 'stdout'}"
                streams.append(
                    ChildOutput(reader, name=name, capacity_bytes=command.output_bytes, lossless=command.lossless)
                )
                far.append(writer)
    except BaseException:
        for stream in streams:
            if isinstance(stream, ChildOutput):
                stream.close()
        for each in opened:
            with suppress(OSError):
                os.close(each)
        raise
    return streams, far


@atexit.register
def _end() -> None:
    if (current := Supervisor._current) is not None:
        current.close()


def _forget() -> None:
    """Forgets the supervisor in a fork of the worker, and closes the fork's copy of the socket to it. Otherwise the
    socket would stay open after the end of the worker, and the supervisor would notice this end later.
    """
    Supervisor._lock = threading.Lock()
    current, Supervisor._current = Supervisor._current, None
    if current is not None:
        current.forget()


os.register_at_fork(after_in_child=_forget)
