"""One query over one stream, timed."""

import gc
import importlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import sabot.engine.runtime.life.run  # noqa: F401 - what an app loads when it runs, before the clock begins
from sabot import App, Batch, Sink, Source, Stream, UserError
from sabot._cython.text.json import encode_rows
from sabot.connectors.files import NdjsonSource, ParquetSink, ParquetSource

from .generator import SCHEMAS, Generator, count_rows
from .oracle import Oracle
from .source import NexmarkSource
from .sql_queries import TEXTS, query_of
from .streams import Nexmark, write_side

QUERIES = [f"q{number}" for number in range(23)]
FURTHER = ["q23", "p0", "p1", "p2", "p3"]  # of Flink's suite alone: a join of three tables, and patterns
CHUNK_ROWS = 1 << 17


@dataclass(frozen=True)
class Settings:
    """How a query is run. checkpoint_ms: 0 for none. memory_budget: the app's, where state has a directory. out: the folder for its result;
    None: rows are counted and dropped. api: "python" or "sql". sql: the folder of the texts; None: those of this suite.
    """

    generator: Generator
    events: int
    parallelism: int = 1
    format: str = "arrow"
    checkpoint_ms: int = 1000
    state: str = "memory"
    memory_budget: str | None = None
    out: Path | None = None
    check: bool = False
    api: str = "python"
    sql: Path | None = None


class Dropped(Sink):
    """Counts rows and drops them."""

    def __init__(self) -> None:
        self.name = "dropped"
        self.rows = 0

    def open(self) -> None:
        """There is nothing to open."""

    def write(self, batch: Batch) -> None:
        self.rows += batch.num_rows

    def flush(self) -> None:
        """There is nothing to flush."""

    def close(self) -> None:
        """There is nothing to close."""


def chunks(generator: Generator, kind: str, events: int) -> Iterator[pa.RecordBatch]:
    """All rows of a kind, in bounded memory."""
    rows = count_rows(kind, events)
    for first in range(0, rows, CHUNK_ROWS):
        yield generator.rows(kind, first, min(first + CHUNK_ROWS, rows))


def dump(generator: Generator, events: int, folder: Path) -> None:
    """Writes the stream as person.parquet, auction.parquet and bid.parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, schema in SCHEMAS.items():
        with pq.ParquetWriter(folder / f"{kind}.parquet", schema) as writer:
            for rows in chunks(generator, kind, events):
                writer.write_batch(rows)


def write_json(generator: Generator, events: int, folder: Path) -> None:
    """Writes the stream as person.ndjson, auction.ndjson and bid.ndjson."""
    for kind in SCHEMAS:
        with open(folder / f"{kind}.ndjson", "wb") as file:
            for rows in chunks(generator, kind, events):
                file.write(b"\n".join([*encode_rows(rows).to_pylist(), b""]))


def build(query: str, nexmark: Nexmark) -> Stream:
    """The stream of the query's results."""
    built: Stream = importlib.import_module(f"{__package__}.queries.{query}").query(nexmark)
    return built


def partition_by(query: str) -> list[str]:
    """The columns by which the query's result is divided into folders; none: it is one file."""
    columns: list[str] = getattr(importlib.import_module(f"{__package__}.queries.{query}"), "PARTITION_BY", [])
    return columns


def result_of(path: Path, schema: pa.Schema) -> pa.Table:
    """The rows of a result, from its file or its folders; of no rows there are none."""
    import duckdb

    if path.is_dir() and not any(path.rglob("*.parquet")):
        return schema.empty_table()
    files = f"{path}/**/*.parquet" if path.is_dir() else f"{path}"
    names = ", ".join(f'"{name}"' for name in schema.names)
    options = "hive_partitioning = true, hive_types_autocast = false"
    with duckdb.connect() as connection:
        connection.execute("set enable_progress_bar = false")
        return connection.sql(f"select {names} from read_parquet('{files}', {options})").to_arrow_table()


def measure(query: str, settings: Settings) -> dict[str, Any]:
    """Runs the query; -> its figures. Raises AssertionError where its answer is checked, and wrong.

    What is checked is written into a file. Where none is asked for that is a second run, whose time does not count: as in the other
    engines, which drop their changes in the timed run too.
    """
    if not settings.check or settings.out is not None or partition_by(query):
        return _measure(query, settings)
    figures = _measure(query, replace(settings, check=False))
    return {**figures, "result_rows": _measure(query, settings)["result_rows"]}


def measure_binding(queries: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Returns the CPU time of parsing and binding the texts of all queries: the first time of a process, with what it
    imports for SQL, and the least of five more times. The apps are made before.
    """
    taken, refused = [], set()
    with _inputs(settings) as (sources, folder):
        for _ in range(6):
            apps = [App(f"nexmark-{query}") for query in queries]
            inputs = [Nexmark(app, sources, folder / "side.csv") for app in apps]
            began = time.process_time()
            for query, app, nexmark in zip(queries, apps, inputs, strict=True):
                try:
                    query_of(query, app, nexmark, settings.sql or TEXTS)
                except UserError:
                    refused.add(query)
            taken.append(time.process_time() - began)
    first, *later = (round(1000 * each, 1) for each in taken)
    return {"texts": len(queries), "refused": sorted(refused), "first_cpu_ms": first, "later_cpu_ms": min(later)}


def _measure(query: str, settings: Settings) -> dict[str, Any]:
    with _inputs(settings) as (sources, folder), TemporaryDirectory() as state:
        app = App(
            f"nexmark-{query}",
            parallelism=settings.parallelism,
            state="memory" if settings.state == "memory" else f"{state}/state",
            memory_budget=settings.memory_budget,
            checkpoint_dir=f"{state}/checkpoints" if settings.checkpoint_ms else None,
            checkpoint_interval=settings.checkpoint_ms / 1000 if settings.checkpoint_ms else None,
        )
        nexmark = Nexmark(app, sources, folder / "side.csv")
        stream = (
            query_of(query, app, nexmark, settings.sql or TEXTS) if settings.api == "sql" else build(query, nexmark)
        )
        place, dropped = _write(query, stream, settings, folder)
        gc.collect()  # of the imports and the inputs' making: 40 ms that fell into the clock of one commit and not of another
        began, cpu = time.perf_counter(), time.process_time()
        app.main()
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        made_s = sum(source.total_cpu_s() for source in sources.values() if isinstance(source, NexmarkSource))
        figures = {
            "query": query,
            "events_per_s": round(settings.events / seconds),
            "events_per_core_s": round(settings.events / cpu_s),
            "peak_mb": round(_peak_mb()),
            "seconds": round(seconds, 3),
            "cpu_s": round(cpu_s, 3),
            "generator_cpu_s": round(made_s, 3),
            "checkpoints": app.statistics()["checkpoints"]["completed"],
            "result_rows": dropped.rows if dropped is not None else None,
        }
        if place is not None:
            figures["result_rows"] = _checked(query, place, stream.schema, settings)
        return figures


def _write(query: str, stream: Stream, settings: Settings, folder: Path) -> tuple[Path | None, Dropped | None]:
    """Says where the result goes. What is kept, or must be files, is the final result; otherwise changes are dropped as they come."""
    columns = partition_by(query)
    if settings.out is None and not settings.check and not columns:
        dropped = Dropped()
        (stream.changelog() if stream.changes else stream).to(dropped)
        return None, dropped
    place = (settings.out or folder) / f"{query}.parquet"
    sink = ParquetSink(f"{place}/" if columns else place, partition_by=columns, overwrite=True)
    stream.materialize().to(sink)
    return place, None


def _checked(query: str, place: Path, schema: pa.Schema, settings: Settings) -> int:
    found = result_of(place, schema)
    if settings.check:
        oracle = Oracle(settings.generator, settings.events)
        wrong = oracle.differences(query, found, any_of_equals=settings.parallelism > 1, flinks=settings.api == "sql")
        assert not wrong, wrong
    return found.num_rows


@contextmanager
def _inputs(settings: Settings) -> Iterator[tuple[dict[str, Any], Path]]:
    """A source for each kind, and a folder with what they and the side table read."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_side(folder / "side.csv")
        sources: dict[str, Source]
        if settings.format == "json":
            write_json(settings.generator, settings.events, folder)
            sources = {kind: NdjsonSource(folder / f"{kind}.ndjson") for kind in SCHEMAS}
        elif settings.format == "parquet":
            dump(settings.generator, settings.events, folder)
            sources = {kind: ParquetSource(folder / f"{kind}.parquet") for kind in SCHEMAS}
        else:
            for kind in SCHEMAS:
                settings.generator.rows(
                    kind, 0, 1
                )  # makes the texts that rows take theirs from, before the clock starts
            sources = {kind: NexmarkSource(kind, settings.events, settings.generator) for kind in SCHEMAS}
        yield sources, folder


def _peak_mb() -> float:
    """The most memory that this program has had; `ru_maxrss` would also count what its parent had when it was started."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024
