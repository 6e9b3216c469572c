"""The figures of a running app over time, in rings of fixed size."""

import os
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from sabot.base.dataclass import dataclass
from sabot.clock import SYSTEM_CLOCK, Clock

_FINE = 900  # values of one second each: 15 minutes
_COARSE = 720  # values of ten seconds each: two hours
_COARSE_SECONDS = 10
_RATE_SECONDS = 10  # rates and shares of time are those of so many last seconds
_YEAR_10000_MS = 253_402_300_800_000  # an input that has ended has a watermark of no calendar


@dataclass(frozen=True)
class Tick:
    """The statistics of an app at one time. `number`: 1, 2, …, one for each second of the run. `at`: seconds since 1970. `steady`:
    the seconds of a steady clock.
    """

    number: int
    at: float
    steady: float
    statistics: Mapping[str, Any]


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

    def load(self, run: str, kept: KeptFigures, empty: Mapping[str, Any]) -> None:
        """Replaces all figures by those of a file. `run`: the run that they are of. `empty`: figures in the place of missing ones."""
        with self._taking:
            self.run = run
            self._ticks.clear()
            self._ticks.extend(replace(each, statistics={**empty, **each.statistics}) for each in kept.ticks)
            for name, curve in self.curves.items():
                fine, coarse = kept.curves.get(name, ((), ()))
                curve.fine, curve.coarse = deque(fine, maxlen=_FINE), deque(coarse, maxlen=_COARSE)

    def _take(self) -> Tick:
        self._number += 1
        tick = Tick(self._number, self._clock.time(), self._clock.monotonic(), self._statistics())
        self._ticks.append(tick)
        before, rate = (
            self._ticks[0],
            None,
        )  # as the rates of the pages: a source may read many rows at once, and then none for seconds
        if tick.steady > before.steady:
            rate = max(0, rows_read(tick.statistics) - rows_read(before.statistics)) / (tick.steady - before.steady)
        watermark = watermark_of(tick.statistics)
        values = {
            "rows": rate,
            "lag": lag_of(tick.statistics),
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


def inputs_of(statistics: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the figures of the sources of streams and agents."""
    streams = [each["input"] for each in statistics["streams"].values() if "source" in each.get("input", {})]
    return [*streams, *statistics["sources"].values()]


def rows_read(statistics: Mapping[str, Any]) -> int:
    """Returns the number of rows that all sources have read."""
    return sum(each.get("rows_in", 0) for each in inputs_of(statistics))


def lag_of(statistics: Mapping[str, Any]) -> float | None:
    """Returns the rows, or bytes of files, that sources have not read, or None if no source knows."""
    known = [
        lag
        for each in inputs_of(statistics)
        for lag in (each.get("lag") or {}).values()
        if isinstance(lag, int | float)
    ]
    return sum(known) if known else None


def watermark_of(statistics: Mapping[str, Any]) -> int | None:
    """Returns the least watermark of all sources of streams, in milliseconds since 1970, or None if there is none."""
    return min((each for each in map(time_of, inputs_of(statistics)) if each is not None), default=None)


def time_of(figures: Mapping[str, Any]) -> int | None:
    """Returns the watermark in these figures; None if there is none yet, or if it is that of an input that has ended."""
    found = figures.get("watermark_ms")
    return found if isinstance(found, int) and 0 < found < _YEAR_10000_MS else None


def memory_bytes() -> float | None:
    """Returns the memory of this process that is in RAM, or None if the system does not tell."""
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
