"""What `connectors/base.py` promises of every sink that delivers, on a topic of a real broker.

A crash at each step for itself is in test_kafka_delivery, by SIGKILL.
"""

import json
import uuid
from collections.abc import Callable

import pytest

from contracts.test_delivery_contract import test_agents_results_are_parts_too  # noqa: F401 - pytest finds it here
from sabot.kafka import KafkaSink, admin
from sabot.testing.connectors import ConnectorPlace, DeliverySuite
from sabot.testing.connectors.place import Row
from tools.kafka_eyes import committed

pytestmark = pytest.mark.kafka


class KafkaDelivery(ConnectorPlace):
    """A topic with one partition."""

    fences = True

    def __init__(self, url: str) -> None:
        self.url = url
        self.topic = f"t-{uuid.uuid4().hex[:12]}"

    def sink(self) -> KafkaSink:
        return KafkaSink(self.topic, self.url)

    def rows(self) -> list[Row]:
        if not admin.partitions(self.url, self.topic):
            return []
        return [(value["n"], value["text"]) for value in map(json.loads, committed(self.url, self.topic))]


@pytest.fixture
def new_place(kafka_url: str) -> Callable[[], KafkaDelivery]:
    return lambda: KafkaDelivery(kafka_url)


class TestKafkaDelivery(DeliverySuite):
    test_a_crash_at_any_step_loses_nothing_and_repeats_nothing = None  # type: ignore[assignment]  # the module says where
