"""Runs an app in a simulation: one thread, virtual time, every choice made by a seed. So a failure can be repeated."""

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

_FAULT_SHARE = 0.05  # the share of the steps that fail, until the wanted number of faults is reached
_CANNOT_FAIL = ("call", "outcome")  # steps that only announce what a tool does, which says itself what fails
_END_TURNS = (30, 4000)  # a life that is to end early ends after a number of turns in this range


@dataclass
class Simulation:
    """What happened in a simulation. The same seed gives the same, except that with a state directory RocksDB's files, and so the steps
    that save them, may vary.
    """

    seed: int
    lives: int = 0
    crashes: int = 0
    stops: int = 0
    faults: int = 0
    turns: int = 0
    seconds: float = 0.0  # virtual time in all
    steps: list[str] = field(default_factory=list)  # the steps as "turn life whose name", in their order


@dataclass(frozen=True)
class _End:
    """How and after how many turns a life is to end early."""

    turn: int
    is_crash: bool


class _SimulatedLife(Life):
    """A life whose steps are recorded, and which may crash or be stopped after a number of turns."""

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
        loop.on_turn = self._look

    def _look(self) -> None:
        if self._end is not None and self._simulated.turns >= self._end.turn:
            if self._end.is_crash:
                self.die()
            elif not self.dead:
                self.stopped = True
                self.app.request_stop()
            self._end = None

    def before(self, name: str, what: str) -> None:
        super().before(name, what)
        whose = self._simulated.now_in.split()[0]  # the first word, because the rest may name a directory, which varies
        done = f"{self._simulated.turns} {self._so_far.lives} {whose}: {name}"
        if self._faults and name not in _CANNOT_FAIL and self._simulated.dice.random() < _FAULT_SHARE:
            self._faults -= 1
            self._so_far.faults += 1
            self._so_far.steps.append(f"{done} (fails)")
            raise OSError(errno.EIO, f"the simulation lets this {name} fail", what)
        self._so_far.steps.append(done)

    async def live(self) -> bool:
        """Like `Life.live`, but an error after an injected fault only ends this life."""
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
    """Runs the app that `build(directory)` makes in a simulation to its end. In each life the event loop, all threads and all executors
    of the engine run on this thread, in an order that the seed decides. The app crashes where its scripts say, and up to `crashes` times
    more at moments that the seed decides, and is stopped in good order up to `stops` times; each time a new one goes on. Up to `faults`
    of its steps fail with an OSError; where the app ends with an error after that, a new one goes on as well. `build` may draw from a
    `random.Random(seed)` of its own.

    An error gets the seed as a note. Brokers cannot take part, because nothing outside the process does. Topics need a schema. Must be
    called where no event loop runs.
    """
    if directory is None:
        with temporary_directory() as folder:
            return simulate(
                build, seed, crashes=crashes, stops=stops, faults=faults, directory=folder, most_turns=most_turns
            )
    dice = random.Random(f"simulation {seed}")
    so_far = Simulation(seed)
    died_at: set[tuple[str, int]] = set()
    ends = [_End(_some_turn(dice), is_crash) for is_crash in [True] * crashes + [False] * stops]
    dice.shuffle(ends)
    try:
        over = False
        while not over:
            so_far.lives += 1
            loop = SimulatedLoop(dice, most_turns=most_turns)  # type: ignore[abstract]  # sockets and processes are not simulated
            over = _live(build, directory, loop, so_far, died_at, ends.pop() if ends else None, faults - so_far.faults)
    except BaseException as error:
        error.add_note(f"in the simulation with seed {seed}, in life {so_far.lives}")
        raise
    return so_far


def _some_turn(dice: random.Random) -> int:
    """A random turn: half of the draws fall into the start of a life, the others anywhere, so that programs with many tasks, too, are
    ended after their first checkpoints.
    """
    least, most = _END_TURNS
    if dice.random() < 0.5:
        return dice.randint(least, most)
    return round(math.exp(dice.uniform(math.log(least), math.log(most))))


def _live(
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
