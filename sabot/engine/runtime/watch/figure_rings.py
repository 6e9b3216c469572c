"""The figures of a running app over time, in rings of fixed size."""

import os
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import msgspec

from sabot.base.dataclass import dataclass
from sabot.base.figures import AppFigures
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.runtime.watch.app_rates import lag_of, rate_of

_FINE = 900  # values of one second each: 15 minutes
_COARSE = 720  # values of ten seconds each: two hours
_COARSE_SECONDS = 10
_RATE_SECONDS = 10  # rates and shares of time are those of so many last seconds
_YEAR_10000_MS = 253_402_300_800_000  # an input that has ended has a watermark of no calendar


class Tick(msgspec.Struct, frozen=True):
    """The figures of an app at one time. `number`: 1, 2, …, one for each second of the run. `at`: seconds since 1970. `steady`:
    the seconds of a steady clock.
    """

    number: int
    at: float
    steady: float
    figures: AppFigures = msgspec.field(name="statistics")


@dataclass
class Curve:
    """A value over time: one value a second for 15 minutes, and one for each ten seconds for two hours. None: not known."""

    fine: deque[float | None] = field(default_factory=lambda: deque(maxlen=_FINE))
    coarse: deque[float | None] = field(default_factory=lambda: deque(maxlen=_COARSE))

    def add(self, value: float | None, number: int) -> None:
        """Adds the value of tick `number`."""
        self.fine.append(value)
        if number % _COARSE_SECONDS == 0:
            known = [each for each in list(self.fine)[-_COARSE_SECONDS:] if each is not None]
            self.coarse.append(sum(known) / len(known) if known else None)


@dataclass(frozen=True)
class KeptFigures:
    """The figures of an app in a file. `ticks`: the first and the last of the last ten seconds. `curves`: both parts of each, by name."""

    ticks: Sequence[Tick] = ()
    curves: Mapping[str, tuple[Sequence[float | None], Sequence[float | None]]] = field(default_factory=dict)


class FigureRings:
    """The last statistics of an app, and its curves. Figures are taken by any thread, and read by any other: a deque is copied, or one
    value of it read, in one step of the interpreter.
    """

    def __init__(self, statistics: Callable[[], Mapping[str, Any]], clock: Clock = SYSTEM_CLOCK) -> None:
        """`statistics`: returns the figures of the app, as `App.statistics` does."""
        self.run = uuid.uuid4().hex[:12]
        self.curves = {name: Curve() for name in ("rows", "lag", "watermark_lag", "memory")}
        self._statistics = statistics
        self._clock = clock
        self._ticks: deque[Tick] = deque(maxlen=_RATE_SECONDS + 1)
        self._number = 0
        self._taking = threading.Lock()

    def take(self) -> Tick:
        """Reads the figures now, and adds them to the rings."""
        with self._taking:
            return self._take()

    def kept(self) -> KeptFigures:
        """Returns the figures for a file."""
        with self._taking:
            ticks = [self._ticks[0], self._ticks[-1]] if self._ticks else []
            curves = {name: (_rounded(each.fine), _rounded(each.coarse)) for name, each in self.curves.items()}
        return KeptFigures(ticks, curves)

    def load(self, run: str, kept: KeptFigures) -> None:
        """Replaces all figures by those of a file. `run`: the run that they are of."""
        with self._taking:
            self.run = run
            self._ticks.clear()
            self._ticks.extend(kept.ticks)
            for name, curve in self.curves.items():
                fine, coarse = kept.curves.get(name, ((), ()))
                curve.fine, curve.coarse = deque(fine, maxlen=_FINE), deque(coarse, maxlen=_COARSE)

    def _take(self) -> Tick:
        self._number += 1
        tick = Tick(self._number, self._clock.time(), self._clock.monotonic(), AppFigures.of(self._statistics()))
        self._ticks.append(tick)
        # as on the pages: a source may read many rows at once, and then none for seconds
        before, rate = (self._ticks[0], None)
        if tick.steady > before.steady:
            rate = rate_of(rows_read(before.figures), rows_read(tick.figures), tick.steady - before.steady)
        watermark = watermark_of(tick.figures)
        values = {
            "rows": rate,
            "lag": unread(tick.figures),
            "watermark_lag": None if watermark is None else max(0.0, tick.at - watermark / 1000),
            "memory": memory_bytes(),
        }
        for name, curve in self.curves.items():
            curve.add(values[name], tick.number)
        return tick

    @property
    def last(self) -> Tick:
        """The last figures; those of now if there are none."""
        return self._ticks[-1] if self._ticks else self.take()

    @property
    def known(self) -> bool:
        """True if there are figures of at least three seconds, without which rates say little."""
        before, now = self.span
        return now.number - before.number >= 3

    @property
    def span(self) -> tuple[Tick, Tick]:
        """The first and the last figures of the last ten seconds, for rates. The first is the last if there is only one."""
        return (self._ticks[0] if self._ticks else self.last), self.last


def _rounded(values: Iterable[float | None]) -> list[float | None]:
    return [None if each is None else round(each, 3) for each in list(values)]


def rows_read(figures: AppFigures) -> int:
    """Returns the number of rows that all sources have read."""
    return sum(each.rows_in for each in figures.inputs)


def unread(figures: AppFigures) -> float | None:
    """Returns the rows, or bytes of files, that sources have not read, or None if no source knows."""
    known = [lag for each in figures.inputs if (lag := lag_of(each)) is not None]
    return sum(known) if known else None


def watermark_of(figures: AppFigures) -> int | None:
    """Returns the least watermark of all sources of streams, in milliseconds since 1970, or None if there is none."""
    found = (time_of(each.watermark_ms) for each in figures.inputs)
    return min((each for each in found if each is not None), default=None)


def time_of(watermark_ms: int | None) -> int | None:
    """Returns the watermark; None if there is none yet, or if it is that of an input that has ended."""
    return watermark_ms if watermark_ms is not None and 0 < watermark_ms < _YEAR_10000_MS else None


def memory_bytes() -> float | None:
    """Returns the memory of this process that is in RAM, or None if the system does not tell."""
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
