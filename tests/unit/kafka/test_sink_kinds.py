"""KafkaSink is the sink of the kind that its address asks for, also under a class of the user's."""

import pytest

from sabot.connectors.base import Delivers
from sabot.connectors.memory import MemorySink
from sabot.kafka import KafkaSink
from sabot.kafka.delivery import KafkaDelivery


class OfRegion(KafkaSink):
    """A class with a constructor of its own, which alone knows the address."""

    def __init__(self, region: str) -> None:
        self.region = region
        super().__init__(f"orders-{region}", {"eu": "memory://eu", "us": "kafka://localhost:1"}[region])


@pytest.mark.parametrize(
    ("region", "kind", "other"), [("eu", MemorySink, KafkaDelivery), ("us", KafkaDelivery, MemorySink)]
)
def test_a_derived_class_may_have_a_constructor_of_its_own(region: str, kind: type, other: type) -> None:
    sink = OfRegion(region)
    assert isinstance(sink, OfRegion)
    assert isinstance(sink, kind)
    assert not isinstance(sink, other)
    assert (type(sink).__name__, sink.region, sink.name) == ("OfRegion", region, f"orders-{region}")
    assert isinstance(sink, Delivers)
    assert sink.lasting == (kind is KafkaDelivery)
    assert type(sink).write is kind.write
