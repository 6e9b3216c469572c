"""Input and output that the function of a job does by itself, beside the effects of its job. A replay calls the function
again, so each replay would do it again: one POST becomes four with three questions.

   the function ─▶ urlopen(…) ─▶ Python raises an audit event (PEP 578) ─▶ `audit` ─▶ UserError out of urlopen

Python cannot remove an audit hook, and calls it for each event of the whole process. So the hook is only added when the
first job runs, and it looks at two things before it does anything else: the name of the event, and the event loop that
runs in this thread. That is the loop of a job only while the function of this job runs. Calls of tools and steps run
outside of it.

A connection that is open already, such as one in the pool of a client, raises no audit event if it is used. So the sockets
of Python are told apart by `send` too. Libraries in C that open sockets and files without Python (libpq, librdkafka, gRPC,
DuckDB, Arrow, Polars) are not seen, and neither is what a thread does that the function starts.
"""

import asyncio
import ctypes.util
import importlib
import logging
import os
import platform
import socket
import ssl
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from sabot.base.logs import is_users
from sabot.engine.calls.judging import collects_garbage
from sabot.errors import short_repr
from sabot.jobs.loop import JobLoop

_log = logging.getLogger(__name__)

SWITCH = "SABOT_DIRECT_IO"
"""The environment variable that turns errors into warnings ("warn"), or allows everything ("allow")."""

_HINT = "await ctx.step(f, …) calls f outside of the job, once, and records what it returns"

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PASSES = (  # what these do is no effect of the function: imports write .pyc files, handlers of logs open files and sockets
    logging.__file__.rpartition(os.sep)[0] + os.sep,
    importlib.__file__.rpartition(os.sep)[0] + os.sep,
    "<frozen importlib",
    f"{Path(__file__).parents[1] / 'state'}{os.sep}",  # a backend of the user, which opens its store when it is first read
    # these ask the system about itself by `uname`, `ip` and `ldconfig`, and keep the answer
    platform.__file__,
    uuid.__file__,
    ctypes.util.__file__,
)
_PASSES_IN = {
    "_get_default_tempdir": tempfile.__file__,  # writes a file in each folder to find one in which it may
    "_write_to_self": asyncio.__file__.rpartition(os.sep)[0] + os.sep,  # wakes an event loop
}
"""Functions, by name and with the beginning of their file, that are let pass as the files in `_PASSES` are."""
_NO_FILES = frozenset((os.devnull, "/dev/stdout", "/dev/stderr", "/dev/tty"))  # what is written there is printed
_WITHOUT_NAME = getattr(os, "O_TMPFILE", 0)  # a file that nobody else can open, and that is gone when it is closed
_TURNS = (JobLoop.run_until_quiet.__code__, JobLoop.discard.__code__)  # what has called them is not of the job
_MOST_WARNED = 1_000

_warned: set[tuple[str, str]] = set()


def _opened(path: Any, mode: Any, flags: Any) -> str:
    writes = any(each in mode for each in "wax+") if isinstance(mode, str) else bool((flags or 0) & _WRITES)
    if not writes or isinstance(path, int) or (_text(path) in _NO_FILES):
        return ""
    if isinstance(mode, str) and os.path.isdir(path):  # a function of the caller opens a file in it, and is judged
        return ""
    if _WITHOUT_NAME and isinstance(flags, int) and flags & _WITHOUT_NAME == _WITHOUT_NAME:
        return ""
    return f"opens {_shown(path)} for writing"


def _connects(_: Any, address: Any = "") -> str:
    at = f"{address[0]}:{address[1]}" if isinstance(address, tuple) and len(address) > 1 else _shown(address)
    return f"opens a connection to {at}"


def _sends(_: Any, address: Any = "") -> str:
    return _connects(_, address).replace("opens a connection", "sends data")


def _requests(url: Any, *_: Any) -> str:
    """Names the host of the address only, because its path and its query may have secrets in them."""
    try:
        parts = urlsplit(str(url))
        return "" if parts.scheme in ("file", "data") else f"sends a request to {parts.hostname}"
    except ValueError:
        return "sends a request"


def _sends_on(connection: Any, *_: Any) -> str:
    return f"sends a request to {getattr(connection, 'host', 'its server')}"


def _runs(what: Any, *_: Any) -> str:
    first = what[0] if isinstance(what, list | tuple) and what else what
    return f"starts the process {_shown(first)}"


def _database(path: Any, *_: Any) -> str:
    name = _text(path)
    if name in ("", ":memory:"):
        return ""
    if name.startswith("file:"):  # an address, if the program says so; the event does not
        place, _mark, query = name.partition("#")[0].partition("?")
        options = dict(parse_qsl(query))
        read_only = options.get("mode") == "ro" or options.get("immutable") == "1"
        if place == "file::memory:" or options.get("mode") == "memory" or read_only:
            return ""
    return f"opens the database {_shown(path)}"


def _signals(what: str) -> Callable[..., str]:
    return lambda whom, number=0, *_: f"sends a signal to {what} {whom}" if number else ""  # 0 only asks if it is there


def _changes(verb: str) -> Callable[..., str]:
    return lambda path="", *_: f"{verb} {_shown(path)}"


def _makes_folder(path: Any, mode: int = 0, folder: int = -1, *_: Any) -> str:
    return "" if folder == -1 and os.path.isdir(path) else f"makes {_shown(path)}"


def _removes(path: Any, folder: Any = -1, *_: Any) -> str:
    return f"removes {_shown(path)}" if os.path.lexists(path) or folder not in (-1, None) else ""


def _text(path: Any) -> str:
    """Returns a path as a text; "" for a number of an open file."""
    return "" if isinstance(path, int) else os.fsdecode(path)


_SEEN: dict[str, Callable[..., str]] = {  # by audit event: what the function does, in words; "" if it may
    "open": _opened,
    "socket.connect": _connects,
    "socket.bind": lambda _, address="": _connects(_, address).replace("connection to", "server at"),
    "sabot.send": lambda connection: _sends_to(connection),
    "socket.sendto": _sends,
    "socket.sendmsg": _sends,
    "urllib.Request": _requests,
    "http.client.connect": lambda _, *address: _connects(_, address),
    **dict.fromkeys(
        ("http.client.send", "ftplib.sendcmd", "imaplib.send", "poplib.putline", "smtplib.send"), _sends_on
    ),
    "subprocess.Popen": _runs,
    **dict.fromkeys(("os.exec", "os.posix_spawn", "os.system", "pty.spawn"), _runs),
    "os.spawn": lambda _, path, *__: _runs(path),
    **dict.fromkeys(("os.fork", "os.forkpty"), lambda *_: "forks this process"),
    "os.kill": _signals("process"),
    "os.killpg": _signals("the process group"),
    "sqlite3.connect": _database,
    "os.mkdir": _makes_folder,
    **dict.fromkeys(("os.remove", "os.rmdir", "shutil.rmtree"), _removes),
    **{
        event: _changes(verb)
        for verb, events in {
            "makes": (
                "os.link",
                "os.symlink",
                "tempfile.mkdtemp",
                "tempfile.mkstemp",
                "shutil.make_archive",
            ),
            "moves": ("os.rename", "shutil.move"),
            "copies": ("shutil.copyfile", "shutil.copytree"),
            "unpacks": ("shutil.unpack_archive",),
            "changes": (
                "os.truncate",
                "os.chmod",
                "os.chown",
                "os.lchown",
                "os.utime",
                "os.setxattr",
                "os.removexattr",
            ),
        }.items()
        for event in events
    },
}


def watch_functions() -> None:
    """Adds the audit hook that watches the functions of jobs. Does nothing if it was added already."""
    global _watches
    if not _watches:
        _watches = True
        sys.addaudithook(_hook())
        _audit_spawns()
        _audit_sends()


_watches = False


def _audit_spawns() -> None:
    """Lets `multiprocessing` raise an audit event before it starts a process by the method "spawn" or a helper of its
    own, as `subprocess` does. Python raises none for these.
    """
    from multiprocessing import util

    spawn = vars(util).get("spawnv_passfds")  # there is none on Windows
    if spawn is None:
        return

    @wraps(spawn)
    def audited(path: Any, *args: Any) -> Any:
        sys.audit("os.posix_spawn", os.fsdecode(path), *args, None)
        return spawn(path, *args)

    vars(util)["spawnv_passfds"] = audited


def _audit_sends() -> None:
    """Lets sockets raise an audit event before they send something. Python raises none for these, but the function of a job
    may use a connection that a step or the program has opened. The event is only raised in the function of a job.
    """
    running, of_jobs = asyncio._get_running_loop, JobLoop
    for kind, names in ((socket.socket, ("send", "sendall", "sendfile")), (ssl.SSLSocket, ("send", "write"))):
        for name in names:
            setattr(kind, name, _audited(getattr(kind, name), running, of_jobs))


def _audited(send: Callable[..., Any], running: Callable[[], Any], of_jobs: type) -> Callable[..., Any]:
    # it outlives the modules at the end of the process, as the hook does
    audit = sys.audit

    @wraps(send)
    def audited(self: Any, *args: Any, **named: Any) -> Any:
        if type(running()) is of_jobs:
            audit("sabot.send", self)
        return send(self, *args, **named)

    return audited


def _sends_to(connection: Any) -> str:
    try:
        return _sends(connection, connection.getpeername())
    except OSError:  # it is not connected, so nothing is sent
        return ""


def _hook() -> Callable[[str, tuple[Any, ...]], None]:
    # The hook outlives the modules at the end of the process, so it has all that its fast part needs in its closure.
    seen, running, of_jobs = _SEEN, asyncio._get_running_loop, JobLoop

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event in seen and type(loop := running()) is of_jobs:
            _judge(loop, seen[event](*args))

    return audit


def _judge(loop: JobLoop, what: str) -> None:
    """Raises UserError for something that the function of a job does, or logs a warning, once for each line of the
    program if `SWITCH` says so. Does nothing if it may be done, or if the garbage collector does it: it may call the
    finalizer of an object that the job does not know. `what`: words for what it does, such as "opens 'x' for
    writing"; "" if it may always be done.
    """
    said = os.environ.get(SWITCH)
    if not what or said == "allow" or loop.allows_io or collects_garbage():
        return
    where = ""
    for frame in _frames():
        file = frame.f_code.co_filename
        if file.startswith((*_PASSES, _PASSES_IN.get(frame.f_code.co_name, file + os.sep))):
            return
        if not where and is_users(file):
            where = f", in {file}, line {frame.f_lineno}"
    if said == "warn":
        if (what, where) not in _warned and len(_warned) < _MOST_WARNED:
            _warned.add((what, where))
            _log.warning(
                "job %s: the function %s%s; each replay of the job does it again: %s", loop.name, what, where, _HINT
            )
        return
    error = loop.refuse(f"{what}{where}; each replay of the job would do it again", f"{_HINT}; or {SWITCH}=warn")
    if loop.dead:  # nobody gets an error of a coroutine that is dropped
        _log.warning("%s", error)
    raise error


def _frames() -> Iterator[FrameType]:
    """Yields the frames of the function, the innermost first."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code not in _TURNS:
        yield frame
        frame = frame.f_back


def _shown(value: Any) -> str:
    return short_repr(os.fspath(value) if isinstance(value, os.PathLike) else value)
