"""What the fault tests share: brokers seen from outside, `sabot run` in a process, what a checkpoint says.

A real broker is filled and read with the plain client, not with the code under test.
"""

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from sabot._cython.text.records import state_key
from sabot.codecs.records import Record
from sabot.connectors.memory import MemoryBroker
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.state import load_snapshot
from sabot.kafka.admin import create_topic, partitions
from tools.agent_tools import PATIENCE, environment

HERE = Path(__file__).parents[1] / "integration"
SABOT = (sys.executable, "-P", "-c", "from sabot.cli import main; main()")
# `sabot` that stands still behind the manifest of each checkpoint, until it is killed, or until there is `killed-N` in its folder: N is the
# number of times that workers have begun. So an input that ends is not over before the kill, however late that comes.
HOLDING = (
    *SABOT[:-1],
    """
import time
from pathlib import Path
from sabot import steps
from sabot.cli import main

class Holding:
    def before(self, name, what):
        pass

    def after(self, name, what):
        if (path := Path(what)).suffix == ".json" and path.parent.name == "checkpoints":
            killed = Path(f"killed-{Path('log').read_text().count(' workers: pids ')}")
            while not killed.exists():
                time.sleep(0.01)

    def torn(self, name, what, size):
        return size

steps.watch(Holding())
main()
""",
)


class Place:
    """A broker as the world outside Sabot sees it; every method waits for the broker."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.real = url.startswith("kafka")
        self.settings = {"bootstrap.servers": url.removeprefix("kafka://"), "log_level": 2}

    def topic(self, partitions: int = 1, name: str = "") -> str:
        """A new topic."""
        name = name or f"t-{uuid.uuid4().hex[:12]}"
        if self.real:
            create_topic(self.url, name, partitions)
        else:
            MemoryBroker.get(self.url).create_topic(name, partitions)
        return name

    def fill(
        self,
        topic: str,
        payloads: Sequence[bytes | None],
        key: bytes | None = None,
        partition: int = 0,
        timestamp: int | None = None,
    ) -> None:
        """Payloads into a partition, in order; safe when this returns. timestamp: by default now."""
        if not self.real:
            MemoryBroker.get(self.url).publish(topic, payloads, key=key, partition=partition, timestamp=timestamp)
            return
        producer = Producer({**self.settings, "message.max.bytes": 16 << 20})
        for payload in payloads:
            producer.produce(topic, payload, key, partition=partition, timestamp=timestamp or 0)
        assert producer.flush(60) == 0

    def read(self, topic: str) -> list[Record]:
        """All that the topic holds now, if not more; a topic that is missing holds nothing. Ends though others go on writing."""
        if not self.real:
            return MemoryBroker.get(self.url).records(topic)
        client = {"group.id": uuid.uuid4().hex, "enable.auto.commit": False, "auto.offset.reset": "error"}
        # The last offset may be a transaction's mark, which no reader sees: the end is told after this wait without a record.
        client |= {"enable.partition.eof": True, "fetch.wait.max.ms": 10}
        reader = Consumer({**self.settings, **client})
        try:
            ends = {}
            for index in range(partitions(self.url, topic)):
                first, end = reader.get_watermark_offsets(TopicPartition(topic, index), timeout=60)
                if end > first:
                    ends[index] = (first, end)
            reader.assign([TopicPartition(topic, index, first) for index, (first, _) in ends.items()])
            found: list[Record] = []
            missing = set(ends)
            while missing:
                for message in reader.consume(10_000, 0.02):
                    if message.error() is not None:
                        assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                        missing.discard(message.partition())
                        continue
                    at = (message.topic(), message.partition(), message.offset())
                    headers = tuple(message.headers() or ())
                    found.append(Record(message.value(), message.key(), headers, message.timestamp()[1], *at))
                    if message.offset() >= ends[message.partition()][1] - 1:
                        missing.discard(message.partition())
            return found
        finally:
            reader.close()

    def ends(self, topic: str) -> dict[int, int]:
        """Partition -> the offset after its last record."""
        found = {index: 0 for index in range(partitions(self.url, topic))} if self.real else {0: 0}
        for record in self.read(topic):
            found[record.partition] = record.offset + 1
        return found

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Partition -> the group's offset; 0 where it has none."""
        if not self.real:
            return MemoryBroker.get(self.url).committed(group, topic)
        asked = [TopicPartition(topic, index) for index in range(partitions(self.url, topic))]
        reader = Consumer({**self.settings, "group.id": group, "enable.auto.commit": False})
        try:
            return {at.partition: max(at.offset, 0) for at in reader.committed(asked, timeout=60)}
        finally:
            reader.close()


async def eventually(place: Place, topic: str, count: int, patience: float = PATIENCE) -> list[Record]:
    """What the topic holds once it holds so many records; AssertionError when it never does. Waits for a broker that has just come back."""
    loop = asyncio.get_running_loop()
    limit = loop.time() + patience
    found: list[Record] = []
    while True:
        try:
            found = await asyncio.to_thread(place.read, topic)
        except KafkaException as error:  # a partition has no leader yet
            if error.args[0].code() not in (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE):
                raise
        if len(found) >= count:
            return found
        assert loop.time() < limit, f"{len(found)} of {count} records in {topic} after {patience} s"
        await asyncio.sleep(0.02)


def jsons(records: Sequence[Record]) -> list[object]:
    return [record.value for record in records]


def header(record: Record, name: str) -> str:
    return dict(record.headers)[f"sabot.{name}"].decode()


# `sabot run`


def sabot_run(
    *words: str, folder: Path = HERE, seconds: float = 120, verb: str = "run", **env: str
) -> "subprocess.CompletedProcess[str]":
    """`sabot run …` to its end, in this folder. seconds: that it may take. verb: of another command."""
    return subprocess.run(
        [*SABOT, verb, *words],
        cwd=folder,
        env={**environment(), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@contextmanager
def running(log: Path, *words: str, folder: Path = HERE, verb: str = "run", program: Sequence[str] = SABOT, **env: str):
    """`sabot run …` in the background, its log lines in a file; killed at the end of the block at the latest. verb: of another command.
    program: HOLDING if it waits for a kill behind each checkpoint; the log is then `log` in the folder.
    """
    with (
        log.open("ab") as file,
        subprocess.Popen(
            [*program, verb, *words], cwd=folder, env={**environment(), **env}, stdout=file, stderr=file
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def one_line(done: "subprocess.CompletedProcess[str]", code: int) -> str:
    """The one line on stderr that says what failed, after log lines of level warning at most."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("sabot: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == lines[0]
    return lines[0]


# What a checkpoint says


def newest(checkpoints: Path) -> Manifest | None:
    """The newest complete checkpoint, verified, from another process than its writer's; None without one."""
    storage = CheckpointStorage(checkpoints)
    while True:  # old ones are removed while we look
        last = storage.last_id()
        if last == 0:
            return None
        try:
            return storage.read(last)
        except Exception:
            if storage.last_id() == last:
                raise


def offsets_of(manifest: Manifest, kind: str) -> dict[int, int]:
    """Partition -> offset, of the one source; kind: "positions" (taken over) or "commit" (all before it is done)."""
    [source] = manifest.tasks["agents"].meta["sources"].values()
    return {partition: offset for _, partition, offset in source[kind]}


def unfinished(manifest: Manifest) -> list[tuple[int, int]]:
    """(partition, offset) of the records that the checkpoint repeats."""
    found = []
    for name in manifest.tasks["agents"].files:
        with pa.ipc.open_stream(manifest.read_file("agents", name)) as reader:
            data = reader.read_all()
        found += zip(data.column("partition").to_pylist(), data.column("offset").to_pylist(), strict=True)
    return found


def entries(manifest: Manifest) -> dict[bytes, bytes]:
    """Key -> value of the state in a checkpoint of an app with one namespace."""
    return {key: value for _, key, value in load_snapshot(manifest.state_directory("agents", "state")).entries()}


def counts_in(manifest: Manifest, keys: Sequence[str]) -> dict[str, int]:
    """What stands in the checkpoint's state under "total" for each key of the agent."""
    stored = entries(manifest)
    found = {key: stored.pop(state_key("total", scope=state_key(key)), None) for key in keys}
    assert not stored, "the state holds more than these keys"
    return {key: msgspec.msgpack.decode(value) for key, value in found.items() if value is not None}


def lines_of(log: Path) -> str:
    return log.read_text(errors="replace")


def row(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def outage_seconds() -> float:
    """How long the broker stays away at least: SABOT_TEST_OUTAGE_SECONDS, else as long as stop and start take."""
    return float(os.environ.get("SABOT_TEST_OUTAGE_SECONDS", "0"))
