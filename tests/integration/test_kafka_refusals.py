"""Records that a topic refuses are dead letters: they stopped each start, since they are in a checkpoint."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from fault_tools import Place

from sabot import App
from sabot.kafka import admin
from tools.agent_tools import started, until
from tools.broker import Broker
from tools.kafka_eyes import committed

pytestmark = pytest.mark.kafka


def rows(*sizes: int) -> list[dict[str, Any]]:
    """Texts that do not get much smaller when they are compressed."""
    return [{"n": n, "text": random.Random(n).randbytes(size // 2).hex()} for n, size in enumerate(sizes)]


def app_of(kafka: Broker, topic: str, folder: Path, given: list[dict[str, Any]], most: int = 10**7, **how: Any) -> App:
    settings = {"message.max.bytes": most}
    app = App(topic, kafka.url, checkpoint_dir=folder / "checkpoints", restart="none", kafka=settings)
    app.stream(given, dead_letter=f"{topic}.dlq").to(topic, **how)
    return app


def found(kafka: Broker, topic: str) -> list[int]:
    return [json.loads(payload)["n"] for payload in committed(kafka.url, topic)]


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_a_record_above_the_clients_limit_is_a_dead_letter_with_its_first_bytes(
    kafka: Broker, topic: str, tmp_path: Path, delivery: Any
) -> None:
    await app_of(kafka, topic, tmp_path, rows(10, 200_000, 20), 100_000, delivery=delivery).run()
    assert found(kafka, topic) == [0, 2]
    (letter,) = committed(kafka.url, f"{topic}.dlq")
    assert letter.startswith(b'{"n":1,"text":"')
    assert len(letter) == 1024


async def test_a_record_above_the_limit_of_the_topic_is_a_dead_letter(
    kafka: Broker, topic: str, tmp_path: Path
) -> None:
    admin.create_topic(kafka.url, topic, config={"max.message.bytes": "10000"})
    await app_of(kafka, topic, tmp_path, rows(10, 50_000, 20)).run()
    assert found(kafka, topic) == [0, 2]
    assert [json.loads(each)["n"] for each in committed(kafka.url, f"{topic}.dlq")] == [1]


async def test_a_record_without_a_key_in_a_compacted_topic_is_a_dead_letter(
    kafka: Broker, topic: str, tmp_path: Path
) -> None:
    admin.create_topic(kafka.url, topic, config={"cleanup.policy": "compact"})
    given = [{"n": n, "key": key} for n, key in enumerate(["a", None, "b"])]
    await app_of(kafka, topic, tmp_path, given, key="key").run()
    assert found(kafka, topic) == [0, 2]
    assert [json.loads(each)["n"] for each in committed(kafka.url, f"{topic}.dlq")] == [1]


@pytest.mark.parametrize(
    ("config", "times"),
    [
        ({"cleanup.policy": "compact"}, (1000, 1000)),
        ({"message.timestamp.after.max.ms": "3600000"}, (1000, 2**42)),
    ],
    ids=["no key", "far in the future"],
)
async def test_a_result_of_an_agent_that_the_topic_refuses_is_a_dead_letter_and_the_app_goes_on(
    kafka: Broker, topic: str, tmp_path: Path, config: dict[str, str], times: tuple[int, ...]
) -> None:
    """The letter has a time that its own topic takes, and a header with the record's time."""
    source, place = f"{topic}-in", Place(kafka.url)
    admin.create_topic(kafka.url, source, config={"message.timestamp.after.max.ms": str(2**63 - 1)})
    admin.create_topic(kafka.url, topic, config=config)
    for time in times:
        place.fill(source, [b'{"v": 1}'], timestamp=time)
    app = App(topic, broker=kafka.url, state=str(tmp_path / "state"), checkpoint_interval=0.1)

    @app.agent(source, sink=topic, name="same", delivery="exactly_once")
    async def same(ctx: Any) -> Any:
        return ctx.message

    refused = 2 if "cleanup.policy" in config else 1
    async with started(app):
        await until(lambda: len(committed(kafka.url, f"{source}.dlq")) == refused)
    assert len(committed(kafka.url, topic)) == 2 - refused
