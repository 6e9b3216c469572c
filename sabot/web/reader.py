"""Reads that may be large, in processes of their own: state, histories, exports.

    console                                              reader process (`serve`)
      read(function, …) ──▶ call in msgpack       ──▶    calls the function
      the record        ◀── frames                ◀──    a frame for each record, then a last one

A reader process has a bound of memory, one thread for Arrow, and, once it has started, a low priority: the run keeps its
processor and its interpreter. A read that is cancelled, takes too long, or needs too much memory ends with its process, and
nothing else does.
A process that has answered waits for the next call, because a start takes longer than most reads.
"""

import asyncio
import inspect
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing, suppress
from importlib import import_module
from queue import SimpleQueue
from typing import Any, BinaryIO, NoReturn, ParamSpec, TypeVar, get_args, get_type_hints

import msgspec
import pyarrow as pa

from sabot.base.quantities import bytes_words
from sabot.base.redaction import keep_forms, kept_forms
from sabot.errors import CorruptCheckpoint, CorruptJournal, InternalError, SabotError, TransientError, UserError

P = ParamSpec("P")
T = TypeVar("T")

MEMORY_BYTES = 1 << 30
READ_SECONDS = 60.0
_AT_ONCE = 2
_IDLE_SECONDS = 600.0
_NICENESS = 10  # with 19 a page came after 18 to 45 s where other processes used all processors, with 10 in 2 to 4
_ERRORS = "surrogatepass"
_HEAD = struct.Struct(">I")  # the length of a frame
_MOST_FRAME = 64 << 20
_SELECT_LESS = "select less, for example one key"
# The search path of the console is added at its end: a file of the user must not hide a module of Python.
_START = """
import sys
sys.path += [each for each in sys.argv[2:] if each not in sys.path]
from sabot.web.reader import serve
serve(int(sys.argv[1]))
"""
# Counted by RLIMIT_DATA: Arrow's own allocators reserve more than they use, and the C library makes an arena for each thread.
LESS_MEMORY = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}


_TOLD = {each.__name__: each for each in (TransientError, CorruptJournal, CorruptCheckpoint)}
"""The errors that are raised again as they are, beside UserError: they pass by themselves, or tell of damage."""


class _Frame(msgspec.Struct, array_like=True):
    """A message of a reader process. `record`: a record, in msgpack. `end`: True for the last message of a call, after which the
    process takes another. `error`, `hint`: those of an error for the user, `of`: the one of `_TOLD` that it is, or "".
    `failure`: the traceback of another one.
    """

    record: msgspec.Raw = msgspec.Raw(b"\xc0")
    end: bool = False
    error: str = ""
    hint: str = ""
    failure: str = ""
    of: str = ""


class _ReadCall(msgspec.Struct, array_like=True):
    """A call of `function` in `module`. `arguments`: each in msgpack, which is read as the type of the parameter. `secrets`: what
    `scrubbed` hides in the console's process, if the reader process does not know it yet; as bytes, because a secret of the environment
    need not be UTF-8.
    """

    module: str
    function: str
    arguments: dict[str, msgspec.Raw]
    secrets: list[bytes]


class _ReaderProcess:
    """A reader process, with a socket for calls and answers. Used on one event loop. `started`: True if it has answered a call."""

    started = False

    def __init__(self, memory_bytes: int) -> None:
        ours, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(memory_bytes), *sys.path],
                stdin=its.fileno(),
                env={**os.environ, **LESS_MEMORY},
            )
        self._socket = ours
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._secrets: frozenset[str] = frozenset()  # that it knows

    async def send(self, module: str, function: str, arguments: dict[str, msgspec.Raw]) -> None:
        if self._streams is None:
            self._streams = await asyncio.open_connection(sock=self._socket)
        secrets = kept_forms()
        unknown = [each.encode(errors=_ERRORS) for each in secrets - self._secrets]
        call = msgspec.msgpack.encode(_ReadCall(module, function, arguments, unknown))
        self._secrets |= secrets
        self._streams[1].write(_HEAD.pack(len(call)) + call)
        with suppress(ConnectionError):  # it has ended: `next_frame` says so
            await self._streams[1].drain()

    async def next_frame(self) -> _Frame:
        """Waits for the next message. Raises EOFError, with the way in which the process ended, if none comes any more."""
        assert self._streams is not None, "send comes first"
        try:
            (size,) = _HEAD.unpack(await self._streams[0].readexactly(_HEAD.size))
            return msgspec.msgpack.decode(await self._streams[0].readexactly(size), type=_Frame)
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await asyncio.to_thread(self._process.wait)
            raise EOFError(signal.Signals(-code).name if code < 0 else f"code {code}") from None

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        """Ends the process. Idempotent."""
        self._process.kill()
        self._socket.close() if self._streams is None else self._streams[1].close()
        asyncio.get_running_loop().run_in_executor(None, self._process.wait)


class ConsoleReader:
    """The reader processes of a console: at most two, each with one call at a time. Used on one event loop."""

    def __init__(self, *, memory_bytes: int = MEMORY_BYTES, seconds: float = READ_SECONDS) -> None:
        """`memory_bytes`: the bound of each process. `seconds`: the longest time of a call, without its wait for a process."""
        self._memory_bytes = memory_bytes
        self._seconds = seconds
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._idle: dict[_ReaderProcess, asyncio.TimerHandle] = {}
        self._busy: set[_ReaderProcess] = set()
        self._starting: asyncio.Task[bool] | None = None

    async def read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function of a module in a reader process, and returns its result.

        Its parameters and its result have annotations of types that msgspec knows, such as texts, numbers and dataclasses. Raises
        UserError for a call that takes too long or needs too much memory, and for SabotErrors of the function. Those of `_TOLD` stay
        what they are, such as that of a server which does not answer.
        """
        kind = get_type_hints(function)["return"]
        (result,) = [each async for each in self._records(kind, function, args, kwargs)]
        return result  # type: ignore[no-any-return] # decoded as the type of the result

    async def pages(
        self, function: Callable[P, Iterable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> AsyncGenerator[T, None]:
        """Calls a generator function in a reader process, and yields what it yields, as `read`. The process makes a page only when the
        earlier ones are taken, but for those that the socket holds. Close the generator to end the call.
        """
        (kind,) = get_args(get_type_hints(function)["return"])
        async with aclosing(self._records(kind, function, args, kwargs)) as records:
            async for each in records:
                yield each

    @property
    def started(self) -> bool:
        """True if a process has answered a call, and waits for another one, or will: a start takes longer than most reads."""
        return any(each.started and not each.has_ended() for each in [*self._busy, *self._idle])

    def start(self, function: Callable[[], bool]) -> None:
        """Starts a process by a call of a function, of whose module it will read something, unless one starts, or has."""
        starts = self._starting is not None and not self._starting.done()
        if not starts and not self._busy and not self.started:
            self._starting = asyncio.get_running_loop().create_task(self.read(function))
            self._starting.add_done_callback(_look)

    def close(self) -> None:
        """Ends all processes and their calls. Called on the event loop."""
        for process in [*self._busy, *self._idle]:
            self._drop(process)

    async def _records(
        self, kind: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        arguments = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in given.items()}
        async with self._turns:
            process, ended = self._take(), False
            deadline = asyncio.get_running_loop().time() + self._seconds
            try:
                await process.send(function.__module__, function.__qualname__, arguments)
                while True:
                    frame = await self._next(process, deadline)
                    ended = frame.end
                    process.started |= ended
                    if frame.failure:
                        raise InternalError(f"a process that reads for the console has failed:\n{frame.failure}")
                    if frame.error:
                        raise _TOLD.get(frame.of, UserError)(frame.error, hint=frame.hint)
                    if frame.end:
                        return
                    yield msgspec.msgpack.decode(frame.record, type=kind)
            finally:
                self._busy.discard(process)
                if ended:
                    timer = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._drop, process)
                    self._idle[process] = timer
                else:
                    process.kill()

    async def _next(self, process: _ReaderProcess, deadline: float) -> _Frame:
        """Waits for the next frame. Raises UserError if none comes."""
        try:
            async with asyncio.timeout_at(deadline):
                return await process.next_frame()
        except TimeoutError:
            raise UserError(f"this takes longer than {self._seconds:g} s to read", hint=_SELECT_LESS) from None
        except EOFError as end:
            most = bytes_words(self._memory_bytes)
            raise UserError(
                f"the process that reads has ended ({end}); it may use {most} of memory", hint=_SELECT_LESS
            ) from None

    def _take(self) -> _ReaderProcess:
        """Returns the process that was used last, or a new one."""
        process = None
        while self._idle and process is None:
            process, timer = self._idle.popitem()
            timer.cancel()
            if process.has_ended():
                process.kill()  # frees its socket
                process = None
        process = process or _ReaderProcess(self._memory_bytes)
        self._busy.add(process)
        return process

    def _drop(self, process: _ReaderProcess) -> None:
        if process in self._idle:
            self._idle.pop(process).cancel()
        process.kill()


def _look(starting: "asyncio.Task[bool]") -> None:
    """Takes the error of a process that could not start: the read that needs one raises it again, and shows it."""
    if not starting.cancelled() and (error := starting.exception()) is not None and not isinstance(error, SabotError):
        raise error


# In the reader process


class _WithoutPandas:
    """A finder of modules that does not find pandas. Where it is installed, pyarrow imports it with its first array or scalar: half of the
    start of a process, for nothing that a read needs.
    """

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("the console reads without pandas", name=name)


def serve(memory_bytes: int) -> NoReturn:
    """Answers calls until the console closes the socket, which is stdin. `memory_bytes`: the most memory that this process may use."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the app, which ends its console
    sys.meta_path.insert(0, _WithoutPandas)
    pa.set_cpu_count(1)
    os.dup2(2, 1)  # whatever prints must not print into the output of the run
    calls: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(os.fdopen(0, "rb", closefd=False), calls), daemon=True).start()
    answers = os.fdopen(0, "wb", closefd=False)
    while True:
        _answer(calls.get(), answers, memory_bytes)


def _listen(console: BinaryIO, calls: "SimpleQueue[bytes]") -> NoReturn:
    while len(head := console.read(_HEAD.size)) == _HEAD.size:
        calls.put(console.read(*_HEAD.unpack(head)))
    os._exit(0)  # in the middle of a call too: nobody waits for its answer any more


def _answer(call: bytes, answers: BinaryIO, memory_bytes: int) -> None:
    try:
        named = msgspec.msgpack.decode(call, type=_ReadCall)
        keep_forms(each.decode(errors=_ERRORS) for each in named.secrets)
        function = getattr(import_module(named.module), named.function)
        # Not earlier: a start at a low priority takes longer than a reader of the page waits, where the processors are used.
        os.setpriority(os.PRIO_PROCESS, 0, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
        kinds = get_type_hints(function)
        result = function(
            **{name: msgspec.msgpack.decode(value, type=kinds[name]) for name, value in named.arguments.items()}
        )
        for each in result if isinstance(result, Iterator) else [result]:
            _write(answers, _Frame(msgspec.Raw(msgspec.msgpack.encode(each))))
        last = _Frame(end=True)
    except SabotError as error:
        of = next((name for name, kind in _TOLD.items() if isinstance(error, kind)), "")
        last = _Frame(end=True, error=error.message, hint=error.hint, of=of)
    except MemoryError:  # not the end: the process goes, with all that it still holds
        last = _Frame(error=f"this needs more than {bytes_words(memory_bytes)} of memory to read", hint=_SELECT_LESS)
    except Exception:
        last = _Frame(failure=traceback.format_exc())
    _write(answers, last)


def _write(answers: BinaryIO, frame: _Frame) -> None:
    data = msgspec.msgpack.encode(frame)
    if len(data) > _MOST_FRAME:
        data = msgspec.msgpack.encode(
            _Frame(error=f"one page has more than {bytes_words(_MOST_FRAME)}", hint=_SELECT_LESS)
        )
    answers.write(_HEAD.pack(len(data)) + data)
    answers.flush()
