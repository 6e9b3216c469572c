"""The topics of a round: its orders, what is settled, its dead letters; and somebody who sends dead letters back, as people do."""

import json
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from killed.shop import Order, World

from sabot.engine.letters.redrive import Selection
from sabot.engine.letters.topics import DeadLetters, redrive
from sabot.kafka.admin import create_topic

__all__ = ["PARTITIONS", "Reader", "Redriver", "make"]

PARTITIONS = 3
_LOOK_SECONDS = 0.5


def make(world: World, orders: Sequence[dict[str, Any]]) -> None:
    """The topics of a round, and its orders in the first one: those of a customer in one partition."""
    for name in ("orders", "settled", "dead", "paid"):
        create_topic(world.broker, world.topic(name), PARTITIONS)
    producer = Producer({"bootstrap.servers": world.broker.removeprefix("kafka://")})
    for order in orders:
        producer.produce(world.topic("orders"), json.dumps(order), partition=order["customer"] % PARTITIONS)
    if producer.flush(60):
        raise RuntimeError(f"the orders did not get into {world.topic('orders')}")


class Reader:
    """Reads a topic on, as a plain consumer of committed records. `found`: (partition, offset, value)."""

    def __init__(self, broker: str, topic: str) -> None:
        plain = {
            "bootstrap.servers": broker.removeprefix("kafka://"),
            "group.id": "killer",
            "enable.auto.commit": False,
        }
        self._consumer = Consumer({**plain, "isolation.level": "read_committed", "enable.partition.eof": True})
        self._consumer.assign([TopicPartition(topic, index, 0) for index in range(PARTITIONS)])
        self.found: list[tuple[int, int, Any]] = []

    def look(self) -> None:
        """Reads what has come, to the end of each partition, or for so long as nothing comes."""
        while messages := self._consumer.consume(10_000, 0.1):
            for message in messages:
                if message.error() is None:
                    self.found.append((message.partition(), message.offset(), json.loads(message.value())))
                elif message.error().code() != KafkaError._PARTITION_EOF:
                    raise RuntimeError(str(message.error()))

    def orders(self) -> Counter[int]:
        """How often each order came."""
        return Counter(value["order"] for *_, value in self.found)

    def close(self) -> None:
        self._consumer.close()


class Redriver:
    """Sends the first dead letter of each order back, from `start` to `finish`, whether the app lives or not; mendable orders fail no
    more then. `sent`: how many.
    """

    def __init__(self, world: World) -> None:
        self.sent = 0
        self._world = world
        self._seen: set[int] = set()
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="redriver", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Raises the error by which the thread has ended, if any."""
        self._over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            letters = Reader(self._world.broker, self._world.topic("dead"))
            looked = 0
            while not self._over.wait(_LOOK_SECONDS):
                letters.look()
                fresh, looked = letters.found[looked:], len(letters.found)
                self._redrive(fresh)
            letters.close()
        except BaseException as error:  # kept for `finish`
            self._error = error

    def _redrive(self, letters: list[tuple[int, int, Any]]) -> None:
        first = {
            value["order"]: (part, at) for part, at, value in reversed(letters) if value["order"] not in self._seen
        }
        if not first:
            return
        self._seen |= first.keys()
        for number in first:
            if Order(number).mendable:
                self._world.mended(number).touch()
        dead = DeadLetters(self._world.topic("dead"), self._world.broker)
        try:
            self.sent += redrive(dead, Selection(only=list(first.values()))).letters
        finally:
            dead.close()
