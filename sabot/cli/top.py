"""`sabot top`: shows what each task of a running app does, or the workers of a journal that several share, refreshed each second; one
reading with `--once`.
"""

import select
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import msgspec
import typer

from sabot.agents.job_reads import jobs_page
from sabot.base.figures import STEP_COUNTS, CheckpointFigures
from sabot.base.logs import set_up_logging
from sabot.base.quantities import bytes_words
from sabot.cli.app_checkpoints import AppWord, find_checkpoints
from sabot.cli.journal import reading
from sabot.cli.printing import columns, json_line, plain
from sabot.cli.running import guarded
from sabot.cli.workers import WORKER_TITLES, running_control, worker_rows
from sabot.engine.checkpoint import ask
from sabot.engine.checkpoint.inspection import AppCheckpoints, control_of
from sabot.engine.plan.drawing import SHARES
from sabot.engine.runtime.watch.app_rates import AppRates, AppReading, StepRates, TaskRates, rates_between
from sabot.engine.runtime.watch.bottleneck import NarrowPlace, narrow_places
from sabot.errors import UserError
from sabot.journal.base import JournalReader
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.postgres_workers import workers_of

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

_ASK_SECONDS = 20.0
_ONCE_SECONDS = 2.0  # between the two readings of --once: workers report their figures each second
_WINDOW = 5  # the readings over which a live table takes its rates
_KEY_SECONDS = 0.2
_SILENT_SECONDS = 3.0  # without an answer: the table says that its figures are old
_LEAST_SHARE = 0.05
_TITLES = ["task", "rows in/s", "rows out/s", "time", "input", "lag", "behind", *(each.short for each in STEP_COUNTS)]
_WIDE = 124  # columns of a terminal, from which a table has bars and more space
_COLOURS = dict(zip(SHARES, ("green", "yellow", "red", "magenta", "blue", "bright_black"), strict=True))


def top(
    app: AppWord,
    once: Annotated[bool, typer.Option("--once", help="Print one reading and end.")] = False,
    interval: Annotated[
        float | None,
        typer.Option(
            min=0.2, max=60, metavar="SECONDS", help="The time between two readings. [default: 1, or 2 with --once]"
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one reading as a JSON object, and end.")] = False,
) -> None:
    """Show what each task of a running app does, or the workers of a journal, refreshed each second.

    For each task and step: rates, where time goes, how full its input is, lag, watermark, late rows and dead letters; for the app: its
    checkpoints, its workers, and the narrow place. On a terminal, q or Ctrl-C ends the table. Elsewhere one reading is printed, as with
    --once. The column `time` has the states in which a task spends most of its time; `input` says how full the queue before the task is;
    `behind` is the distance of its watermark to the clock.

    With the postgresql:// address of a journal in place of APP: the number of its jobs by status, and its workers, each with its process,
    its state, and the number of open jobs that it holds.
    """

    def work() -> None:
        if urlsplit(app).scheme in ("postgresql", "postgres"):
            _of_journal(app, once or not sys.stdout.isatty(), 1.0 if interval is None else interval, json)
            return
        found = find_checkpoints(app)
        if once or json or not sys.stdout.isatty():
            _print_once(found, _ONCE_SECONDS if interval is None else interval, json)
        else:
            _watch(found, 1.0 if interval is None else interval)

    set_up_logging("warning")
    raise typer.Exit(guarded(work, debug=False))


def _read(app: AppCheckpoints) -> AppReading:
    return AppReading.of(ask(running_control(app, "sabot run module:app"), {"figures": True}, _ASK_SECONDS))


# -- one reading --------------------------------------------------------------------------------------------------------


def _print_once(app: AppCheckpoints, interval: float, json: bool) -> None:
    before = _read(app)
    time.sleep(interval)
    after = _read(app)
    rates, places = rates_between(before, after), narrow_places(before.figures, after.figures)
    if json:
        json_line(_record(after, rates, places))
        return
    for line in _heading(after, rates, places):
        typer.echo(plain(line))
    typer.echo()
    columns(_TITLES, [[name, *cells[:2], _time_words(shares), *cells[2:]] for name, cells, shares in _rows(rates)])
    if workers := after.figures.workers:
        typer.echo()
        columns(WORKER_TITLES, worker_rows(workers))


def _record(reading: AppReading, rates: AppRates, places: Sequence[NarrowPlace]) -> dict[str, Any]:
    return {
        "app": reading.app,
        "seconds": rates.seconds,
        "restarts": reading.restarts,
        "failure": reading.figures.failure,
        "checkpoints": msgspec.to_builtins(reading.figures.checkpoints),
        "narrow_places": [asdict(place) for place in places],
        "tasks": [_flat(task) | {"steps": [_flat(step) for step in task.steps.values()]} for task in rates.tasks],
        "sources": {
            task.input.source: task.input.figures for task in reading.figures.streams.values() if task.input.figures
        },
        "links": [
            {"origin": key.origin, "target": key.target, "branch": key.branch, **asdict(figures)}
            for key, figures in rates.links.items()
        ],
        "workers": msgspec.to_builtins(reading.figures.workers),
    }


def _flat(rates: TaskRates | StepRates) -> dict[str, object]:
    """Returns the rates by name, with each count under its own."""
    found: dict[str, object] = {}
    for each in fields(rates):
        counts = {one.short: rates.counts[one.short] for one in STEP_COUNTS}
        found |= counts if each.name == "counts" else {each.name: getattr(rates, each.name)}
    return found


def _heading(reading: AppReading, rates: AppRates, places: Sequence[NarrowPlace]) -> Iterator[str]:
    """Yields the lines about the whole app."""
    parts = [f"restarts {reading.restarts}", f"late rows {rates.late:,}", f"dead letters {rates.dead:,}"]
    if workers := reading.figures.workers:
        parts.insert(0, f"workers {len(workers)}")
    yield f"{reading.app}: {', '.join(parts)}"
    yield _checkpoints(reading.figures.checkpoints, reading.now_ms / 1000)
    for name, words in reading.figures.of_servers.items():
        yield f"source {name}: {words}"
    if reading.figures.failure:
        yield f"failure: {reading.figures.failure}"
    for place in places[:1]:
        yield place.sentence
        yield f"what would help: {place.advice}"


def _checkpoints(figures: CheckpointFigures, now: float) -> str:
    if not figures.completed:
        said = "none so far"
    else:
        ago = f"{_span(now - figures.last_at)} ago, " if figures.last_at else ""
        said = f"{figures.last_id}, {ago}took {figures.last_seconds:.2f} s, {bytes_words(figures.last_bytes)}"
    failed = f"; failed {figures.failed}: {figures.last_error}" if figures.failed else ""
    return f"checkpoint: {said}{failed}"


def _rows(
    rates: AppRates, *, with_steps: bool = True
) -> Iterator[tuple[str, list[str], dict[str, float] | float | None]]:
    """Yields a row for each task and for each of its steps: the name, the cells without the time, and the time: shares by
    state, or the share of a step.
    """
    for task in rates.tasks:
        steps = list(task.steps.values())
        alone = len(steps) == 1 and steps[0].id == task.id
        many = f" ×{task.subtasks}" if task.subtasks > 1 else ""
        fill = "-" if task.fill is None else f"{task.fill:.0%}"
        lag = "-" if task.lag is None else f"{task.lag:,.0f}"
        cells = [
            _rate(task.rows_in),
            _rate(_out(task)),
            fill,
            lag,
            _span(task.behind_s),
            *_counts(task.counts),
        ]
        yield " ".join(filter(None, [task.id, task.name])) + many, cells, task.shares
        for step in steps if with_steps and not alone else ():
            cells = [_rate(step.rows_in), _rate(step.rows_out), "", "", "", *_counts(step.counts)]
            yield f"  {step.id}", cells, step.share


def _out(task: TaskRates) -> float | None:
    """Returns the rows per second that leave a task. A sink has no links: its step has them."""
    if task.rows_out is None and len(task.steps) == 1:
        return next(iter(task.steps.values())).rows_out
    return task.rows_out


def _time_words(shares: dict[str, float] | float | None, most: int = 2) -> str:
    """Returns the `most` states that take most of the time, the largest share first."""
    if not isinstance(shares, dict):
        return "" if shares is None else f"own time {shares:.0%}"
    found = sorted(((share, name) for name, share in shares.items() if share >= _LEAST_SHARE), reverse=True)
    return ", ".join(f"{name} {share:.0%}" for share, name in found[:most]) or "-"


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if 0 < value < 10 else f"{value:,.0f}"


def _counts(found: Mapping[str, int]) -> list[str]:
    return [f"{value:,}" if (value := found[each.short]) else "-" for each in STEP_COUNTS]


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{max(seconds, 0):.1f} s"


# -- a journal --------------------------------------------------------------------------------------------------------------

_JOURNAL_TITLES = ["worker", "process", "state", "open jobs"]


def _of_journal(place: str, once: bool, interval: float, json: bool) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with reading(place, None) as reader:
        if json:
            line, counts, workers = _journal_facts(reader)
            names = "worker", "process", "state", "open_jobs"
            json_line(
                {"journal": line, "jobs": counts, "workers": [dict(zip(names, row, strict=True)) for row in workers]}
            )
            return
        if once:
            line, counts, workers = _journal_facts(reader)
            typer.echo(plain(f"{line}: {_counts_words(counts)}"))
            typer.echo()
            columns(_JOURNAL_TITLES, workers)
            return
        with _keys() as pressed, Live(screen=True, auto_refresh=False) as live, suppress(KeyboardInterrupt):
            read_at = -interval
            while pressed() != "q":
                if time.monotonic() - read_at < interval:
                    continue
                read_at = time.monotonic()
                line, counts, workers = _journal_facts(reader)
                shown = _worker_table(_JOURNAL_TITLES, workers)
                head = Text(plain(f"{line}: {_counts_words(counts)}"), style="bold")
                live.update(Group(head, Text(""), shown), refresh=True)


def _journal_facts(reader: JournalReader) -> tuple[str, dict[str, int], list[list[object]]]:
    """Returns the name of a journal, its number of jobs by status, and its workers (`workers_of`)."""
    return reader.where, dict(jobs_page(reader, JobQuery(), 1).counts), [list(each) for each in workers_of(reader)]


def _counts_words(counts: Mapping[str, int]) -> str:
    found = (f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
    return f"jobs: {', '.join(found) or 'none'}"


# -- a table that is refreshed --------------------------------------------------------------------------------------------


class _Poller(threading.Thread):
    """Reads the figures of an app again and again, so that the table can say that an answer is missing."""

    def __init__(self, app: AppCheckpoints, interval: float) -> None:
        super().__init__(name="sabot-top", daemon=True)
        self.readings: deque[AppReading] = deque([_read(app)], maxlen=_WINDOW + 1)
        self.read_at = time.monotonic()
        self.ended: Exception | None = None
        self._app = app
        self._interval = interval

    def run(self) -> None:
        while True:
            time.sleep(self._interval)
            try:
                reading = _read(self._app)
            except Exception as error:
                if isinstance(error, UserError) and control_of(self._app) is not None:
                    continue  # it runs and does not answer: a function blocks its event loop
                self.ended = error
                return
            if reading.seconds < self.readings[-1].seconds or reading.restarts != self.readings[-1].restarts:
                self.readings.clear()  # another run, whose counters begin anew
            self.readings.append(reading)
            self.read_at = time.monotonic()


def _watch(app: AppCheckpoints, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    poller = _Poller(app, interval)
    poller.start()
    console = Console()
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while poller.ended is None:
                shown = _table(list(poller.readings), time.monotonic() - poller.read_at, *console.size)
                live.update(shown, refresh=True)
                if pressed() == "q":
                    return
        except KeyboardInterrupt:
            return
    typer.echo(f"{plain(poller.readings[-1].app)}: {plain(str(poller.ended))}")


def _table(readings: list[AppReading], age: float, wide: int, high: int) -> "Group":
    """Returns what a terminal of this size shows. `age`: the seconds since the last reading."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    last = readings[-1]
    rates = rates_between(readings[0], last)
    lines = list(_heading(last, rates, narrow_places(readings[0].figures, last.figures)))
    if age > _SILENT_SECONDS:
        lines.append(f"no answer for {age:.0f} s, these figures are old: a function may block the app's event loop")
    workers = last.figures.workers
    heading = sum(len(textwrap.wrap(line, wide)) for line in lines)
    room = max(high - heading - 3 - (len(workers) + 2 if workers else 0), 1)
    rows = list(_rows(rates))
    if len(rows) > room:
        rows = list(_rows(rates, with_steps=False))
    if len(rows) > room:
        lines.append(f"{len(rows) - room + 1} more tasks than lines: --once prints all")
        rows = rows[: max(room - 1, 1)]
    table = Table(box=None, padding=(0, 2 if wide >= _WIDE else 1, 0, 0), header_style="bold")
    for title in _TITLES:
        left = title in ("task", "time")
        table.add_column(title, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    for name, cells, shares in rows:
        words = [Text(plain(cell)) for cell in cells]
        spent = _bar(shares) if wide >= _WIDE else Text(_time_words(shares, most=1))
        table.add_row(Text(plain(name)), *words[:2], spent, *words[2:])
    parts: list[Any] = [Text(plain(line), style="" if number else "bold") for number, line in enumerate(lines)]
    parts += [Text(""), table]
    if workers:
        parts += [Text(""), _worker_table(WORKER_TITLES, worker_rows(workers))]
    return Group(*parts)


def _worker_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(plain(str(cell))) for cell in row))
    return table


def _bar(shares: dict[str, float] | float | None) -> "Text":
    """Returns the shares of time as a bar of ten cells, and the largest in words."""
    from rich.text import Text

    if not isinstance(shares, dict) or not shares:
        return Text(_time_words(shares))
    text, told = Text(), 0.0
    for name in SHARES:
        begun = round(told * 10)
        told += shares.get(name, 0.0)
        text.append("█" * (round(told * 10) - begun), style=_COLOURS[name])
    text.append(" " * (11 - len(text)))
    text.append(_time_words(shares))
    return text


def _no_key() -> str:
    time.sleep(_KEY_SECONDS)
    return ""


@contextmanager
def _keys() -> Iterator[Callable[[], str]]:
    """Gives a function that waits for a key for a moment and returns it, or "". Without a terminal it only waits."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    import termios
    import tty

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)

    def pressed() -> str:
        ready, _, _ = select.select([number], [], [], _KEY_SECONDS)
        return sys.stdin.read(1) if ready else ""

    try:
        tty.setcbreak(number)
        yield pressed
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
