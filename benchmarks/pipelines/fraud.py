"""The fraud demo on the embedded broker: with state in memory, and with state in RocksDB and a checkpoint each second.

    python benchmarks/pipelines/fraud.py --rows 2000000 --seed 0
    python benchmarks/pipelines/fraud.py --state rocksdb

Each run is a fresh process, `sabot demo fraud`; its rate goes from before the app starts to after its last checkpoint.
Checked: rows, alerts, precision and recall of every run, against the same rows put through features and scores by hand in
a few large batches, without engine, checkpoints or state backend.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sabot.demos.fraud.features import CustomerFeatures, TerminalFeatures
from sabot.demos.fraud.generator import FraudSource
from sabot.demos.fraud.scoring import scores, suspicious

STATES = ("memory", "rocksdb")
CHECKED = ("rows", "alerts", "precision", "recall")
ORACLE_BATCH_ROWS = 250_000


class DictState:
    """The two bulk calls of a batch agent's state, over a dict."""

    def __init__(self) -> None:
        self.values: dict[int, bytes] = {}

    def get_many(self, keys: pa.Array) -> pa.Array:
        return pa.array([self.values.get(key) for key in keys.to_pylist()], pa.binary())

    def put_many(self, keys: pa.Array, values: pa.Array) -> None:
        self.values.update(zip(keys.to_pylist(), values.to_pylist(), strict=True))


def expected(rows: int, seed: int) -> dict[str, Any]:
    """The figures that the demo must show for these rows."""
    source = FraudSource(rows, seed)
    source.open(None)
    of_customers, of_terminals = DictState(), DictState()
    frauds = alerts = hits = 0
    while (batch := source.read_batch(ORACLE_BATCH_ROWS, 0.0)) is not None:
        data = batch.data
        features = {
            **CustomerFeatures().update(data["customer_id"], data["ts"], data["amount"], of_customers),
            **TerminalFeatures().update(data["terminal_id"], data["ts"], data["is_fraud"], of_terminals),
        }
        flagged = suspicious(data, *scores(data["amount"].to_numpy(), features))
        frauds += pc.sum(data["is_fraud"]).as_py() or 0
        alerts += flagged.num_rows
        hits += pc.sum(flagged["is_fraud"]).as_py() or 0
    return {
        "rows": rows,
        "alerts": alerts,
        "precision": hits / alerts if alerts else None,
        "recall": hits / frauds if frauds else None,
    }


def run_demo(rows: int, seed: int, state: str) -> dict[str, Any]:
    """`sabot demo fraud --json` in a fresh process."""
    command = [sys.executable, "-c", "from sabot.cli import main; main()", "demo", "fraud"]
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder:
        place = folder if state == "rocksdb" else state
        command += ["--rows", str(rows), "--seed", str(seed), "--state", place, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the demo failed: {done.stderr}")
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", choices=[*STATES, "both"], default="both")
    arguments = parser.parse_args()
    wanted = expected(arguments.rows, arguments.seed)
    figures: dict[str, Any] = {"benchmark": "fraud", **wanted}
    for state in STATES if arguments.state == "both" else [arguments.state]:
        outcome = run_demo(arguments.rows, arguments.seed, state)
        got = {name: outcome[name] for name in CHECKED}
        assert got == wanted, f"state {state}: {got}, not {wanted}"
        figures[f"{state}_seconds"] = outcome["seconds"]
        figures[f"{state}_rows_per_s"] = outcome["rows_per_s"]
        figures[f"{state}_checkpoints"] = outcome["checkpoints"]
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
