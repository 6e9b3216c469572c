"""`place` and `exact_place`: the contract suites run on each of them."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tools.redis_server import server_or_skip

if TYPE_CHECKING:
    from contracts.places import Place

KAFKA = pytest.param("kafka", marks=pytest.mark.kafka)


def _place(request: pytest.FixtureRequest, topic: str, tmp_path: Path) -> "Place":
    # Not above: the places import the journal, and each worker imports this file, also for tests of the engine (tools.without_agents).
    from contracts.places import FilePlace, KafkaPlace, MemoryPlace, RedisPlace

    if request.param == "memory":
        return MemoryPlace(request.getfixturevalue("memory_url"), topic)
    if request.param == "redis":
        return RedisPlace(server_or_skip().url, topic)
    if request.param == "ndjson":
        return FilePlace(tmp_path)
    return KafkaPlace(request.getfixturevalue("kafka_url"), topic)


@pytest.fixture(params=["memory", "ndjson", "redis", KAFKA])
def place(request: pytest.FixtureRequest, topic: str, tmp_path: Path) -> "Place":
    """Where records stand: a topic of the embedded broker, an NDJSON file, a stream of Redis, a topic of a real broker."""
    return _place(request, topic, tmp_path)


@pytest.fixture(params=["memory", KAFKA])
def broker_place(request: pytest.FixtureRequest, topic: str, tmp_path: Path) -> "Place":
    """The places that are brokers: they keep keys, headers, timestamps, any bytes, and groups."""
    return _place(request, topic, tmp_path)
