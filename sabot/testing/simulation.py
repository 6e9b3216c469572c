"""Runs an app in a simulation: on one thread, in virtual time, with all choices made by a seed, so that a failure can
be repeated.
"""

import errno
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sabot.app import App
from sabot.errors import SabotError
from sabot.testing.lives import Life, temporary_directory
from sabot.testing.loop import SimulatedLoop

_FAULT_SHARE = 0.05  # the share of the steps that fail, until there are enough faults
_CANNOT_FAIL = ("call", "outcome")  # steps around a tool's call: the tool itself raises if it fails
_END_TURNS = (30, 4000)  # the turns after which a life may end early


@dataclass
class Simulation:
    """The record of a simulation. The same seed gives the same record, except with a state directory: RocksDB's
    files, and so the steps that save them, may vary.
    """

    seed: int
    lives: int = 0
    crashes: int = 0
    stops: int = 0
    faults: int = 0
    turns: int = 0
    seconds: float = 0.0  # virtual time in total
    steps: list[str] = field(default_factory=list)  # in order, each as "turn life part: name"


@dataclass(frozen=True)
class _End:
    """The place at which a simulated run of the app (a life) is cut short: after this turn of its event loop, by a
    crash or by a stop.
    """

    turn: int
    is_crash: bool


class _SimulatedLife(Life):
    """A Life whose steps are recorded, and which ends by a crash or a stop after a given number of turns."""

    def __init__(
        self,
        app: App,
        died_at: set[tuple[str, int]],
        loop: SimulatedLoop,
        so_far: Simulation,
        end: _End | None,
        faults: int,
    ) -> None:
        super().__init__(app, died_at)
        self.stopped = False
        self._simulated = loop
        self._so_far = so_far
        self._end = end
        self._faults = faults
        loop.on_turn = self._check_end

    def _check_end(self) -> None:
        if self._end is not None and self._simulated.turns >= self._end.turn:
            if self._end.is_crash:
                self.die()
            elif not self.dead:
                self.stopped = True
                self.app.request_stop()
            self._end = None

    def before(self, name: str, what: str) -> None:
        super().before(name, what)
        whose = self._simulated.now_in.split()[0]  # only the first word: the rest may name a directory, which varies
        done = f"{self._simulated.turns} {self._so_far.lives} {whose}: {name}"
        if self._faults and name not in _CANNOT_FAIL and self._simulated.dice.random() < _FAULT_SHARE:
            self._faults -= 1
            self._so_far.faults += 1
            self._so_far.steps.append(f"{done} (fails)")
            raise OSError(errno.EIO, f"the simulation makes this {name} fail", what)
        self._so_far.steps.append(done)

    async def live(self) -> bool:
        """Runs like `Life.live`. An error after an injected fault only ends this life: it returns False."""
        before = self._so_far.faults
        try:
            return await super().live()
        except (SabotError, OSError):
            if self._so_far.faults == before:
                raise
            return False


def simulate(
    build: Callable[[Path], App],
    seed: int,
    *,
    crashes: int = 0,
    stops: int = 0,
    faults: int = 0,
    directory: Path | None = None,
    most_turns: int = 1_000_000,
) -> Simulation:
    """Runs the app that `build(directory)` makes to its end, in a simulation: the event loop, all threads and all
    executors of the engine run on this thread, in an order that the seed decides.

    `crashes`: the greatest number of crashes at random moments, in addition to the CRASH marks of its scripts.
    `stops`: the greatest number of clean stops at random moments. `faults`: the greatest number of steps that fail
    with an OSError. After a crash, a stop, or an error caused by a fault, a new app continues. `directory`: the
    folder of state and checkpoints, by default a temporary one. `most_turns`: the bound of each life, beyond which
    Stuck is raised. `build` may use a `random.Random(seed)` of its own.

    An error gets a note with the seed. The app cannot use brokers, because nothing outside of the process takes part,
    and its topics need a schema. Must not be called where an event loop runs.
    """
    if directory is None:
        with temporary_directory() as folder:
            return simulate(
                build, seed, crashes=crashes, stops=stops, faults=faults, directory=folder, most_turns=most_turns
            )
    dice = random.Random(f"simulation {seed}")
    so_far = Simulation(seed)
    died_at: set[tuple[str, int]] = set()
    ends = [_End(_random_turn(dice), is_crash) for is_crash in [True] * crashes + [False] * stops]
    dice.shuffle(ends)
    try:
        over = False
        while not over:
            so_far.lives += 1
            loop = SimulatedLoop(dice, most_turns=most_turns)  # type: ignore[abstract]  # sockets and processes are not simulated
            over = _run_life(
                build, directory, loop, so_far, died_at, ends.pop() if ends else None, faults - so_far.faults
            )
    except BaseException as error:
        error.add_note(f"in the simulation with seed {seed}, in life {so_far.lives}")
        raise
    return so_far


def _random_turn(dice: random.Random) -> int:
    """Returns a random turn. Half of the draws fall into the start of a life, the others anywhere, so that programs
    with many tasks also end after their first checkpoints.
    """
    least, most = _END_TURNS
    if dice.random() < 0.5:
        return dice.randint(least, most)
    return round(math.exp(dice.uniform(math.log(least), math.log(most))))


def _run_life(
    build: Callable[[Path], App],
    directory: Path,
    loop: SimulatedLoop,
    so_far: Simulation,
    died_at: set[tuple[str, int]],
    end: _End | None,
    faults: int,
) -> bool:
    async def live() -> bool:
        life = _SimulatedLife(build(directory), died_at, loop, so_far, end, faults)
        survived = await life.live()
        so_far.crashes += life.dead
        so_far.stops += survived and life.stopped
        return survived and not life.stopped

    try:
        return bool(loop.run_until_complete(live()))
    finally:
        loop.close()
        so_far.turns += loop.turns
        so_far.seconds += loop.time()
