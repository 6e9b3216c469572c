"""Settings of the Kafka client on which what is promised stands: they are Sabot's, wherever a user gives them."""

import socket
from typing import Any

import pytest

from sabot import App
from sabot.errors import UserError
from sabot.kafka import KafkaSink, KafkaSource, access
from sabot.kafka.client import connection_of
from sabot.kafka.settings import checked_settings

URL = "kafka://127.0.0.1:1"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"enable.auto.commit": True}, "committed with checkpoints"),
        ({"enable.auto.commit": "true"}, "committed with checkpoints"),
        ({"enable.auto.offset.store": True}, "committed with checkpoints"),
        ({"isolation.level": "read_uncommitted"}, "transactions that were aborted"),
        ({"auto.offset.reset": "earliest"}, "never a silent jump"),
        ({"enable.partition.eof": False}, "to its end"),
        ({"allow.auto.create.topics": True}, "wait for ever"),
        ({"group.id": "mine"}, "a group of its own"),
        ({"bootstrap.servers": "other:9092"}, "the address of the broker sets it"),
        ({"metadata.broker.list": "other:9092"}, "the address of the broker sets it"),
        ({"group.instance.id": "me"}, "one worker runs an app"),
        ({"group.protocol": "consumer"}, "one worker runs an app"),
        ({"partition.assignment.strategy": "cooperative-sticky"}, "assigns partitions itself"),
        ({"enable.idempotence": False}, "written twice"),
        ({"acks": 1}, "be lost"),
        ({"request.required.acks": "0"}, "be lost"),
        ({"default.topic.config": {"acks": 0}}, "be lost"),
        ({"transactional.id": "mine"}, "one of its own"),
        ({"delivery.report.only.error": True}, "what the broker has refused"),
        ({"on_delivery": print}, "what the broker has refused"),
        ({"on_commit": print}, "commits were refused"),
    ],
)
def test_a_setting_that_would_break_a_promise_is_refused_by_name(settings: dict[str, Any], why: str) -> None:
    (name,) = settings
    for made in (
        lambda: App("shop", URL, kafka=settings),
        lambda: KafkaSource("orders", URL, "shop", **settings),
        lambda: KafkaSink("orders", URL, **settings),
    ):
        with pytest.raises(UserError, match=rf"kafka: {name}.* is not for users to set: .*{why}") as refused:
            made()
        assert refused.value.hint.startswith("leave it out")


def test_a_setting_that_says_what_sabot_says_passes_and_so_do_those_that_bound_and_connect() -> None:
    same = {"enable.auto.commit": "false", "isolation.level": "read_committed", "acks": -1, "enable.idempotence": True}
    theirs = {
        "linger.ms": 50,
        "session.timeout.ms": 1000,
        "partitioner": "random",
        "sasl.username": "u",
        "stats_cb": print,
    }
    assert checked_settings({**same, **theirs}) == {**same, **theirs}
    assert App("shop", URL, kafka={**same, **theirs}).settings.kafka == {**same, **theirs}
    assert App("shop", URL).settings.kafka == {}
    with pytest.raises(UserError, match="kafka is a list"):
        App("shop", URL, kafka=["acks"])  # type: ignore[arg-type]


def test_a_client_that_only_asks_connects_as_one_that_reads_does() -> None:
    """It lacked the last three, and so was refused where the client that reads was not."""
    theirs = {
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": "OAUTHBEARER",
        "ssl.ca.location": "ca.pem",
        "enable.ssl.certificate.verification": True,
        "client.id": "shop",
        "enable.sasl.oauthbearer.unsecure.jwt": True,
        "https.ca.location": "ca.pem",
        "reconnect.backoff.ms": 500,
    }
    assert connection_of({**theirs, "linger.ms": 50, "session.timeout.ms": 1000}) == theirs


@pytest.mark.parametrize("url", [URL, "memory://"])
def test_an_argument_that_there_is_not_is_refused_by_name_whatever_the_broker(url: str) -> None:
    """A topic of memory:// ignored it, so that `start=` of a source had no effect until the broker was a real one."""
    for made in (
        lambda: KafkaSource("orders", url, "shop", start="latest"),
        lambda: KafkaSink("orders", url, start="latest"),
        lambda: App("shop", url, kafka={"start": "latest"}),
    ):
        with pytest.raises(UserError, match="kafka: start= is neither an argument nor a setting of the client"):
            made()
    with pytest.raises(UserError, match=r"linger_ms= is neither .* as 'linger\.ms' may be one"):
        KafkaSink("orders", url, linger_ms=5)
    with pytest.raises(UserError, match="committed with checkpoints"):
        KafkaSource("orders", url, **{"enable.auto.commit": True})


def test_an_address_that_the_environment_does_not_have_is_refused() -> None:
    for made in (lambda: App("shop", None), lambda: KafkaSource("orders", None), lambda: KafkaSink("orders", None)):  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"broker=None is no (str|text)"):
            made()


def test_a_size_or_a_time_that_is_no_number_is_refused_by_name() -> None:
    for made in (
        lambda: KafkaSource("orders", URL, "shop", **{"message.max.bytes": "10MB"}),
        lambda: KafkaSink("orders", URL, **{"transaction.timeout.ms": "60s"}),
        lambda: KafkaSink("orders", URL, **{"transaction.timeout.ms": None}),
    ):
        with pytest.raises(
            UserError, match=r"kafka: (message\.max\.bytes|transaction\.timeout\.ms)=.* is no whole number"
        ):
            made()


def test_a_source_that_would_look_for_partitions_without_a_pause_is_refused() -> None:
    """Its thread asked the broker again and again, without a wait in between."""
    with pytest.raises(UserError, match="partition_check is zero"):
        KafkaSource("orders", URL, "shop", partition_check=0)
    assert KafkaSource("orders", URL, "shop", partition_check="1s").name == "orders"


@pytest.mark.parametrize("protocol", ["plaintext", "ssl"])
def test_a_listener_that_does_not_answer_in_time_has_refused_nothing(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that was busy for a while was said to have closed the connection, and perhaps to want a login."""
    monkeypatch.setattr(access, "LOOK_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        assert access.look(f"127.0.0.1:{busy.getsockname()[1]}", {"security.protocol": protocol}) is None
