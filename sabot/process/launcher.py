"""The steps in a child between fork and exec. The supervisor, which forks, has one thread, so they may run any Python.

They make the child the leader of a session of its own, with default signals, its three streams, its limits and its
directory, and execute the program. The supervisor learns the result from the pipe `report`: if a step fails, the child
writes `step errno` to it and ends; if the program is executed, the pipe is closed and empty.
"""

import ctypes
import errno
import os
import resource
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sabot.process.sandbox.confine import confinement, enter, filter_calls

TAG = 10
"""RLIMIT_LOCKS: a limit that the kernel keeps for each process and has not used since 2.4. Every descendant inherits it, whatever it does
to its session, its parents and its environment; and anybody can read it from /proc. So its value says whose descendant a process is."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Makes this process the parent of each descendant whose own parent ends."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the system gives no subreaper")


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Lets the kernel send this process a signal when the thread that has forked it ends, however that ends. Exits if the parent has
    ended already. `parent`: its pid.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(127)


def candidates(program: str, path: str) -> Iterator[str]:
    """Yields the files that a program of this name may be: the name itself if it has a slash, else one for each folder of `path`."""
    if "/" in program:
        yield program
    else:
        for folder in path.split(os.pathsep):
            yield os.path.join(folder or ".", program)


def launch(plan: Mapping[str, Any], streams: Sequence[int], tag: int, report: int, parent: int) -> None:
    """Makes a child of this fork and executes its program. Never returns.

    - `plan`: argv, environment, directory, nice, rlimits, groups (the files by which control groups are joined), and sandbox (None, or the
      plan for `confine.confinement`).
    - `streams`: the descriptors that become 0, 1 and 2. `parent`: the supervisor's pid.
    """
    step = "session"
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        os.setpriority(os.PRIO_PROCESS, 0, plan["nice"])
        resource.setrlimit(TAG, (tag, tag))
        step = "limits"
        for group in plan["groups"]:
            _join(group)
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        for which, most in plan["rlimits"]:
            hard = resource.getrlimit(which)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(which, (most, most))
        step = "streams"
        for wanted, given in enumerate(streams):
            os.dup2(given, wanted)
        sandbox = plan["sandbox"]
        if sandbox is not None:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for name, action in confinement(sandbox):
                step = f"sandbox-{name}"
                action()
        step = "directory"
        (os.chdir if sandbox is None else enter)(plan["directory"])
        if sandbox is not None and not os.access(".", os.W_OK):
            step = "sandbox-directory"
            raise PermissionError(errno.EACCES, "")
        end_with_parent(parent, signal.SIGKILL)  # set after the change of the user, which would undo it
        if sandbox is not None and sandbox["filter"] is not None:
            step = "sandbox-filter"
            filter_calls(sandbox["filter"])
        step = "program"
        _execute(plan["argv"], plan["environment"])
    except OSError as error:
        is_there = error.filename is not None and os.path.exists(error.filename)
        if step == "program" and is_there and isinstance(error, FileNotFoundError | NotADirectoryError):
            step = "interpreter"  # a script whose first line names a missing program
        _report(report, f"{step} {error.errno or 0} {error.filename or ''}")
    except BaseException as error:  # a fork of the supervisor must never go on as a second supervisor
        _report(report, f"{step} 0 {type(error).__name__}: {error}")
    finally:
        os._exit(127)


def _report(report: int, text: str) -> None:
    os.write(report, text.encode(errors="surrogateescape")[:4000])  # names of files may be any bytes


def _join(group: str) -> None:
    """Moves this process into a control group. If the group refuses, does nothing, since the supervisor then enforces the limits."""
    with suppress(OSError):
        descriptor = os.open(group, os.O_WRONLY | os.O_CLOEXEC)
        with suppress(OSError):
            os.write(descriptor, b"0")
        os.close(descriptor)


def _execute(argv: list[str], environment: Mapping[str, str]) -> None:
    refused: OSError | None = None
    for path in candidates(argv[0], environment.get("PATH", os.defpath)):
        try:
            os.execve(path, argv, environment)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.exists(path):
                raise
        except PermissionError as error:
            refused = error  # like a shell: another folder may have the program
    raise refused or FileNotFoundError(2, "not found")
