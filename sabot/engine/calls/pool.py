"""Threads for calls of sync functions, made when needed. They are threads of control (`sabot.base.threads`): a simulation
runs their turns, and a call that never returns does not keep the process from ending.
"""

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Lock

from sabot.base.threads import threads
from sabot.clock import Clock

Work = Callable[[], Callable[[], None]]
"""A call, made in a thread. Its result is a function that is called in the same thread when the thread is free for
the next call. Neither raises.
"""

_IDLE_SECONDS = 5.0  # an idle thread ends after this time


class ThreadPool:
    """A pool of threads that make calls. A call runs in the thread that became free last, or in a new thread if none
    is free. The pool sets no limit on the number of threads; its owner has to limit the number of calls.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = Lock()
        self._free: list[_PoolThread] = []
        self._made = 0
        self.alive = 0  # the number of threads, including those whose calls never return

    def run(self, work: Work) -> None:
        """Passes the call to a free thread, or to a new thread if none is free. Does not wait for the call."""
        with self._lock:
            thread = self._free.pop() if self._free else None
            if thread is not None:
                thread.works.put(work)
                return
            self._made += 1
            self.alive += 1
            name = f"sabot-tool-{self._made}"
        thread = _PoolThread(self)
        thread.works.put(work)
        threads.spawn(name, thread.turn).start()

    def freed(self, thread: "_PoolThread") -> None:
        """Adds the thread, which has ended its call, to the free threads."""
        thread.free_since = self._clock.monotonic()
        with self._lock:
            self._free.append(thread)

    def ends(self, thread: "_PoolThread") -> bool:
        """Returns True if this thread has been idle long enough to end, and removes it from the free threads."""
        with self._lock:
            if thread not in self._free or self._clock.monotonic() - thread.free_since < _IDLE_SECONDS:
                return False
            self._free.remove(thread)
            self.alive -= 1
            return True


class _PoolThread:
    def __init__(self, pool: ThreadPool) -> None:
        self.works: SimpleQueue[Work] = SimpleQueue()
        self.free_since = 0.0
        self._pool = pool

    def turn(self, wait_s: float) -> bool | None:
        """Makes the next call that was passed to this thread. If there is none, waits at most `wait_s` seconds for
        one. Returns True after a call, None if no call came, and False if the thread has to end because it was idle
        for too long.
        """
        try:
            work = self.works.get(timeout=wait_s)
        except Empty:
            return False if self._pool.ends(self) else None
        tell = work()
        self._pool.freed(self)
        tell()
        return True
