"""`Dance`: kills an app and its server again and again while numbered rows pass from a source to a sink, and counts what arrives."""

import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Protocol

from sabot.base.dataclass import dataclass
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import UserError
from sabot.testing.connectors import place as places

__all__ = ["Dance", "Danced", "Killable"]

_ROWS_AT_ONCE = (20, 200)
_MOMENT_SECONDS = 0.3  # kills that wait for no row come within this time
_POLL_SECONDS = 0.05


class Killable(Protocol):
    """A server for a dance to kill. It keeps its address, and the rows that it has called durable."""

    def stop(self) -> None:
        """Kills the server, as kill -9."""

    def start(self) -> None:
        """Starts the server again, and returns when it answers."""


@dataclass(frozen=True)
class Danced:
    """The outcome of a dance. `rows`: how many were put in. `app_kills`, `server_kills`: how often each was killed. `lost`: rows that
    are missing at the end. `repeated`: rows that are there more often than expected. `wrong`: rows that nobody expects.
    """

    rows: int
    app_kills: int
    server_kills: int
    lost: Sequence[Hashable]
    repeated: Sequence[Hashable]
    wrong: Sequence[Hashable]


class Dance:
    """An app between a source and a sink, which is killed with kill -9 again and again, and so is its server if it has one.

    `program`: the text of a program that runs the app, with `state=` in its folder and a short `checkpoint_interval=`, until it is
    killed. `folder`: where it runs. `put`: adds the rows with these numbers to the input, which the dance calls while no server is
    down. `expected`: the row that comes out for a number, such as (n, how many rows of its key there were so far). `rows`: all rows
    that the output has now, read by other code than that of Sabot; [] if there is no output yet.

    What is killed, and after which rows, follows from `seed`. The outcome must be the same at any moment, so it does not depend on
    the speed of the machine.
    """

    def __init__(
        self,
        program: str,
        folder: Path,
        *,
        put: Callable[[Sequence[int]], None],
        rows: Callable[[], Sequence[Hashable]],
        expected: Callable[[int], Hashable],
        server: Killable | None = None,
        seed: int = 0,
    ) -> None:
        self._folder, self._program, self._log = folder, folder / "danced.py", folder / "danced.log"
        self._program.write_text(program)
        self._put, self._rows, self._expected, self._server = put, rows, expected, server
        self._random = random.Random(seed)
        self._given = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._excused = False  # the app may end by itself: its server was killed since it began

    def run(self, kills: int) -> Danced:
        """Runs the app with so many kills, and then until all rows have arrived, or nothing more arrives. Raises UserError, with the end
        of the app's log, if no row arrives between two kills, or the app ends by itself while its server is there.
        """
        app_kills = server_kills = 0
        try:
            for _ in range(kills):
                before = self._there()
                self._give(self._random.randint(*_ROWS_AT_ONCE))
                self._begin()
                if self._random.random() < 0.7:
                    if not self._waited(self._there, before):
                        raise self._failed("no row has arrived")
                else:  # among rows that no checkpoint has, or while it starts
                    threading.Event().wait(self._random.random() * _MOMENT_SECONDS)
                kind = "app" if self._server is None else self._random.choice(["app", "app", "server", "both"])
                if kind != "server":
                    self._kill()
                    app_kills += 1
                if self._server is not None and kind != "app":
                    self._server.stop()
                    self._server.start()
                    self._excused = True
                    server_kills += 1
            self._settle()
            self._kill()
            self._give(1)  # behind all that a start delivers again
            self._settle()
        finally:
            self._kill()
        expected, found = Counter(map(self._expected, range(self._given))), Counter(self._rows())
        return Danced(
            self._given,
            app_kills,
            server_kills,
            lost=list((expected - found).elements()),
            repeated=[row for row in (found - expected).elements() if row in expected],
            wrong=[row for row in found if row not in expected],
        )

    def _settle(self) -> None:
        self._begin()
        expected = Counter(map(self._expected, range(self._given)))
        while expected - Counter(found := self._rows()) and self._waited(self._there, len(found)):
            continue

    def _there(self) -> int:
        return len(self._rows())

    def _waited(self, look: Callable[[], object], before: object) -> bool:
        """Waits until `look` returns something else. Returns False if it does not."""
        until = SYSTEM_CLOCK.monotonic() + places.GUARD_SECONDS
        while look() == before:
            if SYSTEM_CLOCK.monotonic() > until:
                return False
            self._begin()
            threading.Event().wait(_POLL_SECONDS)
        return True

    def _give(self, rows: int) -> None:
        self._put(range(self._given, self._given + rows))
        self._given += rows

    def _begin(self) -> None:
        """Starts the app if it does not run. It may end by itself only when its server was killed."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            if not self._excused:
                raise self._failed("the app has ended by itself")
        self._excused = False
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, self._program], cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _failed(self, what: str) -> UserError:
        said = self._log.read_text(errors="replace")[-2000:]
        return UserError(f"dance of {self._folder}: {what}, after {self._given} rows. The end of its log:\n{said}")
