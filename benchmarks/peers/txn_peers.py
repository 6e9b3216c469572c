"""The program of benchmarks/pipelines/txn_workers.py in other engines, in two processes or what comes near it.

    bytewax    two processes, one worker each, rows between them over loopback; no recovery
    flink      Flink SQL with two task managers of one slot: in one JVM, rows between them over loopback; a checkpoint each second
    ray        Ray Data with two workers: a batch

FOLDER has `in` with a file for each process, and `warm` with a small one, which Flink's JVM and Ray's workers have read before. Seconds go
from the first record to the last window written (of Ray Data those of the whole second run). Each leaves its windows in FOLDER.
"""

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import venvs
from flink_sql import sql_peer
from venvs import python_of

__all__ = ["PEERS", "Failed", "prepare", "run"]

HERE = Path(__file__).parent
PATIENCE_SECONDS = 120.0
TXNS = """
CREATE TABLE txns (
    account STRING, amount DOUBLE, ts BIGINT, t AS TO_TIMESTAMP_LTZ(ts, 3), WATERMARK FOR t AS t - INTERVAL '1' HOUR
) WITH ('connector' = 'filesystem', 'path' = '{source}', 'format' = 'json')"""
MINUTES = """
CREATE TABLE minutes (account STRING, window_start BIGINT, n BIGINT, total DOUBLE, biggest DOUBLE) WITH (
    'connector' = 'filesystem', 'path' = '{out}', 'format' = 'json'
)"""
SEEN = "CREATE TEMPORARY VIEW seen_txns AS SELECT * FROM txns WHERE seen() AND amount > 10"
WINDOWS = """
INSERT INTO minutes
SELECT account, CAST(TIMESTAMPDIFF(SECOND, TIMESTAMP '1970-01-01 00:00:00', window_start) AS BIGINT) * 1000,
    COUNT(*), SUM(amount), MAX(amount)
FROM TABLE(TUMBLE(TABLE seen_txns, DESCRIPTOR(t), INTERVAL '60' SECOND))
GROUP BY account, window_start, window_end"""


class Failed(Exception):
    """A peer came to no end."""


def prepare(peer: str) -> None:
    """Its environment is there afterwards. Raises NotThere."""
    sql_peer.prepare() if peer == "flink" else venvs.prepare(peer)


def run(peer: str, folder: Path, processes: int) -> tuple[float, str]:
    """Seconds, and what its windows are in, for DuckDB. Raises Failed."""
    try:
        return PEERS[peer](folder, processes)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"was not done after {PATIENCE_SECONDS:.0f} s") from error
    except RuntimeError as error:
        raise Failed(str(error)) from error


def _bytewax(folder: Path, processes: int) -> tuple[float, str]:
    addresses = ";".join(f"127.0.0.1:{port}" for port in _ports(processes))
    words = [python_of("bytewax"), "-m", "bytewax.run", "txn_bytewax:flow", "-a", addresses]
    environment = {**os.environ, "TXN_FOLDER": str(folder), "PYTHONPATH": str(HERE)}
    running = [
        subprocess.Popen([*words, "-i", str(number)], env=environment, cwd=folder) for number in range(processes)
    ]
    try:
        if codes := [code for process in running if (code := process.wait(PATIENCE_SECONDS))]:
            raise RuntimeError(f"Bytewax: exit {codes}")
    finally:
        for process in running:
            process.kill()
    spans = [tuple(map(float, file.read_text().split())) for file in folder.glob("*.span")]
    return max(end for _, end in spans) - min(began for began, _ in spans), f"read_json('{folder}/*.ndjson')"


def _ports(count: int) -> list[int]:
    """Free ones, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _flink(folder: Path, processes: int) -> tuple[float, str]:
    """Pieces of a file are read in any order: windows wait for an hour of event time, which is longer than the files."""
    settings = sql_peer.settings(processes, folder / "checkpoints")
    settings |= {"minicluster.number-of-taskmanagers": str(processes), "taskmanager.numberOfTaskSlots": "1"}
    jobs = []
    for source, out in (("warm", "warm-out"), ("in", "out")):
        given = {"source": (folder / source).as_uri(), "out": (folder / out).as_uri()}
        jobs.append(sql_peer.Sql([TXNS.format(**given), SEEN, MINUTES.format(**given), WINDOWS]))
    figures = sql_peer.run(jobs, settings, PATIENCE_SECONDS)[-1]
    return figures["seconds"], f"read_json('{folder}/out/**', format='newline_delimited')"


def _ray(folder: Path, processes: int) -> tuple[float, str]:
    words = [python_of("ray"), str(HERE / "txn_ray.py"), str(folder), str(processes)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_SECONDS, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"Ray Data: exit {done.returncode}: {done.stderr[-1000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures["seconds"], f"read_parquet('{folder}/out/*.parquet')"


PEERS = {"bytewax": _bytewax, "flink": _flink, "ray": _ray}
