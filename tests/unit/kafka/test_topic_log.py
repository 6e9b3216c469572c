"""Reading a topic whose broker is slow, or is gone in the middle of it."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sabot.errors import BrokerUnavailable
from sabot.kafka import log
from sabot.kafka.client import link_of


class SlowConsumer:
    """A consumer that returns nothing in `silent` looks, and then one record. `answers`: how often the broker tells the bounds."""

    def __init__(self, silent: int, answers: int) -> None:
        self.silent, self.answers = silent, answers
        self.assigned: list[int] = []

    def assign(self, places: list[Any]) -> None:
        self.assigned += [place.offset for place in places]

    def consume(self, count: int, seconds: float) -> list[Any]:
        self.silent -= 1
        record = SimpleNamespace(error=lambda: None, offset=lambda: 0, value=lambda: b"record")
        return [] if self.silent >= 0 else [record]


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Any:
    def read(silent: int, answers: int) -> tuple[SlowConsumer, Iterator[Any]]:
        consumer = SlowConsumer(silent, answers)

        def bounds(*_: Any) -> tuple[int, int]:
            consumer.answers -= 1
            if consumer.answers < 0:
                raise BrokerUnavailable("kafka://here does not answer")
            return 0, 1

        monkeypatch.setattr(log, "client_of", lambda *_, **settings: consumer)
        topic_log = log.TopicLog("test", link_of("kafka://here:1", "test"), {})
        monkeypatch.setattr(topic_log, "bounds", bounds)
        return consumer, topic_log.messages("topic", 0, 0, 1)

    return read


def test_records_that_a_busy_broker_returns_late_are_read(reading: Any) -> None:
    """After 10 s it is asked whether it is there. It is, so the partition is asked for again, and has 20 s more."""
    consumer, messages = reading(silent=550, answers=1)
    assert [message.value() for message in messages] == [b"record"]
    assert (consumer.answers, consumer.assigned) == (0, [0, 0])


def test_a_broker_that_is_gone_is_told_when_it_does_not_answer(reading: Any) -> None:
    _, messages = reading(silent=550, answers=0)
    with pytest.raises(BrokerUnavailable, match="kafka://here does not answer"):
        next(messages)


def test_a_partition_that_returns_nothing_is_told_though_its_broker_answers(reading: Any) -> None:
    consumer, messages = reading(silent=10_000, answers=1)
    with pytest.raises(BrokerUnavailable, match=r"gives no records of topic\[0\] from offset 0 on"):
        next(messages)
    assert consumer.silent == 10_000 - 600
