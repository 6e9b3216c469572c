"""What the output of dance_app.py should be, recomputed from the committed input: plain Python and a plain consumer, no line of the engine.

    python tests/recovery/dance_verifier.py --broker HOST:PORT INPUT_TOPIC OUTPUT_TOPIC

Both topics are read to their ends with `read_committed`, and the results compared as multisets. A wrong result counts twice: the
right one is lost, the wrong one is one too many.
"""

import argparse
import json
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from confluent_kafka import Consumer, KafkaError, TopicPartition

WINDOW_MS = 10_000
HANGING_SECONDS = 90.0  # a transaction that nobody ends is ended by the broker before that

Row = tuple[int, int, bytes]  # partition, offset, payload
Result = tuple[object, ...]


class Hanging(Exception):
    """Readers of committed records do not come to the end of the topic: a transaction was left open."""


def committed(broker: str, topic: str, patience: float = HANGING_SECONDS) -> Iterator[Row]:
    """What `read_committed` shows of the topic, from its beginning to the end that it has now, in order per partition."""
    settings = {
        "bootstrap.servers": broker,
        "group.id": f"verifier-{uuid.uuid4().hex}",
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "log_level": 2,
    }
    reader = Consumer(settings)
    try:
        found = reader.list_topics(topic, timeout=60).topics[topic]
        if found.error is not None:
            raise SystemExit(f"topic {topic}: {found.error}")
        ends, starts = {}, []
        for index in found.partitions:
            first, end = reader.get_watermark_offsets(TopicPartition(topic, index), timeout=60)
            if first:
                raise SystemExit(f"topic {topic}: what is before offset {first} of partition {index} is gone")
            ends[index] = end
            starts.append(TopicPartition(topic, index, first))
        reader.assign(starts)
        limit = time.monotonic() + patience
        while ends:
            if time.monotonic() > limit:
                raise Hanging(f"topic {topic}: no way to the end of partitions {sorted(ends)} in {patience:g} s")
            for message in reader.consume(10_000, 0.2):
                error = message.error()
                if error is None:
                    yield message.partition(), message.offset(), message.value()
                    limit = time.monotonic() + patience
                elif error.code() != KafkaError._PARTITION_EOF:
                    raise SystemExit(f"topic {topic}: {error}")
                elif message.offset() >= ends.get(message.partition(), 0):  # markers take offsets too
                    ends.pop(message.partition(), None)
    finally:
        reader.close()


def running(row: dict, partition: int, offset: int, count: int, total: int) -> Result:
    return ("row", row["n"], row["account"], count, total, partition, offset)


def expected(rows: Iterable[Row]) -> "Counter[Result]":
    """Of each row the running figures of its account; of each account and window that is over its rows and sum.

    A window is over when all partitions have gone past it; each of them has one that is not, that of its last row.
    """
    results: Counter[Result] = Counter()
    figures: dict[str, tuple[int, int]] = {}
    windows: dict[tuple[str, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
    newest: dict[int, int] = {}
    home: dict[str, int] = {}
    for partition, offset, payload in rows:
        row = json.loads(payload)
        account, amount, ts = row["account"], row["amount"], row["ts"]
        if ts < newest.get(partition, 0):
            raise SystemExit(f"row {row['n']} goes back in time: it would be late, this is not a test of late rows")
        newest[partition] = ts
        if home.setdefault(account, partition) != partition:
            raise SystemExit(f"account {account} is in two partitions: its figures depend on how they mix")
        count, total = figures.get(account, (0, 0))
        figures[account] = count, total = count + 1, total + amount
        results[running(row, partition, offset, count, total)] += 1
        start = ts // WINDOW_MS * WINDOW_MS
        inside, sum_ = windows[account, start]
        windows[account, start] = inside + 1, sum_ + amount
    reached = min(newest.values(), default=0)
    for (account, start), (inside, sum_) in windows.items():
        if start + WINDOW_MS <= reached:
            results["window", account, start, inside, sum_] += 1
    return results


def delivered(rows: Iterable[Row]) -> "Counter[Result]":
    """The results that the output holds, in the same form."""
    results: Counter[Result] = Counter()
    for _, _, payload in rows:
        found = json.loads(payload)
        if "n" in found:
            results[running(found, found["p"], found["o"], found["count"], found["total"])] += 1
        else:
            assert found["window_end"] == found["window_start"] + WINDOW_MS, found
            results["window", found["account"], found["window_start"], found["rows"], found["sum"]] += 1
    return results


def compare(wanted: "Counter[Result]", found: "Counter[Result]") -> dict[str, int]:
    lost, more = wanted - found, found - wanted
    for name, results in (("lost", lost), ("too many", more)):
        for result, times in list(results.items())[:5]:
            print(f"{name}, {times} times: {result}", file=sys.stderr)
    return {
        "expected": wanted.total(),
        "delivered": found.total(),
        "lost": lost.total(),
        "duplicated": more.total(),
    }


def verdict(broker: str, input_topic: str, output_topic: str) -> dict[str, int]:
    return compare(expected(committed(broker, input_topic)), delivered(committed(broker, output_topic)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", required=True, metavar="HOST:PORT")
    parser.add_argument("input_topic")
    parser.add_argument("output_topic")
    options = parser.parse_args()
    outcome = verdict(options.broker.removeprefix("kafka://"), options.input_topic, options.output_topic)
    print(json.dumps(outcome))
    sys.exit(bool(outcome["lost"] or outcome["duplicated"]))


if __name__ == "__main__":
    main()
