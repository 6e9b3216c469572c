"""Workers that deliver two parts each and die, or stop, at a step of the second: `delivery_child.py URL TOPIC STEP...`

STEP: "before commit", "after token", ... killed there by SIGKILL; "stopped before commit": SIGSTOP, and when it is
woken it goes on and prints what it got. "first before commit": it writes dead letters into a topic that does not exist,
and dies at the commit that begins its track; "letter before commit": at that of its first part. Worker n writes to topic
TOPIC-n. One process imports, and forks each worker before the client of Kafka has any thread.
"""

import os
import signal
import sys
import traceback
from collections.abc import Iterator

import pyarrow as pa

from sabot.codecs.records import build_records
from sabot.connectors.base import Track
from sabot.kafka import KafkaSink
from sabot.steps import watch

ROWS = 300


def part(seq: int) -> list[pa.RecordBatch]:
    """Two batches."""
    found = []
    for half in (0, 1):
        names = [b"%d-%d" % (seq, row) for row in range(half * ROWS // 2, (half + 1) * ROWS // 2)]
        found.append(build_records(names, None, [0] * len(names), 0, range(len(names))))
    return found


def payloads(*seqs: int) -> list[bytes]:
    return [b"%d-%d" % (seq, row) for seq in seqs for row in range(ROWS)]


def track_of(topic: str) -> Track:
    return Track("app", topic, "this-one")


class At:
    """Sends this process a signal at a step."""

    def __init__(self, which: str) -> None:
        *words, self.when, self.name = which.split(" ")
        self.signal = signal.SIGSTOP if "stopped" in words else signal.SIGKILL
        self.armed = self.name == "claim" or "first" in words
        self.from_the_first = bool({"first", "letter"} & set(words))

    def _passing(self, when: str, name: str) -> None:
        if self.armed and (when, name) == (self.when, self.name):
            os.kill(os.getpid(), self.signal)

    def before(self, name: str, what: str) -> None:
        self.armed = self.armed or (self.from_the_first and name == "produce")
        self._passing("before", name)

    def after(self, name: str, what: str) -> None:
        self._passing("after", name)

    def torn(self, name: str, what: str, size: int) -> int:
        return size


def work(url: str, topic: str, which: str) -> None:
    at = At(which)
    watch(at)
    sink = KafkaSink(topic, url)
    sink.only_letters = at.from_the_first
    sink.claim(track_of(topic))
    sink.deliver(1, part(1))
    at.armed = True
    try:
        sink.deliver(2, part(2))
    except Exception as error:
        print(type(error).__name__, flush=True)
    else:
        print("delivered", flush=True)


def workers(url: str, topic: str, steps: list[str]) -> Iterator[int]:
    for number, which in enumerate(steps):
        child = os.fork()
        if child == 0:
            try:
                work(url, f"{topic}-{number}", which)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        yield child


if __name__ == "__main__":
    for child in list(workers(sys.argv[1], sys.argv[2], sys.argv[3:])):
        os.waitpid(child, 0)
