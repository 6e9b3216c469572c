"""`sabot demo fraud`: makes the transactions, runs the agents, and shows progress and results."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from sabot._cython.arrow.batch import Batch
from sabot.app import App
from sabot.base.config import parse_broker
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import iterate_records
from sabot.connectors.base import Positions, Source
from sabot.demos.fraud.app import Figures, Meter, build, read_figures
from sabot.demos.fraud.generator import FraudSource
from sabot.engine.state import StateBackend, open_backend
from sabot.errors import DataError, UserError
from sabot.kafka import open_sink, open_source

_TOPIC = "transactions"
_PUBLISHED_ROWS = 8_192
_LOOK_SECONDS = 0.1


def run(
    rows: int = 1_000_000,
    seed: int = 0,
    broker: str = "memory://",
    state: str = "memory",
    *,
    fresh: bool = False,
    json: bool = False,
) -> dict[str, Any]:
    """Runs the demo to its end, or until Ctrl-C.

    `rows` and `seed`: the number of transactions, and the seed that generates them. `broker`: memory:// feeds the
    agents from the generator itself; kafka://host:port appends the rows to the topic "transactions" and reads them
    back. `state`: "memory", or a directory, with a checkpoint each second. `fresh`: True ignores earlier checkpoints.
    `json`: True prints nothing.

    Returns the figures by name: rows, alerts, precision, recall of the whole run, including the part before a
    restore; seconds, rows_per_s and checkpoints of this process; restored_from, the id of the checkpoint from which
    this process was restored, or None.
    """
    if rows < 1:
        raise UserError(f"rows: {rows}", hint="ask for at least one")
    console = Console(quiet=json)
    outcome = asyncio.run(_run(rows, seed, broker, state, fresh, console))
    console.print(_summary(outcome))
    return outcome


async def _run(rows: int, seed: int, broker: str, state: str, fresh: bool, console: Console) -> dict[str, Any]:
    app = App("fraud-demo", broker, state=state, checkpoint_interval="1s")
    app.configure(fresh=fresh)
    publisher: _Publisher | None = None
    if parse_broker(broker)[0] == "kafka":
        publisher = await asyncio.to_thread(_Publisher, rows, seed, broker)
    meter = build(app, FraudSource(rows, seed) if publisher is None else _TOPIC, seed=seed)
    backend = await asyncio.to_thread(open_backend, state, "db")
    if backend is None:
        raise UserError("the demo keeps its features in state", hint='state: "memory" or a directory')
    app.state_backend = backend  # made here, so that the totals can still be read after the app has stopped
    started = SYSTEM_CLOCK.monotonic()
    try:
        total = rows if publisher is None else publisher.rows
        if total > rows:
            console.print(f"topic {_TOPIC} has {total:,} rows of an earlier run, and all of them are scored")
        with _bar(console, total) as bar:
            watcher = asyncio.create_task(_watch(app, backend, bar, meter, publisher))
            try:
                if publisher is not None:
                    publisher.start()
                await app.run()
            finally:
                watcher.cancel()
                if publisher is not None:
                    await asyncio.to_thread(publisher.stop)
            figures = await read_figures(backend)
            _show(bar, meter, figures)
    finally:
        await backend.close()
    seconds = SYSTEM_CLOCK.monotonic() - started
    return {
        "rows": figures.rows,
        "seconds": round(seconds, 3),
        "rows_per_s": round(meter.rows / seconds),
        "alerts": figures.alerts,
        "precision": figures.precision,
        "recall": figures.recall,
        "checkpoints": app.statistics()["checkpoints"]["completed"],
        "restored_from": app.agent_runtime.runner.restored_from,
    }


class _Publisher:
    """A thread that appends the generator's rows to the topic. Rows that an earlier run has written are not written
    again.
    """

    def __init__(self, rows: int, seed: int, broker: str) -> None:
        self._sink = open_sink(_TOPIC, broker)
        self._sink.open()  # makes the topic if missing
        self._source = FraudSource(rows, seed)
        held = rows_held(lambda: open_source(_TOPIC, broker, "fraud-demo-publisher"), seed)
        self._source.open({(_TOPIC, 0): min(rows, held)})
        self.rows = max(rows, held)  # the topic may hold more rows, from an earlier run
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._publish, name="fraud publisher")

    def start(self) -> None:
        self._thread.start()

    def is_over(self, figures: Figures) -> bool:
        """Returns True if every row of the topic is scored and its alert raised, or if the thread has failed."""
        scored = figures.rows >= self.rows and figures.alerts >= figures.flagged
        return scored or self._error is not None

    def stop(self) -> None:
        """Stops the thread. Raises the error with which it ended, if any."""
        self._stopping.set()
        self._thread.join()
        self._sink.close()
        if self._error is not None:
            raise self._error

    def _publish(self) -> None:
        try:
            while not self._stopping.is_set():
                batch = self._source.read_batch(_PUBLISHED_ROWS, 0.0)
                if batch is None:
                    break
                self._sink.write(batch)
            self._sink.flush()
        except BaseException as error:  # kept for `stop`, which raises it in the main thread
            self._error = error


def rows_held(topic: Callable[[], Source], seed: int) -> int:
    """Returns the number of rows in the topic. `topic`: a function that makes a source of the topic.

    Raises UserError if the rows are not those of this seed, or not in one partition.
    """
    ends, _ = _first_row(topic(), "latest")
    if len(ends) != 1:
        raise UserError(f"topic {_TOPIC!r} has {len(ends)} partitions, and the demo needs one", hint="delete the topic")
    held = ends[_TOPIC, 0]
    if held:
        _, found = _first_row(topic(), "earliest", read_seconds=10.0)
        ours = FraudSource(1, seed)
        _, wanted = _first_row(ours, "earliest", read_seconds=10.0)
        if found is None or wanted is None or not _same_row(found, wanted):
            raise UserError(
                f"topic {_TOPIC!r} does not begin with the rows of seed {seed}",
                hint="use the seed that filled it, or delete the topic",
            )
    return held


def _first_row(source: Source, start: str, *, read_seconds: float = 0.0) -> tuple[Positions, Batch | None]:
    """Returns the position at which reading from `start` begins, and the first row from there."""
    try:
        source.open(None, start)
        return source.positions(), source.read_batch(1, read_seconds) if read_seconds else None
    finally:
        source.close()


def _same_row(found: Batch, wanted: Batch) -> bool:
    try:
        return bool(iterate_records(found.data, _TOPIC)[0].value == wanted.data.to_pylist()[0])
    except DataError:
        return False


async def _watch(app: App, backend: StateBackend, bar: Progress, meter: Meter, publisher: _Publisher | None) -> None:
    """Shows the agents' progress. A topic has no end, so it stops the app after the last row of the topic."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if any(agent["state"] != "running" for agent in app.agent_runtime.get_stats().values()):
            continue  # a checkpoint may be restoring the state
        figures = await read_figures(backend)
        _show(bar, meter, figures)
        if publisher is not None and publisher.is_over(figures):
            app.request_stop()


def _bar(console: Console, rows: int) -> Progress:
    columns = (
        TextColumn("transactions"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        TextColumn("{task.fields[rows_per_s]:,.0f} rows/s"),
        TextColumn("{task.fields[alerts]:,d} alerts"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=console, auto_refresh=False)
    bar.add_task("", total=rows, rows_per_s=0.0, alerts=0)
    return bar


def _show(bar: Progress, meter: Meter, figures: Figures) -> None:
    task = bar.tasks[0]
    rows_per_s = meter.rows / max(task.elapsed or 0.0, _LOOK_SECONDS)
    bar.update(task.id, completed=figures.rows, rows_per_s=rows_per_s, alerts=figures.alerts, refresh=True)


def _summary(outcome: dict[str, Any]) -> Table:
    table = Table(title="Card fraud on a stream", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in outcome.items():
        table.add_row(name.replace("_per_s", "/s").replace("_", " "), _shown(name, value))
    return table


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "fresh start" if name == "restored_from" else "nothing to measure"
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,d}"
