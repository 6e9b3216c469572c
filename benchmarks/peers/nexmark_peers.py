"""Nexmark's queries in other engines, over the events of benchmarks/nexmark as files: `python -m benchmarks.nexmark --peers flink,duckdb`.

    flink, flink-rocksdb    Flink SQL in streaming mode over NDJSON, state on the heap or in RocksDB; settings of sql_peer, changes dropped
    duckdb, duckdb-json     DuckDB over Parquet or NDJSON, in as many threads: the batch bound, which has the whole input at once
    polars                  polars over Parquet, likewise
    pathway                 Pathway over NDJSON in its static mode, the batch form of its streaming engine
    bytewax                 Bytewax over NDJSON, a snapshot of its state each checkpoint interval
    quix, faust             Quix Streams and Faust over a Kafka topic of the bids, whose key is the query's: of the fewer events

The queries of Flink are in nexmark_flink/, those of DuckDB are the oracle's, those of polars in nexmark_batch.py, those of the last four in
nexmark_PEER.py, each one process; nexmark_python.py says why others are not there. Seconds and CPU seconds are those of reading and
computing, without the start of a process and the planning; a JVM has run the query over fewer events before. In Flink's seconds is the
last checkpoint. Flink has no q6 (`over` takes no changes) and no q13 (its tables of files cannot be looked up). q10 writes partitioned
files of JSON there, and of Parquet in DuckDB; the last windows of q12, which go by the clock, stay open at the end of the files. In DuckDB
and polars, which have no q12, all other results stay in memory; the others drop them. peak_mb is that of the process; Flink's is not
given: its heap has one size.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nexmark_python
from flink_sql import sql_peer
from jvm import NotThere

__all__ = ["PEERS", "NotSaid", "NotThere", "prepare", "run"]

PEERS = ("flink", "flink-rocksdb", "duckdb", "duckdb-json", "polars", *nexmark_python.PEERS)
HERE = Path(__file__).parent
FLINK = HERE / "nexmark_flink"
KINDS = ("person", "auction", "bid")
PATIENCE_SECONDS = 180.0


class NotSaid(Exception):
    """A query that the peer cannot express, or has not run to its end, and why."""


def prepare(peer: str) -> None:
    """It can be run afterwards. Raises NotThere."""
    if peer.startswith("flink"):
        sql_peer.prepare()
    elif peer in nexmark_python.PEERS:
        nexmark_python.prepare(peer)


def run(
    peer: str, query: str, folder: Path, small: Path, parallelism: int, checkpoint_ms: int
) -> tuple[dict[str, Any], Path]:
    """folder: with KIND.parquet, KIND.ndjson and side.csv; small: the same of fewer events. -> seconds and cpu_seconds, peak_mb where it
    is known, `events` where it has not read all; and where the final rows of the fewer events are: a file of Parquet, or of NDJSON.
    Raises NotSaid.
    """
    try:
        if peer.startswith("flink"):
            return _flink(query, folder, small, parallelism, checkpoint_ms, peer == "flink-rocksdb")
        if peer in nexmark_python.PEERS:
            return _python(peer, query, folder, small, parallelism, checkpoint_ms)
        if query == "q12":
            raise NotSaid("a batch has no times of arrival")
        result = small / f"{query}-{peer}.parquet"
        _batch(peer, query, small, result, parallelism)
        return _batch(peer, query, folder, None, parallelism), result
    except subprocess.TimeoutExpired as error:
        raise NotSaid(f"not done after {PATIENCE_SECONDS:.0f} s") from error
    except RuntimeError as error:
        raise NotSaid(str(error)) from error


def _python(
    peer: str, query: str, folder: Path, small: Path, threads: int, checkpoint_ms: int
) -> tuple[dict[str, Any], Path]:
    if reason := nexmark_python.UNSAID[peer].get(query):
        raise NotSaid(reason)
    result = small / f"{query}-{peer}.result"
    figures = nexmark_python.run(peer, query, small, result, threads, checkpoint_ms)
    if peer not in nexmark_python.ON_KAFKA:  # they would take minutes for more events than these
        figures = nexmark_python.run(peer, query, folder, None, threads, checkpoint_ms)
    return figures, result


def _batch(peer: str, query: str, folder: Path, result: Path | None, threads: int) -> dict[str, Any]:
    words = [sys.executable, str(HERE / "nexmark_batch.py"), peer, query, str(folder), str(result or "-"), str(threads)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{peer}: {done.stderr[-500:]}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _flink(
    query: str, folder: Path, small: Path, parallelism: int, checkpoint_ms: int, rocksdb: bool
) -> tuple[dict[str, Any], Path]:
    """The query over the fewer events, for its answer and for a JVM that is warm; then over all."""
    file, result = FLINK / f"{query}.sql", small / f"{query}.result"
    if not file.exists():
        raise NotSaid("it cannot be said in Flink SQL")
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as name:
        place = Path(name)
        options, divided = "'connector' = 'blackhole'", ""
        if query == "q10":
            options = f"'connector' = 'filesystem', 'path' = '{(place / 'q10').as_uri()}', 'format' = 'json'"
            divided = "PARTITIONED BY (dt, hm) "
        head = f"CREATE TABLE dropped {divided}WITH ({options}) AS\n"
        sql = file.read_text()
        jobs = [
            sql_peer.Sql([*_tables(small), sql], result),
            sql_peer.Sql([*_tables(folder), head + sql]),
        ]
        settings = sql_peer.settings(parallelism, place / "checkpoints", checkpoint_ms, rocksdb)
        return sql_peer.run(jobs, settings, PATIENCE_SECONDS)[-1], result


def _tables(folder: Path) -> list[str]:
    text = (FLINK / "tables.sql").read_text()
    return text.format(**{kind: (folder / f"{kind}.ndjson").as_uri() for kind in KINDS}).split("\n;\n")
