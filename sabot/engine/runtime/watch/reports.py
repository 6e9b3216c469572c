"""Reports of an app to the person who runs it: a line of progress or of figures while it runs, and a summary at its end."""

import logging
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import TextIO

from sabot.base.dataclass import dataclass
from sabot.base.figures import AppFigures
from sabot.base.logs import log_is_json
from sabot.base.quantities import bytes_words, count_words, counted_words, duration_words
from sabot.clock import Clock
from sabot.engine.runtime.watch.app_rates import AppReading, rates_between

_log = logging.getLogger(__name__)

_DRAW_S = 0.5  # between two states of the progress line
_WIDTH = 79  # of a progress line, whose former state it overwrites
_REASONS = 5  # of dead letters, in the text of a summary
_DEAD_LETTERS = "dead letters"  # the branch of a step on which they leave it


@dataclass(frozen=True)
class Late:
    """Late rows that a step has left out. `most_ms`: how late the latest was, in milliseconds."""

    rows: int
    most_ms: int


@dataclass(frozen=True)
class Summary:
    """The counts of an app since its last start or restart.

    `seconds`: the time since the start. `rows_out`: the rows written, by sink. `late`: late rows that do not count, by step.
    `dead_letters`: counts by reason. `dead_letters_in`: the sinks that have them. `restarts`: restarts after failures; the other
    counts begin at the last one. `str` gives the text that a run prints at its end.
    """

    app: str
    seconds: float
    rows_in: int = 0
    rows_out: Mapping[str, int] = field(default_factory=dict)
    late: Mapping[str, Late] = field(default_factory=dict)
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    dead_letters_in: tuple[str, ...] = ()
    restarts: int = 0

    def __str__(self) -> str:
        return "\n  ".join(self._lines())

    def _lines(self) -> Iterator[str]:
        rate = f" ({count_words(self.rows_in / self.seconds)} rows/s)" if self.seconds > 0 and self.rows_in else ""
        out = sum(self.rows_out.values())
        yield f"app {self.app}: {counted_words(self.rows_in, 'row')} in, {out:,} out in {duration_words(self.seconds)}{rate}"
        for sink, rows in self.rows_out.items():
            yield f"{sink}: {counted_words(rows, 'row')}"
        for step, late in self.late.items():
            yield f"late rows of {step} that do not count: {late.rows:,}, by up to {duration_words(late.most_ms / 1000)}"
        if self.dead_letters:
            yield f"dead letters{_places(self.dead_letters_in)}: {sum(self.dead_letters.values()):,}"
            reasons = Counter(self.dead_letters).most_common()
            for reason, rows in reasons[:_REASONS]:
                yield f"  {rows:,} × {reason}"
            if len(reasons) > _REASONS:
                yield f"  {len(reasons) - _REASONS:,} other reasons"
        if self.restarts:
            yield f"restarts: {self.restarts}; the counts begin at the last one"


def _places(sinks: tuple[str, ...]) -> str:
    return f" in {', '.join(sinks)}" if sinks else ""


def summary_of(app: str, figures: AppFigures, seconds: float, restarts: int) -> Summary:
    """Returns the summary of the figures of an app."""
    streams = figures.streams.values()
    sources = [task.input for task in streams if task.input.source]
    operators = [pair for task in streams for pair in task.operators.items()]
    dead = {edge.to for task in streams for edge in task.edges if edge.branch == _DEAD_LETTERS}
    out: defaultdict[str, int] = defaultdict(int)
    for step, each in operators:
        if each.sink and step not in dead:
            out[each.sink] += each.rows_out
    ports = figures.sinks.items()  # of agents; one without a time leads to a stream or its sink
    for name, sink in ports:
        if sink.time and not sink.dead_letters:
            out[name] += sink.rows_out
    late: dict[str, Late] = {}
    for step, each in operators:
        if each.late_rows:
            former = late.get(step, Late(0, 0))
            late[step] = Late(former.rows + each.late_rows, max(former.most_ms, each.late_most_ms or 0))
    reasons: Counter[str] = Counter()
    for source in sources:
        reasons.update(source.dead_letter_reasons)
    for _, each in operators:
        reasons.update(each.dead_row_reasons)
    for name, agent in figures.agents.items():
        if agent.dead_letters:
            reasons[f"records of agent {name}"] += agent.dead_letters
    letters_in = [each.sink for step, each in operators if step in dead and each.sink]
    return Summary(
        app,
        seconds,
        sum(source.rows_in for source in figures.inputs),
        dict(out),
        late,
        dict(reasons),
        tuple(dict.fromkeys([*letters_in, *(name for name, sink in ports if sink.dead_letters and sink.rows_out)])),
        restarts,
    )


def figures_line(before: AppReading, after: AppReading) -> str:
    """Returns the rates and the counts between two readings as one line for the log."""
    rates = rates_between(before, after)

    def total(*kinds: str) -> float:
        return sum(task.rows_in or 0.0 for task in rates.tasks if task.kind in kinds)

    rows_in, rows_out = total("source", "agent's source"), total("sink", "agent's sink")
    words = [f"{count_words(rows_in)} rows/s in", f"{count_words(rows_out)} rows/s out"]
    if not rows_in and not rows_out and not summary_of("", after.figures, 0.0, 0).rows_in:
        # 0 rows/s would be a rate of what has not begun, such as a consumer that joins its group
        words = ["no row read yet"]
    for unit, shown in (("rows", count_words), ("bytes", bytes_words)):
        lags = [task.lag for task in rates.tasks if task.lag is not None and task.lag_unit == unit]
        if lags:
            words.append(f"{shown(sum(lags))}{' rows' * (unit == 'rows')} not yet read")
    behind = [task.behind_s for task in rates.tasks if task.behind_s is not None]
    if behind:
        words.append(f"watermark {duration_words(max(behind))} behind the clock")
    checkpoints = after.figures.checkpoints
    if checkpoints.last_at is not None:
        ago = after.now_ms / 1000 - checkpoints.last_at
        words.append(f"checkpoint {checkpoints.last_id} complete {duration_words(max(ago, 0.0))} ago")
    words += [counted_words(rates.late, "late row")] * bool(rates.late)
    words += [counted_words(rates.dead, "dead letter")] * bool(rates.dead)
    words += [counted_words(after.restarts, "restart")] * bool(after.restarts)
    return f"app {after.app}: {', '.join(words)}"


def progress_line(read: float, total: float, rows: int, seconds: float) -> str:
    """Returns a line about bounded inputs: `read` of `total` bytes and `rows` rows in `seconds` seconds."""
    share = min(read / total, 1.0) if total > 0 else 1.0
    words = [f"{share:4.0%} of {bytes_words(total)}", counted_words(rows, "row")]
    if seconds > 0 and rows:
        words.append(f"{count_words(rows / seconds)} rows/s")
    if 0 < share < 1:
        words.append(f"{duration_words(seconds * (1 - share) / share)} left")
    return ", ".join(words)


class Reporter:
    """A thread that reports on a running app.

    If the app reads bounded inputs, and a person looks at stderr (a terminal or a notebook), it keeps one line of progress there.
    Otherwise it writes a line of figures to the log each `interval_s` seconds; never, if that is 0.
    """

    def __init__(
        self,
        read: Callable[[], AppReading],
        progress: Callable[[], tuple[float, float] | None],
        interval_s: float,
        *,
        screen: TextIO | None,
        clock: Clock,
    ) -> None:
        """`read`, `progress`: return the figures and the bytes read of all; called from the thread. `screen`: the stream of the
        progress line, or None for no such line.
        """
        self._read, self._progress, self._interval_s, self._screen = read, progress, interval_s, screen
        self._clock = clock
        self._began = clock.monotonic()
        self._before = read()
        self._drawn = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._report, name="sabot-report", daemon=True)
        if interval_s or screen is not None:
            self._thread.start()

    def close(self) -> None:
        """Ends the thread, and removes the progress line. Idempotent."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._drawn:
            self._draw("")
            self._drawn = False

    def _report(self) -> None:
        while not self._over.wait(self._interval_s if self._screen is None else _DRAW_S):
            self.look()

    def look(self) -> None:
        """Draws the progress, or logs the figures if it is time for that."""
        progress = None if self._screen is None else self._progress()
        now = self._clock.monotonic()
        if progress is not None:
            rows = summary_of("", self._read().figures, 0.0, 0).rows_in
            self._draw(progress_line(*progress, rows, now - self._began))
            self._drawn = True
        elif self._interval_s and now - self._before.seconds >= self._interval_s:
            after = self._read()
            _log.info("%s", figures_line(self._before, after))
            self._before = after

    def _draw(self, line: str) -> None:
        """Writes the line over the former one. The cursor goes back to its begin, so that a log line overwrites it."""
        assert self._screen is not None
        try:
            self._screen.write(f"\r{line[:_WIDTH]:{_WIDTH}}\r")
            self._screen.flush()
        except (OSError, ValueError):  # the terminal is gone, after SIGHUP
            self._over.set()


def screen_of_person() -> TextIO | None:
    """Returns stderr if a person looks at it: on a terminal, or in a notebook. Otherwise, and if the log has JSON lines,
    None.
    """
    if sys.stderr is None or sys.stderr.closed or log_is_json():
        return None
    notebook = "ipykernel" in sys.modules and type(sys.stderr).__module__.startswith("ipykernel")
    return sys.stderr if notebook or sys.stderr.isatty() else None
