"""The supervisor: a process beside a worker that starts, owns, reaps and ends every child of that worker.

The worker makes the pipes of a child and sends the child's ends with the request, so the output of children never passes
through the supervisor. The supervisor is a subreaper: it becomes the parent of each of its descendants whose own parent
has ended, even of one in a session of its own. When the worker ends, its socket to the supervisor is closed. The
supervisor then sends SIGTERM to all its descendants, and SIGKILL a second later, until it has no child left.

A message between the two, in either direction, is four bytes with its length, and then JSON. A request to spawn carries
three descriptors.

The supervisor has one thread and no event loop, so a child that it forks may run Python code until it executes its
program. The supervisor imports nothing but the standard library and this folder.
"""

import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sabot.base.proc import numbers_of
from sabot.process.cgroups import ControlGroups, group_of
from sabot.process.launcher import become_subreaper, launch
from sabot.process.lease import Lease, end_what_is_left
from sabot.process.sandbox.confine import prepare
from sabot.process.tree import (
    TAGS,
    above,
    below,
    children_of,
    end,
    may_be_signalled,
    own_tags,
    peak_memory,
    shared_memory_of,
    signal_all,
    tag_of,
)

_LENGTH = struct.Struct("!I")
_FAREWELL_SECONDS = 1.0  # between SIGTERM and SIGKILL when the worker has ended
_PATIENCE_SECONDS = 15.0  # for what cannot be killed: another user's, or one that hangs in the kernel
_AGAIN_SECONDS = 0.02  # between two looks at what was killed
_LONGEST_WAIT_SECONDS = 3600.0  # epoll takes at most 24 days
_LOOK_SECONDS = 0.1  # between two measurements, which are to take a twentieth of the time
_LOOK_SHARE = 20
_BURST_SECONDS = 0.5  # who has computed less than its share may catch up on this much of it
_NEWS = os.WEXITED | os.WSTOPPED | os.WCONTINUED
_STOP_SECONDS = 1.0  # between SIGTERM and SIGKILL when the time of a child is over


def framed(message: Mapping[str, Any]) -> bytes:
    """Returns the bytes in which a message is sent between a worker and its supervisor."""
    data = json.dumps(message).encode()
    return _LENGTH.pack(len(data)) + data


def cut_frames(received: bytearray) -> Iterator[Any]:
    """Yields the complete messages at the beginning of these bytes, and removes each of them from `received`. An
    incomplete message at the end remains in `received`.
    """
    while len(received) >= _LENGTH.size:
        end = _LENGTH.size + _LENGTH.unpack_from(received)[0]
        if len(received) < end:
            return
        message = json.loads(received[_LENGTH.size : end])
        del received[:end]
        yield message


class _Child:
    def __init__(self, number: int, tag: int) -> None:
        self.number = number
        self.tag = tag
        self.pid = 0
        self.is_known = False  # whether the program was executed, or why not
        self.failure: dict[str, Any] | None = None
        self.status: int | None = None  # of waitpid, when it has ended
        self.cpu_seconds = 0.0  # of what has been reaped
        self.deadline: float | None = None  # SIGKILL to all that is left of it
        self.limits: dict[str, Any] = {}
        self.last_moment: float | None = None  # the end of its time
        self.limit: str | None = None  # what ended it
        self.looked_at = time.monotonic()
        self.allowance = 0.0  # CPU seconds that it may use now
        self.seen_cpu = 0.0
        self.throttled = False
        self.paused = False  # by the worker

    @property
    def is_measured(self) -> bool:
        return self.deadline is None and any(self.limits.get(each) for each in ("memory", "cpu", "processes"))

    @property
    def group(self) -> str:
        return group_of(self.tag)


class SupervisorProcess:
    """The supervisor, as it runs in its own process; `client.Supervisor` is the other end of the connection, in the
    worker. Its loop handles the requests of the worker, and enforces the limits of the children.
    """

    def __init__(self, worker: socket.socket, worker_pid: int, groups: ControlGroups, leases: Path) -> None:
        self._worker = worker
        self._pid = os.getpid()
        self._selector = selectors.DefaultSelector()
        self._received = bytearray()
        self._descriptors: deque[int] = deque()
        self._unsent = bytearray()
        self._children: dict[int, _Child] = {}
        self._leaders: dict[int, _Child] = {}
        self._farewell: float | None = None  # when the worker ended
        self._ask_to_end = False
        self._groups = groups
        self._emptied: set[str] = set()  # groups that are to be removed
        self._next_look = 0.0
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        # root may; else a program that forks without end takes most of the CPU until it is ended
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, self._nice - 10)
        end_what_is_left(leases, groups)
        self._tags = own_tags()
        self._lease = Lease(leases, self._tags)
        self._lease.watch(groups)
        become_subreaper()
        self._woken, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _noted)
        signal.signal(signal.SIGTERM, self._asked_to_end)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # they are for the worker, which ends the children in good order
        worker.setblocking(False)
        self._selector.register(worker, selectors.EVENT_READ, self._talk)
        self._selector.register(self._woken, selectors.EVENT_READ, self._drain_wakes)
        self._watch(worker_pid)

    def run(self) -> None:
        """Serves the worker until it has ended, and then ends all children. Returns when none is left, or 15 s after
        the end of the worker if some cannot be ended.
        """
        self._say({"event": "ready", "pid": self._pid, "groups": self._groups.controllers, "lease": self._lease.name})
        while True:
            for key, _ in self._selector.select(self._wait_seconds()):
                key.data(key.fileobj)
            if self._ask_to_end:
                self._say_farewell()
            childless = self._reap()
            patient = self._farewell is None or time.monotonic() < self._farewell + _PATIENCE_SECONDS
            if self._farewell is not None and not (patient and (self._emptied or not childless)):
                if childless:
                    self._lease.give_up()
                return
            self._end_what_is_due()

    # -- the worker ---------------------------------------------------------------------------------------------------

    def _watch(self, worker_pid: int) -> None:
        """Begins to watch the process of the worker, by its pid. To watch the socket between the worker and this
        supervisor would not be enough: a fork of the worker may keep the worker's end of the socket open after the worker
        has ended.
        """
        with suppress(OSError):
            self._selector.register(os.pidfd_open(worker_pid), selectors.EVENT_READ, self._say_farewell)
        if os.getppid() != worker_pid:
            self._say_farewell()

    def _talk(self, _: object) -> None:
        self._send_more()
        try:
            data, descriptors, _flags, _address = socket.recv_fds(self._worker, 1 << 16, 64)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        for each in descriptors:
            os.set_inheritable(each, False)
        self._descriptors.extend(descriptors)
        if not data:
            self._say_farewell(self._worker)
            return
        self._received += data
        for request in cut_frames(self._received):
            self._answer(request)

    def _answer(self, request: dict[str, Any]) -> None:
        number = request["child"]
        if request["do"] == "spawn":
            self._spawn(number, request)
            return
        child = self._children.get(number)
        match request["do"]:
            case "signal" if child is not None and child.status is None:
                child.paused = child.paused and request["signal"] != signal.SIGCONT
                with suppress(OSError):  # it has ended, is somebody else's, or the kernel has no such signal
                    os.killpg(child.pid, request["signal"])
            case "pause" if child is not None:
                self._pause(child)
            case "cpu" if child is not None:
                self._hold(child, request["percent"])
            case "resume" if child is not None:
                child.paused = child.throttled = False
                signal_all(self._members(child), signal.SIGCONT)
                self._say({"event": "continued", "child": child.number})  # before the answer to what is asked next
            case "stop" if child is not None:
                child.limit = child.limit or request.get("limit")
                self._stop(child, request["grace"])
            case "time" if child is not None:
                seconds = request["seconds"]
                child.last_moment = None if seconds is None else time.monotonic() + seconds
            case "usage":
                self._say({"event": "usage", "ask": request["ask"], **self._usage(child)})

    def _pause(self, child: _Child) -> None:
        """Stops all processes of a child (SIGSTOP). Repeats this until it finds no new ones, but at most 100 times,
        since a process may fork while the others are being stopped.
        """
        child.paused = True
        if child.throttled:  # it is stopped already, so that the system will not tell of it
            self._say({"event": "stopped", "child": child.number})
        stopped = set[int]()
        for _ in range(100):
            if not (new := set(self._members(child)) - stopped):
                break
            signal_all(new, signal.SIGSTOP)
            stopped |= new

    def _say(self, message: dict[str, Any]) -> None:
        if self._farewell is None:
            self._unsent += framed(message)
            self._send_more()

    def _send_more(self) -> None:
        """Sends as many of the queued messages to the worker as its socket accepts at once. Does not wait for the
        worker, which may be stopped in a debugger; the loop sends the rest later.
        """
        try:
            while self._unsent:
                del self._unsent[: self._worker.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:  # it has ended, which the end of what it sends says too
            self._unsent.clear()
        if self._farewell is None:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
            self._selector.modify(self._worker, wanted, self._talk)

    def _say_farewell(self, over: Any = None) -> None:
        """Begins to end all children: sends them SIGTERM. The loop of the supervisor sends SIGKILL later. Called when
        the worker has ended, or when the supervisor has got a signal to end. `over`: a file that the loop must not
        watch any more, or None.
        """
        for each in (over, self._worker):
            with suppress(KeyError, ValueError):
                self._selector.unregister(each)
        if self._farewell is None:
            self._farewell = time.monotonic()
            for child in self._children.values():
                child.deadline = self._farewell + _FAREWELL_SECONDS
            signal_all(below(self._pid), signal.SIGTERM)
            signal_all(below(self._pid), signal.SIGCONT)

    def _asked_to_end(self, number: int, frame: object) -> None:
        self._ask_to_end = True  # a handler runs between any two steps of the rest

    # -- beginnings ---------------------------------------------------------------------------------------------------

    def _spawn(self, number: int, plan: dict[str, Any]) -> None:
        streams = [self._descriptors.popleft() for _ in range(3)]
        child = _Child(number, self._tags + number % TAGS)
        child.limits = plan["limits"]
        plan["nice"] = self._nice
        plan["rlimits"] = child.limits.get("rlimits", ())
        plan["groups"] = self._groups.make(child.group, child.limits) if child.limits else ()
        if child.limits.get("seconds"):
            child.last_moment = time.monotonic() + child.limits["seconds"]
        if plan["sandbox"] is not None:
            prepare(plan["sandbox"])
        report, writer = os.pipe2(os.O_CLOEXEC)
        # Until `launch` has put away the handler of this process, SIGTERM waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        try:
            child.pid = os.fork()
        except OSError as error:  # no more processes, or no memory
            os.close(report)
            self._say({"event": "failed", "child": number, "step": "fork", "errno": error.errno})
            return
        finally:
            if child.pid == 0 and os.getpid() != self._pid:
                launch(plan, streams, child.tag, writer, self._pid)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            for each in (writer, *streams):
                os.close(each)
        self._children[number] = self._leaders[child.pid] = child
        self._selector.register(report, selectors.EVENT_READ, lambda _: self._began(child, report))

    def _began(self, child: _Child, report: int) -> None:
        """Reads the report of a forked child from the pipe `report`. If the program runs, sends this to the worker.
        If a step before it failed, keeps the failure; it is sent to the worker when the child has been reaped.
        """
        said = os.read(report, 4096).decode(errors="surrogateescape")
        self._selector.unregister(report)
        os.close(report)
        child.is_known = True
        if said:
            step, number, *what = said.split(" ", 2)
            child.failure = {"step": step, "errno": int(number), "what": "".join(what)}  # said when it is reaped
        else:
            self._say({"event": "began", "child": child.number, "pid": child.pid, "at": time.time()})

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _reap(self) -> bool:
        """Reaps processes that have ended, including orphans, which become children of this process. Returns True if this process has no
        child left.
        """
        childless = False
        while True:
            try:
                news = os.waitid(os.P_ALL, 0, _NEWS | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                childless = True
                break
            if news is None:
                break
            stray = None if news.si_pid in self._leaders else self._owner_of(news.si_pid)  # while it can be told
            pid, status, used = os.wait4(news.si_pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if pid == 0:  # it is told no more: who was stopped goes on
                continue
            child = self._leaders.get(pid)
            if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
                if os.WIFCONTINUED(status) and child is not None and child.paused and child.deadline is None:
                    self._pause(child)  # somebody else has continued it
                    continue
                if child is not None and (child.paused or not child.throttled):
                    state = "stopped" if os.WIFSTOPPED(status) else "continued"
                    self._say({"event": state, "child": child.number})
                continue
            if child is not None:
                del self._leaders[pid]
                child.status = status
            if (owner := child or stray) is not None:
                owner.cpu_seconds += used.ru_utime + used.ru_stime
                if status and owner.limit is None and self._took_more(owner, used.ru_maxrss << 10):
                    owner.limit = "max_memory_bytes"
        self._end_strays()
        return childless

    def _took_more(self, child: _Child, peak: int) -> bool:
        """Returns True if a process of the child has had more memory than the child's limit, which measurements may
        have missed. `peak`: the most memory, in bytes, that this process has had, by the kernel's count. It has
        ended.

        A child begins as a fork of the supervisor, so the kernel's count starts with the supervisor's own peak. If
        `peak` is not higher than that, it proves nothing, and the result is False.
        """
        most = child.limits.get("memory")
        return most is not None and peak > max(most, peak_memory())

    def _owner_of(self, pid: int) -> _Child | None:
        tag = tag_of(pid)
        return next((child for child in self._children.values() if child.tag == tag), None)

    def _end_strays(self) -> None:
        """Ends descendants whose child's program has ended. If a child has no descendant left, reports to the worker
        that the child has ended.
        """
        strays = [pid for pid in children_of(self._pid) if pid not in self._leaders]
        owners: dict[int | None, _Child] = {child.tag: child for child in self._children.values()}
        now = time.monotonic()
        left, doomed = set[int](), list[int]()
        for pid in strays:
            owner = owners.get(tag_of(pid))
            if owner is None:  # of a supervisor below this one that was killed
                doomed.append(pid)
            elif owner.status is not None and may_be_signalled(pid):
                left.add(owner.number)
                if owner.deadline is None or now >= owner.deadline:
                    doomed.append(pid)
        end(doomed)
        over = [each for each in self._children.values() if each.status is not None and each.is_known]
        for child in [each for each in over if each.number not in left]:
            del self._children[child.number]
            if child.failure is not None:
                self._say({"event": "failed", "child": child.number, **child.failure})
            else:
                if child.limits.get("memory") and self._groups.ran_out_of_memory(child.group):
                    child.limit = "max_memory_bytes"
                used = {"status": child.status, "cpu": child.cpu_seconds, "limit": child.limit}
                self._say({"event": "ended", "child": child.number, **used})
            if child.limits:
                self._emptied.add(child.group)
        self._emptied = {each for each in self._emptied if not self._groups.remove(each)}

    def _stop(self, child: _Child, grace: float) -> None:
        members = self._members(child)
        child.deadline = time.monotonic() + grace
        if grace > 0:
            signal_all(members, signal.SIGTERM)
            signal_all(members, signal.SIGCONT)  # what is stopped hears nothing else
        else:
            self._kill(child)

    def _kill(self, child: _Child) -> None:
        self._groups.kill(child.group)
        end(self._roots(child))  # also what was never in a group

    def _end_what_is_due(self) -> None:
        now = time.monotonic()
        if self._farewell is not None:
            if now >= self._farewell + _FAREWELL_SECONDS:
                end(children_of(self._pid))
            return
        for child in list(self._children.values()):
            if child.last_moment is not None and now >= child.last_moment and child.deadline is None:
                child.limit = "max_task_duration"
                self._stop(child, _STOP_SECONDS)
            if child.deadline is not None and now >= child.deadline:
                self._kill(child)
        if now >= self._next_look and (measured := [each for each in self._children.values() if each.is_measured]):
            self._look(measured, now)

    def _look(self, measured: list[_Child], now: float) -> None:
        """Measures the children in `measured`, ends those that exceed a limit, and slows down those that use too much CPU."""
        for child in measured:
            members = self._members(child)
            found = self._used_by(child, members)
            limits = child.limits
            if limits["memory"] and found["memory"] > limits["memory"]:
                child.limit = "max_memory_bytes"
            elif limits["processes"] and found["processes"] > limits["processes"]:
                child.limit = "max_processes"
            if child.limit is not None:
                self._stop(child, 0.0)
            elif limits["cpu"]:
                self._throttle(child, members, found["cpu"], limits["cpu"] / 100, now)
        self._next_look = now + max(_LOOK_SECONDS, _LOOK_SHARE * (time.monotonic() - now))

    def _throttle(self, child: _Child, members: list[int], used: float, share: float, now: float) -> None:
        """Keeps the CPU usage of a child within its share: stops its processes (SIGSTOP) when they have used more,
        and continues them when enough time has passed.

        - `members`: the pids of the child's processes. `used`: the CPU seconds that they have used so far.
        - `share`: the share of a core that the child may use, such as 0.5. `now`: the time of the measurement, in
          seconds of a monotonic clock.
        """
        earned, spent = share * (now - child.looked_at), max(0.0, used - child.seen_cpu)
        child.allowance = min(share * _BURST_SECONDS, child.allowance + earned - spent)
        child.looked_at, child.seen_cpu = now, used
        if child.allowance < 0:
            child.throttled = True
            signal_all(members, signal.SIGSTOP)
        elif child.throttled:
            child.throttled = False
            if not child.paused:
                signal_all(members, signal.SIGCONT)

    def _hold(self, child: _Child, percent: float | None) -> None:
        """Limits the CPU of a child to `percent` of a core from now on, by a control group if possible. None removes
        the limit.
        """
        child.limits = {"memory": None, "processes": None, **child.limits, "cpu": percent}
        members = self._members(child)
        child.looked_at, child.seen_cpu = time.monotonic(), self._used_by(child, members)["cpu"]
        child.allowance = 0.0
        if percent is None:
            self._groups.free_cpu(child.group)
            if child.throttled:
                child.throttled = False
                if not child.paused:
                    signal_all(members, signal.SIGCONT)
            return
        for group in self._groups.make(child.group, {"cpu": percent, "memory": None, "processes": None}):
            for pid in members:  # who is being forked meanwhile is measured, as all are where there are no groups
                with suppress(OSError), open(group, "w") as joined:
                    joined.write(str(pid))

    def _wait_seconds(self) -> float | None:
        now = time.monotonic()
        if self._farewell is not None:
            return max(_AGAIN_SECONDS, self._farewell + _FAREWELL_SECONDS - now)
        due = [self._next_look] if any(child.is_measured for child in self._children.values()) else []
        for child in self._children.values():
            if (moment := child.last_moment if child.deadline is None else child.deadline) is not None:
                due.append(moment)
        if self._emptied:
            due.append(now)
        return min(max(_AGAIN_SECONDS, min(due) - now), _LONGEST_WAIT_SECONDS) if due else None

    def _drain_wakes(self, _: object) -> None:
        with suppress(BlockingIOError):
            while os.read(self._woken, 4096):
                pass

    # -- what belongs to a child --------------------------------------------------------------------------------------

    def _roots(self, child: _Child) -> list[int]:
        """Returns the pids of the processes of a child whose parent is the supervisor: the program itself, if it
        runs, and descendants whose own parent has ended.
        """
        roots = [] if child.status is not None else [child.pid]
        others = (pid for pid in children_of(self._pid) if pid not in self._leaders)
        return [*roots, *(pid for pid in others if tag_of(pid) == child.tag)]

    def _members(self, child: _Child) -> list[int]:
        roots = self._roots(child)
        return [*roots, *(pid for root in roots for pid in below(root))]

    def _usage(self, child: _Child | None) -> dict[str, float]:
        if child is None:
            return {"processes": 0, "memory": 0, "cpu": 0.0}
        return self._used_by(child, self._members(child))

    def _used_by(self, child: _Child, members: list[int]) -> dict[str, float]:
        figures = [found for pid in members if (found := numbers_of(pid)) is not None]
        return {
            "processes": len(figures),
            "memory": sum(memory for memory, _ in figures) + shared_memory_of(members),
            "cpu": sum(cpu for _, cpu in figures) + child.cpu_seconds,
        }


def _noted(number: int, frame: object) -> None:
    """Does nothing. Python wakes the selector of the loop at a signal only if the signal has a handler; this is the
    handler.
    """


def main() -> None:
    """Runs the supervisor. The program is started with four arguments: the descriptor of the socket to the worker, the
    pid of the worker, the folder where control groups are mounted (which may be missing), and the folder of leases.
    """
    worker = socket.socket(fileno=int(sys.argv[1]))
    worker.set_inheritable(False)
    worker_pid = int(sys.argv[2])
    groups = ControlGroups(Path(sys.argv[3]))
    groups.hand_down([*above(worker_pid), worker_pid, *below(worker_pid)])
    SupervisorProcess(worker, worker_pid, groups, Path(sys.argv[4])).run()
