"""Runs SQL in Flink 2 by Sql.java: jobs one after the other in one JVM, so that the last one finds it warm.

    sql_peer.prepare()                                       # NotThere: no Java, no Maven, or no way to the jars
    sql_peer.run([Sql(["CREATE TABLE …", "INSERT INTO … SELECT … WHERE seen()"])], settings(parallelism=1, folder=folder), 120)

-> [{"seconds": 12.3, "cpu_seconds": 20.1}], from the first row that is read to the end of the job, with its last checkpoint. The start of
the JVM, and planning, are not in the figures.
"""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jvm import JavaPeer

__all__ = ["VERSION", "Sql", "prepare", "run", "settings"]

VERSION = "2.2.0"
HEAP = "6g"
PEER = JavaPeer(Path(__file__).parent, "Sql")
prepare = PEER.prepare


def settings(parallelism: int, folder: Path, checkpoint_ms: int = 1000, rocksdb: bool = False) -> dict[str, str]:
    """What Flink's own guide to tuning switches on for aggregates (mini-batches, in two phases), and a checkpoint each second."""
    found = {
        "parallelism.default": str(parallelism),
        "table.local-time-zone": "UTC",
        "table.exec.mini-batch.enabled": "true",
        "table.exec.mini-batch.allow-latency": "1s",
        "table.exec.mini-batch.size": "50000",
        "table.optimizer.distinct-agg.split.enabled": "true",
        "pipeline.object-reuse": "true",
        "state.backend.type": "rocksdb" if rocksdb else "hashmap",
        "state.backend.incremental": "true",
        "taskmanager.memory.managed.size": "1g",
        "taskmanager.memory.network.max": "256m",
        "execution.checkpointing.dir": folder.as_uri(),
        "taskmanager.numberOfTaskSlots": str(parallelism),
    }
    if checkpoint_ms:
        found["execution.checkpointing.interval"] = f"{checkpoint_ms}ms"
    return found


@dataclass(frozen=True)
class Sql:
    """The last statement is an INSERT, or a SELECT: then result is where its final rows go, as NDJSON of texts."""

    statements: Sequence[str]
    result: Path | None = None


def run(jobs: Sequence[Sql], settings: dict[str, str], seconds: float) -> list[dict[str, Any]]:
    """The figures of each job. Raises TimeoutExpired, and RuntimeError with what Flink says."""
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder:
        files = []
        for number, job in enumerate(jobs):
            file = Path(folder) / f"{number}.sql"
            file.write_text("\n;\n".join(job.statements))
            files += [str(file), str(job.result or file.with_suffix(".result"))]
        words = PEER.command(HEAP, *files, *(f"{name}={value}" for name, value in settings.items()))
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    if done.returncode or len(found) != len(jobs):
        causes = [line for line in done.stderr.splitlines() if "Exception" in line or line.startswith("Caused by")]
        raise RuntimeError(f"Flink: exit {done.returncode}: {' | '.join(causes[:1] + causes[-2:])[:1500]}")
    return found
