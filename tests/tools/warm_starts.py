"""Interpreters that have imported Sabot when they start, for tests of what a process does, and not of how it starts.

    the tests               ── program, folder, environment, descriptors ──▶   a warm interpreter (`serve`)
    a child of the tests    ◀───────────────── two forks ───────────────────   the same, as it was before the program

The imports take half a second of a core, which is more than most programs of the tests do. The process is a child of the tests as any
other is, to wait for and to kill: when the fork in between has ended, the kernel gives its child to the nearest ancestor that is a
subreaper. A warm interpreter is made between two tests, for what was asked for twice, so that no event loop waits for its imports. It
ends when the tests do.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

# What most programs of the tests load, and what a console and a reader of its pages load.
IMPORTED = (
    "pydantic.type_adapter",
    "sabot.api.describe",
    "sabot.api.script_options",
    "sabot.app.agents",
    "sabot.app.scripts",
    "sabot.cli.commands",
    "sabot.cli.run",
    "sabot.engine.runtime.agents.runtime",
    "sabot.engine.runtime.life.app_runner",
    "sabot.engine.runtime.agents.local_agents",
    "sabot.sql.session",
    "sabot.testing",
    "sabot.web.console",
    "sabot.web.reader",
)
FLAGS = {"-P": 1, "-W": 2}  # with how many words each has
EARLY = ("PYTHON", "ARROW_", "MALLOC_", "LD_", "LC_", "LANG")  # variables that are read at a start, or by an import
SET_SUBREAPER, GET_SUBREAPER = 36, 37  # of prctl
MOST_BYTES = 1 << 17
_USUAL = [None, None, None, -1, None]  # gid, extra_groups, uid, umask, preexec_fn
ALSO_CHILDREN = "WARM_CHILDREN"  # in the environment of a process whose own interpreters are forks too


Asked = tuple[list[str], str, dict[str, str], str]  # words, folder, environment, and of what the process is the leader


class WarmStarts:
    """The warm interpreters of this process: one for each set of flags and early variables."""

    def __init__(self, cold: Callable[..., int]) -> None:
        """`cold` starts what a warm interpreter cannot."""
        self.cold = cold
        self._lock = threading.Lock()
        self._warm: dict[Any, socket.socket] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._asked: Counter[Any] = Counter()
        self._modules: Sequence[str] = ()

    def fork_exec(self, args: list[Any], *given: Any) -> int:
        """Starts a process, as `_posixsubprocess.fork_exec` does. -> its number"""
        _, _, kept, folder, variables, stdin, _, _, stdout, _, stderr, _, _, _, session, group, *changes = given
        words = [os.fsdecode(word) for word in args]
        flags, program = parted(words[1:])
        if words[0] != sys.executable or not program or len(kept) > 1 or group > 0 or changes[: len(_USUAL)] != _USUAL:
            return self.cold(args, *given)
        descriptors = [own if number == -1 else number for own, number in enumerate((stdin, stdout, stderr))]
        if any(map(os.isatty, descriptors)):  # stdout has another buffer there
            return self.cold(args, *given)
        if folder is not None and not os.path.isdir(folder):
            return self.cold(args, *given)  # which says so
        environment = dict(os.environ)
        if variables is not None:
            environment = dict(os.fsdecode(each).split("=", 1) for each in variables)
        leads = "session" if session else "group" if group == 0 else ""
        asked = json.dumps([program, os.path.abspath(os.fsdecode(folder or "")), environment, leads])
        with self._lock:
            key = (flags, *sorted(early_of(environment).items()))
            if key in self._warm:
                return self._forked(self._warm[key], asked.encode(), descriptors)
            self._asked[key] += 1
        return self.cold(args, *given)

    def prepare(self) -> None:
        """Waits until there is a warm interpreter for what was asked for more than once."""
        with self._lock:
            for key in [key for key, count in self._asked.items() if count > 1 and key not in self._warm]:
                process, self._warm[key] = started(key[0], dict(key[1:]), self._modules)
                answer(self._warm[key])
                self._processes.append(process)

    def expect(self, *modules: str) -> None:
        """Makes a warm interpreter without flags, before any was asked for: for one test that starts many. It imports `modules` too, as
        those do that are made later.
        """
        with self._lock:
            self._asked[(), *sorted(early_of(os.environ).items())] += 2
            self._modules = modules
        self.prepare()

    def end(self) -> None:
        """Ends the warm interpreters. Those that were forked from them go on."""
        with self._lock:
            for each in self._warm.values():
                each.close()
            for process in self._processes:
                process.wait()
            self._warm, self._processes = {}, []

    def fork(self) -> Asked | None:
        """Makes a warm interpreter by a fork of this process, which has imported all. Returns in its children, with the message, too."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            ours.close()
            return serve(its)
        its.close()
        answer(ours)
        flags, _ = parted(sys.orig_argv[1:])
        self._warm[flags, *sorted(early_of(os.environ).items())] = ours
        return None

    def _forked(self, warm: socket.socket, asked: bytes, descriptors: list[int]) -> int:
        prctl, before = ctypes.CDLL(None).prctl, ctypes.c_int()
        prctl(GET_SUBREAPER, ctypes.byref(before), 0, 0, 0)
        prctl(SET_SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(warm, [asked], descriptors)
            return int(answer(warm))
        finally:
            prctl(SET_SUBREAPER, before.value, 0, 0, 0)


def early_of(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(EARLY)}


def answer(warm: socket.socket) -> bytes:
    if not (said := warm.recv(64)):
        raise OSError("a warm interpreter has ended; its stderr says why")
    return said


def parted(words: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The flags of the interpreter, and the rest, with the program. No program where there are other flags."""
    place = 0
    while place < len(words) and words[place] in FLAGS:
        place += FLAGS[words[place]]
    program = list(words[place:])
    known = program and (program[0] in ("-c", "-m") or not program[0].startswith("-"))
    return tuple(words[:place]), program if known else []


def started(
    flags: Sequence[str], early: dict[str, str], modules: Sequence[str]
) -> "tuple[subprocess.Popen[bytes], socket.socket]":
    """A warm interpreter, and the socket by which it is asked for children. Their mark is in the environment that it begins with."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(EARLY)} | early
    with its, open(os.devnull) as nothing, open(os.devnull, "w") as nowhere:
        command = [sys.executable, *flags, __file__, str(its.fileno()), *modules]
        warm = subprocess.Popen(command, env=environment, stdin=nothing, stdout=nowhere, pass_fds=[its.fileno()])
        return warm, ours


def warm_up(modules: Sequence[str] = ()) -> None:
    """Imports what programs need, and `modules`."""
    for name in (*IMPORTED, *modules):
        importlib.import_module(name)
    pa.scalar(1)  # the first one imports pandas
    gc.collect()
    gc.freeze()


def serve(asking: socket.socket) -> Asked:
    """Forks a child for each message. Returns in the child, with the message."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for those who ask
    asking.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(asking, MOST_BYTES, 3)
        if not message:
            os._exit(0)
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            between = os.getpid()
            if child := os.fork():
                os.write(writing, b"%d" % child)
                os._exit(0)
            while os.getppid() == between:
                os.sched_yield()
            signal.signal(signal.SIGINT, interrupt)
            for own, number in enumerate(descriptors):
                os.dup2(number, own)
            for number in (reading, writing, *descriptors):
                os.close(number)
            asking.close()
            asked: Asked = json.loads(message)
            return asked
        os.waitpid(between, 0)
        asking.send(os.read(reading, 64))
        for number in (reading, writing, *descriptors):
            os.close(number)


def with_warm_children(asked: Asked) -> Asked:
    """Returns what to run, in this process and in forks of it: where the environment says so, its interpreters are such forks."""
    cold = vars(subprocess)["_fork_exec"]
    while asked[2].get(ALSO_CHILDREN):
        starts = WarmStarts(cold)
        if (of_a_child := starts.fork()) is None:
            vars(subprocess)["_fork_exec"] = starts.fork_exec
            break
        asked = of_a_child
    return asked


def run(words: list[str], folder: str, environment: dict[str, str], leads: str) -> None:
    """Runs a program as an interpreter does that has started with these words."""
    if leads == "session":
        os.setsid()
    elif leads:
        os.setpgid(0, 0)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = words
    if words[0] == "-m":
        sys.argv, first = words[1:], os.getcwd()
    elif words[0] == "-c":
        sys.argv, first = ["-c", *words[2:]], ""
        source, name = words[1], "<string>"
    else:
        first = os.path.dirname(os.path.realpath(words[0]))
        source, name = Path(words[0]).read_text(), os.path.abspath(words[0])
        main.__file__ = name
    if not sys.flags.safe_path:
        sys.path[0] = first
    if words[0] == "-m":
        runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]
    else:
        exec(compile(source, name, "exec", dont_inherit=True), main.__dict__)


if __name__ == "__main__":
    warm_up(sys.argv[2:])
    run(*with_warm_children(serve(socket.socket(fileno=int(sys.argv[1])))))
