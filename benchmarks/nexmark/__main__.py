"""Nexmark's queries over its stream: events a second, events a second and core, memory.

    python -m benchmarks.nexmark --events 2000000 --queries q0,q5,q8 [--seed 1] [--parallelism 1] [--format arrow|json|parquet]
        [--checkpoint-ms 1000] [--state memory|rocksdb] [--memory-budget 512MB] [--out DIR] [--dump DIR] [--check] [--peers flink,duckdb]

A line for each query, and at last a JSON object. Events are all that the stream has, also for queries that read the bids alone.
`arrow`: the generator runs in the process, in the threads that read; of cpu_s it takes generator_cpu_s. `json`, `parquet`: files,
decoded in the timed run. Without --out changes are dropped as they come, and with it the final result is written. --check compares that
with DuckDB's; without --out it is a second run that writes it. q12 goes by the clock, and is not compared; DuckDB has no patterns (p0
to p3). Each query runs in a process of its own. --api sql: after each query its text in SQL too, of `benchmarks/nexmark/sql` or of
--sql FOLDER, which may be a folder of Flink's suite as it is. --bind: the CPU time of parsing and binding the texts of all
queries, the first time of a process and later; nothing runs.
 --peers: the same events as files in other engines, one after the other (benchmarks/peers/nexmark_peers.py says how); with --check
their results are compared too, of fewer events.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sabot import SabotError

from .generator import Config, Generator
from .peers import PEERS, Peers
from .run import FURTHER, QUERIES, Settings, dump, measure, measure_binding

FEW_EVENTS = 100_000
NOT_COMPARED = ("q12", *(name for name in FURTHER if name.startswith("p")))  # DuckDB has no patterns


def main() -> None:
    """Ends with a line where an option cannot be meant, a folder cannot be written, or an answer is wrong."""
    options = _options()
    try:
        _run(options)
    except (SabotError, OSError, AssertionError) as error:
        sys.exit(f"python -m benchmarks.nexmark: {error}")


def _run(options: argparse.Namespace) -> None:
    generator = Generator(options.seed, Config(rate=options.rate))
    if options.dump is not None:
        dump(generator, options.events, options.dump)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    results = []
    with (
        ProcessPoolExecutor(1, mp_context=_processes(options.events), max_tasks_per_child=1) as processes,
        _peers(options, generator) as peers,
    ):
        if options.bind:
            settings = Settings(generator, options.events, sql=options.sql)
            figures = processes.submit(measure_binding, options.queries, settings).result()
            print(json.dumps({"benchmark": "nexmark --bind", **figures}))
            return
        for query in options.queries:
            check = options.check and query not in NOT_COMPARED
            settings = Settings(
                generator,
                options.events,
                options.parallelism,
                options.format,
                options.checkpoint_ms,
                options.state,
                options.memory_budget,
                options.out,
                check,
            )
            figures = processes.submit(measure, query, settings).result()
            print(_line(figures), flush=True)
            if options.api == "sql":
                figures["sql"] = _measure_sql(processes, query, settings, options.sql, figures)
            figures["peers"] = {}
            for name in peers.names:
                figures["peers"][name] = theirs = peers.measure(query, name, check)
                print(_peer_line(name, theirs, figures), flush=True)
            results.append(figures)
    asked = {
        name: getattr(options, name)
        for name in ("events", "seed", "rate", "parallelism", "format", "checkpoint_ms", "state", "memory_budget")
    }
    print(json.dumps({"benchmark": "nexmark", **asked, "queries": results}))
    wrong = [text for each in results for theirs in each["peers"].values() if (text := theirs.get("wrong"))]
    if wrong:
        sys.exit("\n".join(wrong))


def _processes(events: int) -> BaseContext:
    """An interpreter for each query. Of few events the answer matters, and not the figures: it is a fork then of one that has imported all
    and has run nothing, as the imports took more than the run.
    """
    if events >= FEW_EVENTS or "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    processes = get_context("forkserver")
    processes.set_forkserver_preload([measure.__module__])
    return processes


def _measure_sql(
    processes: ProcessPoolExecutor, query: str, settings: Settings, folder: Path | None, python: dict[str, Any]
) -> dict[str, Any]:
    """Runs the text of a query after its Python, and prints the factor of their speeds per core."""
    try:
        figures = processes.submit(measure, query, replace(settings, api="sql", sql=folder)).result()
    except SabotError as error:
        first = error.message.splitlines()[0]
        print(f"    SQL: {first}", flush=True)
        return {"error": first}
    figures["factor"] = round(figures["events_per_core_s"] / python["events_per_core_s"], 2)
    print(f"{_line(figures)}  SQL: {figures['factor']} times as fast per core as Python", flush=True)
    return figures


@contextmanager
def _peers(options: argparse.Namespace, generator: Generator) -> Iterator[Peers]:
    with TemporaryDirectory(prefix="nexmark-") as folder:
        yield Peers(options.peers, generator, options.events, Path(folder), options.parallelism, options.checkpoint_ms)


def _line(figures: dict[str, Any]) -> str:
    return (
        f"{figures['query']:4}{figures['events_per_s']:>12,} events/s{figures['events_per_core_s']:>12,} events/s per core"
        f"{figures['peak_mb']:>7,} MB{figures['result_rows']:>12,} rows"
    )


def _peer_line(name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    if "error" in theirs:
        return f"    {name}: {theirs['error']}"
    times = ours["events_per_core_s"] / theirs["events_per_core_s"]
    memory = "        MB" if theirs["peak_mb"] is None else f"{theirs['peak_mb']:>7,} MB"
    return (
        f"    {theirs['events_per_s']:>12,} events/s{theirs['events_per_core_s']:>12,} events/s per core{memory}  {name}: ours"
        f" is {times:.1f} times as fast per core{'; ITS ANSWER IS ANOTHER' if theirs['wrong'] else ''}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nexmark", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=_at_least(0), default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--queries", type=_queries, default=QUERIES, help="q0,q5,q8; default: all")
    parser.add_argument("--parallelism", type=_at_least(1), default=1)
    parser.add_argument("--format", choices=["arrow", "json", "parquet"], default="arrow")
    parser.add_argument("--checkpoint-ms", type=_at_least(0), default=1000, help="0: none")
    parser.add_argument("--state", choices=["memory", "rocksdb"], default="memory")
    parser.add_argument("--memory-budget", help="of each step with state in a directory; default: the app's")
    parser.add_argument("--rate", type=_at_least(1), default=10_000, help="events a second of event time")
    parser.add_argument("--out", type=Path, help="the folder for the results, qN.parquet")
    parser.add_argument("--dump", type=Path, help="the folder for the stream, as Parquet")
    parser.add_argument("--check", action="store_true", help="compare the results with DuckDB's")
    parser.add_argument("--api", choices=["python", "sql"], default="python", help="sql: each query in SQL too")
    parser.add_argument("--bind", action="store_true", help="measure parsing and binding of the texts alone")
    parser.add_argument("--sql", type=Path, help="the folder of the texts qN.sql; default: those of this suite")
    parser.add_argument("--peers", type=_peer_names, default=[], help=", ".join(PEERS))
    return parser.parse_args()


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        given = int(text)
        if given < least:
            raise argparse.ArgumentTypeError(f"{given} is less than {least}")
        return given

    return number


def _peer_names(names: str) -> list[str]:
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}: {', '.join(PEERS)}")
    return wanted


def _queries(names: str) -> list[str]:
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in (*QUERIES, *FURTHER)]:
        raise argparse.ArgumentTypeError(
            f"there is no {', '.join(unknown)}: q0 to q{len(QUERIES) - 1}, {', '.join(FURTHER)}"
        )
    return wanted


if __name__ == "__main__":
    main()
