"""`app.topic`: topics that the start of a program makes."""

import uuid
from typing import Any

import pytest

from sabot import App, UserError
from sabot.kafka import admin
from sabot.testing import MemoryBroker
from tools.agent_tools import started, until, values

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("broker", ["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
async def test_the_start_makes_what_is_missing(request: pytest.FixtureRequest, broker: str) -> None:
    url = request.getfixturevalue(f"{broker}_url")
    app, name = App(f"app-{uuid.uuid4().hex[:8]}", url), f"t-{uuid.uuid4().hex[:8]}"
    found = []

    def partitions(topic: str) -> int:
        topics = MemoryBroker.get(url).topics() if broker == "memory" else admin.topics(url)
        return topics.get(topic, 0)

    @app.on_start
    def look() -> None:
        found.extend(partitions(each) for each in (name, f"{name}-out"))

    @app.agent(
        app.topic(name, partitions=3, config={"cleanup.policy": "compact"}), sink=app.topic(f"{name}-out", partitions=2)
    )
    async def count(ctx: Any) -> None: ...

    assert partitions(name) == 0
    async with started(app):
        assert found == [3, 2]
    async with started(app):
        assert found == [3, 2, 3, 2]


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("config", "hint"),
    [({"retention_ms": "6"}, "'retention_ms' is written 'retention.ms'"), ({"retention.ms": "6s"}, "correct config=")],
)
async def test_settings_that_the_broker_refuses_are_an_error_of_the_user(
    kafka_url: str, config: dict[str, str], hint: str
) -> None:
    app = App(f"app-{uuid.uuid4().hex[:8]}", kafka_url)
    app.topic(f"t-{uuid.uuid4().hex[:8]}", partitions=3, config=config)
    with pytest.raises(UserError, match="retention") as caught:
        await app.start()
    assert hint in caught.value.hint


async def test_a_topic_that_is_there_stays_as_it_is(memory_url: str, caplog: pytest.LogCaptureFixture) -> None:
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("small", 2)
    broker.create_topic("large", 4)
    app = App("shop", memory_url)
    for name in ("small", "large"):
        app.topic(name, partitions=3)
    app.stream("small", schema={"n": "int64"}).to("large")
    async with started(app):
        broker.publish("small", [{"n": 1}])
        await until(lambda: values(app, "large") == [{"n": 1}])
    assert broker.topics() == {"small": 2, "large": 4, "small.dlq": 1}
    said = [record.getMessage() for record in caplog.records if "partitions" in record.getMessage()]
    assert len(said) == 1
    assert "topic small has 2 partitions, and the program asks for 3" in said[0]
    assert "sabot topics create small --partitions 3" in said[0]


def test_what_is_no_topic_is_refused(memory_url: str) -> None:
    app = App("shop", memory_url)
    assert app.topic("orders", partitions=2) == "orders"
    assert app.topic("orders", partitions=2) == "orders"
    for name, options, said in [
        ("orders", {"partitions": 3}, "topic orders is declared twice"),
        ("orders", {"partitions": 2, "config": {"retention.ms": "1"}}, "topic orders is declared twice"),
        ("new", {"partitions": 0}, "partitions=0"),
        ("new", {"partitions": "6"}, "partitions='6'"),
        ("new", {"partitions": 1, "config": "compact"}, "config='compact'"),
        ("", {"partitions": 1}, "topic"),
    ]:
        with pytest.raises(UserError, match=said):
            app.topic(name, **options)  # type: ignore[arg-type]
