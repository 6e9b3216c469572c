"""KafkaSink and KafkaSource stand before the connector that their address asks for, also under a class of the user's."""

from typing import Any

import pytest

from sabot.connectors import base
from sabot.connectors.base import Delivers
from sabot.connectors.memory import MemorySink
from sabot.kafka import KafkaSink, KafkaSource
from sabot.kafka.transactions import KafkaDelivery


class OfRegion(KafkaSink):
    """A class with a constructor of its own, which alone knows the address."""

    def __init__(self, region: str) -> None:
        self.region = region
        super().__init__(f"orders-{region}", {"eu": "memory://eu", "us": "kafka://localhost:1"}[region])


@pytest.mark.parametrize(("region", "kind"), [("eu", MemorySink), ("us", KafkaDelivery)])
def test_a_derived_class_may_have_a_constructor_of_its_own(region: str, kind: type) -> None:
    sink = OfRegion(region)
    assert isinstance(sink.sink, kind)
    assert (sink.region, sink.name, sink.sink.name) == (region, f"orders-{region}", f"orders-{region}")
    assert isinstance(sink, Delivers)
    assert sink.lasting == (kind is KafkaDelivery)


def test_what_the_engine_sets_on_the_face_is_set_on_the_sink_behind_it() -> None:
    sink = KafkaSink("orders", "kafka://localhost:1")
    sink.only_letters, sink.still_ours = True, lambda: False
    assert sink.sink.only_letters
    assert sink.sink.still_ours is sink.still_ours


@pytest.mark.parametrize(("face", "behind"), [(KafkaSink, "sink"), (KafkaSource, "source")])
def test_a_face_passes_on_each_member_of_its_contract(face: type[Any], behind: str) -> None:
    """None may come from the contract: its default would hide what the connector behind the face can do."""
    contract = [cls for cls in face.__mro__ if cls.__module__ == base.__name__]
    members = {name for cls in contract for name in vars(cls) if name[0] != "_"}
    assert members - vars(face).keys() == set()
    made, own = face("orders", "memory://faces"), {"address", "exhausted"}
    for name in sorted(members - own):
        if not callable(getattr(made, name)):
            assert getattr(made, name) == getattr(getattr(made, behind), name)
    assert not base.overrides(made, "progress" if face is KafkaSource else "expect")  # nor does the one behind it
    assert face is KafkaSink or base.overrides(made, "hold")


def test_an_app_reads_the_source_behind_the_face() -> None:
    face = KafkaSource("orders", "memory://faces")
    assert list(face.readers(1)) == [face.source]
