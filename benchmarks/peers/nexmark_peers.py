"""Nexmark's queries in other engines, over the events of benchmarks/nexmark as files: `python -m benchmarks.nexmark --peers flink,duckdb`.

    flink, flink-rocksdb    Flink SQL in streaming mode over NDJSON, state on the heap or in RocksDB; settings of sql_peer, changes dropped
    duckdb, duckdb-json     DuckDB over Parquet or NDJSON, in as many threads: the batch bound, which has the whole input at once
    polars                  polars over Parquet, likewise

The queries of Flink are in nexmark_flink/, those of DuckDB are the oracle's, those of polars in nexmark_batch.py. Seconds and CPU seconds
are those of reading and computing, without the start of a process and the planning; a JVM has run the query over fewer events before. In
Flink's seconds is the last checkpoint. Flink has no q6 (`over` takes no changes) and no q13 (its tables of files cannot be looked up).
q10 writes partitioned files of JSON there, and the last windows of q12, which go by the clock, stay open at the end of the files. In DuckDB
and polars, which have no q12, all results stay in memory.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from flink_sql import sql_peer
from jvm import NotThere

__all__ = ["PEERS", "NotSaid", "NotThere", "prepare", "run"]

PEERS = ("flink", "flink-rocksdb", "duckdb", "duckdb-json", "polars")
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


def run(
    peer: str, query: str, folder: Path, small: Path, parallelism: int, checkpoint_ms: int
) -> tuple[dict[str, Any], Path]:
    """folder: with KIND.parquet, KIND.ndjson and side.csv; small: the same of fewer events. -> seconds and cpu_seconds, and where the final
    rows of the fewer events are: a file of Parquet, or of NDJSON whose values are texts. Raises NotSaid.
    """
    try:
        if peer.startswith("flink"):
            return _flink(query, folder, small, parallelism, checkpoint_ms, peer == "flink-rocksdb")
        if query == "q12":
            raise NotSaid("a batch has no times of arrival")
        result = small / f"{query}-{peer}.parquet"
        _batch(peer, query, small, result, parallelism)
        return _batch(peer, query, folder, None, parallelism), result
    except subprocess.TimeoutExpired as error:
        raise NotSaid(f"not done after {PATIENCE_SECONDS:.0f} s") from error
    except RuntimeError as error:
        raise NotSaid(str(error)) from error


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
