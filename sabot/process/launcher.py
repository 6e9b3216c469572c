"""The steps of a child between fork and exec. The supervisor that forks the child has a single thread, so the steps may
run any Python code.

The steps make the child the leader of a session of its own, reset its signal handlers, set its three streams, its
limits and its directory, and execute the program. The child reports the result to the supervisor over a pipe
(`report`). If a step fails, the child writes the name of the step and the errno to the pipe, and ends. If the program
is executed, nothing is written, and the pipe is closed.
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
"""The resource limit RLIMIT_LOCKS, whose value marks the descendants of a child (`tree.own_tags`). The kernel keeps
this limit for each process, but has not used it since Linux 2.4. Each descendant inherits the value, even in a session
of its own or with another parent, and it can be read from /proc."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Makes this process a subreaper: it becomes the parent of each of its descendants whose own parent ends."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the system gives no subreaper")


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Asks the kernel to send the signal `number` to this process when the thread that has forked it ends, in
    whatever way. Ends this process at once if the parent has ended already. `parent`: the pid of the parent.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(127)


def candidates(program: str, path: str) -> Iterator[str]:
    """Yields the paths at which a program may be found: the name itself if it contains a slash, else that name in
    each folder of `path`, which is a value of the variable PATH.
    """
    if "/" in program:
        yield program
    else:
        for folder in path.split(os.pathsep):
            yield os.path.join(folder or ".", program)


def launch(plan: Mapping[str, Any], streams: Sequence[int], tag: int, report: int, parent: int) -> None:
    """Does all steps in the forked process, and executes the program. Never returns.

    - `plan`: the request to start a program, a dict with `argv`, `environment`, `directory`, `nice`, `rlimits` (pairs
      of a resource limit and its value), `groups` (the files by which a process joins its control groups), and
      `sandbox` (None, or the plan for `confine.confinement`).
    - `streams`: the descriptors that become stdin, stdout and stderr.
    - `tag`: a number that marks the process and all its descendants, so that the supervisor finds them.
    - `report`: the pipe on which a failed step is reported to the supervisor. `parent`: the supervisor's pid.
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
    """Moves this process into a control group. If the kernel refuses, does nothing: the supervisor then enforces the
    limits by measuring. `group`: the group's file `cgroup.procs`.
    """
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
