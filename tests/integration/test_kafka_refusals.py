"""Records that a topic refuses are dead letters. With exactly once they stopped each start, since they are in a
checkpoint; with at least once they ended the app."""

import asyncio
import json
import random
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sabot import App
from sabot.kafka import admin
from sabot.kafka.client import link_of
from tools.agent_tools import started, until
from tools.broker import Broker
from tools.fault_tools import Place
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


both = pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@both
async def test_a_record_above_the_limit_of_the_topic_is_a_dead_letter(
    kafka: Broker, topic: str, tmp_path: Path, delivery: Any
) -> None:
    admin.create_topic(kafka.url, topic, config={"max.message.bytes": "10000"})
    await app_of(kafka, topic, tmp_path, rows(10, 50_000, 20), delivery=delivery).run()
    assert found(kafka, topic) == [0, 2]
    assert [json.loads(each)["n"] for each in committed(kafka.url, f"{topic}.dlq")] == [1]


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@both
async def test_small_records_that_exceed_the_limit_of_the_topic_only_together_are_all_delivered(
    kafka: Broker, topic: str, tmp_path: Path, delivery: Any
) -> None:
    """The client put them into one batch, which the broker refused."""
    admin.create_topic(kafka.url, topic, partitions=1, config={"max.message.bytes": "10000"})
    await app_of(kafka, topic, tmp_path, rows(*[2000] * 100), delivery=delivery).run()
    assert found(kafka, topic) == list(range(100))
    assert admin.partitions(kafka.url, f"{topic}.dlq") == 0


@pytest.mark.one_in(4, "a tenth of a second of a core each")
@both
@pytest.mark.parametrize("compression", ["producer", "uncompressed"])
async def test_a_record_counts_as_it_is_stored(
    kafka: Broker, topic: str, tmp_path: Path, delivery: Any, compression: str
) -> None:
    """A long text of one character takes little room, unless the broker itself stores records without compression."""
    config = {"max.message.bytes": "10000", "compression.type": compression}
    admin.create_topic(kafka.url, topic, partitions=1, config=config)
    given = [{"n": n, "text": text} for n, text in enumerate(["a", "b" * 50_000, "c", "d" * 5000, "e"])]
    await app_of(kafka, topic, tmp_path, given, delivery=delivery).run()
    refused = [] if compression == "producer" else [1]
    assert sorted(set(found(kafka, topic))) == [n for n in range(5) if n not in refused]
    letters = committed(kafka.url, f"{topic}.dlq") if refused else []
    assert [json.loads(each)["n"] for each in letters] == refused


@pytest.mark.slow  # a tenth of a second of a core each
@both
async def test_a_limit_that_is_lowered_while_the_app_runs_holds_from_its_next_restart(
    kafka: Broker, topic: str, tmp_path: Path, delivery: Any
) -> None:
    """The app does not end for good, and no record is lost."""
    admin.create_topic(kafka.url, topic, partitions=1)
    app = App(topic, kafka.url, checkpoint_dir=tmp_path / "checkpoints", checkpoint_interval=0.1)
    lowered = threading.Event()

    @app.source(name="given", schema=pa.schema([("n", pa.int64()), ("text", pa.string())]), bounded=True)
    async def given(position: int) -> Any:
        if position < 2:
            yield rows(10, 20)[position:]
        await asyncio.to_thread(lowered.wait)  # set in another loop
        yield rows(10, 20, 50_000, *[2000] * 20)[max(2, position) :]

    app.stream(given, dead_letter=f"{topic}.dlq").to(topic, delivery=delivery)
    running = asyncio.create_task(app.run())
    await until(lambda: set(found(kafka, topic)) == {0, 1})
    link, name = link_of(kafka.url, "test", None), "max.message.bytes"
    admin.set_topic(link, {}, topic, name, "10000")
    lowered.set()
    await asyncio.wait_for(running, 60)
    assert set(found(kafka, topic)) == {*range(23)} - {2}
    assert {json.loads(each)["n"] for each in committed(kafka.url, f"{topic}.dlq")} == {2}


@pytest.mark.slow  # a tenth of a second of a core each
@both
async def test_a_dead_letter_that_its_own_topic_refuses_keeps_its_first_bytes(
    kafka: Broker, topic: str, tmp_path: Path, delivery: Any
) -> None:
    for name in (topic, f"{topic}.dlq"):
        admin.create_topic(kafka.url, name, config={"max.message.bytes": "10000"})
    await app_of(kafka, topic, tmp_path, rows(10, 50_000, 20), delivery=delivery).run()
    assert found(kafka, topic) == [0, 2]
    (letter,) = committed(kafka.url, f"{topic}.dlq")
    assert letter.startswith(b'{"n":1,"text":"')
    assert len(letter) == 1024


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@both
async def test_a_record_without_a_key_in_a_compacted_topic_is_a_dead_letter(
    kafka: Broker, topic: str, tmp_path: Path, delivery: Any
) -> None:
    admin.create_topic(kafka.url, topic, config={"cleanup.policy": "compact"})
    given = [{"n": n, "key": key} for n, key in enumerate(["a", None, "b"])]
    await app_of(kafka, topic, tmp_path, given, key="key", delivery=delivery).run()
    assert found(kafka, topic) == [0, 2]
    assert [json.loads(each)["n"] for each in committed(kafka.url, f"{topic}.dlq")] == [1]


@pytest.mark.one_in(4, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("config", "times"),
    [
        ({"cleanup.policy": "compact"}, (1000, 1000)),
        ({"message.timestamp.after.max.ms": "3600000"}, (1000, 2**42)),
    ],
    ids=["no key", "far in the future"],
)
@both
async def test_a_result_of_an_agent_that_the_topic_refuses_is_a_dead_letter_and_the_app_goes_on(
    kafka: Broker, topic: str, tmp_path: Path, config: dict[str, str], times: tuple[int, ...], delivery: Any
) -> None:
    """The letter has a time that its own topic takes, and a header with the record's time."""
    source, place = f"{topic}-in", Place(kafka.url)
    admin.create_topic(kafka.url, source, config={"message.timestamp.after.max.ms": str(2**63 - 1)})
    admin.create_topic(kafka.url, topic, config=config)
    for time in times:
        place.fill(source, [b'{"v": 1}'], timestamp=time)
    app = App(topic, broker=kafka.url, state=str(tmp_path / "state"), checkpoint_interval=0.1)

    @app.agent(source, sink=topic, name="same", on_error="skip", delivery=delivery)
    async def same(ctx: Any) -> Any:
        return ctx.message

    refused = 2 if "cleanup.policy" in config else 1
    async with started(app):
        await until(lambda: len(committed(kafka.url, f"{source}.dlq")) == refused)
    assert len(committed(kafka.url, topic)) == 2 - refused
