"""Nexmark's queries in the engines whose programs are Python: nexmark_pathway.py and so on, each in an environment of its own.

Bytewax, Quix Streams and Faust call a Python function for each record (nexmark_rows.py). Quix Streams and Faust read a topic of one
partition with the bids; its key is the query's, so that they need no other topic to group by it.
"""

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import venvs
from jvm import NotThere
from venvs import python_of

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from tools.broker import Broker, BrokerMissing

__all__ = ["ON_KAFKA", "PEERS", "UNSAID", "prepare", "run"]

PEERS = ("pathway", "bytewax", "quix", "faust")
ON_KAFKA = ("quix", "faust")
KEYS = {"q7": None, "q11": "bidder", "q12": "bidder", "q18": "bidder"}  # of others: the auction; None: one for all
EPOCH, BIDS = 50, 46  # of so many events so many are bids
HOUR_MS = 3_600_000
PATIENCE_SECONDS = 180.0
FIGURES = re.compile(r'\{"seconds": [^}]*\}')  # Faust puts them into a line of its log, on the standard error
HERE = Path(__file__).parent

_ROWS = "it has no last rows by an order in a group"
_CHANGES = "it takes no result back that a later event changes"
_SETS = "the state of a key is written whole for each record: sets of all that it has seen are quadratic"
_BYTEWAX = dict.fromkeys(("q4", "q6", "q9", "q19"), _CHANGES)
_KAFKA = {"q4": _CHANGES, "q5": _CHANGES, "q6": _CHANGES, "q9": _CHANGES, "q15": _SETS, "q16": _SETS, "q19": _SETS}
UNSAID = {
    "pathway": {"q6": _ROWS, "q10": "it writes no partitioned files", "q12": "a static input has no times of arrival"}
    | {"q19": _ROWS},
    "bytewax": {**_BYTEWAX, "q10": "it writes no partitioned files"}
    | dict.fromkeys(("q15", "q16", "q20"), "it would be a function of the user's that keeps sets or tables by hand"),
    "quix": {**_KAFKA, "q10": "its file sink takes the partitions of the topic"}
    | dict.fromkeys(("q3", "q8", "q20"), "it joins by interval, as of a time and by lookup only"),
    "faust": {**_KAFKA, "q10": "it writes no files", "q11": "it has no sessions"}
    | dict.fromkeys(("q3", "q8", "q20"), "its joins are not implemented"),
}


def prepare(peer: str) -> None:
    """Its environment is there afterwards, and the broker if it needs one. Raises NotThere."""
    venvs.prepare(peer)
    try:
        if peer in ON_KAFKA:
            _broker()
    except BrokerMissing as error:
        raise NotThere(str(error)) from error


def run(peer: str, query: str, folder: Path, result: Path | None, threads: int, checkpoint_ms: int) -> dict[str, Any]:
    """seconds, cpu_seconds, peak_mb; of those on Kafka also `events`. Raises RuntimeError and TimeoutExpired."""
    words = [
        python_of(peer),
        str(HERE / f"nexmark_{peer}.py"),
        query,
        str(folder),
        str(result or "-"),
        str(checkpoint_ms),
    ]
    rows = 0
    if peer in ON_KAFKA:
        topic, rows = _topic(folder, KEYS.get(query, "auction"))
        words += [_broker(), topic, str(rows)]
    environment = {**os.environ, "PATHWAY_THREADS": str(threads), "PATHWAY_MONITORING_LEVEL": "none"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=environment)
    found = FIGURES.search(done.stdout + done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"{peer}: exit {done.returncode}: {done.stderr[-500:]}")
    figures: dict[str, Any] = json.loads(found[0])
    return figures | ({"events": rows // BIDS * EPOCH} if rows else {})


@functools.cache
def _broker() -> str:
    """The address of one that ends with this program."""
    broker = Broker(Path(tempfile.mkdtemp(prefix="sabot-broker-")))
    broker.start()
    return broker.url.removeprefix("kafka://")


@functools.cache
def _topic(folder: Path, key: str | None) -> tuple[str, int]:
    """A topic with the bids of the folder, and one an hour later, which closes windows; how many there are without it."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    topic = f"nexmark-{key}-{time.time_ns()}"
    admin = AdminClient({"bootstrap.servers": _broker()})
    for made in admin.create_topics([NewTopic(topic, 1, 1, config={"retention.ms": "-1"})]).values():
        made.result(30)
    producer = Producer({"bootstrap.servers": _broker(), "compression.type": "lz4", "queue.buffering.max.messages": 0})
    rows, bid = 0, {}
    with open(folder / "bid.ndjson", "rb") as file:
        for line in file:
            bid = json.loads(line)
            producer.produce(topic, line.rstrip(), "all" if key is None else str(bid[key]))
            rows += 1
    last = {"auction": 0, "bidder": 0, "price": 0, "channel": "", "url": "", "extra": ""}
    producer.produce(topic, json.dumps(last | {"dateTime": bid["dateTime"] + HOUR_MS}), "end")
    if producer.flush(60):
        raise RuntimeError(f"the broker did not take the bids of {topic}")
    return topic, rows
