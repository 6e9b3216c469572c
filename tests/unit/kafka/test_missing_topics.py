"""A topic that does not exist, and one that we may not see: the broker says which, and only the first may be taken for an empty one."""

from concurrent.futures import Future
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException

from sabot.errors import UserError
from sabot.kafka import admin
from sabot.kafka.client import BrokerLink, NoSuchTopic, ensure_topic, partitions_of

FORBIDDEN, MISSING = KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART


class Client:
    """An admin client whose broker answers for each topic with this error."""

    def __init__(self, code: int) -> None:
        self.code = code

    def list_topics(self, topic, timeout):
        return SimpleNamespace(topics={topic: SimpleNamespace(error=KafkaError(self.code), partitions={})})

    def poll(self, seconds): ...

    def create_topics(self, *_, **__):
        raise AssertionError("nothing is made of a topic that we may not see")


def test_only_a_missing_topic_is_no_such_topic():
    link = BrokerLink("127.0.0.1:1", "topic 't'")
    with pytest.raises(NoSuchTopic, match="topic 't' does not exist"):
        partitions_of(Client(MISSING), link, "t")
    with pytest.raises(UserError, match="may not read topic 't'") as caught:
        partitions_of(Client(FORBIDDEN), link, "t")
    assert not isinstance(caught.value, NoSuchTopic)


def test_a_forbidden_topic_does_not_count_as_one_without_partitions(monkeypatch):
    monkeypatch.setattr(admin, "admin_of", lambda link, kafka: nullcontext(Client(MISSING)))
    assert admin.partitions("kafka://127.0.0.1:1", "t") == 0
    monkeypatch.setattr(admin, "admin_of", lambda link, kafka: nullcontext(Client(FORBIDDEN)))
    with pytest.raises(UserError, match="may not describe topic 't'"):
        admin.partitions("kafka://127.0.0.1:1", "t")


def test_a_topic_that_we_may_not_see_is_not_made(monkeypatch):
    monkeypatch.setattr("sabot.kafka.client.admin_of", lambda link, kafka: nullcontext(Client(FORBIDDEN)))
    with pytest.raises(UserError, match="may not read topic 't'"):
        ensure_topic(BrokerLink("127.0.0.1:1", "topic 't'"), "t", {})


@pytest.mark.parametrize(
    ("code", "said", "hint"),
    [
        ("INVALID_CONFIG", "Unknown topic config name: retention_ms", "'retention_ms' is written 'retention.ms'"),
        ("INVALID_PARTITIONS", "Number of partitions was set to an invalid value.", "partitions="),
        ("INVALID_REPLICATION_FACTOR", "Replication factor: 3 larger than available brokers: 1.", "replication"),
        ("POLICY_VIOLATION", "too many partitions", "policy"),
    ],
)
def test_what_the_broker_makes_no_topic_of_is_an_error_of_the_user_with_a_hint(monkeypatch, code, said, hint):
    """It was a TransientError, and an app with restart= tried it again and again."""

    class Refusing(Client):
        def create_topics(self, requests, **_):
            answer = Future()
            answer.set_exception(KafkaException(KafkaError(getattr(KafkaError, code), said)))
            return {requests[0].topic: answer}

    monkeypatch.setattr("sabot.kafka.client.admin_of", lambda link, kafka: nullcontext(Refusing(MISSING)))
    with pytest.raises(UserError, match=said) as caught:
        ensure_topic(BrokerLink("127.0.0.1:1", "topic 't'"), "t", {}, 3, {"retention_ms": "6"})
    assert hint in caught.value.hint
