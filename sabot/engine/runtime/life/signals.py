"""SIGINT, SIGTERM and SIGHUP: the first one asks the running apps to stop in good order, the second one ends the
process at once.

    StopSignals        handles the signals of the process; main thread
    ├── held()         by a program that is one app, from before the app is there: `sabot run`, `app.main()`
    └── asked(stop)    around the run of an app; it handles the signals itself if `held` does not

It uses `signal.signal` and not `loop.add_signal_handler`, because the second signal must work while an agent blocks
the event loop. A signal that comes before the app can stop is kept, and the app is asked as soon as it can.
"""

import asyncio
import contextlib
import logging
import math
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from sabot.base.logs import as_json
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.runtime.tasks.blocking import held_up_by

SECOND_SIGNAL_SECONDS = 0.3  # `timeout` and some shells send each signal twice, to the process and to its group

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOPPING = "stopping in good order; again to stop at once"
_AT_ONCE = "stopped at once; the last complete checkpoint counts"


class Interrupted(KeyboardInterrupt):
    """The exception with which a signal ends code that runs before the app. `code`: the exit code of the process, 128
    + the number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class StopSignals:
    """The signal handlers of the process. `first`: the signal that asked for the stop, or 0. All methods run in the
    main thread, `_on_signal` between any two lines of it.
    """

    _holder: "StopSignals | None" = None  # the handler of this process

    def __init__(self, *, whole_process: bool) -> None:
        self.first = 0
        self._whole_process = whole_process
        self._of_runs = False  # True: the handlers are restored when the last run that uses them is over
        self._raises = False  # True while code runs that has nothing to close, which the first signal interrupts
        self._last = 0.0
        self._within_s = math.inf
        self._waiting: threading.Timer | None = None  # ends the process some time after the first signal
        self._stops: list[Callable[[], None]] = []
        self._waking = contextlib.ExitStack()  # wakes the loop on signals while an app can be stopped
        self._before: dict[int, Any] = {}

    # -- who holds them -----------------------------------------------------------------------------------------------

    @classmethod
    @contextlib.contextmanager
    def held(cls, *, for_good: bool = False) -> Iterator["StopSignals"]:
        """Handles the signals for a program that consists of one app: the second signal ends the process.

        `for_good`: True to keep the handlers until the process has ended, which a thread of the user's may delay, and
        to replace handlers that others have set.
        """
        signals = cls(whole_process=True)
        if cls._holder is not None or threading.current_thread() is not threading.main_thread():
            yield signals
            return
        signals._take(claim=for_good)
        try:
            yield signals
        finally:
            if not for_good:
                signals._give_back()
                if signals._waiting is not None:
                    signals._waiting.cancel()

    @classmethod
    @contextlib.contextmanager
    def asked(cls, stop: Callable[[], None], within_s: float = math.inf) -> Iterator[None]:
        """Handles the signals around the run of an app, on its event loop, by calling `stop`, perhaps at once and
        more than once. `within_s`: if the process belongs to the app, it ends this many seconds after the first
        signal, whatever still runs.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        holder = cls._holder
        if holder is None:
            holder = cls(whole_process=False)
            holder._of_runs = True
            holder._take(claim=False)
        if not holder._stops:
            holder._waking.enter_context(_woken_by_signals(asyncio.get_running_loop()))
        holder._stops.append(stop)
        holder._within_s = within_s
        try:
            if holder.first:
                stop()
                holder._begin_to_wait()
            yield
        finally:
            holder._stops.remove(stop)
            if not holder._stops:
                holder._waking.close()
                if holder._of_runs:
                    holder._give_back()

    def _take(self, claim: bool) -> None:
        """Sets handlers for the signals that have Python's default handler; with `claim`, for those with other
        handlers too. An ignored signal stays ignored (nohup, or a program that a script runs in the background); with
        `claim`, only SIGHUP.
        """
        StopSignals._holder = self
        for number in _NUMBERS:
            before = signal.getsignal(number)
            free = before in (signal.SIG_DFL, signal.default_int_handler) or _runner(before) is not None
            if free or (claim and (number != signal.SIGHUP or before != signal.SIG_IGN)):
                self._before[number] = before
                signal.signal(number, self._on_signal)

    def _give_back(self) -> None:
        StopSignals._holder = None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @classmethod
    def _forget(cls) -> None:
        """Restores the earlier handlers in a forked child, which has no app to stop."""
        holder, cls._holder = cls._holder, None
        if holder is None:
            return
        signal.set_wakeup_fd(-1)
        for number, before in holder._before.items():
            signal.signal(number, signal.default_int_handler if _runner(before) is not None else before)

    # -- a signal -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Raises Interrupted in the wrapped code on the first signal, at the latest at its end. For code that has
        nothing to close, such as imports.
        """
        self._raises = True
        try:
            yield
        finally:
            self._raises = False
        if self.first:  # Interrupted was raised in code that swallows errors
            raise Interrupted(self.first)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = SYSTEM_CLOCK.monotonic()
        if not self.first:
            self.first, self._last = number, now
            if self._raises:
                raise Interrupted(number)
            if not self._of_runs:
                _say(_STOPPING, logging.INFO)
            for stop in list(self._stops):
                stop()
            self._begin_to_wait()
        elif now - self._last >= SECOND_SIGNAL_SECONDS:
            self._last = now
            self._again(number)

    def _begin_to_wait(self) -> None:
        """Starts a timer that ends the process even if a function of the user's, or a thread that Python waits for at
        its end, does not return.
        """
        if (
            self._whole_process
            and not self._of_runs
            and self._within_s < threading.TIMEOUT_MAX
            and self._waiting is None
        ):
            self._waiting = threading.Timer(self._within_s, self._too_long, (threading.get_ident(),))
            self._waiting.daemon = True
            self._waiting.start()

    def _too_long(self, main_thread: int) -> None:
        """Ends the process, in a thread of its own. `main_thread`: the thread that has not ended."""
        found = held_up_by(main_thread)
        where = "" if found is None else f"; still in {found[1]}"
        _say(f"not stopped within {self._within_s:g} s{where}")
        _say(_AT_ONCE)
        os._exit(128 + self.first)

    def _again(self, number: int) -> None:
        """Handles the second signal: ends the process at once if it belongs to the app, else does what Python does by
        default.
        """
        before = self._before[number]
        if self._whole_process:
            _say(_AT_ONCE)
            os._exit(128 + number)
        if _runner(before) is not None:
            self._whole_process = True
        else:
            signal.signal(number, before)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.raise_signal(number)


os.register_at_fork(after_in_child=StopSignals._forget)


def _runner(handler: Any) -> asyncio.Runner | None:
    """Returns the `asyncio.Runner` whose handler of SIGINT this is, or None. `asyncio.run` sets
    partial(runner._on_sigint, …).
    """
    runner = getattr(getattr(handler, "func", None), "__self__", None)
    return runner if isinstance(runner, asyncio.Runner) else None


def _say(words: str, level: int = logging.WARNING) -> None:
    """Writes a line to stderr without blocking: a reader that stands still, or Ctrl-S in a terminal, must not delay the
    stop. It is not logged, as the signal may have come while this thread held the lock of a handler.
    """
    if sys.__stderr__ is None:  # stderr was closed from the start, so another file may have its descriptor
        return
    taken = select.poll()
    taken.register(2, select.POLLOUT)
    with contextlib.suppress(OSError):  # SIGHUP: the terminal is gone
        if any(events & select.POLLOUT for _, events in taken.poll(0)):
            os.write(2, f"{as_json(words, level) or f'sabot: {words}'}\n".encode(errors="replace"))


@contextlib.contextmanager
def _woken_by_signals(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Makes signals wake the event loop. Python's handlers run in the main thread when it comes back from waiting; a
    signal that another thread took, or that came just before the wait, would else be handled only when something else
    wakes the loop.
    """
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        try:
            loop.add_reader(reader, _emptied, reader)
        except NotImplementedError:  # a simulation waits for nothing
            yield
            return
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        if before != -1:  # a handler that the user has added to the loop uses it
            signal.set_wakeup_fd(before)
        try:
            yield
        finally:
            loop.remove_reader(reader)
            after = signal.set_wakeup_fd(-1)
            if after != writer.fileno():
                signal.set_wakeup_fd(after)  # code that ran later uses it


def _emptied(reader: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while reader.recv(4096):
            pass
